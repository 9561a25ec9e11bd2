"""What is asked for: three sizes, every number of which is an option of the command line."""

import argparse
from pathlib import Path

# name of the option: (tiny, small, full, what it is)
SIZES = {
    "d_model": (64, 128, 256, "width of the model"),
    "heads": (4, 8, 8, "heads of a layer"),
    "context": (64, 256, 1024, "tokens of a row"),
    "vocab": (96, 512, 5000, "token ids"),
    "characters": (0, 8_000_000, 800_000_000, "characters of each subset to train on, at most"),
    "train_rows": (10_000, 0, 0, "rows of the synthetic language"),
    "steps": (2000, 4000, 50_000, "steps of training"),
    "one_layer_steps": (1000, 1000, 50_000, "steps of training of the one-layer model"),
    "batch": (32, 16, 100, "rows of a step of training"),
    "seeds": (3, 3, 4, "models to train, from --first-seed on"),
    "checkpoints": (8, 26, 107, "checkpoints to look at, even in log step"),
    "positions": (64, 128, 1024, "tokens of a row on which estimates are made"),
    "n_beta": (4000.0, 4000.0, 30.0, "nβ of the sampler"),
    "lr": (3e-4, 3e-4, 1e-3, "its step size"),
    "whole_n_beta": (300.0, 300.0, 30.0, "nβ of the sampler of all weights"),
    "whole_lr": (3e-4, 3e-4, 1e-3, "its step size"),
    "subset_every": (3, 4, 1, "code and prose at every so many checkpoints"),
    "chains": (4, 4, 4, "chains of each head"),
    "draws": (24, 24, 200, "draws of each chain"),
    "burnin": (20, 20, 0, "steps before the first draw"),
    "between": (2, 2, 1, "steps from one draw to the next"),
    "llc_batch": (8, 4, 32, "rows of a minibatch of the sampler"),
    "rows": (256, 256, 2000, "rows on which heads are ablated and classified"),
    "processes": (2, 2, 0, "processes to sample in, of one thread; 0: this one"),
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
    cost: bool

    d_model: int
    heads: int
    context: int
    vocab: int
    characters: int
    train_rows: int
    steps: int
    one_layer_steps: int
    batch: int
    seeds: int
    checkpoints: int
    positions: int
    n_beta: float
    lr: float
    whole_n_beta: float
    whole_lr: float
    subset_every: int
    chains: int
    draws: int
    burnin: int
    between: int
    llc_batch: int
    rows: int
    processes: int

    def folder(self, seed: int) -> Path:
        """Where the results of one seed are."""
        return self.out / f"seed{seed}"

    def one_layer_seed(self, seed: int) -> int:
        """Whose one-layer model a seed uses: a language is drawn for each seed, texts are not."""
        return seed if self.size == "tiny" else 0


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
    parser.add_argument("--cost", action="store_true", help="only say what it would take")
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
        "--seeds must be at least 1": settings.seeds < 1,
    }
