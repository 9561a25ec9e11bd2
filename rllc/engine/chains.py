"""The chains of all refinements: planned into passes, advanced together, stopped and continued.

Data sets hold passes; a pass holds runs of one group that go through the model together; a run is
one chain of one refinement. What a run is given depends on its own refinement and chain alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllc.data.data import Data
from rllc.data.minibatches import Minibatches
from rllc.engine.devices import runs_that_fit
from rllc.engine.layout import Group, center, digest, groups, to
from rllc.engine.scene import Scene, Surroundings
from rllc.errors import InputError
from rllc.losses.contract import Loss, Runs
from rllc.samplers import Energy, Random, Sampler
from rllc.sampling.settings import Sampling
from rllc.seeds import generator
from rllc.weights.refinement import Refinement

_FREE_WALKS = 1e2
"""A chain counts as diverged when its root-mean-square distance from w*, per weight, exceeds this
many free random walks √(lr · steps)."""

State = Mapping[str, np.ndarray]
"""The state from which the chains of one refinement go on: arrays ``[chain, …]`` by name."""


@dataclass
class Pass:
    """Runs that go through the model together; ``state`` is what a step replaces."""

    group: Group
    member: Tensor
    """``[run]``: which member of the group."""
    refinement: Tensor
    """``[run]``: which row of the result."""
    chain: Tensor
    """``[run]``."""
    centers: Tensor
    """``[member, dim]``: w* of each member of the group."""
    random: Random
    state: Any
    spread: float = 0.0
    """Mean square distance from w*, per weight, at which chains start."""
    prepared: dict[str, Tensor] = field(default_factory=dict)
    """``[run, …]``, by observable: what its ``prepare`` gave."""

    @property
    def origin(self) -> Tensor:
        """w* of each run, ``[run, dim]``."""
        return self.centers[self.member]

    def without(self, stopped: Collection[int]) -> Pass | None:
        """The pass without the runs of some refinements; ``None`` if nothing is left."""
        kept = []
        for run, row in enumerate(self.refinement.tolist()):
            if row not in stopped:
                kept.append(run)
        if not kept:
            return None
        runs = torch.tensor(kept, device=self.chain.device)
        streams = [self.random.streams[run] for run in kept]
        parts_of_state = [part[runs] for part in self.state]
        return replace(
            self,
            member=self.member[runs],
            refinement=self.refinement[runs],
            chain=self.chain[runs],
            random=Random(streams, self.random.dim, self.random.device),
            state=type(self.state)(*parts_of_state),
            prepared={name: values[runs] for name, values in self.prepared.items()},
        )


@dataclass(frozen=True)
class DataSet:
    """One data set, its minibatches, and the passes over them."""

    name: str
    rows: Data
    minibatches: Minibatches
    refinements: Tensor
    passes: list[Pass]
    surroundings: Surroundings

    def scene(self, step: int, loss: Loss) -> Scene:
        """The minibatch of a step, and the unmoved model on it."""
        return Scene.of(self.rows, self.minibatches, step, loss, self.surroundings)

    def without(self, stopped: Collection[int]) -> DataSet | None:
        """The data set without some refinements; ``None`` if nothing is left."""
        passes = []
        for p in self.passes:
            left = p.without(stopped)
            if left is not None:
                passes.append(left)
        if not passes:
            return None
        refinement_of_run = torch.cat([p.refinement for p in passes])
        return replace(self, passes=passes, refinements=refinement_of_run.unique())


class Chains:
    """All chains of all refinements, and which of them have diverged.

    Args:
        refinements: the rows of the result.
        masks: the selected weights of each refinement, by parameter.
        parameters: the model's.
        loss: bound to the model.
        sampler: moves the chains.
        sampling: how many chains, which minibatches and which noise.
        runs_per_pass: ``None``: as many as fit.
    """

    def __init__(
        self,
        refinements: Sequence[Refinement],
        masks: Sequence[Mapping[str, Tensor]],
        parameters: Mapping[str, Tensor],
        loss: Loss,
        sampler: Sampler,
        sampling: Sampling,
        runs_per_pass: int | None,
    ) -> None:
        self.refinements = refinements
        self.loss = loss
        self.sampler = sampler
        self.sampling = sampling
        self.digests = [digest(selected) for selected in masks]
        first_parameter = next(iter(parameters.values()))
        self.device = first_parameter.device
        shape = (len(refinements), sampling.num_chains)
        self.diverged = torch.full(shape, -1, device=self.device)
        self.data_sets: list[DataSet] = []
        for name in dict.fromkeys(r.data_name for r in refinements):
            data_set = self._plan(name, masks, parameters, runs_per_pass)
            self.data_sets.append(data_set)

    @property
    def passes(self) -> list[Pass]:
        """All passes of all data sets."""
        return [p for data_set in self.data_sets for p in data_set.passes]

    def advance(self, p: Pass, scene: Scene, *, each: bool) -> Runs:
        """Measure the runs where they are, and move them; one evaluation serves both.

        Returns:
            The runs before the step; with ``each``, example by example.
        """
        first: list[Runs] = []

        def loss(position: Tensor) -> tuple[Tensor, Tensor]:
            runs = self.loss.runs(
                p.group,
                p.member,
                position,
                scene.center,
                scene.batch,
                gradient=True,
                each=each and not first,
            )
            if not first:
                first.append(runs)
            assert runs.gradient is not None
            return runs.losses, runs.gradient

        energy = Energy(loss, self.sampling.n_beta)
        p.state = self.sampler.step(p.state, energy, p.random)
        return first[0]

    def judge(self, p: Pass, runs: Runs, step: int) -> Tensor:
        """Note which runs have diverged, and return the losses ``[run]``, NaN for those.

        The loss of a chain that runs away may be finite, but means nothing. A first step looks like
        a free walk at any ``lr``, so the loss after a step counts only when the next step does not
        run away either: one draw is judged as many are.
        """
        distance = (p.state.position - p.origin).square().mean(1)
        free_walk = self.sampler.lr * (step + 1)
        limit = _FREE_WALKS**2 * (free_walk + p.spread)
        is_near = distance <= limit
        is_broken = ~runs.losses.isfinite() | ~is_near
        where = (p.refinement, p.chain)
        diverged = self.diverged[where]
        newly_broken = is_broken & (diverged < 0)
        diverged = torch.where(newly_broken, step, diverged)
        self.diverged[where] = diverged
        return torch.where(diverged < 0, runs.losses, torch.nan)

    def stop(self, stopped: Collection[int]) -> None:
        """Drop the runs of some refinements."""
        left = [data_set.without(stopped) for data_set in self.data_sets]
        self.data_sets = [data_set for data_set in left if data_set is not None]

    def start_at_gaussian(self) -> None:
        """Put chains at draws of the local Gaussian approximation around w*.

        For a log loss near its minimum the Hessian is the Fisher information, which is the variance
        of the gradient, times the number of predictions in a minibatch.
        """
        law = self.sampler.law
        assert law is not None
        assert law.deviation is not None
        for data_set in self.data_sets:
            for p in data_set.passes:
                gradient_variance = data_set.surroundings.variance(p.group)
                curvature = gradient_variance * data_set.surroundings.predictions
                precision = self.sampling.n_beta * curvature + self.sampler.localization
                deviation = law.deviation(precision)
                scatter = deviation[p.member] * p.random.normal()
                p.state = p.state._replace(position=p.state.position + scatter)
                variance = deviation.square().mean(1)
                p.spread = float(variance.max())

    def states(self) -> dict[tuple[str, str], dict[str, np.ndarray]]:
        """The state from which the chains of each refinement can go on.

        What a chain begins with in any case, such as w*, is left out.
        """
        states: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for p in self.passes:
            parts = {}
            for name, part in p.state._asdict().items():
                parts[f"sampler.{name}"] = part
            states_of_streams = [stream.get_state() for stream in p.random.streams]
            parts["random"] = torch.stack(states_of_streams)
            if p.spread:
                num_runs = len(p.chain)
                parts["spread"] = torch.full((num_runs,), p.spread, dtype=torch.float64)
            for row in p.refinement.unique().tolist():
                refinement = self.refinements[row].name
                identity = {"weights": np.array([self.digests[row]])}
                state = states.setdefault(refinement, identity)
                is_of_row = p.refinement == row
                runs = is_of_row.nonzero()[:, 0]
                self._collect(state, p, runs, parts)
                for name, values in p.prepared.items():
                    of_refinement = values[runs[0]]
                    state[f"prepared.{name}"] = of_refinement.cpu().numpy()
        for p in self.passes:
            rows_and_members = zip(p.refinement.tolist(), p.member.tolist(), strict=True)
            for row, member in rows_and_members:
                state = states[self.refinements[row].name]
                beginning = self.sampler.init(p.centers[[member]])
                _leave_out(state, beginning._asdict(), self.sampling.num_chains)
        return states

    def put_back(
        self, states: Mapping[tuple[str, str], State], prepared: Collection[str] = ()
    ) -> None:
        """Set all chains to where :meth:`states` found them.

        Args:
            states: of all refinements.
            prepared: the observables whose preparation is put back, too.
        """
        for p in self.passes:
            kept = []
            for row, chain in zip(p.refinement.tolist(), p.chain.tolist(), strict=True):
                refinement = self.refinements[row].name
                kept.append((states[refinement], chain))
            fields = {}
            for name, part in p.state._asdict().items():
                values = []
                for beginning, (state, chain) in zip(part, kept, strict=True):
                    array = state.get(f"sampler.{name}")
                    if array is None:
                        values.append(beginning)
                    else:
                        value = torch.as_tensor(array[chain])
                        values.append(value.to(beginning))
                fields[name] = torch.stack(values)
            p.state = type(p.state)(**fields)
            p.spread = 0.0
            for stream, (state, chain) in zip(p.random.streams, kept, strict=True):
                state_of_stream = torch.from_numpy(state["random"][chain])
                stream.set_state(state_of_stream)
                if "spread" in state:
                    p.spread = max(p.spread, float(state["spread"][chain]))
            for name in prepared:
                values = [torch.from_numpy(state[f"prepared.{name}"]) for state, _ in kept]
                p.prepared[name] = torch.stack(values).to(self.device)

    def _collect(
        self, state: dict[str, np.ndarray], p: Pass, runs: Tensor, parts: Mapping[str, Tensor]
    ) -> None:
        """Put a pass's part of a refinement's chains where it belongs."""
        chains = p.chain[runs].cpu().numpy()
        for name, part in parts.items():
            of_runs = part[runs.to(part.device)]
            values = of_runs.cpu().numpy()
            if name not in state:
                shape = (self.sampling.num_chains, *values.shape[1:])
                state[name] = np.empty(shape, values.dtype)
            state[name][chains] = values

    def _plan(
        self,
        name: str,
        masks: Sequence[Mapping[str, Tensor]],
        parameters: Mapping[str, Tensor],
        runs_per_pass: int | None,
    ) -> DataSet:
        """One data set: its refinements in groups, their chains in passes."""
        rows = [i for i, r in enumerate(self.refinements) if r.data_name == name]
        data = self.refinements[rows[0]].data
        sampling = self.sampling.of_rows(len(data), full_batch=self.sampler.full_batch)
        assert sampling.batch_size is not None
        minibatches = Minibatches(len(data), sampling.batch_size, seed=sampling.seed)
        masks_of_rows = [masks[i] for i in rows]
        planned = [to(group, self.device) for group in groups(masks_of_rows)]
        passes: list[Pass] = []
        for group in planned:
            runs: list[tuple[int, int]] = []
            for member in range(len(group.members)):
                runs += [(member, chain) for chain in range(sampling.num_chains)]
            size = runs_per_pass
            if size is None:
                memory = self.loss.memory(group, (sampling.batch_size, *data.shape))
                # Evenly: a small last pass would pay once more for what runs of a pass share.
                num_passes = math.ceil(len(runs) / runs_that_fit(memory, self.device))
                size = math.ceil(len(runs) / num_passes)
            centers = center(group, parameters)
            for start in range(0, len(runs), size):
                runs_of_pass = runs[start : start + size]
                passes.append(self._pass(group, centers, runs_of_pass, rows, data))
        surroundings = Surroundings(self.loss, data, planned, sampling, self.device)
        refinements = torch.tensor(rows, device=self.device)
        return DataSet(name, data, minibatches, refinements, passes, surroundings)

    def _pass(
        self,
        group: Group,
        centers: Tensor,
        runs: Sequence[tuple[int, int]],
        rows: Sequence[int],
        data: Data,
    ) -> Pass:
        sampling = self.sampling
        device = self.device
        streams = []
        rows_of_runs = []
        for member, chain in runs:
            row = rows[group.members[member]]
            rows_of_runs.append(row)
            mask = self.digests[row]
            number = sampling.first_chain + chain
            key: tuple[object, ...] = ("noise", sampling.seed, mask, data.fingerprint, number)
            if sampling.common_noise:
                key = ("common noise", sampling.seed, mask, number)
            streams.append(generator(*key, device=device))
        members = torch.tensor([member for member, _ in runs], device=device)
        return Pass(
            group=group,
            member=members,
            refinement=torch.tensor(rows_of_runs, device=device),
            chain=torch.tensor([chain for _, chain in runs], device=device),
            centers=centers,
            random=Random(streams, group.dim, device),
            state=self.sampler.init(centers[members]),
        )


OR_ANEW = "Give the same, or leave `resume` out to draw from the first draw on."


def check_states(chains: Chains, states: Mapping[tuple[str, str], State]) -> None:
    """Refuse states that chains cannot go on from.

    Raises:
        InputError: a refinement has none, or they are of other weights or another kind of device.
    """
    for p in chains.passes:
        stream = p.random.streams[0].get_state()
        for row in p.refinement.unique().tolist():
            name = chains.refinements[row].name
            if name not in states:
                raise InputError(
                    f"sample: `resume` has no states of the chains of {name}; expected draws of "
                    f"rllc.sample(…, compute=rllc.Compute(keep_states=True)). {OR_ANEW}"
                )
            state = states[name]
            if str(state["weights"][0]) != chains.digests[row]:
                raise InputError(
                    f"sample: in `resume`, {name[0]!r} are other weights of the same name. "
                    f"{OR_ANEW}"
                )
            if state["random"].shape[1:] != stream.shape:
                raise InputError(
                    f"sample: `resume` was drawn on another kind of device, whose random numbers "
                    f"cannot be continued on this. {OR_ANEW}"
                )


def _leave_out(state: dict[str, np.ndarray], beginning: Mapping[str, Tensor], chains: int) -> None:
    for name, first in beginning.items():
        array = state.get(f"sampler.{name}")
        if array is None:
            continue
        every_chain = first.expand(chains, *first.shape[1:]).cpu()
        if np.array_equal(array, every_chain):
            del state[f"sampler.{name}"]
