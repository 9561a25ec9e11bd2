"""``--full``: the paper's estimate of one checkpoint, on a GPU.

All 16 heads × 4 chains × 200 draws at 32 × 1024 tokens in bfloat16.
"""

import argparse

import torch

import rllc

from .tables import table
from .work import CHAINS, paper_model, random_tokens, timed

DRAWS = 200
CONTEXT = 1024
BATCH = 32
FLOP = 2.7e15
"""Of the products of a checkpoint that cannot be avoided."""
PEAK = 7.9e14
"""FLOPs a second of an H200 in bfloat16, dense."""


def measure(
    args: argparse.Namespace, draws: int = DRAWS, context: int = CONTEXT, batch: int = BATCH
) -> dict[str, float]:
    """Seconds, tokens a second, the share of the roofline, and memory."""
    model = paper_model().to(args.device)
    tokens = random_tokens(model, context, rows=1024)
    weights = rllc.heads(model)
    on_gpu = args.device.startswith("cuda")

    def estimate(num_draws: int) -> None:
        sampling = rllc.Sampling(
            num_chains=CHAINS,
            num_draws=num_draws,
            batch_size=batch,
            control_variate=False,
            autocast="bfloat16",
        )
        compute = rllc.Compute(progress=False)
        rllc.estimate(model, tokens, weights, sampling=sampling, compute=compute)
        if on_gpu:
            torch.cuda.synchronize()

    # Kernels are chosen and memory is got in a first call.
    estimate(3)
    seconds = timed(lambda: estimate(draws))
    num_tokens = CHAINS * len(weights) * (draws + 1) * batch * context
    speed = num_tokens / seconds
    share = FLOP / PEAK / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    columns = ["seconds", "tokens/s (over all runs)", "of the roofline", "peak GiB"]
    title = (
        f"One checkpoint: {len(weights)} heads × {CHAINS} chains × {draws} draws, "
        f"{batch} × {context} tokens, bfloat16"
    )
    table(title, columns, [[f"{seconds:.1f}", f"{speed:,.0f}", f"{share:.1%}", f"{peak:.1f}"]])
    print(
        f"    roofline: {FLOP:.1e} FLOP of products that cannot be avoided at {PEAK:.1e} a second "
        "(H200, dense)"
    )
    return {"seconds": seconds, "tokens_per_second": speed, "fraction": share, "peak_gib": peak}
