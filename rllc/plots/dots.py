"""Figures of λ̂ as dots: against another number of each head, and on two data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError, nearest
from rllc.estimates.estimate import Estimate
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    MARKERS,
    MOST_NAMED,
    color_of,
    group_numbers,
    mark_faults,
    new_axes,
    plain,
    small_print,
    zero_line,
)
from rllc.plots.labels import name_dots, unnamed
from rllc.plots.selection import (
    by_head_name,
    faults_of_rows,
    groups_by_name,
    rows_of_data,
)
from rllc.seeds import stable_hash

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NUM_PERMUTATIONS = 10_000

_FEWEST_FOR_P = 5
"""Weights from which on a p-value can be small."""

_MOST_LISTED = 6
"""Names in a title."""


def plot_against(
    x: Mapping[str, float],
    estimate: Estimate,
    data: str | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    xlabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw λ̂ of each choice of weights against another number of theirs.

    Above the figure stands Spearman's ρ, the correlation of ranks (those of equal numbers being
    their mean). Its p-value is the share of 10,000 random permutations, and of the order itself,
    whose ρ is as far from 0: how often numbers dealt out to the weights at random would do as well.
    It knows nothing of the errors of λ̂, nor that heads of one model are not a sample of
    independent heads. Fewer than 5 weights have none: no order of four is rarer than 1 in 12. What
    is not ok is hollow. Names that find no free place beside their dots are left out; of more than
    40 dots those farthest from the others have names.

    >>> ax = plot_against({"1:6": 14, "1:7": 3}, estimate, data="code")

    Args:
        x: weights to a number: memorised multigrams, Δloss, a Hessian trace. Only these weights are
            drawn.
        estimate: what :func:`rllc.estimate` gave.
        data: λ̂ on which data set; may be left out when there is one.
        groups: weights to role or cluster, for colours and a legend.
        xlabel: what ``x`` is, with its unit.
        ax: where to draw; ``None`` makes a figure. For a log axis, pass one that has it.

    Raises:
        InputError: no such data, several and none chosen, ``x`` or groups of weights that the
            estimate is not of, or SciPy is not installed.
    """
    rows = _rows_by_weights("plot_against", estimate, data)
    x = {name: float(value) for name, value in by_head_name(x).items()}
    for name in x:
        if name not in rows:
            raise InputError(f"plot_against: `x` names {name!r}; {nearest(name, rows)}")
    names = [name for name in rows if name in x]
    shown_rows = [rows[name] for name in names]
    places = np.array([[x[name] for name in names], estimate.value[shown_rows]])
    no_error = np.full(len(names), np.nan)
    error = np.array([no_error, estimate.mean.half_width()[shown_rows]])
    is_finite = np.isfinite(places).all(0)
    rho, p = rank_correlation(*places[:, is_finite])
    count = int(is_finite.sum())
    title = "Spearman's ρ is not defined here"
    if np.isfinite(rho) and count < _FEWEST_FOR_P:
        title = f"Spearman's ρ = {rho:.2f}, {count} weights: too few for a p-value"
    elif np.isfinite(rho):
        title = f"Spearman's ρ = {rho:.2f}, two-sided p = {p:.2g}, {count} weights"
    is_new = ax is None
    ax = new_axes(ax, width=_width(groups), height=4.2)
    ax.set_xlabel(xlabel)
    on = "" if data is None else f" on {plain(data)}"
    ax.set_ylabel(rf"$\hat\lambda${on} (95 % interval)")
    ax.set_title(title, fontsize="medium")
    wrong = np.array([bool(faults) for faults in faults_of_rows(estimate, shown_rows)])
    if is_new:
        small_print(ax, _said(estimate, wrong))
    _dots(ax, names, places, error, wrong, groups_by_name("plot_against", names, groups))
    return ax


def _said(estimate: Estimate, wrong: np.ndarray) -> list[str]:
    """The small print of dots."""
    hollow = ""
    if wrong.any():
        hollow = f"hollow: not ok ({wrong.sum()} of {len(wrong)})"
    return [sampled(estimate.settings), hollow]


