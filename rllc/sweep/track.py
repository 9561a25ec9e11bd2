"""The sweep: estimates over a run's checkpoints, on as many processes or machines as there are, resumed without a trace.

``python -m rllc.sweep spec.json --shard 3/16`` does a share of one in an array job; ``--help`` says what the file holds.
What lies in the store, and what a cell is: :mod:`rllc.sweep.store`. How cells get to workers and back: :mod:`rllc.sweep.workers`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from rllc import refinement as refine
from rllc.checks import arguments, check
from rllc.data.tokens import Tokens
from rllc.draws import Draws
from rllc.engine.layout import digest, groups
from rllc.errors import FileError, InputError, RllcError, first_line, nearest
from rllc.loss import Distillation, LossFunction
from rllc.models.checkpoints import Checkpoint, load
from rllc.models.checkpoints import checkpoints as checkpoints_of
from rllc.refinement import DataLike, WeightsLike
from rllc.sample import sample
from rllc.samplers import Sampler
from rllc.sampling import Sampling
from rllc.sweep.store import Cell, Store, Sweep, cell_name, contents, differences, versions
from rllc.sweep.workers import Task, digest_of, finish_all, places, sampler_of
from rllc.trajectory import Trajectory
from rllc.weights import Weights, heads


def track(
    checkpoints: str | os.PathLike[str] | Iterable[Checkpoint],
    data: DataLike,
    weights: WeightsLike | Callable[[nn.Module], WeightsLike] = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    store: str | os.PathLike[str] | None = None,
    keep_states: bool = True,
    per_token: bool = False,
    delete_downloads: bool = False,
    executor: int | Sequence[str] | Executor | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> Trajectory:
    """Refined LLCs at each checkpoint of a training run.

    The same seed serves every checkpoint: noise and minibatches are common, so that curves are smooth where the model is.
    With a ``store`` every finished piece of the work, a *cell*, is one file that is whole or not there; the same call,
    after whatever happened, computes what is missing. Numbers depend neither on the executor, nor on the order, nor on
    interruptions: bit for bit, with the same number of torch threads, on one kind of device.

    Example::

        data = {"code": code, "prose": prose}
        trajectory = rllc.track("runs/two-layer", data, rllc.heads, store="sweep", executor=8)
        rllc.plot_trajectory(trajectory, "code")

    A cell that raises, whose checkpoint is missing, damaged or not finite, or that three times kills its worker, is marked
    ``failed`` with the reason and the others go on; the next call tries it again.

    Under one store, more checkpoints, data sets, weights, chains or draws reuse what is there, and only the new is computed::

        rllc.track("runs/two-layer", data, rllc.heads, store="sweep", sampling=rllc.Sampling(num_draws=100))
        rllc.track("runs/two-layer", data, rllc.heads, store="sweep", sampling=rllc.Sampling(num_draws=200))  # 100 more

    More draws go on where the chains of finished cells ended, and are those of one longer run, bit for bit; where a cell's
    state is not there or is damaged, it is computed from the first draw on. With ``target_se`` the number of chains is a
    setting as the others are, because all chains together decide when to stop: more of them need another store.

    Args:
        checkpoints: a folder or hub repository of checkpoints (:func:`rllc.checkpoints` says which), or a list of
            :class:`rllc.Checkpoint` to take some of them.
        data: as for :func:`rllc.estimate`; so are ``loss``, ``sampler`` and ``sampling``. That a loss or sampler of your own
            is still the same function, under the same name, it takes your word for.
        weights: as for :func:`rllc.estimate`, or a function of the model that gives them, such as ``rllc.heads``.
        store: a folder; one for each training run and setting. With workers on other machines, one that all of them see,
            as they must the checkpoints. ``None`` keeps nothing.
        keep_states: keep where the chains end, in ``states/`` of the store, which may be removed at any time. On disk,
            uncompressed, for each chain 4 bytes a weight (8 with rmsprop_sgld and sghmc) and 5 kB on a CPU, and for each
            refinement 4 bytes a weight with ``control_variate``: at the paper's settings 0.55 MB a head and checkpoint,
            0.9 GB for 16 heads at 107 checkpoints on one data set; 54 MB a checkpoint for the whole model. On by default,
            because draws cost far more than their disk; off where it is scarce and you know how many draws you want.
        per_token: keep each token's loss at each draw, in ``tokens/`` of the store, for ``trajectory.draws(step, weights,
            data).tokens``. In half precision, as the difference to the loss at w*, whose size that suits: 2 bytes × draws ×
            rows of a minibatch × positions for each chain, and once for w*; 52 MB a head and checkpoint at the paper's
            settings, hence only where asked. Finished cells without them are computed again.
        delete_downloads: with checkpoints from the hub, delete each one's weights from the cache as soon as all its cells
            are finished, but no file that was there before the sweep fetched it. On this machine; workers on others keep
            theirs. Checkpoints of cells that failed stay, for the next call.
        executor: where cells are computed. ``None``: here. A number: as many processes with one thread each. A list of
            devices such as ``["cuda:0", "cuda:1"]``: a process for each, as ``CUDA_VISIBLE_DEVICES`` counts them. Or any
            ``concurrent.futures.Executor``: Dask's (``Client(…).get_executor()``), loky's, MPI's. A loss or sampler of
            your own must then be one that the executor can pickle: for processes, a function in a module of its own.
        dry_run: compute nothing, print the number of cells and steps, FLOPs, memory and hours, measured on a few steps of
            one cell; what is returned says what is missing.
        progress: show a bar over cells.

    Returns:
        :class:`rllc.Trajectory` ``[checkpoint, refinement]``; NaN with a status where a cell failed.

    Raises:
        InputError: there are no checkpoints, an argument cannot work, or the store holds a sweep with other settings,
            checkpoints or data: they are listed.
        FileError: no checkpoint can be loaded, or the store cannot be written.
        RllcError: every cell failed, or the executor is broken and not to be repaired.
    """
    if per_token and store is None:
        raise InputError(
            "track: `per_token` keeps losses in a store; give a folder as `store`, such as store='sweep'."
        )
    call = _Call.of(checkpoints, data, weights, loss, sampler, sampling, delete_downloads)
    call = replace(call, keep_states=keep_states and store is not None, per_token=per_token)
    with (
        tempfile.TemporaryDirectory(prefix="rllc-track-")
        if store is None
        else nullcontext(store) as folder
    ):
        if dry_run:
            trajectory = _dry(call, Store(folder), executor)
        else:
            trajectory, _ = _run(call, Store(folder), executor, progress)
        if store is None:
            trajectory._detach()  # before the folder goes
    return trajectory


# What is asked for.


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of :func:`track`, checked and resolved."""

    checkpoints: Mapping[int, Checkpoint]
    digests: Mapping[int, str | None]
    data: Mapping[str, refine.Rows]
    weights: Mapping[str, Weights]
    masks: Mapping[str, Mapping[str, Tensor]]
    loss: LossFunction | None
    sampler: Sampler
    sampling: Sampling
    model: nn.Module
    """The first checkpoint that can be loaded."""
    first: int
    """Its step."""
    keep_states: bool = False
    per_token: bool = False
    there: Mapping[int, frozenset[Path]] | None = None
    """With ``delete_downloads``: what the hub's cache had held of the checkpoints that were tried for :attr:`model`."""

    @classmethod
    def of(
        cls,
        checkpoints: str | os.PathLike[str] | Iterable[Checkpoint],
        data: DataLike,
        weights: WeightsLike | Callable[[nn.Module], WeightsLike],
        loss: LossFunction | None,
        sampler: Sampler | None,
        sampling: Sampling | None,
        delete_downloads: bool = False,
    ) -> _Call:
        found = _listed(checkpoints)
        there: dict[int, frozenset[Path]] | None = {} if delete_downloads else None
        model, step = _first(found.values(), there)
        sampler, sampling = arguments(model, loss, sampler, sampling)
        if sampling.first_chain:
            more = "with a larger num_chains and the same store only the new chains are run"
            together = (
                "with target_se all chains are run together, so more of them need another store"
            )
            raise InputError(
                f"track: `first_chain` must be 0, got {sampling.first_chain}; "
                f"{more if sampling.target_se is None else together}."
            )
        refinements = refine.product(weights(model) if callable(weights) else weights, data)
        masks = check(model, loss, refinements, sampler, sampling)
        return cls(
            checkpoints=found,
            digests={step: _digest(checkpoint) for step, checkpoint in found.items()},
            data={r.data_name: r.data for r in refinements},
            weights={r.weights.name: r.weights for r in refinements},
            masks={r.weights.name: m for r, m in zip(refinements, masks, strict=True)},
            loss=loss,
            sampler=sampler,
            sampling=sampling,
            model=model,
            first=step,
            there=there,
        )

    def sweep(self, earlier: Sequence[Sweep], store: Store) -> Sweep:
        """What is wanted, in cells: those that earlier calls planned where they fit, and new ones for the rest.

        Where there are chains of fewer draws that can go on, a new cell takes the chains that are in one cell there.
        """
        settings = self.sampler.settings | self.sampling.settings
        apart = {"num_draws", "first_chain"} | (
            {"num_chains"} if self.sampling.target_se is None else set()
        )
        bare = Sweep(
            settings=json.loads(json.dumps({k: v for k, v in settings.items() if k not in apart})),
            num_draws=self.sampling.num_draws,
            num_chains=self.sampling.num_chains,
            loss=_loss_name(self.loss),
            checkpoints={
                step: _where(c, self.digests[step]) for step, c in self.checkpoints.items()
            },
            data={name: refine.fingerprint(rows) for name, rows in self.data.items()},
            weights={name: digest(masks) for name, masks in self.masks.items()},
            cells=(),
            versions=versions(),
        )
        planned: dict[tuple[int, str], list[Cell]] = {}
        for before in earlier:
            for cell in before.cells if before.num_draws == bare.num_draws else ():
                planned.setdefault((cell.step, cell.data), []).append(cell)
        finished, shorter = store.finished(), self.shorter(earlier, store)
        cells: list[Cell] = []
        for step in self.checkpoints:
            for data in self.data:
                there = planned.get((step, data), []), [c for c, _ in shorter.get((step, data), [])]
                cells += self._cells(bare, step, data, *there, finished)
        return replace(bare, cells=tuple(dict.fromkeys(cells)))

    def shorter(
        self, earlier: Sequence[Sweep], store: Store
    ) -> dict[tuple[int, str], list[tuple[Cell, int]]]:
        """By step and data: finished cells of fewer draws whose chains can go on, with their draws; those with most first."""
        if (
            self.per_token and self.sampling.target_se is not None
        ):  # refinements that have stopped have no new tokens
            return {}
        ready = store.finished("states", *(["tokens"] if self.per_token else []))
        found: dict[tuple[int, str], list[tuple[Cell, int]]] = {}
        for before in sorted(earlier, key=lambda s: s.num_draws, reverse=True):
            for cell in before.cells if before.num_draws < self.sampling.num_draws else ():
                if cell.name in ready:
                    found.setdefault((cell.step, cell.data), []).append((cell, before.num_draws))
        return found

    def _cells(
        self,
        sweep: Sweep,
        step: int,
        data: str,
        planned: Sequence[Cell],
        shorter: Sequence[Cell],
        finished: set[str],
    ) -> Iterable[Cell]:
        """One checkpoint and data set: cells that are there, then planned ones that hold nothing else, then new ones."""
        known = [c for c in planned if c.name in finished or set(c.weights) <= set(self.weights)]
        known.sort(key=lambda c: c.name not in finished)
        used: dict[Cell, None] = {}
        lacking: dict[tuple[tuple[int, int], Cell | None], list[str]] = {}
        for name in self.weights:
            chain = 0
            while chain < sweep.num_chains:
                if (cell := _next(known, name, chain, sweep.num_chains)) is not None:
                    used[cell] = None
                elif (
                    cell := _next(shorter, name, chain, sweep.num_chains)
                ) is not None and cell.chains[0] == chain:
                    lacking.setdefault((cell.chains, cell), []).append(name)
                else:
                    lacking.setdefault(((chain, sweep.num_chains), None), []).append(name)
                    break
                chain = cell.chains[1]
        for (chains, _), names in lacking.items():
            for group in groups([self.masks[name] for name in names]):
                together = tuple(names[i] for i in group.members)
                name = cell_name(sweep, sweep.checkpoints[step], data, together, chains)
                used[Cell(name, step, data, together, chains)] = None
        return used

    def task(
        self, sweep: Sweep, cell: Cell, store: Store, shorter: Sequence[tuple[Cell, int]]
    ) -> Task:
        """What a worker needs for a cell."""
        first, end = cell.chains
        earlier, _ = _going_on(cell, shorter)
        return Task(
            cell=cell,
            folder=str(store.folder),
            checkpoint=self.checkpoints[cell.step],
            sha256=self.digests[cell.step],
            data=self.data[cell.data],
            weights=tuple(self.weights[name] for name in cell.weights),
            loss=self.loss,
            sampler=self.sampler,
            sampling=replace(self.sampling, first_chain=first, num_chains=end - first),
            about={
                "checkpoint": dict(sweep.checkpoints[cell.step]),
                "weights": {name: sweep.weights[name] for name in cell.weights},
                "loss": sweep.loss,
                "chains": list(cell.chains),
            },
            earlier=earlier,
            keep_states=self.keep_states,
            per_token=self.per_token,
            delete_downloads=self.there is not None,
        )


