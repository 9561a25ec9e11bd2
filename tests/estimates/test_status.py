"""What is said of trouble: each way in which sampling fails is provoked, and named.

At the end, the control that does not see the loss, and diagnostics of arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tiny import QUIET, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.errors import InputError
from rllc.estimates.estimate import LLC
from rllc.estimates.faults import (
    ABSENT,
    PROBLEMS,
    RULES,
    Fault,
    Kind,
    faults_from_json,
    faults_of,
    faults_to_json,
    status_of,
)
from rllc.limits import Limits
from rllc.seeds import generator
from rllc.statistics.diagnostics import spikes, variance_reading
from rllc.theory import SGLDLaw


class Surface(nn.Module):
    """A loss of the weights alone, ``shape(v)``, from ``dim`` weights that start at ``start``."""

    def __init__(
        self, shape: Callable[[Tensor], Tensor], dim: int = 10, start: float = 0.0
    ) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.full((dim,), start))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.v) + 0.0 * x[:, 0]


def estimate_on(
    model: nn.Module, lr: float, gamma: float, limits: Limits | None = None, **changes: float
) -> LLC:
    """Sample a surface by chains of 300 draws, unless changed."""
    settings = {"num_chains": 4, "num_draws": 300, "num_burnin_steps": 50, "batch_size": 1}
    estimate = rllc.estimate(
        model,
        (torch.zeros(1, 1),),
        loss=lambda module, x: module(x),
        sampler=rllc.sgld(lr, gamma),
        sampling=rllc.Sampling(**settings | changes),  # type: ignore[arg-type]
        limits=limits,
        compute=QUIET,
    )
    return estimate["everything"]


def square(v: Tensor) -> Tensor:
    return (v**2).sum() / 2


def kinds(llc: LLC) -> list[Kind]:
    return [fault.kind for fault in llc.faults]


# What is provoked.


def test_nothing_is_wrong_with_a_good_setting() -> None:
    llc = estimate_on(Surface(square), lr=3e-3, gamma=50.0, num_draws=500)
    assert llc.faults == ()
    assert llc.status == "ok"


def test_a_chain_that_blows_up() -> None:
    llc = estimate_on(Surface(square), lr=1.0, gamma=50.0)
    assert kinds(llc) == ["diverged"]
    assert llc.status.startswith("diverged: chain 0 at step")
    assert llc.faults[0].numbers["others"] == 3


@pytest.mark.slow
def test_a_cliff_that_no_gradient_warns_of() -> None:
    def cliff(v: Tensor) -> Tensor:
        return square(v) + 100.0 * (v.abs() > 0.4).sum()

    llc = estimate_on(Surface(cliff, dim=4), lr=3e-3, gamma=50.0, num_draws=1000)
    assert llc.status.startswith("spikes in ")
    assert llc.faults[0].numbers["draws"] >= 1


def test_a_direction_too_sharp_for_the_step_that_the_loss_keeps_from_diverging() -> None:
    def bent(v: Tensor) -> Tensor:
        return torch.log1p(500.0 * v**2).sum()

    # With fewer directions a step in a hundred would be accepted.
    status = estimate_on(Surface(bent, dim=30), 3e-3, 50.0).status
    curvature = r"(9[5-9]\d|1e\+03)"
    unstable = f"unstable in the sharpest direction, of curvature {curvature}: lr below 0.0001"
    assert re.search(unstable, status)
    assert "steps too large (acceptance 0.000): lower lr" in status


def test_what_the_step_size_adds() -> None:
    llc = estimate_on(Surface(square, dim=200), lr=2e-2, gamma=50.0)
    assert re.fullmatch(r"the step size adds (38|39|40|41|42)%: lower lr", llc.status)
    # εa/4 is 0.4.
    assert llc.faults[0].numbers["share"] == pytest.approx(0.4, abs=0.02)
    assert llc.faults[0].numbers["times"] == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("dim", [pytest.param(2000, marks=pytest.mark.slow), 3])
def test_steps_too_small(dim: int) -> None:
    llc = estimate_on(Surface(square, dim=dim), lr=1e-7, gamma=50.0, num_burnin_steps=0)
    advice = "steps too small (acceptance 1), larger lr"
    assert llc.status.startswith(f"too short (flat directions lack 99.9%): {advice}")


def test_chains_whose_proposals_are_all_refused() -> None:
    """From the Gaussian, λ̂ is not 0; each chain keeps the value of its start."""
    estimate = rllc.estimate(
        Surface(lambda v: 20 * square(v), dim=4000),
        (torch.zeros(1, 1),),
        loss=lambda module, x: module(x),
        sampler=rllc.samplers.mala(lr=1e-2, localization=50.0),
        sampling=rllc.Sampling(num_chains=2, num_draws=8, batch_size=1),
        compute=QUIET,
    )
    assert estimate.value[0] > 1000
    assert estimate.diagnostics["moves"] == 0
    assert estimate.status[0].startswith("chains do not move: lower lr, or start='gaussian'")


def test_a_trace_that_still_rises() -> None:
    llc = estimate_on(Surface(square, dim=3000), 1e-4, 0.0, num_burnin_steps=0)
    assert "still rising: more burn-in, or larger lr" in llc.status


def test_a_trace_that_falls_because_the_weights_are_no_minimum() -> None:
    surface = Surface(square, dim=300, start=3.0)
    changes = {"n_beta": 100.0, "num_burnin_steps": 0, "num_draws": 400}
    llc = estimate_on(surface, lr=2e-4, gamma=1.0, **changes)
    assert "still falling" in llc.status
    assert "negative: w* is not a minimum for this data, or noise exceeds signal" in llc.status


def test_chains_in_different_valleys_are_never_ok() -> None:
    def valleys(v: Tensor) -> Tensor:
        depth = torch.where(v > 0, 1.0, 0.5)
        return (depth * (v.abs() - 1).square() * 10 - depth).sum()

    llc = estimate_on(Surface(valleys, dim=1), lr=3e-3, gamma=0.01)
    # γ is so small that the slowest direction cannot have relaxed.
    assert llc.status.startswith("too short")


def test_noise_above_the_signal() -> None:
    x = 3 * torch.randn(64, 10, generator=generator("noise"))
    estimate = rllc.estimate(
        Quadratic(torch.full((10,), 1e-3)),
        (x - x.mean(0),),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(1e-4, 2000.0),
        sampling=rllc.Sampling(num_draws=40, batch_size=2, control_variate=False),
        compute=QUIET,
    )
    kinds = {fault.kind for fault in estimate["everything"].faults}
    # Noise decides the sign, and whether the value is within its error of 0.
    assert kinds & {"noise_above_signal", "negative", "imprecise"}


def test_limits_decide_what_is_a_fault() -> None:
    surface = Surface(square, dim=200)
    changes = {"lr": 2e-2, "gamma": 50.0, "num_draws": 100}
    assert kinds(estimate_on(surface, **changes)) == ["step_bias"]
    assert kinds(estimate_on(surface, limits=Limits(max_step=0.5), **changes)) == []


# Faults and limits as values.

NOTHING_KNOWN = dict.fromkeys(
    (
        *(
            "value",
            "standard_error",
            "dof",
            "imprecision",
            "rhat",
            "ess",
            *rllc.estimates.diagnose.DIAGNOSTICS,
        ),
        *(f"{part}_part" for part in rllc.estimates.diagnose.PARTS),
    ),
    math.nan,
)
STRICT = Limits.for_calibration()


def test_a_text_is_made_of_kind_numbers_and_advice() -> None:
    diverged = Fault("diverged", {"chain": 2, "step": 51, "others": 1}, "lower lr")
    assert diverged.text == "diverged: chain 2 at step 51 (and 1 more); lower lr"
    failed = Fault("failed", {}, "MemoryError: no room")
    assert failed.text == "failed: MemoryError: no room"
    assert Fault("not_asked_for").text == "not asked for"
    assert status_of([failed, Fault("missing")]) == "failed: MemoryError: no room; missing"


def test_every_kind_has_words() -> None:
    assert set(PROBLEMS) == set(get_args(Kind))
    assert set(PROBLEMS) > ABSENT


def test_faults_are_the_same_after_json() -> None:
    faults = (
        Fault("unstable", {"curvature": 1 / 3, "times": math.inf}, "lr below 0.1"),
        Fault("missing"),
    )
    assert faults_from_json(faults_to_json(faults)) == faults
    assert hash(faults) == hash(faults_from_json(faults_to_json(faults)))


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("limits", [Limits(), STRICT])
def test_no_rule_judges_what_is_not_known(rule: Callable[..., object], limits: Limits) -> None:
    settings = rllc.sgld().settings | rllc.Sampling(target_se=0.1).settings
    assert rule(NOTHING_KNOWN, settings, limits) is None


def test_the_severest_fault_is_first() -> None:
    settings = rllc.sgld().settings | rllc.Sampling().settings
    apart = {"disagreement_p": 1e-6, "spread": 0.5}
    row = NOTHING_KNOWN | {"value": -1.0, "standard_error": 0.1, "spikes": 2.0} | apart
    faults = faults_of(row, settings, Limits())
    assert [fault.kind for fault in faults] == ["spikes", "disagree", "negative"]


def test_no_kind_is_told_twice() -> None:
    """Chains may be short of relaxation times of the slowest direction, and of their own."""
    settings = rllc.sgld().settings | rllc.Sampling(num_draws=30).settings
    row = NOTHING_KNOWN | {"value": 1.0, "standard_error": 0.01, "relaxation_times": 3.0}
    (fault,) = faults_of(row | {"relaxation": 10.0}, settings, STRICT)
    assert fault.text == "slow (3.0 relaxation times): more draws, or larger lr"
    (fault,) = faults_of(row | {"relaxation": 30.0}, settings, STRICT)
    assert fault.problem == "slow (1.0 relaxation times)"


@pytest.mark.parametrize(
    ("ratio", "error", "is_priors"),
    [(0.7, 0.2, False), (0.9, 0.1, True), (1.5, 0.2, True), (1.5, 0.1, False), (72.0, 9.0, False)],
)
def test_the_prior_explains_what_is_near_its_own_value(
    ratio: float, error: float, is_priors: bool
) -> None:
    """Steps that are too large gave 72 times the prior's value, and it was said to be the prior."""
    settings = rllc.sgld().settings | rllc.Sampling().settings
    known = {"value": 1.0, "standard_error": 0.01}
    row = NOTHING_KNOWN | known | {"control_ratio": ratio, "control_ratio_se": error}
    kinds_of_row = [fault.kind for fault in faults_of(row, settings, Limits())]
    assert kinds_of_row == ["prior_dominated"] * is_priors


