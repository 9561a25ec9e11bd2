"""The weights of one training step: which step, and where they are.

It knows files and the hub, not how a model is made of them (:mod:`rllc.models.loading`), nor how
the steps of a run are found (:mod:`rllc.models.checkpoints`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor, nn

from rllc.errors import FileError, InputError, must_be, shortened
from rllc.models import hub
from rllc.models.hub import Folder, Hub
from rllc.models.listing import is_shard, may_be_weights
from rllc.models.steps import STATE_DICTS
from rllc.storage.files import as_path, bytes_of_tensor, sha256_of, sha256_of_file, sha256_of_text

SUMS = "sha256.json"
"""In a checkpoint's folder: file names to SHA-256 in hexadecimal.

Written by training, verified by :func:`rllc.load`.
"""

Positions = Literal["shortformer", "standard"]

Into = nn.Module | Callable[[], nn.Module]
"""A module, or a function that makes one, into which state dicts are loaded."""

InMemory = nn.Module | Mapping[str, Tensor]
"""Weights that are in no file."""

_SETTINGS = ("config.json", "generation_config.json", SUMS)

_FILES_OF_FORMS = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("adapter_model.safetensors", "adapter_model-*.safetensors"),
    ("adapter_model.bin", "adapter_model-*.bin"),
)
"""The names that ``save_pretrained`` gives to weights in one file, and in several."""

_FINAL = "model_final.pth"
"""The file of weights of TransformerLens's toy models (``attn-only-2l``, …)."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one training step: which step, and where.

    >>> Checkpoint(8500, "timaeus/tetrahedron-3m-og", file="checkpoint_0008500.pth").step
    8500

    Args:
        step: optimiser steps taken (tokens or epochs, where names count these); ``None`` where the
            source holds one model and does not say its step.
        source: folder, file or hub id, as it was given.
        revision: the hub revision, where each step has its own.
        file: the state dict or the step's folder within the source; ``None`` is the source itself.
        weights: a module or state dict in memory, in place of a file.
        into: a module, or a function that makes one, for the state dict; see :func:`rllc.load`.
        positions: for TransformerLens state dicts; see :func:`rllc.load`.
        cache_dir: passed on to the hub's client; so is ``token``, which is never written down.
        token: see ``cache_dir``.
    """

    step: int | None
    source: str
    revision: str | None = None
    file: str | None = None
    weights: InMemory | None = field(default=None, repr=False, compare=False, kw_only=True)
    into: Into | None = field(default=None, repr=False, compare=False, kw_only=True)
    positions: Positions | None = field(default=None, repr=False, kw_only=True)
    cache_dir: str | None = field(default=None, repr=False, compare=False, kw_only=True)
    token: str | bool | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("revision", "file"):
            value = getattr(self, name)
            right = value is None or isinstance(value, str)
            must_be("Checkpoint", name, value, right, "a text, or left out")
        if self.weights is None:
            as_path(self.source, "Checkpoint", "source")

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
        if self.weights is not None:
            raise InputError(f"{self}: it is in memory and has no path.")
        if Path(self.source).is_file():
            return Path(self.source)
        place = hub.place_of(self.source, self.cache_dir, self.token)
        if self.file is not None and self._is_state_dict:
            folder = place.fetch(self.revision, [self.file, *self._configs()])
            path = folder / self.file
        else:
            path = self._fetch_folder(place)
        if not path.exists():
            raise FileError(
                f"loading {self}: {path} is not there; see checkpoints({self.source!r}) for what "
                f"is."
            )
        return path

    def config_file(self, path: Path) -> Path | None:
        """The ``config.json`` that is about a state dict: beside it, or above it in the source.

        Args:
            path: what :meth:`path` gave.
        """
        folder = path.parent
        for _ in self._configs():
            if (folder / "config.json").is_file():
                return folder / "config.json"
            folder = folder.parent
        return None

    def sha256(self) -> str:
        """The SHA-256 of the weights, in hexadecimal.

        Weights in several files have that of the list of the files' sums.
        """
        if self.weights is not None:
            return _sha256_of_weights(self.weights)
        path = self.path()
        files = [path] if path.is_file() else weight_files(path)
        if len(files) == 1:
            return sha256_of_file(files[0])
        lines = [f"{sha256_of_file(file)}  {file.name}\n" for file in files]
        return sha256_of_text("".join(lines))

    def cached(self) -> frozenset[Path]:
        """The files of its weights that are in the hub's cache now, without asking the network.

        A file or folder of yours has none.
        """
        if self.weights is not None or not hub.is_on_hub(self.source):
            return frozenset()
        if self.file is not None and self._is_state_dict:
            patterns = [self.file]
        else:
            names = ["model*.safetensors", "pytorch_model*.bin", "adapter_model*", _FINAL]
            patterns = self._within(names)
        return frozenset(self._hub.cached(self.revision, patterns))

    def delete_cached(self, but: Collection[Path]) -> None:
        """Delete the files of its weights from the hub's cache, ``but`` those that are to stay."""
        files = self.cached() - frozenset(but)
        if files:
            self._hub.delete(files)

    @property
    def _hub(self) -> Hub:
        return hub.Hub(self.source, self.cache_dir, self.token)

    @property
    def _is_state_dict(self) -> bool:
        return self.file is not None and self.file.endswith(STATE_DICTS)

    def _within(self, names: Iterable[str]) -> list[str]:
        """Files of the step's folder, as they are called in the source."""
        if self.file is None:
            return list(names)
        return [f"{self.file}/{name}" for name in names]

    def _configs(self) -> list[str]:
        """Where a ``config.json`` about a state dict can be, the nearest first."""
        if self.file is None:
            return ["config.json"]
        folders = PurePosixPath(self.file).parents
        return [(folder / "config.json").as_posix() for folder in folders]

    def _fetch_folder(self, place: Folder | Hub) -> Path:
        # Many repositories hold the same weights in both forms, so one form is asked for first.
        names = [*_SETTINGS, "model*.safetensors", "model*.safetensors.index.json"]
        folder = self._fetch(place, names)
        if any(folder.glob("model*.safetensors")):
            return folder
        names = ["pytorch_model*.bin*", "adapter_config.json", "adapter_model*"]
        folder = self._fetch(place, names)
        if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("adapter_model*")):
            return folder
        return self._fetch(place, [_FINAL])

    def _fetch(self, place: Folder | Hub, names: list[str]) -> Path:
        """The step's folder, with these files of it on this machine."""
        fetched = place.fetch(self.revision, self._within(names))
        return fetched if self.file is None else fetched / self.file


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights in a step's folder.

    Raises:
        FileError: there are none, or there are those of another kind.
    """
    for name, shards in _FILES_OF_FORMS:
        if (folder / name).is_file():
            return [folder / name]
        files = sorted(folder.glob(shards))
        if files:
            return files
    if any(folder.glob("*.distcp")):
        raise FileError(
            f"loading {folder}: it is a distributed checkpoint (.distcp), as FSDP saves one, whose "
            f"index is a pickle. Gather it with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    files = []
    for path in sorted(folder.glob("*")):
        if may_be_weights(path.name) and path.name.endswith(STATE_DICTS):
            files.append(path)
    is_one_state = len(files) == 1 or all(is_shard(path.name) for path in files)
    if files and is_one_state:
        return files
    list_of_files = f" Found: {shortened([path.name for path in files])}." if files else ""
    raise FileError(
        f"loading {folder}: no weights; expected model.safetensors (or pytorch_model.bin) beside "
        f"config.json, as save_pretrained writes them, or one state dict.{list_of_files}"
    )


def state_of(weights: InMemory) -> dict[str, Tensor]:
    """The tensors of weights in memory, by name."""
    return dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)


def _sha256_of_weights(weights: InMemory) -> str:
    pieces: list[Any] = []
    for name, tensor in sorted(state_of(weights).items()):
        pieces.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        pieces.append(bytes_of_tensor(tensor))
    return sha256_of(pieces)
