"""Attention of ``nn.MultiheadAttention``, with maps that are modules.

Its own forward hands its weights to one function of torch, past any module, so that nothing can be
added to what its maps give. Here the same is computed with calls: of ``in_proj``, which is added to
a private copy of the module and has no weights of its own, and of ``out_proj``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InProjection(nn.Module):
    """The map to q, k and v, whose weights belong to the attention around it."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        # Past nn.Module, in which a part cannot hold the whole.
        object.__setattr__(self, "attention", attention)

    @property
    def weight(self) -> Any:
        """``[3 · embed, embed]``."""
        return vars(self)["attention"].in_proj_weight

    @property
    def bias(self) -> Any:
        """``[3 · embed]``, or ``None``."""
        return vars(self)["attention"].in_proj_bias

    def forward(self, x: Tensor) -> Tensor:
        """Return q, k and v beside one another."""
        return F.linear(x, self.weight, self.bias)


def why_not(attention: nn.MultiheadAttention) -> str:
    """Say what of an attention is not computed here; nothing, if all is."""
    if attention.in_proj_weight is None:
        return "its keys have another size than its queries"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it attends to more than it is given"
    if not attention.batch_first:
        return "it is not batch_first"
    return ""


class Attention:
    """The forward of an ``nn.MultiheadAttention`` in eval mode, in itself.

    Args:
        module: of a private copy; it gets an ``in_proj``.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        if "in_proj" not in module._modules:
            module.add_module("in_proj", InProjection(module))

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what is attended to ``[batch, pos, embed]``, and how much, as torch does."""
        if key is not query or value is not query or query.dim() != 3:
            raise ValueError("an nn.MultiheadAttention attends to something else than its input")
        module: Any = self.module
        heads = module.num_heads
        parts = module.in_proj(query).chunk(3, dim=-1)
        by_head = [part.unflatten(-1, (heads, -1)) for part in parts]
        q, k, v = (part.transpose(1, 2) for part in by_head)  # [batch, head, pos, d_head]
        # A hint that a mask is causal says no more than the mask.
        mask = _mask(attn_mask, key_padding_mask, query.dtype, heads)
        weights = None
        if need_weights:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return module.out_proj(mixed.transpose(1, 2).flatten(2)), weights


def _mask(
    attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype, heads: int
) -> Tensor | None:
    """The masks as one tensor that is added to scores ``[batch, head, pos, pos]``."""
    parts = []
    if attn_mask is not None:
        added = _added(attn_mask, dtype)
        if added.dim() != 2:
            added = added.unflatten(0, (-1, heads))
        parts.append(added)
    if padding is not None:
        parts.append(_added(padding, dtype)[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
