"""What a sweep leaves on disk: one whole, checksummed file a finished cell, and no file that two processes would both change.

What you type::

    trajectory = rllc.track("runs/seed0", {"code": code, "prose": prose}, rllc.heads, store="sweep", executor=2)
    # killed, out of power, or more heads, chains, checkpoints wanted? The same line computes what is missing.
    trajectory = rllc.Trajectory.open("sweep")  # now, years later, or from another window while it runs
    trajectory.missing, trajectory.failed
    rllc.plot_trajectory(trajectory, "code")

A *cell* is one checkpoint × one data set × the weights that the engine runs together × some chains. In the folder:

- ``sweeps/<hash>.json``: what one call asked for: settings, checkpoints, data, weights, and the names of its cells.
  Written before the first chain runs, never changed; the name is the hash of the contents;
- ``cells/<hash>.npz``: the draws of one finished cell, as :meth:`rllc.Draws.load` reads them. The name is the hash of all
  that its numbers depend on (:func:`cell_name`), so any process knows which file is its, and two that compute the same
  cell write the same file;
- ``states/<hash>.npz``: where a cell's chains ended, with its last draw: more draws of it begin there. May be removed; more
  draws are then computed from the first one on. That of fewer draws goes once more have their own;
- ``tokens/<hash>.npz``: with ``per_token``, a cell's losses per token, which only those read who want them;
- ``downloads/<hash>.json``: with ``delete_downloads``, what one machine's cache held of a checkpoint before it was fetched;
- ``failed/<hash>.json``: why a cell has no file yet; gone once it has;
- ``data/<hash>.npz``, ``generators/<hash>/``: rows and generating models, once each, for workers in other processes;
- ``damaged/``: cell files whose checksum was wrong, set aside to be computed again.

Everything is written under a temporary name, synced and renamed. A ``.tmp`` file is a killed writer's and may go.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rllc.draws import Draws
from rllc.errors import FileError
from rllc.files import load_arrays, save_arrays, sync, write_atomically

if TYPE_CHECKING:
    from rllc.models.checkpoints import Checkpoint

_VERSION = 1
"""Of this layout; in every cell's name."""

_LEFT_OVER = 3600.0
"""Seconds after which a temporary file has no writer any more."""

_FOLDERS = ("sweeps", "cells", "states", "tokens", "downloads", "failed", "data", "generators")
"""In which there are temporary files of ours."""


@dataclass(frozen=True)
class Cell:
    """One unit of work: which checkpoint, data, weights and chains, and the name of its file."""

    name: str
    step: int
    data: str
    weights: tuple[str, ...]
    chains: tuple[int, int]
    """From the first to before the last."""

    def covers(self, weights: str, chain: int) -> bool:
        """Whether a chain of some weights is among its draws."""
        return weights in self.weights and self.chains[0] <= chain < self.chains[1]


@dataclass(frozen=True, eq=False)
class Sweep:
    """What one call of :func:`rllc.track` asks for.

    Args:
        settings: of sampler and sampling, all that is the same in every cell.
        num_draws: of each chain.
        num_chains: of each refinement.
        loss: its name.
        checkpoints: by step, where each is and the SHA-256 of its weights (``None``: not known beforehand).
        data: by name, the SHA-256 of the rows.
        weights: by name, the SHA-256 of the masks.
        cells: all that it needs, finished or not.
        versions: of what computes.
    """

    settings: Mapping[str, Any]
    num_draws: int
    num_chains: int
    loss: str
    checkpoints: Mapping[int, Mapping[str, Any]]
    data: Mapping[str, str]
    weights: Mapping[str, str]
    cells: tuple[Cell, ...]
    versions: Mapping[str, str]

    @property
    def whole_settings(self) -> dict[str, Any]:
        """As :class:`rllc.Draws` has them."""
        counts = {"num_draws": self.num_draws, "num_chains": self.num_chains, "first_chain": 0}
        return {**self.settings, **counts, "fingerprints": dict(self.data)}

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"kind": "rllc.sweep", **asdict(self)}, indent=1, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Sweep:
        """From JSON."""
        found = json.loads(text)
        if found.pop("kind") != "rllc.sweep":
            raise ValueError("it is of another kind")
        cells = tuple(
            Cell(c["name"], c["step"], c["data"], tuple(c["weights"]), tuple(c["chains"]))
            for c in found.pop("cells")
        )
        steps = {int(step): where for step, where in found.pop("checkpoints").items()}
        return cls(**found, checkpoints=steps, cells=cells)


