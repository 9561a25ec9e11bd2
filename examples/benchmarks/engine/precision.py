"""(c) Seconds until the error is small, both libraries by one ruler.

The ruler is the standard deviation over seeds: the seconds needed are those at which it was
measured times (error / target)².
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import rllc

from .tables import table
from .work import CHAINS, N_BETA, one_of_each_layer, theirs

TARGET = 0.02
"""Standard error over value."""
BATCH = 8
NOTE = """\
    Errors are deviations over 6 seeds, extrapolated by the 1/√ law; devinterp's batches for w* grow
    in proportion to its 64 draws × 4 chains. For equal seeds these are the batches of its first
    draws: with as many as draws it is paired, too. That its chains start at w*, which lowers its
    values by a share that falls with 1/draws, is not counted.
"""


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Seconds until every head's error is below the target, by library."""
    model, tokens = trained(args)
    num_layers = model.config.n_layers
    values, reported, seconds = our_repeats(model, tokens)
    llc = values.mean(0)
    # Heads of a layer are alike, and 6 seeds are few: their variances are pooled.
    relative = values.std(0, ddof=1) / llc
    by_layer = np.sqrt(np.mean(relative.reshape(num_layers, -1) ** 2, axis=1))
    by_own_error = np.sqrt(np.mean(reported**2, axis=0)) / llc
    needed = seconds * (by_layer.max() / TARGET) ** 2
    needed_by_own_error = seconds * (by_own_error.max() / TARGET) ** 2
    results: dict[str, object] = {
        "llc": llc.tolist(),
        "ours": [needed, seconds, by_layer.tolist()],
        "reported": by_own_error.tolist(),
    }
    rows = [
        ["rllc", f"{needed:,.0f}", "1", f"{by_layer.max():.3f}", f"{seconds:.1f}"],
        [
            "by its own error",
            f"{needed_by_own_error:,.0f}",
            "",
            f"{by_own_error.max():.3f}",
            f"{seconds:.1f}",
        ],
    ]
    for init_batches in (16, 64):
        name = f"devinterp, w* from {init_batches} batches"
        theirs_needed, worst, as_run = their_precision(model, tokens, llc, init_batches)
        results[name] = [theirs_needed, as_run, worst]
        ratio = theirs_needed / needed
        rows.append(
            [name, f"{theirs_needed:,.0f}", f"{ratio:.1f}", f"{worst:.3f}", f"{as_run:.1f}"]
        )
    columns = ["", "seconds needed", "× rllc", "worst error / value, as run", "seconds, as run"]
    title = (
        f"(c) Seconds until every head's error is below {TARGET:.0%} of its wrLLC "
        f"(trained, {len(llc)} heads, batch {BATCH})"
    )
    table(title, columns, rows)
    heads = [weights.name for weights in rllc.heads(model)]
    of_heads = [f"{head} {value:.2f}" for head, value in zip(heads, llc, strict=True)]
    print(f"    {'  '.join(of_heads)}")
    print(NOTE)
    return results


def trained(args: argparse.Namespace) -> tuple[Any, rllc.Tokens]:
    """A small trained model and its tokens: ``--checkpoint``, or one trained here, once."""
    texts = rllc.data.python_corpus(max_bytes=2_000_000)
    documents = [text for subset in texts.values() for text in subset]
    if args.checkpoint:
        folder = Path(args.checkpoint)
        model: Any = rllc.load(folder)
        tokenizer = rllc.data.load_tokenizer(folder.parent / "tokenizer")
        return model, shuffled(documents, tokenizer, model.config.n_ctx)
    tokenizer = rllc.data.train_tokenizer(documents, vocab_size=1000)
    tokens = shuffled(documents, tokenizer, context=128)
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=128, d_vocab=1000
    )
    start = time.perf_counter()
    model = rllc.train(
        config,
        tokens,
        args.out / "trained",
        training=rllc.Training(num_steps=1500, batch_size=32, lr=2e-3),
        progress=False,
    )
    print(f"trained a small model on {tokens} in {time.perf_counter() - start:.0f} s")
    return model, tokens


def shuffled(documents: list[str], tokenizer: Any, context: int) -> rllc.Tokens:
    return rllc.data.mix("python", rllc.data.tokenize(documents, tokenizer, context))


def our_repeats(
    model: Any, tokens: rllc.Tokens, seeds: int = 6, draws: int = 100
) -> tuple[np.ndarray, np.ndarray, float]:
    """Values and reported errors ``[seed, head]``, and the seconds of one seed."""
    start = time.perf_counter()
    estimates = []
    for seed in range(seeds):
        sampling = rllc.Sampling(
            num_draws=draws,
            batch_size=BATCH,
            seed=seed,
            start="gaussian",
            control_variate=False,
        )
        estimate = rllc.estimate(
            model,
            tokens,
            rllc.heads(model),
            sampling=sampling,
            compute=rllc.Compute(progress=False),
        )
        estimates.append(estimate)
    seconds = (time.perf_counter() - start) / seeds
    values = np.stack([estimate.value for estimate in estimates])
    errors = np.stack([estimate.standard_error for estimate in estimates])
    return values, errors, seconds


def their_precision(
    model: Any,
    tokens: rllc.Tokens,
    llc: np.ndarray,
    init_batches: int,
    draws: int = 64,
    seeds: int = 6,
) -> tuple[float, float, float]:
    """Seconds needed for all heads, the worst error over value, and seconds of a seed as run."""
    needed = 0.0
    worst = 0.0
    as_run = 0.0
    of_layers = llc.reshape(model.config.n_layers, -1)
    for weights, values in zip(one_of_each_layer(model), of_layers, strict=True):
        start = time.perf_counter()
        repeats = []
        for seed in range(seeds):
            result = theirs(
                model,
                tokens,
                BATCH,
                weights,
                draws,
                chains=CHAINS,
                init_batches=init_batches,
                seed=1000 * seed,
            )
            # As its compute_llc does.
            rise = float(result.sampling_loss_micro.mean() - result.init_loss.mean())
            repeats.append(N_BETA * rise)
        seconds = (time.perf_counter() - start) / seeds
        relative = np.std(repeats, ddof=1) / values
        needed += float(np.sum(seconds * (relative / TARGET) ** 2))
        worst = max(worst, float(relative.max()))
        as_run += seconds * len(values)
    return needed, worst, as_run
