"""Train each seed's model, and a one-layer model on the same data."""

import multiprocessing
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from tqdm.auto import tqdm

import rllc

from .data import Data
from .settings import Settings

FOLDERS = {2: "checkpoints", 1: "one_layer"}


def train(settings: Settings, data: Mapping[int, Data]) -> None:
    """Train all models, several at once if there are processes for it."""
    models = [(seed, num_layers) for seed in data for num_layers in FOLDERS]
    if not settings.processes:
        for seed, num_layers in models:
            rows, vocab_size = plain(data[seed])
            train_one(settings, seed, num_layers, rows, vocab_size, not settings.quiet)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, context, initializer=begin_worker) as pool:
        futures = [
            pool.submit(train_one, settings, seed, num_layers, *plain(data[seed]))
            for seed, num_layers in models
        ]
        try:
            for future in tqdm(futures, desc="training", unit="model", disable=settings.quiet):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_worker() -> None:
    """Compute on one thread, and end when the process that started this one ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def plain(data: Data) -> tuple[np.ndarray, int]:
    """What a worker needs of the data: rows of token ids, and how many ids there are."""
    return data.base.rows.numpy(), data.vocab_size


def train_one(
    settings: Settings,
    seed: int,
    num_layers: int,
    rows: np.ndarray,
    vocab_size: int,
    progress: bool = False,
) -> None:
    """Train one model, or go on with it, or do nothing if it is finished."""
    config = rllc.models.AttentionOnlyConfig(
        n_layers=num_layers,
        d_model=settings.d_model,
        n_heads=settings.heads,
        d_head=settings.d_model // settings.heads,
        n_ctx=settings.context,
        d_vocab=vocab_size,
    )
    training = rllc.Training(
        num_steps=settings.steps,
        batch_size=settings.batch,
        lr=settings.lr_train,
    )
    rllc.train(
        config,
        rllc.Tokens(torch.from_numpy(rows), "training"),
        settings.folder(seed) / FOLDERS[num_layers],
        training=training,
        seed=seed,
        device=settings.device,
        progress=progress,
    )
