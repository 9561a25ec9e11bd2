from __future__ import annotations

import hashlib
import logging
import math
import random
import struct
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from rllc.data import Minibatches, Tokens, mix, tokenize
from rllc.errors import FileError, InputError
from rllc.files import save_arrays

ROWS = [[4, 1, 2], [4, 3, 1]]
TEXTS = [
    "the cat sees the dog",
    "",
    "héllo\tworld \u2028 🙂",
    "one line and another",
    "x" * 40,
    "the end",
]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.int16).T.contiguous().T,
        [torch.tensor(row) for row in ROWS],
        torch.tensor(ROWS, dtype=torch.uint16),
        np.array(ROWS, dtype=np.uint16),
        np.array(ROWS, dtype=">i8"),
    ],
    ids=["lists", "tuples", "int64", "strided", "tensors", "torch-uint16", "uint16", "big-endian"],
)
def test_rows_of_any_kind_become_the_same_tokens(rows: Any) -> None:
    tokens = Tokens(rows, "toy")
    assert tokens.rows.dtype == torch.int32
    assert tokens.rows.is_contiguous()
    assert tokens.rows.tolist() == ROWS
    assert (len(tokens), tokens.num_positions, tokens.largest_id) == (2, 3, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows; the data is empty"),
        (torch.empty(0, 8, dtype=torch.int64), "there are no rows; the data is empty"),
        ([[1], [2]], "at least 2 positions .* got 1"),
        ([[1, 2, 3], [1, 2, 3], [1, 2]], "row 0 has 3 positions and row 2 has 2"),
        ([1, 2, 3], r"must be \[row, pos\], got shape \[3\]"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"got shape \[1, 2, 3\]"),
        ([[0.5, 1.0]], "integer token ids, got torch.float32"),
        (np.zeros((2, 2)), "integer token ids, got torch.float64"),
        ([[True, False]], "integer token ids, got torch.bool"),
        ([[1, -3]], "got -3"),
        ([[1, 2**31]], "got 2147483648"),
        (["ab", "cd"], r"must be \[row, pos\] integers"),
        (None, r"must be \[row, pos\] integers, got NoneType"),
    ],
)
def test_rows_that_cannot_be_tokens_are_refused_by_name(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"Tokens 'toy': .*{message}"):
        Tokens(rows, "toy")


def test_the_fingerprint_is_a_hash_of_shape_and_little_endian_ids() -> None:
    by_hand = hashlib.sha256(b"2 3" + struct.pack("<6i", *ROWS[0], *ROWS[1])).hexdigest()
    assert (
        Tokens(ROWS, "a").fingerprint
        == Tokens(torch.tensor(ROWS), "b", dropped=1).fingerprint
        == by_hand
    )
    assert Tokens([[4, 1], [2, 4], [3, 1]]).fingerprint != by_hand
    assert Tokens([[4, 1, 2], [4, 3, 0]]).fingerprint != by_hand


def test_taking_rows() -> None:
    tokens = Tokens(torch.arange(12).view(6, 2), "toy", dropped=1)
    assert tokens[4].tolist() == [8, 9]
    assert tokens[np.int64(4)].tolist() == [8, 9]
    assert [row.tolist() for row in tokens] == tokens.rows.tolist()
    for chosen in (
        tokens[1:3],
        tokens[[1, 2]],
        tokens[torch.arange(6).remainder(5).sub(1).abs() < 1 + torch.arange(6) % 2],
    ):
        assert isinstance(chosen, Tokens)
        assert (chosen.name, chosen.dropped) == ("toy", 0)
    assert tokens[1:3].rows.tolist() == tokens[[1, 2]].rows.tolist() == [[2, 3], [4, 5]]
    assert tokens[tokens.rows[:, 0] > 7].rows.tolist() == [[8, 9], [10, 11]]
    with pytest.raises(InputError, match="there are no rows"):
        tokens[6:]


@pytest.mark.parametrize(("first", "sizes"), [(2, (2, 4)), (0.5, (3, 3)), (0.9, (5, 1))])
def test_splitting_keeps_every_row_once_and_in_order(first: float, sizes: tuple[int, int]) -> None:
    tokens = Tokens(torch.arange(12).view(6, 2))
    parts = tokens.split(first)
    assert tuple(map(len, parts)) == sizes
    assert torch.cat([part.rows for part in parts]).equal(tokens.rows)


@pytest.mark.parametrize("first", [0, 6, -1, 1.0, 0.01])
def test_a_split_without_rows_on_one_side_is_refused(first: float) -> None:
    with pytest.raises(
        InputError, match=f"rows on both sides, got {first}. Give a number of rows from 1 to 5"
    ):
        Tokens(torch.arange(12).view(6, 2)).split(first)


