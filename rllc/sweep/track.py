"""The sweep over a training run: estimates at each checkpoint, resumed without a trace."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

from tqdm.auto import tqdm

from rllc.arguments import names_checked
from rllc.errors import FileError, InputError, RllcError
from rllc.limits import Limits
from rllc.losses.contract import LossFunction
from rllc.models.checkpoints import CheckpointsLike, Into
from rllc.samplers import Sampler
from rllc.sampling.checks import check_how
from rllc.sampling.settings import Compute, Sampling
from rllc.sweep.downloads import delete_download, note_download
from rllc.sweep.plan import Cell, Plan
from rllc.sweep.planning import announce, make_plan, share
from rllc.sweep.pools import compute_all
from rllc.sweep.request import ChoiceOfWeights, Request, listed
from rllc.sweep.store import Store
from rllc.sweep.sweep import Sweep
from rllc.sweep.trajectory import Trajectory
from rllc.sweep.workers import Task
from rllc.weights.refinement import DataLike

ALL = (1, 1)
"""The first of one share: everything."""


@names_checked
def track(
    checkpoints: CheckpointsLike,
    data: DataLike,
    weights: ChoiceOfWeights = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    store: str | PathLike[str] | Store | None = None,
    limits: Limits | None = None,
    compute: Compute | None = None,
    into: Into | None = None,
) -> Trajectory:
    """Estimate refined LLCs at each checkpoint of a training run.

    >>> trajectory = rllc.track(                                                   # doctest: +SKIP
    ...     "runs/two-layer", {"code": code, "prose": prose}, rllc.heads,
    ...     store="sweep", compute=rllc.Compute(executor=8))
    >>> rllc.plot_trajectory(trajectory, "code")                                   # doctest: +SKIP

    The same seed serves every checkpoint: noise and minibatches are common, so that curves are
    smooth where the model is. Numbers depend neither on the executor, nor on the order, nor on
    interruptions: bit for bit, with the same number of torch threads, on one kind of device.

    With a ``store`` every finished piece of the work, a *cell*, is one file that is whole or not
    there; the same call, after whatever happened, computes what is missing. A cell that raises,
    whose checkpoint is missing, damaged or not finite, or that kills its worker three times, is
    marked as failed with the reason, and the others go on; the next call tries it again.
    :meth:`rllc.Sweep.open` shows what is missing and what failed, and reads draws.

    Under one store, more checkpoints, data sets, weights, chains or draws reuse what is there.
    More draws go on where the chains of finished cells ended, and are those of one longer run, bit
    for bit; where a cell's states are not there or are damaged, it is computed from the first draw
    on. With ``target_se`` the number of chains is a setting as the others are, because all chains
    together decide when to stop: more of them need another store.

    Args:
        checkpoints: a folder or hub repository of checkpoints (see :func:`rllc.checkpoints`); a
            list of :class:`rllc.models.Checkpoint`, of paths, of ``(step, path)`` or of
            ``(step, model)``; or a dict ``{100: "ckpt_100.pt"}``.
        data: as for :func:`rllc.estimate`.
        weights: as for :func:`rllc.estimate`, or a function of the model that gives them, such as
            ``rllc.heads``.
        loss: as for :func:`rllc.estimate`. A loss or sampler of your own is recognised by its code
            and all that it uses; another one needs another store. A new version of Python may count
            as another; :func:`rllc.losses.named` lets a loss be recognised by a name instead.
        sampler: as for :func:`rllc.estimate`.
        sampling: as for :func:`rllc.estimate`.
        store: a folder, or :class:`rllc.sweep.Store` to say what is kept in it. ``None`` keeps
            nothing.
        limits: from where on something is a fault; ``None`` is ``rllc.Limits()``. They change no
            number and no file.
        compute: ``rllc.Compute(executor=...)`` says where cells are computed. For other processes
            a loss or sampler of your own must be one that can be pickled: a function, or a frozen
            dataclass with ``__call__``, in a module of its own.
        into: for checkpoints that are state dicts of a module of your own: a module like it, which
            is copied, or a function without arguments that makes one. For other processes it must
            be one that they can import, and no lambda. See :func:`rllc.load`.

    Returns:
        :class:`rllc.Trajectory` ``[checkpoint, refinement]``; NaN with a fault where a cell failed.

    Raises:
        InputError: there are no checkpoints, an argument cannot work, or the store holds a sweep
            with other settings, checkpoints or data, which are listed.
        FileError: no checkpoint can be loaded, or the store cannot be written.
        RllcError: every cell failed, or the executor is broken and cannot be repaired.
    """
    check_how(compute, limits)
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
        sweep, _ = run(request)
        return sweep.trajectory(limits)


@contextmanager
def store_or_temporary(store: str | PathLike[str] | Store | None) -> Iterator[Store]:
    """Give the store that an argument names; for ``None`` one that is removed afterwards.

    Raises:
        InputError: the argument is of another kind.
    """
    if store is None:
        with tempfile.TemporaryDirectory(prefix="rllc-track-") as folder:
            yield Store(folder, keep_states=False)
    elif isinstance(store, Store):
        yield store
    elif isinstance(store, str | PathLike):
        yield Store(store)
    else:
        raise InputError(
            f"track: `store` must be a folder, rllc.sweep.Store(folder, …) or None, "
            f"got {type(store).__name__}."
        )


def run(request: Request, shard: tuple[int, int] = ALL) -> tuple[Sweep, list[str]]:
    """Compute a share of a sweep.

    Returns:
        What there is then, and why cells of this share failed.

    Raises:
        RllcError: all cells of the share failed.
    """
    store = request.store
    planned = make_plan(request)
    plan = planned.plan
    announce(planned, store)
    cells = share(plan.cells, shard)
    tasks = []
    for cell in _incomplete(cells, store):
        earlier = planned.resumes(cell)
        tasks.append(request.task(plan, cell, earlier and earlier.cell))
    for step, files in request.cached.items():
        note_download(store, request.checkpoints[step], files)
    cells_of = _cells_by_step(plan)

    def delete_if_done(step: int) -> None:
        if store.delete_downloads and all(store.has(cell.name) for cell in cells_of[step]):
            _delete_download(request, step)

    reasons = _finish(tasks, len(cells), request.compute, delete_if_done)
    for step in request.checkpoints:
        delete_if_done(step)
    if cells and len(reasons) == len(cells):
        raise RllcError(f"track: all {len(cells)} cells failed; the first: {reasons[0]}")
    return Sweep.of(store, [*planned.earlier, plan], [plan]), reasons


def _incomplete(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """Return the cells without all of their files, after setting aside those that are damaged."""
    finished = store.finished()
    damaged = store.set_damaged_aside(cell.name for cell in cells if cell.name in finished)
    if damaged:
        warnings.warn(
            f"track: {len(damaged)} cell files in {store.folder} were damaged; they are in "
            f"damaged/ and computed again.",
            stacklevel=5,
        )
    complete = store.complete() - set(damaged)
    return [cell for cell in cells if cell.name not in complete]


def _cells_by_step(plan: Plan) -> dict[int, list[Cell]]:
    cells_of: dict[int, list[Cell]] = {step: [] for step in plan.checkpoints}
    for cell in plan.cells:
        cells_of[cell.step].append(cell)
    return cells_of


def _delete_download(request: Request, step: int) -> None:
    checkpoint = request.checkpoints[step]
    try:
        delete_download(request.store, checkpoint)
    except (
        OSError,
        ValueError,
        FileError,
    ) as error:  # it is in nobody's way; numbers are worth more
        warnings.warn(
            f"track: {checkpoint} stays in the hub's cache ({error}).",
            stacklevel=6,
        )


def _finish(
    tasks: Sequence[Task], total: int, compute: Compute, done: Callable[[int], None]
) -> list[str]:
    """Compute cells under one bar.

    Args:
        total: how many cells there are, those included that were finished before.
        done: called with the step of each cell that is finished.

    Returns:
        Why cells failed.
    """
    reasons: list[str] = []
    num_steps = 0
    begin = time.perf_counter()
    bar = tqdm(
        total=total,
        initial=total - len(tasks),
        desc="track",
        unit="cell",
        disable=not compute.progress,
    )
    with bar:
        for task, reason in compute_all(tasks, compute.executor, compute.timeout):
            if reason is None:
                num_steps += task.sampling.num_steps
                done(task.cell.step)
            else:
                reasons.append(f"{task.title}: {reason}")
            rate = num_steps / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{rate:.3g} steps/s, {len(reasons)} failed", refresh=False)
            bar.update()
    if 0 < len(reasons) < total:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        warnings.warn(
            f"track: {len(reasons)} of {total} cells failed: {reasons[0]}{more}; see `failed` of "
            f"rllc.Sweep.open(store). Call again to try them again.",
            stacklevel=5,
        )
    return reasons
