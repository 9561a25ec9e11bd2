"""What goes wrong in long sweeps, done to short ones: killed drivers and workers, full disks, damaged and missing files."""

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
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import Both, Killer, Slow, interrupted
from test_track import DATA, QUICK, SMALL, same, write_run
from tiny import SHORT, tiny_model, tiny_tokens

import rllc
import rllc.sweep.workers
from rllc.sweep.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork and no SIGKILL")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory) -> Path:
    """The store of a sweep in which nothing went wrong: eight cells."""
    folder = tmp_path_factory.mktemp("unbroken")
    rllc.track(run, DATA, rllc.heads, store=folder, **QUICK)
    return folder


def cells(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.npz")}


def child(action: Callable[[], object]) -> int:
    """Run in a copy of this process, which has imported everything; gives its id. It ends with 0, or 1 and a message."""
    sys.stdout.flush(), sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks with threads about
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
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def as_child(action: Callable[[], object]) -> None:
    assert ended(child(action)) == 0, "see the message of the child above"


# Killed.


@pytest.mark.slow
def test_sigkill_of_the_driver_at_twenty_random_moments(run, unbroken, tmp_path) -> None:
    begin = time.perf_counter()
    as_child(lambda: rllc.track(run, DATA, rllc.heads, store=tmp_path / "timed", **QUICK))
    lasts, dice = time.perf_counter() - begin, random.Random(0)
    met = []
    for i in range(20):
        store = tmp_path / str(i)
        pid = child(lambda store=store: rllc.track(run, DATA, rllc.heads, store=store, **QUICK))
        time.sleep(dice.uniform(0.02, 1.0) * lasts)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        before = {path.name: path.stat().st_mtime_ns for path in (store / "cells").glob("*.npz")}
        met.append(len(before))
        trajectory = rllc.track(run, DATA, rllc.heads, store=store, **QUICK)
        assert trajectory.missing == ()
        assert cells(store) == cells(unbroken)
        after = {path.name: path.stat().st_mtime_ns for path in (store / "cells").glob("*.npz")}
        assert {name: after[name] for name in before} == before  # none was written again
        assert not (store / "damaged").exists()
    assert len(set(met)) > 2, met  # the moments differed


@pytest.mark.slow
def test_sigkill_of_a_worker_in_processes_and_a_cell_that_always_kills_its_worker(tmp_path) -> None:
    """One cell kills its worker once, another every time; all in one sweep, because processes start slowly."""
    run = write_run(tmp_path / "run", steps=(0,))
    rows = DATA["a"].rows.clamp(max=6)
    always, once = rows.clone(), rows.clone()
    always[:, 0], once[:, 0] = 9, 10
    data = {"well": rllc.Tokens(rows), "once": rllc.Tokens(once), "always": rllc.Tokens(always)}
    loss = Both(Killer(str(tmp_path), 9, 100), Killer(str(tmp_path), 10, 1))
    call = {"checkpoints": run, "weights": "0:1", "loss": loss} | QUICK
    with pytest.warns(
        UserWarning,
        match=r"1 of 3 cells failed: step 0, data 'always', weights 0:1: its worker died, 3 times",
    ):
        found = rllc.track(data=data, store=tmp_path / "store", executor=2, **call)
    assert len(list(tmp_path.glob("death9-*"))) == 3
    assert len(list(tmp_path.glob("death10-*"))) == 1
    assert list(found.failed) == [(0, "0:1", "always")]
    expected = rllc.track(
        data={k: data[k] for k in ("well", "once")}, **call
    )  # by now, "once" kills no more
    assert np.array_equal(found.value[:, :2], expected.value)


@pytest.mark.slow
def test_sigkill_of_a_worker_of_loky(run, unbroken, tmp_path) -> None:
    loky = pytest.importorskip("loky")
    data = _deadly()
    loss = Killer(str(tmp_path), 10, 1)
    executor = loky.get_reusable_executor(max_workers=2)
    try:
        found = rllc.track(
            run, data, "0:1", loss=loss, store=tmp_path / "store", executor=executor, **QUICK
        )
    finally:
        loky.get_reusable_executor().shutdown(kill_workers=True)
    assert (tmp_path / "death10-0").exists()
    assert found.failed == {}
    assert same(found, rllc.track(run, data, "0:1", loss=loss, **QUICK))


@pytest.mark.slow
def test_sigkill_of_a_worker_of_dask(run, tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    data = _deadly()
    loss = Killer(str(tmp_path), 10, 1)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:
        executor = client.get_executor()
        found = rllc.track(
            run, data, "0:1", loss=loss, store=tmp_path / "store", executor=executor, **QUICK
        )
    assert (tmp_path / "death10-0").exists()
    assert found.failed == {}
    assert same(found, rllc.track(run, data, "0:1", loss=loss, **QUICK))


def _deadly() -> dict[str, rllc.Tokens]:
    """Two data sets, on one of which :class:`Killer` of id 10 strikes."""
    rows = DATA["a"].rows.clamp(max=6)
    deadly = rows.clone()
    deadly[:, 0] = 10
    return {"well": rllc.Tokens(rows), "deadly": rllc.Tokens(deadly)}


# The disk.


def test_a_full_disk_leaves_finished_cells_whole_and_no_torn_file(run, unbroken, tmp_path) -> None:
    """No file may be larger than the manifest, which is smaller than a cell with many draws."""
    rllc.track(rllc.checkpoints(run)[:1], DATA, rllc.heads, store=tmp_path, **QUICK)
    before = cells(tmp_path)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        sampling = replace(QUICK["sampling"], num_draws=500)
        with pytest.raises(
            rllc.FileError,
            match=r"writing cell \w+ in `store` = .* failed .*File too large.*Make room",
        ):
            rllc.track(run, DATA, "0:1", store=tmp_path, sampling=sampling, progress=False)

    as_child(full)
    assert cells(tmp_path) == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK).missing == ()
    assert cells(tmp_path) == cells(unbroken)


def test_a_store_that_cannot_be_written_is_found_before_any_chain_runs(
    run, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(
        rllc.sweep.workers, "sample", lambda *a, **k: pytest.fail("a chain was run")
    )
    (tmp_path / "file").touch()
    with pytest.raises(rllc.FileError, match="writing what this call asks for in `store`"):
        rllc.track(run, DATA, rllc.heads, store=tmp_path / "file" / "store", **QUICK)
    with (
        tempfile.TemporaryDirectory() as read_only
    ):  # not in tmp_path, which other users cannot enter
        os.chmod(read_only, 0o555)

        def as_somebody_else() -> None:
            found = rllc.track.__globals__["_Call"].of(
                run, DATA, rllc.heads, None, None, QUICK["sampling"]
            )
            if os.geteuid() == 0:  # root may write anywhere
                os.setegid(65534), os.seteuid(65534)
            with pytest.raises(
                rllc.FileError, match=r"failed \(.*Permission denied.*change its rights"
            ):
                rllc.track.__globals__["_run"](found, Store(read_only), None, False)

        as_child(as_somebody_else)
        assert list(Path(read_only).iterdir()) == []
        os.chmod(read_only, 0o755)


def test_damaged_cells_are_set_aside_and_computed_again(run, unbroken, tmp_path) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    flipped, cut, *_ = sorted((tmp_path / "cells").glob("*.npz"))
    whole = bytearray(flipped.read_bytes())
    whole[len(whole) // 3] ^= 4
    flipped.write_bytes(whole)
    cut.write_bytes(cut.read_bytes()[:-1])
    opened = rllc.Trajectory.open(tmp_path)
    assert int(np.isnan(opened.value).sum()) == 4  # two cells of two heads
    assert sum("damaged: reading" in status for row in opened.status for status in row) == 4
    with pytest.warns(
        UserWarning,
        match="2 cell files in .* were damaged; they are in damaged/ and computed again",
    ):
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    assert cells(tmp_path) == cells(unbroken)
    assert {path.name for path in (tmp_path / "damaged").iterdir()} == {flipped.name, cut.name}


def test_two_sweeps_on_one_folder_at_once(run, unbroken, tmp_path) -> None:
    each = [
        child(lambda: rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)) for _ in range(2)
    ]
    assert [ended(pid) for pid in each] == [0, 0]
    assert cells(tmp_path) == cells(unbroken)
    assert len(list((tmp_path / "sweeps").iterdir())) == 1
    assert not list(tmp_path.rglob("*.tmp"))


# Checkpoints.


def test_a_checkpoint_that_was_replaced_is_named(tmp_path) -> None:
    run = write_run(tmp_path / "run")
    rllc.track(run, DATA["a"], "0:1", store=tmp_path / "store", **QUICK)
    tiny_model(99, **SMALL).save_pretrained(run / "step0000010")
    with pytest.raises(
        rllc.InputError, match=r"checkpoint of step 10, SHA-256: \w{8}… there, \w{8}… now"
    ):
        rllc.track(run, DATA["a"], "0:1", store=tmp_path / "store", **QUICK)


def test_a_checkpoint_that_is_replaced_while_a_sweep_runs_is_not_used(
    tmp_path, monkeypatch
) -> None:
    run = write_run(tmp_path / "run")

    def then_replaced(*args, **options):
        tiny_model(99, **SMALL).save_pretrained(run / "step0000010")
        return rllc.sample(*args, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", then_replaced)
    with pytest.warns(
        UserWarning, match="1 of 2 cells failed: step 10, .* it was replaced since the sweep began"
    ):
        found = rllc.track(run, DATA["a"], "0:1", store=tmp_path / "store", **QUICK)
    assert list(found.failed) == [(10, "0:1", "tokens")]


def test_one_broken_and_one_missing_checkpoint_of_twenty(tmp_path) -> None:
    run = write_run(tmp_path, steps=range(20))
    broken = tiny_model(3, **SMALL)
    broken.blocks[0].attn.W_Q.data[0, 0, 0] = torch.nan
    broken.save_pretrained(run / "step0000003")
    found = rllc.checkpoints(run)
    (
        run / "step0000000" / "model.safetensors"
    ).unlink()  # the first one, at which a sweep would look for heads
    sampling = replace(SHORT, num_draws=4, num_probes=0)
    with pytest.warns(UserWarning, match="2 of 20 cells failed"):
        trajectory = rllc.track(found, DATA["a"], "0:1", sampling=sampling, progress=False)
    reasons = {key[0]: reason for key, reason in trajectory.failed.items()}
    assert "no weights" in reasons.pop(0)
    assert "not finite" in reasons.pop(3)
    assert reasons == {}
    assert int(np.isfinite(trajectory.value).sum()) == 18


# Interrupted.


def test_an_interrupt_keeps_what_is_finished(run, tmp_path) -> None:
    seven = DATA["b"].rows.clone()
    seven[:, 0] = 7
    data = {"a": rllc.Tokens(DATA["a"].rows.clamp(max=6)), "seven": rllc.Tokens(seven)}
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        rllc.track(run, data, rllc.heads, loss=interrupted, store=tmp_path, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    opened = rllc.Trajectory.open(tmp_path)
    assert len(opened.missing) == 2 * 4 * 2 - 4
    assert opened.failed == {}  # it was not the cell's fault
    assert np.isfinite(opened.value).sum() == 4


# Flat.


@pytest.mark.slow
def test_memory_stays_flat_over_two_hundred_checkpoints(tmp_path) -> None:
    model = tiny_model(0, **SMALL)
    model.save_pretrained(tmp_path / "one" / "step0000000")
    found = [
        rllc.Checkpoint(step, str(tmp_path / "one"), file="step0000000") for step in range(200)
    ]
    rows = {"a": tiny_tokens(2000, seed=1)}

    def measured() -> None:
        sizes: list[int] = []

        def work(*args, inner=rllc.sweep.workers.work):
            reason = inner(*args)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
            return reason

        rllc.sweep.workers.work = work
        sampling = replace(SHORT, num_draws=4, num_probes=0)
        rllc.track(found, rows, "0:1", sampling=sampling, store=tmp_path / "store", progress=False)
        assert len(sizes) == 200
        print(
            f"\nresident: {sizes[9] * 4 // 1024} MB after 10 checkpoints, {sizes[-1] * 4 // 1024} MB after 200"
        )
        assert sizes[-1] < 1.05 * sizes[9]

    as_child(measured)


@pytest.mark.slow
def test_the_driver_takes_little_of_the_time(tmp_path) -> None:
    """Cells of about a second, spent waiting: the rest is the driver's, loading, planning, checks and files included.

    What it computes is held to 2 %, as this process's own time, which other processes do not change; the clock on the
    wall, which also counts how long others keep the processor and the disk busy, only to 10 %.
    """
    run = write_run(tmp_path / "run", steps=range(6))
    sampling = replace(SHORT, num_draws=4, num_probes=0)
    call = {
        "checkpoints": run,
        "data": DATA["a"],
        "weights": "0:1",
        "sampling": sampling,
        "progress": False,
    }
    inside: list[tuple[float, float]] = []

    def clocks() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def timed(*args, **options):
        begin = clocks()
        draws = rllc.sample(*args, **options)
        inside.append(tuple(b - a for a, b in zip(begin, clocks(), strict=True)))
        return draws

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rllc.sweep.workers, "sample", timed)
        rllc.track(**call, store=tmp_path / "warm")
        inside.clear()
        begin = clocks()
        rllc.track(**call, loss=Slow(0.08), store=tmp_path / "store")
        wall, own = (b - a for a, b in zip(begin, clocks(), strict=True))
    cells_wall, cells_own = np.sum(inside, axis=0)
    shares = f"computes {(own - cells_own) / cells_wall:.2%}, takes {wall / cells_wall - 1:.2%}"
    print(f"\n6 cells of {cells_wall / 6:.2f} s; driver {shares}")
    assert own - cells_own < 0.02 * cells_wall
    assert wall < 1.1 * cells_wall
