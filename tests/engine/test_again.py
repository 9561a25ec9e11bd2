"""A model or loss that gives another number when it is asked again is refused, with the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import QUIET
from torch import Tensor, nn

import rllc

SHORT = rllc.Sampling(num_chains=2, num_draws=40, batch_size=4, num_probes=0)
ROWS = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
DRIFT = 1e-4
"""So small that a run at w* passes for equal to its baseline."""


class Kept(nn.Module):
    """A linear map whose output depends on what it keeps between calls."""

    def __init__(self, keep: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.keep, self.calls, self.past = keep, 0, torch.zeros(1)
        self.log: list[int] = []
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.constant_(self.linear.bias, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.keep(self, self.linear(x))


def counts(m: Any, y: Tensor) -> Tensor:
    m.calls += 1
    return y + DRIFT * m.calls / 8


def averages(m: Any, y: Tensor) -> Tensor:
    m.past = 0.99 * m.past + 0.1 * DRIFT * y.detach().mean()
    return y + m.past


def writes_down(m: Any, y: Tensor) -> Tensor:
    m.log.append(1)
    return y + DRIFT * len(m.log) / 8


def waits(m: Any, y: Tensor) -> Tensor:
    """It is as it was for a while, and then counts."""
    m.calls += 1
    return y + DRIFT * max(m.calls - 40, 0)


def square(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[:, 0] ** 2


def counting_loss() -> Callable[[nn.Module, Tensor], Tensor]:
    calls = 0

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return square(module, x) + DRIFT * calls / 8

    return loss


def drawing_loss() -> Callable[[nn.Module, Tensor], Tensor]:
    stream = torch.Generator().manual_seed(1)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return square(module, x) + DRIFT * torch.randn(len(x), generator=stream)

    return loss


CASES: dict[str, tuple[Any, Any, str]] = {
    "a counter": (counts, square, "Each evaluation changes Kept.calls of 'the model'"),
    "a running mean": (averages, square, "changes Kept.past of 'the model'"),
    "a list": (writes_down, square, "changes Kept.log of 'the model'"),
    "a counter of the loss": (None, counting_loss(), "changes the variable 'calls' of the loss"),
    "a generator": (None, drawing_loss(), "random numbers of a generator of their own"),
    "a counter that waits": (waits, square, "changes Kept.calls"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("flops", [0.0, 1e12])
def test_what_changes_from_call_to_call_is_refused(
    case: str, flops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by run, and stacked."""
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", flops)
    keep, loss, cause = CASES[case]
    model = Kept(keep or (lambda m, y: y))
    with pytest.raises(rllc.InputError) as caught:
        rllc.sample(model, ROWS, loss=loss, sampling=SHORT, compute=QUIET)
    assert "not the same when it is evaluated again on the same minibatch" in str(caught.value)
    assert cause in str(caught.value)


def test_nothing_is_kept_of_runs_that_are_stacked() -> None:
    """Torch raises where a tensor of many runs is used after the call."""

    def remembers(m: Any, y: Tensor) -> Tensor:
        m.past = 0.99 * m.past + 1e-9 * y.detach().mean()
        m.log = [*m.log[-3:], y.detach()]
        m.kept["newest"] = y.detach()
        return y + m.past + 1e-9 * m.kept["newest"]

    model = Kept(remembers)
    model.kept = {}
    draws = rllc.sample(model, ROWS, loss=square, sampling=SHORT, compute=QUIET)
    assert draws.settings["ambient"]["evaluation"] == "stacked"
    assert abs(draws.loss - draws.baseline).min() > 0


def test_what_is_kept_and_changes_nothing_is_no_reason_to_refuse() -> None:
    def notes(m: Any, y: Tensor) -> Tensor:
        m.calls += 1
        m.past = y.detach()
        return y

    found = []
    for keep in (notes, lambda m, y: y):
        draws = rllc.sample(Kept(keep), ROWS, loss=square, sampling=SHORT, compute=QUIET)
        found.append(draws.loss)
    assert (found[0] == found[1]).all()
