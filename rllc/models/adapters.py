"""Folders of LoRA adapters, as peft saves them: read with their base, and merged into it.

Reference: Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rllc.errors import FileError
from rllc.models import reading

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.weight")

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "use_qalora": (None, False),
}
"""Settings that change how an adapter acts, and those of their values that are plain LoRA."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Where the model is that an adapter was trained on: a folder, or a name on the hub.

    Raises:
        FileError: the adapter does not say it.
    """
    base = reading.read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise FileError(
            f"loading {folder}: {CONFIG} does not say which model the adapter was trained on; "
            f'write "base_model_name_or_path": "folder or name on the hub" into it.'
        )
    beside = folder / base
    return str(beside) if beside.is_dir() else base


@torch.no_grad()
def merge(model: nn.Module, folder: Path) -> None:
    """Add an adapter to the weights of its base: W + (α/r) B A.

    r is the rank of B A, and α is ``lora_alpha``; with rank-stabilised LoRA it is α/√r.

    Args:
        model: the base, which is changed.
        folder: of the adapter.

    Raises:
        FileError: it is not plain LoRA, or not one of this model. The model is as it was.
    """
    settings = reading.read_json(folder / CONFIG)
    _check_plain(folder, settings)
    added = {}
    for name, (a, b) in _matrices(folder).items():
        weight = _weight_of(model, name, folder)
        scale = _alpha_of(settings, name, folder)
        scale /= math.sqrt(len(a)) if settings.get("use_rslora") else len(a)
        change = scale * (b.double() @ a.double())
        # GPT-2's maps are [in, out].
        if settings.get("fan_in_fan_out"):
            change = change.T
        if change.shape != weight.shape:
            raise FileError(
                f"loading {folder}: the adapter of {name!r} is {list(change.shape)}, but the "
                f"base's weight is {list(weight.shape)}; it is of another model."
            )
        added[name] = (weight, change)
    for weight, change in added.values():
        weight.copy_((weight.double() + change).to(weight.dtype))


def _check_plain(folder: Path, settings: Mapping[str, Any]) -> None:
    advice = "merge it with peft, model.merge_and_unload().save_pretrained(folder)"
    if settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type")
        raise FileError(f"loading {folder}: an adapter of kind {kind!r}, not LoRA; {advice}.")
    for name, values in _PLAIN.items():
        if settings.get(name) not in values:
            raise FileError(
                f"loading {folder}: {CONFIG} has {name} = {settings[name]!r}, which is more than "
                f"plain LoRA; {advice}."
            )


def _matrices(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A ``[r, in]`` and B ``[out, r]`` of each module."""
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not files:
        raise FileError(f"loading {folder}: it has no {_WEIGHTS[0]}, the adapter's weights.")
    state = reading.read_tensors(files[0])
    reading.check_finite(files[0], state)
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _MATRIX.fullmatch(name)
        if match is None or tensor.dim() != 2:
            raise FileError(
                f"loading {files[0]}: {name!r} {list(tensor.shape)} is none of the matrices of "
                f"plain LoRA, ….lora_A.weight and ….lora_B.weight; merge it with peft."
            )
        by_module.setdefault(match[1], {})[match[2]] = tensor
    pairs = {}
    for name, both in by_module.items():
        has_both = both.keys() == {"A", "B"}
        if not has_both or len(both["A"]) != both["B"].shape[1]:
            raise FileError(f"loading {files[0]}: A and B of {name!r} do not fit together.")
        pairs[name] = both["A"], both["B"]
    return pairs


def _weight_of(model: nn.Module, name: str, folder: Path) -> Tensor:
    try:
        weight = model.get_submodule(name).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, Tensor):
        raise FileError(
            f"loading {folder}: the adapter changes {name!r}, which {type(model).__name__} has "
            f"not; it is of another model."
        )
    return weight


def _alpha_of(settings: Mapping[str, Any], name: str, folder: Path) -> float:
    """Return α of a module; patterns are ends of names, or regular expressions for them."""
    alpha = settings.get("lora_alpha")
    for pattern, of_pattern in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", name):
            alpha = of_pattern
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise FileError(
            f"loading {folder}: {CONFIG} has lora_alpha = {alpha!r}, expected a number."
        )
    return float(alpha)
