"""One function a figure: results in, matplotlib Axes out. Needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.calibrate import Calibration
from rllc.draws import Draws
from rllc.errors import InputError, nearest
from rllc.estimate import Estimate
from rllc.plots.figures import (
    COLORS,
    COVERS_95,
    band,
    color_of,
    group_numbers,
    layer_of,
    lines,
    log_steps,
    name_dots,
    name_ends,
    new_axes,
    plain,
    row_of_axes,
    zero_line,
)
from rllc.resolution import Resolution
from rllc.seeds import stable_hash
from rllc.trajectory import Trajectory
from rllc.weights import head_name

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
        x = np.array([weights.index(estimate.weights[i]) for i in mine]) + 0.16 * (
            d - (len(data) - 1) / 2
        )
        y, error = estimate.value[mine], COVERS_95 * estimate.standard_error[mine]
        color = COLORS[d % len(COLORS)]
        ax.errorbar(
            x, y, yerr=error, fmt="o", ms=5, capsize=2, lw=1.2, color=color, label=plain(name)
        )
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
    trajectory: Trajectory,
    data: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
) -> Axes | np.ndarray:
    """λ̂ over training: one line a head with its 95 % band, step on a log axis, a panel a layer.

    >>> axes = plot_trajectory(trajectory, "code", groups={"1:6": "induction"})    # doctest: +SKIP

    Args:
        trajectory: what :func:`rllc.track` or a :class:`rllc.Tracker` gave. Gaps are diverged estimates.
        data: which data set; may be left out when there is one.
        ax: one Axes for all lines, or one for each layer; ``None`` makes a figure with a panel a layer.
        groups: weights to role or cluster, as for :func:`plot_curves`.

    Returns:
        The Axes when one was given or there is one panel, else an array of them ``[layer]``.

    Raises:
        InputError: no such data, several data sets and none chosen, as many Axes as there are not layers, or groups of other
            weights.
    """
    mine = _on(trajectory, data)
    groups = _groups("plot_trajectory", [trajectory.weights[i] for i in mine], groups)
    layers: dict[str, list[int]] = {}
    for i in mine:
        layers.setdefault(layer_of(trajectory.weights[i]), []).append(i)
    if ax is None:
        panels, parts = (
            row_of_axes(len(layers), width=4.2 if groups is None else 5.2),
            list(layers.items()),
        )
    elif isinstance(ax, Sequence | np.ndarray):
        panels, parts = list(ax), list(layers.items())
        if len(panels) != len(parts):
            raise InputError(
                f"plot_trajectory: expected one Axes for each of {len(parts)} layers, got {len(panels)}."
            )
    else:
        panels, parts = [ax], [("", mine)]
    drawn = []
    for panel, (title, members) in zip(panels, parts, strict=True):
        names = [trajectory.weights[i] for i in members]
        values, error = (
            trajectory.value[:, members].T,
            COVERS_95 * trajectory.standard_error[:, members].T,
        )
        drawn.append(
            (
                panel,
                names,
                values,
                _over_steps(panel, trajectory.steps, names, values, error, groups),
            )
        )
        panel.set_title(title, fontsize="medium")
    for panel, names, values, colors in drawn:  # when all panels have their common height
        _named_ends(panel, trajectory.steps, names, values, colors, groups)
    label = r"$\hat\lambda$" + (
        f" on {plain(trajectory.data[mine[0]])}" if len(set(trajectory.data)) > 1 else ""
    )
    panels[0].set_ylabel(label)
    return panels[0] if len(panels) == 1 else np.array(panels)


def plot_curves(
    curves: Mapping[str, Sequence[float] | np.ndarray],
    steps: Sequence[int],
    *,
    error: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    groups: Mapping[str, str] | None = None,
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Any number of each head over training, drawn as :func:`plot_trajectory` draws λ̂: ablations, traces, compositions.

    >>> ax = plot_curves({"1:6": [0.0, 0.2, 0.9]}, [0, 100, 1000], ylabel="Δloss")         # doctest: +SKIP

    Args:
        curves: name to values ``[checkpoint]``; NaN is a gap.
        steps: ``[checkpoint]``: training steps, rising from 0 or later; a log axis where they span a factor of ten.
        error: name to standard errors ``[checkpoint]``, for bands of 95 %; some names may have none.
        groups: name to role or cluster, such as ``dict(zip(roles.heads, roles.roles))``. Lines of one group then share a
            colour, grey being for names without a group; the legend lists the groups, and each line's name and group stand
            beside its right end. Figures that are given the same groups colour them alike.
        ylabel: what the numbers are, with their unit.
        ax: where to draw; ``None`` makes a figure. Names are beside the Axes: leave room, as ``layout="constrained"`` does.

    Raises:
        InputError: no curves, not one value a step, steps that do not rise, or errors or groups of other names.
    """
    times = np.asarray(steps, dtype=np.float64)
    if times.ndim != 1 or not len(times) or times[0] < 0 or (np.diff(times) <= 0).any():
        raise InputError(
            f"plot_curves: `steps` must be rising training steps from 0 on, got {steps!r}."
        )
    if not curves:
        raise InputError("plot_curves: expected at least one curve, got none.")
    curves, given = (
        {head_name(name) or name: v for name, v in named.items()} for named in (curves, error or {})
    )
    for name in given:
        if name not in curves:
            raise InputError(f"plot_curves: `error` names {name!r}; {nearest(name, curves)}")
    names, none = list(curves), np.full(len(times), np.nan)
    values = np.stack(
        [_at_steps(curve, times, f"curve {name!r}") for name, curve in curves.items()]
    )
    errors = [_at_steps(given.get(name, none), times, f"error of {name!r}") for name in curves]
    groups = _groups("plot_curves", names, groups)
    ax = new_axes(ax, width=5.0 if groups is None else 6.2)
    colors = _over_steps(ax, times.tolist(), names, values, COVERS_95 * np.stack(errors), groups)
    _named_ends(ax, times, names, values, colors, groups)
    ax.set_ylabel(ylabel)
    return ax


