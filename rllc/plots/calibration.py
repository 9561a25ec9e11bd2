"""The figure of a calibration: heat maps of the error of each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.calibrate import Calibration
from rllc.plots.figures import COLORS
from rllc.plots.selection import one_or_all, panels_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_DARK = 0.4
"""Errors above this have dark cells, on which white is read better."""


def plot_calibration(
    calibration: Calibration, ax: Axes | Sequence[Axes] | None = None
) -> Axes | np.ndarray:
    """Draw the error of each setting over lr and localization, a heat map for each n_beta.

    The number in a cell is ``Calibration.error``, as a logarithm (0.1 is 10 %, 2.3 a factor of
    ten); a cross marks a setting that is not good, the frame the one that is recommended. Settings
    that were not tried are white; those without an error, because chains diverged, are grey.

    >>> ax = plot_calibration(calibration)                                         # doctest: +SKIP

    Args:
        calibration: what :func:`rllc.calibrate` gave.
        ax: one Axes for each n_beta that was tried, or one for the best setting's n_beta; ``None``
            makes a figure.

    Returns:
        The Axes when one was given or there is one panel, else an array of them ``[n_beta]``.

    Raises:
        InputError: the number of Axes is not that of values of n_beta.
    """
    n_betas = sorted(set(calibration.n_beta))
    if ax is not None and not isinstance(ax, Sequence | np.ndarray):
        n_betas = [calibration.n_beta[calibration.best]]
    panels = panels_for(ax, n_betas, width=2.6, doing="plot_calibration", what="n_beta")
    for panel, n_beta in zip(panels, n_betas, strict=True):
        image = _heat_map(panel, calibration, n_beta)
    panels[0].set_ylabel("localization $\\gamma$")
    panels[-1].figure.colorbar(image, ax=panels, label="relative error (logarithm)")
    return one_or_all(panels)


def _heat_map(ax: Axes, calibration: Calibration, n_beta: float) -> AxesImage:
    """Draw one panel; all panels have the same rows and columns."""
    from matplotlib.colors import LogNorm

    lrs = sorted(set(calibration.lr))
    localizations = sorted(set(calibration.localization))
    cells = np.full((len(localizations), len(lrs)), np.nan)
    for setting in np.flatnonzero(calibration.n_beta == n_beta).tolist():
        row = localizations.index(calibration.localization[setting])
        column = lrs.index(calibration.lr[setting])
        cells[row, column] = calibration.error[setting]
        _mark_cell(ax, calibration, setting, row, column)
    image = ax.imshow(
        cells,
        origin="lower",
        aspect="auto",
        cmap="viridis_r",
        norm=LogNorm(0.05, 5, clip=True),
    )
    ax.set_xticks(range(len(lrs)), [f"{lr:.3g}" for lr in lrs], rotation=60)
    ax.set_yticks(range(len(localizations)), [f"{gamma:.3g}" for gamma in localizations])
    ax.set_title(rf"$n\beta$ = {n_beta:.4g}", fontsize="medium")
    ax.set_xlabel("lr $\\epsilon$")
    return image


def _mark_cell(ax: Axes, calibration: Calibration, setting: int, row: int, column: int) -> None:
    """Write a setting's error into its cell, a cross if it is not good; frame the best."""
    from matplotlib.patches import Rectangle

    error = calibration.error[setting]
    is_good = calibration.good[setting]
    words = "" if np.isnan(error) else f"{error:.2f}"
    if np.isnan(error):
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="0.85", lw=0))
    ax.text(
        column,
        row,
        words if is_good else f"×\n{words}".strip(),
        ha="center",
        va="center",
        fontsize="small",
        color="white" if error > _DARK else "black",
    )
    if is_good and setting == calibration.best:
        corner = (column - 0.48, row - 0.48)
        frame = Rectangle(corner, 0.96, 0.96, fill=False, ec=COLORS[1], lw=2.5)
        ax.add_patch(frame)
