"""Rows of token ids: the value :class:`Tokens`, packing texts into it, and seeded minibatches of its rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from rllc.data.data import to_device
from rllc.errors import FileError, InputError
from rllc.files import load_arrays, save_arrays
from rllc.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LARGEST_ID = 2**31 - 1
_BLOCK = 1 << 18
"""Characters that are tokenised in one call: enough to keep every thread of the tokenizer busy, little to hold."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Which data: rows of token ids, all of one length, with a name and a hash of the contents.

    >>> Tokens([[4, 1, 2], [4, 3, 1]], name="toy")
    Tokens('toy': 2 rows x 3 positions)

    Args:
        rows: ids ``[row, pos]``: a tensor, a NumPy array or nested lists of integers. Kept as a contiguous int32
            tensor on the CPU; a tensor that already is one is not copied, so do not write to it afterwards.
        name: what results are labelled with, such as ``"code"``.
        dropped: tokens at the end of the texts that did not fill a row (:func:`tokenize` counts them; nothing is
            padded).

    Raises:
        InputError: no rows, rows shorter than 2 (there would be nothing to predict), rows of several lengths, or values
            that are not integers in 0 … 2³¹ - 1.
    """

    rows: torch.Tensor
    name: str = "tokens"
    dropped: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _checked(self.rows, f"making Tokens {self.name!r}"))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | torch.Tensor) -> Tokens: ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | torch.Tensor
    ) -> torch.Tensor | Tokens:
        """A row ``[pos]`` for an integer; ``Tokens`` of the chosen rows for a slice, a list or a mask."""
        if isinstance(index, int | np.integer):
            return self.rows[index]
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
        return replace(self, rows=self.rows[index], dropped=0)

    def __repr__(self) -> str:
        tail = f", {self.dropped:,} tokens of the tail dropped" if self.dropped else ""
        return f"Tokens({self.name!r}: {len(self):,} rows x {self.num_positions:,} positions{tail})"

    @property
    def num_positions(self) -> int:
        """The length of every row, in tokens."""
        return self.rows.shape[1]

    @cached_property
    def largest_id(self) -> int:
        """The largest id in the rows: a model needs a vocabulary of at least one more."""
        return int(self.rows.max())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the shape and the ids (as little-endian int32); the name has no part in it."""
        digest = hashlib.sha256(f"{len(self)} {self.num_positions}".encode())
        digest.update(self.rows.numpy().astype("<i4", copy=False))
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: ``(num_positions,)``."""
        return (self.num_positions,)

    def take(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The minibatch of the given rows: ids ``[batch, pos]``, int64, on ``device``."""
        return to_device(self.rows[rows].long(), device)

    def split(self, first: int | float) -> tuple[Tokens, Tokens]:
        """The first rows and the rest: ``first`` is a number of rows, or a fraction of them if it is a float.

        Rows keep their order, so neighbours that share a document mostly stay on one side.

        >>> Tokens([[0, 1]] * 10).split(0.9)
        (Tokens('tokens': 9 rows x 2 positions), Tokens('tokens': 1 rows x 2 positions))

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
        """Write rows, name and dropped to one atomic, checksummed ``.npz`` file."""
        header = {"kind": "rllc.Tokens", "name": self.name, "dropped": self.dropped}
        return save_arrays(path, {"rows": self.rows.numpy()}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: the file is missing or damaged, or holds something else than ``Tokens``.
        """
        arrays, header = load_arrays(path)
        if header.get("kind") != "rllc.Tokens":
            raise FileError(
                f"reading tokens from {path}: the file holds {header.get('kind', 'something else')}, not Tokens."
            )
        return cls(arrays["rows"], header["name"], header["dropped"])


