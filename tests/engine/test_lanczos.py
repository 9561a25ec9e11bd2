"""Lanczos' method against dense eigenvalues, with and without re-orthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rllc.engine.lanczos import largest_eigenvalue, orthogonalised
from rllc.seeds import generator


def symmetric(dim: int, seed: int = 0) -> Tensor:
    A = torch.randn(dim, dim, generator=generator("A", seed), dtype=torch.float64)
    return A + A.T


def start(dim: int) -> Tensor:
    return torch.randn(dim, generator=generator("start"), dtype=torch.float64)


def product_with(A: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: A @ v


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_as_many_steps_as_dimensions_find_the_largest_eigenvalue(dim: int) -> None:
    A = symmetric(dim)
    largest = largest_eigenvalue(product_with(A), start(dim), 100, rounding=0.0)
    torch.testing.assert_close(largest, torch.linalg.eigvalsh(A)[-1])


def test_few_steps_find_an_eigenvalue_that_stands_out_and_never_more() -> None:
    eigenvalues = torch.linspace(0.0, 1.0, 200, dtype=torch.float64)
    eigenvalues[-1] = 5.0
    A = torch.diag(eigenvalues)
    errors = []
    for num_steps in (2, 4, 8, 12):
        largest = largest_eigenvalue(product_with(A), start(200), num_steps, rounding=1e-6)
        errors.append(5.0 - float(largest))
    assert errors == sorted(errors, reverse=True)
    assert -1e-12 < errors[-1] < 0.01


def test_the_recurrence_ends_where_the_remainder_is_rounding() -> None:
    """A multiple of the identity has no second direction; noise below the bound is not one."""
    noise = 1e-3 * symmetric(50)
    largest = largest_eigenvalue(lambda v: 3 * v + noise @ v, start(50), 12, rounding=0.02)
    assert float(largest) == pytest.approx(3.0, abs=0.05)
    rayleigh = start(50) @ (noise @ start(50)) / start(50).square().sum()
    assert float(largest) == pytest.approx(3.0 + float(rayleigh), rel=1e-12)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_products_that_are_not_finite_give_nan(broken: float) -> None:
    largest = largest_eigenvalue(lambda v: v * broken, start(4), 12, rounding=0.02)
    assert bool(largest.isnan())


def test_the_length_and_dtype_of_the_start() -> None:
    A = symmetric(6)
    one = largest_eigenvalue(product_with(A), start(6), 4, rounding=0.0)
    other = largest_eigenvalue(product_with(A), 7 * start(6), 4, rounding=0.0)
    torch.testing.assert_close(one, other)
    single = largest_eigenvalue(product_with(A.float()), start(6).float(), 4, rounding=0.0)
    assert single.dtype == torch.float32


def test_re_orthogonalised_steps_keep_all_eigenvalues_of_hard_matrices() -> None:
    """Eigenvalues over ten orders of magnitude, of which the plain recurrence finds copies."""
    dim = 60
    Q = torch.linalg.qr(symmetric(dim)).Q
    eigenvalues = torch.logspace(-10, 0, dim, dtype=torch.float64)
    A = Q @ torch.diag(eigenvalues) @ Q.T
    *_, T = orthogonalised(product_with(A), dim, dim, generator("steps"))
    torch.testing.assert_close(torch.linalg.eigvalsh(T.matrix()), eigenvalues, atol=1e-14, rtol=0)
    assert float(T.beside[-1]) == 0.0


def test_each_step_extends_the_matrix_of_the_step_before() -> None:
    A = symmetric(20)
    matrices = [T.matrix() for T in orthogonalised(product_with(A), 20, 6, generator("steps"))]
    assert [len(T) for T in matrices] == [1, 2, 3, 4, 5, 6]
    for smaller, larger in pairwise(matrices):
        assert torch.equal(larger[:-1, :-1], smaller)


def test_the_span_goes_on_where_it_cannot_grow() -> None:
    A = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=torch.float64))
    *_, T = orthogonalised(product_with(A), 4, 4, generator("few"))
    torch.testing.assert_close(
        torch.linalg.eigvalsh(T.matrix()),
        torch.tensor([-1.0, -1.0, 2.0, 2.0], dtype=torch.float64),
    )


def test_a_product_that_is_not_finite_shows_on_the_diagonal() -> None:
    (T,) = orthogonalised(lambda v: v * math.nan, 3, 1, generator("broken"))
    assert not bool(T.diagonal[-1].isfinite())
