"""What one call of :func:`rllc.track` asks for, as a list of cells, and how two plans differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rllc.storage.files import check_fields
from rllc.storage.identity import measurement, short_hash

_HASH = re.compile(r"\w+")

_LAYOUT = 2
"""Version of the store's layout. It enters every cell's name."""


@dataclass(frozen=True, slots=True)
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
        checkpoints: by step, where each is, the commit of one on the hub, and the SHA-256 of
            weights and configuration, ``None`` if that was not known beforehand.
        data: by name, the SHA-256 of the rows.
        weights: by name, the SHA-256 of the masks.
        cells: all that it needs, finished or not.
        versions: of the libraries that compute.
        identity: what loss and sampler are by their contents (:mod:`rllc.storage.identity`), and
        the
            version of the library's numbers.
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
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def draws_settings(self) -> dict[str, Any]:
        """The settings as :class:`rllc.Draws` of all chains would have them."""
        counts = {"num_draws": self.num_draws, "num_chains": self.num_chains, "first_chain": 0}
        return {**self.settings, **counts, "fingerprints": dict(self.data)}

    def mixes_with(self, other: Plan) -> bool:
        """Whether results of both may stand in one trajectory."""
        if (self.num_draws, self.loss) != (other.num_draws, other.loss):
            return False
        same_identity = dict(self.identity) == dict(other.identity)
        return same_identity and dict(self.settings) == dict(other.settings)

    def text(self) -> str:
        """Write it as JSON."""
        fields = {**vars(self), "cells": [asdict(cell) for cell in self.cells]}
        return json.dumps({"kind": "rllc.sweep", **fields}, indent=1, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Plan:
        """Read what :meth:`text` wrote.

        Raises:
            ValueError: the text is not JSON or holds something else.
            KeyError: a field is missing.
            TypeError: a field is unknown.
        """
        fields = dict(check_fields(json.loads(text), {"kind": "text"}))
        if fields.pop("kind") != "rllc.sweep":
            raise ValueError("it is of another kind")
        check_fields(fields, _FIELDS)
        check_fields({"identity": {}} | fields, {"identity": "object"})
        for name in ("data", "weights", "versions"):
            check_fields(fields[name], dict.fromkeys(fields[name], "text"))
        cells = []
        # Thousands of cells are of the same step, data, weights and chains, and thousands of
        # checkpoints of one source. These are kept once.
        once: dict[Any, Any] = {}
        for cell in fields.pop("cells"):
            _check_cell(cell, fields)
            cell["weights"] = tuple(cell["weights"])
            cell["chains"] = tuple(cell["chains"])
            for name in ("step", "data", "weights", "chains"):
                cell[name] = once.setdefault(cell[name], cell[name])
            cells.append(Cell(**cell))
        checkpoints = {}
        for step, where in fields.pop("checkpoints").items():
            check_fields({"parts": {}} | where, {"parts": "object"})
            check_fields(where, _CHECKPOINT)
            for name in ("source", "file"):
                if name in where:
                    where[name] = once.setdefault(where[name], where[name])
            if "parts" in where:
                parts = tuple(sorted(where["parts"].items()))
                where["parts"] = once.setdefault(parts, where["parts"])
            checkpoints[int(step)] = where
        return cls(**fields, checkpoints=checkpoints, cells=tuple(cells))


_FIELDS = {
    "settings": "object",
    "num_draws": "count",
    "num_chains": "count",
    "loss": "text",
    "checkpoints": "object",
    "data": "object",
    "weights": "object",
    "cells": "list",
    "versions": "object",
}
_CELL = {"name": "text", "step": "count", "data": "text", "weights": "list", "chains": "list"}
_CHECKPOINT = {"source": "text", "step": "count", "revision": None, "sha256": None}
"""Of which kind the fields of a plan, its cells and its checkpoints are, as JSON."""


def _check_cell(cell: Any, fields: Mapping[str, Any]) -> None:
    """See that a cell of a plan is one.

    Raises:
        ValueError: a field is of another kind, or not of this plan.
        KeyError: a field is missing.
    """
    check_fields(cell, _CELL)
    if not _HASH.fullmatch(cell["name"]):
        raise ValueError(f"the cell's name {cell['name'][:40]!r} is no hash")
    ours = cell["data"] in fields["data"] and str(cell["step"]) in fields["checkpoints"]
    # A finished cell may be of more weights than were asked for.
    for name in cell["weights"]:
        check_fields({"weights": name}, {"weights": "text"})
    begin, end = cell["chains"]
    check_fields({"first": begin, "last": end}, {"first": "count", "last": "count"})
    if not ours or not begin < end:
        raise ValueError(f"the cell {cell['name']} is not of this plan")


def cell_name(
    plan: Plan,
    checkpoint: Mapping[str, Any],
    data: str,
    weights: Sequence[str],
    chains: tuple[int, int],
) -> str:
    """Return the hash of all that a cell's numbers depend on.

    That is :func:`rllc.storage.identity.measurement`: the contents of checkpoint and data, the
    masks, the loss, the sampler, the settings; and the chains. Where a checkpoint lies is left out
    once its SHA-256 is known, so that a folder may move. Versions are left out: those that computed
    a cell stand in its file.
    """
    identity = {"step": checkpoint["step"], "sha256": checkpoint["sha256"]}
    if checkpoint["sha256"] is None:
        places = ("source", "revision", "commit", "file")
        identity |= {name: checkpoint.get(name) for name in places}
    key = measurement(
        model=json.dumps(identity, sort_keys=True),
        loss=f"{plan.loss} {plan.identity.get('loss')}",
        sampler=str(plan.identity.get("sampler")),
        settings={**plan.settings, "num_draws": plan.num_draws},
        data={data: plan.data[data]},
        weights={name: plan.weights[name] for name in weights},
    )
    key |= {"version": _LAYOUT, "order": list(weights), "chains": chains}
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
        names = [*other.settings, *plan.settings]
        sentences += _compared(names, other.settings, plan.settings)
        stored, asked = _fingerprints(other), _fingerprints(plan)
        # More checkpoints, data and weights are welcome; those in both must be the same.
        notes = _changed_parts(other, plan)
        sentences += _compared(stored.keys() & asked.keys(), stored, asked, notes)
    for name in ("num_chains", "num_draws"):
        counts = {getattr(other, name) for other in earlier}
        count = getattr(plan, name)
        if counts and count not in counts and count < max(counts):
            most = max(counts)
            sentences.append(f"{name}: {most} there, {count} now (it can only grow)")
    return list(dict.fromkeys(sentences))


def _compared(
    names: Iterable[str],
    there: Mapping[str, Any],
    now: Mapping[str, Any],
    notes: Mapping[str, str] | None = None,
) -> list[str]:
    sentences = []
    for name in sorted(set(names)):
        old, new = there.get(name), now.get(name)
        if old != new:
            note = (notes or {}).get(name, "")
            sentences.append(f"{name}: {_short(old)} there, {_short(new)} now{note}")
    return sentences


def _changed_parts(there: Plan, now: Plan) -> dict[str, str]:
    """Which parts of a checkpoint are others, by what sentences call its SHA-256."""
    notes = {}
    for step in there.checkpoints.keys() & now.checkpoints.keys():
        old, new = there.checkpoints[step], now.checkpoints[step]
        changed = changed_parts(old.get("parts", {}), new.get("parts", {}))
        if changed:
            notes[_sha256_of(step)] = f" ({changed})"
    return notes


def changed_parts(there: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which parts of a checkpoint are not what they were; nothing where they are not known.

    >>> changed_parts({"weights": "1", "into": "2"}, {"weights": "1", "into": "3"})
    'changed: `into`, the module that the weights are loaded into'
    """
    if not there or not now:
        return ""
    changed = []
    for name in dict.fromkeys([*there, *now]):
        if there.get(name) != now.get(name):
            changed.append(_PARTS.get(name, name))
    return f"changed: {' and '.join(changed)}" if changed else ""


