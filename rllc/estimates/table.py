"""How an estimate is printed: a row a refinement, what is wrong, and what another nβ would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.estimates.faults import Fault
from rllc.tables import UNKNOWN, Table, label, rounded

if TYPE_CHECKING:
    from rllc.estimates.estimate import Estimate

_LARGEST_ERROR = 0.25
"""The effect of nβ is printed where its standard error is below this share of λ̂."""


def table_of(estimate: Estimate) -> Table:
    """Return an estimate as a table, with a row a refinement."""
    rows = [("weights", "data", "llc", "± se", "R-hat", "ess", "status")]
    for llc in estimate:
        value, error = rounded(llc.value, llc.standard_error)
        rhat = _written(llc.rhat, ".2f")
        ess = _written(llc.ess, ".0f")
        status = _in_short(llc.faults)
        rows.append((llc.weights, llc.data, value, error, rhat, ess, status))
    settings = sampled(estimate.settings)
    title = f"Estimate of {len(estimate)} LLCs ({settings})"
    lines_above = [title, *_by_prior(estimate)]
    lines_below = [*counted(estimate.faults), *_doubling(estimate)]
    faulty_rows = [i for i, faults in enumerate(estimate.faults) if faults]
    return Table(
        title="\n".join(lines_above),
        rows=rows,
        left=(0, 1, 6),
        wrong=[(i, 6) for i in faulty_rows],
        notes=lines_below,
        see_all="print(estimate.to_dataframe().to_string()); wrong ones: estimate.select(ok=False)",
    )


def sampled(settings: Mapping[str, Any]) -> str:
    """Return the settings of sampler and sampling in one line, for tables and figures.

    >>> sampled({"n_beta": 30.0, "localization": 200.0, "num_chains": 4, "num_draws": 200})
    'nβ = 30, γ = 200, 4 chains × 200 draws'
    """
    parts = []
    for symbol, name in (("nβ", "n_beta"), ("γ", "localization"), ("ε", "lr")):
        if name in settings:
            parts.append(f"{symbol} = {settings[name]:g}")
    if "num_chains" in settings:
        chains = settings["num_chains"]
        draws = settings["num_draws"]
        most = "up to " if settings.get("target_se") else ""
        parts.append(f"{chains} chains × {most}{draws} draws")
    parts += _batches(settings.get("minibatches", {}))
    return ", ".join(parts)


def counted(faults: Iterable[Sequence[Fault]]) -> list[str]:
    """Say how many estimates have which kinds of faults; nothing where none has.

    >>> counted([[Fault("spikes")], [], [Fault("spikes"), Fault("negative")]])
    ['2 of 3 are not ok: spikes (2), negative (1)']
    """
    counts: Counter[str] = Counter()
    num_wrong = 0
    num_estimates = 0
    for wrong in faults:
        kinds = {fault.kind.replace("_", " ") for fault in wrong}
        counts.update(sorted(kinds))
        num_wrong += bool(kinds)
        num_estimates += 1
    if not num_wrong:
        return []
    words = [f"{kind} ({count})" for kind, count in counts.most_common()]
    listed = ", ".join(words)
    return [f"{num_wrong} of {num_estimates} are not ok: {listed}"]


def _by_prior(estimate: Estimate) -> list[str]:
    """A line where the prior alone gives most rows."""
    by_prior = 0
    for wrong in estimate.faults:
        kinds = [fault.kind for fault in wrong]
        by_prior += "prior_dominated" in kinds
    if not by_prior > len(estimate) / 2:
        return []
    return [
        f"{by_prior} of {len(estimate)}: the prior alone gives this λ̂; it shows the trace of the "
        f"Hessian, not what the loss does. Raise n_beta, or lower localization."
    ]


def _doubling(estimate: Estimate) -> list[str]:
    """A line on the effect of doubling nβ, from the rows that know it well enough."""
    elasticity = estimate.elasticity
    change = np.log(2) * elasticity.value
    error = np.log(2) * elasticity.standard_error
    with np.errstate(divide="ignore", invalid="ignore"):
        share = change / estimate.value
        uncertainty = error / estimate.value
    has_share = _has_control(estimate) & np.isfinite(share)
    is_clear = (uncertainty > 0) & (uncertainty < _LARGEST_ERROR)
    rows = np.flatnonzero(has_share & is_clear)
    if not rows.size:
        return []
    if len(estimate) == 1:
        return [f"doubling nβ would change λ̂ by {change[0]:+.2g} ± {error[0]:.1g}"]
    least = rows[share[rows].argmin()]
    most = rows[share[rows].argmax()]
    name_of_least = label(estimate.names, least)
    name_of_most = label(estimate.names, most)
    lowest = f"{share[least]:+.0%} ({name_of_least})"
    highest = f"{share[most]:+.0%} ({name_of_most})"
    usual_error = np.median(uncertainty[rows])
    return [
        f"doubling nβ would change λ̂ by {lowest} to {highest}, "
        f"± {usual_error:.0%}; see estimate.elasticity"
    ]


def _has_control(estimate: Estimate) -> np.ndarray:
    """Which rows have a control at nβ = 0, ``[refinement]``; controls themselves have none."""
    unknown = np.full(len(estimate), np.nan)
    return np.isfinite(estimate.diagnostics.get("control", unknown))


def _in_short(faults: Sequence[Fault]) -> str:
    """The severest fault, what to do about it, and how many others there are."""
    if not faults:
        return "ok"
    severest = faults[0].text
    num_others = len(faults) - 1
    if not num_others:
        return severest
    noun = "faults" if num_others > 1 else "fault"
    return f"{severest}; and {num_others} more {noun}"


def _written(value: float, form: str) -> str:
    return UNKNOWN if np.isnan(value) else format(value, form)


def _batches(minibatches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of which size the minibatches were, and whether a control variate was subtracted."""
    if not minibatches:
        return []
    sizes = {chosen["batch_size"] for chosen in minibatches.values()}
    listed = " or ".join(str(size) for size in sorted(sizes))
    words = [f"batches of {listed}"]
    controlled = [name for name, chosen in minibatches.items() if chosen["control_variate"]]
    if len(controlled) == len(minibatches):
        words.append("control variate")
    elif controlled:
        names = ", ".join(controlled)
        words.append(f"control variate on {names}")
    return words
