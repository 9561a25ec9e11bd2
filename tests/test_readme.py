"""The README's Python runs from top to bottom, and its links lead somewhere."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_files_and_folders_that_it_names_are_there() -> None:
    named = re.findall(r"`(examples/[\w./]+)`", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    # A part of the standard library, and a fifth of the draws: what runs is the same.
    real = sysconfig.get_paths
    part = {"stdlib": str(Path(real()["stdlib"]) / "email")}
    monkeypatch.setattr(sysconfig, "get_paths", lambda *args: real(*args) | part)
    draws = '"num_draws": 24, "num_burnin_steps": 20, "num_steps_bw_draws": 2'
    assert README.count(draws) == 1
    short = README.replace(draws, '"num_draws": 8, "num_burnin_steps": 4')
    snippets = re.findall(r"```python\n(.*?)```", short, flags=re.DOTALL)
    assert len(snippets) >= 7
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    estimate = names["est"]
    assert len(estimate) == 16
    assert names["roles"]["1:0"] == "induction"
