"""How a sweep recognises what it has seen before: by contents, wherever they lie."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from torch import nn

from rllc.files import bytes_of_tensor, sha256_of, sha256_of_text
from rllc.loss import LossFunction
from rllc.losses import Distillation
from rllc.models.checkpoints import Checkpoint

_digests: dict[tuple[Any, ...], str] = {}


def short_hash(text: str) -> str:
    """Return the first 32 hexadecimal digits of a text's SHA-256."""
    return sha256_of_text(text)[:32]


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of a checkpoint's weights.

    It is computed again only if the name, size or time of one of the files has changed.

    Raises:
        FileError: the checkpoint is not there.
    """
    if checkpoint.weights is not None:
        return checkpoint.sha256()
    path = checkpoint.path()
    files = [path]
    if not path.is_file():
        files = sorted(file for file in path.iterdir() if file.is_file())
    stamps = []
    for file in files:
        stat = file.stat()
        stamps.append((str(file), stat.st_size, stat.st_mtime_ns))
    key = tuple(stamps)
    if key not in _digests:
        _digests[key] = checkpoint.sha256()
    return _digests[key]


def loss_name(loss: LossFunction | None) -> str:
    """Return the name under which a loss stands in a plan.

    A distillation loss is named by its model's weights, any other by the module it is defined in.
    """
    if loss is None:
        return "next token"
    if isinstance(loss, Distillation):
        return f"distillation of {_model_digest(loss.generator)}"
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}:{named.__qualname__}"


def _model_digest(model: nn.Module) -> str:
    pieces: list[str | np.ndarray] = []
    for name, tensor in sorted(model.state_dict().items()):
        pieces.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        pieces.append(bytes_of_tensor(tensor))
    return sha256_of(pieces)


def versions() -> dict[str, str]:
    """Return the versions on which the last bits of a result may depend."""
    import rllc

    return {
        "rllc": rllc.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_kind(device: torch.device) -> str:
    """Return the model of a GPU, or the instruction set of a CPU: the last bits depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
