"""The page of a sweep, read back as a browser reads it, from real stores in every state."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import importlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sweeps import quick, write_run
from tiny import LAX, tiny_tokens

import rllc
from rllc.estimates.faults import PROBLEMS
from rllc.sweep.page_script import SCRIPT
from rllc.sweep.plan import Cell
from rllc.sweep.report import report, title_of
from rllc.sweep.store import Store
from rllc.tables import rounded
from rllc.weights.names import Names

matplotlib = pytest.importorskip("matplotlib")

ODD = "<b>&\"x'"
DATA = {ODD: tiny_tokens(seed=1), "plain": tiny_tokens(seed=2)}
QUICK = quick(num_draws=8)
VOID = {"meta", "img"}
MODULE = importlib.import_module("rllc.sweep.report")  # rllc.report is the function
BROWSER = next(
    filter(None, map(shutil.which, ("google-chrome", "chromium", "chromium-browser"))), None
)


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no google-chrome, chromium or chromium-browser is here"
)


class Page(html.parser.HTMLParser):
    """What a page holds, by section: texts, rows of tables, images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.attributes, self.open = Counter(), [], []
        self.title, self.text = "", {"": ""}
        self.rows: dict[str, list[list[str]]] = {}
        self.captions: list[str] = []
        self.images: dict[str, list[tuple[str, bytes]]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.title = ""
        elif tag == "tr":
            self.rows.setdefault(self.title, []).append([])
        elif tag in ("td", "th"):
            self.rows[self.title][-1].append("")
        elif tag == "figcaption":
            self.captions.append("")
        elif tag == "img":
            start, inside = dict(attrs)["src"].split(",")
            assert start == "data:image/svg+xml;base64"
            self.images.setdefault(self.title, []).append(
                (dict(attrs)["alt"], base64.b64decode(inside))
            )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "h2":
            self.text[self.title] = ""

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.title += data
        elif {"td", "th"} & set(self.open):
            self.rows[self.title][-1][-1] += data
        elif self.open[-1:] == ["figcaption"]:
            self.captions[-1] += data
        else:
            self.text[self.title] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), steps=(0, 10, 20))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Path:
    """Three checkpoints × two data sets × (two layers of two heads): 12 cells, 24 estimates."""
    folder = tmp_path_factory.mktemp("sweeps") / "<script>&amp;"
    rllc.track(run, DATA, rllc.heads, store=folder, **QUICK)
    return folder


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory) -> Path:
    """The page of the finished sweep."""
    return report(finished, tmp_path_factory.mktemp("whole") / "page.html")


@pytest.fixture(scope="module")
def broken(finished, tmp_path_factory) -> tuple[Path, dict[str, Cell]]:
    """The page of a sweep with one cell not there, one failed, one damaged."""
    folder = tmp_path_factory.mktemp("broken") / "sweep"
    shutil.copytree(finished, folder)
    store = Store(folder)
    (plan,) = store.plans()
    cells = {(cell.step, cell.data, cell.weights[0]): cell for cell in plan.cells}
    chosen = {
        "missing": cells[20, "plain", "1:0"],
        "failed": cells[10, ODD, "0:0"],
        "damaged": cells[0, ODD, "0:0"],
    }
    store.path(chosen["missing"].name).unlink()
    store.path(chosen["failed"].name).unlink()
    store.fail(chosen["failed"].name, 'Error: <img src="http://x"> & so on')
    store.path(chosen["damaged"].name).write_bytes(b"damaged")
    return report(folder, num_traces=3), chosen


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """For tests of words: drawing takes most of the time."""
    no_image = '<img alt="{}" src="data:image/svg+xml;base64,">'
    monkeypatch.setattr(MODULE, "image", lambda axes, words: no_image.format(words))
    for name in ("plot_trajectory", "plot_traces"):
        monkeypatch.setattr(MODULE, name, lambda *_, **__: None)


def triples(rows: list[list[str]]) -> list[tuple[int, str, str]]:
    """``(step, weights, data)`` of the rows of Failed and Missing."""
    keys = []
    for steps, names, data, _ in rows:
        for step in steps.split(", "):
            keys += [(int(step), weights, data) for weights in names.split(", ")]
    return keys


# What the page says is what the store holds.


