"""Sweeps: the same numbers however they are computed, nothing twice, errors that name the cause."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from faulty import raises
from small_sweeps import (
    DATA,
    QUICK,
    SMALL,
    estimate_alone,
    quick,
    rows_with_seven,
    same,
    write_run,
)
from tiny import tiny_model

import rllc
from rllc.sweep.identity import loss_name
from rllc.sweep.store import Store

# The same numbers.


def without_observed(settings) -> dict[str, object]:
    of_draws = ("observed", "relaxation", "minibatches")
    return {name: value for name, value in settings.items() if name not in of_draws}


def test_a_sweep_is_an_estimate_at_each_checkpoint(run, unbroken) -> None:
    assert unbroken.steps == (0, 10)
    for step in unbroken.steps:
        model = rllc.load(run, step)
        expected = estimate_alone(model, DATA, rllc.heads(model))
        estimate = unbroken.at(step)
        assert (estimate.weights, estimate.data) == (expected.weights, expected.data)
        assert estimate.settings == without_observed(expected.settings)
        # Another company in the pass changes the last bits.
        assert estimate.value == pytest.approx(expected.value, rel=1e-4, abs=1e-4)
        for head in rllc.heads(model):
            one = estimate_alone(model, DATA, head)[head.name, "b"]
            value = estimate[head.name, "b"].value
            assert value == pytest.approx(one.value, rel=1e-4, abs=1e-4)


def test_a_store_changes_no_bit(unbroken_store, unbroken) -> None:
    opened = rllc.Sweep.open(unbroken_store)
    assert same(opened.trajectory(), unbroken)
    assert opened.settings == unbroken.settings
    assert opened.missing == ()
    assert opened.failed == {}


def test_the_model_and_random_states_are_left_alone(run) -> None:
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    rllc.track(run, DATA["a"], "0:1", **QUICK)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


# Nothing twice.


def test_the_same_call_again_computes_nothing(run, unbroken, tmp_path, computed) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    assert len(computed) == 8
    assert same(rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK), unbroken)
    assert len(computed) == 8


def test_more_of_everything_reuses_what_is_there(run, unbroken, tmp_path, computed) -> None:
    first = rllc.checkpoints(run)[:1]
    named = {"tokens": DATA["a"], "b": DATA["b"]}

    def computed_by(checkpoints, data, weights, **options) -> list[tuple[str, ...]]:
        computed.clear()
        computed_by.trajectory = rllc.track(
            checkpoints, data, weights, store=tmp_path, **quick(**options)
        )
        return list(computed)

    assert computed_by(first, DATA["a"], "0:1", num_chains=1) == [("tokens", 0, "0:1")]
    assert computed_by(first, DATA["a"], "0:1") == [("tokens", 1, "0:1")]  # the new chain
    assert computed_by(first, named, "0:1") == [("b", 0, "0:1")]
    assert computed_by(first, named, rllc.heads) == [
        ("tokens", 0, "0:0"),
        ("tokens", 0, "1:0", "1:1"),
        ("b", 0, "0:0"),
        ("b", 0, "1:0", "1:1"),
    ]
    assert len(computed_by(run, named, rllc.heads)) == 4
    extended = computed_by.trajectory
    assert extended.value == pytest.approx(unbroken.value, rel=1e-4, abs=1e-4)
    assert extended.settings["num_chains"] == 2
    # The same chains of the same weights go on.
    assert len(computed_by(run, named, rllc.heads, num_draws=6)) == 11
    opened = rllc.Sweep.open(tmp_path)
    assert opened.missing == ()
    assert computed_by.trajectory.settings["num_draws"] == opened.settings["num_draws"] == 6


@pytest.mark.slow
def test_more_chains_are_those_of_a_larger_call(run, tmp_path) -> None:
    few = quick(runs_per_pass=1)
    more = quick(runs_per_pass=1, num_chains=4)
    rllc.track(run, DATA["a"], "1:0", store=tmp_path, **few)
    grown = rllc.track(run, DATA["a"], "1:0", store=tmp_path, **more)
    assert same(grown, rllc.track(run, DATA["a"], "1:0", **more))


def test_fewer_of_anything_reads_what_is_there(run, unbroken, tmp_path, computed) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    computed.clear()
    last = rllc.checkpoints(run)[1:]
    few = rllc.track(last, {"b": DATA["b"]}, ["1:0"], store=tmp_path, **QUICK)
    assert computed == []
    assert few.value.tolist() == [[unbroken.at(10)["1:0", "b"].value]]
    assert len(rllc.Sweep.open(tmp_path).names) == 8


def test_a_moved_run_and_one_without_its_finished_checkpoints_go_on(tmp_path, computed) -> None:
    store = tmp_path / "store"
    rllc.track(write_run(tmp_path / "here"), DATA["a"], "0:1", store=store, **QUICK)
    moved = tmp_path / "there"
    shutil.move(tmp_path / "here", moved)
    (moved / "step0000010" / "model.safetensors").unlink()
    rllc.track(moved, DATA["a"], "0:1", store=store, **QUICK)
    assert len(computed) == 2
    sweep = rllc.Sweep.open(store)
    assert sweep.missing == ()
    assert sweep.failed == {}


# What cannot be.


def test_a_store_of_something_else_is_refused_by_field(run, tmp_path) -> None:
    def again(data=DATA["a"], weights="0:0", sampling=QUICK["sampling"], **options) -> None:
        arguments = QUICK | {"sampling": sampling} | options
        rllc.track(run, data, weights, store=tmp_path, **arguments)

    again()
    files = sorted(tmp_path.rglob("*"))
    other_weights = rllc.parameters("blocks.1.attn.W_Q").named("0:0")
    other_model = tiny_model(5, **SMALL)
    cases = [
        ({"sampling": quick(seed=1)["sampling"]}, "seed: 0 there, 1 now"),
        ({"sampler": rllc.sgld(lr=2e-3)}, "lr: 0.001 there, 0.002 now"),
        ({"sampler": rllc.samplers.rmsprop_sgld()}, "sampler: 'sgld' there, 'rmsprop_sgld' now"),
        ({"data": DATA["b"]}, "data 'tokens', SHA-256: "),
        ({"weights": other_weights}, "weights '0:0', SHA-256: "),
        ({"loss": raises}, "loss: 'next token' there, 'faulty:raises' now"),
        (
            {"loss": rllc.losses.distillation(other_model)},
            "loss: 'next token' there, 'distillation of ",
        ),
        (
            {"sampling": quick(num_chains=1)["sampling"]},
            r"num_chains: 2 there, 1 now \(it can only grow\)",
        ),
    ]
    for changed, sentence in cases:
        message = "holds a sweep with other settings, checkpoints or data:\n(  .*\n)*  "
        with pytest.raises(rllc.InputError, match=message + sentence):
            again(**changed)
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("more_draws", [False, True])
def test_another_sweep_that_was_announced_a_moment_before_is_seen(
    run, tmp_path, monkeypatch, computed, more_draws
) -> None:
    """Between the first look and the announcement: other settings clash, more draws do not."""
    other = quick(num_draws=9) if more_draws else quick(seed=1)
    seed, num_draws = other["sampling"].seed, other["sampling"].num_draws
    announce = Store.announce

    def announce_after_another(self: Store, plan) -> None:
        settings = {**plan.settings, "seed": seed}
        announce(self, replace(plan, settings=settings, num_draws=num_draws))
        announce(self, plan)

    monkeypatch.setattr(Store, "announce", announce_after_another)
    if more_draws:
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)
        assert len(computed) == 2
        return
    with pytest.raises(rllc.InputError, match="seed: 1 there, 0 now"):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)
    assert computed == []
    monkeypatch.undo()
    rllc.track(run, DATA["a"], "0:0", store=tmp_path, **other)  # the other one alone is left


@pytest.mark.slow
def test_with_target_se_chains_stop_together_so_more_is_another_sweep(run, tmp_path) -> None:
    stopping = {"target_se": 1e9, "num_draws": 40}
    rllc.track(run, DATA["a"], "0:0", store=tmp_path, **quick(**stopping))
    with pytest.raises(rllc.InputError, match="num_chains: 2 there, 3 now"):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **quick(**stopping, num_chains=3))


def test_other_versions_are_warned_of(run, tmp_path, monkeypatch) -> None:
    rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)
    monkeypatch.setattr(rllc, "__version__", "9.9")
    message = r"going on with .* with rllc \S+ -> 9\.9; new cells may differ in their last bits"
    with pytest.warns(UserWarning, match=message):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": []}, "expected at least one checkpoint, got none"),
        (
            {"checkpoints": [rllc.models.Checkpoint(0, "a"), rllc.models.Checkpoint(0, "b")]},
            "a and b are both step 0",
        ),
        (quick(first_chain=2), "`first_chain` must be 0, got 2; with a larger num_chains and"),
        (quick(first_chain=2, target_se=1.0), "got 2; with target_se all chains are run together"),
        (quick(batch_size=99), "12 rows, fewer than a batch of 99"),
        (quick(0), "`executor` must be None, a number of processes, a list of devices .* got 0"),
        (quick("cuda"), "`executor` must be .* got 'cuda'"),
        (quick([]), r"`executor` must be .* got \[\]"),
        (quick(True), "`executor` must be .* got True"),
        ({"store": 3}, r"`store` must be a folder, rllc.sweep.Store\(folder, …\) or None, got int"),
    ],
)
def test_errors_come_before_any_chain(run, tmp_path, computed, changes, message) -> None:
    arguments = {"checkpoints": run, "data": DATA["a"], "weights": "0:0", "store": tmp_path / "s"}
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(**arguments | QUICK | changes)
    assert computed == []


def test_a_cell_that_raises_is_marked_and_the_others_are_done(run, tmp_path) -> None:
    data = rows_with_seven()
    message = r"track: 4 of 8 cells failed: step 0, data 'seven', .* seven is \(and 3 more\)"
    with pytest.warns(UserWarning, match=message):
        trajectory = rllc.track(run, data, rllc.heads, loss=raises, store=tmp_path, **QUICK)
    by_data = trajectory.value.reshape(2, 4, 2)
    assert np.isnan(by_data[..., 1]).all()
    assert np.isfinite(by_data[..., 0]).all()
    reason = "ArithmeticError: seven is"
    assert trajectory.at(0)["0:1", "seven"].status == f"failed: {reason}"
    sweep = rllc.Sweep.open(tmp_path)
    assert sweep.failed[0, "0:1", "seven"] == reason
    assert len(sweep.failed) == 8
    with pytest.raises(rllc.InputError, match=rf"draws\(0, '0:1', 'seven'\): it failed: {reason}"):
        sweep.draws(0, "0:1", "seven")
    message = "all 4 cells failed; the first: step 0, data 'seven', weights 0:0, 0:1: Arith"
    with pytest.raises(rllc.RllcError, match=message):
        rllc.track(run, {"seven": data["seven"]}, rllc.heads, loss=raises, **QUICK)


# A loss's name.


def first_of_pair(module, batch):
    return rllc.next_token(module, batch[0])


def test_a_loss_is_named_by_where_it_is() -> None:
    assert loss_name(None) == "next token"
    assert loss_name(first_of_pair) == "test_track:first_of_pair"
    assert loss_name(functools.partial(first_of_pair)) == "functools:partial"
    one, again, other = (loss_name(rllc.losses.distillation(tiny_model(i))) for i in (1, 1, 2))
    assert one == again != other


# Samplers of one's own are in test_own_samplers.py; executors in test_pools.py.
