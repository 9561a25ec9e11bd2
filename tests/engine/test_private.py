"""A sampling works on modules of its own: nobody else sees the weights that it puts there."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, square
from torch import nn

import rllc
from rllc.engine.private import private_copy

ROWS = torch.linspace(-1, 1, 24).reshape(8, 3)


class Winding(nn.Module):
    """A model that reaches its parts in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.tied = self.second
        self.register_buffer("shift", torch.ones(4))
        self.made_inside = lambda x: self.second(x).tanh()
        self.bound = self.twice
        self.part = functools.partial(Winding.twice, self)
        self.listed = [self.second, {"second": self.second}]
        self.reference = weakref.ref(self.second)
        self.holder = types.SimpleNamespace(module=self.second)
        self.first.register_forward_hook(lambda module, inputs, output: output + self.shift)
        self.kept: dict[str, torch.Tensor] = {}

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.second(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.kept["x"] = self.last_x = x
        ways = [self.made_inside, self.bound, self.part, self.listed[0], self.listed[1]["second"]]
        ways += [self.reference(), self.holder.module, self.tied]
        return self.last(sum(way(x) for way in ways))


def winding() -> Winding:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Winding()


def draw(model: nn.Module, loss=square, **changes) -> rllc.Draws:
    arguments = {"loss": loss, "sampling": SHORT, "compute": QUIET}
    return rllc.sample(model, ROWS, **arguments | changes)


def test_weights_that_are_put_into_a_copy_are_seen_in_every_way_and_nowhere_else() -> None:
    model, other = winding(), winding()
    moved = {name: p.detach() + 0.3 for name, p in model.named_parameters()}
    with torch.no_grad():
        before = model(ROWS)
        for name, parameter in other.named_parameters():
            parameter.copy_(moved[name])
        copied = private_copy(model)
        seen: list[torch.Tensor] = []

        def watch(module, inputs):
            seen.append(model(ROWS))

        copied.last.register_forward_pre_hook(watch)
        assert torch.equal(torch.func.functional_call(copied, moved, (ROWS,)), other(ROWS))
    assert torch.equal(seen[0], before)
    assert copied.first.weight is model.first.weight


def test_what_a_model_keeps_of_its_forward_passes_is_as_it_was() -> None:
    model = winding()
    draw(model)
    assert model.kept == {}
    assert not hasattr(model, "last_x")
    assert model.training


def test_a_loss_that_also_evaluates_the_model_sees_its_weights_as_they_are() -> None:
    model = winding()
    with torch.no_grad():
        constant = model(ROWS)

    def against_the_model(module, x):
        return (module(x) - model(x).detach())[:, 0] ** 2

    def against_a_constant(module, x):
        with torch.no_grad():
            rows = (x[:, None] == ROWS[None]).all(-1).long().argmax(1)
        return (module(x) - constant[rows])[:, 0] ** 2

    found = draw(model, against_the_model)
    expected = draw(model, against_a_constant)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4, atol=1e-6)
    assert found.loss.min() > 0


def test_a_loss_that_is_a_module_and_holds_the_model_sees_it_as_it_is() -> None:
    class Against(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, module, x):
            return (module(x) - self.model(x).detach())[:, 0] ** 2

    model = nn.Linear(3, 1)
    assert draw(model, Against(model)).loss.min() > 0


def test_a_model_that_is_distilled_from_itself_has_its_entropy_as_baseline() -> None:
    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 5)

        def forward(self, tokens):
            return self.table(tokens)

    model, rows = Predictor(), torch.arange(24).reshape(8, 3) % 5
    of_itself = rllc.losses.distillation(model)
    of_another = Predictor()
    of_another.load_state_dict(model.state_dict())
    draws = []
    for loss in (of_itself, rllc.losses.distillation(of_another)):
        draws.append(rllc.sample(model, rows, loss=loss, sampling=SHORT, compute=QUIET))
    assert np.array_equal(draws[0].loss, draws[1].loss)


def threads(work, count: int) -> None:
    running = [threading.Thread(target=work) for _ in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


@pytest.mark.parametrize(
    ("count", "stacked"), [(2, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_threads_on_one_model_leave_it_and_one_another_alone(
    count: int, stacked: bool, monkeypatch
) -> None:
    if not stacked:
        monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 0.0)
    model = winding()
    few = {"sampling": replace(SHORT, num_draws=2, num_probes=0)}
    names = {name: id(parameter) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        before, expected = model(ROWS), draw(model, **few).loss
    found: list[np.ndarray] = []
    evaluations: list[bool] = []
    done = threading.Event()

    def evaluate() -> None:
        with torch.no_grad():
            while not done.is_set():
                evaluations.append(torch.equal(model(ROWS), before))
                done.wait(1e-3)  # let the others have the interpreter

    third = threading.Thread(target=evaluate)
    third.start()
    for _ in range(20 // count):
        threads(lambda: found.append(draw(model, **few).loss), count)
    done.set()
    third.join()
    assert len(found) == 20 // count * count
    assert all(np.array_equal(loss, expected) for loss in found)
    assert evaluations
    assert all(evaluations)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == names


def test_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(rllc.InputError, match=r"its part '0' is compiled by torch\.jit"):
        private_copy(nn.Sequential(torch.jit.trace(nn.Linear(3, 1), ROWS)))
    namespace: dict[str, object] = {}
    exec("def patched(x):\n    return model.inner(x)", namespace)
    model = nn.Module()
    model.inner = nn.Linear(3, 1)
    model.forward = namespace["model"] = namespace["patched"]
    namespace["model"] = model
    with pytest.raises(rllc.InputError, match="finds the model as the global 'model'"):
        private_copy(model)


@pytest.mark.slow
def test_a_compiled_model_is_sampled_as_what_it_was_made_of() -> None:
    model = nn.Linear(3, 1)
    weights = {"all": rllc.everything()}
    compiled = draw(torch.compile(model), weights=weights)
    assert np.array_equal(compiled.baseline, draw(model, weights=weights).baseline)


def test_weights_made_in_inference_mode_can_be_sampled() -> None:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        made_there = nn.Linear(3, 1)
        inside = draw(made_there).loss
    model = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), made_there.parameters(), strict=True):
            parameter.copy_(other)
    assert np.array_equal(draw(model).loss, inside)
