"""Names beside lines and dots, placed so that they do not lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rllc.plots.figures import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT_SIZE = 8
_LARGEST_FONT = 8.3
_SMALLEST_FONT = 5.5
_LINE_SPACING = 1.35

_MOST_DOTS = 40
_NAMED_DOTS = 24
"""Where there are more dots than can be told apart, so many have names."""

_DISTANCES = (6, 11, 17, 24, 32, 42, 54)
"""Points from a dot at which its name may stand."""

_TURNS = np.linspace(0, 2 * np.pi, 16, endpoint=False)
"""Directions from a dot in which its name may stand."""


_MARGIN = np.array([1.5, 0.5])
"""Points kept free left and right of a word, and above and below."""


def name_ends(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    words: Sequence[str],
    colors: Sequence[str],
) -> int:
    """Write words beside the right end of each line, moved apart where they would overlap.

    To be called when nothing changes the height of the Axes, or what its y axis shows, any more. A
    thin line leads from each word to the last value; words of lines without a value stand at the
    bottom. Where there is no room for all, those in the middle of the crowd have none.

    Args:
        ax: where the lines are.
        x: ``[point]``.
        values: ``[line, point]``; NaN where a line has a gap.
        words: one a line.
        colors: one a line.

    Returns:
        How many lines have no words.
    """
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # in points
    ends = np.array([_end(x, curve) for curve in values]).reshape(-1, 2)
    to_axes = ax.transData + ax.transAxes.inverted()
    heights_of_ends = np.nan_to_num(to_axes.transform(ends)[:, 1])
    order = np.argsort(heights_of_ends, kind="stable")
    smallest_line = _LINE_SPACING * _SMALLEST_FONT
    most = max(int(height / smallest_line), 1)
    if len(order) > most:
        num_lowest = most // 2
        num_highest = most - num_lowest
        lowest = order[:num_lowest]
        highest = order[-num_highest:]
        order = np.concatenate([lowest, highest])
    num_words = max(len(order), 1)
    largest_that_fits = height / (_LINE_SPACING * num_words)
    size = min(_LARGEST_FONT, largest_that_fits)
    gap = _LINE_SPACING * size / height
    places = _apart(heights_of_ends[order], gap)
    for i, place in zip(order, places, strict=True):
        has_value = np.isfinite(values[i]).any()
        leader = _leader(colors[i], lw=0.5, alpha=0.6, shrinkA=1, shrinkB=0, relpos=(0, 0.5))
        ax.annotate(
            plain(words[i]),
            tuple(ends[i]) if has_value else (0, 0),
            (1.05, float(place)),
            textcoords="axes fraction",
            fontsize=size,
            va="center",
            color=colors[i],
            annotation_clip=False,
            arrowprops=leader if has_value else None,
        )
    return len(words) - len(order)


def unnamed(count: int) -> str:
    """Say that lines or dots have no name; nothing where all have one."""
    return f"{count} in the crowd have no name" if count else ""


def settle(ax: Axes) -> None:
    """Lay a figure out, so that its Axes have the size in which words are placed."""
    ax.figure.canvas.figure.draw_without_rendering()


def _end(x: Sequence[float] | np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    """Return the last point of a line that has a value; its height is NaN where none has."""
    points = np.flatnonzero(np.isfinite(curve))
    if not len(points):
        return x[-1], np.nan
    last = points[-1]
    return x[last], curve[last]


def _apart(rising: np.ndarray, gap: float) -> np.ndarray:
    """Return places in 0 … 1, at least ``gap`` apart, nearest to the rising ones given.

    By isotonic regression. Less rank · gap the new places need only not fall, so places that would
    fall are joined to a block, and a block stands at its mean.
    """
    blocks: list[list[float]] = []
    for rank, place in enumerate(rising):
        block = [place - rank * gap]
        while blocks and np.mean(blocks[-1]) > np.mean(block):
            block = blocks.pop() + block
        blocks.append(block)
    means = [np.full(len(block), np.mean(block)) for block in blocks]
    highest = max(0.0, 1 - gap * (len(rising) - 1))
    without_gaps = np.concatenate(means).clip(0, highest)
    return without_gaps + gap * np.arange(len(rising))


def name_dots(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    words: Sequence[str],
    colors: Sequence[str],
    remarkable: np.ndarray | None = None,
    most: int | None = None,
) -> int:
    """Write words beside dots, each at the best free place; where there is none, leave it out.

    To be called last: places are found by the pixels of the finished figure. Of more than 40 dots
    only the 24 most remarkable have names: those of all would bury them.

    Args:
        ax: where the dots are.
        x: ``[dot]``.
        y: ``[dot]``.
        error: ``[2, dot]``: half the lengths of the error bars along x and y, which words keep off
            where they can.
        words: one a dot.
        colors: one a dot.
        remarkable: ``[dot]``: how much a dot deserves a name; ``None``: by its distance from the
            middle of the others.
        most: how many names to write; ``None``: as said.

    Returns:
        How many dots have no name.
    """
    settle(ax)
    canvas = _Canvas.of(ax, x, y, error)
    boxes_of_words = np.empty((0, 4))
    if most is None:
        most = len(words) if len(words) <= _MOST_DOTS else _NAMED_DOTS
    chosen = np.arange(len(words))
    if len(words) > most:
        if remarkable is None:
            middle = np.median(canvas.dots, axis=0)
            remarkable = np.linalg.norm(canvas.dots - middle, axis=1)
        order = np.argsort(-remarkable, kind="stable")
        chosen = order[:most]
    for i in chosen.tolist():
        word = words[i]
        size = canvas.size_of(word)
        place = canvas.best_place(i, size, boxes_of_words)
        if place is None:
            continue
        boxes_of_words = np.vstack([boxes_of_words, place.box])
        offset = (place.center - canvas.dots[i]) / canvas.point
        leader = _leader(colors[i], lw=0.6, shrinkA=0, shrinkB=2)
        ax.annotate(
            plain(word),
            (x[i], y[i]),
            tuple(offset),
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            ha="center",
            va="center",
            color=colors[i],
            arrowprops=leader if place.needs_leader else None,
        )
    return len(words) - len(boxes_of_words)


class _Place(NamedTuple):
    """Where a word may stand; boxes are ``(x0, y0, x1, y1)`` in pixels."""

    cost: float
    box: np.ndarray
    center: np.ndarray
    needs_leader: bool


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Dots and error bars in pixels, which words keep off."""

    ax: Axes
    point: float
    """Pixels of a typographic point."""
    dots: np.ndarray
    """``[dot, 2]``: their centres."""
    circles: np.ndarray
    """``[dot, 4]``: boxes around the dots."""
    bars: np.ndarray
    """``[bar, 4]``: boxes around the error bars."""

    @classmethod
    def of(cls, ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray) -> _Canvas:
        point = ax.figure.dpi / 72
        dots = _pixels(ax, x, y)
        x_error, y_error = np.nan_to_num(error)
        left = _pixels(ax, x - x_error, y)
        right = _pixels(ax, x + x_error, y)
        bottom = _pixels(ax, x, y - y_error)
        top = _pixels(ax, x, y + y_error)
        lines_along_x = np.hstack([left, right])
        lines_along_y = np.hstack([bottom, top])
        lines = np.concatenate([lines_along_x, lines_along_y])
        return cls(
            ax=ax,
            point=point,
            dots=dots,
            circles=np.hstack([dots - 4 * point, dots + 4 * point]),
            bars=lines + point * np.array([-1, -1, 1, 1]),
        )

    def size_of(self, word: str) -> np.ndarray:
        """Return width and height of a word with a margin, by writing it once."""
        text = self.ax.text(0, 0, plain(word), fontsize=_FONT_SIZE)
        size = np.array(text.get_window_extent().size)
        text.remove()
        return size + 2 * self.point * _MARGIN

    def best_place(self, i: int, size: np.ndarray, boxes_of_words: np.ndarray) -> _Place | None:
        """Return the cheapest place around dot i that is free of words; ``None`` if none is."""
        frame = self.ax.get_window_extent()
        best = None
        for distance, turn in product(_DISTANCES, _TURNS):
            toward = np.array([np.cos(turn), np.sin(turn)])
            edge = np.clip(toward * 1.5, -1, 1) * size / 2
            center = self.dots[i] + toward * distance * self.point + edge
            lower = center - size / 2
            upper = center + size / 2
            if np.any(lower < frame.min) or np.any(upper > frame.max):
                continue
            box = np.concatenate([lower, upper])
            if _overlap(box, boxes_of_words) > 0:
                continue
            place = self._place(i, distance, toward, center, box)
            # Costs that differ by rounding are equal; the first place is then the nearer one.
            if best is None or place.cost < best.cost - 1e-9:
                best = place
        return best

    def _place(
        self,
        i: int,
        distance: int,
        toward: np.ndarray,
        center: np.ndarray,
        box: np.ndarray,
    ) -> _Place:
        """Weigh what a word covers, how far off it is, and whether it seems another dot's."""
        width, height = box[2:] - box[:2]
        dot = self.dots[i]
        other_dots = np.delete(self.dots, i, axis=0)
        from_center = np.linalg.norm(other_dots - center, axis=1)
        is_doubtful = bool(np.any(from_center < 1.3 * np.linalg.norm(dot - center)))
        num_crossed = self._num_crossed(other_dots - dot, toward, distance)
        covered = 5 * _overlap(box, self.circles) + 4 * _overlap(box, self.bars)
        share_covered = covered / (width * height)
        cost = share_covered + 0.02 * distance + 0.3 * is_doubtful + num_crossed
        is_far = distance > _DISTANCES[0]
        return _Place(cost, box, center, is_far or is_doubtful)

    def _num_crossed(self, from_dot: np.ndarray, toward: np.ndarray, distance: int) -> int:
        """Count the dots ``[dot, 2]``, seen from one, that a leader this long runs into."""
        sideways = toward[::-1] * [-1, 1]
        directions = np.array([toward, sideways])
        along, across = directions @ from_dot.T
        is_beside_leader = (along > 0) & (along < distance * self.point)
        is_near = np.abs(across) < 4 * self.point
        return int((is_beside_leader & is_near).sum())


def _pixels(ax: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points = np.column_stack([x, y])
    return ax.transData.transform(points)


def _overlap(box: np.ndarray, boxes: np.ndarray) -> float:
    """Return the summed area that a box shares with others, ``[box, (x0, y0, x1, y1)]``."""
    lower = np.maximum(box[:2], boxes[:, :2])
    upper = np.minimum(box[2:], boxes[:, 2:])
    sides = (upper - lower).clip(min=0)
    areas = sides.prod(axis=1)
    return float(areas.sum())


def _leader(color: str, **options: Any) -> dict[str, Any]:
    """Return how to draw the thin line from a word to what it names."""
    return {"arrowstyle": "-", "color": color, **options}
