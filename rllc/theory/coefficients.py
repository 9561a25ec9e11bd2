"""Learning coefficients that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from rllc.errors import InputError
from rllc.theory.checks import check_rank, count


class LearningCoefficient(NamedTuple):
    """A learning coefficient λ and its multiplicity m, as in V(t) ∝ t^λ (−log t)^(m−1)."""

    value: float
    multiplicity: int


def regular(d: int) -> LearningCoefficient:
    """Return λ = d/2, m = 1, of a regular model with ``d`` parameters.

    >>> regular(10)
    LearningCoefficient(value=5.0, multiplicity=1)
    """
    return LearningCoefficient(count("d", d) / 2, 1)


def normal_crossing(k: Sequence[int], h: Sequence[int] | None = None) -> LearningCoefficient:
    """Return λ of a normal crossing K(w) = Π w_i^(2k_i) under a prior ∝ Π |w_i|^(h_i), at 0.

    λ = min_i (h_i + 1)/(2 k_i) over the i with k_i > 0; m is the number of i that reach the
    minimum.

    >>> normal_crossing([1, 1])
    LearningCoefficient(value=0.5, multiplicity=2)

    Args:
        k: half the exponents of the loss, one per coordinate; at least one is positive.
        h: exponents of the prior density; all zero (a flat prior) when not given.

    Raises:
        InputError: the lengths differ, an exponent is negative, or no k is positive (the loss
            would be constant).

    Reference: Watanabe (2009).
    """
    k = [count("k", exponent, least=0) for exponent in k]
    if h is None:
        h = [0] * len(k)
    h = [count("h", exponent, least=0) for exponent in h]
    if len(k) != len(h):
        raise InputError(
            f"normal_crossing: k and h need one entry per coordinate; got {len(k)} and {len(h)}."
        )
    ratios = []
    for k_i, h_i in zip(k, h, strict=True):
        if k_i > 0:
            ratios.append(Fraction(h_i + 1, 2 * k_i))
    if not ratios:
        raise InputError(
            f"normal_crossing: at least one k must be positive, else the loss is constant; "
            f"got k={k}."
        )
    smallest = min(ratios)
    return LearningCoefficient(float(smallest), ratios.count(smallest))


def reduced_rank_regression(M: int, N: int, H: int, r: int) -> LearningCoefficient:
    """Return the global λ of reduced-rank regression y = BAx, A [H, M], B [N, H].

    1. N+r ≤ M+H, M+r ≤ N+H and H+r ≤ M+N: s = −(H+r)² − M² − N² + 2(H+r)(M+N) + 2MN;
       λ = s/8, m = 1 when M+H+N+r is even, λ = (s+1)/8, m = 2 when it is odd.
    2. M+H < N+r: λ = (HM − Hr + Nr)/2, m = 1.
    3. N+H < M+r: λ = (HN − Hr + Mr)/2, m = 1.
    4. M+N < H+r: λ = MN/2, m = 1.

    This is the smallest local value over the fibre BA = truth; at a given point of it use
    :func:`reduced_rank_regression_at`.

    >>> reduced_rank_regression(5, 5, 3, 0)
    LearningCoefficient(value=6.5, multiplicity=2)

    Args:
        M: inputs.
        N: outputs.
        H: hidden units.
        r: rank of the true BA, at most min(M, N, H).

    Raises:
        InputError: a width is not positive or ``r`` is not a possible rank.

    Reference: Aoyagi and Watanabe (2005), main theorem.
    """
    M, N, H = _widths(M, N, H)
    check_rank("reduced_rank_regression", "r", r, 0, min(M, N, H))
    return _reduced_rank_regression(M, N, H, r)


def reduced_rank_regression_at(
    M: int, N: int, H: int, r1: int, r2: int, r: int
) -> LearningCoefficient:
    """Return the local λ where rank A = ``r1``, rank B = ``r2``, rank BA = ``r``.

    λ = ½(N r1 + M r2 − r1 r2) + λ_RRR(M − r1, N − r2, H − r1 − r2 + r; 0). The first term is half
    the rank of the derivative of (A, B) → BA. In the remaining directions the product is again one
    of reduced-rank regression, between the kernel of A, the part of ker B outside im A, and the
    cokernel of B, at zero.

    A random teacher is usually not at the most degenerate point of its fibre, so its local value
    is above the global one.

    >>> reduced_rank_regression_at(5, 5, 3, r1=3, r2=1, r=1).value
    8.5
    >>> reduced_rank_regression(5, 5, 3, 1).value
    8.0

    Args:
        M: inputs, and so ``N`` and ``H`` as in :func:`reduced_rank_regression`.
        r1: rank of A.
        r2: rank of B.
        r: rank of BA.

    Raises:
        InputError: no such point exists: ranks must satisfy
            max(0, r1 + r2 − H) ≤ r ≤ min(r1, r2), r1 ≤ min(H, M), r2 ≤ min(N, H).
    """
    M, N, H = _widths(M, N, H)
    function = "reduced_rank_regression_at"
    check_rank(function, "r1", r1, 0, min(H, M))
    check_rank(function, "r2", r2, 0, min(N, H))
    smallest_rank = max(0, r1 + r2 - H)
    largest_rank = min(r1, r2)
    check_rank(function, "r", r, smallest_rank, largest_rank)
    rank_of_derivative = N * r1 + M * r2 - r1 * r2
    at_zero = _reduced_rank_regression(M - r1, N - r2, H - r1 - r2 + r, 0)
    value = rank_of_derivative / 2 + at_zero.value
    return LearningCoefficient(value, at_zero.multiplicity)


def deep_linear(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """Return the global λ of a deep linear network y = W_L ⋯ W_1 x with a product of this rank.

    With M_s = H_s − r, let Σ be the set of layers, |Σ| = l + 1, with max_Σ M < min_{Σᶜ} M,
    Σ_Σ M ≥ l·max_Σ M and Σ_Σ M < l·min_{Σᶜ} M; S = Σ_Σ M and a = S − (⌈S/l⌉ − 1)l. Then

    λ = (r(H_0 + H_L) − r²)/2 + a(l − a)/(4l) − (l(l−1)/4)(S/l)² + ½ Σ_{i<j∈Σ} M_i M_j,
    m = a(l − a) + 1.

    Sorted by size, Σ is the longest beginning M_1 ≤ … ≤ M_{l+1} with Σ_Σ M ≥ l·M_{l+1}. Two layers
    always satisfy it, so l ≥ 1 and nothing is divided by zero, also where several M are zero.

    >>> deep_linear([10, 10, 10, 10], rank=3)
    LearningCoefficient(value=42.0, multiplicity=3)

    Args:
        widths: H_0 (inputs), …, H_L (outputs); at least two.
        rank: rank of the true product, at most min(widths).

    Raises:
        InputError: fewer than two widths, a width is not positive, or ``rank`` is not a possible
            rank.

    Reference: Aoyagi (2024), main theorem.
    """
    H = [count("widths", width) for width in widths]
    if len(H) < 2:
        raise InputError(
            f"deep_linear: widths needs at least the inputs and the outputs, H_0 and H_1; got {H}."
        )
    check_rank("deep_linear", "rank", rank, 0, min(H))
    excess = sorted(width - rank for width in H)
    M = _aoyagi_subset(excess)
    S = sum(M)
    ell = len(M) - 1
    ceiling = -(-S // ell)  # ⌈S/l⌉
    a = S - (ceiling - 1) * ell
    sum_of_squares = sum(width**2 for width in M)
    sum_of_products = Fraction(S**2 - sum_of_squares, 2)  # Σ_{i<j} M_i M_j
    ends = H[0] + H[-1]
    value = Fraction(rank * ends - rank**2, 2)
    value += Fraction(a * (ell - a), 4 * ell)
    mean_excess = Fraction(S, ell)
    value -= Fraction(ell * (ell - 1), 4) * mean_excess**2
    value += sum_of_products / 2
    multiplicity = a * (ell - a) + 1
    return LearningCoefficient(float(value), multiplicity)


def one_head_attention(v: int, d_head: int) -> LearningCoefficient:
    """Return λ of one attention head fitted to a uniform target, inputs uniform over ``v`` tokens.

    λ = λ_RRR(M = v, N = v − 1, H = d_head, r = 0): the truth is the zero product, and one output
    direction drops out because the softmax does not see a constant.

    >>> one_head_attention(5, d_head=2)
    LearningCoefficient(value=4.0, multiplicity=2)

    Raises:
        InputError: fewer than 2 tokens, or ``d_head`` is not positive.
    """
    num_tokens = count("v", v, least=2)
    width = count("d_head", d_head)
    return reduced_rank_regression(num_tokens, num_tokens - 1, width, 0)


def _widths(M: int, N: int, H: int) -> tuple[int, int, int]:
    """Inputs, outputs and hidden units as integers."""
    return count("M", M), count("N", N), count("H", H)


def _reduced_rank_regression(M: int, N: int, H: int, r: int) -> LearningCoefficient:
    """The four cases; widths of zero are allowed (they give λ = 0)."""
    if N + r > M + H:
        value = (H * M - H * r + N * r) / 2
        return LearningCoefficient(value, 1)
    if M + r > N + H:
        value = (H * N - H * r + M * r) / 2
        return LearningCoefficient(value, 1)
    if H + r > M + N:
        value = M * N / 2
        return LearningCoefficient(value, 1)
    s = 2 * (H + r) * (M + N) + 2 * M * N
    s -= (H + r) ** 2 + M**2 + N**2
    parity = (M + H + N + r) % 2
    return LearningCoefficient((s + parity) / 8, 1 + parity)


def _aoyagi_subset(M: list[int]) -> list[int]:
    """The longest beginning of the sorted M with sum ≥ (length − 1)·largest.

    Where one beginning fails, all longer ones fail.
    """
    subset = M[:2]
    for width in M[2:]:
        if sum(subset) + width < len(subset) * width:
            break
        subset.append(width)
    return subset
