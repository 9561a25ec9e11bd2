"""Data as people have them, made to numbered rows: the one door through which all data come in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data import default_collate as torch_collate

from rllc.data.data import Data, Tensors
from rllc.data.examples import (
    NOT_INPUTS,
    Collated,
    Example,
    are_equal,
    as_tensor,
    is_integer,
    parts_of,
    rows_of_examples,
    rows_of_fields,
    tensor_of,
    to_example,
)
from rllc.data.images import is_image_folder, read_images
from rllc.data.large import IN_MEMORY, Examples, Reading, TokenArray
from rllc.data.packing import without_surrogates
from rllc.data.tokens import Tokens
from rllc.errors import FileError, InputError, RllcError, first_line, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_INPUTS = ("input_ids", "pixel_values", "inputs_embeds", "input_values", "input_features")
"""A dict with one of these is one batch, as tokenizers and image processors give it."""

_LABELS = ("labels", "label")
_TEXTS = ("text", "contents", "content", "code")
_MOST_ROWS = 10_000
"""Rows that are read of an iterable without a length, unless others are asked for."""

_LLM_C: dict[int, np.dtype[Any]] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""First number of llm.c's files, and the type of the ids behind their header of 1024 bytes."""

_KINDS = (
    "rllc.Tokens, a tensor or NumPy array of token ids [row, pos], lists of token ids, a "
    "tokenizer's output, (inputs, labels), a DataLoader, a torch or Hugging Face data set, an "
    "iterable of examples, a list of strings with rllc.data.as_data(texts, tokenizer=…), a .bin or "
    ".npy file of ids with rllc.data.as_data(path, context_length=…), a folder of images, one "
    "folder a class, other rllc.data.Data, or a dict "
    "{name: data} of these"
)


def as_data(
    source: Any,
    name: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_length: int | None = None,
    column: str | None = None,
    num_rows: int | None = None,
) -> Data:
    """Make numbered rows of what you have; :func:`rllc.estimate` and the like call it for you.

    >>> as_data({"input_ids": [[5, 6, 7], [8, 9]]})
    Tensors('data': 2 rows of input_ids int64 [3], attention_mask int64 [3])

    All rows are read once, for the fingerprint. They stay in memory up to 1 GiB; beyond that they
    are read again, minibatch by minibatch. Rows of different lengths are padded behind, with a
    mask; padding changes no result.

    Args:
        source: one of

            - token ids ``[row, pos]``: a tensor, a NumPy array (also memory-mapped), lists;
            - a tokenizer's output, or any dict of a model's inputs;
            - ``(inputs, labels)``: tensors or arrays with one leading dimension;
            - a ``DataLoader``: the rows of its data set, each once, through its ``collate_fn``;
            - a data set of torch or Hugging Face, or a sequence of examples. An example is a
              tensor, a tuple or a dict, and the same each time it is asked for;
            - an iterable of examples without length: read once;
            - a list of strings, each a row, with ``tokenizer``;
            - a path: ``.npy``; ``.bin`` of uint16 ids as nanoGPT and llm.c write them; ``.npz`` of
              :meth:`rllc.Tokens.save`; a file of texts, with ``tokenizer``, packed as
              :func:`rllc.data.load_pile` packs.
        name: what results are labelled with; ``None``: the source's own, or ``"data"``.
        tokenizer: of the model; for texts.
        context_length: tokens of a row: a stream of ids is cut so, longer texts end there.
        column: of a Hugging Face data set, which one; ``None``: the model's inputs and labels, or
            the text.
        num_rows: at most so many rows; ``None``: all, of an iterable without length 10,000.

    Raises:
        InputError: of another kind, empty, or not the same at each reading.
        FileError: a file is missing or damaged.
    """
    given = _Given(name or "data", tokenizer, context_length, column, num_rows)
    data = given.data_of(source)
    if num_rows is not None and len(data) > num_rows:
        data = _first_rows(data, num_rows)
    if name is not None and data.name != name:
        data = _named(data, name)
    return data


