"""SGLD on quadratics of which everything is known: the chains of ``coverage.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rllc.statistics.biases import relaxation, relaxation_times, share_missing
from rllc.statistics.quantiles import f_tail
from rllc.theory import SGLDLaw

LOCALIZATION = 200.0
SHORTEST, MOST_MISSING = 4.0, 0.03


@dataclass(frozen=True)
class Problem:
    """SGLD on ½ Σ hᵢvᵢ², on minibatches that tilt it by g·v and multiply it by 1 + e."""

    curvatures: np.ndarray
    lr: float = 1e-3
    n_beta: float = 30.0
    predictions: float = np.inf
    """Of a minibatch; gradients have variance h/predictions."""
    shaking: float = 0.05
    """Standard deviation of e; 0 on full batches."""
    control_variate: bool = False
    start: str = "gaussian"
    start_factor: float = 1.0
    """By which the curvatures at the start are wrong."""

    @property
    def full_batch(self) -> bool:
        """Whether there is no minibatch noise."""
        return np.isinf(self.predictions)

    @property
    def noise(self) -> np.ndarray:
        """Variance of a minibatch's gradient, ``[dim]``."""
        return self.curvatures / self.predictions

    @property
    def relaxation(self) -> float | None:
        """Correlation of successive draws in the slowest direction."""
        return relaxation(self.lr, LOCALIZATION)

    @property
    def truth(self) -> float:
        """Σ ½nβhσ²; a contraction that varies by e leaves a little less of it."""
        rate = self.n_beta * self.curvatures + LOCALIZATION
        innovation = self.lr * (1 + self.lr / 4 * self.n_beta**2 * self.noise)
        shaken = 0.0 if self.full_batch else self.lr / 2 * self.n_beta * self.shaking
        decay = (1 - self.lr * rate / 2) ** 2 + (shaken * self.curvatures) ** 2
        variance = innovation / (1 - decay)
        return float((self.n_beta * self.curvatures / 2 * variance).sum())

    def too_short(self, draws: int) -> bool:
        """Whether this many draws are too few, known before a chain runs."""
        if self.start == "center":
            return share_missing(self.lr, LOCALIZATION, draws) > MOST_MISSING
        return relaxation_times(self.lr, LOCALIZATION, draws) < SHORTEST


def first_positions(
    problem: Problem, repetitions: int, chains: int, stream: np.random.Generator
) -> np.ndarray:
    """Where chains start, ``[repetition, chain, dim]``."""
    dim = len(problem.curvatures)
    if problem.start == "center":
        return np.zeros((repetitions, chains, dim), np.float32)
    looks = stream.chisquare(127, (repetitions, 1, dim)) / 127
    rate = problem.n_beta * problem.curvatures * problem.start_factor * looks + LOCALIZATION
    step = np.maximum(1 - problem.lr * rate / 4, 0.5)
    scale = (rate * step) ** -0.5
    noise = stream.standard_normal((repetitions, chains, dim), dtype=np.float32)
    return noise * scale.astype(np.float32)


def simulate(
    problem: Problem, repetitions: int, chains: int, draws: int, stream: np.random.Generator
) -> np.ndarray:
    """λ̂'s draws ``[repetition, chain, draw]``: each on the minibatch that makes the next step."""
    h = problem.curvatures.astype(np.float32)
    slope_sd = np.sqrt(problem.noise).astype(np.float32)
    lr, n_beta = np.float32(problem.lr), np.float32(problem.n_beta)
    shaking = np.float32(0.0 if problem.full_batch else problem.shaking)
    position = first_positions(problem, repetitions, chains, stream)
    lanes = (repetitions, 1, len(h))
    # The control variate knows the mean slope from 128 minibatches of its own.
    known_slope = slope_sd * stream.standard_normal(lanes, dtype=np.float32) / np.sqrt(128)
    x = np.empty((repetitions, chains, draws))
    # A draw is measured behind its step, so the state at the start is no draw.
    for draw in range(-1, draws):
        slope = slope_sd * stream.standard_normal(lanes, dtype=np.float32)
        shake = 1 + shaking * stream.standard_normal((repetitions, 1, 1), dtype=np.float32)
        if draw >= 0:
            tilt = known_slope if problem.control_variate else slope
            height = shake[..., 0] * (np.square(position) @ h) / 2
            x[..., draw] = n_beta * (height + (position @ tilt.swapaxes(1, 2))[..., 0])
        noise = stream.standard_normal(position.shape, dtype=np.float32)
        pull = n_beta * h * shake + np.float32(LOCALIZATION)
        position = (1 - lr / 2 * pull) * position - lr / 2 * n_beta * slope
        position += np.sqrt(lr) * noise
    return x


