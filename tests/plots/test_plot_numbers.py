"""Figures of other numbers of heads, over training and against λ̂: numbers, colours, names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import permutations

import matplotlib as mpl
import numpy as np
import pytest
from texts import apart, box_of, written

import rllc
from rllc.plots.dots import rank_correlation
from rllc.weights.names import Names

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

STEPS = (0, *(10 * 2**k for k in range(13)))
HEADS = tuple(f"{layer}:{head}" for layer in range(2) for head in range(8))
ROLES = dict(
    zip(HEADS, ["multigram"] * 5 + ["induction"] * 3 + ["multigram", "bracket"] * 4, strict=True)
)
COLOR = {"multigram": "#0072B2", "induction": "#D55E00", "bracket": "#009E73"}
NO_GROUP = "0.55"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def numbers(count: int, *, spread: float = 1.0) -> np.ndarray:
    """``[head, number]``."""
    return 20 + spread * np.random.default_rng(count).normal(size=(len(HEADS), count))


def curves(spread: float = 1.0) -> dict[str, np.ndarray]:
    return dict(zip(HEADS, numbers(len(STEPS), spread=spread), strict=True))


def an_estimate(**values_of_data: np.ndarray) -> rllc.Estimate:
    """λ̂ of 16 heads ``[head]``, on each data set."""
    value = np.concatenate(list(values_of_data.values()))
    nothing = np.full(len(value), np.nan)
    return rllc.Estimate(
        value=value,
        standard_error=0.1 + 0.01 * np.arange(len(value)),
        dof=np.full(len(value), np.inf),
        rhat=nothing,
        ess=nothing,
        per_chain=nothing[:, None],
        faults=((),) * len(value),
        names=Names.of((head, data) for data in values_of_data for head in HEADS),
        settings={},
    )


# Curves over training.


def test_curves_are_lines_with_gaps_and_bands() -> None:
    values = curves()
    values["0:1"][[3, 5]] = np.nan
    error = {"0:0": np.full(len(STEPS), 0.5)}
    ax = rllc.plots.plot_curves(values, STEPS, error=error, ylabel="Δloss")
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == list(HEADS)
    for name, line in lines.items():
        assert np.array_equal(line.get_ydata(), values[name], equal_nan=True)
        assert np.array_equal(line.get_xdata(), STEPS)
    # Only one curve has errors.
    (band,) = ax.collections
    highest = band.get_paths()[0].vertices[:, 1].max()
    assert highest == pytest.approx(values["0:0"].max() + 1.96 * 0.5)
    assert ax.get_xscale() == "symlog"
    assert ax.get_ylabel() == "Δloss"
    assert ax.get_xlabel() == "training step"
    assert sorted(written(ax.texts)) == sorted(HEADS)


def test_a_value_between_two_gaps_is_a_dot() -> None:
    """It has no line to either side."""
    values = curves()
    values["0:1"][[3, 5]] = np.nan
    ax = rllc.plots.plot_curves(values, STEPS)
    (line,) = (line for line in ax.lines if line.get_label() == "0:1")
    assert line.get_marker() == "o"
    assert np.flatnonzero(line.get_markevery()).tolist() == [4]


def test_curves_of_one_group_have_one_colour() -> None:
    values = curves()
    values["everything"] = np.linspace(0, 50, len(STEPS))
    groups = {"L0H0": "multigram", **{name: ROLES[name] for name in HEADS[1:]}}
    ax = rllc.plots.plot_curves(values, STEPS, groups=groups)
    curve_lines = [line for line in ax.lines if line.get_xdata()[-1] == STEPS[-1]]
    colors = [line.get_color() for line in curve_lines]
    assert colors == [*(COLOR[role] for role in ROLES.values()), NO_GROUP]
    assert {text.get_color() for text in ax.texts} == {*COLOR.values(), NO_GROUP}


def test_bands_by_the_degrees_of_freedom_of_their_errors() -> None:
    stats = pytest.importorskip("scipy.stats")
    error = {"0:0": np.full(len(STEPS), 0.5)}
    dof = {"L0H0": np.full(len(STEPS), 3.0)}
    ax = rllc.plots.plot_curves(curves(), STEPS, error=error, dof=dof)
    (band,) = ax.collections
    highest = band.get_paths()[0].vertices[:, 1].max()
    half = stats.t.isf(0.025, 3) * 0.5
    assert highest == pytest.approx(curves()["0:0"].max() + half)


def test_names_and_groups_stand_at_the_ends_of_curves() -> None:
    """All end at about the same place; one has no value at the end, one none at all."""
    values = curves(spread=0.01)
    values["0:2"][-2:] = np.nan
    values["1:7"][:] = np.nan
    ax = rllc.plots.plot_curves(values, STEPS, groups=ROLES)
    text_of = {text.get_text(): text for text in ax.texts}
    assert set(text_of) == {f"{name} {role}" for name, role in ROLES.items()}
    for name, role in ROLES.items():
        text = text_of[f"{name} {role}"]
        assert text.get_color() == COLOR[role]
        if name == "1:7":
            assert text.arrow_patch is None
        else:
            last = -3 if name == "0:2" else -1
            assert text.xy == (STEPS[last], values[name][last])


def test_names_at_ends_are_apart_and_within_the_figure() -> None:
    ax = rllc.plots.plot_curves(curves(spread=0.01), STEPS, groups=ROLES)
    assert apart(ax.figure, ax.texts)
    frame = ax.get_window_extent()
    for text in ax.texts:
        box = box_of(text)
        assert box.x0 > frame.x1
        assert box.x1 < ax.figure.bbox.x1
        assert frame.y0 - box.height < box.y0 < frame.y1


@pytest.mark.slow
def test_very_many_names_are_small_but_apart() -> None:
    names = [f"{layer}:{head}" for layer in range(6) for head in range(12)]
    values = {name: [1.0, 2.0] for name in names}
    ax = rllc.plots.plot_curves(values, [0, 1], groups=dict.fromkeys(names, "other"))
    assert 40 < len(ax.texts) < 72
    assert min(text.get_fontsize() for text in ax.texts) >= 5.5
    assert apart(ax.figure, ax.texts)
    left_out = 72 - len(ax.texts)
    assert f"{left_out} in the crowd have no name" in ax.figure.get_supxlabel()


def test_bands_of_very_many_lines_are_left_out_and_told() -> None:
    names = [f"{layer}:{head}" for layer in range(3) for head in range(12)]
    values = {name: [1.0, 2.0] for name in names}
    error = {name: [0.5, 0.5] for name in names}
    ax = rllc.plots.plot_curves(values, [0, 1], error=error)
    assert not ax.collections
    words = ax.figure.get_supxlabel().replace("\n", " ")
    assert "bands of 36 lines would hide them: half of them are within ± 0.98" in words


# Against λ̂.


def test_dots_against_another_number_with_its_rank_correlation() -> None:
    stats = pytest.importorskip("scipy.stats")
    estimate = an_estimate(pile=numbers(2)[:, 0], code=numbers(2)[:, 1])
    # With ties.
    counts = {name: (7 * i) % 5 for i, name in enumerate(HEADS[:12])}
    ax = rllc.plots.plot_against(counts, estimate, "code", xlabel="multigrams")
    values = [estimate[name, "code"].value for name in counts]
    (container,) = ax.containers
    dots, _, (bars,) = container.lines
    assert np.array_equal(dots.get_xdata(), list(counts.values()))
    assert np.array_equal(dots.get_ydata(), values)
    half = 1.95996398 * estimate["0:3", "code"].standard_error
    ends = [values[3] - half, values[3] + half]
    assert bars.get_segments()[3][:, 1] == pytest.approx(ends)
    rho = stats.spearmanr(list(counts.values()), values).statistic
    assert ax.get_title().startswith(f"Spearman's ρ = {rho:.2f}, two-sided p = ")
    assert ax.get_title().endswith("12 weights")
    assert set(written(ax.texts)) == set(counts)
    assert ax.get_xlabel() == "multigrams"


@pytest.mark.parametrize("y", [(1, 2, 3, 4, 5, 7), (3, 1, 2, 5, 4, 6), (2, 2, 2, 1, 5, 5)])
def test_the_p_value_is_the_share_of_permutations(y: tuple[int, ...]) -> None:
    """All 720 of them against 10,000 random ones, whose share is within 5 standard deviations.

    ρ is the correlation of mean ranks, by the definition.
    """
    x = np.arange(6.0)
    values = np.array(y, dtype=float)
    rho, p = rank_correlation(x, values)

    def by_definition(of: tuple[int, ...]) -> float:
        ranks = [np.mean([1 + sum(b < a for b in of), sum(b <= a for b in of)]) for a in of]
        return float(np.corrcoef(x, ranks)[0, 1])

    assert rho == pytest.approx(by_definition(y))
    as_far = [abs(by_definition(order)) >= abs(rho) - 1e-9 for order in permutations(y)]
    exact = np.mean(as_far)
    deviation = np.sqrt(exact * (1 - exact) / 10_000)
    assert p == pytest.approx(exact, abs=5 * deviation + 1e-4)
    assert rank_correlation(x, values) == (rho, p)


def test_equal_numbers_have_no_rank_correlation() -> None:
    assert np.isnan(rank_correlation(np.arange(6.0), np.ones(6))).all()


def test_a_rank_correlation_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(rllc.InputError, match=r"needs scipy; type: pip install 'rllc\[plot\]'"):
        rank_correlation(np.arange(6.0), np.arange(6.0))


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_names_beside_dots_are_apart_and_by_their_dots(spread: float) -> None:
    estimate = an_estimate(pile=numbers(3, spread=spread)[:, 0])
    x = {name: i / 15 for i, name in enumerate(HEADS)}
    ax = rllc.plots.plot_against(x, estimate, groups=ROLES)
    text_of = {text.get_text(): text for text in ax.texts}
    assert set(text_of) == set(HEADS)
    assert apart(ax.figure, ax.texts)
    frame = ax.get_window_extent()
    for name, text in text_of.items():
        assert text.xy == (x[name], estimate[name].value)
        dot = ax.transData.transform(text.xy)
        box = box_of(text)
        nearest = np.clip(dot, box.min, box.max)
        assert np.linalg.norm(nearest - dot) <= 60 * ax.figure.dpi / 72
        assert text.get_color() == COLOR[ROLES[name]]
        assert (frame.min <= box.min).all()
        assert (frame.max >= box.max).all()
    assert written(ax.get_legend().get_texts()) == list(COLOR)


def test_names_without_a_free_place_are_left_out() -> None:
    _, ax = plt.subplots(figsize=(0.8, 0.8))
    estimate = an_estimate(pile=numbers(3, spread=0)[:, 0])
    rllc.plots.plot_against(dict.fromkeys(HEADS, 1.0), estimate, ax=ax)
    assert 1 <= len(ax.texts) < len(HEADS)
    assert apart(ax.figure, ax.texts)
    assert ax.get_title() == "Spearman's ρ is not defined here"


def test_few_weights_have_no_p_value() -> None:
    pytest.importorskip("scipy")
    estimate = an_estimate(pile=numbers(2)[:, 0])
    for count, said in ((3, "3 weights: too few for a p-value"), (5, "two-sided p = ")):
        x = {name: float(i) for i, name in enumerate(HEADS[:count])}
        assert said in rllc.plots.plot_against(x, estimate).get_title()


# One data set against another.


def three_data_sets() -> rllc.Estimate:
    """λ̂ of 0:3 on code is missing."""
    estimate = an_estimate(pile=numbers(2)[:, 0], prose=numbers(3)[:, 0], code=2 * numbers(2)[:, 1])
    estimate.value[estimate.names.index("0:3", "code")] = np.nan
    return estimate


def test_one_data_set_against_another() -> None:
    estimate = three_data_sets()
    ax = rllc.plots.plot_data_pair(estimate, "pile", "code", groups={"0:0": "induction"})
    induction, others = ax.containers
    assert induction.get_label() == "induction"
    assert induction.lines[0].get_color() == "#0072B2"
    assert others.lines[0].get_color() == NO_GROUP
    names = [name for name in HEADS if name != "0:3"]
    dots = np.concatenate([container.lines[0].get_xydata() for container in ax.containers])
    places = [[estimate[name, data].value for data in ("pile", "code")] for name in names]
    assert np.array_equal(dots, places)
    across, upright = induction.lines[2]
    for bars, axis, data in ((across, 0, "pile"), (upright, 1, "code")):
        ends = bars.get_segments()[0][:, axis]
        width = 2 * 1.95996398 * estimate["0:0", data].standard_error
        # Of so many degrees of freedom that Student's distribution is nearly normal.
        assert np.ptp(ends) == pytest.approx(width, rel=1e-5)
    assert ax.get_title() == "not finite: 0:3"
    assert set(written(ax.texts)) == set(names)
    assert ax.get_xlabel().startswith(r"$\hat\lambda$ on pile")


def test_the_diagonal_is_where_both_are_equal() -> None:
    ax = rllc.plots.plot_data_pair(three_data_sets(), "pile", "code")
    (diagonal,) = (line for line in ax.lines if line.get_xydata().shape == (2, 2))
    ax.figure.canvas.draw()
    pixels = diagonal.get_transform().transform([[0, 0], [1, 1]])
    for x, y in ax.transData.inverted().transform(pixels):
        assert x == pytest.approx(y)


# Errors.


def curves_of(values: list[float], steps: list[int], **options: object) -> object:
    return rllc.plots.plot_curves({"0:0": values}, steps, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rllc.plots.plot_curves({}, [0, 1]), "expected at least one curve, got none"),
        (
            lambda: curves_of([1, 2], [0, 1, 2]),
            r"curve '0:0' must have one value for each of 3 steps",
        ),
        (lambda: curves_of([1, 2], [5, 1]), "`steps` must be rising training steps from 0 on"),
        (
            lambda: curves_of([1, 2], [0, 1], error={"0:0": [1]}),
            r"error of '0:0' must have one value for each of 2 steps, got \[1\]",
        ),
        (
            lambda: curves_of([1, 2], [0, 1], error={"0:1": [1, 2]}),
            "`error` names '0:1'; did you mean '0:0'",
        ),
        (
            lambda: curves_of([1, 2], [0, 1], groups={"0:1": "induction"}),
            r"plot_curves: `groups` are of \['0:1'\], but none of these is drawn; "
            r"did you mean '0:0'",
        ),
    ],
)
def test_curves_that_cannot_be_drawn(call: Callable[[], object], message: str) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda estimate: rllc.plots.plot_against({"0:0": 1}, estimate),
            r"plot_against: on which data\? .* pass data='pile'",
        ),
        (
            lambda estimate: rllc.plots.plot_against({"0:0": 1}, estimate, "Code"),
            "plot_against: no data 'Code'; did you mean 'code'",
        ),
        (
            lambda estimate: rllc.plots.plot_against({"0:9": 1}, estimate, "code"),
            "`x` names '0:9'; did you mean",
        ),
        (
            lambda estimate: rllc.plots.plot_data_pair(estimate, "pile", "cod"),
            "plot_data_pair: no data 'cod'; did you mean 'code'",
        ),
        (
            lambda estimate: rllc.plots.plot_data_pair(estimate, "pile", "pile"),
            "expected two data sets with weights in common, got 'pile'",
        ),
    ],
)
def test_dots_that_cannot_be_drawn(call: Callable[[rllc.Estimate], object], message: str) -> None:
    with pytest.raises(rllc.InputError, match=message):
        call(an_estimate(pile=numbers(2)[:, 0], code=numbers(2)[:, 1]))
