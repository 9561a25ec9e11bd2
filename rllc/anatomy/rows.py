"""Where models keep their attention: one entry a ``config.model_type``, as plain data.

Layouts were read in transformers 5.24 and TransformerLens 3.9; each is held against the model by
:mod:`rllc.anatomy.verify` before it gives a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from rllc.errors import must_be, one_of

Fused = Literal["", "side by side", "interleaved"]

_FUSED = ("", "side by side", "interleaved")


class MapNames(TypedDict):
    """The names of an attention's four maps."""

    q: str
    k: str
    v: str
    o: str


@dataclass(frozen=True)
class AttentionRow:
    """Where the models of one type keep one kind of attention.

    >>> row = AttentionRow("layers.*.attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj", heads=4)
    >>> row.fused, row.kv_heads
    ('', '')

    A map is named by its module (``"q_proj"``: an ``nn.Linear`` or transformers' ``Conv1D``), or by
    its parameters, weight first (``"in_proj_weight in_proj_bias"``: ``[out, in]``, or ``[head,
    d_model, d_head]``). Maps of one name are one tensor.

    Args:
        at: the attention module, ``*`` for the number of its layer. What is before it in the model
            (``"transformer."``) is left out.
        q: the map of queries, named as in ``at``.
        k: of keys.
        v: of values.
        o: of what the heads pass on.
        fused: how maps of one name lie in their tensor. ``"side by side"``: all queries, all keys,
            all values. ``"interleaved"``: for each key-value head its queries, its key, its value;
            so ``[head, 3, d_head]`` where each head has its own.
        heads: how many, or the setting that says it, of the model's ``config`` or of the attention
            module. A tensor with a head axis says it itself.
        kv_heads: heads of keys and values; ``""``: as many as heads. Heads share them in order.
        tower: what the names of the heads begin with, where a model has several kinds of attention:
            ``"decoder.cross"`` gives ``"decoder.cross.0:3"``.
        config: the part of ``model.config`` with the settings, such as ``"vision_config"``.
        mixed: of ``("q", "k", "v")``, those that are normalised over all heads together: moving one
            head's scales every head's.
        note: what else :meth:`Weights.describe` should say of these heads.
        when: settings and values that a model must have for the row to be its own.
        norm: the norm after the last block, beside the blocks; ``""``: there is none.
        unembedding: the map from the residual stream to logits; ``""``: what transformers'
            ``get_output_embeddings`` gives.
    """

    at: str
    q: str
    k: str
    v: str
    o: str
    fused: Fused = ""
    heads: int | str = "num_attention_heads"
    kv_heads: int | str = ""
    tower: str = ""
    config: str = ""
    mixed: tuple[str, ...] = ()
    note: str = ""
    when: tuple[tuple[str, object], ...] = ()
    norm: str = ""
    unembedding: str = ""

    def __post_init__(self) -> None:
        for name in ("at", "q", "k", "v", "o", *_TEXTS):
            value = getattr(self, name)
            right = isinstance(value, str) and (bool(value) or name in _TEXTS)
            must_be("AttentionRow", name, value, right, "a text, the name of a module or parameter")
        right = one_of(self.fused, _FUSED) and self.fused is not None
        must_be("AttentionRow", "fused", self.fused, right, "'', 'side by side' or 'interleaved'")
        for name in ("heads", "kv_heads"):
            value = getattr(self, name)
            right = isinstance(value, str) or (type(value) is int and value > 0)
            must_be("AttentionRow", name, value, right, "a number from 1 on, or a setting's name")
        right = isinstance(self.mixed, tuple) and all(one_of(x, _READ) for x in self.mixed)
        must_be("AttentionRow", "mixed", self.mixed, right, "a tuple of 'q', 'k' and 'v'")
        right = isinstance(self.when, tuple) and all(map(_is_pair, self.when))
        must_be("AttentionRow", "when", self.when, right, "a tuple of (setting, value)")


_READ = ("q", "k", "v")

_TEXTS = ("tower", "config", "note", "norm", "unembedding")
"""Texts that may be empty."""


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


Rows = tuple[AttentionRow, ...]


def _gpt_j(at: str, o: str = "out_proj") -> AttentionRow:
    """The four maps apart, as many keys as queries."""
    return AttentionRow(at, q="q_proj", k="k_proj", v="v_proj", o=o, norm="ln_f")


def _llama(o: str = "o_proj", norm: str = "norm", mixed: tuple[str, ...] = ()) -> AttentionRow:
    """Four maps apart; several heads may share a key-value head."""
    return AttentionRow(
        "layers.*.self_attn",
        q="q_proj",
        k="k_proj",
        v="v_proj",
        o=o,
        kv_heads="num_key_value_heads",
        mixed=mixed,
        norm=norm,
    )


