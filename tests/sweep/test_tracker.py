"""Estimates inside a training loop, which goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_trajectory import ARRAYS, DATA, TWO, estimate, linear
from tiny import SHORT, square
from torch import nn

import rllc


def make_tracker(**changes: object) -> rllc.Tracker:
    return rllc.Tracker(DATA, **{"loss": square, "sampling": SHORT} | changes)


def test_it_gives_the_estimates_of_its_steps() -> None:
    tracker = make_tracker(weights=TWO)
    assert repr(tracker) == "Tracker(no estimates yet)"
    for step in (20, 0):
        returned = tracker(step, linear(step))
        expected = estimate(linear(step), TWO)
        for name in ARRAYS:
            assert np.array_equal(getattr(returned, name), getattr(expected, name))
            in_trajectory = getattr(tracker.trajectory.at(step), name)
            assert np.array_equal(in_trajectory, getattr(expected, name))
    assert tracker.trajectory.steps == (0, 20)
    assert "2 checkpoints" in repr(tracker)


def test_before_the_first_estimate_there_is_no_trajectory() -> None:
    with pytest.raises(rllc.InputError, match="at least one estimate"):
        make_tracker().trajectory  # noqa: B018


def test_it_keeps_to_its_steps_and_does_not_disturb_training() -> None:
    def train(tracker: rllc.Tracker | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            square(model, DATA).mean().backward()
            if tracker is not None:
                tracker(step, model)  # between backward and step: gradients must stay
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    tracker = make_tracker(at_steps=[1, 3])
    assert torch.equal(train(tracker), train(None))
    assert tracker.trajectory.steps == (1, 3)


def test_it_takes_up_its_file_and_does_not_estimate_again(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run" / "t.npz"
    expected = make_tracker(path=path)(0, linear(0))
    resumed = make_tracker(path=path)
    monkeypatch.setattr(
        "rllc.sweep.tracker.estimate", lambda *a, **k: pytest.fail("estimated again")
    )
    assert resumed(0, linear(0)).value == expected.value
    message = r"made with other settings or data \(seed: 0 there, 1 here\)"
    with pytest.raises(rllc.InputError, match=message):
        make_tracker(path=path, sampling=replace(SHORT, seed=1))


def test_weights_are_added_to_its_file(tmp_path) -> None:
    """At steps that are called again the new ones alone are estimated; at others, none."""
    path = tmp_path / "t.npz"
    first = make_tracker(path=path, weights=rllc.parameters("bias"))
    for step in (0, 1):
        first(step, linear(step))
    more = make_tracker(path=path, weights=[rllc.parameters("weight"), rllc.parameters("bias")])
    for step in (1, 2):
        returned = more(step, linear(step))
        for name in ("weight", "bias"):
            expected = estimate(linear(step), rllc.parameters(name))
            assert returned[name].value == pytest.approx(expected[name].value, rel=1e-5)
    for trajectory in (more.trajectory, rllc.Trajectory.load(path)):
        assert trajectory.steps == (0, 1, 2)
        assert trajectory.weights == ("weight", "bias")
        assert np.isnan(trajectory.value).tolist() == [[True, False], [False] * 2, [False] * 2]
        assert trajectory.status[0][0] == "missing"
    assert more.trajectory.at(0)["bias"].value == first.estimates[0]["bias"].value
    again = make_tracker(path=path, weights=[rllc.parameters("weight"), rllc.parameters("bias")])
    expected = estimate(linear(0), rllc.parameters("weight"))
    assert again(0, linear(0))["weight"].value == pytest.approx(expected["weight"].value, rel=1e-5)


def test_it_refuses_a_file_of_other_weights_or_data(tmp_path) -> None:
    path = tmp_path / "t.npz"
    make_tracker(path=path)(0, linear(0))
    bias = make_tracker(path=path, weights=rllc.parameters("bias"))
    message = r"is of \(weights, data\) \[\('everything', 'data'\)\], but now \[\('bias'"
    with pytest.raises(rllc.InputError, match=message):
        bias(0, linear(0))
    with pytest.raises(rllc.InputError, match=r"other settings or data \(fingerprints"):
        rllc.Tracker(DATA + 1, loss=square, sampling=SHORT, path=path)
