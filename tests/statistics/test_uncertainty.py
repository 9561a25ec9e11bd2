"""Errors of means over draws: closed forms, slow loops, scipy, and chains with known laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from rllc.errors import InputError
from rllc.statistics import agreement, autocovariance, biases, quantiles, uncertainty
from rllc.statistics.uncertainty import Mean, contrast, differences, mean_of_draws
from rllc.theory import SGLDLaw

ALARM = 1e-6
"""Probability with which a test of chance may fail though the code is right."""


def squares(shape, law, rng):
    """λ̂'s draws [repetition, chain, draw] of stationary full-batch SGLD on a quadratic."""
    repetitions, chains, draws = shape
    lanes = (repetitions, chains, len(law.curvatures))
    position = np.sqrt(law.variance) * rng.standard_normal(lanes)
    x = np.empty(shape)
    for t in range(draws):
        x[..., t] = law.n_beta / 2 * (law.curvatures * position**2).sum(-1)
        noise = np.sqrt(law.innovation) * rng.standard_normal(lanes)
        position = law.decay * position + noise
    return x


def quadratic(lr=1e-3, n_beta=30.0, dim=40):
    curvatures = 0.9 * np.arange(1, dim + 1) ** -0.5
    return SGLDLaw(curvatures, lr=lr, localization=200.0, n_beta=n_beta)


def at_most(probability, repetitions):
    """The count of events that chance exceeds once in a million times."""
    return scipy.stats.binom.isf(ALARM, repetitions, probability)


# --- quantiles, against scipy ---


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999, 0.95 ** (1 / 1000)])
def test_student_quantile_is_scipys(level):
    dof = np.array([0.5, 1, 1.5, 2, 3, 7.3, 30, 1e3, 1e5, 1e9, np.inf])
    expected = scipy.stats.t.isf((1 - level) / 2, dof)
    assert quantiles.student_quantile(level, dof) == pytest.approx(expected, rel=1e-5)


def test_student_tail_is_scipys_down_to_tiny_probabilities():
    t = np.array([0.0, 1e-3, 1.0, 5.0, -5.0, 80.0])[:, None]
    dof = np.array([1.0, 3.0, 40.0, 1e4])
    expected = 2 * scipy.stats.t.sf(np.abs(t), dof)
    assert quantiles.student_tail(t, dof) == pytest.approx(expected, rel=1e-9, abs=1e-290)


@pytest.mark.parametrize("dofs", [(1, 3), (6, 50), (6, 1e5), (0.7, 1e4), (200, 300)])
def test_f_tail_is_scipys(dofs):
    ratio = np.array([0.0, 0.1, 1.0, 3.0, 30.0, 1e6])
    expected = scipy.stats.f.sf(ratio, *dofs)
    assert quantiles.f_tail(ratio, *dofs) == pytest.approx(expected, rel=1e-8, abs=1e-290)


def test_unknown_degrees_of_freedom_give_no_quantile():
    assert np.isnan(quantiles.student_quantile(0.95, [np.nan, 3.0])).tolist() == [True, False]


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_probability(level):
    with pytest.raises(InputError, match="level must be between 0 and 1"):
        quantiles.student_quantile(level, 3)


# --- the error of a mean ---


