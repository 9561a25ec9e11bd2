"""The synthetic language: its tokens and probabilities, against a reader written apart from it."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reader import read, unit_chances, unmatched

from rllc.data.synthetic import RULES, SHARES, Language, Synthetic
from rllc.errors import InputError

LANGUAGE = Language(
    vocab_size=50,
    context_length=40,
    num_ngrams=40,
    num_skip_ngrams=12,
    segment_lengths=(3, 6),
    seed=3,
)
SUBSETS = ["mixture", *RULES[1:]]


# Against the reader.


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("subset", SUBSETS)
def test_every_token_is_what_a_reader_of_the_tokens_alone_finds(subset: str, order: int) -> None:
    num_ngrams = 8 if order == 2 else 40
    language = replace(LANGUAGE, order=order, num_ngrams=num_ngrams, num_skip_ngrams=5)
    chances = unit_chances(language, subset)
    sample = language.sample(40, subset=subset)
    for k, row in enumerate(sample.tokens.rows.tolist()):
        known = read(language, chances, row)
        assert [RULES[rule] for rule in sample.rule[k]] == [token.rule for token in known]
        assert sample.source[k].tolist() == [token.source for token in known]
        surprise = -np.log([token.chance for token in known])
        assert sample.surprise[k] == pytest.approx(surprise, abs=1e-12)


def chance_of(beginning: list[int], token: int, chances: dict[str, float]) -> float:
    """Probability that the token comes next, by the reader."""
    known = read(LANGUAGE, chances, [*beginning, token])
    # The reader stops at a token that cannot come, so what follows such a one is not read.
    return known[-1].chance if len(known) == len(beginning) + 1 else 0.0


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_entropy_is_that_of_all_tokens_that_the_reader_says_may_come(subset: str) -> None:
    sample = LANGUAGE.sample(4 if subset == "mixture" else 1, seed=1, subset=subset)
    chances = unit_chances(LANGUAGE, subset)
    for k, row in enumerate(sample.tokens.rows.tolist()):
        for pos in range(1, len(row)):
            p = [chance_of(row[:pos], token, chances) for token in range(LANGUAGE.vocab_size)]
            assert sum(p) == pytest.approx(1, abs=1e-9)
            entropy = -sum(x * math.log(x) for x in p if x > 0)
            assert sample.entropy[k, pos] == pytest.approx(entropy, abs=1e-9)


# Chances. Bounds are 5 standard errors: a false alarm in 2 million.


@pytest.mark.parametrize("subset", SUBSETS)
def test_tokens_are_drawn_with_the_probabilities_that_are_stated(subset: str) -> None:
    """surprise − entropy has mean 0 given the past, so its mean over n has standard error sd/√n."""
    sample = LANGUAGE.sample(500, seed=2, subset=subset)
    excess = (sample.surprise - sample.entropy)[:, 1:]
    standard_error = excess.std() / math.sqrt(excess.size)
    assert abs(excess.mean()) < 5 * standard_error + 1e-12


def test_units_come_as_often_as_stated() -> None:
    num_rows = 1500
    sample = LANGUAGE.sample(num_rows, seed=4)
    first = sample.tokens.rows[:, 1].numpy()
    for rule, chance in unit_chances(LANGUAGE, "mixture").items():
        count = np.isin(first, list(LANGUAGE.openers[rule])).sum()
        standard_error = math.sqrt(num_rows * chance * (1 - chance))
        assert abs(count - num_rows * chance) < 5 * standard_error


@pytest.mark.slow
def test_long_rows_have_the_shares_that_were_asked_for() -> None:
    num_rows = 40
    sample = replace(LANGUAGE, context_length=4000).sample(num_rows)
    for rule, share in SHARES.items():
        shares = (sample.rule == RULES.index(rule)).mean(1)
        standard_error = shares.std(ddof=1) / math.sqrt(num_rows)
        # The last unit of a row is cut, which costs long units a little.
        assert abs(shares.mean() - share) < 5 * standard_error + 0.002, rule


# What rows are made of.


@pytest.mark.parametrize("rule", RULES[1:])
def test_a_subset_has_units_of_one_rule_only(rule: str) -> None:
    assert set(LANGUAGE.sample(20, subset=rule).rule.ravel()) == {0, RULES.index(rule)}


def test_rules_without_a_share_do_not_occur() -> None:
    language = replace(LANGUAGE, shares={"induction": 0.5, "dyck": 0.5, "copy": 0.0})
    rules = {RULES[rule] for rule in language.sample(50).rule.ravel()}
    assert rules == {"start", "induction", "dyck"}
    subsets = language.subsets(3)
    assert list(subsets) == ["mixture", "induction", "dyck"]
    assert [tokens.name for tokens in subsets.values()] == list(subsets)


@pytest.mark.parametrize("rule", ["dyck", "sexpr"])
def test_brackets_balance_and_reach_the_greatest_depth(rule: str) -> None:
    deepest = 0
    for row in LANGUAGE.sample(100, subset=rule).tokens.rows.tolist():
        for length in range(1, len(row) + 1):
            deepest = max(deepest, len(unmatched(LANGUAGE, row[:length])))
    assert deepest == LANGUAGE.max_depth


def fixed_tokens(sample: Synthetic, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that a rule fixes, and the tokens where their sources are."""
    rows = sample.tokens.rows.numpy()
    is_of_rule = sample.rule == RULES.index(rule)
    row, pos = np.nonzero(sample.predictable & is_of_rule)
    return rows[row, pos], rows[row, sample.source[row, pos]]


