"""The examples run, in a tiny mode, as a user would run them; their products are looked at."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import induction_model, repeats

import rllc

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    script = [str(EXAMPLES / name)] if name.endswith(".py") else ["-m", name]
    done = subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["quickstart"] = module
    spec.loader.exec_module(module)
    return module


# The whole of the quickstart.


def check_products(out: Path, subsets: list[str]) -> None:
    table = pd.read_csv(out / "estimate.csv")
    assert sorted(set(table["data"])) == sorted(["all", *subsets, "repeated"])
    assert set(table["weights"]) == {"0:0", "0:1", "1:0", "1:1"}
    assert np.isfinite(table[["llc", "standard_error", "rhat"]]).all(axis=None)
    trajectory = rllc.Trajectory.load(out / "trajectory.npz")
    assert len(trajectory.steps) == 3
    assert set(trajectory.data) == {"all"}
    assert rllc.checkpoints(out / "checkpoints")[-1].step == trajectory.steps[-1] == 4
    assert (out / "quickstart.png").read_bytes().startswith(b"\x89PNG")


def lines_of_heads(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(("0:", "1:"))]


@pytest.mark.slow
def test_quickstart_on_files_of_the_pile_and_again(tmp_path) -> None:
    words = ["alpha beta gamma delta", "one two three four", "lorem ipsum dolor sit"]
    rows = [
        {"text": f"{words[i % 3]} {i} " * 40, "meta": {"pile_set_name": name}}
        for i in range(60)
        for name in ("Github", "Wikipedia (en)")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", "train.jsonl", "--subsets", "Github", "Wikipedia (en)"]
    arguments = [*data, "--out", "here", "--tiny", "--quiet"]
    first = run("quickstart.py", *arguments, folder=tmp_path)
    check_products(tmp_path / "here", ["Github", "Wikipedia (en)"])
    before = (tmp_path / "here" / "trajectory.npz").read_bytes()
    again = run("quickstart.py", *arguments, folder=tmp_path)
    # Nothing was computed twice.
    assert (tmp_path / "here" / "trajectory.npz").read_bytes() == before
    # Roles, then LLCs.
    assert len(lines_of_heads(first)) == 2 * 4
    assert lines_of_heads(first) == lines_of_heads(again)
    assert "Github - Wikipedi" in first
    assert "no induction circuit has formed" in first


@pytest.mark.slow
def test_quickstart_on_what_python_brings(tmp_path) -> None:
    run("quickstart.py", "--out", "here", "--tiny", "--quiet", folder=tmp_path)
    check_products(tmp_path / "here", ["code", "prose"])


@pytest.mark.slow
def test_quickstart_on_pile_mini(tmp_path, pile_mini) -> None:
    source = str(pile_mini.resolve() / "train.jsonl.zst")
    arguments = ["--data", source, "--out", "here", "--tiny", "--quiet"]
    run("quickstart.py", *arguments, folder=tmp_path)
    check_products(tmp_path / "here", ["Github", "Wikipedia (en)"])


# What it measures.


def test_gain_of_a_model_with_an_induction_head_and_of_one_without(quickstart) -> None:
    model = induction_model()
    rows = rllc.Tokens(repeats())
    # Every token but the first of the second copy is predicted; the first copy is at chance, where
    # BOS, which never comes, is as likely as others.
    assert quickstart.gain_on_second_copy(model, rows) == pytest.approx(np.log(12), abs=0.3)
    model.blocks[1].attn.W_O.data.zero_()
    assert quickstart.gain_on_second_copy(model, rows) == pytest.approx(0, abs=1e-5)


def test_the_circuit_forms_at_half_the_last_gain(quickstart) -> None:
    circuit = {
        "step": np.array([0, 10, 20, 30]),
        "gain on random tokens": np.array([0.0, 0.49, 0.5, 1.0]),
    }
    assert quickstart.step_of_formation(circuit) == 20
    assert quickstart.step_of_formation(circuit | {"gain on random tokens": np.zeros(4)}) is None


def test_repeated_text(quickstart) -> None:
    rows = rllc.Tokens(torch.arange(20).reshape(2, 10))
    repeated = quickstart.repeated_text(rows, 8)
    assert repeated.rows.tolist() == [[0, 1, 2, 3, 1, 2, 3], [10, 11, 12, 13, 11, 12, 13]]
    assert repeated.name == "repeated"


def test_balanced(quickstart) -> None:
    many = rllc.Tokens([[0, k] for k in range(1, 8)], "many")
    few = rllc.Tokens([[1, k] for k in range(1, 4)], "few")
    rows = quickstart.balanced({"many": many, "few": few}, seed=0).rows
    counts = {kind: rows[rows[:, 0] == kind, 1].bincount().tolist() for kind in (0, 1)}
    assert counts == {0: [0, 1, 1, 1, 1, 1, 1, 1], 1: [0, 3, 2, 2]}


def test_spread(quickstart) -> None:
    checkpoints = [
        rllc.models.Checkpoint(step, "run") for step in rllc.training.schedule(1500, "log")
    ]
    steps = [checkpoint.step for checkpoint in quickstart.spread(checkpoints, 8)]
    assert len(steps) == 8
    assert steps[-1] == 1500
    ratios = np.array(steps[1:]) / np.array(steps[:-1])
    # Even in log step, as far as checkpoints that are a quarter apart allow.
    assert ratios.min() > 1.2
    assert ratios.max() < 1.7
    assert quickstart.spread(checkpoints[:3], 8) == checkpoints[:3]


# The others.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["your_training_loop.py", "new_refinement.py"])
def test_the_others(name, tmp_path) -> None:
    printed = run(name, "--tiny", folder=tmp_path)
    assert "R-hat" in printed or "rhat" in printed
    assert "nan" not in printed.lower()
