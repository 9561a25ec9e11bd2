"""Which curves look alike: clusters of heads' curves, and how far they agree with given roles.

Needs the extra ``analysis``: scikit-learn, and SciPy or tslearn for some methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.analysis.cluster_methods import METHODS, in_order, package
from rllc.analysis.k_shape import divided, standardised
from rllc.errors import InputError, nearest
from rllc.plots.figures import layer_of, lines, log_steps, rise_from_0, with_roles
from rllc.plots.labels import name_ends
from rllc.plots.selection import one_or_all, panels_for, rows_of_data
from rllc.seeds import stable_hash
from rllc.sweep.trajectory import Trajectory
from rllc.tables import AsTable, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NORMALISATIONS = ("standardise", "min-max", "none")

_MOST_CLUSTERS = 8
_FEWEST_CHECKPOINTS = 3


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(AsTable):
    """A cluster for each curve; :func:`cluster` makes it.

    Args:
        names: of the curves, such as ``"1:6"``.
        labels: ``[curve]``: 0, 1, …, in the order in which clusters first appear; clusters of
            different groups have different labels.
        groups: ``[curve]``: what was clustered apart: ``"layer 0"``, …, or ``"all"``.
        curves: ``[curve, point]``: as they were compared: on the grid, normalised.
        points: ``[point]``: training steps of the grid, evenly spaced in log step; or 0, 1, … for
            curves without steps.
        scores: for each group, number of clusters -> mean silhouette, in −1 … 1; NaN where the
            method failed. Only for numbers that were tried.
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
        """Return the cluster of one curve.

        Raises:
            InputError: no such curve.
        """
        if name not in self.names:
            raise InputError(f"clusters[{name!r}]: no such curve; {nearest(name, self.names)}")
        return int(self.labels[self.names.index(name)])

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Cluster -> names of its curves."""
        members: dict[int, tuple[str, ...]] = {}
        for label in sorted(set(self.labels.tolist())):
            rows = np.flatnonzero(self.labels == label)
            members[label] = tuple(self.names[row] for row in rows)
        return members

    def adjusted_rand_index(self, roles: Mapping[str, str], group: str | None = None) -> float:
        """Return how far the clusters agree with roles.

        It is 1 for the same partition, and 0 on average for one at random. Only curves that have a
        role count. Over several groups, whose clusters always differ, heads of one role in two
        layers count as separated: look at one ``group`` at a time then.

        Args:
            roles: curve -> role, such as ``{"1:6": "induction"}``.
            group: ``"layer 0"``, …; ``None`` takes all.

        Raises:
            InputError: roles of unknown curves, no such group, or roles for fewer than two curves.

        Reference: Hubert and Arabie 1985, "Comparing partitions".
        """
        doing = "adjusted Rand index"
        for name in roles:
            if name not in self.names:
                raise InputError(f"{doing}: `roles` names {name!r}; {nearest(name, self.names)}")
        if group is not None and group not in self.groups:
            advice = nearest(group, dict.fromkeys(self.groups))
            raise InputError(f"{doing}: no group {group!r}; {advice}")
        rows = []
        for row, name in enumerate(self.names):
            if name in roles and group in (None, self.groups[row]):
                rows.append(row)
        if len(rows) < 2:
            raise InputError(f"{doing}: roles are needed for at least 2 curves, got {len(rows)}.")
        metrics = package("sklearn.metrics", "the adjusted Rand index")
        roles_of_rows = [roles[self.names[row]] for row in rows]
        return float(metrics.adjusted_rand_score(roles_of_rows, self.labels[rows]))

    def to_dataframe(self, roles: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return one row a curve: ``name, group, cluster``, and ``role`` when roles are given."""
        import pandas as pd

        columns: dict[str, Any] = {
            "name": self.names,
            "group": self.groups,
            "cluster": self.labels,
        }
        if roles is not None:
            columns["role"] = [roles.get(name) for name in self.names]
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        rows = [("cluster", "group", "curves", "silhouette", "members")]
        groups = np.array(self.groups)
        for label, members in self.members.items():
            group = self.groups[self.names.index(members[0])]
            num_clusters = len(set(self.labels[groups == group].tolist()))
            score = self.scores[group].get(num_clusters, np.nan)
            row = (
                str(label),
                group,
                str(len(members)),
                f"{score:.2f}",
                ", ".join(members),
            )
            rows.append(row)
        method = self.settings["method"]
        normalise = self.settings["normalise"]
        title = f"Clusters of {len(self)} curves ({method}, {normalise})"
        return Table(title, rows, left=(0, 1, 4))


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
    >>> cluster(np.concatenate([rising, hump]), method="k_means").labels
    array([0, 0, 0, 1, 1, 1])

    Curves with steps are first interpolated to as many points evenly spaced in log step, from the
    first step above 0 on: a checkpoint counts by the log step that it stands for, not by how
    densely checkpoints were kept. ``k_shape`` compares by the shape-based distance, 1 − the largest
    normalised cross-correlation over all shifts, so curves that do the same earlier or later are
    alike to it, as to ``dtw_k_means`` (tslearn's, which takes a while to compile when first used).
    ``k_means`` and ``hierarchical`` (Ward's) compare point by point.

    Args:
        curves: a :class:`rllc.Trajectory`; or names and values; or ``[curve, checkpoint]``, named
            "0", "1", …. Any curves, such as ablation effects over training.
        method: ``"k_shape"`` (the paper's), ``"k_means"``, ``"dtw_k_means"`` or ``"hierarchical"``.
        num_clusters: ``None`` takes the number from 2 to 8 with the largest mean silhouette in the
            method's own distance (the smaller of equals). The silhouette is not defined for one
            cluster, so it never says that there is one.
        normalise: each curve on its own: ``"standardise"`` to mean 0 and variance 1, ``"min-max"``
            to 0 … 1, or ``"none"``. ``k_shape`` always standardises, as its distance asks for.
        per_layer: cluster the heads of each layer apart, with as many clusters in each if
            ``num_clusters`` is given.
        steps: training steps of the checkpoints, rising; a trajectory brings its own.
        data: which data, when a trajectory has several.
        seed: of the random starts; the best of 10 counts.

    Raises:
        InputError: values that are missing or not finite (the curves are named: leave them or the
            checkpoints out), too few curves, an argument that cannot be used, or a package that is
            not installed.

    Reference: Paparrizos and Gravano 2015, "k-Shape"; Rousseeuw 1987, "Silhouettes"; arXiv
    2410.02984.
    """
    if method not in METHODS:
        raise InputError(f"clustering: no method {method!r}; {nearest(method, METHODS)}")
    if normalise not in NORMALISATIONS:
        advice = nearest(normalise, NORMALISATIONS)
        raise InputError(f"clustering: `normalise` cannot be {normalise!r}; {advice}")
    if method == "k_shape":
        normalise = "standardise"
    names, values, times = _curves(curves, steps, data)
    points, values = _on_log_grid(values, times)
    values = _normalised(values, normalise)
    groups = tuple(layer_of(name) if per_layer else "all" for name in names)
    labels = np.full(len(names), -1)
    scores = {}
    for group in dict.fromkeys(groups):
        rows = _rows_of(group, groups)
        labels_of_group, scores[group] = _best_clusters(
            values[rows], method, num_clusters, seed, group
        )
        # The clusters of one group are numbered on from those of the groups before it.
        labels[rows] = labels.max() + 1 + labels_of_group
    settings = {"method": method, "normalise": normalise, "seed": seed}
    return Clusters(names, labels, groups, values, points, scores, settings)


def plot_clusters(
    clusters: Clusters,
    roles: Mapping[str, str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | np.ndarray:
    """Draw the curves as they were compared, one colour a cluster; a panel a group.

    Each curve has its name and role at its end.

    >>> axes = plot_clusters(clusters, {"1:6": "induction"})

    Args:
        clusters: what :func:`cluster` gave.
        roles: curve -> role.
        ax: where to draw: one Axes, or one for each group; ``None`` makes a figure.

    Returns:
        The Axes, or an array of them ``[group]`` when there are several groups.

    Raises:
        InputError: the number of Axes is not that of groups.
    """
    groups = list(dict.fromkeys(clusters.groups))
    panels = panels_for(ax, groups, width=4.8, doing="plot_clusters", what="groups")
    roles = roles or {}
    labels = {name: f"cluster {clusters[name]}" for name in clusters.names}
    have_steps = clusters.points[0] > 0
    drawn = []
    for panel, group in zip(panels, groups, strict=True):
        rows = _rows_of(group, clusters.groups)
        names = [clusters.names[row] for row in rows]
        values = clusters.curves[rows]
        no_error = np.full_like(values, np.nan)
        colors = lines(panel, clusters.points, names, values, no_error, labels)
        words = with_roles(names, roles)
        drawn.append((panel, values, words, colors))
        if have_steps:
            log_steps(panel, clusters.points.tolist())
        panel.legend(frameon=False, fontsize="small")
        panel.set_title("" if group == "all" else group, fontsize="medium")
        panel.set_xlabel("training step" if have_steps else "point")
    # Names come last: the panels share a scale, which every curve may have changed.
    for panel, values, words, colors in drawn:
        name_ends(panel, clusters.points, values, words, colors)
    is_raw = clusters.settings["normalise"] == "none"
    panels[0].set_ylabel("value" if is_raw else "value, normalised")
    return one_or_all(panels)


def _rows_of(group: str, groups: Sequence[str]) -> list[int]:
    """The curves of a group."""
    return [row for row, group_of_row in enumerate(groups) if group_of_row == group]


def _curves(
    curves: Trajectory | Mapping[str, Sequence[float]] | np.ndarray,
    steps: Sequence[int] | None,
    data: str | None,
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Return names, values ``[curve, checkpoint]`` and steps, once they were checked."""
    _check_kind(curves)
    if isinstance(curves, Trajectory):
        rows = rows_of_data(curves.data, data, "clustering")
        names = tuple(curves.weights[row] for row in rows)
        values = curves.value[:, rows].T
        steps = curves.steps
    elif isinstance(curves, Mapping):
        names = tuple(curves)
        values = np.array([np.asarray(curve, dtype=np.float64) for curve in curves.values()])
    else:
        values = np.asarray(curves, dtype=np.float64)
        names = tuple(str(row) for row in range(len(values)))
    if values.ndim != 2 or values.shape[1] < _FEWEST_CHECKPOINTS:
        raise InputError(
            f"clustering: expected curves [curve, checkpoint] of at least {_FEWEST_CHECKPOINTS} "
            f"checkpoints, got {list(values.shape)}."
        )
    times = None if steps is None else _checked_steps(steps, values.shape[1])
    is_broken = ~np.isfinite(values).all(axis=1)
    broken = [names[row] for row in np.flatnonzero(is_broken)]
    if broken:
        listed = ", ".join(broken[:6])
        if len(broken) > 6:
            listed += " and others"
        raise InputError(
            f"clustering: {listed} have values that are missing or not "
            f"finite (diverged estimates). Leave these curves, or these checkpoints, out."
        )
    return names, values, times


def _check_kind(curves: object) -> None:
    """Refuse tables, whose rows may be curves or checkpoints, and curves of several lengths."""
    if hasattr(curves, "columns"):
        raise InputError(
            "clustering: a table does not say whether its rows are curves or checkpoints; type "
            "cluster({name: table[name] for name in table}) where each column is a curve, or "
            "cluster(table.to_numpy()) where each row is one."
        )
    if isinstance(curves, Trajectory) or not isinstance(curves, Mapping | list | tuple):
        return
    shapes = set()
    list_of_curves = curves.values() if isinstance(curves, Mapping) else curves
    for curve in list_of_curves:
        if isinstance(curve, np.ndarray | list | tuple):
            shapes.add(np.shape(curve))
    if len(shapes) > 1:
        first_shapes = ", ".join(str(list(shape)) for shape in sorted(shapes)[:4])
        raise InputError(
            f"clustering: all curves must be over the same checkpoints, got shapes {first_shapes}; "
            f"leave out the checkpoints that some curves have not."
        )


def _checked_steps(steps: Sequence[int], count: int) -> np.ndarray:
    times = np.asarray(steps, dtype=np.float64)
    is_one_each = times.shape == (count,)
    if not is_one_each or not rise_from_0(times):
        raise InputError(
            f"clustering: `steps` must be {count} rising steps from 0 on, one a checkpoint, "
            f"got {steps!r}."
        )
    if (times > 0).sum() < _FEWEST_CHECKPOINTS:
        raise InputError(
            f"clustering: at least {_FEWEST_CHECKPOINTS} checkpoints above step 0 are needed, "
            f"got steps {list(steps)}."
        )
    return times


def _on_log_grid(values: np.ndarray, steps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return points ``[point]`` and values ``[curve, point]``."""
    if steps is None:
        return np.arange(values.shape[1]), values
    above = steps > 0
    logs = np.log(steps[above])
    grid = np.linspace(logs[0], logs[-1], len(logs))
    interpolated = [np.interp(grid, logs, curve[above]) for curve in values]
    return np.exp(grid), np.stack(interpolated)


def _normalised(values: np.ndarray, normalise: str) -> np.ndarray:
    if normalise == "standardise":
        return standardised(values)
    if normalise == "min-max":
        lowest = values.min(1, keepdims=True)
        return divided(values, lowest, np.ptp(values, axis=1, keepdims=True))
    return values


def _best_clusters(
    values: np.ndarray,
    method: str,
    num_clusters: int | None,
    seed: int,
    group: str,
) -> tuple[np.ndarray, dict[int, float]]:
    """Return labels ``[curve]``, and the silhouette of each number of clusters that was tried."""
    numbers = _numbers_to_try(len(values), num_clusters, group)
    distances = METHODS[method].distances(values)
    seed_of_method = stable_hash("clustering", seed) % 2**32
    labels_by_number = {}
    scores = {}
    for number in numbers:
        labels: np.ndarray | None = np.zeros(len(values), int)
        if number > 1:
            labels = METHODS[method].labels(values, number, seed_of_method)
        if labels is None:
            scores[number] = np.nan
        else:
            scores[number] = _silhouette(distances, labels)
            labels_by_number[number] = in_order(labels)
    if not labels_by_number:
        tried = " or ".join(str(number) for number in numbers)
        raise InputError(
            f"clustering: k_shape found no {tried} clusters of {len(values)} curves{_of(group)} "
            f"that all have members; try fewer, or another method."
        )

    def preference(number: int) -> tuple[float, int]:
        """The score, and of equal scores the smaller number."""
        score = scores[number]
        if np.isnan(score):
            score = -np.inf
        return score, -number

    return labels_by_number[max(labels_by_number, key=preference)], scores


def _numbers_to_try(num_curves: int, num_clusters: int | None, group: str) -> list[int]:
    curves = f"{num_curves} curves{_of(group)}"
    if num_clusters is None:
        if num_curves < 3:
            raise InputError(
                f"clustering: {curves} are too few to choose a number of clusters; give it."
            )
        most = min(_MOST_CLUSTERS, num_curves - 1)
        return list(range(2, most + 1))
    if not 1 <= num_clusters <= num_curves:
        raise InputError(
            f"clustering: {curves} cannot make `num_clusters` = {num_clusters} clusters."
        )
    return [num_clusters]


def _of(group: str) -> str:
    return "" if group == "all" else f" of {group}"


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette; NaN where it is not defined."""
    num_clusters = len(set(labels.tolist()))
    if not 1 < num_clusters < len(labels):
        return float("nan")
    metrics = package("sklearn.metrics", "clustering")
    return float(metrics.silhouette_score(distances, labels, metric="precomputed"))
