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

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("rllc-out/noise"), help="folder of the training run")
parser.add_argument("--steps", type=int, default=2400, help="of training")
parser.add_argument("--draws", type=int, default=400)
parser.add_argument("--rounds", type=int, default=5, help="alternations for the timing")
args = parser.parse_args()

texts = rllc.data.python_corpus(max_bytes=3_000_000)
tokenizer = rllc.data.train_tokenizer([t for documents in texts.values() for t in documents], vocab_size=1000)
data = rllc.data.mix("all", *(rllc.data.tokenize(d, tokenizer, 128, name=n) for n, d in texts.items()))
config = rllc.models.AttentionOnlyConfig(d_model=64, n_heads=4, d_head=16, n_ctx=128, d_vocab=1000)
model = rllc.train(config, data, num_steps=args.steps, batch_size=16, lr=5e-3, out=args.out)
heads = ["0:0", "0:3", "1:0", "1:3"]


def estimate(**changes: object) -> rllc.Estimate:
    settings = {"num_draws": args.draws, "num_burnin_steps": 20, "batch_size": 8} | changes
    sampler = settings.pop("sampler", None)
    return rllc.estimate(model, data, heads, sampler=sampler, sampling=rllc.Sampling(**settings), progress=False)


def clock(**changes: object) -> float:
    begin = time.perf_counter()
    estimate(num_draws=20, num_burnin_steps=0, **changes)
    return time.perf_counter() - begin


# %% The control variate: variance against cost
plain, controlled = estimate(), estimate(control_variate=True)
pairs = [(clock(), clock(control_variate=True)) for _ in range(args.rounds)]
cost = statistics.median(b / a for a, b in pairs)
print(f"\nControl variate, {len(heads)} heads × 4 chains × {args.draws} draws of 8 × 128 tokens")
print(f"{'head':>6} {'llc':>8} {'± se':>7} {'with it':>8} {'± se':>7} {'variance':>9}")
for i, name in enumerate(heads):
    ratio = (controlled.standard_error[i] / plain.standard_error[i]) ** 2
    print(
        f"{name:>6} {plain.value[i]:>8.3f} {plain.standard_error[i]:>7.3f} {controlled.value[i]:>8.3f} "
        f"{controlled.standard_error[i]:>7.3f} {ratio:>8.2f}×"
    )
variance = np.exp(np.mean(2 * np.log(controlled.standard_error / plain.standard_error)))
gain = 1 / (variance * cost)
print(f"variances' ratio, geometric mean {variance:.2f}; time {cost:.2f}×; {gain:.1f} times the precision a second")

# %% Where chains start: the bias of a short estimate
print("\nBias of 40 draws without burn-in, in percent of the long-run value (lr 1e-4 relaxes 10 times slower)")
for lr, long in ((1e-3, 800), (1e-4, 3000)):
    sampler = rllc.sgld(lr=lr)
    truth = estimate(sampler=sampler, num_draws=long, num_burnin_steps=long // 4, control_variate=True)
    for start in ("center", "gaussian"):
        short = [
            estimate(sampler=sampler, num_draws=40, num_burnin_steps=0, start=start, seed=s, control_variate=True)
            for s in range(1, 4)
        ]
        bias = np.mean([e.value for e in short], 0) / truth.value - 1
        print(
            f"  lr {lr:g}, start={start!r}: {100 * bias.mean():+.1f} %  ({', '.join(f'{100 * b:+.1f}' for b in bias)})"
        )

# %% bfloat16 products
low = estimate(control_variate=True, autocast="bfloat16")
print("\nbfloat16 beside float32, same seed: difference in percent of λ̂, and in standard errors")
for i, name in enumerate(heads):
    difference = low.value[i] - controlled.value[i]
    print(
        f"  {name}: {100 * difference / controlled.value[i]:+.2f} %, {difference / controlled.standard_error[i]:+.2f} se"
    )
print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")
