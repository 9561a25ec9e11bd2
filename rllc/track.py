"""Estimates over a run's checkpoints: the sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from torch import nn
from tqdm.auto import tqdm

from rllc.errors import InputError
from rllc.loss import LossFunction
from rllc.models.checkpoints import Checkpoint, checkpoints, load
from rllc.refinement import DataLike, WeightsLike
from rllc.sample import Sampling
from rllc.samplers import Sampler
from rllc.trajectory import Tracker, Trajectory


def track(
    source: str | os.PathLike[str] | Iterable[Checkpoint],
    data: DataLike,
    weights: WeightsLike | Callable[[nn.Module], WeightsLike] = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Trajectory:
    """Refined LLCs at each checkpoint of a training run.

    The same seed serves every checkpoint: noise and minibatches are common, so that curves are smooth where the model is.

    Example::

        trajectory = rllc.track("runs/two-layer", {"code": code, "prose": prose}, rllc.heads)
        rllc.plot_trajectory(trajectory)

    Args:
        source: a folder or hub repository of checkpoints (:func:`rllc.checkpoints` says which), or a list of
            :class:`rllc.models.Checkpoint` to take some of them.
        data: as for :func:`rllc.estimate`; so are ``loss``, ``sampler`` and ``sampling``.
        weights: as for :func:`rllc.estimate`, or a function of the model that gives them, such as ``rllc.heads``.
        path: a file for the trajectory, written after each checkpoint; the same call goes on from there. Settings,
            weights and data must be the same; that the checkpoints are, it takes your word for.
        progress: show a bar over checkpoints, and one over steps.

    Raises:
        InputError: there are no checkpoints, or an argument cannot work.
        FileError: a checkpoint is missing or damaged.
    """
    found = checkpoints(source) if isinstance(source, str | os.PathLike) else sorted(source, key=lambda c: c.step)
    if not found:
        raise InputError(f"track({source!r}): expected at least one checkpoint, got none.")
    tracker = Tracker(data, weights, loss=loss, sampler=sampler, sampling=sampling, path=path, progress=progress)
    model: nn.Module | None = None
    for checkpoint in tqdm(found, desc="checkpoints", unit="checkpoint", disable=not progress):
        if checkpoint.step not in tracker.estimates:
            model = load(checkpoint, into=model)
            tracker(checkpoint.step, model)
    if model is None and tracker.estimates:  # all were there: are they what is asked for?
        tracker(found[-1].step, load(found[-1]))
    return tracker.trajectory
