"""The paper's figures, of one run or of all, from stored results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from rllc.analysis import clustering, stages

from .claims import CONTRADICTED, HOLDS, WEAK, Claim, clusters_of, layers, stages_of
from .results import Run, curves, layer_of

COLORS = {
    "previous token": "#0072B2",
    "current token": "#56B4E9",
    "induction": "#009E73",
    "bracket": "#CC79A7",
    "multigram": "#D55E00",
    "other": "0.6",
}
"""As in ``rllc.analysis.roles.plot_roles``."""
DPI = 90
TICKS = (0, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)


def draw_all(runs: Sequence[Run], claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Draw the figures of the first run, and those of all runs together."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in (*pictures(runs[0]), *pictures_of_all(runs, claims)):
        path = folder / f"paper-{name}.png"
        figure.savefig(path, dpi=DPI)
        plt.close(figure)
        paths.append(path)
    return paths


def pictures(run: Run) -> Iterator[tuple[str, Any]]:
    """Names and figures of one run."""
    yield "curves", curves_by_role(run, "heads", "wrLLC on all data")
    if "distilled" in run.llc:
        yield "one-layer", curves_by_role(run, "distilled", "wrLLC with ℓ = L1")
    found = clusters_of(run)
    if found is not None:
        axes = clustering.plot_clusters(found, run.roles)
        yield "clusters", np.ravel(np.array(axes, dtype=object))[0].figure
    yield "stages", whole_model(run)
    yield "composition", composition(run)


def pictures_of_all(runs: Sequence[Run], claims: Sequence[Claim]) -> Iterator[tuple[str, Any]]:
    """Names and figures of all runs together."""
    with_subsets = [run for run in runs if "subsets" in run.llc]
    if with_subsets:
        yield "code-prose", code_against_prose(with_subsets)
    yield "beside", beside(runs)
    yield "effects", effects(claims)


def panels(count: int, width: float = 4.6, height: float = 3.6, **options: Any) -> tuple[Any, Any]:
    """A figure with panels side by side."""
    size = (0.6 + width * count, height)
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", **options)
    return figure, np.atleast_1d(axes)


def curves_by_role(run: Run, sweep: str, title: str) -> Any:
    """λ̂ of each head over training, a panel a layer, in the colour of its role."""
    figure, axes = panels(2)
    for axis, (layer, heads) in zip(axes, layers(run).items(), strict=True):
        for head in heads:
            steps, value, error = run.curve(sweep, head)
            color = COLORS[run.roles[head]]
            axis.plot(steps, value, color=color, lw=1.4)
            axis.fill_between(steps, value - error, value + error, color=color, alpha=0.15, lw=0)
            axis.annotate(f" {head}", (steps[-1], value[-1]), color=color, fontsize=7, va="center")
        mark_window(axis, run)
        log_axis(axis, steps)
        axis.set_title(f"layer {layer}", fontsize="medium")
    axes[0].set_ylabel(f"{title}; bands: ± one error")
    legend(axes[0], run.roles.values())
    return figure


def legend(axis: Any, roles: Any) -> None:
    """Name the colours of the roles that there are."""
    for role in COLORS:
        if role in set(roles):
            axis.plot([], [], color=COLORS[role], label=role)
    axis.legend(frameon=False, fontsize="small")


def log_axis(axis: Any, steps: np.ndarray) -> None:
    """A log axis of training steps on which step 0 has a place at the left."""
    above_0 = steps[steps > 0]
    axis.set_xscale("symlog", linthresh=float(above_0[0]), linscale=0.3)
    shown = [tick for tick in TICKS if tick == 0 or above_0[0] <= tick <= above_0[-1]]
    axis.set_xticks(shown, [str(tick) for tick in shown])
    axis.minorticks_off()
    axis.set_xlim(0, 1.3 * above_0[-1])
    axis.set_xlabel("training step")


def mark_window(axis: Any, run: Run) -> None:
    """Shade the steps in which the induction circuit forms."""
    window = run.forming()
    if window is not None:
        axis.axvspan(*window, color="0.5", alpha=0.15, lw=0, zorder=0)


def whole_model(run: Run) -> Any:
    """The LLC of all weights with its stages, and what the circuit does meanwhile."""
    figure, axes = panels(2)
    found = stages_of(run)
    if found is None:
        axes[0].set_axis_off()
    else:
        stages.plot_stages(found, axes[0])
        axes[0].set_ylabel("λ̂ of all weights")
        mark_window(axes[0], run)
    table = run.tables["model"]
    steps = table["step"].to_numpy()
    for column, words in (("gain_random", "random tokens"), ("gain_text", "text")):
        if column in table:
            axes[1].plot(steps, table[column], label=f"gain on the second copy, {words}")
    heads = run.tables["heads"]
    for score, layer in (("previous_token", 0), ("prefix_matching", 1)):
        of_layer = heads[heads["head"].map(layer_of) == layer]
        best = of_layer.groupby("step")[score].max()
        words = score.replace("_", "-")
        axes[1].plot(best.index, best, ls="--", label=f"best {words} head of layer {layer}")
    mark_window(axes[1], run)
    log_axis(axes[1], steps)
    axes[1].set_ylabel("nats; attention")
    axes[1].legend(frameon=False, fontsize="small")
    return figure


def composition(run: Run) -> Any:
    """K-composition of layer 0 with the best induction head, and ablation, over training."""
    figure, axes = panels(2)
    pairs = run.tables["pairs"]
    for head, values in curves(pairs, "excess", by="sender").items():
        steps = np.sort(pairs["step"].unique())
        axes[0].plot(steps, values, color=COLORS[run.roles[head]], lw=1.2)
        axes[0].annotate(f" {head}", (steps[-1], values[-1]), fontsize=7, va="center")
    axes[0].set_ylabel(f"K-composition with {pairs['receiver'].iloc[0]}, beyond random")
    for head, values in curves(run.tables["heads"], "delta_loss").items():
        steps = np.sort(run.tables["heads"]["step"].unique())
        axes[1].plot(steps, values, color=COLORS[run.roles[head]], lw=1.2)
        axes[1].annotate(f" {head}", (steps[-1], values[-1]), fontsize=7, va="center")
    axes[1].set_ylabel("rise of the loss without the head, nats")
    for axis in axes:
        mark_window(axis, run)
        log_axis(axis, steps)
    legend(axes[0], run.roles.values())
    return figure


def plain_log(panel: Any, which: str) -> None:
    """Make the ``"x"`` or the ``"y"`` axis a log axis with a few plain numbers."""
    getattr(panel, f"set_{which}scale")("log")
    low, high = getattr(panel, f"get_{which}lim")()
    axis = getattr(panel, f"{which}axis")
    ticks = np.outer(10.0 ** np.arange(-3, 6), (1, 2, 5)).ravel()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_minor_locator(NullLocator())


def code_against_prose(runs: Sequence[Run]) -> Any:
    """λ̂ of each head on code against that on prose, at the last step, a panel a run."""
    figure, axes = panels(len(runs), width=3.9)
    for axis, run in zip(axes, runs, strict=True):
        for head in run.heads:
            code, code_error = run.last("subsets", head, run.code)
            prose, prose_error = run.last("subsets", head, run.prose)
            color = COLORS[run.roles[head]]
            marker = "o" if layer_of(head) == 1 else "s"
            axis.errorbar(
                prose, code, code_error, prose_error, fmt=marker, ms=4, lw=0.8, color=color
            )
            axis.annotate(f" {head}", (prose, code), fontsize=7, color=color)
        plain_log(axis, "x")
        plain_log(axis, "y")
        axis.axline((100, 100), (200, 200), color="0.7", lw=0.8, zorder=0)
        axis.set_title(f"{run.name}; squares: layer 0", fontsize="medium")
        axis.set_xlabel(f"λ̂ on {run.prose}")
    axes[0].set_ylabel(f"λ̂ on {runs[0].code}")
    legend(axes[0], [role for run in runs for role in run.roles.values()])
    return figure


def beside(runs: Sequence[Run]) -> Any:
    """λ̂ at the last step beside ablation, memorised multigrams and curvature; all runs."""
    figure, axes = panels(3, width=3.9)
    for number, run in enumerate(runs):
        traces = run.tables["curvature"].set_index("weights")["value"].to_dict()
        measures = (run.evidence("delta_loss"), run.evidence("memorised"), traces)
        for axis, values in zip(axes, measures, strict=True):
            for head in run.heads:
                value, error = run.last("heads", head)
                color = COLORS[run.roles[head]]
                marker = "osD^v"[number % 5]
                axis.errorbar(
                    values[head], value, error, fmt=marker, ms=4, lw=0.8, color=color, alpha=0.8
                )
    names = ("rise of the loss without the head, nats", "memorised multigrams", "trace of H")
    for axis, name in zip(axes, names, strict=True):
        axis.set_xlabel(name)
        plain_log(axis, "y")
    plain_log(axes[0], "x")
    plain_log(axes[2], "x")
    axes[0].set_ylabel("λ̂ on all data")
    legend(axes[0], [role for run in runs for role in run.roles.values()])
    return figure


def effects(claims: Sequence[Claim]) -> Any:
    """The effect of each claim with its interval, in units of what would be seen."""
    shown = [claim for claim in claims if claim.effect is not None]
    figure, axes = panels(1, width=8.0, height=0.8 + 0.36 * len(shown))
    axis = axes[0]
    colors = {HOLDS: "#009E73", CONTRADICTED: "#D55E00", WEAK: "0.5"}
    for color_of, color in colors.items():
        axis.plot([], [], "o-", color=color, label=color_of)
    for place, claim in enumerate(shown):
        assert claim.effect is not None
        low, high = claim.effect.interval
        scale = claim.effect.detectable
        color = colors[claim.verdict]
        axis.plot([low / scale, high / scale], [place, place], color=color, lw=2)
        axis.plot(claim.effect.value / scale, place, "o", color=color)
    axis.axvline(0, color="0.5", lw=0.8)
    axis.axvline(1, color="0.5", lw=0.8, ls=":")
    axis.set_yticks(range(len(shown)), [claim.claim for claim in shown], fontsize=7)
    axis.legend(frameon=False, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlabel("effect; dotted: seen in 80 % of trials")
    return figure
