"""The paper's figures of one seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import rllc
from rllc.analysis import circuit, clustering, roles, stages
from rllc.analysis.contexts import plot_kinds

from .results import Run, curves

ROLE_ORDER = (
    "previous token",
    "multigram",
    "induction",
    "bracket",
    "",
    "current token",
    "other",
)
"""The order in which roles take colours, as in ``plot_roles``; the fifth colour is not used."""


def draw(
    folder: Path, run: Run, head_roles: roles.Roles, table: pd.DataFrame, pairs: pd.DataFrame
) -> dict[str, Path]:
    """Draw all figures: caption -> file."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    files = {}
    for caption, axes in pictures(run, head_roles, table, pairs):
        figure = first_of(axes).figure
        files[caption] = folder / f"{file_name(caption)}.png"
        figure.savefig(files[caption], dpi=130)
        plt.close(figure)
    return files


def pictures(
    run: Run, head_roles: roles.Roles, table: pd.DataFrame, pairs: pd.DataFrame
) -> Iterator[tuple[str, Any]]:
    """Captions and axes, in the order of the page."""
    if run.clusters is not None:
        clusters = {name: f"cluster {run.clusters[name]}" for name in run.clusters.names}
        axes = rllc.plot_trajectory(run.heads, run.base, groups=clusters)
        yield f"wrLLC on {run.base}, coloured by cluster", axes
    yield from of_trajectories(run)
    yield from of_other_measures(run, table, pairs)
    yield "roles and their evidence", roles.plot_roles(head_roles)
    yield "tokens in context", plot_kinds(head_roles.contexts)
    if run.clusters is not None:
        yield "clusters of the curves", clustering.plot_clusters(run.clusters, run.roles)
    if run.stages is not None:
        axes = stages.plot_stages(run.stages)
        axes.set_ylabel(r"$\hat\lambda$ of all weights")
        yield "LLC of the whole model, and stages", axes
    if run.circuit is not None:
        yield "multigram heads ablated together", circuit.plot_circuit(run.circuit)


def of_trajectories(run: Run) -> Iterator[tuple[str, Any]]:
    """Figures of λ̂."""
    colours = groups(run)
    last = run.heads.at(run.heads.steps[-1])
    for data in (run.base, run.code):
        axes = rllc.plot_trajectory(run.heads, data, groups=colours)
        yield f"wrLLC on {data}, coloured by role", axes
    axes = rllc.plots.plot_data_pair(last, run.base, run.code, groups=colours)
    yield f"{run.base} against {run.code} at the end", axes
    label = "memorised multigrams"
    axes = rllc.plots.plot_against(run.memorised, last, run.base, groups=colours, xlabel=label)
    yield f"wrLLC against {label}", axes
    yield "wrLLC with ℓ = L1", rllc.plot_trajectory(run.distilled, groups=colours)


def of_other_measures(
    run: Run, table: pd.DataFrame, pairs: pd.DataFrame
) -> Iterator[tuple[str, Any]]:
    """Figures of composition, ablation and curvature, over training and beside λ̂."""
    colours = groups(run)
    steps = run.heads.steps
    last = run.heads.at(steps[-1])
    final = table[table["step"] == steps[-1]].set_index("head")

    receiver = run.paths.paths[0].split("->")[1].split(".")[0]
    into_keys = pairs[(pairs["receiver"] == receiver) & (pairs["input"] == "K")]
    yield (
        f"K-composition of layer 0 with {receiver}",
        rllc.plots.plot_curves(
            curves(into_keys, "excess", by="sender"),
            steps,
            groups=colours,
            ylabel=f"K-composition with {receiver}, over random",
        ),
    )
    measures = {
        "delta_loss": ("ablation", "Δloss (nats)", "Δloss when ablated (nats)"),
        "hessian_trace": ("Hessian trace", "tr H", "tr H"),
    }
    for column, (name, label, _) in measures.items():
        axes = rllc.plots.plot_curves(
            curves(table, column),
            steps,
            error=curves(table, f"{column}_se"),
            groups=colours,
            ylabel=label,
        )
        yield f"{name} over training", axes
    for column, (name, _, label) in measures.items():
        values = final[column].to_dict()
        axes = rllc.plots.plot_against(values, last, run.base, groups=colours, xlabel=label)
        yield f"wrLLC against {name}", axes


def groups(run: Run) -> dict[str, str]:
    """Head -> role; every role comes first under its own name, so that colours stay the same."""
    return {role: role for role in ROLE_ORDER} | dict(run.roles)


def first_of(axes: Any) -> Any:
    """The first of axes, or the only one."""
    return np.ravel(np.array(axes, dtype=object))[0]


def file_name(caption: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in caption)
