"""The benchmark of errors and verdicts runs, and its chains follow the laws that it states."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from rllc.theory import SGLDLaw

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def known_laws(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("known_laws")


@pytest.fixture
def coverage(known_laws: ModuleType) -> ModuleType:
    # Another package of this name may be loaded: the one that measures which lines tests run.
    spec = importlib.util.spec_from_file_location("coverage_benchmark", FOLDER / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("predictions", [np.inf, 500.0])
def test_its_chains_have_the_law_of_the_theory(known_laws: ModuleType, predictions: float) -> None:
    problem = known_laws.Problem(known_laws.head_like(30), 1e-3, 300.0, predictions, shaking=0.0)
    law = SGLDLaw(
        problem.curvatures,
        lr=1e-3,
        localization=known_laws.LOCALIZATION,
        n_beta=300.0,
        gradient_variance=problem.noise,
    )
    assert problem.truth == pytest.approx(law.value)
    x = known_laws.simulate(problem, 600, 4, 60, np.random.default_rng(0))
    settled = x[..., 30:].mean(axis=(1, 2))
    error = law.standard_error(30, 4, stationary=True)
    assert abs(settled.mean() - law.value) < 5 * error / math.sqrt(600)
    # The variance of a sample variance, with room for draws that are not Gaussian.
    assert settled.std() == pytest.approx(error, rel=5 * math.sqrt(1.5 / 2 / 600))


def test_a_start_at_the_minimum_lacks_what_the_law_says(known_laws: ModuleType) -> None:
    problem = known_laws.Problem(known_laws.head_like(30), start="center")
    law = SGLDLaw(problem.curvatures, lr=1e-3, localization=known_laws.LOCALIZATION, n_beta=30.0)
    x = known_laws.simulate(problem, 600, 4, 40, np.random.default_rng(0))
    exact = law.expected(40)
    error = law.standard_error(40, 4)
    assert abs(x.mean() - exact) < 5 * error / math.sqrt(600)
    assert problem.too_short(40)
    assert not replace(problem, start="gaussian").too_short(40)


def test_its_tables_have_a_row_for_each_size(coverage: ModuleType, tmp_path: Path) -> None:
    arguments = ["--parts", "laws", "--repetitions", "3", "--out", str(tmp_path)]
    tables = coverage.main(arguments)
    assert len(tables) == 2
    rows = tables[0].splitlines()[5:]
    assert len(rows) == 2 * 3 * 4
    assert {len(line.split("|")) for line in rows} == {len(coverage.COLUMNS) + 3}
    assert (tmp_path / "coverage.md").read_text().count("Known laws") == 2


def test_shifts_stand_beside_their_formulas(coverage: ModuleType) -> None:
    lines = [
        [float(cell) for cell in values]
        for _, values in coverage.pairings(20, np.random.default_rng(0))
    ]
    for measured, error, formula in lines:
        assert abs(measured - formula) < 5 * error


def test_the_best_test_of_levels_has_the_power_of_its_law(known_laws: ModuleType) -> None:
    problem = known_laws.Problem(known_laws.head_like(30), predictions=500.0)
    slow, white = known_laws.covariances(problem, 40)
    variance = 1 / np.linalg.inv(slow + white).sum()
    # Levels this close together scale the noise by next to nothing.
    shift = 2.5 * math.sqrt(variance) / problem.truth
    levels = np.tile(1 + shift * np.array([-1, -1, 1, 1]), (2000, 1))
    stream = np.random.default_rng(0)
    known = known_laws.share_to_be_found(problem, levels, 40, stream, learnt=False)
    expected = stats.ncx2.sf(stats.chi2.isf(0.001, 3), 3, 4 * 2.5**2)
    assert known == pytest.approx(expected, abs=0.06)
    learnt = known_laws.share_to_be_found(problem, levels, 40, stream, learnt=True)
    assert 0.1 < learnt < known


@pytest.mark.parametrize("control_variate", [False, True])
def test_its_chains_have_the_covariances_that_limits_assume(
    known_laws: ModuleType, control_variate: bool
) -> None:
    problem = known_laws.Problem(
        known_laws.head_like(30), predictions=500.0, shaking=0.0, control_variate=control_variate
    )
    x = known_laws.simulate(problem, 600, 4, 80, np.random.default_rng(0))[..., 40:]
    own = (x - x.mean(1, keepdims=True)).reshape(-1, 40) * math.sqrt(4 / 3)
    slow, white = known_laws.covariances(problem, 40)
    measured = own.T @ own / len(own)
    diagonal = np.diag(measured).mean()
    assert diagonal == pytest.approx(slow[0, 0] + white[0, 0], rel=0.05)
    assert np.diag(measured, 5).mean() == pytest.approx(slow[0, 5], rel=0.15)


def test_levels_are_counted_for_each_size(coverage: ModuleType) -> None:
    rows = list(coverage.levels(2, np.random.default_rng(0)))
    assert len(rows) == 2 * 2 * 4 * 2
    assert {len(values) for _, values in rows} == {len(coverage.LEVELS)}
