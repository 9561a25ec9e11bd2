"""How cells get done: in this process, in processes of ours, or on anybody's executor; and what happens when a worker dies.

To a worker travel references: where the checkpoint is, the file of the rows, names of weights, settings. A worker keeps one
model, whose memory each checkpoint fills anew, and the rows that it has read. It writes the cell's file itself; back comes
nothing but a reason, if it failed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rllc.data.tokens import Tokens
from rllc.draws import Draws
from rllc.errors import FileError, InputError, RllcError, first_line
from rllc.files import load_arrays
from rllc.loss import Distillation, LossFunction
from rllc.models.checkpoints import Checkpoint, load
from rllc.refinement import Rows, fingerprint
from rllc.sample import sample
from rllc.samplers import Sampler
from rllc.sampling import Sampling
from rllc.sweep.store import Cell, Store, load_rows, versions
from rllc.weights import Weights

TRIES = 3
"""How often a cell may kill its worker."""


@dataclass(frozen=True, eq=False)
class Task:
    """A cell and all that is needed to compute it.

    Args:
        cell: which, and what its file is called.
        folder: the store.
        checkpoint: where the weights are.
        sha256: of the weights; ``None`` where it was not known when the sweep began.
        data: the rows or, for another process, the file that holds them.
        loss: a function or, for another process, the folder of a generating model.
        sampler: one or, for another process, its settings.
        about: goes into the cell's file.
        earlier: a finished cell of fewer draws whose chains go on.
        keep_states: write down where the chains end.
        per_token: write down the losses per token.
        delete_downloads: write down what there was of the checkpoint before it is fetched.
    """

    cell: Cell
    folder: str
    checkpoint: Checkpoint
    sha256: str | None
    data: Rows | RowsFile
    weights: tuple[Weights, ...]
    loss: LossFunction | Generator | None
    sampler: Sampler | Mapping[str, Any]
    sampling: Sampling
    about: Mapping[str, Any]
    earlier: Cell | None = None
    keep_states: bool = False
    per_token: bool = False
    delete_downloads: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return f"step {self.cell.step}, data {self.cell.data!r}, weights {', '.join(self.cell.weights)}"


class RowsFile(NamedTuple):
    """A data set as it travels."""

    path: str
    tokens: bool


class Generator(NamedTuple):
    """The generating model of a distillation loss as it travels."""

    folder: str


class Bench(threading.local):
    """What a worker keeps from one cell to the next: one model, which checkpoint it holds, and what it has read."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.holds: tuple[Checkpoint, str] | None = None
        self.rows: dict[str, Rows] = {}
        self.generators: dict[str, nn.Module] = {}

    def checkpoint(self, task: Task) -> tuple[nn.Module, str]:
        """The model with the weights of a checkpoint, and their SHA-256."""
        if task.delete_downloads:
            Store(task.folder).note_download(task.checkpoint)
        found = digest_of(task.checkpoint)
        if task.sha256 not in (None, found):
            raise FileError(
                f"loading {task.checkpoint}: it was replaced since the sweep began (SHA-256 {found[:8]}…, then "
                f"{task.sha256[:8]}…). Put the old one back, or track into another store."
            )
        if self.model is None or self.holds != (task.checkpoint, found):
            self.holds = None
            self.model = load(task.checkpoint, into=self.model, device=task.sampling.device)
            self.holds = task.checkpoint, found
        return self.model, found

    def data(self, rows: Rows | RowsFile) -> Rows:
        """The rows, read once."""
        if not isinstance(rows, RowsFile):
            return rows
        if rows.path not in self.rows:
            parts = load_rows(rows.path)
            self.rows[rows.path] = Tokens(parts[0]) if rows.tokens else parts
        return self.rows[rows.path]

    def loss(self, loss: LossFunction | Generator | None) -> LossFunction | None:
        """The function; a generating model is loaded once."""
        if not isinstance(loss, Generator):
            return loss
        if loss.folder not in self.generators:
            self.generators[loss.folder] = load(loss.folder)
        return Distillation(self.generators[loss.folder])


_BENCH = Bench()
"""A worker's own, one a thread."""


