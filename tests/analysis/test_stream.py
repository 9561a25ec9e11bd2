"""Composition and path patching on models of other types: against the paper's model with the same
weights, dense matrices and a slow forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from zoo import KINDS, WIDE, Kind

import rllc
from rllc.analysis.composition import compose
from rllc.analysis.hooked import hooked
from rllc.analysis.hooked_paths import changes_of
from rllc.analysis.patching import patch_paths
from rllc.analysis.paths import Path
from rllc.analysis.stream import linear_part, places
from rllc.errors import InputError
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.testing import unchanged

ROWS = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def loud(name: str) -> Any:
    """A model whose heads matter."""
    model = KINDS[name].make()
    stream = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=stream)
        parameter.copy_(1 + 0.1 * noise if parameter.dim() < 2 else 0.3 * noise)
    return model


@torch.no_grad()
def twins() -> tuple[Any, AttentionOnly]:
    """GPT-2 whose MLPs write nothing, and an attention-only model with the same weights."""
    gpt2 = loud("gpt2")
    sizes = {"n_layers": 2, "n_heads": 3, "d_model": 24, "d_head": 8, "n_ctx": 16, "d_vocab": 31}
    own = AttentionOnly(AttentionOnlyConfig(**sizes, positions="standard")).eval()
    body = gpt2.transformer
    own.embed.W_E.copy_(body.wte.weight)
    own.unembed.W_U.copy_(body.wte.weight.T)
    own.unembed.b_U.zero_()
    own.pos_embed.W_pos.copy_(body.wpe.weight)
    own.ln_final.w.copy_(body.ln_f.weight)
    own.ln_final.b.copy_(body.ln_f.bias)
    for theirs, block in zip(body.h, own.blocks, strict=True):
        theirs.mlp.c_proj.weight.zero_()
        theirs.mlp.c_proj.bias.zero_()
        block.ln1.w.copy_(theirs.ln_1.weight)
        block.ln1.b.copy_(theirs.ln_1.bias)
        weights = theirs.attn.c_attn.weight.view(24, 3, 3, 8).permute(1, 2, 0, 3)
        biases = theirs.attn.c_attn.bias.view(3, 3, 8)
        for number, letter in enumerate("QKV"):
            getattr(block.attn, f"W_{letter}").copy_(weights[number])
            getattr(block.attn, f"b_{letter}").copy_(biases[number])
        block.attn.W_O.copy_(theirs.attn.c_proj.weight.view(3, 8, 24))
        block.attn.b_O.copy_(theirs.attn.c_proj.bias)
    return gpt2, own


def test_the_twins_are_one_model() -> None:
    gpt2, own = twins()
    with torch.no_grad():
        assert torch.allclose(gpt2(ROWS).logits, own(ROWS).logits, atol=1e-5)


# Paths.


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_every_path_of_gpt2_is_that_of_its_attention_only_twin(score: Any) -> None:
    gpt2, own = twins()
    theirs = patch_paths(own, ROWS, corrupted=OTHER, score=score)
    ours = patch_paths(gpt2, ROWS, corrupted=OTHER, score=score, batch_size=3)
    assert ours.paths == theirs.paths
    assert np.abs(ours.effect).max() > 0.01
    assert np.allclose(ours.effect, theirs.effect, atol=1e-5)
    assert np.allclose(ours.standard_error, theirs.standard_error, atol=1e-5)


LLAMA_PATHS = ["0:0->1:1.Q", "0:1->1:0.K", "0:1->1:1.K", "0:3->1:2.V", "1:2->logits", "0:2"]


@torch.no_grad()
def slow_llama(model: Any, rows: Tensor, path: str, other: dict[str, Tensor]) -> tuple[Any, Any]:
    """Losses ``[row, pos]``, and what each head passes on, one head after the other.

    Each head has keys and values of its own, copies of those of its group.
    """
    sender, _, receiver = path.partition("->")
    ids = rows[:, :-1]
    x = model.model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    cos, sin = model.model.rotary_emb(x, positions)
    mask = torch.full((ids.shape[1],) * 2, -1e30).triu(1)
    z = {}
    term = torch.zeros_like(x)
    for layer, block in enumerate(model.model.layers):
        attention = block.self_attn
        written = attention.o_proj.bias.expand_as(x).clone()
        for head in range(4):
            maps = {}
            for letter in "QKV":
                changed = x + term if receiver == f"{layer}:{head}.{letter}" else x
                given = getattr(attention, f"{letter.lower()}_proj")(block.input_layernorm(changed))
                number = head if letter == "Q" else head // 2
                maps[letter] = given[..., 8 * number : 8 * number + 8]
            q, k = apply_rotary_pos_emb(maps["Q"][:, None], maps["K"][:, None], cos, sin)
            scores = (q @ k.mT)[:, 0] / 8**0.5 + mask
            name = f"{layer}:{head}"
            z[name] = scores.softmax(-1) @ maps["V"]
            part = attention.o_proj.weight[:, 8 * head : 8 * head + 8]
            if name == sender and other:
                if receiver:
                    term = (other[name] - z[name]) @ part.T
                else:
                    z[name] = other[name]
            written = written + z[name] @ part.T
        x = x + written
        x = x + block.mlp(block.post_attention_layernorm(x))
    x = model.model.norm(x + term if receiver == "logits" else x)
    losses = nn.functional.cross_entropy(model.lm_head(x).mT, rows[:, 1:], reduction="none")
    return losses, z


def test_paths_of_a_rotary_model_with_shared_keys_are_those_of_a_slow_loop() -> None:
    model = loud("llama")
    clean, _ = slow_llama(model, ROWS, "", {})
    _, other = slow_llama(model, OTHER, "", {})
    result = patch_paths(model, ROWS, LLAMA_PATHS, corrupted=OTHER)
    for path in LLAMA_PATHS:
        changed, _ = slow_llama(model, ROWS, path, other)
        expected = float((changed - clean).mean())
        assert abs(expected) > 1e-3
        assert result[path] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", ["granite", "gptj", "opt"])
def test_a_whole_head_is_its_paths_where_nothing_else_reads_it(name: str) -> None:
    """A head of the last layer is read by the last MLP and the logits; without MLPs by these alone:
    so factors of what is added, parallel blocks and flattened norms are right."""
    model = loud(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if re.search(r"(down_proj|fc_out|fc2)\.(weight|bias)$", path):
                parameter.zero_()
    result = patch_paths(model, ROWS, ["1:0", "1:0->logits"], corrupted=OTHER)
    assert abs(result["1:0"]) > 1e-3
    assert result["1:0->logits"] == pytest.approx(result["1:0"], abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_equal_inputs_carry_nothing_and_nothing_of_the_model_changes(name: str) -> None:
    model = loud(name)
    with unchanged(model):
        result = patch_paths(model, ROWS, ["0:0->1:1.K", "0:0->logits"], corrupted=ROWS)
    assert np.abs(result.effect).max() < 1e-6


# Composition.


def test_composition_of_gpt2_is_that_of_its_attention_only_twin() -> None:
    gpt2, own = twins()
    for fold in (True, False):
        ours, theirs = compose(gpt2, fold=fold), compose(own, fold=fold)
        assert np.allclose(ours.value, theirs.value, atol=1e-5, equal_nan=True)
        assert ours.baseline == theirs.baseline


SHARED = [("1:3", "Q"), ("1:2", "K"), ("1:3", "K"), ("1:3", "V")]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_composition_with_shared_keys_is_that_of_dense_matrices(name: str) -> None:
    """Gemma 2 has RMS norms of 1 + w, on what heads write too."""
    model = loud(name)
    with unchanged(model):
        result = compose(model)
    first, second = (block.self_attn for block in model.model.layers)
    reads = [block.input_layernorm.weight.detach() for block in model.model.layers]
    writes = torch.ones(2, 24)
    if name == "gemma2":
        reads = [1 + weight for weight in reads]
        writes = 1 + torch.stack(
            [block.post_attention_layernorm.weight.detach() for block in model.model.layers]
        )
    rows = slice(8, 16)  # of head 1, and of its group 0
    group = slice(0, 8)
    L = (reads[0][:, None] * first.v_proj.weight[group].T) @ (
        first.o_proj.weight[:, rows].T * writes[0]
    )
    for receiver, input in SHARED:
        head = int(receiver[-1])
        own = slice(8 * head, 8 * head + 8)
        shared = slice(8, 16)
        W_Q, W_K, W_V = (
            reads[1][:, None] * weight.T
            for weight in (
                second.q_proj.weight[own],
                second.k_proj.weight[shared],
                second.v_proj.weight[shared],
            )
        )
        W_O = second.o_proj.weight[:, own].T * writes[1]
        R = {"Q": W_Q @ W_K.T, "K": W_K @ W_Q.T, "V": W_V @ W_O}[input]
        expected = float((L @ R).norm() / (L.norm() * R.norm()))
        assert result["0:1", receiver, input] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["vit", "modernbert"])
def test_models_that_see_both_sides_compose_too(name: str) -> None:
    value = compose(loud(name)).value
    assert np.isfinite(value[:, 0, :, 1]).all()


def test_a_factor_of_what_is_added_is_measured() -> None:
    settings = {**WIDE, "residual_multiplier": 0.25}
    model = Kind("granite", settings).make()
    for place in places(model, "here"):
        assert torch.allclose(place.scale, torch.tensor(0.25), rtol=1e-3)


def test_linear_parts_of_norms() -> None:
    layer_norm = nn.LayerNorm(6)
    nn.init.normal_(layer_norm.weight)
    nn.init.normal_(layer_norm.bias)
    part = linear_part(layer_norm, 6, "here")
    assert part.centres
    assert torch.allclose(part.scale, layer_norm.weight, rtol=1e-3)
    rms = nn.RMSNorm(6)
    nn.init.normal_(rms.weight)
    part = linear_part(rms, 6, "here")
    assert not part.centres
    assert torch.allclose(part.scale, rms.weight, rtol=1e-3)
    with pytest.raises(InputError, match="here: Tanh is neither a LayerNorm nor an RMS norm"):
        linear_part(nn.Tanh(), 6, "here")


class Scaled(nn.Module):
    """A language model that cannot be called with tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = KINDS["gpt2"].make()
        self.config = self.inner.config

    def forward(self, input_ids: Tensor, *, temperature: float) -> Any:
        return self.inner(input_ids).logits / temperature


