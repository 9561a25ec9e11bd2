"""A vision transformer learns digits: refined LLCs of its heads over training, and by digit.

    python examples/vision.py            # some minutes on one core; no download

The images are those that scikit-learn ships: 1,797 of 8 × 8 pixels, here with noise, so that the
model does not learn them by heart. A patch is 2 × 2 pixels. An LLC is of a minimum, and weights
that train at a constant rate are in none: at each checkpoint a copy is trained on while its rate
falls to 0, and estimated. Each head is described by where it looks: how far from its own patch, at
how many patches, and at how many all patches look together.
Writes to the output folder: `trajectory.npz`, `heads.csv`, `digits.csv` and a figure. Interrupted,
the same command trains again, but estimates only what it has not.
"""

# %% What is asked for
import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

import rllc


@dataclass(frozen=True)
class Scale:
    """Model, training and sampling."""

    config: ViTConfig
    num_steps: int
    at_steps: tuple[int, ...]
    annealing_steps: int
    """Of the copy that is estimated, while its rate falls to 0."""
    num_images: int
    images_of_a_digit: int
    """On which its λ̂ is read."""
    sampling: rllc.Sampling


def config(layers: int, heads: int, width: int) -> ViTConfig:
    return ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=width,
        intermediate_size=2 * width,
        initializer_range=0.15,
    )


SMALL = Scale(
    config(layers=2, heads=6, width=36),
    num_steps=1500,
    at_steps=(150, 300, 600, 1000, 1500),
    annealing_steps=300,
    num_images=1437,
    images_of_a_digit=40,
    sampling=rllc.Sampling(
        num_chains=2,
        num_draws=120,
        num_burnin_steps=20,
        batch_size=64,
        n_beta=500.0,
        num_probes=2,
        start="gaussian",
        control_variate=True,
    ),
)
TINY = Scale(
    config(layers=2, heads=2, width=8),
    num_steps=4,
    at_steps=(0, 4),
    annealing_steps=2,
    num_images=60,
    images_of_a_digit=2,
    sampling=rllc.Sampling(
        num_chains=2,
        num_draws=4,
        batch_size=4,
        n_beta=100.0,
        num_probes=0,
        start="center",
        control_variate=False,
    ),
)

SAMPLER = rllc.sgld(lr=2.5e-4, localization=150.0)
"""What a slope at w* takes off λ̂ grows with the square of n_beta, and what curvature gives only
with n_beta: at an n_beta of 2000 and a localization of 1500 most λ̂ are negative."""

LIMITS = rllc.Limits(max_imprecision=0.4, max_step=0.2)
"""For curves over training ± 40 % at 95 % will do, and what the step size adds may be half of it:
the first layer is much sharper than the second, and they share a step size."""

COPIES, NOISE = 8, 1.0
"""Of each image, and the standard deviation of the noise on pixels, which go from −1 to 1. With
less noise a few images hold the whole loss, and minibatches differ too much."""

LR = 2e-3
"""Of training: constant, but for the copies that are estimated."""

