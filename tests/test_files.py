"""Files are whole or not there: atomic writes, checksums, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rllc.errors import FileError
from rllc.files import load_arrays, save_arrays, sha256, write_atomically

ARRAYS = {
    "loss": np.arange(6.0).reshape(2, 3),
    "ids": np.array([3, 1], dtype=np.int32),
    "on": np.array([True, False]),
}
HEADER = {"kind": "test", "names": ["0:1", "déjà vu"], "settings": {"lr": 1e-3, "none": None}}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    path = save_arrays(tmp_path / "new" / "folder" / "file.npz", ARRAYS, HEADER)
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
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = save_arrays(tmp_path / "f.npz", ARRAYS, HEADER)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        FileError,
        match=r"reading .*f.npz: .*(truncated, damaged or not written by rllc|do not match)",
    ):
        load_arrays(path)


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = save_arrays(tmp_path / "f.npz", ARRAYS, HEADER)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        with pytest.raises(FileError):
            load_arrays(path)


def test_the_last_bytes_are_the_sha256_of_the_others(tmp_path: Path) -> None:
    whole = save_arrays(tmp_path / "f.npz", ARRAYS, HEADER).read_bytes()
    assert whole[-64:].decode() == hashlib.sha256(whole[:-64]).hexdigest()


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    one, other = (save_arrays(tmp_path / name, ARRAYS, HEADER) for name in ("a.npz", "b.npz"))
    assert one.read_bytes() == other.read_bytes()


def test_files_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    """They have their checksum in the header, over header and arrays."""
    digest = hashlib.sha256(json.dumps({"n": 1}, sort_keys=True).encode())
    digest.update(b"x <f8 (3,)" + np.ones(3).tobytes())
    text = json.dumps({"header": {"n": 1}, "sha256": digest.hexdigest()})
    for x in (np.ones(3), np.zeros(3)):
        np.savez(tmp_path / "old.npz", x=x, __header__=np.frombuffer(text.encode(), dtype=np.uint8))
        if x.any():
            arrays, header = load_arrays(tmp_path / "old.npz")
            assert np.array_equal(arrays["x"], x)
            assert header == {"n": 1}
        else:
            with pytest.raises(FileError, match="do not match the checksum"):
                load_arrays(tmp_path / "old.npz")


def test_changed_contents_do_not_match_their_checksum(tmp_path: Path) -> None:
    path = save_arrays(tmp_path / "f.npz", ARRAYS, HEADER)
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    contents["loss"] = contents["loss"] + 1
    np.savez_compressed(path, **contents)
    with pytest.raises(FileError, match="do not match the checksum"):
        load_arrays(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    for content in (pickle.dumps(Bomb()), None):
        path = tmp_path / "f.npz"
        if content is None:
            np.savez(path, x=np.array([Bomb()], dtype=object))
        else:
            path.write_bytes(content)
        with pytest.raises(FileError, match="not written by rllc"):
            load_arrays(path)
    assert not (tmp_path / "exploded").exists()


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no such file"):
        load_arrays(tmp_path / "missing.npz")
    with pytest.raises(FileError, match="there is no such file"):
        load_arrays(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(FileError, match="not written by rllc"):
        load_arrays(tmp_path / "other.npz")
    np.savez(tmp_path / "list.npz", __header__=np.frombuffer(b"[1]", dtype=np.uint8))
    with pytest.raises(FileError, match="not written by rllc"):
        load_arrays(tmp_path / "list.npz")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")

    def failing(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, failing)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_usual_permissions(tmp_path: Path) -> None:
    path, usual = (
        write_atomically(tmp_path / "a", lambda p: p.write_text("x") and None),
        tmp_path / "b",
    )
    usual.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_writing_changes_no_rights_that_other_threads_write_with(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the whole process's"))
    write_atomically(tmp_path / "a", lambda p: p.write_text("x") and None)


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    code = (
        "import sys, numpy as np\nfrom rllc.files import save_arrays\n"
        "for i in range(10**9):\n    save_arrays(sys.argv[1], {'x': np.full(20_000, i)}, {'i': i})\n"
    )
    for delay in (0.03, 0.08):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        try:
            while not path.exists():
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        arrays, header = load_arrays(path)
        assert (arrays["x"] == header["i"]).all()


def test_sha256_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert (
        sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
