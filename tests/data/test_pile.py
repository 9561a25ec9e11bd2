from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import zstandard

from rllc.data import (
    PILE_SUBSETS,
    load_pile,
    pile,
    pile_texts,
    sources,
    tokenize,
    train_tokenizer,
)
from rllc.errors import FileError, InputError

DOCUMENTS = [
    {"text": "the cat\u2028sees\nthe dog", "meta": {"pile_set_name": "Github"}},
    {"text": "another line 🙂", "meta": {"pile_set_name": "Wikipedia (en)"}},
    {"text": "def f(x):\n    return x\n", "meta": {"pile_set_name": "Github"}},
]
TEXTS = [document["text"] for document in DOCUMENTS]
LINES = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in DOCUMENTS).encode()


def packed(data: bytes, frames: int = 1) -> bytes:
    """zstd frames that, like the Pile's, do not state the size of their contents."""
    size = -(-len(data) // frames)
    whole = b""
    for i in range(0, len(data), size):
        compressor = zstandard.ZstdCompressor(
            write_content_size=False, write_checksum=True
        ).compressobj()
        whole += compressor.compress(data[i : i + size]) + compressor.flush()
    return whole


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, data: bytes = LINES) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(data) if name.endswith(".zst") else data)
        return path

    return write


# Files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_documents_are_read_as_they_are(write: Any, name: str) -> None:
    path = write(name)
    assert list(pile_texts(source=path)) == list(pile_texts(source=str(path))) == TEXTS
    assert list(pile_texts("Github", source=path)) == [TEXTS[0], TEXTS[2]]


def test_blank_lines_line_ends_and_a_missing_last_one_do_not_matter(write: Any) -> None:
    assert (
        list(pile_texts(source=write("a.jsonl", LINES.rstrip().replace(b"\n", b"\r\n\n")))) == TEXTS
    )


@pytest.mark.parametrize("frames", [2, 5, 400])
def test_files_of_many_frames_are_read_whole(tmp_path: Path, frames: int) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(packed(LINES, frames))
    assert list(pile_texts(source=tmp_path / "a.jsonl.zst")) == TEXTS


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_documents_do_not_depend_on_the_pieces_in_which_a_file_is_read(
    write: Any, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    assert list(pile_texts(source=write("a.jsonl.zst"))) == TEXTS


def test_frames_with_a_long_window_are_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(LINES) + compressor.flush())
    assert list(pile_texts(source=tmp_path / "a.jsonl.zst")) == TEXTS


