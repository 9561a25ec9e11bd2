"""Rows of the synthetic language: how one is drawn, and what is known of each of its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rllc.data.synthetic.rules import RULES, UNITS, Option, Unit, scaled
from rllc.data.tokens import Tokens
from rllc.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rllc.data.synthetic.language import Language

BOS = 0


@dataclass(frozen=True, eq=False, repr=False)
class Synthetic:
    """Rows of a :class:`Language`, and what is known of each token.

    All arrays are ``[row, pos]``, aligned with the rows.

    Args:
        tokens: the rows, named after the subset; data for training and for refinements.
        rule: index into :data:`RULES` of the rule of the token's unit.
        source: where a token that its rule fixes can be found: the position of the letter to copy
            (``induction``: in the last occurrence of the segment; ``copy``), of the bracket that it
            closes (``dyck``, ``sexpr``), or of the first token of the n-gram that it ends
            (``ngram``, ``skip_ngram``). −1 for all other tokens. What ends a unit is not fixed: a
            bracket's type is, that it closes here is not; nor how long ``copy`` goes on.
        entropy: exact entropy of the token in nats, given all tokens before it in its row, the
            language and the subset. Its mean over positions from 1 on is the least next-token loss
            that a model can have. As every state of the process can be read from those tokens,
            knowing the rule would not lower it. 0 for BOS.
        surprise: −log probability of the token under the same distribution, in nats; its mean
            differs from that of ``entropy`` by chance only. A model's loss less this is its excess
            loss, with little noise.
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
        """The least mean loss a model can have on these rows, in nats a token; BOS is left out."""
        return float(self.entropy[:, 1:].mean())

    def to_dataframe(self, **values: np.ndarray) -> pd.DataFrame:
        """One row a rule, fixed tokens apart from the others.

        Args:
            values: further numbers to average, such as ``loss=``: ``[row, pos]``, or
                ``[row, pos - 1]`` for losses, where position k is scored on token k + 1.

        Returns:
            columns ``rule, predictable, share, entropy, surprise`` and the names of ``values``.

        Raises:
            InputError: values of another shape.
        """
        import pandas as pd

        columns = {
            "rule": np.array(RULES)[self.rule[:, 1:].ravel()],
            "predictable": self.predictable[:, 1:].ravel(),
            "entropy": self.entropy[:, 1:].ravel(),
            "surprise": self.surprise[:, 1:].ravel(),
        }
        for name, numbers in values.items():
            columns[name] = self._of_predicted_tokens(name, numbers).ravel()
        tokens = pd.DataFrame(columns)
        groups = tokens.groupby(["rule", "predictable"], sort=True)
        table = groups.mean()
        table.insert(0, "share", groups.size() / len(tokens))
        return table.reset_index()

    def _of_predicted_tokens(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values without those of BOS, ``[row, pos - 1]``."""
        values = np.asarray(values, dtype=np.float64)
        num_rows, length = self.rule.shape
        if values.shape == (num_rows, length):
            return values[:, 1:]
        if values.shape == (num_rows, length - 1):
            return values
        raise InputError(
            f"table of {self!r}: `{name}` must be [{num_rows}, {length}] or, for losses, "
            f"[{num_rows}, {length - 1}], got {list(values.shape)}."
        )


class Token(NamedTuple):
    """One token of a row, as :class:`Synthetic` describes it."""

    id: int
    rule: int
    source: int
    entropy: float
    surprise: float


def draw_row(
    language: Language, chances: Mapping[str, float], numbers: Iterator[float]
) -> list[Token]:
    """One row: units one after the other, each token drawn from what its unit says may come.

    Args:
        language: what the rules are.
        chances: how likely a unit is of each rule.
        numbers: uniform random numbers, one for each token after BOS.
    """
    rules = list(chances)
    openers = [Option(chance, language.openers[rule]) for rule, chance in chances.items()]
    row = [Token(BOS, RULES.index("start"), -1, 0.0, 0.0)]
    inside: list[Option] = []
    ending = 1.0
    while len(row) < language.context_length:
        # First what the unit itself may go on with, then what may open the next one.
        options = inside + scaled(openers, ending)
        chosen, token, entropy, surprise = _draw(options, next(numbers))
        if chosen >= len(inside):
            rule = rules[chosen - len(inside)]
            unit = UNITS[rule](language, len(row), token)
            inside, ending = _continue(unit, None)
        else:
            inside, ending = _continue(unit, token)
        row.append(Token(token, RULES.index(rule), options[chosen].source, entropy, surprise))
    return row


def _continue(unit: Unit, token: int | None) -> tuple[list[Option], float]:
    """The options of a unit after the token, and the probability that the unit ends instead.

    ``None`` for the token begins the unit: Python begins generators so.
    """
    try:
        options = unit.send(token)  # type: ignore[arg-type]
    except StopIteration:
        return [], 1.0
    inside = [option for option in options if option.ids]
    return inside, sum(option.chance for option in options if not option.ids)


def _draw(options: Sequence[Option], number: float) -> tuple[int, int, float, float]:
    """One token by a uniform number.

    Returns:
        which option, which id, the entropy of the options, and −log probability of the id.
    """
    entropy = 0.0
    chosen = -1
    share = 0.0
    remaining = number
    for k, option in enumerate(options):
        chance = option.chance
        entropy += chance * math.log(len(option.ids) / chance)
        # Chances may sum to a little less than 1, so the last option takes what is left.
        if chosen < 0 and (remaining < chance or k == len(options) - 1):
            chosen = k
            share = remaining / chance
        remaining -= chance
    chance, ids, _ = options[chosen]
    place = min(int(share * len(ids)), len(ids) - 1)
    token = ids[place]
    return chosen, token, entropy, math.log(len(ids) / chance)


def uniform(stream: torch.Generator) -> Iterator[float]:
    """Uniform random numbers without end."""
    while True:
        yield from torch.rand(1 << 16, generator=stream, dtype=torch.float64).tolist()
