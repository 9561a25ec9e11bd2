"""Covariances over the draws of chains, with standard errors.

Susceptibilities, influence functions, loss kernels and elasticities are all covariances of two
quantities along the same chains. Here are the arrays; what they mean is said elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.uncertainty import Mean, mean_of_draws


def covariance(
    x: ArrayLike, y: ArrayLike, relaxation: float | None, *, shared: bool = True
) -> Mean:
    """Covariance of two quantities over chains and draws, with its standard error.

    >>> x = np.random.default_rng(0).standard_normal((4, 500))
    >>> float(covariance(x, 2 * x, relaxation=0.0).value.round(1))
    2.0

    It is the mean over all draws t of all chains of z_t = (x_t − x̄)(y_t − ȳ)(1 + 1/n). The means
    x̄, ȳ are over all chains: a chain's own mean would take part of the covariance with it, 9 % at
    4 × 200 draws. n is the number of independent draws that x is worth: what the common means take,
    Cov(x̄, ȳ), is about a share 1/n. The error is that of the mean of z_t, so it knows of the
    autocorrelation and of what chains share.

    Args:
        x: ``[..., chain, draw]``.
        y: ``[..., chain, draw]``; leading axes broadcast with those of ``x``.
        relaxation: as in :func:`rllc.uncertainty.mean_of_draws`.
        shared: as there.

    Returns:
        :class:`rllc.uncertainty.Mean` ``[...]``; NaN where a draw is not finite.

    Raises:
        InputError: ``x`` and ``y`` are of other chains or draws.
    """
    n = independent_draws(x, relaxation, shared=shared)
    return mean_of_draws(deviations_product(x, y, n), relaxation, shared=shared)


def deviations_product(x: ArrayLike, y: ArrayLike, n: ArrayLike) -> np.ndarray:
    """Return the z_t of :func:`covariance`, ``[..., chain, draw]``; their mean is the covariance.

    >>> deviations_product(np.zeros((2, 8)), np.ones((2, 8)), n=4.0).shape
    (2, 8)

    Args:
        x: ``[..., chain, draw]``.
        y: ``[..., chain, draw]``.
        n: of :func:`independent_draws`, ``[...]``; one for all where a matrix of covariances shall
            be symmetric.

    Raises:
        InputError: ``x`` and ``y`` are of other chains or draws.
    """
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    if x.shape[-2:] != y.shape[-2:]:
        raise InputError(
            f"covariance: expected two arrays [..., chain, draw] of the same chains and draws; "
            f"got {list(x.shape)} and {list(y.shape)}."
        )
    with np.errstate(invalid="ignore"):
        x_deviation = x - x.mean(axis=(-2, -1), keepdims=True)
        y_deviation = y - y.mean(axis=(-2, -1), keepdims=True)
        products = x_deviation * y_deviation
    return products * (1 + 1 / np.asarray(n))[..., None, None]


def independent_draws(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> np.ndarray:
    """Return as how many independent draws the mean of x is known, ``[...]``: Var(x)/SE(x̄)².

    >>> x = np.random.default_rng(0).standard_normal((4, 500))
    >>> bool(1200 < independent_draws(x, relaxation=0.0) < 3000)
    True

    At least 1; the number of draws where x never changes.
    """
    x = np.asarray(x, dtype=np.float64)
    squared_error = mean_of_draws(x, relaxation, shared=shared).standard_error ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        count = x.var(axis=(-2, -1)) / squared_error
    total = float(x.shape[-2] * x.shape[-1])
    return np.where(np.isfinite(count), np.maximum(count, 1.0), total)
