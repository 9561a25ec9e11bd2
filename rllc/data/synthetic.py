"""A language whose rules and entropy are known: the ground truth for data refinement and for what heads are said to do.

A row is BOS and then one unit after the other, until it is full (the last unit is cut). A unit is one application of one rule.
It begins with the mark of its rule or an opening bracket, and where it ends follows from its own tokens, so the tokens tell
where units begin and of which rule they are:

- ``ngram``: its mark, then some n-grams of a fixed table; the earlier tokens of one, taken together, tell its last.
- ``skip_ngram``: its mark, a letter, a gap of random letters, a trigger, and the letter that the first letter and the
  trigger together have in another table.
- ``induction``: its mark, a segment of random letters, and then the segment again, each time after the mark "again".
- ``copy``: its mark, two letters, and the two in turn: the next token is the one before the present.
- ``dyck``: brackets of several types, balanced, up to the bracket that closes the first.
- ``sexpr``: ``( operator argument … )``, each argument an atom or an expression; operators have 1, 2 or 3 arguments.

Rules meet inside a row, as in text, so that one model needs all of them at once and its heads can divide them; the rule of a
unit is drawn independently of all before. The first four rules share their letters, as rules of text share words. This
matters: in trials in which each had ids of its own, models of 2 layers and width 64 formed neither a previous-token nor an
induction head in 2,500 steps; with shared letters one previous-token head is of use to several rules.

A small model learns it in about a minute, with the settings in the docstring of :class:`Language`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.seeds import generator

if TYPE_CHECKING:
    import pandas as pd

RULES = ("start", "ngram", "skip_ngram", "induction", "copy", "dyck", "sexpr")
"""What produced a token; ``Synthetic.rule`` holds indices into this. ``start`` is BOS."""

SHARES = {
    "ngram": 0.2,
    "skip_ngram": 0.1,
    "induction": 0.45,
    "copy": 0.05,
    "dyck": 0.1,
    "sexpr": 0.1,
}
"""Share of the mixture's tokens that each rule produces. The most are induction's, whose circuit takes longest to form."""

_RUN = (1, 4)
"""Fewest and most n-grams in a unit."""
_AGAIN = 0.75
"""Probability that a segment that was repeated is repeated once more."""
_COPIED = (6, 12)
"""Fewest and most letters of a unit of ``copy``, the two first ones counted."""
_OPEN_AGAIN = 0.4
"""Probability that a bracket below the greatest depth is followed by one more opening one."""
_NEST = 0.3
"""Probability that an argument above the greatest depth is an expression, not an atom."""
_ARITIES = (1, 2, 3)
_TRIGGERS, _ATOMS = 4, 8
_BOS = 0
_END = ()
"""In place of ids: the unit ends, and a token that opens the next one comes."""

_Option = tuple[float, Sequence[int], int]
"""(probability, ids that share it evenly, position that tells the token or −1)."""
_Unit = Generator[list[_Option], int, None]
"""Yields what may come next, in disjoint options, and is sent what came."""


@dataclass(frozen=True, repr=False)
class Language:
    """Seeded rows of tokens from known rules (see the module), with each token's rule and exact entropy.

    >>> language = Language(vocab_size=64, context_length=64)
    >>> language.sample(100, subset="dyck")
    Synthetic('dyck': 100 rows x 64 positions, entropy 1.047 nats a token)

    With the defaults, this trains a model that has previous-token and induction heads, in about a minute on one core::

        rows = rllc.data.synthetic.Language().sample(10_000, seed=1).tokens
        config = rllc.models.AttentionOnlyConfig(
            n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=64, d_vocab=96
        )
        model = rllc.train(config, rows, num_steps=2000, batch_size=32, lr=1e-2, seed=0)

    Over three seeds (0, 1, 2; rows of seeds 1, 2, 3) the best head of layer 0 then gave 0.64 to 0.77 of its attention to the
    previous token on rows of ``induction``, the best of layer 1 0.96 to 0.97 to the letters that had followed the present
    one, and the mean loss was 0.13 to 0.15 above the entropy (0.01 to 0.03 on repeated letters).

    Args:
        vocab_size: number of ids: BOS, marks, triggers, brackets and parts of S-expressions; the rest are letters.
        context_length: tokens a row.
        seed: of the tables of n-grams; rows have a seed of their own.
        shares: share of the mixture's tokens from each rule, summing to 1; rules left out do not occur. Exact for long
            rows; short rows have fewer from rules with long units, which the end of the row cuts.
        order: tokens of an n-gram or skip n-gram, its gap not counted; 3, because a bigram needs no attention.
        num_ngrams: n-grams in the table, equally likely. Their beginnings are all different, and made of half the
            letters, so that each letter is in many.
        num_skip_ngrams: the same for skip n-grams; first letters are a quarter of the letters.
        gaps: fewest and most letters in the gap; every number between is equally likely.
        segment_lengths: fewest and most letters of a segment that ``induction`` repeats, equally likely; the letters of one
            segment are different.
        num_bracket_types: kinds of brackets in ``dyck``.
        max_depth: of nesting, in ``dyck`` and ``sexpr``.

    Raises:
        InputError: an argument cannot be used, or the vocabulary is too small for the others.
    """

    vocab_size: int = 96
    context_length: int = 64
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=SHARES.copy)
    order: int = 3
    num_ngrams: int = 128
    num_skip_ngrams: int = 32
    gaps: tuple[int, int] = (1, 4)
    segment_lengths: tuple[int, int] = (4, 10)
    num_bracket_types: int = 3
    max_depth: int = 4

    def __post_init__(self) -> None:
        _check(self)

    def __repr__(self) -> str:
        rules = ", ".join(f"{rule} {share:g}" for rule, share in self.shares.items())
        return f"Language({self.vocab_size} ids, rows of {self.context_length}, seed {self.seed}: {rules})"

    def sample(self, num_rows: int, seed: int = 0, subset: str = "mixture") -> Synthetic:
        """Rows of the mixture, or of one rule alone.

        Row k is the same for any ``num_rows`` above k.

        Args:
            num_rows: how many.
            seed: of the rows.
            subset: ``"mixture"``, or the name of a rule: all units of a row are then of this rule.

        Raises:
            InputError: no such subset, or no rows.
        """
        if subset != "mixture" and subset not in RULES[1:]:
            raise InputError(
                f"sampling {subset!r} from {self!r}: no such subset; {nearest(subset, ['mixture', *RULES[1:]])}"
            )
        if num_rows < 1:
            raise InputError(
                f"sampling from {self!r}: `num_rows` must be at least 1, got {num_rows}."
            )
        chances = self._unit_chances if subset == "mixture" else {subset: 1.0}
        numbers = _uniform(generator("synthetic", self.seed, seed, subset))
        rows = [_row(self, chances, numbers) for _ in range(num_rows)]
        tokens, rule, source, entropy, surprise = (
            np.array(column) for column in zip(*rows, strict=True)
        )
        rule, source = rule.astype(np.int8), source.astype(np.int32)
        return Synthetic(Tokens(tokens, subset), rule, source, entropy=entropy, surprise=surprise)

    def subsets(self, num_rows: int, seed: int = 0) -> dict[str, Tokens]:
        """Rows of the mixture and of each of its rules, by name: the data of data-refined estimates.

        >>> list(Language(context_length=16).subsets(10))
        ['mixture', 'ngram', 'skip_ngram', 'induction', 'copy', 'dyck', 'sexpr']
        """
        return {
            name: self.sample(num_rows, seed, name).tokens
            for name in ["mixture", *self._unit_chances]
        }

    @cached_property
    def ids(self) -> dict[str, range]:
        """The ids of each kind; together all of the vocabulary.

        >>> Language(vocab_size=64).ids["letters"]
        range(29, 64)
        """
        first, ids = 0, {}
        for kind, size in _sizes(self).items():
            ids[kind] = range(first, first + size)
            first += size
        return ids

    @cached_property
    def openers(self) -> dict[str, Sequence[int]]:
        """The ids that open a unit of each rule, equally likely: its mark, or any opening bracket."""
        marks = self.ids["marks"]
        return {rule: marks[k : k + 1] for k, rule in enumerate(RULES[1:5])} | {
            "dyck": self.ids["brackets"][: self.num_bracket_types],
            "sexpr": self.ids["parentheses"][:1],
        }

    @property
    def again(self) -> int:
        """The mark after which ``induction`` repeats its segment."""
        return self.ids["marks"][-1]

    @cached_property
    def brackets(self) -> dict[int, int]:
        """Opening bracket to closing bracket: the types of ``dyck``, then the parentheses of ``sexpr``."""
        ids, types = self.ids["brackets"], self.num_bracket_types
        opening, closing = self.ids["parentheses"]
        return dict(zip(ids[:types], ids[types:], strict=True)) | {opening: closing}

    @cached_property
    def operators(self) -> dict[int, int]:
        """Operator of an S-expression to its number of arguments."""
        return dict(zip(self.ids["operators"], _ARITIES, strict=True))

    @cached_property
    def ngrams(self) -> tuple[tuple[int, ...], ...]:
        """The n-grams of the table."""
        return _table(_alphabets(self)["ngram"], self.num_ngrams, ("ngrams", self.seed))

    @cached_property
    def skip_ngrams(self) -> tuple[tuple[int, ...], ...]:
        """The skip n-grams of the table, without the gap, which comes after the first token."""
        return _table(
            _alphabets(self)["skip_ngram"], self.num_skip_ngrams, ("skip n-grams", self.seed)
        )

    @cached_property
    def unit_lengths(self) -> dict[str, float]:
        """Mean tokens of a whole unit of each rule.

        >>> Language().unit_lengths["skip_ngram"]
        6.5
        """
        segment = sum(self.segment_lengths) / 2
        down, expression = (
            1.0,
            3.0 + np.mean(_ARITIES),
        )  # at the greatest depth, then upwards from it
        for _ in range(self.max_depth - 1):
            down = (1 + _OPEN_AGAIN * down) / (
                1 - _OPEN_AGAIN
            )  # steps from one depth to the next lower
            expression = 3.0 + np.mean(_ARITIES) * (1 - _NEST + _NEST * expression)
        return {
            "ngram": 1 + self.order * sum(_RUN) / 2,
            "skip_ngram": 1 + self.order + sum(self.gaps) / 2,
            "induction": 1 + segment + (1 + segment) / (1 - _AGAIN),
            "copy": 1 + sum(_COPIED) / 2,
            "dyck": 1 + down,
            "sexpr": float(expression),
        }

    @cached_property
    def _unit_chances(self) -> dict[str, float]:
        """How likely a unit is of each rule, so that rules have their shares of tokens."""
        rates = {
            rule: share / self.unit_lengths[rule]
            for rule, share in self.shares.items()
            if share > 0
        }
        return {rule: rate / sum(rates.values()) for rule, rate in rates.items()}

    @cached_property
    def _continuations(self) -> dict[str, dict[tuple[int, ...], list[tuple[float, tuple[int]]]]]:
        """For each table: beginning of an entry -> (probability, next id)."""
        return {"ngram": _tree(self.ngrams), "skip_ngram": _tree(self.skip_ngrams)}


@dataclass(frozen=True, eq=False, repr=False)
class Synthetic:
    """Rows of a :class:`Language`, and what is known of each token; all arrays are ``[row, pos]``, aligned with the rows.

    Args:
        tokens: the rows, named after the subset; data for training and for refinements.
        rule: index into :data:`RULES` of the rule of the token's unit.
        source: where a token that its rule fixes can be found: the position of the letter to copy (``induction``: in the
            last occurrence of the segment; ``copy``), of the bracket that it closes (``dyck``, ``sexpr``), or of
            the first token of the n-gram that it ends (``ngram``, ``skip_ngram``). −1 for all other tokens. What
            ends a unit is not fixed: a bracket's type is, that it closes here is not; nor how long ``copy`` goes on.
        entropy: exact entropy of the token in nats, given all tokens before it in its row, the language and the subset.
            Its mean over positions from 1 on is the least next-token loss that a model can have. As every state
            of the process can be read from those tokens, knowing the rule would not lower it. 0 for BOS.
        surprise: −log probability of the token under the same distribution, in nats; its mean differs from that of
            ``entropy`` by chance only. A model's loss less this is its excess loss, with little noise.
    """

    tokens: Tokens
    rule: np.ndarray
    source: np.ndarray
    entropy: np.ndarray
    surprise: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        tokens = repr(self.tokens).removeprefix("Tokens(").removesuffix(")")
        return f"Synthetic({tokens}, entropy {self.mean_entropy:.3f} nats a token)"

    @property
    def predictable(self) -> np.ndarray:
        """Whether the rule fixes the token, ``[row, pos]``: it has a ``source``."""
        return self.source >= 0

    @property
    def mean_entropy(self) -> float:
        """The least mean loss, in nats a token, that a model can have on these rows (BOS is not predicted)."""
        return float(self.entropy[:, 1:].mean())

    def to_dataframe(self, **values: np.ndarray) -> pd.DataFrame:
        """One row a rule, fixed tokens apart from the others: ``rule, predictable, share, entropy, surprise, …``.

        Args:
            values: further numbers to average, such as ``loss=``: ``[row, pos]``, or ``[row, pos - 1]`` for losses, where
                position k is scored on token k + 1.

        Raises:
            InputError: values of another shape.
        """
        import pandas as pd

        columns = {name: self._aligned(name, v) for name, v in values.items()}
        columns = {"entropy": self.entropy[:, 1:], "surprise": self.surprise[:, 1:]} | columns
        table = {
            "rule": np.array(RULES)[self.rule[:, 1:].ravel()],
            "predictable": self.predictable[:, 1:].ravel(),
        }
        whole = pd.DataFrame(table | {name: column.ravel() for name, column in columns.items()})
        groups = whole.groupby(["rule", "predictable"], sort=True)
        means = groups.mean()
        means.insert(0, "share", groups.size() / len(whole))
        return means.reset_index()

    def _aligned(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values of predicted tokens, ``[row, pos - 1]``."""
        values = np.asarray(values, dtype=np.float64)
        rows, length = self.rule.shape
        if values.shape == (rows, length):
            return values[:, 1:]
        if values.shape == (rows, length - 1):
            return values
        raise InputError(
            f"table of {self!r}: `{name}` must be [{rows}, {length}] or, for losses, [{rows}, {length - 1}], got "
            f"{list(values.shape)}."
        )


