"""State dicts of TransformerLens: which configuration their names, shapes and settings tell.

TransformerLens's configuration says much that no tensor shows. What
:class:`rllc.models.AttentionOnly` can do is taken over, what it cannot do is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rllc.errors import FileError, InputError, nearest
from rllc.models.checkpoint import Positions

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnlyConfig

Settings = Mapping[str, Any]

_BUFFER = re.compile(r"blocks\.\d+\.attn\.(?:mask|IGNORE)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_AXES = {
    "embed.W_E": "[d_vocab, d_model]",
    "pos_embed.W_pos": "[n_ctx, d_model]",
    "blocks.0.attn.W_Q": "[head, d_model, d_head]",
}
"""The tensors whose shapes tell the sizes, and what their axes are."""

_OWN = re.compile(r"(?:blocks\.\d+\.attn\.W_[QKVO]|embed\.W_[Ee]|pos_embed\.W_pos|unembed\.W_U)")

_SAYS_NOTHING = (None, False, -1, -1.0, 0, 0.0)
"""Values that switch a setting off."""


def _scale_is_usual(value: Any, settings: Settings) -> bool:
    if value in (None, -1, -1.0):
        return True
    return math.isclose(value, math.sqrt(settings["d_head"]))


def _off(value: Any, settings: Settings) -> bool:
    return value in _SAYS_NOTHING


def _all_global(value: Any, settings: Settings) -> bool:
    return not value or all(kind == "global" for kind in value)


_CAN: dict[str, tuple[Callable[[Any, Settings], bool], str]] = {
    "architecture": (
        lambda value, s: value not in ("neel-solu-old", "mingpt"),
        "one whose tensors are as TransformerLens has them",
    ),
    "attn_only": (lambda value, s: bool(value), "True: AttentionOnly has no MLPs"),
    "normalization_type": (lambda value, s: value == "LN", "'LN', with its weights not folded"),
    "positional_embedding_type": (
        lambda value, s: value in ("standard", "shortformer"),
        "'standard' or 'shortformer'",
    ),
    "use_attn_scale": (lambda value, s: bool(value), "True: scores are divided by √d_head"),
    "attn_scale": (_scale_is_usual, "√d_head"),
    "use_local_attn": (_off, "False: attention sees the whole context"),
    "attn_types": (_all_global, "'global' in each layer"),
    "attn_scores_soft_cap": (_off, "off: scores are not capped"),
    "output_logits_soft_cap": (_off, "off: logits are not capped"),
    "attention_dir": (lambda value, s: value == "causal", "'causal'"),
    "scale_attn_by_inverse_layer_idx": (_off, "False"),
    "final_rms": (_off, "False"),
    "post_embedding_ln": (_off, "False"),
    "use_normalization_before_and_after": (_off, "False"),
    "use_qk_norm": (_off, "False"),
    "num_experts": (_off, "None"),
    "n_key_value_heads": (
        lambda value, s: value in (None, s.get("n_heads")),
        "the number of heads",
    ),
    "d_vocab_out": (
        lambda value, s: value in (None, -1, s.get("d_vocab")),
        "d_vocab",
    ),
}
"""Settings that change what a model computes: which values AttentionOnly has, and these in words.

Those left out change nothing of an attention-only model: act_fn, d_mlp, gated_mlp,
parallel_attn_mlp are of MLPs, rotary_* of rotary positions, and the rest of training, devices,
tokenizers and hooks.
"""


def is_transformer_lens(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of tensors are TransformerLens's."""
    return not state or any(_OWN.fullmatch(name) for name in state)


def is_configuration(settings: Settings | None) -> bool:
    """Whether settings are TransformerLens's, and not those of training or of another library."""
    return settings is not None and "n_ctx" in settings and "d_model" in settings


