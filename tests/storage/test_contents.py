"""What a value holds, as a hash: equal for equal contents, another for any that differs."""

from __future__ import annotations

import functools
import io
import pickle
import random
import threading
import types
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import nn

import rllc
from rllc.storage.contents import digest

FACTOR = 2.0
Pair = namedtuple("Pair", "one other")


def of(value: object) -> str:
    return digest(value, "value")


def scaled(factor: float):
    return lambda module, x: factor * module(x)[:, 0] ** 2


def with_default(factor: float):
    def loss(module, x, scale=factor):
        return scale * module(x)[:, 0] ** 2

    return loss


def keyword(module, x, *, factor: float = 1.0):
    return factor * module(x)[:, 0]


def uses_a_global(module, x):
    return FACTOR * module(x)[:, 0]


@dataclass(frozen=True)
class Margin:
    margin: float

    def __call__(self, module, x):
        return (module(x)[:, 0] - self.margin).relu()


class Scale(nn.Module):
    def __init__(self, eps: float, function=torch.relu) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.zeros(3), persistent=False)
        self.eps = eps
        self.function = function

    def forward(self, x):
        return self.function(x * self.weight + self.shift + self.eps)


def changed(model: nn.Module, change) -> nn.Module:
    change(model)
    return model


ALIKE_AND_OTHER = {
    "numbers": (1.5, 1.5, 2.5),
    "kinds of numbers": (1, 1, True),
    "texts that run together": (["ab", "c"], ["ab", "c"], ["a", "bc"]),
    "named tuples": (Pair(1, 2), Pair(1, 2), (1, 2)),
    "sets": ({"a", "b", "c"}, {"c", "b", "a"}, {"a", "b"}),
    "tensors": (torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.float64)),
    "shapes": (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 2)),
    "arrays": (np.arange(3), np.arange(3), np.arange(3.0)),
    "closures": (scaled(1.0), scaled(1.0), scaled(2.0)),
    "lambdas of one place": (lambda m, x: m(x), lambda m, x: m(x), lambda m, x: m(x) + 1),
    "defaults": (with_default(1.0), with_default(1.0), with_default(2.0)),
    "partials": (
        functools.partial(keyword, factor=2.0),
        functools.partial(keyword, factor=2.0),
        functools.partial(keyword, factor=3.0),
    ),
    "instances": (Margin(1.0), Margin(1.0), Margin(2.0)),
    "bound methods": (Margin(1.0).__call__, Margin(1.0).__call__, Margin(2.0).__call__),
    "samplers": (rllc.sgld(), rllc.sgld(), rllc.sgld(lr=2e-3)),
    "weights": (tiny_model(0), tiny_model(0), tiny_model(1)),
    "configurations": (
        tiny_model(0),
        tiny_model(0),
        changed(tiny_model(0), lambda model: setattr(model.config, "layer_norm_eps", 1e-3)),
    ),
    "attributes of a model": (Scale(0.1), Scale(0.1), Scale(0.2)),
    "functions of a model": (Scale(0.1), Scale(0.1), Scale(0.1, torch.tanh)),
    "buffers": (Scale(0.1), Scale(0.1), changed(Scale(0.1), lambda s: s.shift.add_(1))),
    "hooks": (
        Scale(0.1),
        Scale(0.1),
        changed(Scale(0.1), lambda s: s.register_forward_hook(lambda m, i, o: 2 * o)),
    ),
    "mode and gradients are no contents": (
        Scale(0.1),
        changed(Scale(0.1).eval(), lambda s: s.weight.requires_grad_(False)),
        Scale(0.3),
    ),
}


@pytest.mark.parametrize("name", ALIKE_AND_OTHER)
def test_it_is_the_same_for_equal_contents_and_only_for_these(name: str) -> None:
    one, alike, other = ALIKE_AND_OTHER[name]
    assert of(one) == of(alike)
    assert of(one) != of(other)


def test_a_global_that_a_function_uses_is_part_of_it(monkeypatch) -> None:
    before = of(uses_a_global)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert of(uses_a_global) != before


def test_a_function_that_a_function_calls_is_part_of_it(monkeypatch) -> None:
    helpers = types.ModuleType("helpers_of_mine")
    helpers.square = lambda x: x**2
    namespace = {"helpers": helpers, "__name__": "mine"}
    exec("def loss(module, x):\n    return helpers.square(module(x))[:, 0]", namespace)
    loss = namespace["loss"]
    before = of(loss)
    helpers.unused = 1
    assert of(loss) == before
    helpers.square = lambda x: x**3
    assert of(loss) != before


def test_what_holds_itself_ends() -> None:
    one: list[object] = [1]
    one.append(one)
    other: list[object] = [2]
    other.append(other)
    assert of(one) != of(other)


def test_it_is_the_same_after_a_journey_to_another_process() -> None:
    for value in (Margin(1.0), functools.partial(keyword, factor=2.0), tiny_model(0), rllc.sgld()):
        before = of(value)
        assert of(pickle.loads(pickle.dumps(value))) == before
        assert of(value) == before


UNKNOWN = [
    threading.Lock(),
    torch.Generator(),
    random.Random(0),
    io.StringIO(),
    iter([1]),
    torch.eye(2).to_sparse(),
    torch.empty(2, device="meta"),
]


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
def test_what_cannot_be_looked_into_is_refused_by_its_place(value) -> None:
    def loss(module, x):
        return module(x), value

    message = r"^loss, 'value' in its closure: .*rllc\.losses\.named\(loss, 'my loss, version 2'\)"
    with pytest.raises(rllc.InputError, match=message):
        digest(loss, "loss")


def test_a_loss_that_is_named_is_what_its_name_says() -> None:
    from rllc.storage.identity import of_loss

    names = [
        of_loss(rllc.losses.named(scaled(f), name)) for f, name in ((1, "a"), (2, "a"), (1, "b"))
    ]
    assert names[0] == names[1] != names[2]
    assert of_loss(None) == of_loss(rllc.next_token)
    with pytest.raises(rllc.InputError, match="`name` must say what the loss is"):
        rllc.losses.named(scaled(1), "")
    with pytest.raises(rllc.InputError, match="expected a loss to call, got int"):
        rllc.losses.named(3, "three")
