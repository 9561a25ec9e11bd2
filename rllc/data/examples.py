"""Examples of a data set: how each becomes tensors, and how many become rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllc.data.data import Data, Tensors
from rllc.data.tokens import Tokens
from rllc.errors import InputError

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""A tensor, or several by place or by name."""

NOT_INPUTS = frozenset(
    {
        "special_tokens_mask",
        "offset_mapping",
        "overflow_to_sample_mapping",
        "overflowing_tokens",
        "num_truncated_tokens",
        "length",
    }
)
"""Fields that tokenizers give beside a model's inputs."""


@dataclass(frozen=True)
class Collated:
    """One example by a loader's own collate function, which is asked for one row at a time."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, item: Any) -> Example:
        """Collate one item, and take the batch of one apart."""
        batch = to_example(self.collate([item]))
        if isinstance(batch, dict):
            return {name: field[0] for name, field in batch.items()}
        if isinstance(batch, tuple):
            return tuple(part[0] for part in batch)
        return batch[0]


def to_example(item: Any) -> Example:
    """An example as a tensor, a tuple of them or a dict."""
    if isinstance(item, Mapping):
        inputs = {}
        for name, value in item.items():
            if name not in NOT_INPUTS:
                inputs[str(name)] = as_tensor(value)
        return inputs
    if isinstance(item, tuple) or (isinstance(item, list) and _has_arrays(item)):
        return tuple(as_tensor(part) for part in item)
    return as_tensor(item)


def _has_arrays(item: Sequence[Any]) -> bool:
    return any(isinstance(part, Tensor | np.ndarray) for part in item)


def as_tensor(value: Any) -> Tensor:
    """A part of an example as a tensor, or an error that says what to type."""
    try:
        return tensor_of(value)
    except (TypeError, ValueError, RuntimeError) as error:
        advice = "give tensors, arrays or numbers"
        if hasattr(value, "convert") and hasattr(value, "getpixel"):
            advice = (
                "make tensors of images, scaled as in training: in a torchvision data set pass "
                "transform=…, in one of Hugging Face use dataset.with_transform(…)"
            )
        elif isinstance(value, str):
            advice = "tokenize texts first, or pass rllc.data.as_data(texts, tokenizer=tokenizer)"
        raise InputError(
            f"`data`: an example holds {type(value).__name__}, of which no tensor can be made; "
            f"{advice}."
        ) from error


def tensor_of(values: Any) -> Tensor:
    """A tensor of what torch, NumPy or Python has; without a copy where that is possible."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, np.ndarray):
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        if values.dtype.kind == "u" and values.dtype.itemsize > 1:
            values = values.astype(np.int64)
        with warnings.catch_warnings():
            # Nothing is written to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(values)
    if isinstance(values, list) and values and isinstance(values[0], np.ndarray | Tensor):
        return torch.stack([tensor_of(value) for value in values])
    return torch.as_tensor(values)


def rows_of_examples(examples: list[Example], name: str, width: int = 0) -> Data:
    """Put examples into rows, padding those of tokens."""
    first = examples[0]
    if isinstance(first, dict):
        columns = _columns(examples, list(first), name)
        return rows_of_fields(_padded(columns, name, width), name)
    if isinstance(first, tuple):
        parts = []
        for number in range(len(first)):
            column = [example[number] for example in examples]  # type: ignore[index]
            parts.append(_stacked(column, name, number))
        return Tensors(tuple(parts), name)
    rows = _stacked(examples, name, 0)  # type: ignore[arg-type]
    if rows.dim() == 2 and is_integer(rows):
        return Tokens(rows, name)
    return Tensors((rows,), name)


def _columns(examples: list[Example], fields: list[str], name: str) -> dict[str, list[Tensor]]:
    """The values of each field, row by row."""
    columns: dict[str, list[Tensor]] = {field: [] for field in fields}
    for row, example in enumerate(examples):
        if not isinstance(example, dict) or example.keys() != columns.keys():
            fields_of_row = ", ".join(example) if isinstance(example, dict) else "no names"
            raise InputError(
                f"`data` {name!r}: row 0 has {', '.join(fields)}, row {row} has {fields_of_row}."
            )
        for field, value in example.items():
            columns[field].append(value)
    return columns


def _padded(columns: Mapping[str, list[Tensor]], name: str, width: int) -> dict[str, Tensor]:
    """Fields as tensors ``[row, …]``; those with a value a token are padded to one width."""
    ids = columns.get("input_ids")
    if ids is None or any(row.dim() != 1 for row in ids):
        return {field: _stacked(rows, name, field) for field, rows in columns.items()}
    lengths = [len(row) for row in ids]
    width = max(width, *lengths)
    tensors = {}
    for field, rows in columns.items():
        has_value_a_token = [
            row.shape == ids_of_row.shape for row, ids_of_row in zip(rows, ids, strict=True)
        ]
        if not all(has_value_a_token):
            tensors[field] = _stacked(rows, name, field)
            continue
        blank = -100 if field == "labels" else 0
        padded = rows[0].new_full((len(rows), width), blank)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        tensors[field] = padded
    if "attention_mask" not in columns and min(lengths) < width:
        is_token = torch.arange(width) < torch.tensor(lengths)[:, None]  # [row, pos]
        tensors["attention_mask"] = is_token.long()
    return tensors


def rows_of_fields(tensors: Mapping[str, Tensor], name: str) -> Data:
    """One data set of named tensors; ``Tokens`` where there is nothing but ids."""
    ids = tensors.get("input_ids")
    mask = tensors.get("attention_mask")
    hides_nothing = mask is None or (mask.dim() == 2 and bool((mask == 1).all()))
    has_only_ids = set(tensors) <= {"input_ids", "attention_mask"} and hides_nothing
    if ids is not None and ids.dim() == 2 and has_only_ids:
        return Tokens(ids, name)
    return Tensors(tuple(tensors.values()), name, tuple(tensors))


def _stacked(rows: Sequence[Tensor], name: str, part: int | str) -> Tensor:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        listed = ", ".join(str(shape) for shape in sorted(shapes)[:4])
        raise InputError(
            f"`data` {name!r}: part {part!r} of the rows must have one shape, got {listed}; only "
            f"token rows with `input_ids` are padded."
        )
    return torch.stack(list(rows))


def parts_of(example: Any) -> tuple[Tensor, ...]:
    """The tensors of an example or a batch."""
    if isinstance(example, dict):
        return tuple(example.values())
    return example if isinstance(example, tuple) else (example,)


def are_equal(first: Example, second: Example) -> bool:
    """Whether two examples have the same contents; NaN equals NaN."""
    for part, other_part in zip(parts_of(first), parts_of(second), strict=True):
        if part.shape != other_part.shape:
            return False
        if not torch.equal(part.nan_to_num(), other_part.nan_to_num()):
            return False
    return True


def is_integer(values: Tensor) -> bool:
    """Whether these can be token ids."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
