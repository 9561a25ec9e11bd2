"""How far draws can be trusted, on arrays ``[..., chain, draw]``.

R-hat, effective sample size and spikes are functions of numbers. Leading axes (refinement,
checkpoint) are kept; the last two are chain and draw. A non-finite draw makes every diagnostic of
its refinement NaN; nothing is skipped.

``rhat``, ``ess`` and ``mcse`` are those of Vehtari et al. (2021), as in arviz. The standard errors
of estimates come from :mod:`rllc.statistics.uncertainty`. The code is our own because
``arviz-stats`` 0.8, which agrees with it to 1e-10, takes 1.5 s to import and needs scipy, 143 MB.

Reference: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.statistics.autocovariance import FEWEST_DRAWS, finite_draws
from rllc.statistics.uncertainty import mean_of_draws

_CONSTANT = 1e-15
"""Range below which draws count as all equal, as in arviz."""

_CHAINS_AND_DRAWS = (-2, -1)
"""The axes over which a diagnostic is taken."""


def rhat(x: ArrayLike) -> np.ndarray:
    """Rank-normalised split R-hat, near 1 when chains and their halves agree.

    Every chain is cut in two halves, all values are replaced by normal scores of their ranks, and
    R̂ = √((n − 1)/n + Var(half means)/mean(variance in halves)), n draws in a half. The folded
    version does the same to |x − median|, so that it sees halves that differ in spread. The result
    is the larger of the two. One chain is compared with itself by its halves (arviz gives NaN).

    >>> float(rhat([[1.0, 2.0, 1.5, 2.5], [11.0, 12.0, 11.5, 12.5]])) > 1.1
    True

    Args:
        x: draws ``[..., chain, draw]``.

    Returns:
        R-hat ``[...]``; NaN with fewer than 4 draws, non-finite draws, or draws that are all equal.
    """
    values, usable = _usable(x)
    halves = _split(values)
    median = np.median(_flat(halves), axis=-1)
    folded = np.abs(halves - median[..., None, None])
    bulk = _plain_rhat(_normal_scores(halves))
    tail = _plain_rhat(_normal_scores(folded))
    larger = np.fmax(bulk, tail)
    return np.where(usable, larger, np.nan)


def ess(x: ArrayLike, method: Literal["bulk", "mean"] = "bulk") -> np.ndarray:
    """Effective sample size: how many independent draws would be worth as much, over all chains.

    C·N/τ with τ = −1 + 2Σ_t ρ_t over split chains, cut by Geyer's initial monotone sequence, where
    ρ_t = 1 − (W − mean autocovariance_t)/Var⁺ also counts disagreement between chains.

    >>> ess(np.ones((4, 100)))
    array(400.)

    Args:
        x: draws ``[..., chain, draw]``.
        method: ``"mean"`` is for the mean of x; ``"bulk"`` works on normal scores of ranks and
            exists for heavy tails too.

    Returns:
        Effective sample size ``[...]``; C·N where all draws are equal; NaN with fewer than 4 draws
        or non-finite draws.

    Raises:
        InputError: ``method`` is neither, or ``x`` is not an array ``[..., chain, draw]``.
    """
    if method not in ("bulk", "mean"):
        raise InputError(f"ess: method must be 'bulk' or 'mean'; got {method!r}.")
    values, usable = _usable(x)
    halves = _split(values)
    if method == "bulk":
        halves = _normal_scores(halves)
    size = _ess(halves)
    return np.where(usable, size, np.nan)


def mcse(x: ArrayLike) -> np.ndarray:
    """Monte-Carlo standard error of the mean, sd(x)/√ess_mean(x), for independent chains.

    For chains that share minibatches it is too small;
    :func:`rllc.statistics.uncertainty.mean_of_draws` knows what they share.

    >>> mcse(np.ones((4, 100)))
    array(0.)

    Args:
        x: draws ``[..., chain, draw]``.

    Returns:
        Standard error ``[...]``; NaN with fewer than 4 draws or non-finite draws.
    """
    values, usable = _usable(x)
    deviation = values.std(axis=_CHAINS_AND_DRAWS, ddof=1)
    error = deviation / np.sqrt(_ess(_split(values)))
    return np.where(usable, error, np.nan)


def spikes(x: ArrayLike) -> np.ndarray:
    """How many draws stand far outside the distribution of the others.

    That is more than 30 times (90 % quantile − median) above the median. The losses that a chain
    sees near a minimum are Gamma distributed. Of Gamma(½), one direction, a draw is that far out
    once in 10¹⁵, of Gamma(¼) once in 10¹⁰; a chain that was thrown up a cliff by too large a step
    is, often.

    >>> int(spikes([[*range(100), 1e4]]))
    1

    Args:
        x: draws ``[..., chain, draw]``.

    Returns:
        Counts ``[...]``, as floats; NaN with fewer than 4 draws or non-finite draws.
    """
    values, usable = _usable(x)
    flat = _flat(values)
    median = np.quantile(flat, 0.5, axis=-1, keepdims=True)
    upper = np.quantile(flat, 0.9, axis=-1, keepdims=True)
    spread = upper - median
    is_spike = flat - median > 30 * spread
    return np.where(usable, is_spike.sum(-1), np.nan)


def variance_reading(x: ArrayLike, noise: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """λ read from the *variance* of nβ(ℓ − ℓ*) over draws: a second reading without a baseline.

    Where λ̂ has its asymptotic meaning nβ(ℓ(v) − ℓ(w*)) is Gamma(λ, 1) distributed, so its variance
    is λ as well as its mean, and a constant error of the loss at w* does not matter. A Gaussian
    prior makes the variance the smaller: with sᵢ = nβhᵢ/(nβhᵢ + γ) on a quadratic the mean is
    ½Σsᵢ, the variance ½Σsᵢ². So variance/mean is the average sᵢ of the directions that count, and
    1 minus it, how far the prior has shrunk λ̂.

    The reading is Var − mean noise, the variance being that of all draws over chains, divided by
    1 − 1/ess because their own mean was subtracted.

    >>> x = np.random.default_rng(0).gamma(3.0, size=(4, 1000))
    >>> [round(float(v), 1) for v in variance_reading(x, np.zeros_like(x))]
    [3.1, 0.1]

    Args:
        x: nβ(ℓ_B − ℓ*_B) ``[..., chain, draw]``, on minibatches or not.
        noise: same shape: what of each draw's variance is due to the choice of its minibatch (0 on
            full batches).

    Returns:
        Reading and its standard error, ``[...]``; NaN with fewer than 4 draws, non-finite draws or
        noise.
    """
    values, usable = _usable(x)
    noise = np.asarray(noise, dtype=np.float64)
    noise = np.broadcast_to(noise, np.shape(x))
    usable = usable & np.isfinite(noise).all(axis=_CHAINS_AND_DRAWS)
    if noise.shape == values.shape:
        noise = np.where(usable[..., None, None], noise, 0.0)
    else:  # with fewer draws than 4 no row is usable, and values are zeros of another shape
        noise = np.zeros_like(values)
    mean = values.mean(axis=_CHAINS_AND_DRAWS, keepdims=True)
    squares = (values - mean) ** 2
    variance = mean_of_draws(squares - noise, relaxation=None)
    effective_size = np.maximum(_ess(_split(values)), 2.0)
    shrinkage = 1 - 1 / effective_size
    reading = variance.value / shrinkage
    error = variance.standard_error / shrinkage
    return np.where(usable, reading, np.nan), np.where(usable, error, np.nan)


def _usable(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return draws, and which rows ``[...]`` of them are finite and long enough.

    The other rows are zeros, so that no formula warns; callers put NaN in place of their results.
    """
    values, usable = finite_draws(x)
    *leading, num_draws = values.shape
    if num_draws < FEWEST_DRAWS:
        values = np.zeros((*leading, FEWEST_DRAWS))
        usable = np.zeros_like(usable)
    return values, usable


