"""λ by its definition: the slope of log V(t) against log t.

V(t) is the volume of {v : ℓ(v) − ℓ(w*) ≤ t}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rllc.errors import InputError
from rllc.plots.figures import color_of, label_decades, new_axes
from rllc.sampling.draws import Draws
from rllc.statistics.uncertainty import mean_of_draws
from rllc.tables import AsTable, Table, not_ok, rounded
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_POINTS = 200
"""Points of the curve kept for the figure."""

_FEWEST_DRAWS = 30
"""Independent draws a slope must be worth. With fewer its error is 20 %, and itself uncertain."""

_BENT = 4.0
"""Standard errors by which the slopes of two ranges may differ: a false alarm in 16,000."""

_ROUNDING = 1e-3
"""Share of the used losses that may lie below the loss at w*, by rounding."""

_COLUMNS = ("weights", "data", "slope", "standard_error", "low", "high", "worth", "status")


@dataclass(frozen=True, eq=False, repr=False)
class Volume(OfRefinements, AsTable):
    """The slope of log V(t) for each refinement, and where it was read; :func:`volume` makes it.

    Args:
        slope: ``[refinement]``: d log V / d log t, averaged as :func:`volume` says; no unit. It is
            λ where V is a power of t; NaN when a chain diverged or losses fell below that at w*.
        standard_error: ``[refinement]``: from the autocorrelation of the chains. It covers noise,
            not a slope that still changes.
        low: ``[refinement]``: smallest t visited, nats per token; below it the draws say nothing.
        high: ``[refinement]``: largest t used.
        worth: ``[refinement]``: (slope/error)², the number of independent draws below ``high`` that
            would give this error.
        status: ``"ok"``, or why the slope is not λ and what to change.
        t: ``[refinement, point]``: where the curve is known, rising.
        log_volume: ``[refinement, point]``: log V(t) − log V(high), at most 0.
        names: the weights and the data of each refinement.
        settings: of sampler and sampling, and ``share`` and ``discard``.
    """

    slope: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    worth: np.ndarray
    status: tuple[str, ...]
    t: np.ndarray
    log_volume: np.ndarray
    names: Names
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.slope)

    @property
    def _table(self) -> Table:
        rows = [("weights", "data", "slope", "± se", "from t", "to t", "status")]
        for i, (weights, data) in enumerate(self.names):
            row = (
                weights,
                data,
                *rounded(self.slope[i], self.standard_error[i]),
                f"{self.low[i]:.2g}",
                f"{self.high[i]:.2g}",
                self.status[i],
            )
            rows.append(row)
        title = f"Volume of {len(self)} refinements (nβ = {self.settings['n_beta']:g})"
        wrong = not_ok(self.status, column=6)
        return Table(title, rows, left=(0, 1, 6), wrong=wrong)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a refinement.

        Columns: ``weights, data, slope, standard_error, low, high, worth, status``.
        """
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name) for name in _COLUMNS})


