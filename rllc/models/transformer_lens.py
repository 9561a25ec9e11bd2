"""State dicts of TransformerLens: which configuration their names and shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from rllc.errors import FileError, nearest

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnlyConfig

Positions = Literal["shortformer", "standard"]

_BUFFER = re.compile(r"blocks\.\d+\.attn\.(?:mask|IGNORE)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_AXES = {
    "embed.W_E": "[d_vocab, d_model]",
    "pos_embed.W_pos": "[n_ctx, d_model]",
    "blocks.0.attn.W_Q": "[head, d_model, d_head]",
}
"""The tensors whose shapes tell the sizes, and what their axes are."""


def without_buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone. TransformerLens saves the masks of its attention beside them."""
    return {name: tensor for name, tensor in state.items() if not _BUFFER.fullmatch(name)}


def infer_config(
    path: Path, state: Mapping[str, Tensor], positions: Positions
) -> AttentionOnlyConfig:
    """The configuration that the shapes of a state dict show."""
    from rllc.models.attention_only import AttentionOnlyConfig

    for name, axes in _AXES.items():
        _check_axes(path, state, name, axes)
    d_vocab, d_model = state["embed.W_E"].shape
    n_ctx, _ = state["pos_embed.W_pos"].shape
    n_heads, _, d_head = state["blocks.0.attn.W_Q"].shape
    blocks = filter(None, map(_BLOCK.match, state))
    return AttentionOnlyConfig(
        n_layers=len({block[1] for block in blocks}),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        positions=positions,
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
