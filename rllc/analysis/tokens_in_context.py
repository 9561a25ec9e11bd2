"""Tokens in context: where a head matters most, what it looks at there, and what it does.

A token in context is a predicted token together with all that comes before it in its row. For each
head those are taken whose loss rises most when the head is ablated, and each is given a kind by
what the head attends to. Distinct recurring multigrams are what a head has memorised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from rllc.analysis.ablation import Ablation, ablate
from rllc.analysis.brackets import brackets, check_brackets
from rllc.analysis.contexts import Thresholds, TokensInContext, plot_kinds
from rllc.analysis.heads import numbers_of
from rllc.analysis.kinds import KINDS, Explain, by_chance
from rllc.analysis.multigrams import Context, Multigram, Pattern
from rllc.analysis.patterns import attention_from
from rllc.analysis.rows import check_language_model, check_rows, common_start
from rllc.anatomy import anatomy
from rllc.data.tokens import Tokens
from rllc.errors import InputError

__all__ = [
    "KINDS",
    "Multigram",
    "Thresholds",
    "TokensInContext",
    "brackets",
    "common_start",
    "plot_kinds",
    "tokens_in_context",
]

_MIN_KEYS = 5
"""Positions that are stored for each token, at least."""


def tokens_in_context(
    model: nn.Module,
    tokens: Tokens | Tensor,
    *,
    ablation: Ablation | None = None,
    brackets: Mapping[int, int | Collection[int]] | None = None,
    thresholds: Thresholds | None = None,
    rest: Collection[int] | None = None,
    tokenizer: Any = None,
) -> TokensInContext:
    """For each head, the tokens whose prediction it helps most, with what it attends to there.

    Let t be the row, k the position before the predicted token t_{k+1}, and let "attended" mean a
    weight of at least ``thresholds.attention`` from k. The kind of a token is the first that holds:

    - induction: a j < k is attended with t_j = t_{k+1} and t_{j−1} = t_k;
    - Dyck: t_{k+1} closes the innermost open bracket, which is attended;
    - multigram: the attended tokens together with t_k predict t_{k+1} in at least
      ``thresholds.rows`` rows in which the head matters; or, where these tokens do not recur
      together, the most attended one with t_k does. It is an *n-gram* if what lies between its
      tokens is mostly the same, so that the suffix from the first of them on recurs; else it is a
      *skip n-gram*;
    - other.

    >>> contexts = tokens_in_context(model, tokens)

    Args:
        model: an :class:`rllc.models.AttentionOnly`, or a causal language model of transformers
            with a known anatomy.
        tokens: the rows to search. A memorised multigram is found only if it occurs there, in two
            rows or more.
        ablation: of single heads on the same rows, to be used again; ``None`` mean-ablates each.
        brackets: id of an opening bracket to the id or ids that close it, as
            :func:`rllc.analysis.brackets.brackets` makes from a tokenizer. ``None``: no token is
            Dyck.
        thresholds: see :class:`Thresholds`.
        rest: ids that heads attend to when there is nothing to look at, never part of a multigram;
            ``None``: the id that all rows begin with, if they do.
        tokenizer: with ``decode``, for texts instead of ids in tables and pages.

    Returns:
        :class:`TokensInContext`, with arrays ``[token]``.

    Raises:
        InputError: the model, the rows, the ablation or the brackets cannot be used.

    Reference: arXiv 2410.02984, appendix ("tokens in context"); the thresholds are ours.
    """
    caller = "tokens_in_context"
    model = check_language_model(model, caller)
    rows, name = check_rows(model, tokens, caller)
    closers = check_brackets(brackets or {}, caller)
    if thresholds is None:
        thresholds = Thresholds()
    if ablation is None:
        ablation = ablate(model, tokens)
    effects = _check_ablation(ablation, model, rows, caller)
    if rest is None:
        start = common_start(rows)
        rest = () if start is None else (start,)
    head, row, query = _most_affected(effects, thresholds)
    effect = effects[head, row, query]
    layer_and_head = np.array([numbers_of(name) for name in ablation.names])[head]
    num_keys = max(_MIN_KEYS, 1 + int(1 / thresholds.attention))
    attended, attention = _most_attended(model, rows, layer_and_head, row, query, num_keys)
    ids = rows.cpu().numpy().astype(np.int32)
    contexts = _contexts(ids, row, query, attended, attention >= thresholds.attention)
    explain = Explain(closers, frozenset(rest), thresholds.rows, thresholds.fixed)
    kind = np.full(len(row), "other", dtype=object)
    multigram = np.full(len(row), -1)
    multigrams: list[Multigram] = []
    chance, memorised_by_chance = [], []
    for number, head_name in enumerate(ablation.names):
        indices = np.flatnonzero(head == number)
        of_head = [contexts[i] for i in indices]
        kind[indices] = explain.by_row(of_head)
        shares, count = by_chance(of_head, kind[indices], explain, head_name)
        chance.append(shares)
        memorised_by_chance.append(count)
        unexplained = indices[kind[indices] == "other"]
        members = explain.by_memory({i: contexts[i] for i in unexplained.tolist()})
        for pattern in sorted(members, key=lambda pattern: -len(members[pattern])):
            occurrences = members[pattern]
            kind[occurrences] = pattern.kind
            multigram[occurrences] = len(multigrams)
            multigrams.append(_multigram(head_name, pattern, row[occurrences], effect[occurrences]))
    return TokensInContext(
        heads=ablation.names,
        head=head,
        row=row,
        position=query + 1,
        effect=effect,
        kind=kind,
        attended=attended,
        attention=attention,
        multigram=multigram,
        multigrams=tuple(multigrams),
        chance=np.array(chance),
        memorised_by_chance=np.array(memorised_by_chance),
        rows=ids,
        ablation=ablation,
        thresholds=thresholds,
        texts=_texts(tokenizer, ids),
        data=name,
    )


def _check_ablation(
    ablation: Ablation,
    model: nn.Module,
    rows: Tensor,
    caller: str,
) -> np.ndarray:
    """The effects ``[head, row, pos − 1]`` of an ablation of single heads on these rows.

    Raises:
        InputError: it is of something else, or not finite.
    """
    heads = anatomy(model).heads
    for name in ablation.names:
        if name not in heads:
            raise InputError(
                f"{caller}: the ablation must be of single heads of the model, got {name!r}; make "
                f"one with ablate(model, tokens)."
            )
    num_rows, num_positions = rows.shape
    expected = (num_rows, num_positions - 1)
    if ablation.tokens.shape[1:] != expected:
        raise InputError(
            f"{caller}: the ablation must be of the same rows, [row, pos − 1] = {expected}, got "
            f"{ablation.tokens.shape[1:]}."
        )
    if not np.isfinite(ablation.tokens).all():
        raise InputError(
            f"{caller}: the ablation's losses are not all finite; the model's weights are broken."
        )
    return ablation.tokens


def _most_affected(
    effects: np.ndarray,
    thresholds: Thresholds,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Head, row and query of the most affected tokens, by head and from the largest effect on."""
    chosen = []
    for head, effect in enumerate(effects):
        flat = effect.ravel()
        affected = np.flatnonzero(flat >= thresholds.effect)
        order = np.argsort(-flat[affected], kind="stable")
        most_affected = affected[order[: thresholds.most]]
        row, query = np.divmod(most_affected, effect.shape[1])
        repeated_head = np.full(len(most_affected), head)
        chosen.append(np.stack([repeated_head, row, query]))
    head, row, query = np.concatenate(chosen, 1).astype(np.int64)
    return head, row, query


