"""Lanczos' method: a symmetric matrix, known by its products only, made small and tridiagonal.

From a unit vector q₁ the method builds an orthonormal basis Q of the span of q₁, Aq₁, A²q₁, …, in
which A is tridiagonal: T = QᵀAQ. The extreme eigenvalues of T soon are those of A.

Reference: Parlett 1998, "The Symmetric Eigenvalue Problem", chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix A by what it does: a vector ``v [dim]`` -> ``A v [dim]``."""

_NO_DIRECTION = 1e-13
"""A remainder this much smaller than the matrix is rounding: the span cannot grow."""


class Tridiagonal(NamedTuple):
    """A symmetric tridiagonal matrix T with AQ = QT + βq eᵀ, β being the last number beside."""

    diagonal: Tensor
    """``[step]``."""
    beside: Tensor
    """``[step]``: each links a step to the next; the last one leads out of the matrix."""

    def matrix(self) -> Tensor:
        """Return T as a dense matrix ``[step, step]``."""
        links = self.beside[:-1]
        above = torch.diag(links, 1)
        below = torch.diag(links, -1)
        return torch.diag(self.diagonal) + above + below


def largest_eigenvalue(
    product: Product,
    start: Tensor,
    num_steps: int,
    rounding: float,
) -> Tensor:
    """Return the largest eigenvalue that a few steps of the three-term recurrence find.

    >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    >>> round(float(largest_eigenvalue(lambda v: A @ v, torch.ones(3), 12, 1e-6)), 3)
    5.0

    The value is at most the true one, but for errors of the products. Only three vectors are held,
    and nothing is copied to the CPU. The vectors slowly lose their orthogonality, which makes the
    recurrence find an eigenvalue twice; that does no harm here.

    Args:
        product: of A, see :data:`Product`.
        start: ``[dim]``: where to start, of any length but 0. Its dtype is the one computed in.
        num_steps: products to make, at most; more than ``dim`` are never made.
        rounding: a remainder below this share of the largest |diagonal| may be an error of the
            products; it counts as 0, and the recurrence ends there.

    Returns:
        A scalar on the device of ``start``; NaN where a product is not finite, and for A = 0.
    """
    T = _recurrence(product, start, min(num_steps, len(start)), rounding).matrix()
    # An eigensolver refuses numbers that are not finite.
    finite = T.isfinite().all()
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, T, 0.0))
    return torch.where(finite, eigenvalues[-1], math.nan)


def _recurrence(
    product: Product,
    start: Tensor,
    num_steps: int,
    rounding: float,
) -> Tridiagonal:
    """Make each vector orthogonal to the two before it."""
    vector = start / start.norm()
    previous = torch.zeros_like(vector)
    length = vector.new_zeros(())
    diagonal = []
    beside = []
    for _ in range(num_steps):
        remainder = product(vector) - length * previous
        diagonal.append(remainder @ vector)
        remainder = remainder - diagonal[-1] * vector
        length = remainder.norm()
        # Decided without a branch, so that a GPU need not be waited for.
        at_end = length < rounding * torch.stack(diagonal).abs().max()
        length = torch.where(at_end, 0.0, length)
        previous = vector
        vector = torch.where(at_end, 0.0, remainder / length)
        beside.append(length)
    return Tridiagonal(torch.stack(diagonal), torch.stack(beside))


def orthogonalised(
    product: Product,
    dim: int,
    num_steps: int,
    stream: Generator,
) -> Iterator[Tridiagonal]:
    """Yield T after each step, with full re-orthogonalisation, from a random start.

    Each new vector is made orthogonal to all earlier ones, twice, so that rounding does not bring
    back eigenvalues that were found already. Where the span cannot grow (few distinct
    eigenvalues), it goes on with a random vector orthogonal to it.

    For an eigenpair T s = θ s the vector Qs has ‖A Qs − θ Qs‖ = β |s_last|, and some eigenvalue of
    A is that near to θ.

    Args:
        product: of A, in float64.
        dim: the size of A.
        num_steps: how many steps can be made, at most ``dim``; each keeps one vector.
        stream: random numbers, on the CPU.

    Yields:
        T of 1, 2, … steps. When a product is not finite, the last number on the diagonal is not;
        stop there.
    """
    basis = torch.empty(num_steps, dim, dtype=torch.float64)
    vector = _random_direction(basis[:0], dim, stream)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(num_steps):
        basis[step] = vector
        image = product(vector)
        diagonal.append(float(image @ vector))
        vector, length = _orthogonal(image, basis[: step + 1])
        size = max(abs(number) for number in diagonal + beside)
        if length <= _NO_DIRECTION * size:
            vector = _random_direction(basis[: step + 1], dim, stream)
            length = 0.0
        # In a space that is full there is no further direction: what is left is rounding.
        beside.append(0.0 if step + 1 == dim else length)
        yield Tridiagonal(
            diagonal=torch.tensor(diagonal, dtype=torch.float64),
            beside=torch.tensor(beside, dtype=torch.float64),
        )


def _random_direction(basis: Tensor, dim: int, stream: Generator) -> Tensor:
    """Draw a unit vector orthogonal to ``basis [n, dim]``."""
    normal = torch.randn(dim, generator=stream, dtype=torch.float64)
    return _orthogonal(normal, basis)[0]


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Return what of a vector is orthogonal to ``basis [n, dim]``: a unit vector and its length."""
    # Once leaves rounding errors, twice does not.
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    length = float(vector.norm())
    return vector / max(length, 1e-300), length
