"""Every figure of rllc on one page, from made-up results whose truth is known.

    python examples/gallery.py                     # rllc-out/gallery/index.html, in a minute or two
    python examples/gallery.py --out somewhere --format svg
    python examples/gallery.py --tiny              # eight heads only

The λ̂ here are not of a model: they are drawn around curves that are written down below, with errors
of a stated size, so that a figure that shows something else is wrong. The figures of
``rllc.analysis`` are of a small model with random weights, which has no roles to find.
"""

# %% What is asked for
import argparse
import html
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import rllc
from rllc import plots
from rllc.analysis import (
    ablation,
    attention,
    circuit,
    clustering,
    composition,
    curvature,
    patching,
    patterns,
    roles,
    stages,
    structure,
    tokens_in_context,
    volume,
)
from rllc.calibration.calibrate import Calibration
from rllc.limits import Limits
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.weights.names import Names

SIZES = {8: (2, 4), 16: (2, 8), 32: (4, 8), 144: (12, 12)}
"""Number of heads: layers, heads a layer."""

STEPS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
KINDS = ("previous token", "induction", "multigram", "current token")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/gallery"))
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    parser.add_argument("--tiny", action="store_true", help="eight heads only")
    parser.add_argument("--only", default="", help="figures whose caption has this in it")
    return parser.parse_args(argv)


# %% Results that are made up
def heads(count: int) -> list[str]:
    layers, per_layer = SIZES[count]
    return [f"{layer}:{head}" for layer in range(layers) for head in range(per_layer)]


def groups(count: int) -> dict[str, str]:
    return {name: KINDS[i * 7 % len(KINDS)] for i, name in enumerate(heads(count))}


def truth(count: int, number: int, data: int) -> float:
    """λ of a head at the end: it falls from head to head, and differs between data sets."""
    return 4 + 20 * (1 - number / count) ** 2 + 3 * np.sin(1 + number + 2 * data)


