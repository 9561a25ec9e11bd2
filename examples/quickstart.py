"""From text to figure: train a small two-layer attention-only transformer, then follow the refined LLC of each head.

    python examples/quickstart.py                      # text that every Python has; no network, no download
    python examples/quickstart.py --data train.jsonl.zst --subsets Github "Wikipedia (en)"
    python examples/quickstart.py --full --data …      # the paper's configuration; for a GPU

Writes to the output folder: checkpoints, tokenizer, a `trajectory.npz`, `estimate.csv` and figures. Interrupted, the same
command goes on where it stopped.
"""

# %% What is asked for
import argparse
import time
from pathlib import Path

import matplotlib
from tqdm.auto import tqdm

import rllc

SMALL = {
    "layers": 2,
    "d_model": 64,
    "heads": 4,
    "context": 128,
    "vocab": 1000,
    "steps": 2000,
    "batch": 16,
}
SMALL |= {"chains": 4, "draws": 90, "llc_batch": 8, "checkpoints": 5, "lr_train": 5e-3}
FULL = {
    "layers": 2,
    "d_model": 256,
    "heads": 8,
    "context": 1024,
    "vocab": 5000,
    "steps": 50_000,
    "batch": 100,
}
FULL |= {"chains": 4, "draws": 200, "llc_batch": 32, "checkpoints": 107, "lr_train": 1e-3}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", help="Pile files (.jsonl.zst, .jsonl, a folder of them, a URL) or a hub data set"
    )
    parser.add_argument(
        "--subsets", nargs="+", default=["Github", "Wikipedia (en)"], help="subsets of --data"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rllc-out/quickstart"), help="output folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", help="where to train and sample, such as cuda; default: the CPU"
    )
    parser.add_argument(
        "--full", action="store_true", help="the paper's configuration instead of the small one"
    )
    for name, value in SMALL.items():
        kind = type(value)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{value} (paper: {FULL[name]})"
        )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    for name, value in (FULL if args.full else SMALL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


# %% Text, tokenizer and rows of tokens: one named data set a subset, and their mixture to train on
def read(args: argparse.Namespace) -> dict[str, rllc.Tokens]:
    if args.data is None:
        texts = rllc.data.python_corpus(max_bytes=3_000_000, seed=args.seed)
    else:
        enough = 4 * args.context * 200_000 if args.full else 6_000_000  # characters of each subset
        texts = {
            name: list(up_to(enough, rllc.data.pile_texts(name, source=args.data)))
            for name in args.subsets
        }
    folder = args.out / "tokenizer"
    if not folder.exists():
        every = [text for documents in texts.values() for text in documents]
        rllc.data.train_tokenizer(every, vocab_size=args.vocab).save_pretrained(folder)
    tokenizer = rllc.data.load_tokenizer(folder)
    bars = {
        name: tqdm(docs, desc=f"tokenizing {name}", unit="text", disable=args.quiet)
        for name, docs in texts.items()
    }
    return {
        name: rllc.data.tokenize(docs, tokenizer, args.context, name=name)
        for name, docs in bars.items()
    }


def up_to(characters, texts):
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


# %% Train, then estimate at a handful of checkpoints, evenly spaced in log step
def main(argv: list[str] | None = None) -> rllc.Trajectory:
    matplotlib.use("Agg")
    args, begin = arguments(argv), time.perf_counter()
    subsets = read(args)
    training = rllc.data.mix("all", *subsets.values(), seed=args.seed)
    print(f"\ndata: {', '.join(map(repr, subsets.values()))}")

    config = rllc.models.AttentionOnlyConfig(
        n_layers=args.layers,
        d_model=args.d_model,
        n_heads=args.heads,
        d_head=args.d_model // args.heads,
        n_ctx=args.context,
        d_vocab=args.vocab,
    )
    model = rllc.train(
        config,
        training,
        num_steps=args.steps,
        batch_size=args.batch,
        lr=args.lr_train,
        seed=args.seed,
        out=args.out / "checkpoints",
        device=args.device,
        progress=not args.quiet,
    )
    print(
        f"trained {sum(p.numel() for p in model.parameters()):,} parameters ({time.perf_counter() - begin:.0f} s so far)"
    )

    chosen = spread(rllc.checkpoints(args.out / "checkpoints"), args.checkpoints)
    sampling = rllc.Sampling(
        num_chains=args.chains,
        num_draws=args.draws,
        batch_size=args.llc_batch,
        start="gaussian",  # instead of a rise from w*, which short chains would pay for with a bias
        control_variate=True,  # a quarter less variance for a seventh more time
        seed=args.seed,
        device=args.device,
    )
    trajectory = rllc.track(
        chosen,
        {"all": training, **subsets},
        rllc.heads,
        sampling=sampling,
        store=args.out / "sweep",
        progress=not args.quiet,
    )
    trajectory.save(args.out / "trajectory.npz")

    # %% The table and the figures
    final = trajectory.at(trajectory.steps[-1])
    print(f"\nat step {trajectory.steps[-1]}: {final}")
    trajectory.to_dataframe().to_csv(args.out / "estimate.csv", index=False)
    save(rllc.plot_heads(final), args.out / "heads.png")
    for name in dict.fromkeys(trajectory.data):
        axes = rllc.plot_trajectory(trajectory, name)
        save(
            getattr(axes, "flat", [axes])[0],
            args.out / f"over_training_{''.join(c for c in name if c.isalnum())}.png",
        )
    print(
        f"\n{time.perf_counter() - begin:.0f} s; figures, checkpoints and trajectory.npz are in {args.out}"
    )
    return trajectory


def spread(found: list[rllc.Checkpoint], count: int) -> list[rllc.Checkpoint]:
    """The first, the last, and others about evenly spaced in log step."""
    if count >= len(found):
        return found
    first = max(found[1].step, 1)
    wanted = [first * (found[-1].step / first) ** (k / max(count - 2, 1)) for k in range(count - 1)]
    nearest = {min(found, key=lambda c: abs(c.step - step)).step for step in wanted} | {
        found[0].step,
        found[-1].step,
    }
    return [checkpoint for checkpoint in found if checkpoint.step in nearest]


def save(ax, path: Path) -> None:
    ax.figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
