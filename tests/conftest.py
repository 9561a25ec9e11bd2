"""Fixtures for all tests: real texts where they are at hand, and a small tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rllc.data import train_tokenizer

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)  # tests work on small tensors, which two threads only slow down


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
