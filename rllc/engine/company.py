"""Runs in one pass are now and then held against what one of them gives alone.

The trial before the first step (:mod:`rllc.engine.trial`) cannot see everything. A loss may mix
rows only where they differ by more than a threshold, such as ``torch.minimum(l, 1.1 * l.mean())``:
chains pass it after some steps, and from there on runs would touch one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rllc.errors import InputError

_RUNS_BETWEEN = 500
"""Runs evaluated together for one that is evaluated alone, after the first few calls: 2 % of the
work at most, where a run in company takes a tenth of one alone."""

_ROUNDING = 5e-5
"""The share of a mean loss by which it may differ in company."""

_ROUNDING_ON_GPU = 1e-3
"""That share where convolutions may round their inputs to 10 bits."""

OF_LAST_BITS = 30.0
"""Where weights that differ in their last bits give larger differences, so many times these."""


class Company:
    """Decides when a run of a group is compared with the same run alone, and which run."""

    def __init__(self) -> None:
        self.calls = 0
        self.runs = 0
        """How many since the last comparison."""
        self.comparisons = 0

    def is_due(self, runs: int) -> bool:
        """Count a call, and say whether one of its runs is compared.

        So it is at calls 2, 4, 8, …, and otherwise after a fixed number of runs.

        Args:
            runs: of the call.
        """
        self.calls += 1
        self.runs += runs
        # The first call is that of the check at w*, just after the trial.
        is_power_of_two = self.calls > 1 and self.calls & (self.calls - 1) == 0
        if not is_power_of_two and self.runs < _RUNS_BETWEEN:
            return False
        self.runs = 0
        self.comparisons += 1
        return True

    def chosen(self, losses: Tensor) -> int:
        """The run to compare: by turns the one of the largest loss, and any.

        The largest loss is the first to pass a threshold.

        Args:
            losses: ``[run]``.
        """
        if self.comparisons % 2:
            finite = losses.nan_to_num(nan=-math.inf, posinf=-math.inf)
            return int(finite.argmax())
        return self.comparisons // 2 % len(losses)

    def compare(
        self, in_company: float, position: Tensor, loss_alone: Callable[[Tensor], float], runs: int
    ) -> None:
        """Refuse a run whose loss in company is not its loss alone.

        Args:
            in_company: the run's loss in company.
            position: of the run, ``[1, dim]``.
            loss_alone: gives its loss alone at a position.
            runs: how many the pass has.

        Raises:
            InputError: gives both losses.
        """
        alone = loss_alone(position)
        if not math.isfinite(in_company) and not math.isfinite(alone):
            return
        rounding = _ROUNDING_ON_GPU if position.is_cuda else _ROUNDING
        difference = abs(in_company - alone)
        if difference <= rounding * abs(alone):
            return
        if difference <= OF_LAST_BITS * _of_last_bits(alone, position, loss_alone):
            return
        raise InputError(
            f"sampling: in a pass of {runs} runs one has the loss {in_company:.6g}, but alone it "
            f"has {alone:.6g}: model or loss mix rows of a minibatch (as with a threshold at "
            f"the mean of all), though not yet at the weights where this was tried before the "
            f"first step. Pass compute=rllc.Compute(runs_per_pass=1), which evaluates each run "
            f"alone."
        )


def _of_last_bits(loss: float, position: Tensor, loss_alone: Callable[[Tensor], float]) -> float:
    """The change of a loss when the last bits of the weights change."""
    eps = torch.finfo(torch.float32).eps
    sign = torch.ones_like(position)
    sign[:, ::2] = -1
    up = loss_alone(position * (1 + eps * sign))
    down = loss_alone(position * (1 - eps * sign))
    return max(abs(up - loss), abs(down - loss))
