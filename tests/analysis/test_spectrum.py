"""Trace, rank and extreme eigenvalues of matrices that are known, against dense linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from rllc.analysis import spectrum
from rllc.analysis.spectrum import Product, Reading, filtered_rank, hutchinson, hutchpp, lanczos
from rllc.seeds import generator

Z = 4.9  # a normal number is beyond this once in a million

DIM = 40


def symmetric_with(eigenvalues: Tensor, seed: str) -> Tensor:
    """A random matrix with these eigenvalues."""
    dim = len(eigenvalues)
    normal = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    Q = torch.linalg.qr(normal).Q
    return Q @ torch.diag(eigenvalues) @ Q.T


def decaying() -> Tensor:
    """Eigenvalues of both signs, falling as 1/k²."""
    k = torch.arange(1.0, DIM + 1, dtype=torch.float64)
    return symmetric_with(5 * (-1) ** (k // 3) / k**2, "Q")


def gapped() -> Tensor:
    """17 eigenvalues in 0.5 … 1, 3 in −0.8 … −0.6, and 100 within ±0.01."""
    uniform = torch.rand(120, generator=generator("gapped"), dtype=torch.float64)
    eigenvalues = 0.02 * uniform - 0.01
    eigenvalues[:17] = torch.linspace(0.5, 1, 17)
    eigenvalues[17:20] = torch.linspace(-0.8, -0.6, 3)
    return symmetric_with(eigenvalues, "gap")


def product_with(A: Tensor) -> Product:
    return lambda v: v @ A


def exact_error(A: Tensor, num_probes: int) -> float:
    """√(2 Σ_{i≠j} Aᵢⱼ² / probes)."""
    off_diagonal = A - torch.diag(A.diag())
    return float((2 * off_diagonal.square().sum() / num_probes).sqrt())


# Traces.


@pytest.mark.parametrize("estimate", [hutchinson, hutchpp])
def test_traces_are_unbiased_and_their_errors_calibrated(
    estimate: Callable[..., Reading],
) -> None:
    A = decaying()
    product = product_with(A)
    readings = [estimate(product, DIM, 12, generator("repeat", i)) for i in range(600)]
    deviations = np.array([r.value for r in readings]) - float(A.trace())
    errors = np.array([r.standard_error for r in readings])
    assert abs(deviations.mean()) < Z * deviations.std() / 600**0.5
    # 0 on average when errors are right
    differences = deviations**2 - errors**2
    precision = differences.std() / 600**0.5
    assert abs(differences.mean()) < Z * precision
    assert precision < 0.1 * (errors**2).mean()


def test_the_variance_of_hutchinson_is_that_of_the_formula() -> None:
    A = decaying()
    reading = hutchinson(product_with(A), DIM, 4000, generator("many"))
    assert reading.standard_error == pytest.approx(exact_error(A, 4000), rel=0.1)
    assert abs(reading.value - float(A.trace())) < Z * exact_error(A, 4000)


def test_hutchpp_is_exact_up_to_its_rank() -> None:
    values, vectors = torch.linalg.eigh(decaying())
    largest = values.abs().argsort()[-4:]
    low_rank = vectors[:, largest] @ torch.diag(values[largest]) @ vectors[:, largest].T
    reading = hutchpp(product_with(low_rank), DIM, 12, generator("low"))
    assert reading.value == pytest.approx(float(low_rank.trace()), abs=1e-9)
    assert reading.standard_error < 1e-9


def test_hutchpp_is_better_on_falling_spectra() -> None:
    product = product_with(decaying())

    def mean_variance(estimate: Callable[..., Reading]) -> float:
        readings = [estimate(product, DIM, 24, generator(i)) for i in range(50)]
        return float(np.mean([r.standard_error**2 for r in readings]))

    assert mean_variance(hutchpp) < mean_variance(hutchinson) / 10


def test_a_sketch_wider_than_the_matrix() -> None:
    A = decaying()[:3, :3]
    reading = hutchpp(product_with(A), 3, 30, generator("small"))
    assert reading.value == pytest.approx(float(A.trace()), abs=1e-12)


# Rank.


def test_the_filter_is_a_step_rounded_by_a_normal_density() -> None:
    degree, above, below = 120, 1.0, 2.5
    theta = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    cosines = torch.cos(theta[:, None] * torch.arange(degree + 1))
    step = cosines @ spectrum._step(above, below, degree)
    s = 4.5 / degree
    expected = norm.cdf((above - theta) / s) + norm.cdf((theta - below) / s)
    assert np.abs(step.numpy() - expected).max() < 3e-6


@pytest.mark.parametrize("degree", [1, 2, 7, 8])
def test_moments_are_chebyshev_polynomials(degree: int) -> None:
    A = decaying() / 6
    v = torch.randn(3, DIM, generator=generator("v"), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    num_products = 0

    def product(u: Tensor) -> Tensor:
        nonlocal num_products
        num_products += 1
        return u @ A

    polynomials = torch.cos(torch.acos(values)[:, None] * torch.arange(degree + 1))
    expected = (v @ vectors) ** 2 @ polynomials
    torch.testing.assert_close(spectrum._moments(product, v, degree), expected)
    assert num_products == math.ceil(degree / 2)


@pytest.mark.parametrize("degree", [None, 200])
def test_rank_of_a_matrix_with_a_gap(degree: int | None) -> None:
    A = gapped()
    reading, diagnostics = filtered_rank(
        product_with(A), 120, 0.2, (-0.85, 1.05), degree, 200, generator("rank")
    )
    values, vectors = torch.linalg.eigh(A)
    projection = vectors @ torch.diag((values.abs() > 0.2).double()) @ vectors.T
    assert int(projection.trace().round()) == 20
    error = exact_error(projection, 200)
    assert abs(reading.value - 20) < Z * error + 0.05
    assert reading.standard_error == pytest.approx(error, rel=0.3)
    assert reading.status == "ok"
    assert diagnostics["degree"] == degree or degree is None


@pytest.mark.parametrize("degree", [None, 200])
def test_the_trace_of_the_filter_is_the_rank(degree: int | None) -> None:
    """With all unit vectors as probes, so without noise; also at the degree that is chosen."""
    A = gapped()
    if degree is None:
        product = product_with(A)
        _, chosen = filtered_rank(product, 120, 0.2, (-0.85, 1.05), None, 2, generator(0))
        degree = int(chosen["degree"])
    middle, half = 0.1, 0.95
    unit_vectors = torch.eye(120).double()
    moments = spectrum._moments(lambda v: (v @ A - middle * v) / half, unit_vectors, degree)
    above, below = (math.acos((t - middle) / half) for t in (0.2, -0.2))
    trace = float((moments @ spectrum._step(above, below, degree)).sum())
    assert trace == pytest.approx(20, abs=0.05)


def test_rank_says_when_the_degree_is_too_low() -> None:
    product = product_with(gapped())
    interval = (-0.85, 1.05)
    reading, _ = filtered_rank(product, 120, 0.2, interval, 20, 50, generator("rank"))
    assert reading.status.startswith("degree 20 is too low: each eigenvalue of 0 counts 0.")
    degree = int(reading.status.split("degree=")[1])
    reading, diagnostics = filtered_rank(product, 120, 0.2, interval, degree, 50, generator("rank"))
    assert reading.status == "ok"
    assert diagnostics["resolution"] < 0.2


def test_the_degree_has_an_upper_limit() -> None:
    product = product_with(gapped())
    _, diagnostics = filtered_rank(product, 120, 1e-9, (-0.85, 1.05), None, 2, generator(0))
    assert diagnostics["degree"] == 1000


def test_rank_is_not_a_number_when_an_eigenvalue_was_overlooked() -> None:
    reading, _ = filtered_rank(
        product_with(gapped()), 120, 0.2, (-0.85, 0.9), 100, 4, generator("rank")
    )
    assert math.isnan(reading.value)
    assert "an eigenvalue lies outside (-0.85, 0.9)" in reading.status


def test_rank_of_nothing() -> None:
    reading, _ = filtered_rank(lambda v: 0 * v, 5, 0.0, (0.0, 0.0), None, 2, generator(0))
    assert reading == (0.0, 0.0, "ok")


# Eigenvalues.


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("tolerance", [0.2, 1e-2, 1e-9])
def test_lanczos_finds_both_ends_and_its_errors_are_bounds(count: int, tolerance: float) -> None:
    A = decaying()
    truth = torch.linalg.eigvalsh(A)
    ends = lanczos(product_with(A), DIM, count, tolerance, DIM, generator("lanczos"))
    assert ends.status == "ok"
    assert ends.num_products <= DIM
    assert float(ends.largest_error.max()) <= tolerance * float(truth.abs().max())
    values = torch.cat([ends.largest, ends.smallest])
    errors = torch.cat([ends.largest_error, ends.smallest_error])
    distances = (values[:, None] - truth).abs().amin(1)
    assert bool((distances <= errors + 1e-12).all())
    if tolerance < 1e-8:
        torch.testing.assert_close(ends.largest, truth.flip(0)[:count], atol=1e-9, rtol=0)
        torch.testing.assert_close(ends.smallest, truth[:count], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "diagonal", [[0.0] * 6, [2.0] * 6, [1.0, 0, 0, 0, 0, 0], [3.0], [2.0, -1.0, 2.0, -1.0]]
)
def test_lanczos_goes_on_where_the_span_cannot_grow(diagonal: list[float]) -> None:
    eigenvalues = torch.tensor(diagonal, dtype=torch.float64)
    dim = len(eigenvalues)
    product = product_with(torch.diag(eigenvalues))
    ends = lanczos(product, dim, dim, 1e-6, 2 * dim, generator("few"))
    rising = eigenvalues.sort().values
    torch.testing.assert_close(ends.largest, rising.flip(0))
    torch.testing.assert_close(ends.smallest, rising)
    assert (ends.status, ends.num_products) == ("ok", dim)


def test_lanczos_says_when_it_was_stopped_early() -> None:
    ends = lanczos(product_with(decaying()), DIM, 3, 1e-8, 7, generator("early"))
    assert ends.status == "not converged after 7 products: pass max_products=14"
