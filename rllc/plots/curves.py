"""Figures of curves: over training, over nβ, over draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.calibration.resolution import Resolution
from rllc.covariances.elasticities import Elasticities
from rllc.errors import InputError, must_be, nearest
from rllc.estimates.estimate import Estimate
from rllc.estimates.faults import Fault
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    COLORS,
    DASHES,
    MOST_BANDS,
    band,
    color_of,
    fit_bands,
    label_decades,
    layer_of,
    lines,
    log_steps,
    mark_faults,
    new_axes,
    of_intervals,
    plain,
    small_print,
    without_bands,
    zero_line,
)
from rllc.plots.labels import name_ends, settle, unnamed
from rllc.plots.selection import (
    by_head_name,
    groups_by_name,
    one_or_all,
    panels_for,
    rows_of_data,
)
from rllc.plots.slopes import draw_slopes
from rllc.sampling.draws import Draws
from rllc.statistics.quantiles import student_quantile
from rllc.sweep.trajectory import Trajectory
from rllc.tables import with_error

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

    Bands are Student's (:meth:`rllc.Trajectory.interval`). What is not ok is hollow; a cross at the
    bottom is a checkpoint without an estimate, because chains diverged or it is missing. The name
    of each line, and its group, stand at its end. Values set the scale: a band that is far wider
    than the others is cut, which the small print says.

    >>> axes = plot_trajectory(trajectory, "code", groups={"1:6": "induction"})

    Args:
        trajectory: what :func:`rllc.track` or a :class:`rllc.Tracker` gave.
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
    most_lines = max(map(len, rows_of_layers.values()))
    width = 2.9 if groups is None else 3.5
    panels = panels_for(
        ax,
        list(rows_of_layers),
        width if len(rows_of_layers) > 1 else 5.0,
        doing="plot_trajectory",
        what="layers",
        height=_height(most_lines, len(rows_of_layers)),
    )
    is_empty = not any(panel.has_data() for panel in panels)
    drawn = []
    for panel, (layer, rows_of_layer) in zip(panels, rows_of_layers.items(), strict=True):
        names = [trajectory.weights[row] for row in rows_of_layer]
        values = trajectory.value[:, rows_of_layer].T
        error = np.stack([half_width[row] for row in rows_of_layer])
        colors = _over_steps(panel, trajectory.steps, names, values, error, groups)
        for row, curve, color in zip(rows_of_layer, values, colors, strict=True):
            wrong = np.array([bool(faults[row]) for faults in trajectory.faults])
            size = 4.0 if len(trajectory) <= _MOST_POINTS else 2.8
            mark_faults(panel, trajectory.steps, curve, wrong, color, size=size)
        drawn.append((panel, names, values, colors))
        panel.set_title(layer, fontsize="medium")
    several_data = len(set(trajectory.data)) > 1
    on = f" on {plain(trajectory.data[rows[0]])}" if several_data else ""
    of_bands = f" ({of_intervals('band', simultaneous)})" if most_lines <= MOST_BANDS else ""
    _label_edges(panels, rf"$\hat\lambda${on}{of_bands}")
    all_widths = np.stack([half_width[row] for row in rows])
    drawn_widths = all_widths if most_lines <= MOST_BANDS else np.zeros_like(all_widths)
    is_cut = is_empty and fit_bands(panels, trajectory.value[:, rows].T, drawn_widths)
    num_wrong = sum(bool(faults[row]) for faults in trajectory.faults for row in rows)
    marks = f"hollow or ×: not ok ({num_wrong} of {len(rows) * len(trajectory)})"
    words = [sampled(trajectory.settings), marks if num_wrong else ""]
    words.append(without_bands(most_lines, all_widths))
    words.append("the widest bands are cut" if is_cut else "")
    # Names come last, when all panels have their common height.
    if ax is None:
        small_print(panels[0], words)
    for panel in {panel.figure: panel for panel in panels}.values():
        settle(panel)
    num_unnamed = 0
    for panel, names, values, colors in drawn:
        num_unnamed += _name_ends(panel, trajectory.steps, names, values, colors, groups)
    if ax is None and num_unnamed:
        _say_again(panels[0], [*words, unnamed(num_unnamed)])
    return one_or_all(panels)


_MOST_POINTS = 40
"""Checkpoints from which on marks are small, so that they do not hide each other."""


def _height(num_lines: int, num_panels: int) -> float:
    """Return the inches that leave each line's name a place, up to a page's."""
    least = 3.4 if num_panels <= 3 else 2.5
    return float(np.clip(0.6 + 0.13 * num_lines, least, 7.5))


def _label_edges(panels: Sequence[Axes], ylabel: str) -> None:
    """Label the y axis where a row begins, and the x axis where a column ends."""
    for panel in panels:
        place = panel.get_subplotspec()
        if panel is panels[0] or (place is not None and place.is_first_col()):
            panel.set_ylabel(ylabel)
        below = [tick.label1.get_visible() for tick in panel.xaxis.get_major_ticks()]
        if below and not any(below):
            panel.set_xlabel("")


def plot_curves(
    curves: Mapping[str, Sequence[float] | np.ndarray],
    steps: Sequence[int],
    *,
    error: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    dof: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    groups: Mapping[str, str] | None = None,
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw any number of each head over training: ablations, traces, compositions.

    As :func:`plot_trajectory` draws λ̂.

    >>> ax = plot_curves({"1:6": [0.0, 0.2, 0.9]}, [0, 100, 1000], ylabel="Δloss")

    Args:
        curves: name to values ``[checkpoint]``; NaN is a gap.
        steps: ``[checkpoint]``: training steps, rising from 0 or later; a log axis where they span
            a factor of ten.
        error: name to standard errors ``[checkpoint]``, for Student's bands of 95 %; some names
            may have none.
        dof: name to the degrees of freedom of these errors ``[checkpoint]``. Without them they are
            taken to be many, as of means over thousands of tokens; the small print says which.
        groups: name to role or cluster, such as ``dict(zip(roles.heads, roles.roles))``. Lines of
            one group then share a colour, grey being for names without a group. Each line's name
            and group stand beside its right end. Figures that are given the same groups colour
            them alike.
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
    dof = by_head_name(dof or {})
    for argument, given in (("error", error), ("dof", dof)):
        for name in given:
            if name not in curves:
                closest = nearest(name, curves)
                raise InputError(f"plot_curves: `{argument}` names {name!r}; {closest}")
    names = list(curves)
    unknown, many = np.full(len(times), np.nan), np.full(len(times), np.inf)
    values = np.stack([_at_steps(curves[name], times, f"curve {name!r}") for name in names])
    widths = []
    for name in names:
        errors = _at_steps(error.get(name, unknown), times, f"error of {name!r}")
        freedom = _at_steps(dof.get(name, many), times, f"dof of {name!r}")
        widths.append(student_quantile(0.95, freedom) * errors)
    groups = groups_by_name("plot_curves", names, groups)
    is_new = ax is None
    ax = new_axes(ax, width=5.0 if groups is None else 6.2, height=_height(len(names), 1))
    is_empty = not ax.has_data()
    colors = _over_steps(ax, times.tolist(), names, values, np.stack(widths), groups)
    ax.set_ylabel(ylabel)
    words = [without_bands(len(names), np.stack(widths))]
    if error and not words[0]:
        words.append("95 % bands" + ("" if dof else ", of many degrees of freedom"))
    drawn_widths = np.zeros_like(values) if words[0] else np.stack(widths)
    is_cut = is_empty and fit_bands([ax], values, drawn_widths)
    words.append("the widest are cut" if is_cut else "")
    if is_new:
        small_print(ax, words)
    settle(ax)
    num_unnamed = _name_ends(ax, times, names, values, colors, groups)
    if is_new and num_unnamed:
        _say_again(ax, [*words, unnamed(num_unnamed)])
    return ax


def _say_again(ax: Axes, words: Sequence[str]) -> None:
    """Write the small print anew, when it is known how many lines have a name."""
    ax.figure.supxlabel("")
    small_print(ax, words)


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
        slopes: what :func:`rllc.elasticities` gave for single runs, drawn as short lines.
    """
    right = isinstance(resolution, Resolution)
    must_be("plot_resolution", "resolution", resolution, right, "what rllc.resolution gave")
    is_new = ax is None
    ax = new_axes(ax, width=5.4, height=_height(len(resolution.weights), 1))
    several_data = len(set(resolution.data)) > 1
    half_width = resolution.mean.half_width(simultaneous=simultaneous)
    words = []
    for row, (weights, data) in enumerate(resolution.names):
        words.append(f"{weights}, {data}" if several_data else weights)
        values = resolution.value[:, row]
        n_beta, label = resolution.n_beta, plain(words[-1])
        band(ax, n_beta, values, half_width[:, row], row, label=label, marker="o")
        by_prior = resolution.by_prior[:, row]
        ring: dict[str, Any] = {"ms": 8, "mfc": "none", "mew": 1.2, "color": color_of(row)}
        ax.plot(n_beta[by_prior], values[by_prior], "o", **ring)
        wrong = np.array([_is_wrong(faults[row]) for faults in resolution.faults])
        places = np.nan_to_num(values[wrong])
        ax.plot(n_beta[wrong], places, "x", ms=8, mew=2, color=color_of(row))
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
        of_all = {name: settings[name] for name in ("num_chains", "num_draws") if name in settings}
        small_print(ax, [sampled(of_all)])
    settle(ax)
    colors = [color_of(row) for row in range(len(words))]
    name_ends(ax, resolution.n_beta, resolution.value.T, words, colors)
    return ax


