"""What a sweep costs beside its cells, and what a second process gains.

    python examples/benchmarks/sweeps.py              # 2 otherwise idle CPU cores, about 5 minutes

Checkpoints of an untrained model, one cell each, of about a second on one thread. Prints:

- the driver: the time of a whole :func:`rllc.track` beside that within its cells
  (:func:`rllc.sample`), on the clock and as CPU time: planning, loading, checking, writing;
- processes: the whole call with one process and with two in turn, starting them included, and the
  ratio of their medians; and the same without the start, from two lengths;
- opening: :meth:`rllc.Sweep.open` of ten thousand cells, of which none is read; then all their
  values (:meth:`rllc.Sweep.trajectory`), and a page about them (:func:`rllc.report`), each in a
  process of its own, with the most memory that the process had.
"""

# %% Checkpoints, and cells of about a second
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

import rllc
import rllc.storage.files
import rllc.sweep.workers

WIDE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 128,
    "n_heads": 8,
    "d_head": 16,
    "n_ctx": 64,
    "d_vocab": 1000,
}
Swept = Callable[[str, int, int | None], float]
"""``swept(store, cells, executor)``: the seconds of a call on the first checkpoints."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cells", type=int, default=32)
    add("--draws", type=int, default=24, help="of each cell; 24 make it last about a second")
    add("--rounds", type=int, default=3, help="alternations of one and two processes")
    add("--opened", type=int, default=10_000, help="cells of the sweep that is opened")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    random = torch.Generator().manual_seed(0)
    tokens = rllc.Tokens(torch.randint(0, 1000, (256, 64), generator=random), "random")
    sampling = rllc.Sampling(
        num_draws=args.draws, batch_size=8, num_probes=0, control_variate=False
    )
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", args.cells)

        def swept(store: str, cells: int, executor: int | None) -> float:
            begin = time.perf_counter()
            rllc.track(
                rllc.checkpoints(run)[:cells],
                tokens,
                rllc.layer(1),
                sampling=sampling,
                store=Path(folder) / store,
                compute=rllc.Compute(executor=executor, progress=False),
            )
            return time.perf_counter() - begin

        swept("warm", 1, None)
        driver(args.cells, swept)
        processes(args.cells, args.rounds, swept)
        opening(Path(folder) / "warm", args.opened)


def write_run(folder: Path, num_checkpoints: int) -> Path:
    for step in range(num_checkpoints):
        model = rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig(**WIDE))
        model.save_pretrained(folder / f"step{step:07d}")
    return folder


# %% The driver
def driver(cells: int, swept: Swept) -> None:
    wall_times, own_times = [], []
    sample = rllc.sweep.workers.sample

    def timed(*arguments: Any, **options: Any) -> Any:
        wall, own = time.perf_counter(), time.process_time()
        draws = sample(*arguments, **options)
        wall_times.append(time.perf_counter() - wall)
        own_times.append(time.process_time() - own)
        return draws

    rllc.sweep.workers.sample = timed
    try:
        begin = time.process_time()
        wall = swept("driver", cells, None)
        own = time.process_time() - begin
    finally:
        rllc.sweep.workers.sample = sample
    in_cells = sum(wall_times)
    on_the_clock = wall / in_cells - 1
    as_cpu_time = (own - sum(own_times)) / in_cells
    duration = in_cells / cells
    print(
        f"driver: {cells} cells of {duration:.2f} s; beside them {on_the_clock:.2%} on the clock, "
        f"{as_cpu_time:.2%} as CPU time"
    )


# %% One process and two, in turn
def processes(cells: int, rounds: int, swept: Swept) -> None:
    few = cells // 4
    times: dict[tuple[int, int], list[float]] = {
        (number, count): [] for number in (1, 2) for count in (cells, few)
    }
    for k in range(rounds):
        for number, count in times:
            times[number, count].append(swept(f"{number}-{count}-{k}", count, number))
    median = {key: statistics.median(listed) for key, listed in times.items()}
    for number, words in ((1, "1 process"), (2, "2 processes")):
        all_cells, few_cells = median[number, cells], median[number, few]
        print(f"{words}: {cells} cells in {all_cells:.1f} s, {few} in {few_cells:.1f} s")
    with_start = median[1, cells] / median[2, cells]
    one, two = (median[number, cells] - median[number, few] for number in (1, 2))
    print(f"two are {with_start:.2f} times as fast with their start, {one / two:.2f} times without")


# %% A large sweep: opening it, reading its values, a page about it
READING = """
import resource, sys, time
import rllc
begin = time.process_time()
sweep = rllc.Sweep.open(sys.argv[1])
opened = time.process_time()
{}
read = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(f"{{opened - begin:.2f}} {{read - opened:.2f}} {{peak:.0f}}")
"""


def opening(folder: Path, num_cells: int) -> None:
    large = write_large_sweep(folder, num_cells)
    steps = {
        "only opened": "",
        "all values": "sweep.trajectory()",
        "report": "del sweep; rllc.report(sys.argv[1])",
    }
    for name, code in steps.items():
        command = [sys.executable, "-c", READING.format(code), large]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        opened, read, peak = printed.split()
        print(f"{num_cells:,} cells, {name}: opening {opened} s, reading {read} s, {peak} MB")


def write_large_sweep(folder: Path, num_cells: int) -> str:
    """The cell of a small sweep, as if there had been many checkpoints, each with other noise."""
    small = rllc.sweep.Store(folder)
    (plan,) = small.plans()
    (cell,) = plan.cells
    (where,) = plan.checkpoints.values()
    cells = []
    for step in range(num_cells):
        cells.append(replace(cell, name=f"{step:032x}", step=step))
    checkpoints = {step: {**where, "step": step} for step in range(num_cells)}
    large = rllc.sweep.Store(folder.with_name("large"))
    large.announce(replace(plan, cells=tuple(cells), checkpoints=checkpoints))
    draws = small.read(cell.name)
    random = np.random.default_rng(0)
    sync = rllc.storage.files.sync
    rllc.storage.files.sync = lambda path: None  # nothing of this is to outlive a crash
    try:
        for planned in cells:
            noise = 1e-3 * random.standard_normal(draws.loss.shape)
            settings = {**draws.settings, "cell": {"name": planned.name}}
            other = replace(draws, loss=draws.loss + noise, settings=settings)
            other.save(large.path(planned.name))
    finally:
        rllc.storage.files.sync = sync
    return str(large.folder)


if __name__ == "__main__":  # worker processes import this file
    main()
