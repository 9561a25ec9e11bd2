"""A hub that is a folder on this machine."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from rllc.errors import FileError


class FakeHub(NamedTuple):
    root: Path
    """Holds ``repository/revision/files``."""
    fetched: list[str]
    """Names of the files that were downloaded."""


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """In place of the hub: what is fetched is copied to a cache, matching files only."""
    root = tmp_path / "hub"
    fetched: list[str] = []

    class LocalHub:
        def __init__(self, repository: str) -> None:
            self.folder = root / repository
            if not self.folder.is_dir():
                raise FileError(f"no repository {repository}")

        def revisions(self) -> list[str]:
            return [folder.name for folder in self.folder.iterdir()]

        def files(self) -> list[str]:
            return self._files("main")

        def fetch(self, revision: str | None, patterns: list[str]) -> Path:
            revision = revision or "main"
            cache = tmp_path / "cache" / self.folder.name / revision
            for name in self._files(revision):
                if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    (cache / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.folder / revision / name, cache / name)
                    fetched.append(name)
            return cache

        def _files(self, revision: str) -> list[str]:
            folder = self.folder / revision
            files = [path for path in folder.rglob("*") if path.is_file()]
            return [path.relative_to(folder).as_posix() for path in files]

    monkeypatch.setattr("rllc.models.hub.Hub", LocalHub)
    return FakeHub(root, fetched)
