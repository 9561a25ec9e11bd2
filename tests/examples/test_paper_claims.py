"""Each claim of the paper on results made up so that it holds, fails or cannot be asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr, ttest_ind

import rllc
from examples.paper import claims, effects, multigrams, power
from examples.paper.claims import CONTRADICTED, HOLDS, UNTESTED, WEAK, Claim
from examples.paper.effects import Block, Effect
from examples.paper.results import Run
from rllc.weights.names import Names

STEPS = (0, 10, 30, 100, 300, 1000, 3000)
ROLES = {
    **{f"0:{h}": "multigram" for h in range(6)},
    "0:6": "previous token",
    "0:7": "previous token",
    **{f"1:{h}": "multigram" for h in range(5)},
    **{f"1:{h}": "induction" for h in range(5, 8)},
}
HEADS = list(ROLES)
SIMPLE = {head: role in claims.SIMPLE for head, role in ROLES.items()}
Runs = Callable[[Run], Run]


def layer(head: str) -> int:
    return int(head[0])


def index(head: str) -> int:
    return int(head[2])


# A run of which all claims are true.


def trajectory(curves: Mapping[tuple[str, str], object], error: float = 0.01) -> rllc.Trajectory:
    values = np.array(list(curves.values()), dtype=float).T
    return rllc.Trajectory(
        STEPS,
        values,
        np.full_like(values, error),
        values,
        values,
        values,
        values[..., None],
        faults=(((),) * len(curves),) * len(STEPS),
        names=Names.of(curves),
        settings={},
    )


def final_llc() -> dict[str, float]:
    """2 for simple heads, 5 for multigram heads, and a little apart."""
    return {head: (2.0 if SIMPLE[head] else 5.0) + 0.1 * index(head) for head in HEADS}


def llc_of_heads() -> rllc.Trajectory:
    """Curves that come apart: simple heads rise and fall again, multigram heads rise."""
    curves = {}
    for head, final in final_llc().items():
        shape = [1, 1, 3, 5, 4, 3] if SIMPLE[head] else [1, 1, 1.2, 2, 3, 4]
        start = 1.0 + 0.001 * index(head)
        curves[head, "all"] = [start, *np.multiply(shape[1:], start), final]
    return trajectory(curves)


def llc_on_subsets() -> rllc.Trajectory:
    """On code induction heads are higher than on prose, the others lower."""
    curves = {}
    for head, final in final_llc().items():
        factor = 2.0 if ROLES[head] == "induction" else 0.8
        factor *= 1 + 0.01 * index(head)
        curves[head, "code"] = [final * factor] * len(STEPS)
        curves[head, "prose"] = [final] * len(STEPS)
    return trajectory(curves)


def llc_against_one_layer() -> rllc.Trajectory:
    """From step 100 to 1000 heads of layer 0 fall, those of layer 1 rise."""
    curves = {}
    for head in HEADS:
        change = (-1.0 if layer(head) == 0 else 1.0) - 0.01 * index(head)
        curves[head, "all"] = [2, 2, 2, 2, 2 + change / 2, 2 + change, 2 + change]
    return trajectory(curves)


def llc_of_all_weights() -> rllc.Trajectory:
    """It turns at step 300, where the circuit forms, and nowhere else."""
    return trajectory({("all weights", "all"): [0, 5, 12, 20, 25, 19, 12]}, error=0.2)


def tables() -> dict[str, pd.DataFrame]:
    """0:6 looks one back, 1:5 matches prefixes, and the gain comes between steps 100 and 1000."""
    memorised = {head: 0 if SIMPLE[head] else 10 + index(head) for head in HEADS}
    roles = pd.DataFrame({"head": HEADS, "role": list(ROLES.values())})
    roles["memorised"] = roles["head"].map(memorised)
    stream = np.random.default_rng(0)
    roles["delta_loss"] = stream.random(len(HEADS))
    heads = pd.DataFrame({"head": HEADS, "step": STEPS[-1]})
    heads["previous_token"] = np.where(heads["head"] == "0:6", 0.9, 0.1)
    heads["prefix_matching"] = np.where(heads["head"] == "1:5", 0.9, 0.1)
    paths = pd.DataFrame({"sender": HEADS[:8], "receiver": "1:5", "input": "K"})
    paths["effect"] = [0.0] * 6 + [0.5, 0.1]
    paths["standard_error"] = 0.01
    model = pd.DataFrame({"step": STEPS, "gain_random": [0, 0, 0, 0.05, 0.4, 1.0, 1.2]})
    return {
        "roles": roles,
        "heads": heads,
        "paths": paths,
        "model": model,
        "circuit": cost(simple=0.1, complex_=1.0, others=0.2),
        "pairs": paths.assign(step=STEPS[-1], excess=0.1),
        "curvature": pd.DataFrame({"weights": HEADS, "value": 1.0}),
    }


def cost(simple: float, complex_: float, others: float) -> pd.DataFrame:
    """What a circuit of two heads costs, and what each of 20 others does."""
    rows = [("circuit", "0:0, 1:0", "simple", simple), ("circuit", "0:0, 1:0", "complex", complex_)]
    for number in range(20):
        name = f"random {number}"
        rows.append((name, "0:1, 1:1", "simple", 0.2))
        rows.append((name, "0:1, 1:1", "complex", others + 0.01 * (number % 5)))
    return pd.DataFrame(rows, columns=["set", "paths", "mask", "loss"])


def by_the_paper(seed: int = 0) -> Run:
    llc = {
        "heads": llc_of_heads(),
        "subsets": llc_on_subsets(),
        "distilled": llc_against_one_layer(),
        "whole": llc_of_all_weights(),
    }
    slopes = {name: np.zeros_like(one.value) for name, one in llc.items()}
    return Run(f"seed {seed}", "all", "code", "prose", llc, slopes, tables())


def verdicts(runs: list[Run]) -> dict[str, str]:
    return {claim.claim: claim.verdict for claim in claims.all_claims(runs)}


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "NUM_PERMUTATIONS", 200)
    monkeypatch.setattr(claims, "smallest", lambda trial: 0.5)
    monkeypatch.setattr(claims, "ENOUGH_CHECKPOINTS", len(STEPS) - 1)


@functools.cache
def answers_of_three() -> list[Claim]:
    return claims.all_claims([by_the_paper(seed) for seed in range(3)])


def test_all_claims_hold_where_they_are_true() -> None:
    answers = answers_of_three()
    assert len(answers) == 13
    assert {answer.claim for answer in answers if answer.verdict != HOLDS} == set()
    assert all(answer.scale and answer.detail for answer in answers)


# What makes them false.


def with_llc(run: Run, name: str, change: Callable[[rllc.Trajectory], rllc.Trajectory]) -> Run:
    return replace(run, llc={**run.llc, name: change(run.llc[name])})


def with_table(run: Run, name: str, **columns: object) -> Run:
    return replace(run, tables={**run.tables, name: run.tables[name].assign(**columns)})


def inverted(run: Run) -> Run:
    """What was low is high, and what rose falls, in all sweeps."""
    for name in ("heads", "subsets", "distilled"):
        run = with_llc(run, name, lambda one: replace(one, value=10 / one.value))
    return run


def with_paths_from_other_heads(run: Run) -> Run:
    return with_table(run, "paths", effect=[0.5] * 6 + [0.0, 0.5])


def apart_from_the_start(run: Run) -> Run:
    def change(one: rllc.Trajectory) -> rllc.Trajectory:
        value = np.broadcast_to(one.value[-1:], one.value.shape)
        return replace(one, value=value)

    return with_llc(run, "heads", change)


def with_few_memorised_where_llc_is_high(run: Run) -> Run:
    memorised = [30 - 5 * value for value in final_llc().values()]
    return with_table(run, "roles", memorised=memorised)


def with_costlier_other_sets(run: Run) -> Run:
    return replace(run, tables={**run.tables, "circuit": cost(0.1, 1.0, 3.0)})


def without_turns(run: Run) -> Run:
    return with_llc(run, "whole", lambda one: replace(one, value=np.arange(7.0)[:, None]))


@pytest.mark.parametrize(
    ("question", "falsify"),
    [
        (claims.induction_circuit, with_paths_from_other_heads),
        (claims.differentiation, apart_from_the_start),
        (claims.induction_below_others, inverted),
        (claims.lookers_below_multigram, inverted),
        (claims.memory, inverted),
        (claims.memory, with_few_memorised_where_llc_is_high),
        (claims.memory_beyond_ablation, with_few_memorised_where_llc_is_high),
        (claims.induction_on_code, inverted),
        (claims.multigram_on_code, inverted),
        (claims.layer_one_rises, inverted),
        (claims.layer_zero_falls, inverted),
        (claims.stages_show, without_turns),
        (claims.multigram_circuit, with_costlier_other_sets),
    ],
)
def test_claims_are_contradicted_where_the_opposite_is_true(
    question: Callable[[list[Run]], Claim], falsify: Runs
) -> None:
    runs = [by_the_paper(seed) for seed in range(3)]
    assert question(runs).verdict == HOLDS
    assert question([falsify(run) for run in runs]).verdict == CONTRADICTED


# What leaves them open, and what makes them impossible to ask.


def test_without_an_effect_and_with_large_errors_nothing_can_be_told() -> None:
    stream = np.random.default_rng(1)

    def blurred(one: rllc.Trajectory) -> rllc.Trajectory:
        noise = np.exp(stream.standard_normal(one.value.shape))
        return replace(one, value=3 * noise, standard_error=np.full_like(one.value, 2.0))

    run = with_llc(with_llc(by_the_paper(), "heads", blurred), "subsets", blurred)
    for question in (claims.induction_below_others, claims.memory, claims.induction_on_code):
        answer = question([run])
        assert answer.verdict == WEAK
        assert answer.effect is not None
        assert answer.effect.detectable > 0.3


def test_few_checkpoints_cannot_show_that_a_curve_does_not_turn(monkeypatch) -> None:
    monkeypatch.setattr(claims, "ENOUGH_CHECKPOINTS", len(STEPS))
    assert claims.stages_show([without_turns(by_the_paper())]).verdict == WEAK


@pytest.mark.parametrize(
    ("question", "change", "reason"),
    [
        (claims.induction_below_others, {"role": "multigram"}, "no layer has heads of both"),
        (claims.induction_on_code, {"role": "multigram"}, "no layer has heads of both"),
        (claims.clusters_are_roles, {"role": "multigram"}, "all heads have one role"),
        (claims.layer_one_rises, {"role": "other"}, "no two heads of the kind"),
        (claims.memory, {"memorised": 0}, "no layer has heads that differ"),
    ],
)
def test_claims_without_their_heads_are_not_testable(question, change, reason) -> None:
    answer = question([with_table(by_the_paper(), "roles", **change)])
    assert answer.verdict == UNTESTED
    assert reason in answer.detail


def test_without_a_circuit_nothing_is_said_of_it() -> None:
    run = with_table(by_the_paper(), "model", gain_random=0.01)
    assert run.forming() is None
    for question in (claims.induction_circuit, claims.layer_one_rises, claims.stages_show):
        assert question([run]).verdict == UNTESTED


def test_a_circuit_forms_between_a_tenth_and_half_of_its_gain() -> None:
    assert by_the_paper().forming() == (100, 1000)


def test_curves_begin_where_every_head_is_above_0() -> None:
    def early(one: rllc.Trajectory) -> rllc.Trajectory:
        value = one.value.copy()
        value[1, 3] = -5.0
        return replace(one, value=value)

    run = with_llc(by_the_paper(), "heads", early)
    assert by_the_paper().settled() == STEPS[0]
    assert run.settled() == STEPS[2]
    assert run.curve("heads", "0:0")[0].tolist() == list(STEPS[2:])


def test_the_part_of_the_slope_is_taken_off() -> None:
    """On code, induction heads are twice as high only because their slope gives half of λ̂."""
    run = by_the_paper()
    slopes = np.zeros_like(run.llc["subsets"].value)
    for column, (head, data) in enumerate(run.llc["subsets"].names):
        if data == "code" and ROLES[head] == "induction":
            slopes[:, column] = 0.6 * run.llc["subsets"].value[-1, column]
    answer = claims.induction_on_code([replace(run, slopes={**run.slopes, "subsets": slopes})])
    assert answer.effect is not None
    assert answer.effect.value == pytest.approx(np.log(2 / 0.8), abs=0.1)
    without = np.log(2 / 0.8 * 0.4) + np.log(1.06 / 1.02)
    assert f"without the slope's part {without:+.2f}" in answer.detail
    assert "code / prose: seed 0 +60% / +0%" in answer.detail


@pytest.mark.slow
def test_results_are_the_same_after_saving(tmp_path) -> None:
    run = by_the_paper()
    run.save(tmp_path)
    assert verdicts([Run.load(tmp_path)]) == verdicts([run])


def test_the_table_has_a_row_a_claim() -> None:
    answers = answers_of_three()
    lines = claims.as_markdown(answers).splitlines()
    assert len(lines) == 2 + len(answers)
    assert {line.count("|") for line in lines} == {6}


# Effects.


def test_a_contrast_is_students_t() -> None:
    """With no errors of their own: the two-sample test with one variance."""
    stream = np.random.default_rng(0)
    values = stream.standard_normal(8)
    group = np.arange(8) < 3
    effect = effects.contrast(Block("", values, np.zeros(8), group))
    test = ttest_ind(values[group], values[~group])
    assert effect.value / effect.error == pytest.approx(test.statistic)
    assert effect.interval == pytest.approx(tuple(test.confidence_interval()))


def test_heads_do_not_agree_better_than_their_errors_allow() -> None:
    block = Block(
        "", np.array([1.0, 1, 0, 0]), np.full(4, 0.5), np.array([True, True, False, False])
    )
    assert effects.contrast(block).error == pytest.approx(0.5)


def test_pooling_equal_effects_is_a_weighted_mean() -> None:
    parts = [Effect(1.0, 0.3, 10), Effect(1.1, 0.6, 20)]
    both = effects.pooled(parts)
    assert both.value == pytest.approx((1.0 / 0.09 + 1.1 / 0.36) / (1 / 0.09 + 1 / 0.36))
    assert both.error == pytest.approx((1 / 0.09 + 1 / 0.36) ** -0.5)


def test_effects_that_differ_are_less_certain() -> None:
    parts = [Effect(-1.0, 0.1, 10), Effect(3.0, 0.1, 10)]
    assert effects.pooled(parts).error == pytest.approx(2.0, rel=0.01)


def test_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of contrasts of seeds whose effects differ: 95 % at the least (chance below: 1e-6)."""
    trial = power.of_contrasts([np.arange(8) < 3] * 3)
    stream = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = trial(stream, 0.3).interval
        covered += low <= 0.3 <= high
    assert covered >= 358


