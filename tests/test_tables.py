"""Tables as text and as HTML, and how many digits numbers have."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny import QUIET, SHORT, tiny_model, tiny_tokens

import rllc
from rllc.analysis.ablation import ablate
from rllc.analysis.attention import scores
from rllc.calibration.calibrate import calibrate
from rllc.tables import Table, not_ok, number, rounded
from rllc.weights.names import Names

EVIL = "<script>alert('x')</script> & so on"


class Parsed(HTMLParser):
    """The cells and paragraphs of HTML, and its tags; what is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.styles: list[list[str]] = []
        self.paragraphs: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        assert {name for name, _ in attributes} <= {"style", "colspan"}
        if tag == "tr":
            self.rows.append([])
            self.styles.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.styles[-1].append(dict(attributes).get("style", ""))
        if tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        if self.open and self.open[-1] == "p":
            self.paragraphs[-1] += text


# Digits.


@pytest.mark.parametrize("exponent", range(-6, 4))
def test_an_error_has_two_digits_and_its_number_ends_where_it_does(exponent: int) -> None:
    stream = np.random.default_rng(exponent + 6)
    for _ in range(50):
        error = float(stream.uniform(1, 10) * 10.0**exponent)
        value = float(stream.normal() * 10 * error)
        shown_value, shown_error = rounded(value, error)
        assert abs(float(shown_error) - error) <= max(0.05 * error, 0.5 * (error >= 10))
        assert abs(float(shown_value) - value) <= max(0.051 * error, 0.5 * (error >= 10))
        if error < 10 and exponent > -5:
            digits = shown_error.replace(".", "").lstrip("0")
            assert len(digits) == 2, shown_error
            assert len(shown_value.partition(".")[2]) == len(shown_error.partition(".")[2])


def test_an_error_that_rounds_up_has_two_digits_all_the_same() -> None:
    assert rounded(1.0, 0.0999) == ("1.00", "0.10")
    assert rounded(1.0, 9.99) == ("1", "10")


def test_numbers_without_an_error() -> None:
    assert rounded(0.123456, math.nan) == ("0.1235", "–")
    assert rounded(0.0, 0.0) == ("0", "0")
    assert rounded(math.nan, 0.1) == ("–", "0.10")
    assert number(math.nan) == "–"


# Text.


def long_table(count: int) -> Table:
    rows = [("head", "llc"), *((f"{i // 12}:{i % 12}", f"{i}.5") for i in range(count))]
    return Table("Many", rows, wrong=[(0, 1), (count - 1, 1)], see_all="print(all)")


def test_the_points_of_numbers_stand_below_each_other() -> None:
    rows = [("head", "llc"), ("0:0", "1.25"), ("0:1", "123"), ("0:2", "–"), ("0:3", "-7.5")]
    _, header, *lines = str(Table("t", rows)).splitlines()
    ends = [line.find(".") if "." in line else len(line) for line in lines]
    assert ends[0] == ends[1] == ends[3]
    assert lines[2].endswith("–")
    assert header.split() == ["head", "llc"]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_short_table_is_whole(count: int) -> None:
    lines = str(long_table(count)).splitlines()
    assert len(lines) == 2 + count


def test_a_long_table_is_cut_and_says_how_to_see_all() -> None:
    lines = str(long_table(144)).splitlines()
    assert len(lines) == 2 + 40 + 1 + 4 + 1
    assert lines[41].split() == ["3:3", "39.5"]
    assert lines[42] == "…"
    assert lines[43].split() == ["11:8", "140.5"]
    assert lines[-1] == "… 100 of 144 rows are not shown; all: print(all)"
    page = Parsed(long_table(144).html())
    assert page.rows[41] == ["…"]
    assert [row[0] for row in page.rows[42:]] == ["11:8", "11:9", "11:10", "11:11"]
    assert page.paragraphs[-1] == lines[-1]
    # What is wrong keeps its colour, wherever it is shown.
    coloured = [i for i, styles in enumerate(page.styles) if "color" in styles[-1]]
    assert coloured == [1, 45]


# HTML.


