"""What one GPU does, in one command of at most 8 minutes.

    python -m examples.benchmarks.gpu                      # one GPU
    python -m examples.benchmarks.gpu --device cpu --tiny  # the same lines on a CPU, in seconds

1. The tests marked ``gpu``.
2. A step of all 64 runs of the paper's model by precision of the products: seconds, tokens a
   second, and the share of what the GPU's products could do.
3. What TensorFloat-32 and bfloat16 do to λ̂, beside float32.
4. One checkpoint of the paper's model at the paper's settings: 16 heads × 4 chains × 200 draws of
   32 × 1024 tokens. Where that would take longer than there is time, fewer draws, and what the
   whole would take.

It prints tables. The folder of ``--out`` gets ``gpu.json`` after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rllc

from .engine.flops import ideal_flops
from .engine.tables import machine, table
from .engine.work import CHAINS, paper_model, random_tokens, timed

SECONDS = 480.0
"""Of all parts together."""

PEAKS = {
    "H100": {"float32": 6.7e13, "tf32": 4.9e14, "bfloat16": 9.9e14},
    "H200": {"float32": 6.7e13, "tf32": 4.9e14, "bfloat16": 9.9e14},
    "A100": {"float32": 1.95e13, "tf32": 1.56e14, "bfloat16": 3.12e14},
}
"""FLOPs a second of dense products, as the makers state them for the largest form of each."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    context: int
    batch: int
    draws: int
    rounds: int


PAPER = Size(context=1024, batch=32, draws=200, rounds=5)
TINY = Size(context=16, batch=2, draws=3, rounds=1)
SHORT = Size(context=256, batch=8, draws=40, rounds=1)
"""For the errors of part 3."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="seconds, to try that all works")
    parser.add_argument("--out", type=Path, default=Path("rllc-out/gpu"), help="output folder")
    parser.add_argument("--parts", default="1234", help="which parts")
    return parser.parse_args(argv)


def model_of(args: argparse.Namespace) -> Any:
    """The paper's model, or a small one, with weights that hide neither work nor errors."""
    if not args.tiny:
        return paper_model().to(args.device)
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "n_ctx": 64, "d_vocab": 300}
    return paper_model(**sizes).to(args.device)


# %% 1. The tests
def run_tests(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Run the tests marked ``gpu``, on the device that was asked for."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", "tests/test_gpu.py"]
    environment = {**os.environ, "RLLC_TEST_DEVICE": args.device}
    limit = min(left, 180.0)
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        print(f"1. The gpu tests did not end within {limit:.0f} s.\n")
        return {"summary": "out of time"}
    if result.returncode != 0:
        print(result.stdout[-6000:])
    summary = result.stdout.strip().splitlines()[-1]
    print(f"1. The gpu tests: {summary}\n")
    return {"summary": summary, "passed": result.returncode == 0}


