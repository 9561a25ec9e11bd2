"""One self-contained HTML page a head: the tokens in context that it matters most for, and where it looks; and their index.

A page loads nothing: style and script are in it, and its content security policy forbids everything else. All text of the
data is escaped; the script reads numbers only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from rllc.analysis.rows import check_model
from rllc.analysis.tokens_in_context import KINDS, TokensInContext, attention_from
from rllc.errors import InputError
from rllc.files import write_atomically

if TYPE_CHECKING:
    from rllc.models import AttentionOnly

_SHOWN = 0.01
"""Attention below it is not drawn."""
_FULL = 2.0
"""Nats from which on a token has its full colour."""
_AROUND = 3
"""Tokens on each side of an attended one."""
_BLANKS = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})


def write_pages(
    folder: str | os.PathLike[str],
    model: nn.Module,
    result: TokensInContext,
    *,
    num_tokens: int = 60,
    context: int = 24,
) -> dict[str, Path]:
    """A page for each head, ``head-1-6.html`` and so on, in a folder; see :func:`page`. Several also get an ``index.html``.

    The index has a row a head: a link to its page, how many tokens in context it has of each kind, how many multigrams it
    has memorised, and what its ablation costs.

    >>> write_pages("heads", model, tokens_in_context(model, tokens, tokenizer=tokenizer))     # doctest: +SKIP

    Returns:
        the path of each head's page.

    Raises:
        InputError: as :func:`page`.
    """
    paths = {}
    for head in result.heads:
        paths[head] = _write(
            Path(folder) / _file(head),
            page(model, result, head, num_tokens=num_tokens, context=context),
        )
    if len(paths) > 1:  # last, so that its links lead somewhere
        _write(Path(folder) / "index.html", _index(result))
    return paths


def page(
    model: nn.Module, result: TokensInContext, head: str, *, num_tokens: int = 60, context: int = 24
) -> str:
    """The page of one head, as HTML: counts, memorised multigrams, and tokens in context in colour.

    Each token is coloured by what ablating the head does to its loss: orange where the head helps, blue where it harms. The
    pointer on a token shows where the head looked when it was to be predicted, from the position before.

    Args:
        model: the model that the result is of.
        result: from :func:`rllc.analysis.tokens_in_context.tokens_in_context`; with a tokenizer, it shows texts.
        head: ``"1:6"``.
        num_tokens: of the head, the most affected ones; 60 make a page of about 250 kB.
        context: tokens shown before each; what it looks at farther back is shown with its surroundings.

    Raises:
        InputError: the model is of another kind, there is no such head, or a number is below 1.
    """
    model, mine = check_model(model, "page"), result[head]
    for name, value in {"num_tokens": num_tokens, "context": context}.items():
        if type(value) is not int or value < 1:
            raise InputError(f"page: `{name}` must be an integer of at least 1, got {value!r}.")
    shown = range(min(num_tokens, len(mine)))
    places = [_visible(mine, i, context) for i in shown]
    looks = _looks(model, mine, places)
    articles = "\n".join(_article(mine, i, places[i], looks[i]) for i in shown)
    title = f"Head {mine.heads[0]} on {escape(mine.data)}"
    return _PAGE.format(
        title=title,
        style=_STYLE,
        script=_SCRIPT,
        summary=_summary(mine),
        counts=_counts(mine, num_tokens),
        multigrams=_multigram_table(mine),
        ids="" if mine.texts else ' class="ids"',
        articles=articles or "<p>No token's loss rises enough when this head is ablated.</p>",
    )


def _file(head: str) -> str:
    return "head-" + head.replace(":", "-") + ".html"


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _index(result: TokensInContext) -> str:
    """The page of links, as HTML."""
    counts = [result.count(), *(result.count(kind) for kind in KINDS), result.memorised]
    lines = []
    for i, head in enumerate(result.heads):
        effect = result.ablation[head]
        cells = "".join(f"<td>{count[i]}</td>" for count in counts)
        link = f'<a href="{escape(_file(head))}">{escape(head)}</a>'
        lines.append(
            f"<tr><th>{link}</th>{cells}<td>{effect.value:.4f}</td><td>{effect.standard_error:.4f}</td></tr>"
        )
    names = ("head", "tokens", *KINDS, "memorised multigrams", "Δloss (nats per token)", "± se")
    return _INDEX.format(
        title=f"{len(result.heads)} heads on {escape(result.data)}",
        style=_STYLE,
        summary=f"Ablation: {escape(result.ablation.method.replace('_', ' '))}. Below: {escape(str(result.thresholds))}.",
        header="".join(f"<th>{escape(name)}</th>" for name in names),
        lines="\n".join(lines),
    )


def _visible(mine: TokensInContext, i: int, context: int) -> np.ndarray:
    """The positions to show: those before the token, it, two after it, and what it attends to farther back."""
    position, length = mine.position[i], mine.rows.shape[1]
    looked = mine.attended[i][mine.attention[i] >= mine.thresholds.attention]
    ranges = [(position - context, position + 2), *((j - _AROUND, j + _AROUND) for j in looked)]
    return np.unique(np.concatenate([np.arange(max(0, a), min(length, b + 1)) for a, b in ranges]))


def _looks(
    model: AttentionOnly, mine: TokensInContext, places: list[np.ndarray]
) -> list[list[str]]:
    """For each shown token of each context, what its prediction attended to: ``"index:percent …"``, indices into those shown."""
    which = (
        np.concatenate([np.full(len(p), i) for i, p in enumerate(places)])
        if places
        else np.empty(0, dtype=np.int64)
    )
    position = np.concatenate(places) if places else which
    asked = np.flatnonzero(position > 0)  # the first token of a row is not predicted
    found = np.full(len(position), "", dtype=object)
    layer_head = np.array([int(part) for part in mine.heads[0].split(":")])
    rows = torch.from_numpy(mine.rows).long().to(model.embed.W_E.device)
    place = np.broadcast_to(layer_head, (len(asked), 2))
    for some, A in attention_from(model, rows, place, mine.row[which[asked]], position[asked] - 1):
        weights = A.cpu().numpy()
        for n, weight in zip(asked[some], weights, strict=True):
            here = weight[places[which[n]]]
            found[n] = " ".join(
                f"{j}:{round(100 * here[j])}" for j in np.flatnonzero(here >= _SHOWN)
            )
    return [list(found[which == i]) for i in range(len(places))]


def _article(mine: TokensInContext, i: int, places: np.ndarray, looks: list[str]) -> str:
    row, position = mine.row[i], mine.position[i]
    delta = mine.ablation.tokens[mine.ablation.names.index(mine.heads[0]), row]
    spans, last = [], -1
    for place, look in zip(places.tolist(), looks, strict=True):
        if place != last + 1:
            spans.append("<i>…</i>")
        last = place
        effect = None if place == 0 else float(delta[place - 1])
        spans.append(
            _span(mine, int(mine.rows[row, place]), place, effect, look, target=place == position)
        )
    if places[-1] < mine.rows.shape[1] - 1:
        spans.append("<i>…</i>")
    looked = [
        (j, w) for j, w in zip(mine.attended[i], mine.attention[i], strict=True) if w >= 0.05
    ][:4]
    words = ", ".join(f"{_quoted(mine, mine.rows[row, j])} {100 * w:.0f} %" for j, w in looked)
    kind = mine.kind[i]
    return (
        f'<article data-kind="{escape(kind)}"><h3>{i + 1}. {_quoted(mine, mine.rows[row, position])} '
        f'<b class="kind k{KINDS.index(kind)}">{escape(kind)}</b> <span>+{mine.effect[i]:.2f} nats, row {row}, position '
        f"{position}; looks at {words}</span></h3><p>{''.join(spans)}</p></article>"
    )


def _span(
    mine: TokensInContext, token: int, place: int, effect: float | None, look: str, *, target: bool
) -> str:
    """One token; the first of a row has no effect, as it is not predicted."""
    color = ""
    if effect is not None:
        strength = round(min(abs(effect) / _FULL, 1.0) * 0.75, 2)
        color = (
            f"background:rgba({'230,120,0' if effect > 0 else '0,114,178'},{strength})"
            if strength >= 0.02
            else ""
        )
    told = f"position {place}, id {token}" + (
        "" if effect is None else f", Δloss {effect:+.3f} nats"
    )
    return (
        f'<span class="t{" target" if target else ""}"'
        + (f' style="{color}"' if color else "")
        + (f' data-look="{look}"' if look else "")
        + f' title="{escape(told)}">{_text(mine, token)}</span>'
    )


def _text(mine: TokensInContext, token: int) -> str:
    """A token's text, escaped, with its line breaks visible; ids are set apart by the style."""
    return escape(mine.decode(int(token)).translate(_BLANKS)) or "∅"


