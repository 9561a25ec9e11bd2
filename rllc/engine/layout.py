"""Where each refined weight sits in a chain's flat position vector, and back.

Refinements that touch the same parameters in the same pattern (all heads of one layer, say) form a
group. Its chains are rows of one ``position [run, dim]`` tensor and go through the model together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Directions(dict[str, Tensor]):
    """The masks of a selection whose weights move along directions only, together.

    Args:
        masks: of the parameters, all true.
        basis: by parameter ``[weight, direction]``; beneath one another, the columns are
            orthonormal.
    """

    def __init__(self, masks: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> None:
        super().__init__(masks)
        self.basis = dict(basis)


class Moved(NamedTuple):
    """New values for some rows (leading index) of one parameter, different in each run."""

    block: Tensor
    """``[run, row, ...]``, ``...`` being the parameter's other axes."""
    rows: Tensor | None
    """``[run, row]``: which rows; ``None``: all, in order. Parameters with equal rows share one."""


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter's place in the position vectors of a group: columns ``start`` to ``stop``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    rows: Tensor | None
    """``[refinement, row]``: leading indices with a selected weight; ``None``: all."""
    within: Tensor | None
    """``[refinement, stop - start]``: which numbers of those rows, flattened; ``None``: all."""
    basis: Tensor | None = None
    """``[refinement, weight, stop - start]``: directions in which the parameter moves, as far as
    columns ``start`` to ``stop``, which other parameters share; ``None``: weight by weight."""


@dataclass(frozen=True, eq=False)
class Group:
    """Refinements whose chains run together: their places in a list, and their shared slots."""

    members: tuple[int, ...]
    slots: tuple[Slot, ...]
    dim: int

    @property
    def num_weights(self) -> int:
        """How many weights move, each in its own way or along fewer directions."""
        along = [slot for slot in self.slots if slot.basis is not None]
        if not along:
            return self.dim
        return sum(math.prod(slot.shape) for slot in along)


def groups(masks: Sequence[Mapping[str, Tensor]]) -> list[Group]:
    """Group selections by pattern: the same parameters, as many rows of each, as many weights.

    >>> top, bottom = torch.tensor([[True], [False]]), torch.tensor([[False], [True]])
    >>> grouped = groups([{"W": top}, {"W": bottom}, {"W": top | bottom}])
    >>> [(group.members, group.dim) for group in grouped]
    [((0, 1), 1), ((2,), 2)]

    Args:
        masks: for each refinement, a boolean mask for each parameter (``Weights.masks``).
    """
    members_of: dict[tuple[Pattern, ...], list[int]] = {}
    for refinement, selected in enumerate(masks):
        patterns = []
        for name in sorted(selected):
            mask = selected[name]
            num_rows = len(_touched_rows(mask))
            num_weights = int(mask.sum())
            num_directions = 0
            if isinstance(selected, Directions):
                num_directions = selected.basis[name].shape[1]
            patterns.append(Pattern(name, num_rows, num_weights, num_directions))
        members = members_of.setdefault(tuple(patterns), [])
        members.append(refinement)
    grouped = []
    for patterns_of_group, members in members_of.items():
        masks_of_group = [masks[i] for i in members]
        grouped.append(_group(members, patterns_of_group, masks_of_group))
    return grouped


