"""Data sets that do not fit into memory: only the rows of a minibatch are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllc.data.data import Batch, to_device
from rllc.data.examples import Example, parts_of, rows_of_examples
from rllc.storage.files import bytes_of_tensor, sha256_of

IN_MEMORY = 2**30
"""Bytes up to which rows that were read are kept in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenArray:
    """Token ids in an array that may lie in a file; only the rows of a minibatch are read.

    Args:
        ids: ``[row, pos]`` of integers, such as an ``np.memmap``.
        name: what results are labelled with.
    """

    ids: np.ndarray
    name: str = "data"

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenArray({self.name!r}: {len(self):,} rows x {self.ids.shape[1]:,} positions)"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (self.ids.shape[1],)

    @cached_property
    def largest_id(self) -> int:
        """The largest id in the rows."""
        return max(int(block.max()) for block in self._blocks())

    @cached_property
    def fingerprint(self) -> str:
        """That of :class:`rllc.Tokens` with the same ids."""
        return sha256_of(self._pieces())

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """The minibatch of the given rows: ids ``[batch, pos]``, int64, on ``device``."""
        ids = self.ids[rows.numpy()].astype(np.int64)
        return to_device(torch.from_numpy(ids), device)

    def _pieces(self) -> Iterator[str | np.ndarray]:
        """The pieces to hash: the shape, and the ids a block at a time."""
        yield f"{len(self)} {self.ids.shape[1]}"
        for block in self._blocks():
            yield np.ascontiguousarray(block.astype("<i4"))

    def _blocks(self) -> Iterator[np.ndarray]:
        """The rows, as many at a time as make about four million ids."""
        size = max(1, 2**22 // self.ids.shape[1])
        for start in range(0, len(self.ids), size):
            yield self.ids[start : start + size]


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Rows of a data set that does not fit into memory; read anew for each minibatch.

    Args:
        dataset: ``dataset[row]`` gives an example.
        rows: which of its rows.
        example: makes tensors of what it gives.
        name: what results are labelled with.
        fingerprint: SHA-256 of the contents.
        width: positions to which rows of tokens are padded.
    """

    dataset: Any
    rows: tuple[int, ...]
    example: Callable[[Any], Example]
    name: str
    fingerprint: str
    width: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Examples({self.name!r}: {len(self):,} rows of {type(self.dataset).__name__})"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of the first part."""
        batch = self.take(torch.tensor([0]), torch.device("cpu"))
        parts = parts_of(batch)
        return tuple(parts[0].shape[1:])

    def take(self, rows: Tensor, device: torch.device) -> Batch:
        """The minibatch of the given rows."""
        examples = []
        for row in rows.tolist():
            item = self.dataset[self.rows[row]]
            examples.append(self.example(item))
        minibatch = rows_of_examples(examples, self.name, self.width)
        return minibatch.take(torch.arange(len(rows)), device)


class Reading:
    """The examples of a first reading, with a hash of each.

    ``examples`` is ``None`` once they do not fit into memory; they are then read anew when needed.
    """

    def __init__(self) -> None:
        self.examples: list[Example] | None = []
        self.bytes = 0
        self.width = 0
        self.pieces: list[str] = []

    def add(self, example: Example) -> None:
        """Take the next example."""
        parts = parts_of(example)
        self.bytes += sum(part.numel() * part.element_size() for part in parts)
        if isinstance(example, dict) and "input_ids" in example:
            self.width = max(self.width, len(example["input_ids"]))
        shapes = " ".join(f"{part.dtype} {tuple(part.shape)}" for part in parts)
        self.pieces.append(sha256_of([shapes, *map(bytes_of_tensor, parts)]))
        if self.examples is not None:
            self.examples.append(example)
            if self.bytes > IN_MEMORY:
                self.examples = None

    def digest(self) -> str:
        """The SHA-256 of all examples."""
        return sha256_of(self.pieces)