def _quoted(mine: TokensInContext, token: int) -> str:
    """The same for headings and tables, where many blanks are counted instead of shown."""
    return "<q>" + re.sub(" {3,}", lambda run: f"␣×{len(run[0])}", _text(mine, token)) + "</q>"


def _summary(mine: TokensInContext) -> str:
    effect = mine.ablation[mine.heads[0]]
    return (
        f"Ablated ({escape(mine.ablation.method.replace('_', ' '))}), the head costs {effect.value:.4f} ± "
        f"{effect.standard_error:.4f} nats a token. Below: {escape(str(mine.thresholds))}."
    )


def _counts(mine: TokensInContext, num_tokens: int) -> str:
    counts = [(kind, int(mine.count(kind)[0])) for kind in KINDS]
    buttons = "".join(
        f'<button type="button" class="kind k{n}" data-kind="{escape(kind)}" aria-pressed="true">{escape(kind)} '
        f"{count}</button>"
        for n, (kind, count) in enumerate(counts)
    )
    return f"{buttons} <small>{len(mine)} tokens in all, the first {min(num_tokens, len(mine))} shown</small>"


def _multigram_table(mine: TokensInContext, most: int = 40) -> str:
    if not mine.multigrams:
        return ""
    order = sorted(mine.multigrams, key=lambda m: (-m.occurrences, -m.effect))[:most]
    lines = (
        f"<tr><td>{_words(mine, m.tokens, ' … ' if m.kind == 'skip n-gram' else '')}</td>"
        f"<td>{_quoted(mine, m.target)}</td><td>{escape(m.kind)}</td><td>{m.occurrences}</td><td>{m.rows}</td>"
        f"<td>{m.effect:.2f}</td></tr>"
        for m in order
    )
    header = "".join(
        f"<th>{name}</th>" for name in ("tokens", "target", "kind", "times", "rows", "Δloss")
    )
    more = f", the {most} commonest" if len(mine.multigrams) > most else ""
    return (
        f"<details><summary>{len(mine.multigrams)} memorised multigrams{more}</summary><table><thead><tr>{header}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></details>"
    )


