"""Calibration against the exact law of SGLD on quadratics, sampled and computed; its refusals."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny import (
    QUIET,
    Quadratic,
    loss_of_quadratic,
    tiny_model,
    tiny_tokens,
    trained_on_markov,
)

import rllc
from rllc.calibration import search
from rllc.calibration.answer import not_usable, usable
from rllc.calibration.calibrate import Calibration, calibrate
from rllc.errors import InputError, RllcError
from rllc.estimates.faults import ABSENT, Fault, Kind
from rllc.limits import Limits
from rllc.seeds import generator
from rllc.testing import unchanged
from rllc.theory import SGLDLaw
from rllc.weights.names import Names

CURVATURES = np.repeat([0.3, 1.0, 3.0, 10.0], 5)
PAPER = {"lr": 1e-3, "n_beta": 30.0, "localization": 200.0}
QUADRATIC = Quadratic(torch.tensor(CURVATURES, dtype=torch.float32))
NOWHERE = torch.zeros(1, 20)
FULL_BATCH = rllc.Sampling(batch_size=1)


def starting(lr: float = 1.0, n_beta: float = 1.0, localization: float = 1.0) -> dict[str, float]:
    """The paper's settings, off by these factors."""
    factors = {"lr": lr, "n_beta": n_beta, "localization": localization}
    return {name: PAPER[name] * factor for name, factor in factors.items()}


def on_the_quadratic(**arguments: Any) -> Calibration:
    usual = {"loss": loss_of_quadratic, "sampling": FULL_BATCH, "compute": QUIET}
    return calibrate(QUADRATIC, NOWHERE, **(usual | arguments))


def law_at(calibration: Calibration, i: int) -> SGLDLaw:
    setting = {name: float(getattr(calibration, name)[i]) for name in PAPER}
    return SGLDLaw(CURVATURES, **setting)


# What is known of the error


@pytest.mark.slow
def test_parts_of_the_error_are_those_of_the_law() -> None:
    """One curvature, where all four are exact, and minibatch noise of covariance h/batch_size."""
    h, n_beta, lr, gamma, batch = 2.0, 100.0, 1e-3, 50.0, 50
    rows = torch.randn(2000, 20, generator=generator("rows")).double()
    rows = torch.linalg.qr(rows - rows.mean(0))[0] * (2000 * h) ** 0.5  # covariance h, exactly
    calibration = calibrate(
        Quadratic(torch.full((20,), h)),
        rows.float(),
        loss=loss_of_quadratic,
        sampling=rllc.Sampling(num_draws=1000, batch_size=batch, n_beta=n_beta),
        compute=QUIET,
        lr=[lr],
        n_beta=[n_beta],
        localization=[gamma],
    )
    estimate = calibration.estimates[0]
    noise = h / batch * (1 - batch / 2000) * 2000 / 1999
    law = SGLDLaw(np.full(20, h), lr, gamma, n_beta, gradient_variance=noise)
    without_step = 20 / 2 * n_beta * h / (n_beta * h + gamma)
    parts = {name: float(array[0]) for name, array in estimate.error_parts.items()}
    step = math.log(law.value / without_step)
    assert step > 0.12  # more than half of it from minibatches
    assert parts["step"] == pytest.approx(step, rel=0.2)
    prior_error = 5 * estimate.diagnostics["from_variance_se"][0] / without_step
    assert parts["prior"] == pytest.approx(math.log(10 / without_step), abs=prior_error)
    assert parts["noise"] == pytest.approx(law.standard_error(1000, 4) / law.value, rel=0.3)
    assert parts["start"] <= 1.5 * math.log(law.value / law.expected(1000)) + 1e-4
    assert calibration.errors[0, 0] == pytest.approx(math.hypot(*parts.values()))


@pytest.mark.parametrize(("burnin", "start"), [(0, "center"), (10, "center"), (0, "gaussian")])
def test_what_chains_lack_that_start_at_the_center(burnin: int, start: str) -> None:
    """Exact for one curvature, given the autocorrelation time."""
    law = SGLDLaw(np.full(20, 1.0), lr=1e-3, localization=100.0, n_beta=30.0)
    design = {"num_draws": 100, "num_burnin_steps": burnin, "num_steps_bw_draws": 2}
    estimate = healthy(relaxation=law.autocorrelation_time(2))
    settings = {**estimate.settings, **design, "start": start}
    lacking = 1 - law.expected(**design) / law.value if start == "center" else 0.0
    part = replace(estimate, settings=settings).error_parts["start"][0]
    assert part == pytest.approx(-math.log1p(-lacking), rel=1e-6)