def estimate(count: int, num_data: int = 2, share: float = 1.0, seed: int = 0) -> rllc.Estimate:
    """λ̂ around a share of the truth; a tenth is not ok, and one head has diverged."""
    data = ("pile", "code", "prose", "dialogue", "recipes", "poems")[:num_data]
    names = Names.of((name, its_data) for name in heads(count) for its_data in data)
    values = [truth(count, i // num_data, i % num_data) for i in range(len(names))]
    stream = np.random.default_rng([count, num_data, seed])
    error = 0.15 + 0.05 * stream.gamma(2.0, size=len(names)) + 0.02 * share * np.array(values)
    value = share * np.array(values) + error * stream.standard_normal(len(names))
    faults: list[tuple[rllc.estimates.Fault, ...]] = [()] * len(names)
    for i in range(3, len(names), 10):
        faults[i] = (rllc.estimates.Fault("imprecise", {"share": 0.3}, "more draws"),)
    faults[-1] = (rllc.estimates.Fault("diverged", {"chain": 1, "step": 40}, "lower lr"),)
    value[-1] = error[-1] = np.nan
    per_chain = value[:, None] + 2 * error[:, None] * stream.standard_normal((len(names), 4))
    ratio = np.clip(value / 40, 0, None)
    return rllc.Estimate(
        value=value,
        standard_error=error,
        dof=np.full(len(names), 9.0),
        rhat=1 + 0.02 * stream.gamma(1.0, size=len(names)),
        ess=np.full(len(names), 240.0),
        per_chain=per_chain,
        faults=tuple(faults),
        names=names,
        settings=rllc.sgld().settings | rllc.Sampling().settings,
        diagnostics={"control_ratio": ratio},
    )


def trajectory(count: int, num_data: int = 1) -> rllc.Trajectory:
    """λ̂ that rises from nothing; at step 0 the errors are ten times as large."""
    by_step = {}
    for number, step in enumerate(STEPS):
        share = 1 / (1 + (300 / max(step, 1)) ** 1.2)
        at_step = estimate(count, num_data, share, seed=number)
        if step == 0:
            at_step = replace(at_step, standard_error=10 * at_step.standard_error)
        by_step[step] = at_step
    return rllc.Trajectory.of(by_step)


def draws(sick: bool) -> rllc.Draws:
    """Chains around 5 that agree; or one that is stuck, one with a spike, one that rises."""
    stream = np.random.default_rng(1)
    num_chains, num_draws = 4, 200
    llc = np.zeros((num_chains, num_draws))
    noise = 0.8 * stream.standard_normal(llc.shape)
    for k in range(1, num_draws):
        llc[:, k] = 0.8 * llc[:, k - 1] + noise[:, k]
    llc += 5 * (1 - np.exp(-np.arange(num_draws) / 6))
    if sick:
        llc[1] = 3 + 0.001 * noise[1]
        llc[2, 120:124] += 25
        llc[3] += np.linspace(0, 8, num_draws)
    return made_of(llc, relaxation=0.8)


def gamma_draws() -> rllc.Draws:
    """Independent draws whose volume is t to the power of 2.5: their λ is 2.5."""
    return made_of(np.random.default_rng(2).gamma(2.5, size=(4, 400)), relaxation=0.0)


def made_of(llc: np.ndarray, relaxation: float) -> rllc.Draws:
    """Draws whose contributions to λ̂ are ``llc [chain, draw]``."""
    settings = rllc.sgld().settings | rllc.Sampling(*llc.shape).settings
    return rllc.Draws(
        loss=llc[None] / settings["n_beta"],
        baseline=np.zeros((1, *llc.shape)),
        diverged=np.full((1, len(llc)), -1),
        names=Names(("1:6",), ("code",)),
        settings=settings | {"relaxation": relaxation},
    )


def resolution(count: int) -> rllc.calibration.Resolution:
    """λ̂ that rises with nβ; where it is small the prior alone gives it; one point is not ok."""
    n_betas = np.array([1.0, 3, 10, 30, 100, 300, 1000])
    estimates = []
    for number, n_beta in enumerate(n_betas):
        share = n_beta / (n_beta + 30)
        one = estimate(count, 1, share, seed=number)
        prior = rllc.estimates.Fault("prior_dominated", {"share": 0.95}, "larger n_beta")
        spikes = rllc.estimates.Fault("spikes", {"draws": 2}, "lower lr")
        faults: tuple[tuple[rllc.estimates.Fault, ...], ...] = ((),) * count
        if n_beta <= 3:
            faults = ((prior,),) * count
        if n_beta == 1000:
            faults = ((spikes,), *faults[1:])
        estimates.append(replace(one, faults=faults))
    return rllc.calibration.Resolution(n_betas, tuple(estimates))


def calibration() -> Calibration:
    """A search whose steps are too large from ε·(nβ·20 + γ) = 2 on."""
    settings, estimates = [], []
    for lr in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3):
        for n_beta in (30.0, 300.0, 3000.0):
            for localization in (30.0, 200.0, 1000.0):
                settings.append((lr, n_beta, localization))
                estimates.append(at_setting(lr, n_beta, localization))
    lr, n_beta, localization = np.array(settings).T
    return Calibration(
        lr,
        n_beta,
        localization,
        tuple(estimates),
        Limits.for_calibration(),
        rllc.sgld,
        rllc.Sampling(),
    )


def at_setting(lr: float, n_beta: float, localization: float) -> rllc.Estimate:
    """One head whose curvature is 0.5 in half of its directions and 20 in the others."""
    curvatures = np.repeat([0.5, 20.0], 20)
    value = 0.5 * (n_beta * curvatures / (n_beta * curvatures + localization)).sum()
    prior = 0.5 * n_beta * curvatures.sum() / localization
    ones = np.ones(1)
    step = lr * (n_beta * 20 + localization)
    slowest = 1 / max(lr * (n_beta * 0.5 + localization), 1e-9)
    settings = rllc.sgld(lr, localization).settings | rllc.Sampling(n_beta=n_beta).settings
    diagnostics = {
        "stability": 4 / step * ones,
        "max_curvature": 20 * ones,
        "control_ratio": value / prior * ones,
        "relaxation": 2 * slowest * ones,
        "relaxation_times": 200 / slowest * ones,
        "missing_at_start": slowest / 400 * ones,
        "discretisation": step / 8 * ones,
    }
    return rllc.Estimate(
        value=value * ones,
        standard_error=0.02 * value * ones,
        dof=9 * ones,
        rhat=ones,
        ess=240 * ones,
        per_chain=np.full((1, 4), value),
        faults=((),),
        names=Names(("1:6",), ("code",)),
        settings=settings,
        diagnostics=diagnostics,
    )


# %% A small model with random weights, for the figures of rllc.analysis
def model_and_rows() -> tuple[AttentionOnly, rllc.Tokens]:
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 8, "d_head": 4, "n_ctx": 24, "d_vocab": 40}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AttentionOnly(AttentionOnlyConfig(**sizes)).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        rows = torch.randint(1, 40, (16, 24))
    rows[:, 0] = 0
    return model, rllc.Tokens(rows, "random")


