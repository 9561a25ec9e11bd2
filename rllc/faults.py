"""What draws say of themselves: diagnostics by name, and a status in words that says what is wrong and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rllc import diagnostics
from rllc.draws import Draws
from rllc.sampling import probed

_RHAT = 1.1
"""R-hat above which chains do not agree well enough; Vehtari et al. 2021 ask for 1.01 when draws are plenty."""

_DRIFT = 4.0
"""Geweke's |z| above which a trace has not levelled off."""

_TOGETHER = 4.0
"""Where R-hat is high: trend above which it is because all chains move the same way, not because they sit apart."""

_ADDED = 0.1
"""Share of λ̂ that the step size may add."""

_NEVER_ACCEPTED, _ALWAYS_ACCEPTED = 0.01, 0.999
"""MALA acceptance of steps that are too large, and of steps that may be too small if chains mix badly, too."""

DIAGNOSTICS = {
    "relaxation": "autocorrelation time of λ̂'s draws, in draws: chains × draws / ess",
    "drift": "Geweke's z of the trace after its first fifth: below 0 it still rises (rllc.diagnostics.geweke)",
    "trend": "second half minus first half, mean over chains by its standard error from how chains differ: all move together",
    "spikes": "draws far outside the distribution of the others (rllc.diagnostics.spikes)",
    "acceptance": "mean probability that MALA would accept sgld's steps; near 0 they are too large, at 1 they may be too small",
    "discretisation": "share of λ̂ that the step size adds",
    "max_curvature": "largest curvature h of the loss at w* in these weights, on one minibatch",
    "stability": "4/(ε(nβh + γ)) for the largest h; below 1 the sharpest direction blows up (sgld and sghmc)",
    "from_variance": "a second reading of λ, from the variance of the draws (rllc.diagnostics.variance_reading)",
    "from_variance_se": "standard error of that reading",
    "minibatch_variance": "the part of the draws' variance that comes from the choice of the minibatch",
    "prior_shrinkage": "1 − from_variance/λ̂: by about which share the prior makes λ̂ smaller than it would be without",
}
"""What ``Estimate.diagnostics`` holds. Acceptance, discretisation and curvature need ``Sampling(num_probes=…)`` above 0."""


def diagnose(draws: Draws, mine: list[int], kept: slice, ess: np.ndarray) -> dict[str, np.ndarray]:
    """The diagnostics of refinements with draws of one length, from those after the rise."""
    s, llc = draws.settings, draws.llc[mine, :, kept]
    settled = llc.mean((1, 2))
    found = {
        "drift": diagnostics.geweke(llc, first=0.2),
        "trend": _trend(llc),
        "spikes": diagnostics.spikes(llc),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        found["relaxation"] = llc.shape[1] * kept.stop / ess
        if "minibatch_variance" in draws.observed:
            noise = s["n_beta"] ** 2 * draws.observed["minibatch_variance"][mine, :, kept]
            plain = s["n_beta"] * (draws.loss - draws.baseline)[mine, :, kept]
            second, error = diagnostics.variance_reading(plain, noise)
            found |= {
                "from_variance": second,
                "from_variance_se": error,
                "prior_shrinkage": 1 - second / settled,
            }
            found["minibatch_variance"] = noise.mean((1, 2))
        if "acceptance" in draws.observed:
            seen = sum(
                d < kept.stop for d in probed(s["num_probes"], s["num_draws"], s["target_se"])
            )
            found["acceptance"] = draws.observed["acceptance"][mine, :, :seen].mean((1, 2))
        if "discretisation" in draws.observed:
            seen = sum(
                d < kept.stop for d in probed(s["num_probes"], s["num_draws"], s["target_se"])
            )
            added = draws.observed["discretisation"][mine, :, :seen]
            found["discretisation"] = added.mean((1, 2)) / settled
    if "max_curvature" in draws.observed:
        found["max_curvature"] = draws.observed["max_curvature"][mine]
    if "stability" in draws.observed:
        found["stability"] = draws.observed["stability"][mine]
    return found


def _trend(llc: np.ndarray) -> np.ndarray:
    half = llc.shape[-1] // 2
    if llc.shape[1] < 2 or half < 1:
        return np.full(len(llc), np.nan)
    moved = llc[..., -half:].mean(-1) - llc[..., :half].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return moved.mean(1) / (moved.std(1, ddof=1) / np.sqrt(llc.shape[1]))


def verdict(diverged: np.ndarray, seen: Mapping[str, float], settings: Mapping[str, Any]) -> str:
    """What is wrong and what to change, the graver first; a comparison with NaN is never true."""
    if (diverged >= 0).any():
        chain = int(np.flatnonzero(diverged >= 0)[0])
        more = int((diverged >= 0).sum()) - 1
        others = f" (and {more} more)" if more else ""
        return f"diverged: chain {settings.get('first_chain', 0) + chain} at step {diverged[chain]}{others}; lower lr"
    value, error, target = seen["value"], seen["error"], settings.get("target_se")
    small = seen["acceptance"] > _ALWAYS_ACCEPTED
    too_small = "steps too small (acceptance 1), larger lr"
    disagree = seen["rhat"] > _RHAT
    together = _TOGETHER if disagree else np.inf  # R-hat also compares the halves of each chain
    rising, falling = (
        sign * seen["drift"] < -_DRIFT or sign * seen["trend"] > together for sign in (1, -1)
    )
    problems = [
        (np.isnan(error), "too few draws for a standard error: at least 4"),
        (seen["spikes"] > 0, f"spikes in {seen['spikes']:.0f} draws: lower lr"),
        (
            seen["stability"] < 1,
            f"unstable in the sharpest direction, of curvature {seen['max_curvature']:.3g}: lr below "
            f"{settings['lr'] * seen['stability']:.1g}",
        ),
        (
            seen["acceptance"] < _NEVER_ACCEPTED,
            f"steps too large (acceptance {seen['acceptance']:.3f}): lower lr",
        ),
        (
            value > 2 * error and seen["discretisation"] > _ADDED,
            f"the step size adds {seen['discretisation']:.0%}: lower lr",
        ),
        (rising, f"still rising: {too_small if small else 'more burn-in, or larger lr'}"),
        (falling, f"still falling: {too_small if small else 'more burn-in, or larger lr'}"),
        (
            disagree and not rising and not falling,
            f"chains disagree (R-hat): {too_small if small else 'more draws or burn-in'}",
        ),
        (value < 0, "negative: w* is not a minimum for this data, or noise exceeds signal"),
        (0 <= value < error, "noise exceeds signal: more draws"),
        (target is not None and error > target, "standard error above target_se: more draws"),
    ]
    return "; ".join(words for wrong, words in problems if wrong) or "ok"
