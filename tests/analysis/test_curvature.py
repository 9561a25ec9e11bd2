"""Traces, ranks and eigenvalues of models' losses against dense Hessians and Fisher matrices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import (
    CASES,
    CLASSES,
    HEAD,
    TOKENS,
    Call,
    class_logits,
    cross_entropy,
    dense_empirical_trace,
    dense_fisher_trace,
    dense_hessian,
    mlp,
    small_transformer,
    surface,
    token_logits,
    token_losses,
)
from scipy.stats import norm
from tiny import Quadratic, loss_of_quadratic, tiny_model
from torch import Tensor, nn

import rllc
from rllc.analysis.curvature import (
    Probing,
    fisher_trace,
    hessian_rank,
    hessian_trace,
    top_eigenvalues,
)
from rllc.seeds import generator

Z = 4.9  # a normal number is beyond this once in a million
FEW = Probing(num_probes=4)

hessian_trace = partial(hessian_trace, progress=False)
fisher_trace = partial(fisher_trace, progress=False)
hessian_rank = partial(hessian_rank, progress=False)
top_eigenvalues = partial(top_eigenvalues, progress=False)


@pytest.fixture(scope="module")
def hessians() -> dict[str, Tensor]:
    return {name: case.hessian() for name, case in CASES.items()}


def exact_error(H: Tensor, num_probes: int) -> float:
    """√(2 Σ_{i≠j} Hᵢⱼ² / probes)."""
    off_diagonal = H - torch.diag(H.diag())
    return float((2 * off_diagonal.square().sum() / num_probes).sqrt())


# Traces.


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("name", CASES)
def test_hessian_traces_are_those_of_dense_hessians(
    name: str, method: str, hessians: dict[str, Tensor]
) -> None:
    case = CASES[name]
    H = hessians[name]
    result = hessian_trace(
        case.make(),
        case.data,
        case.weights,
        loss=case.loss,
        method=method,
        probing=Probing(num_probes=150, batch_size=4),
    )
    reading = result[case.weights.name]
    error = exact_error(H, 150) if method == "hutchinson" else reading.standard_error
    rounding = 1e-5 * float(H.abs().sum())
    assert abs(reading.value - float(H.trace())) < Z * error + rounding
    assert reading.status == "ok"
    assert result.diagnostics["num_weights"] == len(H)
    if method == "hutchinson":
        assert reading.standard_error == pytest.approx(error, rel=0.5)


def test_an_estimate_at_weak_n_beta_is_the_trace() -> None:
    """λ̂ ≈ ½ nβ tr H/γ where nβh ≪ γ: the sentence in the docstring, on a quadratic."""
    curvatures = [1.0, 2.0, 3.0]
    n_beta, localization = 1e-3, 200
    model = Quadratic(torch.tensor(curvatures))
    result = hessian_trace(model, (torch.zeros(4, 3),), loss=loss_of_quadratic)
    trace = result["everything"].value
    assert trace == pytest.approx(6.0)
    llc = 0.5 * sum(n_beta * h / (n_beta * h + localization) for h in curvatures)
    assert llc == pytest.approx(0.5 * n_beta * trace / localization, rel=1e-4)


def test_linear_losses_have_no_curvature() -> None:
    rows = torch.randn(4, 3)
    result = hessian_trace(nn.Linear(3, 1), (rows,), loss=lambda m, x: m(x)[:, 0])
    assert result["everything"] == (0.0, 0.0, "ok")


# Fisher information.


def drawn_classes(
    module: nn.Module, batch: tuple[Tensor, Tensor], stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    inputs, _ = batch
    probabilities = module(inputs).softmax(-1)
    return inputs, torch.multinomial(probabilities, 1, generator=stream)[:, 0]


@pytest.mark.parametrize("name", ["head", "everything", "mlp"])
def test_fisher_traces_are_those_of_dense_matrices(name: str) -> None:
    case = CASES[name]
    model = case.make()
    logits = class_logits if name == "mlp" else token_logits
    result = fisher_trace(
        model,
        case.data,
        case.weights,
        loss=case.loss,
        labels=drawn_classes if name == "mlp" else "model",
        probing=Probing(num_probes=150, batch_size=4),
    )
    trace = dense_fisher_trace(model, case.weights, logits)
    reading = result[case.weights.name]
    assert abs(reading.value - trace) < Z * reading.standard_error
    assert reading.standard_error < 0.15 * trace
    assert result.quantity == "Fisher trace"


@pytest.mark.parametrize("name", ["head", "everything", "mlp"])
def test_empirical_fisher_traces_are_those_of_dense_matrices(name: str) -> None:
    case = CASES[name]
    model = case.make()
    result = fisher_trace(
        model,
        case.data,
        case.weights,
        loss=case.loss,
        labels="data",
        probing=Probing(num_probes=150, batch_size=4),
    )
    trace = dense_empirical_trace(model, case.weights, case.losses)
    reading = result[case.weights.name]
    assert abs(reading.value - trace) < Z * reading.standard_error
    assert reading.standard_error < 0.15 * trace
    assert result.quantity == "empirical Fisher trace"


def test_the_two_fisher_matrices_differ_where_the_model_is_wrong() -> None:
    """So that the tests above can tell them apart."""
    model = tiny_model()
    empirical = dense_empirical_trace(model, HEAD, token_losses)
    true = dense_fisher_trace(model, HEAD, token_logits)
    assert abs(empirical / true - 1) > 0.2


@pytest.mark.slow
def test_errors_of_fisher_traces_are_calibrated() -> None:
    model = mlp()
    trace = dense_fisher_trace(model, rllc.everything(), class_logits)
    deviations, differences = [], []
    for seed in range(60):
        probing = Probing(num_probes=4, batch_size=4, seed=seed)
        result = fisher_trace(
            model, CLASSES, loss=cross_entropy, labels=drawn_classes, probing=probing
        )
        reading = result["everything"]
        deviation = reading.value - trace
        deviations.append(deviation)
        differences.append(deviation**2 - reading.standard_error**2)
    for numbers in (np.array(deviations), np.array(differences)):
        assert abs(numbers.mean()) < Z * numbers.std() / 60**0.5


def test_where_the_logits_are_linear_fisher_and_hessian_agree() -> None:
    """The Gauss-Newton part is then all of the Hessian."""
    model = small_transformer()
    weights = rllc.parameters("unembed.*")
    trace = float(dense_hessian(model, weights).trace())
    assert dense_fisher_trace(model, weights, token_logits) == pytest.approx(trace, rel=1e-9)
    reading = fisher_trace(model, TOKENS, weights, probing=Probing(300))["unembed.*"]
    assert abs(reading.value - trace) < Z * reading.standard_error


@pytest.mark.parametrize("loss", [rllc.next_token, rllc.losses.distillation(tiny_model(1))])
def test_tokens_are_drawn_from_the_model_whatever_the_labels_of_its_loss(loss: Any) -> None:
    model = small_transformer()
    expected = fisher_trace(model, TOKENS, "0:1", probing=FEW)["0:1"]
    assert fisher_trace(model, TOKENS, "0:1", loss=loss, probing=FEW)["0:1"] == expected


# Rank.


@pytest.mark.parametrize(("threshold", "relative"), [(0.1, True), (0.5, False)])
def test_hessian_ranks_of_quadratics_are_exact(threshold: float, relative: bool) -> None:
    """Diagonal Hessians have no noise: what remains is the filter's own error."""
    h = torch.tensor([5.0, 3.0, 2.0, -4.0, -1.0, 0.0, 0.0, 0.0, 0.001, 0.1])
    result = hessian_rank(
        Quadratic(h),
        (torch.zeros(3, 10),),
        loss=loss_of_quadratic,
        threshold=threshold,
        relative=relative,
        probing=Probing(2),
    )
    assert result["everything"].value == pytest.approx(5, abs=0.06)
    assert result.diagnostics["threshold"] == pytest.approx(0.5, rel=1e-3)
    assert result.diagnostics["largest"] == pytest.approx(5, rel=1e-3)
    assert result.diagnostics["smallest"] == pytest.approx(-4, rel=1e-3)


