"""λ from a ladder of nβ."""

import math
from collections.abc import Sequence

import numpy as np

MISFITS = {1: 10.8, 2: 13.8}
"""χ² that chance exceeds in one of a thousand, by degrees of freedom."""


def extrapolate(
    n_betas: Sequence[float],
    values: Sequence[float] | np.ndarray,
    errors: Sequence[float] | np.ndarray,
    multiplicity: int,
    repeats: int = 100,
) -> tuple[float, float, str]:
    """λ, its error, and the form that was fitted; the docstring of the benchmark has the forms.

    The error is that of noise alone: the deviation of fits to values that are moved by theirs.
    """
    values = np.asarray(values)
    errors = np.asarray(errors)
    if not np.isfinite([*values, *errors]).all():
        return math.nan, math.nan, "a chain diverged"
    noise = np.random.default_rng(0).standard_normal((repeats, len(values)))
    moved = values + errors * noise
    log = np.log(n_betas)
    if multiplicity > 1:
        fitted, misfit = fit_log(log, values, errors, multiplicity)
        if misfit < MISFITS[len(values) - 2]:
            repeated = [fit_log(log, v, errors, multiplicity)[0] for v in moved]
            return fitted, float(np.std(repeated)), f"λ − {multiplicity - 1}/(log nβ + c)"
    repeated = [fit_power(log, v, errors) for v in moved]
    return fit_power(log, values, errors), float(np.std(repeated)), "λ + b nβ^−p"


def fit_log(
    log: np.ndarray, values: np.ndarray, errors: np.ndarray, multiplicity: int
) -> tuple[float, float]:
    """λ and χ² of λ − (m − 1)/(log nβ + c)."""
    from scipy.optimize import least_squares

    def misfit(at: np.ndarray) -> np.ndarray:
        value, shift = at
        return (value - (multiplicity - 1) / (log + shift) - values) / errors

    lowest_shift = 0.05 - log[0]  # the pole stays left of the first nβ
    fit = least_squares(
        misfit,
        [values[-1] + 0.1, max(2.0, lowest_shift + 1)],
        bounds=([-np.inf, lowest_shift], np.inf),
        x_scale=[max(abs(values[-1]), 1e-9), 1.0],
    )
    return float(fit.x[0]), 2 * float(fit.cost)


def fit_power(log: np.ndarray, values: np.ndarray, errors: np.ndarray) -> float:
    """λ of λ + b nβ^−p, p between 0.1 and 2; at fixed p a straight line."""
    fits = []
    for p in np.linspace(0.1, 2.0, 96):
        powers = np.exp(-p * (log - log[0]))
        design = np.stack([np.ones_like(log), powers], 1) / errors[:, None]
        target = values / errors
        solution, *_ = np.linalg.lstsq(design, target, rcond=None)
        misfit = np.sum((design @ solution - target) ** 2)
        fits.append((float(misfit), float(solution[0])))
    _, value = min(fits)
    return value
