"""The example of a sweep runs as a user would run it, resumes, and its products are looked at."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
from test_examples import EXAMPLES, run

import rllc

QUICK = ["--chains", "2", "--draws", "4", "--batch", "4", "--quiet"]


def test_over_training_and_again(tmp_path, monkeypatch, capsys) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "over_training.py"))[
        "main"
    ]  # importing everything anew would take longer
    main([*QUICK, "--dry-run"])
    assert (
        "5 checkpoints × 2 data sets × 4 weights: 20 cells, 0 finished, 20 to compute"
        in capsys.readouterr().out
    )
    out = tmp_path / "rllc-out" / "over_training"
    assert not (out / "sweep").exists()
    main(QUICK)
    told = capsys.readouterr().out
    assert "Trajectory(5 checkpoints, steps 0…200, 4 weights × 2 data" in told
    assert told.endswith("open rllc-out/over_training/report.html\n")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "40 of 40 estimates are finished" in page
    assert page.count("<img ") == 4 + 6  # two layers on two data sets, and traces
    opened = rllc.Trajectory.open(out / "sweep")
    assert opened.missing == ()
    assert np.isfinite(opened.value).all()
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(out / "trajectory.parquet"), opened.to_dataframe()
    )
    for name in ("code", "prose"):
        assert (out / f"over_training_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_over_training_on_files_and_dask(tmp_path) -> None:
    pytest.importorskip("distributed")
    from test_track import DATA, write_run

    write_run(tmp_path / "run"), DATA["a"].save(tmp_path / "a.npz")
    told = run(
        "over_training.py",
        "--checkpoints",
        "run",
        "--data",
        "a.npz",
        "--out",
        "o",
        "--dask",
        *QUICK,
        folder=tmp_path,
    )
    assert "Trajectory(2 checkpoints, steps 0…10, 4 weights × 1 data" in told
    assert rllc.Trajectory.open(tmp_path / "o" / "sweep").missing == ()
    assert "8 of 8 estimates are finished" in (tmp_path / "o" / "report.html").read_text(
        encoding="utf-8"
    )
