"""Files are complete or absent: atomic writes, checksums, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import rllc.storage.files
import rllc.storage.npz
from rllc.errors import FileError, InputError
from rllc.storage.files import (
    bytes_of_tensor,
    load_arrays,
    save_arrays,
    sha256_of,
    sha256_of_file,
    sha256_of_text,
    write_atomically,
)

ARRAYS = {
    "loss": np.arange(6.0).reshape(2, 3),
    "ids": np.array([3, 1], dtype=np.int32),
    "on": np.array([True, False]),
}
HEADER = {"kind": "test", "names": ["0:1", "déjà vu"], "settings": {"lr": 1e-3, "none": None}}
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of arrays."""
    return save_arrays(tmp_path / "f.npz", ARRAYS, HEADER)


# Arrays.


@pytest.mark.parametrize("compress", [True, False])
def test_arrays_come_back_as_they_were(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "new" / "folder" / "file.npz"
    save_arrays(path, ARRAYS, HEADER, compress=compress)
    arrays, header = load_arrays(path)
    assert header == HEADER
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)


def test_nan_and_infinity_come_back(tmp_path: Path) -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0])
    arrays, _ = load_arrays(save_arrays(tmp_path / "f.npz", {"x": values}, {}))
    assert values.tobytes() == arrays["x"].tobytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(path: Path, share: float) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    message = r"reading .*f.npz: .*(truncated, damaged or not written by rllc|do not match)"
    with pytest.raises(FileError, match=message):
        load_arrays(path)


def test_no_flipped_byte_goes_unnoticed(path: Path) -> None:
    contents = path.read_bytes()
    for i, byte in enumerate(contents):
        flipped = byte ^ (1 << i % 8)
        path.write_bytes(contents[:i] + bytes([flipped]) + contents[i + 1 :])
        with pytest.raises(FileError):
            load_arrays(path)


def test_the_last_bytes_are_the_sha256_of_the_others(path: Path) -> None:
    contents = path.read_bytes()
    assert contents[-64:].decode() == hashlib.sha256(contents[:-64]).hexdigest()


def test_the_same_contents_are_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = save_arrays(tmp_path / "other.npz", ARRAYS, HEADER)
    assert path.read_bytes() == other.read_bytes()


def test_changed_contents_do_not_match_their_checksum(path: Path) -> None:
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    contents["loss"] = contents["loss"] + 1
    np.savez_compressed(path, **contents)
    with pytest.raises(FileError, match="do not match the checksum"):
        load_arrays(path)


class Bomb:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    bomb = Bomb(target)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(bomb))
    np.savez(tmp_path / "array.npz", x=np.array([bomb], dtype=object))
    for name in ("pickle.npz", "array.npz"):
        with pytest.raises(FileError, match="not written by rllc"):
            load_arrays(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 4)),
        np.array(3.5),
        np.array(["a", "déjà"]),
        np.arange(3, dtype=">i8"),
        np.ones(2, dtype=np.complex64),
    ],
    ids=str,
)
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "f.npz"
    save_arrays(path, {"x": array}, {})
    ours = load_arrays(path)[0]["x"]
    with np.load(path) as archive:
        theirs = archive["x"]
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert np.array_equal(ours, theirs)
    assert ours.flags.writeable


def test_what_would_fill_the_memory_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.npz"
    save_arrays(path, {"x": np.zeros(300_000)}, {})
    monkeypatch.setattr("rllc.storage.npz._UNPACKED", 1_000_000)
    message = r"reading .*f.npz: its \d,\d+ bytes unpack to 2,400,\d+, .*RLLC_MAX_UNPACKED=2400\d+ "
    with pytest.raises(FileError, match=message):
        load_arrays(path)
    monkeypatch.setenv("RLLC_MAX_UNPACKED", "3e6")
    assert load_arrays(path)[0]["x"].size == 300_000
    monkeypatch.setenv("RLLC_MAX_UNPACKED", "much")
    with pytest.raises(InputError, match=r"RLLC_MAX_UNPACKED must be a number of bytes.*'much'"):
        load_arrays(path)


