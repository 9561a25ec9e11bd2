"""Sweeps: the same numbers however they are computed, nothing computed twice, and errors that name what differs."""

from __future__ import annotations

import fnmatch
import functools
import json
import pickle
import re
import shutil
import tempfile
import threading
import types
import warnings
from collections import Counter
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from faulty import interrupted, raises
from tiny import SHORT, tiny_model, tiny_tokens

import rllc
import rllc.sweep.workers
from rllc.sweep.store import Store
from rllc.sweep.track import main
from rllc.sweep.workers import sampler_of

SMALL = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4}
DATA = {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}
QUICK = {"sampling": replace(SHORT, num_probes=0), "progress": False}


def write_run(folder: Path, steps=(0, 10), **changes: object) -> Path:
    for step in steps:
        tiny_model(step, **SMALL | changes).save_pretrained(folder / f"step{step:07d}")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def unbroken(run) -> rllc.Trajectory:
    """Two checkpoints × two data sets × (two layers of two heads): eight cells."""
    return rllc.track(run, DATA, rllc.heads, **QUICK)


@pytest.fixture
def computed(monkeypatch) -> list[tuple[str, ...]]:
    """What is sampled: ``(data, first chain, weights…)`` of each cell."""
    seen: list[tuple[str, ...]] = []

    def counting(model, data, weights, **options):
        seen.append((*data, options["sampling"].first_chain, *(w.name for w in weights)))
        return rllc.sample(model, data, weights, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", counting)
    return seen


def same(one: rllc.Trajectory, other: rllc.Trajectory) -> bool:
    names = ("value", "standard_error", "rhat", "ess", "per_chain")
    equal = all(np.array_equal(getattr(one, n), getattr(other, n), equal_nan=True) for n in names)
    return equal and (one.steps, one.weights, one.data, one.status) == (
        other.steps,
        other.weights,
        other.data,
        other.status,
    )


# The same numbers.


def test_a_sweep_is_an_estimate_at_each_checkpoint(run, unbroken) -> None:
    assert unbroken.steps == (0, 10)
    for step in unbroken.steps:
        alone = rllc.estimate(rllc.load(run, step), DATA, rllc.heads(rllc.load(run, step)), **QUICK)
        here = unbroken.at(step)
        assert (here.weights, here.data, here.settings) == (
            alone.weights,
            alone.data,
            alone.settings,
        )
        assert here.value == pytest.approx(
            alone.value, rel=1e-4, abs=1e-4
        )  # other company in the pass
        for name in rllc.heads(rllc.load(run, step)):
            one = rllc.estimate(rllc.load(run, step), DATA, name, **QUICK)
            assert here[name.name, "b"].value == pytest.approx(
                one[name.name, "b"].value, rel=1e-4, abs=1e-4
            )


def test_a_store_and_threads_change_no_bit(run, unbroken, tmp_path) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert same(
            rllc.track(run, DATA, rllc.heads, store=tmp_path, executor=threads, **QUICK), unbroken
        )
    opened = rllc.Trajectory.open(tmp_path)
    assert same(opened, unbroken)
    assert opened.settings == unbroken.settings
    assert opened.missing == ()
    assert opened.failed == {}


def test_the_model_and_random_states_are_left_alone(run, tmp_path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    rllc.track(run, DATA["a"], "0:1", **QUICK)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_every_sampler_is_made_again_from_its_settings() -> None:
    prior = rllc.box(0.1, localization=3.0)
    for make in (rllc.sgld, rllc.rmsprop_sgld, rllc.sghmc, rllc.mala, rllc.hmc):
        for sampler in (make(lr=2e-3), make(lr=2e-3, prior=prior)):
            settings = rllc.sweep.workers._settings(sampler)
            assert settings == sampler.settings, sampler
            again = sampler_of(json.loads(json.dumps(settings)))
            assert (again.settings, again.full_batch) == (sampler.settings, sampler.full_batch)
    for change in (
        {"step": lambda state, energy, random: state},
        {"init": lambda position: position},
        {"full_batch": True},
    ):
        blind = replace(rllc.sgld(), **change)
        assert rllc.sweep.workers._settings(blind) is blind, change  # another's under the same name


# Nothing twice.


def test_the_same_call_again_computes_nothing(run, unbroken, tmp_path, computed) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    assert len(computed) == 8
    assert same(rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK), unbroken)
    assert len(computed) == 8


def test_more_of_everything_reuses_what_is_there(run, unbroken, tmp_path, computed) -> None:
    found = rllc.checkpoints(run)
    rllc.track(
        found[:1],
        DATA["a"],
        "0:1",
        store=tmp_path,
        **QUICK | {"sampling": replace(QUICK["sampling"], num_chains=1)},
    )
    assert computed == [("tokens", 0, "0:1")]
    rllc.track(found[:1], DATA["a"], "0:1", store=tmp_path, **QUICK)
    assert computed[1:] == [("tokens", 1, "0:1")]  # the new chain
    named = {"tokens": DATA["a"], "b": DATA["b"]}
    rllc.track(found[:1], named, "0:1", store=tmp_path, **QUICK)
    assert computed[2:] == [("b", 0, "0:1")]
    rllc.track(found[:1], named, rllc.heads, store=tmp_path, **QUICK)
    assert computed[3:] == [
        ("tokens", 0, "0:0"),
        ("tokens", 0, "1:0", "1:1"),
        ("b", 0, "0:0"),
        ("b", 0, "1:0", "1:1"),
    ]
    del computed[:]
    extended = rllc.track(found, named, rllc.heads, store=tmp_path, **QUICK)
    assert len(computed) == 4
    assert extended.value == pytest.approx(
        unbroken.value, rel=1e-4, abs=1e-4
    )  # other company in the passes
    assert extended.settings["num_chains"] == 2
    del computed[:]
    longer = rllc.track(
        found,
        named,
        rllc.heads,
        store=tmp_path,
        **QUICK | {"sampling": replace(QUICK["sampling"], num_draws=6)},
    )
    assert len(computed) == 11  # the same chains of the same weights go on
    assert longer.settings["num_draws"] == rllc.Trajectory.open(tmp_path).settings["num_draws"] == 6
    assert longer.missing == ()


def test_more_chains_are_those_of_a_larger_call(run, tmp_path) -> None:
    one_at_a_time = replace(QUICK["sampling"], runs_per_pass=1)  # so that company changes no bit
    more = {"sampling": replace(one_at_a_time, num_chains=4), "progress": False}
    rllc.track(run, DATA["a"], "1:0", store=tmp_path, sampling=one_at_a_time, progress=False)
    assert same(
        rllc.track(run, DATA["a"], "1:0", store=tmp_path, **more),
        rllc.track(run, DATA["a"], "1:0", **more),
    )


def test_fewer_of_anything_reads_what_is_there(run, unbroken, tmp_path, computed) -> None:
    rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK)
    del computed[:]
    few = rllc.track(rllc.checkpoints(run)[1:], {"b": DATA["b"]}, ["1:0"], store=tmp_path, **QUICK)
    assert computed == []
    assert few.value.tolist() == [[unbroken.at(10)["1:0", "b"].value]]
    assert len(rllc.Trajectory.open(tmp_path).weights) == 8