@pytest.mark.parametrize("frames", [1, 2])
def test_a_truncated_zst_is_an_error_wherever_it_ends(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = packed(LINES * 3, frames)
    # A cut between two frames cannot be seen in zstd; here it also cuts a line, which JSON sees.
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(FileError, match=r"a.jsonl.zst.*(truncated|cut off)"):
            list(pile_texts(source=path))


def test_a_damaged_zst_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = packed(LINES * 3)
    caught = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with suppress(FileError):
            caught += 1
            assert (
                list(pile_texts(source=path)) == TEXTS * 3
            )  # a few bits say nothing; to flip them is harmless
            caught -= 1
    assert caught >= 0.95 * len(whole)
    path.write_bytes(LINES)
    with pytest.raises(FileError, match=r"not zstd, or damaged .*Copy or download it again"):
        list(pile_texts(source=path))


def test_bad_lines_are_errors_with_file_and_line(write: Any) -> None:
    texts = pile_texts(source=write("a.jsonl.zst", LINES + b'{"text": "cut o'))
    assert [next(texts) for _ in TEXTS] == TEXTS
    with pytest.raises(FileError, match=r"a.jsonl.zst, line 4: not valid JSON .* cut off"):
        next(texts)
    with pytest.raises(FileError, match=r"a.jsonl, line 1: not valid JSON"):
        list(pile_texts(source=write("a.jsonl", b'{"text": "\xff"}\n')))
    with pytest.raises(FileError, match=r"a.jsonl, line 2: expected an object .* got list"):
        list(pile_texts(source=write("a.jsonl", b'{"text": "a"}\n["b"]\n')))


def test_zst_without_zstandard_says_what_to_install(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        FileError, match=r'need the zstandard package. Type: pip install "rllc\[pile\]"'
    ):
        pile_texts(source=write("a.jsonl.zst"))
    assert list(pile_texts(source=write("a.jsonl"))) == TEXTS


def test_a_folder_gives_the_file_of_the_split(write: Any, tmp_path: Path) -> None:
    write("d/train.jsonl.zst")
    write("d/val.jsonl", LINES[: LINES.index(b"\n") + 1])
    write("d/test/01.jsonl", LINES)
    write("d/test/00.jsonl.zst", LINES[: LINES.index(b"\n") + 1])
    folder = tmp_path / "d"
    assert list(pile_texts(source=folder)) == TEXTS
    assert list(pile_texts(source=str(folder), split="val")) == TEXTS[:1]
    assert list(pile_texts(source=folder, split="test")) == [TEXTS[0], *TEXTS]
    with pytest.raises(
        FileError,
        match=r"neither vall.jsonl.zst nor vall.jsonl for split='vall'; did you mean 'val'?",
    ):
        pile_texts(source=folder, split="vall")
    with pytest.raises(FileError, match=r"it holds no .jsonl or .jsonl.zst file"):
        pile_texts(source=tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", r"there is no file or folder nowhere.jsonl"),
        ("./nowhere", "there is no file or folder nowhere"),
        (Path("owner/name"), "there is no file or folder owner"),
        (
            "no where",
            r"'no where' is not a file or folder here, a URL, or a data set of the hub \(owner/name\)",
        ),
        ("https://example.org/a.parquet", "expected a file that ends in .jsonl or .jsonl.zst"),
        (__file__, "expected a file that ends in .jsonl or .jsonl.zst"),
    ],
)
def test_sources_that_are_not_there_are_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(FileError, match=message):
        pile_texts(source=source)


# Subsets and columns


def test_an_unknown_subset_is_an_error_with_the_nearest_names(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"no document of subset 'GitHub' among 3; did you mean 'Github'?"
    ):
        list(pile_texts("GitHub", source=write("a.jsonl")))
    with pytest.raises(InputError, match="subset 'Github' among 0; there are no documents at all"):
        list(pile_texts("Github", source=write("empty.jsonl", b"\n")))
    # A mistyped name does not read terabytes; a rare subset of the Pile is looked for to the end.
    monkeypatch.setattr(pile, "_PATIENCE", 6)
    path = write("b.jsonl", LINES * 3 + LINES.replace(b"Wikipedia (en)", b"Ubuntu IRC"))
    with pytest.raises(InputError, match=r"'Ubuntu' among 6; "):
        list(pile_texts("Ubuntu", source=path))
    assert list(pile_texts("Ubuntu IRC", source=path)) == TEXTS[1:2]
    assert len(PILE_SUBSETS) == len(set(PILE_SUBSETS)) == 22


def test_a_subset_of_documents_without_names_is_an_error(write: Any) -> None:
    for row in (
        b'{"text": "a"}',
        b'{"text": "a", "meta": "Github"}',
        b'{"text": "a", "meta": {"pile_set_name": null}}',
    ):
        with pytest.raises(
            InputError,
            match=r"line 1: subset 'Github' .* no meta.pile_set_name. Leave out `subset`",
        ):
            list(pile_texts("Github", source=write("a.jsonl", row)))


