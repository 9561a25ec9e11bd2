"""What a busy machine costs: the quickstart's steps alone, and beside a busy loop on each core.

    python examples/benchmarks/threads.py             # about 2 minutes; keeps every core busy

Two processes take steps in turn, of training and of sampling: one with as many threads as there are
cores, as ``OMP_NUM_THREADS`` tells it; and one that leaves the choice to rllc, which chooses anew
at the beginning of each piece of work. Prints milliseconds a step, and how many times as long it
takes beside the loops.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import rllc
from rllc import threads

WORKS = ("training", "sampling")
SITUATIONS = ("alone", "busy")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--steps", type=int, default=4, help="of each piece of work")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.worker:
        work(args)
        return
    num_cores = threads.available_cpus()
    workers = {
        f"{num_cores} threads": Worker(args, num_cores),
        "chosen": Worker(args, None),
    }
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(args.rounds):
        for situation in SITUATIONS:
            with busy_loops(num_cores if situation == "busy" else 0):
                for task in WORKS:
                    for name, worker in workers.items():
                        measured = seconds.setdefault((task, name, situation), [])
                        measured.append(worker.seconds(task))
    for worker in workers.values():
        worker.stop()
    report(seconds, list(workers))


def report(seconds: dict[tuple[str, str, str], list[float]], names: list[str]) -> None:
    print("| step | threads | ms alone | ms beside busy loops | ratio |\n|---|---|---|---|---|")
    for task in WORKS:
        for name in names:
            alone, busy = (statistics.median(seconds[task, name, s]) for s in SITUATIONS)
            print(
                f"| {task} | {name} | {1e3 * alone:.0f} | {1e3 * busy:.0f} | {busy / alone:.1f} |"
            )


# %% One process, which takes steps when it is told to
class Worker:
    """Another process; ``num_threads=None`` leaves the choice to rllc."""

    def __init__(self, args: argparse.Namespace, num_threads: int | None) -> None:
        environment = dict(os.environ)
        environment.pop("OMP_NUM_THREADS", None)
        environment.pop("MKL_NUM_THREADS", None)
        if num_threads is not None:
            environment["OMP_NUM_THREADS"] = str(num_threads)
        options = ["--worker", "--steps", str(args.steps), "--context", str(args.context)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, task: str) -> float:
        """Seconds of a step of a task."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(args: argparse.Namespace) -> None:
    """Read names of tasks, and print the seconds that a step of each takes."""
    config = rllc.models.AttentionOnlyConfig(
        d_model=64, n_heads=4, d_head=16, n_ctx=args.context, d_vocab=1000
    )
    stream = torch.Generator().manual_seed(0)
    tokens = rllc.Tokens(torch.randint(1000, (256, args.context), generator=stream))
    model = rllc.models.AttentionOnly(config)

    def train() -> None:
        training = rllc.Training(num_steps=args.steps, batch_size=16)
        rllc.train(config, tokens, training=training, progress=False)

    def sample() -> None:
        sampling = rllc.Sampling(
            num_draws=args.steps, batch_size=8, num_probes=0, control_variate=False
        )
        compute = rllc.Compute(progress=False)
        rllc.sample(model, tokens, rllc.heads(model), sampling=sampling, compute=compute)

    tasks = {"training": train, "sampling": sample}
    for task in tasks.values():
        task()  # what is only done once is done here
    for line in sys.stdin:
        begin = time.perf_counter()
        tasks[line.strip()]()
        print((time.perf_counter() - begin) / args.steps, flush=True)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """As many processes that do nothing but compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
