"""The figure of a calibration: which settings sample well, and where the loss dominates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rllc.calibrate import Calibration
from rllc.plots.figures import COLORS, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOP = 1.25
"""Where settings stand whose ratio is not known, because chains diverged or it is far above 1."""


def plot_calibration(calibration: Calibration, ax: Axes | None = None) -> Axes:
    """Draw each setting that was tried by its resolution, and by how much the prior explains of λ̂.

    To the left settings look closer: a direction of curvature γ/nβ counts half. Lower down the
    loss holds the chains, at 1 the prior alone. Dots are settings that sample well, crosses those
    that do not (chains that diverge, drift, are slow, or steps that add too much); the ring is the
    one that is recommended. Within the shaded region the prior dominates. The frontier is where
    dots end and crosses begin: no setting beyond it both sees the loss and samples well. At the top
    edge are settings whose ratio is not known, as where chains diverged.

    >>> ax = plot_calibration(calibration)                                         # doctest: +SKIP

    Args:
        calibration: what :func:`rllc.calibrate` gave. For each setting the refinement counts that
            the prior explains best.
        ax: where to draw; ``None`` makes a figure.
    """
    from matplotlib.colors import LogNorm

    ax = new_axes(ax, width=6.4, height=4.0)
    x = np.maximum(calibration.localization, 1e-12) / calibration.n_beta
    ratio = _largest_ratio(calibration)
    y = np.clip(np.nan_to_num(ratio, nan=_TOP), None, _TOP)
    samples_well = _samples_well(calibration)
    limit = min(calibration.limits.max_control_ratio, _TOP)
    ax.axhspan(limit, _TOP + 0.1, color="0.93", lw=0, zorder=0)
    norm = LogNorm(calibration.lr.min(), max(calibration.lr.max(), 1.01 * calibration.lr.min()))
    kinds = (("o", "samples well", samples_well), ("x", "does not", ~samples_well))
    for marker, words, chosen in kinds:
        if chosen.any():
            dots = ax.scatter(
                x[chosen],
                y[chosen],
                c=calibration.lr[chosen],
                norm=norm,
                cmap="viridis",
                marker=marker,
                s=45,
                label=words,
            )
    best = calibration.best
    if calibration.good[best]:
        ax.scatter(
            x[best],
            y[best],
            s=170,
            facecolors="none",
            edgecolors=COLORS[1],
            linewidths=2.0,
            label="recommended",
        )
    ax.set_xscale("log")
    ax.set_ylim(min(0.0, float(y.min())), _TOP + 0.1)
    ax.set_xlabel("curvature that counts half, γ/nβ  (← looks closer)")
    ax.set_ylabel("λ̂ over what the prior alone gives\n(highest of all refinements)")
    ax.set_title(plain(calibration.answer.split(";")[0]), fontsize="medium")
    ax.annotate(
        "the prior dominates",
        (0.99, 0.985),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize="small",
        color="0.4",
    )
    ax.figure.colorbar(dots, ax=ax, label="step size ε (lr)")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return ax


def _largest_ratio(calibration: Calibration) -> np.ndarray:
    """λ̂ over its control ``[setting]``, of the refinement for which it is largest."""
    ratios = [result.diagnostics["control_ratio"] for result in calibration.estimates]
    return np.array([np.max(of_setting) for of_setting in ratios])


def _samples_well(calibration: Calibration) -> np.ndarray:
    """Which settings ``[setting]`` have no fault but that the prior dominates."""
    well = []
    for faults in calibration.faults:
        kinds = {fault.kind for of_refinement in faults for fault in of_refinement}
        well.append(kinds <= {"prior_dominated"})
    return np.array(well)
