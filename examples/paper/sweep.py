"""Three sweeps over training: heads on all data sets, all weights, heads against one layer."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import rllc

from .data import Data
from .settings import Settings


def sweep(settings: Settings, seed: int, data: Data) -> dict[str, rllc.Trajectory]:
    """λ̂ over training: ``"heads"``, ``"whole"`` and ``"distilled"``, with ℓ = L1."""
    data_sets = {data.base.name: data.base, **data.subsets}
    one_layer = rllc.load(settings.folder(seed) / "one_layer", device=settings.device)
    against_one_layer = rllc.distillation(one_layer)
    return {
        "heads": track(settings, seed, "heads", data_sets, rllc.heads),
        "whole": track(settings, seed, "whole", data.base),
        "distilled": track(
            settings, seed, "distilled", data.base, rllc.heads, loss=against_one_layer
        ),
    }


def track(
    settings: Settings,
    seed: int,
    name: str,
    rows: rllc.Tokens | Mapping[str, rllc.Tokens],
    weights: Callable[..., Any] | None = None,
    loss: Any = None,
) -> rllc.Trajectory:
    """One sweep, its table and its report."""
    if not settings.quiet:
        print(f"seed {seed}: sweep of {name}", flush=True)
    folder = settings.folder(seed)
    store = folder / f"sweep-{name}"
    sampling = rllc.Sampling(
        num_chains=settings.chains,
        num_draws=settings.draws,
        batch_size=settings.llc_batch,
        start="gaussian",
        control_variate=True,
        seed=seed,
    )
    compute = rllc.Compute(
        device=settings.device,
        executor=settings.processes or None,
        progress=not settings.quiet,
    )
    trajectory = rllc.track(
        chosen_checkpoints(settings, seed),
        rows,
        weights,
        loss=loss,
        sampling=sampling,
        store=store,
        compute=compute,
    )
    trajectory.to_dataframe(diagnostics=True).to_csv(folder / f"{name}.csv", index=False)
    rllc.report(store, folder / f"sweep-{name}.html")
    return trajectory


def chosen_checkpoints(settings: Settings, seed: int) -> list[rllc.Checkpoint]:
    """The first checkpoint, the last, and others about evenly spaced in log step."""
    checkpoints = rllc.checkpoints(settings.folder(seed) / "checkpoints")
    count = min(settings.checkpoints, len(checkpoints))
    # Step 0 has no logarithm; half a step stands for it.
    steps = np.array([checkpoint.step for checkpoint in checkpoints], dtype=float)
    log_steps = np.log(np.maximum(steps, 0.5))
    chosen = {0}
    for target in np.linspace(log_steps[-1], log_steps[1], count - 1):
        others = set(range(len(checkpoints))) - chosen
        chosen.add(min(others, key=lambda k: abs(log_steps[k] - target)))
    return [checkpoints[k] for k in sorted(chosen)]
