"""The error of a mean over draws, intervals, contrasts, and tests of what can be wrong with it.

Everything is a function of arrays ``[..., chain, draw]`` and a few numbers: leading axes
(refinement, checkpoint) are kept. A non-finite draw makes every result of its row NaN; nothing is
skipped.

Two facts about SGLD make the errors good with few draws. First, no direction of a convex loss
relaxes slower than the prior lets it: a draw remembers at most the share r = (1 − εγ/2)² of the
one before (:func:`rllc.biases.relaxation`). Second, chains of one refinement have the same mean at
every draw, so their deviations from their common mean need no further centring.

Measured on quadratics of 400 directions with known laws, 4 × 40 to 16 × 50 draws, lr 1e-3 and
1e-4, with and without minibatch noise: see ``examples/benchmarks/coverage.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.quantiles import f_tail, student_quantile, student_tail

_FEWEST_DRAWS = 4
"""With fewer draws there is no lag at which to see a correlation."""


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
        half = self.half_width(level, simultaneous)
        return np.stack([self.value - half, self.value + half], axis=-1)

    def half_width(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Half the length ``[...]`` of :meth:`interval`, with the same arguments."""
        intervals = np.isfinite(self.standard_error).sum() if simultaneous else 1
        return student_quantile(level ** (1 / max(intervals, 1)), self.dof) * self.standard_error

    def p_value(self) -> np.ndarray:
        """Two-sided p-value ``[...]`` of Student's test that the mean is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.value / self.standard_error
        return student_tail(np.where(self.value == 0, 0.0, t), self.dof)


class Disagreement(NamedTuple):
    """How far chains sit apart, each ``[...]``; :func:`disagreement` makes it."""

    ratio: np.ndarray
    """F: variance of half-chain means between chains, over what relaxation and noise allow."""
    p_value: np.ndarray
    """Probability of a ratio at least as large in chains that agree."""
    spread: np.ndarray
    """Standard deviation between chains that is not explained, over the absolute mean."""


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

    On quadratics with known laws the error is 0.95 to 1.1 times the actual one and intervals
    cover 92 to 97 %, at 40 to 200 draws and also where a chain is shorter than its relaxation.

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
    x, usable = _draws(x)
    _check_relaxation(relaxation)
    chains, draws = x.shape[-2:]
    own, own_dof = _long_run_variance(x, relaxation)
    own = own / (chains * draws)
    common = np.zeros_like(own)
    if shared and chains > 1:
        common = _shared_variance(x) / draws
    variance = own + common
    with np.errstate(divide="ignore", invalid="ignore"):
        dof = variance**2 / (own**2 / own_dof + common**2 / draws)
    dof = np.where(variance == 0, own_dof, dof)
    enough = usable & (draws >= _FEWEST_DRAWS)
    return Mean(
        value=np.where(usable, x.mean(axis=(-2, -1)), np.nan),
        standard_error=np.where(enough, np.sqrt(variance), np.nan),
        dof=np.where(enough, dof, np.nan),
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
    if x.ndim != 3 or weights.ndim < 1 or weights.shape[-1] != len(x):
        raise InputError(
            f"contrast: expected draws [refinement, chain, draw] and one weight for each refinement; "
            f"got draws {list(x.shape)} and weights {list(weights.shape)}."
        )
    return mean_of_draws(np.tensordot(weights, x, axes=1), relaxation, shared=shared)


def differences(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> Mean:
    """All pairwise differences of refinements, ``[refinement, refinement]``: row minus column.

    >>> x = np.random.default_rng(0).standard_normal((3, 4, 100))
    >>> differences(x, relaxation=0.0).value.shape
    (3, 3)

    Arguments are those of :func:`contrast`. Errors on the diagonal are 0.
    """
    identity = np.eye(len(np.asarray(x)))
    return contrast(x, identity[:, None] - identity[None], relaxation, shared=shared)


def drift(x: ArrayLike, relaxation: float | None, *, shared: bool = True) -> Mean:
    """The second half of the draws minus the first, averaged over chains, with its error.

    Not 0 where all chains still rise or fall together; ``drift(...).p_value()`` tests it. A
    chain's two halves are correlated by c = 2 V_N/V_n·n/N − 1 with n = N/2 (through r^k), so that
    se² = 2(1 − c)V_n/(Cn) + 2S/n.

    >>> steady = np.random.default_rng(0).standard_normal((4, 100))
    >>> bool(drift(steady, 0.0).p_value() > 0.001), bool(drift(steady + np.arange(100), 0.0).p_value() > 0.001)
    (True, False)

    Arguments and errors are those of :func:`mean_of_draws`.
    """
    x, usable = _draws(x)
    halves = _halves(x)
    half = halves.shape[-1]
    change = halves[..., 1, :, :].mean((-2, -1)) - halves[..., 0, :, :].mean((-2, -1))
    of_half = mean_of_draws(halves, relaxation, shared=shared)
    # Each half gives a variance of its own mean; both have the same expectation.
    variance = np.square(of_half.standard_error).mean(-1)
    correlation = 0.0 if relaxation is None else _correlation_of_halves(relaxation, half)
    usable = usable & (half >= _FEWEST_DRAWS)
    return Mean(
        value=np.where(usable, change, np.nan),
        standard_error=np.where(usable, np.sqrt(2 * (1 - correlation) * variance), np.nan),
        dof=np.where(usable, of_half.dof.sum(-1), np.nan),
    )


def disagreement(x: ArrayLike, relaxation: float) -> Disagreement:
    """Whether chains sit at different levels: an F test of half-chain means between chains.

    R-hat reads slow chains as chains that disagree. This test asks for more than slowness allows.
    With n = N/2 draws in a half:

    - above the line: the mean square of half-chain means about their mean over chains;
    - below: (A·τ_n + white)/n. White is 2D_1 − D_2 by the variogram D_k = ½·mean (x_{t+k} − x_t)²,
      and A is all other variance within half chains, as if all of it relaxed as slowly as r. Both
      are blind to the chains' levels, and on the safe side where directions relax faster.

    On chains that agree p < 0.001 came in less than 1 of 500 with known laws.

    Args:
        x: draws ``[..., chain, draw]``.
        relaxation: r, as in :func:`mean_of_draws`.

    Returns:
        :class:`Disagreement`; NaN with one chain, fewer than 8 draws or non-finite draws.

    Raises:
        InputError: ``x`` has no axes chain and draw, or ``relaxation`` is not in [0, 1).
    """
    x, usable = _draws(x)
    _check_relaxation(relaxation)
    chains = x.shape[-2]
    halves = _halves(x)
    half = halves.shape[-1]
    usable = usable & (chains > 1) & (half >= _FEWEST_DRAWS)
    if not usable.any():
        return Disagreement(*(np.full(usable.shape, np.nan) for _ in range(3)))
    means = _deviations(halves).mean(-1)
    between = np.square(means).mean(axis=(-2, -1))
    correlation = _correlation_of_halves(relaxation, half)
    between_dof = 2 * (chains - 1) / (1 + correlation**2)
    allowed = _allowed_variance(_deviations(halves), relaxation)
    pieces = max(2.0, half * (1 - relaxation**2) / (1 + relaxation**2))
    allowed_dof = 2 * (chains - 1) * pieces
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(between == 0, 0.0, between / allowed)
        excess = np.sqrt(np.maximum(between - allowed, 0))
        spread = np.where(excess == 0, 0.0, excess / np.abs(x.mean(axis=(-2, -1))))
    p_value = f_tail(np.where(np.isinf(ratio), 1e300, ratio), between_dof, allowed_dof)
    return Disagreement(*(np.where(usable, v, np.nan) for v in (ratio, p_value, spread)))


def heavy_tails(x: ArrayLike, share: float = 0.02) -> np.ndarray:
    """How much of all squared steps x_{t+1} − x_t the largest ``share`` of them holds, ``[...]``.

    For Gaussian draws the largest 2 % hold 14 %; above a third or so, few draws decide the mean
    and its error is a guess.

    >>> bool(heavy_tails(np.random.default_rng(0).standard_cauchy((4, 200))) > 0.35)
    True

    Args:
        x: draws ``[..., chain, draw]``.
        share: of the steps, between 0 and 1; at least one step counts.

    Returns:
        Shares between 0 and 1; 0 for constant draws, NaN with fewer than 4 or non-finite draws.
    """
    x, usable = _draws(x)
    steps = np.square(np.diff(x, axis=-1))
    steps = np.sort(steps.reshape(*steps.shape[:-2], -1), axis=-1)
    largest = steps[..., -max(1, round(share * steps.shape[-1])) :].sum(-1)
    whole = steps.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(whole == 0, 0.0, largest / whole)
    return np.where(usable & (x.shape[-1] >= _FEWEST_DRAWS), held, np.nan)


def _long_run_variance(x: np.ndarray, relaxation: float | None) -> tuple[np.ndarray, np.ndarray]:
    """V of one chain, ``[...]``, and its degrees of freedom."""
    chains, draws = x.shape[-2:]
    # One chain has no company to deviate from: its own mean is subtracted, which takes V/N off.
    alone = chains == 1
    deviations = x - x.mean(-1, keepdims=True) if alone else _deviations(x)
    covariance = _autocovariance(deviations)
    independent = 1 if alone else chains - 1
    by_geyer = _geyer(covariance * (1 - np.arange(draws) / draws))
    if relaxation is None:
        variance = by_geyer
        with np.errstate(divide="ignore", invalid="ignore"):
            time = np.maximum(by_geyer / covariance[..., 0], 1)
        pieces = np.maximum(np.where(covariance[..., 0] > 0, draws / time, draws), 1)
    else:
        variance = _with_relaxation(covariance, relaxation, alone)
        if relaxation > 0:
            variance = np.maximum(variance, by_geyer)
        pieces = np.full(variance.shape, max(1, draws * (1 - relaxation) / (1 + relaxation)))
    if alone:
        return variance * pieces / np.maximum(pieces - 1, 0.5), np.maximum(pieces - 1, 1)
    dof = independent * pieces
    between = draws * np.square(deviations.mean(-1)).mean(-1)
    pooled = (dof * variance + independent * between) / (dof + independent)
    return np.maximum(variance, pooled), dof


def _with_relaxation(covariance: np.ndarray, relaxation: float, centred: bool) -> np.ndarray:
    """A·τ_N + white from autocovariances ``[..., lag]``."""
    draws = covariance.shape[-1]
    lags = np.arange(draws)
    time = _relaxation_time(relaxation, draws)
    shape = relaxation**lags
    if centred:
        shape = shape - time / draws
    # Beyond three relaxation times there is nothing left to fit but noise.
    last = draws - 1
    if relaxation > 0:
        last = min(last, max(4, math.ceil(-3 / math.log(relaxation))))
    fitted = slice(1, last + 1)
    weights = (draws - lags)[fitted] * shape[fitted]
    norm = (weights * shape[fitted]).sum()
    total = covariance[..., 0] / shape[0]
    amplitude = np.zeros_like(total)
    if norm > 0:
        amplitude = np.clip((covariance[..., fitted] * weights).sum(-1) / norm, 0, total)
    return amplitude * time + (total - amplitude)


def _shared_variance(x: np.ndarray) -> np.ndarray:
    """S ``[...]``: half the mean covariance of different chains' steps, 0 at least."""
    chains = x.shape[-2]
    steps = np.diff(x, axis=-1)
    between = np.square(steps.sum(-2)) - np.square(steps).sum(-2)
    return np.maximum(between.mean(-1) / (chains * (chains - 1)) / 2, 0)


