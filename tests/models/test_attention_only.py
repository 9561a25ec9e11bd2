"""The model: against TransformerLens, against a slow forward, and as a transformers model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import rllc
from rllc.engine.layout import Moved
from rllc.errors import InputError
from rllc.models.attention_only import HEAD_TENSORS, AttentionOnly, AttentionOnlyConfig
from rllc.models.config import sinusoids

FIXTURE = Path(__file__).parents[1] / "fixtures" / "transformer_lens.safetensors"
SIZES = {"n_layers": 3, "d_model": 10, "n_heads": 3, "d_head": 4, "n_ctx": 9, "d_vocab": 13}
BOTH = pytest.mark.parametrize("positions", ["shortformer", "standard"])
Z = 5.7
"""Standard errors of a bound: a false alarm in 10⁸."""


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random_model(dtype: torch.dtype = torch.float64, **changes) -> AttentionOnly:
    """Every parameter random, biases and LayerNorm scales too."""
    model = AttentionOnly(AttentionOnlyConfig(**SIZES | changes)).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, dtype=dtype)
    return model


def random_tokens(batch: int = 4, pos: int = 7) -> Tensor:
    return torch.randint(SIZES["d_vocab"], (batch, pos))


# Against TransformerLens, and against a slow forward.


@BOTH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_against_transformer_lens(positions, attention):
    with safe_open(FIXTURE, "pt") as file:
        settings = json.loads(file.metadata()["json"])[positions]
        names = [name for name in file.keys() if name.startswith(f"{positions}/")]  # noqa: SIM118
        stored = {name.removeprefix(f"{positions}/"): file.get_tensor(name) for name in names}
    fields = (*SIZES, "positions", "layer_norm_eps")
    config = AttentionOnlyConfig(**{name: settings[name] for name in fields})
    model = AttentionOnly._from_config(config, attn_implementation=attention)
    weights = {}
    for name, tensor in stored.items():
        if name.startswith("weights/"):
            weights[name.removeprefix("weights/")] = tensor
    assert set(weights) == {name for name, _ in model.named_parameters()}
    model.load_state_dict(weights)
    rows = stored["tokens"].long()
    with torch.no_grad():
        logits = model(rows).logits
        attentions = model(rows, output_attentions=True).attentions
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, stored["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack(attentions), stored["pattern"], atol=1e-5, rtol=0)


def slow_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + eps).sqrt() * w + b


def slow_head(
    inputs: list[Tensor], values: list[Tensor], weights: dict[str, Tensor]
) -> list[Tensor]:
    """What one head writes, one query at a time.

    Args:
        inputs: of Q and K, one ``[d_model]`` a position.
        values: inputs of V.
        weights: the head's slice of each tensor.
    """
    q = [x @ weights["W_Q"] + weights["b_Q"] for x in inputs]
    k = [x @ weights["W_K"] + weights["b_K"] for x in inputs]
    v = [x @ weights["W_V"] + weights["b_V"] for x in values]
    written = []
    for query, x in enumerate(q):
        keys = range(query + 1)
        scores = torch.stack([x @ k[key] / math.sqrt(len(x)) for key in keys])
        attention = scores.exp() / scores.exp().sum()
        z = sum(attention[key] * v[key] for key in keys)
        written.append(z @ weights["W_O"])
    return written


def slow_logits(model: AttentionOnly, row: Tensor) -> Tensor:
    """The forward as the paper defines it, head by head: ``[pos, vocab]``."""
    config = model.config
    state = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return slow_norm(x, state[f"{name}.w"], state[f"{name}.b"], config.layer_norm_eps)

    positions = state["pos_embed.W_pos"][: len(row)]
    residual = [state["embed.W_E"][token] for token in row]
    if config.positions == "standard":
        residual = [x + p for x, p in zip(residual, positions, strict=True)]
    for layer in range(config.n_layers):
        attn = f"blocks.{layer}.attn."
        values = [norm(x, f"blocks.{layer}.ln1") for x in residual]
        inputs = values
        if config.positions == "shortformer":
            inputs = [x + p for x, p in zip(values, positions, strict=True)]
        residual = [x + state[f"{attn}b_O"] for x in residual]
        for head in range(config.n_heads):
            weights = {tensor: state[attn + tensor][head] for tensor in HEAD_TENSORS}
            written = slow_head(inputs, values, weights)
            residual = [x + y for x, y in zip(residual, written, strict=True)]
    hidden = torch.stack([norm(x, "ln_final") for x in residual])
    return hidden @ state["unembed.W_U"] + state["unembed.b_U"]


@BOTH
def test_against_a_slow_forward(positions):
    model = random_model(positions=positions)
    rows = random_tokens()
    for row, logits in zip(rows, model(rows).logits, strict=True):
        torch.testing.assert_close(logits, slow_logits(model, row), atol=1e-11, rtol=0)


@BOTH
def test_eager_attention_is_the_same_and_differentiates_twice(positions):
    model = random_model(positions=positions)
    rows = random_tokens()
    logits = model(rows).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(rows).logits, logits, atol=1e-12, rtol=0)
    attn = model.blocks[0].attn
    loss = model(rows, labels=rows).loss
    (gradient,) = torch.autograd.grad(loss, attn.W_Q, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), attn.W_K)
    assert torch.isfinite(second).all()


# Parameters and how they start.


def test_numbers_of_parameters():
    paper = AttentionOnly(AttentionOnlyConfig())
    assert sum(parameter.numel() for parameter in paper.parameters()) == 3_355_016
    assert paper.num_parameters() == 3_355_016
    assert AttentionOnly(AttentionOnlyConfig(n_layers=1)).num_parameters() == 3_091_336
    head = [paper.get_parameter(f"blocks.1.attn.{tensor}")[6] for tensor in HEAD_TENSORS]
    assert sum(tensor.numel() for tensor in head) == 32_864
    assert dict(paper.named_buffers()) == {}


def test_names_and_shapes_are_transformer_lens_s():
    model = AttentionOnly(AttentionOnlyConfig(**SIZES | {"n_layers": 1}))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "embed.W_E": (13, 10),
        "pos_embed.W_pos": (9, 10),
        "blocks.0.ln1.w": (10,),
        "blocks.0.ln1.b": (10,),
        "blocks.0.attn.W_Q": (3, 10, 4),
        "blocks.0.attn.W_K": (3, 10, 4),
        "blocks.0.attn.W_V": (3, 10, 4),
        "blocks.0.attn.W_O": (3, 4, 10),
        "blocks.0.attn.b_Q": (3, 4),
        "blocks.0.attn.b_K": (3, 4),
        "blocks.0.attn.b_V": (3, 4),
        "blocks.0.attn.b_O": (10,),
        "ln_final.w": (10,),
        "ln_final.b": (10,),
        "unembed.W_U": (10, 13),
        "unembed.b_U": (13,),
    }


def assert_standard_deviation(tensor: Tensor, sigma: float, name: str) -> None:
    """The standard deviation of n normal numbers has standard error σ/√(2n)."""
    standard_error = sigma / math.sqrt(2 * tensor.numel())
    assert abs(tensor.std().item() - sigma) < Z * standard_error, name


def test_initialisation():
    model = AttentionOnly(AttentionOnlyConfig())
    sigma = 0.8 / math.sqrt(256)
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[1]
        if last.startswith("W_"):
            assert_standard_deviation(parameter, sigma, name)
            standard_error = sigma / math.sqrt(parameter.numel())
            assert abs(parameter.mean().item()) < Z * standard_error, name
        else:
            assert (parameter == (1.0 if last == "w" else 0.0)).all(), name
    wider = AttentionOnly(AttentionOnlyConfig(init_scale=8.0))
    assert wider.embed.W_E.std() > 9 * model.embed.W_E.std()


def test_torchs_seed_decides_the_start():
    config = AttentionOnlyConfig(**SIZES)
    torch.manual_seed(3)
    first = AttentionOnly(config).embed.W_E
    second = AttentionOnly(config).embed.W_E
    torch.manual_seed(3)
    again = AttentionOnly(config).embed.W_E
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_sinusoids_are_rotated_by_a_shift():
    """sin(a + b) and cos(a + b) are linear in sin(a), cos(a): one matrix shifts every position."""
    table = sinusoids(64, 16).double()
    shift, *_ = torch.linalg.lstsq(table[:-1], table[1:])
    torch.testing.assert_close(table[:-1] @ shift, table[1:], atol=1e-4, rtol=0)
    sines = table[:, :8]
    cosines = table[:, 8:]
    ones = torch.ones(64, 8).double()
    torch.testing.assert_close(sines**2 + cosines**2, ones, atol=1e-5, rtol=0)
    # The first period is 2.5 positions, the last half the context.
    begin = torch.tensor([0.0, 1.0]).double()
    torch.testing.assert_close(table[5, [0, 8]], begin, atol=1e-4, rtol=0)
    torch.testing.assert_close(table[32, [7, 15]], begin, atol=1e-4, rtol=0)


def test_a_start_of_another_kind():
    config = AttentionOnlyConfig(
        n_layers=3, init_positions="sinusoidal", init_embedding=0.5, init_late_qk=0.3
    )
    model = AttentionOnly(config)
    assert torch.equal(model.pos_embed.W_pos, sinusoids(1024, 256))
    usual = 0.8 / math.sqrt(256)
    expected = {"embed.W_E": 0.5, "unembed.W_U": usual}
    for layer in range(3):
        for letter in "QKVO":
            factor = 0.3 if layer > 0 and letter in "QK" else 1.0
            expected[f"blocks.{layer}.attn.W_{letter}"] = factor * usual
    for name, sigma in expected.items():
        assert_standard_deviation(model.get_parameter(name), sigma, name)


def test_a_start_of_another_kind_is_loaded_as_it_is(tmp_path):
    model = AttentionOnly(AttentionOnlyConfig.fast(d_model=16, d_head=2, n_ctx=8, d_vocab=12))
    model.save_pretrained(tmp_path)
    for loaded in (rllc.load(tmp_path), AttentionOnly.from_pretrained(tmp_path)):
        assert loaded.config.init_embedding == 0.5
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_configuration_without_a_start_has_the_usual_one(tmp_path):
    AttentionOnly(AttentionOnlyConfig(**SIZES)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for name in ("init_positions", "init_embedding", "init_late_qk"):
        del fields[name]
    path.write_text(json.dumps(fields))
    config = rllc.load(tmp_path).config
    assert config.init_positions == "normal"
    assert config.init_embedding is None
    assert config.init_late_qk == 1


# Properties.


@BOTH
def test_future_tokens_have_no_influence(positions):
    model = random_model(positions=positions)
    rows = random_tokens()
    logits = model(rows).logits
    for pos in range(1, rows.shape[1]):
        changed = rows.clone()
        changed[:, pos:] = (changed[:, pos:] + 1) % SIZES["d_vocab"]
        other = model(changed).logits
        torch.testing.assert_close(other[:, :pos], logits[:, :pos], atol=1e-12, rtol=0)
        assert (other[:, pos:] - logits[:, pos:]).abs().amax(-1).min() > 1e-6
        cut = model(rows[:, :pos]).logits
        torch.testing.assert_close(cut, logits[:, :pos], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("positions", "matters"), [("shortformer", False), ("standard", True)])
def test_shortformer_positions_reach_only_queries_and_keys(positions, matters):
    """With Q and K zero attention is even, and then positions must not matter."""
    model = random_model(positions=positions)
    rows = random_tokens()
    for block in model.blocks:
        block.attn.W_Q.data.zero_()
        block.attn.b_Q.data.zero_()
    logits = model(rows).logits
    model.pos_embed.W_pos.data.normal_()
    change = (model(rows).logits - logits).abs().max()
    assert (change > 1e-6) == matters


def test_attentions_are_causal_distributions():
    model = random_model()
    rows = random_tokens()
    attentions = model(rows, output_attentions=True).attentions
    assert len(attentions) == 3
    for pattern in attentions:
        assert pattern.shape == (4, 3, 7, 7)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(4, 3, 7, dtype=pattern.dtype))
        assert (pattern.triu(1) == 0).all()
        assert (pattern.tril() >= 0).all()
    assert model(rows).attentions is None


def test_hidden_states_are_the_residual_stream():
    model = random_model()
    rows = random_tokens()
    states = model(rows, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(4, 7, 10)] * 4
    torch.testing.assert_close(states[0], model.embed.W_E[rows])
    hidden = F.layer_norm(states[-1], (10,), model.ln_final.w, model.ln_final.b, 1e-5)
    logits = hidden @ model.unembed.W_U + model.unembed.b_U
    torch.testing.assert_close(logits, model(rows).logits)


def test_loss_is_the_next_token_cross_entropy():
    model = random_model()
    rows = random_tokens()
    output = model(rows, labels=rows)
    log_p = output.logits[:, :-1].log_softmax(-1)
    losses = -log_p.gather(-1, rows[:, 1:, None])[..., 0]  # [batch, pos]
    torch.testing.assert_close(output.loss.double(), losses.mean(), atol=1e-6, rtol=0)
    assert model(rows).loss is None
    labels = rows.clone()
    labels[:, 3] = -100
    scored = losses[:, [0, 1, 3, 4, 5]]
    loss = model(rows, labels=labels).loss
    torch.testing.assert_close(loss.double(), scored.mean(), atol=1e-6, rtol=0)


def test_outputs_as_a_tuple():
    model = random_model()
    rows = random_tokens()
    loss, logits = model(rows, labels=rows, return_dict=False)
    assert torch.equal(loss, model(rows, labels=rows).loss)
    assert torch.equal(logits, model(rows).logits)


# Runs: many models in one forward.


def move_heads(
    model: AttentionOnly,
    layer: int,
    heads: list[list[int]],
    tensors: Sequence[str] = HEAD_TENSORS,
) -> dict[str, Moved]:
    """Each run moves its own heads of one layer."""
    rows = torch.tensor(heads)
    moved = {}
    for tensor in tensors:
        name = f"blocks.{layer}.attn.{tensor}"
        weight = model.get_parameter(name).detach()[rows]
        moved[name] = Moved(weight + 0.3 * torch.randn_like(weight), rows)
    return moved


def move_whole(model: AttentionOnly, names: Sequence[str], runs: int = 2) -> dict[str, Moved]:
    """Each run moves all of these parameters."""
    moved = {}
    for name in names:
        weight = model.get_parameter(name).detach()
        noise = torch.randn(runs, *weight.shape, dtype=weight.dtype)
        moved[name] = Moved(weight + 0.3 * noise, None)
    return moved


def move_block(model: AttentionOnly) -> dict[str, Moved]:
    names = [name for name, _ in model.named_parameters()]
    return move_whole(model, [name for name in names if name.startswith("blocks.1.")])


def move_all_but_unembedding(model: AttentionOnly) -> dict[str, Moved]:
    names = [name for name, _ in model.named_parameters()]
    return move_whole(model, [name for name in names if not name.startswith("unembed")])


def move_rows_of_embedding(model: AttentionOnly) -> dict[str, Moved]:
    rows = torch.tensor([[1, 5, 3], [0, 2, 12]])
    return {"embed.W_E": Moved(torch.randn(2, 3, 10, dtype=torch.float64), rows)}


def move_queries_and_norm(model: AttentionOnly) -> dict[str, Moved]:
    return move_heads(model, 1, [[0], [2]], ["W_Q"]) | move_whole(model, ["blocks.1.ln1.b"])


def move_different_heads(model: AttentionOnly) -> dict[str, Moved]:
    queries = move_heads(model, 1, [[0], [2]], ["W_Q"])
    return queries | move_heads(model, 1, [[1], [2]], ["W_V"])


SELECTIONS = {
    "one head a run": lambda model: move_heads(model, 1, [[0], [2], [1], [2]]),
    "a head of the first layer": lambda model: move_heads(model, 0, [[1], [0]]),
    "a head of the last layer": lambda model: move_heads(model, 2, [[1], [0]]),
    "two heads a run": lambda model: move_heads(model, 1, [[0, 2], [2, 1]]),
    "a part of a head": lambda model: move_heads(model, 1, [[0], [2]], ["W_Q", "b_V"]),
    "a head's output": lambda model: move_heads(model, 0, [[0], [2]], ["W_O"]),
    "a single run": lambda model: move_heads(model, 1, [[1]]),
    "heads of two layers": lambda model: (
        move_heads(model, 0, [[0], [1]]) | move_heads(model, 2, [[2], [1]])
    ),
    "a whole block": move_block,
    "queries and a norm": move_queries_and_norm,
    "rows that differ": move_different_heads,
    "a norm": lambda model: move_whole(model, ["blocks.1.ln1.w"]),
    "b_O": lambda model: move_whole(model, ["blocks.1.attn.b_O"]),
    "the last norm": lambda model: move_whole(model, ["ln_final.w", "ln_final.b"]),
    "the last norm's bias": lambda model: move_whole(model, ["ln_final.b"], runs=3),
    "embeddings": lambda model: move_whole(model, ["embed.W_E"]),
    "some embeddings": move_rows_of_embedding,
    "positions": lambda model: move_whole(model, ["pos_embed.W_pos"]),
    "everything before the unembedding": move_all_but_unembedding,
}


def model_of_run(model: AttentionOnly, moved: dict[str, Moved], run: int) -> AttentionOnly:
    """A model of its own with the weights of one run."""
    alone = AttentionOnly(model.config).double().eval()
    alone.load_state_dict(model.state_dict())
    for name, (block, rows) in moved.items():
        weight = alone.get_parameter(name).data
        if rows is None:
            weight.copy_(block[run].detach())
        else:
            weight[rows[run]] = block[run].detach()
    return alone


@BOTH
@pytest.mark.parametrize("selection", SELECTIONS)
def test_runs_equal_a_loop_of_models(positions, selection):
    """`hidden` with a run axis, and its gradient, against one model a run."""
    model = random_model(positions=positions)
    rows = random_tokens(batch=3, pos=5)
    moved = SELECTIONS[selection](model)
    for block, _ in moved.values():
        block.requires_grad_()
    with torch.no_grad():
        at = model.activations(rows)
    hidden = model.hidden(moved, at)
    num_runs = max(len(block) for block, _ in moved.values())
    assert hidden.shape == (num_runs, 3, 5, 10)
    probe = torch.randn(hidden.shape[1:], dtype=hidden.dtype)
    blocks = [block for block, _ in moved.values()]
    gradients = torch.autograd.grad((hidden * probe).sum(), blocks)
    for run in range(num_runs):
        alone = model_of_run(model, moved, run)
        residual = alone(rows, output_hidden_states=True).hidden_states[-1]
        expected = alone.normalise("ln_final", residual[None], {})[0]
        torch.testing.assert_close(hidden[run], expected, atol=1e-11, rtol=0)
        parameters = [alone.get_parameter(name) for name in moved]
        slow = torch.autograd.grad((expected * probe).sum(), parameters)
        for gradient, (_, index), of_run in zip(gradients, moved.values(), slow, strict=True):
            if index is not None:
                of_run = of_run[index[run]]
            torch.testing.assert_close(gradient[run], of_run, atol=1e-10, rtol=0)


def test_nothing_moved_is_the_model_itself():
    model = random_model()
    rows = random_tokens()
    hidden = model.hidden({}, model.activations(rows))
    assert hidden.shape == (1, 4, 7, 10)
    logits = hidden[0] @ model.unembed.W_U + model.unembed.b_U
    torch.testing.assert_close(logits, model(rows).logits)


@BOTH
@pytest.mark.parametrize("layer", [0, 2])
def test_heads_in_parts(positions, layer):
    """Queries, keys and values, attention and output, against the model's own activations."""
    model = random_model(positions=positions)
    rows = random_tokens()
    patterns: list[Tensor] = []
    at = model.activations(rows, patterns)
    residual = at.residual[layer]
    projected = [model.project(layer, letter, residual) for letter in "QKV"]
    pattern: list[Tensor] = []
    z = model.attend(*projected, pattern)
    torch.testing.assert_close(z, at.z[layer])
    torch.testing.assert_close(pattern[0], patterns[layer])
    torch.testing.assert_close(residual + model.write(layer, z, {}), at.residual[layer + 1])