def test_power_is_that_of_students_test() -> None:
    """3 against 5 heads, without seeds that differ: by the noncentral t, 80 % at 2.44 sd."""
    group = np.arange(8) < 3

    def trial(stream: np.random.Generator, size: float) -> Effect:
        values = size * group + stream.standard_normal(8)
        return effects.contrast(Block("", values, np.zeros(8), group))

    assert power.power(trial, 2.44, num_trials=1000) == pytest.approx(0.8, abs=0.065)
    assert power.smallest_seen(trial, (1.0, 2.0, 3.0)) == 3.0


def test_partial_correlations_are_those_of_residuals() -> None:
    """Of ranks, after a regression on the ranks of the third."""
    stream = np.random.default_rng(0)
    x, y, z = stream.standard_normal((3, 12))
    x, y = x + z, y + z
    ranks = np.argsort(np.argsort([x, y, z], axis=1), axis=1).astype(float)
    line = np.stack([np.ones(12), ranks[2]], 1)
    left = [column - line @ np.linalg.lstsq(line, column, rcond=None)[0] for column in ranks[:2]]
    expected = np.corrcoef(*left)[0, 1]
    assert effects.partial_rank_correlation(x, y, z) == pytest.approx(expected)
    assert effects.rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_spread_is_what_is_left_when_errors_are_taken_out() -> None:
    stream = np.random.default_rng(0)
    values = 3 * stream.standard_normal(200_000)
    errors = 2 * stream.standard_normal(200_000)
    spread = effects.spread(values + errors, np.full(200_000, 2.0))
    assert spread == pytest.approx(3, rel=0.02)
    assert effects.spread(np.array([1.0, 2.0]), np.array([5.0, 5.0])) == 5.0


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (Effect(1.0, 0.4, 100), HOLDS),
        (Effect(-1.0, 0.4, 100), CONTRADICTED),
        (Effect(0.05, 0.05, 100), CONTRADICTED),  # no effect that would matter
        (Effect(0.3, 0.4, 100), WEAK),
    ],
)
def test_verdicts(effect: Effect, verdict: str) -> None:
    assert claims.judge(effect, 0.2) == verdict


