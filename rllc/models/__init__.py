"""Models and their checkpoints.

Importing this package does not import transformers; using a model does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rllc.models.averaging import average
from rllc.models.checkpoints import Checkpoint, checkpoints
from rllc.models.loading import load

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnly as AttentionOnly
    from rllc.models.attention_only import AttentionOnlyConfig as AttentionOnlyConfig

__all__ = ["Checkpoint", "average", "checkpoints", "load"]


def __getattr__(name: str) -> Any:
    if name not in ("AttentionOnly", "AttentionOnlyConfig"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("rllc.models.attention_only"), name)
