"""What was measured on one seed's model: small files from which claims and figures are made.

Sampling takes hours, and its result is a few hundred kilobytes a seed. These are kept apart, so
that claims and figures can be made again, and argued with, without it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import rllc
from rllc.storage.files import load_arrays, save_arrays

FORMED = 0.2
"""Nats on the second copy of what was seen before, from which on a circuit has formed."""
SLOPES = "slopes of the paper's sweeps"
TABLES = ("heads", "pairs", "model", "roles", "paths", "curvature", "circuit")


@dataclass(frozen=True, eq=False)
class Run:
    """What was measured on one seed's model."""

    name: str
    """Of text and seed."""
    base: str
    """Name of the data trained on."""
    code: str
    """Name of the data that induction heads are for: code, or repeats of the language."""
    prose: str
    """Name of the data to compare with."""
    llc: Mapping[str, rllc.Trajectory]
    """By the name of the sweep; see :mod:`examples.paper.sweep`. Those that are there."""
    slopes: Mapping[str, np.ndarray]
    """By the name of the sweep: the part of λ̂ that comes from the slope at w*."""
    tables: Mapping[str, pd.DataFrame]
    """By name, see :data:`TABLES`. Those that are there."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write small files."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.csv"):
            old.unlink()
        for name, trajectory in self.llc.items():
            trajectory.save(folder / f"llc-{name}.npz")
        save_arrays(folder / "slopes.npz", dict(self.slopes), {"kind": SLOPES})
        for name, table in self.tables.items():
            rounded = table.round(6)
            rounded.to_csv(folder / f"{name}.csv", index=False)
        names = {name: getattr(self, name) for name in ("name", "base", "code", "prose")}
        text = json.dumps({**names, "settings": dict(self.settings)}, indent=1, default=str)
        (folder / "run.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Read what :meth:`save` wrote."""
        names = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        llc = {}
        for path in sorted(folder.glob("llc-*.npz")):
            llc[path.stem.removeprefix("llc-")] = rllc.Trajectory.load(path)
        slopes, _ = load_arrays(folder / "slopes.npz", kind=SLOPES)
        tables = {}
        for name in TABLES:
            path = folder / f"{name}.csv"
            if path.exists():
                tables[name] = pd.read_csv(path)
        return cls(**names, llc=llc, slopes=slopes, tables=tables)

    # The heads.

    @property
    def heads(self) -> list[str]:
        """Names of the heads, by layer."""
        return list(self.tables["roles"]["head"])

    @property
    def roles(self) -> dict[str, str]:
        """The role of each head."""
        table = self.tables["roles"]
        return dict(zip(table["head"], table["role"], strict=True))

    def having(self, roles: Sequence[str], layer: int) -> list[str]:
        """The heads of a layer that have one of these roles."""
        heads = [head for head in self.heads if layer_of(head) == layer]
        return [head for head in heads if self.roles[head] in roles]

    def evidence(self, column: str) -> dict[str, float]:
        """A column of the table of roles, by head."""
        table = self.tables["roles"]
        return dict(zip(table["head"], table[column], strict=True))

    # λ̂.

    def curve(
        self, sweep: str, head: str, data: str | None = None, beyond_slope: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, λ̂ and its standard error over training, where there is one, once settled.

        With ``beyond_slope`` the part of the slope at w* is taken off.
        """
        trajectory = self.llc[sweep]
        column = trajectory.names.index(head, data or self.base)
        value = trajectory.value[:, column]
        if beyond_slope:
            value = value - self.slopes[sweep][:, column]
        steps = np.array(trajectory.steps)
        there = np.isfinite(value) & (steps >= self.settled())
        return steps[there], value[there], trajectory.standard_error[there, column]

    def settled(self) -> int:
        """The step from which on λ̂ of every head is above 0.

        In the first steps of training w* is no minimum: chains run downhill, and λ̂ says how far.
        """
        trajectory = self.llc["heads"]
        there = np.isfinite(trajectory.value).all(1)
        steps = np.array(trajectory.steps)[there]
        positive = (trajectory.value[there] > 0).all(1)
        bad = np.flatnonzero(~positive)
        first = int(bad[-1]) + 1 if len(bad) else 0
        return int(steps[min(first, len(steps) - 1)])

    def last(self, sweep: str, head: str, data: str | None = None) -> tuple[float, float]:
        """λ̂ and its standard error at the last step; NaN where there is none."""
        trajectory = self.llc[sweep]
        if (head, data or self.base) not in list(trajectory.names):
            return np.nan, np.nan
        column = trajectory.names.index(head, data or self.base)
        return float(trajectory.value[-1, column]), float(trajectory.standard_error[-1, column])

    def last_slope(self, sweep: str, head: str, data: str) -> float:
        """The part of the last λ̂ that comes from the slope at w*."""
        column = self.llc[sweep].names.index(head, data)
        return float(self.slopes[sweep][-1, column])

    # The circuit.

    def gain(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps, and how much better the second copy of random tokens is predicted, in nats."""
        table = self.tables["model"].sort_values("step")
        column = "gain_random" if "gain_random" in table else "gain_text"
        return table["step"].to_numpy(), table[column].to_numpy()

    def forming(self) -> tuple[int, int] | None:
        """Steps between which the induction circuit forms; ``None`` where none does.

        From the last checkpoint with less than a tenth of the final gain, to the first with half.
        """
        steps, gain = self.gain()
        if gain[-1] < FORMED:
            return None
        begin = int(np.flatnonzero(gain < 0.1 * gain[-1])[-1])
        end = int(np.flatnonzero(gain >= 0.5 * gain[-1])[0])
        return int(steps[min(begin, end - 1)]), int(steps[end])


def layer_of(head: str) -> int:
    """The layer in ``"1:6"``."""
    return int(head.split(":")[0])


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in some folders: each folder holds files of one run, or folders of runs."""
    paths = []
    for folder in folders:
        paths += sorted(path.parent for path in folder.rglob("run.json"))
    return [Run.load(path) for path in paths]


def curves(table: pd.DataFrame, column: str, by: str = "head") -> dict[str, list[float]]:
    """Head -> values over training."""
    table = table.sort_values("step", kind="stable")
    values = {}
    for head, rows in table.groupby(by, sort=False):
        values[str(head)] = rows[column].tolist()
    return values
