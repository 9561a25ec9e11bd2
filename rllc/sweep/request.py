"""What a call of :func:`rllc.track` asks for: its arguments, checked and looked up."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rllc.data.data import Data
from rllc.engine.layout import digest
from rllc.errors import FileError, InputError, RllcError, first_line
from rllc.losses.contract import LossFunction
from rllc.models import hub
from rllc.models.checkpoints import Checkpoint, CheckpointsLike, Into, check_into
from rllc.models.checkpoints import checkpoints as checkpoints_of
from rllc.models.loading import load
from rllc.samplers import Sampler
from rllc.sampling.checks import arguments, check, chosen_weights
from rllc.sampling.settings import Compute, Sampling
from rllc.storage.identity import numerics, of_loss, of_sampler
from rllc.sweep.identity import CheckpointContents, checkpoint_contents, loss_name, versions
from rllc.sweep.plan import Cell, Plan
from rllc.sweep.store import Store
from rllc.sweep.workers import Task
from rllc.weights.refinement import DataLike, WeightsLike, product
from rllc.weights.selection import Weights

ChoiceOfWeights = WeightsLike | Callable[[nn.Module], WeightsLike]


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of :func:`rllc.track`, checked.

    Args:
        checkpoints: by step, rising; those on this machine by absolute paths, those of the hub by
            the commit that their branch was at.
        revisions: by step, the branch that was asked for.
        contents: by step, what its checkpoint is, ``None`` if it is not known yet.
        data: by name.
        weights: by name.
        masks: by name of the weights.
        loss: as it was given.
        sampler: as it was given, or the paper's.
        sampling: as it was given, or the paper's.
        store: where cells go.
        compute: how they are computed.
        model: the first checkpoint that can be loaded.
        identity: of loss and sampler, and the version of the library's numbers; empty where no
            later call asks for it.
        cached: with ``delete_downloads``, by step, what the hub's cache had held of the checkpoints
            that were tried for ``model``.
    """

    checkpoints: Mapping[int, Checkpoint]
    revisions: Mapping[int, str | None]
    contents: Mapping[int, CheckpointContents | None]
    data: Mapping[str, Data]
    weights: Mapping[str, Weights]
    masks: Mapping[str, Mapping[str, Tensor]]
    loss: LossFunction | None
    sampler: Sampler
    sampling: Sampling
    store: Store
    compute: Compute
    model: nn.Module
    identity: Mapping[str, Any]
    cached: Mapping[int, frozenset[Path]]

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        data: DataLike,
        weights: ChoiceOfWeights,
        *,
        loss: LossFunction | None,
        sampler: Sampler | None,
        sampling: Sampling | None,
        store: Store,
        compute: Compute | None,
    ) -> Request:
        """Check the arguments of a call.

        Args:
            checkpoints: what :func:`listed` gives.
            data: as for :func:`rllc.track`; so are the others.
            weights: see data.
            loss: see data.
            sampler: see data.
            sampling: see data.
            store: see data.
            compute: see data.

        Raises:
            InputError: there are no checkpoints, or an argument cannot work.
            FileError: no checkpoint can be loaded.
        """
        asked = _by_step(checkpoints)
        if compute is not None and _pickles(compute.executor):
            _check_can_travel(next(iter(asked.values())))
        by_step = _at_commits(asked)
        cached: dict[int, frozenset[Path]] = {}
        model = _first_model(by_step, cached if store.delete_downloads else None)
        sampler, sampling = arguments(model, loss, sampler, sampling)
        _check_first_chain(sampling)
        chosen = chosen_weights(weights, model)
        refinements = product(chosen, data, model)
        masks = check(model, loss, refinements, sampler, sampling)
        names = [refinement.weights.name for refinement in refinements]
        return cls(
            checkpoints=by_step,
            revisions={step: checkpoint.revision for step, checkpoint in asked.items()},
            contents={step: _contents(checkpoint) for step, checkpoint in by_step.items()},
            data={refinement.data_name: refinement.data for refinement in refinements},
            weights={refinement.weights.name: refinement.weights for refinement in refinements},
            masks=dict(zip(names, masks, strict=True)),
            loss=loss,
            sampler=sampler,
            sampling=sampling,
            store=store,
            compute=compute or Compute(),
            model=model,
            identity={},
            cached=cached,
        )

    def identified(self) -> Request:
        """Return the request for a store that a later call may find.

        Raises:
            InputError: it could not be told then whether loss and sampler are the same.
        """
        identity = {
            "numerics": numerics(self.sampling.autocast),
            "loss": of_loss(self.loss),
            "sampler": of_sampler(self.sampler),
        }
        return replace(self, identity=identity)

    def empty_plan(self) -> Plan:
        """Return the plan of this call, without its cells."""
        separate = {"num_draws", "first_chain"}
        if self.sampling.target_se is None:
            # Otherwise all chains together decide when to stop, and their number is a setting.
            separate.add("num_chains")
        settings = self.sampler.settings | self.sampling.settings
        shared = {name: value for name, value in settings.items() if name not in separate}
        checkpoints = {}
        for step, checkpoint in self.checkpoints.items():
            revision = self.revisions[step]
            checkpoints[step] = _where(checkpoint, revision, self.contents[step])
        return Plan(
            settings=json.loads(json.dumps(shared)),
            num_draws=self.sampling.num_draws,
            num_chains=self.sampling.num_chains,
            loss=loss_name(self.loss),
            checkpoints=checkpoints,
            data={name: data_set.fingerprint for name, data_set in self.data.items()},
            weights={name: digest(masks) for name, masks in self.masks.items()},
            cells=(),
            versions=versions(),
            identity=self.identity,
        )

    def task(self, plan: Plan, cell: Cell, earlier: Cell | None) -> Task:
        """Return all that a worker needs for a cell.

        Args:
            earlier: the cell whose chains it goes on with.
        """
        contents = self.contents[cell.step]
        about = {
            "checkpoint": dict(plan.checkpoints[cell.step]),
            "weights": {name: plan.weights[name] for name in cell.weights},
            "data": plan.data[cell.data],
            "loss": plan.loss,
            "identity": dict(plan.identity),
            "chains": list(cell.chains),
        }
        return Task(
            cell=cell,
            store=self.store,
            checkpoint=self.checkpoints[cell.step],
            sha256=None if contents is None else contents.sha256,
            data=self.data[cell.data],
            weights=tuple(self.weights[name] for name in cell.weights),
            loss=self.loss,
            sampler=self.sampler,
            sampling=self.sampling_of(cell),
            compute=self.compute_of_cells(),
            about=about,
            earlier=earlier,
        )

    def sampling_of(self, cell: Cell) -> Sampling:
        """Return the sampling of a cell's own chains."""
        return replace(self.sampling, first_chain=cell.chains[0], num_chains=cell.num_chains)

    def compute_of_cells(self) -> Compute:
        """Return how one cell is computed, by whichever worker."""
        kept = self.store.keep_states
        return replace(self.compute, timeout=None, executor=None, keep_states=kept, progress=False)