@dataclass(frozen=True)
class _Given:
    """The arguments of :func:`as_data` beside the source."""

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    context_length: int | None
    column: str | None
    num_rows: int | None

    def data_of(self, source: Any) -> Data:
        if isinstance(source, Tensor | np.ndarray):
            return self._array(source)
        if isinstance(source, str | os.PathLike):
            return self._file(source)
        if isinstance(source, Mapping) and not hasattr(source, "column_names"):
            return self._fields(source)
        if isinstance(source, tuple):
            return self._parts(source)
        if isinstance(source, Data):
            return source
        if isinstance(source, list):
            return self._list(source)
        if isinstance(source, bytes | bytearray | set | frozenset):
            # They can be walked, but hold no rows in an order.
            raise self._of_unknown_kind(source)
        if type(source).__name__ in ("DataFrame", "Series"):
            raise InputError(
                f"`data` {self.name!r} is a {type(source).__name__}; say which columns are inputs "
                f"and which are labels: (frame[inputs].to_numpy(), frame['label'].to_numpy())."
            )
        if hasattr(source, "column_names") and hasattr(source, "features"):
            return self._columns(source)
        if isinstance(source, DataLoader):
            return self._loader(source)
        if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
            return self._rows(source, range(len(source)), to_example)
        if isinstance(source, Iterable):
            return self._iterable(source, to_example)
        raise self._of_unknown_kind(source)

    def _of_unknown_kind(self, source: object) -> InputError:
        return InputError(f"`data` {self.name!r} must be {_KINDS}; got {type(source).__name__}.")

    # Arrays.

    def _array(self, source: Tensor | np.ndarray) -> Data:
        if isinstance(source, np.ndarray):
            if source.dtype.kind not in "biuf":
                raise InputError(
                    f"`data` {self.name!r}: expected an array of numbers, got dtype {source.dtype}."
                )
            if source.dtype.kind in "iu" and (source.ndim == 2 or self.context_length):
                return self._ids(source)
            source = tensor_of(source)
        is_ids = not source.is_floating_point() and not source.is_complex()
        if source.dim() == 1 and is_ids:
            if self.context_length is None:
                raise InputError(
                    f"`data` {self.name!r}: one row of {len(source):,} token ids; rows are "
                    f"[row, pos]. Cut it with rllc.data.as_data(ids, context_length=…), or write "
                    f"ids[None] for one row."
                )
            return self._ids(source.numpy(force=True))
        if source.dim() == 2 and is_ids:
            return Tokens(source, self.name)
        return Tensors((source,), self.name)

    def _ids(self, ids: np.ndarray) -> Data:
        if ids.ndim == 1 or self.context_length is not None:
            ids = _cut(ids, self.context_length, self.name)
        if 4 * ids.size <= IN_MEMORY:
            return Tokens(torch.from_numpy(ids.astype(np.int64)), self.name)
        return TokenArray(ids, self.name)

    def _file(self, source: str | os.PathLike[str]) -> Data:
        path = Path(source).expanduser()
        task = f"reading data from {path}"
        if path.suffix in (".npy", ".npz", ".bin") and not path.is_file():
            raise FileError(f"{task}: there is no such file.")
        if path.suffix == ".npz":
            return Tokens.load(path)
        if path.suffix == ".npy":
            try:
                return self._array(np.load(path, mmap_mode="r", allow_pickle=False))
            except (ValueError, EOFError) as error:
                raise FileError(f"{task}: not a whole .npy file ({first_line(error)}).") from error
        if path.suffix == ".bin":
            return self._ids(_bin(path))
        if is_image_folder(path):
            return read_images(path, self.name)
        if self.tokenizer is None:
            raise InputError(
                f"`data` {self.name!r} must be {_KINDS}; got {type(source).__name__}: "
                f"{str(source)!r} is no .npy, .npz or .bin file; for one of texts pass a "
                f"tokenizer: rllc.data.as_data(path, tokenizer=tokenizer, context_length=…)."
            )
        from rllc.data.pile import load_pile

        return load_pile(
            source=source,
            tokenizer=self.tokenizer,
            context_length=self.context_length or 1024,
            column=self.column,
            num_rows=self.num_rows,
        )

    # Several arrays that belong together.

    def _parts(self, parts: Sequence[Any]) -> Data:
        if all(isinstance(part, Tensor) for part in parts):
            return Tensors(tuple(parts), self.name)
        try:
            tensors = tuple(tensor_of(part) for part in parts)
        except (TypeError, ValueError, RuntimeError):
            return Tensors(tuple(parts), self.name)
        return Tensors(tensors, self.name)

    def _fields(self, fields: Mapping[str, Any]) -> Data:
        if not is_batch(fields):
            raise InputError(
                f"`data` {self.name!r}: a dict of {sorted(map(str, fields))} is several data sets, "
                f"where one is expected; one batch has `labels` or one of "
                f"{', '.join(MODEL_INPUTS)}."
            )
        columns = {}
        for field, values in fields.items():
            if field not in NOT_INPUTS and values is not None:
                columns[field] = values
        ids = columns.get("input_ids")
        if ids is not None and not isinstance(ids, Tensor | np.ndarray):
            if len(ids) and not isinstance(ids[0], Iterable):
                raise InputError(
                    f"`data` {self.name!r}: `input_ids` is one row of ids; tokenize a list of "
                    f"texts, tokenizer([text])."
                )
            count = len(ids)
            examples = []
            for row in range(count):
                examples.append({field: values[row] for field, values in columns.items()})
            return rows_of_examples([to_example(example) for example in examples], self.name)
        tensors = {field: tensor_of(values) for field, values in columns.items()}
        return rows_of_fields(tensors, self.name)

    def _list(self, source: list[Any]) -> Data:
        if not source:
            raise InputError(f"`data` {self.name!r}: the list is empty.")
        first = source[0]
        if isinstance(first, str):
            return self._texts(source)
        if all(type(number) is int for number in source):
            return self._array(np.array(source))
        if isinstance(first, Tensor | np.ndarray):
            is_rows = all(_is_row_of_ids(part) for part in source)
            lengths = {len(part) if getattr(part, "ndim", 0) else -1 for part in source}
            if not is_rows and len(lengths) == 1 and -1 not in lengths:
                return self._parts(source)
        if isinstance(first, list) or _is_row_of_ids(first):
            rows = [to_example(row) for row in source]
            named: list[Example] = [{"input_ids": parts_of(row)[0]} for row in rows]
            return rows_of_examples(named, self.name)
        return self._rows(source, range(len(source)), to_example)

    def _texts(self, texts: Sequence[str], labels: Sequence[Any] | None = None) -> Data:
        if self.tokenizer is None:
            raise InputError(
                f"`data` {self.name!r} is a list of strings; pass the model's tokenizer: "
                f"rllc.data.as_data(texts, tokenizer=tokenizer), each text a row; or pack them "
                f"with rllc.data.tokenize(texts, tokenizer)."
            )
        options: dict[str, Any] = {}
        if self.context_length is not None:
            options = {"truncation": True, "max_length": self.context_length}
        encoded = self.tokenizer([without_surrogates(text) for text in texts], **options)
        fields = dict(encoded)
        if labels is not None:
            fields["labels"] = torch.as_tensor(labels)
        return self._fields(fields)

    # Data sets, loaders and other iterables.

    def _columns(self, source: Any) -> Data:
        """A data set of the library ``datasets``."""
        names = source.column_names
        if isinstance(names, Mapping):
            raise InputError(
                f"`data` {self.name!r} has several splits ({', '.join(names)}); take one, such as "
                f"dataset[{next(iter(names))!r}]."
            )
        if names is None:
            names = list(next(iter(source)))
        if self.column is not None and self.column not in names:
            raise InputError(
                f"`data` {self.name!r} has no column {self.column!r}; {nearest(self.column, names)}"
            )
        label = next((name for name in _LABELS if name in names), None)
        if self.column is not None:
            chosen = [self.column]
        elif any(name in MODEL_INPUTS for name in names):
            chosen = [name for name in names if name not in NOT_INPUTS]
            chosen = [name for name in chosen if not _is_text(source, name)]
        else:
            texts = [name for name in _TEXTS if name in names and _is_text(source, name)]
            chosen = texts[:1] or [name for name in names if not _is_text(source, name)]
        if not chosen:
            raise InputError(
                f"`data` {self.name!r}: none of the columns {', '.join(names)} is of numbers or "
                f"called {', '.join(_TEXTS)}; pass rllc.data.as_data(dataset, column=…)."
            )
        if len(chosen) == 1 and _is_text(source, chosen[0]):
            rows = list(islice(source, self.num_rows))
            labels = None if label is None else [row[label] for row in rows]
            return self._texts([row[chosen[0]] for row in rows], labels)

        def example(row: Mapping[str, Any]) -> Example:
            fields = {name: as_tensor(row[name]) for name in chosen}
            if len(chosen) > 1:
                return fields
            (only,) = fields.values()
            return {"input_ids": only} if _is_row_of_ids(only) else only

        if hasattr(source, "__len__"):
            return self._rows(source, range(len(source)), example)
        return self._iterable(source, example)

    def _loader(self, loader: DataLoader[Any]) -> Data:
        example = to_example
        if loader.collate_fn is not torch_collate and loader.batch_size is not None:
            example = Collated(loader.collate_fn)
        dataset: Any = loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            return self._iterable(dataset, example)
        sampler: Any = loader.sampler
        has_own_batches = type(loader.batch_sampler) not in (type(None), BatchSampler)
        if not has_own_batches and isinstance(sampler, SequentialSampler | RandomSampler):
            if getattr(sampler, "replacement", False):
                raise InputError(_weighted(self.name, "draws rows with replacement"))
            return self._rows(dataset, range(len(dataset)), example)
        if has_own_batches:
            batches: Any = loader.batch_sampler
            chosen = list(chain.from_iterable(batches))
        else:
            chosen = list(sampler)
        rows = sorted(set(map(int, chosen)))
        if len(rows) < len(chosen):
            raise InputError(_weighted(self.name, "gives rows more than once"))
        return self._rows(dataset, rows, example)

    def _rows(self, dataset: Any, rows: Sequence[int], example: Callable[[Any], Example]) -> Data:
        if self.num_rows is not None:
            rows = rows[: self.num_rows]
        if not len(rows):
            raise InputError(f"`data` {self.name!r}: {type(dataset).__name__} has no rows.")
        first = self._row(dataset, rows[0], example)
        again = self._row(dataset, rows[0], example)
        if not are_equal(first, again):
            raise InputError(
                f"`data` {self.name!r}: {type(dataset).__name__} gives another example each time "
                f"it is asked for row {rows[0]}, as random augmentation and masking do; the data "
                f"must stay the same. Switch it off, or store what it gave once."
            )
        reading = Reading()
        for row in rows:
            reading.add(self._row(dataset, row, example))
        if reading.examples is not None:
            return rows_of_examples(reading.examples, self.name)
        return Examples(dataset, tuple(rows), example, self.name, reading.digest(), reading.width)

    def _row(self, dataset: Any, row: int, example: Callable[[Any], Example]) -> Example:
        try:
            return example(dataset[row])
        except RllcError:
            raise
        except Exception as error:  # a data set of yours fails in ways of its own
            raise InputError(
                f"`data` {self.name!r}: {type(dataset).__name__} gives no row {row} "
                f"({type(error).__name__}: {first_line(error)}); data must be {_KINDS}."
            ) from error

    def _iterable(self, source: Iterable[Any], example: Callable[[Any], Example]) -> Data:
        most = _MOST_ROWS if self.num_rows is None else self.num_rows
        iterator = iter(source)
        rows = [example(item) for item in islice(iterator, most)]
        if not rows:
            raise InputError(
                f"`data` {self.name!r}: {type(source).__name__} gave no rows; an iterator can be "
                f"read only once, so give a list, or rllc.data.as_data(iterator) once."
            )
        if self.num_rows is None and next(iterator, None) is not None:
            warnings.warn(
                f"`data` {self.name!r}: {type(source).__name__} has no length; its first "
                f"{most:,} rows are taken. Say how many: rllc.data.as_data(source, num_rows=…).",
                stacklevel=4,
            )
        return rows_of_examples(rows, self.name)