def _allowed_variance(halves: np.ndarray, relaxation: float) -> np.ndarray:
    """The variance of a half-chain mean that agreeing chains may have, from within half chains."""
    draws = halves.shape[-1]
    total = halves.var(axis=-1).mean(axis=(-2, -1))
    first, second = (_variogram(halves, lag) for lag in (1, 2))
    time = _relaxation_time(relaxation, draws)
    # Of a variance A·r^k about the sample's own mean, A(1 − τ_n/n) is left; of white, 1 − 1/n.
    white = np.clip(2 * first - second, 0, total / (1 - 1 / draws))
    amplitude = np.maximum(total - white * (1 - 1 / draws), 0) / (1 - time / draws)
    return (amplitude * time + white) / draws


def _variogram(x: np.ndarray, lag: int) -> np.ndarray:
    return np.square(x[..., lag:] - x[..., :-lag]).mean(axis=(-3, -2, -1)) / 2


def _correlation_of_halves(relaxation: float, half: int) -> float:
    """Correlation of the means of two successive halves of a chain with autocorrelation r^k."""
    whole = _relaxation_time(relaxation, 2 * half) / (2 * half)
    return 2 * whole / (_relaxation_time(relaxation, half) / half) - 1


def _relaxation_time(relaxation: float, draws: int) -> float:
    """τ_N = 1 + 2Σ_{0<k<N}(1 − k/N) r^k."""
    lags = np.arange(1, draws)
    return 1 + 2 * float(((1 - lags / draws) * relaxation**lags).sum())


