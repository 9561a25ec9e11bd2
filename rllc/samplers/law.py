"""Laws: the facts that a sampler states of itself, so that no code depends on its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Jump:
    """One step of some runs: both ends, and the loss at both ends on the step's own minibatch."""

    before: Tensor
    """``[run, dim]``: the position before the step; ``after`` alike."""
    after: Tensor
    origin: Tensor
    """``[run, dim]``: w*."""
    loss_before: Tensor
    """``[run]``, float64: the mean loss before the step; ``loss_after`` alike."""
    loss_after: Tensor
    gradient_before: Tensor
    """``[run, dim]``: the gradient of the mean loss before the step; ``gradient_after`` alike."""
    gradient_after: Tensor
    n_beta: float


@dataclass(frozen=True)
class Law:
    """The exact law of a sampler where it is known. A sampler of your own may leave it out.

    What a law does not state is reported as unknown (NaN), never guessed.

    Args:
        largest_precision: a direction of precision a = nβh + γ is stable iff a is below this;
            infinity if every one is, NaN if it is not known.
        relaxation: r, what the loss remembers of a step before in the slowest direction, that which
            only the prior holds; ``None`` if it is not known.
        deviation: stationary standard deviation of a direction of precision a on a quadratic with
            exact gradients, for a tensor of precisions. ``start="gaussian"`` needs it.
        log_acceptance: ``log_acceptance(jump) [run]``, float64: the logarithm of
            p(v′)q(v | v′) / (p(v)q(v′ | v)), with which a Metropolis test would accept a step.
        step_adds: whether ⅛ nβ δ·(∇ℓ(v′) − ∇ℓ(v)) is on average what a finite step adds to λ̂.
    """

    largest_precision: float = math.nan
    relaxation: float | None = None
    deviation: Callable[[Tensor], Tensor] | None = None
    log_acceptance: Callable[[Jump], Tensor] | None = None
    step_adds: bool = False
