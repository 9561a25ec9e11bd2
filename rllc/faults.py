"""What is wrong with an estimate, as values, and the rules that find it.

:func:`faults_of` applies :data:`RULES` to the numbers of one refinement. A status is the text of
its faults; nothing reads that text again. :func:`rllc.estimate` and :func:`rllc.calibrate` use the
same rules, each with its own :class:`rllc.Limits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from rllc.limits import Limits

Kind = Literal[
    "missing",
    "failed",
    "damaged",
    "not_asked_for",
    "diverged",
    "too_few_draws",
    "spikes",
    "unstable",
    "hardly_stable",
    "rarely_accepted",
    "step_bias",
    "step_and_noise_bias",
    "few_relaxations",
    "rising",
    "falling",
    "disagree",
    "negative",
    "no_loss",
    "noise_above_signal",
    "imprecise",
    "above_target",
    "prior_dominated",
]
"""The kinds of faults. The first four are those of a sweep's cell that has no estimate."""

PROBLEMS: Mapping[Kind, str] = {
    "missing": "missing",
    "failed": "failed",
    "damaged": "damaged",
    "not_asked_for": "not asked for",
    "diverged": "diverged: chain {chain:.0f} at step {step:.0f}",
    "too_few_draws": "too few draws for a standard error",
    "spikes": "spikes in {draws:.0f} draws",
    "unstable": "unstable in the sharpest direction, of curvature {curvature:.3g}",
    "hardly_stable": "hardly stable in the sharpest direction, of curvature {curvature:.3g}",
    "rarely_accepted": "steps too large (acceptance {acceptance:.3f})",
    "step_bias": "the step size adds {share:.0%}",
    "step_and_noise_bias": "the step size and the minibatches' noise add {share:.0%}",
    "few_relaxations": "slow ({relaxations:.1f} relaxation times)",
    "rising": "still rising",
    "falling": "still falling",
    "disagree": "chains disagree (R-hat)",
    "negative": "negative",
    "no_loss": "zero",
    "noise_above_signal": "noise exceeds signal",
    "imprecise": "imprecise (the standard error is {share:.0%} of the value)",
    "above_target": "standard error above target_se",
    "prior_dominated": "the prior hides {share:.0%}",
}
"""What each kind says of its numbers."""

ABSENT: frozenset[Kind] = frozenset({"missing", "failed", "damaged", "not_asked_for"})
"""The kinds of a cell that has no estimate."""

FINAL: frozenset[Kind] = ABSENT | {"diverged"}
"""The kinds that no limit decides. A refinement that has one is not judged."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one estimate.

    >>> print(Fault("spikes", {"draws": 3}, "lower lr"))
    spikes in 3 draws: lower lr

    Args:
        kind: which fault, one of :data:`Kind`.
        numbers: what was measured. ``times`` says how many times its limit it is, and
            ``times_rhat`` the same of R-hat where that is too large as well. ``others`` counts
            further chains with the same fault.
        advice: what to change; of a failed or damaged cell, the error.
    """

    kind: Kind
    numbers: Mapping[str, float] = field(default_factory=dict, hash=False)
    advice: str = ""

    @property
    def problem(self) -> str:
        """What is wrong, in words, without the advice."""
        words = PROBLEMS[self.kind].format_map(self.numbers)
        others = self.numbers.get("others", 0)
        return f"{words} (and {others:.0f} more)" if others else words

    @property
    def text(self) -> str:
        """What is wrong and what to change."""
        if not self.advice:
            return self.problem
        separator = "; " if ":" in self.problem else ": "
        return self.problem + separator + self.advice

    def __str__(self) -> str:
        return self.text


def status_of(faults: Iterable[Fault]) -> str:
    """Return the text of some faults, ``"ok"`` if there are none.

    >>> status_of([])
    'ok'
    """
    return "; ".join(fault.text for fault in faults) or "ok"


def faults_to_json(faults: Iterable[Fault]) -> list[list[Any]]:
    """Return faults as lists that JSON can hold; :func:`faults_from_json` reads them."""
    return [[fault.kind, dict(fault.numbers), fault.advice] for fault in faults]


