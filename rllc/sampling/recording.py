"""What is kept of the values that are measured along chains."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_PENDING_BYTES = 2**25
"""Bytes that wait on the device before they are copied: a copy at every draw would wait for it."""

_PENDING_DRAWS = 64

_FIRST_BYTES = 2**30
"""Up to this size an array gets its final length at once; longer ones grow by doubling."""


class Column:
    """One quantity along the draws, ``[refinement, chain, draw, *axes]``.

    Args:
        num_draws: how many are expected.
        earlier: the values of earlier draws, which the new ones follow.
    """

    def __init__(self, num_draws: int, earlier: np.ndarray | None = None) -> None:
        self.num_draws, self.length = num_draws, 0
        self.values: np.ndarray | None = None
        self.shape: tuple[int, ...] | None = None
        self.pending: list[Tensor] = []
        self.pending_bytes = 0
        if earlier is not None:
            self.shape = (*earlier.shape[:2], *earlier.shape[3:])
            self._make_room(earlier[:, :, 0], earlier.shape[2])
            self._write(earlier)

    def append(self, values: Tensor) -> None:
        """Add one draw, ``[refinement, chain, *axes]``."""
        if self.shape is None:
            self.shape = tuple(values.shape)
        elif values.shape != self.shape:
            # The data set with the longest rows has stopped; its rows stay this long.
            values = _padded(values, self.shape)
        self.pending.append(values)
        self.pending_bytes += values.numel() * values.element_size()
        if self.pending_bytes > _PENDING_BYTES or len(self.pending) >= _PENDING_DRAWS:
            self._flush()

    @property
    def array(self) -> np.ndarray | None:
        """All values so far; ``None`` if there are none."""
        self._flush()
        return None if self.values is None else self.values[:, :, : self.length]

    def _flush(self) -> None:
        if not self.pending:
            return
        block = torch.stack(self.pending, 2).cpu().numpy()
        self.pending, self.pending_bytes = [], 0
        self._make_room(block[:, :, 0], self.length + block.shape[2])
        self._write(block)

    def _make_room(self, one_draw: np.ndarray, length: int) -> None:
        capacity = 0 if self.values is None else self.values.shape[2]
        if length <= capacity:
            return
        fits = one_draw.nbytes * self.num_draws <= _FIRST_BYTES
        capacity = max(length, self.num_draws if fits else 2 * capacity)
        shape = (*one_draw.shape[:2], capacity, *one_draw.shape[2:])
        larger = np.empty(shape, one_draw.dtype)
        if self.values is not None:
            larger[:, :, : self.length] = self.values[:, :, : self.length]
        self.values = larger

    def _write(self, block: np.ndarray) -> None:
        assert self.values is not None
        self.values[:, :, self.length : self.length + block.shape[2]] = block
        self.length += block.shape[2]


@dataclass
class RunningMoments:
    """Mean and covariance over the draws of each chain, by Welford's update.

    Args:
        mean: of earlier draws, ``[refinement, chain, *axes]``; ``covariance`` alike, with one more
            axis: ``[refinement, chain, value, value]``, the values being all axes in one.
        count: number of earlier draws, ``[refinement, chain]``.
    """

    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    count: np.ndarray | None = None
    _sums: np.ndarray | None = field(default=None, repr=False)

    def append(self, values: Tensor) -> None:
        """Add one draw, ``[refinement, chain, *axes]``; refinements that have stopped are NaN."""
        draw = values.double().cpu().numpy()
        if self.mean is None or self.count is None:
            self.mean, self.count = np.zeros_like(draw), np.zeros(draw.shape[:2])
        flat = draw.reshape(*draw.shape[:2], -1)
        mean = self.mean.reshape(flat.shape)
        if self._sums is None:
            self._sums = self._earlier_sums(flat.shape)
        running = ~np.isnan(flat).all(-1)
        self.count += running
        deviation = np.where(running[..., None], flat - mean, 0.0)
        mean = mean + deviation / np.maximum(self.count, 1)[..., None]
        rest = np.where(running[..., None], flat - mean, 0.0)
        self._sums += deviation[..., :, None] * rest[..., None, :]
        self.mean = mean.reshape(draw.shape)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[refinement, chain, *axes]``, covariance ``[refinement, chain, value, value]``."""
        assert self.mean is not None
        assert self.count is not None
        assert self._sums is not None
        return self.mean, self._sums / np.maximum(self.count - 1, 1)[..., None, None]

    def _earlier_sums(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.covariance is None or self.count is None:
            return np.zeros((*shape, shape[-1]))
        return self.covariance * np.maximum(self.count - 1, 1)[..., None, None]


class Page:
    """The values of one step, gathered from passes: ``[refinement, chain, *axes]`` by name.

    A refinement without a value has NaN (integers: −1). Where data sets have rows of different
    lengths, the shorter ones have NaN behind them.
    """

    def __init__(self, refinements: int, chains: int) -> None:
        self.shape = (refinements, chains)
        self.values: dict[str, Tensor] = {}

    def put(self, name: str, values: Tensor, refinement: Tensor, chain: Tensor) -> None:
        """Put the values ``[run, *axes]`` of a pass where they belong."""
        present = self.values.get(name)
        axes = values.shape[1:]
        if present is None:
            present = _blank((*self.shape, *axes), values)
        elif present.shape[2:] != axes:
            longest = [max(pair) for pair in zip(present.shape[2:], axes, strict=True)]
            present = _padded(present, (*self.shape, *longest))
            values = _padded(values, (len(values), *longest))
        present[refinement, chain] = values
        self.values[name] = present


def _padded(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    wider = _blank(shape, values)
    wider[tuple(slice(length) for length in values.shape)] = values
    return wider


def _blank(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_full(shape, torch.nan if like.is_floating_point() else -1)
