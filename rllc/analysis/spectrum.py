"""Trace, rank and extreme eigenvalues of any symmetric matrix that can be multiplied; nothing here knows a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Generator, Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix by what it does: vectors ``[probe, dim]`` in float64 -> their products ``[probe, dim]``."""

_TOGETHER = 64
"""Vectors that go through one backward pass together, where the model is small enough for that to be faster."""

_MOST_DEGREE = 1000
"""Degree that :func:`hessian_rank` chooses at most by itself: 500 products a probe."""

_DAMPING = 4.5
"""Width of the filter's step, in units of 1/degree: the series is cut where its coefficients have fallen by exp(−4.5²/2)."""


class Reading(NamedTuple):
    """One number with its standard error, and whether to trust it."""

    value: float
    standard_error: float
    status: str = "ok"


def hutchinson(product: Product, dim: int, num_probes: int, stream: Generator) -> Reading:
    """tr A ≈ mean of vᵀAv over random signs v ∈ {±1}^dim, with its standard error.

    Unbiased: E[vvᵀ] = I, so E[vᵀAv] = tr(A E[vvᵀ]) = tr A. The variance of one probe is 2 Σ_{i≠j} Aᵢⱼ² for symmetric A, less
    than with normal v by 2 Σ Aᵢᵢ²; the standard error is from the probes' own spread.

    >>> A = torch.diag(torch.arange(4.0, dtype=torch.float64))
    >>> hutchinson(lambda v: v @ A, 4, 3, torch.Generator())                       # exact on diagonal matrices
    Reading(value=6.0, standard_error=0.0, status='ok')

    Args:
        product: of the matrix, see :data:`Product`.
        dim: its size.
        num_probes: at least 2; each costs one product.
        stream: of random numbers, on the CPU.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    """
    samples = torch.cat([(v * product(v)).sum(1) for v in _signs(num_probes, dim, stream)])
    return Reading(float(samples.mean()), float(samples.std() / num_probes**0.5))


def hutchpp(product: Product, dim: int, num_probes: int, stream: Generator) -> Reading:
    """tr A by Hutch++: exactly where A is large, by :func:`hutchinson` in the rest.

    Q [dim, k] is an orthonormal basis of A S for k = num_probes // 3 random sign vectors S, and P = I − QQᵀ. Because P² = P and
    the trace is cyclic, tr A = tr(QᵀAQ) + tr(PAP) for any Q; the second part is estimated by vᵀPAPv over the remaining
    num_probes − 2k sign vectors v, drawn independently of Q. So given Q the estimate is unbiased, with a known first part, hence
    unbiased altogether; and its variance is the mean, over Q, of that of the second part, whose spread gives the standard
    error. For A ⪰ 0 the relative error falls as 1/num_probes, not 1/√num_probes.

    Takes what :func:`hutchinson` takes; ``num_probes``, at least 4, is the number of products in all.

    Source: Meyer, Musco, Musco & Woodruff 2021, "Hutch++: Optimal Stochastic Trace Estimation" (arXiv 2010.09649).
    """
    k = num_probes // 3
    sketch = torch.cat([product(v) for v in _signs(min(k, dim), dim, stream)])
    if not bool(sketch.isfinite().all()):  # which the decomposition would refuse
        return Reading(math.nan, math.nan)
    Q = torch.linalg.qr(sketch.T).Q.T  # [k, dim]
    exact = sum(float((q * product(q)).sum()) for q in Q.split(_together(dim)))
    samples = []
    for v in _signs(num_probes - 2 * k, dim, stream):
        rest = v - (v @ Q.T) @ Q
        samples.append((rest * product(rest)).sum(1))
    each = torch.cat(samples)
    return Reading(exact + float(each.mean()), float(each.std() / len(each) ** 0.5))


