"""What is set around a sampling does not enter it, and is as before afterwards."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, square, tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.engine.modes import Count, Precision

ROWS = torch.linspace(-1, 1, 24).reshape(8, 3)


def linear(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64)
            parameter.data = numbers.reshape(parameter.shape).to(dtype)
    return model


def draw(model: nn.Module, data=ROWS, loss=square, **sampling) -> rllc.Draws:
    settings = replace(SHORT, **sampling)
    return rllc.sample(model, data, loss=loss, sampling=settings, compute=QUIET)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def precision(name: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
        assert torch.get_float32_matmul_precision() == name
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def tensor_float(device_setting: str):
    """TensorFloat-32 as people turn it on; then torch's one setting for all cannot be read."""
    before = Precision.now()
    matmul = torch.backends.cuda.matmul
    setattr(matmul, device_setting, True if device_setting == "allow_tf32" else "tf32")
    chosen = Precision.now()
    try:
        yield
        assert Precision.now() == chosen
        assert matmul.fp32_precision == "tf32"
    finally:
        before.put_back()
        assert Precision.now() == before


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "products of bfloat16": lambda: precision("medium"),
    "TensorFloat-32": lambda: tensor_float("allow_tf32"),
    "TensorFloat-32 by the new name": lambda: tensor_float("fp32_precision"),
    "another device by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("kind", ["module", "attention only"])
def test_what_is_set_around_it_does_not_enter(name: str, kind: str) -> None:
    arguments: tuple = (linear(), ROWS)
    if kind == "attention only":
        arguments = (tiny_model(), tiny_tokens(), None)
    expected = draw(*arguments)
    with SURROUNDINGS[name]():
        found = draw(*arguments)
        walked = [step.loss.numpy() for step in iterate(*arguments)]
    np.testing.assert_array_equal(found.loss, expected.loss)
    np.testing.assert_array_equal(np.stack(walked, -1), expected.loss)


def iterate(model: nn.Module, data, loss=square):
    return rllc.iterate(model, data, loss=loss, sampling=SHORT, compute=QUIET)


def test_a_double_model_that_makes_tensors_of_the_default_dtype_can_be_sampled() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(torch.float64)

        def forward(self, x):
            return self.inner(x.double() @ torch.eye(3))

    expected = draw(linear(torch.float64), ROWS.double())
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            found = draw(Rotated(), ROWS.double())
        np.testing.assert_array_equal(found.baseline, expected.baseline)


def test_what_is_left_as_it_is_is_recorded() -> None:
    assert draw(linear()).settings["ambient"]["deterministic"] is False
    torch.use_deterministic_algorithms(True)
    try:
        settings = draw(linear()).settings
    finally:
        torch.use_deterministic_algorithms(False)
    threads = torch.get_num_threads()
    expected = {"threads": threads, "deterministic": True, "evaluation": "stacked"}
    assert settings["ambient"] == expected


# Random numbers that a loss draws.


def states() -> tuple:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()


def with_torch(module, x):
    return square(module, x) * (1 + torch.rand(len(x)))


def only_with_gradients(module, x):
    noise = torch.rand(len(x)) if torch.is_grad_enabled() else torch.full((len(x),), 0.5)
    return square(module, x) * (1 + noise)


def with_numpy(module, x):
    return square(module, x) * (1 + np.random.rand())  # noqa: NPY002


def with_python(module, x):
    return square(module, x) * (1 + random.random())


@pytest.mark.parametrize("loss", [with_torch, only_with_gradients, with_numpy, with_python])
def test_a_loss_that_draws_draws_the_same_whatever_was_drawn_before(loss) -> None:
    model = linear()
    expected = draw(model, loss=loss)
    for _ in range(2):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        before = states()
        found = draw(model, loss=loss)
        assert states() == before
        np.testing.assert_array_equal(found.loss, expected.loss)


def test_a_loss_that_draws_nothing_leaves_the_generators_alone(monkeypatch) -> None:
    monkeypatch.setattr("rllc.engine.modes.GlobalNumbers.put_back", lambda _: pytest.fail("put"))
    draw(linear())


def test_the_count_is_that_of_torch_and_sees_random_numbers() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = linear()
    with FlopCounterMode(display=False) as expected:
        model(ROWS)
    with Count() as count:
        model(ROWS)
    assert count.flops == expected.get_total_flops() > 0
    assert not count.draws
    with Count() as count:
        nn.Dropout(0.5)(ROWS)
    assert count.draws


# What cannot be true.


def test_chains_that_never_move_and_numbers_of_rounding_are_faults() -> None:
    def judged(lr: float) -> rllc.Estimate:
        sampler = rllc.sgld(lr=lr, localization=200.0)
        return rllc.estimate(
            linear(), ROWS, loss=square, sampler=sampler, sampling=SHORT, compute=QUIET
        )

    for lr in (1e-20, 1e-17):
        (faults,) = judged(lr).faults
        # Of rounding alone the sign is chance.
        wanted = {"does_not_move", "rounding", "negative"}
        assert {fault.kind for fault in faults} & wanted, lr
    (faults,) = judged(1e-3).faults
    assert "rounding" not in {fault.kind for fault in faults}
