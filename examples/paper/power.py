"""How large an effect must be to be seen: the tests of the claims on made-up heads.

    python -m examples.paper.power --seeds 3

It needs no result: the layout of the heads is assumed, or that of a run, and values are drawn.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from .effects import (
    POWER,
    Block,
    Effect,
    contrast,
    of_correlation,
    pooled,
    rank_correlation,
)

HEAD_SD = 0.35
"""Standard deviation of log λ̂ over the heads of a layer that have one role; as on the recipe's
models at nβ = 3000."""
RATIO_SD = HEAD_SD / 2
"""And of log λ̂ on code less that on prose."""
SEED_SD = 0.1
"""And of the effect over seeds."""
ERROR = 0.05
"""Standard error of log λ̂ of a head."""
NUM_TRIALS = 400
SIZES = tuple(round(0.05 * k, 2) for k in range(1, 41))

Trial = Callable[[np.random.Generator, float], Effect]


def smallest_seen(trial: Trial, sizes: Sequence[float] = SIZES) -> float:
    """The smallest size of which 80 % of trials have an interval above 0; NaN if none has."""
    for size in sizes:
        if power(trial, size) >= POWER:
            return size
    return float("nan")


def power(trial: Trial, size: float, num_trials: int = NUM_TRIALS) -> float:
    """The share of trials whose interval lies above 0."""
    stream = np.random.default_rng(0)
    seen = 0
    for _ in range(num_trials):
        low, _ = trial(stream, size).interval
        seen += low > 0
    return seen / num_trials


def of_contrasts(groups: Sequence[np.ndarray], head_sd: float = HEAD_SD) -> Trial:
    """Trials of a contrast between heads, in layers with these groups."""

    def trial(stream: np.random.Generator, size: float) -> Effect:
        effects = []
        for group in groups:
            of_seed = size + SEED_SD * stream.standard_normal()
            values = of_seed * group + head_sd * stream.standard_normal(len(group))
            values += ERROR * stream.standard_normal(len(group))
            errors = np.full(len(group), ERROR)
            effects.append(contrast(Block("", values, errors, group)))
        return pooled(effects)

    return trial


def of_correlations(counts: Sequence[int]) -> Trial:
    """Trials of rank correlations in layers of so many heads; the size is atanh ρ."""

    def trial(stream: np.random.Generator, size: float) -> Effect:
        rho = np.tanh(size)
        effects = []
        for count in counts:
            x = stream.standard_normal(count)
            y = rho * x + np.sqrt(1 - rho**2) * stream.standard_normal(count)
            effects.append(of_correlation(rank_correlation(x, y), count))
        return pooled(effects)

    return trial


def main() -> None:
    """Print the power of each kind of test before anything is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper.power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8, help="of a layer")
    parser.add_argument("--induction", type=int, default=3, help="induction heads of layer 1")
    args = parser.parse_args()
    group = np.arange(args.heads) < args.induction
    one = np.arange(args.heads) < 1
    tests = {
        f"{args.induction} heads against the others of their layer": of_contrasts(
            [group] * args.seeds
        ),
        "the same of the ratio code ÷ prose": of_contrasts([group] * args.seeds, RATIO_SD),
        "one head against the others of its layer": of_contrasts([one] * args.seeds),
        "a rank correlation in both layers (atanh ρ)": of_correlations(
            [args.heads] * (2 * args.seeds)
        ),
    }
    for name, trial in tests.items():
        print(f"{name}: {smallest_seen(trial):.2f} is seen in 80 % of trials")


if __name__ == "__main__":
    main()
