"""The shared part of all runs of one data set: a step's minibatch, and the gradient around w*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rllc.data.data import Data
from rllc.data.minibatches import Minibatches
from rllc.engine.layout import Group, center
from rllc.losses.contract import Batch, Center, Loss
from rllc.sampling.settings import Sampling
from rllc.seeds import stable_hash

_LOOKS_FOR_SLOPE = 128
"""Minibatches whose gradients at w* tell the mean slope, for the control variate.

The same number for any ``num_draws``, so that chains that go on are those of a longer run. With 200
draws, as many more would take the share of the slope's noise that is left from about 8 to 4 %."""

_LOOKS_FOR_WIDTH = 32
"""The same where only the curvature of each weight is asked for, which may be wrong by a
quarter."""


class Surroundings:
    """Mean and variance of the gradient at w* over minibatches of their own.

    The mean is the slope ĝ of the control variate; the variance tells where chains may start. Both
    are computed when they are first asked for, for all groups of a data set together.
    """

    def __init__(
        self,
        loss: Loss,
        data: Data,
        groups: Sequence[Group],
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self.loss, self.data, self.groups = loss, data, groups
        assert sampling.batch_size is not None
        self.batch_size = sampling.batch_size
        self.sampling, self.device = sampling, device
        self.looks = _LOOKS_FOR_SLOPE if sampling.control_variate else _LOOKS_FOR_WIDTH
        self.predictions = 0.0
        """Predictions that count in a minibatch, known once a gradient was asked for."""

    def mean(self, group: Group) -> Tensor:
        """ĝ, ``[member, dim]``."""
        return self._moments[self._index(group)][0]

    def variance(self, group: Group) -> Tensor:
        """Variance of a minibatch's gradient, ``[member, dim]``."""
        return self._moments[self._index(group)][1] / (self.looks - 1)

    def beside(self, minibatch: int) -> tuple[Batch, Center]:
        """A minibatch of a stream that no chain sees, and the unmoved model on it."""
        sampling = self.sampling
        stream = ("beside", sampling.seed)
        rows = Minibatches(len(self.data), self.batch_size, stream)[minibatch]
        batch = self.data.take(rows, self.device)
        return batch, self.loss.center(batch, stable_hash(*stream, minibatch))

    def gradients(self, at: Center | None, batch: Batch, seed: int) -> tuple[list[Tensor], int]:
        """The gradient at w* on a minibatch ``[member, dim]``, for each group, in one pass.

        And how many losses it is of. ``at``: the unmoved model there, if it was evaluated.
        """
        names = {slot.name for group in self.groups for slot in group.slots}
        by_parameter, count = self.loss.gradient(sorted(names), at, batch, seed)
        return [center(group, by_parameter) for group in self.groups], count

    def _index(self, group: Group) -> int:
        return next(i for i, candidate in enumerate(self.groups) if candidate is group)

    @cached_property
    def _moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and sum of squares around it, by Welford: all gradients at once need not fit."""
        sampling = self.sampling
        seed_of_minibatches = ("look around", sampling.seed)
        minibatches = Minibatches(len(self.data), self.batch_size, seed_of_minibatches)
        moments: list[tuple[Tensor, Tensor]] = []
        for look in range(self.looks):
            seed = stable_hash("look around", sampling.seed, look)
            batch = self.data.take(minibatches[look], self.device)
            gradients, count = self.gradients(None, batch, seed)
            if look == 0:
                moments = [(torch.zeros_like(g), torch.zeros_like(g)) for g in gradients]
            self.predictions += count / self.looks
            for gradient, (mean, squares) in zip(gradients, moments, strict=True):
                deviation = gradient - mean
                mean += deviation / (look + 1)
                squares.addcmul_(deviation, gradient - mean)
        return moments


@dataclass(frozen=True)
class Scene:
    """One data set at one step: its minibatch, and the unmoved model on it."""

    step: int
    rows: Tensor
    """``[batch]``: which rows the minibatch holds."""
    batch: Batch
    center: Center
    seed: int
    surroundings: Surroundings

    @classmethod
    def of(
        cls,
        data: Data,
        minibatches: Minibatches,
        step: int,
        loss: Loss,
        surroundings: Surroundings,
    ) -> Scene:
        """Evaluate the unmoved model on the minibatch of a step."""
        rows = minibatches[step]
        batch = data.take(rows, surroundings.device)
        seed = stable_hash("loss", surroundings.sampling.seed, step)
        return cls(step, rows, batch, loss.center(batch, seed=seed), seed, surroundings)

    @cached_property
    def _gradients(self) -> list[Tensor]:
        gradients, _ = self.surroundings.gradients(self.center, self.batch, self.seed)
        return gradients

    def gradient(self, group: Group) -> Tensor:
        """The minibatch's gradient at w*, ``[member, dim]``; computed once for all groups."""
        return self._gradients[self.surroundings._index(group)]