def mix(name: str, *parts: Tokens, seed: int = 0) -> Tokens:
    """All rows of several ``Tokens`` as one, in a seeded shuffled order: a training mixture.

    >>> mix("all", Tokens([[0, 1]] * 2, "code"), Tokens([[2, 3]], "prose"))
    Tokens('all': 3 rows x 2 positions)

    Args:
        name: the name of the result.
        parts: two or more ``Tokens`` of one row length. Shares of the mixture are the parts' numbers of rows; take
            fewer rows of a part (``code[:1000]``) to lower its share.
        seed: of the order. Shuffled, so that a slice or :meth:`Tokens.split` of the mixture is a mixture too.

    Raises:
        InputError: no parts, or parts with rows of several lengths.
    """
    if len({part.num_positions for part in parts}) != 1:
        got = ", ".join(map(repr, parts)) or "nothing"
        raise InputError(
            f"mixing {name!r}: expected Tokens with rows of one length, got {got}. Use one context_length."
        )
    rows = torch.cat([part.rows for part in parts])
    order = torch.randperm(len(rows), generator=generator("mix", seed))
    return Tokens(rows[order], name, sum(part.dropped for part in parts))


def tokenize(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int = 1024,
    *,
    name: str = "tokens",
    num_rows: int | None = None,
    bos: Literal["row", "document"] = "row",
) -> Tokens:
    """Tokenise documents and pack them into full rows, without padding.

    With ``bos="row"`` (the paper): documents are joined by EOS, the stream is cut into pieces of ``context_length - 1``
    tokens, and BOS is put in front of every piece. Every row then starts alike, which induction and previous-token
    heads rely on as a resting place. With ``bos="document"``: BOS is put in front of every document instead and the
    stream is cut into pieces of ``context_length`` (how GPT-NeoX and Pythia were trained, for which BOS = EOS).
    Documents without tokens are skipped. Text that spells a special token, such as ``<|endoftext|>``, stays text.

    Args:
        texts: documents; read once, in order, and no further than ``num_rows`` needs.
        tokenizer: a transformers tokenizer with a BOS or EOS token (one stands in for the other when it is missing).
        context_length: tokens per row; 1024 in the paper.
        name: the name of the result, such as ``"code"``.
        num_rows: at most so many rows; ``None`` packs everything.
        bos: ``"row"`` or ``"document"``, see above.

    Returns:
        rows ``[row, context_length]``; ``dropped`` counts the tokens of the tail that did not fill a row (0 when
        ``num_rows`` ended the packing).

    Raises:
        InputError: the texts do not fill one row, are not strings, or an argument cannot be used.

    Reference: arXiv 2410.02984 and its data repository ``timaeus-research/paper-rllcs-2024``.
    """
    what = f"tokenising {name!r}"
    _check_packing(texts, tokenizer, context_length, num_rows, bos, what)
    start = _special(tokenizer, ("bos_token_id", "eos_token_id"), what)
    between = _special(tokenizer, ("eos_token_id", "bos_token_id"), what) if bos == "row" else start
    piece = context_length - 1 if bos == "row" else context_length
    wanted = float("inf") if num_rows is None else num_rows * piece
    stream: list[np.ndarray] = []
    count = 0
    for ids in _encode(texts, tokenizer, what):
        if stream or bos == "document":
            stream.append(np.array([between], dtype=np.int32))
            count += 1
        stream.append(ids)
        count += len(ids)
        if count >= wanted:
            break
    if count < piece:
        raise InputError(
            f"{what}: the texts gave {count:,} tokens, but one row takes {piece:,}. "
            f"Give more text, or a `context_length` below {max(count, 2):,}."
        )
    rows = min(count // piece, num_rows or count)
    cut = np.concatenate(stream)[: rows * piece].reshape(rows, piece)
    if bos == "row":
        cut = np.concatenate([np.full((rows, 1), start, dtype=np.int32), cut], axis=1)
    return Tokens(torch.from_numpy(cut), name, 0 if rows == num_rows else count - rows * piece)


class Minibatches:
    """Seeded, shuffled minibatches of row indices: batch ``t`` is a function of (num_rows, batch_size, seed, t) only.

    The stream of rows is one permutation of all rows after the other, permutation ``e`` seeded by ``(seed, e)``; batch
    ``t`` is its positions ``t * batch_size`` up to ``(t + 1) * batch_size``. So every row is used once before any is
    used again. No row is twice in one batch: where a batch spans two permutations, rows of the second that the batch
    already holds are moved back behind it. Every batch is thus a uniform draw without replacement, and batches can be
    asked for in any order.

    >>> batches = Minibatches(num_rows=10, batch_size=5, seed=0)
    >>> sorted(torch.cat([batches[0], batches[1]]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    Args:
        num_rows: rows of the data.
        batch_size: rows a batch, at most ``num_rows``.
        seed: an integer, or a tuple that says what the batches are for.

    Raises:
        InputError: ``batch_size`` is below 1 or there are fewer rows than a batch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int | tuple[Any, ...]) -> None:
        if batch_size < 1:
            raise InputError(
                f"making minibatches: `batch_size` must be at least 1, got {batch_size}."
            )
        if num_rows < batch_size:
            raise InputError(
                f"making minibatches: a batch of {batch_size} rows needs at least as many rows, got {num_rows}. "
                f"Give more data or batch_size={max(num_rows, 1)} or less."
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        # Only the last order is kept: batches are mostly asked for one after the other.
        self._last: tuple[int, torch.Tensor] | None = None

    def __repr__(self) -> str:
        return f"Minibatches(num_rows={self.num_rows}, batch_size={self.batch_size}, seed={self.seed!r})"

    def __getitem__(self, t: int) -> torch.Tensor:
        """Row indices ``[batch]`` of batch ``t`` (int64, CPU), ``t`` = 0, 1, 2, … without end."""
        if t < 0:
            raise InputError(
                f"taking minibatch {t}: the stream has a first batch, 0, and no last one; give t >= 0."
            )
        epoch, start = divmod(t * self.batch_size, self.num_rows)
        batch = self._order(epoch)[start : start + self.batch_size]
        missing = self.batch_size - len(batch)
        if not missing:
            return batch.clone()
        return torch.cat([batch, self._order(epoch + 1)[:missing]])

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches 0, 1, 2, … without end."""
        t = 0
        while True:
            yield self[t]
            t += 1

    def _order(self, epoch: int) -> torch.Tensor:
        """The rows of one epoch, in the order in which they are used.

        An order depends on the end of the one before, so it is built from the last epoch that surely does not: the one
        before (whose last rows are out of reach of its own repair at the front) when there are two batches or more in
        an epoch, else the last one that began together with a batch, at most ``batch_size`` epochs ago.
        """
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        if self.num_rows >= 2 * self.batch_size:
            known = max(epoch - 1, 0)
        else:
            period = self.batch_size // gcd(self.num_rows, self.batch_size)
            known = epoch - epoch % period
        if self._last is not None and known <= self._last[0] < epoch:
            known, order = self._last
        else:
            order = self._permutation(known)
        for following in range(known + 1, epoch + 1):
            order = self._repaired(order, following)
        self._last = (epoch, order)
        return order

    def _permutation(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self.num_rows, generator=generator("minibatches", self.seed, epoch))

    def _repaired(self, before: torch.Tensor, epoch: int) -> torch.Tensor:
        """The permutation of ``epoch``; rows that its first batch already holds from ``before`` moved behind it."""
        order = self._permutation(epoch)
        held = epoch * self.num_rows % self.batch_size
        if held == 0:
            return order
        # At most `held` of the first `batch_size` rows are old, so they hold the `batch_size - held` new ones.
        front = order[: self.batch_size]
        old = torch.isin(front, before[-held:])
        free = front[~old]
        missing = self.batch_size - held
        late = torch.sort(
            torch.cat([torch.nonzero(old)[:, 0], torch.nonzero(~old)[missing:, 0]])
        ).values
        return torch.cat([free[:missing], front[late], order[self.batch_size :]])


def _checked(rows: Any, what: str) -> torch.Tensor:
    rows = _as_tensor(rows, what)
    if rows.ndim != 2:
        raise InputError(
            f"{what}: `rows` must be [row, pos], got shape {list(rows.shape)}. Use rows[None] for one row."
        )
    if len(rows) < 1:
        raise InputError(f"{what}: there are no rows; the data is empty.")
    if rows.shape[1] < 2:
        raise InputError(
            f"{what}: rows must have at least 2 positions (a token and the next one to predict), got {rows.shape[1]}."
        )
    if rows.dtype.is_floating_point or rows.dtype.is_complex or rows.dtype == torch.bool:
        raise InputError(
            f"{what}: `rows` must hold integer token ids, got {rows.dtype}. Use tokenize(...) for texts."
        )
    if rows.dtype != torch.int32:
        rows = rows.to(torch.int64)  # unsigned types have no minimum and maximum in torch
    low, high = (int(bound) for bound in torch.aminmax(rows))
    if low < 0 or high > _LARGEST_ID:
        raise InputError(
            f"{what}: token ids must be in 0 … {_LARGEST_ID}, got {low if low < 0 else high}."
        )
    return rows.to("cpu", torch.int32).contiguous()


def _as_tensor(rows: Any, what: str) -> torch.Tensor:
    if isinstance(rows, torch.Tensor):
        return rows.detach()
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "iu":
        return torch.from_numpy(rows.astype(np.int64))
    try:
        each = [torch.as_tensor(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: `rows` must be [row, pos] integers, got {type(rows).__name__} ({error})."
        ) from error
    odd = next((i for i, row in enumerate(each) if row.shape != each[0].shape), None)
    if odd is not None:
        raise InputError(
            f"{what}: rows must all have one length, but row 0 has {each[0].numel()} positions and row {odd} has "
            f"{each[odd].numel()}. Pack texts with tokenize(...), or cut the rows to one length; nothing is padded."
        )
    return torch.stack(each) if each else torch.empty(0, 2, dtype=torch.int32)


def _check_packing(
    texts: Iterable[str],
    tokenizer: Any,
    context_length: int,
    num_rows: int | None,
    bos: str,
    what: str,
) -> None:
    if isinstance(texts, str):
        raise InputError(f"{what}: `texts` must be many documents, got one string. Use [text].")
    if not callable(tokenizer):
        raise InputError(
            f"{what}: `tokenizer` must be a transformers tokenizer, got {type(tokenizer).__name__}. "
            "Use load_tokenizer(id_or_folder) or train_tokenizer(texts)."
        )
    if context_length < 2:
        raise InputError(
            f"{what}: `context_length` must be at least 2 tokens, got {context_length}."
        )
    if num_rows is not None and num_rows < 1:
        raise InputError(f"{what}: `num_rows` must be at least 1, or None for all, got {num_rows}.")
    if bos not in ("row", "document"):
        raise InputError(f"{what}: `bos` must be 'row' or 'document', got {bos!r}.")


def _special(tokenizer: Any, names: tuple[str, ...], what: str) -> int:
    for name in names:
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    raise InputError(
        f"{what}: the tokenizer has neither a BOS nor an EOS token. Set one: tokenizer.eos_token = '<|endoftext|>' "
        "(a token of its vocabulary)."
    )


def _encode(texts: Iterable[str], tokenizer: Any, what: str) -> Iterator[np.ndarray]:
    """The ids of each document that has any, tokenised in blocks (several threads, one call)."""
    for block in _blocks(texts, what):
        encoded = tokenizer(
            block,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # rows are cut here; "longer than the maximum length" would alarm for nothing
        )
        for ids in encoded["input_ids"]:
            if ids:
                yield np.asarray(ids, dtype=np.int32)


def _blocks(texts: Iterable[str], what: str) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{what}: document {i} is not a string but {type(text).__name__}.")
        block.append(text)
        size += len(text) + 1  # so that empty documents, too, fill a block in the end
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
