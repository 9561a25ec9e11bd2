"""Texts of the Pile and of its kin: JSON-lines files here or at a URL, and data sets of the Hugging Face hub.

Everything streams: reading stops as soon as enough rows are packed. A truncated file is an error, never a shorter
corpus.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rllc.data.packing import tokenize
from rllc.data.tokens import Tokens
from rllc.errors import FileError, InputError, first_line, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("text", "contents", "content", "code")
"""Where the text is looked for, in this order, when no column is named."""

PILE_SUBSETS = (
    "ArXiv", "BookCorpus2", "Books3", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "Wikipedia (en)",
    "YoutubeSubtitles",
)  # fmt: skip
"""The names that ``meta.pile_set_name`` takes in the Pile (Gao et al. 2020, table 1)."""

_PATIENCE = 100_000
"""Documents after which a subset that is none of the Pile's, and has not been seen, counts as a mistyped name."""

_CHUNK = 1 << 16


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
    """Read texts of the Pile, or of any such collection, and pack them into rows as the paper did (:func:`tokenize`).

    ``load_pile("Github", source="pile/train.jsonl.zst", tokenizer=tokenizer)``,
    ``load_pile(source="timaeus/pile-github", tokenizer=tokenizer, num_rows=1000)``,
    ``load_pile("Wikipedia (en)", source="NeelNanda/pile-10k", tokenizer=tokenizer)``.

    Args:
        subset: keep documents of this ``meta.pile_set_name`` only, such as ``"Github"``; ``None`` keeps all.
        source: a ``.jsonl`` or ``.jsonl.zst`` file (``.zst`` needs ``pip install "rllc[pile]"``); a folder of them;
            the URL of one (any that fsspec opens: ``https://``, ``hf://datasets/…``, ``s3://``); or a data set of the
            hub by id (``"monology/pile-uncopyrighted"``), with a revision if the result should stay the same
            (``"owner/name@revision"``).
        split: which file of a folder (``train.jsonl.zst``, or all of ``train/*.jsonl.zst``) or which split of a data
            set; a single file is read as it is.
        num_rows: at most so many rows; reading stops there. ``None`` reads everything.
        tokenizer: from :func:`load_tokenizer` or :func:`train_tokenizer`.
        context_length: tokens per row; 1024 in the paper.
        column: the key of the text; ``None`` takes the first of ``text``, ``contents``, ``content``, ``code`` that is
            there.
        name: of the result; default: the subset, else the source's name.

    Raises:
        InputError: an unknown subset or column, or too little text for a row.
        FileError: a file, URL or data set that is missing, truncated, damaged or not JSON lines (with file and line).
    """
    texts = pile_texts(subset, source=source, split=split, column=column)
    label = name or subset or re.sub(r"\.jsonl(\.zst)?$", "", Path(_without_query(source)).name)
    return tokenize(texts, tokenizer, context_length, name=label, num_rows=num_rows)


