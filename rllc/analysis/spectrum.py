"""Trace, rank and extreme eigenvalues of a symmetric matrix that is known by its products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from rllc.engine.lanczos import orthogonalised

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix A: vectors ``[probe, dim]`` in float64 -> their products ``[probe, dim]``."""

NOT_FINITE = "the derivatives of the loss are not finite"

_VECTORS_AT_ONCE = 64
"""Vectors that share a backward pass, where the model is small enough for that to be faster."""

_NUMBERS_AT_ONCE = 2**24
"""Numbers in the vectors that share a backward pass: 128 MB."""

_HIGHEST_DEGREE = 1000
"""The highest degree :func:`filtered_rank` chooses by itself: 500 products a probe."""

_DAMPING = 4.5
"""Width of the filter's step in units of 1/degree. Where the series is cut, its coefficients have
fallen by exp(−4.5²/2)."""


class Reading(NamedTuple):
    """One number with its standard error, and whether to trust it."""

    value: float
    standard_error: float
    status: str = "ok"


class Ends(NamedTuple):
    """The eigenvalues at both ends of a spectrum, how far each may be off, and what it took."""

    largest: Tensor
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    status: str
    num_products: int


def hutchinson(
    product: Product,
    dim: int,
    num_probes: int,
    stream: Generator,
) -> Reading:
    """Estimate tr A by the mean of vᵀAv over random signs v ∈ {±1}^dim.

    Unbiased: E[vvᵀ] = I, so E[vᵀAv] = tr(A E[vvᵀ]) = tr A. The variance of one probe is
    2 Σ_{i≠j} Aᵢⱼ² for symmetric A, less than with normal v by 2 Σ Aᵢᵢ². The standard error is from
    the spread of the probes.

    >>> A = torch.diag(torch.arange(4.0, dtype=torch.float64))
    >>> hutchinson(lambda v: v @ A, 4, 3, torch.Generator())     # exact on diagonal matrices
    Reading(value=6.0, standard_error=0.0, status='ok')

    Args:
        product: of the matrix, see :data:`Product`.
        dim: its size.
        num_probes: at least 2; each costs one product.
        stream: random numbers, on the CPU.

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    """
    batches = []
    for signs in _signs(num_probes, dim, stream):
        batches.append((signs * product(signs)).sum(1))
    return _mean(torch.cat(batches))


def hutchpp(
    product: Product,
    dim: int,
    num_probes: int,
    stream: Generator,
) -> Reading:
    """Estimate tr A by Hutch++: exactly where A is large, by :func:`hutchinson` in the rest.

    Q [dim, k] is an orthonormal basis of A S for k = num_probes // 3 random sign vectors S, and
    P = I − QQᵀ. Because P² = P and the trace is cyclic, tr A = tr(QᵀAQ) + tr(PAP) for any Q. The
    second part is estimated by vᵀPAPv over the remaining num_probes − 2k sign vectors v, drawn
    independently of Q. So the estimate is unbiased given Q, hence unbiased; and its variance is the
    mean, over Q, of that of the second part, whose spread gives the standard error. For A ⪰ 0 the
    relative error falls as 1/num_probes, not as 1/√num_probes.

    Args:
        product: of the matrix, see :data:`Product`.
        dim: its size.
        num_probes: products in all, at least 4.
        stream: random numbers, on the CPU.

    Reference: Meyer, Musco, Musco & Woodruff 2021, "Hutch++: Optimal Stochastic Trace Estimation"
    (arXiv 2010.09649).
    """
    width = num_probes // 3
    sketched = [product(signs) for signs in _signs(min(width, dim), dim, stream)]
    sketch = torch.cat(sketched)  # [width, dim]
    # The decomposition below would refuse numbers that are not finite.
    if not bool(sketch.isfinite().all()):
        return Reading(math.nan, math.nan)
    Q = torch.linalg.qr(sketch.T).Q.T  # [width, dim]
    exact = 0.0
    for q in Q.split(_batch_size(dim)):
        exact += float((q * product(q)).sum())
    batches = []
    for signs in _signs(num_probes - 2 * width, dim, stream):
        projected = signs - (signs @ Q.T) @ Q
        batches.append((projected * product(projected)).sum(1))
    remainder = _mean(torch.cat(batches))
    return Reading(exact + remainder.value, remainder.standard_error)