def work(task: Task, bench: Bench | None = None) -> str | None:
    """Compute a cell and write its file; gives the reason if it failed.

    Raises:
        FileError: the store cannot be written, which is not the cell's fault.
    """
    store = Store(task.folder)
    if store.has(
        task.cell.name, task.per_token
    ):  # by another sweep, or before the worker that had it died
        return None
    bench = _BENCH if bench is None else bench
    try:
        model, sha256 = bench.checkpoint(task)
        draws, earlier = _sampled(task, bench, model, sha256, store)
    except Exception as error:  # whatever it is, it is this cell's and the others go on
        reason = f"{type(error).__name__}: {first_line(error)}"
        store.fail(task.cell.name, reason)
        return reason
    device = next(model.parameters()).device
    about = {**task.about, "checkpoint": {**task.about["checkpoint"], "sha256": sha256}}
    about |= {"versions": versions(), "device": _kind(device)}
    store.write(task.cell.name, draws, about, keep_states=task.keep_states, earlier=earlier)
    return None


def _sampled(
    task: Task, bench: Bench, model: nn.Module, sha256: str, store: Store
) -> tuple[Draws, Cell | None]:
    """A cell's draws, and the cell that they go on from; from the first draw on where they cannot."""

    def drawn(resume: Draws | None) -> Draws:
        return sample(
            model,
            {task.cell.data: bench.data(task.data)},
            list(task.weights),
            loss=bench.loss(task.loss),
            sampler=sampler_of(task.sampler),
            sampling=task.sampling,
            per_token=task.per_token,
            keep_states=task.keep_states,
            resume=resume,
            progress=False,
        )

    if task.earlier is not None:
        try:
            resume = store.continued(task.earlier, task.cell.weights)
            there = resume.settings["cell"]
            if there["checkpoint"]["sha256"] != sha256 or there["loss"] != task.about["loss"]:
                raise FileError("it is of another checkpoint or loss.")
            if task.per_token:
                load_arrays(
                    store.token_path(task.earlier.name)
                )  # before anything is computed that would go behind it
            return drawn(resume), task.earlier
        except (FileError, InputError) as error:  # raised before any chain runs
            warnings.warn(
                f"track: {task.name}: computed from the first draw on: {first_line(error)}",
                stacklevel=2,
            )
    return drawn(None), None


def finish_all(
    tasks: Sequence[Task], executor: int | Sequence[str] | Executor | None
) -> Iterator[tuple[Task, str | None]]:
    """Each task as it is done, in any order, with the reason if it failed.

    Raises:
        InputError: ``executor`` is none, or its workers cannot do this.
        FileError: the store cannot be written.
        RllcError: somebody else's executor broke, and only they can mend it.
    """
    if executor is None or not tasks:
        bench = Bench()
        return ((task, work(task, bench)) for task in tasks)
    tasks = portable(tasks)
    if isinstance(executor, Executor):
        return _in_pools(deque((task, 0) for task in tasks), [_Pool(executor, _width(executor))])
    devices = places(executor)
    return _in_pools(
        deque((task, 0) for task in tasks),
        [_Pool.process(device) for device in devices[: len(tasks)]],
    )


def places(executor: int | Sequence[str]) -> list[str | None]:
    """The device of each process of ours; ``None``: whatever the settings say.

    Raises:
        InputError: ``executor`` is neither a number of processes nor a list of devices.
    """
    if isinstance(executor, int) and not isinstance(executor, bool) and executor > 0:
        return [None] * executor
    if (
        isinstance(executor, list | tuple)
        and executor
        and all(isinstance(device, str) for device in executor)
    ):
        return list(executor)
    raise InputError(
        f"track: `executor` must be None, a number of processes, a list of devices such as ['cuda:0', 'cuda:1'], or a "
        f"concurrent.futures.Executor such as Client(…).get_executor() of Dask; got {executor!r}."
    )


# Pools.


