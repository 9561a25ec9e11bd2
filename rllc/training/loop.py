"""The training loop: checkpoints on a schedule, interrupted and resumed without a trace."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rllc.data.minibatches import Minibatches
from rllc.data.tokens import Tokens
from rllc.engine.modes import undisturbed
from rllc.errors import InputError, first_line, must_be
from rllc.storage.contents import digest as digest_of
from rllc.storage.files import as_path
from rllc.storage.identity import numerics
from rllc.threads import chosen_for
from rllc.training.folder import RunFolder
from rllc.training.reproducible import digest, reproducible, seed_step
from rllc.training.run import Run, initial_model
from rllc.training.settings import Training

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_STEPS_BETWEEN_READS = 20
"""Losses stay on the device and are read together: reading one makes the host wait for a GPU."""

_NOT_OF_TRAINING = ("transformers_version", "architectures", "dtype")
"""Fields of a configuration that do not bear on training."""


def train(
    config: PreTrainedConfig | PreTrainedModel,
    tokens: Tokens | Tensor,
    out: str | os.PathLike[str] | None = None,
    *,
    training: Training | None = None,
    seed: int = 0,
    resume: bool = True,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Train a language model to predict the next token, and keep its checkpoints.

    >>> from rllc.models import AttentionOnlyConfig
    >>> config = AttentionOnlyConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10)
    >>> training = Training(num_steps=2, batch_size=2)
    >>> model = train(config, Tokens([[0, 1, 2], [0, 3, 4]]), training=training, progress=False)

    The same call on the same folder goes on where the last one ended, whether that was killed or
    finished with fewer steps; a finished run is only loaded. The result is bit-equal to that of an
    unbroken run on one kind of device with the same versions and number of threads (a warning tells
    where these differ). Torch's random state and settings are as before when this returns or
    raises. :mod:`rllc.training.folder` says what the folder holds.

    Args:
        config: of a causal language model, such as :class:`rllc.models.AttentionOnlyConfig`; its
            weights are drawn from ``seed``. Or a model to start from, which is copied and stays as
            it is.
        tokens: rows ``[row, pos]``. Each row is used once before any is used again.
        out: the run's folder; ``None`` writes nothing.
        training: steps, optimiser, precision and checkpoints; by default the paper's.
        seed: of initial weights, order of rows and dropout, if the model has any.
        resume: ``False`` refuses a folder that holds a run already.
        device: where to train; by default the CPU, or where the given model is.
        progress: show a bar with the loss.

    Returns:
        The model, on ``device``, in eval mode.

    Raises:
        InputError: an argument cannot be used, or the folder holds a run with other settings or
            data (they are listed).
        FileError: the folder cannot be written or holds something else, or ``resume.pt`` is
            damaged.
        RllcError: the loss or a weight stopped being finite.

    Reference: arXiv 2410.02984, section on training.
    """
    right = training is None or isinstance(training, Training)
    must_be("train", "training", training, right, "None or rllc.Training(…)")
    right = isinstance(seed, int) and not isinstance(seed, bool)
    must_be("train", "seed", seed, right, "a whole number")
    must_be("train", "resume", resume, isinstance(resume, bool), "True or False")
    must_be("train", "progress", progress, isinstance(progress, bool), "True or False")
    if out is not None:
        as_path(out, "train", "out")
    training = Training() if training is None else training
    tokens = tokens if isinstance(tokens, Tokens) else Tokens(tokens)
    batches = Minibatches(len(tokens), training.batch_size, seed=("train", seed))
    _check_data(config, tokens)
    with torch.inference_mode(False):
        model: Any = initial_model(config, seed, training.dtype)
    settings = {
        "numerics": numerics(training.autocast),
        "config": _fields(model.config),
        "initial_weights": digest(model.state_dict()) if isinstance(config, nn.Module) else None,
        "code": digest_of(type(model), "training: the model"),
        "data": {
            "fingerprint": tokens.fingerprint,
            "rows": len(tokens),
            "positions": tokens.num_positions,
        },
        "seed": seed,
        **training.numbers(),
    }
    if device is not None:
        model = _on(model, device)
    run = Run.begin(model, training)
    with (
        RunFolder.locked(out) as folder,
        undisturbed(model),
        reproducible(model.device),
        chosen_for(model),
    ):
        start = folder.take_up(run, settings, tokens.name, resume)
        _take_steps(run, start, folder, tokens, batches, seed, progress)
    return model.eval()


