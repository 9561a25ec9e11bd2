"""Eight layers instead of two: refined LLCs of the heads by role and by depth.

    python examples/deep.py              # some minutes on one core; no download

Attention-only models of two and of eight layers learn the synthetic language, whose rules are
known. Their heads get roles, and their LLCs are estimated over the last quarter of training. Do the
roles of the shallow model come back, and are they in the same order?
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
    training: rllc.Training
    from_step: int
    """Estimates are made of the checkpoints from this step on."""
    sampling: rllc.Sampling


SMALL = Scale(
    depths=(2, 8),
    heads=4,
    width=64,
    num_rows=6000,
    rows_of_roles=128,
    training=rllc.Training.fast(
        num_steps=1000, batch_size=16, checkpoints=[125, 250, 500, 750, 1000]
    ),
    from_step=750,
    sampling=rllc.Sampling(
        num_chains=2,
        num_draws=50,
        num_burnin_steps=10,
        batch_size=4,
        n_beta=5000.0,
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
    training=rllc.Training.fast(num_steps=4, batch_size=4, warmup_steps=1, checkpoints=[2, 4]),
    from_step=2,
    sampling=rllc.Sampling(
        num_chains=2, num_draws=4, batch_size=4, n_beta=100.0, num_probes=0, control_variate=False
    ),
)

SAMPLER = rllc.sgld(lr=2e-4, localization=350.0)

LIMITS = rllc.Limits(max_imprecision=0.4)
"""For curves over training ± 40 % at 95 % will do."""

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


def train(depth: int, rows: rllc.Tokens, scale: Scale, args: argparse.Namespace) -> Path:
    """The folder of the checkpoints."""
    config = AttentionOnlyConfig.fast(
        n_layers=depth,
        n_heads=scale.heads,
        d_model=scale.width,
        d_head=scale.width // scale.heads,
        n_ctx=LANGUAGE.context_length,
        d_vocab=LANGUAGE.vocab_size,
    )
    folder = args.out / f"{depth}-layers"
    rllc.train(
        config, rows, folder, training=scale.training, seed=args.seed, progress=not args.quiet
    )
    return folder


# %% Roles over training
def roles_of(model: nn.Module, rows: rllc.Tokens, repeats: rllc.Tokens) -> dict[str, str]:
    # A model of this language repeats only after the language's mark, so random tokens show little.
    scores = attention.scores(model, repeats)
    found = classify(model, rows, brackets=LANGUAGE.brackets, scores=scores)
    return dict(zip(found.heads, found.roles, strict=True))


# %% One depth: roles and LLCs of all heads at all checkpoints
def measure(depth: int, rows: rllc.Tokens, scale: Scale, args: argparse.Namespace) -> pd.DataFrame:
    all_checkpoints = rllc.checkpoints(train(depth, rows, scale, args))
    checkpoints = [each for each in all_checkpoints if each.step >= scale.from_step]
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
        print(f"{flagged} of {len(of_depth)} estimates over training are flagged")
        for before, after in itertools.pairwise(steps):
            kept, rho = persistence(of_depth, before, after)
            print(
                f"steps {before} to {after}: {kept} of {len(last)} heads keep their role; "
                f"rank correlation of λ̂ within layers {rho:.2f}"
            )


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
    from matplotlib import pyplot as plt

    depths = sorted(table["depth"].unique())
    widths = [depth + 2 for depth in depths]
    figure, axes = plt.subplots(
        1,
        len(depths),
        figsize=(12, 4.4),
        width_ratios=widths,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, depth in zip(axes[0], depths, strict=True):
        of_depth = table[table["depth"] == depth]
        last = of_depth[of_depth["step"] == of_depth["step"].max()]
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
        ax.set_title(f"{depth} layers, step {last['step'].iloc[0]}", fontsize="medium")
        ax.set_xlabel("layer")
        ax.set_xticks(range(depth))
    axes[0, 0].set_ylabel(r"$\hat\lambda$ (95 % bars)")
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=90)


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