def filtered_rank(
    product: Product,
    dim: int,
    threshold: float,
    interval: tuple[float, float],
    degree: int | None,
    num_probes: int,
    stream: Generator,
) -> tuple[Reading, dict[str, float]]:
    """How many eigenvalues have |λ| > threshold: tr p(A) ≈ mean of vᵀp(A)v over random signs v.

    p is the step 1{|t| > τ} as a Chebyshev series on ``interval``. With t = c + e cos θ the step is an indicator on
    [0, π], {θ < θ(τ)} ∪ {θ > θ(−τ)}, whose cosine series is cut at ``degree`` = m with its k-th coefficient multiplied by
    exp(−(sk)²/2), s = 4.5/m. That is the step convolved in θ with a normal density of standard deviation s, to within 3e-6: an
    eigenvalue at angular distance δ from an edge is counted wrong by Φ(−δ/s). (Jackson's damping, which is more usual,
    still miscounts by 3e-4 at δ = 20/m, which adds up where most of many eigenvalues are 0.)

    v·T_k(A)v for all k ≤ m takes m/2 products: T_{2k} = 2T_k² − 1 and T_{2k+1} = 2T_kT_{k+1} − T₁. Unbiased for tr p(A), as
    :func:`hutchinson`; the standard error is of the probes.

    Args:
        product: of the matrix, see :data:`Product`; ``dim`` is its size.
        threshold: τ > 0.
        interval: must hold all eigenvalues.
        degree: m; ``None`` is chosen as :func:`hessian_rank` says.
        num_probes: at least 2.
        stream: of random numbers, on the CPU.

    Returns:
        The count, and ``"threshold"``, ``"resolution"`` (half width in which p rises from 0.02 to 0.98) and ``"degree"``.

    Source: Ubaru & Saad 2016 (ICML); Weiße et al. 2006 (arXiv cond-mat/0504627) for the doubled moments.
    """
    told = {"threshold": threshold, "resolution": 0.0, "degree": 0.0}
    if threshold >= max(map(abs, interval)):
        return Reading(0.0, 0.0), told
    middle, half = sum(interval) / 2, (interval[1] - interval[0]) / 2
    angles = [
        math.acos(min(max((t - middle) / half, -1.0), 1.0)) for t in (threshold, -threshold, 0.0)
    ]
    away = min(
        (abs(angle - angles[2]) for angle in angles[:2] if 0 < angle < math.pi), default=math.pi
    )
    needed = max(2, math.ceil(-_DAMPING * NormalDist().inv_cdf(0.025 / dim) / max(away, 1e-9)))
    degree = min(needed, _MOST_DEGREE) if degree is None else degree
    told |= {
        "resolution": 2 * _DAMPING / degree * half * max(map(math.sin, angles[:2])),
        "degree": float(degree),
    }
    coefficients, values = _step(angles[0], angles[1], degree), []
    for v in _signs(num_probes, dim, stream):
        moments = _moments(lambda u: (product(u) - middle * u) / half, v, degree)
        if (
            float(moments.abs().max()) > 1.01 * dim
        ):  # |T_k| ≤ 1 on the interval, and grows exponentially outside
            return Reading(
                math.nan,
                math.nan,
                f"an eigenvalue lies outside {interval}, where none was expected",
            ), told
        values.append(moments @ coefficients)
    each, status = torch.cat(values), "ok"
    if degree < needed:
        of_zero = float(
            coefficients @ torch.cos(angles[2] * torch.arange(degree + 1.0, dtype=torch.float64))
        )
        status = f"degree {degree} is too low: each eigenvalue of 0 counts {of_zero:.1g}; pass degree={needed}"
    return Reading(float(each.mean()), float(each.std() / num_probes**0.5), status), told


class Ends(NamedTuple):
    """Eigenvalues at both ends, their errors, and how they were found."""

    largest: Tensor
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    status: str
    num_products: int