def _explain_marks(ax: Axes, resolution: Resolution) -> None:
    """Say what rings and crosses are, where there are any."""
    from matplotlib.lines import Line2D

    marks = []
    if resolution.by_prior.any():
        marks.append(Line2D([], [], marker="o", ms=8, mfc="none", mec="0.3", ls=""))
        marks[-1].set_label("the prior alone gives this")
    faults = [of_one for row in resolution.faults for of_one in row]
    if any(map(_is_wrong, faults)):
        marks.append(Line2D([], [], marker="x", ms=7, mew=2, color="0.3", ls=""))
        marks[-1].set_label("not ok; at zero: chains diverged")
    if marks:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
        ax.legend(handles=marks, frameon=False, fontsize="small", ncols=2, **place)


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
    """Draw nβ (loss − baseline) at every draw as dots, one colour a chain, and its running mean.

    A healthy trace rises from 0, levels off, has no spikes, and its chains agree. A chain that
    hardly moves is drawn black and said to be stuck: its steps are below a tenth of the median's.
    The grey band is the 95 % interval of λ̂.

    >>> ax = plot_traces(draws, "1:6")

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
    is_new = ax is None
    ax = new_axes(ax, width=6.0)
    chains = draws.llc[row, :, :num_draws]
    stuck = _stuck(chains)
    draw_numbers = np.arange(1, num_draws + 1)
    means, words, colors = [], [], []
    first = int(draws.settings.get("first_chain", 0))
    for chain, values in enumerate(chains):
        means.append(np.cumsum(values) / draw_numbers)
        color = "black" if stuck[chain] else color_of(chain)
        dash = DASHES[chain // len(COLORS) % len(DASHES)]
        ax.plot(draw_numbers, values, "o", ms=2.2, alpha=0.5, mew=0, color=color)
        ax.plot(draw_numbers, means[-1], lw=1.8, ls=dash, color=color)
        words.append(f"chain {first + chain}" + (", stuck" if stuck[chain] else ""))
        colors.append(color)
    _mark_interval(ax, draws, row)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xlim(0, num_draws + 1)
    ax.set_title(plain(f"{draws.weights[row]} on {draws.data[row]}"), fontsize="medium")
    ax.set_xlabel("draw")
    ax.set_ylabel(r"$n\beta\,(\ell - \ell^*)$")
    if is_new:
        said = "dots: draws; lines: their running means"
        small_print(ax, [said, sampled(draws.settings)])
    settle(ax)
    name_ends(ax, draw_numbers, np.stack(means), words, colors)
    return ax


_STUCK = 0.1
"""A chain whose steps are below this share of the median chain's is said to be stuck."""


