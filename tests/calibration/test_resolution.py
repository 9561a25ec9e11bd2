"""λ̂ as a curve over nβ, against the exact law of SGLD on a quadratic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens

import rllc
from rllc.calibration.calibrate import Calibration
from rllc.calibration.resolution import Resolution, resolution
from rllc.errors import InputError
from rllc.limits import Limits
from rllc.tables import rounded
from rllc.theory import SGLDLaw

CURVATURES = np.repeat([0.3, 1.0, 3.0, 10.0], 5)
QUADRATIC = Quadratic(torch.tensor(CURVATURES, dtype=torch.float32))


def on_the_quadratic(n_betas: list[float], num_draws: int = 200, **arguments: Any) -> Resolution:
    return resolution(
        QUADRATIC,
        torch.zeros(1, 20),
        n_betas=n_betas,
        loss=loss_of_quadratic,
        sampling=rllc.Sampling(batch_size=1, num_draws=num_draws),
        compute=QUIET,
        **arguments,
    )


@pytest.mark.slow
def test_the_curve_is_the_laws() -> None:
    curve = on_the_quadratic([3.0, 100.0, 30.0])
    assert curve.n_beta.tolist() == [3.0, 30.0, 100.0]
    for n_beta, estimate in zip(curve.n_beta, curve.estimates, strict=True):
        lr = estimate.settings["lr"]
        assert estimate.settings["localization"] == 200.0
        assert lr == pytest.approx(1 / (n_beta * 10 + 4 * 200), rel=1e-3)
        law = SGLDLaw(CURVATURES, lr, localization=200.0, n_beta=n_beta)
        error = abs(estimate.value[0] - law.expected(200))
        assert error < 5 * law.standard_error(200, 4)
    rise = np.diff(curve.value[:, 0])
    assert (rise > 5 * curve.standard_error[:-1, 0]).all()


def test_the_curve_with_samplers_of_ones_own() -> None:
    def steady(n_beta: float) -> rllc.samplers.Sampler:
        return rllc.sgld(0.03 / n_beta, 50.0)

    held = on_the_quadratic([3.0, 30.0], num_draws=10, sampler=rllc.sgld(1e-3, 50.0))
    assert [estimate.settings["lr"] for estimate in held.estimates] == [1e-3, 1e-3]
    made = on_the_quadratic([3.0, 30.0], num_draws=10, sampler=steady)
    assert [estimate.settings["lr"] for estimate in made.estimates] == [0.01, 1e-3]
    assert np.array_equal(made.value[1], held.value[1])


def test_limits_decide_what_is_a_fault() -> None:
    as_it_is = on_the_quadratic([30.0], num_draws=10)
    curve = as_it_is.judge(Limits(max_noise=1e-6))
    assert "imprecise" in [fault.kind for fault in curve.faults[0][0]]
    assert curve.status[0][0] != "ok"
    assert curve.judge().status == as_it_is.status


def test_the_curve_as_table_and_dataframe() -> None:
    pytest.importorskip("pandas")
    curve = resolution(
        tiny_model(),
        {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)},
        ["0:0"],
        n_betas=[30.0, 300.0],
        sampler=lambda n_beta: rllc.sgld(1e-4 if n_beta < 100 else 1e3),
        sampling=SHORT,
        compute=QUIET,
    )
    lines = repr(curve).splitlines()
    value, _ = rounded(curve.value[0, 0], curve.standard_error[0, 0])
    assert lines[0] == "Resolution: 2 values of n_beta, 2 refinements"
    assert lines[1].split() == ["n_beta", "=", "30", "n_beta", "=", "300"]
    assert lines[2].split()[:5] == ["0:0", "on", "code", value, "±"]
    assert any(line.startswith("! n_beta = 300, 0:0 on prose: diverged") for line in lines[4:])
    frame = curve.to_dataframe()
    columns = ["n_beta", "lr", "localization", "weights", "data", "llc"]
    assert list(frame.columns[:6]) == columns
    assert frame.n_beta.tolist() == [30.0, 30.0, 300.0, 300.0]
    assert np.array_equal(frame.llc, curve.value.ravel(), equal_nan=True)
    assert (curve.weights, curve.data) == (("0:0", "0:0"), ("code", "prose"))
    assert len(curve) == 2


@pytest.mark.parametrize("n_betas", [[], [0.0, 1.0], [1.0, 1.0], ["30"]])
def test_curves_that_cannot_be(n_betas: list[Any]) -> None:
    message = r"resolution: `n_betas` must be different positive numbers, .* got \["
    with pytest.raises(InputError, match=message):
        on_the_quadratic(n_betas)


def test_a_curves_sampler_must_be_one() -> None:
    message = r"resolution: `sampler` must be a function n_beta -> Sampler, .* got 3"
    with pytest.raises(InputError, match=message):
        on_the_quadratic([3.0], sampler=3)


def test_where_the_prior_dominates_is_marked() -> None:
    """By the law λ̂ over its control is γ Σ h/(nβh + γ) / Σ h: 1.00, then 0.51."""
    curve = on_the_quadratic([0.1, 30.0], num_draws=100)
    assert curve.by_prior.tolist() == [[True], [False]]
    lines = repr(curve).splitlines()
    assert "~" in lines[2].split("±")[1]
    assert "~" not in lines[2].split("±")[2]
    assert lines[3].startswith("~ the prior alone gives this λ̂")
    assert not any("0.1, everything: the prior" in line for line in lines)


class Calibrated(Calibration):
    """A calibration whose search is taken as done."""

    def __init__(self, sampling: rllc.Sampling) -> None:
        vars(self)["sampling"] = sampling

    def sampler_at(self, n_beta: float) -> rllc.samplers.Sampler:
        return rllc.sgld(0.03 / n_beta, 2.0)


def test_a_curve_starts_from_a_calibration() -> None:
    sampling = rllc.Sampling(batch_size=1, num_draws=10, num_chains=2, num_probes=0)
    arguments = {"loss": loss_of_quadratic, "n_betas": [3.0, 30.0], "compute": QUIET}
    curve = resolution(QUADRATIC, torch.zeros(1, 20), sampler=Calibrated(sampling), **arguments)
    for n_beta, estimate in zip(curve.n_beta, curve.estimates, strict=True):
        assert estimate.settings["lr"] == 0.03 / n_beta
        assert estimate.settings["localization"] == 2.0
        assert estimate.per_chain.shape == (1, 2)