def test_copied_tokens_are_those_at_their_sources() -> None:
    sample = LANGUAGE.sample(200)
    for rule in ("induction", "copy"):
        tokens, sources = fixed_tokens(sample, rule)
        assert len(tokens) > 0
        assert np.array_equal(tokens, sources)
    row, pos = np.nonzero(sample.predictable & (sample.rule == RULES.index("copy")))
    assert np.array_equal(sample.source[row, pos], pos - 2)


def test_closing_brackets_have_their_openers_as_sources() -> None:
    sample = LANGUAGE.sample(200)
    for rule in ("dyck", "sexpr"):
        tokens, sources = fixed_tokens(sample, rule)
        assert len(tokens) > 0
        assert tokens.tolist() == [LANGUAGE.brackets[opener] for opener in sources]


def test_n_grams_fix_tokens_and_sources_come_first() -> None:
    sample = LANGUAGE.sample(200)
    for rule in ("ngram", "skip_ngram"):
        tokens, _ = fixed_tokens(sample, rule)
        assert len(tokens) > 0
    assert (sample.source < np.arange(LANGUAGE.context_length)).all()


# What rows depend on.


def test_rows_are_a_function_of_language_seed_subset_and_place() -> None:
    few = LANGUAGE.sample(5, seed=7)
    many = LANGUAGE.sample(9, seed=7)
    for name in ("rule", "source", "entropy", "surprise"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:5])
    assert torch.equal(few.tokens.rows, many.tokens.rows[:5])
    assert not torch.equal(few.tokens.rows, LANGUAGE.sample(5, seed=8).tokens.rows)


def test_tables_are_a_function_of_the_languages_seed() -> None:
    other = replace(LANGUAGE, seed=4)
    assert LANGUAGE.ngrams == replace(LANGUAGE, context_length=9).ngrams
    assert LANGUAGE.ngrams != other.ngrams
    assert LANGUAGE.skip_ngrams != other.skip_ngrams


def test_global_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    LANGUAGE.sample(2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("order", "num_ngrams"), [(2, 8), (3, 60), (4, 200)])
def test_tables_have_different_beginnings(order: int, num_ngrams: int) -> None:
    language = replace(LANGUAGE, order=order, num_ngrams=num_ngrams, num_skip_ngrams=5)
    for table, count in ((language.ngrams, num_ngrams), (language.skip_ngrams, 5)):
        assert len(table) == count
        assert len({entry[:-1] for entry in table}) == count
        assert {len(entry) for entry in table} == {order}


@pytest.mark.parametrize(
    "language", [Language(), LANGUAGE, Language(vocab_size=200, num_bracket_types=7)]
)
def test_ids_are_divided_without_a_rest(language: Language) -> None:
    ids = [token for kind in language.ids.values() for token in kind]
    assert ids == list(range(language.vocab_size))
    openers = [token for rule in language.openers.values() for token in rule]
    assert len(set(openers)) == len(openers)
    assert not set(openers) & {0, language.again}


# Values, words and tables.


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        LANGUAGE.sample(1).rule = None  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        LANGUAGE.seed = 1  # type: ignore[misc]


def test_values_say_what_they_are() -> None:
    sample = LANGUAGE.sample(10)
    entropy = sample.entropy[:, 1:].mean()
    expected = f"'mixture': 10 rows x 40 positions, entropy {entropy:.3f} nats a token"
    assert repr(sample) == f"Synthetic({expected})"
    assert len(sample) == 10
    rules = "ngram 0.2, skip_ngram 0.1, induction 0.45"
    assert repr(LANGUAGE).startswith(f"Language(50 ids, rows of 40, seed 3: {rules}")


