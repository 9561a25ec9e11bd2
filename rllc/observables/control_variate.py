"""The part of a minibatch's loss that its slope makes: 0 on average, so it may be subtracted."""

from __future__ import annotations

import torch
from torch import Tensor

from rllc.sampling.observe import Moment, Observable


def control_variate() -> Observable:
    """(g_B − ĝ)·(v − v*), to first order what the minibatch's own slope adds to its loss.

    >>> control_variate().prepare is not None
    True

    g_B is the gradient at w* on the draw's minibatch, ĝ the mean of 128 others. A draw's position
    depends neither on its own minibatch nor on those 128, and all have the same mean gradient.
    It is 0, and costs nothing, on data sets whose settings do not ask for it.
    """
    return Observable(_control, prepare=_slope)


def _slope(moment: Moment) -> Tensor:
    if not moment.sampling.control_variate:
        return moment.origin[:, :0]
    return moment.mean_origin_gradient()


def _control(moment: Moment) -> Tensor:
    if not moment.sampling.control_variate:
        return torch.zeros(len(moment.chain), dtype=torch.float64, device=moment.chain.device)
    assert moment.prepared is not None
    tilt = moment.origin_gradient() - moment.prepared
    return (tilt * (moment.position - moment.origin)).sum(1, dtype=tilt.double().dtype)
