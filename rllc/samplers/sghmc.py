"""Stochastic gradient Hamiltonian Monte Carlo, with no error of the step size on quadratics."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError
from rllc.samplers.law import Law
from rllc.samplers.prior import Prior, chosen
from rllc.samplers.sampler import Energy, Random, Sampler, check_lr


class SGHMCState(NamedTuple):
    """Each ``[run, dim]``; the momentum starts at 0."""

    position: Tensor
    center: Tensor
    momentum: Tensor


def sghmc(
    lr: float = 1e-3,
    localization: float | None = None,
    momentum: float = 0.9,
    *,
    prior: Prior | None = None,
) -> Sampler:
    """Langevin dynamics with momentum: one gradient a step, but flat directions mix faster.

    >>> sghmc(lr=1e-3, localization=200.0)
    sghmc(lr=0.001, localization=200, momentum=0.9)

    Update, with η = √ε and c = ``momentum``:

    - kick: p ← p − η [∇U(v) + γ (v − v*)];
    - half a drift: v ← v + (η/2) p;
    - friction and noise: p ← c p + √(1 − c²) N(0, I);
    - half a drift: v ← v + (η/2) p.

    With c = 0 the momentum is forgotten every step. This is then sgld whose noise is the mean of
    this step's and the last one's (Leimkuhler & Matthews' limit method), so ``lr`` means what it
    means
    there.

    Law: on a quadratic with exact gradients the stationary variance is **1/aᵢ** with aᵢ = nβ hᵢ +
    γ, the target's own, for every stable step size (εaᵢ < 4) and every c. Gradient noise of
    covariance
    C multiplies it by 1 + (ε/4)(nβ)² Cᵢᵢ (1 + c)/((1 − c)(1 − εaᵢ/4)): momentum averages fewer
    fresh random numbers against the same minibatch noise, so noisy gradients want a smaller c or ε.

    The other candidate, SGNHT, has no stationary variance in closed form on a quadratic: its
    thermostat couples all weights.

    Args:
        lr: ε, the square of the integrator's step.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        momentum: c, what is left of the momentum after a step. In time η a step it is a friction of
            −ln(c)/η. A direction of precision a mixes fastest near c = (1 − √(εa))².
        prior: :func:`rllc.samplers.gaussian` or :func:`rllc.samplers.box`, in place of
            ``localization``.

    Raises:
        InputError: a number is out of its range, or both ``localization`` and ``prior`` are given.

    Reference: Chen, Fox & Guestrin 2014 (SGHMC); Leimkuhler & Matthews 2013, the splitting "BAOAB",
    here begun at its kick, which is then whole. The law is derived from its Lyapunov equation.
    """
    check_lr("sghmc", lr)
    prior = chosen("sghmc", localization, prior)
    if not 0 <= momentum < 1:
        raise InputError(
            f"sghmc: `momentum` must be from 0 on and below 1, got {momentum!r}; try momentum=0.9."
        )

    options = {"momentum": momentum, **prior.options}
    step = _Step(lr, momentum, prior)
    deviation = None if prior.has_walls else torch.rsqrt  # 1/√a, the target's own
    law = Law(largest_precision=4 / lr, deviation=deviation)
    return Sampler("sghmc", lr, prior.localization, _init, step, options, law=law)


def _init(position: Tensor) -> SGHMCState:
    return SGHMCState(position.clone(), position, torch.zeros_like(position))


@dataclass(frozen=True)
class _Step:
    lr: float
    momentum: float
    prior: Prior

    def __call__(self, state: SGHMCState, energy: Energy, random: Random) -> SGHMCState:
        _, gradient = energy(state.position)
        eta = math.sqrt(self.lr)
        noise_scale = math.sqrt(1 - self.momentum**2)
        force = self.prior.gradient(state.position, state.center).add_(gradient)
        kicked = torch.add(state.momentum, force, alpha=-eta)
        halfway = torch.add(state.position, kicked, alpha=eta / 2)
        position, sign = self.prior.reflect(halfway, state.center)
        fresh = (kicked * (self.momentum * sign)).add_(random.normal(), alpha=noise_scale)
        position = position.add_(fresh, alpha=eta / 2)
        position, sign = self.prior.reflect(position, state.center)
        return SGHMCState(position, state.center, fresh * sign)