@pytest.mark.parametrize("column", pile.COLUMNS)
def test_the_column_is_found_or_given(write: Any, column: str) -> None:
    path = write("a.jsonl", json.dumps({"id": 3, column: "the text", "other": "no"}).encode())
    assert (
        list(pile_texts(source=path))
        == list(pile_texts(source=path, column=column))
        == ["the text"]
    )
    assert list(pile_texts(source=path, column="other")) == ["no"]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (
            {"body": "a", "id": 1},
            None,
            "none of the columns text, contents, content, code; give `column`: 'body', 'id'",
        ),
        ({"body": "a", "id": 1}, "boddy", r"there is no column 'boddy'; did you mean 'body'\?"),
        (
            {"text": None, "id": 1},
            None,
            "column 'text' must hold text, got NoneType; give `column`: 'text', 'id'",
        ),
    ],
)
def test_a_column_that_holds_no_text_is_an_error(
    write: Any, row: Any, column: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.jsonl, line 1: {message}"):
        list(pile_texts(source=write("a.jsonl", json.dumps(row).encode()), column=column))


# Rows


def test_rows_are_those_of_the_texts(write: Any, small_tokenizer: Any) -> None:
    path = write("some.jsonl.zst", LINES * 5)
    rows = partial(load_pile, source=path, tokenizer=small_tokenizer, context_length=16)
    assert rows().fingerprint == tokenize(TEXTS * 5, small_tokenizer, 16).fingerprint
    assert (
        rows("Github").fingerprint
        == tokenize(TEXTS[::2] * 5, small_tokenizer, 16).fingerprint
        != rows().fingerprint
    )
    assert (rows().name, rows("Github").name, rows("Github", name="code").name) == (
        "some",
        "Github",
        "code",
    )
    with pytest.raises(
        InputError, match=r"tokenising 'Github': the texts gave .* tokens, but one row takes 1,023"
    ):
        load_pile("Github", source=path, tokenizer=small_tokenizer)


def test_num_rows_stops_reading(
    write: Any, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.data.packing._BLOCK", 100)
    path = write("a.jsonl", LINES * 5 + b"a broken line")
    assert (
        len(load_pile(source=path, tokenizer=small_tokenizer, context_length=16, num_rows=3)) == 3
    )
    with pytest.raises(FileError, match=r"a.jsonl, line 16"):
        load_pile(source=path, tokenizer=small_tokenizer, context_length=16)


# URLs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine with the files of tmp_path."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def copyfile(self, source: Any, outputfile: Any) -> None:
            outputfile.write(source.read()[: 100 if "cut" in self.path else None])

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_urls_are_read_like_files(write: Any, server: str) -> None:
    path = write("a.jsonl.zst")
    assert list(pile_texts(source=f"{server}/a.jsonl.zst?download=true")) == TEXTS
    assert list(pile_texts("Github", source=path.as_uri())) == TEXTS[::2]
    write("cut.jsonl")
    with pytest.raises(
        FileError,
        match=f"cut.jsonl: the connection ended {len(LINES) - 100} bytes too early. Try again",
    ):
        list(pile_texts(source=f"{server}/cut.jsonl"))
    with pytest.raises(FileError, match=r"opening http.*/b.jsonl: .*Check address and network"):
        list(pile_texts(source=f"{server}/b.jsonl"))


def test_a_connection_that_breaks_is_an_error_that_names_the_url(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise RuntimeError("payload is not completed")
            return super().read(101)

    monkeypatch.setattr(sources, "_open_url", lambda url: Breaking(LINES))
    with pytest.raises(
        FileError, match=r"reading https://x.org/a.jsonl: payload is not completed. Try again"
    ):
        load_pile(source="https://x.org/a.jsonl", tokenizer=small_tokenizer, context_length=16)


def test_an_unknown_protocol_is_an_error_that_names_the_url() -> None:
    with pytest.raises(FileError, match=r"opening nothing://a.jsonl: Protocol not known"):
        list(pile_texts(source="nothing://a.jsonl"))


# The hub


def test_hub_data_sets_are_streamed_by_id_split_and_revision(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    path = write("a.jsonl")
    read = datasets.load_dataset
    asked: list[Any] = []

    def hub(name: str, **settings: Any) -> Any:
        asked.append((name, settings))
        return read(
            "json",
            data_files={settings["split"]: str(path)},
            split=settings["split"],
            streaming=True,
        )

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert list(pile_texts("Github", source="NeelNanda/pile-10k")) == TEXTS[::2]
    assert list(pile_texts(source="timaeus/pile-github@v1", split="val", column="text")) == TEXTS
    assert asked == [
        ("NeelNanda/pile-10k", {"split": "train", "revision": None, "streaming": True}),
        ("timaeus/pile-github", {"split": "val", "revision": "v1", "streaming": True}),
    ]


def test_rows_of_a_hub_data_set_are_named_after_it(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sources, "_open_hub", lambda name, split, revision: [{"contents": text} for text in TEXTS]
    )
    tokens = load_pile(source="timaeus/dsir-pile-1m", tokenizer=small_tokenizer, context_length=16)
    assert tokens.name == "dsir-pile-1m"
    assert tokens.fingerprint == tokenize(TEXTS, small_tokenizer, 16).fingerprint
    with pytest.raises(
        InputError,
        match=r"'timaeus/dsir-pile-1m' .* document 0: subset 'Github' .* Leave out `subset`",
    ):
        load_pile("Github", source="timaeus/dsir-pile-1m", tokenizer=small_tokenizer)


def test_an_unreachable_data_set_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, split: str, revision: str | None) -> Any:
        raise ConnectionError("no route\nmore")

    def breaking(name: str, split: str, revision: str | None) -> Iterator[Any]:
        yield DOCUMENTS[0]
        raise OSError("reset by peer")

    monkeypatch.setattr(sources, "_open_hub", offline)
    with pytest.raises(
        FileError,
        match=r"'owner/name' of the hub, split 'val': no route. Check id, split and network",
    ):
        pile_texts(source="owner/name", split="val")
    monkeypatch.setattr(sources, "_open_hub", breaking)
    texts = pile_texts(source="owner/name")
    assert next(texts) == TEXTS[0]
    with pytest.raises(FileError, match=r"failed at document 1 \(reset by peer\). Try again"):
        next(texts)


# Real texts


def test_tiny_has_the_documents_that_its_readme_counts(pile_mini: Path) -> None:
    count = {
        "Github": 15,
        "Wikipedia (en)": 16,
        "Gutenberg (PG-19)": 3,
        "ArXiv": 12,
        "StackExchange": 21,
    }
    size = {
        "Github": 57895,
        "Wikipedia (en)": 54088,
        "Gutenberg (PG-19)": 55058,
        "ArXiv": 55118,
        "StackExchange": 57843,
    }
    for subset in count:
        texts = list(pile_texts(subset, source=pile_mini / "tiny.jsonl"))
        assert (len(texts), sum(len(text.encode()) for text in texts)) == (
            count[subset],
            size[subset],
        )


def test_the_papers_rows_from_a_real_file(pile_mini: Path) -> None:
    tokenizer = train_tokenizer(pile_texts(source=pile_mini / "tiny.jsonl"), vocab_size=5000)
    tokens = load_pile("Github", source=pile_mini, tokenizer=tokenizer, num_rows=50)
    assert (len(tokens), tokens.num_positions, tokens.largest_id) == (50, 1024, 4999)
    assert tokens.rows[:, 0].eq(4999).all()
    stream = tokenizer.decode(tokens.rows[:, 1:].flatten().tolist())
    texts = tokenizer.eos_token.join(pile_texts("Github", source=pile_mini / "train.jsonl.zst"))
    assert texts.startswith(stream[:-3])  # the last character may be cut within its bytes


def test_a_real_file_cut_in_half_is_an_error(pile_mini: Path, tmp_path: Path) -> None:
    data = (pile_mini / "val.jsonl.zst").read_bytes()
    (tmp_path / "val.jsonl.zst").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileError, match=r"val.jsonl.zst.*truncated"):
        list(pile_texts(source=tmp_path, split="val"))


@pytest.mark.slow
def test_the_whole_train_file(pile_mini: Path) -> None:
    texts = list(pile_texts(source=pile_mini))
    assert (len(texts), sum(len(text.encode()) for text in texts)) == (8282, 52163849)


@pytest.mark.network
def test_a_real_data_set_of_the_hub(small_tokenizer: Any) -> None:
    tokens = load_pile("Github", source="NeelNanda/pile-10k", tokenizer=small_tokenizer, num_rows=3)
    assert tokens.rows.shape == (3, 1024)
