"""The figure of λ̂ over nβ, with the slopes that single runs know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.calibration.resolution import Resolution
from rllc.covariances.elasticities import Elasticities
from rllc.errors import must_be
from rllc.estimates.faults import Fault
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    band,
    color_of,
    fit_bands,
    height_for_lines,
    label_decades,
    new_axes,
    of_intervals,
    plain,
    small_print,
    zero_line,
)
from rllc.plots.labels import name_ends, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 1.5
"""A slope is drawn from nβ/1.5 to 1.5·nβ."""


def plot_resolution(
    resolution: Resolution,
    ax: Axes | None = None,
    *,
    simultaneous: bool = False,
    slopes: Sequence[Elasticities] = (),
) -> Axes:
    """Draw λ̂ as a curve over nβ, on a log axis: one line a refinement with its 95 % band.

    Points with faults are crosses; those of diverged chains stand at zero. Rings are points whose
    λ̂ the prior alone gives; where most are, the figure is shaded.

    >>> ax = plot_resolution(curve)

    Args:
        resolution: what :func:`rllc.resolution` gave.
        ax: where to draw; ``None`` makes a figure.
        simultaneous: whether the bands hold together with 95 % at all nβ of all lines.
        slopes: what :func:`rllc.covariances.elasticities` gave for single runs, drawn as short
            lines.
    """
    right = isinstance(resolution, Resolution)
    must_be("plot_resolution", "resolution", resolution, right, "what rllc.resolution gave")
    is_new = ax is None
    ax = new_axes(ax, width=5.4, height=height_for_lines(len(resolution.weights)))
    several_data = len(set(resolution.data)) > 1
    half_width = resolution.mean.half_width(simultaneous=simultaneous)
    words = []
    for row, (weights, data) in enumerate(resolution.names):
        name = f"{weights}, {data}" if several_data else weights
        words.append(name)
        values = resolution.value[:, row]
        error = half_width[:, row]
        band(ax, resolution.n_beta, values, error, row, label=plain(name), marker="o")
        _mark_points(ax, resolution, row)
    ax.set_xscale("log")
    fit_bands([ax], resolution.value.T, half_width.T)
    _shade_prior(ax, resolution)
    ax.xaxis.set_major_formatter(lambda n_beta, _: f"{n_beta:g}")
    label_decades(ax.xaxis)
    ax.set_xlabel(r"$n\beta$")
    ax.set_ylabel(rf"$\hat\lambda$ ({of_intervals('band', simultaneous)})")
    zero_line(ax, resolution.value)
    draw_slopes(slopes, ax)
    _explain_marks(ax, resolution)
    if is_new:
        settings = resolution.estimates[0].settings
        shared = {}
        for name in ("num_chains", "num_draws"):
            if name in settings:
                shared[name] = settings[name]
        small_print(ax, [sampled(shared)])
    settle(ax)
    colors = [color_of(row) for row in range(len(words))]
    name_ends(ax, resolution.n_beta, resolution.value.T, words, colors)
    return ax


def _mark_points(ax: Axes, resolution: Resolution, row: int) -> None:
    """Draw rings where the prior alone gives λ̂, and crosses where something else is wrong."""
    n_beta = resolution.n_beta
    values = resolution.value[:, row]
    color = color_of(row)
    by_prior = resolution.by_prior[:, row]
    ax.plot(n_beta[by_prior], values[by_prior], "o", ms=8, mfc="none", mew=1.2, color=color)
    wrong = np.array([_is_wrong(faults[row]) for faults in resolution.faults])
    heights = np.nan_to_num(values[wrong])
    ax.plot(n_beta[wrong], heights, "x", ms=8, mew=2, color=color)


def _explain_marks(ax: Axes, resolution: Resolution) -> None:
    """Say what rings and crosses are, where there are any."""
    from matplotlib.lines import Line2D

    marks = []
    if resolution.by_prior.any():
        marks.append(Line2D([], [], marker="o", ms=8, mfc="none", mec="0.3", ls=""))
        marks[-1].set_label("the prior alone gives this")
    if any(any(map(_is_wrong, faults)) for faults in resolution.faults):
        marks.append(Line2D([], [], marker="x", ms=7, mew=2, color="0.3", ls=""))
        marks[-1].set_label("not ok; at zero: chains diverged")
    if marks:
        ax.legend(
            handles=marks,
            frameon=False,
            fontsize="small",
            ncols=2,
            loc="lower left",
            bbox_to_anchor=(0, 1),
        )


def _is_wrong(faults: Sequence[Fault]) -> bool:
    """Whether something is wrong beside that the prior dominates."""
    return any(fault.kind != "prior_dominated" for fault in faults)


def _shade_prior(ax: Axes, resolution: Resolution) -> None:
    """Shade the nβ, from the smallest on, at which the prior alone gives most λ̂."""
    most = resolution.by_prior.mean(1) > 0.5
    if not most[0]:
        return
    n_beta = resolution.n_beta
    low, high = ax.get_xlim()
    edge = high
    if not most.all():
        first_beyond = int(most.argmin())
        edge = float(np.sqrt(n_beta[first_beyond - 1] * n_beta[first_beyond]))
    ax.axvspan(low, edge, color="0.93", lw=0, zorder=0)
    ax.set_xlim(low, high)
    ax.annotate(
        "the prior alone",
        (0.01, 0.98),
        xycoords="axes fraction",
        va="top",
        fontsize="small",
        color="0.4",
    )


def draw_slopes(slopes: Sequence[Elasticities], ax: Axes) -> Axes:
    """Draw dλ̂/d log nβ of each run as a short line through its λ̂.

    The curve between two runs should leave along these lines: where it does not, there are too few
    draws, or too few nβ.

    >>> ax = rllc.plot_resolution(curve)
    >>> ax = draw_slopes([rllc.covariances.elasticities(draws)], ax)

    Args:
        slopes: of :func:`rllc.covariances.elasticities`, of the refinements of the curve in the
            same order.
        ax: of :func:`rllc.plot_resolution`.

    Returns:
        The Axes.

    Raises:
        InputError: ``slopes`` are something else.
    """
    right = not isinstance(slopes, Elasticities)
    right = right and all(isinstance(slope, Elasticities) for slope in slopes)
    must_be(
        "draw_slopes", "slopes", slopes, right, "a list of what rllc.covariances.elasticities gave"
    )
    for slope in slopes:
        n_beta = slope.settings["n_beta"]
        reach = np.array([1 / _REACH, _REACH])
        for row, llc in enumerate(slope.llc.value):
            height = llc + slope.n_beta.value[row] * np.log(reach)
            ax.plot(n_beta * reach, height, "-", color=color_of(row), lw=2.5, alpha=0.6)
    return ax