def _going_on(cell: Cell, shorter: Sequence[tuple[Cell, int]]) -> tuple[Cell | None, int]:
    """The cell whose chains a cell goes on with, and its number of draws."""
    fitting = (
        (c, n)
        for c, n in shorter
        if c.chains == cell.chains and set(c.weights) >= set(cell.weights)
    )
    return next(fitting, (None, 0))


def _next(cells: Iterable[Cell], weights: str, chain: int, num_chains: int) -> Cell | None:
    return next((c for c in cells if c.covers(weights, chain) and c.chains[1] <= num_chains), None)


def _listed(source: str | os.PathLike[str] | Iterable[Checkpoint]) -> dict[int, Checkpoint]:
    """Checkpoints by step, rising, those on this machine by absolute paths."""
    given = checkpoints_of(source) if isinstance(source, str | os.PathLike) else list(source)
    if not given:
        raise InputError(f"track({source!r}): expected at least one checkpoint, got none.")
    found: dict[int, Checkpoint] = {}
    for checkpoint in sorted(given, key=lambda c: c.step):
        if checkpoint.step in found:
            raise InputError(
                f"track: {found[checkpoint.step]} and {checkpoint} are both step {checkpoint.step}; one sweep is of one "
                f"training run. Track each run in a store of its own."
            )
        local = checkpoint.revision is None and (
            os.path.exists(checkpoint.source) or os.path.isabs(checkpoint.source)
        )
        found[checkpoint.step] = (
            replace(checkpoint, source=os.path.abspath(checkpoint.source)) if local else checkpoint
        )
    return found


