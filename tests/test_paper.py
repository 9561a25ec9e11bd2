"""The paper's pipeline: each claim on results made up so that it holds, fails or cannot be asked; and the whole, run twice."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from test_examples import EXAMPLES, run

import rllc

for package in ("scipy", "sklearn", "pandas"):
    pytest.importorskip(package)
sys.path.insert(0, str(EXAMPLES))
import paper  # noqa: E402
import paper_claims as claims  # noqa: E402
from paper_claims import FAILS, HOLDS, UNTESTED  # noqa: E402

STEPS = (0, 10, 100, 1000)
ROLES = {
    **{f"0:{h}": "multigram" for h in range(6)},
    **{"0:6": "previous token", "0:7": "previous token"},
    **{f"1:{h}": "multigram" for h in range(5)},
    **{"1:5": "induction", "1:6": "induction", "1:7": "induction"},
}
HEADS = list(ROLES)


def trajectory(curves: dict[tuple[str, str], list[float]], error: float = 0.01) -> rllc.Trajectory:
    values = np.array(list(curves.values()), dtype=float).T
    names = {"weights": tuple(w for w, _ in curves), "data": tuple(d for _, d in curves)}
    status = (("ok",) * len(curves),) * len(STEPS)
    errors = np.full_like(values, error)
    return rllc.Trajectory(STEPS, values, errors, values, values, values[..., None], status, **names, settings={})


def by_the_paper() -> claims.Run:
    """A run of which the paper's claims are true."""
    simple = {h: role in claims.SIMPLE for h, role in ROLES.items()}
    final = {h: (2.0 if simple[h] else 5.0) + 0.1 * k for k, h in enumerate(HEADS)}
    on_code = {h: final[h] + (1.0 if role == "induction" else -1.0) + 0.01 * int(h[2]) for h, role in ROLES.items()}
    curves = {(h, "all"): [1.0, 1.0, 1.5, final[h]] for h in HEADS}
    curves |= {(h, "code"): [1.0, 1.0, 1.5, on_code[h]] for h in HEADS}
    change = {h: (-1.0 if h[0] == "0" else 1.0) - 0.01 * int(h[2]) for h in HEADS}
    best = {"previous_token": {h: [0.0, 0.1, 0.8 if h == "0:6" else 0.1, 0.9 if h == "0:6" else 0.1] for h in HEADS}}
    best["prefix_matching"] = {h: [0.0, 0.0, 0.1, 0.9 if h == "1:5" else 0.1] for h in HEADS}
    labels = np.array([int(simple[h]) + 2 * int(h[0]) for h in HEADS])
    paths = tuple(f"0:{h}->1:5.K" for h in range(8))
    effect = np.array([0.0] * 6 + [0.5, 0.1])
    return claims.Run(
        heads=trajectory(curves),
        whole=trajectory({("everything", "all"): [1.0, 2.0, 3.0, 4.0]}),
        distilled=trajectory({(h, "all"): [2.0, 2.0, 2.0, 2.0 + change[h]] for h in HEADS}),
        roles=ROLES,
        memorised={h: 0 if simple[h] else 10 + k for k, h in enumerate(HEADS)},
        scores=best,
        clusters=SimpleNamespace(names=tuple(HEADS), labels=labels, groups=tuple(f"layer {h[0]}" for h in HEADS)),
        paths=SimpleNamespace(paths=paths, effect=effect, standard_error=np.full(8, 0.01)),
        circuit=cost(simple=0.1, complex=1.0, others=0.2),
        stages=SimpleNamespace(turns=(SimpleNamespace(step=50.0, low=40.0, high=60.0),)),
        base="all",
        code="code",
    )


def cost(simple: float, complex: float, others: float) -> claims.CircuitCost:
    loss = np.array([[simple, complex]] + [[others, others]] * 20)
    return claims.CircuitCost(
        loss,
        loss,
        loss,
        loss,
        loss[0],
        loss[0],
        np.ones(2),
        ("simple", "complex"),
        (("0:0", "1:0"),) * 21,
        "mean",
        "all",
    )


def test_all_claims_hold_where_they_are_true_and_of_several_seeds() -> None:
    found = claims.all_claims([by_the_paper(), by_the_paper()])
    assert len(found) == 9
    assert {claim.claim: claim.verdict for claim in found} == {claim.claim: HOLDS for claim in found}
    assert all(claim.measured and claim.criterion for claim in found)


