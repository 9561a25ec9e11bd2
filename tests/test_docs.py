"""The API pages are made from the docstrings by one command, and nothing in them is unresolved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pdoc")


@pytest.mark.slow
def test_pages_are_made_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "rllc", "-o", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert made.returncode == 0, made.stderr
    assert "Warn" not in made.stderr, made.stderr
    page = (tmp_path / "rllc" / "samplers.html").read_text()
    assert "sgld" in page
