"""Stages on curves whose turns are known, and the Gaussian process against scikit-learn's."""

from __future__ import annotations

import functools
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import rllc
from rllc.analysis.gaussian_process import posterior
from rllc.analysis.stages import Stages, plot_stages, stages
from rllc.errors import InputError
from rllc.weights.names import Names

mpl.use("Agg")
STEPS = np.unique(np.geomspace(10, 10_000, 60).round())
WAVE = np.cos(2 * np.log(STEPS / 10))
TURNS = 10 * np.exp(np.pi / 2 * np.arange(1, 5))  # 48, 231, 1113, 5355


def noise(seed: int, scale: float = 0.15) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(len(STEPS))


@functools.cache
def of_wave(seed: int | None = None) -> Stages:
    """Those of the wave, with noise if a seed is given; it is smoothed once for several tests."""
    return stages(WAVE if seed is None else WAVE + noise(seed), STEPS)


def trajectory_of(values: np.ndarray, errors: np.ndarray) -> rllc.Trajectory:
    """One whose second refinement, everything on b, has these values."""
    zeros = np.zeros_like(values)
    value = np.stack([zeros, values, np.ones_like(values)], 1)
    return rllc.Trajectory(
        steps=tuple(int(step) for step in STEPS),
        value=value,
        standard_error=np.stack([zeros, errors, zeros], 1),
        dof=value,
        rhat=value,
        ess=value,
        per_chain=value[:, :, None],
        faults=(((),) * 3,) * len(STEPS),
        names=Names(("everything", "everything", "0:1"), ("a", "b", "b")),
        settings={},
    )


def test_turns_of_a_curve_without_noise() -> None:
    result = of_wave()
    steps = [turn.step for turn in result.turns]
    assert steps == pytest.approx(TURNS, rel=1e-3)
    assert [turn.kind for turn in result.turns] == ["minimum", "maximum"] * 2
    assert all(turn.probability == 1 for turn in result.turns)
    assert len(result) == 5
    assert result.boundaries == (10, *steps, 10_000)


def test_a_curve_that_only_rises_is_one_stage() -> None:
    result = stages(np.log(STEPS) + noise(0, 0.02), STEPS)
    assert len(result) == 1
    assert result.to_dataframe()["direction"].tolist() == ["rises"]


@pytest.mark.slow
def test_noise_is_not_taken_for_stages() -> None:
    """Curves of noise hardly have turns that are 90 % sure; a best fit finds many in each."""
    num_turns = 0
    for seed in range(4):
        num_turns += len(stages(noise(seed, 1.0), STEPS, num_samples=300).turns)
    assert num_turns <= 1


@pytest.mark.slow
def test_intervals_hold_the_turns() -> None:
    """32 turns in 95 % intervals: fewer than 22 would have a chance of 2e-7."""
    num_held = 0
    for seed in range(8):
        result = stages(WAVE + noise(seed), STEPS, num_samples=400, probability=0)
        surest = sorted(result.turns, key=lambda turn: -turn.probability)[:4]
        in_order = sorted(surest, key=lambda turn: turn.step)
        for turn, truth in zip(in_order, TURNS, strict=True):
            num_held += turn.low < truth < turn.high
            assert turn.step == pytest.approx(truth, rel=0.25)
    assert num_held >= 22


def test_intervals_are_narrower_with_less_noise() -> None:
    rough = stages(WAVE + noise(1, 0.2), STEPS, num_samples=500)
    fine = stages(WAVE + noise(1, 0.05), STEPS, num_samples=500)
    for wide, narrow in zip(rough.turns, fine.turns, strict=True):
        assert narrow.high / narrow.low < wide.high / wide.low
        assert narrow.low <= narrow.step <= narrow.high


def test_the_process_is_that_of_scikit_learn() -> None:
    """Mean and covariance; of the slope, those of differences of the curve over 2e-3."""
    process = pytest.importorskip("sklearn.gaussian_process")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    x = np.log(STEPS)
    y = WAVE + noise(2)
    variance = np.linspace(0.01, 0.1, len(x))
    grid = np.linspace(x[0], x[-1], 9)
    curve = posterior(x, y, variance, 1.3, 0.7, grid)
    kernel = kernels.ConstantKernel(1.3**2) * kernels.RBF(0.7)
    regressor = process.GaussianProcessRegressor(kernel, alpha=variance, optimizer=None)
    theirs = regressor.fit(x[:, None], y)
    mean, covariance = theirs.predict(grid[:, None], return_cov=True)
    assert curve.mean == pytest.approx(mean, abs=1e-8)
    assert curve.covariance == pytest.approx(covariance, abs=1e-8)
    sides = np.concatenate([grid - 1e-3, grid + 1e-3])
    mean, covariance = theirs.predict(sides[:, None], return_cov=True)
    difference = np.kron([-1, 1], np.eye(9)) / 2e-3
    assert curve.slope == pytest.approx(difference @ mean, abs=1e-4)
    of_slope = difference @ covariance @ difference.T
    assert curve.slope_covariance == pytest.approx(of_slope, abs=1e-3)


