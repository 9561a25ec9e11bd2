"""λ as what it is by definition: the slope of log V(t) against log t, V(t) the volume of {v : ℓ(v) − ℓ(w*) ≤ t}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.diagnostics import standard_error
from rllc.draws import Draws
from rllc.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_POINTS = 200
"""Points of the curve that is kept for the figure."""

_FEWEST = 30
"""Independent draws that a slope must be worth to be called one: below, its error is 20 % and itself uncertain."""

_BENT = 4.0
"""Standard errors by which the slopes of two ranges may differ; a false alarm in 16,000."""

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1A1A1A")


@dataclass(frozen=True, eq=False)
class Volume:
    """The slope of log V(t) for each refinement, and where it was read; :func:`volume` makes it.

    Args:
        slope: ``[refinement]``: d log V / d log t, averaged as :func:`volume` says, no unit; λ where V is a power of t. NaN
            when a chain diverged or losses fell below that at w*.
        standard_error: ``[refinement]``: from the chains' autocorrelation. It knows of noise, not of a slope that still changes.
        low: ``[refinement]``: smallest t visited, nats per token; below it the draws say nothing.
        high: ``[refinement]``: largest t used.
        worth: ``[refinement]``: (slope/error)², how many independent draws below ``high`` the slope is worth.
        status: ``"ok"``, or why the slope is not λ and what to change.
        t: ``[refinement, point]``: where the curve is known, rising.
        log_volume: ``[refinement, point]``: log V(t) − log V(high), at most 0.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        settings: of sampler and sampling, and of the reading.
    """

    slope: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    worth: np.ndarray
    status: tuple[str, ...]
    t: np.ndarray
    log_volume: np.ndarray
    weights: tuple[str, ...]
    data: tuple[str, ...]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.slope)

    def __repr__(self) -> str:
        rows = [("weights", "data", "slope", "± se", "from t", "to t", "status")]
        for i, status in enumerate(self.status):
            numbers = (
                f"{self.slope[i]:.3f}",
                f"{self.standard_error[i]:.3f}",
                f"{self.low[i]:.2g}",
                f"{self.high[i]:.2g}",
            )
            rows.append((self.weights[i], self.data[i], *numbers, status))
        widths = [max(len(row[k]) for row in rows) for k in range(7)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join(
            [f"Volume of {len(self)} refinements (nβ = {self.settings['n_beta']:g})", *lines]
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a refinement: ``weights, data, slope, standard_error, low, high, worth, status``."""
        import pandas as pd

        names = ("weights", "data", "slope", "standard_error", "low", "high", "worth", "status")
        return pd.DataFrame({name: getattr(self, name) for name in names})


