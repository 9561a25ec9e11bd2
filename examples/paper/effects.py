"""Effects with their intervals: contrasts within a layer, pooled over layers and seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, t

LEVEL = 0.95
POWER = 0.8
NUM_PERMUTATIONS = 1000

Statistic = Callable[[np.ndarray, np.ndarray], float]


class Effect(NamedTuple):
    """How large something is, and how well that is known."""

    value: float
    error: float
    """Its standard error."""
    dof: float
    """Degrees of freedom of the error."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, by Student's distribution."""
        half = float(t.ppf((1 + LEVEL) / 2, self.dof)) * self.error
        return self.value - half, self.value + half

    @property
    def detectable(self) -> float:
        """The size that an effect must have for its interval to leave out 0 in 80 % of trials."""
        beyond_zero = t.ppf((1 + LEVEL) / 2, self.dof)
        return float(beyond_zero + t.ppf(POWER, self.dof)) * self.error


class Block(NamedTuple):
    """The heads of one layer of one seed: what is compared, and which group each is in."""

    name: str
    values: np.ndarray
    """``[head]``."""
    errors: np.ndarray
    """``[head]``: standard errors of the values."""
    group: np.ndarray
    """``[head]``, boolean: those of which the claim says something."""


def contrast(block: Block) -> Effect:
    """Mean of the group less the mean of the others.

    Heads are the units: their own errors are part of how they differ, and are not added again. One
    standard deviation serves both groups, because a group may be a single head.

    >>> block = Block("", np.array([1.0, 3.0, 0.0, 2.0]), np.zeros(4), np.array([1, 1, 0, 0]) > 0)
    >>> contrast(block).value
    1.0
    """
    inside = block.values[block.group]
    outside = block.values[~block.group]
    squares = np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum()
    dof = len(block.values) - 2
    variance = squares / dof
    # So few heads may agree by chance better than their own errors allow.
    variance = max(variance, float(np.square(block.errors).mean()))
    error = np.sqrt(variance * (1 / len(inside) + 1 / len(outside)))
    return Effect(float(inside.mean() - outside.mean()), float(error), dof)


def has_contrast(block: Block) -> bool:
    """Whether there are heads in both groups, and one more."""
    count = int(block.group.sum())
    return 0 < count < len(block.values) and len(block.values) > 2


def pooled(effects: Sequence[Effect]) -> Effect:
    """One effect of several: a mean weighted by precision, with what differs beyond the errors.

    Effects of other seeds, texts and layers need not be equal. What they differ by beyond their
    errors (DerSimonian and Laird 1986) is added to each variance. Degrees of freedom are those of
    the parts' errors by Satterthwaite's rule.

    >>> pooled([Effect(1.0, 0.5, 10), Effect(3.0, 0.5, 10)]).value
    2.0
    """
    values = np.array([effect.value for effect in effects])
    variances = np.array([effect.error**2 for effect in effects])
    dofs = np.array([effect.dof for effect in effects])
    weights = 1 / variances
    mean = np.average(values, weights=weights)
    excess = (weights * np.square(values - mean)).sum() - (len(values) - 1)
    scale = weights.sum() - np.square(weights).sum() / weights.sum()
    between = max(0.0, excess / scale) if scale > 0 else 0.0
    weights = 1 / (variances + between)
    weights /= weights.sum()
    parts = np.square(weights) * (variances + between)
    variance = parts.sum()
    of_parts = float((np.square(parts) / dofs).sum())
    dof = variance**2 / of_parts if of_parts > 0 else np.inf
    return Effect(float(weights @ values), float(np.sqrt(variance)), float(dof))


# Correlations.


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties; 0 where all ranks are equal."""
    return correlation(rankdata(x), rankdata(y))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    scale = x.std() * y.std()
    if scale == 0:
        return 0.0
    return float(np.mean((x - x.mean()) * (y - y.mean())) / scale)


def partial_rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of x and y beyond what both share with a third."""
    x_y = rank_correlation(x, y)
    x_z = rank_correlation(x, given)
    y_z = rank_correlation(y, given)
    scale = np.sqrt((1 - x_z**2) * (1 - y_z**2))
    if scale < 1e-9:
        return 0.0
    return float((x_y - x_z * y_z) / scale)


def of_correlation(value: float, count: int, num_given: int = 0) -> Effect:
    """A rank correlation on Fisher's scale, atanh ρ, on which its error does not depend on it.

    The variance of Spearman's is 1.06/(n − 3) there (Fieller et al. 1957), with n less by one for
    each variable that is held fixed.
    """
    degrees = count - 3 - num_given
    bounded = np.clip(value, -0.99, 0.99)
    return Effect(float(np.arctanh(bounded)), float(np.sqrt(1.06 / degrees)), np.inf)


# Permutations.


def beyond_permutations(labels: np.ndarray, groups: np.ndarray, statistic: Statistic) -> Effect:
    """A statistic of two labellings less its mean over permutations, with their deviation."""
    stream = np.random.default_rng(0)
    shuffled = [statistic(labels, stream.permutation(groups)) for _ in range(NUM_PERMUTATIONS)]
    deviation = max(float(np.std(shuffled)), 1e-9)
    return Effect(statistic(labels, groups) - float(np.mean(shuffled)), deviation, np.inf)


def spread(values: np.ndarray, errors: np.ndarray) -> float:
    """Standard deviation over heads, without what errors add to it.

    Where errors explain it all, the errors: more cannot be excluded.
    """
    noise = float(np.square(errors).mean())
    variance = float(values.var(ddof=1)) - noise
    return float(np.sqrt(max(variance, noise, 1e-12)))