def center(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """The selected weights as they stand in the model, in float32: ``[refinement, dim]``.

    Of weights w that move along an orthonormal basis B, the coordinates Bᵀw.
    """
    parts = []
    along = [_coordinates(slot, parameters) for slot in group.slots if slot.basis is not None]
    if along:
        return torch.stack(along).sum(0)
    for slot in group.slots:
        parameter = parameters[slot.name].detach().float()
        values = _with_rows(parameter)
        if slot.rows is None:
            block = values.expand(len(group.members), *values.shape)
        else:
            block = values[slot.rows]
        weights = block.flatten(1)
        if slot.within is not None:
            weights = weights.gather(1, slot.within)
        parts.append(weights)
    return torch.cat(parts, 1)


def unpack(
    group: Group, position: Tensor, member: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Moved]:
    """Position vectors as blocks of rows, differentiable in ``position``.

    Args:
        group: says which numbers of a position belong to which weights.
        position: ``[run, dim]``.
        member: ``[run]``, which member of the group each run belongs to.
        parameters: the model's, for the weights of touched rows that were not selected.
    """
    runs = len(member)
    moved: dict[str, Moved] = {}
    if any(slot.basis is not None for slot in group.slots):
        return _unpack_directions(group, position, member, parameters)
    # Slots with equal rows share one index tensor, so that equality is identity.
    gathered: dict[int, Tensor] = {}
    for slot in group.slots:
        rows = None
        if slot.rows is not None:
            identity = id(slot.rows)
            if identity not in gathered:
                gathered[identity] = slot.rows[member]
            rows = gathered[identity]
        block = position[:, slot.start : slot.stop]
        values = _with_rows(parameters[slot.name].detach())
        if slot.within is not None:
            if rows is None:
                frozen = values.expand(runs, *values.shape)
            else:
                frozen = values[rows]
            frozen = frozen.flatten(1).to(block.dtype)
            block = frozen.scatter(1, slot.within[member], block)
        other_axes = values.shape[1:]
        moved[slot.name] = Moved(block.reshape(runs, -1, *other_axes), rows)
    return moved


def _coordinates(slot: Slot, parameters: Mapping[str, Tensor]) -> Tensor:
    """A parameter's part of the coordinates Bᵀw, ``[refinement, direction]``."""
    assert slot.basis is not None
    parameter = parameters[slot.name].detach()
    weights = parameter.double().flatten()
    coordinates = torch.einsum("rwd,w->rd", slot.basis.double(), weights)
    return coordinates.float()


def _unpack_directions(
    group: Group, position: Tensor, member: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Moved]:
    """The weights w* + B(z − Bᵀw*) at coordinates z."""
    runs = len(member)
    away = position - center(group, parameters)[member]
    moved = {}
    for slot in group.slots:
        assert slot.basis is not None
        if len(slot.basis) == 1:
            # All runs share the basis, which may be large.
            step = away @ slot.basis[0].T
        else:
            step = torch.einsum("rwd,rd->rw", slot.basis[member], away)
        frozen = _with_rows(parameters[slot.name].detach())
        block = frozen.flatten() + step
        moved[slot.name] = Moved(block.reshape(runs, *frozen.shape), None)
    return moved


def stack(moved: Moved, parameter: Tensor) -> Tensor:
    """The whole parameter for each run, ``[run, *parameter.shape]``, with its moved rows put in."""
    block, rows = moved
    runs = block.shape[0]
    if rows is None:
        return block.reshape(runs, *parameter.shape)
    base = _with_rows(parameter.detach())
    other_axes = (1,) * (base.dim() - 1)
    index = rows.reshape(*rows.shape, *other_axes).expand_as(block)
    unmoved = base.to(block.dtype).expand(runs, *base.shape)
    stacked = unmoved.scatter(1, index, block)
    return stacked.reshape(runs, *parameter.shape)


def to(group: Group, device: torch.device) -> Group:
    """The group with its index tensors on ``device``; slots that shared one still do."""
    moved: dict[int, Tensor] = {}

    def move(index: Tensor | None) -> Tensor | None:
        if index is None:
            return None
        identity = id(index)
        if identity not in moved:
            moved[identity] = index.to(device)
        return moved[identity]

    slots = []
    for slot in group.slots:
        rows = move(slot.rows)
        within = move(slot.within)
        basis = move(slot.basis)
        slots.append(replace(slot, rows=rows, within=within, basis=basis))
    return replace(group, slots=tuple(slots))


def digest(masks: Mapping[str, Tensor]) -> str:
    """Which weights a selection takes, whatever it is called: SHA-256 of its masks.

    Of one that moves along directions, of these, too.
    """
    checksum = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name]
        shape = tuple(mask.shape)
        bits = np.packbits(mask.numpy())
        checksum.update(f"{name} {shape}".encode())
        checksum.update(bits.tobytes())
    if isinstance(masks, Directions):
        for name in sorted(masks):
            basis = masks.basis[name]
            shape = tuple(basis.shape)
            numbers = basis.contiguous().numpy()
            checksum.update(f"along {name} {shape}".encode())
            checksum.update(numbers.tobytes())
    return checksum.hexdigest()


class Pattern(NamedTuple):
    """How much of one parameter a selection takes."""

    name: str
    num_rows: int
    num_weights: int
    num_directions: int = 0
    """0: each weight moves in its own way."""


def _group(
    members: list[int], patterns: Sequence[Pattern], masks: Sequence[Mapping[str, Tensor]]
) -> Group:
    slots: list[Slot] = []
    start = 0
    along = [selected for selected in masks if isinstance(selected, Directions)]
    if along:
        return _group_of_directions(members, along)
    for name, num_rows, num_weights, _ in patterns:
        shape = tuple(masks[0][name].shape)
        with_rows = [_with_rows(selected[name]) for selected in masks]
        touched = torch.stack([_touched_rows(mask) for mask in with_rows])
        rows = None
        if num_rows < len(with_rows[0]):
            rows = _shared(touched, slots)
        selected_in_rows = []
        for mask, touched_rows in zip(with_rows, touched, strict=True):
            selected_in_rows.append(mask[touched_rows].flatten())
        selected = torch.stack(selected_in_rows)
        within = None
        if not bool(selected.all()):
            places = [mask.nonzero().squeeze(1) for mask in selected]
            within = torch.stack(places)
        stop = start + num_weights
        slots.append(Slot(name, shape, start, stop, rows, within))
        start = stop
    return Group(tuple(members), tuple(slots), start)


def _group_of_directions(members: list[int], along: Sequence[Directions]) -> Group:
    slots = []
    dim = 0
    masks = along[0]
    for name in sorted(masks):
        shape = tuple(masks[name].shape)
        basis = torch.stack([selected.basis[name] for selected in along])
        dim = basis.shape[2]
        slots.append(Slot(name, shape, 0, dim, None, None, basis))
    return Group(tuple(members), tuple(slots), dim)


def _shared(rows: Tensor, slots: Sequence[Slot]) -> Tensor:
    """An index tensor that a slot already has, when it is equal."""
    for slot in slots:
        if slot.rows is not None and torch.equal(slot.rows, rows):
            return slot.rows
    return rows


def _touched_rows(mask: Tensor) -> Tensor:
    """The rows of a parameter with a selected weight."""
    rows = _with_rows(mask).flatten(1)
    has_weight = rows.any(1)
    return has_weight.nonzero().squeeze(1)


def _with_rows(values: Tensor) -> Tensor:
    """Values with a row axis and one more: a scalar is one row, a vector has rows of one."""
    if values.dim() == 0:
        return values.reshape(1, 1)
    if values.dim() == 1:
        return values[:, None]
    return values