def listed(source: CheckpointsLike, into: Into | None) -> list[Checkpoint]:
    """List the checkpoints that an argument names.

    Args:
        source: as for :func:`rllc.track`; so is ``into``.
        into: see source.

    Raises:
        InputError: there are none.
    """
    check_into("track", into)
    checkpoints = checkpoints_of(source, into=into)
    if not checkpoints:
        raise InputError(f"track({source!r}): expected at least one checkpoint, got none.")
    return checkpoints


def _by_step(checkpoints: Sequence[Checkpoint]) -> dict[int, Checkpoint]:
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in checkpoints:
        if checkpoint.step is None:
            raise InputError(
                f"track: {checkpoint} does not say its step; type {{100: {str(checkpoint)!r}}}, "
                f"with its step, or rllc.estimate(rllc.load({str(checkpoint)!r}), …) for one model."
            )
        by_step[checkpoint.step] = _absolute(checkpoint)
    return by_step


def _pickles(executor: object) -> bool:
    """Whether an executor's workers get what the standard library can pickle, and nothing else."""
    return isinstance(executor, int | list | tuple | ProcessPoolExecutor)


def _check_can_travel(checkpoint: Checkpoint) -> None:
    """Refuse a factory or a model that cannot be sent to another process.

    Raises:
        InputError: says why.
    """
    for what, value in (("into", checkpoint.into), ("model", checkpoint.weights)):
        try:
            pickle.dumps(value)
        except Exception as error:
            kind = "a function" if not isinstance(value, nn.Module) else type(value).__name__
            raise InputError(
                f"track: with an `executor`, `{what}` is sent to other processes, but {kind} as it "
                f"is given cannot be ({first_line(error)}). A lambda, and a function inside "
                f"another one, have no name to be imported by: write def make(): return Model(…) "
                f"in a module of its own, and pass into=make. Without an executor any will do."
            ) from error


