"""The error of a mean over draws and chains, its intervals, and contrasts of refinements.

Everything is a function of arrays ``[..., chain, draw]`` and a few numbers: leading axes
(refinement, checkpoint) are kept. A non-finite draw makes every result of its row NaN; nothing is
skipped.

Measured on quadratics of 400 directions with known laws, 4 × 40 to 16 × 50 draws, lr 1e-3 and
1e-4, with and without minibatch noise: see ``examples/benchmarks/coverage.py``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.statistics.autocovariance import (
    FEWEST_DRAWS,
    autocovariance,
    check_relaxation,
    deviations,
    finite_draws,
    pieces,
    relaxation_time,
    shared_variance,
    slow_and_white,
)
from rllc.statistics.quantiles import student_quantile, student_tail


class Mean(NamedTuple):
    """A mean with its standard error and the degrees of freedom of that error, each ``[...]``.

    >>> Mean(np.array(2.0), np.array(0.1), np.array(3.0)).interval().round(2)
    array([1.68, 2.32])
    """

    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray

    def interval(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Confidence intervals value ± t(level, dof) · standard_error, by Student's distribution.

        Simultaneous intervals all hold together with probability ``level``. Each is then made at
        Šidák's level^(1/m) for the m finite values. That is safe whatever the correlation of the
        values, and allows each its own degrees of freedom. The alternative, quantiles of max |t|
        simulated with the correlations of the values, needs those correlations: with few degrees
        of freedom they are noise, and for 16 heads they would shorten intervals by 2 % at a
        correlation of ½.

        Args:
            level: of confidence, between 0 and 1.
            simultaneous: whether all intervals shall hold together.

        Returns:
            Lower and upper ends ``[..., 2]``; NaN where the error is.

        Raises:
            InputError: ``level`` is not between 0 and 1.

        Reference: Šidák (1967), Rectangular confidence regions for the means of multivariate
        normal distributions.
        """
        half_width = self.half_width(level, simultaneous)
        low = self.value - half_width
        high = self.value + half_width
        return np.stack([low, high], axis=-1)

    def take(self, columns: Sequence[int]) -> "Mean":
        """Return the means at some places of the last axis."""
        index = np.array(columns, dtype=int)
        return Mean(*(numbers[..., index] for numbers in self))

    def half_width(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Half the length ``[...]`` of :meth:`interval`, with the same arguments."""
        if simultaneous:
            num_intervals = np.isfinite(self.standard_error).sum()
            level = level ** (1 / max(num_intervals, 1))
        t = student_quantile(level, self.dof)
        return t * self.standard_error

    def imprecision(self, level: float = 0.95) -> np.ndarray:
        """Half the length of the interval over the absolute value, ``[...]``; 0.1 is ± 10 %."""
        half_width = self.half_width(level)
        with np.errstate(divide="ignore", invalid="ignore"):
            return half_width / np.abs(self.value)

    def p_value(self) -> np.ndarray:
        """Two-sided p-value ``[...]`` of Student's test that the mean is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.value / self.standard_error
        t = np.where(self.value == 0, 0.0, t)
        return student_tail(t, self.dof)


def mean_of_draws(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> Mean:
    """Mean over chains and draws, with the standard error of chains that share minibatches.

    >>> draws = np.random.default_rng(0).gamma(50.0, size=(4, 200))
    >>> bool(abs(mean_of_draws(draws, relaxation=0.0).value - 50) < 1.5)
    True

    se² = V/(CN) + S/N for C chains of N draws:

    - S ≥ 0 is the variance that all chains share through their minibatches, which no number of
      chains averages away. It is white from draw to draw; it is estimated as half the covariance
      of different chains' *steps* x_{t+1} − x_t, in which a common rise does not appear.
    - V is the long-run variance of one chain, from deviations of chains from their common mean:
      the larger of Geyer's initial monotone sequence and A·τ_N + white. A is the least-squares
      amplitude of r^k in the autocovariances at lags k ≥ 1 (up to three relaxation times), white
      the rest of the variance, and τ_N = 1 + 2Σ_k(1 − k/N) r^k. V is pulled up towards N·Var(chain
      means) where that is larger, with the weights ν and C − 1.
    - ν = (C − 1)·max(1, N(1 − r)/(1 + r)) are V's degrees of freedom, N those of S; the sum has
      those of Satterthwaite.

    On quadratics with known laws (400 directions, 4 × 40 to 16 × 50 draws, lr 1e-3 and 1e-4, full
    batches and minibatches, prior or loss in charge) the error is 0.95 to 1.16 times the actual
    one and intervals cover 93 to 98 %, also where a chain is shorter than its relaxation. It is
    on the large side where the loss makes directions relax faster than r, and where it undoes
    within a few steps what minibatches shake alike in all chains.

    Args:
        x: draws ``[..., chain, draw]``.
        relaxation: r, correlation of successive draws in the slowest direction; 0 for independent
            draws, ``None`` where not known: then V is Geyer's, pulled as above.
        shared: whether chains share minibatches; without, S = 0.

    Returns:
        :class:`Mean`; error and degrees of freedom are NaN with fewer than 4 draws.

    Raises:
        InputError: ``x`` has no axes chain and draw, or ``relaxation`` is not in [0, 1).

    Reference: Geyer (1992), Practical Markov chain Monte Carlo; Satterthwaite (1946), An
    approximate distribution of estimates of variance components.
    """
    x, usable = finite_draws(x)
    check_relaxation(relaxation)
    chains, draws = x.shape[-2:]
    long_run, long_run_dof = _long_run_variance(x, relaxation)
    variance_of_chains = long_run / (chains * draws)
    variance_of_minibatches = np.zeros_like(variance_of_chains)
    if shared and chains > 1:
        variance_of_minibatches = shared_variance(x) / draws
    error = np.sqrt(variance_of_chains + variance_of_minibatches)
    dof = satterthwaite((variance_of_chains, long_run_dof), (variance_of_minibatches, draws))
    has_error = usable & (draws >= FEWEST_DRAWS)
    mean = x.mean(axis=(-2, -1))
    return Mean(
        value=np.where(usable, mean, np.nan),
        standard_error=np.where(has_error, error, np.nan),
        dof=np.where(has_error, dof, np.nan),
    )


def contrast(
    x: ArrayLike, weights: ArrayLike, relaxation: float | None, *, shared: bool = True
) -> Mean:
    """A weighted sum of refinements, paired draw by draw, with its own standard error.

    Refinements that share minibatches or noise move together. Their difference is taken at every
    draw, so what they share cancels there and is not counted as error.

    >>> x = np.random.default_rng(0).standard_normal((2, 4, 100))
    >>> x[1] = x[0] + 3
    >>> float(contrast(x, [-1, 1], relaxation=0.5).standard_error) < 1e-12
    True

    Args:
        x: draws ``[refinement, chain, draw]`` of the same settings.
        weights: of each refinement, ``[..., refinement]``; (1, −1) is a difference.
        relaxation: as in :func:`mean_of_draws`.
        shared: as in :func:`mean_of_draws`.

    Returns:
        :class:`Mean`, ``[...]``.

    Raises:
        InputError: as many weights as refinements are needed.
    """
    x = np.asarray(x)
    weights = np.asarray(weights, dtype=np.float64)
    are_weights_enough = weights.ndim >= 1 and weights.shape[-1] == len(x)
    if x.ndim != 3 or not are_weights_enough:
        raise InputError(
            f"contrast: expected draws [refinement, chain, draw] and one weight for each "
            f"refinement; got draws {list(x.shape)} and weights {list(weights.shape)}."
        )
    weighted = np.tensordot(weights, x, axes=1)
    return mean_of_draws(weighted, relaxation, shared=shared)


def differences(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> Mean:
    """All pairwise differences of refinements, ``[refinement, refinement]``: row minus column.

    >>> x = np.random.default_rng(0).standard_normal((3, 4, 100))
    >>> differences(x, relaxation=0.0).value.shape
    (3, 3)

    Arguments are those of :func:`contrast`. Errors on the diagonal are 0.
    """
    refinements = np.shape(x)[0]
    identity = np.eye(refinements)
    weights = identity[:, None] - identity[None, :]
    return contrast(x, weights, relaxation, shared=shared)


def satterthwaite(*parts: tuple[ArrayLike, ArrayLike]) -> np.ndarray:
    """Degrees of freedom of a sum of independent variance estimates: (Σ v)² / Σ v²/dof.

    >>> float(satterthwaite((1.0, 4.0), (1.0, 4.0)))
    8.0

    Args:
        parts: pairs of a variance and its degrees of freedom, arrays that broadcast.

    Returns:
        Degrees of freedom ``[...]``; those of the first part where all variances are 0.

    Reference: Satterthwaite (1946), An approximate distribution of estimates of variance
    components.
    """
    total: Any = 0.0
    spread: Any = 0.0
    for variance, dof in parts:
        variance = np.asarray(variance, dtype=np.float64)
        total = total + variance
        spread = spread + variance**2 / dof
    with np.errstate(divide="ignore", invalid="ignore"):
        dof = total**2 / spread
    _, dof_of_first = parts[0]
    return np.where(total == 0, dof_of_first, dof)


def _long_run_variance(x: np.ndarray, relaxation: float | None) -> tuple[np.ndarray, np.ndarray]:
    """V of one chain, ``[...]``, and its degrees of freedom."""
    chains, draws = x.shape[-2:]
    if chains == 1:
        return _of_one_chain(x, relaxation)
    from_common_mean = deviations(x)
    covariance = autocovariance(from_common_mean)
    variance, num_independent = _from_correlations(covariance, relaxation)
    dof = (chains - 1) * num_independent
    # Levels of chains that lie further apart than their correlations explain raise the error.
    levels = from_common_mean.mean(-1)  # [..., chain]
    variance_of_levels = np.square(levels).mean(-1)
    between = draws * variance_of_levels
    weighted = dof * variance + (chains - 1) * between
    pooled = weighted / (dof + chains - 1)
    return np.maximum(variance, pooled), dof


def _of_one_chain(x: np.ndarray, relaxation: float | None) -> tuple[np.ndarray, np.ndarray]:
    """V of a single chain: subtracting the chain's own mean costs a degree of freedom."""
    centred = x - x.mean(-1, keepdims=True)
    covariance = autocovariance(centred)
    variance, num_independent = _from_correlations(covariance, relaxation, centred=True)
    num_deviations = np.maximum(num_independent - 1, 0.5)
    variance = variance * num_independent / num_deviations
    return variance, np.maximum(num_deviations, 1)


def _from_correlations(
    covariance: np.ndarray, relaxation: float | None, centred: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """V from autocovariances ``[..., lag]``, and as how many independent draws a chain counts."""
    draws = covariance.shape[-1]
    lags = np.arange(draws)
    overlap = 1 - lags / draws
    by_geyer = _geyer(covariance * overlap)
    if relaxation is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            num_independent = draws * covariance[..., 0] / by_geyer
        num_independent = np.nan_to_num(num_independent, nan=draws)
        return by_geyer, np.clip(num_independent, 1, draws)
    slow, white = slow_and_white(covariance, relaxation, centred)
    variance = slow * relaxation_time(relaxation, draws) + white
    if relaxation > 0:
        variance = np.maximum(variance, by_geyer)
    return variance, np.full(variance.shape, pieces(relaxation, draws))


def _geyer(covariance: np.ndarray) -> np.ndarray:
    """−γ_0 + 2Σ over pairs γ_2j + γ_2j+1 while they are positive, made monotone."""
    num_pairs = covariance.shape[-1] // 2
    paired = covariance[..., : 2 * num_pairs]
    even = paired[..., 0::2]
    odd = paired[..., 1::2]
    pairs = even + odd
    are_positive_so_far = np.minimum.accumulate(pairs > 0, axis=-1)
    positive_pairs = np.where(are_positive_so_far, pairs, 0)
    monotone = np.minimum.accumulate(positive_pairs, axis=-1)
    variance = 2 * monotone.sum(-1) - covariance[..., 0]
    return np.maximum(variance, 0)
