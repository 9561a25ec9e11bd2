"""Reading the files of a checkpoint, trusting nothing in them.

No pickled code runs, and files are compared with the sums that training recorded.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.errors import FileError, RllcError, nearest
from rllc.models.checkpoint import SUMS
from rllc.storage.files import sha256_of_file
from rllc.storage.npz import check_unpacked

_SHOWN = 8
"""How many wrong tensors a message names."""


_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")
"""Names that training loops give to a state dict among the other things that they save: Lightning's
``state_dict``, nanoGPT's ``model``, DeepSpeed's ``module``, …"""

_CONFIGS = ("cfg", "config", "model_config", "hyper_parameters")
"""Names that they give to the model's configuration."""


_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_HEIGHTS = ("vocab_size", "d_vocab", "n_positions", "intermediate_size", "n_inner")
"""What configurations call the number of layers, the width of the residual stream, and sizes of
matrices that have it as their other side."""


class Contents(NamedTuple):
    """The contents of a file of weights."""

    state: dict[str, Tensor]
    config: Mapping[str, Any] | None
    """The configuration beside them, if there is one."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a pickle with a state dict in it."""
    return read_contents(path).state


def read_contents(path: Path) -> Contents:
    """The tensors of a file, and the configuration beside them."""
    try:
        if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
            _check_archive(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return Contents(load_file(path), None)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except RllcError:
        raise
    except pickle.UnpicklingError as error:
        raise refused_pickle(path, error) from None
    except Exception as error:  # damaged bytes can make the readers fail in any way
        raise FileError(
            f"loading {path}: the file is truncated, damaged or not a state dict "
            f"({type(error).__name__}: {error}). Copy or download it again."
        ) from error
    config = _config_in(contents)
    if isinstance(contents, Mapping) and not _is_state_dict(contents):
        contents = _nested(path, contents)
    _check_state_dict(path, contents)
    _check_unpacked(path, contents)
    return Contents(dict(contents), config)


def _check_archive(path: Path) -> None:
    """Refuse the zip of torch.save whose entries are packed, and far larger than the file."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    check_unpacked(path, unpacked, path.stat().st_size)


def _check_unpacked(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that repeat few numbers, by strides of 0, as if they were many."""
    unpacked = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    check_unpacked(path, unpacked, path.stat().st_size)


def check_sizes(path: Path, settings: Mapping[str, Any], weights: Iterable[Path]) -> None:
    """Refuse a configuration of a model that is far larger than the files of its weights.

    A model is made before its weights are read; one of 10⁹ layers never is.

    Raises:
        FileError: it has more layers than there are kB of weights, or a table of tokens or
            positions, or a matrix of an MLP, that has more numbers than there are bits.
    """
    size = sum(file.stat().st_size for file in weights)
    for name in _LAYERS:
        count = settings.get(name)
        if isinstance(count, int) and count > max(1000, size // 1000):
            raise FileError(
                f"loading {path}: config.json says {name} = {count:,}, but the weights are "
                f"{size:,} bytes; they are cut off or of another model, or it was changed."
            )
    widths = [name for name in _WIDTHS if isinstance(settings.get(name), int)]
    for width in widths[:1]:
        for name in _HEIGHTS:
            height = settings.get(name)
            if isinstance(height, int) and height * settings[width] > 8 * size:
                raise FileError(
                    f"loading {path}: config.json says {name} = {height:,} and {width} = "
                    f"{settings[width]:,}, but the weights are {size:,} bytes; they are cut off or "
                    f"of another model, or it was changed."
                )


def _config_in(contents: object) -> Mapping[str, Any] | None:
    if not isinstance(contents, Mapping):
        return None
    for name in _CONFIGS:
        if isinstance(contents.get(name), Mapping):
            return contents[name]
    return None


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _nested(path: Path, contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one state dict among other things; the contents themselves if there is none."""
    state_dicts = [name for name in _NESTED if _is_state_dict(contents.get(name))]
    if len(state_dicts) > 1:
        raise FileError(
            f"loading {path}: it holds several state dicts, "
            f"{', '.join(map(repr, state_dicts))}; read the file yourself and give the one that "
            f"you mean: {{step: state_dict}}."
        )
    if state_dicts:
        return contents[state_dicts[0]]
    others = [str(name) for name, value in contents.items() if _is_state_dict(value)]
    if others:
        raise FileError(
            f"loading {path}: it holds state dicts under names that say not which is the model's: "
            f"{', '.join(map(repr, others))}; expected one of "
            f"{', '.join(map(repr, _NESTED))}. Read the file yourself and give the one that you "
            f"mean: {{step: state_dict}}."
        )
    return contents


def _check_state_dict(path: Path, contents: object) -> None:
    expected = f"loading {path}: expected a state dict (names to tensors)"
    if not isinstance(contents, Mapping):
        raise FileError(f"{expected}, got {type(contents).__name__}.")
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FileError(
                f"{expected}, but {name!r} is {type(value).__name__}; save the model's "
                f"state_dict() alone."
            )
        if type(value).__name__ in ("DTensor", "ShardedTensor") or "_flat_param" in name:
            raise FileError(
                f"{expected}, but {name!r} is a piece of a model under FSDP; save a full state "
                f"dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                f"full_state_dict=True)."
            )


def refused_pickle(path: Path, error: pickle.UnpicklingError) -> FileError:
    """An error for a pickle that torch refused to read. torch's own message advises to run it."""
    match = re.search(r"GLOBAL (\S+)|module (\S+) is blocked", str(error))
    if match:
        reason = f"it would call {match[1] or match[2]}"
    else:
        reason = "it is damaged, or made of other objects"
    return FileError(
        f"loading {path}: refused, nothing of it was run. A checkpoint is a pickle of tensors "
        f"alone, and {reason}. Copy or download it again; if you trust whoever made it, have its "
        f"state_dict() saved as .safetensors: for a checkpoint of Lightning, with its "
        f"hyper-parameters, type contents = torch.load({path.name!r}, weights_only=False) and "
        f"safetensors.torch.save_file(contents['state_dict'], 'weights.safetensors')."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a ``save_pretrained`` folder."""
    if not path.is_file():
        raise FileError(
            f"loading {path.parent}: no {path.name}; expected a folder that save_pretrained wrote."
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"loading {path}: the file is truncated or damaged ({error}).") from error
    if not isinstance(contents, dict):
        raise FileError(f"loading {path}: expected a JSON object, got {type(contents).__name__}.")
    return contents


# Checks.


def check_sums(folder: Path, weights: Iterable[Path]) -> None:
    """Compare a folder's files with the sums that training recorded, if it did."""
    if not (folder / SUMS).is_file():
        return
    recorded = read_json(folder / SUMS)
    names = {*recorded, *(file.name for file in weights)}
    for name in sorted(names):
        if name not in recorded:
            raise FileError(
                f"loading {folder}: {SUMS} has no sum for {name}; the file was added or {SUMS} "
                f"changed."
            )
        if not (folder / name).is_file():
            raise FileError(f"loading {folder}: {SUMS} lists {name}, but it is not there.")
        actual = sha256_of_file(folder / name)
        if actual != recorded[name]:
            raise FileError(
                f"loading {folder / name}: it was damaged or changed since it was written: its "
                f"SHA-256 is {actual}, {SUMS} says {recorded[name]}. Copy it again, or remove "
                f"{SUMS} if you changed it on purpose."
            )


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name.

    >>> shapes_of({"weight": torch.zeros(2, 3)})
    {'weight': (2, 3)}
    """
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_tensors(
    path: Path | str,
    expected: Mapping[str, tuple[int, ...]],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshaped: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise, naming the tensors, unless names and shapes are those of the model.

    Args:
        path: the checkpoint.
        expected: names and shapes of the model's tensors.
        missing: names that only the model has.
        unexpected: names that only the checkpoint has.
        misshaped: the checkpoint's shapes of tensors whose shapes differ.
    """
    missing = sorted(missing)
    unexpected = sorted(unexpected)
    problems = []
    # What is similar is looked for only of those that are shown: each is compared with all others.
    for name in missing[:_SHOWN]:
        similar = f"; {nearest(name, unexpected)}" if unexpected else ""
        problems.append(f"{name!r} is missing{similar}")
    for name in unexpected[:_SHOWN]:
        problems.append(f"{name!r} is unexpected; {nearest(name, missing or expected)}")
    for name, shape in sorted(misshaped.items())[:_SHOWN]:
        problems.append(f"{name!r} has shape {shape}, expected {expected[name]}")
    num_problems = len(missing) + len(unexpected) + len(misshaped)
    if problems:
        listed = "\n  ".join(problems[:_SHOWN])
        more = f"\n  … and {num_problems - _SHOWN} more" if num_problems > _SHOWN else ""
        raise FileError(f"loading {path}: its tensors are not the model's:\n  {listed}{more}")


def check_finite(path: Path | str, state: Mapping[str, Tensor]) -> None:
    """Raise if a number is not finite in float32."""
    for name, tensor in state.items():
        num_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if num_bad:
            raise FileError(
                f"loading {path}: {name!r} has {num_bad} of {tensor.numel()} values that are not "
                f"finite in float32; training diverged before this step, or the file is damaged."
            )
