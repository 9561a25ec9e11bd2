"""What a sweep costs beside its cells, and what a second process gains.

    python examples/benchmarks/sweeps.py              # 2 otherwise idle CPU cores, about 5 minutes

Checkpoints of an untrained model, one cell each, of about a second on one thread. Prints:

- the driver: the time of a whole :func:`rllc.track` beside that within its cells (:func:`rllc.sample`), on the clock and as CPU
  time: planning, loading, checking, writing;
- processes: the whole call with ``executor=1`` and ``executor=2`` in turn, starting them included, and the ratio of their
  medians; and the same without the start, from two lengths.
"""

# %% Checkpoints, and cells of about a second
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging

import rllc
import rllc.sweep.workers

WIDE = {"n_layers": 2, "d_model": 128, "n_heads": 8, "d_head": 16, "n_ctx": 64, "d_vocab": 1000}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument(
        "--draws", type=int, default=24, help="of each cell; 24 make it last about a second"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternations of one and two processes"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    tokens = rllc.Tokens(
        torch.randint(0, 1000, (256, 64), generator=torch.Generator().manual_seed(0)), "random"
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for step in range(args.cells):
            rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig(**WIDE)).save_pretrained(
                run / f"step{step:07d}"
            )
        sampling = rllc.Sampling(num_draws=args.draws, batch_size=8, num_probes=0)

        def swept(name: str, cells: int, executor: int | None) -> float:
            """Seconds of a call on the first checkpoints."""
            begin = time.perf_counter()
            rllc.track(
                rllc.checkpoints(run)[:cells],
                tokens,
                rllc.layer(1),
                sampling=sampling,
                store=Path(folder) / name,
                executor=executor,
                progress=False,
            )
            return time.perf_counter() - begin

        swept("warm", 1, None)
        driver(args.cells, swept)
        processes(args.cells, args.rounds, swept)


# %% The driver
def driver(cells: int, swept) -> None:
    inside = []
    sample = rllc.sweep.workers.sample

    def timed(*arguments, **options):
        begin = time.perf_counter(), time.process_time()
        draws = sample(*arguments, **options)
        inside.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        return draws

    rllc.sweep.workers.sample = timed
    try:
        begin = time.process_time()
        wall = swept("driver", cells, None)
        own = time.process_time() - begin
    finally:
        rllc.sweep.workers.sample = sample
    in_cells, own_in_cells = (sum(column) for column in zip(*inside, strict=True))
    print(
        f"driver: {cells} cells of {in_cells / cells:.2f} s; beside them {wall / in_cells - 1:.2%} on the clock, "
        f"{(own - own_in_cells) / in_cells:.2%} as CPU time"
    )


# %% One process and two, in turn
def processes(cells: int, rounds: int, swept) -> None:
    few = cells // 4
    took = {(n, count): [] for n in (1, 2) for count in (cells, few)}
    for k in range(rounds):
        for n, count in took:
            took[n, count].append(swept(f"{n}-{count}-{k}", count, n))
    median = {key: statistics.median(times) for key, times in took.items()}
    for n in (1, 2):
        print(
            f"{n} process{'es' * (n > 1)}: {cells} cells in {median[n, cells]:.1f} s, {few} in {median[n, few]:.1f} s"
        )
    without = [median[n, cells] - median[n, few] for n in (1, 2)]
    print(
        f"two are {median[1, cells] / median[2, cells]:.2f} times as fast with their start, "
        f"{without[0] / without[1]:.2f} times without"
    )


if __name__ == "__main__":  # worker processes import this file
    main()
