"""All runs of a layer at once, for any module: against one run after the other, and by name where
that is not done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from marks import quickly
from tiny import QUIET, tiny_model
from torch import Tensor, nn

import rllc
from rllc.data.minibatches import Minibatches
from rllc.engine.bind import bind
from rllc.engine.devices import _CPU_PASS, runs_that_fit
from rllc.engine.fused import fused_forwards
from rllc.engine.layout import center, groups
from rllc.engine.linear_deltas import LinearDeltas
from rllc.engine.module import ModuleLoss
from rllc.engine.vocabulary import Head, VocabularyLoss
from rllc.losses.by_name import classification, masked_lm, next_token, regression
from rllc.testing import check_loss, unchanged

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
    "falcon": ("FalconForCausalLM", "FalconConfig"),
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
    "whole maps": lambda: (
        made("llama", **GROUPED),
        [rllc.parameters("model.layers.1.mlp.*"), rllc.parameters("*.2.self_attn.?_proj.*")],
        None,
        tokens(),
    ),
    "maps of all layers": lambda: (
        made("gpt2", **OF_GPT2),
        [rllc.parameters("*.c_proj.*"), rllc.parameters("*.c_fc.*")],
        None,
        padded(),
    ),
    "weights chosen at random": lambda: (
        made("gpt2", **OF_GPT2),
        [at_random("transformer.h.1", seed) for seed in (0, 1)],
        None,
        tokens(),
    ),
    "a perceptron": lambda: (
        nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.ReLU(True), nn.Linear(7, 2)),
        [rllc.everything(), rows_of("2.weight", range(3)), columns_of("2.weight", range(2, 4))],
        regression,
        (torch.randn(4, 5), torch.randn(4, 2)),
    ),
    "a loss of one's own": lambda: (
        nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)),
        [rllc.everything(), rllc.parameters("2.bias")],
        where_positive,
        torch.randn(4, 5),
    ),
    "an encoder of torch": lambda: (
        Encoder(),
        [
            *(torch_head(layer, head) for layer in (0, 1) for head in (0, 3)),
            rows_of("encoder.layers.1.linear1.weight", range(4)),
            rllc.parameters("out.*"),
        ],
        None,
        tokens(),
    ),
    "attention of torch to what is not padding": lambda: (
        Attending(),
        [rllc.parameters("attention.in_proj_*"), rllc.parameters("attention.out_proj.weight")],
        squares,
        torch.randn(4, 3, 4),
    ),
    "a linear map of another class": lambda: (
        made("falcon", num_kv_heads=1),
        [rllc.parameters("transformer.h.1.self_attention.query_key_value.weight", index=slice(9))],
        None,
        tokens(),
    ),
    "a teacher": lambda: (
        made("gpt2", **OF_GPT2),
        pair(gpt2_head, 1),
        rllc.losses.distillation(made("llama")),
        tokens(),
    ),
    "double precision": lambda: (
        made("gpt2", **OF_GPT2).double(),
        pair(gpt2_head, 1),
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


class Encoder(nn.Module):
    """A causal model of torch's own blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        block = nn.TransformerEncoderLayer(D, HEADS, 20, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.out(self.encoder(self.embed(ids), mask, is_causal=True))


def torch_head(layer: int, head: int) -> rllc.Weights:
    attention = f"encoder.layers.{layer}.self_attn"
    own = range(head * WIDTH, (head + 1) * WIDTH)
    three = [part * D + number for part in range(3) for number in own]
    weights = rllc.parameters(f"{attention}.in_proj_weight", index=three)
    weights |= rllc.parameters(f"{attention}.in_proj_bias", index=three)
    return (weights | columns_of(f"{attention}.out_proj.weight", own)).named(f"{layer}:{head}")


