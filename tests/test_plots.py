"""Figures show the numbers of the results: read back from the Axes they return."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from tiny import SHORT, tiny_model, tiny_tokens

import rllc

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
