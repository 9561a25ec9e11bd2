"""A sweep as it stands: what is finished, missing and failed, and the draws behind an estimate."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sweeps import DATA, QUICK, cell_files, quick

import rllc
from rllc.sweep import parts
from rllc.sweep.store import Store


def chain_count(moment: rllc.Moment) -> torch.Tensor:
    return torch.full((len(moment.chain),), 7.0)


def broken_measure(moment: rllc.Moment) -> torch.Tensor:
    raise ZeroDivisionError("nothing to divide by")


def test_opening_reads_names_and_a_trajectory_reads_numbers(run, tmp_path, monkeypatch) -> None:
    rllc.track(run, DATA["a"], ["0:0", "1:1"], store=tmp_path, **QUICK)
    store = Store(tmp_path)
    store.path(sorted(store.finished())[0]).unlink()
    names_read = []
    read = Store.read

    def recording(self: Store, name: str) -> rllc.Draws:
        names_read.append(name)
        return read(self, name)

    monkeypatch.setattr(Store, "read", recording)
    sweep = rllc.Sweep.open(tmp_path)
    assert len(sweep.missing) == 1
    assert repr(sweep).endswith("2 weights × 1 data: 3 finished, 1 missing, 0 failed)")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", sweep._repr_html_())
    assert cells == ["tokens", "3", "1", "0"]
    assert sweep._repr_html_().count("color:") == 1  # of what is missing
    assert names_read == []
    trajectory = sweep.trajectory()
    assert int(np.isnan(trajectory.value).sum()) == 1
    assert len(names_read) == 3
    statuses = [status for row in trajectory.status for status in row]
    assert statuses.count("missing") == 1
    assert len(trajectory.to_dataframe()) == 4
    assert len(names_read) == 3


def test_each_cell_is_opened_once_and_many_are_summed_up_at_once(
    unbroken_store, monkeypatch
) -> None:
    """Ten thousand cells are to be read in seconds."""
    opened, summed_up = [], []

    def opening(path, mode):
        opened.append(Path(path).name)
        return open(path, mode)

    def of(draws, limits=None, of=rllc.Estimate.of):
        summed_up.append(len(draws.names))
        return of(draws, limits)

    monkeypatch.setattr(rllc.storage.files, "open", opening, raising=False)
    monkeypatch.setattr(rllc.Estimate, "of", of)
    sweep = rllc.Sweep.open(unbroken_store)
    assert opened == []
    trajectory = sweep.trajectory()
    assert sorted(opened) == sorted(cell_files(unbroken_store))
    # One call for each data set, whose settings differ.
    assert len(summed_up) == 2
    assert sum(summed_up) == trajectory.value.size


def test_cells_that_are_summed_up_at_once_are_as_alone(unbroken_store) -> None:
    sweep = rllc.Sweep.open(unbroken_store)
    trajectory = sweep.trajectory()
    for step in trajectory.steps:
        together = trajectory.at(step)
        for weights, data in trajectory.names:
            alone = rllc.Estimate.of(sweep.draws(step, weights, data))
            row = together.names.index(weights, data)
            for fault, expected in zip(together.faults[row], alone.faults[0], strict=True):
                assert fault.kind == expected.kind
                assert fault.numbers == pytest.approx(expected.numbers, rel=1e-9)
            for name in ("value", "standard_error", "dof", "rhat", "ess"):
                expected = getattr(alone, name)[0]
                assert getattr(together, name)[row] == pytest.approx(expected, rel=1e-12)
            for name, array in alone.diagnostics.items():
                found = together.diagnostics[name][row]
                assert found == pytest.approx(array[0], rel=1e-9, nan_ok=True)


def test_a_checkpoint_has_its_draws_and_is_as_one_estimate(run, tmp_path) -> None:
    """What a store gives back is what one call gives, contrasts between data sets included."""
    rllc.track(run, DATA, ["0:0", "1:1"], store=tmp_path, **QUICK)
    stored = rllc.Sweep.open(tmp_path).at(10)
    model = rllc.load(run / "step0000010")
    weights = [rllc.head("0:0"), rllc.head("1:1")]
    at_once = rllc.Estimate.of(rllc.sample(model, DATA, weights, **QUICK))
    assert set(stored.names) == set(at_once.names)
    keys = ("0:0", "a"), ("0:0", "b")
    assert stored["1:1", "b"].value == pytest.approx(at_once["1:1", "b"].value, rel=1e-5)
    contrast, expected = stored.difference(*keys), at_once.difference(*keys)
    assert contrast.value == pytest.approx(expected.value, rel=1e-4)
    assert contrast.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
    with pytest.raises(rllc.InputError, match=r"sweep\.at\(5\): known: '0', '10'"):
        rllc.Sweep.open(tmp_path).at(5)


def test_cells_that_are_no_single_estimate_are_refused(run, tmp_path, monkeypatch) -> None:
    rllc.track(run, DATA, ["0:0"], store=tmp_path, **QUICK)
    monkeypatch.setattr(parts, "_BY_DATA", ("fingerprints",))
    with pytest.raises(rllc.InputError, match="differ in more than weights and data; take them"):
        rllc.Sweep.open(tmp_path).at(10)


def test_draws_of_other_settings_or_shapes_are_never_summed_up_at_once(unbroken_store) -> None:
    sweep = rllc.Sweep.open(unbroken_store)
    draws = sweep.draws(10, "0:1", "a")
    kind = parts.likeness(draws)
    assert kind == parts.likeness(sweep.draws(0, "1:1", "a"))
    others = [
        replace(draws, settings={**draws.settings, "n_beta": 3.0}),
        replace(draws, loss=draws.loss[..., 1:], baseline=draws.baseline[..., 1:]),
        replace(draws, observed={}),
        replace(draws, observed={name: 0 * array for name, array in draws.observed.items()}),
    ]
    kinds = {parts.likeness(other) for other in others}
    assert len(kinds) == len(others)
    assert kind not in kinds
    # What such chains forget is estimated from all refinements of a result.
    unknown = replace(draws, settings={**draws.settings, "relaxation": None})
    assert parts.likeness(unknown) is None


def test_a_folder_without_a_sweep_is_named(tmp_path) -> None:
    with pytest.raises(rllc.FileError, match=r"Sweep.open\('.*nowhere'\): there is no sweep in it"):
        rllc.Sweep.open(tmp_path / "nowhere")


def test_what_was_never_asked_for_is_not_missing(run, tmp_path) -> None:
    first, last = rllc.checkpoints(run)
    rllc.track([first], DATA["a"], "0:0", store=tmp_path, **QUICK)
    rllc.track([last], DATA["a"], "0:1", store=tmp_path, **QUICK)
    sweep = rllc.Sweep.open(tmp_path)
    assert sweep.missing == ()
    status = sweep.trajectory().status
    assert status[0][1] == status[1][0] == "not asked for"


def test_a_folder_that_cannot_be_read_for_a_moment_can_be_asked_again(
    unbroken_store, monkeypatch
) -> None:
    sweep = rllc.Sweep.open(unbroken_store)
    with monkeypatch.context() as patch:

        def unreachable(self, name):
            raise OSError("the network")

        patch.setattr(Store, "read", unreachable)
        with pytest.raises(OSError, match="the network"):
            sweep.trajectory()
    assert np.isfinite(sweep.trajectory().value).all()


# Draws, and what was observed along them.

OBSERVE = {
    "losses": rllc.observables.minibatch_losses(),
    "rows": rllc.observables.minibatch_rows(),
    "distance": rllc.distance(),
    "on b": rllc.losses_on(DATA["b"], keep="moments"),
    "start": rllc.Observable(chain_count, at="start"),
}


def test_what_was_observed_comes_back_as_rllc_sample_gives_it(run, tmp_path) -> None:
    """For chains that came in two cells; and the rows against the data itself."""
    store, both = rllc.sweep.Store(tmp_path, observe=OBSERVE), ["1:0", "1:1"]
    for num_chains in (2, 3):
        settings = quick(num_chains=num_chains, runs_per_pass=1)
        rllc.track(rllc.checkpoints(run)[1:], DATA, both, store=store, **settings)
    model = rllc.load(run, 10)
    expected = rllc.sample(model, DATA, both, observe=OBSERVE, **settings)
    row = list(expected.names).index(("1:1", "b"))
    draws = rllc.Sweep.open(tmp_path).draws(10, "L1H1", "b")
    assert list(draws.names) == [("1:1", "b")]
    assert draws.observed.keys() == expected.observed.keys()
    assert draws.settings["observed"] == expected.settings["observed"]
    for name, array in expected.observed.items():
        np.testing.assert_array_equal(draws.observed[name], array[[row]], err_msg=name)
        assert draws.observed[name].dtype == array.dtype
    assert np.array_equal(draws.loss[0], expected.loss[row])
    rise = draws.observed["losses"][0]
    assert rise.shape == (3, 5, 4, 6)
    losses_rise = (draws.loss - draws.baseline)[0]
    np.testing.assert_allclose(rise.mean((2, 3), dtype=float), losses_rise, atol=2e-4)
    rows = torch.from_numpy(draws.observed["rows"][0, 0, 2])
    with torch.no_grad():
        at_center = rllc.next_token(model, DATA["b"].rows[rows].long())
    assert float(at_center.mean()) == pytest.approx(draws.baseline[0, 0, 2], rel=1e-6)


def test_what_is_observed_is_kept_only_on_request_and_then_of_finished_cells_too(
    run, tmp_path, computed
) -> None:
    def track(**observe: rllc.Observable) -> rllc.Draws:
        store = rllc.sweep.Store(tmp_path, observe=observe)
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
        return rllc.Sweep.open(tmp_path).draws(10, "0:1")

    assert "distance" not in track().observed
    assert not (tmp_path / "observed").exists()
    cells = cell_files(tmp_path)
    assert track(distance=rllc.distance()).observed["distance"].shape == (1, 2, 5)
    assert len(computed) == 4
    assert cell_files(tmp_path) == cells
    track(distance=rllc.distance())
    assert len(computed) == 4
    # Another one is computed beside it, and what is there stays.
    assert {"distance", "rows"} <= track(rows=rllc.observables.minibatch_rows()).observed.keys()
    assert len(computed) == 6


def test_what_is_observed_of_a_diverged_chain_is_no_number(run, tmp_path) -> None:
    store = rllc.sweep.Store(tmp_path, observe={"losses": rllc.observables.minibatch_losses()})
    rllc.track(run, DATA["a"], "0:1", sampler=rllc.sgld(lr=3.0), store=store, **QUICK)
    draws = rllc.Sweep.open(tmp_path).draws(10, "0:1")
    losses = draws.observed["losses"][0]
    assert np.isnan(draws.loss).any()
    broken = np.isnan(draws.loss[0])
    assert np.isnan(losses).all((2, 3))[broken].all()


def test_an_observable_that_fails_fails_its_cells_and_is_named(run, tmp_path) -> None:
    store = rllc.sweep.Store(tmp_path, observe={"broken": rllc.Observable(broken_measure)})
    with pytest.raises(rllc.RllcError, match=r"all 2 cells failed; .*observable 'broken' failed"):
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
    rllc.track(run, DATA["a"], "0:1", store=tmp_path, **QUICK)
    assert rllc.Sweep.open(tmp_path).failed == {}


def breaks_late(moment: rllc.Moment) -> torch.Tensor:
    if moment.draw == 3:
        raise ZeroDivisionError("nothing to divide by")
    return moment.losses


def test_an_observable_that_fails_late_leaves_the_draws(run, tmp_path) -> None:
    store = rllc.sweep.Store(
        tmp_path, observe={"late": rllc.Observable(breaks_late), "distance": rllc.distance()}
    )
    with pytest.raises(rllc.RllcError, match=r"all 2 cells failed; .*observable 'late' failed"):
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
    sweep = rllc.Sweep.open(tmp_path)
    expected = rllc.track(run, DATA["a"], "0:1", **QUICK)
    assert np.array_equal(sweep.trajectory().value, expected.value)
    draws = sweep.draws(10, "0:1")
    assert draws.observed["distance"].shape == (1, 2, 5)
    assert "late" not in draws.observed
    # What is lacking is computed by a call with an observable that works.
    mended = {"late": rllc.distance(), "distance": rllc.distance()}
    rllc.track(run, DATA["a"], "0:1", store=rllc.sweep.Store(tmp_path, observe=mended), **QUICK)
    assert "late" in rllc.Sweep.open(tmp_path).draws(10, "0:1").observed


def test_observables_with_names_that_no_folder_can_have_are_refused(tmp_path) -> None:
    with pytest.raises(rllc.InputError, match=r"`observe` has the name '\.\./x'; in a store names"):
        rllc.sweep.Store(tmp_path, observe={"../x": rllc.distance()})


def test_draws_that_are_not_there_are_named(run, tmp_path) -> None:
    rllc.track(run, DATA, "0:1", store=tmp_path, **QUICK)
    store = Store(tmp_path)

    def error_of(*key: object) -> str:
        with pytest.raises(rllc.InputError) as caught:
            rllc.Sweep.open(tmp_path).draws(*key)
        return str(caught.value)

    advice = "on which data? It has ['a', 'b']; type sweep.draws(10, '0:1', 'a')"
    assert advice in error_of(10, "0:1")
    assert "known: '0', '10'" in error_of(5, "0:1", "a")
    assert "did you mean \"('0:1', 'b')\"" in error_of(10, "0:0", "b")
    (first,) = [cell for cell in store.plans()[0].cells if (cell.step, cell.data) == (0, "a")]
    Path(store.path(first.name)).unlink()
    missing = "draws(0, '0:1', 'a'): it is missing; call rllc.track again"
    assert missing in error_of(0, "0:1", "a")
