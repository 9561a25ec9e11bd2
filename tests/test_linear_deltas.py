"""All runs of a layer at once, for any module: against one run after the other, and by name where it
is not done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rllc
from rllc.engine.bind import bind
from rllc.engine.layout import center, groups
from rllc.engine.linear_deltas import LinearDeltas
from rllc.losses import classification, masked_lm

transformers = pytest.importorskip("transformers")

V, D, HEADS, WIDTH, LAYERS, T = 53, 24, 4, 6, 3, 9
AT_ONCE = "layer at once"
SHORT = rllc.Sampling(
    num_chains=2, num_draws=4, batch_size=3, start="center", control_variate=False, num_probes=0
)


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model is so small that its runs are stacked."""
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Models.

SIZES = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def made(kind: str, attention: str | None = None, **changes: Any) -> nn.Module:
    """A tiny model of transformers, all of its weights random."""
    model_kind, config_kind = KINDS[kind]
    sizes = {name: value for name, value in (SIZES | changes).items() if value is not None}
    config = getattr(transformers, config_kind)(**sizes)
    if attention is not None:
        config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = getattr(transformers, model_kind)(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


KINDS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "llama": ("LlamaForCausalLM", "LlamaConfig"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig"),
    "cohere": ("CohereForCausalLM", "CohereConfig"),
    "granite": ("GraniteForCausalLM", "GraniteConfig"),
    "opt": ("OPTForCausalLM", "OPTConfig"),
    "bert": ("BertForMaskedLM", "BertConfig"),
    "bert_classes": ("BertForSequenceClassification", "BertConfig"),
    "vit": ("ViTForImageClassification", "ViTConfig"),
    "t5": ("T5ForConditionalGeneration", "T5Config"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig"),
    "albert": ("AlbertForMaskedLM", "AlbertConfig"),
}

OF_GPT2 = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 16}
GROUPED = {"num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}


def rows_of(name: str, numbers: range) -> rllc.Weights:
    return rllc.parameters(name, index=list(numbers))


def columns_of(name: str, numbers: range) -> rllc.Weights:
    return rllc.parameters(name, index=(slice(None), list(numbers)))


def llama_head(layer: int, head: int, width: int = WIDTH, bias: bool = False) -> rllc.Weights:
    """A head of Llama and its kin, with the keys and values that it shares with a neighbour."""
    attention = f"model.layers.{layer}.self_attn"
    own = range(head * width, (head + 1) * width)
    shared = range(head // 2 * width, (head // 2 + 1) * width)
    weights = columns_of(f"{attention}.o_proj.weight", own)
    for kind in ("weight", "bias") if bias else ("weight",):
        weights |= rows_of(f"{attention}.q_proj.{kind}", own)
        weights |= rows_of(f"{attention}.k_proj.{kind}", shared)
        weights |= rows_of(f"{attention}.v_proj.{kind}", shared)
    return weights.named(f"{layer}:{head}")


def gpt2_head(layer: int, head: int) -> rllc.Weights:
    attention = f"transformer.h.{layer}.attn"
    own = range(head * WIDTH, (head + 1) * WIDTH)
    three = [part * D + number for part in range(3) for number in own]
    weights = rllc.parameters(f"{attention}.c_attn.weight", index=(slice(None), three))
    weights |= rllc.parameters(f"{attention}.c_attn.bias", index=three)
    return (weights | rows_of(f"{attention}.c_proj.weight", own)).named(f"{layer}:{head}")


def neox_head(layer: int, head: int) -> rllc.Weights:
    attention = f"gpt_neox.layers.{layer}.attention"
    three = range(head * 3 * WIDTH, (head + 1) * 3 * WIDTH)
    weights = rows_of(f"{attention}.query_key_value.weight", three)
    weights |= rows_of(f"{attention}.query_key_value.bias", three)
    own = range(head * WIDTH, (head + 1) * WIDTH)
    return (weights | columns_of(f"{attention}.dense.weight", own)).named(f"{layer}:{head}")


def head_of(attention: str, maps: str, output: str, head: int, bias: bool = True) -> rllc.Weights:
    """A head whose queries, keys and values have maps of their own."""
    own = range(head * WIDTH, (head + 1) * WIDTH)
    weights = columns_of(f"{attention}.{output}.weight", own)
    for map in maps.split():
        weights |= rows_of(f"{attention}.{map}.weight", own)
        if bias:
            weights |= rows_of(f"{attention}.{map}.bias", own)
    return weights.named(f"head {head}")


def pair(head: Callable[..., rllc.Weights], *layers: int) -> list[rllc.Weights]:
    return [head(layer, number) for layer in layers for number in (0, 3)]


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(3, V, (rows, T), generator=torch.Generator().manual_seed(2))


def padded(rows: int = 3) -> dict[str, Tensor]:
    """Rows of several lengths, one with a label that does not count."""
    mask = torch.ones(rows, T, dtype=torch.long)
    mask[0, 5:] = 0
    ids = tokens(rows)
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def masked(rows: int = 3) -> dict[str, Tensor]:
    """Every third token is hidden."""
    ids = tokens(rows)
    hidden = torch.arange(T).expand(rows, T) % 3 == 1
    return {"input_ids": ids.masked_fill(hidden, 4), "labels": ids.masked_fill(~hidden, -100)}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 2, 1])}


