"""The store: names of cells, what covers what, chains put together, damage found."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rllc
from rllc.seeds import generator
from rllc.sweep.store import (
    Cell,
    Store,
    Sweep,
    cell_name,
    contents,
    covering,
    differences,
    gathered,
    load_rows,
)

WHERE = {
    "step": 10,
    "source": "/runs/a",
    "revision": None,
    "file": "step0000010",
    "sha256": "c" * 64,
}
SWEEP = Sweep(
    settings={"lr": 1e-3, "n_beta": 30.0},
    num_draws=5,
    num_chains=4,
    loss="next token",
    checkpoints={10: WHERE},
    data={"code": "d" * 64},
    weights={"0:0": "e" * 64, "0:1": "f" * 64},
    cells=(Cell("n" * 32, 10, "code", ("0:0", "0:1"), (0, 4)),),
    versions={"rllc": "1"},
)


def _draws(refinements: int = 3, chains: int = 6, draws: int = 5, **settings: object) -> rllc.Draws:
    random = np.random.default_rng(0)
    shape = refinements, chains, draws
    return rllc.Draws(
        loss=random.normal(size=shape),
        baseline=random.normal(size=shape),
        diverged=random.integers(-1, 3, shape[:2]),
        weights=tuple(f"0:{i}" for i in range(refinements)),
        data=("code",) * refinements,
        settings={"n_beta": 30.0, "num_chains": chains, **settings},
        noise=random.normal(size=shape),
        probes={
            "acceptance": random.normal(size=(refinements, chains, 2)),
            "max_curvature": random.normal(size=refinements),
        },
    )


def _some(draws: rllc.Draws, rows: list[int], chains: slice) -> rllc.Draws:
    """A part of draws, by plain indexing."""
    return replace(
        draws,
        **{k: getattr(draws, k)[rows, chains] for k in ("loss", "baseline", "diverged", "noise")},
        probes={k: a[rows, chains] if a.ndim > 1 else a[rows] for k, a in draws.probes.items()},
        weights=tuple(draws.weights[r] for r in rows),
        data=tuple(draws.data[r] for r in rows),
        lengths=tuple(draws.lengths[r] for r in rows),
    )


def test_a_cell_is_named_by_all_that_its_numbers_depend_on_and_nothing_else() -> None:
    def name(
        sweep: Sweep = SWEEP,
        where: dict = WHERE,
        data: str = "code",
        weights=("0:0",),
        chains=(0, 4),
    ) -> str:
        return cell_name(sweep, where, data, weights, chains)

    same = [
        name(),
        name(where=WHERE | {"source": "/moved"}),
        name(replace(SWEEP, num_chains=8)),  # its own are in `chains`
        name(replace(SWEEP, versions={"rllc": "2"})),
        name(replace(SWEEP, cells=())),
    ]
    other = [
        name(where=WHERE | {"sha256": "0" * 64}),
        name(where=WHERE | {"step": 11}),
        name(where=WHERE | {"sha256": None}),
        name(where=WHERE | {"sha256": None, "source": "/moved"}),
        name(replace(SWEEP, settings=SWEEP.settings | {"lr": 2e-3})),
        name(replace(SWEEP, num_draws=6)),
        name(replace(SWEEP, loss="other")),
        name(replace(SWEEP, data={"code": "0" * 64})),
        name(replace(SWEEP, weights=SWEEP.weights | {"0:0": "0" * 64})),
        name(weights=("0:1",)),
        name(weights=("0:0", "0:1")),
        name(chains=(0, 2)),
        name(chains=(4, 8)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 1 + len(other)


def test_what_is_wanted_comes_back_and_damage_to_it_is_found(tmp_path) -> None:
    store = Store(tmp_path / "s")
    store.announce(SWEEP)
    store.announce(SWEEP)
    (again,) = store.sweeps()
    assert again.text() == SWEEP.text()
    assert again.cells == SWEEP.cells
    (path,) = (tmp_path / "s" / "sweeps").iterdir()
    whole = path.read_bytes()
    for i in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(rllc.FileError, match=r"is damaged or was not written by rllc\.track"):
            store.sweeps()


def test_a_sweep_that_is_withdrawn_while_others_are_read_is_none(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    other = replace(SWEEP, num_draws=6)
    store.announce(SWEEP), store.announce(other)
    read = rllc.sweep.store._sweep

    def meanwhile(path: Path) -> Sweep:
        store.withdraw(SWEEP)
        return read(path)

    monkeypatch.setattr(rllc.sweep.store, "_sweep", meanwhile)
    assert [sweep.text() for sweep in store.sweeps()] == [other.text()]


def test_temporary_files_of_killed_writers_go_and_those_of_others_stay(tmp_path) -> None:
    import os

    store = Store(tmp_path)
    store.announce(SWEEP)
    old, new = tmp_path / "cells" / ".a.npz.x.tmp", tmp_path / "cells" / ".b.npz.x.tmp"
    old.touch(), new.touch()
    os.utime(old, (0, 0))
    store.announce(SWEEP)
    assert not old.exists()
    assert new.exists()
    assert store.finished() == set()
    unfinished, foreign = tmp_path / "generators" / ".a.x.tmp", tmp_path / "notes" / ".mine.tmp"
    (unfinished / "model").mkdir(parents=True), foreign.parent.mkdir(), foreign.touch()
    os.utime(unfinished, (0, 0)), os.utime(foreign, (0, 0))
    store.announce(SWEEP)
    assert not unfinished.exists()
    assert foreign.exists()


def test_differences_are_named() -> None:
    changes = {
        "lr: 0.001 there, 0.002 now": replace(SWEEP, settings=SWEEP.settings | {"lr": 2e-3}),
        "momentum: None there, 1 now": replace(SWEEP, settings=SWEEP.settings | {"momentum": 1}),
        "loss: 'next token' there, 'm:f' now": replace(SWEEP, loss="m:f"),
        "checkpoint of step 10, SHA-256: cccccccc… there, 00000000… now": replace(
            SWEEP, checkpoints={10: WHERE | {"sha256": "0" * 64}}
        ),
        "data 'code', SHA-256: dddddddd… there, 00000000… now": replace(
            SWEEP, data={"code": "0" * 64}
        ),
        "weights '0:1', SHA-256: ffffffff… there, 00000000… now": replace(
            SWEEP, weights={"0:1": "0" * 64}
        ),
        "num_draws: 5 there, 4 now (it can only grow)": replace(SWEEP, num_draws=4),
        "num_chains: 4 there, 2 now (it can only grow)": replace(SWEEP, num_chains=2),
    }
    for words, changed in changes.items():
        assert differences([SWEEP], changed) == [words]
    main, branch = (
        replace(SWEEP, checkpoints={10: WHERE | {"sha256": None, "revision": r}})
        for r in ("step10", "b")
    )
    assert differences([main], branch) == [
        "checkpoint of step 10, revision: 'step10' there, 'b' now"
    ]
    more = replace(
        SWEEP,
        num_draws=6,
        num_chains=8,
        checkpoints={20: WHERE | {"step": 20, "sha256": "0" * 64}},
        data={"prose": "0" * 64},
        weights={"1:0": "0" * 64},
    )
    assert differences([SWEEP], more) == []
    assert differences([SWEEP, more], SWEEP) == []  # back to what was there
    assert (
        differences([SWEEP], replace(SWEEP, checkpoints={10: WHERE | {"source": "/moved"}})) == []
    )


def test_covering_is_found_whenever_there_is_one() -> None:
    """Against all subsets of six cells: a chain of cells from 0 to 8 without a gap."""
    blocks = [(0, 4), (0, 2), (2, 4), (4, 8), (2, 8), (6, 8)]
    every = [Cell(str(b), 0, "d", ("w",), b) for b in blocks]
    for size in range(7):
        for some in itertools.combinations(every, size):
            reachable = {0}
            for _ in range(4):
                reachable |= {
                    c.chains[1] for c in some for r in reachable if c.chains[0] <= r < c.chains[1]
                }
            found = covering(some, "w", 8)
            assert (found is not None) == (8 in reachable)
            if found:
                assert sorted({k for c in found for k in range(*c.chains)}) == list(range(8))
    assert covering(every, "other", 8) is None
    assert [c.name for c in covering(every, "w", 4)] == [
        "(0, 4)"
    ]  # no chains beyond those asked for


def test_chains_from_several_cells_are_those_of_one() -> None:
    whole = _draws()
    parts = [
        _some(whole, [2, 0, 1], slice(0, 2)),
        _some(whole, [0, 2], slice(1, 5)),
        _some(whole, [2, 0], slice(5, 6)),
    ]
    found = gathered(parts, [(0, 2), (1, 5), (5, 6)], ["0:0", "0:2"])
    expected = _some(whole, [0, 2], slice(None))
    for name in ("loss", "baseline", "diverged", "noise"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name, array in expected.probes.items():
        assert np.array_equal(found.probes[name], array)
    assert (found.weights, found.data, found.lengths) == (
        expected.weights,
        expected.data,
        expected.lengths,
    )
    assert found.settings["num_chains"] == 6
    assert found.control is None


def test_a_cell_is_finished_or_failed_or_neither(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(SWEEP)
    name = SWEEP.cells[0].name
    key = (10, "0:0", "code")
    assert contents(store, [SWEEP], [SWEEP]).missing == (key, (10, "0:1", "code"))
    store.fail(name, "the reason")
    assert contents(store, [SWEEP], [SWEEP]).failed == {
        key: "the reason",
        (10, "0:1", "code"): "the reason",
    }
    assert store.failures() == {name: "the reason"}
    store.write(name, _draws(2, 4), {"why": "not"})
    assert contents(store, [SWEEP], [SWEEP]).cells[key] == (name,)
    assert store.failures() == {}
    assert store.read(name).settings["cell"] == {"why": "not"}
    (tmp_path / "failed" / f"{'m' * 32}.json").write_text("no json")
    assert "cannot be read" in store.failures()["m" * 32]


def test_more_draws_leave_those_of_fewer_out(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(SWEEP)
    store.write(SWEEP.cells[0].name, _draws(2, 4), {})
    longer = replace(SWEEP, num_draws=6, cells=(replace(SWEEP.cells[0], name="o" * 32),))
    found = contents(store, [SWEEP, longer], [SWEEP, longer])
    assert len(found.missing) == 2
    assert found.settings["num_draws"] == 6
    assert len(contents(store, [SWEEP, longer], [longer, SWEEP]).cells) == 2


def test_the_same_cell_is_the_same_bytes(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(SWEEP)
    store.write("a", _draws(), {"x": 1}), store.write("b", _draws(), {"x": 1})
    assert store.path("a").read_bytes() == store.path("b").read_bytes()


def test_fifty_flipped_bytes_and_truncation_are_found_and_set_aside(tmp_path) -> None:
    store = Store(tmp_path)
    store.announce(SWEEP)
    store.write("a", _draws(), {})
    whole = store.path("a").read_bytes()
    assert store.set_damaged_aside(["a"]) == []
    places = torch.randperm(len(whole), generator=generator("flipped"))[:50].tolist()
    for i in places:
        store.path("a").write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        assert store.set_damaged_aside(["a"]) == ["a"], i
        assert store.finished() == set()
        assert (tmp_path / "damaged" / "a.npz").exists()
    for share in (0.0, 0.5, 0.99):
        store.path("a").write_bytes(whole[: int(share * len(whole))])
        assert store.set_damaged_aside(["a"]) == ["a"]


def test_a_cell_that_another_sweep_sets_aside_or_computes_again_meanwhile_is_no_error(
    tmp_path, monkeypatch
) -> None:
    store = Store(tmp_path)
    store.announce(SWEEP)
    whole = Store(tmp_path / "other")
    whole.write("a", _draws(), {})
    is_whole = rllc.sweep.store._is_whole

    def gone(path) -> bool:
        path.unlink(missing_ok=True)
        return False

    def computed_again(path) -> bool:
        found = is_whole(path)
        path.write_bytes(whole.path("a").read_bytes())
        return found

    for meanwhile in (gone, computed_again):
        store.path("a").write_bytes(b"damaged")
        monkeypatch.setattr(rllc.sweep.store, "_is_whole", meanwhile)
        assert store.set_damaged_aside(["a"]) == ["a"]
        assert not list((tmp_path / "damaged").iterdir())
    assert is_whole(store.path("a"))


def test_damaged_rows_are_written_again(tmp_path) -> None:
    path = Store(tmp_path).save_rows((torch.arange(3),), "f")
    with open(path, "r+b") as file:
        file.truncate(50)
    again = load_rows(Store(tmp_path).save_rows((torch.arange(3),), "f"))
    assert torch.equal(again[0], torch.arange(3))


class Generating:
    """Saves itself, and before it is done somebody else has."""

    def __init__(self, faster: Path | None = None, error: OSError | None = None) -> None:
        self.faster, self.error = faster, error

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("mine")
        if self.faster is not None:
            self.faster.mkdir()
            (self.faster / "weights").write_text("theirs")
        if self.error is not None:
            raise self.error


def test_a_generating_model_is_whole_or_not_there(tmp_path) -> None:
    store, folder = Store(tmp_path), tmp_path / "generators" / "g"
    with pytest.raises(
        rllc.FileError, match=r"writing a generating model in `store` .* No space left"
    ):
        store.save_model(folder, Generating(error=OSError(28, "No space left on device")))
    assert list(folder.parent.iterdir()) == []
    store.save_model(folder, Generating())
    assert (folder / "weights").read_text() == "mine"
    store.save_model(folder.with_name("h"), Generating(folder.with_name("h")))
    assert (folder.with_name("h") / "weights").read_text() == "theirs"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["g", "h"]
    assert folder.stat().st_mode == folder.with_name("h").stat().st_mode  # the usual rights


def test_a_result_never_holds_two_kinds_of_settings(tmp_path) -> None:
    store = Store(tmp_path)
    other = replace(
        SWEEP,
        settings=SWEEP.settings | {"lr": 2e-3},
        cells=(replace(SWEEP.cells[0], name="o" * 32),),
        weights={"0:1": "f"},
    )
    store.write("o" * 32, _draws(2, 4), {})
    assert contents(store, [other, SWEEP], [other, SWEEP]).cells == {}
    found = contents(store, [SWEEP, other], [SWEEP, other])
    assert found.refinements == (("0:1", "code"),)
    assert found.cells == {(10, "0:1", "code"): ("o" * 32,)}


def test_rows_travel_as_they_are(tmp_path) -> None:
    parts = (
        torch.arange(6).reshape(3, 2),
        torch.randn(3, generator=generator("rows")),
        torch.tensor([True, False, True]),
    )
    again = load_rows(Store(tmp_path).save_rows(parts, "f"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(parts, again, strict=True))


def test_a_store_that_cannot_be_written_says_so(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        rllc.FileError,
        match=r"track: writing what this call asks for in `store` = .*file/store failed",
    ):
        Store(tmp_path / "file" / "store").announce(SWEEP)
    assert Store(tmp_path / "nowhere").finished() == set()
    assert Store(tmp_path / "nowhere").sweeps() == []
