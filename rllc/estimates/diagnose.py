"""Diagnostics of draws by name, and the parts of the error of λ̂.

The functions of :mod:`rllc.statistics.diagnostics` know arrays only. Here they are applied to
:class:`rllc.Draws`, beside what the sampler's probes saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from rllc.sampling.draws import Draws
from rllc.sampling.settings import probed
from rllc.statistics import diagnostics
from rllc.statistics.agreement import disagreement, drift, heavy_tails
from rllc.statistics.biases import control_mean, corrected, ratio
from rllc.statistics.uncertainty import Mean, mean_of_draws

DIAGNOSTICS: Mapping[str, str] = {
    "missing_at_start": "share of λ̂ that flat directions lack because chains start at w*",
    "relaxation_times": "relaxation times of the slowest direction in a chain",
    "relaxation": "autocorrelation time of λ̂'s draws, in draws: chains × draws / ess",
    "drift": "second half minus first, in standard errors; above 0 the trace still rises",
    "drift_p": "probability of such a drift in chains that have settled",
    "disagreement_p": "probability of levels as different in chains that agree",
    "spread": "what chains differ by beyond that, as a share of λ̂",
    "heavy_tails": "share of all squared steps of λ̂'s draws that the largest 2 % hold",
    "moves": "share of λ̂'s draws that differ from the one before; low where steps are refused",
    "rounding": "what the rounding of float32 alone may give for λ̂",
    "spikes": "number of draws far outside the distribution of the others",
    "acceptance": "mean probability that MALA would accept sgld's steps",
    "discretisation": "share of λ̂ that the step size adds",
    "corrected": "λ̂ minus what the step size and the minibatches' heat add",
    "corrected_se": "standard error of that",
    "max_curvature": "largest curvature h of the loss at w* on one minibatch",
    "stability": "4/(ε(nβh + γ)) for the largest h; below 1 that direction blows up",
    "control": "λ̂ of the prior alone: nβ·E[ℓ(v) − ℓ(w*)] over v from N(w*, I/γ)",
    "control_ratio": "λ̂ over its control; 1 where the loss does nothing",
    "control_ratio_se": "standard error of that ratio",
    "pairing": "share of λ̂ that comes from minibatches of one epoch excluding each other",
    "from_variance": "a second reading of λ, from the variance of the draws",
    "from_variance_se": "standard error of that reading",
    "minibatch_variance": "variance of the draws that comes from the choice of the minibatch",
    "prior_shrinkage": "1 − from_variance/λ̂: the share that the prior takes from λ̂, roughly",
}
"""The diagnostics in ``Estimate.diagnostics``, each ``[refinement]``.

