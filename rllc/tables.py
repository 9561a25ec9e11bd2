"""Results as plain text: columns under a header."""

from __future__ import annotations

from collections.abc import Sequence


def table(title: str, rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows as aligned columns, the first row being the header.

    >>> print(table("Two", [("head", "loss"), ("0:1", "0.25")]))
    Two
    head  loss
    0:1   0.25

    Args:
        left: columns that are aligned to the left; the others, being numbers, to the right.
    """
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = (
        "  ".join(
            c.ljust(w) if k in left else c.rjust(w)
            for k, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join([title, *(line.rstrip() for line in lines)])
