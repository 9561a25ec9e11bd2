"""What is asked for: three sizes, every number of which is an option of the command line."""

import argparse
from pathlib import Path

# name of the option: (tiny, small, full, what it is)
SIZES = {
    "d_model": (64, 128, 256, "width of the model"),
    "heads": (4, 8, 8, "heads of a layer"),
    "context": (64, 256, 1024, "tokens of a row"),
    "vocab": (96, 2000, 5000, "token ids"),
    "steps": (2000, 8000, 50_000, "steps of training"),
    "batch": (32, 32, 100, "rows of a step of training"),
    "lr_train": (1e-2, 2e-3, 1e-3, "learning rate of training"),
    "seeds": (3, 1, 4, "models to train, from --first-seed on"),
    "train_rows": (10_000, 100_000, 1_000_000, "rows to train on, at most"),
    "checkpoints": (8, 14, 107, "checkpoints to look at, about evenly spaced in log step"),
    "chains": (4, 4, 4, "chains of each head"),
    "draws": (40, 40, 200, "draws of each chain"),
    "llc_batch": (8, 8, 32, "rows of a minibatch of the sampler"),
    "rows": (256, 512, 2000, "rows on which heads are ablated and classified"),
    "probes": (8, 4, 16, "random vectors for the Hessian trace"),
    "probe_rows": (16, 16, 64, "rows of which the Hessian is taken"),
    "processes": (2, 2, 0, "processes to train and sample in, of one thread; 0: this one"),
}
COLUMN = {"tiny": 0, "small": 1, "full": 2}


class Settings(argparse.Namespace):
    """The options of the command line."""

    size: str
    data: str | None
    subsets: list[str] | None
    subset_data: str | None
    tokenizer: str | None
    out: Path
    first_seed: int
    device: str | None
    quiet: bool

    d_model: int
    heads: int
    context: int
    vocab: int
    steps: int
    batch: int
    lr_train: float
    seeds: int
    train_rows: int
    checkpoints: int
    chains: int
    draws: int
    llc_batch: int
    rows: int
    probes: int
    probe_rows: int
    processes: int

    def folder(self, seed: int) -> Path:
        """Where the results of one seed are."""
        return self.out / f"seed{seed}"


def read_settings(argv: list[str] | None = None, description: str | None = None) -> Settings:
    """Settings from the command line; prints what is wrong and exits where they cannot work."""
    parser = argument_parser(description)
    settings = parser.parse_args(argv, namespace=Settings())
    for name, sizes in SIZES.items():
        if getattr(settings, name) is None:
            setattr(settings, name, sizes[COLUMN[settings.size]])
    settings.out = settings.out or Path(f"rllc-out/paper-{settings.size}")
    for message, applies in refusals(settings).items():
        if applies:
            parser.error(message)
    return settings


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    for name in COLUMN:
        size.add_argument(f"--{name}", action="store_const", dest="size", const=name)
    parser.set_defaults(size="tiny")
    parser.add_argument(
        "--data", help="Pile files (.jsonl.zst, .jsonl, a folder, a URL) or a hub data set"
    )
    parser.add_argument("--subsets", nargs="+", help="subsets of --data to refine to, code first")
    parser.add_argument(
        "--subset-data",
        help="where the subsets are, if not in --data; {} stands for a subset's name",
    )
    parser.add_argument(
        "--tokenizer", help="folder or hub repository; default: trained on the texts"
    )
    parser.add_argument("--out", type=Path, help="output folder; default: rllc-out/paper-<size>")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", help="where to compute, such as cuda; default: the CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    for name, (tiny, small, full, words) in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(tiny), help=f"{words}: {tiny}, {small} or {full}")
    return parser


def refusals(settings: Settings) -> dict[str, bool]:
    """What to say, and whether it applies."""
    tiny = settings.size == "tiny"
    return {
        "--tiny is on the synthetic language; --data needs --small or --full": (
            tiny and settings.data is not None
        ),
        "--data needs --subsets, of which the first is code: --subsets Github": (
            settings.data is not None and not settings.subsets
        ),
        "--full needs --data": settings.size == "full" and settings.data is None,
        "--subsets and --subset-data need --data": (
            settings.data is None and bool(settings.subsets or settings.subset_data)
        ),
        "--tiny has no tokenizer": tiny and settings.tokenizer is not None,
        "--heads must be at least 3: fewer curves of a layer cannot be clustered": (
            settings.heads < 3
        ),
        "--d-model must be a multiple of --heads": settings.d_model % settings.heads != 0,
        "--checkpoints must be at least 6: stages need 5 above step 0": settings.checkpoints < 6,
        "--probes must be at least 2, for a standard error": settings.probes < 2,
        "--seeds must be at least 1": settings.seeds < 1,
    }
