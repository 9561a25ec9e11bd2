"""Calibration and resolution: against the exact law of SGLD on quadratics, sampled and computed, and what is said of trouble."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny import SHORT, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens

import rllc
from rllc import search
from rllc.calibrate import Calibration, calibrate
from rllc.errors import InputError, RllcError
from rllc.faults import ABSENT, Fault, Kind, Limits
from rllc.models import AttentionOnlyConfig
from rllc.names import Names
from rllc.resolution import Resolution, resolution
from rllc.seeds import generator
from rllc.testing import unchanged
from rllc.theory import SGLDLaw

CURVATURES = np.repeat([0.3, 1.0, 3.0, 10.0], 5)
PAPER = {"lr": 1e-3, "n_beta": 30.0, "localization": 200.0}
QUADRATIC = Quadratic(torch.tensor(CURVATURES, dtype=torch.float32))
NOWHERE = torch.zeros(1, 20)
FULL_BATCH = rllc.Sampling(batch_size=1)


def starting(lr: float = 1.0, n_beta: float = 1.0, localization: float = 1.0) -> dict[str, float]:
    """The paper's settings, off by these factors."""
    return {
        k: PAPER[k] * f
        for k, f in {"lr": lr, "n_beta": n_beta, "localization": localization}.items()
    }


def on_the_quadratic(**arguments: Any) -> Calibration:
    return calibrate(
        QUADRATIC,
        NOWHERE,
        **{"loss": loss_of_quadratic, "sampling": FULL_BATCH, "progress": False} | arguments,
    )


def law_at(calibration: Calibration, i: int) -> SGLDLaw:
    told = {name: float(getattr(calibration, name)[i]) for name in PAPER}
    return SGLDLaw(CURVATURES, **told)


# What is known of the error


def test_parts_of_the_error_are_those_of_the_law() -> None:
    """One curvature, where all four are exact; minibatch noise whose covariance is the Hessian by the batch size."""
    h, n_beta, lr, gamma, batch = 2.0, 100.0, 1e-3, 50.0, 50
    rows = torch.randn(2000, 20, generator=generator("rows")).double()
    rows = torch.linalg.qr(rows - rows.mean(0))[0] * (2000 * h) ** 0.5  # covariance h, exactly
    sampling = rllc.Sampling(num_draws=1000, batch_size=batch, n_beta=n_beta)
    found = calibrate(Quadratic(torch.full((20,), h)), rows.float(), loss=loss_of_quadratic, sampling=sampling, compute=rllc.Compute(progress=False),
                      grid={"lr": [lr], "n_beta": [n_beta], "localization": [gamma]})  # fmt: skip
    noise = h / batch * (1 - batch / 2000) * 2000 / 1999
    law = SGLDLaw(np.full(20, h), lr=lr, localization=gamma, n_beta=n_beta, gradient_variance=noise)
    still = 20 / 2 * n_beta * h / (n_beta * h + gamma)  # without any step size
    parts = {name: float(array[0]) for name, array in found.estimates[0].error_parts.items()}
    assert math.log(law.value / still) > 0.12  # more than half of it from minibatches
    assert parts["step"] == pytest.approx(math.log(law.value / still), rel=0.2)
    told = found.estimates[0].diagnostics
    assert parts["prior"] == pytest.approx(
        math.log(10 / still), abs=5 * told["from_variance_se"][0] / still
    )
    assert parts["noise"] == pytest.approx(law.standard_error(1000, 4) / law.value, rel=0.3)
    assert parts["start"] <= 1.5 * math.log(law.value / law.expected(1000)) + 1e-4
    assert found.errors[0, 0] == pytest.approx(math.hypot(*parts.values()))


@pytest.mark.parametrize(("burnin", "start"), [(0, "center"), (10, "center"), (0, "gaussian")])
def test_what_chains_lack_that_start_at_the_center(burnin: int, start: str) -> None:
    """Exact for one curvature, given the autocorrelation time."""
    law = SGLDLaw(np.full(20, 1.0), lr=1e-3, localization=100.0, n_beta=30.0)
    e = healthy(relaxation=law.autocorrelation_time(2))
    settings = {
        "num_draws": 100,
        "num_burnin_steps": burnin,
        "num_steps_bw_draws": 2,
        "start": start,
    }
    lacking = 1 - law.expected(100, num_burnin_steps=burnin, num_steps_bw_draws=2) / law.value
    expected = lacking if start == "center" else 0.0
    found = replace(e, settings={**e.settings, **settings}).error_parts["start"][0]
    assert found == pytest.approx(-math.log1p(-expected), rel=1e-6)


