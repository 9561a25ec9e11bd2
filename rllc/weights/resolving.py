"""How a selection meets a model: from a rule to boolean masks, one function for each kind of rule.

A rule is a nested tuple of plain values, such as ``("or", ("layer", 0), ("head", 1, 6, …))``.
:mod:`rllc.weights.selection` makes rules; here it is decided which weights of a model they take.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.anatomy import Anatomy, Attention, AttentionRow, anatomy
from rllc.errors import InputError, nearest
from rllc.weights.indices import FrozenIndex, Index, thawed, written
from rllc.weights.names import written_head

Rule = tuple[Any, ...]
"""How to find weights in a model: what kind of rule it is, then plain values or further rules."""

Masks = dict[str, Tensor]
"""A selection in one model: parameter names to boolean masks of their shapes."""

Rows = tuple[AttentionRow, ...]
"""Rows of anatomy that a rule brings along; none where the model's type has its own."""

_BLOCK = re.compile(
    r"(?:^|\.)(?:blocks|h|layers|layer)\.(\d+)\."
    r"|(?:^|\.)(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(?:_reverse)?$"
)
_PARAMETRISED = re.compile(r"(.*\.)?parametrizations\.([^.]+)\.original\d*")


def resolve(rule: Rule, model: nn.Module) -> Masks:
    """The masks of a rule in a model; some may select nothing.

    Raises:
        InputError: the model has nothing that the rule names.
    """
    kind, *arguments = rule
    return _KINDS[kind](model, *arguments)


def _either(model: nn.Module, left: Rule, right: Rule) -> Masks:
    masks = resolve(left, model)
    for name, mask in resolve(right, model).items():
        if name in masks:
            mask = masks[name] | mask
        masks[name] = mask
    return masks


def _both(model: nn.Module, left: Rule, right: Rule) -> Masks:
    masks = {}
    others = resolve(right, model)
    for name, mask in resolve(left, model).items():
        if name in others:
            masks[name] = mask & others[name]
    return masks


def _complement(model: nn.Module, rule: Rule) -> Masks:
    excluded = resolve(rule, model)
    masks = {name: _full(parameter) for name, parameter in parameters_of(model).items()}
    for name, mask in excluded.items():
        masks[name] = ~mask
    return masks


def _by_name(model: nn.Module, pattern: str, index: FrozenIndex | None) -> Masks:
    candidates = parameters_of(model)
    names = names_of_parameters(model)
    matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        raise InputError(
            f"parameters({pattern!r}): {type(model).__name__} has none; {nearest(pattern, names)}"
        )
    masks: Masks = {}
    for name in matching:
        if index is not None and name not in candidates and len(names[name]) > 1:
            raise InputError(
                f"parameters({pattern!r}, index=…): {name!r} is computed from "
                f"{', '.join(names[name])}; select a part of one of these."
            )
        for parameter in names[name]:
            values = candidates[parameter]
            if index is None:
                masks[parameter] = _full(values)
            else:
                masks[parameter] = _slice(parameter, values, thawed(index))
    return masks


def _by_requires_grad(model: nn.Module) -> Masks:
    masks = {}
    for name, parameter in parameters_of(model).items():
        if parameter.requires_grad:
            masks[name] = _full(parameter)
    if not masks:
        raise InputError(
            f"trainable(): all parameters of {type(model).__name__} are frozen "
            f"(requires_grad=False); choose others, or rllc.everything()."
        )
    return masks


def _by_layer(model: nn.Module, number: int) -> Masks:
    masks_of_layers: dict[int, Masks] = {}
    candidates = parameters_of(model)
    for name, parameters in names_of_parameters(model).items():
        match = _BLOCK.search(name)
        if not match:
            continue
        layer = int(match[1] or match[2])
        masks = masks_of_layers.setdefault(layer, {})
        for parameter in parameters:
            masks[parameter] = _full(candidates[parameter])
    if number not in masks_of_layers:
        layers = sorted(masks_of_layers) or "with no known names"
        raise InputError(f"layer({number!r}): {type(model).__name__} has layers {layers}.")
    return masks_of_layers[number]


