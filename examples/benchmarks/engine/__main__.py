"""How fast the sampling engine is: beside an ideal implementation, and beside devinterp 2.0.1.

    python -m examples.benchmarks.engine            # 2 CPU cores, below 10 minutes
    python -m examples.benchmarks.engine --full     # one GPU: the paper's estimate of a checkpoint

Run it in the folder of the repository; it needs devinterp==2.0.1. It prints tables; the folder of
``--out`` gets ``engine.json``, ``growth.csv`` and ``growth.png``. The work is the paper's: SGLD
(ε = 1e-3, γ = 200, nβ = 30) on each of the 16 heads of its two-layer model, 4 chains a head, so 64
runs. The file of each part says what it measures.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from . import clock, flops, full, growth, memory, precision
from .tables import machine

PARTS = {
    "a": ("flops", flops.measure),
    "b": ("clock", clock.measure),
    "c": ("precision", precision.measure),
    "d": ("memory", memory.measure),
    "e": ("growth", growth.measure),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/engine"), help="output folder")
    parser.add_argument(
        "--checkpoint",
        help="for part (c), the quickstart's .../checkpoints; default: trains a small model",
    )
    parser.add_argument(
        "--parts",
        default="".join(PARTS),
        help="which parts, of: a FLOPs, b clock, c precision, d memory, e growth",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="alternations of which medians are taken"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--full", action="store_true", help="the paper's whole estimate instead, on a GPU"
    )
    parser.add_argument("--device", default="cuda", help="where --full runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Run the parts that are asked for; returns what they measured, by name."""
    args = arguments(argv)
    begin = time.perf_counter()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {"machine": machine(args.threads)}
    print(f"{results['machine']}\n")
    parts = [("full", full.measure)] if args.full else [PARTS[letter] for letter in args.parts]
    for name, measure in parts:
        results[name] = measure(args)
        (args.out / "engine.json").write_text(json.dumps(results, indent=1))
        print(f"[{time.perf_counter() - begin:.0f} s so far]\n", flush=True)
    return results


if __name__ == "__main__":
    main()