class Attending(nn.Module):
    """Attention of torch that leaves some positions out, and gives its weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": True} | options)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[..., 0] > 1
        hidden[:, 0] = False
        y, weights = self.attention(x, x, x, key_padding_mask=hidden)
        return y.flatten(1) + weights.square().sum((1, 2))[:, None]


def squares(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).square().mean(1)


def at_random(block: str, seed: int) -> rllc.Weights:
    """As many weights of the same maps, in other columns."""
    stream = torch.Generator().manual_seed(seed)
    masks = {}
    for name, shape in {"attn.c_attn": (D, 3 * D), "mlp.c_fc": (D, 4 * D)}.items():
        mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=stream)[:200]] = True
        masks[f"{block}.{name}.weight"] = mask.view(shape)
    return rllc.masks(masks, f"random {seed}")


def where_positive(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return module(x).square(), torch.stack([x[:, 0] > 0, x[:, 0] < 9], 1)


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


FEW = ("gpt2", "llama", "bert", "whole maps", "a perceptron", "a teacher")


@pytest.mark.parametrize("case", quickly(FEW, CASES))
def test_runs_at_once_are_runs_in_turn(case: str) -> None:
    assert_equals_in_turn(*CASES[case]())


def test_heads_of_a_layer_share_what_lies_before_them() -> None:
    """Of Gemma 2 the third block, whose number decides what it attends to, and its capped head."""
    model, weights, _, batch = CASES["gemma2"]()
    bound = assert_equals_in_turn(model, weights[4:], None, batch)
    ((_, plan),) = bound.plans.values()
    assert {"model.layers.0", "model.layers.1"} <= set(plan.unmoved.modules)
    assert not any(name.startswith("model.layers.0.") for name in plan.unmoved.modules)
    assert len(plan.unmoved.maps) == 3
    assert (plan.head.name, plan.head.cap) == ("lm_head", 2.0)


def test_what_a_head_gets_is_computed_once_a_minibatch() -> None:
    model, weights, _, batch = CASES["gpt2"]()
    bound = bind(model, None)
    (group,) = groups([selection.masks(model) for selection in weights[2:]])
    at = bound.center(batch, 0)
    member, position = near(model, group, 4)

    def evaluate() -> None:
        bound.runs(group, member, position, at, batch, gradient=True, each=False)

    evaluate()
    evaluate()  # and one run alone, to compare
    calls: list[str] = []
    for name, module in bound.model.named_modules():
        module.register_forward_hook(lambda m, args, y, name=name: calls.append((name, y)))
    evaluate()
    called = dict(calls)
    assert called["transformer.h.1"].shape == (4 * len(batch), T, D)
    assert not any(name.startswith("transformer.h.1.") for name in called)
    assert called["lm_head"].shape[-1] == 1  # no logits


def test_runs_in_parts_are_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    worthwhile = set()

    def two_fit(num_bytes: int, device: torch.device, runs: int) -> int:
        sizes.append(num_bytes)
        worthwhile.add(runs)
        return 2

    monkeypatch.setattr("rllc.engine.linear_deltas.runs_that_fit", two_fit)
    assert_equals_in_turn(*CASES["gpt2"]())
    # Activations before the backward pass: fewer behind the last layer than behind the first.
    assert sizes[0] > 2 * sizes[-1] > 0
    # So many runs of these rows are a tile of the sweep over the vocabulary.
    assert max(worthwhile) > 1


def test_a_pass_takes_more_memory_where_that_is_worthwhile() -> None:
    device = torch.device("cpu")
    beyond = 2 * _CPU_PASS
    assert runs_that_fit(beyond, device) == 1
    assert runs_that_fit(beyond, device, worthwhile=3) == 3
    # But not more than there is.
    assert runs_that_fit(2**60, device, worthwhile=3) == 1


def test_a_gelu_in_one_operation_is_the_one_in_eight() -> None:
    activation = transformers.activations.NewGELUActivation()
    model = nn.Sequential(nn.Linear(3, 3), activation, nn.GELU())
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    ((name, fused),) = fused_forwards(model).items()
    assert name == "1"
    torch.testing.assert_close(fused(x), activation(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_one_sweep_over_the_vocabulary_is_autograd(
    cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.engine.vocabulary.CPU_POSITIONS", 4)
    monkeypatch.setattr("rllc.engine.vocabulary._CPU_TILE", 6)
    head = Head("", 0.5, cap)
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    W = 3 * torch.randn(20, 5, dtype=torch.float64)
    b = torch.randn(20, dtype=torch.float64) if bias else None
    ids = torch.randint(20, (7,))
    logits = head.logits(nn.functional.linear(hidden, W, b))
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids.repeat(3), reduction="none"
    ).view(3, 7)
    weights = torch.tensor([1.0, 2.0, -1.0])
    (expected,) = torch.autograd.grad((losses.mean(1) * weights).sum(), hidden)
    means, each = VocabularyLoss.apply(hidden, W, b, ids, head, None)
    (found,) = torch.autograd.grad((means * weights).sum(), hidden)
    assert torch.allclose(each, losses.detach(), atol=1e-12)
    assert torch.allclose(means, losses.mean(1), atol=1e-12)
    assert torch.allclose(found, expected, atol=1e-12)


# Whole samplings.


def test_chains_are_those_of_runs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights, _, _ = CASES["llama"]()
    named = {f"{i}": selection for i, selection in enumerate(weights)}

    def draws() -> rllc.Draws:
        return rllc.sample(model, tokens(8), named, sampling=SHORT, compute=QUIET)

    together = draws()
    monkeypatch.setattr("rllc.engine.linear_deltas.plan_of", lambda *args: "it is off")
    in_turn = draws()
    assert together.settings["ambient"]["evaluation"] == AT_ONCE
    assert in_turn.settings["ambient"]["evaluation"] == "run by run: because it is off"
    assert abs(together.loss - in_turn.loss).max() < 1e-5
    assert abs(together.loss - together.baseline).max() > 1e-3
    assert abs(together.baseline - in_turn.baseline).max() == 0


def test_the_model_is_left_as_it_was() -> None:
    model, weights, _, batch = CASES["qwen2"]()
    before = [dict(vars(module)) for module in model.modules()]
    assert_equals_in_turn(model, weights, None, batch)
    with unchanged(model):
        rllc.sample(model, tokens(8), weights[0], sampling=SHORT, compute=QUIET)
    for module, own in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == own.keys()
        assert not module._forward_hooks


@pytest.mark.slow
def test_threads_do_not_disturb_one_another() -> None:
    model, weights, _, _ = CASES["gpt2"]()

    def draw(number: int) -> Any:
        sampling = SHORT if number % 2 else rllc.Sampling(**vars(SHORT) | {"num_draws": 6})
        draws = rllc.sample(model, tokens(8), weights[number % 3], sampling=sampling, compute=QUIET)
        return draws.loss[:, :, :4]

    expected = [draw(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, range(4)))
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other).max() < 1e-6


def test_products_of_bfloat16() -> None:
    model, weights, _, _ = CASES["gpt2"]()
    found = {}
    for autocast in (None, "bfloat16"):
        sampling = rllc.Sampling(**vars(SHORT) | {"autocast": autocast})
        draws = rllc.sample(model, tokens(8), weights[1], sampling=sampling, compute=QUIET)
        assert draws.settings["ambient"]["evaluation"] == AT_ONCE
        found[autocast] = draws.loss
    assert 1e-6 < abs(found["bfloat16"] - found[None]).max() < 0.05


def test_a_loss_passes_the_check_for_people_who_extend_rllc() -> None:
    model, weights, loss, batch = CASES["a perceptron"]()
    model[3] = nn.Softplus()  # a kink has no slope
    check_loss(model, loss, batch, weights[1])


def test_the_progress_bar_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    model, weights, _, _ = CASES["gpt2"]()
    rllc.sample(model, tokens(8), weights[0], sampling=SHORT)
    shown = capsys.readouterr().err
    # Half of the time of a few steps goes before the first of them.
    assert 0 < shown.index("preparing: checks, and how runs are evaluated") < shown.index(AT_ONCE)
    rllc.sample(model, tokens(8), rllc.parameters("*.ln_f.*"), sampling=SHORT)
    assert "run by run: because" in capsys.readouterr().err


# What is evaluated run by run, by name.


class Two(nn.Module):
    """Two maps, of which something is asked that cannot be done for all runs at once."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.norm, self.calls = nn.BatchNorm1d(5), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.second(m.first(x).tanh())


