"""Composition scores of Elhage et al.: how much of what one head writes a later head reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.stream import matrices
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.seeds import generator
from rllc.tables import AsTable, Table
from rllc.weights.names import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

INPUTS = ("Q", "K", "V")

_TENSORS = ("W_Q", "W_K", "W_V", "W_O")

_PRECISION = 2e-4
"""Bound on the relative rounding of a squared score; beyond it the score is computed from its
factors. The largest rounding measured within the bound was a twentieth of it."""

_MOST_ROWS_OF_REPR = 10
_MOST_LABELS = 40


@dataclass(frozen=True, eq=False, repr=False)
class Composition(AsTable):
    """Q-, K- and V-composition of every pair of heads.

    ``composition["0:4", "1:6", "K"]`` is one score.

    Args:
        value: ``[input, layer, head, layer, head]``: input Q, K or V; the earlier head, then the
            later one. In 0 … 1; NaN where the second head is not in a later layer, or a head writes
            or reads nothing.
        baseline: mean score of pairs of random heads of the same size; about 1/√d_model, for each
            of Q, K and V.
        baseline_sd: standard deviation of their scores.
    """

    value: np.ndarray
    baseline: float
    baseline_sd: float

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, layer by layer."""
        n_layers, n_heads = self.value.shape[1:3]
        names = []
        for layer in range(n_layers):
            names += [f"{layer}:{head}" for head in range(n_heads)]
        return tuple(names)

    def matrix(self, input: str) -> np.ndarray:
        """Return one kind of composition as ``[sender, receiver]``, in the order of :attr:`heads`.

        Raises:
            InputError: ``input`` is not ``"Q"``, ``"K"`` or ``"V"``.
        """
        if input not in INPUTS:
            raise InputError(f"composition: `input` must be 'Q', 'K' or 'V', got {input!r}.")
        values = self.value[INPUTS.index(input)]
        num_heads = len(self.heads)
        return values.reshape(num_heads, num_heads)

    def __getitem__(self, key: tuple[str, str, str]) -> float:
        """Return the score of ``(earlier head, later head, "Q", "K" or "V")``.

        Raises:
            InputError: no such heads or input.
        """
        if not isinstance(key, tuple) or len(key) != 3:
            raise InputError(
                f"composition[{key!r}]: expected two heads and an input: "
                f"composition['0:4', '1:6', 'K']."
            )
        sender, receiver, input = key
        row = self._index(sender)
        column = self._index(receiver)
        return float(self.matrix(input)[row, column])

    def _index(self, head: str) -> int:
        name = head_name(head)
        if name not in self.heads:
            suggestion = nearest(head, self.heads)
            raise InputError(f"composition[{head!r}]: no such head; {suggestion}")
        return self.heads.index(name)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a pair and input: ``sender, receiver, input, composition, excess, z``.

        ``excess`` is over the random baseline; ``z`` is the excess in standard deviations of the
        random scores.
        """
        import pandas as pd

        heads = np.array(self.heads)
        frames = []
        for input in INPUTS:
            values = self.matrix(input)
            is_score = np.isfinite(values)
            sender, receiver = np.nonzero(is_score)
            columns = {
                "sender": heads[sender],
                "receiver": heads[receiver],
                "input": input,
                "composition": values[sender, receiver],
            }
            frames.append(pd.DataFrame(columns))
        frame = pd.concat(frames, ignore_index=True)
        frame["excess"] = frame["composition"] - self.baseline
        frame["z"] = frame["excess"] / self.baseline_sd
        return frame

    @property
    def _table(self) -> Table:
        rows = [("path", "composition", "z")]
        for index in self._largest(_MOST_ROWS_OF_REPR):
            input, sender_layer, sender, receiver_layer, receiver = index
            earlier = f"{sender_layer}:{sender}"
            later = f"{receiver_layer}:{receiver}"
            path = f"{earlier}->{later}.{INPUTS[input]}"
            score = self.value[index]
            z = (score - self.baseline) / self.baseline_sd
            rows.append((path, f"{score:.4f}", f"{z:.1f}"))
        random = f"{self.baseline:.4f} ± {self.baseline_sd:.4f}"
        return Table(f"Composition, largest (random: {random})", rows)

    def _largest(self, count: int) -> Iterator[tuple[int, ...]]:
        """Yield the indices of the largest scores."""
        is_score = np.isfinite(self.value)
        scores = np.where(is_score, self.value, -np.inf)
        order = np.argsort(-scores.ravel(), kind="stable")
        num_scores = int(is_score.sum())
        for flat_index in order[: min(count, num_scores)]:
            yield np.unravel_index(flat_index, self.value.shape)


@torch.no_grad()
def compose(
    model: nn.Module, *, fold: bool = True, num_random: int = 32, seed: int = 0
) -> Composition:
    """Compute the Q-, K- and V-composition of every pair of heads across layers.

    score = ‖L R‖_F / (‖L‖_F ‖R‖_F), in the convention of row vectors (x L R): L = W_V W_O of the
    earlier head; R = W_Q W_Kᵀ for Q, W_K W_Qᵀ for K, W_V W_O for V of the later one. See
    :func:`composition` for how.

    >>> from rllc.models import AttentionOnly, AttentionOnlyConfig
    >>> sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4}
    >>> compose(AttentionOnly(AttentionOnlyConfig(n_ctx=6, d_vocab=10, **sizes))).value.shape
    (3, 2, 2, 2, 2)

    Args:
        model: an :class:`rllc.models.AttentionOnly`, or any transformer with one kind of attention
            and a known anatomy. What is compared is what heads read of contents: rotary positions
            and norms of queries and keys come after the maps, and are left out.
        fold: put what a LayerNorm does to its input, up to the division by its norm, into the
            matrices that read it: W ← (I − 11ᵀ/d) diag(w) W for W_Q, W_K and W_V, w being its
            scale. A weight's score then does not depend on where training has put a scale, and what
            LayerNorm removes counts as not read. The division by the norm scales a whole row of L
            R's input alike, and is left out.
        num_random: random heads on each side of the baseline.
        seed: of the baseline.

    Raises:
        InputError: the model has no heads that are known, or its residual stream is no sum of what
            heads write (BERT's, which is normalised after each block).

    Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; arXiv
    2410.02984, appendix.
    """
    parameters = dict(model.named_parameters())
    num_layers = sum(_is_query_map(name) for name in parameters)
    layers = range(num_layers)
    stacks = []
    for tensor in _TENSORS:
        names = [f"blocks.{layer}.attn.{tensor}" for layer in layers]
        if not names or not parameters.keys() >= set(names):
            call = f"compose({type(model).__name__})"
            all_matrices = matrices(model, call, fold=fold)
            return composition(*all_matrices, num_random=num_random, seed=seed)
        by_layer = [parameters[name].detach() for name in names]
        stacks.append(torch.stack(by_layer))
    W_Q, W_K, W_V, W_O = stacks
    if fold:
        scales = [parameters.get(f"blocks.{layer}.ln1.w") for layer in layers]
        W_Q = _fold(W_Q, scales)
        W_K = _fold(W_K, scales)
        W_V = _fold(W_V, scales)
    return composition(W_Q, W_K, W_V, W_O, num_random=num_random, seed=seed)


@torch.no_grad()
def composition(
    W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, num_random: int = 32, seed: int = 0
) -> Composition:
    """Compute Q-, K- and V-composition from stacked weights, by their factors.

    ‖L R‖²_F = ⟨LᵀL, R Rᵀ⟩, the inner product of two symmetric ``[d_model, d_model]`` matrices. Each
    is made once a head, from a ``[d_head, d_model]`` factor: L = A B has LᵀL = wᵀw for w = aᵀB, a
    being a root of AᵀA = a aᵀ; R likewise. They are made and multiplied a block at a time, the
    blocks above the diagonal counting twice, so that all pairs are a few matrix products of about
    d_model² operations a pair, where the product of two factors has 2·d_head²·d_model.

    Where heads hardly compose, the inner product is a small difference of large numbers. Where it
    is so small next to ‖LᵀL‖_F ‖R Rᵀ‖_F that rounding would show, ‖L R‖ is computed from the
    product of the factors, so that 0 is 0.

    The baseline is the score of ``num_random``² pairs of heads with normal factors of the same
    shape. The mean of its square is 1/d_model, for any L and R with independent, uniformly random
    directions.

    Args:
        W_Q: ``[layer, head, d_model, d_head]``; W_K and W_V alike.
        W_K: see W_Q.
        W_V: see W_Q.
        W_O: ``[layer, head, d_head, d_model]``.
        num_random: random heads on each side of the baseline; at least 2.
        seed: of the baseline.

    Raises:
        InputError: other shapes, or fewer than 2 random heads.
    """
    _check_shapes(W_Q, W_K, W_V, W_O)
    if num_random < 2:
        raise InputError(
            f"composition: `num_random` must be at least 2, got {num_random!r}; "
            f"it makes the baseline."
        )
    n_layers, n_heads, d_model, d_head = W_Q.shape
    shape = (len(INPUTS), n_layers, n_heads, n_layers, n_heads)
    value = torch.full(shape, torch.nan, dtype=W_Q.dtype, device=W_Q.device)
    if n_layers > 1:
        written = _written(W_V, W_O)
        # R = C Dᵀ
        read_by_Q = _read(W_Q, W_K)
        read_by_K = _read(W_K, W_Q)
        read_by_V = _read(W_V, W_O.mT)
        read = torch.stack([read_by_Q, read_by_K, read_by_V], 1)
        num_earlier = [layer * n_heads for layer in range(1, n_layers)]
        senders = written[:-1].flatten(0, 1)
        receivers = read[1:].flatten(1, 2)
        scores = _scores(senders, receivers, num_earlier)
        scores = scores.unflatten(2, (len(INPUTS), n_heads))
        scores = scores.unflatten(1, (n_layers - 1, n_heads))
        # [later layer, earlier layer, head, input, head]
        value[:, :-1, :, 1:] = scores.permute(3, 1, 2, 0, 4)
    random = _random_scores(d_model, d_head, num_random, seed)
    return Composition(
        value=value.cpu().numpy(),
        baseline=float(random.mean()),
        baseline_sd=float(random.std()),
    )


def plot_composition(result: Composition, input: str = "K", ax: Axes | None = None) -> Axes:
    """Draw one kind of composition, less its random baseline, as a heat map.

    Earlier heads are downwards, later ones to the right.

    >>> ax = plot_composition(compose(model), "K")

    Args:
        result: what :func:`compose` gave.
        input: ``"Q"``, ``"K"`` or ``"V"``.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: ``input`` is another, or the model has one layer.
    """
    n_layers, n_heads = result.value.shape[1:3]
    if n_layers == 1:
        raise InputError(
            "plot_composition: the model has one layer, and heads compose across layers only."
        )
    scores = result.matrix(input)
    between_layers = scores[:-n_heads, n_heads:]
    values = between_layers - result.baseline
    senders = result.heads[:-n_heads]
    receivers = result.heads[n_heads:]
    width = min(9.0, 2.6 + 0.35 * len(receivers))
    height = min(8.0, 1.4 + 0.3 * len(senders))
    ax = new_axes(ax, width, height)
    limit = np.nanmax(np.abs(values), initial=1e-12)
    ax.set_facecolor("0.9")
    image = ax.imshow(values, vmin=-limit, vmax=limit, cmap="RdBu_r", aspect="auto")
    # A label for each head; where they are many, for each layer.
    step = 1 if len(receivers) <= _MOST_LABELS else n_heads
    ax.set_xticks(range(0, len(receivers), step), receivers[::step], rotation=60)
    ax.set_yticks(range(0, len(senders), step), senders[::step])
    for edge in range(n_heads, len(receivers), n_heads):
        ax.axvline(edge - 0.5, color="0.6", lw=0.6)
        ax.axhline(edge - 0.5, color="0.6", lw=0.6)
    ax.set_xlabel(f"later head's {input}")
    ax.set_ylabel("earlier head")
    label = f"{input}-composition − random ({result.baseline:.3f})"
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def _check_shapes(W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> None:
    shapes = tuple(tuple(W.shape) for W in (W_Q, W_K, W_V, W_O))
    shape = shapes[0]
    shape_of_W_O = (*shape[:2], *reversed(shape[2:]))
    expected = (shape, shape, shape, shape_of_W_O)
    if len(shape) != 4 or shapes != expected:
        raise InputError(
            f"composition: expected W_Q, W_K and W_V as [layer, head, d_model, d_head] and "
            f"W_O as [layer, head, d_head, d_model], got {shapes}."
        )


def _is_query_map(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".attn.W_Q")


def _written(W_V: Tensor, W_O: Tensor) -> Tensor:
    """Return w ``[…, d_head, d_model]`` with LᵀL = wᵀw, L = W_V W_O."""
    return _root(_gram(W_V)).mT @ W_O


def _read(C: Tensor, D: Tensor) -> Tensor:
    """Return r ``[…, d_head, d_model]`` with R Rᵀ = rᵀr, R = C Dᵀ."""
    return _root(_gram(D)).mT @ C.mT


def _scores(written: Tensor, read: Tensor, num_earlier: Sequence[int]) -> Tensor:
    """Return scores ``[layer, sender, receiver]``, NaN where the sender is not before the layer.

    Args:
        written: ``[sender, d_head, d_model]``: w with LᵀL = wᵀw.
        read: ``[layer, receiver, d_head, d_model]``: r with R Rᵀ = rᵀr.
        num_earlier: for each layer, how many senders, the first ones, are before it.
    """
    squares = _squared_norms(written, read, num_earlier)
    norms_of_LtL = _gram(written.mT).norm(dim=(1, 2))
    norms_of_RRt = _gram(read.mT).norm(dim=(2, 3))
    largest = norms_of_LtL[:, None] * norms_of_RRt[:, None]
    rounding = torch.finfo(read.dtype).eps
    smallest_exact = largest * rounding / _PRECISION
    is_inexact = squares < smallest_exact
    for triples in torch.nonzero(is_inexact).split(64):
        layer, sender, receiver = triples.T
        product = written[sender] @ read[layer, receiver].mT
        product = product.double()
        squares[layer, sender, receiver] = product.square().sum((-2, -1))
    norms_of_L = written.norm(dim=2).double().norm(dim=1)
    norms_of_R = read.norm(dim=3).double().norm(dim=2)
    norms = norms_of_L[:, None] * norms_of_R[:, None]
    norms_of_LR = squares.clamp(min=0).sqrt()
    scores = norms_of_LR / norms
    return scores.to(read.dtype)


def _squared_norms(written: Tensor, read: Tensor, num_earlier: Sequence[int]) -> Tensor:
    """Return ‖L R‖² = ⟨LᵀL, R Rᵀ⟩ ``[layer, sender, receiver]`` in float64, block by block."""
    n_layers, num_receivers, _, d_model = read.shape
    num_senders = len(written)
    shape = (n_layers, num_senders, num_receivers)
    squares = torch.full(shape, torch.nan, dtype=torch.float64, device=read.device)
    for layer, count in enumerate(num_earlier):
        squares[layer, :count] = 0
    eighth = -(-d_model // 8)  # ⌈d_model/8⌉
    side = min(96, max(8, eighth))
    factors_of_L = _blocks(written, side)  # [block, sender, d_head, side]
    factors_of_R = _blocks(read.flatten(0, 1), side)
    factors_of_R = factors_of_R.unflatten(1, (n_layers, num_receivers))
    num_blocks = len(factors_of_L)
    # All blocks are written to the same memory, which then stays in the cache.
    LtL = read.new_empty(num_senders, side, side)
    RRt = read.new_empty(num_receivers, side, side)
    flat_LtL = LtL.flatten(1)
    flat_RRt = RRt.flatten(1)
    for i, j in combinations_with_replacement(range(num_blocks), 2):
        # A block off the diagonal stands for its mirror image, too.
        times = 1 if i == j else 2
        torch.bmm(factors_of_L[i].mT, factors_of_L[j], out=LtL)
        for layer, count in enumerate(num_earlier):
            torch.bmm(factors_of_R[i, layer].mT, factors_of_R[j, layer], out=RRt)
            inner_products = flat_LtL[:count] @ flat_RRt.T
            squares[layer, :count] += times * inner_products
    return squares


def _blocks(factors: Tensor, side: int) -> Tensor:
    """Cut ``[head, d_head, d_model]`` into ``[block, head, d_head, side]``; zeros fill the last."""
    num_missing = -factors.shape[-1] % side
    padded = nn.functional.pad(factors, (0, num_missing))
    blocks = padded.unflatten(-1, (-1, side))  # [head, d_head, block, side]
    return blocks.movedim(-2, 0).contiguous()


def _gram(W: Tensor) -> Tensor:
    return W.mT @ W


def _root(gram: Tensor) -> Tensor:
    """Return r with r rᵀ = gram, for stacks of positive semi-definite matrices."""
    exact = gram.double()
    root, failed = torch.linalg.cholesky_ex(exact)
    is_singular = failed > 0
    if bool(is_singular.any()):
        # By eigenvectors, which takes 20 times as long.
        values, vectors = torch.linalg.eigh(exact[is_singular])
        lengths = values.clamp(min=0).sqrt()
        root[is_singular] = vectors * lengths[..., None, :]
    return root.to(gram.dtype)


def _fold(W: Tensor, scales: Sequence[Tensor | None]) -> Tensor:
    """Put the LayerNorm before W ``[layer, head, d_model, d_head]`` into it: scale and centring."""
    scaled = []
    for W_of_layer, scale in zip(W, scales, strict=True):
        if scale is not None:
            scale_of_row = scale.detach()[:, None]
            W_of_layer = W_of_layer * scale_of_row
        scaled.append(W_of_layer)
    stacked = torch.stack(scaled)
    return stacked - stacked.mean(-2, keepdim=True)


def _random_scores(d_model: int, d_head: int, count: int, seed: int) -> Tensor:
    """Scores ``[sender, receiver]`` of heads with normal factors L = A Bᵀ and R = C Dᵀ."""
    stream = generator("composition", seed)
    shape = (count, d_model, d_head)
    A, B, C, D = (torch.randn(shape, generator=stream) for _ in range(4))
    written = _written(A, B.mT)
    read = _read(C, D)
    scores = _scores(written, read[None], [count])
    return scores[0]
