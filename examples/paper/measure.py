"""Attention, ablation, curvature and composition of the heads at each checkpoint."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import rllc
from rllc.analysis import ablation, attention, composition, curvature
from rllc.analysis.rows import common_start
from rllc.files import write_atomically

from .data import Data
from .settings import Settings
from .sweep import chosen_checkpoints


def measure(settings: Settings, seed: int, data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables over training, of heads and of pairs of heads; one file a checkpoint is kept.

    Returns:
        ``step, head, previous_token, …, delta_loss, …, hessian_trace, …``, and
        ``step, sender, receiver, input, composition, …``.
    """
    folder = measured_folder(settings, seed, data)
    bar = tqdm(
        chosen_checkpoints(settings, seed),
        desc=f"seed {seed}: other measures",
        unit="checkpoint",
        disable=settings.quiet,
    )
    heads = []
    pairs = []
    for checkpoint in bar:
        name = f"{checkpoint.step}-{checkpoint.sha256()[:12]}"
        heads_path = folder / f"{name}-heads.csv"
        pairs_path = folder / f"{name}-pairs.csv"
        if not (heads_path.exists() and pairs_path.exists()):
            model = rllc.load(checkpoint, device=settings.device)
            keep(heads_path, measures_of_heads(settings, seed, model, data), checkpoint.step)
            keep(pairs_path, composition.compose(model).to_dataframe(), checkpoint.step)
        heads.append(pd.read_csv(heads_path))
        pairs.append(pd.read_csv(pairs_path))
    return pd.concat(heads, ignore_index=True), pd.concat(pairs, ignore_index=True)


def measured_folder(settings: Settings, seed: int, data: Data) -> Path:
    """A folder for these rows and counts; with others, everything is measured anew."""
    counts = [settings.rows, settings.probes, settings.probe_rows]
    depends_on = json.dumps([data.base.fingerprint, *counts, rllc.__version__])
    digest = hashlib.sha256(depends_on.encode()).hexdigest()
    return settings.folder(seed) / f"measured-{digest[:12]}"


def keep(path: Path, table: pd.DataFrame, step: int) -> None:
    """Write a table, whole or not at all."""
    table = table.assign(step=step)
    write_atomically(path, lambda file: table.to_csv(file, index=False))


def measures_of_heads(settings: Settings, seed: int, model: Any, data: Data) -> pd.DataFrame:
    """A row a head: attention scores, and what ablation and curvature say of it."""
    rows = data.random_rows(settings.rows, seed)
    scores = attention.scores(model, data.repeats, bos=common_start(rows.rows), seed=seed)
    ablated = ablation.ablate(model, rows)
    probing = curvature.Probing(num_probes=settings.probes, num_rows=settings.probe_rows, seed=seed)
    trace = curvature.hessian_trace(model, rows, rllc.heads(model), probing=probing, progress=False)
    return scores.to_dataframe().assign(
        delta_loss=ablated.delta,
        delta_loss_se=ablated.standard_error,
        hessian_trace=trace.value,
        hessian_trace_se=trace.standard_error,
    )
