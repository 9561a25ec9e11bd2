"""A sampler: a name, settings and two pure functions; and the arguments of these functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rllc.errors import InputError, is_real
from rllc.samplers.law import Law
from rllc.samplers.prior import check_localization


@dataclass(frozen=True)
class Energy:
    """The energy U(v) = nβ ℓ(v) of some runs on one step's minibatch.

    >>> square = Energy(lambda v: (v.square().sum(1) / 2, v), n_beta=3.0)
    >>> square(torch.ones(1, 2))
    (tensor([3.]), tensor([[3., 3.]]))

    Args:
        loss: ``loss(position) -> (ℓ [run], ∂ℓ/∂position [run, dim])`` for positions ``[run, dim]``.
        n_beta: nβ. Samplers that need the gradient of ℓ itself divide by it.
    """

    loss: Callable[[Tensor], tuple[Tensor, Tensor]]
    n_beta: float = 1.0

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return U ``[run]`` and its gradient ``[run, dim]``."""
        loss, gradient = self.loss(position)
        return self.n_beta * loss, self.n_beta * gradient


class Random:
    """Each run's own stream of random numbers: its noise does not depend on its company.

    Args:
        streams: one generator a run.
        dim: length of a position.
    """

    def __init__(self, streams: Sequence[torch.Generator], dim: int, device: torch.device) -> None:
        self.streams, self.dim, self.device = streams, dim, device

    def normal(self) -> Tensor:
        """Standard normal numbers ``[run, dim]``, one flat draw a run."""
        # float32 whatever torch's default is: in another precision it would be other noise.
        shape = (len(self.streams), self.dim)
        noise = torch.empty(shape, dtype=torch.float32, device=self.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.normal_(generator=stream)
        return noise

    def uniform(self) -> Tensor:
        """Uniform numbers in [0, 1), ``[run]``."""
        numbers = []
        for stream in self.streams:
            number = torch.rand(1, generator=stream, dtype=torch.float32, device=self.device)
            numbers.append(number)
        return torch.cat(numbers)


@dataclass(frozen=True)
class Sampler:
    """A name, settings, and two pure functions.

    ``init(position)`` makes a state from the centre w*, ``[run, dim]``. ``step(state, energy,
    random)`` makes the next state. Its first call of ``energy`` is at ``state.position``; it may
    make more. A state is a NamedTuple whose first field is ``position``. It holds what the next
    step needs and nothing else, each tensor with a leading run axis. To write your own, make a
    ``Sampler`` of your two functions; ``rllc.testing.check_sampler`` tests it on a known law. To
    use it in other processes, both must be functions of a module (or frozen dataclasses with
    ``__call__``), which can be pickled.

    Args:
        name: what tables and files call it. Nothing else depends on it.
        lr: step size ε; also the yardstick by which a chain counts as diverged.
        localization: γ, the precision of the Gaussian prior around w*; 0 for none.
        init: see above.
        step: see above.
        options: its other settings, numbers by name.
        full_batch: its law holds only where every step sees the same energy, that of all rows.
        law: what is known exactly; ``None``: its diagnostics are reported as unknown.

    Raises:
        InputError: ``lr`` is not positive or ``localization`` is negative.
    """

    name: str
    lr: float
    localization: float
    init: Callable[[Tensor], Any]
    step: Callable[[Any, Energy, Random], Any]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    full_batch: bool = False
    law: Law | None = None

    def __post_init__(self) -> None:
        check_lr(self.name, self.lr)
        check_localization(self.name, self.localization)

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the numbers that decide its results, for files and tables."""
        numbers = {"lr": self.lr, "localization": self.localization}
        return {"sampler": self.name, **numbers, **self.options}

    def __repr__(self) -> str:
        numbers = {"lr": self.lr, "localization": self.localization, **self.options}
        written = []
        for name, value in numbers.items():
            number = f"{value:g}" if isinstance(value, int | float) else repr(value)
            written.append(f"{name}={number}")
        return f"{self.name}({', '.join(written)})"


def check_lr(sampler: str, lr: float) -> None:
    """Refuse a step size that is not a positive number.

    Raises:
        InputError: says what the paper uses.
    """
    if not is_real(lr) or not 0 < lr < math.inf:
        raise InputError(
            f"{sampler}: `lr` must be a positive number, got {lr!r}; the paper uses lr=1e-3."
        )
