"""Refined LLCs over training: a sweep on processes or on Dask, interrupted and resumed.

    python examples/over_training.py                # trains a tiny model first; no download
    python examples/over_training.py --dry-run      # how many cells, FLOPs and hours
    python examples/over_training.py --processes 8
    python examples/over_training.py --dask         # a Dask cluster of two workers on this machine
    python examples/over_training.py --dask tcp://scheduler:8786    # yours, on SLURM for example
    python examples/over_training.py --checkpoints runs/seed0 --data code.npz prose.npz

Kill it whenever you like: the same command goes on where it stopped. It ends with a page,
report.html. What is there so far can be looked at while it runs:
``rllc.report("rllc-out/over_training/sweep")`` makes the page, and ``rllc.Sweep.open`` of the same
folder says what is missing and gives the numbers.
"""

# %% What is asked for
import argparse
import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import matplotlib

import rllc


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoints", help="folder or hub repository; default: a tiny model's, trained here")
    add("--data", type=Path, nargs="+", help="files that rllc.Tokens.save wrote, one a data set")
    add("--out", type=Path, default=Path("rllc-out/over_training"), help="output folder")
    add("--processes", type=int, help="compute in so many processes; default: in this one")
    add("--dask", nargs="?", const="", metavar="ADDRESS", help="compute on Dask")
    add("--chains", type=int, default=4)
    add("--draws", type=int, help="of each chain; default: the paper's 200, tiny model 30")
    add("--batch", type=int, help="rows; default: the paper's 32, tiny model 8")
    add("--dry-run", action="store_true", help="say what it would take, and compute nothing")
    add("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    if (args.checkpoints is None) != (args.data is None):
        parser.error("--checkpoints and --data go together")
    is_tiny = args.checkpoints is None
    args.draws = args.draws or (30 if is_tiny else 200)
    args.batch = args.batch or (8 if is_tiny else 32)
    return args


# %% A run to look at: a two-layer model that learns Python's own source code for some seconds
def tiny_run(folder: Path, quiet: bool) -> tuple[Path, dict[str, rllc.Tokens]]:
    texts = rllc.data.python_corpus(max_bytes=100_000)
    every_text = [text for listed in texts.values() for text in listed]
    tokenizer = rllc.data.train_tokenizer(every_text, vocab_size=300)
    data = {}
    for name, listed in texts.items():
        data[name] = rllc.data.tokenize(listed, tokenizer, 16, name=name)
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=32, n_heads=2, d_head=16, n_ctx=16, d_vocab=300
    )
    training = rllc.Training(
        num_steps=200, batch_size=16, lr=5e-3, checkpoints=[0, 20, 50, 100, 200]
    )
    everything = rllc.data.mix("all", *data.values())
    rllc.train(config, everything, folder, training=training, progress=not quiet)
    return folder, data


# %% Where cells are computed
@contextlib.contextmanager
def workers(args: argparse.Namespace) -> Iterator[int | Executor | None]:
    if args.dask is None:
        yield args.processes
        return
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        cluster = args.dask
        if not cluster:
            local = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            cluster = stack.enter_context(local)
        yield stack.enter_context(Client(cluster)).get_executor()


# %% The sweep, its table, its figures and its report
def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    matplotlib.use("Agg")
    if args.checkpoints is None:
        checkpoints, data = tiny_run(args.out / "checkpoints", args.quiet)
    else:
        checkpoints = args.checkpoints
        data = {path.stem: rllc.Tokens.load(path) for path in args.data}
    store = args.out / "sweep"
    sampling = rllc.Sampling(num_chains=args.chains, num_draws=args.draws, batch_size=args.batch)
    with workers(args) as executor:
        sweep = {
            "sampling": sampling,
            "store": store,
            "compute": rllc.Compute(executor=executor, progress=not args.quiet),
        }
        if args.dry_run:
            print(rllc.sweep.sweep_cost(checkpoints, data, rllc.heads, **sweep))
            return
        trajectory = rllc.track(checkpoints, data, rllc.heads, **sweep)
    print(trajectory)
    print(trajectory.at(trajectory.steps[-1]))
    trajectory.to_parquet(args.out / "trajectory.parquet")
    for name in data:
        axes = rllc.plot_trajectory(trajectory, name)
        figure = getattr(axes, "flat", [axes])[0].figure
        plain_name = "".join(letter for letter in name if letter.isalnum())
        figure.savefig(args.out / f"over_training_{plain_name}.png", dpi=150)
    page = rllc.report(store, args.out / "report.html")
    print(f"table, figures and the sweep are in {args.out}; open {page}")


if __name__ == "__main__":  # worker processes import this file
    main()
