"""Where models keep their heads: every type's rows, held against the model by the tests' own means,
rows that are wrong, and models of unknown types."""

from __future__ import annotations

import gc
import pickle
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from marks import quickly
from tiny import QUIET, SHORT, tiny_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM
from zoo import GROUPED, IMAGES, KINDS, PLAIN, VOCAB, WIDE, Kind, plain

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.paths import Path
from rllc.anatomy.attention import Anatomy, Attention, Map
from rllc.anatomy.rows import ROWS
from rllc.anatomy.verify import verify
from rllc.errors import InputError
from rllc.testing import check_weights, unchanged

EVERY = pytest.mark.parametrize("name", KINDS)
SOME = pytest.mark.parametrize("name", quickly(list(KINDS)[::3], KINDS))
"""For what costs more than to verify a model, which is done to each of them."""


def names_of(kind: Kind) -> list[str]:
    names = []
    for tower in kind.towers:
        for layer in range(kind.layers):
            start = f"{tower}.{layer}" if tower else str(layer)
            names += [f"{start}:{head}" for head in range(kind.heads)]
    return names


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights large enough that every head matters."""
    stream = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=stream)
        parameter.copy_(1 + 0.1 * noise if parameter.dim() < 2 else 0.3 * noise)


def run(model: nn.Module) -> None:
    """Call a model of the zoo, every tower of it."""
    config: Any = model.config
    ids = torch.tensor([[5, 9, 3, 17, 11], [4, 8, 12, 6, 3]])
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Tensor] = {}
    if main == "input_ids":
        inputs["input_ids"] = ids
    if main == "pixel_values" or config.model_type == "clip":
        inputs["pixel_values"] = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    if main == "input_features":
        inputs[main] = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(4))
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    model(**inputs)


@contextmanager
def read_by_o(model: nn.Module, module: str) -> Iterator[list[Tensor]]:
    """What a linear map is called on."""
    seen: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().clone())
    )
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def scaled(model: nn.Module, masks: dict[str, Tensor], factor: float) -> Iterator[None]:
    """Some weights, times a factor."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in masks}
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name][mask] *= factor
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in before.items():
                parameters[name].copy_(values)


# Every type: what its heads are.


@EVERY
def test_heads_and_their_counts(name: str) -> None:
    kind = KINDS[name]
    model = kind.make()
    heads = rllc.heads(model)
    assert [head.name for head in heads] == names_of(kind)
    per_head = 4 * kind.d_model * kind.d_head + kind.biases * kind.d_head
    assert {head.count(model) for head in heads} == {per_head}
    share = kind.heads // kind.kv_heads
    groups = rllc.heads(model, by="kv")
    assert len(groups) == len(heads) // share
    maps = (2 * share + 2) * kind.d_model * kind.d_head
    if kind.biases in (0, 3):
        per_group = maps + (kind.biases and (share + 2) * kind.d_head)
        assert {group.count(model) for group in groups} == {per_group}


@SOME
@torch.no_grad()
def test_a_head_is_what_moves_its_part_of_what_o_reads(name: str) -> None:
    """Beside the product's own check: with the masks alone, and a run of the whole model."""
    kind = KINDS[name]
    model = kind.make()
    anatomy = rllc.anatomy(model)
    randomise(model)
    for attention in anatomy.attentions:
        module = attention.o.weight.removesuffix(".weight")
        with read_by_o(model, module) as seen:
            run(model)
            # ALBERT calls it once a layer, and the first call is before anything else moves.
            base = seen[0].unflatten(-1, (attention.num_heads, -1))
            for head, head_name in enumerate(attention.heads):
                # A change of sign, since a norm over all heads does not see it.
                for kv in ("own", "shared"):
                    weights = rllc.head(head_name, kv=kv).masks(model)
                    mine = {n: mask for n, mask in weights.items() if n != attention.o.weight}
                    seen.clear()
                    with scaled(model, mine, -1.0):
                        run(model)
                    moved = seen[0].unflatten(-1, (attention.num_heads, -1))
                    rises = (moved - base).abs().amax((0, 1, 3)) > 1e-4 * base.abs().max()
                    expected = torch.zeros(attention.num_heads, dtype=torch.bool)
                    expected[head] = True
                    if kv == "shared":
                        group = attention.kv_head(head)
                        expected[list(attention.heads_of("k", group))] = True
                    assert torch.equal(rises, expected), (head_name, kv)


@SOME
@torch.no_grad()
def test_zeroing_a_heads_o_is_zeroing_what_o_reads_of_it(name: str) -> None:
    kind = KINDS[name]
    model = kind.make()
    randomise(model)
    attention = rllc.anatomy(model).attentions[-1]
    o = model.get_submodule(attention.o.weight.removesuffix(".weight"))
    z = torch.randn(3, attention.num_heads, kind.d_head, generator=torch.Generator().manual_seed(5))
    for head, head_name in enumerate(attention.heads):
        without = z.clone()
        without[:, head] = 0
        mask = rllc.head(head_name).masks(model)[attention.o.weight]
        with scaled(model, {attention.o.weight: mask}, 0.0):
            by_weights = o(z.flatten(1))
        assert torch.allclose(by_weights, o(without.flatten(1)), atol=1e-5)