@pytest.mark.parametrize("letter", ["Q", "K", "V"])
def test_chosen_heads_are_projected_in_their_order(letter):
    model = random_model()
    at = model.activations(random_tokens())
    of_all = model.project(2, letter, at.residual[2])
    of_two = model.project(2, letter, at.residual[2], torch.tensor([2, 0]))
    torch.testing.assert_close(of_two, of_all[:, :, [2, 0]])
    two_runs = torch.cat([at.residual[2], at.residual[1]])
    of_one = model.project(2, letter, two_runs, slice(1, 2))
    torch.testing.assert_close(of_one[:1], of_all[:, :, 1:2])


def test_frozen_weights_get_no_gradient():
    model = random_model()
    moved = move_heads(model, 1, [[0], [1]])
    for block, _ in moved.values():
        block.requires_grad_()
    with torch.no_grad():
        at = model.activations(random_tokens())
    model.hidden(moved, at).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


# As a transformers model.


@BOTH
@pytest.mark.parametrize("kind", [AttentionOnly, AutoModelForCausalLM])
def test_save_and_load_are_bit_equal(tmp_path, positions, kind):
    changes = {"positions": positions, "layer_norm_eps": 1e-3, "init_scale": 0.5}
    model = random_model(torch.float32, **changes)
    rows = random_tokens()
    model.save_pretrained(tmp_path)
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is AttentionOnly
    assert not any(report.values())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert torch.equal(loaded(rows).logits, model(rows).logits)


