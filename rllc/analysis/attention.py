"""Where heads look: attention patterns, and scores for previous-token, current-token and induction heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.rows import check_model, check_rows, ratio
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.seeds import generator
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

SCORES = ("previous_token", "current_token", "prefix_matching")
"""The scores, in the order in which tables and figures show them."""

_TOKENS = 4096
"""Tokens of a pass."""
_BLOCK = 2**19
"""Attention weights that are held at once on a CPU: 2 MB."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Mean attention of each head to the previous token, the current one, and what followed this token before.

    Args:
        previous_token: ``[layer, head]``, in 0 … 1.
        current_token: ``[layer, head]``.
        prefix_matching: ``[layer, head]``: high for induction heads; NaN if no token of the rows occurs twice.
        standard_error: of each of the three, by name, ``[layer, head]``: over rows; NaN with one row.
        data: name of the rows.
    """

    previous_token: np.ndarray
    current_token: np.ndarray
    prefix_matching: np.ndarray
    standard_error: Mapping[str, np.ndarray]
    data: str

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, layer by layer: ``"0:0"``, ``"0:1"``, …"""
        return tuple(f"{layer}:{head}" for layer, head in np.ndindex(self.previous_token.shape))

    def __getitem__(self, head: str) -> dict[str, float]:
        """The scores of one head by name.

        Raises:
            InputError: no such head.
        """
        name = head_name(head)
        if name not in self.heads:
            raise InputError(f"scores[{head!r}]: no such head; {nearest(head, self.heads)}")
        layer, number = (int(part) for part in name.split(":"))
        return {score: float(getattr(self, score)[layer, number]) for score in SCORES}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: ``head``, the three scores, and ``…_standard_error`` of each."""
        import pandas as pd

        errors = {f"{name}_standard_error": self.standard_error[name].ravel() for name in SCORES}
        return pd.DataFrame(
            {"head": self.heads} | {name: getattr(self, name).ravel() for name in SCORES} | errors
        )

    def __repr__(self) -> str:
        values = [getattr(self, name).ravel() for name in SCORES]
        rows = [(head, *(f"{v[i]:.3f}" for v in values)) for i, head in enumerate(self.heads)]
        return table(f"Attention scores on {self.data}", [("head", *SCORES), *rows])


def scores(
    model: nn.Module,
    tokens: Tokens | Tensor | None = None,
    *,
    num_rows: int = 64,
    bos: int | None = None,
    seed: int = 0,
) -> Scores:
    """Previous-token, current-token and prefix-matching score of every head.

    With A the attention from query k to key j, means over rows and queries:

    - previous token: A[k, k − 1], over k ≥ 1;
    - current token: A[k, k], over k ≥ 1 (the first token can look nowhere else);
    - prefix matching: Σ_j A[k, j] over the j < k whose token before, t_{j−1}, is t_k, over the k that have such a j.

    >>> from rllc.models import AttentionOnly, AttentionOnlyConfig
    >>> model = AttentionOnly(AttentionOnlyConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=64, d_vocab=50))
    >>> scores(model).previous_token.shape
    (1, 2)

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: rows to measure on; ``None`` makes random ones with :func:`repeated_rows`, as the paper does, so that
            heads that only know which tokens go together score nothing.
        num_rows: of the random rows; 64 leave a standard error below 0.001 on an untrained model of the paper's size.
        bos: what the random rows begin with: the id that the training rows began with, if they did.
        seed: of the random rows.

    Raises:
        InputError: the model is of another kind, or cannot read the rows.

    Source: arXiv 2410.02984, appendix; Olsson et al. 2022, "In-context Learning and Induction Heads" (prefix matching).
    """
    model = check_model(model, "scores")
    if tokens is None:
        tokens = repeated_rows(model, num_rows=num_rows, bos=bos, seed=seed)
    rows, name = check_rows(model, tokens, "scores")
    c, pos = model.config, rows.shape[1]
    sums = np.empty((len(SCORES), c.n_layers, c.n_heads, len(rows)))
    counts = np.full((len(SCORES), len(rows)), pos - 1)
    size = max(1, _TOKENS // pos)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        sums[..., start : start + size] = _sums(model, some).permute(0, 1, 3, 2).double().cpu()
        counts[2, start : start + size] = _what_followed(some, slice(0, pos)).any(-1).sum(-1).cpu()
    means = [ratio(s, n) for s, n in zip(sums, counts, strict=True)]
    return Scores(
        *(mean for mean, _ in means),
        standard_error={name: error for name, (_, error) in zip(SCORES, means, strict=True)},
        data=name,
    )


def repeated_rows(
    model: AttentionOnly,
    *,
    num_rows: int = 64,
    segment: int | None = None,
    bos: int | None = None,
    seed: int = 0,
) -> Tokens:
    """Random rows in which every token comes back once: a random segment of distinct ids, twice, after ``bos``.

    Distinct ids, so that what followed a token's first occurrence is one position.

    Args:
        segment: tokens that are repeated; ``None`` is 64, or what fits into the model's context and vocabulary.
        bos: id in front of every row, and nowhere else; ``None``: none.

    Raises:
        InputError: the segment does not fit, or ``bos`` is not an id of the model.
    """
    c = check_model(model, "repeated_rows").config
    extra = bos is not None
    if extra and not 0 <= bos < c.d_vocab:
        raise InputError(f"repeated_rows: `bos` must be an id below {c.d_vocab}, got {bos!r}.")
    longest = min((c.n_ctx - extra) // 2, c.d_vocab - extra)
    segment = min(64, longest) if segment is None else segment
    if not 1 <= segment <= longest:
        raise InputError(
            f"repeated_rows: a segment of {segment} distinct tokens, twice, must fit into {c.n_ctx} positions and "
            f"{c.d_vocab} ids; pass `segment` from 1 to {longest}."
        )
    stream = generator("repeated_rows", seed)
    ids = torch.arange(c.d_vocab)
    ids = ids[ids != bos] if extra else ids
    once = torch.stack(
        [ids[torch.randperm(len(ids), generator=stream)[:segment]] for _ in range(num_rows)]
    )
    front = torch.full((num_rows, int(extra)), bos if extra else 0)
    return Tokens(torch.cat([front, once, once], 1), name="random tokens, twice")


@torch.no_grad()
def patterns(model: nn.Module, tokens: Tokens | Tensor) -> Tensor:
    """Attention of every head, ``[batch, layer, head, query, key]``; rows sum to 1, and no key is after its query.

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows to look at. All patterns are held: 64 MiB a row at the paper's size, so pass few.

    Raises:
        InputError: the model is of another kind, or cannot read the rows.
    """
    model = check_model(model, "patterns")
    rows, _ = check_rows(model, tokens, "patterns")
    found: list[Tensor] = []
    model.activations(rows, found)
    return torch.stack(found, 1)


def plot_scores(result: Scores, ax: Axes | None = None) -> Axes:
    """The three scores of every head as a heat map, one row a score, lines between layers.

    >>> ax = plot_scores(scores(model))                                            # doctest: +SKIP
    """
    values = np.stack([getattr(result, name).ravel() for name in SCORES])
    ax = new_axes(ax, width=2.5 + 0.45 * len(result.heads))
    image = ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    _write_numbers(ax, values)
    ax.set_xticks(
        range(len(result.heads)), result.heads, rotation=0 if len(result.heads) <= 16 else 90
    )
    ax.set_yticks(range(len(SCORES)), [name.replace("_", " ") for name in SCORES])
    per_layer = result.previous_token.shape[1]
    for edge in range(per_layer, len(result.heads), per_layer):
        ax.axvline(edge - 0.5, color="0.4", lw=1)
    ax.set_xlabel("head")
    ax.figure.colorbar(image, ax=ax, label="mean attention")
    return ax


def plot_pattern(
    pattern: Tensor | np.ndarray, tokens: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """One head's attention on one row as a heat map, queries downwards and keys to the right.

    >>> ax = plot_pattern(patterns(model, tokens[:1])[0, 1, 6])                    # doctest: +SKIP

    Args:
        pattern: ``[query, key]``.
        tokens: a label a position, such as the token's text; ``None`` numbers the positions.

    Raises:
        InputError: the pattern has other axes, or there are as many labels as there are not positions.
    """
    pattern = pattern.cpu().numpy() if isinstance(pattern, Tensor) else np.asarray(pattern)
    if pattern.ndim != 2 or pattern.shape[0] != pattern.shape[1]:
        raise InputError(
            f"plot_pattern: expected one head's attention on one row, [query, key], got shape {pattern.shape}; pick one "
            f"with patterns(model, rows)[row, layer, head]."
        )
    if tokens is not None and len(tokens) != len(pattern):
        raise InputError(
            f"plot_pattern: expected a label for each of {len(pattern)} positions, got {len(tokens)}."
        )
    ax = new_axes(ax, width=4.2)
    image = ax.imshow(pattern, vmin=0, vmax=1, cmap="Blues")
    if tokens is not None:
        ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize="small")
        ax.set_yticks(range(len(tokens)), tokens, fontsize="small")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.figure.colorbar(image, ax=ax, label="attention")
    return ax


@torch.no_grad()
def _sums(model: AttentionOnly, rows: Tensor) -> Tensor:
    """Attention that counts towards each score, summed over a row's queries: ``[score, layer, batch, head]``.

    In blocks of queries, whose attention stays in a CPU's cache: several times as fast as all of a row's at once.
    """
    c, (batch, pos) = model.config, rows.shape
    residual = model.activations(rows).residual
    found = residual[0].new_zeros(len(SCORES), c.n_layers, batch, c.n_heads)
    size = max(
        16, (_BLOCK if rows.device.type == "cpu" else 256 * _BLOCK) // (batch * c.n_heads * pos)
    )
    for layer in range(c.n_layers):
        q, k = (model.project(layer, letter, residual[layer])[0] for letter in "QK")
        q = q / c.d_head**0.5
        for start in range(0, pos, size):
            stop = min(start + size, pos)
            A = q[:, :, start:stop] @ k[:, :, :stop].mT
            future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=A.device).triu(
                1
            )
            A[..., start:].masked_fill_(future, float("-inf"))
            A = A.softmax(-1)
            matched = _what_followed(rows, slice(start, stop)).to(A.dtype)
            found[0, layer] += A.diagonal(start - 1, 2, 3).sum(-1)
            found[1, layer] += A.diagonal(start, 2, 3)[..., int(start == 0) :].sum(-1)
            found[2, layer] += torch.einsum("bhqk,bqk->bh", A, matched)
    return found


def _what_followed(rows: Tensor, queries: slice) -> Tensor:
    """``[batch, query, key]``: whether the key comes before the query and right after an earlier copy of its token.

    Keys end where the queries do.
    """
    same = torch.zeros(
        len(rows), queries.stop - queries.start, queries.stop, dtype=torch.bool, device=rows.device
    )
    same[:, :, 1:] = rows[:, queries, None] == rows[:, None, : queries.stop - 1]
    return same.tril(queries.start - 1)


def _write_numbers(ax: Axes, values: np.ndarray) -> None:
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value > 0.6 else "0.25"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
