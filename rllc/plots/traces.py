"""The figure of single chains: λ̂ at every draw, and its running mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rllc.errors import InputError, must_be, nearest
from rllc.estimates.estimate import Estimate
from rllc.estimates.table import sampled
from rllc.plots.figures import (
    COLORS,
    DASHES,
    color_of,
    new_axes,
    plain,
    small_print,
)
from rllc.plots.labels import name_ends, settle
from rllc.sampling.draws import Draws
from rllc.tables import with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STUCK = 0.1
"""A chain whose steps are below this share of the median chain's is said to be stuck."""


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
    means = []
    words = []
    colors = []
    first_chain = int(draws.settings.get("first_chain", 0))
    for chain, values in enumerate(chains):
        running_mean = np.cumsum(values) / draw_numbers
        color = "black" if stuck[chain] else color_of(chain)
        dash = DASHES[chain // len(COLORS) % len(DASHES)]
        ax.plot(draw_numbers, values, "o", ms=2.2, alpha=0.5, mew=0, color=color)
        ax.plot(draw_numbers, running_mean, lw=1.8, ls=dash, color=color)
        name = f"chain {first_chain + chain}"
        words.append(f"{name}, stuck" if stuck[chain] else name)
        means.append(running_mean)
        colors.append(color)
    _mark_interval(ax, draws, row)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xlim(0, num_draws + 1)
    ax.set_title(plain(f"{draws.weights[row]} on {draws.data[row]}"), fontsize="medium")
    ax.set_xlabel("draw")
    ax.set_ylabel(r"$n\beta\,(\ell - \ell^*)$")
    if is_new:
        explanation = "dots: draws; lines: their running means"
        small_print(ax, [explanation, sampled(draws.settings)])
    settle(ax)
    name_ends(ax, draw_numbers, np.stack(means), words, colors)
    return ax


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
    value = float(estimate.value[row])
    error = float(estimate.standard_error[row])
    ax.annotate(
        rf"$\hat\lambda$ = {with_error(value, error)}",
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
    written = [", ".join(pair) for pair in pairs]
    advice = nearest(f"{weights}, {data}", written)
    raise InputError(f"plot_traces({weights!r}, {data!r}): {problem}; {advice}")
