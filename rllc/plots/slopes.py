"""The slopes that single runs know of λ̂, on a curve over nβ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.covariances.elasticities import Elasticities
from rllc.errors import must_be
from rllc.plots.figures import color_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 1.5
"""A slope is drawn from nβ/1.5 to 1.5·nβ."""


def draw_slopes(slopes: Sequence[Elasticities], ax: Axes) -> Axes:
    """Draw dλ̂/d log nβ of each run as a short line through its λ̂.

    The curve between two runs should leave along these lines: where it does not, there are too few
    draws, or too few nβ.

    >>> ax = rllc.plot_resolution(curve)
    >>> ax = draw_slopes([rllc.elasticities(draws)], ax)

    Args:
        slopes: of :func:`rllc.elasticities`, of the refinements of the curve in the same order.
        ax: of :func:`rllc.plot_resolution`.

    Returns:
        The Axes.

    Raises:
        InputError: ``slopes`` are something else.
    """
    right = not isinstance(slopes, Elasticities)
    right = right and all(isinstance(slope, Elasticities) for slope in slopes)
    must_be("draw_slopes", "slopes", slopes, right, "a list of what rllc.elasticities gave")
    for slope in slopes:
        n_beta = slope.settings["n_beta"]
        reach = np.array([1 / _REACH, _REACH])
        for row, llc in enumerate(slope.llc.value):
            height = llc + slope.n_beta.value[row] * np.log(reach)
            ax.plot(n_beta * reach, height, "-", color=color_of(row), lw=2.5, alpha=0.6)
    return ax
