"""Losses: the contract with a model, losses by name, and what is checked before one is used."""

from __future__ import annotations

from rllc.losses.by_name import (
    Distillation,
    classification,
    distillation,
    masked_lm,
    model_loss,
    next_token,
    regression,
)
from rllc.losses.contract import named

__all__ = [
    "Distillation",
    "classification",
    "distillation",
    "masked_lm",
    "model_loss",
    "named",
    "next_token",
    "regression",
]
