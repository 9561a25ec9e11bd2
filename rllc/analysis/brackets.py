"""Brackets: which ids of a tokenizer they are, and which one is open where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rllc.errors import InputError

PAIRS = ("()", "[]", "{}", "<>")


def brackets(
    tokenizer: Any,
    pairs: Sequence[str] = PAIRS,
) -> dict[int, frozenset[int]]:
    """The ids that open a bracket, each with the ids that close it.

    An id is a bracket if its text has exactly one, whatever else it has: ``" ("``, ``"print("`` and
    ``");"`` are. Texts with several, such as ``"()"``, are not; that is right where they balance.

    >>> class Letters:
    ...     __len__, decode = lambda self: 128, lambda self, ids: "".join(map(chr, ids))
    >>> brackets(Letters())[ord("(")] == {ord(")")}
    True

    Args:
        tokenizer: with ``decode`` and a length.
        pairs: strings of two characters. ``<`` as "less than" hides an outer bracket until the
            next closing one; leave ``"<>"`` out for texts without tags.

    Raises:
        InputError: a pair is not two characters, or no id opens a bracket.
    """
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(
                f"brackets: `pairs` are strings of two characters, such as '()', got {pair!r}."
            )
    ids = _ids_by_sign(tokenizer, set("".join(pairs)))
    closers: dict[int, frozenset[int]] = {}
    for pair in pairs:
        opening, closing = pair[0], pair[1]
        if ids[closing]:
            closers |= dict.fromkeys(ids[opening], frozenset(ids[closing]))
    if not closers:
        names = ", ".join(map(repr, pairs))
        raise InputError(f"brackets: no id of the tokenizer opens one of {names}; pass `pairs`.")
    return closers


def _ids_by_sign(
    tokenizer: Any,
    signs: Collection[str],
) -> dict[str, list[int]]:
    """The ids whose text has exactly one of the signs, by sign."""
    ids = defaultdict(list)
    for i in range(len(tokenizer)):
        signs_of_text = [sign for sign in tokenizer.decode([i]) if sign in signs]
        if len(signs_of_text) == 1:
            ids[signs_of_text[0]].append(i)
    return ids


def check_brackets(
    brackets: Mapping[int, int | Collection[int]],
    caller: str,
) -> dict[int, frozenset[int]]:
    """Brackets as :func:`brackets` gives them, from single closing ids too.

    Raises:
        InputError: something is not an id.
    """
    checked = {}
    for opener, closers in brackets.items():
        ids = closers if isinstance(closers, Collection) else [closers]
        are_ids = [isinstance(i, int | np.integer) for i in (opener, *ids)]
        if isinstance(ids, str) or not all(are_ids):
            raise InputError(
                f"{caller}: `brackets` must map the id of an opening bracket to the id or ids that "
                f"close it, got {opener!r}: {closers!r}; brackets(tokenizer) makes such a mapping."
            )
        checked[int(opener)] = frozenset(int(i) for i in ids)
    return checked


def innermost(
    row: Iterable[int],
    closers: Mapping[int, Collection[int]],
) -> np.ndarray:
    """The position of the innermost bracket that is open after each position ``[pos]``.

    It is −1 where none is open. A token that closes an open bracket also closes all that were
    opened after it, so a bracket that is never closed is given up in the end. A token that closes
    nothing opens a bracket, if it can, or is skipped: rows may begin in the middle of a text.

    >>> innermost([1, 2, 9, 1, 9, 9], {1: {9}})
    array([ 0,  0, -1,  3, -1, -1])
    """
    stack: list[tuple[int, Collection[int]]] = []
    positions = []
    for position, token in enumerate(int(i) for i in row):
        depths = [depth for depth, (_, closing) in enumerate(stack) if token in closing]
        if depths:
            del stack[depths[-1] :]
        elif token in closers:
            stack.append((position, closers[token]))
        positions.append(stack[-1][0] if stack else -1)
    return np.array(positions)
