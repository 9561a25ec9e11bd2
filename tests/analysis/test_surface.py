"""Products with the Hessian of a model's loss, against dense ones; and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from dense import (
    CASES,
    CLASSES,
    TOKENS,
    as_function,
    class_losses,
    cross_entropy,
    dense_hessian,
    mlp,
    surface,
)
from torch import Tensor, nn
from torch.func import grad

import rllc
from rllc.analysis.curvature import hessian_trace
from rllc.seeds import generator
from rllc.testing import unchanged


@pytest.fixture(scope="module")
def hessians() -> dict[str, Tensor]:
    return {name: case.hessian() for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_dense_hessians_are_those_of_differences_of_gradients(
    name: str, hessians: dict[str, Tensor]
) -> None:
    case = CASES[name]
    loss, origin = as_function(case.make(), case.weights, lambda call: case.losses(call).mean())
    directions = torch.randn(2, len(origin), generator=generator("differences")).double()
    for u in directions:
        ahead = grad(loss)(origin + 1e-5 * u)
        behind = grad(loss)(origin - 1e-5 * u)
        difference = (ahead - behind) / 2e-5
        torch.testing.assert_close(hessians[name] @ u, difference, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_batched", [True, False])
def test_products_are_the_dense_hessian(
    name: str, is_batched: bool, hessians: dict[str, Tensor]
) -> None:
    """Batches of 4 do not divide the rows."""
    case = CASES[name]
    H = hessians[name]
    assert len(H) == case.weights.count(case.make())
    measured = surface(case.make(), case.data, case.weights, case.loss, batch_size=4)
    measured.is_batched = is_batched
    random = torch.randn(3, len(H), generator=generator("u"))
    u = torch.cat([torch.eye(len(H))[:20], random]).double()
    rounding = 2e-5 * float(H.abs().max())
    torch.testing.assert_close(measured.product(u), u @ H, atol=rounding, rtol=1e-4)


def test_products_of_float64_models_are_in_float64() -> None:
    model = mlp().double()
    inputs, labels = CLASSES
    H = dense_hessian(model, rllc.everything(), class_losses)
    measured = surface(model, (inputs.double(), labels), None, cross_entropy)
    product = measured.product(torch.eye(67).double())
    # w* itself is rounded to float32
    torch.testing.assert_close(product, H, atol=1e-6, rtol=0)
    assert float((product - product.T).abs().max()) < 1e-14


def test_attention_that_only_sdpa_has() -> None:
    """A transformer that calls the fused kernel gives what its own eager attention gives."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11,
        max_position_embeddings=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    weights = rllc.parameters("*.q_proj.weight") | rllc.parameters("*.v_proj.weight")
    products = []
    for implementation in ("sdpa", "eager"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM._from_config(config, attn_implementation=implementation)
        products.append(surface(model, TOKENS, weights).product(torch.eye(128).double()))
    fused, eager = products
    assert float(eager.abs().max()) > 1e-5
    torch.testing.assert_close(fused, eager, atol=1e-7, rtol=1e-4)


def test_all_is_put_back_when_a_loss_fails() -> None:
    model = mlp().train()

    def failing(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("a bug in the loss")
        return cross_entropy(module, batch)

    with unchanged(model):
        try:
            hessian_trace(model, CLASSES, loss=failing, progress=False)
        except rllc.InputError as error:
            # It is kept, and with it, its frames.
            kept = error
        assert model.training
        assert torch.backends.cuda.flash_sdp_enabled()
    assert "a bug" in str(kept)


def test_a_number_of_rows_is_chosen_once_for_all() -> None:
    model = mlp()
    part = surface(model, CLASSES, None, cross_entropy, num_rows=4, batch_size=3, seed=5)
    rows = torch.cat(part.batches)
    assert len(set(rows.tolist())) == 4
    inputs, labels = CLASSES
    alone = surface(model, (inputs[rows], labels[rows]), None, cross_entropy)
    u = torch.eye(67).double()[:5]
    torch.testing.assert_close(part.product(u), alone.product(u), atol=1e-6, rtol=1e-5)
    other = surface(model, CLASSES, None, cross_entropy, num_rows=4, seed=6)
    assert not torch.equal(rows, torch.cat(other.batches))


def test_losses_that_draw_random_numbers_draw_the_same_each_time() -> None:
    def noisy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        return cross_entropy(module, (inputs + torch.randn(inputs.shape), labels))

    unit_vectors = torch.eye(67).double()
    H = surface(mlp(), CLASSES, None, noisy, batch_size=4).product(unit_vectors)
    torch.testing.assert_close(H, H.T, atol=1e-6, rtol=1e-4)
    without_noise = surface(mlp(), CLASSES, None, cross_entropy).product(unit_vectors)
    assert float((H - without_noise).abs().max()) > 0.01


class Scaled(torch.autograd.Function):
    """x → c·x, whose gradient may not be batched: it looks at a value."""

    @staticmethod
    def forward(ctx, x: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, c)
        return c * x

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor]:
        x, c = ctx.saved_tensors
        assert float(slope.detach().sum()) is not None
        return Scaled.apply(slope, c), (slope * x).sum()


def test_operations_that_cannot_be_batched_are_done_one_by_one() -> None:
    factor = torch.tensor(1.5)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return Scaled.apply(module(x)[:, 0], factor).square()

    rows = torch.randn(5, 3, generator=generator("x"))
    measured = surface(nn.Linear(3, 1), (rows,), None, loss)
    assert measured.is_batched
    product = measured.product(torch.eye(4).double())
    assert not measured.is_batched
    # Alphabetically, the bias comes before the weights.
    x = torch.cat([torch.ones(5, 1), rows], 1).double()
    torch.testing.assert_close(product, 2 * 1.5**2 * x.T @ x / 5, atol=1e-6, rtol=1e-5)
