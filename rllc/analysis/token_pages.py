"""An HTML page of text coloured by a value of each token and head, such as its λ̂.

Like :mod:`rllc.analysis.pages` it loads nothing, all text from the data is escaped, and the script
reads numbers only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rllc.analysis.page_templates import STYLE
from rllc.analysis.pages import visible
from rllc.data.tokens import Tokens
from rllc.errors import InputError, must_be
from rllc.statistics.uncertainty import Mean
from rllc.storage.files import write_atomically
from rllc.tables import label
from rllc.weights.names import Names

_FULL_COLOR = 98.0
"""The percentile of all absolute values at which a token has its full colour."""


def write_token_page(
    path: str | os.PathLike[str],
    rows: Tokens,
    values: Mean,
    names: Names,
    *,
    tokenizer: Any = None,
    title: str = "λ̂ of each token",
    num_rows: int = 20,
) -> Path:
    """Write one page with the text of rows, coloured by a value of each token; a button a head.

    Orange is above 0, blue below; what is within two standard errors of 0 has no colour. The page
    says value and error of the token under the pointer, or of the one that the arrow keys have
    reached.

    >>> observe = {"rows": rllc.losses_on(rows)}
    >>> draws = rllc.sample(model, data, rllc.heads(model), observe=observe)       # doctest: +SKIP
    >>> path = write_token_page("tokens.html", rows, rllc.covariances.token_llc(draws), draws.names,
    ...                  tokenizer=tokenizer)

    Args:
        path: of the file.
        rows: the rows that were observed.
        values: ``[refinement, row, pos]``, of :func:`rllc.covariances.token_llc`, or ``.mean`` of
            susceptibilities; position p is the prediction of token p + 1.
        names: of the refinements.
        tokenizer: with ``decode``; ``None`` shows ids.
        title: of the page.
        num_rows: the first rows are shown. A row of 256 tokens and 16 heads takes 70 kB.

    Returns:
        The path.

    Raises:
        InputError: the values are of other rows or refinements, or ``num_rows`` is below 1.
    """
    right = type(num_rows) is int and num_rows >= 1
    must_be("write_token_page", "num_rows", num_rows, right, "an integer of at least 1")
    ids = rows.rows.numpy()
    expected = (len(names), len(ids), ids.shape[1] - 1)
    if values.value.shape != expected:
        raise InputError(
            f"write_token_page: expected values [refinement, row, pos] = {list(expected)}, one for "
            f"each token but the first of a row; got {list(values.value.shape)}."
        )
    decode = str if tokenizer is None else _decoder(tokenizer)
    articles = []
    for row in range(min(num_rows, len(ids))):
        of_row = Mean(*(numbers[:, row] for numbers in values))
        articles.append(_article(row, ids[row], of_row, decode))
    finite = np.abs(values.value[np.isfinite(values.value)])
    full = float(np.percentile(finite, _FULL_COLOR)) if finite.size else 1.0
    text = _PAGE.format(
        title=escape(title),
        style=STYLE + _STYLE,
        script=_SCRIPT,
        full=f"{full or 1.0:.4g}",
        choices="".join(_choice(names, i) for i in range(len(names))),
        ids=' class="ids"' if tokenizer is None else "",
        articles="\n".join(articles),
    )
    return write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _decoder(tokenizer: Any) -> Callable[[int], str]:
    def decode(token: int) -> str:
        return str(tokenizer.decode([token]))

    return decode


def _choice(names: Names, i: int) -> str:
    """A radio button, which the keyboard reaches as any page's."""
    checked = " checked" if i == 0 else ""
    text = escape(label(names, i))
    return f'<label><input type="radio" name="head" value="{i}"{checked}> {text}</label>'


def _article(row: int, ids: np.ndarray, values: Mean, decode: Callable[[int], str]) -> str:
    spans = [f'<span class="t">{visible(decode(int(ids[0])))}</span>']
    for position, token in enumerate(ids[1:].tolist(), 1):
        numbers = _numbers(values.value[:, position - 1])
        errors = _numbers(values.standard_error[:, position - 1])
        # The keyboard enters a row at its first token, and the arrow keys go on from there.
        reach = 0 if position == 1 else -1
        attributes = f'tabindex="{reach}" data-position="{position}" data-id="{token}"'
        data = f'data-value="{numbers}" data-error="{errors}"'
        spans.append(f'<span class="t" {attributes} {data}>{visible(decode(token))}</span>')
    return f"<article><h3>row {row}</h3><p>{''.join(spans)}</p></article>"


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in values)


_STYLE = """
fieldset { border: 0; padding: 0; margin: .5rem 0; display: flex; flex-wrap: wrap;
  gap: .1rem .8rem }
output { position: sticky; top: 0; display: block; background: #fff; padding: .3rem 0;
  min-height: 1.5em; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
.t:focus { outline: 2px solid #222 }
"""

_SCRIPT = """
"use strict";
const full = Number(document.querySelector("main").dataset.full);
const tokens = document.querySelectorAll(".t[data-value]");
const said = document.querySelector("output");
let head = 0;

function numbersOf(token) {
  return [token.dataset.value, token.dataset.error].map(text => Number(text.split(" ")[head]));
}

// Colour every token by its value for the chosen head.
function paint() {
  for (const token of tokens) {
    const [value, error] = numbersOf(token);
    const seen = Math.abs(value) > 2 * error;
    const strength = seen ? 0.75 * Math.min(Math.abs(value) / full, 1) : 0;
    const colour = value > 0 ? "230,120,0," : "0,114,178,";
    token.style.background = strength ? "rgba(" + colour + strength.toFixed(2) + ")" : "";
  }
}

function say(token) {
  const [value, error] = numbersOf(token);
  const where = "position " + token.dataset.position + ", id " + token.dataset.id + ": ";
  said.textContent = where + (isNaN(value) ? "nothing predicted" : value + " ± " + error);
}

for (const button of document.querySelectorAll("input[name=head]"))
  button.addEventListener("change", () => { head = Number(button.value); paint(); });

for (const token of tokens) {
  token.addEventListener("mouseenter", () => say(token));
  token.addEventListener("focus", () => say(token));
  token.addEventListener("keydown", event => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
    const next = token[step[event.key]];
    if (!next || !next.dataset.value) return;
    event.preventDefault();
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
paint();
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1>
<p class="legend"><b style="background:rgba(230,120,0,.75)">{full} or more</b>
<b style="background:rgba(0,114,178,.75)">−{full} or less</b>
within two standard errors of 0: no colour. Point at a token, or reach it with Tab and the arrow
keys, for its value.</p>
<fieldset>{choices}</fieldset></header>
<output aria-live="polite"></output>
<main{ids} data-full="{full}">
{articles}
</main>
<script>{script}</script></body></html>
"""
