"""Texts of the Pile and of its kin, and rows packed from them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllc.data import sources
from rllc.data.packing import tokenize, without_surrogates
from rllc.data.sources import Document
from rllc.data.tokens import Tokens
from rllc.errors import FileError, InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("text", "contents", "content", "code")
"""Where the text is looked for, in this order, when no column is named."""

PILE_SUBSETS = (
    "ArXiv",
    "BookCorpus2",
    "Books3",
    "DM Mathematics",
    "Enron Emails",
    "EuroParl",
    "FreeLaw",
    "Github",
    "Gutenberg (PG-19)",
    "HackerNews",
    "NIH ExPorter",
    "OpenSubtitles",
    "OpenWebText2",
    "PhilPapers",
    "Pile-CC",
    "PubMed Abstracts",
    "PubMed Central",
    "StackExchange",
    "USPTO Backgrounds",
    "Ubuntu IRC",
    "Wikipedia (en)",
    "YoutubeSubtitles",
)
"""The names that ``meta.pile_set_name`` takes in the Pile (Gao et al. 2020, table 1)."""

_PATIENCE = 100_000
"""Documents after which a subset that is unknown and has not been seen counts as mistyped."""


def load_pile(
    subset: str | None = None,
    *,
    source: str | os.PathLike[str],
    split: str = "train",
    num_rows: int | None = None,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int = 1024,
    column: str | None = None,
    name: str | None = None,
) -> Tokens:
    """Read texts of the Pile, or of any such collection, and pack them into rows as the paper did.

    Reading streams and stops as soon as enough rows are packed. A truncated file is an error, never
    a shorter corpus. See :func:`tokenize` for the packing.

    >>> load_pile("Github", source="pile/train.jsonl.zst", tokenizer=tokenizer)     # doctest: +SKIP
    >>> load_pile(source="timaeus/pile-github", tokenizer=tokenizer, num_rows=99)   # doctest: +SKIP

    Args:
        subset: keep documents of this ``meta.pile_set_name`` only, such as ``"Github"``; ``None``
            keeps all.
        source: a file: ``.jsonl`` (an object a line), ``.json`` (a list of objects), ``.parquet``
            or ``.txt`` (one document), all but parquet also with ``.gz`` or ``.zst`` behind (the
            latter needs ``pip install "rllc[pile]"``); a folder of them;
            the URL of one (any that fsspec opens: ``https://``, ``hf://datasets/…``, ``s3://``);
            or a data set of the hub by id (``"monology/pile-uncopyrighted"``), with a revision if
            the result should stay the same (``"owner/name@revision"``).
        split: which file of a folder (``train.jsonl.zst``, or all files in ``train/`` or of
            the names ``train-*``) or which split of a data set; a single file is read as it is.
        num_rows: at most so many rows; reading stops there. ``None`` reads everything.
        tokenizer: from :func:`load_tokenizer` or :func:`train_tokenizer`.
        context_length: tokens per row; 1024 in the paper.
        column: the key of the text; ``None`` takes the first of ``text``, ``contents``,
            ``content``, ``code`` that the documents have.
        name: of the result; default: the subset, else the source's name.

    Raises:
        InputError: an unknown subset or column, or too little text for a row.
        FileError: a file, URL or data set that is missing, truncated, damaged or not JSON lines
            (with file and line).
    """
    texts = pile_texts(subset, source=source, split=split, column=column)
    label = name or subset or _name_of(source)
    return tokenize(texts, tokenizer, context_length, name=label, num_rows=num_rows)


def pile_texts(
    subset: str | None = None,
    *,
    source: str | os.PathLike[str],
    split: str = "train",
    column: str | None = None,
) -> Iterator[str]:
    """The documents that :func:`load_pile` packs, one by one.

    They serve :func:`train_tokenizer`, or to look at. Args and Raises as :func:`load_pile`; errors
    in the arguments come at once, errors in the data where they stand.
    """
    if isinstance(source, os.PathLike) or sources.is_local(source):
        documents = sources.documents_of_path(Path(source).expanduser(), split)
    elif "://" in source:
        documents = sources.documents_of_file(source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", source):
        documents = sources.documents_of_hub(source, split)
    else:
        raise FileError(
            f"reading texts: {source!r} is not a file or folder here, a URL, or a data set of the "
            f"hub (owner/name). Check the path; files end in "
            f"{sources.NAMES}."
        )
    return _texts(documents, subset, column, str(source))


def _name_of(source: str | os.PathLike[str]) -> str:
    return sources.stem_of(source)


# The texts of documents.


def _texts(
    documents: Iterable[Document], subset: str | None, column: str | None, source: str
) -> Iterator[str]:
    counts: dict[str, int] = {}
    nameless, first_nameless = 0, ""
    for place, row in documents:
        text = _text(row, column, place)
        if subset is None:
            yield text
            continue
        name = _subset_of(row)
        if name is None:
            nameless += 1
            first_nameless = first_nameless or place
            if not counts and nameless >= _PATIENCE:
                break
            continue
        counts[name] = counts.get(name, 0) + 1
        if name == subset:
            yield text
        elif _is_hopeless(subset, counts):
            break
    if nameless and not counts:
        raise InputError(
            f"reading {first_nameless}: subset {subset!r} was asked for, but the documents have no "
            f"meta.pile_set_name. Leave out `subset` to take all of them."
        )
    if subset is not None and subset not in counts:
        advice = nearest(subset, sorted(counts)) if counts else "there are no documents at all"
        raise InputError(
            f"reading {source}: no document of subset {subset!r} among {sum(counts.values()):,}; "
            f"{advice}"
        )


def _is_hopeless(subset: str, counts: Mapping[str, int]) -> bool:
    """Whether the subset is probably mistyped, so that reading on would take for ever."""
    if subset in counts or subset in PILE_SUBSETS:
        return False
    return sum(counts.values()) >= _PATIENCE


def _subset_of(row: Mapping[str, Any]) -> str | None:
    """The subset of a document, ``None`` if it says none.

    ``meta`` is an object, in the Pile; in copies of it also the object written as a string, or the
    name alone.
    """
    meta = row.get("meta")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except ValueError:
            return meta
    if isinstance(meta, str):
        return meta
    name = meta.get("pile_set_name") if isinstance(meta, Mapping) else None
    return name if isinstance(name, str) else None


def _text(row: Any, column: str | None, place: str) -> str:
    if not isinstance(row, Mapping):
        raise FileError(
            f'reading {place}: expected an object such as {{"text": "…"}}, got '
            f"{type(row).__name__}."
        )
    key = column or _first_column(row, place)
    if key not in row:
        raise InputError(f"reading {place}: there is no column {key!r}; {nearest(key, row)}")
    text = row[key]
    if not isinstance(text, str):
        raise InputError(
            f"reading {place}: column {key!r} must hold text, got {type(text).__name__}; "
            f"give `column`: {_keys(row)}"
        )
    return without_surrogates(text)


def _first_column(row: Mapping[str, Any], place: str) -> str:
    for key in COLUMNS:
        if key in row:
            return key
    raise InputError(
        f"reading {place}: none of the columns {', '.join(COLUMNS)}; give `column`: {_keys(row)}"
    )


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, islice(row, 12)))
