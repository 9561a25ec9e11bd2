"""Checkpoints: where the weights of each training step are.

A *source* is one of these, on this machine or (all but the last) in a repository of the Hugging
Face hub:

- a folder or repository with one folder a step: ``step0000100/``, as :func:`rllc.train` writes
  them, in ``save_pretrained`` form, any of transformers' causal language models;
- a repository with one revision a step (``step8500``), as Pythia's;
- a folder or repository with one TransformerLens state dict a step: ``checkpoint_0008500.pth`` or
  ``checkpoints/checkpoint_0008500.pth``, as the paper's ``timaeus/tetrahedron-3m-og``;
- a folder or repository with one model in ``save_pretrained`` form;
- a single file with a TransformerLens state dict, ``.pth`` or ``.safetensors``.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rllc.errors import FileError
from rllc.files import sha256_of_file, sha256_of_text
from rllc.models import hub
from rllc.models.hub import STATE_DICTS, Folder, Hub

SUMS = "sha256.json"
"""In a checkpoint's folder: file names to SHA-256 in hexadecimal.

Written by training, verified by :func:`rllc.load`.
"""

_STEP = re.compile(
    r"(?:(?:global_?)?step|checkpoint)[-_]?(\d+)(?:-tokens\d+B)?(?:\.pth|\.pt|\.safetensors)?"
)
_SETTINGS = ("config.json", "generation_config.json", SUMS)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one training step: which step, and where.

    >>> Checkpoint(8500, "timaeus/tetrahedron-3m-og", file="checkpoint_0008500.pth").step
    8500

    Args:
        step: optimiser steps taken; 0 where the source holds one model and does not say its step.
        source: folder, file or hub id, as it was given.
        revision: the hub revision, where each step has its own.
        file: the state dict or the step's folder within the source; ``None`` is the source itself.
    """

    step: int
    source: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        file = f"/{self.file}" if self.file else ""
        return f"{self.source}{revision}{file}"

    def path(self) -> Path:
        """The state dict or the ``save_pretrained`` folder on this machine.

        It is downloaded first if it is on the hub.

        Raises:
            FileError: it is not there.
        """
        if Path(self.source).is_file():
            return Path(self.source)
        place = hub.place_of(self.source)
        if self.file is not None and self._is_state_dict:
            path = place.fetch(self.revision, [self.file]) / self.file
        else:
            path = self._fetch_folder(place)
        if not path.exists():
            raise FileError(
                f"loading {self}: {path} is not there; see checkpoints({self.source!r}) for what "
                f"is."
            )
        return path

    def sha256(self) -> str:
        """The SHA-256 of the weights, in hexadecimal.

        Weights in several files have that of the list of the files' sums.
        """
        path = self.path()
        files = [path] if path.is_file() else weight_files(path)
        if len(files) == 1:
            return sha256_of_file(files[0])
        sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in files]
        return sha256_of_text("".join(sums))

    def cached(self) -> frozenset[Path]:
        """The files of its weights that are in the hub's cache now, without asking the network.

        A file or folder of yours has none.
        """
        if not hub.is_on_hub(self.source):
            return frozenset()
        if self.file is not None and self._is_state_dict:
            patterns = [self.file]
        else:
            patterns = self._within(["model*.safetensors", "pytorch_model*.bin"])
        return frozenset(hub.Hub(self.source).cached(self.revision, patterns))

    def delete_cached(self, but: Collection[Path]) -> None:
        """Delete the files of its weights from the hub's cache, ``but`` those that are to stay."""
        files = self.cached() - frozenset(but)
        if files:
            hub.Hub(self.source).delete(files)

    @property
    def _is_state_dict(self) -> bool:
        return self.file is not None and self.file.endswith(STATE_DICTS)

    def _within(self, names: Iterable[str]) -> list[str]:
        """Files of the step's folder, as they are called in the source."""
        return [name if self.file is None else f"{self.file}/{name}" for name in names]

    def _fetch_folder(self, place: Folder | Hub) -> Path:
        # Many repositories hold the same weights in both forms, so one form is asked for first.
        names = [*_SETTINGS, "model*.safetensors", "model*.safetensors.index.json"]
        folder = place.fetch(self.revision, self._within(names)) / (self.file or "")
        if any(folder.glob("model*.safetensors")):
            return folder
        names = ["pytorch_model*.bin*"]
        return place.fetch(self.revision, self._within(names)) / (self.file or "")


