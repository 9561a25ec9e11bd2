"""State dicts put into modules of one's own, strictly."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rllc.errors import FileError, InputError
from rllc.models import reading
from rllc.models.checkpoint import Into
from rllc.wrappers import unwrapped

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and modules around a model put before all of its names."""

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch puts inside names, when a part of a model is wrapped."""


def module_of(into: Into) -> nn.Module:
    """The module that is to be filled: ``into``, or what it makes.

    Raises:
        InputError: the function needs arguments, or makes something else.
    """
    if isinstance(into, nn.Module):
        return into
    try:
        made = into()
    except TypeError as error:
        raise InputError(
            f"load: `into` must be a module, or a function without arguments that makes one, but "
            f"calling it raised {error}; write a function, def make(): return Model(…)."
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"load: `into` made a {type(made).__name__}, expected a torch.nn.Module.")
    return made


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Copy a state dict into a module: every tensor, of the same name and shape, all finite.

    Names may have a prefix more than the module's; it is removed, with a warning that says so. If
    anything is wrong, the module is left as it was.

    Raises:
        FileError: names the tensors that are missing, unexpected, misshaped, of another kind or not
            finite.
    """
    module = unwrapped(module)
    expected = module.state_dict()
    state = _with_names_of(expected, state)
    tied = _tied(expected)
    missing = [name for name in expected if name not in state and not tied[name] & state.keys()]
    unexpected = [name for name in state if name not in expected and not _ignored(module, name)]
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    misshaped = {}
    for name, tensor in state.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            misshaped[name] = tuple(tensor.shape)
    reading.check_tensors(path, shapes, missing, unexpected, misshaped)
    chosen = {name: state[name] for name in expected if name in state}
    for name, tensor in chosen.items():
        _check_kind(path, name, tensor, expected[name])
    reading.check_finite(path, {name: t for name, t in chosen.items() if t.is_floating_point()})
    _check_tied(path, chosen, tied)
    module.load_state_dict(chosen, strict=False)


def _with_names_of(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict without the prefixes that wrappers add, if they are in the way."""
    state = dict(state)
    removed: dict[str, None] = {}
    for part in _ANYWHERE:
        if any(part in name for name in state) and not any(part in name for name in expected):
            state = {name.replace(part, ""): tensor for name, tensor in state.items()}
            removed[part] = None
    changed = True
    while changed and state and not state.keys() & expected.keys():
        changed = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                removed[prefix] = None
                changed = True
    if removed:
        parts = " and ".join(map(repr, removed))
        warnings.warn(f"load: removed {parts} from the names of tensors.", stacklevel=4)
    return state


def _tied(expected: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """For each tensor, the other names of the same memory."""
    names: dict[tuple[int, tuple[int, ...]], set[str]] = {}
    keys = {}
    for name, tensor in expected.items():
        keys[name] = (tensor.data_ptr() if tensor.numel() else id(tensor), tuple(tensor.shape))
        names.setdefault(keys[name], set()).add(name)
    return {name: names[key] - {name} for name, key in keys.items()}


def _check_tied(
    path: Path | str, state: Mapping[str, Tensor], tied: Mapping[str, set[str]]
) -> None:
    """Refuse different numbers for one tensor: the last would win."""
    for name, others in tied.items():
        for other in others & state.keys():
            if name in state and not torch.equal(state[name], state[other]):
                raise FileError(
                    f"loading {path}: {name!r} and {other!r} are one tensor in the module, but two "
                    f"different ones in the file; give `into` a module in which they are not tied."
                )


def _ignored(module: nn.Module, name: str) -> bool:
    """Whether transformers says of a model that old files of it have this name too many."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _check_kind(path: Path | str, name: str, tensor: Tensor, like: Tensor) -> None:
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (tensor, like)]
    if kinds[0] == kinds[1] and tensor.layout == torch.strided and not tensor.is_quantized:
        return
    raise FileError(
        f"loading {path}: {name!r} is {tensor.dtype}, {tensor.layout}; the module's is "
        f"{like.dtype}, {like.layout}."
    )