def _falcon(layout: Fused, kv_heads: int | str, **when: bool) -> AttentionRow:
    return AttentionRow(
        "h.*.self_attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        fused=layout,
        kv_heads=kv_heads,
        when=tuple(when.items()),
        norm="ln_f",
    )


def _bert(at: str, tower: str = "") -> AttentionRow:
    return AttentionRow(
        at,
        q="self.query",
        k="self.key",
        v="self.value",
        o="output.dense",
        tower=tower,
    )


def _vit(at: str, norm: str = "layernorm") -> AttentionRow:
    return AttentionRow(at, q="q_proj", k="k_proj", v="v_proj", o="o_proj", norm=norm)


def _vit_before_5(norm: str = "layernorm") -> AttentionRow:
    return AttentionRow(
        "encoder.layer.*.attention",
        q="attention.query",
        k="attention.key",
        v="attention.value",
        o="output.dense",
        norm=norm,
    )


def _clip(at: str, norm: str, tower: str = "", config: str = "") -> AttentionRow:
    return AttentionRow(
        at,
        q="q_proj",
        k="k_proj",
        v="v_proj",
        o="out_proj",
        tower=tower,
        config=config,
        norm=norm,
    )


def _t5(at: str, tower: str, norm: str) -> AttentionRow:
    return AttentionRow(at, q="q", k="k", v="v", o="o", tower=tower, norm=norm)


def _whisper(at: str, tower: str, heads: str, norm: str) -> AttentionRow:
    return AttentionRow(
        at,
        q="q_proj",
        k="k_proj",
        v="v_proj",
        o="out_proj",
        heads=heads,
        tower=tower,
        norm=norm,
    )


_T5: Rows = (
    _t5("encoder.block.*.layer.0.SelfAttention", "encoder", "encoder.final_layer_norm"),
    _t5("decoder.block.*.layer.0.SelfAttention", "decoder", "decoder.final_layer_norm"),
    _t5("decoder.block.*.layer.1.EncDecAttention", "decoder.cross", "decoder.final_layer_norm"),
)

_MIXED = ("q", "k")

