"""Estimates inside your own training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.checks import check_how, chosen_weights, with_start
from rllc.errors import InputError, must_be
from rllc.estimate import ARRAYS, Estimate, estimate
from rllc.faults import Fault
from rllc.files import as_path
from rllc.loss import LossFunction
from rllc.names import Names
from rllc.refinement import DataLike, Refinement, WeightsLike, fingerprints, named_data, product
from rllc.samplers import Sampler, sgld
from rllc.sampling import Compute, Sampling
from rllc.trajectory import Trajectory


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
            what it has. Weights may be added: at steps that are called again these alone are
            estimated, at others they are missing.
        compute: ``None`` shows no bar, since you have one of your own.

    Raises:
        InputError: the file at ``path`` was made with other settings or data.
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
        self.data = named_data(data)
        self.weights = weights
        self.loss = loss
        check_how(compute)
        for name, value, kind in (("sampler", sampler, Sampler), ("sampling", sampling, Sampling)):
            right = value is None or isinstance(value, kind)
            must_be("Tracker", name, value, right, f"None or an rllc.{kind.__name__}")
        self.sampler = sgld() if sampler is None else sampler
        self.sampling = Sampling() if sampling is None else sampling
        self.at_steps = None if at_steps is None else _steps(at_steps)
        self.path = None if path is None else as_path(path, "Tracker")
        self.compute = Compute(progress=False) if compute is None else compute
        self.estimates: dict[int, Estimate] = {}
        self.names: Names | None = None
        if self.path is not None and self.path.exists():
            stored = Trajectory.load(self.path)
            self._check_settings(stored)
            self.estimates = {step: stored.at(step) for step in stored.steps}

    def __call__(self, step: int, model: nn.Module) -> Estimate | None:
        """Return the estimate at this step; ``None`` if it is not one of ``at_steps``."""
        right = isinstance(step, int) and not isinstance(step, bool)
        must_be("Tracker", "step", step, right, "a training step, the first argument")
        if self.at_steps is not None and step not in self.at_steps:
            return None
        weights = chosen_weights(self.weights, model)
        asked = product(weights, self.data, model)
        self.names = self._check_names(asked)
        earlier = self.estimates.get(step)
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
            self.estimates[step] = _over(self.names, parts)
            if self.path is not None:
                self.trajectory.save(self.path)
        return self.estimates[step]

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

    def _check_settings(self, stored: Trajectory) -> None:
        sampling = with_start(self.sampler, self.sampling)
        settings = self.sampler.settings | sampling.settings
        settings["fingerprints"] = fingerprints(product(None, self.data))
        differing = []
        for name, value in settings.items():
            if stored.settings.get(name) != value:
                differing.append(f"{name}: {stored.settings.get(name)} there, {value} here")
        if differing:
            raise InputError(
                f"Tracker: {self.path} was made with other settings or data "
                f"({'; '.join(differing)}); use the same, or another path."
            )


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
