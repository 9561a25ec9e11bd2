"""Rows of token ids: what becomes one, slices, mixtures, files, and what is refused."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllc.data import Tokens, mix
from rllc.errors import FileError, InputError
from rllc.storage.files import save_arrays

ROWS = [[4, 1, 2], [4, 3, 1]]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.int16).T.contiguous().T,
        [torch.tensor(row) for row in ROWS],
        torch.tensor(ROWS, dtype=torch.uint16),
        np.array(ROWS, dtype=np.uint16),
        np.array(ROWS, dtype=">i8"),
    ],
    ids=["lists", "tuples", "int64", "strided", "tensors", "torch-uint16", "uint16", "big-endian"],
)
def test_rows_of_any_kind_become_the_same_tokens(rows: Any) -> None:
    tokens = Tokens(rows, "toy")
    assert tokens.rows.dtype == torch.int32
    assert tokens.rows.is_contiguous()
    assert tokens.rows.tolist() == ROWS
    assert len(tokens) == 2
    assert tokens.num_positions == 3
    assert tokens.largest_id == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows; the data is empty"),
        (torch.empty(0, 8, dtype=torch.int64), "there are no rows; the data is empty"),
        ([[1], [2]], "at least 2 positions .* got 1"),
        ([[1, 2, 3], [1, 2, 3], [1, 2]], "row 0 has 3 positions and row 2 has 2"),
        ([1, 2, 3], r"must be \[row, pos\], got shape \[3\]"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"got shape \[1, 2, 3\]"),
        ([[0.5, 1.0]], "integer token ids, got torch.float32"),
        (np.zeros((2, 2)), "integer token ids, got torch.float64"),
        ([[True, False]], "integer token ids, got torch.bool"),
        ([[1, -3]], "got -3"),
        ([[1, 2**31]], "got 2147483648"),
        (["ab", "cd"], r"must be \[row, pos\] integers"),
        (None, r"must be \[row, pos\] integers, got NoneType"),
    ],
)
def test_rows_that_cannot_be_tokens_are_refused_by_name(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"Tokens 'toy': .*{message}"):
        Tokens(rows, "toy")


def test_the_fingerprint_is_a_hash_of_shape_and_little_endian_ids() -> None:
    contents = b"2 3" + struct.pack("<6i", *ROWS[0], *ROWS[1])
    by_hand = hashlib.sha256(contents).hexdigest()
    assert Tokens(ROWS, "a").fingerprint == by_hand
    assert Tokens(torch.tensor(ROWS), "b", dropped=1).fingerprint == by_hand
    assert Tokens([[4, 1], [2, 4], [3, 1]]).fingerprint != by_hand
    assert Tokens([[4, 1, 2], [4, 3, 0]]).fingerprint != by_hand


# Parts and mixtures.


@pytest.mark.parametrize("index", [4, np.int64(4), -2])
def test_an_integer_takes_a_row(index: int) -> None:
    tokens = Tokens(torch.arange(12).view(6, 2))
    assert tokens[index].tolist() == [8, 9]


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 3),
        [1, 2],
        torch.tensor([1, 2]),
        torch.tensor([False, True, True, False, False, False]),
    ],
    ids=["slice", "list", "tensor", "mask"],
)
def test_other_indices_take_tokens_of_the_rows(index: Any) -> None:
    tokens = Tokens(torch.arange(12).view(6, 2), "toy", dropped=1)
    part = tokens[index]
    assert isinstance(part, Tokens)
    assert part.rows.tolist() == [[2, 3], [4, 5]]
    assert part.name == "toy"
    assert part.dropped == 0


def test_tokens_are_a_sequence_of_rows() -> None:
    tokens = Tokens(torch.arange(12).view(6, 2))
    assert [row.tolist() for row in tokens] == tokens.rows.tolist()
    with pytest.raises(InputError, match="there are no rows"):
        tokens[6:]


@pytest.mark.parametrize(("first", "sizes"), [(2, [2, 4]), (0.5, [3, 3]), (0.9, [5, 1])])
def test_splitting_keeps_every_row_once_and_in_order(first: float, sizes: list[int]) -> None:
    tokens = Tokens(torch.arange(12).view(6, 2))
    parts = tokens.split(first)
    assert [len(part) for part in parts] == sizes
    assert torch.cat([part.rows for part in parts]).equal(tokens.rows)


@pytest.mark.parametrize("first", [0, 6, -1, 1.0, 0.01])
def test_a_split_without_rows_on_one_side_is_refused(first: float) -> None:
    tokens = Tokens(torch.arange(12).view(6, 2))
    message = f"rows on both sides, got {first}. Give a number of rows from 1 to 5"
    with pytest.raises(InputError, match=message):
        tokens.split(first)


def test_a_mixture_has_all_rows_in_a_seeded_order() -> None:
    code = Tokens(torch.arange(200).view(100, 2), "code", 3)
    prose = Tokens(torch.arange(200, 300).view(50, 2), "prose", 4)
    mixture = mix("all", code, prose)
    assert mixture.name == "all"
    assert mixture.dropped == 7
    assert sorted(mixture.rows.tolist()) == [*code.rows.tolist(), *prose.rows.tolist()]
    num_prose_in_first_half = int((mixture.rows[:75, 0] >= 200).sum())
    assert 0 < num_prose_in_first_half < 50
    assert mix("again", code, prose).fingerprint == mixture.fingerprint
    assert mix("all", code, prose, seed=1).fingerprint != mixture.fingerprint


def test_a_mixture_needs_rows_of_one_length() -> None:
    message = r"rows of one length, got Tokens\('a': .* 3 positions\), .* 2 positions"
    with pytest.raises(InputError, match=message):
        mix("all", Tokens(ROWS, "a"), Tokens([[1, 2]], "b"))
    with pytest.raises(InputError, match="got nothing"):
        mix("all")


# Files and words.


def test_tokens_are_saved_whole(tmp_path: Path) -> None:
    tokens = Tokens(ROWS, "toy", dropped=5)
    loaded = Tokens.load(tokens.save(tmp_path / "toy.npz"))
    assert loaded.name == "toy"
    assert loaded.dropped == 5
    assert loaded.fingerprint == tokens.fingerprint


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    arrays = {"rows": np.zeros((2, 2), dtype=int)}
    save_arrays(tmp_path / "other.npz", arrays, {"kind": "rllc.Draws"})
    with pytest.raises(FileError, match=r"holds rllc.Draws, not Tokens"):
        Tokens.load(tmp_path / "other.npz")


def test_the_repr_reports_the_dropped_tail() -> None:
    tokens = Tokens(ROWS, "toy", dropped=1234)
    expected = "Tokens('toy': 2 rows x 3 positions, 1,234 tokens of the tail dropped)"
    assert repr(tokens) == expected
