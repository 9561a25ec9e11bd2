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
"""Prefixes that DataParallel, torch.compile and modules around a model give to all of its names."""

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Texts that torch puts inside names when a part of a model is wrapped."""


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
    shapes = reading.shapes_of(expected)
    missing = []
    for name in expected.keys() - state.keys():
        if not tied[name] & state.keys():
            missing.append(name)
    unexpected = []
    misshaped = {}
    for name, shape in reading.shapes_of(state).items():
        if name not in expected and not _ignored(module, name):
            unexpected.append(name)
        elif name in expected and shape != shapes[name]:
            misshaped[name] = shape
    reading.check_tensors(path, shapes, missing, unexpected, misshaped)
    chosen = {}
    real = {}
    for name in expected:
        if name not in state:
            continue
        tensor = state[name]
        _check_kind(path, name, tensor, expected[name])
        chosen[name] = tensor
        if tensor.is_floating_point():
            real[name] = tensor
    reading.check_finite(path, real)
    _check_tied(path, chosen, tied)
    module.load_state_dict(chosen, strict=False)


def _with_names_of(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict without the prefixes that wrappers add, if they are in the way."""
    state = dict(state)
    removed: dict[str, None] = {}  # each once, in order
    for part in _ANYWHERE:
        is_in_state = any(part in name for name in state)
        is_expected = any(part in name for name in expected)
        if is_in_state and not is_expected:
            state = {name.replace(part, ""): tensor for name, tensor in state.items()}
            removed[part] = None
    while state and not state.keys() & expected.keys():
        common = [prefix for prefix in _PREFIXES if _all_begin_with(prefix, state)]
        if not common:
            break
        prefix = common[0]
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        removed[prefix] = None
    if removed:
        parts = " and ".join(map(repr, removed))
        warnings.warn(f"load: removed {parts} from the names of tensors.", stacklevel=4)
    return state


def _all_begin_with(prefix: str, state: Mapping[str, Tensor]) -> bool:
    return all(name.startswith(prefix) for name in state)


def _tied(expected: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """For each tensor, the other names of the same memory."""
    memory_of: dict[str, object] = {}
    names_in: dict[object, set[str]] = {}
    for name, tensor in expected.items():
        address = tensor.data_ptr() if tensor.numel() else id(tensor)
        memory = (address, tuple(tensor.shape))
        memory_of[name] = memory
        names_in.setdefault(memory, set()).add(name)
    return {name: names_in[memory] - {name} for name, memory in memory_of.items()}


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
    same_numbers = (
        tensor.is_floating_point() == like.is_floating_point()
        and tensor.is_complex() == like.is_complex()
    )
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized
    if same_numbers and is_dense:
        return
    raise FileError(
        f"loading {path}: {name!r} is {tensor.dtype}, {tensor.layout}; the module's is "
        f"{like.dtype}, {like.layout}."
    )