def _by_head(model: nn.Module, layer: int, head: int, tower: str, kv: str, rows: Rows) -> Masks:
    attention = attention_of(model, layer, tower, rows)
    if attention is None or head >= attention.num_heads:
        name = written_head(tower, layer, head)
        raise InputError(
            f"head({name!r}): {type(model).__name__} has no such head; "
            f"{nearest(name, anatomy_of(model, rows).heads)}"
        )
    kv_heads = [attention.kv_head(head)]
    if kv == "own" and attention.num_kv_heads < attention.num_heads:
        kv_heads = []
    return attention.masks([head], kv_heads, parameters_of(model))


def _by_group(model: nn.Module, layer: int, group: int, tower: str, rows: Rows) -> Masks:
    attention = attention_of(model, layer, tower, rows)
    if attention is None or group >= attention.num_kv_heads:
        name = written_head(tower, layer, f"kv{group}")
        raise InputError(
            f"heads(by='kv'): {type(model).__name__} has no group {name!r}; "
            f"{nearest(name, anatomy_of(model, rows).groups)}"
        )
    heads = attention.heads_of("k", group)
    return attention.masks(heads, [group], parameters_of(model))


def attention_of(model: nn.Module, layer: int, tower: str, rows: Rows) -> Attention | None:
    """Where a layer keeps its heads; ``None`` where the model has no such layer."""
    return anatomy_of(model, rows).find(tower, layer)


def anatomy_of(model: nn.Module, rows: Rows) -> Anatomy:
    """Where a model keeps its heads, by these rows or by those of its type."""
    return anatomy(model, rows or None)


def _by_mask(model: nn.Module, selected: tuple[tuple[str, tuple[int, ...], bytes], ...]) -> Masks:
    candidates = parameters_of(model)
    names = names_of_parameters(model)
    masks = {}
    for written_name, shape, bits in selected:
        name, *others = names.get(written_name, (written_name,))
        if name not in candidates or others:
            raise InputError(
                f"masks: {type(model).__name__} has no parameter {written_name!r}; "
                f"{nearest(written_name, candidates)}"
            )
        expected = tuple(candidates[name].shape)
        if shape != expected:
            raise InputError(
                f"masks: the mask of {name!r} must have the parameter's shape {expected}, got "
                f"{shape}; masks are not broadcast, write mask.expand({expected}) if that is what "
                f"you mean."
            )
        packed = np.frombuffer(bits, dtype=np.uint8)
        count = int(np.prod(shape))
        flat = np.unpackbits(packed, count=count).astype(bool)
        masks[name] = torch.from_numpy(flat).reshape(shape)
    return masks


_KINDS: dict[str, Callable[..., Masks]] = {
    "or": _either,
    "and": _both,
    "not": _complement,
    "parameters": _by_name,
    "trainable": _by_requires_grad,
    "layer": _by_layer,
    "head": _by_head,
    "group": _by_group,
    "masks": _by_mask,
}


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, under its first name."""
    return dict(model.named_parameters())


def names_of_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names that weights may be called by, and the parameters that each means.

    A tied parameter has several names. A parametrised tensor is computed from parameters.
    """
    first_names = {id(parameter): name for name, parameter in parameters_of(model).items()}
    names: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = (first_names[id(parameter)],)
    for name, parameters in list(names.items()):
        match = _PARAMETRISED.fullmatch(name)
        if match:
            module, tensor = match.groups(default="")
            computed = f"{module}{tensor}"
            names[computed] = names.get(computed, ()) + parameters
    return names


def _full(parameter: Tensor) -> Tensor:
    return torch.ones(parameter.shape, dtype=torch.bool)


def _slice(name: str, parameter: Tensor, index: Index) -> Tensor:
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    try:
        mask[index] = True
    except IndexError as error:
        raise InputError(
            f"parameters({name!r}, index={written(index)}): the tensor has shape "
            f"{tuple(parameter.shape)} ({error})."
        ) from error
    return mask
