"""Selections of weights: what each takes, how they compose, and what is refused."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from tiny import SIZES, tiny_model
from torch import nn

import rllc
from rllc.errors import InputError
from rllc.testing import check_weights

MODEL = tiny_model()
D, H, W = SIZES["d_model"], SIZES["n_heads"], SIZES["d_head"]
HEAD = 3 * D * W + W * D + 3 * W


def test_everything_is_every_number() -> None:
    assert rllc.everything().count(MODEL) == sum(p.numel() for p in MODEL.parameters())
    assert rllc.everything().name == "everything"


def test_a_head_is_its_slices_of_seven_tensors() -> None:
    masks = rllc.head("1:2").masks(MODEL)
    assert sorted(masks) == sorted(
        f"blocks.1.attn.{t}" for t in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    )
    for mask in masks.values():
        assert mask[2].all()
        assert not mask[:2].any()
    assert rllc.head("1:2").count(MODEL) == HEAD


def test_the_papers_head_has_32864_numbers() -> None:
    paper = tiny_model(n_layers=1, d_model=256, n_heads=2, d_head=32)
    assert rllc.head("0:1").count(paper) == 32_864


@pytest.mark.parametrize("name", ["1:6", "L1H6", "l1h6", " 1:6 ", "1.6", "L1:6"])
def test_names_of_a_head(name: str) -> None:
    assert rllc.head(name) == rllc.head(1, 6)
    assert rllc.head(name).name == "1:6"


def test_heads_are_all_heads_in_order() -> None:
    assert [w.name for w in rllc.heads(MODEL)] == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_heads_of_several_layers_of_ten_or_more_are_in_numerical_order() -> None:
    deep = tiny_model(n_layers=11, d_model=2, n_heads=1, d_head=2)
    assert [w.name for w in rllc.heads(deep)] == [f"{layer}:0" for layer in range(11)]
    assert sorted(rllc.layer(1).masks(deep)) == sorted(
        n for n, _ in deep.named_parameters() if n.startswith("blocks.1.")
    )


def test_a_layer_is_all_of_its_block() -> None:
    names = {name for name, _ in MODEL.named_parameters() if name.startswith("blocks.1.")}
    assert set(rllc.layer(1).masks(MODEL)) == names
    assert rllc.layer(1).count(MODEL) == H * HEAD + D + 2 * D  # heads, b_O, LayerNorm


def test_a_layer_of_other_models() -> None:
    model = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])})
    assert set(rllc.layer(1).masks(model)) == {"h.1.weight", "h.1.bias"}


def test_parameters_by_glob_and_index() -> None:
    assert rllc.parameters("blocks.*.attn.W_Q", index=1).count(MODEL) == 2 * D * W
    assert rllc.parameters("embed.W_E", index=(slice(2, 5), 0)).count(MODEL) == 3
    assert rllc.parameters("embed.W_E", index=slice(None, None, 2)).name == "embed.W_E[::2]"
    picked = rllc.parameters("blocks.0.attn.W_Q", index=(-1, slice(None), 0)).masks(MODEL)[
        "blocks.0.attn.W_Q"
    ]
    assert picked[-1, :, 0].all()
    assert int(picked.sum()) == D


def test_masks_take_what_they_mark() -> None:
    mask = torch.rand(SIZES["d_vocab"], D) < 0.3
    weights = rllc.masks({"embed.W_E": mask}, name="some embeddings")
    assert torch.equal(weights.masks(MODEL)["embed.W_E"], mask)
    assert weights.name == "some embeddings"
    mask[0] = True  # a selection keeps what it was given
    assert not torch.equal(weights.masks(MODEL)["embed.W_E"], mask)


def test_composition_is_set_algebra() -> None:
    a, b = rllc.head("0:0") | rllc.head("1:1"), rllc.layer(0)

    def flat(w: rllc.Weights) -> torch.Tensor:
        masks = w.masks(MODEL)
        nothing = {
            name: torch.zeros(p.shape, dtype=torch.bool) for name, p in MODEL.named_parameters()
        }
        return torch.cat([mask.flatten() for mask in (nothing | masks).values()])

    A, B = flat(a), flat(b)
    assert torch.equal(flat(a | b), A | B)
    assert torch.equal(flat(a & b), A & B)
    assert torch.equal(flat(~a), ~A)
    assert torch.equal(flat(~(a | b)), flat(~a & ~b))  # De Morgan


def test_names_of_compositions_are_unambiguous_and_can_be_replaced() -> None:
    a, b, c = rllc.head("0:0"), rllc.head("0:1"), rllc.layer(1)
    assert (a | b).name == "0:0 | 0:1"
    assert ((a | b) & c).name != (a | (b & c)).name
    assert (~(a | b)).name != (~a | b).name
    assert (a | b).named("circuit").name == "circuit"


def test_selections_are_values() -> None:
    indexed = rllc.parameters("embed.W_E", index=(slice(2, 5), 0))
    for weights in (
        indexed,
        rllc.head("0:1"),
        ~rllc.layer(1),
        rllc.masks({"v": torch.tensor([True, False])}),
    ):
        assert hash(weights) == hash(pickle.loads(pickle.dumps(weights)))
        assert weights == pickle.loads(pickle.dumps(weights))
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
    ids=lambda w: w.name,
)
def test_selections_pass_their_own_check(weights: rllc.Weights) -> None:
    check_weights(weights, MODEL)


def test_scalars_and_vectors_can_be_selected() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    model.vector = nn.Parameter(torch.ones(5))
    check_weights(rllc.everything(), model)
    check_weights(rllc.parameters("vector", index=slice(1, 3)) | rllc.parameters("scale"), model)


def test_describe_says_what_is_taken() -> None:
    lines = rllc.head("1:2").describe(MODEL).splitlines()
    total = sum(p.numel() for p in MODEL.parameters())
    assert lines[0] == f"1:2: {HEAD} of {total:,} weights"
    assert len(lines) == 8
    assert re.search(r"blocks\.1\.attn\.W_Q\s+\(3, 12, 4\)\s+48 of 144", "\n".join(lines))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rllc.head("1:9").masks(MODEL), r"head\('1:9'\).*no such head; did you mean '1:"),
        (lambda: rllc.head("7:0").masks(MODEL), r"no such head; did you mean '"),
        (lambda: rllc.head("induction"), r"expected a head such as '1:6' or 'L1H6'"),
        (lambda: rllc.head("1:2", 3), r"expected a head such as"),
        (lambda: rllc.head(1), r"head\(1, None\): expected a layer and a head"),
        (lambda: rllc.head(-1, 0), r"from 0 on"),
        (lambda: rllc.heads(nn.Linear(2, 2)), r"expected parameters named like 'blocks.0.attn.W_Q'.*rllc.parameters"),
        (lambda: rllc.layer(2).masks(MODEL), r"layer\(2\).*has layers \[0, 1\]"),
        (lambda: rllc.layer(0).masks(nn.Linear(2, 2)), r"with no known names"),
        (lambda: rllc.parameters("blocks.0.atn.W_Q").masks(MODEL), r"has none; did you mean 'blocks.0.attn.W_Q'"),
        (lambda: rllc.parameters("embed.W_E", index=99).masks(MODEL), r"index=\[99\].*shape \(11, 12\)"),
        (lambda: rllc.parameters("embed.W_E", index=(0, 0, 0)).masks(MODEL), r"shape \(11, 12\)"),
        (lambda: rllc.parameters("embed.W_E", index=[0, 1]), r"expected integers and slices.*rllc.masks"),
        (lambda: rllc.parameters("embed.W_E", index=slice(5, 5)).masks(MODEL), r"select nothing.*describe\(model\)"),
        (lambda: (rllc.head("0:0") & rllc.head("0:1")).masks(MODEL), r"select nothing"),
        (lambda: (~rllc.everything()).masks(MODEL), r"select nothing"),
        (lambda: rllc.masks({}).masks(MODEL), r"select nothing"),
        (lambda: rllc.masks({"ln_final.w": torch.ones(D)}), r"must be a boolean tensor, got torch.float32.*mask.bool"),
        (lambda: rllc.masks({"ln_final.w": [True] * D}), r"must be a boolean tensor, got list"),
        (
            lambda: rllc.masks({"embed.W_E": torch.ones(D, dtype=torch.bool)}).masks(MODEL),
            r"must have the parameter's shape \(11, 12\), got \(12,\); masks are not broadcast",
        ),
        (lambda: rllc.masks({"embed.W_e": torch.ones(11, D) > 0}).masks(MODEL), r"'embed.W_e'; did you mean 'embed.W_E'"),
    ],
)  # fmt: skip
def test_what_cannot_be_selected_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        make()  # type: ignore[operator]
