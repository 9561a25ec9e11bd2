"""HTML pages, one a head: the tokens in context that it matters for, and where it looks.

A page loads nothing: its style and script are inside, and its content security policy forbids
everything else. All text from the data is escaped, and the script reads numbers only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rllc.analysis.contexts import TokensInContext
from rllc.analysis.heads import numbers_of
from rllc.analysis.kinds import KINDS
from rllc.analysis.multigrams import Multigram
from rllc.analysis.page_templates import INDEX, PAGE, SCRIPT, STYLE
from rllc.analysis.patterns import attention_from
from rllc.analysis.rows import check_language_model
from rllc.errors import InputError
from rllc.storage.files import write_atomically, writing

_DRAWN_ATTENTION = 0.01
"""Attention below it is not drawn."""
_NAMED_ATTENTION = 0.05
"""Attention below it is not named in the heading of a token."""
_NAMED = 4
"""Attended tokens that the heading of a token names, at most."""
_FULL_COLOR = 2.0
"""Change of the loss, in nats, from which on a token has its full colour."""
_SURROUNDINGS = 3
"""Tokens shown on each side of an attended one."""
_LISTED_MULTIGRAMS = 40
_VISIBLE_BLANKS = str.maketrans(
    {
        "\n": "⏎",
        "\t": "⇥",
        "\r": "␍",
    }
)


def write_pages(
    folder: str | os.PathLike[str],
    model: nn.Module,
    result: TokensInContext,
    *,
    num_tokens: int = 60,
) -> dict[str, Path]:
    """Write a page for each head, ``head-1-6.html`` and so on; for several also an ``index.html``.

    The index has a row a head: a link to its page, its tokens in context by kind, its memorised
    multigrams, and what its ablation costs.

    >>> contexts = tokens_in_context(model, tokens, tokenizer=tokenizer)
    >>> paths = write_pages("heads", model, contexts)

    Args:
        folder: is made if there is none.
        model: as for :func:`page`, like the other arguments.
        result: all its heads get a page.
        num_tokens: of each head.

    Returns:
        the path of each head's page.

    Raises:
        InputError: as :func:`page`.
    """
    paths = {}
    for head in result.heads:
        text = page(model, result, head, num_tokens=num_tokens)
        paths[head] = _write(Path(folder) / _file_name(head), text)
    if len(paths) > 1:  # the index comes last, so that its links lead somewhere
        _write(Path(folder) / "index.html", _index(result))
    return paths


def _file_name(head: str) -> str:
    return "head-" + head.replace(":", "-") + ".html"


def _write(path: Path, text: str) -> Path:
    with writing(path):
        return write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))


def page(
    model: nn.Module,
    result: TokensInContext,
    head: str,
    *,
    num_tokens: int = 60,
    context: int = 24,
) -> str:
    """The page of one head, as HTML: counts, memorised multigrams, and tokens in context.

    The colour of a token is what ablating the head does to its loss: orange where the head helps,
    blue where it harms. The pointer on a token shows where the head looks, from the position
    before, to predict it.

    Args:
        model: the model that the result is of.
        result: from :func:`rllc.analysis.tokens_in_context.tokens_in_context`; with a tokenizer,
            the page shows texts.
        head: ``"1:6"``.
        num_tokens: the most affected tokens of the head; 60 make a page of about 250 kB.
        context: tokens shown before each. Attended tokens farther back are shown with their
            surroundings.

    Raises:
        InputError: the model is of another kind, there is no such head, or a number is below 1.
    """
    model = check_language_model(model, "page")
    of_head = result[head]
    _check_count("num_tokens", num_tokens)
    _check_count("context", context)
    shown = range(min(num_tokens, len(of_head)))
    positions = [_shown_positions(of_head, i, context) for i in shown]
    looks = _looks(model, of_head, positions)
    articles = [_article(of_head, i, positions[i], looks[i]) for i in shown]
    if not articles:
        articles = ["<p>No token's loss rises enough when this head is ablated.</p>"]
    return PAGE.format(
        title=f"Head {of_head.heads[0]} on {escape(of_head.data)}",
        style=STYLE,
        script=SCRIPT,
        summary=_summary(of_head),
        counts=_counts(of_head, len(shown)),
        multigrams=_multigram_table(of_head),
        ids="" if of_head.texts else ' class="ids"',
        articles="\n".join(articles),
    )


def _check_count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"page: `{name}` must be an integer of at least 1, got {value!r}.")


def _index(result: TokensInContext) -> str:
    """The page of links to the heads' pages."""
    counts = [result.count(), *(result.count(kind) for kind in KINDS), result.memorised]
    lines = []
    for i, head in enumerate(result.heads):
        effect = result.ablation[head]
        link = f'<a href="{escape(_file_name(head))}">{escape(head)}</a>'
        cells = [str(count[i]) for count in counts]
        cells += [f"{effect.value:.4f}", f"{effect.standard_error:.4f}"]
        lines.append(f"<tr><th>{link}</th>{_cells(cells)}</tr>")
    names = ("head", "tokens", *KINDS, "memorised multigrams", "Δloss (nats per token)", "± se")
    method = escape(_method(result))
    thresholds = escape(str(result.thresholds))
    return INDEX.format(
        title=f"{len(result.heads)} heads on {escape(result.data)}",
        style=STYLE,
        summary=f"Ablation: {method}. Below: {thresholds}.",
        header=_cells([escape(name) for name in names], "th"),
        lines="\n".join(lines),
    )


