"""Stochastic gradient Langevin dynamics: the paper's sampler."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.samplers.law import Jump, Law
from rllc.samplers.prior import Prior, chosen
from rllc.samplers.sampler import Energy, Random, Sampler, check_lr


class SGLDState(NamedTuple):
    """Where the chains are, and where they started: both ``[run, dim]``."""

    position: Tensor
    center: Tensor


def sgld(
    lr: float = 1e-3, localization: float | None = None, *, prior: Prior | None = None
) -> Sampler:
    """Stochastic gradient Langevin dynamics around w*: no step-size schedule, no accept/reject.

    >>> sgld(lr=1e-3, localization=200.0)
    sgld(lr=0.001, localization=200)

    Update: v ← v − (ε/2) [∇U(v) + γ (v − v*)] + √ε N(0, I), with U = nβ ℓ on a minibatch.

    Law: on a quadratic U = ½ Σ nβ hᵢ vᵢ² with exact gradients each coordinate is an AR(1) process
    with ρᵢ = 1 − εaᵢ/2, aᵢ = nβ hᵢ + γ, and stationary variance 1/(aᵢ(1 − εaᵢ/4)). It is stable iff
    εaᵢ < 4 (:mod:`rllc.theory`). On a flat loss in a box it is uniform.

    Args:
        lr: ε. The paper's 1e-3 is stable up to curvatures h = (4/ε − γ)/nβ = 127 at its γ and nβ.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        prior: :func:`rllc.samplers.gaussian` or :func:`rllc.samplers.box`, in place of
            ``localization``.

    Raises:
        InputError: ``lr`` is not positive, ``localization`` is negative, or both it and ``prior``
            are given.

    Reference: Welling & Teh 2011; arXiv 2410.02984, appendix, for the settings.
    """
    check_lr("sgld", lr)
    prior = chosen("sgld", localization, prior)
    step = _Step(lr, prior)
    law = Langevin(lr, prior.localization).law(box=prior.has_walls)
    return Sampler("sgld", lr, prior.localization, _init, step, prior.options, law=law)


def _init(position: Tensor) -> SGLDState:
    return SGLDState(position.clone(), position)


@dataclass(frozen=True)
class _Step:
    lr: float
    prior: Prior

    def __call__(self, state: SGLDState, energy: Energy, random: Random) -> SGLDState:
        _, gradient = energy(state.position)
        # v − (ε/2)(∇U + γ(v − v*)) = v + (εγ/2)(v* − v) − (ε/2)∇U: the prior in one operation.
        pull = self.lr * self.prior.localization / 2
        drifted = torch.lerp(state.position, state.center, pull).add_(gradient, alpha=-self.lr / 2)
        moved = drifted.add_(random.normal(), alpha=self.lr**0.5)
        position, _ = self.prior.reflect(moved, state.center)
        return state._replace(position=position)


@dataclass(frozen=True)
class Langevin:
    """The law of :func:`sgld` with a Gaussian prior."""

    lr: float
    localization: float

    def law(self, box: bool) -> Law:
        """Everything that is known; inside a box, only what makes a step unstable."""
        if box:
            return Law(largest_precision=4 / self.lr)
        return Law(
            largest_precision=4 / self.lr,
            relaxation=self.relaxation,
            deviation=self.deviation,
            log_acceptance=self.log_acceptance,
            step_adds=True,
        )

    @property
    def relaxation(self) -> float | None:
        """(1 − εγ/2)², the square because λ̂ is a sum of squares; ``None`` where γ holds
        nothing."""
        memory = (1 - self.lr * self.localization / 2) ** 2
        return memory if memory < 1 else None

    def deviation(self, precision: Tensor) -> Tensor:
        """1/√(a(1 − εa/4)), with εa taken as 2 at most."""
        return (precision * (1 - self.lr * precision / 4).clamp(min=0.5)).rsqrt()

    def log_acceptance(self, jump: Jump) -> Tensor:
        """Logarithm of MALA's acceptance ratio for a step from v to v′ = v + δ.

        With H = nβ ℓ_B + (γ/2)‖v − v*‖² and G = ∇H the prior's part cancels:
        nβ [ℓ_B(v) − ℓ_B(v′) + ½ δ·(∇ℓ_B(v) + ∇ℓ_B(v′))] + (ε/8)(‖G(v)‖² − ‖G(v′)‖²).

        Source: Roberts & Tweedie 1996.
        """
        step = jump.after - jump.before
        both_gradients = jump.gradient_before + jump.gradient_after
        fall = jump.loss_before - jump.loss_after
        ratio = jump.n_beta * (fall + dot(step, both_gradients) / 2)
        away = (jump.before - jump.origin) + (jump.after - jump.origin)
        total = jump.n_beta * both_gradients + self.localization * away
        change = jump.n_beta * (jump.gradient_before - jump.gradient_after)
        change = change - self.localization * step
        return ratio + self.lr / 8 * dot(change, total)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Row by row, in float64: ``[run, dim], [run, dim] -> [run]``."""
    return (left * right).sum(1, dtype=torch.float64)
