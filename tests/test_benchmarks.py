"""The engine's benchmark runs to its end on tiny sizes, and counts what it says it counts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_model

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_benchmark", FOLDER / "engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"d_model": 32, "n_heads": 8, "d_head": 4, "n_ctx": 64, "d_vocab": 300}
    monkeypatch.setattr(module, "paper_model", lambda: tiny_model(**sizes))
    monkeypatch.setattr(module, "SIZES", {"16 × 4": (16, 4)})
    monkeypatch.setattr(module, "AROUND", {"heads": 2, "chains": 1, "context": 16, "batch": 2})
    monkeypatch.setattr(
        module,
        "AXES",
        {name: [1, 2] for name in ("heads", "chains", "batch")} | {"context": [8, 16]},
    )
    return module


@pytest.mark.oracle
def test_the_engine_is_near_its_ideal_and_devinterp_is_not(
    engine: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("devinterp")
    threads = torch.get_num_threads()
    results = engine.main(
        ["--parts", "abe", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    )
    torch.set_num_threads(threads)
    counted = results["flops"]["16 × 4"]
    assert counted["ideal"] < counted["ours"] < 1.15 * counted["ideal"] < counted["devinterp"]
    assert set(results["clock"]["16 × 4"]) >= {"float32", "devinterp"}
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert (tmp_path / "engine.json").exists()
