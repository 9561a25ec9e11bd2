"""Biases of λ̂ as formulas: of the start, the step, the pairing of minibatches, and the prior.

Each is exact on a quadratic loss ℓ = ½ Σ hᵢvᵢ² (``rllc.theory.SGLDLaw`` has the whole law). In the
direction i a chain of SGLD with step ε, localization γ and nβ is an AR(1) process of decay
ρᵢ = 1 − εaᵢ/2 with aᵢ = nβhᵢ + γ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rllc.errors import InputError
from rllc.statistics.uncertainty import Mean, mean_of_draws, satterthwaite


def relaxation(lr: float, localization: float, num_steps_bw_draws: int = 1) -> float | None:
    """r = (1 − εγ/2)^(2·steps): what a draw in the slowest direction remembers of the one before.

    >>> round(relaxation(1e-3, 200.0), 4)
    0.81

    λ̂ is a sum of squares, so the decay of a position counts twice. Directions of curvature h > 0
    forget faster; a slope at w* or a control variate, which are linear in the position, relax as
    slowly as √r, with a small share of the variance.

    Args:
        lr: ε > 0.
        localization: γ ≥ 0 of the Gaussian prior.
        num_steps_bw_draws: steps from one draw to the next.

    Returns:
        r in [0, 1), or ``None`` where the prior bounds nothing: γ = 0, or εγ ≥ 4.
    """
    decay = (1 - lr * localization / 2) ** 2
    return decay**num_steps_bw_draws if decay < 1 else None


def relaxation_times(lr: float, localization: float, num_steps: int) -> float:
    """How many relaxation times −1/log((1 − εγ/2)²) a chain of ``num_steps`` steps lasts.

    >>> round(relaxation_times(1e-3, 200.0, num_steps=40), 2)
    8.43

    Returns:
        A number; 0 where γ = 0, which holds nothing, ∞ where one step forgets everything.
    """
    memory = relaxation(lr, localization)
    if memory is None:
        return 0.0
    return math.inf if memory == 0 else -num_steps * math.log(memory)


def share_missing(
    lr: float,
    localization: float,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
) -> float:
    """The share of λ̂ that flat directions lack when chains start at w*: mean of (1 − εγ/2)^(2t).

    >>> round(share_missing(1e-3, 200.0, num_draws=40), 3)
    0.107

    t are the steps at which draws are kept, num_burnin_steps + j·num_steps_bw_draws for j ≥ 1. It
    is known before a chain runs. Directions that the loss holds lack less.

    Args:
        lr: ε > 0.
        localization: γ ≥ 0.
        num_draws: kept from each chain.
        num_burnin_steps: before the first counts.
        num_steps_bw_draws: from one to the next.

    Returns:
        A share between 0 and 1; 1 where γ = 0.
    """
    memory = relaxation(lr, localization)
    if memory is None:
        return 1.0
    steps = num_burnin_steps + num_steps_bw_draws * np.arange(1, num_draws + 1)
    return float(np.mean(memory ** steps.astype(np.float64)))


def pairing_bias(
    curvatures: ArrayLike,
    gradient_variance: ArrayLike,
    num_minibatches: int,
    *,
    lr: float,
    localization: float,
    n_beta: float,
) -> float:
    """The bias of λ̂ that arises because the minibatches of one epoch exclude each other.

    Σᵢ (ε/2)(nβ)² Cᵢ/(K − 1) · Σ_{1≤k<K} ρᵢ^{k−1}(1 − k/K)

    Without replacement a chain has moved against the gradients of minibatches other than the
    present one, and so, on average, along its gradient. The mean of the control variate is this
    very number, so that λ̂ with control variate is free of it.

    >>> settings = {"lr": 1e-3, "localization": 200.0, "n_beta": 300.0}
    >>> round(pairing_bias([0.0], [0.01], 3, **settings), 4)
    0.2175

    Args:
        curvatures: h ``[dim]``.
        gradient_variance: C, variance of the gradient of one minibatch of the epoch at w*,
            ``[dim]`` or one number.
        num_minibatches: K of an epoch; 1 is the full batch, without this bias.
        lr: ε.
        localization: γ.
        n_beta: nβ.

    Raises:
        InputError: K is below 1.
    """
    if num_minibatches < 1:
        raise InputError(
            f"pairing_bias: num_minibatches is how many make an epoch, at least 1; "
            f"got {num_minibatches}."
        )
    if num_minibatches == 1:
        return 0.0
    curvatures = np.asarray(curvatures, dtype=np.float64)
    variance = np.asarray(gradient_variance, dtype=np.float64)
    rate = n_beta * curvatures + localization
    decay = 1 - lr * rate / 2
    # Horner's scheme for Σ_k ρ^{k−1}(1 − k/K), for all directions at once.
    memory = np.zeros_like(decay)
    for k in range(num_minibatches - 1, 0, -1):
        memory = memory * decay + (1 - k / num_minibatches)
    covariance = variance / (num_minibatches - 1)
    gained = lr / 2 * n_beta**2 * covariance * memory
    return float(gained.sum())


def added_by_gradient_noise(
    curvatures: ArrayLike,
    gradient_variance: ArrayLike,
    *,
    lr: float,
    localization: float,
    n_beta: float,
) -> float:
    """The bias of λ̂ by gradient noise: Σ ½nβhᵢ · (ε/4)(nβ)²Cᵢ / (aᵢ(1 − εaᵢ/4)).

    It widens the chain beyond what the step itself adds, and is of the first order in ε, too.

    >>> settings = {"lr": 1e-3, "localization": 200.0, "n_beta": 300.0}
    >>> round(added_by_gradient_noise([1.0], [0.01], **settings), 4)
    0.0771

    Arguments are those of :func:`pairing_bias`.
    """
    curvatures = np.asarray(curvatures, dtype=np.float64)
    variance = np.asarray(gradient_variance, dtype=np.float64)
    rate = n_beta * curvatures + localization
    width = 1 / (rate * (1 - lr * rate / 4))
    wider = width * lr / 4 * n_beta**2 * variance
    added = n_beta * curvatures / 2 * wider
    return float(added.sum())


def corrected(estimate: Mean, added: ArrayLike, by_noise: ArrayLike = 0.0) -> Mean:
    """λ̂ minus what the step adds, with the error of the difference.

    >>> raw = Mean(np.array(1.2), np.array(0.03), np.array(20.0))
    >>> float(corrected(raw, np.full((4, 5), 0.1)).value.round(3))
    1.1

    The value subtracts the mean of what probes measured, ⅛ nβ δ·(∇ℓ(v′) − ∇ℓ(v)) for steps
    δ = v′ − v, which on a quadratic is Σ ½nβhᵢσᵢ²·εaᵢ/4. Probes are few and far
    apart, so they count as independent, of each other and of λ̂. The parts' errors add in squares.

    Args:
        estimate: λ̂ with its error, ``[...]``.
        added: what each probed step added, ``[..., chain, probe]``.
        by_noise: what gradient noise adds (:func:`added_by_gradient_noise`), taken as exact.

    Returns:
        :class:`rllc.statistics.uncertainty.Mean`, ``[...]``; error NaN with fewer than 2 probes.
    """
    added = np.asarray(added, dtype=np.float64)
    count = added.shape[-2] * added.shape[-1]
    step = independent_mean(added.reshape(*added.shape[:-2], count))
    variance = estimate.standard_error**2
    step_variance = step.standard_error**2
    return Mean(
        value=estimate.value - step.value - by_noise,
        standard_error=np.sqrt(variance + step_variance),
        dof=satterthwaite((variance, estimate.dof), (step_variance, step.dof)),
    )


def prior_deviation(lr: float, localization: float) -> float:
    """Standard deviation of each weight where the prior alone acts: (γ(1 − εγ/4))^(−½).

    >>> round(prior_deviation(1e-3, 200.0), 4)
    0.0725

    Independent draws of N(w*, I) times this are the exact law of chains at nβ = 0, so a control
    needs no chain.

    Raises:
        InputError: the prior holds nothing (γ = 0), or εγ ≥ 4 and the chain blows up.
    """
    if not 0 < lr * localization < 4:
        raise InputError(
            f"prior_deviation: chains at n_beta = 0 need 0 < lr·localization < 4; got lr = {lr} "
            f"and localization = {localization}."
        )
    return (localization * (1 - lr * localization / 4)) ** -0.5


def independent_mean(x: ArrayLike) -> Mean:
    """The mean of independent draws ``[..., draw]``, with standard error sd/√N and N − 1.

    >>> independent_mean([1.0, 2.0, 3.0]).dof
    array(2.)
    """
    x = np.asarray(x, dtype=np.float64)
    draws = x.shape[-1]
    value = x.mean(-1)
    if draws < 2:
        nothing = np.full(value.shape, np.nan)
        return Mean(value, nothing, nothing)
    error = x.std(-1, ddof=1) / math.sqrt(draws)
    return Mean(value, error, np.full(value.shape, float(draws - 1)))


def control_mean(x: ArrayLike, *, shared: bool = True) -> Mean:
    """nβ·E[ℓ(v) − ℓ(w*)] under the prior alone, from independent draws ``[..., chain, draw]``.

    >>> x = np.random.default_rng(0).gamma(20.0, size=(4, 50))
    >>> bool(abs(control_mean(x).value - 20) < 2)
    True

    "Chains" are the positions that one minibatch measures, "draws" the minibatches. Arguments and
    result are those of :func:`rllc.statistics.uncertainty.mean_of_draws` with relaxation 0.
    """
    return mean_of_draws(x, relaxation=0.0, shared=shared)


def ratio(above: Mean, below: Mean) -> Mean:
    """The ratio of two independent means, with its error by the delta method.

    >>> above, below = independent_mean([2.9, 3.1]), independent_mean([3.9, 4.1])
    >>> float(ratio(above, below).value)
    0.75

    Of λ̂ and its control this is 1 where the prior alone explains λ̂, and on a quadratic
    γ·Σ hᵢ/(nβhᵢ + γ) / Σ hᵢ as ε → 0.  se² = (se_above² + ratio²·se_below²)/below².

    Returns:
        :class:`rllc.statistics.uncertainty.Mean` ``[...]``; NaN where ``below`` is within two of
        its errors of 0, where a ratio means nothing.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = above.value / below.value
        from_above = np.square(above.standard_error / below.value)
        from_below = np.square(value * below.standard_error / below.value)
    error = np.sqrt(from_above + from_below)
    dof = satterthwaite((from_above, above.dof), (from_below, below.dof))
    clear = np.abs(below.value) > 2 * below.standard_error
    return Mean(
        value=np.where(clear, value, np.nan),
        standard_error=np.where(clear, error, np.nan),
        dof=np.where(clear, dof, np.nan),
    )