def lanczos(
    product: Product, dim: int, count: int, tolerance: float, max_products: int, stream: Generator
) -> Ends:
    """The ``count`` largest and smallest eigenvalues, by Lanczos' method with full reorthogonalisation.

    From a random unit vector q₁ it builds an orthonormal basis Q of the span of q₁, Aq₁, A²q₁, … in which A is tridiagonal,
    T = QᵀAQ, AQ = QT + β q eᵀ. For an eigenpair T s = θ s the vector Qs has ‖A Qs − θ Qs‖ = β |s_last|, and for symmetric A
    some eigenvalue is that near to θ. Each new vector is made orthogonal to all earlier ones, twice, so that rounding does not
    bring eigenvalues back that were found already. It ends when all errors are below tolerance · max|θ|. Where the span
    cannot grow any more (few distinct eigenvalues), it goes on with a random vector orthogonal to it. Of an
    eigenvalue that occurs several times exactly, one copy may be all that is found.

    Args:
        product: of the matrix, see :data:`Product`; ``dim`` is its size.
        count: how many at each end, at most ``dim``.
        tolerance: in units of the largest |λ|.
        max_products: at least 2 · count.
        stream: of random numbers, on the CPU.

    Source: Parlett 1998, "The Symmetric Eigenvalue Problem", chapter 13.
    """
    most = min(dim, max_products)
    basis = torch.empty(most, dim, dtype=torch.float64)
    nothing = torch.full((count,), math.nan, dtype=torch.float64)
    q = _orthogonal(torch.randn(dim, generator=stream, dtype=torch.float64), basis[:0])[0]
    diagonal, beside = [], []
    for n in range(1, most + 1):
        basis[n - 1] = q
        image = product(q[None])[0]
        if not bool(image.isfinite().all()):
            return Ends(*[nothing] * 4, "the derivatives of the loss are not finite", n)
        diagonal.append(float(image @ q))
        q, length = _orthogonal(image, basis[:n])
        if length <= 1e-13 * max(map(abs, diagonal + beside)):  # the span cannot grow
            q, length = (
                _orthogonal(torch.randn(dim, generator=stream, dtype=torch.float64), basis[:n])[0],
                0.0,
            )
        T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        T[1:, :-1] += torch.diag(
            torch.tensor(beside, dtype=torch.float64)
        )  # eigh reads the lower half
        beside.append(length if n < dim else 0.0)
        theta, vectors = torch.linalg.eigh(T)
        error = beside[-1] * vectors[-1].abs()
        worst = float(torch.cat([error[:count], error[-count:]]).max())
        if n >= min(2 * count, dim) and worst <= tolerance * float(theta.abs().max()):
            return _ends(theta, error, count, "ok", n)
    return _ends(
        theta, error, count, f"not converged after {n} products: pass max_products={2 * n}", n
    )


def _ends(theta: Tensor, error: Tensor, count: int, status: str, num_products: int) -> Ends:
    return Ends(
        theta.flip(0)[:count],
        theta[:count],
        error.flip(0)[:count],
        error[:count],
        status,
        num_products,
    )


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The part of a vector that is orthogonal to ``basis [n, dim]``, as a unit vector, and its length."""
    for _ in range(2):  # once leaves rounding errors, twice does not
        vector = vector - (basis @ vector) @ basis
    length = float(vector.norm())
    return vector / max(length, 1e-300), length


def _step(above: float, below: float, degree: int) -> Tensor:
    """Damped cosine coefficients ``[degree + 1]`` of {θ < above} ∪ {θ > below} on [0, π]."""
    k = torch.arange(1.0, degree + 1, dtype=torch.float64)
    c = (
        2
        / math.pi
        * (torch.sin(k * above) - torch.sin(k * below))
        / k
        * torch.exp(-((_DAMPING * k / degree) ** 2) / 2)
    )
    return torch.cat([c.new_tensor([1 + (above - below) / math.pi]), c])


def _moments(product: Product, v: Tensor, degree: int) -> Tensor:
    """v·T_k(A)v ``[probe, degree + 1]`` for a matrix with eigenvalues in [−1, 1], in degree/2 products."""
    before, now = v, product(v)
    moments = [(v * v).sum(1), (v * now).sum(1)]
    while len(moments) <= degree:
        moments.append(2 * (now * now).sum(1) - moments[0])
        if len(moments) <= degree:
            before, now = now, 2 * product(now) - before
            moments.append(2 * (before * now).sum(1) - moments[1])
    return torch.stack(moments, 1)


def _signs(count: int, dim: int, stream: Generator) -> Iterator[Tensor]:
    """``count`` random sign vectors, as many at a time ``[probe, dim]`` as fit."""
    for start in range(0, count, _together(dim)):
        size = min(_together(dim), count - start), dim
        yield 2 * torch.randint(2, size, generator=stream).double() - 1


def _together(dim: int) -> int:
    """How many vectors are held at once: 64, or 128 MB of them."""
    return max(1, min(_TOGETHER, 2**24 // dim))
