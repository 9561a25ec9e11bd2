"""Models and their checkpoints. Importing this package does not import transformers; using a name in it does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnly, AttentionOnlyConfig
    from rllc.models.checkpoints import Checkpoint, checkpoints, load

_HOME = {
    "AttentionOnly": "attention_only",
    "AttentionOnlyConfig": "attention_only",
    "Checkpoint": "checkpoints",
    "checkpoints": "checkpoints",
    "load": "checkpoints",
}

__all__ = ["AttentionOnly", "AttentionOnlyConfig", "Checkpoint", "checkpoints", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
