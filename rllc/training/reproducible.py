"""Means to make a resumed run equal an unbroken one: deterministic kernels, seeds, digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rllc.seeds import stable_hash

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels; torch's random state and settings are put back afterwards.

    Without them the gradient of an embedding is summed with atomic additions, in another order each
    time, also on a CPU with two threads or more.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    on_gpu = device.type == "cuda"
    sets_workspace = on_gpu and _WORKSPACE not in os.environ
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            # A model may use a kernel that has no deterministic form: that is a warning.
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Filling new tensors is an aid to debugging that costs time.
            deterministic.fill_uninitialized_memory = False
            if sets_workspace:
                # NVIDIA's condition for deterministic products.
                os.environ[_WORKSPACE] = ":4096:8"
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            deterministic.fill_uninitialized_memory = fill
            if sets_workspace:
                os.environ.pop(_WORKSPACE, None)


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Let torch's random numbers, which dropout uses, depend on (seed, step) alone."""
    value = stable_hash("dropout", seed, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


def digest(state: Any) -> str:
    """SHA-256 of nested dicts and lists of tensors and numbers."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
            numbers = value.detach().cpu().contiguous().flatten()
            sha.update(numbers.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            for key, item in value.items():
                sha.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, on which the last bits of a result depend."""
    import transformers

    import rllc

    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability()
    return {
        "rllc": rllc.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} {kind}",
        "threads": torch.get_num_threads(),
    }
