"""Every figure of the gallery: no two words of one share a pixel, whatever the number of heads."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from texts import box_of

import rllc
from rllc.plots.figures import WIDEST

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gallery.py"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def words_of(figure: Figure) -> list[Text]:
    """All words that are drawn: of ticks only those within the axis."""
    words = [text for text in figure.texts if text.get_text()]
    if figure._supxlabel is not None:
        words.append(figure._supxlabel)
    for ax in figure.axes:
        words += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        if ax.get_legend() is not None:
            words += ax.get_legend().get_texts()
        for axis in (ax.xaxis, ax.yaxis):
            words += [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible()]
    return [text for text in dict.fromkeys(words) if text.get_text().strip()]


def overlaps(axes: Any) -> list[tuple[str, str]]:
    """Pairs of words that share more than the rounding of a pixel."""
    figure = np.ravel(np.array(axes, dtype=object))[0].figure
    figure.canvas.draw()
    boxes = [(text.get_text(), box_of(text).padded(-0.5)) for text in words_of(figure)]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def all_boxes_are_within(axes: Any) -> bool:
    figure = np.ravel(np.array(axes, dtype=object))[0].figure
    frame = figure.bbox.padded(1)
    boxes = [box_of(text) for text in words_of(figure)]
    return all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)


def shows_something(figure: Figure) -> bool:
    """Whether there is an image, a bar, or a line or dots with a number."""
    for ax in figure.axes:
        lines = [line.get_ydata() for line in ax.lines]
        dots = [points.get_offsets() for points in ax.collections]
        if any(np.isfinite(np.asarray(y, dtype=float)).sum() > 2 for y in (*lines, *dots)):
            return True
        if ax.images or ax.patches:
            return True
    return False


def test_overlaps_are_seen() -> None:
    _, ax = plt.subplots()
    ax.text(0.5, 0.5, "one")
    assert not overlaps(ax)
    ax.text(0.51, 0.5, "two")
    assert overlaps(ax) == [("one", "two")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 16, 144])
def test_no_words_overlap_with_many_heads(gallery: ModuleType, count: int) -> None:
    for caption, draw in gallery.of_many((count,)):
        axes = draw()
        assert overlaps(axes) == [], caption
        assert all_boxes_are_within(axes), caption
        width, height = np.ravel(np.array(axes, dtype=object))[0].figure.get_size_inches()
        assert width <= 1.6 * WIDEST, caption
        assert height <= 13, caption
        plt.close("all")


def test_no_words_overlap_where_settings_are_chosen(gallery: ModuleType) -> None:
    for caption, draw in gallery.of_settings():
        assert overlaps(draw()) == [], caption
        plt.close("all")


@pytest.mark.slow
def test_no_words_overlap_in_figures_of_analyses(gallery: ModuleType) -> None:
    for caption, draw in gallery.of_analysis():
        # Words that are turned by less than a right angle have boxes larger than themselves.
        axes = draw()
        figure = np.ravel(np.array(axes, dtype=object))[0].figure
        assert shows_something(figure), caption
        turned = {t.get_text() for t in words_of(figure) if t.get_rotation() % 90}
        assert [pair for pair in overlaps(axes) if not turned & set(pair)] == [], caption
        plt.close("all")


def test_figures_are_lines_and_words_in_svg_and_pdf(gallery: ModuleType, tmp_path: Path) -> None:
    figure = np.ravel(rllc.plot_heads(gallery.estimate(16)))[0].figure
    figure.savefig(tmp_path / "heads.svg")
    assert "<image" not in (tmp_path / "heads.svg").read_text(encoding="utf-8")
    figure.savefig(tmp_path / "heads.pdf")
    assert b"/Subtype /Image" not in (tmp_path / "heads.pdf").read_bytes()


@pytest.mark.slow
def test_the_page_shows_every_figure_function(gallery: ModuleType, tmp_path: Path) -> None:
    pictures = gallery.main(["--tiny", "--out", str(tmp_path)])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for file in pictures.values():
        assert f'src="{file}"' in page
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    shown = {caption.split(",")[0] for caption in pictures}
    sources = (EXAMPLE.parents[1] / "rllc").rglob("*.py")
    functions = set()
    for source in sources:
        for line in source.read_text(encoding="utf-8").splitlines():
            if line.startswith("def plot_"):
                functions.add(line.removeprefix("def ").partition("(")[0])
    assert functions == shown
