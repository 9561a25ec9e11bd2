"""The synthetic language against a reader that was written apart from it: what each token is, and how likely it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

import rllc
from rllc.data.synthetic import RULES, SHARES, Language, Synthetic
from rllc.errors import InputError
from rllc.models import AttentionOnlyConfig

LANGUAGE = Language(
    vocab_size=50,
    context_length=40,
    num_ngrams=40,
    num_skip_ngrams=12,
    segment_lengths=(3, 6),
    seed=3,
)

# The reader: from the tokens of a row to (rule, source, probability) of each. A unit's reader gets the unit from its
# opener on, and gives (source counted from the opener or None, probability) of each token behind it, and the probability that
# the unit ends there.

Body = list[tuple[int | None, float]]


def read(
    language: Language, chances: dict[str, float], row: Sequence[int]
) -> list[tuple[str | None, int, float]]:
    found: list[tuple[str | None, int, float]] = [("start", -1, 1.0)]
    ended = 1.0
    while len(found) < len(row):
        at = len(found)
        rule = next((rule for rule, ids in language.openers.items() if row[at] in ids), None)
        chance = ended * chances.get(rule, 0.0) / len(language.openers[rule]) if rule else 0.0
        found.append((rule, -1, chance))
        if not chance:
            return found
        body, ended = READERS[rule](language, tuple(row[at:]))
        found += [(rule, -1 if source is None else at + source, p) for source, p in body]
        if any(p == 0 for _, p in body):
            return found
    return found


def fraction(table: Sequence[tuple[int, ...]], beginning: tuple[int, ...], token: int) -> float:
    entries = [entry for entry in table if entry[: len(beginning)] == beginning]
    return sum(entry[len(beginning)] == token for entry in entries) / len(entries)


def length_ends(length: int, fewest: int, most: int) -> float:
    """P(L = length | L ≥ length), L uniform on fewest … most."""
    lengths = range(fewest, most + 1)
    return sum(n == length for n in lengths) / sum(n >= length for n in lengths)


def read_ngrams(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    body: Body = []
    n = language.order
    while True:
        done, left = divmod(len(body), n)
        end = length_ends(done, 1, 4) if not left else 0.0
        rest = unit[1 + len(body) :]
        if not rest or done == 4 or (not left and rest[0] not in language.ids["letters"]):
            return body, end
        beginning = unit[1 + done * n : 1 + len(body)]
        p = (1 - end) * fraction(language.ngrams, beginning, rest[0])
        body.append((1 + done * n if left == n - 1 else None, p))
        if not p:
            return body, 0.0


def read_skip(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    table, letters = language.skip_ngrams, language.ids["letters"]
    where = [k for k, token in enumerate(unit) if token in language.ids["triggers"]]
    trigger = where[0] if where else len(unit)
    body: Body = [(None, fraction(table, (), unit[1]))] if len(unit) > 1 else []
    for k, token in enumerate(unit[2 : trigger + 1]):
        end = length_ends(k, *language.gaps) if k <= language.gaps[1] else 1.0
        if token in language.ids["triggers"]:
            body.append(
                (1 if language.order == 2 else None, end * fraction(table, unit[1:2], token))
            )
        else:
            body.append((None, (1 - end) / len(letters) if token in letters else 0.0))
        if not body[-1][1]:
            return body, 0.0
    for k in range(2, language.order):
        at = trigger + k - 1
        if at < len(unit) and trigger >= 2:
            beginning = (unit[1], *unit[trigger:at])
            body.append(
                (1 if k == language.order - 1 else None, fraction(table, beginning, unit[at]))
            )
    return body, float(len(body) == trigger + language.order - 2)


def read_induction(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    letters = language.ids["letters"]
    length = unit.index(language.again) - 1 if language.again in unit else len(unit) - 1
    body: Body = []
    for k, token in enumerate(unit[1 : length + 2]):
        end = length_ends(k, *language.segment_lengths) if k <= language.segment_lengths[1] else 1.0
        fresh = token in letters and token not in unit[1 : k + 1]
        body.append(
            (None, end if token == language.again else fresh * (1 - end) / (len(letters) - k))
        )
        if not body[-1][1]:
            return body, 0.0
    period = length + 1
    while len(body) + 1 < len(unit):
        at = len(body) + 1
        if at % period:
            body.append((at - period, float(unit[at] == unit[at - period])))
        elif unit[at] == language.again:
            body.append((None, 0.75))
        else:
            return body, 0.25
        if not body[-1][1]:
            return body, 0.0
    whole = language.again in unit and len(unit) > period and len(unit) % period == 0
    return body, 0.25 if whole else 0.0


def read_copy(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    letters = language.ids["letters"]
    body: Body = []
    for k, token in enumerate(unit[1:]):
        if k == 0:
            body.append((None, (token in letters) / len(letters)))
        elif k == 1:
            body.append((None, (token in letters and token != unit[1]) / (len(letters) - 1)))
        else:
            end = length_ends(k, 6, 12)
            if k == 12 or token not in letters:
                return body, end
            body.append((k - 1, (1 - end) * (token == unit[k - 1])))
        if not body[-1][1]:
            return body, 0.0
    return body, length_ends(len(body), 6, 12)


def read_dyck(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    body: Body = []
    for at in range(1, len(unit)):
        opened = unmatched(language, unit[:at])
        if not opened:
            return body, 1.0
        closes = language.brackets[unit[opened[-1]]] == unit[at]
        room = len(opened) < language.max_depth
        if closes:
            body.append((opened[-1], 0.6 if room else 1.0))
        else:
            opens = unit[at] in language.openers["dyck"]
            body.append((None, room * opens * 0.4 / language.num_bracket_types))
        if not body[-1][1]:
            return body, 0.0
    return body, float(not unmatched(language, unit))


def read_sexpr(language: Language, unit: tuple[int, ...]) -> tuple[Body, float]:
    """Reads with a stack of [position of "(", arguments still missing]; an operator is missing while that is None."""
    (opening, closing), atoms = language.ids["parentheses"], language.ids["atoms"]
    stack: list[list[int | None]] = [[0, None]]
    body: Body = []
    for at, token in enumerate(unit[1:], 1):
        if not stack:
            return body, 1.0
        begun, missing = stack[-1]
        nest = 0.3 if len(stack) < language.max_depth else 0.0
        if missing is None:
            body.append((None, (token in language.operators) / 3))
            stack[-1][1] = language.operators.get(token)
        elif missing == 0:
            body.append((begun, float(token == closing)))
            stack.pop()
        else:
            body.append(
                (None, nest if token == opening else (token in atoms) * (1 - nest) / len(atoms))
            )
            stack[-1][1] = missing - 1
            if token == opening:
                stack.append([at, None])
        if not body[-1][1]:
            return body, 0.0
    return body, float(not stack)


def unmatched(language: Language, tokens: Sequence[int]) -> list[int]:
    opened: list[int] = []
    for at, token in enumerate(tokens):
        if token in language.brackets:
            opened.append(at)
        elif token in language.brackets.values():
            assert language.brackets[tokens[opened.pop()]] == token
    return opened


READERS = {
    "ngram": read_ngrams,
    "skip_ngram": read_skip,
    "induction": read_induction,
    "copy": read_copy,
    "dyck": read_dyck,
    "sexpr": read_sexpr,
}


def chances_of(language: Language, subset: str) -> dict[str, float]:
    if subset != "mixture":
        return {subset: 1.0}
    rates = {rule: share / language.unit_lengths[rule] for rule, share in language.shares.items()}
    return {rule: rate / sum(rates.values()) for rule, rate in rates.items()}


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("subset", ["mixture", *RULES[1:]])
def test_every_token_is_what_a_reader_of_the_tokens_alone_finds(subset: str, order: int) -> None:
    language = replace(LANGUAGE, order=order, num_ngrams=8 if order == 2 else 40, num_skip_ngrams=5)
    found = language.sample(40, subset=subset)
    for k, row in enumerate(found.tokens.rows.tolist()):
        rules, sources, probabilities = zip(
            *read(language, chances_of(language, subset), row), strict=True
        )
        assert [RULES[r] for r in found.rule[k]] == list(rules)
        assert found.source[k].tolist() == list(sources)
        assert found.surprise[k] == pytest.approx(-np.log(probabilities), abs=1e-12)


@pytest.mark.parametrize("subset", ["mixture", *RULES[1:]])
def test_the_entropy_is_that_of_all_tokens_that_the_reader_says_may_come(subset: str) -> None:
    found = LANGUAGE.sample(4 if subset == "mixture" else 1, seed=1, subset=subset)
    chances = chances_of(LANGUAGE, subset)
    for k, row in enumerate(found.tokens.rows.tolist()):
        for at in range(1, len(row)):
            after = [
                read(LANGUAGE, chances, [*row[:at], token]) for token in range(LANGUAGE.vocab_size)
            ]
            p = np.array([whole[at][2] if len(whole) == at + 1 else 0.0 for whole in after])
            assert p.sum() == pytest.approx(1, abs=1e-9)
            assert found.entropy[k, at] == pytest.approx(
                -sum(x * math.log(x) for x in p if x > 0), abs=1e-9
            )


@pytest.mark.parametrize("subset", ["mixture", *RULES[1:]])
def test_tokens_are_drawn_with_the_probabilities_that_are_stated(subset: str) -> None:
    """surprise − entropy has mean 0 given the past, so its mean over n tokens has standard error sd / √n."""
    found = LANGUAGE.sample(500, seed=2, subset=subset)
    excess = (found.surprise - found.entropy)[:, 1:]
    assert abs(excess.mean()) < 5 * excess.std() / math.sqrt(excess.size) + 1e-12


def test_units_come_as_often_as_stated() -> None:
    found = LANGUAGE.sample(1500, seed=4)
    first = found.tokens.rows[:, 1].numpy()
    for rule, chance in chances_of(LANGUAGE, "mixture").items():
        count = np.isin(first, list(LANGUAGE.openers[rule])).sum()
        assert abs(count - 1500 * chance) < 5 * math.sqrt(1500 * chance * (1 - chance))


def test_long_rows_have_the_shares_that_were_asked_for() -> None:
    found = replace(LANGUAGE, context_length=4000).sample(40)
    for rule, share in SHARES.items():
        shares = (found.rule == RULES.index(rule)).mean(1)
        assert abs(shares.mean() - share) < 5 * shares.std(ddof=1) / math.sqrt(40) + 0.002, rule


def test_a_subset_has_units_of_one_rule_only() -> None:
    for rule in RULES[1:]:
        assert set(LANGUAGE.sample(20, subset=rule).rule.ravel()) == {0, RULES.index(rule)}
    without = replace(LANGUAGE, shares={"induction": 0.5, "dyck": 0.5, "copy": 0.0})
    assert set(without.sample(50).rule.ravel()) == {
        0,
        RULES.index("induction"),
        RULES.index("dyck"),
    }
    assert list(without.subsets(3)) == ["mixture", "induction", "dyck"]
    assert [tokens.name for tokens in without.subsets(3).values()] == list(without.subsets(3))


def test_brackets_balance_and_reach_the_greatest_depth() -> None:
    for rule in ("dyck", "sexpr"):
        depths = []
        for row in LANGUAGE.sample(100, subset=rule).tokens.rows.tolist():
            depths += [len(unmatched(LANGUAGE, row[:at])) for at in range(1, len(row) + 1)]
        assert max(depths) == LANGUAGE.max_depth


def test_tokens_that_their_rule_fixes() -> None:
    """Where they are found: copies of the token there; in brackets the opener that it closes."""
    found = LANGUAGE.sample(200)
    rows = found.tokens.rows.numpy()
    where = np.nonzero(found.predictable)
    there = rows[where[0], found.source[where]]
    for rule in RULES[1:]:
        mine = found.rule[where] == RULES.index(rule)
        assert mine.any()
        if rule in ("induction", "copy"):
            assert np.array_equal(there[mine], rows[where][mine])
        if rule in ("dyck", "sexpr"):
            assert [LANGUAGE.brackets[token] for token in there[mine]] == rows[where][mine].tolist()
    copy = found.predictable & (found.rule == RULES.index("copy"))
    assert np.array_equal(found.source[copy], np.nonzero(copy)[1] - 2)
    assert (found.source < np.arange(40)).all()


def test_rows_are_a_function_of_language_seed_subset_and_place() -> None:
    few, many = LANGUAGE.sample(5, seed=7), LANGUAGE.sample(9, seed=7)
    for name in ("rule", "source", "entropy", "surprise"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:5])
    assert torch.equal(few.tokens.rows, many.tokens.rows[:5])
    assert not torch.equal(few.tokens.rows, LANGUAGE.sample(5, seed=8).tokens.rows)
    other = replace(LANGUAGE, seed=4)
    assert LANGUAGE.ngrams == replace(LANGUAGE, context_length=9).ngrams != other.ngrams
    assert LANGUAGE.skip_ngrams != other.skip_ngrams
    state = torch.get_rng_state()
    LANGUAGE.sample(2)
    assert torch.equal(state, torch.get_rng_state())


def test_tables_have_different_beginnings() -> None:
    for order, count in ((2, 8), (3, 60), (4, 200)):
        language = replace(LANGUAGE, order=order, num_ngrams=count, num_skip_ngrams=5)
        for table, length in ((language.ngrams, count), (language.skip_ngrams, 5)):
            assert len({entry[:-1] for entry in table}) == len(table) == length
            assert {len(entry) for entry in table} == {order}


def test_ids_are_divided_without_a_rest() -> None:
    for language in (Language(), LANGUAGE, Language(vocab_size=200, num_bracket_types=7)):
        assert [i for ids in language.ids.values() for i in ids] == list(range(language.vocab_size))
        openers = [i for ids in language.openers.values() for i in ids]
        assert len(set(openers)) == len(openers)
        assert not set(openers) & {0, language.again}


def test_values_are_frozen_and_say_what_they_are() -> None:
    found = LANGUAGE.sample(10)
    with pytest.raises(FrozenInstanceError):
        found.rule = None  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        LANGUAGE.seed = 1  # type: ignore[misc]
    assert repr(found) == (
        f"Synthetic('mixture': 10 rows x 40 positions, entropy {found.entropy[:, 1:].mean():.3f} nats a token)"
    )
    assert repr(LANGUAGE).startswith(
        "Language(50 ids, rows of 40, seed 3: ngram 0.2, skip_ngram 0.1, induction 0.45"
    )
    assert len(found) == 10


def test_the_table_averages_each_rule() -> None:
    found = LANGUAGE.sample(30)
    loss = np.arange(30 * 39.0).reshape(30, 39)
    table = found.to_dataframe(loss=loss, twice=2 * found.entropy)
    assert list(table.columns) == [
        "rule",
        "predictable",
        "share",
        "entropy",
        "surprise",
        "loss",
        "twice",
    ]
    for row in table.itertuples():
        chosen = (found.rule == RULES.index(row.rule)) & (found.predictable == row.predictable)
        assert row.share == pytest.approx(chosen[:, 1:].mean())
        assert row.surprise == pytest.approx(found.surprise[chosen].mean())
        assert row.twice == pytest.approx(2 * row.entropy)
        assert row.loss == pytest.approx(loss[chosen[:, 1:]].mean())
    assert table.share.sum() == pytest.approx(1)
    with pytest.raises(
        InputError, match=r"`loss` must be \[30, 40\] or, for losses, \[30, 39\], got \[30, 38\]"
    ):
        found.to_dataframe(loss=loss[:, 1:])


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
def test_languages_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"Language: .*{message}"):
        replace(LANGUAGE, **changes)


def test_samples_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="no such subset; did you mean 'induction'"):
        LANGUAGE.sample(3, subset="inductions")
    with pytest.raises(InputError, match="`num_rows` must be at least 1, got 0"):
        LANGUAGE.sample(0)


# What it is for.


def attention(model: torch.nn.Module, found: Synthetic) -> torch.Tensor:
    """``[layer, batch, head, query, key]``."""
    with torch.no_grad():
        return torch.stack(model(found.tokens.rows.long(), output_attentions=True).attentions)


@pytest.mark.slow
def test_a_small_model_learns_it_and_forms_previous_token_and_induction_heads() -> None:
    language = Language()
    config = AttentionOnlyConfig(n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=64, d_vocab=96)
    rows = language.sample(5000, seed=1).tokens
    training = rllc.Training(num_steps=1300, batch_size=32, lr=1e-2)
    model = rllc.train(config, rows, training=training, progress=False)

    held_out = language.sample(200, seed=2)
    with torch.no_grad():
        logits = model(held_out.tokens.rows.long()).logits[:, :-1]
    targets = held_out.tokens.rows[:, 1:].long()
    loss = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").numpy()
    assert loss.mean() < held_out.mean_entropy + 0.3
    excess = loss - held_out.surprise[:, 1:]
    assert -0.02 < excess.mean() < 0.3  # no model is better than the entropy but by chance
    repeated = (held_out.predictable & (held_out.rule == RULES.index("induction")))[:, 1:]
    assert loss[repeated].mean() < 0.2  # chance is log 67 = 4.2

    found = language.sample(100, seed=2, subset="induction")
    pattern, tokens = attention(model, found), found.tokens.rows
    assert torch.diagonal(pattern[0], offset=-1, dim1=-2, dim2=-1).mean((0, 2)).max() > 0.4
    # From each token that is followed by a known letter: attention to all places where that letter stood before.
    earlier = torch.ones(63, 64, dtype=torch.bool).tril()
    matches = (tokens[:, 1:, None] == tokens[:, None, :]) & earlier
    matched = (pattern[1, :, :, :-1] * matches[:, None]).sum(-1)  # [batch, head, query]
    assert (matched.movedim(1, -1)[torch.as_tensor(found.predictable[:, 1:])].mean(0)).max() > 0.7
