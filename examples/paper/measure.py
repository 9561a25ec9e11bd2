"""Attention, ablation and composition of the heads at each checkpoint, and what is known by heart.

One file a checkpoint is kept, so that a killed run goes on where it stopped.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

import rllc
from rllc.analysis import ablation, attention, composition
from rllc.analysis.rows import common_start
from rllc.storage.files import write_atomically

from .averaged import averaged_checkpoints
from .data import Data, repeated_text
from .settings import Settings

ROWS_OF_GAIN = 64
ROWS_OVER_TRAINING = 64
"""Rows on which heads are ablated at each checkpoint; at the last, all that were asked for."""


def measure(settings: Settings, seed: int, data: Data) -> dict[str, pd.DataFrame]:
    """Tables over training.

    Returns:
        ``"heads"``: ``step, head, previous_token, …, delta_loss, delta_loss_se``; ``"pairs"``:
        ``step, sender, receiver, input, composition, …``; ``"model"``: ``step, gain_random,
        gain_text`` and the loss on held-out rows of each subset.
    """
    folder = measured_folder(settings, seed, data)
    bar = tqdm(
        averaged_checkpoints(settings, seed),
        desc=f"seed {seed}: other measures",
        unit="checkpoint",
        disable=settings.quiet,
    )
    parts: dict[str, list[pd.DataFrame]] = {"heads": [], "pairs": [], "model": []}
    for checkpoint in bar:
        paths = {}
        for name in parts:
            paths[name] = folder / f"{checkpoint.step}-{checkpoint.sha256()[:12]}-{name}.csv"
        if not all(path.exists() for path in paths.values()):
            model = rllc.load(checkpoint, device=settings.device)
            keep(paths["heads"], measures_of_heads(settings, seed, model, data), checkpoint.step)
            keep(paths["pairs"], composition.compose(model).to_dataframe(), checkpoint.step)
            keep(paths["model"], measures_of_model(settings, seed, model, data), checkpoint.step)
        for name, path in paths.items():
            parts[name].append(pd.read_csv(path))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def measured_folder(settings: Settings, seed: int, data: Data) -> Path:
    """A folder for these rows and counts; with others, everything is measured anew."""
    counts = [settings.rows, ROWS_OVER_TRAINING, settings.positions]
    depends_on = json.dumps([data.base.fingerprint, *counts, rllc.__version__])
    digest = hashlib.sha256(depends_on.encode()).hexdigest()
    return settings.folder(seed) / f"measured-{digest[:12]}"


def keep(path: Path, table: pd.DataFrame, step: int) -> None:
    """Write a table, whole or not at all."""
    table = table.assign(step=step)
    write_atomically(path, lambda file: table.to_csv(file, index=False))


def measures_of_heads(settings: Settings, seed: int, model: Any, data: Data) -> pd.DataFrame:
    """A row a head: attention scores, and what the loss rises by without it."""
    rows = data.random_rows(min(ROWS_OVER_TRAINING, settings.rows), seed)
    scores = attention.scores(model, data.repeats, bos=common_start(rows.rows), seed=seed)
    ablated = ablation.ablate(model, rows)
    return scores.to_dataframe().assign(
        delta_loss=ablated.delta,
        delta_loss_se=ablated.standard_error,
    )


def measures_of_model(settings: Settings, seed: int, model: Any, data: Data) -> pd.DataFrame:
    """One row: the gain on what was seen before, and the loss on rows held out."""
    rows = data.random_rows(ROWS_OF_GAIN, seed)
    random_tokens = data.repeats
    if random_tokens is None:
        bos = common_start(rows.rows)
        random_tokens = attention.repeated_rows(model, num_rows=ROWS_OF_GAIN, bos=bos, seed=seed)
    text = repeated_text(rows, settings.positions)
    values = {"gain_text": gain_on_second_copy(model, text)}
    if data.repeats is None:
        values["gain_random"] = gain_on_second_copy(model, random_tokens)
    for name, held_out in data.held_out.items():
        values[f"loss of {name}"] = float(losses(model, held_out).mean())
    return pd.DataFrame([values])


def gain_on_second_copy(model: Any, repeated: rllc.Tokens) -> float:
    """Mean loss on the first copy less that on the second, in nats per token.

    Without the first token of each copy, which nothing announces.
    """
    loss = losses(model, repeated).mean(0)
    length = len(loss) // 2
    return float(loss[1:length].mean() - loss[length + 1 :].mean())


@torch.no_grad()
def losses(model: Any, rows: rllc.Tokens) -> torch.Tensor:
    """The loss of each next token, ``[row, pos]``, nats."""
    ids = rows.rows.long().to(model.device)
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
