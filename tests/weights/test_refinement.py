"""Pairs of weights and data: products, and the forms in which weights and data are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_tokens

import rllc
from rllc.data import Tensors
from rllc.errors import InputError
from rllc.weights.refinement import fingerprints, product

IDS = torch.randint(9, (5, 4))


def names(weights: Any, data: Any) -> list[tuple[str, str]]:
    return [refinement.name for refinement in product(weights, data)]


def test_the_product_has_every_pair_weights_slowest() -> None:
    data = {"code": IDS, "prose": tiny_tokens()}
    assert names(["0:1", rllc.everything()], data) == [
        ("0:1", "code"),
        ("0:1", "prose"),
        ("everything", "code"),
        ("everything", "prose"),
    ]


# Weights.


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, ["everything"]),
        ("L1H2", ["1:2"]),
        (rllc.layer(0), ["layer 0"]),
        (iter(["0:0", "0:1"]), ["0:0", "0:1"]),
        ({"previous token": "0:1", 7: rllc.layer(0)}, ["previous token", "7"]),
    ],
)
def test_forms_of_weights(weights: Any, expected: list[str]) -> None:
    assert names(weights, IDS) == [(name, "data") for name in expected]


def test_a_name_changes_no_weights() -> None:
    (refinement,) = product({"x": "0:1"}, IDS)
    assert refinement.weights.rule == rllc.head("0:1").rule


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("3.weight", r"'3.weight' is no head.*type rllc.parameters\('3.weight'\)"),
        (["0:1", "*.W_Q"], r"type rllc.parameters\('\*.W_Q'\)"),
        ([], "`weights`: the list is empty"),
        ({}, "`weights`: the list is empty"),
        (["0:1", "L0H1"], r"\['0:1'\] each name more than one selection; pass a dict"),
        ({1: "0:1", "1": "0:2"}, r"\['1'\] each name more than one selection"),
        ([torch.ones(3)], r"`weights` must be rllc.Weights.*got Tensor.*rllc.masks"),
        (rllc.heads, r"got function; rllc.heads is a function of the model"),
        (3, r"`weights` must be rllc.Weights, a list or a dict of them, got int"),
    ],
)
def test_weights_that_cannot_be_refined_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        product(weights, IDS)


# Data.


def test_a_dict_names_data_that_have_a_name_already() -> None:
    assert names(None, tiny_tokens(name="pile")) == [("everything", "pile")]
    assert names(None, {"code": tiny_tokens(name="pile")}) == [("everything", "code")]


def test_integer_rows_become_tokens() -> None:
    (refinement,) = product(None, IDS)
    assert isinstance(refinement.data, rllc.Tokens)


@pytest.mark.parametrize("data", [torch.randn(5, 3), (torch.randn(5, 3), torch.arange(5))])
def test_other_tensors_become_tensors(data: Any) -> None:
    (refinement,) = product(None, data)
    assert isinstance(refinement.data, Tensors)
    assert len(refinement.data) == 5
    assert refinement.name == ("everything", "data")


def test_data_of_ones_own_stay_what_they_are() -> None:
    images = Tensors((torch.randn(5, 3),), name="images")
    assert product(None, images)[0].data is images
    assert names(None, images) == [("everything", "images")]
    assert names(None, {"digits": images}) == [("everything", "digits")]


def test_fingerprints_are_by_the_names_of_the_data() -> None:
    code = tiny_tokens(seed=1)
    prose = tiny_tokens(seed=2)
    refinements = product(["0:1", "1:0"], {"code": code, "prose": prose})
    assert fingerprints(refinements) == {"code": code.fingerprint, "prose": prose.fingerprint}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "`data`: the dict is empty"),
        ({1: IDS, "1": IDS}, r"`data`: of the names \[1, '1'\], written out, two are the same"),
        (object(), "`data` 'data' must be rllc.Tokens, a tensor .* got object"),
        ({"code": 3}, "`data` 'code' must be rllc.Tokens.* got int"),
        ({"code": "some text"}, "`data` 'code' must be rllc.Tokens.* got str"),
        ((), "`data` 'data': expected a tuple of tensors"),
        ((torch.tensor(1.0),), "`data` 'data': expected a tuple of tensors"),
        (
            (torch.ones(3, 2), torch.ones(4)),
            r"one leading dimension of at least 1, got \[3, 2\], \[4\]",
        ),
        (torch.ones(0, 2), r"one leading dimension of at least 1, got \[0, 2\]"),
        (torch.ones(0, 4, dtype=torch.long), "there are no rows"),
        (torch.ones(4, 1, dtype=torch.long), "at least 2 positions"),
        (-IDS - 1, "token ids must be in 0"),
    ],
)
def test_data_that_cannot_be_refined_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        product(None, data)