def _words(mine: TokensInContext, ids: Iterable[int], between: str) -> str:
    return between.join(_quoted(mine, i) for i in ids)


_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:1.5rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem;margin:0}h3{font-size:.85rem;font-weight:normal;margin:0 0 .3rem;color:#555}
header p{margin:.3rem 0;color:#444}small,.legend{color:#666;font-size:.8rem}
.legend b{color:#222;font-weight:normal;padding:0 .4em;border-radius:2px}
article{border-top:1px solid #ddd;padding:.7rem 0}article p{margin:0;font:14px/1.9 ui-monospace,monospace}
article i{color:#999;font-style:normal;margin:0 .4em}
.t{white-space:pre-wrap;border-radius:2px;margin-right:1px;padding:1px 0;cursor:default}
.ids .t{margin-right:.5em;padding:1px 3px}
.target{outline:2px solid #222}.asked{outline:2px dotted #222}
q{quotes:"‘" "’";font-family:ui-monospace,monospace;white-space:pre-wrap;color:#222}
.kind{font-weight:normal;color:#fff;border:0;border-radius:3px;padding:0 .5em;font-size:.8rem}
button.kind{margin:0 .3em .2em 0;font:inherit;font-size:.8rem;cursor:pointer}button[aria-pressed=false]{opacity:.3}
.k0{background:#0072b2}.k1{background:#00785a}.k2{background:#b84e00}.k3{background:#8a6100}.k4{background:#6b6b6b}
table{border-collapse:collapse;font-size:.85rem;margin:.5rem 0}
td,th{padding:.1rem .7rem;text-align:left;border-bottom:1px solid #eee}
summary{cursor:pointer}
"""

_SCRIPT = """
"use strict";
function show(token){
  const all = token.parentElement.querySelectorAll(".t");
  for (const t of all){ t.style.boxShadow = ""; t.classList.remove("asked"); }
  if (!token.classList.contains("target")) token.classList.add("asked");
  for (const pair of (token.dataset.look || "").split(" ")){
    const [index, percent] = pair.split(":").map(Number);
    if (percent) all[index].style.boxShadow =
      "0 " + (1 + percent / 20).toFixed(1) + "px 0 rgba(120,0,160," + (0.25 + 0.0075 * percent).toFixed(2) + ")";
  }
}
for (const p of document.querySelectorAll("article p")){
  const target = p.querySelector(".target");
  show(target);
  p.addEventListener("mouseover", e => { if (e.target.classList.contains("t")) show(e.target); });
  p.addEventListener("mouseleave", () => show(target));
}
for (const button of document.querySelectorAll("button.kind"))
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const a of document.querySelectorAll("article"))
      if (a.dataset.kind === button.dataset.kind) a.hidden = !on;
  });
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1><p>{summary}</p><p>{counts}</p>
<p class="legend">A token's colour is what ablating the head does to its loss:
<b style="background:rgba(230,120,0,.75)">up by 2 nats or more</b>
<b style="background:rgba(0,114,178,.75)">down by 2 or more</b>.
Purple bars: where the head looks to predict the framed token; point at another token to see it for that one.</p>
{multigrams}</header>
<main{ids}>
{articles}
</main>
<script>{script}</script></body></html>
"""

_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}td,th{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}</style></head><body>
<header><h1>{title}</h1><p>{summary}</p>
<p class="legend">How many tokens in context each head has, in all and by kind; how many distinct multigrams it has memorised;
and what its ablation adds to the mean loss.</p></header>
<main><table><thead><tr>{header}</tr></thead>
<tbody>
{lines}
</tbody></table></main>
</body></html>
"""
