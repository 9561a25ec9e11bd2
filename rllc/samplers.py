"""Samplers: pure functions ``init`` and ``step`` over many independent chains at once.

Convention (devinterp's): the target is p(v) ∝ exp(−nβ ℓ(v) − (γ/2)‖v − v*‖²). A sampler is handed the *energy*
U(v) = nβ ℓ(v) and its gradient, so it does not know nβ; the localization γ is its own. In other libraries' words:

================  ================  ================  ==================================
symbol            here              devinterp         blackjax (sgld)
================  ================  ================  ==================================
ε                 ``lr``            ``lr``            ``step_size`` = ε/2
γ                 ``localization``  ``localization``  a term of your ``logdensity_fn``
nβ                ``n_beta``        ``nbeta``         a factor in your ``logdensity_fn``
noise per step    N(0, ε)           N(0, ε)           N(0, 2 · ``step_size``)
================  ================  ================  ==================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``position [run, dim]`` -> ``(U [run], ∂U/∂position [run, dim])`` on this step's minibatch."""


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
        return torch.cat([torch.rand(1, generator=stream, device=self.device) for stream in self.streams])


@dataclass(frozen=True)
class Sampler:
    """A name, settings, and two pure functions.

    ``init(position)`` makes a state from the centre w*, ``[run, dim]``. ``step(state, energy, random)`` makes the next
    one; its first call of ``energy`` is at ``state.position``, and it may make more. A state is a NamedTuple whose first
    field is ``position``; it holds what the next step needs and nothing else, each tensor with a leading run axis. To
    write your own, make a ``Sampler`` of your two functions; ``rllc.testing.check_sampler`` tests it on a known law.

    Args:
        lr: step size ε; also the yardstick by which a chain counts as diverged.
        localization: γ, the precision of the Gaussian prior around w*.
    """

    name: str
    lr: float
    localization: float
    init: Callable[[Tensor], Any]
    step: Callable[[Any, Energy, Random], Any]

    def __post_init__(self) -> None:
        if not (0 < self.lr < float("inf")):
            raise InputError(f"{self.name}: `lr` must be a positive number, got {self.lr!r}; the paper uses lr=1e-3.")
        if not (0 <= self.localization < float("inf")):
            raise InputError(
                f"{self.name}: `localization` must be a number from 0 on, got {self.localization!r}; the paper uses 200."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What makes its results: name and numbers, for files and tables."""
        return {"sampler": self.name, "lr": self.lr, "localization": self.localization}

    def __repr__(self) -> str:
        return f"{self.name}(lr={self.lr:g}, localization={self.localization:g})"


class SGLDState(NamedTuple):
    """Where the chains are, and where they started: both ``[run, dim]``."""

    position: Tensor
    center: Tensor


def sgld(lr: float = 1e-3, localization: float = 200.0) -> Sampler:
    """Stochastic gradient Langevin dynamics around w*, without step-size schedule and without accept/reject.

    >>> sgld(lr=1e-3, localization=200.0)
    sgld(lr=0.001, localization=200)

    Update: v ← v − (ε/2) [∇U(v) + γ (v − v*)] + √ε N(0, I), with U = nβ ℓ on a minibatch.

    Law: on a quadratic U = ½ Σ nβ hᵢ vᵢ² with exact gradients each coordinate is an AR(1) process with ρᵢ = 1 − εaᵢ/2,
    aᵢ = nβ hᵢ + γ, and stationary variance 1/(aᵢ(1 − εaᵢ/4)); stable iff εaᵢ < 4 (:mod:`rllc.theory`).

    Args:
        lr: ε. The paper's 1e-3 is stable up to curvatures h = (4/ε − γ)/nβ = 127 at its γ and nβ.
        localization: γ. The paper's 200 confines each weight to about 1/√γ = 0.07 of its value at w*.

    Raises:
        InputError: ``lr`` is not positive or ``localization`` is negative.

    Source: Welling & Teh 2011; arXiv 2410.02984, appendix, for the settings.
    """

    def init(position: Tensor) -> SGLDState:
        return SGLDState(position.clone(), position)

    def step(state: SGLDState, energy: Energy, random: Random) -> SGLDState:
        _, gradient = energy(state.position)
        # v − (ε/2)(∇U + γ(v − v*)) = v + (εγ/2)(v* − v) − (ε/2)∇U
        drifted = torch.lerp(state.position, state.center, lr * localization / 2).add_(gradient, alpha=-lr / 2)
        return state._replace(position=drifted.add_(random.normal(), alpha=lr**0.5))

    return Sampler("sgld", lr, localization, init, step)
