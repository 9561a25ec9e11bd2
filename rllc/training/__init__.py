"""Training: settings, optimisers, the loop and the folder of a run. Knows nothing of sampling."""

from __future__ import annotations

from rllc.training.loop import train
from rllc.training.settings import PAPER_STEPS, Training, schedule

__all__ = ["PAPER_STEPS", "Training", "schedule", "train"]
