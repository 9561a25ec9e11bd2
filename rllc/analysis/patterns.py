"""Attention patterns: where heads look, on whole rows or from chosen positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.hooked import patterns_of
from rllc.analysis.rows import check_model, check_rows, is_own
from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.plots.figures import new_axes
from rllc.wrappers import unwrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

_TOKENS = 4096
"""Tokens of a pass."""


@torch.no_grad()
def patterns(model: nn.Module, tokens: Tokens | Tensor) -> Tensor:
    """The attention of every head, ``[batch, layer, head, query, key]``.

    Each query's attention sums to 1, and in causal models no key is after its query.

    Args:
        model: an :class:`rllc.models.AttentionOnly`, or a model of transformers with a known
            anatomy that reads token ids; it is run with eager attention.
        tokens: the rows to look at. All patterns are held at once, 64 MiB a row at the paper's
            size, so pass few.

    Raises:
        InputError: the model is of another kind, or cannot read the rows.
    """
    if not is_own(model):
        model = unwrapped(model)
        rows, _ = check_rows(model, tokens, "patterns")
        return torch.stack(patterns_of(model, rows), 1)
    model = check_model(model, "patterns")
    rows, _ = check_rows(model, tokens, "patterns")
    by_layer: list[Tensor] = []
    model.activations(rows, by_layer)
    return torch.stack(by_layer, 1)


@torch.no_grad()
def attention_from(
    model: nn.Module,
    rows: Tensor,
    heads: np.ndarray,
    row: np.ndarray,
    query: np.ndarray,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The attention of chosen heads from chosen positions only.

    It takes one forward pass over the rows that occur, and of each pattern only these queries.

    Args:
        model: the model.
        rows: ``[row, pos]``, int64.
        heads: ``[query, 2]``: layer and head.
        row: ``[query]``: the row to look in.
        query: ``[query]``: the position to look from.

    Yields:
        indices of some queries, which share a head and a row, and their attention ``[query, key]``.
    """
    used_rows = np.unique(row)
    size = max(1, _TOKENS // rows.shape[1])
    for start in range(0, len(used_rows), size):
        batch = used_rows[start : start + size]
        attention = _attention_of(model, rows[torch.from_numpy(batch).to(rows.device)])
        in_batch = np.flatnonzero(np.isin(row, batch))
        for layer in np.unique(heads[in_batch, 0]).tolist():
            in_layer = in_batch[heads[in_batch, 0] == layer]
            batch_row = np.searchsorted(batch, row[in_layer])
            places = np.stack([batch_row, heads[in_layer, 1]], 1)
            for place in np.unique(places, axis=0):
                index = in_layer[(places == place).all(1)]
                b, head = place
                positions = torch.from_numpy(query[index]).to(rows.device)
                yield index, attention(layer, b, head, positions)


def _attention_of(model: nn.Module, rows: Tensor) -> Callable[[int, int, int, Tensor], Tensor]:
    """The attention of one layer, row and head from some positions, ``[query, key]``."""
    if not is_own(model):
        patterns = patterns_of(model, rows)

        def chosen(layer: int, row: int, head: int, queries: Tensor) -> Tensor:
            return patterns[layer][row, head, queries]

        return chosen
    own = check_model(model, "patterns")
    residual = own.activations(rows).residual
    # The positions of a layer share its queries and keys.
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def computed(layer: int, row: int, head: int, queries: Tensor) -> Tensor:
        if layer not in made:
            made.clear()
            made[layer] = queries_and_keys(own, layer, residual[layer])
        q, k = made[layer]
        products = q[row, head, queries] @ k[row, head].mT
        logits = products / own.config.d_head**0.5
        return causal_softmax(logits, queries)

    return computed


def queries_and_keys(
    model: AttentionOnly,
    layer: int,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of a layer's heads, ``[batch, head, pos, d_head]`` each."""
    queries = model.project(layer, "Q", x)[0]
    keys = model.project(layer, "K", x)[0]
    return queries, keys


def causal_softmax(logits: Tensor, queries: Tensor) -> Tensor:
    """Attention ``[…, query, key]`` from its logits; keys after their query get 0.

    Args:
        logits: ``[…, query, key]``, the keys being positions 0, 1, …
        queries: ``[query]``: their positions.
    """
    keys = torch.arange(logits.shape[-1], device=logits.device)
    future = keys > queries[:, None]
    return logits.masked_fill(future, float("-inf")).softmax(-1)


def plot_pattern(
    pattern: Tensor | np.ndarray,
    tokens: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One head's attention on one row as a heat map, queries down and keys across.

    >>> ax = plot_pattern(patterns(model, tokens[:1])[0, 1, 6])

    Args:
        pattern: ``[query, key]``.
        tokens: a label a position, such as the token's text; ``None`` numbers the positions.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: the pattern has other axes, or the number of labels differs from that of
            positions.
    """
    pattern = pattern.cpu().numpy() if isinstance(pattern, Tensor) else np.asarray(pattern)
    if pattern.ndim != 2 or pattern.shape[0] != pattern.shape[1]:
        raise InputError(
            f"plot_pattern: expected one head's attention on one row, [query, key], got shape "
            f"{pattern.shape}; pick one with patterns(model, rows)[row, layer, head]."
        )
    if tokens is not None and len(tokens) != len(pattern):
        raise InputError(
            f"plot_pattern: expected a label for each of {len(pattern)} positions, got "
            f"{len(tokens)}."
        )
    ax = new_axes(ax, width=4.2)
    image = ax.imshow(
        pattern,
        vmin=0,
        vmax=1,
        cmap="Blues",
    )
    if tokens is not None:
        ax.set_xticks(
            range(len(tokens)),
            tokens,
            rotation=90,
            fontsize="small",
        )
        ax.set_yticks(range(len(tokens)), tokens, fontsize="small")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.figure.colorbar(
        image,
        ax=ax,
        label="attention",
    )
    return ax