def test_html_is_the_text_escaped_and_runs_nothing() -> None:
    rows = [("weights", EVIL), (EVIL, "1.0"), ("plain", "2.0")]
    table = Table(f"{EVIL}\nsecond line", rows, left=(0,), notes=[EVIL])
    page = Parsed(table.html())
    assert page.tags == {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.rows == [list(row) for row in rows]
    assert page.paragraphs == [EVIL, "second line", EVIL]
    assert table._repr_html_() == table.html()


def test_what_is_wrong_has_a_colour_and_words() -> None:
    statuses = ["ok", "spikes in 3 draws: lower lr"]
    rows = [("head", "status"), ("0:0", statuses[0]), ("0:1", statuses[1])]
    page = Parsed(Table("t", rows, left=(0, 1), wrong=not_ok(statuses, column=1)).html())
    assert ["color" in styles[1] for styles in page.styles] == [False, False, True]
    assert page.rows[2][1] == statuses[1]


# Every result.


def many_heads(count: int) -> rllc.Estimate:
    heads = tuple(f"{i // 12}:{i % 12}" for i in range(count))
    ones = np.ones(count)
    spikes = rllc.estimates.Fault("spikes", {"draws": 3}, "lower lr")
    return rllc.Estimate(
        value=np.arange(count) / 7,
        standard_error=0.123 * ones,
        dof=ones,
        rhat=ones,
        ess=100 * ones,
        per_chain=ones[:, None],
        faults=((spikes,), *[()] * (count - 1)),
        names=Names(heads, ("code",) * count),
        settings=rllc.sgld().settings | rllc.Sampling().settings,
    )


def test_an_estimate_of_144_heads_fits_a_screen() -> None:
    lines = repr(many_heads(144)).splitlines()
    assert len(lines) < 50
    assert max(map(len, lines[:-1])) <= 90
    assert lines[-2] == "1 of 144 are not ok: spikes (1)"
    assert "100 of 144 rows are not shown; all: print(estimate.to_dataframe()" in lines[-1]
    page = Parsed(many_heads(144)._repr_html_())
    assert page.rows[1] == [
        "0:0",
        "code",
        "0.00",
        "0.12",
        "1.00",
        "100",
        "spikes in 3 draws: lower lr",
    ]
    assert "color" in page.styles[1][6]
    assert "color" not in page.styles[2][6]


def test_results_are_html_in_a_notebook(tmp_path: Path) -> None:
    """Each row of the text is one of the HTML, with the same words."""
    model, tokens = tiny_model(), tiny_tokens()
    estimate = rllc.estimate(model, tokens, ["0:0", "0:1"], sampling=SHORT, compute=QUIET)
    grid = {"lr": [1e-3, 1e3], "n_beta": [30.0], "localization": [200.0]}
    calibration = calibrate(model, tokens, "0:0", sampling=SHORT, compute=QUIET, **grid)
    curve = rllc.calibration.Resolution(np.array([30.0, 60.0]), (estimate, estimate))
    trajectory = rllc.Trajectory.of({0: estimate, 10: replace(estimate, value=estimate.value + 1)})
    ablation = ablate(model, tokens)
    for result in (estimate, calibration, curve, trajectory, ablation, scores(model)):
        page = Parsed(result._repr_html_())
        text = "\n".join([*page.paragraphs, *(" ".join(row) for row in page.rows)])
        # Where a line is broken and how it is aligned may differ, the words may not.
        assert sorted(text.split()) == sorted(str(result).split()), type(result)


def test_what_weights_take_is_a_table_in_a_notebook() -> None:
    model = tiny_model()
    model.blocks[1].attn.W_Q.requires_grad_(False)
    shown = rllc.head("1:2").describe(model)
    assert repr(shown) == str(shown) == "".join(shown)
    page = Parsed(shown._repr_html_())
    first, *lines, last = str(shown).splitlines()
    assert page.paragraphs == [first, last]
    assert ["blocks.1.attn.W_Q", "(3, 12, 4)", "48", "144", "frozen"] in page.rows
    assert len(page.rows) == 1 + len(lines)