# The limits

DIVERGED = (Fault("diverged", {"chain": 1, "step": 3}, "lower lr"),)
HEALTHY = {
    "relaxation": 2.0,
    "missing_at_start": 0.0,
    "relaxation_times": 40.0,
    "drift": 0.5,
    "drift_p": 0.6,
    "disagreement_p": 0.5,
    "spread": 0.0,
    "heavy_tails": 0.14,
    "control": 20.0,
    "control_ratio": 0.25,
    "pairing": 0.0,
    "spikes": 0.0,
    "acceptance": 0.9,
    "discretisation": 0.02,
    "max_curvature": 10.0,
    "stability": 8.0,
    "from_variance": 4.5,
    "from_variance_se": 0.2,
    "prior_shrinkage": 0.1,
    "minibatch_variance": 0.0,
}


def healthy(count: int = 1, faults: tuple[Fault, ...] = (), **broken: float) -> rllc.Estimate:
    """An estimate with nothing wrong but what is named, in its last refinement."""

    def arrays(numbers: dict[str, float]) -> dict[str, np.ndarray]:
        return {
            name: np.array([value] * (count - 1) + [broken.get(name, value)])
            for name, value in numbers.items()
        }

    names = Names(tuple(f"0:{i}" for i in range(count)), ("prose",) * count)
    return rllc.Estimate(
        **arrays({"value": 5.0, "standard_error": 0.1, "dof": 50.0, "rhat": 1.01, "ess": 400.0}),
        per_chain=np.zeros((count, 4)),
        faults=((),) * (count - 1) + (faults,),
        names=names,
        settings=rllc.sgld().settings | rllc.Sampling(start="center").settings,
        diagnostics=arrays(HEALTHY),
    )


def faults_of(estimate: rllc.Estimate, **changes: float) -> tuple[tuple[Fault, ...], ...]:
    return estimate.judge(Limits.for_calibration(**changes)).faults


@pytest.mark.parametrize(
    ("broken", "kind", "problem", "times"),
    [
        ({"standard_error": np.nan}, "too_few_draws", "too few draws for a standard error", None),
        ({"value": -1.0}, "negative", "negative", None),
        ({"value": 0.0, "standard_error": 0.0}, "does_not_move", "chains do not move", None),
        (
            {"value": 0.0, "standard_error": 0.0, "control": 0.0},
            "weights_ignored",
            "nothing to measure",
            None,
        ),
        (
            {"stability": 1.5},
            "hardly_stable",
            "hardly stable in the sharpest direction, of curvature 10",
            2 / 1.5,
        ),
        (
            {"stability": 0.5},
            "unstable",
            "unstable in the sharpest direction, of curvature 10",
            4,
        ),
        ({"spikes": 2.0}, "spikes", "spikes in 2 draws", 3),
        ({"acceptance": 0.05}, "rarely_accepted", "steps too large (acceptance 0.050)", 2),
        (
            {"discretisation": 0.2},
            "step_and_noise_bias",
            "the step size and the minibatches' noise add 20%",
            2,
        ),
        (  # of which 0.02 · 60/10 from minibatches
            {"minibatch_variance": 60.0},
            "step_and_noise_bias",
            "the step size and the minibatches' noise add 12%",
            (1 - 0.98 / 1.12 ** (0.02 / 0.02)) / 0.1,
        ),
        ({"relaxation": 50.0}, "few_relaxations", "slow (4.0 relaxation times)", 2.5),
        (
            {"missing_at_start": 0.06},
            "too_short",
            "too short (flat directions lack 6.0%)",
            2,
        ),
        ({"relaxation_times": 2.0}, "few_relaxations", "slow (2.0 relaxation times)", 2),
        ({"drift": 6.0, "drift_p": 1e-4}, "rising", "still rising", 10),
        ({"drift": -6.0, "drift_p": 1e-4}, "falling", "still falling", 10),
        (
            {"disagreement_p": 1e-5, "spread": 0.3},
            "disagree",
            "chains disagree (they differ by 30%)",
            15,
        ),
        (
            {"heavy_tails": 0.7},
            "heavy_tails",
            "heavy tails (few draws hold 70% of the variance)",
            2,
        ),
        ({"standard_error": 2.0}, "imprecise", "imprecise (± 80%)", 2),
        ({"standard_error": 10.0}, "noise_above_signal", "noise exceeds signal", 10),
        ({"pairing": 0.1}, "pairing", "minibatches of one epoch add 10%", 2),
        (
            {"control_ratio": 0.97},
            "prior_dominated",
            "the prior alone gives this (λ̂ is 0.97 of its control)",
            0.97 / 0.5,
        ),
    ],
)
def test_each_limit(
    broken: dict[str, float], kind: Kind, problem: str, times: float | None
) -> None:
    fine, wrong = faults_of(healthy(2, **broken))
    assert not fine
    assert [(fault.kind, fault.problem) for fault in wrong] == [(kind, problem)]
    if times is not None:
        assert wrong[0].numbers["times"] == pytest.approx(times, rel=0.05)


