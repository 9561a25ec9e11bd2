"""Data sets as the rest of the library sees them: numbered rows that are taken as minibatches.

:class:`rllc.Tokens` is the data set of language models, :class:`Tensors` that of every other model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from rllc.errors import InputError
from rllc.storage.files import bytes_of_tensor, sha256_of

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""A minibatch: one tensor ``[batch, …]``, or several (inputs and targets, say), or by name."""


@runtime_checkable
class Data(Protocol):
    """Which data: rows numbered from 0, any of which can be collated into a minibatch.

    An object with these five members can be given wherever ``data`` is asked for. Its contents must
    not change while it is used.
    """

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def name(self) -> str:
        """The name of the data set in tables, figures and files."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents, in hexadecimal. The name has no part in it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row (of its first part, if there are several), without the batch axis."""
        ...

    def take(self, rows: Tensor, device: torch.device) -> Batch:
        """The minibatch of the given rows.

        Args:
            rows: row numbers ``[batch]``, int64, on the CPU.
            device: where the minibatch is put.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Tensors:
    """Data of one or more tensors with one leading dimension, such as inputs and targets.

    >>> Tensors((torch.zeros(5, 3), torch.arange(5)), name="toy")
    Tensors('toy': 5 rows of float32 [3], int64 [])

    With ``fields`` a minibatch is a dict, as models of transformers take it:

    >>> ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    >>> Tensors((ids, mask), fields=("input_ids", "attention_mask"))
    Tensors('data': 1 rows of input_ids int64 [3], attention_mask int64 [3])

    Args:
        parts: tensors ``[row, …]``. They are not copied, so do not write to them afterwards.
        name: what results are labelled with.
        fields: names of the parts; none: a minibatch is a tensor or a tuple.

    Raises:
        InputError: there is no tensor, the leading dimensions are empty or differ, or there is not
            one name a part.
    """

    parts: tuple[Tensor, ...]
    name: str = "data"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_parts(self.parts, self.name)
        if self.fields and len(set(self.fields)) != len(self.parts):
            raise InputError(
                f"`data` {self.name!r}: expected one name for each of {len(self.parts)} parts, got "
                f"fields={self.fields!r}."
            )

    def __len__(self) -> int:
        return len(self.parts[0])

    def __repr__(self) -> str:
        kinds = [_kind_of_row(part[0]) for part in self.parts]
        if self.fields:
            kinds = [f"{field} {kind}" for field, kind in zip(self.fields, kinds, strict=True)]
        listed = ", ".join(kinds)
        return f"Tensors({self.name!r}: {len(self):,} rows of {listed})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of the first part."""
        return tuple(self.parts[0].shape[1:])

    @cached_property
    def largest_id(self) -> int | None:
        """The largest token id that is no padding; ``None`` where there are no ``input_ids``."""
        by_name = self.by_name
        if "input_ids" not in by_name:
            return None
        ids = by_name["input_ids"]
        mask = by_name.get("attention_mask")
        if mask is not None and mask.shape == ids.shape:
            is_token = mask > 0
            if bool(is_token.any()):
                ids = ids[is_token]
        return int(ids.max())

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The parts by the names of the fields; empty if they have none."""
        return dict(zip(self.fields, self.parts, strict=True)) if self.fields else {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the fields, types, shapes and bytes of the parts."""
        pieces: list[str | np.ndarray] = list(self.fields)
        for part in self.parts:
            pieces.append(f"{part.dtype} {tuple(part.shape)}")
            pieces.append(bytes_of_tensor(part))
        return sha256_of(pieces)

    def take(self, rows: Tensor, device: torch.device) -> Batch:
        """The given rows of each part, ``[batch, …]``.

        One part gives its tensor alone, so that a loss of one input reads naturally; parts with
        fields give a dict.
        """
        chosen = [part[rows.to(part.device)] for part in self.parts]
        batch = tuple(to_device(part, device) for part in chosen)
        if self.fields:
            return dict(zip(self.fields, batch, strict=True))
        return batch[0] if len(batch) == 1 else batch


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Move a minibatch; from the CPU to a GPU without waiting for the GPU's earlier work."""
    if device.type == "cuda" and batch.device.type == "cpu":
        # Only a copy from pinned memory runs beside the steps that are still queued.
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _kind_of_row(row: Tensor) -> str:
    dtype = str(row.dtype).removeprefix("torch.")
    return f"{dtype} {list(row.shape)}"


def _check_parts(parts: tuple[Tensor, ...], name: str) -> None:
    expected = "expected a tuple of tensors with one leading dimension of at least 1"
    are_tensors = isinstance(parts, tuple) and all(isinstance(part, Tensor) for part in parts)
    if not are_tensors:
        raise InputError(f"`data` {name!r}: {expected}, got {_kinds(parts)}.")
    for part in parts:
        if part.layout != torch.strided:
            raise InputError(
                f"`data` {name!r}: a part is a tensor of layout {part.layout}, of which no rows "
                f"can be taken; give part.to_dense()."
            )
    shapes = [list(part.shape) for part in parts]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        listed = ", ".join(str(shape) for shape in shapes) or "no tensor"
        raise InputError(f"`data` {name!r}: {expected}, got {listed}.")


def _kinds(parts: object) -> str:
    if not isinstance(parts, tuple):
        return type(parts).__name__
    return f"a tuple of {', '.join(type(part).__name__ for part in parts)}"
