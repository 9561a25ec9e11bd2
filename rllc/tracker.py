"""Estimates inside your own training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rllc.checks import with_start
from rllc.engine.layout import digest
from rllc.errors import FileError, InputError
from rllc.estimate import Estimate, estimate
from rllc.files import write_atomically
from rllc.identity import NUMERICS, if_known, of_loss, of_model, of_sampler, plain
from rllc.loss import LossFunction
from rllc.refinement import DataLike, WeightsLike, fingerprints, product
from rllc.samplers import Sampler, sgld
from rllc.sampling import Compute, Sampling
from rllc.trajectory import Trajectory

_TRACKED = "tracked"
"""In the settings of a tracker's file: what its estimates are of."""


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
            sampler and settings; another model at a step that it has is an error.
        compute: ``None`` shows no bar, since you have one of your own.

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
    ) -> None:
        self.data = data
        self.weights = weights
        self.loss = loss
        self.sampler = sampler or sgld()
        self.sampling = with_start(self.sampler, sampling or Sampling())
        self.at_steps = None if at_steps is None else frozenset(at_steps)
        self.path = None if path is None else Path(path)
        self.compute = compute or Compute(progress=False)
        self.estimates: dict[int, Estimate] = {}
        self.measured: dict[int, dict[str, Any]] = {}
        """By step, what each estimate is of."""
        self.identity: dict[str, Any] = {}
        if self.path is None:
            return
        self.identity = {
            "numerics": NUMERICS,
            "loss": of_loss(self.loss),
            "sampler": of_sampler(self.sampler),
        }
        if self.path.exists():
            self._take_up(self.path)
        self._check_writable(self.path)

    def __call__(self, step: int, model: nn.Module) -> Estimate | None:
        """Return the estimate at this step; ``None`` if it is not one of ``at_steps``."""
        if self.at_steps is not None and step not in self.at_steps:
            return None
        weights = self.weights(model) if callable(self.weights) else self.weights
        self._check_names(weights)
        measured = self._measured(model, weights)
        if step in self.estimates:
            self._check_same(step, measured)
        else:
            self.estimates[step] = estimate(
                model,
                self.data,
                weights,
                loss=self.loss,
                sampler=self.sampler,
                sampling=self.sampling,
                compute=self.compute,
            )
            self.measured[step] = measured
            if self.path is not None:
                self._save(self.path)
        return self.estimates[step]

    @property
    def trajectory(self) -> Trajectory:
        """All estimates so far.

        Raises:
            InputError: there are none yet.
        """
        return Trajectory.of(self.estimates)

    def __repr__(self) -> str:
        if not self.estimates:
            return "Tracker(no estimates yet)"
        return f"Tracker({self.trajectory!r})"

    def _check_names(self, weights: WeightsLike) -> None:
        """Compare the refinements with those of the estimates so far."""
        asked = [refinement.name for refinement in product(weights, self.data)]
        place = f" in {self.path}" if self.path else ""
        for step, stored in self.estimates.items():
            names = list(zip(stored.weights, stored.data, strict=True))
            if names != asked:
                raise InputError(
                    f"Tracker: the estimate at step {step}{place} is of (weights, data) {names}, "
                    f"but now {asked} are asked for; use the same weights and data, or another "
                    f"path."
                )

    def _measured(self, model: nn.Module, weights: WeightsLike) -> dict[str, Any]:
        """What an estimate is of, beside the settings that all have in common."""
        masks = {}
        for refinement in product(weights, self.data):
            selection = refinement.weights
            if selection.name not in masks:
                masks[selection.name] = digest(selection.masks(model))
        # Without a file nothing outlives this object, so a model that is not known is no error.
        identify = of_model if self.path is not None else if_known(of_model)
        return {"model": identify(model), "weights": masks}

    def _check_same(self, step: int, measured: Mapping[str, Any]) -> None:
        for name, value in measured.items():
            if self.measured[step][name] != value:
                what = "another model" if name == "model" else "other weights of the same names"
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
        except OSError as error:
            raise _not_written(path, error) from error

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
        for step in stored.steps:
            self.estimates[step] = stored.at(step)
            self.measured[step] = tracked["estimates"][str(step)]

    def _check_settings(self, stored: Trajectory) -> None:
        settings = self.sampler.settings | self.sampling.settings
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


def _not_written(path: Path, error: OSError) -> FileError:
    return FileError(
        f"Tracker: `path` = {path} cannot be written ({error}). Make room, change its rights or "
        f"give another path."
    )
