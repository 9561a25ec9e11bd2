"""The attention-only transformer of the paper: parameters and forward pass on a page.

Parameter names and layouts are TransformerLens's. Every activation carries a leading ``run`` axis:
1 while nothing before it differs between runs, the number of runs from the first moved weight on.
So one forward pass serves a plain model (``run = 1``) and hundreds of sampling chains at once, and
what they share is computed once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from rllc.engine.layout import Moved, stack
from rllc.errors import InputError
from rllc.models.config import AttentionOnlyConfig, sinusoids

HEAD_TENSORS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
"""The tensors of ``blocks.{l}.attn`` that have one slice a head.

One slice of each, together, is a head.
"""


class Activations(NamedTuple):
    """Activations of the unmoved model on one batch, which runs may share."""

    tokens: Tensor
    """``[batch, pos]``."""
    residual: list[Tensor]
    """Before each block, and after the last: ``n_layers + 1`` of ``[1, batch, pos, d_model]``."""
    z: list[Tensor]
    """Each block's head outputs before W_O: ``n_layers`` of ``[1, batch, head, pos, d_head]``."""


class AttentionOnly(PreTrainedModel):
    """A transformer of attention blocks alone: embed, n_layers × (LayerNorm, heads), LayerNorm,
    unembed.

    >>> config = AttentionOnlyConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10)
    >>> AttentionOnly(config)(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 10])

    A transformers model: ``save_pretrained``, ``from_pretrained(revision=…)``, ``push_to_hub`` and
    the Auto-classes work. Attention is causal with scale 1/sqrt(d_head).
    ``attn_implementation="eager"`` gives attention that can be differentiated twice.

    Reference: arXiv 2410.02984, appendix; see :class:`AttentionOnlyConfig`.
    """

    config_class = AttentionOnlyConfig
    config: AttentionOnlyConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # The loss is a mean; transformers' Trainer then divides accumulated gradients itself.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ("Tensors",)  # type: ignore[assignment]

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__(config)
        d_model = config.d_model
        d_vocab = config.d_vocab
        self.embed = Tensors(W_E=(d_vocab, d_model))
        self.pos_embed = Tensors(W_pos=(config.n_ctx, d_model))
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.n_layers))
        self.ln_final = Tensors(w=(d_model,), b=(d_model,))
        self.unembed = Tensors(W_U=(d_model, d_vocab), b_U=(d_vocab,))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, Tensors):
            return
        config = self.config
        std = config.init_scale / config.d_model**0.5
        late_blocks: Any = self.blocks[1:]
        is_late = any(module is block["attn"] for block in late_blocks)
        for name, tensor in module.named_parameters(recurse=False):
            if name == "W_pos" and config.init_positions == "sinusoidal":
                init.copy_(tensor, sinusoids(config.n_ctx, config.d_model))
            elif name == "W_E" and config.init_embedding is not None:
                init.normal_(tensor, std=config.init_embedding)
            elif name in ("W_Q", "W_K") and is_late:
                init.normal_(tensor, std=config.init_late_qk * std)
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
            labels: ``[batch, pos]``, usually ``input_ids``: position k is scored on label k + 1,
                and ``loss`` is the mean cross entropy in nats (−100 is left out).
            attention_mask: ones, and zeros for padding behind a row, which no token before it
                sees.
            output_attentions: also give attention patterns, one ``[batch, head, query, key]`` a
                layer.
            output_hidden_states: also give the residual stream before each block and after the
                last.

        Returns:
            ``logits`` is ``[batch, pos, d_vocab]``.
        """
        if attention_mask is not None and not _hides_only_the_end(attention_mask):
            raise InputError(
                "AttentionOnly: `attention_mask` has zeros, but rows are packed, never padded in "
                "front or between tokens; put the padding behind each row, where no token sees it."
            )
        patterns: list[Tensor] | None = [] if output_attentions else None
        activations = self.activations(input_ids, patterns)
        hidden = self.normalise("ln_final", activations.residual[-1], {})
        logits = hidden @ self.unembed.W_U + self.unembed.b_U
        logits = logits[0]
        loss = None
        if labels is not None:
            loss = _mean_loss(logits, labels)
        hidden_states = None
        if output_hidden_states:
            hidden_states = tuple(residual[0] for residual in activations.residual)
        attentions = None
        if patterns is not None:
            attentions = tuple(patterns)
        output = CausalLMOutput(
            loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    # The forward pass in parts. x is [run, batch, pos, d_model]; `moved` holds the weights that
    # differ between runs, by name.

    def activations(self, tokens: Tensor, patterns: list[Tensor] | None = None) -> Activations:
        """Run the model as it is on ``tokens [batch, pos]``, keeping what runs share.

        Args:
            tokens: ids.
            patterns: a list to which each block's attention is appended.
        """
        if tokens.shape[-1] > self.config.n_ctx:
            raise InputError(
                f"AttentionOnly: rows have {tokens.shape[-1]} positions, but the model's context "
                f"is {self.config.n_ctx} (`n_ctx`); pack the data with "
                f"context_length={self.config.n_ctx}."
            )
        residual = [self._embed(tokens, {})]
        head_outputs = []
        for layer in range(self.config.n_layers):
            x = residual[-1]
            z = self._heads(layer, x, {}, patterns)
            head_outputs.append(z)
            residual.append(x + self.write(layer, z, {}))
        return Activations(tokens, residual, head_outputs)

    def hidden(self, moved: Mapping[str, Moved], at: Activations) -> Tensor:
        """Hidden state before the unembedding, when each run has its own values of ``moved``
        weights.

        Starts at the first block a moved weight is in. While the residual stream is still shared
        and only heads of the block move, the other heads' outputs are taken from ``at`` and only
        the moved heads are computed, run by run.

        Returns:
            ``[run, batch, pos, d_model]`` (``[1, …]`` when nothing before the unembedding moved).
        """
        first = self.first_block(moved)
        if first < 0:
            x = self._embed(at.tokens, moved)
        else:
            x = at.residual[first]
        for layer in range(max(first, 0), self.config.n_layers):
            rows = heads_that_moved(moved, layer)
            if layer == first and rows is not None:
                # All before the block, and its other heads, are as in `at`.
                x = self._replace_heads(layer, rows, moved, at)
            else:
                x = x + self.write(layer, self._heads(layer, x, moved), moved)
        return self.normalise("ln_final", x, moved)

    def first_block(self, names: Collection[str]) -> int:
        """The first block that moving these weights changes.

        −1 for the embedding, ``n_layers`` for what follows all blocks.
        """
        first = self.config.n_layers
        for name in names:
            if name.startswith(("embed.", "pos_embed.")):
                return -1
            block = re.match(r"blocks\.(\d+)\.", name)
            if block:
                first = min(first, int(block[1]))
        return first

    def _tensor(self, name: str) -> Tensor:
        """A parameter by name.

        Unlike ``get_parameter``, it works while ``torch.func.functional_call`` has put a tensor
        there.
        """
        return attrgetter(name)(self)

    def weight(self, name: str, moved: Mapping[str, Moved]) -> Tensor:
        """One parameter with a run axis in front.

        ``[1, …]`` when shared, else ``[run, …]`` with its moved rows put in. When anything moved,
        gradients are for the moved weights only, so the others are detached.
        """
        base = self._tensor(name)
        if name in moved:
            return stack(moved[name], base)
        if moved:
            base = base.detach()
        return base[None]

    def normalise(self, name: str, x: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        """LayerNorm over d_model with the scale and bias called ``name``."""
        w = self.weight(f"{name}.w", moved)
        b = self.weight(f"{name}.b", moved)
        eps = self.config.layer_norm_eps
        shape = x.shape[-1:]
        if len(w) == len(b) == 1:
            return F.layer_norm(x, shape, w[0], b[0], eps)
        w = w[:, None, None]
        b = b[:, None, None]
        return F.layer_norm(x, shape, eps=eps) * w + b

    def _embed(self, tokens: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        x = self.weight("embed.W_E", moved)[:, tokens]
        if self.config.positions == "standard":
            length = tokens.shape[-1]
            x = x + self._positions(length, moved)
        return x

    def _positions(self, length: int, moved: Mapping[str, Moved]) -> Tensor:
        W_pos = self.weight("pos_embed.W_pos", moved)
        return W_pos[:, None, :length]  # [run, 1, pos, d_model]

    def _inputs(self, layer: int, x: Tensor, moved: Mapping[str, Moved]) -> tuple[Tensor, Tensor]:
        """The inputs of Q and K, and of V."""
        u = self.normalise(f"blocks.{layer}.ln1", x, moved)
        if self.config.positions == "standard":
            return u, u
        length = x.shape[2]
        return u + self._positions(length, moved), u

    def _heads(
        self,
        layer: int,
        x: Tensor,
        moved: Mapping[str, Moved],
        patterns: list[Tensor] | None = None,
    ) -> Tensor:
        """Outputs of all heads before W_O, ``[run, batch, head, pos, d_head]``."""
        attn = f"blocks.{layer}.attn."
        qk, u = self._inputs(layer, x, moved)
        projected = []
        for letter, inputs in (("Q", qk), ("K", qk), ("V", u)):
            W = self.weight(f"{attn}W_{letter}", moved)
            b = self.weight(f"{attn}b_{letter}", moved)
            projected.append(_project(inputs, W, b))
        q, k, v = projected
        return self.attend(q, k, v, patterns)

    def project(
        self, layer: int, letter: str, x: Tensor, heads: slice | Tensor = slice(None)
    ) -> Tensor:
        """Queries, keys or values that heads of a block make of the residual stream x.

        Args:
            layer: the block.
            letter: ``"Q"``, ``"K"`` or ``"V"``.
            x: ``[run, batch, pos, d_model]``.
            heads: which heads, and in which order.

        Returns:
            ``[run, batch, head, pos, d_head]``.
        """
        attn = f"blocks.{layer}.attn."
        qk, u = self._inputs(layer, x, {})
        W = self._tensor(f"{attn}W_{letter}")[heads]
        b = self._tensor(f"{attn}b_{letter}")[heads]
        inputs = u if letter == "V" else qk
        return _project(inputs, W[None], b[None])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, patterns: list[Tensor] | None = None
    ) -> Tensor:
        """Outputs of heads before W_O from their queries, keys and values.

        Args:
            q: ``[run or 1, batch, head, pos, d_head]``; so are k and v, and the result.
            k: keys.
            v: values.
            patterns: a list to which the attention is appended.
        """
        num_runs = max(len(q), len(k), len(v))
        q = _runs_in_batch(q, num_runs)
        k = _runs_in_batch(k, num_runs)
        v = _runs_in_batch(v, num_runs)
        if patterns is None and self.config._attn_implementation != "eager":
            z = _causal_attention(q, k, v)
        else:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            pairs = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
            future = pairs.triu(1)
            pattern = scores.masked_fill(future, float("-inf")).softmax(-1)
            if patterns is not None:
                patterns.append(pattern)
            z = pattern @ v
        return z.unflatten(0, (num_runs, -1))

    def write(self, layer: int, z: Tensor, moved: Mapping[str, Moved]) -> Tensor:
        """The sum that the heads add to the residual stream: Σ_head z W_O + b_O."""
        attn = f"blocks.{layer}.attn."
        summed = _sum_over_heads(z, self.weight(f"{attn}W_O", moved))
        b_O = self.weight(f"{attn}b_O", moved)
        return summed + b_O[:, None, None]

    def _replace_heads(
        self, layer: int, rows: Tensor, moved: Mapping[str, Moved], at: Activations
    ) -> Tensor:
        """The residual stream after a block in which each run moved only its heads ``rows``.

        It is the unmoved one, plus what the moved heads write, less what they wrote before they
        moved.

        Args:
            layer: the block.
            rows: ``[run, head]``.
            moved: their weights.
            at: activations of the unmoved model.
        """
        z, W_O = self.moved_heads(layer, rows, moved, at)
        written = _sum_over_heads(z, W_O)
        old_written = _sum_over_heads(*self.unmoved_heads(layer, rows, at))
        return at.residual[layer + 1] + written - old_written

    def only_last_heads(self, moved: Mapping[str, Moved]) -> Tensor | None:
        """The heads ``[run, head]`` of the last block, if nothing but heads of it moved."""
        last = self.config.n_layers - 1
        if any(not name.startswith(f"blocks.{last}.") for name in moved):
            return None
        return heads_that_moved(moved, last)

    def num_last_heads(self, rows: Mapping[str, Tensor | None]) -> int:
        """How many heads of the last block move in a run; 0 if anything else does.

        Args:
            rows: for each parameter that moves ``[run, row]``: in which rows; ``None``: in all.
        """
        last = self.config.n_layers - 1
        of_heads = {f"blocks.{last}.attn.{tensor}" for tensor in HEAD_TENSORS}
        if not of_heads.issuperset(rows):
            return 0
        num_heads = []
        for heads in rows.values():
            num_heads.append(self.config.n_heads if heads is None else heads.shape[1])
        return max(num_heads)

    def unmoved_heads(self, layer: int, rows: Tensor, at: Activations) -> tuple[Tensor, Tensor]:
        """Outputs and W_O of heads ``rows [run, head]`` as they are in the model.

        Returns:
            ``[run, batch, head, pos, d_head]`` and ``[run, head, d_head, d_model]``.
        """
        z = at.z[layer][0]  # [batch, head, pos, d_head]
        by_head = z.transpose(0, 1)
        chosen = by_head[rows]  # [run, head, batch, pos, d_head]
        W_O = self._tensor(f"blocks.{layer}.attn.W_O").detach()
        return chosen.transpose(1, 2), W_O[rows]

    def moved_heads(
        self, layer: int, rows: Tensor, moved: Mapping[str, Moved], at: Activations
    ) -> tuple[Tensor, Tensor]:
        """Outputs and W_O of heads ``rows [run, head]`` of each run, as :meth:`unmoved_heads`."""
        new = {}
        for tensor in HEAD_TENSORS:
            name = f"blocks.{layer}.attn.{tensor}"
            if name in moved:
                new[tensor] = moved[name].block
            else:
                unmoved = self._tensor(name).detach()
                new[tensor] = unmoved[rows]
        qk, u = self._inputs(layer, at.residual[layer], moved)
        z = self.attend(
            _project(qk, new["W_Q"], new["b_Q"]),
            _project(qk, new["W_K"], new["b_K"]),
            _project(u, new["W_V"], new["b_V"]),
        )
        return z, new["W_O"]


class Tensors(nn.Module):
    """Parameters with the given names and shapes; the forward pass lives in the model."""

    def __init__(self, **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(*shape))
            self.register_parameter(name, parameter)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def _block(config: AttentionOnlyConfig) -> nn.ModuleDict:
    n_heads = config.n_heads
    d_model = config.d_model
    d_head = config.d_head
    attn = Tensors(
        W_Q=(n_heads, d_model, d_head),
        W_K=(n_heads, d_model, d_head),
        W_V=(n_heads, d_model, d_head),
        W_O=(n_heads, d_head, d_model),
        b_Q=(n_heads, d_head),
        b_K=(n_heads, d_head),
        b_V=(n_heads, d_head),
        b_O=(d_model,),
    )
    ln1 = Tensors(w=(d_model,), b=(d_model,))
    return nn.ModuleDict({"ln1": ln1, "attn": attn})


def _hides_only_the_end(mask: Tensor) -> bool:
    """Whether nothing that counts comes behind padding."""
    if mask.dim() != 2:
        return False
    counts = mask.bool()
    is_padding = ~counts
    counts_after_padding = counts[:, 1:] & is_padding[:, :-1]
    return not bool(counts_after_padding.any())


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    scored = logits[:, :-1].flatten(0, 1)
    if scored.dtype in (torch.bfloat16, torch.float16):
        scored = scored.float()
    targets = labels[:, 1:].flatten()
    return F.cross_entropy(scored, targets, ignore_index=-100)


# Products with a run axis, as few and as large as there can be. r and s are `run` or 1.


def _runs_in_batch(x: Tensor, num_runs: int) -> Tensor:
    """``[r, batch, …]`` -> ``[run · batch, …]``."""
    return x.expand(num_runs, *x.shape[1:]).flatten(0, 1)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to what came before; under autocast on a CPU in float32.

    There the backward pass in bfloat16 takes twice as long as in float32.
    """
    in_low_precision = torch.is_autocast_enabled("cpu") and q.dtype != torch.float64
    if q.device.type == "cpu" and in_low_precision:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _project(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Queries, keys or values.

    Args:
        x: ``[r, batch, pos, d_model]``.
        W: ``[s, head, d_model, d_head]``.
        b: ``[s, head, d_head]``.

    Returns:
        ``[run, batch, head, pos, d_head]``.
    """
    r, batch, pos, d_model = x.shape
    s, heads, _, d_head = W.shape
    flat = rearrange(W, "run head d_model d_head -> run d_model (head d_head)")
    if s == 1:
        # One product, because the weights are shared.
        y = x.reshape(-1, d_model) @ flat[0]
        y = y.view(r, batch, pos, heads, d_head)
    elif r == 1:
        # One product, because the inputs are shared.
        side_by_side = flat.transpose(0, 1).reshape(d_model, -1)
        y = x.reshape(-1, d_model) @ side_by_side
        y = y.view(batch, pos, s, heads, d_head)
        y = y.permute(2, 0, 1, 3, 4)
    else:
        y = torch.bmm(x.reshape(r, -1, d_model), flat)
        y = y.view(r, batch, pos, heads, d_head)
    y = y + b[:, None, None]
    return y.transpose(2, 3)


def _sum_over_heads(z: Tensor, W: Tensor) -> Tensor:
    """The sum of what heads write.

    Args:
        z: ``[r, batch, head, pos, d_head]``.
        W: ``[s, head, d_head, d_model]``.

    Returns:
        ``[run, batch, pos, d_model]``.
    """
    _, batch, _, pos, _ = z.shape
    flat = rearrange(z, "run batch head pos d_head -> run (batch pos) (head d_head)")
    if W.shape[0] > 1:
        summed = torch.matmul(flat, W.flatten(1, 2))
    else:
        summed = flat @ W[0].flatten(0, 1)
    return summed.view(-1, batch, pos, W.shape[-1])


def heads_that_moved(moved: Mapping[str, Moved], layer: int) -> Tensor | None:
    """The heads ``[run, head]`` that moved in a block.

    ``None`` if something else in it moved, or its tensors do not agree on which heads.
    """
    names = [name for name in moved if name.startswith(f"blocks.{layer}.")]
    tensors = {name.rsplit(".", 1)[1] for name in names}
    if not tensors or not tensors.issubset(HEAD_TENSORS):
        return None
    rows = moved[names[0]].rows
    # Identity, because comparing the numbers would wait for the GPU.
    agree = all(moved[name].rows is rows for name in names)
    return rows if agree else None


AutoConfig.register(AttentionOnlyConfig.model_type, AttentionOnlyConfig)
AutoModelForCausalLM.register(AttentionOnlyConfig, AttentionOnly)