def without_buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone. TransformerLens saves the masks of its attention beside them."""
    return {name: tensor for name, tensor in state.items() if not _BUFFER.fullmatch(name)}


def infer_config(
    path: Path,
    state: Mapping[str, Tensor],
    positions: Positions | None,
    settings: Settings | None = None,
) -> AttentionOnlyConfig:
    """The configuration that the shapes of a state dict show, and that its settings say.

    Args:
        path: the state dict.
        state: its tensors.
        positions: as they were given, if they were.
        settings: TransformerLens's configuration, if there is one.

    Raises:
        InputError: ``positions`` is needed, or contradicts the settings.
        FileError: tensors or settings are those of another kind of model, or contradict each other.
    """
    from rllc.models.attention_only import AttentionOnlyConfig

    settings = None if settings is None else _in_usual_names(settings)
    for name, axes in _AXES.items():
        _check_axes(path, state, name, axes)
    d_vocab, d_model = state["embed.W_E"].shape
    n_ctx, _ = state["pos_embed.W_pos"].shape
    n_heads, _, d_head = state["blocks.0.attn.W_Q"].shape
    blocks = filter(None, map(_BLOCK.match, state))
    sizes: dict[str, Any] = {
        "n_layers": len({block[1] for block in blocks}),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_head,
        "n_ctx": n_ctx,
        "d_vocab": d_vocab,
    }
    if settings is None:
        if positions is None:
            raise _needs_positions(path)
        return AttentionOnlyConfig(**sizes, positions=positions)
    _check_settings(path, settings, sizes)
    says = settings["positional_embedding_type"]
    if positions not in (None, says):
        raise InputError(
            f"load: `positions` is {positions!r}, but the configuration of {path} says {says!r}; "
            f"drop `positions`."
        )
    return AttentionOnlyConfig(
        **sizes, positions=says, layer_norm_eps=float(settings.get("eps", 1e-5))
    )


def _in_usual_names(settings: Settings) -> Settings:
    """Settings of TransformerLens's toy models (``attn-only-2l``, …), whose names are older."""
    usual = {"positional_embedding_type": "standard", **settings}
    if "normalization" in settings:
        usual.setdefault("normalization_type", settings["normalization"])
    if "shortformer_pos" in settings:
        is_shortformer = bool(settings["shortformer_pos"])
        usual["positional_embedding_type"] = "shortformer" if is_shortformer else "standard"
    return usual


def _needs_positions(path: Path) -> InputError:
    return InputError(
        f"load: {path} is a state dict of TransformerLens without its configuration, and no tensor "
        f"shows how positions are used; type positions='standard' (TransformerLens's default) or "
        f"positions='shortformer' (the paper's models), or put the configuration beside it as "
        f"config.json. With tokens=rows the loss is checked."
    )


def _check_settings(path: Path, settings: Settings, sizes: Mapping[str, int]) -> None:
    """Refuse what the model class cannot do, and what contradicts the tensors."""
    problems = []
    all_settings = {**sizes, **settings}
    for name, (is_possible, possible) in _CAN.items():
        if name in settings and not is_possible(settings[name], all_settings):
            problems.append(f"{name} is {settings[name]!r}, expected {possible}")
    for name, size in sizes.items():
        value = settings.get(name, size)
        if value not in (size, None, -1):
            problems.append(f"{name} is {value!r}, but the tensors show {size}")
    if problems:
        listed = "\n  ".join(problems)
        raise FileError(
            f"loading {path}: its configuration is of a model that AttentionOnly cannot be:\n"
            f"  {listed}\nBuild the model yourself, and give it: rllc.load(path, into=model)."
        )


def _check_axes(path: Path, state: Mapping[str, Tensor], name: str, axes: str) -> None:
    if name not in state:
        similar = nearest(name, state) if state else "it is empty"
        raise FileError(
            f"loading {path}: a TransformerLens state dict of an attention-only transformer has a "
            f"tensor {name!r} {axes}, this has none; {similar}."
        )
    shape = tuple(state[name].shape)
    num_axes = axes.count(",") + 1
    if len(shape) != num_axes or 0 in shape:
        raise FileError(f"loading {path}: {name!r} has shape {shape}, expected {axes}.")
