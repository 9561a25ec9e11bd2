"""Attention scores: of hand-built heads, of uniform attention, and against loops over queries and keys."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import BOS, ROLES, bracket_model, bracket_rows, induction_model, innermost, repeats
from tiny import tiny_model, tiny_tokens
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rllc
from rllc.analysis.attention import (
    SCORES,
    plot_scores,
    repeated_rows,
    scores,
)
from rllc.analysis.patterns import patterns, plot_pattern
from rllc.analysis.rows import mean_over_tokens, ratio
from rllc.errors import InputError
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def slow_scores(pattern: np.ndarray, row: list[int]) -> dict[str, list[float]]:
    """What counts towards each score, query by query, for one head and row."""
    found = {name: [] for name in SCORES}
    for k in range(1, len(row)):
        found["previous_token"].append(pattern[k, k - 1])
        found["current_token"].append(pattern[k, k])
        keys = [j for j in range(1, k) if row[j - 1] == row[k]]
        if keys:
            found["prefix_matching"].append(sum(pattern[k, j] for j in keys))
    return found


def test_hand_built_heads_score_one_at_what_they_do() -> None:
    result = scores(induction_model(), bos=BOS)
    kind = {
        "previous token": "previous_token",
        "current token": "current_token",
        "induction": "prefix_matching",
    }
    for head, role in ROLES.items():
        for name in SCORES:
            if name == kind[role]:
                assert result[head][name] == pytest.approx(1, abs=1e-4)
            elif head != "1:1":  # an induction head rests on BOS, which may be the previous token
                assert result[head][name] == pytest.approx(0, abs=1e-4)


def test_uniform_attention_in_closed_form() -> None:
    n = 9
    result = scores(induction_model(), repeats(segment=n))
    pos = 1 + 2 * n
    expected = np.mean([1 / (k + 1) for k in range(1, pos)])
    for head in ("0:2", "1:0", "1:2"):
        assert result[head]["previous_token"] == pytest.approx(expected, rel=1e-5)
        assert result[head]["current_token"] == pytest.approx(expected, rel=1e-5)
        assert result[head]["prefix_matching"] == pytest.approx(
            np.mean([1 / (k + 1) for k in range(1 + n, pos)]), rel=1e-5
        )


def test_against_loops_on_rows_with_many_repeats() -> None:
    model, tokens = tiny_model(d_vocab=4), rllc.Tokens(tiny_tokens(8).rows % 4)
    pattern = (
        torch.stack(model(tokens.rows.long(), output_attentions=True).attentions, 1)
        .detach()
        .numpy()
    )
    assert np.allclose(patterns(model, tokens), pattern, atol=1e-6)
    result = scores(model, tokens)
    for layer, head in np.ndindex(2, 3):
        rows = [slow_scores(pattern[b, layer, head], r) for b, r in enumerate(tokens.rows.tolist())]
        for name in SCORES:
            each = [value for row in rows for value in row[name]]
            assert getattr(result, name)[layer, head] == pytest.approx(np.mean(each), rel=1e-5)
        previous = [np.mean(row["previous_token"]) for row in rows]
        error = result.standard_error["previous_token"][layer, head]
        assert error == pytest.approx(np.std(previous, ddof=1) / np.sqrt(8), rel=1e-4)


def test_batches_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(), tiny_tokens(7)
    whole = scores(model, tokens)
    long = tiny_model(n_ctx=60), tiny_tokens(3, pos=60)
    longer = scores(*long)
    monkeypatch.setattr("rllc.analysis.attention._TOKENS", 14)  # two rows a pass
    monkeypatch.setattr("rllc.analysis.attention._BLOCK", {"cpu": 1, "cuda": 1})  # 16 queries a block
    for name in SCORES:
        assert np.allclose(getattr(scores(*long), name), getattr(longer, name), atol=1e-6)
        assert np.allclose(
            getattr(scores(model, tokens), name), getattr(whole, name), atol=1e-6, equal_nan=True
        )


def test_a_bracket_head_looks_at_the_innermost_open_bracket() -> None:
    for types, depth, pos in ((2, 3, 24), (4, 5, 40)):
        rows = bracket_rows(20, pos, types, depth)
        pattern = patterns(bracket_model(types, depth, pos), rows)[:, 2, 0]
        truth = torch.tensor([innermost(row, types) for row in rows])
        assert pattern.gather(-1, truth[..., None]).min() > 0.9999


def test_patterns_are_causal_and_sum_to_one() -> None:
    found = patterns(tiny_model(), tiny_tokens(3))
    assert found.shape == (3, 2, 3, 7, 7)
    assert not found.triu(1).any()
    assert torch.allclose(found.sum(-1), torch.ones(3, 2, 3, 7), atol=1e-6)
    assert not found.requires_grad


def test_repeated_rows() -> None:
    rows = repeated_rows(induction_model(), num_rows=50, bos=3).rows
    assert rows.shape == (50, 1 + 2 * 11)
    assert (rows[:, 0] == 3).all()
    assert (rows[:, 1:12] == rows[:, 12:]).all()
    assert all(len(set(row[:12].tolist())) == 12 for row in rows)
    assert torch.equal(
        repeated_rows(tiny_model(), seed=1).rows, repeated_rows(tiny_model(), seed=1).rows
    )
    assert not torch.equal(
        repeated_rows(tiny_model(), seed=1).rows, repeated_rows(tiny_model(), seed=2).rows
    )
    assert repeated_rows(tiny_model(), segment=2).rows.shape == (64, 4)


def test_tokens_that_never_repeat_have_no_prefix_matching_score() -> None:
    result = scores(tiny_model(), torch.arange(6)[None].repeat(3, 1))
    assert np.isnan(result.prefix_matching).all()
    assert np.isfinite(result.previous_token).all()
    assert "nan" in repr(result)


def test_scores_cost_little_more_than_the_forward_pass() -> None:
    with torch.random.fork_rng(devices=[]):
        model = rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig())
    tokens = torch.randint(5000, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.activations(tokens, [])
    with FlopCounterMode(display=False) as counter:
        scores(model, tokens)
    assert counter.get_total_flops() < 1.5 * forward.get_total_flops()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        scores(model)
        patterns(model, tiny_tokens())
    assert model.training


def test_means_over_tokens_and_their_errors() -> None:
    stream = np.random.default_rng(0)
    each, where = stream.normal(size=(5, 6)), stream.random((5, 6)) < 0.5
    mean, _ = mean_over_tokens(each, where)
    assert mean == pytest.approx(each[where].mean())
    mean, error = mean_over_tokens(each)
    assert (mean, error) == pytest.approx((each.mean(), each.mean(1).std(ddof=1) / np.sqrt(5)))
    assert np.isnan(mean_over_tokens(each[:1])[1])
    # unequal counts: 4000 data sets of 60 rows; the mean of se² is the variance of the mean, to 4 standard errors (9 %)
    counts = stream.integers(0, 6, size=(4000, 60))
    sums = counts * stream.normal(1, 1, (4000, 60)) + stream.normal(size=(4000, 60)) * np.sqrt(
        counts
    )
    found = np.array([ratio(s, n) for s, n in zip(sums, counts, strict=True)])
    assert np.square(found[:, 1]).mean() == pytest.approx(found[:, 0].var(), rel=0.09)


def test_results_as_tables() -> None:
    result = scores(induction_model(), bos=BOS)
    frame = result.to_dataframe().set_index("head")
    assert frame.loc["1:1", "prefix_matching"] == result.prefix_matching[1, 1]
    assert list(frame.columns[:3]) == list(SCORES)
    lines = repr(result).splitlines()
    assert lines[0] == "Attention scores on random tokens, twice"
    assert lines[2].split() == ["0:0", "1.000", "0.000", "0.000"]
    assert result["L1H1"] == result["1:1"]


def test_figures_show_the_numbers() -> None:
    result = scores(induction_model(), bos=BOS)
    ax = plot_scores(result)
    assert np.array_equal(ax.images[0].get_array()[2], result.prefix_matching.ravel())
    assert [t.get_text() for t in ax.get_xticklabels()] == list(result.heads)
    pattern = patterns(induction_model(), repeats())[0, 1, 1]
    _, given = plt.subplots()
    assert plot_pattern(pattern, [str(i) for i in range(19)], ax=given) is given
    assert np.array_equal(given.images[0].get_array(), pattern.numpy())
    assert plot_pattern(pattern).get_xlabel() == "key"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: scores(nn.Linear(2, 2)),
            r"scores: expected an rllc\.models\.AttentionOnly.* got Linear; other trans",
        ),
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
        (lambda m: scores(m)["2:0"], "no such head; did you mean '1:0' or '0:0'"),
        (lambda m: scores(m, bos=11), "`bos` must be an id below 11, got 11"),
        (
            lambda m: repeated_rows(m, segment=5),
            "a segment of 5 distinct tokens, twice, .* from 1 to 4",
        ),
        (lambda m: plot_pattern(np.ones((2, 3))), r"\[query, key\], got shape \(2, 3\); pick one"),
        (lambda m: plot_pattern(np.ones((2, 2)), ["a"]), "a label for each of 2 positions, got 1"),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
