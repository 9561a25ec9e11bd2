"""Curvature: products, traces, ranks and eigenvalues against dense Hessians and Fisher matrices of at most 1,000 weights."""

from __future__ import annotations

import math
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from tiny import Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import rllc
from rllc.analysis import curvature, spectrum
from rllc.analysis.curvature import (
    Curvature,
    Eigenvalues,
    Probing,
    fisher_trace,
    hessian_rank,
    hessian_trace,
    plot_curvature,
    top_eigenvalues,
)
from rllc.analysis.spectrum import filtered_rank, hutchinson, hutchpp, lanczos
from rllc.errors import InputError
from rllc.seeds import generator
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

Z = 4.9  # a normal number is beyond this once in a million
TOKENS = tiny_tokens(6)
SMALL = {
    "n_layers": 1,
    "d_model": 8,
    "n_heads": 2,
    "d_head": 3,
    "n_ctx": 8,
}  # 530 weights with 11 tokens
CLASSES = (
    torch.randn(10, 4, generator=generator("x")),
    torch.randint(3, (10,), generator=generator("y")),
)
quiet = {"progress": False}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def mlp() -> nn.Module:
    """67 weights, a classifier of 3 classes."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    stream = generator("mlp")
    for p in model.parameters():
        p.data = 0.8 * torch.randn(p.shape, generator=stream)
    return model


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def drawn_classes(
    module: nn.Module, batch: tuple[Tensor, Tensor], stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    return batch[0], torch.multinomial(module(batch[0]).softmax(-1), 1, generator=stream)[:, 0]


def as_function(model: nn.Module, weights: rllc.Weights, forward):
    """``forward`` as a function of the selected numbers in float64, and these numbers."""
    double = {name: p.detach().double() for name, p in model.named_parameters()}
    masks = weights.masks(model)
    where = {name: mask.flatten().nonzero()[:, 0] for name, mask in sorted(masks.items())}
    here = torch.cat([double[name].flatten()[index] for name, index in where.items()])

    def function(v: Tensor) -> Tensor:
        moved, start = dict(double), 0
        for name, index in where.items():
            flat = double[name].flatten().index_copy(0, index, v[start : start + len(index)])
            moved[name] = flat.view(double[name].shape)
            start += len(index)
        with sdpa_kernel(SDPBackend.MATH):
            return forward(lambda *args: functional_call(model, moved, args))

    return function, here


def token_losses(call) -> Tensor:
    rows = TOKENS.rows.long()
    logits = call(rows).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


def class_losses(call) -> Tensor:
    x, y = CLASSES
    return F.cross_entropy(call(x.double()), y, reduction="none")


def dense(model: nn.Module, weights: rllc.Weights, losses=token_losses) -> Tensor:
    function, here = as_function(model, weights, lambda call: losses(call).mean())
    return hessian(function, here, vectorize=True)


def surface(model, data, weights, loss=None, **probing):
    (found,) = curvature._surfaces(model, data, weights, loss, Probing(**probing), "testing")
    return found


HEAD = rllc.head("1:2")
CASES = {
    "head": (lambda: tiny_model(), HEAD, TOKENS, None, token_losses),
    "head of layer 0": (lambda: tiny_model(), rllc.head("0:1"), TOKENS, None, token_losses),
    "two heads": (lambda: tiny_model(), rllc.head("0:1") | HEAD, TOKENS, None, token_losses),
    "norms and positions": (
        lambda: tiny_model(),
        rllc.parameters("*.ln1.*") | rllc.parameters("pos_embed.W_pos"),
        TOKENS,
        None,
        token_losses,
    ),
    "everything": (lambda: tiny_model(**SMALL), rllc.everything(), TOKENS, None, token_losses),
    "mlp": (mlp, rllc.everything(), CLASSES, cross_entropy, class_losses),
    "part of an mlp": (
        mlp,
        rllc.parameters("0.weight", (slice(1, 5), 2)),
        CLASSES,
        cross_entropy,
        class_losses,
    ),
}


@pytest.fixture(scope="module")
def hessians() -> dict[str, Tensor]:
    """Dense Hessians in float64; not by torch.func.hessian, which is wrong for scales of LayerNorms (pytorch 196700)."""
    return {
        name: dense(make(), weights, losses)
        for name, (make, weights, _, _, losses) in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_dense_hessians_are_those_of_differences_of_gradients(
    name: str, hessians: dict[str, Tensor]
) -> None:
    make, weights, _, _, losses = CASES[name]
    function, here = as_function(make(), weights, lambda call: losses(call).mean())
    for u in torch.randn(2, len(here), generator=generator("differences")).double():
        slopes = [grad(function)(here + sign * 1e-5 * u) for sign in (1, -1)]
        torch.testing.assert_close(
            hessians[name] @ u, (slopes[0] - slopes[1]) / 2e-5, atol=1e-7, rtol=1e-6
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("together", [True, False])
def test_products_are_the_dense_hessian(
    name: str, together: bool, hessians: dict[str, Tensor]
) -> None:
    """Batches of 4 do not divide the rows."""
    make, weights, data, loss, _ = CASES[name]
    H = hessians[name]
    assert len(H) == weights.count(make())
    found = surface(make(), data, weights, loss, batch_size=4)
    found.together = together
    u = torch.cat(
        [torch.eye(len(H))[:20], torch.randn(3, len(H), generator=generator("u"))]
    ).double()
    torch.testing.assert_close(
        found.product(u), u @ H, atol=2e-6 * float(H.abs().max()) * 10, rtol=1e-4
    )


def test_products_of_float64_models_are_in_float64() -> None:
    model = mlp().double()
    data = tuple(t.double() if t.is_floating_point() else t for t in CLASSES)
    H = dense(model, rllc.everything(), class_losses)
    product = surface(model, data, None, cross_entropy).product(torch.eye(67).double())
    torch.testing.assert_close(product, H, atol=1e-6, rtol=0)  # w* itself is rounded to float32
    assert float((product - product.T).abs().max()) < 1e-14


def test_attention_that_only_sdpa_has() -> None:
    """A transformer that calls the fused kernel gives what its own eager attention gives."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=11, max_position_embeddings=8, **sizes)
    products = []
    for implementation in ("sdpa", "eager"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM._from_config(config, attn_implementation=implementation)
        weights = rllc.parameters("*.q_proj.weight") | rllc.parameters("*.v_proj.weight")
        products.append(surface(model, TOKENS, weights).product(torch.eye(128).double()))
    assert float(products[1].abs().max()) > 1e-5
    torch.testing.assert_close(products[0], products[1], atol=1e-7, rtol=1e-4)


# Traces.


def decaying(dim: int = 40) -> Tensor:
    """Symmetric, eigenvalues of both signs, falling as 1/k²."""
    Q = torch.linalg.qr(torch.randn(dim, dim, generator=generator("Q"), dtype=torch.float64)).Q
    k = torch.arange(1.0, dim + 1, dtype=torch.float64)
    return Q @ torch.diag(5 * (-1) ** (k // 3) / k**2) @ Q.T


def exact_error(H: Tensor, num_probes: int) -> float:
    """√(2 Σ_{i≠j} Hᵢⱼ² / probes)."""
    off = H - torch.diag(H.diag())
    return float((2 * off.square().sum() / num_probes).sqrt())


@pytest.mark.parametrize("estimator", [hutchinson, hutchpp])
def test_traces_are_unbiased_and_their_errors_calibrated(estimator) -> None:
    A = decaying()
    readings = [estimator(lambda v: v @ A, 40, 12, generator("repeat", i)) for i in range(600)]
    away = np.array([r.value for r in readings]) - float(A.trace())
    errors = np.array([r.standard_error for r in readings])
    assert abs(away.mean()) < Z * away.std() / 600**0.5
    difference = away**2 - errors**2  # 0 on average when errors are right
    assert abs(difference.mean()) < Z * difference.std() / 600**0.5
    assert difference.std() / 600**0.5 < 0.1 * (errors**2).mean()


def test_the_variance_of_hutchinson_is_that_of_the_formula() -> None:
    A = decaying()
    reading = hutchinson(lambda v: v @ A, 40, 4000, generator("many"))
    assert reading.standard_error == pytest.approx(exact_error(A, 4000), rel=0.1)
    assert abs(reading.value - float(A.trace())) < Z * exact_error(A, 4000)


def test_hutchpp_is_exact_up_to_its_rank_and_better_on_falling_spectra() -> None:
    A = decaying()
    values, vectors = torch.linalg.eigh(A)
    keep = values.abs().argsort()[-4:]
    low = vectors[:, keep] @ torch.diag(values[keep]) @ vectors[:, keep].T
    reading = hutchpp(lambda v: v @ low, 40, 12, generator("low"))
    assert reading.value == pytest.approx(float(low.trace()), abs=1e-9)
    assert reading.standard_error < 1e-9
    plain, better = (
        np.mean([f(lambda v: v @ A, 40, 24, generator(i)).standard_error ** 2 for i in range(50)])
        for f in (hutchinson, hutchpp)
    )
    assert better < plain / 10
    small = hutchpp(
        lambda v: v @ A[:3, :3], 3, 30, generator("small")
    )  # a sketch wider than the matrix
    assert small.value == pytest.approx(float(A[:3, :3].trace()), abs=1e-12)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("name", CASES)
def test_hessian_traces_are_those_of_dense_hessians(
    name: str, method: str, hessians: dict[str, Tensor]
) -> None:
    make, weights, data, loss, _ = CASES[name]
    H = hessians[name]
    found = hessian_trace(
        make(),
        data,
        weights,
        loss=loss,
        method=method,
        probing=Probing(num_probes=150, batch_size=4),
        **quiet,
    )
    reading = found[weights.name]
    rounding = 1e-5 * float(H.abs().sum())
    allowed = exact_error(H, 150) if method == "hutchinson" else reading.standard_error
    assert abs(reading.value - float(H.trace())) < Z * allowed + rounding
    assert reading.status == "ok"
    assert found.diagnostics["num_weights"] == len(H)
    if method == "hutchinson":
        assert reading.standard_error == pytest.approx(exact_error(H, 150), rel=0.5)


def test_an_estimate_at_weak_n_beta_is_the_trace() -> None:
    """λ̂ ≈ ½ nβ tr H/γ where nβh ≪ γ: the sentence in the docstring, on a quadratic."""
    h = torch.tensor([1.0, 2.0, 3.0])
    model, data = Quadratic(h), (torch.zeros(4, 3),)
    trace = hessian_trace(model, data, loss=loss_of_quadratic, **quiet)["everything"].value
    assert trace == pytest.approx(6.0)
    llc = 0.5 * sum(1e-3 * c / (1e-3 * c + 200) for c in h.tolist())
    assert llc == pytest.approx(0.5 * 1e-3 * trace / 200, rel=1e-4)


# Fisher information.


def exact_fisher(model: nn.Module, weights: rllc.Weights, logits) -> float:
    """tr F = mean over predictions of tr Jᵀ(diag p − ppᵀ)J, J the derivative of the logits."""
    function, here = as_function(model, weights, lambda call: logits(call).flatten(0, -2))
    J, p = jacrev(function)(here), function(here).softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return float(torch.einsum("tvi,tvw,twi->t", J, inner, J).mean())


def exact_empirical(model: nn.Module, weights: rllc.Weights, losses) -> float:
    function, here = as_function(model, weights, losses)
    return float(jacrev(function)(here).square().sum(1).mean())


def token_logits(call) -> Tensor:
    return call(TOKENS.rows.long()).logits[:, :-1]


@pytest.mark.parametrize("name", ["head", "everything", "mlp"])
@pytest.mark.parametrize("labels", ["drawn", "data"])
def test_fisher_traces_are_those_of_dense_matrices(name: str, labels: str) -> None:
    make, weights, data, loss, losses = CASES[name]
    model = make()
    if labels == "data":
        truth = exact_empirical(model, weights, losses)
    else:
        truth = exact_fisher(
            model,
            weights,
            (lambda call: call(CLASSES[0].double())) if name == "mlp" else token_logits,
        )
    given = "data" if labels == "data" else drawn_classes if name == "mlp" else "model"
    found = fisher_trace(
        model,
        data,
        weights,
        loss=loss,
        labels=given,
        probing=Probing(num_probes=150, batch_size=4),
        **quiet,
    )
    reading = found[weights.name]
    assert abs(reading.value - truth) < Z * reading.standard_error
    assert reading.standard_error < 0.15 * truth
    assert found.quantity == ("empirical Fisher trace" if labels == "data" else "Fisher trace")


def test_the_two_fisher_matrices_differ_where_the_model_is_wrong() -> None:
    """So that the tests above can tell them apart."""
    model = tiny_model()
    empirical, true = (
        exact_empirical(model, HEAD, token_losses),
        exact_fisher(model, HEAD, token_logits),
    )
    assert abs(empirical / true - 1) > 0.2


def test_errors_of_fisher_traces_are_calibrated() -> None:
    model = mlp()
    truth = exact_fisher(model, rllc.everything(), lambda call: call(CLASSES[0].double()))
    readings = [
        fisher_trace(
            model,
            CLASSES,
            loss=cross_entropy,
            labels=drawn_classes,
            probing=Probing(num_probes=4, batch_size=4, seed=seed),
            **quiet,
        )["everything"]
        for seed in range(60)
    ]
    away = np.array([r.value - truth for r in readings])
    difference = away**2 - np.array([r.standard_error**2 for r in readings])
    assert abs(away.mean()) < Z * away.std() / 60**0.5
    assert abs(difference.mean()) < Z * difference.std() / 60**0.5


def test_where_the_logits_are_linear_fisher_and_hessian_agree() -> None:
    """The Gauss-Newton part is then all of the Hessian; tokens are drawn, whatever the data's labels are."""
    model = tiny_model(**SMALL)
    weights = rllc.parameters("unembed.*")
    H = dense(model, weights)
    assert exact_fisher(model, weights, token_logits) == pytest.approx(float(H.trace()), rel=1e-9)
    probing = Probing(num_probes=300)
    one, two, three = (
        fisher_trace(model, TOKENS, weights, loss=loss, probing=probing, **quiet)["unembed.*"]
        for loss in (None, rllc.next_token, rllc.distillation(tiny_model(1)))
    )
    assert abs(one.value - float(H.trace())) < Z * one.standard_error
    assert one == two == three


# Rank.


def test_the_filter_is_a_step_rounded_by_a_normal_density() -> None:
    degree, above, below = 120, 1.0, 2.5
    theta = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    found = torch.cos(theta[:, None] * torch.arange(degree + 1)) @ spectrum._step(
        above, below, degree
    )
    s = 4.5 / degree
    expected = norm.cdf((above - theta) / s) + norm.cdf((theta - below) / s)
    assert np.abs(found.numpy() - expected).max() < 3e-6


def test_moments_are_chebyshev_polynomials() -> None:
    A = decaying() / 6
    v = torch.randn(3, 40, generator=generator("v"), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    for degree in (1, 2, 7, 8):
        calls: list[int] = []

        def product(u: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return u @ A

        T = torch.cos(torch.acos(values)[:, None] * torch.arange(degree + 1))
        torch.testing.assert_close(spectrum._moments(product, v, degree), (v @ vectors) ** 2 @ T)
        assert len(calls) == math.ceil(degree / 2)


def gapped(dim: int = 120) -> tuple[Tensor, int]:
    """Eigenvalues in 0.5 … 1 and −0.8 … −0.6, all others within ±0.01."""
    stream = generator("gapped")
    values = 0.02 * torch.rand(dim, generator=stream, dtype=torch.float64) - 0.01
    values[:17], values[17:20] = torch.linspace(0.5, 1, 17), torch.linspace(-0.8, -0.6, 3)
    Q = torch.linalg.qr(torch.randn(dim, dim, generator=stream, dtype=torch.float64)).Q
    return Q @ torch.diag(values) @ Q.T, 20


@pytest.mark.parametrize("degree", [None, 200])
def test_rank_of_a_matrix_with_a_gap(degree: int | None) -> None:
    A, rank = gapped()
    reading, told = filtered_rank(
        lambda v: v @ A, 120, 0.2, (-0.85, 1.05), degree, 200, generator("rank")
    )
    P = torch.linalg.eigh(A)
    projection = (
        P.eigenvectors @ torch.diag((P.eigenvalues.abs() > 0.2).double()) @ P.eigenvectors.T
    )
    assert int(projection.trace().round()) == rank
    assert abs(reading.value - rank) < Z * exact_error(projection, 200) + 0.05
    assert reading.standard_error == pytest.approx(exact_error(projection, 200), rel=0.3)
    assert reading.status == "ok"
    assert told["degree"] == degree or degree is None
    every = spectrum._moments(
        lambda v: (v @ A - 0.1 * v) / 0.95, torch.eye(120).double(), int(told["degree"])
    )
    edges = [math.acos((t - 0.1) / 0.95) for t in (0.2, -0.2)]
    assert float((every @ spectrum._step(*edges, int(told["degree"]))).sum()) == pytest.approx(
        rank, abs=0.05
    )


def test_rank_says_when_the_degree_is_too_low() -> None:
    A, _ = gapped()
    product, interval = (lambda v: v @ A), (-0.85, 1.05)
    reading, _ = filtered_rank(product, 120, 0.2, interval, 20, 50, generator("rank"))
    assert reading.status.startswith("degree 20 is too low: each eigenvalue of 0 counts 0.")
    degree = int(reading.status.split("degree=")[1])
    reading, told = filtered_rank(product, 120, 0.2, interval, degree, 50, generator("rank"))
    assert reading.status == "ok"
    assert told["resolution"] < 0.2
    assert filtered_rank(product, 120, 1e-9, interval, None, 2, generator(0))[1]["degree"] == 1000


def test_rank_is_not_a_number_when_an_eigenvalue_was_overlooked() -> None:
    A, _ = gapped()
    reading, _ = filtered_rank(lambda v: v @ A, 120, 0.2, (-0.85, 0.9), 100, 4, generator("rank"))
    assert math.isnan(reading.value)
    assert "an eigenvalue lies outside (-0.85, 0.9)" in reading.status


def test_rank_of_nothing() -> None:
    assert filtered_rank(lambda v: 0 * v, 5, 0.0, (0.0, 0.0), None, 2, generator(0))[0] == (
        0.0,
        0.0,
        "ok",
    )


@pytest.mark.parametrize(("threshold", "relative"), [(0.1, True), (0.5, False)])
def test_hessian_ranks_of_quadratics_are_exact(threshold: float, relative: bool) -> None:
    """Diagonal Hessians have no noise: what remains is the filter's own error."""
    h = torch.tensor([5.0, 3.0, 2.0, -4.0, -1.0, 0.0, 0.0, 0.0, 0.001, 0.1])
    data = (torch.zeros(3, 10),)
    found = hessian_rank(
        Quadratic(h),
        data,
        loss=loss_of_quadratic,
        threshold=threshold,
        relative=relative,
        probing=Probing(2),
        **quiet,
    )
    assert found["everything"].value == pytest.approx(5, abs=0.06)
    assert found.diagnostics["threshold"] == pytest.approx(0.5, rel=1e-3)
    assert found.diagnostics["largest"] == pytest.approx(5, rel=1e-3)
    assert found.diagnostics["smallest"] == pytest.approx(-4, rel=1e-3)


@pytest.mark.parametrize("curvatures", [[2.0] * 3, [9.0, 1.0, 2.0], [-9.0, -1.0, -2.0], [0.0] * 3])
def test_hessian_rank_where_no_eigenvalue_is_near_the_threshold(curvatures: list[float]) -> None:
    h = torch.tensor(curvatures)
    found = hessian_rank(
        Quadratic(h), (torch.zeros(3, 3),), loss=loss_of_quadratic, probing=Probing(2), **quiet
    )
    assert found["everything"].value == pytest.approx(int((h != 0).sum()), abs=1e-5)


def test_hessian_rank_of_a_head_with_a_gap() -> None:
    """A head whose layer sees 2 tokens only: its Hessian has as many large eigenvalues as dense linear algebra says."""
    model, tokens = tiny_model(), rllc.Tokens(torch.randint(2, (6, 4), generator=generator("two")))
    weights = rllc.parameters("blocks.1.attn.b_V") | rllc.parameters("blocks.1.attn.W_O", (1,))

    def losses(call) -> Tensor:
        rows = tokens.rows.long()
        return F.cross_entropy(
            call(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
        )

    values = torch.linalg.eigvalsh(dense(model, weights, losses))
    sizes = values.abs().sort(descending=True).values
    gap = int((sizes[:-1] / sizes[1:])[: len(sizes) // 2].argmax())
    threshold = float((sizes[gap] * sizes[gap + 1]).sqrt())
    found = hessian_rank(
        model,
        tokens,
        {"w": weights},
        threshold=threshold,
        relative=False,
        probing=Probing(60),
        **quiet,
    )
    told = {name: float(values[0]) for name, values in found.diagnostics.items()}
    low, high = told["smallest"], told["largest"]
    assert (low, high) == pytest.approx((float(values[0]), float(values[-1])), rel=2e-3, abs=1e-4)
    margin = 0.01 * (high - low)  # and Lanczos's errors, which are smaller
    middle, half = (low + high) / 2, (high - low) / 2 + margin
    s = 4.5 / told["degree"]
    angle = np.arccos(np.clip((values.numpy() - middle) / half, -1, 1))
    edges = [math.acos(min(max((t - middle) / half, -1), 1)) for t in (threshold, -threshold)]
    expected = (norm.cdf((edges[0] - angle) / s) + norm.cdf((angle - edges[1]) / s)).sum()
    reading = found["w"]
    assert abs(reading.value - expected) < Z * reading.standard_error + 0.2
    assert abs(reading.value - (gap + 1)) < Z * reading.standard_error + 1.0


# Eigenvalues.


@pytest.mark.parametrize("count", [1, 4])
def test_lanczos_finds_both_ends_and_its_errors_are_bounds(count: int) -> None:
    A = decaying()
    truth = torch.linalg.eigvalsh(A)
    for tolerance in (0.2, 1e-2, 1e-9):
        found = lanczos(lambda v: v @ A, 40, count, tolerance, 40, generator("lanczos"))
        assert found.status == "ok"
        assert found.num_products <= 40
        assert float(found.largest_error.max()) <= tolerance * float(truth.abs().max())
        for values, errors in (
            (found.largest, found.largest_error),
            (found.smallest, found.smallest_error),
        ):
            distance = (values[:, None] - truth).abs().amin(1)
            assert bool((distance <= errors + 1e-12).all())
    torch.testing.assert_close(found.largest, truth.flip(0)[:count], atol=1e-9, rtol=0)
    torch.testing.assert_close(found.smallest, truth[:count], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "diagonal", [[0.0] * 6, [2.0] * 6, [1.0, 0, 0, 0, 0, 0], [3.0], [2.0, -1.0, 2.0, -1.0]]
)
def test_lanczos_goes_on_where_the_span_cannot_grow(diagonal: list[float]) -> None:
    A, dim = torch.diag(torch.tensor(diagonal, dtype=torch.float64)), len(diagonal)
    found = lanczos(lambda v: v @ A, dim, dim, 1e-6, 2 * dim, generator("few"))
    torch.testing.assert_close(found.largest, A.diag().sort(descending=True).values)
    torch.testing.assert_close(found.smallest, A.diag().sort().values)
    assert (found.status, found.num_products) == ("ok", dim)


def test_lanczos_says_when_it_was_stopped_early() -> None:
    A = decaying()
    found = lanczos(lambda v: v @ A, 40, 3, 1e-8, 7, generator("early"))
    assert found.status == "not converged after 7 products: pass max_products=14"


@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalues_are_those_of_dense_hessians(
    name: str, hessians: dict[str, Tensor]
) -> None:
    make, weights, data, loss, _ = CASES[name]
    truth = torch.linalg.eigvalsh(hessians[name]).numpy()
    count = min(4, len(truth))
    found = top_eigenvalues(make(), data, weights, loss=loss, count=count, tolerance=1e-5, **quiet)
    assert found.status == ("ok",)
    allowed = 1e-4 * np.abs(truth).max()
    np.testing.assert_allclose(found.largest[0], truth[::-1][:count], atol=allowed, rtol=0)
    np.testing.assert_allclose(found.smallest[0], truth[:count], atol=allowed, rtol=0)
    np.testing.assert_array_equal(
        found[weights.name], np.r_[found.largest[0], found.smallest[0, ::-1]]
    )


@pytest.mark.oracle
def test_against_scipy() -> None:
    from scipy.sparse.linalg import LinearOperator, eigsh

    model = tiny_model()
    mine = surface(model, TOKENS, HEAD)
    operator = LinearOperator(
        (mine.dim, mine.dim),
        matvec=lambda v: mine.product(torch.as_tensor(v.ravel())[None])[0].numpy(),
        dtype=np.float64,
    )
    start = np.ones(mine.dim)
    theirs = [
        eigsh(operator, 3, which=which, v0=start, return_eigenvectors=False)
        for which in ("LA", "SA")
    ]
    found = top_eigenvalues(model, TOKENS, HEAD, count=3, **quiet)
    np.testing.assert_allclose(found.largest[0], np.sort(theirs[0])[::-1], rtol=1e-4)
    np.testing.assert_allclose(found.smallest[0], np.sort(theirs[1]), rtol=1e-4)


@pytest.mark.oracle
def test_against_hessian_eigenthings() -> None:
    theirs = pytest.importorskip("hessian_eigenthings")
    model = tiny_model(attn_implementation="eager")
    rows = TOKENS.rows.long()
    names = {"blocks.1.attn.W_Q", "blocks.1.attn.W_V"}
    operator = theirs.HessianOperator(
        model,
        [rows],
        lambda m, batch: m(batch, labels=batch).loss,
        param_filter=lambda name, _: name in names,
    )
    weights = rllc.parameters("blocks.1.attn.W_Q") | rllc.parameters("blocks.1.attn.W_V")
    mine = surface(model, TOKENS, weights)
    u = torch.randn(mine.dim, generator=generator("u"))
    torch.testing.assert_close(
        mine.product(u[None].double())[0].float(), operator.matvec(u), atol=1e-6, rtol=1e-4
    )
    their_top = theirs.lanczos(operator, k=3, max_iter=40, seed=0).eigenvalues
    found = top_eigenvalues(model, TOKENS, {"w": weights}, count=3, **quiet)
    ours = sorted(found["w"], key=abs, reverse=True)[:3]
    np.testing.assert_allclose(ours, sorted(their_top.tolist(), key=abs, reverse=True), rtol=1e-3)
    their_trace = theirs.hutchinson(operator, num_samples=300, seed=0)
    trace = hessian_trace(model, TOKENS, {"w": weights}, probing=Probing(300), **quiet)["w"]
    assert abs(trace.value - their_trace.estimate) < Z * math.hypot(
        trace.standard_error, their_trace.stderr
    )


# What all of them share.

MEASURES = {
    "hessian_trace": hessian_trace,
    "hutch++": partial(hessian_trace, method="hutch++"),
    "fisher_trace": fisher_trace,
    "hessian_rank": partial(hessian_rank, degree=20),
    "top_eigenvalues": partial(top_eigenvalues, count=2, tolerance=0.1),
}
FEW = Probing(num_probes=4)


def numbers(result: Curvature | Eigenvalues) -> np.ndarray:
    return (
        result.value
        if isinstance(result, Curvature)
        else np.concatenate([result.largest, result.smallest], 1)
    )


@pytest.mark.parametrize("name", MEASURES)
def test_selections_and_data_give_one_row_each_and_the_same_alone(name: str) -> None:
    model, other = tiny_model(), tiny_tokens(5, seed=1)
    measure = partial(MEASURES[name], probing=FEW, **quiet)
    together = measure(model, {"a": TOKENS, "b": other}, ["0:1", HEAD])
    assert together.weights == ("0:1", "0:1", "1:2", "1:2")
    assert together.data == ("a", "b", "a", "b")
    assert len(together) == 4
    alone = measure(model, {"b": other}, "1:2")
    np.testing.assert_array_equal(numbers(alone)[0], numbers(together)[3])
    again = measure(model, {"b": other}, "1:2", probing=Probing(num_probes=4, seed=1))
    if name != "top_eigenvalues":
        assert not np.array_equal(numbers(again), numbers(alone))
    with pytest.raises(
        InputError, match=r"curvature\['1:2'\]: on which data\? It has \['a', 'b'\]"
    ):
        together["1:2"]
    named = together["L1H2", "b"]
    assert (named[0] if name == "top_eigenvalues" else named.value) == np.ravel(
        numbers(together)[3]
    )[0]


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_and_the_kernels_are_left_as_they_were(name: str) -> None:
    model = tiny_model().train()
    model(TOKENS.rows.long(), labels=TOKENS.rows.long()).loss.backward()
    before = torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with unchanged(model), torch.no_grad():
        MEASURES[name](model, TOKENS, "0:0", probing=FEW, **quiet)
        assert not torch.is_grad_enabled()
    assert (
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    ) == before


def test_all_is_put_back_when_a_loss_fails() -> None:
    model = mlp().train()

    def failing(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("a bug in the loss")
        return cross_entropy(module, batch)

    with unchanged(model):
        try:
            hessian_trace(model, CLASSES, loss=failing, **quiet)
        except KeyError as error:
            kept = error  # and with it, its frames
        assert model.training
        assert torch.backends.cuda.flash_sdp_enabled()
    assert "a bug" in str(kept)


def test_a_number_of_rows_is_chosen_once_for_all() -> None:
    model = mlp()
    part = surface(model, CLASSES, None, cross_entropy, num_rows=4, batch_size=3, seed=5)
    rows = torch.cat(part.batches)
    assert len(set(rows.tolist())) == 4
    x, y = CLASSES
    same = surface(model, (x[rows], y[rows]), None, cross_entropy)
    u = torch.eye(67).double()[:5]
    torch.testing.assert_close(part.product(u), same.product(u), atol=1e-6, rtol=1e-5)
    assert not torch.equal(
        rows, torch.cat(surface(model, CLASSES, None, cross_entropy, num_rows=4, seed=6).batches)
    )


def test_losses_that_draw_random_numbers_draw_the_same_each_time() -> None:
    def noisy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(module, (batch[0] + torch.randn(batch[0].shape), batch[1]))

    mine = surface(mlp(), CLASSES, None, noisy, batch_size=4)
    H = mine.product(torch.eye(67).double())
    torch.testing.assert_close(H, H.T, atol=1e-6, rtol=1e-4)
    assert (
        float(
            (H - surface(mlp(), CLASSES, None, cross_entropy).product(torch.eye(67).double()))
            .abs()
            .max()
        )
        > 0.01
    )


def test_linear_losses_have_no_curvature() -> None:
    found = hessian_trace(
        nn.Linear(3, 1), (torch.randn(4, 3),), loss=lambda m, x: m(x)[:, 0], **quiet
    )
    assert found["everything"] == (0.0, 0.0, "ok")


class Scaled(torch.autograd.Function):
    """x → c·x, whose gradient may not be batched: it looks at a value."""

    @staticmethod
    def forward(ctx, x: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, c)
        return c * x

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        x, c = ctx.saved_tensors
        assert float(g.detach().sum()) is not None
        return Scaled.apply(g, c), (g * x).sum()


def test_operations_that_cannot_be_batched_are_done_one_by_one() -> None:
    weight = torch.tensor(1.5)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return Scaled.apply(module(x)[:, 0], weight).square()

    model, data = nn.Linear(3, 1), (torch.randn(5, 3, generator=generator("x")),)
    mine = surface(model, data, None, loss)
    assert mine.together
    product = mine.product(torch.eye(4).double())
    assert not mine.together
    x = torch.cat([torch.ones(5, 1), data[0]], 1).double()  # bias first: alphabetical
    torch.testing.assert_close(product, 2 * 1.5**2 * x.T @ x / 5, atol=1e-6, rtol=1e-5)


class Fused(nn.Module):
    """Calls a kernel by its own name, so that none can be put in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x)[:, None, None].expand(-1, 1, 2, 4)
        return (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(heads, heads, heads)[0]
            .square()
            .flatten(1)
        )


@pytest.mark.parametrize("name", ["hessian_trace", "hutch++", "hessian_rank", "top_eigenvalues"])
def test_derivatives_that_are_not_finite_are_said(name: str) -> None:
    model = nn.Linear(3, 1, bias=False)
    model.weight.data.zero_()
    found = MEASURES[name](
        model, (torch.ones(4, 3),), loss=lambda m, x: m(x)[:, 0].abs() ** 1.5, probing=FEW, **quiet
    )
    assert np.isnan(numbers(found)).all()
    assert found.status == ("the derivatives of the loss are not finite",)


def test_tables_and_figures() -> None:
    model = tiny_model()
    traces = hessian_trace(
        model,
        {"a": TOKENS, "b": tiny_tokens(5, seed=1)},
        rllc.heads(model),
        probing=Probing(2),
        **quiet,
    )
    frame = traces.to_dataframe()
    assert list(frame.columns)[:6] == [
        "weights",
        "data",
        "value",
        "standard_error",
        "status",
        "quantity",
    ]
    assert frame["value"].tolist() == traces.value.tolist()
    assert (frame["num_weights"] == HEAD.count(model)).all()
    assert (
        repr(traces)
        .splitlines()[0]
        .startswith("Hessian trace of 12 refinements (method = hutchinson, num_probes = 2")
    )
    assert len(repr(traces).splitlines()) == 14
    _, given = plt.subplots()
    assert plot_curvature(traces, given) is given
    assert given.get_ylabel() == "Hessian trace (95 % interval)"
    assert [t.get_text() for t in given.get_xticklabels()] == [
        "0:0",
        "0:1",
        "0:2",
        "1:0",
        "1:1",
        "1:2",
    ]
    ends = top_eigenvalues(
        model,
        {"a": TOKENS, "b": tiny_tokens(5, seed=1)},
        rllc.heads(model),
        count=2,
        tolerance=0.1,
        **quiet,
    )
    frame = ends.to_dataframe()
    assert len(frame) == 12 * 4
    row = frame[
        (frame["weights"] == "1:2") & (frame["data"] == "b") & (frame["end"] == "smallest")
    ].iloc[0]
    assert row["eigenvalue"] == ends["1:2", "b"][-1]
    assert row["error"] == ends.smallest_error[11, 0]
    assert len(repr(ends).splitlines()) == 14
    ax = plot_curvature(ends)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines[:2]])
    assert sorted(drawn) == pytest.approx(sorted(frame["eigenvalue"]))
    assert len(plot_curvature(top_eigenvalues(model, TOKENS, "0:0", count=1, **quiet)).lines) == 2


def trace(model: nn.Module = None, data=TOKENS, *args, **kwargs):
    return hessian_trace(tiny_model() if model is None else model, data, *args, **quiet | kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Probing(num_probes=1),
            "Probing: `num_probes` must be an integer of at least 2, got 1",
        ),
        (
            lambda: Probing(num_rows=0),
            "Probing: `num_rows` must be an integer of at least 1, got 0",
        ),
        (
            lambda: Probing(batch_size=2.0),
            "Probing: `batch_size` must be an integer of at least 1, got 2.0",
        ),
        (lambda: Probing(seed="a"), "Probing: `seed` must be an integer, got 'a'"),
        (
            lambda: trace(probing=16),
            r"hessian_trace: `probing` must be curvature.Probing\(num_probes=16\), got int",
        ),
        (
            lambda: trace(method="xtrace"),
            "`method` must be 'hutchinson' or 'hutch\\+\\+', got 'xtrace'",
        ),
        (
            lambda: trace(method="hutch++", probing=Probing(3)),
            "needs at least 4 products with the Hessian, got 3",
        ),
        (
            lambda: trace(probing=Probing(num_rows=7)),
            "the data 'tokens' has 6 rows, but num_rows=7",
        ),
        (lambda: trace("model"), "hessian_trace: `model` must be a torch.nn.Module"),
        (lambda: trace(loss="nll"), "hessian_trace: `loss` must be None"),
        (
            lambda: trace(data=rllc.Tokens(torch.full((2, 4), 11))),
            "hessian_trace on data 'tokens': it has token id 11",
        ),
        (lambda: trace(mlp(), CLASSES), "hessian_trace on data 'data': the loss of tokens needs"),
        (lambda: trace(weights="5:0"), "has no such head"),
        (
            lambda: trace(mlp(), CLASSES, loss=lambda m, b: m(b[0]).mean()),
            r"must give per-example \[batch\]",
        ),
        (
            lambda: trace(
                nn.Linear(2, 1), (torch.ones(3, 2),), loss=lambda m, x: m(x)[:, 0].detach()
            ),
            "curvature in the weights 'everything': the loss does not depend on them",
        ),
        (
            lambda: trace(Fused(), (torch.randn(3, 4),), loss=lambda m, x: m(x)),
            r"cannot be differentiated twice \(derivative for aten::_scaled_dot_product_flash.*attn_implementation=\"eager\"",
        ),
        (
            lambda: trace(
                nn.Linear(2, 1), (torch.ones(3, 2),), loss=lambda m, x: m(x)[:, 0].log() - math.inf
            ),
            "hessian_trace on data 'data': at w",
        ),
        (
            lambda: fisher_trace(tiny_model(), TOKENS, labels="sampled"),
            "`labels` must be 'model', 'data' or a function",
        ),
        (
            lambda: fisher_trace(mlp(), CLASSES, loss=cross_entropy),
            "what your loss's model predicts is not known; pass labels=f",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, threshold=1.0),
            "between 0 and 1, in units of the largest",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, threshold=0.0, relative=False),
            "`threshold` must be a positive number, got 0.0",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, degree=1),
            "`degree` must be an integer of at least 2, got 1",
        ),
        (
            lambda: top_eigenvalues(mlp(), CLASSES, count=0),
            "`count` must be an integer of at least 1, got 0",
        ),
        (
            lambda: top_eigenvalues(mlp(), CLASSES, count=5, max_products=9),
            r"`max_products` \(for count=5\) must be an integer of at least 10, got 9",
        ),
        (
            lambda: top_eigenvalues(mlp(), CLASSES, tolerance=0),
            "`tolerance` must be between 0 and 1, got 0",
        ),
        (
            lambda: top_eigenvalues(
                mlp(),
                CLASSES,
                {"b": rllc.parameters("2.bias")},
                loss=cross_entropy,
                count=4,
                **quiet,
            ),
            "the weights 'b' are 3, so there are no 4 eigenvalues; pass count=3",
        ),
        (
            lambda: trace(weights="0:1", probing=FEW)["0:2"],
            r"curvature\['0:2'\]: no such weights; did you mean '0:1'",
        ),
        (lambda: trace(weights="0:1", probing=FEW)["0:1", "cod"], r"no such data; known: 'tokens'"),
        (
            lambda: trace(weights="0:1", probing=FEW)[3],
            r"curvature\[3\]: expected a name, or \(weights, data\)",
        ),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
