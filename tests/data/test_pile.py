"""Texts of the Pile: subsets, columns and rows, and real files where they are at hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from documents import LINES, TEXTS, write

from rllc.data import PILE_SUBSETS, load_pile, pile, pile_texts, sources, tokenize, train_tokenizer
from rllc.errors import FileError, InputError

# Subsets.


def test_a_subset_is_its_documents(tmp_path: Path) -> None:
    assert list(pile_texts("Github", source=write(tmp_path / "a.jsonl"))) == [TEXTS[0], TEXTS[2]]


def test_an_unknown_subset_is_an_error_with_the_nearest_names(tmp_path: Path) -> None:
    message = r"no document of subset 'GitHub' among 3; did you mean 'Github'?"
    with pytest.raises(InputError, match=message):
        list(pile_texts("GitHub", source=write(tmp_path / "a.jsonl")))
    with pytest.raises(InputError, match="subset 'Github' among 0; there are no documents at all"):
        list(pile_texts("Github", source=write(tmp_path / "empty.jsonl", b"\n")))


def test_a_mistyped_name_does_not_read_terabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pile, "_PATIENCE", 6)
    ending = LINES.replace(b"Wikipedia (en)", b"Ubuntu IRC")
    path = write(tmp_path / "b.jsonl", LINES * 3 + ending)
    with pytest.raises(InputError, match=r"'Ubuntu' among 6; "):
        list(pile_texts("Ubuntu", source=path))
    # A rare subset of the Pile is looked for to the end.
    assert list(pile_texts("Ubuntu IRC", source=path)) == TEXTS[1:2]


def test_the_pile_has_22_subsets() -> None:
    assert len(PILE_SUBSETS) == 22
    assert len(set(PILE_SUBSETS)) == 22


@pytest.mark.parametrize(
    "row",
    [
        b'{"text": "a"}',
        b'{"text": "a", "meta": null}',
        b'{"text": "a", "meta": {"pile_set_name": null}}',
    ],
)
def test_a_subset_of_documents_without_names_is_an_error(tmp_path: Path, row: bytes) -> None:
    message = r"line 1: subset 'Github' .* no meta.pile_set_name. Leave out `subset`"
    with pytest.raises(InputError, match=message):
        list(pile_texts("Github", source=write(tmp_path / "a.jsonl", row)))


def test_meta_may_be_a_string_null_or_missing(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "meta": {"pile_set_name": "Github"}},
        {"text": "b", "meta": '{"pile_set_name": "Github"}'},
        {"text": "c", "meta": "Github"},
        {"text": "d", "meta": '"Github"'},
        {"text": "e", "meta": None},
        {"text": "f"},
        {"text": "g", "meta": '{"pile_set_name": "ArXiv"}'},
        {"text": "h", "meta": {"pile_set_name": "Github"}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = write(tmp_path / "a.jsonl", lines)
    assert "".join(pile_texts("Github", source=path)) == "abcdh"
    assert "".join(pile_texts(source=path)) == "abcdefgh"


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path, small_tokenizer: Any) -> None:
    line = b'{"text": "a \\ud83d b \\ud83d\\ude42 c"}\n'
    path = write(tmp_path / "a.jsonl", line * 5)
    assert next(pile_texts(source=path)) == "a \ufffd b \U0001f642 c"
    rows = load_pile(source=path, tokenizer=small_tokenizer, context_length=4)
    assert len(rows) > 0
    same = tokenize(["a \ud83d b \U0001f642 c"] * 5, small_tokenizer, 4)
    assert same.rows.equal(rows.rows)


# Columns.


@pytest.mark.parametrize("column", pile.COLUMNS)
def test_the_column_is_found_or_given(tmp_path: Path, column: str) -> None:
    row = {"id": 3, column: "the text", "other": "no"}
    path = write(tmp_path / "a.jsonl", json.dumps(row).encode())
    assert list(pile_texts(source=path)) == ["the text"]
    assert list(pile_texts(source=path, column=column)) == ["the text"]
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
    tmp_path: Path, row: dict[str, Any], column: str | None, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(row).encode())
    with pytest.raises(InputError, match=f"a.jsonl, line 1: {message}"):
        list(pile_texts(source=path, column=column))


# Rows.


def test_rows_are_those_of_the_texts(tmp_path: Path, small_tokenizer: Any) -> None:
    path = write(tmp_path / "some.jsonl.zst", LINES * 5)
    load = partial(load_pile, source=path, tokenizer=small_tokenizer, context_length=16)
    all_rows = tokenize(TEXTS * 5, small_tokenizer, 16)
    github_rows = tokenize([TEXTS[0], TEXTS[2]] * 5, small_tokenizer, 16)
    assert load().fingerprint == all_rows.fingerprint
    assert load("Github").fingerprint == github_rows.fingerprint
    assert load().name == "some"
    assert load("Github").name == "Github"
    assert load("Github", name="code").name == "code"


def test_too_little_text_is_an_error(tmp_path: Path, small_tokenizer: Any) -> None:
    message = r"tokenising 'Github': the texts gave .* tokens, but one row takes 1,023"
    with pytest.raises(InputError, match=message):
        load_pile("Github", source=write(tmp_path / "a.jsonl"), tokenizer=small_tokenizer)


def test_num_rows_stops_reading(
    tmp_path: Path, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.data.packing._BLOCK", 100)
    path = write(tmp_path / "a.jsonl", LINES * 5 + b"a broken line")
    load = partial(load_pile, source=path, tokenizer=small_tokenizer, context_length=16)
    assert len(load(num_rows=3)) == 3
    with pytest.raises(FileError, match=r"a.jsonl, line 16"):
        load()


def test_rows_of_a_hub_data_set_are_named_after_it(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(name: str, split: str, revision: str | None) -> Any:
        return [{"contents": text} for text in TEXTS]

    monkeypatch.setattr(sources, "_open_hub", hub)
    source = "timaeus/dsir-pile-1m"
    tokens = load_pile(source=source, tokenizer=small_tokenizer, context_length=16)
    assert tokens.name == "dsir-pile-1m"
    assert tokens.fingerprint == tokenize(TEXTS, small_tokenizer, 16).fingerprint
    message = r"'timaeus/dsir-pile-1m' .* document 0: subset 'Github' .* Leave out `subset`"
    with pytest.raises(InputError, match=message):
        load_pile("Github", source=source, tokenizer=small_tokenizer)


# Real texts.


@pytest.mark.parametrize(
    ("subset", "num_documents", "num_bytes"),
    [
        ("Github", 15, 57895),
        ("Wikipedia (en)", 16, 54088),
        ("Gutenberg (PG-19)", 3, 55058),
        ("ArXiv", 12, 55118),
        ("StackExchange", 21, 57843),
    ],
)
def test_tiny_has_the_documents_that_its_readme_counts(
    pile_mini: Path, subset: str, num_documents: int, num_bytes: int
) -> None:
    texts = list(pile_texts(subset, source=pile_mini / "tiny.jsonl"))
    assert len(texts) == num_documents
    assert len("".join(texts).encode()) == num_bytes


def test_the_papers_rows_from_a_real_file(pile_mini: Path) -> None:
    tokenizer = train_tokenizer(pile_texts(source=pile_mini / "tiny.jsonl"), vocab_size=5000)
    tokens = load_pile("Github", source=pile_mini, tokenizer=tokenizer, num_rows=50)
    assert tokens.rows.shape == (50, 1024)
    assert tokens.largest_id == 4999
    assert tokens.rows[:, 0].eq(4999).all()
    stream = tokenizer.decode(tokens.rows[:, 1:].flatten().tolist())
    texts = tokenizer.eos_token.join(pile_texts("Github", source=pile_mini / "train.jsonl.zst"))
    # The last character may be cut within its bytes.
    assert texts.startswith(stream[:-3])


def test_a_real_file_cut_in_half_is_an_error(pile_mini: Path, tmp_path: Path) -> None:
    contents = (pile_mini / "val.jsonl.zst").read_bytes()
    (tmp_path / "val.jsonl.zst").write_bytes(contents[: len(contents) // 2])
    with pytest.raises(FileError, match=r"val.jsonl.zst.*truncated"):
        list(pile_texts(source=tmp_path, split="val"))


@pytest.mark.slow
def test_the_whole_train_file(pile_mini: Path) -> None:
    texts = list(pile_texts(source=pile_mini))
    assert len(texts) == 8282
    assert len("".join(texts).encode()) == 52163849


@pytest.mark.network
def test_a_real_data_set_of_the_hub(small_tokenizer: Any) -> None:
    tokens = load_pile("Github", source="NeelNanda/pile-10k", tokenizer=small_tokenizer, num_rows=3)
    assert tokens.rows.shape == (3, 1024)