def _first(
    checkpoints: Iterable[Checkpoint], there: dict[int, frozenset[Path]] | None
) -> tuple[nn.Module, int]:
    """A model to look at: the first checkpoint that can be loaded. Notes ``there`` what is cached of those it tries."""
    problems: list[RllcError] = []
    for checkpoint in checkpoints:
        if there is not None:
            there[checkpoint.step] = checkpoint.cached()
        try:
            return load(checkpoint), checkpoint.step
        except RllcError as error:
            problems.append(error)
    raise problems[0]


def _digest(checkpoint: Checkpoint) -> str | None:
    """SHA-256 of the weights; ``None`` for what is not on this machine (the worker that fetches it finds it), or not at all."""
    if not os.path.exists(checkpoint.source):
        return None
    try:
        return digest_of(checkpoint)
    except (FileError, OSError):  # the cells of it will say so
        return None


def _where(checkpoint: Checkpoint, sha256: str | None) -> dict[str, Any]:
    c = checkpoint
    return {
        "step": c.step,
        "source": c.source,
        "revision": c.revision,
        "file": c.file,
        "sha256": sha256,
    }


def _loss_name(loss: LossFunction | None) -> str:
    if loss is None:
        return "next token"
    if isinstance(loss, Distillation):
        found = hashlib.sha256()
        for name, tensor in sorted(loss.generator.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return f"distillation of {found.hexdigest()}"
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}:{named.__qualname__}"


