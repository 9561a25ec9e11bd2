"""Every threshold beyond which a number counts as wrong, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from rllc.arguments import names_checked
from rllc.errors import InputError


@names_checked
@dataclass(frozen=True)
class Limits:
    """Thresholds beyond which a number counts as wrong. The defaults decide an estimate's status.

    >>> Limits(max_step=0.05).max_step
    0.05

    A number that is not known (NaN) is not judged.

    Args:
        max_spikes: most draws far outside the distribution of the others. One is already a chain
            that was thrown out.
        min_stability: least 4/(ε(nβh + γ)), h being the largest curvature. Below 1 the sharpest
            direction blows up.
        min_acceptance: least mean probability that MALA accepts the steps, and least share of
            draws that differ from the one before. Near 0 a chain is not where its law would have
            it.
        max_acceptance: acceptance above which steps that mix badly are called too small. It only
            changes the advice.
        max_step: largest share of λ̂ that the step size adds. It grows with lr: at 10 %, values
            made with half the lr are 5 % lower.
        min_signal: how many standard errors λ̂ must be above 0 before that share is judged. Below
            2 it is noise.
        max_missing: largest share of λ̂ that flat directions may lack because chains start at w*;
            known before a chain runs. 3 % is what 4 × 150 draws at the paper's settings lack.
        min_relaxation_times: fewest relaxation times of the slowest direction in a chain. Below 4
            a chain from any start shows little but its start.
        false_alarm: p-value below which chains count as drifting, or as sitting apart. One in a
            thousand of chains that have settled.
        min_spread: least share of λ̂ by which chains that sit apart must differ to be a fault.
        max_heavy_tails: largest share of all squared steps that the largest 2 % may hold. For
            Gaussian draws it is 14 %; above 35 % few draws decide the mean.
        max_noise: largest standard error as a share of λ̂. At 1 noise exceeds the signal.
        max_imprecision: largest half length of the 95 % interval as a share of λ̂.
        max_control_ratio: largest ratio of λ̂ to its control, which is λ̂ of the prior alone. At 1
            the loss does nothing. A single curvature is below 0.8 where nβh > γ/4. A ratio above
            the inverse, 1.25, by two standard errors is not explained by the prior either.
        max_pairing: largest share of λ̂ that may come from minibatches of one epoch excluding each
            other.
        max_step_and_noise: largest share of λ̂ that the step size adds together with the
            minibatches' noise, which heats the chain. ∞ does not judge it, because the second part
            assumes that the gradients' covariance is the Hessian.
        min_relaxations: fewest autocorrelation times in a chain's draws. Chains that start at w*
            lack about half the inverse. 0 does not judge it.
        max_settings: how many settings :func:`rllc.calibrate` tries at most, each of which costs
            one :func:`rllc.estimate`.

    Raises:
        InputError: a limit is not a number, a largest one is negative, or ``max_settings`` is
            below 1.
    """

    max_spikes: float = 0.0
    min_stability: float = 1.0
    min_acceptance: float = 0.01
    max_acceptance: float = 0.999
    max_step: float = 0.1
    min_signal: float = 2.0
    max_missing: float = 0.03
    min_relaxation_times: float = 4.0
    false_alarm: float = 1e-3
    min_spread: float = 0.02
    max_heavy_tails: float = 0.35
    max_noise: float = 1.0
    max_imprecision: float = 0.1
    max_control_ratio: float = 0.8
    max_pairing: float = 0.05
    max_step_and_noise: float = math.inf
    min_relaxations: float = 0.0
    max_settings: int = 40

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not isinstance(value, int | float) or math.isnan(value):
                raise InputError(f"Limits: `{limit.name}` must be a number, got {value!r}.")
            if value < 0 and limit.name.startswith("max_"):
                raise InputError(f"Limits: `{limit.name}` must not be negative, got {value!r}.")
        if self.max_settings < 1:
            raise InputError(f"Limits: `max_settings` must be at least 1, got {self.max_settings}.")

    @classmethod
    def for_calibration(cls, **changes: float) -> Limits:
        """Return the limits of a setting that is good enough to be recommended.

        >>> Limits.for_calibration(max_step=0.05).min_relaxations
        10.0

        They differ from those of a status, because a setting serves many estimates:

        - ``min_stability=2``: one step then forgets the sharpest direction. That is the margin,
          since curvatures away from w* are larger.
        - ``min_acceptance=0.1``: at rest on a quadratic at least half is accepted,
          ½ + exp(s²/2)Φ(−s) with s = (εa)^{3/2}√d/4 for precision a in d dimensions.
        - ``max_step_and_noise=0.1`` in place of ``max_step``: minibatch noise included.
        - ``min_relaxations=10``: chains that start at w* then lack 5 %.
        - ``max_noise=0.2``: a factor of 1.5 between two refinements can then be seen.
        - ``max_control_ratio=0.5``: the loss then holds the chains more than the prior does.

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
            "max_imprecision": math.inf,
            "max_control_ratio": 0.5,
        }
        return cls(**(strict | changes))  # type: ignore[arg-type]  # max_settings is an int
