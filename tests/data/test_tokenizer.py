"""Tokenizers: what a trained one is, that it comes back the same, and what is refused."""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from rllc.data import load_tokenizer, tokenize, train_tokenizer
from rllc.errors import FileError, InputError

STRANGE = "naïve\x00\r\n\t tabs  and   spaces 🙂 日本語 \ud7ff <|endoftext|>"
ROOT = Path(__file__).resolve().parents[2]


# Training.


def test_the_vocabulary_has_the_size_that_was_asked_and_ends_with_bos_and_eos() -> None:
    texts = inspect.getsource(argparse).split("\n\n")
    tokenizer = train_tokenizer(texts, vocab_size=2000)
    assert len(tokenizer) == 2000
    assert tokenizer.vocab_size == 2000
    assert tokenizer.bos_token_id == 1999
    assert tokenizer.eos_token_id == 1999
    assert sorted(tokenizer.get_vocab().values()) == list(range(2000))
    assert tokenize(texts, tokenizer, 64).largest_id <= 1999


def test_bytes_that_were_never_seen_are_encoded_without_loss(small_tokenizer: Any) -> None:
    text = STRANGE + "".join(map(chr, range(0x20, 0x500)))
    ids = small_tokenizer(text, split_special_tokens=True)["input_ids"]
    assert small_tokenizer.decode(ids) == text


def test_the_first_merges_are_the_most_frequent_pairs() -> None:
    tokenizer = train_tokenizer(["xyxyxyxy xyxyxy", "xyq"], vocab_size=259)
    assert tokenizer.convert_ids_to_tokens([256, 257]) == ["xy", "xyxy"]


@pytest.mark.slow
def test_the_same_texts_give_the_same_tokenizer_in_another_process() -> None:
    script = (
        "import argparse, inspect; from rllc.data import train_tokenizer; "
        "lines = inspect.getsource(argparse).splitlines(keepends=True); "
        "print(train_tokenizer(lines, 1000).backend_tokenizer.to_str())"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "RAYON_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = inspect.getsource(argparse).splitlines(keepends=True)
    tokenizer = train_tokenizer(lines, 1000)
    assert other.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_too_little_text_names_the_size_that_it_is_enough_for() -> None:
    message = r"enough for 260 ids only, not vocab_size=300. Give more text, or vocab_size=260"
    with pytest.raises(InputError, match=message):
        train_tokenizer(["aab aab"], vocab_size=300)
    assert len(train_tokenizer(["aab aab"], vocab_size=260)) == 260


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ("one string", 300, r"got one string. Use \[text\]"),
        (["a", 3], 300, "document 1 is not a string but int"),
        (["a"], 256, "`vocab_size` must be at least 257 .* got 256"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_by_name(
    texts: Any, vocab_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_tokenizer(texts, vocab_size)


# Loading.


@pytest.mark.parametrize("kind", [Path, str])
def test_a_saved_tokenizer_is_loaded_the_same(
    small_tokenizer: Any, tmp_path: Path, kind: type
) -> None:
    small_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(kind(tmp_path))
    assert loaded.get_vocab() == small_tokenizer.get_vocab()
    assert loaded.bos_token_id == 299
    assert loaded.eos_token_id == 299
    assert loaded(STRANGE)["input_ids"] == small_tokenizer(STRANGE)["input_ids"]


def test_hub_tokenizers_are_asked_for_by_id_and_revision(
    small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tokenizer.save_pretrained(tmp_path)
    read = transformers.AutoTokenizer.from_pretrained
    requests: list[Any] = []

    def hub(name: str, **settings: Any) -> Any:
        requests.append((name, settings))
        return read(tmp_path)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", hub)
    assert len(load_tokenizer("owner/tokenizer")) == 300
    assert len(load_tokenizer("owner/tokenizer@v2")) == 300
    assert requests == [
        ("owner/tokenizer", {"revision": "main", "trust_remote_code": False}),
        ("owner/tokenizer", {"revision": "v2", "trust_remote_code": False}),
    ]


def test_an_unreachable_tokenizer_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(name: str, revision: str | None) -> Any:
        raise OSError("no connection\nmore")

    monkeypatch.setattr("rllc.data.tokenizer._from_pretrained", offline)
    message = r"'owner/name' from the hub: .* \(no connection\). Check the id and the network"
    with pytest.raises(FileError, match=message):
        load_tokenizer("owner/name")


def test_missing_folders_are_errors_that_name_them(tmp_path: Path) -> None:
    message = r"there is no folder .*nowhere. Make one: tokenizer.save_pretrained"
    with pytest.raises(FileError, match=message):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"there is no folder nowhere"):
        load_tokenizer("./nowhere")


def test_folders_without_a_tokenizer_are_errors_that_name_them(
    small_tokenizer: Any, tmp_path: Path
) -> None:
    message = r"from the folder .*no tokenizer could be read"
    with pytest.raises(FileError, match=message):
        load_tokenizer(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(FileError, match=message):
        load_tokenizer(tmp_path)
