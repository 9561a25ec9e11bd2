"""Where documents come from: JSON-lines files and folders, URLs, and data sets of the hub.

Everything streams: nothing is read further than it is asked for. A truncated file is an error,
never a shorter corpus.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rllc.errors import FileError, first_line, nearest

Document = tuple[str, Any]
"""Where a document stands, in words, and the JSON value that was read."""

_CHUNK = 1 << 16
"""Bytes read at once."""


def is_local(source: str) -> bool:
    """Whether a source is a path on this machine, be there a file or not."""
    if "://" in source:
        return False
    looks_local = source.startswith((".", "~", "/")) or source.endswith((".jsonl", ".jsonl.zst"))
    return looks_local or Path(source).exists()


def without_query(source: str | os.PathLike[str]) -> str:
    """A path as it is; a URL without ``?…``."""
    text = str(source)
    return text.split("?")[0] if "://" in text else text


# Files, folders and URLs.


def documents_of_path(path: Path, split: str) -> Iterator[Document]:
    """The documents of a file, or of the files of one split in a folder."""
    if path.is_file():
        return documents_of_file(str(path))
    if not path.is_dir():
        raise FileError(f"reading texts: there is no file or folder {path}. Check the path.")
    # All files are checked before the first is read.
    documents = [documents_of_file(str(file)) for file in _files_of_split(path, split)]
    return (document for of_file in documents for document in of_file)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    names = (f"{split}.jsonl.zst", f"{split}.jsonl")
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
    shards = [*(folder / split).glob("*.jsonl.zst"), *(folder / split).glob("*.jsonl")]
    if shards:
        return sorted(shards)
    splits = sorted({file.name.split(".jsonl")[0] for file in folder.glob("*.jsonl*")})
    advice = nearest(split, splits) if splits else "it holds no .jsonl or .jsonl.zst file"
    raise FileError(
        f"reading texts: the folder {folder} has neither {names[0]} nor {names[1]} for "
        f"split={split!r}; {advice}"
    )


def documents_of_file(place: str) -> Iterator[Document]:
    """The documents of a file or URL. A name that cannot be read is an error at once."""
    if _is_compressed(place):
        _import_zstandard(place)
    elif not without_query(place).endswith(".jsonl"):
        raise FileError(f"reading {place}: expected a file that ends in .jsonl or .jsonl.zst.")
    return _parsed(place)


def _is_compressed(place: str) -> bool:
    return without_query(place).endswith(".zst")


def _parsed(place: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(place), start=1):
        if line.strip():
            place_of_line = f"{place}, line {number}"
            yield place_of_line, _from_json(line, place_of_line)


def _from_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # also raised for bytes that are not UTF-8
        raise FileError(
            f"reading {place}: not valid JSON ({error}). Every line must be one object such as "
            '{"text": "…"}; if this is the last line, the file is cut off: copy or download it '
            "again."
        ) from error


def _lines(place: str) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(place):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _chunks(place: str) -> Iterator[bytes]:
    """The decompressed bytes of a file or URL."""
    with _opened(place) as file:
        chunks = _read(file, place)
        yield from _decompressed(chunks, place) if _is_compressed(place) else chunks


def _opened(place: str) -> BinaryIO:
    try:
        return _open_url(place) if "://" in place else open(place, "rb")
    except Exception as error:  # each protocol has errors of its own
        raise FileError(
            f"opening {place}: {first_line(error)}. Check address and network, or download the "
            f"file and give its path."
        ) from error


def _open_url(url: str) -> BinaryIO:
    """The only access to URLs; tests put a local file in its place.

    Bytes are fetched as they are read, not the whole file.
    """
    if url.startswith(("http://", "https://")):
        # fsspec needs another package for these.
        request = urllib.request.Request(url, headers={"User-Agent": "rllc"})
        return urllib.request.urlopen(request, timeout=60)
    import fsspec

    return fsspec.open(url, "rb").open()


def _read(file: BinaryIO, place: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(_CHUNK)
        except Exception as error:  # each protocol has errors of its own
            raise FileError(
                f"reading {place}: {first_line(error)}. Try again, or download the file first."
            ) from error
        if not chunk:
            break
        yield chunk
    # An HTTP response knows how many of the announced bytes did not come.
    missing = getattr(file, "length", None)
    if missing:
        raise FileError(
            f"reading {place}: the connection ended {missing:,} bytes too early. Try again, or "
            f"download the file first."
        )


def _decompressed(chunks: Iterable[bytes], place: str) -> Iterator[bytes]:
    """Decompress zstd, frame after frame.

    zstandard's stream reader takes a truncated file for a complete one; a decompression object
    knows whether its frame has ended.
    """
    zstandard = _import_zstandard(place)
    frame = None
    has_ended = False
    for chunk in chunks:
        while chunk:
            if frame is None:
                # Files packed with --long need a window beyond the default limit.
                frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise FileError(
                    f"reading {place}: not zstd, or damaged ({error}). Copy or download it again."
                ) from error
            has_ended = frame.eof
            chunk = b""
            if has_ended:
                chunk = frame.unused_data
                frame = None
    if not has_ended:
        raise FileError(
            f"reading {place}: truncated, it ends within a zstd frame. Copy or download it again."
        )


def _import_zstandard(place: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise FileError(
            f"reading {place}: .zst files need the zstandard package. "
            'Type: pip install "rllc[pile]"'
        ) from error
    return zstandard


# The hub.


def documents_of_hub(source: str, split: str) -> Iterator[Document]:
    """The documents of a data set of the hub: ``owner/name`` or ``owner/name@revision``."""
    name, _, revision = source.partition("@")
    task = f"reading the data set {source!r} of the hub, split {split!r}"
    try:
        rows = iter(_open_hub(name, split, revision or None))
    except Exception as error:
        # Network, unknown id, unknown split and missing configuration each raise another type.
        raise FileError(
            f"{task}: {first_line(error)}. Check id, split and network (private data sets need "
            "HF_TOKEN), or give a .jsonl file."
        ) from error
    return _numbered(rows, task)


def _numbered(rows: Iterator[Any], task: str) -> Iterator[Document]:
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the network can fail at any row
            raise FileError(
                f"{task}: failed at document {number} ({first_line(error)}). Try again."
            ) from error
        yield f"{task}, document {number}", row
        number += 1


def _open_hub(name: str, split: str, revision: str | None) -> Iterable[Mapping[str, Any]]:
    """The only access to data sets of the hub; tests put a local data set in its place."""
    import datasets

    return datasets.load_dataset(name, split=split, revision=revision, streaming=True)