@pytest.mark.parametrize("value", ["1", None, math.nan])
def test_limits_are_numbers(value: object) -> None:
    with pytest.raises(InputError, match="Limits: `max_step` must be a number, got"):
        Limits(max_step=value)  # type: ignore[arg-type]


def test_a_search_tries_a_setting_at_least() -> None:
    with pytest.raises(InputError, match="`max_settings` must be at least 1, got 0"):
        Limits(max_settings=0)


def test_a_calibration_is_stricter_than_a_status_in_every_limit_it_changes() -> None:
    """By each rule alone: what a status calls a fault, the limits of a calibration do, too."""
    row = NOTHING_KNOWN | {
        "value": 1.0,
        "standard_error": 2.0,
        "disagreement_p": 1e-6,
        "spread": 0.5,
        "stability": 0.5,
        "acceptance": 0.001,
        "discretisation": 0.3,
        "step_part": -math.log1p(-0.3),
        "spikes": 1.0,
        "drift": 5.0,
        "drift_p": 1e-6,
    }
    settings = rllc.sgld().settings | rllc.Sampling().settings
    by_status = {fault.kind for fault in faults_of(row, settings, Limits())}
    by_calibration = {fault.kind for fault in faults_of(row, settings, STRICT)}
    assert by_status <= by_calibration
    assert by_calibration - by_status == {"step_and_noise_bias"}


