"""One seed, as far as it has come: estimates, measures and roles, in small files."""

from pathlib import Path

import numpy as np

import rllc
from rllc.errors import FileError

from .data import Data
from .measure import measure
from .results import Run
from .settings import SIZES, Settings
from .sweep import LIMITS, mean_slopes, plans, store_of
from .trained import look_at_heads


def collect(settings: Settings, seed: int, data: Data) -> Run:
    """Everything that is there of a seed. Cells that no sweep has computed yet are NaN."""
    trajectories = {}
    slopes = {}
    for plan in plans(settings, data):
        try:
            stored = rllc.Sweep.open(store_of(settings, seed, plan.name))
        except FileError:
            continue
        if not stored.finished:
            continue
        trajectories[plan.name] = stored.trajectory(LIMITS)
        slopes[plan.name] = mean_slopes(settings, seed, plan.name)
    tables = {**measure(settings, seed, data), **look_at_heads(settings, seed, data)}
    receiver = tables["paths"]["receiver"].iloc[0]
    pairs = tables["pairs"]
    into_keys = (pairs["receiver"] == receiver) & (pairs["input"] == "K")
    code, prose = list(data.subsets)[:2]
    return Run(
        name=f"{settings.out.name} seed {seed}",
        base=data.base.name,
        code=code,
        prose=prose,
        llc=trajectories,
        slopes=slopes,
        tables={**tables, "pairs": pairs[into_keys]},
        settings={name: getattr(settings, name) for name in SIZES},
    )


def results_of(settings: Settings, seed: int) -> Path:
    """Where the small files of a seed are."""
    return settings.out / "results" / f"seed{seed}"


def share_flagged(trajectory: rllc.Trajectory) -> float:
    """The share of the estimates there are that are flagged."""
    there = np.isfinite(trajectory.value)
    flagged = np.array([[bool(faults) for faults in row] for row in trajectory.faults])
    return float(flagged[there].mean())
