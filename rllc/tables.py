"""Results as tables: text in a terminal, HTML in a notebook, and how many digits numbers have."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from rllc.weights.names import Names

MOST_ROWS = 50
"""Longer tables are cut. 16 heads on three data sets are shown whole."""

_FIRST_ROWS, _LAST_ROWS = 40, 4
"""The rows that a cut table shows."""

_MOST_DECIMALS = 6
"""Numbers whose error needs more are written with an exponent."""

_FIGURE_SPACE = "\u2007"

UNKNOWN = "–"
"""The text in place of a number that is not known."""

_WRONG = "color:#c4450c;font-weight:600"
"""Readable on white and on black, and for the colour-blind; words say the same."""


@dataclass(frozen=True)
class Table:
    """Rows under a header: ``str(table)`` is text, and a notebook shows HTML, without any script.

    >>> print(Table("Two", [("head", "loss"), ("0:1", "0.25"), ("0:2", "12.5")]))
    Two
    head   loss
    0:1    0.25
    0:2   12.5

    Args:
        title: the lines above.
        rows: the header, then the rows.
        left: columns that are aligned to the left. The others are numbers, aligned at the point.
        wrong: (row, column) of cells that say in words what is wrong, counted without the header:
            HTML colours them.
        notes: the lines below.
        see_all: what to type to see all rows of a table that is cut.
        most_rows: from how many rows on it is cut.
    """

    title: str
    rows: Sequence[Sequence[str]]
    left: Collection[int] = (0,)
    wrong: Collection[tuple[int, int]] = ()
    notes: Sequence[str] = ()
    see_all: str = "print(….to_dataframe().to_string())"
    most_rows: int = MOST_ROWS

    def __str__(self) -> str:
        header, *body = self._aligned()
        lines = [header]
        for place, row in enumerate(self._shown):
            if self._num_hidden and place == _FIRST_ROWS:
                blanks = [""] * (len(header) - 1)
                lines.append(("…", *blanks))
            lines.append(body[row])
        widths = []
        for column_of_cells in zip(*lines, strict=True):
            longest = max(map(len, column_of_cells))
            widths.append(longest)
        texts = [self.title]
        for line in lines:
            cells = []
            for column, cell in enumerate(line):
                width = widths[column]
                if column in self.left:
                    cells.append(cell.ljust(width))
                else:
                    cells.append(cell.rjust(width))
            texts.append("  ".join(cells).rstrip())
        return "\n".join([*texts, *self._all_notes])

    def _repr_html_(self) -> str:
        return self.html()

    def html(self) -> str:
        """Return the same as HTML: everything escaped, and nothing fetched or run."""
        header, *body = self._aligned()
        head = self._html_row(header, "th", ())
        lines = [f"<thead>{head}</thead><tbody>"]
        for place, shown_row in enumerate(self._shown):
            if self._num_hidden and place == _FIRST_ROWS:
                lines.append(f'<tr><td colspan="{len(header)}">…</td></tr>')
            wrong = [column for row, column in self.wrong if row == shown_row]
            lines.append(self._html_row(body[shown_row], "td", wrong))
        written = "\n".join(lines)
        table = f'<table style="font-variant-numeric:tabular-nums">{written}</tbody></table>'
        above = [_paragraph(line) for line in self.title.splitlines() if line]
        below = [_paragraph(note) for note in self._all_notes]
        return "\n".join(["<div>", *above, table, *below, "</div>"])

    def _html_row(self, cells: Sequence[str], tag: str, wrong: Collection[int]) -> str:
        parts = []
        for column, cell in enumerate(cells):
            side = "left" if column in self.left else "right"
            style = f"text-align:{side};white-space:pre-wrap"
            if column in wrong:
                style += f";{_WRONG}"
            # Trailing blanks align numbers at the point; a figure space is as wide as a digit.
            content = cell.rstrip()
            num_blanks = len(cell) - len(content)
            text = escape(content) + _FIGURE_SPACE * num_blanks
            parts.append(f'<{tag} style="{style}">{text}</{tag}>')
        row = "".join(parts)
        return f"<tr>{row}</tr>"

    def _aligned(self) -> list[tuple[str, ...]]:
        """Return the rows with blanks behind numbers, so that their points stand below each other.

        The header stands above the digits, so it gets as many.
        """
        columns = []
        for number, column in enumerate(zip(*self.rows, strict=True)):
            header, *cells = column
            are_numbers = all(map(_is_number, cells))
            if are_numbers and number not in self.left:
                column = (header, *_aligned_at_point(cells))
            columns.append(column)
        return list(zip(*columns, strict=True))

    @property
    def _num_hidden(self) -> int:
        count = len(self.rows) - 1
        if count <= self.most_rows:
            return 0
        return count - _FIRST_ROWS - _LAST_ROWS

    @property
    def _shown(self) -> list[int]:
        """Which rows are shown."""
        rows = list(range(len(self.rows) - 1))
        if not self._num_hidden:
            return rows
        return [*rows[:_FIRST_ROWS], *rows[-_LAST_ROWS:]]

    @property
    def _all_notes(self) -> list[str]:
        notes = list(self.notes)
        if self._num_hidden:
            count = len(self.rows) - 1
            cut = f"… {self._num_hidden} of {count} rows are not shown"
            notes.append(f"{cut}; all: {self.see_all}")
        return notes


class AsTable(ABC):
    """A result that is shown as a table: text at a prompt, HTML in a notebook.

    Its class says which, in ``_table``. A dataclass also says ``repr=False``: it would otherwise
    get another ``__repr__`` than this one.
    """

    @property
    @abstractmethod
    def _table(self) -> Table: ...

    def __str__(self) -> str:
        return str(self._table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self._table.html()


class Shown(str):
    """Text that a prompt shows as it is, and a notebook as HTML.

    >>> Shown("two\\nlines", "<p>two lines</p>")
    two
    lines
    """

    html: str

    def __new__(cls, text: str, html: str) -> Shown:
        """Make it of text and HTML."""
        shown = super().__new__(cls, text)
        shown.html = html
        return shown

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html


def label(names: Names, i: int) -> str:
    """Return a refinement's name: its weights, and its data where there are several.

    >>> from rllc.weights.names import Names
    >>> label(Names(("0:1", "0:1"), ("code", "prose")), 1)
    '0:1 on prose'
    """
    if len(names.data_sets) == 1:
        return names.weights[i]
    return f"{names.weights[i]} on {names.data[i]}"


def rounded(value: float, error: float) -> tuple[str, str]:
    """Return a number and its standard error, which decides how many digits both have.

    The error has two: more say nothing, and one would be off by up to a half.

    >>> rounded(4.2345, 0.1234), rounded(1234.5, 87.6), rounded(0.5, float("nan"))
    (('4.23', '0.12'), ('1234', '88'), ('0.5', '–'))

    Args:
        value: NaN becomes a dash.
        error: where it is 0 or not known, the number has four digits.
    """
    if error == 0:
        return number(value), "0"
    if not math.isfinite(error) or error < 0:
        return number(value), UNKNOWN
    error_of_two_digits = float(f"{error:.1e}")
    exponent = math.floor(math.log10(error_of_two_digits))
    decimals = max(1 - exponent, 0)
    if decimals > _MOST_DECIMALS:
        return number(value), f"{error:.1e}"
    return _fixed(value, decimals), _fixed(error, decimals)


def number(value: float, digits: int = 4) -> str:
    """Return a number whose error is not known, with so many digits; NaN becomes a dash.

    >>> number(0.123456), number(float("nan"))
    ('0.1235', '–')
    """
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.{digits}g}"


def with_error(value: float, error: float) -> str:
    """Return ``value ± error``, rounded as by :func:`rounded`.

    >>> with_error(4.2345, 0.1234)
    '4.23 ± 0.12'
    """
    return " ± ".join(rounded(value, error))


def not_ok(statuses: Sequence[str], column: int) -> list[tuple[int, int]]:
    """Return the cells of a column of statuses that say that something is wrong.

    >>> not_ok(["ok", "spikes"], column=4)
    [(1, 4)]
    """
    cells = []
    for row, status in enumerate(statuses):
        if status != "ok":
            cells.append((row, column))
    return cells


def with_columns_first(frame: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a data frame with these columns in front of its own."""
    frame = frame.assign(**columns)
    other_columns = frame.columns.drop(list(columns))
    return frame[[*columns, *other_columns]]


def duration(seconds: float) -> str:
    """Say how long something takes.

    >>> duration(0.25), duration(75), duration(9000)
    ('0.2 s', '1.2 min', '2.5 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _fixed(value: float, decimals: int) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.{decimals}f}"


def _aligned_at_point(numbers: Sequence[str]) -> list[str]:
    """Put blanks behind numbers, so that those aligned to the right have their points in line."""
    behind = [_digits_behind(number) for number in numbers]
    most = max(behind, default=0)
    padded = []
    for number, count in zip(numbers, behind, strict=True):
        has_digits = any(map(str.isdigit, number))
        blanks = " " * (most - count) if has_digits else ""
        padded.append(number + blanks)
    return padded


def _digits_behind(number: str) -> int:
    """Return the length of a number from its point on."""
    if "." not in number:
        return 0
    return len(number) - number.index(".")


def _is_number(text: str) -> bool:
    if text in ("", UNKNOWN):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "e" not in text


def _paragraph(text: str) -> str:
    return f'<p style="margin:0.3em 0">{escape(text)}</p>'
