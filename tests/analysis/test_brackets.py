"""Brackets: which ids they are, and which one is open where."""

from __future__ import annotations

import handmade
import numpy as np
import pytest
from handmade import bracket_rows

from rllc.analysis.brackets import brackets, check_brackets, innermost
from rllc.errors import InputError


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, 8, 9, 3], [0, 1, 0, -1, -1]),
        ([9, 1, 8, 2, 7], [-1, 1, 1, 3, 1]),  # what was never opened is skipped
        ([1, 2, 9, 7], [0, 1, -1, -1]),  # what is never closed is given up
        ([5, 1, 9, 5, 5], [0, 1, 0, -1, 4]),  # quotes close what they open
    ],
)
def test_the_innermost_open_bracket(row: list[int], expected: list[int]) -> None:
    closers = {1: {9}, 2: {8, 7}, 5: {5}}
    assert innermost(row, closers).tolist() == expected


def test_the_innermost_open_bracket_of_a_dyck_word() -> None:
    row = bracket_rows(1, pos=24)[0]
    result = innermost(row, {1: {3}, 2: {4}})
    assert np.maximum(result, 0).tolist() == handmade.innermost(row)  # which rests at 0


def test_brackets_of_a_tokenizer(small_tokenizer) -> None:
    closers = brackets(small_tokenizer)
    opener, closer = (small_tokenizer(sign)["input_ids"][0] for sign in "()")
    assert closer in closers[opener]
    ids = set(closers).union(*closers.values())
    for i in ids:
        signs = [sign for sign in small_tokenizer.decode([i]) if sign in "()[]{}<>"]
        assert len(signs) == 1
    assert small_tokenizer.eos_token_id not in ids  # <|endoftext|> has two


class Words:
    """A tokenizer with a few words."""

    words = ("(", " f(", ")", ");", "()", "<", "x", '"')

    def __len__(self) -> int:
        return len(self.words)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


def test_brackets_of_words() -> None:
    assert brackets(Words()) == {0: {2, 3}, 1: {2, 3}}  # no '>' closes '<'
    assert brackets(Words(), ['""']) == {7: {7}}


def test_single_closing_ids_are_accepted() -> None:
    assert check_brackets({1: 2, np.int64(3): [4, 5]}, "") == {1: {2}, 3: {4, 5}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: brackets([], ["("]),
            r"`pairs` are strings of two characters, such as '\(\)', got '\('",
        ),
        (lambda: brackets([]), r"no id of the tokenizer opens one of '\(\)', '\[\]'"),
        (
            lambda: check_brackets({"(": ")"}, "tokens_in_context"),
            r"tokens_in_context: `brackets` must map the id .* got '\(': '\)'",
        ),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
