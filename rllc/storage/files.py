"""Files that are either complete or absent, and the hashes of their contents.

A file is written under a temporary name, synced, then renamed. Writing in place leaves torn files
after a crash; a rename within one folder is atomic on POSIX and NTFS. Arrays go to ``.npz`` without
objects (nothing is ever unpickled), with a JSON header, and with the SHA-256 of all earlier bytes
as the last 64: no byte of a file can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rllc.errors import FileError, RllcError, first_line, must_be
from rllc.storage.npz import COMMENT, NPY, SEAL, arrays_in

_HEADER = "__header__"
"""The name of the array that holds the JSON header."""

_TEMPORARY = re.compile(r"\..+\.rllc-\d+\..*tmp", re.DOTALL)

_BLOCK = 1 << 20
"""Bytes that are read at once."""


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
"""The process's umask. It can only be read by setting it, for all threads, so it is read once."""


def as_path(path: object, doing: str, argument: str = "path") -> Path:
    """A path as users give it.

    >>> as_path("runs/a", "Tracker").name
    'a'

    Raises:
        InputError: it is no path, is empty, or has a character that no path has.
    """
    return Path(_text_of(path, doing, argument))


def _text_of(path: object, doing: str, argument: str = "path") -> str:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    right = isinstance(text, str) and bool(text) and "\0" not in text
    must_be(doing, argument, path, right, "the path of a file or folder")
    return text