# One row: units one after the other, each token drawn from what its unit says may come.


def _row(
    language: Language, chances: Mapping[str, float], numbers: Iterator[float]
) -> tuple[list[int], list[int], list[int], list[float], list[float]]:
    """``tokens, rule, source, entropy, surprise``."""
    tokens, rules, sources, entropies, surprises = [_BOS], [0], [-1], [0.0], [0.0]
    openers = [(chance, language.openers[rule], -1) for rule, chance in chances.items()]
    opened = list(chances)
    unit, rule, inside = (
        None,
        "",
        [],
    )  # `inside`: options of the unit itself; those that open the next one come behind
    ending = 1.0
    while len(tokens) < language.context_length:
        options = inside + (
            [(ending * chance, ids, -1) for chance, ids, _ in openers] if ending else []
        )
        chosen, token, entropy, surprise = _draw(options, next(numbers))
        if chosen >= len(inside):
            rule = opened[chosen - len(inside)]
            unit = _UNITS[rule](language, len(tokens), token)
            token_for_unit = None  # a generator is begun by sending it None
        else:
            token_for_unit = token
        tokens.append(token)
        rules.append(RULES.index(rule))
        sources.append(options[chosen][2])
        entropies.append(entropy)
        surprises.append(surprise)
        inside, ending = _after(unit, token_for_unit)
    return tokens, rules, sources, entropies, surprises


