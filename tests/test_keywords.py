"""Misspelt arguments are answered with what to type; results equal themselves after a file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, square
from torch import nn

import rllc
from rllc.keywords import HOMES
from rllc.same import same

MODEL = nn.Linear(3, 1)
DATA = torch.randn(8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rllc.estimate(MODEL, DATA, lr=1e-3),
            r"estimate: there is no argument `lr`; type sampler=rllc.sgld\(lr=…\)",
        ),
        (lambda: rllc.Sampling(draws=10), "Sampling: .* `draws`; did you mean 'num_draws'"),
        (lambda: rllc.Sampling(burnin=10), "`burnin`; did you mean 'num_burnin_steps'"),
        (
            lambda: rllc.track("run", DATA, num_chains=2),
            r"track: .* type sampling=rllc.Sampling\(num_chains=…\)",
        ),
        (lambda: rllc.track("run", DATA, model=MODEL), "`model`; did you mean 'into'"),
        (
            lambda: rllc.sample(MODEL, DATA, device="cpu"),
            r"sample: .* type compute=rllc.Compute\(device=…\)",
        ),
        (lambda: next(rllc.iterate(MODEL, DATA, weight=None)), "`weight`; did you mean 'weights'"),
        (lambda: rllc.calibrate(MODEL, DATA, losss=None), "`losss`; did you mean 'loss'"),
        (lambda: rllc.resolution(MODEL, DATA, smapler=None), "`smapler`; did you mean 'sampler'"),
        (lambda: rllc.sweep_cost("run", DATA, n_jobs=3), r"type compute=rllc.Compute\(executor="),
        (lambda: rllc.Tracker(DATA, steps=[1]), "Tracker: .*did you mean 'at_steps'"),
        (lambda: rllc.Compute(gpu=True), "Compute: .* `gpu`; known: 'device'"),
        (lambda: rllc.Limits(max_rhatt=1), "Limits: there is no argument `max_rhatt`; did you"),
        (lambda: rllc.parameters("*", idx=3), "parameters: .*did you mean 'index'"),
    ],
)
def test_misspelt_arguments(call, message) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call()


def test_the_homes_of_settings_are_those_of_their_classes() -> None:
    for argument, kind in (("sampling", rllc.Sampling), ("compute", rllc.Compute)):
        _, names = HOMES[argument]
        assert list(names) == [field.name for field in fields(kind)]


def test_settings_can_still_be_replaced() -> None:
    assert replace(rllc.Sampling(), num_draws=7) == rllc.Sampling(num_draws=7)
    assert rllc.Sampling.__name__ == "Sampling"


def test_results_equal_themselves_after_a_file(tmp_path) -> None:
    draws = rllc.sample(MODEL, DATA, loss=square, sampling=SHORT, compute=QUIET)
    est = rllc.Estimate.of(draws)
    trajectory = rllc.track({1: MODEL}, DATA, loss=square, sampling=SHORT, compute=QUIET)
    for name, result in {"draws": draws, "est": est, "trajectory": trajectory}.items():
        loaded = type(result).load(result.save(tmp_path / f"{name}.npz"))
        assert result == loaded
        assert hash(result) == hash(loaded)
        assert result != 3
    assert np.isnan(est.rhat).any() or est.faults  # NaN and faults are compared too
    other = rllc.estimate(MODEL, DATA, loss=square, sampling=replace(SHORT, seed=1), compute=QUIET)
    assert est != other
    assert replace(est, settings={**est.settings, "seed": 1}) != est
    assert replace(est, value=est.value + 1e-12) != est
    assert replace(est, faults=((rllc.Fault("missing"),),)) != est


def test_same_tells_apart() -> None:
    assert not same(np.array([1.0]), np.array([1.0, 1.0]))
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert same(float("nan"), float("nan"))
    assert same(np.array(["a"]), np.array(["a"]))


def test_a_hub_that_cannot_be_reached_says_it_in_few_lines() -> None:
    code = "import rllc; rllc.load('no-such-org/no-such-name')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": "/nowhere", "PYTHONPATH": "."},
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1
    assert "no local file or folder of that name either" in done.stderr.splitlines()[-1]
    assert done.stderr.count("  File ") < 10
