"""From where on something counts as wrong: every threshold, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from rllc.errors import InputError


@dataclass(frozen=True)
class Limits:
    """From where on something counts as wrong. The defaults are those of an estimate's status.

    >>> Limits(max_rhat=1.05).max_rhat
    1.05

    A number that is not known (NaN) is not judged.

    Args:
        max_spikes: most draws far outside the distribution of the others. One is already a chain
            that was thrown out.
        min_stability: least 4/(ε(nβh + γ)), h being the largest curvature. Below 1 the sharpest
            direction blows up.
        min_acceptance: least mean probability that MALA accepts the steps. Near 0 a chain is not
            where its law would have it.
        max_acceptance: acceptance above which steps that mix badly are called too small. It only
            changes the advice.
        max_step: largest share of λ̂ that the step size adds. It grows with lr: at 10 %, values
            made with half the lr are 5 % lower.
        min_signal: how many standard errors λ̂ must be above 0 before that share is judged. Below
            2 it is noise.
        max_drift: largest size of Geweke's z, after the first fifth of the draws. 4 is a false
            alarm in 16,000 of stationary chains.
        max_trend: where R-hat is too large, the trend above which that is because all chains move
            the same way, not because they sit apart. 4 for the same reason.
        max_rhat: largest R-hat. Vehtari et al. (2021) ask for 1.01 when draws are plenty; a few
            hundred correlated draws of chains that agree reach 1.1.
        max_noise: largest standard error as a share of λ̂. At 1 noise exceeds the signal.
        max_step_and_noise: largest share of λ̂ that the step size adds together with the
            minibatches' noise, which heats the chain. ∞ does not judge it, because the second part
            assumes that the gradients' covariance is the Hessian.
        min_relaxations: fewest autocorrelation times in a chain's draws. Chains that start at w*
            lack about half the inverse. 0 does not judge it.
        max_shrinkage: largest share by which the prior makes λ̂ smaller. 1 does not judge it: at
            the paper's settings a quadratic of unit curvature has 0.87.
        min_value: least λ̂ that is not 0. With 0 an estimate of exactly 0 is not a fault.
        max_settings: how many settings :func:`rllc.calibrate` tries at most, each of which costs
            one :func:`rllc.estimate`.

    Raises:
        InputError: a limit is not a number, or ``max_settings`` is below 1.
    """

    max_spikes: float = 0.0
    min_stability: float = 1.0
    min_acceptance: float = 0.01
    max_acceptance: float = 0.999
    max_step: float = 0.1
    min_signal: float = 2.0
    max_drift: float = 4.0
    max_trend: float = 4.0
    max_rhat: float = 1.1
    max_noise: float = 1.0
    max_step_and_noise: float = math.inf
    min_relaxations: float = 0.0
    max_shrinkage: float = 1.0
    min_value: float = 0.0
    max_settings: int = 40

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not isinstance(value, int | float) or math.isnan(value):
                raise InputError(f"Limits: `{limit.name}` must be a number, got {value!r}.")
        if self.max_settings < 1:
            raise InputError(f"Limits: `max_settings` must be at least 1, got {self.max_settings}.")

    @classmethod
    def for_calibration(cls, **changes: float) -> Limits:
        """Return the limits of a setting that is good enough to be recommended.

        >>> Limits.for_calibration(max_rhat=1.05).min_relaxations
        10.0

        They differ from those of a status, because a setting serves many estimates:

        - ``min_stability=2``: one step then forgets the sharpest direction. That is the margin,
          since curvatures away from w* are larger.
        - ``min_acceptance=0.1``: at rest on a quadratic at least half is accepted,
          ½ + exp(s²/2)Φ(−s) with s = (εa)^{3/2}√d/4 for precision a in d dimensions.
        - ``max_step_and_noise=0.1`` in place of ``max_step``: minibatch noise included.
        - ``min_relaxations=10``: chains that start at w* then lack 5 %.
        - ``max_noise=0.2``: a factor of 1.5 between two refinements can then be seen.
        - ``max_shrinkage=0.9``: beyond, the prior is what is measured, not the loss.
        - ``min_value``: the smallest number above 0, since a value of 0 says nothing of the loss.

        Args:
            changes: limits to be changed, by name.
        """
        strict = {
            "min_stability": 2.0,
            "min_acceptance": 0.1,
            "max_step": math.inf,
            "max_step_and_noise": 0.1,
            "min_relaxations": 10.0,
            "max_noise": 0.2,
            "max_shrinkage": 0.9,
            "min_value": float(np.finfo(np.float64).tiny),
        }
        return cls(**(strict | changes))  # type: ignore[arg-type]  # max_settings is an int