def _most_attended(
    model: nn.Module,
    rows: Tensor,
    places: np.ndarray,
    row: np.ndarray,
    query: np.ndarray,
    num_keys: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The most attended positions of each query, and their weights, ``[query, key]``.

    Where there are fewer than ``num_keys``, these are −1 and 0.
    """
    attended = np.full((len(row), num_keys), -1)
    attention = np.zeros((len(row), num_keys), np.float32)
    for index, pattern in attention_from(model, rows, places, row, query):
        weights, positions = pattern.sort(descending=True, stable=True)
        largest = weights[:, :num_keys].cpu().numpy()
        places_of_largest = positions[:, :num_keys].cpu().numpy()
        keys = largest.shape[1]
        attention[index, :keys] = largest
        attended[index, :keys] = np.where(largest > 0, places_of_largest, -1)
    return attended, attention


def _contexts(
    ids: np.ndarray,
    row: np.ndarray,
    query: np.ndarray,
    keys: np.ndarray,
    is_attended: np.ndarray,
) -> list[Context]:
    """The tokens in context, with those of ``keys [token, key]`` that are attended."""
    contexts = []
    for i in range(len(row)):
        row_ids = ids[row[i]]
        context = Context(
            row=int(row[i]),
            ids=row_ids,
            query=int(query[i]),
            attended=tuple(keys[i, is_attended[i]].tolist()),
            target=int(row_ids[query[i] + 1]),
        )
        contexts.append(context)
    return contexts


def _multigram(
    head: str,
    pattern: Pattern,
    row: np.ndarray,
    effect: np.ndarray,
) -> Multigram:
    """A multigram from the rows and effects of its occurrences."""
    return Multigram(
        head=head,
        kind=pattern.kind,
        tokens=pattern.tokens,
        target=pattern.target,
        occurrences=len(row),
        rows=len(np.unique(row)),
        effect=float(effect.mean()),
    )


def _texts(tokenizer: Any, ids: np.ndarray) -> dict[int, str]:
    """The text of each id that occurs; none without a tokenizer."""
    if tokenizer is None:
        return {}
    occurring = [int(i) for i in np.unique(ids)]
    return {i: tokenizer.decode([i]) for i in occurring}