def test_a_small_file_whose_entry_claims_to_be_large_reads_no_more_than_it_holds(
    tmp_path: Path,
) -> None:
    """An array of 8 TB by its header, and of 80 bytes by its contents."""
    path = tmp_path / "f.npz"
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(80))
    with pytest.raises(FileError, match="truncated, damaged"):
        load_arrays(path)


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no such file"):
        load_arrays(tmp_path / "missing.npz")
    with pytest.raises(FileError, match="there is no such file"):
        load_arrays(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    np.savez(tmp_path / "list.npz", __header__=np.frombuffer(b"[1]", dtype=np.uint8))
    for name in ("other.npz", "list.npz"):
        with pytest.raises(FileError, match="not written by rllc"):
            load_arrays(tmp_path / name)


# Atomic writes.


def write_x(path: Path) -> None:
    path.write_text("x")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def failing(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, failing)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_usual_permissions(tmp_path: Path) -> None:
    written = write_atomically(tmp_path / "a", write_x)
    usual = tmp_path / "b"
    usual.write_text("x")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_writing_changes_no_rights_that_other_threads_write_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def umask(mask: int) -> int:
        pytest.fail("the umask belongs to the whole process")

    monkeypatch.setattr(os, "umask", umask)
    write_atomically(tmp_path / "a", write_x)


@pytest.mark.slow
def test_a_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    code = (
        "import sys, numpy as np\n"
        "from rllc.storage.files import save_arrays\n"
        "for i in range(10**9):\n"
        "    save_arrays(sys.argv[1], {'x': np.full(20_000, i)}, {'i': i})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        while not path.exists():
            time.sleep(0.005)
        time.sleep(0.05)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    arrays, header = load_arrays(path)
    assert (arrays["x"] == header["i"]).all()


# Hashes.


def test_the_sha256_of_a_file_a_text_and_pieces(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "f") == SHA256_OF_ABC
    assert sha256_of_text("abc") == SHA256_OF_ABC
    letter = np.frombuffer(b"c", dtype=np.uint8)
    assert sha256_of(["a", b"b", letter]) == SHA256_OF_ABC


def test_texts_are_hashed_as_utf8() -> None:
    assert sha256_of_text("déjà") == hashlib.sha256("déjà".encode()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.bool])
def test_the_bytes_of_a_tensor_are_those_of_its_rows_in_order(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0, 3], [4, 5, 6]]).to(dtype)
    numbers = bytes_of_tensor(tensor)
    assert numbers.dtype == np.uint8
    assert len(numbers) == 6 * tensor.element_size()
    of_rows = [bytes_of_tensor(row).tobytes() for row in tensor]
    assert numbers.tobytes() == b"".join(of_rows)
    assert bytes_of_tensor(tensor.T.contiguous().T).tobytes() == numbers.tobytes()


@pytest.mark.parametrize("comment", [b"", b"sha256:", b"sha256:" + b"0" * 64, b"x" * 71])
def test_zips_of_others_are_read_as_zipfile_reads_them(tmp_path: Path, comment: bytes) -> None:
    """One of ours is read without it, and knows itself by the length of its comment."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stored", b"abc" * 100)
        archive.writestr("deflated", b"abc" * 100, zipfile.ZIP_DEFLATED)
        archive.writestr("größe", b"")
        archive.comment = comment
    with open(path, "rb") as file, zipfile.ZipFile(path) as archive:
        entries = rllc.storage.npz._entries_in(file)
        assert [entry.filename for entry in entries] == archive.namelist()
        for entry in entries:
            assert rllc.storage.npz._unpacked(file, entry) == archive.read(entry.filename)
        wrong = entries[0]._replace(CRC=entries[0].CRC ^ 1)
        with pytest.raises(ValueError, match="'stored' does not match its own checksum"):
            rllc.storage.npz._unpacked(file, wrong)
        longer = entries[1]._replace(file_size=10)
        with pytest.raises(ValueError, match="'deflated' does not match"):
            rllc.storage.npz._unpacked(file, longer)
