"""Whether chains agree, have settled, and have means that few draws do not decide.

Functions of arrays ``[..., chain, draw]`` that return numbers; limits are the caller's. A
non-finite draw makes every result of its row NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.statistics.autocovariance import (
    FEWEST_DRAWS,
    autocovariance,
    check_relaxation,
    deviations,
    finite_draws,
    pieces,
    relaxation_time,
    shared_variance,
    slow_and_white,
)
from rllc.statistics.quantiles import f_tail
from rllc.statistics.uncertainty import Mean


class Disagreement(NamedTuple):
    """How far chains sit apart, each ``[...]``; :func:`disagreement` makes it."""

    ratio: np.ndarray
    """F: variance of half-chain means between chains, over what relaxation and noise allow."""
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
    usable = usable & (chains > 1) & (half >= FEWEST_DRAWS)
    if not usable.any():
        nothing = np.full(usable.shape, np.nan)
        return Mean(nothing, nothing, nothing)
    first, second = np.moveaxis(halves.mean(-1), -2, 0)
    changes = second - first
    variance = changes.var(axis=-1, ddof=1)
    dof = chains - 1
    if relaxation is not None:
        covariance = autocovariance(deviations(x))
        slow, white = slow_and_white(covariance, relaxation)
        slow = slow * relaxation_time(relaxation, half)
        slow = slow * (1 - _correlation_of_halves(relaxation, half))
        allowed = 2 * (slow + white) / half
        variance = np.maximum(variance, allowed)
        dof = dof * pieces(relaxation, draws)
    variance = variance / chains
    if shared:
        variance = variance + 2 * shared_variance(x) / half
    return Mean(
        value=np.where(usable, changes.mean(-1), np.nan),
        standard_error=np.where(usable, np.sqrt(variance), np.nan),
        dof=np.where(usable, float(dof), np.nan),
    )


def disagreement(x: ArrayLike, relaxation: float) -> Disagreement:
    """Whether chains sit at different levels: an F test of half-chain means between chains.

    R-hat reads slow chains as chains that disagree. This test asks for more than slowness allows.
    With n = N/2 draws in a half:

    - above the line: the mean square of half-chain means about their mean over chains;
    - below: the larger of two readings that are blind to the chains' levels. One is (A·τ_n +
      white)/n: white is 2D_1 − D_2 by the variogram D_k = ½·mean (x_{t+k} − x_t)², and A all other
      variance within half chains, as if all of it relaxed as slowly as r. The other is half the
      variance of the changes from half to half, over 1 − c, c as in :func:`drift`: where noise
      hides A, as with chains shorter than their relaxation, only this one holds.

    On agreeing chains of known laws p < 0.001 and a spread above 2 % came in 0 to 1 % of cases.

    Args:
        x: draws ``[..., chain, draw]``.
        relaxation: r, as in :func:`mean_of_draws`.

    Returns:
        :class:`Disagreement`; NaN with one chain, fewer than 8 draws or non-finite draws.

    Raises:
        InputError: ``x`` has no axes chain and draw, or ``relaxation`` is not in [0, 1).
    """
    x, usable = finite_draws(x)
    check_relaxation(relaxation)
    chains = x.shape[-2]
    halves = _halves(x)
    half = halves.shape[-1]
    usable = usable & (chains > 1) & (half >= FEWEST_DRAWS)
    if not usable.any():
        nothing = np.full(usable.shape, np.nan)
        return Disagreement(nothing, nothing, nothing)
    own = deviations(halves)
    between = np.square(own.mean(-1)).mean(axis=(-2, -1))
    allowed = _allowed_variance(own, relaxation)
    correlation = _correlation_of_halves(relaxation, half)
    between_dof = 2 * (chains - 1) / (1 + correlation**2)
    # Squares forget twice as fast. Even a chain that only wanders has 2 degrees of freedom a half.
    independent = max(2.0, pieces(relaxation**2, half))
    allowed_dof = 2 * (chains - 1) * independent
    excess = np.sqrt(np.maximum(between - allowed, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(between == 0, 0.0, between / allowed)
        ratio = np.minimum(ratio, 1e300)
        spread = excess / np.abs(x.mean(axis=(-2, -1)))
    spread = np.where(excess == 0, 0.0, spread)
    p_value = f_tail(ratio, between_dof, allowed_dof)
    return Disagreement(
        ratio=np.where(usable, ratio, np.nan),
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
    squares = np.square(np.diff(x, axis=-1))
    squares = squares.reshape(*x.shape[:-2], -1)
    squares = np.sort(squares, axis=-1)
    count = max(1, round(share * squares.shape[-1]))
    largest = squares[..., -count:].sum(-1)
    total = squares.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(total == 0, 0.0, largest / total)
    enough = usable & (x.shape[-1] >= FEWEST_DRAWS)
    return np.where(enough, held, np.nan)


def _allowed_variance(halves: np.ndarray, relaxation: float) -> np.ndarray:
    """The variance of a half-chain mean that agreeing chains may have, from within half chains."""
    draws = halves.shape[-1]
    time = relaxation_time(relaxation, draws)
    total = halves.var(axis=-1).mean(axis=(-2, -1))
    # Of a variance A·r^k about the sample's own mean, A(1 − τ_n/n) is left; of white, 1 − 1/n.
    white = 2 * _variogram(halves, 1) - _variogram(halves, 2)
    white = np.clip(white, 0, total / (1 - 1 / draws))
    slow = np.maximum(total - white * (1 - 1 / draws), 0)
    slow = slow / (1 - time / draws)
    within = (slow * time + white) / draws
    correlation = _correlation_of_halves(relaxation, draws)
    changes = np.diff(halves.mean(-1), axis=-2)
    by_changes = np.square(changes).mean(axis=(-2, -1)) / 2 / (1 - correlation)
    return np.maximum(within, by_changes)


def _variogram(x: np.ndarray, lag: int) -> np.ndarray:
    """Half the mean square of x_{t+lag} − x_t over halves, chains and draws."""
    apart = x[..., lag:] - x[..., :-lag]
    return np.square(apart).mean(axis=(-3, -2, -1)) / 2


def _correlation_of_halves(relaxation: float, half: int) -> float:
    """Correlation of the means of two successive halves of a chain with autocorrelation r^k."""
    of_whole = relaxation_time(relaxation, 2 * half) / (2 * half)
    of_half = relaxation_time(relaxation, half) / half
    return 2 * of_whole / of_half - 1


def _halves(x: np.ndarray) -> np.ndarray:
    """``[..., half, chain, draw]``; the middle draw of an odd number is left out."""
    draws = x.shape[-1]
    half = draws // 2
    first = x[..., :half]
    second = x[..., draws - half :]
    return np.stack([first, second], axis=-3)
