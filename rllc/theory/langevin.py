"""The exact law of SGLD on a quadratic, and what λ̂ is there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rllc.errors import InputError
from rllc.theory.checks import count


@dataclass(frozen=True, eq=False)
class SGLDLaw:
    """The exact law of SGLD and of λ̂ on ℓ(w) = ½ Σ h_i v_i², v = w − w*, at finite (ε, γ, nβ).

    One step is v ← v − (ε/2)[nβ(h v + g) + γ v] + √ε ξ with ξ ~ N(0, 1) and minibatch noise g of
    mean 0. With a = nβh + γ every coordinate is an AR(1) process (index i left out):

    - decay ρ = 1 − εa/2; innovation variance q = ε(1 + (ε/4)(nβ)²C), C = Var g; stable exactly
      when 0 < εa < 4;
    - stationary variance σ² = q/(1 − ρ²) = (1 + (ε/4)(nβ)²C) / (a(1 − εa/4));
    - started at w*, after t steps: σ_t² = σ²(1 − ρ^{2t}).

    Each draw's estimate is λ̂_t = nβ[ℓ_B(w_t) − ℓ_B(w*)] on the *next* minibatch B, the one that
    also makes the next step. B is independent of w_t, so E[λ̂_t] = Σ ½nβh σ_t²: pairing the
    baseline on the same minibatch removes the noise of ℓ_B(w*) and adds no bias, and minibatch
    noise changes the mean only through σ². What it adds to the spread is nβ g·v_t, of variance
    (nβ)²Cσ_t², white in time. Because the same g drives the next step, it is anticorrelated with
    the later draws, by −½ε(nβ)³hC σ_t² ρ^{2k−1} at lag k; both are in :attr:`draw_variance`,
    :meth:`autocorrelation` and :meth:`standard_error`. (Measuring on the *previous* minibatch,
    which made the state, would shift the mean by −½ε(nβ)² ΣC.) Chains that share minibatches have
    correlation κ = 1 − ε/q in each coordinate.

    Means hold for any noise with the stated variance that does not depend on v. Second moments
    also need Gaussian g with uncorrelated coordinates (in the eigenbasis of h).

    >>> law = SGLDLaw(np.ones(10), lr=1e-3, localization=1.0, n_beta=100.0)
    >>> round(law.value, 4), round(law.expected(num_draws=200), 4)
    (5.0787, 4.8462)

    Args:
        curvatures: h ``[dim]``, eigenvalues of the Hessian of the mean loss.
        lr: ε > 0.
        localization: γ ≥ 0.
        n_beta: nβ > 0.
        gradient_variance: C, variance of the minibatch gradient of the mean loss at w*, ``[dim]``
            or one number for all; 0 is full-batch.

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
        is_vector = h.ndim == 1 and h.size > 0
        if not is_vector or not np.isfinite(h).all():
            raise InputError(
                f"SGLDLaw: curvatures must be finite numbers [dim], dim ≥ 1; "
                f"got shape {h.shape}: {h}."
            )
        noise = np.array(self.gradient_variance, dtype=np.float64)
        is_variance = np.isfinite(noise) & (noise >= 0)
        if noise.shape not in ((), h.shape) or not is_variance.all():
            raise InputError(
                f"SGLDLaw: gradient_variance must be one number or [{h.size}] like curvatures, "
                f"finite and ≥ 0; got shape {noise.shape}: {noise}."
            )
        self._require("lr", self.lr > 0, "> 0")
        self._require("n_beta", self.n_beta > 0, "> 0")
        self._require("localization", self.localization >= 0, "≥ 0")
        noise = np.broadcast_to(noise, h.shape).copy()
        h.flags.writeable = False
        noise.flags.writeable = False
        object.__setattr__(self, "curvatures", h)
        object.__setattr__(self, "gradient_variance", noise)

    def _require(self, name: str, is_in_range: bool, allowed: str) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and is_in_range):
            raise InputError(f"SGLDLaw: {name} must be finite and {allowed}; got {value!r}.")

    @property
    def decay(self) -> np.ndarray:
        """ρ = 1 − εa/2 ``[dim]``, the factor by which one step shrinks the mean."""
        return 1 - self._rate / 2

    @property
    def innovation(self) -> np.ndarray:
        """q = ε(1 + (ε/4)(nβ)²C) ``[dim]``, the variance that one step adds."""
        return self.lr * (1 + self.lr / 4 * self.n_beta**2 * self._noise)

    @property
    def stable(self) -> bool:
        """Whether 0 < εa < 4 in every coordinate that the estimate sees (h or C not zero)."""
        rate = self._only_seen(self._rate)
        settles = (rate > 0) & (rate < 4)
        return bool(settles.all())

    @property
    def max_lr(self) -> float:
        """The step size 4/max(a) at which the sharpest direction starts to blow up."""
        a = self.n_beta * self.curvatures + self.localization
        sharpest = float(a.max())
        if sharpest > 0:
            return 4 / sharpest
        return math.inf

    @property
    def variance(self) -> np.ndarray:
        """σ² = q/(1 − ρ²) ``[dim]``, the stationary variance; ∞ where there is none."""
        rate = self._rate
        settles = (rate > 0) & (rate < 4)
        shrink = rate * (1 - rate / 4)  # 1 − ρ², without cancellation
        with np.errstate(divide="ignore"):
            variance = self.innovation / np.abs(shrink)
        return np.where(settles, variance, np.inf)

    def variance_after(self, steps: int) -> np.ndarray:
        """σ_t² = q Σ_{j<t} ρ^{2j} ``[dim]`` of a chain from w*, also of an unstable one.

        Args:
            steps: t, how many steps the chain made.
        """
        steps = count("steps", steps, least=0)
        shrink = self._rate * (1 - self._rate / 4)  # 1 − ρ², without cancellation
        if steps == 0:
            return np.zeros_like(shrink)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_squared_decay = np.log1p(-shrink)
            total = -np.expm1(steps * log_squared_decay) / shrink
        total = np.where(shrink == 0, steps, total)
        return self.innovation * total

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
        """Correlation of stationary draws ``lag`` steps apart; NaN if h = 0.

        Without gradient noise it is Σ 2(½nβh)²σ⁴ρ^{2·lag}/Var.
        """
        total = self.draw_variance
        covariance = self._autocovariance(count("lag", lag, least=0))
        if not total:
            return math.nan
        return covariance / total

    def autocorrelation_time(self, num_steps_bw_draws: int = 1) -> float:
        """τ = 1 + 2 Σ_k autocorrelation(k · num_steps_bw_draws).

        It is (1 + ρ²)/(1 − ρ²) for one curvature and no noise. N stationary draws are worth N/τ
        independent ones for large N; the value at finite N is in :meth:`standard_error`.
        """
        apart = count("num_steps_bw_draws", num_steps_bw_draws)
        self._require_stable()
        variance = self._only_seen(self.variance)
        decay = self._only_seen(self.decay)
        decay_of_square = decay ** (2 * apart)
        state, _, coupling = self._second_moments
        first = state * variance**2 * decay_of_square
        first = first + coupling * variance * decay ** (2 * apart - 1)
        later = first / (1 - decay_of_square)
        total = self.draw_variance
        if not total:
            return math.nan
        return 1 + 2 * float(later.sum()) / total

    def expected(
        self, num_draws: int, *, num_burnin_steps: int = 0, num_steps_bw_draws: int = 1
    ) -> float:
        """The exact mean of λ̂ over draws of chains that started at w*, burn-in or not.

        Draw j = 0, 1, … is the state after num_burnin_steps + (j + 1)·num_steps_bw_draws steps; w*
        itself is never one.
        """
        steps = _draw_steps(num_draws, num_burnin_steps, num_steps_bw_draws)
        sum_of_means = math.fsum(self.value_after(t) for t in steps)
        return sum_of_means / len(steps)

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
            shared_minibatches: all chains see the same minibatches (the default of the library),
                which correlates them when there is gradient noise.
            stationary: chains start in the stationary law instead of at w*.

        Raises:
            InputError: ``stationary`` is asked of an unstable chain.
        """
        num_chains = count("num_chains", num_chains)
        apart = count("num_steps_bw_draws", num_steps_bw_draws)
        steps = _draw_steps(num_draws, num_burnin_steps, apart)
        if stationary:
            self._require_stable()
        decay = self._only_seen(self.decay)
        decay_of_square = decay ** (2 * apart)
        decay_of_coupling = decay ** (2 * apart - 1)
        state_sum = np.zeros_like(decay)
        noise_sum = np.zeros_like(decay)
        coupling_sum = np.zeros_like(decay)
        # Cov(v_s, v_t) = σ_s²ρ^{t−s}, so what earlier draws share with draw t can be carried along:
        # earlier_squares = Σ_{s<t} σ_s⁴ρ^{2(t−s)} and earlier = Σ_{s<t} σ_s²ρ^{2(t−s)−1}.
        earlier_squares = np.zeros_like(decay)
        earlier = np.zeros_like(decay)
        for t in steps:
            variance = self.variance if stationary else self.variance_after(t)
            variance = self._only_seen(variance)
            state_sum = state_sum + variance**2 + 2 * earlier_squares
            noise_sum = noise_sum + variance
            coupling_sum = coupling_sum + 2 * earlier
            earlier_squares = decay_of_square * (earlier_squares + variance**2)
            earlier = decay_of_square * earlier + decay_of_coupling * variance
        common = np.zeros_like(decay)
        if shared_minibatches:
            innovation = self._only_seen(self.innovation)
            common = 1 - self.lr / innovation
        pair = (1 + (num_chains - 1) * common) / num_chains
        square = (1 + (num_chains - 1) * common**2) / num_chains
        state, measured, coupling = self._second_moments
        of_minibatches = measured * noise_sum + coupling * coupling_sum
        total = square * state * state_sum + pair * of_minibatches
        deviation_of_sum = math.sqrt(float(total.sum()))
        return deviation_of_sum / len(steps)

    @property
    def _rate(self) -> np.ndarray:
        """εa [dim]."""
        a = self.n_beta * self.curvatures + self.localization
        return self.lr * a

    @property
    def _noise(self) -> np.ndarray:
        """C [dim]."""
        return np.asarray(self.gradient_variance)

    def _only_seen(self, array: np.ndarray) -> np.ndarray:
        """The coordinates that the estimate sees."""
        is_seen = (self.curvatures != 0) | (self._noise != 0)
        return array[is_seen]

    def _mean(self, variance: np.ndarray) -> float:
        slope = 0.5 * self.n_beta * self._only_seen(self.curvatures)
        of_coordinate = slope * self._only_seen(variance)
        return float(of_coordinate.sum())

    @property
    def _second_moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Factors of the three terms in the covariance of draws k steps apart.

        They are those of σ⁴ρ^{2k} (state), of σ² at lag 0 (measured minibatch), and of σ²ρ^{2k−1}
        at lag k ≥ 1 (their coupling).
        """
        h = self._only_seen(self.curvatures)
        noise = self._only_seen(self._noise)
        state = 0.5 * (self.n_beta * h) ** 2
        measured = self.n_beta**2 * noise
        coupling = -0.5 * self.lr * self.n_beta**3 * h * noise
        return state, measured, coupling

    def _autocovariance(self, lag: int) -> float:
        self._require_stable()
        variance = self._only_seen(self.variance)
        decay = self._only_seen(self.decay)
        state, measured, coupling = self._second_moments
        if lag == 0:
            from_minibatches = measured * variance
        else:
            from_minibatches = coupling * variance * decay ** (2 * lag - 1)
        total = state * variance**2 * decay ** (2 * lag) + from_minibatches
        return float(total.sum())

    def _require_stable(self) -> None:
        if not self.stable:
            raise InputError(
                f"SGLDLaw: with lr={self.lr} the chain has no stationary law: every direction "
                f"needs 0 < lr·(n_beta·h + localization) < 4, and these go from "
                f"{self._rate.min():.3g} to {self._rate.max():.3g}; choose lr < {self.max_lr:.3g}, "
                f"a positive localization, or ask for value_after(steps)."
            )


def _draw_steps(num_draws: int, num_burnin_steps: int, num_steps_bw_draws: int) -> list[int]:
    """After how many steps each draw is made."""
    num_draws = count("num_draws", num_draws)
    apart = count("num_steps_bw_draws", num_steps_bw_draws)
    burnin = count("num_burnin_steps", num_burnin_steps, least=0)
    return [burnin + (draw + 1) * apart for draw in range(num_draws)]
