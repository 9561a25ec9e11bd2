"""Parts of a self-contained HTML page: a table, a note, a figure, and the page around them.

Nothing is fetched, which the page itself forbids: it runs the one script whose hash it names. Every
text is escaped here and nowhere else.

What may hold images is given in pieces, one after the other. An image may have megabytes, of which
each text around it would be another copy, of two bytes a character where there is a ``λ``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from rllc.errors import InputError
from rllc.sweep.page_script import SCRIPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

_POLICY = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #555; --rule: #ddd;
  --blue: #0072b2; --wrong: #b3400a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --faint: #aaa;
  --rule: #3a3d42; --blue: #56b4e9; --wrong: #ff9d5c } }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--ink);
  background: var(--paper); font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0.5rem 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid var(--rule) }
h1, h2, p, td:last-child, figcaption { overflow-wrap: anywhere }
a { color: var(--blue) }
:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px }
.note, figcaption { color: var(--faint); font-size: 0.875rem }
.choose { display: none; flex-wrap: wrap; gap: 0.5rem 1.25rem }
.scripted .choose { display: flex }
.scripted .unscripted { display: none }
select { font: inherit; max-width: 100% }
#curve { display: none; width: 100%; max-width: 48rem; height: auto; cursor: crosshair }
.scripted #curve { display: block }
#curve text { font-size: 12px; fill: var(--faint) }
#curve .grid { stroke: var(--rule) }
#curve .band { fill: var(--blue); fill-opacity: 0.18; stroke: var(--blue); stroke-opacity: 0.45;
  stroke-width: 0.5 }
#curve .line { fill: none; stroke: var(--blue); stroke-width: 1.6 }
#curve .fine { fill: var(--blue) }
#curve .wrong { fill: var(--paper); stroke: var(--wrong); stroke-width: 1.6 }
#curve text.wrong { fill: var(--wrong); stroke: none; font-size: 15px }
#curve .faint { opacity: 0.2 }
#curve .chosen { fill: none; stroke: var(--ink); stroke-width: 1.4 }
figure { margin: 0.75rem 0 }
.panels { display: flex; flex-wrap: wrap; gap: 0.75rem }
.panels figure { margin: 0 }
.panels > * { flex: 1 1 22rem; min-width: 0; max-width: 30.5rem }
img { display: block; width: 100%; height: auto; background: #fff }
.picked { outline: 3px solid var(--blue); outline-offset: 4px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule) }
td:last-child { min-width: 9rem }
th { white-space: nowrap }
thead th { border-bottom: 1px solid var(--faint) }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .wide { overflow: visible }
  h2 { break-after: avoid } figure, img, tr { break-inside: avoid }
  .panels > * { flex-basis: 45% } }
"""


def page(
    title: str,
    summary: str,
    made: datetime,
    sections: Mapping[str, Iterable[str]],
    scripts: Iterable[str] = (),
) -> Iterator[str]:
    """Return the page, in pieces.

    Args:
        title: its heading.
        summary: one paragraph below it.
        made: when, in UTC.
        sections: headings and the pieces of their HTML.
        scripts: :func:`script`, where there is anything to draw.
    """
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
<p class="note">Made at <time datetime="{made.isoformat()}">{made:%Y-%m-%d %H:%M:%S} UTC</time>.</p>
"""
    for heading, html in sections.items():
        yield f'<section id="{anchor(heading)}"><h2>{heading}</h2>\n'
        yield from html
        yield "\n</section>\n"
    yield from scripts
    yield "</body>\n</html>\n"


def script(numbers: Mapping[str, Any]) -> str:
    """Return the script and what it draws."""
    # Within a script nothing is escaped but the end of it, which "<" begins.
    text = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="numbers">{text}</script>\n<script>{SCRIPT}</script>\n'
    )


def anchor(heading: str) -> str:
    """Return the name of a section for links.

    >>> anchor("Every estimate that is not ok")
    'every-estimate-that-is-not-ok'
    """
    return heading.lower().replace(" ", "-")


def attributes(**values: str) -> str:
    """Return attributes of an element, such as ``data-kind="spikes"`` of ``data_kind``."""
    return "".join(f' {name.replace("_", "-")}="{escape(x)}"' for name, x in values.items())


class Link(NamedTuple):
    """A cell of a table that leads to a section."""

    text: str
    section: str
    values: Mapping[str, str]

    def html(self) -> str:
        """Return it as HTML."""
        href = attributes(href=f"#{anchor(self.section)}")
        return f"<a{href}{attributes(**self.values)}>{escape(self.text)}</a>"


def chooser(name: str, words: str, options: Mapping[str, str]) -> str:
    """Return a labelled list of which one is chosen: value to its text."""
    items = [f"<option{attributes(value=k)}>{escape(v)}</option>" for k, v in options.items()]
    return f'<label>{escape(words)} <select id="{name}">{"".join(items)}</select></label>'


def curve(num_points: int, choosers: Sequence[str], without_script: str) -> str:
    """Return the place where the script draws one curve, with what it is chosen by."""
    slider = attributes(
        id="curve",
        viewBox="0 0 640 300",
        role="slider",
        tabindex="0",
        aria_label="checkpoint; the arrow keys move along the curve",
        aria_valuemin="0",
        aria_valuemax=str(num_points - 1),
    )
    return (
        f'<div class="choose">{"".join(choosers)}</div>\n<svg{slider}></svg>\n'
        f'<p id="said" role="status"></p>\n'
        f'<p class="note unscripted">{escape(without_script)}</p>'
    )


def note(text: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(
    rows: Iterable[Sequence[object]],
    header: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
) -> str:
    """Return a table of anything; without a header, the first column is one.

    Args:
        rows: cells, each a :class:`Link` or anything that has a text.
        header: names of the columns.
        kinds: what the script may filter the rows by, one a row: words with spaces between them.
    """
    lines = []
    for i, row in enumerate(rows):
        cells = [f"<td>{_cell(cell)}</td>" for cell in row]
        if not header:
            cells[0] = f'<th scope="row">{_cell(row[0])}</th>'
        of_row = "" if kinds is None else attributes(data_kinds=kinds[i])
        lines.append(f"<tr{of_row}>{''.join(cells)}</tr>")
    if header:
        headings = "".join(f"<th>{escape(heading)}</th>" for heading in header)
        lines.insert(0, f"<thead><tr>{headings}</tr></thead>")
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def _cell(cell: object) -> str:
    return cell.html() if isinstance(cell, Link) else escape(str(cell))


def figure(html: Iterable[str], caption: str, **values: str) -> Iterator[str]:
    """Return an image, or several as :func:`panels`, above a caption; ``values`` are attributes."""
    yield f"<figure{attributes(**values)}>"
    yield from html
    yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def panels(items: Iterable[Iterable[str]]) -> Iterator[str]:
    """Return images or figures in one row, which wraps on a phone."""
    yield '<div class="panels">\n'
    for item in items:
        yield from item
        yield "\n"
    yield "</div>"


def new_axes() -> Axes:
    """Return axes on a figure that no window and no list of open figures knows of.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "report: its figures need matplotlib; type: pip install 'rllc[plot]'"
        ) from error
    return Figure(figsize=(5.0, 3.5), layout="constrained").subplots()


def image(axes: Axes, description: str) -> Iterator[str]:
    """Return the figure of some axes as an SVG within the page."""
    file = io.BytesIO()
    figure: Any = axes.figure
    figure.savefig(file, format="svg", metadata={"Date": None})
    yield f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,'
    yield base64.b64encode(file.getvalue()).decode()
    yield '">'
