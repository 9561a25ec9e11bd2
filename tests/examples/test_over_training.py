"""The example of a sweep runs as a user would run it, resumes, and its products are looked at."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
from test_examples import EXAMPLES

import rllc

QUICK = ["--chains", "2", "--draws", "4", "--batch", "4", "--quiet"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_over_training_and_again(tmp_path, monkeypatch, capsys) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    # In this process, because importing everything anew would take longer.
    main = runpy.run_path(str(EXAMPLES / "over_training.py"))["main"]
    main([*QUICK, "--dry-run"])
    counts = "5 checkpoints × 2 data sets × 4 weights: 20 cells, 0 finished, 20 to compute"
    assert counts in capsys.readouterr().out
    out = tmp_path / "rllc-out" / "over_training"
    assert not (out / "sweep").exists()
    main(QUICK)
    printed = capsys.readouterr().out
    assert "Trajectory(5 checkpoints, steps 0…200, 4 weights × 2 data" in printed
    assert printed.endswith("open rllc-out/over_training/report.html\n")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "40 of 40 estimates are finished" in page
    assert page.count("<img ") == 4 + 6  # two layers on two data sets, and traces
    sweep = rllc.Sweep.open(out / "sweep")
    assert sweep.missing == ()
    trajectory = sweep.trajectory()
    assert np.isfinite(trajectory.value).all()
    table = pandas.read_parquet(out / "trajectory.parquet")
    pandas.testing.assert_frame_equal(table, trajectory.to_dataframe(diagnostics=True))
    for name in ("code", "prose"):
        png = (out / f"over_training_{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_over_training_on_files_and_dask(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("distributed")
    from tiny import tiny_model, tiny_tokens

    for step in (0, 10):
        tiny_model(step, n_heads=2).save_pretrained(tmp_path / "run" / f"step{step:07d}")
    tiny_tokens(seed=1).save(tmp_path / "a.npz")
    files = ["--checkpoints", "run", "--data", "a.npz", "--out", "o"]
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "over_training.py"))["main"]
    main([*files, "--dask", *QUICK])
    printed = capsys.readouterr().out
    assert "Trajectory(2 checkpoints, steps 0…10, 4 weights × 1 data" in printed
    assert rllc.Sweep.open(tmp_path / "o" / "sweep").missing == ()
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "8 of 8 estimates are finished" in page
