"""Stochastic gradient Langevin dynamics: the paper's sampler."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rllc.samplers.prior import Prior, chosen
from rllc.samplers.sampler import Energy, Random, Sampler


class SGLDState(NamedTuple):
    """Where the chains are, and where they started: both ``[run, dim]``."""

    position: Tensor
    center: Tensor


def sgld(
    lr: float = 1e-3, localization: float | None = None, *, prior: Prior | None = None
) -> Sampler:
    """Stochastic gradient Langevin dynamics around w*, without step-size schedule and without accept/reject.

    >>> sgld(lr=1e-3, localization=200.0)
    sgld(lr=0.001, localization=200)

    Update: v ← v − (ε/2) [∇U(v) + γ (v − v*)] + √ε N(0, I), with U = nβ ℓ on a minibatch.

    Law: on a quadratic U = ½ Σ nβ hᵢ vᵢ² with exact gradients each coordinate is an AR(1) process with ρᵢ = 1 − εaᵢ/2,
    aᵢ = nβ hᵢ + γ, and stationary variance 1/(aᵢ(1 − εaᵢ/4)); stable iff εaᵢ < 4 (:mod:`rllc.theory`). On a flat loss
    in a box it is uniform.

    Args:
        lr: ε. The paper's 1e-3 is stable up to curvatures h = (4/ε − γ)/nβ = 127 at its γ and nβ.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        prior: :func:`rllc.gaussian` or :func:`rllc.box`, in place of ``localization``.

    Raises:
        InputError: ``lr`` is not positive, ``localization`` is negative, or both it and ``prior`` are given.

    Source: Welling & Teh 2011; arXiv 2410.02984, appendix, for the settings.
    """
    prior = chosen("sgld", localization, prior)

    def init(position: Tensor) -> SGLDState:
        return SGLDState(position.clone(), position)

    def step(state: SGLDState, energy: Energy, random: Random) -> SGLDState:
        _, gradient = energy(state.position)
        # v − (ε/2)(∇U + γ(v − v*)) = v + (εγ/2)(v* − v) − (ε/2)∇U: the prior's gradient in one fused operation
        drifted = torch.lerp(state.position, state.center, lr * prior.localization / 2).add_(
            gradient, alpha=-lr / 2
        )
        moved = drifted.add_(random.normal(), alpha=lr**0.5)
        return state._replace(position=prior.reflect(moved, state.center)[0])

    return Sampler("sgld", lr, prior.localization, init, step, prior.options)
