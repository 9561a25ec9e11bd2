"""The accuracy benchmark runs, and its truths are right for another reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, special

import rllc
from examples.benchmarks.accuracy import __main__ as benchmark
from examples.benchmarks.accuracy import extrapolation, laws, modules
from examples.benchmarks.accuracy.estimates import Problem, theirs
from examples.benchmarks.accuracy.rows import Row, verdict
from rllc import theory, threads


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--without-devinterp", "--parts", "ql", "--out", str(tmp_path)]
    with threads.using(torch.get_num_threads()):
        rows = benchmark.main(options)
    printed = capsys.readouterr().out
    assert {row.library for row in rows} == {"rllc"}
    assert all(np.isfinite(row.estimate) and row.error > 0 for row in rows)
    written = pd.read_csv(tmp_path / "accuracy.csv")
    assert list(written["problem"]) == [row.problem for row in rows]
    np.testing.assert_allclose(written["relative"], written["estimate"] / written["truth"] - 1)
    problems = {"quadratic, 10 weights", "linear network (8, 6, 7, 5), drLLC of layer 2"}
    assert problems <= set(written["problem"])
    assert set(written["sampler"]) == {"sgld", "rmsprop_sgld", "sghmc", "mala", "hmc"}
    assert (tmp_path / "accuracy.md").read_text().count("\n| ") == len(rows) + 1
    assert "law rows, |z| < 4:" in printed


@pytest.mark.oracle
def test_devinterp_runs_the_same_problem() -> None:
    """Its sgld on the 10-weight quadratic, at its own law: draws after 0 … 999 steps from w*."""
    pytest.importorskip("devinterp")
    num_steps = 999
    h = np.geomspace(0.3, 10, 10)
    problem = Problem(
        "quadratic", modules.Quadratic(h), torch.ones(1, 1), rllc.samplers.gaussian(1.0)
    )
    value, error, _ = theirs(problem, "sgld", 5e-4, 100.0, draws=num_steps + 1)
    law = theory.SGLDLaw(h, 5e-4, 1.0, 100.0)
    # The first draw is at w*, where the loss above that of w* is zero.
    expected = law.expected(num_steps) * num_steps / (num_steps + 1)
    assert abs(value - expected) < 5 * max(error, law.standard_error(num_steps, 4))


# The laws at finite nβ.


def test_crossing_law_against_a_closed_form() -> None:
    """x²y² in a box: Z = √(π/n)/2 ∫₀^√n erf(u)/u du."""
    for n in (3.0, 100.0, 1e4):
        top = math.sqrt(n)
        integral, _ = integrate.quad(lambda u: special.erf(u) / u, 0, top, limit=200, epsabs=1e-12)
        expected = 0.5 - 0.5 * special.erf(top) / integral  # −d log Z/d log n
        assert laws.crossing_law((1, 1), n) == pytest.approx(expected, rel=1e-6)


def test_crossing_law_with_two_weights_integrated_out() -> None:
    """x⁴y²z²: a midpoint rule over x and s = yz, whose density is −log s."""
    s = (np.arange(2000) + 0.5) / 2000
    log_x = np.linspace(-14, 0, 1401)[:-1] + 0.005
    x = np.exp(log_x)
    width = 0.01 * x

    def log_z(log_n: float) -> float:
        likelihood = np.exp(-np.exp(log_n) * x[:, None] ** 4 * s**2)
        over_s = (-np.log(s) * likelihood).mean(1)
        return math.log(float((width * over_s).sum()))

    at = math.log(10)
    slope = -(log_z(at + 0.01) - log_z(at - 0.01)) / 0.02
    assert laws.crossing_law((2, 1, 1), 10.0) == pytest.approx(slope, rel=3e-3)


@pytest.mark.parametrize(("M", "N", "H"), [(5, 5, 3), (2, 6, 3), (6, 2, 3), (2, 2, 5), (1, 4, 3)])
def test_reduced_rank_law_against_random_matrices(M: int, N: int, H: int) -> None:
    """Importance sampling from the prior on B instead of eigenvalues of A.

    E[½M Σ nβ s/(γ + nβ s)] in the eigenvalues s of BᵀB, with weights det^(−M/2).
    """
    n_beta, gamma = 20.0, 2.0
    stream = np.random.default_rng(M * 100 + N * 10 + H)
    B = stream.standard_normal((40_000, N, H)) / math.sqrt(gamma)
    s = np.maximum(np.linalg.eigvalsh(np.einsum("inh,ink->ihk", B, B)), 0.0)
    weight = np.prod(1 + n_beta * s / gamma, 1) ** (-M / 2)
    energy = M / 2 * (n_beta * s / (gamma + n_beta * s)).sum(1)
    value = (weight * energy).sum() / weight.sum()
    error = math.sqrt(((weight * (energy - value)) ** 2).sum()) / weight.sum()
    assert abs(laws.reduced_rank_law(M, N, H, n_beta, gamma) - value) < 5 * error
    assert error < 0.03 * value


def test_laws_tend_to_learning_coefficients() -> None:
    for M, N, H in [(2, 6, 3), (6, 2, 3), (2, 2, 5)]:
        law = laws.reduced_rank_law(M, N, H, 1e6, 1.0)
        assert law == pytest.approx(theory.reduced_rank_regression(M, N, H, 0).value, rel=1e-3)
    assert laws.crossing_law((1, 2), 1e9) == pytest.approx(0.25, rel=0.01)


# Extrapolation.

Case = tuple[theory.LearningCoefficient, Callable[[float], float]]


def exact_cases() -> list[Case]:
    """Learning coefficients, and exact λ̂ at each nβ."""

    def crossing(k: tuple[int, ...]) -> Case:
        return theory.normal_crossing(k), lambda n: laws.crossing_law(k, n)

    def reduced_rank(M: int, N: int, H: int) -> Case:
        truth = theory.reduced_rank_regression(M, N, H, 0)
        return truth, lambda n: laws.reduced_rank_law(M, N, H, n, 1.0)

    return [
        crossing((1, 1)),
        crossing((1, 2)),
        crossing((2, 1, 1)),
        reduced_rank(5, 5, 3),
        reduced_rank(2, 2, 5),
    ]


@pytest.mark.parametrize("chosen", [slice(2), pytest.param(slice(2, None), marks=pytest.mark.slow)])
def test_extrapolation_of_exact_values(chosen: slice) -> None:
    rungs = (1e1, 1e2, 1e3, 1e4)
    for truth, law in list(exact_cases())[chosen]:
        values = np.array([law(n) for n in rungs])
        value, error, form = extrapolation.extrapolate(
            rungs, values, 0.002 * values, truth.multiplicity, repeats=10
        )
        assert value == pytest.approx(truth.value, rel=0.03), form
        assert 0 < error < 0.03 * truth.value


def test_nothing_is_extrapolated_from_a_diverged_chain() -> None:
    values = [1.0, math.nan, 1.0, 1.0]
    value, _, form = extrapolation.extrapolate((1e1, 1e2, 1e3, 1e4), values, [0.1] * 4, 1)
    assert math.isnan(value)
    assert form == "a chain diverged"


# The modules.


def mean_loss(module: torch.nn.Module, rows: torch.Tensor) -> float:
    return float(module(rows).detach().mean())


def test_linear_network() -> None:
    network = modules.LinearNetwork(modules.random_layers((8, 6, 7, 5), (5, 4, 5)))
    x = modules.whitened(8)
    assert float(network(x).detach().max()) < 1e-12
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for W in network.W:
            W.add_(0.1 * torch.randn(W.shape, generator=stream))
        product = network.W[2] @ network.W[1] @ network.W[0]
    expected = 0.5 * float((product - network.truth).square().sum())
    assert mean_loss(network, x) == pytest.approx(expected, rel=1e-5)


def test_reduced_rank() -> None:
    A, B = modules.placed(5, 5, 3, 3, 1, 1)
    assert [int(torch.linalg.matrix_rank(W)) for W in (A, B, B @ A)] == [3, 1, 1]
    copies = modules.ReducedRank(A, B, 3)
    x = modules.whitened(5)
    assert float(copies(x).detach().abs().max()) == 0
    with torch.no_grad():
        copies.A.add_(0.1)
    loss_of_one = 0.5 * float((B @ (A + 0.1) - B @ A).square().sum())
    assert mean_loss(copies, x) == pytest.approx(3 * loss_of_one, rel=1e-5)


def test_one_head() -> None:
    """KL(uniform ‖ softmax) of small logits is half their variance over the vocabulary."""
    head = modules.OneHead(4, 3)
    tokens = torch.tensor([[0, 1], [2, 2], [3, 0]])
    assert float(head(tokens).detach().abs().max()) < 1e-6
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.W_V.copy_(0.02 * torch.randn(4, 3, generator=stream))
        head.W_O.copy_(torch.randn(3, 4, generator=stream))
        logits = (head.W_V @ head.W_O)[tokens[:, 0]]  # the first position sees itself alone
        loss = head(tokens)[:, 0]
    variance = logits.var(-1, unbiased=False)
    torch.testing.assert_close(loss, variance / 2, rtol=0.05, atol=1e-6)


def test_verdict_says_what_does_not_hold() -> None:
    rows = [
        Row("a", "sgld", "rllc", "", "law", 1.0, 1.01, 0.01, 1.0),
        Row("b", "hmc", "rllc", "", "law", 1.0, 1.5, 0.02, 1.0),
        Row("c", "hmc", "rllc", "", "λ", 1.0, 1.2, 0.02, 1.0),
        Row("c", "sgld", "devinterp", "", "λ", 1.0, 1.1, 0.02, 1.0),
    ]
    assert verdict(rows).splitlines() == [
        "law rows, |z| < 4: 1 of 2; not b, hmc",
        "law rows, standard error ≤ 1%: 1 of 2; not b, hmc",
        "λ rows, relative error ≤ 5%: 0 of 1; not c, hmc",
        "λ rows, nearer to λ than devinterp: 0 of 1; not c, hmc",
    ]
