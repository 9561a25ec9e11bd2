"""The figure of λ̂ of each choice of weights, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError, must_be
from rllc.estimates.estimate import Estimate
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    MARKERS,
    MOST_NAMED,
    WIDEST,
    color_of,
    layer_of,
    mark_faults,
    new_axes,
    of_intervals,
    plain,
    pyplot,
    small_print,
    starts,
    zero_line,
)
from rllc.plots.labels import name_dots
from rllc.plots.selection import (
    faults_of_rows,
    one_or_all,
    rows_of_data,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SIDE_BY_SIDE = 120
"""Dots that one Axes can hold side by side."""

_HIGHEST = 6
"""Dots with a name of their own, where the axis cannot name them all."""


def plot_heads(
    estimate: Estimate,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    simultaneous: bool = False,
) -> Axes | np.ndarray:
    """Draw λ̂ of each choice of weights as a dot with its 95 % interval, one colour a data set.

    Intervals are Student's (:meth:`rllc.Estimate.interval`). What is not ok is hollow, and a cross
    at zero where chains diverged. From 40 heads on the axis names their layers; the highest have
    their own names.

    >>> ax = plot_heads(estimate)

    Args:
        estimate: what :func:`rllc.estimate` gave.
        ax: where to draw: one Axes, or one for each data set; ``None`` makes a figure, with a panel
            for each data set where one could not hold them side by side.
        simultaneous: whether all intervals of the figure hold together with 95 %. Otherwise one of
            twenty is expected to miss, so that of 16 heads some interval misses in half of all
            figures.

    Returns:
        The Axes, or an array of them ``[data]`` where each data set has its own.

    Raises:
        InputError: the number of Axes is neither 1 nor that of data sets.
    """
    right = all(hasattr(estimate, name) for name in ("weights", "data", "value", "mean"))
    must_be("plot_heads", "estimate", estimate, right, "what rllc.estimate gave")
    weights = list(dict.fromkeys(estimate.weights))
    data = list(dict.fromkeys(estimate.data))
    is_new = ax is None
    panels = _panels_of_data(ax, len(weights), data)
    half_width = estimate.mean.half_width(simultaneous=simultaneous)
    num_wrong = 0
    for number, name in enumerate(data):
        rows = rows_of_data(estimate.data, name, "plot_heads")
        places = np.array([weights.index(estimate.weights[row]) for row in rows], dtype=float)
        if len(panels) == 1:
            # Data sets stand side by side.
            places += _beside(number, len(data))
        wrong = np.array([bool(faults) for faults in faults_of_rows(estimate, rows)])
        num_wrong += int(wrong.sum())
        size = 5.0 if len(weights) * len(data) <= 40 else 3.0
        panel = panels[number % len(panels)]
        numbers = np.array([places, estimate.value[rows], half_width[rows]])
        _intervals(panel, numbers, wrong, number, size, plain(name))
        if len(panels) > 1:
            panel.set_title(plain(name), fontsize="medium")
    ylabel = rf"$\hat\lambda$ ({of_intervals('interval', simultaneous)})"
    for panel in panels:
        for edge in _layer_edges(weights):
            panel.axvline(edge, color="0.85", lw=0.8, zorder=0)
        label_weights(panel, weights)
        zero_line(panel, estimate.value)
        panel.set_ylabel(ylabel)
    for panel in panels[:-1]:
        panel.set_xlabel("")
    if len(data) > 1 and len(panels) == 1:
        panels[0].legend(
            frameon=False,
            fontsize="small",
            ncols=len(data),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.1,
        )
    if is_new:
        marks = f"hollow or ×: not ok ({num_wrong} of {len(estimate.value)})" if num_wrong else ""
        small_print(panels[0], [sampled(getattr(estimate, "settings", {})), marks])
    if len(weights) > MOST_NAMED:
        _name_highest(panels, estimate, weights, data, half_width)
    return one_or_all(panels)


def _panels_of_data(
    ax: Axes | Sequence[Axes] | None, num_weights: int, data: Sequence[str]
) -> list[Axes]:
    """Return one Axes, or one for each data set."""
    if ax is not None:
        panels = list(np.atleast_1d(np.array(ax, dtype=object)))
        if len(panels) not in (1, len(data)):
            raise InputError(
                f"plot_heads: expected one Axes, or one for each of {len(data)} data sets, "
                f"got {len(panels)}."
            )
        return panels
    is_crowded = num_weights * len(data) > _MOST_SIDE_BY_SIDE and len(data) > 1
    if is_crowded:
        _, axes = pyplot().subplots(
            len(data),
            1,
            figsize=(WIDEST, 0.6 + 1.9 * len(data)),
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        return list(axes)
    of_a_head = 0.2 + 0.12 * len(data)
    width = max(4.0, 1.2 + of_a_head * num_weights)
    return [new_axes(None, width=min(width, WIDEST))]


def _beside(number: int, count: int) -> float:
    """How far from a head's place a data set's dot stands."""
    return min(0.16, 0.8 / count) * (number - (count - 1) / 2)


def _intervals(
    ax: Axes, numbers: np.ndarray, wrong: np.ndarray, number: int, size: float, label: str
) -> None:
    """Draw dots, ``numbers [(place, value, half width), head]``, and their faults."""
    x, y, half_width = numbers
    color, marker = color_of(number), MARKERS[number % len(MARKERS)]
    look: dict[str, Any] = {
        "ms": size,
        "capsize": 2 if size > 4 else 0,
        "lw": 1.2 if size > 4 else 0.8,
    }
    ax.errorbar(x, y, yerr=half_width, fmt=marker, color=color, label=label, **look)
    diverged = ~np.isfinite(y)
    mark_faults(ax, x, y, wrong & ~diverged, color, marker=marker, size=size)
    ax.plot(x[diverged], np.zeros(diverged.sum()), "x", ms=8, mew=2, color=color)


def _name_highest(
    panels: Sequence[Axes],
    estimate: Estimate,
    weights: Sequence[str],
    data: Sequence[str],
    half_width: np.ndarray,
) -> None:
    """Name the highest dots: of each panel, or of the only one."""
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.12 * (high - low))
    is_shared = len(panels) == 1
    finite = np.flatnonzero(np.isfinite(estimate.value)).tolist()
    for number, panel in enumerate(panels):
        rows = finite
        if not is_shared:
            rows = [row for row in finite if estimate.data[row] == data[number]]
        sets = [data.index(estimate.data[row]) for row in rows]
        beside = [_beside(k, len(data)) if is_shared else 0.0 for k in sets]
        places = [weights.index(estimate.weights[row]) for row in rows]
        name_dots(
            panel,
            np.array(places) + np.array(beside),
            estimate.value[rows],
            error=np.array([np.zeros(len(rows)), half_width[rows]]),
            words=[estimate.weights[row] for row in rows],
            colors=[color_of(k) for k in sets],
            remarkable=estimate.value[rows],
            most=_HIGHEST,
        )


def label_weights(ax: Axes, weights: Sequence[str]) -> None:
    """Write the names of weights under the x axis, one a unit; of many, those of their layers."""
    margin = 0.7 + len(weights) / 100
    ax.set_xlim(-margin, len(weights) - 1 + margin)
    if len(weights) > MOST_NAMED:
        _label_layers(ax, weights)
        return
    room = ax.get_window_extent().width / ax.figure.dpi / len(weights)
    longest = max(len(name) for name in weights)
    rotation = 0 if 0.085 * longest < room else 90
    names = [plain(name) for name in weights]
    ax.set_xticks(range(len(weights)), names, rotation=rotation, fontsize="small")
    ax.set_xlabel("weights")


def _label_layers(ax: Axes, weights: Sequence[str]) -> None:
    """Write the layers in the middle of their heads."""
    edges = [-0.5, *_layer_edges(weights), len(weights) - 0.5]
    first_heads = [int(edge + 0.5) for edge in edges[:-1]]
    layers = [layer_of(weights[head]) for head in first_heads]
    numbers = [layer.removeprefix("layer ") for layer in layers]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    if len(middles) > MOST_NAMED:
        middles, numbers = [], []
    ax.set_xticks(middles, numbers, fontsize="small")
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("layer, its heads from left to right")


def _layer_edges(weights: Sequence[str]) -> list[float]:
    """Places between the heads of one layer and those of the next."""
    layers = [layer_of(name) for name in weights]
    return [start - 0.5 for start in starts(layers)]
