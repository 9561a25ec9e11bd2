"""The parts of ``examples/influence.py``, against closed forms and slow loops."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "influence.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("influence_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["influence_example"] = module
    spec.loader.exec_module(module)
    return module


def test_a_perfect_attribution_scores_one_and_its_opposite_minus_one(example) -> None:
    stream = np.random.default_rng(0)
    halves = (stream.random((30, 12)) < 0.5).astype(float)
    attribution = stream.standard_normal((12, 5))
    losses = np.exp(halves @ attribution)
    assert example.score(attribution, halves, losses) == pytest.approx(1)
    assert example.score(-attribution, halves, losses) == pytest.approx(-1)
    other = example.score(stream.standard_normal((12, 5)), halves, losses)
    assert abs(other) < 0.7


def test_models_that_are_trained_together_are_those_trained_alone(example) -> None:
    rows, _ = example.digits(example.TINY, 0)
    shares = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    shares = shares / shares.sum(1, keepdim=True)
    together = example.train(example.classifier(0), rows, shares, 5)
    alone = example.train(example.classifier(0), rows, shares[1:2], 5)
    torch.testing.assert_close(together["0.weight"][1:2], alone["0.weight"])
    module = example.classifier(0)
    module.load_state_dict({name: p[0] for name, p in alone.items()})
    losses = example.cross_entropy(module, (rows.x, rows.y))
    torch.testing.assert_close(example.losses_of(alone, rows)[0], losses.detach())


def test_the_damped_influence_function_is_a_newton_step(example) -> None:
    """At large damping λ it is the similarity of gradients over λ."""
    from dataclasses import replace

    rows, queries = example.digits(example.TINY, 0)
    model = example.classifier(0)
    heavy = replace(example.TINY, localization=1e6, n_beta=1.0)
    damped = example.damped(model, rows, queries, heavy)
    alike = example.similarity(model, rows, queries)
    np.testing.assert_allclose(1e6 * damped, alike, rtol=1e-3, atol=1e-5)
    gradient = example.gradients_of_loss(model, rows)[3]
    model.zero_grad()
    example.cross_entropy(model, (rows.x[3:4], rows.y[3:4])).sum().backward()
    by_hand = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_it_runs(example, capsys) -> None:
    example.main(["--tiny"])
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line[:4] for line in lines] == ["Baye", "damp", "simi", "TRAK", "chan"]
    assert "nan" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_the_structure_of_a_tiny_quickstart(tmp_path, monkeypatch, capsys) -> None:
    """In this process, because importing everything anew would take longer."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    here = str(tmp_path / "here")
    for name, folder in (("quickstart", "--out"), ("structure", "--run")):
        importlib.import_module(name).main([folder, here, "--tiny", "--quiet"])
    printed = capsys.readouterr().out
    assert "Components of" in printed
    assert "layer 1" in printed
    for name in ("components.png", "susceptibilities.png", "structure.csv", "tokens.html"):
        assert (tmp_path / "here" / name).stat().st_size > 500