def test_a_finished_sweep(finished, whole) -> None:
    page, trajectory = Page(whole), rllc.Sweep.open(finished).trajectory()
    statuses = [status for row in trajectory.status for status in row]
    assert (
        "3 checkpoints × 4 weights × 2 data sets. 24 of 24 estimates are finished" in page.text[""]
    )
    assert f"{statuses.count('ok')} ok, 0 failed, 0 missing, 0 damaged." in page.text[""]
    assert "Nothing has failed." in page.text["Failed"]
    assert "Nothing is missing." in page.text["Missing"]

    wrong = trajectory.to_dataframe().query("status != 'ok'")
    header, *rows = page.rows["Every estimate that is not ok"]
    assert header == ["step", "weights", "data", "λ̂", "± se", "R-hat", "status"]
    assert [[*row[:3], row[6]] for row in rows] == [
        [str(r.step), r.weights, r.data, r.status] for r in wrong.itertuples()
    ]
    expected = [[*rounded(r.llc, r.standard_error), f"{r.rhat:.3g}"] for r in wrong.itertuples()]
    assert [row[3:6] for row in rows] == expected
    assert len(rows) > 0

    counts = dict(page.rows["Statuses"][1:])
    assert int(counts.get("ok", 0)) == statuses.count("ok")
    for kind in ("negative", "noise exceeds signal", "still falling"):
        assert int(counts.get(kind, 0)) == sum(f"{kind}:" in status for status in statuses)


def test_every_kind_of_fault_has_a_title_without_numbers() -> None:
    titles = [title_of(kind) for kind in PROBLEMS]
    assert len(set(titles)) == len(titles)
    for title in titles:
        assert not set(title) & set("{}:0123456789"), title
    assert title_of("diverged") == "diverged"


def test_limits_decide_what_is_not_ok(finished, tmp_path, no_figures) -> None:
    lax = LAX
    page = Page(report(finished, tmp_path / "page.html", limits=lax))
    counts = dict(page.rows["Statuses"][1:])
    trajectory = rllc.Sweep.open(finished).trajectory(lax)
    kinds = [fault.kind for row in trajectory.faults for faults in row for fault in faults]
    assert set(kinds) == {"negative"}
    assert counts == {"ok": str(24 - len(kinds)), "negative": str(len(kinds))}


def test_settings_and_versions(finished, run, whole) -> None:
    shown = dict(Page(whole).rows["Settings and versions"])
    settings = dict(rllc.Sweep.open(finished).settings)
    for name, fingerprint in settings.pop("fingerprints").items():
        assert shown[f"data {name}, SHA-256"] == fingerprint
    for name, value in settings.items():
        assert shown[name] == ("–" if value is None else str(value))
    assert shown["loss"] == "next token"
    assert shown["weights"] == "0:0, 0:1, 1:0, 1:1"
    assert shown["steps"] == "0, 10, 20"
    assert (shown["checkpoints"], shown["store"]) == (str(run), str(finished))
    assert shown["rllc, version"] == shown["this page, by rllc"] == rllc.__version__
    assert shown["numpy, version"] == np.__version__


def test_versions_that_changed_are_all_told(finished, tmp_path) -> None:
    (plan,) = Store(finished).plans()
    for version in (plan.versions["torch"], "9.9"):
        Store(tmp_path).announce(replace(plan, versions=plan.versions | {"torch": version}))
    shown = dict(Page(report(tmp_path)).rows["Settings and versions"])
    assert shown["torch, version"] == f"{plan.versions['torch']}, then 9.9"


def test_missing_failed_and_damaged(broken) -> None:
    path, cells = broken
    page = Page(path)
    assert "18 of 24 estimates are finished" in page.text[""]
    assert ", 2 failed, 2 missing, 2 damaged." in page.text[""]
    for what in ("failed", "missing"):
        header, *rows = page.rows[what.capitalize()]
        assert header == ["steps", "weights", "data", "reason"]
        assert triples(rows) == [
            (cells[what].step, w, cells[what].data) for w in cells[what].weights
        ]
    assert page.rows["Failed"][1][3] == 'Error: <img src="http://x"> & so on'
    last = [
        row for row in page.rows["Every estimate that is not ok"] if row[6].startswith("damaged")
    ]
    assert [row[:6] for row in last] == [["0", w, ODD, "–", "–", "–"] for w in ("0:0", "0:1")]
    counts = dict(page.rows["Statuses"][1:])
    assert [counts[kind] for kind in ("failed", "missing", "damaged")] == ["2"] * 3