def is_batch(fields: Mapping[Any, Any]) -> bool:
    """Whether a dict is one batch of a model's inputs, and not several data sets by name."""
    has_labels = len(fields) > 1 and any(name in fields for name in _LABELS)
    return has_labels or any(name in fields for name in MODEL_INPUTS)


# Files and smaller data.


def _is_row_of_ids(row: object) -> bool:
    if isinstance(row, Tensor):
        return row.dim() == 1 and is_integer(row)
    return isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in "iu"


def _is_text(source: Any, column: str) -> bool:
    feature = (source.features or {}).get(column)
    return str(getattr(feature, "dtype", "")) in ("string", "large_string")


def _cut(ids: np.ndarray, context_length: int | None, name: str) -> np.ndarray:
    """Rows of one length, from a stream of ids or from longer rows."""
    if context_length is None:
        raise InputError(
            f"`data` {name!r}: a stream of {len(ids):,} token ids; say how long a row is: "
            f"rllc.data.as_data(source, context_length=…)."
        )
    if context_length < 2:
        raise InputError(f"`data` {name!r}: `context_length` must be at least 2.")
    if ids.ndim == 2:
        return ids[:, :context_length]
    count = len(ids) // context_length
    if not count:
        raise InputError(
            f"`data` {name!r}: {len(ids):,} token ids do not fill a row of {context_length}."
        )
    return ids[: count * context_length].reshape(count, context_length)


