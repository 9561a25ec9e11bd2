"""Tokens in context: of heads with known rules, against slow loops, and of a known language."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import replace

import handmade
import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import BOS, bracket_model, bracket_rows, induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.kinds import Explain, by_chance
from rllc.analysis.multigrams import Context
from rllc.analysis.patterns import patterns
from rllc.analysis.tokens_in_context import (
    KINDS,
    Thresholds,
    TokensInContext,
    common_start,
    plot_kinds,
    tokens_in_context,
)
from rllc.data.synthetic import Language
from rllc.errors import InputError
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
ROWS = tiny_tokens(30, pos=8).rows.long()
EVERYTHING = Thresholds(effect=0.0, most=10_000)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def skip_model(
    table: dict[int, int],
    trigger: int,
    d_vocab: int = 16,
    n_ctx: int = 16,
) -> AttentionOnly:
    """One head that looks, at the trigger, at a token of the table, and predicts its counterpart.

    Anywhere else it rests on BOS.
    """
    space = handmade.Space(n_ctx, token=d_vocab, out=d_vocab)
    model = handmade.idle_model(space, n_layers=1, n_heads=1, d_head=d_vocab, d_vocab=d_vocab)
    token = space.read("token")
    rest = 0.5 * space.position()[:, :1]
    in_table = token[:, list(table)].sum(1, keepdim=True)
    at_trigger = token[:, [trigger]]
    values = torch.zeros(d_vocab, d_vocab)
    for first, second in table.items():
        values[first, second] = 1.0
    handmade.write_head(
        model,
        "0:0",
        Q=torch.cat([at_trigger, torch.zeros_like(at_trigger)], 1),
        K=torch.cat([in_table, rest], 1),
        V=token,
        O=values @ space.write("out"),
        b_Q=torch.tensor([0.0, 1.0]),
    )
    return model


def skip_rows(*parts: list[int], pos: int = 10) -> Tensor:
    """Rows of BOS, a part, and a filling that no multigram has."""
    rows = torch.full((len(parts), pos), 15)
    for row, part in zip(rows, parts, strict=True):
        row[: 1 + len(part)] = torch.tensor([BOS, *part])
    return rows


# Heads whose rules are known.


def test_an_induction_head_is_all_induction() -> None:
    rows = repeats(num_rows=5, segment=9)
    result = tokens_in_context(induction_model(), rows)["1:1"]
    assert set(result.kind) == {"induction"}
    # from the second token of the copy on, every token; the head looks 9 − 1 back from before it
    expected = {(row, position) for row in range(5) for position in range(11, 19)}
    assert set(zip(result.row.tolist(), result.position.tolist(), strict=True)) == expected
    assert np.array_equal(result.attended[:, 0], result.position - 9)
    assert result.attention[:, 0] == pytest.approx(1, abs=1e-6)
    assert result.memorised.tolist() == [0]


def test_a_bracket_head_is_all_dyck() -> None:
    rows = bracket_rows(20)
    contexts = tokens_in_context(
        bracket_model(),
        rows,
        brackets={1: 3, 2: 4},
        thresholds=EVERYTHING,
    )
    result = contexts["2:0"]
    is_closing = (rows > 2).numpy()[result.row, result.position]
    is_dyck = result.kind == "dyck"
    assert is_dyck.any()
    assert np.array_equal(is_dyck, is_closing)
    for i in np.flatnonzero(is_dyck):
        opener = handmade.innermost(rows[result.row[i]])[result.position[i] - 1]
        assert result.attended[i, 0] == opener


def test_attention_to_a_bracket_is_not_enough_for_dyck() -> None:
    model, rows = bracket_model(), bracket_rows(20)
    assert not tokens_in_context(model, rows, brackets={1: 4, 2: 3})["2:0"].count("dyck")
    assert not tokens_in_context(model, rows)["2:0"].count("dyck")


def test_a_head_that_rests_is_not_called_anything() -> None:
    """0:0 counts brackets from BOS: the model needs it, but nothing that it looks at says why."""
    model, rows = bracket_model(), bracket_rows(20)
    result = tokens_in_context(model, rows, brackets={1: 3, 2: 4})["0:0"]
    assert set(result.kind) == {"other"}
    assert (result.attended[:, 0] == 0).all()
    with_bos_as_a_token = tokens_in_context(model, rows, rest=())["0:0"]
    assert set(with_bos_as_a_token.kind) > {"other"}


def test_a_current_token_head_has_memorised_its_bigrams() -> None:
    rows = [
        [BOS, 1, 2, 5, 6],
        [BOS, 3, 4, 6, 7],
        [BOS, 5, 1, 2, 8],
        [BOS, 8, 9, 3, 4],
        [BOS, 10, 11, 7, 8],
    ]
    model = induction_model(bigrams={1: 2, 3: 4, 10: 11})
    result = tokens_in_context(model, torch.tensor(rows))["0:1"]
    facts = {(m.kind, m.tokens, m.target, m.occurrences, m.rows) for m in result.multigrams}
    # 10 11 comes only once
    assert facts == {("n-gram", (1,), 2, 2, 2), ("n-gram", (3,), 4, 2, 2)}
    assert Counter(result.kind) == {"n-gram": 4, "other": 1}
    first = result.multigrams[0]
    assert first.effect == pytest.approx(result.effect[result.multigram == 0].mean())
    assert first.head == "0:1"


SKIPPING = skip_model({1: 8, 2: 9, 3: 10}, trigger=5)
SKIPPED = skip_rows(
    [1, 5, 8],
    [11, 1, 5, 8],  # always next to each other: an n-gram of three
    [2, 11, 5, 9],
    [2, 12, 13, 5, 9],
    [2, 14, 5, 9],  # whatever comes between: a skip n-gram
    [3, 11, 12, 5, 10],
    [14, 3, 11, 12, 5, 10],  # always the same between: an n-gram of five
)


def test_skip_ngrams_have_gaps_and_ngrams_have_none() -> None:
    result = tokens_in_context(SKIPPING, SKIPPED)
    assert {multigram[1:6] for multigram in result.multigrams} == {
        ("n-gram", (1, 5), 8, 2, 2),
        ("skip n-gram", (2, 5), 9, 3, 3),
        ("n-gram", (3, 11, 12, 5), 10, 2, 2),
    }
    assert len(result) == 7
    assert result.memorised.tolist() == [3]


def test_thresholds_of_multigrams() -> None:
    in_three_rows = tokens_in_context(SKIPPING, SKIPPED, thresholds=Thresholds(rows=3))
    (only,) = in_three_rows.multigrams
    assert only[1:4] == ("skip n-gram", (2, 5), 9)
    assert Counter(in_three_rows.kind) == {"skip n-gram": 3, "other": 4}
    # any filling may vary: what varies is an n-gram too
    loose = tokens_in_context(SKIPPING, SKIPPED, thresholds=Thresholds(fixed=0.3))
    assert Counter(loose.kind) == {"n-gram": 7}
    # none may vary: n-grams are those that never do
    strict = tokens_in_context(SKIPPING, SKIPPED, thresholds=Thresholds(fixed=1))
    assert Counter(strict.kind) == Counter(tokens_in_context(SKIPPING, SKIPPED).kind)


def test_what_one_row_repeats_is_not_memory() -> None:
    model = skip_model({1: 8}, trigger=5)
    once = tokens_in_context(model, skip_rows([1, 5, 8, 11, 5, 8], [12, 13], [14]))
    assert set(once.kind) <= {"other", "induction"}
    assert once.multigrams == ()


def test_weaker_attention_does_not_split_a_multigram() -> None:
    """Two tokens are attended: one multigram; if one is missing, the other belongs to it."""
    model = skip_model({1: 8, 2: 8}, trigger=5)
    rows = skip_rows([1, 2, 5, 8], [1, 2, 5, 8, 11], [11, 12, 2, 5, 8], [13, 1, 14, 5, 8])
    result = tokens_in_context(model, rows)
    assert result.attention[:3].max() > 0.9
    (pair,) = result.multigrams
    assert pair.tokens == (1, 2, 5)
    assert pair.occurrences >= 3


# Against slow loops.


def slow_kinds(
    model: AttentionOnly,
    rows: Tensor,
    closer_of: dict[int, int],
    attention: float,
) -> dict[tuple[int, int, int], str]:
    """Kind of every (head, row, predicted position) whose loss does not fall, by definition."""
    pattern, ablation = patterns(model, rows).numpy(), ablate(model, rows)
    t = rows.numpy()
    kinds = {}
    occurrences = defaultdict(list)
    for h, r, k in np.argwhere(ablation.tokens >= 0).tolist():
        layer, head = map(int, ablation.names[h].split(":"))
        attended = [j for j in range(k + 1) if pattern[r, layer, head, k, j] >= attention]
        kind = slow_kind(t[r], k, attended, closer_of)
        kinds[h, r, k + 1] = kind
        if kind == "other" and attended:
            read = tuple(t[r, sorted({*attended, k})])
            occurrences[h, read, t[r, k + 1]].append((r, k, tuple(t[r, min(attended) : k + 1])))
    for (h, _, _), places in occurrences.items():
        if len({r for r, _, _ in places}) >= 2:
            commonest = max(Counter(suffix for _, _, suffix in places).values())
            kind = "n-gram" if commonest > len(places) / 2 else "skip n-gram"
            kinds |= {(h, r, k + 1): kind for r, k, _ in places}
    return kinds


def slow_kind(t: np.ndarray, k: int, attended: list[int], closer_of: dict[int, int]) -> str:
    for j in attended:
        if 0 < j < k and t[j] == t[k + 1] and t[j - 1] == t[k]:
            return "induction"
    stack = []
    for j in range(k + 1):
        if stack and t[j] == closer_of.get(t[stack[-1]]):
            stack.pop()
        elif t[j] in closer_of:
            stack.append(j)
    if stack and stack[-1] in attended and t[k + 1] == closer_of[t[stack[-1]]]:
        return "dyck"
    return "other"


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
def test_against_the_definitions_one_token_at_a_time(positions: str) -> None:
    """One attended token at most, so that there is no strongest one to fall back on."""
    model = tiny_model(positions=positions)
    rows = ROWS % 5
    closer_of = {1: 2}
    thresholds = replace(EVERYTHING, attention=0.51)
    result = tokens_in_context(model, rows, brackets=closer_of, thresholds=thresholds, rest=())
    expected = slow_kinds(model, rows, closer_of, attention=0.51)
    places = zip(result.head.tolist(), result.row.tolist(), result.position.tolist(), strict=True)
    assert dict(zip(places, result.kind, strict=True)) == expected
    assert set(expected.values()) == set(KINDS)


# The result.


def test_the_most_affected_come_first() -> None:
    model = tiny_model()
    ablation = ablate(model, ROWS)
    thresholds = Thresholds(effect=0.1, most=20)
    result = tokens_in_context(model, ROWS, ablation=ablation, thresholds=thresholds)
    for h, head in enumerate(ablation.names):
        of_head = result[head]
        effects = np.sort(ablation.tokens[h].ravel())[::-1]
        assert np.array_equal(of_head.effect, effects[effects >= 0.1][:20])
        of_tokens = ablation.tokens[h, of_head.row, of_head.position - 1]
        assert np.array_equal(of_head.effect, of_tokens)
    assert (result.count() <= 20).all()


@pytest.fixture(scope="module")
def larger() -> tuple[AttentionOnly, Tensor]:
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(AttentionOnlyConfig(d_vocab=500))
    return model, torch.randint(500, (2, 129), generator=torch.Generator().manual_seed(0))


def test_given_ablations_are_used_and_attention_costs_less_than_a_forward_pass(
    larger: tuple[AttentionOnly, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = larger
    ablation = ablate(model, rows)
    result = tokens_in_context(model, rows, thresholds=EVERYTHING)
    monkeypatch.setattr("rllc.analysis.tokens_in_context.ablate", None)
    thresholds = replace(EVERYTHING, most=50)
    with FlopCounterMode(display=False) as counter:
        again = tokens_in_context(model, rows, ablation=ablation, thresholds=thresholds)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(rows)
    assert counter.get_total_flops() < 2 * forward.get_total_flops()
    assert np.array_equal(again["1:3"].effect, result["1:3"].effect[:50])


def test_an_ablation_of_one_head_gives_its_tokens(larger: tuple[AttentionOnly, Tensor]) -> None:
    model, rows = larger
    ablation = ablate(model, rows, "1:3")
    of_one = tokens_in_context(model, rows, ablation=ablation, thresholds=EVERYTHING)
    of_all = tokens_in_context(model, rows, thresholds=EVERYTHING)
    assert of_one.heads == ("1:3",)
    assert np.array_equal(of_one.attended, of_all["1:3"].attended)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = repeats(num_rows=12, segment=5, d_vocab=7)
    model = induction_model(d_vocab=7, bigrams={1: 2, 3: 4})
    result = tokens_in_context(model, rows)
    of_reversed = tokens_in_context(model, rows.flip(0))

    def facts(result: TokensInContext) -> set[tuple]:
        return {(*multigram[:-1], round(multigram.effect, 3)) for multigram in result.multigrams}

    assert facts(result) == facts(of_reversed) != set()
    for kind in KINDS:
        assert np.array_equal(result.count(kind), of_reversed.count(kind))


def test_the_part_of_one_head() -> None:
    result = tokens_in_context(tiny_model(), ROWS % 5, thresholds=EVERYTHING)
    part = result["L1H2"]
    assert part.heads == ("1:2",)
    assert len(part) == result.count()[5] == (result.head == 5).sum()
    of_head = tuple(multigram for multigram in result.multigrams if multigram.head == "1:2")
    assert part.multigrams == of_head != ()
    assert part.memorised.tolist() == [result.memorised[5]] == [len(part.multigrams)]
    for kind in KINDS:
        assert part.count(kind)[0] == result.count(kind)[5]
    for i, multigram in enumerate(part.multigrams):
        members = part.multigram == i
        assert set(part.kind[members]) == {multigram.kind}
        assert members.sum() == multigram.occurrences
        tokens = part.rows[part.row[members], part.position[members]]
        assert (tokens == multigram.target).all()


def test_chance_is_the_mean_over_all_ways_to_deal_the_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that reads 1 1 2 2 3 before 7 7 8 8 9: all 120 orders against many random ones."""
    tokens, targets = [1, 1, 2, 2, 3], [7, 7, 8, 8, 9]
    shares, counts = [], []
    for order in itertools.permutations(targets):
        pairs = Counter(zip(tokens, order, strict=True))
        recurring = [count for count in pairs.values() if count > 1]
        shares.append(sum(recurring) / 5)
        counts.append(len(recurring))
    contexts = []
    for row, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        contexts.append(Context(row, np.array([0, token, target]), 1, (1,), target))
    deals = 2000
    monkeypatch.setattr("rllc.analysis.kinds._DEALS", deals)
    explain = Explain({}, frozenset({0}), min_rows=2, fixed=0.5)
    kind = np.full(5, "other", dtype=object)
    chance, memorised = by_chance(contexts, kind, explain, seed=0)
    assert chance[:2].tolist() == [0, 0]
    error = np.std(shares) / deals**0.5
    assert abs(chance[2:].sum() - np.mean(shares)) < 5 * error
    assert abs(memorised - np.mean(counts)) < 5 * np.std(counts) / deals**0.5


