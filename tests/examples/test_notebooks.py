"""The notebooks run from top to bottom, and still say what their stored outputs say."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import pytest

from rllc.estimates.faults import PROBLEMS

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LIKENESS = 0.9
"""Share of the words of a cell's output that must be as stored.

Numbers may differ from one processor to another, and with them a status that is near its limit.
"""

BEGINNINGS = "|".join(["ok", *(re.escape(words.split()[0]) for words in PROBLEMS.values())])
"""The first words of statuses."""


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell: Any) -> list[str]:
    """The words of what a cell printed, without its numbers.

    Nor with statuses, and the line on what doubling nβ would do: an estimate that is near a limit
    may be on either side of it on another processor.
    """
    texts = []
    for output in cell.outputs:
        is_stream = output.output_type == "stream"
        text = output.text if is_stream else output.data.get("text/plain", "")
        text = re.sub(r"^doubling nβ would .*$", "", text, flags=re.MULTILINE)
        text = re.sub(r"^\d+ of \d+ are not ok.*$", "", text, flags=re.MULTILINE)
        text = re.sub(r"^(\S+ +\S+(?: +[-\d.]+){4,}) .*$", r"\1", text, flags=re.MULTILINE)
        text = re.sub(rf"^(\d+:\d+): ({BEGINNINGS}).*$", r"\1", text, flags=re.MULTILINE)
        texts.append(text)
    return re.findall(r"[^\W\d_]{2,}", " ".join(texts))


def kinds(cell: Any) -> set[str]:
    """What kinds of output a cell has."""
    found = set()
    for output in cell.outputs:
        found |= {output.output_type} if output.output_type == "stream" else set(output.data)
    return found


def likeness(some: list[str], others: list[str]) -> float:
    return difflib.SequenceMatcher(None, some, others, autojunk=False).ratio()


def test_words_are_compared_and_numbers_are_not() -> None:
    def cell(text: str) -> Any:
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_code_cell(outputs=[output])

    stored = words(cell("1:0 code 152.9 ± 4.0 ok"))
    assert likeness(stored, words(cell("1:0 code 152.8 ± 4.1 ok"))) == 1
    near = words(cell("1:0  code  1.247  0.051  1.02  144  ok"))
    assert near == words(cell("1:0  code  1.251  0.061  1.02  150  imprecise (± 10%): more draws"))
    assert likeness(stored, words(cell("1:0 code nan diverged at step"))) < LIKENESS
    more = "1:0 code 152.9 ± 4.0 ok\ndoubling nβ would change λ̂ by +83 ± 9\n"
    assert words(cell(more)) == stored
    unstable = words(cell("of the heads\n1:0: unstable in the sharpest direction: lower lr\n"))
    assert unstable == words(cell("of the heads\n1:0: diverged: chain 0 at step 7; lower lr\n"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert any("image/png" in kinds(cell) for cell in cells)
    assert all(cell.execution_count for cell in cells), "run all cells before you save it"
    # A notebook that is opened on a page of text must not carry paths of somebody's machine.
    assert "/home/" not in path.read_text()
    assert "/tmp/" not in path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)  # each takes minutes, and CI runs three processes on two cores
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_says_the_same(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(fresh, timeout=1400, kernel_name="python3", resources=where).execute()
    for before, after in zip(code_cells(stored), code_cells(fresh), strict=True):
        assert kinds(before) == kinds(after), after.source
        assert likeness(words(before), words(after)) >= LIKENESS, after.source
