"""Composition scores of Elhage et al.: how much of what a head writes a later head's weights read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.seeds import generator
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

INPUTS = ("Q", "K", "V")
_NAMES = ("W_Q", "W_K", "W_V", "W_O")
_PRECISION = 2e-4
"""Bound on the relative rounding of a squared score from which on it is computed from its factors; what was measured there
is a twentieth of the bound."""


@dataclass(frozen=True, eq=False)
class Composition:
    """Q-, K- and V-composition of every pair of heads. ``composition["0:4", "1:6", "K"]`` is one score.

    Args:
        value: ``[input, layer, head, layer, head]``: input Q, K or V; the earlier head, then the later one. In 0 … 1; NaN
            where the second head is not in a later layer, or a head writes or reads nothing.
        baseline: mean score of pairs of random heads of the same size; about 1/√d_model, for each of Q, K and V.
        baseline_sd: standard deviation of their scores.
    """

    value: np.ndarray
    baseline: float
    baseline_sd: float

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, layer by layer."""
        return tuple(f"{layer}:{head}" for layer, head in np.ndindex(self.value.shape[1:3]))

    def matrix(self, input: str) -> np.ndarray:
        """One kind of composition as ``[sender, receiver]``, both in the order of :attr:`heads`.

        Raises:
            InputError: ``input`` is not ``"Q"``, ``"K"`` or ``"V"``.
        """
        if input not in INPUTS:
            raise InputError(f"composition: `input` must be 'Q', 'K' or 'V', got {input!r}.")
        return self.value[INPUTS.index(input)].reshape(len(self.heads), -1)

    def __getitem__(self, key: tuple[str, str, str]) -> float:
        """The score of ``(earlier head, later head, "Q", "K" or "V")``.

        Raises:
            InputError: no such heads or input.
        """
        if not isinstance(key, tuple) or len(key) != 3:
            raise InputError(
                f"composition[{key!r}]: expected two heads and an input: composition['0:4', '1:6', 'K']."
            )
        *pair, input = key
        names = [head_name(head) for head in pair]
        for written, name in zip(pair, names, strict=True):
            if name not in self.heads:
                raise InputError(
                    f"composition[{written!r}]: no such head; {nearest(written, self.heads)}"
                )
        sender, receiver = (self.heads.index(name) for name in names)
        return float(self.matrix(input)[sender, receiver])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair and input: ``sender, receiver, input, composition, excess, z``.

        ``excess`` is over the random baseline, ``z`` is it in standard deviations of the random scores.
        """
        import pandas as pd

        frames = []
        for input in INPUTS:
            values = self.matrix(input)
            s, r = np.nonzero(np.isfinite(values))
            names = {
                "sender": np.array(self.heads)[s],
                "receiver": np.array(self.heads)[r],
                "input": input,
            }
            frames.append(pd.DataFrame(names | {"composition": values[s, r]}))
        frame = pd.concat(frames, ignore_index=True)
        frame["excess"] = frame["composition"] - self.baseline
        frame["z"] = frame["excess"] / self.baseline_sd
        return frame

    def __repr__(self) -> str:
        flat = np.where(np.isfinite(self.value), self.value, -np.inf).ravel()
        order = np.argsort(-flat, kind="stable")[: min(10, int(np.isfinite(self.value).sum()))]
        rows = [("path", "composition", "z")]
        for i in order:
            input, *heads = np.unravel_index(i, self.value.shape)
            z = (flat[i] - self.baseline) / self.baseline_sd
            rows.append(
                ("{}:{}->{}:{}.".format(*heads) + INPUTS[input], f"{flat[i]:.4f}", f"{z:.1f}")
            )
        return table(
            f"Composition, largest (random: {self.baseline:.4f} ± {self.baseline_sd:.4f})", rows
        )


@torch.no_grad()
def compose(
    model: nn.Module, *, fold: bool = True, num_random: int = 32, seed: int = 0
) -> Composition:
    """Q-, K- and V-composition of every pair of heads across layers.

    score = ‖L R‖_F / (‖L‖_F ‖R‖_F), in the convention of row vectors (x L R): L = W_V W_O of the earlier head,
    R = W_Q W_Kᵀ for Q, W_K W_Qᵀ for K, W_V W_O for V of the later one. See :func:`composition` for how.

    >>> from rllc.models import AttentionOnly, AttentionOnlyConfig
    >>> model = AttentionOnly(AttentionOnlyConfig(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=6, d_vocab=10))
    >>> compose(model).value.shape
    (3, 2, 2, 2, 2)

    Args:
        model: any module with TransformerLens's names, such as an :class:`rllc.models.AttentionOnly`.
        fold: put what a LayerNorm does to its input, up to the division by its norm, into the matrices that read it:
            W ← (I − 11ᵀ/d) diag(w) W for W_Q, W_K and W_V, w being its scale. A weight's score then does not depend on
            where training has put a scale, and what LayerNorm removes counts as not read. The division by the norm
            scales a whole row of L R's input alike, and is left out.
        num_random: random heads on each side of the baseline.
        seed: of the baseline.

    Raises:
        InputError: the model's parameters are named or shaped in another way.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; arXiv 2410.02984, appendix.
    """
    parameters = dict(model.named_parameters())
    n_layers = sum(
        1 for name in parameters if name.startswith("blocks.") and name.endswith(".attn.W_Q")
    )
    stacks = []
    for tensor in _NAMES:
        names = [f"blocks.{layer}.attn.{tensor}" for layer in range(n_layers)]
        if not names or any(name not in parameters for name in names):
            raise InputError(
                f"compose({type(model).__name__}): expected parameters named like 'blocks.0.attn.W_Q', as an "
                f"rllc.models.AttentionOnly has; for other models stack W_Q, W_K, W_V and W_O as [layer, head, …] and call "
                f"composition(W_Q, W_K, W_V, W_O)."
            )
        stacks.append(torch.stack([parameters[name].detach() for name in names]))
    if fold:
        scales = [parameters.get(f"blocks.{layer}.ln1.w") for layer in range(n_layers)]
        stacks[:3] = [_fold(W, scales) for W in stacks[:3]]
    return composition(*stacks, num_random=num_random, seed=seed)


@torch.no_grad()
def composition(
    W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, num_random: int = 32, seed: int = 0
) -> Composition:
    """Q-, K- and V-composition from stacked weights, by their factors.

    ‖L R‖²_F = ⟨LᵀL, R Rᵀ⟩, the inner product of two symmetric ``[d_model, d_model]`` matrices, each made once a head, from
    a ``[d_head, d_model]`` factor: L = A B has LᵀL = wᵀw for w = aᵀB, a being a root of AᵀA = a aᵀ; R likewise. They are
    made and multiplied a block at a time, the blocks above the diagonal counting twice, so that all pairs are a few matrix
    products of about d_model² operations a pair, where the product of two factors has 2·d_head²·d_model.

    The inner product of matrices that hardly meet is a difference of larger numbers: where it is so small next to
    ‖LᵀL‖_F ‖R Rᵀ‖_F that rounding could be seen, ‖L R‖ is computed from the product of the factors, so that 0 is 0.

    The baseline is the score of ``num_random``² pairs of heads with normal factors of the same shape; the mean of its
    square is 1/d_model, for any L and R with independent, uniformly random directions.

    Args:
        W_Q: ``[layer, head, d_model, d_head]``; W_K and W_V alike.
        W_O: ``[layer, head, d_head, d_model]``.
        num_random: random heads on each side of the baseline; at least 2.
        seed: of the baseline.

    Raises:
        InputError: other shapes, or fewer than 2 random heads.
    """
    _check_shapes(W_Q, W_K, W_V, W_O)
    if num_random < 2:
        raise InputError(
            f"composition: `num_random` must be at least 2, got {num_random!r}; it makes the baseline."
        )
    n_layers, n_heads = W_Q.shape[:2]
    written = _root(_gram(W_V)).mT @ W_O  # w with LᵀL = wᵀw, L being W_V W_O
    products = (
        (W_Q, W_K),
        (W_K, W_Q),
        (W_V, W_O.mT),
    )  # R = C Dᵀ, and r with R Rᵀ = rᵀr: [layer, input, head, …]
    read = torch.stack([_root(_gram(D)).mT @ C.mT for C, D in products], 1)
    value = torch.full(
        (3, n_layers, n_heads, n_layers, n_heads), torch.nan, dtype=W_Q.dtype, device=W_Q.device
    )
    if n_layers > 1:
        earlier = [layer * n_heads for layer in range(1, n_layers)]
        found = _scores(written[:-1].flatten(0, 1), read[1:].flatten(1, 2), earlier)
        found = found.view(
            n_layers - 1, n_layers - 1, n_heads, 3, n_heads
        )  # [later layer, layer, head, input, head]
        value[:, :-1, :, 1:] = found.permute(3, 1, 2, 0, 4)
    random = _random_scores(W_Q.shape[-2], W_Q.shape[-1], num_random, seed)
    return Composition(value.cpu().numpy(), float(random.mean()), float(random.std()))


def plot_composition(result: Composition, input: str = "K", ax: Axes | None = None) -> Axes:
    """One kind of composition as a heat map over its random baseline, earlier heads downwards, later ones to the right.

    >>> ax = plot_composition(compose(model), "K")                                 # doctest: +SKIP

    Args:
        result: what :func:`compose` gave.
        input: ``"Q"``, ``"K"`` or ``"V"``.

    Raises:
        InputError: ``input`` is another.
    """
    per_layer = result.value.shape[2]
    values = result.matrix(input)[: -per_layer or None, per_layer:] - result.baseline
    senders, receivers = result.heads[: -per_layer or None], result.heads[per_layer:]
    if not senders:
        raise InputError(
            "plot_composition: the model has one layer, and heads compose across layers only."
        )
    given = ax is not None
    ax = new_axes(ax, width=min(9.0, 2.6 + 0.35 * len(receivers)))
    if not given:
        ax.figure.set_figheight(min(8.0, 1.4 + 0.3 * len(senders)))
    most = np.nanmax(np.abs(values), initial=1e-12)
    ax.set_facecolor("0.9")
    image = ax.imshow(values, vmin=-most, vmax=most, cmap="RdBu_r", aspect="auto")
    step = 1 if len(receivers) <= 40 else per_layer  # a label a head, or a layer
    ax.set_xticks(range(0, len(receivers), step), receivers[::step], rotation=60)
    ax.set_yticks(range(0, len(senders), step), senders[::step])
    for edge in range(per_layer, len(receivers), per_layer):
        ax.axvline(edge - 0.5, color="0.6", lw=0.6)
        ax.axhline(edge - 0.5, color="0.6", lw=0.6)
    ax.set_xlabel(f"later head's {input}")
    ax.set_ylabel("earlier head")
    ax.figure.colorbar(image, ax=ax, label=f"{input}-composition − random ({result.baseline:.3f})")
    return ax


def _scores(written: Tensor, read: Tensor, earlier: Sequence[int]) -> Tensor:
    """``[layer, sender, receiver]``; NaN beyond the first ``earlier[layer]`` senders, which are those before the layer.

    Args:
        written: ``[sender, d_head, d_model]``: w with LᵀL = wᵀw.
        read: ``[layer, receiver, d_head, d_model]``: r with R Rᵀ = rᵀr.
    """
    (layers, receivers, _, width), senders = read.shape, len(written)
    squares = torch.full(
        (layers, senders, receivers), torch.nan, dtype=torch.float64, device=read.device
    )
    for layer, count in enumerate(earlier):
        squares[layer, :count] = 0
    side = min(96, max(8, -(-width // 8)))
    lefts, rights = (
        _blocks(written, side),
        _blocks(read.flatten(0, 1), side).unflatten(1, (layers, receivers)),
    )
    left, right = (
        torch.empty(n, side, side, dtype=read.dtype, device=read.device)
        for n in (senders, receivers)
    )
    for i, j in combinations_with_replacement(range(len(lefts)), 2):
        torch.bmm(
            lefts[i].mT, lefts[j], out=left
        )  # in the same memory each time, which then is in the cache
        for layer, count in enumerate(earlier):
            torch.bmm(rights[i, layer].mT, rights[j, layer], out=right)
            squares[layer, :count] += (1 if i == j else 2) * (
                left[:count].flatten(1) @ right.flatten(1).T
            )
    most = (
        _gram(written.mT).norm(dim=(1, 2))[:, None] * _gram(read.mT).norm(dim=(2, 3))[:, None]
    )  # ‖LᵀL‖ ‖R Rᵀ‖
    for some in torch.nonzero(squares < most * torch.finfo(read.dtype).eps / _PRECISION).split(64):
        layer, sender, receiver = some.T
        squares[layer, sender, receiver] = (
            (written[sender] @ read[layer, receiver].mT).double().square().sum((-2, -1))
        )
    norms = (
        written.norm(dim=2).double().norm(dim=1)[:, None]
        * read.norm(dim=3).double().norm(dim=2)[:, None]
    )
    return (squares.clamp(min=0).sqrt() / norms).to(read.dtype)


def _blocks(factors: Tensor, side: int) -> Tensor:
    """``[block, head, d_head, side]`` from ``[head, d_head, d_model]``, the last block filled up with zeros."""
    padded = nn.functional.pad(factors, (0, -factors.shape[-1] % side))
    return padded.unflatten(-1, (-1, side)).movedim(-2, 0).contiguous()


def _gram(W: Tensor) -> Tensor:
    return W.mT @ W


def _root(gram: Tensor) -> Tensor:
    """A matrix r with r rᵀ = gram, which may be singular, for stacks of symmetric positive semi-definite matrices."""
    gram, dtype = gram.double(), gram.dtype
    root, failed = torch.linalg.cholesky_ex(gram)
    singular = failed > 0  # by eigenvectors, which takes 20 times as long
    if bool(singular.any()):
        values, vectors = torch.linalg.eigh(gram[singular])
        root[singular] = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return root.to(dtype)


def _fold(W: Tensor, scales: list[Tensor | None]) -> Tensor:
    """LayerNorm's scale and centring, which come before ``W [layer, head, d_model, d_head]``, put into it."""
    folded = torch.stack(
        [w if s is None else w * s.detach()[:, None] for w, s in zip(W, scales, strict=True)]
    )
    return folded - folded.mean(-2, keepdim=True)


def _random_scores(d_model: int, d_head: int, count: int, seed: int) -> Tensor:
    stream = generator("composition", seed)
    A, B, C, D = (torch.randn(count, d_model, d_head, generator=stream) for _ in range(4))
    return _scores(_root(_gram(A)).mT @ B.mT, (_root(_gram(D)).mT @ C.mT)[None], [count])[0]


def _check_shapes(W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> None:
    shape = tuple(W_Q.shape)
    expected = (shape, shape, shape, (*shape[:2], *shape[:1:-1]))
    got = tuple(tuple(W.shape) for W in (W_Q, W_K, W_V, W_O))
    if W_Q.dim() != 4 or got != expected:
        raise InputError(
            f"composition: expected W_Q, W_K and W_V as [layer, head, d_model, d_head] and W_O as [layer, head, d_head, "
            f"d_model], got {got}."
        )
