"""What figures share: colours, axes, bands, a log axis of training steps. Needs the extra ``plot`` when called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COVERS_95 = 1.96
"""Standard errors to each side that cover 95 %."""

# Okabe & Ito's colours, which most colour-blind people can tell apart, and a second round with another dash.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1A1A1A")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
NO_GROUP = "0.55"
"""The colour of what is in no group."""


def new_axes(ax: Axes | None, width: float, height: float = 3.4) -> Axes:
    """The given Axes, or those of a new figure, whose size is in inches."""
    if ax is not None:
        return ax
    return pyplot().subplots(figsize=(width, height), layout="constrained")[1]


def row_of_axes(count: int, width: float = 4.2) -> list[Axes]:
    """Axes of a new figure side by side, with one scale."""
    _, axes = pyplot().subplots(
        1, count, figsize=(1 + width * count, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    return list(axes[0])


def pyplot() -> Any:
    """matplotlib.pyplot.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise InputError("plotting needs matplotlib; type: pip install 'rllc[plot]'") from error
    return plt


def log_steps(ax: Axes, steps: Sequence[int]) -> None:
    """A log axis that also shows step 0, at the left end."""
    positive = [s for s in steps if s > 0]
    if len(positive) > 1 and positive[-1] >= 10 * positive[0]:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
        ticks = [
            10**k
            for k in range(int(np.log10(positive[0])), int(np.log10(positive[-1])) + 1)
            if 10**k >= positive[0]
        ]
        ax.set_xticks(
            [s for s in (0, positive[0], positive[-1]) if s in steps]
            if len(ticks) < 2
            else ([0] if 0 in steps else []) + ticks
        )
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    ax.set_xlim(min(steps), max(steps) * 1.02 + (len(steps) == 1))


