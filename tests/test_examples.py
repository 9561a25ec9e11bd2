"""The examples run, in a tiny mode, as a user would run them; their products are looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rllc

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = {
    "steps": 4,
    "batch": 4,
    "layers": 2,
    "d-model": 8,
    "heads": 2,
    "context": 16,
    "vocab": 300,
    "draws": 4,
}
TINY |= {"chains": 2, "llc-batch": 4, "checkpoints": 3}
TINY_FLAGS = [part for name, value in TINY.items() for part in (f"--{name}", str(value))] + [
    "--quiet"
]


def run(name: str, *arguments: str, folder: Path) -> str:
    program = ["-m", name] if name.startswith("examples.") else [str(EXAMPLES / name)]
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_products(out: Path, data: list[str]) -> None:
    table = pd.read_csv(out / "estimate.csv")
    assert sorted(set(table["data"])) == sorted(data)
    assert set(table["weights"]) == {"0:0", "0:1", "1:0", "1:1"}
    assert np.isfinite(table[["llc", "standard_error", "rhat"]]).all(axis=None)
    trajectory = rllc.Trajectory.load(out / "trajectory.npz")
    assert len(trajectory.steps) == 3
    assert rllc.checkpoints(out / "checkpoints")[-1].step == 4
    for figure in [
        "heads.png",
        *(f"over_training_{''.join(c for c in d if c.isalnum())}.png" for d in data),
    ]:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")


def test_quickstart_on_files_of_the_pile_and_again(tmp_path) -> None:
    words = ["alpha beta gamma delta", "one two three four", "lorem ipsum dolor sit"]
    rows = [
        {"text": f"{words[i % 3]} {i} " * 40, "meta": {"pile_set_name": name}}
        for i in range(60)
        for name in ("Github", "Wikipedia (en)")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--data",
        "train.jsonl",
        "--subsets",
        "Github",
        "Wikipedia (en)",
        "--out",
        "here",
        *TINY_FLAGS,
    ]
    first = run("quickstart.py", *arguments, folder=tmp_path)
    check_products(tmp_path / "here", ["all", "Github", "Wikipedia (en)"])
    before = (tmp_path / "here" / "trajectory.npz").read_bytes()
    again = run("quickstart.py", *arguments, folder=tmp_path)
    assert (
        tmp_path / "here" / "trajectory.npz"
    ).read_bytes() == before  # nothing was computed twice
    table = [line for line in first.splitlines() if line.startswith(("0:", "1:"))]
    assert len(table) == 12
    assert table == [line for line in again.splitlines() if line.startswith(("0:", "1:"))]


@pytest.mark.slow
def test_quickstart_on_what_python_brings(tmp_path) -> None:
    run("quickstart.py", "--out", "here", *TINY_FLAGS, folder=tmp_path)
    check_products(tmp_path / "here", ["all", "code", "prose"])


@pytest.mark.slow
def test_quickstart_on_pile_mini(tmp_path, pile_mini) -> None:
    source = str(pile_mini.resolve() / "train.jsonl.zst")
    run("quickstart.py", "--data", source, "--out", "here", *TINY_FLAGS, folder=tmp_path)
    check_products(tmp_path / "here", ["all", "Github", "Wikipedia (en)"])


@pytest.mark.parametrize("name", ["your_training_loop.py", "new_refinement.py"])
def test_the_others(name, tmp_path) -> None:
    printed = run(name, "--tiny", folder=tmp_path)
    assert "R-hat" in printed or "rhat" in printed
    assert "nan" not in printed.lower()
