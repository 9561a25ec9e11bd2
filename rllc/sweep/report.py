"""One page that says how a sweep stands: self-contained HTML, for a browser, a phone or paper.

What you type::

    rllc.report("sweep")  # writes sweep/report.html: while the sweep runs, or years later

Figures are SVG inside the page. They need the extra ``plot``.
"""

from __future__ import annotations

import gc
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rllc.errors import FileError, InputError
from rllc.estimates.faults import ABSENT, PROBLEMS, Kind, Limits, status_of
from rllc.plots import plot_traces, plot_trajectory
from rllc.plots.figures import layer_of
from rllc.sampling.checks import check_how
from rllc.storage.files import as_path, write_atomically
from rllc.sweep.identity import versions
from rllc.sweep.page import (
    Link,
    chooser,
    curve,
    figure,
    image,
    new_axes,
    note,
    page,
    panels,
    script,
    table,
)
from rllc.sweep.plan import Plan
from rllc.sweep.store import Store
from rllc.sweep.sweep import Key, Sweep
from rllc.sweep.trajectory import Trajectory
from rllc.tables import number, rounded

_LISTED = 2000
"""Rows of the last section. Nobody reads more, and a phone cannot show them."""

_ONE, _WRONG = "One curve", "Every estimate that is not ok"
"""Sections that links lead to."""

_LISTED_ELSEWHERE = ("failed", "missing", "not_asked_for")
"""Kinds of faults that are no rows of the last section."""


def report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    limits: Limits | None = None,
    num_traces: int = 6,
) -> Path:
    """Write one HTML page about a sweep.

    >>> rllc.report("sweep")                                                       # doctest: +SKIP
    PosixPath('sweep/report.html')

    It shows trajectories with marks where something is not ok, the curve of a head that one picks,
    statuses with links to their rows, what failed and is missing, the worst traces, and settings.
    It is one file that fetches nothing, and can be used with the keyboard: the arrow keys move
    along the curve. The sweep may be running, interrupted or finished; the page shows what there
    was when it was made.

    Args:
        folder: the ``store`` of :func:`rllc.track`.
        path: of the page; ``None`` is ``report.html`` in the folder.
        limits: from where on something is a fault; ``None`` is ``rllc.Limits()``.
        num_traces: of how many estimates, those with the largest R-hat, to show the traces. Six
            are three rows on a screen and enough to see which kind of trouble there is.

    Returns:
        The path of the page.

    Raises:
        InputError: there are figures to draw and matplotlib is not installed, or ``num_traces`` is
            not a whole number from 0 up.
        FileError: the folder is not a store, a plan in it is damaged, or the page cannot be
            written.
    """
    if isinstance(num_traces, bool) or not isinstance(num_traces, int) or num_traces < 0:
        raise InputError(
            f"report: `num_traces` must be a whole number from 0 up, got {num_traces!r}."
        )
    check_how(None, limits)
    if path is not None:
        as_path(path, "report")
    store = Store(folder)
    plans = store.plans()
    if not plans:
        raise FileError(
            f"report({os.fspath(folder)!r}): there is no sweep in it; expected a folder that "
            f"rllc.track(…, store=folder) wrote."
        )
    sweep = Sweep.of(store, plans, plans)
    pieces = _page(sweep, sweep.trajectory(limits), plans, num_traces)
    target = Path(folder, "report.html") if path is None else Path(path)
    try:
        return write_atomically(target, lambda temporary: _write(temporary, pieces))
    except OSError as error:
        raise FileError(
            f"report: writing {target} failed ({error}); give another file as `path`."
        ) from error