def checkpoints(source: str | os.PathLike[str]) -> list[Checkpoint]:
    """What a source holds, in the order of the steps.

    >>> checkpoints("runs/seed0")  # doctest: +SKIP
    [Checkpoint(step=0, source='runs/seed0', revision=None, file='step0000000'), ...]

    Args:
        source: a folder, a state dict or a hub id; see :mod:`rllc.models.checkpoints`. What exists
            on this machine comes before a hub repository of the same name.

    Raises:
        FileError: the source is not there, holds no checkpoint, or holds two of one step.
    """
    source = os.fspath(source)
    if Path(source).is_file():
        return [Checkpoint(step_in_name(source) or 0, source)]
    listed = _listed(source, hub.place_of(source))
    if not listed:
        raise FileError(
            f"listing the checkpoints of {source}: it has no folders step0000100/, no revisions "
            f"step100, no files checkpoint_0000100.pth and no config.json. A state dict of another "
            f"name can be loaded as a file."
        )
    listed.sort(key=lambda checkpoint: checkpoint.step)
    for previous, following in itertools.pairwise(listed):
        if previous.step == following.step:
            raise FileError(
                f"listing the checkpoints of {source}: {previous} and {following} are both step "
                f"{previous.step}."
            )
    return listed


def _listed(source: str, place: Folder | Hub) -> list[Checkpoint]:
    """The checkpoints of a place: its revisions, else its folders and files, else itself."""
    steps = {revision: step_in_name(revision) for revision in place.revisions()}
    by_revision = [
        Checkpoint(step, source, revision=revision)
        for revision, step in steps.items()
        if step is not None
    ]
    if by_revision:
        return by_revision
    files = place.files()
    by_file = [Checkpoint(step, source, file=file) for file, step in _steps_of_files(files).items()]
    if by_file:
        return by_file
    if "config.json" in files:
        return [Checkpoint(step_in_name(source) or 0, source)]
    return []


def step_in_name(name: str) -> int | None:
    """The step that a file, folder or revision is named after.

    >>> step_in_name("runs/step0000100"), step_in_name("main")
    (100, None)
    """
    last_part = PurePosixPath(Path(name).as_posix()).name
    match = _STEP.fullmatch(last_part)
    return int(match[1]) if match else None


def _steps_of_files(files: Iterable[str]) -> dict[str, int]:
    """Step folders and state dicts among file names, at the top or in ``checkpoints/``."""
    steps = {}
    for file in files:
        parts = PurePosixPath(file.removeprefix("checkpoints/")).parts
        if len(parts) == 1 and file.endswith(STATE_DICTS):
            name = file
        elif len(parts) == 2 and not parts[0].endswith(STATE_DICTS):
            name = str(PurePosixPath(file).parent)
        else:
            continue
        step = step_in_name(name)
        if step is not None:
            steps[name] = step
    return steps


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights in a ``save_pretrained`` folder.

    Raises:
        FileError: there are none.
    """
    for name, shards in {
        "model.safetensors": "model-*.safetensors",
        "pytorch_model.bin": "pytorch_model-*.bin",
    }.items():
        if (folder / name).is_file():
            return [folder / name]
        files = sorted(folder.glob(shards))
        if files:
            return files
    raise FileError(
        f"loading {folder}: no weights; expected model.safetensors (or pytorch_model.bin) beside "
        f"config.json, as save_pretrained writes them."
    )