def test_every_row_has_a_model() -> None:
    tried = {kind.type for kind in KINDS.values()}
    # mT5 is T5, and Gemma 3 with images has a test of its own.
    assert set(ROWS) - tried == {"mt5", "gemma3"}


def test_blocks_norms_and_unembedding() -> None:
    anatomy = rllc.anatomy(KINDS["gpt_neox"].make())
    assert anatomy.blocks == ("gpt_neox.layers.0", "gpt_neox.layers.1")
    assert anatomy.norms == ("gpt_neox.final_layer_norm",)
    model = KINDS["t5"].make()
    anatomy = rllc.anatomy(model)
    assert anatomy.blocks[0] == "encoder.block.0"
    assert anatomy.norms == ("encoder.final_layer_norm", "decoder.final_layer_norm")
    assert anatomy.unembedding == "lm_head"
    assert rllc.anatomy(tiny_model()).unembedding == "unembed"
    assert "decoder.cross.1" in str(anatomy)


# Masks written by hand, by reshaping; not by the rows.


def by_hand(model: nn.Module, kind: str, head: int) -> dict[str, Tensor]:
    """Head ``head`` of layer 1."""
    parameters = dict(model.named_parameters())
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    if kind == "gpt2":
        attn = "transformer.h.1.attn."
        masks[f"{attn}c_attn.weight"].view(24, 3, 3, 8)[:, :, head] = True
        masks[f"{attn}c_attn.bias"].view(3, 3, 8)[:, head] = True
        masks[f"{attn}c_proj.weight"].view(3, 8, 24)[head] = True
    elif kind == "gpt_neox":
        attn = "gpt_neox.layers.1.attention."
        masks[f"{attn}query_key_value.weight"].view(3, 3, 8, 24)[head] = True
        masks[f"{attn}query_key_value.bias"].view(3, 3, 8)[head] = True
        masks[f"{attn}dense.weight"].view(24, 3, 8)[:, head] = True
    elif kind == "falcon, grouped":
        attn = "transformer.h.1.self_attention."
        # [group, two queries and a key and a value, d_head, d_model]
        fused = masks[f"{attn}query_key_value.weight"].view(2, 4, 8, 32)
        fused[head // 2, [head % 2, 2, 3]] = True
        masks[f"{attn}dense.weight"].view(32, 4, 8)[:, head] = True
    else:
        attn = "model.layers.1.self_attn."
        masks[f"{attn}q_proj.weight"].view(4, 8, 24)[head] = True
        masks[f"{attn}k_proj.weight"].view(2, 8, 24)[head // 2] = True
        masks[f"{attn}v_proj.weight"].view(2, 8, 24)[head // 2] = True
        masks[f"{attn}o_proj.weight"].view(24, 4, 8)[:, head] = True
    return {name: mask for name, mask in masks.items() if mask.any()}


BY_HAND = ["gpt2", "gpt_neox", "falcon, grouped", "qwen2", "gemma2"]


@pytest.mark.parametrize("name", BY_HAND)
def test_a_head_is_the_mask_one_would_write(name: str) -> None:
    model = KINDS[name].make()
    biases = {n for n, p in model.named_parameters() if n.endswith("_proj.bias") and p.numel() < 33}
    for head in range(KINDS[name].heads):
        masks = rllc.head(1, head).masks(model)
        expected = by_hand(model, name, head)
        assert set(masks) - biases == set(expected)
        for tensor, mask in expected.items():
            assert torch.equal(masks[tensor], mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon, grouped", "gemma2"])
def test_the_llc_of_a_head_is_that_of_its_mask(name: str) -> None:
    model = KINDS[name].make()
    tokens = rllc.Tokens(torch.randint(31, (12, 7), generator=torch.Generator().manual_seed(0)))
    losses = []
    for weights in (
        {"1:0": rllc.head("1:0"), "1:2": rllc.head("1:2")},
        {h: rllc.masks(by_hand(model, name, int(h[-1]))) for h in ("1:0", "1:2")},
    ):
        draws = rllc.sample(model, tokens, weights, sampling=SHORT, compute=QUIET)
        losses.append(draws.loss)
    assert np.array_equal(losses[0], losses[1])


@pytest.mark.oracle
def test_devinterp_on_the_same_heads() -> None:
    """It agrees where heads are d_model / heads wide, and not where they are wider."""
    from devinterp.slt.weight_restrictions import create_param_masks

    narrow = Kind("llama", {**KINDS["llama"].settings, "head_dim": 6}, d_head=6)
    for kind in (KINDS["gpt2"], KINDS["gpt_neox"], KINDS["bloom"], narrow):
        model = kind.make()
        for head in range(kind.heads):
            theirs = create_param_masks(model, f"l1h{head}")
            ours = rllc.head(1, head).masks(model)
            for tensor, mask in theirs.items():
                assert torch.equal(ours[tensor], mask.bool()), (kind.type, tensor)


@pytest.mark.oracle
@torch.no_grad()
def test_devinterp_is_wrong_for_grouped_keys_of_wide_heads() -> None:
    """Brute force beside both: the weights of ``k`` that change what head 1:3 passes on."""
    from devinterp.slt.weight_restrictions import create_param_masks

    # Two key heads of 8 numbers for four heads, over 24: it divides the 16 rows by the four heads.
    model = KINDS["qwen3"].make()
    randomise(model)
    keys = "model.layers.1.self_attn.k_proj.weight"
    module = "model.layers.1.self_attn.o_proj"
    rows = torch.zeros(16, dtype=torch.bool)
    with read_by_o(model, module) as seen:
        run(model)
        base = seen[-1].unflatten(-1, (4, 8))[..., 3, :]
        for row in range(len(rows)):
            mask = torch.zeros(16, 24, dtype=torch.bool)
            mask[row] = True
            with scaled(model, {keys: mask}, -1.0):
                run(model)
            moved = seen[-1].unflatten(-1, (4, 8))[..., 3, :]
            rows[row] = bool((moved - base).abs().max() > 1e-5)
    assert rows.nonzero().flatten().tolist() == list(range(8, 16))
    assert torch.equal(rllc.head("1:3").masks(model)[keys].all(1), rows)
    theirs = create_param_masks(model, "l1h3")[keys].bool()
    assert theirs.all(1).nonzero().flatten().tolist() == [12, 13, 14, 15]


# Keys and values that several heads share.


def test_shared_keys_are_of_each_of_their_heads() -> None:
    model = KINDS["qwen3"].make()
    keys = "model.layers.0.self_attn.k_proj.weight"
    left, right = (rllc.head(0, head).masks(model) for head in (0, 1))
    assert torch.equal(left[keys], right[keys])
    assert not (left[keys] & rllc.head(0, 2).masks(model)[keys]).any()
    assert keys not in rllc.head(0, 0, kv="own").masks(model)
    own = rllc.head("0:0", kv="own") | rllc.head("0:1", kv="own")
    group = rllc.heads(model, by="kv")[0]
    assert group.name == "0:kv0"
    assert own.count(model) + 2 * 24 * 8 == group.count(model)
    check_weights(group, model)


def test_own_and_shared_are_one_where_nothing_is_shared() -> None:
    model = KINDS["gpt2"].make()
    left = rllc.head("0:1").masks(model)
    right = rllc.head("0:1", kv="own").masks(model)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (rllc.head("0:1"), "layer 0: each head with the keys and values of its group, which 2"),
        (rllc.head("0:1", kv="own"), r"layer 0: without keys and values, which 2 .*kv='own'"),
        (rllc.head("0:1"), "layer 0: q is normalised over all heads together"),
        (rllc.head("1:1"), r"belongs to no head: .*layers\.1\.self_attn\.q_norm\.weight"),
    ],
)
def test_describe_says_which_keys_and_what_is_no_heads(weights: rllc.Weights, text: str) -> None:
    assert re.search(text, weights.describe(KINDS["olmo2"].make()))


def test_describe_says_it_of_groups_and_of_circuits_once() -> None:
    model = KINDS["qwen2"].make()
    group = rllc.heads(model, by="kv")[0]
    assert "layer 0: groups of 2 heads, with the keys and values" in group.describe(model)
    circuit = rllc.head("0:0") | rllc.head("0:3")
    assert circuit.describe(model).count("each head with the keys") == 1


def test_describe_names_weights_that_all_layers_share() -> None:
    assert "all layers of a group" in rllc.head("0:0").describe(KINDS["albert"].make())


# Towers.


def test_heads_of_towers_have_their_names() -> None:
    model = KINDS["clip"].make()
    vision = rllc.head("vision.1:2")
    assert vision == rllc.head("vision.L1H2")
    assert all(name.startswith("vision_model.") for name in vision.masks(model))
    model = KINDS["t5"].make()
    cross = rllc.head("decoder.cross.0:1").masks(model)
    assert all(".EncDecAttention." in name for name in cross)
    with pytest.raises(InputError, match=r"no such head; did you mean 'encoder.0:1'|'decoder.0:1'"):
        rllc.head("0:1").masks(model)
    with pytest.raises(InputError, match=r"no such head; did you mean 'decoder.cross.0:1'"):
        rllc.head("decoder.cros.0:1").masks(model)


def test_each_tower_is_run_on_its_own_where_the_whole_needs_more() -> None:
    """Gemma 3 with images wants image tokens among the others; its parts do not."""
    text = {**WIDE, "sliding_window": 3}
    settings = transformers.Gemma3Config(
        text_config=text,
        vision_config={**IMAGES, "num_channels": 3},
        image_token_index=30,
        boi_token_index=28,
        eoi_token_index=29,
        mm_tokens_per_image=4,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Gemma3ForConditionalGeneration(settings)
    anatomy = rllc.anatomy(model)
    assert anatomy.heads[7:9] == ("1:3", "vision.0:0")
    assert len(anatomy.heads) == 8 + 6
    assert rllc.head("1:3").count(model) == 4 * 24 * 8
    assert rllc.head("vision.1:2").count(model) == 4 * 24 * 8 + 3 * 8


def test_paths_are_of_models_with_one_kind_of_attention() -> None:
    with pytest.raises(InputError, match=r"head 'vision.0:1'.*one kind of attention"):
        Path.parse("vision.0:1->logits")
    with pytest.raises(InputError, match=r"are not heads"):
        ablate(tiny_model(), torch.zeros(2, 4, dtype=torch.long), rllc.head("vision.0:1"))


# Modules of torch, and TransformerLens's names.


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MULTIHEAD: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "one module": (lambda: nn.MultiheadAttention(12, 3), ["0"], 4 * 48 + 12),
    "without biases": (lambda: nn.MultiheadAttention(12, 3, bias=False), ["0"], 4 * 48),
    "other keys": (
        lambda: nn.MultiheadAttention(12, 3, kdim=5, vdim=7),
        ["0"],
        4 * (12 + 5 + 7 + 12) + 12,
    ),
    "an encoder": (encoder, ["0", "1"], 4 * 48 + 12),
    "both": (
        lambda: nn.Transformer(12, 3, 1, 1, 8),
        ["encoder.self_attn.0", "decoder.self_attn.0", "decoder.multihead_attn.0"],
        4 * 48 + 12,
    ),
}


@pytest.mark.parametrize("name", MULTIHEAD)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_multihead_attention(name: str) -> None:
    make, layers, count = MULTIHEAD[name]
    model = make()
    heads = rllc.heads(model)
    assert [head.name for head in heads] == [f"{layer}:{n}" for layer in layers for n in range(3)]
    assert {head.count(model) for head in heads} == {count}


@torch.no_grad()
def test_the_biases_of_multihead_attention_with_other_keys() -> None:
    """With the outputs of head 1 alone, its slices matter and no other head's."""
    model = nn.MultiheadAttention(12, 3, kdim=5, vdim=7)
    randomise(model)
    heads = [rllc.head(0, head).masks(model) for head in range(3)]
    inputs = [torch.randn(4, 2, size) for size in (12, 5, 7)]
    others = {"out_proj.weight": ~heads[1]["out_proj.weight"]}
    with scaled(model, others, 0.0):
        base = model(*inputs)[0]
        for head in range(3):
            masks = {name: mask for name, mask in heads[head].items() if name != "out_proj.weight"}
            with scaled(model, masks, -2.0):
                moved = model(*inputs)[0]
            assert bool((moved - base).abs().max() > 1e-3) == (head == 1)


class HookPoint(nn.Module):
    """As TransformerLens's: gives what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class GroupedTensors(nn.Module):
    """TransformerLens 3's attention with grouped keys and values, on one page."""

    def __init__(self, heads: int, kv_heads: int, d_model: int, d_head: int) -> None:
        super().__init__()
        sizes = {"W_Q": heads, "_W_K": kv_heads, "_W_V": kv_heads}
        for name, number in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(number, d_model, d_head)))
            bias = name.replace("W", "b")
            self.register_parameter(bias, nn.Parameter(torch.zeros(number, d_head)))
        self.W_O = nn.Parameter(torch.randn(heads, d_head, d_model))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.hook_z = HookPoint()
        self.share = heads // kv_heads

    def forward(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> Tensor:
        q = torch.einsum("bpm,hmd->bhpd", query_input, self.W_Q) + self.b_Q[:, None]
        k = torch.einsum("bpm,hmd->bhpd", key_input, self._W_K) + self._b_K[:, None]
        v = torch.einsum("bpm,hmd->bhpd", value_input, self._W_V) + self._b_V[:, None]
        k, v = (x.repeat_interleave(self.share, 1) for x in (k, v))
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).tril().softmax(-1)
        z = self.hook_z((pattern @ v).transpose(1, 2))
        return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O


