"""What a worker does: compute one cell and write its file.

To a worker travel references: where the checkpoint is, the file of the rows, names of weights,
settings. It keeps one model, whose memory each checkpoint fills anew, and the rows that it has
read. It writes the cell's file itself and gives back nothing but a reason, if the cell failed.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rllc.data.data import Data
from rllc.errors import FileError, InputError, ObservationError, first_line
from rllc.losses.contract import LossFunction
from rllc.models import hub
from rllc.models.checkpoints import Checkpoint
from rllc.models.loading import load
from rllc.samplers import Sampler
from rllc.sampling.draws import Draws
from rllc.sampling.observe import Observable
from rllc.sampling.sample import sample
from rllc.sampling.settings import Compute, Sampling
from rllc.sweep.downloads import note_download
from rllc.sweep.identity import CheckpointContents, checkpoint_contents, device_kind, versions
from rllc.sweep.plan import Cell, changed_parts
from rllc.sweep.store import Store
from rllc.sweep.travel import Generator, RowsFile, portable_data, portable_loss
from rllc.weights.selection import Weights


@dataclass(frozen=True, eq=False)
class Task:
    """A cell and all that is needed to compute it.

    Args:
        cell: which one.
        store: where its file goes.
        checkpoint: where the weights are.
        sha256: of weights and configuration; ``None`` if it was not known when the sweep began.
        data: the rows or, for another process, the file that holds them.
        weights: those of the cell.
        loss: a function or, for another process, the folder of a generating model.
        sampler: pickled on its way to another process.
        sampling: with the cell's own chains.
        compute: without an executor.
        about: goes into the cell's file.
        earlier: a finished cell of fewer draws whose chains go on.
        is_light: whether the store's observables were left out, as :meth:`light` does.
    """

    cell: Cell
    store: Store
    checkpoint: Checkpoint
    sha256: str | None
    data: Data | RowsFile
    weights: tuple[Weights, ...]
    loss: LossFunction | Generator | None
    sampler: Sampler
    sampling: Sampling
    compute: Compute
    about: Mapping[str, Any]
    earlier: Cell | None = None
    is_light: bool = False

    @property
    def title(self) -> str:
        """Say which cell it is."""
        names = ", ".join(self.cell.weights)
        return f"step {self.cell.step}, data {self.cell.data!r}, weights {names}"

    def on(self, device: str | None) -> Task:
        """Return the task for a device; ``None`` leaves it as it is."""
        if device is None:
            return self
        return replace(self, compute=replace(self.compute, device=device))

    def light(self) -> Task:
        """Return the task without the store's observables, which may hold whole data sets.

        It is for a worker that has them already, from :func:`keep_store`.
        """
        return replace(self, store=replace(self.store, observe={}), is_light=True)


_KEPT: dict[str, Store] = {}
"""In a process of ours, by folder, the store that came with the first task."""


def keep_store(store: Store) -> None:
    """Keep a store with its observables for the tasks that come without them."""
    _KEPT[str(store.root)] = store


_LOADING = threading.Lock()
"""Held while a checkpoint is loaded: transformers builds models in a state that threads share."""


class Bench(threading.local):
    """What a worker keeps from one cell to the next: a model, and the files that it has read."""

    def __init__(self) -> None:
        self.model: Any = None
        self.loaded: tuple[Checkpoint, str] | None = None
        self.files: dict[RowsFile | Generator, Any] = {}

    def load(self, task: Task) -> tuple[nn.Module, str]:
        """Return the model of a checkpoint, and the SHA-256 of its weights and configuration.

        Raises:
            FileError: the checkpoint is missing, damaged, or appeared or was replaced since the
                sweep began.
        """
        if task.store.delete_downloads:
            note_download(task.store, task.checkpoint)
        if self.model is None or not self._has(task):
            self.loaded = None  # a load that fails leaves a mixture of two checkpoints
            # A module in memory is used as it is, with all that is no weight of it.
            in_memory = isinstance(task.checkpoint.weights, nn.Module)
            into = None if in_memory else self.model
            with _LOADING:
                self.model = load(task.checkpoint, into=into, device=task.compute.device)
            # Hashed after it was read, so that what is replaced meanwhile is noticed.
            contents = checkpoint_contents(task.checkpoint)
            _refuse_another(task, contents)
            self.loaded = task.checkpoint, contents.sha256
        assert self.loaded is not None
        return self.model, self.loaded[1]

    def _has(self, task: Task) -> bool:
        """Whether the model is that of the task, of the contents that the sweep was announced for.

        A branch of the hub that could not be resolved may have moved since the last cell.
        """
        if self.loaded is None or self.loaded[0] != task.checkpoint:
            return False
        if task.sha256 is None:
            return hub.is_commit(task.checkpoint.revision)
        return task.sha256 == self.loaded[1]

    def opened(self, value: Any) -> Any:
        """Return what a file holds, which is read once; another value is returned as it is."""
        if not isinstance(value, RowsFile | Generator):
            return value
        if value not in self.files:
            self.files[value] = value.load()
        return self.files[value]


def _refuse_another(task: Task, contents: CheckpointContents) -> None:
    if task.sha256 is None and not hub.is_on_hub(task.checkpoint.source):
        raise FileError(
            f"loading {task.checkpoint}: it was not there, or not whole, when the sweep began. "
            f"Call rllc.track again, which looks at what it holds."
        )
    if task.sha256 not in (None, contents.sha256):
        before = task.about["checkpoint"].get("parts", {})
        changed = changed_parts(before, contents.parts) or "changed: its contents"
        raise FileError(
            f"loading {task.checkpoint}: it was replaced since the sweep began ({changed}; SHA-256 "
            f"{contents.sha256[:8]}…, then {task.sha256[:8]}…). Put the old one back, or track "
            f"into another store."
        )


_BENCH = Bench()
"""A worker's own, one a thread."""