def test_a_mixture_has_all_rows_in_a_seeded_order() -> None:
    code, prose = (
        Tokens(torch.arange(200).view(100, 2), "code", 3),
        Tokens(torch.arange(200, 300).view(50, 2), "prose", 4),
    )
    both = mix("all", code, prose)
    assert (both.name, both.dropped) == ("all", 7)
    assert sorted(both.rows.tolist()) == [*code.rows.tolist(), *prose.rows.tolist()]
    assert 0 < int((both.rows[:75, 0] >= 200).sum()) < 50  # shuffled: prose is in both halves
    assert (
        mix("again", code, prose).fingerprint
        == both.fingerprint
        != mix("all", code, prose, seed=1).fingerprint
    )


def test_a_mixture_needs_rows_of_one_length() -> None:
    with pytest.raises(
        InputError, match=r"rows of one length, got Tokens\('a': .* 3 positions\), .* 2 positions"
    ):
        mix("all", Tokens(ROWS, "a"), Tokens([[1, 2]], "b"))
    with pytest.raises(InputError, match="got nothing"):
        mix("all")


def test_tokens_are_saved_whole(tmp_path: Any) -> None:
    tokens = Tokens(ROWS, "toy", dropped=5)
    again = Tokens.load(tokens.save(tmp_path / "toy.npz"))
    assert (again.name, again.dropped, again.fingerprint) == ("toy", 5, tokens.fingerprint)
    save_arrays(
        tmp_path / "other.npz", {"rows": np.zeros((2, 2), dtype=int)}, {"kind": "rllc.Draws"}
    )
    with pytest.raises(FileError, match=r"holds rllc.Draws, not Tokens"):
        Tokens.load(tmp_path / "other.npz")


def test_the_repr_reports_the_dropped_tail() -> None:
    assert (
        repr(Tokens(ROWS, "toy", dropped=1234))
        == "Tokens('toy': 2 rows x 3 positions, 1,234 tokens of the tail dropped)"
    )


# Packing


@pytest.mark.parametrize("context_length", [2, 5, 16, 30])
def test_packing_equals_tokenising_the_documents_joined_by_eos(
    small_tokenizer: Any, context_length: int
) -> None:
    texts = [text for text in TEXTS if text]
    stream = small_tokenizer(small_tokenizer.eos_token.join(texts))["input_ids"]
    size = context_length - 1
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    expected = [[small_tokenizer.bos_token_id, *piece] for piece in pieces if len(piece) == size]
    tokens = tokenize(TEXTS, small_tokenizer, context_length, name="toy")
    assert tokens.rows.tolist() == expected
    assert tokens.dropped == len(stream) % size
    assert tokens.name == "toy"