# The limits

DIVERGED = (Fault("diverged", {"chain": 1, "step": 3}, "lower lr"),)
HEALTHY = {
    "relaxation": 2.0,
    "drift": 0.5,
    "trend": 0.5,
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
        **arrays({"value": 5.0, "standard_error": 0.1, "rhat": 1.01, "ess": 400.0}),
        per_chain=np.zeros((count, 4)),
        faults=((),) * (count - 1) + (faults,),
        names=names,
        settings=rllc.sgld().settings | rllc.Sampling().settings,
        diagnostics=arrays(HEALTHY),
    )


def faults_of(estimate: rllc.Estimate, **changes: float) -> tuple[tuple[Fault, ...], ...]:
    return estimate.judge(Limits.for_calibration(**changes)).faults


@pytest.mark.parametrize(
    ("broken", "kind", "problem", "times"),
    [
        ({"standard_error": np.nan}, "too_few_draws", "too few draws for a standard error", None),
        ({"value": -1.0}, "negative", "negative", None),
        ({"value": 0.0, "standard_error": 0.0}, "no_loss", "zero", None),
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
        ({"drift": -6.0}, "rising", "still rising", 1.5),
        ({"drift": 6.0}, "falling", "still falling", 1.5),
        ({"rhat": 1.3}, "disagree", "chains disagree (R-hat)", 3),
        (
            {"standard_error": 2.0},
            "imprecise",
            "imprecise (the standard error is 40% of the value)",
            2,
        ),
        ({"standard_error": 10.0}, "noise_above_signal", "noise exceeds signal", 10),
        (
            {"from_variance": 0.05, "from_variance_se": 0.01},
            "prior_dominated",
            "the prior hides 99%",
            math.log(0.05 / 5 / 0.98) / math.log(0.1),
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
        numbers = wrong[0].numbers
        assert numbers.get("times", numbers.get("times_rhat")) == pytest.approx(times, rel=0.05)


def test_what_is_not_known_is_not_judged() -> None:
    unknown = dict.fromkeys(HEALTHY, np.nan)
    assert faults_of(healthy(**unknown)) == ((),)


def test_limits_are_arguments() -> None:
    assert faults_of(healthy(rhat=1.3), max_rhat=1.4) == ((),)
    (imprecise,) = faults_of(healthy(), max_noise=0.01)[0]
    assert imprecise.problem == "imprecise (the standard error is 2% of the value)"


def test_chains_that_diverged_stay_a_fault_by_any_limits() -> None:
    broken = healthy(2, faults=DIVERGED, value=np.nan)
    assert faults_of(broken) == ((), DIVERGED)
    assert broken.judge(Limits(max_rhat=1e9)).faults == ((), DIVERGED)


def test_every_fault_of_an_estimate_tells_the_search_where_to_go() -> None:
    assert set(search.TROUBLES) == set(get_args(Kind)) - ABSENT
    assert set(search.TROUBLES.values()) == set(search.HELP)


def test_a_number_beyond_two_limits_at_once_counts_twice_and_one_in_two_faults_once() -> None:
    """The sum over what is beyond its limit, of ¼ + log(how many times)."""
    both = faults_of(healthy(drift=-6.0, rhat=1.3))[0]
    assert [fault.kind for fault in both] == ["rising"]
    assert search.excess(both, lr=1e-3) == pytest.approx(0.5 + math.log(1.5) + math.log(3))
    turning = faults_of(healthy(drift=-6.0, rhat=1.3, trend=-5.0))[0]
    assert [fault.kind for fault in turning] == ["rising", "falling"]
    assert search.excess(turning, lr=1e-3) == pytest.approx(search.excess(both, lr=1e-3))


# The search, on the exact law


def by_the_law(known: bool) -> Callable[..., rllc.Estimate]:
    """In place of sampling: what infinitely many chains would show on the quadratic."""

    def measure(
        *_: Any, sampler: rllc.Sampler, sampling: rllc.Sampling, **__: Any
    ) -> rllc.Estimate:
        law = SGLDLaw(
            CURVATURES, lr=sampler.lr, localization=sampler.localization, n_beta=sampling.n_beta
        )
        a, h = (
            sampling.n_beta * CURVATURES + sampler.localization,
            CURVATURES.max() if known else np.nan,
        )
        stability = 4 / sampler.lr / (sampling.n_beta * h + sampler.localization)
        settings = sampler.settings | sampling.settings
        if not law.stable:
            e = healthy(faults=DIVERGED, value=np.nan, max_curvature=h, stability=stability)
            return replace(e, settings=settings)
        time, still = law.autocorrelation_time(), (0.5 * sampling.n_beta * CURVATURES / a).sum()
        return replace(healthy(
            value=law.value, standard_error=law.standard_error(200, 4, stationary=True), rhat=1 + time / 200,
            relaxation=time, discretisation=1 - still / law.value, max_curvature=h, stability=stability,
            from_variance=law.draw_variance, from_variance_se=0.0), settings=settings)  # fmt: skip

    return measure


OFF = list(itertools.product((0.01, 1.0, 100.0), repeat=3))


@pytest.mark.parametrize(
    "known",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["curvature known", "curvature unknown"],
)
def test_the_search_recovers_from_two_decades_off_in_any_combination(
    known: bool, monkeypatch: Any
) -> None:
    """All 27 starts end where a wide grid has its best, but for the scale: lr·n_beta and lr·localization are all that matters."""
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(known))
    wide = on_the_quadratic(grid={"lr": np.logspace(-4, -1.5, 11).tolist(), "n_beta": [30.0],
                                  "localization": np.logspace(0, 4, 17).tolist()})  # fmt: skip
    least, tries = wide.error[wide.best], []
    for factors in OFF:
        found = on_the_quadratic(
            grid=starting(*factors), limits=Limits.for_calibration(max_settings=60)
        )
        assert found.good.any(), factors
        assert found.error[found.best] < (1.6 if known else 3) * least, (
            factors
        )  # half decades against quarters
        tries.append(len(found))
    assert np.mean(tries) < (25 if known else 45)


def test_no_more_settings_than_allowed(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(True))
    found = on_the_quadratic(
        grid=starting(localization=100), limits=Limits.for_calibration(max_settings=3)
    )
    assert len(found) == 3
    assert len(set(zip(found.lr, found.n_beta, found.localization, strict=True))) == 3


def test_what_a_list_holds_is_not_left(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(True))
    found = on_the_quadratic(
        grid={"lr": 1e-5, "n_beta": [30.0], "localization": [30.0, 100.0, 300.0]}
    )
    assert set(found.n_beta) == {30.0}
    assert set(found.localization) <= {30.0, 100.0, 300.0}
    assert found.localization[0] == 300.0  # the closest to the paper's
    assert found.good.any()


def test_settings_that_the_curvature_forbids_are_not_tried(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(True))
    found = on_the_quadratic(grid=starting(lr=100))
    unstable = found.lr * (found.n_beta * 10 + found.localization) > 2
    assert unstable.tolist() == [True] + [False] * (len(found) - 1)  # only the start


# Sampled


@pytest.mark.slow
@pytest.mark.parametrize(
    "factors",
    [{"n_beta": 0.01}, {"lr": 100, "n_beta": 100, "localization": 100}],
    ids=str,
)
def test_a_quadratic_is_recovered_from_two_decades_off(factors: dict[str, float]) -> None:
    found = on_the_quadratic(grid=starting(**factors))
    i, law = found.best, law_at(found, found.best)
    assert found.good[i]
    assert not found.good[0] or found.error[i] < 0.5 * found.error[0]
    assert abs(found.estimates[i].value[0] - law.expected(200)) < 5 * law.standard_error(200, 4)
    assert (
        4 < law.value < 11
    )  # of 10, with a condition of 33 and 200 draws; at the starts from 0.002 to diverged


def test_it_is_a_function_of_its_arguments_and_leaves_the_model_alone() -> None:
    grid = {"lr": [1e-3], "n_beta": [30.0], "localization": [60.0]}
    with unchanged(QUADRATIC):
        found = on_the_quadratic(grid=grid)
    again = rllc.estimate(
        QUADRATIC,
        NOWHERE,
        loss=loss_of_quadratic,
        compute=rllc.Compute(progress=False),
        **found.recommended,
    )
    assert np.array_equal(again.value, found.estimates[0].value)
    assert again.settings == found.estimates[0].settings


def test_stopping_at_an_error_is_for_later() -> None:
    grid = {"lr": [1e-3], "n_beta": [30.0], "localization": [60.0]}
    found = on_the_quadratic(grid=grid, sampling=replace(FULL_BATCH, target_se=0.5))
    assert found.estimates[0].settings["target_se"] is None
    assert found.recommended["sampling"].target_se == 0.5


@pytest.fixture(scope="module")
def hopeless() -> Calibration:
    """Steps too large, or too small for thirty draws, for both of two heads."""
    grid = {"lr": [1e-9, 1e3], "n_beta": [30.0], "localization": [200.0]}
    sampling = rllc.Sampling(num_chains=2, num_draws=30, batch_size=4)
    return calibrate(
        tiny_model(),
        tiny_tokens(),
        ["0:0", "0:1"],
        sampling=sampling,
        grid=grid,
        compute=rllc.Compute(progress=False),
    )


def test_a_grid_without_a_good_setting_says_so(hopeless: Calibration) -> None:
    assert not hopeless.good.any()
    last = repr(hopeless).splitlines()[-1]
    assert last.startswith(
        "none of the 2 settings is good. Closest: lr = 1e-09, n_beta = 30, localization = 200: 0:"
    )
    assert "What helps: " in last
    assert "0:0: diverged: chain 0 at step" in repr(hopeless)
    assert "; and 1 more" in repr(hopeless)
    with pytest.raises(
        RllcError,
        match=r"Calibration.recommended: none of the 2 settings is good\. Closest: lr = 1e-09",
    ):
        _ = hopeless.recommended
    with pytest.raises(RllcError, match="none of the 2"):
        hopeless.sampler_at(100.0)


@pytest.mark.parametrize(
    ("broken", "help"),
    [
        ({"stability": 0.5}, "a smaller lr"),
        ({"relaxation": 100.0}, "more draws, a larger lr, or a larger localization"),
        ({"value": -1.0}, "below 0, a w\\* that is a minimum for this data"),
        (
            {"from_variance": 0.05, "from_variance_se": 0.0},
            "a smaller localization or a larger n_beta",
        ),
    ],
)
def test_what_helps(broken: dict[str, Any], help: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        sys.modules["rllc.calibrate"], "estimate", lambda *_, **__: healthy(2, **broken)
    )
    found = on_the_quadratic(grid={name: [value] for name, value in PAPER.items()})
    with pytest.raises(RllcError, match=f"What helps: .*{help}"):
        _ = found.recommended


def test_the_table(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(True))
    found = on_the_quadratic(grid={"lr": [1e-3, 1e-1], "n_beta": [30.0], "localization": [60.0]})
    lines = repr(found).splitlines()
    assert lines[0] == "Calibration: 2 settings on 1 refinement, 4 chains × 200 draws, 1 good"
    assert lines[1].split() == ["lr", "n_beta", "localization", "error", "verdict"]
    assert lines[2].split()[:5] == ["→", "0.001", "30", "60", f"{found.error[0]:.2f}"]
    assert lines[2].endswith("good; most of the error: prior, 0:0")
    assert lines[3].endswith("nan  0:0: diverged: chain 1 at step 3")
    assert lines[4].startswith("recommended: lr = 0.001, n_beta = 30, localization = 60: error 0.")
    assert lines[4].count("prior") == 1


def test_the_dataframe(hopeless: Calibration) -> None:
    pytest.importorskip("pandas")
    frame = hopeless.to_dataframe()
    assert list(frame.columns[:9]) == [
        "lr",
        "n_beta",
        "localization",
        "good",
        "error",
        "faults",
        "weights",
        "data",
        "llc",
    ]
    assert frame.lr.tolist() == [1e-9, 1e-9, 1e3, 1e3]
    assert frame.weights.tolist() == ["0:0", "0:1"] * 2
    assert frame.faults[3].startswith("diverged: chain 0")
    assert "minibatch_variance" in frame.columns


def test_the_sampler_for_another_n_beta_takes_the_same_step() -> None:
    found = on_the_quadratic(grid={"lr": [1e-3], "n_beta": [30.0], "localization": [60.0]})
    there = found.sampler_at(300.0)
    assert there.localization == 60.0
    assert there.lr == pytest.approx(1e-3 * (30 * 10 + 60) / (300 * 10 + 60), rel=1e-3)
    assert found.sampler_at(30.0).lr == pytest.approx(1e-3)


def test_a_sampler_whose_stability_is_not_known(monkeypatch: Any) -> None:
    """No curvature steers the search, only what is wrong; and nothing tells how lr is to follow nβ."""
    monkeypatch.setattr(sys.modules["rllc.calibrate"], "estimate", by_the_law(False))
    found = on_the_quadratic(
        sampler=lambda lr, gamma: rllc.rmsprop_sgld(lr, gamma, eps=1.0),
        grid={"lr": 1.0, "n_beta": [30.0]},
    )
    assert found.good.any()
    assert found.recommended["sampler"].options["eps"] == 1.0
    assert found.sampler_at(300.0).lr == found.recommended["sampler"].lr


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"ln": 1.0}, "`grid` has 'ln'; did you mean 'lr'"),
        ({"lr": []}, r"`grid\['lr'\]` must be a number above 0, where to start, .* numbers above 0, .* got \[\]"),
        ({"lr": [0.0]}, r"numbers above 0, those to try; got \[0.0\]"),
        ({"localization": 0.0}, "must be a number above 0, where to start, .* got 0.0"),
        ({"localization": [-1.0]}, "list of numbers from 0 on"),
        ({"n_beta": "30"}, r"`grid\['n_beta'\]` must be .* got '30'"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on_the_quadratic(grid=grid)


def test_a_sampler_is_asked_for_by_its_function() -> None:
    with pytest.raises(
        InputError,
        match=r"calibrate: `sampler` must be a function .* rllc.sgld without a call; got sgld\(",
    ):
        on_the_quadratic(sampler=rllc.sgld())


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, rllc.Tokens]:
    """A small attention-only model, trained on a Markov chain until its loss is that of the chain or so."""
    stream = generator("markov")
    after = torch.softmax(2 * torch.randn(12, 12, generator=stream), 1)
    rows = torch.randint(12, (512, 1), generator=stream)
    for _ in range(11):
        rows = torch.cat([rows, torch.multinomial(after[rows[:, -1]], 1, generator=stream)], 1)
    config = AttentionOnlyConfig(n_layers=2, d_model=12, n_heads=2, d_head=6, n_ctx=12, d_vocab=12)
    data = rllc.Tokens(rows, "markov")
    training = rllc.Training(num_steps=300, batch_size=64, lr=1e-2)
    return rllc.train(config, data, training=training, progress=False), data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factors", "tries"), [({"lr": 100}, 12), ({"n_beta": 0.01}, 8), ({"localization": 100}, 26)]
)
def test_a_trained_model_is_recovered_from_two_decades_off(
    trained: tuple, factors: dict[str, float], tries: int
) -> None:
    """What is recommended agrees with long chains at a quarter of its step size, within the error that it claims.

    A good setting is found by the 9th, 5th and 22nd.
    """
    model, data = trained
    sampling = rllc.Sampling(num_chains=2, num_draws=200, batch_size=16)
    found = calibrate(model, data, ["1:0", "1:1"], sampling=sampling, grid=starting(**factors),
                      limits=Limits.for_calibration(max_settings=tries), compute=rllc.Compute(progress=False))  # fmt: skip
    i = found.best
    assert found.good[i]
    assert not found.good[0]
    fine = rllc.sgld(found.lr[i] / 4, found.localization[i])
    long = replace(
        found.recommended["sampling"], num_burnin_steps=200, num_steps_bw_draws=2, num_probes=0
    )
    truth = rllc.estimate(
        model,
        data,
        ["1:0", "1:1"],
        sampler=fine,
        sampling=long,
        compute=rllc.Compute(progress=False),
    )
    parts = found.estimates[i].error_parts
    noise = 5 * np.hypot(parts["noise"], truth.standard_error / truth.value)
    assert (
        abs(np.log(found.estimates[i].value / truth.value)) < parts["step"] + parts["start"] + noise
    ).all()