_PARTS = {
    "weights": "the weights",
    "configuration": "the configuration beside the weights",
    "into": "`into`, the module that the weights are loaded into",
    "positions": "`positions`",
    "model": "the model in memory",
}
"""What sentences call the parts of a checkpoint."""


def _sha256_of(step: int) -> str:
    return f"checkpoint of step {step}, SHA-256"


_IDENTITIES = {
    "numerics": "version of the library's numbers",
    "loss": "contents of the loss",
    "sampler": "contents of the sampler",
}
"""What sentences call the parts of an identity."""


def _fingerprints(plan: Plan) -> dict[str, Any]:
    """Return what says that contents are the same, as far as it is known."""
    fingerprints = {"loss": plan.loss}
    for name, identity in plan.identity.items():
        fingerprints[_IDENTITIES.get(name, name)] = identity
    for step, where in plan.checkpoints.items():
        if where["sha256"] is not None:
            fingerprints[_sha256_of(step)] = where["sha256"]
        elif where.get("commit") is not None:
            fingerprints[f"checkpoint of step {step}, commit"] = where["commit"]
        elif where["revision"] is not None:
            fingerprints[f"checkpoint of step {step}, revision"] = where["revision"]
    for name, digest in plan.data.items():
        fingerprints[f"data {name!r}, SHA-256"] = digest
    for name, digest in plan.weights.items():
        fingerprints[f"weights {name!r}, SHA-256"] = digest
    return fingerprints


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:8]}…"
    return repr(value)
