"""How a sweep recognises what it has seen before: by contents, wherever they lie."""

from __future__ import annotations

import json
import platform

import numpy as np
import torch

from rllc.contents import NOTES_OF_CONFIG
from rllc.files import sha256_of
from rllc.identity import of_loss
from rllc.loss import LossFunction, NamedLoss
from rllc.losses import Distillation, next_token
from rllc.models.checkpoints import Checkpoint


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of a checkpoint's weights and of the configuration beside them.

    Files are read each time: size and date do not tell whether one was replaced.

    Raises:
        FileError: the checkpoint is not there.
    """
    if checkpoint.weights is not None:
        return checkpoint.sha256()
    path = checkpoint.path()
    folder = path if path.is_dir() else path.parent
    has_configuration = path.is_dir() or path.name == "model.safetensors"
    file = folder / "config.json"
    pieces: list[str | bytes] = [checkpoint.sha256()]
    if has_configuration and file.is_file():
        pieces.append(_configuration(file.read_bytes()))
    return sha256_of(pieces)


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

    :func:`rllc.identity.of_loss` says which loss it is.
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
