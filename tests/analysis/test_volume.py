"""The slope of log V(t) against exact volumes: gamma laws, balls, normal crossings.

And that it says where it does not work. |z| < 5 is a false alarm in about a million.
"""

from __future__ import annotations

import math
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from tiny import QUIET, Quadratic, loss_of_quadratic
from torch import Tensor, nn

import rllc
from rllc.analysis.volume import Volume, plot_volume, volume
from rllc.errors import InputError
from rllc.weights.names import Names

mpl.use("Agg")
Z = 5.0
PRIOR = 1e-9
"""nβ of prior draws."""


def draws_of(loss: np.ndarray, n_beta: float) -> rllc.Draws:
    """Draws made by hand, ``[refinement, chain, draw]`` losses above that at w*."""
    num_refinements, num_chains, _ = loss.shape
    return rllc.Draws(
        loss=loss,
        # A loss near 0 is where float64 is finest.
        baseline=np.zeros_like(loss),
        diverged=np.full((num_refinements, num_chains), -1),
        names=Names.of((f"model {i}", "data") for i in range(num_refinements)),
        settings={"n_beta": n_beta},
    )


def gamma(shape: float, size: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(shape, 1, size)


def z_of(result: Volume, truth: float) -> float:
    return float((result.slope[0] - truth) / result.standard_error[0])


def slope_of_x2y2(t: float) -> float:
    """With s = √t, V = s(1 − log s); its average slope is ½ − 1/(2(2 − log s))."""
    s = math.sqrt(t)
    return 0.5 - 1 / (2 * (2 - math.log(s)))


def slope_of_x2y4(t: float) -> float:
    """With s = √t, V = 2√s − s; and ∫₀ᵀ V dt/t = 2 ∫₀ˢ (2√u − u) du/u = 2(4√s − s)."""
    s = math.sqrt(t)
    return (2 * math.sqrt(s) - s) / (2 * (4 * math.sqrt(s) - s))


def test_regular_models_by_reweighting_their_posterior() -> None:
    """nβΔL of d regular weights under a flat prior is Gamma(d/2, 1)."""
    rng = np.random.default_rng(1)
    n_beta = 50.0
    dims = np.arange(2, 7)
    loss = np.stack([rng.gamma(d / 2, 1 / n_beta, (8, 2500)) for d in dims])
    result = volume(draws_of(loss, n_beta))
    assert np.abs((result.slope - dims / 2) / result.standard_error).max() < Z
    assert (result.standard_error < 0.05 * result.slope).all()
    assert set(result.status) == {"ok"}
    used = loss[..., 500:]
    np.testing.assert_allclose(result.high, np.median(used, axis=(1, 2)))
    np.testing.assert_allclose(result.low, used.min((1, 2)))


def test_it_is_the_slope_of_the_curve_it_keeps() -> None:
    """On prior draws, whose V(t) is a count: V/∫V dt/t by the trapezium rule on all of it."""
    rng = np.random.default_rng(2)
    loss = rng.uniform(0, 1, (1, 1, 20000)) ** (1 / 1.7)
    result = volume(draws_of(loss, PRIOR), share=0.3, discard=0.0)
    high = result.high[0]
    t = np.sort(loss[loss <= high])
    assert result.slope[0] == pytest.approx(1 / np.mean(np.log(high / t)), rel=1e-6)
    assert abs(z_of(result, 1.7)) < Z
    num_below = np.searchsorted(t, result.t[0] * (1 + 1e-9))
    np.testing.assert_allclose(np.exp(result.log_volume[0]), num_below / len(t), rtol=1e-6)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_regular_models_by_counting_prior_draws_of_a_box(d: int) -> None:
    """ΔL = ½‖v‖² for v uniform in [−1, 1]^d: V is a ball's volume, ∝ t^(d/2), for t below ½."""
    rng = np.random.default_rng(d)
    v = rng.uniform(-1, 1, (1, 4, 50000, d))
    result = volume(draws_of(0.5 * (v**2).sum(-1), PRIOR), share=0.05)
    assert result.high[0] < 0.5
    assert abs(z_of(result, d / 2)) < Z
    assert result.status == ("ok",)
    # The quantile itself is where the ball's volume says.
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1) / 2**d
    assert result.high[0] == pytest.approx(0.5 * (0.05 / ball) ** (2 / d), rel=0.03)


def test_normal_crossings_by_counting() -> None:
    x, y = np.random.default_rng(3).uniform(0, 1, (2, 1, 4, 100000))
    result = volume(draws_of(x**2 * y**2, PRIOR), share=0.02)
    assert abs(z_of(result, slope_of_x2y2(result.high[0]))) < Z
    # The logarithm of multiplicity 2: not λ = ½, as the docstring says.
    assert result.slope[0] < 0.45
    result = volume(draws_of(x**2 * y**4, PRIOR), share=0.02)
    assert abs(z_of(result, slope_of_x2y4(result.high[0]))) < Z
    assert result.slope[0] == pytest.approx(0.25, rel=0.1)


