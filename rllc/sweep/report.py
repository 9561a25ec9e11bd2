"""One page that says how a sweep stands: self-contained HTML, for a browser, a phone or paper.

What you type::

    rllc.report("sweep")  # writes sweep/report.html; while the sweep runs, after it was killed, or years later

Figures are SVG inside the page and nothing is fetched: the page itself forbids it. Needs the extra ``plot``.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rllc.errors import FileError, InputError
from rllc.files import write_atomically
from rllc.plots import plot_traces, plot_trajectory
from rllc.plots.figures import layer_of
from rllc.sweep.store import Contents, Store, Sweep, contents, gathered, versions
from rllc.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOT_THERE = (
    "failed",
    "missing",
    "damaged",
    "not asked for",
)  # begin the statuses where there is no estimate

_STYLE = """
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem; margin: 0.5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid #ccc }
h1, h2, p, td:last-child, figcaption { overflow-wrap: anywhere } .note, figcaption { color: #555; font-size: 0.875rem }
figure { margin: 0.75rem 0 } .panels { display: flex; flex-wrap: wrap; gap: 0.75rem } .panels figure { margin: 0 }
.panels > * { flex: 1 1 22rem; min-width: 0; max-width: 30.5rem } img { display: block; width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e5e5e5 }
td:last-child { min-width: 9rem } th { white-space: nowrap } thead th { border-bottom: 1px solid #888 }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .wide { overflow: visible } h2 { break-after: avoid }
  figure, img, tr { break-inside: avoid } .panels > * { flex-basis: 45% } }
"""


def report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    num_traces: int = 6,
) -> Path:
    """Write one HTML page about a sweep: trajectories, worst traces, statuses, what failed and is missing, settings.

    >>> rllc.report("sweep")                                                       # doctest: +SKIP
    PosixPath('sweep/report.html')

    The sweep may be running, interrupted or finished; the page shows what there was when it was made.

    Args:
        folder: the ``store`` of :func:`rllc.track`.
        path: of the page; ``None`` is ``report.html`` in the folder.
        num_traces: of how many estimates, those with the largest R-hat, to show the traces; six are three rows on a
            screen and enough to see which kind of trouble there is.

    Returns:
        The path of the page.

    Raises:
        InputError: there are figures to draw and matplotlib is not installed, or ``num_traces`` is not a whole number from 0 up.
        FileError: the folder is not a store, a description in it is damaged, or the page cannot be written.
    """
    if isinstance(num_traces, bool) or not isinstance(num_traces, int) or num_traces < 0:
        raise InputError(
            f"report: `num_traces` must be a whole number from 0 up, got {num_traces!r}."
        )
    store = Store(folder)
    sweeps = store.sweeps()
    if not sweeps:
        raise FileError(
            f"report({os.fspath(folder)!r}): there is no sweep in it; expected a folder that rllc.track(…, store=folder) "
            f"wrote."
        )
    found = contents(store, sweeps, sweeps)
    page = _page(store, sweeps, found, Trajectory._lazy(store, found), num_traces).encode(
        "utf-8", "replace"
    )
    target = Path(folder, "report.html") if path is None else Path(path)
    try:
        return write_atomically(target, lambda at: at.write_bytes(page) and None)
    except OSError as error:
        raise FileError(
            f"report: writing {target} failed ({error}); give another file as `path`."
        ) from error


def _page(
    store: Store, sweeps: Sequence[Sweep], found: Contents, trajectory: Trajectory, num_traces: int
) -> str:
    now, name = datetime.now(UTC), escape(store.folder.name)
    again = "They are being computed, or the same call of rllc.track computes them."
    sections = {
        "Over training": _trajectories(trajectory),
        "Traces of the worst R-hat": _traces(store, found, trajectory, num_traces),
        "Statuses": _statuses(trajectory),
        "Failed": _absent(
            trajectory.failed,
            "Nothing has failed.",
            "The same call of rllc.track tries them again.",
        ),
        "Missing": _absent(
            dict.fromkeys(trajectory.missing, "not finished yet"), "Nothing is missing.", again
        ),
        "Settings and versions": _settings(store, sweeps, trajectory),
        "Every estimate that is not ok": _not_ok(trajectory),
    }
    body = "\n".join(
        f"<section><h2>{title}</h2>\n{text}\n</section>" for title, text in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{name}: refined LLCs over training</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}: refined LLCs over training</h1>
<p>{escape(_summary(store, trajectory))}</p>
<p class="note">Made at <time datetime="{now.isoformat()}">{now:%Y-%m-%d %H:%M:%S} UTC</time>.</p>
{body}
</body>
</html>
"""


def _summary(store: Store, trajectory: Trajectory) -> str:
    counts = Counter(status.partition(":")[0] for row in trajectory.status for status in row)
    there = sum(count for words, count in counts.items() if words not in _NOT_THERE)
    size = f"{len(trajectory)} checkpoints × {len(set(trajectory.weights))} weights × {len(set(trajectory.data))} data sets"
    finished = f"{there or 'Not one'} of {counts.total() - counts['not asked for']} estimates {'are' if there else 'is'} finished"
    rest = ", ".join(f"{counts[words]} {words}" for words in ("ok", *_NOT_THERE[:3]))
    last = ""
    with suppress(
        FileNotFoundError, ValueError
    ):  # a damaged one has just been set aside; or there is none
        latest = max(store.path(name).stat().st_mtime for name in store.finished())
        last = f" The last cell was finished at {datetime.fromtimestamp(latest, UTC):%Y-%m-%d %H:%M:%S} UTC."
    return f"{size}. {finished}: {rest}.{last}"


# Figures.


def _trajectories(trajectory: Trajectory) -> str:
    shown = []
    for name in dict.fromkeys(trajectory.data):
        mine = [i for i, data in enumerate(trajectory.data) if data == name]
        if not np.isfinite(trajectory.value[:, mine]).any():
            shown.append(_note(f"On {name} there is no estimate yet."))
            continue
        axes = [_axes() for _ in {layer_of(trajectory.weights[i]) for i in mine}]
        plot_trajectory(trajectory, name, ax=axes)
        low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
        for ax in axes:  # each is a picture of its own, so that they wrap on a phone
            ax.set_ylim(min(low), max(high))
            ax.set_ylabel(axes[0].get_ylabel())
        images = "\n".join(
            _image(ax, f"λ̂ over training on {name}, {ax.get_title()}") for ax in axes
        )
        words = escape(
            f"λ̂ on {name} with its 95 % band. Gaps are estimates that diverged, failed or are missing."
        )
        shown.append(
            f'<figure><div class="panels">\n{images}\n</div><figcaption>{words}</figcaption></figure>'
        )
    return "\n".join(shown)


def _traces(store: Store, found: Contents, trajectory: Trajectory, count: int) -> str:
    rhat, shown = trajectory.rhat, []
    known = sorted(np.argwhere(~np.isnan(rhat)).tolist(), key=lambda at: -rhat[at[0], at[1]])
    for i, k in known[:count]:
        step, weights, data = trajectory.steps[i], trajectory.weights[k], trajectory.data[k]
        names = found.cells[step, weights, data]
        draws = gathered(
            [store.read(name) for name in names], [found.chains[name] for name in names], [weights]
        )
        caption = (
            f"Step {step}, {weights} on {data}: R-hat {rhat[i, k]:.3f}; {trajectory.status[i][k]}."
        )
        image = _image(
            plot_traces(draws, ax=_axes()), f"Trace of {weights} on {data} at step {step}"
        )
        shown.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    if not shown:
        return _note("None were asked for." if known else "There is no R-hat yet.")
    note = _note("A healthy trace rises from 0, levels off, has no spikes, and its chains agree.")
    return note + '\n<div class="panels">\n' + "\n".join(shown) + "\n</div>"


def _axes() -> Axes:
    """On a figure that no window and no list of open figures knows of."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "report: its figures need matplotlib; type: pip install 'rllc[plot]'"
        ) from error
    return Figure(figsize=(5.0, 3.5), layout="constrained").subplots()


def _image(ax: Axes, words: str) -> str:
    file = io.BytesIO()
    ax.figure.savefig(file, format="svg", metadata={"Date": None})
    inside = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{inside}">'


# Words.


def _statuses(trajectory: Trajectory) -> str:
    """How often each problem, without what is particular to one estimate: numbers, and what follows a colon."""
    counts: Counter[str] = Counter()
    for status in (status for row in trajectory.status for status in row):
        problems = [status] if status.startswith(("diverged", *_NOT_THERE)) else status.split("; ")
        counts.update(
            re.sub(r"\d[\d.,e+%-]*", "…", problem.partition(":")[0]) for problem in problems
        )
    note = _note("One estimate may have several. What to change stands in the last section.")
    return _table(("status", "estimates"), counts.most_common()) + (
        note if set(counts) - {"ok"} else ""
    )


def _absent(keys: Mapping[tuple[int, str, str], str], none: str, note: str) -> str:
    """Estimates that are not there and why, in few rows: those of the same weights, data and reason are one."""
    weights: dict[tuple[int, str, str], list[str]] = {}
    for (step, name, data), reason in keys.items():
        weights.setdefault((step, data, reason), []).append(name)
    steps: dict[tuple[str, str, str], list[str]] = {}
    for (step, *rest), names in weights.items():
        steps.setdefault((", ".join(names), *rest), []).append(str(step))
    rows = [(", ".join(some), *rest) for rest, some in steps.items()]
    return (
        _table(("steps", "weights", "data", "reason"), rows) + _note(note) if rows else _note(none)
    )


def _not_ok(trajectory: Trajectory) -> str:
    rows = []
    for i, k in np.ndindex(trajectory.value.shape):
        status = trajectory.status[i][k]
        if status.partition(":")[0] not in (
            "ok",
            "failed",
            "missing",
            "not asked for",
        ):  # which stand above
            numbers = (
                getattr(trajectory, name)[i, k] for name in ("value", "standard_error", "rhat")
            )
            words = ("–" if np.isnan(x) else f"{x:.3f}" for x in numbers)
            rows.append(
                (trajectory.steps[i], trajectory.weights[k], trajectory.data[k], *words, status)
            )
    columns = ("step", "weights", "data", "λ̂", "± se", "R-hat", "status")
    return _table(columns, rows) if rows else _note("All that are finished are ok.")


def _settings(store: Store, sweeps: Sequence[Sweep], trajectory: Trajectory) -> str:
    settings = dict(trajectory.settings)
    rows = [
        (f"data {name}, SHA-256", value) for name, value in settings.pop("fingerprints").items()
    ]
    rows += [(name, "–" if value is None else value) for name, value in settings.items()]
    sources = dict.fromkeys(
        str(where["source"]) for sweep in sweeps for where in sweep.checkpoints.values()
    )
    rows += [("loss", sweeps[-1].loss), ("weights", ", ".join(dict.fromkeys(trajectory.weights)))]
    rows += [("checkpoints", ", ".join(sources)), ("steps", ", ".join(map(str, trajectory.steps)))]
    for what in sweeps[-1].versions:
        rows.append(
            (
                f"{what}, version",
                ", then ".join(dict.fromkeys(s.versions.get(what, "?") for s in sweeps)),
            )
        )
    return _table((), [("store", store.folder), *rows, ("this page, by rllc", versions()["rllc"])])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of anything; without a header, the first column is one."""
    first = "<td>{}</td>" if header else '<th scope="row">{}</th>'
    cells = [[escape(str(cell)) for cell in row] for row in rows]
    lines = [
        f"<tr>{first.format(row[0])}{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in cells
    ]
    above = "".join(f"<th>{escape(words)}</th>" for words in header)
    head = f"<thead><tr>{above}</tr></thead>\n" if header else ""
    return '<div class="wide"><table>\n' + head + "\n".join(lines) + "\n</table></div>"


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'