def plot_against(
    x: Mapping[str, float],
    estimate: Estimate,
    data: str | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    xlabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """λ̂ of each choice of weights against another number of theirs, with the rank correlation of the two.

    Above the figure stands Spearman's ρ, the correlation of ranks (those of equal numbers being their mean). Its p-value is
    the share of 10,000 random permutations, and of the order itself, whose ρ is as far from 0: how often numbers dealt
    out to the weights at random would do as well. It knows nothing of the errors of λ̂, nor that heads of one model are not
    a sample of independent heads. Names that find no free place beside their dots are left out.

    >>> ax = plot_against({"1:6": 14, "1:7": 3}, estimate, xlabel="memorised multigrams")  # doctest: +SKIP

    Args:
        x: weights to a number: memorised multigrams, Δloss, a Hessian trace. Only these weights are drawn.
        estimate: what :func:`rllc.estimate` gave.
        data: λ̂ on which data set; may be left out when there is one.
        groups: weights to role or cluster, for colours and a legend.
        xlabel: what ``x`` is, with its unit.
        ax: where to draw; ``None`` makes a figure. For a log axis, pass one that has it.

    Raises:
        InputError: no such data, several and none chosen, or ``x`` or groups of weights that the estimate is not of.
    """
    mine = _of_data("plot_against", estimate, data)
    x = {head_name(name) or name: float(value) for name, value in x.items()}
    for name in x:
        if name not in mine:
            raise InputError(f"plot_against: `x` names {name!r}; {nearest(name, mine)}")
    names = [name for name in mine if name in x]
    rows = [mine[name] for name in names]
    places = np.array([[x[name] for name in names], estimate.value[rows]])
    error = COVERS_95 * np.array([np.full(len(rows), np.nan), estimate.standard_error[rows]])
    there = np.isfinite(places).all(0)
    rho, p = _rank_correlation(*places[:, there])
    ax = new_axes(ax, width=5.0 if groups is None else 6.2, height=4.2)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(
        r"$\hat\lambda$" + (f" on {plain(data)}" if data is not None else "") + " (95 % interval)"
    )
    ax.set_title(
        f"Spearman's ρ = {rho:.2f}, two-sided p = {p:.2g}, {there.sum()} weights"
        if np.isfinite(rho)
        else "Spearman's ρ is not defined here",
        fontsize="medium",
    )
    _dots(ax, names, places, error, _groups("plot_against", names, groups))
    return ax


def plot_data_pair(
    estimate: Estimate,
    x: str,
    y: str,
    *,
    groups: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """λ̂ on one data set against λ̂ on another: a dot a choice of weights, with both 95 % intervals, and the diagonal.

    Above the diagonal are weights that are more complex for ``y``. The two errors of a dot are independent, as noise and
    minibatches depend on the data; those of all dots on one data set go together, as they saw the same minibatches.

    >>> ax = plot_data_pair(estimate, "pile", "code")                              # doctest: +SKIP

    Args:
        estimate: what :func:`rllc.estimate` gave, on several data sets.
        x: the data set of the horizontal axis.
        y: that of the vertical one.
        groups: weights to role or cluster, for colours and a legend.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: no such data, the same twice, no weights on both, or groups of other weights.
    """
    on = [_of_data("plot_data_pair", estimate, data) for data in (x, y)]
    names = [name for name in on[0] if name in on[1]]
    if x == y or not names:
        raise InputError(
            f"plot_data_pair: expected two data sets with weights in common, got {x!r} and {y!r}."
        )
    rows = np.array([[mine[name] for name in names] for mine in on])
    places, error = estimate.value[rows], COVERS_95 * estimate.standard_error[rows]
    given = ax is not None
    ax = new_axes(ax, width=5.0 if groups is None else 6.2, height=4.6)
    if not given:
        ax.set_aspect("equal", adjustable="datalim")
    between = np.nanmean(places) if np.isfinite(places).any() else 0.0
    ax.axline((between, between), (between + 1, between + 1), color="0.7", lw=0.8, zorder=0)
    ax.set_xlabel(rf"$\hat\lambda$ on {plain(x)} (95 % interval)")
    ax.set_ylabel(rf"$\hat\lambda$ on {plain(y)} (95 % interval)")
    _dots(ax, names, places, error, _groups("plot_data_pair", names, groups))
    return ax


def plot_traces(
    draws: Draws, weights: str | None = None, data: str | None = None, ax: Axes | None = None
) -> Axes:
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
        i
        for i in range(len(draws.weights))
        if weights in (None, draws.weights[i]) and data in (None, draws.data[i])
    ]
    if len(matching) != 1:
        known = [f"{w}, {d}" for w, d in zip(draws.weights, draws.data, strict=True)]
        problem = (
            "matches nothing" if not matching else f"matches {len(matching)} refinements; name one"
        )
        raise InputError(
            f"plot_traces({weights!r}, {data!r}): {problem}; {nearest(f'{weights}, {data}', known)}"
        )
    ax = new_axes(ax, width=5.0)
    for chain, values in enumerate(draws.llc[matching[0], :, : draws.lengths[matching[0]]]):
        steps = np.arange(1, len(values) + 1)
        color = COLORS[chain % len(COLORS)]
        ax.plot(steps, values, lw=0.6, alpha=0.35, color=color)
        ax.plot(steps, np.cumsum(values) / steps, lw=1.6, color=color, label=f"chain {chain}")
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_title(
        plain(f"{draws.weights[matching[0]]} on {draws.data[matching[0]]}"), fontsize="medium"
    )
    ax.set_xlabel("draw")
    ax.set_ylabel(r"$n\beta\,(\ell - \ell^*)$ and its running mean")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_calibration(
    calibration: Calibration, ax: Axes | Sequence[Axes] | None = None
) -> Axes | np.ndarray:
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
        band(
            ax,
            resolution.n_beta,
            y,
            error,
            k,
            label=plain(f"{name}, {on}" if several else name),
            marker="o",
        )
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
            ax.add_patch(
                Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, ec=COLORS[1], lw=2.5)
            )
    image = ax.imshow(
        cells, origin="lower", aspect="auto", cmap="viridis_r", norm=LogNorm(0.05, 5, clip=True)
    )
    ax.set_xticks(range(len(lrs)), [f"{lr:.3g}" for lr in lrs], rotation=60)
    ax.set_yticks(range(len(localizations)), [f"{g:.3g}" for g in localizations])
    ax.set_title(rf"$n\beta$ = {n_beta:.4g}", fontsize="medium")
    ax.set_xlabel("lr $\\epsilon$")
    return image