def volume(draws: Draws, *, share: float = 0.5, discard: float = 0.2) -> Volume:
    """λ from volumes: the slope of log V(t) against log t, V(t) being the prior volume of {v : ΔL ≤ t}.

    Each draw counts with the weight that undoes its sampling density, V(t) ∝ E[e^{nβΔL} 1(ΔL ≤ t)], ΔL = ℓ(v) − ℓ(w*). The
    slope is the maximum-likelihood one of a power law below T (Hill's estimator),

        slope = E[w] / E[w log(T/ΔL)],  w = e^{nβΔL} 1(ΔL ≤ T),

    which is V(T) / ∫₀ᵀ V(t) dt/t: the average of the local slope d log V/d log t over log t with weight V, and λ exactly
    where V ∝ t^λ. No regression on a grid of t, whose points would not be independent.

    Two ways to get draws:

    - **of the posterior**, those that :func:`rllc.sample` gives for λ̂. Reweighting works for ΔL up to about (λ + a few √λ)/nβ;
      beyond there are no draws, and the weights of the last ones are large. ``share=0.5`` stops at the median.
    - **of the prior**, with ``Sampling(n_beta=1e-9)``: weights are 1 and V(t) is a fraction of draws. Pass a small ``share``
      (0.01 to 0.1), since only the lowest losses are near w*; prior draws of a box (:func:`rllc.box`) keep V a power of t up
      to its walls, those of a Gaussian do not.

    It needs no baseline settings and no λ̂, so it is a check on both; it is not a better λ̂. Where it works, and where not:

    - Few dimensions. Prior draws below T are a share ∝ T^λ of all: with λ = 3 already one in 10⁶ for T a hundredth of
      the largest loss. Reweighted draws have no such limit, but then all are at ΔL ≈ λ/nβ, within a factor 1 ± 1/√λ.
    - At t below the smallest visited loss nothing is known, and between it and T the slope is an average. It is λ only if V
      is a power law there already: when it still changes between the lower and the whole range, ``status`` says so.
    - Multiplicity m > 1 makes V ∝ t^λ (−log t)^(m−1), with slope λ − (m − 1)/log(1/t) at small t: too small by a term that
      a few decades of t cannot show. Directions with nβh below γ (:class:`rllc.theory.SGLDLaw`) are missing, as in λ̂.
    - Full batches (``Sampling(batch_size=`` all rows ``)``): minibatch noise spreads ΔL by more than small t. Losses below the
      one at w* (noise, or w* is no minimum) leave V no power law, and the slope is NaN with a status that says so.
    - A step size that is too large biases small ΔL most. Prefer :func:`rllc.hmc` or :func:`rllc.mala` where they can run.

    >>> rng, settings = np.random.default_rng(0), {"n_beta": 100.0}
    >>> loss = rng.gamma(1.5, 1 / 100.0, (1, 4, 5000))                              # a regular model with 3 weights
    >>> draws = Draws(loss, np.zeros_like(loss), np.full((1, 4), -1), ("all",), ("data",), settings)
    >>> bool(abs(volume(draws).slope[0] - 1.5) < 0.1)
    True

    Args:
        draws: what :func:`rllc.sample` gave, from full batches.
        share: T is this quantile of ΔL: how many of the draws, the lowest ones, are used.
        discard: share of the draws of each chain, at its beginning, that is left out: chains that start at w* visit small
            losses more often than they should.

    Returns:
        :class:`Volume`, one slope a refinement.

    Raises:
        InputError: ``share`` is not in (0, 1], or ``discard`` not in [0, 1).

    Source: Watanabe 2009 (λ as the exponent of the volume); Hill 1975 (the estimator); the slides on arXiv 2410.02984.
    """
    if not 0 < share <= 1:
        raise InputError(
            f"volume: `share` must be above 0 and at most 1, got {share!r}; 0.5 uses the lower half."
        )
    if not 0 <= discard < 1:
        raise InputError(
            f"volume: `discard` must be from 0 on and below 1, got {discard!r}; 0.2 leaves out a fifth."
        )
    n_beta, llc = draws.settings["n_beta"], draws.llc
    read = [
        _read(llc[i, :, int(discard * length) : length], draws.diverged[i], share)
        for i, length in enumerate(draws.lengths)
    ]
    columns = [np.array(column) for column in zip(*(r[:-1] for r in read), strict=True)]
    slope, error, low, high, worth, x, log_volume = columns
    return Volume(
        slope=slope,
        standard_error=error,
        low=low / n_beta,
        high=high / n_beta,
        worth=worth,
        status=tuple(r[-1] for r in read),
        t=x / n_beta,
        log_volume=log_volume,
        weights=draws.weights,
        data=draws.data,
        settings={**draws.settings, "share": share, "discard": discard},
    )


