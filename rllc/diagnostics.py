"""How far draws can be trusted: R-hat, effective sample size, standard errors and drift, on arrays ``[..., chain,
draw]``.

Everything here is a function of numbers: leading axes (refinement, checkpoint) are kept, the last two are chain and
draw. ``rhat``, ``ess`` and ``mcse`` are those of Vehtari et al. (2021), as in arviz. ``standard_error`` is ours: chains
that share minibatches are not independent, and the usual formulas then claim too much. A non-finite draw makes every
diagnostic of its refinement NaN; nothing is skipped.

Reference: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Rank-normalization, folding, and localization: an
improved R-hat for assessing convergence of MCMC. Bayesian Analysis 16(2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from rllc.errors import InputError

_MIN_DRAWS = 4  # below that a half chain has no variance, or no lag to correlate at


def rhat(x: ArrayLike) -> np.ndarray:
    """Rank-normalised split R-hat: the larger of bulk and folded (tail); near 1 when chains and their halves agree.

    Every chain is cut in two halves, all values are replaced by normal scores of their ranks, and
    R̂ = √((n − 1)/n + Var(half means)/mean(variance in halves)), n draws in a half. The folded version does the same to
    |x − median|, so it sees halves that differ in spread. One chain is compared with itself by its halves (arviz gives
    NaN).

    >>> float(rhat([[1.0, 2.0, 1.5, 2.5], [11.0, 12.0, 11.5, 12.5]])) > 1.1
    True

    Args:
        x: draws [..., chain, draw].

    Returns:
        R-hat [...]; NaN with fewer than 4 draws, non-finite draws, or draws that are all equal.
    """
    halves, usable = _usable(x)
    halves = _split(halves)
    middle = np.median(
        halves.reshape(*halves.shape[:-2], halves.shape[-2] * halves.shape[-1]), axis=-1
    )
    folded = np.abs(halves - middle[..., None, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.fmax(_plain_rhat(_normal_scores(halves)), _plain_rhat(_normal_scores(folded)))
    return _result(both, usable)


def ess(x: ArrayLike, method: Literal["bulk", "mean"] = "bulk") -> np.ndarray:
    """Effective sample size: how many independent draws would be worth as much, over all chains.

    C·N/τ with τ = −1 + 2Σ_t ρ_t over split chains, cut by Geyer's initial monotone sequence, where
    ρ_t = 1 − (W − mean autocovariance_t)/Var⁺ also counts disagreement between chains. ``"mean"`` is for the mean of x,
    ``"bulk"`` works on normal scores of ranks and exists for heavy tails too.

    >>> ess(np.ones((4, 100)))
    array(400.)

    Args:
        x: draws [..., chain, draw].
        method: "bulk" or "mean".

    Returns:
        Effective sample size [...]; C·N where all draws are equal; NaN with fewer than 4 draws or non-finite draws.

    Raises:
        InputError: ``method`` is neither, or ``x`` is not an array [..., chain, draw].
    """
    if method not in ("bulk", "mean"):
        raise InputError(f"ess: method must be 'bulk' or 'mean'; got {method!r}.")
    values, usable = _usable(x)
    halves = _split(values)
    return _result(_ess(_normal_scores(halves) if method == "bulk" else halves)[0], usable)


def mcse(x: ArrayLike) -> np.ndarray:
    """Monte-Carlo standard error of the mean, sd(x)/√ess_mean(x), for chains that are independent of each other.

    For chains that share minibatches it is too small; :func:`standard_error` is not.

    >>> mcse(np.ones((4, 100)))
    array(0.)

    Args:
        x: draws [..., chain, draw].

    Returns:
        Standard error [...]; NaN with fewer than 4 draws or non-finite draws.
    """
    values, usable = _usable(x)
    return _result(_mcse(values), usable)


def standard_error(x: ArrayLike, discard: float = 0.0, shared: bool = True) -> np.ndarray:
    """Standard error of the mean over chains and draws, also for chains that share minibatches; ±1.96 of it cover 95 %.

    SE = max( t(C·ν)·mcse(x), t(ν)·√V ), with

    - V = [γ̂_0 + 2 Σ_{k≤T} γ̂_k] / (N (1 − (2T+1)/N)): the long-run variance of the series of *chain means*, so that
      whatever chains have in common (minibatch noise) is counted once and not averaged away. T is the lag at which
      Geyer's initial positive sequence, found from all chains together, ends; the last factor undoes the bias that
      comes from subtracting the estimated mean (it is kept above 0.2);
    - mcse: the pooled error for independent chains, the steadier of the two when chains are independent, and the one
      that sees chains sitting at different levels;
    - ν = N/(2T+1): about how many independent pieces N draws make, the degrees of freedom of V, C·ν those of mcse.
      t(ν) = 1 + 1.21/ν + 1.44/ν² + 1.30/ν³ (ν ≥ 2) is the ratio of the 97.5 % quantiles of Student's t and the normal:
      an error estimated from few pieces is often too small, and without this factor ±1.96 errors cover as little as
      80 %. For long chains t → 1 and what is reported is the plain standard error.

    Measured coverage of mean ± 1.96·SE on AR(1) chains and on sums of squares of them, 1, 2 or 4 chains of which none,
    half or 90 % of the noise is shared: 90-98 % for 200 to 1000 draws and autocorrelation up to 0.95 at lag 1. For 20 to
    50 draws: 91-99.8 % at autocorrelation up to 0.5, but 78-99 % at 0.9, where the draws hold one or two independent
    pieces and no formula can know more than they show; R-hat and :func:`geweke` are there to say so.

    >>> series = np.sin(np.arange(400.0))
    >>> bool(standard_error([series, series]) >= mcse([series, series]))
    True

    Args:
        x: draws [..., chain, draw]; one chain is enough.
        discard: share of the draws, at the beginning, from which the noise is not estimated. A chain that starts at w*
            first rises to its level; that rise is bias, not noise, but looks like long autocorrelation and would make
            the error several times too large. The result is still for the mean over all draws.
        shared: whether chains may have noise in common. On full batches they have none: then the error is t(C·ν)·mcse
            alone, and with many chains of few draws several times smaller.

    Returns:
        Standard error [...]; NaN with fewer than 4 draws or non-finite draws.
    """
    values, usable = _usable(x)
    whole = values.shape[-1]
    values = values[..., int(discard * whole) :]
    chains, draws = values.shape[-2:]
    width = 2 * (2 * _ess(values)[1] + 1) + 1
    series = _autocovariance(values.mean(axis=-2))
    lags = np.arange(draws)
    weights = np.where(lags == 0, 1, 2) * (2 * lags < width[..., None])
    long_run = (
        np.maximum((series * weights).sum(-1), 0) / draws / np.maximum(1 - width / draws, 0.2)
    )
    pieces = draws / width
    error = _student(chains * pieces) * _mcse(values)
    if shared:
        error = np.maximum(error, _student(pieces) * np.sqrt(long_run))
    return _result(error * np.sqrt(draws / whole), usable)


def geweke(x: ArrayLike, first: float = 0.1, last: float = 0.5) -> np.ndarray:
    """Drift of the trace in standard errors: (mean of the first part − mean of the last part)/SE, over all chains.

    Near N(0, 1) when the draws are stationary; below −3 the trace still rises, as it does when burn-in is too short.
    The error of both means comes from the last part, which is nearest to equilibrium:
    SE² = SE_last²·(1 + n_last/n_first), with :func:`standard_error`.

    >>> trace = 1 - np.exp(-np.arange(200.0) / 20) + 0.1 * np.random.default_rng(0).standard_normal(200)
    >>> bool(geweke([trace]) < -3)
    True

    Args:
        x: draws [..., chain, draw].
        first: share of the draws at the beginning (Geweke's 10 %).
        last: share of the draws at the end (Geweke's 50 %); the two may not overlap.

    Returns:
        z [...]; 0 where all draws are equal; NaN where the last part has fewer than 4 draws or draws are not finite.

    Raises:
        InputError: a share is not in (0, 1), or they overlap.

    Reference: Geweke (1992), Evaluating the accuracy of sampling-based approaches to the calculation of posterior
    moments.
    """
    if not (0 < first < 1 and 0 < last < 1 and first + last <= 1):
        raise InputError(
            f"geweke: first and last must be shares in (0, 1) with first + last ≤ 1; got {first} and {last}."
        )
    values = _draws(x)
    num_first, num_last = (
        max(1, int(first * values.shape[-1])),
        max(1, int(last * values.shape[-1])),
    )
    end = values[..., -num_last:]
    change = values[..., :num_first].mean(axis=(-2, -1)) - end.mean(axis=(-2, -1))
    error = standard_error(end) * np.sqrt(1 + num_last / num_first)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where((change == 0) & (error == 0), 0.0, change / error)
    return _result(z, np.isfinite(values).all(axis=(-2, -1)))


def spikes(x: ArrayLike) -> np.ndarray:
    """How many draws stand far outside the distribution of the others: more than 30 times (90 % quantile − median) above it.

    The losses that a chain sees near a minimum are Gamma distributed. Of Gamma(½), one direction, a draw is that far out
    once in 10¹⁵, of Gamma(¼) once in 10¹⁰; a chain that was thrown up a cliff by too large a step is, often.

    >>> int(spikes([[*range(100), 1e4]]))
    1

    Args:
        x: draws [..., chain, draw].

    Returns:
        Counts [...], as floats; NaN with fewer than 4 draws or non-finite draws.
    """
    values, usable = _usable(x)
    flat = values.reshape(*values.shape[:-2], -1)
    middle, high = np.quantile(flat, 0.5, axis=-1), np.quantile(flat, 0.9, axis=-1)
    return _result(
        (flat - middle[..., None] > 30 * (high - middle)[..., None]).sum(-1).astype(np.float64),
        usable,
    )


def variance_reading(x: ArrayLike, noise: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """λ read from the *variance* of nβ(ℓ − ℓ*) over draws, and the standard error of that: a second reading without a baseline.

    Where λ̂ has its asymptotic meaning nβ(ℓ(v) − ℓ(w*)) is Gamma(λ, 1) distributed, so its variance is λ as well as its
    mean, and a constant error of the loss at w* does not matter. A Gaussian prior makes the variance the smaller: with
    sᵢ = nβhᵢ/(nβhᵢ + γ) on a quadratic the mean is ½Σsᵢ, the variance ½Σsᵢ². So variance/mean is the average sᵢ of the
    directions that count, and 1 minus it, how far the prior has shrunk λ̂.

    Var − mean noise, the variance of all draws over chains, divided by 1 − 1/ess because their own mean was subtracted.

    >>> x = np.random.default_rng(0).gamma(3.0, size=(4, 1000))
    >>> [round(float(v), 1) for v in variance_reading(x, np.zeros_like(x))]
    [3.1, 0.1]

    Args:
        x: nβ(ℓ_B − ℓ*_B) [..., chain, draw], on minibatches or not.
        noise: same shape: what of each draw's variance is due to the choice of its minibatch (0 on full batches).

    Returns:
        Reading and its standard error, [...]; NaN with fewer than 4 draws, non-finite draws or noise.
    """
    values, usable = _usable(x)
    removed = np.broadcast_to(np.asarray(noise, dtype=np.float64), np.shape(x))
    usable = usable & np.isfinite(removed).all(axis=(-2, -1))
    removed = (
        np.where(usable[..., None, None], removed, 0.0)
        if removed.shape == values.shape
        else np.zeros_like(values)
    )
    squares = (values - values.mean(axis=(-2, -1), keepdims=True)) ** 2 - removed
    lost = 1 - 1 / np.maximum(_ess(_split(values))[0], 2.0)
    return _result(squares.mean(axis=(-2, -1)) / lost, usable), _result(
        standard_error(squares) / lost, usable
    )


def _draws(x: ArrayLike) -> np.ndarray:
    values = np.asarray(x)
    if values.ndim < 2 or values.dtype.kind not in "iuf" or 0 in values.shape[-2:]:
        raise InputError(
            f"rllc.diagnostics: expected real numbers [..., chain, draw] with at least one chain and draw; got shape "
            f"{list(values.shape)}, dtype {values.dtype}. For one chain type x[None]."
        )
    return values.astype(np.float64)


def _usable(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Draws, the unusable (non-finite, or too few) replaced by zeros, and which of the leading axes are usable."""
    values = _draws(x)
    usable = np.isfinite(values).all(axis=(-2, -1)) & (values.shape[-1] >= _MIN_DRAWS)
    if values.shape[-1] < _MIN_DRAWS:
        values = np.zeros((*values.shape[:-1], _MIN_DRAWS))
    return np.where(usable[..., None, None], values, 0.0), usable


def _result(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    return np.where(usable, values, np.nan)


def _split(x: np.ndarray) -> np.ndarray:
    """[..., chain, draw] -> [..., 2·chain, draw // 2]; the middle draw of an odd number is left out."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], axis=-2)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Φ⁻¹((rank − 3/8)/(S + 1/4)) of every value among the S of its chains (Blom 1958), ties at their mean rank."""
    flat = x.reshape(-1, x.shape[-2] * x.shape[-1])
    ranks = np.empty_like(flat)
    for row, rank in zip(flat, ranks, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        rank[:] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    share = torch.from_numpy((ranks - 0.375) / (flat.shape[-1] + 0.25))
    return torch.special.ndtri(share).numpy().reshape(x.shape)


def _plain_rhat(x: np.ndarray) -> np.ndarray:
    draws = x.shape[-1]
    between = x.mean(-1).var(-1, ddof=1)
    within = x.var(-1, ddof=1).mean(-1)
    return np.sqrt(between / within + (draws - 1) / draws)


def _mcse(x: np.ndarray) -> np.ndarray:
    return x.std(axis=(-2, -1), ddof=1) / np.sqrt(_ess(_split(x))[0])


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Autocovariances [..., lag] of x [..., draw] about its mean, divided by the number of draws at every lag."""
    draws = x.shape[-1]
    spectrum = np.fft.rfft(
        x - x.mean(-1, keepdims=True), n=2 ** (2 * draws - 1).bit_length(), axis=-1
    )
    return np.fft.irfft(np.abs(spectrum) ** 2, axis=-1)[..., :draws] / draws


def _ess(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample size [...] of chains as they are, and how many pairs of lags Geyer's sequence has."""
    chains, draws = x.shape[-2:]
    covariance = _autocovariance(x).mean(-2)
    total = covariance[..., 0] + (x.mean(-1).var(-1, ddof=1) if chains > 1 else 0.0)
    constant = np.ptp(x, axis=(-2, -1)) < 1e-15  # arviz's threshold
    within = covariance[..., :1] * draws / (draws - 1)
    rho = 1 - (within - covariance) / np.where(constant, 1.0, total)[..., None]
    rho[..., 0] = 1.0
    time, pairs = _geyer(rho)
    size = chains * draws
    return np.where(constant, size, size / np.maximum(time, 1 / np.log10(size))), pairs


def _geyer(rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """τ = −1 + 2Σρ over Geyer's initial monotone sequence of pairs ρ_2j + ρ_2j+1, and how many pairs it has.

    The sequence ends before the first pair that is not positive, or where lags run out; the even lag after it is added
    if positive (the improvement of Vehtari et al.), which matters for antithetic chains.
    """
    num_pairs = rho.shape[-1] // 2
    even = rho[..., 0 : 2 * num_pairs : 2]
    pairs = even + rho[..., 1 : 2 * num_pairs : 2]
    limit = max(0, (rho.shape[-1] - 3) // 2)
    ended = pairs[..., : limit + 1] <= 0
    ended[..., limit] = True
    end = ended.argmax(-1)
    monotone = np.minimum.accumulate(pairs, axis=-1) * (np.arange(num_pairs) < end[..., None])
    next_even = np.take_along_axis(even, end[..., None], -1)[..., 0]
    next_pair = np.take_along_axis(pairs, end[..., None], -1)[..., 0]
    return -1 + 2 * monotone.sum(-1) + np.where(
        (next_even > 0) | (next_pair >= 0), next_even, 0.0
    ), end


def _student(freedom: np.ndarray) -> np.ndarray:
    """97.5 % quantile of Student's t over that of the normal (Cornish-Fisher; within 4 % from 2 degrees of freedom)."""
    nu = np.maximum(freedom, 2.0)
    z2 = 1.959963984540054**2
    second, third = (5 * z2**2 + 16 * z2 + 3) / 96, (3 * z2**3 + 19 * z2**2 + 17 * z2 - 15) / 384
    return 1 + (z2 + 1) / (4 * nu) + second / nu**2 + third / nu**3
