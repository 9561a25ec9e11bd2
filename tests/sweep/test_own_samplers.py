"""A sampler of one's own, with or without a law, survives a sweep, a resume and other processes."""

from __future__ import annotations

import numpy as np
import pytest
from own_samplers import lazy, renamed
from small_sweeps import DATA, estimate_alone, quick, same
from test_pools import Weighing

import rllc
from rllc.sweep.store import Store


def settings_of(sampler) -> tuple[rllc.samplers.Sampler, dict[str, object]]:
    """The samplers that see all rows need batches of all rows."""
    if callable(sampler):
        return sampler(lr=1e-4), {"batch_size": len(DATA["a"])}
    return sampler, {}


@pytest.mark.parametrize(
    "sampler",
    [
        lazy(),
        pytest.param(renamed(), marks=pytest.mark.slow),
        pytest.param(lazy(name="sgld"), marks=pytest.mark.slow),
        pytest.param(rllc.samplers.hmc, marks=pytest.mark.slow),
        rllc.samplers.mala,
    ],
    ids=range(5),
)
def test_it_survives_a_sweep_and_a_resume(run, tmp_path, drawn, sampler) -> None:
    sampler, sampling = settings_of(sampler)
    first = rllc.checkpoints(run)[:1]

    def track(num_draws: int, store=None, executor=None) -> rllc.Trajectory:
        settings = quick(executor, num_draws=num_draws, **sampling)
        return rllc.track(first, DATA["a"], "0:1", sampler=sampler, store=store, **settings)

    track(4, tmp_path)
    with Weighing() as executor:
        more = track(9, tmp_path, executor)
    assert drawn == [(0, 4), (4, 9)]
    assert same(more, track(9))
    assert np.isfinite(more.value).all()
    assert more.settings["sampler"] == sampler.name


def test_it_is_what_is_sampled_and_not_another_of_its_name(run, tmp_path) -> None:
    own, paper = lazy(name="sgld"), rllc.sgld(lr=1e-4, localization=0.0)
    model = rllc.load(run, 0)
    first = rllc.checkpoints(run)[:1]
    with Weighing() as executor:
        trajectory = rllc.track(first, DATA["a"], "0:1", sampler=own, **quick(executor))
    expected, other = (
        estimate_alone(model, DATA["a"], "0:1", sampler=sampler) for sampler in (own, paper)
    )
    assert trajectory.value[0, 0] == expected.value[0]
    assert trajectory.value[0, 0] != other.value[0]


@pytest.mark.slow
def test_a_sampler_that_cannot_travel_is_refused_before_any_cell(run, tmp_path) -> None:
    own = rllc.samplers.Sampler("local", 1e-3, 0.0, lambda position: (position,), lambda *_: None)
    with pytest.raises(rllc.InputError, match="loss or sampler of your own belongs in a module"):
        rllc.track(run, DATA["a"], "0:1", sampler=own, store=tmp_path, **quick(1))
    assert Store(tmp_path).finished() == set()
    assert Store(tmp_path).failures() == {}
