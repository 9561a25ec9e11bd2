"""What lowers the error of an estimate for its price, and what bfloat16 changes.

    python examples/benchmarks/noise.py               # 2 CPU cores, about 5 minutes

Trains the quickstart's model, and prints for its heads: the standard error with and without the
control variate, and what it costs; how far short estimates are from long ones when chains start at
w* or at the local Gaussian; and λ̂ in bfloat16 beside float32, same seed.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rllc

SEEDS = 2


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rllc-out/noise"), help="folder of the training run"
    )
    parser.add_argument("--steps", type=int, default=2400, help="of training")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5, help="alternations for the timing")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--bytes", type=int, default=3_000_000, help="of text")
    parser.add_argument(
        "--skip-bfloat16",
        action="store_true",
        help="where it is only emulated, it takes most of the time",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    subject = trained(args)
    heads = [weights.name for weights in rllc.heads(subject.model)]
    # A third of the heads, where many estimates are made.
    few_heads = heads[::3]
    control_variate(subject, heads, args.rounds)
    start_of_chains(subject, few_heads)
    if not args.skip_bfloat16:
        bfloat16(subject, few_heads)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")


@dataclass(frozen=True)
class Subject:
    """What is sampled, and how many draws."""

    model: Any
    tokens: rllc.Tokens
    num_draws: int

    def sample(
        self, weights: Sequence[str], sampler: rllc.samplers.Sampler | None = None, **changes: Any
    ) -> rllc.Draws:
        """Draws with these settings changed."""
        settings = {
            "num_draws": self.num_draws,
            "num_burnin_steps": 20,
            "batch_size": 8,
            "control_variate": False,
        }
        return rllc.sample(
            self.model,
            self.tokens,
            weights,
            sampler=sampler,
            sampling=rllc.Sampling(**(settings | changes)),
            compute=rllc.Compute(progress=False),
        )

    def estimate(self, weights: Sequence[str], **changes: Any) -> rllc.Estimate:
        """The estimate of such draws."""
        return rllc.Estimate.of(self.sample(weights, **changes))

    def seconds(self, weights: Sequence[str], **changes: Any) -> float:
        """The time that 20 draws take."""
        begin = time.perf_counter()
        self.sample(weights, num_draws=20, num_burnin_steps=0, num_probes=0, **changes)
        return time.perf_counter() - begin


def trained(args: argparse.Namespace) -> Subject:
    """The quickstart's model, trained on what Python brings."""
    texts = rllc.data.python_corpus(max_bytes=args.bytes)
    documents = [text for subset in texts.values() for text in subset]
    tokenizer = rllc.data.train_tokenizer(documents, vocab_size=1000)
    subsets = [
        rllc.data.tokenize(documents, tokenizer, args.context, name=name)
        for name, documents in texts.items()
    ]
    tokens = rllc.data.mix("all", *subsets)
    config = rllc.models.AttentionOnlyConfig(
        d_model=64, n_heads=4, d_head=16, n_ctx=args.context, d_vocab=1000
    )
    model = rllc.train(
        config,
        tokens,
        args.out,
        training=rllc.Training(num_steps=args.steps, batch_size=16, lr=5e-3),
        progress=False,
    )
    return Subject(model, tokens, args.draws)


# %% The control variate: variance against cost, on the same draws
def control_variate(subject: Subject, heads: Sequence[str], rounds: int) -> None:
    with_it = []
    without = []
    for seed in range(SEEDS):
        draws = subject.sample(heads, control_variate=True, start="gaussian", seed=seed)
        with_it.append(draws.llc.mean(1))
        rise = draws.loss - draws.baseline
        without.append(draws.settings["n_beta"] * rise.mean(1))
    variance_ratios = np.stack(
        [
            variance_of_mean(series) / variance_of_mean(plain)
            for series, plain in zip(with_it, without, strict=True)
        ]
    )
    print(
        f"\nControl variate, {len(heads)} heads × 4 chains × {subject.num_draws} draws of "
        f"8 × {subject.tokens.num_positions} tokens, {SEEDS} seeds"
    )
    print(f"{'head':>6} {'llc':>8} {'with it':>8} {'variance of the mean':>21} {'of a draw':>10}")
    for i, name in enumerate(heads):
        plain = np.concatenate([series[i] for series in without])
        controlled = np.concatenate([series[i] for series in with_it])
        ratio = geometric_mean(variance_ratios[:, i])
        of_a_draw = controlled.var() / plain.var()
        print(
            f"{name:>6} {plain.mean():>8.3f} {controlled.mean():>8.3f} {ratio:>20.2f}× "
            f"{of_a_draw:>9.2f}×"
        )
    ratio = geometric_mean(variance_ratios)
    for weights in (heads, heads[:2]):
        costs = []
        for _ in range(rounds):
            seconds_without = subject.seconds(weights)
            costs.append(subject.seconds(weights, control_variate=True) / seconds_without)
        cost = statistics.median(costs)
        print(
            f"{len(weights)} heads: variance {ratio:.2f}×, time {cost:.2f}×; "
            f"{1 / (ratio * cost):.2f} times the precision a second"
        )


def variance_of_mean(series: np.ndarray) -> np.ndarray:
    """Of each series ``[refinement, draw]``, from means of 20 blocks."""
    blocks = np.array_split(series, 20, axis=-1)
    means = np.stack([block.mean(-1) for block in blocks])
    variance: np.ndarray = means.var(0, ddof=1)
    return variance / 20


def geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


# %% Where chains start: the bias of a short estimate
def start_of_chains(subject: Subject, heads: Sequence[str]) -> None:
    num_short = subject.num_draws // 10
    print(
        f"\nBias of {num_short} draws without burn-in, in percent of the long-run value "
        "(lr 1e-4 relaxes 10 times slower)"
    )
    for lr, times_longer in ((1e-3, 2), (1e-4, 5)):
        sampler = rllc.sgld(lr=lr)
        num_long = times_longer * subject.num_draws
        long = subject.estimate(
            heads, sampler=sampler, num_draws=num_long, num_burnin_steps=num_long // 4
        )
        for start in ("center", "gaussian"):
            short = [
                subject.estimate(
                    heads,
                    sampler=sampler,
                    num_draws=num_short,
                    num_burnin_steps=0,
                    start=start,
                    seed=seed,
                ).value
                for seed in range(1, 4)
            ]
            bias = 100 * (np.mean(short, 0) / long.value - 1)
            of_heads = ", ".join(f"{b:+.1f}" for b in bias)
            print(f"  lr {lr:g}, start={start!r}: {bias.mean():+.1f} %  ({of_heads})")


# %% bfloat16 products
def bfloat16(subject: Subject, heads: Sequence[str]) -> None:
    full = subject.estimate(heads)
    low = subject.estimate(heads, autocast="bfloat16")
    print(
        "\nbfloat16 beside float32, same seed: difference in percent of λ̂, and in standard errors"
    )
    for i, name in enumerate(heads):
        difference = low.value[i] - full.value[i]
        percent = 100 * difference / full.value[i]
        print(f"  {name}: {percent:+.2f} %, {difference / full.standard_error[i]:+.2f} se")


if __name__ == "__main__":
    main()
