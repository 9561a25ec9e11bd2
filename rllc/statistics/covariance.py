"""Covariances over the draws of chains, with standard errors.

Susceptibilities, influence functions, loss kernels and elasticities are all covariances of two
quantities along the same chains. This module has the arithmetic; :mod:`rllc.covariances` says what
each of them means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.statistics.agreement import disagreement
from rllc.statistics.uncertainty import Mean, mean_of_draws

_CHAINS_AND_DRAWS = (-2, -1)
"""The axes over which means are taken."""


class Covariance(NamedTuple):
    """A covariance with its error, and what it is without offsets between chains, each ``[...]``.

    >>> x = np.random.default_rng(0).standard_normal((4, 100))
    >>> bool(covariance(x, x, relaxation=0.0).agreement > 0.001)
    True

    A chain that sits apart in both quantities raises their covariance, though no weight answered.
    ``within`` is blind to it, and ``agreement`` says how probable it is.
    """

    value: np.ndarray
    """Deviations are from the means over all chains."""
    standard_error: np.ndarray
    dof: np.ndarray
    """Degrees of freedom of the error."""
    within: np.ndarray
    """The covariance by deviations from each chain's own means."""
    agreement: np.ndarray
    """Probability that chains which agree lie this far apart; NaN with one chain."""

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom."""
        return Mean(self.value, self.standard_error, self.dof)

    def interval(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Return intervals ``[..., 2]``; see :meth:`rllc.statistics.uncertainty.Mean.interval`."""
        return self.mean.interval(level, simultaneous)

    def disagrees(self, false_alarm: float) -> np.ndarray:
        """Whether chains sit apart and move the value by more than half its error, ``[...]``.

        Args:
            false_alarm: the p-value below which chains count as apart.
        """
        moved = np.abs(self.value - self.within)
        matters = moved > self.standard_error / 2
        return matters & (self.agreement < false_alarm)

    def take(self, index: int) -> "Covariance":
        """Return one place of the first axis."""
        return Covariance(*(numbers[index] for numbers in self))


def stacked(parts: Sequence[Covariance]) -> Covariance:
    """Return covariances along a new first axis."""
    return Covariance(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def covariance(
    x: ArrayLike, y: ArrayLike, relaxation: float | None, *, shared: bool = True
) -> Covariance:
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
        relaxation: as in :func:`rllc.statistics.uncertainty.mean_of_draws`.
        shared: as there.

    Returns:
        :class:`Covariance` ``[...]``; NaN where a draw is not finite.

    Raises:
        InputError: ``x`` and ``y`` are of other chains or draws.
    """
    n = independent_draws(x, relaxation, shared=shared)
    products = deviations_product(x, y, n)
    mean = mean_of_draws(products, relaxation, shared=shared)
    within = within_chains(x, y, relaxation)
    p_value = agreement(x, y, relaxation)
    return Covariance(*mean, within, p_value)


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
    # The common means take a share 1/n of the covariance.
    correction = 1 + 1 / np.asarray(n)
    with np.errstate(invalid="ignore"):
        products = _centred(x) * _centred(y)
    return products * correction[..., None, None]


def independent_draws(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> np.ndarray:
    """Return as how many independent draws the mean of x is known, ``[...]``: Var(x)/SE(x̄)².

    >>> x = np.random.default_rng(0).standard_normal((4, 500))
    >>> bool(1200 < independent_draws(x, relaxation=0.0) < 3000)
    True

    At least 1; the number of draws where x never changes.
    """
    x = np.asarray(x, dtype=np.float64)
    mean = mean_of_draws(x, relaxation, shared=shared)
    squared_error = mean.standard_error**2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = x.var(axis=_CHAINS_AND_DRAWS)
        count = variance / squared_error
    chains, draws = x.shape[-2:]
    count = np.where(np.isfinite(count), count, float(chains * draws))
    return np.maximum(count, 1.0)


def within_chains(x: ArrayLike, y: ArrayLike, relaxation: float | None) -> np.ndarray:
    """Return the covariance by deviations from each chain's own means, ``[...]``.

    The chains' own means take a share 1/n of it, n being the independent draws of one chain; the
    factor 1 + 1/n gives that back. It has more noise than the covariance about common means.

    >>> offsets = np.array([[-5.0], [-5.0], [5.0], [5.0]])
    >>> noise = np.random.default_rng(0).standard_normal((2, 4, 500))
    >>> bool(abs(within_chains(noise[0] + offsets, noise[1] + offsets, 0.0)) < 0.2)
    True
    """
    x = _centred_by_chain(x)
    y = _centred_by_chain(y)
    with np.errstate(invalid="ignore"):
        mean = (x * y).mean(axis=_CHAINS_AND_DRAWS)
    chains = x.shape[-2]
    n_of_all_chains = independent_draws(x, relaxation, shared=False)
    n = np.maximum(n_of_all_chains / chains, 1.0)
    return mean * (1 + 1 / n)


def agreement(x: ArrayLike, y: ArrayLike, relaxation: float | None) -> np.ndarray:
    """Return the p-value that chains which agree lie as far apart as these, ``[...]``.

    A covariance is a quarter of the variance of the sum of both quantities, scaled to variance 1,
    less that of their difference. Chains are compared in the sum and in the difference by
    :func:`rllc.statistics.agreement.disagreement`, and the smaller p-value counts, doubled. With
    the other sign of y both change places, so the sign of a covariance does not matter.

    >>> x = np.random.default_rng(0).standard_normal((2, 4, 100))
    >>> bool(agreement(x[0], x[1], 0.0) == agreement(x[0], -x[1], 0.0))
    True
    """
    x = _scaled(x)
    y = _scaled(y)
    if relaxation is None:
        *leading, _, _ = np.broadcast_shapes(x.shape, y.shape)
        return np.full(leading, np.nan)
    p_of_sum = disagreement(x + y, relaxation).p_value
    p_of_difference = disagreement(x - y, relaxation).p_value
    smaller = np.minimum(p_of_sum, p_of_difference)
    return np.minimum(2 * smaller, 1.0)


def _centred(x: np.ndarray) -> np.ndarray:
    """Deviations from the mean over all chains."""
    return x - x.mean(axis=_CHAINS_AND_DRAWS, keepdims=True)


def _centred_by_chain(x: ArrayLike) -> np.ndarray:
    """Deviations from each chain's own mean."""
    values = np.asarray(x, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return values - values.mean(axis=-1, keepdims=True)


def _scaled(values: ArrayLike) -> np.ndarray:
    """Values scaled to mean 0 and variance 1; zeros where they never change."""
    x = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = x.std(axis=_CHAINS_AND_DRAWS, keepdims=True)
        scaled = _centred(x) / deviation
    return np.where(deviation == 0, 0.0, scaled)