def work(task: Task, bench: Bench | None = None) -> str | None:
    """Compute a cell and write its file.

    Args:
        bench: ``None``: this thread's own.

    Returns:
        The reason, if the cell failed. If only an observable did, after some draws, the cell is
        written without it, and the next call computes it again.

    Raises:
        FileError: the store cannot be written, which is not the cell's fault.
    """
    if task.is_light:
        task = replace(task, store=_KEPT[str(task.store.root)], is_light=False)
    name, store = task.cell.name, task.store
    if store.has(name):  # by another sweep, or by a worker that died just after
        return None
    if bench is None:
        bench = _BENCH
    reason = None
    try:
        model, digest = bench.load(task)
        try:
            draws, earlier = _draw(task, bench, model, digest)
        except ObservationError as error:
            if error.draws is None:
                raise
            # Draws are worth more than what was to be observed along them.
            reason = f"{type(error).__name__}: {first_line(error)}"
            store = store.without(error.name)
            draws, earlier = _draws_of(task, bench, model, error.draws, store.observe), None
    except Exception as error:  # whatever it is, this cell fails and the others go on
        reason = f"{type(error).__name__}: {first_line(error)}"
        store.fail(name, reason)
        return reason
    about = {
        **task.about,
        "checkpoint": {**task.about["checkpoint"], "sha256": digest},
        "versions": versions(),
        "device": device_kind(next(model.parameters()).device),
    }
    store.write(name, draws, about, earlier=earlier)
    if reason is not None:
        store.fail(name, reason)
    return reason


def _draw(task: Task, bench: Bench, model: nn.Module, digest: str) -> tuple[Draws, Cell | None]:
    """Return a cell's draws, and the cell that they go on from, if they could."""

    def drawn(resume: Draws | None) -> Draws:
        return _draws_of(task, bench, model, resume, task.store.observe)

    if task.earlier is not None:
        try:
            return drawn(_draws_to_resume(task, task.earlier, digest)), task.earlier
        except (FileError, InputError) as error:  # raised before any chain runs
            reason = f"{task.title}: computed from the first draw on: {first_line(error)}"
            warnings.warn(f"track: {reason}", stacklevel=2)
    return drawn(None), None


def _draws_of(
    task: Task,
    bench: Bench,
    model: nn.Module,
    resume: Draws | None,
    observe: Mapping[str, Observable],
) -> Draws:
    return sample(
        model,
        {task.cell.data: bench.opened(task.data)},
        list(task.weights),
        loss=bench.opened(task.loss),
        sampler=task.sampler,
        sampling=task.sampling,
        compute=task.compute,
        observe=observe,
        resume=resume,
    )


def _draws_to_resume(task: Task, earlier: Cell, digest: str) -> Draws:
    draws = task.store.read_to_resume(earlier, task.cell.weights)
    about = draws.settings["cell"]
    if about["checkpoint"]["sha256"] != digest:
        raise FileError("it is of another checkpoint.")
    for name in ("loss", "identity"):
        if about[name] != task.about[name]:
            raise FileError("it is of another loss or sampler.")
    return draws


def portable(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks with files in place of data and models, for workers in other processes.

    Raises:
        InputError: the generating model of a loss cannot be saved.
    """
    rows: dict[str, Data | RowsFile] = {}
    losses: dict[int, LossFunction | Generator | None] = {}
    travelling = []
    for task in tasks:
        name, loss = task.cell.data, task.loss
        if name not in rows:
            rows[name] = portable_data(task.store, task.data)
        if id(loss) not in losses:
            losses[id(loss)] = portable_loss(task.store, loss, str(task.about["loss"]))
        travelling.append(replace(task, data=rows[name], loss=losses[id(loss)]))
    return travelling
