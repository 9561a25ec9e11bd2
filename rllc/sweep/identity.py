"""How a sweep recognises what it has seen before: by contents, wherever they lie."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from rllc.engine.private import private_copy
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.contract import LossFunction, NamedLoss
from rllc.models import adapters
from rllc.models.checkpoints import Checkpoint, checkpoints
from rllc.storage.contents import NOTES_OF_CONFIG, digest
from rllc.storage.files import sha256_of
from rllc.storage.identity import if_known, of_loss, of_model

_SHORT = 16
"""Digits of the hash of a part, which only tells what has changed."""


class CheckpointContents(NamedTuple):
    """What a checkpoint is, wherever it lies."""

    sha256: str
    """Of all its parts."""
    parts: dict[str, str]
    """By name, the hash of each: of the weights, and of what they are the weights of."""


def checkpoint_contents(checkpoint: Checkpoint) -> CheckpointContents:
    """Return the SHA-256 of a checkpoint's weights and of what they are the weights of.

    That is the configuration beside them, the module into which they are loaded, or the base of an
    adapter. Files are read each time: size and date do not tell whether one was replaced.

    Raises:
        FileError: the checkpoint is not there.
        InputError: a module of yours holds something that cannot be looked into.
    """
    pieces = _pieces(checkpoint)
    parts = {name: sha256_of([piece])[:_SHORT] for name, piece in pieces.items()}
    return CheckpointContents(sha256_of(pieces.values()), parts)


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of all of :func:`checkpoint_contents`."""
    return checkpoint_contents(checkpoint).sha256


def _pieces(checkpoint: Checkpoint) -> dict[str, str | bytes]:
    """What decides which function a checkpoint is, by name; the order enters the SHA-256."""
    pieces: dict[str, str | bytes] = {}
    weights = checkpoint.weights
    if isinstance(weights, nn.Module):
        pieces["model"] = if_known(of_model)(weights) or checkpoint.sha256()
    else:
        pieces["weights"] = checkpoint.sha256()
    if checkpoint.positions is not None:
        pieces["positions"] = f"positions {checkpoint.positions}"
    if checkpoint.into is not None:
        pieces["into"] = _digest_of_into(checkpoint.into)
    if weights is not None:
        return pieces
    path = checkpoint.path()
    folder = path if path.is_dir() else path.parent
    has_configuration = path.is_dir() or path.name == "model.safetensors"
    file = folder / "config.json"
    if has_configuration and file.is_file():
        pieces["configuration"] = _configuration(file.read_bytes())
    if path.is_dir() and adapters.is_adapter(path):
        pieces["configuration"] = _configuration((path / adapters.CONFIG).read_bytes())
        base = checkpoints(adapters.base_of(path))[-1]
        pieces["base of the adapter"] = checkpoint_digest(base)
    return pieces


def _digest_of_into(into: nn.Module | Callable[[], nn.Module]) -> str:
    """What a module is apart from the weights that a checkpoint replaces; a function's contents."""
    if not isinstance(into, nn.Module):
        return digest(into, "into")
    emptied = private_copy(into)
    for module in emptied.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.zeros_like(parameter)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = torch.zeros_like(buffer)
    return digest(emptied, "into")


def _configuration(text: bytes) -> bytes:
    """The fields that a forward pass may depend on, however they are written down."""
    try:
        fields = json.loads(text)
        fields = {k: fields[k] for k in fields if k not in NOTES_OF_CONFIG and k[0] != "_"}
    except (ValueError, TypeError, IndexError):  # loading will say so
        return text
    return json.dumps(fields, sort_keys=True).encode()


def loss_name(loss: LossFunction | None) -> str:
    """Return what a loss is called in a plan: where it is defined, or the name you gave it.

    :func:`rllc.storage.identity.of_loss` says which loss it is.
    """
    if loss is None or isinstance(loss, Distillation | NamedLoss) or loss is next_token:
        return of_loss(loss)
    described = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{described.__module__}:{described.__qualname__}"


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
