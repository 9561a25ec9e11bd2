"""Whether a model and a loss give the same each time that they are asked.

A run and its baseline are two evaluations, one after the other. Where the second gives another
number because it is the second (a counter, a cache, a running mean), λ̂ is wrong by nβ times that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rllc.engine.scene import Scene
from rllc.errors import InputError, shortened
from rllc.losses.contract import Loss

_LAST_BITS = 16.0
"""Two equal evaluations may differ by so many times the last bit of the largest loss, as where
threads add in another order."""

_LAST_BITS_ON_GPU = 1e3
"""That number on a GPU, some of whose kernels add in an order of their own."""

_LAST_BITS_OF_HALF = 1e5
"""That number for products of 8 or 11 bits."""


def is_looked_at_again(step: int) -> bool:
    """Whether the loss at w* is evaluated a second time at a step: at 1, 2, 4, 8 and so on."""
    is_power_of_2 = step & (step - 1) == 0
    return step > 0 and is_power_of_2


def check_again(scene: Scene, loss: Loss, name: str) -> None:
    """Evaluate the loss at w* again on the same minibatch, and compare.

    Args:
        scene: the minibatch, with the loss at w*.
        loss: bound to the model.
        name: of the data.

    Raises:
        InputError: it is another number now; names the state that has changed, if it is in sight.
    """
    state_before = _state(loss)
    center = loss.center(scene.batch, scene.seed)
    second = center.losses.double()
    first = scene.center.losses.double()
    difference = (second - first).abs().nan_to_num(nan=0.0)
    magnitude = first.abs().nan_to_num(nan=0.0)
    size = float(magnitude.max())
    largest = float(difference.max())
    if second.shape == first.shape and largest <= _rounding(loss, first) * size:
        return
    cause = _cause(state_before, _state(loss))
    raise InputError(
        f"sampling on data {name!r}: the loss at w* is not the same when it is evaluated again on "
        f"the same minibatch (a row's differs by {largest:.3g}, of {size:.3g}), so that a run and "
        f"its baseline could not be compared. {cause} Make model and loss give the same each time."
    )


def _rounding(loss: Loss, losses: Tensor) -> float:
    """How far two evaluations may be apart, relative to the largest loss."""
    last_bit = torch.finfo(torch.float32).eps
    if not losses.is_cuda:
        return _LAST_BITS * last_bit
    exact: Any = getattr(loss, "exact", loss)
    has_autocast = getattr(exact, "autocast", None) is not None
    model: Any = getattr(loss, "model", None)
    dtypes = set()
    if model is not None:
        dtypes = {parameter.dtype for parameter in model.parameters()}
    if has_autocast or dtypes & _HALVES:
        return _LAST_BITS_OF_HALF * last_bit
    return _LAST_BITS_ON_GPU * last_bit


_HALVES = {torch.bfloat16, torch.float16}


def _cause(state_before: Mapping[str, object], state_after: Mapping[str, object]) -> str:
    """A sentence on the state that an evaluation changed."""
    changed = []
    for name, value in state_after.items():
        if not _is_same(state_before.get(name), value):
            changed.append(name)
    if not changed:
        return (
            "It may come from a state that model or loss keep between calls (a counter, a running "
            "mean, a list that grows), or from random numbers of a generator of their own."
        )
    return f"Each evaluation changes {shortened(changed, most=3)}."


def _state(loss: Loss) -> dict[str, object]:
    """The state of model and loss besides weights and buffers, as far as it can be compared."""
    state: dict[str, object] = {}
    model: nn.Module | None = getattr(loss, "model", None)
    if model is not None:
        for path, module in model.named_modules():
            kind = type(module).__name__
            owner = path or "the model"
            for name, value in _noted(vars(module)):
                state[f"{kind}.{name} of {owner!r}"] = value
    exact: Any = getattr(loss, "exact", loss)
    variables = _variables(getattr(exact, "loss", None))
    for name, value in _noted(variables):
        state[f"the variable {name!r} of the loss"] = value
    return state


def _variables(function: Any) -> dict[str, object]:
    """The variables that a function keeps between calls."""
    closure = getattr(function, "__closure__", None)
    if not closure:
        return dict(getattr(function, "__dict__", {}))
    names = function.__code__.co_freevars
    variables: dict[str, object] = {}
    for name, cell in zip(names, closure, strict=True):
        try:
            variables[name] = cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    return variables


def _noted(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield values in a form that can be compared later, even if they are changed in place."""
    for name, value in values.items():
        if isinstance(value, _PLAIN):
            yield name, value
        elif isinstance(value, Tensor) and not value.is_inference():
            yield name, (value, value._version)
        elif isinstance(value, list) or type(value) is dict:
            parts = value.values() if isinstance(value, dict) else value
            plain = [part for part in parts if isinstance(part, _PLAIN)]
            yield name, (len(value), *plain)


_PLAIN = (bool, int, float, str, type(None))


def _is_same(first: object, second: object) -> bool:
    """Whether two noted values are equal; tensors are if nothing was written to one object."""
    if isinstance(first, tuple) and isinstance(second, tuple) and isinstance(second[0], Tensor):
        return first[0] is second[0] and first[1] == second[1]
    return first == second
