"""A Tracker inside a Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EachStep(TrainerCallback):
    """Call a function with the step and the model: before the first step, and after each.

    >>> steps = []
    >>> callback = EachStep(lambda step, model: steps.append(step))
    >>> callback.on_step_end(None, TrainerState(global_step=7), None, model=None)
    >>> steps
    [7]

    Args:
        call: what :meth:`rllc.Tracker.callback` gives is called with a :class:`rllc.Tracker`. Where
            several processes train, only the first calls it.
    """

    def __init__(self, call: Callable[[int, Any], object]) -> None:
        self.call = call

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call it with the step that training starts at."""
        self._call(state, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call it after a step of the optimiser."""
        self._call(state, kwargs["model"])

    def _call(self, state: TrainerState, model: Any) -> None:
        if state.is_world_process_zero:
            self.call(state.global_step, model)