# %% 2. A step
def time_steps(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Seconds of a step of all runs, by precision."""
    size = TINY if args.tiny else PAPER
    model = model_of(args)
    tokens = random_tokens(model, size.context)
    num_runs = CHAINS * len(rllc.heads(model))
    steps = {
        name: all_runs(model, tokens, size, autocast)
        for name, autocast in (("float32", None), ("bfloat16", "bfloat16"))
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(size.rounds):
        for name, iterator in steps.items():
            seconds[name].append(timed(partial(one_step, iterator, args.device)))
    config = model.config
    flops = statistics.mean(
        ideal_flops(config, size.context, layer, num_runs) for layer in range(config.n_layers)
    )
    num_tokens = num_runs * size.batch * size.context
    rows = []
    results: dict[str, Any] = {}
    for name, measured in seconds.items():
        median = statistics.median(measured)
        peak = peak_of(args.device, name)
        share = flops * num_tokens / median / peak if peak else float("nan")
        results[name] = {"seconds": measured, "share": share}
        of_run = 1e3 * median / num_runs
        cells = [f"{of_run:.2f}", f"{num_tokens / median:,.0f}", f"{share:.1%}"]
        rows.append([name, *cells])
    columns = ["products", "ms a run's step", "tokens/s", "of the GPU's peak"]
    title = f"2. A step of {num_runs} runs, {size.batch} × {size.context} tokens"
    table(title, columns, rows)
    if args.device.startswith("cuda"):
        gibibytes = torch.cuda.max_memory_allocated() / 2**30
        results["peak GiB"] = gibibytes
        print(f"    peak memory {gibibytes:.1f} GiB\n")
    return results


def all_runs(model: Any, tokens: rllc.Tokens, size: Size, autocast: str | None) -> Iterator[Any]:
    """An endless iterator; each ``next`` is one step of all runs."""
    sampling = rllc.Sampling(
        num_chains=CHAINS,
        num_draws=10**9,
        batch_size=size.batch,
        control_variate=False,
        autocast=autocast,
    )
    steps = rllc.iterate(model, tokens, rllc.heads(model), sampling=sampling)
    # Kernels are chosen and memory is got in the first steps.
    for _ in range(2):
        next(steps)
    return steps


def one_step(steps: Iterator[Any], device: str) -> None:
    next(steps)
    wait(device)


def wait(device: str) -> None:
    """Until the device has done what it was told to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_of(device: str, precision: str) -> float | None:
    """FLOPs a second of this GPU's products; ``None`` where they are not in the list."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    return next((peaks[precision] for gpu, peaks in PEAKS.items() if gpu in name), None)


# %% 3. What precision does to λ̂
def compare_precisions(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """λ̂ of every head in each precision, with the same noise and minibatches."""
    size = TINY if args.tiny else SHORT
    model = model_of(args)
    tokens = random_tokens(model, size.context)
    plain = estimate_in(model, tokens, size, None)
    others = {"bfloat16": estimate_in(model, tokens, size, "bfloat16")}
    with tensor_float():
        others["TensorFloat-32 outside"] = estimate_in(model, tokens, size, None)
    rows, results = [], {}
    for name, other in others.items():
        difference = other.value - plain.value
        in_errors = np.sqrt(np.mean((difference / plain.standard_error) ** 2))
        in_percent = 100 * np.median(abs(difference / plain.value))
        results[name] = {"in errors": float(in_errors), "percent": float(in_percent)}
        rows.append([name, f"{in_errors:.3f}", f"{in_percent:.3f} %"])
    columns = ["beside float32", "difference in standard errors", "median of |difference|"]
    table(f"3. λ̂ of {len(plain)} heads, {CHAINS} × {size.draws} draws", columns, rows)
    return results


def estimate_in(model: Any, tokens: rllc.Tokens, size: Size, autocast: str | None) -> rllc.Estimate:
    sampling = rllc.Sampling(
        num_chains=CHAINS,
        num_draws=size.draws,
        batch_size=size.batch,
        control_variate=False,
        num_probes=0,
        autocast=autocast,
    )
    compute = rllc.Compute(progress=False)
    return rllc.estimate(model, tokens, rllc.heads(model), sampling=sampling, compute=compute)


@contextmanager
def tensor_float() -> Iterator[None]:
    """TensorFloat-32 as people turn it on. rllc's numbers must not depend on it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# %% 4. The paper's estimate of a checkpoint
def one_checkpoint(args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Seconds of the paper's estimate, in each precision; measured, or from fewer draws."""
    size = TINY if args.tiny else PAPER
    model = model_of(args)
    tokens = random_tokens(model, size.context, rows=1024)
    end = time.perf_counter() + left - 20
    rows, results = [], {}
    for name, autocast in (("bfloat16", "bfloat16"), ("float32", None)):
        few = min(5, size.draws)
        trial = Size(size.context, size.batch, few, 1)
        work = partial(estimated, model, tokens, device=args.device, autocast=autocast)
        of_trial = timed(partial(work, trial))
        of_draw = of_trial / (few + 1)
        affordable = int((end - time.perf_counter()) / 2 / of_draw)
        draws = max(few, min(size.draws, affordable))
        measured = Size(size.context, size.batch, draws, 1)
        seconds = timed(partial(work, measured))
        whole = seconds * (size.draws + 1) / (draws + 1)
        results[name] = {"draws": draws, "seconds": seconds, "of all draws": whole}
        num_tokens = CHAINS * len(rllc.heads(model)) * (draws + 1) * size.batch * size.context
        cells = [f"{draws}", f"{seconds:.1f}", f"{whole:.1f}", f"{num_tokens / seconds:,.0f}"]
        rows.append([name, *cells])
    columns = ["products", "draws", "seconds", f"of {size.draws} draws", "tokens/s"]
    title = f"4. All heads of one checkpoint, {CHAINS} chains, {size.batch} × {size.context} tokens"
    table(title, columns, rows)
    return results


def estimated(
    model: Any, tokens: rllc.Tokens, size: Size, *, autocast: str | None, device: str
) -> None:
    estimate_in(model, tokens, size, autocast)
    wait(device)


PARTS = {
    "1": ("tests", run_tests),
    "2": ("step", time_steps),
    "3": ("precision", compare_precisions),
    "4": ("checkpoint", one_checkpoint),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the parts that are asked for; returns what they measured, by name."""
    args = arguments(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "there is no CUDA here; try: python -m examples.benchmarks.gpu --device cpu --tiny"
        )
    begin = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(torch.get_num_threads())}
    print(f"{results['machine']}\n")
    for part in args.parts:
        name, measure = PARTS[part]
        left = SECONDS - (time.perf_counter() - begin)
        results[name] = measure(args, left)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1))
        print(f"[{time.perf_counter() - begin:.0f} s so far]\n", flush=True)
    return results


if __name__ == "__main__":
    main()