def _over_steps(
    ax: Axes,
    steps: Sequence[int],
    names: Sequence[str],
    values: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None,
) -> list[str]:
    """Lines ``[name, checkpoint]`` over training; their colours."""
    colors = lines(ax, steps, names, values, error, groups)
    log_steps(ax, steps)
    zero_line(ax, values)
    ax.set_xlabel("training step")
    return colors


def _named_ends(
    ax: Axes,
    steps: Sequence[int] | np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    colors: Sequence[str],
    groups: Mapping[str, str] | None,
) -> None:
    if groups is not None:
        name_ends(
            ax, steps, values, [f"{name} {groups.get(name, '')}".strip() for name in names], colors
        )


def _dots(
    ax: Axes,
    names: Sequence[str],
    places: np.ndarray,
    error: np.ndarray,
    groups: Mapping[str, str] | None,
) -> None:
    """Dots at ``places [2, name]`` with names beside them, in the colours of their groups; those not finite are listed."""
    there = np.isfinite(places).all(0)
    numbers = [0] * len(names) if groups is None else group_numbers(names, groups)
    for k in sorted(set(numbers), key=lambda k: (k is None, k)):
        mine = there & np.array([number == k for number in numbers])
        if not mine.any():
            continue
        label = (
            None if groups is None or k is None else plain(list(dict.fromkeys(groups.values()))[k])
        )
        (x, y), (dx, dy) = places[:, mine], error[:, mine]
        dx = dx if np.isfinite(dx).any() else None
        ax.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", ms=4, lw=0.8, color=color_of(k), label=label)
    zero_line(ax, places[1])
    if groups is not None and ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    if not there.all():
        missing = ", ".join(name for name, shown in zip(names, there, strict=True) if not shown)
        ax.set_title(
            "\n".join(filter(None, [ax.get_title(), plain(f"not finite: {missing}")])),
            fontsize="medium",
        )
    shown = np.flatnonzero(there)
    name_dots(
        ax,
        *places[:, shown],
        error[:, shown],
        [names[i] for i in shown],
        [color_of(numbers[i]) for i in shown],
    )


