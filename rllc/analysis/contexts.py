"""The tokens in context of each head, as a result: counts, tables, texts and a figure.

:func:`rllc.analysis.tokens_in_context.tokens_in_context` makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rllc.analysis.ablation import Ablation
from rllc.analysis.heads import index_of, label_heads
from rllc.analysis.kinds import KINDS
from rllc.analysis.multigrams import Multigram
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLORS = {
    "induction": "#009E73",
    "dyck": "#CC79A7",
    "n-gram": "#D55E00",
    "skip n-gram": "#E69F00",
    "other": "0.8",
}
"""Kinds have the colour of the role that they give a head in :mod:`rllc.analysis.roles`."""
_TOKENS_BEFORE = 8
"""Tokens that tables show in front of a token in context."""
_PRINTED = 10
"""Tokens that the printed table of one head shows."""


@dataclass(frozen=True)
class Thresholds:
    """The thresholds from which a token matters, a head attends, and a multigram recurs.

    The paper states no thresholds; these are ours.

    Args:
        effect: nats by which the loss of a token must rise when the head is ablated; 0.5 means
            that its probability falls to 61 %.
        most: tokens of a head, those with the largest effect. Counts of multigrams grow with it
            and with the data, so compare heads on the same rows.
        attention: weight from which a token counts as attended, so there are at most four.
        rows: rows in which a multigram must occur, so that what one row repeats is not taken for
            memory.
        fixed: a multigram is an n-gram if one filling of the gaps between its tokens makes more
            than this share of its occurrences; else it is a skip n-gram.

    Raises:
        InputError: a number is out of its range.
    """

    effect: float = 0.5
    most: int = 1000
    attention: float = 0.25
    rows: int = 2
    fixed: float = 0.5

    def __post_init__(self) -> None:
        self._check_range("effect", 0, float("inf"))
        self._check_range("attention", 0.01, 1)
        self._check_range("fixed", 0, 1)
        self._check_count("most")
        self._check_count("rows")

    def _check_range(
        self,
        name: str,
        lowest: float,
        highest: float,
    ) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or not lowest <= value <= highest:
            raise InputError(
                f"Thresholds: `{name}` must be from {lowest} to {highest}, got {value!r}."
            )

    def _check_count(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < 1:
            raise InputError(
                f"Thresholds: `{name}` must be an integer of at least 1, got {value!r}."
            )

    def __str__(self) -> str:
        return (
            f"the {self.most} tokens at most whose loss rises most and by {self.effect:g} nats or "
            f"more; attended from {self.attention:g}; multigrams in {self.rows} rows or more"
        )


@dataclass(frozen=True, eq=False)
class TokensInContext:
    """Where each head matters most. ``result["1:6"]`` is the part of one head.

    Tokens are sorted by head and, for each head, by effect.

    Args:
        heads: names of the heads.
        head: ``[token]``: index into ``heads``.
        row: ``[token]``: the row that it is in.
        position: ``[token]``: its position; the head predicts it from the position before.
        effect: ``[token]``, nats: rise of its loss when the head is ablated.
        kind: ``[token]``: one of :data:`KINDS`.
        attended: ``[token, key]``: the positions that the head looks at from the position before,
            most attended first; −1 where there are fewer.
        attention: ``[token, key]``: how much, 0 … 1.
        multigram: ``[token]``: index into ``multigrams``; −1 for other kinds.
        multigrams: those of all heads, for each head the commonest first.
        chance: ``[head, kind]``, for all kinds but the last: the share of a head's tokens that are
            of this kind by chance; see :meth:`beyond_chance`.
        memorised_by_chance: ``[head]``: the same for the number of multigrams.
        rows: ``[row, pos]``: the ids.
        ablation: the effects on all tokens.
        thresholds: what it was made with.
        texts: id to text, when there was a tokenizer.
        data: name of the rows.
    """

    heads: tuple[str, ...]
    head: np.ndarray
    row: np.ndarray
    position: np.ndarray
    effect: np.ndarray
    kind: np.ndarray
    attended: np.ndarray
    attention: np.ndarray
    multigram: np.ndarray
    multigrams: tuple[Multigram, ...]
    chance: np.ndarray
    memorised_by_chance: np.ndarray
    rows: np.ndarray
    ablation: Ablation
    thresholds: Thresholds
    texts: Mapping[int, str]
    data: str

    def __len__(self) -> int:
        return len(self.head)

    def __getitem__(self, head: str) -> TokensInContext:
        """The part of one head.

        Raises:
            InputError: no such head.
        """
        index = index_of(head, self.heads, "tokens_in_context")
        name = self.heads[index]
        tokens = np.flatnonzero(self.head == index)
        kept = [i for i, multigram in enumerate(self.multigrams) if multigram.head == name]
        new_index = np.full(len(self.multigrams) + 1, -1)  # the last entry is for −1
        new_index[kept] = np.arange(len(kept))
        return replace(
            self,
            heads=(name,),
            head=np.zeros(len(tokens), dtype=np.int64),
            row=self.row[tokens],
            position=self.position[tokens],
            effect=self.effect[tokens],
            kind=self.kind[tokens],
            attended=self.attended[tokens],
            attention=self.attention[tokens],
            multigram=new_index[self.multigram[tokens]],
            multigrams=tuple(self.multigrams[i] for i in kept),
            chance=self.chance[[index]],
            memorised_by_chance=self.memorised_by_chance[[index]],
        )

    def count(self, kind: str | None = None) -> np.ndarray:
        """How many tokens of a kind each head has, ``[head]``; ``None``: of all kinds.

        Raises:
            InputError: no such kind.
        """
        if kind is None:
            return np.bincount(self.head, minlength=len(self.heads))
        if kind not in KINDS:
            raise InputError(f"tokens_in_context: no kind {kind!r}; {nearest(kind, KINDS)}")
        return np.bincount(self.head[self.kind == kind], minlength=len(self.heads))

    def beyond_chance(self, *kinds: str) -> np.ndarray:
        """The share of each head's tokens that are of some kinds, beyond chance, ``[head]``.

        With s the share and c that by chance, it is (s − c)/(1 − c): 1 if all tokens are of these
        kinds; 0 in the mean for a head whose attention has nothing to do with what comes next, and
        for a head without tokens. c is the share when the targets are dealt at random among the
        head's tokens, while what it attends to stays.

        Args:
            kinds: some of :data:`KINDS`, but not ``"other"``.

        Raises:
            InputError: no such kind.

        Reference: Cohen 1960, "A Coefficient of Agreement for Nominal Scales", for the correction.
        """
        share = np.zeros(len(self.heads))
        chance = np.zeros(len(self.heads))
        for kind in kinds:
            if kind not in KINDS[:-1]:
                raise InputError(
                    f"tokens_in_context.beyond_chance: no kind {kind!r} that explains tokens; "
                    f"{nearest(kind, KINDS[:-1])}"
                )
            share += self.count(kind) / np.maximum(self.count(), 1)
            chance += self.chance[:, KINDS.index(kind)]
        room = 1 - chance
        return np.divide(share - chance, room, out=np.zeros_like(share), where=room > 1e-9)

    @property
    def memorised(self) -> np.ndarray:
        """How many multigrams each head has memorised, ``[head]``: its distinct recurring ones."""
        counts = Counter(multigram.head for multigram in self.multigrams)
        return np.array([counts[head] for head in self.heads], dtype=np.int64)

    def decode(self, ids: int | Iterable[int]) -> str:
        """The text of one or several ids; without a tokenizer, the ids."""
        if not isinstance(ids, Iterable):
            ids = [ids]
        ids = [int(i) for i in ids]
        if not self.texts:
            return " ".join(str(i) for i in ids)
        return "".join(self.texts.get(i, f"⟨{i}⟩") for i in ids)

    def context(self, token: int) -> str:
        """The text of the eight tokens in front of a token in context."""
        row = self.row[token]
        position = self.position[token]
        start = max(0, position - _TOKENS_BEFORE)
        return self.decode(self.rows[row, start:position])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token in context, with the token that is attended most.

        The columns are ``head, row, position, effect, kind, context, token, attended,
        attended_position, attention``. Texts are ids without a tokenizer.
        """
        import pandas as pd

        strongest = self.attended[:, 0]
        tokens = self.rows[self.row, self.position]
        attended = self.rows[self.row, strongest]
        columns = {
            "head": np.array(self.heads, dtype=object)[self.head],
            "row": self.row,
            "position": self.position,
            "effect": self.effect,
            "kind": self.kind,
            "context": [self.context(i) for i in range(len(self))],
            "token": [self.decode(i) for i in tokens],
            "attended": [self.decode(i) for i in attended],
            "attended_position": strongest,
            "attention": self.attention[:, 0],
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return "\n".join(map(str, self._tables))

    def _repr_html_(self) -> str:
        return "\n".join(table.html() for table in self._tables)

    @property
    def _tables(self) -> list[Table]:
        title = f"Tokens in context on {self.data}: for each head, {self.thresholds}"
        counts = [self.count(), *(self.count(kind) for kind in KINDS), self.memorised]
        lines: list[tuple[str, ...]] = [("head", "tokens", *KINDS, "multigrams")]
        for i, head in enumerate(self.heads):
            lines.append((head, *(str(count[i]) for count in counts)))
        summary = Table(title, lines)
        if len(self.heads) > 1 or len(self) == 0:
            return [summary]
        lines = [("effect", "kind", "attends to", "token", "after")]
        lines += [self._line(i) for i in range(min(_PRINTED, len(self)))]
        return [summary, Table("", lines, left=(1, 2, 3, 4))]

    def _line(self, i: int) -> tuple[str, ...]:
        row = self.rows[self.row[i]]
        attended = self.decode(row[self.attended[i, 0]])
        token = self.decode(row[self.position[i]])
        # Line breaks and the like are written out, without the quotation marks of repr.
        texts = [repr(text)[1:-1] for text in (attended, token, self.context(i))]
        return (f"{self.effect[i]:.2f}", self.kind[i], *texts)


def plot_kinds(result: TokensInContext, ax: Axes | None = None) -> Axes:
    """How many tokens in context of each kind a head has, stacked, and its memorised multigrams.

    >>> ax = plot_kinds(tokens_in_context(model, tokens))
    """
    ax = new_axes(ax, width=max(4.0, 2.2 + 0.4 * len(result.heads)))
    x = np.arange(len(result.heads))
    height = np.zeros(len(result.heads))
    for kind in KINDS:
        count = result.count(kind)
        ax.bar(
            x,
            count,
            bottom=height,
            width=0.75,
            color=_COLORS[kind],
            label=kind,
        )
        height += count
    for place, count in enumerate(result.memorised):
        ax.annotate(
            str(count),
            (place, height[place]),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    label_heads(ax, result.heads)
    ax.set_xlabel("head (above: memorised multigrams)")
    ax.set_ylabel(f"tokens in context on {result.data}")
    ax.margins(y=0.1)
    ax.legend(
        frameon=False,
        fontsize="small",
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
    return ax
