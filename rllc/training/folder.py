"""The folder of a run, in which every file is whole or not there.

- ``step0000100/``: a checkpoint in ``save_pretrained`` form, with ``sha256.json``;
  :func:`rllc.load` verifies it;
- ``training.json``: settings, fingerprint of the data, and versions of what trained;
- ``losses.npz``: ``loss [step]``, in nats per token; entry t is the loss of minibatch t at the
  weights after t steps;
- ``resume.pt``: model, optimisers and losses at one step, from which the same call goes on.

Minibatches and random numbers are functions of (seed, step), and kernels are deterministic, so a
run that was killed and resumed has, bit for bit, the weights of one that was not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rllc.errors import FileError, InputError, first_line
from rllc.models.checkpoint import SUMS
from rllc.storage.files import (
    check_fields,
    is_temporary,
    save_arrays,
    sha256_of_file,
    sha256_of_text,
    sync,
    temporary_prefix,
    write_atomically,
)
from rllc.training.reproducible import digest, environment
from rllc.training.run import Run

_KIND = "rllc.train"

_SHOWN = 300
"""Characters of what torch says that a message shows."""


class RunFolder:
    """A run's folder, or, for ``None``, nowhere: then nothing is read and nothing written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.settings: Mapping[str, Any] = {}
        """The settings of the run in the folder, once it is taken up."""
        self.resumed: int | None = None
        """The step of ``resume.pt`` when the folder was taken up."""

    @classmethod
    @contextmanager
    def locked(cls, path: str | os.PathLike[str] | None) -> Iterator[RunFolder]:
        """Make the folder and keep other processes from training in it.

        Raises:
            FileError: it cannot be written, or another process is training in it.
        """
        if path is None:
            yield cls(None)
            return
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Closed below; opening it here alone is what fails on a folder without rights.
            lock = open(path / ".lock", "a")  # noqa: SIM115
        except OSError as error:
            raise FileError(
                f"training: the folder `out` = {path} cannot be written ({error}). Give another, "
                f"or change its rights."
            ) from error
        with lock:
            _lock(lock, path)
            _remove_leftovers(path)
            yield cls(path)

    def take_up(self, run: Run, settings: Mapping[str, Any], data: str, resume: bool) -> int:
        """Go on with the run that the folder holds, if its settings are these.

        Returns:
            The step at which the run stands; 0 for a new one.

        Raises:
            InputError: the folder's run has other settings, or has taken more steps.
            FileError: the folder holds a run and ``resume`` is false, or a file is damaged.
        """
        if self.path is None:
            return 0
        described = self._description()
        if described and not resume:
            raise FileError(
                f"training: {self.path} holds a run already, and `resume` is False. Give another "
                f"folder, remove that one, or say resume=True to go on with it."
            )
        if described:
            _compare(described["settings"], settings, self.path)
        # Those that were written: another version of transformers would say more or less.
        self.settings = described.get("settings", json.loads(json.dumps(settings)))
        state = self._state()
        step = 0 if state is None else state["step"]
        num_steps = run.training.num_steps
        if step > num_steps:
            raise InputError(
                f"training: the run in {self.path} has taken {step} steps, more than `num_steps` = "
                f"{num_steps}. See rllc.checkpoints({str(self.path)!r}) for what it holds, or "
                f"train in another folder."
            )
        sessions = described.get("sessions", [])
        versions = environment(run.model.device)
        if state is not None:
            self.resumed = step
            self._restore(run, state)
            if step < num_steps:
                _warn_of_changes(sessions[-1]["environment"], versions, self.path, step)
        if not sessions or step < num_steps:
            session = {
                "from_step": step,
                "num_steps": num_steps,
                "schedule": list(run.training.checkpoint_steps()),
                "data_name": data,
                "environment": versions,
            }
            self._write_description([*sessions, session])
        return step

    def write_checkpoint(self, model: Any, step: int) -> None:
        """One ``save_pretrained`` folder, renamed into place when it is whole and on disk."""
        if self.path is None:
            return
        final = self.path / f"step{step:07d}"
        temporary = self.path / f"{temporary_prefix(final.name)}tmp"
        with self._writing(final.name):
            with _no_bars():
                model.save_pretrained(temporary)
            sums = {file.name: sha256_of_file(file) for file in sorted(temporary.iterdir())}
            text = json.dumps(sums, indent=1)
            written = final / SUMS
            if written.is_file() and written.read_text(encoding="utf-8") == text:
                # The checkpoint that a resumed run starts from.
                shutil.rmtree(temporary)
                return
            (temporary / SUMS).write_text(text, encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            old = self.path / f"{temporary_prefix(final.name)}old.tmp"
            if final.exists():
                # Changed by someone, or made with other versions before the run was killed.
                os.replace(final, old)
            os.replace(temporary, final)
            sync(self.path)
            shutil.rmtree(old, ignore_errors=True)

    def write_resume(self, run: Run, step: int) -> None:
        """``losses.npz``, then ``resume.pt``."""
        if self.path is None or step == self.resumed:
            return
        state = run.state(step, of_run=self._run())
        losses = {"loss": state["losses"].numpy()}
        with self._writing("resume.pt"):
            save_arrays(self.path / "losses.npz", losses, {"kind": "rllc.losses"})
            write_atomically(self.path / "resume.pt", lambda at: torch.save(state, at))

    def _write_description(self, sessions: list[Any]) -> None:
        assert self.path is not None
        description = {"kind": _KIND, "settings": self.settings, "sessions": sessions}
        text = json.dumps(description, indent=1)

        def write(at: Path) -> None:
            at.write_text(text, encoding="utf-8")

        with self._writing("training.json"):
            write_atomically(self.path / "training.json", write)

    def _description(self) -> dict[str, Any]:
        """The contents of ``training.json``; ``{}`` for a folder without a run."""
        assert self.path is not None
        path = self.path / "training.json"
        if not path.exists():
            self._check_without_run()
            return {}
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            check_fields(description, {"kind": None})
            if description["kind"] != _KIND:
                raise ValueError("it is of another kind")
            check_fields(description, {"settings": "object", "sessions": "list"})
            if not description["sessions"]:
                raise ValueError("it has no session")
            for session in description["sessions"]:
                check_fields(session, {"environment": "object"})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileError(
                f"training: {path} is damaged or was not written by rllc.train ({error}). Give an "
                f"empty folder as `out`."
            ) from error
        return description

    def _check_without_run(self) -> None:
        assert self.path is not None
        names = sorted(path.name for path in self.path.iterdir())
        for name in names:
            if name == "resume.pt" or name.startswith("step"):
                raise FileError(
                    f"training: {self.path} has {name} but no training.json, so it is not known of "
                    f"which run. Give an empty folder as `out`."
                )

    def _state(self) -> dict[str, Any] | None:
        assert self.path is not None
        path = self.path / "resume.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state.pop("sha256") != digest(state):
                raise ValueError("its contents do not match the checksum in it")
            if state.pop("of_run", None) not in (None, self._run()):
                raise ValueError("it is of another run")
            check_fields(state, {"step": "count", "losses": None, "model": "object"})
            check_fields(state, {"optimizers": "list"})
            _check_numbers(state)
        except Exception as error:  # damaged bytes can make the reader fail in any way
            raise FileError(
                f"training: {path} is damaged ({type(error).__name__}: {first_line(error)}). The "
                f"checkpoints beside it are not touched; remove it to train again from step 0, or "
                f"train in another folder."
            ) from error
        return state

    def _restore(self, run: Run, state: Mapping[str, Any]) -> None:
        assert self.path is not None
        try:
            run.restore(state)
        except Exception as error:  # torch has many for state dicts of another kind
            raise FileError(
                f"training: {self.path / 'resume.pt'} is of another model or optimizer "
                f"({_in_one_line(error)}). Remove it to train again from step 0, or train in "
                f"another folder."
            ) from error

    def _run(self) -> str:
        """Return which run this is: the hash of its settings, which ``resume.pt`` says, too."""
        return sha256_of_text(json.dumps(self.settings, sort_keys=True))

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # torch, safetensors and the system name a full disk differently
            raise FileError(
                f"training: writing {name} in {self.path} failed ({error}). All that was written "
                f"before is whole; make room and call again to go on from there."
            ) from error


def _in_one_line(error: Exception) -> str:
    """torch's error about a state dict in one line; its second line names the weights."""
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _check_numbers(state: Mapping[str, Any]) -> None:
    """See that losses are one a step and weights are finite.

    Raises:
        ValueError: they are not.
    """
    losses, step = state["losses"], state["step"]
    if not isinstance(losses, Tensor) or losses.shape != (step,):
        shown = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"'losses' is {shown}, expected one number for each of {step} steps")
    for name, weight in state["model"].items():
        if isinstance(weight, Tensor) and not bool(weight.isfinite().all()):
            raise ValueError(f"'model': {name!r} is not finite")


