"""Tiny models of every type that an anatomy knows: random weights, 2 layers, fewer key-value heads
than heads and heads of another size than d_model / heads where the type allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

VOCAB = 31

GROUPED = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {**GROUPED, "head_dim": 8}
"""Four heads of 8 numbers over 24."""

PLAIN = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
}

IMAGES = {
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}


@dataclass(frozen=True)
class Kind:
    """A model type: its settings, and what its heads are to be.

    Args:
        type: ``model_type``.
        settings: of the configuration.
        auto: the class that makes the model.
        heads: in each layer of each tower.
        kv_heads: the same.
        d_head: numbers of a head.
        d_model: width of the residual stream.
        biases: of q, k and v, how many have a bias.
        towers: names of heads before the layer.
        layers: in each tower.
    """

    type: str
    settings: dict[str, Any]
    auto: Any = AutoModelForCausalLM
    heads: int = 4
    kv_heads: int = 2
    d_head: int = 8
    d_model: int = 24
    biases: int = 0
    towers: tuple[str, ...] = ("",)
    layers: int = 2

    def make(self) -> nn.Module:
        """A model with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.for_model(self.type, **self.settings)
            return self.auto.from_config(config).eval()


def plain(type: str, settings: dict[str, Any], **changes: Any) -> Kind:
    """Three heads of 8 numbers over 24, each with keys and values of its own."""
    return Kind(type, settings, **{"heads": 3, "kv_heads": 3, **changes})


KINDS: dict[str, Kind] = {
    "gpt2": plain("gpt2", {**PLAIN, "n_inner": 16}, biases=3),
    "gpt_neo": plain(
        "gpt_neo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 3,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
            "max_position_embeddings": 16,
            "intermediate_size": 16,
        },
    ),
    "gpt_neox": plain("gpt_neox", PLAIN, biases=3),
    "gptj": plain(
        "gptj",
        {
            "vocab_size": VOCAB,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 3,
            "n_positions": 16,
            "rotary_dim": 4,
            "n_inner": 16,
        },
    ),
    "opt": plain(
        "opt", {**PLAIN, "ffn_dim": 16, "word_embed_proj_dim": 24, "pad_token_id": 1}, biases=3
    ),
    "bloom": plain(
        "bloom", {"vocab_size": VOCAB, "hidden_size": 24, "n_layer": 2, "n_head": 3}, biases=3
    ),
    "falcon, multi-query": Kind(
        "falcon", {**PLAIN, "multi_query": True, "num_attention_heads": 3}, heads=3, kv_heads=1
    ),
    "falcon, grouped": Kind(
        "falcon",
        {
            **PLAIN,
            "new_decoder_architecture": True,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "hidden_size": 32,
        },
        d_model=32,
    ),
    "falcon, apart": plain(
        "falcon", {**PLAIN, "multi_query": False, "alibi": True, "bias": True}, biases=3
    ),
    "phi": Kind("phi", {**GROUPED, "hidden_size": 32, "qk_layernorm": True}, d_model=32, biases=3),
    "phi3": Kind("phi3", WIDE),
    "llama": Kind("llama", {**WIDE, "attention_bias": True}, biases=3),
    "mistral": Kind("mistral", {**WIDE, "sliding_window": 3}),
    "mixtral": Kind("mixtral", {**WIDE, "num_local_experts": 2}),
    "qwen2": Kind("qwen2", WIDE, biases=3),
    "qwen2_moe": Kind(
        "qwen2_moe",
        {
            **WIDE,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        biases=3,
    ),
    "qwen3": Kind("qwen3", WIDE),
    "qwen3_moe": Kind(
        "qwen3_moe",
        {**WIDE, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    ),
    "gemma": Kind("gemma", WIDE),
    "gemma2": Kind("gemma2", {**WIDE, "sliding_window": 3, "query_pre_attn_scalar": 8}),
    "gemma3_text": Kind("gemma3_text", {**WIDE, "sliding_window": 3}),
    "olmo": Kind("olmo", {**WIDE, "clip_qkv": 8.0}),
    "olmo2": Kind("olmo2", WIDE),
    "olmo3": Kind("olmo3", WIDE),
    "olmoe": Kind(
        "olmoe",
        {**GROUPED, "hidden_size": 32, "num_experts": 2, "num_experts_per_tok": 1},
        d_model=32,
    ),
    "stablelm": Kind(
        "stablelm",
        {**GROUPED, "hidden_size": 32, "qk_layernorm": True, "use_qkv_bias": True},
        d_model=32,
        biases=3,
    ),
    "cohere": Kind("cohere", {**WIDE, "use_qk_norm": True}),
    "cohere2": Kind("cohere2", WIDE),
    "granite": Kind("granite", WIDE),
    "smollm3": Kind("smollm3", WIDE),
    "starcoder2": Kind("starcoder2", {**WIDE, "use_bias": True}, biases=3),
    "mpt": plain(
        "mpt",
        {"vocab_size": VOCAB, "d_model": 24, "n_layers": 2, "n_heads": 3, "max_seq_len": 16},
    ),
    "bert": plain("bert", PLAIN, auto=AutoModelForMaskedLM, biases=3),
    "roberta": plain("roberta", {**PLAIN, "pad_token_id": 1}, auto=AutoModelForMaskedLM, biases=3),
    "xlm-roberta": plain(
        "xlm-roberta", {**PLAIN, "pad_token_id": 1}, auto=AutoModelForMaskedLM, biases=3
    ),
    "electra": plain(
        "electra", {**PLAIN, "embedding_size": 24}, auto=AutoModelForMaskedLM, biases=3
    ),
    "distilbert": plain(
        "distilbert",
        {"vocab_size": VOCAB, "dim": 24, "hidden_dim": 16, "n_layers": 2, "n_heads": 3},
        auto=AutoModelForMaskedLM,
        biases=3,
    ),
    "modernbert": plain(
        "modernbert",
        {**PLAIN, "pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2},
        auto=AutoModelForMaskedLM,
    ),
    "albert": plain(
        "albert", {**PLAIN, "embedding_size": 12}, auto=AutoModelForMaskedLM, biases=3, layers=1
    ),
    "vit": plain("vit", IMAGES, auto=AutoModel, biases=3),
    "dinov2": plain("dinov2", IMAGES, auto=AutoModel, biases=3),
    "clip": plain(
        "clip",
        {
            "text_config": {**PLAIN, "eos_token_id": 2},
            "vision_config": IMAGES,
            "projection_dim": 8,
        },
        auto=AutoModel,
        biases=3,
        towers=("text", "vision"),
    ),
    "clip_text_model": plain(
        "clip_text_model", {**PLAIN, "eos_token_id": 2}, auto=AutoModel, biases=3
    ),
    "clip_vision_model": plain("clip_vision_model", IMAGES, auto=AutoModel, biases=3),
    "t5": Kind(
        "t5",
        {
            "vocab_size": VOCAB,
            "d_model": 24,
            "d_kv": 6,
            "d_ff": 16,
            "num_layers": 2,
            "num_heads": 3,
            "decoder_start_token_id": 0,
        },
        auto=transformers.AutoModelForSeq2SeqLM,
        heads=3,
        kv_heads=3,
        d_head=6,
        towers=("encoder", "decoder", "decoder.cross"),
    ),
    "whisper": plain(
        "whisper",
        {
            "vocab_size": VOCAB,
            "d_model": 24,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "num_mel_bins": 4,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
        },
        auto=transformers.AutoModelForSpeechSeq2Seq,
        biases=2,
        towers=("encoder", "decoder", "decoder.cross"),
    ),
}
"""By name; the type and, where a type has several layouts, which."""