@dataclass(eq=False)
class _Pool:
    """An executor, what runs on it, and what has to run alone because it was there when a worker died."""

    executor: Executor
    width: int
    """How many cells it gets at once. One process each for pools of ours: then nobody innocent is suspected."""
    device: str | None = None
    lifeline: Connection | None = None
    """When this end is closed, by us or by our death, the process at the other end exits."""
    running: dict[Future[str | None], tuple[Task, int]] = field(default_factory=dict)
    suspects: deque[tuple[Task, int]] = field(default_factory=deque)

    @classmethod
    def process(cls, device: str | None) -> _Pool:
        """One spawned process with one BLAS thread."""
        context = multiprocessing.get_context("spawn")
        end, lifeline = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin, initargs=(end, device)
        )
        return cls(executor, 1, device, lifeline)

    def fill(self, queue: deque[tuple[Task, int]]) -> None:
        """Give it work: a suspect alone, or else as much as it takes."""
        if self.suspects:
            if not self.running:
                self._submit(*self.suspects.popleft())
            return
        while queue and len(self.running) < self.width and not self.suspects:
            self._submit(*queue.popleft())

    def _submit(self, task: Task, deaths: int) -> None:
        sampling = (
            task.sampling if self.device is None else replace(task.sampling, device=self.device)
        )
        try:
            future = self.executor.submit(work, replace(task, sampling=sampling))
        except BrokenExecutor:  # a worker was killed while nothing ran on it
            self.mend()
            future = self.executor.submit(work, replace(task, sampling=sampling))
        self.running[future] = task, deaths

    def mend(self) -> None:
        """A new executor in place of one whose worker died; all that ran on it is suspected."""
        self.suspects.extend((task, deaths + 1) for task, deaths in self.running.values())
        self.running.clear()
        if self.lifeline is not None:
            self.close()
            new = _Pool.process(self.device)
            self.executor, self.lifeline = new.executor, new.lifeline
        elif (
            again := getattr(
                sys.modules[type(self.executor).__module__], "get_reusable_executor", None
            )
        ) is not None:
            self.executor = again(
                max_workers=self.width
            )  # loky's, or that of a library that carries loky along
        else:
            raise RllcError(
                f"track: a worker died, and with it the {type(self.executor).__name__} that was given. Finished cells are "
                f"kept: call again with a new one, or with executor=4, whose processes are replaced when they die."
            )

    def close(self) -> None:
        """End what is ours; of others' executors, only take back what they have not begun."""
        for future in self.running:
            future.cancel()
        if self.lifeline is not None:
            if self.running:  # do not wait for what nobody wants any more
                self.lifeline.close()
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.lifeline.close()


def _in_pools(
    queue: deque[tuple[Task, int]], pools: Sequence[_Pool]
) -> Iterator[tuple[Task, str | None]]:
    """The driver's loop. With each task goes how many workers have died with it."""
    try:
        for pool, ready in [(pool, pool.executor.submit(_ready, queue[0][0])) for pool in pools]:
            _see(ready, pool)
        while True:
            for pool in pools:
                pool.fill(queue)
            busy = {future: pool for pool in pools for future in pool.running}
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                if future in busy[future].running:  # it may have been a suspect's since
                    yield from _settled(future, busy[future])
    finally:
        for pool in pools:
            pool.close()


def _settled(future: Future[str | None], pool: _Pool) -> Iterator[tuple[Task, str | None]]:
    """What came of a future: a finished or failed task, or a broken pool and suspects in it."""
    try:
        reason = future.result()
    except BrokenExecutor as error:
        alone = len(pool.running) == 1
        pool.mend()
        task, deaths = pool.suspects[-1]
        if alone and deaths >= TRIES:
            pool.suspects.pop()
            yield task, _lost(task, f"its worker died, {deaths} times ({first_line(error)})")
    except RllcError:
        raise
    except (
        BaseException
    ) as error:  # lost by the executor, which has tried what it can (Dask's KilledWorker)
        task, _ = pool.running.pop(future)
        if isinstance(error, KeyboardInterrupt):
            raise
        yield task, _lost(task, f"{type(error).__name__}: {first_line(error)}")
    else:
        task, _ = pool.running.pop(future)
        yield task, reason


def _lost(task: Task, reason: str) -> str:
    Store(task.folder).fail(task.cell.name, reason)
    return reason


def _see(ready: Future[None], pool: _Pool) -> None:
    """Whether workers can do anything at all, before the first cell is blamed for it."""
    try:
        ready.result()
    except RllcError:
        raise
    except Exception as error:
        ours = pool.lifeline is not None
        advice = (
            "In a script, calls that start processes belong under `if __name__ == '__main__':`; a loss or sampler of your own "
            "belongs into a module that they can import, not into the script, a notebook or another function."
            if ours
            else "Its workers need rllc, and whatever module a loss or sampler of your own is in."
        )
        raise InputError(
            f"track: the workers of `executor` cannot start ({type(error).__name__}: {first_line(error)}). {advice}"
        ) from error