def test_what_is_not_known_is_not_judged() -> None:
    unknown = dict.fromkeys(HEALTHY, np.nan)
    assert faults_of(healthy(**unknown)) == ((),)


def test_limits_are_arguments() -> None:
    apart = healthy(disagreement_p=1e-5, spread=0.3)
    assert faults_of(apart, min_spread=0.4) == ((),)
    (imprecise,) = faults_of(healthy(), max_noise=0.01)[0]
    assert imprecise.problem == "imprecise (± 4%)"


def test_chains_that_diverged_stay_a_fault_by_any_limits() -> None:
    broken = healthy(2, faults=DIVERGED, value=np.nan)
    assert faults_of(broken) == ((), DIVERGED)
    assert broken.judge(Limits(false_alarm=0.0)).faults == ((), DIVERGED)


def test_every_fault_of_an_estimate_tells_the_search_where_to_go() -> None:
    assert set(search.TROUBLES) == set(get_args(Kind)) - ABSENT
    assert set(search.TROUBLES.values()) == set(search.HELP)


def test_how_far_from_good_is_the_sum_over_what_is_beyond_its_limit() -> None:
    """Of ¼ + log(how many times)."""
    both = faults_of(healthy(pairing=0.1, acceptance=0.02))[0]
    assert [fault.kind for fault in both] == ["rarely_accepted", "pairing"]
    assert search.excess(both, lr=1e-3) == pytest.approx(0.5 + math.log(5) + math.log(2))


# The search, on the exact law


def by_the_law(known: bool) -> Callable[..., rllc.Estimate]:
    """In place of sampling: what infinitely many chains would show on the quadratic."""

    def measure(
        *_: object, sampler: rllc.samplers.Sampler, sampling: rllc.Sampling, **__: object
    ) -> rllc.Estimate:
        n_beta, gamma = sampling.n_beta, sampler.localization
        law = SGLDLaw(CURVATURES, sampler.lr, gamma, n_beta)
        sharpest = CURVATURES.max() if known else np.nan
        curvature = {
            "max_curvature": sharpest,
            "stability": 4 / sampler.lr / (n_beta * sharpest + gamma),
        }
        settings = sampler.settings | sampling.settings
        if not law.stable:
            broken = healthy(faults=DIVERGED, value=np.nan, **curvature)
            return replace(broken, settings=settings)
        without_step = (0.5 * n_beta * CURVATURES / (n_beta * CURVATURES + gamma)).sum()
        time = law.autocorrelation_time()
        estimate = healthy(
            value=law.value,
            standard_error=law.standard_error(200, 4, stationary=True),
            relaxation=time,
            control_ratio=law.value / (0.5 * n_beta * CURVATURES / max(gamma, 1e-9)).sum(),
            discretisation=1 - without_step / law.value,
            from_variance=law.draw_variance,
            from_variance_se=0.0,
            **curvature,
        )
        return replace(estimate, settings=settings)

    return measure


def instead_of_sampling(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., object]) -> None:
    monkeypatch.setattr(sys.modules["rllc.calibration.calibrate"], "estimate", measure)


OFF = [(1.0, 1.0, 1.0), *itertools.product((0.01, 100.0), repeat=3)]


