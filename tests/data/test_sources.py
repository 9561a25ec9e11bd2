"""Where documents come from: files, folders, URLs and the hub, complete or refused."""

from __future__ import annotations

import gzip
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pytest
import zstandard
from documents import DOCUMENTS, LINES, TEXTS, compress, write

from rllc.data import load_pile, pile_texts, sources
from rllc.errors import FileError

FIRST_LINE = LINES[: LINES.index(b"\n") + 1]


def read(source: Path | str) -> list[str]:
    return list(pile_texts(source=source))


# Files.


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_documents_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    assert read(path) == TEXTS
    assert read(str(path)) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "b.json"])
def test_every_format_gives_the_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        datasets.Dataset.from_list(DOCUMENTS).to_parquet(path)
    else:
        as_list = json.dumps(DOCUMENTS, indent=1).encode()
        contents = as_list if name.startswith("a.json") and "jsonl" not in name else LINES
        path.write_bytes(gzip.compress(contents) if name.endswith(".gz") else contents)
    assert read(path) == TEXTS
    assert list(pile_texts("Wikipedia (en)", source=path)) == [TEXTS[1]]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "one line\n\nanother 🙂\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.txt", "a.txt.gz"):
        assert read(tmp_path / name) == [text]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FileError, match="not UTF-8"):
        read(tmp_path / "bad.txt")