def test_shares_beyond_chance() -> None:
    result = tokens_in_context(induction_model(), repeats(num_rows=20))["1:1"]
    assert result.count("induction") == len(result)
    assert result.beyond_chance("induction")[0] == pytest.approx(1)
    chance = result.chance[0, 0]
    assert 0 < chance < 0.3
    half = replace(result, kind=np.where(np.arange(len(result)) % 2, result.kind, "other"))
    assert half.beyond_chance("induction")[0] == pytest.approx((0.5 - chance) / (1 - chance))


def test_recurrence_alone_is_not_memory() -> None:
    """What is read and what comes next are independent: most recurs, nothing beyond chance."""
    explain = Explain({}, frozenset({0}), min_rows=2, fixed=0.5)
    stream = np.random.default_rng(0)
    shares, beyond = [], []
    for _ in range(12):
        contexts = []
        for row in range(400):
            token, target = stream.integers(1, 21, 2).tolist()
            contexts.append(Context(row, np.array([0, token, target]), 1, (1,), target))
        members = explain.by_memory(dict(enumerate(contexts)))
        share = sum(map(len, members.values())) / len(contexts)
        kind = np.full(len(contexts), "other", dtype=object)
        chance, _ = by_chance(contexts, kind, explain, seed=0)
        shares.append(share)
        beyond.append(share - chance[2:].sum())
    assert np.mean(shares) > 0.5
    assert abs(np.mean(beyond)) < 5 * np.std(beyond) / 12**0.5


