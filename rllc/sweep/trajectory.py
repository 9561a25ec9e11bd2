"""Estimates over training, in arrays and names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError, must_be
from rllc.estimates.estimate import ARRAYS, Estimate, Key, import_xarray
from rllc.estimates.faults import Fault, faults_from_json, faults_to_json, status_of
from rllc.estimates.table import counted
from rllc.sampling.draws import check_settings
from rllc.statistics.uncertainty import Mean, satterthwaite
from rllc.storage.files import (
    check_shapes,
    load_arrays,
    reading,
    save_arrays,
    write_atomically,
    writing,
)
from rllc.storage.same import same
from rllc.tables import AsTable, Table, with_error
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_MOST_COLUMNS = 5
"""Checkpoints that a printed table shows."""

_DIAGNOSTICS = "diagnostics."
"""Before the name of a diagnostic in a file."""


@dataclass(frozen=True, eq=False)
class Trajectory(OfRefinements, AsTable):
    """λ̂ of each refinement at each checkpoint.

    :func:`rllc.track`, :meth:`rllc.Sweep.trajectory` and :class:`rllc.Tracker` make it.

    Args:
        steps: training step of each checkpoint, rising.
        value: ``[checkpoint, refinement]``, as in :class:`rllc.Estimate`.
        standard_error: ``[checkpoint, refinement]``.
        dof: ``[checkpoint, refinement]``: degrees of freedom of that error.
        rhat: ``[checkpoint, refinement]``.
        ess: ``[checkpoint, refinement]``.
        per_chain: ``[checkpoint, refinement, chain]``.
        faults: ``[checkpoint][refinement]``: what is wrong with each estimate, and why there is
            none where a sweep has none.
        names: of the refinements.
        settings: of sampler and sampling, the same at every checkpoint.
        diagnostics: by name, ``[checkpoint, refinement]``, as in :class:`rllc.Estimate`.
    """

    steps: tuple[int, ...]
    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    per_chain: np.ndarray
    faults: tuple[tuple[tuple[Fault, ...], ...], ...]
    names: Names
    settings: Mapping[str, Any]
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, estimates: Mapping[int, Estimate]) -> Trajectory:
        """Put estimates, keyed by training step, in order.

        Raises:
            InputError: there are none, or they are of other refinements or made with other
                settings.
        """
        right = isinstance(estimates, Mapping)
        right = right and all(isinstance(one, Estimate) for one in estimates.values())
        must_be("Trajectory.of", "estimates", estimates, right, "a dict {step: estimate}")
        if not estimates:
            raise InputError("Trajectory.of: expected at least one estimate, got none.")
        steps = tuple(sorted(estimates))
        ordered = [estimates[step] for step in steps]
        first = ordered[0]
        for step, estimate in zip(steps, ordered, strict=True):
            for what in ("weights", "data", "settings"):
                at_this_step, expected = getattr(estimate, what), getattr(first, what)
                if at_this_step != expected:
                    raise InputError(
                        f"Trajectory.of: `{what}` at step {step} are {at_this_step}, but at step "
                        f"{steps[0]} {expected}; a curve compares the same refinements with the "
                        f"same settings."
                    )
        arrays = {}
        for name in ARRAYS:
            arrays[name] = np.stack([getattr(estimate, name) for estimate in ordered])
        diagnostics = {}
        for name in first.diagnostics:
            diagnostics[name] = np.stack([estimate.diagnostics[name] for estimate in ordered])
        return cls(
            steps=steps,
            **arrays,
            faults=tuple(estimate.faults for estimate in ordered),
            names=first.names,
            settings=first.settings,
            diagnostics=diagnostics,
        )

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom, ``[checkpoint, refinement]``."""
        return Mean(self.value, self.standard_error, self.dof)

    def interval(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Return confidence intervals by Student's distribution, ``[checkpoint, refinement, 2]``.

        Args:
            level: of confidence.
            simultaneous: whether all of them shall hold together with that confidence, at every
                checkpoint of every refinement.
        """
        return self.mean.interval(level, simultaneous)

    def difference(self, of: int, minus: int) -> Mean:
        """Return λ̂ at one checkpoint minus λ̂ at another, ``[refinement]``.

        See :meth:`contrast` for its error.

        Args:
            of: a training step.
            minus: another.

        Raises:
            InputError: there is no such checkpoint, or it is the same.
        """
        if of == minus:
            raise InputError(
                f"trajectory.difference({of}, {minus}): expected two different checkpoints."
            )
        return self.contrast({of: 1.0, minus: -1.0})

    def contrast(self, weights: Mapping[int, float]) -> Mean:
        """Return a weighted sum of checkpoints, ``[refinement]``.

        ``trajectory.contrast({8000: 1, 2000: -0.5, 4000: -0.5})`` is the step 8000 minus the mean
        of two earlier ones.

        The errors of the checkpoints are added in squares, as if they were independent: a
        trajectory keeps no draws. :func:`rllc.track` gives all checkpoints the same minibatches
        and noise. What these do alike to two checkpoints cancels in their difference, so the error
        is then rather too large than too small.

        Args:
            weights: by training step.

        Raises:
            InputError: there is no such checkpoint, or none is named.
        """
        if not weights:
            raise InputError("trajectory.contrast: expected weights by step, got none.")
        rows = [self._row(step) for step in weights]
        factors = np.array(list(weights.values()), dtype=np.float64)[:, None]
        variances = np.square(factors * self.standard_error[rows])
        parts = zip(variances, self.dof[rows], strict=True)
        return Mean(
            value=(factors * self.value[rows]).sum(0),
            standard_error=np.sqrt(variances.sum(0)),
            dof=satterthwaite(*parts),
        )

    @property
    def status(self) -> tuple[tuple[str, ...], ...]:
        """``[checkpoint][refinement]``: the faults in words, ``"ok"`` where there are none."""
        return tuple(tuple(status_of(faults) for faults in row) for row in self.faults)

    def at(self, step: int) -> Estimate:
        """Return the estimate at one checkpoint.

        Raises:
            InputError: there is none at this step.
        """
        must_be("trajectory.at", "step", step, isinstance(step, int), "a training step")
        row = self._row(step)
        return Estimate(
            **{name: getattr(self, name)[row] for name in ARRAYS},
            faults=self.faults[row],
            names=self.names,
            settings=self.settings,
            diagnostics={name: array[row] for name, array in self.diagnostics.items()},
        )

    def _row(self, step: int) -> int:
        """Return which checkpoint is that of a step."""
        if step not in self.steps:
            by_distance = sorted(self.steps, key=lambda other: abs(other - step))
            raise InputError(
                f"trajectory.at({step}): no such checkpoint; "
                f"the nearest steps are {sorted(by_distance[:3])}."
            )
        return self.steps.index(step)

    def __getitem__(self, key: Key) -> Trajectory:
        """Return the curves that a key names, at all checkpoints.

        ``trajectory["1:6", "code"]`` is one curve; ``trajectory["1:6"]`` and ``trajectory["1:*"]``
        are those on every data set.

        Raises:
            InputError: there is no such refinement.
        """
        texts = [key] if isinstance(key, str) else key
        right = isinstance(texts, list | tuple) and len(texts) in (1, 2)
        if not (right and all(isinstance(text, str) for text in texts)):
            raise InputError(
                f"trajectory[{key!r}]: expected a name, or (weights, data), such as "
                f"trajectory['1:6', 'code']; a checkpoint is trajectory.at(step)."
            )
        return self.select(*texts)

    def select(
        self,
        weights: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        *,
        layer: int | None = None,
    ) -> Trajectory:
        """Return the curves that fit all that is asked for, in their order.

        Args:
            weights: a name, a pattern such as ``"1:*"``, or a list of these; ``None`` is any.
            data: alike.
            layer: heads of this layer only.

        Raises:
            InputError: there are no such weights, data or layer.
        """
        return self.take(self.names.matching(weights, data, layer))

    def take(self, columns: Iterable[int]) -> Trajectory:
        """Return some curves, by their number, in the order given."""
        chosen = list(columns)
        index = np.array(chosen, dtype=int)
        faults = [tuple(row[column] for column in chosen) for row in self.faults]
        return replace(
            self,
            **{name: getattr(self, name)[:, index] for name in ARRAYS},
            faults=tuple(faults),
            names=self.names.take(chosen),
            diagnostics={name: array[:, index] for name, array in self.diagnostics.items()},
        )

    # A trajectory has checkpoints and curves. Without this Python would count through it.
    __iter__ = None

    def __len__(self) -> int:
        return len(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and same(self, other)

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} checkpoints, steps {self.steps[0]}…{self.steps[-1]}"
        size = f"{len(self.names.selections)} weights × {len(self.names.data_sets)} data"
        num_bad = sum(bool(faults) for row in self.faults for faults in row)
        note = f", {num_bad} of {self.value.size} not ok" if num_bad else ""
        return f"Trajectory({steps}, {size}{note})"

    @property
    def _table(self) -> Table:
        """A row a refinement, and a few checkpoints from the first to the last."""
        places = np.linspace(0, len(self) - 1, min(len(self), _MOST_COLUMNS)).round().astype(int)
        header = ["weights", "data", *(f"step {self.steps[i]}" for i in places), "not ok"]
        rows = [header]
        wrong = []
        for k, (weights, data) in enumerate(self.names):
            cells = []
            for i in places:
                mark = "!" if self.faults[i][k] else " "
                cells.append(with_error(self.value[i, k], self.standard_error[i, k]) + mark)
            num_bad = sum(bool(faults[k]) for faults in self.faults)
            rows.append([weights, data, *cells, f"{num_bad} of {len(self)}"])
            wrong += [(k, 2 + j) for j, i in enumerate(places) if self.faults[i][k]]
        notes = counted([faults for row in self.faults for faults in row])
        if notes:
            notes.append("! is not ok: trajectory.at(step) says what is wrong")
        how = "print(trajectory.to_dataframe().to_string())"
        return Table(repr(self), rows, left=(0, 1), wrong=wrong, notes=notes, see_all=how)

    # Tables.

    def to_dataframe(self, *, diagnostics: bool = False) -> pd.DataFrame:
        """One row a checkpoint and refinement.

        Columns: ``step, weights, data, llc, standard_error, rhat, ess, status``.

        Args:
            diagnostics: whether all diagnostics come, too.
        """
        import pandas as pd

        tables = []
        for step in self.steps:
            of_step = self.at(step).to_dataframe(diagnostics=diagnostics)
            tables.append(of_step.assign(step=step))
        table = pd.concat(tables, ignore_index=True)
        return table[["step", *table.columns.drop("step")]]

    def to_xarray(self) -> xr.Dataset:
        """Everything with named axes ``checkpoint, refinement, chain``. Needs ``xarray``.

        Steps and names are coordinates. To make an axis of each name, type
        ``.set_index(refinement=["weights", "data"]).unstack("refinement")``.

        Raises:
            InputError: xarray is not installed.
        """
        xr = import_xarray("trajectory.to_xarray()")
        axes = ("checkpoint", "refinement")
        arrays: dict[str, Any] = {"llc": (axes, self.value)}
        for name in ("standard_error", "dof", "rhat", "ess"):
            arrays[name] = (axes, getattr(self, name))
        for name, array in self.diagnostics.items():
            arrays[name] = (axes, array)
        arrays["per_chain"] = ((*axes, "chain"), self.per_chain)
        status = np.array(self.status, dtype=object).reshape(self.value.shape)
        arrays["status"] = (axes, status)
        coordinates = {
            "step": ("checkpoint", list(self.steps)),
            "weights": ("refinement", list(self.weights)),
            "data": ("refinement", list(self.data)),
        }
        return xr.Dataset(arrays, coordinates, {"settings": json.dumps(dict(self.settings))})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write ``to_dataframe(diagnostics=True)`` as one Parquet file, whole or not at all."""
        table = self.to_dataframe(diagnostics=True)
        with writing(path):
            return write_atomically(
                path, lambda temporary: table.to_parquet(temporary, index=False)
            )

    # Files.

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        header = {
            "kind": "rllc.Trajectory",
            "steps": self.steps,
            "faults": [[faults_to_json(faults) for faults in row] for row in self.faults],
            "weights": self.weights,
            "data": self.data,
            "settings": dict(self.settings),
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name, array in self.diagnostics.items():
            arrays[_DIAGNOSTICS + name] = array
        return save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, a damaged one, or one that holds something else.
        """
        arrays, header = load_arrays(path, kind="rllc.Trajectory")
        diagnostics = {}
        for name, array in arrays.items():
            if name.startswith(_DIAGNOSTICS):
                diagnostics[name.removeprefix(_DIAGNOSTICS)] = array
        with reading(path):
            steps = tuple(map(int, header["steps"]))
            axes = {name: 3 if name == "per_chain" else 2 for name in ARRAYS}
            check_shapes(arrays, axes, len(steps))
            check_shapes(diagnostics, dict.fromkeys(diagnostics, 2), len(steps))
            check_settings(header["settings"], needed=False)
            names = Names(tuple(header["weights"]), tuple(header["data"]))
            faults = tuple(tuple(map(faults_from_json, row)) for row in header["faults"])
            counts = {array.shape[1] for array in (arrays["value"], *diagnostics.values())}
            counts |= {len(row) for row in faults}
            if counts != {len(names)} or len(faults) != len(steps):
                raise ValueError("arrays, faults and names are of different refinements")
            return cls(
                steps=steps,
                **{name: arrays[name] for name in ARRAYS},
                faults=faults,
                names=names,
                settings=dict(header["settings"]),
                diagnostics=diagnostics,
            )