def plot_volume(result: Volume, ax: Axes | None = None) -> Axes:
    """log V(t) against log t, one line a refinement, with a dashed line of the slope that was read.

    Straight lines are power laws. A line that bends down to the left of where the slope was read says that λ is larger.

    >>> ax = plot_volume(volume(draws))                                            # doctest: +SKIP

    Args:
        result: what :func:`volume` gave. Refinements without a slope are left out.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise InputError("plotting needs matplotlib; type: pip install 'rllc[plot]'") from error
        ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")[1]
    several = len(set(result.data)) > 1
    for i in np.flatnonzero(np.isfinite(result.slope)):
        color, name = (
            _COLORS[i % len(_COLORS)],
            result.weights[i] + (f", {result.data[i]}" if several else ""),
        )
        label = f"{name}: {result.slope[i]:.3g} ± {result.standard_error[i]:.1g}"
        t, log_volume = result.t[i], result.log_volume[i]
        ax.plot(t, np.exp(log_volume), lw=1.4, color=color, label=label)
        floor = np.exp(log_volume.min())  # the dashed line ends where the curve does
        ends = result.high[i] * np.array(
            [max(floor ** (1 / result.slope[i]), t[0] / result.high[i]), 1.0]
        )
        ax.plot(
            ends, (ends / result.high[i]) ** result.slope[i], lw=1.0, ls=(0, (4, 2)), color=color
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(r"$t$ (loss above that at $w^*$, nats per token)")
    ax.set_ylabel(r"$V(t)/V(T)$")
    if np.isfinite(result.slope).any():
        ax.legend(title="slope", frameon=False, fontsize="small")
    return ax


def _read(x: np.ndarray, diverged: np.ndarray, share: float) -> tuple[Any, ...]:
    """Slope, error, range, worth, curve and status of one refinement from nβΔL ``[chain, draw]``."""
    nothing = np.full(_POINTS, np.nan)
    missing = (np.nan, np.nan, np.nan, np.nan, np.nan, nothing, nothing)
    if (diverged >= 0).any() or not np.isfinite(x).all():
        return *missing, "diverged: no volumes; lower lr"
    top = float(np.quantile(x, share))
    below = int((x <= 0).sum())
    if below > 1e-3 * (x <= top).sum():  # fewer are rounding
        return *missing, (
            f"{100 * below / x.size:.2g} % of the losses are not above that at w*: use full batches, and a minimum for w*"
        )
    lowest = float(x[x > 0].min())
    x = np.maximum(x, lowest)
    slope, influence = _slope(x, top)
    error = float(standard_error(influence))
    order = np.sort(x[x <= top])
    mass = np.cumsum(np.exp(order - top))
    half = order[min(int(np.searchsorted(mass, mass[-1] / 4)), len(order) - 1)]
    lower, influence_of_lower = _slope(x, float(half))
    change, error_of_change = slope - lower, float(standard_error(influence - influence_of_lower))
    worth = (slope / error) ** 2 if error > 0 else np.nan
    points = np.unique(np.geomspace(1, len(order), _POINTS).astype(int)) - 1
    points = np.pad(points, (_POINTS - len(points), 0), mode="edge")
    curve = order[points], np.log(mass[points] / mass[-1])
    problems = []
    if not worth >= _FEWEST:
        problems.append(
            f"too few draws below t to tell: worth {worth:.0f} independent ones; more draws, or a larger share"
        )
    elif abs(change) > _BENT * error_of_change:
        problems.append(
            f"the slope still changes with t, {lower:.3g} below the lower quarter of the volume: not λ yet; smaller t "
            f"(larger n_beta, or a smaller share)"
        )
    return slope, error, lowest, top, worth, *curve, "; ".join(problems) or "ok"


def _slope(x: np.ndarray, top: float) -> tuple[float, np.ndarray]:
    """E[w]/E[w log(top/x)], and each draw's part in its error: (w − slope · w log)/E[w log], ``[chain, draw]``."""
    inside = x <= top
    weight = np.where(inside, np.exp(np.minimum(x - top, 0.0)), 0.0)
    logs = weight * np.log(top / np.minimum(x, top))
    if not logs.any():
        return np.nan, np.full_like(x, np.nan)
    slope = float(weight.mean() / logs.mean())
    return slope, (weight - slope * logs) / logs.mean()
