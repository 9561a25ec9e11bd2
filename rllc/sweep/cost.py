"""What a sweep would take: cells, steps, FLOPs, memory, disk and hours, from a few steps of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rllc.arguments import names_checked
from rllc.errors import must_be
from rllc.losses.contract import LossFunction
from rllc.models.checkpoints import CheckpointsLike, Into
from rllc.samplers import Sampler
from rllc.sampling.checks import check_how
from rllc.sampling.draws import Draws
from rllc.sampling.sample import sample
from rllc.sampling.settings import Compute, Sampling
from rllc.sweep import parts
from rllc.sweep.plan import Cell
from rllc.sweep.planning import Planned, make_plan, share
from rllc.sweep.pools import num_workers
from rllc.sweep.request import ChoiceOfWeights, Request, listed
from rllc.sweep.store import Store
from rllc.sweep.track import ALL, store_or_temporary
from rllc.tables import duration
from rllc.weights.refinement import DataLike

_TIMED_DRAWS = 4
"""Draws whose time, FLOPs and memory stand for all."""

_CURVATURE_EVALUATIONS = 13
"""What the largest curvature costs, in steps of one chain, for each refinement."""


@dataclass(frozen=True)
class SweepCost:
    """What a sweep would take. Printed, it is a few lines of text.

    Args:
        num_checkpoints: how many there are.
        num_data: how many data sets.
        num_weights: how many choices of weights.
        num_cells: cells of this share of the sweep.
        num_finished: those of them that are finished.
        num_steps: sampler steps of the cells that are left, all chains of a cell together.
        num_chain_steps: the same, each chain counted.
        flops: of the cells that are left.
        memory: peak of one worker, in bytes.
        disk: bytes by what they are for.
        seconds: of one worker.
        num_workers: ``None``: the executor does not say.
        shard: which share of how many.
    """

    num_checkpoints: int
    num_data: int
    num_weights: int
    num_cells: int
    num_finished: int
    num_steps: int = 0
    num_chain_steps: int = 0
    flops: float = 0.0
    memory: int = 0
    disk: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    num_workers: int | None = 1
    shard: tuple[int, int] = ALL

    @property
    def num_missing(self) -> int:
        """Cells that are left to compute."""
        return self.num_cells - self.num_finished

    @property
    def hours(self) -> float:
        """Hours with all workers; with an executor that does not say how many, with one."""
        return self.seconds / (self.num_workers or 1) / 3600

    def __repr__(self) -> str:
        parts = ((self.num_checkpoints, "checkpoint"), (self.num_data, "data set"))
        size = " × ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in parts)
        size += f" × {self.num_weights} weights"
        k, n = self.shard
        if n > 1:
            size += f", of which in share {k} of {n}"
        counts = f"{self.num_cells} cells, {self.num_finished} finished"
        lines = [f"{size}: {counts}, {self.num_missing} to compute"]
        if not self.num_missing:
            return lines[0]
        steps = f"{self.num_steps:,} steps, of each chain: {self.num_chain_steps:,}"
        lines.append(f"{steps}; {self.flops:.2g} FLOPs")
        lines.append(f"about {_gibibytes(self.memory)} of memory a worker")
        for purpose, size_on_disk in self.disk.items():
            lines.append(f"about {_gibibytes(size_on_disk)} on disk for {purpose}")
        if self.num_workers is None:
            workers = " of one worker's time"
            time_taken = duration(self.seconds)
        else:
            workers = f", on {self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
            time_taken = duration(3600 * self.hours)
        lines.append(f"about {time_taken}{workers}")
        return "\n".join(lines)


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.2g} GiB"


@names_checked
def sweep_cost(
    checkpoints: CheckpointsLike,
    data: DataLike,
    weights: ChoiceOfWeights = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    store: str | PathLike[str] | Store | None = None,
    compute: Compute | None = None,
    into: Into | None = None,
) -> SweepCost:
    """Say what :func:`rllc.track`, called with the same arguments, would take.

    >>> sweep_cost("runs/seed0", data, rllc.heads, store="sweep")                  # doctest: +SKIP
    107 checkpoints × 2 data sets × 16 weights: 428 cells, 0 finished, 428 to compute
    85,600 steps, of each chain: 2,739,200; ...

    No cell is computed and nothing is written. Time, FLOPs and memory are measured on a few steps
    of the first cell that is missing, on this machine.

    Args:
        checkpoints: as for :func:`rllc.track`; so are the others.

    Raises:
        InputError: as :func:`rllc.track`.
        FileError: no checkpoint can be loaded.
    """
    check_how(compute)
    with store_or_temporary(store) as folder:
        request = Request.of(
            listed(checkpoints, into),
            data,
            weights,
            loss=loss,
            sampler=sampler,
            sampling=sampling,
            store=folder,
            compute=compute,
        )
        if store is not None:
            request = request.identified()
        return cost_of(request)


@names_checked
def cost(
    model: nn.Module,
    data: DataLike,
    weights: ChoiceOfWeights = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> SweepCost:
    """Say what :func:`rllc.estimate`, called with the same arguments, would take.

    >>> rllc.cost(model, data, rllc.heads(model))                                  # doctest: +SKIP
    1 checkpoint × 2 data sets × 16 weights: 2 cells, 0 finished, 2 to compute
    400 steps, of each chain: 25,600; 1.3e+14 FLOPs ...

    The cost of a call is known before it is paid: a few steps are measured, with the chains and
    the data of the call, and nothing is kept. The bar of :func:`rllc.estimate` shows the time that
    is left from its own first steps on. It is a function of its own because what an estimate
    returns should not depend on an argument.

    Args:
        model: as for :func:`rllc.estimate`; so are the others.

    Raises:
        InputError: as :func:`rllc.estimate`.
    """
    right = isinstance(model, nn.Module)
    expected = "a torch.nn.Module; rllc.sweep.sweep_cost takes checkpoints"
    must_be("cost", "model", model, right, expected)
    return sweep_cost(
        {0: model},
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
    )


def cost_of(request: Request, shard: tuple[int, int] = ALL) -> SweepCost:
    """Say what a share of a sweep would take."""
    complete = request.store.complete()
    planned = make_plan(request)
    cells = share(planned.plan.cells, shard)
    missing = [cell for cell in cells if cell.name not in complete]
    counts = SweepCost(
        num_checkpoints=len(request.checkpoints),
        num_data=len(request.data),
        num_weights=len(request.weights),
        num_cells=len(cells),
        num_finished=len(cells) - len(missing),
        num_workers=num_workers(request.compute.executor),
        shard=shard,
    )
    if not missing:
        return counts
    steps = [_steps_left(planned, cell, request.sampling) for cell in missing]
    runs = [_runs(cell) for cell in missing]
    chain_steps = sum(_products(steps, runs))
    evaluations = chain_steps + sum(_looks(cell, request.sampling) for cell in missing)
    measured = _measure(request, missing[0])
    cells_of_the_first = sum(runs) / runs[0]
    return replace(
        counts,
        num_steps=sum(steps),
        num_chain_steps=chain_steps,
        flops=measured.flops * evaluations,
        memory=measured.memory,
        disk={name: size * cells_of_the_first for name, size in measured.disk.items()},
        seconds=measured.seconds * evaluations,
    )


def _products(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a * b for a, b in zip(left, right, strict=True)]


def _runs(cell: Cell) -> int:
    return len(cell.weights) * cell.num_chains


def _steps_left(planned: Planned, cell: Cell, sampling: Sampling) -> int:
    earlier = planned.resumes(cell)
    if earlier is None:
        return sampling.num_steps
    return sampling.num_steps - replace(sampling, num_draws=earlier.num_draws).num_steps


def _looks(cell: Cell, sampling: Sampling) -> int:
    """Return what ``num_probes`` adds at most, in steps of one chain."""
    num_probes = min(sampling.num_probes, sampling.num_draws)
    if not num_probes:
        return 0
    return _runs(cell) * num_probes + len(cell.weights) * _CURVATURE_EVALUATIONS


class Measured(NamedTuple):
    """What one step of one chain takes, the peak memory, and what a cell keeps on disk."""

    seconds: float
    flops: float
    memory: int
    disk: Mapping[str, float]


def _measure(request: Request, cell: Cell) -> Measured:
    """Take a few steps of a cell; differences leave out what is done once."""
    short = replace(
        request.sampling_of(cell),
        first_chain=0,
        num_burnin_steps=0,
        num_steps_bw_draws=1,
        target_se=None,
        num_probes=0,
    )

    compute = replace(request.compute_of_cells(), keep_states=True)

    def run(num_draws: int, resume: Draws | None) -> Draws:
        return sample(
            request.model,
            {cell.data: request.data[cell.data]},
            [request.weights[name] for name in cell.weights],
            loss=request.loss,
            sampler=request.sampler,
            sampling=replace(short, num_draws=num_draws),
            compute=compute,
            observe=request.store.observe,
            resume=resume,
        )

    # The first run warms up. The others go on from it, so that it alone looks around w*.
    first = run(1, None)

    def seconds(num_draws: int) -> float:
        begin = time.perf_counter()
        run(num_draws, first)
        return time.perf_counter() - begin

    def flops(num_draws: int) -> int:
        with FlopCounterMode(display=False) as counter:
            run(num_draws, first)
        return counter.get_total_flops()

    few, many = 2, 2 + _TIMED_DRAWS
    chain_steps = _TIMED_DRAWS * _runs(cell)
    seconds_of_few = seconds(few)
    return Measured(
        seconds=max(seconds(many) - seconds_of_few, 0.0) / chain_steps,
        flops=(flops(many) - flops(few)) / chain_steps,
        memory=_peak_memory(),
        disk=_disk(first, request),
    )


def _disk(one_draw: Draws, request: Request) -> dict[str, float]:
    """Return the bytes that one cell keeps beside its own file."""
    disk: dict[str, float] = {}
    if request.store.keep_states:
        disk["states"] = parts.state_bytes(one_draw)
    for name, observable in request.store.observe.items():
        size = parts.observed_bytes(one_draw, name)
        if observable.at == "draw" and observable.keep != "moments":
            size *= request.sampling.num_draws
        disk[f"observed {name!r}"] = size
    return disk


def _peak_memory() -> int:
    """Return the most bytes that this process has held, on a GPU if there is one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
