"""One function a figure: results in, matplotlib Axes out. Needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.calibrate import Calibration
from rllc.draws import Draws
from rllc.errors import InputError, nearest
from rllc.estimate import Estimate
from rllc.figures import COLORS, COVERS_95, band, layer_of, log_steps, new_axes, plain, row_of_axes, zero_line
from rllc.resolution import Resolution
from rllc.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def plot_heads(estimate: Estimate, ax: Axes | None = None) -> Axes:
    """λ̂ of each choice of weights as a dot with its 95 % interval, one colour a data set.

    >>> ax = plot_heads(estimate)                                                  # doctest: +SKIP

    Args:
        estimate: what :func:`rllc.estimate` gave. Diverged refinements are marked with a cross at zero.
        ax: where to draw; ``None`` makes a figure.
    """
    weights, data = list(dict.fromkeys(estimate.weights)), list(dict.fromkeys(estimate.data))
    ax = new_axes(ax, width=max(4.0, 1.5 + 0.45 * len(weights)))
    for d, name in enumerate(data):
        mine = [i for i in range(len(estimate)) if estimate.data[i] == name]
        x = np.array([weights.index(estimate.weights[i]) for i in mine]) + 0.16 * (d - (len(data) - 1) / 2)
        y, error = estimate.value[mine], COVERS_95 * estimate.standard_error[mine]
        color = COLORS[d % len(COLORS)]
        ax.errorbar(x, y, yerr=error, fmt="o", ms=5, capsize=2, lw=1.2, color=color, label=plain(name))
        broken = ~np.isfinite(y)
        ax.plot(x[broken], np.zeros(broken.sum()), "x", ms=8, mew=2, color=color)
    for edge in _layer_edges(weights):
        ax.axvline(edge, color="0.85", lw=0.8, zorder=0)
    ax.set_xticks(range(len(weights)), weights, rotation=0 if max(map(len, weights)) <= 4 else 60)
    ax.set_xlabel("weights")
    ax.set_ylabel(r"$\hat\lambda$ (95 % interval)")
    zero_line(ax, estimate.value)
    if len(data) > 1:
        ax.legend(title="data", frameon=False)
    return ax


def plot_trajectory(
    trajectory: Trajectory, data: str | None = None, ax: Axes | Sequence[Axes] | None = None
) -> Axes | np.ndarray:
    """λ̂ over training: one line a head with its 95 % band, step on a log axis, a panel a layer.

    >>> axes = plot_trajectory(trajectory, "code")                                 # doctest: +SKIP

    Args:
        trajectory: what :func:`rllc.track` or a :class:`rllc.Tracker` gave. Gaps are diverged estimates.
        data: which data set; may be left out when there is one.
        ax: one Axes for all lines, or one for each layer; ``None`` makes a figure with a panel a layer.

    Returns:
        The Axes when one was given or there is one panel, else an array of them ``[layer]``.

    Raises:
        InputError: no such data, several data sets and none chosen, or as many Axes as there are not layers.
    """
    mine = _on(trajectory, data)
    layers: dict[str, list[int]] = {}
    for i in mine:
        layers.setdefault(layer_of(trajectory.weights[i]), []).append(i)
    if ax is None:
        panels = row_of_axes(len(layers))
        groups = list(layers.items())
    elif isinstance(ax, Sequence | np.ndarray):
        panels, groups = list(ax), list(layers.items())
        if len(panels) != len(groups):
            raise InputError(f"plot_trajectory: expected one Axes for each of {len(groups)} layers, got {len(panels)}.")
    else:
        panels, groups = [ax], [("", mine)]
    for panel, (title, members) in zip(panels, groups, strict=True):
        for k, i in enumerate(members):
            _curve(panel, trajectory, i, k)
        log_steps(panel, trajectory.steps)
        zero_line(panel, trajectory.value[:, members])
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("training step")
        panel.legend(frameon=False, fontsize="small", ncols=1 + len(members) // 9)
    label = r"$\hat\lambda$" + (f" on {plain(trajectory.data[mine[0]])}" if len(set(trajectory.data)) > 1 else "")
    panels[0].set_ylabel(label)
    return panels[0] if len(panels) == 1 else np.array(panels)


def plot_traces(draws: Draws, weights: str | None = None, data: str | None = None, ax: Axes | None = None) -> Axes:
    """nβ (loss − baseline) at every draw, one thin line a chain, with each chain's running mean over it.

    A healthy trace rises from 0, levels off, has no spikes, and its chains agree.

    >>> ax = plot_traces(draws, "1:6")                                             # doctest: +SKIP

    Args:
        draws: what :func:`rllc.sample` gave.
        weights: which weights; may be left out when there is one refinement.
        data: which data; may be left out when these weights have one.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: no such refinement, or several and none chosen.
    """
    matching = [
        i for i in range(len(draws.weights)) if weights in (None, draws.weights[i]) and data in (None, draws.data[i])
    ]
    if len(matching) != 1:
        known = [f"{w}, {d}" for w, d in zip(draws.weights, draws.data, strict=True)]
        problem = "matches nothing" if not matching else f"matches {len(matching)} refinements; name one"
        raise InputError(f"plot_traces({weights!r}, {data!r}): {problem}; {nearest(f'{weights}, {data}', known)}")
    ax = new_axes(ax, width=5.0)
    for chain, values in enumerate(draws.llc[matching[0], :, : draws.lengths[matching[0]]]):
        steps = np.arange(1, len(values) + 1)
        color = COLORS[chain % len(COLORS)]
        ax.plot(steps, values, lw=0.6, alpha=0.35, color=color)
        ax.plot(steps, np.cumsum(values) / steps, lw=1.6, color=color, label=f"chain {chain}")
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_title(plain(f"{draws.weights[matching[0]]} on {draws.data[matching[0]]}"), fontsize="medium")
    ax.set_xlabel("draw")
    ax.set_ylabel(r"$n\beta\,(\ell - \ell^*)$ and its running mean")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_calibration(calibration: Calibration, ax: Axes | Sequence[Axes] | None = None) -> Axes | np.ndarray:
    """The error of every setting as a heat map over lr and localization, a panel for each n_beta.

    The number in a cell is ``Calibration.error``, as a logarithm (0.1 is 10 %, 2.3 a factor of ten); a cross marks a setting
    that is not good, the frame the one that is recommended. Settings that were not tried are white; those without an
    error, because chains diverged, are grey.

    >>> ax = plot_calibration(calibration)                                         # doctest: +SKIP

    Args:
        calibration: what :func:`rllc.calibrate` gave.
        ax: one Axes for each n_beta that was tried, or one for the best setting's n_beta; ``None`` makes a figure.

    Returns:
        The Axes when one was given or there is one panel, else an array of them ``[n_beta]``.

    Raises:
        InputError: as many Axes as there are not values of n_beta.
    """
    n_betas = sorted(set(calibration.n_beta))
    if ax is None:
        panels = row_of_axes(len(n_betas), width=2.6)
    elif isinstance(ax, Sequence | np.ndarray):
        panels = list(ax)
        if len(panels) != len(n_betas):
            raise InputError(
                f"plot_calibration: expected one Axes for each of {len(n_betas)} n_beta, got {len(panels)}."
            )
    else:
        panels, n_betas = [ax], [calibration.n_beta[calibration.best]]
    for panel, n_beta in zip(panels, n_betas, strict=True):
        image = _heat_map(panel, calibration, n_beta)
    panels[0].set_ylabel("localization $\\gamma$")
    panels[-1].figure.colorbar(image, ax=panels, label="relative error (logarithm)")
    return panels[0] if len(panels) == 1 else np.array(panels)


def plot_resolution(resolution: Resolution, ax: Axes | None = None) -> Axes:
    """λ̂ as a curve over nβ, on a log axis: one line a refinement with its 95 % band.

    Points whose status is not ok are crosses; those of diverged chains stand at zero.

    >>> ax = plot_resolution(curve)                                                # doctest: +SKIP

    Args:
        resolution: what :func:`rllc.resolution` gave.
        ax: where to draw; ``None`` makes a figure.
    """
    ax, several = new_axes(ax, width=5.0), len(set(resolution.data)) > 1
    for k, (name, on) in enumerate(zip(resolution.weights, resolution.data, strict=True)):
        y, error = resolution.value[:, k], COVERS_95 * resolution.standard_error[:, k]
        band(ax, resolution.n_beta, y, error, k, label=plain(f"{name}, {on}" if several else name), marker="o")
        wrong = np.array([status[k] != "ok" for status in resolution.status])
        color = COLORS[k % len(COLORS)]
        ax.plot(resolution.n_beta[wrong], np.nan_to_num(y[wrong]), "x", ms=8, mew=2, color=color)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda n_beta, _: f"{n_beta:g}")
    ax.set_xlabel(r"$n\beta$")
    ax.set_ylabel(r"$\hat\lambda$ (95 % band)")
    zero_line(ax, resolution.value)
    ax.legend(frameon=False, fontsize="small", ncols=1 + len(resolution.weights) // 9)
    return ax


def _heat_map(ax: Axes, calibration: Calibration, n_beta: float) -> AxesImage:
    """One panel of :func:`plot_calibration`; all panels have the same rows and columns."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    lrs, localizations = sorted(set(calibration.lr)), sorted(set(calibration.localization))
    errors, good = calibration.error, calibration.good
    cells = np.full((len(localizations), len(lrs)), np.nan)
    for i in np.flatnonzero(calibration.n_beta == n_beta):
        y, x = localizations.index(calibration.localization[i]), lrs.index(calibration.lr[i])
        cells[y, x] = errors[i]
        if np.isnan(errors[i]):
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color="0.85", lw=0))
        words = "" if np.isnan(errors[i]) else f"{errors[i]:.2f}"
        dark = errors[i] > 0.4
        ax.text(x, y, words if good[i] else f"×\n{words}".strip(), ha="center", va="center", fontsize="small",
                color="white" if dark else "black")  # fmt: skip
        if good[i] and i == calibration.best:
            ax.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, ec=COLORS[1], lw=2.5))
    image = ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r", norm=LogNorm(0.05, 5, clip=True))
    ax.set_xticks(range(len(lrs)), [f"{lr:.3g}" for lr in lrs], rotation=60)
    ax.set_yticks(range(len(localizations)), [f"{g:.3g}" for g in localizations])
    ax.set_title(rf"$n\beta$ = {n_beta:.4g}", fontsize="medium")
    ax.set_xlabel("lr $\\epsilon$")
    return image


def _curve(ax: Axes, trajectory: Trajectory, i: int, k: int) -> None:
    y, error = trajectory.value[:, i], COVERS_95 * trajectory.standard_error[:, i]
    marker = "o" if len(trajectory.steps) < 12 else None
    band(ax, trajectory.steps, y, error, k, label=plain(trajectory.weights[i]), marker=marker)


def _on(trajectory: Trajectory, data: str | None) -> list[int]:
    known = list(dict.fromkeys(trajectory.data))
    if data is None and len(known) > 1:
        raise InputError(f"plot_trajectory: on which data? It has {known}; pass data={known[0]!r}.")
    if data is not None and data not in known:
        raise InputError(f"plot_trajectory: no data {data!r}; {nearest(data, known)}")
    return [i for i, name in enumerate(trajectory.data) if data in (None, name)]


def _layer_edges(weights: Sequence[str]) -> list[float]:
    layers = [layer_of(name) for name in weights]
    return [i - 0.5 for i in range(1, len(layers)) if layers[i] != layers[i - 1]]