def filtered_rank(
    product: Product,
    dim: int,
    threshold: float,
    interval: tuple[float, float],
    degree: int | None,
    num_probes: int,
    stream: Generator,
) -> tuple[Reading, dict[str, float]]:
    """Count the eigenvalues with |λ| > threshold: tr p(A) ≈ mean of vᵀp(A)v over random signs v.

    p is the step 1{|t| > τ} as a Chebyshev series on ``interval``. With t = c + e cos θ the step is
    an indicator on [0, π], {θ < θ(τ)} ∪ {θ > θ(−τ)}. Its cosine series is cut at ``degree`` = m,
    and the k-th coefficient multiplied by exp(−(sk)²/2), s = 4.5/m. To within 3e-6 that is the
    step convolved in θ with a normal density of standard deviation s: an eigenvalue at angular
    distance δ from an edge is counted wrong by Φ(−δ/s). (Jackson's damping, which is more usual,
    still miscounts by 3e-4 at δ = 20/m, which adds up where most of many eigenvalues are 0.)

    v·T_k(A)v for all k ≤ m takes m/2 products: T_{2k} = 2T_k² − 1 and T_{2k+1} = 2T_kT_{k+1} − T₁.
    Unbiased for tr p(A), as :func:`hutchinson`; the standard error is of the probes.

    Args:
        product: of the matrix, see :data:`Product`.
        dim: its size.
        threshold: τ > 0.
        interval: must hold all eigenvalues.
        degree: m; ``None`` takes the lowest at which eigenvalues of 0, were they all 0, together
            count less than 0.05, up to 1000.
        num_probes: at least 2.
        stream: random numbers, on the CPU.

    Returns:
        The count; and ``"threshold"``, ``"resolution"`` (half the width in which p rises from 0.02
        to 0.98) and ``"degree"``.

    Reference: Ubaru & Saad 2016 (ICML); for the doubled moments, Weiße et al. 2006
    (arXiv cond-mat/0504627).
    """
    if threshold >= max(abs(end) for end in interval):
        return Reading(0.0, 0.0), {"threshold": threshold, "resolution": 0.0, "degree": 0.0}
    lowest, highest = interval
    middle = (lowest + highest) / 2
    half = (highest - lowest) / 2
    above, below = (_angle((t - middle) / half) for t in (threshold, -threshold))
    angle_of_zero = _angle((0.0 - middle) / half)
    needed = _degree_needed(dim, [above, below], angle_of_zero)
    if degree is None:
        degree = min(needed, _HIGHEST_DEGREE)
    # The step is as wide in θ at both edges; t = c + e cos θ changes with θ by e sin θ.
    steepest = max(math.sin(above), math.sin(below))
    diagnostics = {
        "threshold": threshold,
        "resolution": 2 * _DAMPING / degree * half * steepest,
        "degree": float(degree),
    }
    coefficients = _step(above, below, degree)

    def scaled(vectors: Tensor) -> Tensor:
        return (product(vectors) - middle * vectors) / half

    batches = []
    for signs in _signs(num_probes, dim, stream):
        moments = _moments(scaled, signs, degree)
        # |T_k| ≤ 1 on the interval, and grows exponentially outside.
        if float(moments.abs().max()) > 1.01 * dim:
            status = f"an eigenvalue lies outside {interval}, where none was expected"
            return Reading(math.nan, math.nan, status), diagnostics
        batches.append(moments @ coefficients)
    count = _mean(torch.cat(batches))
    if degree < needed:
        orders = torch.arange(degree + 1.0, dtype=torch.float64)
        count_of_zero = float(coefficients @ torch.cos(angle_of_zero * orders))
        status = (
            f"degree {degree} is too low: each eigenvalue of 0 counts {count_of_zero:.1g}; "
            f"pass degree={needed}"
        )
        count = count._replace(status=status)
    return count, diagnostics