def _bin(path: Path) -> np.ndarray:
    """The ids in a file of nanoGPT (bare uint16) or llm.c (with a header)."""
    size = path.stat().st_size
    if size >= 1024:
        header = np.fromfile(path, dtype="<i4", count=3)
        dtype = _LLM_C.get(int(header[0]))
        if dtype is not None:
            count = (size - 1024) // dtype.itemsize
            if count != int(header[2]):
                raise FileError(
                    f"reading {path}: its header promises {int(header[2]):,} tokens, but it holds "
                    f"{count:,}; copy it again."
                )
            return np.memmap(path, dtype=dtype, mode="r", offset=1024)
    if not size or size % 2:
        raise FileError(
            f"reading {path}: {size} bytes are no row of uint16 token ids, as nanoGPT writes them; "
            f"for other types pass np.memmap(path, dtype=…)."
        )
    return np.memmap(path, dtype="<u2", mode="r")


def _weighted(name: str, what: str) -> str:
    return (
        f"`data` {name!r}: the loader's sampler {what}, so its rows have weights that minibatches "
        f"here would not have; pass the data set itself, or a loader without that sampler."
    )


def _first_rows(data: Data, count: int) -> Data:
    if isinstance(data, Tokens):
        return data[:count]
    if isinstance(data, Tensors):
        return Tensors(tuple(part[:count] for part in data.parts), data.name, data.fields)
    if isinstance(data, TokenArray):
        return TokenArray(data.ids[:count], data.name)
    return data


def _named(data: Data, name: str) -> Data:
    if isinstance(data, Tokens):
        return Tokens(data.rows, name, data.dropped)
    if isinstance(data, Tensors):
        return Tensors(data.parts, name, data.fields)
    if isinstance(data, TokenArray):
        return TokenArray(data.ids, name)
    return data
