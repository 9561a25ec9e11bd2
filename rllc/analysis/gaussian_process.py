"""A curve in noise as a Gaussian process: its mean, its slope, and how sure both are.

The kernel is a² exp(−(x − x′)²/2l²). The noise of each value has the variance that is known of it,
plus s². Values have mean 0 and variance 1.

Reference: Rasmussen and Williams 2006, "Gaussian processes for machine learning", sections 2.2, 5.4
and 9.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_PROCESSES = 40
"""Processes (amplitude, length scale, noise) averaged, each with its share of the samples."""

_STEPS_BETWEEN = 25
"""Metropolis steps from one kept process to the next."""

_STEPS_FIRST = 10 * _STEPS_BETWEEN
"""Metropolis steps before the first process is kept."""

_STEP_SIZES = (0.4, 0.2, 0.2)
"""Of Metropolis steps, in the logarithms of amplitude, length scale and noise."""


class Values(NamedTuple):
    """What is smoothed: values at places, with what is known of their noise."""

    x: np.ndarray
    """``[value]``, rising."""
    y: np.ndarray
    """``[value]``, of mean 0 and variance 1."""
    known_error: np.ndarray
    """``[value]``: standard errors; noise comes on top of them."""


class Posterior(NamedTuple):
    """A curve and its slope on a grid, given values, for one process."""

    mean: np.ndarray
    """``[point]``."""
    covariance: np.ndarray
    """``[point, point]``."""
    slope: np.ndarray
    """``[point]``."""
    slope_covariance: np.ndarray
    """``[point, point]``."""


class Smoothed(NamedTuple):
    """A curve and its slope on a grid, averaged over processes."""

    mean: np.ndarray
    """``[point]``, and so the next three."""
    variance: np.ndarray
    slope: np.ndarray
    slope_variance: np.ndarray
    slope_samples: np.ndarray
    """``[sample, point]``: slopes of curves drawn from the posterior."""


def sample_processes(values: Values, stream: np.random.Generator) -> np.ndarray:
    """Draw amplitudes, length scales and noises ``[process, 3]`` from their posterior.

    By Metropolis steps in their logarithms, whose prior is flat between bounds.
    """
    bounds = _bounds(values.x)
    starts = [start.clip(*bounds.T) for start in _starts(values.x)]
    place = max(starts, key=lambda start: _log_likelihood(values, start, bounds))
    height = _log_likelihood(values, place, bounds)
    kept = []
    for step in range(_STEPS_FIRST + _STEPS_BETWEEN * _PROCESSES):
        proposal = place + stream.standard_normal(3) * _STEP_SIZES
        height_there = _log_likelihood(values, proposal, bounds)
        if np.log(stream.random()) < height_there - height:
            place = proposal
            height = height_there
        if step >= _STEPS_FIRST and step % _STEPS_BETWEEN == 0:
            kept.append(place)
    return np.exp(kept)


def smooth(
    values: Values,
    processes: np.ndarray,
    grid: np.ndarray,
    num_samples: int,
    stream: np.random.Generator,
) -> Smoothed:
    """Average curve and slope over processes ``[process, 3]``, and sample slopes.

    The variance is that within processes plus that of their means.
    """
    edges = np.linspace(0, num_samples, len(processes) + 1).round().astype(int)
    means, variances = [], []
    slopes, slope_variances = [], []
    samples = []
    for process, num_own_samples in zip(processes, np.diff(edges), strict=True):
        amplitude, length, noise = process
        variance_of_noise = values.known_error**2 + noise**2
        curve = posterior(values.x, values.y, variance_of_noise, amplitude, length, grid)
        means.append(curve.mean)
        variances.append(np.diag(curve.covariance).clip(0))
        slopes.append(curve.slope)
        slope_variances.append(np.diag(curve.slope_covariance).clip(0))
        samples.append(_sample(curve.slope, curve.slope_covariance, num_own_samples, stream))
    return Smoothed(
        mean=np.mean(means, 0),
        variance=np.mean(variances, 0) + np.var(means, 0),
        slope=np.mean(slopes, 0),
        slope_variance=np.mean(slope_variances, 0) + np.var(slopes, 0),
        slope_samples=np.concatenate(samples),
    )


def posterior(
    x: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    amplitude: float,
    length: float,
    grid: np.ndarray,
) -> Posterior:
    """Return curve and slope on the grid, given ``y`` at ``x`` with noise of this variance.

    cov(f′(z), f(x)) = −(z − x)/l² k and cov(f′(z), f′(z′)) = (1/l² − (z − z′)²/l⁴) k.
    """
    root = np.linalg.cholesky(_kernel(x, x, amplitude, length) + np.diag(noise))
    white = np.linalg.solve(root, y)
    across = _kernel(grid, x, amplitude, length)
    slope_across = -(grid[:, None] - x[None]) / length**2 * across
    prior = _kernel(grid, grid, amplitude, length)
    distance = grid[:, None] - grid[None]
    slope_prior = (1 / length**2 - distance**2 / length**4) * prior
    # Covariances of smooth curves are singular to rounding.
    slope_prior += 1e-8 * slope_prior[0, 0] * np.eye(len(grid))
    explained = np.linalg.solve(root, across.T)
    slope_explained = np.linalg.solve(root, slope_across.T)
    return Posterior(
        mean=explained.T @ white,
        covariance=prior - explained.T @ explained,
        slope=slope_explained.T @ white,
        slope_covariance=slope_prior - slope_explained.T @ slope_explained,
    )


def _kernel(x: np.ndarray, z: np.ndarray, amplitude: float, length: float) -> np.ndarray:
    squares = (x[:, None] - z[None]) ** 2
    return amplitude**2 * np.exp(-squares / (2 * length**2))


def _bounds(x: np.ndarray) -> np.ndarray:
    """Return the lowest and highest logarithm ``[3, 2]`` of amplitude, length scale and noise."""
    span = x[-1] - x[0]
    # Two values cannot tell a shorter wiggle from noise.
    shortest = min(2 * float(np.median(np.diff(x))), span / 4)
    return np.log([(0.05, 20.0), (shortest, 3 * span), (1e-3, 3.0)])


def _starts(x: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a coarse grid of logarithms; the chain starts at the likeliest."""
    span = x[-1] - x[0]
    for amplitude in (1, 3):
        for parts in (1, 2, 4, 8, 16, 32):
            for noise in (0.01, 0.1, 0.5, 1):
                yield np.log([amplitude, span / parts, noise])


def _log_likelihood(values: Values, logs: np.ndarray, bounds: np.ndarray) -> float:
    if (logs < bounds[:, 0]).any() or (logs > bounds[:, 1]).any():
        return -np.inf
    amplitude, length, noise = np.exp(logs)
    covariance = _kernel(values.x, values.x, amplitude, length)
    covariance = covariance + np.diag(values.known_error**2 + noise**2)
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        # Too smooth for its noise, to rounding.
        return -np.inf
    white = np.linalg.solve(root, values.y)
    return float(-0.5 * white @ white - np.log(np.diag(root)).sum())


def _sample(
    mean: np.ndarray,
    covariance: np.ndarray,
    count: int,
    stream: np.random.Generator,
) -> np.ndarray:
    """Draw ``[sample, point]`` from a normal law."""
    normal = stream.standard_normal((count, len(mean)))
    return mean + normal @ np.linalg.cholesky(covariance).T
