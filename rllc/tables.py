"""Results as plain text: columns under a header, and names of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rllc.names import Names


def table(title: str, rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return rows as aligned columns under a title.

    >>> print(table("Two", [("head", "loss"), ("0:1", "0.25")]))
    Two
    head  loss
    0:1   0.25

    Args:
        title: the first line.
        rows: the header, then the rows.
        left: columns that are aligned to the left; the others, being numbers, to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [title]
    for row in rows:
        cells = []
        for k, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if k in left else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def label(names: Names, i: int) -> str:
    """Return a refinement's name: its weights, and its data where there are several.

    >>> from rllc.names import Names
    >>> label(Names(("0:1", "0:1"), ("code", "prose")), 1)
    '0:1 on prose'
    """
    several = len(names.data_sets) > 1
    return names.weights[i] + (f" on {names.data[i]}" if several else "")
