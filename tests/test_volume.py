"""The slope of log V(t) against exact volumes: gamma laws, balls, normal crossings; and that it says where it does not work.

|z| < 5 is a false alarm in about a million.
"""

from __future__ import annotations

import math
import sys

import matplotlib
import numpy as np
import pytest
import torch
from tiny import Quadratic, loss_of_quadratic
from torch import Tensor, nn

import rllc
from rllc.analysis.volume import plot_volume, volume
from rllc.errors import InputError

matplotlib.use("Agg")
Z = 5.0


def draws_of(loss: np.ndarray, n_beta: float, diverged: int = -1) -> rllc.Draws:
    """Draws made by hand, ``[refinement, chain, draw]`` losses above that at w*."""
    names = tuple(f"model {i}" for i in range(len(loss)))
    return rllc.Draws(
        loss,
        np.zeros_like(loss),  # a loss near 0, where float64 is finest
        np.full(loss.shape[:2], diverged),
        names,
        ("data",) * len(loss),
        {"n_beta": n_beta},
    )


def slope_of(result: object, truth: float) -> float:
    return float((result.slope[0] - truth) / result.standard_error[0])  # type: ignore[attr-defined]


def test_regular_models_by_reweighting_their_posterior() -> None:
    """nβΔL of d regular weights under a flat prior is Gamma(d/2, 1)."""
    rng, n_beta = np.random.default_rng(1), 50.0
    loss = np.stack([rng.gamma(d / 2, 1 / n_beta, (8, 2500)) for d in range(2, 7)])
    found = volume(draws_of(loss, n_beta))
    assert np.abs((found.slope - np.arange(2, 7) / 2) / found.standard_error).max() < Z
    assert (found.standard_error < 0.05 * found.slope).all()
    assert set(found.status) == {"ok"}
    np.testing.assert_allclose(found.high, np.median(loss[..., 500:], axis=(1, 2)))
    np.testing.assert_allclose(found.low, loss[..., 500:].min((1, 2)))


def test_it_is_the_slope_of_the_curve_it_keeps() -> None:
    """On prior draws, whose V(t) is a count: V/∫V dt/t by the trapezium rule on all of it."""
    rng = np.random.default_rng(2)
    loss = rng.uniform(0, 1, (1, 1, 20000)) ** (1 / 1.7)
    found = volume(draws_of(loss, 1e-9), share=0.3, discard=0.0)
    t = np.sort(loss[loss <= found.high[0]])
    assert found.slope[0] == pytest.approx(1 / np.mean(np.log(found.high[0] / t)), rel=1e-6)
    assert abs(slope_of(found, 1.7)) < Z
    np.testing.assert_allclose(
        np.exp(found.log_volume[0]), np.searchsorted(t, found.t[0] * (1 + 1e-9)) / len(t), rtol=1e-6
    )


@pytest.mark.parametrize("d", [2, 3, 4])
def test_regular_models_by_counting_prior_draws_of_a_box(d: int) -> None:
    """ΔL = ½‖v‖² for v uniform in [−1, 1]^d: V is a ball's volume, ∝ t^(d/2), for t below ½."""
    rng = np.random.default_rng(d)
    loss = 0.5 * (rng.uniform(-1, 1, (1, 4, 50000, d)) ** 2).sum(-1)
    found = volume(draws_of(loss, 1e-9), share=0.05)
    assert found.high[0] < 0.5
    assert abs(slope_of(found, d / 2)) < Z
    assert found.status == ("ok",)
    ball = (
        math.pi ** (d / 2) / math.gamma(d / 2 + 1) / 2**d
    )  # and the quantile itself is where that volume says
    assert found.high[0] == pytest.approx(0.5 * (0.05 / ball) ** (2 / d), rel=0.03)


def test_normal_crossings_by_counting() -> None:
    """With s = √t, x²y²: V = s(1 − log s), average slope ½ − 1/(2(2 − log s)); x²y⁴: V = 2√s − s."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 1, (2, 1, 4, 100000))
    found = volume(draws_of(x**2 * y**2, 1e-9), share=0.02)
    s = math.sqrt(found.high[0])
    assert abs(slope_of(found, 0.5 - 1 / (2 * (2 - math.log(s))))) < Z
    assert (
        found.slope[0] < 0.45
    )  # the logarithm of multiplicity 2: not λ = ½, as the docstring says
    found = volume(draws_of(x**2 * y**4, 1e-9), share=0.02)
    s = math.sqrt(found.high[0])
    # ∫₀ᵀ V dt/t = 2 ∫₀ˢ (2√u − u) du/u = 2(4√s − s)
    assert abs(slope_of(found, (2 * math.sqrt(s) - s) / (2 * (4 * math.sqrt(s) - s)))) < Z
    assert found.slope[0] == pytest.approx(0.25, rel=0.1)


def test_reweighting_undoes_the_posterior() -> None:
    """Prior draws of x²y², thinned to the posterior at nβ = 200 by rejection, read the same slope at the same t."""
    rng, n_beta = np.random.default_rng(4), 200.0
    x, y, u = rng.uniform(0, 1, (3, 2_000_000))
    loss = x**2 * y**2
    kept = loss[u < np.exp(-n_beta * loss)]
    kept = kept[: len(kept) // 4 * 4].reshape(1, 4, -1)
    found = volume(draws_of(kept, n_beta), share=0.8)
    s = math.sqrt(found.high[0])
    assert abs(slope_of(found, 0.5 - 1 / (2 * (2 - math.log(s))))) < Z


class Crossing(nn.Module):
    """x²y⁴ at its origin."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.w[0] ** 2 * self.w[1] ** 4).expand(len(rows))


