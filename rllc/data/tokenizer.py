"""Tokenizers: train a byte-level BPE on any texts, or load one from a folder or the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllc.errors import FileError, InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""The one special token of a trained tokenizer: BOS and EOS at once, with the last id."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 5000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Any text is encoded without loss, and the same texts give the same tokenizer.

    >>> texts = ["to be or not to be, that is the question"] * 2
    >>> tokenizer = train_tokenizer(texts, vocab_size=265)
    >>> ids = tokenizer("not the be")["input_ids"]
    >>> len(tokenizer), tokenizer.bos_token_id, tokenizer.decode(ids)
    (265, 264, 'not the be')

    Args:
        texts: documents; read once. Some megabytes are enough, more only costs time.
        vocab_size: ids in all: 256 bytes, the learnt merges, and ``<|endoftext|>``, which is BOS
            and EOS and has the last id (4999 for the paper's 5000).

    Returns:
        a transformers tokenizer; ``tokenizer.save_pretrained(folder)`` keeps it, and
        :func:`load_tokenizer` reads it.

    Raises:
        InputError: ``vocab_size`` is below 257, or the texts are too few to fill it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if isinstance(texts, str):
        raise InputError(
            "training a tokenizer: `texts` must be many documents, got one string. Use [text]."
        )
    if vocab_size < 257:
        raise InputError(
            f"training a tokenizer: `vocab_size` must be at least 257 (256 bytes and "
            f"{END_OF_TEXT}), got {vocab_size}."
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_strings(texts), trainer)
    count = bpe.get_vocab_size() + 1
    if count != vocab_size:
        raise InputError(
            f"training a tokenizer: the texts are enough for {count} ids only, not "
            f"vocab_size={vocab_size}. Give more text, or vocab_size={count}."
        )
    # The trainer would give the special token the first id, and a token added to the finished
    # tokenizer would not count in `tokenizer.vocab_size`. So it is written into the vocabulary.
    state = json.loads(bpe.to_str())
    state["model"]["vocab"][END_OF_TEXT] = vocab_size - 1
    bpe = Tokenizer.from_str(json.dumps(state))
    bpe.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or from the hub by id, running no code of either.

    Args:
        source: a folder that ``save_pretrained`` wrote, a hub id such as
            ``"EleutherAI/pythia-14m"``, or an id with a revision, ``"owner/name@revision"``.

    Raises:
        FileError: there is no such folder or repository, or it holds no readable tokenizer.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        task = f"loading a tokenizer from the folder {folder}"
        advice = "Save one there: tokenizer.save_pretrained(folder)."
        return _read(str(folder), None, task, advice)
    text = os.fspath(source)
    is_path = isinstance(source, os.PathLike) or text.startswith((".", "~"))
    if is_path or folder.is_absolute():
        raise FileError(
            f"loading a tokenizer: there is no folder {folder}. "
            f"Make one: tokenizer.save_pretrained(folder)."
        )
    name, _, revision = text.partition("@")
    task = f"loading the tokenizer {text!r} from the hub"
    advice = (
        "Check the id and the network (private repositories need HF_TOKEN), or give a folder that "
        "tokenizer.save_pretrained(folder) wrote."
    )
    return _read(name, revision or None, task, advice)


def _read(name: str, revision: str | None, task: str, advice: str) -> PreTrainedTokenizerBase:
    try:
        return _from_pretrained(name, revision)
    except Exception as error:  # a damaged tokenizer.json is a bare Exception of the Rust library
        raise FileError(
            f"{task}: no tokenizer could be read ({first_line(error)}). {advice}"
        ) from error


def _from_pretrained(name: str, revision: str | None) -> Any:
    """The only access to the hub for tokenizers; tests put a local folder in its place."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"training a tokenizer: document {i} is not a string but {kind}.")
        yield text
