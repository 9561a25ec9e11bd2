"""How sharp the loss is at w*, and how far the sampler is from where it blows up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rllc.engine.lanczos import largest_eigenvalue
from rllc.samplers import Sampler
from rllc.sampling.observe import Moment, Observable
from rllc.seeds import generator

_LANCZOS_STEPS = 12
"""Products with the Hessian. The largest curvature of a head stands out from the others, and is
known to some percent after these."""

_ROUNDING = 0.02
"""Products below this share of the largest may be errors of the difference."""


def max_curvature(lr: float) -> Observable:
    """The largest eigenvalue of the loss's Hessian at w* in the selected weights.

    A product with the Hessian is a difference of gradients, (∇ℓ(w* + ηu) − ∇ℓ(w*))/η, over a
    quarter of the length √ε that a step's noise moves each weight, or a hundredth of the weights'
    root mean square where that is more. So no kernel needs a second derivative. But for what the
    curvature changes over that length, the value is at most the largest; one minibatch's is on
    average at least that of the whole loss, because the largest eigenvalue is convex. It costs 13
    evaluations of one chain.

    >>> max_curvature(lr=1e-3).at
    'start'

    Args:
        lr: ε.
    """
    return Observable(_MaxCurvature(lr), at="start")


def stability(sampler: Sampler) -> Observable:
    """Largest stable precision over that of the sharpest direction, 4/(ε(nβh + γ)) for sgld.

    Below 1 the sharpest direction blows up.

    Args:
        sampler: one whose law knows its ``largest_precision``.
    """
    return Observable(_Stability(sampler), at="start")


@dataclass(frozen=True)
class _MaxCurvature:
    lr: float

    def __call__(self, moment: Moment) -> Tensor:
        return moment.remember("max_curvature", lambda: self.of(moment))

    def of(self, moment: Moment) -> Tensor:
        values = [self.of_run(moment, run) for run in range(len(moment.origin))]
        return torch.stack(values)

    def of_run(self, moment: Moment, run: int) -> Tensor:
        """The largest eigenvalue of one run's Hessian, from differences of gradients."""
        origin = moment.origin[run]
        typical_weight = float(origin.square().mean().sqrt())
        eta = max(math.sqrt(self.lr) / 4, 0.01 * typical_weight)

        def gradient(position: Tensor) -> Tensor:
            slope = moment.run(position[None], member=run).gradient
            assert slope is not None
            return slope[0].double()

        slope_at_origin = gradient(origin)

        def product(vector: Tensor) -> Tensor:
            moved = gradient(origin + (eta * vector).to(origin.dtype))
            return (moved - slope_at_origin) / eta

        dim = len(origin)
        start = torch.randn(dim, generator=generator("curvature", dim), dtype=torch.float64)
        return largest_eigenvalue(product, start.to(origin.device), _LANCZOS_STEPS, _ROUNDING)


@dataclass(frozen=True)
class _Stability:
    sampler: Sampler

    def __call__(self, moment: Moment) -> Tensor:
        curvature = _MaxCurvature(self.sampler.lr)(moment)
        law = self.sampler.law
        assert law is not None
        precision = moment.n_beta * curvature + self.sampler.localization
        return law.largest_precision / precision.clamp(min=1e-30)