@pytest.mark.parametrize(
    ("known", "off"),
    [
        (True, OFF[:2]),
        pytest.param(True, OFF, marks=pytest.mark.slow),
        pytest.param(False, OFF, marks=pytest.mark.slow),
    ],
    ids=["curvature known, two starts", "curvature known", "curvature unknown"],
)
def test_the_search_recovers_from_two_decades_off_in_any_combination(
    known: bool, off: list[tuple[float, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 9 starts end where a wide grid has its best, but for the scale.

    Only lr·n_beta and lr·localization matter. The search takes half decades, the grid quarters.
    """
    instead_of_sampling(monkeypatch, by_the_law(known))
    lrs = np.logspace(-4, -1.5, 11).tolist()
    localizations = np.logspace(0, 4, 17).tolist()
    wide = on_the_quadratic(lr=lrs, n_beta=[30.0], localization=localizations)
    least = wide.error[wide.best]
    num_tried = []
    for factors in off:
        limits = Limits.for_calibration(max_settings=60)
        calibration = on_the_quadratic(limits=limits, **starting(*factors))
        assert calibration.good.any(), factors
        assert calibration.error[calibration.best] < (1.6 if known else 3) * least, factors
        num_tried.append(len(calibration))
    # From these far starts it was 45 in the dark; a search that gains nothing takes all 60.
    assert np.mean(num_tried) < (25 if known else 50)


def test_no_more_settings_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    limits = Limits.for_calibration(max_settings=3)
    calibration = on_the_quadratic(limits=limits, **starting(localization=100))
    assert len(calibration) == 3
    settings = zip(calibration.lr, calibration.n_beta, calibration.localization, strict=True)
    assert len(set(settings)) == 3


def test_what_a_list_holds_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    calibration = on_the_quadratic(lr=1e-5, n_beta=[30.0], localization=[30.0, 100.0, 300.0])
    assert set(calibration.n_beta) == {30.0}
    assert set(calibration.localization) <= {30.0, 100.0, 300.0}
    assert calibration.localization[0] == 300.0  # the closest to the paper's
    assert calibration.good.any()


def test_no_localization_may_be_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the curvature is unknown, and lr follows the ratio of two localizations."""
    instead_of_sampling(monkeypatch, by_the_law(False))
    calibration = on_the_quadratic(lr=1e-3, n_beta=[30.0], localization=[0.0, 100.0, 1000.0])
    assert calibration.good.any()


def test_settings_that_the_curvature_forbids_are_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    calibration = on_the_quadratic(**starting(lr=100))
    step = calibration.lr * (calibration.n_beta * 10 + calibration.localization)
    only_the_start = [True] + [False] * (len(calibration) - 1)
    assert (step > 2).tolist() == only_the_start


# Sampled.

FINE_GRID = {"lr": [1e-3], "n_beta": [30.0], "localization": [60.0]}
"""One setting, at which the quadratic is sampled well."""


@functools.cache
def fine() -> Calibration:
    with unchanged(QUADRATIC):
        return on_the_quadratic(**FINE_GRID)


@pytest.mark.slow
@pytest.mark.parametrize(
    "factors",
    [{"n_beta": 0.01}, {"lr": 100, "n_beta": 100, "localization": 100}],
    ids=str,
)
def test_a_quadratic_is_recovered_from_two_decades_off(factors: dict[str, float]) -> None:
    """λ is 10; with a condition of 33 and 200 draws a value from 4 on can be had.

    At the starts it goes from 0.002 to diverged.
    """
    calibration = on_the_quadratic(**starting(**factors))
    best = calibration.best
    law = law_at(calibration, best)
    assert calibration.good[best]
    if calibration.good[0]:
        assert calibration.error[best] < 0.5 * calibration.error[0]
    error = abs(calibration.estimates[best].value[0] - law.expected(200))
    assert error < 5 * law.standard_error(200, 4)
    assert 4 < law.value < 11


def test_it_is_a_function_of_its_arguments_and_leaves_the_model_alone() -> None:
    calibration = fine()
    first = calibration.estimates[0]
    again = rllc.estimate(
        QUADRATIC, NOWHERE, loss=loss_of_quadratic, compute=QUIET, **calibration.recommended
    )
    assert np.array_equal(again.value, first.value)
    assert again.settings == first.settings


def test_its_estimates_have_the_status_that_estimate_gives() -> None:
    """Its own limits decide what is good, and are stricter."""
    coarse = {"lr": [1e-2], "n_beta": [30.0], "localization": [60.0]}
    calibration = on_the_quadratic(**coarse)
    estimate = calibration.estimates[0]
    assert estimate.judge().faults == estimate.faults
    assert estimate.judge(Limits.for_calibration()).faults == calibration.faults[0]
    assert [fault.kind for fault in estimate.faults[0]] == ["step_bias", "prior_dominated"]
    kinds = [fault.kind for fault in calibration.faults[0][0]]
    assert kinds == ["hardly_stable", "step_and_noise_bias", "prior_dominated"]


def test_stopping_at_an_error_is_for_later() -> None:
    sampling = replace(FULL_BATCH, target_se=0.5)
    calibration = on_the_quadratic(sampling=sampling, **FINE_GRID)
    assert calibration.estimates[0].settings["target_se"] is None
    assert calibration.recommended["sampling"].target_se == 0.5


@pytest.fixture(scope="module")
def hopeless() -> Calibration:
    """Steps too large, or too small for thirty draws, for both of two heads."""
    return calibrate(
        tiny_model(),
        tiny_tokens(),
        ["0:0", "0:1"],
        sampling=rllc.Sampling(num_chains=2, num_draws=30, batch_size=4, control_variate=False),
        compute=QUIET,
        lr=[1e-9, 1e3],
        n_beta=[30.0],
        localization=[200.0],
    )


def test_a_grid_without_a_good_setting_says_so(hopeless: Calibration) -> None:
    assert not hopeless.good.any()
    text = repr(hopeless)
    assert "0:0: diverged: chain 0 at step" in text
    assert "; and 1 more" in text
    none_is_good = "none of the 2 settings is good. Closest: lr = 1e-09, n_beta = 30, "
    last = text.splitlines()[-1]
    assert last.startswith(f"{none_is_good}localization = 200: 0:")
    assert "What helps: " in last
    with pytest.raises(RllcError, match=f"Calibration.recommended: {none_is_good}"):
        _ = hopeless.recommended
    with pytest.raises(RllcError, match="none of the 2"):
        hopeless.sampler_at(100.0)


@pytest.mark.parametrize(
    ("broken", "help"),
    [
        ({"stability": 0.5}, "a smaller lr"),
        ({"relaxation": 100.0}, "more draws, a larger lr, or a larger localization"),
        ({"value": -1.0}, "below 0, a w\\* that is a minimum for this data"),
        ({"control_ratio": 0.97}, "a smaller localization or a larger n_beta"),
    ],
)
def test_what_helps(broken: dict[str, float], help: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_sampling(monkeypatch, lambda *_, **__: healthy(2, **broken))
    calibration = on_the_quadratic(**{name: [value] for name, value in PAPER.items()})
    with pytest.raises(RllcError, match=f"What helps: .*{help}"):
        _ = calibration.recommended


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    grid = {"lr": [1e-3, 1e-1], "n_beta": [30.0], "localization": [60.0]}
    calibration = on_the_quadratic(**grid)
    answer, *lines = repr(calibration).splitlines()
    assert answer == calibration.answer
    assert lines[0] == "Calibration: 2 settings on 1 refinement, 4 chains × 200 draws, 1 good"
    assert lines[1].split() == ["lr", "n_beta", "localization", "error", "verdict"]
    assert lines[2].split()[:5] == ["→", "0.001", "30", "60", f"{calibration.error[0]:.2f}"]
    assert lines[2].endswith("good; most of the error: prior, 0:0")
    assert lines[3].endswith("nan  0:0: diverged: chain 1 at step 3")
    assert lines[4].startswith("recommended: lr = 0.001, n_beta = 30, localization = 60: error 0.")
    assert lines[4].count("prior") == 1


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ({"prior": math.log(2)}, "low by up to a factor of 2, because of γ, which hides flat"),
        ({"prior": 0.1}, "low by up to 10%, because of γ"),
        ({"step": 0.1}, "high by up to 11%, because of the step size"),
        ({"noise": 0.1}, "uncertain by 10% (a standard error), because of too few draws"),
        ({"start": 0.1}, "low by up to 10%, because of chains that start at w*"),
    ],
)
def test_the_answer_of_a_good_setting_names_the_largest_error(
    parts: dict[str, float], answer: str
) -> None:
    estimate = healthy(2)
    known = {name: np.array([0.0, parts.get(name, 0.0)]) for name in ("step", "prior")}
    known |= {name: np.array([0.0, parts.get(name, 0.0)]) for name in ("noise", "start")}
    vars(estimate)["error_parts"] = known
    assert usable(estimate, 1).startswith(f"usable; λ̂ of 0:1 is {answer}")


@pytest.mark.parametrize(
    ("broken", "answer"),
    [
        (
            {"control_ratio": 0.97},
            "where chains are stable the prior holds 0:1 more than the loss does "
            "(λ̂ is 0.97 of what the prior alone gives)",
        ),
        (
            {"control_ratio": 0.97, "pairing": 0.5},
            "at the closest, 0:1 has this: minibatches of one epoch add 50%",
        ),
    ],
)
def test_the_answer_where_nothing_is_good(broken: dict[str, float], answer: str) -> None:
    estimate = healthy(2, **broken).judge(Limits.for_calibration())
    expected = f"not usable: none of the 7 settings is good; {answer}"
    assert not_usable(estimate, 7) == expected


def test_it_says_what_it_costs_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    on_the_quadratic(compute=rllc.Compute(progress=True))
    grid = {"lr": [1e-3, 1e-4], "n_beta": [30.0], "localization": [60.0]}
    on_the_quadratic(compute=rllc.Compute(progress=True), **grid)
    lines = [line for line in capsys.readouterr().err.splitlines() if "calibrate: a" in line]
    begins = "calibrate: at most 40 settings × 200 steps of each chain; the time is known after"
    assert begins in lines[0]
    assert "calibrate: all 2 settings × 200 steps" in lines[1]


def test_how_long_it_takes_is_said_after_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    clock = itertools.count(step=30.0)
    now = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(sys.modules["rllc.calibration.calibrate"], "time", now)
    grid = {"lr": [1e-3, 1e-4], "n_beta": [30.0], "localization": [60.0]}
    on_the_quadratic(compute=rllc.Compute(progress=True), **grid)
    said = capsys.readouterr().err
    assert "calibrate: the first took 30.0 s; all 2 take 1.0 min" in said
    on_the_quadratic(**grid)
    assert capsys.readouterr().err == ""


def test_a_file_holds_a_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instead_of_sampling(monkeypatch, by_the_law(True))
    calibration = on_the_quadratic(lr=[1e-3, 1e3], n_beta=[30.0], localization=[60.0])
    again = Calibration.load(calibration.save(tmp_path / "calibration.npz"))
    assert repr(again) == repr(calibration)
    assert again.limits == calibration.limits
    assert again.recommended["sampling"] == calibration.recommended["sampling"]
    assert repr(again.sampler_at(300.0)) == repr(calibration.sampler_at(300.0))


def test_a_file_keeps_the_other_settings_of_a_sampler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instead_of_sampling(monkeypatch, by_the_law(False))
    calibration = on_the_quadratic(
        sampler=lambda lr, gamma: rllc.samplers.rmsprop_sgld(lr, gamma, eps=1.0), **FINE_GRID
    )
    again = Calibration.load(calibration.save(tmp_path / "calibration.npz"))
    assert again.make(1e-4, 7.0).settings == calibration.make(1e-4, 7.0).settings


def test_files_that_are_no_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = healthy().save(tmp_path / "estimate.npz")
    with pytest.raises(rllc.FileError, match=r"as Calibration: it holds rllc\.Estimate"):
        Calibration.load(path)
    instead_of_sampling(monkeypatch, by_the_law(False))

    def own(lr: float, gamma: float) -> rllc.samplers.Sampler:
        sampler = rllc.sgld(lr, gamma)
        return rllc.samplers.Sampler("own", lr, gamma, sampler.init, sampler.step)

    saved = on_the_quadratic(sampler=own, **FINE_GRID).save(tmp_path / "calibration.npz")
    with pytest.raises(InputError, match=r"its sampler cannot be made again .* Pass sampler=f"):
        Calibration.load(saved)
    assert Calibration.load(saved, sampler=own).make is own


def test_the_dataframe(hopeless: Calibration) -> None:
    pytest.importorskip("pandas")
    frame = hopeless.to_dataframe()
    columns = ["lr", "n_beta", "localization", "good", "error", "faults", "weights", "data", "llc"]
    assert list(frame.columns[:9]) == columns
    assert frame.lr.tolist() == [1e-9, 1e-9, 1e3, 1e3]
    assert frame.weights.tolist() == ["0:0", "0:1"] * 2
    assert frame.faults[3].startswith("diverged: chain 0")
    assert "minibatch_variance" not in frame.columns
    assert "minibatch_variance" in hopeless.to_dataframe(diagnostics=True).columns


def test_the_sampler_for_another_n_beta_takes_the_same_step() -> None:
    calibration = fine()
    sampler = calibration.sampler_at(300.0)
    assert sampler.localization == 60.0
    assert sampler.lr == pytest.approx(1e-3 * (30 * 10 + 60) / (300 * 10 + 60), rel=1e-3)
    assert calibration.sampler_at(30.0).lr == pytest.approx(1e-3)


def test_a_sampler_whose_stability_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curvature steers the search, only what is wrong. Nothing tells how lr follows nβ."""
    instead_of_sampling(monkeypatch, by_the_law(False))
    calibration = on_the_quadratic(
        sampler=lambda lr, gamma: rllc.samplers.rmsprop_sgld(lr, gamma, eps=1.0),
        lr=1.0,
        n_beta=[30.0],
    )
    assert calibration.good.any()
    sampler = calibration.recommended["sampler"]
    assert sampler.options["eps"] == 1.0
    assert calibration.sampler_at(300.0).lr == sampler.lr


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"ln": 1.0}, "unexpected keyword argument 'ln'; did you mean 'lr'"),
        ({"gamma": 1.0}, "unexpected keyword argument 'gamma'; did you mean 'localization'"),
        ({"lr": []}, r"`lr` must be a number above 0, where to start, .* got \[\]"),
        ({"lr": [0.0]}, r"numbers above 0, those to try; got \[0.0\]"),
        ({"localization": 0.0}, "must be a number above 0, where to start, .* got 0.0"),
        ({"localization": [-1.0]}, "list of numbers from 0 on"),
        ({"n_beta": "30"}, r"`n_beta` must be .* got '30'"),
    ],
)
def test_grids_that_cannot_be(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on_the_quadratic(**grid)


def test_a_sampler_is_asked_for_by_its_function() -> None:
    message = r"calibrate: `sampler` must be a function .* rllc.sgld without a call; got sgld\("
    with pytest.raises(InputError, match=message):
        on_the_quadratic(sampler=rllc.sgld())


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, rllc.Tokens]:
    return trained_on_markov()


@pytest.mark.slow
@pytest.mark.parametrize(("factors", "tries"), [({"lr": 100}, 6), ({"localization": 100}, 12)])
def test_a_trained_model_is_recovered_from_two_decades_off(
    trained: tuple[torch.nn.Module, rllc.Tokens], factors: dict[str, float], tries: int
) -> None:
    """What is recommended agrees with long chains at a quarter of its step size.

    That is, within the error that it claims. A good setting is found by the 4th and 10th.
    Without the control variate, which would double the time.
    """
    model, data = trained
    heads = ["1:0", "1:1"]
    calibration = calibrate(
        model,
        data,
        heads,
        sampling=rllc.Sampling(2, 200, batch_size=16, control_variate=False),
        limits=Limits.for_calibration(max_settings=tries),
        compute=QUIET,
        **starting(**factors),
    )
    best = calibration.best
    assert calibration.good[best]
    assert not calibration.good[0]
    fine = rllc.sgld(calibration.lr[best] / 4, calibration.localization[best])
    sampling = calibration.recommended["sampling"]
    long = replace(sampling, num_burnin_steps=200, num_steps_bw_draws=2, num_probes=0)
    truth = rllc.estimate(model, data, heads, sampler=fine, sampling=long, compute=QUIET)
    recommended = calibration.estimates[best]
    parts = recommended.error_parts
    noise = 5 * np.hypot(parts["noise"], truth.standard_error / truth.value)
    error = abs(np.log(recommended.value / truth.value))
    assert (error < parts["step"] + parts["start"] + noise).all()
