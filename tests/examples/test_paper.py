"""The paper's pipeline: its options, its choice of checkpoints, and the whole of it, run twice."""

from __future__ import annotations

import pickle
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens

import rllc
from examples.paper import (
    averaged,
    claims,
    cost,
    data,
    pipeline,
    results,
    settings,
    sweep,
    train,
    trained,
)
from examples.paper.claims import CONTRADICTED, HOLDS, UNTESTED, WEAK
from examples.paper.results import load_runs
from rllc.analysis import ablation, circuit


def test_sizes_are_arguments() -> None:
    small = settings.read_settings(["--small", "--steps", "7"])
    assert (small.steps, small.heads, str(small.out)) == (7, 8, "rllc-out/paper-small")
    assert settings.read_settings([]).size == "tiny"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--full", "--full needs --data"),
        ("--small --data x", "--data needs --subsets"),
        ("--data x --subsets y", "--data needs --small or --full"),
        ("--small --subsets y", "need --data"),
        ("--tokenizer x", "--tiny has no tokenizer"),
        ("--heads 2", "--heads must be at least 3"),
        ("--heads 3", "--d-model must be a multiple of --heads"),
        ("--checkpoints 5", "--checkpoints must be at least 6"),
        ("--seeds 0", "--seeds must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(argv: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        settings.read_settings(argv.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [6, 14, 30])
def test_checkpoints_are_as_many_as_asked_for_with_both_ends(count: int) -> None:
    asked = settings.read_settings(["--small", "--checkpoints", str(count)])
    steps = train.measured_steps(asked)
    assert len(steps) == count
    assert steps == sorted(set(steps))
    assert (steps[0], steps[1], steps[-1]) == (0, asked.steps // 200, asked.steps)
    ratios = [late / early for early, late in pairwise(steps[1:])]
    assert max(ratios) / min(ratios) < 1.15  # even in log step, but for rounding


def test_every_so_many_checkpoints_end_with_the_last() -> None:
    assert sweep.every(range(8), 3) == [1, 4, 7]
    assert sweep.every(range(8), sweep.LAST_ONLY) == [7]


def test_weights_are_averaged_over_the_last_of_their_steps(tmp_path: Path) -> None:
    asked = settings.read_settings(["--checkpoints", "6", "--steps", "200"])
    asked.out = tmp_path
    model = tiny_model()
    steps = {*train.measured_steps(asked), *train.averaged_steps(asked)}
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float(step))
        model.save_pretrained(tmp_path / "seed0" / "checkpoints" / f"step{step:07d}")
    found = averaged.averaged_checkpoints(asked, 0)
    assert [checkpoint.step for checkpoint in found] == train.measured_steps(asked)
    last = rllc.load(found[-1]).state_dict()
    expected = (184 + 188 + 192 + 196 + 200) / 5
    assert {float(value.mean()) for value in last.values()} == {expected}
    assert averaged.averaged_checkpoints(asked, 0)[-1].sha256() == found[-1].sha256()


def test_the_slope_is_that_of_a_loop() -> None:
    """nβ times the mean gradient at w* along the way from w*, by autograd on the same rows."""
    model = tiny_model()
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.d_vocab, (4, 6), generator=stream)
    rows = rllc.Tokens(ids, "rows")
    where = rllc.Observable(lambda moment: moment.position - moment.origin, axes=("weight",))
    draws = rllc.sample(
        model,
        rows,
        rllc.head("1:1"),
        sampling=rllc.Sampling(num_chains=2, num_draws=3, batch_size=4, n_beta=50.0),
        observe={"slope": sweep.slope(), "where": where},
    )
    loss = model(ids, labels=ids).loss
    names, parameters = zip(*sorted(model.named_parameters()), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    moving = [f"blocks.1.attn.{name}" for name in HEAD_PARAMETERS]
    gradient = torch.cat([gradients[name][1].flatten() for name in moving])
    expected = 50.0 * draws.observed["where"] @ gradient.double().numpy()
    np.testing.assert_allclose(draws.observed["slope"], expected, rtol=1e-4, atol=1e-6)


def test_other_sets_have_as_many_heads_that_matter_as_much() -> None:
    effects = {f"{layer}:{head}": 0.1 * head for layer in (0, 1) for head in range(8)}
    heads = ("0:1", "0:2", "1:5")
    sets = trained.sets_like(heads, effects, seed=0)
    assert len(sets) == trained.OTHER_SETS
    for members in sets.values():
        assert [results.layer_of(head) for head in members] == [0, 0, 1]
        assert set(members) != set(heads)
        mean = np.mean([effects[head] for head in members])
        assert mean == pytest.approx(0.8 / 3, abs=0.1)


def test_heads_ablated_together_cost_what_a_circuit_costs() -> None:
    model = tiny_model()
    rows = tiny_tokens()
    mask = np.zeros(rows.rows.shape, dtype=bool)
    mask[:, 3:] = True
    rise = ablation.ablate(model, rows, [trained.together(("0:1", "1:0"))]).tokens
    cost = circuit.ablate_circuit(model, rows, ["0:1", "1:0"], {"late": mask}, num_random=0)
    assert rise[0][mask[:, 1:]].mean() == pytest.approx(cost.loss[0, 0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_the_cost_is_said_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    options = ["--tiny", "--quiet", "--cost", "--out", str(tmp_path), "--processes", "0"]
    for name, value in (SIZES | {"train-rows": 300}).items():
        options += [f"--{name}", str(value)]
    asked = settings.read_settings(options)
    hours = cost.print_cost(asked, data.read_data(asked, [0]))
    printed = capsys.readouterr().out
    for plan in ("heads", "subsets", "whole", "distilled", "paper"):
        assert f"sweep of {plan}: " in printed
    assert f"in all {hours:.2f} h" in printed
    assert hours > 0
    assert list(tmp_path.iterdir()) == []


HEAD_PARAMETERS = ("W_K", "W_O", "W_Q", "W_V", "b_K", "b_Q", "b_V")
"""In alphabetical order, as a position has them."""


# The whole pipeline, on models of a few thousand weights.

SIZES = {
    "d-model": 12,
    "heads": 3,
    "context": 16,
    "positions": 16,
    "steps": 40,
    "one-layer-steps": 4,
    "batch": 8,
    "train-rows": 200,
    "characters": 100_000,
    "checkpoints": 6,
    "chains": 2,
    "draws": 6,
    "burnin": 2,
    "llc-batch": 4,
    "rows": 16,
    "seeds": 1,
}


def run_paper(out: Path, size: str, capsys: pytest.CaptureFixture[str], **sizes: int) -> str:
    """What the pipeline prints, from its claims on, without the time that it took."""
    options = [f"--{size}", "--quiet", "--out", str(out), "--processes", "0"]
    for name, value in (SIZES | sizes).items():
        options += [f"--{name}", str(value)]
    capsys.readouterr()
    # In this process, because importing everything anew would take longer.
    pipeline.main(options)
    return re.sub(r"\d+ s", "… s", capsys.readouterr().out)


def times_written(out: Path) -> dict[str, int]:
    """Every file of models, sweeps and measurements, and when it was written."""
    times = {}
    for pattern in ("checkpoints", "one_layer", "sweep-*", "measured-*"):
        for folder in (out / "seed0").glob(pattern):
            for path in folder.rglob("*.*"):
                # Files of the folder `sweeps` say when a sweep was last asked for.
                if path.parent.name != "sweeps":
                    times[str(path)] = path.stat().st_mtime_ns
    return times


def test_what_a_sweep_is_given_travels_to_worker_processes() -> None:
    sent = pickle.loads(pickle.dumps(sweep.slope()))
    model, rows = tiny_model(), tiny_tokens()
    sampling = rllc.Sampling(2, 2, batch_size=4, control_variate=False, num_probes=0)
    observe = {"here": sweep.slope(), "there": sent}
    options = {"sampling": sampling, "observe": observe, "compute": rllc.Compute(progress=False)}
    observed = rllc.sample(model, rows, "0:1", **options).observed
    np.testing.assert_array_equal(observed["here"], observed["there"])


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_the_paper_in_small_and_again(tmp_path, capsys) -> None:
    out = tmp_path / "here"
    printed = run_paper(out, "tiny", capsys)
    page = (out / "report.html").read_text(encoding="utf-8")
    figures = list((out / "figures").glob("*.png"))
    assert page.count("<img ") == len(figures) >= 6
    assert len(list((out / "seed0" / "pages").glob("head-*.html"))) == 6
    results = out / "results"
    answers = claims.all_claims(load_runs([results]))
    assert len(answers) == 13
    assert {answer.verdict for answer in answers} <= {HOLDS, CONTRADICTED, WEAK, UNTESTED}
    for answer in answers:
        assert f"{answer.verdict.upper()}: {answer.claim}" in printed
    before = times_written(out)
    assert len(before) > 50
    again = run_paper(out, "tiny", capsys)
    assert times_written(out) == before  # nothing was computed twice
    assert again == printed


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_the_paper_on_texts(tmp_path, capsys) -> None:
    printed = run_paper(tmp_path, "small", capsys, vocab=300)
    assert "on code against prose, induction heads are higher" in printed
    assert (tmp_path / "tokenizer-300").exists()