def volume(draws: Draws, *, share: float = 0.5, discard: float = 0.2) -> Volume:
    """Read λ from volumes: the slope of log V(t) against log t, V(t) the prior volume of {ΔL ≤ t}.

    Each draw has the weight that undoes its sampling density: V(t) ∝ E[e^{nβΔL} 1(ΔL ≤ t)] with
    ΔL = ℓ(v) − ℓ(w*). The slope is the maximum-likelihood one of a power law below T (Hill's
    estimator),

        slope = E[w] / E[w log(T/ΔL)],  w = e^{nβΔL} 1(ΔL ≤ T),

    which is V(T) / ∫₀ᵀ V(t) dt/t: the average of the local slope d log V/d log t over log t with
    weight V, and λ exactly where V ∝ t^λ. There is no regression on a grid of t, whose points would
    not be independent.

    Two ways to get draws:

    - **of the posterior**, those that :func:`rllc.sample` gives for λ̂. Reweighting works for ΔL up
      to about (λ + a few √λ)/nβ. Beyond there are no draws, and the weights of the last ones are
      large. ``share=0.5`` stops at the median.
    - **of the prior**, with ``Sampling(n_beta=1e-9)``: weights are 1 and V(t) is a fraction of
      draws. Pass a small ``share`` (0.01 to 0.1), since only the lowest losses are near w*. Prior
      draws of a box (:func:`rllc.samplers.box`) keep V a power of t up to its walls; those of a
      Gaussian do not.

    It needs neither λ̂ nor its settings, so it is a check on both; it is not a better λ̂. Where it
    works, and where not:

    - Few dimensions. Prior draws below T are a share ∝ T^λ of all: with λ = 3 already one in 10⁶
      for T a hundredth of the largest loss. Reweighted draws have no such limit, but all of them
      are at ΔL ≈ λ/nβ, within a factor 1 ± 1/√λ.
    - Below the smallest visited loss nothing is known, and from there to T the slope is an average.
      It is λ only if V is a power law there already. When the slope still changes between the lower
      and the full range, ``status`` says so.
    - Multiplicity m > 1 makes V ∝ t^λ (−log t)^(m−1), with slope λ − (m − 1)/log(1/t) at small t:
      too small by a term that a few decades of t cannot show. Directions with nβh below γ
      (:class:`rllc.theory.SGLDLaw`) are missing, as in λ̂.
    - Full batches (``batch_size`` all rows): minibatch noise spreads ΔL by more than small t. Where
      losses fall below the one at w* (noise, or w* is no minimum) V is no power law, and the slope
      is NaN with a status that says so.
    - A step size that is too large biases small ΔL most. Prefer :func:`rllc.samplers.hmc` or
      :func:`rllc.samplers.mala` where they can run.

    >>> loss = np.random.default_rng(0).gamma(1.5, 1 / 100.0, (1, 4, 5000))    # 3 regular weights
    >>> diverged, settings = np.full((1, 4), -1), {"n_beta": 100.0}
    >>> draws = Draws(loss, 0 * loss, diverged, Names(("all",), ("data",)), settings)
    >>> bool(abs(volume(draws).slope[0] - 1.5) < 0.1)
    True

    Args:
        draws: what :func:`rllc.sample` gave, from full batches.
        share: T is this quantile of ΔL: the share of the draws, the lowest ones, that is used.
        discard: share of each chain's draws, at its beginning, that is left out: chains that start
            at w* visit small losses more often than they should.

    Raises:
        InputError: ``share`` is not in (0, 1], or ``discard`` not in [0, 1).

    Reference: Watanabe 2009 (λ as the exponent of the volume); Hill 1975 (the estimator); the
    slides on arXiv 2410.02984.
    """
    if not 0 < share <= 1:
        raise InputError(
            f"volume: `share` must be above 0 and at most 1, got {share!r}; "
            f"0.5 uses the lower half."
        )
    if not 0 <= discard < 1:
        raise InputError(
            f"volume: `discard` must be from 0 on and below 1, got {discard!r}; "
            f"0.2 leaves out a fifth."
        )
    n_beta = draws.settings["n_beta"]
    llc = draws.llc
    slopes = []
    for i, length in enumerate(draws.lengths):
        energies = llc[i, :, int(discard * length) : length]
        slopes.append(_read(energies, draws.diverged[i], share))
    return Volume(
        slope=np.array([slope.value for slope in slopes]),
        standard_error=np.array([slope.standard_error for slope in slopes]),
        low=np.array([slope.low for slope in slopes]) / n_beta,
        high=np.array([slope.high for slope in slopes]) / n_beta,
        worth=np.array([slope.worth for slope in slopes]),
        status=tuple(slope.status for slope in slopes),
        t=np.array([slope.points for slope in slopes]) / n_beta,
        log_volume=np.array([slope.log_volume for slope in slopes]),
        names=draws.names,
        settings={**draws.settings, "share": share, "discard": discard},
    )


