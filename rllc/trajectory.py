"""Estimates over training: the result, and the tracker that makes one inside your own training loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rllc.draws import Draws
from rllc.errors import FileError, InputError, nearest
from rllc.estimate import ARRAYS, Estimate, estimate
from rllc.faults import Fault, faults_from_json, faults_to_json, status_of
from rllc.files import load_arrays, save_arrays, write_atomically
from rllc.loss import LossFunction
from rllc.names import Names
from rllc.refinement import DataLike, WeightsLike, fingerprints, product
from rllc.samplers import Sampler, sgld
from rllc.sampling import Sampling
from rllc.sweep.store import Contents, Store, contents, gathered
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Trajectory:
    """λ̂ of each refinement at each checkpoint; :func:`rllc.track` and :class:`Tracker` make it.

    Args:
        steps: training step of each checkpoint, rising.
        value: ``[checkpoint, refinement]``; so ``standard_error``, ``rhat`` and ``ess``: as in :class:`rllc.Estimate`.
        per_chain: ``[checkpoint, refinement, chain]``.
        faults: ``[checkpoint][refinement]``; of a kind in :data:`rllc.faults.ABSENT` where a sweep has no estimate.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        settings: of sampler and sampling, the same at every checkpoint.
        diagnostics: by name, ``[checkpoint, refinement]``: as in :class:`rllc.Estimate`.
        missing: the ``(step, weights, data)`` that a sweep has not come to.
        failed: ``(step, weights, data)`` to the reason; the next call of the sweep tries them again.
    """

    steps: tuple[int, ...]
    value: np.ndarray
    standard_error: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    per_chain: np.ndarray
    faults: tuple[tuple[tuple[Fault, ...], ...], ...]
    weights: tuple[str, ...]
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[tuple[int, str, str], ...] = ()
    failed: Mapping[tuple[int, str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, estimates: Mapping[int, Estimate]) -> Trajectory:
        """Put estimates, keyed by training step, in order.

        Raises:
            InputError: there are none, or they are of other refinements or made with other settings.
        """
        if not estimates:
            raise InputError("Trajectory.of: expected at least one estimate, got none.")
        steps = tuple(sorted(estimates))
        ordered = [estimates[step] for step in steps]
        first = ordered[0]
        for step, other in zip(steps, ordered, strict=True):
            for what in ("weights", "data", "settings"):
                if getattr(other, what) != getattr(first, what):
                    raise InputError(
                        f"Trajectory.of: `{what}` at step {step} are {getattr(other, what)}, but at step {steps[0]} "
                        f"{getattr(first, what)}; a curve compares the same refinements with the same settings."
                    )
        told = {
            name: np.stack([e.diagnostics[name] for e in ordered]) for name in first.diagnostics
        }
        return cls(
            steps,
            **{name: np.stack([getattr(e, name) for e in ordered]) for name in ARRAYS},
            faults=tuple(e.faults for e in ordered),
            weights=first.weights,
            data=first.data,
            settings=first.settings,
            diagnostics=told,
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Trajectory:
        """What :func:`rllc.track` has put into a store so far: while it runs, after it was killed, or years later.

        Only names are read now; the numbers are when they are first asked for. What comes into the folder later is not
        seen: open it again.

        >>> trajectory = rllc.Trajectory.open("sweep")                                     # doctest: +SKIP
        >>> trajectory.missing[:1], len(trajectory.failed)                                 # doctest: +SKIP
        (((50000, '1:7', 'prose'),), 0)

        Raises:
            FileError: the folder is not a store, or a description in it is damaged.
        """
        store = Store(folder)
        sweeps = store.sweeps()
        if not sweeps:
            raise FileError(
                f"Trajectory.open({os.fspath(folder)!r}): there is no sweep in it; expected a folder that rllc.track(…, "
                f"store=folder) wrote. A single file is read by rllc.Trajectory.load."
            )
        return cls._lazy(store, contents(store, sweeps, sweeps))

    @classmethod
    def _lazy(cls, store: Store, found: Contents) -> Trajectory:
        self = object.__new__(cls)
        names = {
            "weights": [w for w, _ in found.refinements],
            "data": [d for _, d in found.refinements],
        }
        known = {
            "steps": found.steps,
            "settings": found.settings,
            "missing": found.missing,
            "failed": found.failed,
        }
        known |= {"_from": (store, found), "_cells": (store, found)}
        self.__dict__.update(known | {k: tuple(v) for k, v in names.items()})
        return self

    def _detach(self) -> None:
        """Read everything, and forget the store."""
        len(self.value)
        self.__dict__.pop("_cells")

    def __getattr__(self, name: str) -> Any:
        """The arrays of a trajectory that was opened, when one is first asked for."""
        if name not in (*ARRAYS, "faults", "diagnostics") or "_from" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__.update(_read(*self.__dict__["_from"]))
        self.__dict__.pop("_from", None)  # only now: what could not be read may be asked for again
        return self.__dict__[name]

    @property
    def status(self) -> tuple[tuple[str, ...], ...]:
        """``[checkpoint][refinement]``: the faults as text."""
        return tuple(tuple(status_of(faults) for faults in row) for row in self.faults)

    def at(self, step: int) -> Estimate:
        """The estimate at one checkpoint.

        Raises:
            InputError: there is none at this step.
        """
        if step not in self.steps:
            close = sorted(sorted(self.steps, key=lambda s: abs(s - step))[:3])
            raise InputError(
                f"trajectory.at({step}): no such checkpoint; the nearest steps are {close}."
            )
        i = self.steps.index(step)
        return Estimate(
            **{name: getattr(self, name)[i] for name in ARRAYS},
            faults=self.faults[i],
            names=Names(self.weights, self.data),
            settings=self.settings,
            diagnostics={name: array[i] for name, array in self.diagnostics.items()},
        )

    def draws(self, step: int, weights: str, data: str | None = None) -> Draws:
        """The draws behind one estimate, read from the store; with losses per token where ``track(per_token=True)`` kept them.

        >>> draws = trajectory.draws(8500, "1:6", "code")                                  # doctest: +SKIP
        >>> rise = draws.tokens["1:6", "code"] - draws.token_baseline["code"]              # doctest: +SKIP

        ``tokens`` are ``[chain, draw, batch, pos]``, ``token_baseline`` ``[draw, batch, pos]``, and ``rows``, ``[draw, batch]``,
        says which rows of the data the minibatches held. ``tokens`` is NaN where a chain had diverged, and empty where none were
        kept. They were kept in half precision, as differences to the losses at w*: these to 0.05 %, the losses themselves
        to 0.001 nats or so.

        Args:
            data: ``None`` where there is one data set.

        Raises:
            InputError: there is no such estimate, it is missing or failed, or the trajectory has no store.
            FileError: a file in the store is damaged.
        """
        doing = f"trajectory.draws({step}, {weights!r}, {data!r})"
        if "_cells" not in self.__dict__:
            raise InputError(
                f"{doing}: draws are in a store; use track(…, store='sweep') or Trajectory.open('sweep')."
            )
        store, found = self.__dict__["_cells"]
        known = list(dict.fromkeys(self.data))
        if data is None and len(known) > 1:
            raise InputError(
                f"{doing}: on which data? It has {known}; type trajectory.draws({step}, {weights!r}, {known[0]!r})."
            )
        key = (
            step,
            weights if weights in self.weights else head_name(weights),
            known[0] if data is None else data,
        )
        if key not in found.cells:
            there = [k[1:] for k in found.cells if k[0] == step] or [k[0] for k in found.cells]
            why = nearest(
                key[1:] if any(k[0] == step for k in found.cells) else step, dict.fromkeys(there)
            )
            if key in self.missing or key in self.failed:
                why = (
                    f"it failed: {self.failed[key]}"
                    if key in self.failed
                    else "it is missing; call rllc.track again"
                )
            raise InputError(f"{doing}: {why}.")
        names = found.cells[key]
        has_tokens = all(store.has(name, per_token=True) for name in names)
        parts = [store.tokens(name, key[1]) if has_tokens else store.read(name) for name in names]
        return gathered(parts, [found.chains[name] for name in names], [key[1]])

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        size = len(self.steps) * len(self.weights)
        counts = [(len(self.missing), "missing"), (len(self.failed), "failed")]
        if not (self.missing or self.failed):
            counts = [(sum(status != "ok" for row in self.status for status in row), "not ok")]
        note = "".join(f", {count} of {size} {what}" for count, what in counts if count)
        return (
            f"Trajectory({len(self.steps)} checkpoints, steps {self.steps[0]}…{self.steps[-1]}, "
            f"{len(dict.fromkeys(self.weights))} weights × {len(dict.fromkeys(self.data))} data{note})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a checkpoint and refinement: ``step, weights, data, llc, standard_error, rhat, ess, status``, diagnostics."""
        import pandas as pd

        rows = [self.at(step).to_dataframe().assign(step=step) for step in self.steps]
        return pd.concat(rows, ignore_index=True).pipe(
            lambda df: df[["step", *df.columns.drop("step")]]
        )

    def to_xarray(self) -> xr.Dataset:
        """Everything with named axes ``checkpoint, refinement, chain``; steps and names are coordinates. Needs ``xarray``.

        ``.set_index(refinement=["weights", "data"]).unstack("refinement")`` makes an axis of each.

        Raises:
            InputError: xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise InputError(
                "trajectory.to_xarray(): xarray is not installed; type pip install 'rllc[xarray]'."
            ) from error
        axes = ("checkpoint", "refinement")
        arrays = {
            "llc" if name == "value" else name: (axes, getattr(self, name))
            for name in ARRAYS
            if name != "per_chain"
        }
        arrays |= {name: (axes, array) for name, array in self.diagnostics.items()}
        arrays["per_chain"] = ((*axes, "chain"), self.per_chain)
        arrays["status"] = (axes, np.array(self.status, dtype=object).reshape(self.value.shape))
        names = {
            "weights": ("refinement", list(self.weights)),
            "data": ("refinement", list(self.data)),
        }
        coordinates = {"step": ("checkpoint", list(self.steps))} | names
        return xr.Dataset(arrays, coordinates, {"settings": json.dumps(dict(self.settings))})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dataframe` as one Parquet file, whole or not at all."""
        return write_atomically(path, lambda at: self.to_dataframe().to_parquet(at, index=False))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        names = {key: getattr(self, key) for key in ("steps", "weights", "data", "missing")}
        names["faults"] = [[faults_to_json(faults) for faults in row] for row in self.faults]
        failed = [[*key, reason] for key, reason in self.failed.items()]
        header = {
            "kind": "rllc.Trajectory",
            "settings": dict(self.settings),
            "failed": failed,
        } | names
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return save_arrays(
            path, arrays | {f"diagnostics.{k}": a for k, a in self.diagnostics.items()}, header
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, a damaged one, or one that holds something else.
        """
        arrays, header = load_arrays(path)
        if header.get("kind") != "rllc.Trajectory":
            raise FileError(
                f"reading {path} as Trajectory: it holds {header.get('kind', 'something else')}."
            )
        return cls(
            **{name: arrays[name] for name in ARRAYS},
            **{key: tuple(header[key]) for key in ("steps", "weights", "data")},
            faults=tuple(tuple(map(faults_from_json, row)) for row in header["faults"]),
            settings=header["settings"],
            diagnostics={
                k.removeprefix("diagnostics."): a
                for k, a in arrays.items()
                if k.startswith("diagnostics.")
            },
            missing=tuple(map(tuple, header.get("missing", ()))),
            failed={tuple(key): reason for *key, reason in header.get("failed", ())},
        )


def _read(store: Store, found: Contents) -> dict[str, Any]:
    """The arrays of a trajectory from the cells of a store; NaN where there is none, with a status that says why."""
    shape = len(found.steps), len(found.refinements)
    arrays = {name: np.full(shape, np.nan) for name in ARRAYS}
    arrays["per_chain"] = np.full((*shape, found.settings["num_chains"]), np.nan)
    told: dict[str, np.ndarray] = {}
    none = np.full((*shape, 1), Fault("not_asked_for"), dtype=object)
    faults = [[tuple(cell) for cell in row] for row in none]
    for key, fault in [
        *((k, Fault("missing")) for k in found.missing),
        *((k, Fault("failed", {}, r)) for k, r in found.failed.items()),
    ]:
        faults[found.steps.index(key[0])][found.refinements.index(key[1:])] = (fault,)
    together: dict[tuple[int, str, tuple[str, ...]], list[str]] = {}
    for (step, weights, data), names in found.cells.items():
        together.setdefault((step, data, names), []).append(weights)
    for (step, data, names), weights in together.items():
        i, where = found.steps.index(step), [found.refinements.index((w, data)) for w in weights]
        try:
            parts = [store.read(name) for name in names]
        except FileError as error:
            words = f"{error} rllc.track, called again, computes it anew"
            for k in where:
                faults[i][k] = (Fault("damaged", {}, words),)
            continue
        estimate = Estimate.of(gathered(parts, [found.chains[name] for name in names], weights))
        for name in ARRAYS:
            arrays[name][i, where] = getattr(estimate, name)
        for name, values in estimate.diagnostics.items():
            told.setdefault(name, np.full(shape, np.nan))[i, where] = values
        for k, wrong in zip(where, estimate.faults, strict=True):
            faults[i][k] = wrong
    return arrays | {"diagnostics": told, "faults": tuple(map(tuple, faults))}


class Tracker:
    """Estimates refined LLCs inside your own training loop: call it with the step and the model.

    >>> import torch
    >>> tracker = Tracker(torch.randn(64, 2), loss=lambda m, x: m(x)[:, 0] ** 2, at_steps=[0, 2])
    >>> model = torch.nn.Linear(2, 1)
    >>> for step in range(3):
    ...     _ = tracker(step, model)
    >>> tracker.trajectory.steps
    (0, 2)

    The model, its gradients, its mode and all global random states are left as they are, so that training goes on as if
    nothing had happened.

    Args:
        data: as for :func:`rllc.estimate`; so are ``loss``, ``sampler`` and ``sampling``.
        weights: as for :func:`rllc.estimate`, or a function of the model that gives them, such as ``rllc.heads``.
        at_steps: estimate at these steps only; ``None``: at every call.
        path: a file that holds the trajectory; written after each estimate, and read at the start if it is there, so
            that a training run that is resumed does not estimate again what it has.
        progress: show a bar at each estimate; off, since you have one of your own.

    Raises:
        InputError: the file at ``path`` was made with other settings.
    """

    def __init__(
        self,
        data: DataLike,
        weights: WeightsLike | Callable[[nn.Module], WeightsLike] = None,
        *,
        loss: LossFunction | None = None,
        sampler: Sampler | None = None,
        sampling: Sampling | None = None,
        at_steps: Collection[int] | None = None,
        path: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        self.data, self.weights, self.loss = data, weights, loss
        self.sampler, self.sampling = sampler or sgld(), sampling or Sampling()
        self.at_steps = None if at_steps is None else frozenset(at_steps)
        self.path, self.progress = None if path is None else Path(path), progress
        self.estimates: dict[int, Estimate] = {}
        if self.path is not None and self.path.exists():
            stored = Trajectory.load(self.path)
            self._check_settings(stored)
            self.estimates = {step: stored.at(step) for step in stored.steps}

    def __call__(self, step: int, model: nn.Module) -> Estimate | None:
        """The estimate at this step; ``None`` when it is not one of ``at_steps``."""
        if self.at_steps is not None and step not in self.at_steps:
            return None
        weights = self.weights(model) if callable(self.weights) else self.weights
        self._check_names(weights)
        if step not in self.estimates:
            self.estimates[step] = estimate(
                model,
                self.data,
                weights,
                loss=self.loss,
                sampler=self.sampler,
                sampling=self.sampling,
                progress=self.progress,
            )
            if self.path is not None:
                self.trajectory.save(self.path)
        return self.estimates[step]

    def _check_names(self, weights: WeightsLike) -> None:
        """Whether these are the refinements there are estimates of."""
        wanted = [r.name for r in product(weights, self.data)]
        for step, stored in self.estimates.items():
            there = list(zip(stored.weights, stored.data, strict=True))
            if there != wanted:
                raise InputError(
                    f"Tracker: the estimate at step {step}{f' in {self.path}' if self.path else ''} is of (weights, data) "
                    f"{there}, but now {wanted} are asked for; use the same weights and data, or another path."
                )

    def _check_settings(self, stored: Trajectory) -> None:
        mine = (
            self.sampler.settings
            | self.sampling.settings
            | {"fingerprints": fingerprints(product(None, self.data))}
        )
        differing = [
            f"{k}: {stored.settings.get(k)} there, {v} here"
            for k, v in mine.items()
            if stored.settings.get(k) != v
        ]
        if differing:
            raise InputError(
                f"Tracker: {self.path} was made with other settings or data ({'; '.join(differing)}); use the same, or "
                f"another path."
            )

    @property
    def trajectory(self) -> Trajectory:
        """What there is so far."""
        return Trajectory.of(self.estimates)

    def __repr__(self) -> str:
        return f"Tracker({self.trajectory!r})" if self.estimates else "Tracker(no estimates yet)"
