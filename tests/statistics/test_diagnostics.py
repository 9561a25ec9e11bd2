"""Diagnostics against arviz and slow loops; coverage of the standard error on known chains."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import numpy as np
import pytest
import scipy.stats

from rllc.errors import InputError
from rllc.statistics import diagnostics

ALL = (
    diagnostics.rhat,
    diagnostics.ess,
    diagnostics.mcse,
)


def autoregressive(shape, rho, *, shared=0.0, components=0, seed=0):
    """Stationary AR(1) chains [repetition, chain, draw] of mean 0, with noise partly in common.

    ``components`` > 0 gives what λ̂ is made of instead: a sum of so many squared AR(1) processes,
    less its mean, whose autocorrelation at lag 1 is ``rho`` too.
    """
    rng = np.random.default_rng(seed)
    repetitions, chains, draws = shape
    rho = np.sqrt(rho) if components else rho
    lanes = max(components, 1)

    def noise():
        common = rng.standard_normal((repetitions, 1, lanes))
        own = rng.standard_normal((repetitions, chains, lanes))
        return np.sqrt(shared) * common + np.sqrt(1 - shared) * own

    v = noise()
    x = np.empty(shape)
    for t in range(draws):
        v = rho * v + np.sqrt(1 - rho**2) * noise()
        x[..., t] = (v**2 - 1).sum(-1) if components else v[..., 0]
    return x


# --- against arviz ---


def samples():
    rng = np.random.default_rng(0)
    yield "white", rng.standard_normal((4, 200))
    yield "odd number of draws", rng.standard_normal((4, 201))
    yield "one chain", rng.standard_normal((1, 100))
    yield "slow", autoregressive((1, 4, 301), 0.97)[0]
    yield "antithetic", autoregressive((1, 4, 200), -0.7)[0]
    yield "strongly antithetic", autoregressive((1, 2, 57), -0.95)[0]
    yield "skewed", autoregressive((1, 3, 100), 0.8, components=2)[0]
    yield "heavy tails", rng.standard_cauchy((4, 150))
    yield "ties", rng.integers(0, 3, (4, 100)).astype(float)
    yield "two values", rng.integers(0, 2, (4, 100)).astype(float)
    yield "chains apart", rng.standard_normal((4, 100)) + np.arange(4)[:, None]
    yield "spreads apart", rng.standard_normal((4, 100)) * (1 + np.arange(4)[:, None])
    yield "trend", rng.standard_normal((4, 100)) + np.linspace(0, 3, 100)
    yield "constant", np.ones((4, 100))
    yield (
        "nearly constant chains apart",
        np.arange(4)[:, None] + 1e-3 * rng.standard_normal((4, 100)),
    )
    yield "integers", np.arange(40).reshape(2, 20)
    yield "not a number", np.where(np.arange(400).reshape(4, 100) == 123, np.nan, 1.0)
    for draws in range(3, 15):
        for chains in (1, 2, 5):
            yield f"{chains} chains of {draws} draws", rng.standard_normal((chains, draws))
            yield (
                f"{chains} slow chains of {draws} draws",
                rng.standard_normal((chains, draws)).cumsum(-1),
            )


@pytest.fixture(scope="module")
def arviz() -> ModuleType:
    """Its import takes seconds: only a worker that needs it does so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own refactoring
        return importlib.import_module("arviz")


@pytest.mark.parametrize(("name", "x"), list(samples()), ids=[name for name, _ in samples()])
@pytest.mark.filterwarnings("ignore")  # arviz warns of what it returns NaN for
def test_agrees_with_arviz(name, x, arviz):
    def agree(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=0)

    agree(diagnostics.ess(x, method="mean"), arviz.ess(x, method="mean"))
    agree(diagnostics.ess(x), arviz.ess(x, method="bulk"))
    agree(diagnostics.mcse(x), arviz.mcse(x, method="mean"))
    if len(x) > 1:  # arviz refuses one chain
        agree(diagnostics.rhat(x), arviz.rhat(x))


def test_rhat_of_one_chain_is_that_of_its_halves():
    x = autoregressive((1, 1, 60), 0.5)[0]

    def plain(z):
        return np.sqrt(z.mean(1).var(ddof=1) / z.var(1, ddof=1).mean() + 29 / 30)

    def scores(z):
        return scipy.stats.norm.ppf((scipy.stats.rankdata(z).reshape(2, 30) - 0.375) / 60.25)

    halves = x.reshape(2, 30)
    expected = max(plain(scores(halves)), plain(scores(abs(halves - np.median(halves)))))
    assert diagnostics.rhat(x) == pytest.approx(expected, rel=1e-12)


def test_effective_sample_size_of_a_known_process():
    x = autoregressive((50, 4, 1000), 0.8)
    assert diagnostics.ess(x, method="mean").mean() == pytest.approx(4000 * 0.2 / 1.8, rel=0.1)


# --- all of them ---


@pytest.mark.parametrize("diagnostic", ALL)
def test_leading_axes_are_a_loop(diagnostic):
    x = autoregressive((6, 3, 41), 0.5).reshape(2, 3, 3, 41)
    together = diagnostic(x)
    assert together.shape == (2, 3)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_max_ulp(together[i], diagnostic(x[i]), maxulp=8)
    assert diagnostic(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_draw_makes_its_refinement_nan_and_no_other(diagnostic, bad):
    x = autoregressive((3, 2, 40), 0.5)
    good = diagnostic(x)
    x[1, 0, 7] = bad
    broken = diagnostic(x)
    assert np.isnan(broken[1])
    np.testing.assert_array_equal(broken[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("chains", [1, 4])
def test_too_few_draws_are_nan_and_no_crash(diagnostic, draws, chains):
    assert np.isnan(diagnostic(np.random.default_rng(0).standard_normal((chains, draws))))


@pytest.mark.parametrize("diagnostic", ALL)
def test_invariance(diagnostic):
    """Chains come in any order; a shift changes nothing; a scale only scales the errors."""
    x = autoregressive((1, 3, 60), 0.5)[0]
    scale = 2.5 if diagnostic is diagnostics.mcse else 1.0
    assert diagnostic(x[[2, 0, 1]]) == pytest.approx(diagnostic(x), rel=1e-9)
    assert diagnostic(2.5 * x + 7) == pytest.approx(scale * diagnostic(x), rel=1e-9)


def test_constant_draws():
    x = np.full((2, 20), 3.0)
    assert diagnostics.ess(x) == 40
    assert diagnostics.mcse(x) == 0
    assert np.isnan(diagnostics.rhat(x))


@pytest.mark.parametrize("diagnostic", ALL)
def test_warns_of_nothing_and_leaves_its_input(diagnostic):
    x = autoregressive((2, 2, 30), 0.5)
    x[0] = 1.0
    before = x.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnostic(x)
        diagnostic(x[:, :, :3])
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize(
    "x", [np.zeros(5), np.zeros((0, 5)), np.zeros((2, 0)), np.zeros((2, 5), complex), [["a"]]]
)
def test_what_is_not_draws_is_refused(diagnostic, x):
    with pytest.raises(
        InputError,
        match=r"expected real numbers \[..., chain, draw\].*For one chain type x\[None\]",
    ):
        diagnostic(x)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="method must be 'bulk' or 'mean'; got 'tail'"):
        diagnostics.ess(np.ones((2, 9)), method="tail")
