"""k-Shape: clusters of curves of one shape, which each curve may have at another time.

The code is our own, because tslearn's k-Shape takes from 20 seconds to minutes to compile in each
process before it first runs. A test compares the results with the authors' package.

Reference: Paparrizos and Gravano 2015, "k-Shape".
"""

from __future__ import annotations

import numpy as np

_STARTS = 10
"""Runs from random starts, of which the best is kept."""

_MOST_ROUNDS = 100


def k_shape(values: np.ndarray, num_clusters: int, seed: int) -> np.ndarray | None:
    """Return the best labels ``[curve]`` of several runs.

    Centres and curves in turn: each curve joins the centre at the smallest shape-based distance;
    each centre becomes the shape that correlates most with its curves, shifted to fit the centre
    they had.

    >>> k_shape(standardised(np.array([[0, 1, 0, 0.0], [0, 0, 1, 0], [0, 1, 2, 3]])), 2, seed=0)
    array([1, 1, 0])

    Args:
        values: ``[curve, point]``, standardised.
        num_clusters: how many.
        seed: of the random starts.

    Returns:
        ``None`` when each run left a cluster without members.
    """
    stream = np.random.default_rng(seed)
    best_labels = None
    lowest_cost = np.inf
    for _ in range(_STARTS):
        chosen = stream.choice(len(values), num_clusters, replace=False)
        labels, cost = _run(values, values[chosen])
        all_have_members = _count(labels) == num_clusters
        if all_have_members and cost < lowest_cost:
            best_labels = labels
            lowest_cost = cost
    return best_labels


def shape_distances(curves: np.ndarray) -> np.ndarray:
    """Return 1 − the largest normalised cross-correlation of each pair of curves over all shifts.

    >>> curves = np.array([[0.0, 1, 0, 0], [0, 0, 2, 0], [0, -1, 0, 0]])
    >>> shape_distances(curves).round(3)[0]
    array([0., 0., 1.])

    Args:
        curves: ``[curve, point]``, standardised. A curve of zeros is at distance 1 from all others.

    Returns:
        ``[curve, curve]``, in 0 … 2.

    Reference: Paparrizos and Gravano 2015, "k-Shape", equation 9.
    """
    best_correlations = _correlations(curves, curves).max(axis=-1)
    distances = 1 - best_correlations
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0)
    return distances.clip(0, 2)


def standardised(values: np.ndarray) -> np.ndarray:
    """Give each curve ``[curve, point]`` mean 0 and variance 1; a constant one becomes zeros."""
    mean = values.mean(axis=1, keepdims=True)
    deviation = values.std(axis=1, keepdims=True)
    return divided(values, mean, deviation)


def divided(values: np.ndarray, start: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return (values − start)/spread, and zeros for curves without a spread."""
    # A constant curve has no shape, only rounding.
    largest = np.abs(values).max(axis=1, keepdims=True)
    is_flat = spread <= 1e-12 * largest
    divisor = np.where(is_flat, 1.0, spread)
    quotient = (values - start) / divisor
    return np.where(is_flat, 0.0, quotient)


def _run(values: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """Return labels ``[curve]``, and the sum of squared distances to the centres."""
    labels = np.full(len(values), -1)
    for _ in range(_MOST_ROUNDS):
        correlations = _correlations(centers, values)  # [center, curve, shift]
        previous_labels = labels
        best_correlations = correlations.max(axis=-1)  # [center, curve]
        labels = best_correlations.argmax(axis=0)
        distances = 1 - best_correlations.max(axis=0)
        cost = float((distances**2).sum())
        has_settled = np.array_equal(previous_labels, labels)
        has_empty_cluster = _count(labels) < len(centers)
        if has_settled or has_empty_cluster:
            break
        shifts = correlations.argmax(axis=-1)
        shapes = []
        for center, shifts_to_center in enumerate(shifts):
            is_member = labels == center
            shape = _shape(values[is_member], shifts_to_center[is_member])
            shapes.append(shape)
        centers = np.stack(shapes)
    return labels, cost


def _shape(curves: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return the curve whose squared correlations with the shifted curves have the largest sum."""
    length = curves.shape[1]
    # What is shifted out of a curve leaves zeros.
    zeros = np.zeros_like(curves)
    padded = np.concatenate([curves, zeros], axis=1)
    points = np.arange(length)
    source_points = (points - shifts[:, None]) % (2 * length)  # [curve, point]
    shifted = np.take_along_axis(padded, source_points, axis=1)
    shifted = standardised(shifted)
    _, vectors = np.linalg.eigh(shifted.T @ shifted)
    shape = vectors[:, -1]
    # An eigenvector has no sign.
    correlations = shifted @ shape
    if correlations.sum() < 0:
        shape = -shape
    return standardised(shape[None])[0]


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Σ_t a[t] b[t − shift] / (‖a‖ ‖b‖) as ``[a, b, shift]``.

    Shifts are 0, 1, …, and the negative ones behind, as in an FFT.
    """
    spectrum_of_a = _spectrum(a)[:, None]
    spectrum_of_b = _spectrum(b)[None]
    cross_spectrum = spectrum_of_a * spectrum_of_b.conj()
    return np.fft.irfft(cross_spectrum, 2 * a.shape[1])


def _spectrum(curves: np.ndarray) -> np.ndarray:
    """Transform curves of unit length, with zeros behind, so that nothing wraps round."""
    norms = np.linalg.norm(curves, axis=1, keepdims=True)
    divisors = np.where(norms > 0, norms, 1)
    of_unit_length = curves / divisors
    return np.fft.rfft(of_unit_length, 2 * curves.shape[1])


def _count(labels: np.ndarray) -> int:
    """The number of clusters with members."""
    return len(set(labels.tolist()))