# Doing it.


def _run(
    call: _Call,
    store: Store,
    executor: int | Sequence[str] | Executor | None,
    progress: bool,
    shard: tuple[int, int] = (1, 1),
) -> tuple[Trajectory, list[str]]:
    """Compute a share of a sweep; gives with what there is then the reasons of the cells of this share that failed."""
    earlier = store.sweeps()
    sweep, shorter = call.sweep(earlier, store), call.shorter(earlier, store)
    _compare(earlier, sweep, store)
    _warn_of_versions(earlier, sweep, store)
    _announce(earlier, sweep, store)
    part = _share(sweep.cells, shard)
    there = store.finished()
    damaged = set(store.set_damaged_aside(c.name for c in part if c.name in there))
    if damaged:
        warnings.warn(
            f"track: {len(damaged)} cell files in {store.folder} were damaged; they are in damaged/ and computed again.",
            stacklevel=3,
        )
    missing = [c for c in part if c.name in damaged or not store.has(c.name, call.per_token)]
    todo = [call.task(sweep, c, store, shorter.get((c.step, c.data), ())) for c in missing]
    for step, held in (call.there or {}).items():
        store.note_download(call.checkpoints[step], held)
    reasons = _compute(
        todo,
        len(part),
        executor,
        progress,
        lambda step: _delete_finished(call, sweep, store, [step]),
    )
    _delete_finished(call, sweep, store, call.checkpoints)
    if part and len(reasons) == len(part):
        raise RllcError(f"track: all {len(part)} cells failed; the first: {reasons[0]}")
    return Trajectory._lazy(store, contents(store, [*earlier, sweep], [sweep])), reasons