def _flat(x: np.ndarray) -> np.ndarray:
    """[..., chain, draw] -> [..., chain · draw]."""
    *leading, chains, draws = x.shape
    return x.reshape(*leading, chains * draws)


def _split(x: np.ndarray) -> np.ndarray:
    """[..., chain, draw] -> [..., 2·chain, draw // 2], without the middle of an odd number."""
    half = x.shape[-1] // 2
    first = x[..., :half]
    second = x[..., -half:]
    return np.concatenate([first, second], axis=-2)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Φ⁻¹((rank − 3/8)/(S + 1/4)) of every value among the S of its chains (Blom 1958)."""
    chains, draws = x.shape[-2:]
    size = chains * draws
    rows = x.reshape(-1, size)
    order = rows.argsort(-1)
    ranks = np.empty_like(rows)
    rising_ranks = np.arange(1.0, size + 1)
    np.put_along_axis(ranks, order, rising_ranks[None], axis=-1)
    rising = np.take_along_axis(rows, order, axis=-1)
    is_tie = rising[:, 1:] == rising[:, :-1]
    has_ties = is_tie.any(-1)
    for i in np.flatnonzero(has_ties):
        ranks[i] = _mean_ranks(rows[i])
    share = (ranks - 0.375) / (size + 0.25)
    scores = torch.special.ndtri(torch.from_numpy(share))
    return scores.numpy().reshape(x.shape)


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    highest_ranks = np.cumsum(counts)
    mean_ranks = highest_ranks - (counts - 1) / 2
    return mean_ranks[inverse]


def _plain_rhat(x: np.ndarray) -> np.ndarray:
    num_draws = x.shape[-1]
    means = x.mean(-1)
    variances = x.var(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = means.var(-1, ddof=1)
        within = variances.mean(-1)
        ratio = between / within
    return np.sqrt(ratio + (num_draws - 1) / num_draws)


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Autocovariances [..., lag] of x [..., draw], divided by the number of draws at every lag."""
    num_draws = x.shape[-1]
    centred = x - x.mean(-1, keepdims=True)
    padded = 2 ** (2 * num_draws - 1).bit_length()
    waves = np.fft.rfft(centred, n=padded, axis=-1)
    spectrum = np.abs(waves) ** 2
    sums = np.fft.irfft(spectrum, axis=-1)
    return sums[..., :num_draws] / num_draws


