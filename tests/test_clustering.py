"""Clusters of curves whose kinds are known; distances and scores against slow loops and other libraries."""

from __future__ import annotations

import itertools
import sys

import matplotlib as mpl
import numpy as np
import pytest

import rllc
from rllc.analysis.clustering import Clusters, cluster, plot_clusters
from rllc.analysis.k_shape import k_shape, shape_distances
from rllc.errors import InputError

mpl.use("Agg")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

STEPS = np.array([0, *range(100, 1000, 100), *range(1000, 10_001, 400)])
KINDS = ("multigram", "multigram", "multigram", "induction", "induction", "previous")
ROLES = {
    f"{layer}:{head}": kind for layer in range(2) for head, kind in enumerate(KINDS + KINDS[::-1])
}


def curves(seed: int = 0) -> dict[str, np.ndarray]:
    """A curve a head, of its role's shape, with its own height, offset and noise."""
    stream = np.random.default_rng(seed)
    x = np.log(np.maximum(STEPS, 60))
    shapes = {
        "multigram": 1 / (1 + np.exp(-3 * (x - 6.5))),
        "induction": np.exp(-2 * (x - 7.5) ** 2),
        "previous": -np.exp(-((x - 5.5) ** 2)) - 0.2 * x,
    }
    return {
        head: stream.uniform(1, 3) * shapes[role]
        + stream.uniform(0, 5)
        + 0.02 * stream.standard_normal(len(x))
        for head, role in ROLES.items()
    }


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)


