"""Dense Hessians and Fisher matrices in float64 of models with at most 1,000 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import rllc
from rllc.analysis.surface import Probing, Surface, surfaces
from rllc.seeds import generator

Call = Callable[..., Any]
"""The model's forward at weights that moved."""

TOKENS = tiny_tokens(6)
CLASSES = (
    torch.randn(10, 4, generator=generator("x")),
    torch.randint(3, (10,), generator=generator("y")),
)
HEAD = rllc.head("1:2")


def mlp() -> nn.Module:
    """67 weights, a classifier of 3 classes."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    stream = generator("mlp")
    for parameter in model.parameters():
        parameter.data = 0.8 * torch.randn(parameter.shape, generator=stream)
    return model


def small_transformer() -> nn.Module:
    """530 weights."""
    return tiny_model(n_layers=1, d_model=8, n_heads=2, d_head=3, n_ctx=8)


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(module(inputs), labels, reduction="none")


def token_logits(call: Call) -> Tensor:
    return call(TOKENS.rows.long()).logits[:, :-1]


def token_losses(call: Call) -> Tensor:
    logits = token_logits(call).flatten(0, 1)
    next_tokens = TOKENS.rows.long()[:, 1:].flatten()
    return F.cross_entropy(logits, next_tokens, reduction="none")


def class_logits(call: Call) -> Tensor:
    return call(CLASSES[0].double())


def class_losses(call: Call) -> Tensor:
    return F.cross_entropy(class_logits(call), CLASSES[1], reduction="none")


class Case(NamedTuple):
    """A model, weights of it and data; and the same losses once more, for dense matrices."""

    make: Callable[[], nn.Module]
    weights: rllc.Weights
    data: Any
    loss: Callable[..., Tensor] | None
    losses: Callable[[Call], Tensor]

    def hessian(self) -> Tensor:
        return dense_hessian(self.make(), self.weights, self.losses)


def _of_tokens(weights: rllc.Weights, make: Callable[[], nn.Module] = tiny_model) -> Case:
    return Case(make, weights, TOKENS, None, token_losses)


def _of_classes(weights: rllc.Weights) -> Case:
    return Case(mlp, weights, CLASSES, cross_entropy, class_losses)


CASES = {
    "head": _of_tokens(HEAD),
    "head of layer 0": _of_tokens(rllc.head("0:1")),
    "two heads": _of_tokens(rllc.head("0:1") | HEAD),
    "norms and positions": _of_tokens(
        rllc.parameters("*.ln1.*") | rllc.parameters("pos_embed.W_pos")
    ),
    "everything": _of_tokens(rllc.everything(), small_transformer),
    "mlp": _of_classes(rllc.everything()),
    "part of an mlp": _of_classes(rllc.parameters("0.weight", (slice(1, 5), 2))),
}


def as_function(
    model: nn.Module, weights: rllc.Weights, forward: Callable[[Call], Tensor]
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """``forward`` as a function of the selected numbers in float64, and these numbers."""
    double = {name: p.detach().double() for name, p in model.named_parameters()}
    masks = sorted(weights.masks(model).items())
    index_of = {name: mask.flatten().nonzero()[:, 0] for name, mask in masks}
    origin = torch.cat([double[name].flatten()[index] for name, index in index_of.items()])

    def function(v: Tensor) -> Tensor:
        moved = dict(double)
        start = 0
        for name, index in index_of.items():
            numbers = v[start : start + len(index)]
            flat = double[name].flatten().index_copy(0, index, numbers)
            moved[name] = flat.view(double[name].shape)
            start += len(index)
        with sdpa_kernel(SDPBackend.MATH):
            return forward(lambda *inputs: functional_call(model, moved, inputs))

    return function, origin


def dense_hessian(
    model: nn.Module,
    weights: rllc.Weights,
    losses: Callable[[Call], Tensor] = token_losses,
) -> Tensor:
    """Not by torch.func.hessian, which is wrong for scales of LayerNorms (pytorch 196700)."""
    function, origin = as_function(model, weights, lambda call: losses(call).mean())
    return hessian(function, origin, vectorize=True)


def dense_fisher_trace(
    model: nn.Module, weights: rllc.Weights, logits: Callable[[Call], Tensor]
) -> float:
    """tr F = mean over predictions of tr Jᵀ(diag p − ppᵀ)J, J the derivative of the logits."""
    function, origin = as_function(model, weights, lambda call: logits(call).flatten(0, -2))
    J = jacrev(function)(origin)
    p = function(origin).softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return float(torch.einsum("tvi,tvw,twi->t", J, inner, J).mean())


def dense_empirical_trace(
    model: nn.Module, weights: rllc.Weights, losses: Callable[[Call], Tensor]
) -> float:
    function, origin = as_function(model, weights, losses)
    return float(jacrev(function)(origin).square().sum(1).mean())


def surface(
    model: nn.Module,
    data: Any,
    weights: Any,
    loss: Callable[..., Tensor] | None = None,
    **probing: int,
) -> Surface:
    """The only surface of one choice of weights on one data set."""
    (only,) = surfaces(model, data, weights, loss, Probing(**probing), "testing")
    return only
