"""Attention scores: how much heads look at the previous, the current and the induction token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.heads import index_of, label_heads, layer_starts, names_of_all
from rllc.analysis.hooked import hooked, patterns_of, sizes
from rllc.analysis.patterns import causal_softmax, queries_and_keys
from rllc.analysis.rows import check_model, check_rows, is_own, ratio
from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.plots.figures import new_axes
from rllc.seeds import generator
from rllc.tables import AsTable, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

SCORES = ("previous_token", "current_token", "prefix_matching")
"""The scores, in the order in which tables and figures show them."""

_TOKENS = 4096
"""Tokens of a pass."""
_BLOCK = {"cpu": 2**19, "cuda": 2**27}
"""Attention weights that are held at once: those that fit into a CPU's cache; 512 MB on a GPU."""
_SEGMENT = 64
"""Tokens of the segment that random rows repeat, where the model has room for it."""


@dataclass(frozen=True, eq=False, repr=False)
class Scores(AsTable):
    """The mean attention of each head to the previous, the current and the induction token.

    ``scores["1:6"]`` gives the scores of one head by name.

    Args:
        previous_token: ``[layer, head]``, in 0 … 1.
        current_token: ``[layer, head]``.
        prefix_matching: ``[layer, head]``: attention to what followed this token before. It is
            high for induction heads, and NaN if no token of the rows occurs twice.
        standard_error: by name of the score, ``[layer, head]``: over rows; NaN with one row.
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
        return names_of_all(*self.previous_token.shape)

    def by_head(self, score: str) -> np.ndarray:
        """One score as ``[head]``, in the order of ``heads``."""
        return getattr(self, score).ravel()

    def __getitem__(self, head: str) -> dict[str, float]:
        """The scores of one head by name.

        Raises:
            InputError: no such head.
        """
        index = index_of(head, self.heads, "scores")
        return {score: float(self.by_head(score)[index]) for score in SCORES}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: ``head``, the three scores, and ``…_standard_error`` of each."""
        import pandas as pd

        columns: dict[str, Any] = {"head": self.heads}
        columns |= {score: self.by_head(score) for score in SCORES}
        for score in SCORES:
            columns[f"{score}_standard_error"] = self.standard_error[score].ravel()
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        values = np.stack([self.by_head(score) for score in SCORES], 1)
        lines: list[tuple[str, ...]] = [("head", *SCORES)]
        for head, numbers in zip(self.heads, values, strict=True):
            lines.append((head, *(f"{number:.3f}" for number in numbers)))
        return Table(f"Attention scores on {self.data}", lines)


