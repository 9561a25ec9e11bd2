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
"""Sizes of Metropolis steps in the logarithms of amplitude, length scale and noise."""


class Values(NamedTuple):
    """Values to smooth, at places, with the known part of their noise."""

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
    lowest, highest = bounds.T
    starts = [start.clip(lowest, highest) for start in _starts(values.x)]
    logs = max(starts, key=lambda start: _log_likelihood(values, start, bounds))
    log_likelihood = _log_likelihood(values, logs, bounds)
    processes = []
    num_steps = _STEPS_FIRST + _STEPS_BETWEEN * _PROCESSES
    for step in range(num_steps):
        proposal = logs + stream.standard_normal(3) * _STEP_SIZES
        proposed = _log_likelihood(values, proposal, bounds)
        log_ratio = proposed - log_likelihood
        if np.log(stream.random()) < log_ratio:
            logs = proposal
            log_likelihood = proposed
        if step >= _STEPS_FIRST and step % _STEPS_BETWEEN == 0:
            processes.append(logs)
    return np.exp(processes)


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
    edges = np.linspace(0, num_samples, len(processes) + 1)
    edges = edges.round().astype(int)
    samples_of_process = np.diff(edges)
    means = []
    variances = []
    slopes = []
    slope_variances = []
    samples = []
    for process, count in zip(processes, samples_of_process, strict=True):
        amplitude, length, noise = process
        variance_of_noise = values.known_error**2 + noise**2
        curve = posterior(values.x, values.y, variance_of_noise, amplitude, length, grid)
        variance = np.diag(curve.covariance)
        slope_variance = np.diag(curve.slope_covariance)
        means.append(curve.mean)
        variances.append(variance.clip(0))
        slopes.append(curve.slope)
        slope_variances.append(slope_variance.clip(0))
        samples.append(_sample(curve.slope, curve.slope_covariance, count, stream))
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
    of_values = _kernel(x, x, amplitude, length) + np.diag(noise)
    root = np.linalg.cholesky(of_values)
    white = np.linalg.solve(root, y)
    across = _kernel(grid, x, amplitude, length)
    distance_to_values = grid[:, None] - x[None]
    slope_across = -distance_to_values / length**2 * across
    prior = _kernel(grid, grid, amplitude, length)
    distance = grid[:, None] - grid[None]
    factor = 1 / length**2 - distance**2 / length**4
    slope_prior = factor * prior
    # Covariances of smooth curves are singular to rounding.
    smallest_variance = 1e-8 * slope_prior[0, 0]
    slope_prior += smallest_variance * np.eye(len(grid))
    explained = np.linalg.solve(root, across.T)
    slope_explained = np.linalg.solve(root, slope_across.T)
    return Posterior(
        mean=explained.T @ white,
        covariance=prior - explained.T @ explained,
        slope=slope_explained.T @ white,
        slope_covariance=slope_prior - slope_explained.T @ slope_explained,
    )


def _kernel(x: np.ndarray, z: np.ndarray, amplitude: float, length: float) -> np.ndarray:
    distance = x[:, None] - z[None]
    exponent = -(distance**2) / (2 * length**2)
    return amplitude**2 * np.exp(exponent)


def _bounds(x: np.ndarray) -> np.ndarray:
    """Return the lowest and highest logarithm ``[3, 2]`` of amplitude, length scale and noise."""
    span = x[-1] - x[0]
    # Two values cannot tell a shorter wiggle from noise.
    usual_gap = float(np.median(np.diff(x)))
    shortest = min(2 * usual_gap, span / 4)
    amplitudes = (0.05, 20.0)
    lengths = (shortest, 3 * span)
    noises = (1e-3, 3.0)
    return np.log([amplitudes, lengths, noises])


def _starts(x: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a coarse grid of logarithms; the chain starts at the likeliest."""
    span = x[-1] - x[0]
    for amplitude in (1, 3):
        for parts in (1, 2, 4, 8, 16, 32):
            for noise in (0.01, 0.1, 0.5, 1):
                yield np.log([amplitude, span / parts, noise])


def _log_likelihood(values: Values, logs: np.ndarray, bounds: np.ndarray) -> float:
    lowest, highest = bounds.T
    if np.any(logs < lowest) or np.any(logs > highest):
        return -np.inf
    amplitude, length, noise = np.exp(logs)
    variance_of_noise = values.known_error**2 + noise**2
    covariance = _kernel(values.x, values.x, amplitude, length)
    covariance = covariance + np.diag(variance_of_noise)
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        # Too smooth for its noise, to rounding.
        return -np.inf
    white = np.linalg.solve(root, values.y)
    half_log_determinant = np.log(np.diag(root)).sum()
    return float(-0.5 * white @ white - half_log_determinant)


def _sample(
    mean: np.ndarray,
    covariance: np.ndarray,
    count: int,
    stream: np.random.Generator,
) -> np.ndarray:
    """Draw ``[sample, point]`` from a normal law."""
    root = np.linalg.cholesky(covariance)
    normal = stream.standard_normal((count, len(mean)))
    return mean + normal @ root.T