def flat(run: claims.Run) -> claims.Run:
    """No head differs from another by more than its error."""
    stream = np.random.default_rng(0)
    curves = {(h, d): 2 + 0.5 * stream.standard_normal(len(STEPS)) for h in HEADS for d in ("all", "code")}
    return replace(run, heads=trajectory(curves, error=0.5), distilled=trajectory(curves, error=0.5))


def upside_down(run: claims.Run) -> claims.Run:
    negative = {name: replace(getattr(run, name), value=-getattr(run, name).value) for name in ("heads", "distilled")}
    return replace(run, **negative)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        (claims.induction_circuit, lambda run: replace(run, paths=swapped(run.paths))),
        (claims.induction_circuit, lambda run: replace(run, paths=unsure(run.paths))),
        (claims.induction_circuit, lambda run: replace(run, scores=run.scores | {"prefix_matching": low()})),
        (claims.differentiation, flat),
        (claims.simple_below_multigram, flat),
        (claims.simple_below_multigram, upside_down),
        (claims.memory, flat),
        (claims.memory, upside_down),
        (claims.clusters_are_roles, lambda run: replace(run, clusters=mixed(run.clusters))),
        (claims.on_code, flat),
        (claims.on_code, upside_down),
        (claims.against_one_layer, flat),
        (claims.against_one_layer, upside_down),
        (claims.stages_show, lambda run: replace(run, stages=SimpleNamespace(turns=()))),
        (claims.multigram_circuit, lambda run: replace(run, circuit=cost(0.1, 1.0, 2.0))),
        (claims.multigram_circuit, lambda run: replace(run, circuit=cost(1.5, 1.0, 0.2))),
    ],
)
def test_claims_fail_where_they_are_not_true(question, wrong) -> None:
    good = by_the_paper()
    assert question([good]).verdict == HOLDS
    assert question([wrong(good)]).verdict == FAILS


def low() -> dict[str, list[float]]:
    return {h: [0.1] * len(STEPS) for h in HEADS}


def swapped(paths):
    return SimpleNamespace(**vars(paths) | {"effect": paths.effect[[0, 1, 2, 3, 4, 5, 7, 6]]})


def unsure(paths):
    return SimpleNamespace(**vars(paths) | {"standard_error": np.full(8, 1.0)})


