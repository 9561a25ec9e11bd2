"""Fixtures for all tests: real texts where they are at hand, and a small tokenizer."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rllc
from rllc.data import train_tokenizer
from rllc.engine import scene
from rllc.observables import curvature, prior

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)  # tests work on small tensors, which two threads only slow down


def pytest_collection_finish() -> None:
    """Let Python not look through torch and all tests again at each collection of garbage.

    That takes .4 s, and a report collects after the figures of each data set.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread again, whatever a test did.

    Some libraries leave torch with more: tslearn's distances, by way of numba's threads. Two that
    wait for each other while other processes compute make the next tests ten times slower.
    """
    yield
    torch.set_num_threads(1)


_VERIFIED: set[object] = set()
"""Configurations of attention-only models whose heads have been verified, and where they are."""


@pytest.fixture(autouse=True)
def verified_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify the heads of attention-only models of one configuration once.

    It takes .1 s for each of the many models that differ only in their weights. The tests of
    ``anatomy`` verify every one.
    """
    if "anatomy" in request.path.parts:
        return
    anatomy = sys.modules["rllc.anatomy"]

    def verify(model: torch.nn.Module, described: object, call: object = None) -> None:
        key = None
        if type(model) is rllc.models.AttentionOnly and call is None:
            key = model.config.to_json_string(), described
        if key is None or key not in _VERIFIED:
            real(model, described, call)
            _VERIFIED.add(key)

    real = anatomy.verify
    monkeypatch.setattr(anatomy, "verify", verify)


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure little at w* before the first step: for tests that do not ask what it shows.

    A tiny model's chains of a few draws cost less than the minibatches at w* that tell slope and
    curvature. Two ways of one sampling agree with any number of these.
    """
    monkeypatch.setattr(scene, "_LOOKS_FOR_SLOPE", 4)
    monkeypatch.setattr(scene, "_LOOKS_FOR_WIDTH", 4)
    monkeypatch.setattr(curvature, "_LANCZOS_STEPS", 3)
    monkeypatch.setattr(prior, "_MINIBATCHES", 2)
    monkeypatch.setattr(prior, "_POSITIONS", 1)


@pytest.fixture(scope="session")
def pile_mini() -> Path:
    """The folder of pile-mini, a small corpus in the Pile's format; tests that want it are skipped
    without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "pile-mini"
    folder = Path(os.environ.get("RLLC_PILE_MINI", beside))
    if not (folder / "tiny.jsonl").is_file():
        pytest.skip("pile-mini is not here; name its folder in RLLC_PILE_MINI")
    return folder


@pytest.fixture(scope="session")
def of_the_language(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """A small model of the synthetic language, trained once for all workers of pytest."""
    import fcntl

    base = tmp_path_factory.getbasetemp()
    # A worker's folder is in one that all share.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "of_the_language"
    with open(shared / "of_the_language.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = rllc.models.AttentionOnlyConfig(
            n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=64, d_vocab=96
        )
        rows = rllc.data.synthetic.Language().sample(4000, seed=1).tokens
        training = rllc.Training(num_steps=1000, batch_size=32, lr=1e-2, checkpoints=[1000])
        return rllc.train(config, rows, folder, training=training, progress=False)


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """A byte-level tokenizer of 300 ids (BOS = EOS = 299), trained on a few lines."""
    lines = [
        f"the {animal} in the {place} sees the {animal}"
        for animal in ("cat", "dog")
        for place in ("house", "sun")
    ]
    return train_tokenizer(
        [*lines, "one line and another line", "def f(x):\n    return x\n"] * 3, vocab_size=300
    )
