"""The model: against TransformerLens, against a slow forward written from the paper, and as a transformers model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

import rllc
from rllc.errors import InputError
from rllc.models.attention_only import (
    HEAD_TENSORS,
    AttentionOnly,
    AttentionOnlyConfig,
    Moved,
    sinusoids,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "transformer_lens.safetensors"
SIZES = {"n_layers": 3, "d_model": 10, "n_heads": 3, "d_head": 4, "n_ctx": 9, "d_vocab": 13}
BOTH = pytest.mark.parametrize("positions", ["shortformer", "standard"])


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


def tokens(batch: int = 4, pos: int = 7) -> torch.Tensor:
    return torch.randint(SIZES["d_vocab"], (batch, pos))


def slow_logits(
    model: AttentionOnly, row: torch.Tensor, values: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The forward as the paper defines it, for one row, one head and one query at a time: ``[pos, vocab]``."""
    c, w = model.config, values

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean()
        return (
            centred / (centred.square().mean() + c.layer_norm_eps).sqrt() * w[f"{name}.w"]
            + w[f"{name}.b"]
        )

    standard = c.positions == "standard"
    x = [
        w["embed.W_E"][t] + (w["pos_embed.W_pos"][i] if standard else 0.0)
        for i, t in enumerate(row)
    ]
    for layer in range(c.n_layers):
        at = f"blocks.{layer}.attn."
        u = [norm(v, f"blocks.{layer}.ln1") for v in x]
        p = [v if standard else v + w["pos_embed.W_pos"][i] for i, v in enumerate(u)]
        new = [v + w[at + "b_O"] for v in x]
        for h in range(c.n_heads):
            q = [v @ w[at + "W_Q"][h] + w[at + "b_Q"][h] for v in p]
            k = [v @ w[at + "W_K"][h] + w[at + "b_K"][h] for v in p]
            v = [y @ w[at + "W_V"][h] + w[at + "b_V"][h] for y in u]
            for i in range(len(row)):
                weights = torch.stack(
                    [q[i] @ k[j] / math.sqrt(c.d_head) for j in range(i + 1)]
                ).exp()
                z = sum(weights[j] * v[j] for j in range(i + 1)) / weights.sum()
                new[i] = new[i] + z @ w[at + "W_O"][h]
        x = new
    return torch.stack([norm(v, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"] for v in x])


# Right for other reasons.


@BOTH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_against_transformer_lens(positions, attention):
    with safe_open(FIXTURE, "pt") as file:
        config = json.loads(file.metadata()["json"])[positions]
        stored = {name.removeprefix(f"{positions}/"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes = {name: config[name] for name in (*SIZES, "positions", "layer_norm_eps")}
    model = AttentionOnly._from_config(AttentionOnlyConfig(**sizes), attn_implementation=attention)
    names = {f"weights/{name}" for name, _ in model.named_parameters()}
    assert names == {name for name in stored if name.startswith("weights/")}
    model.load_state_dict({name.removeprefix("weights/"): stored[name] for name in names})
    with torch.no_grad():
        logits = model(stored["tokens"].long()).logits
        attentions = model(stored["tokens"].long(), output_attentions=True).attentions
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, stored["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack(attentions), stored["pattern"], atol=1e-5, rtol=0)


@BOTH
def test_against_a_slow_forward(positions):
    model, rows = random_model(positions=positions), tokens()
    logits = model(rows).logits
    for row, fast in zip(rows, logits, strict=True):
        torch.testing.assert_close(
            fast, slow_logits(model, row, model.state_dict()), atol=1e-11, rtol=0
        )


@BOTH
def test_eager_attention_is_the_same_and_differentiates_twice(positions):
    model, rows = random_model(positions=positions), tokens()
    logits = model(rows).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(rows).logits, logits, atol=1e-12, rtol=0)
    loss = model(rows, labels=rows).loss
    (gradient,) = torch.autograd.grad(loss, model.blocks[0].attn.W_Q, create_graph=True)
    assert torch.isfinite(
        torch.autograd.grad(gradient.square().sum(), model.blocks[0].attn.W_K)[0]
    ).all()


def test_numbers_of_parameters():
    paper = AttentionOnly(AttentionOnlyConfig())
    assert sum(p.numel() for p in paper.parameters()) == 3_355_016
    assert (
        sum(p.numel() for p in AttentionOnly(AttentionOnlyConfig(n_layers=1)).parameters())
        == 3_091_336
    )
    assert sum(paper.get_parameter(f"blocks.1.attn.{t}")[6].numel() for t in HEAD_TENSORS) == 32_864
    assert paper.num_parameters() == 3_355_016
    assert dict(paper.named_buffers()) == {}


def test_names_and_shapes_are_transformer_lens_s():
    model = AttentionOnly(AttentionOnlyConfig(**SIZES | {"n_layers": 1}))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
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


def test_initialisation():
    model = AttentionOnly(AttentionOnlyConfig())
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[1]
        if last.startswith("W_"):
            n, sigma = parameter.numel(), 0.8 / math.sqrt(256)
            # n values: the standard deviation has standard error σ/√(2n), the mean σ/√n; 5.7 of them: 1e-8 a test
            assert abs(parameter.std().item() - sigma) < 5.7 * sigma / math.sqrt(2 * n), name
            assert abs(parameter.mean().item()) < 5.7 * sigma / math.sqrt(n), name
        else:
            assert (parameter == (1.0 if last == "w" else 0.0)).all(), name
    torch.manual_seed(3)
    one, other = (
        AttentionOnly(AttentionOnlyConfig(**SIZES)),
        AttentionOnly(AttentionOnlyConfig(**SIZES)),
    )
    torch.manual_seed(3)
    again = AttentionOnly(AttentionOnlyConfig(**SIZES))
    assert torch.equal(one.embed.W_E, again.embed.W_E), "torch's seed decides"
    assert not torch.equal(one.embed.W_E, other.embed.W_E)
    assert (
        AttentionOnly(AttentionOnlyConfig(init_scale=8.0)).embed.W_E.std()
        > 9 * model.embed.W_E.std()
    )


# Properties.


@BOTH
def test_future_tokens_have_no_influence(positions):
    model, rows = random_model(positions=positions), tokens()
    logits = model(rows).logits
    for at in range(1, rows.shape[1]):
        changed = rows.clone()
        changed[:, at:] = (changed[:, at:] + 1) % SIZES["d_vocab"]
        torch.testing.assert_close(
            model(changed).logits[:, :at], logits[:, :at], atol=1e-12, rtol=0
        )
        torch.testing.assert_close(model(rows[:, :at]).logits, logits[:, :at], atol=1e-12, rtol=0)
        assert (model(changed).logits[:, at:] - logits[:, at:]).abs().amax(-1).min() > 1e-6


def test_shortformer_positions_reach_only_queries_and_keys():
    """With Q and K zero attention is uniform, and then positions must not matter; with standard ones they do."""
    for positions, matters in (("shortformer", False), ("standard", True)):
        model, rows = random_model(positions=positions), tokens()
        for block in model.blocks:
            block.attn.W_Q.data.zero_()
            block.attn.b_Q.data.zero_()
        before = model(rows).logits
        model.pos_embed.W_pos.data.normal_()
        assert ((model(rows).logits - before).abs().max() > 1e-6) == matters


def test_attentions_are_causal_distributions():
    model, rows = random_model(), tokens()
    attentions = model(rows, output_attentions=True).attentions
    assert [tuple(a.shape) for a in attentions] == [(4, 3, 7, 7)] * 3
    for pattern in attentions:
        torch.testing.assert_close(pattern.sum(-1), torch.ones(4, 3, 7, dtype=pattern.dtype))
        assert (pattern.triu(1) == 0).all()
        assert (pattern.tril() >= 0).all()
    assert model(rows).attentions is None


def test_hidden_states_are_the_residual_stream():
    model, rows = random_model(), tokens()
    states = model(rows, output_hidden_states=True).hidden_states
    assert [tuple(s.shape) for s in states] == [(4, 7, 10)] * 4
    torch.testing.assert_close(states[0], model.embed.W_E[rows])
    last = torch.nn.functional.layer_norm(
        states[-1], (10,), model.ln_final.w, model.ln_final.b, 1e-5
    )
    torch.testing.assert_close(last @ model.unembed.W_U + model.unembed.b_U, model(rows).logits)


def test_loss_is_the_next_token_cross_entropy():
    model, rows = random_model(), tokens()
    output = model(rows, labels=rows)
    log_p = output.logits.log_softmax(-1)
    each = [-log_p[b, k, rows[b, k + 1]] for b in range(4) for k in range(6)]
    torch.testing.assert_close(output.loss.double(), torch.stack(each).mean(), atol=1e-6, rtol=0)
    labels = rows.clone()
    labels[:, 3] = -100
    each = [-log_p[b, k, rows[b, k + 1]] for b in range(4) for k in range(6) if k + 1 != 3]
    torch.testing.assert_close(
        model(rows, labels=labels).loss.double(), torch.stack(each).mean(), atol=1e-6, rtol=0
    )
    assert model(rows).loss is None


def test_outputs_as_a_tuple():
    model, rows = random_model(), tokens()
    loss, logits = model(rows, labels=rows, return_dict=False)
    assert torch.equal(loss, model(rows, labels=rows).loss)
    assert torch.equal(logits, model(rows).logits)


# Runs: many models in one forward.


def moved_heads(
    model: AttentionOnly, layer: int, heads: list[list[int]], tensors=HEAD_TENSORS
) -> dict[str, Moved]:
    """Each run moves its own heads of one layer."""
    rows = torch.tensor(heads)
    blocks = {
        f"blocks.{layer}.attn.{t}": model.get_parameter(f"blocks.{layer}.attn.{t}").detach()
        for t in tensors
    }
    return {
        n: Moved(w[rows] + 0.3 * torch.randn(w[rows].shape, dtype=w.dtype), rows)
        for n, w in blocks.items()
    }


def moved_whole(model: AttentionOnly, names: list[str], runs: int = 2) -> dict[str, Moved]:
    out = {}
    for name in names:
        w = model.get_parameter(name).detach()
        out[name] = Moved(w + 0.3 * torch.randn(runs, *w.shape, dtype=w.dtype), None)
    return out


SELECTIONS = {
    "one head a run": lambda m: moved_heads(m, 1, [[0], [2], [1], [2]]),
    "a head of the first layer": lambda m: moved_heads(m, 0, [[1], [0]]),
    "a head of the last layer": lambda m: moved_heads(m, 2, [[1], [0]]),
    "two heads a run": lambda m: moved_heads(m, 1, [[0, 2], [2, 1]]),
    "a part of a head": lambda m: moved_heads(m, 1, [[0], [2]], ("W_Q", "b_V")),
    "a head's output": lambda m: moved_heads(m, 0, [[0], [2]], ("W_O",)),
    "a single run": lambda m: moved_heads(m, 1, [[1]]),
    "heads of two layers": lambda m: moved_heads(m, 0, [[0], [1]]) | moved_heads(m, 2, [[2], [1]]),
    "a whole block": lambda m: moved_whole(
        m, [n for n, _ in m.named_parameters() if n.startswith("blocks.1.")]
    ),
    "queries and a norm": lambda m: (
        moved_heads(m, 1, [[0], [2]], ("W_Q",)) | moved_whole(m, ["blocks.1.ln1.b"])
    ),
    "rows that differ": lambda m: (
        moved_heads(m, 1, [[0], [2]], ("W_Q",)) | moved_heads(m, 1, [[1], [2]], ("W_V",))
    ),
    "a norm": lambda m: moved_whole(m, ["blocks.1.ln1.w"]),
    "b_O": lambda m: moved_whole(m, ["blocks.1.attn.b_O"]),
    "the last norm": lambda m: moved_whole(m, ["ln_final.w", "ln_final.b"]),
    "the last norm's bias": lambda m: moved_whole(m, ["ln_final.b"], runs=3),
    "embeddings": lambda m: moved_whole(m, ["embed.W_E"]),
    "some embeddings": lambda m: {
        "embed.W_E": Moved(
            torch.randn(2, 3, 10, dtype=torch.float64), torch.tensor([[1, 5, 3], [0, 2, 12]])
        )
    },
    "positions": lambda m: moved_whole(m, ["pos_embed.W_pos"]),
    "everything before the unembedding": lambda m: moved_whole(
        m, [n for n, _ in m.named_parameters() if not n.startswith("unembed")]
    ),
}


@BOTH
@pytest.mark.parametrize("selection", SELECTIONS)
def test_runs_equal_a_loop_of_models(positions, selection):
    """`hidden` with a run axis, value and gradient, against one model at a time with its weights set."""
    model, rows = random_model(positions=positions), tokens(batch=3, pos=5)
    moved = SELECTIONS[selection](model)
    moved = {name: Moved(m.block.requires_grad_(), m.rows) for name, m in moved.items()}
    with torch.no_grad():
        at = model.activations(rows)
    hidden = model.hidden(moved, at)
    runs = max(m.block.shape[0] for m in moved.values())
    assert hidden.shape == (runs, 3, 5, 10)
    probe = torch.randn(hidden.shape[1:], dtype=hidden.dtype)
    gradients = torch.autograd.grad((hidden * probe).sum(), [m.block for m in moved.values()])
    for run in range(runs):
        alone = random_model(positions=positions)
        alone.load_state_dict(model.state_dict())
        for name, (block, index) in moved.items():
            weight = alone.get_parameter(name).data
            weight[slice(None) if index is None else index[run]] = block[run].detach()
        expected = alone.normalise(
            "ln_final", alone(rows, output_hidden_states=True).hidden_states[-1][None], {}
        )[0]
        torch.testing.assert_close(hidden[run], expected, atol=1e-11, rtol=0)
        slow = torch.autograd.grad(
            (expected * probe).sum(), [alone.get_parameter(name) for name in moved]
        )
        for (name, (_, index)), fast, own in zip(moved.items(), gradients, slow, strict=True):
            own = own if index is None else own[index[run]]
            torch.testing.assert_close(
                fast[run], own, atol=1e-10, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_nothing_moved_is_the_model_itself():
    model, rows = random_model(), tokens()
    hidden = model.hidden({}, model.activations(rows))
    assert hidden.shape == (1, 4, 7, 10)
    torch.testing.assert_close(
        hidden[0] @ model.unembed.W_U + model.unembed.b_U, model(rows).logits
    )


@BOTH
@pytest.mark.parametrize("layer", [0, 2])
def test_heads_in_parts(positions, layer):
    """Queries, keys and values of chosen heads, attention and output, against the model's own activations."""
    model, rows = random_model(positions=positions), tokens()
    at = model.activations(rows, patterns := [])
    made = {letter: model.project(layer, letter, at.residual[layer]) for letter in "QKV"}
    z = model.attend(made["Q"], made["K"], made["V"], again := [])
    torch.testing.assert_close(z, at.z[layer])
    torch.testing.assert_close(again[0], patterns[layer])
    torch.testing.assert_close(
        at.residual[layer] + model.write(layer, z, {}), at.residual[layer + 1]
    )
    for letter in "QKV":
        chosen = model.project(layer, letter, at.residual[layer], torch.tensor([2, 0]))
        torch.testing.assert_close(chosen, made[letter][:, :, [2, 0]])
        several = model.project(
            layer, letter, torch.cat([at.residual[layer], at.residual[1]]), slice(1, 2)
        )
        torch.testing.assert_close(several[:1], made[letter][:, :, 1:2])


def test_frozen_weights_get_no_gradient():
    model, rows = random_model(), tokens()
    moved = {
        n: Moved(m.block.requires_grad_(), m.rows)
        for n, m in moved_heads(model, 1, [[0], [1]]).items()
    }
    with torch.no_grad():
        at = model.activations(rows)
    model.hidden(moved, at).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


# As a transformers model.


@BOTH
def test_save_and_load_are_bit_equal(tmp_path, positions):
    model, rows = (
        random_model(torch.float32, positions=positions, layer_norm_eps=1e-3, init_scale=0.5),
        tokens(),
    )
    model.save_pretrained(tmp_path)
    for kind in (AttentionOnly, AutoModelForCausalLM):
        again, info = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is AttentionOnly
        assert not any(info.values())
        assert all(torch.equal(p, again.get_parameter(n)) for n, p in model.named_parameters())
        assert again.config.to_diff_dict() == model.config.to_diff_dict()
        assert torch.equal(again(rows).logits, model(rows).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AttentionOnlyConfig
    assert (config.positions, config.layer_norm_eps, config.init_scale) == (positions, 1e-3, 0.5)
    assert {name: getattr(config, name) for name in SIZES} == SIZES


def test_gradient_training_step_in_transformers_terms():
    model, rows = AttentionOnly(AttentionOnlyConfig(**SIZES)), tokens()
    before = model(rows, labels=rows).loss
    before.backward()
    for name, parameter in model.named_parameters():
        if not name.endswith(
            "attn.b_K"
        ):  # the same number added to all scores of a query: no gradient but rounding
            assert parameter.grad.abs().sum() > 0, name
        parameter.data -= 0.1 * parameter.grad
    assert model(rows, labels=rows).loss < before


def test_ones_may_be_given_as_attention_mask():
    model, rows = random_model(), tokens()
    assert torch.equal(model(rows, attention_mask=torch.ones_like(rows)).logits, model(rows).logits)
    mask = torch.ones_like(rows)
    mask[0, 0] = 0
    with pytest.raises(
        InputError, match=r"`attention_mask` has zeros, but rows are packed, never padded"
    ):
        model(rows, attention_mask=mask)


# Bad input.


def test_rows_longer_than_the_context():
    assert random_model()(tokens(pos=9)).logits.shape == (4, 9, 13)
    with pytest.raises(
        InputError, match=r"rows have 10 positions, but the model's context is 9 \(`n_ctx`\)"
    ):
        random_model()(tokens(pos=10))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_below_one(name):
    with pytest.raises(InputError, match=rf"`{name}` must be an integer of at least 1, got 0"):
        AttentionOnlyConfig(**{name: 0})


def test_unknown_positions():
    with pytest.raises(
        InputError, match=r"`positions` must be 'shortformer' or 'standard', got 'rotary'"
    ):
        AttentionOnlyConfig(positions="rotary")


def test_transformers_names_of_the_sizes():
    config = AttentionOnlyConfig()
    names = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "head_dim",
        "max_position_embeddings",
        "vocab_size",
    )
    assert tuple(getattr(config, name) for name in names) == (2, 256, 8, 32, 1024, 5000)


# Other starts.


def test_sinusoids_are_rotated_by_a_shift():
    """sin(a + b) and cos(a + b) are linear in sin(a), cos(a): one matrix shifts every position."""
    table = sinusoids(64, 16).double()
    shift, *_ = torch.linalg.lstsq(table[:-1], table[1:])
    torch.testing.assert_close(table[:-1] @ shift, table[1:], atol=1e-4, rtol=0)
    sines, cosines = table[:, :8], table[:, 8:]
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones(64, 8).double(), atol=1e-5, rtol=0)
    # The first period is 2.5 positions, the last half the context.
    torch.testing.assert_close(
        table[5, [0, 8]], torch.tensor([0.0, 1.0]).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        table[32, [7, 15]], torch.tensor([0.0, 1.0]).double(), atol=1e-4, rtol=0
    )


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
            late = 0.3 if layer and letter in "QK" else 1.0
            expected[f"blocks.{layer}.attn.W_{letter}"] = late * usual
    for name, sigma in expected.items():
        parameter = model.get_parameter(name)
        # As in the test of the usual start, 5.7 standard errors.
        bound = 5.7 * sigma / math.sqrt(2 * parameter.numel())
        assert abs(parameter.std().item() - sigma) < bound, name


def test_a_start_of_another_kind_is_loaded_as_it_is(tmp_path):
    model = AttentionOnly(AttentionOnlyConfig.fast(d_model=16, d_head=2, n_ctx=8, d_vocab=12))
    model.save_pretrained(tmp_path)
    for loaded in (rllc.load(tmp_path), AttentionOnly.from_pretrained(tmp_path)):
        assert loaded.config.init_embedding == 0.5
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_configuration_from_before_there_were_other_starts(tmp_path):
    AttentionOnly(AttentionOnlyConfig(**SIZES)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for name in ("init_positions", "init_embedding", "init_late_qk"):
        del fields[name]
    path.write_text(json.dumps(fields))
    config = rllc.load(tmp_path).config
    assert (config.init_positions, config.init_embedding, config.init_late_qk) == (
        "normal",
        None,
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_positions": "random"}, "must be 'normal' or 'sinusoidal', got 'random'"),
        ({"init_embedding": 0.0}, "`init_embedding` must be positive, got 0.0"),
        ({"init_late_qk": -1.0}, "`init_late_qk` must be positive, got -1.0"),
    ],
)
def test_starts_that_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        AttentionOnlyConfig(**change)
