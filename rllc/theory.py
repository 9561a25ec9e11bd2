"""Exact learning coefficients, and the exact law of SGLD on quadratics: the truths that estimates are held against.

Learning coefficients are asymptotic: the volume {w : ℓ(w) − ℓ(w*) < t} scales as t^λ (−log t)^(m−1) for t → 0, with
learning coefficient λ and multiplicity m. They do not depend on the scale of the loss. :class:`SGLDLaw` is not
asymptotic: it is what the estimator returns at a given step size, localization and nβ, discretisation and prior
included.

References:
    Aoyagi and Watanabe (2005), Stochastic complexities of reduced rank regression in Bayesian estimation.
    Watanabe (2009), Algebraic geometry and statistical learning theory.
    Aoyagi (2024), Consideration on the learning efficiency of multiple-layered neural networks with linear units.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rllc.errors import InputError


class LearningCoefficient(NamedTuple):
    """A learning coefficient λ (``value``) and its multiplicity m, as in V(t) ∝ t^λ (−log t)^(m−1)."""

    value: float
    multiplicity: int


def regular(d: int) -> LearningCoefficient:
    """A regular model with ``d`` parameters: λ = d/2, m = 1.

    >>> regular(10)
    LearningCoefficient(value=5.0, multiplicity=1)
    """
    return LearningCoefficient(_count("d", d) / 2, 1)


def normal_crossing(k: Sequence[int], h: Sequence[int] | None = None) -> LearningCoefficient:
    """A normal crossing K(w) = Π w_i^(2k_i) under a prior ∝ Π |w_i|^(h_i), at the origin.

    λ = min_i (h_i + 1)/(2 k_i) over the i with k_i > 0; m is the number of i that reach the minimum.

    >>> normal_crossing([1, 1])
    LearningCoefficient(value=0.5, multiplicity=2)

    Args:
        k: half the exponents of the loss, one per coordinate; at least one is positive.
        h: exponents of the prior density; all zero (a flat prior) when not given.

    Raises:
        InputError: the lengths differ, an exponent is negative, or no k is positive (the loss would be constant).

    Reference: Watanabe (2009).
    """
    ks = [_count("k", value, least=0) for value in k]
    hs = [0] * len(ks) if h is None else [_count("h", value, least=0) for value in h]
    if len(ks) != len(hs):
        raise InputError(
            f"normal_crossing: k and h need one entry per coordinate; got {len(ks)} and {len(hs)}."
        )
    ratios = [Fraction(b + 1, 2 * a) for a, b in zip(ks, hs, strict=True) if a > 0]
    if not ratios:
        raise InputError(
            f"normal_crossing: at least one k must be positive, else the loss is constant; got k={ks}."
        )
    return LearningCoefficient(float(min(ratios)), ratios.count(min(ratios)))


def reduced_rank_regression(M: int, N: int, H: int, r: int) -> LearningCoefficient:
    """Reduced-rank regression y = BAx, A [H, M], B [N, H], true product of rank ``r``: the global λ.

    1. N+r ≤ M+H, M+r ≤ N+H and H+r ≤ M+N: s = −(H+r)² − M² − N² + 2(H+r)(M+N) + 2MN;
       λ = s/8, m = 1 when M+H+N+r is even, λ = (s+1)/8, m = 2 when it is odd.
    2. M+H < N+r: λ = (HM − Hr + Nr)/2, m = 1.
    3. N+H < M+r: λ = (HN − Hr + Mr)/2, m = 1.
    4. M+N < H+r: λ = MN/2, m = 1.

    This is the smallest local value over the fibre BA = truth; at a given point of it use
    :func:`reduced_rank_regression_at`.

    >>> reduced_rank_regression(5, 5, 3, 0)
    LearningCoefficient(value=6.5, multiplicity=2)

    Args:
        M: inputs.
        N: outputs.
        H: hidden units.
        r: rank of the true BA, at most min(M, N, H).

    Raises:
        InputError: a width is not positive or ``r`` is not a possible rank.

    Reference: Aoyagi and Watanabe (2005), main theorem.
    """
    M, N, H = _count("M", M), _count("N", N), _count("H", H)
    _check_rank("reduced_rank_regression", "r", r, 0, min(M, N, H))
    return _reduced_rank_regression(M, N, H, r)


def reduced_rank_regression_at(
    M: int, N: int, H: int, r1: int, r2: int, r: int
) -> LearningCoefficient:
    """The local λ of reduced-rank regression at a point with rank A = ``r1``, rank B = ``r2``, rank BA = ``r``.

    λ = ½(N r1 + M r2 − r1 r2) + λ_RRR(M − r1, N − r2, H − r1 − r2 + r; 0). The first term is half the rank of the
    derivative of (A, B) → BA; in the remaining directions the product is again one of reduced-rank regression, between
    the kernel of A, the part of ker B outside im A, and the cokernel of B, at zero.

    A random teacher is usually not at the most degenerate point of its fibre, so its local value is above the global
    one.

    >>> reduced_rank_regression_at(5, 5, 3, r1=3, r2=1, r=1).value, reduced_rank_regression(5, 5, 3, 1).value
    (8.5, 8.0)

    Raises:
        InputError: no such point exists: ranks must satisfy max(0, r1 + r2 − H) ≤ r ≤ min(r1, r2), r1 ≤ min(H, M),
            r2 ≤ min(N, H).
    """
    M, N, H = _count("M", M), _count("N", N), _count("H", H)
    where = "reduced_rank_regression_at"
    _check_rank(where, "r1", r1, 0, min(H, M))
    _check_rank(where, "r2", r2, 0, min(N, H))
    _check_rank(where, "r", r, max(0, r1 + r2 - H), min(r1, r2))
    rest = _reduced_rank_regression(M - r1, N - r2, H - r1 - r2 + r, 0)
    return LearningCoefficient((N * r1 + M * r2 - r1 * r2) / 2 + rest.value, rest.multiplicity)


def deep_linear(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """A deep linear network y = W_L ⋯ W_1 x whose true product has rank ``rank``: the global λ.

    With M_s = H_s − r, let Σ be the set of layers, |Σ| = l + 1, with max_Σ M < min_{Σᶜ} M, Σ_Σ M ≥ l·max_Σ M and
    Σ_Σ M < l·min_{Σᶜ} M; S = Σ_Σ M and a = S − (⌈S/l⌉ − 1)l. Then

    λ = (r(H_0 + H_L) − r²)/2 + a(l − a)/(4l) − (l(l−1)/4)(S/l)² + ½ Σ_{i<j∈Σ} M_i M_j,   m = a(l − a) + 1.

    Sorted by size, Σ is the longest beginning M_1 ≤ … ≤ M_{l+1} with Σ_Σ M ≥ l·M_{l+1}. Two layers always satisfy it,
    so l ≥ 1 and nothing is divided by zero, also where several M are zero.

    >>> deep_linear([10, 10, 10, 10], rank=3)
    LearningCoefficient(value=42.0, multiplicity=3)

    Args:
        widths: H_0 (inputs), …, H_L (outputs); at least two.
        rank: rank of the true product, at most min(widths).

    Raises:
        InputError: fewer than two widths, a width is not positive, or ``rank`` is not a possible rank.

    Reference: Aoyagi (2024), main theorem.
    """
    H = [_count("widths", width) for width in widths]
    if len(H) < 2:
        raise InputError(
            f"deep_linear: widths needs at least the inputs and the outputs, H_0 and H_1; got {H}."
        )
    _check_rank("deep_linear", "rank", rank, 0, min(H))
    chosen = _aoyagi_subset(sorted(width - rank for width in H))
    S, ell = sum(chosen), len(chosen) - 1
    a = S - (-(-S // ell) - 1) * ell
    pairs = Fraction(S**2 - sum(m * m for m in chosen), 2)  # Σ_{i<j} M_i M_j
    value = (
        Fraction(rank * (H[0] + H[-1]) - rank**2, 2) + Fraction(a * (ell - a), 4 * ell) + pairs / 2
    )
    value -= Fraction(ell * (ell - 1), 4) * Fraction(S, ell) ** 2
    return LearningCoefficient(float(value), a * (ell - a) + 1)


def one_head_attention(v: int, d_head: int) -> LearningCoefficient:
    """One attention head fitted to a uniform target, with inputs uniform over ``v`` tokens.

    λ = λ_RRR(M = v, N = v − 1, H = d_head, r = 0): the truth is the zero product, and one output direction drops out
    because the softmax does not see a constant.

    >>> one_head_attention(5, d_head=2)
    LearningCoefficient(value=4.0, multiplicity=2)

    Raises:
        InputError: fewer than 2 tokens, or ``d_head`` is not positive.
    """
    v = _count("v", v, least=2)
    return reduced_rank_regression(v, v - 1, _count("d_head", d_head), 0)


def deep_linear_layer(
    weights: Sequence[Any], layer: int, input_covariance: Any | None = None
) -> LearningCoefficient:
    """The refined λ of one layer of a deep linear network at an exact minimum: rank(A)·rank(BΣ^½)/2, m = 1.

    A is the product of the later layers, B of the earlier ones, Σ = E[xxᵀ] of the refined data. With all other layers
    frozen the loss is quadratic in W_layer, with Hessian AᵀA ⊗ BΣBᵀ. Σ = 1 gives the weight-refined coefficient
    (wrLLC), a rank-deficient Σ the data-refined one. At finite (lr, localization, nβ) use
    ``SGLDLaw(deep_linear_curvatures(weights, layer, input_covariance), ...)``.

    >>> deep_linear_layer([np.eye(3, 4), np.eye(2, 3)], layer=0, input_covariance=np.diag([1, 1, 0, 0]))
    LearningCoefficient(value=2.0, multiplicity=1)

    Args:
        weights: W_1, …, W_L, each [H_l, H_{l−1}] (``nn.Linear.weight``), arrays or tensors. Ranks are counted above the
            rounding error of the coarsest dtype given; use ``.double()`` when the numbers are exact as they stand.
        layer: index into ``weights``, from 0.
        input_covariance: Σ [H_0, H_0], second moments of the inputs about zero; the identity when not given.

    Raises:
        InputError: shapes do not chain, ``layer`` does not exist, or Σ is not a symmetric, positive semi-definite
            matrix.
    """
    after, before = _layer_spectra(weights, layer, input_covariance)
    return LearningCoefficient(int(np.count_nonzero(after)) * int(np.count_nonzero(before)) / 2, 1)


def deep_linear_curvatures(
    weights: Sequence[Any], layer: int, input_covariance: Any | None = None
) -> np.ndarray:
    """Curvatures of the loss ½E‖y − ŷ‖² in the weights of one layer: the eigenvalues of AᵀA ⊗ BΣBᵀ.

    Arguments and errors are those of :func:`deep_linear_layer`. A loss that averages over the N outputs, or leaves out
    the ½, scales them: multiply by 2/N for ``nn.MSELoss``. Eigenvalues below the rounding error of the input's dtype
    are set to zero, so that their number is that of :func:`deep_linear_layer`.

    >>> deep_linear_curvatures([np.eye(2), 3 * np.eye(1, 2)], layer=0)
    array([9., 9., 0., 0.])

    Returns:
        Eigenvalues [H_l · H_{l−1}], largest first.
    """
    after, before = _layer_spectra(weights, layer, input_covariance)
    return np.sort(np.outer(after, before).ravel())[::-1].copy()


@dataclass(frozen=True, eq=False)
class SGLDLaw:
    """The exact law of SGLD and of λ̂ on a quadratic ℓ(w) = ½ Σ h_i v_i², v = w − w*, at finite (ε, γ, nβ).

    One step is v ← v − (ε/2)[nβ(h v + g) + γ v] + √ε ξ with ξ ~ N(0, 1) and minibatch noise g of mean 0. With
    a = nβh + γ every coordinate is an AR(1) process (index i left out):

    - decay ρ = 1 − εa/2; innovation variance q = ε(1 + (ε/4)(nβ)²C), C = Var g; stable exactly when 0 < εa < 4;
    - stationary variance σ² = q/(1 − ρ²) = (1 + (ε/4)(nβ)²C) / (a(1 − εa/4));
    - started at w*, after t steps: σ_t² = σ²(1 − ρ^{2t}).

    Each draw's estimate is λ̂_t = nβ[ℓ_B(w_t) − ℓ_B(w*)] on the *next* minibatch B, the one that also makes the next
    step. B is independent of w_t, so E[λ̂_t] = Σ ½nβh σ_t²: pairing the baseline on the same minibatch removes the
    noise of ℓ_B(w*) and adds no bias, and minibatch noise changes the mean only through σ². What it adds to the spread
    is nβ g·v_t, of variance (nβ)²Cσ_t², white in time. Because the same g drives the next step, it is anticorrelated
    with the later draws, by −½ε(nβ)³hC σ_t² ρ^{2k−1} at lag k; both are in :attr:`draw_variance`,
    :meth:`autocorrelation` and :meth:`standard_error`. (Measuring on the *previous* minibatch, which made the state,
    would shift the mean by −½ε(nβ)² ΣC.) Chains that share minibatches have correlation κ = 1 − ε/q in each coordinate.

    Means hold for any noise with the stated variance that does not depend on v. Second moments also need Gaussian g
    with uncorrelated coordinates (in the eigenbasis of h).

    >>> law = SGLDLaw(np.ones(10), lr=1e-3, localization=1.0, n_beta=100.0)
    >>> round(law.value, 4), round(law.expected(num_draws=200), 4)
    (5.0787, 4.8462)

    Args:
        curvatures: h [dim], eigenvalues of the Hessian of the mean loss.
        lr: ε > 0.
        localization: γ ≥ 0.
        n_beta: nβ > 0.
        gradient_variance: C, variance of the minibatch gradient of the mean loss at w*, [dim] or one number for all; 0
            is full-batch.

    Raises:
        InputError: an argument is not finite, of the wrong shape or sign.
    """

    curvatures: np.ndarray
    lr: float
    localization: float
    n_beta: float
    gradient_variance: np.ndarray | float = 0.0

    def __post_init__(self) -> None:
        h = np.array(self.curvatures, dtype=np.float64)
        if h.ndim != 1 or h.size == 0 or not np.isfinite(h).all():
            raise InputError(
                f"SGLDLaw: curvatures must be finite numbers [dim], dim ≥ 1; got shape {h.shape}: {h}."
            )
        noise = np.array(self.gradient_variance, dtype=np.float64)
        if noise.shape not in ((), h.shape) or not (np.isfinite(noise) & (noise >= 0)).all():
            raise InputError(
                f"SGLDLaw: gradient_variance must be one number or [{h.size}] like curvatures, finite and ≥ 0; "
                f"got shape {noise.shape}: {noise}."
            )
        for name in ("lr", "n_beta", "localization"):
            value = getattr(self, name)
            if not (
                math.isfinite(value) and (value > 0 or (value == 0 and name == "localization"))
            ):
                sign = "≥ 0" if name == "localization" else "> 0"
                raise InputError(f"SGLDLaw: {name} must be finite and {sign}; got {value!r}.")
        noise = np.broadcast_to(noise, h.shape).copy()
        for name, array in (("curvatures", h), ("gradient_variance", noise)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def decay(self) -> np.ndarray:
        """ρ = 1 − εa/2 [dim], the factor by which one step shrinks the mean."""
        return 1 - self._rate / 2

    @property
    def innovation(self) -> np.ndarray:
        """q = ε(1 + (ε/4)(nβ)²C) [dim], the variance that one step adds."""
        return self.lr * (1 + self.lr / 4 * self.n_beta**2 * self.gradient_variance)

    @property
    def stable(self) -> bool:
        """Whether 0 < εa < 4 in every coordinate that the estimate sees (those with h or C not zero)."""
        rate = self._rate[self._seen]
        return bool(((rate > 0) & (rate < 4)).all())

    @property
    def max_lr(self) -> float:
        """The step size 4/max(a) at which the sharpest direction starts to blow up."""
        sharpest = float((self.n_beta * self.curvatures + self.localization).max())
        return 4 / sharpest if sharpest > 0 else math.inf

    @property
    def variance(self) -> np.ndarray:
        """σ² = q/(1 − ρ²) [dim], the stationary variance of each coordinate (∞ where it never settles)."""
        rate = self._rate
        with np.errstate(divide="ignore"):
            return np.where(
                (rate > 0) & (rate < 4), self.innovation / np.abs(rate * (1 - rate / 4)), np.inf
            )

    def variance_after(self, steps: int) -> np.ndarray:
        """σ_t² = q Σ_{j<t} ρ^{2j} [dim] for a chain that started at w* and made ``steps`` steps; also when unstable."""
        steps = _count("steps", steps, least=0)
        shrink = self._rate * (1 - self._rate / 4)  # 1 − ρ², without cancellation
        if steps == 0:
            return np.zeros_like(shrink)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            total = -np.expm1(steps * np.log1p(-shrink)) / shrink
        return self.innovation * np.where(shrink == 0, steps, total)

    @property
    def value(self) -> float:
        """E λ̂ = Σ ½nβh σ², the mean of the estimate once the chain is stationary."""
        self._require_stable()
        return self._mean(self.variance)

    def value_after(self, steps: int) -> float:
        """E λ̂ of the draw that a chain started at w* makes after ``steps`` steps."""
        return self._mean(self.variance_after(steps))

    @property
    def draw_variance(self) -> float:
        """Var λ̂ of one stationary draw: Σ 2(½nβh)²σ⁴ + (nβ)²Cσ²."""
        return self._autocovariance(0)

    def autocorrelation(self, lag: int) -> float:
        """Correlation of stationary draws ``lag`` steps apart: Σ 2(½nβh)²σ⁴ρ^{2·lag}/Var if C = 0; NaN if h = 0."""
        whole = self.draw_variance
        return self._autocovariance(_count("lag", lag, least=0)) / whole if whole else math.nan

    def autocorrelation_time(self, num_steps_bw_draws: int = 1) -> float:
        """τ = 1 + 2 Σ_k autocorrelation(k · num_steps_bw_draws); one curvature, no noise: (1 + ρ²)/(1 − ρ²).

        N stationary draws are worth N/τ independent ones for large N; the finite-N value is in :meth:`standard_error`.
        """
        apart = _count("num_steps_bw_draws", num_steps_bw_draws)
        self._require_stable()
        var, decay = self._only_seen(self.variance), self._only_seen(self.decay)
        state, _, coupling = self._second_moments
        later = (
            state * var**2 * decay ** (2 * apart) + coupling * var * decay ** (2 * apart - 1)
        ) / (1 - decay ** (2 * apart))
        whole = self.draw_variance
        return 1 + 2 * float(later.sum()) / whole if whole else math.nan

    def expected(
        self, num_draws: int, *, num_burnin_steps: int = 0, num_steps_bw_draws: int = 1
    ) -> float:
        """The exact mean of λ̂ over draws of chains that started at w*, so that also burn-in 0 has a truth.

        Draw j = 0, 1, … is the state after num_burnin_steps + (j + 1)·num_steps_bw_draws steps; w* itself is never one.
        """
        steps = _draw_steps(num_draws, num_burnin_steps, num_steps_bw_draws)
        return math.fsum(self.value_after(t) for t in steps) / len(steps)

    def standard_error(
        self,
        num_draws: int,
        num_chains: int = 1,
        *,
        num_burnin_steps: int = 0,
        num_steps_bw_draws: int = 1,
        shared_minibatches: bool = True,
        stationary: bool = False,
    ) -> float:
        """The exact standard deviation of λ̂ over all draws and chains, chains started at w*.

        Args:
            num_draws: draws a chain, N.
            num_chains: chains.
            num_burnin_steps: steps before the first draw's (see :meth:`expected`).
            num_steps_bw_draws: steps a draw.
            shared_minibatches: all chains see the same minibatches (the default of the library), which correlates them
                when there is gradient noise.
            stationary: chains start in the stationary law instead of at w*.

        Raises:
            InputError: ``stationary`` is asked of an unstable chain.
        """
        chains, apart = (
            _count("num_chains", num_chains),
            _count("num_steps_bw_draws", num_steps_bw_draws),
        )
        steps = _draw_steps(num_draws, num_burnin_steps, apart)
        if stationary:
            self._require_stable()
        state, measured, coupling = self._second_moments
        decay = self._only_seen(self.decay)
        slow = early = now = later = noise = np.zeros_like(decay)
        for t in steps:  # slow = Σ_{s<t} σ_s⁴ρ^{2(t−s)}, early = Σ_{s<t} σ_s²ρ^{2(t−s)−1}: Cov(v_s, v_t) = σ_s²ρ^{t−s}
            var = self._only_seen(self.variance if stationary else self.variance_after(t))
            now, noise = now + var**2 + 2 * slow, noise + var
            later = later + 2 * early
            slow = decay ** (2 * apart) * (slow + var**2)
            early = decay ** (2 * apart) * early + decay ** (2 * apart - 1) * var
        common = (
            1 - self.lr / self._only_seen(self.innovation)
            if shared_minibatches
            else np.zeros_like(decay)
        )
        pair = (1 + (chains - 1) * common) / chains
        square = (1 + (chains - 1) * common**2) / chains
        total = square * state * now + pair * (measured * noise + coupling * later)
        return math.sqrt(float(total.sum())) / len(steps)

    @property
    def _rate(self) -> np.ndarray:
        return self.lr * (self.n_beta * self.curvatures + self.localization)

    @property
    def _seen(self) -> np.ndarray:
        return (self.curvatures != 0) | (self.gradient_variance != 0)

    def _only_seen(self, array: np.ndarray) -> np.ndarray:
        return array[self._seen]

    def _mean(self, variance: np.ndarray) -> float:
        return float(
            (0.5 * self.n_beta * self._only_seen(self.curvatures) * self._only_seen(variance)).sum()
        )

    @property
    def _second_moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Factors of σ⁴ρ^{2k} (state), σ² at lag 0 (measured minibatch), σ²ρ^{2k−1} at lag k ≥ 1 (their coupling)."""
        h, noise = self._only_seen(self.curvatures), self._only_seen(self.gradient_variance)
        state = 0.5 * (self.n_beta * h) ** 2
        return state, self.n_beta**2 * noise, -0.5 * self.lr * self.n_beta**3 * h * noise

    def _autocovariance(self, lag: int) -> float:
        self._require_stable()
        var, decay = self._only_seen(self.variance), self._only_seen(self.decay)
        state, measured, coupling = self._second_moments
        other = measured * var if lag == 0 else coupling * var * decay ** (2 * lag - 1)
        return float((state * var**2 * decay ** (2 * lag) + other).sum())

    def _require_stable(self) -> None:
        if not self.stable:
            raise InputError(
                f"SGLDLaw: with lr={self.lr} the chain has no stationary law: every direction needs "
                f"0 < lr·(n_beta·h + localization) < 4, and these go from {self._rate.min():.3g} to "
                f"{self._rate.max():.3g}; choose lr < {self.max_lr:.3g}, a positive localization, or ask for "
                f"value_after(steps)."
            )


