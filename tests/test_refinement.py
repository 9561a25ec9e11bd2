"""Pairs of weights and data: products, forms of data, minibatches, fingerprints."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_tokens

import rllc
from rllc.errors import InputError
from rllc.refinement import fingerprint, num_rows, product, take

IDS = torch.randint(9, (5, 4))
CPU = torch.device("cpu")


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
    assert names(None, {"code": tiny_tokens(name="pile")}) == [
        ("everything", "code")
    ]  # the dict's name is the one
    (tokens,) = product(None, IDS)
    assert isinstance(tokens.data, rllc.Tokens)
    (floats,) = product(None, torch.randn(5, 3))
    assert isinstance(floats.data, tuple)
    (pair,) = product(None, (torch.randn(5, 3), torch.arange(5)))
    assert num_rows(pair.data) == 5


def test_minibatches_are_the_rows_asked_for() -> None:
    rows = torch.tensor([3, 0])
    assert torch.equal(take(product(None, IDS)[0].data, rows, CPU), IDS[rows])
    assert take(product(None, IDS)[0].data, rows, CPU).dtype == torch.long
    x, y = torch.randn(5, 3), torch.arange(5)
    batch = take((x, y), rows, CPU)
    assert torch.equal(batch[0], x[rows])
    assert torch.equal(batch[1], y[rows])
    assert torch.equal(take((x,), rows, CPU), x[rows])  # one input is not wrapped


def test_fingerprints_see_contents_and_not_names() -> None:
    x = torch.randn(5, 3)
    assert fingerprint((x,)) == fingerprint((x.clone(),))
    assert fingerprint((x,)) != fingerprint((x + 1e-6,))
    assert fingerprint((x,)) != fingerprint((x.reshape(3, 5),))
    assert fingerprint((x,)) != fingerprint((x.view(torch.int32),))
    assert fingerprint((x.T,)) == fingerprint((x.T.contiguous(),))
    assert fingerprint((x > 0,)) != fingerprint((x < 0,))
    assert fingerprint(rllc.Tokens(IDS, name="a")) == fingerprint(rllc.Tokens(IDS, name="b"))


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
        (None, (), "`data` 'data' must be rllc.Tokens"),
        (None, (torch.tensor(1.0),), "`data` 'data' must be rllc.Tokens"),
        (
            None,
            (torch.ones(3, 2), torch.ones(4)),
            r"one leading dimension of at least 1, got \[3, 4\]",
        ),
        (None, torch.ones(0, 2), r"one leading dimension of at least 1, got \[0\]"),
        (None, torch.ones(0, 4, dtype=torch.long), "there are no rows"),
        (None, torch.ones(4, 1, dtype=torch.long), "at least 2 positions"),
        (None, -IDS - 1, "token ids must be in 0"),
    ],
)
def test_what_cannot_be_refined_is_refused(weights: object, data: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        product(weights, data)  # type: ignore[arg-type]
