"""One layer of a deep linear network at an exact minimum: its λ and its curvatures."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rllc.errors import InputError
from rllc.theory.coefficients import LearningCoefficient


def deep_linear_layer(
    weights: Sequence[Any], layer: int, input_covariance: Any | None = None
) -> LearningCoefficient:
    """Return the refined λ of one layer at an exact minimum: rank(A)·rank(BΣ^½)/2, m = 1.

    A is the product of the later layers, B of the earlier ones, Σ = E[xxᵀ] of the refined data.
    With all other layers frozen the loss is quadratic in W_layer, with Hessian AᵀA ⊗ BΣBᵀ. Σ = 1
    gives the weight-refined coefficient (wrLLC), a rank-deficient Σ the data-refined one. At finite
    (lr, localization, nβ) use
    ``SGLDLaw(deep_linear_curvatures(weights, layer, input_covariance), ...)``.

    >>> weights = [np.eye(3, 4), np.eye(2, 3)]
    >>> deep_linear_layer(weights, layer=0, input_covariance=np.diag([1, 1, 0, 0]))
    LearningCoefficient(value=2.0, multiplicity=1)

    Args:
        weights: W_1, …, W_L, each ``[H_l, H_{l−1}]`` (``nn.Linear.weight``), arrays or tensors.
            Ranks are counted above the rounding error of the coarsest dtype given; use
            ``.double()`` when the numbers are exact as they stand.
        layer: index into ``weights``, from 0.
        input_covariance: Σ ``[H_0, H_0]``, second moments of the inputs about zero; the identity
            when not given.

    Raises:
        InputError: shapes do not chain, ``layer`` does not exist, or Σ is not a symmetric,
            positive semi-definite matrix.
    """
    later_spectrum, earlier_spectrum = _layer_spectra(weights, layer, input_covariance)
    later_rank = int(np.count_nonzero(later_spectrum))
    earlier_rank = int(np.count_nonzero(earlier_spectrum))
    return LearningCoefficient(later_rank * earlier_rank / 2, 1)


def deep_linear_curvatures(
    weights: Sequence[Any], layer: int, input_covariance: Any | None = None
) -> np.ndarray:
    """Return the curvatures of ½E‖y − ŷ‖² in the weights of one layer: the spectrum of AᵀA ⊗ BΣBᵀ.

    Arguments and errors are those of :func:`deep_linear_layer`. A loss that averages over the N
    outputs, or leaves out the ½, scales them: multiply by 2/N for ``nn.MSELoss``. Eigenvalues below
    the rounding error of the input's dtype are set to zero, so that their number is that of
    :func:`deep_linear_layer`.

    >>> deep_linear_curvatures([np.eye(2), 3 * np.eye(1, 2)], layer=0)
    array([9., 9., 0., 0.])

    Returns:
        Eigenvalues ``[H_l · H_{l−1}]``, largest first.
    """
    later_spectrum, earlier_spectrum = _layer_spectra(weights, layer, input_covariance)
    products = np.outer(later_spectrum, earlier_spectrum)
    rising = np.sort(products.ravel())
    return rising[::-1].copy()


def _layer_spectra(
    weights: Sequence[Any], layer: int, input_covariance: Any | None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of AᵀA [H_l] and of BΣBᵀ [H_{l−1}], those within rounding exactly zero."""
    matrices = [_matrix(f"weights[{i}]", w) for i, w in enumerate(weights)]
    _check_chain(matrices)
    if not matrices or not 0 <= operator.index(layer) < len(matrices):
        raise InputError(
            f"deep_linear_layer: layer must be 0 … {len(matrices) - 1}; got {layer!r}."
        )
    outputs, inputs = matrices[layer].shape
    width = matrices[0].shape[1]
    sigma = np.eye(width)
    if input_covariance is not None:
        sigma = _matrix("input_covariance", input_covariance)
    root = _root(sigma, width)
    later_spectrum = _squared_singular_values(matrices[layer + 1 :], outputs)
    earlier_spectrum = _squared_singular_values([root, *matrices[:layer]], inputs)
    return later_spectrum, earlier_spectrum


