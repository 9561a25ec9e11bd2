"""Loss kernels and influence as maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rllc.plots.figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rllc.influence import LossKernel


def plot_kernel(kernel: LossKernel, weights: str | tuple[str, str], ax: Axes | None = None) -> Axes:
    """Draw one refinement's kernel as a map; what is within two standard errors of 0 is white.

    >>> plot_kernel(rllc.loss_kernel(model, data, rows), "everything")          # doctest: +SKIP

    Args:
        kernel: of :func:`rllc.loss_kernel` or :func:`rllc.influence`.
        weights: which refinement, as in ``kernel["1:6"]``.
        ax: where to draw; ``None``: a new figure.

    Returns:
        The Axes.
    """
    mean = kernel[weights]
    ax = new_axes(ax, width=4.5, height=4.0)
    seen = np.where(np.abs(mean.value) > 2 * mean.standard_error, mean.value, 0.0)
    limit = float(np.nanmax(np.abs(seen))) or 1.0
    image = ax.imshow(seen, cmap="RdBu_r", vmin=-limit, vmax=limit)
    unit = "" if kernel.kind == "correlation" else ", squared nats"
    ax.figure.colorbar(image, ax=ax, label=f"{kernel.kind}{unit}")
    ax.set_xlabel("query")
    ax.set_ylabel("row")
    name = weights if isinstance(weights, str) else " on ".join(weights)
    ax.set_title(name, fontsize="medium")
    return ax
