"""Diagnostics against arviz and slow loops; coverage of the standard error on known chains."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats

from rllc import diagnostics
from rllc.errors import InputError
from rllc.theory import SGLDLaw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it announces its own refactoring
    import arviz

ALL = (
    diagnostics.rhat,
    diagnostics.ess,
    diagnostics.mcse,
    diagnostics.standard_error,
    diagnostics.geweke,
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


@pytest.mark.parametrize(("name", "x"), list(samples()), ids=[name for name, _ in samples()])
@pytest.mark.filterwarnings("ignore")  # arviz warns of what it returns NaN for
def test_agrees_with_arviz(name, x):
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


# --- our standard error ---


def slow_standard_error(x):
    """The docstring's formula, with loops."""
    chains, draws = x.shape

    def covariance(series, lag):
        centred = series - series.mean()
        return sum(centred[t] * centred[t + lag] for t in range(draws - lag)) / draws

    within = np.mean([covariance(chain, 0) for chain in x])
    total = within + (x.mean(1).var(ddof=1) if chains > 1 else 0)
    pairs, lag = 0, 0
    while lag < draws - 3:  # Geyer's initial positive sequence, on chains that are not split
        rho = []
        for k in (lag, lag + 1):
            covariance_of_chains = np.mean([covariance(chain, k) for chain in x])
            rho.append(1 - (within * draws / (draws - 1) - covariance_of_chains) / total)
        if lag == 0:
            rho[0] = 1.0
        if sum(rho) <= 0:
            break
        pairs, lag = pairs + 1, lag + 2
    pairs = min(pairs, max(0, (draws - 3) // 2))
    T = 2 * pairs + 1
    means = x.mean(0)
    long_run = covariance(means, 0) + 2 * sum(
        covariance(means, k) for k in range(1, min(T, draws - 1) + 1)
    )
    V = max(long_run, 0) / draws / max(1 - (2 * T + 1) / draws, 0.2)

    def t(freedom):
        freedom = max(freedom, 2)
        return 1 + 1.2104 / freedom + 1.4396 / freedom**2 + 1.3038 / freedom**3

    nu = draws / (2 * T + 1)
    return max(t(chains * nu) * float(diagnostics.mcse(x)), t(nu) * np.sqrt(V))


@pytest.mark.parametrize("shape", [(4, 60), (1, 60), (3, 31), (2, 5), (1, 4)])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_standard_error_is_the_formula_of_its_docstring(shape, shared):
    for seed in range(5):
        x = autoregressive((1, *shape), 0.6, shared=shared, seed=seed)[0]
        assert diagnostics.standard_error(x) == pytest.approx(slow_standard_error(x), rel=1e-4)


def test_student_factor_is_the_ratio_of_quantiles():
    nu = np.array([2.0, 3.0, 5.0, 10.0, 100.0, 1e6])
    exact = scipy.stats.t.ppf(0.975, nu) / scipy.stats.norm.ppf(0.975)
    np.testing.assert_allclose(diagnostics._student(nu), exact, rtol=0.04)
    np.testing.assert_allclose(diagnostics._student(nu[2:]), exact[2:], rtol=2e-3)


def coverage(x):
    return np.mean(np.abs(x.mean((1, 2))) <= 1.96 * diagnostics.standard_error(x))


SHARED = [(1, 0.0), (2, 0.0), (2, 0.9), (4, 0.0), (4, 0.5), (4, 0.9)]
"""Number of chains, and the share of their noise that is common."""


@pytest.mark.parametrize(("chains", "shared"), SHARED)
@pytest.mark.parametrize("draws", [200, 1000])
@pytest.mark.parametrize("rho", [-0.3, 0.5, 0.95])
def test_coverage(chains, draws, rho, shared):
    """95 % intervals cover in 90-99 % of 250 repetitions, allowing for three binomial errors."""
    rate = coverage(autoregressive((250, chains, draws), rho, shared=shared))
    assert rate > 0.9 - 3 * np.sqrt(0.9 * 0.1 / 250)
    assert rate < 0.99 + 3 * np.sqrt(0.99 * 0.01 / 250)


@pytest.mark.slow
@pytest.mark.parametrize("components", [0, 4])
@pytest.mark.parametrize(("chains", "shared"), SHARED)
@pytest.mark.parametrize("draws", [200, 1000])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.95])
def test_coverage_with_many_repetitions(components, chains, draws, rho, shared):
    rate = coverage(
        autoregressive((2000, chains, draws), rho, shared=shared, components=components)
    )
    print(f"coverage {components=} {chains=} {draws=} {rho=} {shared=}: {rate:.3f}")
    assert 0.885 < rate < 0.995  # 90-99 %, less two binomial errors


