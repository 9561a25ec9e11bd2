"""Autocovariances of chains ``[..., chain, draw]``, and what the prior's relaxation says of them.

No direction of a convex loss relaxes slower than the prior lets it: of one draw of λ̂ the next
remembers the share r = (1 − εγ/2)² at most (:func:`rllc.statistics.biases.relaxation`). Chains of
one refinement have the same mean at every draw, so their deviations from their common mean need no
further centring, and their autocovariances are unbiased however short the chains.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError

FEWEST_DRAWS = 4
"""With fewer draws there is no lag at which to see a correlation."""


def finite_draws(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Draws with zeros in place of rows that are not finite, and which rows are finite, ``[...]``.

    Raises:
        InputError: ``x`` is not an array of real numbers ``[..., chain, draw]``.
    """
    x = np.asarray(x)
    is_real = x.dtype.kind in "iuf"
    is_empty = 0 in x.shape[-2:]
    if x.ndim < 2 or not is_real or is_empty:
        raise InputError(
            f"expected real numbers [..., chain, draw] with at least one chain "
            f"and one draw; got shape {list(x.shape)}, dtype {x.dtype}. For one chain type x[None]."
        )
    x = x.astype(np.float64)
    is_finite = np.isfinite(x).all(axis=(-2, -1))
    x = np.where(is_finite[..., None, None], x, 0.0)
    return x, is_finite


def check_relaxation(relaxation: float | None) -> None:
    """Refuse what is not a correlation of successive draws."""
    if relaxation is not None and not 0 <= relaxation < 1:
        raise InputError(
            f"relaxation is the correlation of successive draws in the slowest "
            f"direction, 0 ≤ r < 1; got {relaxation}."
        )


def deviations(x: np.ndarray) -> np.ndarray:
    """Deviations from the mean over chains, scaled to the variance of what chains do not share."""
    chains = x.shape[-2]
    scale = math.sqrt(chains / (chains - 1))
    mean_of_chains = x.mean(-2, keepdims=True)
    return scale * (x - mean_of_chains)


def autocovariance(x: np.ndarray) -> np.ndarray:
    """Autocovariances ``[..., lag]`` averaged over chains, of draws whose mean is 0 already."""
    draws = x.shape[-1]
    # Padding with as many zeros keeps the end of a chain from meeting its beginning.
    waves = np.fft.rfft(x, n=2 * draws, axis=-1)
    spectrum = np.square(np.abs(waves))
    spectrum = spectrum.mean(-2)
    sums = np.fft.irfft(spectrum, axis=-1)
    num_pairs = draws - np.arange(draws)
    return sums[..., :draws] / num_pairs


def shared_variance(x: np.ndarray) -> np.ndarray:
    """S ``[...]``: half the mean covariance of different chains' steps, 0 at least."""
    chains = x.shape[-2]
    steps = np.diff(x, axis=-1)
    square_of_sum = np.square(steps.sum(-2))
    sum_of_squares = np.square(steps).sum(-2)
    # (Σ_c s_c)² − Σ_c s_c² is the sum over all pairs of different chains.
    sum_over_pairs = square_of_sum - sum_of_squares
    num_pairs = chains * (chains - 1)
    covariance = sum_over_pairs.mean(-1) / num_pairs
    return np.maximum(covariance / 2, 0)


def slow_and_white(
    covariance: np.ndarray, relaxation: float, centred: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Fit autocovariances ``[..., lag]`` by A·r^lag, plus white at lag 0: A and white, ``[...]``.

    ``centred`` says that each chain's own mean was subtracted, which lowers every lag alike.
    """
    draws = covariance.shape[-1]
    lags = np.arange(draws)
    decay = relaxation**lags
    if centred:
        decay = decay - relaxation_time(relaxation, draws) / draws
    if decay[0] == 0:  # one draw less its own mean is always 0
        unknown = np.full(covariance.shape[:-1], np.nan)
        return unknown, unknown
    total = covariance[..., 0] / decay[0]
    fitted = slice(1, _last_fitted_lag(relaxation, draws) + 1)
    fitted_decay = decay[fitted]
    num_pairs = draws - lags[fitted]
    weights = num_pairs * fitted_decay
    norm = np.sum(weights * fitted_decay)
    if norm == 0:
        return np.zeros_like(total), total
    weighted = covariance[..., fitted] * weights
    amplitude = weighted.sum(-1) / norm
    amplitude = np.clip(amplitude, 0, total)
    return amplitude, total - amplitude


def _last_fitted_lag(relaxation: float, draws: int) -> int:
    """The last lag within three relaxation times; beyond them autocovariances are only noise."""
    longest = draws - 1
    if relaxation == 0:
        return longest
    three_times = math.ceil(-3 / math.log(relaxation))
    return min(longest, max(4, three_times))


def cosine_power(x: np.ndarray) -> np.ndarray:
    """X_k² ``[..., k − 1]``, k = 1 … N − 1, averaged over chains: the squared cosine transform.

    X_k = √(2/N) Σ_t x_t cos(πk(t + ½)/N). With the mean they are an orthonormal basis.
    """
    draws = x.shape[-1]
    # A chain followed by its mirror image has no jump at the end, and only cosines.
    backwards = np.flip(x, axis=-1)
    mirrored = np.concatenate([x, backwards], axis=-1)
    waves = np.fft.rfft(mirrored, axis=-1)
    spectrum = np.square(np.abs(waves))
    spectrum = spectrum.mean(-2)
    return spectrum[..., 1:draws] / (2 * draws)


def cosine_variances(relaxation: float, draws: int) -> np.ndarray:
    """The variances ``[k − 1]`` of X_k for draws with autocovariances r^lag.

    With θ = πk/N they are 1 + 2Σ_{0<l<N} r^l [(1 − l/N)·cos(lθ) − sin(lθ)/(N sin θ)], the bracket
    being Σ_t of the product of the k-th cosine's values at t and t + l.
    """
    lags = np.arange(draws)
    decay = relaxation ** lags.astype(np.float64)
    overlap = 1 - lags / draws
    # A Fourier transform gives the sums over lags of cosines and of sines for all k at once.
    transform_of_overlaps = np.fft.rfft(decay * overlap, n=2 * draws)
    transform = np.fft.rfft(decay, n=2 * draws)
    cosine_sums = transform_of_overlaps.real[1:draws]
    sine_sums = -transform.imag[1:draws]
    k = np.arange(1, draws)
    angles = np.pi / draws * k
    sine_terms = sine_sums / (draws * np.sin(angles))
    return 2 * cosine_sums - 1 - 2 * sine_terms


def pieces(relaxation: float, draws: int) -> float:
    """N(1 − r)/(1 + r): as how many independent draws N draws of a chain count, at least 1."""
    independent = draws * (1 - relaxation) / (1 + relaxation)
    return max(1.0, independent)


def relaxation_time(relaxation: float, draws: int) -> float:
    """τ_N = 1 + 2Σ_{0<k<N}(1 − k/N) r^k."""
    lags = np.arange(1, draws)
    overlap = 1 - lags / draws
    later = np.sum(overlap * relaxation**lags)
    return 1 + 2 * float(later)