def faults_from_json(lists: Iterable[Iterable[Any]]) -> tuple[Fault, ...]:
    """Return the faults that :func:`faults_to_json` wrote.

    >>> faults_from_json(faults_to_json([Fault("missing")]))
    (Fault(kind='missing', numbers={}, advice=''),)
    """
    return tuple(Fault(*values) for values in lists)


def divergence(diverged: np.ndarray, first_chain: int = 0) -> tuple[Fault, ...]:
    """Return the fault of a refinement whose chains diverged; nothing if none did.

    >>> divergence(np.array([-1, 51, -1]))[0].text
    'diverged: chain 1 at step 51; lower lr'

    Args:
        diverged: ``[chain]``: the step at which each chain diverged, −1 if it did not.
        first_chain: number of the first chain.
    """
    chains = np.flatnonzero(diverged >= 0)
    if not chains.size:
        return ()
    chain = int(chains[0])
    numbers = {"chain": first_chain + chain, "step": int(diverged[chain])}
    return (Fault("diverged", numbers | {"others": len(chains) - 1}, "lower lr"),)


Row = Mapping[str, float]
"""The numbers of one refinement by name: of the estimate, its diagnostics, the parts of its error.

The parts of :func:`rllc.diagnose.parts_of_error` are ``step_part``, ``prior_part`` and so on.
"""

Rule = Callable[[Row, Mapping[str, Any], Limits], Fault | None]
"""``(row, settings, limits)`` to a fault; ``None`` where nothing is wrong, or known to be."""


def faults_of(row: Row, settings: Mapping[str, Any], limits: Limits) -> tuple[Fault, ...]:
    """Return what is wrong with one refinement, the severest first.

    Args:
        row: its numbers; NaN where one is not known.
        settings: of sampler and sampling.
        limits: from where on something is wrong.
    """
    faults = [rule(row, settings, limits) for rule in RULES]
    return tuple(fault for fault in faults if fault is not None)


