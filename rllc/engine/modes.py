"""The state in which a model is evaluated: its mode, its precision, its random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

_slow_paths = 0
_fast_path_before = True
_lock = threading.Lock()


@contextmanager
def one_arithmetic() -> Iterator[None]:
    """Evaluate in the same way whether gradients are wanted or not.

    Without gradients PyTorch takes a fast path through ``nn.TransformerEncoder`` and
    ``nn.MultiheadAttention``, which gives other numbers at padding. And a module may ask
    ``torch.is_grad_enabled()``. So the fast path is off, and gradients are enabled whether a graph
    is built or not: none is where no input requires them.
    """
    global _slow_paths, _fast_path_before
    # The switch is one for all threads: the first turns it, the last turns it back.
    with _lock:
        if _slow_paths == 0:
            _fast_path_before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _slow_paths += 1
    try:
        with torch.enable_grad():
            yield
    finally:
        with _lock:
            _slow_paths -= 1
            if _slow_paths == 0:
                torch.backends.mha.set_fastpath_enabled(_fast_path_before)


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
