"""Faults of an estimate, as values, and the rules that find them.

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
    "heavy_tails",
    "too_short",
    "does_not_move",
    "weights_ignored",
    "rounding",
    "pairing",
    "negative",
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
    "disagree": "chains disagree (they differ by {spread:.0%})",
    "heavy_tails": "heavy tails (few draws hold {share:.0%} of the variance)",
    "too_short": "too short (flat directions lack {share:.1%})",
    "does_not_move": "chains do not move",
    "weights_ignored": "nothing to measure",
    "rounding": "no more than rounding",
    "pairing": "minibatches of one epoch add {share:.0%}",
    "negative": "negative",
    "noise_above_signal": "noise exceeds signal",
    "imprecise": "imprecise (± {share:.0%})",
    "above_target": "standard error above target_se",
    "prior_dominated": "the prior alone gives this (λ̂ is {share:.2f} of its control)",
}
"""The words of each kind of fault, with places for its numbers."""

ABSENT: frozenset[Kind] = frozenset({"missing", "failed", "damaged", "not_asked_for"})
"""The kinds of a cell that has no estimate."""

FINAL: frozenset[Kind] = ABSENT | {"diverged"}
"""The kinds that no limit decides. A refinement that has one is not judged."""

ABOUT_LLC: frozenset[Kind] = frozenset(
    {
        "pairing",
        "negative",
        "noise_above_signal",
        "imprecise",
        "above_target",
        "prior_dominated",
    }
)
"""The kinds that are of λ̂ itself. The others are of the chains, and so of all made of them."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one estimate.

    >>> print(Fault("spikes", {"draws": 3}, "lower lr"))
    spikes in 3 draws: lower lr

    Args:
        kind: which fault, one of :data:`Kind`.
        numbers: what was measured. ``times`` says how many times its limit it is. ``others``
            counts further chains with the same fault.
        advice: what to change; of a failed or damaged cell, the error.
    """

    kind: Kind
    numbers: Mapping[str, float] = field(default_factory=dict, hash=False)
    advice: str = ""

    @property
    def problem(self) -> str:
        """The fault in words, without the advice."""
        words = PROBLEMS[self.kind].format_map(self.numbers)
        others = self.numbers.get("others", 0)
        return f"{words} (and {others:.0f} more)" if others else words

    @property
    def text(self) -> str:
        """The fault in words, and what to change."""
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
    faults = tuple(Fault(*values) for values in lists)
    status_of(faults)  # an unknown kind, or one without its numbers, is noticed here
    return faults


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

The parts of :func:`rllc.estimates.diagnose.parts_of_error` are ``step_part``, ``prior_part`` and so
on.
"""

Rule = Callable[[Row, Mapping[str, Any], Limits], Fault | None]
"""``(row, settings, limits)`` to a fault; ``None`` where nothing is wrong, or known to be."""


def faults_of(row: Row, settings: Mapping[str, Any], limits: Limits) -> tuple[Fault, ...]:
    """Return the faults of one refinement, the severest first.

    Where two rules find a fault of the same kind, only the graver one counts.

    Args:
        row: the refinement's numbers; NaN where one is not known.
        settings: of sampler and sampling.
        limits: beyond which a number is a fault.
    """
    gravest: dict[Kind, Fault] = {}
    for rule in RULES:
        fault = rule(row, settings, limits)
        if fault is None:
            continue
        gravest_so_far = gravest.setdefault(fault.kind, fault)
        if fault.numbers.get("times", 1.0) > gravest_so_far.numbers.get("times", 1.0):
            gravest[fault.kind] = fault
    return tuple(gravest.values())


