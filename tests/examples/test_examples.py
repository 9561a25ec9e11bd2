"""The examples run, in a tiny mode, as a user would run them; their products are looked at."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
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

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    return imported("quickstart")


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
@pytest.mark.usefixtures("few_looks")
def test_quickstart_on_files_of_the_pile_and_again(quickstart, tmp_path, capsys) -> None:
    """In this process, because importing everything anew would take longer."""
    words = ["alpha beta gamma delta", "one two three four", "lorem ipsum dolor sit"]
    rows = [
        {"text": f"{words[i % 3]} {i} " * 40, "meta": {"pile_set_name": name}}
        for i in range(60)
        for name in ("Github", "Wikipedia (en)")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", str(tmp_path / "train.jsonl"), "--subsets", "Github", "Wikipedia (en)"]
    arguments = [*data, "--out", str(tmp_path / "here"), "--tiny", "--quiet"]
    quickstart.main(arguments)
    first = capsys.readouterr().out
    check_products(tmp_path / "here", ["Github", "Wikipedia (en)"])
    before = (tmp_path / "here" / "trajectory.npz").read_bytes()
    quickstart.main(arguments)
    again = capsys.readouterr().out
    # Nothing was computed twice.
    assert (tmp_path / "here" / "trajectory.npz").read_bytes() == before
    # Roles, then LLCs.
    assert len(lines_of_heads(first)) == 2 * 4
    assert lines_of_heads(first) == lines_of_heads(again)
    assert "Github - Wikipedi" in first
    assert "no induction circuit has formed" in first


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_quickstart_on_pile_mini(quickstart, tmp_path, pile_mini) -> None:
    source = str(pile_mini.resolve() / "train.jsonl.zst")
    quickstart.main(["--data", source, "--out", str(tmp_path / "here"), "--tiny", "--quiet"])
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
    kept = rllc.training.schedule(1500, "log")
    steps = quickstart.spread(kept, 8)
    assert set(steps) <= set(kept)
    assert len(steps) == 8
    assert steps[-1] == 1500
    ratios = np.array(steps[1:]) / np.array(steps[:-1])
    # Even in log step, as far as checkpoints that are a quarter apart allow.
    assert ratios.min() > 1.2
    assert ratios.max() < 1.7
    assert quickstart.spread(kept[:3], 8) == list(kept[:3])


# A vision transformer.


@pytest.fixture(scope="module")
def vision() -> ModuleType:
    return imported("vision")


@pytest.mark.slow
def test_vision(tmp_path) -> None:
    printed = run("vision.py", "--out", "here", "--tiny", "--quiet", folder=tmp_path)
    heads = pd.read_csv(tmp_path / "here" / "heads.csv", index_col="head")
    assert list(heads.index) == ["0:0", "0:1", "1:0", "1:1"]
    assert np.isfinite(heads[["llc", "distance", "delta loss"]]).all(axis=None)
    digits = pd.read_csv(tmp_path / "here" / "digits.csv")
    assert sorted(set(digits["digit"])) == list(range(10))
    assert sorted(set(digits["head"])) == list(heads.index)
    assert np.isfinite(digits[["llc", "error"]]).all(axis=None)
    trajectory = rllc.Trajectory.load(tmp_path / "here" / "trajectory.npz")
    assert trajectory.steps == (0, 4)
    assert (tmp_path / "here" / "vision.png").read_bytes().startswith(b"\x89PNG")
    assert "rho within layers" in printed


def test_digits_come_whole_and_test_images_are_others(vision) -> None:
    digits = vision.read(20, seed=0)
    again = vision.read(1437, seed=0)
    assert digits.pixels.shape == (160, 1, 8, 8)
    assert digits.test_pixels.shape == (360, 1, 8, 8)
    assert torch.equal(digits.labels[:20], digits.labels[140:])
    assert torch.equal(digits.labels[:20], again.labels[:20])
    # Copies differ by noise alone, of 1 each.
    difference = digits.pixels[:20] - digits.pixels[20:40]
    assert float(difference.std()) == pytest.approx(2**0.5, rel=0.1)


def test_as_many_images_of_each_digit(vision) -> None:
    digits = vision.read(200, seed=0)
    rows = vision.images_of_each(digits, 3, seed=0)
    assert len(set(rows.tolist())) == 30
    assert digits.labels[rows].tolist() == [digit for digit in range(10) for _ in range(3)]


class Looking(torch.nn.Module):
    """Two heads: each patch looks at its right neighbour, and all at the first patch."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})()

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, pixels, output_attentions=False):
        attention = torch.zeros(1, 2, 17, 17)
        patch = torch.arange(16)
        attention[0, 0, 1 + patch, 1 + (patch + 1) % 16] = 0.75
        attention[0, 1, 1 + patch, 1] = 0.75
        attention[..., 0] = 0.25
        return type("Output", (), {"attentions": [attention]})()


