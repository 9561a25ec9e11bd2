"""The accuracy benchmark runs, and the truths it holds estimates against are right for another reason."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, special

import rllc
from rllc import theory

PATH = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", PATH)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_it_runs(accuracy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    table = accuracy.main(
        ["--tiny", "--without-devinterp", "--parts", "ql", "--out", str(tmp_path)]
    )
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(
        row.library == "rllc" and np.isfinite(row.estimate) and row.error > 0 for row in table
    )
    written = pd.read_csv(tmp_path / "accuracy.csv")
    assert list(written["problem"]) == [row.problem for row in table]
    np.testing.assert_allclose(written["relative"], written["estimate"] / written["truth"] - 1)
    assert {"quadratic, 10 weights", "linear network (8, 6, 7, 5), drLLC of layer 2"} <= set(
        written["problem"]
    )
    assert set(written["sampler"]) == {"sgld", "rmsprop_sgld", "sghmc", "mala", "hmc"}
    assert (tmp_path / "accuracy.md").read_text().count("\n| ") == len(table) + 1
    assert "law rows, |z| < 4:" in printed


@pytest.mark.oracle
def test_devinterp_runs_the_same_problem(accuracy: ModuleType) -> None:
    """Its sgld on the 10-weight quadratic, at devinterp's own law: the draws after 0 … 1999 steps from w*."""
    pytest.importorskip("devinterp")
    h = np.geomspace(0.3, 10, 10)
    problem = accuracy.Problem(
        "quadratic", accuracy.Quadratic(h), torch.ones(1, 1), rllc.gaussian(1.0)
    )
    value, error, _ = accuracy.theirs(problem, "sgld", 5e-4, 100.0, draws=2000)
    law = theory.SGLDLaw(h, 5e-4, 1.0, 100.0)
    assert abs(value - law.expected(1999) * 1999 / 2000) < 5 * max(
        error, law.standard_error(1999, 4)
    )


def test_crossing_law_against_closed_forms(accuracy: ModuleType) -> None:
    """x²y² in a box, Z = √(π/n)/2 ∫₀^√n erf(u)/u du; x⁴y²z² by integrating y and z out first."""
    for n in (3.0, 100.0, 1e4):
        top = math.sqrt(n)
        whole = integrate.quad(lambda u: special.erf(u) / u, 0, top, limit=200, epsabs=1e-12)[0]
        # −d log Z/d log n = ½ − ½ erf(√n)/whole
        assert accuracy.crossing_law((1, 1), n) == pytest.approx(
            0.5 - 0.5 * special.erf(top) / whole, rel=1e-6
        )

    def log_z(log_n: float) -> float:
        """Σ over a fine grid of s = yz of its density −log s, and of x: a midpoint rule."""
        s = (np.arange(2000) + 0.5) / 2000
        u = np.linspace(-14, 0, 1401)[:-1] + 0.005
        x, density = np.exp(u), np.exp(u) * 0.01
        inner = (-np.log(s) * np.exp(-np.exp(log_n) * x[:, None] ** 4 * s**2)).mean(1)
        return math.log(float((density * inner).sum()))

    slope = -(log_z(math.log(10) + 0.01) - log_z(math.log(10) - 0.01)) / 0.02
    assert accuracy.crossing_law((2, 1, 1), 10.0) == pytest.approx(slope, rel=3e-3)


@pytest.mark.parametrize(("M", "N", "H"), [(5, 5, 3), (2, 6, 3), (6, 2, 3), (2, 2, 5), (1, 4, 3)])
def test_reduced_rank_law_against_random_matrices(
    accuracy: ModuleType, M: int, N: int, H: int
) -> None:
    """Importance sampling from the prior on B instead of eigenvalues of A: E[½M Σ nβ s/(γ + nβ s)], weights det^(−M/2)."""
    n_beta, gamma = 20.0, 2.0
    B = np.random.default_rng(M * 100 + N * 10 + H).standard_normal((40_000, N, H)) / math.sqrt(
        gamma
    )
    s = np.maximum(np.linalg.eigvalsh(np.einsum("inh,ink->ihk", B, B)), 0.0)
    weight = np.prod(1 + n_beta * s / gamma, 1) ** (-M / 2)
    each = M / 2 * (n_beta * s / (gamma + n_beta * s)).sum(1)
    value = (weight * each).sum() / weight.sum()
    error = math.sqrt(((weight * (each - value)) ** 2).sum()) / weight.sum()
    assert abs(accuracy.reduced_rank_law(M, N, H, n_beta, gamma) - value) < 5 * error
    assert error < 0.03 * value


