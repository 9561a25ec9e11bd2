"""Which curves look alike: clusters of the heads' curves over training, and how far they agree with given roles.

Needs the extra ``analysis``: scikit-learn, and SciPy or tslearn for some methods.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError, nearest
from rllc.plots.figures import layer_of, lines, log_steps, name_ends, row_of_axes
from rllc.seeds import stable_hash
from rllc.tables import table
from rllc.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

METHODS = ("k_shape", "k_means", "dtw_k_means", "hierarchical")
NORMALISATIONS = ("standardise", "min-max", "none")
_MOST_CLUSTERS = 8
_MOST_ROUNDS = 100
_STARTS = 10
"""Runs from random starts, of which the best by the method's own measure is kept."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """A cluster for each curve; :func:`cluster` makes it.

    Args:
        names: of the curves, such as ``"1:6"``.
        labels: ``[curve]``: 0, 1, …, in the order in which clusters first appear; clusters of different groups have
            different labels.
        groups: ``[curve]``: what was clustered apart: ``"layer 0"``, …, or ``"all"``.
        curves: ``[curve, point]``: as they were compared: on the grid, normalised.
        points: ``[point]``: training steps of the grid, evenly spaced in log step; or 0, 1, … for curves without steps.
        scores: for each group, number of clusters -> mean silhouette, in −1 … 1; NaN where the method failed. Only for
            numbers that were tried.
        settings: method, normalisation and seed.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    groups: tuple[str, ...]
    curves: np.ndarray
    points: np.ndarray
    scores: Mapping[str, Mapping[int, float]]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> int:
        """The cluster of one curve.

        Raises:
            InputError: no such curve.
        """
        if name not in self.names:
            raise InputError(f"clusters[{name!r}]: no such curve; {nearest(name, self.names)}")
        return int(self.labels[self.names.index(name)])

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Cluster -> names of its curves."""
        return {
            k: tuple(
                name for name, label in zip(self.names, self.labels, strict=True) if label == k
            )
            for k in sorted(set(self.labels.tolist()))
        }

    def adjusted_rand_index(self, roles: Mapping[str, str], group: str | None = None) -> float:
        """How far the clusters agree with roles: 1 for the same partition, 0 in the mean for one at random.

        Of curves that have a role only. Over several groups, whose clusters always differ, heads of one role in two
        layers count as parted: look at one ``group`` at a time then.

        Args:
            roles: curve -> role, such as ``{"1:6": "induction"}``.
            group: ``"layer 0"``, …; ``None`` takes all.

        Raises:
            InputError: roles for curves that there are not, no such group, or roles for fewer than two curves.

        Reference: Hubert and Arabie 1985, "Comparing partitions".
        """
        for name in roles:
            if name not in self.names:
                raise InputError(
                    f"adjusted Rand index: `roles` names {name!r}; {nearest(name, self.names)}"
                )
        if group is not None and group not in self.groups:
            raise InputError(
                f"adjusted Rand index: no group {group!r}; {nearest(group, dict.fromkeys(self.groups))}"
            )
        mine = [
            i for i, n in enumerate(self.names) if n in roles and group in (None, self.groups[i])
        ]
        if len(mine) < 2:
            raise InputError(
                f"adjusted Rand index: roles are needed for at least 2 curves, got {len(mine)}."
            )
        metrics = _needed("sklearn.metrics", "the adjusted Rand index")
        return float(
            metrics.adjusted_rand_score([roles[self.names[i]] for i in mine], self.labels[mine])
        )

    def to_dataframe(self, roles: Mapping[str, str] | None = None) -> pd.DataFrame:
        """One row a curve: ``name, group, cluster``, and ``role`` when roles are given."""
        import pandas as pd

        columns = {"name": self.names, "group": self.groups, "cluster": self.labels}
        return pd.DataFrame(
            columns | ({} if roles is None else {"role": [roles.get(name) for name in self.names]})
        )

    def __repr__(self) -> str:
        rows = [("cluster", "group", "curves", "silhouette", "members")]
        for k, members in self.members.items():
            group = self.groups[self.names.index(members[0])]
            in_group = len(
                {label for label, g in zip(self.labels, self.groups, strict=True) if g == group}
            )
            score = self.scores[group].get(in_group, np.nan)
            rows.append((str(k), group, str(len(members)), f"{score:.2f}", ", ".join(members)))
        title = f"Clusters of {len(self)} curves ({self.settings['method']}, {self.settings['normalise']})"
        return table(title, rows, left=(0, 1, 4))


def cluster(
    curves: Trajectory | Mapping[str, Sequence[float]] | np.ndarray,
    *,
    method: str = "k_shape",
    num_clusters: int | None = None,
    normalise: str = "standardise",
    per_layer: bool = False,
    steps: Sequence[int] | None = None,
    data: str | None = None,
    seed: int = 0,
) -> Clusters:
    """Put curves that look alike into clusters.

    >>> time = np.linspace(0, 1, 20)
    >>> rising, hump = np.outer([1, 2, 3], time), np.outer([1, 2, 3], time * (1 - time))
    >>> cluster(np.concatenate([rising, hump]), method="k_means").labels                # doctest: +SKIP
    array([0, 0, 0, 1, 1, 1])

    Curves with steps are first interpolated to as many points evenly spaced in log step, from the first step above 0 on:
    a checkpoint counts by the log step that it stands for, not by how densely checkpoints were kept. ``k_shape`` compares
    by the shape-based distance, 1 − the largest normalised cross-correlation over all shifts, so curves that do the same
    earlier or later are alike to it, as to ``dtw_k_means`` (tslearn's, which takes a while to compile when first used);
    ``k_means`` and ``hierarchical`` (Ward's) compare point by point.

    Args:
        curves: a :class:`rllc.Trajectory`; or names and values; or ``[curve, checkpoint]``, named "0", "1", …. Any curves,
            such as ablation effects over training.
        method: ``"k_shape"`` (the paper's), ``"k_means"``, ``"dtw_k_means"`` or ``"hierarchical"``.
        num_clusters: ``None`` takes the number from 2 to 8 with the largest mean silhouette in the method's own distance
            (the smaller of equals). The silhouette is not defined for one cluster, so it never says that there is one.
        normalise: each curve on its own: ``"standardise"`` to mean 0 and variance 1, ``"min-max"`` to 0 … 1, or ``"none"``.
            ``k_shape`` standardises in any case, as its distance asks for, so this changes nothing there.
        per_layer: cluster the heads of each layer apart, with as many clusters in each if ``num_clusters`` is given.
        steps: training steps of the checkpoints, rising; a trajectory brings its own.
        data: which data, when a trajectory has several.
        seed: of the random starts; the best of 10 counts.

    Raises:
        InputError: values that are missing or not finite (they are named: leave these curves or checkpoints out), too few curves,
            an argument that cannot be used, or a package that is not installed.

    Reference: Paparrizos and Gravano 2015, "k-Shape"; Rousseeuw 1987, "Silhouettes"; arXiv 2410.02984.
    """
    if method not in METHODS:
        raise InputError(f"clustering: no method {method!r}; {nearest(method, METHODS)}")
    if normalise not in NORMALISATIONS:
        raise InputError(
            f"clustering: `normalise` cannot be {normalise!r}; {nearest(normalise, NORMALISATIONS)}"
        )
    names, values, steps = _curves(curves, steps, data)
    points, values = _on_log_grid(values, steps)
    values = _normalised(values, "standardise" if method == "k_shape" else normalise)
    groups = tuple(layer_of(name) if per_layer else "all" for name in names)
    labels, scores = np.full(len(names), -1), {}
    for group in dict.fromkeys(groups):
        mine = np.array([g == group for g in groups])
        found, scores[group] = _clustered(values[mine], method, num_clusters, seed, group)
        labels[mine] = labels.max() + 1 + found
    settings = {
        "method": method,
        "normalise": "standardise" if method == "k_shape" else normalise,
        "seed": seed,
    }
    return Clusters(names, labels, groups, values, points, scores, settings)


def shape_distances(curves: np.ndarray) -> np.ndarray:
    """1 − the largest normalised cross-correlation of each pair of curves over all shifts: ``[curve, curve]``, in 0 … 2.

    >>> shape_distances(np.array([[0.0, 1, 0, 0], [0, 0, 2, 0], [0, -1, 0, 0]])).round(3)[0]
    array([0., 0., 1.])

    Args:
        curves: ``[curve, point]``, standardised. A curve of zeros is at distance 1 from all others.

    Reference: Paparrizos and Gravano 2015, "k-Shape", equation 9.
    """
    distances = 1 - _correlations(curves, curves).max(-1)
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0)
    return distances.clip(0, 2)


def plot_clusters(
    clusters: Clusters,
    roles: Mapping[str, str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | np.ndarray:
    """The curves as they were compared, one colour a cluster, each with its name and role at its end; a panel a group.

    >>> axes = plot_clusters(clusters, {"1:6": "induction"})                       # doctest: +SKIP

    Args:
        clusters: what :func:`cluster` gave.
        roles: curve -> role.
        ax: where to draw: one Axes, or one for each group; ``None`` makes a figure.

    Returns:
        The Axes, or an array of them ``[group]`` when there are several groups.

    Raises:
        InputError: as many Axes as there are not groups.
    """
    groups = list(dict.fromkeys(clusters.groups))
    panels = (
        row_of_axes(len(groups), width=4.8)
        if ax is None
        else list(np.atleast_1d(np.array(ax, dtype=object)))
    )
    if len(panels) != len(groups):
        raise InputError(
            f"plot_clusters: expected one Axes for each of {len(groups)} groups, got {len(panels)}."
        )
    labels = {name: f"cluster {k}" for name, k in zip(clusters.names, clusters.labels, strict=True)}
    words = {name: f"{name} {(roles or {}).get(name, '')}".strip() for name in clusters.names}
    drawn = []
    for panel, group in zip(panels, groups, strict=True):
        mine = [i for i, g in enumerate(clusters.groups) if g == group]
        names, values = [clusters.names[i] for i in mine], clusters.curves[mine]
        colors = lines(panel, clusters.points, names, values, np.full_like(values, np.nan), labels)
        drawn.append((panel, values, [words[name] for name in names], colors))
        if clusters.points[0] > 0:
            log_steps(panel, clusters.points.tolist())
        panel.set_title("" if group == "all" else group, fontsize="medium")
        panel.set_xlabel("training step" if clusters.points[0] > 0 else "point")
    for panel, values, beside, colors in drawn:  # when all curves have made room for themselves
        name_ends(panel, clusters.points, values, beside, colors)
    panels[0].set_ylabel({"none": "value"}.get(clusters.settings["normalise"], "value, normalised"))
    return panels[0] if len(panels) == 1 else np.array(panels)


# The curves: names, values, and what is compared of them.


def _curves(
    curves: Trajectory | Mapping[str, Sequence[float]] | np.ndarray,
    steps: Sequence[int] | None,
    data: str | None,
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    if isinstance(curves, Trajectory):
        known = list(dict.fromkeys(curves.data))
        if data is None and len(known) > 1:
            raise InputError(
                f"clustering: on which data? The trajectory has {known}; pass data={known[0]!r}."
            )
        if data is not None and data not in known:
            raise InputError(f"clustering: no data {data!r}; {nearest(data, known)}")
        mine = [i for i, name in enumerate(curves.data) if data in (None, name)]
        names, values, steps = (
            tuple(curves.weights[i] for i in mine),
            curves.value[:, mine].T,
            curves.steps,
        )
    elif isinstance(curves, Mapping):
        names, values = (
            tuple(curves),
            np.array([np.asarray(curve, dtype=np.float64) for curve in curves.values()]),
        )
    else:
        values = np.asarray(curves, dtype=np.float64)
        names = tuple(map(str, range(len(values))))
    if values.ndim != 2 or values.shape[1] < 3:
        raise InputError(
            f"clustering: expected curves [curve, checkpoint] of at least 3 checkpoints, got {list(values.shape)}."
        )
    times = None if steps is None else _checked_steps(steps, values.shape[1])
    broken = [
        name for name, curve in zip(names, values, strict=True) if not np.isfinite(curve).all()
    ]
    if broken:
        raise InputError(
            f"clustering: {', '.join(broken[:6])}{' and others' if len(broken) > 6 else ''} have values that are missing or "
            f"not finite (diverged estimates). Leave these curves, or these checkpoints, out."
        )
    return names, values, times


def _checked_steps(steps: Sequence[int], count: int) -> np.ndarray:
    times = np.asarray(steps, dtype=np.float64)
    if times.shape != (count,) or (np.diff(times) <= 0).any() or times[0] < 0:
        raise InputError(
            f"clustering: `steps` must be {count} rising steps from 0 on, one a checkpoint, got {steps!r}."
        )
    if (times > 0).sum() < 3:
        raise InputError(
            f"clustering: at least 3 checkpoints above step 0 are needed, got steps {list(steps)}."
        )
    return times


def _on_log_grid(values: np.ndarray, steps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """``points, values [curve, point]``."""
    if steps is None:
        return np.arange(values.shape[1]), values
    above = steps > 0
    logs = np.log(steps[above])
    grid = np.linspace(logs[0], logs[-1], int(above.sum()))
    return np.exp(grid), np.stack([np.interp(grid, logs, curve[above]) for curve in values])


def _normalised(values: np.ndarray, how: str) -> np.ndarray:
    if how == "none":
        return values
    if how == "min-max":
        start, spread = values.min(1, keepdims=True), np.ptp(values, axis=1, keepdims=True)
    else:
        start, spread = values.mean(1, keepdims=True), values.std(1, keepdims=True)
    flat = spread <= 1e-12 * np.abs(values).max(
        1, keepdims=True
    )  # a constant curve has no shape, only rounding
    return np.where(flat, 0.0, (values - start) / np.where(flat, 1.0, spread))


# The methods.


def _clustered(
    values: np.ndarray, method: str, num_clusters: int | None, seed: int, group: str
) -> tuple[np.ndarray, dict[int, float]]:
    """Labels ``[curve]``, and the silhouette of each number of clusters that was tried."""
    count = len(values)
    where = "" if group == "all" else f" of {group}"
    if num_clusters is not None and not 1 <= num_clusters <= count:
        raise InputError(
            f"clustering: {count} curves{where} cannot make `num_clusters` = {num_clusters} clusters."
        )
    if num_clusters is None and count < 3:
        raise InputError(
            f"clustering: {count} curves{where} are too few to choose a number of clusters; give it."
        )
    numbers = (
        range(2, min(_MOST_CLUSTERS, count - 1) + 1) if num_clusters is None else [num_clusters]
    )
    distances = _DISTANCES[method](values)
    found, scores = {}, {}
    for k in numbers:
        labels = (
            _LABELS[method](values, k, stable_hash("clustering", seed) % 2**32)
            if k > 1
            else np.zeros(count, int)
        )
        scores[k] = float("nan") if labels is None else _silhouette(distances, labels)
        if labels is not None:
            found[k] = _in_order(labels)
    if not found:
        raise InputError(
            f"clustering: k_shape found no {' or '.join(map(str, numbers))} clusters of {count} curves{where} that all "
            f"have members; try fewer, or another method."
        )
    best = max(found, key=lambda k: (-np.inf if np.isnan(scores[k]) else scores[k], -k))
    return found[best], scores


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    if not 1 < len(set(labels.tolist())) < len(labels):
        return float("nan")
    metrics = _needed("sklearn.metrics", "clustering")
    return float(metrics.silhouette_score(distances, labels, metric="precomputed"))


def _in_order(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered as they first appear."""
    order = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()])


def _k_means(values: np.ndarray, k: int, seed: int) -> np.ndarray:
    sk = _needed("sklearn.cluster", "k_means")
    return sk.KMeans(k, n_init=_STARTS, random_state=seed).fit_predict(values)


def _dtw_k_means(values: np.ndarray, k: int, seed: int) -> np.ndarray:
    ts = _needed("tslearn.clustering", "dtw_k_means")
    return ts.TimeSeriesKMeans(k, metric="dtw", n_init=_STARTS, random_state=seed).fit_predict(
        values[:, :, None]
    )


def _hierarchical(values: np.ndarray, k: int, seed: int) -> np.ndarray:
    hierarchy = _needed("scipy.cluster.hierarchy", "hierarchical")
    return hierarchy.fcluster(hierarchy.linkage(values, "ward"), k, "maxclust")


def _k_shape(values: np.ndarray, k: int, seed: int) -> np.ndarray | None:
    """The best of several runs of k-Shape on standardised curves; ``None`` when each left a cluster without members.

    Centres and curves in turn: each curve joins the centre at the smallest shape-based distance; each centre becomes the
    shape that correlates most with its curves, shifted to fit the centre before. Here and not tslearn's, whose k-Shape
    takes from 20 seconds to minutes to compile in each process before it first runs; the results are compared with the
    authors' package in a test.
    """
    stream = np.random.default_rng(seed)
    best, lowest = None, np.inf
    for _ in range(_STARTS):
        labels, cost = _k_shape_run(values, values[stream.choice(len(values), k, replace=False)])
        if len(set(labels.tolist())) == k and cost < lowest:
            best, lowest = labels, cost
    return best


def _k_shape_run(values: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """Labels ``[curve]``, and the sum of squared distances to the centres."""
    labels = np.full(len(values), -1)
    for _ in range(_MOST_ROUNDS):
        correlations = _correlations(centers, values)  # [center, curve, shift]
        before, labels = labels, correlations.max(-1).argmax(0)
        cost = float(((1 - correlations.max((0, -1))) ** 2).sum())
        if np.array_equal(before, labels) or len(set(labels.tolist())) < len(centers):
            break
        shifts = correlations.argmax(-1)
        centers = np.stack(
            [_shape(values[labels == j], shifts[j][labels == j]) for j in range(len(centers))],
        )
    return labels, cost


def _shape(curves: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The standardised curve whose squared correlations with the shifted curves have the largest sum."""
    length = curves.shape[1]
    padded = np.concatenate(
        [curves, np.zeros_like(curves)], 1
    )  # what is shifted out of the curve leaves zeros
    places = (np.arange(length) - shifts[:, None]) % (2 * length)
    fitted = _normalised(np.take_along_axis(padded, places, 1), "standardise")
    _, vectors = np.linalg.eigh(fitted.T @ fitted)
    shape = vectors[:, -1]
    shape = shape if (fitted @ shape).sum() >= 0 else -shape  # an eigenvector has no sign
    return _normalised(shape[None], "standardise")[0]


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ_t a[t] b[t − shift] / (‖a‖ ‖b‖): ``[a, b, shift]``, shift 0, 1, …, and the negative ones behind, as in an FFT."""
    length = a.shape[1]
    spectra = []
    for curves in (a, b):
        norms = np.linalg.norm(curves, axis=1, keepdims=True)
        spectra.append(
            np.fft.rfft(curves / np.where(norms > 0, norms, 1), 2 * length)
        )  # zeros behind: no wrapping round
    return np.fft.irfft(spectra[0][:, None] * spectra[1][None].conj(), 2 * length)


def _euclidean(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values[:, None] - values[None], axis=-1)


def _dtw(values: np.ndarray) -> np.ndarray:
    return _needed("tslearn.metrics", "dtw_k_means").cdist_dtw(values[:, :, None])


_LABELS: dict[str, Callable[[np.ndarray, int, int], np.ndarray | None]] = {
    "k_shape": _k_shape,
    "k_means": _k_means,
    "dtw_k_means": _dtw_k_means,
    "hierarchical": _hierarchical,
}
_DISTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k_shape": shape_distances,
    "k_means": _euclidean,
    "dtw_k_means": _dtw,
    "hierarchical": _euclidean,
}


def _needed(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
        raise InputError(f"{what} needs {package}; type: pip install 'rllc[analysis]'") from error
