"""How well errors, intervals and verdicts keep their word, on chains whose laws are known exactly.

    python examples/benchmarks/coverage.py            # 6 minutes of one core; needs nothing
    python examples/benchmarks/coverage.py --parts laws sick --repetitions 100

Prints tables; ``--out`` names a folder that gets them as ``coverage.md``. Parts:

- ``laws``: SGLD on a quadratic of 400 directions, curvatures 0.9·i^−0.7 like those of a head (its
  draws vary as those of 105 equal directions; heads of small trained transformers gave 70 to 240),
  at γ = 200. At nβ = 30 the prior holds the chains, at nβ = 1000 half of λ̂ is the loss's.
  Gradients of a minibatch have the covariance of 2,048 predictions; minibatches also differ in
  curvature by 5 %, which all chains share. Chains start at Gaussians whose curvatures are
  estimated from 128 minibatches, as ``start="gaussian"`` does.
- ``sick``: what must be flagged: chains that start at w*, and chains at different levels; and
  starts that are too wide or too narrow, which must not bias λ̂. Beside the levels that are found
  stands what the most powerful test finds that knows the law of the draws: no rule that does not
  know which chains differ finds more. The other limit is that of an F test which has to learn from
  the same draws how much of their variance is slow, with the best unbiased reading
  (``known_laws.share_to_be_found``).
- ``effects``: the pairing of minibatches, contrasts, what the step adds, and the prior's ratio,
  beside their exact values.
- ``library``: ``rllc.sample`` itself on a quadratic module, a linear layer and a small transformer.

Columns: bias of λ̂ and its error from the repetitions; sd of λ̂ over its value; root mean square of
the standard errors over the actual sd; coverage of 95 % intervals, and their mean half length in
units of the sd; share of repetitions in which chains "disagree" (p < 0.001 and spread above 2 %),
"drift" (p < 0.001) or have heavy tails, together the false alarms; and share whose interval is
longer than ± 10 %. ``*`` marks settings that are too short before a chain runs: fewer than 4
relaxation times, or, from w*, more than 3 % of λ̂ missing.
"""

# %% What is asked for
from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_laws import (
    LOCALIZATION,
    SHORTEST,
    Problem,
    head_like,
    share_to_be_found,
    simulate,
)
from torch import Tensor, nn

import rllc
from rllc.statistics.agreement import disagreement, drift, heavy_tails
from rllc.statistics.biases import (
    control_mean,
    corrected,
    pairing_bias,
    prior_deviation,
    ratio,
    relaxation,
    relaxation_times,
)
from rllc.statistics.uncertainty import contrast, mean_of_draws
from rllc.theory import SGLDLaw, deep_linear_curvatures

DISAGREE, SPREAD, HEAVY, IMPRECISE = 1e-3, 0.02, 0.35, 0.1
SIZES = ((4, 40), (4, 90), (4, 200), (16, 50))
COLUMNS = ["chains", "draws", "bias %", "± %", "sd %", "se/sd", "cover %", "half/sd"]
COLUMNS += ["disagree %", "drift %", "heavy %", "imprecise %"]
LEVELS = ["chains", "draws", "found %", "F test that learns %", "best that knows %"]


# %% What a table says
def row(x: np.ndarray, truth: float, r: float | None, shared: bool) -> list[float]:
    """The columns of one setting, from draws ``[repetition, chain, draw]``."""
    mean = mean_of_draws(x, r, shared=shared)
    sd = mean.value.std(ddof=1)
    half = mean.half_width()
    covered = np.abs(mean.value - truth) <= half
    error = np.sqrt(np.square(mean.standard_error).mean())
    assert r is not None
    judged = disagreement(x, r)
    disagree = (judged.p_value < DISAGREE) & (judged.spread > SPREAD)
    moving = drift(x, r, shared=shared).p_value() < DISAGREE
    return [
        *x.shape[1:],
        100 * (mean.value.mean() / truth - 1),
        100 * sd / truth / np.sqrt(len(x)),
        100 * sd / truth,
        error / sd,
        100 * covered.mean(),
        half.mean() / sd,
        100 * disagree.mean(),
        100 * moving.mean(),
        100 * (heavy_tails(x) > HEAVY).mean(),
        100 * (mean.imprecision() > IMPRECISE).mean(),
    ]


