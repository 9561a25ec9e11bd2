"""Figures of results; each takes ``ax=None`` and returns the Axes. Needs the extra ``plot`` when called."""

from __future__ import annotations

from rllc.plots.results import (
    plot_against,
    plot_calibration,
    plot_curves,
    plot_data_pair,
    plot_heads,
    plot_resolution,
    plot_traces,
    plot_trajectory,
)

__all__ = [
    "plot_against",
    "plot_calibration",
    "plot_curves",
    "plot_data_pair",
    "plot_heads",
    "plot_resolution",
    "plot_traces",
    "plot_trajectory",
]
