"""The explanation of a token in context: induction, a closing bracket, or a recurring multigram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rllc.analysis.brackets import innermost
from rllc.analysis.multigrams import Context, Pattern, find_multigrams
from rllc.seeds import generator

KINDS = ("induction", "dyck", "n-gram", "skip n-gram", "other")
"""The kinds of tokens in context; the first kind that fits counts."""

_DEALS = 8
"""Times that targets are dealt at random; shares by chance are then known to about 0.01."""


@dataclass(frozen=True)
class Explain:
    """The rules that give the tokens in context of a head their kinds.

    Args:
        closers: opening brackets with the ids that close them.
        rest: ids that heads attend to when there is nothing to look at.
        min_rows: rows in which a multigram must occur.
        fixed: see :class:`rllc.analysis.contexts.Thresholds`.
    """

    closers: Mapping[int, frozenset[int]]
    rest: frozenset[int]
    min_rows: int
    fixed: float
    _open_brackets: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    """For the rows that were asked for, the innermost open bracket at each position."""

    def by_row(self, contexts: Sequence[Context]) -> np.ndarray:
        """The kind of each token by its own row alone: induction, Dyck or other, ``[token]``."""
        kind = np.full(len(contexts), "other", dtype=object)
        for i, context in enumerate(contexts):
            if is_induction(context):
                kind[i] = "induction"
            elif self._is_dyck(context):
                kind[i] = "dyck"
        return kind

    def by_memory(self, contexts: Mapping[int, Context]) -> dict[Pattern, list[int]]:
        """The multigrams that recur among tokens, each with its tokens."""
        without_rest = {i: context.without(self.rest) for i, context in contexts.items()}
        return find_multigrams(without_rest, self.min_rows, self.fixed)

    def _is_dyck(self, context: Context) -> bool:
        """Whether the head looks at the innermost open bracket, which the token closes."""
        if not self.closers:
            return False
        if context.row not in self._open_brackets:
            self._open_brackets[context.row] = innermost(context.ids, self.closers)
        opener = self._open_brackets[context.row][context.query]
        if opener < 0 or opener not in context.attended:
            return False
        bracket = int(context.ids[opener])
        return context.target in self.closers[bracket]


def is_induction(context: Context) -> bool:
    """Whether the head looks at an earlier copy of the token, after a copy of the one before."""
    ids = context.ids
    for position in context.attended:
        if 0 < position < context.query:
            is_copy = ids[position] == context.target
            follows_copy = ids[position - 1] == ids[context.query]
            if is_copy and follows_copy:
                return True
    return False


def by_chance(
    contexts: Sequence[Context],
    kind: np.ndarray,
    explain: Explain,
    seed: int | str,
) -> tuple[np.ndarray, float]:
    """How many tokens would have each kind if a head's attention did not depend on what comes next.

    The targets are dealt at random among the head's tokens in context, while what the head attends
    to stays. For multigrams they are dealt among the tokens that are neither induction nor Dyck.

    Args:
        contexts: of one head.
        kind: ``[token]``: their kinds by row.
        explain: the rules.
        seed: of the dealing, such as the name of the head.

    Returns:
        the mean share of each kind but the last ``[kind]``, and the mean number of multigrams.
    """
    num_of_kind = dict.fromkeys(KINDS[:-1], 0.0)
    num_multigrams = 0
    stream = generator("chance", seed)
    unexplained = np.flatnonzero(kind == "other").tolist()
    for _ in range(_DEALS):
        dealt = _deal(contexts, stream)
        kinds = explain.by_row(dealt)
        for name in ("induction", "dyck"):
            num_of_kind[name] += np.sum(kinds == name)
        dealt_unexplained = _deal([contexts[i] for i in unexplained], stream)
        multigrams = explain.by_memory(dict(enumerate(dealt_unexplained)))
        for pattern, tokens in multigrams.items():
            num_of_kind[pattern.kind] += len(tokens)
        num_multigrams += len(multigrams)
    num_tokens = max(len(contexts), 1) * _DEALS
    shares = np.array(list(num_of_kind.values())) / num_tokens
    return shares, num_multigrams / _DEALS


def _deal(contexts: Sequence[Context], stream: torch.Generator) -> list[Context]:
    """The same contexts with their targets dealt at random."""
    order = torch.randperm(len(contexts), generator=stream).tolist()
    dealt = []
    for context, dealer in zip(contexts, order, strict=True):
        dealt.append(context._replace(target=contexts[dealer].target))
    return dealt
