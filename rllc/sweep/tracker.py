"""Estimates inside your own training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.engine.layout import digest
from rllc.errors import FileError, InputError, must_be
from rllc.estimates.estimate import ARRAYS, Estimate, estimate
from rllc.estimates.faults import Fault
from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler, sgld
from rllc.sampling.checks import check_how, chosen_weights, default_sampling, with_start
from rllc.sampling.settings import Compute, Sampling
from rllc.storage.files import as_path, check_fields, reading, write_atomically
from rllc.storage.identity import if_known, numerics, of_loss, of_model, of_sampler, plain
from rllc.sweep.trajectory import Trajectory
from rllc.weights.names import Names
from rllc.weights.refinement import (
    DataLike,
    Refinement,
    WeightsLike,
    fingerprints,
    named_data,
    product,
)

if TYPE_CHECKING:
    from rllc.sweep.trainer_callback import EachStep

_MEASURED = {"model": None, "weights": "object"}

_TRACKED = "tracked"
"""In the settings of a tracker's file: what its estimates are of."""


@names_checked
class Tracker:
    """Estimates refined LLCs as a model trains: call it with the step and the model.

    >>> import torch
    >>> tracker = Tracker(torch.randn(64, 2), loss=lambda m, x: m(x)[:, 0] ** 2, at_steps=[0, 2])
    >>> estimates = [tracker(step, torch.nn.Linear(2, 1)) for step in range(3)]
    >>> tracker.trajectory.steps
    (0, 2)

    The model, its gradients, its mode and all global random states are left as they are, so that
    training goes on as if nothing had happened.

    Args:
        data: as for :func:`rllc.estimate`; so are ``loss``, ``sampler`` and ``sampling``.
        weights: as for :func:`rllc.estimate`, or a function of the model that gives them, such as
            ``rllc.heads``.
        at_steps: estimate at these steps only; ``None``: at every call.
        path: a file that holds the trajectory. It is written after each estimate, and read at the
            start if it is there, so that a training run that is resumed does not estimate again
            what it has. An estimate is given back only for the same model, weights, data, loss,
            sampler and settings; another model at a step that it has is an error. Weights may be
            added: at steps that are called again these alone are estimated, at others they are
            missing.
        compute: ``None`` shows no bar, since you have one of your own.
        log: is called after each new estimate with one flat dict, such as ``wandb.log`` or
            ``rows.append``: ``{"step": 100, "rllc/1:6/code/llc": 4.2, "rllc/1:6/code/se": 0.1}``;
            NaN where a chain diverged.

    Raises:
        InputError: the file at ``path`` was made with other settings, data, loss or sampler, or it
            cannot be told.
        FileError: it is damaged, or cannot be written.
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
        compute: Compute | None = None,
        log: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        self.data = named_data(data)
        self.weights = weights
        self.loss = loss
        check_how(compute)
        for name, value, kind in (("sampler", sampler, Sampler), ("sampling", sampling, Sampling)):
            right = value is None or isinstance(value, kind)
            must_be("Tracker", name, value, right, f"None or an rllc.{kind.__name__}")
        self.sampler = sgld() if sampler is None else sampler
        chosen = default_sampling(self.sampler) if sampling is None else sampling
        self.sampling = with_start(self.sampler, chosen)
        self.at_steps = None if at_steps is None else _steps(at_steps)
        self.path = None if path is None else as_path(path, "Tracker")
        self.compute = Compute(progress=False) if compute is None else compute
        must_be("Tracker", "log", log, log is None or callable(log), "a function of a dict")
        self.log = log
        self.estimates: dict[int, Estimate] = {}
        self.names: Names | None = None
        self.measured: dict[int, dict[str, Any]] = {}
        """By step, what each estimate is of."""
        self.identity: dict[str, Any] = {}
        if self.path is None:
            return
        self.identity = {
            "numerics": numerics(self.sampling.autocast),
            "loss": of_loss(self.loss),
            "sampler": of_sampler(self.sampler),
        }
        self._check_writable(self.path)
        if self.path.exists():
            self._take_up(self.path)

    def __call__(self, step: int, model: nn.Module) -> Estimate | None:
        """Return the estimate at this step; ``None`` if it is not one of ``at_steps``."""
        right = isinstance(step, int) and not isinstance(step, bool)
        must_be("Tracker", "step", step, right, "a training step, the first argument")
        if self.at_steps is not None and step not in self.at_steps:
            return None
        weights = chosen_weights(self.weights, model)
        asked = product(weights, self.data, model)
        names = self._check_names(asked)
        measured = self._measured(model, asked)
        earlier = self.estimates.get(step)
        if earlier is not None:
            self._check_same(step, measured)
        self.names = names
        lacking = [refinement.weights for refinement in asked if _lacks(earlier, refinement.name)]
        if lacking:
            new = estimate(
                model,
                self.data,
                list(dict.fromkeys(lacking)),
                loss=self.loss,
                sampler=self.sampler,
                sampling=self.sampling,
                compute=self.compute,
            )
            parts = [new] if earlier is None else [new, earlier]
            self.estimates[step] = _over(names, parts)
            self.measured[step] = measured
            if self.path is not None:
                self._save(self.path)
            if self.log is not None:
                self.log({"step": step} | _flat(new))
        return self.estimates[step]

    def callback(self) -> EachStep:
        """Return a callback for transformers' Trainer, which then calls this tracker at each step.

        ``Trainer(..., callbacks=[tracker.callback()])``. Steps are the optimiser's.
        """
        # transformers takes long to import, and not every loop has a Trainer.
        from rllc.sweep.trainer_callback import EachStep

        return EachStep(self)

    @property
    def trajectory(self) -> Trajectory:
        """All estimates so far.

        Raises:
            InputError: there are none yet.
        """
        estimates = self.estimates
        if self.names is not None:
            estimates = {step: _over(self.names, [one]) for step, one in estimates.items()}
        return Trajectory.of(estimates)

    def __repr__(self) -> str:
        if not self.estimates:
            return "Tracker(no estimates yet)"
        return f"Tracker({self.trajectory!r})"

    def _check_names(self, refinements: Sequence[Refinement]) -> Names:
        """Compare the refinements with those of the estimates so far; some may be added."""
        asked = [refinement.name for refinement in refinements]
        place = f" in {self.path}" if self.path else ""
        for step, stored in self.estimates.items():
            names = list(zip(stored.weights, stored.data, strict=True))
            if not set(names) <= set(asked):
                raise InputError(
                    f"Tracker: the estimate at step {step}{place} is of (weights, data) {names}, "
                    f"but now {asked} are asked for; use the same weights and data, or more of "
                    f"them, or another path."
                )
        return Names.of(asked)

    def _measured(self, model: nn.Module, asked: Sequence[Refinement]) -> dict[str, Any]:
        """What an estimate is of, beside the settings that all have in common."""
        masks = {}
        for refinement in asked:
            selection = refinement.weights
            if selection.name not in masks:
                masks[selection.name] = digest(selection.masks(model))
        # Without a file nothing outlives this object, so a model that is not known is no error.
        identify = of_model if self.path is not None else if_known(of_model)
        return {"model": identify(model), "weights": masks}

    def _check_same(self, step: int, measured: Mapping[str, Any]) -> None:
        """Refuse another model, and other weights of a name that was measured."""
        before = self.measured[step]
        what = None
        if before["model"] != measured["model"]:
            what = "another model"
        for name, mask in before["weights"].items():
            if measured["weights"].get(name) != mask:
                what = "other weights of the same names"
        if what is not None:
            raise InputError(
                f"Tracker: the estimate at step {step} is of {what}; use another Tracker, with "
                f"another path, for each training run."
            )

    def _save(self, path: Path) -> None:
        trajectory = self.trajectory
        measured = {str(step): self.measured[step] for step in trajectory.steps}
        settings = {**trajectory.settings, _TRACKED: {**self.identity, "estimates": measured}}
        try:
            replace(trajectory, settings=settings).save(path)
        except FileError as error:
            raise _not_written(path, error.__cause__) from error

    def _check_writable(self, path: Path) -> None:
        """Find out before any chain runs, by a file beside it."""
        try:
            probe = write_atomically(path.with_name(f".{path.name}.writable"), Path.touch)
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(path, error) from error

    def _take_up(self, path: Path) -> None:
        """Read the estimates of an earlier run.

        Raises:
            InputError: they were made with other settings, data, loss or sampler.
            FileError: the file is damaged.
        """
        stored = Trajectory.load(path)
        settings = dict(stored.settings)
        tracked = settings.pop(_TRACKED, None)
        self._check_settings(stored)
        if not isinstance(tracked, Mapping):
            raise InputError(
                f"Tracker: {path} does not say of which models it is: rllc.Tracker did not write "
                f"it, or an earlier version did. Use another path."
            )
        for name, value in self.identity.items():
            if tracked.get(name) != value:
                what = "version of the library's numbers" if name == "numerics" else name
                raise InputError(
                    f"Tracker: {path} was made with another {what}; use the same, or another path."
                )
        stored = replace(stored, settings=settings)
        with reading(path):
            for step in stored.steps:
                measured = tracked["estimates"][str(step)]
                self.measured[step] = dict(check_fields(measured, _MEASURED))
                self.estimates[step] = stored.at(step)

    def _check_settings(self, stored: Trajectory) -> None:
        sampling = with_start(self.sampler, self.sampling)
        settings = self.sampler.settings | sampling.settings
        settings["fingerprints"] = fingerprints(product(None, self.data))
        differing = []
        for name, value in settings.items():
            if plain(stored.settings.get(name)) != plain(value):
                differing.append(f"{name}: {stored.settings.get(name)} there, {value} here")
        if differing:
            raise InputError(
                f"Tracker: {self.path} was made with other settings or data "
                f"({'; '.join(differing)}); use the same, or another path."
            )


def _flat(estimate: Estimate) -> dict[str, float]:
    """The numbers of an estimate by names that loggers sort well."""
    numbers = {}
    for llc in estimate:
        name = f"rllc/{llc.weights}/{llc.data}"
        numbers[f"{name}/llc"] = llc.value
        numbers[f"{name}/se"] = llc.standard_error
    return numbers


def _steps(at_steps: Collection[int]) -> frozenset[int]:
    expected = "training steps, such as [0, 100, 1000] or range(0, 1000, 100)"
    right = isinstance(at_steps, Collection) and all(isinstance(step, int) for step in at_steps)
    must_be("Tracker", "at_steps", at_steps, right, expected)
    return frozenset(at_steps)


_MISSING = (Fault("missing"),)


def _lacks(estimate: Estimate | None, name: tuple[str, str]) -> bool:
    """Whether an estimate is without a refinement."""
    if estimate is None or name not in list(estimate.names):
        return True
    return estimate.faults[list(estimate.names).index(name)] == _MISSING


def _over(names: Names, estimates: Sequence[Estimate]) -> Estimate:
    """One estimate over ``names``, from the first of some that has each; missing where none has."""
    first = estimates[0]
    arrays = {name: _nan(getattr(first, name), len(names)) for name in ARRAYS}
    diagnostics = {name: _nan(array, len(names)) for name, array in first.diagnostics.items()}
    llc = None
    if all(estimate.llc is not None for estimate in estimates):
        llc = _nan(first.llc, len(names))
    faults: list[tuple[Fault, ...]] = [_MISSING] * len(names)
    for row, name in enumerate(names):
        for one in estimates:
            if _lacks(one, name):
                continue
            source = list(one.names).index(name)
            for key, array in arrays.items():
                array[row] = getattr(one, key)[source]
            for key, array in diagnostics.items():
                array[row] = one.diagnostics[key][source]
            if llc is not None and one.llc is not None:
                llc[row] = one.llc[source]
            faults[row] = one.faults[source]
            break
    return Estimate(
        **arrays,
        faults=tuple(faults),
        names=names,
        settings=first.settings,
        diagnostics=diagnostics,
        llc=llc,
    )


def _nan(array: np.ndarray | None, length: int) -> np.ndarray:
    """An array like another, with ``length`` rows of NaN."""
    assert array is not None
    return np.full((length, *array.shape[1:]), np.nan)


def _not_written(path: Path, error: BaseException | None) -> FileError:
    return FileError(
        f"Tracker: `path` = {path} cannot be written ({error}). Make room, change its rights or "
        f"give another path."
    )