def test_a_moved_run_and_one_without_its_finished_checkpoints_go_on(tmp_path, computed) -> None:
    rllc.track(write_run(tmp_path / "here"), DATA["a"], "0:1", store=tmp_path / "store", **QUICK)
    shutil.move(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "step0000010" / "model.safetensors").unlink()
    again = rllc.track(tmp_path / "there", DATA["a"], "0:1", store=tmp_path / "store", **QUICK)
    assert len(computed) == 2
    assert again.missing == ()
    assert again.failed == {}


def test_opening_reads_names_and_only_then_numbers(run, tmp_path, monkeypatch) -> None:
    rllc.track(run, DATA["a"], ["0:0", "1:1"], store=tmp_path, **QUICK)
    victim = next(iter(Store(tmp_path).finished()))
    Store(tmp_path).path(victim).unlink()
    read = []
    monkeypatch.setattr(
        Store, "read", lambda self, name, inner=Store.read: read.append(name) or inner(self, name)
    )
    opened = rllc.Trajectory.open(tmp_path)
    assert len(opened.missing) == 1
    assert "1 of 4 missing" in repr(opened)
    assert read == []
    assert int(np.isnan(opened.value).sum()) == 1
    assert len(read) == 3
    assert sum(status == "missing" for row in opened.status for status in row) == 1
    assert len(opened.to_dataframe()) == 4
    assert len(read) == 3
    with pytest.raises(rllc.FileError, match="there is no sweep in it"):
        rllc.Trajectory.open(tmp_path / "nowhere")


def test_what_was_never_asked_for_is_not_missing(run, tmp_path) -> None:
    found = rllc.checkpoints(run)
    rllc.track(found[:1], DATA["a"], "0:0", store=tmp_path, **QUICK)
    rllc.track(found[1:], DATA["a"], "0:1", store=tmp_path, **QUICK)
    opened = rllc.Trajectory.open(tmp_path)
    assert opened.missing == ()
    assert opened.status[0][1] == opened.status[1][0] == "not asked for"


