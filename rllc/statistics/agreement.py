"""Whether chains agree, have settled, and have means that few draws do not decide.

Functions of arrays ``[..., chain, draw]`` that return numbers; limits are the caller's. A
non-finite draw makes every result of its row NaN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.statistics.autocovariance import (
    FEWEST_DRAWS,
    autocovariance,
    check_relaxation,
    cosine_power,
    cosine_variances,
    deviations,
    finite_draws,
    pieces,
    relaxation_time,
    shared_variance,
    slow_and_white,
)
from rllc.statistics.quantiles import f_tail
from rllc.statistics.uncertainty import Mean

_LOG_ODDS = np.linspace(-7, 7, 29)

_SHARES = 1 / (1 + np.exp(-_LOG_ODDS))
"""Shares of a chain's variance that may relax slowly: a thousandth to all but a thousandth."""

_SMALLEST_VARIANCE = 1e-300

_LARGEST_RATIO = 1e300


class Disagreement(NamedTuple):
    """How far chains sit apart, each ``[...]``; :func:`disagreement` makes it."""

    ratio: np.ndarray
    """F: the variance of chain means, over what relaxation and noise allow."""
    p_value: np.ndarray
    """Probability of a ratio at least as large in chains that agree."""
    spread: np.ndarray
    """Standard deviation between chains that is not explained, over the absolute mean."""


