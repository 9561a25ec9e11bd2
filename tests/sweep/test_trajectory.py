"""Estimates over training: in order of step, arrays and names only, files and tables."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from tiny import SHORT, Quadratic, loss_of_quadratic, square
from torch import nn

import rllc
from rllc.tables import with_error
from rllc.weights.names import Names

DATA = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
TWO = {"all": rllc.everything(), "bias": rllc.parameters("bias")}
ARRAYS = ("value", "standard_error", "rhat", "ess", "per_chain")


def linear(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 1)


def estimate(model: nn.Module, weights=None, **options) -> rllc.Estimate:
    quiet = rllc.Compute(progress=False)
    arguments = {"data": DATA, "loss": square, "sampling": SHORT, "compute": quiet} | options
    return rllc.Estimate.of(rllc.sample(model, weights=weights, **arguments))


@pytest.fixture(scope="module")
def estimates() -> dict[int, rllc.Estimate]:
    return {step: estimate(linear(step), TWO) for step in (20, 0, 10)}


@pytest.fixture(scope="module")
def trajectory(estimates) -> rllc.Trajectory:
    return rllc.Trajectory.of(estimates)


def test_a_trajectory_is_the_estimates_in_order_of_step(estimates, trajectory) -> None:
    assert trajectory.steps == (0, 10, 20)
    assert trajectory.names == Names(("all", "bias"), ("data", "data"))
    assert (trajectory.weights, trajectory.data) == (("all", "bias"), ("data", "data"))
    for step, expected in estimates.items():
        at_step = trajectory.at(step)
        for name in ARRAYS:
            assert np.array_equal(getattr(at_step, name), getattr(expected, name))
        assert at_step.status == expected.status
    assert trajectory.value.shape == (3, 2)
    assert trajectory.per_chain.shape == (3, 2, SHORT.num_chains)


def test_curves_by_name(estimates) -> None:
    on_two = {"code": DATA, "prose": DATA.flip(0)}
    curves = rllc.Trajectory.of({step: estimate(linear(step), TWO, data=on_two) for step in (0, 5)})
    one = curves["bias", "prose"]
    assert one.names == Names(("bias",), ("prose",))
    assert one.steps == curves.steps
    for name in ARRAYS:
        column = list(curves.names).index(("bias", "prose"))
        assert np.array_equal(getattr(one, name), getattr(curves, name)[:, [column]])
    for step in curves.steps:
        assert one.at(step) == curves.at(step).select("bias", "prose")
    assert curves["bias"].data == ("code", "prose")
    assert curves["b*"] == curves["bias"] == curves.select(["bias"])
    assert curves.select(data="code").weights == ("all", "bias")
    assert curves.take([3, 0]).names == Names(("bias", "all"), ("prose", "code"))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"trajectory\[0\]: expected a name, .* a checkpoint is trajectory.at\(step\)"),
        (("bias", "data", "x"), "expected a name, or"),
        (("bias", 3), "expected a name, or"),
        ("bais", "no such weights; did you mean 'bias'"),
        (("bias", "prose"), "no such data"),
    ],
)
def test_curves_that_are_not_there(trajectory, key: object, message: str) -> None:
    with pytest.raises(rllc.errors.InputError, match=message):
        trajectory[key]


def test_a_trajectory_is_not_counted_through(trajectory) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        iter(trajectory)


def test_it_is_arrays_and_names_and_nothing_else(trajectory) -> None:
    fields = {field.name for field in dataclasses.fields(rllc.Trajectory)}
    assert set(vars(trajectory)) == fields
    with pytest.raises(AttributeError, match="has no attribute 'values'"):
        trajectory.values  # noqa: B018


def test_round_trip_through_a_file(trajectory, tmp_path) -> None:
    again = rllc.Trajectory.load(trajectory.save(tmp_path / "t.npz"))
    whole = [one.to_dataframe(diagnostics=True) for one in (again, trajectory)]
    assert whole[0].equals(whole[1])
    for name in ("settings", "steps", "status", "names"):
        assert getattr(again, name) == getattr(trajectory, name)
    first_columns = ["step", "weights", "data", "llc", "standard_error", "rhat", "ess", "status"]
    assert list(again.to_dataframe().columns) == first_columns
    assert "3 checkpoints, steps 0…20, 2 weights × 1 data" in repr(again)
    assert len(again) == 3


def test_a_file_of_another_kind_is_refused(estimates, tmp_path) -> None:
    path = estimates[0].save(tmp_path / "e.npz")
    with pytest.raises(rllc.FileError, match=r"as Trajectory: it holds rllc\.Estimate"):
        rllc.Trajectory.load(path)


def test_no_such_step_names_the_nearest(estimates) -> None:
    trajectory = rllc.Trajectory.of(dict.fromkeys((0, 100, 200, 9000), estimates[0]))
    message = r"at\(120\): no such checkpoint; the nearest steps are \[0, 100, 200\]"
    with pytest.raises(rllc.InputError, match=message):
        trajectory.at(120)


def test_nothing_and_mixed_refinements_are_errors(estimates) -> None:
    with pytest.raises(rllc.InputError, match="at least one estimate"):
        rllc.Trajectory.of({})
    other = estimate(linear(0), rllc.parameters("bias"))
    message = r"`weights` at step 1 are \('bias',\), but at step 0 \('all', 'bias'\)"
    with pytest.raises(rllc.InputError, match=message):
        rllc.Trajectory.of({0: estimates[0], 1: other})


def test_a_diverged_estimate_is_kept_as_nan() -> None:
    diverging = {"loss": loss_of_quadratic, "sampler": rllc.sgld(lr=10.0)}
    broken = estimate(Quadratic(torch.ones(3)), data=torch.zeros(4, 3), **diverging)
    trajectory = rllc.Trajectory.of({0: broken})
    assert np.isnan(trajectory.value).all()
    assert "1 of 1 not ok" in repr(trajectory)
    assert "diverged: chain 0" in trajectory.status[0][0]


def test_diagnostics_come_along(estimates, trajectory, tmp_path) -> None:
    assert trajectory.diagnostics
    for name, values in trajectory.diagnostics.items():
        expected = [estimates[step].diagnostics[name] for step in trajectory.steps]
        assert np.array_equal(values, expected, equal_nan=True)
        at_10 = trajectory.at(10).diagnostics[name]
        assert np.array_equal(at_10, expected[1], equal_nan=True)
    again = rllc.Trajectory.load(trajectory.save(tmp_path / "t.npz"))
    assert again.diagnostics.keys() == trajectory.diagnostics.keys()


# Tables.


def test_a_printed_trajectory_shows_some_checkpoints(estimates) -> None:
    steps = (0, 1, 2, 4, 8, 16, 32, 64, 128)
    trajectory = rllc.Trajectory.of(dict.fromkeys(steps, estimates[0]))
    title, header, *rows = str(trajectory).splitlines()
    assert title == repr(trajectory)
    assert re.findall(r"step (\d+)", header) == ["0", "2", "8", "32", "128"]
    llc = estimates[0]["bias"]
    assert rows[1].count(with_error(llc.value, llc.standard_error)) == 5
    assert rows[1].endswith(f"{9 * bool(llc.faults)} of 9")


def test_tables_with_named_axes(trajectory) -> None:
    xarray = pytest.importorskip("xarray")
    table = trajectory.to_xarray()
    assert isinstance(table, xarray.Dataset)
    assert dict(table.sizes) == {"checkpoint": 3, "refinement": 2, "chain": 2}
    by_name = table.set_index(refinement=["weights", "data"]).unstack("refinement")
    of_bias = by_name["llc"].sel(weights="bias", data="data").values
    expected = [trajectory.at(step)["bias"].value for step in trajectory.steps]
    assert np.array_equal(of_bias, expected)
    assert table["step"].values.tolist() == [0, 10, 20]
    assert json.loads(table.attrs["settings"])["n_beta"] == 30.0


def test_parquet_holds_the_table(trajectory, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    path = trajectory.to_parquet(tmp_path / "new" / "t.parquet")
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(path), trajectory.to_dataframe(diagnostics=True)
    )


def test_without_xarray_the_error_says_what_to_install(trajectory, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(rllc.InputError, match=r"pip install 'rllc\[xarray\]'"):
        trajectory.to_xarray()


def test_intervals_are_those_of_the_estimates(trajectory) -> None:
    for row, step in enumerate(trajectory.steps):
        expected = trajectory.at(step).interval(0.9)
        assert trajectory.interval(0.9)[row] == pytest.approx(expected)
    together = trajectory.mean.half_width(simultaneous=True)
    each = trajectory.mean.half_width(0.95 ** (1 / 6))
    assert together == pytest.approx(each)


def test_a_difference_of_checkpoints_adds_their_errors_in_squares(estimates, trajectory) -> None:
    late, early = estimates[20], estimates[0]
    difference = trajectory.difference(20, 0)
    assert difference.value == pytest.approx(late.value - early.value)
    error = np.hypot(late.standard_error, early.standard_error)
    assert difference.standard_error == pytest.approx(error)
    assert (difference.dof >= np.minimum(late.dof, early.dof)).all()
    assert (difference.dof <= late.dof + early.dof).all()


def test_a_contrast_of_checkpoints_is_their_weighted_sum(estimates, trajectory) -> None:
    weights = {20: 1.0, 0: -0.5, 10: -0.5}
    contrast = trajectory.contrast(weights)
    value = sum(weight * estimates[step].value for step, weight in weights.items())
    errors = [weight * estimates[step].standard_error for step, weight in weights.items()]
    assert contrast.value == pytest.approx(value)
    assert contrast.standard_error == pytest.approx(np.linalg.norm(errors, axis=0))


def test_contrasts_that_cannot_be(trajectory) -> None:
    with pytest.raises(rllc.InputError, match="two different checkpoints"):
        trajectory.difference(10, 10)
    with pytest.raises(rllc.InputError, match=r"no such checkpoint; .* \[0, 10, 20\]"):
        trajectory.difference(10, 11)
    with pytest.raises(rllc.InputError, match="weights by step, got none"):
        trajectory.contrast({})
