"""The figure of a calibration: which settings sample well, and where the loss dominates."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.calibration.calibrate import Calibration
from rllc.plots.figures import COLORS, label_decades, new_axes, small_print

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOP = 1.25
"""The ratio from which on colours do not differ: λ̂ is then noise."""


def plot_calibration(calibration: Calibration, ax: Axes | None = None) -> Axes:
    """Draw each setting that was tried by its resolution γ/nβ and its step size.

    To the left settings look closer: a direction of curvature γ/nβ counts half. Upwards steps are
    larger: chains move faster, until they add too much or diverge. The colour is λ̂ over what the
    prior alone gives: dark is where the loss holds the chains, at 1 it does nothing. A filled dot
    is good; a hollow one is not, a diamond because the prior dominates; a cross has chains that
    diverged. The ring is the one that is recommended.

    >>> ax = plot_calibration(calibration)

    Args:
        calibration: what :func:`rllc.calibrate` gave. For each setting the refinement counts that
            the prior explains best.
        ax: where to draw; ``None`` makes a figure.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    is_new = ax is None
    ax = new_axes(ax, width=6.4, height=4.4)
    x = np.maximum(calibration.localization, 1e-12) / calibration.n_beta
    y = calibration.lr
    scale = ScalarMappable(Normalize(0, 1, clip=True), colormaps["viridis"].resampled(10))
    colors = scale.to_rgba(np.clip(_largest_ratio(calibration), 0, _TOP))
    kinds = np.array(_kinds(calibration))
    for kind, marker in _MARKERS.items():
        settings = np.flatnonzero(kinds == kind)
        if not settings.size:
            continue
        look: dict[str, Any] = {"s": 55.0, "marker": marker, "linewidths": 1.6, "label": kind}
        if marker == "x":
            look["color"] = "0.25"
        elif kind == "good":
            look["color"] = colors[settings]
        else:
            look |= {"facecolors": "none", "edgecolors": colors[settings]}
        ax.scatter(x[settings], y[settings], **look)
    best = calibration.best
    if calibration.good[best]:
        ring: dict[str, Any] = {"s": 190.0, "linewidths": 2.0, "label": "recommended"}
        ax.scatter(x[best], y[best], facecolors="none", edgecolors=COLORS[1], **ring)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(0.12)
    label_decades(ax.xaxis)
    label_decades(ax.yaxis)
    ax.set_xlabel("curvature that counts half, γ/nβ  (← looks closer)")
    ax.set_ylabel("step size ε (lr)")
    ax.figure.colorbar(scale, ax=ax, label="λ̂ over what the prior alone gives")
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
    ax.legend(frameon=False, fontsize="small", **place)
    if is_new:
        small_print(ax, [calibration.answer])
    return ax


_MARKERS = {"good": "o", "not good": "o", "the prior dominates": "D", "chains diverged": "x"}
"""How the kinds of settings are drawn; hollow where they are not good."""


def _kinds(calibration: Calibration) -> list[str]:
    """Return which kind of :data:`_MARKERS` each setting is, ``[setting]``."""
    kinds = []
    for faults_of_setting in calibration.faults:
        faults = {fault.kind for fault in chain.from_iterable(faults_of_setting)}
        if "diverged" in faults:
            kinds.append("chains diverged")
        elif faults == {"prior_dominated"}:
            kinds.append("the prior dominates")
        elif faults:
            kinds.append("not good")
        else:
            kinds.append("good")
    return kinds


def _largest_ratio(calibration: Calibration) -> np.ndarray:
    """λ̂ over its control ``[setting]``, of the refinement for which it is largest."""
    largest = []
    for estimate in calibration.estimates:
        ratios = estimate.diagnostics["control_ratio"]  # [refinement]
        largest.append(np.max(ratios))
    return np.array(largest)