def _after(unit: _Unit, token: int | None) -> tuple[list[_Option], float]:
    """What the unit may go on with after the token, and with which probability it ends instead."""
    try:
        options = unit.send(token)
    except StopIteration:
        return [], 1.0
    inside = [option for option in options if option[1] is not _END]
    return inside, sum(option[0] for option in options if option[1] is _END)


def _draw(options: Sequence[_Option], number: float) -> tuple[int, int, float, float]:
    """One token by a uniform number: (option, id, entropy of the options, −log probability of the id)."""
    entropy, chosen, inside, remaining = 0.0, -1, 0.0, number
    for k, (chance, ids, _) in enumerate(options):
        entropy += chance * math.log(len(ids) / chance)
        if chosen < 0 and (
            remaining < chance or k == len(options) - 1
        ):  # chances may sum to a little less than 1
            chosen, inside = k, remaining / chance
        remaining -= chance
    chance, ids, _ = options[chosen]
    token = ids[min(int(inside * len(ids)), len(ids) - 1)]
    return chosen, token, entropy, math.log(len(ids) / chance)


def _uniform(stream: torch.Generator) -> Iterator[float]:
    while True:
        yield from torch.rand(1 << 16, generator=stream, dtype=torch.float64).tolist()


# The rules. Each is given the language, where its unit starts, and the token that opened it.