def _too_few_draws(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    unknown = math.isnan(row["standard_error"])
    return Fault("too_few_draws", {}, "at least 4") if unknown else None


def _spikes(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    spikes = row["spikes"]
    if not spikes > limits.max_spikes:
        return None
    # One more than each, so that the first spike above a limit of 0 has a finite ratio.
    times = (1 + spikes) / (1 + limits.max_spikes)
    return _fault("spikes", "lower lr", draws=spikes, times=times)


def _unstable(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    stability = row["stability"]
    if not stability < limits.min_stability:
        return None
    largest_lr = settings["lr"] * stability / limits.min_stability
    return _fault(
        "unstable" if stability < 1 else "hardly_stable",
        f"lr below {largest_lr:.1g}",
        stability=stability,
        curvature=row["max_curvature"],
        times=limits.min_stability / stability,
    )


def _rarely_accepted(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    acceptance = row["acceptance"]
    if not acceptance < limits.min_acceptance:
        return None
    times = limits.min_acceptance / max(acceptance, 1e-6)
    return _fault("rarely_accepted", "lower lr", acceptance=acceptance, times=times)


def _step_bias(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = row["discretisation"]
    signal = row["value"] > limits.min_signal * row["standard_error"]
    if not (signal and share > limits.max_step):
        return None
    return _fault("step_bias", "lower lr", share=share, times=_ratio(share, limits.max_step))


def _step_and_noise_bias(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = 1 - math.exp(-row["step_part"])
    if not share > limits.max_step_and_noise:
        return None
    times = _ratio(share, limits.max_step_and_noise)
    return _fault("step_and_noise_bias", "lower lr, or larger batches", share=share, times=times)


def _few_relaxations(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not limits.min_relaxations:
        return None
    relaxations = settings["num_draws"] / row["relaxation"]
    if not relaxations < limits.min_relaxations:
        return None
    times = limits.min_relaxations / relaxations
    return _fault(
        "few_relaxations", "more draws, or larger lr", relaxations=relaxations, times=times
    )


def _moving(
    row: Row, settings: Mapping[str, Any], limits: Limits, *, kind: Kind, direction: int
) -> Fault | None:
    if not _moves(direction, row, limits):
        return None
    numbers = {name: row[name] for name in ("drift", "trend", "rhat")}
    if direction * row["drift"] < -limits.max_drift:
        numbers["times"] = _ratio(abs(row["drift"]), limits.max_drift)
    if row["rhat"] > limits.max_rhat:
        numbers["times_rhat"] = _times_rhat(row, limits)
    return _fault(kind, _advice(row, limits, "more burn-in, or larger lr"), **numbers)


def _disagree(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not row["rhat"] > limits.max_rhat:
        return None
    # R-hat also compares the halves of each chain. Chains that all move the same way differ in
    # their halves, and that is what is then said of them.
    if _moves(1, row, limits) or _moves(-1, row, limits):
        return None
    numbers = {"rhat": row["rhat"], "times_rhat": _times_rhat(row, limits)}
    return _fault("disagree", _advice(row, limits, "more draws or burn-in"), **numbers)


def _negative(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not row["value"] < 0:
        return None
    meaning = "w* is not a minimum for this data, or noise exceeds signal"
    return _fault("negative", meaning, value=row["value"])


def _no_loss(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not 0 <= row["value"] < limits.min_value:
        return None
    return _fault("no_loss", "the loss does not depend on these weights", value=row["value"])


def _noisy(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    value, error = row["value"], row["standard_error"]
    if not 0 <= value * limits.max_noise < error:
        return None
    share = _ratio(error, value)
    times = _ratio(share, limits.max_noise)
    if value < error:
        return _fault("noise_above_signal", "more draws", share=share, times=times)
    return _fault("imprecise", "more draws, or larger batches", share=share, times=times)


def _above_target(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    target = settings.get("target_se")
    if target is None or not row["standard_error"] > target:
        return None
    return _fault("above_target", "more draws", times=row["standard_error"] / target)


def _prior_dominated(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if limits.max_shrinkage >= 1:
        return None
    times = _ratio(row["prior_part"], -math.log1p(-limits.max_shrinkage))
    if not times > 1:
        return None
    share = 1 - math.exp(-row["prior_part"])
    advice = "smaller localization, or larger n_beta"
    return _fault("prior_dominated", advice, share=share, times=times)


RULES: tuple[Rule, ...] = (
    _too_few_draws,
    _spikes,
    _unstable,
    _rarely_accepted,
    _step_bias,
    _step_and_noise_bias,
    _few_relaxations,
    partial(_moving, kind="rising", direction=1),
    partial(_moving, kind="falling", direction=-1),
    _disagree,
    _negative,
    _no_loss,
    _noisy,
    _above_target,
    _prior_dominated,
)
"""The rule book, the severest first. To add a fault: a kind, its words, a rule, and its limit."""


def _fault(kind: Kind, advice: str, **numbers: float) -> Fault:
    """Make a fault of the numbers that are known."""
    return Fault(kind, {k: v for k, v in numbers.items() if not math.isnan(v)}, advice)


def _ratio(number: float, limit: float) -> float:
    return number / limit if limit else math.inf


def _moves(direction: int, row: Row, limits: Limits) -> bool:
    """Whether the trace still rises (1) or falls (−1)."""
    # Geweke's z is below 0 when the trace rises.
    drifts = direction * row["drift"] < -limits.max_drift
    together = direction * row["trend"] > limits.max_trend
    return drifts or (together and row["rhat"] > limits.max_rhat)


def _times_rhat(row: Row, limits: Limits) -> float:
    return _ratio(row["rhat"] - 1, limits.max_rhat - 1)


def _advice(row: Row, limits: Limits, usual: str) -> str:
    """Return what helps chains that mix badly."""
    if row["acceptance"] > limits.max_acceptance:
        return "steps too small (acceptance 1), larger lr"
    return usual
