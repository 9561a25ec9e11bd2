"""How far the chains are from w*."""

from __future__ import annotations

from torch import Tensor

from rllc.sampling.observe import Moment, Observable


def distance() -> Observable:
    """Squared distance from w*, ‖v − v*‖², at each draw.

    >>> distance().axes
    ()

    Under the prior alone its mean is dim/γ; where the loss holds the chains it is smaller.
    """
    return Observable(_distance)


def _distance(moment: Moment) -> Tensor:
    return (moment.position - moment.origin).square().sum(1)
