"""What the slope of a minibatch adds to its loss: 0 on average, so it may be subtracted."""

from __future__ import annotations

from torch import Tensor

from rllc.observe import Moment, Observable


def control_variate() -> Observable:
    """(g_B − ĝ)·(v − v*), to first order what the minibatch's own slope adds to its loss.

    >>> control_variate().prepare is not None
    True

    g_B is the gradient at w* on the draw's minibatch, ĝ the mean of 128 others. A draw's position
    depends neither on its own minibatch nor on those 128, and all have the same mean gradient.
    """
    return Observable(_control, prepare=Moment.mean_origin_gradient)


def _control(moment: Moment) -> Tensor:
    assert moment.prepared is not None
    tilt = moment.origin_gradient() - moment.prepared
    return (tilt * (moment.position - moment.origin)).sum(1, dtype=tilt.double().dtype)
