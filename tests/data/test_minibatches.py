"""Minibatches: against a slow walk along the stream, as uniform draws, and what is refused."""

from __future__ import annotations

import math
import random
from itertools import islice

import pytest
import torch
from torch import Tensor

from rllc.data import Minibatches
from rllc.errors import InputError


def walk(batches: Minibatches, count: int) -> list[list[int]]:
    """The first batches, walking along the stream of rows from its start.

    The stream is a queue of rows. A batch takes the first rows that it does not hold already.
    """
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
    shuffled = random.Random(0).sample(range(25), 25)
    for batch_size in range(1, num_rows + 1):
        batches = Minibatches(num_rows, batch_size, seed=(3, "train"))
        expected = walk(batches, 25)
        assert [batch.tolist() for batch in islice(batches, 25)] == expected
        for t in shuffled:
            unused = Minibatches(num_rows, batch_size, seed=(3, "train"))
            assert batches[t].tolist() == expected[t]
            assert unused[t].tolist() == expected[t]


@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(7, 7), (7, 5), (7, 2), (100, 32), (33, 32), (64, 32)]
)
def test_every_row_is_used_once_before_any_is_used_again(num_rows: int, batch_size: int) -> None:
    batches = Minibatches(num_rows, batch_size, seed=0)
    num_batches = 10 * num_rows // batch_size + 1
    stream = torch.cat(list(islice(batches, num_batches)))
    for epoch in range(10):
        rows = stream[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(rows.tolist()) == list(range(num_rows))
    for batch in islice(batches, 200):
        assert len(batch.unique()) == batch_size


@pytest.mark.slow
def test_batches_that_span_two_epochs_are_uniform_draws() -> None:
    """In batch 1 each of the 15 sets of 4 of 6 rows is as likely as another.

    The batch is rows 4 and 5 of one epoch and rows 0 and 1 of the next.
    """
    num_seeds = 6000
    sets = []
    for seed in range(num_seeds):
        batch = Minibatches(6, 4, seed)[1]
        sets.append(tuple(sorted(batch.tolist())))
    counts = torch.tensor([sets.count(rows) for rows in set(sets)], dtype=torch.float64)
    expected = num_seeds / 15
    chi2 = ((counts - expected).square() / expected).sum()
    assert len(counts) == math.comb(6, 4)
    # With 14 degrees of freedom this is exceeded with probability 5e-7.
    assert chi2 < 56.5


def test_batches_differ_between_seeds() -> None:
    assert Minibatches(50, 10, seed=0)[3].tolist() != Minibatches(50, 10, seed=1)[3].tolist()


def test_batches_are_the_callers_own() -> None:
    batches = Minibatches(50, 10, seed=0)
    batch = batches[3].clone()
    batches[3].zero_()
    assert batches[3].equal(batch)
    assert batch.dtype == torch.int64


def test_one_permutation_is_made_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    permutation = Minibatches._permutation

    def counted(self: Minibatches, epoch: int) -> Tensor:
        epochs.append(epoch)
        return permutation(self, epoch)

    monkeypatch.setattr(Minibatches, "_permutation", counted)
    batches = Minibatches(1000, 32, seed=0)
    for t in range(1000):
        batches[t]
    assert epochs == list(range(32))
    # A batch far away costs two permutations: its epoch's, and the one before for the seam.
    epochs.clear()
    batches[10**9]
    assert len(epochs) == 2


def test_what_cannot_be_batched_is_refused() -> None:
    message = r"batch of 8 rows needs at least as many rows, got 5. Give more data or batch_size=5"
    with pytest.raises(InputError, match=message):
        Minibatches(5, 8, seed=0)
    with pytest.raises(InputError, match="`batch_size` must be at least 1, got 0"):
        Minibatches(5, 0, seed=0)
    with pytest.raises(InputError, match="taking minibatch -1"):
        Minibatches(5, 2, seed=0)[-1]


def test_the_repr_says_what_the_batches_depend_on() -> None:
    assert repr(Minibatches(5, 2, seed=0)) == "Minibatches(num_rows=5, batch_size=2, seed=0)"
