"""What a sampler is: a name, settings and two pure functions; and what it is handed: an energy and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rllc.errors import InputError

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``position [run, dim]`` -> ``(U [run], ∂U/∂position [run, dim])`` on this step's minibatch.

It may have an attribute ``n_beta``, the nβ > 0 in U = nβ ℓ, for samplers that need the gradient of ℓ itself
(:func:`rllc.samplers.rmsprop_sgld`); an energy without it counts as ℓ."""


class Random:
    """Each run's own stream of random numbers, so that a run's noise does not depend on its company.

    Args:
        streams: one generator a run.
        dim: length of a position.
    """

    def __init__(self, streams: Sequence[torch.Generator], dim: int, device: torch.device) -> None:
        self.streams, self.dim, self.device = streams, dim, device

    def normal(self) -> Tensor:
        """Standard normal numbers ``[run, dim]``, one flat draw a run."""
        noise = torch.empty(len(self.streams), self.dim, device=self.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.normal_(generator=stream)
        return noise

    def uniform(self) -> Tensor:
        """Uniform numbers in [0, 1), ``[run]``."""
        return torch.cat(
            [torch.rand(1, generator=stream, device=self.device) for stream in self.streams]
        )


@dataclass(frozen=True)
class Sampler:
    """A name, settings, and two pure functions.

    ``init(position)`` makes a state from the centre w*, ``[run, dim]``. ``step(state, energy, random)`` makes the next
    one; its first call of ``energy`` is at ``state.position``, and it may make more. A state is a NamedTuple whose first
    field is ``position``; it holds what the next step needs and nothing else, each tensor with a leading run axis. To
    write your own, make a ``Sampler`` of your two functions; ``rllc.testing.check_sampler`` tests it on a known law.

    Args:
        lr: step size ε; also the yardstick by which a chain counts as diverged.
        localization: γ, the precision of the Gaussian prior around w*; 0 for none.
        options: its other settings, numbers by name.
        full_batch: its law holds only where every step sees the same energy, that of all rows.

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

    def __post_init__(self) -> None:
        if not isinstance(self.lr, int | float) or not 0 < self.lr < float("inf"):
            raise InputError(
                f"{self.name}: `lr` must be a positive number, got {self.lr!r}; the paper uses lr=1e-3."
            )
        if not isinstance(self.localization, int | float) or not 0 <= self.localization < float(
            "inf"
        ):
            raise InputError(
                f"{self.name}: `localization` must be a number from 0 on, got {self.localization!r}; the paper uses 200."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What makes its results: name and numbers, for files and tables."""
        return {
            "sampler": self.name,
            "lr": self.lr,
            "localization": self.localization,
            **self.options,
        }

    def __repr__(self) -> str:
        numbers = {k: v for k, v in self.settings.items() if k != "sampler"}
        said = (
            f"{k}={v:g}" if isinstance(v, int | float) else f"{k}={v!r}" for k, v in numbers.items()
        )
        return f"{self.name}({', '.join(said)})"
