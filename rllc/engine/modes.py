"""The state in which a model is evaluated: its mode, its precision, its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every submodule into one mode, and each back into its own afterwards."""
    changed = [module for module in model.modules() if module.training != training]
    for module in changed:
        module.training = training
    try:
        yield
    finally:
        for module in changed:
            module.training = not training


def in_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Do matrix products in ``dtype``; ``None`` leaves them as they are."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw global random numbers from ``seed``, and restore their state; nothing for ``None``.

    A loss that draws numbers (dropout) then draws the same for every run of a step and for the
    baseline, whatever their company.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
