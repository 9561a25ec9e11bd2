"""The chains of all refinements: planned into passes, advanced together, stopped and continued.

Data sets hold passes; a pass holds runs of one group that go through the model together; a run is
one chain of one refinement. What a run is given depends on its own refinement and chain alone.
"""

from __future__ import annotations

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
"""What the chains of one refinement need to go on, arrays ``[chain, …]`` by name."""


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
        kept = [run for run, row in enumerate(self.refinement.tolist()) if row not in stopped]
        if not kept:
            return None
        runs = torch.tensor(kept, device=self.chain.device)
        streams = [self.random.streams[run] for run in kept]
        return replace(
            self,
            member=self.member[runs],
            refinement=self.refinement[runs],
            chain=self.chain[runs],
            random=Random(streams, self.random.dim, self.random.device),
            state=type(self.state)(*(part[runs] for part in self.state)),
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
        passes = [part for p in self.passes if (part := p.without(stopped)) is not None]
        if not passes:
            return None
        refinements = torch.cat([p.refinement for p in passes]).unique()
        return replace(self, passes=passes, refinements=refinements)


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
        self.refinements, self.loss = refinements, loss
        self.sampler, self.sampling = sampler, sampling
        self.digests = [digest(selected) for selected in masks]
        self.device = next(iter(parameters.values())).device
        shape = (len(refinements), sampling.num_chains)
        self.diverged = torch.full(shape, -1, device=self.device)
        self.data_sets: list[DataSet] = []
        for name in dict.fromkeys(r.data_name for r in refinements):
            self.data_sets.append(self._plan(name, masks, parameters, runs_per_pass))

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

        p.state = self.sampler.step(p.state, Energy(loss, self.sampling.n_beta), p.random)
        return first[0]

    def judge(self, p: Pass, runs: Runs, step: int) -> Tensor:
        """Note which runs have diverged, and return the losses ``[run]``, NaN for those.

        The loss of a chain that runs away may be finite, but means nothing. A first step looks like
        a free walk at any ``lr``, so the loss after a step counts only when the next step does not
        run away either: one draw is judged as many are.
        """
        distance = (p.state.position - p.origin).square().mean(1)
        limit = _FREE_WALKS**2 * (self.sampler.lr * (step + 1) + p.spread)
        broken = ~runs.losses.isfinite() | ~(distance <= limit)
        where = (p.refinement, p.chain)
        newly_broken = broken & (self.diverged[where] < 0)
        self.diverged[where] = torch.where(newly_broken, step, self.diverged[where])
        return torch.where(self.diverged[where] < 0, runs.losses, torch.nan)

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
                p.spread = float(deviation.square().mean(1).max())

    def states(self) -> dict[tuple[str, str], dict[str, np.ndarray]]:
        """What the chains of each refinement need to go on.

        What a chain begins with in any case, such as w*, is left out.
        """
        states: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for p in self.passes:
            parts = {f"sampler.{name}": part for name, part in p.state._asdict().items()}
            parts["random"] = torch.stack([stream.get_state() for stream in p.random.streams])
            if p.spread:
                parts["spread"] = torch.full((len(p.chain),), p.spread, dtype=torch.float64)
            for row in p.refinement.unique().tolist():
                identity = {"weights": np.array([self.digests[row]])}
                state = states.setdefault(self.refinements[row].name, identity)
                runs = (p.refinement == row).nonzero()[:, 0]
                self._collect(state, p, runs, parts)
                for name, values in p.prepared.items():
                    state[f"prepared.{name}"] = values[runs[0]].cpu().numpy()
        for p in self.passes:
            for row, member in zip(p.refinement.tolist(), p.member.tolist(), strict=True):
                state = states[self.refinements[row].name]
                beginning = self.sampler.init(p.centers[[member]])._asdict()
                _leave_out(state, beginning, self.sampling.num_chains)
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
            runs = list(zip(p.refinement.tolist(), p.chain.tolist(), strict=True))
            kept = [(states[self.refinements[row].name], chain) for row, chain in runs]
            fields = {}
            for name, part in p.state._asdict().items():
                values = []
                for beginning, (state, chain) in zip(part, kept, strict=True):
                    array = state.get(f"sampler.{name}")
                    if array is None:
                        values.append(beginning)
                    else:
                        values.append(torch.as_tensor(array[chain]).to(beginning))
                fields[name] = torch.stack(values)
            p.state = type(p.state)(**fields)
            for stream, (state, chain) in zip(p.random.streams, kept, strict=True):
                stream.set_state(torch.from_numpy(state["random"][chain]))
            spreads = [float(state["spread"][chain]) for state, chain in kept if "spread" in state]
            p.spread = max(spreads, default=0.0)
            for name in prepared:
                values = [torch.from_numpy(state[f"prepared.{name}"]) for state, _ in kept]
                p.prepared[name] = torch.stack(values).to(self.device)

    def _collect(
        self, state: dict[str, np.ndarray], p: Pass, runs: Tensor, parts: Mapping[str, Tensor]
    ) -> None:
        """Put a pass's part of a refinement's chains where it belongs."""
        chains = p.chain[runs].cpu().numpy()
        for name, part in parts.items():
            values = part[runs.to(part.device)].cpu().numpy()
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
        planned = [to(group, self.device) for group in groups([masks[i] for i in rows])]
        passes: list[Pass] = []
        for group in planned:
            size = runs_per_pass
            if size is None:
                memory = self.loss.memory(group, (sampling.batch_size, *data.shape))
                size = runs_that_fit(memory, self.device)
            members = range(len(group.members))
            runs = [(member, chain) for member in members for chain in range(sampling.num_chains)]
            centers = center(group, parameters)
            for start in range(0, len(runs), size):
                passes.append(self._pass(group, centers, runs[start : start + size], rows, data))
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
        sampling, device = self.sampling, self.device
        streams = []
        for m, c in runs:
            mask = self.digests[rows[group.members[m]]]
            chain = sampling.first_chain + c
            key: tuple[object, ...] = ("noise", sampling.seed, mask, data.fingerprint, chain)
            if sampling.common_noise:
                key = ("common noise", sampling.seed, mask, chain)
            streams.append(generator(*key, device=device))
        member = torch.tensor([m for m, _ in runs], device=device)
        return Pass(
            group=group,
            member=member,
            refinement=torch.tensor([rows[group.members[m]] for m, _ in runs], device=device),
            chain=torch.tensor([c for _, c in runs], device=device),
            centers=centers,
            random=Random(streams, group.dim, device),
            state=self.sampler.init(centers[member]),
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
            if str(states[name]["weights"][0]) != chains.digests[row]:
                raise InputError(
                    f"sample: in `resume`, {name[0]!r} are other weights of the same name. "
                    f"{OR_ANEW}"
                )
            if states[name]["random"].shape[1:] != stream.shape:
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