def _announce(earlier: Sequence[Sweep], sweep: Sweep, store: Store) -> None:
    """Announce a sweep, and look again: another process may have announced one that does not go with it since."""
    store.announce(sweep)
    known = {before.text() for before in earlier}
    new = [other for other in store.sweeps() if other.text() not in known | {sweep.text()}]
    clash = [
        other for other in new if differences([sweep], other) and differences([other], sweep)
    ]  # in either order
    try:
        _compare(clash, sweep, store)
    except InputError:
        if sweep.text() not in known:
            store.withdraw(sweep)
        raise


def _delete_finished(call: _Call, sweep: Sweep, store: Store, steps: Iterable[int]) -> None:
    """Delete what was fetched from the hub of checkpoints whose cells are all there, those of other shares included."""
    for step in steps if call.there is not None else ():
        if all(store.has(cell.name, call.per_token) for cell in sweep.cells if cell.step == step):
            try:
                store.delete_download(call.checkpoints[step])
            except (OSError, ValueError) as error:  # it is in nobody's way; numbers are worth more
                warnings.warn(
                    f"track: {call.checkpoints[step]} stays in the hub's cache ({error}).",
                    stacklevel=4,
                )


def _compute(
    todo: Sequence[Task],
    total: int,
    executor: int | Sequence[str] | Executor | None,
    progress: bool,
    done: Callable[[int], None],
) -> list[str]:
    """Finish cells under one bar, saying of which step each was; gives the reasons of those that failed."""
    reasons: list[str] = []
    steps, begin = 0, time.perf_counter()
    bar = tqdm(
        total=total, initial=total - len(todo), desc="track", unit="cell", disable=not progress
    )
    with bar:
        for task, reason in finish_all(todo, executor):
            if reason is None:
                steps += task.sampling.num_steps
                done(task.cell.step)
            else:
                reasons.append(f"{task.name}: {reason}")
            rate = steps / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{rate:.3g} steps/s, {len(reasons)} failed", refresh=False)
            bar.update()
    if reasons and len(reasons) < total:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        warnings.warn(
            f"track: {len(reasons)} of {total} cells failed: {reasons[0]}{more}; see trajectory.failed. Call again to try "
            f"them again.",
            stacklevel=4,
        )
    return reasons


