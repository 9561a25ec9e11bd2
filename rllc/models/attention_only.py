"""The attention-only transformer of the paper: configuration, parameters and forward pass on a page.

Parameter names and layouts are TransformerLens's. Every activation carries a leading ``run`` axis: 1 while nothing
before it differs between runs, the number of runs from the first moved weight on. So one forward pass serves a plain
model (``run = 1``) and hundreds of sampling chains at once, and what they share is computed once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from rllc.engine.layout import Moved, stack
from rllc.errors import InputError

HEAD_TENSORS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
"""The tensors of ``blocks.{l}.attn`` that have one slice a head; together, one slice of each, they are a head."""


@strict
class AttentionOnlyConfig(PreTrainedConfig):
    """Sizes of an :class:`AttentionOnly`; the defaults are the paper's model (3,355,016 parameters).

    >>> AttentionOnlyConfig(n_layers=1).num_hidden_layers
    1

    Args:
        n_layers: attention blocks, one after the other.
        d_model: width of the residual stream.
        n_heads: heads a block.
        d_head: width of a head; 32 in the paper, where n_heads * d_head = d_model (not required here).
        n_ctx: longest context, in tokens.
        d_vocab: number of token ids.
        positions: ``"shortformer"``: a learned table added, after the LayerNorm, to the inputs of Q and K only, the same
            in every layer (Press et al. 2021, "Shortformer"; the paper's choice); ``"standard"``: added once to the
            residual stream.
        layer_norm_eps: added to the variance.
        init_scale: matrices start as N(0, (init_scale / sqrt(d_model))²), biases at 0
            (TransformerLens's default).
        init_positions: ``"normal"``: the table of positions starts like the matrices;
            ``"sinusoidal"``: with sines and cosines of amplitude 1, see :func:`sinusoids`. It is
            learned either way.
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
        for name in ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"AttentionOnlyConfig: `{name}` must be an integer of at least 1, got {value!r}."
                )
        for name in ("layer_norm_eps", "init_scale", "init_embedding", "init_late_qk"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"AttentionOnlyConfig: `{name}` must be positive, got {value!r}.")
        if self.positions not in ("shortformer", "standard"):
            raise InputError(
                f"AttentionOnlyConfig: `positions` must be 'shortformer' or 'standard', got {self.positions!r}."
            )
        if self.init_positions not in ("normal", "sinusoidal"):
            raise InputError(
                f"AttentionOnlyConfig: `init_positions` must be 'normal' or 'sinusoidal', got "
                f"{self.init_positions!r}."
            )
        super().__post_init__(**kwargs)


class Activations(NamedTuple):
    """What the unmoved model computes on one batch, and runs may share."""

    tokens: Tensor
    """``[batch, pos]``."""
    residual: list[Tensor]
    """Before each block, and after the last: ``n_layers + 1`` tensors ``[1, batch, pos, d_model]``."""
    z: list[Tensor]
    """Each block's head outputs before W_O: ``n_layers`` tensors ``[1, batch, head, pos, d_head]``."""


class AttentionOnly(PreTrainedModel):
    """A transformer of attention blocks alone: embed, n_layers × (LayerNorm, heads), LayerNorm, unembed.

    >>> model = AttentionOnly(AttentionOnlyConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=6, d_vocab=10))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 10])

    A transformers model: ``save_pretrained``, ``from_pretrained(revision=…)``, ``push_to_hub`` and the Auto-classes work.
    Attention is causal with scale 1/sqrt(d_head). ``attn_implementation="eager"`` gives attention that can be
    differentiated twice. Source: arXiv 2410.02984, appendix; see :class:`AttentionOnlyConfig`.
    """

    config_class = AttentionOnlyConfig
    config: AttentionOnlyConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = (
        False  # the loss is a mean; transformers' Trainer then divides accumulated gradients itself
    )
    _supports_sdpa = True
    _no_split_modules = ("Tensors",)

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__(config)
        c = config
        self.embed = Tensors(W_E=(c.d_vocab, c.d_model))
        self.pos_embed = Tensors(W_pos=(c.n_ctx, c.d_model))
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.n_layers))
        self.ln_final = Tensors(w=(c.d_model,), b=(c.d_model,))
        self.unembed = Tensors(W_U=(c.d_model, c.d_vocab), b_U=(c.d_vocab,))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, Tensors):
            return
        c = self.config
        std = c.init_scale / c.d_model**0.5
        late = any(module is block["attn"] for block in self.blocks[1:])
        for name, tensor in module.named_parameters(recurse=False):
            if name == "W_pos" and c.init_positions == "sinusoidal":
                init.copy_(tensor, sinusoids(c.n_ctx, c.d_model))
            elif name == "W_E" and c.init_embedding is not None:
                init.normal_(tensor, std=c.init_embedding)
            elif name in ("W_Q", "W_K") and late:
                init.normal_(tensor, std=c.init_late_qk * std)
            elif name.startswith("W_"):
                init.normal_(tensor, std=std)
            elif name == "w":
                init.ones_(tensor)
            else:
                init.zeros_(tensor)

    def get_input_embeddings(self) -> nn.Module:  # noqa: D102 (transformers documents it)
        return self.embed

    def get_output_embeddings(self) -> nn.Module:  # noqa: D102 (transformers documents it)
        return self.unembed

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits, and what else is asked for, as transformers' causal language models give them.

        Args:
            input_ids: ``[batch, pos]``.
            labels: ``[batch, pos]``, usually ``input_ids``: position k is scored on label k + 1, and ``loss`` is the mean
                cross entropy in nats (−100 is left out).
            attention_mask: may only be all ones; rows are packed, never padded.
            output_attentions: also give attention patterns, one ``[batch, head, query, key]`` a layer.
            output_hidden_states: also give the residual stream before each block and after the last.

        Returns:
            ``logits`` is ``[batch, pos, d_vocab]``.
        """
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise InputError(
                "AttentionOnly: `attention_mask` has zeros, but rows are packed, never padded; drop them."
            )
        patterns: list[Tensor] | None = [] if output_attentions else None
        activations = self.activations(input_ids, patterns)
        hidden = self.normalise("ln_final", activations.residual[-1], {})
        logits = (hidden @ self.unembed.W_U + self.unembed.b_U)[0]
        loss = None
        if labels is not None:
            scored = logits[:, :-1].flatten(0, 1)
            scored = scored.float() if scored.dtype in (torch.bfloat16, torch.float16) else scored
            loss = F.cross_entropy(scored, labels[:, 1:].flatten(), ignore_index=-100)
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(x[0] for x in activations.residual)
            if output_hidden_states
            else None,
            attentions=tuple(patterns) if patterns is not None else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    # The forward pass in parts. x is [run, batch, pos, d_model]; `moved` names the weights that differ between runs.

    def activations(self, tokens: Tensor, patterns: list[Tensor] | None = None) -> Activations:
        """Run the model as it is on ``tokens [batch, pos]``, keeping what runs share; append attention to ``patterns``."""
        if tokens.shape[-1] > self.config.n_ctx:
            raise InputError(
                f"AttentionOnly: rows have {tokens.shape[-1]} positions, but the model's context is {self.config.n_ctx} "
                f"(`n_ctx`); pack the data with context_length={self.config.n_ctx}."
            )
        residual, zs = [self._embed(tokens, {})], []
        for layer in range(self.config.n_layers):
            z = self._heads(layer, residual[-1], {}, patterns)
            zs.append(z)
            residual.append(residual[-1] + self.write(layer, z, {}))
        return Activations(tokens, residual, zs)

    def hidden(self, moved: Mapping[str, Moved], at: Activations) -> Tensor:
        """Hidden state before the unembedding, when each run has its own values of the ``moved`` weights.

        Starts at the first block a moved weight is in. While the residual stream is still shared and only heads of the
        block move, the other heads' outputs are taken from ``at`` and only the moved heads are computed, run by run.

        Returns:
            ``[run, batch, pos, d_model]`` (``[1, …]`` when nothing before the unembedding moved).
        """
        first = self.first_block(moved)
        x = self._embed(at.tokens, moved) if first < 0 else at.residual[first]
        for layer in range(max(first, 0), self.config.n_layers):
            rows = _moved_heads(moved, layer)
            if (
                layer == first and rows is not None
            ):  # all before it, and its other heads, are as in `at`
                x = self._replace_heads(layer, rows, moved, at)
            else:
                x = x + self.write(layer, self._heads(layer, x, moved), moved)
        return self.normalise("ln_final", x, moved)

    def first_block(self, names: Collection[str]) -> int:
        """The first block that moving these weights changes: −1 for the embedding, ``n_layers`` for what follows all blocks."""
        blocks = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in names) if m]
        return (
            -1
            if any(name.split(".")[0] in ("embed", "pos_embed") for name in names)
            else min(blocks, default=self.config.n_layers)
        )

    def _tensor(self, name: str) -> Tensor:
        """A parameter by name; unlike ``get_parameter``, also while ``torch.func.functional_call`` has put a tensor there."""
        return attrgetter(name)(self)

    def weight(self, name: str, moved: Mapping[str, Moved]) -> Tensor:
        """One parameter with a run axis in front: ``[1, …]`` when shared, else ``[run, …]`` with its moved rows put in.

        When anything moved, gradients are for the moved weights only, so the others are detached.
        """
        base = self._tensor(name)
        if name not in moved:
            return base.detach()[None] if moved else base[None]
        return stack(moved[name], base)

    def normalise(self, name: str, x: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        """LayerNorm over d_model with the scale and bias called ``name``."""
        w, b = self.weight(f"{name}.w", moved), self.weight(f"{name}.b", moved)
        if w.shape[0] == b.shape[0] == 1:
            return F.layer_norm(x, x.shape[-1:], w[0], b[0], self.config.layer_norm_eps)
        return (
            F.layer_norm(x, x.shape[-1:], eps=self.config.layer_norm_eps) * w[:, None, None]
            + b[:, None, None]
        )

    def _embed(self, tokens: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        x = self.weight("embed.W_E", moved)[:, tokens]
        if self.config.positions == "standard":
            x = x + self.weight("pos_embed.W_pos", moved)[:, None, : tokens.shape[-1]]
        return x

    def _inputs(self, layer: int, x: Tensor, moved: Mapping[str, Moved]) -> tuple[Tensor, Tensor]:
        """The inputs of Q and K, and of V."""
        u = self.normalise(f"blocks.{layer}.ln1", x, moved)
        if self.config.positions == "standard":
            return u, u
        return u + self.weight("pos_embed.W_pos", moved)[:, None, : x.shape[2]], u

    def _heads(
        self,
        layer: int,
        x: Tensor,
        moved: Mapping[str, Moved],
        patterns: list[Tensor] | None = None,
    ) -> Tensor:
        """Outputs of all heads before W_O, ``[run, batch, head, pos, d_head]``."""
        at = f"blocks.{layer}.attn."
        qk, u = self._inputs(layer, x, moved)
        q = _project(qk, self.weight(at + "W_Q", moved), self.weight(at + "b_Q", moved))
        k = _project(qk, self.weight(at + "W_K", moved), self.weight(at + "b_K", moved))
        v = _project(u, self.weight(at + "W_V", moved), self.weight(at + "b_V", moved))
        return self.attend(q, k, v, patterns)

    def project(
        self, layer: int, letter: str, x: Tensor, heads: slice | Tensor = slice(None)
    ) -> Tensor:
        """Queries, keys or values (``letter`` "Q", "K" or "V") that heads of a block make of the residual stream x.

        Returns:
            ``[run, batch, head, pos, d_head]``, the heads being the chosen ones, in their order.
        """
        at = f"blocks.{layer}.attn."
        qk, u = self._inputs(layer, x, {})
        W, b = (self._tensor(f"{at}{kind}_{letter}")[heads][None] for kind in "Wb")
        return _project(u if letter == "V" else qk, W, b)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, patterns: list[Tensor] | None = None
    ) -> Tensor:
        """Outputs of heads before W_O from their queries, keys and values, ``[run or 1, batch, head, pos, d_head]`` each."""
        runs = max(t.shape[0] for t in (q, k, v))
        q, k, v = (t.expand(runs, *t.shape[1:]).flatten(0, 1) for t in (q, k, v))
        if patterns is None and self.config._attn_implementation != "eager":
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            pattern = scores.masked_fill(future, float("-inf")).softmax(-1)
            if patterns is not None:
                patterns.append(pattern)
            z = pattern @ v
        return z.unflatten(0, (runs, -1))

    def write(self, layer: int, z: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        """What the heads add to the residual stream: Σ_head z W_O + b_O."""
        at = f"blocks.{layer}.attn."
        return (
            _combine(z, self.weight(at + "W_O", moved))
            + self.weight(at + "b_O", moved)[:, None, None]
        )

    def _replace_heads(
        self, layer: int, rows: Tensor, moved: Mapping[str, Moved], at: Activations
    ) -> Tensor:
        """The residual stream after a block in which each run moved only its heads ``rows [run, head]``.

        It is the unmoved one, plus what the moved heads write, less what they wrote before they moved.
        """
        name = f"blocks.{layer}.attn."
        before = {t: self._tensor(name + t).detach()[rows] for t in HEAD_TENSORS}
        own = {t: moved[name + t].block if name + t in moved else before[t] for t in HEAD_TENSORS}
        qk, u = self._inputs(layer, at.residual[layer], moved)
        z = self.attend(
            _project(qk, own["W_Q"], own["b_Q"]),
            _project(qk, own["W_K"], own["b_K"]),
            _project(u, own["W_V"], own["b_V"]),
        )
        z_before = (
            at.z[layer][0].transpose(0, 1)[rows].transpose(1, 2)
        )  # [run, batch, head, pos, d_head]
        return at.residual[layer + 1] + _combine(z, own["W_O"]) - _combine(z_before, before["W_O"])


def sinusoids(n_ctx: int, d_model: int, shortest: float = 2.5) -> Tensor:
    """Sines and cosines of the position, ``[pos, d_model]``, as a start for a table of positions.

    Half the columns are sin(2πt/p), half cos(2πt/p), with periods p in geometric progression from
    ``shortest`` to n_ctx / 2. Shifting all positions by one is then a rotation, so a head's Q and K
    can look back one token from the first step on.

    >>> sinusoids(4, 6).shape
    torch.Size([4, 6])
    """
    half = (d_model + 1) // 2
    longest = max(n_ctx / 2, shortest)
    periods = torch.logspace(math.log10(shortest), math.log10(longest), half)
    angles = 2 * math.pi * torch.arange(n_ctx)[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :d_model]


class Tensors(nn.Module):
    """Parameters with the given names and shapes, and nothing else; the forward pass lives in the model."""

    def __init__(self, **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(*shape)))


def _block(c: AttentionOnlyConfig) -> nn.ModuleDict:
    heads_in, heads_out = (c.n_heads, c.d_model, c.d_head), (c.n_heads, c.d_head, c.d_model)
    bias = (c.n_heads, c.d_head)
    attn = Tensors(
        W_Q=heads_in,
        W_K=heads_in,
        W_V=heads_in,
        W_O=heads_out,
        b_Q=bias,
        b_K=bias,
        b_V=bias,
        b_O=(c.d_model,),
    )
    return nn.ModuleDict({"ln1": Tensors(w=(c.d_model,), b=(c.d_model,)), "attn": attn})


def _project(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """``x [r, batch, pos, d_model]``, ``W [s, head, d_model, d_head]`` -> ``[run, batch, head, pos, d_head]``; r, s: run or 1.

    As few and as large matrix products as there can be: one when the weights or the inputs are shared.
    """
    (r, batch, pos, d), (s, heads, _, width) = x.shape, W.shape
    flat = rearrange(W, "run head d_model d_head -> run d_model (head d_head)")
    if s == 1:
        y = (x.reshape(-1, d) @ flat[0]).view(r, batch, pos, heads, width)
    elif r == 1:
        y = x.reshape(-1, d) @ flat.transpose(0, 1).reshape(d, -1)
        y = y.view(batch, pos, s, heads, width).permute(2, 0, 1, 3, 4)
    else:
        y = torch.bmm(x.reshape(r, -1, d), flat).view(r, batch, pos, heads, width)
    return (y + b[:, None, None]).transpose(2, 3)


def _combine(z: Tensor, W: Tensor) -> Tensor:
    """Sum over heads of ``z [r, batch, head, pos, d_head]`` times ``W [s, head, d_head, d_model]``; r, s: run or 1."""
    _, batch, _, pos, _ = z.shape
    flat = rearrange(z, "run batch head pos d_head -> run (batch pos) (head d_head)")
    out = torch.matmul(flat, W.flatten(1, 2)) if W.shape[0] > 1 else flat @ W[0].flatten(0, 1)
    return out.view(-1, batch, pos, W.shape[-1])


def _moved_heads(moved: Mapping[str, Moved], layer: int) -> Tensor | None:
    """The heads ``[run, head]`` that moved in a block, when nothing else in it did and each tensor agrees on which."""
    names = [name for name in moved if name.startswith(f"blocks.{layer}.")]
    if not names or any(name.rsplit(".", 1)[1] not in HEAD_TENSORS for name in names):
        return None
    rows = moved[names[0]].rows
    return (
        rows if all(moved[name].rows is rows for name in names) else None
    )  # identity: comparing would wait for the GPU


AutoConfig.register(AttentionOnlyConfig.model_type, AttentionOnlyConfig)
AutoModelForCausalLM.register(AttentionOnlyConfig, AttentionOnly)
