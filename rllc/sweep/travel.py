"""What goes to another process by way of a file: rows, and the generating model of a loss.

All else in a task is small and is pickled; so is a sampler.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rllc.data.data import Data, Tensors
from rllc.data.tokens import Tokens
from rllc.errors import FileError, InputError
from rllc.losses.by_name import Distillation
from rllc.losses.contract import LossFunction
from rllc.models.checkpoint import SUMS
from rllc.storage.files import load_arrays, save_arrays, sha256_of_file, sync, temporary_prefix
from rllc.sweep.store import Store, is_whole

_IDENTITY = "identity.txt"
"""In a generating model's folder: which model it is."""


class RowsFile(NamedTuple):
    """A data set in a file, whether it is of tokens, and the SHA-256 of its rows."""

    path: str
    tokens: bool
    fingerprint: str
    fields: tuple[str, ...] = ()

    def load(self) -> Data:
        """Read the rows.

        Raises:
            FileError: the file is missing, damaged or holds other rows.
        """
        parts = load_rows(self.path)
        data: Data
        data = Tokens(parts[0]) if self.tokens else Tensors(parts, fields=self.fields)
        if data.fingerprint != self.fingerprint:
            raise FileError(f"reading {self.path}: it holds other rows than its name says.")
        return data


class Generator(NamedTuple):
    """The folder of a distillation loss's generating model, and what model it is."""

    folder: str
    identity: str

    def load(self) -> LossFunction:
        """Read the model and make the loss.

        Raises:
            FileError: it is missing, damaged or another model.
        """
        from rllc.models.loading import load

        check_model(Path(self.folder), self.identity)
        return Distillation(load(self.folder))


def portable_data(store: Store, data: Data | RowsFile) -> Data | RowsFile:
    """Write a data set into the store, once. One of the user's own kind is pickled instead."""
    if isinstance(data, Tokens):
        return _rows_file(store, (data.rows,), data.fingerprint, tokens=True)
    if isinstance(data, Tensors):
        return _rows_file(store, data.parts, data.fingerprint, tokens=False, fields=data.fields)
    return data


def _rows_file(
    store: Store,
    rows: tuple[torch.Tensor, ...],
    fingerprint: str,
    tokens: bool,
    fields: tuple[str, ...] = (),
) -> RowsFile:
    file = RowsFile(save_rows(store, rows, fingerprint), tokens, fingerprint, fields)
    try:
        file.load()
    except FileError:  # whole, but of other rows
        Path(file.path).unlink(missing_ok=True)
        save_rows(store, rows, fingerprint)
    return file


def save_rows(store: Store, rows: tuple[torch.Tensor, ...], digest: str) -> str:
    """Write tensors once, or again if the file is damaged.

    Returns:
        The path of the file.
    """
    path = store.root / "data" / f"{digest}.npz"
    if not is_whole(path):
        arrays = {str(i): tensor.detach().cpu().numpy() for i, tensor in enumerate(rows)}
        with store.writing("data"):
            save_arrays(path, arrays, {})
    return str(path)


def load_rows(path: str) -> tuple[torch.Tensor, ...]:
    """Read what :func:`save_rows` wrote.

    Raises:
        FileError: the file is missing or damaged.
    """
    arrays, _ = load_arrays(path)
    return tuple(torch.from_numpy(arrays[str(i)]) for i in range(len(arrays)))


def portable_loss(
    store: Store, loss: LossFunction | Generator | None, name: str
) -> LossFunction | Generator | None:
    """Return a loss that can be pickled: a generating model is saved in the store, once.

    Args:
        name: the loss's, with the SHA-256 of the model at its end.

    Raises:
        InputError: the generating model cannot be saved.
    """
    if not isinstance(loss, Distillation):
        return loss
    model: Any = loss.generator
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise InputError(
            "track: with an `executor`, the generating model of rllc.losses.distillation must be "
            "float32, as workers read it; pass rllc.losses.distillation(model.float()), or no "
            "executor."
        )
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"track: with an `executor`, the generating model of rllc.losses.distillation must be "
            f"one of rllc or transformers, which can be saved in the store; got "
            f"{type(model).__name__}. Without an executor any will do."
        )
    identity = name.split()[-1]
    folder = store.root / "generators" / identity[:32]
    if folder.exists() and not _is_model(folder, identity):
        store.set_aside(folder)
    save_model(store, folder, model.save_pretrained, identity)
    return Generator(str(folder), identity)


def check_model(folder: Path, identity: str) -> None:
    """See that a folder holds a certain model; loading then compares each file with its sum.

    Raises:
        FileError: it does not, or files are missing or damaged.
    """
    try:
        of = (folder / _IDENTITY).read_text(encoding="utf-8")
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        for name in [_IDENTITY, *sums]:
            if sha256_of_file(folder / name) != sums[name]:
                raise FileError(f"reading the generating model {folder}: {name} is damaged.")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileError(f"reading the generating model {folder}: {error!r}.") from error
    if of != identity:
        raise FileError(f"reading the generating model {folder}: it is another model.")


def _is_model(folder: Path, identity: str) -> bool:
    try:
        check_model(folder, identity)
    except FileError:
        return False
    return True


def save_model(
    store: Store, folder: Path, save: Callable[[Path], None], identity: str = ""
) -> None:
    """Write a model once, whole or not at all, with the SHA-256 of each file.

    Args:
        save: writes the model into a folder that it makes.
        identity: what model it is.
    """
    if folder.exists():
        return
    with store.writing("a generating model"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = temporary_prefix(folder.name)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=".tmp"))
        try:
            model = temporary / "model"  # one deeper, because mkdtemp's own is closed to others
            save(model)
            (model / _IDENTITY).write_text(identity, encoding="utf-8")
            sums = {file.name: sha256_of_file(file) for file in sorted(model.iterdir())}
            (model / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
            for file in model.rglob("*"):
                if file.is_file():
                    sync(file)
            os.replace(model, folder)
            sync(folder.parent)
        except OSError:
            if not folder.exists():  # if it does, another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