def agreement(a: list, b: list) -> float:
    """The adjusted Rand index, by counting pairs."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    in_a = np.array([a[i] == a[j] for i, j in pairs])
    in_b = np.array([b[i] == b[j] for i, j in pairs])
    both, expected = (in_a & in_b).sum(), in_a.sum() * in_b.sum() / len(pairs)
    return (both - expected) / ((in_a.sum() + in_b.sum()) / 2 - expected)


# tslearn compiles DTW on first use, for 10 seconds or more.
@pytest.mark.parametrize(
    "method",
    ["k_shape", "k_means", "hierarchical", pytest.param("dtw_k_means", marks=pytest.mark.slow)],
)
def test_kinds_and_their_number_are_found(method: str) -> None:
    found = cluster(curves(), method=method, steps=STEPS)
    assert found.adjusted_rand_index(ROLES) == 1
    assert max(found.scores["all"], key=found.scores["all"].get) == 3
    assert found.names == tuple(ROLES)
    apart = cluster(curves(), method=method, steps=STEPS, per_layer=True, num_clusters=3)
    for layer in ("layer 0", "layer 1"):
        assert apart.adjusted_rand_index(ROLES, layer) == 1
    assert len(apart.members) == 6
    assert apart.groups == ("layer 0",) * 12 + ("layer 1",) * 12


def test_shapes_that_come_later_are_alike_to_k_shape_and_not_to_k_means() -> None:
    time = np.arange(80.0)
    humps = [np.exp(-((time - at) ** 2) / 30) for at in (20, 30, 40, 50)]
    pairs = [
        np.exp(-((time - at) ** 2) / 30) - np.exp(-((time - at - 15) ** 2) / 30)
        for at in (15, 25, 35, 45)
    ]
    kinds = {str(k): "hump" if k < 4 else "pair" for k in range(8)}
    assert cluster(np.array(humps + pairs), num_clusters=2).adjusted_rand_index(kinds) == 1
    assert (
        cluster(np.array(humps + pairs), num_clusters=2, method="k_means").adjusted_rand_index(
            kinds
        )
        < 0.7
    )


def test_shape_distances_by_a_slow_loop() -> None:
    values = standardised(np.random.default_rng(0).standard_normal((5, 12)).cumsum(1))
    for i, j in itertools.product(range(5), range(5)):
        best = max(
            sum(values[i, t] * values[j, t - shift] for t in range(12) if 0 <= t - shift < 12)
            for shift in range(-11, 12)
        )
        expected = 1 - best / (np.linalg.norm(values[i]) * np.linalg.norm(values[j]))
        assert shape_distances(values)[i, j] == pytest.approx(expected, abs=1e-12)
    assert shape_distances(np.zeros((2, 5)))[0, 1] == 1


@pytest.mark.oracle
def test_shape_distances_are_those_of_the_authors_and_of_tslearn() -> None:
    core = pytest.importorskip("kshape.core")
    metrics = pytest.importorskip("tslearn.metrics")
    values = standardised(np.random.default_rng(1).standard_normal((6, 25)).cumsum(1))
    theirs = [
        [1 - core._ncc_c_3dim([a[:, None], b[:, None]]).max() for b in values] for a in values
    ]
    assert shape_distances(values) == pytest.approx(np.array(theirs), abs=1e-9)
    norms = np.linalg.norm(values, axis=1)
    tslearns = 1 - metrics.cdist_normalized_cc(
        values[..., None], values[..., None], norms, norms, False
    )
    assert shape_distances(values) == pytest.approx(tslearns, abs=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_shape_finds_what_the_authors_k_shape_finds(seed: int) -> None:
    """Curves of three kinds, shifted: the best of ten runs of either has the same clusters, which are the kinds."""
    core = pytest.importorskip("kshape.core")
    pytest.importorskip("tslearn")
    stream = np.random.default_rng(seed)
    time = np.arange(60.0)
    kinds = np.repeat(np.arange(3), 8)
    shapes = (
        lambda t: np.exp(-(t**2) / 20),
        lambda t: np.exp(-(t**2) / 20) - np.exp(-((t - 12) ** 2) / 20),
        lambda t: np.tanh(t / 4),
    )
    values = [
        shapes[k](time - stream.uniform(22, 34)) + 0.05 * stream.standard_normal(60) for k in kinds
    ]
    values = standardised(np.array(values))
    mine = k_shape(values, 3, seed)
    state = np.random.get_state()  # noqa: NPY002 (theirs draws from it)
    runs = []
    for start in range(10):
        np.random.seed(start)  # noqa: NPY002
        labels, centers = core._kshape(values[..., None], 3)
        inertia = sum(
            (1 - core._ncc_c_3dim([v[:, None], centers[k]]).max()) ** 2
            for v, k in zip(values, labels, strict=True)
        )
        runs.append((inertia, labels.tolist()))
    np.random.set_state(state)  # noqa: NPY002
    theirs = min(runs)[1]
    assert agreement(mine.tolist(), theirs) == 1
    assert agreement(mine.tolist(), kinds.tolist()) == 1


def test_the_score_is_the_mean_silhouette() -> None:
    found = cluster(curves(1), method="hierarchical", steps=STEPS, num_clusters=4)
    values, labels = found.curves, found.labels
    distances = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in values] for a in values])
    silhouettes = []
    for i, label in enumerate(labels):
        own = [distances[i, j] for j in range(len(labels)) if labels[j] == label and j != i]
        others = [distances[i, labels == other].mean() for other in set(labels.tolist()) - {label}]
        within, without = np.mean(own) if own else 0.0, min(others)
        silhouettes.append((without - within) / max(within, without) if own else 0.0)
    assert found.scores == {"all": {4: pytest.approx(np.mean(silhouettes))}}
    assert list(cluster(curves(1), method="k_means", num_clusters=1).scores["all"]) == [1]
    assert np.isnan(cluster(curves(1), method="k_means", num_clusters=1).scores["all"][1])


def test_the_adjusted_rand_index_by_counting_pairs() -> None:
    stream = np.random.default_rng(2)
    names = tuple(f"{k // 8}:{k % 8}" for k in range(16))
    labels = stream.integers(3, size=16)
    groups = tuple(f"layer {k // 8}" for k in range(16))
    found = Clusters(names, labels, groups, np.zeros((16, 3)), np.arange(3), {}, {})
    roles = {name: "abcd"[k] for name, k in zip(names, stream.integers(4, size=16), strict=True)}
    assert found.adjusted_rand_index(roles) == pytest.approx(
        agreement(labels.tolist(), list(roles.values()))
    )
    expected = agreement(labels[8:].tolist(), list(roles.values())[8:])
    assert found.adjusted_rand_index(roles, "layer 1") == pytest.approx(expected)
    some = {name: roles[name] for name in names[:5]}
    assert found.adjusted_rand_index(some) == pytest.approx(
        agreement(labels[:5].tolist(), list(some.values()))
    )


def test_checkpoints_count_by_log_step() -> None:
    """A curve linear in log step is so on the grid, whatever the checkpoints; step 0 has no place on it."""
    heights = {"a": 2.0, "b": -1.0, "c": 0.5}
    logs = np.log(np.maximum(STEPS, 1))
    found = cluster(
        {name: h * logs for name, h in heights.items()},
        method="k_means",
        steps=STEPS,
        normalise="none",
    )
    assert np.diff(np.log(found.points)) == pytest.approx(
        np.log(STEPS[-1] / 100) / (len(STEPS) - 2)
    )
    assert (found.points[0], found.points[-1]) == pytest.approx((100, STEPS[-1]))
    assert found.curves == pytest.approx(np.outer(list(heights.values()), np.log(found.points)))


def test_normalisations() -> None:
    values = np.array([[1.0, 2, 5], [10, 10, 10], [0, -4, 4], [1e9, 1e9 + 1e-4, 1e9]])
    standard = cluster(values, method="k_means", num_clusters=2).curves
    assert standard[[0, 2]].mean(1) == pytest.approx(0)
    assert standard[[0, 2]].std(1) == pytest.approx(1)
    assert (standard[[1, 3]] == 0).all()
    scaled = cluster(values, method="k_means", num_clusters=2, normalise="min-max").curves
    assert scaled[[0, 2]].tolist() == [[0, 0.25, 1], [0.5, 0, 1]]
    raw = cluster(values, method="k_means", num_clusters=2, normalise="none")
    assert np.array_equal(raw.curves, values)
    assert raw.points.tolist() == [0, 1, 2]
    assert raw.names == ("0", "1", "2", "3")


def test_of_a_trajectory() -> None:
    heads = curves(2)
    values = np.stack(list(heads.values()), 1)
    both = np.concatenate([values, -values], 1)
    chains, status = both[:, :, None], (("ok",) * both.shape[1],) * len(STEPS)
    names = {"weights": (*heads, *heads), "data": ("code",) * len(heads) + ("prose",) * len(heads)}
    steps = tuple(int(s) for s in STEPS)
    trajectory = rllc.Trajectory(
        steps, both, both, both, both, chains, status, **names, settings={}
    )
    found = cluster(trajectory, method="k_means", data="code")
    same = cluster(heads, method="k_means", steps=STEPS)
    assert np.array_equal(found.curves, same.curves)
    assert np.array_equal(found.labels, same.labels)
    with pytest.raises(
        InputError,
        match=r"on which data\? It has \['code', 'prose'\]; pass data='code'",
    ):
        cluster(trajectory)
    with pytest.raises(InputError, match="no data 'cod'; did you mean 'code'"):
        cluster(trajectory, data="cod")


def test_labels_are_numbered_as_they_appear_and_depend_on_the_seed_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    noise = np.random.default_rng(0).standard_normal((20, 10))
    one = cluster(noise, method="k_means", num_clusters=5)
    assert np.array_equal(one.labels, cluster(noise, method="k_means", num_clusters=5).labels)
    assert list(dict.fromkeys(one.labels.tolist())) == [0, 1, 2, 3, 4]
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_results_as_text_and_table() -> None:
    found = cluster(curves(), method="hierarchical", steps=STEPS, per_layer=True)
    assert found["0:0"] == 0
    assert found.members[0] == tuple(
        head for head, role in ROLES.items() if role == "multigram" and head[0] == "0"
    )
    lines = repr(found).splitlines()
    assert lines[0] == "Clusters of 24 curves (hierarchical, standardise)"
    assert len(lines) == 2 + 6
    assert lines[2].split()[:4] == ["0", "layer", "0", "6"]
    table = found.to_dataframe(ROLES)
    assert table.columns.tolist() == ["name", "group", "cluster", "role"]
    assert table["role"].tolist() == list(ROLES.values())
    assert table["cluster"].tolist() == found.labels.tolist()
    assert len(found) == 24
    with pytest.raises(InputError, match="no such curve; did you mean '1:11' or"):
        found["1:111"]


def test_the_figure_shows_the_curves_by_cluster_with_roles_beside() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    found = cluster(curves(), method="hierarchical", steps=STEPS, per_layer=True)
    axes = plot_clusters(found, ROLES)
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    colors = {found[name]: None for name in found.names}
    for layer, ax in enumerate(axes):
        for line, name in zip(
            ax.lines, [n for n in found.names if n[0] == str(layer)], strict=True
        ):
            assert np.array_equal(line.get_ydata(), found.curves[found.names.index(name)])
            assert colors.setdefault(found[name]) in (None, line.get_color())
            colors[found[name]] = line.get_color()
        written = {text.get_text() for text in ax.texts}
        assert written == {
            f"{name} {role}" for name, role in ROLES.items() if name[0] == str(layer)
        }
        places = sorted(text.xyann[1] for text in ax.texts)
        assert np.diff(places).min() > 0.05
    assert len(set(colors.values())) == 6
    _, ax = plt.subplots()
    assert plot_clusters(cluster(curves(), method="hierarchical", steps=STEPS), ax=ax) is ax
    with pytest.raises(InputError, match="expected one Axes for each of 2 groups, got 1"):
        plot_clusters(found, ax=ax)
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kshape"}, "no method 'kshape'; did you mean 'k_shape'"),
        ({"normalise": "minmax"}, "`normalise` cannot be 'minmax'; did you mean 'min-max'"),
        ({"curves": np.zeros((4, 2))}, r"of at least 3 checkpoints, got \[4, 2\]"),
        ({"curves": np.zeros(4)}, r"expected curves \[curve, checkpoint\]"),
        (
            {"curves": {"a": [1, 2, np.nan], "b": [1, 2, 3]}},
            "a have values that are missing or not finite",
        ),
        ({"curves": np.full((9, 3), np.inf)}, "0, 1, 2, 3, 4, 5 and others have values"),
        ({"steps": [1, 2, 3]}, "`steps` must be 4 rising steps from 0 on"),
        ({"steps": [1, 2, 2, 3]}, "`steps` must be 4 rising steps"),
        (
            {"curves": np.eye(3), "steps": [0, 1, 2]},
            "at least 3 checkpoints above step 0 are needed",
        ),
        ({"num_clusters": 5}, "4 curves cannot make `num_clusters` = 5 clusters"),
        ({"curves": np.eye(2, 3)}, "2 curves are too few to choose a number of clusters; give it"),
        (
            {"curves": {"0:0": [1, 2, 3], "1:0": [1, 2, 4]}, "per_layer": True, "num_clusters": 2},
            "1 curves of layer 0 cannot make `num_clusters` = 2",
        ),
    ],
)
def test_what_cannot_be_clustered_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"clustering: .*{message}"):
        cluster(**{"curves": np.eye(4), "method": "k_means"} | arguments)


def test_roles_that_do_not_fit_are_refused() -> None:
    found = cluster(curves(), method="hierarchical", steps=STEPS)
    with pytest.raises(InputError, match="`roles` names '1:99'; did you mean"):
        found.adjusted_rand_index({"1:99": "induction"})
    with pytest.raises(InputError, match="no group 'layer 7'; known: 'all'"):
        found.adjusted_rand_index(ROLES, "layer 7")
    with pytest.raises(InputError, match="roles are needed for at least 2 curves, got 1"):
        found.adjusted_rand_index({"0:0": "induction"})


def test_k_shape_says_when_it_leaves_clusters_without_members() -> None:
    """Equal curves are all in one cluster, however many are asked for."""
    with pytest.raises(
        InputError, match="k_shape found no 3 clusters of 6 curves that all have members"
    ):
        cluster(np.tile([0.0, 1, 0, 2, 0], (6, 1)), num_clusters=3)


@pytest.mark.parametrize(
    ("method", "module", "message"),
    [
        ("k_shape", "sklearn.metrics", "clustering needs scikit-learn"),
        ("k_means", "sklearn.cluster", "k_means needs scikit-learn"),
        ("dtw_k_means", "tslearn.metrics", "dtw_k_means needs tslearn"),
        ("hierarchical", "scipy.cluster.hierarchy", "hierarchical needs scipy"),
    ],
)
def test_a_package_that_is_missing_is_named(
    method: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{message}; type: pip install 'rllc\[analysis\]'"):
        cluster(curves(), method=method)
