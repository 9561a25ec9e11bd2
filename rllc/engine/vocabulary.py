"""Cross entropy behind a frozen linear head, and its gradient, in one sweep over the vocabulary.

Logits of all runs at all positions would not fit into memory, and those of a few positions read the
whole head from memory for little work. So the vocabulary is taken in tiles: a tile's logits of
many positions stay in the cache, and each number of the head is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_POSITIONS, _CPU_TILE = 512, 1024
"""Positions and token ids of a tile on a CPU: 2 MB of logits."""

_GPU_POSITIONS, _GPU_TILE = 8192, 8192
"""Positions and token ids of a tile on a GPU: 256 MB of logits."""


class Head(NamedTuple):
    """How a model makes logits of what its last linear map gets: c·tanh(s(Wx + b)/c)."""

    name: str
    """The name of the map's module."""
    scale: float = 1.0
    """s."""
    cap: float | None = None
    """c; ``None``: no cap, s(Wx + b)."""

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits where the map gives ``z``."""
        if self.scale != 1:
            z = z * self.scale
        if self.cap is None:
            return z
        return self.cap * torch.tanh(z / self.cap)


def heads_of_config(model: nn.Module) -> Iterator[Head]:
    """The forms that a model's configuration allows its head to have, without a name."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    scales = [1.0]
    for name in ("logit_scale", "lm_head_multiplier"):
        scales += _number(config, name)
    for number in _number(config, "logits_scaling"):
        scales.append(1 / number)
    for cap in (None, *_number(config, "final_logit_softcapping")):
        for scale in scales:
            yield Head("", scale, cap)


def _number(config: object, name: str) -> list[float]:
    value = getattr(config, name, None)
    if not isinstance(value, int | float) or not value:
        return []
    return [float(value)]


class VocabularyLoss(torch.autograd.Function):
    """The mean cross entropy of each run, and its gradient by the hidden states.

    With z = c·tanh(s(Wx + b)/c) and p = softmax(z), the loss of target y is logsumexp(z) − z_y, and
    ∂/∂x = s·(Σ_v p_v d_v W_v − d_y W_y) with d = 1 − (z/c)², which is 1 without a cap. Both sums
    grow tile by tile: exp(z − m), m being the largest logit so far, is normalised at the end.

    Returns:
        ``(mean loss [run] in float64, each loss [run, position] without gradient)``.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden: Tensor,
        W: Tensor,
        b: Tensor | None,
        ids: Tensor,
        head: Head,
        autocast: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        runs, count, width = hidden.shape
        want_gradient = ctx.needs_input_grad[0]
        x = hidden.reshape(-1, width).to(W.dtype)
        targets = ids.repeat(runs)
        each = x.new_empty(len(x))
        gradient = None
        if want_gradient:
            gradient = torch.empty_like(x)
        on_cpu = x.device.type == "cpu"
        size = CPU_POSITIONS if on_cpu else _GPU_POSITIONS
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), size):
                rows = slice(start, start + size)
                tile = _Tile.swept(x[rows], W, b, head, autocast, want_gradient)
                y = targets[rows]
                W_y = W[y]
                z_y = (x[rows] * W_y).sum(1, keepdim=True)
                if b is not None:
                    z_y = z_y + b[y, None]
                z_y = head.logits(z_y)
                log_normaliser = tile.top + tile.total.log()
                each[rows] = (log_normaliser - z_y)[:, 0]
                if gradient is not None:
                    pull = tile.pull.div_(tile.total)
                    pull.addcmul_(W_y, _slope(z_y, head), value=-1.0)
                    torch.mul(pull, head.scale, out=gradient[rows])
        if gradient is not None:
            gradient = gradient.view(hidden.shape)
        ctx.gradient = gradient
        each = each.view(runs, count)
        ctx.mark_non_differentiable(each)
        mean = each.double().mean(1)
        return mean, each

    @staticmethod
    def backward(ctx: Any, d_means: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        count = ctx.gradient.shape[1]
        weight = (d_means / count).to(ctx.gradient.dtype)
        d_hidden = ctx.gradient * weight[:, None, None]
        return d_hidden, None, None, None, None, None


class _Tile(NamedTuple):
    """The results of a sweep so far, for some positions."""

    top: Tensor
    """``[position, 1]``: m, the largest logit."""
    total: Tensor
    """``[position, 1]``: Σ exp(z − m)."""
    pull: Tensor
    """``[position, d_model]``: Σ exp(z − m) d W."""

    @classmethod
    def swept(
        cls,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        head: Head,
        autocast: torch.dtype | None,
        want_gradient: bool,
    ) -> _Tile:
        size = _CPU_TILE if x.device.type == "cpu" else _GPU_TILE
        top = x.new_full((len(x), 1), -torch.inf)
        total = torch.zeros_like(top)
        pull = torch.zeros_like(x)
        low_x = x if autocast is None else x.to(autocast)
        for start in range(0, len(W), size):
            ids = slice(start, start + size)
            W_tile = W[ids].to(low_x.dtype)
            b_tile = None
            if b is not None:
                b_tile = b[ids].to(low_x.dtype)
            z = head.logits(F.linear(low_x, W_tile, b_tile).to(x.dtype))
            top_of_tile = z.amax(1, keepdim=True)
            higher = torch.maximum(top, top_of_tile)
            shrink = (top - higher).exp_()
            slope = None if head.cap is None else _slope(z, head)
            p = z.sub_(higher).exp_()
            total.mul_(shrink).add_(p.sum(1, keepdim=True))
            if want_gradient:
                if slope is not None:
                    p.mul_(slope)
                if autocast is None:
                    pull = torch.addmm(pull.mul_(shrink), p, W_tile, out=pull)
                else:
                    pull.mul_(shrink).add_(p.to(autocast) @ W_tile)
            top = higher
        return cls(top, total, pull)


def _slope(z: Tensor, head: Head) -> Tensor:
    """By how much a logit grows with what is capped: 1 − (z/c)²."""
    if head.cap is None:
        return torch.ones_like(z)
    return 1 - (z / head.cap).square()