def test_kinds_add_up() -> None:
    result = tokens_in_context(tiny_model(), ROWS % 5, thresholds=EVERYTHING)
    total = sum(result.count(kind) for kind in KINDS)
    assert total.tolist() == result.count().tolist()
    is_multigram = np.isin(result.kind, ["n-gram", "skip n-gram"])
    assert np.array_equal(result.multigram >= 0, is_multigram)


def test_results_as_tables_without_texts() -> None:
    rows = repeats(num_rows=4)
    result = tokens_in_context(induction_model(), rllc.Tokens(rows, "copies"))
    lines = repr(result).splitlines()
    title = "Tokens in context on copies: for each head, the 1000 tokens at most"
    assert lines[0].startswith(title)
    columns = "head tokens induction dyck n-gram skip n-gram other multigrams"
    assert lines[1].split() == columns.split()
    assert lines[6].split() == ["1:1", "32", "32", "0", "0", "0", "0", "0"]
    frame = result.to_dataframe()
    frame = frame[frame["head"] == "1:1"].reset_index(drop=True)
    assert (frame["token"] == frame["attended"]).all()
    of_head = result["1:1"]
    row, position = of_head.row[0], of_head.position[0]
    assert frame.loc[0, "token"] == str(int(rows[row, position]))
    before = rows[row, position - 8 : position].tolist()
    assert frame.loc[0, "context"] == " ".join(map(str, before))
    assert repr(of_head).splitlines()[4].split()[:2] == ["effect", "kind"]


