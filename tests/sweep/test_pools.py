"""Executors of all kinds: the same numbers, small parcels, and what happens when one breaks."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import threading
import warnings
from collections import Counter
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import replace

import numpy as np
import pytest
import torch
from faulty import hangs
from small_sweeps import DATA, QUICK, SMALL, quick, rows_with_seven, same
from tiny import tiny_model, tiny_tokens

import rllc
from rllc.sweep.workers import Task, keep_store, work


def test_threads_change_no_bit(run, unbroken) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert same(rllc.track(run, DATA, rllc.heads, **quick(threads)), unbroken)


# Executors that break.


class Fragile(Executor):
    """Four cells at a time; all are lost when one is of data ``"b"`` at step 10.

    Like loky's, it can be had anew.
    """

    _max_workers = 4
    lost: list[str]
    """Names of cells, each time that one is lost."""

    def __init__(self) -> None:
        self.broken = False
        self.pending = []

    def submit(self, function, /, task):
        if self.broken:
            raise BrokenExecutor("broken before")
        future: Future = Future()
        self.pending.append((future, function, task))
        if len(self.pending) == 1:
            threading.Timer(0.05, self._work).start()  # by then there are more
        return future

    def _work(self) -> None:
        pending, self.pending = self.pending, []
        cells = [task.cell for _, function, task in pending if function is work]
        self.broken = any((cell.step, cell.data) == (10, "b") for cell in cells)
        if self.broken:
            self.lost.extend(cell.name for cell in cells)
        for future, function, task in pending:
            if self.broken:
                future.set_exception(BrokenExecutor("a worker died"))
            else:
                future.set_result(function(task))


def get_reusable_executor(max_workers: int) -> Fragile:
    """What loky has beside its executor."""
    assert max_workers == 4
    return Fragile()


def test_only_the_cells_that_kill_workers_are_failed(run, unbroken, tmp_path, monkeypatch) -> None:
    """Those that ran beside them are tried again alone; what is left then goes on together."""
    monkeypatch.setattr(Fragile, "lost", [], raising=False)
    with pytest.warns(UserWarning, match="2 of 8 cells failed"):
        trajectory = rllc.track(run, DATA, rllc.heads, store=tmp_path, **quick(Fragile()))
    failed = rllc.Sweep.open(tmp_path).failed
    assert set(failed) == {(10, name, "b") for name in unbroken.weights}
    assert set(failed.values()) == {"its worker died, 3 times (a worker died)"}
    deaths = sorted(Counter(Fragile.lost).values(), reverse=True)
    assert deaths[:2] == [3, 3]
    assert all(count <= 2 for count in deaths[2:])  # once with each killer, before it was known
    columns = trajectory.names.select(data="a")
    assert np.array_equal(trajectory.value[:, columns], unbroken.value[:, columns])
    assert np.array_equal(trajectory.value[0], unbroken.value[0])


class Once(Executor):
    """Breaks with the second cell, and stays broken, as those of the standard library do."""

    __module__ = "concurrent.futures"
    has_worked = False

    def submit(self, function, /, task):
        future: Future = Future()
        if function is work and self.has_worked:
            future.set_exception(BrokenExecutor("gone"))
        else:
            self.has_worked = function is work
            future.set_result(function(task))
        return future


def test_an_executor_of_others_that_stays_broken_is_said_so(run, tmp_path) -> None:
    message = r"a worker died, and with it the Once that was given\. Finished"
    with pytest.raises(rllc.RllcError, match=message):
        rllc.track(run, DATA["a"], rllc.heads, store=tmp_path, **quick(Once()))


class ShutDown(ThreadPoolExecutor):
    """Is shut down by its owner: at once, after the second cell, or with a cell in it."""

    def __init__(self, when: str) -> None:
        super().__init__(1)
        self.when = when
        self.count = 0
        if when == "before":
            self.shutdown()

    def submit(self, function, /, task):
        self.count += function is work
        if self.count == 3 and self.when == "between":
            self.shutdown(wait=True)
        if self.count == 3 and self.when == "within":
            future: Future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future
        return super().submit(function, task)


@pytest.mark.parametrize(("when", "num_finished"), [("before", 0), ("between", 2), ("within", 2)])
def test_an_executor_that_is_shut_down_is_said_so_and_nothing_finished_is_lost(
    run, tmp_path, when: str, num_finished: int
) -> None:
    message = r"the ShutDown that was given was shut down .*Finished cells are kept: call again"
    with pytest.raises(rllc.RllcError, match=message):
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **quick(ShutDown(when)))
    sweep = rllc.Sweep.open(tmp_path)
    assert len(sweep.store.finished()) == num_finished
    assert sweep.failed == {}


class Hanging(ThreadPoolExecutor):
    """Never comes to its second cell."""

    def __init__(self) -> None:
        super().__init__(1)
        self.until = threading.Event()
        self.count = 0

    def submit(self, function, /, task):
        self.count += function is work
        if self.count == 2:
            return super().submit(self.until.wait)
        return super().submit(function, task)


@pytest.mark.slow
def test_an_executor_that_has_hung_is_given_up_after_the_timeout(run, tmp_path) -> None:
    executor = Hanging()
    compute = rllc.Compute(executor=executor, timeout=2.0, progress=False)
    message = r"the Hanging that was given has finished nothing for 2 s\. Finished cells are kept"
    try:
        with pytest.raises(rllc.RllcError, match=message):
            rllc.track(run, DATA["a"], "0:1", store=tmp_path, **QUICK | {"compute": compute})
    finally:
        executor.until.set()
    sweep = rllc.Sweep.open(tmp_path)
    assert len(sweep.finished) == 1
    assert sweep.failed == {}


@pytest.mark.slow
def test_a_cell_that_hangs_is_ended_failed_and_alone_in_that(run, tmp_path) -> None:
    first = rllc.checkpoints(run)[:1]
    compute = rllc.Compute(executor=1, timeout=25.0, progress=False)
    settings = QUICK | {"compute": compute, "loss": hangs}
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        rllc.track(first, rows_with_seven(), "0:1", store=tmp_path, **settings)
    sweep = rllc.Sweep.open(tmp_path)
    assert {key[2] for key in sweep.finished} == {"a"}
    assert set(sweep.failed.values()) == {"it took longer than the timeout, 25 s"}


@pytest.mark.parametrize("timeout", [0, -1.0, "60", float("nan")])
def test_a_timeout_that_cannot_be_is_refused(timeout) -> None:
    with pytest.raises(rllc.InputError, match="`timeout` must be a number of seconds above 0"):
        rllc.Compute(executor=2, timeout=timeout)


def test_a_timeout_without_an_executor_is_refused() -> None:
    with pytest.raises(rllc.InputError, match=r"`timeout` must be given with an `executor`"):
        rllc.Compute(timeout=60.0)


class Lossy(ThreadPoolExecutor):
    """Gives up on some cells by itself, as Dask does on those that kill workers."""

    def submit(self, function, /, task):
        if function is not work or task.cell.data != "b":
            return super().submit(function, task)
        future: Future = Future()
        future.set_exception(ConnectionError("killed four workers\nlong story"))
        return future


def test_cells_that_an_executor_gives_up_are_failed(run, unbroken, tmp_path) -> None:
    with Lossy(1) as executor, pytest.warns(UserWarning, match="4 of 8 cells failed"):
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **quick(executor))
    failed = rllc.Sweep.open(tmp_path).failed
    assert set(failed.values()) == {"ConnectionError: killed four workers"}
    assert [key[2] for key in failed] == ["b"] * 8
    # The next call does them.
    assert same(rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK), unbroken)


def test_workers_that_cannot_see_the_store_are_found_first(run, tmp_path, computed) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function, /, task):
            return super().submit(function, replace(task, store=rllc.sweep.Store("/nowhere")))

    message = "does not see `store` = /nowhere; give a folder"
    with Elsewhere(1) as executor, pytest.raises(rllc.InputError, match=message):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **quick(executor))
    assert computed == []


# What travels.


class Weighing(ThreadPoolExecutor):
    """Pickles what it is given, as an executor of processes does, and weighs it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.sizes: list[int] = []

    def submit(self, function, /, task: Task):
        pickled = pickle.dumps(task)
        self.sizes.append(len(pickled))
        return super().submit(function, pickle.loads(pickled))