def test_bos_in_front_of_documents_instead_of_rows(small_tokenizer: Any) -> None:
    bos = small_tokenizer.bos_token_id
    stream = [i for text in TEXTS if text for i in (bos, *small_tokenizer(text)["input_ids"])]
    tokens = tokenize(TEXTS, small_tokenizer, 8, bos="document")
    assert tokens.rows.flatten().tolist() == stream[: len(stream) // 8 * 8]
    assert tokens.dropped == len(stream) % 8


def test_one_special_token_stands_in_for_the_other(small_tokenizer: Any) -> None:
    class OnlyBos:
        bos_token_id, eos_token_id = 7, None
        __call__ = staticmethod(small_tokenizer.__call__)

    class Both(OnlyBos):
        eos_token_id = 8

    assert tokenize(["a", "b"], OnlyBos(), 4).rows.tolist() == [
        [7, *_ids(small_tokenizer, "a"), 7, *_ids(small_tokenizer, "b")]
    ]
    assert tokenize(["a", "b"], Both(), 4).rows.tolist() == [
        [7, *_ids(small_tokenizer, "a"), 8, *_ids(small_tokenizer, "b")]
    ]
    assert tokenize(["a", "b"], Both(), 4, bos="document").rows[0, ::2].tolist() == [7, 7]


def test_text_that_spells_a_special_token_stays_text(small_tokenizer: Any) -> None:
    tokens = tokenize(["a<|endoftext|>b" * 5], small_tokenizer, 8)
    assert tokens.rows[:, 0].eq(299).all()
    assert not tokens.rows[:, 1:].eq(299).any()


def test_rows_do_not_depend_on_the_blocks_that_are_tokenised_together(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(TEXTS * 20, small_tokenizer, 9)
    monkeypatch.setattr("rllc.data.tokens._BLOCK", 1)
    assert tokenize(TEXTS * 20, small_tokenizer, 9).fingerprint == whole.fingerprint


def test_num_rows_takes_the_first_rows_and_stops_reading(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.data.tokens._BLOCK", 100)
    whole = tokenize(TEXTS * 20, small_tokenizer, 9)
    read = iter(TEXTS * 20)
    some = tokenize(read, small_tokenizer, 9, num_rows=7)
    assert some.rows.equal(whole.rows[:7])
    assert some.dropped == 0
    assert len(list(read)) > 100
    assert len(tokenize(TEXTS, small_tokenizer, 9, num_rows=10**6)) == len(
        tokenize(TEXTS, small_tokenizer, 9)
    )


def test_long_documents_give_no_warning(
    small_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = type(small_tokenizer)(
        tokenizer_object=small_tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    )
    tokenizer.model_max_length = 8
    logger = logging.getLogger(
        "transformers"
    )  # it does not propagate to the root, where caplog listens
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
    with pytest.raises(InputError, match=f"tokenising 'toy': .*{message}"):
        tokenize(
            texts, **{"tokenizer": small_tokenizer, "context_length": 8, "name": "toy"} | settings
        )


def test_a_tokenizer_without_bos_and_eos_is_refused(small_tokenizer: Any) -> None:
    bare = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer)
    with pytest.raises(
        InputError, match=r"neither a BOS nor an EOS token. Set one: tokenizer.eos_token"
    ):
        tokenize(["the cat"], bare, 4)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


# Minibatches


def naive_batches(batches: Minibatches, count: int) -> list[list[int]]:
    """The stream, walked from its start: a queue of rows, from which each batch takes the first that it does not hold."""
    queue: list[int] = []
    epoch = 0
    result = []
    for _ in range(count):
        batch: list[int] = []
        while len(batch) < batches.batch_size:
            if not queue:
                queue = batches._permutation(epoch).tolist()
                epoch += 1
            row = next(row for row in queue if row not in batch)
            queue.remove(row)
            batch.append(row)
        result.append(batch)
    return result


@pytest.mark.parametrize("num_rows", range(1, 9))
def test_batches_equal_a_walk_along_the_stream_in_any_order_of_access(num_rows: int) -> None:
    for batch_size in range(1, num_rows + 1):
        batches = Minibatches(num_rows, batch_size, seed=(3, "train"))
        expected = naive_batches(batches, 25)
        assert [batch.tolist() for batch in islice(batches, 25)] == expected
        order = random.Random(0).sample(range(25), 25)
        assert [batches[t].tolist() for t in order] == [expected[t] for t in order]
        assert [Minibatches(num_rows, batch_size, (3, "train"))[t].tolist() for t in order] == [
            expected[t] for t in order
        ]


@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(7, 7), (7, 5), (7, 2), (100, 32), (33, 32), (64, 32)]
)
def test_every_row_is_used_once_before_any_is_used_again(num_rows: int, batch_size: int) -> None:
    batches = Minibatches(num_rows, batch_size, seed=0)
    stream = torch.cat(list(islice(batches, 10 * num_rows // batch_size + 1)))
    for epoch in range(10):
        used = stream[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(used.tolist()) == list(range(num_rows))
    assert all(len(batch.unique()) == batch_size for batch in islice(batches, 200))


def test_batches_that_span_two_epochs_are_uniform_draws() -> None:
    """Each of the 15 sets of 4 of 6 rows is as likely as another in batch 1 (rows 4-5 of one epoch, 0-1 of the next)."""
    runs = 6000
    sets = [tuple(sorted(Minibatches(6, 4, seed)[1].tolist())) for seed in range(runs)]
    counts = torch.tensor([sets.count(found) for found in set(sets)], dtype=torch.float64)
    chi2 = float(((counts - runs / 15) ** 2 / (runs / 15)).sum())
    assert len(counts) == math.comb(6, 4)
    assert chi2 < 56.5  # 14 degrees of freedom: exceeded with probability 5e-7


def test_batches_differ_between_seeds_and_are_the_callers_own() -> None:
    batches = Minibatches(50, 10, seed=0)
    assert batches[3].tolist() != Minibatches(50, 10, seed=1)[3].tolist()
    first = batches[3].clone()
    batches[3].zero_()
    assert batches[3].equal(first)
    assert first.dtype == torch.int64


def test_one_permutation_is_made_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    permutation = Minibatches._permutation
    monkeypatch.setattr(
        Minibatches,
        "_permutation",
        lambda self, epoch: (made.append(epoch), permutation(self, epoch))[1],
    )
    batches = Minibatches(1000, 32, seed=0)
    for t in range(1000):
        batches[t]
    assert made == list(range(32))
    made.clear()
    batches[10**9]  # far away is no dearer: this epoch, and the one before for the seam
    assert len(made) == 2


def test_minibatches_refuse_what_cannot_be_batched() -> None:
    with pytest.raises(
        InputError,
        match=r"batch of 8 rows needs at least as many rows, got 5. Give more data or batch_size=5",
    ):
        Minibatches(5, 8, seed=0)
    with pytest.raises(InputError, match="`batch_size` must be at least 1, got 0"):
        Minibatches(5, 0, seed=0)
    with pytest.raises(InputError, match="taking minibatch -1"):
        Minibatches(5, 2, seed=0)[-1]
    assert repr(Minibatches(5, 2, seed=0)) == "Minibatches(num_rows=5, batch_size=2, seed=0)"
