"""Where cells are computed: here, in processes of ours, or on anyone's executor.

A cell whose worker dies is tried again, alone if others ran beside it, until it has cost
``TRIES`` workers. So an innocent cell is never blamed, and a deadly one stops nobody else.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from rllc.errors import InputError, RllcError, first_line
from rllc.sweep.workers import Bench, Task, keep_store, portable, work

TRIES = 3
"""How often a cell may kill its worker."""

Result = tuple[Task, "str | None"]
"""A task that is done, and the reason if it failed."""


class Attempt(NamedTuple):
    """A task, and how many workers have died with it."""

    task: Task
    deaths: int = 0


def compute_all(
    tasks: Sequence[Task],
    executor: int | Sequence[str] | Executor | None,
    timeout: float | None = None,
) -> Iterator[Result]:
    """Give each task as it is done, in any order.

    Args:
        executor: as in :class:`rllc.Compute`.
        timeout: alike.

    Raises:
        InputError: ``executor`` is not one, or its workers cannot start.
        FileError: the store cannot be written.
        RllcError: somebody else's executor broke, was shut down or has hung, and only they can mend
            it.
    """
    workers = num_workers(executor)
    if executor is None or not tasks:
        return _one_after_another(tasks)
    queue = deque(Attempt(task) for task in portable(tasks))
    if isinstance(executor, Executor):
        return _in_pools(queue, [Pool(executor, workers or _EVERYTHING)], timeout)
    devices = [None] * executor if isinstance(executor, int) else list(executor)
    pools = [Pool.process(device) for device in devices[: len(tasks)]]
    return _in_pools(queue, pools, timeout)


_EVERYTHING = 1_000_000
"""Cells at once for an executor that does not tell its size: Dask, which mends itself."""


def num_workers(executor: int | Sequence[str] | Executor | None) -> int | None:
    """Return how many workers an executor has; ``None`` if it does not say.

    Raises:
        InputError: it is none of the kinds that :class:`rllc.Compute` takes.
    """
    if executor is None:
        return 1
    if isinstance(executor, Executor):
        _refuse_fork(executor)
        return getattr(executor, "_max_workers", None)
    if isinstance(executor, int) and not isinstance(executor, bool) and executor > 0:
        return executor
    if isinstance(executor, list | tuple):
        devices = [device for device in executor if isinstance(device, str)]
        if executor and len(devices) == len(executor):
            return len(devices)
    raise InputError(
        f"track: `executor` must be None, a number of processes, a list of devices such as "
        f"['cuda:0', 'cuda:1'], or a concurrent.futures.Executor such as "
        f"Client(…).get_executor() of Dask; got {executor!r}."
    )


def _refuse_fork(executor: Executor) -> None:
    """Refuse processes that begin as copies of this one, whose threads of torch they lack.

    Measured: once this process has computed on two threads, a copy of it waits forever in its first
    product that takes two. A copy that computes on one thread, as torch is set now, waits for none,
    even if this process used more before.
    """
    context = getattr(executor, "_mp_context", None)
    forks = context is not None and context.get_start_method() == "fork"
    if isinstance(executor, ProcessPoolExecutor) and forks and torch.get_num_threads() > 1:
        raise InputError(
            f"track: `executor` forks this process, and a copy of one that computes on "
            f"{torch.get_num_threads()} threads can hang, since it lacks these threads; give "
            f"Compute(executor=4), or ProcessPoolExecutor(4, mp_context=multiprocessing."
            f"get_context('spawn')), or call torch.set_num_threads(1) before."
        )


def _one_after_another(tasks: Sequence[Task]) -> Iterator[Result]:
    bench = Bench()
    for task in tasks:
        yield task, work(task, bench)


@dataclass(eq=False)
class Pool:
    """An executor and what runs on it.

    Args:
        executor: replaced when one of its workers dies.
        width: how many cells it gets at once. A process of ours gets one, so that only that one
            can have killed it.
        device: of a process of ours; ``None``: what the task says.
        lifeline: of a process of ours, which exits as soon as this end is closed, by us or by our
            own death.
        first: the task that each new process of ours is greeted with.
        running: what was submitted and is not done.
        suspects: what ran when a worker died. Each of these runs alone.
        last_news: when something was submitted to it while it was idle, or was last done on it.
    """

    executor: Executor
    width: int
    device: str | None = None
    lifeline: Connection | None = None
    first: Task | None = None
    running: dict[Future[str | None], Attempt] = field(default_factory=dict)
    suspects: deque[Attempt] = field(default_factory=deque)
    last_news: float = 0.0

    @classmethod
    def process(cls, device: str | None) -> Pool:
        """Start one process with one thread."""
        context = multiprocessing.get_context("spawn")
        end, lifeline = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin, initargs=(end, device)
        )
        return cls(executor, 1, device, lifeline)

    def fill(self, queue: deque[Attempt]) -> None:
        """Submit a suspect alone, or else as much of the queue as the pool takes."""
        if self.suspects:
            if not self.running:
                self._submit(self.suspects.popleft())
            return
        # Submitting may find the pool broken, and what ran on it suspect.
        while queue and len(self.running) < self.width and not self.suspects:
            self._submit(queue.popleft())

    def _submit(self, attempt: Attempt) -> None:
        task = attempt.task.on(self.device)
        if self.lifeline is not None:
            task = task.light()
        if not self.running:
            self.last_news = time.monotonic()
        try:
            future = self.executor.submit(work, task)
        except BrokenExecutor:  # a worker was killed while nothing ran on it
            self.mend()
            future = self.executor.submit(work, task)
        except RuntimeError as error:
            raise self.shut_down(error) from error
        self.running[future] = attempt

    def shut_down(self, error: BaseException) -> RllcError:
        """Return what to say of an executor that takes no more cells, or has dropped some."""
        return RllcError(
            f"track: the {type(self.executor).__name__} that was given was shut down "
            f"({first_line(error)}). Finished cells are kept: call again with a new one."
        )

    def end_hung(self, timeout: float) -> Task:
        """End a process of ours that takes too long, and start another in its place.

        Returns:
            The task that it was at.

        Raises:
            RllcError: the executor is somebody else's.
        """
        if self.lifeline is None:
            raise RllcError(
                f"track: the {type(self.executor).__name__} that was given has finished nothing "
                f"for {timeout:g} s. Finished cells are kept: call again with a new one, with a "
                f"longer timeout, or with Compute(executor=4, timeout=…), whose processes are "
                f"ended when they hang."
            )
        ((_, attempt),) = self.running.items()
        self.running.clear()
        # Of one that hangs outside of Python, the thread that watches its lifeline never wakes.
        for process in list(self.executor._processes.values()):  # type: ignore[attr-defined]
            process.kill()
        self.mend()
        return attempt.task

    def mend(self) -> None:
        """Replace the executor after the death of a worker; all that ran on it is suspect.

        Raises:
            RllcError: the executor is somebody else's and cannot be had anew.
        """
        for task, deaths in self.running.values():
            self.suspects.append(Attempt(task, deaths + 1))
        self.running.clear()
        if self.lifeline is not None:
            self.close()
            new = Pool.process(self.device)
            self.executor, self.lifeline = new.executor, new.lifeline
            assert self.first is not None
            self.executor.submit(_greet, self.first)
            return
        # loky's, or that of a library that carries loky along
        module = sys.modules[type(self.executor).__module__]
        get_reusable_executor = getattr(module, "get_reusable_executor", None)
        if get_reusable_executor is None:
            raise RllcError(
                f"track: a worker died, and with it the {type(self.executor).__name__} that was "
                f"given. Finished cells are kept: call again with a new one, or with "
                f"Compute(executor=4), whose processes are replaced when they die."
            )
        self.executor = get_reusable_executor(max_workers=self.width)

    def close(self) -> None:
        """End a process of ours; from another's executor take back only what has not begun."""
        for future in self.running:
            future.cancel()
        if self.lifeline is not None:
            if self.running:  # nobody wants its result any more
                self.lifeline.close()
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.lifeline.close()


