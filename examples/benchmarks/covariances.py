"""The work of susceptibilities, in floating-point operations, beside devinterp's.

    python examples/benchmarks/covariances.py            # the paper's model, minutes
    python examples/benchmarks/covariances.py --tiny     # a quarter of each size, seconds

Work is counted, not timed, so a busy machine does not matter. Both libraries sample each of the
16 heads on the same rows, and what is printed is of one draw of one chain of four, which here share
what does not move. Draws and rows only multiply it. devinterp
(``pip install devinterp==2.0.1``) observes two data sets, one for φ and one for the probes, and
samples all weights once more; here the one-chain form needs the probes alone.
"""

# %% What is asked for
import argparse
import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rllc
from rllc.models import AttentionOnly, AttentionOnlyConfig


@dataclass(frozen=True)
class Size:
    """A model, and how many rows are sampled on and observed."""

    config: AttentionOnlyConfig
    num_rows: int = 2
    num_probes: int = 4
    num_draws: int = 1
    num_chains: int = 4


PAPERS = Size(AttentionOnlyConfig())
TINY = Size(AttentionOnlyConfig(d_model=64, d_head=8, n_ctx=256, d_vocab=1250))


def rows_of(size: Size, count: int, seed: int) -> rllc.Tokens:
    stream = torch.Generator().manual_seed(seed)
    shape = (count, size.config.n_ctx)
    return rllc.Tokens(torch.randint(size.config.d_vocab, shape, generator=stream))


# %% Observing: what a draw needs, and what it costs
def needed(size: Size, layer: int) -> int:
    """Operations of one run's forward pass over the probes, from its head on.

    Everything before the head's layer, and the other heads of that layer, do not move.
    """
    c = size.config
    positions = size.num_probes * c.n_ctx
    maps = 4 * 2 * positions * c.d_model * c.d_head
    attention = 4 * size.num_probes * c.n_ctx**2 * c.d_head
    unembedding = 2 * size.num_probes * (c.n_ctx - 1) * c.d_model * c.d_vocab
    later_heads = c.n_heads * (c.n_layers - 1 - layer)
    return (1 + later_heads) * (maps + attention) + unembedding


def observing(model: nn.Module, size: Size, layer: int) -> float:
    """Operations of observing the probes at one draw of one run, over what is needed."""
    heads = [f"{layer}:{head}" for head in range(size.config.n_heads)]
    rows, probes = rows_of(size, size.num_rows, 0), rows_of(size, size.num_probes, 1)
    counts = []
    for num_draws in (1, 1 + size.num_draws):
        for observe in ({}, {"probes": rllc.losses_on(probes)}):
            with FlopCounterMode(display=False) as counter:
                rllc.sample(
                    model,
                    rows,
                    heads,
                    sampling=sampling(size, num_draws),
                    compute=rllc.Compute(progress=False),
                    observe=observe,
                )
            counts.append(counter.get_total_flops())
    of_draws = (counts[3] - counts[2]) - (counts[1] - counts[0])
    of_run = of_draws / size.num_draws / size.num_chains / len(heads)
    return of_run / needed(size, layer)


def sampling(size: Size, num_draws: int) -> rllc.Sampling:
    return rllc.Sampling(
        num_chains=size.num_chains,
        num_draws=num_draws,
        batch_size=size.num_rows,
        num_probes=0,
        start="center",
        control_variate=False,
    )


# %% A matrix of susceptibilities
def ours(model: nn.Module, size: Size, num_draws: int, *, reference: bool = False) -> int:
    """Operations of sampling all heads and observing the probes."""
    rows, probes = rows_of(size, size.num_rows, 0), rows_of(size, size.num_probes, 1)
    weights = rllc.heads(model)
    selections = [weights]
    if reference:
        selections.append([rllc.everything()])
    # Covariances of what was observed take no products of matrices.
    with FlopCounterMode(display=False) as counter:
        for selection in selections:
            rllc.sample(
                model,
                rows,
                selection,
                sampling=sampling(size, num_draws),
                compute=rllc.Compute(progress=False),
                observe={"probes": rllc.losses_on(probes)},
            )
    return counter.get_total_flops()


def theirs(model: nn.Module, size: Size, num_draws: int) -> int:
    """Operations of devinterp's, of one chain; it samples one after another."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import Dataset
    from devinterp.slt.susceptibilities import susceptibilities

    def dataset(count: int, seed: int) -> Dataset:
        ids = rows_of(size, count, seed).rows.tolist()
        return Dataset.from_dict({"input_ids": ids}).with_format("torch")

    restrictions: dict[str, object] = {"full": None}
    for weights in rllc.heads(model):
        masks = {name: mask.float() for name, mask in weights.masks(model).items()}
        restrictions[weights.name.replace(":", "_")] = masks
    batches = size.num_probes // size.num_rows
    observables = {
        "task": (dataset(size.num_probes, 2), batches),
        "probes": (dataset(size.num_probes, 1), batches),
    }
    quiet = contextlib.redirect_stderr(io.StringIO())
    with FlopCounterMode(display=False) as counter, quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        susceptibilities(
            model,
            dataset(size.num_rows, 0),
            observables,
            restrictions,
            sampling_task="task",
            lr=1e-4,
            n_beta=30.0,
            localization=200.0,
            num_chains=1,
            num_draws=num_draws,
            batch_size=size.num_rows,
            num_init_loss_batches=1,
            device="cpu",
        )
    return counter.get_total_flops()


def per_draw(count: Callable[..., int], model: nn.Module, size: Size) -> float:
    """Operations of one draw of one chain, without what is done once."""
    more = count(model, size, 1 + size.num_draws) - count(model, size, 1)
    return more / size.num_draws / size.num_chains


# %% All of it
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a quarter of each size")
    size = TINY if parser.parse_args(argv).tiny else PAPERS
    torch.manual_seed(0)
    model = AttentionOnly(size.config).eval()
    for layer in range(size.config.n_layers):
        share = observing(model, size, layer)
        print(f"observing rows at a draw, heads of layer {layer}: {share:.3f} of what it needs")
    own = per_draw(ours, model, size)
    both = per_draw(partial(ours, reference=True), model, size)
    print(f"16 heads, a draw of a chain: {own:.4g} operations")
    print(f"with a reference chain: {both:.4g}")
    try:
        other = per_draw(theirs, model, size) * size.num_chains
    except ImportError:
        print("devinterp is not installed")
        return
    print(f"devinterp: {other:.4g}")
    print(f"that is {other / own:.2f} times the one-chain form, {other / both:.2f} times the other")


if __name__ == "__main__":
    main()
