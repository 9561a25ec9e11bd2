"""The check that a computation has no side effects, and what all checks share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that the block leaves the model and all global random states as they were.

    >>> with unchanged(nn.Linear(2, 1)):
    ...     pass

    Parameters, their ``.grad`` and ``requires_grad``, buffers, the mode of every submodule, and the
    states of torch's, NumPy's and Python's global generators are compared bit for bit. A block that
    raises is checked too.

    Args:
        model: any module.

    Raises:
        AssertionError: one of these changed.
    """
    before = _snapshot(model)
    try:
        yield
    finally:
        after = _snapshot(model)
        changed = []
        for what in sorted(before.keys() | after.keys()):
            if not same(before.get(what), after.get(what)):
                changed.append(what)
        require(
            not changed,
            f"these were changed, but must not be: {', '.join(changed)}",
        )


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """The state that must not change, by the names that errors use."""
    state: dict[str, Any] = {"torch's random state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["CUDA's random states"] = torch.cuda.get_rng_state_all()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 (the global one is what is looked at)
    state["NumPy's random state"] = numpy_state[1:3]
    state["Python's random state"] = random.getstate()
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().clone()
        state[f"{name}.grad"] = _copy(parameter.grad)
        state[f"{name}.requires_grad"] = parameter.requires_grad
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = buffer.detach().clone()
    for name, module in model.named_modules():
        state[f"mode of {name or 'the model'}"] = module.training
    return state


def copies(state: Sequence[Any]) -> list[Any]:
    """The fields of a state, its tensors copied."""
    return [_copy(part) for part in state]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and _same_numbers(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    both_nan = a.isnan() & b.isnan()
    equal = (a == b) | both_nan
    return bool(equal.all())


def require(holds: bool, otherwise: str) -> None:
    """An assertion that also holds under ``python -O``.

    Args:
        holds: the condition.
        otherwise: what the error says.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not holds:
        raise AssertionError(otherwise)
