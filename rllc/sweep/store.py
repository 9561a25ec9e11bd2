"""A sweep's folder: one whole, checksummed file a finished cell, and what is kept beside it.

- ``sweeps/<hash>.json``: the plan of one call: settings, checkpoints, data, weights, and the names
  of its cells. Written before the first chain runs and never changed. The name is the hash of the
  contents.
- ``cells/<hash>.npz``: the draws of one finished cell, as :meth:`rllc.Draws.load` reads them. The
  name is the hash of all that its numbers depend on (:func:`rllc.sweep.plan.cell_name`), so any
  process knows which file is its own, and two that compute the same cell write the same file.
- ``states/<hash>.npz``: where a cell's chains ended, with its last draw: more draws of it begin
  there. May be removed; more draws are then computed from the first one on. The states of fewer
  draws are removed once more draws have their own.
- ``observed/<name>/<hash>.npz``: what was observed along a cell's chains, in a file of its own
  because it may be large.
- ``downloads/<hash>.json``: what one machine's cache held of a checkpoint before it was fetched.
- ``failed/<hash>.json``: why a cell has no file yet; removed once it has.
- ``data/<hash>.npz``, ``generators/<hash>/``: rows and generating models, once each, for workers in
  other processes.
- ``damaged/``: cell files whose checksum was wrong, set aside to be computed again.

No two processes ever change one file. Everything is written under a temporary name, synced and
renamed; a ``.tmp`` file with ``.rllc-`` in its name is a killed writer's and may be removed.
Nothing else is ever removed, and a store is made only in a folder that is new, empty or a sweep's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from rllc.errors import FileError, InputError, must_be
from rllc.sampling.draws import Draws
from rllc.sampling.observe import Observable
from rllc.storage.contents import digest
from rllc.storage.files import (
    as_path,
    check_fields,
    is_temporary,
    load_arrays,
    load_header,
    reading,
    save_arrays,
    write_atomically,
)
from rllc.storage.identity import if_known, short_hash
from rllc.sweep import parts
from rllc.sweep.plan import Cell, Plan

_NAME = re.compile(r"[\w -]+")
"""What an observable may be called, of which a folder is named."""

_LEFT_OVER = 3600.0
"""Seconds after which a temporary file no longer has a writer."""

_FOLDERS = ("sweeps", "cells", "states", "downloads", "failed", "data", "generators", "observed/*")
"""Folders in which the sweep leaves temporary files."""


@dataclass(frozen=True)
class Store:
    """The folder of a sweep, and what is kept in it.

    ``rllc.track(..., store="sweep")`` is short for ``store=rllc.sweep.Store("sweep")``.

    >>> rllc.track(run, data, store=Store("sweep", keep_states=False))             # doctest: +SKIP

    Args:
        folder: need not exist; one for each training run and setting. With workers on other
            machines, one that all of them see.
        keep_states: keep where the chains end, so that more draws go on from there. On disk,
            uncompressed, for each chain 4 bytes a weight (8 with rmsprop_sgld and sghmc) and 5 kB
            on a CPU, and for each refinement 4 bytes a weight with ``control_variate``: at the
            paper's settings 0.55 MB a head and checkpoint, 0.9 GB for 16 heads at 107 checkpoints
            on one data set; 54 MB a checkpoint for the whole model. On by default, because draws
            cost far more than their disk.
        observe: what else to measure along the chains, as for :func:`rllc.sample`; for
            ``rllc.Sweep.open(...).draws(step, weights, data).observed``. It changes no chain.
            Finished cells without it are computed again, and so are those that have another
            observable under its name, as far as its contents can be looked into. Losses of each
            token on each draw's own minibatch (:func:`rllc.observables.minibatch_losses`) are 52 MB
            a head and checkpoint at the paper's settings.
        delete_downloads: with checkpoints from the hub, delete each one's weights from the cache as
            soon as all its cells are finished, but no file that was there before the sweep fetched
            it. On this machine; workers on others keep theirs. Checkpoints of cells that failed
            stay for the next call.

    Raises:
        InputError: a switch is neither ``True`` nor ``False``, or an observable's name cannot be
            that of a folder.
    """

    folder: str | os.PathLike[str]
    keep_states: bool = True
    observe: Mapping[str, Observable] = field(default_factory=dict)
    delete_downloads: bool = False

    def __post_init__(self) -> None:
        for name in ("keep_states", "delete_downloads"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InputError(f"Store: `{name}` must be true or false, got {value!r}.")
        is_dict = isinstance(self.observe, Mapping)
        must_be("Store", "observe", self.observe, is_dict, "a dict of observables by name")
        for name in self.observe:
            if not _NAME.fullmatch(str(name)):
                raise InputError(
                    f"Store: `observe` has the name {name!r}; in a store names are of letters, "
                    f"digits, spaces, - and _."
                )
        # Absolute, because workers and later calls may have another working directory.
        folder = as_path(self.folder, "Store", "folder").absolute()
        object.__setattr__(self, "folder", folder)

    @property
    def root(self) -> Path:
        """The folder, as a path."""
        assert isinstance(self.folder, Path)  # __post_init__ made it one
        return self.folder

    # Plans.

    def plans(self) -> list[Plan]:
        """Return what all calls so far asked for, the latest last.

        Raises:
            FileError: one of the files is damaged.
        """
        plans = []
        for path in (self.root / "sweeps").glob("*.json"):
            with suppress(FileNotFoundError):  # it has just been withdrawn
                date = path.stat().st_mtime_ns
                plans.append((date, path.name, read_plan(path)))
        plans.sort(key=lambda dated: dated[:2])
        return [plan for _, _, plan in plans]

    def announce(self, plan: Plan) -> None:
        """Write a plan down, which also shows that the folder can be written.

        Raises:
            FileError: it cannot be written.
        """
        self.check_place()
        path = self._plan_path(plan)
        with self.writing("what this call asks for"):
            if path.exists():
                os.utime(path)  # it is the latest call again
            else:
                write_text(path, plan.text())
            probe = write_text(self.root / "cells" / ".writable", "")
            probe.unlink(missing_ok=True)  # another sweep on the folder may have been faster
        self._remove_leftovers()

    def withdraw(self, plan: Plan) -> None:
        """Remove what :meth:`announce` wrote, before anything was computed for it."""
        with self.writing("that this call asks for nothing"):
            self._plan_path(plan).unlink(missing_ok=True)

    def _plan_path(self, plan: Plan) -> Path:
        return self.root / "sweeps" / f"{short_hash(plan.text())}.json"

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed writers; those of writers at work are younger.

        What has not our mark, and what is behind a link, is somebody else's.
        """
        for name in _FOLDERS:
            for leftover in self.root.glob(f"{name}/.*.tmp"):
                if leftover.parent.is_symlink() or not is_temporary(leftover):
                    continue
                with suppress(OSError):  # gone, or not ours to remove: it is in nobody's way
                    if time.time() - leftover.stat().st_mtime < _LEFT_OVER:
                        continue
                    if leftover.is_dir() and name == "generators":
                        shutil.rmtree(leftover)
                    elif leftover.is_file():
                        leftover.unlink()

    def check_place(self) -> None:
        """See that the folder is new, empty, or that of a sweep.

        Raises:
            FileError: it holds something else.
        """
        with self.writing("a sweep"):
            if not self.root.is_dir():
                return
            entries = {path.name for path in self.root.iterdir()}
        is_sweep = "cells" in entries or any((self.root / "sweeps").glob("*.json"))
        if entries - {"sweeps"} and not is_sweep:
            raise FileError(
                f"track: `store` = {self.folder} holds {sorted(entries)[0]!r}"
                f"{' and more' if len(entries) > 1 else ''}, and no sweep; give a new or an empty "
                f"folder, as in store={str(self.root / 'sweep')!r}."
            )

    # Which cells there are.

    def path(self, name: str) -> Path:
        """Return the path of a cell's file, which is there when the cell is finished."""
        return Path(self.path_text(name))

    def path_text(self, name: str) -> str:
        """Return :meth:`path` as text. Of 10,000 cells, ``Path`` would intern 4 MB of names."""
        return os.path.join(self._cells, f"{name}.npz")

    @cached_property
    def _cells(self) -> str:
        return os.fspath(self.root / "cells")

    def state_path(self, name: str) -> Path:
        """Return the path of the file with a cell's states."""
        return self.root / "states" / f"{name}.npz"

    def observed_path(self, name: str, observable: str) -> Path:
        """Return the path of the file with what was observed along a cell's chains."""
        return self.root / "observed" / observable / f"{name}.npz"

    def _reason_path(self, name: str) -> Path:
        return self.root / "failed" / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether a cell has all files that are to be kept, its states excepted."""
        return self.path(name).exists() and self._has_observed(name)

    def finished(self) -> set[str]:
        """Return the names of the cells that have a file."""
        return _stems(self.root / "cells", ".npz")

    def last_written(self) -> float:
        """Return when the last cell was written, as ``st_mtime`` of its file; 0 without cells."""
        latest = 0.0
        for entry in _files(self.root / "cells", ".npz"):
            with suppress(FileNotFoundError):
                latest = max(latest, entry.stat().st_mtime)
        return latest

    def complete(self) -> set[str]:
        """Return the names of the cells for which :meth:`has` holds, by listing folders."""
        names = self.finished()
        for observable in self.observe:
            names &= _stems(self.root / "observed" / observable, ".npz")
        return {name for name in names if self._has_observed(name)}

    def _has_observed(self, name: str) -> bool:
        """Whether what is to be observed along a cell's chains was, by observables like these."""
        for observable in self.observe:
            path = self.observed_path(name, observable)
            if not path.exists():
                return False
            try:
                if load_header(path).get("identity") != self._identities[observable]:
                    return False
            except FileError:
                return False
        return True

    def without(self, observable: str) -> Store:
        """Return the store in which one observable is not kept."""
        observe = dict(self.observe)
        observe.pop(observable, None)
        return replace(self, observe=observe)

    @cached_property
    def _identities(self) -> dict[str, str | None]:
        """What each observable is; ``None`` where it cannot be looked into."""
        identify = if_known(partial(digest, what="observable"))
        return {name: identify(observable) for name, observable in self.observe.items()}

    def resumable(self) -> set[str]:
        """Return the names of the complete cells that also have their states."""
        return self.complete() & _stems(self.root / "states", ".npz")

    def failures(self) -> dict[str, str]:
        """Return the cells that have no file because they failed, with the reason."""
        reasons = {}
        failed = _stems(self.root / "failed", ".json") - self.finished()
        for name in sorted(failed):
            path = self._reason_path(name)
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                if fields["cell"] != name:
                    raise ValueError("it is of another cell")
                reasons[name] = str(fields["reason"])
            except FileNotFoundError:  # it has just been finished
                continue
            except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
                reasons[name] = f"unknown: {path} cannot be read ({error})"
        return reasons

    # Cells.

    def write(
        self, name: str, draws: Draws, about: Mapping[str, Any], *, earlier: Cell | None = None
    ) -> None:
        """Finish a cell: write what is kept beside it, then its draws.

        Args:
            about: what the draws were made from; becomes ``settings["cell"]``.
            earlier: the cell of fewer draws that this one goes on from. Its states are removed if
                they are of the same weights.

        Raises:
            FileError: it cannot be written; no part of the file is left then.
        """
        cell_draws = parts.for_cell(draws, self.observe)
        cell = {**about, "name": name}
        settings = {**cell_draws.settings, "cell": cell}
        with self.writing(f"cell {name}"):
            for observable in self.observe:
                self._write_observed(name, observable, draws)
            if self.keep_states:
                ending = parts.endings(draws)
                at_the_end = {**ending.settings, "cell": cell}
                replace(ending, settings=at_the_end).save(self.state_path(name))
            replace(cell_draws, settings=settings).save(self.path(name))
            self._reason_path(name).unlink(missing_ok=True)
            replaces = earlier is not None and set(earlier.weights) == set(draws.weights)
            if self.keep_states and earlier is not None and replaces:
                self.state_path(earlier.name).unlink(missing_ok=True)

    def _write_observed(self, name: str, observable: str, draws: Draws) -> None:
        axes = parts.observed_axes(draws, observable)
        header = {
            "kind": "rllc.observed",
            "cell": name,
            "name": observable,
            "identity": self._identities[observable],
            "axes": axes,
        }
        arrays = parts.observed_arrays(draws, observable)
        # Most bits of what is observed are random, and do not compress.
        save_arrays(self.observed_path(name, observable), arrays, header, compress=False)

    def fail(self, name: str, reason: str) -> None:
        """Write down why a cell has no file."""
        with self.writing(f"why cell {name} failed"):
            text = json.dumps({"cell": name, "reason": reason}, ensure_ascii=False)
            write_text(self._reason_path(name), text)

    def read(self, name: str) -> Draws:
        """Read a finished cell; ``settings["cell"]`` says what it was made from.

        Raises:
            FileError: there is no such file, it is damaged, or it is another cell's.
        """
        return _read_cell(self.path_text(name))

    def read_observed(self, name: str, observables: Iterable[str] | None = None) -> Draws:
        """Read a finished cell with what was observed along its chains.

        Args:
            observables: their names; ``None``: all that there are.

        Raises:
            FileError: a file is missing or damaged.
        """
        if observables is None:
            paths = (self.root / "observed").glob(f"*/{name}.npz")
            observables = sorted(path.parent.name for path in paths)
        arrays: dict[str, np.ndarray] = {}
        axes: dict[str, list[str]] = {}
        for observable in observables:
            path = self.observed_path(name, observable)
            observed, header = load_arrays(path)
            if (header.get("cell"), header.get("name")) != (name, observable):
                raise FileError(f"reading {path}: it is of another cell or observable.")
            arrays |= observed
            with reading(path):
                axes[observable] = check_fields(header, {"axes": "list"})["axes"]
        return parts.with_observed(self.read(name), arrays, axes)

    def read_to_resume(self, cell: Cell, weights: Sequence[str]) -> Draws:
        """Read some weights of a finished cell with the states of their chains.

        Raises:
            FileError: a file is missing or damaged, or the two are not of the same draws.
        """
        draws = self.read_observed(cell.name, self.observe)
        ending = _read_cell(self.state_path(cell.name))
        path = self.state_path(cell.name)
        if not parts.end_alike(draws, ending):
            raise FileError(f"reading {path}: its last draw is not the cell's.")
        with reading(path):
            return parts.resumable(draws, ending, cell, weights)

    def set_damaged_aside(self, names: Iterable[str]) -> list[str]:
        """Move damaged cell files to ``damaged/``.

        Returns:
            The names of the damaged cells, those included that another sweep has just moved.
        """
        damaged = [name for name in names if not is_whole(self.path(name))]
        for name in damaged:
            path = self.path(name)
            aside = self.root / "damaged" / path.name
            with self.writing(f"damaged/{path.name}"):
                aside.parent.mkdir(exist_ok=True)
                # Another sweep may have computed it again meanwhile.
                if not is_whole(path):
                    with suppress(FileNotFoundError):
                        os.replace(path, aside)
        return damaged

    def set_aside(self, path: Path) -> None:
        """Move a damaged file or folder to ``damaged/``, in place of an earlier one."""
        aside = self.root / "damaged" / path.name
        with self.writing(f"damaged/{path.name}"):
            aside.parent.mkdir(exist_ok=True)
            if aside.is_dir():
                shutil.rmtree(aside)
            with suppress(FileNotFoundError):
                os.replace(path, aside)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn errors of the file system into one that says what to do.

        Raises:
            FileError: something within the block could not be written.
        """
        try:
            yield
        except (OSError, FileError) as error:
            cause = error.__cause__ if isinstance(error, FileError) else error
            if not isinstance(cause, OSError):
                raise
            raise FileError(
                f"track: writing {what} in `store` = {self.folder} failed ({cause}). "
                f"Finished cells are whole. Make room, change its rights or give another folder, "
                f"and call again to go on."
            ) from error


def read_plan(path: Path) -> Plan:
    """Read a plan, whose name must be the hash of its contents.

    Raises:
        FileError: it is damaged, or not a plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if short_hash(text) != path.stem:
            raise ValueError("its contents do not match their hash, its name")
        return Plan.of(text)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, OSError, RecursionError, MemoryError) as error:
        raise FileError(
            f"reading {path}: it is damaged or was not written by rllc.track ({error}). "
            f"Remove it and make the call that it is of again: finished cells are found by their "
            f"contents."
        ) from error