def test_results_as_tables_with_texts(small_tokenizer) -> None:
    rows = repeats(num_rows=4)
    result = tokens_in_context(induction_model(), rows, tokenizer=small_tokenizer)
    first = int(rows[0, 1])
    assert result.decode(first) == small_tokenizer.decode([first])
    token = int(result.rows[result.row[0], result.position[0]])
    assert result.to_dataframe()["token"].iloc[0] == small_tokenizer.decode([token])
    assert result.decode([first, 299]).endswith("⟨299⟩")  # an id that the rows have not


def test_no_head_matters() -> None:
    result = tokens_in_context(induction_model(), torch.tensor([[BOS, 1, 2], [BOS, 3, 4]]))
    assert len(result) == 0
    assert result.count().tolist() == [0] * 6
    assert result.memorised.tolist() == [0] * 6
    assert len(repr(result).splitlines()) == 8
    assert len(repr(result["0:0"]).splitlines()) == 3
    assert len(result.to_dataframe()) == 0


def test_figure_shows_the_counts() -> None:
    result = tokens_in_context(tiny_model(), ROWS % 5, thresholds=EVERYTHING)
    _, ax = plt.subplots()
    assert plot_kinds(result, ax=ax) is ax
    for bars, kind in zip(ax.containers, KINDS, strict=True):
        assert [bar.get_height() for bar in bars] == result.count(kind).tolist()
    assert [text.get_text() for text in ax.texts] == [str(n) for n in result.memorised]
    assert plot_kinds(result).get_xticklabels()[5].get_text() == "1:2"


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        tokens_in_context(model, ROWS)
    assert model.training


