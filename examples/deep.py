"""Eight layers instead of two: refined LLCs of the heads by role and by depth.

    python examples/deep.py              # some minutes on one core; no download

Attention-only models of two and of eight layers learn the synthetic language, whose rules are
known. Runs of several lengths start alike, and each ends with a falling rate, so that what is
estimated is a minimum. Their heads get roles, and their LLCs are estimated. Do the roles of the
shallow model come back, do heads keep them, and are they in the same order?
Writes to the output folder: checkpoints, sweeps, `heads.csv` and a figure. Interrupted, the same
command goes on where it stopped.
"""

# %% What is asked for
import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn

import rllc
from rllc.analysis import attention, classify
from rllc.models import AttentionOnlyConfig


@dataclass(frozen=True)
class Scale:
    """Models, training and sampling."""

    depths: tuple[int, ...]
    heads: int
    width: int
    num_rows: int
    rows_of_roles: int
    batch_size: int
    lengths: tuple[int, ...]
    """Steps of each run."""
    sampling: rllc.Sampling


SMALL = Scale(
    depths=(2, 8),
    heads=4,
    width=64,
    num_rows=6000,
    rows_of_roles=128,
    batch_size=16,
    lengths=(500, 1000),
    sampling=rllc.Sampling(
        num_chains=3,
        num_draws=70,
        num_burnin_steps=10,
        batch_size=4,
        n_beta=2000.0,
        num_probes=2,
        start="gaussian",
        control_variate=True,
    ),
)
TINY = Scale(
    depths=(1, 2),
    heads=2,
    width=8,
    num_rows=40,
    rows_of_roles=8,
    batch_size=4,
    lengths=(2, 4),
    sampling=rllc.Sampling(
        num_chains=2, num_draws=4, batch_size=4, n_beta=100.0, num_probes=0, control_variate=False
    ),
)

SAMPLER = rllc.sgld(lr=4e-4, localization=150.0)
"""Errors are a smaller share of λ̂ at an n_beta of 2000 than at 4000: a slope that is left at w*
counts with the square of it."""

LIMITS = rllc.Limits(max_imprecision=0.4, max_step=0.2)
"""To compare heads ± 40 % at 95 % will do, and what the step size adds may be half of it."""

