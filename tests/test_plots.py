"""Figures show the numbers of the results: read back from the Axes they return."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from tiny import SHORT, tiny_model, tiny_tokens

import rllc
from rllc.calibrate import Calibration, Criterion, calibrate
from rllc.plots import plot_calibration, plot_resolution
from rllc.resolution import Resolution

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    model, data = tiny_model(), {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
    return rllc.sample(model, data, rllc.heads(model), sampling=SHORT, progress=False)


@pytest.fixture(scope="module")
def trajectory(draws) -> rllc.Trajectory:
    return rllc.Trajectory.of({step: rllc.Estimate.of(draws) for step in (0, 10, 100, 1000)})


def test_heads_are_dots_with_intervals(draws) -> None:
    estimate = rllc.Estimate.of(draws)
    ax = rllc.plot_heads(estimate)
    code, prose = ax.containers
    assert np.array_equal(code.lines[0].get_ydata(), estimate.value[[d == "code" for d in estimate.data]])
    assert np.array_equal(prose.lines[0].get_ydata(), estimate.value[[d == "prose" for d in estimate.data]])
    first = code.lines[2][0].get_segments()[0]  # from value − 1.96 se to value + 1.96 se
    row = estimate["0:0", "code"]
    assert first[:, 1] == pytest.approx([row.value - 1.96 * row.standard_error, row.value + 1.96 * row.standard_error])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_given_axes_are_used_and_returned(draws, trajectory) -> None:
    _, ax = plt.subplots()
    assert rllc.plot_heads(rllc.Estimate.of(draws), ax=ax) is ax
    assert rllc.plot_trajectory(trajectory, "code", ax=ax) is ax
    assert rllc.plot_traces(draws, "0:1", "code", ax=ax) is ax


def test_a_panel_a_layer_and_a_line_a_head(trajectory) -> None:
    axes = rllc.plot_trajectory(trajectory, "prose")
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    for layer, ax in enumerate(axes):
        lines = {line.get_label(): line for line in ax.lines if ":" in line.get_label()}
        assert list(lines) == [f"{layer}:{h}" for h in range(3)]
        for name, line in lines.items():
            expected = [trajectory.at(step)[name, "prose"].value for step in trajectory.steps]
            assert np.array_equal(line.get_ydata(), expected)
            assert np.array_equal(line.get_xdata(), trajectory.steps)
        assert ax.get_xscale() == "symlog"  # step 0 has its place


def test_a_trace_and_its_running_mean(draws) -> None:
    ax = rllc.plot_traces(draws, "1:0", "code")
    i = next(i for i, n in enumerate(zip(draws.weights, draws.data, strict=True)) if n == ("1:0", "code"))
    values, mean = ax.lines[0].get_ydata(), ax.lines[1].get_ydata()
    assert np.array_equal(values, draws.llc[i, 0])
    assert mean[-1] == pytest.approx(draws.llc[i, 0].mean())


def test_diverged_heads_are_crosses() -> None:
    model = tiny_model()
    estimate = rllc.estimate(
        model, tiny_tokens(), ["0:0", "0:1"], sampler=rllc.sgld(lr=10.0), sampling=SHORT, progress=False
    )
    crosses = next(line for line in rllc.plot_heads(estimate).lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [0, 1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    grid = {"lr": [1e-4, 1e-3, 1e3], "n_beta": [30.0, 300.0], "localization": [100.0, 1000.0]}
    lenient = Criterion(
        min_relaxations=0, max_rhat=1e9, max_noise=1e9, max_drift=1e9, max_shrinkage=0.99999, max_step=0.9
    )
    sampling = rllc.Sampling(num_chains=2, num_draws=20, batch_size=4)
    return calibrate(
        tiny_model(), tiny_tokens(), "0:0", sampling=sampling, grid=grid, criterion=lenient, progress=False
    )


def test_a_heat_map_for_each_n_beta(calibration) -> None:
    axes = plot_calibration(calibration)
    assert [ax.get_title() for ax in axes] == [r"$n\beta$ = 30", r"$n\beta$ = 300"]
    assert axes[0].get_ylabel() == "localization $\\gamma$"
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["100", "1e+03"]
    frames = 0
    for ax, n_beta in zip(axes, (30.0, 300.0), strict=True):
        assert ax.get_xlabel() == "lr $\\epsilon$"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0001", "0.001", "1e+03"]
        mine = calibration.n_beta == n_beta
        shown = np.ma.filled(
            ax.images[0].get_array(), np.nan
        )  # [localization, lr], tried in the order lr, n_beta, localization
        assert np.array_equal(shown, calibration.error[mine].reshape(3, 2).T, equal_nan=True)
        assert sum("×" in t.get_text() for t in ax.texts) == (~calibration.good[mine]).sum() > 0
        frames += sum(not p.get_fill() for p in ax.patches)
    assert frames == calibration.good.any() == 1


def test_a_heat_map_of_the_best_n_beta(calibration) -> None:
    _, ax = plt.subplots()
    assert plot_calibration(calibration, ax=ax) is ax
    assert ax.get_title() == rf"$n\beta$ = {calibration.n_beta[calibration.best]:g}"
    with pytest.raises(rllc.InputError, match="one Axes for each of 2 n_beta, got 3"):
        plot_calibration(calibration, ax=plt.subplots(1, 3)[1])


def test_a_curve_over_n_beta(draws) -> None:
    first = rllc.Estimate.of(draws)
    broken = rllc.Estimate.of(
        replace(draws, diverged=np.zeros_like(draws.diverged), loss=np.full_like(draws.loss, np.nan))
    )
    curve = Resolution(np.array([10.0, 30.0, 100.0]), (first, first, broken))
    ax = plot_resolution(curve)
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", r"$n\beta$", r"$\hat\lambda$ (95 % band)")
    lines = {line.get_label(): line for line in ax.lines if "," in line.get_label()}
    assert list(lines) == [f"{w}, {d}" for w, d in zip(first.weights, first.data, strict=True)]
    for k, line in enumerate(lines.values()):
        assert np.array_equal(line.get_xdata(), [10.0, 30.0, 100.0])
        assert np.array_equal(line.get_ydata(), curve.value[:, k], equal_nan=True)
        low = ax.collections[k].get_paths()[0].vertices[:, 1].min()
        assert low == pytest.approx(first.value[k] - 1.96 * first.standard_error[k])
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == len(first)
    assert all(line.get_xdata()[-1] == 100.0 and line.get_ydata()[-1] == 0 for line in crosses)
    wrong = [status != "ok" for status in (first.status[0], first.status[0], broken.status[0])]
    assert len(crosses[0].get_xdata()) == sum(wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, t: rllc.plot_trajectory(t), r"on which data\? It has \['code', 'prose'\]; pass data='code'"),
        (lambda d, t: rllc.plot_trajectory(t, "Code2"), "no data 'Code2'; did you mean 'code'"),
        (
            lambda d, t: rllc.plot_trajectory(t, "code", ax=plt.subplots(1, 3)[1]),
            "one Axes for each of 2 layers, got 3",
        ),
        (lambda d, t: rllc.plot_traces(d), "matches 12 refinements; name one"),
        (lambda d, t: rllc.plot_traces(d, "7:7"), "matches nothing"),
    ],
)
def test_errors_say_what_to_type(draws, trajectory, call, message) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call(draws, trajectory)
