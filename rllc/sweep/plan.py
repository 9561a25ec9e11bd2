"""What one call of :func:`rllc.track` asks for, as a list of cells, and how two plans differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rllc.sweep.identity import short_hash

_LAYOUT = 1
"""Version of the store's layout. It enters every cell's name."""


@dataclass(frozen=True)
class Cell:
    """One unit of work, which becomes one file.

    Args:
        name: of its file: the hash of all that its numbers depend on (:func:`cell_name`).
        step: of its checkpoint.
        data: name of its data set.
        weights: names of the weights that are refined together.
        chains: numbers of the first chain and of the one behind the last.
    """

    name: str
    step: int
    data: str
    weights: tuple[str, ...]
    chains: tuple[int, int]

    @property
    def num_chains(self) -> int:
        """How many chains of each weights it holds."""
        return self.chains[1] - self.chains[0]


@dataclass(frozen=True, eq=False)
class Plan:
    """What one call of :func:`rllc.track` asks for.

    Args:
        settings: of sampler and sampling, as far as they are the same in every cell.
        num_draws: of each chain.
        num_chains: of each refinement.
        loss: its name.
        checkpoints: by step, where each is and the SHA-256 of its weights, ``None`` if that was not
            known beforehand.
        data: by name, the SHA-256 of the rows.
        weights: by name, the SHA-256 of the masks.
        cells: all that it needs, finished or not.
        versions: of the libraries that compute.
    """

    settings: Mapping[str, Any]
    num_draws: int
    num_chains: int
    loss: str
    checkpoints: Mapping[int, Mapping[str, Any]]
    data: Mapping[str, str]
    weights: Mapping[str, str]
    cells: tuple[Cell, ...]
    versions: Mapping[str, str]

    @property
    def draws_settings(self) -> dict[str, Any]:
        """The settings as :class:`rllc.Draws` of all chains would have them."""
        counts = {"num_draws": self.num_draws, "num_chains": self.num_chains, "first_chain": 0}
        return {**self.settings, **counts, "fingerprints": dict(self.data)}

    def mixes_with(self, other: Plan) -> bool:
        """Whether results of both may stand in one trajectory."""
        if (self.num_draws, self.loss) != (other.num_draws, other.loss):
            return False
        return dict(self.settings) == dict(other.settings)

    def text(self) -> str:
        """Write it as JSON."""
        fields = {**vars(self), "cells": [vars(cell) for cell in self.cells]}
        return json.dumps({"kind": "rllc.sweep", **fields}, indent=1, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Plan:
        """Read what :meth:`text` wrote.

        Raises:
            ValueError: the text is not JSON or holds something else.
            KeyError: a field is missing.
            TypeError: a field is unknown.
        """
        fields = json.loads(text)
        if fields.pop("kind") != "rllc.sweep":
            raise ValueError("it is of another kind")
        cells = []
        for cell in fields.pop("cells"):
            lists = {name: tuple(cell.pop(name)) for name in ("weights", "chains")}
            cells.append(Cell(**cell, **lists))
        checkpoints = {int(step): where for step, where in fields.pop("checkpoints").items()}
        return cls(**fields, checkpoints=checkpoints, cells=tuple(cells))


def cell_name(
    plan: Plan,
    checkpoint: Mapping[str, Any],
    data: str,
    weights: Sequence[str],
    chains: tuple[int, int],
) -> str:
    """Return the hash of all that a cell's numbers depend on.

    That is the contents of checkpoint and data, the masks, the loss, the settings and the chains.
    Where a checkpoint lies is left out once its SHA-256 is known, so that a folder may move.
    Versions are left out: those that computed a cell stand in its file.
    """
    identity = {"step": checkpoint["step"], "sha256": checkpoint["sha256"]}
    if checkpoint["sha256"] is None:
        identity |= {name: checkpoint[name] for name in ("source", "revision", "file")}
    key = {
        "version": _LAYOUT,
        "checkpoint": identity,
        "data": [data, plan.data[data]],
        "weights": [[name, plan.weights[name]] for name in weights],
        "loss": plan.loss,
        "settings": {**plan.settings, "num_draws": plan.num_draws},
        "chains": chains,
    }
    return short_hash(json.dumps(key, sort_keys=True))


def covering(cells: Iterable[Cell], num_chains: int) -> tuple[Cell, ...] | None:
    """Return the fewest cells that together hold all chains; ``None`` if there are none.

    Args:
        cells: all of the same weights. Those with chains beyond ``num_chains`` are left out.
    """
    chosen: list[Cell] = []
    chain = 0
    while chain < num_chains:
        longest = None
        for cell in cells:
            begin, end = cell.chains
            further = longest is None or end > longest.chains[1]
            if begin <= chain < end <= num_chains and further:
                longest = cell
        if longest is None:
            return None
        chosen.append(longest)
        chain = longest.chains[1]
    return tuple(chosen)


# What plans on one folder must have in common.


def differences(earlier: Sequence[Plan], plan: Plan) -> list[str]:
    """List what a plan should share with those before it and does not.

    Chains and draws may grow, or be as few as in one of the earlier plans.

    Returns:
        Sentences such as ``"lr: 0.001 there, 0.002 now"``.
    """
    sentences = []
    for other in earlier:
        sentences += _compared(other, plan)
    for name in ("num_chains", "num_draws"):
        counts = {getattr(other, name) for other in earlier}
        count = getattr(plan, name)
        if counts and count < max(counts) and count not in counts:
            sentences.append(f"{name}: {max(counts)} there, {count} now (it can only grow)")
    return list(dict.fromkeys(sentences))


def _compared(old_plan: Plan, new_plan: Plan) -> list[str]:
    # Through JSON, in which the old one has been, so that tuples and lists are the same.
    old, new = json.loads(old_plan.text()), json.loads(new_plan.text())
    pairs = []
    for name in old["settings"] | new["settings"]:
        pairs.append((name, old["settings"].get(name), new["settings"].get(name)))
    pairs.append(("loss", old["loss"], new["loss"]))
    for step in old["checkpoints"].keys() & new["checkpoints"].keys():
        pairs += _compared_checkpoints(step, old["checkpoints"][step], new["checkpoints"][step])
    for what in ("data", "weights"):
        for name in old[what].keys() & new[what].keys():
            pairs.append((f"{what} {name!r}, SHA-256", old[what][name], new[what][name]))
    differing = [pair for pair in sorted(pairs, key=str) if pair[1] != pair[2]]
    return [f"{name}: {_short(a)} there, {_short(b)} now" for name, a, b in differing]


def _compared_checkpoints(
    step: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    for name, title in (("sha256", "SHA-256"), ("revision", "revision")):
        if None not in (old[name], new[name]):
            return [(f"checkpoint of step {step}, {title}", old[name], new[name])]
    return []


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:8]}…"
    return repr(value)