def test_length_scale_and_noise_are_found() -> None:
    """Of a curve drawn from a process with length scale 0.8, amplitude 2 and noise 0.1."""
    x = np.linspace(0, 8, 100)
    squares = (x[:, None] - x[None]) ** 2
    covariance = 4 * np.exp(-squares / (2 * 0.8**2)) + 1e-9 * np.eye(100)
    stream = np.random.default_rng(3)
    curve = np.linalg.cholesky(covariance) @ stream.standard_normal(100)
    result = stages(curve + 0.1 * stream.standard_normal(100), np.exp(x))
    assert result.length_scale == pytest.approx(0.8, rel=0.3)
    assert result.noise == pytest.approx(0.1, rel=0.3)
    assert 1 < result.amplitude < 5


def test_values_with_large_errors_count_little() -> None:
    rising = np.log(STEPS)
    wrong = rising.copy()
    wrong[28:32] -= 2.0
    errors = np.where(wrong == rising, 0.02, 3.0)
    assert len(stages(wrong, STEPS, errors, num_samples=500)) == 1
    assert len(stages(wrong, STEPS, np.full(len(STEPS), 0.02), num_samples=500)) == 3


def test_turns_do_not_depend_on_units() -> None:
    """To within other samples of the same posterior."""
    values = WAVE + noise(4)
    one = of_wave(4)
    other = stages(5 - 3 * values, 7 * STEPS)
    for turn, other_turn in zip(one.turns, other.turns, strict=True):
        assert other_turn.step == pytest.approx(7 * turn.step, rel=1e-2)
        assert {turn.kind, other_turn.kind} == {"minimum", "maximum"}
    assert other.noise == pytest.approx(3 * one.noise, rel=0.1)


def test_step_0_is_left_out() -> None:
    with_0 = stages([5.0, *WAVE], [0, *STEPS])
    assert with_0.turns == of_wave().turns
    assert with_0.steps[0] == 10


def test_the_same_seed_gives_the_same_and_global_random_numbers_stay() -> None:
    values = WAVE + noise(5)
    np.random.seed(0)  # noqa: NPY002 (the global state is what is looked at)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (
        stages(values, STEPS, num_samples=100, seed=seed).turns for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_of_a_trajectory() -> None:
    errors = np.full(len(STEPS), 0.1)
    trajectory = trajectory_of(WAVE, errors)
    result = stages(trajectory, data="b", num_samples=300)
    assert result.turns == stages(WAVE, STEPS, errors, num_samples=300).turns
    assert result.name == "LLC of everything on b"
    assert len(stages(trajectory, weights="0:1")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "weights='everything': matches 2 refinements; name the `data`"),
        (
            {"weights": "1:6", "data": "b"},
            "weights='1:6', data='b': matches nothing; did you mean",
        ),
        ({"steps": STEPS}, "a Trajectory brings its own `steps`"),
    ],
)
def test_a_trajectory_that_does_not_say_which(arguments: dict[str, Any], message: str) -> None:
    trajectory = trajectory_of(WAVE, np.full(len(STEPS), 0.1))
    with pytest.raises(InputError, match=message):
        stages(trajectory, **arguments)


def test_the_table_goes_from_turn_to_turn() -> None:
    result = of_wave(6)
    table = result.to_dataframe()
    assert table["start"].tolist() == list(result.boundaries[:-1])
    assert table["end"].tolist() == list(result.boundaries[1:])
    assert table["direction"].tolist() == ["falls", "rises", "falls", "rises", "falls"]
    assert table["end_low"].tolist()[:-1] == [turn.low for turn in result.turns]
    assert table["end_probability"].isna().tolist() == [False] * 4 + [True]
    values_at_turns = [result.at(turn.step) for turn in result.turns]
    assert table["end_value"].tolist()[:-1] == pytest.approx(values_at_turns)
    title, header, *rows = repr(result).splitlines()
    assert title == "5 stages of curve"
    assert header.split()[:3] == ["stage", "from", "to"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]


def test_turns_are_either_sure_or_doubtful() -> None:
    usual = of_wave(6)
    strict = stages(WAVE + noise(6), STEPS, probability=1.0)
    assert all(turn.probability == 1 for turn in strict.turns)
    num_turns = len(usual.turns) + len(usual.doubtful)
    assert len(strict.turns) + len(strict.doubtful) == num_turns


def test_the_figure_shows_values_curve_and_turns() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    result = of_wave(6)
    _, ax = plt.subplots()
    assert plot_stages(result, ax=ax) is ax
    (smoothed,) = (line for line in ax.lines if line.get_label() == "smoothed")
    assert np.array_equal(smoothed.get_ydata(), result.mean)
    assert np.array_equal(ax.containers[0].lines[0].get_ydata(), result.values)
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [turn.step for turn in result.turns]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3", "4", "5"]
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": None}, "values need the `steps` that they belong to"),
        ({"steps": STEPS[:-1]}, r"must be as many, got shapes \(59,\), \(60,\) and \(59,\)"),
        ({"steps": STEPS[::-1]}, "`steps` must rise, from 0 on"),
        (
            {"curve": [1.0, 2.0, np.nan, 1.0, 2.0], "steps": range(1, 6)},
            r"at step 3 is not finite.*\(1 such steps\)",
        ),
        (
            {"standard_error": -np.ones(60)},
            r"at step 10 is not finite, or negative \(60 such steps\)",
        ),
        (
            {"curve": [1.0, 2, 3, 4, 5], "steps": range(5)},
            "at least 5 checkpoints above step 0 are needed, got 4",
        ),
        ({"probability": 1.5}, "`probability` must be from 0 to 1, got 1.5"),
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"curve": WAVE, "steps": STEPS, **arguments}
    with pytest.raises(InputError, match=f"stages: .*{message}"):
        stages(**arguments)
