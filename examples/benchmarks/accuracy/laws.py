"""Exact values of λ̂ at finite nβ."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

import rllc
from rllc import theory
from rllc.samplers.rmsprop_sgld import RMSPropSGLDState

# By quadrature.


def crossing_law(k: Sequence[int], n_beta: float, half_width: float = 1.0) -> float:
    """E[nβ Π w^(2k)] under a uniform prior in the box.

    Gauss-Legendre in log w, where the integrand is smooth.
    """
    length, points = (35.0, 500) if len(k) == 2 else (28.0, 160)
    u, log_mass = log_grid(math.log(half_width), length, points)
    energy = n_beta * np.exp(outer_sum([2 * k_i * u for k_i in k]))
    log_volume = outer_sum([log_mass + u] * len(k))
    return expectation(energy, log_volume - energy)


def reduced_rank_law(M: int, N: int, H: int, n_beta: float, localization: float) -> float:
    """E[nβ ½‖BA‖²] under p ∝ exp(−nβ ½‖BA‖² − (γ/2)(‖A‖² + ‖B‖²)), for min(M, H) ≤ 3.

    Given A, B is Gaussian and integrates to det(γ + nβ AAᵀ)^(−N/2), with
    E[nβ ½‖BA‖² | A] = ½N Σ nβ s/(γ + nβ s) in the eigenvalues s of AAᵀ. Those of a Gaussian A have
    density Π s^((|M−H|−1)/2) e^(−γs/2) Π_{i<j} |s_i − s_j| (Wishart).
    """
    rank = min(M, H)
    length = 30.0 if rank < 3 else 24.0
    points = {1: 2000, 2: 500, 3: 140}[rank]
    u, log_mass = log_grid(math.log(80 / localization), length, points)
    s = np.exp(u)
    log_wishart = u * (abs(M - H) + 1) / 2 - localization * s / 2
    log_gaussian = -N / 2 * np.log1p(n_beta * s / localization)
    log_density = outer_sum([log_mass + log_wishart + log_gaussian] * rank)
    for i, j in itertools.combinations(range(rank), 2):
        distance = np.abs(axis(s, i, rank) - axis(s, j, rank))
        log_density = log_density + np.log(np.where(distance > 0, distance, 1e-300))
    energy = N / 2 * n_beta * s / (localization + n_beta * s)
    return expectation(outer_sum([energy] * rank), log_density)


def log_grid(top: float, length: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes u in [top − length, top] and the logarithms of their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return top + (nodes - 1) / 2 * length, np.log(weights * length / 2)


def axis(values: np.ndarray, which: int, num_axes: int) -> np.ndarray:
    """Values along one of some axes."""
    shape = [1] * num_axes
    shape[which] = -1
    return values.reshape(shape)


def outer_sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Sums of one element of each part, ``[part, part, …]``."""
    total = np.zeros([1] * len(parts))
    for i, part in enumerate(parts):
        total = total + axis(part, i, len(parts))
    return total


def expectation(values: np.ndarray, log_density: np.ndarray) -> float:
    density = np.exp(log_density - log_density.max())
    return float((values * density).sum() / density.sum())


# On ½ Σ h v².


def quadratic_target(
    curvatures: np.ndarray, n_beta: float, localization: float, lr: float = 0.0
) -> float:
    """λ̂ of settled sgld chains at ``lr``, and for lr → 0 of every sampler's."""
    a = n_beta * curvatures + localization
    return float((0.5 * n_beta * curvatures / (a * (1 - lr * a / 4))).sum())


def sgld_law(
    curvatures: np.ndarray, sampler: rllc.samplers.Sampler, n_beta: float, counts: Mapping[str, int]
) -> float:
    """λ̂ of sgld at its step size and from its start on."""
    law = theory.SGLDLaw(curvatures[curvatures > 0], sampler.lr, sampler.localization, n_beta)
    return law.expected(
        counts["num_draws"],
        num_burnin_steps=counts["num_burnin_steps"],
        num_steps_bw_draws=counts["num_steps_bw_draws"],
    )


def rmsprop_sgld_law(
    curvatures: np.ndarray, sampler: rllc.samplers.Sampler, n_beta: float, state: RMSPropSGLDState
) -> float:
    """λ̂ of settled rmsprop_sgld chains with the scales in a state."""
    alpha = sampler.options["alpha"]
    num_steps = sampler.options["num_adaptation_steps"]
    square = state.square.double().numpy() / (1 - alpha**num_steps)
    scale = 1 / (np.sqrt(square) + sampler.options["eps"])  # G [chain, dim]
    a = n_beta * curvatures + sampler.localization
    of_chains = (0.5 * n_beta * curvatures / (a * (1 - sampler.lr * scale * a / 4))).sum(1)
    return float(of_chains.mean())