def plot_volume(result: Volume, ax: Axes | None = None) -> Axes:
    """Draw log V(t) against log t, one line a refinement, with a dashed line of the slope.

    Straight lines are power laws. A line that bends down to the left of where the slope was read
    says that λ is larger.

    >>> ax = plot_volume(volume(draws))

    Args:
        result: what :func:`volume` gave. Refinements without a slope are left out.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    ax = new_axes(ax, width=5.0, height=3.6)
    rows = np.flatnonzero(np.isfinite(result.slope)).tolist()
    for i in rows:
        color = color_of(i)
        ax.plot(
            result.t[i],
            np.exp(result.log_volume[i]),
            lw=1.4,
            color=color,
            label=_label(result, i),
        )
        ends, power_law = _line_of_the_slope(result, i)
        ax.plot(ends, power_law, lw=1.0, ls=(0, (4, 2)), color=color)
    ax.set_xscale("log")
    ax.set_yscale("log")
    label_decades(ax.xaxis)
    ax.set_xlabel(r"$t$ (loss above that at $w^*$, nats per token)")
    ax.set_ylabel(r"$V(t)/V(T)$")
    if len(rows):
        ax.legend(title="slope", frameon=False, fontsize="small")
    return ax


def _label(result: Volume, i: int) -> str:
    name = result.weights[i]
    if len(set(result.data)) > 1:
        name = f"{name}, {result.data[i]}"
    return f"{name}: {result.slope[i]:.3g} ± {result.standard_error[i]:.1g}"


def _line_of_the_slope(result: Volume, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return t and V(t) at both ends of the power law; the line ends where the curve does."""
    slope = result.slope[i]
    high = result.high[i]
    lowest_volume = np.exp(result.log_volume[i].min())
    start = max(lowest_volume ** (1 / slope), result.t[i][0] / high)
    ends = high * np.array([start, 1.0])
    return ends, (ends / high) ** slope


class _Slope(NamedTuple):
    """The reading of one refinement, in units of nβΔL."""

    value: float
    standard_error: float
    low: float
    high: float
    worth: float
    points: np.ndarray
    log_volume: np.ndarray
    status: str


def _read(x: np.ndarray, diverged: np.ndarray, share: float) -> _Slope:
    """Read the slope of one refinement from nβΔL ``[chain, draw]``."""
    if (diverged >= 0).any() or not np.isfinite(x).all():
        return _no_slope("diverged: no volumes; lower lr")
    high = float(np.quantile(x, share))
    num_below = int((x <= 0).sum())
    if num_below > _ROUNDING * (x <= high).sum():
        return _no_slope(
            f"{100 * num_below / x.size:.2g} % of the losses are not above that at w*: "
            f"use full batches, and a minimum for w*"
        )
    low = float(x[x > 0].min())
    x = np.maximum(x, low)
    slope, influence = _hill(x, high)
    error = float(mean_of_draws(influence, relaxation=None).standard_error)
    worth = (slope / error) ** 2 if error > 0 else np.nan
    used = np.sort(x[x <= high])
    mass = np.cumsum(np.exp(used - high))
    numbers_of_draws = np.geomspace(1, len(used), _POINTS).astype(int)
    points = np.unique(numbers_of_draws) - 1
    points = np.pad(points, (_POINTS - len(points), 0), mode="edge")
    status = "ok"
    if not worth >= _FEWEST_DRAWS:
        status = (
            f"too few draws below t to tell: worth {worth:.0f} independent ones; "
            f"more draws, or a larger share"
        )
    else:
        quarter = np.searchsorted(mass, mass[-1] / 4)
        high_of_quarter = float(used[min(int(quarter), len(used) - 1)])
        slope_of_quarter, influence_of_quarter = _hill(x, high_of_quarter)
        change = mean_of_draws(influence - influence_of_quarter, relaxation=None)
        if abs(slope - slope_of_quarter) > _BENT * change.standard_error:
            status = (
                f"the slope still changes with t, {slope_of_quarter:.3g} below the lower quarter "
                f"of the volume: not λ yet; smaller t (larger n_beta, or a smaller share)"
            )
    return _Slope(
        value=slope,
        standard_error=error,
        low=low,
        high=high,
        worth=worth,
        points=used[points],
        log_volume=np.log(mass[points] / mass[-1]),
        status=status,
    )


def _no_slope(status: str) -> _Slope:
    curve = np.full(_POINTS, np.nan)
    return _Slope(np.nan, np.nan, np.nan, np.nan, np.nan, curve, curve, status)


def _hill(x: np.ndarray, high: float) -> tuple[float, np.ndarray]:
    """Return Hill's slope E[w]/E[w log(high/x)], and each draw's part in its error.

    That part is (w − slope · w log(high/x))/E[w log(high/x)], ``[chain, draw]``.
    """
    exponentials = np.exp(np.minimum(x - high, 0.0))
    weights = np.where(x <= high, exponentials, 0.0)
    weighted_logs = weights * np.log(high / np.minimum(x, high))
    if not weighted_logs.any():
        return np.nan, np.full_like(x, np.nan)
    slope = float(weights.mean() / weighted_logs.mean())
    influence = (weights - slope * weighted_logs) / weighted_logs.mean()
    return slope, influence
