"""Which cells a call needs: finished ones first, then planned ones, then new ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rllc.engine.layout import groups
from rllc.errors import InputError
from rllc.sweep.plan import Cell, Plan, cell_name, differences
from rllc.sweep.request import Request
from rllc.sweep.store import Store

Place = tuple[int, str]
"""A checkpoint's step and a data set."""

NewCells = dict[tuple[tuple[int, int], "Cell | None"], list[str]]
"""By chains, and the cell that they go on from: names of weights."""


class Resumable(NamedTuple):
    """A finished cell whose chains can go on, and how many draws each of them has."""

    cell: Cell
    num_draws: int


@dataclass(frozen=True, eq=False)
class Planned:
    """The plan of a call, beside those of the calls before it.

    Args:
        plan: of this call.
        earlier: of the calls before it, the latest last.
        resumable: by place, finished cells of fewer draws, those with most draws first.
    """

    plan: Plan
    earlier: Sequence[Plan]
    resumable: Mapping[Place, Sequence[Resumable]]

    def resumes(self, cell: Cell) -> Resumable | None:
        """Return what a cell can go on from: the same chains of all its weights."""
        for candidate in self.resumable.get((cell.step, cell.data), ()):
            same_chains = candidate.cell.chains == cell.chains
            if same_chains and set(cell.weights) <= set(candidate.cell.weights):
                return candidate
        return None


def make_plan(request: Request) -> Planned:
    """Plan a call, and compare it with the calls before it. Nothing is written.

    Warns of versions that have changed.

    Raises:
        InputError: the store holds a sweep with other settings, checkpoints or data.
        FileError: a plan in the store is damaged.
    """
    store = request.store
    earlier = store.plans()
    plan = request.empty_plan()
    resumable = _resumable(request, earlier)
    planned: dict[Place, list[Cell]] = {}
    for other in earlier:
        if other.num_draws == plan.num_draws:
            for cell in other.cells:
                planned.setdefault((cell.step, cell.data), []).append(cell)
    finished = store.finished()
    cells: list[Cell] = []
    for step in request.checkpoints:
        for data in request.data:
            place = step, data
            shorter = [candidate.cell for candidate in resumable.get(place, ())]
            kept = _still_useful(planned.get(place, ()), finished, request)
            cells += _cells(request, plan, place, kept, shorter)
    plan = replace(plan, cells=tuple(dict.fromkeys(cells)))
    refuse_differences(earlier, plan, store)
    if earlier:
        _warn_of_versions(earlier[-1], plan, store)
    return Planned(plan, earlier, resumable)


def _resumable(request: Request, earlier: Sequence[Plan]) -> dict[Place, list[Resumable]]:
    ready = request.store.resumable()
    resumable: dict[Place, list[Resumable]] = {}
    for other in sorted(earlier, key=lambda plan: plan.num_draws, reverse=True):
        if other.num_draws >= request.sampling.num_draws:
            continue
        for cell in other.cells:
            if cell.name in ready:
                candidate = Resumable(cell, other.num_draws)
                resumable.setdefault((cell.step, cell.data), []).append(candidate)
    return resumable


def _still_useful(cells: Iterable[Cell], finished: set[str], request: Request) -> list[Cell]:
    """Return the finished cells, then the planned ones that hold nothing but what is asked for."""
    done, not_done = [], []
    for cell in cells:
        if cell.name in finished:
            done.append(cell)
        elif set(cell.weights) <= set(request.weights):
            not_done.append(cell)
    return done + not_done


def _cells(
    request: Request, plan: Plan, place: Place, planned: Sequence[Cell], shorter: Sequence[Cell]
) -> Iterable[Cell]:
    """Return the cells of one checkpoint and data set.

    Args:
        planned: cells of as many draws, in the order in which they are preferred.
        shorter: cells of fewer draws that can go on. A new cell takes the chains of one of them.
    """
    chosen: dict[Cell, None] = {}  # a set that keeps its order
    new: NewCells = {}
    for name in request.weights:
        chain = 0
        while chain < plan.num_chains:
            cell = _covering(planned, name, chain, plan.num_chains)
            if cell is not None:
                chosen[cell] = None
                chain = cell.chains[1]
                continue
            cell = _covering(shorter, name, chain, plan.num_chains)
            if cell is not None and cell.chains[0] != chain:
                cell = None  # it begins with chains that another cell has
            chains = (chain, plan.num_chains) if cell is None else cell.chains
            new.setdefault((chains, cell), []).append(name)
            chain = chains[1]
    step, data = place
    for (chains, _), names in new.items():
        for group in groups([request.masks[name] for name in names]):
            together = tuple(names[member] for member in group.members)
            name = cell_name(plan, plan.checkpoints[step], data, together, chains)
            chosen[Cell(name, step, data, together, chains)] = None
    return chosen


def _covering(cells: Iterable[Cell], weights: str, chain: int, num_chains: int) -> Cell | None:
    for cell in cells:
        begin, end = cell.chains
        if weights in cell.weights and begin <= chain < end <= num_chains:
            return cell
    return None


def share(cells: Sequence[Cell], shard: tuple[int, int]) -> list[Cell]:
    """Return the k-th of n parts of about equal size.

    It goes by name, so that a cell is in the same part whatever other cells there are.
    """
    k, n = shard
    return [cell for cell in cells if int(cell.name, 16) % n == k - 1]


# Beside other plans.


def announce(planned: Planned, store: Store) -> None:
    """Write a plan down, and look again whether another process has announced a different one.

    Raises:
        InputError: it has; the plan is withdrawn.
        FileError: the store cannot be written.
    """
    plan = planned.plan
    store.announce(plan)
    before = {other.text() for other in planned.earlier}
    seen = before | {plan.text()}
    clashing = []
    for other in store.plans():
        if other.text() in seen:
            continue
        # More draws or chains are no clash, whichever of the two came first.
        if differences([plan], other) and differences([other], plan):
            clashing.append(other)
    try:
        refuse_differences(clashing, plan, store)
    except InputError:
        if plan.text() not in before:
            store.withdraw(plan)
        raise


def refuse_differences(earlier: Sequence[Plan], plan: Plan, store: Store) -> None:
    """Compare a plan with those before it.

    Raises:
        InputError: they differ in what they must share.
    """
    sentences = differences(earlier, plan)
    if sentences:
        listed = "\n  ".join(sentences)
        raise InputError(
            f"track: {store.folder} holds a sweep with other settings, checkpoints or data:\n"
            f"  {listed}\n"
            f"Give the same to go on with it, or another folder as `store`."
        )


def _warn_of_versions(earlier: Plan, plan: Plan, store: Store) -> None:
    changes = []
    for name, version in earlier.versions.items():
        installed = plan.versions.get(name)
        if version != installed:
            changes.append(f"{name} {version} -> {installed}")
    if changes:
        warnings.warn(
            f"track: going on with {store.folder} with {', '.join(changes)}; new cells may differ "
            f"in their last bits from what they would have been.",
            stacklevel=6,
        )
