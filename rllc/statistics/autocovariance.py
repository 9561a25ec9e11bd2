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
    """Draws with zeros in place of rows that are not finite, and which rows are finite."""
    x = np.asarray(x)
    is_real = x.dtype.kind in "iuf"
    is_empty = 0 in x.shape[-2:]
    if x.ndim < 2 or not is_real or is_empty:
        raise InputError(
            f"expected real numbers [..., chain, draw] with at least one chain "
            f"and one draw; got shape {list(x.shape)}, dtype {x.dtype}."
        )
    x = x.astype(np.float64)
    finite = np.isfinite(x).all(axis=(-2, -1))
    finite_row = finite[..., None, None]
    x = np.where(finite_row, x, 0.0)
    return x, finite


def check_relaxation(relaxation: float | None) -> None:
    """Refuse what is not a correlation of successive draws."""
    if relaxation is not None and not 0 <= relaxation < 1:
        raise InputError(
            f"relaxation is the correlation of successive draws in the slowest "
            f"direction, 0 ≤ r < 1; got {relaxation}."
        )


def deviations(x: np.ndarray) -> np.ndarray:
    """Deviations from the mean over chains, scaled to the variance of the chains' own part."""
    chains = x.shape[-2]
    scale = math.sqrt(chains / (chains - 1))
    common = x.mean(-2, keepdims=True)
    return scale * (x - common)


def autocovariance(x: np.ndarray) -> np.ndarray:
    """Autocovariances ``[..., lag]`` averaged over chains, of draws whose mean is 0 already."""
    draws = x.shape[-1]
    # Padding with as many zeros keeps the end of a chain from meeting its beginning.
    waves = np.fft.rfft(x, n=2 * draws, axis=-1)
    spectrum = np.square(np.abs(waves))
    spectrum = spectrum.mean(-2)
    sums = np.fft.irfft(spectrum, axis=-1)
    pairs = draws - np.arange(draws)
    return sums[..., :draws] / pairs


def shared_variance(x: np.ndarray) -> np.ndarray:
    """S ``[...]``: half the mean covariance of different chains' steps, 0 at least."""
    chains = x.shape[-2]
    steps = np.diff(x, axis=-1)
    square_of_sum = np.square(steps.sum(-2))
    sum_of_squares = np.square(steps).sum(-2)
    # (Σ_c s_c)² − Σ_c s_c² is the sum over all pairs of different chains.
    products = square_of_sum - sum_of_squares
    ordered_pairs = chains * (chains - 1)
    covariance = products.mean(-1) / ordered_pairs
    return np.maximum(covariance / 2, 0)


def slow_and_white(
    covariance: np.ndarray, relaxation: float, centred: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A and white ``[...]`` in autocovariances ``[..., lag]`` of A·r^k, plus white at lag 0.

    ``centred`` says that each chain's own mean was subtracted, which lowers every lag alike.
    """
    draws = covariance.shape[-1]
    lags = np.arange(draws)
    shape = relaxation**lags
    if centred:
        shape = shape - relaxation_time(relaxation, draws) / draws
    # Beyond three relaxation times there is nothing left to fit but noise.
    last = draws - 1
    if relaxation > 0:
        three_times = math.ceil(-3 / math.log(relaxation))
        three_times = max(4, three_times)
        last = min(last, three_times)
    fitted = slice(1, last + 1)
    fitted_shape = shape[fitted]
    pairs = draws - lags[fitted]
    weights = pairs * fitted_shape
    norm = np.sum(weights * fitted_shape)
    if shape[0] == 0:  # of one draw nothing is left without its own mean
        rows = covariance.shape[:-1]
        unknown = np.full(rows, np.nan)
        return unknown, unknown
    total = covariance[..., 0] / shape[0]
    if norm == 0:
        return np.zeros_like(total), total
    weighted = covariance[..., fitted] * weights
    amplitude = weighted.sum(-1) / norm
    amplitude = np.clip(amplitude, 0, total)
    return amplitude, total - amplitude


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
    memory = relaxation ** lags.astype(np.float64)
    overlap = 1 - lags / draws
    # Sums over lags of a cosine and of a sine are the two parts of a Fourier transform.
    with_overlap = np.fft.rfft(memory * overlap, n=2 * draws)
    without = np.fft.rfft(memory, n=2 * draws)
    cosines = with_overlap.real[1:draws]
    sines = -without.imag[1:draws]
    k = np.arange(1, draws)
    angles = np.pi / draws * k
    ends = sines / (draws * np.sin(angles))
    return 2 * cosines - 1 - 2 * ends


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