def _autocovariance(deviations: np.ndarray) -> np.ndarray:
    """Autocovariances ``[..., lag]`` averaged over chains, of draws whose mean is 0 already."""
    draws = deviations.shape[-1]
    spectrum = np.square(np.abs(np.fft.rfft(deviations, n=2 * draws, axis=-1))).mean(-2)
    return np.fft.irfft(spectrum, axis=-1)[..., :draws] / (draws - np.arange(draws))


def _geyer(covariance: np.ndarray) -> np.ndarray:
    """−γ_0 + 2Σ over pairs γ_2j + γ_2j+1 while they are positive, made monotone."""
    num_pairs = covariance.shape[-1] // 2
    pairs = covariance[..., 0 : 2 * num_pairs : 2] + covariance[..., 1 : 2 * num_pairs : 2]
    positive = np.minimum.accumulate(pairs > 0, axis=-1)
    monotone = np.minimum.accumulate(np.where(positive, pairs, 0), axis=-1)
    return np.maximum(2 * monotone.sum(-1) - covariance[..., 0], 0)


def _deviations(x: np.ndarray) -> np.ndarray:
    """Deviations from the mean over chains, scaled to the variance of the chains' own part."""
    chains = x.shape[-2]
    scale = math.sqrt(chains / max(chains - 1, 1))
    return scale * (x - x.mean(-2, keepdims=True))


def _halves(x: np.ndarray) -> np.ndarray:
    """``[..., half, chain, draw]``; the middle draw of an odd number is left out."""
    half = x.shape[-1] // 2
    return np.stack([x[..., :half], x[..., x.shape[-1] - half :]], axis=-3)


def _draws(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Draws with zeros in place of rows that are not finite, and which rows are finite."""
    x = np.asarray(x)
    if x.ndim < 2 or x.dtype.kind not in "iuf" or 0 in x.shape[-2:]:
        raise InputError(
            f"rllc.uncertainty: expected real numbers [..., chain, draw] with at least one chain "
            f"and one draw; got shape {list(x.shape)}, dtype {x.dtype}."
        )
    finite = np.isfinite(x).all(axis=(-2, -1))
    return np.where(finite[..., None, None], x.astype(np.float64), 0.0), finite


def _check_relaxation(relaxation: float | None) -> None:
    if relaxation is not None and not 0 <= relaxation < 1:
        raise InputError(
            f"rllc.uncertainty: relaxation is the correlation of successive draws in the slowest "
            f"direction, 0 ≤ r < 1; got {relaxation}."
        )
