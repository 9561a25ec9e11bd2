from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rllc.data import load_tokenizer, python_corpus, tokenize, train_tokenizer
from rllc.errors import FileError, InputError

STRANGE = "naïve\x00\r\n\t tabs  and   spaces 🙂 日本語 \ud7ff <|endoftext|>"


def test_the_vocabulary_has_the_size_that_was_asked_and_ends_with_bos_and_eos() -> None:
    texts = [text for documents in python_corpus(max_bytes=500_000).values() for text in documents]
    tokenizer = train_tokenizer(texts, vocab_size=5000)
    assert len(tokenizer) == tokenizer.vocab_size == 5000
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 4999
    assert sorted(tokenizer.get_vocab().values()) == list(range(5000))
    assert tokenize(texts, tokenizer, 64).largest_id <= 4999


def test_bytes_that_were_never_seen_are_encoded_without_loss(small_tokenizer: Any) -> None:
    text = STRANGE + "".join(map(chr, range(0x20, 0x500)))
    ids = small_tokenizer(text, split_special_tokens=True)["input_ids"]
    assert small_tokenizer.decode(ids) == text


def test_the_first_merges_are_the_most_frequent_pairs() -> None:
    tokenizer = train_tokenizer(["xyxyxyxy xyxyxy", "xyq"], vocab_size=259)
    assert [tokenizer.convert_ids_to_tokens(i) for i in (256, 257)] == ["xy", "xyxy"]


def test_the_same_texts_give_the_same_tokenizer_in_another_process() -> None:
    lines = inspect.getsource(argparse).splitlines(keepends=True)
    script = (
        "import argparse, inspect; from rllc.data import train_tokenizer; "
        "lines = inspect.getsource(argparse).splitlines(keepends=True); "
        "print(train_tokenizer(lines, 1000).backend_tokenizer.to_str())"
    )
    root = Path(__file__).resolve().parents[2]
    other = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | other,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == train_tokenizer(lines, 1000).backend_tokenizer.to_str()


def test_a_saved_tokenizer_is_loaded_the_same(small_tokenizer: Any, tmp_path: Path) -> None:
    small_tokenizer.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        again = load_tokenizer(source)
        assert again.get_vocab() == small_tokenizer.get_vocab()
        assert (again.bos_token_id, again.eos_token_id) == (299, 299)
        assert again(STRANGE)["input_ids"] == small_tokenizer(STRANGE)["input_ids"]


def test_hub_tokenizers_are_asked_for_by_id_and_revision(
    small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    small_tokenizer.save_pretrained(tmp_path)
    asked: list[Any] = []
    read = transformers.AutoTokenizer.from_pretrained

    def hub(name: str, **settings: Any) -> Any:
        asked.append((name, settings))
        return read(tmp_path)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", hub)
    assert (
        len(load_tokenizer("owner/tokenizer")) == len(load_tokenizer("owner/tokenizer@v2")) == 300
    )
    assert asked == [
        ("owner/tokenizer", {"revision": "main", "trust_remote_code": False}),
        ("owner/tokenizer", {"revision": "v2", "trust_remote_code": False}),
    ]


def test_an_unreachable_tokenizer_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(name: str, revision: str | None) -> Any:
        raise OSError("no connection\nmore")

    monkeypatch.setattr("rllc.data.tokenizer._from_pretrained", offline)
    with pytest.raises(
        FileError,
        match=r"'owner/name' from the hub: .* \(no connection\). Check the id and the network",
    ):
        load_tokenizer("owner/name")


def test_folders_without_a_tokenizer_are_errors_that_name_them(
    small_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        FileError, match=r"there is no folder .*nowhere. Make one: tokenizer.save_pretrained"
    ):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"there is no folder nowhere"):
        load_tokenizer("./nowhere")
    with pytest.raises(FileError, match=r"from the folder .*no tokenizer could be read"):
        load_tokenizer(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text()[:-20])
    with pytest.raises(FileError, match=r"from the folder .*no tokenizer could be read"):
        load_tokenizer(tmp_path)


def test_too_little_text_names_the_size_that_it_is_enough_for() -> None:
    with pytest.raises(
        InputError,
        match=r"enough for 260 ids only, not vocab_size=300. Give more text, or vocab_size=260",
    ) as raised:
        train_tokenizer(["aab aab"], vocab_size=300)
    size = int(str(raised.value).rsplit("=", 1)[1].rstrip("."))
    assert len(train_tokenizer(["aab aab"], vocab_size=size)) == size


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