# %% The figures
Draw = Callable[[], Any]


def of_many(counts: tuple[int, ...]) -> Iterator[tuple[str, Draw]]:
    """Figures of λ̂, for each number of heads."""
    for count in counts:
        pairs = estimate(count)
        one = estimate(count, 1)
        x = {name: 30.0 * truth(count, i, 1) for i, name in enumerate(heads(count))}
        over_training, colours = trajectory(count), groups(count)
        curves = dict(zip(heads(count), over_training.value.T, strict=True))
        errors = dict(zip(heads(count), over_training.standard_error.T, strict=True))
        yield f"plot_heads, {count} heads", lambda e=one: rllc.plot_heads(e)
        yield f"plot_heads, {count} heads on 2 data sets", lambda e=pairs: rllc.plot_heads(e)
        yield (
            f"plot_heads, {count} heads on 6 data sets",
            lambda count=count: rllc.plot_heads(estimate(count, 6)),
        )
        yield (
            f"plot_trajectory, {count} heads",
            lambda t=over_training: rllc.plot_trajectory(t),
        )
        yield (
            f"plot_trajectory, {count} heads by role",
            lambda t=over_training, g=colours: rllc.plot_trajectory(t, groups=g),
        )
        yield (
            f"plot_curves, {count} heads by role",
            lambda c=curves, e=errors, g=colours: plots.plot_curves(
                c, STEPS, error=e, groups=g, ylabel="Δloss (nats per token)"
            ),
        )
        yield (
            f"plot_data_pair, {count} heads by role",
            lambda e=pairs, g=colours: plots.plot_data_pair(e, "pile", "code", groups=g),
        )
        yield (
            f"plot_against, {count} heads by role",
            lambda x=x, e=one, g=colours: plots.plot_against(
                x, e, groups=g, xlabel="memorised multigrams"
            ),
        )


def of_settings() -> Iterator[tuple[str, Draw]]:
    """Figures by which settings are chosen."""
    yield "plot_traces, healthy", lambda: rllc.plot_traces(draws(sick=False))
    yield "plot_traces, chains with faults", lambda: rllc.plot_traces(draws(sick=True))
    yield "plot_resolution, 8 heads", lambda: rllc.plot_resolution(resolution(8))
    yield "plot_calibration", lambda: plots.plot_calibration(calibration())
    yield (
        "plot_against, 3 weights",
        lambda: plots.plot_against({"0:0": 1, "0:1": 3, "0:2": 2}, estimate(8, 1), xlabel="rank"),
    )


