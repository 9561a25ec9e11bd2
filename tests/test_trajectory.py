"""Estimates over training: results in order, trackers that resume, sweeps over checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SHORT, Quadratic, loss_of_quadratic, square, tiny_model, tiny_tokens
from torch import nn

import rllc

DATA = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


def _tracker(**changes: object) -> rllc.Tracker:
    return rllc.Tracker(DATA, **{"loss": square, "sampling": SHORT} | changes)


def _linear(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 1)


def test_a_trajectory_is_the_estimates_in_order_of_step() -> None:
    models = {step: _linear(step) for step in (20, 0, 10)}
    tracker = _tracker(weights={"all": rllc.everything(), "bias": rllc.parameters("bias")})
    for step, model in models.items():
        tracker(step, model)
    trajectory = tracker.trajectory
    assert trajectory.steps == (0, 10, 20)
    for step, model in models.items():
        alone = rllc.estimate(model, DATA, tracker.weights, loss=square, sampling=SHORT, progress=False)
        for name in ("value", "standard_error", "rhat", "ess", "per_chain"):
            assert np.array_equal(getattr(trajectory.at(step), name), getattr(alone, name))
    assert trajectory.value.shape == (3, 2)
    assert trajectory.per_chain.shape == (3, 2, SHORT.num_chains)


def test_round_trip_through_a_file(tmp_path) -> None:
    tracker = _tracker()
    tracker(0, _linear(0)), tracker(5, _linear(1))
    trajectory = tracker.trajectory
    again = rllc.Trajectory.load(trajectory.save(tmp_path / "t.npz"))
    assert again.to_dataframe().equals(trajectory.to_dataframe())
    assert (again.settings, again.steps, again.status) == (trajectory.settings, trajectory.steps, trajectory.status)
    assert list(again.to_dataframe().columns) == [
        "step", "weights", "data", "llc", "standard_error", "rhat", "ess", "status",
    ]  # fmt: skip
    assert "2 checkpoints" in repr(again)
    assert len(again) == 2


def test_a_file_of_another_kind_is_refused(tmp_path) -> None:
    path = rllc.estimate(_linear(0), DATA, loss=square, sampling=SHORT, progress=False).save(tmp_path / "e.npz")
    with pytest.raises(rllc.FileError, match=r"as Trajectory: it holds rllc\.Estimate"):
        rllc.Trajectory.load(path)


def test_no_such_step_names_the_nearest() -> None:
    tracker = _tracker()
    for step in (0, 100, 200, 9000):
        tracker(step, _linear(0))
    with pytest.raises(rllc.InputError, match=r"at\(120\): no such checkpoint; the nearest steps are \[0, 100, 200\]"):
        tracker.trajectory.at(120)


def test_nothing_tracked_and_mixed_refinements_are_errors() -> None:
    with pytest.raises(rllc.InputError, match="at least one estimate"):
        _tracker().trajectory  # noqa: B018
    one = rllc.estimate(_linear(0), DATA, loss=square, sampling=SHORT, progress=False)
    other = rllc.estimate(_linear(0), DATA, rllc.parameters("bias"), loss=square, sampling=SHORT, progress=False)
    with pytest.raises(rllc.InputError, match=r"`weights` at step 1 are \('bias',\), but at step 0 \('everything',\)"):
        rllc.Trajectory.of({0: one, 1: other})


def test_a_tracker_keeps_to_its_steps_and_does_not_disturb_training() -> None:
    def train(tracker: rllc.Tracker | None) -> tuple[torch.Tensor, rllc.Tracker | None]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            square(model, DATA).mean().backward()
            if tracker is not None:
                tracker(step, model)  # between backward and step: gradients must stay
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()]), tracker

    tracked, tracker = train(_tracker(at_steps=[1, 3]))
    assert tracker.trajectory.steps == (1, 3)
    assert torch.equal(tracked, train(None)[0])


def test_a_tracker_takes_up_its_file_and_does_not_estimate_again(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run" / "t.npz"
    first = _tracker(path=path)
    first(0, _linear(0))
    second = _tracker(path=path)
    monkeypatch.setattr("rllc.trajectory.estimate", lambda *a, **k: pytest.fail("estimated again"))
    assert second(0, _linear(0)).value == first(0, _linear(0)).value
    with pytest.raises(rllc.InputError, match=r"made with other settings or data \(seed: 0 there, 1 here\)"):
        _tracker(path=path, sampling=rllc.Sampling(num_chains=2, num_draws=5, batch_size=4, seed=1))


def test_a_tracker_refuses_a_file_of_other_weights_or_data(tmp_path) -> None:
    path = tmp_path / "t.npz"
    _tracker(path=path)(0, _linear(0))
    with pytest.raises(
        rllc.InputError, match=r"is of \(weights, data\) \[\('everything', 'data'\)\], but now \[\('bias'"
    ):
        _tracker(path=path, weights=rllc.parameters("bias"))(0, _linear(0))
    with pytest.raises(rllc.InputError, match="other settings or data \\(fingerprints"):
        rllc.Tracker(DATA + 1, loss=square, sampling=SHORT, path=path)


def test_track_refuses_a_file_of_other_weights_even_when_all_is_there(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "step0000000")
    settings = {"data": tiny_tokens(), "sampling": SHORT, "progress": False, "path": tmp_path / "t.npz"}
    rllc.track(tmp_path, weights="0:1", **settings)
    with pytest.raises(rllc.InputError, match="but now"):
        rllc.track(tmp_path, weights="1:2", **settings)


def test_a_diverged_estimate_is_kept_as_nan() -> None:
    tracker = rllc.Tracker(torch.zeros(4, 3), loss=loss_of_quadratic, sampler=rllc.sgld(lr=10.0), sampling=SHORT)
    tracker(0, Quadratic(torch.ones(3)))
    assert np.isnan(tracker.trajectory.value).all()
    assert "1 of 1 not ok" in repr(tracker.trajectory)
    assert "diverged: chain 0" in tracker.trajectory.status[0][0]


def test_track_is_a_loop_over_checkpoints(tmp_path) -> None:
    models = {step: tiny_model(step) for step in (0, 100, 50)}
    for step, model in models.items():
        model.save_pretrained(tmp_path / "run" / f"step{step:07d}")
    data = {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}
    trajectory = rllc.track(tmp_path / "run", data, rllc.heads, sampling=SHORT, progress=False)
    assert trajectory.steps == (0, 50, 100)
    assert len(trajectory.weights) == 2 * 6
    for step, model in models.items():
        alone = rllc.estimate(model, data, rllc.heads(model), sampling=SHORT, progress=False)
        assert np.array_equal(trajectory.at(step).value, alone.value)


def test_track_goes_on_from_its_file(tmp_path) -> None:
    for step in (0, 1, 2):
        tiny_model(step).save_pretrained(tmp_path / f"step{step:07d}")
    found = rllc.checkpoints(tmp_path)
    settings = {"data": tiny_tokens(), "weights": "1:2", "sampling": SHORT, "progress": False}
    whole = rllc.track(tmp_path, **settings)
    rllc.track(found[:2], **settings, path=tmp_path / "t.npz")
    for checkpoint in found[:2]:  # what is in the file needs no checkpoint any more
        (tmp_path / f"step{checkpoint.step:07d}" / "model.safetensors").unlink()
    resumed = rllc.track(found, **settings, path=tmp_path / "t.npz")
    assert np.array_equal(resumed.value, whole.value)


def test_track_without_checkpoints_is_an_error() -> None:
    with pytest.raises(rllc.InputError, match="expected at least one checkpoint, got none"):
        rllc.track([], tiny_tokens(), progress=False)
