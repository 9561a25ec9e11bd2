"""Everything on one page: claims, notes, figures, settings."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

import rllc

from .claims import Claim, effect_in_words, seen_in_words
from .settings import Settings

STYLE = """\
body {font: 15px sans-serif; max-width: 75em; margin: 2em auto}
td, th {vertical-align: top; padding: .4em; text-align: left}
tr:nth-child(odd) {background: #f4f4f4}
figure {display: inline-block; margin: 1em}
img {max-width: 36em}"""


def write_page(
    settings: Settings, claims: Sequence[Claim], notes: Sequence[str], figures: Sequence[Path]
) -> Path:
    """Write ``report.html``, with all figures in it."""
    title = f"The paper's claims, {settings.size}"
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>{how(settings)}</p>",
        table(claims),
        "<ul>",
        *(f"<li>{escape(note)}</li>" for note in notes),
        "</ul>",
        *(image(path.stem, path) for path in figures),
        f"<p>{' · '.join(links(settings))}</p>",
    ]
    page = settings.out / "report.html"
    page.write_text("".join(parts), encoding="utf-8")
    return page


def how(settings: Settings) -> str:
    """Settings and versions, in words."""
    words = [f"{name} {value}" for name, value in vars(settings).items()]
    return f"{escape(', '.join(words))}; rllc {rllc.__version__}, torch {torch.__version__}"


def table(claims: Sequence[Claim]) -> str:
    rows = ["<tr><th>claim<th>effect<th>seen in 80 % of trials<th>verdict<th>parts</tr>"]
    for claim in claims:
        cells = (
            claim.claim,
            effect_in_words(claim),
            seen_in_words(claim),
            claim.verdict,
            claim.detail,
        )
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def links(settings: Settings) -> list[str]:
    """Links to the reports of the sweeps, and to the pages of the heads."""
    found = []
    for pattern in ("seed*/sweep-*.html", "seed*/pages/index.html"):
        for path in sorted(settings.out.glob(pattern)):
            name = path.relative_to(settings.out).as_posix()
            found.append(f'<a href="{name}">{name}</a>')
    return found


def image(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