def band(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    k: int | None,
    **options: Any,
) -> None:
    """A line in the k-th colour of a figure (grey for ``None``), with its 95 % band where there is an error."""
    color = color_of(k)
    dash = DASHES[(k or 0) // len(COLORS) % len(DASHES)]
    ax.plot(x, y, ms=3, lw=1.4, color=color, ls=dash, **options)
    if np.isfinite(error).any():
        ax.fill_between(x, y - error, y + error, alpha=0.15, lw=0, color=color)


def color_of(k: int | None) -> str:
    """The k-th colour of a figure; grey for what is in no group."""
    return NO_GROUP if k is None else COLORS[k % len(COLORS)]


def lines(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None = None,
) -> list[str]:
    """One line a name, with its band: each in its own colour, or in that of its group. The legend lists them.

    Args:
        x: ``[point]``.
        values: ``[name, point]``; NaN is a gap, and a value between gaps a dot.
        error: ``[name, point]``: half the width of the band; NaN for none.
        groups: name to group. Groups are coloured in the order in which they come here, also those of other names, so that
            figures that are given the same groups give them the same colours.

    Returns:
        The colour of each line.
    """
    numbers = list(range(len(names))) if groups is None else group_numbers(names, groups)
    shown: set[int | None] = {None}
    for i, (name, k) in enumerate(zip(names, numbers, strict=True)):
        label = name if groups is None else None if k in shown else groups[name]
        shown.add(k)
        there = np.pad(np.isfinite(values[i]), 1)
        dots = there[1:-1] & ((~there[:-2] & ~there[2:]) | (len(x) < 12))
        marked = {"marker": "o", "markevery": dots} if dots.any() else {}
        band(ax, x, values[i], error[i], k, label=None if label is None else plain(label), **marked)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(
            frameon=False,
            fontsize="small",
            ncols=1 + (len(names) if groups is None else len(shown)) // 9,
        )
    return [color_of(k) for k in numbers]


def group_numbers(names: Sequence[str], groups: Mapping[str, str]) -> list[int | None]:
    """The place of each name's group among all groups, in the order in which they come; ``None`` for names without."""
    order = {group: k for k, group in enumerate(dict.fromkeys(groups.values()))}
    return [order.get(groups.get(name, "")) for name in names]


def name_ends(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    words: Sequence[str],
    colors: Sequence[str],
) -> None:
    """Words beside the right end of each line, moved apart where they would lie on each other.

    To be called when nothing changes the height of the Axes or what its y axis shows any more. A thin line
    leads from each to its last value; words of lines without a value stand at the bottom.

    Args:
        values: ``[line, point]``.
    """
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    size = min(8.3, height / (1.35 * max(len(words), 1)))
    there = np.isfinite(values)
    last = [int(np.flatnonzero(row)[-1]) if row.any() else None for row in there]
    ends = np.array(
        [(x[-1], np.nan) if j is None else (x[j], values[i, j]) for i, j in enumerate(last)]
    ).reshape(-1, 2)
    wanted = np.nan_to_num((ax.transData + ax.transAxes.inverted()).transform(ends)[:, 1])
    order = np.argsort(wanted, kind="stable")
    for i, place in zip(order, _apart(wanted[order], 1.35 * size / height), strict=True):
        leader = {
            "arrowstyle": "-",
            "lw": 0.5,
            "color": colors[i],
            "alpha": 0.6,
            "shrinkA": 1,
            "shrinkB": 0,
        }
        ax.annotate(
            plain(words[i]),
            (0, 0) if last[i] is None else tuple(ends[i]),
            (1.05, float(place)),
            textcoords="axes fraction",
            fontsize=size,
            va="center",
            color=colors[i],
            annotation_clip=False,
            arrowprops=None if last[i] is None else leader | {"relpos": (0, 0.5)},
        )


def name_dots(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    words: Sequence[str],
    colors: Sequence[str],
) -> None:
    """Words beside dots, each at the nearest free place around its dot; where there is none, they are left out.

    To be called last: places are found by the pixels of the finished figure.

    Args:
        error: ``[2, dot]``: half the lengths of the error bars along x and y, which words keep off where they can.
    """
    ax.figure.canvas.figure.draw_without_rendering()
    point, to_pixels = ax.figure.dpi / 72, ax.transData.transform
    dots = to_pixels(np.column_stack([x, y]))
    bars = [
        np.hstack(
            [
                to_pixels(np.column_stack([x - dx, y - dy])),
                to_pixels(np.column_stack([x + dx, y + dy])),
            ]
        )
        for dx, dy in ((np.nan_to_num(error[0]), 0 * y), (0 * x, np.nan_to_num(error[1])))
    ]
    bars = np.concatenate(bars) + point * np.array([-1, -1, 1, 1])
    circles = np.hstack([dots - 4 * point, dots + 4 * point])
    frame, taken = ax.get_window_extent(), np.empty((0, 4))
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for i, word in enumerate(words):
        measured = ax.text(0, 0, plain(word), fontsize=8)
        size = np.array(measured.get_window_extent().size)
        measured.remove()
        best = None
        for distance, turn in product((6, 11, 17, 24, 32, 42, 54), turns):
            toward = np.array([np.cos(turn), np.sin(turn)])
            center = dots[i] + toward * distance * point + np.clip(toward * 1.5, -1, 1) * size / 2
            box = np.concatenate([center - size / 2, center + size / 2])
            if (
                (box[:2] < frame.min).any()
                or (box[2:] > frame.max).any()
                or _overlap(box, taken) > 0
            ):
                continue
            away = np.linalg.norm(np.delete(dots, i, axis=0) - center, axis=1)
            doubtful = bool((away < 1.3 * np.linalg.norm(dots[i] - center)).any())  # whose it is
            along, across = (
                np.array([toward, toward[::-1] * [-1, 1]])
                @ (np.delete(dots, i, axis=0) - dots[i]).T
            )
            crossed = (
                (along > 0) & (along < distance * point) & (np.abs(across) < 4 * point)
            ).sum()
            covered = (5 * _overlap(box, circles) + 4 * _overlap(box, bars)) / size.prod()
            cost = covered + 0.02 * distance + 0.3 * doubtful + crossed
            if best is None or cost < best[0] - 1e-9:
                best = (cost, box, center, distance > 6 or doubtful)
        if best is None:
            continue
        _, box, center, led = best
        taken = np.vstack([taken, box])
        leader = {"arrowstyle": "-", "lw": 0.6, "color": colors[i], "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            plain(word),
            (x[i], y[i]),
            tuple((center - dots[i]) / point),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            color=colors[i],
            arrowprops=leader if led else None,
        )


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Summed area of what a box shares with others ``[other, (x0, y0, x1, y1)]``."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(sides.clip(min=0).prod(1).sum())


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places in 0 … 1, at least ``gap`` apart, nearest to the wanted ones, which rise; those in each other's way share their
    mean."""
    blocks: list[list[float]] = []  # of places less rank times gap, which need only not fall
    for rank, place in enumerate(wanted):
        blocks.append([place - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    return places.clip(0, max(0.0, 1 - gap * (len(wanted) - 1))) + gap * np.arange(len(wanted))


def zero_line(ax: Axes, values: np.ndarray) -> None:
    """A thin line at 0 where values go below it."""
    if np.nanmin(values, initial=1.0) < 0:
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)


def layer_of(weights: str) -> str:
    """What a panel of a head's layer is called."""
    head = re.fullmatch(r"(\d+):\d+", weights)
    return f"layer {head[1]}" if head else "other weights"


def plain(name: str) -> str:
    """A user's name as text: dollar signs do not begin formulas."""
    return name.replace("$", r"\$")
