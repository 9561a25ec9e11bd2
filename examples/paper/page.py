"""Everything on one page: claims, notes, figures, settings."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

import rllc

from .claims import Claim
from .settings import Settings

STYLE = """\
body {font: 15px sans-serif; max-width: 75em; margin: 2em auto}
td, th {vertical-align: top; padding: .4em; text-align: left}
tr:nth-child(odd) {background: #f4f4f4}
figure {display: inline-block; margin: 1em}
img {max-width: 36em}"""


def write_page(
    settings: Settings,
    claims: Sequence[Claim],
    notes: Sequence[str],
    figures: Mapping[int, Mapping[str, Path]],
    sampling: Mapping[str, Any],
) -> Path:
    """Write ``report.html``, with all figures in it.

    Args:
        settings: what was asked for.
        claims: the rows of its table.
        notes: what is not as it should be.
        figures: caption -> file, of each seed.
        sampling: settings of the sweeps.
    """
    title = f"The paper's claims, {settings.size}"
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>{how(settings, sampling)}</p>",
        table(claims),
        "<ul>",
        *(f"<li>{escape(note)}</li>" for note in notes),
        "</ul>",
    ]
    for seed, pictures in figures.items():
        parts.append(f"<h2>seed {seed}</h2><p>{' · '.join(links(settings, seed))}</p>")
        parts += [image(caption, path) for caption, path in pictures.items()]
    page = settings.out / "report.html"
    page.write_text("".join(parts), encoding="utf-8")
    return page


def how(settings: Settings, sampling: Mapping[str, Any]) -> str:
    """Settings and versions, in words."""
    words = [f"{name} {value}" for name, value in vars(settings).items()]
    words += [f"sampling {name} {value}" for name, value in sampling.items()]
    return f"{escape(', '.join(words))}; rllc {rllc.__version__}, torch {torch.__version__}"


def table(claims: Sequence[Claim]) -> str:
    rows = ["<tr><th>claim<th>criterion<th>measured<th>verdict</tr>"]
    for claim in claims:
        cells = "".join(f"<td>{escape(part)}</td>" for part in claim)
        rows.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def links(settings: Settings, seed: int) -> list[str]:
    """Links to the reports of the sweeps, and to the pages of the heads."""
    reports = sorted(settings.folder(seed).glob("sweep-*.html"))
    return [
        *(f'<a href="seed{seed}/{path.name}">{path.name}</a>' for path in reports),
        f'<a href="seed{seed}/pages/index.html">tokens in context</a>',
    ]


def image(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
