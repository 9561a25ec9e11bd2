"""The rules of the synthetic language: what may come next within a unit, and with what probability.

Each rule is a generator. It is given the language, where its unit starts in the row, and the token
that opened it. It yields the options for the next token and is sent the token that came.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rllc.data.synthetic.language import Language

RULES = ("start", "ngram", "skip_ngram", "induction", "copy", "dyck", "sexpr")
"""The rules that produce tokens; ``Synthetic.rule`` has indices into these. ``start`` is BOS."""

ARITIES = (1, 2, 3)
"""Numbers of arguments of the operators of S-expressions."""

_NGRAMS_PER_UNIT = (1, 4)
"""Fewest and most n-grams in a unit."""
_AGAIN = 0.75
"""Probability that a segment that was repeated is repeated once more."""
_COPIED = (6, 12)
"""Fewest and most letters of a unit of ``copy``, the two first ones counted."""
_OPEN_AGAIN = 0.4
"""Probability that a bracket below the greatest depth is followed by one more opening one."""
_NEST = 0.3
"""Probability that an argument above the greatest depth is an expression, not an atom."""


class Option(NamedTuple):
    """Tokens that may come next, all with the same probability."""

    chance: float
    """Probability that one of them comes."""
    ids: Sequence[int]
    """The tokens. None at all: the unit ends, and a token that opens the next one comes."""
    source: int = -1
    """Position in the row that tells the token, or −1 if its rule does not fix it."""


Unit = Generator[list[Option], int, None]
"""Yields what may come next, in disjoint options, and is sent what came."""


def scaled(options: list[Option], factor: float) -> list[Option]:
    """The options with ``factor`` times their probabilities."""
    if factor == 0:
        return []
    # Most factors are 1, and rows are made of thousands of options.
    if factor == 1:
        return options
    multiplied = []
    for chance, ids, source in options:
        multiplied.append(Option(factor * chance, ids, source))
    return multiplied


def _found_at(options: list[Option], source: int) -> list[Option]:
    """The options as tokens that the token at ``source`` decides."""
    return [Option(chance, ids, source) for chance, ids, _ in options]


def _ends(chance: float) -> list[Option]:
    """The unit's end as an option, if it can end."""
    return [Option(chance, ())] if chance else []


def _hazard(count: int, fewest: int, most: int) -> float:
    """Probability that a length is ``count``, given that it is at least that.

    Lengths are uniform on ``fewest`` … ``most``.
    """
    if count < fewest:
        return 0.0
    return 1 / (most - count + 1)


# Tables: n-grams, and n-grams with a gap.


def _ngram(language: Language, start: int, opener: int) -> Unit:
    beginnings = language.continuations["ngram"][()]
    for count in range(_NGRAMS_PER_UNIT[1]):
        end = _hazard(count, *_NGRAMS_PER_UNIT)
        begins_another = scaled(beginnings, 1 - end)
        first = yield begins_another + _ends(end)
        begin = start + 1 + count * language.order
        yield from _rest_of_entry(language, "ngram", (first,), begin)


def _skip_ngram(language: Language, start: int, opener: int) -> Unit:
    follow = language.continuations["skip_ngram"]
    first = yield follow[()]
    # The first letter decides the trigger only where the trigger is the last token of its entry.
    source = start + 1 if language.order == 2 else -1
    for gap in range(language.gaps[1] + 1):
        end = _hazard(gap, *language.gaps)
        options = []
        if end:
            triggers = scaled(follow[(first,)], end)
            options += _found_at(triggers, source)
        if end < 1:
            options.append(Option(1 - end, language.ids["letters"]))
        token = yield options
        if token in language.ids["triggers"]:
            break
    yield from _rest_of_entry(language, "skip_ngram", (first, token), start + 1)


def _rest_of_entry(language: Language, rule: str, beginning: tuple[int, ...], start: int) -> Unit:
    """The tokens of a table's entry behind ``beginning``, whose first token is at ``start``."""
    for k in range(len(beginning), language.order):
        # All earlier tokens together decide the last one, and fewer decide none.
        is_fixed = k == language.order - 1
        following = language.continuations[rule][beginning]
        if is_fixed:
            following = _found_at(following, start)
        token = yield following
        beginning += (token,)


# Copies: repeated segments, and two letters in turn.