def _cells(contents: Sequence[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)


def _method(result: TokensInContext) -> str:
    return result.ablation.method.replace("_", " ")


def _shown_positions(
    of_head: TokensInContext,
    i: int,
    context: int,
) -> np.ndarray:
    """The positions to show of a row: around the token, and around what it attends to."""
    position, length = of_head.position[i], of_head.rows.shape[1]
    attends = of_head.attention[i] >= of_head.thresholds.attention
    ranges = [np.arange(position - context, position + 3)]
    for key in of_head.attended[i][attends]:
        ranges.append(np.arange(key - _SURROUNDINGS, key + _SURROUNDINGS + 1))
    positions = np.unique(np.concatenate(ranges))
    return positions[(positions >= 0) & (positions < length)]


def _looks(
    model: nn.Module,
    of_head: TokensInContext,
    positions: Sequence[np.ndarray],
) -> list[list[str]]:
    """Where the head looks to predict each shown token of each context.

    Returns:
        for each context and position ``"index:percent …"``, the index being one of the shown.
    """
    looks = [[""] * len(shown) for shown in positions]
    context_of, place_of = [], []
    for i, shown in enumerate(positions):
        # The first token of a row is not predicted.
        for place in np.flatnonzero(shown > 0):
            context_of.append(i)
            place_of.append(place)
    if not context_of:
        return looks
    queries = [positions[i][place] - 1 for i, place in zip(context_of, place_of, strict=True)]
    query = np.array(queries)
    head = np.broadcast_to(numbers_of(of_head.heads[0]), (len(query), 2))
    device = next(model.parameters()).device
    rows = torch.from_numpy(of_head.rows).long().to(device)
    for index, pattern in attention_from(
        model,
        rows,
        head,
        of_head.row[context_of],
        query,
    ):
        for n, weights in zip(index, pattern.cpu().numpy(), strict=True):
            i = context_of[n]
            looks[i][place_of[n]] = _look(weights[positions[i]])
    return looks


def _look(weights: np.ndarray) -> str:
    """The drawn weights as ``"index:percent …"``."""
    drawn = np.flatnonzero(weights >= _DRAWN_ATTENTION)
    return " ".join(f"{index}:{round(100 * weights[index])}" for index in drawn)


def _article(
    of_head: TokensInContext,
    i: int,
    positions: np.ndarray,
    looks: Sequence[str],
) -> str:
    """One token in context: a heading, and the text around it."""
    row = of_head.row[i]
    position = of_head.position[i]
    kind = of_head.kind[i]
    token = _quoted(of_head, of_head.rows[row, position])
    badge = f'<b class="kind k{KINDS.index(kind)}">{escape(kind)}</b>'
    attended: list[str] = []
    for key, weight in zip(of_head.attended[i], of_head.attention[i], strict=True):
        if weight >= _NAMED_ATTENTION and len(attended) < _NAMED:
            quoted = _quoted(of_head, of_head.rows[row, key])
            attended.append(f"{quoted} {100 * weight:.0f} %")
    details = (
        f"+{of_head.effect[i]:.2f} nats, row {row}, position {position}; "
        f"looks at {', '.join(attended)}"
    )
    heading = f"<h3>{i + 1}. {token} {badge} <span>{details}</span></h3>"
    text = _text_around(of_head, i, positions, looks)
    return f'<article data-kind="{escape(kind)}">{heading}<p>{text}</p></article>'


def _text_around(
    of_head: TokensInContext,
    i: int,
    positions: np.ndarray,
    looks: Sequence[str],
) -> str:
    """The shown tokens of a row, with dots where some are left out."""
    row = of_head.row[i]
    ablated = of_head.ablation.names.index(of_head.heads[0])
    effects = of_head.ablation.tokens[ablated, row]
    gap = "<i>…</i>"
    parts = []
    previous = -1
    for position, look in zip(positions.tolist(), looks, strict=True):
        if position != previous + 1:
            parts.append(gap)
        previous = position
        effect = float(effects[position - 1]) if position > 0 else None
        is_target = position == of_head.position[i]
        parts.append(_span(of_head, row, position, effect, look, is_target))
    if previous < of_head.rows.shape[1] - 1:
        parts.append(gap)
    return "".join(parts)


def _span(
    of_head: TokensInContext,
    row: int,
    position: int,
    effect: float | None,
    look: str,
    is_target: bool,
) -> str:
    """One token of a text. The first of a row has no effect, as it is not predicted."""
    token = int(of_head.rows[row, position])
    description = f"position {position}, id {token}"
    attributes = [f'class="{"t target" if is_target else "t"}"']
    if effect is not None:
        description += f", Δloss {effect:+.3f} nats"
        attributes += _style(effect)
    if look:
        attributes.append(f'data-look="{look}"')
    attributes.append(f'title="{escape(description)}"')
    return f"<span {' '.join(attributes)}>{_text(of_head, token)}</span>"


def _style(effect: float) -> list[str]:
    """The style attribute that colours a token, if its effect is large enough to be seen."""
    strength = round(min(abs(effect) / _FULL_COLOR, 1.0) * 0.75, 2)
    if strength < 0.02:
        return []
    color = "230,120,0" if effect > 0 else "0,114,178"
    return [f'style="background:rgba({color},{strength})"']


def _text(of_head: TokensInContext, token: int) -> str:
    """A token's text, escaped, with its line breaks visible; the style sets ids apart."""
    return visible(of_head.decode(int(token)))


def visible(text: str) -> str:
    """Return text escaped for a page, with its line breaks visible.

    >>> visible("<b>\\n")
    '&lt;b&gt;⏎'
    """
    return escape(text.translate(_VISIBLE_BLANKS)) or "∅"


def _quoted(of_head: TokensInContext, token: int) -> str:
    """A token's text for headings and tables, where runs of blanks are counted."""
    text = re.sub(" {3,}", lambda run: f"␣×{len(run[0])}", _text(of_head, token))
    return f"<q>{text}</q>"


def _summary(of_head: TokensInContext) -> str:
    effect = of_head.ablation[of_head.heads[0]]
    return (
        f"Ablated ({escape(_method(of_head))}), the head costs {effect.value:.4f} ± "
        f"{effect.standard_error:.4f} nats a token. Below: {escape(str(of_head.thresholds))}."
    )


def _counts(of_head: TokensInContext, num_shown: int) -> str:
    """A button a kind, with its number of tokens."""
    buttons = []
    for number, kind in enumerate(KINDS):
        name, count = escape(kind), int(of_head.count(kind)[0])
        attributes = f'class="kind k{number}" data-kind="{name}" aria-pressed="true"'
        buttons.append(f'<button type="button" {attributes}>{name} {count}</button>')
    total = f"<small>{len(of_head)} tokens in all, the first {num_shown} shown</small>"
    return f"{''.join(buttons)} {total}"


def _multigram_table(of_head: TokensInContext) -> str:
    """The commonest multigrams, or nothing if there are none."""
    if not of_head.multigrams:
        return ""
    order = sorted(of_head.multigrams, key=lambda m: (-m.occurrences, -m.effect))
    lines = [_multigram_line(of_head, m) for m in order[:_LISTED_MULTIGRAMS]]
    header = _cells(("tokens", "target", "kind", "times", "rows", "Δloss"), "th")
    title = f"{len(order)} memorised multigrams"
    if len(order) > _LISTED_MULTIGRAMS:
        title += f", the {_LISTED_MULTIGRAMS} commonest"
    return (
        f"<details><summary>{title}</summary><table><thead><tr>{header}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></details>"
    )


def _multigram_line(of_head: TokensInContext, multigram: Multigram) -> str:
    between = " … " if multigram.kind == "skip n-gram" else ""
    tokens = between.join(_quoted(of_head, token) for token in multigram.tokens)
    cells = (
        tokens,
        _quoted(of_head, multigram.target),
        escape(multigram.kind),
        str(multigram.occurrences),
        str(multigram.rows),
        f"{multigram.effect:.2f}",
    )
    return f"<tr>{_cells(cells)}</tr>"