def _ess(x: np.ndarray) -> np.ndarray:
    """Effective sample size [...] of chains as they are."""
    num_chains, num_draws = x.shape[-2:]
    covariance = _autocovariance(x).mean(-2)
    total = covariance[..., 0]
    if num_chains > 1:
        means = x.mean(-1)
        total = total + means.var(-1, ddof=1)
    is_constant = np.ptp(x, axis=_CHAINS_AND_DRAWS) < _CONSTANT
    total = np.where(is_constant, 1.0, total)
    sum_of_squares = covariance[..., :1] * num_draws
    within = sum_of_squares / (num_draws - 1)
    correlation = 1 - (within - covariance) / total[..., None]  # [..., lag]
    correlation[..., 0] = 1.0
    time = _geyer(correlation)
    size = num_chains * num_draws
    # Antithetic chains may be worth more than their draws, but not without bound.
    shortest_time = 1 / np.log10(size)
    effective_size = size / np.maximum(time, shortest_time)
    return np.where(is_constant, size, effective_size)


def _geyer(correlation: np.ndarray) -> np.ndarray:
    """τ = −1 + 2Σρ over Geyer's initial monotone sequence.

    Its terms are pairs ρ_2j + ρ_2j+1. It ends before the first pair that is not positive, or where
    lags run out. The even lag after it is added if positive (the improvement of Vehtari et al.),
    which matters for antithetic chains.
    """
    num_lags = correlation.shape[-1]
    num_pairs = num_lags // 2
    paired = correlation[..., : 2 * num_pairs]
    even = paired[..., 0::2]
    odd = paired[..., 1::2]
    pairs = even + odd
    latest_end = max(0, (num_lags - 3) // 2)
    is_end = pairs[..., : latest_end + 1] <= 0
    is_end[..., latest_end] = True
    end = is_end.argmax(-1)[..., None]
    is_in_sequence = np.arange(num_pairs) < end
    monotone = np.minimum.accumulate(pairs, axis=-1)
    sum_of_pairs = (monotone * is_in_sequence).sum(-1)
    even_at_end = np.take_along_axis(even, end, -1)
    pair_at_end = np.take_along_axis(pairs, end, -1)
    is_added = (even_at_end > 0) | (pair_at_end >= 0)
    improvement = np.where(is_added, even_at_end, 0.0)[..., 0]
    return -1 + 2 * sum_of_pairs + improvement