def test_reweighting_undoes_the_posterior() -> None:
    """Prior draws, thinned to the posterior at nβ = 200 by rejection, give the same slope."""
    n_beta = 200.0
    x, y, u = np.random.default_rng(4).uniform(0, 1, (3, 2_000_000))
    loss = x**2 * y**2
    posterior = loss[u < np.exp(-n_beta * loss)]
    chains = posterior[: len(posterior) // 4 * 4].reshape(1, 4, -1)
    result = volume(draws_of(chains, n_beta), share=0.8)
    assert abs(z_of(result, slope_of_x2y2(result.high[0]))) < Z


@pytest.mark.slow
def test_from_sampling_regular_weights() -> None:
    drawn = rllc.sample(
        Quadratic(torch.linspace(0.5, 2.0, 5)),
        torch.zeros(1, 5),
        loss=loss_of_quadratic,
        sampler=rllc.samplers.hmc(1e-3, 0.1),
        sampling=rllc.Sampling(
            num_chains=40, num_draws=150, num_burnin_steps=20, batch_size=1, n_beta=1e3
        ),
        compute=QUIET,
    )
    result = volume(drawn)
    assert abs(z_of(result, 2.5)) < Z
    assert result.standard_error[0] < 0.2
    assert result.names == drawn.names


class Crossing(nn.Module):
    """x²y⁴ at its origin."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.w[0] ** 2 * self.w[1] ** 4).expand(len(rows))


def test_from_sampling_the_prior_of_a_box() -> None:
    drawn = rllc.sample(
        Crossing(),
        torch.zeros(1, 5),
        loss=lambda module, rows: module(rows),
        sampler=rllc.sgld(0.3, prior=rllc.samplers.box(1.0)),
        sampling=rllc.Sampling(
            num_chains=100,
            num_draws=100,
            num_burnin_steps=50,
            num_steps_bw_draws=3,
            batch_size=1,
            n_beta=PRIOR,
        ),
        compute=QUIET,
    )
    result = volume(drawn, share=0.1)
    assert abs(z_of(result, slope_of_x2y4(result.high[0]))) < Z


def test_says_when_the_power_law_is_not_reached() -> None:
    """Prior draws of a Gaussian: no power of t at its median."""
    loss = 0.5 * np.random.default_rng(5).chisquare(6, (1, 4, 20000))
    result = volume(draws_of(loss, PRIOR))
    assert "the slope still changes with t" in result.status[0]
    assert "smaller t" in result.status[0]
    assert result.slope[0] < 2.5


def test_says_when_there_are_too_few_draws() -> None:
    result = volume(draws_of(gamma(3, (1, 2, 40), seed=6), 1.0), share=0.1)
    assert "too few draws below t" in result.status[0]


def test_says_when_losses_fall_below_that_at_the_minimum() -> None:
    result = volume(draws_of(gamma(2, (1, 2, 400), seed=7) - 1.0, 1.0))
    assert np.isnan(result.slope[0])
    assert "not above that at w*: use full batches" in result.status[0]


def test_one_loss_in_thousands_below_is_rounding() -> None:
    loss = gamma(2, (1, 4, 5000), seed=7)
    loss[0, 0, 2000] = 0.0
    assert np.isfinite(volume(draws_of(loss, 1.0)).slope[0])


def test_a_diverged_chain_has_no_volume() -> None:
    loss = gamma(2, (2, 2, 200), seed=8)
    loss[1, 0, 30:] = np.nan
    draws = draws_of(loss, 1.0)
    draws.diverged[1, 0] = 31
    result = volume(draws)
    assert np.isnan(result.slope[1])
    assert result.status[1].startswith("diverged")
    assert np.isfinite(result.slope[0])


def test_equal_losses_have_no_slope() -> None:
    result = volume(draws_of(np.ones((1, 2, 50)), 1.0))
    assert np.isnan(result.slope[0])
    assert "too few draws" in result.status[0]


def test_the_beginning_of_a_chain_is_left_out() -> None:
    loss = gamma(2, (1, 4, 1000), seed=9)
    near_w_star = loss.copy()
    near_w_star[..., :200] = 1e-9
    slope = volume(draws_of(loss, 1.0)).slope[0]
    assert volume(draws_of(near_w_star, 1.0)).slope[0] == slope
    assert volume(draws_of(near_w_star, 1.0), discard=0.0).slope[0] < 0.5 * slope


def test_refinements_that_stopped_are_read_to_their_length() -> None:
    loss = gamma(2, (1, 4, 1000), seed=9)
    padded = np.concatenate([loss, np.full((1, 4, 100), np.nan)], -1)
    draws = draws_of(padded, 1.0)
    object.__setattr__(draws, "lengths", (1000,))
    assert volume(draws).slope[0] == volume(draws_of(loss, 1.0)).slope[0]


def test_table_and_words() -> None:
    result = volume(draws_of(gamma(1.0, (2, 4, 500), seed=10), 1.0))
    assert len(result) == 2
    assert repr(result).startswith("Volume of 2 refinements (nβ = 1)")
    assert "model 1" in repr(result)
    table = result.to_dataframe()
    assert list(table["weights"]) == ["model 0", "model 1"]
    np.testing.assert_array_equal(table["slope"], result.slope)
    assert result.settings["share"] == 0.5


@pytest.mark.parametrize(
    ("options", "name"),
    [({"share": 0.0}, "share"), ({"share": 1.1}, "share"), ({"discard": 1.0}, "discard")],
)
def test_options_out_of_range(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=f"volume: `{name}` must be"):
        volume(draws_of(np.ones((1, 1, 10)), 1.0), **options)


def test_figure() -> None:
    loss = gamma(1.0, (3, 4, 500), seed=11)
    loss[2] -= 1.0
    result = volume(draws_of(loss, 1.0))
    ax = plot_volume(result)
    # A curve and its slope for two; nothing for the third.
    assert len(ax.lines) == 4
    curve, power_law, *_ = (line.get_xydata() for line in ax.lines)
    ((rise_of_t, rise_of_volume),) = np.diff(np.log(power_law), axis=0)
    assert rise_of_volume / rise_of_t == pytest.approx(result.slope[0])
    assert curve[-1] == pytest.approx([result.high[0], 1.0], rel=0.01)
    assert plot_volume(result, ax=ax) is ax


def test_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    result = volume(draws_of(gamma(1.0, (1, 4, 500), seed=12), 1.0))
    with pytest.raises(InputError, match="pip install"):
        plot_volume(result)