def _reduced_rank_regression(M: int, N: int, H: int, r: int) -> LearningCoefficient:
    """The four cases; widths of zero are allowed (they give λ = 0)."""
    if N + r > M + H:
        return LearningCoefficient((H * M - H * r + N * r) / 2, 1)
    if M + r > N + H:
        return LearningCoefficient((H * N - H * r + M * r) / 2, 1)
    if H + r > M + N:
        return LearningCoefficient(M * N / 2, 1)
    s = -((H + r) ** 2) - M**2 - N**2 + 2 * (H + r) * (M + N) + 2 * M * N
    odd = (M + H + N + r) % 2
    return LearningCoefficient((s + odd) / 8, 1 + odd)


def _aoyagi_subset(M: list[int]) -> list[int]:
    """The longest beginning of the sorted M with sum ≥ (length − 1)·largest; where one fails, all longer ones fail."""
    size = 2
    while size < len(M) and sum(M[: size + 1]) >= size * M[size]:
        size += 1
    return M[:size]


def _layer_spectra(
    weights: Sequence[Any], layer: int, input_covariance: Any | None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of AᵀA [H_l] and of BΣBᵀ [H_{l−1}], exact zeros where they are within rounding."""
    matrices = [_matrix(f"weights[{i}]", w) for i, w in enumerate(weights)]
    for i, (first, second) in enumerate(pairwise(matrices)):
        if second.shape[1] != first.shape[0]:
            raise InputError(
                f"deep_linear_layer: weights[{i + 1}] must take the {first.shape[0]} outputs of weights[{i}], [H, "
                f"{first.shape[0]}]; got {list(second.shape)}. Give nn.Linear.weight layouts, first layer first."
            )
    if not matrices or not 0 <= operator.index(layer) < len(matrices):
        raise InputError(
            f"deep_linear_layer: layer must be 0 … {len(matrices) - 1}; got {layer!r}."
        )
    outputs, inputs = matrices[layer].shape
    width = matrices[0].shape[1]
    sigma = (
        np.eye(width) if input_covariance is None else _matrix("input_covariance", input_covariance)
    )
    after = _squared_singular_values(matrices[layer + 1 :], outputs)
    before = _squared_singular_values([_root(sigma, width), *matrices[:layer]], inputs)
    return after, before


def _squared_singular_values(chain: list[np.ndarray], dim: int) -> np.ndarray:
    """Squared singular values [dim] of the product of a chain of matrices, those below its rounding error set to 0.

    The rounding error of a product scales with the product of the norms, not with the norm of the product; rounding
    every entry of a matrix of n columns moves its singular values by about eps·√n of the largest at most.
    """
    if not chain:
        return np.ones(dim)
    product = reduce(
        lambda done, matrix: matrix.astype(np.float64) @ done,
        chain[1:],
        chain[0].astype(np.float64),
    )
    values = np.linalg.svd(product, compute_uv=False)
    eps = max(float(np.finfo(matrix.dtype).eps) for matrix in chain)
    scale = math.prod(float(np.linalg.norm(matrix, 2)) for matrix in chain)
    values = np.where(
        values > 10 * math.sqrt(max(max(m.shape) for m in chain)) * eps * scale, values, 0.0
    )
    return np.pad(values**2, (0, max(0, dim - values.size)))[:dim]


def _root(sigma: np.ndarray, width: int) -> np.ndarray:
    """Σ^½, with eigenvalues within rounding of zero made exactly zero (their root would not be small)."""
    tolerance = width * float(np.finfo(sigma.dtype).eps) * float(np.abs(sigma).max(initial=0.0))
    if sigma.shape != (width, width) or np.abs(sigma - sigma.T).max(initial=0.0) > 10 * tolerance:
        raise InputError(
            f"deep_linear_layer: input_covariance must be a symmetric [{width}, {width}] matrix, E[x xᵀ]; got shape "
            f"{list(sigma.shape)}. Symmetrise it as (S + S.T) / 2."
        )
    values, vectors = np.linalg.eigh(sigma.astype(np.float64))
    if values.min() < -10 * tolerance:
        raise InputError(
            f"deep_linear_layer: input_covariance must be positive semi-definite; its smallest eigenvalue is "
            f"{values.min():.3g}. Give E[x xᵀ] of the inputs."
        )
    kept = np.where(values > tolerance, values, 0.0)
    return ((vectors * np.sqrt(kept)) @ vectors.T).astype(sigma.dtype)


def _matrix(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, perhaps on another device or requiring gradients
        value = value.detach().cpu()
    array = np.asarray(value)
    if (
        array.ndim != 2
        or array.size == 0
        or array.dtype.kind not in "iuf"
        or not np.isfinite(array).all()
    ):
        raise InputError(
            f"deep_linear_layer: {name} must be a matrix [out, in] of finite numbers; got shape {list(array.shape)}, "
            f"dtype {array.dtype}."
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _draw_steps(num_draws: int, num_burnin_steps: int, num_steps_bw_draws: int) -> list[int]:
    draws, apart = _count("num_draws", num_draws), _count("num_steps_bw_draws", num_steps_bw_draws)
    burnin = _count("num_burnin_steps", num_burnin_steps, least=0)
    return [burnin + (draw + 1) * apart for draw in range(draws)]


def _count(name: str, value: Any, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"rllc.theory: {name} must be an integer ≥ {least}; got {value!r}.")
    return number


def _check_rank(where: str, name: str, value: Any, least: int, most: int) -> None:
    number = _count(name, value, least=0)
    if not least <= number <= most:
        raise InputError(
            f"{where}: {name} must be a possible rank, {least} … {most} for these widths; got {number}."
        )