def pile_texts(
    subset: str | None = None,
    *,
    source: str | os.PathLike[str],
    split: str = "train",
    column: str | None = None,
) -> Iterator[str]:
    """The documents that :func:`load_pile` packs, one by one: for :func:`train_tokenizer`, or to look at.

    Args and Raises as :func:`load_pile`; errors in the arguments come at once, errors in the data where they stand.
    """
    if isinstance(source, os.PathLike) or _is_local(source):
        rows = _local_rows(Path(source).expanduser(), split)
    elif "://" in source:
        rows = _file_rows(source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", source):
        rows = _hub_rows(source, split)
    else:
        raise FileError(
            f"reading texts: {source!r} is not a file or folder here, a URL, or a data set of the hub (owner/name). "
            "Check the path; files end in .jsonl or .jsonl.zst."
        )
    return _texts(rows, subset, column, str(source))


def _is_local(source: str) -> bool:
    looks_local = source.startswith((".", "~", "/")) or source.endswith((".jsonl", ".jsonl.zst"))
    return "://" not in source and (looks_local or Path(source).exists())


def _local_rows(path: Path, split: str) -> Iterator[tuple[str, Any]]:
    if path.is_file():
        return _file_rows(str(path))
    if not path.is_dir():
        raise FileError(f"reading texts: there is no file or folder {path}. Check the path.")
    names = (f"{split}.jsonl.zst", f"{split}.jsonl")
    files = [path / name for name in names if (path / name).is_file()][:1]
    files = files or sorted([*(path / split).glob("*.jsonl.zst"), *(path / split).glob("*.jsonl")])
    if not files:
        splits = sorted({found.name.split(".jsonl")[0] for found in path.glob("*.jsonl*")})
        there = nearest(split, splits) if splits else "it holds no .jsonl or .jsonl.zst file"
        raise FileError(
            f"reading texts: the folder {path} has neither {names[0]} nor {names[1]} for split={split!r}; {there}"
        )
    return (row for file in files for row in _file_rows(str(file)))


def _file_rows(place: str) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file or URL, each with where it stands."""
    if _is_compressed(place):
        _zstandard(place)
    elif not _without_query(place).endswith(".jsonl"):
        raise FileError(f"reading {place}: expected a file that ends in .jsonl or .jsonl.zst.")
    return _parsed(place)


def _without_query(source: str | os.PathLike[str]) -> str:
    return str(source).split("?")[0] if "://" in str(source) else str(source)


def _is_compressed(place: str) -> bool:
    return _without_query(place).endswith(".zst")


def _parsed(place: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(place), start=1):
        if line.strip():
            where = f"{place}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # also bytes that are not UTF-8
                raise FileError(
                    f"reading {where}: not valid JSON ({error}). Every line must be one object such as "
                    '{"text": "…"}; if this is the last line, the file is cut off: copy or download it again.'
                ) from error
            yield where, row


def _lines(place: str) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(place):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _chunks(place: str) -> Iterator[bytes]:
    """The decompressed bytes of a file or URL; an error if it ends before its last zstd frame does."""
    with _opened(place) as file:
        raw = _read(file, place)
        yield from _decompressed(raw, place) if _is_compressed(place) else raw


def _opened(place: str) -> BinaryIO:
    try:
        return _open_url(place) if "://" in place else open(place, "rb")
    except Exception as error:  # each protocol has errors of its own
        raise FileError(
            f"opening {place}: {first_line(error)}. Check address and network, or download the file and give its path."
        ) from error


def _open_url(url: str) -> BinaryIO:
    """The only access to URLs; tests put a local file here. Bytes are fetched as they are read, not the whole file."""
    if url.startswith(("http://", "https://")):  # fsspec needs another package for these
        return urllib.request.urlopen(
            urllib.request.Request(url, headers={"User-Agent": "rllc"}), timeout=60
        )
    import fsspec

    return fsspec.open(url, "rb").open()


def _read(file: BinaryIO, place: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(_CHUNK)
        except Exception as error:  # as in _opened
            raise FileError(
                f"reading {place}: {first_line(error)}. Try again, or download the file first."
            ) from error
        if not chunk:
            break
        yield chunk
    missing = getattr(
        file, "length", None
    )  # of an HTTP response: what was announced and did not come
    if missing:
        raise FileError(
            f"reading {place}: the connection ended {missing:,} bytes too early. Try again, or download the file first."
        )


def _decompressed(chunks: Iterable[bytes], place: str) -> Iterator[bytes]:
    """Decompress zstd, frame after frame.

    zstandard's stream reader takes a truncated file for a whole one; a decompression object knows whether its frame
    has ended.
    """
    zstandard = _zstandard(place)
    frame = None
    ended = False
    for chunk in chunks:
        while chunk:
            if frame is None:  # files packed with --long need a window beyond the default limit
                frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise FileError(
                    f"reading {place}: not zstd, or damaged ({error}). Copy or download it again."
                ) from error
            ended = frame.eof
            chunk = frame.unused_data if ended else b""
            frame = None if ended else frame
    if not ended:
        raise FileError(
            f"reading {place}: truncated, it ends within a zstd frame. Copy or download it again."
        )


def _zstandard(place: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise FileError(
            f'reading {place}: .zst files need the zstandard package. Type: pip install "rllc[pile]"'
        ) from error
    return zstandard


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    name, _, revision = source.partition("@")
    what = f"reading the data set {source!r} of the hub, split {split!r}"
    try:
        rows = iter(_open_hub(name, split, revision or None))
    except (
        Exception
    ) as error:  # network, unknown id, unknown split, missing configuration: each another type
        raise FileError(
            f"{what}: {first_line(error)}. Check id, split and network (private data sets need HF_TOKEN), "
            "or give a .jsonl file."
        ) from error
    return _numbered(rows, what)


def _numbered(rows: Iterator[Any], what: str) -> Iterator[tuple[str, Any]]:
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as above: the network can fail at any row
            raise FileError(
                f"{what}: failed at document {number} ({first_line(error)}). Try again."
            ) from error
        yield f"{what}, document {number}", row
        number += 1


def _open_hub(name: str, split: str, revision: str | None) -> Iterable[Mapping[str, Any]]:
    """The only access to data sets of the hub; tests put a local data set here."""
    import datasets

    return datasets.load_dataset(name, split=split, revision=revision, streaming=True)


def _texts(
    rows: Iterable[tuple[str, Any]], subset: str | None, column: str | None, source: str
) -> Iterator[str]:
    seen: dict[str, int] = {}
    for where, row in rows:
        text = _text(row, column, where)
        if subset is not None:
            set_name = _set_name(row, where, subset)
            seen[set_name] = seen.get(set_name, 0) + 1
            if set_name != subset:
                if (
                    subset not in seen
                    and subset not in PILE_SUBSETS
                    and sum(seen.values()) >= _PATIENCE
                ):
                    break
                continue
        yield text
    if subset is not None and subset not in seen:
        known = nearest(subset, sorted(seen)) if seen else "there are no documents at all"
        raise InputError(
            f"reading {source}: no document of subset {subset!r} among {sum(seen.values()):,}; {known}"
        )


def _text(row: Any, column: str | None, where: str) -> str:
    if not isinstance(row, Mapping):
        raise FileError(
            f'reading {where}: expected an object such as {{"text": "…"}}, got {type(row).__name__}.'
        )
    key = column or next((key for key in COLUMNS if key in row), None)
    if key is None:
        raise InputError(
            f"reading {where}: none of the columns {', '.join(COLUMNS)}; give `column`: {_keys(row)}"
        )
    if key not in row:
        raise InputError(f"reading {where}: there is no column {key!r}; {nearest(key, row)}")
    if not isinstance(row[key], str):
        raise InputError(
            f"reading {where}: column {key!r} must hold text, got {type(row[key]).__name__}; "
            f"give `column`: {_keys(row)}"
        )
    return row[key]


def _set_name(row: Mapping[str, Any], where: str, subset: str) -> str:
    meta = row.get("meta")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("pile_set_name"), str):
        raise InputError(
            f"reading {where}: subset {subset!r} was asked for, but the documents have no meta.pile_set_name. "
            "Leave out `subset` to take all of them."
        )
    return meta["pile_set_name"]


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, islice(row, 12)))
