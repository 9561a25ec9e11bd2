"""Results equal themselves after a file, and no others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, square
from torch import nn

import rllc
from rllc.storage.same import same

MODEL = nn.Linear(3, 1)
DATA = torch.randn(8, 3)


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
    assert replace(est, faults=((rllc.estimates.Fault("missing"),),)) != est


def test_same_tells_apart() -> None:
    assert not same(np.array([1.0]), np.array([1.0, 1.0]))
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert same(float("nan"), float("nan"))
    assert same(np.array(["a"]), np.array(["a"]))


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_says_it_in_few_lines() -> None:
    code = "import rllc; rllc.load('no-such-org/no-such-name')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": "/nowhere", "PYTHONPATH": "."},
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "there is no such file or folder here" in done.stderr.splitlines()[-1]
    assert done.stderr.count("  File ") < 10