def _induction(language: Language, start: int, opener: int) -> Unit:
    again = (language.again,)
    unused = list(language.ids["letters"])
    segment = []
    for count in range(language.segment_lengths[1] + 1):
        end = _hazard(count, *language.segment_lengths)
        options = []
        if end < 1:
            options.append(Option(1 - end, tuple(unused)))
        if end:
            options.append(Option(end, again))
        token = yield options
        if token == language.again:
            break
        unused.remove(token)
        segment.append(token)
    while True:
        for source, letter in enumerate(segment, start + 1):
            yield [Option(1.0, (letter,), source)]
        start += len(segment) + 1
        yield [Option(_AGAIN, again), *_ends(1 - _AGAIN)]


def _copy(language: Language, start: int, opener: int) -> Unit:
    letters = language.ids["letters"]
    first = yield [Option(1.0, letters)]
    other_letters = [letter for letter in letters if letter != first]
    second = yield [Option(1.0, other_letters)]
    for count in range(2, _COPIED[1]):
        end = _hazard(count, *_COPIED)
        letter = second if count % 2 else first
        source = start + count - 1
        yield [Option(1 - end, (letter,), source), *_ends(end)]


# Brackets: balanced ones, and S-expressions.


def _dyck(language: Language, start: int, opener: int) -> Unit:
    stack = [(opener, start)]
    position = start
    while stack:
        position += 1
        bracket, source = stack[-1]
        closer = language.brackets[bracket]
        if len(stack) == language.max_depth:
            options = [Option(1.0, (closer,), source)]
        else:
            opening = Option(_OPEN_AGAIN, language.openers["dyck"])
            closing = Option(1 - _OPEN_AGAIN, (closer,), source)
            options = [opening, closing]
        token = yield options
        if token == closer:
            stack.pop()
        else:
            stack.append((token, position))


def _sexpr(language: Language, start: int, opener: int) -> Unit:
    yield from _expression(language, start, depth=1)


def _expression(language: Language, start: int, depth: int) -> Generator[list[Option], int, int]:
    """The tokens behind an opening parenthesis at ``start``.

    Returns:
        the position after the closing one.
    """
    opening, closing = language.ids["parentheses"]
    atoms = language.ids["atoms"]
    options = [Option(1.0, atoms)]
    if depth < language.max_depth:
        options = [Option(_NEST, (opening,)), Option(1 - _NEST, atoms)]
    operator = yield [Option(1.0, language.ids["operators"])]
    position = start + 2
    for _ in range(language.operators[operator]):
        token = yield options
        if token == opening:
            position = yield from _expression(language, position, depth + 1)
        else:
            position += 1
    yield [Option(1.0, (closing,), start)]
    return position + 1


UNITS: dict[str, Callable[[Language, int, int], Unit]] = {
    "ngram": _ngram,
    "skip_ngram": _skip_ngram,
    "induction": _induction,
    "copy": _copy,
    "dyck": _dyck,
    "sexpr": _sexpr,
}
"""The generator of each rule's units."""


# Lengths.


def mean_lengths(language: Language) -> dict[str, float]:
    """Mean tokens of a complete unit of each rule."""
    segment = sum(language.segment_lengths) / 2
    return {
        "ngram": 1 + language.order * sum(_NGRAMS_PER_UNIT) / 2,
        "skip_ngram": 1 + language.order + sum(language.gaps) / 2,
        "induction": 1 + segment + (1 + segment) / (1 - _AGAIN),
        "copy": 1 + sum(_COPIED) / 2,
        "dyck": 1 + _mean_descent(language.max_depth),
        "sexpr": _mean_expression(language.max_depth),
    }


def _mean_descent(max_depth: int) -> float:
    """Mean tokens of ``dyck`` from depth 1 to the next lower one, from the greatest depth up."""
    descent = 1.0
    for _ in range(max_depth - 1):
        descent = (1 + _OPEN_AGAIN * descent) / (1 - _OPEN_AGAIN)
    return descent


def _mean_expression(max_depth: int) -> float:
    """Mean tokens of an outermost expression, starting at the greatest depth."""
    mean_arity = np.mean(ARITIES)
    expression = 3.0 + mean_arity
    for _ in range(max_depth - 1):
        argument = 1 - _NEST + _NEST * expression
        expression = 3.0 + mean_arity * argument
    return float(expression)