def test_laws_tend_to_learning_coefficients(accuracy: ModuleType) -> None:
    for shape in [(2, 6, 3), (6, 2, 3), (2, 2, 5)]:
        law = accuracy.reduced_rank_law(*shape, 1e6, 1.0)
        assert law == pytest.approx(theory.reduced_rank_regression(*shape, 0).value, rel=1e-3)
    assert accuracy.crossing_law((1, 2), 1e9) == pytest.approx(0.25, rel=0.01)


def test_extrapolation_of_exact_values(accuracy: ModuleType) -> None:
    rungs = (1e1, 1e2, 1e3, 1e4)
    cases = [
        (theory.normal_crossing(k), lambda n, k=k: accuracy.crossing_law(k, n))
        for k in [(1, 1), (1, 2), (2, 1, 1)]
    ]
    for shape in [(5, 5, 3), (2, 2, 5)]:
        law = theory.reduced_rank_regression(*shape, 0)
        cases.append((law, lambda n, shape=shape: accuracy.reduced_rank_law(*shape, n, 1.0)))
    for truth, law in cases:
        values = np.array([law(n) for n in rungs])
        found, error, form = accuracy.extrapolate(
            rungs, values, 0.002 * values, truth.multiplicity, repeats=10
        )
        assert found == pytest.approx(truth.value, rel=0.03), form
        assert 0 < error < 0.03 * truth.value
    assert (
        accuracy.extrapolate(rungs, [1.0, math.nan, 1.0, 1.0], [0.1] * 4, 1)[2]
        == "a chain diverged"
    )


def test_modules_are_at_their_minimum_and_have_the_stated_losses(accuracy: ModuleType) -> None:
    stream = torch.Generator().manual_seed(0)
    network = accuracy.LinearNetwork(accuracy.random_layers((8, 6, 7, 5), (5, 4, 5)))
    x = accuracy.whitened(8)
    assert float(network(x).detach().max()) < 1e-12
    with torch.no_grad():
        for W in network.W:
            W.add_(0.1 * torch.randn(W.shape, generator=stream))
        product = network.W[2] @ network.W[1] @ network.W[0]
    assert float(network(x).detach().mean()) == pytest.approx(
        0.5 * float((product - network.truth).square().sum()), rel=1e-5
    )
    A, B = accuracy.placed(5, 5, 3, 3, 1, 1)
    assert [int(torch.linalg.matrix_rank(W)) for W in (A, B, B @ A)] == [3, 1, 1]
    copies = accuracy.ReducedRank(A, B, 3)
    assert float(copies(accuracy.whitened(5)).detach().abs().max()) == 0
    with torch.no_grad():
        copies.A.add_(0.1)
    one = 0.5 * (B @ (A + 0.1) - B @ A).square().sum()
    assert float(copies(accuracy.whitened(5)).detach().mean()) == pytest.approx(
        3 * float(one), rel=1e-5
    )
    head, tokens = accuracy.OneHead(4, 3), torch.tensor([[0, 1], [2, 2], [3, 0]])
    assert float(head(tokens).detach().abs().max()) < 1e-6
    with (
        torch.no_grad()
    ):  # KL(uniform ‖ softmax) of small logits z: half the variance of z over the vocabulary
        head.W_V.copy_(0.02 * torch.randn(4, 3, generator=stream))
        head.W_O.copy_(torch.randn(3, 4, generator=stream))
        first = (head.W_V @ head.W_O)[tokens[:, 0]]  # the first position sees itself alone
        torch.testing.assert_close(
            head(tokens)[:, 0], first.var(-1, unbiased=False) / 2, rtol=0.05, atol=1e-6
        )


def test_verdict_says_what_does_not_hold(accuracy: ModuleType) -> None:
    good = accuracy.Row("a", "sgld", "rllc", "", "law", 1.0, 1.01, 0.01, 1.0)
    bad = accuracy.Row("b", "hmc", "rllc", "", "law", 1.0, 1.5, 0.02, 1.0)
    far = accuracy.Row("c", "hmc", "rllc", "", "λ", 1.0, 1.2, 0.02, 1.0)
    near = accuracy.Row("c", "sgld", "devinterp", "", "λ", 1.0, 1.1, 0.02, 1.0)
    words = accuracy.verdict([good, bad, far, near]).splitlines()
    assert words == [
        "law rows, |z| < 4: 1 of 2; not b, hmc",
        "law rows, standard error ≤ 1%: 1 of 2; not b, hmc",
        "λ rows, relative error ≤ 5%: 0 of 1; not c, hmc",
        "λ rows, nearer to λ than devinterp: 0 of 1; not c, hmc",
    ]