Acceptance, discretisation, curvature and stability need ``Sampling(num_probes=…)`` above 0. An
acceptance near 0 says that steps are too large, one of 1 that they may be too small. The reading
from the variance is :func:`rllc.statistics.diagnostics.variance_reading`.
"""

Part = Literal["step", "prior", "noise", "start"]

PARTS: tuple[Part, ...] = ("step", "prior", "noise", "start")
"""The parts of the error of λ̂, in the order of :func:`parts_of_error`."""


def numbers_of(draws: Draws) -> dict[str, Any]:
    """Return the arrays of an estimate of these draws, and its diagnostics, by name."""
    llc = draws.llc
    names = ("value", "standard_error", "dof", "rhat", "ess")
    numbers = {name: np.full(len(llc), np.nan) for name in names}
    diagnosed = {name: np.full(len(llc), np.nan) for name in DIAGNOSTICS}
    per_chain = np.full(llc.shape[:2], np.nan)
    lengths = np.array(draws.lengths)
    relaxation = draws.settings.get("relaxation")
    # Refinements that reached their target_se have fewer draws, and NaN behind them.
    for num_draws in set(draws.lengths):
        rows = np.flatnonzero(lengths == num_draws)
        drawn = llc[rows, :, :num_draws]
        shared = share_minibatches(draws, rows, num_draws)
        mean = mean_of_draws(drawn, relaxation, shared=shared)
        numbers["value"][rows] = mean.value
        numbers["standard_error"][rows] = mean.standard_error
        numbers["dof"][rows] = mean.dof
        numbers["rhat"][rows] = diagnostics.rhat(drawn)
        numbers["ess"][rows] = diagnostics.ess(drawn, method="mean")
        per_chain[rows] = drawn.mean(-1)
        for name, array in diagnose(draws, rows, num_draws, mean).items():
            diagnosed[name][rows] = array
    return numbers | {"per_chain": per_chain, "diagnostics": diagnosed, "llc": llc}


def diagnose(draws: Draws, rows: np.ndarray, num_draws: int, mean: Mean) -> dict[str, np.ndarray]:
    """Return the diagnostics of refinements that have the same number of draws.

    Args:
        draws: of these and other refinements.
        rows: which refinements.
        num_draws: how many draws each has.
        mean: λ̂ of these refinements, with its error.

    Returns:
        By name, each ``[row]``, as far as these draws have what a diagnostic needs.
    """
    made = slice(0, num_draws)
    llc = draws.llc[rows, :, made]
    shared = share_minibatches(draws, rows, num_draws)
    relaxation = draws.settings.get("relaxation")
    draws_of_all_chains = llc.shape[1] * num_draws
    autocorrelation_time = draws_of_all_chains / diagnostics.ess(llc, method="mean")
    numbers = {
        "moves": _moves(llc),
        "spikes": diagnostics.spikes(llc),
        "rounding": _rounding(draws, rows, made),
        "heavy_tails": heavy_tails(llc),
        "relaxation": autocorrelation_time,
    }
    memory = relaxation
    if memory is None:
        # Without the relaxation of a sampler's law, the autocorrelation of chains takes its place.
        memory = _memory(autocorrelation_time)
    numbers |= _of_start(draws.settings, num_draws, len(rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers |= _of_levels(llc, relaxation, memory, shared)
        numbers |= _of_variance(draws, rows, made, mean.value)
        numbers |= _of_steps(draws, rows, num_draws, mean, numbers)
        numbers |= _of_prior(draws, rows, mean)
        numbers |= _of_pairing(draws, rows, num_draws, mean.value)
    return numbers | _of_curvature(draws, rows)


def _moves(llc: np.ndarray) -> np.ndarray:
    """The share of draws whose loss differs from that of the draw before."""
    if llc.shape[-1] < 2:
        return np.full(len(llc), np.nan)
    has_moved = np.diff(llc, axis=-1) != 0
    return has_moved.mean((1, 2))


def _rounding(draws: Draws, rows: np.ndarray, made: slice) -> np.ndarray:
    """nβ times the last bits of the losses, of which λ̂ is a difference."""
    losses = np.abs(draws.baseline[rows, :, made])
    last_bits = losses.mean((1, 2)) * 2.0**-24
    return 4 * draws.settings["n_beta"] * last_bits


def _memory(autocorrelation_time: np.ndarray) -> float:
    """r of chains with that autocorrelation time (1 + r)/(1 − r), by the median of refinements."""
    time = 1.0
    if np.isfinite(autocorrelation_time).any():
        time = np.nanmedian(autocorrelation_time)
    memory = (time - 1) / (time + 1)
    return float(np.clip(memory, 0, 0.99))


def _of_start(settings: Mapping[str, Any], num_draws: int, count: int) -> dict[str, np.ndarray]:
    """Diagnostics of the start, which are known before a chain runs."""
    relaxation = settings.get("relaxation")
    if relaxation is None:
        return {}
    steps = settings["num_steps_bw_draws"]
    burnin = settings["num_burnin_steps"] / steps
    times = math.inf
    missing = 0.0
    if relaxation > 0:
        times = -math.log(relaxation) * (burnin + num_draws)
        # Σ r^t over the draws.
        total = relaxation * (1 - relaxation**num_draws) / (1 - relaxation)
        missing = relaxation**burnin * total / num_draws
    numbers = {"relaxation_times": np.full(count, times)}
    if settings["start"] == "center":
        numbers["missing_at_start"] = np.full(count, missing)
    return numbers


def _of_levels(
    llc: np.ndarray, relaxation: float | None, memory: float, shared: bool
) -> dict[str, np.ndarray]:
    """Whether chains have settled, and on one level."""
    change = drift(llc, relaxation, shared=shared)
    levels = disagreement(llc, memory)
    return {
        "drift": change.value / change.standard_error,
        "drift_p": change.p_value(),
        "disagreement_p": levels.p_value,
        "spread": levels.spread,
    }


def _of_prior(draws: Draws, rows: np.ndarray, mean: Mean) -> dict[str, np.ndarray]:
    """λ̂ beside that of the prior alone."""
    rise = draws.observed.get("loss_under_prior")
    if rise is None:
        return {}
    n_beta = draws.settings["n_beta"]
    control = control_mean(n_beta * rise[rows])
    against_control = ratio(mean, control)
    return {
        "control": control.value,
        "control_ratio": against_control.value,
        "control_ratio_se": against_control.standard_error,
    }


def _of_pairing(
    draws: Draws, rows: np.ndarray, num_draws: int, value: np.ndarray
) -> dict[str, np.ndarray]:
    """The bias by the pairing of minibatches; a control variate has subtracted it already."""
    pairing = draws.observed.get("pairing")
    if pairing is None:
        return {}
    return {"pairing": pairing[rows] / value}


def share_minibatches(draws: Draws, rows: np.ndarray, num_draws: int) -> bool:
    """Whether chains may have noise in common; on full batches there is none."""
    noise = draws.observed.get("minibatch_variance")
    if noise is None:
        return True
    noise_of_rows = noise[rows, :, :num_draws]
    return bool(noise_of_rows.any())


def parts_of_error(
    value: np.ndarray,
    standard_error: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Return what is known of the relative error of λ̂, part by part, as logarithms.

    - ``"step"``: what a finite step size adds, −log(1 − s) + log(1 + s·N/2λ̂), s being the
      diagnostic ``discretisation``. The second term is the minibatch noise that heats the chain by
      (ε/4)(nβ)²C. As for a log loss near its minimum, its covariance C is taken to be the Hessian
      by the minibatch size, C = h·N/(2nβλ̂), N being the variance of nβ(ℓ_B − ℓ*_B) that comes from
      the choice of the minibatch B.
    - ``"prior"``: −log of the average share nβh/(nβh + γ) by which directions count, weighted by
      it: variance/λ̂ of the draws, without what the step size has widened. No smaller share is
      believed than its standard error, and no larger one than that of the sharpest direction, whose
      curvature is measured: where noise drowns the draws, that is all that is known.
    - ``"noise"``: standard error/λ̂.
    - ``"start"``: what chains that start at w* lack on average, (τ − 1)/2N of N draws of
      autocorrelation time τ, times ((τ − 1)/(τ + 1))^B after a burn-in of B draws (exact for a
      single curvature).

    Small parts are relative errors; 2.3 is a factor of ten. What is not known counts as 0.

    Args:
        value: λ̂ ``[refinement]``.
        standard_error: ``[refinement]``.
        numbers: the diagnostics, by name.
        settings: of sampler and sampling.

    Returns:
        Each of :data:`PARTS`, ``[refinement]``; NaN where λ̂ is not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        step = _step_part(value, numbers)
        variance = np.maximum(numbers["from_variance"], numbers["from_variance_se"])
        average_share = variance / value * np.exp(-step)
        average_share = np.nan_to_num(average_share, nan=1.0)
        largest_share = _share_of_sharpest(numbers["max_curvature"], settings)
        average_share = np.clip(average_share, 1e-4, largest_share)
        missing_share = _missing_at_start(numbers["relaxation"], settings)
        missing_share = missing_share * np.isfinite(value)
        nan_or_0 = np.where(value > 0, 0.0, np.nan)  # λ̂ that is not positive has no parts
        return {
            "step": nan_or_0 + step,
            "prior": nan_or_0 - np.log(average_share),
            "noise": nan_or_0 + standard_error / value,
            "start": nan_or_0 - np.log1p(-missing_share),
        }


def _share_of_sharpest(curvature: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """nβh/(nβh + γ) of the largest curvature, 1 where none is known."""
    drift = settings["n_beta"] * curvature
    share = drift / (drift + settings["localization"])
    share = np.where(curvature > 0, share, 1.0)
    return np.maximum(share, 1e-4)


def _step_part(value: np.ndarray, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """The part ``"step"`` of :func:`parts_of_error`."""
    share = np.nan_to_num(numbers["discretisation"])
    share = np.clip(share, 0, 0.99)
    heat = numbers["minibatch_variance"] / (2 * value)
    heat = np.nan_to_num(heat)
    heat = np.maximum(heat, 0)
    return np.log1p(share * heat) - np.log1p(-share)


def _missing_at_start(relaxation: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Share of λ̂ that draws lack because chains start at w*."""
    if settings["start"] != "center":
        return np.zeros_like(relaxation)
    time = relaxation.clip(min=1)
    decay = (time - 1) / (time + 1)
    num_draws = settings["num_draws"]
    burnin = settings["num_burnin_steps"] / settings["num_steps_bw_draws"]
    missing_share = decay / (1 - decay) / num_draws * decay**burnin
    return np.clip(missing_share, 0, 0.99)


