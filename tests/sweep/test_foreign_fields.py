"""Files that are whole and have a wrong value in one field: an error of ours, or a usable result.

Of every reader a file as rllc writes it is changed in one field after the other.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_sweeps import DATA, QUICK
from tiny import SHORT, tiny_model

import rllc
import rllc.storage.files
from rllc.sweep.store import Store

WRONG = [None, True, -1, 10**400, math.nan, "x", [], {}, [[]], [None], {"x": None}, 2.5]
FEW = 3
"""Values that each field gets: others than its neighbours get."""


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all fields, those within lists and objects included."""
    if path:
        yield path
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = list(enumerate(value))[:1]
    for key, part in inside:
        yield from fields_of(part, (*path, key))


def changed(header: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The header with one field changed, or left out, in turn."""
    plain = json.loads(json.dumps(header))
    for number, path in enumerate(fields_of(plain)):
        for shift in range(FEW):
            wrong = WRONG[(FEW * number + shift) % len(WRONG)]
            other = deepcopy(plain)
            *parents, last = path
            place = other
            for key in parents:
                place = place[key]
            place[last] = wrong
            yield f"{path} = {wrong!r:.20}", other
        if isinstance(path[-1], str):
            other = deepcopy(plain)
            place = other
            for key in path[:-1]:
                place = place[key]
            del place[path[-1]]
            yield f"without {path}", other


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    observe = {"rows": rllc.losses_on(DATA["a"])}
    return rllc.sample(tiny_model(), DATA["a"], ["0:0", "0:1"], observe=observe, **QUICK)


def results(draws: rllc.Draws) -> dict[str, Any]:
    estimate = rllc.Estimate.of(draws)
    return {
        "rllc.sampling.draws": draws,
        "rllc.estimates.estimate": estimate,
        "rllc.sweep.trajectory": rllc.Trajectory.of({0: estimate, 10: estimate}),
        "rllc.data.tokens": DATA["a"],
        "rllc.calibration.calibrate": calibration(estimate),
        "rllc.covariances.results": rllc.covariances.Susceptibilities.of(draws, "rows"),
    }


def calibration(estimate: rllc.Estimate) -> rllc.Calibration:
    """Two settings that were tried."""
    return rllc.Calibration(
        lr=np.array([1e-3, 3e-3]),
        n_beta=np.array([30.0, 30.0]),
        localization=np.array([200.0, 200.0]),
        estimates=(estimate, estimate),
        limits=rllc.Limits(),
        make=lambda lr, localization: rllc.sgld(lr=lr, localization=localization),
        sampling=rllc.Sampling(),
    )


USES: dict[str, Callable[[Any], object]] = {
    "rllc.sampling.draws": lambda draws: (repr(draws), rllc.Estimate.of(draws).status),
    "rllc.estimates.estimate": lambda estimate: (
        repr(estimate),
        estimate.judge(),
        estimate.to_dataframe(),
    ),
    "rllc.sweep.trajectory": lambda trajectory: (repr(trajectory), trajectory.status),
    "rllc.data.tokens": repr,
    "rllc.calibration.calibrate": lambda tried: (repr(tried), tried.to_dataframe()),
    "rllc.covariances.results": lambda chi: (repr(chi), chi.to_dataframe(), chi.status),
}


@pytest.mark.parametrize("module", USES)
def test_a_wrong_field_is_an_error_of_ours(draws, module: str, monkeypatch, tmp_path) -> None:
    result = results(draws)[module]
    path = result.save(tmp_path / "result.npz")
    arrays, header = rllc.storage.files.load_arrays(path)
    refused = 0
    for change, other in changed(header):
        if change.startswith(("('kind',)", "without ('kind',)")):
            continue
        contents = dict(arrays), other

        def load(path, kind=None, contents=contents):
            return contents

        monkeypatch.setattr(sys.modules[module], "load_arrays", load)
        try:
            loaded = type(result).load(path)
        except rllc.FileError:
            refused += 1
            continue
        try:
            USES[module](loaded)
        except rllc.RllcError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error
    assert refused > 3


@pytest.mark.parametrize("module", USES)
def test_a_wrong_array_is_an_error_of_ours(draws, module: str, monkeypatch, tmp_path) -> None:
    result = results(draws)[module]
    path = result.save(tmp_path / "result.npz")
    arrays, header = rllc.storage.files.load_arrays(path)
    others = [np.array(3.0), np.zeros((0,)), np.array(["a"]), np.zeros((9, 9)), np.ones((1, 1, 1))]
    for name in arrays:
        for array in [*others, None]:
            changed_arrays = dict(arrays)
            if array is None:
                del changed_arrays[name]
            else:
                changed_arrays[name] = array

            def load(path, kind=None, contents=(changed_arrays, header)):
                return contents

            monkeypatch.setattr(sys.modules[module], "load_arrays", load)
            try:
                loaded = type(result).load(path)
            except rllc.RllcError:
                continue
            try:
                USES[module](loaded)
            except rllc.RllcError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}, {array}: {error!r}") from error


def test_a_wrong_field_of_a_plan_is_an_error_of_ours(unbroken_store, tmp_path) -> None:
    from rllc.storage.identity import short_hash

    (plan,) = (unbroken_store / "sweeps").glob("*.json")
    refused = 0
    for number, (change, other) in enumerate(changed(json.loads(plan.read_text()))):
        text = json.dumps(other)
        folder = tmp_path / str(number) / "sweeps"
        folder.mkdir(parents=True)
        (folder / f"{short_hash(text)}.json").write_text(text)
        try:
            sweep = rllc.Sweep.open(folder.parent)
        except rllc.FileError:
            refused += 1
            continue
        try:
            repr(sweep), sweep.trajectory()
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error
    assert refused > 50


def test_a_wrong_field_of_a_cell_makes_it_damaged(unbroken_store, monkeypatch) -> None:
    sweep = rllc.Sweep.open(unbroken_store)
    whole = sweep.trajectory()
    name = sweep.finished[10, "0:1", "b"][0].name
    path = Store(unbroken_store).path(name)
    load_arrays = rllc.storage.files.load_arrays
    arrays, header = load_arrays(path)
    damaged = 0
    for change, other in list(changed(header))[::4]:

        def load(file, kind=None, other=other):
            return (dict(arrays), other) if Path(file) == path else load_arrays(file, kind=kind)

        monkeypatch.setattr("rllc.sampling.draws.load_arrays", load)
        try:
            trajectory = sweep.trajectory()
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error
        row = trajectory.at(10)
        for pair in whole.names:
            if row["0:1", "b"].status.startswith("damaged") and pair == ("0:1", "b"):
                damaged += 1
            elif pair[1] == "a":
                assert row[pair].value == whole.at(10)[pair].value, change
    assert damaged > 3


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "null", '"x"', "{", "\ud800", "NaN"])
def test_small_texts_that_are_nothing_of_ours(tmp_path, text: str) -> None:
    """Whatever file it stands in place of."""
    contents = text.encode("utf-8", "surrogatepass")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "0.json").write_bytes(contents)
    with pytest.raises(rllc.FileError, match=r"sweeps.0\.json"):
        rllc.Sweep.open(tmp_path)
    run = tmp_path / "run"
    tiny_model().save_pretrained(run)
    (run / "config.json").write_bytes(contents)
    with pytest.raises(rllc.RllcError, match=r"config\.json"):
        rllc.load(run)
    (tmp_path / "spec.json").write_bytes(contents)
    from rllc.sweep.command import read_spec

    with pytest.raises(rllc.RllcError, match=r"spec\.json"):
        read_spec(tmp_path / "spec.json", rllc.Compute())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_bytes(contents)
    config = tiny_model().config
    training_of_one_step = rllc.Training(num_steps=1, batch_size=4)
    with pytest.raises(rllc.RllcError, match=r"training\.json"):
        rllc.train(config, DATA["a"], tmp_path / "out", training=training_of_one_step)
    (tmp_path / "a.jsonl").write_bytes(contents)
    with pytest.raises(rllc.RllcError, match=r"a\.jsonl"):
        list(rllc.data.pile_texts(source=tmp_path / "a.jsonl"))


def test_a_wrong_field_of_a_description_of_a_sweep_is_an_error_of_ours(run, tmp_path) -> None:
    from rllc.sweep.command import read_spec

    DATA["a"].save(tmp_path / "a.npz")
    spec = {
        "checkpoints": str(run),
        "data": {"a": "a.npz"},
        "weights": ["0:1"],
        "steps": [10],
        "positions": "shortformer",
        "sampler": {"sampler": "sgld", "lr": 1e-3, "localization": 200.0},
        "sampling": {"num_chains": 2, "num_draws": 5, "batch_size": 4},
        "store": "s",
        "loss": "rllc:next_token",
        "keep_states": True,
    }
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    assert list(read_spec(path, rllc.Compute()).checkpoints) == [10]
    for change, other in changed(spec):
        path.write_text(json.dumps(other))
        try:
            read_spec(path, rllc.Compute())
        except rllc.RllcError:
            continue
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error


def test_a_wrong_field_of_a_tracker_s_file_is_an_error_of_ours(tmp_path, monkeypatch) -> None:
    path = tmp_path / "t.npz"

    def tracker() -> rllc.Tracker:
        return rllc.Tracker(DATA["a"], "0:1", sampling=SHORT, path=path)

    tracker()(0, tiny_model())
    arrays, header = rllc.storage.files.load_arrays(path)
    for change, other in changed(header):

        def load(path, kind=None, other=other):
            return dict(arrays), other

        monkeypatch.setattr("rllc.sweep.trajectory.load_arrays", load)
        try:
            repr(tracker())
        except rllc.RllcError:
            continue
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error


# Writing.


@pytest.mark.parametrize("module", USES)
def test_what_cannot_be_written_is_an_error_that_names_the_file(draws, module, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    result = results(draws)[module]
    for path in (tmp_path / "file" / "a.npz", tmp_path / "folder", tmp_path / ("long" * 100)):
        with pytest.raises(rllc.FileError, match=r"writing .* failed .*; nothing of it is left"):
            result.save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_is_an_error_of_ours(draws, tmp_path, monkeypatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(rllc.FileError, match=r"No space left on device.*; nothing of it is left"):
        draws.save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
    store = Store(tmp_path / "s")
    with pytest.raises(rllc.FileError, match=r"cell ab in `store`.*No space left.*cells are whole"):
        store.write("ab", draws, {})


def test_a_tracker_finds_out_at_once_that_its_file_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "t.npz", tmp_path / ("long" * 100)):
        with pytest.raises(rllc.FileError, match=r"`path` = .* cannot be written"):
            rllc.Tracker(torch.eye(4), path=path)
    with pytest.raises(rllc.FileError):
        rllc.Tracker(torch.eye(4), path=tmp_path)