def is_whole(path: Path) -> bool:
    """Whether a file of arrays is there, its checksum is right, and a cell is that of its name."""
    try:
        _, header = load_arrays(path)
    except FileError:
        return False
    return header.get("kind") != "rllc.Draws" or _name_in(header.get("settings")) == path.stem


def _read_cell(path: str | os.PathLike[str]) -> Draws:
    """Read a cell, which says itself which one it is.

    Raises:
        FileError: there is no such file, it is damaged, or it is another cell's.
    """
    draws = Draws.load(path)
    name = _name_in(draws.settings)
    if f"{name}.npz" != os.path.basename(path):
        raise FileError(
            f"reading {path}: it holds the cell {name}; the file was copied or renamed. Remove it, "
            f"and call rllc.track again."
        )
    return draws


def _name_in(settings: Any) -> Any:
    try:
        return settings["cell"]["name"]
    except (KeyError, TypeError):
        return None


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    return write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _stems(folder: Path, suffix: str) -> set[str]:
    """The names of the files with a suffix, without it."""
    return {entry.name.removesuffix(suffix) for entry in _files(folder, suffix)}


def _files(folder: Path, suffix: str) -> Iterator[os.DirEntry[str]]:
    """The files with a suffix, none if there is no such folder; temporary ones are left out."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                yield entry
