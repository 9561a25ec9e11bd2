"""Figures of results; each takes ``ax=None`` and returns the Axes. Needs the extra ``plot``.

``estimates`` has λ̂ head by head, ``dots`` λ̂ against another number, ``curves`` λ̂ over training,
``resolution`` λ̂ over nβ, ``traces`` single chains, ``kernels`` covariances, ``calibration`` the
settings that were tried. ``figures``, ``labels`` and ``selection`` are what they share with the
figures of :mod:`rllc.analysis`.
"""

from __future__ import annotations

from rllc.plots.calibration import plot_calibration
from rllc.plots.curves import plot_curves, plot_trajectory
from rllc.plots.dots import plot_against, plot_data_pair
from rllc.plots.estimates import plot_heads
from rllc.plots.kernels import plot_kernel
from rllc.plots.resolution import plot_resolution
from rllc.plots.traces import plot_traces

__all__ = [
    "plot_against",
    "plot_calibration",
    "plot_curves",
    "plot_data_pair",
    "plot_heads",
    "plot_kernel",
    "plot_resolution",
    "plot_traces",
    "plot_trajectory",
]