def _write(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(pieces)


def _page(
    sweep: Sweep, trajectory: Trajectory, plans: Sequence[Plan], num_traces: int
) -> Iterator[str]:
    sections: dict[str, Iterable[str]] = {
        "Over training": _trajectories(trajectory),
        _ONE: [_one(trajectory)],
        "Statuses": [_statuses(trajectory)],
        "Failed": [_failed(sweep)],
        "Missing": [_missing(sweep)],
        "Traces of the worst R-hat": _traces(sweep, trajectory, num_traces),
        _WRONG: _not_ok(trajectory),
        "Settings and versions": [_settings(sweep, plans)],
    }
    title = f"{sweep.store.root.name}: refined LLCs over training"
    summary = _summary(sweep, trajectory)
    return page(title, summary, datetime.now(UTC), sections, _script(trajectory))


def title_of(kind: Kind) -> str:
    """Return what all faults of a kind have in common, in words.

    >>> title_of("spikes")
    'spikes in … draws'
    """
    without_numbers = re.sub(r"\{.*?\}", "…", PROBLEMS[kind])
    return without_numbers.partition(":")[0]


def _kinds(trajectory: Trajectory) -> Counter[Kind | Literal["ok"]]:
    """Count the estimates with each kind of fault, and those with none."""
    counts: Counter[Kind | Literal["ok"]] = Counter()
    for row in trajectory.faults:
        for faults in row:
            kinds: set[Kind | Literal["ok"]] = {fault.kind for fault in faults}
            counts.update(kinds or {"ok"})
    return counts


def _summary(sweep: Sweep, trajectory: Trajectory) -> str:
    counts = _kinds(trajectory)
    num_asked = trajectory.value.size - counts["not_asked_for"]
    num_finished = trajectory.value.size - sum(counts[kind] for kind in ABSENT)
    names = sweep.names
    size = f"{len(trajectory)} checkpoints × {len(names.selections)} weights"
    size += f" × {len(names.data_sets)} data sets"
    if num_finished:
        finished = f"{num_finished} of {num_asked} estimates are finished"
    else:
        finished = f"Not one of {num_asked} estimates is finished"
    kinds: tuple[Kind | Literal["ok"], ...] = ("ok", "failed", "missing", "damaged")
    rest = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    return f"{size}. {finished}: {rest}.{_last_finished(sweep)}"


def _last_finished(sweep: Sweep) -> str:
    latest = sweep.store.last_written()
    if not latest:
        return ""
    when = datetime.fromtimestamp(latest, UTC)
    return f" The last cell was finished at {when:%Y-%m-%d %H:%M:%S} UTC."


# Figures.


def _trajectories(trajectory: Trajectory) -> Iterator[str]:
    for place, data in enumerate(trajectory.names.data_sets):
        if place:
            yield "\n"
        yield from _trajectory_on(data, trajectory)
        # matplotlib's figures hold each other, and Python seldom looks for what nobody else holds.
        gc.collect()


def _trajectory_on(data: str, trajectory: Trajectory) -> Iterator[str]:
    columns = trajectory.names.select(data=data)
    if not np.isfinite(trajectory.value[:, columns]).any():
        yield note(f"On {data} there is no estimate yet.")
        return
    layers = {layer_of(trajectory.weights[column]) for column in columns}
    panel_axes = [new_axes() for _ in layers]
    plot_trajectory(trajectory, data, ax=panel_axes)
    # Each panel is a picture of its own, so that they wrap on a phone; the scale is one.
    bottoms, tops = np.transpose([axes.get_ylim() for axes in panel_axes])
    images = []
    for axes in panel_axes:
        axes.set_ylim(bottoms.min(), tops.max())
        axes.set_ylabel(panel_axes[0].get_ylabel())
        images.append(image(axes, f"λ̂ over training on {data}, {axes.get_title()}"))
    caption = f"λ̂ on {data} with its 95 % band. "
    caption += "Hollow points are not ok; crosses diverged, failed or are missing."
    yield from figure(panels(images), caption)


def _one(trajectory: Trajectory) -> str:
    """Return the place where the script draws the curve that one picks."""
    if not np.isfinite(trajectory.value).any():
        return note("There is no estimate yet.")
    names = trajectory.names
    kinds = {"": "any", "ok": "ok"}
    for kind, _ in _kinds(trajectory).most_common():
        if kind != "ok":
            kinds[kind] = title_of(kind)
    choosers = [
        chooser("head", "weights", {name: name for name in names.selections}),
        chooser("data", "data", {name: name for name in names.data_sets}),
        chooser("kind", "status", kinds),
    ]
    without_script = "A browser that runs scripts draws here the curve that one picks."
    return curve(len(trajectory), choosers, without_script)


def _script(trajectory: Trajectory) -> Iterator[str]:
    if np.isfinite(trajectory.value).any():
        yield script(_numbers(trajectory))


def _numbers(trajectory: Trajectory) -> dict[str, Any]:
    """Return what the script draws, with four digits, and ``None`` where nothing is known."""
    statuses: dict[tuple[str, tuple[str, ...]], int] = {}
    half_width = trajectory.mean.half_width()
    columns = []
    for k, (weights, data) in enumerate(trajectory.names):
        its_statuses = []
        for faults in trajectory.faults:
            kinds = tuple(dict.fromkeys(fault.kind for fault in faults[k]))
            status = status_of(faults[k]), kinds
            its_statuses.append(statuses.setdefault(status, len(statuses)))
        columns.append(
            {
                "weights": weights,
                "data": data,
                "value": _in_short(trajectory.value[:, k]),
                "half": _in_short(half_width[:, k]),
                "error": _in_short(trajectory.standard_error[:, k], digits=2),
                "rhat": _in_short(trajectory.rhat[:, k]),
                "status": its_statuses,
            }
        )
    return {"steps": trajectory.steps, "columns": columns, "statuses": list(statuses)}


def _in_short(numbers: np.ndarray, digits: int = 4) -> list[float | None]:
    shown = []
    for value in numbers.tolist():
        shown.append(float(f"{value:.{digits}g}") if np.isfinite(value) else None)
    return shown


def _traces(sweep: Sweep, trajectory: Trajectory, num_traces: int) -> Iterator[str]:
    rhat = trajectory.rhat
    cells = np.argwhere(~np.isnan(rhat))
    if not len(cells):
        yield note("There is no R-hat yet.")
        return
    if not num_traces:
        yield note("None were asked for.")
        return
    worst_first = np.argsort(-rhat[tuple(cells.T)], kind="stable")
    healthy = "A healthy trace rises from 0, levels off, has no spikes, and its chains agree."
    yield f"{note(healthy)}\n"
    yield from panels(_traces_of(sweep, trajectory, cells[worst_first][:num_traces]))


def _traces_of(sweep: Sweep, trajectory: Trajectory, cells: np.ndarray) -> Iterator[Iterator[str]]:
    """Return the traces of some estimates, given by their rows and columns."""
    for row, column in cells:
        step = trajectory.steps[row]
        weights, data = trajectory.weights[column], trajectory.data[column]
        draws = sweep.read(sweep.finished[step, weights, data], [weights])
        status = status_of(trajectory.faults[row][column])
        rhat = trajectory.rhat[row, column]
        caption = f"Step {step}, {weights} on {data}: R-hat {rhat:.3f}; {status}."
        axes = plot_traces(draws, ax=new_axes())
        trace = image(axes, f"Trace of {weights} on {data} at step {step}")
        of_trace = {"data_head": weights, "data_data": data, "data_step": str(step)}
        yield figure(trace, caption, **of_trace)


# Words.


def _statuses(trajectory: Trajectory) -> str:
    counts = _kinds(trajectory)
    rows = []
    for kind, count in counts.most_common():
        rows.append(("ok" if kind == "ok" else _link_to(kind), count))
    html = table(rows, ("status", "estimates"))
    if set(counts) <= {"ok"}:
        return html
    return html + note("One estimate may have several. A status leads to its estimates.")


def _link_to(kind: Kind) -> object:
    """Return a link from a status to its estimates."""
    if kind == "not_asked_for":
        return title_of(kind)
    if kind in _LISTED_ELSEWHERE:
        return Link(title_of(kind), kind, {})
    return Link(title_of(kind), _WRONG, {"data_kind": kind})


def _failed(sweep: Sweep) -> str:
    if not sweep.failed:
        return note("Nothing has failed.")
    advice = "The same call of rllc.track tries them again."
    return _absent(sweep.failed) + note(advice)


def _missing(sweep: Sweep) -> str:
    if not sweep.missing:
        return note("Nothing is missing.")
    advice = "They are being computed, or the same call of rllc.track computes them."
    return _absent(dict.fromkeys(sweep.missing, "not finished yet")) + note(advice)


def _absent(reasons: Mapping[Key, str]) -> str:
    """Return a table with one row for each set of weights and steps that share data and reason."""
    weights_of: dict[tuple[int, str, str], list[str]] = {}
    for (step, weights, data), reason in reasons.items():
        weights_of.setdefault((step, data, reason), []).append(weights)
    steps_of: dict[tuple[str, str, str], list[str]] = {}
    for (step, data, reason), names in weights_of.items():
        row = ", ".join(names), data, reason
        steps_of.setdefault(row, []).append(str(step))
    rows = []
    for row, steps in steps_of.items():
        rows.append((", ".join(steps), *row))
    return table(rows, ("steps", "weights", "data", "reason"))


def _not_ok(trajectory: Trajectory) -> Iterator[str]:
    """Return a table of all that is neither ok nor listed in another section."""
    rows: list[tuple[object, ...]] = []
    kinds = []
    num_not_ok = 0
    for row, step in enumerate(trajectory.steps):
        for column, (weights, data) in enumerate(trajectory.names):
            faults = trajectory.faults[row][column]
            if not faults or faults[0].kind in _LISTED_ELSEWHERE:
                continue
            num_not_ok += 1
            if num_not_ok > _LISTED:
                continue
            values = {"data_step": str(step), "data_head": weights, "data_data": data}
            value, error = trajectory.value[row, column], trajectory.standard_error[row, column]
            numbers = (*rounded(value, error), number(trajectory.rhat[row, column], digits=3))
            at = Link(str(step), _ONE, values)
            rows.append((at, weights, data, *numbers, status_of(faults)))
            kinds.append(" ".join(dict.fromkeys(fault.kind for fault in faults)))
    if not rows:
        yield note("All that are finished are ok.")
        return
    header = ("step", "weights", "data", "λ̂", "± se", "R-hat", "status")
    yield '<p class="note" id="shown"></p>\n'
    yield table(rows, header, kinds)
    if num_not_ok > len(rows):
        rest = f"{num_not_ok - len(rows):,} more are not ok; all are rows of "
        yield note(f"{rest}rllc.Sweep.open(folder).trajectory().to_dataframe().")


def _settings(sweep: Sweep, plans: Sequence[Plan]) -> str:
    last = plans[-1]
    settings = dict(sweep.settings)
    fingerprints = settings.pop("fingerprints")
    rows: list[tuple[str, object]] = []
    for name, value in settings.items():
        rows.append((name, "–" if value is None else value))
    sources: dict[str, None] = {}
    for plan in plans:
        for where in plan.checkpoints.values():
            sources[str(where["source"])] = None
    rows += [
        ("loss", last.loss),
        ("weights", ", ".join(sweep.names.selections)),
        ("checkpoints", ", ".join(sources)),
        ("steps", ", ".join(map(str, sweep.steps))),
    ]
    for library in last.versions:
        used = dict.fromkeys(plan.versions.get(library, "?") for plan in plans)
        rows.append((f"{library}, version", ", then ".join(used)))
    rows.append(("this page, by rllc", versions()["rllc"]))
    # Hashes come last: they matter when two sweeps are compared.
    rows.append(("store", sweep.store.folder))
    for name, fingerprint in fingerprints.items():
        rows.append((f"data {name}, SHA-256", fingerprint))
    return table(rows)