def _too_few_draws(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not math.isnan(row["standard_error"]):
        return None
    return Fault("too_few_draws", {}, "at least 4")


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
    is_above_noise = row["value"] > limits.min_signal * row["standard_error"]
    if not is_above_noise or not share > limits.max_step:
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


def _too_short(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = row["missing_at_start"]
    if share > limits.max_missing and row["relaxation_times"] > 0:
        # The share falls as 1/(relaxation times).
        draws_needed = settings["num_draws"] / row["relaxation_times"] / limits.max_missing
        more_draws = max(math.ceil(draws_needed - settings["num_draws"]), 1)
        advice = _advice(row, limits, f"start='gaussian', or {more_draws} more draws")
        times = _ratio(share, limits.max_missing)
        return _fault("too_short", advice, share=share, times=times)
    relaxations = row["relaxation_times"]
    if relaxations < limits.min_relaxation_times:
        times = limits.min_relaxation_times / relaxations
        advice = _advice(row, limits, "more draws")
        return _fault("few_relaxations", advice, relaxations=relaxations, times=times)
    return None


def _moving(
    row: Row, settings: Mapping[str, Any], limits: Limits, *, kind: Kind, direction: int
) -> Fault | None:
    is_significant = row["drift_p"] < limits.false_alarm
    if not is_significant or not direction * row["drift"] > 0:
        return None
    times = limits.false_alarm / max(row["drift_p"], 1e-12)
    advice = _advice(row, limits, "more burn-in, or larger lr")
    return _fault(kind, advice, drift=row["drift"], p=row["drift_p"], times=times)


def _disagree(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    is_significant = row["disagreement_p"] < limits.false_alarm
    if not is_significant or not row["spread"] > limits.min_spread:
        return None
    times = _ratio(row["spread"], limits.min_spread)
    advice = _advice(row, limits, "more draws or burn-in")
    return _fault("disagree", advice, spread=row["spread"], p=row["disagreement_p"], times=times)


def _heavy_tails(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = row["heavy_tails"]
    if not share > limits.max_heavy_tails:
        return None
    times = _ratio(share, limits.max_heavy_tails)
    return _fault("heavy_tails", "lower lr, or larger batches", share=share, times=times)


def _does_not_move(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    nothing_changes = row["value"] == 0 and row["standard_error"] == 0
    if nothing_changes and row["control"] == 0:
        return _fault("weights_ignored", "the loss does not depend on these weights")
    # Chains whose proposals are all refused stay at their start, wherever that is.
    if nothing_changes or row["moves"] < limits.min_acceptance:
        return _fault("does_not_move", "lower lr, or start='gaussian'", moves=row["moves"])
    return None


def _rounding(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if row["value"] == 0 or not abs(row["value"]) <= row["rounding"]:
        return None
    return _fault("rounding", "larger lr, or other weights", rounding=row["rounding"])


def _negative(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    if not row["value"] < 0:
        return None
    meaning = "w* is not a minimum for this data, or noise exceeds signal"
    return _fault("negative", meaning, value=row["value"])


def _noisy(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    value = row["value"]
    error = row["standard_error"]
    if not value >= 0 or error == 0:
        return None
    share = _ratio(error, value)
    times_noise = _ratio(share, limits.max_noise)
    if share > max(limits.max_noise, 1.0):
        return _fault("noise_above_signal", "more draws", share=share, times=times_noise)
    times_imprecision = _ratio(row["imprecision"], limits.max_imprecision)
    times = max(times_noise, times_imprecision)
    if not times > 1:
        return None
    advice = "more draws, or larger batches"
    return _fault("imprecise", advice, share=row["imprecision"], times=times)


def _above_target(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    target = settings.get("target_se")
    if target is None or not row["standard_error"] > target:
        return None
    return _fault("above_target", "more draws", times=row["standard_error"] / target)


def _prior_dominated(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = row["control_ratio"]
    limit = limits.max_control_ratio
    if not share > limit:
        return None
    # Steps that are too large give several times what the prior alone gives: that is not the prior.
    if limit < 1 and share - 2 * row["control_ratio_se"] > _ratio(1.0, limit):
        return None
    times = _ratio(share, limit)
    return _fault("prior_dominated", "larger n_beta", share=share, times=times)


def _pairing(row: Row, settings: Mapping[str, Any], limits: Limits) -> Fault | None:
    share = row["pairing"]
    if not share > limits.max_pairing:
        return None
    advice = "control_variate=True, or batches of all rows"
    return _fault("pairing", advice, share=share, times=_ratio(share, limits.max_pairing))


RULES: tuple[Rule, ...] = (
    _too_few_draws,
    _does_not_move,
    _rounding,
    _spikes,
    _unstable,
    _rarely_accepted,
    _step_bias,
    _step_and_noise_bias,
    _too_short,
    _few_relaxations,
    partial(_moving, kind="rising", direction=1),
    partial(_moving, kind="falling", direction=-1),
    _disagree,
    _heavy_tails,
    _negative,
    _noisy,
    _pairing,
    _above_target,
    _prior_dominated,
)
"""The rule book, the severest first. To add a fault: a kind, its words, a rule, and its limit."""


def _fault(kind: Kind, advice: str, **numbers: float) -> Fault:
    """Make a fault of the numbers that are known."""
    known_numbers = {name: number for name, number in numbers.items() if not math.isnan(number)}
    return Fault(kind, known_numbers, advice)


def _ratio(number: float, limit: float) -> float:
    return number / limit if limit else math.inf


def _advice(row: Row, limits: Limits, usual: str) -> str:
    """Return what helps chains that mix badly."""
    if row["acceptance"] > limits.max_acceptance:
        return "steps too small (acceptance 1), larger lr"
    return usual
