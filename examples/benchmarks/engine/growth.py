"""(e) How a step's cost grows, one axis at a time."""

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import rllc

from .tables import table
from .work import ours, paper_model, random_tokens, timed

CENTER = {"heads": 4, "chains": 1, "context": 256, "batch": 4}
AXES = {
    "heads": [1, 2, 4, 8, 16],
    "chains": [1, 2, 4, 8],
    "context": [64, 128, 256, 512, 1024],
    "batch": [1, 2, 4, 8, 16],
}


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of a step along each axis, and the slope in log-log."""
    model = paper_model()
    results = {}
    rows = []
    for axis, values in AXES.items():
        seconds = [seconds_of_step(model, **(CENTER | {axis: value})) for value in values]
        slope = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        results[axis] = {"values": values, "seconds": seconds, "slope": slope}
        of_values = [f"{v}: {1e3 * s:.0f}" for v, s in zip(values, seconds, strict=True)]
        rows.append([axis, "  ".join(of_values), f"{slope:.2f}"])
    write(args.out / "growth.csv", results)
    draw(args.out / "growth.png", results)
    center = ", ".join(f"{axis} {value}" for axis, value in CENTER.items())
    columns = ["axis", "value: ms", "slope, log-log"]
    table(f"(e) How a step's cost grows around {center}", columns, rows)
    print(f"    figure: {args.out / 'growth.png'}")
    return results


def seconds_of_step(model: Any, heads: int, chains: int, context: int, batch: int) -> float:
    layers_in_turn = itertools.product(range(model.config.n_heads), range(model.config.n_layers))
    weights = [rllc.head(f"{layer}:{head}") for head, layer in layers_in_turn]
    tokens = random_tokens(model, context, rows=32)
    steps = ours(model, tokens, batch, weights[:heads], chains=chains)
    return statistics.median(timed(lambda: next(steps)) for _ in range(3))


def write(path: Path, results: dict[str, dict[str, Any]]) -> None:
    lines = ["axis,value,seconds_per_step"]
    for axis, result in results.items():
        for value, seconds in zip(result["values"], result["seconds"], strict=True):
            lines.append(f"{axis},{value},{seconds:.5f}")
    path.write_text("\n".join(lines) + "\n")


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """One panel an axis, log-log, with a dotted line where cost would be proportional."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(12, 3), sharey=True, layout="constrained")
    for panel, (axis, result) in zip(panels, results.items(), strict=True):
        values = result["values"]
        seconds = result["seconds"]
        proportional = [seconds[0] * value / values[0] for value in values]
        panel.loglog(values, seconds, "o-", color="C0")
        panel.loglog(values, proportional, ":", color="0.5")
        panel.set(xlabel=f"{axis} (slope {result['slope']:.2f})", xticks=values)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
    panels[0].set_ylabel("seconds a step (dotted: linear)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
