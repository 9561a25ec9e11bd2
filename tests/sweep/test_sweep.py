"""A sweep as it stands: what is finished, missing and failed, and the draws behind an estimate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_sweeps import DATA, QUICK, alone, cell_files, quick

import rllc
from rllc.sweep.store import Store


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
    assert names_read == []
    trajectory = sweep.trajectory()
    assert int(np.isnan(trajectory.value).sum()) == 1
    assert len(names_read) == 3
    statuses = [status for row in trajectory.status for status in row]
    assert statuses.count("missing") == 1
    assert len(trajectory.to_dataframe()) == 4
    assert len(names_read) == 3


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


# Draws, and losses per token.


def test_losses_per_token_come_back_as_they_were_to_half_precision(run, tmp_path) -> None:
    """Against rllc.sample, for chains that came in two cells; rows against the data itself."""
    store, both = rllc.Store(tmp_path, per_token=True), ["1:0", "1:1"]
    for num_chains in (2, 3):
        settings = {"num_chains": num_chains, "runs_per_pass": 1}
        rllc.track(run, DATA, both, store=store, **quick(**settings))
    model = rllc.load(run, 10)
    expected = rllc.sample(model, DATA, both, per_token=True, **alone(**settings))
    draws = rllc.Sweep.open(tmp_path).draws(10, "L1H1", "b")
    key = "1:1", "b"
    assert list(draws.tokens) == [key]
    losses, baseline = draws.tokens[key], draws.token_baseline["b"]
    assert losses.dtype == np.float32
    assert np.array_equal(draws.rows["b"], expected.rows["b"])
    rise = losses - baseline
    exact_rise = expected.tokens[key] - expected.token_baseline["b"]
    assert exact_rise.shape == (3, 5, 4, 6)
    np.testing.assert_allclose(rise, exact_rise, rtol=2**-10, atol=2e-6)
    np.testing.assert_allclose(losses, expected.tokens[key], atol=3e-3)
    (row,) = [i for i, pair in enumerate(zip(expected.weights, expected.data)) if pair == key]  # noqa: B905
    assert np.array_equal(draws.loss[0], expected.loss[row])
    np.testing.assert_allclose(rise.mean((2, 3)), (draws.loss - draws.baseline)[0], atol=2e-4)
    rows = torch.from_numpy(draws.rows["b"][2])
    with torch.no_grad():
        at_center = rllc.next_token(model, DATA["b"].rows[rows].long()).numpy()
    np.testing.assert_allclose(baseline[2], at_center, rtol=2**-10)


def test_losses_per_token_are_kept_only_on_request_and_then_of_finished_cells_too(
    run, tmp_path, computed
) -> None:
    def track(per_token: bool) -> rllc.Draws:
        store = rllc.Store(tmp_path, per_token=per_token)
        rllc.track(run, DATA["a"], "0:1", store=store, **QUICK)
        return rllc.Sweep.open(tmp_path).draws(10, "0:1")

    assert track(per_token=False).tokens == {}
    assert not (tmp_path / "tokens").exists()
    cells = cell_files(tmp_path)
    assert len(track(per_token=True).tokens) == 1
    assert len(computed) == 4
    assert cell_files(tmp_path) == cells
    track(per_token=True)
    assert len(computed) == 4


def test_losses_per_token_of_a_diverged_chain_are_no_numbers(run, tmp_path) -> None:
    store = rllc.Store(tmp_path, per_token=True)
    rllc.track(run, DATA["a"], "0:1", sampler=rllc.sgld(lr=3.0), store=store, **QUICK)
    draws = rllc.Sweep.open(tmp_path).draws(10, "0:1")
    losses = draws.tokens["0:1", "tokens"]
    assert np.isnan(draws.loss).any()
    assert np.array_equal(np.isnan(losses).all((2, 3)), np.isnan(draws.loss[0]))


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
