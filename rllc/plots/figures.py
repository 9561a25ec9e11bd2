"""Parts that figures share: sizes, colours, lines with bands, marks of faults, an axis of steps.

Needs the extra ``plot`` when called.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError
from rllc.weights.names import head_name, parts_of_head

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COVERS_95 = 1.96
"""Standard errors to each side that cover 95 %, where degrees of freedom are many or unknown.

Intervals of λ̂ are Student's: those of :meth:`rllc.Estimate.interval`."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1A1A1A")
"""Okabe & Ito's, which most colour-blind people can tell apart."""

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
"""A second and a third round of colours have other dashes."""

MARKERS = "os^Dv*P"
"""Markers of data sets and groups, which differ in grey prints, too."""

NO_GROUP = "0.55"
"""The colour of what is in no group."""

_FEW_POINTS = 12
"""Lines of fewer points show each as a dot."""

WIDEST = 7.2
"""Inches of one Axes at most: the two columns of a journal."""

MOST_NAMED = 40
"""Weights whose names fit under an axis, or beside their dots."""

_MOST_COLUMNS = 3
"""Panels side by side."""

MOST_BANDS = 24
"""Lines of one Axes whose bands can be told apart. Those of more hide the lines."""


def of_intervals(what: str, simultaneous: bool) -> str:
    """Say in small print which intervals or bands a figure has.

    >>> of_intervals("interval", simultaneous=True)
    'simultaneous 95 % interval'
    """
    return f"simultaneous 95 % {what}" if simultaneous else f"95 % {what}"


def new_axes(ax: Axes | None, width: float, height: float = 3.4) -> Axes:
    """Return the given Axes, or those of a new figure, whose size is in inches."""
    if ax is not None:
        return ax
    _, ax = pyplot().subplots(figsize=(width, height), layout="constrained")
    return ax


