"""The loss that chains would have if the prior alone held them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rllc.samplers.prior_alone import prior_alone
from rllc.sampling.observe import Moment, Observable
from rllc.seeds import generator

_MINIBATCHES = 8

_POSITIONS = 4
"""Positions on each minibatch. 32 draws in all know the control to some percent."""


def loss_under_prior(lr: float, localization: float) -> Observable:
    """ℓ(v) − ℓ(w*) at independent draws v of the prior alone, on minibatches of their own.

    nβ times its mean is what λ̂ would be if the loss did nothing. It needs no chain, and no
    gradient:
    32 evaluations of one chain.

    >>> loss_under_prior(lr=1e-3, localization=200.0).axes
    ('position', 'minibatch')

    Args:
        lr: ε of the sampler.
        localization: γ > 0.
    """
    sampler = prior_alone(lr, localization)
    measure = _LossUnderPrior(sampler.step.deviation)  # type: ignore[attr-defined]
    return Observable(measure, ("position", "minibatch"), at="start")


@dataclass(frozen=True)
class _LossUnderPrior:
    deviation: float

    def __call__(self, moment: Moment) -> Tensor:
        """``[run, position, minibatch]``."""
        stream = generator("loss under the prior", moment.origin.shape[1])
        columns = []
        for minibatch in range(_MINIBATCHES):
            losses = []
            for _ in range(_POSITIONS):
                # All refinements of one size get the same noise, whatever their company.
                noise = torch.randn(moment.origin.shape[1], generator=stream, dtype=torch.float32)
                step = self.deviation * noise.to(moment.origin.device)
                losses.append(moment.rise_at(moment.origin + step, minibatch))
            columns.append(torch.stack(losses, 1))
        return torch.stack(columns, 2)