CASES: dict[str, Callable[[], tuple[nn.Module, list[rllc.Weights], Any, Any]]] = {
    "gpt2": lambda: (made("gpt2", **OF_GPT2), pair(gpt2_head, 0, 2), None, tokens()),
    "gpt2, padded": lambda: (made("gpt2", **OF_GPT2), pair(gpt2_head, 1), None, padded()),
    "gpt2, eager": lambda: (made("gpt2", "eager", **OF_GPT2), pair(gpt2_head, 1), None, padded()),
    "gpt_neox": lambda: (made("gpt_neox"), pair(neox_head, 0, 2), None, tokens()),
    "llama": lambda: (made("llama", **GROUPED), pair(llama_head, 0, 2), None, tokens()),
    "llama, eager": lambda: (
        made("llama", "eager", **GROUPED),
        pair(llama_head, 1),
        None,
        padded(),
    ),
    "qwen2": lambda: (
        made("qwen2", **GROUPED),
        pair(functools.partial(llama_head, bias=True), 1),
        None,
        padded(),
    ),
    "gemma2": lambda: (
        made("gemma2", **GEMMA, final_logit_softcapping=2.0, attn_logit_softcapping=3.0),
        pair(functools.partial(llama_head, width=8), 0, 1, 2),
        None,
        padded(),
    ),
    "gemma3": lambda: (
        made("gemma3", **GEMMA, layer_types=["sliding_attention"] * 2 + ["full_attention"]),
        pair(functools.partial(llama_head, width=8), 1, 2),
        None,
        tokens(),
    ),
    "cohere": lambda: (
        made("cohere", **GROUPED, logit_scale=0.3),
        pair(llama_head, 1),
        None,
        tokens(),
    ),
    "granite": lambda: (
        made("granite", **GROUPED, logits_scaling=3.0),
        pair(llama_head, 1),
        None,
        tokens(),
    ),
    "opt": lambda: (
        made("opt", ffn_dim=40, word_embed_proj_dim=D),
        [
            head_of("model.decoder.layers.1.self_attn", "q_proj k_proj v_proj", "out_proj", 1),
            rows_of("model.decoder.layers.1.fc1.weight", range(3, 9)),
        ],
        None,
        padded(),
    ),
    "bert": lambda: (
        made("bert"),
        [
            head_of("bert.encoder.layer.1.attention.self", "query key value", "query", 2),
            columns_of("bert.encoder.layer.1.output.dense.weight", range(7)),
        ],
        masked_lm,
        masked(),
    ),
    "bert, classes": lambda: (
        made("bert_classes", num_labels=3),
        [
            rows_of("bert.encoder.layer.2.attention.self.value.weight", range(6)),
            rllc.parameters("classifier.*"),
        ],
        classification,
        {"input_ids": tokens(), "labels": torch.tensor([0, 2, 1])},
    ),
    "vit": lambda: (
        made("vit", image_size=8, patch_size=4, num_labels=3),
        [rllc.parameters("vit.layers.1.attention.q_proj.*"), rllc.parameters("classifier.*")],
        classification,
        images(),
    ),
    "an encoder and a decoder": lambda: (
        made("t5", d_model=D, d_kv=WIDTH, d_ff=40, num_layers=2, num_heads=HEADS),
        [
            rows_of("decoder.block.1.layer.1.EncDecAttention.q.weight", range(WIDTH)),
            rows_of("encoder.block.1.layer.0.SelfAttention.q.weight", range(WIDTH)),
        ],
        translation,
        (tokens(), tokens() // 2),
    ),
    "a mixture's attention": lambda: (
        made("mixtral", **GROUPED, num_local_experts=3),
        pair(llama_head, 1),
        None,
        tokens(),
    ),
    "one set of weights for all layers": lambda: (
        made("albert", embedding_size=10),
        [rllc.parameters("*.attention.query.*")],
        masked_lm,
        masked(),
    ),
}


def translation(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    sources, targets = batch
    logits = module(input_ids=sources, decoder_input_ids=targets).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none"
    ).view(len(sources), -1)


# The same numbers.


def near(model: nn.Module, group: Any, runs: int) -> tuple[Tensor, Tensor]:
    """Members, and positions around w*."""
    member = torch.arange(runs) % len(group.members)
    origin = center(group, dict(model.named_parameters()))[member]
    return member, origin + 0.1 * torch.randn(origin.shape)


def assert_equals_in_turn(
    model: nn.Module, weights: list[rllc.Weights], loss: Any, batch: Any, way: str = AT_ONCE
) -> LinearDeltas:
    bound = bind(model, loss)
    assert isinstance(bound, LinearDeltas)
    at = bound.center(batch, 0)
    for group in groups([selection.masks(model) for selection in weights]):
        member, position = near(model, group, 5)
        asked = {"gradient": True, "each": True}
        found = bound.runs(group, member, position, at, batch, **asked)
        alone = at._replace(shared=at.shared.seed)
        expected = bound.exact.runs(group, member, position, alone, batch, **asked)
        assert way in bound.way(group)
        assert torch.allclose(found.losses, expected.losses, rtol=2e-6)
        assert found.each.shape == expected.each.shape
        assert torch.allclose(found.each, expected.each, rtol=1e-5, atol=2e-6, equal_nan=True)
        size = expected.gradient.abs().amax(1, keepdim=True)
        assert float(((found.gradient - expected.gradient).abs() / size).max()) < 1e-5
    return bound


@pytest.mark.parametrize("case", CASES)
def test_runs_at_once_are_runs_in_turn(case: str) -> None:
    assert_equals_in_turn(*CASES[case]())