def head_like(dim: int = 400) -> np.ndarray:
    """Curvatures like those of an attention head of a small trained transformer."""
    return 0.9 * np.arange(1, dim + 1) ** -0.7


def covariances(problem: Problem, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """What a chain's own draws vary by, ``[draw, draw]``: the slow part, and the white one.

    Two draws of Σ ½nβhᵢvᵢ² have covariance Σ ½(nβhᵢσᵢ²)²ρᵢ^(2·lag). The slopes of minibatches add
    (nβ)²ΣCᵢσᵢ² to each draw, of which the control variate leaves what its own 128 did not know.
    """
    law = SGLDLaw(
        problem.curvatures,
        lr=problem.lr,
        localization=LOCALIZATION,
        n_beta=problem.n_beta,
        gradient_variance=problem.noise,
    )
    lags = np.abs(np.subtract.outer(np.arange(draws), np.arange(draws)))
    each = np.square(problem.n_beta * problem.curvatures * law.variance) / 2
    memory = np.square(law.decay) ** np.arange(draws)[:, None]
    slow = (memory @ each)[lags]
    white = problem.n_beta**2 * float(problem.noise @ law.variance)
    if problem.control_variate:
        white = white / 128
    return slow, white * np.eye(draws)


def share_to_be_found(
    problem: Problem, levels: np.ndarray, draws: int, stream: np.random.Generator, *, learnt: bool
) -> float:
    """In what share of repetitions the best test of chains' levels finds them at p < 0.001.

    A chain's level is best known by generalised least squares, with variance v = 1/(1ᵀΣ⁻¹1). Where
    Σ is known, χ² = Σ (level − mean level)²/v with C − 1 degrees of freedom is the most powerful
    test that does not know which chains differ. A test that has to learn from the same draws how
    much of Σ is slow and how much is white has no unbiased reading of v better than the Cramér-Rao
    bound of the (C − 1)(N − 1) cosines that are blind to levels, which leaves an F test.

    Args:
        problem: says Σ.
        levels: by which the draws are multiplied, ``[repetition, chain]``.
        draws: N.
        stream: of random numbers.
        learnt: whether the test has to learn.
    """
    slow, white = covariances(problem, draws)
    repetitions, chains = levels.shape
    pull = np.linalg.solve(slow + white, np.ones(draws))
    variance = 1 / pull.sum()
    noise = np.sqrt(variance) * stream.standard_normal(levels.shape)
    means = levels * (problem.truth + noise)
    known = means.var(1, ddof=1) / variance
    dof = 1e4  # as good as χ², and much faster than 1e6
    if learnt:
        dof = _freedom_to_learn(slow, white, chains)
        known = known / (stream.chisquare(dof, repetitions) / dof)
    return float((f_tail(known, chains - 1, dof) < 1e-3).mean())


def _freedom_to_learn(slow: np.ndarray, white: np.ndarray, chains: int) -> float:
    """2v²/Var(v̂) of the best unbiased v̂, both parts' sizes being unknown."""
    draws = len(slow)
    parts = [slow, white] if white.any() else [slow]
    whole = slow + white
    pull = np.linalg.solve(whole, np.ones(draws))
    variance = 1 / pull.sum()
    slopes = np.array([variance**2 * (pull @ part @ pull) for part in parts])
    time = np.arange(draws) + 0.5
    cosines = np.cos(np.pi / draws * np.outer(np.arange(1, draws), time)) * np.sqrt(2 / draws)
    seen = np.linalg.inv(cosines @ whole @ cosines.T)
    scores = [seen @ (cosines @ part @ cosines.T) for part in parts]
    information = np.array([[np.sum(a * b.T) for b in scores] for a in scores])
    information = (chains - 1) / 2 * information
    return float(2 * variance**2 / (slopes @ np.linalg.solve(information, slopes)))
