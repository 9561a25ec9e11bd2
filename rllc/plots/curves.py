"""Figures of curves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.errors import InputError, must_be, nearest
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    MOST_BANDS,
    fit_bands,
    height_for_lines,
    layer_of,
    lines,
    log_steps,
    mark_faults,
    new_axes,
    of_intervals,
    plain,
    rise_from_0,
    small_print,
    with_roles,
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
from rllc.statistics.quantiles import student_quantile
from rllc.sweep.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 40
"""Checkpoints from which on marks are small, so that they do not hide each other."""


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
    rows_of_panels = _rows_by_layer(trajectory, rows)
    if ax is not None and not isinstance(ax, Sequence | np.ndarray):
        rows_of_panels = {"": rows}
    half_width = trajectory.mean.take(rows).half_width(simultaneous=simultaneous)
    width_of_row = dict(zip(rows, half_width.T, strict=True))
    most_lines = max(map(len, rows_of_panels.values()))
    width_of_panel = 2.9 if groups is None else 3.5
    panels = panels_for(
        ax,
        list(rows_of_panels),
        width_of_panel if len(rows_of_panels) > 1 else 5.0,
        doing="plot_trajectory",
        what="layers",
        height=height_for_lines(most_lines, len(rows_of_panels)),
    )
    is_empty = not any(panel.has_data() for panel in panels)
    lines_of_panels = []
    for panel, (layer, rows_of_panel) in zip(panels, rows_of_panels.items(), strict=True):
        names = [trajectory.weights[row] for row in rows_of_panel]
        values = trajectory.value[:, rows_of_panel].T
        error = np.stack([width_of_row[row] for row in rows_of_panel])
        colors = _over_steps(panel, trajectory.steps, names, values, error, groups)
        _mark_checkpoints(panel, trajectory, rows_of_panel, colors)
        panel.set_title(layer, fontsize="medium")
        lines_of_panels.append((names, values, colors))
    _label_edges(panels, _ylabel(trajectory, rows, most_lines, simultaneous))
    all_widths = half_width.T
    drawn_widths = all_widths if most_lines <= MOST_BANDS else np.zeros_like(all_widths)
    is_cut = is_empty and fit_bands(panels, trajectory.value[:, rows].T, drawn_widths)
    words = [
        sampled(trajectory.settings),
        _count_of_faults(trajectory, rows),
        without_bands(most_lines, all_widths),
        "the widest bands are cut" if is_cut else "",
    ]
    # Names come last, when all panels have their common height.
    if ax is None:
        small_print(panels[0], words)
    one_panel_a_figure = {panel.figure: panel for panel in panels}
    for panel in one_panel_a_figure.values():
        settle(panel)
    num_unnamed = 0
    for panel, (names, values, colors) in zip(panels, lines_of_panels, strict=True):
        num_unnamed += _name_ends(panel, trajectory.steps, names, values, colors, groups)
    if ax is None and num_unnamed:
        _say_again(panels[0], [*words, unnamed(num_unnamed)])
    return one_or_all(panels)


def _rows_by_layer(trajectory: Trajectory, rows: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows of each layer's heads, by what its panel is called."""
    rows_of_layers: dict[str, list[int]] = {}
    for row in rows:
        layer = layer_of(trajectory.weights[row])
        rows_of_layers.setdefault(layer, []).append(row)
    return rows_of_layers


def _mark_checkpoints(
    ax: Axes, trajectory: Trajectory, rows: Sequence[int], colors: Sequence[str]
) -> None:
    """Mark the checkpoints of each line at which something is wrong."""
    size = 4.0 if len(trajectory) <= _MOST_POINTS else 2.8
    for row, color in zip(rows, colors, strict=True):
        wrong = np.array([bool(faults[row]) for faults in trajectory.faults])
        mark_faults(ax, trajectory.steps, trajectory.value[:, row], wrong, color, size=size)


