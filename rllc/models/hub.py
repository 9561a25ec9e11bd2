"""Where files of checkpoints are: a repository of the Hugging Face hub, or a folder seen as one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from rllc.errors import FileError, InputError, first_line, nearest
from rllc.models.steps import STATE_DICTS

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

_DEPTHS = ("*", "*/*", "*/*/*")
"""Patterns as deep as checkpoints lie in a folder. Deeper folders may be large."""


class HubOptions(TypedDict, total=False):
    """Options that are passed on to the hub's client, with its names and meanings."""

    revision: str
    """A branch, tag or commit; a pattern such as ``"stage1-*"`` chooses among the revisions of a
    repository that has one a step."""
    subfolder: str
    """Where in the repository, or in the local folder, the checkpoints are."""
    cache_dir: str
    token: str | bool


def check_options(what: str, options: HubOptions) -> None:
    """Refuse a misspelt option, or one of another kind."""
    kinds: dict[str, Any] = dict.fromkeys(HubOptions.__annotations__, str)
    kinds["cache_dir"] = (str, Path)
    kinds["token"] = (str, bool)
    for name, value in options.items():
        if name not in kinds:
            raise InputError(f"{what}: there is no argument `{name}`; {nearest(name, kinds)}")
        if value is not None and not isinstance(value, kinds[name]):
            raise InputError(
                f"{what}: `{name}` is passed on to the Hugging Face hub and must be a text, got "
                f"{type(value).__name__}."
            )


class Hub:
    """One repository of the Hugging Face hub, and the only use of a network in this package.

    Tests put a folder in its place.

    Args:
        repository: its id.
        cache_dir: where the client keeps what it downloads; ``None``: where it usually does.
        token: of the user; ``None``: the one that is stored on this machine.
    """

    def __init__(
        self, repository: str, cache_dir: str | None = None, token: str | bool | None = None
    ) -> None:
        self.repository = repository
        self.of_cache: dict[str, Any] = {} if cache_dir is None else {"cache_dir": cache_dir}
        self.of_user: dict[str, Any] = {} if token is None else {"token": token}

    def revisions(self) -> list[str]:
        """Names of branches and tags, each once."""
        import huggingface_hub

        refs = self._ask(lambda: huggingface_hub.list_repo_refs(self.repository, **self.of_user))
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

    def files(self, revision: str | None = None) -> list[str]:
        """Names of the files of a revision (``None``: the main one), ``/`` between folders."""
        import huggingface_hub

        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        options |= self.of_user
        return self._ask(lambda: huggingface_hub.list_repo_files(self.repository, **options))

    def fetch(self, revision: str | None, patterns: list[str]) -> Path:
        """Download the files that match ``patterns``, unless they are cached.

        Returns:
            the folder they are in.
        """
        import huggingface_hub

        folder = self._ask(
            lambda: huggingface_hub.snapshot_download(
                self.repository,
                revision=revision,
                allow_patterns=patterns,
                **self.of_cache,
                **self.of_user,
            )
        )
        return Path(folder)

    def cached(self, revision: str | None, patterns: list[str]) -> set[Path]:
        """The cached files that match ``patterns``, by their places in the snapshot."""
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            snapshot = huggingface_hub.snapshot_download(
                self.repository,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=True,
                **self.of_cache,
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

        usual = huggingface_hub.constants.HF_HUB_CACHE
        cache = huggingface_hub.scan_cache_dir(self.of_cache.get("cache_dir", usual))
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
            # The client raises its own errors, the operating system's and its HTTP library's, one
            # from the other: pages of them, above the one line that helps.
            place = _beside(self.repository)
            raise FileError(
                f"{self.repository!r}: there is no such file or folder here{place}, "
                f"and the Hugging Face hub did not give it either ({type(error).__name__}: "
                f"{first_line(error).rstrip('.')})."
            ) from None


class Folder:
    """A local folder, seen as :class:`Hub` shows a repository. There is nothing to download."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def revisions(self) -> list[str]:
        """None: a folder holds one version of its files."""
        return []

    def files(self, revision: str | None = None) -> list[str]:
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


def place_of(
    source: str, cache_dir: str | None = None, token: str | bool | None = None
) -> Folder | Hub:
    """The folder or repository that a source names.

    Raises:
        FileError: it is neither.
    """
    path = Path(source)
    if path.is_dir():
        return Folder(path)
    if _HUB_ID.fullmatch(source) and not source.endswith(STATE_DICTS):
        return Hub(source, cache_dir, token)
    hint = ""
    if path.parent.is_dir():
        advice = nearest(path.name, _names_in(path.parent))
        hint = f" In {path.parent}: {advice}"
    raise FileError(f"loading {source}: there is no such file or folder.{hint}")


def _names_in(folder: Path) -> list[str]:
    return sorted(neighbour.name for neighbour in folder.iterdir())


def _beside(source: str) -> str:
    """In which folder a source was looked for, and what is there of a similar name."""
    path = Path(source)
    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r} in {Path.cwd()})"
    similar = difflib.get_close_matches(path.name, _names_in(path.parent), n=1)
    hint = ""
    if similar:
        suggestion = path.parent / similar[0]
        hint = f"; did you mean {suggestion.as_posix()!r}?"
    return f" (in {Path.cwd()}{hint})"
