"""Ablation, patterns and attention scores of language models of other types: against slow loops."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn
from zoo import KINDS

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.attention import repeated_rows, scores
from rllc.analysis.patterns import attention_from, patterns
from rllc.analysis.roles import classify
from rllc.errors import InputError
from rllc.testing import unchanged

NAMES = ["gpt2", "gpt_neox", "falcon, multi-query", "gemma2", "bloom"]
ROWS = torch.randint(31, (5, 9), generator=torch.Generator().manual_seed(0))


def loud(name: str) -> nn.Module:
    """A model whose heads matter."""
    model = KINDS[name].make()
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=stream)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() < 2 else 0.3 * noise)
    return model


@torch.no_grad()
def loss_of(model: nn.Module, rows: Tensor = ROWS) -> Tensor:
    logits = model(rows).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")


@torch.no_grad()
def with_z(model: nn.Module, head: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss when ``change`` is made of what a head passes on: ``[batch, pos, d_head]``."""
    layer, number = (int(part) for part in head.split(":"))
    attention = rllc.anatomy(model).attentions[layer]
    start, stop = attention.o.pieces[number]

    def replace(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., start:stop] = change(z[..., start:stop])
        return (z,)

    writer = model.get_submodule(attention.o.weight.removesuffix(".weight"))
    hook = writer.register_forward_pre_hook(replace)
    try:
        return loss_of(model)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_zero_ablation_is_zeroing_the_heads_outputs(name: str) -> None:
    model = loud(name)
    result = ablate(model, ROWS, method="zero")
    assert result.names == rllc.anatomy(model).heads
    assert np.allclose(result.loss, loss_of(model), atol=1e-4)
    for number, head in enumerate(result.names):
        attention = rllc.anatomy(model).attentions[int(head[0])]
        weight = model.get_parameter(attention.o.weight)
        before = weight.detach().clone()
        with torch.no_grad():
            weight[rllc.head(head).masks(model)[attention.o.weight]] = 0
        expected = loss_of(model) - torch.from_numpy(result.loss)
        with torch.no_grad():
            weight.copy_(before)
        assert np.allclose(result.tokens[number], expected, atol=1e-3)
        assert result[head].value == pytest.approx(float(expected.mean()), abs=1e-4)


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    # The last token of a row predicts nothing, so it is left out of means.
    "mean": lambda z: z[:, :-1].mean((0, 1), keepdim=True).expand_as(z),
    "position_mean": lambda z: z.mean(0, keepdim=True).expand_as(z),
}


@pytest.mark.parametrize("method", MEANS)
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_means_are_those_of_a_slow_loop(name: str, method: str) -> None:
    model = loud(name)
    result = ablate(model, ROWS, ["0:1", "1:2"], method=method, batch_size=2)  # type: ignore[arg-type]
    for head in ("0:1", "1:2"):
        expected = with_z(model, head, MEANS[method]) - loss_of(model)
        assert np.allclose(result.tokens[result.names.index(head)], expected, atol=1e-3)


def test_resampling_takes_the_values_of_the_reference() -> None:
    """With one row of reference there is only one choice."""
    model = loud("gpt_neox")
    other = ROWS[:1].flip(1)
    seen: list[Tensor] = []
    with_z(model, "1:0", lambda z: z)
    attention = rllc.anatomy(model).attentions[1]
    writer = model.get_submodule(attention.o.weight.removesuffix(".weight"))
    hook = writer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    loss_of(model, other)
    hook.remove()
    start, stop = attention.o.pieces[0]
    expected = with_z(model, "1:0", lambda z: seen[0][..., start:stop].expand_as(z))
    result = ablate(model, ROWS, "1:0", method="resample", reference=other)
    assert np.allclose(result.tokens[0], expected - loss_of(model), atol=1e-3)


def test_resampling_within_the_rows_takes_another_row() -> None:
    model = loud("gpt2")
    same = ROWS[:1].repeat(4, 1)
    assert np.allclose(ablate(model, same, method="resample").tokens, 0, atol=1e-4)
    assert np.abs(ablate(model, ROWS, method="resample").tokens).max() > 1e-2


