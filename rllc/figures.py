"""What figures share: colours, axes, bands, a log axis of training steps. Needs the extra ``plot`` when called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COVERS_95 = 1.96
"""Standard errors to each side that cover 95 %."""

# Okabe & Ito's colours, which most colour-blind people can tell apart, and a second round with another dash.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1A1A1A")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


def new_axes(ax: Axes | None, width: float) -> Axes:
    """The given Axes, or those of a new figure."""
    if ax is not None:
        return ax
    return pyplot().subplots(figsize=(width, 3.4), layout="constrained")[1]


def row_of_axes(count: int, width: float = 4.2) -> list[Axes]:
    """Axes of a new figure side by side, with one scale."""
    _, axes = pyplot().subplots(
        1, count, figsize=(1 + width * count, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    return list(axes[0])


def pyplot() -> Any:
    """matplotlib.pyplot.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise InputError("plotting needs matplotlib; type: pip install 'rllc[plot]'") from error
    return plt


def log_steps(ax: Axes, steps: Sequence[int]) -> None:
    """A log axis that also shows step 0, at the left end."""
    positive = [s for s in steps if s > 0]
    if len(positive) > 1 and positive[-1] >= 10 * positive[0]:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
        ticks = [
            10**k for k in range(int(np.log10(positive[0])), int(np.log10(positive[-1])) + 1) if 10**k >= positive[0]
        ]
        ax.set_xticks(
            [s for s in (0, positive[0], positive[-1]) if s in steps]
            if len(ticks) < 2
            else ([0] if 0 in steps else []) + ticks
        )
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    ax.set_xlim(min(steps), max(steps) * 1.02 + (len(steps) == 1))


def band(ax: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, error: np.ndarray, k: int, **options: Any) -> None:
    """The k-th line of a figure, with its 95 % band."""
    color, dash = COLORS[k % len(COLORS)], DASHES[k // len(COLORS) % len(DASHES)]
    ax.plot(x, y, ms=3, lw=1.4, color=color, ls=dash, **options)
    ax.fill_between(x, y - error, y + error, alpha=0.15, lw=0, color=color)


def zero_line(ax: Axes, values: np.ndarray) -> None:
    """A thin line at 0 where values go below it."""
    if np.nanmin(values, initial=1.0) < 0:
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)


def layer_of(weights: str) -> str:
    """What a panel of a head's layer is called."""
    head = re.fullmatch(r"(\d+):\d+", weights)
    return f"layer {head[1]}" if head else "other weights"


def plain(name: str) -> str:
    """A user's name as text: dollar signs do not begin formulas."""
    return name.replace("$", r"\$")