def _lock(file: Any, path: Path) -> None:
    """Held until the process ends, however it ends. Not on Windows, nor where locks are missing."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(
            f"training: another process is training in {path}. Wait for it, or give another folder."
        ) from None
    except (ImportError, OSError):
        pass


_OURS = re.compile(r"\.(step\d{7}|training\.json|losses\.npz|resume\.pt)\.rllc-.*")
"""Temporary names of what a run writes."""


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a killed run, and nothing that is somebody else's."""
    for path in folder.glob(".*.tmp"):
        if not is_temporary(path) or _OURS.fullmatch(path.name) is None:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a run of other settings, and list what differs."""
    stored = _flat(old)
    asked = _flat(json.loads(json.dumps(new)))
    lines = []
    for name in stored | asked:
        # Other versions of transformers know more or fewer fields of a configuration.
        if name.startswith("config.") and not (name in stored and name in asked):
            continue
        if name in ("numerics", "code") and name not in stored:
            continue  # an earlier version wrote neither
        if stored.get(name) != asked.get(name):
            lines.append(f"  {name}: {stored.get(name)!r} there, {asked.get(name)!r} now\n")
    if lines:
        raise InputError(
            f"training: {path} holds a run with other settings or data:\n{''.join(lines)}"
            f"Give the same to go on with it, or another folder as `out`."
        )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by points."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _warn_of_changes(
    previous: Mapping[str, Any], now: Mapping[str, Any], path: Path, step: int
) -> None:
    changes = []
    for name, value in now.items():
        if previous.get(name) != value:
            changes.append(f"{name} {previous.get(name)} -> {value}")
    if changes:
        warnings.warn(
            f"training: going on with {path} from step {step} with {', '.join(changes)}; the "
            f"result may differ in its last bits from that of an unbroken run.",
            stacklevel=4,
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows a bar for each model it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