def grid_of_axes(count: int, width: float = 3.3, height: float = 3.4) -> list[Axes]:
    """Return Axes of a new figure, up to three side by side, which share both scales.

    Args:
        count: how many.
        width: of each, in inches.
        height: of each.
    """
    columns = 2 if count == 4 else min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(0.6 + width * columns, 0.4 + height * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = list(axes.ravel())
    for unused in panels[count:]:
        figure.delaxes(unused)
    # Under some of these there is no panel that could have the labels.
    last_of_columns = max(count - columns, 0)
    for panel in panels[last_of_columns:count]:
        panel.tick_params(labelbottom=True)
    return panels[:count]


def height_for_lines(num_lines: int, num_panels: int = 1) -> float:
    """Return the inches that leave each line's name a place, up to a page's."""
    least = 3.4 if num_panels <= 3 else 2.5
    return float(np.clip(0.6 + 0.13 * num_lines, least, 7.5))


def small_print(ax: Axes, words: Iterable[str]) -> None:
    """Write settings, and what marks mean, below a figure.

    Only where there is room for it: in a figure whose layout makes room, and once.
    """
    figure: Any = ax.figure
    text = "; ".join(word for word in words if word)
    makes_room = figure.get_layout_engine() is not None
    if text and makes_room and not figure.get_supxlabel():
        letters = int(15.5 * figure.get_figwidth())
        lines = textwrap.wrap(text, max(letters, 30))
        wrapped = plain("\n".join(lines))
        figure.supxlabel(wrapped, fontsize=7, color="0.35", ha="center")


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


def label_decades(axis: Axis) -> None:
    """Label the powers of ten of a log axis only, if it has one in view.

    Over less than two decades matplotlib labels the ticks between them, too, and these overlap.
    """
    low, high = axis.get_view_interval()
    highest_power = np.floor(np.log10(high))
    lowest_power = np.ceil(np.log10(low))
    if highest_power >= lowest_power:
        axis.set_minor_formatter("")


def log_steps(ax: Axes, steps: Sequence[int]) -> None:
    """Make the x axis a log axis that also shows step 0, at its left end."""
    above_0 = [step for step in steps if step > 0]
    if len(above_0) > 1 and above_0[-1] >= 10 * above_0[0]:
        first = above_0[0]
        last = above_0[-1]
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
        ax.set_xticks(_ticks(steps, first, last))
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    left: float = min(steps)
    right = max(steps) * 1.02
    if 0 in steps and above_0:
        # Step 0 has its own place, half a stride from the first: its marks need room to the left.
        left = left - 0.15 * above_0[0]
    if len(steps) == 1:
        right = right + 1
    ax.set_xlim(left, right)


def _ticks(steps: Sequence[int], first: float, last: float) -> list[float]:
    """Return powers of ten and step 0; where there are fewer than two powers, both ends."""
    lowest_exponent = int(np.log10(first))
    highest_exponent = int(np.log10(last))
    exponents = range(lowest_exponent, highest_exponent + 1)
    powers: list[float] = [10**k for k in exponents if 10**k >= first]
    if len(powers) < 2:
        return [step for step in (0, first, last) if step in steps]
    if 0 in steps:
        return [0, *powers]
    return powers


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
    round_of_colors = (number or 0) // len(COLORS)
    dash = DASHES[round_of_colors % len(DASHES)]
    ax.plot(x, y, ms=3, lw=1.4, color=color, ls=dash, **options)
    if np.isfinite(error).any():
        face = (color, 0.16)
        # The edge keeps a band visible under the others, and in grey.
        edge = (color, 0.45)
        ax.fill_between(x, y - error, y + error, facecolor=face, edgecolor=edge, lw=0.4)


def color_of(number: int | None) -> str:
    """Return a figure's colour of this number; grey for what is in no group."""
    if number is None:
        return NO_GROUP
    return COLORS[number % len(COLORS)]


def lines(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None = None,
) -> list[str]:
    """Draw one line a name, with its band. Each has its own colour, or that of its group.

    What names them is the caller's: :func:`rllc.plots.labels.name_ends`, or a legend.

    Args:
        ax: where to draw.
        x: ``[point]``.
        names: of the lines.
        values: ``[name, point]``; NaN is a gap, and a value between gaps a dot.
        error: ``[name, point]``: half the width of the band; NaN for none. Bands of more than
            :data:`MOST_BANDS` lines are left out; :func:`without_bands` says so.
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
        half_width = error[i]
        if len(names) > MOST_BANDS:
            half_width = np.full_like(half_width, np.nan)
        band(ax, x, values[i], half_width, number, label=label, **options)
    return [color_of(number) for number in numbers]


def without_bands(num_lines: int, error: np.ndarray) -> str:
    """Say how wide bands are that are not drawn; nothing where they are.

    >>> without_bands(144, np.array([[0.5, 1.5, 2.5]]))
    'bands of 144 lines would hide them: half of them are within ± 1.5'
    """
    if num_lines <= MOST_BANDS or not np.isfinite(error).any():
        return ""
    middle = float(np.nanmedian(error))
    return f"bands of {num_lines} lines would hide them: half of them are within ± {middle:.2g}"


def _dots(values: np.ndarray) -> np.ndarray:
    """Return which points of a line need a dot: all of a few, and those between gaps."""
    finite = np.isfinite(values)
    padded = np.pad(finite, 1)
    gap_before = ~padded[:-2]
    gap_behind = ~padded[2:]
    if len(values) < _FEW_POINTS:
        return finite
    return finite & gap_before & gap_behind


def group_numbers(names: Sequence[str], groups: Mapping[str, str]) -> list[int | None]:
    """Return the place of each name's group among all groups; ``None`` for names without."""
    number_of: dict[str, int] = {}
    for group in groups.values():
        number_of.setdefault(group, len(number_of))
    numbers = []
    for name in names:
        group = groups.get(name, "")
        numbers.append(number_of.get(group))
    return numbers


def mark_faults(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    wrong: np.ndarray,
    color: str,
    *,
    marker: str = "o",
    size: float = 4.0,
) -> None:
    """Draw what is not ok hollow, and what has no value as a cross at the bottom.

    Args:
        ax: where the points are.
        x: ``[point]``.
        y: ``[point]``; NaN where chains diverged.
        wrong: ``[point]``: whether something is wrong.
        color: of the points.
        marker: of the points.
        size: of the marks, in points.
    """
    places = np.asarray(x, dtype=float)
    hollow = wrong & np.isfinite(y)
    if hollow.any():
        ax.plot(
            places[hollow],
            y[hollow],
            marker,
            ms=size,
            mfc="white",
            mec=color,
            mew=1.1,
            zorder=3,
        )
    absent = wrong & ~np.isfinite(y)
    if absent.any():
        at = places[absent]
        heights = np.full(len(at), 0.025)
        to_edge = ax.get_xaxis_transform()
        ax.plot(at, heights, "x", ms=size, mew=1.1, color=color, transform=to_edge)


def fit_bands(axes: Sequence[Axes], values: np.ndarray, error: np.ndarray) -> bool:
    """Let values set the scale, and not the widest band; return whether a band is cut.

    Bands may add a quarter of what values span, or two typical bands, to each side: the wide ones
    of a checkpoint at which nothing is known would press all others flat.

    Args:
        axes: which share the scale.
        values: ``[...]``.
        error: ``[...]``: half the widths of the bands; NaN for none.
    """
    has_value = np.isfinite(values)
    finite = values[has_value]
    if not len(finite):
        return False
    widths = np.nan_to_num(error)
    low = float(finite.min())
    high = float(finite.max())
    typical_width = float(np.median(widths[has_value]))
    room = max(0.25 * (high - low), 2 * typical_width)
    lowest = float(np.nanmin(values - widths))
    highest = float(np.nanmax(values + widths))
    bottom = max(lowest, low - room)
    top = min(highest, high + room)
    margin = 0.04 * (top - bottom) or 0.05 * abs(top) or 1.0
    for ax in axes:
        ax.set_ylim(bottom - margin, top + margin)
    return lowest < bottom or highest > top


def zero_line(ax: Axes, values: np.ndarray) -> None:
    """Draw a thin line at 0 where values go below it."""
    if np.nanmin(values, initial=1.0) < 0:
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)


def layer_of(weights: str) -> str:
    """Return what a panel of a head's layer is called.

    >>> layer_of("1:6"), layer_of("decoder.1:6"), layer_of("everything")
    ('layer 1', 'decoder layer 1', 'other weights')
    """
    if head_name(weights) != weights:
        return "other weights"
    tower, layer, _ = parts_of_head(weights)
    return f"{tower} layer {layer}".strip()


def rise_from_0(steps: np.ndarray) -> bool:
    """Whether steps rise, the first being 0 or more.

    >>> rise_from_0(np.array([0, 1, 10])), rise_from_0(np.array([1, 1]))
    (True, False)
    """
    if len(steps) and steps[0] < 0:
        return False
    return not (np.diff(steps) <= 0).any()


def with_roles(names: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    """Return each name with its role behind it, where it has one.

    >>> with_roles(["1:6", "1:7"], {"1:6": "induction"})
    ['1:6 induction', '1:7']
    """
    return [f"{name} {roles.get(name, '')}".strip() for name in names]


def starts(groups: Sequence[object]) -> list[int]:
    """Return the places at which a list goes on to another group.

    >>> starts(["a", "a", "b", "c"])
    [2, 3]
    """
    return [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def plain(name: str) -> str:
    """Return a user's name as text: its dollar signs do not begin formulas."""
    return name.replace("$", r"\$")