# More draws.


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[int, int]]:
    """Of each cell that is computed: how many draws it goes on from, and how many it has then."""
    seen: list[tuple[int, int]] = []

    def counting(model, data, weights, **options):
        there = options["resume"]
        seen.append((0 if there is None else there.loss.shape[-1], options["sampling"].num_draws))
        return rllc.sample(model, data, weights, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", counting)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    """Of cells and all that is kept beside them, by name."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("[!s]*/*.npz")
    } | {f"states/{path.name}": path.read_bytes() for path in folder.glob("states/*.npz")}


def longer(num_draws: int, **changes: object) -> dict[str, object]:
    return {
        "sampling": replace(QUICK["sampling"], num_draws=num_draws, **changes),
        "progress": False,
    }


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        (rllc.sgld(), {}),
        (rllc.rmsprop_sgld(num_adaptation_steps=6), {"num_burnin_steps": 2, "num_chains": 3}),
        (rllc.sghmc(lr=1e-4), {"control_variate": True, "num_probes": 3}),
        (rllc.sgld(), {"start": "gaussian", "num_burnin_steps": 1, "runs_per_pass": 1}),
    ],
    ids=str,
)
def test_more_draws_leave_the_store_that_one_longer_run_leaves(
    run, tmp_path, drawn, sampler, changes
) -> None:
    """Byte for byte, states included, in two steps and with the losses of each token."""
    call = {"checkpoints": rllc.checkpoints(run)[:1], "data": DATA["a"], "weights": rllc.heads}
    call |= {"sampler": sampler, "per_token": True}
    for num_draws in (4, 7, 12):
        rllc.track(**call, store=tmp_path / "went on", **longer(num_draws, **changes))
    assert drawn == [(0, 4), (0, 4), (4, 7), (4, 7), (7, 12), (7, 12)]
    unbroken = rllc.track(**call, store=tmp_path / "unbroken", **longer(12, **changes))
    found, expected = files(tmp_path / "went on"), files(tmp_path / "unbroken")
    assert {name: found.get(name) for name in expected} == expected
    states = [name for name in found if name.startswith("states/")]
    assert sorted(states) == sorted(
        name for name in expected if name.startswith("states/")
    )  # those of fewer draws go
    assert len(states) == 2
    assert same(rllc.Trajectory.open(tmp_path / "went on"), unbroken)
    assert np.isfinite(unbroken.value).all()


def test_more_draws_and_more_chains_and_more_heads_at_once(run, tmp_path, drawn, computed) -> None:
    call = {"checkpoints": rllc.checkpoints(run)[:1], "data": DATA["a"], "store": tmp_path}
    rllc.track(**call, weights=["1:0"], **longer(4, runs_per_pass=1))
    del computed[:]
    more = longer(9, num_chains=5, runs_per_pass=1)
    found = rllc.track(**call, weights=["1:1", "1:0"], **more)
    assert computed == [
        ("tokens", 0, "1:1"),
        ("tokens", 0, "1:0"),
        ("tokens", 2, "1:0"),
    ]  # new, going on, new chains
    assert same(found, rllc.track(**call | {"store": None}, weights=["1:1", "1:0"], **more))


def test_a_diverged_chain_stays_diverged_however_many_draws_follow(run, tmp_path, drawn) -> None:
    call = {
        "checkpoints": run,
        "data": DATA["a"],
        "weights": "0:1",
        "sampler": rllc.sgld(lr=3.0),
        "store": tmp_path,
    }
    first = rllc.track(**call, **longer(4))
    more = rllc.track(**call, **longer(8))
    assert drawn == [(0, 4)] * 2 + [(4, 8)] * 2
    assert more.status == first.status
    assert more.status[0][0].startswith("diverged: chain 0 at step ")
    assert np.isnan(more.value).all()


def test_part_of_a_cell_goes_on_alone_and_its_states_stay_for_the_rest(
    run, tmp_path, drawn
) -> None:
    call = {"checkpoints": rllc.checkpoints(run)[:1], "data": DATA["a"], "store": tmp_path}
    rllc.track(**call, weights=["1:0", "1:1"], **longer(4, runs_per_pass=1))
    part = rllc.track(**call, weights="1:1", **longer(8, runs_per_pass=1))
    rest = rllc.track(**call, weights=["1:0", "1:1"], **longer(8, runs_per_pass=1))
    assert drawn == [(0, 4), (4, 8), (4, 8)]
    whole = rllc.track(
        **call | {"store": None}, weights=["1:0", "1:1"], **longer(8, runs_per_pass=1)
    )
    assert same(rest, whole)
    assert part.value[0, 0] == whole.value[0, 1]


@pytest.mark.parametrize(
    "damage", ["none kept", "gone", "cut", "flipped", "of another cell", "cell flipped"]
)
def test_without_a_whole_state_a_cell_is_computed_from_the_first_draw(
    run, tmp_path, drawn, damage
) -> None:
    call = {"checkpoints": run, "data": DATA["a"], "weights": "0:1", "store": tmp_path}
    rllc.track(**call, **longer(4), keep_states=damage != "none kept")
    states = sorted((tmp_path / "states").glob("*.npz"))
    assert len(states) == (0 if damage == "none kept" else 2)
    if states:
        one, other = (path.read_bytes() for path in states)
        flipped = one[: len(one) // 2] + bytes([one[len(one) // 2] ^ 1]) + one[len(one) // 2 + 1 :]
        cell = tmp_path / "cells" / states[0].name
        {
            "gone": states[0].unlink,
            "cut": lambda: states[0].write_bytes(one[:-7]),
            "flipped": lambda: states[0].write_bytes(flipped),
            "of another cell": lambda: states[0].write_bytes(other),
            "cell flipped": lambda: cell.write_bytes(cell.read_bytes()[:-7]),
        }[damage]()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = rllc.track(**call, **longer(8))
    assert sorted(drawn[2:]) == ([(0, 8)] * 2 if damage == "none kept" else [(0, 8), (4, 8)])
    assert [("computed from the first draw on: reading" in str(w.message)) for w in told] == (
        [] if damage in ("none kept", "gone") else [True]
    )
    assert same(found, rllc.track(**call | {"store": None}, **longer(8)))


@pytest.mark.parametrize(("share", "steps"), [(0.9, (60, 100)), (1e9, (40, 100))])
def test_more_draws_with_target_se_are_of_those_that_have_not_reached_it(
    run, tmp_path, drawn, share, steps
) -> None:
    call = {"checkpoints": rllc.checkpoints(run)[:1], "data": DATA["a"], "weights": ["0:0", "0:1"]}
    error = share * float(rllc.track(**call, **longer(60)).standard_error.min())
    del drawn[:]
    rllc.track(**call, store=tmp_path, **longer(60, target_se=error))
    found = rllc.track(**call, store=tmp_path, **longer(100, target_se=error))
    assert drawn == [(0, 60), steps]
    assert same(found, rllc.track(**call, **longer(100, target_se=error)))


def test_draws_go_on_in_other_processes_and_a_dry_run_counts_what_is_left(
    run, tmp_path, drawn, capsys
) -> None:
    call = {"checkpoints": run, "data": DATA["a"], "weights": "0:1", "store": tmp_path}
    rllc.track(**call, **longer(4))
    rllc.track(**call, **longer(10), dry_run=True)
    assert "\n12 steps, of each chain: 24; " in capsys.readouterr().out  # 6 of 2 cells, in 2 chains
    with ThreadPoolExecutor(2) as threads:
        found = rllc.track(**call, **longer(10), executor=threads)
    assert drawn == [(0, 4)] * 2 + [(4, 10)] * 2
    assert same(found, rllc.track(**call | {"store": None}, **longer(10)))


def test_the_size_of_states_is_said_beforehand(run, tmp_path, capsys) -> None:
    """Against the files: in all, and off when they are not kept."""
    call = {
        "checkpoints": run,
        "data": DATA,
        "weights": "0:1",
        "store": tmp_path,
        "per_token": True,
    }
    rllc.track(**call, **QUICK, dry_run=True)
    told = dict(
        re.findall(
            r"disk for ([a-z ]+), ([\d.e-]+) MiB for the first cell", capsys.readouterr().out
        )
    )
    rllc.track(**call, **QUICK)
    for what, folder in (("states", "states"), ("losses per token", "tokens")):
        kept = [np.load(path) for path in (tmp_path / folder).glob("*.npz")]
        assert len(kept) == 4
        sizes = [
            sum(a[name].nbytes for name in a.files if re.match("states|rise|baseline$", name))
            for a in kept
        ]
        assert float(told[what]) * 2**20 == pytest.approx(sizes[0], rel=0.05), (
            what
        )  # it is told with two digits
    rllc.track(**call | {"per_token": False}, **longer(6), keep_states=False, dry_run=True)
    assert "on disk" not in capsys.readouterr().out


# Losses per token.


def test_losses_per_token_come_back_as_they_were_to_half_precision(run, tmp_path) -> None:
    """Against rllc.sample, for chains that came in two cells; rows against the data itself."""
    call = {
        "checkpoints": run,
        "data": DATA,
        "weights": ["1:0", "1:1"],
        "store": tmp_path,
        "per_token": True,
    }
    rllc.track(**call, **longer(5, num_chains=2, runs_per_pass=1))
    trajectory = rllc.track(**call, **longer(5, num_chains=3, runs_per_pass=1))
    model = rllc.load(run, 10)
    expected = rllc.sample(
        model, DATA, ["1:0", "1:1"], per_token=True, **longer(5, num_chains=3, runs_per_pass=1)
    )
    for found in (trajectory, rllc.Trajectory.open(tmp_path)):
        draws = found.draws(10, "L1H1", "b")
        key = "1:1", "b"
        assert list(draws.tokens) == [key]
        assert draws.tokens[key].dtype == np.float32
        assert np.array_equal(draws.rows["b"], expected.rows["b"])
        rise = draws.tokens[key] - draws.token_baseline["b"]
        exact = expected.tokens[key] - expected.token_baseline["b"]
        assert exact.shape == (3, 5, 4, 6)
        np.testing.assert_allclose(rise, exact, rtol=2**-10, atol=2e-6)
        np.testing.assert_allclose(draws.tokens[key], expected.tokens[key], atol=3e-3)
        assert np.array_equal(draws.loss[0], expected.loss[expected.weights.index("1:1") + 1])
        np.testing.assert_allclose(rise.mean((2, 3)), (draws.loss - draws.baseline)[0], atol=2e-4)
    with torch.no_grad():
        alone = rllc.next_token(model, DATA["b"].rows[torch.from_numpy(draws.rows["b"][2])].long())
    np.testing.assert_allclose(draws.token_baseline["b"][2], alone.numpy(), rtol=2**-10)


def test_losses_per_token_are_kept_only_where_asked_and_then_of_finished_cells_too(
    run, tmp_path, computed
) -> None:
    call = {"checkpoints": run, "data": DATA["a"], "weights": "0:1", "store": tmp_path} | QUICK
    without = rllc.track(**call)
    assert not (tmp_path / "tokens").exists()
    assert without.draws(10, "0:1").tokens == {}
    before = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    with_tokens = rllc.track(**call, per_token=True)
    assert len(computed) == 4
    assert len(with_tokens.draws(10, "0:1").tokens) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == before
    rllc.track(**call, per_token=True)
    assert len(computed) == 4


def test_losses_per_token_of_a_diverged_chain_are_no_numbers(run, tmp_path) -> None:
    call = {
        "checkpoints": run,
        "data": DATA["a"],
        "weights": "0:1",
        "sampler": rllc.sgld(lr=3.0),
        "store": tmp_path,
    }
    draws = rllc.track(**call, per_token=True, **QUICK).draws(10, "0:1")
    rise = draws.tokens["0:1", "tokens"]
    assert np.isnan(draws.loss).any()
    assert np.array_equal(np.isnan(rise).all((2, 3)), np.isnan(draws.loss[0]))


def test_draws_that_are_not_there_are_named(run, tmp_path) -> None:
    with pytest.raises(
        rllc.InputError, match="`per_token` keeps losses in a store; give a folder as `store`"
    ):
        rllc.track(run, DATA, "0:1", per_token=True, **QUICK)
    with pytest.raises(
        rllc.InputError, match=r"draws are in a store; use track\(…, store='sweep'\)"
    ):
        rllc.track(run, DATA["a"], "0:1", **QUICK).draws(10, "0:1")
    found = rllc.track(run, DATA, "0:1", store=tmp_path, **QUICK)
    with pytest.raises(
        rllc.InputError,
        match=r"on which data\? It has \['a', 'b'\]; type trajectory.draws\(10, '0:1', 'a'\)",
    ):
        found.draws(10, "0:1")
    with pytest.raises(rllc.InputError, match="known: '0', '10'"):
        found.draws(5, "0:1", "a")
    with pytest.raises(rllc.InputError, match=r"did you mean .*'0:1', 'b'"):
        found.draws(10, "0:0", "b")
    Store(tmp_path).path(Store(tmp_path).sweeps()[0].cells[0].name).unlink()
    with pytest.raises(
        rllc.InputError, match=r"draws\(0, '0:1', 'a'\): it is missing; call rllc.track again"
    ):
        rllc.Trajectory.open(tmp_path).draws(0, "0:1", "a")


# Downloads.


@pytest.fixture
def repository(run, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A hub with one revision a step, its client's cache beside it, and what is downloaded from it."""
    fetched: list[str] = []
    cache = tmp_path / "cache"
    client = huggingface_hub.snapshot_download

    def refs(name: str):
        return types.SimpleNamespace(
            branches=[types.SimpleNamespace(name=f"step{s}") for s in (0, 10)], tags=[]
        )

    def download(
        name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        if local_files_only:
            return client(
                name,
                revision=revision,
                cache_dir=cache,
                allow_patterns=allow_patterns,
                local_files_only=True,
            )
        at = cache / "models--org--name"
        commit = revision.removeprefix("step").zfill(40)
        snapshot = at / "snapshots" / commit
        for folder in (at / "blobs", at / "refs", snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        (at / "refs" / revision).write_text(commit)
        for file in (run / f"step{int(commit):07d}").iterdir():
            wanted = any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns)
            if wanted and not (snapshot / file.name).exists():
                blob = at / "blobs" / f"{commit}{file.name}"
                shutil.copy(file, blob)
                (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
                fetched.append(f"{revision}/{file.name}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return cache, fetched


def weights_in(cache: Path) -> list[str]:
    """Steps whose weights are in the cache; a link without what it points to counts, and so does what no link points to."""
    files = list(cache.rglob("*model.safetensors"))
    return sorted(
        {
            str(int((path.name if path.parent.name == "blobs" else path.parent.name)[:40]))
            for path in files
        }
    )


def test_downloads_are_deleted_when_all_cells_of_a_checkpoint_are_done(
    run, repository, tmp_path, monkeypatch
) -> None:
    cache, fetched = repository
    here: list[list[str]] = []

    def looking(*args, **options):
        here.append(weights_in(cache))
        return rllc.sample(*args, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", looking)
    found = rllc.track(
        "org/name", DATA, "0:1", store=tmp_path / "store", delete_downloads=True, **QUICK
    )
    assert here == [["0"], ["0"], ["10"], ["10"]]  # one at a time
    assert weights_in(cache) == []
    assert list((tmp_path / "store" / "downloads").iterdir()) == []
    assert [name for name in fetched if "safetensors" in name] == [
        "step0/model.safetensors",
        "step10/model.safetensors",
    ]
    assert np.array_equal(found.value, rllc.track(run, DATA, "0:1", **QUICK).value)
    rllc.track("org/name", DATA, "0:1", store=tmp_path / "store", **QUICK)
    assert weights_in(cache) == ["0"]  # looked at for heads; and not asked to delete it


def test_what_was_in_the_cache_before_stays_there(repository, tmp_path) -> None:
    cache, _ = repository
    for checkpoint in rllc.checkpoints("org/name")[1:]:
        checkpoint.path()
    assert weights_in(cache) == ["10"]
    rllc.track(
        "org/name", DATA["a"], "0:1", store=tmp_path / "store", delete_downloads=True, **QUICK
    )
    assert weights_in(cache) == ["10"]


def test_downloads_of_unfinished_cells_stay_for_the_next_call_which_knows_that_they_are_its_own(
    repository, tmp_path
) -> None:
    cache, fetched = repository
    rows = DATA["b"].rows.clone()
    rows[:, 0] = 7
    data = {"a": rllc.Tokens(DATA["a"].rows.clamp(max=6)), "seven": rllc.Tokens(rows)}
    with pytest.raises(KeyboardInterrupt):
        rllc.track(
            "org/name",
            data,
            "0:1",
            loss=interrupted,
            store=tmp_path / "store",
            delete_downloads=True,
            **QUICK,
        )
    assert weights_in(cache) == ["0"]
    del data["seven"]
    rllc.track(
        "org/name",
        data,
        "0:1",
        loss=interrupted,
        store=tmp_path / "store",
        delete_downloads=True,
        **QUICK,
    )
    assert weights_in(cache) == []
    assert fetched.count("step0/model.safetensors") == 1


def test_a_download_that_cannot_be_deleted_is_no_reason_to_stop(
    repository, tmp_path, monkeypatch
) -> None:
    def refused(self, but) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(rllc.Checkpoint, "delete_cached", refused)
    with pytest.warns(
        UserWarning, match=r"track: org/name@step0 stays in the hub's cache \(not yours\)"
    ):
        found = rllc.track(
            "org/name", DATA["a"], "0:1", store=tmp_path, delete_downloads=True, **QUICK
        )
    assert np.isfinite(found.value).all()


# What cannot be.


def test_a_store_of_something_else_is_refused_by_field(run, tmp_path) -> None:
    def again(data=DATA["a"], weights="0:0", sampling=QUICK["sampling"], **options) -> None:
        rllc.track(run, data, weights, sampling=sampling, store=tmp_path, progress=False, **options)

    again()
    before = sorted(tmp_path.rglob("*"))
    other = rllc.parameters("blocks.1.attn.W_Q").named("0:0")
    for changed, words in [
        ({"sampling": replace(QUICK["sampling"], seed=1)}, "seed: 0 there, 1 now"),
        ({"sampler": rllc.sgld(lr=2e-3)}, "lr: 0.001 there, 0.002 now"),
        ({"sampler": rllc.rmsprop_sgld()}, "sampler: 'sgld' there, 'rmsprop_sgld' now"),
        ({"data": DATA["b"]}, "data 'tokens', SHA-256: "),
        ({"weights": other}, "weights '0:0', SHA-256: "),
        ({"loss": raises}, "loss: 'next token' there, 'faulty:raises' now"),
        (
            {"loss": rllc.distillation(tiny_model(5, **SMALL))},
            "loss: 'next token' there, 'distillation of ",
        ),
        (
            {"sampling": replace(QUICK["sampling"], num_chains=1)},
            r"num_chains: 2 there, 1 now \(it can only grow\)",
        ),
    ]:
        with pytest.raises(
            rllc.InputError,
            match=f"holds a sweep with other settings, checkpoints or data:\n(  .*\n)*  {words}",
        ):
            again(**changed)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("longer", [False, True])
def test_another_sweep_that_was_announced_a_moment_before_is_seen(
    run, tmp_path, monkeypatch, computed, longer
) -> None:
    """Between the first look and the announcement: one with other settings is refused, one with more draws is none."""
    other = replace(QUICK["sampling"], **({"num_draws": 9} if longer else {"seed": 1}))
    call = {
        "checkpoints": run,
        "data": DATA["a"],
        "weights": "0:0",
        "store": tmp_path,
        "progress": False,
    }
    announce = Store.announce

    def after_another(self: Store, sweep) -> None:
        announce(
            self,
            replace(
                sweep, settings=sweep.settings | {"seed": other.seed}, num_draws=other.num_draws
            ),
        )
        announce(self, sweep)

    monkeypatch.setattr(Store, "announce", after_another)
    if longer:
        assert rllc.track(sampling=QUICK["sampling"], **call).missing == ()
        return
    with pytest.raises(rllc.InputError, match="seed: 1 there, 0 now"):
        rllc.track(sampling=QUICK["sampling"], **call)
    assert computed == []
    monkeypatch.undo()
    rllc.track(sampling=other, **call)  # it alone is left


def test_with_target_se_chains_stop_together_so_more_is_another_sweep(run, tmp_path) -> None:
    sampling = replace(QUICK["sampling"], target_se=1e9, num_draws=40)
    rllc.track(run, DATA["a"], "0:0", sampling=sampling, store=tmp_path, progress=False)
    with pytest.raises(rllc.InputError, match="num_chains: 2 there, 3 now"):
        rllc.track(
            run,
            DATA["a"],
            "0:0",
            sampling=replace(sampling, num_chains=3),
            store=tmp_path,
            progress=False,
        )


def test_other_versions_are_warned_of(run, tmp_path, monkeypatch) -> None:
    rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)
    monkeypatch.setattr(rllc, "__version__", "9.9")
    with pytest.warns(
        UserWarning,
        match=r"going on with .* with rllc \S+ -> 9\.9; new cells may differ in their last bits",
    ):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": []}, "expected at least one checkpoint, got none"),
        (
            {"checkpoints": [rllc.Checkpoint(0, "a"), rllc.Checkpoint(0, "b")]},
            "a and b are both step 0",
        ),
        (
            {"sampling": replace(SHORT, first_chain=2)},
            "`first_chain` must be 0, got 2; with a larger num_chains and",
        ),
        (
            {"sampling": replace(SHORT, first_chain=2, target_se=1.0)},
            "got 2; with target_se all chains are run together",
        ),
        ({"sampling": replace(SHORT, batch_size=99)}, "12 rows, fewer than a batch of 99"),
        (
            {"executor": 0},
            "`executor` must be None, a number of processes, a list of devices .* got 0",
        ),
        ({"executor": "cuda"}, "`executor` must be .* got 'cuda'"),
        ({"executor": []}, r"`executor` must be .* got \[\]"),
        ({"executor": True}, "`executor` must be .* got True"),
    ],
)
def test_errors_come_before_any_chain(run, tmp_path, computed, changes, message) -> None:
    arguments = (
        {"checkpoints": run, "data": DATA["a"], "weights": "0:0", "store": tmp_path / "s"}
        | QUICK
        | changes
    )
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(**arguments)
    assert computed == []


def test_a_cell_that_raises_is_marked_and_the_others_are_done(run, tmp_path) -> None:
    seven = DATA["b"].rows.clone()
    seven[:, 0] = 7
    data = {
        "a": rllc.Tokens(torch.where(DATA["a"].rows == 7, 6, DATA["a"].rows)),
        "seven": rllc.Tokens(seven),
    }
    with pytest.warns(
        UserWarning,
        match=r"track: 4 of 8 cells failed: step 0, data 'seven', .* seven is \(and 3 more\)",
    ):
        found = rllc.track(run, data, rllc.heads, loss=raises, store=tmp_path, **QUICK)
    assert np.isnan(found.value).reshape(2, 4, 2)[..., 1].all()
    assert np.isfinite(found.value).reshape(2, 4, 2)[..., 0].all()
    assert found.failed[0, "0:1", "seven"] == "ArithmeticError: seven is"
    assert found.at(0)["0:1", "seven"].status == "failed: ArithmeticError: seven is"
    assert rllc.Trajectory.open(tmp_path).failed == found.failed
    with pytest.raises(
        rllc.RllcError,
        match="all 4 cells failed; the first: step 0, data 'seven', weights 0:0, 0:1: Arith",
    ):
        rllc.track(run, {"seven": data["seven"]}, rllc.heads, loss=raises, **QUICK)


# Not doing it.


def test_a_dry_run_counts_and_computes_nothing(run, tmp_path, capsys, computed) -> None:
    call = {
        "checkpoints": run,
        "data": DATA,
        "weights": rllc.heads,
        "store": tmp_path / "s",
    } | QUICK
    planned = rllc.track(**call, dry_run=True)
    assert len(planned.missing) == 16
    assert np.isnan(planned.value).all()
    assert not (tmp_path / "s").exists()
    first, steps, memory, disk, hours = capsys.readouterr().out.splitlines()
    assert first == "2 checkpoints × 2 data sets × 4 weights: 8 cells, 0 finished, 8 to compute"
    assert steps.startswith("40 steps, of each chain: 160; ")
    assert "GiB of memory a worker" in memory
    assert disk.startswith("about ")
    assert "GiB on disk for states, " in disk
    assert hours.startswith("about ")
    rllc.track(**call | {"checkpoints": rllc.checkpoints(run)[:1]})
    rllc.track(**call, dry_run=True, executor=3)
    assert "8 cells, 4 finished, 4 to compute\n20 steps" in (told := capsys.readouterr().out)
    assert "on 3 workers" in told
    rllc.track(**call)
    assert len(rllc.track(**call, dry_run=True).missing) == 0
    assert capsys.readouterr().out.endswith("8 cells, 8 finished, 0 to compute\n")
    with pytest.raises(rllc.InputError, match="seed: 0 there, 1 now"):
        rllc.track(**call | {"sampling": replace(QUICK["sampling"], seed=1)}, dry_run=True)
    assert len(computed) == 8


def test_a_dry_run_without_a_store_looks_into_no_folder_that_somebody_may_have_made(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rllc.track(run, DATA["a"], "0:0", store=tmp_path / "rllc-no-store", **QUICK)
    assert len(rllc.track(run, DATA["a"], "0:0", dry_run=True, **QUICK).missing) == 2
    assert "0 finished, 2 to compute" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rllc-no-store"]


def test_a_dry_run_counts_second_looks(run, capsys) -> None:
    """2 chains × 5 steps of 2 cells, with which come 2 chains × 4 probes and 13 evaluations for the curvature."""
    told = []
    for probes in (0, 4):
        rllc.track(run, DATA["a"], "0:0", sampling=replace(SHORT, num_probes=probes), dry_run=True)
        told.append(float(capsys.readouterr().out.split("; ")[1].split(" FLOPs")[0]))
    assert told[1] / told[0] == pytest.approx((10 + 2 * 4 + 13) / 10, rel=0.05)


def test_flops_of_a_dry_run_are_those_of_a_linear_model(run, capsys) -> None:
    """One more draw costs what one more draw costs: the printed total is proportional to the steps."""
    told = []
    for draws in (5, 50):
        rllc.track(
            run,
            DATA["a"],
            "0:0",
            sampling=replace(QUICK["sampling"], num_draws=draws),
            dry_run=True,
        )
        told.append(float(capsys.readouterr().out.split("; ")[1].split(" FLOPs")[0]))
    assert told[1] == pytest.approx(10 * told[0], rel=0.05)
    assert told[0] > 0


# Executors that break.


class Fragile(Executor):
    """Four cells at a time; all of them are lost when one is of data ``"b"`` at step 10. Like loky's, it can be had anew."""

    _max_workers = 4
    lost: list[str]
    """Names of cells, each time that one is lost."""

    def __init__(self) -> None:
        self.broken, self.pending = False, []

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
        cells = [task.cell for _, function, task in pending if function is rllc.sweep.workers.work]
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
        found = rllc.track(run, DATA, rllc.heads, store=tmp_path, executor=Fragile(), **QUICK)
    assert set(found.failed) == {(10, name, "b") for name in unbroken.weights}
    assert set(found.failed.values()) == {"its worker died, 3 times (a worker died)"}
    times = sorted(Counter(Fragile.lost).values(), reverse=True)
    assert times[:2] == [3, 3]
    assert all(n <= 2 for n in times[2:])  # once with each killer, before it was known
    there = [i for i, data in enumerate(found.data) if data == "a"]
    assert np.array_equal(found.value[:, there], unbroken.value[:, there])
    assert np.array_equal(found.value[0], unbroken.value[0])


class Once(Executor):
    """Breaks with the second cell, and stays broken, as those of the standard library do."""

    __module__ = "concurrent.futures"

    def submit(self, function, /, task):
        future: Future = Future()
        if function is rllc.sweep.workers.work and hasattr(self, "one"):
            future.set_exception(BrokenExecutor("gone"))
        else:
            self.one = function is rllc.sweep.workers.work and self
            future.set_result(function(task))
        return future


def test_an_executor_of_others_that_stays_broken_is_said_so(run, tmp_path) -> None:
    with pytest.raises(
        rllc.RllcError, match=r"a worker died, and with it the Once that was given\. Finished"
    ):
        rllc.track(run, DATA["a"], rllc.heads, store=tmp_path, executor=Once(), **QUICK)


class Lossy(ThreadPoolExecutor):
    """Gives up on some cells by itself, as Dask does on those that kill workers."""

    def submit(self, function, /, task):
        future = super().submit(function, task)
        if function is rllc.sweep.workers.work and task.cell.data == "b":
            future = Future()
            future.set_exception(ConnectionError("killed four workers\nlong story"))
        return future


def test_cells_that_an_executor_gives_up_are_failed(run, unbroken, tmp_path) -> None:
    with Lossy(1) as executor, pytest.warns(UserWarning, match="4 of 8 cells failed"):
        found = rllc.track(run, DATA, rllc.heads, store=tmp_path, executor=executor, **QUICK)
    assert set(found.failed.values()) == {"ConnectionError: killed four workers"}
    assert {key[2] for key in found.failed} == {"b"}
    assert same(
        rllc.track(run, DATA, rllc.heads, store=tmp_path, **QUICK), unbroken
    )  # and the next call does them


def test_workers_that_cannot_see_the_store_are_found_first(run, tmp_path, computed) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function, /, task):
            return super().submit(function, replace(task, folder="/nowhere"))

    with (
        Elsewhere(1) as executor,
        pytest.raises(rllc.InputError, match="does not see `store` = /nowhere; give a folder"),
    ):
        rllc.track(run, DATA["a"], "0:0", store=tmp_path, executor=executor, **QUICK)
    assert computed == []


def test_what_travels_is_small_and_holds_no_model(run, tmp_path) -> None:
    """References only, however large the data; a generating model is saved, and loaded by the worker."""

    class Weighing(ThreadPoolExecutor):
        def submit(self, function, /, task):
            travelling = pickle.dumps(task)
            weights.append(len(travelling))
            return super().submit(function, pickle.loads(travelling))

    weights: list[int] = []
    large = tiny_tokens(20_000, seed=3)
    loss = rllc.distillation(tiny_model(7, **SMALL))
    call = {"checkpoints": run, "data": large, "weights": rllc.heads, "loss": loss} | QUICK
    with Weighing(1) as executor:
        travelled = rllc.track(**call, store=tmp_path, executor=executor)
    assert max(weights) < 5000
    assert same(travelled, rllc.track(**call))


def test_a_generating_model_that_cannot_be_saved_is_refused(run) -> None:
    loss = rllc.distillation(torch.nn.Linear(2, 2))
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(rllc.InputError, match=r"generating model .* got Linear"),
    ):
        rllc.track(run, DATA["a"], "0:0", loss=loss, executor=executor, **QUICK)


def test_tensors_travel_as_tokens_do(run, tmp_path) -> None:
    pair = DATA["a"].rows.long(), DATA["b"].rows.long()
    with ThreadPoolExecutor(1) as executor:
        found = rllc.track(
            run, {"pair": pair}, "0:0", loss=first_of_pair, executor=executor, **QUICK
        )
    assert same(found, rllc.track(run, {"pair": pair}, "0:0", loss=first_of_pair, **QUICK))


def first_of_pair(module, batch):
    return rllc.next_token(module, batch[0])


def test_a_loss_is_named_by_where_it_is() -> None:
    name = rllc.track.__globals__["_loss_name"]
    assert name(None) == "next token"
    assert name(first_of_pair) == "test_track:first_of_pair"
    assert name(functools.partial(first_of_pair)) == "functools:partial"
    one, other = (name(rllc.distillation(tiny_model(i))) for i in (1, 2))
    assert one == name(rllc.distillation(tiny_model(1))) != other


# In array jobs.


def spec(folder: Path, run: Path, **changes: object) -> str:
    DATA["a"].save(folder / "a.npz"), DATA["b"].save(folder / "b.npz")
    sampling = {"num_chains": 2, "num_draws": 5, "batch_size": 4, "num_probes": 0}
    whole = {
        "checkpoints": str(run),
        "data": {"a": "a.npz", "b": "b.npz"},
        "store": "sweep",
        "weights": "heads",
    }
    whole |= {
        "sampling": sampling,
        "sampler": {"sampler": "sgld", "lr": 1e-3, "localization": 200.0},
    }
    (folder / "spec.json").write_text(
        json.dumps({k: v for k, v in (whole | changes).items() if v is not None})
    )
    return str(folder / "spec.json")


def test_shards_together_are_the_sweep(run, unbroken, tmp_path, computed, capsys) -> None:
    path = spec(tmp_path, run)
    for k, done in ((1, {0}), (3, {0, 2}), (2, {0, 1, 2})):
        assert main([path, "--shard", f"{k}/3", "--quiet"]) == 0
        assert {int(name, 16) % 3 for name in Store(tmp_path / "sweep").finished()} == done
    assert [len(computed), sorted({c[0] for c in computed})] == [8, ["a", "b"]]
    assert "2 checkpoints" in capsys.readouterr().out
    assert same(rllc.Trajectory.open(tmp_path / "sweep"), unbroken)
    assert main([path, "--dry-run"]) == 0
    assert "8 finished, 0 to compute" in capsys.readouterr().out
    assert len(computed) == 8


def test_a_share_is_counted_alone_and_does_not_answer_for_others(
    run, tmp_path, computed, capsys
) -> None:
    path = spec(tmp_path, run)
    for k in (1, 2):
        assert main([path, "--dry-run", "--shard", f"{k}/2"]) == 0
    counts = re.findall(r"in share \d of 2: (\d+) cells, 0 finished", capsys.readouterr().out)
    assert sum(map(int, counts)) == 8
    assert computed == []
    assert main([path, "--shard", "1/2", "--quiet"]) == 0
    store = Store(tmp_path / "sweep")
    for cell in store.sweeps()[0].cells:
        if cell.name not in store.finished():
            store.fail(cell.name, "of another share, long ago")
    assert main([path, "--shard", "1/2", "--quiet"]) == 0
    assert rllc.Trajectory.open(store.folder).failed


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--shard", "0/3"], "--shard must be K/N with K from 1 to N, such as 3/16; got '0/3'"),
        ({"wieghts": 1}, [], "it has 'wieghts', which means nothing; did you mean 'weights'"),
        ({"store": None}, [], "it has no 'store'"),
        ({"weights": "head"}, [], "'weights' must be 'heads', 'everything' or a list of heads"),
        ({"steps": [0, 11]}, [], "has no checkpoints of the steps [11]"),
        (
            {"loss": "faulty:nothing"},
            [],
            "`loss` 'faulty:nothing' must be module:function, to be imported",
        ),
        ({"sampling": {"chains": 3}}, [], "unexpected keyword argument 'chains'"),
        ({"sampler": {"sampler": "nuts"}}, [], "sampler or sampling: "),
        ({"per_token": 1}, [], "'per_token' must be true or false, got 1"),
    ],
)
def test_errors_of_the_command_line(run, tmp_path, capsys, changes, arguments, message) -> None:
    assert main([spec(tmp_path, run, **changes), "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_spec_that_is_none(tmp_path, capsys) -> None:
    (tmp_path / "s.json").write_text("[]")
    assert main([str(tmp_path / "s.json")]) == 2
    assert "expected an object, got list" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.json")]) == 2