def _in_pools(
    queue: deque[Attempt], pools: Sequence[Pool], timeout: float | None
) -> Iterator[Result]:
    """Keep the pools filled until all is done."""
    try:
        first = queue[0].task
        greetings = [_submit_greeting(first, pool) for pool in pools]
        for pool, greeting in zip(pools, greetings, strict=True):
            _await_greeting(greeting, pool)
        while True:
            for pool in pools:
                pool.fill(queue)
            busy = {future: pool for pool in pools for future in pool.running}
            if not busy:
                return
            for future in wait(busy, _until_next(pools, timeout), FIRST_COMPLETED).done:
                pool = busy[future]
                pool.last_news = time.monotonic()
                if future in pool.running:  # not since made a suspect by another's death
                    yield from _results(future, pool)
            for pool in pools:
                if timeout is not None and _left(pool, timeout) <= 0:
                    task = pool.end_hung(timeout)
                    yield task, _fail(task, f"it took longer than the timeout, {timeout:g} s")
    finally:
        for pool in pools:
            pool.close()


def _until_next(pools: Sequence[Pool], timeout: float | None) -> float | None:
    """Return the seconds after which the first pool has taken too long; ``None``: never."""
    if timeout is None:
        return None
    return max(min(_left(pool, timeout) for pool in pools), 0.0)