def test_where_heads_look(vision) -> None:
    model = Looking()
    table = vision.where_heads_look(model, torch.zeros(1, 1, 8, 8))
    # To the right; from each end of a line to the start of the next; from the last to the first.
    distance = (12 + 3 * 10**0.5 + 18**0.5) / 16
    assert table.loc["0:0", "distance"] == pytest.approx(distance, rel=1e-5)
    assert table.loc["0:0", "patches"] == pytest.approx(1)
    assert table.loc["0:0", "places"] == pytest.approx(16, rel=1e-5)
    assert table.loc["0:1", "places"] == pytest.approx(1)
    assert table["to class token"].tolist() == [0.25, 0.25]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("distance", "places", "kind"),
    [(1.0, 16.0, "neighbours"), (1.9, 2.0, "one place"), (1.9, 14.0, "spread")],
)
def test_kind_of(vision, distance, places, kind) -> None:
    assert vision.kind_of(pd.Series({"distance": distance, "places": places}), 16) == kind


def test_loss_without_a_head_is_that_of_its_output_at_zero(vision) -> None:
    torch.manual_seed(0)
    model = vision.ViTForImageClassification(vision.TINY.config).eval()
    digits = vision.read(10, seed=0)
    output = model.vit.layers[1].attention.o_proj
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    loss = vision.loss_without(model, "1:1", digits)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])

    def without(module, args):
        changed = args[0].clone()
        changed[..., 4:] = 0  # the second of two heads of 4
        return (changed,)

    assert loss != vision.how_well(model, digits)["loss"]
    output.register_forward_pre_hook(without)
    assert loss == pytest.approx(vision.how_well(model, digits)["loss"], abs=1e-6)


def test_an_annealed_copy_leaves_the_model_as_it_was(vision) -> None:
    torch.manual_seed(0)
    model = vision.ViTForImageClassification(vision.TINY.config)
    digits = vision.read(10, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    vision.advance(model, optimizer, digits, 1e-3, torch.Generator())
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    moments = {n: m.clone() for n, m in optimizer.state[next(model.parameters())].items()}
    copied = vision.annealed(model, optimizer, digits, 40, seed=0)
    assert vision.how_well(copied, digits)["loss"] < vision.how_well(model, digits)["loss"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
    for name, moment in optimizer.state[next(model.parameters())].items():
        assert torch.equal(moment, moments[name])


def test_rank_correlation_within_layers(vision) -> None:
    layers = np.repeat([0, 1], 5)
    values = np.array([1.0, 2, 3, 4, 5, 101, 102, 103, 104, 105])
    # Within layers they go together, though the layers' means do not.
    others = np.array([101.0, 102, 103, 104, 105, 1, 2, 3, 4, 5])
    rho, p = vision.rank_correlation(values, others, layers)
    assert rho == pytest.approx(1)
    assert p < 0.001
    # A difference of layers alone is none.
    stream = np.random.default_rng(0)
    rho, p = vision.rank_correlation(stream.normal(size=10) + 100 * layers, values, layers)
    assert abs(rho) < 0.9
    assert p > 0.01


# Eight layers.


@pytest.mark.slow
def test_deep(tmp_path) -> None:
    arguments = ["--out", "here", "--tiny", "--quiet"]
    first = run("deep.py", *arguments, folder=tmp_path)
    table = pd.read_csv(tmp_path / "here" / "heads.csv")
    assert table.groupby(["depth", "step"]).size().to_dict() == {
        (1, 2): 2,
        (1, 4): 2,
        (2, 2): 4,
        (2, 4): 4,
    }
    assert np.isfinite(table[["llc", "standard_error"]]).all(axis=None)
    assert (tmp_path / "here" / "deep.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is computed twice, and nothing changes.
    again = run("deep.py", *arguments, folder=tmp_path)
    assert first.splitlines()[:-1] == again.splitlines()[:-1]


def test_persistence_of_roles_and_of_the_order_within_layers() -> None:
    deep = imported("deep")
    heads = {"head": ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"], "layer": [0, 0, 0, 1, 1, 1]}
    before = pd.DataFrame(heads | {"step": 1, "role": list("aabbcc"), "llc": [1, 2, 3, 9, 8, 7]})
    after = pd.DataFrame(heads | {"step": 2, "role": list("aabbca"), "llc": [4, 5, 6, 1, 2, 3]})
    # Lines in another order change nothing.
    table = pd.concat([before, after.iloc[::-1]])
    # The first layer keeps its order, the second turns it round.
    assert deep.persistence(table, 1, 2) == (5, pytest.approx(0))
    assert deep.persistence(table, 1, 1) == (6, pytest.approx(1))


def test_heads_are_compared_within_their_layers() -> None:
    deep = imported("deep")
    heads = {"layer": [0, 0, 1, 1, 2], "role": list("ababa"), "depth": 3, "step": 9}
    table = pd.DataFrame(heads | {"llc": [1.0, np.e**2, 100.0, 100 * np.e**4, 5.0]})
    cells = deep.by_role_within_layers(table)[3, 9]
    # Differences of 2 and of 4; the last layer has one role.
    assert cells.to_dict() == {"a": "-1.50 ± 0.50 (2)", "b": "+1.50 ± 0.50 (2)"}


# The others.


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize("name", ["your_training_loop.py", "new_refinement.py"])
def test_the_others(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--tiny"])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert "R-hat" in printed or "rhat" in printed
    assert "nan" not in printed.lower()