def replaced_forward() -> nn.Module:
    model = Two(plain)
    own = model.first.forward
    model.first.forward = lambda x: own(x)
    return model


def hooked(hook: Callable[..., Any]) -> nn.Module:
    model = Two(plain)
    model.second.register_forward_hook(hook)
    return model


def parametrised() -> nn.Module:
    model = Two(plain)
    nn.utils.parametrizations.weight_norm(model.first)
    return model


def routed(m: Any, x: Tensor) -> Tensor:
    """Rows go to one of two experts."""
    to_second = m.first(x).sum(1) > x.sum(1)
    y = torch.zeros_like(x)
    y[to_second] = m.second(x[to_second])
    return y


def columns_first(m: Any, x: Tensor) -> Tensor:
    return m.second(m.first(x[:, None].transpose(0, 1)).tanh()).transpose(0, 1)[:, 0]


class Crossing(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x.flip(1), x)[0].flatten(1)


class Tripled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def tripled() -> nn.Module:
    model = Two(plain)
    model.first = Tripled(5, 5)
    return model


def contrasted(module: nn.Module, x: Tensor) -> Tensor:
    """How much each row differs from the mean of all."""
    y = module(x)
    return (y - y.mean(0)).square().mean(1)


NO_MAP = "is no weight or bias of a plain linear map"
OTHERS = "together runs give other numbers than in turn"
FIRST = "first.weight"
IN_TURN: dict[str, tuple[Callable[[], nn.Module], str, Any, str]] = {
    "a norm": (lambda: Two(lambda m, x: m.norm(plain(m, x))), "norm.weight", squares, NO_MAP),
    "a linear map that is none": (tripled, FIRST, squares, NO_MAP),
    "a parametrised map": (parametrised, "first.*", squares, NO_MAP),
    "a replaced forward": (replaced_forward, FIRST, squares, "has been replaced"),
    "weights used directly": (
        lambda: Two(lambda m, x: m.second(x @ m.first.weight)),
        FIRST,
        squares,
        "is not called",
    ),
    "weights used twice": (
        lambda: Two(lambda m, x: m.second(m.first(x) @ m.first.weight)),
        FIRST,
        squares,
        OTHERS,
    ),
    "a hook that counts rows": (
        lambda: hooked(lambda module, args, y: y / len(y)),
        FIRST,
        squares,
        OTHERS,
    ),
    "rows that are compared": (lambda: Two(plain), FIRST, contrasted, OTHERS),
    "rows that come second": (lambda: Two(columns_first), FIRST, squares, "not row by row"),
    "experts": (lambda: Two(routed), "[fs]*.weight", squares, "not row by row"),
    "attention to more": (
        lambda: Attending(add_zero_attn=True),
        "attention.in_proj_weight",
        squares,
        "it attends to more than it is given",
    ),
    "attention to something else": (
        lambda: Crossing(),
        "attention.in_proj_weight",
        squares,
        "attends to something else than its input",
    ),
}


