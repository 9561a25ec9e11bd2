"""What a sweep would take: counted against the sweep itself, and nothing computed or written."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sweeps import DATA, QUICK, quick
from tiny import QUIET, SHORT, tiny_model, tiny_tokens

import rllc


def test_it_counts_and_computes_nothing(run, tmp_path, computed) -> None:
    call = {"data": DATA, "weights": rllc.heads, "store": tmp_path / "s"}
    cost = rllc.sweep.sweep_cost(run, **call, **QUICK)
    assert not (tmp_path / "s").exists()
    first, steps, memory, disk, hours = str(cost).splitlines()
    assert first == "2 checkpoints × 2 data sets × 4 weights: 8 cells, 0 finished, 8 to compute"
    assert steps.startswith("40 steps, of each chain: 160; ")
    assert "GiB of memory a worker" in memory
    assert disk.startswith("about ")
    assert disk.endswith("GiB on disk for states")
    assert hours.startswith("about ")
    assert hours.endswith((" s, on 1 worker", " min, on 1 worker"))
    rllc.track(rllc.checkpoints(run)[:1], **call, **QUICK)
    rest = rllc.sweep.sweep_cost(run, **call, **quick(3))
    assert (rest.num_cells, rest.num_finished, rest.num_missing, rest.num_steps) == (8, 4, 4, 20)
    assert rest.num_workers == 3
    assert str(rest).endswith("on 3 workers")
    assert rest.hours == pytest.approx(rest.seconds / 3 / 3600)
    rllc.track(run, **call, **QUICK)
    done = str(rllc.sweep.sweep_cost(run, **call, **QUICK))
    assert done.endswith("8 cells, 8 finished, 0 to compute")
    with pytest.raises(rllc.InputError, match="seed: 0 there, 1 now"):
        rllc.sweep.sweep_cost(run, **call, **quick(seed=1))
    assert len(computed) == 8


def test_without_a_store_it_looks_into_no_folder_that_somebody_may_have_made(
    run, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rllc.track(run, DATA["a"], "0:0", store=tmp_path / "rllc-no-store", **QUICK)
    cost = rllc.sweep.sweep_cost(run, DATA["a"], "0:0", **QUICK)
    assert (cost.num_finished, cost.num_missing) == (0, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["rllc-no-store"]


@pytest.mark.slow
def test_second_looks_are_counted(run) -> None:
    """2 chains × 5 steps; and with probes 2 chains × 4 of them, and 13 for the curvature."""
    without, with_probes = (
        rllc.sweep.sweep_cost(run, DATA["a"], "0:0", **quick(num_probes=n)).flops for n in (0, 4)
    )
    assert with_probes / without == pytest.approx((10 + 2 * 4 + 13) / 10, rel=0.05)


def test_flops_are_proportional_to_the_steps(run) -> None:
    few, many = (
        rllc.sweep.sweep_cost(run, DATA["a"], "0:0", **quick(num_draws=n)).flops for n in (5, 50)
    )
    assert many == pytest.approx(10 * few, rel=0.05)
    assert few > 0


def kept_bytes(folder: Path, prefixes: tuple[str, ...]) -> int:
    total = 0
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            total += sum(arrays[name].nbytes for name in arrays if name.startswith(prefixes))
    return total


@pytest.mark.slow
def test_the_size_on_disk_is_that_of_the_files(run, tmp_path) -> None:
    observe = {
        "losses": rllc.observables.minibatch_losses(),
        "moments": rllc.losses_on(DATA["b"], keep="moments"),
    }
    store = rllc.sweep.Store(tmp_path, observe=observe)
    first = rllc.checkpoints(run)[:1]
    cost = rllc.sweep.sweep_cost(first, DATA, "0:1", store=store, **QUICK)
    rllc.track(first, DATA, "0:1", store=store, **QUICK)
    expected = {"states": kept_bytes(tmp_path / "states", ("states",))}
    for name in observe:
        expected[f"observed {name!r}"] = kept_bytes(tmp_path / "observed" / name, (name,))
    assert cost.disk == pytest.approx(expected, rel=0.05)
    nothing_kept = replace(store, keep_states=False, observe={})
    more = rllc.sweep.sweep_cost(first, DATA, "0:1", store=nothing_kept, **quick(num_draws=6))
    assert more.disk == {}
    assert "on disk" not in str(more)


def test_the_cost_of_one_estimate_before_it_is_paid(computed) -> None:
    model = tiny_model()
    call = {"sampling": SHORT, "compute": QUIET}
    data = {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
    cost = rllc.cost(model, data, rllc.heads(model), **call)
    # 6 heads × 2 data sets × 2 chains × 5 draws
    assert cost.num_chain_steps == 120
    assert cost.num_missing > 0
    assert cost.flops > 0
    assert str(cost).startswith("1 checkpoint × 2 data sets × 6 weights: ")
    assert not computed
    with pytest.raises(
        rllc.InputError, match=r"`model` must be a torch.nn.Module; rllc.sweep.sweep_cost"
    ):
        rllc.cost("runs/seed0", data, **call)