def _left(pool: Pool, timeout: float) -> float:
    """Return the seconds that a pool has left for what it is at."""
    if not pool.running:
        return timeout
    return pool.last_news + timeout - time.monotonic()


def _results(future: Future[str | None], pool: Pool) -> Iterator[Result]:
    """Give the task of a future that is done; nothing if its worker died and it is tried again."""
    try:
        reason = future.result()
    except BrokenExecutor as error:
        was_alone = len(pool.running) == 1
        pool.mend()
        task, deaths = pool.suspects[-1]
        if was_alone and deaths >= TRIES:
            pool.suspects.pop()
            yield task, _fail(task, f"its worker died, {deaths} times ({first_line(error)})")
    except CancelledError as error:  # nobody but its owner takes back what has not begun
        raise pool.shut_down(error) from error
    except (RllcError, KeyboardInterrupt):
        raise
    except BaseException as error:  # given up by an executor that has tried, as Dask's KilledWorker
        task, _ = pool.running.pop(future)
        yield task, _fail(task, f"{type(error).__name__}: {first_line(error)}")
    else:
        task, _ = pool.running.pop(future)
        yield task, reason


def _fail(task: Task, reason: str) -> str:
    task.store.fail(task.cell.name, reason)
    return reason


# Greetings: whether workers can do anything at all, before the first cell is blamed for it.


def _greet(task: Task) -> None:
    """Run by a worker: if it can read the task and sees the store, it can do the rest."""
    folder = task.store.root
    keep_store(task.store)
    if not folder.is_dir():
        raise InputError(
            f"track: a worker on {platform.node() or 'another machine'} does not see `store` = "
            f"{folder}; give a folder that all machines share."
        )


def _submit_greeting(task: Task, pool: Pool) -> Future[None]:
    pool.first = task
    try:
        return pool.executor.submit(_greet, task)
    except BrokenExecutor:
        raise
    except RuntimeError as error:
        raise pool.shut_down(error) from error


def _await_greeting(greeting: Future[None], pool: Pool) -> None:
    try:
        greeting.result()
    except RllcError:
        raise
    except Exception as error:
        advice = (
            "Its workers need rllc, and whatever module a loss or sampler of your own is in."
            if pool.lifeline is None
            else "In a script, calls that start processes belong under "
            "`if __name__ == '__main__':`. A loss or sampler of your own belongs in a module that "
            "they can import, not in the script, a notebook or another function."
        )
        raise InputError(
            f"track: the workers of `executor` cannot start "
            f"({type(error).__name__}: {first_line(error)}). {advice}"
        ) from error


def _begin(lifeline: Connection, device: str | None) -> None:
    """At the start of a process of ours: one thread, no Ctrl-C, and an end when ours comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for us, who close the lifeline
    torch.set_num_threads(1)
    if device is not None and device.startswith("cuda"):
        torch.cuda.set_device(device)

    def watch() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