@pytest.mark.parametrize("num_draws", [100, 400])
def test_coverage_of_the_exact_law_of_sgld_with_shared_minibatches_and_no_burnin(num_draws):
    """λ̂ on a noisy quadratic, chains from w*, draws measured on the next step's minibatch."""
    law = SGLDLaw(
        np.geomspace(0.1, 4, 6), lr=0.02, localization=2.0, n_beta=10.0, gradient_variance=1.0
    )
    rng = np.random.default_rng(0)
    v = np.zeros((250, 4, 6))
    draws = np.empty((250, 4, num_draws))
    noise = rng.standard_normal((250, 1, 6))
    for t in range(num_draws):
        force = law.n_beta * noise
        v = v * law.decay - law.lr / 2 * force + np.sqrt(law.lr) * rng.standard_normal(v.shape)
        noise = rng.standard_normal((250, 1, 6))
        draws[..., t] = law.n_beta * (0.5 * law.curvatures * v**2 + noise * v).sum(-1)
    error = diagnostics.standard_error(draws)
    rate = np.mean(np.abs(draws.mean((1, 2)) - law.expected(num_draws)) < 1.96 * error)
    assert rate > 0.9 - 3 * np.sqrt(0.9 * 0.1 / 250)
    assert np.median(error) == pytest.approx(law.standard_error(num_draws, 4), rel=0.2)


def test_usual_error_falls_short_where_chains_share_noise_and_ours_does_not():
    x = autoregressive((400, 4, 200), 0.5, shared=0.9)
    usual = np.mean(np.abs(x.mean((1, 2))) <= 1.96 * diagnostics.mcse(x))
    assert usual < 0.75
    assert coverage(x) > 0.92


def test_standard_error_is_hardly_larger_than_needed_for_long_chains():
    x = autoregressive((200, 4, 1000), 0.5)
    ratio = np.median(diagnostics.standard_error(x)) / x.mean((1, 2)).std()
    assert 0.9 < ratio < 1.2


# --- drift ---


def test_geweke_is_calibrated_on_stationary_chains_and_sees_a_rise():
    x = autoregressive((400, 4, 200), 0.5)
    z = diagnostics.geweke(x)
    assert 0.75 < z.std() < 1.1
    assert np.mean(np.abs(z) > 1.96) < 0.1
    rising = x + 3 * (1 - np.exp(-np.arange(200) / 20))
    assert (diagnostics.geweke(rising) < -3).mean() > 0.95
    np.testing.assert_allclose(diagnostics.geweke(-rising), -diagnostics.geweke(rising))


def test_geweke_is_the_difference_of_its_parts():
    x = autoregressive((1, 2, 50), 0.3)[0]
    z = diagnostics.geweke(x, first=0.2, last=0.4)
    difference = x[:, :10].mean() - x[:, -20:].mean()
    assert z == pytest.approx(difference / (diagnostics.standard_error(x[:, -20:]) * np.sqrt(3)))


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
    scale = 2.5 if diagnostic in (diagnostics.mcse, diagnostics.standard_error) else 1.0
    assert diagnostic(x[[2, 0, 1]]) == pytest.approx(diagnostic(x), rel=1e-9)
    assert diagnostic(2.5 * x + 7) == pytest.approx(scale * diagnostic(x), rel=1e-9)


def test_constant_draws():
    x = np.full((2, 20), 3.0)
    assert diagnostics.ess(x) == 40
    assert diagnostics.mcse(x) == diagnostics.standard_error(x) == diagnostics.geweke(x) == 0
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


def test_unknown_method_and_impossible_shares_are_refused():
    with pytest.raises(InputError, match="method must be 'bulk' or 'mean'; got 'tail'"):
        diagnostics.ess(np.ones((2, 9)), method="tail")
    for shares in ((0.0, 0.5), (0.1, 1.0), (0.6, 0.5)):
        with pytest.raises(InputError, match=r"shares in \(0, 1\) with first \+ last ≤ 1"):
            diagnostics.geweke(np.ones((2, 9)), *shares)
