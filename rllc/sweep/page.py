"""Parts of a self-contained HTML page: a table, a note, a figure, and the page around them.

Nothing is fetched, which the page itself forbids; every text is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from rllc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: #1a1a1a; background: #fff;
  font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0.5rem 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid #ccc }
h1, h2, p, td:last-child, figcaption { overflow-wrap: anywhere }
.note, figcaption { color: #555; font-size: 0.875rem }
figure { margin: 0.75rem 0 }
.panels { display: flex; flex-wrap: wrap; gap: 0.75rem }
.panels figure { margin: 0 }
.panels > * { flex: 1 1 22rem; min-width: 0; max-width: 30.5rem }
img { display: block; width: 100%; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e5e5e5 }
td:last-child { min-width: 9rem }
th { white-space: nowrap }
thead th { border-bottom: 1px solid #888 }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .wide { overflow: visible }
  h2 { break-after: avoid } figure, img, tr { break-inside: avoid }
  .panels > * { flex-basis: 45% } }
"""


def page(title: str, summary: str, made: datetime, sections: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        title: its heading.
        summary: one paragraph below it.
        made: when, in UTC.
        sections: headings and their HTML.
    """
    bodies = []
    for heading, html in sections.items():
        bodies.append(f"<section><h2>{heading}</h2>\n{html}\n</section>")
    body = "\n".join(bodies)
    return f"""<!DOCTYPE html>
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
{body}
</body>
</html>
"""


def note(text: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Return a table of anything; without a header, the first column is one."""
    lines = []
    for row in rows:
        cells = [f"<td>{escape(str(cell))}</td>" for cell in row]
        if not header:
            cells[0] = f'<th scope="row">{escape(str(row[0]))}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if header:
        headings = "".join(f"<th>{escape(heading)}</th>" for heading in header)
        lines.insert(0, f"<thead><tr>{headings}</tr></thead>")
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def figure(html: str, caption: str) -> str:
    """Return an image, or several as :func:`panels`, above a caption."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def panels(items: Sequence[str]) -> str:
    """Return images or figures in one row, which wraps on a phone."""
    inside = "\n".join(items)
    return f'<div class="panels">\n{inside}\n</div>'


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


def image(axes: Axes, description: str) -> str:
    """Return the figure of some axes as an SVG within the page."""
    file = io.BytesIO()
    figure: Any = axes.figure
    figure.savefig(file, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{encoded}">'
