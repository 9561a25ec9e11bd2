"""One seed from end to end: sweeps, measures, roles, clusters and stages, and figures of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import rllc
from rllc.analysis import clustering, stages

from .data import Data
from .figures import draw
from .measure import measure
from .results import Run, curves, layer_of
from .settings import Settings
from .sweep import sweep
from .trained import Trained, look_at_heads


class Analysis(NamedTuple):
    """What one seed gave."""

    run: Run
    figures: dict[str, Path]
    """Caption -> file."""
    notes: list[str]
    """What is not as it should be."""


def analyse(settings: Settings, seed: int, data: Data) -> Analysis:
    """Sweep, measure, classify and draw."""
    trajectories = sweep(settings, seed, data)
    table, pairs = measure(settings, seed, data)
    trained = look_at_heads(settings, seed, data)
    finite_heads = [
        head for head in trained.roles.heads if has_all_estimates(trajectories.values(), head)
    ]
    run = collect(seed, data, trajectories, table, trained, finite_heads)
    left_out = [head for head in trained.roles.heads if head not in finite_heads]
    notes = [f"left out, since an estimate is missing or diverged: {head}" for head in left_out]
    notes += [bad_estimates(name, trajectory) for name, trajectory in trajectories.items()]
    figures = draw(settings.folder(seed) / "figures", run, trained.roles, table, pairs)
    return Analysis(run, figures, [f"seed {seed}: {note}" for note in notes])


def has_all_estimates(trajectories: Iterable[rllc.Trajectory], head: str) -> bool:
    """Whether λ̂ of a head is finite at each step, in all sweeps and on all data."""
    for trajectory in trajectories:
        columns = [k for k, weights in enumerate(trajectory.weights) if weights == head]
        if not np.isfinite(trajectory.value[:, columns]).all():
            return False
    return True


def bad_estimates(name: str, trajectory: rllc.Trajectory) -> str:
    """How many estimates of a sweep are not ok, and why."""
    estimates = [faults for row in trajectory.faults for faults in row]
    # An estimate counts once, under its first fault.
    reasons = Counter(faults[0].kind for faults in estimates if faults)
    counts = [f"{count} × {kind.replace('_', ' ')}" for kind, count in reasons.most_common()]
    words = ", ".join(counts) or "–"
    return f"of {len(estimates)} estimates ({name}) {reasons.total()} are not ok: {words}"


def collect(
    seed: int,
    data: Data,
    trajectories: Mapping[str, rllc.Trajectory],
    table: pd.DataFrame,
    trained: Trained,
    finite_heads: Sequence[str],
) -> Run:
    """What the claims are asked of."""
    memorised = dict(zip(trained.roles.heads, trained.roles.evidence["memorised"], strict=True))
    heads = trajectories["heads"]
    return Run(
        seed=seed,
        heads=heads,
        distilled=trajectories["distilled"],
        roles={head: trained.roles[head] for head in finite_heads},
        memorised={head: int(memorised[head]) for head in finite_heads},
        scores={name: curves(table, name) for name in ("previous_token", "prefix_matching")},
        clusters=cluster_heads(heads, finite_heads, data.base.name, seed),
        paths=trained.paths,
        circuit=trained.circuit,
        stages=stages_of(trajectories["whole"], seed),
        base=data.base.name,
        code=data.code,
    )


def cluster_heads(
    trajectory: rllc.Trajectory, heads: Sequence[str], data: str, seed: int
) -> clustering.Clusters | None:
    """Clusters of the heads' curves, each layer apart; ``None`` where a layer has under 3."""
    in_layers = Counter(layer_of(head) for head in heads)
    if min(in_layers[0], in_layers[1]) < 3:
        return None
    levels = {}
    for head in heads:
        column = trajectory.names.index(head, data)
        levels[head] = trajectory.value[:, column].tolist()
    return clustering.cluster(levels, steps=trajectory.steps, per_layer=True, seed=seed)


def stages_of(whole: rllc.Trajectory, seed: int) -> stages.Stages | None:
    """Stages of the LLC of all weights; ``None`` where under 5 steps above 0 have one."""
    steps = np.array(whole.steps)
    finite = np.isfinite(whole.value[:, 0])
    if (finite & (steps > 0)).sum() < 5:
        return None
    value = whole.value[finite, 0]
    error = whole.standard_error[finite, 0]
    return stages.stages(value, steps[finite], error, seed=seed)
