"""How much of a draw's loss comes from the choice of its minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rllc.samplers import Sampler
from rllc.sampling.observe import Moment, Observable
from rllc.statistics.biases import pairing_bias


def minibatch_variance() -> Observable:
    """Variance of loss − baseline over choices of the minibatch, from how its rows differ.

    >>> minibatch_variance().at
    'draw'

    Rows are drawn without replacement, so it is the variance over rows / batch, times
    1 − batch/rows. It is 0 on full batches, and NaN for a minibatch of one row of several. Where
    rows have different numbers n of tokens that count, the mean is a ratio Σs/Σn, whose variance is
    that of (s − n·mean)/n̄ to first order.
    """
    return Observable(_minibatch_variance)


def pairing(sampler: Sampler) -> Observable:
    """The bias of λ̂ that arises because the minibatches of one epoch exclude each other.

    Measured where an epoch has 2 to 99 minibatches and no control variate takes it off, else 0. It
    is
    :func:`rllc.statistics.biases.pairing_bias` with the curvatures taken as 0, which is the most
    that it can be, and the gradients' variance at w* from 32 minibatches.

    Args:
        sampler: its lr and localization are used.
    """
    return Observable(_Pairing(sampler.lr, sampler.localization), at="start")


@dataclass(frozen=True)
class _Pairing:
    lr: float
    localization: float

    def __call__(self, moment: Moment) -> Tensor:
        minibatches = moment.num_rows // len(moment.rows)
        if moment.sampling.control_variate or not 1 < minibatches < 100:
            return torch.zeros(len(moment.chain), dtype=torch.float64)
        variance = moment.gradient_variance().double().sum(1)
        per_variance = pairing_bias(
            [0.0],
            1.0,
            minibatches,
            lr=self.lr,
            localization=self.localization,
            n_beta=moment.n_beta,
        )
        return per_variance * variance


def _minibatch_variance(moment: Moment) -> Tensor:
    rise = moment.losses_by_row.double() - moment.baseline_by_row.double()
    runs, batch = rise.shape[:2]
    rise = rise.reshape(runs, batch, -1)
    by_row = rise.mean(2) if moment.counted is None else _shares(rise, moment.counted)
    if batch == moment.num_rows:
        return torch.zeros_like(by_row[:, 0])
    if batch == 1:
        return torch.full_like(by_row[:, 0], torch.nan)
    return by_row.var(1) / batch * (1 - batch / moment.num_rows)


def _shares(rise: Tensor, counted: Tensor) -> Tensor:
    """Each row's part in the mean's distance from its expectation, times the number of rows."""
    counted = counted.reshape(len(counted), -1)
    number = counted.sum(1).double()
    total = rise.masked_fill(~counted, 0.0).sum(2)
    mean = total.sum(1, keepdim=True) / number.sum()
    return (total - number * mean) / number.mean()
