"""What a status says: each way in which sampling fails is provoked, and named; and the control that does not see the loss."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.diagnostics import spikes, variance_reading
from rllc.seeds import generator
from rllc.theory import SGLDLaw


class Surface(nn.Module):
    """A loss of the weights alone, ``shape(v)``, from ``dim`` weights that start at ``start``."""

    def __init__(self, shape: object, dim: int = 10, start: float = 0.0) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.full((dim,), start))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.v) + 0.0 * x[:, 0]


def status_of(
    model: nn.Module,
    lr: float,
    gamma: float,
    n_beta: float = 30.0,
    x: Tensor | None = None,
    **more: int,
) -> str:
    settings = {"num_chains": 4, "num_draws": 300, "num_burnin_steps": 50, "n_beta": n_beta} | more
    x = torch.zeros(1, 1) if x is None else x
    sampling = rllc.Sampling(batch_size=settings.pop("batch_size", len(x)), **settings)
    return rllc.estimate(model, (x,), loss=lambda m, x: m(x), sampler=rllc.sgld(lr, gamma), sampling=sampling,
                         compute=rllc.Compute(progress=False))["everything"].status  # fmt: skip


def square(v: Tensor) -> Tensor:
    return (v**2).sum() / 2


def test_nothing_is_wrong_with_a_good_setting() -> None:
    assert status_of(Surface(square), lr=3e-3, gamma=50.0, num_draws=1000) == "ok"


def test_a_chain_that_blows_up() -> None:
    assert status_of(Surface(square), lr=1.0, gamma=50.0).startswith("diverged: chain 0 at step")


def test_a_cliff_that_no_gradient_warns_of() -> None:
    def cliff(v: Tensor) -> Tensor:
        return square(v) + 100.0 * (v.abs() > 0.5).sum()

    assert status_of(Surface(cliff, dim=4), lr=3e-3, gamma=50.0, num_draws=1000).startswith(
        "spikes in "
    )


def test_a_direction_too_sharp_for_the_step_that_the_loss_keeps_from_diverging() -> None:
    def bent(v: Tensor) -> Tensor:
        return torch.log1p(500.0 * v**2).sum()

    said = status_of(
        Surface(bent, dim=30), 3e-3, 50.0
    )  # with fewer, a step in a hundred would be accepted
    assert re.search(
        r"unstable in the sharpest direction, of curvature (9[5-9]\d|1e\+03): lr below 0.0001", said
    )
    assert "steps too large (acceptance 0.000): lower lr" in said


def test_what_the_step_size_adds() -> None:
    said = status_of(Surface(square, dim=200), lr=2e-2, gamma=50.0)  # εa/4 = 40 %
    assert re.fullmatch(r"the step size adds (39|40|41)%: lower lr", said)


def test_steps_too_small() -> None:
    for dim, said in ((2000, "still rising"), (3, "chains disagree (R-hat)")):
        status = status_of(Surface(square, dim=dim), lr=1e-7, gamma=50.0, num_burnin_steps=0)
        assert status.startswith(f"{said}: steps too small (acceptance 1), larger lr")


def test_a_trace_that_still_rises() -> None:
    assert "still rising: more burn-in, or larger lr" in status_of(
        Surface(square, dim=3000), 1e-4, 0.0, num_burnin_steps=0
    )


def test_a_trace_that_falls_because_the_weights_are_no_minimum() -> None:
    said = status_of(
        Surface(square, dim=300, start=3.0),
        lr=2e-4,
        gamma=1.0,
        n_beta=100.0,
        num_burnin_steps=0,
        num_draws=400,
    )
    assert "still falling: more burn-in" in said
    assert "negative: w* is not a minimum for this data, or noise exceeds signal" in said


def test_chains_in_different_valleys() -> None:
    def valleys(v: Tensor) -> Tensor:
        deep = torch.where(v > 0, 1.0, 0.5)
        return (deep * (v.abs() - 1).square() * 10 - deep).sum()

    said = status_of(Surface(valleys, dim=1), lr=3e-3, gamma=0.01)
    assert "chains disagree (R-hat): more draws or burn-in" in said


def test_noise_above_the_signal() -> None:
    x = 3 * torch.randn(64, 10, generator=generator("noise"))
    x -= x.mean(0)
    model = Quadratic(torch.full((10,), 1e-3))
    sampling = rllc.Sampling(num_draws=40, batch_size=2)
    found = rllc.estimate(
        model,
        (x,),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(1e-4, 2000.0),
        sampling=sampling,
        compute=rllc.Compute(progress=False),
    )
    assert found["everything"].status == "noise exceeds signal: more draws"


def test_the_control_is_what_the_prior_alone_gives() -> None:
    """½nβΣh σ² with σ² = 1/(γ(1 − εγ/4)); the estimate itself is below it, clearly where the loss holds the chains."""
    h = torch.tensor([0.5, 2.0, 8.0, 20.0])
    model = Quadratic(h)
    arguments = {"loss": loss_of_quadratic, "sampler": rllc.sgld(4e-3, 50.0), "progress": False}
    sampling = rllc.Sampling(num_chains=50, num_draws=400, num_burnin_steps=50, batch_size=1)
    found = rllc.control(model, torch.zeros(1, 4), sampling=sampling, **arguments)
    truth = 0.5 * 30 * float(h.sum()) / (50 * (1 - 4e-3 * 50 / 4))
    assert abs(found.value[0] - truth) < 5 * found.standard_error[0]
    assert found.standard_error[0] < 0.03 * truth
    assert found.settings["sampler"] == "sgld without loss"
    seen = rllc.estimate(model, torch.zeros(1, 4), sampling=sampling, **arguments)
    law = SGLDLaw(h.numpy(), lr=4e-3, localization=50.0, n_beta=30.0)
    assert abs(seen.value[0] - law.value) < 5 * seen.standard_error[0] < 0.2 * (truth - law.value)


def test_the_control_starts_at_the_center_whatever_the_estimate_does() -> None:
    sampling = rllc.Sampling(2, 5, batch_size=4, start="gaussian")
    assert (
        rllc.control(
            tiny_model(),
            tiny_tokens(),
            "0:1",
            sampling=sampling,
            compute=rllc.Compute(progress=False),
        ).settings["start"]
        == "center"
    )


# Diagnostics of arrays


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 50.0])
def test_no_gamma_distribution_has_spikes(shape: float) -> None:
    x = np.random.default_rng(0).gamma(shape, size=(200, 4, 500))
    assert not spikes(x).any()
    x[:, 0, 3] += 1000 * max(shape, 1)
    assert (spikes(x) == 1).all()


def test_the_reading_from_the_variance() -> None:
    """Gamma(λ, 1) plus known noise: mean and errors within their laws; what is not known is NaN."""
    rng = np.random.default_rng(1)
    clean = rng.gamma(3.0, size=(400, 4, 200))
    variance = rng.uniform(0, 4, size=clean.shape)
    value, error = variance_reading(clean + rng.normal(size=clean.shape) * variance**0.5, variance)
    assert abs(value.mean() - 3) < 5 * value.std() / 20
    assert 0.9 < error.mean() / value.std() < 1.3
    value, error = variance_reading(clean[0], np.where(np.arange(200) == 7, np.nan, variance[0]))
    assert np.isnan([value, error]).all()
    assert np.isnan(variance_reading(clean[0, :, :2], variance[0, :, :2])).all()


@pytest.mark.slow
def test_intervals_cover_the_long_run_value_of_a_trained_model(tmp_path: Path) -> None:
    """200 repetitions, other noise and other minibatches, of two chains on a head of a small model that has learnt."""
    rows = torch.arange(7).repeat(40, 1) + torch.randint(4, (40, 1), generator=generator("rows"))
    tokens = rllc.Tokens(rows.where(torch.rand(40, 7, generator=generator("noise")) < 0.9, 10))
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=12, n_heads=3, d_head=4, n_ctx=8, d_vocab=11
    )
    model = rllc.train(
        config,
        tokens,
        tmp_path,
        training=rllc.Training(num_steps=300, batch_size=20, lr=1e-2),
        progress=False,
    )
    heads, sampler = ["0:1"], rllc.sgld(1e-3, 200.0)

    def of(chains: int, draws: int, seed: int) -> rllc.Estimate:
        sampling = rllc.Sampling(chains, draws, 20, batch_size=8, seed=seed, num_probes=0)
        return rllc.estimate(
            model,
            tokens,
            heads,
            sampler=sampler,
            sampling=sampling,
            compute=rllc.Compute(progress=False),
        )

    long = [of(32, 800, 1000 + seed) for seed in range(3)]
    truth, error = (
        np.mean([e.value for e in long], 0),
        np.std([e.value for e in long], 0, ddof=1) / 3**0.5,
    )
    repeats = [of(2, 50, seed) for seed in range(200)]
    assert (error < 0.2 * repeats[0].standard_error).all()
    covered = np.mean([abs(e.value - truth) < 1.96 * e.standard_error for e in repeats], 0)
    assert ((covered >= 0.9) & (covered <= 0.99)).all(), covered
