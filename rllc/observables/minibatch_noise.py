"""How much of a draw's loss comes from the choice of its minibatch."""

from __future__ import annotations

import torch
from torch import Tensor

from rllc.observe import Moment, Observable


def minibatch_variance() -> Observable:
    """Variance of loss − baseline over choices of the minibatch, from how its rows differ.

    >>> minibatch_variance().at
    'draw'

    Rows are drawn without replacement, so it is the variance over rows / batch, times
    1 − batch/rows. It is 0 on full batches, and NaN for a minibatch of one row of several.
    """
    return Observable(_minibatch_variance)


def _minibatch_variance(moment: Moment) -> Tensor:
    rise = moment.losses_by_row.double() - moment.baseline_by_row.double()
    runs, batch = rise.shape[:2]
    by_row = rise.reshape(runs, batch, -1).mean(2)
    if batch == moment.num_rows:
        return torch.zeros_like(by_row[:, 0])
    if batch == 1:
        return torch.full_like(by_row[:, 0], torch.nan)
    return by_row.var(1) / batch * (1 - batch / moment.num_rows)