def test_where_rows_begin() -> None:
    assert common_start(torch.tensor([[3, 1], [3, 2]])) == 3
    assert common_start(torch.tensor([[3, 1], [2, 2]])) is None
    assert common_start(torch.tensor([[3, 1]])) is None  # one row begins like itself


def broken(model: AttentionOnly):
    ablation = ablate(model, ROWS)
    return replace(ablation, tokens=np.full_like(ablation.tokens, math.nan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: tokens_in_context(nn.Linear(2, 2), ROWS),
            r"heads\(Linear\): expected attention",
        ),
        (
            lambda m: tokens_in_context(m, [[1, 2]]),
            r"tokens_in_context: expected rllc\.Tokens or a tensor",
        ),
        (
            lambda m: tokens_in_context(
                m, ROWS, ablation=ablate(m, ROWS, rllc.head("0:1") | rllc.head("0:2"))
            ),
            r"must be of single heads of the model, got '0:1 \| 0:2'; make one with ablate",
        ),
        (
            lambda m: tokens_in_context(m, ROWS, ablation=ablate(m, ROWS[:3])),
            r"of the same rows, \[row, pos − 1\] = \(30, 7\), got \(3, 7\)",
        ),
        (
            lambda m: tokens_in_context(m, ROWS, ablation=broken(m)),
            "losses are not all finite; the model's weights",
        ),
        (
            lambda m: tokens_in_context(m, ROWS, brackets={"(": ")"}),
            r"`brackets` must map the id .* got '\(': '\)'",
        ),
        (
            lambda m: tokens_in_context(m, ROWS, brackets={1: 2.5}),
            r"`brackets` must map the id .* got 1: 2\.5",
        ),
        (
            lambda m: tokens_in_context(m, ROWS)["2:0"],
            r"tokens_in_context\['2:0'\]: no such head; did you mean",
        ),
        (
            lambda m: tokens_in_context(m, ROWS).count("bracket"),
            "no kind 'bracket'; known: 'induction'",
        ),
        (
            lambda m: tokens_in_context(m, ROWS).beyond_chance("other"),
            "no kind 'other' that explains tokens; known: 'induction'",
        ),
        (lambda m: Thresholds(effect=-1), "`effect` must be from 0 to inf, got -1"),
        (lambda m: Thresholds(attention=0.001), r"`attention` must be from 0\.01 to 1, got 0\.001"),
        (lambda m: Thresholds(rows=1.5), r"`rows` must be an integer of at least 1, got 1\.5"),
        (lambda m: Thresholds(most=0), "`most` must be an integer of at least 1, got 0"),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())


