"""Modules that give their loss for each row of their data, and that are at its minimum."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllc.seeds import generator


class Quadratic(nn.Module):
    """ℓ = ½ Σ h v²."""

    h: Tensor

    def __init__(self, curvatures: np.ndarray) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(len(curvatures)))
        self.register_buffer("h", torch.as_tensor(curvatures, dtype=torch.float32))

    def forward(self, rows: Tensor) -> Tensor:  # noqa: D102
        loss = 0.5 * (self.h * self.v**2).sum()
        return loss.expand(len(rows))


class NormalCrossing(nn.Module):
    """ℓ = Σ over copies of Π_i w_i^(2k_i).

    Losses of copies add, so λ does: copies only make one chain worth many.
    """

    def __init__(self, k: Sequence[int], copies: int) -> None:
        super().__init__()
        self.k = tuple(k)
        self.w = nn.Parameter(torch.zeros(len(k), copies))

    def forward(self, rows: Tensor) -> Tensor:  # noqa: D102
        powers = [w ** (2 * k) for w, k in zip(self.w, self.k, strict=True)]
        loss = math.prod(powers[1:], start=powers[0]).sum()
        return loss.expand(len(rows))


class ReducedRank(nn.Module):
    """ℓ = Σ over copies of ½‖(BA − B*A*) x‖² for each input x."""

    truth: Tensor

    def __init__(self, A: Tensor, B: Tensor, copies: int) -> None:
        super().__init__()
        self.A = nn.Parameter(A.expand(copies, *A.shape).clone())
        self.B = nn.Parameter(B.expand(copies, *B.shape).clone())
        self.register_buffer("truth", B @ A)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        output = self.B @ (self.A @ x.T)
        return 0.5 * (output - self.truth @ x.T).square().sum((0, 1))


class LinearNetwork(nn.Module):
    """ℓ = ½‖(W_L ⋯ W_1 − W*_L ⋯ W*_1) x‖² for each input x.

    With :func:`whitened` inputs the mean is ½‖W − W*‖²_F.
    """

    truth: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.W = nn.ParameterList(nn.Parameter(W.clone()) for W in weights)
        self.register_buffer("truth", product(weights))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = x
        for W in self.W:
            y = y @ W.T
        return 0.5 * (y - x @ self.truth.T).square().sum(1)


class OneHead(nn.Module):
    """One causal attention head over one-hot tokens; KL(uniform ‖ softmax) at every position.

    W_V = W_O = 0 is a minimum.
    """

    def __init__(self, v: int, d_head: int, seed: int = 0) -> None:
        super().__init__()
        stream = generator("one head", seed)
        self.W_Q = nn.Parameter(torch.randn(v, d_head, generator=stream))
        self.W_K = nn.Parameter(torch.randn(v, d_head, generator=stream))
        self.W_V = nn.Parameter(torch.zeros(v, d_head))
        self.W_O = nn.Parameter(torch.zeros(d_head, v))
        self.v = v
        self.d_head = d_head

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x = F.one_hot(tokens, self.v).float()  # [row, pos, token]
        queries = x @ self.W_Q
        keys = x @ self.W_K
        scores = queries @ keys.mT / math.sqrt(self.d_head)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        logits = pattern @ (x @ self.W_V) @ self.W_O
        return -logits.log_softmax(-1).mean(-1) - math.log(self.v)


# Weights and inputs.


def product(weights: Sequence[Tensor]) -> Tensor:
    """W_L ⋯ W_1."""
    result = weights[0]
    for W in weights[1:]:
        result = W @ result
    return result


def whitened(width: int) -> Tensor:
    """Inputs √width·e_i: their mean of x xᵀ is the identity."""
    return math.sqrt(width) * torch.eye(width)


def aligned(widths: Sequence[int], rank: int) -> list[Tensor]:
    """Every layer diag(1_rank, 0): the deepest point of the fibre, of the smallest local λ."""
    weights = []
    for inputs, outputs in itertools.pairwise(widths):
        W = torch.zeros(outputs, inputs)
        W[range(rank), range(rank)] = 1
        weights.append(W)
    return weights


def placed(M: int, N: int, H: int, r1: int, r2: int, r: int) -> tuple[Tensor, Tensor]:
    """A [H, M] of rank r1 and B [N, H] of rank r2, ones and zeros, whose product has rank r."""
    A = torch.zeros(H, M)
    B = torch.zeros(N, H)
    A[range(r1), range(r1)] = 1
    # B shares r directions with A's image; its others are beyond it.
    columns = [*range(r), *range(r1, r1 + r2 - r)]
    B[range(r2), columns] = 1
    return A, B


def random_layers(widths: Sequence[int], ranks: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Layers of the given ranks with singular values from 0.7 to 1.4 and random directions."""
    stream = generator("random layers", seed)
    weights = []
    for (inputs, outputs), rank in zip(itertools.pairwise(widths), ranks, strict=True):
        left, _ = torch.linalg.qr(torch.randn(outputs, rank, generator=stream))
        right, _ = torch.linalg.qr(torch.randn(inputs, rank, generator=stream))
        weights.append(left @ torch.diag(torch.linspace(0.7, 1.4, rank)) @ right.T)
    return weights
