"""The work that is measured, as rllc and as devinterp do it."""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rllc

CHAINS = 4
N_BETA = 30.0
LR = 1e-3
LOCALIZATION = 200.0
SIZES = {"256 × 8": (256, 8), "1024 × 2": (1024, 2)}
"""Context and batch."""


def paper_model(**sizes: Any) -> rllc.models.AttentionOnly:
    """The paper's sizes, or others; no LayerNorm or bias has a value that hides work or errors."""
    torch.manual_seed(0)
    model = rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def random_tokens(model: Any, context: int, rows: int = 128) -> rllc.Tokens:
    stream = torch.Generator().manual_seed(0)
    return rllc.Tokens(torch.randint(model.config.d_vocab, (rows, context), generator=stream))


def one_of_each_layer(model: Any) -> list[rllc.Weights]:
    """What devinterp does depends on the layer of the head, not on the head."""
    return [rllc.head(f"{layer}:0") for layer in range(model.config.n_layers)]


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(
    model: Any,
    tokens: rllc.Tokens,
    batch: int,
    weights: Sequence[rllc.Weights] | None = None,
    *,
    chains: int = CHAINS,
    autocast: str | None = None,
    runs_per_pass: int | None = None,
) -> Iterator[Any]:
    """An endless iterator; each ``next`` is one step of all runs."""
    sampling = rllc.Sampling(
        num_chains=chains,
        num_draws=10**9,
        batch_size=batch,
        n_beta=N_BETA,
        control_variate=False,
        autocast=autocast,
    )
    steps = rllc.iterate(
        model,
        tokens,
        rllc.heads(model) if weights is None else weights,
        sampler=rllc.sgld(LR, LOCALIZATION),
        sampling=sampling,
        compute=rllc.Compute(runs_per_pass=runs_per_pass),
    )
    # The first step comes with the one before it.
    next(steps)
    return steps


def theirs(
    model: Any,
    tokens: rllc.Tokens,
    batch: int,
    weights: rllc.Weights,
    draws: int,
    *,
    chains: int = 1,
    init_batches: int = 1,
    seed: int = 0,
    times: list[float] | None = None,
) -> Any:
    """devinterp's public ``sample``, with the loss at w* from ``init_batches``.

    Appends the time of each loss to ``times``.
    """
    try:
        from devinterp.slt.lm_loss import compute_per_token_loss
        from devinterp.slt.sampling import sample
    except ImportError:
        sys.exit(
            "comparing with devinterp: it is not installed; type: pip install devinterp==2.0.1"
        )
    import datasets

    def loss(module: Any, rows: Any) -> Any:
        if times is not None:
            times.append(time.perf_counter())
        return compute_per_token_loss(module, rows)

    ids = tokens.rows.numpy().astype(np.int64)
    rows = datasets.Dataset.from_dict({"input_ids": ids}).with_format("torch")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        tree = sample(
            model,
            rows,
            {},
            lr=LR,
            n_beta=N_BETA,
            localization=LOCALIZATION,
            param_masks=weights.masks(model),
            num_chains=chains,
            num_draws=draws,
            batch_size=batch,
            num_init_loss_batches=init_batches,
            init_seed=seed,
            device="cpu",
            loss_fn=loss,
            output_path=Path(folder) / "samples.zarr",
        )
        return tree.dataset.load()


def their_seconds(
    model: Any, tokens: rllc.Tokens, batch: int, weights: rllc.Weights, steps: int
) -> list[float]:
    """Seconds of each step: from one loss to the next is a forward, a backward and a step."""
    times: list[float] = []
    theirs(model, tokens, batch, weights, draws=steps + 1, times=times)
    # The first loss is that at w*; their start-up is left out.
    seconds: list[float] = np.diff(times[1:]).tolist()
    return seconds
