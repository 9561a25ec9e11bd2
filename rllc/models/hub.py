"""Where files of checkpoints are: a repository of the Hugging Face hub, or a folder seen as one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from rllc.errors import FileError, nearest

T = TypeVar("T")

STATE_DICTS = (".pth", ".pt", ".safetensors")
"""How files end that hold one state dict."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

_DEPTHS = ("*", "*/*", "checkpoints/*/*")
"""As deep as checkpoints are in a folder. What lies deeper may be large."""


class Hub:
    """One repository of the Hugging Face hub, and the only use of a network in this package.

    Tests put a folder in its place.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def revisions(self) -> list[str]:
        """Names of branches and tags, each once."""
        import huggingface_hub

        refs = self._ask(lambda: huggingface_hub.list_repo_refs(self.repository))
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
        return list(dict.fromkeys(names))

    def commits(self) -> dict[str, str]:
        """Commits by branch and tag, as far as the hub says them; of the cache, without a network.

        A branch may move while a sweep runs; a commit may not.
        """
        import huggingface_hub

        try:
            refs = self._ask(lambda: huggingface_hub.list_repo_refs(self.repository))
        except FileError:
            return self._cached_commits()
        commits = {}
        for ref in [*refs.tags, *refs.branches]:
            commit = getattr(ref, "target_commit", None)
            if commit:
                commits[ref.name] = commit
        return commits

    def _cached_commits(self) -> dict[str, str]:
        import huggingface_hub

        name = f"models--{self.repository.replace('/', '--')}"
        refs = Path(huggingface_hub.constants.HF_HUB_CACHE) / name / "refs"
        commits = {}
        for path in refs.rglob("*"):
            if path.is_file():
                commits[path.relative_to(refs).as_posix()] = path.read_text().strip()
        return commits

    def files(self) -> list[str]:
        """Names of the files of the main revision, with ``/`` between folders."""
        import huggingface_hub

        return self._ask(lambda: huggingface_hub.list_repo_files(self.repository))

    def fetch(self, revision: str | None, patterns: list[str]) -> Path:
        """Download the files that match ``patterns``, unless they are cached.

        Returns:
            the folder they are in.
        """
        import huggingface_hub

        folder = self._ask(
            lambda: huggingface_hub.snapshot_download(
                self.repository, revision=revision, allow_patterns=patterns
            )
        )
        return Path(folder)

    def cached(self, revision: str | None, patterns: list[str]) -> set[Path]:
        """The cached files that match ``patterns``, by their places in the snapshot."""
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            snapshot = huggingface_hub.snapshot_download(
                self.repository, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return set()
        files: set[Path] = set()
        for pattern in patterns:
            matches = Path(snapshot).resolve().glob(pattern)
            files.update(path for path in matches if path.is_file())
        return files

    def delete(self, files: Collection[Path]) -> None:
        """Delete files of snapshots from the cache.

        What they point to goes too, unless another snapshot has it. The client's own
        ``delete_revisions`` removes whole revisions, or all of a repository when there is no other:
        with them what was cached earlier, and what another process is just downloading.
        """
        import huggingface_hub

        cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
        revisions = [revision for repository in cache.repos for revision in repository.revisions]
        cached = [file for revision in revisions for file in revision.files]
        kept_blobs = {file.blob_path for file in cached if file.file_path not in files}
        for file in cached:
            if file.file_path not in files:
                continue
            file.file_path.unlink(missing_ok=True)
            if file.blob_path not in kept_blobs:
                file.blob_path.unlink(missing_ok=True)

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except Exception as error:
            # The client raises its own errors, the operating system's and its HTTP library's.
            raise FileError(
                f"asking the Hugging Face hub for {self.repository!r}: {type(error).__name__}: "
                f"{error}. There is no local file or folder of that name either; for a local one, "
                f"check the path."
            ) from error


class Folder:
    """A local folder, seen as :class:`Hub` shows a repository. There is nothing to download."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def revisions(self) -> list[str]:
        """None: a folder holds one version of its files."""
        return []

    def files(self) -> list[str]:
        """Names of the files, with ``/`` between folders, as deep as checkpoints can be."""
        paths = [path for depth in _DEPTHS for path in self.path.glob(depth)]
        return [path.relative_to(self.path).as_posix() for path in paths if path.is_file()]

    def fetch(self, revision: str | None, patterns: list[str]) -> Path:
        """The folder itself."""
        return self.path


def is_on_hub(source: str) -> bool:
    """Whether a source can only be a repository: a hub id, and nothing of that name exists here."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never moves, and not a branch or tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def place_of(source: str) -> Folder | Hub:
    """The folder or repository that a source names.

    Raises:
        FileError: it is neither.
    """
    path = Path(source)
    if path.is_dir():
        return Folder(path)
    if _HUB_ID.fullmatch(source) and not source.endswith(STATE_DICTS):
        return Hub(source)
    hint = ""
    if path.parent.is_dir():
        neighbours = sorted(neighbour.name for neighbour in path.parent.iterdir())
        hint = f" In {path.parent}: {nearest(path.name, neighbours)}"
    raise FileError(f"loading {source}: there is no such file or folder.{hint}")