def test_sets_of_heads_are_ablated_together() -> None:
    model = loud("gpt2")
    circuit = (rllc.head("0:0") | rllc.head("0:2") | rllc.head("1:1")).named("circuit")
    alone = ablate(model, ROWS, circuit, method="zero")
    everything = ablate(model, ROWS, {"both": rllc.head("0:0") | rllc.head("0:2")}, method="zero")
    assert alone.names == ("circuit",)
    assert everything.delta[0] != alone.delta[0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_model_changes(name: str) -> None:
    model = loud(name).train()
    rllc.heads(model)
    implementation = model.config._attn_implementation
    with unchanged(model):
        ablate(model, ROWS)
        patterns(model, ROWS)
    assert model.config._attn_implementation == implementation
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_patterns_are_the_softmax_of_queries_and_keys() -> None:
    """GPT-2's first layer, written out."""
    model = loud("gpt2")
    result = patterns(model, ROWS)
    assert result.shape == (5, 2, 3, 9, 9)
    body = model.transformer
    x = body.h[0].ln_1(body.wte(ROWS) + body.wpe(torch.arange(9)))
    q, k, _ = body.h[0].attn.c_attn(x).split(24, -1)
    q, k = (each.unflatten(-1, (3, 8)).transpose(1, 2) for each in (q, k))
    weights = q @ k.mT / 8**0.5
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = weights.masked_fill(hidden, -torch.inf).softmax(-1)
    assert torch.allclose(result[:, 0], expected, atol=1e-5)


def test_patterns_of_a_model_that_sees_both_sides() -> None:
    result = patterns(KINDS["bert"].make(), ROWS)
    assert result.shape == (5, 2, 3, 9, 9)
    assert torch.allclose(result.sum(-1), torch.ones(5, 2, 3, 9), atol=1e-5)
    assert (result[..., 0, 1:] > 0).all()


def test_scores_are_means_of_patterns() -> None:
    model = loud("gemma2")
    rows = repeated_rows(model, num_rows=3, segment=4)
    result = scores(model, rows)
    attention = patterns(model, rows).double()
    previous = attention.diagonal(-1, 3, 4).mean((0, 3))
    current = attention.diagonal(0, 3, 4)[..., 1:].mean((0, 3))
    assert np.allclose(result.previous_token, previous, atol=1e-6)
    assert np.allclose(result.current_token, current, atol=1e-6)
    # In the second half each query's token came once before, 4 positions back.
    after = torch.stack([attention[..., k, k - 3] for k in range(4, 8)]).mean((0, 1))
    assert np.allclose(result.prefix_matching, after, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_chosen_positions_are_those_of_the_patterns(name: str) -> None:
    model = loud(name)
    whole = patterns(model, ROWS)
    heads = np.array([[0, 1], [1, 2], [0, 1], [1, 0]])
    row, query = np.array([3, 0, 3, 2]), np.array([4, 8, 2, 5])
    seen = 0
    for index, attention in attention_from(model, ROWS, heads, row, query):
        for place, values in zip(index, attention, strict=True):
            layer, head = heads[place]
            assert torch.allclose(values, whole[row[place], layer, head, query[place]])
            seen += 1
    assert seen == 4


def test_heads_of_gpt2_are_classified() -> None:
    """A head that is made to look at the previous token has that role, and no other head."""
    model = previous_token_gpt2()
    rows = torch.randint(1, 31, (8, 12), generator=torch.Generator().manual_seed(1))
    roles = classify(model, rows)
    assert roles.heads == rllc.anatomy(model).heads
    assert roles["0:1"] == "previous token"
    assert [role for role in roles.roles if role == "previous token"] == ["previous token"]


def previous_token_gpt2() -> nn.Module:
    """GPT-2 with random weights, but for 0:1: its queries are the positions of its keys, less 1."""
    model = KINDS["gpt2"].make()
    attn = model.transformer.h[0].attn
    step = torch.tensor([0.4, 1.1, 2.3, 0.9])
    angles = torch.arange(16)[:, None] * step
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [position, 8]
    before = torch.cat([(angles - step).sin(), (angles - step).cos()], 1)
    with torch.no_grad():
        model.transformer.wte.weight[:, :8] = 0
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[:, :8] = waves
        # The first 8 coordinates are the position, as LayerNorm leaves it; turn them back by one.
        turn = torch.linalg.lstsq(waves, before).solution
        c_attn = attn.c_attn.weight.view(24, 3, 3, 8)
        c_attn[:, :2, 1] = 0
        c_attn[:8, 0, 1] = 12 * turn
        c_attn[:8, 1, 1] = torch.eye(8)
        attn.c_attn.bias.zero_()
    return model


def test_random_rows_fit_the_model() -> None:
    result = scores(KINDS["gpt_neox"].make(), num_rows=2)
    assert result.previous_token.shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ablate(KINDS["bert"].make(), ROWS), r"BertForMaskedLM sees later tokens"),
        (lambda: scores(KINDS["modernbert"].make(), ROWS), r"sees later tokens"),
        (lambda: ablate(KINDS["gpt2"].make().transformer, ROWS), r"gives no logits"),
        (lambda: ablate(KINDS["vit"].make(), ROWS), r"does not say how many token ids"),
        (lambda: ablate(nn.MultiheadAttention(8, 2), ROWS), r"is no module that is called on it"),
        (lambda: ablate(KINDS["gpt2"].make(), ROWS + 31), r"have id \d+, but the model knows"),
        (lambda: ablate(KINDS["gpt2"].make(), ROWS.repeat(1, 2)), r"context is 16"),
        (
            lambda: ablate(KINDS["gpt2"].make(), ROWS, "2:0"),
            r"no head of '2:0'; did you mean '\d:0'",
        ),
        (
            lambda: ablate(KINDS["gpt2"].make(), ROWS, method="median"),  # type: ignore[arg-type]
            r"`method` must be one of 'zero'",
        ),
        (
            lambda: ablate(
                KINDS["gpt2"].make(), ROWS, method="position_mean", reference=ROWS[:, :4]
            ),
            r"pass longer reference rows",
        ),
        (
            lambda: ablate(KINDS["gpt2"].make(), ROWS, rllc.layer(0)),
            r"'layer 0' are not heads",
        ),
        (lambda: patterns(KINDS["t5"].make(), ROWS), r"has an encoder and a decoder"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        call()


def test_the_papers_model_is_still_read_in_one_pass() -> None:
    model = tiny_model()
    rows = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
    assert ablate(model, rows).names[0] == "0:0"
    assert patterns(model, rows).shape == (3, 2, 3, 7, 7)
