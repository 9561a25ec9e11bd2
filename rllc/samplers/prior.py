"""Priors around w*: a Gaussian, a box, or both. All samplers use them through three functions.

devinterp's ``bounding_box_size`` clamps: every step that would leave the box ends on its wall, so
with positive probability a weight *is* on the wall. These walls reflect, which keeps the density
inside as it is (uniform on a flat loss) whatever the step size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rllc.errors import InputError, is_real

_LOCALIZATION = 200.0
"""The paper's γ, in force where neither ``localization`` nor ``prior`` is given."""


def check_localization(doing: str, localization: float) -> None:
    """Refuse a localization that is not a finite number from 0 on.

    Raises:
        InputError: says what the paper uses.
    """
    if not is_real(localization) or not 0 <= localization < math.inf:
        raise InputError(
            f"{doing}: `localization` must be a number from 0 on, got {localization!r}; "
            f"the paper uses 200."
        )


@dataclass(frozen=True)
class Prior:
    """A prior on v around the centre v*.

    p(v) ∝ exp(−(γ/2)‖v − v*‖²) where all |vᵢ − v*ᵢ| ≤ b, and 0 elsewhere.

    :func:`gaussian` and :func:`box` make one. Positions and centres are ``[run, dim]``.

    Args:
        localization: γ; 0 is flat.
        half_width: b; infinity is no box.

    Raises:
        InputError: ``localization`` is negative or ``half_width`` not positive.
    """

    localization: float = 0.0
    half_width: float = math.inf

    def __post_init__(self) -> None:
        check_localization("prior", self.localization)
        if not is_real(self.half_width) or not self.half_width > 0:
            raise InputError(
                f"prior: `half_width` must be positive, got {self.half_width!r}; it is how far "
                f"each weight may go from w*, such as box(0.1)."
            )

    def gradient(self, position: Tensor, center: Tensor) -> Tensor:
        """−∇ log p = γ(v − v*), ``[run, dim]``."""
        return (position - center).mul_(self.localization)

    def energy(self, position: Tensor, center: Tensor) -> Tensor:
        """−log p = (γ/2)‖v − v*‖² up to a constant, inside the box; ``[run]`` in float64."""
        squared_distance = (position - center).square().sum(1, dtype=torch.float64)
        return squared_distance.mul_(self.localization / 2)

    def reflect(self, position: Tensor, center: Tensor) -> tuple[Tensor, Tensor | float]:
        """Bring back what left the box, mirrored at its walls as often as it takes.

        Folding keeps volumes and undoes itself when momenta are flipped, so it changes no law.

        Returns:
            The position, and the factor ±1 by which each momentum is to be multiplied (1.0 where
            there is no box).
        """
        if not self.has_walls:
            return position, 1.0
        width = self.half_width
        away = position - center
        # The path to and fro has period 4b, and its way back is odd.
        phase = torch.remainder(away + width, 4 * width)
        mirrored = center + width - (phase - 2 * width).abs()
        folded = torch.where(away.abs() > width, mirrored, position)
        sign = torch.where(phase > 2 * width, -1.0, 1.0).to(position.dtype)
        return folded, sign

    @property
    def has_walls(self) -> bool:
        """Whether there is a box."""
        return self.half_width < math.inf

    @property
    def options(self) -> dict[str, Any]:
        """The prior's numbers besides ``localization``, for a sampler's settings."""
        return {} if self.half_width == math.inf else {"half_width": self.half_width}

    def __repr__(self) -> str:
        if self.half_width == math.inf:
            return f"gaussian({self.localization:g})"
        return f"box({self.half_width:g}" + (
            f", localization={self.localization:g})" if self.localization else ")"
        )


def gaussian(localization: float = _LOCALIZATION) -> Prior:
    """N(w*, 1/γ) on each weight.

    ``sgld(localization=100.0)`` is short for ``sgld(prior=gaussian(100.0))``.

    >>> gaussian(100.0).gradient(torch.tensor([[1.5]]), center=torch.tensor([[1.0]]))
    tensor([[50.]])

    Args:
        localization: γ. The paper's 200 keeps each weight within about 1/√γ = 0.07 of w*.
    """
    return Prior(localization)


def box(half_width: float, localization: float = 0.0) -> Prior:
    """Uniform within ``half_width`` of w* in each weight: walls instead of a pull.

    >>> box(0.1).reflect(torch.tensor([[1.15]]), center=torch.tensor([[1.0]]))
    (tensor([[1.0500]]), tensor([[-1.]]))

    Inside, only the loss is sampled. No direction is shrunk, as a Gaussian shrinks those of nβh
    below γ.

    Args:
        half_width: b. A flat direction has standard deviation b/√3: 0.12 is as wide as the paper's
            γ = 200.
        localization: γ of a Gaussian inside the box, cut off at its walls; 0 is none.
    """
    return Prior(localization, half_width)


def chosen(sampler: str, localization: float | None, prior: Prior | None) -> Prior:
    """The prior that a sampler's two arguments name."""
    if prior is None:
        return Prior(_LOCALIZATION if localization is None else localization)
    if not isinstance(prior, Prior):
        raise InputError(
            f"{sampler}: `prior` must be rllc.samplers.gaussian(…) or rllc.samplers.box(…), got "
            f"{prior!r}."
        )
    if localization is not None:
        raise InputError(
            f"{sampler}: `localization` is short for a Gaussian prior, and `prior` was given too; "
            f"give one of them. For a Gaussian inside a box: "
            f"prior=rllc.samplers.box({prior.half_width:g}, localization={localization:g})."
        )
    return prior