class GroupedLens(nn.Module):
    """A TransformerLens 3 model with two blocks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Module()
        self.embed.W_E = nn.Parameter(torch.randn(17, 10))
        attentions = [GroupedTensors(4, 2, 10, 3) for _ in range(2)]
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": each}) for each in attentions)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed.W_E[tokens]
        for block in self.blocks:
            x = x + block["attn"](query_input=x, key_input=x, value_input=x)
        return x


def test_transformer_lens_names_with_groups() -> None:
    model = GroupedLens()
    heads = rllc.heads(model)
    assert [head.name for head in heads][3:5] == ["0:3", "1:0"]
    assert heads[0].count(model) == 4 * 10 * 3 + 3 * 3
    assert torch.equal(
        heads[2].masks(model)["blocks.0.attn._W_K"].any(2).any(1), torch.arange(2) > 0
    )
    assert "belongs to no head: blocks.0.attn.b_O" in heads[0].describe(model)


class Wrapped(nn.Module):
    """As the components of TransformerLens 4's bridge, which wrap those of another model."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self._original_component = inside

    @property
    def original_component(self) -> nn.Module:
        return self._original_component

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._original_component(*args, **kwargs)


class AttentionBridge(Wrapped):
    pass


class Bridge(nn.Module):
    """Wraps a model as TransformerLens 4 does: what it wraps stands in the place of the original,
    and once more under TransformerLens's names."""

    def __init__(self, model: nn.Module, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.original_model = model
        self.config = model.config
        self.main_input_name = "input_ids"
        self.cfg = SimpleNamespace(n_heads=heads, n_key_value_heads=kv_heads)
        self.blocks = nn.ModuleList()
        for layer in model.model.layers:
            attention = AttentionBridge(layer.self_attn)
            for letter in ("q", "k", "v", "o"):
                name = f"{letter}_proj"
                wrapped = Wrapped(getattr(layer.self_attn, name))
                setattr(layer.self_attn, name, wrapped)
                setattr(attention, letter, wrapped)
            layer.self_attn = attention
            self.blocks.append(nn.ModuleDict({"attn": attention}))

    def forward(self, input: Tensor) -> Tensor:
        return self.original_model(input).logits


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_a_transformer_lens_bridge(name: str) -> None:
    plain = KINDS[name].make()
    bridge = Bridge(KINDS[name].make(), 4, 2)
    heads = rllc.heads(bridge)
    assert [head.name for head in heads] == names_of(KINDS[name])
    for head in heads:
        theirs = [mask for _, mask in sorted(head.masks(plain).items())]
        ours = [mask for _, mask in sorted(head.masks(bridge).items())]
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def test_attention_only_has_the_heads_it_always_had() -> None:
    """The masks are those of [head, …] tensors, in the same order, bit for bit."""
    model = tiny_model()
    tensors = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    for head in range(3):
        masks = rllc.head(1, head).masks(model)
        assert list(masks) == [f"blocks.1.attn.{tensor}" for tensor in tensors]
        for mask in masks.values():
            assert mask[head].all()
            assert mask.sum() == mask[head].numel()


# Rows that are wrong.


def changed(anatomy: Anatomy, layer: int = 1, **maps: Any) -> Anatomy:
    """The same, but for one attention."""
    attentions = list(anatomy.attentions)
    attentions[layer] = replace(attentions[layer], **maps)
    return replace(anatomy, attentions=tuple(attentions))


def rolled(own: Map) -> Map:
    """Each head has the next one's slice."""
    return replace(own, pieces=own.pieces[1:] + own.pieces[:1])


def wrong_row(name: str, **changes: Any) -> rllc.AttentionRow:
    kind = KINDS[name]
    values = {**vars(ROWS[kind.type][0]), "when": (), **changes}
    return rllc.AttentionRow(**values)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "queries and keys swapped": (
        "gpt_neo",
        {"q": "k_proj", "k": "q_proj"},
        r"k_proj\.weight\[0:8\] and what follows are not queries.*changes other positions too",
    ),
    "keys and values swapped": ("llama", {"k": "v_proj", "v": "k_proj"}, r"v of heads 0:0, 0:1"),
    "queries and values swapped": ("gptj", {"q": "v_proj", "v": "q_proj"}, r"not|does not change"),
    "interleaved read side by side": (
        "gpt_neox",
        {"fused": "side by side"},
        r"query_key_value\.weight\[\d+:\d+\].*head",
    ),
    "side by side read interleaved": (
        "gpt2",
        {"fused": "interleaved"},
        r"c_attn\.weight\[:, \d+:\d+\], which is to be the q of head 0:\d",
    ),
    "two heads taken for one": ("qwen3", {"heads": 2, "kv_heads": 2}, r"not the q of one head"),
    "two heads taken for one, ungrouped": ("gpt_neo", {"heads": 1}, r"not the q of one head"),
    "a head taken for two": ("gptj", {"heads": 6}, r"changes what is passed on by head"),
    "groups taken for heads": ("llama", {"kv_heads": 4}, r"k of head 0:"),
    "two groups taken for one": ("llama", {"kv_heads": 1}, r"not the k of one head.*head 0:2"),
    "two groups taken for one, fused": ("phi3", {"heads": 4, "kv_heads": 1}, r"no 6 equal|head"),
    "a norm that is not said": ("olmo2", {"mixed": ()}, r"q_proj.*changes what is passed on by"),
    "a norm that is not there": (
        "llama",
        {"mixed": ("q",)},
        r"says that q is normalised over all heads together .*leave 'q' out of `mixed`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_gives_no_head(name: str) -> None:
    kind, changes, message = WRONG[name]
    model = KINDS[kind].make()
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        rllc.heads(model, anatomy=wrong_row(kind, **changes))


@pytest.mark.parametrize("letter", ["q", "k", "v", "o"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "falcon, apart", "attention-only", "lens"])
def test_heads_that_are_shifted_are_found(name: str, letter: str) -> None:
    others: dict[str, Callable[[], nn.Module]] = {"attention-only": tiny_model, "lens": GroupedLens}
    model = others[name]() if name in others else KINDS[name].make()
    anatomy = rllc.anatomy(model)
    own = anatomy.attentions[1].map(letter)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"wrong for this model: (moving|multiplying) "):
        verify(model, changed(anatomy, **{letter: rolled(own)}))


@pytest.mark.parametrize("letter", ["q", "k", "v", "o"])
def test_heads_of_multihead_attention_that_are_shifted_are_found(letter: str) -> None:
    model = nn.MultiheadAttention(12, 3)
    anatomy = rllc.anatomy(model)
    own = anatomy.attentions[0].map(letter)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"wrong for this model: moving in_proj_weight\["):
        verify(model, changed(anatomy, 0, **{letter: rolled(own)}))


