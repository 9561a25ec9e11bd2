"""Differences over seeds on a trained transformer, and what the prior explains on quadratics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import QUIET, Quadratic, loss_of_quadratic, trained_on_markov

import rllc


@pytest.mark.slow
def test_the_error_of_a_difference_is_its_spread_over_seeds() -> None:
    """Of two heads of a trained transformer over 100 seeds: se/sd, known to 7 %, is about 1."""
    model, data = trained_on_markov()
    differences = []
    for seed in range(100):
        estimate = rllc.estimate(
            model,
            data,
            ["1:0", "1:1"],
            sampling=rllc.Sampling(
                num_draws=20,
                num_burnin_steps=10,
                batch_size=16,
                seed=seed,
                num_probes=0,
                start="center",
                control_variate=False,
            ),
            compute=QUIET,
        )
        differences.append(estimate.difference("1:0", "1:1"))
    sd = np.std([difference.value for difference in differences], ddof=1)
    errors = [difference.standard_error for difference in differences]
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / sd < 1.15


@pytest.mark.parametrize(
    ("curvatures", "n_beta"),
    [
        ([0.5] * 30, 3.0),  # nβh < γ/4
        pytest.param([0.5] * 30, 30.0, marks=pytest.mark.slow),  # nβh > γ/4
        pytest.param([0.03, 0.3, 3.0] * 10, 30.0, marks=pytest.mark.slow),
    ],
)
def test_the_prior_explains_what_the_formula_says(curvatures: list[float], n_beta: float) -> None:
    """λ̂ over its control is γ Σ h/(nβh + γ) / Σ h, as ε → 0; it is noted above 0.8."""
    localization = 20.0
    estimate = rllc.estimate(
        Quadratic(torch.tensor(curvatures)),
        torch.zeros(1, len(curvatures)),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(lr=1e-3, localization=localization),
        sampling=rllc.Sampling(num_draws=100, n_beta=n_beta),
        compute=QUIET,
    )
    h = np.array(curvatures)
    exact = localization * (h / (n_beta * h + localization)).sum() / h.sum()
    ratio = estimate.diagnostics["control_ratio"][0]
    error = estimate.diagnostics["control_ratio_se"][0]
    # A step of ε adds εa/4, at most 3 %.
    assert abs(ratio - exact) < 5 * error + 0.03 * exact
    assert error < 0.25 * exact
    noted = "prior_dominated" in [fault.kind for fault in estimate.faults[0]]
    assert noted == (exact > 0.8)
