"""Files that are whole but not what they should be: an error that says which file and field."""

from __future__ import annotations

import time

import numpy as np
import pytest

import rllc
from rllc.errors import nearest
from rllc.storage.files import save_arrays
from rllc.sweep.store import Store

LOSS = np.zeros((1, 2, 3))
ARRAYS = {"loss": LOSS, "baseline": LOSS, "diverged": np.zeros((1, 2), dtype=int)}
HEADER = {
    "kind": "rllc.Draws",
    "weights": ["0:1"],
    "data": ["code"],
    "settings": rllc.Sampling().settings | {"localization": 200.0, "lr": 1e-3},
    "lengths": [3],
    "states": [],
}
CHANGES = [
    ({}, {"weights": None}, "a field is not as rllc writes it"),
    ({}, {"settings": 3}, "a field is not as rllc writes it"),
    ({}, {"lengths": ["a"]}, "a field is not as rllc writes it"),
    ({}, {"states": 1}, "a field is not as rllc writes it"),
    (
        {},
        {"weights": ["0:1", "1:1"]},
        "as many texts in `weights` as in `data`, got 2 and 1",
    ),
    ({"loss": np.zeros(3)}, {}, r"loss is \[3\], expected 3 axes, 1 rows"),
    ({"loss": np.full((1, 2, 3), "a")}, {}, "loss holds <U1, expected numbers"),
    ({"diverged": LOSS}, {}, "diverged is"),
]


@pytest.mark.parametrize(("arrays", "header", "message"), CHANGES, ids=range(len(CHANGES)))
def test_draws_of_foreign_contents_are_refused(tmp_path, arrays, header, message) -> None:
    path = save_arrays(tmp_path / "draws.npz", ARRAYS | arrays, HEADER | header)
    with pytest.raises(rllc.FileError, match=rf"^reading .*draws\.npz: .*{message}"):
        rllc.Draws.load(path)


@pytest.mark.parametrize("field", [name for name in HEADER if name != "kind"])
def test_a_missing_field_is_named(tmp_path, field: str) -> None:
    header = {name: value for name, value in HEADER.items() if name != field}
    path = save_arrays(tmp_path / "draws.npz", ARRAYS, header)
    with pytest.raises(rllc.FileError, match=f"it has no field '{field}'"):
        rllc.Draws.load(path)


@pytest.mark.parametrize("kind", [rllc.Estimate, rllc.Trajectory])
def test_other_results_say_so_too(tmp_path, kind: type) -> None:
    path = save_arrays(tmp_path / "x.npz", {}, {"kind": f"rllc.{kind.__name__}"})
    with pytest.raises(rllc.FileError, match="it has no field"):
        kind.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"kind": 1}', "\ud800"])
def test_a_plan_of_foreign_contents_is_refused(tmp_path, text: str) -> None:
    from rllc.storage.identity import short_hash

    (tmp_path / "sweeps").mkdir()
    written = text.encode("utf-8", "surrogatepass")
    name = "0" if "\ud800" in text else short_hash(text)
    (tmp_path / "sweeps" / f"{name}.json").write_bytes(written)
    with pytest.raises(rllc.FileError, match=r"is damaged or was not written by rllc\.track"):
        Store(tmp_path).plans()


def test_a_store_is_made_only_in_a_folder_that_is_new_empty_or_its_own(tmp_path) -> None:
    from test_plan import PLAN

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(rllc.FileError, match="holds 'data', and no sweep; give a new or an empty"):
        Store(tmp_path).announce(PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    Store(tmp_path / "s").announce(PLAN)
    (tmp_path / "s" / "notes.txt").write_text("beside it")
    Store(tmp_path / "s").announce(PLAN)


def test_what_is_close_to_long_names_is_found_soon() -> None:
    names = [f"{'layer.' * 100}{i}" for i in range(20_000)]
    begin = time.perf_counter()
    nearest("layer." * 30_000, names)
    assert time.perf_counter() - begin < 10
