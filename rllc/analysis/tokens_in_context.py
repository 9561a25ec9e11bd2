"""Tokens in context: where a head matters most, what it looks at there, and what kind of prediction that is.

A token in context is a token that is predicted, with all that comes before it in its row. For each head those are taken
whose loss rises most when the head is ablated, and each is given a kind by what the head attends to: see
:func:`tokens_in_context`. Distinct multigrams that come back are what a head has memorised.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.ablation import Ablation, ablate
from rllc.analysis.rows import check_model, check_rows
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

KINDS = ("induction", "dyck", "n-gram", "skip n-gram", "other")
"""What a token in context can be, in the order in which it is asked."""
PAIRS = ("()", "[]", "{}", "<>")

_POSITIONS = 4096
"""Tokens of a pass."""
_COLORS = {
    "induction": "#009E73",
    "dyck": "#CC79A7",
    "n-gram": "#D55E00",
    "skip n-gram": "#E69F00",
    "other": "0.8",
}
"""Kinds have the colour of the role that they make a head have, in :mod:`rllc.analysis.roles`."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as mattering, as attending and as coming back. The paper does not give its own; these are ours.

    Args:
        effect: nats by which a token's loss must rise when the head is ablated; 0.5: its probability falls to 61 %.
        most: tokens of a head, those with the largest effect. Counts of multigrams grow with it and with the
            data, so compare heads on the same rows.
        attention: weight from which a token counts as attended, so there are at most four.
        rows: different rows in which a multigram must come, so that what one row repeats is not taken for memory.
        fixed: a multigram is an n-gram if one filling of what lies between its tokens makes more than this share of
            its occurrences; else it is a skip n-gram.

    Raises:
        InputError: a number is out of its range.
    """

    effect: float = 0.5
    most: int = 1000
    attention: float = 0.25
    rows: int = 2
    fixed: float = 0.5

    def __post_init__(self) -> None:
        ranges = {"effect": (0, float("inf")), "attention": (0.01, 1), "fixed": (0, 1)}
        for name, (lowest, highest) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not lowest <= value <= highest:
                raise InputError(
                    f"Thresholds: `{name}` must be from {lowest} to {highest}, got {value!r}."
                )
        for name in ("most", "rows"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"Thresholds: `{name}` must be an integer of at least 1, got {value!r}."
                )

    def __str__(self) -> str:
        return (
            f"the {self.most} tokens at most whose loss rises most and by {self.effect:g} nats or more; attended from "
            f"{self.attention:g}; multigrams in {self.rows} rows or more"
        )


class Multigram(NamedTuple):
    """An n-gram or skip n-gram that comes back: tokens that a head looks at, and what it predicts from them."""

    head: str
    kind: str
    """``"n-gram"`` or ``"skip n-gram"``."""
    tokens: tuple[int, ...]
    """Ids, in their order; the last is the one before the target. Between those of a skip n-gram others may stand."""
    target: int
    occurrences: int
    """Among the head's tokens in context."""
    rows: int
    """Different rows that these are in."""
    effect: float
    """Mean rise of the target's loss, nats."""