def of_analysis() -> Iterator[tuple[str, Draw]]:
    """Figures of rllc.analysis."""
    model, rows = model_and_rows()
    quick = {
        "sampling": rllc.Sampling(2, 12, batch_size=8),
        "compute": rllc.Compute(progress=False),
    }
    kernel_rows = rllc.Tokens(rows.rows[:12], "rows")
    over_training = trajectory(16)
    curves = dict(zip(heads(16), over_training.value.T, strict=True))
    without_the_diverged = {name: curves[name] for name in heads(16)[:-1]}
    contexts = tokens_in_context.tokens_in_context(model, rows)
    is_late = np.zeros((16, 24), dtype=bool)
    is_late[:, 12:] = True
    yield (
        "plot_kernel",
        lambda: plots.plot_kernel(
            rllc.loss_kernel(model, rows, kernel_rows, "1:6", **quick), "1:6"
        ),
    )
    groups_of_rows = ["first"] * 6 + ["last"] * 6
    yield (
        "plot_rows",
        lambda: plots.kernels.plot_rows(
            rllc.loss_kernel(model, rows, kernel_rows, "1:6", **quick), "1:6", groups_of_rows
        ),
    )
    observed = rllc.sample(
        model,
        rows,
        [rllc.head(f"1:{number}") for number in range(4)],
        observe={"probes": rllc.losses_on(kernel_rows)},
        **quick,
    )
    components = structure.structure(observed)
    yield "plot_matrix", lambda: structure.plot_matrix(components)
    yield "plot_components", lambda: structure.plot_components(components)
    yield "plot_ablation", lambda: ablation.plot_ablation(ablation.ablate(model, rows))
    yield "plot_scores", lambda: attention.plot_scores(attention.scores(model, rows))
    yield "plot_roles", lambda: roles.plot_roles(roles.classify(model, rows, contexts=contexts))
    yield "plot_kinds", lambda: tokens_in_context.plot_kinds(contexts)
    yield "plot_pattern", lambda: patterns.plot_pattern(patterns.patterns(model, rows[:1])[0, 1, 6])
    yield "plot_composition", lambda: composition.plot_composition(composition.compose(model))
    yield "plot_paths", lambda: patching.plot_paths(patching.patch_paths(model, rows), "K")
    yield (
        "plot_circuit",
        lambda: circuit.plot_circuit(
            circuit.ablate_circuit(
                model, rows, ["0:1", "1:6"], {"early": ~is_late, "late": is_late}, num_random=8
            )
        ),
    )
    yield (
        "plot_curvature",
        lambda: curvature.plot_curvature(
            curvature.hessian_trace(model, rows, rllc.heads(model), progress=False)
        ),
    )
    yield (
        "plot_clusters",
        lambda: clustering.plot_clusters(
            clustering.cluster(without_the_diverged, method="hierarchical", steps=STEPS),
            groups(16),
        ),
    )
    curve = over_training.value[1:, 0]
    errors = over_training.standard_error[1:, 0]
    yield (
        "plot_stages",
        lambda: stages.plot_stages(stages.stages(curve, STEPS[1:], errors)),
    )
    yield "plot_volume", lambda: volume.plot_volume(volume.volume(gamma_draws()))


def all_figures(counts: tuple[int, ...]) -> Iterator[tuple[str, Draw]]:
    yield from of_many(counts)
    yield from of_settings()
    yield from of_analysis()


# %% The page
def save(axes: Any, path: Path) -> Any:
    """Write a figure's file and return the figure."""
    figure = np.ravel(np.array(axes, dtype=object))[0].figure
    figure.savefig(path, dpi=110)
    return figure


def page(pictures: dict[str, str]) -> str:
    parts = []
    for caption, file in pictures.items():
        name = html.escape(file)
        tag = f'<a href="{name}">{html.escape(caption)}</a>'
        if not file.endswith(".pdf"):
            tag = f'<img src="{name}" alt="{html.escape(caption)}"><br>{tag}'
        parts.append(f"<figure>{tag}</figure>")
    style = "body { font: 15px sans-serif; margin: 2rem } img { max-width: 100% }"
    style += " figure { display: inline-block; margin: 1rem; max-width: 46rem }"
    title = "Figures of rllc, from made-up results"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def main(argv: list[str] | None = None) -> dict[str, str]:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    pictures = {}
    for caption, draw in all_figures((8,) if args.tiny else tuple(SIZES)):
        if not any(word in caption for word in args.only.split(";")):
            continue
        name = caption.replace(", ", "-").replace(" ", "-") + f".{args.format}"
        plt.close(save(draw(), args.out / name))
        pictures[caption] = name
    (args.out / "index.html").write_text(page(pictures), encoding="utf-8")
    seconds = time.perf_counter() - begin
    print(f"{len(pictures)} figures in {seconds:.0f} s: {args.out / 'index.html'}")
    return pictures


if __name__ == "__main__":
    main()
