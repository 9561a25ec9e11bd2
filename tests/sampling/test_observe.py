"""Observables: what they give, that they change no chain, and what happens when one goes wrong."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, square, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.errors import InputError, ObservationError

pytestmark = pytest.mark.usefixtures("few_looks")
MODEL, TOKENS = tiny_model(), tiny_tokens()
HEADS = ["0:1", "1:2", "1:0"]
FIXED = tiny_tokens(num_rows=9, pos=5, seed=3)


def observed(observe: dict[str, rllc.Observable], **changes: object) -> rllc.Draws:
    options = {"sampling": SHORT, "compute": QUIET} | changes
    return rllc.sample(MODEL, TOKENS, HEADS, observe=observe, **options)


def moved_models(weights: str) -> list[tuple[int, int, nn.Module]]:
    """The model at each draw of each chain, by a slow way: positions put into a copy."""
    models = []
    masks = rllc.head(weights).masks(MODEL)
    for step in rllc.iterate(MODEL, TOKENS, HEADS, sampling=SHORT):
        for chain, position in enumerate(step.positions(HEADS.index(weights))):
            copy = tiny_model()
            at = 0
            for name in sorted(masks):
                count = int(masks[name].sum())
                parameter = copy.get_parameter(name)
                values = position[at : at + count]
                parameter.data = parameter.data.masked_scatter(masks[name], values)
                at += count
            models.append((chain, step.draw, copy))
    return models


def test_losses_on_fixed_rows_are_those_of_the_moved_model() -> None:
    observe = {"all": rllc.losses_on(FIXED, keep="all"), "rise": rllc.losses_on(FIXED)}
    draws = observed(observe)
    assert draws.observed["all"].shape == (3, 2, 5, 9, 4)
    assert draws.observed["rise"].dtype == np.float16
    assert draws.settings["observed"]["rise"] == ["row", "pos"]
    baseline = rllc.next_token(MODEL, FIXED.rows.long()).detach().numpy()
    for chain, draw, model in moved_models("1:2"):
        expected = rllc.next_token(model, FIXED.rows.long()).detach().numpy()
        losses = draws.observed["all"][1, chain, draw]
        np.testing.assert_allclose(losses, expected, atol=1e-5)
        rise = draws.observed["rise"][1, chain, draw]
        # float16 keeps 11 bits of a difference.
        np.testing.assert_allclose(rise, expected - baseline, rtol=2e-3, atol=2e-5)


def test_running_moments_are_those_of_all_values() -> None:
    draws = observed(
        {"all": rllc.losses_on(FIXED, keep="all"), "few": rllc.losses_on(FIXED, keep="moments")}
    )
    values = draws.observed["all"].reshape(3, 2, 5, 36).astype(float)
    mean = draws.observed["few"].reshape(3, 2, 36)
    np.testing.assert_allclose(mean, values.mean(2), atol=1e-6)
    for refinement in range(3):
        for chain in range(2):
            exact = np.cov(values[refinement, chain].T)
            found = draws.observed["few.covariance"][refinement, chain]
            np.testing.assert_allclose(found, exact, atol=1e-9)


def test_moments_of_chains_that_go_on_are_those_of_one_run() -> None:
    observe = {"few": rllc.losses_on(FIXED, keep="moments"), "far": rllc.distance()}
    keep = replace(QUIET, keep_states=True)
    short = observed(observe, sampling=replace(SHORT, num_draws=3), compute=keep)
    went_on = observed(observe, resume=short)
    whole = observed(observe)
    for name, array in whole.observed.items():
        np.testing.assert_allclose(went_on.observed[name], array, atol=1e-12, err_msg=name)


def test_distance_has_the_mean_of_the_law() -> None:
    """On a flat loss the prior is the law: E‖v − v*‖² = dim/(γ(1 − εγ/4))."""
    dim = 400
    draws = rllc.sample(
        Quadratic(torch.zeros(dim)),
        torch.zeros(4, dim),
        loss=loss_of_quadratic,
        sampling=rllc.Sampling(
            num_draws=200, num_burnin_steps=60, batch_size=4, control_variate=False
        ),
        observe={"far": rllc.distance()},
        compute=QUIET,
    )
    exact = dim / (200 * (1 - 1e-3 * 200 / 4))
    # 4 × 200 draws of 400 directions, of which one in ten is independent.
    error = exact * (2 / dim / 80) ** 0.5
    assert abs(draws.observed["far"].mean() - exact) < 5 * error


@functools.cache
def unobserved(sampling: rllc.Sampling) -> rllc.Draws:
    return observed({}, sampling=sampling)


@pytest.mark.parametrize(
    "observable",
    [
        rllc.distance(),
        rllc.losses_on(FIXED),
        rllc.losses_on(FIXED, keep="moments"),
        rllc.observables.minibatch_losses(),
        rllc.observables.minibatch_rows(),
        rllc.Observable(lambda moment: moment.jump().loss_after, at="probe"),
        rllc.Observable(lambda moment: moment.gradient().norm(dim=1), at="start"),
        rllc.Observable(lambda moment: torch.rand(len(moment.chain))),
        rllc.Observable(lambda m: m.prepared.sum(1), prepare=lambda m: m.origin_gradient()),
    ],
)
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(replace(SHORT, num_draws=3, num_probes=2), marks=pytest.mark.slow),
        replace(
            SHORT,
            num_draws=2,
            num_probes=2,
            start="gaussian",
            control_variate=True,
            num_steps_bw_draws=2,
        ),
    ],
    ids=["plain", "with all"],
)
def test_no_observable_changes_a_chain(
    observable: rllc.Observable, sampling: rllc.Sampling
) -> None:
    plain = unobserved(sampling)
    watched = observed({"yours": observable}, sampling=sampling)
    np.testing.assert_array_equal(watched.loss, plain.loss)
    np.testing.assert_array_equal(watched.baseline, plain.baseline)
    for name, array in plain.observed.items():
        np.testing.assert_array_equal(watched.observed[name], array, err_msg=name)


def test_a_moment_shows_the_runs_as_they_are() -> None:
    """Names, losses, gradients and both ends of a step, against the values of the draws."""

    names = set()

    def measure(moment: rllc.Moment) -> Tensor:
        names.update(moment.refinements)
        assert bool((moment.origin == moment.origin[0]).any())
        by_row = moment.losses_by_row.double().flatten(1).mean(1)
        torch.testing.assert_close(by_row, moment.losses, atol=1e-6, rtol=0)
        again = moment.gradient(moment.position)
        torch.testing.assert_close(again, moment.gradient(), atol=1e-6, rtol=1e-4)
        return moment.losses

    draws = observed({"same": rllc.Observable(measure)})
    np.testing.assert_array_equal(draws.observed["same"], draws.loss)
    assert names == {(weights, "tokens") for weights in HEADS}


# What goes wrong.


def later(step: int, then: Callable[[rllc.Moment], Tensor]) -> rllc.Observable:
    """The distance, and from one step on something else."""

    def measure(moment: rllc.Moment) -> Tensor:
        if moment.step >= step:
            return then(moment)
        return (moment.position - moment.origin).square().sum(1)

    return rllc.Observable(measure)


WRONG = {
    "raises": (lambda moment: 1 / 0, "'mine' failed at step . .ZeroDivisionError"),
    "no number": (lambda moment: moment.losses * torch.nan, "'mine' gave no finite number"),
    "shape": (
        lambda moment: moment.position,
        r"'mine' gave a tensor of shape \[.*expected.*\[run\]",
    ),
    "type": (lambda moment: 3.0, "'mine' gave float; expected a tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_at_once_is_refused_before_any_chain_runs(name: str) -> None:
    measure, message = WRONG[name]
    never = replace(rllc.sgld(), step=lambda *_: pytest.fail("a chain ran"))
    with pytest.raises(ObservationError, match=message):
        observed({"mine": rllc.Observable(measure)}, sampler=never)


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_later_loses_no_draw(name: str) -> None:
    measure, message = WRONG[name]
    with pytest.raises(ObservationError, match=message) as raised:
        observed({"mine": later(3, measure), "far": rllc.distance()})
    draws = raised.value.draws
    assert raised.value.name == "mine"
    assert draws.num_draws == 3
    assert set(draws.observed) & {"mine", "far"} == {"far"}
    whole = observed({"far": rllc.distance()})
    went_on = observed({"far": rllc.distance()}, resume=replace(draws, settings=short(draws)))
    np.testing.assert_array_equal(went_on.loss, whole.loss)
    np.testing.assert_array_equal(went_on.observed["far"], whole.observed["far"])


def short(draws: rllc.Draws) -> dict[str, object]:
    return {**draws.settings, "num_draws": draws.num_draws}


def test_values_that_do_not_exist_may_be_nan() -> None:
    first_only = rllc.Observable(
        lambda moment: torch.stack([moment.losses, moment.losses * torch.nan], 1), ("value",)
    )
    values = observed({"mine": first_only}).observed["mine"]
    assert np.isfinite(values[..., 0]).all()
    assert np.isnan(values[..., 1]).all()


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ({"far": (1, 2)}, r"`observe\['far'\]` must be an rllc.Observable.*got tuple"),
        ({"control": rllc.distance()}, "which rllc measures itself"),
        ({"a.b": rllc.distance()}, "strings without a dot"),
        ([rllc.distance()], "`observe` must be a dict of observables"),
    ],
)
def test_bad_observe_is_refused(observe: object, message: str) -> None:
    sampling = replace(SHORT, control_variate=True)
    with pytest.raises(InputError, match=message):
        observed(observe, sampling=sampling)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": 3}, "`measure` must be a function"),
        ({"at": "end"}, "`at` must be"),
        ({"keep": "some"}, "`keep` must be"),
        ({"keep": "difference"}, "needs `origin`"),
        ({"keep": "moments", "at": "probe"}, "is for at='draw'"),
    ],
)
def test_bad_observables_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rllc.Observable(**{"measure": square} | arguments)


def test_losses_on_are_of_one_data_set() -> None:
    with pytest.raises(InputError, match="expected one data set"):
        rllc.losses_on({"a": FIXED, "b": TOKENS})


def test_a_covariance_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllc.sampling.watch._COVARIANCE_BYTES", 2**20)
    many = rllc.Tokens(torch.zeros(40, 8, dtype=torch.long))
    with pytest.raises(InputError, match=r"the covariance of the observable 'big' would take"):
        observed({"big": rllc.losses_on(many, keep="moments")})


# Laws.


def renamed(sampler: rllc.samplers.Sampler, name: str) -> rllc.samplers.Sampler:
    return replace(sampler, name=name)


def test_a_renamed_sampler_keeps_its_diagnostics() -> None:
    sampling = replace(SHORT, num_probes=2)
    ours = observed({}, sampling=sampling)
    theirs = observed({}, sampling=sampling, sampler=renamed(rllc.sgld(), "mine"))
    assert {"acceptance", "discretisation", "stability"} <= set(theirs.observed)
    for name, array in ours.observed.items():
        np.testing.assert_array_equal(theirs.observed[name], array)
    started = replace(sampling, start="gaussian")
    observed({}, sampling=started, sampler=renamed(rllc.sgld(), "mine"))


def test_another_sampler_called_sgld_gets_no_wrong_diagnostics() -> None:
    sampling = replace(SHORT, num_probes=2)
    draws = observed({}, sampling=sampling, sampler=renamed(rllc.samplers.sghmc(), "sgld"))
    assert not {"acceptance", "discretisation"} & set(draws.observed)
    assert np.isnan(rllc.Estimate.of(draws).diagnostics["acceptance"]).all()
    started = replace(sampling, start="gaussian")
    with pytest.raises(InputError, match="needs a sampler whose law"):
        observed({}, sampling=started, sampler=renamed(rllc.samplers.rmsprop_sgld(), "sgld"))


def test_a_sampler_without_a_law_is_unknown() -> None:
    lawless = replace(rllc.sgld(), law=None)
    sampling = replace(SHORT, num_probes=2)
    estimate = rllc.Estimate.of(observed({}, sampling=sampling, sampler=lawless))
    for name in ("acceptance", "discretisation", "stability"):
        assert np.isnan(estimate.diagnostics[name]).all()
    assert np.isfinite(estimate.diagnostics["max_curvature"]).all()


@pytest.mark.slow
def test_losses_on_rows_of_the_papers_size_stay_below_a_gibibyte() -> None:
    """200 draws × 16 heads × 4 chains × 64 rows × 256 positions, as they are kept by default."""
    code = """
import resource, torch
from rllc.sampling.recording import Column
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
column = Column(200)
for draw in range(200):
    column.append(torch.full((16, 4, 64, 256), float(draw), dtype=torch.float16))
assert column.array[3, 2, 150, 7, 9] == 150
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0
