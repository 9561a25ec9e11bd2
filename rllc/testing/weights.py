"""The check of a selection of weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rllc.engine.layout import center, groups, stack, unpack
from rllc.testing.unchanged import require
from rllc.weights.selection import Weights


def check_weights(weights: Weights, model: nn.Module) -> None:
    """Check that a selection resolves in a model, and that putting its weights back is exact.

    >>> from rllc import everything
    >>> check_weights(everything(), nn.Linear(3, 2))

    It is checked that

    - every mask is boolean, has the shape of a parameter of the model, and selects something;
    - ``count`` is the number of selected weights;
    - weights that are packed into a chain's position and unpacked again are the model's, bit for
      bit;
    - a moved position changes the selected weights and no others;
    - the selection survives pickling, so that it can be sent to another process.

    Args:
        weights: what :func:`rllc.head`, :func:`rllc.masks`, an expression of these, or your own
            function gives.
        model: any module.

    Raises:
        AssertionError: one of these does not hold.
        InputError: the selection does not resolve in this model.
    """
    parameters = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    masks = weights.masks(model)
    for name, mask in masks.items():
        require(
            name in parameters,
            f"{weights.name}: the model has no parameter {name!r}",
        )
        problem = _problem_of_mask(mask, tuple(parameters[name].shape))
        require(
            problem is None,
            f"{weights.name}: the mask of {name!r} {problem}",
        )
    selected = sum(int(mask.sum()) for mask in masks.values())
    count = weights.count(model)
    require(
        count == selected,
        f"{weights.name}: count says {count}, its masks {selected}",
    )
    restored = pickle.loads(pickle.dumps(weights))
    require(
        restored == weights,
        f"{weights.name}: differs after a round trip by pickle",
    )
    _check_positions(weights.name, masks, parameters, selected)


def _problem_of_mask(mask: Tensor, shape: tuple[int, ...]) -> str | None:
    if mask.dtype != torch.bool:
        return f"must be boolean, is {mask.dtype}"
    if tuple(mask.shape) != shape:
        return f"must be {shape}, is {tuple(mask.shape)}"
    if not mask.any():
        return "selects nothing"
    return None


def _check_positions(
    name: str,
    masks: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    count: int,
) -> None:
    """Check that positions of chains hold the selected weights, and only these."""
    (group,) = groups([masks])
    require(
        group.dim == count,
        f"{name}: positions have {group.dim} numbers for {count} weights",
    )
    member = torch.tensor([0])
    origin = center(group, parameters)
    for tensor, moved in unpack(group, origin, member, parameters).items():
        put_back = stack(moved, parameters[tensor])[0]
        exact = torch.equal(put_back, parameters[tensor].to(put_back.dtype))
        require(exact, f"{name}: {tensor!r} came back changed")
    everywhere_else = 1 + origin + origin.abs()
    for tensor, moved in unpack(group, everywhere_else, member, parameters).items():
        changed = stack(moved, parameters[tensor])[0] != parameters[tensor]
        exact = torch.equal(changed, masks[tensor])
        require(
            exact,
            f"{name}: other weights of {tensor!r} moved than selected",
        )