# The control.


@pytest.mark.slow
def test_the_control_is_what_the_prior_alone_gives() -> None:
    """½nβΣh σ² with σ² = 1/(γ(1 − εγ/4)).

    The estimate itself is below it, clearly where the loss holds the chains.
    """
    h = torch.tensor([0.5, 2.0, 8.0, 20.0])
    data = torch.zeros(1, 4)
    arguments = {
        "loss": loss_of_quadratic,
        "sampler": rllc.sgld(4e-3, 50.0),
        "sampling": rllc.Sampling(50, 400, num_burnin_steps=50, batch_size=1),
        "compute": QUIET,
    }
    control = rllc.control(Quadratic(h), data, **arguments)
    prior = 0.5 * 30 * float(h.sum()) / (50 * (1 - 4e-3 * 50 / 4))
    assert abs(control.value[0] - prior) < 5 * control.standard_error[0]
    assert control.standard_error[0] < 0.03 * prior
    assert control.settings["sampler"] == "prior_alone"
    estimate = rllc.estimate(Quadratic(h), data, **arguments)
    law = SGLDLaw(h.numpy(), lr=4e-3, localization=50.0, n_beta=30.0)
    error = estimate.standard_error[0]
    assert abs(estimate.value[0] - law.value) < 5 * error < 0.2 * (prior - law.value)


