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
"""By how much of itself a mean loss may differ in company."""

_ROUNDING_ON_GPU = 1e-3
"""The same where convolutions may round their inputs to 10 bits."""

_OF_LAST_BITS = 30.0
"""Where weights that differ in their last bits give larger differences, so many times these."""


class Company:
    """When a run of a group is held against itself alone, and which."""

    def __init__(self) -> None:
        self.calls = 0
        self.runs = 0
        """Since the last comparison."""
        self.comparisons = 0

    def is_due(self, runs: int) -> bool:
        """Count a call of so many runs: is one of them compared? At calls 2, 4, 8, … and so on.

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
        """The run of the largest loss, which passes a threshold first, or each in its turn.

        Args:
            losses: ``[run]``.
        """
        if self.comparisons % 2:
            finite = losses.nan_to_num(nan=-math.inf, posinf=-math.inf)
            return int(finite.argmax())
        return self.comparisons // 2 % len(losses)

    def compare(
        self, in_company: float, position: Tensor, alone: Callable[[Tensor], float], runs: int
    ) -> None:
        """Refuse a run whose loss in company is not its loss alone.

        Args:
            in_company: its loss.
            position: where it is, ``[1, dim]``.
            alone: its loss alone at a position.
            runs: of the pass.

        Raises:
            InputError: gives both losses.
        """
        by_itself = alone(position)
        if not math.isfinite(in_company) and not math.isfinite(by_itself):
            return
        rounding = _ROUNDING_ON_GPU if position.is_cuda else _ROUNDING
        difference = abs(in_company - by_itself)
        if difference <= rounding * abs(by_itself):
            return
        if difference <= _OF_LAST_BITS * _of_last_bits(by_itself, position, alone):
            return
        raise InputError(
            f"sampling: in a pass of {runs} runs one has the loss {in_company:.6g}, but alone it "
            f"has {by_itself:.6g}: model or loss mix rows of a minibatch (as with a threshold at "
            f"the mean of all), though not yet at the weights where this was tried before the "
            f"first step. Pass compute=rllc.Compute(runs_per_pass=1), which evaluates each run "
            f"alone."
        )


def _of_last_bits(loss: float, position: Tensor, alone: Callable[[Tensor], float]) -> float:
    """By how much a loss changes where the last bits of the weights do."""
    eps = torch.finfo(torch.float32).eps
    sign = torch.ones_like(position)
    sign[:, ::2] = -1
    changes = []
    for beside in (position * (1 + eps * sign), position * (1 - eps * sign)):
        changes.append(abs(alone(beside) - loss))
    return max(changes)
