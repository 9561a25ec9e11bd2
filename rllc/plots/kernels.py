"""Loss kernels and influence as maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.errors import InputError
from rllc.plots.figures import color_of, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rllc.covariances.influence import LossKernel


def plot_kernel(kernel: LossKernel, weights: str | tuple[str, str], ax: Axes | None = None) -> Axes:
    """Draw one refinement's kernel as a map; what is within two standard errors of 0 is white.

    >>> ax = plot_kernel(kernel, "everything")

    Args:
        kernel: of :func:`rllc.loss_kernel` or :func:`rllc.influence`.
        weights: which refinement, as in ``kernel["1:6"]``.
        ax: where to draw; ``None``: a new figure.

    Returns:
        The Axes.
    """
    mean = kernel[weights]
    ax = new_axes(ax, width=4.5, height=4.0)
    is_significant = np.abs(mean.value) > 2 * mean.standard_error
    values = np.where(is_significant, mean.value, 0.0)
    limit = float(np.nanmax(np.abs(values))) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    unit = "" if kernel.kind == "correlation" else ", squared nats"
    ax.figure.colorbar(image, ax=ax, label=f"{kernel.kind}{unit}")
    ax.set_xlabel("query")
    ax.set_ylabel("row")
    name = weights if isinstance(weights, str) else " on ".join(weights)
    ax.set_title(name, fontsize="medium")
    return ax


def plot_rows(
    kernel: LossKernel,
    weights: str | tuple[str, str],
    groups: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    seed: int = 0,
) -> Axes:
    """Draw rows as dots, near each other where their losses go together.

    By UMAP of the distances 1 − correlation where the package ``umap-learn`` is installed,
    otherwise by the first two principal components of the correlations.

    >>> ax = plot_rows(kernel, "everything", ["code"] * 12 + ["prose"] * 12)

    Args:
        kernel: of :func:`rllc.loss_kernel`, of the same rows on both axes.
        weights: which refinement, as in ``kernel["1:6"]``.
        groups: ``[row]``: what each row is, for its colour.
        ax: where to draw; ``None``: a new figure.
        seed: of UMAP.

    Returns:
        The Axes.

    Raises:
        InputError: the axes are of different rows, values are NaN, or ``groups`` are not as many.
    """
    value = kernel[weights].value
    num_rows, num_queries = value.shape
    if num_rows != num_queries or not np.isfinite(value).all():
        raise InputError(
            f"plot_rows: expected a kernel of the same rows on both axes, without NaN; got "
            f"{list(value.shape)}."
        )
    has_legend = groups is not None
    if groups is None:
        groups = [""] * num_rows
    if len(groups) != num_rows:
        raise InputError(f"plot_rows: expected {num_rows} `groups`, got {len(groups)}.")
    deviation = np.sqrt(np.diagonal(value))
    correlation = value / np.outer(deviation, deviation)
    places, axis = _places(correlation, seed)
    ax = new_axes(ax, width=4.5, height=4.0)
    group_of_row = np.array(list(groups))
    different_groups = dict.fromkeys(group_of_row.tolist())
    for number, group in enumerate(different_groups):
        is_in_group = group_of_row == group
        x, y = places[is_in_group].T
        ax.scatter(x, y, s=14, color=color_of(number), label=group or None)
    ax.set_xlabel(f"{axis} 1")
    ax.set_ylabel(f"{axis} 2")
    if has_legend:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _places(correlation: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Places of rows in a plane ``[row, 2]``, and what its axes are."""
    try:
        import umap  # type: ignore[import-not-found]
    except ImportError:
        return _principal_components(correlation), "principal component"
    method = umap.UMAP(metric="precomputed", random_state=seed)
    places = method.fit_transform(1 - correlation)
    return np.asarray(places), "UMAP"


def _principal_components(correlation: np.ndarray) -> np.ndarray:
    """The first two principal components, ``[row, 2]``."""
    centred = correlation - correlation.mean(axis=0)
    centred = centred - centred.mean(axis=1, keepdims=True)
    symmetric = (centred + centred.T) / 2
    values, vectors = np.linalg.eigh(symmetric)
    largest_two = [-1, -2]  # eigenvalues rise
    variances = np.maximum(values[largest_two], 0.0)
    return vectors[:, largest_two] * np.sqrt(variances)