ROWS: dict[str, Rows] = {
    # Decoders with one tensor for queries, keys and values.
    "gpt2": (
        AttentionRow(
            "h.*.attn",
            q="c_attn",
            k="c_attn",
            v="c_attn",
            o="c_proj",
            fused="side by side",
            norm="ln_f",
        ),
        AttentionRow(
            "h.*.crossattention",
            q="q_attn",
            k="c_attn",
            v="c_attn",
            o="c_proj",
            fused="side by side",
            tower="cross",
            norm="ln_f",
        ),
    ),
    "gpt_neox": (
        AttentionRow(
            "layers.*.attention",
            q="query_key_value",
            k="query_key_value",
            v="query_key_value",
            o="dense",
            fused="interleaved",
            norm="final_layer_norm",
        ),
    ),
    "bloom": (
        AttentionRow(
            "h.*.self_attention",
            q="query_key_value",
            k="query_key_value",
            v="query_key_value",
            o="dense",
            fused="interleaved",
            heads="n_head",
            norm="ln_f",
        ),
    ),
    "falcon": (
        _falcon("interleaved", "num_kv_heads", new_decoder_architecture=True),
        _falcon("side by side", 1, new_decoder_architecture=False, multi_query=True),
        _falcon("interleaved", "", new_decoder_architecture=False, multi_query=False),
    ),
    "mpt": (
        AttentionRow(
            "blocks.*.attn",
            q="Wqkv",
            k="Wqkv",
            v="Wqkv",
            o="out_proj",
            fused="side by side",
            heads="n_heads",
            norm="norm_f",
        ),
    ),
    "phi3": (
        AttentionRow(
            "layers.*.self_attn",
            q="qkv_proj",
            k="qkv_proj",
            v="qkv_proj",
            o="o_proj",
            fused="side by side",
            kv_heads="num_key_value_heads",
            norm="norm",
        ),
    ),
    # Decoders with maps of their own.
    "gpt_neo": (_gpt_j("h.*.attn.attention"),),
    "gptj": (_gpt_j("h.*.attn"),),
    "opt": (
        AttentionRow(
            "layers.*.self_attn",
            q="q_proj",
            k="k_proj",
            v="v_proj",
            o="out_proj",
            norm="final_layer_norm",
        ),
    ),
    "phi": (_llama(o="dense", norm="final_layernorm"),),
    "llama": (_llama(),),
    "mistral": (_llama(),),
    "mixtral": (_llama(),),
    "qwen2": (_llama(),),
    "qwen2_moe": (_llama(),),
    "qwen3": (_llama(),),
    "qwen3_moe": (_llama(),),
    "gemma": (_llama(),),
    "gemma2": (_llama(),),
    "gemma3_text": (_llama(),),
    "gemma3": (
        AttentionRow(
            "language_model.layers.*.self_attn",
            q="q_proj",
            k="k_proj",
            v="v_proj",
            o="o_proj",
            kv_heads="num_key_value_heads",
            config="text_config",
            norm="language_model.norm",
        ),
        _clip(
            "vision_tower.encoder.layers.*.self_attn",
            "vision_tower.post_layernorm",
            tower="vision",
            config="vision_config",
        ),
    ),
    "olmo": (_llama(),),
    "olmo2": (_llama(mixed=_MIXED),),
    "olmo3": (_llama(mixed=_MIXED),),
    "olmoe": (_llama(mixed=_MIXED),),
    "stablelm": (_llama(),),
    "cohere": (_llama(),),
    "cohere2": (_llama(),),
    "granite": (_llama(),),
    "smollm3": (_llama(),),
    "starcoder2": (_llama(),),
    # Encoders of text.
    "bert": (_bert("layer.*.attention"), _bert("layer.*.crossattention", "cross")),
    "roberta": (_bert("layer.*.attention"), _bert("layer.*.crossattention", "cross")),
    "xlm-roberta": (_bert("layer.*.attention"), _bert("layer.*.crossattention", "cross")),
    "electra": (_bert("layer.*.attention"), _bert("layer.*.crossattention", "cross")),
    "distilbert": (
        AttentionRow(
            "layer.*.attention",
            q="q_lin",
            k="k_lin",
            v="v_lin",
            o="out_lin",
        ),
    ),
    "modernbert": (
        AttentionRow(
            "layers.*.attn",
            q="Wqkv",
            k="Wqkv",
            v="Wqkv",
            o="Wo",
            fused="side by side",
            norm="final_norm",
        ),
    ),
    "albert": (
        AttentionRow(
            "albert_layer_groups.*.albert_layers.0.attention",
            q="query",
            k="key",
            v="value",
            o="dense",
            note="all layers of a group have these same weights",
            when=(("inner_group_num", 1),),
        ),
    ),
    # Images.
    "vit": (_vit("layers.*.attention"), _vit_before_5()),
    "dinov2": (_vit("encoder.layer.*.attention"), _vit_before_5()),
    "clip": (
        _clip(
            "text_model.encoder.layers.*.self_attn",
            "text_model.final_layer_norm",
            tower="text",
            config="text_config",
        ),
        _clip(
            "vision_model.encoder.layers.*.self_attn",
            "vision_model.post_layernorm",
            tower="vision",
            config="vision_config",
        ),
    ),
    "clip_text_model": (_clip("encoder.layers.*.self_attn", "final_layer_norm"),),
    "clip_vision_model": (_clip("encoder.layers.*.self_attn", "post_layernorm"),),
    # Encoder and decoder, with attention from one to the other.
    "t5": _T5,
    "mt5": _T5,
    "whisper": (
        _whisper(
            "encoder.layers.*.self_attn",
            "encoder",
            "encoder_attention_heads",
            "encoder.layer_norm",
        ),
        _whisper(
            "decoder.layers.*.self_attn",
            "decoder",
            "decoder_attention_heads",
            "decoder.layer_norm",
        ),
        _whisper(
            "decoder.layers.*.encoder_attn",
            "decoder.cross",
            "decoder_attention_heads",
            "decoder.layer_norm",
        ),
    ),
}
"""By ``config.model_type``. A row that finds no module, as of a tower that a model lacks, is passed
over. Of rows for one module, the first is taken whose ``when`` holds and whose maps are there."""

TRANSFORMER_LENS: Rows = (
    AttentionRow(
        "blocks.*.attn",
        q="W_Q b_Q",
        k="W_K b_K",
        v="W_V b_V",
        o="W_O",
        norm="ln_final",
        unembedding="unembed",
    ),
    AttentionRow(
        "blocks.*.attn",
        q="W_Q b_Q",
        k="_W_K _b_K",
        v="_W_V _b_V",
        o="W_O",
        norm="ln_final",
        unembedding="unembed",
    ),
)
"""By the names of parameters, which :class:`rllc.models.AttentionOnly` has too. Grouped keys and
values are kept with a leading underscore."""

MULTIHEAD: Rows = (
    AttentionRow(
        "*",
        q="in_proj_weight in_proj_bias",
        k="in_proj_weight in_proj_bias",
        v="in_proj_weight in_proj_bias",
        o="out_proj",
        fused="side by side",
        heads="num_heads",
    ),
    AttentionRow(
        "*",
        q="q_proj_weight in_proj_bias",
        k="k_proj_weight in_proj_bias",
        v="v_proj_weight in_proj_bias",
        o="out_proj",
        fused="side by side",
        heads="num_heads",
    ),
)
"""Of ``nn.MultiheadAttention``, wherever one is; the second where keys or values have sizes of
their own."""