def slow_standard_error(x, r):
    """The formula of the docstring by loops, for one refinement and chains that share nothing."""
    chains, draws = x.shape
    own = (x - x.mean(0)) * math.sqrt(chains / (chains - 1))
    covariance = []
    for lag in range(draws):
        products = [own[c, t] * own[c, t + lag] for c in range(chains) for t in range(draws - lag)]
        covariance.append(np.mean(products))
    last = min(draws - 1, max(4, math.ceil(3 / -math.log(r))))
    above = below = 0.0
    for lag in range(1, last + 1):
        above += (draws - lag) * r**lag * covariance[lag]
        below += (draws - lag) * r ** (2 * lag)
    amplitude = min(max(above / below, 0), covariance[0])
    time = 1 + 2 * sum((1 - lag / draws) * r**lag for lag in range(1, draws))
    known = amplitude * time + covariance[0] - amplitude
    geyer, last_pair = -covariance[0], np.inf
    for lag in range(0, draws // 2 * 2, 2):
        pair = sum(covariance[k] * (1 - k / draws) for k in (lag, lag + 1))
        if pair <= 0:
            break
        last_pair = min(last_pair, pair)
        geyer += 2 * last_pair
    variance = max(known, geyer)
    dof = (chains - 1) * max(1, draws * (1 - r) / (1 + r))
    between = draws * x.mean(1).var(ddof=1)
    pooled = (dof * variance + (chains - 1) * between) / (dof + chains - 1)
    return math.sqrt(max(variance, pooled) / chains / draws), dof


@pytest.mark.parametrize("shape", [(1, 4, 40), (1, 4, 41), (1, 16, 9)])
@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_the_error_is_the_documented_formula(shape, lr):
    x = squares(shape, quadratic(lr), np.random.default_rng(0))
    r = biases.relaxation(lr, 200.0)
    mean = mean_of_draws(x, r, shared=False)
    error, dof = slow_standard_error(x[0], r)
    assert mean.standard_error[0] == pytest.approx(error)
    assert mean.dof[0] == pytest.approx(dof)


def test_of_independent_draws_it_is_the_pooled_standard_deviation():
    x = np.random.default_rng(0).standard_normal((5, 4, 1000))
    mean = mean_of_draws(x, 0.0, shared=False)
    pooled = np.sqrt((x - x.mean(1, keepdims=True)).var(axis=(1, 2), ddof=0) * 4 / 3 / 4000)
    # Means of chains that happen to lie apart may raise it, by their share of the freedom: 1/1000.
    assert (mean.standard_error >= pooled * (1 - 1e-9)).all()
    assert mean.standard_error == pytest.approx(pooled, rel=0.01)


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
@pytest.mark.parametrize(("chains", "draws"), [(4, 40), (4, 200), (16, 50)])
def test_error_and_coverage_on_a_quadratic_with_known_law(lr, chains, draws):
    repetitions = 400
    law = quadratic(lr)
    x = squares((repetitions, chains, draws), law, np.random.default_rng(draws))
    mean = mean_of_draws(x, biases.relaxation(lr, 200.0), shared=False)
    exact = law.standard_error(draws, chains, stationary=True)
    # The mean of squared errors has a relative error of √(2/dof) over repetitions, and somewhat
    # more for draws that are not Gaussian.
    chance = 5 * 1.5 * math.sqrt(2 / np.median(mean.dof) / repetitions)
    ratio = np.square(mean.standard_error).mean() / exact**2
    assert 0.85**2 - chance < ratio < 1.15**2 + chance
    lower, upper = np.moveaxis(mean.interval(), -1, 0)
    missed = ((law.value < lower) | (upper < law.value)).sum()
    assert missed <= at_most(0.08, repetitions)
    assert missed >= repetitions - at_most(0.98, repetitions)


def test_one_chain_alone_covers_too():
    repetitions = 400
    law = quadratic(1e-3)
    x = squares((repetitions, 1, 200), law, np.random.default_rng(3))
    lower, upper = np.moveaxis(mean_of_draws(x, 0.81).interval(), -1, 0)
    missed = ((law.value < lower) | (upper < law.value)).sum()
    assert missed <= at_most(0.09, repetitions)


def test_without_a_known_relaxation_it_covers_where_chains_are_long():
    repetitions = 400
    law = quadratic(1e-3)
    x = squares((repetitions, 4, 200), law, np.random.default_rng(4))
    lower, upper = np.moveaxis(mean_of_draws(x, None).interval(), -1, 0)
    missed = ((law.value < lower) | (upper < law.value)).sum()
    assert missed <= at_most(0.10, repetitions)


def test_what_chains_share_is_not_averaged_away():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((300, 1, 100))
    x = common + 0.5 * rng.standard_normal((300, 16, 100))
    exact = math.sqrt(1 / 100 + 0.25 / 1600)
    together = np.sqrt(np.square(mean_of_draws(x, 0.0).standard_error).mean())
    apart = np.sqrt(np.square(mean_of_draws(x, 0.0, shared=False).standard_error).mean())
    assert together == pytest.approx(exact, rel=5 * math.sqrt(1.5 / 2 / 100 / 300) + 1e-3)
    assert apart < exact / 4


def test_a_rise_that_all_chains_share_is_no_error():
    x = squares((1, 4, 90), quadratic(), np.random.default_rng(0))
    rise = x.std() * 3 * -np.exp(-np.arange(90) / 20)
    still, rising = mean_of_draws(x, 0.81), mean_of_draws(x + rise, 0.81)
    assert rising.standard_error == pytest.approx(still.standard_error, rel=0.05)


def test_chains_at_different_levels_have_a_larger_error():
    x = np.random.default_rng(0).standard_normal((4, 200))
    apart = x + np.array([0, 0, 3, 3])[:, None]
    between = apart.mean(1).std(ddof=1) / 2
    for relaxation in (None, 0.81, 0.99):
        assert mean_of_draws(apart, relaxation).standard_error > 0.8 * between


@pytest.mark.parametrize("relaxation", [None, 0.0, 0.81])
def test_scale_offset_and_order_of_chains_do_not_matter(relaxation):
    x = squares((3, 4, 50), quadratic(), np.random.default_rng(0))
    plain = mean_of_draws(x, relaxation)
    other = mean_of_draws(7 * x[:, ::-1] + 100, relaxation)
    assert other.standard_error == pytest.approx(7 * plain.standard_error)
    assert other.dof == pytest.approx(plain.dof)


def test_draws_that_are_all_equal_have_no_error():
    for relaxation in (None, 0.0, 0.81):
        mean = mean_of_draws(np.full((4, 50), 3.0), relaxation)
        assert mean.value == 3
        assert mean.standard_error == 0
        assert np.isfinite(mean.dof)


@pytest.mark.parametrize(
    "of",
    [
        mean_of_draws,
        agreement.drift,
        agreement.disagreement,
        lambda x, _: (agreement.heavy_tails(x),),
    ],
)
def test_a_draw_that_is_not_finite_spoils_its_row_and_no_other(of):
    x = np.random.default_rng(0).standard_normal((3, 4, 50))
    x[1, 2, 7] = np.nan
    x[2, 0, 0] = np.inf
    for numbers in of(x, 0.81):
        assert np.isnan(numbers).tolist() == [False, True, True]


def test_few_draws_have_a_mean_and_no_error():
    mean = mean_of_draws(np.ones((4, 3)), 0.81)
    assert mean.value == 1
    assert np.isnan(mean.standard_error)
    assert np.isnan(mean.dof)


@pytest.mark.parametrize("x", [np.ones(5), np.ones((4, 0)), np.array([["a"]])])
def test_refuses_what_are_no_draws(x):
    with pytest.raises(InputError, match="expected real numbers"):
        mean_of_draws(x, 0.81)


@pytest.mark.parametrize("relaxation", [-0.1, 1.0, 2.0])
def test_refuses_a_relaxation_that_never_ends(relaxation):
    with pytest.raises(InputError, match="0 ≤ r < 1"):
        mean_of_draws(np.ones((4, 5)), relaxation)


# --- intervals and contrasts ---


def test_an_interval_is_students():
    mean = Mean(np.array([1.0, 2.0]), np.array([0.1, 0.2]), np.array([3.0, 12.0]))
    expected = scipy.stats.t.interval(0.9, [3, 12], loc=[1, 2], scale=[0.1, 0.2])
    assert mean.interval(0.9) == pytest.approx(np.transpose(expected))
    assert mean.imprecision(0.9) == pytest.approx((expected[1] - [1, 2]) / [1, 2])


def test_p_value_and_interval_agree():
    mean = Mean(np.array(0.4), np.array(0.1), np.array(5.0))
    level = 1 - float(mean.p_value())
    assert mean.interval(level)[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_simultaneous_intervals_hold_together(correlation):
    repetitions = 3000
    rng = np.random.default_rng(0)
    common = rng.standard_normal((repetitions, 6, 1))
    own = rng.standard_normal((repetitions, 6, 16))
    samples = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    error = samples.std(1, ddof=1) / math.sqrt(6)
    mean = Mean(samples.mean(1), error, np.full(error.shape, 5.0))
    half = quantiles.student_quantile(0.95 ** (1 / 16), 5.0) * error
    one = Mean(mean.value[0], error[0], mean.dof[0])
    assert one.half_width(simultaneous=True) == pytest.approx(half[0])
    missed = (np.abs(mean.value) > half).any(1).sum()
    assert missed <= at_most(0.05, repetitions)


def test_simultaneous_intervals_do_not_count_values_without_error():
    mean = Mean(np.zeros(3), np.array([1.0, np.nan, 1.0]), np.full(3, 9.0))
    expected = scipy.stats.t.isf((1 - math.sqrt(0.95)) / 2, 9)
    assert mean.half_width(simultaneous=True)[0] == pytest.approx(expected)


def test_a_contrast_is_the_mean_of_the_combined_draws():
    x = np.random.default_rng(0).standard_normal((3, 4, 50))
    weights = np.array([[1, -1, 0], [0.5, 0.5, -1]])
    both = contrast(x, weights, 0.81)
    for row, weight in enumerate(weights):
        combined = sum(w * draws for w, draws in zip(weight, x, strict=True))
        expected = mean_of_draws(combined, 0.81)
        for numbers, number in zip(both, expected, strict=True):
            assert numbers[row] == pytest.approx(number)


def test_what_two_refinements_share_cancels_in_their_difference():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((4, 200))
    x = np.stack([shared + 0.1 * rng.standard_normal((4, 200)) for _ in range(2)])
    paired = contrast(x, [1, -1], 0.0).standard_error
    apart = math.hypot(*mean_of_draws(x, 0.0).standard_error)
    assert paired == pytest.approx(0.1 * apart, rel=0.3)


def test_differences_are_antisymmetric():
    x = np.random.default_rng(0).standard_normal((3, 4, 50))
    table = differences(x, 0.81)
    assert table.value == pytest.approx(-table.value.T)
    assert table.standard_error == pytest.approx(table.standard_error.T)
    assert np.diagonal(table.standard_error).tolist() == [0, 0, 0]
    assert table.value[0, 2] == pytest.approx(x[0].mean() - x[2].mean())


@pytest.mark.parametrize("weights", [[1, -1, 0], 1])
def test_a_contrast_needs_a_weight_for_each_refinement(weights):
    with pytest.raises(InputError, match="one weight for each refinement"):
        contrast(np.ones((2, 4, 50)), weights, 0.81)


def test_satterthwaite_of_equal_parts_adds_freedom():
    assert uncertainty.satterthwaite((2.0, 5.0), (2.0, 5.0)) == 10
    assert uncertainty.satterthwaite((2.0, 5.0), (0.0, 1.0)) == 5
    assert uncertainty.satterthwaite((0.0, 5.0), (0.0, 1.0)) == 5


# --- do chains agree, have they settled ---


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
@pytest.mark.parametrize(("chains", "draws"), [(4, 40), (4, 200), (16, 50)])
def test_healthy_chains_agree_and_are_steady(lr, chains, draws):
    repetitions = 400
    x = squares((repetitions, chains, draws), quadratic(lr), np.random.default_rng(draws))
    r = biases.relaxation(lr, 200.0)
    judged = agreement.disagreement(x, r)
    alarms = (judged.p_value < 0.001) & (judged.spread > 0.02)
    assert alarms.sum() <= at_most(0.005, repetitions)
    assert (agreement.drift(x, r).p_value() < 0.001).sum() <= at_most(0.005, repetitions)


def test_slow_chains_behind_minibatch_noise_agree():
    repetitions = 400
    rng = np.random.default_rng(0)
    x = squares((repetitions, 16, 50), quadratic(1e-4), rng)
    x = x + 2 * x.std() * rng.standard_normal(x.shape)
    judged = agreement.disagreement(x, biases.relaxation(1e-4, 200.0))
    alarms = (judged.p_value < 0.001) & (judged.spread > 0.02)
    assert alarms.sum() <= at_most(0.01, repetitions)


def test_chains_at_other_levels_disagree():
    x = squares((100, 4, 200), quadratic(dim=200), np.random.default_rng(0))
    levels = np.array([0.85, 0.85, 1.15, 1.15])[:, None]
    judged = agreement.disagreement(levels * x, 0.81)
    assert ((judged.p_value < 0.001) & (judged.spread > 0.02)).mean() > 0.9
    # The levels' own standard deviation is 0.15·√(4/3) of the mean.
    assert np.median(judged.spread) == pytest.approx(0.173, rel=0.15)


@pytest.mark.parametrize(("lr", "draws"), [(1e-3, 40), (1e-4, 200)])
def test_other_levels_are_found_nearly_as_often_as_is_possible(lr, draws):
    """By a χ² test of the same chain means that is told how far they lie apart by nature."""
    repetitions = 200
    x = squares((repetitions, 4, draws), quadratic(lr, dim=100), np.random.default_rng(0))
    natural = x.mean(-1).var(1, ddof=1).mean()
    x = np.array([0.85, 0.85, 1.15, 1.15])[:, None] * x
    best = scipy.stats.chi2.sf(3 * x.mean(-1).var(1, ddof=1) / natural, 3) < 0.001
    found = agreement.disagreement(x, biases.relaxation(lr, 200.0)).p_value < 0.001
    assert 0.1 < best.mean() < 0.95
    assert found.mean() > 0.6 * best.mean()


@pytest.mark.parametrize("relaxation", [0.0, 0.81, 0.98])
@pytest.mark.parametrize("draws", [12, 13])
def test_cosine_transforms_by_their_matrix(relaxation, draws):
    time = np.arange(draws) + 0.5
    waves = np.cos(np.pi / draws * np.outer(np.arange(1, draws), time)) * math.sqrt(2 / draws)
    x = np.random.default_rng(0).standard_normal((3, 4, draws))
    power = autocovariance.cosine_power(x)
    np.testing.assert_allclose(power, np.square(x @ waves.T).mean(1))
    lags = np.abs(np.subtract.outer(np.arange(draws), np.arange(draws)))
    expected = np.diag(waves @ relaxation**lags @ waves.T)
    variances = autocovariance.cosine_variances(relaxation, draws)
    np.testing.assert_allclose(variances, expected)


def test_disagreement_is_the_documented_formula():
    """By loops, for one refinement, with scipy's F distribution."""
    chains, draws, r = 3, 20, 0.9
    x = squares((1, chains, draws), quadratic(), np.random.default_rng(0))[0]
    x = x + 0.3 * np.arange(chains)[:, None]
    own = (x - x.mean(0)) * math.sqrt(chains / (chains - 1))
    time = [t + 0.5 for t in range(draws)]
    power, of_slow = [], []
    for k in range(1, draws):
        wave = [math.sqrt(2 / draws) * math.cos(math.pi * k * t / draws) for t in time]
        power.append(sum((chain @ wave) ** 2 for chain in own) / chains)
        pairs = itertools.product(range(draws), repeat=2)
        of_slow.append(sum(r ** abs(t - u) * wave[t] * wave[u] for t, u in pairs))
    tau = 1 + 2 * sum((1 - k / draws) * r**k for k in range(1, draws))
    total = above = 0.0
    for log_odds in np.linspace(-7, 7, 29):
        share = 1 / (1 + math.exp(-log_odds))
        expected = [share * q + 1 - share for q in of_slow]
        scaled = [p / v for p, v in zip(power, expected, strict=True)]
        variance = np.mean(scaled)
        likelihood = variance ** (-(chains - 1) * (draws - 1) / 2)
        likelihood *= np.prod(expected) ** (-(chains - 1) / 2)
        ratio = draws * x.mean(1).var(ddof=1) / variance / (share * tau + 1 - share)
        dofs = (chains - 1, (chains - 1) * (draws - 1))
        above += likelihood * scipy.stats.f.sf(ratio, *dofs)
        total += likelihood
    assert agreement.disagreement(x, r).p_value == pytest.approx(above / total)


def test_chains_that_do_not_move_at_other_levels_disagree():
    judged = agreement.disagreement(np.ones((4, 40)) * np.arange(1, 5)[:, None], 0.81)
    assert judged.p_value == 0
    assert judged.spread == pytest.approx(np.std(np.arange(1, 5), ddof=1) / 2.5)


def test_a_common_rise_is_drift_and_no_disagreement():
    x = squares((1, 4, 90), quadratic(dim=200), np.random.default_rng(0))
    rise = x.mean() * np.linspace(-1, 1, 90)
    still, rising = (agreement.disagreement(v, 0.81) for v in (x, x + rise))
    assert rising.ratio == pytest.approx(still.ratio)
    assert agreement.drift(x + rise, 0.81).p_value() < 1e-3
    expected = agreement.drift(x, 0.81).value + x.mean() * 90 / 89
    assert agreement.drift(x + rise, 0.81).value == pytest.approx(expected)


def test_one_chain_has_nobody_to_disagree_with():
    x = np.random.default_rng(0).standard_normal((1, 100))
    assert np.isnan(agreement.disagreement(x, 0.81)).all()
    assert np.isnan(agreement.drift(x, 0.81)).all()


def test_equal_draws_agree():
    judged = agreement.disagreement(np.ones((4, 40)), 0.81)
    assert judged.ratio == 0
    assert judged.spread == 0
    assert judged.p_value == 1


def test_heavy_tails_by_a_slow_loop_and_for_gaussian_draws():
    x = np.random.default_rng(0).standard_normal((3, 4, 500))
    for row, share in zip(x, agreement.heavy_tails(x), strict=True):
        steps = sorted((b - a) ** 2 for chain in row for a, b in itertools.pairwise(chain))
        assert share == pytest.approx(sum(steps[-40:]) / sum(steps))
    # E[z²; |z| > q] = 2(q φ(q) + P(z > q)) for the 2 % beyond q.
    q = scipy.stats.norm.isf(0.01)
    expected = 2 * (q * scipy.stats.norm.pdf(q) + 0.01)
    assert agreement.heavy_tails(x).mean() == pytest.approx(expected, rel=0.1)


# --- what shifts the estimate ---


@pytest.mark.parametrize("steps", [(40, 0, 1), (200, 0, 1), (30, 17, 3)])
def test_share_missing_is_the_law_of_flat_directions(steps):
    draws, burnin, apart = steps
    law = SGLDLaw(np.full(3, 1e-12), lr=1e-3, localization=200.0, n_beta=30.0)
    mean = law.expected(draws, num_burnin_steps=burnin, num_steps_bw_draws=apart)
    missing = biases.share_missing(1e-3, 200.0, draws, burnin, apart)
    assert missing == pytest.approx(1 - mean / law.value)


def test_relaxation_is_the_law_of_flat_directions():
    law = SGLDLaw(np.full(3, 1e-12), lr=1e-4, localization=200.0, n_beta=30.0)
    assert biases.relaxation(1e-4, 200.0, 5) == pytest.approx(law.autocorrelation(5))
    steps = 300
    left = law.autocorrelation(steps)
    assert biases.relaxation_times(1e-4, 200.0, steps) == pytest.approx(-math.log(left))


def test_where_the_prior_holds_nothing_there_is_no_relaxation():
    assert biases.relaxation(1e-3, 0.0) is None
    assert biases.relaxation_times(1e-3, 0.0, 100) == 0
    assert biases.share_missing(1e-3, 0.0, 100) == 1
    assert biases.relaxation_times(0.01, 200.0, 1) == math.inf


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pairing_bias_by_all_orders_of_an_epoch(count):
    """E[nβ g_t·v_t] over all orders of K minibatches whose gradients sum to 0."""
    rng = np.random.default_rng(count)
    lr, localization, n_beta, curvature = 1e-3, 200.0, 300.0, 0.4
    gradients = rng.standard_normal(count)
    gradients -= gradients.mean()
    decay = 1 - lr * (n_beta * curvature + localization) / 2
    gained = []
    for order in itertools.permutations(gradients):
        position = 0.0
        for gradient in order:
            gained.append(n_beta * gradient * position)
            position = decay * position - lr / 2 * n_beta * gradient
    bias = biases.pairing_bias(
        [curvature],
        gradients.var(),
        count,
        lr=lr,
        localization=localization,
        n_beta=n_beta,
    )
    assert bias == pytest.approx(np.mean(gained))


def test_pairing_bias_of_one_minibatch_is_none_and_of_none_an_error():
    settings = {"lr": 1e-3, "localization": 200.0, "n_beta": 30.0}
    assert biases.pairing_bias([1.0], 0.1, 1, **settings) == 0
    with pytest.raises(InputError, match="at least 1"):
        biases.pairing_bias([1.0], 0.1, 0, **settings)


def test_gradient_noise_adds_what_the_law_says():
    settings = {"lr": 1e-3, "localization": 200.0, "n_beta": 300.0}
    curvatures = np.array([0.1, 1.0, 4.0])
    noise = np.array([0.01, 0.0, 0.2])
    with_noise = SGLDLaw(curvatures, gradient_variance=noise, **settings).value
    without = SGLDLaw(curvatures, **settings).value
    added = biases.added_by_gradient_noise(curvatures, noise, **settings)
    assert added == pytest.approx(with_noise - without)


def test_corrected_takes_off_what_the_step_adds():
    curvatures = np.array([0.1, 3.0, 30.0])
    law = SGLDLaw(curvatures, lr=1e-3, localization=200.0, n_beta=30.0)
    rate = 30.0 * curvatures + 200.0
    # The mean of ⅛ nβ δ·(∇ℓ(v′) − ∇ℓ(v)) on a quadratic: steps have E δ² = 2(1 − ρ)σ².
    step = 30.0 / 8 * (curvatures * 2 * (1 - law.decay) * law.variance).sum()
    raw = Mean(np.array(law.value), np.array(0.3), np.array(6.0))
    probes = step + np.array([[-0.1, 0.1, 0.0], [0.0, 0.1, -0.1]])
    exact = (15 * curvatures / rate).sum()
    better = biases.corrected(raw, probes)
    assert better.value == pytest.approx(exact)
    error = math.hypot(0.3, probes.std(ddof=1) / math.sqrt(6))
    assert better.standard_error == pytest.approx(error)
    assert 6 < better.dof < 11


def test_the_control_is_the_prior_and_the_ratio_what_the_prior_leaves():
    rng = np.random.default_rng(0)
    curvatures = np.array([0.2, 2.0, 20.0] * 20)
    law = SGLDLaw(curvatures, lr=1e-4, localization=200.0, n_beta=30.0)
    deviation = biases.prior_deviation(1e-4, 200.0)
    flat = SGLDLaw(np.zeros(1), lr=1e-4, localization=200.0, n_beta=30.0, gradient_variance=1e-30)
    assert deviation**2 == pytest.approx(flat.variance[0])
    positions = deviation * rng.standard_normal((64, 50, 60))
    control = biases.control_mean(15 * (curvatures * positions**2).sum(-1), shared=False)
    exact_control = 15 * curvatures.sum() * deviation**2
    assert abs(control.value - exact_control) < 5 * control.standard_error
    estimate = Mean(np.array(law.value), np.array(0.1), np.array(20.0))
    ratio = biases.ratio(estimate, control)
    exact = 200.0 * (curvatures / (30 * curvatures + 200)).sum() / curvatures.sum()
    assert abs(ratio.value - exact) < 5 * ratio.standard_error + 0.01 * exact


def test_the_error_of_a_ratio_is_its_spread():
    rng = np.random.default_rng(0)
    above = Mean(3 + 0.1 * rng.standard_normal(20_000), np.full(20_000, 0.1), np.full(20_000, 9.0))
    below = Mean(4 + 0.2 * rng.standard_normal(20_000), np.full(20_000, 0.2), np.full(20_000, 9.0))
    ratio = biases.ratio(above, below)
    assert ratio.value.std() == pytest.approx(ratio.standard_error.mean(), rel=0.04)


def test_a_ratio_to_what_may_be_zero_is_not_a_number():
    one = Mean(np.array(1.0), np.array(0.1), np.array(9.0))
    nothing = Mean(np.array(0.1), np.array(0.1), np.array(9.0))
    assert np.isnan(biases.ratio(one, nothing)).all()
    zero = Mean(np.array(0.0), np.array(0.0), np.array(9.0))
    assert np.isnan(biases.ratio(one, zero)).all()


@pytest.mark.parametrize(("lr", "localization"), [(1e-3, 0.0), (0.1, 200.0)])
def test_no_control_without_a_prior_that_holds(lr, localization):
    with pytest.raises(InputError, match="need 0 < lr·localization < 4"):
        biases.prior_deviation(lr, localization)


def test_an_independent_mean_is_the_textbooks():
    x = np.random.default_rng(0).standard_normal((3, 20))
    mean = biases.independent_mean(x)
    assert mean.standard_error == pytest.approx(scipy.stats.sem(x, axis=1))
    assert mean.dof.tolist() == [19, 19, 19]
    assert np.isnan(biases.independent_mean([1.0]).standard_error)
