"""Figures show the numbers of the results: read back from the Axes they return."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text
from tiny import SHORT, tiny_model, tiny_tokens

import rllc
from rllc.calibrate import Calibration, calibrate
from rllc.names import Names
from rllc.plots import plot_calibration, plot_resolution
from rllc.plots.estimates import rank_correlation
from rllc.resolution import Resolution

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    model, data = tiny_model(), {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
    return rllc.sample(model, data, rllc.heads(model), sampling=SHORT, progress=False)


@pytest.fixture(scope="module")
def trajectory(draws) -> rllc.Trajectory:
    return rllc.Trajectory.of({step: rllc.Estimate.of(draws) for step in (0, 10, 100, 1000)})


def test_heads_are_dots_with_intervals(draws) -> None:
    estimate = rllc.Estimate.of(draws)
    ax = rllc.plot_heads(estimate)
    code, prose = ax.containers
    assert np.array_equal(
        code.lines[0].get_ydata(), estimate.value[[d == "code" for d in estimate.data]]
    )
    assert np.array_equal(
        prose.lines[0].get_ydata(), estimate.value[[d == "prose" for d in estimate.data]]
    )
    first = code.lines[2][0].get_segments()[0]  # from value − 1.96 se to value + 1.96 se
    row = estimate["0:0", "code"]
    assert first[:, 1] == pytest.approx(
        [row.value - 1.96 * row.standard_error, row.value + 1.96 * row.standard_error]
    )
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "0:0",
        "0:1",
        "0:2",
        "1:0",
        "1:1",
        "1:2",
    ]


def test_given_axes_are_used_and_returned(draws, trajectory) -> None:
    _, ax = plt.subplots()
    assert rllc.plot_heads(rllc.Estimate.of(draws), ax=ax) is ax
    assert rllc.plot_trajectory(trajectory, "code", ax=ax) is ax
    assert rllc.plot_traces(draws, "0:1", "code", ax=ax) is ax


def test_a_panel_a_layer_and_a_line_a_head(trajectory) -> None:
    axes = rllc.plot_trajectory(trajectory, "prose")
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    for layer, ax in enumerate(axes):
        lines = {line.get_label(): line for line in ax.lines if ":" in line.get_label()}
        assert list(lines) == [f"{layer}:{h}" for h in range(3)]
        for name, line in lines.items():
            expected = [trajectory.at(step)[name, "prose"].value for step in trajectory.steps]
            assert np.array_equal(line.get_ydata(), expected)
            assert np.array_equal(line.get_xdata(), trajectory.steps)
        assert ax.get_xscale() == "symlog"  # step 0 has its place


def test_a_trace_and_its_running_mean(draws) -> None:
    ax = rllc.plot_traces(draws, "1:0", "code")
    i = next(
        i for i, n in enumerate(zip(draws.weights, draws.data, strict=True)) if n == ("1:0", "code")
    )
    values, mean = ax.lines[0].get_ydata(), ax.lines[1].get_ydata()
    assert np.array_equal(values, draws.llc[i, 0])
    assert mean[-1] == pytest.approx(draws.llc[i, 0].mean())


def test_diverged_heads_are_crosses() -> None:
    model = tiny_model()
    estimate = rllc.estimate(
        model,
        tiny_tokens(),
        ["0:0", "0:1"],
        sampler=rllc.sgld(lr=10.0),
        sampling=SHORT,
        progress=False,
    )
    crosses = next(line for line in rllc.plot_heads(estimate).lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [0, 1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    grid = {"lr": [1e-4, 1e-3, 1e3], "n_beta": [30.0, 300.0], "localization": [100.0, 1000.0]}
    lenient = rllc.Limits(
        min_relaxations=0,
        max_rhat=1e9,
        max_noise=1e9,
        max_drift=1e9,
        max_shrinkage=0.99999,
        max_step_and_noise=0.9,
        min_stability=2,
        min_acceptance=0.1,
        max_step=np.inf,
    )
    sampling = rllc.Sampling(num_chains=2, num_draws=20, batch_size=4)
    return calibrate(
        tiny_model(),
        tiny_tokens(),
        "0:0",
        sampling=sampling,
        grid=grid,
        limits=lenient,
        progress=False,
    )


def test_a_heat_map_for_each_n_beta(calibration) -> None:
    axes = plot_calibration(calibration)
    assert [ax.get_title() for ax in axes] == [r"$n\beta$ = 30", r"$n\beta$ = 300"]
    assert axes[0].get_ylabel() == "localization $\\gamma$"
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["100", "1e+03"]
    frames = 0
    for ax, n_beta in zip(axes, (30.0, 300.0), strict=True):
        assert ax.get_xlabel() == "lr $\\epsilon$"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0001", "0.001", "1e+03"]
        mine = calibration.n_beta == n_beta
        shown = np.ma.filled(
            ax.images[0].get_array(), np.nan
        )  # [localization, lr], tried in the order lr, n_beta, localization
        assert np.array_equal(shown, calibration.error[mine].reshape(3, 2).T, equal_nan=True)
        assert sum("×" in t.get_text() for t in ax.texts) == (~calibration.good[mine]).sum() > 0
        frames += sum(not p.get_fill() for p in ax.patches)
    assert frames == calibration.good.any() == 1


def test_a_heat_map_of_the_best_n_beta(calibration) -> None:
    _, ax = plt.subplots()
    assert plot_calibration(calibration, ax=ax) is ax
    assert ax.get_title() == rf"$n\beta$ = {calibration.n_beta[calibration.best]:g}"
    with pytest.raises(rllc.InputError, match="one Axes for each of 2 n_beta, got 3"):
        plot_calibration(calibration, ax=plt.subplots(1, 3)[1])


def test_a_curve_over_n_beta(draws) -> None:
    first = rllc.Estimate.of(draws)
    broken = rllc.Estimate.of(
        replace(
            draws, diverged=np.zeros_like(draws.diverged), loss=np.full_like(draws.loss, np.nan)
        )
    )
    curve = Resolution(np.array([10.0, 30.0, 100.0]), (first, first, broken))
    ax = plot_resolution(curve)
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == (
        "log",
        r"$n\beta$",
        r"$\hat\lambda$ (95 % band)",
    )
    lines = {line.get_label(): line for line in ax.lines if "," in line.get_label()}
    assert list(lines) == [f"{w}, {d}" for w, d in zip(first.weights, first.data, strict=True)]
    for k, line in enumerate(lines.values()):
        assert np.array_equal(line.get_xdata(), [10.0, 30.0, 100.0])
        assert np.array_equal(line.get_ydata(), curve.value[:, k], equal_nan=True)
        low = ax.collections[k].get_paths()[0].vertices[:, 1].min()
        assert low == pytest.approx(first.value[k] - 1.96 * first.standard_error[k])
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == len(first)
    assert all(line.get_xdata()[-1] == 100.0 and line.get_ydata()[-1] == 0 for line in crosses)
    wrong = [status != "ok" for status in (first.status[0], first.status[0], broken.status[0])]
    assert len(crosses[0].get_xdata()) == sum(wrong)


STEPS = (0, *(10 * 2**k for k in range(13)))
HEADS = tuple(f"{layer}:{h}" for layer in range(2) for h in range(8))
ROLES = dict(
    zip(HEADS, ["multigram"] * 5 + ["induction"] * 3 + ["multigram", "bracket"] * 4, strict=True)
)
COLOR = {"multigram": "#0072B2", "induction": "#D55E00", "bracket": "#009E73"}


def numbers(count: int, *, spread: float = 1.0) -> np.ndarray:
    return 20 + spread * np.random.default_rng(count).normal(size=(len(HEADS), count))


def an_estimate(**on: np.ndarray) -> rllc.Estimate:
    """λ̂ of 16 heads ``[head]``, on each data set."""
    value = np.concatenate(list(on.values()))
    nothing = np.full(len(value), np.nan)
    names = Names(HEADS * len(on), tuple(name for name in on for _ in HEADS))
    error = 0.1 + 0.01 * np.arange(len(value))
    return rllc.Estimate(
        value, error, nothing, nothing, nothing[:, None], ((),) * len(value), names, {}
    )


def box_of(text):
    return Text.get_window_extent(text)  # an annotation's own also covers its line


def apart(figure, texts) -> bool:
    """Whether no two texts have a pixel in common in the finished figure."""
    figure.canvas.draw()
    boxes = [box_of(text) for text in texts]
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_curves_are_lines_with_gaps_and_bands() -> None:
    values = dict(zip(HEADS, numbers(len(STEPS)), strict=True))
    values["0:1"][3] = values["0:1"][5] = np.nan
    ax = rllc.plot_curves(values, STEPS, error={"0:0": np.full(len(STEPS), 0.5)}, ylabel="Δloss")
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == list(HEADS)
    for name, line in lines.items():
        assert np.array_equal(line.get_ydata(), values[name], equal_nan=True)
        assert np.array_equal(line.get_xdata(), STEPS)
    alone = lines["0:1"]  # a value between two gaps has no line to either side
    assert alone.get_marker() == "o"
    assert np.flatnonzero(alone.get_markevery()).tolist() == [4]
    (band,) = ax.collections  # of the only curve with errors
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(values["0:0"].max() + 1.96 * 0.5)
    assert (ax.get_xscale(), ax.get_ylabel(), ax.get_xlabel()) == (
        "symlog",
        "Δloss",
        "training step",
    )
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(HEADS)
    assert not ax.texts


def test_curves_of_one_group_have_one_colour_and_names_at_their_ends() -> None:
    values = dict(
        zip(HEADS, numbers(len(STEPS), spread=0.01), strict=True)
    )  # all end at about the same place
    values["0:2"][-2:] = np.nan
    values["1:7"][:] = np.nan
    values["everything"] = np.linspace(0, 50, len(STEPS))
    ax = rllc.plot_curves(
        values, STEPS, groups={"L0H0": "multigram"} | {n: ROLES[n] for n in HEADS[1:]}
    )
    colors = {name: COLOR[role] for name, role in ROLES.items()} | {"everything": "0.55"}
    assert [line.get_color() for line in ax.lines if line.get_xdata()[-1] == STEPS[-1]] == list(
        colors.values()
    )
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(COLOR)
    words = {text.get_text(): text for text in ax.texts}
    assert set(words) == {f"{name} {role}" for name, role in ROLES.items()} | {"everything"}
    for name, role in ROLES.items():
        text = words[f"{name} {role}"]
        assert text.get_color() == COLOR[role]
        if name == "1:7":  # no value to lead from
            assert text.arrow_patch is None
        else:
            last = -3 if name == "0:2" else -1
            assert text.xy == (STEPS[last], values[name][last])
    assert apart(ax.figure, ax.texts)
    frame = ax.get_window_extent()
    for text in ax.texts:
        box = box_of(text)
        assert box.x0 > frame.x1
        assert box.x1 < ax.figure.bbox.x1  # not cut off
        assert frame.y0 - box.height < box.y0 < frame.y1


def test_very_many_names_are_small_but_apart() -> None:
    names = [f"{layer}:{h}" for layer in range(6) for h in range(12)]
    ax = rllc.plot_curves(
        {name: [1.0, 2.0] for name in names}, [0, 1], groups=dict.fromkeys(names, "other")
    )
    assert len(ax.texts) == 72
    assert apart(ax.figure, ax.texts)


def test_trajectories_by_group(trajectory) -> None:
    groups = {"0:0": "a", "0:1": "b", "0:2": "b", "1:0": "c", "1:1": "a", "1:2": "b"}
    axes = rllc.plot_trajectory(trajectory, "code", groups=groups)
    color = {"a": "#0072B2", "b": "#D55E00", "c": "#009E73"}
    for layer, ax in enumerate(axes):
        for line, head in zip(ax.lines, [f"{layer}:{h}" for h in range(3)], strict=False):
            assert np.array_equal(
                line.get_ydata(), [trajectory.at(s)[head, "code"].value for s in trajectory.steps]
            )
            assert line.get_color() == color[groups[head]]
        shown = [t.get_text() for t in ax.get_legend().get_texts()]
        assert shown == [["a", "b"], ["c", "a", "b"]][layer]
        assert {t.get_text() for t in ax.texts} == {
            f"{n} {g}" for n, g in groups.items() if n[0] == str(layer)
        }
    assert apart(axes[0].figure, [*axes[0].texts, *axes[1].texts])


def test_dots_against_another_number_with_its_rank_correlation() -> None:
    stats = pytest.importorskip("scipy.stats")
    estimate = an_estimate(pile=numbers(2)[:, 0], code=numbers(2)[:, 1])
    counts = {name: (7 * i) % 5 for i, name in enumerate(HEADS[:12])}  # with ties
    ax = rllc.plot_against(counts, estimate, "code", xlabel="multigrams")
    (dots,) = ax.containers
    value = [estimate[name, "code"].value for name in counts]
    assert np.array_equal(dots.lines[0].get_xdata(), list(counts.values()))
    assert np.array_equal(dots.lines[0].get_ydata(), value)
    (bars,) = dots.lines[2]
    se = estimate["0:3", "code"].standard_error
    assert bars.get_segments()[3][:, 1] == pytest.approx(
        [value[3] - 1.96 * se, value[3] + 1.96 * se]
    )
    rho = stats.spearmanr(list(counts.values()), value).statistic
    assert ax.get_title().startswith(f"Spearman's ρ = {rho:.2f}, two-sided p = ")
    assert ax.get_title().endswith("12 weights")
    assert {t.get_text() for t in ax.texts} == set(counts)
    assert ax.get_xlabel() == "multigrams"


@pytest.mark.parametrize("y", [(1, 2, 3, 4, 5, 7), (3, 1, 2, 5, 4, 6), (2, 2, 2, 1, 5, 5)])
def test_the_p_value_is_the_share_of_permutations(y) -> None:
    """All 720 of them against 10,000 random ones, whose share is off by 5 standard deviations at most."""
    stats, x = pytest.importorskip("scipy.stats"), np.arange(6.0)
    rho, p = rank_correlation(x, np.array(y, dtype=float))
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    exact = np.mean(
        [abs(stats.spearmanr(x, dealt).statistic) >= abs(rho) - 1e-9 for dealt in permutations(y)]
    )
    assert p == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 10_000) + 1e-4)
    assert rank_correlation(x, np.array(y, dtype=float)) == (rho, p)
    assert np.isnan(rank_correlation(x, np.ones(6))).all()


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_names_beside_dots_are_apart_and_by_their_dots(spread: float) -> None:
    estimate = an_estimate(pile=numbers(3, spread=spread)[:, 0])
    far = {name: i / 15 for i, name in enumerate(HEADS)}
    ax = rllc.plot_against(far, estimate, groups=ROLES)
    words = {text.get_text(): text for text in ax.texts}
    assert set(words) == set(HEADS)
    assert apart(ax.figure, ax.texts)
    for name, text in words.items():
        assert text.xy == (far[name], estimate[name].value)
        dot = ax.transData.transform(text.xy)
        box = box_of(text)
        nearest = np.clip(dot, box.min, box.max)
        assert np.linalg.norm(nearest - dot) <= 60 * ax.figure.dpi / 72
        assert text.get_color() == COLOR[ROLES[name]]
        assert (ax.get_window_extent().min <= box.min).all()
        assert (ax.get_window_extent().max >= box.max).all()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(COLOR)


def test_names_without_a_free_place_are_left_out() -> None:
    _, ax = plt.subplots(figsize=(0.8, 0.8))
    estimate = an_estimate(pile=numbers(3, spread=0)[:, 0])
    rllc.plot_against(dict.fromkeys(HEADS, 1.0), estimate, ax=ax)
    assert 1 <= len(ax.texts) < len(HEADS)
    assert apart(ax.figure, ax.texts)
    assert ax.get_title() == "Spearman's ρ is not defined here"


def test_one_data_set_against_another() -> None:
    estimate = an_estimate(pile=numbers(2)[:, 0], prose=numbers(3)[:, 0], code=2 * numbers(2)[:, 1])
    estimate.value[2 * len(HEADS) + 3] = np.nan
    ax = rllc.plot_data_pair(estimate, "pile", "code", groups={"0:0": "induction"})
    there = [name for name in HEADS if name != "0:3"]
    induction, others = ax.containers
    assert (induction.get_label(), induction.lines[0].get_color(), others.lines[0].get_color()) == (
        "induction",
        "#0072B2",
        "0.55",
    )
    x = np.concatenate([c.lines[0].get_xdata() for c in (induction, others)])
    y = np.concatenate([c.lines[0].get_ydata() for c in (induction, others)])
    assert np.array_equal(x, [estimate[name, "pile"].value for name in there])
    assert np.array_equal(y, [estimate[name, "code"].value for name in there])
    across, upright = induction.lines[2]
    for bars, k, data in ((across, 0, "pile"), (upright, 1, "code")):
        ends = bars.get_segments()[0][:, k]
        assert np.ptp(ends) == pytest.approx(2 * 1.96 * estimate["0:0", data].standard_error)
    (diagonal,) = (line for line in ax.lines if line.get_xydata().shape == (2, 2))
    ax.figure.canvas.draw()
    a, b = diagonal.get_transform().transform([[0, 0], [1, 1]])
    a, b = ax.transData.inverted().transform([a, b])
    assert a == pytest.approx(a[::-1])
    assert b == pytest.approx(b[::-1])
    assert ax.get_title() == "not finite: 0:3"
    assert {t.get_text() for t in ax.texts} == set(there)
    assert ax.get_xlabel().startswith(r"$\hat\lambda$ on pile")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: rllc.plot_curves({}, [0, 1]), "expected at least one curve, got none"),
        (
            lambda e: rllc.plot_curves({"0:0": [1, 2]}, [0, 1, 2]),
            r"curve '0:0' must have one value for each of 3 steps",
        ),
        (
            lambda e: rllc.plot_curves({"0:0": [1, 2]}, [5, 1]),
            r"`steps` must be rising training steps from 0 on",
        ),
        (
            lambda e: rllc.plot_curves({"0:0": [1, 2]}, [0, 1], error={"0:0": [1]}),
            r"error of '0:0' must have one value for each of 2 steps, got \[1\]",
        ),
        (
            lambda e: rllc.plot_curves({"0:0": [1, 2]}, [0, 1], error={"0:1": [1, 2]}),
            "`error` names '0:1'; did you mean '0:0'",
        ),
        (
            lambda e: rllc.plot_curves({"0:0": [1, 2]}, [0, 1], groups={"0:1": "induction"}),
            r"plot_curves: `groups` are of \['0:1'\], but none of these is drawn; did you mean '0:0'",
        ),
        (
            lambda e: rllc.plot_against({"0:0": 1}, e),
            r"plot_against: on which data\? .* pass data='pile'",
        ),
        (
            lambda e: rllc.plot_against({"0:0": 1}, e, "Code"),
            "plot_against: no data 'Code'; did you mean 'code'",
        ),
        (lambda e: rllc.plot_against({"0:9": 1}, e, "code"), "`x` names '0:9'; did you mean"),
        (
            lambda e: rllc.plot_data_pair(e, "pile", "cod"),
            "plot_data_pair: no data 'cod'; did you mean 'code'",
        ),
        (
            lambda e: rllc.plot_data_pair(e, "pile", "pile"),
            "expected two data sets with weights in common, got 'pile'",
        ),
    ],
)
def test_errors_of_figures_of_numbers(call, message) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call(an_estimate(pile=numbers(2)[:, 0], code=numbers(2)[:, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d, t: rllc.plot_trajectory(t),
            r"on which data\? It has \['code', 'prose'\]; pass data='code'",
        ),
        (lambda d, t: rllc.plot_trajectory(t, "Code2"), "no data 'Code2'; did you mean 'code'"),
        (
            lambda d, t: rllc.plot_trajectory(t, "code", ax=plt.subplots(1, 3)[1]),
            "one Axes for each of 2 layers, got 3",
        ),
        (lambda d, t: rllc.plot_traces(d), "matches 12 refinements; name one"),
        (lambda d, t: rllc.plot_traces(d, "7:7"), "matches nothing"),
    ],
)
def test_errors_say_what_to_type(draws, trajectory, call, message) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call(draws, trajectory)
