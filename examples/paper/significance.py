"""Numbers that say whether a difference is more than chance."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata, t

Statistic = Callable[[np.ndarray, np.ndarray], float]

NUM_PERMUTATIONS = 1000
ROUNDING = 1e-9
"""Statistics this close are equal: permutations often give one value in another order of sums."""

Change = tuple[float, float, float]
"""Of one head: a change, and the standard errors of both ends."""


def permuted(
    tables: Sequence[np.ndarray],
    statistic: Statistic,
    *,
    lower: bool = False,
) -> tuple[float, float, float]:
    """A statistic of two columns, its mean over tables, and its p value by permutation.

    The second column is permuted within each table. The p value counts the arrangement that was
    seen as one of those possible: (1 + #)/(1 + :data:`NUM_PERMUTATIONS`).

    Args:
        tables: arrays ``[row, 2]``.
        statistic: a function of both columns.
        lower: whether small values are the extreme ones.

    Returns:
        The mean, its p value, and the least p value that any arrangement could have given: the
        share of the most extreme ones.
    """
    stream = np.random.default_rng(0)
    sign = -1 if lower else 1

    def as_it_is(column: np.ndarray) -> np.ndarray:
        return column

    def mean(arrange: Callable[[np.ndarray], np.ndarray]) -> float:
        values = [statistic(table[:, 0], arrange(table[:, 1])) for table in tables]
        return float(np.mean(values))

    observed = mean(as_it_is)
    shuffled = [mean(stream.permutation) for _ in range(NUM_PERMUTATIONS)]
    others = sign * np.array(shuffled)
    most_extreme = max(others.max(), sign * observed)

    def share_beyond(edge: float) -> float:
        num_beyond = np.sum(others >= edge - ROUNDING)
        return float((1 + num_beyond) / (1 + NUM_PERMUTATIONS))

    return observed, share_beyond(sign * observed), share_beyond(most_extreme)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties; 0 where all ranks are equal."""
    x_ranks = rankdata(x)
    y_ranks = rankdata(y)
    scale = x_ranks.std() * y_ranks.std()
    if scale == 0:
        return 0.0
    x_centred = x_ranks - x_ranks.mean()
    y_centred = y_ranks - y_ranks.mean()
    covariance = np.mean(x_centred * y_centred)
    return float(covariance / scale)


def spread(values: np.ndarray, errors: np.ndarray) -> float:
    """Standard deviation over heads, without what errors add to it.

    Errors that heads share add less than is taken off.
    """
    variance = values.var(ddof=1) - (errors**2).mean()
    return float(np.sqrt(max(variance, 0.0)))


def mean_change(seeds: Sequence[Sequence[Change]]) -> tuple[float, float, str]:
    """Mean change, half its 95 % interval, and of how many.

    Heads of one model share minibatches, and with them an error of unknown size, at most that of
    each: so with three seeds or more, seeds are the units. With fewer, heads are, and the whole of
    the errors is added as if shared.
    """
    heads = [head for seed in seeds for head in seed]
    if len(seeds) > 2:
        kind = "seed"
        units = [mean_of_changes(seed) for seed in seeds]
        shared_variance = 0.0
    else:
        kind = "head"
        units = [change for change, _, _ in heads]
        shared_variance = variance_of_ends(heads) if heads else 0.0
    if not units:
        return np.nan, np.inf, f"{kind}s"
    if len(units) == 1:
        return units[0], np.inf, f"1 {kind}"
    variance = np.var(units, ddof=1) / len(units) + shared_variance
    half = t.ppf(0.975, len(units) - 1) * np.sqrt(variance)
    return float(np.mean(units)), float(half), f"{len(units)} {kind}s"


def mean_of_changes(heads: Sequence[Change]) -> float:
    return float(np.mean([change for change, _, _ in heads]))


def variance_of_ends(heads: Sequence[Change]) -> float:
    """The variance of a change whose ends have the mean standard errors of these heads."""
    first = np.mean([error for _, error, _ in heads])
    second = np.mean([error for _, _, error in heads])
    return float(first**2 + second**2)
