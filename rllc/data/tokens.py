"""Rows of token ids: the value :class:`Tokens`, and mixtures of several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from rllc.data.data import to_device
from rllc.errors import FileError, InputError
from rllc.seeds import generator
from rllc.storage.files import check_fields, load_arrays, reading, save_arrays, sha256_of

_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Which data: rows of token ids, all of one length, with a name and a hash of the contents.

    >>> Tokens([[4, 1, 2], [4, 3, 1]], name="toy")
    Tokens('toy': 2 rows x 3 positions)

    Args:
        rows: ids ``[row, pos]``: a tensor, a NumPy array or nested lists of integers. Kept as a
            contiguous int32 tensor on the CPU; a tensor that already is one is not copied, so do
            not write to it afterwards.
        name: what results are labelled with, such as ``"code"``.
        dropped: tokens at the end of the texts that did not fill a row (:func:`tokenize` counts
            them; nothing is padded).

    Raises:
        InputError: no rows, rows shorter than 2 (there would be nothing to predict), rows of
            several lengths, or values that are not integers in 0 … 2³¹ - 1.
    """

    rows: Tensor
    name: str = "tokens"
    dropped: int = 0

    def __post_init__(self) -> None:
        task = f"making Tokens {self.name!r}"
        rows = _as_tensor(self.rows, task)
        _check_shape(rows, task)
        object.__setattr__(self, "rows", _as_ids(rows, task))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Tokens: ...

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor | Tokens:
        """A row ``[pos]`` for an integer, ``Tokens`` for a slice, a list or a mask."""
        if isinstance(index, int | np.integer):
            return self.rows[index]
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
        return replace(self, rows=self.rows[index], dropped=0)

    def __repr__(self) -> str:
        size = f"{len(self):,} rows x {self.num_positions:,} positions"
        tail = f", {self.dropped:,} tokens of the tail dropped" if self.dropped else ""
        return f"Tokens({self.name!r}: {size}{tail})"

    @property
    def num_positions(self) -> int:
        """The length of every row, in tokens."""
        return self.rows.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: ``(num_positions,)``."""
        return (self.num_positions,)

    @cached_property
    def largest_id(self) -> int:
        """The largest id in the rows: a model needs a vocabulary of at least one more."""
        return int(self.rows.max())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the shape and the ids (as little-endian int32).

        The name has no part in it.
        """
        ids = self.rows.numpy().astype("<i4", copy=False)
        return sha256_of([f"{len(self)} {self.num_positions}", ids])

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """The minibatch of the given rows: ids ``[batch, pos]``, int64, on ``device``."""
        return to_device(self.rows[rows].long(), device)

    def split(self, first: int | float) -> tuple[Tokens, Tokens]:
        """The first rows and the rest.

        Rows keep their order, so neighbours that share a document mostly stay on one side.

        >>> Tokens([[0, 1]] * 10).split(0.9)
        (Tokens('tokens': 9 rows x 2 positions), Tokens('tokens': 1 rows x 2 positions))

        Args:
            first: a number of rows, or a fraction of them if it is a float.

        Raises:
            InputError: one of the two parts would have no rows.
        """
        count = round(first * len(self)) if isinstance(first, float) else first
        if not 0 < count < len(self):
            raise InputError(
                f"splitting {self!r}: `first` must leave rows on both sides, got {first!r}. "
                f"Give a number of rows from 1 to {len(self) - 1}, or a fraction such as 0.9."
            )
        return self[:count], self[count:]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write rows, name and dropped to one atomic, checksummed ``.npz`` file.

        Raises:
            FileError: it cannot be written.
        """
        header = {"kind": "rllc.Tokens", "name": self.name, "dropped": self.dropped}
        return save_arrays(path, {"rows": self.rows.numpy()}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: the file is missing or damaged, or holds something else than ``Tokens``.
        """
        arrays, header = load_arrays(path)
        kind = header.get("kind", "something else")
        if kind != "rllc.Tokens":
            raise FileError(f"reading tokens from {path}: the file holds {kind}, not Tokens.")
        with reading(path):
            check_fields(header, {"name": "text", "dropped": "count"})
            return cls(torch.from_numpy(arrays["rows"]), header["name"], header["dropped"])


def mix(name: str, *parts: Tokens, seed: int = 0) -> Tokens:
    """All rows of several ``Tokens`` as one, in a seeded shuffled order: a training mixture.

    >>> mix("all", Tokens([[0, 1]] * 2, "code"), Tokens([[2, 3]], "prose"))
    Tokens('all': 3 rows x 2 positions)

    Args:
        name: the name of the result.
        parts: two or more ``Tokens`` of one row length. Shares of the mixture are the parts'
            numbers of rows; take fewer rows of a part (``code[:1000]``) to lower its share.
        seed: of the order. Shuffled, so that a slice or :meth:`Tokens.split` of the mixture is a
            mixture too.

    Raises:
        InputError: no parts, or parts with rows of several lengths.
    """
    if len({part.num_positions for part in parts}) != 1:
        got = ", ".join(map(repr, parts)) or "nothing"
        raise InputError(
            f"mixing {name!r}: expected Tokens with rows of one length, got {got}. "
            f"Use one context_length."
        )
    rows = torch.cat([part.rows for part in parts])
    order = torch.randperm(len(rows), generator=generator("mix", seed))
    dropped = sum(part.dropped for part in parts)
    return Tokens(rows[order], name, dropped)


# From what users give to a tensor [row, pos] of int32.


def _as_tensor(rows: Any, task: str) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.detach()
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "iu":
        return torch.from_numpy(rows.astype(np.int64))
    try:
        tensors = [torch.as_tensor(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{task}: `rows` must be [row, pos] integers, got {type(rows).__name__} ({error})."
        ) from error
    if not tensors:
        return torch.empty(0, 2, dtype=torch.int32)
    _check_lengths(tensors, task)
    return torch.stack(tensors)


def _check_lengths(rows: list[Tensor], task: str) -> None:
    first = rows[0]
    for i, row in enumerate(rows):
        if row.shape != first.shape:
            raise InputError(
                f"{task}: rows must all have one length, but row 0 has {first.numel()} positions "
                f"and row {i} has {row.numel()}. Pack texts with tokenize(...), or cut the rows to "
                f"one length; nothing is padded."
            )


def _check_shape(rows: Tensor, task: str) -> None:
    if rows.ndim != 2:
        raise InputError(
            f"{task}: `rows` must be [row, pos], got shape {list(rows.shape)}. "
            f"Use rows[None] for one row."
        )
    if len(rows) < 1:
        raise InputError(f"{task}: there are no rows; the data is empty.")
    if rows.shape[1] < 2:
        raise InputError(
            f"{task}: rows must have at least 2 positions (a token and the next one to predict), "
            f"got {rows.shape[1]}."
        )


def _as_ids(rows: Tensor, task: str) -> Tensor:
    dtype = rows.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise InputError(
            f"{task}: `rows` must hold integer token ids, got {dtype}. Use tokenize(...) for texts."
        )
    if dtype != torch.int32:
        # Unsigned types have no minimum and maximum in torch.
        rows = rows.to(torch.int64)
    lowest, highest = (int(bound) for bound in torch.aminmax(rows))
    if lowest < 0 or highest > _LARGEST_ID:
        got = lowest if lowest < 0 else highest
        raise InputError(
            f"{task}: token ids must be in 0 … {_LARGEST_ID}, got {got}. If these are numbers and "
            f"no tokens, for a loss of your own, give them as floats: rows.float()."
        )
    return rows.to("cpu", torch.int32).contiguous()