def _ngram(language: Language, start: int, opener: int) -> _Unit:
    follow = language._continuations["ngram"]
    for count in range(_RUN[1]):
        end = _hazard(count, *_RUN)
        first = yield [*((chance * (1 - end), ids, -1) for chance, ids in follow[()]), *_ends(end)]
        yield from _rest(language, "ngram", (first,), start + 1 + count * language.order)


def _skip_ngram(language: Language, start: int, opener: int) -> _Unit:
    follow = language._continuations["skip_ngram"]
    first = yield [(chance, ids, -1) for chance, ids in follow[()]]
    source = start + 1 if language.order == 2 else -1
    for gap in range(language.gaps[1] + 1):
        end = _hazard(gap, *language.gaps)
        closing = [(chance * end, ids, source) for chance, ids in follow[(first,)]] if end else []
        token = yield closing + ([(1 - end, language.ids["letters"], -1)] if end < 1 else [])
        if token in language.ids["triggers"]:
            break
    yield from _rest(language, "skip_ngram", (first, token), start + 1)


def _rest(language: Language, rule: str, beginning: tuple[int, ...], start: int) -> _Unit:
    """The rest of an entry of a table."""
    for k in range(len(beginning), language.order):
        source = start if k == language.order - 1 else -1
        following = language._continuations[rule][beginning]
        beginning += ((yield [(chance, ids, source) for chance, ids in following]),)


