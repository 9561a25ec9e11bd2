"""Data as the rest of the library sees them: rows, minibatches, fingerprints, refusals."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import numpy as np
import pytest
import torch

from rllc.data import Batch, Data, Tensors, Tokens
from rllc.errors import InputError

CPU = torch.device("cpu")
IDS = torch.arange(20).view(5, 4)
INPUTS = torch.randn(5, 3)
TARGETS = torch.arange(5)
ROWS = torch.tensor([3, 0])


def test_tokens_and_tensors_are_data_and_plain_tensors_are_not() -> None:
    assert isinstance(Tokens(IDS), Data)
    assert isinstance(Tensors((INPUTS,)), Data)
    for other in (IDS, (INPUTS, TARGETS), [IDS], "text", {"code": IDS}, np.zeros((2, 2))):
        assert not isinstance(other, Data)


def test_a_class_with_the_five_members_is_data() -> None:
    class Squares:
        name = "squares"
        fingerprint = "0" * 64
        shape = (1,)

        def __len__(self) -> int:
            return 10

        def take(self, rows: torch.Tensor, device: torch.device) -> Batch:
            return rows[:, None].square().to(device)

    assert isinstance(Squares(), Data)


@pytest.mark.parametrize("kind", [Tokens, Tensors])
def test_data_have_the_parameters_of_the_protocol(kind: type) -> None:
    expected = inspect.signature(Data.take).parameters
    assert list(inspect.signature(kind.take).parameters) == list(expected)


def test_a_minibatch_of_tokens_is_the_rows_as_int64() -> None:
    batch = Tokens(IDS).take(ROWS, CPU)
    assert batch.equal(IDS[ROWS])
    assert batch.dtype == torch.int64
    assert Tokens(IDS).shape == (4,)


def test_a_minibatch_of_tensors_has_the_rows_of_each() -> None:
    pair = Tensors((INPUTS, TARGETS))
    inputs, targets = pair.take(ROWS, CPU)
    assert inputs.equal(INPUTS[ROWS])
    assert targets.equal(TARGETS[ROWS])
    assert len(pair) == 5
    assert pair.shape == (3,)


def test_a_minibatch_of_one_tensor_is_that_tensor() -> None:
    assert Tensors((INPUTS,)).take(ROWS, CPU).equal(INPUTS[ROWS])  # type: ignore[union-attr]


def test_the_fingerprint_of_tensors_is_a_hash_of_types_shapes_and_bytes() -> None:
    pair = Tensors((torch.tensor([[1.0], [2.0]]), torch.tensor([3, 4], dtype=torch.int32)))
    by_hand = hashlib.sha256(b"torch.float32 (2, 1)" + np.float32([1, 2]).tobytes())
    by_hand.update(b"torch.int32 (2,)" + np.int32([3, 4]).tobytes())
    assert pair.fingerprint == by_hand.hexdigest()


def test_fingerprints_see_contents_and_not_names() -> None:
    def fingerprint(part: torch.Tensor, name: str = "data") -> str:
        return Tensors((part,), name).fingerprint

    first = fingerprint(INPUTS)
    assert fingerprint(INPUTS.clone(), "other") == first
    assert fingerprint(INPUTS + 1e-6) != first
    assert fingerprint(INPUTS.reshape(3, 5)) != first
    assert fingerprint(INPUTS.view(torch.int32)) != first
    assert fingerprint(INPUTS.T) == fingerprint(INPUTS.T.contiguous())
    assert fingerprint(INPUTS > 0) != fingerprint(INPUTS < 0)
    assert Tokens(IDS, name="a").fingerprint == Tokens(IDS, name="b").fingerprint


@pytest.mark.parametrize(
    ("parts", "got"),
    [
        ((), "got no tensor"),
        ((torch.tensor(1.0),), r"got \[\]"),
        ((torch.ones(0, 2),), r"got \[0, 2\]"),
        ((torch.ones(3, 2), torch.ones(4)), r"got \[3, 2\], \[4\]"),
        ((torch.ones(3), [1, 2, 3]), "got a tuple of Tensor, list"),
        (torch.ones(3), "got Tensor"),
    ],
)
def test_tensors_without_one_leading_dimension_are_refused(parts: Any, got: str) -> None:
    expected = "`data` 'toy': expected a tuple of tensors with one leading dimension of at least 1"
    with pytest.raises(InputError, match=f"{expected}, {got}"):
        Tensors(parts, "toy")
