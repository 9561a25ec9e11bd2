"""Values that are measured along chains, recorded draw by draw."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_PENDING_BYTES = 2**25
"""Bytes that are gathered on the device before a copy, because a copy waits for the device."""

_PENDING_DRAWS = 64
"""Draws that are gathered on the device before a copy."""

_FIRST_BYTES = 2**30
"""Up to this size an array gets its final length at once; longer ones grow by doubling."""


class Column:
    """One quantity along the draws, ``[refinement, chain, draw, *axes]``.

    Args:
        num_draws: how many are expected.
        earlier: the values of earlier draws, which the new ones follow.
    """

    def __init__(self, num_draws: int, earlier: np.ndarray | None = None) -> None:
        self.num_draws = num_draws
        self.length = 0
        self.values: np.ndarray | None = None
        self.shape: tuple[int, ...] | None = None
        self.pending: list[Tensor] = []
        self.pending_bytes = 0
        if earlier is not None:
            refinements, chains, length, *axes = earlier.shape
            self.shape = (refinements, chains, *axes)
            self._make_room(earlier[:, :, 0], length)
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
        has_many_draws = len(self.pending) >= _PENDING_DRAWS
        has_many_bytes = self.pending_bytes > _PENDING_BYTES
        if has_many_draws or has_many_bytes:
            self._flush()

    @property
    def array(self) -> np.ndarray | None:
        """All values so far; ``None`` if there are none."""
        self._flush()
        if self.values is None:
            return None
        return self.values[:, :, : self.length]

    def _flush(self) -> None:
        """Copy what is pending from the device into the array."""
        if not self.pending:
            return
        stacked = torch.stack(self.pending, 2)
        block = stacked.cpu().numpy()
        self.pending = []
        self.pending_bytes = 0
        length = self.length + block.shape[2]
        self._make_room(block[:, :, 0], length)
        self._write(block)

    def _make_room(self, one_draw: np.ndarray, length: int) -> None:
        """Make the array long enough for so many draws like this one."""
        capacity = 0
        if self.values is not None:
            capacity = self.values.shape[2]
        if length <= capacity:
            return
        bytes_of_all_draws = one_draw.nbytes * self.num_draws
        if bytes_of_all_draws <= _FIRST_BYTES:
            capacity = max(length, self.num_draws)
        else:
            capacity = max(length, 2 * capacity)
        refinements, chains, *axes = one_draw.shape
        shape = (refinements, chains, capacity, *axes)
        larger = np.empty(shape, one_draw.dtype)
        if self.values is not None:
            larger[:, :, : self.length] = self.values[:, :, : self.length]
        self.values = larger

    def _write(self, block: np.ndarray) -> None:
        """Put new draws ``[refinement, chain, draw, *axes]`` behind those in the array."""
        assert self.values is not None
        end = self.length + block.shape[2]
        self.values[:, :, self.length : end] = block
        self.length = end


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
        runs = draw.shape[:2]
        if self.mean is None or self.count is None:
            self.mean = np.zeros_like(draw)
            self.count = np.zeros(runs)
        values_of_run = draw.reshape(*runs, -1)  # [refinement, chain, value]
        mean = self.mean.reshape(values_of_run.shape)
        if self._sums is None:
            self._sums = self._earlier_sums(values_of_run.shape)
        has_stopped = np.isnan(values_of_run).all(-1, keepdims=True)
        is_running = ~has_stopped
        self.count += is_running[..., 0]
        count = np.maximum(self.count, 1)
        from_old_mean = np.where(is_running, values_of_run - mean, 0.0)
        mean = mean + from_old_mean / count[..., None]
        from_new_mean = np.where(is_running, values_of_run - mean, 0.0)
        self._sums += from_old_mean[..., :, None] * from_new_mean[..., None, :]
        self.mean = mean.reshape(draw.shape)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[refinement, chain, *axes]``, covariance ``[refinement, chain, value, value]``."""
        assert self.mean is not None
        assert self.count is not None
        assert self._sums is not None
        covariance = self._sums / self._degrees(self.count)
        return self.mean, covariance

    def _earlier_sums(self, shape: tuple[int, ...]) -> np.ndarray:
        """Sums of products over earlier draws, ``[refinement, chain, value, value]``."""
        if self.covariance is None or self.count is None:
            num_values = shape[-1]
            return np.zeros((*shape, num_values))
        return self.covariance * self._degrees(self.count)

    @staticmethod
    def _degrees(count: np.ndarray) -> np.ndarray:
        """Degrees of freedom of covariances, ``[refinement, chain, 1, 1]``; at least 1."""
        degrees = np.maximum(count - 1, 1)
        return degrees[..., None, None]


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
        page = self.values.get(name)
        axes = values.shape[1:]
        if page is None:
            page = _blank((*self.shape, *axes), values)
        elif page.shape[2:] != axes:
            lengths = zip(page.shape[2:], axes, strict=True)
            longest_axes = [max(pair) for pair in lengths]
            page = _padded(page, (*self.shape, *longest_axes))
            values = _padded(values, (len(values), *longest_axes))
        page[refinement, chain] = values
        self.values[name] = page


def _padded(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values in a larger shape, with blanks behind them on each axis."""
    padded = _blank(shape, values)
    place = tuple(slice(length) for length in values.shape)
    padded[place] = values
    return padded


def _blank(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of NaN, or of −1 where values are integers."""
    blank = torch.nan if like.is_floating_point() else -1
    return like.new_full(shape, blank)
