"""Where documents come from: files and folders of texts, URLs, and data sets of the hub.

Everything streams: nothing is read further than it is asked for. A truncated file is an error,
never a shorter corpus.
"""

from __future__ import annotations

import io
import json
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rllc.errors import FileError, first_line, nearest
from rllc.storage.npz import check_unpacked

Document = tuple[str, Any]
"""Where a document stands, in words, and the JSON value that was read."""

FORMATS = (".jsonl", ".json", ".parquet", ".txt")
"""Ends of names that can be read."""

COMPRESSIONS = (".zst", ".gz")
"""Ends that may follow one of these; parquet is compressed inside."""

NAMES = ".jsonl or .jsonl.zst, .json, .parquet or .txt (.gz and .zst may follow)"
"""Both lists in words, for errors."""

_CHUNK = 1 << 16
"""Bytes read at once."""

_PIECE = 1 << 12
"""Bytes of zstd that are unpacked at once."""


def is_local(source: str) -> bool:
    """Whether a source is a path on this machine, be there a file or not."""
    if "://" in source:
        return False
    looks_local = source.startswith((".", "~", "/")) or format_of(source) is not None
    return looks_local or Path(source).exists()


def without_query(source: str | os.PathLike[str]) -> str:
    """A path as it is; a URL without ``?…``."""
    text = str(source)
    return text.split("?")[0] if "://" in text else text


def format_of(place: str | os.PathLike[str]) -> str | None:
    """The end of a name that says how a file is read; ``None`` if it cannot be read.

    >>> format_of("pile/00.jsonl.zst"), format_of("a.pdf")
    ('.jsonl', None)
    """
    name = without_query(place)
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    return next((kind for kind in FORMATS if name.endswith(kind)), None)


def stem_of(place: str | os.PathLike[str]) -> str:
    """The name of a file without what says how it is read."""
    name = Path(without_query(place)).name
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    kind = format_of(place)
    return name if kind is None else name.removesuffix(kind)


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
    for kind in FORMATS:
        for end in (*COMPRESSIONS, ""):
            file = folder / f"{split}{kind}{end}"
            if file.is_file():
                return [file]
    # Shards in a folder of the split's name, or as the hub names them: train-00000-of-00002.
    shards = [*(folder / split).glob("*"), *folder.glob(f"{split}-*")]
    shards = [file for file in shards if file.is_file() and format_of(file)]
    if shards:
        return sorted(shards)
    readable = [file for file in folder.iterdir() if file.is_file() and format_of(file)]
    splits = sorted({stem_of(file) for file in readable})
    empty = "it holds no .jsonl or .jsonl.zst file, nor a .json, .parquet or .txt"
    advice = nearest(split, splits) if splits else empty
    raise FileError(
        f"reading texts: the folder {folder} has neither {split}.jsonl.zst nor {split}.jsonl "
        f"for split={split!r}; {advice}"
    )


def documents_of_file(place: str) -> Iterator[Document]:
    """The documents of a file or URL. A name that cannot be read is an error at once."""
    kind = format_of(place)
    if kind is None:
        raise FileError(f"reading {place}: expected a file that ends in {NAMES}.")
    if without_query(place).endswith(".zst"):
        _import_zstandard(place)
    readers = {".txt": _whole_text, ".json": _json, ".parquet": _parquet}
    return readers.get(kind, _parsed)(place)


def _parsed(place: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(_chunks(place)), start=1):
        if line.strip():
            place_of_line = f"{place}, line {number}"
            yield place_of_line, _from_json(line, place_of_line)


def _whole_text(place: str) -> Iterator[Document]:
    """One document: the whole file."""
    contents = b"".join(_chunks(place))
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"reading {place}: not UTF-8 ({error}); convert it, or give another file."
        ) from error
    if text:
        yield place, {"text": text}


def _json(place: str) -> Iterator[Document]:
    """A list of documents, one document, or, under the wrong name, JSON lines."""
    contents = b"".join(_chunks(place)).strip()
    first = contents.partition(b"\n")[0]
    if not contents.startswith(b"[") and _is_json(first):
        for number, line in enumerate(contents.split(b"\n"), start=1):
            if line.strip():
                place_of_line = f"{place}, line {number}"
                yield place_of_line, _from_json(line, place_of_line)
        return
    value = _from_json(contents, place)
    for number, document in enumerate(value if isinstance(value, list) else [value]):
        yield f"{place}, document {number}", document


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parquet(place: str) -> Iterator[Document]:
    """The rows of a parquet file, a batch at a time."""
    import pyarrow.parquet

    with _opened(place) as file:
        seekable = file if file.seekable() else io.BytesIO(b"".join(_read(file, place)))
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(seekable).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield f"{place}, row {number}", row
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise FileError(
                f"reading {place}: not parquet, or damaged, at row {number} "
                f"({first_line(error)}). Copy or download it again."
            ) from error


def _from_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also raised for bytes that are not UTF-8
        raise FileError(
            f"reading {place}: not valid JSON ({error}). Every line must be one object such as "
            '{"text": "…"}; if this is the last line, the file is cut off: copy or download it '
            "again."
        ) from error


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # The pieces of a long line are joined once, at its end, so that its time is linear.
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for line in others:
            yield b"".join(pieces)
            pieces = [line]
    yield b"".join(pieces)


def _chunks(place: str) -> Iterator[bytes]:
    """The decompressed bytes of a file or URL."""
    with _opened(place) as file:
        chunks = _read(file, place)
        name = without_query(place)
        if name.endswith(".zst"):
            yield from _bounded(_decompressed, chunks, place)
        elif name.endswith(".gz"):
            yield from _bounded(_gunzipped, chunks, place)
        else:
            yield from chunks


def _bounded(
    unpack: Callable[[Iterable[bytes], str], Iterator[bytes]], chunks: Iterable[bytes], place: str
) -> Iterator[bytes]:
    """Unpack, and stop where so much comes of so little as of no text."""
    packed = 0
    unpacked = 0

    def counted() -> Iterator[bytes]:
        nonlocal packed
        for chunk in chunks:
            packed += len(chunk)
            yield chunk

    for piece in unpack(counted(), place):
        unpacked += len(piece)
        check_unpacked(place, unpacked, packed)
        yield piece


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
            # Four bytes may stand for 128 kB, so a whole chunk may be more than fits in memory.
            piece, rest = chunk[:_PIECE], chunk[_PIECE:]
            try:
                yield frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise FileError(
                    f"reading {place}: not zstd, or damaged ({error}). Copy or download it again."
                ) from error
            has_ended = frame.eof
            chunk = rest
            if has_ended:
                chunk = frame.unused_data + rest
                frame = None
    if not has_ended:
        raise FileError(
            f"reading {place}: truncated, it ends within a zstd frame. Copy or download it again."
        )


def _gunzipped(chunks: Iterable[bytes], place: str) -> Iterator[bytes]:
    """Decompress gzip, member after member."""
    member = None
    for chunk in chunks:
        while chunk:
            if member is None:
                if not chunk.strip(b"\0"):
                    break  # some programs fill the end of a file with zeros
                member = zlib.decompressobj(wbits=31)
            try:
                yield member.decompress(chunk)
            except zlib.error as error:
                raise FileError(
                    f"reading {place}: not gzip, or damaged ({error}). Copy or download it again."
                ) from error
            chunk = member.unused_data
            if member.eof:
                member = None
    if member is not None:
        raise FileError(
            f"reading {place}: truncated, it ends within gzip data. Copy or download it again."
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
