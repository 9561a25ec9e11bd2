"""From masks to index vectors: where each refined weight sits in a chain's flat position vector, and back.

Refinements that touch the same parameters in the same pattern (all heads of one layer, say) form a group, whose chains
are rows of one ``position [run, dim]`` tensor and go through the model together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Moved(NamedTuple):
    """New values for some rows (leading index) of one parameter, different in each run."""

    block: Tensor
    """``[run, row, ...]``, ``...`` being the parameter's other axes."""
    rows: Tensor | None
    """``[run, row]``: which rows; ``None`` says all of them, in order. Parameters with equal rows share one tensor."""


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter's place in the position vectors of a group: columns ``start`` to ``stop``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    rows: Tensor | None
    """``[refinement, row]``: leading indices with a selected weight; ``None``: all, for every refinement."""
    within: Tensor | None
    """``[refinement, stop - start]``: which numbers of those rows, flattened; ``None``: all of them."""


@dataclass(frozen=True, eq=False)
class Group:
    """Refinements whose chains run together: their places in the caller's list, and the slots they share."""

    members: tuple[int, ...]
    slots: tuple[Slot, ...]
    dim: int


def groups(masks: Sequence[Mapping[str, Tensor]]) -> list[Group]:
    """Group selections by pattern: the same parameters, as many rows of each, as many weights of these rows.

    >>> first, second = torch.tensor([[True] * 3, [False] * 3]), torch.tensor([[False] * 3, [True] * 3])
    >>> [(g.members, g.dim) for g in groups([{"W": first}, {"W": second}, {"W": first | second}])]
    [((0, 1), 3), ((2,), 6)]

    Args:
        masks: for each refinement, a boolean mask for each parameter it touches (``Weights.masks``).
    """
    patterns: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    for i, selected in enumerate(masks):
        key = tuple(
            (name, int(_touched(mask).numel()), int(mask.sum()))
            for name, mask in sorted(selected.items())
        )
        patterns.setdefault(key, []).append(i)
    return [_group(members, key, [masks[i] for i in members]) for key, members in patterns.items()]


def center(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """The selected weights as they stand in the model, in float32: ``[refinement, dim]``, one row a member."""
    parts = []
    for slot in group.slots:
        values = parameters[slot.name].detach().float().reshape(_rows_shape(slot.shape))
        block = (
            values.expand(len(group.members), *values.shape)
            if slot.rows is None
            else values[slot.rows]
        )
        flat = block.flatten(1)
        parts.append(flat if slot.within is None else flat.gather(1, slot.within))
    return torch.cat(parts, 1)


def unpack(
    group: Group, position: Tensor, member: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Moved]:
    """Position vectors as blocks of rows, differentiable in ``position``.

    Args:
        position: ``[run, dim]``.
        member: ``[run]``, which member of the group each run belongs to.
        parameters: the model's, for the weights of touched rows that were not selected.
    """
    moved: dict[str, Moved] = {}
    gathered: dict[
        int, Tensor
    ] = {}  # one index tensor for slots with equal rows, so that equality is identity
    for slot in group.slots:
        rows = None
        if slot.rows is not None:
            rows = gathered.setdefault(id(slot.rows), slot.rows[member])
        block = position[:, slot.start : slot.stop]
        values = parameters[slot.name].detach().reshape(_rows_shape(slot.shape))
        if slot.within is not None:
            frozen = values.expand(len(member), *values.shape) if rows is None else values[rows]
            block = frozen.flatten(1).to(block.dtype).scatter(1, slot.within[member], block)
        moved[slot.name] = Moved(block.reshape(len(member), -1, *values.shape[1:]), rows)
    return moved


def stack(moved: Moved, parameter: Tensor) -> Tensor:
    """The whole parameter for each run, ``[run, *parameter.shape]``, with its moved rows put in."""
    block, rows = moved
    runs = block.shape[0]
    if rows is None:
        return block.reshape(runs, *parameter.shape)
    base = parameter.detach().reshape(_rows_shape(tuple(parameter.shape)))
    index = rows.reshape(rows.shape + (1,) * (base.dim() - 1)).expand_as(block)
    whole = base.to(block.dtype).expand(runs, *base.shape).scatter(1, index, block)
    return whole.reshape(runs, *parameter.shape)


def to(group: Group, device: torch.device) -> Group:
    """The group with its index tensors on ``device``; slots that shared one still do."""
    there: dict[int, Tensor] = {}

    def move(index: Tensor | None) -> Tensor | None:
        return None if index is None else there.setdefault(id(index), index.to(device))

    slots = tuple(
        Slot(s.name, s.shape, s.start, s.stop, move(s.rows), move(s.within)) for s in group.slots
    )
    return Group(group.members, slots, group.dim)


def digest(masks: Mapping[str, Tensor]) -> str:
    """Which weights a selection takes, whatever it is called: SHA-256 of its masks."""
    found = hashlib.sha256()
    for name in sorted(masks):
        found.update(f"{name} {tuple(masks[name].shape)}".encode())
        found.update(np.packbits(masks[name].numpy()).tobytes())
    return found.hexdigest()


def _group(
    members: list[int], key: Sequence[tuple[str, int, int]], masks: Sequence[Mapping[str, Tensor]]
) -> Group:
    slots: list[Slot] = []
    start = 0
    for name, num_rows, count in key:
        mine = [mask[name].reshape(_rows_shape(tuple(mask[name].shape))) for mask in masks]
        touched = torch.stack([_touched(mask) for mask in mine])
        rows = None if num_rows == mine[0].shape[0] else _same(touched, slots)
        kept = torch.stack([mask[r].flatten() for mask, r in zip(mine, touched, strict=True)])
        within = None if bool(kept.all()) else torch.stack([k.nonzero().squeeze(1) for k in kept])
        slots.append(Slot(name, tuple(masks[0][name].shape), start, start + count, rows, within))
        start += count
    return Group(tuple(members), tuple(slots), start)


def _same(rows: Tensor, slots: Sequence[Slot]) -> Tensor:
    """An index tensor already in use when it is equal."""
    return next((s.rows for s in slots if s.rows is not None and torch.equal(s.rows, rows)), rows)


def _touched(mask: Tensor) -> Tensor:
    return mask.reshape(_rows_shape(tuple(mask.shape))).flatten(1).any(1).nonzero().squeeze(1)


def _rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with a leading row axis and at least one more: scalars count as one row, vectors as rows of one."""
    return (1, 1) if not shape else (shape[0], 1) if len(shape) == 1 else shape