def scaled() -> nn.Module:
    model = Scaled()
    rllc.anatomy(model, example={"input_ids": ROWS, "temperature": 1.0})
    return model


def with_relu(name: str) -> nn.Module:
    """GPT-2 with something else in the place of one of its modules."""
    model = KINDS["gpt2"].make()
    model.transformer.h[1].set_submodule(name, nn.ReLU())
    return model


def without_final_norm() -> object:
    subject = hooked(KINDS["gpt2"].make(), "here")
    subject = subject._replace(anatomy=replace(subject.anatomy, norms=()))
    paths = [Path.parse("0:0->logits")]
    return changes_of(subject, ROWS, OTHER, paths, kl=False, batch_size=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compose(scaled()), r"is found by running it, and it could not be run \(TypeErr"),
        (lambda: compose(with_relu("ln_1")), r"neither the residual stream nor a norm of it"),
        (lambda: compose(with_relu("attn.resid_dropout")), r"is not added to the residual stream"),
        (without_final_norm, r"has no norm after its last block that is known, so paths to"),
        (lambda: compose(KINDS["bert"].make()), r"normalised after each block, so it is no sum"),
        (lambda: compose(KINDS["t5"].make()), r"several kinds of attention \(decoder, decoder"),
        (lambda: compose(nn.MultiheadAttention(8, 2)), r"is no module that is called"),
        (lambda: patch_paths(KINDS["gemma2"].make(), ROWS), r"no term .* is one head's"),
        (lambda: patch_paths(KINDS["bert"].make(), ROWS), r"BertForMaskedLM sees later tokens"),
        (lambda: patch_paths(KINDS["gpt2"].make(), ROWS, "0:0->1:7.K"), r"has no head '1:7'"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        call()
