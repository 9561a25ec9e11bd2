"""The store: whole files, damage found, what is there and what is not, chains put together."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_plan import PLAN

import rllc
import rllc.sweep.store
from rllc.seeds import generator
from rllc.sweep.parts import joined
from rllc.sweep.plan import Plan
from rllc.sweep.store import Store
from rllc.sweep.sweep import Sweep
from rllc.sweep.travel import load_rows, save_model, save_rows
from rllc.weights.names import Names

PER_CHAIN = ("loss", "baseline", "diverged")


def make_draws(refinements: int = 3, chains: int = 6, draws: int = 5) -> rllc.Draws:
    random = np.random.default_rng(0)
    shape = refinements, chains, draws
    return rllc.Draws(
        loss=random.normal(size=shape),
        baseline=random.normal(size=shape),
        diverged=random.integers(-1, 3, shape[:2]),
        names=Names.of((f"0:{i}", "code") for i in range(refinements)),
        settings=rllc.Sampling().settings
        | {"localization": 200.0, "lr": 1e-3, "num_chains": chains},
        observed={
            "minibatch_variance": random.normal(size=shape),
            "acceptance": random.normal(size=(refinements, chains, 2)),
            "max_curvature": random.normal(size=refinements),
        },
    )


def part_of(draws: rllc.Draws, rows: list[int], chains: slice) -> rllc.Draws:
    """A part of draws, by plain indexing."""
    observed = {}
    for name, array in draws.observed.items():
        observed[name] = array[rows, chains] if array.ndim > 1 else array[rows]
    return replace(
        draws,
        **{name: getattr(draws, name)[rows, chains] for name in PER_CHAIN},
        observed=observed,
        names=draws.names.take(rows),
        lengths=tuple(draws.lengths[row] for row in rows),
    )


# Plans.


def test_what_is_wanted_comes_back_and_damage_to_it_is_found(tmp_path) -> None:
    store = Store(tmp_path / "s")
    store.announce(PLAN)
    store.announce(PLAN)
    (again,) = store.plans()
    assert again.text() == PLAN.text()
    (path,) = (tmp_path / "s" / "sweeps").iterdir()
    whole = path.read_bytes()
    for i in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(rllc.FileError, match=r"is damaged or was not written by rllc\.track"):
            store.plans()


def test_a_plan_that_is_withdrawn_while_others_are_read_is_none(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    other = replace(PLAN, num_draws=6)
    store.announce(PLAN)
    store.announce(other)
    read_plan = rllc.sweep.store.read_plan

    def withdraw_meanwhile(path: Path) -> Plan:
        store.withdraw(PLAN)
        return read_plan(path)

    monkeypatch.setattr(rllc.sweep.store, "read_plan", withdraw_meanwhile)
    assert [plan.text() for plan in store.plans()] == [other.text()]


def test_temporary_files_of_killed_writers_go_and_those_of_others_stay(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(PLAN)
    name, cells = ".a.npz.rllc-17.x.tmp", tmp_path / "cells"
    old, young = cells / name, cells / ".b.npz.rllc-17.x.tmp"
    observed = tmp_path / "observed" / "losses" / name
    unfinished = tmp_path / "generators" / ".a.rllc-17.x.tmp"
    elsewhere = tmp_path.parent / "elsewhere"
    foreign = [cells / ".mine.tmp", tmp_path / "notes" / name, elsewhere / name]
    foreign_folder = tmp_path / "data" / ".theirs.rllc-17.x.tmp"
    for folder in (unfinished / "model", foreign_folder, observed.parent):
        folder.mkdir(parents=True)
    for file in (old, young, observed, *foreign):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (tmp_path / "downloads").symlink_to(elsewhere)
    for leftover in (old, observed, unfinished, foreign_folder, *foreign):
        os.utime(leftover, (0, 0))
    store.announce(PLAN)
    assert [path.exists() for path in (old, observed, unfinished)] == [False] * 3
    assert all(path.exists() for path in (young, foreign_folder, *foreign))
    assert store.finished() == set()


def test_a_store_that_cannot_be_written_says_so(tmp_path) -> None:
    (tmp_path / "file").touch()
    message = r"track: writing what this call asks for in `store` = .*file/store failed"
    with pytest.raises(rllc.FileError, match=message):
        Store(tmp_path / "file" / "store").announce(PLAN)
    assert Store(tmp_path / "nowhere").finished() == set()
    assert Store(tmp_path / "nowhere").plans() == []


def test_a_switch_is_true_or_false(tmp_path) -> None:
    with pytest.raises(rllc.InputError, match="`keep_states` must be true or false, got 'no'"):
        Store(tmp_path, keep_states="no")


# Cells.


def test_a_cell_is_finished_or_failed_or_neither(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(PLAN)
    name = PLAN.cells[0].name
    keys = (10, "0:0", "code"), (10, "0:1", "code")
    assert Sweep.of(store, [PLAN], [PLAN]).missing == keys
    store.fail(name, "the reason")
    assert Sweep.of(store, [PLAN], [PLAN]).failed == dict.fromkeys(keys, "the reason")
    assert store.failures() == {name: "the reason"}
    store.write(name, make_draws(2, 4), {"why": "not"})
    assert Sweep.of(store, [PLAN], [PLAN]).finished[keys[0]] == PLAN.cells
    assert store.failures() == {}
    assert store.read(name).settings["cell"] == {"why": "not", "name": name}
    (tmp_path / "failed" / f"{'m' * 32}.json").write_text("no json")
    assert "cannot be read" in store.failures()["m" * 32]


def test_more_draws_leave_those_of_fewer_out(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(PLAN)
    store.write(PLAN.cells[0].name, make_draws(2, 4), {})
    longer = replace(PLAN, num_draws=6, cells=(replace(PLAN.cells[0], name="o" * 32),))
    sweep = Sweep.of(store, [PLAN, longer], [PLAN, longer])
    assert len(sweep.missing) == 2
    assert sweep.settings["num_draws"] == 6
    assert len(Sweep.of(store, [PLAN, longer], [longer, PLAN]).finished) == 2


def test_a_result_never_holds_two_kinds_of_settings(tmp_path) -> None:
    store = Store(tmp_path)
    other = replace(
        PLAN,
        settings=PLAN.settings | {"lr": 2e-3},
        cells=(replace(PLAN.cells[0], name="o" * 32),),
        weights={"0:1": "f"},
    )
    store.write("o" * 32, make_draws(2, 4), {})
    assert Sweep.of(store, [other, PLAN], [other, PLAN]).finished == {}
    sweep = Sweep.of(store, [PLAN, other], [PLAN, other])
    assert list(sweep.names) == [("0:1", "code")]
    assert sweep.finished == {(10, "0:1", "code"): other.cells}


def test_the_same_cell_is_the_same_bytes(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(PLAN)
    other = Store(tmp_path / "other")
    for place in (store, other):
        place.write("a", make_draws(), {"x": 1})
    assert store.path("a").read_bytes() == other.path("a").read_bytes()


def test_chains_from_several_cells_are_those_of_one() -> None:
    whole = make_draws()
    parts = [
        part_of(whole, [2, 0, 1], slice(0, 2)),
        part_of(whole, [0, 2], slice(1, 5)),
        part_of(whole, [2, 0], slice(5, 6)),
    ]
    together = joined(parts, [(0, 2), (1, 5), (5, 6)], ["0:0", "0:2"])
    expected = part_of(whole, [0, 2], slice(None))
    for name in PER_CHAIN:
        assert np.array_equal(getattr(together, name), getattr(expected, name))
    assert together.observed.keys() == expected.observed.keys()
    for name, array in expected.observed.items():
        assert np.array_equal(together.observed[name], array)
    assert (together.names, together.lengths) == (expected.names, expected.lengths)
    assert together.settings["num_chains"] == 6


# Damage.


def test_fifty_flipped_bytes_and_truncation_are_found_and_set_aside(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(PLAN)
    store.write("a", make_draws(), {})
    whole = store.path("a").read_bytes()
    assert store.set_damaged_aside(["a"]) == []
    places = torch.randperm(len(whole), generator=generator("flipped"))[:50].tolist()
    for i in places:
        flipped = bytes([whole[i] ^ (1 << i % 8)])
        store.path("a").write_bytes(whole[:i] + flipped + whole[i + 1 :])
        assert store.set_damaged_aside(["a"]) == ["a"], i
        assert store.finished() == set()
        assert (tmp_path / "damaged" / "a.npz").exists()
    for share in (0.0, 0.5, 0.99):
        store.path("a").write_bytes(whole[: int(share * len(whole))])
        assert store.set_damaged_aside(["a"]) == ["a"]


def test_a_cell_that_another_sweep_sets_aside_or_computes_again_meanwhile_is_no_error(
    tmp_path, monkeypatch
) -> None:
    store, other = Store(tmp_path), Store(tmp_path / "other")
    store.announce(PLAN)
    other.write("a", make_draws(), {})
    is_whole = rllc.sweep.store.is_whole

    def then_gone(path) -> bool:
        path.unlink(missing_ok=True)
        return False

    def then_computed_again(path) -> bool:
        was_whole = is_whole(path)
        path.write_bytes(other.path("a").read_bytes())
        return was_whole

    for meanwhile in (then_gone, then_computed_again):
        store.path("a").write_bytes(b"damaged")
        monkeypatch.setattr(rllc.sweep.store, "is_whole", meanwhile)
        assert store.set_damaged_aside(["a"]) == ["a"]
        assert not list((tmp_path / "damaged").iterdir())
    assert is_whole(store.path("a"))


# What other processes read.


def test_rows_travel_as_they_are(tmp_path) -> None:
    parts = (
        torch.arange(6).reshape(3, 2),
        torch.randn(3, generator=generator("rows")),
        torch.tensor([True, False, True]),
    )
    again = load_rows(save_rows(Store(tmp_path), parts, "f"))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert [part.dtype for part in again] == [part.dtype for part in parts]


def test_damaged_rows_are_written_again(tmp_path) -> None:
    store, parts = Store(tmp_path), (torch.arange(3),)
    with open(save_rows(store, parts, "f"), "r+b") as file:
        file.truncate(50)
    (again,) = load_rows(save_rows(store, parts, "f"))
    assert torch.equal(again, torch.arange(3))


def writing(text: str, also: Path | None = None, error: OSError | None = None):
    """A ``save_pretrained`` during which another process may be faster, or the disk fills."""

    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(text)
        if also is not None:
            also.mkdir()
            (also / "weights").write_text("theirs")
        if error is not None:
            raise error

    return save


def test_a_generating_model_is_whole_or_not_there(tmp_path) -> None:
    store = Store(tmp_path)
    ours, theirs = tmp_path / "generators" / "g", tmp_path / "generators" / "h"
    full = OSError(28, "No space left on device")
    message = r"writing a generating model in `store` .* No space left"
    with pytest.raises(rllc.FileError, match=message):
        save_model(store, ours, writing("ours", error=full))
    assert list(ours.parent.iterdir()) == []
    save_model(store, ours, writing("ours"))
    assert (ours / "weights").read_text() == "ours"
    save_model(store, theirs, writing("ours", also=theirs))
    assert (theirs / "weights").read_text() == "theirs"
    assert sorted(path.name for path in ours.parent.iterdir()) == ["g", "h"]
    assert ours.stat().st_mode == theirs.stat().st_mode  # the usual rights