def test_the_configuration_is_loaded_alone(tmp_path):
    config = AttentionOnlyConfig(**SIZES, positions="standard", layer_norm_eps=1e-3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AttentionOnlyConfig
    assert loaded.positions == "standard"
    assert loaded.layer_norm_eps == 1e-3
    assert {name: getattr(loaded, name) for name in SIZES} == SIZES


def test_gradient_training_step_in_transformers_terms():
    model = AttentionOnly(AttentionOnlyConfig(**SIZES))
    rows = random_tokens()
    loss = model(rows, labels=rows).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        # b_K adds one number to all scores of a query: no gradient but rounding.
        if not name.endswith("attn.b_K"):
            assert parameter.grad.abs().sum() > 0, name
        parameter.data -= 0.1 * parameter.grad
    assert model(rows, labels=rows).loss < loss


def test_ones_may_be_given_as_attention_mask():
    model = random_model()
    rows = random_tokens()
    mask = torch.ones_like(rows)
    assert torch.equal(model(rows, attention_mask=mask).logits, model(rows).logits)
    mask[0, -2:] = 0
    assert torch.equal(model(rows, attention_mask=mask).logits, model(rows).logits)
    mask[0, 0] = 0
    message = r"`attention_mask` has zeros, but rows are packed, never padded"
    with pytest.raises(InputError, match=message):
        model(rows, attention_mask=mask)


def test_transformers_names_of_the_sizes():
    config = AttentionOnlyConfig()
    assert config.num_hidden_layers == 2
    assert config.hidden_size == 256
    assert config.num_attention_heads == 8
    assert config.head_dim == 32
    assert config.max_position_embeddings == 1024
    assert config.vocab_size == 5000


# Bad input.


def test_rows_longer_than_the_context():
    model = random_model()
    assert model(random_tokens(pos=9)).logits.shape == (4, 9, 13)
    message = r"rows have 10 positions, but the model's context is 9 \(`n_ctx`\)"
    with pytest.raises(InputError, match=message):
        model(random_tokens(pos=10))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_below_one(name):
    with pytest.raises(InputError, match=rf"`{name}` must be an integer of at least 1, got 0"):
        AttentionOnlyConfig(**{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "rotary"}, "must be 'shortformer' or 'standard', got 'rotary'"),
        ({"init_positions": "random"}, "must be 'normal' or 'sinusoidal', got 'random'"),
        ({"init_embedding": 0.0}, "`init_embedding` must be positive, got 0.0"),
        ({"init_late_qk": -1.0}, "`init_late_qk` must be positive, got -1.0"),
    ],
)
def test_choices_that_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        AttentionOnlyConfig(**change)
