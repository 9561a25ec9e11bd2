"""The paper's pipeline: its options, its choice of checkpoints, and the whole of it, run twice."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from test_examples import run

import rllc
from examples.paper import settings, sweep
from examples.paper.claims import FAILS, HOLDS, UNTESTED


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
        ("--probes 1", "--probes must be at least 2"),
        ("--seeds 0", "--seeds must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(argv: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        settings.read_settings(argv.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [6, 14, 30, 200])
def test_checkpoints_are_as_many_as_asked_for_with_both_ends(count, monkeypatch) -> None:
    steps = rllc.training.schedule(8000)
    checkpoints = [rllc.Checkpoint(step, "folder") for step in steps]
    monkeypatch.setattr(rllc, "checkpoints", lambda folder: checkpoints)
    asked = settings.read_settings(["--checkpoints", str(count)])
    chosen = [checkpoint.step for checkpoint in sweep.chosen_checkpoints(asked, 0)]
    assert len(chosen) == min(count, len(steps))
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, 8000)


# The whole pipeline, on models of a few thousand weights.

SIZES = {
    "d-model": 12,
    "heads": 3,
    "context": 16,
    "steps": 40,
    "batch": 8,
    "train-rows": 200,
    "checkpoints": 6,
    "chains": 2,
    "draws": 6,
    "llc-batch": 4,
    "rows": 16,
    "probes": 2,
    "probe-rows": 2,
    "seeds": 1,
}


def run_paper(folder: Path, size: str, processes: int, **sizes: int) -> str:
    """What the pipeline prints, from its claims on, without the time that it took."""
    options = [f"--{size}", "--quiet", "--out", "here", "--processes", str(processes)]
    for name, value in (SIZES | sizes).items():
        options += [f"--{name}", str(value)]
    printed = run("examples.paper", *options, folder=folder)
    return re.sub(r"\d+ s", "… s", printed)


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


@pytest.mark.slow
def test_the_paper_in_small_and_again(tmp_path) -> None:
    printed = run_paper(tmp_path, "tiny", processes=1)
    out = tmp_path / "here"
    page = (out / "report.html").read_text(encoding="utf-8")
    figures = list((out / "seed0" / "figures").glob("*.png"))
    assert page.count("<img ") == len(figures) >= 12
    assert len(list((out / "seed0" / "pages").glob("head-*.html"))) == 6
    table = pd.read_csv(out / "claims.csv")
    assert len(table) == 9
    assert set(table["verdict"]) <= {HOLDS, FAILS, UNTESTED}
    for row in table.itertuples():
        assert f"{row.verdict.upper()}: {row.claim}" in printed
    before = times_written(out)
    assert len(before) > 50
    again = run_paper(tmp_path, "tiny", processes=0)
    assert times_written(out) == before  # nothing was computed twice
    assert again == printed


@pytest.mark.slow
def test_the_paper_on_texts(tmp_path) -> None:
    printed = run_paper(tmp_path, "small", processes=0, vocab=300)
    assert "on code, λ̂ of induction heads is larger than on all" in printed
    assert (tmp_path / "here" / "tokenizer-300").exists()