def scores(
    model: nn.Module,
    tokens: Tokens | Tensor | None = None,
    *,
    num_rows: int = 64,
    bos: int | None = None,
    seed: int = 0,
) -> Scores:
    """The previous-token, current-token and prefix-matching score of every head.

    With A[k, j] the attention from query k to key j, the scores are means over rows and queries:

    - previous token: A[k, k − 1], over k ≥ 1;
    - current token: A[k, k], over k ≥ 1 (the first token can look nowhere else);
    - prefix matching: Σ_j A[k, j] over the j < k with t_{j−1} = t_k, over the k that have such a j.

    >>> from rllc.models import AttentionOnly, AttentionOnlyConfig
    >>> sizes = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 64, "d_vocab": 50}
    >>> scores(AttentionOnly(AttentionOnlyConfig(**sizes))).previous_token.shape
    (1, 2)

    Args:
        model: an :class:`rllc.models.AttentionOnly`, or a causal language model of transformers
            with a known anatomy.
        tokens: rows to measure on. ``None`` makes random ones with :func:`repeated_rows`, as the
            paper does: heads that only know which tokens go together score nothing on them.
        num_rows: of the random rows; 64 leave a standard error below 0.001 on an untrained model
            of the paper's size.
        bos: the first id of the random rows: that of the training rows, if they had one.
        seed: of the random rows.

    Returns:
        :class:`Scores`, with arrays ``[layer, head]``.

    Raises:
        InputError: the model is of another kind, or cannot read the rows.

    Reference: arXiv 2410.02984, appendix; Olsson et al. 2022, "In-context Learning and Induction
    Heads" (prefix matching).
    """
    own = check_model(model, "scores") if is_own(model) else None
    if own is None:
        model = hooked(model, "scores").model
    if tokens is None:
        tokens = repeated_rows(
            model,
            num_rows=num_rows,
            bos=bos,
            seed=seed,
        )
    rows, name = check_rows(model, tokens, "scores")
    sums, counts = [], []
    for batch in rows.split(max(1, _TOKENS // rows.shape[1])):
        if own is not None:
            sums.append(_attention_sums(own, batch))
        else:
            sums.append(_sums_of_patterns(patterns_of(model, batch), batch))
        counts.append(_query_counts(batch))
    all_sums = np.concatenate(sums, -1)
    all_counts = np.concatenate(counts, -1)
    means, errors = {}, {}
    for i, score in enumerate(SCORES):
        means[score], errors[score] = ratio(all_sums[i], all_counts[i])
    return Scores(**means, standard_error=errors, data=name)


def repeated_rows(
    model: nn.Module,
    *,
    num_rows: int = 64,
    segment: int | None = None,
    bos: int | None = None,
    seed: int = 0,
) -> Tokens:
    """Random rows that say a segment of distinct tokens twice, after ``bos``.

    As ids are distinct, one position is what followed a token's first occurrence.

    Args:
        model: its vocabulary and context are used.
        num_rows: how many rows.
        segment: tokens of the segment; ``None`` is 64, or as many as the model has room for.
        bos: id in front of every row and nowhere else; ``None``: none.
        seed: of the ids.

    Raises:
        InputError: the segment does not fit, or the model lacks the id ``bos``.
    """
    if is_own(model):
        model = check_model(model, "repeated_rows")
    d_vocab, n_ctx = sizes(model, "repeated_rows")
    if bos is not None and not 0 <= bos < d_vocab:
        raise InputError(f"repeated_rows: `bos` must be an id below {d_vocab}, got {bos!r}.")
    front = [] if bos is None else [bos]
    longest = min((n_ctx - len(front)) // 2, d_vocab - len(front))
    if segment is None:
        segment = min(_SEGMENT, longest)
    if not 1 <= segment <= longest:
        raise InputError(
            f"repeated_rows: a segment of {segment} distinct tokens, twice, must fit into {n_ctx} "
            f"positions and {d_vocab} ids; pass `segment` from 1 to {longest}."
        )
    ids = torch.tensor([i for i in range(d_vocab) if i != bos])
    stream = generator("repeated_rows", seed)
    rows = []
    for _ in range(num_rows):
        once = ids[torch.randperm(len(ids), generator=stream)[:segment]]
        rows.append(torch.cat([torch.tensor(front, dtype=ids.dtype), once, once]))
    return Tokens(torch.stack(rows), name="random tokens, twice")


@torch.no_grad()
def _attention_sums(model: AttentionOnly, rows: Tensor) -> np.ndarray:
    """The attention that counts towards each score, summed over queries.

    The queries are taken in blocks whose attention fits into a CPU's cache, which is several times
    as fast as all of a row's at once.

    Returns:
        ``[score, layer, head, batch]``.
    """
    config = model.config
    batch, pos = rows.shape
    residual = model.activations(rows).residual
    shape = (len(SCORES), config.n_layers, batch, config.n_heads)
    sums = residual[0].new_zeros(shape)
    numbers_at_once = _BLOCK.get(rows.device.type, _BLOCK["cuda"])
    size = max(16, numbers_at_once // (batch * config.n_heads * pos))
    for layer in range(config.n_layers):
        q, k = queries_and_keys(model, layer, residual[layer])
        q = q / config.d_head**0.5
        for start in range(0, pos, size):
            stop = min(start + size, pos)
            queries = torch.arange(start, stop, device=rows.device)
            weights = q[:, :, start:stop] @ k[:, :, :stop].mT
            attention = causal_softmax(weights, queries)
            followed = _what_followed(rows, start, stop).to(attention.dtype)
            to_previous = attention.diagonal(start - 1, 2, 3)
            to_current = attention.diagonal(start, 2, 3)
            if start == 0:
                to_current = to_current[..., 1:]
            sums[0, layer] += to_previous.sum(-1)
            sums[1, layer] += to_current.sum(-1)
            sums[2, layer] += torch.einsum("bhqk,bqk->bh", attention, followed)
    return sums.transpose(2, 3).double().cpu().numpy()


def _sums_of_patterns(patterns: list[Tensor], rows: Tensor) -> np.ndarray:
    """The same sums, from whole patterns ``[batch, head, query, key]``, one a layer."""
    followed = _what_followed(rows, 0, rows.shape[1])
    layers = []
    for attention in patterns:
        to_previous = attention.diagonal(-1, 2, 3).sum(-1)
        to_current = attention.diagonal(0, 2, 3)[..., 1:].sum(-1)
        to_followed = torch.einsum("bhqk,bqk->bh", attention, followed.to(attention.dtype))
        layers.append(torch.stack([to_previous, to_current, to_followed]))
    return torch.stack(layers, 1).transpose(2, 3).double().cpu().numpy()


def _query_counts(rows: Tensor) -> np.ndarray:
    """The queries that count towards each score, ``[score, batch]``."""
    batch, pos = rows.shape
    has_match = _what_followed(rows, 0, pos).any(-1)
    num_matched = has_match.sum(-1).cpu().numpy()
    all_but_first = np.full(batch, pos - 1)
    return np.stack([all_but_first, all_but_first, num_matched])


def _what_followed(
    rows: Tensor,
    start: int,
    stop: int,
) -> Tensor:
    """Whether a key is right after an earlier copy of the query's token, ``[batch, query, key]``.

    Queries are those from ``start`` to ``stop``, keys those up to ``stop``.
    """
    queries = rows[:, start:stop, None]
    before_keys = rows[:, None, : stop - 1]
    same = rows.new_zeros(
        len(rows),
        stop - start,
        stop,
        dtype=torch.bool,
    )
    same[:, :, 1:] = queries == before_keys
    return same.tril(start - 1)


def plot_scores(result: Scores, ax: Axes | None = None) -> Axes:
    """The three scores of every head as a heat map, one row a score.

    >>> ax = plot_scores(scores(model))
    """
    values = np.stack([result.by_head(score) for score in SCORES])
    ax = new_axes(ax, width=2.5 + 0.45 * len(result.heads))
    image = ax.imshow(
        values,
        vmin=0,
        vmax=1,
        cmap="Blues",
        aspect="auto",
    )
    _write_numbers(ax, values)
    label_heads(ax, result.heads)
    ax.set_yticks(range(len(SCORES)), [score.replace("_", " ") for score in SCORES])
    for start in layer_starts(result.heads):
        ax.axvline(start - 0.5, color="0.4", lw=1)
    ax.set_xlabel("head")
    ax.figure.colorbar(
        image,
        ax=ax,
        label="mean attention",
    )
    return ax


def _write_numbers(ax: Axes, values: np.ndarray) -> None:
    """Write the finite values into the cells of a heat map."""
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value > 0.6 else "0.25"
            ax.text(
                x,
                y,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color=color,
            )
