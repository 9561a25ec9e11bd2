"""One rule for names, where they enter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, square
from torch import nn

import rllc
from rllc.storage.files import save_arrays
from rllc.weights.names import LONGEST_NAME, Names, check_name

BAD = ["", " a", "a\nb", "a\0b", "\x1b[31mred", "\ud800", "a" * 70_000, "a.npy", "a\u202eb"]
DATA = torch.ones(8, 3)


def draw(model: nn.Module, **arguments: object) -> rllc.Draws:
    return rllc.sample(model, loss=square, sampling=SHORT, compute=QUIET, **arguments)


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_names_that_nothing_can_show_are_refused_where_they_enter(name: str) -> None:
    model = nn.Linear(3, 1)
    for arguments in (
        {"data": {name: DATA}},
        {"weights": {name: rllc.everything()}},
        {"observe": {name: rllc.distance()}},
    ):
        message = "a name must be a text of 1 to 500 printable characters .* got "
        with pytest.raises(rllc.InputError, match=message) as caught:
            draw(model, **{"data": DATA} | arguments)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_usual_names_are_good() -> None:
    for name in ("a", "0:1 | ~(1:6)", "data/code", "Größe", "a" * LONGEST_NAME):
        check_name(name, "weights")


def test_two_spellings_of_one_head_are_no_two_names() -> None:
    weights = {"1:6": rllc.head("0:1"), "L1H6": rllc.head("1:6")}
    with pytest.raises(rllc.InputError, match=r"\['1:6'\] each name more than one selection"):
        rllc.weights.refinement.product(weights, DATA)


def test_arrays_that_numpy_takes_for_one_are_refused(tmp_path) -> None:
    arrays = {"a": np.zeros(1), "a.npy": np.ones(1)}
    with pytest.raises(rllc.FileError, match=r"NumPy takes 'a' and 'a\.npy' for one"):
        save_arrays(tmp_path / "x.npz", arrays, {})


def test_a_layer_is_that_of_each_tower() -> None:
    """Encoder-decoder models have heads such as "decoder.1:0"."""
    names = Names(("encoder.0:0", "encoder.1:3", "decoder.cross.1:0"), ("a", "a", "a"))
    assert names.matching(layer=1) == [1, 2]
    with pytest.raises(rllc.errors.InputError, match=r"heads are of the layers \[0, 1\]"):
        names.matching(layer=2)