def _check_chain(matrices: list[np.ndarray]) -> None:
    """Refuse a layer that does not take what the one before it gives."""
    for i, (first, second) in enumerate(pairwise(matrices)):
        outputs = first.shape[0]
        inputs = second.shape[1]
        if inputs != outputs:
            raise InputError(
                f"deep_linear_layer: weights[{i + 1}] must take the {outputs} outputs of "
                f"weights[{i}], [H, {outputs}]; got {list(second.shape)}. "
                f"Give nn.Linear.weight layouts, first layer first."
            )


def _squared_singular_values(chain: list[np.ndarray], dim: int) -> np.ndarray:
    """Squared singular values [dim] of a product of matrices, the first applied first.

    Those below the product's rounding error are 0. That error scales with the product of the
    norms, not with the norm of the product; rounding every entry of a matrix of n columns moves
    its singular values by about eps·√n of the largest at most.
    """
    if not chain:
        return np.ones(dim)
    product = chain[0].astype(np.float64)
    for matrix in chain[1:]:
        product = matrix.astype(np.float64) @ product
    values = np.linalg.svd(product, compute_uv=False)
    eps = max(_eps(matrix) for matrix in chain)
    product_of_norms = math.prod(float(np.linalg.norm(matrix, 2)) for matrix in chain)
    widest = max(max(matrix.shape) for matrix in chain)
    rounding = 10 * math.sqrt(widest) * eps * product_of_norms
    values = np.where(values > rounding, values, 0.0)
    num_missing = max(0, dim - values.size)
    squares = np.pad(values**2, (0, num_missing))
    return squares[:dim]


def _eps(matrix: np.ndarray) -> float:
    """The relative rounding error of a matrix's entries."""
    return float(np.finfo(matrix.dtype).eps)


def _root(sigma: np.ndarray, width: int) -> np.ndarray:
    """Σ^½, with eigenvalues within rounding of zero made zero, since their root is not small."""
    largest = float(np.abs(sigma).max(initial=0.0))
    rounding = width * _eps(sigma) * largest
    is_symmetric = sigma.shape == (width, width)
    if is_symmetric:
        asymmetry = np.abs(sigma - sigma.T).max(initial=0.0)
        is_symmetric = bool(asymmetry <= 10 * rounding)
    if not is_symmetric:
        raise InputError(
            f"deep_linear_layer: input_covariance must be a symmetric [{width}, {width}] matrix, "
            f"E[x xᵀ]; got shape {list(sigma.shape)}. Symmetrise it as (S + S.T) / 2."
        )
    values, vectors = np.linalg.eigh(sigma.astype(np.float64))
    if values.min() < -10 * rounding:
        raise InputError(
            f"deep_linear_layer: input_covariance must be positive semi-definite; its smallest "
            f"eigenvalue is {values.min():.3g}. Give E[x xᵀ] of the inputs."
        )
    values = np.where(values > rounding, values, 0.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    return root.astype(sigma.dtype)


def _matrix(name: str, value: Any) -> np.ndarray:
    """A matrix of floating-point numbers."""
    if hasattr(value, "detach"):  # a tensor, perhaps on another device or with a gradient
        value = value.detach().cpu()
    array = np.asarray(value)
    is_matrix = array.ndim == 2 and array.size > 0
    is_float = array.dtype.kind == "f"
    is_real = is_float or array.dtype.kind in "iu"
    if not is_matrix or not is_real or not np.isfinite(array).all():
        raise InputError(
            f"deep_linear_layer: {name} must be a matrix [out, in] of finite numbers; "
            f"got shape {list(array.shape)}, dtype {array.dtype}."
        )
    return array if is_float else array.astype(np.float64)
