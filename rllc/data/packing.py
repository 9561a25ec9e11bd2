"""Packing: documents are tokenised and cut into full rows, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rllc.data.tokens import Tokens
from rllc.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 1 << 18
"""Characters tokenised in one call: enough to keep every thread of the tokenizer busy."""


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

    With ``bos="row"`` (the paper): documents are joined by EOS, the stream is cut into pieces of
    ``context_length - 1`` tokens, and BOS is put in front of every piece. Every row then starts
    alike, which induction and previous-token heads rely on as a resting place. With
    ``bos="document"``: BOS is put in front of every document instead and the stream is cut into
    pieces of ``context_length`` (how GPT-NeoX and Pythia were trained, for which BOS = EOS).
    Documents without tokens are skipped. Text that spells a special token, such as
    ``<|endoftext|>``, stays text.

    Args:
        texts: documents; read once, in order, and no further than ``num_rows`` needs.
        tokenizer: a transformers tokenizer with a BOS or EOS token (one stands in for the other
            when it is missing).
        context_length: tokens per row; 1024 in the paper.
        name: the name of the result, such as ``"code"``.
        num_rows: at most so many rows; ``None`` packs everything.
        bos: ``"row"`` or ``"document"``, see above.

    Returns:
        rows ``[row, context_length]``; ``dropped`` counts the tokens of the tail that did not fill
        a row (0 when ``num_rows`` ended the packing).

    Raises:
        InputError: the texts do not fill one row, are not strings, or an argument cannot be used.

    Reference: arXiv 2410.02984 and its data repository ``timaeus-research/paper-rllcs-2024``.
    """
    task = f"tokenising {name!r}"
    _check_texts(texts, tokenizer, task)
    _check_sizes(context_length, num_rows, bos, task)
    start = _special_id(tokenizer, ("bos_token_id", "eos_token_id"), task)
    documents = _encode(texts, tokenizer, task)
    if bos == "row":
        separator = _special_id(tokenizer, ("eos_token_id", "bos_token_id"), task)
        pieces = _joined(documents, separator)
        piece_length = context_length - 1
    else:
        pieces = _each_after(documents, start)
        piece_length = context_length
    stream = _read_stream(pieces, None if num_rows is None else num_rows * piece_length)
    if len(stream) < piece_length:
        raise InputError(
            f"{task}: the texts gave {len(stream):,} tokens, but one row takes {piece_length:,}. "
            f"Give more text, or a `context_length` below {max(len(stream), 2):,}."
        )
    count = min(len(stream) // piece_length, num_rows or len(stream))
    rows = stream[: count * piece_length].reshape(count, piece_length)
    if bos == "row":
        starts = np.full((count, 1), start, dtype=np.int32)
        rows = np.concatenate([starts, rows], axis=1)
    # Packing that num_rows ended has no tail: the rest of the texts was not read.
    dropped = 0 if count == num_rows else len(stream) - count * piece_length
    return Tokens(torch.from_numpy(rows), name, dropped)


def _check_texts(texts: Iterable[str], tokenizer: Any, task: str) -> None:
    if isinstance(texts, str):
        raise InputError(f"{task}: `texts` must be many documents, got one string. Use [text].")
    if not callable(tokenizer):
        raise InputError(
            f"{task}: `tokenizer` must be a transformers tokenizer, got "
            f"{type(tokenizer).__name__}. Use load_tokenizer(id_or_folder) or "
            f"train_tokenizer(texts)."
        )


def _check_sizes(context_length: int, num_rows: int | None, bos: str, task: str) -> None:
    if context_length < 2:
        raise InputError(
            f"{task}: `context_length` must be at least 2 tokens, got {context_length}."
        )
    if num_rows is not None and num_rows < 1:
        raise InputError(f"{task}: `num_rows` must be at least 1, or None for all, got {num_rows}.")
    if bos not in ("row", "document"):
        raise InputError(f"{task}: `bos` must be 'row' or 'document', got {bos!r}.")


def _special_id(tokenizer: Any, names: tuple[str, ...], task: str) -> int:
    for name in names:
        token_id = getattr(tokenizer, name, None)
        if token_id is not None:
            return int(token_id)
    raise InputError(
        f"{task}: the tokenizer has neither a BOS nor an EOS token. Set one: "
        "tokenizer.eos_token = '<|endoftext|>' (a token of its vocabulary)."
    )


def without_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs, which are no characters, by U+FFFD.

    Web texts cut in JSON hold them, and tokenizers cannot encode them.

    >>> without_surrogates("a\\ud83d b")
    'a� b'
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# The stream of tokens.


def _joined(documents: Iterable[np.ndarray], separator: int) -> Iterator[np.ndarray]:
    """The documents with ``separator`` between them."""
    for i, ids in enumerate(documents):
        yield np.insert(ids, 0, separator) if i else ids


def _each_after(documents: Iterable[np.ndarray], start: int) -> Iterator[np.ndarray]:
    """The documents with ``start`` in front of each."""
    for ids in documents:
        yield np.insert(ids, 0, start)


def _read_stream(pieces: Iterable[np.ndarray], num_tokens: int | None) -> np.ndarray:
    """All tokens, or as many pieces as it takes to have ``num_tokens``."""
    stream = [np.empty(0, dtype=np.int32)]
    count = 0
    for piece in pieces:
        stream.append(piece)
        count += len(piece)
        if num_tokens is not None and count >= num_tokens:
            break
    return np.concatenate(stream)


def _encode(texts: Iterable[str], tokenizer: Any, task: str) -> Iterator[np.ndarray]:
    """The ids of each document that has any, tokenised in blocks (several threads, one call)."""
    for block in _blocks(texts, task):
        encoded = tokenizer(
            block,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            # Rows are cut later, so a warning of documents over the maximum length would be false.
            verbose=False,
        )
        for ids in encoded["input_ids"]:
            if ids:
                yield np.asarray(ids, dtype=np.int32)


def _blocks(texts: Iterable[str], task: str) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{task}: document {i} is not a string but {type(text).__name__}.")
        block.append(without_surrogates(text))
        # One more than its length, so that empty documents, too, fill a block in the end.
        size += len(text) + 1
        if size >= _BLOCK:
            yield block
            block = []
            size = 0
    if block:
        yield block