@pytest.mark.parametrize("case", IN_TURN)
def test_others_are_evaluated_run_by_run(case: str) -> None:
    make, pattern, loss, reason = IN_TURN[case]
    model = make()
    x = torch.randn(4, 3, 4) if isinstance(model, Attending) else torch.randn(7, 5)
    bound = assert_equals_in_turn(model, [rllc.parameters(pattern)], loss, x, reason)
    ((group, _),) = bound.plans.values()
    assert bound.way(group).startswith("run by run: because")


def clipped(module: nn.Module, x: Tensor) -> Tensor:
    """Rows are mixed only past a threshold, which chains may pass after some steps."""
    losses = squares(module, x)
    return torch.minimum(losses, 1.1 * losses.mean())


def mixed_where_small(module: nn.Module, x: Tensor) -> Tensor:
    """Rows are mixed only in some minibatches."""
    losses = squares(module, x)
    return losses if float(x.max()) > 6 else losses + losses.mean()


def test_a_loss_that_mixes_rows_past_a_threshold_is_evaluated_run_by_run() -> None:
    """Rows are alike, so that those near w* are all below the threshold."""
    model = Two(plain)
    x = torch.ones(4, 5) + 0.01 * torch.randn(4, 5)
    assert_equals_in_turn(model, [rllc.parameters(FIRST)], clipped, x, OTHERS)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_a_loss_that_mixes_rows_later_on_is_noticed(autocast: str | None) -> None:
    model, x = Two(plain), torch.randn(6, 5)
    weights = rllc.parameters(FIRST)
    options = {"loss": mixed_where_small, "sampler": rllc.sgld(lr=1e-3, localization=10.0)}
    options["sampling"] = rllc.Sampling(
        **vars(SHORT) | {"autocast": autocast, "num_draws": 30, "batch_size": 1}
    )
    # The first row that is sampled on, where runs are first compared, is the only large one.
    x[Minibatches(len(x), 1, SHORT.seed)[0]] += 12
    with pytest.raises(rllc.InputError, match=r"mix rows .* Pass .*runs_per_pass=1") as caught:
        rllc.sample(model, x, weights, compute=QUIET, **options)
    assert "in a pass of 2 runs one has the loss" in str(caught.value)
    alone = rllc.Compute(runs_per_pass=1, progress=False)
    draws = rllc.sample(model, x, weights, compute=alone, **options)
    assert draws.settings["ambient"]["evaluation"] == AT_ONCE


