"""Packing: rows against documents joined by hand, special tokens, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rllc.data import packing, tokenize
from rllc.errors import InputError

TEXTS = [
    "the cat sees the dog",
    "",
    "héllo\tworld \u2028 🙂",
    "one line and another",
    "x" * 40,
    "the end",
]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("context_length", [2, 5, 16, 30])
def test_packing_equals_tokenising_the_documents_joined_by_eos(
    small_tokenizer: Any, context_length: int
) -> None:
    documents = [text for text in TEXTS if text]
    stream = ids_of(small_tokenizer, small_tokenizer.eos_token.join(documents))
    size = context_length - 1
    num_rows = len(stream) // size
    pieces = [stream[i * size : (i + 1) * size] for i in range(num_rows)]
    tokens = tokenize(TEXTS, small_tokenizer, context_length, name="toy")
    assert tokens.rows.tolist() == [[small_tokenizer.bos_token_id, *piece] for piece in pieces]
    assert tokens.dropped == len(stream) % size
    assert tokens.name == "toy"


def test_bos_in_front_of_documents_instead_of_rows(small_tokenizer: Any) -> None:
    stream = []
    for text in filter(None, TEXTS):
        stream += [small_tokenizer.bos_token_id, *ids_of(small_tokenizer, text)]
    tokens = tokenize(TEXTS, small_tokenizer, 8, bos="document")
    assert tokens.rows.flatten().tolist() == stream[: len(stream) // 8 * 8]
    assert tokens.dropped == len(stream) % 8


def test_one_special_token_stands_in_for_the_other(small_tokenizer: Any) -> None:
    class OnlyBos:
        bos_token_id = 7
        eos_token_id = None
        __call__ = staticmethod(small_tokenizer.__call__)

    class Both(OnlyBos):
        eos_token_id = 8

    (a,) = ids_of(small_tokenizer, "a")
    (b,) = ids_of(small_tokenizer, "b")
    assert tokenize(["a", "b"], OnlyBos(), 4).rows.tolist() == [[7, a, 7, b]]
    assert tokenize(["a", "b"], Both(), 4).rows.tolist() == [[7, a, 8, b]]
    assert tokenize(["a", "b"], Both(), 4, bos="document").rows.tolist() == [[7, a, 7, b]]


def test_text_that_spells_a_special_token_stays_text(small_tokenizer: Any) -> None:
    tokens = tokenize(["a<|endoftext|>b" * 5], small_tokenizer, 8)
    is_special = tokens.rows.eq(299)
    assert is_special[:, 0].all()
    assert not is_special[:, 1:].any()


def test_rows_do_not_depend_on_the_blocks_that_are_tokenised_together(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_block = tokenize(TEXTS * 20, small_tokenizer, 9)
    monkeypatch.setattr(packing, "_BLOCK", 1)
    one_by_one = tokenize(TEXTS * 20, small_tokenizer, 9)
    assert one_by_one.fingerprint == in_one_block.fingerprint


def test_num_rows_takes_the_first_rows_and_stops_reading(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_BLOCK", 100)
    all_rows = tokenize(TEXTS * 20, small_tokenizer, 9)
    texts = iter(TEXTS * 20)
    first_rows = tokenize(texts, small_tokenizer, 9, num_rows=7)
    assert first_rows.rows.equal(all_rows.rows[:7])
    assert first_rows.dropped == 0
    assert len(list(texts)) > 100
    assert len(tokenize(TEXTS * 20, small_tokenizer, 9, num_rows=10**6)) == len(all_rows)


def test_long_documents_give_no_warning(
    small_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = type(small_tokenizer)(
        tokenizer_object=small_tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    )
    tokenizer.model_max_length = 8
    # This logger does not propagate to the root, where caplog listens.
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        tokenize(["the cat " * 1000], tokenizer, 64)
        assert caplog.messages == []
        tokenizer("the cat " * 1000)
        assert "longer than the specified maximum" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "gave 0 tokens, but one row takes 7. Give more text"),
        (["", ""], {}, "gave 0 tokens"),
        (["ab"], {}, "gave 2 tokens, but one row takes 7.* `context_length` below 2"),
        ("the cat", {}, r"got one string. Use \[text\]"),
        (["ab", None], {}, "document 1 is not a string but NoneType"),
        (["ab"], {"context_length": 1}, "`context_length` must be at least 2 tokens, got 1"),
        (["ab"], {"num_rows": 0}, "`num_rows` must be at least 1, or None for all, got 0"),
        (["ab"], {"bos": "rows"}, "`bos` must be 'row' or 'document', got 'rows'"),
        (["ab"], {"tokenizer": "gpt2"}, "got str. Use load_tokenizer"),
    ],
)
def test_texts_that_cannot_be_packed_are_refused_by_name(
    small_tokenizer: Any, texts: Any, settings: dict[str, Any], message: str
) -> None:
    defaults = {"tokenizer": small_tokenizer, "context_length": 8, "name": "toy"}
    with pytest.raises(InputError, match=f"tokenising 'toy': .*{message}"):
        tokenize(texts, **defaults | settings)


def test_a_tokenizer_without_bos_and_eos_is_refused(small_tokenizer: Any) -> None:
    bare = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer)
    message = r"neither a BOS nor an EOS token. Set one: tokenizer.eos_token"
    with pytest.raises(InputError, match=message):
        tokenize(["the cat"], bare, 4)
