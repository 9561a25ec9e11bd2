"""Clusters of curves whose kinds are known; distances and scores against slow loops and others."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import rllc
from rllc.analysis.clustering import Clusters, cluster, plot_clusters
from rllc.analysis.k_shape import k_shape, shape_distances, standardised
from rllc.errors import InputError
from rllc.weights.names import Names

mpl.use("Agg")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

STEPS = np.array([0, *range(100, 1000, 100), *range(1000, 10_001, 400)])
KINDS = ("multigram", "multigram", "multigram", "induction", "induction", "previous")
NAMES = tuple(f"{layer}:{head}" for layer in range(2) for head in range(12))
ROLES = dict(zip(NAMES, (KINDS + KINDS[::-1]) * 2, strict=True))


def curves(seed: int = 0) -> dict[str, np.ndarray]:
    """A curve a head, of its role's shape, with its own height, offset and noise."""
    stream = np.random.default_rng(seed)
    x = np.log(np.maximum(STEPS, 60))
    shapes = {
        "multigram": 1 / (1 + np.exp(-3 * (x - 6.5))),
        "induction": np.exp(-2 * (x - 7.5) ** 2),
        "previous": -np.exp(-((x - 5.5) ** 2)) - 0.2 * x,
    }
    made = {}
    for head, role in ROLES.items():
        height = stream.uniform(1, 3)
        offset = stream.uniform(0, 5)
        made[head] = height * shapes[role] + offset + 0.02 * stream.standard_normal(len(x))
    return made


