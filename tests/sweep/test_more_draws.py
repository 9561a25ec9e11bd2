"""More draws: chains of finished cells go on, and are those of one longer run, bit for bit."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_sweeps import DATA, quick, same

import rllc

pytestmark = pytest.mark.usefixtures("few_looks")
OBSERVE = {"losses": rllc.observables.minibatch_losses(), "rows": rllc.observables.minibatch_rows()}


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of cells and of all that is kept beside them, by name."""
    kept = {}
    for name in ("cells", "states", "observed"):
        for path in folder.glob(f"{name}/**/*.npz"):
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        (rllc.sgld(), {}),
        pytest.param(
            rllc.samplers.rmsprop_sgld(num_adaptation_steps=6),
            {"num_burnin_steps": 2, "num_chains": 3},
            marks=pytest.mark.slow,
        ),
        (rllc.samplers.sghmc(lr=1e-4), {"control_variate": True, "num_probes": 3}),
        pytest.param(
            rllc.sgld(),
            {"start": "gaussian", "num_burnin_steps": 1, "runs_per_pass": 1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_more_draws_leave_the_store_that_one_longer_run_leaves(
    run, tmp_path, drawn, sampler, changes
) -> None:
    """Byte for byte, states and what is observed included, in two steps."""
    first = rllc.checkpoints(run)[:1]

    def track(folder: Path, num_draws: int) -> rllc.Trajectory:
        store = rllc.sweep.Store(folder, observe=OBSERVE)
        settings = quick(num_draws=num_draws, **changes)
        return rllc.track(first, DATA["a"], rllc.heads, sampler=sampler, store=store, **settings)

    went_on, unbroken = tmp_path / "went on", tmp_path / "unbroken"
    for num_draws in (2, 4, 8):
        track(went_on, num_draws)
    assert drawn == [(0, 2), (0, 2), (2, 4), (2, 4), (4, 8), (4, 8)]
    expected = track(unbroken, 8)
    kept, kept_unbroken = files(went_on), files(unbroken)
    assert {name: kept.get(name) for name in kept_unbroken} == kept_unbroken
    # The states of fewer draws are gone.
    states = {name for name in kept if name.startswith("states/")}
    assert states == {name for name in kept_unbroken if name.startswith("states/")}
    assert len(states) == 2
    assert same(rllc.Sweep.open(went_on).trajectory(), expected)
    assert np.isfinite(expected.value).all()


def test_moments_of_more_draws_are_those_of_one_longer_run(run, tmp_path, drawn) -> None:
    """To the last digits: a mean of means is not the same bits as one mean."""
    first = rllc.checkpoints(run)[:1]
    observe = {"b": rllc.losses_on(DATA["b"], keep="moments")}

    def track(folder: Path, num_draws: int) -> rllc.Draws:
        store = rllc.sweep.Store(folder, observe=observe)
        rllc.track(first, DATA["a"], "0:1", store=store, **quick(num_draws=num_draws))
        return rllc.Sweep.open(folder).draws(0, "0:1")

    track(tmp_path / "went on", 4)
    went_on, unbroken = track(tmp_path / "went on", 9), track(tmp_path / "unbroken", 9)
    assert drawn == [(0, 4), (4, 9), (0, 9)]
    for name in ("b", "b.covariance"):
        expected = unbroken.observed[name]
        np.testing.assert_allclose(went_on.observed[name], expected, rtol=1e-9, atol=1e-12)


def test_more_draws_and_more_chains_and_more_heads_at_once(run, tmp_path, drawn, computed) -> None:
    first = rllc.checkpoints(run)[:1]
    more = quick(num_draws=9, num_chains=5, runs_per_pass=1)
    rllc.track(first, DATA["a"], ["1:0"], store=tmp_path, **quick(num_draws=4, runs_per_pass=1))
    computed.clear()
    grown = rllc.track(first, DATA["a"], ["1:1", "1:0"], store=tmp_path, **more)
    new, going_on, new_chains = computed
    assert (new, going_on) == (("tokens", 0, "1:1"), ("tokens", 0, "1:0"))
    assert new_chains == ("tokens", 2, "1:0")
    assert same(grown, rllc.track(first, DATA["a"], ["1:1", "1:0"], **more))


def test_a_diverged_chain_stays_diverged_however_many_draws_follow(run, tmp_path, drawn) -> None:
    def track(num_draws: int) -> rllc.Trajectory:
        sampler = rllc.sgld(lr=3.0)
        settings = quick(num_draws=num_draws)
        return rllc.track(run, DATA["a"], "0:1", sampler=sampler, store=tmp_path, **settings)

    few, more = track(4), track(8)
    assert drawn == [(0, 4), (0, 4), (4, 8), (4, 8)]
    assert more.status == few.status
    assert more.status[0][0].startswith("diverged: chain 0 at step ")
    assert np.isnan(more.value).all()


def test_part_of_a_cell_goes_on_alone_and_its_states_stay_for_the_rest(
    run, tmp_path, drawn
) -> None:
    first, both = rllc.checkpoints(run)[:1], ["1:0", "1:1"]
    few, more = (quick(num_draws=n, runs_per_pass=1) for n in (4, 8))
    rllc.track(first, DATA["a"], both, store=tmp_path, **few)
    part = rllc.track(first, DATA["a"], "1:1", store=tmp_path, **more)
    rest = rllc.track(first, DATA["a"], both, store=tmp_path, **more)
    assert drawn == [(0, 4), (4, 8), (4, 8)]
    expected = rllc.track(first, DATA["a"], both, **more)
    assert same(rest, expected)
    assert part.value[0, 0] == expected.value[0, 1]


def damage_states(folder: Path, kind: str) -> None:
    one, other = sorted((folder / "states").glob("*.npz"))
    whole = one.read_bytes()
    middle = len(whole) // 2
    cell = folder / "cells" / one.name
    if kind == "gone":
        one.unlink()
    elif kind == "cut":
        one.write_bytes(whole[:-7])
    elif kind == "flipped":
        one.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif kind == "of another cell":
        one.write_bytes(other.read_bytes())
    elif kind == "cell cut":
        cell.write_bytes(cell.read_bytes()[:-7])


@pytest.mark.parametrize(
    "kind",
    [
        "none kept",
        pytest.param("gone", marks=pytest.mark.slow),
        pytest.param("cut", marks=pytest.mark.slow),
        "flipped",
        "of another cell",
        pytest.param("cell cut", marks=pytest.mark.slow),
    ],
)
def test_without_whole_states_a_cell_is_computed_from_the_first_draw(
    run, tmp_path, drawn, kind
) -> None:
    none_kept = kind == "none kept"
    few_store = rllc.sweep.Store(tmp_path, keep_states=not none_kept)
    rllc.track(run, DATA["a"], "0:1", store=few_store, **quick(num_draws=4))
    if none_kept:
        assert not (tmp_path / "states").exists()
    else:
        damage_states(tmp_path, kind)
    drawn.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        more = rllc.track(run, DATA["a"], "0:1", store=tmp_path, **quick(num_draws=8))
    assert sorted(drawn) == ([(0, 8), (0, 8)] if none_kept else [(0, 8), (4, 8)])
    messages = [str(warning.message) for warning in caught]
    if kind in ("none kept", "gone"):
        assert messages == []
    else:
        (message,) = messages
        assert "computed from the first draw on: reading" in message
    assert same(more, rllc.track(run, DATA["a"], "0:1", **quick(num_draws=8)))


@pytest.mark.slow
@pytest.mark.parametrize(("share", "counts"), [(0.9, (60, 80)), (1e9, (40, 80))])
def test_more_draws_with_target_se_are_of_those_that_have_not_reached_it(
    run, tmp_path, drawn, share, counts
) -> None:
    first, both = rllc.checkpoints(run)[:1], ["0:0", "0:1"]
    errors = rllc.track(first, DATA["a"], both, **quick(num_draws=60)).standard_error
    drawn.clear()
    few, more = (quick(num_draws=n, target_se=share * float(errors.min())) for n in (60, 80))
    rllc.track(first, DATA["a"], both, store=tmp_path, **few)
    grown = rllc.track(first, DATA["a"], both, store=tmp_path, **more)
    assert drawn == [(0, 60), counts]
    assert same(grown, rllc.track(first, DATA["a"], both, **more))


@pytest.mark.slow
def test_draws_go_on_in_other_workers_and_the_cost_counts_what_is_left(
    run, tmp_path, drawn
) -> None:
    rllc.track(run, DATA["a"], "0:1", store=tmp_path, **quick(num_draws=4))
    cost = rllc.sweep.sweep_cost(run, DATA["a"], "0:1", store=tmp_path, **quick(num_draws=10))
    assert (cost.num_steps, cost.num_chain_steps) == (12, 24)  # 6 of 2 cells, in 2 chains
    with ThreadPoolExecutor(2) as threads:
        settings = quick(threads, num_draws=10)
        grown = rllc.track(run, DATA["a"], "0:1", store=tmp_path, **settings)
    assert drawn == [(0, 4), (0, 4), (4, 10), (4, 10)]
    assert same(grown, rllc.track(run, DATA["a"], "0:1", **quick(num_draws=10)))