def test_the_control_starts_at_the_center_whatever_the_estimate_does() -> None:
    sampling = rllc.Sampling(2, 5, batch_size=4, control_variate=False, start="gaussian")
    control = rllc.control(tiny_model(), tiny_tokens(), "0:1", sampling=sampling, compute=QUIET)
    assert control.settings["start"] == "center"


# Diagnostics of arrays.


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 50.0])
def test_no_gamma_distribution_has_spikes(shape: float) -> None:
    x = np.random.default_rng(0).gamma(shape, size=(200, 4, 500))
    assert not spikes(x).any()
    x[:, 0, 3] += 1000 * max(shape, 1)
    assert (spikes(x) == 1).all()


def test_the_reading_from_the_variance() -> None:
    """Gamma(λ, 1) plus noise of a given variance: mean and errors within their laws."""
    rng = np.random.default_rng(1)
    clean = rng.gamma(3.0, size=(400, 4, 200))
    variance = rng.uniform(0, 4, size=clean.shape)
    noisy = clean + rng.normal(size=clean.shape) * variance**0.5
    value, error = variance_reading(noisy, variance)
    assert abs(value.mean() - 3) < 5 * value.std() / 20
    assert 0.9 < error.mean() / value.std() < 1.3


def test_the_reading_is_unknown_where_the_noise_is_or_draws_are_few() -> None:
    x = np.random.default_rng(1).gamma(3.0, size=(4, 200))
    unknown_once = np.where(np.arange(200) == 7, np.nan, np.ones((4, 200)))
    assert np.isnan(variance_reading(x, unknown_once)).all()
    assert np.isnan(variance_reading(x[:, :2], np.ones((4, 2)))).all()


@pytest.mark.slow
def test_intervals_cover_the_long_run_value_of_a_trained_model(tmp_path: Path) -> None:
    """60 repetitions, other noise and minibatches, of two chains on a head of a trained model."""
    shifts = torch.randint(4, (40, 1), generator=generator("rows"))
    rows = torch.arange(7).repeat(40, 1) + shifts
    kept = torch.rand(40, 7, generator=generator("noise")) < 0.9
    tokens = rllc.Tokens(rows.where(kept, 10))
    config = rllc.models.AttentionOnlyConfig(
        n_layers=1, d_model=12, n_heads=3, d_head=4, n_ctx=8, d_vocab=11
    )
    training = rllc.Training(num_steps=300, batch_size=20, lr=1e-2)
    model = rllc.train(config, tokens, tmp_path, training=training, progress=False)

    def estimate(num_chains: int, num_draws: int, seed: int) -> rllc.Estimate:
        sampling = rllc.Sampling(
            num_chains,
            num_draws,
            num_burnin_steps=20,
            batch_size=8,
            control_variate=False,
            seed=seed,
            num_probes=0,
        )
        sampler = rllc.sgld(1e-3, 200.0)
        return rllc.estimate(
            model, tokens, "0:1", sampler=sampler, sampling=sampling, compute=QUIET
        )

    long = np.array([estimate(32, 200, 1000 + seed).value[0] for seed in range(3)])
    short = [estimate(2, 50, seed) for seed in range(60)]
    assert long.std(ddof=1) / 3**0.5 < 0.2 * short[0].standard_error[0]
    covered = []
    for repetition in short:
        low, high = repetition.interval()[0]
        covered.append(low < long.mean() < high)
    assert np.mean(covered) >= 0.82  # of 60 at 95 %: chance 2e-4
