"""The configuration of the attention-only transformer: its sizes, and how its weights start."""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig

from rllc.errors import InputError

_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab")
_POSITIVE = ("layer_norm_eps", "init_scale", "init_embedding", "init_late_qk")
_CHOICES = {
    "positions": ("shortformer", "standard"),
    "init_positions": ("normal", "sinusoidal"),
}


@strict
class AttentionOnlyConfig(PreTrainedConfig):
    """Sizes of an :class:`AttentionOnly`; the defaults are the paper's model (3,355,016
    parameters).

    >>> AttentionOnlyConfig(n_layers=1).num_hidden_layers
    1

    Args:
        n_layers: attention blocks, one after the other.
        d_model: width of the residual stream.
        n_heads: heads a block.
        d_head: width of a head; 32 in the paper, where n_heads * d_head = d_model (not required
            here).
        n_ctx: longest context, in tokens.
        d_vocab: number of token ids.
        positions: ``"shortformer"``: a learned table added, after the LayerNorm, to the inputs of Q
            and K only, the same in every layer (Press et al. 2021, "Shortformer"; the paper's
            choice); ``"standard"``: added once to the residual stream.
        layer_norm_eps: added to the variance.
        init_scale: matrices start as N(0, (init_scale / sqrt(d_model))²), biases at 0
            (TransformerLens's default).
        init_positions: ``"normal"``: the table of positions starts like the matrices;
            ``"sinusoidal"``: with sines and cosines of amplitude 1, see
            :func:`sinusoids`. It is learned either way.
        init_embedding: standard deviation of the embedding; ``None``: as the matrices.
        init_late_qk: factor on W_Q and W_K of all layers but the first. Below 1, heads of late
            layers begin with even attention, and leave looking back one token to the first layer.

    Raises:
        InputError: a size is below 1, or a choice is none of those given.
    """

    model_type = "rllc_attention_only"
    attribute_map = {  # noqa: RUF012 (a class attribute that transformers defines)
        "num_hidden_layers": "n_layers",
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "head_dim": "d_head",
        "max_position_embeddings": "n_ctx",
        "vocab_size": "d_vocab",
    }

    n_layers: int = 2
    d_model: int = 256
    n_heads: int = 8
    d_head: int = 32
    n_ctx: int = 1024
    d_vocab: int = 5000
    positions: str = "shortformer"
    layer_norm_eps: float = 1e-5
    init_scale: float = 0.8
    init_positions: str = "normal"
    init_embedding: float | None = None
    init_late_qk: float = 1.0
    tie_word_embeddings: bool = False

    @classmethod
    def fast(cls, **changes: Any) -> AttentionOnlyConfig:
        """A small model and a start from which an induction head forms in two minutes of a CPU.

        >>> AttentionOnlyConfig.fast(d_vocab=1000).d_model
        128

        For use with :meth:`rllc.Training.fast`, which has the figures.

        Args:
            changes: fields to replace, by name.
        """
        recipe: dict[str, Any] = {
            "d_model": 128,
            "d_head": 16,
            "n_ctx": 256,
            "d_vocab": 512,
            "init_positions": "sinusoidal",
            "init_embedding": 0.5,
            "init_late_qk": 0.3,
        }
        return cls(**recipe | changes)

    def __post_init__(self, **kwargs: object) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"AttentionOnlyConfig: `{name}` must be an integer of at least 1, got "
                    f"{value!r}."
                )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"AttentionOnlyConfig: `{name}` must be positive, got {value!r}.")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"AttentionOnlyConfig: `{name}` must be {' or '.join(map(repr, choices))}, got "
                    f"{value!r}."
                )
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


_SHORTEST_PERIOD = 2.5
"""Positions. The shortest wave of the sinusoids with which a table of positions can start."""


def sinusoids(n_ctx: int, d_model: int) -> Tensor:
    """Sines and cosines of the position, ``[pos, d_model]``, as a start for a table of positions.

    Half the columns are sin(2πt/p), half cos(2πt/p), with periods p in geometric progression from
    2.5 to n_ctx / 2. Shifting all positions by one is then a rotation, so a head's Q and K
    can look back one token from the first step on.

    >>> sinusoids(4, 6).shape
    torch.Size([4, 6])
    """
    num_periods = (d_model + 1) // 2
    longest = max(n_ctx / 2, _SHORTEST_PERIOD)
    exponents = (math.log10(_SHORTEST_PERIOD), math.log10(longest))
    periods = torch.logspace(*exponents, num_periods)
    angles = 2 * math.pi * torch.arange(n_ctx)[:, None] / periods  # [pos, period]
    sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1)
    return sinusoids[:, :d_model]
