"""The optimisers of a run: AdamW, or Muon for the heads' matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rllc.errors import InputError
from rllc.training.settings import Training

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_EPSILON = 1e-7
_MOMENTUM = 0.95


class Muon(Optimizer):
    """Momentum whose steps are made orthogonal, for stacks of matrices ``[head, row, column]``.

    With gradient g: b ← 0.95 b + 0.05 g, u = 0.05 g + 0.95 b (Nesterov), and for each matrix W of
    the stack W ← (1 − lr · weight_decay) W − lr · orthogonalise(u). All directions of a matrix then
    move at one speed. ``torch.optim.Muon`` is for single matrices and rescales lr by their shape.

    Args:
        params: tensors of three axes.
        lr: learning rate: the spectral norm of a step on one matrix, roughly.
        weight_decay: decoupled.

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]  # noqa: D102 (torch's)
        self, closure: Callable[[], Any] | None = None
    ) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                direction = weight.grad.lerp(momentum, _MOMENTUM)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalise(direction), alpha=-group["lr"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Each matrix with its singular values moved to about 1, and its singular vectors kept.

    Five Newton–Schulz steps X ← aX + (bA + cA²)X with A = XXᵀ, after division by the Frobenius
    norm. They put singular values above a hundredth of that norm between 0.7 and 1.2.

    Args:
        matrices: ``[..., row, column]``.

    Returns:
        The same shape.
    """
    a, b, c = _NEWTON_SCHULZ
    X = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + _EPSILON)
    # A is the smaller of the two products.
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for _ in range(_NUM_ITERATIONS):
        A = X @ X.mT
        polynomial = b * A + c * A @ A
        X = a * X + polynomial @ X
    return X.mT if tall else X


def make_optimisers(model: nn.Module, training: Training) -> list[Optimizer]:
    """One optimiser, or Muon and AdamW, which share the parameters.

    Raises:
        InputError: Muon is asked for, and the model has no stacks of matrices.
    """
    parameters = list(model.parameters())
    stacks: list[Tensor] = []
    if training.optimizer == "muon":
        stacks = [parameter for parameter in parameters if parameter.dim() == 3]
        if not stacks:
            raise InputError(
                f"training: optimizer='muon' is for parameters [head, row, column], and "
                f"{type(model).__name__} has none. Train an AttentionOnly, or use 'adamw'."
            )
    rest = [parameter for parameter in parameters if parameter.dim() != 3 or not stacks]
    device = parameters[0].device.type
    adamw = AdamW(
        rest,
        lr=training.lr,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=device in ("cpu", "cuda"),
    )
    optimisers: list[Optimizer] = [adamw]
    if stacks:
        optimisers.append(Muon(stacks, training.muon_lr, training.muon_weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def set_rate(optimisers: Iterable[Optimizer], factor: float) -> None:
    """Multiply the learning rates that the optimisers began with by a factor."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["initial_lr"]