def test_gzip_of_several_members_is_read_whole_and_a_cut_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    half = LINES.index(b"\n") + 1
    contents = gzip.compress(LINES[:half]) + gzip.compress(LINES[half:])
    path.write_bytes(contents)
    assert read(path) == TEXTS
    for length in range(1, len(contents), 7):
        path.write_bytes(contents[:length])
        # Between two members a cut cannot be seen.
        if length != len(gzip.compress(LINES[:half])):
            with pytest.raises(FileError, match=r"truncated, it ends within gzip|not gzip"):
                read(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(FileError, match="not gzip, or damaged"):
        read(path)


def test_damaged_parquet_and_json_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(FileError, match="not parquet, or damaged"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_bytes(json.dumps(DOCUMENTS).encode()[:-9])
    with pytest.raises(FileError, match="not valid JSON"):
        read(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(FileError, match="not valid JSON"):
        read(tmp_path / "a.jsonl")


def test_shards_as_the_hub_names_them_are_all_read(tmp_path: Path) -> None:
    for number in (0, 1):
        data = datasets.Dataset.from_list(DOCUMENTS[number : number + 1])
        data.to_parquet(tmp_path / f"train-0000{number}-of-00002.parquet")
    assert read(tmp_path) == TEXTS[:2]


def test_the_time_of_a_long_line_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes that are copied, not in seconds: 16 MB in 256 pieces and one of 2 MB."""

    class Counting(bytes):
        copied = 0

        def __add__(self, other: bytes) -> bytes:
            Counting.copied += len(self) + len(other)
            return Counting(bytes(self) + other)

    piece = b"x" * 2**16
    chunks = [Counting(piece) for _ in range(256)] + [b"\nend"]
    start = time.process_time()
    first, last = sources._lines(iter(chunks))
    seconds = time.process_time() - start
    assert len(first) == 2**24
    assert last == b"end"
    assert Counting.copied == 0
    # Quadratic code copied 2 GB here; linear code copies 16 MB.
    assert seconds < 1


def test_blank_lines_line_ends_and_a_missing_last_one_do_not_matter(tmp_path: Path) -> None:
    lines = LINES.rstrip().replace(b"\n", b"\r\n\n")
    assert read(write(tmp_path / "a.jsonl", lines)) == TEXTS


@pytest.mark.parametrize("frames", [2, 5, 400])
def test_files_of_many_frames_are_read_whole(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compress(LINES, frames))
    assert read(path) == TEXTS


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_documents_do_not_depend_on_the_pieces_in_which_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    assert read(write(tmp_path / "a.jsonl.zst")) == TEXTS


def test_frames_with_a_long_window_are_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(frame.compress(LINES) + frame.flush())
    assert read(path) == TEXTS


@pytest.mark.parametrize("frames", [1, 2])
def test_a_truncated_zst_is_an_error_wherever_it_ends(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    contents = compress(LINES * 3, frames)
    # zstd does not see a cut between two frames. Here it also cuts a line, which JSON sees.
    for length in range(len(contents)):
        path.write_bytes(contents[:length])
        with pytest.raises(FileError, match=r"a.jsonl.zst.*(truncated|cut off)"):
            read(path)


def test_a_damaged_zst_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    contents = compress(LINES * 3)
    num_harmless = 0
    for i, byte in enumerate(contents):
        path.write_bytes(contents[:i] + bytes([byte ^ 0x10]) + contents[i + 1 :])
        with suppress(FileError):
            # A few bits of a frame say nothing.
            assert read(path) == TEXTS * 3
            num_harmless += 1
    assert num_harmless <= 0.05 * len(contents)


def test_a_file_that_is_not_zstd_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(LINES)
    with pytest.raises(FileError, match=r"not zstd, or damaged .*Copy or download it again"):
        read(path)


def test_a_cut_line_is_an_error_behind_the_documents_before_it(tmp_path: Path) -> None:
    texts = pile_texts(source=write(tmp_path / "a.jsonl.zst", LINES + b'{"text": "cut o'))
    assert [next(texts) for _ in TEXTS] == TEXTS
    with pytest.raises(FileError, match=r"a.jsonl.zst, line 4: not valid JSON .* cut off"):
        next(texts)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"text": "\xff"}\n', r"a.jsonl, line 1: not valid JSON"),
        (b'{"text": "a"}\n["b"]\n', r"a.jsonl, line 2: expected an object .* got list"),
    ],
)
def test_bad_lines_are_errors_with_file_and_line(
    tmp_path: Path, lines: bytes, message: str
) -> None:
    with pytest.raises(FileError, match=message):
        read(write(tmp_path / "a.jsonl", lines))


def test_zst_without_zstandard_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path / "a.jsonl.zst")
    message = r'need the zstandard package. Type: pip install "rllc\[pile\]"'
    with pytest.raises(FileError, match=message):
        pile_texts(source=path)
    assert read(write(tmp_path / "a.jsonl")) == TEXTS


# Folders.


def test_a_folder_gives_the_file_of_the_split(tmp_path: Path) -> None:
    write(tmp_path / "d/train.jsonl.zst")
    write(tmp_path / "d/val.jsonl", FIRST_LINE)
    folder = tmp_path / "d"
    assert read(folder) == TEXTS
    assert list(pile_texts(source=str(folder), split="val")) == TEXTS[:1]


def test_a_folder_of_a_split_gives_all_its_files(tmp_path: Path) -> None:
    write(tmp_path / "test/01.jsonl", LINES)
    write(tmp_path / "test/00.jsonl.zst", FIRST_LINE)
    assert list(pile_texts(source=tmp_path, split="test")) == [TEXTS[0], *TEXTS]


def test_a_folder_without_the_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"it holds no .jsonl or .jsonl.zst file"):
        pile_texts(source=tmp_path)
    write(tmp_path / "val.jsonl")
    message = r"neither vall.jsonl.zst nor vall.jsonl for split='vall'; did you mean 'val'?"
    with pytest.raises(FileError, match=message):
        pile_texts(source=tmp_path, split="vall")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", r"there is no file or folder nowhere.jsonl"),
        ("./nowhere", "there is no file or folder nowhere"),
        (Path("owner/name"), "there is no file or folder owner"),
        (
            "no where",
            r"'no where' is not a file or folder here, a URL, or a data set of the hub",
        ),
        ("https://example.org/a.pdf", "expected a file that ends in .jsonl or .jsonl.zst"),
        (__file__, "expected a file that ends in .jsonl or .jsonl.zst"),
    ],
)
def test_sources_that_are_not_there_are_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(FileError, match=message):
        pile_texts(source=source)


# URLs.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine with the files of tmp_path. It cuts files called "cut" short."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def copyfile(self, source: Any, outputfile: Any) -> None:
            contents = source.read()
            outputfile.write(contents[:100] if "cut" in self.path else contents)

    handler = partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_urls_are_read_like_files(tmp_path: Path, server: str) -> None:
    path = write(tmp_path / "a.jsonl.zst")
    assert read(f"{server}/a.jsonl.zst?download=true") == TEXTS
    assert read(path.as_uri()) == TEXTS


def test_urls_that_cannot_be_read_are_errors_that_name_them(tmp_path: Path, server: str) -> None:
    write(tmp_path / "cut.jsonl")
    missing = len(LINES) - 100
    message = f"cut.jsonl: the connection ended {missing} bytes too early. Try again"
    with pytest.raises(FileError, match=message):
        read(f"{server}/cut.jsonl")
    with pytest.raises(FileError, match=r"opening http.*/b.jsonl: .*Check address and network"):
        read(f"{server}/b.jsonl")
    with pytest.raises(FileError, match=r"opening nothing://a.jsonl: Protocol not known"):
        read("nothing://a.jsonl")


def test_a_connection_that_breaks_is_an_error_that_names_the_url(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise RuntimeError("payload is not completed")
            return super().read(101)

    monkeypatch.setattr(sources, "_open_url", lambda url: Breaking(LINES))
    message = r"reading https://x.org/a.jsonl: payload is not completed. Try again"
    with pytest.raises(FileError, match=message):
        load_pile(source="https://x.org/a.jsonl", tokenizer=small_tokenizer, context_length=16)


# The hub.


def test_hub_data_sets_are_streamed_by_id_split_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl")
    load_dataset = datasets.load_dataset
    requests: list[Any] = []

    def hub(name: str, **settings: Any) -> Any:
        requests.append((name, settings))
        split = settings["split"]
        return load_dataset("json", data_files={split: str(path)}, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert read("NeelNanda/pile-10k") == TEXTS
    texts = pile_texts(source="timaeus/pile-github@v1", split="val", column="text")
    assert list(texts) == TEXTS
    assert requests == [
        ("NeelNanda/pile-10k", {"split": "train", "revision": None, "streaming": True}),
        ("timaeus/pile-github", {"split": "val", "revision": "v1", "streaming": True}),
    ]


def test_an_unreachable_data_set_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, split: str, revision: str | None) -> Any:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(sources, "_open_hub", offline)
    message = r"'owner/name' of the hub, split 'val': no route. Check id, split and network"
    with pytest.raises(FileError, match=message):
        pile_texts(source="owner/name", split="val")


def test_a_data_set_that_breaks_is_an_error_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(name: str, split: str, revision: str | None) -> Iterator[Any]:
        yield DOCUMENTS[0]
        raise OSError("reset by peer")

    monkeypatch.setattr(sources, "_open_hub", breaking)
    texts = pile_texts(source="owner/name")
    assert next(texts) == TEXTS[0]
    with pytest.raises(FileError, match=r"failed at document 1 \(reset by peer\). Try again"):
        next(texts)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_what_unpacks_to_far_more_than_a_text_does_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.storage.npz._UNPACKED", 1_000_000)
    text = bytes(20_000_000)
    packed = gzip.compress(text)
    if name.endswith(".zst"):
        packed = pytest.importorskip("zstandard").compress(text)
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(FileError, match=r"bytes unpack to [\d,]+, .*RLLC_MAX_UNPACKED"):
        list(sources.documents_of_path(tmp_path / name, "train"))


def test_no_piece_of_zstd_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 kB, as are read at once, may be 2 GB; here 8 GB in 250 kB, of which little is unpacked."""
    zstandard = pytest.importorskip("zstandard")
    few = zstandard.compress(bytes(2**21))
    (tmp_path / "a.jsonl.zst").write_bytes(few * 4000)
    largest = []

    def check(place: str, unpacked: int, packed: int) -> None:
        largest.append(unpacked)
        if unpacked > 2**28:
            raise FileError("enough")

    monkeypatch.setattr(sources, "check_unpacked", check)
    with pytest.raises(FileError, match="enough"):
        list(sources.documents_of_path(tmp_path / "a.jsonl.zst", "train"))
    assert max(largest) < 2**29