def agreement(a: list[Any], b: list[Any]) -> float:
    """The adjusted Rand index, by counting pairs."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    together_in_a = np.array([a[i] == a[j] for i, j in pairs])
    together_in_b = np.array([b[i] == b[j] for i, j in pairs])
    in_both = (together_in_a & together_in_b).sum()
    expected = together_in_a.sum() * together_in_b.sum() / len(pairs)
    most = (together_in_a.sum() + together_in_b.sum()) / 2
    return (in_both - expected) / (most - expected)


# tslearn compiles DTW on first use, for 10 seconds or more.
SLOW = pytest.param("dtw_k_means", marks=pytest.mark.slow)


@pytest.mark.parametrize("method", ["k_shape", "k_means", "hierarchical", SLOW])
def test_kinds_and_their_number_are_found(method: str) -> None:
    result = cluster(curves(), method=method, steps=STEPS)
    assert result.adjusted_rand_index(ROLES) == 1
    scores = result.scores["all"]
    assert max(scores, key=scores.get) == 3
    assert result.names == NAMES


@pytest.mark.parametrize("method", ["k_shape", "k_means", "hierarchical", SLOW])
def test_kinds_are_found_in_each_layer(method: str) -> None:
    result = cluster(curves(), method=method, steps=STEPS, per_layer=True, num_clusters=3)
    for layer in ("layer 0", "layer 1"):
        assert result.adjusted_rand_index(ROLES, layer) == 1
    assert len(result.members) == 6
    assert result.groups == ("layer 0",) * 12 + ("layer 1",) * 12


def test_shapes_that_come_later_are_alike_to_k_shape_and_not_to_k_means() -> None:
    time = np.arange(80.0)

    def hump(at: float) -> np.ndarray:
        return np.exp(-((time - at) ** 2) / 30)

    humps = [hump(at) for at in (20, 30, 40, 50)]
    pairs = [hump(at) - hump(at + 15) for at in (15, 25, 35, 45)]
    kinds = {str(row): "hump" if row < 4 else "pair" for row in range(8)}
    values = np.array(humps + pairs)
    assert cluster(values, num_clusters=2).adjusted_rand_index(kinds) == 1
    by_points = cluster(values, num_clusters=2, method="k_means")
    assert by_points.adjusted_rand_index(kinds) < 0.7


def test_shape_distances_by_a_slow_loop() -> None:
    values = standardised(np.random.default_rng(0).standard_normal((5, 12)).cumsum(1))
    distances = shape_distances(values)
    for a, b in itertools.product(range(5), range(5)):
        products = []
        for shift in range(-11, 12):
            times = range(max(0, shift), min(12, 12 + shift))
            products.append(sum(values[a, t] * values[b, t - shift] for t in times))
        norms = np.linalg.norm(values[a]) * np.linalg.norm(values[b])
        assert distances[a, b] == pytest.approx(1 - max(products) / norms, abs=1e-12)


def test_curves_of_zeros_are_at_distance_1() -> None:
    assert shape_distances(np.zeros((2, 5)))[0, 1] == 1


def their_correlation(a: np.ndarray, b: np.ndarray) -> float:
    core = pytest.importorskip("kshape.core")
    return core._ncc_c_3dim([a, b]).max()


@pytest.mark.oracle
def test_shape_distances_are_those_of_the_authors_and_of_tslearn() -> None:
    metrics = pytest.importorskip("tslearn.metrics")
    values = standardised(np.random.default_rng(1).standard_normal((6, 25)).cumsum(1))
    series = values[..., None]
    authors = [[1 - their_correlation(a, b) for b in series] for a in series]
    assert shape_distances(values) == pytest.approx(np.array(authors), abs=1e-9)
    norms = np.linalg.norm(values, axis=1)
    tslearns = 1 - metrics.cdist_normalized_cc(series, series, norms, norms, False)
    assert shape_distances(values) == pytest.approx(tslearns, abs=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_shape_finds_what_the_authors_k_shape_finds(seed: int) -> None:
    """Shifted curves of three kinds: the best of ten runs of either has the kinds as clusters."""
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
    raw = []
    for kind in kinds:
        shift = stream.uniform(22, 34)
        raw.append(shapes[kind](time - shift) + 0.05 * stream.standard_normal(60))
    values = standardised(np.array(raw))
    labels = k_shape(values, 3, seed)
    runs = []
    state = np.random.get_state()  # noqa: NPY002 (theirs draws from it)
    for start in range(10):
        np.random.seed(start)  # noqa: NPY002
        their_labels, centers = core._kshape(values[..., None], 3)
        distances = []
        for curve, label in zip(values[..., None], their_labels, strict=True):
            distances.append(1 - their_correlation(curve, centers[label]))
        runs.append((sum(distance**2 for distance in distances), their_labels.tolist()))
    np.random.set_state(state)  # noqa: NPY002
    _, best_labels = min(runs)
    assert agreement(labels.tolist(), best_labels) == 1
    assert agreement(labels.tolist(), kinds.tolist()) == 1


def silhouette(distances: np.ndarray, labels: np.ndarray, row: int) -> float:
    """Of one curve, by the definition."""
    own = np.flatnonzero(labels == labels[row])
    if len(own) == 1:
        return 0.0
    within = distances[row, own[own != row]].mean()
    other_labels = set(labels.tolist()) - {labels[row]}
    between = min(distances[row, labels == label].mean() for label in other_labels)
    return (between - within) / max(within, between)


def test_the_score_is_the_mean_silhouette() -> None:
    result = cluster(curves(1), method="hierarchical", steps=STEPS, num_clusters=4)
    distances = np.linalg.norm(result.curves[:, None] - result.curves[None], axis=-1)
    silhouettes = [silhouette(distances, result.labels, row) for row in range(len(result))]
    assert result.scores == {"all": {4: pytest.approx(np.mean(silhouettes))}}


def test_one_cluster_has_no_score() -> None:
    scores = cluster(curves(1), method="k_means", num_clusters=1).scores["all"]
    assert list(scores) == [1]
    assert np.isnan(scores[1])


def test_the_adjusted_rand_index_by_counting_pairs() -> None:
    stream = np.random.default_rng(2)
    names = tuple(f"{row // 8}:{row % 8}" for row in range(16))
    groups = tuple(f"layer {row // 8}" for row in range(16))
    labels = stream.integers(3, size=16)
    roles = ["abcd"[k] for k in stream.integers(4, size=16)]
    result = Clusters(names, labels, groups, np.zeros((16, 3)), np.arange(3), {}, {})
    role_of = dict(zip(names, roles, strict=True))
    expected = agreement(labels.tolist(), roles)
    assert result.adjusted_rand_index(role_of) == pytest.approx(expected)
    expected = agreement(labels[8:].tolist(), roles[8:])
    assert result.adjusted_rand_index(role_of, "layer 1") == pytest.approx(expected)
    role_of_five = {name: role_of[name] for name in names[:5]}
    expected = agreement(labels[:5].tolist(), roles[:5])
    assert result.adjusted_rand_index(role_of_five) == pytest.approx(expected)


def test_checkpoints_count_by_log_step() -> None:
    """A curve linear in log step is so on the grid; step 0 has no place on it."""
    heights = {"a": 2.0, "b": -1.0, "c": 0.5}
    logs = np.log(np.maximum(STEPS, 1))
    values = {name: height * logs for name, height in heights.items()}
    result = cluster(values, method="k_means", steps=STEPS, normalise="none")
    distance = np.log(STEPS[-1] / 100) / (len(STEPS) - 2)
    assert np.diff(np.log(result.points)) == pytest.approx(distance)
    assert (result.points[0], result.points[-1]) == pytest.approx((100, STEPS[-1]))
    expected = np.outer(list(heights.values()), np.log(result.points))
    assert result.curves == pytest.approx(expected)


VALUES = np.array([[1.0, 2, 5], [10, 10, 10], [0, -4, 4], [1e9, 1e9 + 1e-4, 1e9]])


def normalised(normalise: str) -> Clusters:
    return cluster(VALUES, method="k_means", num_clusters=2, normalise=normalise)


def test_standardised_curves_have_mean_0_and_variance_1_and_constant_ones_are_0() -> None:
    values = normalised("standardise").curves
    assert values[[0, 2]].mean(1) == pytest.approx(0)
    assert values[[0, 2]].std(1) == pytest.approx(1)
    assert (values[[1, 3]] == 0).all()


def test_other_normalisations() -> None:
    values = normalised("min-max").curves
    assert values[[0, 2]].tolist() == [[0, 0.25, 1], [0.5, 0, 1]]
    raw = normalised("none")
    assert np.array_equal(raw.curves, VALUES)
    assert raw.points.tolist() == [0, 1, 2]
    assert raw.names == ("0", "1", "2", "3")


def trajectory() -> rllc.Trajectory:
    """The curves on code, and their negatives on prose."""
    values = np.stack(list(curves(2).values()), 1)
    both = np.concatenate([values, -values], 1)
    num_refinements = both.shape[1]
    return rllc.Trajectory(
        steps=tuple(int(step) for step in STEPS),
        value=both,
        standard_error=both,
        dof=both,
        rhat=both,
        ess=both,
        per_chain=both[:, :, None],
        faults=(((),) * num_refinements,) * len(STEPS),
        names=Names(NAMES * 2, ("code",) * len(NAMES) + ("prose",) * len(NAMES)),
        settings={},
    )


def test_of_a_trajectory() -> None:
    result = cluster(trajectory(), method="k_means", data="code")
    expected = cluster(curves(2), method="k_means", steps=STEPS)
    assert np.array_equal(result.curves, expected.curves)
    assert np.array_equal(result.labels, expected.labels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"on which data\? It has \['code', 'prose'\]; pass data='code'"),
        ("cod", "no data 'cod'; did you mean 'code'"),
    ],
)
def test_a_trajectory_on_data_that_are_not_told(data: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster(trajectory(), data=data)


def test_labels_are_numbered_as_they_appear_and_depend_on_the_seed_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    noise = np.random.default_rng(0).standard_normal((20, 10))
    labels = cluster(noise, method="k_means", num_clusters=5).labels
    again = cluster(noise, method="k_means", num_clusters=5).labels
    assert np.array_equal(labels, again)
    assert list(dict.fromkeys(labels.tolist())) == [0, 1, 2, 3, 4]
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def by_layer() -> Clusters:
    return cluster(curves(), method="hierarchical", steps=STEPS, per_layer=True)


def in_layer(layer: int) -> list[str]:
    return [name for name in NAMES if name[0] == str(layer)]


def test_results_as_text_and_table() -> None:
    result = by_layer()
    assert result["0:0"] == 0
    multigrams = [name for name in in_layer(0) if ROLES[name] == "multigram"]
    assert result.members[0] == tuple(multigrams)
    title, _, first, *others = repr(result).splitlines()
    assert title == "Clusters of 24 curves (hierarchical, standardise)"
    assert first.split()[:4] == ["0", "layer", "0", "6"]
    assert len(others) == 5
    table = result.to_dataframe(ROLES)
    assert table.columns.tolist() == ["name", "group", "cluster", "role"]
    assert table["role"].tolist() == list(ROLES.values())
    assert table["cluster"].tolist() == result.labels.tolist()
    assert len(result) == 24
    with pytest.raises(InputError, match="no such curve; did you mean '1:11' or"):
        result["1:111"]


def test_the_figure_shows_the_curves_by_cluster_with_roles_beside() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    result = by_layer()
    axes = plot_clusters(result, ROLES)
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    color_of_cluster: dict[int, str] = {}
    for layer, ax in enumerate(axes):
        names = in_layer(layer)
        for line, name in zip(ax.lines, names, strict=True):
            row = NAMES.index(name)
            assert np.array_equal(line.get_ydata(), result.curves[row])
            color = line.get_color()
            assert color_of_cluster.setdefault(result[name], color) == color
        written = {text.get_text() for text in ax.texts}
        assert written == {f"{name} {ROLES[name]}" for name in names}
        places = sorted(text.xyann[1] for text in ax.texts)
        assert np.diff(places).min() > 0.05
    assert len(set(color_of_cluster.values())) == 6
    _, ax = plt.subplots()
    with pytest.raises(InputError, match="expected one Axes for each of 2 groups, got 1"):
        plot_clusters(result, ax=ax)
    assert plot_clusters(cluster(curves(), method="hierarchical", steps=STEPS), ax=ax) is ax
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
def test_what_cannot_be_clustered_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"curves": np.eye(4), "method": "k_means", **arguments}
    with pytest.raises(InputError, match=f"clustering: .*{message}"):
        cluster(**arguments)


@pytest.mark.parametrize(
    ("roles", "group", "message"),
    [
        ({"1:99": "induction"}, None, "`roles` names '1:99'; did you mean"),
        (ROLES, "layer 7", "no group 'layer 7'; known: 'all'"),
        ({"0:0": "induction"}, None, "roles are needed for at least 2 curves, got 1"),
    ],
)
def test_roles_that_do_not_fit_are_refused(
    roles: dict[str, str], group: str | None, message: str
) -> None:
    result = cluster(curves(), method="hierarchical", steps=STEPS)
    with pytest.raises(InputError, match=message):
        result.adjusted_rand_index(roles, group)


def test_k_shape_says_when_it_leaves_clusters_without_members() -> None:
    """Equal curves are all in one cluster, however many are asked for."""
    equal = np.tile([0.0, 1, 0, 2, 0], (6, 1))
    message = "k_shape found no 3 clusters of 6 curves that all have members"
    with pytest.raises(InputError, match=message):
        cluster(equal, num_clusters=3)


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


def test_tables_and_curves_of_several_lengths_are_refused() -> None:
    import pandas as pd

    table = pd.DataFrame(np.random.default_rng(0).normal(size=(8, 5)), columns=list("abcde"))
    with pytest.raises(rllc.InputError, match=r"type cluster\(\{name: table\[name\]"):
        cluster(table)
    of_columns = cluster({name: table[name] for name in table})
    assert len(of_columns.names) == 5
    for curves in ({"a": [1.0] * 6, "b": [1.0] * 7}, [[1.0] * 6, [1.0] * 7]):
        with pytest.raises(rllc.InputError, match=r"the same checkpoints, got shapes \[6\], \[7\]"):
            cluster(curves)
