"""``python -m rllc.sweep spec.json --shard 3/16``: a share of a sweep, for array jobs."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rllc.data.tokens import Tokens
from rllc.errors import FileError, InputError, RllcError, first_line, nearest
from rllc.models.checkpoints import Checkpoint
from rllc.models.checkpoints import checkpoints as checkpoints_of
from rllc.samplers import from_settings
from rllc.sampling.settings import Compute, Sampling
from rllc.storage.files import check_fields
from rllc.sweep.cost import cost_of
from rllc.sweep.request import ChoiceOfWeights, Request, listed
from rllc.sweep.store import Store
from rllc.sweep.track import run
from rllc.weights.selection import heads

_SPEC = """the sweep, as JSON, paths being relative to it; only the first three are needed:
{"checkpoints": "runs/seed0", "data": {"code": "code.npz"}, "store": "sweep",
 "weights": "heads" or "everything" or ["0:1", "1:6"], "steps": [0, 100, 200],
 "sampler": {"sampler": "sgld", "lr": 0.001, "localization": 200.0},
 "sampling": {"num_chains": 4, "num_draws": 200}, "loss": "module:function",
 "into": "module:function", which makes a module for state dicts of your own, or
 "positions": "standard" for those of TransformerLens,
 "keep_states": true, "delete_downloads": false};
data are files that rllc.Tokens.save wrote"""

_ARRAY = (
    "SLURM: sbatch --array=1-16 "
    "--wrap 'python -m rllc.sweep spec.json --shard $SLURM_ARRAY_TASK_ID/16'"
)

_NEEDED = ("checkpoints", "data", "store")
_OF_STORE = ("keep_states", "delete_downloads")
_OPTIONAL = ("weights", "steps", "sampler", "sampling", "loss", "into", "positions")
_FIELDS = (*_NEEDED, *_OPTIONAL, *_OF_STORE)


def main(argv: list[str] | None = None) -> int:
    """Compute a sweep, or a share of one, that a file describes.

    Returns:
        0; 1 if a cell of the share failed; 2 if nothing could be computed.
    """
    args = _parser().parse_args(argv)
    compute = Compute(executor=args.executor, progress=not args.quiet)
    try:
        request = read_spec(args.spec, compute)
        shard = _read_shard(args.shard)
        if args.dry_run:
            print(cost_of(request, shard))
            return 0
        sweep, reasons = run(request, shard)
    except RllcError as error:
        print(error, file=sys.stderr)
        return 2
    print(sweep)
    return int(bool(reasons))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rllc.sweep",
        description="Estimate refined LLCs over training, as a file describes; "
        "again after an interruption.",
        epilog=_ARRAY,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("spec", type=Path, help=_SPEC)
    parser.add_argument(
        "--shard", default="1/1", metavar="K/N", help="do the K-th of N shares, K from 1 to N"
    )
    parser.add_argument("--executor", type=int, metavar="N", help="N processes; default: this one")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would take, and compute nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def read_spec(path: Path, compute: Compute) -> Request:
    """Read the file that describes a sweep.

    Raises:
        FileError: it cannot be read, or is not JSON.
        InputError: a field is unknown or missing, or its value cannot work.
    """
    spec = _read_fields(path)
    folder = path.absolute().parent
    try:
        sampler = from_settings(spec["sampler"]) if "sampler" in spec else None
        sampling = Sampling(**spec.get("sampling", {}))
    except (TypeError, InputError) as error:
        raise InputError(f"reading {path}: sampler or sampling: {first_line(error)}") from error
    switches = {name: spec[name] for name in _OF_STORE if name in spec}
    into = _read_function("into", spec.get("into"))
    request = Request.of(
        listed(_read_checkpoints(path, spec), into),
        {name: Tokens.load(folder / file) for name, file in spec["data"].items()},
        _read_weights(path, spec.get("weights", "everything")),
        loss=_read_function("loss", spec.get("loss")),
        sampler=sampler,
        sampling=sampling,
        store=Store(folder / spec["store"], **switches),
        compute=compute,
    )
    return request.identified()


def _read_fields(path: Path) -> Mapping[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(spec, dict):
            raise ValueError(f"expected an object, got {type(spec).__name__}")
        given = [name for name in spec if spec[name] is not None or name in _NEEDED]
        check_fields(spec, {name: _KINDS.get(name) for name in given})
        for name, file in spec.get("data", {}).items():
            check_fields({name: file}, {name: "text"})
        for step in spec.get("steps") or []:
            check_fields({"steps": step}, {"steps": "count"})
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(
            f"reading {path}: {error}. Type python -m rllc.sweep --help for what it holds."
        ) from error
    for name in spec:
        if name not in _FIELDS:
            raise InputError(
                f"reading {path}: it has {name!r}, which means nothing; {nearest(name, _FIELDS)}"
            )
    for name in _NEEDED:
        if name not in spec:
            raise InputError(
                f"reading {path}: it has no {name!r}. "
                f"Type python -m rllc.sweep --help for what it holds."
            )
    return spec


_KINDS = {
    "checkpoints": "text",
    "steps": "list",
    "positions": "text",
    "data": "object",
    "loss": "text",
    "into": "text",
    "sampler": "object",
    "sampling": "object",
    "store": "text",
}
"""Of which kind the fields are, as JSON."""


def _read_checkpoints(path: Path, spec: Mapping[str, Any]) -> Sequence[Checkpoint]:
    """Return the checkpoints of a folder beside the file, or else of a hub repository."""
    source = path.absolute().parent / spec["checkpoints"]
    place = source if source.exists() else spec["checkpoints"]
    listed = checkpoints_of(place, positions=spec.get("positions"))
    if spec.get("steps") is None:
        return listed
    unknown = sorted(set(spec["steps"]) - {checkpoint.step for checkpoint in listed})
    if unknown:
        raise InputError(
            f"reading {path}: {spec['checkpoints']} has no checkpoints of the steps {unknown}."
        )
    return [checkpoint for checkpoint in listed if checkpoint.step in spec["steps"]]


def _read_weights(path: Path, weights: object) -> ChoiceOfWeights:
    if isinstance(weights, list):
        return weights
    if weights == "heads":
        return heads
    if weights == "everything":
        return None
    raise InputError(
        f"reading {path}: 'weights' must be 'heads', 'everything' or a list of heads such as "
        f"['0:1', '1:6'], got {weights!r}."
    )


def _read_function(field: str, name: str | None) -> Any:
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"track: `{field}` {name!r} must be module:function, to be imported ({error})."
        ) from error


def _read_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(
            f"track: --shard must be K/N with K from 1 to N, such as 3/16; got {text!r}."
        )
    return int(match[1]), int(match[2])
