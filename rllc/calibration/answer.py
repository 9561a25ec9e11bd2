"""The answer of a calibration, in one sentence of plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rllc.calibration import search
from rllc.calibration.search import Trouble
from rllc.estimates.estimate import Estimate
from rllc.tables import label

_CAUSES: Mapping[Trouble, str] = {
    "step": "the step size and the minibatches' noise",
    "prior": "γ, which hides flat directions",
    "noise": "too few draws",
    "start": "chains that start at w*",
}
"""The origin of each part of an error, in words."""

_A_FACTOR = 1.5
"""From here on an error is called a factor, below it a percentage."""


def usable(estimate: Estimate, worst: int) -> str:
    """Say what a good setting gets wrong, by the refinement with the largest error.

    Args:
        estimate: at that setting.
        worst: which refinement.
    """
    part = search.largest_part(estimate, worst)
    error = float(estimate.error_parts[part][worst])
    name = label(estimate.names, worst)
    return f"usable; λ̂ of {name} is {_amount(part, error)}, because of {_CAUSES[part]}"


def not_usable(estimate: Estimate, num_settings: int) -> str:
    """Say what is wrong with the setting that came closest to good.

    Args:
        estimate: judged there.
        num_settings: how many were tried.
    """
    worst = search.worst(estimate)
    name = label(estimate.names, worst)
    among = f"none of the {num_settings} settings is good"
    kinds = [fault.kind for fault in estimate.faults[worst]]
    if search.gravest(estimate) == "prior" and kinds == ["prior_dominated"]:
        ratio = float(estimate.diagnostics["control_ratio"][worst])
        return (
            f"not usable: {among}; where chains are stable the prior holds {name} more than the "
            f"loss does (λ̂ is {ratio:.2f} of what the prior alone gives)"
        )
    problem = max(estimate.faults[worst], key=lambda fault: fault.numbers.get("times", 1.0)).problem
    return f"not usable: {among}; at the closest, {name} has this: {problem}"


def _amount(part: Trouble, error: float) -> str:
    """Say how far off a value is: ``"low by up to a factor of 2"``, ``"high by up to 12 %"``."""
    factor = math.exp(error)
    if part == "noise":
        return f"uncertain by {error:.0%} (a standard error)"
    direction = "high" if part == "step" else "low"
    if factor >= _A_FACTOR:
        return f"{direction} by up to a factor of {factor:.2g}"
    share = factor - 1 if part == "step" else 1 - 1 / factor
    return f"{direction} by up to {share:.0%}"