def _count_of_faults(trajectory: Trajectory, rows: Sequence[int]) -> str:
    """Say how many estimates are marked; nothing where none is."""
    num_wrong = 0
    for faults in trajectory.faults:
        num_wrong += sum(bool(faults[row]) for row in rows)
    if not num_wrong:
        return ""
    return f"hollow or ×: not ok ({num_wrong} of {len(rows) * len(trajectory)})"


def _ylabel(
    trajectory: Trajectory, rows: Sequence[int], most_lines: int, simultaneous: bool
) -> str:
    """Return the title of the y axis: on which data, and with which bands."""
    label = r"$\hat\lambda$"
    if len(set(trajectory.data)) > 1:
        label += f" on {plain(trajectory.data[rows[0]])}"
    if most_lines <= MOST_BANDS:
        label += f" ({of_intervals('band', simultaneous)})"
    return label


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
    are_steps = times.ndim == 1 and len(times) > 0
    if not are_steps or not rise_from_0(times):
        raise InputError(
            f"plot_curves: `steps` must be rising training steps from 0 on, got {steps!r}."
        )
    if not curves:
        raise InputError("plot_curves: expected at least one curve, got none.")
    curves = by_head_name(curves)
    error = by_head_name(error or {})
    dof = by_head_name(dof or {})
    _check_names("error", error, curves)
    _check_names("dof", dof, curves)
    names = list(curves)
    rows = [_at_steps(curves[name], times, f"curve {name!r}") for name in names]
    values = np.stack(rows)  # [curve, step]
    half_width = _half_widths(names, times, error, dof)
    groups = groups_by_name("plot_curves", names, groups)
    is_new = ax is None
    width = 5.0 if groups is None else 6.2
    ax = new_axes(ax, width=width, height=height_for_lines(len(names)))
    is_empty = not ax.has_data()
    colors = _over_steps(ax, times.tolist(), names, values, half_width, groups)
    ax.set_ylabel(ylabel)
    words = [without_bands(len(names), half_width)]
    if error and not words[0]:
        words.append("95 % bands" if dof else "95 % bands, of many degrees of freedom")
    drawn_widths = np.zeros_like(values) if words[0] else half_width
    is_cut = is_empty and fit_bands([ax], values, drawn_widths)
    words.append("the widest are cut" if is_cut else "")
    if is_new:
        small_print(ax, words)
    settle(ax)
    num_unnamed = _name_ends(ax, times, names, values, colors, groups)
    if is_new and num_unnamed:
        _say_again(ax, [*words, unnamed(num_unnamed)])
    return ax


def _check_names(
    argument: str, numbers: Mapping[str, object], curves: Mapping[str, object]
) -> None:
    """Refuse errors of other names than the curves'."""
    for name in numbers:
        if name not in curves:
            raise InputError(f"plot_curves: `{argument}` names {name!r}; {nearest(name, curves)}")


def _half_widths(
    names: Sequence[str],
    steps: np.ndarray,
    error: Mapping[str, Sequence[float] | np.ndarray],
    dof: Mapping[str, Sequence[float] | np.ndarray],
) -> np.ndarray:
    """Return the half widths of the bands ``[name, checkpoint]``; NaN where there is no error."""
    unknown = np.full(len(steps), np.nan)
    many = np.full(len(steps), np.inf)
    half_widths = []
    for name in names:
        if name not in error:
            half_widths.append(unknown)
            continue
        errors = _at_steps(error[name], steps, f"error of {name!r}")
        degrees = _at_steps(dof.get(name, many), steps, f"dof of {name!r}")
        half_widths.append(student_quantile(0.95, degrees) * errors)
    return np.stack(half_widths)


def _say_again(ax: Axes, words: Sequence[str]) -> None:
    """Write the small print anew, when it is known how many lines have a name."""
    ax.figure.supxlabel("")
    small_print(ax, words)


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
    words = with_roles(names, groups or {})
    return name_ends(ax, steps, values, words, colors)
