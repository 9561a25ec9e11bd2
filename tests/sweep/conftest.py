"""Fixtures for the tests of sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweeps import DATA, QUICK, write_run

import rllc
import rllc.sweep.workers


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Checkpoints of two steps, of a model with two layers of two heads."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def unbroken_store(run, tmp_path_factory) -> Path:
    """The store of a sweep in which nothing went wrong.

    Two checkpoints × two data sets × (two layers of two heads): eight cells.
    """
    folder = tmp_path_factory.mktemp("unbroken")
    rllc.track(run, DATA, rllc.heads, store=folder, **QUICK)
    return folder


@pytest.fixture(scope="session")
def unbroken(run) -> rllc.Trajectory:
    """The same without a store."""
    return rllc.track(run, DATA, rllc.heads, **QUICK)


@pytest.fixture
def computed(monkeypatch) -> list[tuple[str, ...]]:
    """What is sampled: ``(data, first chain, weights…)`` of each cell."""
    cells: list[tuple[str, ...]] = []

    def counting(model, data, weights, **options):
        names = [selection.name for selection in weights]
        cells.append((*data, options["sampling"].first_chain, *names))
        return rllc.sample(model, data, weights, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", counting)
    return cells


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[int, int]]:
    """Of each cell that is computed: how many draws it goes on from, and how many it then has."""
    counts: list[tuple[int, int]] = []

    def counting(model, data, weights, **options):
        resume = options["resume"]
        num_earlier = 0 if resume is None else resume.loss.shape[-1]
        counts.append((num_earlier, options["sampling"].num_draws))
        return rllc.sample(model, data, weights, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", counting)
    return counts
