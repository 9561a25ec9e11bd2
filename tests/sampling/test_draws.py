"""Draws: what they say of themselves, and files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import QUIET, SHORT, tiny_model, tiny_tokens

import rllc
from rllc.errors import FileError, InputError

MODEL = tiny_model()
DATA = {
    "code": tiny_tokens(seed=1),
    "owner/name: prose (en)": tiny_tokens(num_rows=6, pos=4, seed=2),
}


def draws(**arguments: object) -> rllc.Draws:
    return rllc.sample(MODEL, DATA, ["0:1", "1:2"], sampling=SHORT, compute=QUIET, **arguments)


def test_axes_are_refinement_chain_draw() -> None:
    found = draws()
    assert found.loss.shape == found.baseline.shape == (4, 2, 5)
    assert found.loss.dtype == found.baseline.dtype == np.float64
    assert found.diverged.shape == (4, 2)
    assert found.weights == ("0:1", "0:1", "1:2", "1:2")
    assert found.data == tuple(DATA) * 2
    assert (found.baseline == found.baseline[:, :1]).all()  # chains share their minibatches
    assert (found.baseline[0] == found.baseline[2]).all()  # and so do refinements of one data set
    assert np.allclose(found.llc, 30 * (found.loss - found.baseline))


def test_settings_are_of_sampler_and_sampling() -> None:
    settings = draws().settings
    assert settings["sampler"] == "sgld"
    assert settings["localization"] == 200
    assert settings["num_draws"] == 5
    assert settings["n_beta"] == 30


@pytest.mark.parametrize("observe", [{}, {"tokens": rllc.observables.minibatch_losses()}])
def test_a_file_holds_everything(tmp_path: Path, observe: dict[str, rllc.Observable]) -> None:
    found = draws(observe=observe)
    again = rllc.Draws.load(found.save(tmp_path / "draws.npz"))
    for name in ("loss", "baseline", "diverged"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
        assert getattr(again, name).dtype == getattr(found, name).dtype
    assert (again.weights, again.data, dict(again.settings)) == (
        found.weights,
        found.data,
        dict(found.settings),
    )
    assert ("tokens" in found.observed) == bool(observe)
    assert again.observed.keys() == found.observed.keys()
    for name, array in found.observed.items():
        assert np.array_equal(again.observed[name], array, equal_nan=True)
        assert again.observed[name].dtype == array.dtype
    before, after = rllc.Estimate.of(found), rllc.Estimate.of(again)
    assert np.array_equal(before.value, after.value)
    assert repr(before) == repr(after)


def test_files_of_something_else_or_damaged_are_refused(tmp_path: Path) -> None:
    path = draws().save(tmp_path / "draws.npz")
    with pytest.raises(FileError, match=r"as Estimate: it holds rllc.Draws"):
        rllc.Estimate.load(path)
    with pytest.raises(FileError, match=r"as Draws: it holds rllc.Estimate"):
        rllc.Draws.load(rllc.Estimate.of(draws()).save(tmp_path / "estimate.npz"))
    with pytest.raises(FileError, match="no such file"):
        rllc.Draws.load(tmp_path / "missing.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileError, match="do not match the checksum"):
        rllc.Draws.load(path)


def test_repr_counts_and_names_trouble() -> None:
    assert repr(draws()) == "Draws(4 refinements × 2 chains × 5 draws)"
    assert (
        repr(draws(sampler=rllc.sgld(10.0)))
        == "Draws(4 refinements × 2 chains × 5 draws, 8 of 8 chains diverged)"
    )


def test_a_dataframe_has_one_row_a_draw() -> None:
    pytest.importorskip("pandas")
    found = draws()
    frame = found.to_dataframe()
    assert list(frame.columns) == ["weights", "data", "chain", "draw", "loss", "baseline", "llc"]
    assert len(frame) == found.loss.size
    one = frame[
        (frame.weights == "1:2") & (frame.data == "code") & (frame.chain == 1) & (frame.draw == 3)
    ]
    assert one.loss.item() == found.loss[2, 1, 3]
    assert one.llc.item() == found.llc[2, 1, 3]


@pytest.mark.oracle
def test_inferencedata_gives_arviz_the_same_draws() -> None:
    arviz = pytest.importorskip("arviz")
    draws = rllc.sample(tiny_model(), tiny_tokens(), ["0:1", "1:2"], sampling=SHORT, compute=QUIET)
    found = draws.to_inferencedata()
    np.testing.assert_array_equal(
        found.posterior["llc"].sel(refinement="1:2, tokens"), draws.llc[1]
    )
    summary = arviz.summary(found, var_names=["llc"], round_to="none")
    np.testing.assert_allclose(summary["mean"], rllc.Estimate.of(draws).value)
    assert not found.sample_stats["diverging"].any()


def test_inferencedata_without_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    draws = rllc.sample(tiny_model(), tiny_tokens(), "0:1", sampling=SHORT, compute=QUIET)
    with pytest.raises(InputError, match=r"pip install \"rllc\[arviz\]\""):
        draws.to_inferencedata()
