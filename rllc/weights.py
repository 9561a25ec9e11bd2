"""Which weights: small frozen values that select parts of a model's parameters, and compose.

A selection is resolved against a model only when it is used, so one value serves every checkpoint of a run, can be
printed, compared, hashed and sent to another process.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.errors import InputError, nearest

Index = int | slice | tuple["int | slice", ...]

_HEAD = re.compile(r"(?:[lL]?(\d+)\s*[:.]\s*(\d+)|[lL](\d+)[hH](\d+))$")
_HEAD_TENSORS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")


@dataclass(frozen=True)
class Weights:
    """A named selection over a model's parameters; ``|``, ``&`` and ``~`` make new ones.

    >>> circuit = (head("0:1") | head("1:6")).named("induction circuit")
    >>> circuit.name
    'induction circuit'

    Make one with :func:`everything`, :func:`layer`, :func:`head`, :func:`heads`, :func:`parameters` or :func:`masks`.

    Args:
        name: what tables, figures and files call it.
        rule: how to find the weights in a model; a nested tuple of plain values.
    """

    name: str
    rule: tuple[Any, ...]

    def __or__(self, other: Weights) -> Weights:
        return Weights(f"{self.name} | {other.name}", ("or", self.rule, other.rule))

    def __and__(self, other: Weights) -> Weights:
        return Weights(f"({self.name}) & ({other.name})", ("and", self.rule, other.rule))

    def __invert__(self) -> Weights:
        return Weights(f"~({self.name})", ("not", self.rule))

    def named(self, name: str) -> Weights:
        """The same selection under another name."""
        return replace(self, name=name)

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """The selection in ``model``: a boolean mask for each parameter it touches, of that parameter's shape.

        Raises:
            InputError: the model has no such parameter, head or layer; a mask has another shape; nothing is selected.
        """
        selected = {
            name: mask for name, mask in _resolve(self.rule, model).items() if bool(mask.any())
        }
        if not selected:
            raise InputError(
                f"Weights {self.name!r} select nothing in {type(model).__name__}; expected at least one weight. "
                f"Type print(weights.describe(model)) to see what a selection takes."
            )
        return selected

    def count(self, model: nn.Module) -> int:
        """How many numbers of ``model`` it selects."""
        return sum(int(mask.sum()) for mask in self.masks(model).values())

    def describe(self, model: nn.Module) -> str:
        """What it takes from ``model``, tensor by tensor, with counts."""
        parameters = dict(model.named_parameters())
        lines, total = [], 0
        for name, mask in self.masks(model).items():
            taken, shape = int(mask.sum()), tuple(parameters[name].shape)
            total += taken
            lines.append(f"  {name:<28} {shape!s:<18} {taken:>12,} of {mask.numel():,}")
        whole = sum(p.numel() for p in parameters.values())
        return "\n".join([f"{self.name}: {total:,} of {whole:,} weights", *lines])


def everything() -> Weights:
    """All parameters of the model: the plain LLC.

    >>> everything().count(nn.Linear(3, 2))
    8
    """
    return Weights("everything", ("parameters", "*", None))


def layer(number: int) -> Weights:
    """All parameters of one block, LayerNorm included: names with ``blocks.N.`` (or ``h.N.``, ``layers.N.``, ``layer.N.``).

    >>> layer(1).name
    'layer 1'
    """
    return Weights(f"layer {number}", ("layer", number))


def head(layer: int | str, head: int | None = None) -> Weights:
    """One attention head: its slices of W_Q, W_K, W_V, W_O, b_Q, b_K and b_V (not b_O, not LayerNorm).

    >>> head(1, 6) == head("1:6") == head("L1H6")
    True

    For models with TransformerLens's parameter names (``blocks.1.attn.W_Q [head, d_model, d_head]``, …), which
    :class:`rllc.models.AttentionOnly` has; for others, select the slices with :func:`parameters`. In the paper's model
    a head is 32,864 numbers. Source: arXiv 2410.02984, section 2 and its configuration files.

    Raises:
        InputError: the name is not a head's (``"1:6"``, ``"L1H6"`` or two numbers).
    """
    if isinstance(layer, str):
        name = head_name(layer)
        if name is None or head is not None:
            raise InputError(
                f"head({layer!r}): expected a head such as '1:6' or 'L1H6', or two numbers: head(1, 6)."
            )
        layer, head = (int(part) for part in name.split(":"))
    if head is None or layer < 0 or head < 0:
        raise InputError(
            f"head({layer}, {head}): expected a layer and a head from 0 on, as in head(1, 6) or head('1:6')."
        )
    return Weights(f"{layer}:{head}", ("head", layer, head))


def head_name(written: str) -> str | None:
    """The name ``"1:6"`` of a head written in any accepted way; ``None`` for what is not a head.

    >>> head_name("L1H6"), head_name("embed.W_E")
    ('1:6', None)
    """
    match = _HEAD.match(written.strip())
    return (
        ":".join(str(int(part)) for part in match.groups() if part is not None) if match else None
    )


def heads(model: nn.Module) -> list[Weights]:
    """Every attention head of ``model``, layer by layer, as one :func:`head` each.

    Raises:
        InputError: the model's parameters do not follow TransformerLens's names.
    """
    known = _head_counts(model)
    if not known:
        raise InputError(
            f"heads({type(model).__name__}): expected parameters named like 'blocks.0.attn.W_Q' of shape "
            f"[head, d_model, d_head]; select other layouts with rllc.parameters(name, index=…)."
        )
    return [head(number, h) for number, count in sorted(known.items()) for h in range(count)]


def parameters(pattern: str, index: Index | None = None) -> Weights:
    """Parameters whose name matches a glob, or one slice of each.

    >>> parameters("blocks.*.attn.W_Q", index=3).name
    'blocks.*.attn.W_Q[3]'

    Args:
        pattern: a parameter's name, ``*`` and ``?`` allowed, as ``model.named_parameters()`` gives it.
        index: an integer, a slice, or a tuple of these, as in ``tensor[index]``; ``None`` takes all of the tensor.
    """
    shown = "" if index is None else "[" + ", ".join(_show(i) for i in _as_tuple(index)) + "]"
    return Weights(
        pattern + shown, ("parameters", pattern, None if index is None else _freeze(index))
    )


def masks(selected: Mapping[str, Tensor], name: str = "masks") -> Weights:
    """Any weights at all: a boolean tensor for each parameter, of exactly its shape.

    >>> corner = masks({"weight": torch.tensor([[True, False], [False, False]])})
    >>> corner.count(nn.Linear(2, 2))
    1

    Raises:
        InputError: a mask is not a boolean tensor. (A wrong shape or name is found when a model is there.)
    """
    frozen = []
    for parameter, mask in selected.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(
                f"masks: the mask of {parameter!r} must be a boolean tensor, got {got}; write `mask.bool()` if non-zero "
                f"means selected."
            )
        frozen.append((parameter, tuple(mask.shape), np.packbits(mask.cpu().numpy()).tobytes()))
    return Weights(name, ("masks", tuple(frozen)))


def _resolve(rule: tuple[Any, ...], model: nn.Module) -> dict[str, Tensor]:
    kind, *rest = rule
    if kind == "or":
        return _combine(_resolve(rest[0], model), _resolve(rest[1], model))
    if kind == "and":
        left, right = _resolve(rest[0], model), _resolve(rest[1], model)
        return {name: left[name] & right[name] for name in left if name in right}
    if kind == "not":
        taken = _resolve(rest[0], model)
        return {
            name: ~taken[name] if name in taken else _full(p) for name, p in _floats(model).items()
        }
    return {"parameters": _by_name, "layer": _by_layer, "head": _by_head, "masks": _by_mask}[kind](
        model, *rest
    )


def _by_name(model: nn.Module, pattern: str, index: Any) -> dict[str, Tensor]:
    known = _floats(model)
    names = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        raise InputError(
            f"parameters({pattern!r}): {type(model).__name__} has none; {nearest(pattern, known)}"
        )
    return {
        name: _full(known[name]) if index is None else _slice(name, known[name], _thaw(index))
        for name in names
    }


def _slice(name: str, parameter: Tensor, index: Index) -> Tensor:
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    try:
        mask[index] = True
    except IndexError as error:
        shown = ", ".join(_show(i) for i in _as_tuple(index))
        raise InputError(
            f"parameters({name!r}, index=[{shown}]): the tensor has shape {tuple(parameter.shape)} ({error})."
        ) from error
    return mask


def _by_layer(model: nn.Module, number: int) -> dict[str, Tensor]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, parameter in _floats(model).items():
        match = re.search(r"(?:^|\.)(?:blocks|h|layers|layer)\.(\d+)\.", name)
        if match:
            found.setdefault(int(match[1]), {})[name] = parameter
    if number not in found:
        raise InputError(
            f"layer({number!r}): {type(model).__name__} has layers {sorted(found) or 'with no known names'}."
        )
    return {name: _full(parameter) for name, parameter in found[number].items()}


def _by_head(model: nn.Module, number: int, h: int) -> dict[str, Tensor]:
    known = _head_counts(model)
    if h >= known.get(number, 0):
        every = [f"{layer}:{i}" for layer, count in sorted(known.items()) for i in range(count)]
        raise InputError(
            f"head('{number}:{h}'): {type(model).__name__} has no such head; {nearest(f'{number}:{h}', every)}"
        )
    here = _floats(model)
    names = [
        f"blocks.{number}.attn.{t}" for t in _HEAD_TENSORS if f"blocks.{number}.attn.{t}" in here
    ]
    return {name: _slice(name, here[name], h) for name in names}


def _by_mask(
    model: nn.Module, selected: Sequence[tuple[str, tuple[int, ...], bytes]]
) -> dict[str, Tensor]:
    known, resolved = _floats(model), {}
    for name, shape, bits in selected:
        if name not in known:
            raise InputError(
                f"masks: {type(model).__name__} has no parameter {name!r}; {nearest(name, known)}"
            )
        if shape != tuple(known[name].shape):
            raise InputError(
                f"masks: the mask of {name!r} must have the parameter's shape {tuple(known[name].shape)}, got {shape}; "
                f"masks are not broadcast, write mask.expand({tuple(known[name].shape)}) if that is what you mean."
            )
        count = int(np.prod(shape))
        flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count).astype(bool)
        resolved[name] = torch.from_numpy(flat).reshape(shape)
    return resolved


def _combine(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    both = {name: left[name] | right[name] if name in right else left[name] for name in left}
    return both | {name: mask for name, mask in right.items() if name not in left}


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def _full(parameter: Tensor) -> Tensor:
    return torch.ones(parameter.shape, dtype=torch.bool)


def _head_counts(model: nn.Module) -> dict[int, int]:
    counts = {}
    for name, parameter in model.named_parameters():
        match = re.fullmatch(r"blocks\.(\d+)\.attn\.W_Q", name)
        if match and parameter.dim() == 3:
            counts[int(match[1])] = parameter.shape[0]
    return counts


def _as_tuple(index: Index) -> tuple[int | slice, ...]:
    return index if isinstance(index, tuple) else (index,)


def _freeze(index: Index) -> tuple[Any, ...]:
    """Slices are not hashable before Python 3.12, so a slice is kept as its three numbers."""
    for part in _as_tuple(index):
        if not isinstance(part, int | slice):
            raise InputError(
                f"parameters(index={index!r}): expected integers and slices; for a boolean mask use rllc.masks."
            )
    return tuple(
        ("slice", p.start, p.stop, p.step) if isinstance(p, slice) else p for p in _as_tuple(index)
    )


def _thaw(index: tuple[Any, ...]) -> Index:
    return tuple(slice(*part[1:]) if isinstance(part, tuple) else part for part in index)


def _show(part: int | slice) -> str:
    if not isinstance(part, slice):
        return str(part)
    ends = [("" if end is None else str(end)) for end in (part.start, part.stop)]
    return ":".join(ends) + ("" if part.step is None else f":{part.step}")
