"""Learning coefficients against independent forms, brute force and Monte Carlo."""

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
    slope = math.log(large / small) / math.log(1e4)
    error = math.sqrt(1 / small - 1 / large) / math.log(1e4)
    # V = 2√s − s with s = √t exactly, so the slope is below 1/4 by less than √s/2/ln(1e4).
    bias = 1e-3
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
    """The independent form: minimise Σ (M_k − ρ_k)(ρ_{k−1} − ρ_k) over rank sequences ρ.

    They have M_0 = ρ_0 ≥ … ≥ ρ_L = 0 and ρ_k ≤ M_k. Returns λ, and the length of the longest chain
    of minimisers under the order of all their entries.
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
    """By brute force, of ½E‖y‖²: E of the outer product of dy/dW_layer, by the columns of Σ^½."""
    A = np.eye(len(weights[layer]))
    for W in weights[layer + 1 :]:
        A = W @ A
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
    plain = theory.deep_linear_layer(weights, layer)
    assert plain == theory.deep_linear_layer(weights, layer, np.eye(5))


def test_layer_takes_float32_tensors_that_need_gradients():
    """A float32 product of rank 2 has singular values of 1e-7, rounding that must not count."""
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
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