def _compare(earlier: Sequence[Sweep], now: Sweep, store: Store) -> None:
    found = differences(earlier, now)
    if found:
        raise InputError(
            f"track: {store.folder} holds a sweep with other settings, checkpoints or data:\n  "
            + "\n  ".join(found)
            + "\n"
            "Give the same to go on with it, or another folder as `store`."
        )


def _warn_of_versions(earlier: Sequence[Sweep], now: Sweep, store: Store) -> None:
    there = earlier[-1].versions if earlier else {}
    changed = [
        f"{k} {v} -> {now.versions.get(k)}" for k, v in there.items() if v != now.versions.get(k)
    ]
    if changed:
        warnings.warn(
            f"track: going on with {store.folder} with {', '.join(changed)}; new cells may differ in their last bits from "
            f"what they would have been.",
            stacklevel=4,
        )


def _share(cells: Sequence[Cell], shard: tuple[int, int]) -> Sequence[Cell]:
    """The k-th of n parts, equal on average: by name, so that a cell is in the same one whatever others there are."""
    k, n = shard
    return [cell for cell in cells if int(cell.name, 16) % n == k - 1]


# Not doing it.


def _dry(
    call: _Call,
    store: Store,
    executor: int | Sequence[str] | Executor | None,
    shard: tuple[int, int] = (1, 1),
) -> Trajectory:
    """Print what a share of a sweep would take; measured on a few steps of its first missing cell."""
    earlier = store.sweeps()
    finished = store.finished(*(["tokens"] if call.per_token else []))
    sweep, shorter = call.sweep(earlier, store), call.shorter(earlier, store)
    _compare(earlier, sweep, store)
    _warn_of_versions(earlier, sweep, store)
    part = _share(sweep.cells, shard)
    missing = [c for c in part if c.name not in finished]
    what = f"{len(call.checkpoints)} checkpoints × {len(call.data)} data sets × {len(call.weights)} weights"
    share = "" if shard[1] == 1 else f", of which in share {shard[0]} of {shard[1]}"
    print(
        f"{what}{share}: {len(part)} cells, {len(part) - len(missing)} finished, {len(missing)} to compute"
    )
    if missing:
        there = [_going_on(c, shorter.get((c.step, c.data), ()))[1] for c in missing]
        steps = [
            call.sampling.num_steps - (n and replace(call.sampling, num_draws=n).num_steps)
            for n in there
        ]
        runs = [len(c.weights) * (c.chains[1] - c.chains[0]) for c in missing]
        run_steps = sum(n * count for n, count in zip(steps, runs, strict=True))
        evaluations = run_steps + sum(_looks(call.sampling, c) for c in missing)
        seconds, flops, memory, disk = _measured(call, missing[0])
        workers = (
            None
            if isinstance(executor, Executor)
            else 1
            if executor is None
            else len(places(executor))
        )
        print(
            f"{sum(steps):,} steps, of each chain: {run_steps:,}; {flops * evaluations:.2g} FLOPs"
        )
        print(f"about {memory / 2**30:.2g} GiB of memory a worker")
        for what, size in disk.items():
            total = size * sum(runs) / runs[0]
            print(
                f"about {total / 2**30:.2g} GiB on disk for {what}, {size / 2**20:.2g} MiB for the first cell"
            )
        shared = "" if workers is None else f", on {workers} worker{'s' if workers > 1 else ''}"
        hours = seconds * evaluations / (workers or 1) / 3600
        print(
            f"about {hours:.2g} hours{shared}"
            + (" of one worker's time" if workers is None else "")
        )
    return Trajectory._lazy(store, contents(store, [*earlier, sweep], [sweep]))


