"""Learning coefficients against independent forms, brute force and Monte Carlo; the SGLD law against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rllc import theory
from rllc.errors import InputError
from rllc.theory import SGLDLaw

FALSE_ALARM = 4.9  # two-sided normal quantile of 1e-6


# --- learning coefficients ---


def test_regular_is_half_the_dimension():
    assert theory.regular(7) == (3.5, 1)


@pytest.mark.parametrize(
    ("k", "h", "expected"),
    [
        ([1], None, (0.5, 1)),
        ([1, 1, 1], None, (0.5, 3)),
        ([1, 2], None, (0.25, 1)),
        ([1, 2], [0, 1], (0.5, 2)),
        ([0, 3], [0, 1], (1 / 3, 1)),
        ([3, 3, 1], [1, 1, 0], (1 / 3, 2)),
    ],
)
def test_normal_crossing(k, h, expected):
    assert theory.normal_crossing(k, h) == pytest.approx(expected)


def test_normal_crossing_by_monte_carlo_volumes():
    """K = w1² w2⁴: the slope of log V against log t over four decades is λ = 1/4."""
    w = np.random.default_rng(0).random((2, 1_000_000))
    K = w[0] ** 2 * w[1] ** 4
    small, large = np.count_nonzero(K < 1e-12), np.count_nonzero(K < 1e-8)
    slope, error = (
        math.log(large / small) / math.log(1e4),
        math.sqrt(1 / small - 1 / large) / math.log(1e4),
    )
    bias = (
        1e-3  # V = 2√s − s with s = √t exactly, so the slope is below 1/4 by less than √s/2/ln(1e4)
    )
    assert abs(slope - theory.normal_crossing([1, 2]).value) < FALSE_ALARM * error + bias


def test_multiplicity_by_monte_carlo_volumes():
    """K = w1² w2²: V/t^λ grows like (−log t)^(m−1); here V/√t = 1 − log √t exactly."""
    w = np.random.default_rng(0).random((2, 1_000_000))
    value, multiplicity = theory.normal_crossing([1, 1])
    for t in (1e-6, 1e-9):
        volume = np.count_nonzero((w[0] * w[1]) ** 2 < t) / w.shape[1]
        exact = t**value * (1 - value * math.log(t)) ** (multiplicity - 1)
        assert abs(volume - exact) < FALSE_ALARM * math.sqrt(exact / w.shape[1])


@pytest.mark.parametrize(
    ("widths", "rank", "expected"),
    [
        ((5, 3, 5), 0, (6.5, 2)),
        ((5, 3, 5), 1, (8, 1)),
        ((4, 3, 8), 0, (6, 1)),
        ((3, 8, 4), 0, (6, 1)),
        ((2, 2, 2, 2), 0, (1.5, 3)),
        ((10, 10, 10, 10), 3, (42, 3)),
        ((50, 20, 30, 40), 5, (397, 2)),
    ],
)
def test_values_that_are_known(widths, rank, expected):
    assert theory.deep_linear(widths, rank) == expected
    if len(widths) == 3:
        M, H, N = widths
        assert theory.reduced_rank_regression(M, N, H, rank) == theory.deep_linear(widths, rank)


def rank_sequences(widths, rank):
    """The independent form: minimise Σ (M_k − ρ_k)(ρ_{k−1} − ρ_k) over M_0 = ρ_0 ≥ … ≥ ρ_L = 0, ρ_k ≤ M_k.

    Returns λ, and the length of the longest chain of minimisers under the order of all their entries.
    """
    M = [h - rank for h in widths]
    costs = {}
    for inner in itertools.product(*(range(m + 1) for m in M[1:-1])):
        rho = (M[0], *inner, 0)
        if all(a >= b for a, b in itertools.pairwise(rho)):
            costs[rho] = sum((M[k] - rho[k]) * (rho[k - 1] - rho[k]) for k in range(1, len(M)))
    least = min(costs.values())
    best = sorted(rho for rho, cost in costs.items() if cost == least)
    longest: dict[tuple[int, ...], int] = {}
    for rho in best:
        below = [
            n
            for other, n in longest.items()
            if all(a <= b for a, b in zip(other, rho, strict=True))
        ]
        longest[rho] = 1 + max(below, default=0)
    return (rank * (widths[0] + widths[-1]) - rank**2 + least) / 2, max(longest.values())


def test_deep_linear_is_the_minimum_over_rank_sequences():
    for length, most in ((2, 5), (3, 6), (4, 4), (5, 3)):
        for widths in itertools.product(range(1, most + 1), repeat=length):
            for rank in range(min(widths) + 1):
                assert theory.deep_linear(widths, rank) == rank_sequences(widths, rank), (
                    widths,
                    rank,
                )


def test_reduced_rank_regression_is_a_deep_linear_network_of_two_layers():
    for M, N, H in itertools.product(range(1, 8), repeat=3):
        for r in range(min(M, N, H) + 1):
            assert theory.reduced_rank_regression(M, N, H, r) == theory.deep_linear((M, H, N), r), (
                M,
                N,
                H,
                r,
            )


def fibre(M, N, H, r):
    for r1, r2 in itertools.product(range(r, min(M, H) + 1), range(r, min(N, H) + 1)):
        if r1 + r2 - H <= r:
            yield r1, r2


def test_the_global_value_is_the_smallest_local_one():
    for M, N, H in itertools.product(range(1, 6), repeat=3):
        for r in range(min(M, N, H) + 1):
            local = [
                theory.reduced_rank_regression_at(M, N, H, *ranks, r) for ranks in fibre(M, N, H, r)
            ]
            assert min(local).value == theory.reduced_rank_regression(M, N, H, r).value, (
                M,
                N,
                H,
                r,
            )


def test_local_value_where_the_fibre_is_smooth_is_half_the_rank_of_the_derivative():
    rng = np.random.default_rng(0)
    for M, N, H, r1, r2, r in [
        (5, 5, 3, 3, 1, 1),
        (4, 3, 2, 2, 1, 1),
        (3, 4, 5, 3, 2, 0),
        (3, 3, 2, 2, 2, 2),
    ]:
        hidden = np.linalg.qr(rng.standard_normal((H, H)))[0]
        A = hidden[:, :r1] @ rng.standard_normal(
            (r1, M)
        )  # im A and the rows of B share r directions
        B = rng.standard_normal((N, r2)) @ hidden[:, r1 - r : r1 - r + r2].T
        assert np.linalg.matrix_rank(B @ A, tol=1e-9) == r
        derivative = np.hstack([np.kron(np.eye(N), A.T), np.kron(B, np.eye(M))])
        local = theory.reduced_rank_regression_at(M, N, H, r1, r2, r)
        assert local == (np.linalg.matrix_rank(derivative) / 2, 1)


def test_one_head_attention_is_bounded_by_the_function_space():
    assert theory.one_head_attention(4, d_head=100).value == 4 * 3 / 2
    assert theory.one_head_attention(6, d_head=2) == theory.deep_linear((6, 2, 5), 0)


# --- one layer of a deep linear network ---


def layer_hessian(weights, layer, sigma):
    """By brute force: E of the outer product of d y/d W_layer, for ½E‖y‖², from the columns of a root of Σ."""
    A = (
        np.linalg.multi_dot([*weights[layer + 1 :][::-1], np.eye(len(weights[layer]))])
        if weights[layer + 1 :]
        else None
    )
    A = np.eye(len(weights[layer])) if A is None else A
    values, vectors = np.linalg.eigh(sigma)
    x = vectors * np.sqrt(np.maximum(values, 0))  # columns x_i with Σ_i x_i x_iᵀ = Σ
    for W in weights[:layer]:
        x = W @ x
    derivative = np.concatenate([np.kron(A, x[:, i]) for i in range(x.shape[1])])
    return derivative.T @ derivative


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("input_rank", [5, 2])
@pytest.mark.parametrize("low_rank_factor", [False, True])
def test_layer_of_a_deep_linear_network(layer, input_rank, low_rank_factor):
    rng = np.random.default_rng(0)
    widths = (5, 4, 3, 4)
    weights = [rng.standard_normal((b, a)) for a, b in itertools.pairwise(widths)]
    if low_rank_factor:
        weights[0] = np.outer(weights[0][:, 0], weights[0][0])
    root = rng.standard_normal((5, input_rank))
    sigma = root @ root.T
    hessian = layer_hessian(weights, layer, sigma)
    expected = np.sort(np.linalg.eigvalsh(hessian))[::-1]
    curvatures = theory.deep_linear_curvatures(weights, layer, sigma)
    np.testing.assert_allclose(curvatures, expected, atol=1e-10 * expected[0])
    assert (
        theory.deep_linear_layer(weights, layer, sigma).value == np.linalg.matrix_rank(hessian) / 2
    )
    assert np.count_nonzero(curvatures) == np.linalg.matrix_rank(hessian)
    whole = theory.deep_linear_layer(weights, layer)
    assert whole == theory.deep_linear_layer(weights, layer, np.eye(5))


def test_layer_takes_float32_tensors_that_need_gradients():
    """A float32 product of rank 2 has singular values of 1e-7 that are rounding and must not count."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(40, 2, generator=generator) @ torch.randn(2, 30, generator=generator)
    weights = [low.requires_grad_(), torch.randn(20, 40, generator=generator)]
    assert theory.deep_linear_layer(weights, 1).value == 20 * 2 / 2
    assert theory.deep_linear_layer(weights, 0).value == 20 * 30 / 2


