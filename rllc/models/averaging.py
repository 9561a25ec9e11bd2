"""One model from several checkpoints of a run: nearer to a minimum than each of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from rllc.errors import InputError, must_be

Model = TypeVar("Model", bound=nn.Module)


def average(models: Iterable[Model]) -> Model:
    """Return a copy of the last model whose parameters are the mean over all models.

    >>> one, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> mean = average([one, other])
    >>> bool(mean.weight.allclose((one.weight + other.weight) / 2))
    True

    λ̂ is of a neighbourhood of a minimum. With a high learning rate weights lie on the walls around
    it, and λ̂ says how far the noise of training has carried them: it rises in all weights at once
    where the rate falls. The mean over the last steps before a checkpoint lies nearer the middle.
    Before estimates over training, average each checkpoint with some shortly before it::

        near = [c for c in checkpoints if 0.9 * step <= c.step <= step]
        rllc.track([(step, average(rllc.load(c) for c in near)), ...], data, rllc.heads)

    Args:
        models: of the same parameters, in training order. One is held at a time where they are
            given by a generator.

    Returns:
        A new module. Its buffers, mode and which parameters are frozen are those of the last model.

    Raises:
        InputError: there is no model, or two do not have the same parameters.

    Reference: Izmailov et al. 2018, "Averaging weights leads to wider optima and better
        generalization", on what lies between the checkpoints of a run.
    """
    must_be("average", "models", models, isinstance(models, Iterable), "several modules")
    sums: dict[str, Tensor] = {}
    count = 0
    last: Model | None = None
    for model in models:
        right = isinstance(model, nn.Module)
        must_be("average", f"models[{count}]", model, right, "a torch.nn.Module; see rllc.load")
        parameters = dict(model.named_parameters())
        if last is not None:
            _check_alike(parameters, sums, count)
        for name, parameter in parameters.items():
            value = parameter.detach().to(_wide(parameter.dtype))
            sums[name] = sums[name] + value if name in sums else value
        count += 1
        last = model
    if last is None:
        raise InputError("average: expected at least one model, got none.")
    mean = copy.deepcopy(last)
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(sums[name] / count)
    return mean


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums of parameters lose nothing that matters."""
    return torch.complex128 if dtype.is_complex else torch.float64


def _check_alike(parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor], row: int) -> None:
    for name in (*parameters, *sums):
        shapes = []
        for tensors in (sums, parameters):
            shapes.append(tuple(tensors[name].shape) if name in tensors else "not there")
        if shapes[0] != shapes[1]:
            raise InputError(
                f"average: expected models of the same parameters, but {name!r} is {shapes[0]} "
                f"in the first and {shapes[1]} in models[{row}]."
            )