def mixed(clusters):
    return SimpleNamespace(**vars(clusters) | {"labels": np.arange(16) % 2 + 2 * (np.arange(16) // 8)})


@pytest.mark.parametrize(
    ("question", "roles"),
    [
        (claims.simple_below_multigram, dict.fromkeys(HEADS, "multigram")),
        (claims.clusters_are_roles, dict.fromkeys(HEADS, "multigram")),
        (claims.on_code, dict.fromkeys(HEADS, "multigram")),
        (claims.on_code, dict.fromkeys(HEADS, "induction")),
        (claims.against_one_layer, dict.fromkeys(HEADS, "other")),
    ],
)
def test_claims_without_the_heads_they_are_about_are_not_testable(question, roles) -> None:
    assert question([replace(by_the_paper(), roles=roles)]).verdict == UNTESTED


def test_claims_without_a_circuit_or_memory_are_not_testable() -> None:
    good = by_the_paper()
    assert claims.memory([replace(good, memorised=dict.fromkeys(HEADS, 0))]).verdict == UNTESTED
    assert claims.multigram_circuit([replace(good, circuit=None)]).verdict == UNTESTED
    none = replace(good, scores=good.scores | {"prefix_matching": low()})
    assert claims.forming(none) == (0, 0)
    assert claims.against_one_layer([none]).measured == "no circuit forms"


def test_when_a_circuit_forms() -> None:
    """The best previous-token score passes a quarter of 0.9 at the third checkpoint, prefix matching 3/4 at the last."""
    assert claims.forming(by_the_paper()) == (2, 3)


def test_spread_is_what_is_left_when_errors_are_taken_out() -> None:
    stream = np.random.default_rng(0)
    values = 3 * stream.standard_normal(200_000)
    assert claims.spread(values + 4 * stream.standard_normal(200_000), np.full(200_000, 4.0)) == pytest.approx(
        3, rel=0.02
    )
    assert claims.spread(np.array([1.0, 2.0]), np.array([5.0, 5.0])) == 0


def test_p_values_are_those_of_all_permutations() -> None:
    table = np.array([[1.0, 2], [2, 1], [3, 3], [4, 5], [5, 4]])
    correlations = [claims.rank_correlation(table[:, 0], np.array(order)) for order in permutations(table[:, 1])]
    observed, p = claims.permuted([table], claims.rank_correlation, count=4000)
    assert observed == pytest.approx(0.8)
    exact = np.mean(np.array(correlations) >= 0.8 - 1e-9)
    assert abs(p - exact) < 5 * np.sqrt(exact / 4000)
    _, below = claims.permuted([table], claims.rank_correlation, lower=True, count=4000)
    assert abs(below - np.mean(np.array(correlations) <= 0.8 + 1e-9)) < 0.03


def test_multigram_masks_are_those_of_a_slow_loop() -> None:
    stream = np.random.default_rng(0)
    ids = stream.integers(18, 24, size=(900, 12))
    ids[:, 4], ids[:, 5] = stream.integers(0, 6, 900), stream.integers(6, 12, 900)
    ids[:, 6] = 12 + (ids[:, 4] + ids[:, 5]) % 6  # the two before it fix it
    ids[::3, 8], ids[::3, 9] = 24, 25  # the one before it fixes it
    training, rows = rllc.Tokens(ids), rllc.Tokens(ids[:40])
    masks = paper.multigram_masks(training, rows, 26)
    ones, twos = {}, {}
    for row in ids.tolist():
        for k in range(1, 12):
            ones.setdefault(row[k - 1], []).append(row[k])
            if k > 1:
                twos.setdefault((row[k - 2], row[k - 1]), []).append(row[k])
    for r, row in enumerate(ids[:40].tolist()):
        for k in range(12):
            one = ones[row[k - 1]] if k else []
            two = twos[row[k - 2], row[k - 1]] if k > 1 else []
            chance = one.count(row[k]) / len(one) if one else 0
            simple = chance >= 0.5 and len(one) >= 10
            hard = bool(two) and two.count(row[k]) / len(two) >= 0.5 and len(two) >= 10 and chance < 0.2
            assert masks["simple"][r, k] == simple
            assert masks["complex"][r, k] == hard
    assert masks["simple"].any()
    assert masks["complex"].any()


def test_sizes_are_arguments_and_missing_ones_are_asked_for(capsys) -> None:
    args = paper.arguments(["--small", "--steps", "7"])
    assert (args.steps, args.heads, str(args.out)) == (7, 8, "rllc-out/paper-small")
    assert paper.arguments([]).size == "tiny"
    assert paper.SMALL.keys() == paper.TINY.keys() == paper.FULL.keys()
    for wrong, words in ((["--full"], "--full needs --data"), (["--data", "x"], "--data needs --subsets")):
        with pytest.raises(SystemExit):
            paper.arguments(wrong)
        assert words in capsys.readouterr().err


SHORT = {"steps": 120, "train-rows": 400, "checkpoints": 8, "draws": 10, "rows": 32, "probes": 2, "probe-rows": 4}
SHORT |= {"llc-batch": 4, "seeds": 1}
FLAGS = [part for name, value in SHORT.items() for part in (f"--{name}", str(value))] + ["--quiet"]


def written(out) -> dict[str, int]:
    """Every file of models, sweeps and measurements, and when it was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for folder in ("checkpoints", "one_layer", "sweep-*", "measured-*")
        for found in (out / "seed0").glob(folder)
        for path in found.rglob("*.*")
        if path.name != "training.json"
    }


@pytest.mark.slow
def test_the_paper_in_small_and_again(tmp_path) -> None:
    told = run("paper.py", "--tiny", "--out", "here", "--processes", "2", *FLAGS, folder=tmp_path)
    assert sum(told.count(f"\n{verdict.upper()}: ") for verdict in (HOLDS, FAILS, UNTESTED)) == 9
    out = tmp_path / "here"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == len(list((out / "seed0").glob("*.png"))) >= 15
    assert len(list((out / "seed0" / "pages").glob("head-*.html"))) == 8
    table = paper.pd.read_csv(out / "claims.csv")
    assert len(table) == 9
    assert set(table["verdict"]) <= {HOLDS, FAILS, UNTESTED}
    before = written(out)
    assert len(before) > 60
    again = run("paper.py", "--tiny", "--out", "here", "--processes", "0", *FLAGS, folder=tmp_path)
    assert written(out) == before  # nothing was computed twice
    assert again.split("\n\n")[1:-1] == told.split("\n\n")[1:-1]


@pytest.mark.slow
def test_the_paper_on_texts(tmp_path) -> None:
    flags = ["--small", "--d-model", "16", "--heads", "2", "--context", "32", "--vocab", "300", *FLAGS]
    told = run("paper.py", *flags, "--out", "here", "--processes", "0", folder=tmp_path)
    assert "on code, λ̂ of induction heads is larger than on all" in told
    assert os.path.exists(tmp_path / "here" / "tokenizer")
