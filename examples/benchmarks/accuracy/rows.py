"""The rows of the table, and what of them holds."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

LARGEST_Z = 4.0
LARGEST_ERROR = 0.01
LARGEST_RELATIVE_ERROR = 0.05
COLUMNS = [
    "problem",
    "sampler",
    "library",
    "settings",
    "kind",
    "truth",
    "estimate",
    "± se",
    "z",
    "error",
    "seconds",
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    problem: str
    sampler: str
    library: str
    settings: str
    kind: str
    """``"law"`` or ``"λ"``."""
    truth: float
    estimate: float
    error: float
    seconds: float

    @property
    def z(self) -> float:
        """How many standard errors the estimate is off."""
        return (self.estimate - self.truth) / self.error

    @property
    def relative(self) -> float:
        """By what share of the truth the estimate is off."""
        return self.estimate / self.truth - 1

    @property
    def cells(self) -> list[str]:
        """As printed; z of law rows only, since a λ row's error leaves out that of its form."""
        return [
            self.problem,
            self.sampler,
            self.library,
            self.settings,
            self.kind,
            f"{self.truth:.5g}",
            f"{self.estimate:.5g}",
            f"{self.error:.2g}",
            f"{self.z:+.2f}" if self.kind == "law" else "",
            f"{100 * self.relative:+.2f} %",
            f"{self.seconds:.1f}",
        ]


def line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def verdict(rows: Sequence[Row]) -> str:
    """What holds of what is judged, in words."""
    ours = [row for row in rows if row.library == "rllc"]
    laws = [row for row in ours if row.kind == "law"]
    lambdas = [row for row in ours if row.kind == "λ"]

    def others(row: Row) -> list[Row]:
        """What other libraries give for the same λ."""
        return [
            other
            for other in rows
            if (other.problem, other.kind) == (row.problem, "λ") and other.library != "rllc"
        ]

    def is_nearest(row: Row) -> bool:
        # An estimate that is NaN is not nearer.
        return not any(abs(other.relative) <= abs(row.relative) for other in others(row))

    compared = [row for row in lambdas if others(row)]
    return "\n".join(
        [
            count(laws, f"|z| < {LARGEST_Z:g}", lambda row: abs(row.z) < LARGEST_Z),
            count(
                laws,
                f"standard error ≤ {LARGEST_ERROR:.0%}",
                lambda row: row.error <= LARGEST_ERROR * abs(row.truth),
            ),
            count(
                lambdas,
                f"relative error ≤ {LARGEST_RELATIVE_ERROR:.0%}",
                lambda row: abs(row.relative) <= LARGEST_RELATIVE_ERROR,
            ),
            count(compared, "nearer to λ than devinterp", is_nearest),
        ]
    )


def count(rows: Sequence[Row], what: str, holds: Callable[[Row], bool]) -> str:
    """Of how many rows something holds, and of which it does not."""
    failing = [row for row in rows if not holds(row)]
    kind = rows[0].kind if rows else "no"
    words = f"{kind} rows, {what}: {len(rows) - len(failing)} of {len(rows)}"
    return words + "".join(f"; not {row.problem}, {row.sampler}" for row in failing)


def write(rows: Sequence[Row], words: str, folder: Path) -> None:
    """Write ``accuracy.md`` and ``accuracy.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line(COLUMNS), line(["---"] * len(COLUMNS))]
    lines += [line(row.cells) for row in rows]
    table = "\n".join(lines)
    (folder / "accuracy.md").write_text(f"{table}\n\n{words}\n")
    with open(folder / "accuracy.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(field.name for field in fields(Row)), "z", "relative"])
        for row in rows:
            writer.writerow([*vars(row).values(), row.z, row.relative])