# The curve


@pytest.fixture(scope="module")
def curve() -> Resolution:
    return resolution(QUADRATIC, NOWHERE, n_betas=[3.0, 100.0, 30.0], loss=loss_of_quadratic, sampling=FULL_BATCH,
                      compute=rllc.Compute(progress=False))  # fmt: skip


def test_the_curve_is_the_laws(curve: Resolution) -> None:
    assert curve.n_beta.tolist() == [3.0, 30.0, 100.0]
    for n_beta, e in zip(curve.n_beta, curve.estimates, strict=True):
        assert e.settings["localization"] == 200.0
        assert e.settings["lr"] == pytest.approx(1 / (n_beta * 10 + 4 * 200), rel=1e-3)
        law = SGLDLaw(CURVATURES, lr=e.settings["lr"], localization=200.0, n_beta=n_beta)
        assert abs(e.value[0] - law.expected(200)) < 5 * law.standard_error(200, 4)
    assert (np.diff(curve.value[:, 0]) > 5 * curve.standard_error[:-1, 0]).all()


def test_the_curve_with_samplers_of_ones_own() -> None:
    few = replace(FULL_BATCH, num_draws=10)
    arguments = {
        "n_betas": [3.0, 30.0],
        "loss": loss_of_quadratic,
        "sampling": few,
        "progress": False,
    }
    held = resolution(QUADRATIC, NOWHERE, sampler=rllc.sgld(1e-3, 50.0), **arguments)
    assert [e.settings["lr"] for e in held.estimates] == [1e-3, 1e-3]
    made = resolution(
        QUADRATIC, NOWHERE, sampler=lambda n_beta: rllc.sgld(0.03 / n_beta, 50.0), **arguments
    )
    assert [e.settings["lr"] for e in made.estimates] == [0.01, 1e-3]
    assert np.array_equal(made.value[1], held.value[1])