def _stuck(chains: np.ndarray) -> np.ndarray:
    """Which chains ``[chain]`` hardly move, by their steps: a chain that drifts has a spread."""
    if chains.shape[1] < 3:
        return np.zeros(len(chains), dtype=bool)
    with np.errstate(invalid="ignore"):
        spread = np.std(np.diff(chains, axis=1), axis=1)
    typical = np.median(np.nan_to_num(spread, nan=np.inf))
    return spread <= _STUCK * typical


def _mark_interval(ax: Axes, draws: Draws | Estimate, row: int) -> None:
    """Shade the 95 % interval of λ̂, where all chains have a value."""
    estimate = draws if isinstance(draws, Estimate) else Estimate.of(draws)
    low, high = estimate.interval()[row]
    if not np.isfinite([low, high]).all():
        return
    ax.axhspan(low, high, color="0.9", lw=0, zorder=0)
    said = with_error(float(estimate.value[row]), float(estimate.standard_error[row]))
    ax.annotate(
        rf"$\hat\lambda$ = {said}",
        (0.99, 0.02),
        xycoords="axes fraction",
        ha="right",
        fontsize="small",
        color="0.35",
    )


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
) -> int:
    """Write name and group at each line's end; return how many lines have none."""
    groups = groups or {}
    words = [f"{name} {groups.get(name, '')}".strip() for name in names]
    return name_ends(ax, steps, values, words, colors)