def _looks(sampling: Sampling, cell: Cell) -> int:
    """What ``num_probes`` adds at most, in steps of one chain: one a probe and chain, 13 a refinement for its curvature."""
    chains = cell.chains[1] - cell.chains[0]
    probes = min(sampling.num_probes, sampling.num_draws)
    return len(cell.weights) * (chains * probes + 13) if probes else 0


_TIMED = 4
"""Draws whose time, FLOPs and memory stand for all, after one that warms up."""


def _measured(call: _Call, cell: Cell) -> tuple[float, float, int, dict[str, float]]:
    """Seconds and FLOPs of one chain's step, a worker's peak memory in bytes, and bytes on disk, from a few steps of a cell."""

    def run(num_draws: int, resume: Draws | None) -> Draws:
        short = {
            "num_draws": num_draws,
            "num_burnin_steps": 0,
            "num_steps_bw_draws": 1,
            "target_se": None,
            "num_probes": 0,
        }
        return sample(
            call.model,
            {cell.data: call.data[cell.data]},
            [call.weights[name] for name in cell.weights],
            loss=call.loss,
            sampler=call.sampler,
            sampling=replace(call.sampling, **short, num_chains=chains),
            per_token=call.per_token,
            keep_states=True,
            resume=resume,
            progress=False,
        )

    chains = cell.chains[1] - cell.chains[0]

    def seconds(num_draws: int) -> float:
        begin = time.perf_counter()
        run(num_draws, first)
        return time.perf_counter() - begin

    first = run(
        1, None
    )  # warms up; the others go on from it, so that looking around w* is done once
    few_draws = seconds(2)
    took = max(seconds(2 + _TIMED) - few_draws, 0.0)
    with FlopCounterMode(display=False) as few:
        run(2, first)
    with FlopCounterMode(display=False) as more:
        run(2 + _TIMED, first)
    runs = _TIMED * chains * len(cell.weights)
    disk: dict[str, float] = {}
    if call.keep_states:
        disk["states"] = sum(a.nbytes for state in first.states.values() for a in state.values())
    if call.per_token:
        numbers = sum(
            a.size for part in (first.tokens, first.token_baseline) for a in part.values()
        )
        disk["losses per token"] = 2 * numbers * call.sampling.num_draws
    return (
        took / runs,
        (more.get_total_flops() - few.get_total_flops()) / runs,
        _peak_memory(),
        disk,
    )


def _peak_memory() -> int:
    """Bytes that this process has held at most, on a GPU or, where there is none, at all."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# In array jobs.


_SPEC = """the sweep, as JSON, paths being relative to it; only the first three are needed:
{"checkpoints": "runs/seed0", "data": {"code": "code.npz"}, "store": "sweep",
 "weights": "heads" or "everything" or ["0:1", "1:6"], "steps": [0, 100, 200],
 "sampler": {"sampler": "sgld", "lr": 0.001, "localization": 200.0},
 "sampling": {"num_chains": 4, "num_draws": 200}, "loss": "module:function",
 "keep_states": true, "per_token": false, "delete_downloads": false};