def lanczos(
    product: Product,
    dim: int,
    count: int,
    tolerance: float,
    max_products: int,
    stream: Generator,
) -> Ends:
    """Find the ``count`` largest and smallest eigenvalues by Lanczos' method.

    With full re-orthogonalisation, see :func:`rllc.engine.lanczos.orthogonalised`. Some eigenvalue
    is within the stated error of each; no chance is involved. It ends when all errors are below
    tolerance · max|λ|. Of an eigenvalue that occurs several times exactly, it may find one only.

    Args:
        product: of the matrix, see :data:`Product`.
        dim: its size.
        count: how many at each end, at most ``dim``.
        tolerance: in units of the largest |λ|.
        max_products: at least 2 · count.
        stream: random numbers, on the CPU.
    """

    def product_of_one(vector: Tensor) -> Tensor:
        return product(vector[None])[0]

    num_steps = min(dim, max_products)
    for T in orthogonalised(product_of_one, dim, num_steps, stream):
        num_products = len(T.diagonal)
        if not bool(T.diagonal[-1].isfinite()):
            unknown = torch.full((count,), math.nan, dtype=torch.float64)
            return Ends(unknown, unknown, unknown, unknown, NOT_FINITE, num_products)
        values, vectors = torch.linalg.eigh(T.matrix())
        errors = float(T.beside[-1]) * vectors[-1].abs()
        errors_at_ends = torch.cat([errors[:count], errors[-count:]])
        most = tolerance * float(values.abs().max())
        has_both_ends = num_products >= min(2 * count, dim)
        if has_both_ends and float(errors_at_ends.max()) <= most:
            return _ends(values, errors, count, "ok", num_products)
    status = f"not converged after {num_steps} products: pass max_products={2 * num_steps}"
    return _ends(values, errors, count, status, num_steps)


def _mean(samples: Tensor) -> Reading:
    """Return the mean of independent samples, with its standard error."""
    standard_error = samples.std() / len(samples) ** 0.5
    return Reading(float(samples.mean()), float(standard_error))


def _ends(
    values: Tensor,
    errors: Tensor,
    count: int,
    status: str,
    num_products: int,
) -> Ends:
    """Take both ends of rising eigenvalues."""
    return Ends(
        largest=values.flip(0)[:count],
        smallest=values[:count],
        largest_error=errors.flip(0)[:count],
        smallest_error=errors[:count],
        status=status,
        num_products=num_products,
    )


def _angle(cosine: float) -> float:
    return math.acos(min(max(cosine, -1.0), 1.0))


def _degree_needed(dim: int, edges: list[float], angle_of_zero: float) -> int:
    """Return the degree at which eigenvalues of 0, were all 0, together count less than 0.05."""
    inside = [edge for edge in edges if 0 < edge < math.pi]
    distance = min((abs(edge - angle_of_zero) for edge in inside), default=math.pi)
    deviations = -NormalDist().inv_cdf(0.025 / dim)
    degree = math.ceil(_DAMPING * deviations / max(distance, 1e-9))
    return max(2, degree)


def _step(above: float, below: float, degree: int) -> Tensor:
    """Return damped cosine coefficients ``[degree + 1]`` of {θ < above} ∪ {θ > below}."""
    k = torch.arange(1.0, degree + 1, dtype=torch.float64)
    sines = torch.sin(k * above) - torch.sin(k * below)
    damping = torch.exp(-((_DAMPING * k / degree) ** 2) / 2)
    coefficients = 2 / math.pi * sines / k * damping
    constant = coefficients.new_tensor([1 + (above - below) / math.pi])
    return torch.cat([constant, coefficients])


def _moments(product: Product, v: Tensor, degree: int) -> Tensor:
    """Return v·T_k(A)v ``[probe, degree + 1]`` of a matrix with eigenvalues in [−1, 1].

    T_{k+1}(A)v = 2A T_k(A)v − T_{k−1}(A)v, in degree/2 products.
    """
    lower = v
    upper = product(v)
    moments = [(v * v).sum(1), (v * upper).sum(1)]
    while len(moments) <= degree:
        moments.append(2 * (upper * upper).sum(1) - moments[0])
        if len(moments) > degree:
            break
        lower, upper = upper, 2 * product(upper) - lower
        moments.append(2 * (lower * upper).sum(1) - moments[1])
    return torch.stack(moments, 1)


def _signs(count: int, dim: int, stream: Generator) -> Iterator[Tensor]:
    """Yield ``count`` random sign vectors, as many at a time ``[probe, dim]`` as fit."""
    size = _batch_size(dim)
    for start in range(0, count, size):
        num_rows = min(size, count - start)
        bits = torch.randint(2, (num_rows, dim), generator=stream)
        yield 2 * bits.double() - 1


def _batch_size(dim: int) -> int:
    """Return how many vectors are held at once."""
    return max(1, min(_VECTORS_AT_ONCE, _NUMBERS_AT_ONCE // dim))