# Writing.


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a temporary path in the same folder, sync it, and rename it to ``path``.

    Parent folders are made. When ``write`` raises, the temporary file is removed and ``path`` is as
    it was.

    >>> path = write_atomically("/tmp/rllc-doctest.txt", lambda p: p.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    path = as_path(path, "writing a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = temporary_prefix(path.name)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        # mkstemp gives the file to its owner alone; a usual file is readable as the umask says.
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path


def temporary_prefix(name: str) -> str:
    """Return how the temporary name of a file or folder begins: with our mark and our process.

    A long name is cut, because file systems take no more than 255 bytes.
    """
    return f".{name[:60]}.rllc-{os.getpid()}."


def is_temporary(path: Path) -> bool:
    """Whether a name is one of :func:`temporary_prefix`, of this process or another.

    >>> is_temporary(Path("cells/.a.npz.rllc-17.x.tmp")), is_temporary(Path("cells/.mine.tmp"))
    (True, False)
    """
    return _TEMPORARY.fullmatch(path.name) is not None and not path.is_symlink()


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on disk.

    Windows can sync files only; there a folder is left alone.
    """
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Arrays.


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
    *,
    compress: bool = True,
) -> Path:
    """Write named arrays and a JSON header as one atomic, checksummed ``.npz``.

    Args:
        arrays: names to arrays of numbers, booleans or fixed-width strings (no objects).
        header: anything JSON can hold; kept beside the arrays.
        compress: large arrays of noise shrink by a tenth at 25 MB a second, and are better left as
            they are.

    Raises:
        FileError: it cannot be written; nothing of it is left.
    """
    text = json.dumps({"header": dict(header)}, sort_keys=True)
    contents: dict[str, Any] = {}
    for name, array in arrays.items():
        if f"{name}.npy" in arrays:
            raise FileError(f"writing {path}: NumPy takes {name!r} and '{name}.npy' for one.")
        contents[name] = np.ascontiguousarray(array)
    contents[_HEADER] = np.frombuffer(text.encode(), dtype=np.uint8)
    save = np.savez_compressed if compress else np.savez

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            save(file, **contents)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = COMMENT + b"0" * SEAL
        with open(temporary, "r+b") as file:
            seal = _sha256_before_seal(file)
            file.seek(-SEAL, os.SEEK_END)
            file.write(seal)

    with writing(path):
        return write_atomically(path, write)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the file system into one that says which file was to be written.

    Raises:
        FileError: something within the block could not be written.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise FileError(
            f"writing {path!s} failed ({first_line(error)}); nothing of it is left. Make room, "
            f"change the folder's rights, or give another path."
        ) from error


def load_arrays(
    path: str | os.PathLike[str], *, kind: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote: ``(arrays, header)``.

    Args:
        path: the file.
        kind: what the header's ``"kind"`` must be; ``None``: anything.

    Raises:
        FileError: the file is missing, truncated, not written by rllc or of another kind, its
            contents do not match their checksum, or they are far larger than the file
            (:func:`rllc.storage.npz.check_unpacked`).
    """
    path = _text_of(path, "reading a file")
    if not os.path.isfile(path):
        raise FileError(f"reading {path}: there is no such file.")
    try:
        with open(path, "rb") as file:
            is_sealed = _is_sealed(file)
            arrays = arrays_in(file, path)
        header = json.loads(arrays.pop(_HEADER).tobytes())["header"]
    except RllcError:
        raise
    except Exception as error:
        # Damaged bytes make zipfile, zlib, NumPy and json raise nearly anything.
        raise FileError(
            f"reading {path}: the file is truncated, damaged or not written by rllc ({error})."
        ) from error
    if not is_sealed:
        raise FileError(
            f"reading {path}: its contents do not match the checksum in it; the file was changed "
            f"or damaged."
        )
    if not isinstance(header, dict):
        raise FileError(f"reading {path}: its header is a {type(header).__name__}, no object.")
    if kind is not None and header.get("kind") != kind:
        its_kind = header.get("kind", "something else")
        raise FileError(f"reading {path} as {kind.removeprefix('rllc.')}: it holds {its_kind}.")
    return arrays, header


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header alone of what :func:`save_arrays` wrote, without the checksum of the rest.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            arrays = arrays_in(file, path, [f"{_HEADER}{NPY}"])
        return dict(json.loads(arrays[_HEADER].tobytes())["header"])
    except RllcError:
        raise
    except Exception as error:  # as in load_arrays
        raise FileError(f"reading {path}: its header cannot be read ({error}).") from error


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what foreign contents may raise into an error that says which file and field.

    Raises:
        FileError: something within the block found a field missing, or another than it expected.
    """
    try:
        yield
    except (FileError, OSError):
        raise
    except KeyError as error:
        raise FileError(
            f"reading {path}: it has no field {error}; rllc did not write it."
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise FileError(
            f"reading {path}: a field is not as rllc writes it ({first_line(error)})."
        ) from error
    except (RecursionError, MemoryError) as error:
        raise FileError(
            f"reading {path}: it is too large or too deeply nested ({type(error).__name__})."
        ) from error


def check_fields(fields: object, kinds: Mapping[str, str | None]) -> Mapping[str, Any]:
    """See that a JSON object has certain fields, of certain kinds.

    >>> check_fields({"lr": 1e-3, "sampler": "sgld"}, {"lr": "number"})["sampler"]
    'sgld'

    Args:
        fields: what was read.
        kinds: by name, ``"text"``, ``"number"`` (finite), ``"count"`` (a whole number from 0 up to
            2³¹), ``"list"`` or ``"object"``; ``None``: any.

    Returns:
        The fields, those included that were not asked for.

    Raises:
        ValueError: it is no object, or a field is of another kind.
        KeyError: a field is missing.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"it is a {type(fields).__name__}, expected an object")
    for name, kind in kinds.items():
        value = fields[name]
        if kind is not None and not _KINDS[kind](value):
            shown = repr(value) if isinstance(value, int | float) else type(value).__name__
            raise ValueError(f"{name!r} is {shown[:40]}, expected a {kind}")
    return fields


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN, nor ∞, nor an integer beyond floats


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": _is_number,
    "count": lambda value: type(value) is int and 0 <= value < 2**31,
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
"""Kinds that a field of a JSON object may have."""


def check_shapes(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int], length: int) -> None:
    """See that arrays have as many axes as they should, the first of them of one length.

    Raises:
        ValueError: one has not.
        KeyError: one is missing.
    """
    for name, count in axes.items():
        shape = arrays[name].shape
        if len(shape) != count or shape[0] != length:
            raise ValueError(f"{name} is {list(shape)}, expected {count} axes, {length} rows")
        if arrays[name].dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {arrays[name].dtype}, expected numbers")


def _is_sealed(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    return size > SEAL and _sha256_before_seal(file) == file.read(SEAL)


def _sha256_before_seal(file: BinaryIO) -> bytes:
    """The SHA-256 of all bytes but the last 64, where the file is left standing."""
    remaining = file.seek(0, os.SEEK_END) - SEAL
    file.seek(0)
    digest = hashlib.sha256()
    while remaining:
        block = file.read(min(remaining, _BLOCK))
        digest.update(block)
        remaining -= len(block)
    return digest.hexdigest().encode()


# Hashes.


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hexadecimal.

    >>> sha256_of_text("abc")[:8]
    'ba7816bf'
    """
    return sha256_of([text])


def sha256_of(pieces: Iterable[str | bytes | np.ndarray]) -> str:
    """The SHA-256 of texts (UTF-8), bytes and contiguous arrays, one after the other.

    >>> sha256_of(["a", b"bc"]) == sha256_of_text("abc")
    True
    """
    digest = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, str):
            digest.update(piece.encode())
        else:
            digest.update(piece if isinstance(piece, bytes) else piece.data)
    return digest.hexdigest()


def bytes_of_tensor(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor's numbers, row by row, as a flat uint8 array for :func:`sha256_of`."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