data are files that rllc.Tokens.save wrote"""


_SWITCHES = {"keep_states": True, "per_token": False, "delete_downloads": False}
"""Of :func:`track`, with their defaults."""


def main(argv: list[str] | None = None) -> int:
    """``python -m rllc.sweep``: a sweep, or a share of one, that a file describes; 1 if a cell of it failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m rllc.sweep",
        description="Estimate refined LLCs over training, as a file describes; again after an interruption.",
        epilog="SLURM: sbatch --array=1-16 --wrap 'python -m rllc.sweep spec.json --shard $SLURM_ARRAY_TASK_ID/16'",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("spec", type=Path, help=_SPEC)
    parser.add_argument(
        "--shard", default="1/1", metavar="K/N", help="do the K-th of N shares, K from 1 to N"
    )
    parser.add_argument("--executor", type=int, metavar="N", help="N processes; default: this one")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would take, and compute nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        call, store = _read_spec(args.spec)
        shard = _read_shard(args.shard)
        if args.dry_run:
            trajectory, reasons = _dry(call, store, args.executor, shard), []
        else:
            trajectory, reasons = _run(call, store, args.executor, not args.quiet, shard)
    except RllcError as error:
        print(error, file=sys.stderr)
        return 2
    print(trajectory)
    return int(bool(reasons))


def _read_spec(path: Path) -> tuple[_Call, Store]:
    """The call that a file describes, and its store."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(spec, dict):
            raise ValueError(f"expected an object, got {type(spec).__name__}")
    except (OSError, ValueError) as error:
        raise FileError(
            f"reading {path}: {error}. Type python -m rllc.sweep --help for what it holds."
        ) from error
    known = (
        "checkpoints",
        "data",
        "store",
        "weights",
        "steps",
        "sampler",
        "sampling",
        "loss",
        *_SWITCHES,
    )
    for name in spec:
        if name not in known:
            raise InputError(
                f"reading {path}: it has {name!r}, which means nothing; {nearest(name, known)}"
            )
    for name in known[:3]:
        if name not in spec:
            raise InputError(
                f"reading {path}: it has no {name!r}. Type python -m rllc.sweep --help for what it holds."
            )
    here = path.absolute().parent
    source = here / spec["checkpoints"]
    found = checkpoints_of(source if source.exists() else spec["checkpoints"])
    if "steps" in spec:
        lacking = sorted(set(spec["steps"]) - {c.step for c in found})
        if lacking:
            raise InputError(
                f"reading {path}: {spec['checkpoints']} has no checkpoints of the steps {lacking}."
            )
        found = [c for c in found if c.step in spec["steps"]]
    data = {name: Tokens.load(here / file) for name, file in spec["data"].items()}
    weights = spec.get("weights", "everything")
    if not isinstance(weights, list):
        if weights not in ("heads", "everything"):
            raise InputError(
                f"reading {path}: 'weights' must be 'heads', 'everything' or a list of heads such as ['0:1', '1:6'], got "
                f"{weights!r}."
            )
        weights = heads if weights == "heads" else None
    try:
        sampler = sampler_of(spec["sampler"]) if "sampler" in spec else None
        sampling = Sampling(**spec.get("sampling", {}))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"reading {path}: sampler or sampling: {first_line(error)}.") from error
    for name, default in _SWITCHES.items():
        if not isinstance(spec.get(name, default), bool):
            raise InputError(f"reading {path}: {name!r} must be true or false, got {spec[name]!r}.")
    switches = {name: spec.get(name, default) for name, default in _SWITCHES.items()}
    delete_downloads = switches.pop("delete_downloads")
    call = _Call.of(
        found, data, weights, _read_loss(spec.get("loss")), sampler, sampling, delete_downloads
    )
    return replace(call, **switches), Store(here / spec["store"])


def _read_loss(name: str | None) -> LossFunction | None:
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"track: `loss` {name!r} must be module:function, to be imported ({error})."
        ) from error


def _read_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(
            f"track: --shard must be K/N with K from 1 to N, such as 3/16; got {text!r}."
        )
    return int(match[1]), int(match[2])
