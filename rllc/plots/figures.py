"""What figures share: colours, axes, lines with bands, a log axis of training steps.

Needs the extra ``plot`` when called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COVERS_95 = 1.96
"""Standard errors to each side that cover 95 %, where degrees of freedom are many or unknown.

Intervals of λ̂ are Student's: those of :meth:`rllc.Estimate.interval`."""


def of_intervals(what: str, simultaneous: bool) -> str:
    """Say in small print which intervals or bands a figure has.

    >>> of_intervals("interval", simultaneous=True)
    'simultaneous 95 % interval'
    """
    return f"simultaneous 95 % {what}" if simultaneous else f"95 % {what}"


# Okabe & Ito's, which most colour-blind people can tell apart. A second round has other dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1A1A1A")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
NO_GROUP = "0.55"
"""The colour of what is in no group."""

_FEW_POINTS = 12
"""Lines of fewer points show each as a dot."""


def new_axes(ax: Axes | None, width: float, height: float = 3.4) -> Axes:
    """Return the given Axes, or those of a new figure, whose size is in inches."""
    if ax is not None:
        return ax
    _, ax = pyplot().subplots(figsize=(width, height), layout="constrained")
    return ax


def row_of_axes(count: int, width: float = 4.2) -> list[Axes]:
    """Return Axes of a new figure side by side, with one scale."""
    _, axes = pyplot().subplots(
        1,
        count,
        figsize=(1 + width * count, 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    return list(axes[0])


def pyplot() -> Any:
    """Return matplotlib.pyplot.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise InputError("plotting needs matplotlib; type: pip install 'rllc[plot]'") from error
    return plt


def log_steps(ax: Axes, steps: Sequence[int]) -> None:
    """Make the x axis a log axis that also shows step 0, at its left end."""
    above_0 = [step for step in steps if step > 0]
    if len(above_0) > 1 and above_0[-1] >= 10 * above_0[0]:
        ax.set_xscale("symlog", linthresh=above_0[0], linscale=0.4)
        ax.set_xticks(_ticks(steps, above_0[0], above_0[-1]))
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    ax.set_xlim(min(steps), max(steps) * 1.02 + (len(steps) == 1))


def _ticks(steps: Sequence[int], first: float, last: float) -> list[float]:
    """Return powers of ten and step 0; where there are fewer than two powers, both ends."""
    exponents = range(int(np.log10(first)), int(np.log10(last)) + 1)
    powers = [10**k for k in exponents if 10**k >= first]
    if len(powers) < 2:
        return [step for step in (0, first, last) if step in steps]
    return [0, *powers] if 0 in steps else powers


def band(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    number: int | None,
    **options: Any,
) -> None:
    """Draw a line with its band.

    Args:
        ax: where to draw.
        x: ``[point]``.
        y: ``[point]``.
        error: ``[point]``: half the width of the band; all NaN for none.
        number: of the line in its figure, for colour and dash; ``None`` is grey.
        options: of ``Axes.plot``.
    """
    color = color_of(number)
    dash = DASHES[(number or 0) // len(COLORS) % len(DASHES)]
    ax.plot(x, y, ms=3, lw=1.4, color=color, ls=dash, **options)
    if np.isfinite(error).any():
        ax.fill_between(x, y - error, y + error, alpha=0.15, lw=0, color=color)


def color_of(number: int | None) -> str:
    """Return a figure's colour of this number; grey for what is in no group."""
    return NO_GROUP if number is None else COLORS[number % len(COLORS)]


def lines(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None = None,
) -> list[str]:
    """Draw one line a name, with its band, and a legend.

    Each line has its own colour, or that of its group.

    Args:
        ax: where to draw.
        x: ``[point]``.
        names: of the lines.
        values: ``[name, point]``; NaN is a gap, and a value between gaps a dot.
        error: ``[name, point]``: half the width of the band; NaN for none.
        groups: name to group. Groups are coloured in the order in which they come here, also those
            of other names, so that figures that are given the same groups colour them alike.

    Returns:
        The colour of each line.
    """
    numbers: list[int | None] = list(range(len(names)))
    if groups is not None:
        numbers = group_numbers(names, groups)
    in_legend: set[int | None] = {None}
    for i, (name, number) in enumerate(zip(names, numbers, strict=True)):
        label: str | None = plain(name)
        if groups is not None:
            label = None if number in in_legend else plain(groups[name])
            in_legend.add(number)
        options: dict[str, Any] = {}
        dots = _dots(values[i])
        if dots.any():
            options = {"marker": "o", "markevery": dots}
        band(ax, x, values[i], error[i], number, label=label, **options)
    if ax.get_legend_handles_labels()[0]:
        num_entries = len(names) if groups is None else len(in_legend)
        ax.legend(frameon=False, fontsize="small", ncols=1 + num_entries // 9)
    return [color_of(number) for number in numbers]


def _dots(values: np.ndarray) -> np.ndarray:
    """Return which points of a line need a dot: all of a few, and those between gaps."""
    finite = np.isfinite(values)
    padded = np.pad(finite, 1)
    alone = ~padded[:-2] & ~padded[2:]
    return finite & (alone | (len(values) < _FEW_POINTS))


def group_numbers(names: Sequence[str], groups: Mapping[str, str]) -> list[int | None]:
    """Return the place of each name's group among all groups; ``None`` for names without."""
    order = {group: number for number, group in enumerate(dict.fromkeys(groups.values()))}
    return [order.get(groups.get(name, "")) for name in names]


def zero_line(ax: Axes, values: np.ndarray) -> None:
    """Draw a thin line at 0 where values go below it."""
    if np.nanmin(values, initial=1.0) < 0:
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)


def layer_of(weights: str) -> str:
    """Return what a panel of a head's layer is called.

    >>> layer_of("1:6"), layer_of("everything")
    ('layer 1', 'other weights')
    """
    head = re.fullmatch(r"(\d+):\d+", weights)
    return f"layer {head[1]}" if head else "other weights"


def plain(name: str) -> str:
    """Return a user's name as text: its dollar signs do not begin formulas."""
    return name.replace("$", r"\$")
