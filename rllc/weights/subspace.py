"""Directions as weights: a selection that moves along a few directions, and in no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from rllc.engine.layout import Directions
from rllc.errors import InputError, must_be
from rllc.weights.selection import Weights, masks

_DEPENDENT = 1e-5
"""A direction of which this share or less is new, beside those before it, is one of them."""


@dataclass(frozen=True)
class Subspace(Weights):
    """The weights w* + Bz, with coordinates z; make one with :func:`subspace`."""

    def masks(self, model: nn.Module) -> Directions:
        """The parameters that move, with the directions in which they do.

        Raises:
            InputError: the model has no such parameter, or one of another size.
        """
        _, parts = self.rule
        selected: dict[str, Tensor] = {}
        basis: dict[str, Tensor] = {}
        for given, shape, num_directions, numbers in parts:
            name, mask = self._whole(model, given, shape)
            if name in basis:
                raise InputError(
                    f"subspace: {given!r} and another name given are both {name!r} of "
                    f"{type(model).__name__}; give its directions once."
                )
            directions = np.frombuffer(numbers, dtype=np.float32).copy()
            selected[name] = mask
            basis[name] = torch.from_numpy(directions).reshape(-1, num_directions)
        return Directions(selected, basis)

    def _whole(self, model: nn.Module, given: str, shape: tuple[int, ...]) -> tuple[str, Tensor]:
        """The first name of a parameter, and its mask."""
        every = torch.ones(shape, dtype=torch.bool)
        whole = masks({given: every}, self.name)
        ((name, mask),) = whole.masks(model).items()
        return name, mask

    def count(self, model: nn.Module) -> int:
        """How many directions there are: the dimension of what is sampled."""
        _, parts = self.rule
        _, _, num_directions, _ = parts[0]
        return int(num_directions)

    def describe(self, model: nn.Module) -> str:
        """The parameters that move, and in how many directions.

        >>> line = subspace({"weight": torch.ones(1, 3, 1)}, name="sum of inputs")
        >>> line.describe(nn.Linear(3, 1)).partition(chr(10))[0]
        'sum of inputs: 1 direction in 3 weights'
        """
        lines = []
        num_weights = 0
        for name, mask in self.masks(model).items():
            shape = str(tuple(mask.shape))
            size = mask.numel()
            num_weights += size
            lines.append(f"  {name:<28} {shape:<18} {size:>12,}")
        count = self.count(model)
        what = "direction" if count == 1 else "directions"
        title = f"{self.name}: {count:,} {what} in {num_weights:,} weights"
        return "\n".join([title, *lines])

    def __or__(self, other: Weights) -> NoReturn:
        self._refuse()

    def __ror__(self, other: Weights) -> NoReturn:
        self._refuse()

    def __and__(self, other: Weights) -> NoReturn:
        self._refuse()

    def __rand__(self, other: Weights) -> NoReturn:
        self._refuse()

    def __invert__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"Weights {self.name!r} are a subspace, which is no set of weights: |, & and ~ do not "
            f"apply. Give rllc.subspace all directions at once."
        )


def subspace(basis: Mapping[str, Tensor], name: str = "subspace") -> Subspace:
    """Weights that move along directions through w*: w = w* + Bz.

    >>> stream = torch.Generator().manual_seed(0)
    >>> random = subspace({"weight": torch.randn(2, 3, 4, generator=stream)}, "random")
    >>> random.count(nn.Linear(3, 2))
    4

    For the LLC along the principal components of a trajectory, the directions of an adapter, or a
    random subspace. The directions are made orthonormal (as columns over all parameters together,
    one after the other, by QR), so that a step and the localisation γ‖z − z*‖² are those of weights
    of their own: ‖w − w*‖ = ‖z − z*‖. The coordinates of w* are z* = Bᵀw*.

    Args:
        basis: by parameter ``[*shape, direction]``, of as many directions for each: a direction
            moves all of these parameters together. What a direction does not move is 0 in it.
        name: what tables call it.

    Raises:
        InputError: directions are not finite, depend on one another, or are not equally many. That
            a model has no such parameters is an error once the selection meets a model.
    """
    is_basis = isinstance(basis, Mapping) and bool(basis)
    expected = "a dict of parameter names and tensors [*shape, direction]"
    must_be("subspace", "basis", basis, is_basis, expected)
    is_name = isinstance(name, str) and bool(name)
    must_be("subspace", "name", name, is_name, "a text")
    flat: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in sorted(basis):
        shape, part = _checked(parameter, basis[parameter])
        shapes[parameter] = shape
        flat[parameter] = part
    counts = {parameter: part.shape[1] for parameter, part in flat.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"subspace: each direction moves all parameters, so all need equally many; got "
            f"{counts}. Put 0 where a direction moves nothing."
        )
    columns = _orthonormal(np.concatenate(list(flat.values())))
    parts: list[Any] = []
    start = 0
    for parameter, part in flat.items():
        stop = start + len(part)
        own = columns[start:stop].astype(np.float32)
        parts.append((parameter, shapes[parameter], counts[parameter], own.tobytes()))
        start = stop
    return Subspace(name, ("subspace", tuple(parts)))


def _checked(parameter: str, directions: object) -> tuple[tuple[int, ...], np.ndarray]:
    """A parameter's shape, and its directions as columns ``[weight, direction]``."""
    if not isinstance(directions, Tensor) or not directions.is_floating_point():
        got = type(directions).__name__
        if isinstance(directions, Tensor):
            got = str(directions.dtype)
        raise InputError(
            f"subspace: the directions of {parameter!r} must be a tensor of real numbers "
            f"[*shape, direction], got {got}."
        )
    if directions.dim() < 1 or not directions.numel():
        raise InputError(
            f"subspace: the directions of {parameter!r} must be [*shape, direction] with one "
            f"direction at least, got shape {tuple(directions.shape)}."
        )
    if not bool(directions.isfinite().all()):
        raise InputError(f"subspace: the directions of {parameter!r} are not all finite.")
    *shape, num_directions = directions.shape
    numbers = directions.detach().cpu().double()
    columns = numbers.reshape(-1, num_directions)
    return tuple(shape), columns.numpy()


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis; columns that are one stay what they are."""
    num_weights, num_directions = columns.shape
    if num_directions > num_weights:
        raise InputError(
            f"subspace: {num_directions} directions in {num_weights} weights depend on one "
            f"another; give {num_weights} at most, with the directions as the last axis."
        )
    lengths = np.linalg.norm(columns, axis=0)
    divisors = np.where(lengths > 0, lengths, 1.0)
    units = columns / divisors
    basis, triangle = np.linalg.qr(units)
    new = np.diag(triangle)
    dependent = np.flatnonzero(np.abs(new) <= _DEPENDENT)
    if len(dependent):
        raise InputError(
            f"subspace: direction {dependent[0]} is 0, or a combination of those before it; leave "
            f"it out."
        )
    return basis * np.sign(new)
