"""Figures of curves: over training, over nβ, over draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.draws import Draws
from rllc.elasticities import Elasticities
from rllc.errors import InputError, must_be, nearest
from rllc.estimate import Estimate
from rllc.faults import Fault
from rllc.plots.figures import (
    COLORS,
    COVERS_95,
    band,
    layer_of,
    lines,
    log_steps,
    new_axes,
    of_intervals,
    plain,
    zero_line,
)
from rllc.plots.labels import name_ends
from rllc.plots.selection import (
    by_head_name,
    groups_by_name,
    one_or_all,
    panels_for,
    rows_of_data,
)
from rllc.plots.slopes import draw_slopes
from rllc.resolution import Resolution
from rllc.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_trajectory(
    trajectory: Trajectory,
    data: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    simultaneous: bool = False,
) -> Axes | np.ndarray:
    """Draw λ̂ over training: one line a head with its 95 % band, a panel a layer.

    Bands are Student's (:meth:`rllc.Trajectory.interval`).

    >>> axes = plot_trajectory(trajectory, "code", groups={"1:6": "induction"})    # doctest: +SKIP

    Args:
        trajectory: what :func:`rllc.track` or a :class:`rllc.Tracker` gave. Gaps are diverged
            estimates.
        data: which data set; may be left out when there is one.
        ax: one Axes for all lines, or one for each layer; ``None`` makes a figure with a panel a
            layer.
        groups: weights to role or cluster, as for :func:`plot_curves`.
        simultaneous: whether the bands hold together with 95 % at all checkpoints of all lines of
            the figure. Otherwise each does at each checkpoint.

    Returns:
        The Axes when one was given or there is one panel, else an array of them ``[layer]``.

    Raises:
        InputError: no such data, several data sets and none chosen, another number of Axes than of
            layers, or groups of other weights.
    """
    right = isinstance(trajectory, Trajectory)
    must_be("plot_trajectory", "trajectory", trajectory, right, "what rllc.track gave")
    if data is not None:
        must_be("plot_trajectory", "data", data, isinstance(data, str), "a data set's name")
    rows = rows_of_data(trajectory.data, data, "plot_trajectory")
    all_names = [trajectory.weights[row] for row in rows]
    groups = groups_by_name("plot_trajectory", all_names, groups)
    rows_of_layers: dict[str, list[int]] = {}
    for row in rows:
        rows_of_layers.setdefault(layer_of(trajectory.weights[row]), []).append(row)
    if ax is not None and not isinstance(ax, Sequence | np.ndarray):
        rows_of_layers = {"": rows}
    of_data = trajectory.mean.take(rows)
    half_width = dict(zip(rows, of_data.half_width(simultaneous=simultaneous).T, strict=True))
    width = 4.2 if groups is None else 5.2
    panels = panels_for(ax, list(rows_of_layers), width, doing="plot_trajectory", what="layers")
    drawn = []
    for panel, (layer, rows_of_layer) in zip(panels, rows_of_layers.items(), strict=True):
        names = [trajectory.weights[row] for row in rows_of_layer]
        values = trajectory.value[:, rows_of_layer].T
        error = np.stack([half_width[row] for row in rows_of_layer])
        colors = _over_steps(panel, trajectory.steps, names, values, error, groups)
        drawn.append((panel, names, values, colors))
        panel.set_title(layer, fontsize="medium")
    # Names come last, when all panels have their common height.
    for panel, names, values, colors in drawn:
        _name_ends(panel, trajectory.steps, names, values, colors, groups)
    several_data = len(set(trajectory.data)) > 1
    on = f" on {plain(trajectory.data[rows[0]])}" if several_data else ""
    panels[0].set_ylabel(rf"$\hat\lambda${on} ({of_intervals('band', simultaneous)})")
    return one_or_all(panels)


def plot_curves(
    curves: Mapping[str, Sequence[float] | np.ndarray],
    steps: Sequence[int],
    *,
    error: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    groups: Mapping[str, str] | None = None,
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw any number of each head over training: ablations, traces, compositions.

    As :func:`plot_trajectory` draws λ̂.

    >>> ax = plot_curves({"1:6": [0.0, 0.2, 0.9]}, [0, 100, 1000], ylabel="Δloss") # doctest: +SKIP

    Args:
        curves: name to values ``[checkpoint]``; NaN is a gap.
        steps: ``[checkpoint]``: training steps, rising from 0 or later; a log axis where they span
            a factor of ten.
        error: name to standard errors ``[checkpoint]``, for bands of 95 % (± 1.96 of them, as their
            degrees of freedom are not known); some names may have none.
        groups: name to role or cluster, such as ``dict(zip(roles.heads, roles.roles))``. Lines of
            one group then share a colour, grey being for names without a group; the legend lists
            the groups, and each line's name and group stand beside its right end. Figures that are
            given the same groups colour them alike.
        ylabel: what the numbers are, with their unit.
        ax: where to draw; ``None`` makes a figure. Names stand beside the Axes: leave room, as
            ``layout="constrained"`` does.

    Raises:
        InputError: no curves, not one value a step, steps that do not rise, or errors or groups of
            other names.
    """
    times = np.asarray(steps, dtype=np.float64)
    if times.ndim != 1 or not len(times) or times[0] < 0 or (np.diff(times) <= 0).any():
        raise InputError(
            f"plot_curves: `steps` must be rising training steps from 0 on, got {steps!r}."
        )
    if not curves:
        raise InputError("plot_curves: expected at least one curve, got none.")
    curves = by_head_name(curves)
    error = by_head_name(error or {})
    for name in error:
        if name not in curves:
            raise InputError(f"plot_curves: `error` names {name!r}; {nearest(name, curves)}")
    names = list(curves)
    no_error = np.full(len(times), np.nan)
    values = np.stack([_at_steps(curves[name], times, f"curve {name!r}") for name in names])
    errors = [_at_steps(error.get(name, no_error), times, f"error of {name!r}") for name in names]
    groups = groups_by_name("plot_curves", names, groups)
    ax = new_axes(ax, width=5.0 if groups is None else 6.2)
    colors = _over_steps(ax, times.tolist(), names, values, COVERS_95 * np.stack(errors), groups)
    _name_ends(ax, times, names, values, colors, groups)
    ax.set_ylabel(ylabel)
    return ax


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

    >>> ax = plot_resolution(curve)                                                # doctest: +SKIP

    Args:
        resolution: what :func:`rllc.resolution` gave.
        ax: where to draw; ``None`` makes a figure.
        simultaneous: whether the bands hold together with 95 % at all nβ of all lines.
        slopes: what :func:`rllc.elasticities` gave for single runs, drawn as short lines.
    """
    right = isinstance(resolution, Resolution)
    must_be("plot_resolution", "resolution", resolution, right, "what rllc.resolution gave")
    ax = new_axes(ax, width=5.0)
    several_data = len(set(resolution.data)) > 1
    pairs = zip(resolution.weights, resolution.data, strict=True)
    half_width = resolution.mean.half_width(simultaneous=simultaneous)
    for row, (weights, data) in enumerate(pairs):
        values = resolution.value[:, row]
        band(
            ax,
            resolution.n_beta,
            values,
            half_width[:, row],
            row,
            label=plain(f"{weights}, {data}" if several_data else weights),
            marker="o",
        )
        by_prior = resolution.by_prior[:, row]
        ax.plot(
            resolution.n_beta[by_prior],
            values[by_prior],
            "o",
            ms=8,
            mfc="none",
            mew=1.2,
            color=COLORS[row % len(COLORS)],
        )
        wrong = np.array([_is_wrong(faults[row]) for faults in resolution.faults])
        ax.plot(
            resolution.n_beta[wrong],
            np.nan_to_num(values[wrong]),
            "x",
            ms=8,
            mew=2,
            color=COLORS[row % len(COLORS)],
        )
    ax.set_xscale("log")
    _shade_prior(ax, resolution)
    ax.xaxis.set_major_formatter(lambda n_beta, _: f"{n_beta:g}")
    ax.set_xlabel(r"$n\beta$")
    ax.set_ylabel(rf"$\hat\lambda$ ({of_intervals('band', simultaneous)})")
    zero_line(ax, resolution.value)
    draw_slopes(slopes, ax)
    ax.legend(frameon=False, fontsize="small", ncols=1 + len(resolution.weights) // 9)
    return ax


def _is_wrong(faults: Sequence[Fault]) -> bool:
    """Whether something is wrong beside that the prior dominates."""
    return any(fault.kind != "prior_dominated" for fault in faults)


def _shade_prior(ax: Axes, resolution: Resolution) -> None:
    """Shade the nβ, from the smallest on, at which the prior alone gives most λ̂."""
    most = resolution.by_prior.mean(1) > 0.5
    if not most[0]:
        return
    count = len(most) if most.all() else int(most.argmin())
    n_beta = resolution.n_beta
    low, high = ax.get_xlim()
    edge = high if count == len(n_beta) else float(np.sqrt(n_beta[count - 1] * n_beta[count]))
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


def plot_traces(
    draws: Draws | Estimate,
    weights: str | None = None,
    data: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw nβ (loss − baseline) at every draw, one thin line a chain, with its running mean.

    A healthy trace rises from 0, levels off, has no spikes, and its chains agree.

    >>> ax = plot_traces(draws, "1:6")                                             # doctest: +SKIP

    Args:
        draws: what :func:`rllc.sample` or :func:`rllc.estimate` gave.
        weights: which weights; may be left out when there is one refinement.
        data: which data; may be left out when these weights have one.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: no such refinement, or several and none chosen; an estimate without its draws.
    """
    if not isinstance(draws, Draws | Estimate):
        raise InputError(
            f"plot_traces: expected rllc.Draws or rllc.Estimate, got {type(draws).__name__}."
        )
    for name, value in (("weights", weights), ("data", data)):
        right = value is None or isinstance(value, str)
        must_be("plot_traces", name, value, right, "a name, or left out")
    if draws.llc is None:
        raise InputError(
            "plot_traces: this estimate is without its draws, as those of a trajectory are; pass "
            "what rllc.sample, rllc.estimate or Sweep.draws gave."
        )
    row = _row_of(draws, weights, data)
    # A refinement that reached its target_se has NaN behind its last draw.
    num_draws = int(np.isfinite(draws.llc[row]).any(axis=0).sum())
    ax = new_axes(ax, width=5.0)
    for chain, values in enumerate(draws.llc[row, :, :num_draws]):
        draw_numbers = np.arange(1, len(values) + 1)
        running_mean = np.cumsum(values) / draw_numbers
        color = COLORS[chain % len(COLORS)]
        ax.plot(draw_numbers, values, lw=0.6, alpha=0.35, color=color)
        ax.plot(draw_numbers, running_mean, lw=1.6, color=color, label=f"chain {chain}")
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_title(plain(f"{draws.weights[row]} on {draws.data[row]}"), fontsize="medium")
    ax.set_xlabel("draw")
    ax.set_ylabel(r"$n\beta\,(\ell - \ell^*)$ and its running mean")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _row_of(draws: Draws | Estimate, weights: str | None, data: str | None) -> int:
    pairs = list(zip(draws.weights, draws.data, strict=True))
    rows = []
    for row, (its_weights, its_data) in enumerate(pairs):
        if weights in (None, its_weights) and data in (None, its_data):
            rows.append(row)
    if len(rows) == 1:
        return rows[0]
    problem = f"matches {len(rows)} refinements; name one" if rows else "matches nothing"
    closest = nearest(f"{weights}, {data}", [", ".join(pair) for pair in pairs])
    raise InputError(f"plot_traces({weights!r}, {data!r}): {problem}; {closest}")


def _at_steps(curve: Sequence[float] | np.ndarray, steps: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(curve, dtype=np.float64)
    if values.shape != steps.shape:
        raise InputError(
            f"plot_curves: {what} must have one value for each of {len(steps)} steps, "
            f"got {list(values.shape)}."
        )
    return values


def _over_steps(
    ax: Axes,
    steps: Sequence[int],
    names: Sequence[str],
    values: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None,
) -> list[str]:
    """Draw lines ``[name, checkpoint]`` over training; return their colours."""
    colors = lines(ax, steps, names, values, error, groups)
    log_steps(ax, steps)
    zero_line(ax, values)
    ax.set_xlabel("training step")
    return colors


def _name_ends(
    ax: Axes,
    steps: Sequence[int] | np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    colors: Sequence[str],
    groups: Mapping[str, str] | None,
) -> None:
    """Write name and group at each line's end; without groups the legend names the lines."""
    if groups is None:
        return
    words = [f"{name} {groups.get(name, '')}".strip() for name in names]
    name_ends(ax, steps, values, words, colors)