@pytest.mark.slow
def test_a_trained_model_has_memorised_the_tables_of_its_language() -> None:
    """Nearly all that heads are said to have memorised is in the tables of the language."""
    language = Language(shares={"ngram": 0.7, "skip_ngram": 0.3})
    rows = language.sample(4000, seed=1).tokens
    config = AttentionOnlyConfig(n_layers=1, d_model=64, n_heads=4, d_head=16, n_ctx=64, d_vocab=96)
    training = rllc.Training(num_steps=600, batch_size=32, lr=1e-2)
    model = rllc.train(config, rows, training=training, progress=False)
    result = tokens_in_context(model, language.sample(200, seed=2).tokens)
    readable = readable_trigrams(language)
    # what ends a unit is no letter, and in no table
    multigrams = [m for m in result.multigrams if m.target in language.ids["letters"]]
    assert len(multigrams) > 100
    occurrences = [multigram.occurrences for multigram in multigrams]

    def share(targets: list[int]) -> float:
        in_table = []
        for multigram, target in zip(multigrams, targets, strict=True):
            in_table.append((multigram.tokens[0], multigram.tokens[-1], target) in readable)
        return float(np.average(in_table, weights=occurrences))

    targets = [multigram.target for multigram in multigrams]
    assert share(targets) > 0.85  # 0.95 when this was written
    assert share(targets[7:] + targets[:7]) < 0.3


def readable_trigrams(language: Language) -> set[tuple[int, int, int]]:
    """The first and the last letter that a head can read of an entry, and the letter after them."""
    trigrams = set()
    for entry in (*language.ngrams, *language.skip_ngrams):
        for c in (1, 2):
            for b in range(c):
                trigrams |= {(entry[a], entry[b], entry[c]) for a in range(b + 1)}
    return trigrams
