"""(d) Peak resident memory, each case in a process of its own.

``python -m examples.benchmarks.engine.memory CASE CONTEXT BATCH THREADS`` prints that of one.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

import rllc

from .tables import table
from .work import CHAINS, SIZES, ours, paper_model, random_tokens, theirs

CASES = {
    "devinterp": "devinterp, 1 head × 4 chains",
    "one-head": "rllc, 1 head × 4 chains",
    "passes-of-8": "rllc, 64 runs, passes of 8",
    "default": "rllc, 64 runs, default",
    "passes-of-32": "rllc, 64 runs, at once in each layer",
}


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """MiB, by size and case."""
    results = {}
    rows = []
    for size, (context, batch) in SIZES.items():
        for case, name in CASES.items():
            options = [case, str(context), str(batch), str(args.threads)]
            command = [sys.executable, "-m", __name__, *options]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peak = json.loads(printed.splitlines()[-1])
            results[f"{size}, {name}"] = peak
            rows.append([size, name, f"{peak['work']:,.0f}", f"{peak['peak']:,.0f}"])
    columns = ["context × batch", "", "of the work", "with imports and model"]
    table("(d) Peak resident memory, MiB", columns, rows)
    return results


def peak_memory(case: str, context: int, batch: int) -> dict[str, float]:
    """Resident memory with everything loaded, and the peak over two evaluations of each run."""
    model = paper_model()
    tokens = random_tokens(model, context)
    if case == "devinterp":
        import devinterp.slt.sampling  # noqa: F401 (not counted)
    before = resident("VmRSS")
    if case == "devinterp":
        theirs(model, tokens, batch, rllc.head("0:0"), draws=3, chains=CHAINS)
    else:
        weights = [rllc.head("0:0")] if case == "one-head" else None
        runs_per_pass = {"one-head": 4, "passes-of-8": 8, "passes-of-32": 32}.get(case)
        ours(model, tokens, batch, weights, runs_per_pass=runs_per_pass)
    peak = resident("VmHWM")
    return {"before": before, "peak": peak, "work": peak - before}


def resident(field: str) -> float:
    """MiB. From Linux, since a child's ``ru_maxrss`` starts at its parent's; else the peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        units = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
    lines = status.read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(field))
    return int(kilobytes) / 1024


if __name__ == "__main__":
    case, context, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peak_memory(case, int(context), int(batch))))