class Store:
    """A sweep's folder.

    Args:
        folder: need not exist; :meth:`announce` makes it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()

    # What is wanted.

    def sweeps(self) -> list[Sweep]:
        """What all calls so far asked for, the latest last.

        Raises:
            FileError: one of the files is damaged.
        """
        found = []
        for path in (self.folder / "sweeps").glob("*.json"):
            with suppress(FileNotFoundError):  # it has just been withdrawn
                found.append((path.stat().st_mtime_ns, path.name, _sweep(path)))
        return [sweep for *_, sweep in sorted(found, key=lambda one: one[:2])]

    def announce(self, sweep: Sweep) -> None:
        """Write down what is wanted, and see by that that the folder can be written.

        Raises:
            FileError: it cannot.
        """
        path = self._wanted(sweep)
        with self._writing("what this call asks for"):
            if path.exists():
                os.utime(path)  # it is the latest call again
            else:
                write_atomically(path, lambda at: _write(at, sweep.text()))
            probe = write_atomically(self.folder / "cells" / ".writable", lambda at: _write(at, ""))
            probe.unlink(missing_ok=True)  # another sweep on the folder may have been faster
        for leftover in (path for name in _FOLDERS for path in (self.folder / name).glob(".*.tmp")):
            with suppress(OSError):  # gone, or not ours to remove: it is in nobody's way
                if (
                    time.time() - leftover.stat().st_mtime > _LEFT_OVER
                ):  # of a killed writer, not of one at work
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def withdraw(self, sweep: Sweep) -> None:
        """Take back what :meth:`announce` wrote, before anything was computed for it."""
        with self._writing("that this call asks for nothing"):
            self._wanted(sweep).unlink(missing_ok=True)

    def _wanted(self, sweep: Sweep) -> Path:
        return self.folder / "sweeps" / f"{_hash(sweep.text())}.json"

    # Cells.

    def path(self, name: str) -> Path:
        """Of a cell's file, which is there when the cell is finished."""
        return self.folder / "cells" / f"{name}.npz"

    def finished(self, *beside: str) -> set[str]:
        """Names of the cells that have a file, and another ``beside`` it in ``"states"`` or ``"tokens"``."""
        each = [
            {path.stem for path in (self.folder / name).glob("*.npz")}
            for name in ("cells", *beside)
        ]
        return set.intersection(*each)

    def has(self, name: str, per_token: bool) -> bool:
        """Whether a cell has all its files."""
        return self.path(name).exists() and (not per_token or self.token_path(name).exists())

    def failures(self) -> dict[str, str]:
        """Names of the cells that have none because they failed, and why."""
        finished = self.finished()
        found = {}
        for path in (self.folder / "failed").glob("*.json"):
            if path.stem not in finished:
                try:
                    found[path.stem] = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
                except FileNotFoundError:  # it has just been finished
                    continue
                except (ValueError, KeyError, OSError) as error:
                    found[path.stem] = f"unknown: {path} cannot be read ({error})"
        return found

    def write(
        self,
        name: str,
        draws: Draws,
        about: Mapping[str, Any],
        *,
        keep_states: bool = False,
        earlier: Cell | None = None,
    ) -> None:
        """Finish a cell: its draws, with what they were made from, in one file; before it, what is kept beside it.

        Args:
            keep_states: write down where its chains ended, with target_se perhaps none of them before the end.
            earlier: the cell of fewer draws that this one goes on from. Losses per token are then of the new draws, and
                get behind its own; its states, if they are of the same weights, are of no more use.

        Raises:
            FileError: it cannot be written; nothing of it is left then.
        """
        bare = replace(draws, states={}, tokens={}, token_baseline={}, rows={})
        with self._writing(f"cell {name}"):
            if draws.tokens:
                self._write_tokens(name, draws, earlier)
            if keep_states:
                last = {
                    k: a[..., -1:]
                    for k in ("loss", "baseline", "noise", "control")
                    if (a := getattr(draws, k)) is not None
                }
                replace(bare, **last, probes={}, lengths=(), states=draws.states).save(
                    self.state_path(name)
                )
            replace(bare, settings={**draws.settings, "cell": dict(about)}).save(self.path(name))
            (self.folder / "failed" / f"{name}.json").unlink(missing_ok=True)
            if keep_states and earlier is not None and set(earlier.weights) == set(draws.weights):
                self.state_path(earlier.name).unlink(missing_ok=True)

    def fail(self, name: str, reason: str) -> None:
        """Write down why a cell has no file."""
        with self._writing(f"why cell {name} failed"):
            text = json.dumps({"reason": reason}, ensure_ascii=False)
            write_atomically(self.folder / "failed" / f"{name}.json", lambda at: _write(at, text))

    def read(self, name: str) -> Draws:
        """The draws of a finished cell; ``settings["cell"]`` says what they were made from.

        Raises:
            FileError: there is no such file, or it is damaged.
        """
        return Draws.load(self.path(name))

    # What is kept beside cells.

    def state_path(self, name: str) -> Path:
        """Of the file of a cell's states."""
        return self.folder / "states" / f"{name}.npz"

    def token_path(self, name: str) -> Path:
        """Of the file of a cell's losses per token."""
        return self.folder / "tokens" / f"{name}.npz"

    def continued(self, cell: Cell, weights: Sequence[str]) -> Draws:
        """The draws of some weights of a finished cell with the states of their chains, for ``sample(resume=…)``.

        Raises:
            FileError: one of the two files is missing or damaged, or they are not of the same draws.
        """
        draws, last = self.read(cell.name), Draws.load(self.state_path(cell.name))
        if not np.array_equal(
            last.loss[..., 0], draws.loss[..., -1], equal_nan=True
        ):  # two machines, two roundings
            raise FileError(
                f"reading {self.state_path(cell.name)}: its last draw is not the cell's."
            )
        some = gathered([draws], [(0, draws.loss.shape[1])], weights)
        settings = {**some.settings, "first_chain": cell.chains[0], "cell": draws.settings["cell"]}
        return replace(
            some,
            settings=settings,
            states={k: v for k, v in last.states.items() if k[0] in weights},
        )

    def note_download(self, checkpoint: Checkpoint, there: Iterable[Path] | None = None) -> None:
        """Before a checkpoint is fetched from the hub: write down what this machine has of it, once.

        Args:
            there: the files; ``None``: those that are cached now.
        """
        path = self._download(checkpoint)
        if not path.exists() and not Path(checkpoint.source).exists():
            held = sorted(map(str, checkpoint.cached() if there is None else there))
            with self._writing(f"what is cached of {checkpoint}"):
                write_atomically(path, lambda at: _write(at, json.dumps({"there": held})))

    def delete_download(self, checkpoint: Checkpoint) -> None:
        """Delete from the hub's cache what this machine has fetched of a checkpoint since :meth:`note_download`."""
        path = self._download(checkpoint)
        if path.exists():
            checkpoint.delete_cached(
                [Path(file) for file in json.loads(path.read_text(encoding="utf-8"))["there"]]
            )
            path.unlink(missing_ok=True)

    def _download(self, checkpoint: Checkpoint) -> Path:
        c = checkpoint
        key = _hash(json.dumps([platform.node(), c.source, c.revision, c.file]))
        return self.folder / "downloads" / f"{key}.json"

    def _write_tokens(self, name: str, draws: Draws, earlier: Cell | None) -> None:
        """Losses per token in half precision: those at w*, and the differences to them.

        Float16 has 11 bits: of a loss of 3 nats, which at a draw may have risen by 0.01, they leave ± 0.001. Of the difference
        they leave ± 0.00001, far below its noise, so that means, variances and covariances over draws, which are what these
        losses are for, stay what they are.
        """
        before = {} if earlier is None else load_arrays(self.token_path(earlier.name))[0]
        (data,) = draws.token_baseline
        baseline = draws.token_baseline[data]
        arrays = {
            "rows": draws.rows[data].astype(np.int32),
            "baseline": baseline.astype(np.float16),
        }
        for i, weights in enumerate(draws.weights):
            each = draws.tokens[weights, data]
            rise = each - baseline[: each.shape[1]]
            broken = np.isnan(draws.loss[i, :, draws.lengths[i] - each.shape[1] : draws.lengths[i]])
            rise[broken] = np.nan
            with np.errstate(over="ignore"):  # infinite where a chain is about to diverge
                arrays[f"rise.{weights}"] = rise.astype(np.float16)
        for key, array in arrays.items() if before else ():
            arrays[key] = np.concatenate(
                [before[key], array], axis=1 if key.startswith("rise.") else 0
            )
        save_arrays(
            self.token_path(name), arrays, {"kind": "rllc.tokens", "data": data}, compress=False
        )

    def tokens(self, name: str, weights: str) -> Draws:
        """The draws of a finished cell with the losses per token of some weights, in float32.

        Raises:
            FileError: there is no such file, or it is damaged.
        """
        draws, (arrays, header) = self.read(name), load_arrays(self.token_path(name))
        data, baseline = header["data"], arrays["baseline"].astype(np.float32)
        rise = arrays[f"rise.{weights}"]
        tokens = {(weights, data): baseline[: rise.shape[1]] + rise.astype(np.float32)}
        return replace(
            draws,
            tokens=tokens,
            token_baseline={data: baseline},
            rows={data: arrays["rows"].astype(np.int64)},
        )

    def set_damaged_aside(self, names: Iterable[str]) -> list[str]:
        """Move cell files that are damaged to ``damaged/``, and say which, with those that another sweep has just moved."""
        damaged = [name for name in names if not _is_whole(self.path(name))]
        for name in damaged:
            with self._writing(f"damaged/{name}.npz"):
                (self.folder / "damaged").mkdir(exist_ok=True)
                if not _is_whole(
                    self.path(name)
                ):  # another sweep may have computed it again meanwhile
                    with suppress(FileNotFoundError):
                        os.replace(self.path(name), self.folder / "damaged" / f"{name}.npz")
        return damaged

    # What workers in other processes read.

    def save_rows(self, rows: tuple[torch.Tensor, ...], fingerprint: str) -> str:
        """Write the tensors of a data set once, or again if the file is damaged; gives the file."""
        path = self.folder / "data" / f"{fingerprint}.npz"
        if not _is_whole(path):
            with self._writing("data"):
                save_arrays(
                    path, {str(i): part.detach().cpu().numpy() for i, part in enumerate(rows)}, {}
                )
        return str(path)

    def save_model(self, folder: Path, model: Any) -> None:
        """Write a model once, in ``save_pretrained`` form."""
        if folder.exists():
            return
        with self._writing("a generating model"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(
                tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp")
            )
            try:
                model.save_pretrained(temporary / "model")  # one deeper, with the usual rights
                for file in (temporary / "model").rglob("*"):
                    if file.is_file():
                        sync(file)
                os.replace(temporary / "model", folder)
                sync(folder.parent)
            except OSError:
                if not folder.exists():  # else somebody was faster
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(
                f"track: writing {what} in `store` = {self.folder} failed ({error}). Finished cells are whole. Make room, "
                f"change its rights or give another folder, and call again to go on."
            ) from error


def _is_whole(path: Path) -> bool:
    try:
        load_arrays(path)
    except FileError:
        return False
    return True


def load_rows(path: str) -> tuple[torch.Tensor, ...]:
    """Read what :meth:`Store.save_rows` wrote."""
    arrays, _ = load_arrays(path)
    return tuple(torch.from_numpy(arrays[str(i)]) for i in range(len(arrays)))


def cell_name(
    sweep: Sweep,
    checkpoint: Mapping[str, Any],
    data: str,
    weights: Sequence[str],
    chains: tuple[int, int],
) -> str:
    """The hash of all that a cell's numbers depend on: contents of checkpoint and data, masks, loss, settings, chains.

    Where a checkpoint lies has no part in it once its SHA-256 is known, so a folder may move; nor have versions: which
    computed a cell stands in its file, and a change of them is warned of.
    """
    where = (
        {k: checkpoint[k] for k in ("source", "revision", "file")}
        if checkpoint["sha256"] is None
        else {}
    )
    key = {
        "version": _VERSION,
        "checkpoint": {"step": checkpoint["step"], "sha256": checkpoint["sha256"], **where},
        "data": [data, sweep.data[data]],
        "weights": [[name, sweep.weights[name]] for name in weights],
        "loss": sweep.loss,
        "settings": {**sweep.settings, "num_draws": sweep.num_draws},
        "chains": chains,
    }
    return _hash(json.dumps(key, sort_keys=True))


def differences(earlier: Sequence[Sweep], now: Sweep) -> list[str]:
    """What sweeps on one folder must have in common, and have not: ``"lr: 0.001 there, 0.002 now"``.

    Chains and draws may grow, and be as few as in one that was there.
    """
    found = [
        words
        for before in earlier
        for words in _differences(json.loads(before.text()), json.loads(now.text()))
    ]
    for what in ("num_chains", "num_draws"):
        there = {getattr(before, what) for before in earlier}
        mine = getattr(now, what)
        if there and mine < max(there) and mine not in there:
            found.append(f"{what}: {max(there)} there, {mine} now (it can only grow)")
    return list(dict.fromkeys(found))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    pairs = [
        (k, old["settings"].get(k), new["settings"].get(k))
        for k in old["settings"] | new["settings"]
    ]
    pairs.append(("loss", old["loss"], new["loss"]))
    for step in old["checkpoints"].keys() & new["checkpoints"].keys():
        a, b = old["checkpoints"][step], new["checkpoints"][step]
        if None not in (a["sha256"], b["sha256"]):
            pairs.append((f"checkpoint of step {step}, SHA-256", a["sha256"], b["sha256"]))
        elif None not in (a["revision"], b["revision"]):
            pairs.append((f"checkpoint of step {step}, revision", a["revision"], b["revision"]))
    for what in ("data", "weights"):
        pairs += [
            (f"{what} {k!r}, SHA-256", old[what][k], new[what][k])
            for k in old[what].keys() & new[what].keys()
        ]
    return [
        f"{name}: {_short(a)} there, {_short(b)} now"
        for name, a, b in sorted(pairs, key=str)
        if a != b
    ]


def versions() -> dict[str, str]:
    """What bits of a result depend on besides the settings."""
    import rllc

    found = {"rllc": rllc.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return found | {"python": platform.python_version()}


# A store seen as a table.


@dataclass(frozen=True, eq=False)
class Contents:
    """Which cells hold each refinement at each checkpoint; what is missing, and what failed."""

    steps: tuple[int, ...]
    refinements: tuple[tuple[str, str], ...]
    """``(weights, data)``, weights varying slowest."""
    settings: Mapping[str, Any]
    cells: Mapping[tuple[int, str, str], tuple[str, ...]]
    """By (step, weights, data): names of the finished cells that hold its chains, in order."""
    chains: Mapping[str, tuple[int, int]]
    """Of each cell."""
    missing: tuple[tuple[int, str, str], ...]
    failed: Mapping[tuple[int, str, str], str]


def contents(store: Store, sweeps: Sequence[Sweep], wanted: Sequence[Sweep]) -> Contents:
    """What there is of what ``wanted`` ask for, in cells that any of ``sweeps`` planned; chains and draws as the last has.

    Of settings too there are never two kinds in one result, whatever two processes may have announced at once.
    """

    def kind(sweep: Sweep) -> tuple[Any, ...]:
        return sweep.num_draws, sweep.loss, dict(sweep.settings)

    chains, kept = wanted[-1].num_chains, kind(wanted[-1])
    wanted = [s for s in wanted if kind(s) == kept]
    planned = {c.name: c for s in sweeps if kind(s) == kept for c in s.cells}
    finished, failures = store.finished(), store.failures()
    at: dict[tuple[int, str], list[Cell]] = {}
    for cell in planned.values():
        at.setdefault((cell.step, cell.data), []).append(cell)
    asked = dict.fromkeys(
        (step, w, d) for s in wanted for step in s.checkpoints for w in s.weights for d in s.data
    )
    cells, failed, missing = {}, {}, []
    for step, w, d in asked:
        here = at.get((step, d), [])
        if (cover := covering([c for c in here if c.name in finished], w, chains)) is not None:
            cells[step, w, d] = tuple(c.name for c in cover)
        elif reasons := [failures[c.name] for c in here if w in c.weights and c.name in failures]:
            failed[step, w, d] = reasons[-1]
        else:
            missing.append((step, w, d))
    names = {
        what: tuple(dict.fromkeys(k for s in wanted for k in getattr(s, what)))
        for what in ("weights", "data")
    }
    data = {k: v for s in wanted for k, v in s.data.items()}
    return Contents(
        steps=tuple(sorted({step for s in wanted for step in s.checkpoints})),
        refinements=tuple((w, d) for w in names["weights"] for d in names["data"]),
        settings=wanted[-1].whole_settings | {"fingerprints": data},
        cells=cells,
        chains={name: c.chains for name, c in planned.items()},
        missing=tuple(missing),
        failed=failed,
    )


def covering(cells: Iterable[Cell], weights: str, num_chains: int) -> list[Cell] | None:
    """Cells that together hold all chains of some weights, the fewest; ``None`` if they do not."""
    mine, chosen, chain = list(cells), [], 0
    while chain < num_chains:
        fitting = [c for c in mine if c.covers(weights, chain) and c.chains[1] <= num_chains]
        if not fitting:
            return None
        chosen.append(max(fitting, key=lambda c: c.chains[1]))
        chain = chosen[-1].chains[1]
    return chosen


def gathered(
    parts: Sequence[Draws], chains: Sequence[tuple[int, int]], weights: Sequence[str]
) -> Draws:
    """The draws of some weights on one data set, their chains put together from several cells, one behind the other.

    Args:
        parts: each holds some chains of all of ``weights``, and perhaps more.
        chains: of each part, from the first to before the last.
    """
    ends = [0, *(end for _, end in chains)]
    rows = [[part.weights.index(w) for w in weights] for part in parts]
    skips = [end - begin for end, (begin, _) in zip(ends, chains, strict=False)]
    first = parts[0]

    def joined(arrays: Sequence[np.ndarray | None]) -> Any:
        if any(a is None for a in arrays):
            return None
        taken = [a[r] for a, r in zip(arrays, rows, strict=True)]
        if taken[0].ndim == 1:  # of the refinement, whatever its chains
            return taken[0]
        return np.concatenate([a[:, skip:] for a, skip in zip(taken, skips, strict=True)], axis=1)

    def per_token(key: tuple[str, str]) -> np.ndarray:
        return np.concatenate([p.tokens[key][skip:] for p, skip in zip(parts, skips, strict=True)])

    arrays = ("loss", "baseline", "diverged", "control", "noise")
    return replace(
        first,
        **{name: joined([getattr(p, name) for p in parts]) for name in arrays},
        probes={name: joined([p.probes[name] for p in parts]) for name in first.probes},
        tokens={key: per_token(key) for key in first.tokens if all(key in p.tokens for p in parts)},
        weights=tuple(weights),
        data=(first.data[0],) * len(weights),
        lengths=tuple(first.lengths[r] for r in rows[0]),
        settings={k: v for k, v in first.settings.items() if k != "cell"}
        | {"num_chains": ends[-1], "first_chain": 0},
    )


def _sweep(path: Path) -> Sweep:
    text = path.read_text(encoding="utf-8")
    try:
        if _hash(text) != path.stem:
            raise ValueError("its contents do not match their hash, its name")
        return Sweep.of(text)
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"reading {path}: it is damaged or was not written by rllc.track ({error}). Remove it and make the call that it "
            f"is of again: finished cells are found by their contents."
        ) from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