@pytest.mark.parametrize("curvatures", [[2.0] * 3, [9.0, 1.0, 2.0], [-9.0, -1.0, -2.0], [0.0] * 3])
def test_hessian_rank_where_no_eigenvalue_is_near_the_threshold(curvatures: list[float]) -> None:
    h = torch.tensor(curvatures)
    rows = torch.zeros(3, 3)
    result = hessian_rank(Quadratic(h), (rows,), loss=loss_of_quadratic, probing=Probing(2))
    assert result["everything"].value == pytest.approx(int((h != 0).sum()), abs=1e-5)


@pytest.mark.slow
def test_hessian_rank_of_a_head_with_a_gap() -> None:
    """A head whose layer sees two tokens only has as many large eigenvalues as it should."""
    model = tiny_model()
    tokens = rllc.Tokens(torch.randint(2, (6, 4), generator=generator("two")))
    weights = rllc.parameters("blocks.1.attn.b_V") | rllc.parameters("blocks.1.attn.W_O", (1,))

    def losses(call: Call) -> Tensor:
        rows = tokens.rows.long()
        logits = call(rows).logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="none")

    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, weights, losses))
    sizes = eigenvalues.abs().sort(descending=True).values
    ratios = sizes[:-1] / sizes[1:]
    rank = int(ratios[: len(sizes) // 2].argmax()) + 1
    threshold = float((sizes[rank - 1] * sizes[rank]).sqrt())
    result = hessian_rank(
        model, tokens, {"w": weights}, threshold=threshold, relative=False, probing=Probing(60)
    )
    smallest = float(result.diagnostics["smallest"][0])
    largest = float(result.diagnostics["largest"][0])
    assert smallest == pytest.approx(float(eigenvalues[0]), rel=2e-3, abs=1e-4)
    assert largest == pytest.approx(float(eigenvalues[-1]), rel=2e-3, abs=1e-4)
    # The filter's own count of the eigenvalues; its interval is wider by 1 %.
    middle = (smallest + largest) / 2
    half = (largest - smallest) * 0.51

    def angle_of(t: np.ndarray | float) -> np.ndarray:
        return np.arccos(np.clip((t - middle) / half, -1, 1))

    s = 4.5 / float(result.diagnostics["degree"][0])
    angles = angle_of(eigenvalues.numpy())
    counts = norm.cdf((angle_of(threshold) - angles) / s)
    counts += norm.cdf((angles - angle_of(-threshold)) / s)
    reading = result["w"]
    assert abs(reading.value - counts.sum()) < Z * reading.standard_error + 0.2
    assert abs(reading.value - rank) < Z * reading.standard_error + 1.0


# Eigenvalues.


@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalues_are_those_of_dense_hessians(
    name: str, hessians: dict[str, Tensor]
) -> None:
    case = CASES[name]
    truth = torch.linalg.eigvalsh(hessians[name]).numpy()
    count = min(4, len(truth))
    result = top_eigenvalues(
        case.make(), case.data, case.weights, loss=case.loss, count=count, tolerance=1e-5
    )
    assert result.status == ("ok",)
    rounding = 1e-4 * np.abs(truth).max()
    (largest,), (smallest,) = result.largest, result.smallest
    np.testing.assert_allclose(largest, truth[::-1][:count], atol=rounding, rtol=0)
    np.testing.assert_allclose(smallest, truth[:count], atol=rounding, rtol=0)
    both = np.concatenate([largest, smallest[::-1]])
    np.testing.assert_array_equal(result[case.weights.name], both)


@pytest.mark.oracle
def test_against_scipy() -> None:
    from scipy.sparse.linalg import LinearOperator, eigsh

    model = tiny_model()
    measured = surface(model, TOKENS, HEAD)

    def product(v: np.ndarray) -> np.ndarray:
        return measured.product(torch.as_tensor(v.ravel())[None])[0].numpy()

    shape = (measured.dim, measured.dim)
    operator = LinearOperator(shape, matvec=product, dtype=np.float64)
    find = partial(eigsh, operator, 3, v0=np.ones(measured.dim), return_eigenvectors=False)
    result = top_eigenvalues(model, TOKENS, HEAD, count=3)
    np.testing.assert_allclose(result.largest[0], np.sort(find(which="LA"))[::-1], rtol=1e-4)
    np.testing.assert_allclose(result.smallest[0], np.sort(find(which="SA")), rtol=1e-4)


@pytest.mark.oracle
def test_against_hessian_eigenthings() -> None:
    theirs = pytest.importorskip("hessian_eigenthings")
    model = tiny_model(attn_implementation="eager")
    names = ("blocks.1.attn.W_Q", "blocks.1.attn.W_V")
    operator = theirs.HessianOperator(
        model,
        [TOKENS.rows.long()],
        lambda module, batch: module(batch, labels=batch).loss,
        param_filter=lambda name, _: name in names,
    )
    weights = rllc.parameters(names[0]) | rllc.parameters(names[1])
    measured = surface(model, TOKENS, weights)
    u = torch.randn(measured.dim, generator=generator("u"))
    product = measured.product(u[None].double())[0].float()
    torch.testing.assert_close(product, operator.matvec(u), atol=1e-6, rtol=1e-4)
    their_values = theirs.lanczos(operator, k=3, max_iter=40, seed=0).eigenvalues.tolist()
    values = top_eigenvalues(model, TOKENS, {"w": weights}, count=3)["w"]
    np.testing.assert_allclose(
        sorted(values, key=abs, reverse=True)[:3],
        sorted(their_values, key=abs, reverse=True),
        rtol=1e-3,
    )
    their_trace = theirs.hutchinson(operator, num_samples=300, seed=0)
    trace = hessian_trace(model, TOKENS, {"w": weights}, probing=Probing(300))["w"]
    error = math.hypot(trace.standard_error, their_trace.stderr)
    assert abs(trace.value - their_trace.estimate) < Z * error