def plot_data_pair(
    estimate: Estimate,
    x: str,
    y: str,
    *,
    groups: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw λ̂ on one data set against λ̂ on another, a dot a choice of weights, and the diagonal.

    Above the diagonal are weights that are more complex for ``y``. Both 95 % intervals are shown.
    What is not ok on either is hollow. Of more than 40 dots those farthest from the diagonal, in
    their errors, have names.

    The two errors of a dot are independent, as noise and minibatches depend on the data, unless
    ``Sampling(common_noise=True)`` shares the noise; then dots lie closer to where they belong
    along the diagonal's normal than their intervals say (:meth:`rllc.Estimate.difference`). The
    errors of all dots on one data set go together, as they saw the same minibatches.

    >>> ax = plot_data_pair(estimate, "pile", "code")

    Args:
        estimate: what :func:`rllc.estimate` gave, on several data sets.
        x: the data set of the horizontal axis.
        y: that of the vertical one.
        groups: weights to role or cluster, for colours and a legend.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: no such data, the same twice, no weights on both, or groups of other weights.
    """
    rows_on_x = _rows_by_weights("plot_data_pair", estimate, x)
    rows_on_y = _rows_by_weights("plot_data_pair", estimate, y)
    names = [name for name in rows_on_x if name in rows_on_y]
    if x == y or not names:
        raise InputError(
            f"plot_data_pair: expected two data sets with weights in common, got {x!r} and {y!r}."
        )
    x_rows = [rows_on_x[name] for name in names]
    y_rows = [rows_on_y[name] for name in names]
    rows = np.array([x_rows, y_rows])
    places = estimate.value[rows]
    error = estimate.mean.half_width()[rows]
    is_new = ax is None
    ax = new_axes(ax, width=_width(groups), height=4.6)
    if is_new:
        ax.set_aspect("equal", adjustable="datalim")
    middle = np.nanmean(places) if np.isfinite(places).any() else 0.0
    ax.axline((middle, middle), (middle + 1, middle + 1), color="0.7", lw=0.8, zorder=0)
    ax.set_xlabel(rf"$\hat\lambda$ on {plain(x)} (95 % interval)")
    ax.set_ylabel(rf"$\hat\lambda$ on {plain(y)} (95 % interval)")
    faults_on_x = faults_of_rows(estimate, x_rows)
    faults_on_y = faults_of_rows(estimate, y_rows)
    pairs = zip(faults_on_x, faults_on_y, strict=True)
    wrong = np.array([bool(on_x or on_y) for on_x, on_y in pairs])
    if is_new:
        small_print(ax, _said(estimate, wrong))
    grouped = groups_by_name("plot_data_pair", names, groups)
    with np.errstate(invalid="ignore"):
        off_diagonal = np.abs(places[1] - places[0]) / np.hypot(*error)
    _dots(ax, names, places, error, wrong, grouped, remarkable=np.nan_to_num(off_diagonal))
    return ax


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return Spearman's ρ, and the two-sided p-value of random permutations.

    Both are NaN for fewer than 3 or all equal numbers.

    Raises:
        InputError: SciPy is not installed.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    stats = _scipy_stats()
    rho = float(stats.spearmanr(x, y).statistic)
    ranks_of_x = _standardised(stats.rankdata(x))
    ranks_of_y = _standardised(stats.rankdata(y))
    stream = np.random.default_rng(stable_hash("rank correlation"))
    rows = np.tile(ranks_of_y, (_NUM_PERMUTATIONS, 1))
    permuted_rho = stream.permuted(rows, axis=1) @ ranks_of_x
    # Orders that are as good as the one seen may differ from it by rounding.
    num_as_far = (np.abs(permuted_rho) >= abs(rho) - 1e-9).sum()
    return rho, float((1 + num_as_far) / (1 + _NUM_PERMUTATIONS))


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """Return ranks less their mean, of length 1, so that products are correlations."""
    ranks = ranks - ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise InputError(
            "a rank correlation needs scipy; type: pip install 'rllc[plot]'"
        ) from error
    return stats


def _dots(
    ax: Axes,
    names: Sequence[str],
    places: np.ndarray,
    error: np.ndarray,
    wrong: np.ndarray,
    groups: Mapping[str, str] | None,
    remarkable: np.ndarray | None = None,
) -> None:
    """Draw dots at ``places [2, name]`` in the colours of their groups, with names beside them.

    Names whose places are not finite are listed in the title.
    """
    is_finite = np.isfinite(places).all(0)
    numbers: list[int | None] = [0] * len(names)
    group_names: list[str] = []
    if groups is not None:
        numbers = group_numbers(names, groups)
        group_names = list(dict.fromkeys(groups.values()))
    # Groups in their order, and last what is in none.
    for number in sorted(set(numbers), key=lambda number: (number is None, number)):
        members = is_finite & np.array([its_number == number for its_number in numbers])
        if not members.any():
            continue
        label = None
        if groups is not None and number is not None:
            label = plain(group_names[number])
        x, y = places[:, members]
        x_error, y_error = error[:, members]
        color = color_of(number)
        marker = "o" if number is None else MARKERS[number % len(MARKERS)]
        ax.errorbar(
            x,
            y,
            xerr=x_error if np.isfinite(x_error).any() else None,
            yerr=y_error,
            fmt=marker,
            ms=4,
            lw=0.8 if len(names) <= MOST_NAMED else 0.5,
            color=color,
            ecolor=(color, 0.6),
            label=label,
        )
        mark_faults(ax, x, y, wrong[members], color, marker=marker)
    zero_line(ax, places[1])
    if groups is not None and ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    if not is_finite.all():
        missing = [names[i] for i in np.flatnonzero(~is_finite).tolist()]
        if len(missing) > _MOST_LISTED:
            missing = [*missing[:_MOST_LISTED], f"{len(missing) - _MOST_LISTED} more"]
        parts = [ax.get_title(), plain(f"not finite: {', '.join(missing)}")]
        ax.set_title("\n".join(part for part in parts if part), fontsize="medium")
    shown = np.flatnonzero(is_finite).tolist()
    num_unnamed = name_dots(
        ax,
        places[0, shown],
        places[1, shown],
        error=error[:, shown],
        words=[names[i] for i in shown],
        colors=[color_of(numbers[i]) for i in shown],
        remarkable=None if remarkable is None else remarkable[shown],
    )
    if len(names) > MOST_NAMED:
        ax.annotate(
            unnamed(num_unnamed),
            (0.99, 0.01),
            xycoords="axes fraction",
            ha="right",
            fontsize=6.5,
            color="0.35",
        )


def _rows_by_weights(doing: str, estimate: Estimate, data: str | None) -> dict[str, int]:
    """Return weights to their row of the estimate, on one data set."""
    rows = rows_of_data(estimate.data, data, doing)
    return {estimate.weights[row]: row for row in rows}


def _width(groups: Mapping[str, str] | None) -> float:
    """Leave room for the legend of groups."""
    return 5.0 if groups is None else 6.2