def test_one_run_that_diverged_does_not_reach_the_others() -> None:
    """A mean over all runs would be NaN for all of them."""

    def mixing(module: nn.Module, x: Tensor) -> Tensor:
        losses = squares(module, x)
        return losses + 0 * (losses - losses.clamp(max=1e30)).mean()

    model, x = Two(plain), torch.randn(4, 5)
    bound = bind(model, mixing)
    (group,) = groups([rllc.parameters("second.*").masks(model)])
    at = bound.center(x, 0)
    member, position = near(model, group, 3)
    asked = {"gradient": True, "each": False}
    for _ in range(3):
        bound.runs(group, member, position, at, x, **asked)
    position[2] = torch.inf
    with pytest.raises(rllc.InputError, match="one has the loss nan, but alone it has"):
        bound.runs(group, member, position, at, x, **asked)


def test_an_embedding_and_tied_weights_are_evaluated_run_by_run() -> None:
    model = made("llama")
    assert_equals_in_turn(model, [rllc.parameters("*embed*")], None, tokens(), NO_MAP)
    model = made("gpt2", **OF_GPT2)
    also = "transformer.wte.weight is also lm_head.weight"
    assert_equals_in_turn(model, [rllc.parameters("*.wte.*")], None, tokens(), also)


def test_weights_of_half_precision_are_evaluated_run_by_run() -> None:
    model = made("gpt2", **OF_GPT2).bfloat16()
    bound = bind(model, None)
    (group,) = groups([gpt2_head(0, 1).masks(model)])
    member, position = near(model, group, 2)
    at = bound.center(tokens(), 0)
    bound.runs(group, member, position, at, tokens(), gradient=True, each=False)
    assert bound.way(group) == "run by run: because weights are of torch.bfloat16"


def test_training_mode_that_couples_rows_or_draws_is_evaluated_run_by_run() -> None:
    coupled = Two(lambda m, x: m.norm(plain(m, x)))
    drawing = Two(lambda m, x: nn.functional.dropout(plain(m, x), 0.5, m.training))
    for model, reason in ((coupled, OTHERS), (drawing, "draws random numbers")):
        sampling = rllc.Sampling(**vars(SHORT) | {"train_mode": True})
        weights = rllc.parameters(FIRST)
        x = torch.randn(8, 5)
        draws = rllc.sample(model, x, weights, loss=squares, sampling=sampling, compute=QUIET)
        assert reason in draws.settings["ambient"]["evaluation"]


def test_a_loss_that_draws_where_gradients_are_wanted_leaves_the_random_state() -> None:
    def drawing(module: nn.Module, x: Tensor) -> Tensor:
        losses = squares(module, x)
        return losses + 0 * torch.rand(1) if losses.requires_grad else losses

    model, x = Two(plain), torch.randn(8, 5)
    with unchanged(model):
        weights = rllc.parameters(FIRST)
        draws = rllc.sample(model, x, weights, loss=drawing, sampling=SHORT, compute=QUIET)
    assert "draws random numbers" in draws.settings["ambient"]["evaluation"]


def test_a_model_that_calls_a_part_more_often_later_on() -> None:
    """Its first rows are those of a trial."""

    def again_if_large(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        if float(x.max()) > 10:
            y = m.first(y)
        return m.second(y.tanh())

    model, small, large = Two(again_if_large), torch.randn(4, 5), torch.randn(4, 5)
    large[3, 0] = 20
    weights = [rllc.parameters("second.weight")]
    assert_equals_in_turn(model, weights, squares, small)
    assert_equals_in_turn(model, weights, squares, large, "is not called equally often")


def test_small_models_are_stacked_and_compiled_ones_run_by_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 1e12)
    model, weights, loss, batch = CASES["a perceptron"]()
    assert_equals_in_turn(model, weights, loss, batch, "stacked")
    assert isinstance(bind(model, loss, compile=True), ModuleLoss)


def test_the_two_layer_model_has_a_way_of_its_own() -> None:
    model = tiny_model()
    draws = rllc.sample(model, torch.randint(11, (8, 7)), "0:1", sampling=SHORT, compute=QUIET)
    assert draws.settings["ambient"]["evaluation"] == AT_ONCE
    assert not isinstance(bind(model, next_token), LinearDeltas)