def test_multigram_masks_are_those_of_a_slow_loop() -> None:
    ids = rows_with_rules()
    training = rllc.Tokens(ids)
    rows = rllc.Tokens(ids[:40])
    masks = multigrams.multigram_masks(training, rows, vocab=5000)  # whose cube exceeds 32 bits
    simple, complex_ = slow_masks(ids.tolist(), ids[:40].tolist())
    np.testing.assert_array_equal(masks["simple"], simple)
    np.testing.assert_array_equal(masks["complex"], complex_)
    assert masks["simple"].any()
    assert masks["complex"].any()


def rows_with_rules() -> np.ndarray:
    """Random tokens, but that at 6 two tokens decide, and at 9, in every third row, one does."""
    stream = np.random.default_rng(0)
    ids = stream.integers(18, 24, size=(900, 12))
    ids[:, 4] = stream.integers(0, 6, 900)
    ids[:, 5] = stream.integers(6, 12, 900)
    ids[:, 6] = 12 + (ids[:, 4] + ids[:, 5]) % 6
    ids[::3, 8] = 24
    ids[::3, 9] = 25
    return np.where(ids == 23, 4999, ids)


def slow_masks(training: list[list[int]], rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Simple and complex tokens, by lists of all that followed one token and two."""
    after_one: dict[int, list[int]] = {}
    after_two: dict[tuple[int, int], list[int]] = {}
    for row in training:
        for k in range(1, len(row)):
            after_one.setdefault(row[k - 1], []).append(row[k])
            if k > 1:
                after_two.setdefault((row[k - 2], row[k - 1]), []).append(row[k])

    simple = np.zeros((len(rows), len(rows[0])), dtype=bool)
    complex_ = np.zeros_like(simple)
    for r, row in enumerate(rows):
        for k in range(1, len(row)):
            followed = after_one[row[k - 1]]
            chance = followed.count(row[k]) / len(followed)
            simple[r, k] = chance >= 0.5 and len(followed) >= 10
            if k > 1:
                followed = after_two[row[k - 2], row[k - 1]]
                likely = followed.count(row[k]) / len(followed) >= 0.5
                complex_[r, k] = likely and len(followed) >= 10 and chance < 0.2
    return simple, complex_