def _rank_correlation(
    x: np.ndarray, y: np.ndarray, num_permutations: int = 10_000
) -> tuple[float, float]:
    """Spearman's ρ, and the two-sided p-value of random permutations; NaN for fewer than 3 or all equal numbers."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    a, b = (_standard_ranks(values) for values in (x, y))
    stream = np.random.default_rng(stable_hash("rank correlation"))
    dealt = stream.permuted(np.tile(b, (num_permutations, 1)), axis=1) @ a
    rho = float(a @ b)
    return rho, float((1 + (np.abs(dealt) >= abs(rho) - 1e-9).sum()) / (1 + num_permutations))


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, those of equal values being their mean, less their mean and divided by their norm."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ranks = ranks - ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _groups(
    what: str, names: Sequence[str], groups: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Groups by the names that results use."""
    if groups is None:
        return None
    named = {head_name(name) or name: str(group) for name, group in groups.items()}
    if not set(names) & set(named):
        known = nearest(next(iter(named), ""), names)
        raise InputError(
            f"{what}: `groups` are of {list(groups)[:4]}, but none of these is drawn; {known}"
        )
    return named


def _at_steps(curve: Sequence[float] | np.ndarray, steps: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(curve, dtype=np.float64)
    if values.shape != steps.shape:
        raise InputError(
            f"plot_curves: {what} must have one value for each of {len(steps)} steps, got {list(values.shape)}."
        )
    return values


def _of_data(what: str, estimate: Estimate, data: str | None) -> dict[str, int]:
    """Weights to their row of the estimate, on one data set."""
    known = list(dict.fromkeys(estimate.data))
    if data is None and len(known) > 1:
        raise InputError(
            f"{what}: on which data? The estimate has {known}; pass data={known[0]!r}."
        )
    if data is not None and data not in known:
        raise InputError(f"{what}: no data {data!r}; {nearest(data, known)}")
    return {name: i for i, name in enumerate(estimate.weights) if data in (None, estimate.data[i])}


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
