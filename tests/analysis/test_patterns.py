"""Attention patterns: of heads whose attention is known, and from single positions."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import bracket_model, bracket_rows, induction_model, innermost, repeats
from tiny import tiny_model, tiny_tokens

from rllc.analysis.patterns import attention_from, patterns, plot_pattern
from rllc.errors import InputError

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
ROWS = tiny_tokens(30, pos=8).rows.long()


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize(("types", "depth", "pos"), [(2, 3, 24), (4, 5, 40)])
def test_a_bracket_head_looks_at_the_innermost_open_bracket(
    types: int,
    depth: int,
    pos: int,
) -> None:
    rows = bracket_rows(20, pos, types, depth)
    pattern = patterns(bracket_model(types, depth, pos), rows)[:, 2, 0]
    expected = torch.tensor([innermost(row, types) for row in rows])
    assert pattern.gather(-1, expected[..., None]).min() > 0.9999


def test_patterns_are_causal_and_sum_to_one() -> None:
    pattern = patterns(tiny_model(), tiny_tokens(3))
    assert pattern.shape == (3, 2, 3, 7, 7)
    assert not pattern.triu(1).any()
    assert torch.allclose(pattern.sum(-1), torch.ones(3, 2, 3, 7), atol=1e-6)
    assert not pattern.requires_grad


def test_queries_are_those_of_the_whole_pattern() -> None:
    model = tiny_model(n_layers=3)
    pattern = patterns(model, ROWS).numpy()
    stream = np.random.default_rng(0)
    layer, head = stream.integers(0, 3, 200), stream.integers(0, 3, 200)
    row, query = stream.integers(0, 30, 200), stream.integers(0, 8, 200)
    places = np.stack([layer, head], 1)
    indices = []
    for index, attention in attention_from(model, ROWS, places, row, query):
        indices += index.tolist()
        expected = pattern[row[index], layer[index], head[index], query[index]]
        assert np.allclose(attention, expected, atol=1e-6)
    assert sorted(indices) == list(range(200))


def test_figure_shows_the_numbers() -> None:
    pattern = patterns(induction_model(), repeats())[0, 1, 1]
    _, ax = plt.subplots()
    labels = [str(i) for i in range(19)]
    assert plot_pattern(pattern, labels, ax=ax) is ax
    assert np.array_equal(ax.images[0].get_array(), pattern.numpy())
    assert plot_pattern(pattern).get_xlabel() == "key"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: patterns(m, [[1, 2]]),
            r"patterns: expected rllc\.Tokens or a tensor \[row, pos\].* got list",
        ),
        (
            lambda m: patterns(m, torch.tensor([[1, 11]])),
            "have id 11, but the model knows ids below 11",
        ),
        (
            lambda m: patterns(m, torch.ones(1, 9).long()),
            r"have 9 positions, but the model's context is 8; take",
        ),
        (lambda m: plot_pattern(np.ones((2, 3))), r"\[query, key\], got shape \(2, 3\); pick one"),
        (lambda m: plot_pattern(np.ones((2, 2)), ["a"]), "a label for each of 2 positions, got 1"),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