COLORS = {
    "previous token": "#0072B2",
    "current token": "#56B4E9",
    "induction": "#009E73",
    "bracket": "#CC79A7",
    "multigram": "#D55E00",
    "other": "0.6",
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/deep"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="seconds, to try that all works")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


# %% The language, and a model of some depth that learns it
LANGUAGE = rllc.data.synthetic.Language()


def train(
    depth: int, num_steps: int, rows: rllc.Tokens, scale: Scale, args: argparse.Namespace
) -> rllc.models.Checkpoint:
    """The last checkpoint of a run; in its last fifth the rate falls."""
    config = AttentionOnlyConfig.fast(
        n_layers=depth,
        n_heads=scale.heads,
        d_model=scale.width,
        d_head=scale.width // scale.heads,
        n_ctx=LANGUAGE.context_length,
        d_vocab=LANGUAGE.vocab_size,
    )
    folder = args.out / f"{depth}-layers-{num_steps}"
    training = rllc.Training.fast(
        num_steps=num_steps,
        batch_size=scale.batch_size,
        warmup_steps=min(100, num_steps // 10),
        checkpoints=[num_steps],
    )
    rllc.train(config, rows, folder, training=training, seed=args.seed, progress=not args.quiet)
    return rllc.checkpoints(folder)[-1]


# %% Roles over training
def roles_of(model: nn.Module, rows: rllc.Tokens, repeats: rllc.Tokens) -> dict[str, str]:
    # A model of this language repeats only after the language's mark, so random tokens show little.
    scores = attention.scores(model, repeats)
    found = classify(model, rows, brackets=LANGUAGE.brackets, scores=scores)
    return dict(zip(found.heads, found.roles, strict=True))


# %% One depth: roles and LLCs of all heads at the end of each run
def measure(depth: int, rows: rllc.Tokens, scale: Scale, args: argparse.Namespace) -> pd.DataFrame:
    checkpoints = [train(depth, length, rows, scale, args) for length in scale.lengths]
    trajectory = rllc.track(
        checkpoints,
        rows,
        rllc.heads,
        sampler=SAMPLER,
        sampling=scale.sampling,
        limits=LIMITS,
        store=args.out / f"sweep-{depth}",
        compute=rllc.Compute(progress=not args.quiet),
    )
    held_out = LANGUAGE.sample(scale.rows_of_roles, seed=2)
    repeats = LANGUAGE.sample(scale.rows_of_roles, seed=2, subset="induction").tokens
    tables = []
    for checkpoint in checkpoints:
        model = rllc.load(checkpoint)
        roles = roles_of(model, held_out.tokens, repeats)
        table = trajectory.at(checkpoint.step).to_dataframe(diagnostics=True)
        table["role"] = table["weights"].map(roles)
        tables.append(table.assign(step=checkpoint.step))
    table = pd.concat(tables, ignore_index=True).rename(columns={"weights": "head"})
    table["layer"] = table["head"].str.split(":").str[0].astype(int)
    return table.assign(depth=depth)


# %% Do roles and their order persist?
def print_findings(table: pd.DataFrame) -> None:
    for depth, of_depth in table.groupby("depth"):
        steps = sorted(of_depth["step"].unique())
        last = of_depth[of_depth["step"] == steps[-1]]
        print(f"\n{depth} layers: λ̂ at the end, mean by role and layer (number of heads)")
        by_role = last.groupby(["role", "layer"])["llc"].agg(["mean", "count"])
        cells = by_role["mean"].map("{:.1f}".format) + by_role["count"].map(" ({})".format)
        print(cells.unstack().fillna("").to_string())
        flagged = (of_depth["status"] != "ok").sum()
        print(f"{flagged} of {len(of_depth)} estimates are flagged")
        for before, after in itertools.pairwise(steps):
            kept, rho = persistence(of_depth, before, after)
            print(
                f"steps {before} to {after}: {kept} of {len(last)} heads keep their role; "
                f"rank correlation of λ̂ within layers {rho:.2f}"
            )
    print("\nlog λ̂ less the mean of the layer, by role: mean, standard error (number of heads)")
    print(by_role_within_layers(table).to_string())


def by_role_within_layers(table: pd.DataFrame) -> pd.DataFrame:
    """How far heads of a role are above the mean of their layers, on a log scale.

    One line a role, one column a depth and length of training. λ̂ that is not above 0 is left out,
    and so are layers with one role only.
    """
    positive = table[table["llc"] > 0].assign(log=lambda rows: np.log(rows["llc"]))
    of_layer = positive.groupby(["depth", "step", "layer"])
    positive["log"] -= of_layer["log"].transform("mean")
    several = of_layer["role"].transform("nunique") > 1
    grouped = positive[several].groupby(["role", "depth", "step"])["log"]
    stats = grouped.agg(["mean", "sem", "count"])
    cells = stats["mean"].map("{:+.2f}".format)
    cells += stats["sem"].map(" ± {:.2f}".format) + stats["count"].map(" ({})".format)
    return cells.unstack(["depth", "step"]).fillna("")


def persistence(table: pd.DataFrame, before: int, after: int) -> tuple[int, float]:
    """How many heads keep their role, and Spearman's ρ of λ̂ within layers."""
    first, second = (
        table[table["step"] == step].set_index("head").sort_index() for step in (before, after)
    )
    kept = int((first["role"] == second["role"]).sum())
    ranks = []
    for of_step in (first, second):
        rank = of_step.groupby("layer")["llc"].rank()
        ranks.append(rank - rank.groupby(of_step["layer"]).transform("mean"))
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return kept, float((ranks[0] * ranks[1]).sum() / scale)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Above, λ̂ at the end by layer; below, of each head after runs of each length."""
    from matplotlib import pyplot as plt

    depths = sorted(table["depth"].unique())
    figure, axes = plt.subplots(
        2,
        len(depths),
        figsize=(12, 7.6),
        width_ratios=[depth + 2 for depth in depths],
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (above, below), depth in zip(axes.T, depths, strict=True):
        of_depth = table[table["depth"] == depth]
        last = of_depth[of_depth["step"] == of_depth["step"].max()]
        draw_layers(last, above)
        above.set_title(f"{depth} layers, {last['step'].iloc[0]} steps", fontsize="medium")
        colors = last.set_index("head")["role"].map(COLORS)
        for head, of_head in of_depth.groupby("head"):
            below.plot(of_head["step"], of_head["llc"], "o-", ms=3, lw=1, color=colors[head])
        below.axhline(0, color="0.8", lw=1)
        below.set_xlabel("steps of training")
        below.set_xticks(sorted(of_depth["step"].unique()))
    # Layers differ tenfold; below 1 the axis is linear, as λ̂ may be negative.
    axes[0, 0].set_yscale("symlog", linthresh=1)
    for ax in axes[:, 0]:
        ax.set_ylabel(r"$\hat\lambda$ (95 % bars)" if ax is axes[0, 0] else r"$\hat\lambda$")
    axes[0, -1].legend(frameon=False, fontsize="small", ncols=3)
    figure.savefig(path, dpi=90)


def draw_layers(last: pd.DataFrame, ax: Axes) -> None:
    """One point a head, beside those of its layer, coloured by role."""
    place = last["head"].str.split(":").str[1].astype(int)
    x = last["layer"] + 0.7 * (place / (place.max() + 1) - 0.35)
    for role, color in COLORS.items():
        rows = last["role"] == role
        ax.errorbar(
            x[rows],
            last["llc"][rows],
            1.96 * last["standard_error"][rows],
            fmt="o",
            ms=5,
            lw=1,
            color=color,
            label=role,
        )
    ax.axhline(0, color="0.8", lw=1)
    ax.set_xlabel("layer")
    ax.set_xticks(sorted(last["layer"].unique()))


# %% All of it
def main(argv: list[str] | None = None) -> pd.DataFrame:
    matplotlib.use("Agg")
    args = arguments(argv)
    scale = TINY if args.tiny else SMALL
    begin = time.perf_counter()
    rows = LANGUAGE.sample(scale.num_rows, seed=args.seed + 1).tokens
    table = pd.concat([measure(depth, rows, scale, args) for depth in scale.depths])
    table.to_csv(args.out / "heads.csv", index=False)
    print_findings(table)
    draw(table, args.out / "deep.png")
    print(f"\n{time.perf_counter() - begin:.0f} s; all files are in {args.out}")
    return table


if __name__ == "__main__":
    main()
