"""Numbers while a model trains: a log, and transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHORT, square, tiny_model, tiny_tokens
from torch import nn

import rllc

ROWS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))


def tracker_with(log, **changes) -> rllc.Tracker:
    data = {"all": ROWS, "half": ROWS[:12]}
    weights = {"w": rllc.parameters("weight"), "b": rllc.parameters("bias")}
    return rllc.Tracker(data, weights, loss=square, sampling=SHORT, log=log, **changes)


def test_a_log_gets_one_flat_dict_for_each_estimate() -> None:
    rows: list[dict[str, float]] = []
    tracker = tracker_with(rows.append, at_steps=[0, 2])
    for step in range(3):
        tracker(step, nn.Linear(2, 1))
    assert [row["step"] for row in rows] == [0, 2]
    estimate = tracker.estimates[2]
    for llc in estimate:
        assert rows[1][f"rllc/{llc.weights}/{llc.data}/llc"] == llc.value
        assert rows[1][f"rllc/{llc.weights}/{llc.data}/se"] == llc.standard_error
    assert len(rows[1]) == 1 + 2 * len(estimate)


def test_what_a_file_has_is_not_logged_again(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    model = nn.Linear(2, 1)
    for _ in range(2):
        tracker_with(rows.append, path=tmp_path / "tracked.npz")(0, model)
    assert len(rows) == 1


def test_a_log_that_is_no_function_is_refused() -> None:
    with pytest.raises(rllc.InputError, match=r"Tracker: `log` must be a function of a dict"):
        tracker_with("wandb")


def test_tensorboard_reads_the_numbers_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))

    def log(numbers: dict[str, float]) -> None:
        step = numbers.pop("step")
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    tracker = tracker_with(log)
    for step in (0, 5):
        tracker(step, nn.Linear(2, 1))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    written = events.Scalars("rllc/w/all/llc")
    assert [event.step for event in written] == [0, 5]
    expected = [tracker.estimates[step]["w", "all"].value for step in (0, 5)]
    np.testing.assert_allclose([event.value for event in written], expected, rtol=1e-6)


def test_a_trainer_calls_the_tracker_and_trains_as_without(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    tokens = tiny_tokens(16)

    class Loss(nn.Module):
        """The model with a loss, as a Trainer wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": rllc.next_token(self.inner, input_ids).mean()}

    def of_inner(module: Loss, rows: torch.Tensor) -> torch.Tensor:
        return rllc.next_token(module.inner, rows)

    def train(callbacks: list) -> Loss:
        model = Loss()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        rows = [{"input_ids": row.long()} for row in tokens.rows]
        Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
        return model

    weights = rllc.parameters("inner.blocks.0.attn.W_Q", index=0)
    tracker = rllc.Tracker(tokens, weights, loss=of_inner, sampling=SHORT, at_steps=[0, 2, 3])
    tracked = train([tracker.callback()])
    assert tracker.trajectory.steps == (0, 2, 3)
    for one, other in zip(tracked.parameters(), train([]).parameters(), strict=True):
        assert torch.equal(one, other)
    last = rllc.estimate(
        tracked,
        tokens,
        weights,
        loss=of_inner,
        sampling=SHORT,
        compute=rllc.Compute(progress=False),
    )
    np.testing.assert_allclose(tracker.estimates[3].value, last.value, rtol=1e-5)
