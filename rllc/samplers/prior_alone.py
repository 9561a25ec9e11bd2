"""The law of chains that do not see the loss, drawn without a chain."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError
from rllc.samplers.law import Law
from rllc.samplers.sampler import Energy, Random, Sampler


class PriorState(NamedTuple):
    """Where the draws are, and the centre they are drawn around: both ``[run, dim]``."""

    position: Tensor
    center: Tensor


def prior_alone(lr: float, localization: float) -> Sampler:
    """Independent draws of what sgld samples at nβ = 0: N(w*, 1/(γ(1 − εγ/4))) on each weight.

    >>> prior_alone(lr=1e-3, localization=200.0)
    prior_alone(lr=0.001, localization=200)

    Every step is a new draw, so nothing relaxes and nothing is biased. It is the negative control
    of :func:`rllc.control`.

    Args:
        lr: ε of the sampler it is the control of.
        localization: γ > 0.

    Raises:
        InputError: there is no such law, because εγ is not between 0 and 4.
    """
    if not 0 < lr * localization < 4:
        raise InputError(
            f"control: draws of the prior alone need 0 < lr·localization < 4, got lr = {lr!r} and "
            f"localization = {localization!r}; pass rllc.sgld(localization=200.0)."
        )
    deviation = (localization * (1 - lr * localization / 4)) ** -0.5
    law = Law(relaxation=0.0, largest_precision=math.nan)
    return Sampler("prior_alone", lr, localization, _init, _Step(deviation), law=law)


def _init(position: Tensor) -> PriorState:
    return PriorState(position.clone(), position)


@dataclass(frozen=True)
class _Step:
    deviation: float

    def __call__(self, state: PriorState, energy: Energy, random: Random) -> PriorState:
        # The energy is asked for all the same: it is how the loss of a draw is measured.
        energy(state.position)
        position = torch.add(state.center, random.normal(), alpha=self.deviation)
        return PriorState(position, state.center)
