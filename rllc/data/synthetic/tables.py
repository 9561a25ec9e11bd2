"""The tables of the synthetic language, and how its vocabulary is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rllc.data.synthetic.rules import ARITIES, Option
from rllc.seeds import generator

if TYPE_CHECKING:
    from rllc.data.synthetic.language import Language

Table = tuple[tuple[int, ...], ...]
"""Entries of a fixed number of ids."""

Continuations = dict[tuple[int, ...], list[Option]]
"""From the beginning of an entry to the tokens that may follow."""

_TRIGGERS = 4
_ATOMS = 8


def sizes_of_kinds(language: Language) -> dict[str, int]:
    """How many ids there are of each kind, in the order of their ids."""
    sizes = {
        "start": 1,
        "marks": 5,
        "triggers": _TRIGGERS,
        "brackets": 2 * language.num_bracket_types,
        "parentheses": 2,
        "operators": len(ARITIES),
        "atoms": _ATOMS,
    }
    sizes["letters"] = language.vocab_size - sum(sizes.values())
    return sizes


def alphabets(language: Language) -> dict[str, list[range]]:
    """For each table, the ids from which its first, second, … tokens are chosen."""
    letters = language.ids["letters"]
    half = letters[: len(letters) // 2]
    quarter = letters[: len(letters) // 4]
    beginning = [half] * (language.order - 1)
    skip_ngram = [quarter, language.ids["triggers"], *beginning[2:]]
    if language.order > 2:
        skip_ngram.append(letters)
    return {"ngram": [*beginning, letters], "skip_ngram": skip_ngram}


def num_beginnings(of_entry: Sequence[range]) -> int:
    """How many different beginnings (all tokens but the last) entries can have."""
    return math.prod(len(alphabet) for alphabet in of_entry[:-1])


def make_table(of_entry: Sequence[range], count: int, key: tuple[object, ...]) -> Table:
    """``count`` random entries with different beginnings.

    Args:
        of_entry: the ids from which the first, second, … tokens of an entry are chosen.
        count: at most the number of beginnings.
        key: decides the random numbers.
    """
    stream = generator("synthetic", *key)
    *of_beginning, of_last = of_entry
    places_of_last = torch.randint(len(of_last), (count,), generator=stream)
    # A beginning is a number whose digits are places in the alphabets. A dict keeps the order in
    # which the numbers are first drawn.
    beginnings: dict[int, None] = {}
    while len(beginnings) < count:
        drawn = torch.randint(num_beginnings(of_entry), (count,), generator=stream)
        beginnings |= dict.fromkeys(drawn.tolist())
    entries = []
    for number, place in zip(beginnings, places_of_last.tolist(), strict=False):
        beginning = _digits(number, of_beginning)
        entries.append((*beginning, of_last[place]))
    return tuple(entries)


def _digits(number: int, alphabets: Sequence[range]) -> list[int]:
    tokens = []
    for alphabet in alphabets:
        number, digit = divmod(number, len(alphabet))
        tokens.append(alphabet[digit])
    return tokens


def continuations(table: Table) -> Continuations:
    """For each beginning of an entry, the tokens that follow it, with their shares."""
    counts: dict[tuple[int, ...], dict[int, int]] = {}
    for entry in table:
        for k, token in enumerate(entry):
            following = counts.setdefault(entry[:k], {})
            following[token] = following.get(token, 0) + 1
    tree = {}
    for beginning, following in counts.items():
        total = sum(following.values())
        options = []
        for token, count in following.items():
            options.append(Option(count / total, (token,)))
        tree[beginning] = options
    return tree
