"""Figures show the numbers of the results: read back from the Axes they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from texts import apart, written
from tiny import LAX, QUIET, SHORT, tiny_model, tiny_tokens

import rllc
from rllc.calibration.calibrate import Calibration, calibrate
from rllc.calibration.resolution import Resolution
from rllc.plots import plot_calibration, plot_resolution

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

HEADS = ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    model = tiny_model()
    data = {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
    return rllc.sample(model, data, rllc.heads(model), sampling=SHORT, compute=QUIET)


@pytest.fixture(scope="module")
def estimate(draws: rllc.Draws) -> rllc.Estimate:
    return rllc.Estimate.of(draws)


@pytest.fixture(scope="module")
def trajectory(estimate: rllc.Estimate) -> rllc.Trajectory:
    return rllc.Trajectory.of(dict.fromkeys((0, 10, 100, 1000), estimate))


def test_heads_are_dots_with_intervals(estimate: rllc.Estimate) -> None:
    ax = rllc.plot_heads(estimate)
    for container, data in zip(ax.containers, ("code", "prose"), strict=True):
        dots, _, (bars,) = container.lines
        values = [estimate[head, data].value for head in HEADS]
        assert np.array_equal(dots.get_ydata(), values)
        reading = estimate["0:0", data]
        half = t_quantile(0.95, estimate, "0:0", data) * reading.standard_error
        expected = [reading.value - half, reading.value + half]
        assert bars.get_segments()[0][:, 1] == pytest.approx(expected)
    assert written(ax.get_xticklabels()) == HEADS
    assert ax.get_ylabel() == r"$\hat\lambda$ (95 % interval)"


def test_all_intervals_of_a_figure_may_hold_together(
    estimate: rllc.Estimate, trajectory: rllc.Trajectory
) -> None:
    ax = rllc.plot_heads(estimate, simultaneous=True)
    _, _, (bars,) = ax.containers[0].lines
    # 6 heads on 2 data sets.
    half = t_quantile(0.95 ** (1 / 12), estimate, "0:0", "code")
    half *= estimate["0:0", "code"].standard_error
    assert np.ptp(bars.get_segments()[0][:, 1]) == pytest.approx(2 * half)
    assert ax.get_ylabel() == r"$\hat\lambda$ (simultaneous 95 % interval)"
    # 6 heads at 4 checkpoints.
    ax = rllc.plot_trajectory(trajectory, "code", simultaneous=True)[0]
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    half = t_quantile(0.95 ** (1 / 24), estimate, "0:0", "code")
    reading = estimate["0:0", "code"]
    assert top == pytest.approx(reading.value + half * reading.standard_error)
    assert ax.get_ylabel() == r"$\hat\lambda$ on code (simultaneous 95 % band)"


def t_quantile(level: float, estimate: rllc.Estimate, weights: str, data: str) -> float:
    stats = pytest.importorskip("scipy.stats")
    dof = estimate.dof[estimate.names.index(weights, data)]
    return stats.t.isf((1 - level) / 2, dof)


def test_given_axes_are_used_and_returned(
    draws: rllc.Draws, estimate: rllc.Estimate, trajectory: rllc.Trajectory
) -> None:
    _, ax = plt.subplots()
    assert rllc.plot_heads(estimate, ax=ax) is ax
    assert rllc.plot_trajectory(trajectory, "code", ax=ax) is ax
    assert rllc.plot_traces(draws, "0:1", "code", ax=ax) is ax


def test_a_panel_a_layer_and_a_line_a_head(trajectory: rllc.Trajectory) -> None:
    axes = rllc.plot_trajectory(trajectory, "prose")
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    for layer, ax in enumerate(axes):
        lines = {line.get_label(): line for line in ax.lines if ":" in line.get_label()}
        assert list(lines) == [f"{layer}:{head}" for head in range(3)]
        for name, line in lines.items():
            values = [trajectory.at(step)[name, "prose"].value for step in trajectory.steps]
            assert np.array_equal(line.get_ydata(), values)
            assert np.array_equal(line.get_xdata(), trajectory.steps)
        # On this axis step 0 has its place.
        assert ax.get_xscale() == "symlog"


def test_the_first_of_given_axes_says_what_is_drawn(trajectory: rllc.Trajectory) -> None:
    _, axes = plt.subplots(1, 3)
    rllc.plot_trajectory(trajectory, "code", axes[1:])
    assert axes[1].get_ylabel() == r"$\hat\lambda$ on code (95 % band)"
    assert axes[2].get_ylabel() == ""
    # One scale, and no words below a figure that is the caller's.
    assert axes[1].get_ylim() == axes[2].get_ylim()
    assert not axes[0].figure.get_supxlabel()


def test_trajectories_by_group(trajectory: rllc.Trajectory) -> None:
    groups = {"0:0": "a", "0:1": "b", "0:2": "b", "1:0": "c", "1:1": "a", "1:2": "b"}
    color = {"a": "#0072B2", "b": "#D55E00", "c": "#009E73"}
    axes = rllc.plot_trajectory(trajectory, "code", groups=groups)
    for layer, ax in enumerate(axes):
        heads = [f"{layer}:{head}" for head in range(3)]
        for line, head in zip(ax.lines, heads, strict=False):
            values = [trajectory.at(step)[head, "code"].value for step in trajectory.steps]
            assert np.array_equal(line.get_ydata(), values)
            assert line.get_color() == color[groups[head]]
        # Names and groups stand at the lines, so no legend covers them.
        assert ax.get_legend() is None
        assert set(written(ax.texts)) == {f"{head} {groups[head]}" for head in heads}
    assert apart(axes[0].figure, [*axes[0].texts, *axes[1].texts])


def test_a_trace_and_its_running_mean(draws: rllc.Draws) -> None:
    trace, mean, *_ = rllc.plot_traces(draws, "1:0", "code").lines
    values = draws.llc[draws.names.index("1:0", "code"), 0]
    assert np.array_equal(trace.get_ydata(), values)
    assert mean.get_ydata()[-1] == pytest.approx(values.mean())


def test_the_traces_of_an_estimate_are_those_of_its_draws(draws, estimate, trajectory) -> None:
    lines = [rllc.plot_traces(result, "1:0", "code").lines for result in (draws, estimate)]
    for one, other in zip(*lines, strict=True):
        assert np.array_equal(one.get_ydata(), other.get_ydata())
    with pytest.raises(rllc.InputError, match="without its draws, as those of a trajectory"):
        rllc.plot_traces(trajectory.at(0), "1:0", "code")
    with pytest.raises(rllc.InputError, match=r"rllc.Draws or rllc.Estimate, got Trajectory"):
        rllc.plot_traces(trajectory)


def test_draws_and_their_running_means_do_not_look_alike(draws: rllc.Draws) -> None:
    trace, mean, *_ = rllc.plot_traces(draws, "1:0", "code").lines
    assert (trace.get_linestyle(), trace.get_marker()) == ("None", "o")
    assert (mean.get_linestyle(), mean.get_marker()) == ("-", "None")


def test_a_stuck_chain_is_said_to_be_stuck(draws: rllc.Draws) -> None:
    loss = np.random.default_rng(0).normal(size=(1, 4, 50))
    loss[0, 2] = 1 + 0.01 * loss[0, 2]
    one = replace(
        draws,
        loss=loss,
        baseline=np.zeros_like(loss),
        diverged=np.full((1, 4), -1),
        names=draws.names.take([0]),
        lengths=(50,),
        observed={},
    )
    ax = rllc.plot_traces(one)
    named = [text for text in written(ax.texts) if text.startswith("chain")]
    assert sorted(named) == ["chain 0", "chain 1", "chain 2, stuck", "chain 3"]
    colors = [line.get_color() for line in ax.lines[1:8:2]]
    assert colors[2] == "black"
    assert "black" not in (colors[0], colors[1], colors[3])
    # A chain that drifts moves.
    drifting = replace(one, loss=one.loss + np.linspace(0, 9, 50)[None, None])
    assert sum("stuck" in text for text in written(rllc.plot_traces(drifting).texts)) == 1


# What is not ok.


def with_faults(estimate: rllc.Estimate, wrong: list[int]) -> rllc.Estimate:
    spikes = (rllc.estimates.Fault("spikes", {"draws": 1}, "lower lr"),)
    faults = tuple(spikes if row in wrong else () for row in range(len(estimate)))
    return replace(estimate, faults=faults)


def hollow(ax: Any) -> list[tuple[float, float]]:
    marks = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    return [tuple(point) for line in marks for point in line.get_xydata()]


def small_print_of(ax: Any) -> str:
    return ax.figure.get_supxlabel().replace("\n", " ")


def test_heads_that_are_not_ok_are_hollow(estimate: rllc.Estimate) -> None:
    rows = [estimate.names.index("0:1", "code"), estimate.names.index("1:2", "prose")]
    ax = rllc.plot_heads(with_faults(estimate, rows))
    assert [height for _, height in hollow(ax)] == [estimate.value[row] for row in rows]
    assert "hollow or ×: not ok (2 of 12)" in small_print_of(ax)
    assert "nβ = 30, γ = 200, ε = 0.001, 2 chains × 5 draws" in small_print_of(ax)
    assert not hollow(rllc.plot_heads(without_faults(estimate)))
    assert "hollow" not in small_print_of(rllc.plot_heads(without_faults(estimate)))


def test_checkpoints_that_are_not_ok_are_hollow_or_crosses(estimate: rllc.Estimate) -> None:
    row = estimate.names.index("0:1", "code")
    wrong = with_faults(estimate, [row])
    value = estimate.value.copy()
    value[row] = np.nan
    absent = replace(wrong, value=value)
    trajectory = rllc.Trajectory.of({1: without_faults(estimate), 2: wrong, 30: absent})
    ax = rllc.plot_trajectory(trajectory, "code")[0]
    assert hollow(ax) == [(2.0, estimate.value[row])]
    (cross,) = crosses(ax)
    assert list(cross.get_xdata()) == [30.0]
    assert "hollow or ×: not ok (2 of 18)" in small_print_of(ax)


def test_a_wide_band_does_not_set_the_scale(estimate: rllc.Estimate) -> None:
    good = without_faults(estimate)
    rising = {10**k: replace(good, value=good.value + 10 * k) for k in range(1, 4)}
    wide = replace(good, standard_error=1e4 * good.standard_error)
    ax = rllc.plot_trajectory(rllc.Trajectory.of({0: wide} | rising), "code")[0]
    low, high = ax.get_ylim()
    assert high - low < 100
    assert "the widest bands are cut" in small_print_of(ax)
    ax = rllc.plot_trajectory(rllc.Trajectory.of({0: good} | rising), "code")[0]
    assert "cut" not in small_print_of(ax)


def crosses(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_marker() == "x"]


def test_diverged_heads_are_crosses() -> None:
    estimate = rllc.estimate(
        tiny_model(),
        tiny_tokens(),
        ["0:0", "0:1"],
        sampler=rllc.sgld(lr=10.0),
        sampling=SHORT,
        compute=QUIET,
    )
    (line,) = crosses(rllc.plot_heads(estimate))
    assert list(line.get_xdata()) == [0, 1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """12 settings, of which the limits call only those with lr = 1000 not good."""
    lenient = replace(LAX, max_step=0.9)
    return calibrate(
        tiny_model(),
        tiny_tokens(),
        "0:0",
        sampling=rllc.Sampling(num_chains=2, num_draws=20, batch_size=4, control_variate=False),
        limits=lenient,
        lr=[1e-4, 1e-3, 1e3],
        n_beta=[30.0, 300.0],
        localization=[100.0, 1000.0],
        compute=QUIET,
    )


def test_a_mark_for_each_setting(calibration: Calibration) -> None:
    """At its resolution and its step size, in the colour of λ̂ over its control."""
    ones = np.ones(1)
    known = []
    for result, its_ratio in zip(calibration.estimates, np.linspace(0.1, 1.2, 12), strict=True):
        diagnostics = dict(result.diagnostics) | {"control_ratio": its_ratio * ones}
        known.append(replace(result, diagnostics=diagnostics))
    limits = replace(calibration.limits, max_control_ratio=0.35)
    calibration = replace(calibration, estimates=tuple(known), limits=limits)
    ax = plot_calibration(calibration)
    x = calibration.localization / calibration.n_beta
    places = np.stack([x, calibration.lr], 1)
    drawn = {str(points.get_label()): points for points in ax.collections}
    kinds = [{fault.kind for fault in faults[0]} for faults in calibration.faults]
    expected = {
        "good": [not of_one for of_one in kinds],
        "the prior dominates": [of_one == {"prior_dominated"} for of_one in kinds],
        "chains diverged": ["diverged" in of_one for of_one in kinds],
    }
    for label, chosen in expected.items():
        assert any(chosen), label
        assert np.allclose(drawn[label].get_offsets(), places[chosen]), label
    good = np.array(expected["good"])
    assert np.allclose(drawn["recommended"].get_offsets(), places[[calibration.best]])
    # What is not good is hollow, and the colour rises with the ratio.
    assert not len(drawn["the prior dominates"].get_facecolors())
    colors = drawn["good"].get_facecolors()
    assert len(colors) == good.sum()
    lightness = colors[:, :3].sum(1)
    assert (np.diff(lightness) >= 0).all()
    assert ax.get_xlabel().startswith("curvature that counts half, γ/nβ")
    assert ax.get_ylabel() == "step size ε (lr)"
    assert sorted(written(ax.get_legend().get_texts())) == sorted(drawn)


def test_settings_are_drawn_into_given_axes(calibration: Calibration) -> None:
    _, ax = plt.subplots()
    assert plot_calibration(calibration, ax=ax) is ax


def test_the_shade_of_a_prior_that_dominates(estimate: rllc.Estimate) -> None:
    good = without_faults(estimate)
    prior = (rllc.estimates.Fault("prior_dominated", {"share": 0.97}, "larger n_beta"),)
    by_prior = replace(estimate, faults=(prior,) * len(estimate))
    n_beta = np.array([1.0, 4.0, 16.0])
    ax = plot_resolution(Resolution(n_beta, (by_prior, good, good)))
    (shade,) = ax.patches
    assert shade.get_x() + shade.get_width() == pytest.approx(2.0)  # between 1 and 4
    assert not any(len(line.get_xdata()) for line in crosses(ax))
    assert "the prior alone" in written(ax.texts)
    rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert {tuple(line.get_xdata()) for line in rings} == {(1.0,)}
    assert not plot_resolution(Resolution(n_beta, (good, good, good))).patches


def without_faults(estimate: rllc.Estimate) -> rllc.Estimate:
    return replace(estimate, faults=((),) * len(estimate))


def broken(draws: rllc.Draws) -> rllc.Estimate:
    """Every chain diverged at once."""
    nothing = np.full_like(draws.loss, np.nan)
    return rllc.Estimate.of(replace(draws, diverged=np.zeros_like(draws.diverged), loss=nothing))


def test_a_curve_over_n_beta(draws: rllc.Draws, estimate: rllc.Estimate) -> None:
    n_beta = np.array([10.0, 30.0, 100.0])
    good = without_faults(estimate)
    curve = Resolution(n_beta, (good, good, broken(draws)))
    ax = plot_resolution(curve)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == r"$n\beta$"
    assert ax.get_ylabel() == r"$\hat\lambda$ (95 % band)"
    lines = {line.get_label(): line for line in ax.lines if "," in line.get_label()}
    assert list(lines) == [", ".join(pair) for pair in good.names]
    for row, line in enumerate(lines.values()):
        assert np.array_equal(line.get_xdata(), n_beta)
        assert np.array_equal(line.get_ydata(), curve.value[:, row], equal_nan=True)
        lowest = ax.collections[row].get_paths()[0].vertices[:, 1].min()
        half = t_quantile(0.95, good, good.weights[row], good.data[row])
        assert lowest == pytest.approx(good.value[row] - half * good.standard_error[row])


def test_points_with_faults_are_crosses_and_diverged_ones_stand_at_zero(
    draws: rllc.Draws, estimate: rllc.Estimate
) -> None:
    n_beta = np.array([10.0, 100.0])
    ax = plot_resolution(Resolution(n_beta, (without_faults(estimate), broken(draws))))
    assert len(crosses(ax)) == len(estimate)
    for line in crosses(ax):
        assert line.get_xydata().tolist() == [[100.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda draws, trajectory: rllc.plot_trajectory(trajectory),
            r"on which data\? It has \['code', 'prose'\]; pass data='code'",
        ),
        (
            lambda draws, trajectory: rllc.plot_trajectory(trajectory, "Code2"),
            "no data 'Code2'; did you mean 'code'",
        ),
        (
            lambda draws, trajectory: rllc.plot_trajectory(
                trajectory, "code", ax=plt.subplots(1, 3)[1]
            ),
            "one Axes for each of 2 layers, got 3",
        ),
        (lambda draws, trajectory: rllc.plot_traces(draws), "matches 12 refinements; name one"),
        (lambda draws, trajectory: rllc.plot_traces(draws, "7:7"), "matches nothing"),
    ],
)
def test_errors_say_what_to_type(
    draws: rllc.Draws,
    trajectory: rllc.Trajectory,
    call: Callable[..., object],
    message: str,
) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call(draws, trajectory)
