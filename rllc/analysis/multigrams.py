"""Multigrams: tokens that a head looks at again and again to predict the same next token."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Multigram(NamedTuple):
    """A recurring n-gram or skip n-gram: tokens that a head looks at, and what it predicts."""

    head: str
    kind: str
    """``"n-gram"`` or ``"skip n-gram"``."""
    tokens: tuple[int, ...]
    """Ids in their order, the last one before the target. Others may lie between those of a skip
    n-gram."""
    target: int
    occurrences: int
    """Among the head's tokens in context."""
    rows: int
    """How many rows they are in."""
    effect: float
    """Mean rise of the target's loss, nats."""


class Context(NamedTuple):
    """A token in context, with the positions that a head attends to when it predicts it."""

    row: int
    ids: np.ndarray
    """``[pos]``: of the whole row."""
    query: int
    """The position before the token."""
    attended: tuple[int, ...]
    """Positions, most attended first."""
    target: int
    """The id of the token."""

    def without(self, ids: Collection[int]) -> Context:
        """Return the context without the attended positions that have these ids."""
        kept = [position for position in self.attended if int(self.ids[position]) not in ids]
        return self._replace(attended=tuple(kept))


class Pattern(NamedTuple):
    """The kind, tokens and target that all occurrences of a multigram share."""

    kind: str
    tokens: tuple[int, ...]
    target: int


def find_multigrams(
    contexts: Mapping[int, Context],
    min_rows: int,
    fixed: float,
) -> dict[Pattern, list[int]]:
    """The multigrams among the tokens in context of one head, with the tokens that are each.

    Tokens belong together if the attended tokens, the one before the target and the target are
    the same. A token that belongs nowhere by all that it attends to may do so by what it attends
    to most.

    Args:
        contexts: by any number.
        min_rows: rows in which a multigram must occur.
        fixed: see :class:`rllc.analysis.tokens_in_context.Thresholds`.
    """
    by_all, by_strongest = {}, {}
    for i, context in contexts.items():
        if context.attended:
            by_all[i] = _occurrence(context, context.attended)
            by_strongest[i] = _occurrence(context, context.attended[:1])
    members: dict[Pattern, list[int]] = defaultdict(list)
    for group in _recurring(by_all, min_rows):
        members[_pattern([by_all[i] for i in group], fixed)] += group
    # A token whose weaker attention fell elsewhere joins the commonest multigram that has its
    # strongest; what is left may recur by the strongest alone.
    commonest = _commonest_pattern(members, by_strongest)
    for i in _left(by_strongest, members):
        if by_strongest[i].key in commonest:
            members[commonest[by_strongest[i].key]].append(i)
    left = {i: by_strongest[i] for i in _left(by_strongest, members)}
    for group in _recurring(left, min_rows):
        members[_pattern([left[i] for i in group], fixed)] += group
    return members


class _Occurrence(NamedTuple):
    """The tokens that a head reads at one token in context."""

    row: int
    suffix: tuple[int, ...]
    """Ids from the first read position to the one before the target, without gaps."""
    tokens: tuple[int, ...]
    """Ids at the read positions alone."""
    target: int

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        return self.tokens, self.target


def _occurrence(context: Context, attended: Iterable[int]) -> _Occurrence:
    """The occurrence that is read at attended positions and at the one before the target."""
    ids, query = context.ids, context.query
    positions = sorted({*attended, query})
    return _Occurrence(
        row=context.row,
        suffix=tuple(ids[positions[0] : query + 1].tolist()),
        tokens=tuple(ids[positions].tolist()),
        target=context.target,
    )


def _recurring(
    occurrences: Mapping[int, _Occurrence],
    min_rows: int,
) -> list[list[int]]:
    """Groups with the same tokens and target that are in enough rows."""
    groups = defaultdict(list)
    for i, occurrence in occurrences.items():
        groups[occurrence.key].append(i)
    recurring = []
    for group in groups.values():
        rows = {occurrences[i].row for i in group}
        if len(rows) >= min_rows:
            recurring.append(group)
    return recurring


def _pattern(occurrences: Sequence[_Occurrence], fixed: float) -> Pattern:
    """The multigram that occurrences with the same tokens and target are.

    It is an n-gram if one filling of the gaps makes most of them.
    """
    first = occurrences[0]
    suffixes = Counter(occurrence.suffix for occurrence in occurrences)
    suffix, count = suffixes.most_common(1)[0]
    if count > fixed * len(occurrences) or count == len(occurrences):
        return Pattern("n-gram", suffix, first.target)
    return Pattern("skip n-gram", first.tokens, first.target)


def _commonest_pattern(
    members: Mapping[Pattern, list[int]],
    by_strongest: Mapping[int, _Occurrence],
) -> dict[tuple[tuple[int, ...], int], Pattern]:
    """From what the strongest attention reads to the commonest multigram that occurs so."""
    commonest = {}
    for pattern in sorted(members, key=lambda pattern: len(members[pattern])):
        for i in members[pattern]:
            commonest[by_strongest[i].key] = pattern
    return commonest


def _left(
    occurrences: Mapping[int, object],
    members: Mapping[Pattern, list[int]],
) -> list[int]:
    """The tokens that are in no multigram."""
    taken = set()
    for group in members.values():
        taken.update(group)
    return sorted(set(occurrences) - taken)
