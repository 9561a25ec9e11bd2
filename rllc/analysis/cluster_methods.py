"""The methods of clustering: what each calls alike, and how it parts curves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rllc.analysis.k_shape import k_shape, shape_distances
from rllc.errors import InputError

_STARTS = 10
"""Runs from random starts, of which the best by the method's own measure is kept."""


class Method(NamedTuple):
    """A way to cluster curves ``[curve, point]``."""

    labels: Callable[[np.ndarray, int, int], np.ndarray | None]
    """Curves, number of clusters and seed -> labels ``[curve]``; ``None`` where it fails."""
    distances: Callable[[np.ndarray], np.ndarray]
    """Curves -> distances ``[curve, curve]``."""


def package(module: str, needed_for: str) -> Any:
    """Import a module of the extra ``analysis``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".")[0].replace("sklearn", "scikit-learn")
        raise InputError(
            f"{needed_for} needs {name}; type: pip install 'rllc[analysis]'"
        ) from error


def in_order(labels: np.ndarray) -> np.ndarray:
    """Number the same clusters from 0 on, as they first come.

    >>> in_order(np.array([4, 4, 1]))
    array([0, 0, 1])
    """
    number_of_label: dict[int, int] = {}
    for label in labels.tolist():
        number_of_label.setdefault(label, len(number_of_label))
    return np.array([number_of_label[label] for label in labels.tolist()])


def _k_means(values: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    sklearn = package("sklearn.cluster", "k_means")
    method = sklearn.KMeans(num_clusters, n_init=_STARTS, random_state=seed)
    return method.fit_predict(values)


def _dtw_k_means(values: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    tslearn = package("tslearn.clustering", "dtw_k_means")
    method = tslearn.TimeSeriesKMeans(num_clusters, metric="dtw", n_init=_STARTS, random_state=seed)
    return method.fit_predict(values[:, :, None])


def _hierarchical(values: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    hierarchy = package("scipy.cluster.hierarchy", "hierarchical")
    return hierarchy.fcluster(hierarchy.linkage(values, "ward"), num_clusters, "maxclust")


def _euclidean(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values[:, None] - values[None], axis=-1)


def _dtw(values: np.ndarray) -> np.ndarray:
    return package("tslearn.metrics", "dtw_k_means").cdist_dtw(values[:, :, None])


METHODS = {
    "k_shape": Method(k_shape, shape_distances),
    "k_means": Method(_k_means, _euclidean),
    "dtw_k_means": Method(_dtw_k_means, _dtw),
    "hierarchical": Method(_hierarchical, _euclidean),
}
