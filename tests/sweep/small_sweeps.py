"""Small sweeps that every test of this folder takes: runs of checkpoints, data, quick settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny import SHORT, tiny_model, tiny_tokens

import rllc

SMALL = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4}
DATA = {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}


def quick(
    executor: Any = None, runs_per_pass: int | None = None, **sampling: Any
) -> dict[str, Any]:
    """Arguments of :func:`rllc.track` for 2 chains of 5 draws.

    Args:
        executor: where.
        runs_per_pass: 1 keeps a refinement's company from changing the last bits.
        sampling: changes of :class:`rllc.Sampling`.
    """
    compute = rllc.Compute(executor=executor, runs_per_pass=runs_per_pass, progress=False)
    return {"sampling": replace(SHORT, **{"num_probes": 0} | sampling), "compute": compute}


QUICK = quick()


def write_run(folder: Path, steps=(0, 10), **changes: object) -> Path:
    """Write random models as checkpoints."""
    for step in steps:
        tiny_model(step, **SMALL | changes).save_pretrained(folder / f"step{step:07d}")
    return folder


def same(one: rllc.Trajectory, other: rllc.Trajectory) -> bool:
    """Whether two trajectories are equal to the last bit."""
    for name in ("value", "standard_error", "rhat", "ess", "per_chain"):
        if not np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True):
            return False
    return (one.steps, one.names, one.status) == (other.steps, other.names, other.status)


def estimate_alone(model, data, weights, **options: Any) -> rllc.Estimate:
    """The estimate of one checkpoint, without a sweep."""
    return rllc.Estimate.of(rllc.sample(model, data, weights, **QUICK | options))


def rows_with_seven() -> dict[str, rllc.Tokens]:
    """Two data sets for the losses of ``faulty``, which act on rows that begin with id 7."""
    seven = DATA["b"].rows.clone()
    seven[:, 0] = 7
    return {"a": rllc.Tokens(DATA["a"].rows.clamp(max=6)), "seven": rllc.Tokens(seven)}


def cell_files(folder: Path) -> dict[str, bytes]:
    """The bytes of the finished cells, by name."""
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.npz")}