def table(title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A Markdown table."""
    lines = [f"\n### {title}\n", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, values in rows:
        cells = [v if isinstance(v, str) else f"{v:.3g}" for v in values]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# %% Part 1: known laws
def laws(repetitions: int, stream: np.random.Generator) -> Iterator[str]:
    """Healthy chains, at every size."""
    batches = {
        "full batch": {},
        "minibatches": {"predictions": 2048.0},
        "control variate": {"predictions": 2048.0, "control_variate": True},
    }
    for n_beta in (30.0, 1000.0):
        rows = []
        for lr in (1e-3, 1e-4):
            for name, changes in batches.items():
                problem = Problem(head_like(), lr, n_beta, **changes)
                for label, values in sizes(problem, repetitions, stream):
                    rows.append((f"lr {lr:g}, {name}{label}", values))
        yield table(f"Known laws, nβ = {n_beta:g}", COLUMNS, rows)


def sizes(
    problem: Problem, repetitions: int, stream: np.random.Generator
) -> Iterator[tuple[str, list[float]]]:
    """One row for each size."""
    for x in drawn_in_all_sizes(problem, repetitions, stream):
        mark = " *" if problem.too_short(x.shape[-1]) else ""
        yield mark, row(x, problem.truth, problem.relaxation, not problem.full_batch)


def drawn_in_all_sizes(
    problem: Problem, repetitions: int, stream: np.random.Generator
) -> Iterator[np.ndarray]:
    """Draws ``[repetition, chain, draw]``; shorter chains are the beginnings of longer ones."""
    longest = {4: 200, 16: 50}
    simulated = {c: simulate(problem, repetitions, c, n, stream) for c, n in longest.items()}
    for chains, draws in SIZES:
        yield simulated[chains][..., :draws]


# %% Part 2: sick chains
def sick(repetitions: int, stream: np.random.Generator) -> Iterator[str]:
    """What must be found, and starts that must do no harm."""
    base = Problem(head_like(), predictions=2048.0)
    problems = {
        "start at w*": replace(base, start="center"),
        "start from curvatures halved": replace(base, start_factor=0.5),
        "start from curvatures doubled": replace(base, start_factor=2.0),
    }
    rows = []
    for name, problem in problems.items():
        for label, values in sizes(problem, repetitions, stream):
            rows.append((name + label, values))
    yield table("Sick chains, nβ = 30, minibatches", COLUMNS, rows)
    yield table("Chains at different levels, nβ = 30", LEVELS, list(levels(repetitions, stream)))


def levels(repetitions: int, stream: np.random.Generator) -> Iterator[tuple[str, list[float]]]:
    """How many are found, beside what the best tests find."""
    batches = {"full batch": {}, "minibatches": {"predictions": 2048.0}}
    for lr in (1e-3, 1e-4):
        for batch, changes in batches.items():
            problem = Problem(head_like(), lr, **changes)
            assert problem.relaxation is not None
            for x in drawn_in_all_sizes(problem, repetitions, stream):
                chains, draws = x.shape[1:]
                halves = np.tile(np.repeat([0.85, 1.15], chains // 2), (repetitions, 1))
                random = 1 + 0.3 * stream.standard_normal((repetitions, chains))
                mark = " *" if problem.too_short(draws) else ""
                for name, level in (("half 30 % above", halves), ("of sd 30 %", random)):
                    judged = disagreement(level[..., None] * x, problem.relaxation)
                    found = (judged.p_value < DISAGREE) & (judged.spread > SPREAD)
                    best = [
                        share_to_be_found(problem, level, draws, stream, learnt=learnt)
                        for learnt in (True, False)
                    ]
                    shares = [100 * share for share in (found.mean(), *best)]
                    yield f"lr {lr:g}, {batch}, {name}{mark}", [chains, draws, *shares]


# %% Part 3: what shifts λ̂
def effects(repetitions: int, stream: np.random.Generator) -> Iterator[str]:
    """Formulas beside what chains do."""
    yield table(
        "Pairing of minibatches within an epoch, nβ = 300, 20 directions",
        ("measured", "± ", "formula"),
        list(pairings(repetitions, stream)),
    )
    yield table(
        "Differences of two refinements that share half their noise, 4 × 90",
        ("se/sd", "cover %", "two errors added, over sd"),
        list(contrasts(repetitions, stream)),
    )
    yield table(
        "What the step adds, and λ̂ over its control, 4 × 200 draws and 256 control draws",
        ("lr", "λ̂/exact at ε → 0", "corrected/exact", "ratio", "exact ratio", "cover %"),
        list(steps_and_ratios(repetitions, stream)),
    )


def pairings(
    repetitions: int, stream: np.random.Generator
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """λ̂ on minibatches of an epoch minus λ̂ on independent ones, by chains of linear noise."""
    lr, n_beta, dim = 1e-3, 300.0, 20
    curvatures = head_like(dim)
    for count in (3, 5, 20):
        gradients = 0.3 * stream.standard_normal((count, dim))
        gradients -= gradients.mean(0)
        variance = gradients.var(0)
        settings = {"lr": lr, "localization": LOCALIZATION, "n_beta": n_beta}
        law = SGLDLaw(curvatures, gradient_variance=variance, **settings)
        decay = law.decay
        position = np.sqrt(law.variance) * stream.standard_normal((4 * repetitions, dim))
        gained = np.zeros(4 * repetitions)
        epochs = 600 // count
        for epoch in range(epochs + 3):
            order = stream.permuted(np.tile(np.arange(count), (len(position), 1)), axis=1)
            for turn in range(count):
                slope = gradients[order[:, turn]]
                if epoch >= 3:
                    gained += n_beta * (slope * position).sum(1)
                noise = np.sqrt(lr) * stream.standard_normal(position.shape)
                position = decay * position - lr / 2 * n_beta * slope + noise
        gained /= epochs * count
        formula = pairing_bias(curvatures, variance, count, **settings)
        error = gained.std(ddof=1) / np.sqrt(len(gained))
        yield f"{count} minibatches an epoch", (gained.mean(), error, formula)


def contrasts(
    repetitions: int, stream: np.random.Generator
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """The error of a difference, paired, beside that of two errors added."""
    for lr in (1e-3, 1e-4):
        problem = Problem(head_like(200), lr, predictions=2048.0)
        common, first, second = (simulate(problem, repetitions, 4, 90, stream) for _ in range(3))
        pair = np.stack([common + first, common + 1.3 * second])
        r = problem.relaxation
        each = [contrast(pair[:, i], [1, -1], r) for i in range(repetitions)]
        value = np.array([mean.value for mean in each])
        error = np.array([mean.standard_error for mean in each])
        half = np.array([mean.half_width() for mean in each])
        truth = -0.3 * problem.truth
        apart = np.square(mean_of_draws(pair, r).standard_error).sum(0)
        yield (
            f"lr {lr:g}",
            (
                np.sqrt(np.square(error).mean()) / value.std(ddof=1),
                100 * (np.abs(value - truth) <= half).mean(),
                np.sqrt(apart.mean()) / value.std(ddof=1),
            ),
        )


def steps_and_ratios(
    repetitions: int, stream: np.random.Generator
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """λ̂ minus what five probed steps add, and λ̂ over draws from the prior."""
    for n_beta, lr in ((30.0, 1e-3), (1000.0, 1e-3), (1000.0, 1e-4)):
        problem = Problem(head_like(), lr, n_beta)
        h = problem.curvatures
        law = SGLDLaw(h, lr=lr, localization=LOCALIZATION, n_beta=n_beta)
        exact = (n_beta * h / 2 / (n_beta * h + LOCALIZATION)).sum()
        mean = mean_of_draws(
            simulate(problem, repetitions, 4, 200, stream), problem.relaxation, shared=False
        )
        # Steps δ of stationary chains have variance 2(1 − ρ)σ², and a probe is ⅛ nβ Σ hδ².
        scale = np.sqrt(2 * (1 - law.decay) * law.variance)
        probes = scale * stream.standard_normal((repetitions, 4, 5, len(h)))
        better = corrected(mean, n_beta / 8 * (np.square(probes) @ h))
        prior = prior_deviation(lr, LOCALIZATION)
        positions = prior * stream.standard_normal((repetitions, 4, 64, len(h)), dtype=np.float32)
        share = ratio(mean, control_mean(n_beta / 2 * (np.square(positions) @ h), shared=False))
        true_share = law.value / (n_beta / 2 * h.sum() * prior**2)
        covered = np.abs(share.value - true_share) <= share.half_width()
        yield (
            f"nβ {n_beta:g}",
            (
                lr,
                mean.value.mean() / exact,
                better.value.mean() / exact,
                share.value.mean(),
                true_share,
                100 * covered.mean(),
            ),
        )


# %% Part 4: the library itself
class Tilted(nn.Module):
    """ℓ(v) = ½ Σ hᵢvᵢ² + x·v for each example x: a quadratic with minibatch noise."""

    curvatures: Tensor

    def __init__(self, curvatures: Tensor) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros_like(curvatures))
        self.register_buffer("curvatures", curvatures)

    def forward(self, x: Tensor) -> Tensor:
        """Losses ``[batch]``."""
        return 0.5 * (self.curvatures * self.v**2).sum() + x @ self.v


def loss_of_tilted(module: nn.Module, x: Tensor) -> Tensor:
    """Losses ``[batch]`` of a :class:`Tilted`."""
    return module(x)


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Losses ``[batch]`` of a regression: half the squared error, summed over outputs."""
    x, y = batch
    return 0.5 * (module(x) - y).square().sum(1)


def library(repetitions: int, stream: np.random.Generator) -> Iterator[str]:
    """λ̂'s draws by rllc.sample."""
    torch.manual_seed(0)
    rows = [*quadratic_module(repetitions), *linear_layer(repetitions)]
    yield table("rllc.sample on a quadratic module and on a linear layer", COLUMNS, rows)
    yield table(
        "rllc.sample on a small transformer; truth: the mean of all runs from draw 20 on",
        COLUMNS,
        list(transformer(repetitions // 2)),
    )


def drawn(
    repetitions: int, groups: int, draws: int, lr: float, sampling: rllc.Sampling, **arguments: Any
) -> np.ndarray:
    """Draws ``[refinement, repetition, chain, draw]``: several groups of 4 chains to a seed.

    Groups of one seed see the same minibatches; what these add to all chains alike is small.
    """
    each = []
    for seed in range(math.ceil(repetitions / groups)):
        settings = replace(
            sampling,
            num_chains=4 * groups,
            num_draws=draws,
            seed=seed,
            start="gaussian",
            num_probes=0,
        )
        result = rllc.sample(
            **arguments,
            sampler=rllc.sgld(lr=lr, localization=LOCALIZATION),
            sampling=settings,
            compute=rllc.Compute(progress=False),
        )
        refinements = len(result.llc)
        each.append(result.llc.reshape(refinements, groups, 4, draws))
    return np.concatenate(each, axis=1)


def quadratic_module(repetitions: int) -> Iterator[tuple[str, list[float]]]:
    """Head-like curvatures, and rows that tilt them with the Fisher information's noise."""
    h = torch.tensor(head_like(100), dtype=torch.float32)
    rows = torch.randn(64 * 256, 100) * h.sqrt()
    rows -= rows.mean(0)
    noise = rows.var(0).double().numpy() / 256
    law = SGLDLaw(
        h.double().numpy(),
        lr=1e-3,
        localization=LOCALIZATION,
        n_beta=30.0,
        gradient_variance=noise,
    )
    for name, control_variate in (("", False), (", control variate", True)):
        sampling = rllc.Sampling(batch_size=256, control_variate=control_variate)
        module = Tilted(h)
        x = drawn(repetitions, 8, 40, 1e-3, sampling, model=module, data=rows, loss=loss_of_tilted)
        yield f"quadratic module{name}", row(x[0], law.value, relaxation(1e-3, LOCALIZATION), True)


def linear_layer(repetitions: int) -> Iterator[tuple[str, list[float]]]:
    """A regression at its least squares, whose noise of variance 1 makes Fisher and Hessian agree.

    128 minibatches make an epoch; the control variate takes off what their pairing adds.
    """
    n_beta, batch = 100.0, 64
    inputs = torch.randn(128 * batch, 12) * torch.linspace(0.3, 2, 12)
    targets = torch.randn(len(inputs), 8)
    layer = nn.Linear(12, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    covariance = (inputs.T @ inputs / len(inputs)).double()
    curvatures = deep_linear_curvatures([layer.weight.detach().double()], 0, covariance)
    sampling = rllc.Sampling(batch_size=batch, n_beta=n_beta, control_variate=True)
    for lr in (1e-3, 1e-4):
        law = SGLDLaw(
            curvatures,
            lr=lr,
            localization=LOCALIZATION,
            n_beta=n_beta,
            gradient_variance=curvatures / batch,
        )
        data = (inputs, targets)
        x = drawn(repetitions, 8, 40, lr, sampling, model=layer, data=data, loss=squared_error)
        mark = " *" if relaxation_times(lr, LOCALIZATION, 40) < SHORTEST else ""
        values = row(x[0], law.value, relaxation(lr, LOCALIZATION), True)
        yield f"linear layer, lr {lr:g}{mark}", values


def small_transformer() -> tuple[nn.Module, rllc.Tokens]:
    """Two layers of two heads, trained for some seconds on a synthetic language, and its rows."""
    language = rllc.data.synthetic.Language(context_length=32)
    rows = language.sample(4000, seed=1).tokens
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=32, n_heads=2, d_head=16, n_ctx=32, d_vocab=96
    )
    with tempfile.TemporaryDirectory() as folder:
        training = rllc.Training(num_steps=600, batch_size=32, lr=1e-2)
        model = rllc.train(config, rows, folder, training=training, progress=False)
    return model, rows


def transformer(repetitions: int) -> Iterator[tuple[str, list[float]]]:
    """Heads of a small trained transformer, and a difference of two of them."""
    model, rows = small_transformer()
    heads = rllc.heads(model)
    r = relaxation(1e-3, LOCALIZATION)
    sampling = rllc.Sampling(batch_size=32)
    x = drawn(repetitions, 4, 90, 1e-3, sampling, model=model, data=rows, weights=heads)
    truth = x[..., 20:].mean(axis=(1, 2, 3))
    for draws in (40, 90):
        for head, all_of_head, value in zip(heads, x[..., :draws], truth, strict=True):
            yield f"head {head.name}", row(all_of_head, value, r, True)
        difference = x[0, ..., :draws] - x[2, ..., :draws]
        name = f"{heads[0].name} minus {heads[2].name}"
        yield name, row(difference, truth[0] - truth[2], r, True)


# %% All of it
PARTS = {"laws": laws, "sick": sick, "effects": effects, "library": library}


def main(argv: list[str] | None = None) -> list[str]:
    """Print the tables, and return them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=600, help="of known laws")
    parser.add_argument("--groups", type=int, default=64, help="of 4 chains of the library")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="folder for coverage.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tables = []
    for name in args.parts:
        began = time.process_time()
        count = args.groups if name == "library" else args.repetitions
        for text in PARTS[name](count, np.random.default_rng(args.seed)):
            print(text, flush=True)
            tables.append(text)
        print(f"\n{name}: {time.process_time() - began:.0f} s of one core")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "coverage.md").write_text("\n".join(tables) + "\n")
    return tables


if __name__ == "__main__":
    main()
