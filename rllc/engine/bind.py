"""Which evaluation serves a model and a loss: the fastest exact one there is."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from torch import nn

from rllc.engine.attention_only import TokenLoss
from rllc.engine.linear_deltas import LinearDeltas
from rllc.engine.module import ModuleLoss
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.contract import Loss, LossFunction


def bind(
    model: nn.Module,
    loss: LossFunction | None,
    *,
    autocast: torch.dtype | None = None,
    train_mode: bool = False,
    compile: bool = False,
) -> Loss:
    """Bind a loss to a model.

    For :class:`rllc.models.AttentionOnly` with a token loss, all runs of a group go through one
    forward pass. So they do for any other module and any loss, where slices of linear maps move and
    that gives the same; else runs are evaluated one by one, with ``functional_call``.

    Args:
        model: any module.
        loss: yours, a :func:`rllc.losses.distillation`, or ``None`` for :func:`rllc.next_token`.
        autocast: precision of matrix products, such as ``torch.bfloat16``; ``None``: the model's.
        train_mode: evaluate the module in training mode (dropout and all) instead of eval mode.
        compile: pass the forward through ``torch.compile``.
    """
    if is_attention_only(model):
        two_layer: Any = model
        if loss is None or loss is next_token:
            return cast("Loss", TokenLoss(two_layer, None, autocast, compile))
        if isinstance(loss, Distillation) and is_attention_only(loss.generator):
            generator: Any = loss.generator
            return cast("Loss", TokenLoss(two_layer, generator, autocast, compile))
    one_by_one = ModuleLoss(model, loss or next_token, autocast, train_mode, compile)
    # Compiled code would be made anew for each group.
    return one_by_one if compile else LinearDeltas(one_by_one)


def is_attention_only(model: nn.Module) -> bool:
    """Whether a model has this package's own forward pass, in float32, without hooks.

    The class's module is slow to import. A model can only be of that class if somebody has already
    imported it, so it is looked up, not imported.
    """
    module = sys.modules.get("rllc.models.attention_only")
    if module is None or not isinstance(model, module.AttentionOnly):
        return False
    if type(model).forward is not module.AttentionOnly.forward:
        return False
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return False
    # The fast pass would not call hooks.
    return not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
