"""The benchmarks run to their end on tiny sizes, and count what they say they count."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from test_examples import run
from tiny import tiny_model

from examples.benchmarks import any_model, gpu, noise
from examples.benchmarks.engine import __main__ as engine
from examples.benchmarks.engine import clock, flops, full, growth, memory, precision, work
from rllc import threads

SIZES = {"16 × 4": (16, 4)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's benchmark on a model of 8 heads of 4, and on short rows."""
    sizes = {"d_model": 32, "n_heads": 8, "d_head": 4, "n_ctx": 64, "d_vocab": 300}
    for part in (clock, flops, full, growth, memory):
        monkeypatch.setattr(part, "paper_model", lambda: tiny_model(**sizes))
    for part in (clock, flops, memory):
        monkeypatch.setattr(part, "SIZES", SIZES)
    center = {"heads": 2, "chains": 1, "context": 16, "batch": 2}
    monkeypatch.setattr(growth, "CENTER", center)
    axes = {"heads": [1, 2], "chains": [1, 2], "batch": [1, 2], "context": [8, 16]}
    monkeypatch.setattr(growth, "AXES", axes)


@pytest.mark.oracle
@pytest.mark.usefixtures("small")
def test_the_engine_is_near_its_ideal_and_devinterp_is_not(tmp_path: Path) -> None:
    pytest.importorskip("devinterp")
    options = ["--parts", "abe", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    with threads.using(torch.get_num_threads()):
        results = engine.main(options)
    counted = results["flops"]["16 × 4"]
    # Below the ideal, which unembeds the whole hidden state, where heads of the last block move.
    assert 0.5 * counted["ideal"] < counted["ours"] < 1.15 * counted["ideal"]
    assert 1.15 * counted["ideal"] < counted["devinterp"]
    assert set(results["clock"]["16 × 4"]) >= {"float32", "devinterp"}
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert (tmp_path / "engine.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_paper_s_estimate_runs(capsys: pytest.CaptureFixture[str]) -> None:
    results = full.measure(Namespace(device="cpu"), draws=2, context=16, batch=2)
    assert results["seconds"] > 0
    assert "16 heads × 4 chains × 2 draws" in capsys.readouterr().out


def test_peak_memory_is_of_the_work() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("without Linux the peak is of all that the process did")
    before = memory.resident("VmRSS")
    block = torch.ones(2**26)  # 256 MiB
    assert memory.resident("VmRSS") - before == pytest.approx(256, abs=20)
    del block
    assert memory.resident("VmHWM") >= before + 236


@pytest.mark.oracle
def test_seconds_to_an_error_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("devinterp")
    model = tiny_model(n_ctx=16)
    tokens = work.random_tokens(model, 16, rows=32)
    monkeypatch.setattr(precision, "trained", lambda args: (model, tokens))
    monkeypatch.setattr(precision.our_repeats, "__defaults__", (2, 8))
    monkeypatch.setattr(precision.their_precision, "__defaults__", (8, 2))
    results = precision.measure(Namespace())
    assert len(results["llc"]) == len(results["reported"])
    for init_batches in (16, 64):
        needed, as_run, worst = results[f"devinterp, w* from {init_batches} batches"]
        assert needed > 0
        assert as_run > 0
        # Of an untrained model, whose λ̂ may be negative, the share has no sign.
        assert worst == worst


@pytest.mark.oracle
def test_the_heads_of_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("devinterp")
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 0.0)
    options = ["--parts", "abc", "--rounds", "1", "--threads", "1", "--layers", "0", "1"]
    options += ["--heads", "4", "--d-model", "64", "--blocks", "2", "--context", "16"]
    with threads.using(torch.get_num_threads()):
        results = any_model.main([*options, "--vocabulary", "500"])
    # Attention weighs more in small models, and is not in the least that is needed.
    for counted in results["flops"].values():
        assert counted["ours"] < 1.2 * counted["least"]
    last = results["flops"][1]
    assert last["ours"] < 0.8 * last["plain"]
    assert set(results["seconds"]) == {"rllc", "autograd", "devinterp"}
    assert min(results["memory"].values()) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "3", "--draws", "40", "--rounds", "1", "--context", "16"]
    options += ["--bytes", "60000", "--skip-bfloat16", "--out", str(tmp_path)]
    with threads.using(torch.get_num_threads()):
        noise.main(options)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ +\d:\d ", printed, re.MULTILINE)) == 8
    assert printed.count("times the precision a second") == 2
    assert printed.count("start='gaussian'") == 2


@pytest.mark.slow
def test_threads(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--steps", "1", "--context", "8"]
    printed = run("benchmarks/threads.py", *options, folder=tmp_path)
    rows = re.findall(r"^\| (training|sampling) \| .* \| [\d.]+ \|$", printed, re.MULTILINE)
    assert rows == ["training", "training", "sampling", "sampling"]


@pytest.mark.slow
def test_what_a_gpu_is_asked_runs_on_a_cpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--tiny", "--parts", "234", "--out", str(tmp_path)]
    results = gpu.main(options)
    assert results["checkpoint"]["float32"]["seconds"] > 0
    # What is set outside must not enter.
    assert results["precision"]["TensorFloat-32 outside"]["percent"] == 0
    assert results["precision"]["bfloat16"]["percent"] > 0
    assert (tmp_path / "gpu.json").exists()


def test_products_in_place_are_counted() -> None:
    """torch's counter leaves them out."""
    left, right = torch.ones(2, 3, 4), torch.ones(2, 4, 5)
    assert flops.count(lambda: torch.zeros(2, 3, 5).baddbmm_(left, right)) == 2 * 2 * 3 * 4 * 5
    assert flops.count(lambda: torch.zeros(3, 5).addmm_(left[0], right[0])) == 2 * 3 * 4 * 5
