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

_SMALLEST = 1e-300


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
    halves = _halves(x)
    half = halves.shape[-1]
    are_enough = chains > 1 and half >= FEWEST_DRAWS
    usable = usable & are_enough
    if not usable.any():
        nothing = np.full(usable.shape, np.nan)
        return Mean(nothing, nothing, nothing)
    means = halves.mean(-1)
    of_first = means[..., 0, :]
    of_second = means[..., 1, :]
    changes = of_second - of_first
    variance = changes.var(axis=-1, ddof=1)
    dof = chains - 1
    if relaxation is not None:
        covariance = autocovariance(deviations(x))
        slow, white = slow_and_white(covariance, relaxation)
        of_halves = slow * relaxation_time(relaxation, half)
        correlation = _correlation_of_halves(relaxation, half)
        of_change = of_halves * (1 - correlation)
        allowed = 2 * (of_change + white) / half
        variance = np.maximum(variance, allowed)
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
    are_enough = chains > 1 and draws >= 2 * FEWEST_DRAWS
    usable = usable & are_enough
    if not usable.any():
        nothing = np.full(usable.shape, np.nan)
        return Disagreement(nothing, nothing, nothing)
    own = deviations(x)
    levels = own.mean(-1)
    variance_of_levels = np.square(levels).mean(-1)
    between = draws * variance_of_levels
    allowed, likelihood = _allowed_variance(own, relaxation)
    ratios = _ratio(between[..., None], allowed)
    dof_between = chains - 1
    dof_within = (chains - 1) * (draws - 1)
    p_values = f_tail(ratios, dof_between, dof_within)
    p_value = (likelihood * p_values).sum(-1)
    usual = (likelihood * allowed).sum(-1)
    excess = np.maximum(between - usual, 0) / draws
    mean = x.mean(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(excess) / np.abs(mean)
    spread = np.where(excess == 0, 0.0, spread)
    return Disagreement(
        ratio=np.where(usable, _ratio(between, usual), np.nan),
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
    squares = np.square(steps)
    squares = squares.reshape(*rows, chains * (draws - 1))
    squares = np.sort(squares, axis=-1)
    count = round(share * chains * (draws - 1))
    count = max(1, count)
    largest = squares[..., -count:]
    sum_of_largest = largest.sum(-1)
    total = squares.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = sum_of_largest / total
    part = np.where(total == 0, 0.0, part)
    enough = usable & (draws >= FEWEST_DRAWS)
    return np.where(enough, part, np.nan)


def _allowed_variance(own: np.ndarray, relaxation: float) -> tuple[np.ndarray, np.ndarray]:
    """N times the variance that means of agreeing chains have, and the likelihood, of each share.

    Both are ``[..., share]``, for each of the shares that may relax as slowly as ``relaxation``.
    """
    chains, draws = own.shape[-2:]
    power = cosine_power(own)
    of_slow = cosine_variances(relaxation, draws)
    white = 1 - _SHARES
    # [cosine, share]: what a chain of variance 1 would have.
    expected = of_slow[:, None] * _SHARES + white
    variance = power @ (1 / expected)
    variance = variance / (draws - 1)
    variance = np.maximum(variance, _SMALLEST)
    log_of_expected = np.log(expected).sum(0)
    log_of_variance = (draws - 1) * np.log(variance)
    log_of_variances = log_of_expected + log_of_variance
    log_likelihood = -(chains - 1) / 2 * log_of_variances
    largest = log_likelihood.max(-1, keepdims=True)
    likelihood = np.exp(log_likelihood - largest)
    likelihood = likelihood / likelihood.sum(-1, keepdims=True)
    time = relaxation_time(relaxation, draws)
    of_mean = time * _SHARES + white
    return variance * of_mean, likelihood


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """What numbers can hold of a ratio; chains that do not move allow no variance."""
    with np.errstate(over="ignore"):
        return np.minimum(above / below, 1e300)


def _correlation_of_halves(relaxation: float, half: int) -> float:
    """Correlation of the means of two successive halves of a chain with autocorrelation r^k."""
    whole = 2 * half
    of_whole = relaxation_time(relaxation, whole) / whole
    of_half = relaxation_time(relaxation, half) / half
    return 2 * of_whole / of_half - 1


def _halves(x: np.ndarray) -> np.ndarray:
    """``[..., half, chain, draw]``; the middle draw of an odd number is left out."""
    draws = x.shape[-1]
    half = draws // 2
    first = x[..., :half]
    second = x[..., draws - half :]
    return np.stack([first, second], axis=-3)