def test_what_travels_is_small_and_holds_no_model(run) -> None:
    """References only, however large the data; a generating model is saved and loaded."""
    large = tiny_tokens(20_000, seed=3)
    loss = rllc.losses.distillation(tiny_model(7, **SMALL))
    with Weighing() as executor:
        travelled = rllc.track(run, large, rllc.heads, loss=loss, **quick(executor))
    assert max(executor.sizes) < 5000
    assert same(travelled, rllc.track(run, large, rllc.heads, loss=loss, **QUICK))


@pytest.mark.slow
def test_observables_travel_once_to_a_process_of_ours(run, tmp_path) -> None:
    """They may hold whole data sets; a task without them computes what one with them does."""
    rows = tiny_tokens(500, seed=3)
    store = rllc.sweep.Store(tmp_path, observe={"on c": rllc.losses_on(rows)})
    tasks = []

    class Recording(ThreadPoolExecutor):
        def submit(self, function, /, task):
            if function is work:
                tasks.append(task)
                keep_store(task.store)
                task = pickle.loads(pickle.dumps(task.light()))
            return super().submit(function, task)

    with Recording(1) as executor:
        rllc.track(run, DATA["a"], "0:1", store=store, **quick(executor))
    whole, light = (len(pickle.dumps(task)) for task in (tasks[0], tasks[0].light()))
    assert light < 5000 < whole
    assert "on c" in rllc.Sweep.open(tmp_path).draws(10, "0:1").observed


def test_a_generating_model_that_cannot_be_saved_is_refused(run) -> None:
    loss = rllc.losses.distillation(torch.nn.Linear(2, 2))
    message = r"generating model .* got Linear"
    with ThreadPoolExecutor(1) as executor, pytest.raises(rllc.InputError, match=message):
        rllc.track(run, DATA["a"], "0:0", loss=loss, **quick(executor))


def first_of_pair(module, batch):
    return rllc.next_token(module, batch[0])


def test_tensors_travel_as_tokens_do(run) -> None:
    pair = {"pair": (DATA["a"].rows.long(), DATA["b"].rows.long())}
    with Weighing() as executor:
        travelled = rllc.track(run, pair, "0:0", loss=first_of_pair, **quick(executor))
    assert same(travelled, rllc.track(run, pair, "0:0", loss=first_of_pair, **QUICK))


# Copies of this process.


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_of_this_process_is_refused_where_torch_uses_several_threads(
    run, threads: int
) -> None:
    """With one it computes, even if this process has used two before; with two it could hang."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    large = torch.ones(500, 500)
    assert float((large @ large)[0, 0]) == 500  # on two threads
    torch.set_num_threads(threads)
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(1, mp_context=fork) as copies, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks beside threads
            if threads == 1:
                trajectory = rllc.track({0: run / "step0000000"}, DATA["a"], **quick(copies))
                assert np.isfinite(trajectory.value).all()
                return
            message = r"forks this process, .* computes on 2 threads .*torch.set_num_threads\(1\)"
            with pytest.raises(rllc.InputError, match=message):
                rllc.track(run, DATA, rllc.heads, **quick(copies))
    finally:
        torch.set_num_threads(before)
