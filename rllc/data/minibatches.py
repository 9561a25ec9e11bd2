"""Seeded minibatches of row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any

import torch
from torch import Tensor

from rllc.errors import InputError
from rllc.seeds import generator


class Minibatches:
    """Seeded, shuffled minibatches of row numbers.

    Batch ``t`` is a function of (num_rows, batch_size, seed, t) only. The stream of rows is one
    permutation of all rows after the other, permutation ``e`` seeded by ``(seed, e)``; batch ``t``
    is its positions ``t * batch_size`` up to ``(t + 1) * batch_size``. So every row is used once
    before any is used again. No row is twice in one batch: where a batch spans two permutations,
    rows of the second that the batch already holds are moved back behind it. Every batch is thus a
    uniform draw without replacement, and batches can be asked for in any order.

    >>> batches = Minibatches(num_rows=10, batch_size=5, seed=0)
    >>> sorted(torch.cat([batches[0], batches[1]]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    Args:
        num_rows: rows of the data.
        batch_size: rows a batch, at most ``num_rows``.
        seed: an integer, or a tuple that says what the batches are for.

    Raises:
        InputError: ``batch_size`` is below 1 or there are fewer rows than a batch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int | tuple[Any, ...]) -> None:
        _check(num_rows, batch_size)
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        # Batches are mostly asked for one after the other, so only the last order is kept.
        self._last = (-1, torch.empty(0, dtype=torch.int64))

    def __repr__(self) -> str:
        sizes = f"num_rows={self.num_rows}, batch_size={self.batch_size}"
        return f"Minibatches({sizes}, seed={self.seed!r})"

    def __getitem__(self, t: int) -> Tensor:
        """Row numbers ``[batch]`` of batch ``t`` (int64, CPU), ``t`` = 0, 1, 2, … without end."""
        if t < 0:
            raise InputError(
                f"taking minibatch {t}: the stream has a first batch, 0, and no last one; give t "
                f">= 0."
            )
        epoch, start = divmod(t * self.batch_size, self.num_rows)
        batch = self._order(epoch)[start : start + self.batch_size]
        missing = self.batch_size - len(batch)
        if missing == 0:
            return batch.clone()
        return torch.cat([batch, self._order(epoch + 1)[:missing]])

    def __iter__(self) -> Iterator[Tensor]:
        """Batches 0, 1, 2, … without end."""
        t = 0
        while True:
            yield self[t]
            t += 1

    def _order(self, epoch: int) -> Tensor:
        """The rows of one epoch, in the order in which they are used.

        An order depends on the end of the one before, so orders are built one after the other, from
        the last one that is known or can be had at once.
        """
        last_epoch, order = self._last
        if epoch == last_epoch:
            return order
        begin = self._independent_epoch(epoch)
        if begin <= last_epoch < epoch:
            begin = last_epoch
        else:
            order = self._permutation(begin)
        for following in range(begin + 1, epoch + 1):
            order = self._repaired(following, order)
        self._last = (epoch, order)
        return order

    def _independent_epoch(self, epoch: int) -> int:
        """An epoch, ``epoch`` or one before it, from whose bare permutation one may build on."""
        if self.num_rows >= 2 * self.batch_size:
            # Only the end of an order matters to the next one, and the repair at an order's front
            # does not reach its end.
            return max(epoch - 1, 0)
        # The last epoch that began together with a batch, which is therefore not repaired.
        period = self.batch_size // gcd(self.num_rows, self.batch_size)
        return epoch - epoch % period

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.num_rows, generator=generator("minibatches", self.seed, epoch))

    def _repaired(self, epoch: int, previous: Tensor) -> Tensor:
        """The permutation of ``epoch``, with no row twice in the batch that ``previous`` began.

        Args:
            epoch: 1 or more.
            previous: the order of the epoch before.
        """
        order = self._permutation(epoch)
        num_held = epoch * self.num_rows % self.batch_size
        if num_held == 0:
            return order
        # At most `num_held` of the first `batch_size` rows are held by the batch already, so the
        # rows that complete it are among these.
        front = order[: self.batch_size]
        is_held = torch.isin(front, previous[-num_held:])
        fresh = front[~is_held]
        missing = self.batch_size - num_held
        positions_of_held = torch.nonzero(is_held)[:, 0]
        positions_left_over = torch.nonzero(~is_held)[missing:, 0]
        moved_back = torch.cat([positions_of_held, positions_left_over]).sort().values
        return torch.cat([fresh[:missing], front[moved_back], order[self.batch_size :]])


def _check(num_rows: int, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"making minibatches: `batch_size` must be at least 1, got {batch_size}.")
    if num_rows < batch_size:
        raise InputError(
            f"making minibatches: a batch of {batch_size} rows needs at least as many rows, got "
            f"{num_rows}. Give more data or batch_size={max(num_rows, 1)} or less."
        )
