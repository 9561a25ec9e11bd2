"""The exact law of SGLD on quadratics, against simulation and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rllc.errors import InputError
from rllc.theory import SGLDLaw

FALSE_ALARM = 4.9  # two-sided normal quantile of 1e-6


class Chains:
    """Simulated SGLD on a quadratic: independent experiments of chains that share minibatches."""

    def __init__(
        self,
        law,
        experiments,
        chains,
        num_draws,
        *,
        num_burnin_steps=0,
        num_steps_bw_draws=1,
        stationary=False,
    ):
        rng = np.random.default_rng(0)
        h, noise = law.curvatures, np.sqrt(law.gradient_variance)
        v = np.zeros((experiments, chains, h.size))
        if stationary:  # correlated as chains are that saw the same minibatches for ever
            shared = 1 - law.lr / law.innovation
            v += np.sqrt(law.variance * shared) * rng.standard_normal((experiments, 1, h.size))
            v += np.sqrt(law.variance * (1 - shared)) * rng.standard_normal(v.shape)
        self.next, self.previous = [], []
        g = noise * rng.standard_normal((experiments, 1, h.size))
        for step in range(1, num_burnin_steps + num_draws * num_steps_bw_draws + 1):
            drift = law.n_beta * (h * v + g) + law.localization * v
            v = v - law.lr / 2 * drift + math.sqrt(law.lr) * rng.standard_normal(v.shape)
            old, g = g, noise * rng.standard_normal((experiments, 1, h.size))
            after = step - num_burnin_steps
            if after > 0 and after % num_steps_bw_draws == 0:
                self.next.append(law.n_beta * (0.5 * h * v**2 + g * v).sum(-1))
                self.previous.append(law.n_beta * (0.5 * h * v**2 + old * v).sum(-1))
        self.next = np.stack(self.next, -1)  # [experiment, chain, draw]
        self.previous = np.stack(self.previous, -1)


def z_mean(sample, truth):
    return (sample.mean() - truth) / (sample.std(ddof=1) / math.sqrt(sample.size))


def z_variance(sample, truth):
    return z_mean((sample - sample.mean()) ** 2, truth * (1 - 1 / sample.size))


NOISELESS = SGLDLaw(np.array([0.3, 1.0, 4.0]), lr=0.02, localization=2.0, n_beta=10.0)
NOISY = SGLDLaw(np.array([0.3, 1.0, 4.0, 0.0]), 0.02, 2.0, 10.0, np.array([0.5, 2.0, 1.0, 0.3]))
STEEP = SGLDLaw(
    np.array([1.0, 18.0]), lr=0.02, localization=0.0, n_beta=10.0, gradient_variance=0.2
)  # ρ < 0


@pytest.mark.parametrize("law", [NOISELESS, NOISY, STEEP])
@pytest.mark.parametrize(
    "design",
    [
        {"num_draws": 20},
        {"num_draws": 10, "num_burnin_steps": 5, "num_steps_bw_draws": 3},
        {"num_draws": 20, "stationary": True},
        {"num_draws": 8, "num_steps_bw_draws": 2, "stationary": True},
    ],
)
def test_mean_and_standard_error_against_simulation(law, design):
    stationary = design.get("stationary", False)
    chains = Chains(law, 8000, 3, **design)
    estimates = chains.next.mean((1, 2))
    start = {key: value for key, value in design.items() if key != "stationary"}
    assert abs(z_mean(estimates, law.value if stationary else law.expected(**start))) < FALSE_ALARM
    assert abs(z_variance(estimates, law.standard_error(num_chains=3, **design) ** 2)) < FALSE_ALARM
    alone = chains.next[:, 0].mean(-1)
    assert abs(z_variance(alone, law.standard_error(num_chains=1, **design) ** 2)) < FALSE_ALARM


@pytest.mark.parametrize("law", [NOISELESS, NOISY, STEEP])
def test_variance_and_autocorrelation_of_draws_against_simulation(law):
    draws = Chains(law, 20000, 1, 4, stationary=True).next[:, 0]
    assert abs(z_variance(draws[:, 0], law.draw_variance)) < FALSE_ALARM
    for lag in (1, 3):
        products = (draws[:, 0] - law.value) * (draws[:, lag] - law.value)
        assert abs(z_mean(products, law.autocorrelation(lag) * law.draw_variance)) < FALSE_ALARM


def test_measuring_on_the_previous_minibatch_is_biased_and_on_the_next_is_not():
    chains = Chains(NOISY, 20000, 1, 1, stationary=True)
    shift = -0.5 * NOISY.lr * NOISY.n_beta**2 * NOISY.gradient_variance.sum()
    assert abs(z_mean(chains.next.ravel(), NOISY.value)) < FALSE_ALARM
    assert abs(z_mean(chains.previous.ravel(), NOISY.value + shift)) < FALSE_ALARM
    assert abs(z_mean(chains.previous.ravel(), NOISY.value)) > 10


def test_value_is_the_formula_of_the_paper():
    a = 10.0 * NOISELESS.curvatures + 2.0
    assert NOISELESS.value == pytest.approx(
        (5.0 * NOISELESS.curvatures / (a * (1 - 0.02 * a / 4))).sum(), rel=1e-12
    )
    more = 1 + 0.02 / 4 * 100.0 * NOISY.gradient_variance
    np.testing.assert_allclose(NOISY.variance[:3], more[:3] / (a * (1 - 0.02 * a / 4)))


def test_transient_law_starts_at_zero_and_ends_stationary():
    assert NOISY.value_after(0) == 0
    assert NOISY.value_after(1) == pytest.approx(
        0.5 * 10 * (NOISY.curvatures * NOISY.innovation).sum()
    )
    assert NOISY.value_after(10**6) == pytest.approx(NOISY.value, rel=1e-12)
    assert NOISY.expected(5, num_burnin_steps=10**6) == pytest.approx(NOISY.value)
    late = NOISY.standard_error(50, 4, num_burnin_steps=10**6)
    assert late == pytest.approx(NOISY.standard_error(50, 4, stationary=True), rel=1e-9)


def test_variance_after_is_the_sum_over_steps_also_when_flat_or_unstable():
    law = SGLDLaw(
        np.array([-1.0, 0.0, 1e-14, 1.0, 20.0, 30.0]), lr=0.1, localization=0.0, n_beta=1.0
    )
    for steps in (1, 2, 7):
        brute = sum(law.innovation * law.decay ** (2 * j) for j in range(steps))
        np.testing.assert_allclose(law.variance_after(steps), brute, rtol=1e-12)


def test_autocorrelation_time_is_the_sum_and_the_limit_of_the_standard_error():
    one = SGLDLaw([1.0], lr=0.02, localization=2.0, n_beta=10.0)
    rho = one.decay[0]
    assert one.autocorrelation_time() == pytest.approx((1 + rho**2) / (1 - rho**2))
    for law in (NOISELESS, STEEP):
        for apart in (1, 3):
            summed = 1 + 2 * sum(law.autocorrelation(apart * k) for k in range(1, 500))
            assert law.autocorrelation_time(apart) == pytest.approx(summed, rel=1e-9)
        error = law.standard_error(5000, stationary=True)
        assert 5000 * error**2 / law.draw_variance == pytest.approx(
            law.autocorrelation_time(), rel=1e-2
        )


def test_without_gradient_noise_shared_minibatches_are_no_matter_and_with_it_they_are():
    assert NOISELESS.standard_error(30, 4) == NOISELESS.standard_error(
        30, 4, shared_minibatches=False
    )
    assert NOISELESS.standard_error(30, 4) == pytest.approx(NOISELESS.standard_error(30) / 2)
    assert NOISY.standard_error(30, 4) > 1.1 * NOISY.standard_error(30, 4, shared_minibatches=False)
    assert NOISY.standard_error(30, 4, shared_minibatches=False) == pytest.approx(
        NOISY.standard_error(30) / 2
    )


def test_flat_directions_without_localization_do_not_count():
    flat = SGLDLaw([1.0, 0.0], lr=0.01, localization=0.0, n_beta=10.0)
    bent = SGLDLaw([1.0], lr=0.01, localization=0.0, n_beta=10.0)
    assert flat.stable
    assert flat.value == bent.value
    assert flat.standard_error(10, 2, stationary=True) == bent.standard_error(
        10, 2, stationary=True
    )
    assert math.isnan(SGLDLaw([0.0], lr=0.01, localization=1.0, n_beta=10.0).autocorrelation(1))
    assert math.isnan(SGLDLaw([0.0], lr=0.01, localization=1.0, n_beta=10.0).autocorrelation_time())


def test_largest_stable_step_size():
    law = SGLDLaw([2.0, 1.0], lr=0.1, localization=1.0, n_beta=10.0)
    assert law.max_lr == pytest.approx(4 / 21)
    assert SGLDLaw([2.0, 1.0], law.max_lr * 0.999, 1.0, 10.0).stable
    assert not SGLDLaw([2.0, 1.0], law.max_lr * 1.001, 1.0, 10.0).stable
    assert SGLDLaw([0.0], 1.0, 0.0, 1.0).max_lr == math.inf


def test_the_law_keeps_its_own_copy():
    h = np.ones(3)
    law = SGLDLaw(h, 0.01, 1.0, 10.0)
    h[0] = 100
    assert law.curvatures[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        law.curvatures[0] = 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SGLDLaw([], 0.1, 1.0, 1.0), r"curvatures must be finite numbers \[dim\]"),
        (lambda: SGLDLaw([np.inf], 0.1, 1.0, 1.0), r"curvatures must be finite numbers \[dim\]"),
        (
            lambda: SGLDLaw([1.0, 2.0], 0.1, 1.0, 1.0, [1.0]),
            r"gradient_variance must be one number or \[2\]",
        ),
        (lambda: SGLDLaw([1.0], 0.1, 1.0, 1.0, -1.0), "gradient_variance must be one number"),
        (lambda: SGLDLaw([1.0], 0.0, 1.0, 1.0), "lr must be finite and > 0; got 0.0"),
        (lambda: SGLDLaw([1.0], 0.1, -1.0, 1.0), "localization must be finite and ≥ 0; got -1.0"),
        (lambda: SGLDLaw([1.0], 0.1, 1.0, math.nan), "n_beta must be finite and > 0; got nan"),
        (lambda: SGLDLaw([1.0], 5.0, 0.0, 1.0).value, "no stationary law.*choose lr < 4"),
        (lambda: SGLDLaw([-1.0], 0.1, 0.0, 1.0).draw_variance, "no stationary law"),
        (lambda: SGLDLaw([1.0], 5.0, 0.0, 1.0).autocorrelation_time(), "no stationary law"),
        (
            lambda: SGLDLaw([1.0], 5.0, 0.0, 1.0).standard_error(3, stationary=True),
            "no stationary law",
        ),
        (lambda: NOISY.value_after(-1), "steps must be an integer ≥ 0; got -1"),
        (lambda: NOISY.expected(0), "num_draws must be an integer ≥ 1; got 0"),
        (lambda: NOISY.expected(1, num_burnin_steps=-1), "num_burnin_steps must be an integer ≥ 0"),
        (lambda: NOISY.standard_error(1, 0), "num_chains must be an integer ≥ 1; got 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