def test_from_sampling() -> None:
    """hmc on five regular weights; and prior draws of a box by sgld on a normal crossing."""
    sampling = rllc.Sampling(
        num_chains=40, num_draws=150, num_burnin_steps=20, batch_size=1, n_beta=1e3
    )
    model, rows = Quadratic(torch.linspace(0.5, 2.0, 5)), torch.zeros(1, 5)
    drawn = rllc.sample(
        model,
        rows,
        loss=loss_of_quadratic,
        sampler=rllc.hmc(1e-3, 0.1),
        sampling=sampling,
        progress=False,
    )
    found = volume(drawn)
    assert abs(slope_of(found, 2.5)) < Z
    assert found.standard_error[0] < 0.2
    assert found.weights == drawn.weights
    assert found.data == drawn.data
    prior = rllc.Sampling(
        num_chains=100,
        num_draws=100,
        num_burnin_steps=50,
        num_steps_bw_draws=3,
        batch_size=1,
        n_beta=1e-9,
    )
    drawn = rllc.sample(
        Crossing(),
        rows,
        loss=lambda m, x: m(x),
        sampler=rllc.sgld(0.3, prior=rllc.box(1.0)),
        sampling=prior,
        progress=False,
    )
    found = volume(drawn, share=0.1)
    s = math.sqrt(found.high[0])
    assert abs(slope_of(found, (2 * math.sqrt(s) - s) / (2 * (4 * math.sqrt(s) - s)))) < Z


def test_says_when_the_power_law_is_not_reached() -> None:
    rng = np.random.default_rng(5)
    loss = 0.5 * rng.chisquare(
        6, (1, 4, 20000)
    )  # prior draws of a Gaussian: no power of t at its median
    found = volume(draws_of(loss, 1e-9))
    assert "the slope still changes with t" in found.status[0]
    assert "smaller t" in found.status[0]
    assert found.slope[0] < 2.5


def test_says_when_there_are_too_few_draws() -> None:
    rng = np.random.default_rng(6)
    found = volume(draws_of(rng.gamma(3, 1, (1, 2, 40)), 1.0), share=0.1)
    assert "too few draws below t" in found.status[0]


def test_says_when_losses_fall_below_that_at_the_minimum() -> None:
    rng = np.random.default_rng(7)
    found = volume(draws_of(rng.gamma(2, 1, (1, 2, 400)) - 1.0, 1.0))
    assert np.isnan(found.slope[0])
    assert "not above that at w*: use full batches" in found.status[0]
    rounding = rng.gamma(2, 1, (1, 4, 5000))
    rounding[0, 0, 2000] = 0.0  # one in thousands is rounding
    assert np.isfinite(volume(draws_of(rounding, 1.0)).slope[0])


def test_a_diverged_chain_has_no_volume() -> None:
    loss = np.random.default_rng(8).gamma(2, 1, (2, 2, 200))
    loss[1, 0, 30:] = np.nan
    drawn = draws_of(loss, 1.0)
    drawn.diverged[1, 0] = 31
    found = volume(drawn)
    assert np.isnan(found.slope[1])
    assert found.status[1].startswith("diverged")
    assert np.isfinite(found.slope[0])


def test_equal_losses_have_no_slope() -> None:
    found = volume(draws_of(np.ones((1, 2, 50)), 1.0))
    assert np.isnan(found.slope[0])
    assert "too few draws" in found.status[0]


def test_beginnings_are_left_out_and_stopped_refinements_read_to_their_length() -> None:
    rng = np.random.default_rng(9)
    loss = rng.gamma(2, 1, (1, 4, 1000))
    early = loss.copy()
    early[..., :200] = 1e-9  # chains still near w*
    whole, cut = volume(draws_of(loss, 1.0)), volume(draws_of(early, 1.0))
    assert whole.slope[0] == cut.slope[0]
    assert volume(draws_of(early, 1.0), discard=0.0).slope[0] < 0.5 * cut.slope[0]
    padded = np.concatenate([loss, np.full((1, 4, 100), np.nan)], -1)
    drawn = draws_of(padded, 1.0)
    object.__setattr__(drawn, "lengths", (1000,))
    assert volume(drawn).slope[0] == whole.slope[0]


def test_table_and_words() -> None:
    rng = np.random.default_rng(10)
    found = volume(draws_of(rng.gamma(1.0, 1, (2, 4, 500)), 1.0))
    assert len(found) == 2
    assert repr(found).startswith("Volume of 2 refinements (nβ = 1)")
    assert "model 1" in repr(found)
    table = found.to_dataframe()
    assert list(table["weights"]) == ["model 0", "model 1"]
    np.testing.assert_array_equal(table["slope"], found.slope)
    assert found.settings["share"] == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [({"share": 0.0}, "share"), ({"share": 1.1}, "share"), ({"discard": 1.0}, "discard")],
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=f"volume: `{words}` must be"):
        volume(draws_of(np.ones((1, 1, 10)), 1.0), **options)


def test_figure() -> None:
    rng = np.random.default_rng(11)
    loss = rng.gamma(1.0, 1, (3, 4, 500))
    loss[2] -= 1.0
    found = volume(draws_of(loss, 1.0))
    ax = plot_volume(found)
    assert len(ax.lines) == 4  # a curve and its slope for two; nothing for the third
    curve, line = ax.lines[0].get_xydata(), ax.lines[1].get_xydata()
    assert np.diff(np.log(line[:, 1]))[0] / np.diff(np.log(line[:, 0]))[0] == pytest.approx(
        found.slope[0]
    )
    assert curve[-1] == pytest.approx([found.high[0], 1.0], rel=1e-3)
    assert plot_volume(found, ax=ax) is ax


def test_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    found = volume(draws_of(np.random.default_rng(12).gamma(1.0, 1, (1, 4, 500)), 1.0))
    with pytest.raises(InputError, match="pip install"):
        plot_volume(found)
