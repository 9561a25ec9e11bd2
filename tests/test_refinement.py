"""Pairs of weights and data: products, and the forms in which weights and data are given."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_tokens

import rllc
from rllc.data import Tensors
from rllc.errors import InputError
from rllc.refinement import fingerprints, product

IDS = torch.randint(9, (5, 4))


def names(weights: object, data: object) -> list[tuple[str, str]]:
    return [r.name for r in product(weights, data)]  # type: ignore[arg-type]


def test_the_product_has_every_pair_weights_slowest() -> None:
    data = {"code": IDS, "prose": tiny_tokens()}
    assert names(["0:1", rllc.everything()], data) == [
        ("0:1", "code"),
        ("0:1", "prose"),
        ("everything", "code"),
        ("everything", "prose"),
    ]


def test_forms_of_weights() -> None:
    assert names(None, IDS) == [("everything", "data")]
    assert names("L1H2", IDS) == [("1:2", "data")]
    assert names((w for w in ("0:0", "0:1")), IDS) == [("0:0", "data"), ("0:1", "data")]
    assert names({"previous token": "0:1", 7: rllc.layer(0)}, IDS) == [
        ("previous token", "data"),
        ("7", "data"),
    ]
    assert product({"x": "0:1"}, IDS)[0].weights.rule == rllc.head("0:1").rule


def test_forms_of_data() -> None:
    assert names(None, tiny_tokens(name="pile")) == [("everything", "pile")]
    assert names(None, {"code": tiny_tokens(name="pile")}) == [("everything", "code")]
    (ids,) = product(None, IDS)
    assert isinstance(ids.data, rllc.Tokens)
    for data in (torch.randn(5, 3), (torch.randn(5, 3), torch.arange(5))):
        (refinement,) = product(None, data)
        assert isinstance(refinement.data, Tensors)
        assert len(refinement.data) == 5
        assert refinement.name == ("everything", "data")


def test_data_of_ones_own_stay_what_they_are() -> None:
    own = Tensors((torch.randn(5, 3),), name="images")
    assert product(None, own)[0].data is own
    assert names(None, own) == [("everything", "images")]
    assert names(None, {"digits": own}) == [("everything", "digits")]


def test_fingerprints_are_by_the_names_of_the_data() -> None:
    code, prose = tiny_tokens(seed=1), tiny_tokens(seed=2)
    refinements = product(["0:1", "1:0"], {"code": code, "prose": prose})
    assert fingerprints(refinements) == {"code": code.fingerprint, "prose": prose.fingerprint}


@pytest.mark.parametrize(
    ("weights", "data", "message"),
    [
        ([], IDS, "`weights`: the list is empty"),
        ({}, IDS, "`weights`: the list is empty"),
        (["0:1", "L0H1"], IDS, r"\['0:1'\] each name more than one selection; pass a dict"),
        ({1: "0:1", "1": "0:2"}, IDS, r"\['1'\] each name more than one selection"),
        ([torch.ones(3)], IDS, r"`weights` must be rllc.Weights.*got Tensor.*rllc.masks"),
        (None, {}, "`data`: the dict is empty"),
        (
            None,
            {1: IDS, "1": IDS},
            r"`data`: of the names \[1, '1'\], written out, two are the same",
        ),
        (None, [[1, 2]], "`data` 'data' must be rllc.Tokens, a tensor .* got list"),
        (None, {"code": "some text"}, "`data` 'code' must be rllc.Tokens.* got str"),
        (None, (), "`data` 'data': expected a tuple of tensors"),
        (None, (torch.tensor(1.0),), "`data` 'data': expected a tuple of tensors"),
        (
            None,
            (torch.ones(3, 2), torch.ones(4)),
            r"one leading dimension of at least 1, got \[3, 2\], \[4\]",
        ),
        (None, torch.ones(0, 2), r"one leading dimension of at least 1, got \[0, 2\]"),
        (None, torch.ones(0, 4, dtype=torch.long), "there are no rows"),
        (None, torch.ones(4, 1, dtype=torch.long), "at least 2 positions"),
        (None, -IDS - 1, "token ids must be in 0"),
    ],
)
def test_what_cannot_be_refined_is_refused(weights: object, data: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        product(weights, data)  # type: ignore[arg-type]