def test_many_missing_are_few_rows(finished, tmp_path, no_figures) -> None:
    folder = tmp_path / "few"
    shutil.copytree(finished, folder)
    for cell in Store(folder).plans()[0].cells:
        if cell.data == ODD:
            Store(folder).path(cell.name).unlink()
    page = Page(report(folder))
    assert page.rows["Missing"][1:] == [
        ["0, 10, 20", "0:0, 0:1, 1:0, 1:1", ODD, "not finished yet"]
    ]
    assert sorted(triples(page.rows["Missing"][1:])) == sorted(rllc.Sweep.open(folder).missing)
    assert f"On {ODD} there is no estimate yet." in page.text["Over training"]
    assert len(page.images["Over training"]) == 2  # of the other data, two layers


def test_a_sweep_that_has_just_begun_needs_no_matplotlib(finished, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Store(tmp_path).announce(Store(finished).plans()[0])
    page = Page(report(tmp_path))
    assert page.images == {}
    assert (
        "Not one of 24 estimates is finished: 0 ok, 0 failed, 24 missing, 0 damaged."
        in page.text[""]
    )
    assert "The last cell" not in page.text[""]
    assert "There is no R-hat yet." in page.text["Traces of the worst R-hat"]
    assert len(triples(page.rows["Missing"][1:])) == 24


# What the script draws.


def numbers_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    (inside,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', text)
    return json.loads(inside)


def test_the_numbers_of_the_script_are_those_of_the_store(broken) -> None:
    path, _ = broken
    numbers = numbers_of(path)
    trajectory = rllc.Sweep.open(path.parent).trajectory()
    assert numbers["steps"] == list(trajectory.steps)
    columns = numbers["columns"]
    assert [(column["weights"], column["data"]) for column in columns] == list(trajectory.names)
    half_width = trajectory.mean.half_width()
    for k, column in enumerate(columns):
        for name, array in (("value", trajectory.value), ("half", half_width)):
            shown = np.array(column[name], dtype=float)
            np.testing.assert_allclose(shown, array[:, k], rtol=1e-3)
        for row, number in enumerate(column["status"]):
            text, kinds = numbers["statuses"][number]
            assert text == trajectory.status[row][k]
            assert set(kinds) == {fault.kind for fault in trajectory.faults[row][k]}


def test_rows_and_statuses_lead_to_each_other(broken) -> None:
    """A row says its kinds, and which curve it is of; a status says which rows are its own."""
    page = Page(broken[0])
    kinds = [value.split() for _, name, value in page.attributes if name == "data-kinds"]
    linked = [value for tag, name, value in page.attributes if (tag, name) == ("a", "data-kind")]
    counts = dict(page.rows["Statuses"][1:])
    assert linked
    for kind in linked:
        assert sum(kind in of_row for of_row in kinds) == int(counts[title_of(kind)])
    steps = [value for tag, *pair, value in page.attributes if (tag, *pair) == ("a", "data-step")]
    assert steps == [row[0] for row in page.rows["Every estimate that is not ok"][1:]]
    order = list(page.text)
    assert order.index("Statuses") < order.index("Settings and versions") == len(order) - 1


# Figures.


def test_traces_are_of_the_worst_r_hat(finished, tmp_path, no_figures) -> None:
    table = rllc.Sweep.open(finished).trajectory().to_dataframe()
    table = table.sort_values("rhat", ascending=False)
    for count in (3, 100):
        page = Page(report(finished, tmp_path / "page.html", num_traces=count))
        pattern = r"Step (\d+), (\S+) on (.*): R-hat ([\d.]+); "
        matches = [re.match(pattern, caption) for caption in page.captions]
        shown = [match.groups() for match in matches if match]
        expected = []
        for row in table[:count].itertuples():
            expected.append((str(row.step), row.weights, row.data, f"{row.rhat:.3f}"))
        assert shown == expected
        assert len(page.images.get("Traces of the worst R-hat", ())) == min(count, 24)
    page = Page(report(finished, tmp_path / "page.html", num_traces=0))
    assert "None were asked for." in page.text["Traces of the worst R-hat"]


@pytest.mark.slow
def test_traces_show_all_chains_of_several_cells(run, tmp_path, monkeypatch, no_figures) -> None:
    shown = []
    plot_traces = MODULE.plot_traces

    def recording(draws: rllc.Draws, **options):
        shown.append(draws)
        return plot_traces(draws, **options)

    monkeypatch.setattr(MODULE, "plot_traces", recording)
    first = rllc.checkpoints(run)[:1]
    for num_chains in (1, 3):
        settings = quick(num_draws=8, num_chains=num_chains)
        rllc.track(first, DATA["plain"], ["1:0"], store=tmp_path, **settings)
    report(tmp_path)
    store = Store(tmp_path)
    parts = [store.read(name) for name in store.finished()]
    parts.sort(key=lambda draws: draws.loss.shape[1])
    assert [part.loss.shape[1] for part in parts] == [1, 2]
    (draws,) = shown
    assert np.array_equal(draws.llc[0], np.concatenate([part.llc[0] for part in parts]))


def test_trajectories_have_a_panel_a_layer_and_one_scale(finished, tmp_path, monkeypatch) -> None:
    import matplotlib.pyplot as plt

    open_figures, backend = plt.get_fignums(), matplotlib.get_backend()
    start = datetime.now(UTC)
    drawn: dict[str, list] = {}
    plot_trajectory = MODULE.plot_trajectory

    def recording(trajectory: rllc.Trajectory, data: str, ax: list) -> None:
        drawn[data] = ax
        plot_trajectory(trajectory, data, ax=ax)

    monkeypatch.setattr(MODULE, "plot_trajectory", recording)
    page = Page(report(finished, tmp_path / "page.html", num_traces=0))
    expected = [f"λ̂ over training on {data}, layer {layer}" for data in DATA for layer in (0, 1)]
    assert [alt for alt, _ in page.images["Over training"]] == expected
    trajectory = rllc.Sweep.open(finished).trajectory()
    for data, axes in drawn.items():
        assert len({ax.get_ylim() for ax in axes}) == 1
        for layer, ax in enumerate(axes):
            shown = {str(line.get_label()): line.get_ydata() for line in ax.get_lines()}
            heads = [label for label in shown if ":" in label]
            assert set(heads) == {f"{layer}:0", f"{layer}:1"}
            for head in heads:
                values = [trajectory.at(step)[head, data].value for step in trajectory.steps]
                assert np.array_equal(shown[head], values)
    assert (plt.get_fignums(), matplotlib.get_backend()) == (open_figures, backend)
    made = next(
        value for tag, name, value in page.attributes if (tag, name) == ("time", "datetime")
    )
    assert start <= datetime.fromisoformat(made) <= datetime.now(UTC)


# A page like any other.


def test_names_are_text_and_nothing_is_fetched(broken, whole) -> None:
    for path, name, traces in ((broken[0], "sweep", 3), (whole, "<script>&amp;", 6)):
        page = Page(path)
        assert not {"b", "link", "iframe", "object", "base"} & set(page.tags)
        # The numbers, and the one script that the policy names by its hash.
        assert page.tags["script"] == 2
        hrefs = [value for tag, name, value in page.attributes if name == "href"]
        ids = [value for _, name, value in page.attributes if name == "id"]
        assert hrefs
        assert {href.removeprefix("#") for href in hrefs} <= set(ids)
        assert len(set(ids)) == len(ids)
        assert page.tags["title"] == page.tags["h1"] == 1
        assert f"{name}: refined LLCs over training" in page.text[""]
        for tag, attribute, value in page.attributes:
            assert not (value or "").startswith(("http:", "https:", "//", "file:")), (
                tag,
                attribute,
            )
            assert not attribute.startswith("on")
        policy = next(value for _, _, value in page.attributes if "default-src" in (value or ""))
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        assert policy == (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'"
        )
        assert f"<script>{SCRIPT}</script>" in path.read_text(encoding="utf-8")
        style = re.search(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.S)[1]
        assert "url(" not in style
        assert "@import" not in style
        images = [picture for shown in page.images.values() for picture in shown]
        assert len(images) == 4 + traces
        for alt, svg in images:
            assert re.search(r"on (<b>&\"x'|plain)", alt)
            for element in ET.fromstring(svg).iter():
                assert not element.tag.endswith(("}script", "}image", "}foreignObject"))
                for attribute, value in element.attrib.items():
                    assert not attribute.endswith("href") or value.startswith("#")


@pytest.mark.slow
def test_the_page_is_made_again_in_the_store(run, tmp_path, monkeypatch, no_figures) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = rllc.checkpoints(run)
    rllc.track(checkpoints[:1], DATA["plain"], ["0:1"], store="sweep", **QUICK)
    assert report("sweep") == Path("sweep/report.html")
    assert "1 of 1 estimates are finished" in Page(Path("sweep/report.html")).text[""]
    rllc.track(checkpoints, DATA["plain"], ["0:1"], store="sweep", **QUICK)
    assert "3 of 3 estimates are finished" in Page(report("sweep")).text[""]
    assert rllc.Sweep.open("sweep").missing == ()  # it does not disturb the store
    assert not list(Path("sweep").glob(".*.tmp"))


# Errors.


def test_errors_say_what_to_do(finished, tmp_path, monkeypatch) -> None:
    with pytest.raises(
        rllc.FileError,
        match=r"report\('.*nowhere'\): there is no sweep in it; expected a folder that",
    ):
        report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(
            rllc.InputError, match="`num_traces` must be a whole number from 0 up, got"
        ):
            report(finished, tmp_path / "page.html", num_traces=wrong)
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        rllc.FileError, match=r"report: writing .*folder failed .*; give another file as `path`"
    ):
        report(finished, tmp_path / "folder", num_traces=0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(rllc.InputError, match=r"need matplotlib; type: pip install 'rllc\[plot\]'"):
        report(finished, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# In a browser.


def browse(page: Path, folder: Path, *flags: str) -> str:
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-gpu",
        "--disable-quic",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [BROWSER, "--headless", *quiet, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_it(broken, tmp_path) -> None:
    import matplotlib.image

    page = broken[0]

    dom = tmp_path / "dom.html"
    dom.write_text(browse(page, tmp_path, "--dump-dom"), encoding="utf-8")
    as_seen, as_written = Page(dom), Page(page)
    assert as_seen.captions == as_written.captions
    assert as_seen.rows == as_written.rows
    for width in (1200, 500):  # a desk and a phone; narrower windows are not given
        flags = (f"--screenshot={tmp_path / 'seen.png'}", f"--window-size={width},2400")
        browse(page, tmp_path, *flags)
        pixels = matplotlib.image.imread(tmp_path / "seen.png")
        assert pixels.shape[:2] == (2400, width)
        assert (tmp_path / "seen.png").stat().st_size > 50_000
        for color in (
            (0, 114, 178),
            (213, 94, 0),
        ):  # of the first two heads and chains: the figures are shown
            assert (np.abs(pixels[..., :3] * 255 - color).max(-1) < 2).sum() > 200
        assert pixels[:, -8:, :3].min() == 1.0  # nothing runs off the screen


MADE_UP_STEPS = (0, *(round(10 * 1.08**k) for k in range(106)))


def of_a_large_sweep() -> rllc.Trajectory:
    """107 checkpoints × 16 heads × 3 data sets, a third of them not ok."""
    heads = [f"{layer}:{head}" for layer in range(2) for head in range(8)]
    names = Names.of((head, data) for head in heads for data in ("pile", "code", "js"))
    shape = (len(MADE_UP_STEPS), len(names))
    stream = np.random.default_rng(0)
    rise = np.linspace(0, 10, shape[0])[:, None]
    value = rise * stream.uniform(0.5, 2, shape[1]) + stream.normal(size=shape)
    spikes = rllc.estimates.Fault("spikes", {"draws": 3}, "lower lr")
    faults = []
    for row in stream.random(shape) < 1 / 3:
        faults.append(tuple((spikes,) if wrong else () for wrong in row))
    ones = np.ones(shape)
    return rllc.Trajectory(
        steps=MADE_UP_STEPS,
        value=value,
        standard_error=0.3 * ones,
        dof=9 * ones,
        rhat=ones,
        ess=100 * ones,
        per_chain=np.ones((*shape, 4)),
        faults=tuple(faults),
        names=names,
        settings=rllc.sgld().settings | rllc.Sampling().settings,
    )


def driven(page: Path, actions: str, folder: Path) -> dict[str, Any]:
    """What some script sees after it has done something, in a copy that lets it run."""
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"script-src 'sha256-[^']*'", text)[0]
    text = text.replace(policy, "script-src 'unsafe-inline'")
    report_back = (
        f"<script>const seen = {{}}; {actions}; const out = document.createElement('pre'); "
        f"out.id = 'seen'; out.textContent = JSON.stringify(seen); document.body.append(out);"
        f"</script></body>"
    )
    copy = folder / "driven.html"
    copy.write_text(text.replace("</body>", report_back), encoding="utf-8")
    dom = browse(copy, folder, "--dump-dom")
    (seen,) = re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.S)
    return json.loads(html.unescape(seen))


@pytest.mark.slow
@needs_browser
def test_a_head_is_picked_and_statuses_filter_in_a_browser(broken, tmp_path) -> None:
    actions = """
    const id = name => document.getElementById(name);
    const said = () => id("said").textContent;
    const press = key => id("curve").dispatchEvent(new KeyboardEvent("keydown", {key}));
    seen.first = said();
    press("ArrowLeft"); seen.left = said();
    press("Home"); seen.home = said();
    const rows = () => [...document.querySelectorAll("tr[data-kinds]")].filter(r => !r.hidden);
    seen.all = rows().length;
    const link = document.querySelector("a[data-kind]");
    link.click();
    seen.kind = link.dataset.kind;
    seen.fitting = rows().every(r => r.dataset.kinds.split(" ").includes(seen.kind));
    seen.some = rows().length;
    seen.count = id("shown").textContent;
    const last = [...document.querySelectorAll("a[data-step]")].pop();
    last.click();
    seen.asked = [last.dataset.head, last.dataset.data, last.dataset.step];
    seen.picked = said();
    id("head").value = "1:1"; id("head").dispatchEvent(new Event("change"));
    seen.changed = said();
    seen.markup = document.querySelectorAll("#said *, #curve img").length;
    seen.marks = id("curve").querySelectorAll("circle:not(.chosen), text[class]").length;
    seen.focus = id("curve").tabIndex;
    const trace = document.querySelector("figure[data-head]");
    const [of_head, of_data] = [trace.dataset.head, trace.dataset.data];
    id("head").value = of_head; id("data").value = of_data;
    id("head").dispatchEvent(new Event("change"));
    seen.framed = trace.classList.contains("picked");
    const frames = [...document.querySelectorAll("figure.picked")].map(f => f.dataset);
    seen.only = frames.every(f => f.head === of_head && f.data === of_data);
    """
    seen = driven(broken[0], actions, tmp_path)
    trajectory = rllc.Sweep.open(broken[0].parent).trajectory()
    assert seen["first"].startswith(f"0:0 on {ODD} at step 20: λ̂ = ")
    assert seen["first"].endswith(trajectory.status[2][0])
    assert " at step 10: no value; failed" in seen["left"] or "at step 10: " in seen["left"]
    assert " at step 0: " in seen["home"]
    assert seen["fitting"]
    assert 0 < seen["some"] <= seen["all"]
    assert seen["count"] == f"{seen['some']} of {seen['all']} rows are shown."
    weights, data, step = seen["asked"]
    assert seen["picked"].startswith(f"{weights} on {data} at step {step}: ")
    assert seen["changed"].startswith(f"1:1 on {data} at step {step}: ")
    assert seen["markup"] == 0
    assert seen["marks"] == 3
    assert seen["focus"] == 0
    assert seen["framed"]
    assert seen["only"]


@pytest.mark.slow
@needs_browser
def test_a_large_page_is_small_and_quick(tmp_path) -> None:
    trajectory = of_a_large_sweep()
    assert trajectory.value.shape == (107, 48)
    sections = {
        "Over training": MODULE._trajectories(trajectory),
        "One curve": [MODULE._one(trajectory)],
        "Statuses": [MODULE._statuses(trajectory)],
        "Every estimate that is not ok": MODULE._not_ok(trajectory),
    }
    path = tmp_path / "large.html"
    now = datetime.now(UTC)
    pieces = MODULE.page("large", "made up", now, sections, MODULE._script(trajectory))
    path.write_text("".join(pieces), encoding="utf-8")
    assert path.stat().st_size < 6e6
    actions = "seen.milliseconds = performance.now(); seen.said = said.textContent"
    seen = driven(path, actions, tmp_path)
    assert seen["said"].startswith("0:0 on pile at step ")
    # Two seconds on a machine of one's own; tests share theirs.
    assert seen["milliseconds"] < 8000
    for width in (1200, 500):
        shot = tmp_path / f"{width}.png"
        dark = "--blink-settings=preferredColorScheme=0" if width == 500 else "--lang=en"
        browse(path, tmp_path, dark, f"--screenshot={shot}", f"--window-size={width},1600")
        assert shot.stat().st_size > 20_000
