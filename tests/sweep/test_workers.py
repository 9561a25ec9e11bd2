"""What goes wrong in long sweeps, done to short ones: kills, full disks, damage, missing files."""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import Both, Killer, interrupted
from small_sweeps import DATA, QUICK, SMALL, cell_files, quick, rows_with_seven, same, write_run
from tiny import tiny_model, tiny_tokens

import rllc
import rllc.sweep.pools
import rllc.sweep.workers
from rllc.sweep.request import Request
from rllc.sweep.track import run as run_request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork and no SIGKILL")


def child(action: Callable[[], object]) -> int:
    """Run in a copy of this process, which has imported everything.

    Returns:
        The copy's id. It ends with 0, or with 1 and a message.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        faulthandler.dump_traceback_later(240, exit=True)  # a copy that hangs says where
        try:
            action()
            status = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; gives its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def as_child(action: Callable[[], object]) -> None:
    assert ended(child(action)) == 0, "see the message of the child above"


# Killed.


def written_at(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "cells").glob("*.npz")}


@pytest.mark.slow
def test_sigkill_of_the_driver_at_random_moments(run, unbroken_store, tmp_path) -> None:
    begin = time.perf_counter()
    as_child(lambda: rllc.track(run, DATA, rllc.heads, store=tmp_path / "timed", **QUICK))
    duration = time.perf_counter() - begin
    dice = random.Random(0)
    num_finished = []
    for i in range(8):
        store = tmp_path / str(i)
        pid = child(lambda store=store: rllc.track(run, DATA, rllc.heads, store=store, **QUICK))
        time.sleep(dice.uniform(0.02, 1.0) * duration)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        finished = written_at(store)
        num_finished.append(len(finished))
        rllc.track(run, DATA, rllc.heads, store=store, **QUICK)
        assert rllc.Sweep.open(store).missing == ()
        assert cell_files(store) == cell_files(unbroken_store)
        in_the_end = written_at(store)
        assert {name: in_the_end[name] for name in finished} == finished  # none was written again
        assert not (store / "damaged").exists()
    assert len(set(num_finished)) > 2, num_finished  # the moments differed


def beginning_with(token_id: int) -> rllc.Tokens:
    """Rows on which a :class:`Killer` of this id strikes; the others have no id above 6."""
    rows = DATA["a"].rows.clamp(max=6).clone()
    rows[:, 0] = token_id
    return rllc.Tokens(rows)


def harmless() -> rllc.Tokens:
    return rllc.Tokens(DATA["a"].rows.clamp(max=6))


@pytest.mark.slow
def test_sigkill_of_a_worker_in_processes_and_a_cell_that_always_kills_its_worker(tmp_path) -> None:
    """One cell kills its worker once, another every time; in one sweep, for starting is slow."""
    run = write_run(tmp_path / "run", steps=(0,))
    data = {"well": harmless(), "once": beginning_with(10), "always": beginning_with(9)}
    loss = Both(Killer(str(tmp_path), 9, 100), Killer(str(tmp_path), 10, 1))
    store = tmp_path / "store"
    message = r"1 of 3 cells failed: step 0, data 'always', weights 0:1: its worker died, 3 times"
    with pytest.warns(UserWarning, match=message):
        trajectory = rllc.track(run, data, "0:1", loss=loss, store=store, **quick(2))
    assert len(list(tmp_path.glob("death9-*"))) == 3
    assert len(list(tmp_path.glob("death10-*"))) == 1
    assert list(rllc.Sweep.open(store).failed) == [(0, "0:1", "always")]
    del data["always"]
    expected = rllc.track(run, data, "0:1", loss=loss, **QUICK)  # by now, "once" kills no more
    assert np.array_equal(trajectory.value[:, :2], expected.value)


def sweep_with_one_death(run: Path, folder: Path, executor) -> None:
    """On one of two data sets a worker is killed once; in the end all is as if it had not been."""
    data = {"well": harmless(), "deadly": beginning_with(10)}
    loss, store = Killer(str(folder), 10, 1), folder / "store"
    trajectory = rllc.track(run, data, "0:1", loss=loss, store=store, **quick(executor))
    assert (folder / "death10-0").exists()
    assert rllc.Sweep.open(store).failed == {}
    assert same(trajectory, rllc.track(run, data, "0:1", loss=loss, **QUICK))


@pytest.mark.slow
def test_sigkill_of_a_worker_of_loky(run, tmp_path) -> None:
    loky = pytest.importorskip("loky")
    try:
        sweep_with_one_death(run, tmp_path, loky.get_reusable_executor(max_workers=2))
    finally:
        loky.get_reusable_executor().shutdown(kill_workers=True)


@pytest.mark.slow
def test_sigkill_of_a_worker_of_dask(run, tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:
        sweep_with_one_death(run, tmp_path, client.get_executor())


# The disk.


def test_a_full_disk_leaves_finished_cells_whole_and_no_torn_file(
    run, unbroken_store, tmp_path
) -> None:
    """No file may be larger than the plan, which is smaller than a cell with many draws."""
    rllc.track(rllc.checkpoints(run)[:1], DATA, rllc.heads, store=tmp_path, **QUICK)
    finished = cell_files(tmp_path)

    def track_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        message = r"writing cell \w+ in `store` = .* failed .*File too large.*Make room"
        many = quick(num_chains=25, num_draws=40)
        with pytest.raises(rllc.FileError, match=message):
            rllc.track(run, DATA, "0:1", store=tmp_path, **many)

    as_child(track_on_a_full_disk)
    assert cell_files(tmp_path) == finished
    assert not list(tmp_path.rglob("*.tmp"))
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    assert rllc.Sweep.open(tmp_path).missing == ()
    assert cell_files(tmp_path) == cell_files(unbroken_store)


def test_a_store_that_cannot_be_written_is_found_before_any_chain_runs(
    run, tmp_path, computed
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(rllc.FileError, match="writing what this call asks for in `store`"):
        rllc.track(run, DATA, rllc.heads, store=tmp_path / "file" / "store", **QUICK)
    assert computed == []


def test_a_store_without_rights_is_found_before_any_chain_runs(run, monkeypatch) -> None:
    def refuse(*args, **options):
        raise AssertionError("a chain was run")

    monkeypatch.setattr(rllc.sweep.workers, "sample", refuse)
    # Not in tmp_path, which other users cannot enter.
    with tempfile.TemporaryDirectory() as read_only:
        os.chmod(read_only, 0o555)

        def as_somebody_else() -> None:
            request = Request.of(
                rllc.checkpoints(run),
                DATA,
                rllc.heads,
                loss=None,
                sampler=None,
                store=rllc.sweep.Store(read_only),
                **QUICK,
            ).identified()
            if os.geteuid() == 0:  # root may write anywhere
                os.setegid(65534)
                os.seteuid(65534)
            message = r"failed \(.*Permission denied.*change its rights"
            with pytest.raises(rllc.FileError, match=message):
                run_request(request)

        as_child(as_somebody_else)
        assert list(Path(read_only).iterdir()) == []
        os.chmod(read_only, 0o755)


def test_damaged_cells_are_set_aside_and_computed_again(run, unbroken_store, tmp_path) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    flipped, cut, *_ = sorted((tmp_path / "cells").glob("*.npz"))
    whole = bytearray(flipped.read_bytes())
    whole[len(whole) // 3] ^= 4
    flipped.write_bytes(whole)
    cut.write_bytes(cut.read_bytes()[:-1])
    trajectory = rllc.Sweep.open(tmp_path).trajectory()
    assert int(np.isnan(trajectory.value).sum()) == 4  # two cells of two heads
    statuses = [status for row in trajectory.status for status in row]
    assert sum("damaged: reading" in status for status in statuses) == 4
    message = "2 cell files in .* were damaged; they are in damaged/ and computed again"
    with pytest.warns(UserWarning, match=message):
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    assert cell_files(tmp_path) == cell_files(unbroken_store)
    damaged = {path.name for path in (tmp_path / "damaged").iterdir()}
    assert damaged == {flipped.name, cut.name}


def test_two_sweeps_on_one_folder_at_once(run, unbroken_store, tmp_path) -> None:
    def track() -> None:
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)

    children = [child(track), child(track)]
    assert [ended(pid) for pid in children] == [0, 0]
    assert cell_files(tmp_path) == cell_files(unbroken_store)
    assert len(list((tmp_path / "sweeps").iterdir())) == 1
    assert not list(tmp_path.rglob("*.tmp"))


# Checkpoints.


def test_a_checkpoint_that_was_replaced_is_named(tmp_path) -> None:
    run, store = write_run(tmp_path / "run"), tmp_path / "store"
    rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
    tiny_model(99, **SMALL).save_pretrained(run / "step0000010")
    message = r"checkpoint of step 10, SHA-256: \w{8}… there, \w{8}… now"
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)


def test_a_checkpoint_that_is_replaced_while_a_sweep_runs_is_not_used(
    tmp_path, monkeypatch
) -> None:
    run, store = write_run(tmp_path / "run"), tmp_path / "store"

    def sample_after_a_replacement(*args, **options):
        tiny_model(99, **SMALL).save_pretrained(run / "step0000010")
        return rllc.sample(*args, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", sample_after_a_replacement)
    message = "1 of 2 cells failed: step 10, .* it was replaced since the sweep began"
    with pytest.warns(UserWarning, match=message):
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
    assert list(rllc.Sweep.open(store).failed) == [(10, "0:1", "tokens")]


@pytest.mark.slow
def test_one_broken_and_one_missing_checkpoint_of_twenty(tmp_path) -> None:
    run = write_run(tmp_path / "run", steps=range(20))
    broken = tiny_model(3, **SMALL)
    broken.blocks[0].attn.W_Q.data[0, 0, 0] = torch.nan
    broken.save_pretrained(run / "step0000003")
    checkpoints = rllc.checkpoints(run)
    # The first one is that at which a sweep would look for heads.
    (run / "step0000000" / "model.safetensors").unlink()
    store = tmp_path / "store"
    with pytest.warns(UserWarning, match="2 of 20 cells failed"):
        trajectory = rllc.track(checkpoints, DATA["a"], "0:1", store=store, **quick(num_draws=4))
    reasons = {step: reason for (step, *_), reason in rllc.Sweep.open(store).failed.items()}
    assert set(reasons) == {0, 3}
    assert "no weights" in reasons[0]
    assert "not finite" in reasons[3]
    assert int(np.isfinite(trajectory.value).sum()) == 18


# Interrupted.


def test_an_interrupt_keeps_what_is_finished(run, tmp_path) -> None:
    random_state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        rllc.track(run, rows_with_seven(), rllc.heads, loss=interrupted, store=tmp_path, **QUICK)
    assert torch.equal(torch.get_rng_state(), random_state)
    sweep = rllc.Sweep.open(tmp_path)
    assert len(sweep.missing) == 2 * 4 * 2 - 4
    assert sweep.failed == {}  # it was not the cell's fault
    assert np.isfinite(sweep.trajectory().value).sum() == 4


# Flat.


@pytest.mark.slow
def test_memory_stays_flat_over_two_hundred_checkpoints(tmp_path) -> None:
    tiny_model(0, **SMALL).save_pretrained(tmp_path / "one" / "step0000000")
    source = str(tmp_path / "one")
    checkpoints = [rllc.models.Checkpoint(step, source, file="step0000000") for step in range(200)]
    data = {"a": tiny_tokens(2000, seed=1)}
    work = rllc.sweep.pools.work

    def measure() -> None:
        pages: list[int] = []

        def work_and_measure(*args):
            reason = work(*args)
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
            return reason

        rllc.sweep.pools.work = work_and_measure
        rllc.track(checkpoints, data, "0:1", store=tmp_path / "store", **quick(num_draws=4))
        assert len(pages) == 200
        early, late = pages[9] * 4 // 1024, pages[-1] * 4 // 1024
        print(f"\nresident: {early} MB after 10 checkpoints, {late} MB after 200")
        assert pages[-1] < 1.05 * pages[9]

    as_child(measure)