NEAR, ONE_PLACE = 0.75, 0.5
"""Shares of what even attention has, of distance and of patches, that name a kind of head."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/vision"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="seconds, to try that all works")
    parser.add_argument("--quiet", action="store_true", help="print nothing while it trains")
    return parser.parse_args(argv)


# %% The images: some to train on and to measure on, the others to test on
@dataclass(frozen=True)
class Digits:
    """Pixels ``[row, 1, y, x]`` from −1 to 1 and noise on them, and the digits ``[row]``."""

    pixels: Tensor
    labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor


def read(num_images: int, seed: int) -> Digits:
    images = load_digits()
    stream = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.target), generator=stream)
    pixels = torch.from_numpy(images.images).float()[order, None] / 8 - 1
    labels = torch.from_numpy(images.target).long()[order]
    # No copy of a test image is among them.
    copies = pixels[:num_images].repeat(COPIES, 1, 1, 1)
    return Digits(
        copies + NOISE * torch.randn(copies.shape, generator=stream),
        labels[:num_images].repeat(COPIES),
        pixels[1437:] + NOISE * torch.randn(pixels[1437:].shape, generator=stream),
        labels[1437:],
    )


# %% Your own loop, with one more line
def train(
    digits: Digits, scale: Scale, tracker: rllc.Tracker, args: argparse.Namespace
) -> tuple[ViTForImageClassification, pd.DataFrame]:
    """The last annealed copy, and how well each of them does."""
    torch.manual_seed(args.seed)
    model = ViTForImageClassification(scale.config)
    stream = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    lines = []
    last = model
    for step in range(scale.num_steps + 1):
        if step in scale.at_steps:
            last = annealed(model, optimizer, digits, scale.annealing_steps, args.seed)
            lines.append({"step": step} | how_well(last, digits))
            if not args.quiet:
                print(" ".join(f"{name} {value:.4g}" for name, value in lines[-1].items()))
            tracker(step, last)
        advance(model, optimizer, digits, LR * min(1.0, (step + 1) / 50), stream)
    return last, pd.DataFrame(lines)


def advance(
    model: ViTForImageClassification,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    lr: float,
    stream: torch.Generator,
) -> None:
    """One step of training."""
    optimizer.param_groups[0]["lr"] = lr
    rows = torch.randint(len(digits.labels), (64,), generator=stream)
    loss = F.cross_entropy(model(digits.pixels[rows]).logits, digits.labels[rows])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def annealed(
    model: ViTForImageClassification,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    num_steps: int,
    seed: int,
) -> ViTForImageClassification:
    """A copy that has trained on while its rate fell to 0; the model itself is as it was."""
    model = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(state)
    stream = torch.Generator().manual_seed(seed + 1)
    for step in range(num_steps):
        advance(model, optimizer, digits, LR * (1 - step / num_steps), stream)
    return model.eval()


@torch.no_grad()
def how_well(model: ViTForImageClassification, digits: Digits) -> dict[str, float]:
    loss = F.cross_entropy(model(digits.pixels).logits, digits.labels)
    guessed = model(digits.test_pixels).logits.argmax(-1)
    right = (guessed == digits.test_labels).float().mean()
    return {"loss": float(loss), "test accuracy": float(right)}


# %% Where heads look
@torch.no_grad()
def where_heads_look(model: ViTForImageClassification, pixels: Tensor) -> pd.DataFrame:
    """Of each head: how far it looks, at how many patches, and what share goes to the class token.

    ``distance`` is between a patch and where it looks, in patches. ``patches`` is at how many one
    patch looks, as exp(entropy), and ``places`` at how many all patches of an image look together.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    by_layer = model(pixels, output_attentions=True).attentions
    model.set_attn_implementation(before)
    lines = []
    for layer, attention in enumerate(by_layer):
        # [batch, head, query, key]; the class token is the first of both.
        to_class = attention[:, :, 1:, 0].mean((0, 2))
        among = attention[:, :, 1:, 1:]
        among = among / among.sum(-1, keepdim=True)
        distance = (among * distances(among.shape[-1])).sum(-1).mean((0, 2))
        patches = entropy(among).mean((0, 2)).exp()
        places = entropy(among.mean(2)).mean(0).exp()
        for head in range(attention.shape[1]):
            lines.append(
                {
                    "head": f"{layer}:{head}",
                    "distance": float(distance[head]),
                    "patches": float(patches[head]),
                    "places": float(places[head]),
                    "to class token": float(to_class[head]),
                }
            )
    return pd.DataFrame(lines).set_index("head")


def distances(num_patches: int) -> Tensor:
    """Between patches of a square image, ``[patch, patch]``; row after row, in patches."""
    side = round(num_patches**0.5)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    return torch.cdist(places, places)


def entropy(shares: Tensor) -> Tensor:
    """−Σ p log p over the last axis, in nats."""
    return torch.special.entr(shares).sum(-1)


def kind_of(looks: pd.Series, num_patches: int) -> str:
    """What a head is by where it looks; the bounds are ours."""
    if looks["distance"] < NEAR * float(distances(num_patches).mean()):
        return "neighbours"
    if looks["places"] < ONE_PLACE * num_patches:
        return "one place"
    return "spread"


