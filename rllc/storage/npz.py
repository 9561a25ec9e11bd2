"""Reading ``.npz`` files: without objects, quickly, and within bounded memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from rllc.errors import FileError, InputError

SEAL = 64
"""Characters of a SHA-256 in hexadecimal: the end of the zip's comment, and so of the file."""

COMMENT = b"sha256:"
"""The beginning of the zip's comment."""

_LOCAL_HEADER = 30
"""Bytes before the name of an entry of a zip."""

NPY = ".npy"
"""What NumPy adds to an array's name in its files."""

_MAGIC = b"\x93NUMPY"
"""The first bytes of a ``.npy``."""

_UNPACKED = 2**28
"""Bytes that any file may unpack to."""

_RATIO = 200
"""How many times larger than the file contents may be beyond that. Noise shrinks by a tenth, and
rows of token ids by ten; a file of zeros shrinks by a thousand."""

_ALLOWED = "RLLC_MAX_UNPACKED"
"""The variable of the environment that allows more."""


def arrays_in(
    file: BinaryIO, path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, as ``np.load`` reads them, in a tenth of its time.

    Args:
        file: the file, opened.
        path: its name, for the error.
        names: of those that are read; ``None``: all.
    """
    entries = {entry.filename: entry for entry in _entries_in(file)}
    unpacked = sum(entry.file_size for entry in entries.values())
    check_unpacked(path, unpacked, os.fstat(file.fileno()).st_size)
    arrays = {}
    for name in entries if names is None else names:
        arrays[name.removesuffix(NPY)] = _array_of(_unpacked(file, entries[name]))
    return arrays


class _Entry(NamedTuple):
    """Where something is in a zip, by the names of :class:`zipfile.ZipInfo`."""

    filename: str
    flag_bits: int
    compress_type: int
    CRC: int
    compress_size: int
    file_size: int
    header_offset: int


_END = struct.Struct("<4s4H2LH")
"""The end of a zip before its comment: how many entries it has, and where they are listed."""

_LISTED = struct.Struct("<4s6H3L5H2L")
"""The fixed part of an entry in the list."""

_IN_OTHER_FIELD = 0xFFFFFFFF
"""Says that a size is too large for its field, and stands elsewhere."""


def _entries_in(file: BinaryIO) -> list[_Entry]:
    """What is in a zip. Of one of ours the list is read at once, of others by ``zipfile``."""
    comment = len(COMMENT) + SEAL
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END.size - comment, 0))
    end = file.read(_END.size)
    if len(end) == _END.size and end.startswith(b"PK\x05\x06"):
        _, _, _, _, count, length, start, of_comment = _END.unpack(end)
        if of_comment == comment and count < 0xFFFF:
            file.seek(start)
            entries = _listed(file.read(length), count)
            if not any(_IN_OTHER_FIELD in entry for entry in entries):
                return entries
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    return [_Entry(*(getattr(entry, name) for name in _Entry._fields)) for entry in members]


def _listed(contents: bytes, count: int) -> list[_Entry]:
    entries = []
    at = 0
    for _ in range(count):
        fields = _LISTED.unpack_from(contents, at)
        sign, _, _, flags, packing, _, _, checksum, packed, unpacked = fields[:10]
        of_name, of_extra, of_comment, _, _, _, offset = fields[10:]
        if sign != b"PK\x01\x02":
            raise ValueError("its list of contents is broken")
        at += _LISTED.size
        name = contents[at : at + of_name].decode()
        at += of_name + of_extra + of_comment
        entries.append(_Entry(name, flags, packing, checksum, packed, unpacked, offset))
    return entries


def _unpacked(file: BinaryIO, entry: _Entry) -> bytes:
    """The bytes of one entry, which are read in one piece.

    ``zipfile`` reads them in several, so that an entry may be larger than the memory; for thousands
    of small files that takes longer than all the rest.
    """
    file.seek(entry.header_offset)
    start = file.read(_LOCAL_HEADER)
    # Behind the fixed part stand a name and further fields, whose lengths are its last numbers.
    lengths = int.from_bytes(start[-4:-2], "little") + int.from_bytes(start[-2:], "little")
    if not start.startswith(b"PK\x03\x04") or entry.flag_bits & 1:
        raise ValueError(f"{entry.filename!r} is no entry that can be read")
    file.seek(lengths, os.SEEK_CUR)
    contents = file.read(entry.compress_size)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        # No more than is announced, whatever there is.
        contents = zlib.decompressobj(-zlib.MAX_WBITS).decompress(contents, entry.file_size + 1)
    elif entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename!r} is packed in a way that rllc does not use")
    if len(contents) != entry.file_size or zlib.crc32(contents) != entry.CRC:
        raise ValueError(f"{entry.filename!r} does not match its own checksum")
    return contents


def _array_of(contents: bytes) -> np.ndarray:
    """The array in the bytes of a ``.npy``; one of objects is refused."""
    version = contents[len(_MAGIC)]
    size = 2 if version == 1 else 4
    begin = len(_MAGIC) + 2 + size
    begin += int.from_bytes(contents[begin - size : begin], "little")
    dtype, shape, columns_first = _npy_header(contents[:begin])
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    order: Literal["C", "F"] = "F" if columns_first else "C"
    # A copy, because what is in bytes cannot be written to.
    return np.ndarray(shape, dtype, contents, begin, order=order).copy(order)


@lru_cache(maxsize=256)
def _npy_header(contents: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Type, shape and order of a ``.npy``: the same few headers stand in all files of a sweep."""
    stream = io.BytesIO(contents)
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, columns_first, dtype = read[version](stream)
    return dtype, shape, columns_first


def check_unpacked(path: str | os.PathLike[str], unpacked: int, packed: int) -> None:
    """Refuse a file whose contents are far larger than itself, before they are in memory.

    Contents of up to 268 MB are always read, and larger ones where they are at most 200 times as
    large as the file. ``RLLC_MAX_UNPACKED=64e9`` in the environment allows 64 GB of any file.

    >>> check_unpacked("cells/a.npz", unpacked=6_000_000, packed=20_000)

    Args:
        path: the file.
        unpacked: bytes of its contents.
        packed: bytes of the file.

    Raises:
        FileError: it is refused.
        InputError: ``RLLC_MAX_UNPACKED`` is not a number of bytes.
    """
    if unpacked <= max(_UNPACKED, _RATIO * packed):
        return
    text = os.environ.get(_ALLOWED, "0")
    try:
        allowed = float(text)
    except ValueError:
        raise InputError(
            f"{_ALLOWED} must be a number of bytes, such as 64e9; got {text!r}."
        ) from None
    if unpacked <= allowed:
        return
    raise FileError(
        f"reading {path}: its {packed:,} bytes unpack to {unpacked:,}, far more than measured "
        f"numbers do. If you trust the file, type {_ALLOWED}={unpacked} before your command, or "
        f"os.environ[{_ALLOWED!r}] = '{unpacked}' in Python."
    )