def _ready(task: Task) -> None:
    """Sent before the first cell: a worker that can read it and sees the store will do."""
    if not Path(task.folder).is_dir():
        raise InputError(
            f"track: a worker on {os.uname().nodename if hasattr(os, 'uname') else 'another machine'} does not see `store` = "
            f"{task.folder}; give a folder that all machines share."
        )


def _begin(lifeline: Connection, device: str | None) -> None:
    """At the start of a process of ours."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the driver, which closes the lifeline
    torch.set_num_threads(1)
    if device is not None and device.startswith("cuda"):
        torch.cuda.set_device(device)

    def watch() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _width(executor: Executor) -> int:
    """How many workers an executor says it has; Dask does not, and repairs itself, so it may have everything."""
    return getattr(executor, "_max_workers", None) or 1_000_000


# What travels.


def portable(tasks: Sequence[Task]) -> list[Task]:
    """The tasks with files and settings in place of data, models and functions that cannot be pickled."""
    store, rows, losses = Store(tasks[0].folder), {}, {}
    for task in tasks:
        if task.cell.data not in rows:
            tokens = isinstance(task.data, Tokens)
            parts = (task.data.rows,) if isinstance(task.data, Tokens) else task.data
            rows[task.cell.data] = RowsFile(store.save_rows(parts, fingerprint(task.data)), tokens)
    loss, sampler = tasks[0].loss, _settings(tasks[0].sampler)
    if isinstance(loss, Distillation):
        losses[id(loss)] = _generator(loss, store, str(tasks[0].about["loss"]))
    return [
        replace(t, data=rows[t.cell.data], loss=losses.get(id(t.loss), t.loss), sampler=sampler)
        for t in tasks
    ]


def _generator(loss: Distillation, store: Store, name: str) -> Generator:
    """Save a generating model once; its name holds the SHA-256 of its weights."""
    folder = store.folder / "generators" / name.split()[-1][:32]
    if not hasattr(loss.generator, "save_pretrained"):
        raise InputError(
            f"track: with an `executor`, the generating model of rllc.distillation must be one of rllc or transformers, "
            f"which can be saved in the store; got {type(loss.generator).__name__}. Without an executor any will do."
        )
    store.save_model(folder, loss.generator)
    return Generator(str(folder))


def _settings(sampler: Sampler | Mapping[str, Any]) -> Sampler | Mapping[str, Any]:
    """The settings of one of rllc's samplers, from which a worker makes it; another is left as it is."""
    if isinstance(sampler, Sampler):
        with suppress(TypeError, AttributeError, InputError):
            again = sampler_of(sampler.settings)
            if _identity(again) == _identity(sampler):
                return sampler.settings
    return sampler


def _identity(sampler: Sampler) -> tuple[Any, ...]:
    """What two samplers that do the same have in common; a function made twice is known by where it is written."""
    functions = (sampler.init, sampler.step)
    return (
        *((f.__module__, f.__qualname__) for f in functions),
        sampler.full_batch,
        dict(sampler.settings),
    )


def sampler_of(settings: Sampler | Mapping[str, Any]) -> Sampler:
    """A sampler from its settings: ``{"sampler": "sgld", "lr": 1e-3, "localization": 200.0}``."""
    if isinstance(settings, Sampler):
        return settings
    options = dict(settings)
    make = getattr(importlib.import_module("rllc.samplers"), options.pop("sampler"))
    if "half_width" in options:
        prior = importlib.import_module("rllc.samplers").Prior(
            options.pop("localization"), options.pop("half_width")
        )
        return make(prior=prior, **options)
    return make(**options)


def _kind(device: torch.device) -> str:
    """Of device, on which the last bits depend."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )


_digests: dict[tuple[Any, ...], str] = {}


def digest_of(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's weights, computed again only when name, size or time of a file has changed.

    Raises:
        FileError: it is not there.
    """
    path = checkpoint.path()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    key = tuple((str(f), s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()])
    if key not in _digests:
        _digests[key] = checkpoint.sha256()
    return _digests[key]
