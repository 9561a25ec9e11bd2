"""Selections of weights: what each takes, how they compose, and what is refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable

import pytest
import torch
from tiny import SIZES, tiny_model
from torch import Tensor, nn

import rllc
from rllc.errors import InputError
from rllc.testing import check_weights
from rllc.weights.indices import Index

MODEL = tiny_model()
D_MODEL = SIZES["d_model"]
D_HEAD = SIZES["d_head"]
N_HEADS = SIZES["n_heads"]
WEIGHTS_OF_A_HEAD = 4 * D_MODEL * D_HEAD + 3 * D_HEAD


def names_of_block(model: nn.Module, number: int) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if name.startswith(f"blocks.{number}.")}


# What each selection takes.


def test_everything_is_every_number() -> None:
    total = sum(parameter.numel() for parameter in MODEL.parameters())
    assert rllc.everything().count(MODEL) == total
    assert rllc.everything().name == "everything"


def test_a_head_is_its_slices_of_seven_tensors() -> None:
    masks = rllc.head("1:2").masks(MODEL)
    tensors = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    assert set(masks) == {f"blocks.1.attn.{tensor}" for tensor in tensors}
    for mask in masks.values():
        assert mask[2].all()
        assert not mask[:2].any()
    assert rllc.head("1:2").count(MODEL) == WEIGHTS_OF_A_HEAD


def test_the_papers_head_has_32864_numbers() -> None:
    paper = tiny_model(n_layers=1, d_model=256, n_heads=2, d_head=32)
    assert rllc.head("0:1").count(paper) == 32_864


@pytest.mark.parametrize("name", ["1:6", "L1H6", "l1h6", " 1:6 ", "1.6", "L1:6"])
def test_names_of_a_head(name: str) -> None:
    assert rllc.head(name) == rllc.head(1, 6)
    assert rllc.head(name).name == "1:6"


def test_heads_are_all_heads_in_order() -> None:
    names = [head.name for head in rllc.heads(MODEL)]
    assert names == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_ten_or_more_layers_are_in_numerical_order() -> None:
    deep = tiny_model(n_layers=11, d_model=2, n_heads=1, d_head=2)
    names = [head.name for head in rllc.heads(deep)]
    assert names == [f"{layer}:0" for layer in range(11)]
    assert set(rllc.layer(1).masks(deep)) == names_of_block(deep, 1)


def test_a_layer_is_all_of_its_block() -> None:
    assert set(rllc.layer(1).masks(MODEL)) == names_of_block(MODEL, 1)
    b_O = D_MODEL
    layer_norm = 2 * D_MODEL
    assert rllc.layer(1).count(MODEL) == N_HEADS * WEIGHTS_OF_A_HEAD + b_O + layer_norm


def test_a_layer_of_other_models() -> None:
    model = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])})
    assert set(rllc.layer(1).masks(model)) == {"h.1.weight", "h.1.bias"}


def test_parameters_by_glob_and_index() -> None:
    assert rllc.parameters("blocks.*.attn.W_Q", index=1).count(MODEL) == 2 * D_MODEL * D_HEAD
    assert rllc.parameters("embed.W_E", index=(slice(2, 5), 0)).count(MODEL) == 3
    name = "blocks.0.attn.W_Q"
    column = rllc.parameters(name, index=(-1, slice(None), 0))
    mask = column.masks(MODEL)[name]
    assert mask[-1, :, 0].all()
    assert int(mask.sum()) == D_MODEL


@pytest.mark.parametrize(
    ("index", "shown"),
    [
        (3, "[3]"),
        (slice(None, None, 2), "[::2]"),
        ((slice(2, 5), 0), "[2:5, 0]"),
        ((slice(None), slice(-3, None)), "[:, -3:]"),
    ],
)
def test_an_index_is_named_as_it_is_written(index: Index, shown: str) -> None:
    assert rllc.parameters("embed.W_E", index=index).name == f"embed.W_E{shown}"


def test_masks_take_what_they_mark() -> None:
    mask = torch.rand(SIZES["d_vocab"], D_MODEL) < 0.3
    weights = rllc.masks({"embed.W_E": mask}, name="some embeddings")
    assert torch.equal(weights.masks(MODEL)["embed.W_E"], mask)
    assert weights.name == "some embeddings"
    # A selection keeps what it was given.
    mask[0] = True
    assert not torch.equal(weights.masks(MODEL)["embed.W_E"], mask)


def test_scalars_and_vectors_can_be_selected() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    model.vector = nn.Parameter(torch.ones(5))
    check_weights(rllc.everything(), model)
    check_weights(rllc.parameters("vector", index=slice(1, 3)) | rllc.parameters("scale"), model)


# How selections compose.


def flat_mask(weights: rllc.Weights) -> Tensor:
    """The selection as one vector over all numbers of the model."""
    masks = weights.masks(MODEL)
    parts = []
    for name, parameter in MODEL.named_parameters():
        mask = masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        parts.append(mask.flatten())
    return torch.cat(parts)


def test_composition_is_set_algebra() -> None:
    a = rllc.head("0:0") | rllc.head("1:1")
    b = rllc.layer(0)
    assert torch.equal(flat_mask(a | b), flat_mask(a) | flat_mask(b))
    assert torch.equal(flat_mask(a & b), flat_mask(a) & flat_mask(b))
    assert torch.equal(flat_mask(~a), ~flat_mask(a))
    # De Morgan.
    assert torch.equal(flat_mask(~(a | b)), flat_mask(~a & ~b))


def test_names_of_compositions_are_unambiguous_and_can_be_replaced() -> None:
    a = rllc.head("0:0")
    b = rllc.head("0:1")
    c = rllc.layer(1)
    assert (a | b).name == "0:0 | 0:1"
    assert ((a | b) & c).name != (a | (b & c)).name
    assert (~(a | b)).name != (~a | b).name
    assert (a | b).named("circuit").name == "circuit"


@pytest.mark.parametrize(
    "weights",
    [
        rllc.parameters("embed.W_E", index=(slice(2, 5), 0)),
        rllc.head("0:1"),
        ~rllc.layer(1),
        rllc.masks({"v": torch.tensor([True, False])}),
    ],
    ids=lambda weights: weights.name,
)
def test_selections_are_values(weights: rllc.Weights) -> None:
    copy = pickle.loads(pickle.dumps(weights))
    assert copy == weights
    assert hash(copy) == hash(weights)


def test_other_selections_are_other_values() -> None:
    assert rllc.head("0:1") != rllc.head("0:2")


@pytest.mark.parametrize(
    "weights",
    [
        rllc.everything(),
        rllc.head("0:1"),
        rllc.layer(1),
        ~rllc.head("1:2"),
        rllc.head("0:1") | rllc.head("1:0") | rllc.parameters("ln_final.w", index=3),
        rllc.parameters("blocks.*.attn.W_O", index=(slice(None), 0)),
        rllc.parameters("blocks.0.attn.b_Q", index=(slice(None), 1)),
    ],
    ids=lambda weights: weights.name,
)
def test_selections_pass_their_own_check(weights: rllc.Weights) -> None:
    check_weights(weights, MODEL)


def test_describe_says_what_is_taken() -> None:
    lines = rllc.head("1:2").describe(MODEL).splitlines()
    total = sum(parameter.numel() for parameter in MODEL.parameters())
    assert lines[0] == f"1:2: {WEIGHTS_OF_A_HEAD} of {total:,} weights"
    assert len(lines) == 9
    assert lines[-1] == "  belongs to no head: blocks.1.attn.b_O"
    queries = r"blocks\.1\.attn\.W_Q\s+\(3, 12, 4\)\s+48 of 144"
    assert re.search(queries, "\n".join(lines))


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rllc.head("induction"), r"expected a head such as '1:6' or 'L1H6'"),
        (lambda: rllc.head("1:2", 3), r"expected a head such as"),
        (lambda: rllc.head(1), r"head\(1, None\): expected a layer and a head"),
        (lambda: rllc.head(-1, 0), r"from 0 on"),
        (
            lambda: rllc.heads(nn.Linear(2, 2)),
            r"no module of it looks like one.*'blocks.0.attn.W_Q'.*rllc.parameters",
        ),
        (
            lambda: rllc.parameters("embed.W_E", index=[0.5, 1]),
            r"expected integers, slices and a list of integers.*rllc.masks",
        ),
        (
            lambda: rllc.masks({"ln_final.w": torch.ones(D_MODEL)}),
            r"must be a boolean tensor, got torch.float32.*mask.bool",
        ),
        (
            lambda: rllc.masks({"ln_final.w": [True] * D_MODEL}),
            r"must be a boolean tensor, got list",
        ),
    ],
)
def test_what_is_no_selection_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        make()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (rllc.head("1:9"), r"head\('1:9'\).*no such head; did you mean '1:"),
        (rllc.head("7:0"), r"no such head; did you mean '"),
        (rllc.layer(2), r"layer\(2\).*has layers \[0, 1\]"),
        (
            rllc.parameters("blocks.0.atn.W_Q"),
            r"has none; did you mean 'blocks.0.attn.W_Q'",
        ),
        (
            rllc.parameters("embed.W_E", index=99),
            r"index=\[99\].*shape \(11, 12\)",
        ),
        (rllc.parameters("embed.W_E", index=(0, 0, 0)), r"shape \(11, 12\)"),
        (
            rllc.parameters("embed.W_E", index=slice(5, 5)),
            r"select nothing.*describe\(model\)",
        ),
        (rllc.head("0:0") & rllc.head("0:1"), r"select nothing"),
        (~rllc.everything(), r"select nothing"),
        (rllc.masks({}), r"select nothing"),
        (
            rllc.masks({"embed.W_E": torch.ones(D_MODEL, dtype=torch.bool)}),
            r"must have the parameter's shape \(11, 12\), got \(12,\); masks are not broadcast",
        ),
        (
            rllc.masks({"embed.W_e": torch.ones(11, D_MODEL) > 0}),
            r"'embed.W_e'; did you mean 'embed.W_E'",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(weights: rllc.Weights, message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        weights.masks(MODEL)


def test_a_model_without_numbered_blocks_has_no_layers() -> None:
    with pytest.raises(InputError, match=r"with no known names"):
        rllc.layer(0).masks(nn.Linear(2, 2))