def test_the_table_averages_each_rule() -> None:
    sample = LANGUAGE.sample(30)
    loss = np.arange(30 * 39.0).reshape(30, 39)
    table = sample.to_dataframe(loss=loss, twice=2 * sample.entropy)
    columns = ["rule", "predictable", "share", "entropy", "surprise", "loss", "twice"]
    assert list(table.columns) == columns
    assert table.share.sum() == pytest.approx(1)
    for line in table.itertuples():
        is_of_rule = sample.rule == RULES.index(line.rule)
        chosen = is_of_rule & (sample.predictable == line.predictable)
        assert line.share == pytest.approx(chosen[:, 1:].mean())
        assert line.surprise == pytest.approx(sample.surprise[chosen].mean())
        assert line.twice == pytest.approx(2 * line.entropy)
        assert line.loss == pytest.approx(loss[chosen[:, 1:]].mean())


def test_the_table_refuses_numbers_of_another_shape() -> None:
    message = r"`loss` must be \[30, 40\] or, for losses, \[30, 39\], got \[30, 38\]"
    with pytest.raises(InputError, match=message):
        LANGUAGE.sample(30).to_dataframe(loss=np.zeros((30, 38)))


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 1}, "`context_length` must be an integer of at least 2, got 1"),
        ({"order": 1}, "`order` must be an integer of at least 2"),
        ({"num_ngrams": 0}, "`num_ngrams` must be an integer of at least 1"),
        ({"max_depth": 1.5}, "`max_depth` must be an integer of at least 1, got 1.5"),
        (
            {"gaps": (0, 2)},
            r"`gaps` must be two integers, fewest \(at least 1\) and most, got \(0, 2\)",
        ),
        ({"segment_lengths": (5, 4)}, "`segment_lengths` must be two integers"),
        (
            {"shares": {"inductoin": 1.0}},
            "names 'inductoin', which is no rule; did you mean 'induction'",
        ),
        (
            {"shares": {"copy": 1.5, "dyck": -0.5}},
            "the share of 'dyck' must not be negative, got -0.5",
        ),
        ({"shares": {"copy": 0.5}}, "`shares` must sum to 1, got 0.5"),
        (
            {"vocab_size": 30},
            r"30 ids leaves 1 letters, but at least 8 are needed. Give vocab_size=37 or more",
        ),
        (
            {"num_ngrams": 500},
            r"`num_ngrams` is 500, but 21 letters give only 100 beginnings of order 3",
        ),
        (
            {"num_skip_ngrams": 99},
            r"`num_skip_ngrams` is 99, but 21 letters give only 20 beginnings",
        ),
    ],
)
def test_languages_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Language: .*{message}"):
        replace(LANGUAGE, **changes)


def test_samples_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="no such subset; did you mean 'induction'"):
        LANGUAGE.sample(3, subset="inductions")
    with pytest.raises(InputError, match="`num_rows` must be at least 1, got 0"):
        LANGUAGE.sample(0)


# What it is for.


@pytest.mark.slow
def test_a_small_model_learns_it(of_the_language: torch.nn.Module) -> None:
    sample = Language().sample(200, seed=2)
    rows = sample.tokens.rows.long()
    with torch.no_grad():
        logits = of_the_language(rows).logits[:, :-1]
    loss = F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").numpy()
    assert loss.mean() < sample.mean_entropy + 0.3
    # No model is better than the entropy but by chance.
    excess = loss - sample.surprise[:, 1:]
    assert -0.02 < excess.mean() < 0.3
    # A model that does not copy has log 67 = 4.2 on repeated letters.
    is_repeated = sample.predictable & (sample.rule == RULES.index("induction"))
    assert loss[is_repeated[:, 1:]].mean() < 0.2


@pytest.mark.slow
def test_a_small_model_forms_previous_token_and_induction_heads(
    of_the_language: torch.nn.Module,
) -> None:
    sample = Language().sample(100, seed=2, subset="induction")
    rows = sample.tokens.rows
    with torch.no_grad():
        attentions = of_the_language(rows.long(), output_attentions=True).attentions
    first, second = attentions
    to_previous = first.diagonal(offset=-1, dim1=-2, dim2=-1)  # [batch, head, query]
    assert to_previous.mean((0, 2)).max() > 0.4
    # From each token that is followed by a known letter: attention to where that letter stood.
    earlier = torch.ones(63, 64, dtype=torch.bool).tril()
    is_next_letter = (rows[:, 1:, None] == rows[:, None, :]) & earlier
    attention = (second[:, :, :-1] * is_next_letter[:, None]).sum(-1)  # [batch, head, query]
    is_known = torch.as_tensor(sample.predictable[:, 1:])
    of_known = attention.movedim(1, -1)[is_known]  # [token, head]
    assert of_known.mean(0).max() > 0.7
