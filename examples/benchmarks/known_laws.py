"""SGLD on quadratics of which everything is known: the chains of ``coverage.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rllc.statistics.biases import relaxation, relaxation_times, share_missing

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