def _on(model: Any, device: torch.device | str) -> Any:
    right = isinstance(device, str | torch.device)
    must_be("train", "device", device, right, "such as 'cpu' or 'cuda'")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch knows no such device, or has none
        raise InputError(
            f"train: the model cannot be put on `device` = {device!r}: {first_line(error)}."
        ) from error


def _take_steps(
    run: Run,
    start: int,
    folder: RunFolder,
    tokens: Tokens,
    batches: Minibatches,
    seed: int,
    progress: bool,
) -> None:
    training = run.training
    device = run.model.device
    checkpoint_steps = set(training.checkpoint_steps())
    first_unread = start
    bar = tqdm(
        total=training.num_steps,
        initial=start,
        desc="training",
        unit="step",
        disable=not progress,
    )
    with bar:
        for step in range(start, training.num_steps + 1):
            at_checkpoint = step in checkpoint_steps
            every = training.resume_every
            at_resume = at_checkpoint or (every is not None and step % every == 0)
            if at_resume or step - first_unread >= _STEPS_BETWEEN_READS:
                run.check_losses(first_unread, step)
                _show_last_loss(bar, run.losses[first_unread:step])
                first_unread = step
            if at_checkpoint:
                run.check_weights(step)
                folder.write_checkpoint(run.model, step)
            if at_resume:
                folder.write_resume(run, step)
            if step < training.num_steps:
                seed_step(seed, step, device)
                run.take_step(step, _batch(tokens, batches[step], device))
                bar.update()


def _show_last_loss(bar: tqdm, losses: Tensor) -> None:
    if len(losses):
        bar.set_postfix(loss=f"{float(losses[-1]):.3f}", refresh=False)


def _batch(tokens: Tokens, rows: Tensor, device: torch.device) -> Tensor:
    batch = tokens.rows[rows]
    if device.type == "cuda":
        # From memory that is not pinned the copy would wait for the steps before it.
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True).long()


def _check_data(config: Any, tokens: Tokens) -> None:
    if isinstance(config, nn.Module) and hasattr(config, "save_pretrained"):
        config = config.config
    vocab = getattr(config, "vocab_size", None)
    context = getattr(config, "max_position_embeddings", None)
    if vocab is None:
        raise InputError(
            f"training: `config` must be a configuration of a causal language model, such as "
            f"AttentionOnlyConfig, or a transformers model, got {type(config).__name__}. For other "
            f"models write your own loop, with a Tracker."
        )
    if tokens.largest_id >= vocab:
        raise InputError(
            f"training: {tokens!r} has token id {tokens.largest_id}, but the model's vocabulary "
            f"has {vocab} ids (0 to {vocab - 1}). Set `d_vocab` (`vocab_size`) to the tokenizer's "
            f"number of ids."
        )
    if context is not None and tokens.num_positions > context:
        raise InputError(
            f"training: {tokens!r} has rows of {tokens.num_positions} positions, but the model's "
            f"context is {context}. Set `n_ctx` (`max_position_embeddings`) to it, or tokenize "
            f"with context_length={context}."
        )


def _fields(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it, without what does not bear on training."""
    # All fields, because one that is at its default in one run may not be in another.
    values = json.loads(json.dumps(config.to_dict(), default=str))
    return {
        name: value
        for name, value in values.items()
        if name not in _NOT_OF_TRAINING and not name.startswith("_")
    }