def test_the_axis_of_o_matters() -> None:
    model = KINDS["gpt2"].make()
    anatomy = rllc.anatomy(model)
    turned = replace(anatomy.attentions[1].o, axis=1)
    with pytest.raises(
        InputError, match=r"multiplying transformer.h.1.attn.c_proj.weight\[:, \d+:\d+\]"
    ):
        verify(model, changed(anatomy, o=turned))


# What verification needs, and leaves alone.


def no_change(model: nn.Module) -> nn.Module:
    return model


STATES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": no_change,
    "in training": lambda model: model.train(),
    "frozen": lambda model: model.requires_grad_(False),
    "in bfloat16": lambda model: model.bfloat16(),
    "in float64": lambda model: model.double(),
    "all zero": lambda model: (
        model.load_state_dict(
            {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        )
        and model
    ),
    "diverged": lambda model: (
        model.load_state_dict(
            {name: torch.full_like(value, torch.nan) for name, value in model.state_dict().items()}
        )
        and model
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "attention-only"])
def test_a_model_in_any_state_is_left_as_it_was(name: str, state: str) -> None:
    model = tiny_model() if name == "attention-only" else KINDS[name].make()
    STATES[state](model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with unchanged(model):
        heads = rllc.heads(model)
    assert len(heads) == {"gpt2": 6, "gemma2": 8, "attention-only": 6}[name]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_any_mode_of_gradients(context: Callable[[], Any]) -> None:
    model = KINDS["gpt_neox"].make()
    with context():
        assert len(rllc.heads(model)) == 6


def test_eager_attention() -> None:
    model = KINDS["gemma2"].make()
    model.set_attn_implementation("eager")
    assert len(rllc.heads(model)) == 8


def test_a_model_is_verified_once_and_not_kept_alive() -> None:
    model = KINDS["gpt2"].make()
    calls: list[int] = []
    model.transformer.h[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    rllc.heads(model)
    first = len(calls)
    assert first > 0
    rllc.heads(model)
    rllc.head("1:2").masks(model)
    assert len(calls) == first
    # With other shapes it is another model.
    model.transformer.h = model.transformer.h[:1]
    assert len(rllc.heads(model)) == 3
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_verification_counts_no_flops() -> None:
    with FlopCounterMode(display=False) as counter:
        rllc.heads(KINDS["gpt2"].make())
    assert counter.get_total_flops() == 0


def test_wrappers_add_nothing() -> None:
    model = KINDS["gpt2"].make()
    assert rllc.anatomy(nn.DataParallel(model)) == rllc.anatomy(model)


def test_an_adapted_copy_of_a_type_is_still_verified() -> None:
    """A type is a name, and code can differ: heads in reverse order in GPT-2's clothes."""
    model = KINDS["gpt2"].make()

    class Reversed(type(model.transformer.h[1].attn.c_attn)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = super().forward(x).split(24, -1)
            q = q.unflatten(-1, (3, 8)).flip(-2).flatten(-2)
            return torch.cat([q, k, v], -1)

    model.transformer.h[1].attn.c_attn.__class__ = Reversed
    Reversed.__name__ = "Conv1D"
    with pytest.raises(InputError, match=r"h\.1\.attn.*wrong for this model"):
        rllc.heads(model)


def test_weights_that_are_not_here_are_refused() -> None:
    config = KINDS["gpt2"].make().config
    with torch.device("meta"):
        model = KINDS["gpt2"].auto.from_config(config)
    with pytest.raises(InputError, match=r"on the meta device.*load it whole"):
        rllc.heads(model)


# A user's own row, and unknown types.


class Own(nn.Module):
    """Two heads of attention that no row is of."""

    def __init__(self, d_model: int = 8) -> None:
        super().__init__()
        self.to_q = nn.Linear(d_model, d_model)
        self.to_kv = nn.Linear(d_model, 2 * d_model)
        self.mix = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.to_kv(x).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (self.to_q(x), k, v))
        z = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.mix(z.transpose(1, 2).flatten(2))


class OwnModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.stages = nn.ModuleList(nn.ModuleDict({"attention": Own()}) for _ in range(2))

    def forward(self, tokens: Tensor, scale: float) -> Tensor:
        x = self.embed(tokens)
        for stage in self.stages:
            x = x + scale * stage["attention"](x)
        return x


OWN = rllc.AttentionRow(
    "stages.*.attention", q="to_q", k="to_kv", v="to_kv", o="mix", fused="side by side", heads=2
)


def test_a_row_of_ones_own() -> None:
    model = OwnModel()
    with pytest.raises(InputError, match=r"could not be run.*missing 1 required.*example=batch"):
        rllc.heads(model, anatomy=OWN)
    rllc.anatomy(model, OWN, example=(torch.tensor([[1, 2, 3, 4]]), 0.5))
    heads = rllc.heads(model, anatomy=OWN)
    assert [head.name for head in heads] == ["0:0", "0:1", "1:0", "1:1"]
    assert heads[3].count(model) == 4 * 8 * 4 + 3 * 4
    masks = heads[3].masks(model)
    values = masks["stages.1.attention.to_kv.weight"].all(1).nonzero().flatten().tolist()
    assert values == [4, 5, 6, 7, 12, 13, 14, 15]
    assert rllc.head("1:1", anatomy=OWN) == heads[3]
    assert "belongs to no head: stages.1.attention.mix.bias" in heads[3].describe(model)


def test_selections_with_rows_and_towers_are_values() -> None:
    group = rllc.heads(KINDS["qwen2"].make(), by="kv")[1]
    for weights in (rllc.head("1:0", anatomy=OWN), rllc.head("vision.0:1", kv="own"), group):
        copy = pickle.loads(pickle.dumps(weights))
        assert copy == weights
        assert hash(copy) == hash(weights)
    assert rllc.head("0:1", kv="own") != rllc.head("0:1")
    assert rllc.head("0:1", anatomy=OWN) != rllc.head("0:1")


def test_groups_and_own_heads_are_sampled() -> None:
    model = KINDS["qwen3"].make()
    tokens = rllc.Tokens(torch.randint(31, (8, 7), generator=torch.Generator().manual_seed(0)))
    weights = [rllc.head("0:1", kv="own"), *rllc.heads(model, by="kv")[2:]]
    draws = rllc.sample(model, tokens, weights, sampling=SHORT, compute=QUIET)
    assert draws.names.selections == ("0:1", "1:kv0", "1:kv1")
    assert np.isfinite(draws.loss).all()


def row_in(message: str) -> list[rllc.AttentionRow]:
    """The row that an error shows, pasted."""
    pasted = message[message.index("row = ") : message.index("rllc.heads(model, anatomy=row)")]
    names: dict[str, Any] = {"rllc": rllc}
    exec(pasted, names)
    return names["row"]


def test_an_unknown_type_shows_its_attention_and_a_row_that_can_be_pasted() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = KINDS["llama"].make()
            self.config = self.inner.config
            self.main_input_name = "input_ids"

        def forward(self, input_ids: Tensor) -> Any:
            return self.inner(input_ids=input_ids)

    model = Other()
    model.config.model_type = "lama"
    with pytest.raises(InputError) as caught:
        rllc.heads(model)
    message = str(caught.value)
    assert "no row for models of type 'lama'" in message
    assert "inner.model.layers.*.self_attn: LlamaAttention" in message
    assert "q_proj (32, 24)" in message
    assert "guessed from names, and verified by running the model" in message
    assert len(rllc.heads(model, anatomy=row_in(message))) == 8


UNKNOWN = {
    "gpt_oss": (Kind("gpt_oss", {**WIDE, "num_local_experts": 2, "num_experts_per_tok": 1}), ""),
    # Queries and keys are normalised over all heads together.
    "minimax_m2": (
        Kind("minimax_m2", {**WIDE, "num_local_experts": 2, "num_experts_per_tok": 1}),
        "mixed=('q', 'k')",
    ),
    # One key-value head, in the tensor of the queries.
    "gpt_bigcode": (
        plain(
            "gpt_bigcode",
            {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 3},
            kv_heads=1,
        ),
        "fused='side by side', kv_heads='num_key_value_heads'",
    ),
    "gpt_neox_japanese": (plain("gpt_neox_japanese", PLAIN), "fused='interleaved'"),
    # Two kinds of attention, of which one is no head's.
    "olmo_hybrid": (
        Kind(
            "olmo_hybrid",
            {
                **GROUPED,
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_value_heads": 2,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            layers=1,
        ),
        "    # rllc.AttentionRow('model.layers.*.linear_attn'",
    ),
    "esm": (
        plain("esm", {**PLAIN, "pad_token_id": 1}, auto=AutoModelForMaskedLM),
        "q='self.query'",
    ),
    # A tower, and a head of nn.MultiheadAttention on it.
    "siglip_vision_model": (
        plain("siglip_vision_model", IMAGES, auto=AutoModel),
        "q='attention.in_proj_weight attention.in_proj_bias'",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
@torch.no_grad()
def test_a_row_is_guessed_and_verified(name: str) -> None:
    """What is guessed is held against a run of the whole model: a head's queries are its own."""
    kind, text = UNKNOWN[name]
    model = kind.make()
    with pytest.raises(InputError, match="guessed from names, and verified") as caught:
        rllc.heads(model)
    assert text in str(caught.value)
    row = row_in(str(caught.value))
    anatomy = rllc.anatomy(model, row)
    attention = anatomy.attentions[-1] if kind.layers == 1 else anatomy.attentions[1]
    assert (attention.num_heads, attention.num_kv_heads) == (kind.heads, kind.kv_heads)
    heads = rllc.heads(model, anatomy=row, kv="own")
    randomise(model)
    with read_by_o(model, attention.o.weight.removesuffix(".weight")) as seen:
        run(model)
        base = seen[-1].unflatten(-1, (kind.heads, -1))
        for number, head_name in enumerate(attention.heads):
            (head,) = [head for head in heads if head.name == head_name]
            own = {n: mask for n, mask in head.masks(model).items() if n != attention.o.weight}
            with scaled(model, own, -1.0):
                run(model)
            moved = seen[-1].unflatten(-1, (kind.heads, -1))
            rises = (moved - base).abs().amax((0, 1, 3)) > 1e-4 * base.abs().max()
            assert rises.nonzero().flatten().tolist() == [number]


def test_an_attention_that_no_run_calls_is_said_to_be_one() -> None:
    settings = {**PLAIN, "encoder_layers": 1, "decoder_layers": 1, "d_model": 24}
    settings |= {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    model = Kind("bart", settings).make()
    with pytest.raises(InputError, match="guessed from names, and verified") as caught:
        rllc.heads(model)
    message = str(caught.value)
    assert "    # rllc.AttentionRow('model.decoder.layers.*.encoder_attn'" in message
    assert "(which a run of the model does not call)" in message
    assert len(rllc.heads(model, anatomy=row_in(message))) == 3


def test_what_is_no_attention_of_heads_is_not_verified() -> None:
    """Pairs of heads write together in a differential transformer."""
    model = Kind("diffllama", WIDE).make()
    with pytest.raises(InputError, match=r"As guessed.* changes what is passed on by head 0:1"):
        rllc.heads(model)


def test_what_cannot_be_guessed_is_left_open() -> None:
    model = OwnModel()
    with pytest.raises(InputError, match=r"stages\.\*\.attention: Own\n    to_q \(8, 8\)"):
        rllc.heads(model)
    with pytest.raises(InputError, match=r"q='to_q', k='…', v='…', o='…', heads=…"):
        rllc.heads(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rllc.heads(nn.Linear(2, 2)), r"no module of it looks like one"),
        (lambda: rllc.head("0:1", kv="none"), r"`kv` must be 'shared' or 'own'"),  # type: ignore[arg-type]
        (
            lambda: rllc.heads(KINDS["gpt2"].make(), by="layer"),  # type: ignore[arg-type]
            r"`by` must be 'head' or 'kv'",
        ),
        (
            lambda: rllc.heads(KINDS["gpt2"].make(), by="kv", kv="own"),
            r"with by='kv', which takes whole groups",
        ),
        (lambda: rllc.heads(OwnModel(), anatomy="gpt2"), r"expected an rllc.AttentionRow"),  # type: ignore[arg-type]
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, at="stage.*.attention")),
            r"no module of it is at 'stage\.\*\.attention'",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, q="to_Q")),
            r"names 'to_Q', and there is no such module or parameter; did you mean 'to_q'",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, fused="")),
            r"k and v are all in stages.0.attention.to_kv.weight, and the row does not say how",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, heads=3)),
            r"to_q.weight has 8 numbers along its heads, which are no 3 equal parts",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, heads="n_heads")),
            r"has the setting 'n_heads'.*write the number itself",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, heads=4, kv_heads=3)),
            r"4 heads cannot share 3 heads of keys",
        ),
        (
            lambda: rllc.heads(OwnModel(), anatomy=replace(OWN, at="stages", q="0")),
            r"'0' is ModuleDict; expected an nn.Linear",
        ),
        (lambda: replace(OWN, fused="stacked"), r"`fused` must be"),  # type: ignore[arg-type]
        (lambda: replace(OWN, heads=0), r"`heads` must be a number from 1 on"),
        (lambda: replace(OWN, at=""), r"`at` must be a text"),
        (
            lambda: rllc.anatomy(OwnModel(), OWN, example=[1]),
            r"`example` must be a tensor, a tuple",
        ),
        (
            lambda: rllc.anatomy(nn.ModuleList([OwnModel(), OwnModel()]), OWN),
            r"'stages\.\*\.attention' is both '0\.stages\.0\.attention' and",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        make()


def test_groups_that_are_not_there_are_refused() -> None:
    group = rllc.heads(KINDS["qwen2"].make(), by="kv")[3]
    with pytest.raises(InputError, match=r"has no group '1:kv1'; did you mean '1:kv0'"):
        group.masks(KINDS["falcon, multi-query"].make())


def test_quantised_weights_are_refused() -> None:
    model = OwnModel()
    weight = torch.zeros(8, 8, dtype=torch.int8)
    model.stages[0]["attention"].to_q.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(InputError, match=r"'to_q' is Linear; .*Quantised"):
        rllc.heads(model, anatomy=OWN)


def test_computed_weights_are_refused() -> None:
    model = OwnModel()
    nn.utils.parametrizations.weight_norm(model.stages[0]["attention"].to_q)
    with pytest.raises(InputError, match=r"is computed from other parameters"):
        rllc.heads(model, anatomy=OWN)


def test_an_attention_is_printed_by_its_slices() -> None:
    attention = rllc.anatomy(KINDS["gpt2"].make()).attentions[0]
    assert isinstance(attention, Attention)
    assert attention.k.written(1) == "transformer.h.0.attn.c_attn.weight[:, 32:40]"
    assert attention.v.slices(0)["transformer.h.0.attn.c_attn.bias"] == (slice(48, 56),)
