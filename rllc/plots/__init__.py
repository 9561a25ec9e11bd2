"""Figures of results; each takes ``ax=None`` and returns the Axes. Needs the extra ``plot``.

``estimates``, ``curves`` and ``calibration`` hold the figures; ``figures``, ``labels`` and
``selection`` what they share with the figures of :mod:`rllc.analysis`.
"""

from __future__ import annotations

from rllc.plots.calibration import plot_calibration
from rllc.plots.curves import plot_curves, plot_resolution, plot_traces, plot_trajectory
from rllc.plots.estimates import plot_against, plot_data_pair, plot_heads
from rllc.plots.kernels import plot_kernel

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