def test_the_curve_as_table_and_dataframe() -> None:
    pytest.importorskip("pandas")
    model, data = tiny_model(), {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
    found = resolution(model, data, ["0:0"], n_betas=[30.0, 300.0], sampler=lambda n: rllc.sgld(1e-4 if n < 100 else 1e3),
                       sampling=SHORT, compute=rllc.Compute(progress=False))  # fmt: skip
    lines = repr(found).splitlines()
    assert lines[0] == "Resolution: 2 values of n_beta, 2 refinements"
    assert lines[1].split() == ["n_beta", "=", "30", "n_beta", "=", "300"]
    assert lines[2].split()[:5] == ["0:0", "on", "code", f"{found.value[0, 0]:.3f}", "±"]
    assert any(line.startswith("! n_beta = 300, 0:0 on prose: diverged") for line in lines[4:])
    frame = found.to_dataframe()
    assert list(frame.columns[:6]) == ["n_beta", "lr", "localization", "weights", "data", "llc"]
    assert frame.n_beta.tolist() == [30.0, 30.0, 300.0, 300.0]
    assert np.array_equal(frame.llc, found.value.ravel(), equal_nan=True)
    assert (found.weights, found.data, len(found)) == (("0:0", "0:0"), ("code", "prose"), 2)


@pytest.mark.parametrize("n_betas", [[], [0.0, 1.0], [1.0, 1.0], ["30"]])
def test_curves_that_cannot_be(n_betas: list[Any]) -> None:
    with pytest.raises(
        InputError, match=r"resolution: `n_betas` must be different positive numbers, .* got \["
    ):
        resolution(QUADRATIC, NOWHERE, n_betas=n_betas, loss=loss_of_quadratic)


def test_a_curves_sampler_must_be_one() -> None:
    with pytest.raises(
        InputError, match=r"resolution: `sampler` must be a function n_beta -> Sampler, .* got 3"
    ):
        resolution(QUADRATIC, NOWHERE, n_betas=[3.0], loss=loss_of_quadratic, sampler=3)  # type: ignore[arg-type]