def _absolute(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint on this machine an absolute path, for workers in other folders."""
    source = checkpoint.source
    if (
        checkpoint.weights is None
        and checkpoint.revision is None
        and (os.path.exists(source) or os.path.isabs(source))
    ):
        return replace(checkpoint, source=os.path.abspath(source))
    return checkpoint


def _at_commits(checkpoints: Mapping[int, Checkpoint]) -> dict[int, Checkpoint]:
    """Name each branch of the hub by the commit that it is at now, where the hub says it."""
    commits: dict[str, Mapping[str, str]] = {}
    resolved = {}
    for step, checkpoint in checkpoints.items():
        source = checkpoint.source
        if hub.is_on_hub(source) and not hub.is_commit(checkpoint.revision):
            if source not in commits:
                commits[source] = hub.Hub(source).commits()
            branch = checkpoint.revision or "main"
            revision = commits[source].get(branch, checkpoint.revision)
            checkpoint = replace(checkpoint, revision=revision)
        resolved[step] = checkpoint
    return resolved


def _first_model(
    checkpoints: Mapping[int, Checkpoint], cached: dict[int, frozenset[Path]] | None
) -> nn.Module:
    """Load the first checkpoint that can be loaded.

    Args:
        cached: filled with what is in the hub's cache of those that are tried.
    """
    errors: list[RllcError] = []
    for step, checkpoint in checkpoints.items():
        if cached is not None:
            cached[step] = checkpoint.cached()
        try:
            return load(checkpoint)
        except RllcError as error:
            errors.append(error)
    raise errors[0]


def _check_first_chain(sampling: Sampling) -> None:
    if not sampling.first_chain:
        return
    advice = "with a larger num_chains and the same store only the new chains are run"
    if sampling.target_se is not None:
        advice = "with target_se all chains are run together, so more of them need another store"
    raise InputError(f"track: `first_chain` must be 0, got {sampling.first_chain}; {advice}.")


def _contents(checkpoint: Checkpoint) -> CheckpointContents | None:
    """Return what a checkpoint is, unless the worker that fetches it has to find out."""
    if checkpoint.weights is None and not os.path.exists(checkpoint.source):
        return None
    try:
        return checkpoint_contents(checkpoint)
    except (FileError, OSError):  # its cells will say so
        return None


def _where(
    checkpoint: Checkpoint, revision: str | None, contents: CheckpointContents | None
) -> dict[str, Any]:
    """Say where a checkpoint is, with the branch that was asked for, and what it is."""
    return {
        "step": checkpoint.step,
        "source": checkpoint.source,
        "revision": revision,
        "commit": checkpoint.revision if hub.is_commit(checkpoint.revision) else None,
        "file": checkpoint.file,
        "sha256": None if contents is None else contents.sha256,
        "parts": {} if contents is None else contents.parts,
    }
