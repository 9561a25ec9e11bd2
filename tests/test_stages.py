"""Stages on curves whose turns are known, and the Gaussian process against scikit-learn's."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import rllc
from rllc.analysis.gaussian_process import posterior
from rllc.analysis.stages import plot_stages, stages
from rllc.errors import InputError

mpl.use("Agg")
STEPS = np.unique(np.geomspace(10, 10_000, 60).round())
TURNS = 10 * np.exp(np.pi / 2 * np.arange(1, 5))  # of cos(2 log(step / 10)): 48, 231, 1113, 5355
WAVE = np.cos(2 * np.log(STEPS / 10))


def noise(seed: int, scale: float = 0.15) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(len(STEPS))


def trajectory_of(values: np.ndarray, steps: np.ndarray, errors: np.ndarray) -> rllc.Trajectory:
    """One whose second refinement, everything on b, has these values."""
    both = np.stack([np.zeros_like(values), values, np.ones_like(values)], 1)
    error = np.stack([np.zeros_like(values), errors, np.zeros_like(values)], 1)
    names = {"weights": ("everything", "everything", "0:1"), "data": ("a", "b", "b")}
    status = (("ok",) * 3,) * len(steps)
    chains = both[:, :, None]
    return rllc.Trajectory(
        tuple(int(s) for s in steps), both, error, both, both, chains, status, **names, settings={}
    )


def test_turns_of_a_curve_without_noise() -> None:
    found = stages(WAVE, STEPS)
    assert [turn.step for turn in found.turns] == pytest.approx(TURNS, rel=1e-3)
    assert [turn.kind for turn in found.turns] == ["minimum", "maximum"] * 2
    assert all(turn.probability == 1 for turn in found.turns)
    assert len(found) == 5
    assert found.boundaries == (10, *(turn.step for turn in found.turns), 10_000)


def test_a_curve_that_only_rises_is_one_stage() -> None:
    found = stages(np.log(STEPS) + noise(0, 0.02), STEPS)
    assert len(found) == 1
    assert found.to_dataframe()["direction"].tolist() == ["rises"]


def test_noise_is_not_taken_for_stages() -> None:
    """Six curves of noise alone have at most one turn that is 90 % sure, where a best fit finds many in each."""
    assert (
        sum(len(stages(noise(seed, 1.0), STEPS, num_samples=300).turns) for seed in range(6)) <= 1
    )


def test_intervals_hold_the_turns() -> None:
    """48 turns in 95 % intervals: fewer than 36 would have a chance of 1e-7."""
    held = 0
    for seed in range(12):
        found = stages(WAVE + noise(seed), STEPS, num_samples=400, probability=0)
        sure = sorted(found.turns, key=lambda turn: -turn.probability)[:4]
        for turn, truth in zip(sorted(sure, key=lambda turn: turn.step), TURNS, strict=True):
            held += turn.low < truth < turn.high
            assert turn.step == pytest.approx(truth, rel=0.25)
    assert held >= 36


def test_intervals_are_narrower_with_less_noise() -> None:
    rough, fine = (stages(WAVE + noise(1, scale), STEPS) for scale in (0.2, 0.05))
    for a, b in zip(rough.turns, fine.turns, strict=True):
        assert b.high / b.low < a.high / a.low
        assert b.low <= b.step <= b.high


def test_the_process_is_that_of_scikit_learn() -> None:
    """Mean and covariance; of the slope, those of differences of the curve over 2e-3."""
    process = pytest.importorskip("sklearn.gaussian_process")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    x, y = np.log(STEPS), WAVE + noise(2)
    variance, grid = np.linspace(0.01, 0.1, len(x)), np.linspace(x[0], x[-1], 9)
    mean, cov, slope, slope_cov = posterior(x, y, variance, 1.3, 0.7, grid)
    kernel = kernels.ConstantKernel(1.3**2) * kernels.RBF(0.7)
    other = process.GaussianProcessRegressor(kernel, alpha=variance, optimizer=None).fit(
        x[:, None], y
    )
    their_mean, their_cov = other.predict(grid[:, None], return_cov=True)
    assert mean == pytest.approx(their_mean, abs=1e-8)
    assert cov == pytest.approx(their_cov, abs=1e-8)
    sides = np.concatenate([grid - 1e-3, grid + 1e-3])
    near, near_cov = other.predict(sides[:, None], return_cov=True)
    difference = np.kron([-1, 1], np.eye(9)) / 2e-3
    assert slope == pytest.approx(difference @ near, abs=1e-4)
    assert slope_cov == pytest.approx(difference @ near_cov @ difference.T, abs=1e-3)


def test_length_scale_and_noise_are_found() -> None:
    """Of a curve that was drawn from a process whose length scale is 0.8, amplitude 2 and noise 0.1."""
    x = np.linspace(0, 8, 100)
    kernel = 4 * np.exp(-((x[:, None] - x[None]) ** 2) / (2 * 0.8**2)) + 1e-9 * np.eye(100)
    stream = np.random.default_rng(3)
    values = np.linalg.cholesky(kernel) @ stream.standard_normal(
        100
    ) + 0.1 * stream.standard_normal(100)
    found = stages(values, np.exp(x))
    assert found.length_scale == pytest.approx(0.8, rel=0.3)
    assert found.noise == pytest.approx(0.1, rel=0.3)
    assert 1 < found.amplitude < 5


def test_values_with_large_errors_count_little() -> None:
    rising = np.log(STEPS)
    wrong = rising.copy()
    wrong[28:32] -= 2.0
    errors = np.where(wrong == rising, 0.02, 3.0)
    assert len(stages(wrong, STEPS, errors)) == 1
    assert len(stages(wrong, STEPS, np.full(len(STEPS), 0.02))) == 3


def test_turns_do_not_depend_on_units() -> None:
    values = WAVE + noise(4)
    one = stages(values, STEPS)
    other = stages(5 - 3 * values, 7 * STEPS)
    for a, b in zip(one.turns, other.turns, strict=True):
        assert b.step == pytest.approx(7 * a.step, rel=1e-2)  # other samples of the same posterior
        assert {a.kind, b.kind} == {"minimum", "maximum"}
    assert other.noise == pytest.approx(3 * one.noise, rel=0.1)


def test_step_0_is_left_out() -> None:
    with_0 = stages([5.0, *WAVE], [0, *STEPS])
    assert with_0.turns == stages(WAVE, STEPS).turns
    assert with_0.steps[0] == 10


def test_the_same_seed_gives_the_same_and_global_random_numbers_stay() -> None:
    values = WAVE + noise(5)
    np.random.seed(0)  # noqa: NPY002 (the global state is what is looked at)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert stages(values, STEPS).turns == stages(values, STEPS).turns
    assert stages(values, STEPS).turns != stages(values, STEPS, seed=1).turns
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_of_a_trajectory() -> None:
    errors = np.full(len(STEPS), 0.1)
    trajectory = trajectory_of(WAVE, STEPS, errors)
    found = stages(trajectory, data="b")
    assert found.turns == stages(WAVE, STEPS, errors).turns
    assert found.name == "LLC of everything on b"
    assert len(stages(trajectory, weights="0:1")) == 1
    with pytest.raises(
        InputError, match="weights='everything': matches 2 refinements; name the `data`"
    ):
        stages(trajectory)
    with pytest.raises(InputError, match="weights='1:6', data='b': matches nothing; did you mean"):
        stages(trajectory, weights="1:6", data="b")
    with pytest.raises(InputError, match="a Trajectory brings its own `steps`"):
        stages(trajectory, STEPS)


def test_the_table_goes_from_turn_to_turn() -> None:
    found = stages(WAVE + noise(6), STEPS)
    table = found.to_dataframe()
    assert table["start"].tolist() == list(found.boundaries[:-1])
    assert table["end"].tolist() == list(found.boundaries[1:])
    assert table["direction"].tolist() == ["falls", "rises", "falls", "rises", "falls"]
    assert table["end_low"].tolist()[:-1] == [turn.low for turn in found.turns]
    assert table["end_probability"].isna().tolist() == [False] * 4 + [True]
    assert table["end_value"].tolist()[:-1] == pytest.approx(
        [found.at(turn.step) for turn in found.turns]
    )
    title, header, *rows = repr(found).splitlines()
    assert title == "5 stages of curve"
    assert header.split()[:3] == ["stage", "from", "to"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]
    doubtful = stages(WAVE + noise(6), STEPS, probability=1.0)
    assert len(doubtful.turns) + len(doubtful.doubtful) == len(found.turns) + len(found.doubtful)


def test_the_figure_shows_values_curve_and_turns() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    found = stages(WAVE + noise(7), STEPS)
    _, ax = plt.subplots()
    assert plot_stages(found, ax=ax) is ax
    lines = {line.get_label(): line for line in ax.lines}
    assert np.array_equal(lines["smoothed"].get_ydata(), found.mean)
    assert np.array_equal(ax.containers[0].lines[0].get_ydata(), found.values)
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [turn.step for turn in found.turns]
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
def test_what_cannot_be_smoothed_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"stages: .*{message}"):
        stages(**{"curve": WAVE, "steps": STEPS} | arguments)
