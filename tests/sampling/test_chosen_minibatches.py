"""What the number of rows decides: the size of a minibatch, and the control variate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic

import rllc
from rllc.seeds import generator
from rllc.statistics.biases import pairing_bias
from rllc.theory import SGLDLaw

BY_DEFAULT = replace(SHORT, batch_size=None, control_variate=None)


@pytest.mark.parametrize(
    ("rows", "batch_size", "control_variate"),
    [
        (1, 1, False),
        (31, 31, False),
        (128, 128, False),
        (129, 32, True),
        (3199, 32, True),
        (3200, 32, False),
    ],
)
def test_few_rows_are_one_minibatch_and_few_minibatches_have_the_control(
    rows: int, batch_size: int, control_variate: bool
) -> None:
    chosen = rllc.Sampling().of_rows(rows)
    assert (chosen.batch_size, chosen.control_variate) == (batch_size, control_variate)


@pytest.mark.parametrize(
    ("rows", "control_variate"), [(32, False), (40, True), (96, True), (3200, False)]
)
def test_a_batch_size_that_is_given_stays(rows: int, control_variate: bool) -> None:
    chosen = rllc.Sampling(batch_size=32).of_rows(rows)
    assert (chosen.batch_size, chosen.control_variate) == (32, control_variate)


@pytest.mark.parametrize("control_variate", [True, False])
@pytest.mark.parametrize("rows", [64, 640, 6400])
def test_a_control_variate_that_is_given_stays(rows: int, control_variate: bool) -> None:
    sampling = rllc.Sampling(control_variate=control_variate)
    assert sampling.of_rows(rows).control_variate is control_variate


def test_a_sampler_of_full_batches_has_all_rows() -> None:
    rows = torch.randn(200, 1, generator=generator("rows"))
    draws = rllc.sample(
        Quadratic(torch.ones(1)),
        rows,
        loss=loss_of_quadratic,
        sampler=rllc.samplers.mala(),
        sampling=replace(BY_DEFAULT, start=None),
        compute=QUIET,
    )
    assert draws.settings["minibatches"]["data"] == {"batch_size": 200, "control_variate": False}


@pytest.mark.parametrize("wrong", ["on", "auto"])
def test_a_control_variate_is_on_or_off_or_not_said(wrong: object) -> None:
    with pytest.raises(rllc.InputError, match="`control_variate` must be True, False or None"):
        rllc.Sampling(control_variate=wrong)  # type: ignore[arg-type]


MODEL = Quadratic(torch.ones(3))
DATA = {
    "few": torch.randn(5, 3, generator=generator("few")),
    "more": torch.randn(130, 3, generator=generator("more")),
}


def drawn(num_draws: int, data: object = DATA, resume: rllc.Draws | None = None) -> rllc.Draws:
    return rllc.sample(
        MODEL,
        data,
        loss=loss_of_quadratic,
        sampling=replace(BY_DEFAULT, num_draws=num_draws, num_probes=0),
        compute=replace(QUIET, keep_states=True),
        resume=resume,
    )


def test_each_data_set_has_its_own_choice_alone_and_in_company() -> None:
    both = drawn(4)
    assert both.settings["minibatches"] == {
        "few": {"batch_size": 5, "control_variate": False},
        "more": {"batch_size": 32, "control_variate": True},
    }
    for row, (name, rows) in enumerate(DATA.items()):
        alone = drawn(4, {name: rows})
        np.testing.assert_allclose(both.llc[row], alone.llc[0], rtol=1e-4, atol=1e-5)
    assert not both.observed["control"][0].any()
    assert both.observed["control"][1].all()


def test_what_was_chosen_stands_above_the_table() -> None:
    first = repr(rllc.Estimate.of(drawn(4))).splitlines()[0]
    assert first.endswith("2 chains × 4 draws, batches of 5 or 32, control variate on more)")


def test_chains_with_a_choice_go_on() -> None:
    np.testing.assert_array_equal(drawn(4, resume=drawn(2)).llc, drawn(4).llc)


@pytest.mark.slow
def test_the_pairing_is_the_formula_and_the_control_takes_it_off() -> None:
    """3 minibatches of 32 noisy rows at nβ = 300, where pairing adds 42 % to λ̂.

    Chains on all rows have the same noise, so the difference to them is known to 0.3 %.
    """
    curvatures = np.array([0.5] * 2 + [0.1] * 10)
    rows = 0.3 * torch.randn(96, 12, generator=generator("rows"))
    rows -= rows.mean(0)
    settings = {"lr": 1e-3, "localization": 200.0, "n_beta": 300.0}

    def draws(batch_size: int | None) -> rllc.Draws:
        return rllc.sample(
            Quadratic(torch.tensor(curvatures, dtype=torch.float32)),
            rows,
            loss=loss_of_quadratic,
            sampling=rllc.Sampling(
                num_draws=900,
                num_burnin_steps=30,
                batch_size=batch_size,
                n_beta=300.0,
                num_probes=0,
                start="center",
            ),
            compute=QUIET,
        )

    every_row, minibatches = draws(None), draws(32)
    assert every_row.settings["minibatches"]["data"]["batch_size"] == 96
    exact = SGLDLaw(curvatures, **settings).value
    with_control = exact + (minibatches.llc - every_row.llc).mean()
    assert with_control == pytest.approx(exact, rel=0.03)
    variance = rows.double().var(0, correction=1).numpy() / 32 * (1 - 32 / 96)
    formula = pairing_bias(curvatures, variance, 3, **settings)
    assert formula > 0.4 * exact
    # Its standard error is 4.5 % of it; the benchmark of coverage knows it to a percent.
    gained = 300.0 * minibatches.observed["control"].mean()
    assert gained == pytest.approx(formula, rel=5 * 0.045)
