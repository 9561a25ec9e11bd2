"""Train each seed's model, and a one-layer model on the same data."""

from collections.abc import Mapping
from typing import Any

import torch

import rllc
from rllc.models import AttentionOnlyConfig

from .data import Data
from .settings import Settings

WINDOW = (0.92, 0.94, 0.96, 0.98)
"""Shares of a step at which weights are kept as well, to be averaged with those of the step."""


def train(settings: Settings, data: Mapping[int, Data]) -> None:
    """Train all models, or go on with them; those that are finished are left as they are."""
    for seed in data:
        train_two_layers(settings, seed, data[seed])
    for seed in data:
        train_one_layer(settings, seed, data[seed])


def train_two_layers(settings: Settings, seed: int, data: Data) -> None:
    """The model whose heads are looked at."""
    steps = [*measured_steps(settings), *averaged_steps(settings)]
    training = training_of(settings, settings.steps, steps)
    train_one(settings, 2, data.base, data.vocab_size, training, seed)


def train_one_layer(settings: Settings, seed: int, data: Data) -> None:
    """The model that is asked what one layer can know. One serves all seeds of the same data."""
    training = training_of(settings, settings.one_layer_steps, [])
    train_one(settings, 1, data.base, data.vocab_size, training, settings.one_layer_seed(seed))


def train_one(
    settings: Settings,
    num_layers: int,
    rows: rllc.Tokens,
    vocab_size: int,
    training: rllc.Training,
    seed: int,
) -> None:
    """Train one model in its folder."""
    folder = settings.folder(seed) / ("checkpoints" if num_layers == 2 else "one_layer")
    rllc.train(
        config_of(settings, num_layers, vocab_size),
        rows,
        folder,
        training=training,
        seed=seed,
        device=settings.device,
        progress=not settings.quiet,
    )


def config_of(settings: Settings, num_layers: int, vocab_size: int) -> AttentionOnlyConfig:
    """The fast start; the paper's for its own size."""
    sizes: dict[str, Any] = {
        "n_layers": num_layers,
        "d_model": settings.d_model,
        "n_heads": settings.heads,
        "d_head": settings.d_model // settings.heads,
        "n_ctx": settings.context,
        "d_vocab": vocab_size,
    }
    if settings.size == "full":
        return AttentionOnlyConfig(**sizes)
    return AttentionOnlyConfig.fast(**sizes)


def training_of(settings: Settings, num_steps: int, checkpoints: list[int]) -> rllc.Training:
    """The fast training, along a cosine; at the paper's size the paper's, AdamW.

    A cosine, because λ̂ must be compared over training: with a constant rate that falls at the end
    most of the change of λ̂ would come in that end.
    """
    changes: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_size": settings.batch,
        "checkpoints": checkpoints,
        "resume_every": 200,
    }
    if settings.size == "full":
        return rllc.Training(**changes, lr=1e-3)
    return rllc.Training.fast(**changes, decay="cosine", decay_steps=num_steps)


def measured_steps(settings: Settings) -> list[int]:
    """Step 0, and others even in log step, from a two-hundredth of the training on.

    Of the language the first tenth of the training is left out, step 0 too: there w* is no minimum
    for chains to stay at, and few checkpoints are looked at.
    """
    of_language = settings.size == "tiny"
    first = max(settings.steps // (10 if of_language else 200), 1)
    count = settings.checkpoints - (not of_language)
    spread = torch.logspace(0, 1, count, base=settings.steps / first)
    steps = {round(first * float(factor)) for factor in spread}
    return sorted(steps if of_language else steps | {0})


def averaged_steps(settings: Settings) -> list[int]:
    """The steps shortly before those measured, of which the weights are averaged."""
    steps = set()
    for step in measured_steps(settings):
        steps |= {round(step * share) for share in WINDOW}
    return sorted(steps)
