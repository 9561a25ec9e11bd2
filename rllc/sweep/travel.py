"""What goes to another process by way of a file: rows, and the generating model of a loss.

All else in a task is small and is pickled; so is a sampler.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rllc.data.data import Data, Tensors
from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.files import load_arrays, save_arrays, sync
from rllc.loss import LossFunction
from rllc.losses import Distillation
from rllc.sweep.store import Store, is_whole


class RowsFile(NamedTuple):
    """A data set in a file, and whether it is of tokens."""

    path: str
    tokens: bool
    fields: tuple[str, ...] = ()

    def load(self) -> Data:
        """Read the rows.

        Raises:
            FileError: the file is missing or damaged.
        """
        parts = load_rows(self.path)
        return Tokens(parts[0]) if self.tokens else Tensors(parts, fields=self.fields)


class Generator(NamedTuple):
    """The folder of a distillation loss's generating model."""

    folder: str

    def load(self) -> LossFunction:
        """Read the model and make the loss.

        Raises:
            FileError: it is missing or damaged.
        """
        from rllc.models.loading import load

        return Distillation(load(self.folder))


def portable_data(store: Store, data: Data | RowsFile) -> Data | RowsFile:
    """Write a data set into the store, once. One of the user's own kind is pickled instead."""
    if isinstance(data, Tokens):
        return RowsFile(save_rows(store, (data.rows,), data.fingerprint), tokens=True)
    if isinstance(data, Tensors):
        path = save_rows(store, data.parts, data.fingerprint)
        return RowsFile(path, tokens=False, fields=data.fields)
    return data


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
        name: the loss's, with the SHA-256 of the model's weights at its end.

    Raises:
        InputError: the generating model cannot be saved.
    """
    if not isinstance(loss, Distillation):
        return loss
    model: Any = loss.generator
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"track: with an `executor`, the generating model of rllc.distillation must be one of "
            f"rllc or transformers, which can be saved in the store; got {type(model).__name__}. "
            f"Without an executor any will do."
        )
    folder = store.root / "generators" / name.split()[-1][:32]
    save_model(store, folder, model.save_pretrained)
    return Generator(str(folder))


def save_model(store: Store, folder: Path, save: Callable[[Path], None]) -> None:
    """Write a model once, whole or not at all.

    Args:
        save: writes the model into a folder that it makes.
    """
    if folder.exists():
        return
    with store.writing("a generating model"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}."
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=".tmp"))
        try:
            model = temporary / "model"  # one deeper, because mkdtemp's own is closed to others
            save(model)
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