@torch.no_grad()
def loss_without(model: ViTForImageClassification, head: str, digits: Digits) -> float:
    """The loss when what a head writes is 0."""
    layer = int(head.split(":")[0])
    writes = rllc.anatomy(model).attentions[layer].o.weight
    weight = model.get_parameter(writes)
    before = weight.clone()
    weight[rllc.head(head).masks(model)[writes]] = 0
    loss = how_well(model, digits)["loss"]
    weight.copy_(before)
    return loss


# %% Whether λ̂ goes with it
def rank_correlation(
    values: np.ndarray, others: np.ndarray, layers: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Spearman's ρ of ranks within layers, and the share of 10,000 permutations that reach it.

    Layers differ in λ̂ and in where heads look for reasons of their own, so heads are compared with
    others of their layer only, and permuted among them.
    """
    first, second = (ranks_within(each, layers) for each in (values, others))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    rho = float(first @ second / scale)
    stream = np.random.default_rng(seed)
    permuted = np.tile(second, (10_000, 1))
    for layer in np.unique(layers):
        rows = layers == layer
        permuted[:, rows] = stream.permuted(permuted[:, rows], axis=1)
    reached = np.abs(permuted @ first) >= abs(first @ second) - 1e-9
    return rho, float((reached.sum() + 1) / 10_001)


def ranks_within(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Ranks among the heads of the same layer, less their mean."""
    ranks = np.empty(len(values))
    for layer in np.unique(layers):
        rows = layers == layer
        ranks[rows] = rankdata(values[rows])
        ranks[rows] -= ranks[rows].mean()
    return ranks


# %% By digit: what images of each hold of λ̂
def by_digit(
    model: ViTForImageClassification, digits: Digits, scale: Scale, seed: int
) -> pd.DataFrame:
    """λ̂ on the images of each digit, along chains on all of them: one line a head and digit.

    Chains on one digit alone leave w* at once, since a loss of ``this digit, always`` is lower.
    The standard error is that of the means of twelve stretches of the chains.
    """
    rows = images_of_each(digits, scale.images_of_a_digit, seed)
    labels = digits.labels[rows]
    draws = rllc.sample(
        model,
        (digits.pixels, digits.labels),
        rllc.heads(model),
        loss=rllc.losses.classification,
        sampler=SAMPLER,
        sampling=scale.sampling,
        observe={"rows": rllc.losses_on((digits.pixels[rows], labels), by="row")},
        compute=rllc.Compute(progress=False),
    )
    # [refinement, chain, draw, row]: how far each loss is above that at w*.
    rise = scale.sampling.n_beta * np.asarray(draws.observed["rows"], dtype=float)
    lines = []
    for digit in range(10):
        of_digit = rise[..., labels.numpy() == digit].mean(-1)
        for head, values in zip(draws.names.selections, of_digit, strict=True):
            number = min(12, values.size)
            stretches = [part.mean() for part in np.array_split(values.ravel(), number)]
            error = np.std(stretches, ddof=1) / number**0.5
            lines.append({"head": head, "digit": digit, "llc": values.mean(), "error": error})
    return pd.DataFrame(lines)


def images_of_each(digits: Digits, number: int, seed: int) -> Tensor:
    """Rows of images, as many of each digit."""
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for digit in range(10):
        of_digit = order[digits.labels[order] == digit]
        chosen.append(of_digit[:number])
    return torch.cat(chosen)


# %% The tables and the figure
def describe(
    model: ViTForImageClassification, digits: Digits, final: rllc.Estimate
) -> pd.DataFrame:
    """One line a head: λ̂ at the end, where it looks, its kind, and what it is worth."""
    table = where_heads_look(model, digits.test_pixels)
    num_patches = (model.config.image_size // model.config.patch_size) ** 2
    table["kind"] = [kind_of(looks, num_patches) for _, looks in table.iterrows()]
    loss = how_well(model, digits)["loss"]
    table["delta loss"] = [loss_without(model, head, digits) - loss for head in table.index]
    table["llc"] = [final[head].value for head in table.index]
    table["standard error"] = [final[head].standard_error for head in table.index]
    rows = [final.names.index(head) for head in table.index]
    table["of the prior"] = final.diagnostics["control_ratio"][rows]
    table["status"] = [final[head].status for head in table.index]
    return table


MEASURES = {
    "distance": "distance it looks, patches",
    "patches": "patches that one patch looks at",
    "places": "patches that all look at together",
    "delta loss": "loss without it, less loss",
}


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    layers = np.array([head.split(":")[0] for head in table.index])
    lines = {}
    for measure in MEASURES:
        rho, p = rank_correlation(table["llc"].to_numpy(), table[measure].to_numpy(), layers)
        lines[measure] = {"rho within layers": rho, "p": p}
    return pd.DataFrame(lines).T


def draw(
    trajectory: rllc.Trajectory,
    table: pd.DataFrame,
    related: pd.DataFrame,
    digits: pd.DataFrame,
    path: Path,
) -> None:
    from matplotlib import pyplot as plt

    layers = sorted({head.split(":")[0] for head in table.index})
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    curves = above.subplots(1, len(layers), squeeze=False)[0]
    rllc.plot_trajectory(trajectory, "all", curves, groups=table["kind"].to_dict())
    *scatters, last = below.subplots(1, 4)
    markers = dict(zip(layers, "osv^", strict=False))
    for ax, measure in zip(scatters, ("distance", "places", "delta loss"), strict=True):
        for layer in layers:
            of_layer = table[table.index.str.startswith(f"{layer}:")]
            ax.errorbar(
                of_layer[measure],
                of_layer["llc"],
                1.96 * of_layer["standard error"],
                fmt=markers[layer],
                ms=5,
                lw=1,
                label=f"layer {layer}",
            )
        rho, p = related.loc[measure]
        ax.set_title(f"ρ within layers {rho:.2f}, p = {p:.2g}", fontsize="medium")
        ax.set_xlabel(MEASURES[measure])
        ax.set_ylabel(r"$\hat\lambda$")
    scatters[0].legend(frameon=False, fontsize="small")
    for number, layer in enumerate(layers):
        of_layer = digits[digits["head"].str.startswith(f"{layer}:")]
        # The share of a digit in what its head has on average.
        mean = of_layer.groupby("head")["llc"].transform("mean")
        shares = (of_layer["llc"] / mean).groupby(of_layer["digit"])
        last.errorbar(
            np.arange(10) + 0.2 * (number - 0.5),
            shares.mean(),
            shares.std(),
            fmt=markers[layer],
            ms=5,
            lw=1,
        )
    last.axhline(0, color="0.7", lw=1)
    last.set_xticks(range(10))
    last.set_xlabel("digit")
    last.set_ylabel(r"$\hat\lambda$ on its images / mean of the head")
    last.set_title("bars: sd over heads", fontsize="medium")
    figure.savefig(path, dpi=90)


# %% All of it
def main(argv: list[str] | None = None) -> rllc.Trajectory:
    matplotlib.use("Agg")
    args = arguments(argv)
    scale = TINY if args.tiny else SMALL
    begin = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    digits = read(scale.num_images, args.seed)
    tracker = rllc.Tracker(
        rllc.data.as_data((digits.pixels, digits.labels), name="all"),
        rllc.heads,
        loss=rllc.losses.classification,
        sampler=SAMPLER,
        sampling=scale.sampling,
        at_steps=scale.at_steps,
        path=args.out / "tracker.npz",
    )
    model, training = train(digits, scale, tracker, args)
    judged = {step: one.judge(LIMITS) for step, one in tracker.estimates.items()}
    trajectory = rllc.Trajectory.of(judged)
    trajectory.save(args.out / "trajectory.npz")
    flagged = sum(bool(faults) for row in trajectory.faults for faults in row)
    print(training.to_string(index=False, float_format="{:.3f}".format))
    print(f"{flagged} of {trajectory.value.size} estimates over training are flagged")

    final = judged[scale.num_steps]
    table = describe(model, digits, final)
    table.to_csv(args.out / "heads.csv")
    related = correlations(table)
    print(f"\n{table.drop(columns='status').round(3).to_string()}\n\n{related.round(3)}")
    classes = by_digit(model, digits, scale, args.seed)
    classes.to_csv(args.out / "digits.csv", index=False)
    print(f"\n{classes.pivot(index='digit', columns='head', values='llc').round(1).to_string()}")
    draw(trajectory, table, related, classes, args.out / "vision.png")
    print(f"\n{time.perf_counter() - begin:.0f} s; all files are in {args.out}")
    return trajectory


if __name__ == "__main__":
    main()
