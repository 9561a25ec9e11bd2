"""Rows with padding or several documents give what the same documents give one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

import rllc
from rllc.engine.bind import bind
from rllc.engine.layout import center, groups
from rllc.errors import InputError
from rllc.losses.documents import documents_of

LENGTHS = (7, 3, 5, 2, 6)
VOCAB = 11


def documents(lengths: tuple[int, ...] = LENGTHS, lowest: int = 1) -> list[Tensor]:
    stream = torch.Generator().manual_seed(1)
    return [torch.randint(lowest, VOCAB, (length,), generator=stream) for length in lengths]


def padded(rows: list[Tensor], side: str, width: int = 8, pad: int = 0) -> dict[str, Tensor]:
    """Rows in one tensor; padding on the left, on the right or on both sides."""
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        free = width - len(row)
        start = {"left": free, "right": 0, "both": free // 2}[side]
        ids[number, start : start + len(row)] = row
        mask[number, start : start + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def gpt2(seed: int = 0) -> nn.Module:
    return huggingface("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=2)


def huggingface(model: str, config: str, **sizes: int) -> nn.Module:
    """A tiny model with weights that are large enough to make positions and masks matter."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        settings = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        made = getattr(transformers, model)(getattr(transformers, config)(**settings, **sizes))
        for parameter in made.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return made.eval()


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
CAUSAL = {
    "gpt2": gpt2,
    "llama": lambda: huggingface("LlamaForCausalLM", "LlamaConfig", **SMALL),
    "neox": lambda: huggingface("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
    "opt": lambda: huggingface(
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    ),
    "bloom": lambda: huggingface(
        "BloomForCausalLM", "BloomConfig", hidden_size=16, n_layer=2, n_head=2
    ),
    "two layers": lambda: tiny_model(),
    "standard positions": lambda: tiny_model(positions="standard"),
}


def one_by_one(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The truth: next-token losses of each document alone, without mask or padding."""
    losses = []
    for row in rows:
        with torch.no_grad():
            logs = model(row[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-logs[torch.arange(len(row) - 1), row[1:]])
    return losses


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_padding_changes_no_loss(kind: str, side: str) -> None:
    model, rows = CAUSAL[kind](), documents()
    batch = padded(rows, side)
    at = bind(model, None).center(batch, seed=0)
    alone = one_by_one(model, rows)
    assert at.counted is not None
    for row, expected in enumerate(alone):
        assert torch.allclose(at.losses[row][at.counted[row]], expected, atol=2e-5)
        places = batch["attention_mask"][row].nonzero()[1:, 0] - 1
        assert at.counted[row].nonzero()[:, 0].equal(places)
    assert at.losses[~at.counted].isnan().all()
    assert float(at.mean) == pytest.approx(float(torch.cat(alone).mean()), abs=1e-5)


def packed(rows: list[Tensor], form: str) -> dict[str, Tensor]:
    """Documents 0, 1 and 2 in one row of 16 with one of padding; 3 and 4 in the next."""
    ids = torch.zeros(2, 16, dtype=torch.long)
    numbers = torch.zeros(2, 16, dtype=torch.long)
    positions = torch.zeros(2, 16, dtype=torch.long)
    for row, chosen in enumerate([(0, 1, 2), (3, 4)]):
        start = 0
        for number, index in enumerate(chosen, start=1):
            part = slice(start, start + len(rows[index]))
            ids[row, part] = rows[index]
            numbers[row, part] = number
            positions[row, part] = torch.arange(len(rows[index]))
            start += len(rows[index])
    square = (numbers[:, :, None] == numbers[:, None, :]) & (numbers > 0)[:, :, None]
    square = square.tril()
    masks = {
        "numbers": {"attention_mask": numbers},
        "positions": {"attention_mask": (numbers > 0).long(), "position_ids": positions},
        "square": {"attention_mask": square},
        "square of heads": {"attention_mask": square[:, None]},
        "additive": {"attention_mask": torch.where(square, 0.0, float("-inf"))},
    }
    return {"input_ids": ids} | masks[form]


@pytest.mark.parametrize("form", ["numbers", "positions", "square", "square of heads", "additive"])
@pytest.mark.parametrize("kind", ["gpt2", "two layers"])
def test_documents_in_one_row_are_as_if_alone(kind: str, form: str) -> None:
    # The tiny model's context is 8: rows of 16 positions hold documents that are shorter.
    model, rows = CAUSAL[kind](), documents()
    at = bind(model, None).center(packed(rows, form), seed=0)
    assert at.counted is not None
    alone = one_by_one(model, rows)
    assert torch.allclose(at.losses[at.counted], torch.cat(alone), atol=2e-5)
    assert at.counted.sum(1).tolist() == [6 + 2 + 4, 1 + 5]


def test_labels_say_what_counts() -> None:
    rows = documents((7, 3, 5))
    batch = padded(rows, "left")
    labels = batch["input_ids"].clone()
    labels[batch["attention_mask"] == 0] = -100
    labels[:, -1] = -100  # the last token of each row
    labels[0, 3] = 5  # another token than came
    for model in (gpt2(), tiny_model()):
        at = bind(model, None).center(batch | {"labels": labels}, seed=0)
        plain = bind(model, None).center(batch, seed=0)
        counted = (labels != -100)[:, 1:] & (batch["attention_mask"] == 1)[:, :-1]
        same = counted.clone()
        same[0, 2] = False
        assert at.counted is not None
        assert at.counted.equal(counted)
        assert torch.allclose(at.losses[same], plain.losses[same])
        with torch.no_grad():
            logs = model(rows[0][None]).logits[0].log_softmax(-1)
        assert float(at.losses[0, 2]) == pytest.approx(-float(logs[1, 5]), abs=1e-5)


def test_labels_without_padding_need_no_mask() -> None:
    rows = torch.stack(documents((6, 6, 6)))
    labels = rows.clone()
    labels[:, :4] = -100  # a prompt
    for model in (gpt2(), tiny_model()):
        at = bind(model, None).center({"input_ids": rows, "labels": labels}, seed=0)
        plain = bind(model, None).center(rows, seed=0)
        assert at.counted is not None
        assert at.counted.equal((labels != -100)[:, 1:])
        assert torch.allclose(at.losses[at.counted], plain.losses[at.counted], atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "two layers"])
def test_losses_and_gradients_of_runs_are_means_over_what_counts(kind: str) -> None:
    model, rows = CAUSAL[kind](), documents()
    name = "transformer.h.0.attn.c_attn.weight" if kind == "gpt2" else "blocks.0.attn.W_Q"
    weights = rllc.parameters(name) | rllc.parameters("*ln_f*" if kind == "gpt2" else "unembed.*")
    (group,) = groups([weights.masks(model)])
    bound = bind(model, None)
    batch = padded(rows, "left")
    at = bound.center(batch, seed=0)
    origin = center(group, dict(model.named_parameters()))
    position = origin + 0.1 * torch.randn(2, group.dim, generator=torch.Generator().manual_seed(2))
    member = torch.zeros(2, dtype=torch.long)
    runs = bound.runs(group, member, position, at, batch, gradient=True, each=True)
    assert runs.each is not None
    assert runs.gradient is not None
    assert at.counted is not None
    # One document at a time, each weighted by its number of predictions.
    total, slope, count = torch.zeros(2, dtype=torch.float64), torch.zeros(2, group.dim), 0
    for row in rows:
        alone = bound.center(row[None], seed=0)
        one = bound.runs(group, member, position, alone, row[None], gradient=True, each=True)
        assert one.gradient is not None
        total += one.losses * (len(row) - 1)
        slope += one.gradient * (len(row) - 1)
        count += len(row) - 1
    assert torch.allclose(runs.losses, total / count, atol=1e-6)
    assert torch.allclose(runs.gradient, slope / count, atol=2e-6)
    assert runs.each[:, ~at.counted].isnan().all()
    assert torch.allclose(runs.each[:, at.counted].double().mean(1), runs.losses, atol=1e-6)
    names = [slot.name for slot in group.slots]
    by_name, num_losses = bound.gradient(names, at, batch, seed=0)
    assert num_losses == count
    here = bound.runs(group, member[:1], origin, at, batch, gradient=True, each=False).gradient
    assert here is not None
    assert torch.allclose(center(group, by_name), here, atol=1e-6)
    without_center, num_losses = bound.gradient(names, None, batch, seed=0)
    assert num_losses == count
    assert torch.allclose(center(group, without_center), here, atol=1e-6)


@pytest.mark.parametrize("generator", [None, tiny_model(1)], ids=["next token", "distillation"])
def test_products_of_bfloat16_are_rounded_alike_at_the_center_and_near_it(
    generator: nn.Module | None,
) -> None:
    """So that differences of losses, and of gradients, are none of rounding."""
    model = tiny_model()
    loss = None if generator is None else rllc.losses.distillation(generator)
    bound = bind(model, loss, autocast=torch.bfloat16)
    (group,) = groups([rllc.layer(0).masks(model)])
    batch = padded(documents(), "left")
    at = bound.center(batch, seed=0)
    origin = center(group, dict(model.named_parameters()))
    member = torch.zeros(1, dtype=torch.long)
    runs = bound.runs(group, member, origin, at, batch, gradient=True, each=True)
    assert runs.each is not None
    assert runs.gradient is not None
    torch.testing.assert_close(runs.each[0], at.losses, rtol=0, atol=1e-6, equal_nan=True)
    names = [slot.name for slot in group.slots]
    for known in (at, None):
        by_name, _ = bound.gradient(names, known, batch, seed=0)
        error = center(group, by_name) - runs.gradient
        assert error.norm() < 1e-3 * runs.gradient.norm()


def test_float64_stays_where_products_of_low_precision_are_asked_for() -> None:
    model, rows = tiny_model().double(), torch.stack(documents((6, 6)))
    low = bind(model, None, autocast=torch.bfloat16).center(rows, seed=0)
    exact = bind(model, None).center(rows, seed=0)
    torch.testing.assert_close(low.losses, exact.losses, rtol=0, atol=0.05)


def test_documents_keep_other_inputs_beside_their_tokens() -> None:
    batch = padded(documents((3, 5)), "left")
    types = torch.arange(16).view(2, 8)
    found = documents_of(batch | {"token_type_ids": types})
    assert found.extras["token_type_ids"][0, :3].equal(types[0, 5:])
    assert found.extras["token_type_ids"][1].equal(types[1, 3:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "zeros between tokens"),
        ({"position_ids": torch.tensor([[4, 5, 6, 7]])}, "must count 0, 1, 2"),
        ({"attention_mask": torch.ones(1, 3)}, r"must be \[row, pos\] = \[1, 4\]"),
        ({"attention_mask": torch.ones(1, 4, 3)}, r"\[row, pos, pos\] = \[1, 4, 4\]"),
        ({"attention_mask": torch.ones(1, 4, 4).tril().triu(-1)}, "its own document"),
        ({"labels": torch.ones(1, 3)}, "`labels` must be"),
    ],
)
def test_what_a_mask_cannot_say_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        documents_of({"input_ids": torch.tensor([[1, 2, 3, 4]])} | fields)


def test_other_batches_are_refused() -> None:
    with pytest.raises(InputError, match="a dict with `input_ids`"):
        documents_of((torch.ones(2, 3), torch.ones(2)))
    with pytest.raises(InputError, match=r"must be \[row, pos\], got shape \[4\]"):
        documents_of({"input_ids": torch.arange(4)})
