"""Estimates over training: results in order, trackers that resume, tables. Sweeps are in test_track.py."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SHORT, Quadratic, loss_of_quadratic, square
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
        alone = rllc.estimate(
            model, DATA, tracker.weights, loss=square, sampling=SHORT, progress=False
        )
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
    assert (again.settings, again.steps, again.status) == (
        trajectory.settings,
        trajectory.steps,
        trajectory.status,
    )
    assert list(again.to_dataframe().columns)[:8] == [
        "step", "weights", "data", "llc", "standard_error", "rhat", "ess", "status",
    ]  # fmt: skip
    assert "2 checkpoints" in repr(again)
    assert len(again) == 2


def test_a_file_of_another_kind_is_refused(tmp_path) -> None:
    path = rllc.estimate(_linear(0), DATA, loss=square, sampling=SHORT, progress=False).save(
        tmp_path / "e.npz"
    )
    with pytest.raises(rllc.FileError, match=r"as Trajectory: it holds rllc\.Estimate"):
        rllc.Trajectory.load(path)


def test_no_such_step_names_the_nearest() -> None:
    tracker = _tracker()
    for step in (0, 100, 200, 9000):
        tracker(step, _linear(0))
    with pytest.raises(
        rllc.InputError,
        match=r"at\(120\): no such checkpoint; the nearest steps are \[0, 100, 200\]",
    ):
        tracker.trajectory.at(120)


def test_nothing_tracked_and_mixed_refinements_are_errors() -> None:
    with pytest.raises(rllc.InputError, match="at least one estimate"):
        _tracker().trajectory  # noqa: B018
    one = rllc.estimate(_linear(0), DATA, loss=square, sampling=SHORT, progress=False)
    other = rllc.estimate(
        _linear(0), DATA, rllc.parameters("bias"), loss=square, sampling=SHORT, progress=False
    )
    with pytest.raises(
        rllc.InputError,
        match=r"`weights` at step 1 are \('bias',\), but at step 0 \('everything',\)",
    ):
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
    with pytest.raises(
        rllc.InputError, match=r"made with other settings or data \(seed: 0 there, 1 here\)"
    ):
        _tracker(path=path, sampling=rllc.Sampling(num_chains=2, num_draws=5, batch_size=4, seed=1))


def test_a_tracker_refuses_a_file_of_other_weights_or_data(tmp_path) -> None:
    path = tmp_path / "t.npz"
    _tracker(path=path)(0, _linear(0))
    with pytest.raises(
        rllc.InputError,
        match=r"is of \(weights, data\) \[\('everything', 'data'\)\], but now \[\('bias'",
    ):
        _tracker(path=path, weights=rllc.parameters("bias"))(0, _linear(0))
    with pytest.raises(rllc.InputError, match="other settings or data \\(fingerprints"):
        rllc.Tracker(DATA + 1, loss=square, sampling=SHORT, path=path)


def test_a_diverged_estimate_is_kept_as_nan() -> None:
    tracker = rllc.Tracker(
        torch.zeros(4, 3), loss=loss_of_quadratic, sampler=rllc.sgld(lr=10.0), sampling=SHORT
    )
    tracker(0, Quadratic(torch.ones(3)))
    assert np.isnan(tracker.trajectory.value).all()
    assert "1 of 1 not ok" in repr(tracker.trajectory)
    assert "diverged: chain 0" in tracker.trajectory.status[0][0]


def test_diagnostics_come_along(tmp_path) -> None:
    tracker = _tracker()
    tracker(0, _linear(0)), tracker(5, _linear(1))
    trajectory = tracker.trajectory
    assert trajectory.diagnostics
    for name, values in trajectory.diagnostics.items():
        expected = [tracker.estimates[step].diagnostics[name] for step in (0, 5)]
        assert np.array_equal(values, expected, equal_nan=True)
        assert np.array_equal(trajectory.at(5).diagnostics[name], expected[1], equal_nan=True)
    again = rllc.Trajectory.load(trajectory.save(tmp_path / "t.npz"))
    assert again.diagnostics.keys() == trajectory.diagnostics.keys()
    assert again.to_dataframe().equals(trajectory.to_dataframe())


def test_what_is_missing_and_failed_is_saved_too(tmp_path) -> None:
    tracker = _tracker()
    tracker(0, _linear(0))
    key = (0, "everything", "data")
    holes = replace(tracker.trajectory, missing=(key,), failed={key: "because"})
    again = rllc.Trajectory.load(holes.save(tmp_path / "t.npz"))
    assert again.missing == (key,)
    assert again.failed == {key: "because"}
    assert "1 of 1 missing, 1 of 1 failed" in repr(again)


def test_tables_with_named_axes(tmp_path) -> None:
    xarray = pytest.importorskip("xarray")
    tracker = _tracker(weights={"all": rllc.everything(), "bias": rllc.parameters("bias")})
    tracker(0, _linear(0)), tracker(5, _linear(1))
    trajectory = tracker.trajectory
    table = trajectory.to_xarray()
    assert isinstance(table, xarray.Dataset)
    assert dict(table.sizes) == {"checkpoint": 2, "refinement": 2, "chain": 2}
    by_name = table.set_index(refinement=["weights", "data"]).unstack("refinement")
    at = by_name["llc"].sel(weights="bias", data="data").values
    assert np.array_equal(at, [trajectory.at(step)["bias"].value for step in (0, 5)])
    assert table["step"].values.tolist() == [0, 5]
    assert json.loads(table.attrs["settings"])["n_beta"] == 30.0


def test_parquet_holds_the_table(tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    tracker = _tracker()
    tracker(0, _linear(0))
    path = tracker.trajectory.to_parquet(tmp_path / "new" / "t.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(path), tracker.trajectory.to_dataframe())


def test_without_xarray_the_error_says_what_to_install(monkeypatch) -> None:
    tracker = _tracker()
    tracker(0, _linear(0))
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(rllc.InputError, match=r"pip install 'rllc\[xarray\]'"):
        tracker.trajectory.to_xarray()


def test_what_could_not_be_read_can_be_asked_for_again(monkeypatch) -> None:
    opened = object.__new__(rllc.Trajectory)
    opened.__dict__["_from"] = "store", "contents"
    answers = iter([OSError("the network"), {"value": 1.0}])

    def read(*_: object) -> dict[str, float]:
        if isinstance(answer := next(answers), OSError):
            raise answer
        return answer

    monkeypatch.setattr("rllc.trajectory._read", read)
    with pytest.raises(OSError, match="the network"):
        opened.value  # noqa: B018
    assert opened.value == 1.0


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    tracker = _tracker()
    tracker(0, _linear(0))
    with pytest.raises(AttributeError, match="has no attribute 'values'"):
        tracker.trajectory.values  # noqa: B018
