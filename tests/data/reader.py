"""A reader of the synthetic language, written apart from it.

From the tokens of a row alone it finds the rule, the source and the probability of each token. A
unit's reader gets the unit from its opener to the end of the row. It gives the tokens behind the
opener that belong to the unit, and the probability that the unit ends behind them. It stops at a
token that cannot
come: its probability is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rllc.data.synthetic import Language


class Read(NamedTuple):
    """What is known of a token."""

    source: int | None
    """Position that tells the token, counted from the opener of its unit."""
    chance: float


class Known(NamedTuple):
    """What is known of a token of a row."""

    rule: str | None
    source: int
    chance: float


Unit = tuple[list[Read], float]
"""The tokens behind the opener, and the probability that the unit ends there."""


def read(language: Language, chances: dict[str, float], row: Sequence[int]) -> list[Known]:
    """The tokens of a row, up to the first that cannot come."""
    tokens = [Known("start", -1, 1.0)]
    ended = 1.0
    while len(tokens) < len(row):
        start = len(tokens)
        rule = rule_of_opener(language, row[start])
        if rule is None:
            return [*tokens, Known(None, -1, 0.0)]
        chance = ended * chances.get(rule, 0.0) / len(language.openers[rule])
        tokens.append(Known(rule, -1, chance))
        if not chance:
            return tokens
        body, ended = READERS[rule](language, tuple(row[start:]))
        for source, chance in body:
            tokens.append(Known(rule, -1 if source is None else start + source, chance))
        if not tokens[-1].chance:
            return tokens
    return tokens


def rule_of_opener(language: Language, token: int) -> str | None:
    for rule, ids in language.openers.items():
        if token in ids:
            return rule
    return None


def unit_chances(language: Language, subset: str) -> dict[str, float]:
    """How likely a unit is of each rule."""
    if subset != "mixture":
        return {subset: 1.0}
    rates = {rule: share / language.unit_lengths[rule] for rule, share in language.shares.items()}
    total = sum(rates.values())
    return {rule: rate / total for rule, rate in rates.items()}


def chance_in_table(
    table: Sequence[tuple[int, ...]], beginning: tuple[int, ...], token: int
) -> float:
    """Share of the entries with this beginning that go on with the token."""
    k = len(beginning)
    entries = [entry for entry in table if entry[:k] == beginning]
    return sum(entry[k] == token for entry in entries) / len(entries)


def chance_of_end(length: int, fewest: int, most: int) -> float:
    """P(L = length | L ≥ length) for L uniform on fewest … most."""
    lengths = range(fewest, most + 1)
    return sum(n == length for n in lengths) / sum(n >= length for n in lengths)


# One reader a rule.


def read_ngrams(language: Language, unit: tuple[int, ...]) -> Unit:
    letters = language.ids["letters"]
    body: list[Read] = []
    while True:
        num_done, k = divmod(len(body), language.order)
        begins_entry = k == 0
        end = chance_of_end(num_done, 1, 4) if begins_entry else 0.0
        position = 1 + len(body)
        is_over = position == len(unit) or num_done == 4
        if is_over or (begins_entry and unit[position] not in letters):
            return body, end
        start = 1 + num_done * language.order
        chance = chance_in_table(language.ngrams, unit[start:position], unit[position])
        is_last = k == language.order - 1
        body.append(Read(start if is_last else None, (1 - end) * chance))
        if not body[-1].chance:
            return body, 0.0


def read_skip_ngram(language: Language, unit: tuple[int, ...]) -> Unit:
    table = language.skip_ngrams
    letters = language.ids["letters"]
    triggers = language.ids["triggers"]
    positions = [position for position, token in enumerate(unit) if token in triggers]
    trigger = positions[0] if positions else len(unit)
    body: list[Read] = []
    if len(unit) > 1:
        body.append(Read(None, chance_in_table(table, (), unit[1])))
    for gap, token in enumerate(unit[2 : trigger + 1]):
        end = chance_of_end(gap, *language.gaps) if gap <= language.gaps[1] else 1.0
        if token in triggers:
            source = 1 if language.order == 2 else None
            body.append(Read(source, end * chance_in_table(table, unit[1:2], token)))
        else:
            body.append(Read(None, (token in letters) * (1 - end) / len(letters)))
        if not body[-1].chance:
            return body, 0.0
    if trigger < 2:
        return body, 0.0
    for k in range(2, language.order):
        position = trigger + k - 1
        if position < len(unit):
            beginning = (unit[1], *unit[trigger:position])
            source = 1 if k == language.order - 1 else None
            body.append(Read(source, chance_in_table(table, beginning, unit[position])))
            if not body[-1].chance:
                return body, 0.0
    return body, float(len(body) == trigger + language.order - 2)


def read_induction(language: Language, unit: tuple[int, ...]) -> Unit:
    letters = language.ids["letters"]
    again = language.again
    length = unit.index(again) - 1 if again in unit else len(unit) - 1
    body: list[Read] = []
    for k, token in enumerate(unit[1 : length + 2]):
        is_too_long = k > language.segment_lengths[1]
        end = 1.0 if is_too_long else chance_of_end(k, *language.segment_lengths)
        if token == again:
            chance = end
        else:
            is_new = token in letters and token not in unit[1 : k + 1]
            chance = is_new * (1 - end) / (len(letters) - k)
        body.append(Read(None, chance))
        if not chance:
            return body, 0.0
    period = length + 1
    for position in range(1 + len(body), len(unit)):
        if position % period:
            source = position - period
            body.append(Read(source, float(unit[position] == unit[source])))
        elif unit[position] == again:
            body.append(Read(None, 0.75))
        else:
            return body, 0.25
        if not body[-1].chance:
            return body, 0.0
    was_repeated = again in unit and len(unit) > period
    return body, 0.25 if was_repeated and len(unit) % period == 0 else 0.0


def read_copy(language: Language, unit: tuple[int, ...]) -> Unit:
    letters = language.ids["letters"]
    body: list[Read] = []
    for k, token in enumerate(unit[1:]):
        if k == 0:
            body.append(Read(None, (token in letters) / len(letters)))
        elif k == 1:
            is_other = token in letters and token != unit[1]
            body.append(Read(None, is_other / (len(letters) - 1)))
        elif k == 12 or token not in letters:
            return body, chance_of_end(k, 6, 12)
        else:
            end = chance_of_end(k, 6, 12)
            body.append(Read(k - 1, (1 - end) * (token == unit[k - 1])))
        if not body[-1].chance:
            return body, 0.0
    return body, chance_of_end(len(body), 6, 12)


def read_dyck(language: Language, unit: tuple[int, ...]) -> Unit:
    body: list[Read] = []
    for position in range(1, len(unit)):
        opened = unmatched(language, unit[:position])
        if not opened:
            return body, 1.0
        can_nest = len(opened) < language.max_depth
        if language.brackets[unit[opened[-1]]] == unit[position]:
            body.append(Read(opened[-1], 0.6 if can_nest else 1.0))
        else:
            opens = unit[position] in language.openers["dyck"]
            chance = 0.4 / language.num_bracket_types
            body.append(Read(None, can_nest * opens * chance))
        if not body[-1].chance:
            return body, 0.0
    return body, float(not unmatched(language, unit))


def read_sexpr(language: Language, unit: tuple[int, ...]) -> Unit:
    """Reads with a stack of expressions: where each begins, and how many arguments it still needs.

    An expression needs ``None`` arguments while its operator has not come.
    """
    opening, closing = language.ids["parentheses"]
    atoms = language.ids["atoms"]
    stack: list[tuple[int, int | None]] = [(0, None)]
    body: list[Read] = []
    for position, token in enumerate(unit[1:], start=1):
        if not stack:
            return body, 1.0
        nest = 0.3 if len(stack) < language.max_depth else 0.0
        begin, needed = stack.pop()
        if needed is None:
            body.append(Read(None, (token in language.operators) / 3))
            stack.append((begin, language.operators.get(token)))
        elif needed == 0:
            body.append(Read(begin, float(token == closing)))
        else:
            stack.append((begin, needed - 1))
            if token == opening:
                body.append(Read(None, nest))
                stack.append((position, None))
            else:
                body.append(Read(None, (token in atoms) * (1 - nest) / len(atoms)))
        if not body[-1].chance:
            return body, 0.0
    return body, float(not stack)


def unmatched(language: Language, tokens: Sequence[int]) -> list[int]:
    """Positions of brackets that are open at the end."""
    opened: list[int] = []
    for position, token in enumerate(tokens):
        if token in language.brackets:
            opened.append(position)
        elif token in language.brackets.values():
            assert language.brackets[tokens[opened.pop()]] == token
    return opened


READERS: dict[str, Callable[[Language, tuple[int, ...]], Unit]] = {
    "ngram": read_ngrams,
    "skip_ngram": read_skip_ngram,
    "induction": read_induction,
    "copy": read_copy,
    "dyck": read_dyck,
    "sexpr": read_sexpr,
}