def _induction(language: Language, start: int, opener: int) -> _Unit:
    unused, segment, again = list(language.ids["letters"]), [], (language.again,)
    for count in range(language.segment_lengths[1] + 1):
        end = _hazard(count, *language.segment_lengths)
        more = [(1 - end, tuple(unused), -1)] if end < 1 else []
        token = yield more + ([(end, again, -1)] if end else [])
        if token == language.again:
            break
        unused.remove(token)
        segment.append(token)
    while True:
        for k, letter in enumerate(segment):
            yield [(1.0, (letter,), start + 1 + k)]
        start += len(segment) + 1
        yield [(_AGAIN, again, -1), *_ends(1 - _AGAIN)]


def _copy(language: Language, start: int, opener: int) -> _Unit:
    letters = language.ids["letters"]
    first = yield [(1.0, letters, -1)]
    second = yield [(1.0, [letter for letter in letters if letter != first], -1)]
    for count in range(2, _COPIED[1]):
        end = _hazard(count, *_COPIED)
        yield [(1 - end, (second if count % 2 else first,), start + count - 1), *_ends(end)]


def _dyck(language: Language, start: int, opener: int) -> _Unit:
    stack = [(opener, start)]
    while stack:
        start += 1
        closer, at = language.brackets[stack[-1][0]], stack[-1][1]
        if len(stack) == language.max_depth:
            token = yield [(1.0, (closer,), at)]
        else:
            token = yield [
                (_OPEN_AGAIN, language.openers["dyck"], -1),
                (1 - _OPEN_AGAIN, (closer,), at),
            ]
        if token == closer:
            stack.pop()
        else:
            stack.append((token, start))


def _sexpr(language: Language, start: int, opener: int) -> _Unit:
    yield from _expression(language, start, depth=1)


def _expression(language: Language, start: int, depth: int) -> Generator[list[_Option], int, int]:
    """What follows an opening parenthesis at ``start``; gives the position after the closing one."""
    opening, closing = language.ids["parentheses"]
    nest = _NEST if depth < language.max_depth else 0.0
    operator = yield [(1.0, language.ids["operators"], -1)]
    at = start + 2
    for _ in range(language.operators[operator]):
        token = yield ([(nest, (opening,), -1)] if nest else []) + [
            (1 - nest, language.ids["atoms"], -1)
        ]
        at = (yield from _expression(language, at, depth + 1)) if token == opening else at + 1
    yield [(1.0, (closing,), start)]
    return at + 1


_UNITS: dict[str, Callable[[Language, int, int], _Unit]] = {
    "ngram": _ngram,
    "skip_ngram": _skip_ngram,
    "induction": _induction,
    "copy": _copy,
    "dyck": _dyck,
    "sexpr": _sexpr,
}


def _ends(chance: float) -> list[_Option]:
    return [(chance, _END, -1)] if chance else []


def _hazard(count: int, fewest: int, most: int) -> float:
    """Probability that a length is ``count``, given that it is at least that; it is uniform from fewest to most."""
    return 0.0 if count < fewest else 1 / (most - count + 1)


# The tables, and how the vocabulary is divided.