def _of_variance(
    draws: Draws, rows: np.ndarray, made: slice, value: np.ndarray
) -> dict[str, np.ndarray]:
    """Diagnostics from the spread of draws, where the minibatches' part of it is known."""
    loss_noise = draws.observed.get("minibatch_variance")
    if loss_noise is None:
        return {}
    n_beta = draws.settings["n_beta"]
    noise = n_beta**2 * loss_noise[rows, :, made]
    # Without the control variate, whose subtraction changes the variance.
    uncontrolled = n_beta * (draws.loss - draws.baseline)[rows, :, made]
    reading, error = diagnostics.variance_reading(uncontrolled, noise)
    return {
        "from_variance": reading,
        "from_variance_se": error,
        "prior_shrinkage": 1 - reading / value,
        "minibatch_variance": noise.mean((1, 2)),
    }


def _of_steps(
    draws: Draws, rows: np.ndarray, num_draws: int, mean: Mean, numbers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Diagnostics of the step's size, from a second evaluation at some steps."""
    settings = draws.settings
    probed_draws = probed(settings["num_probes"], settings["num_draws"], settings["target_se"])
    count = sum(draw < num_draws for draw in probed_draws)
    steps: dict[str, np.ndarray] = {}
    if "acceptance" in draws.observed:
        acceptance = draws.observed["acceptance"]
        acceptance = acceptance[rows, :, :count]
        steps["acceptance"] = acceptance.mean((1, 2))
    if "discretisation" in draws.observed and count:
        added = draws.observed["discretisation"]
        added = added[rows, :, :count]
        share = added.mean((1, 2)) / mean.value
        # A minibatch's noise widens a chain; see the part "step" of parts_of_error.
        noise = numbers.get("minibatch_variance", np.zeros(len(rows)))
        added_by_heat = share * np.nan_to_num(noise) / 2
        without_bias = corrected(mean, added, added_by_heat)
        steps["discretisation"] = share
        steps["corrected"] = without_bias.value
        steps["corrected_se"] = without_bias.standard_error
    return steps


def _of_curvature(draws: Draws, rows: np.ndarray) -> dict[str, np.ndarray]:
    numbers = {}
    for name in ("max_curvature", "stability"):
        if name in draws.observed:
            numbers[name] = draws.observed[name][rows]
    return numbers
