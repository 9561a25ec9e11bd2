"""Rows whose losses are parabolas, chains on them of which all is known, and draws made by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import rllc
from rllc.seeds import generator

ROWS, DIM = 6, 4
LR, GAMMA, N_BETA = 0.02, 4.0, 6.0
FAR = 4.5
"""Standard errors: a false alarm in 150,000 comparisons of normal numbers."""


class Parabolas(nn.Module):
    """ℓ_i(v) = c_i + g_i·v + ½ vᵀA_i v, one for each row i; the gradients have mean 0."""

    def __init__(self) -> None:
        super().__init__()
        stream = generator("parabolas")
        slopes = torch.randn(ROWS, DIM, generator=stream)
        roots = torch.randn(ROWS, DIM, DIM, generator=stream)
        self.v = nn.Parameter(torch.zeros(DIM))
        self.register_buffer("c", torch.randn(ROWS, generator=stream))
        self.register_buffer("g", slopes - slopes.mean(0))
        self.register_buffer("A", roots @ roots.mT / 2)

    def forward(self, x: Tensor) -> Tensor:
        i = x[:, 0].long()
        curved = torch.einsum("nij,i,j->n", self.A[i], self.v, self.v)
        return self.c[i] + self.g[i] @ self.v + curved / 2


MODEL, X = Parabolas(), torch.arange(float(ROWS))[:, None]


class Law:
    """Exact at this step size: v is normal with mean 0 and covariance S = (M − εM²/4)⁻¹."""

    def __init__(self, moving: slice, n_beta: float = N_BETA, lr: float = LR) -> None:
        self.A = MODEL.A.double().numpy()[:, moving, moving]
        self.g = MODEL.g.double().numpy()[:, moving]
        self.H = self.A.mean(0)
        self.n_beta, self.lr = n_beta, lr
        self.M = n_beta * self.H + GAMMA * np.eye(len(self.H))
        self.S = np.linalg.inv(self.M - lr / 4 * self.M @ self.M)

    def rise(self) -> np.ndarray:
        return np.einsum("nij,ji->n", self.A, self.S) / 2

    def kernel(self) -> np.ndarray:
        AS = self.A @ self.S
        return self.g @ self.S @ self.g.T + np.einsum("nij,mji->nm", AS, AS) / 2

    def susceptibilities(self) -> np.ndarray:
        HS = self.H @ self.S
        rest = (self.A - self.H) @ self.S
        return -np.einsum("ij,nji->n", HS, rest) / 2


def positions(
    gradient: np.ndarray, lr: float, num_chains: int, num_draws: int, steps: int, seed: int = 0
) -> np.ndarray:
    """SGLD on a quadratic energy ½ vᵀMv in float64, ``[chain, draw, dim]``, from its own law on."""
    stream = np.random.default_rng(seed)
    dim = len(gradient)
    S = np.linalg.inv(gradient - lr / 4 * gradient @ gradient)
    v = stream.standard_normal((num_chains, dim)) @ np.linalg.cholesky(S).T
    kept = np.empty((num_chains, num_draws, dim))
    for draw in range(num_draws):
        for _ in range(steps):
            v = v - lr / 2 * v @ gradient + lr**0.5 * stream.standard_normal(v.shape)
        kept[:, draw] = v
    return kept


def drawn(
    rise: np.ndarray, v: np.ndarray, *, relaxation: float, n_beta: float = N_BETA
) -> rllc.Draws:
    """Draws of one refinement whose rows' losses ``[chain, draw, row]`` were observed."""
    distance = np.square(v).sum(-1)[None]
    # Full batches: chains share nothing.
    no_noise = np.zeros_like(distance)
    rows = rise[None, ..., None]
    draws = made_up(1, rows=rows, distance=distance, minibatch_variance=no_noise)
    changes = {"relaxation": relaxation, "n_beta": n_beta, "localization": GAMMA}
    draws.settings.update(changes)
    return draws


def made_up(num_refinements: int = 2, seed: int = 0, **observed: np.ndarray) -> rllc.Draws:
    """Draws with these observations, and losses that are their mean."""
    shape = next(iter(observed.values())).shape[1:3]
    names = [f"0:{k}" for k in range(num_refinements)]
    stream = np.random.default_rng(seed)
    axes = {name: ["row", "pos"][: array.ndim - 3] for name, array in observed.items()}
    return rllc.Draws(
        loss=stream.gamma(2.0, size=(num_refinements, *shape)),
        baseline=np.zeros((num_refinements, *shape)),
        diverged=np.full((num_refinements, shape[0]), -1),
        names=rllc.weights.names.Names(tuple(names), ("x",) * num_refinements),
        settings=rllc.sgld().settings
        | rllc.Sampling(shape[0], shape[1]).settings
        | {"observed": axes, "relaxation": 0.3},
        observed=observed,
    )


def losses(*shape: int, seed: int = 0) -> np.ndarray:
    """[refinement, chain, draw, row, pos], with correlations between tokens."""
    stream = np.random.default_rng(seed)
    common = stream.standard_normal((*shape[:3], 1, 1))
    return stream.standard_normal(shape) * 0.3 + common * stream.uniform(-1, 1, shape[3:]) + 0.5