def _alphabets(language: Language) -> dict[str, list[range]]:
    """For each table, what its first, second, … tokens are chosen from."""
    letters, triggers, order = language.ids["letters"], language.ids["triggers"], language.order
    between = [letters[: len(letters) // 2]] * (order - 1)
    return {
        "ngram": [*between, letters],
        "skip_ngram": [
            letters[: len(letters) // 4],
            triggers,
            *between[2:],
            *([letters] if order > 2 else []),
        ],
    }


def _table(
    alphabets: Sequence[range], count: int, key: tuple[object, ...]
) -> tuple[tuple[int, ...], ...]:
    """``count`` n-grams with different beginnings."""
    stream = generator("synthetic", *key)
    last = torch.randint(len(alphabets[-1]), (count,), generator=stream).tolist()
    number_of_all = math.prod(map(len, alphabets[:-1]))
    beginnings: dict[int, None] = {}
    while len(beginnings) < count:
        beginnings |= dict.fromkeys(
            torch.randint(number_of_all, (count,), generator=stream).tolist()
        )
    entries = []
    for number, end in zip(beginnings, last, strict=False):
        entry = ()
        for letters in alphabets[:-1]:
            number, digit = divmod(number, len(letters))
            entry += (letters[digit],)
        entries.append((*entry, alphabets[-1][end]))
    return tuple(entries)


def _tree(
    table: Sequence[tuple[int, ...]],
) -> dict[tuple[int, ...], list[tuple[float, tuple[int]]]]:
    counts: dict[tuple[int, ...], dict[int, int]] = {}
    for entry in table:
        for k, token in enumerate(entry):
            following = counts.setdefault(entry[:k], {})
            following[token] = following.get(token, 0) + 1
    return {
        beginning: [(n / sum(following.values()), (token,)) for token, n in following.items()]
        for beginning, following in counts.items()
    }


def _sizes(language: Language) -> dict[str, int]:
    """How many ids there are of each kind, in the order of their ids."""
    sizes = {
        "start": 1,
        "marks": 5,
        "triggers": _TRIGGERS,
        "brackets": 2 * language.num_bracket_types,
    }
    sizes |= {"parentheses": 2, "operators": len(_ARITIES), "atoms": _ATOMS}
    return sizes | {"letters": language.vocab_size - sum(sizes.values())}


def _check(language: Language) -> None:
    least = {"context_length": 2, "order": 2, "num_ngrams": 1, "num_skip_ngrams": 1}
    least |= {"num_bracket_types": 1, "max_depth": 1, "vocab_size": 1}
    for name, lowest in least.items():
        value = getattr(language, name)
        if type(value) is not int or value < lowest:
            raise InputError(
                f"Language: `{name}` must be an integer of at least {lowest}, got {value!r}."
            )
    for name, lowest in {"gaps": 1, "segment_lengths": 2}.items():
        value = getattr(language, name)
        if (
            len(value) != 2
            or not all(type(v) is int for v in value)
            or not lowest <= value[0] <= value[1]
        ):
            raise InputError(
                f"Language: `{name}` must be two integers, fewest (at least {lowest}) and most, got {value!r}."
            )
    _check_shares(language.shares)
    _check_vocabulary(language)


def _check_shares(shares: Mapping[str, float]) -> None:
    for rule, share in shares.items():
        if rule not in RULES[1:]:
            raise InputError(
                f"Language: `shares` names {rule!r}, which is no rule; {nearest(rule, RULES[1:])}"
            )
        if not share >= 0:
            raise InputError(
                f"Language: the share of {rule!r} must not be negative, got {share!r}."
            )
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise InputError(
            f"Language: `shares` must sum to 1, got {sum(shares.values()):g} from {dict(shares)}."
        )


def _check_vocabulary(language: Language) -> None:
    letters, needed = _sizes(language)["letters"], max(language.segment_lengths[1], 8)
    if letters < needed:
        raise InputError(
            f"Language: a vocabulary of {language.vocab_size} ids leaves {letters} letters, but at least {needed} are "
            f"needed. Give vocab_size={language.vocab_size + needed - letters} or more, or shorter `segment_lengths`."
        )
    for rule, count in {
        "ngram": language.num_ngrams,
        "skip_ngram": language.num_skip_ngrams,
    }.items():
        room = math.prod(map(len, _alphabets(language)[rule][:-1]))
        if count > room:
            raise InputError(
                f"Language: `num_{rule}s` is {count}, but {letters} letters give only {room} beginnings of order "
                f"{language.order}. Give at most {room}, or a larger `vocab_size`."
            )
