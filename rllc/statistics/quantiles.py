"""Quantiles and tails of Student's t and of F on numpy arrays, without scipy.

Both distributions are regularised incomplete beta functions I_x(a, b), whose continued fraction
converges in about √max(a, b) steps.

Reference: Press, Teukolsky, Vetterling and Flannery (2007), Numerical Recipes, section 6.4.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError

_MANY = 1e6
"""Degrees of freedom above which Student's t is the normal to a few parts in a million."""

_SMALLEST = 1e-300


def student_quantile(level: float, dof: ArrayLike) -> np.ndarray:
    """The t with P(|T| ≤ t) = ``level`` for Student's T: half an interval, in standard errors.

    >>> student_quantile(0.95, [1, 3, np.inf]).round(3)
    array([12.706,  3.182,  1.96 ])

    Args:
        level: two-sided probability, between 0 and 1.
        dof: degrees of freedom [...], positive; infinity is the normal distribution.

    Returns:
        Quantiles [...], to a relative error of 1e-6 at worst; NaN where ``dof`` is NaN.

    Raises:
        InputError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"student_quantile: level must be between 0 and 1; got {level}.")
    degrees = _degrees(dof)
    normal = NormalDist().inv_cdf((1 + level) / 2)
    quantiles = np.full(degrees.shape, normal)
    quantiles[np.isnan(degrees)] = np.nan
    is_student = degrees < _MANY
    quantiles[is_student] = _solved(1 - level, normal, degrees[is_student])
    return quantiles[()]


def _solved(wanted_tail: float, first_guess: float, degrees: np.ndarray) -> np.ndarray:
    """The t beyond which Student's T has a probability, by Newton's method."""
    t = np.full(degrees.shape, first_guess)
    # The log of the tail is concave in log t. Newton's steps therefore never oscillate: the first
    # may pass the solution, all others come down to it.
    for _ in range(50):
        tail = student_tail(t, degrees)
        density = _student_density(t, degrees)
        slope = -2 * t * density / tail  # of log tail over log t
        step = (math.log(wanted_tail) - np.log(tail)) / slope
        t = t * np.exp(step)
        if not (np.abs(step) > 1e-12).any():
            break
    return t


def student_tail(t: ArrayLike, dof: ArrayLike) -> np.ndarray:
    """P(|T| > t) for Student's T: the two-sided p-value.

    >>> student_tail([0.0, 12.706], 1).round(4)
    array([1.  , 0.05])

    Args:
        t: [...], the sign does not matter.
        dof: degrees of freedom, positive, broadcast against ``t``.

    Returns:
        Probabilities [...]; NaN where an argument is NaN.
    """
    degrees = _degrees(dof)
    t = np.asarray(t, dtype=np.float64)
    share = degrees / (degrees + np.square(t))
    return incomplete_beta(share, degrees / 2, 0.5)


def f_tail(ratio: ArrayLike, dof: ArrayLike, dof_below: ArrayLike) -> np.ndarray:
    """P(F > ratio) for the ratio of two variance estimates: the p-value of an F test.

    >>> f_tail([0.0, 10.13], 1, 3).round(4)
    array([1.  , 0.05])

    Args:
        ratio: [...], not negative.
        dof: degrees of freedom of the variance above the line.
        dof_below: degrees of freedom of the variance below the line.

    Returns:
        Probabilities [...]; NaN where an argument is NaN.
    """
    above = _degrees(dof)
    below = _degrees(dof_below)
    weighted = above * np.asarray(ratio)
    share = below / (below + weighted)
    return incomplete_beta(share, below / 2, above / 2)


def incomplete_beta(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """The regularised incomplete beta function I_x(a, b), with relative precision for small values.

    >>> float(incomplete_beta(0.25, 1, 2).round(4))
    0.4375

    Args:
        x: [...], between 0 and 1.
        a: positive, broadcast against ``x``.
        b: positive, broadcast against ``x``.

    Returns:
        I_x(a, b) [...]; NaN where an argument is NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    a = np.asarray(a, dtype=np.float64)
    b = np.asarray(b, dtype=np.float64)
    # Log Γ is slow, so it is taken of a and b as they come, not of the larger arrays below.
    front = _beta_front(x, a, b)
    x, a, b = np.broadcast_arrays(x, a, b)
    # The fraction converges fast below the mean of the distribution; beyond it, take 1 − I_{1−x}.
    mean = (a + 1) / (a + b + 2)
    beyond = x > mean
    near = np.where(beyond, 1 - x, x)
    first = np.where(beyond, b, a)
    second = np.where(beyond, a, b)
    fraction = _beta_fraction(near, first, second)
    part = front * fraction / first
    return np.where(beyond, 1 - part, part)


def _beta_front(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """xᵃ(1 − x)ᵇ / B(a, b), 0 at both ends."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_x = np.log(x)
        log_rest = np.log1p(-x)
        log_of_powers = a * log_x + b * log_rest
    log_beta = _log_gamma(a) + _log_gamma(b)
    log_beta = log_beta - _log_gamma(a + b)
    front = np.exp(log_of_powers - log_beta)
    at_end = (x == 0) | (x == 1)
    return np.where(at_end, 0.0, front)


def _beta_fraction(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The continued fraction of I_x(a, b), by the modified method of Lentz."""
    c = np.ones_like(x)
    first_coefficient = (a + b) * x / (a + 1)
    d = 1 / _away_from_zero(1 - first_coefficient)
    value = d
    for m in range(1, 20_000):
        place = a + 2 * m
        even = m * (b - m) * x / (place - 1) / place
        odd = -(a + m) * (a + b + m) * x / place / (place + 1)
        for coefficient in (even, odd):
            d = 1 / _away_from_zero(1 + coefficient * d)
            c = _away_from_zero(1 + coefficient / c)
            change = c * d
            value = value * change
        if not (np.abs(change - 1) > 1e-14).any():
            break
    return value


def _degrees(dof: ArrayLike) -> np.ndarray:
    """Degrees of freedom, at most as many as already give the normal distribution."""
    degrees = np.asarray(dof, dtype=np.float64)
    return np.minimum(degrees, _MANY)


def _away_from_zero(x: np.ndarray) -> np.ndarray:
    is_zero = np.abs(x) < _SMALLEST
    return np.where(is_zero, _SMALLEST, x)


def _student_density(t: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """The density of Student's T at t."""
    half = dof / 2
    log_ratio_of_gammas = _log_gamma(half + 0.5) - _log_gamma(half)
    log_scale = log_ratio_of_gammas - np.log(np.pi * dof) / 2
    log_base = np.log1p(t**2 / dof)
    log_power = (half + 0.5) * log_base
    return np.exp(log_scale - log_power)


def _log_gamma(x: np.ndarray) -> np.ndarray:
    log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    return log_gamma(x)