def drift(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> Mean:
    """The second half of the draws minus the first, averaged over chains, with its error.

    Not 0 where all chains still rise or fall together; ``drift(...).p_value()`` tests it. The
    variance of one chain's change is the larger of what chains show, by how their changes differ,
    and 2((1 − c)·A·τ_n + white)/n, where n = N/2, A and white are those of :func:`mean_of_draws`
    and c is the correlation that r gives to the two halves. What chains share adds 2S/n.

    >>> steady = np.random.default_rng(0).standard_normal((4, 100))
    >>> [bool(drift(x, 0.0).p_value() < 0.001) for x in (steady, steady + np.arange(100))]
    [False, True]

    Arguments and errors are those of :func:`mean_of_draws`. Without ``relaxation`` only the
    chains' differences count, with C − 1 degrees of freedom.
    """
    x, usable = finite_draws(x)
    check_relaxation(relaxation)
    chains, draws = x.shape[-2:]
    first_half, second_half = _halves(x)
    half = first_half.shape[-1]
    has_enough_draws = chains > 1 and half >= FEWEST_DRAWS
    usable = usable & has_enough_draws
    if not usable.any():
        unknown = np.full(usable.shape, np.nan)
        return Mean(unknown, unknown, unknown)
    changes = second_half.mean(-1) - first_half.mean(-1)  # [..., chain]
    variance = changes.var(axis=-1, ddof=1)
    dof = chains - 1
    if relaxation is not None:
        covariance = autocovariance(deviations(x))
        slow, white = slow_and_white(covariance, relaxation)
        slow_in_half = slow * relaxation_time(relaxation, half)
        correlation = _correlation_of_halves(relaxation, half)
        slow_in_change = slow_in_half * (1 - correlation)
        expected_variance = 2 * (slow_in_change + white) / half
        variance = np.maximum(variance, expected_variance)
        dof = dof * pieces(relaxation, draws)
    variance = variance / chains
    if shared:
        variance = variance + 2 * shared_variance(x) / half
    change = changes.mean(-1)
    error = np.sqrt(variance)
    return Mean(
        value=np.where(usable, change, np.nan),
        standard_error=np.where(usable, error, np.nan),
        dof=np.where(usable, float(dof), np.nan),
    )


def disagreement(x: ArrayLike, relaxation: float) -> Disagreement:
    """Whether chains sit at different levels: an F test of chain means.

    R-hat reads slow chains as chains that disagree. This test asks for more than slowness allows.
    Of the variance σ² of a chain that has settled a share s relaxes as slowly as r, and the rest is
    white. Its cosine transform X_k = √(2/N) Σ_t x_t cos(πk(t + ½)/N) then has the variances
    σ²·(s·q_k + 1 − s), q_k those of r^|lag|, nearly independent of each other. X_k with k ≥ 1 are
    blind to the chain's level. They tell σ² for each s, and how likely each s is:

    - σ̂_s² = mean over k ≥ 1 and chains of X_k²/(s·q_k + 1 − s);
    - F_s = N·Var(chain means)/(σ̂_s²·(s·τ_N + 1 − s)), with C − 1 and (C − 1)(N − 1) degrees of
      freedom, τ_N that of :func:`rllc.statistics.uncertainty.mean_of_draws`;
    - the p-value is that of F_s, averaged over s by its likelihood.

    Where chains relax faster than r, the test expects too much of them and finds less. Chains of
    known laws that agree gave p < 0.001 in 0 to 1.2 % of cases, the most where 16 chains of 4
    directions are shorter than their relaxation. How much it finds, beside what any test could, is
    in ``examples/benchmarks/coverage.py``.

    Args:
        x: draws ``[..., chain, draw]``.
        relaxation: r, as in :func:`rllc.statistics.uncertainty.mean_of_draws`.

    Returns:
        :class:`Disagreement`; NaN with one chain, fewer than 8 draws or non-finite draws.

    Raises:
        InputError: ``x`` has no axes chain and draw, or ``relaxation`` is not in [0, 1).
    """
    x, usable = finite_draws(x)
    check_relaxation(relaxation)
    chains, draws = x.shape[-2:]
    has_enough_draws = chains > 1 and draws >= 2 * FEWEST_DRAWS
    usable = usable & has_enough_draws
    if not usable.any():
        unknown = np.full(usable.shape, np.nan)
        return Disagreement(unknown, unknown, unknown)
    from_common_mean = deviations(x)
    levels = from_common_mean.mean(-1)  # [..., chain]
    variance_of_levels = np.square(levels).mean(-1)
    between = draws * variance_of_levels
    expected_by_share, likelihood = _expected_between(from_common_mean, relaxation)
    ratios = _ratio(between[..., None], expected_by_share)
    dof_between = chains - 1
    dof_within = (chains - 1) * (draws - 1)
    p_values = f_tail(ratios, dof_between, dof_within)
    p_value = (likelihood * p_values).sum(-1)
    expected = (likelihood * expected_by_share).sum(-1)
    excess = np.maximum(between - expected, 0) / draws
    mean = x.mean(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(excess) / np.abs(mean)
    spread = np.where(excess == 0, 0.0, spread)
    return Disagreement(
        ratio=np.where(usable, _ratio(between, expected), np.nan),
        p_value=np.where(usable, p_value, np.nan),
        spread=np.where(usable, spread, np.nan),
    )


def heavy_tails(x: ArrayLike, share: float = 0.02) -> np.ndarray:
    """How much of all squared steps x_{t+1} − x_t the largest ``share`` of them holds, ``[...]``.

    For Gaussian draws the largest 2 % hold 14 %; above a third or so, few draws decide the mean
    and its error is a guess.

    >>> bool(heavy_tails(np.random.default_rng(0).standard_cauchy((4, 200))) > 0.35)
    True

    Args:
        x: draws ``[..., chain, draw]``.
        share: of the steps, between 0 and 1; at least one step counts.

    Returns:
        Shares between 0 and 1; 0 for constant draws, NaN with fewer than 4 or non-finite draws.
    """
    x, usable = finite_draws(x)
    *rows, chains, draws = x.shape
    steps = np.diff(x, axis=-1)
    num_steps = chains * (draws - 1)
    squares = np.square(steps).reshape(*rows, num_steps)
    rising = np.sort(squares, axis=-1)
    num_largest = max(1, round(share * num_steps))
    sum_of_largest = rising[..., -num_largest:].sum(-1)
    total = rising.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_of_largest = sum_of_largest / total
    share_of_largest = np.where(total == 0, 0.0, share_of_largest)
    has_enough_draws = draws >= FEWEST_DRAWS
    return np.where(usable & has_enough_draws, share_of_largest, np.nan)


def _expected_between(
    from_common_mean: np.ndarray, relaxation: float
) -> tuple[np.ndarray, np.ndarray]:
    """N times the variance that means of agreeing chains have, and its likelihood.

    Both are ``[..., share]``, for each of the shares that may relax as slowly as ``relaxation``.
    """
    chains, draws = from_common_mean.shape[-2:]
    power = cosine_power(from_common_mean)
    slow_power = cosine_variances(relaxation, draws)
    white = 1 - _SHARES
    # [cosine, share]: what a chain of variance 1 would have.
    unit_power = slow_power[:, None] * _SHARES + white
    variance = power @ (1 / unit_power)
    variance = variance / (draws - 1)
    variance = np.maximum(variance, _SMALLEST_VARIANCE)
    # The logarithm of the product of the variances of all cosines.
    log_of_product = np.log(unit_power).sum(0) + (draws - 1) * np.log(variance)
    log_likelihood = -(chains - 1) / 2 * log_of_product
    largest = log_likelihood.max(-1, keepdims=True)
    likelihood = np.exp(log_likelihood - largest)
    likelihood = likelihood / likelihood.sum(-1, keepdims=True)
    unit_between = relaxation_time(relaxation, draws) * _SHARES + white
    return variance * unit_between, likelihood


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above/below, finite also where chains do not move and so ``below`` is almost 0."""
    with np.errstate(over="ignore"):
        return np.minimum(above / below, _LARGEST_RATIO)


def _correlation_of_halves(relaxation: float, half: int) -> float:
    """Correlation of the means of two successive halves of a chain with autocorrelation r^k."""
    whole = 2 * half
    variance_of_whole = relaxation_time(relaxation, whole) / whole
    variance_of_half = relaxation_time(relaxation, half) / half
    return 2 * variance_of_whole / variance_of_half - 1


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of the draws; the middle draw of an odd number is in neither."""
    draws = x.shape[-1]
    half = draws // 2
    return x[..., :half], x[..., draws - half :]
