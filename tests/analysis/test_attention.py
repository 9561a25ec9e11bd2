"""Attention scores: of hand-built heads, of uniform attention, and against slow loops."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import BOS, ROLES, induction_model, repeats
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
from rllc.analysis.patterns import patterns
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
    values = {name: [] for name in SCORES}
    for k in range(1, len(row)):
        values["previous_token"].append(pattern[k, k - 1])
        values["current_token"].append(pattern[k, k])
        keys = [j for j in range(1, k) if row[j - 1] == row[k]]
        if keys:
            values["prefix_matching"].append(pattern[k, keys].sum())
    return values


def test_hand_built_heads_score_one_at_what_they_do() -> None:
    result = scores(induction_model(), bos=BOS)
    score_of_role = {
        "previous token": "previous_token",
        "current token": "current_token",
        "induction": "prefix_matching",
    }
    for head, role in ROLES.items():
        for name in SCORES:
            if name == score_of_role[role]:
                assert result[head][name] == pytest.approx(1, abs=1e-4)
            elif head != "1:1":  # an induction head rests on BOS, which may be the previous token
                assert result[head][name] == pytest.approx(0, abs=1e-4)


def test_uniform_attention_in_closed_form() -> None:
    n = 9
    result = scores(induction_model(), repeats(segment=n))
    pos = 1 + 2 * n
    uniform = np.array([1 / (k + 1) for k in range(pos)])
    for head in ("0:2", "1:0", "1:2"):
        of_head = result[head]
        assert of_head["previous_token"] == pytest.approx(uniform[1:].mean(), rel=1e-5)
        assert of_head["current_token"] == pytest.approx(uniform[1:].mean(), rel=1e-5)
        assert of_head["prefix_matching"] == pytest.approx(uniform[1 + n :].mean(), rel=1e-5)


def test_against_loops_on_rows_with_many_repeats() -> None:
    model, tokens = tiny_model(d_vocab=4), rllc.Tokens(tiny_tokens(8).rows % 4)
    pattern = torch.stack(model(tokens.rows.long(), output_attentions=True).attentions, 1)
    pattern = pattern.detach().numpy()
    assert np.allclose(patterns(model, tokens), pattern, atol=1e-6)
    result = scores(model, tokens)
    for layer, head in np.ndindex(2, 3):
        of_rows = []
        for b, row in enumerate(tokens.rows.tolist()):
            of_rows.append(slow_scores(pattern[b, layer, head], row))
        for name in SCORES:
            values = np.concatenate([of_row[name] for of_row in of_rows])
            assert getattr(result, name)[layer, head] == pytest.approx(values.mean(), rel=1e-5)
        means = [np.mean(of_row["previous_token"]) for of_row in of_rows]
        error = result.standard_error["previous_token"][layer, head]
        assert error == pytest.approx(np.std(means, ddof=1) / np.sqrt(8), rel=1e-4)


def test_batches_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (tiny_model(), tiny_tokens(7)),
        (tiny_model(n_ctx=60), tiny_tokens(3, pos=60)),
    ]
    at_once = [scores(model, tokens) for model, tokens in cases]
    monkeypatch.setattr("rllc.analysis.attention._TOKENS", 14)  # two short rows a pass
    one_weight = {"cpu": 1, "cuda": 1}  # 16 queries a block
    monkeypatch.setattr("rllc.analysis.attention._BLOCK", one_weight)
    in_parts = [scores(model, tokens) for model, tokens in cases]
    for expected, result in zip(at_once, in_parts, strict=True):
        for name in SCORES:
            first, second = getattr(expected, name), getattr(result, name)
            assert np.allclose(first, second, atol=1e-6, equal_nan=True)


def test_repeated_rows() -> None:
    rows = repeated_rows(induction_model(), num_rows=50, bos=3).rows
    assert rows.shape == (50, 1 + 2 * 11)
    assert (rows[:, 0] == 3).all()
    assert (rows[:, 1:12] == rows[:, 12:]).all()
    assert all(len(set(row[:12].tolist())) == 12 for row in rows)
    assert repeated_rows(tiny_model(), segment=2).rows.shape == (64, 4)


def test_repeated_rows_depend_on_the_seed_alone() -> None:
    first, again, other = (repeated_rows(tiny_model(), seed=seed).rows for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


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


def test_means_over_tokens() -> None:
    stream = np.random.default_rng(0)
    values = stream.normal(size=(5, 6))
    mask = stream.random((5, 6)) < 0.5
    mean, _ = mean_over_tokens(values, mask)
    assert mean == pytest.approx(values[mask].mean())
    mean, error = mean_over_tokens(values)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.mean(1).std(ddof=1) / np.sqrt(5))
    assert np.isnan(mean_over_tokens(values[:1])[1])


def test_errors_of_means_over_rows_of_unequal_counts() -> None:
    """The mean of se² over 4000 data sets is the variance of the mean, to 4 standard errors."""
    stream = np.random.default_rng(1)
    counts = stream.integers(0, 6, size=(4000, 60))
    of_rows = stream.normal(1, 1, (4000, 60))
    noise = stream.normal(size=(4000, 60))
    sums = counts * of_rows + noise * np.sqrt(counts)
    means, errors = [], []
    for row_sums, row_counts in zip(sums, counts, strict=True):
        mean, error = ratio(row_sums, row_counts)
        means.append(mean)
        errors.append(error)
    assert np.square(errors).mean() == pytest.approx(np.var(means), rel=0.09)


def test_results_as_tables() -> None:
    result = scores(induction_model(), bos=BOS)
    frame = result.to_dataframe().set_index("head")
    assert frame.loc["1:1", "prefix_matching"] == result.prefix_matching[1, 1]
    assert list(frame.columns[:3]) == list(SCORES)
    lines = repr(result).splitlines()
    assert lines[0] == "Attention scores on random tokens, twice"
    assert lines[2].split() == ["0:0", "1.000", "0.000", "0.000"]
    assert result["L1H1"] == result["1:1"]


def test_figure_shows_the_numbers() -> None:
    result = scores(induction_model(), bos=BOS)
    ax = plot_scores(result)
    assert np.array_equal(ax.images[0].get_array()[2], result.prefix_matching.ravel())
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == list(result.heads)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: scores(nn.Linear(2, 2)),
            r"heads\(Linear\): expected attention, but no module of it looks like one",
        ),
        (lambda m: scores(m)["2:0"], "no such head; did you mean '1:0' or '0:0'"),
        (lambda m: scores(m, bos=11), "`bos` must be an id below 11, got 11"),
        (
            lambda m: repeated_rows(m, segment=5),
            "a segment of 5 distinct tokens, twice, .* from 1 to 4",
        ),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