@dataclass(frozen=True, eq=False)
class TokensInContext:
    """Where each head matters most. ``result["1:6"]`` is the part of one head; tokens are sorted by head and effect.

    Args:
        heads: names of the heads.
        head: ``[token]``: index into ``heads``.
        row: ``[token]``: which row it is in.
        position: ``[token]``: its position; the head predicts it from the position before.
        effect: ``[token]``, nats: rise of its loss when the head is ablated.
        kind: ``[token]``: one of :data:`KINDS`.
        attended: ``[token, key]``: positions that the head looks at from the position before, most attended first; −1
            behind the last.
        attention: ``[token, key]``: how much, 0 … 1.
        multigram: ``[token]``: index into ``multigrams``; −1 for other kinds.
        multigrams: those of all heads, of each the commonest first; :meth:`multigrams_to_dataframe` is a table of them.
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
        name = head_name(head)
        if name not in self.heads:
            raise InputError(
                f"tokens_in_context[{head!r}]: no such head; {nearest(head, self.heads)}"
            )
        mine = np.flatnonzero(self.head == self.heads.index(name))
        kept = [i for i, multigram in enumerate(self.multigrams) if multigram.head == name]
        moved = {old: new for new, old in enumerate(kept)} | {-1: -1}
        columns = ("row", "position", "effect", "kind", "attended", "attention")
        return replace(
            self,
            heads=(name,),
            head=np.zeros(len(mine), dtype=np.int64),
            multigram=np.array([moved[i] for i in self.multigram[mine]], dtype=np.int64),
            multigrams=tuple(self.multigrams[i] for i in kept),
            **{column: getattr(self, column)[mine] for column in columns},
        )

    def count(self, kind: str | None = None) -> np.ndarray:
        """Tokens of a kind that each head has, ``[head]``; ``None``: of all kinds.

        Raises:
            InputError: no such kind.
        """
        if kind is not None and kind not in KINDS:
            raise InputError(f"tokens_in_context: no kind {kind!r}; {nearest(kind, KINDS)}")
        chosen = slice(None) if kind is None else self.kind == kind
        return np.bincount(self.head[chosen], minlength=len(self.heads))

    @property
    def memorised(self) -> np.ndarray:
        """How many different multigrams each head has, ``[head]``: the paper's number of memorised multigrams."""
        names = Counter(multigram.head for multigram in self.multigrams)
        return np.array([names[head] for head in self.heads], dtype=np.int64)

    def decode(self, ids: int | Iterable[int]) -> str:
        """The text of one or several ids; without a tokenizer, the ids."""
        if not isinstance(ids, Iterable):
            ids = [ids]
        if not self.texts:
            return " ".join(str(int(i)) for i in ids)
        return "".join(self.texts.get(int(i), f"⟨{int(i)}⟩") for i in ids)

    def context(self, token: int, before: int = 8) -> str:
        """The text before a token in context, ``before`` tokens of it."""
        row, position = self.row[token], self.position[token]
        return self.decode(self.rows[row, max(0, position - before) : position])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token: ``head, row, position, effect, kind, context, token, attended, attended_position, attention``.

        The last three are about the token that is attended most. Texts are ids without a tokenizer.
        """
        import pandas as pd

        first = self.attended[:, 0]
        return pd.DataFrame(
            {
                "head": np.array(self.heads, dtype=object)[self.head],
                "row": self.row,
                "position": self.position,
                "effect": self.effect,
                "kind": self.kind,
                "context": [self.context(i) for i in range(len(self))],
                "token": [self.decode(i) for i in self.rows[self.row, self.position]],
                "attended": [self.decode(i) for i in self.rows[self.row, first]],
                "attended_position": first,
                "attention": self.attention[:, 0],
            }
        )

    def multigrams_to_dataframe(self) -> pd.DataFrame:
        """One row a multigram: the fields of :class:`Multigram`, with texts for ``tokens`` and ``target``.

        Those of a skip n-gram have " … " between them, even where the gap may be empty.
        """
        import pandas as pd

        def spell(one: Multigram) -> str:
            return (
                " … ".join(map(self.decode, one.tokens))
                if one.kind == "skip n-gram"
                else self.decode(one.tokens)
            )

        rows = [
            one._replace(tokens=spell(one), target=self.decode(one.target))
            for one in self.multigrams
        ]  # type: ignore[arg-type]
        return pd.DataFrame(rows, columns=list(Multigram._fields))

    def __repr__(self) -> str:
        counts = [self.count(), *(self.count(kind) for kind in KINDS), self.memorised]
        rows = [(head, *(str(count[i]) for count in counts)) for i, head in enumerate(self.heads)]
        title = f"Tokens in context on {self.data}: for each head, {self.thresholds}"
        whole = table(title, [("head", "tokens", *KINDS, "multigrams"), *rows])
        if len(self.heads) > 1 or not len(self):
            return whole
        lines = [("effect", "kind", "attends to", "token", "after")]
        for i in range(min(10, len(self))):
            shown = (self.rows[self.row[i], p] for p in (self.attended[i, 0], self.position[i]))
            texts = (*map(self.decode, shown), self.context(i))
            lines.append(
                (f"{self.effect[i]:.2f}", self.kind[i], *(repr(text)[1:-1] for text in texts))
            )
        return table(whole + "\n", lines, left=(1, 2, 3, 4))


def tokens_in_context(
    model: nn.Module,
    tokens: Tokens | Tensor,
    *,
    ablation: Ablation | None = None,
    brackets: Mapping[int, int | Collection[int]] | None = None,
    thresholds: Thresholds | None = None,
    rest: Collection[int] | None = None,
    tokenizer: Any = None,
) -> TokensInContext:
    """For each head, the tokens whose prediction it helps most, each with what the head attends to and its kind.

    With t the row, k the position before the token t_{k+1}, and "attended" from k with at least
    ``thresholds.attention``, the kind is the first of these that holds:

    - induction: a j < k is attended with t_j = t_{k+1} and t_{j−1} = t_k;
    - Dyck: t_{k+1} closes the bracket on top of the stack, which is attended (:func:`innermost` is the stack);
    - multigram: the attended tokens together with t_k predict t_{k+1} in at least ``thresholds.rows`` rows in which the
      head matters; or, where these tokens do not come back together, the most attended one with t_k does. It is an
      *n-gram* if what lies between its tokens is mostly the same, so that the suffix from the first of them on
      comes back; else a *skip n-gram*;
    - other.

    >>> tokens_in_context(model, tokens)["1:6"]                                    # doctest: +SKIP

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows to search; memorised multigrams can only be found where they occur, in two rows or more.
        ablation: of single heads, on the same rows, to be used again; ``None`` mean-ablates every head.
        brackets: id of an opening bracket to the id or ids that close it; :func:`brackets` makes it from a tokenizer, and
            ``Language.brackets`` is one. ``None``: no token is Dyck.
        thresholds: see :class:`Thresholds`.
        rest: ids that heads rest on when there is nothing to look at, never part of a multigram; ``None``: the id that
            all rows begin with, if they do.
        tokenizer: with ``decode``, for texts instead of ids in tables and pages.

    Raises:
        InputError: the model, the rows, the ablation or the brackets are not what they must be.

    Source: arXiv 2410.02984, appendix ("tokens in context"); the thresholds are ours.
    """
    doing = "tokens_in_context"
    model, thresholds = check_model(model, doing), thresholds or Thresholds()
    rows, name = check_rows(model, tokens, doing)
    pairs = _closers(brackets or {}, doing)
    ablation = ablate(model, tokens) if ablation is None else ablation
    effects = _check_ablation(ablation, model, rows, doing)
    head, row, query = _most_affected(effects, thresholds)
    ids = rows.cpu().numpy().astype(np.int32)
    places = np.array([[int(n) for n in h.split(":")] for h in ablation.names])[head]
    keys = max(
        5, 1 + int(1 / thresholds.attention)
    )  # so that every attended position is among them
    attended, attention = _strongest(model, rows, places, row, query, keys)
    if rest is None:
        start = common_start(rows)
        rest = () if start is None else (start,)
    seen = _Seen(
        ids,
        head,
        row,
        query,
        [a[w >= thresholds.attention] for a, w in zip(attended, attention, strict=True)],
    )
    effect = effects[head, row, query]
    simple = np.select([_is_induction(seen), _is_dyck(seen, pairs)], KINDS[:2], KINDS[-1])
    multigrams, which = _memory(
        seen,
        ablation.names,
        effect,
        np.flatnonzero(simple == KINDS[-1]),
        frozenset(rest),
        thresholds,
    )
    kind = [
        own if m < 0 else multigrams[m].kind for own, m in zip(simple.tolist(), which, strict=True)
    ]
    return TokensInContext(
        heads=ablation.names,
        head=head,
        row=row,
        position=query + 1,
        effect=effect,
        kind=np.array(kind, dtype=object),
        attended=attended,
        attention=attention,
        multigram=which,
        multigrams=multigrams,
        rows=ids,
        ablation=ablation,
        thresholds=thresholds,
        texts={}
        if tokenizer is None
        else {int(i): tokenizer.decode([int(i)]) for i in np.unique(ids)},
        data=name,
    )


def common_start(rows: Tensor) -> int | None:
    """The id that all of several rows begin with, such as BOS; ``None``: there is none.

    >>> common_start(torch.tensor([[7, 1], [7, 2]]))
    7
    """
    return int(rows[0, 0]) if len(rows) > 1 and bool((rows[:, 0] == rows[0, 0]).all()) else None


def brackets(tokenizer: Any, pairs: Sequence[str] = PAIRS) -> dict[int, frozenset[int]]:
    """Ids of opening brackets to those of the brackets that close them.

    An id is a bracket if its text has one bracket, whatever else: ``" ("``, ``"print("`` and ``");"`` are. Texts with
    several, such as ``"()"``, are not, which is right where they are balanced.

    >>> class Letters:
    ...     __len__, decode = lambda self: 128, lambda self, ids: "".join(map(chr, ids))
    >>> brackets(Letters())[ord("(")] == {ord(")")}
    True

    Args:
        tokenizer: with ``decode`` and a length.
        pairs: two characters each. ``<`` as "less than" hides an outer bracket until the next one that closes; leave
            ``"<>"`` out for texts without tags.

    Raises:
        InputError: a pair is not two characters, or the tokenizer has no bracket.
    """
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(
                f"brackets: `pairs` are strings of two characters, such as '()', got {pair!r}."
            )
    signs = set("".join(pairs))
    ids: dict[str, list[int]] = defaultdict(list)
    for i in range(len(tokenizer)):
        found = [sign for sign in tokenizer.decode([i]) if sign in signs]
        if len(found) == 1:
            ids[found[0]].append(i)
    known = {
        opener: frozenset(ids[pair[1]]) for pair in pairs for opener in ids[pair[0]] if ids[pair[1]]
    }
    if not known:
        raise InputError(
            f"brackets: no id of the tokenizer opens one of {', '.join(map(repr, pairs))}; pass `pairs`."
        )
    return known


def innermost(row: Iterable[int], pairs: Mapping[int, Collection[int]]) -> np.ndarray:
    """For each position, that of the innermost bracket still open after it ``[pos]``; −1: none is.

    A token that closes an open bracket closes all that were opened after it too, so that a bracket that is never closed
    is given up; a token that closes none opens one, if it can, or is skipped: rows begin in the middle of texts.

    >>> innermost([1, 2, 9, 1, 9, 9], {1: {9}})
    array([ 0,  0, -1,  3, -1, -1])
    """
    stack: list[tuple[int, Collection[int]]] = []
    found = []
    closing = {i for closers in pairs.values() for i in closers}
    for position, token in enumerate(int(i) for i in row):
        closed = (
            [n for n, (_, closers) in enumerate(stack) if token in closers]
            if token in closing
            else []
        )
        if closed:
            del stack[closed[-1] :]
        elif token in pairs:
            stack.append((position, pairs[token]))
        found.append(stack[-1][0] if stack else -1)
    return np.array(found)


@torch.no_grad()
def attention_from(
    model: AttentionOnly, rows: Tensor, places: np.ndarray, row: np.ndarray, query: np.ndarray
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Attention from chosen positions only, some of them at a time: which of them, and their ``[query, key]``.

    One forward pass of the rows that occur; of the attention, only these queries.

    Args:
        rows: ``[row, pos]``, int64.
        places: ``[query, 2]``: layer and head.
        row: ``[query]``.
        query: ``[query]``: positions to look from.
    """
    used = np.unique(row)
    size = max(1, _POSITIONS // rows.shape[1])
    for some in (used[i : i + size] for i in range(0, len(used), size)):
        residual = model.activations(rows[torch.from_numpy(some).to(rows.device)]).residual
        here = np.flatnonzero((row >= some[0]) & (row <= some[-1]))
        for layer in np.unique(places[here, 0]):
            q, k = (model.project(int(layer), letter, residual[layer])[0] for letter in "QK")
            mine = here[places[here, 0] == layer]
            batch, heads = np.searchsorted(some, row[mine]), places[mine, 1]
            for b, h in np.unique(np.stack([batch, heads], 1), axis=0):
                which = mine[(batch == b) & (heads == h)]
                at = torch.from_numpy(query[which]).to(rows.device)
                A = q[b, h, at] @ k[b, h].mT / model.config.d_head**0.5
                future = torch.arange(A.shape[1], device=A.device) > at[:, None]
                yield which, A.masked_fill(future, float("-inf")).softmax(-1)


def plot_kinds(result: TokensInContext, ax: Axes | None = None) -> Axes:
    """How many tokens in context of each kind a head has, stacked; above, how many multigrams it has memorised.

    >>> ax = plot_kinds(tokens_in_context(model, tokens))                          # doctest: +SKIP
    """
    ax = new_axes(ax, width=max(4.0, 2.2 + 0.4 * len(result.heads)))
    x, below = np.arange(len(result.heads)), np.zeros(len(result.heads))
    for kind in KINDS:
        count = result.count(kind)
        ax.bar(x, count, bottom=below, width=0.75, color=_COLORS[kind], label=kind)
        below += count
    for place, height, count in zip(x, below, result.memorised, strict=True):
        ax.annotate(
            str(count),
            (place, height),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_xticks(x, result.heads, rotation=0 if len(x) <= 16 else 90)
    ax.set_xlabel("head (above: memorised multigrams)")
    ax.set_ylabel(f"tokens in context on {result.data}")
    ax.margins(y=0.1)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


class _Seen(NamedTuple):
    """Tokens in context before they have a kind."""

    rows: np.ndarray
    head: np.ndarray
    row: np.ndarray
    query: np.ndarray
    attended: list[np.ndarray]
    """For each, the positions that are attended, most attended first."""


def _closers(given: Mapping[int, int | Collection[int]], doing: str) -> dict[int, frozenset[int]]:
    found = {}
    for opener, closers in given.items():
        ids = closers if isinstance(closers, Collection) else [closers]
        if isinstance(ids, str) or not all(isinstance(i, int | np.integer) for i in (opener, *ids)):
            raise InputError(
                f"{doing}: `brackets` must map the id of an opening bracket to the id or ids that close it, got "
                f"{opener!r}: {closers!r}; brackets(tokenizer) makes such a mapping."
            )
        found[int(opener)] = frozenset(int(i) for i in ids)
    return found


def _check_ablation(
    ablation: Ablation, model: AttentionOnly, rows: Tensor, doing: str
) -> np.ndarray:
    """Effects ``[head, row, pos − 1]`` of an ablation of single heads of this model on these rows."""
    c = model.config
    known = {f"{layer}:{head}" for layer, head in np.ndindex(c.n_layers, c.n_heads)}
    strange = [name for name in ablation.names if name not in known]
    if strange:
        raise InputError(
            f"{doing}: the ablation must be of single heads of the model, got {strange[0]!r}; make one with ablate(model, "
            f"tokens)."
        )
    expected = (len(rows), rows.shape[1] - 1)
    if ablation.tokens.shape[1:] != expected:
        raise InputError(
            f"{doing}: the ablation must be of the same rows, [row, pos − 1] = {expected}, got {ablation.tokens.shape[1:]}."
        )
    if not np.isfinite(ablation.tokens).all():
        raise InputError(
            f"{doing}: the ablation's losses are not all finite; the model's weights are broken."
        )
    return ablation.tokens


def _most_affected(
    effects: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Head, row and query of the most affected tokens, by head, the largest effect first."""
    found = []
    for head, effect in enumerate(effects):
        enough = np.flatnonzero(effect.ravel() >= thresholds.effect)
        order = np.argsort(-effect.ravel()[enough], kind="stable")[: thresholds.most]
        found.append(
            np.stack([np.full(len(order), head), *np.divmod(enough[order], effect.shape[1])])
        )
    head, row, query = np.concatenate(found, 1).astype(np.int64)
    return head, row, query


def _strongest(
    model: AttentionOnly,
    rows: Tensor,
    places: np.ndarray,
    row: np.ndarray,
    query: np.ndarray,
    keys: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``keys`` most attended positions of each query, and their weights; −1 and 0 where there are fewer."""
    attended, attention = np.full((len(row), keys), -1), np.zeros((len(row), keys), np.float32)
    for which, A in attention_from(model, rows, places, row, query):
        weight, position = A.sort(descending=True, stable=True)
        weight, position = weight[:, :keys].cpu().numpy(), position[:, :keys].cpu().numpy()
        attention[which, : weight.shape[1]] = weight
        attended[which, : weight.shape[1]] = np.where(weight > 0, position, -1)
    return attended, attention


def _is_induction(seen: _Seen) -> np.ndarray:
    found = np.zeros(len(seen.row), dtype=bool)
    for i, (r, k, attended) in enumerate(zip(seen.row, seen.query, seen.attended, strict=True)):
        t = seen.rows[r]
        found[i] = any(0 < j < k and t[j] == t[k + 1] and t[j - 1] == t[k] for j in attended)
    return found


def _is_dyck(seen: _Seen, pairs: Mapping[int, frozenset[int]]) -> np.ndarray:
    found = np.zeros(len(seen.row), dtype=bool)
    top = {r: innermost(seen.rows[r], pairs) for r in np.unique(seen.row)} if pairs else {}
    for i, (r, k, attended) in enumerate(zip(seen.row, seen.query, seen.attended, strict=True)):
        opener = top[r][k] if pairs else -1
        found[i] = (
            opener >= 0
            and opener in attended
            and seen.rows[r, k + 1] in pairs[int(seen.rows[r, opener])]
        )
    return found


def _memory(
    seen: _Seen,
    heads: Sequence[str],
    effect: np.ndarray,
    candidates: np.ndarray,
    rest: frozenset[int],
    thresholds: Thresholds,
) -> tuple[tuple[Multigram, ...], np.ndarray]:
    """The multigrams of every head among the candidates, and for each token which it is, −1 for none."""
    multigrams, which = [], np.full(len(seen.head), -1)
    for number, head in enumerate(heads):
        found = _multigrams(seen, candidates[seen.head[candidates] == number], rest, thresholds)
        for (kind, ids, target), members in sorted(found.items(), key=lambda item: -len(item[1])):
            which[members] = len(multigrams)
            rows, mean = len(set(seen.row[members])), float(effect[members].mean())
            multigrams.append(Multigram(head, kind, ids, target, len(members), rows, mean))
    return tuple(multigrams), which


class _Read(NamedTuple):
    """What a head read at one token in context, as a candidate for a multigram."""

    row: int
    context: tuple[int, ...]
    """Ids from the first of the read positions to the one before the target: the contiguous suffix."""
    tokens: tuple[int, ...]
    """Ids at the read positions alone."""
    target: int

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        return self.tokens, self.target


def _read(seen: _Seen, token: int, positions: Iterable[int]) -> _Read:
    """What is read at some positions and at the one before the target."""
    row, query = seen.row[token], seen.query[token]
    t, places = seen.rows[row], sorted({*positions, query})
    return _Read(
        row, tuple(t[places[0] : query + 1].tolist()), tuple(t[places].tolist()), int(t[query + 1])
    )


def _multigrams(
    seen: _Seen, mine: Iterable[int], rest: frozenset[int], thresholds: Thresholds
) -> dict[tuple[str, tuple[int, ...], int], list[int]]:
    """The multigrams (kind, tokens, target) among tokens of one head, each with the tokens that are it."""
    looked = {
        i: [j for j in seen.attended[i] if int(seen.rows[seen.row[i], j]) not in rest] for i in mine
    }
    wide = {i: _read(seen, i, positions) for i, positions in looked.items() if positions}
    narrow = {i: _read(seen, i, looked[i][:1]) for i in wide}
    found: dict[tuple[str, tuple[int, ...], int], list[int]] = defaultdict(list)
    for members in _recurring(wide, thresholds.rows):
        found[_name([wide[i] for i in members], thresholds.fixed)] += members
    # A token whose weaker attention fell elsewhere belongs to the commonest multigram that has its strongest.
    home = {
        narrow[i].key: name
        for name in sorted(found, key=lambda name: len(found[name]))
        for i in found[name]
    }
    left = narrow.keys() - {i for members in found.values() for i in members}
    for i in sorted(left):
        if narrow[i].key in home:
            found[home[narrow[i].key]].append(i)
            left.remove(i)
    for members in _recurring({i: narrow[i] for i in sorted(left)}, thresholds.rows):
        found[_name([narrow[i] for i in members], thresholds.fixed)] += members
    return found


def _recurring(read: Mapping[int, _Read], rows: int) -> list[list[int]]:
    """Tokens with the same tokens read and the same target, where these are in at least ``rows`` rows."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, one in read.items():
        groups[one.key].append(i)
    return [members for members in groups.values() if len({read[i].row for i in members}) >= rows]


def _name(reads: Sequence[_Read], fixed: float) -> tuple[str, tuple[int, ...], int]:
    """Kind, tokens and target of a multigram from its occurrences."""
    context, times = Counter(one.context for one in reads).most_common(1)[0]
    if times > fixed * len(reads) or times == len(reads):
        return "n-gram", context, reads[0].target
    return "skip n-gram", reads[0].tokens, reads[0].target
