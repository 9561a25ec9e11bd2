"""What lowers the error of an estimate for its price, and what bfloat16 changes: on a small model trained here.

    python examples/benchmarks/noise.py               # 2 CPU cores, about 5 minutes

Prints, for some heads of the quickstart's model: the standard error with and without the control variate, and what it costs;
how far short estimates are from long ones when chains start at w* or at the local Gaussian; and λ̂ in bfloat16
beside float32, same seed.
"""

# %% A model that has learnt something
import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import rllc

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--out", type=Path, default=Path("rllc-out/noise"), help="folder of the training run"
)
parser.add_argument("--steps", type=int, default=2400, help="of training")
parser.add_argument("--draws", type=int, default=400)
parser.add_argument("--rounds", type=int, default=5, help="alternations for the timing")
parser.add_argument("--context", type=int, default=128)
parser.add_argument("--bytes", type=int, default=3_000_000, help="of text")
parser.add_argument(
    "--skip-bfloat16",
    action="store_true",
    help="where it is only emulated, it takes most of the time",
)
args = parser.parse_args()

texts = rllc.data.python_corpus(max_bytes=args.bytes)
tokenizer = rllc.data.train_tokenizer(
    [t for documents in texts.values() for t in documents], vocab_size=1000
)
data = rllc.data.mix(
    "all", *(rllc.data.tokenize(d, tokenizer, args.context, name=n) for n, d in texts.items())
)
config = rllc.models.AttentionOnlyConfig(
    d_model=64, n_heads=4, d_head=16, n_ctx=args.context, d_vocab=1000
)
training = rllc.Training(num_steps=args.steps, batch_size=16, lr=5e-3)
model = rllc.train(config, data, args.out, training=training, progress=False)
heads = [w.name for w in rllc.heads(model)]
some = heads[::3]


def estimate(weights: list[str], **changes: object) -> rllc.Estimate:
    return rllc.Estimate.of(sample(weights, **changes))


def sample(weights: list[str], **changes: object) -> rllc.Draws:
    settings = {"num_draws": args.draws, "num_burnin_steps": 20, "batch_size": 8} | changes
    sampler = settings.pop("sampler", None)
    return rllc.sample(
        model, data, weights, sampler=sampler, sampling=rllc.Sampling(**settings), progress=False
    )


def clock(weights: list[str], **changes: object) -> float:
    begin = time.perf_counter()
    sample(weights, num_draws=20, num_burnin_steps=0, num_probes=0, **changes)
    return time.perf_counter() - begin


def long_run(series: np.ndarray) -> np.ndarray:
    """Variance of the mean of each series [refinement, draw], from means of 20 blocks."""
    blocks = np.stack(np.array_split(series, 20, axis=-1)[:20])
    return np.stack([b.mean(-1) for b in blocks]).var(0, ddof=1) / 20


# %% The control variate: variance against cost, on the same draws
draws = [sample(heads, control_variate=True, start="gaussian", seed=s) for s in range(2)]
plain = [d.settings["n_beta"] * (d.loss - d.baseline).mean(1) for d in draws]
variance = np.stack(
    [long_run(d.llc.mean(1)) / long_run(p) for d, p in zip(draws, plain, strict=True)]
)
print(
    f"\nControl variate, {len(heads)} heads × 4 chains × {args.draws} draws of 8 × {args.context} tokens, 2 seeds"
)
print(f"{'head':>6} {'llc':>8} {'with it':>8} {'variance of the mean':>21} {'of a draw':>10}")
for i, name in enumerate(heads):
    p, d = np.concatenate([p[i] for p in plain]), np.concatenate([d.llc[i].mean(0) for d in draws])
    ratio = np.exp(np.log(variance[:, i]).mean())
    print(f"{name:>6} {p.mean():>8.3f} {d.mean():>8.3f} {ratio:>20.2f}× {d.var() / p.var():>9.2f}×")
for weights in (heads, heads[:2]):
    pairs = [(clock(weights), clock(weights, control_variate=True)) for _ in range(args.rounds)]
    cost = statistics.median(b / a for a, b in pairs)
    ratio = np.exp(np.log(variance).mean())
    print(
        f"{len(weights)} heads: variance {ratio:.2f}×, time {cost:.2f}×; {1 / (ratio * cost):.2f} times the precision a second"
    )

# %% Where chains start: the bias of a short estimate
short = args.draws // 10
print(
    f"\nBias of {short} draws without burn-in, in percent of the long-run value (lr 1e-4 relaxes 10 times slower)"
)
for lr, long in ((1e-3, 2 * args.draws), (1e-4, 5 * args.draws)):
    sampler = rllc.sgld(lr=lr)
    truth = estimate(some, sampler=sampler, num_draws=long, num_burnin_steps=long // 4)
    for start in ("center", "gaussian"):
        brief = [
            estimate(
                some, sampler=sampler, num_draws=short, num_burnin_steps=0, start=start, seed=s
            )
            for s in range(1, 4)
        ]
        bias = np.mean([e.value for e in brief], 0) / truth.value - 1
        print(
            f"  lr {lr:g}, start={start!r}: {100 * bias.mean():+.1f} %  ({', '.join(f'{100 * b:+.1f}' for b in bias)})"
        )

# %% bfloat16 products
if not args.skip_bfloat16:
    full, low = estimate(some), estimate(some, autocast="bfloat16")
    print(
        "\nbfloat16 beside float32, same seed: difference in percent of λ̂, and in standard errors"
    )
    for i, name in enumerate(some):
        difference = low.value[i] - full.value[i]
        print(
            f"  {name}: {100 * difference / full.value[i]:+.2f} %, {difference / full.standard_error[i]:+.2f} se"
        )
print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")