def test_law_of_a_layer_tends_to_its_learning_coefficient():
    rng = np.random.default_rng(0)
    weights = [
        rng.standard_normal((4, 5)),
        rng.standard_normal((3, 4)),
        rng.standard_normal((4, 3)),
    ]
    law = SGLDLaw(theory.deep_linear_curvatures(weights, 1), lr=1e-12, localization=1.0, n_beta=1e8)
    assert law.value == pytest.approx(theory.deep_linear_layer(weights, 1).value, rel=1e-3)


# --- the law of SGLD ---


class Chains:
    """Simulated SGLD on a quadratic, many independent experiments of a few chains that share minibatches."""

    def __init__(
        self, law, experiments, chains, draws, *, burnin=0, apart=1, stationary=False, seed=0
    ):
        rng = np.random.default_rng(seed)
        h, noise = law.curvatures, np.sqrt(law.gradient_variance)
        v = np.zeros((experiments, chains, h.size))
        if stationary:  # correlated as chains are that saw the same minibatches for ever
            shared = 1 - law.lr / law.innovation
            v += np.sqrt(law.variance * shared) * rng.standard_normal((experiments, 1, h.size))
            v += np.sqrt(law.variance * (1 - shared)) * rng.standard_normal(v.shape)
        self.next, self.previous = [], []
        g = noise * rng.standard_normal((experiments, 1, h.size))
        for step in range(1, burnin + draws * apart + 1):
            drift = law.n_beta * (h * v + g) + law.localization * v
            v = v - law.lr / 2 * drift + math.sqrt(law.lr) * rng.standard_normal(v.shape)
            old, g = g, noise * rng.standard_normal((experiments, 1, h.size))
            if step > burnin and (step - burnin) % apart == 0:
                self.next.append(law.n_beta * (0.5 * h * v**2 + g * v).sum(-1))
                self.previous.append(law.n_beta * (0.5 * h * v**2 + old * v).sum(-1))
        self.next, self.previous = (
            np.stack(self.next, -1),
            np.stack(self.previous, -1),
        )  # [experiment, chain, draw]


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
    names = {
        "num_draws": "draws",
        "num_burnin_steps": "burnin",
        "num_steps_bw_draws": "apart",
        "stationary": "stationary",
    }
    chains = Chains(law, 8000, 3, **{names[key]: value for key, value in design.items()})
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
            summed = 1 + 2 * sum(law.autocorrelation(apart * k) for k in range(1, 2000))
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


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.regular(0), "d must be an integer ≥ 1; got 0"),
        (lambda: theory.regular(2.5), "d must be an integer ≥ 1; got 2.5"),
        (lambda: theory.regular(True), "d must be an integer ≥ 1; got True"),
        (lambda: theory.normal_crossing([1, 1], [0]), "one entry per coordinate; got 2 and 1"),
        (lambda: theory.normal_crossing([0, 0]), "at least one k must be positive"),
        (lambda: theory.normal_crossing([-1]), "k must be an integer ≥ 0; got -1"),
        (lambda: theory.normal_crossing([1], [-1]), "h must be an integer ≥ 0; got -1"),
        (
            lambda: theory.reduced_rank_regression(3, 3, 2, 3),
            r"r must be a possible rank, 0 … 2 .* got 3",
        ),
        (lambda: theory.reduced_rank_regression(3, 3, 0, 0), "H must be an integer ≥ 1; got 0"),
        (
            lambda: theory.reduced_rank_regression_at(5, 5, 3, 4, 1, 1),
            r"r1 must be a possible rank, 0 … 3",
        ),
        (
            lambda: theory.reduced_rank_regression_at(5, 5, 3, 1, 4, 1),
            r"r2 must be a possible rank, 0 … 3",
        ),
        (
            lambda: theory.reduced_rank_regression_at(5, 5, 3, 3, 3, 2),
            r"r must be a possible rank, 3 … 3",
        ),
        (lambda: theory.deep_linear([5], 0), "needs at least the inputs and the outputs"),
        (lambda: theory.deep_linear([5, 0, 5], 0), "widths must be an integer ≥ 1; got 0"),
        (lambda: theory.deep_linear([5, 2, 5], 3), r"rank must be a possible rank, 0 … 2"),
        (lambda: theory.one_head_attention(1, 2), "v must be an integer ≥ 2; got 1"),
        (
            lambda: theory.deep_linear_layer([np.eye(2), np.eye(3)], 0),
            r"weights\[1\] must take the 2 outputs",
        ),
        (lambda: theory.deep_linear_layer([np.eye(2)], 1), "layer must be 0 … 0; got 1"),
        (
            lambda: theory.deep_linear_layer([np.ones(2)], 0),
            r"weights\[0\] must be a matrix .* got shape \[2\]",
        ),
        (
            lambda: theory.deep_linear_layer([np.full((2, 2), np.nan)], 0),
            r"weights\[0\] must be a matrix",
        ),
        (lambda: theory.deep_linear_layer([np.eye(2)], 0, np.eye(3)), r"symmetric \[2, 2\] matrix"),
        (
            lambda: theory.deep_linear_layer([np.eye(2)], 0, np.triu(np.ones((2, 2)))),
            "Symmetrise it",
        ),
        (lambda: theory.deep_linear_layer([np.eye(2)], 0, -np.eye(2)), "smallest eigenvalue is -1"),
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
