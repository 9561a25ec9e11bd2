"""The only loop over steps: many chains, many refinements, one pass over each minibatch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rllc.arguments import names_checked
from rllc.engine.bind import bind
from rllc.engine.chains import Chains, Pass, check_states
from rllc.engine.devices import on_device
from rllc.engine.layout import stack, unpack
from rllc.engine.modes import ambient, undisturbed
from rllc.errors import InputError, ObservationError
from rllc.losses.again import check_again, is_looked_at_again
from rllc.losses.checks import check_origin, check_scene
from rllc.losses.contract import LossFunction
from rllc.observables import (
    acceptance,
    control_variate,
    discretisation,
    loss_under_prior,
    max_curvature,
    minibatch_variance,
    pairing,
    stability,
)
from rllc.samplers import Sampler
from rllc.sampling.checks import (
    arguments,
    check,
    check_how,
    check_resume,
    check_same_baseline,
    check_same_identity,
)
from rllc.sampling.draws import Draws
from rllc.sampling.observe import Observable, check_names
from rllc.sampling.recording import Column, Page
from rllc.sampling.settings import Compute, Sampling
from rllc.sampling.watch import Watch
from rllc.statistics.uncertainty import mean_of_draws
from rllc.storage.identity import of_call
from rllc.threads import chosen_for
from rllc.weights import refinement as refine
from rllc.weights.names import Names
from rllc.weights.refinement import DataLike, Refinement, WeightsLike
from rllc.wrappers import unwrapped


@dataclass(frozen=True, eq=False)
class Step:
    """The chains after a step, measured on the next minibatch, on which they do not depend."""

    step: int
    """From 1 on."""
    draw: int | None
    """Which draw this is, from 0 on; ``None`` during burn-in and between draws."""
    loss: Tensor
    """``[refinement, chain]``, float64: mean loss on the minibatch; NaN once a chain diverged."""
    baseline: Tensor
    """``[refinement]``, float64: the loss at w* on the same minibatch."""
    diverged: Tensor
    """``[refinement, chain]``: the step at which a chain diverged, −1 while it has not."""
    observed: Mapping[str, Tensor]
    """``[refinement, chain, *axes]`` by name: what was observed at this draw."""
    positions: Callable[[int], Tensor]
    """``positions(refinement)`` is ``[chain, dim]``: the selected weights in one vector, parameters
    in alphabetical order, and what is not selected left out. :attr:`parameters` has their names."""
    parameters: Callable[[int], dict[str, Tensor]]
    """``parameters(refinement)`` gives the parameters that move, whole, by name,
    ``[chain, *shape]``: what is not selected in them is as in the model. For
    ``torch.func.functional_call``."""


@names_checked
def sample(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    observe: Mapping[str, Observable] | None = None,
    resume: Draws | None = None,
) -> Draws:
    """Sample around the model's weights, and give every draw with its baseline.

    >>> model, data = torch.nn.Linear(2, 1), torch.randn(8, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> sample(model, data, loss=square, sampling=Sampling(batch_size=8))
    Draws(1 refinements × 4 chains × 200 draws)

    All heads and chains run together. The minibatches are shared by all refinements of one data
    set. The noise is a function of (seed, selected weights, data, chain) alone, and of no data with
    ``common_noise``: a refinement gives the same draws alone or in company. Neither the model, nor
    its gradients or mode, nor any global random state is changed.

    Args:
        model: any module; :class:`rllc.models.AttentionOnly` is fastest.
        data: see :func:`rllc.weights.refinement.product`; so for ``weights``.
        weights: which weights move.
        loss: ``loss(module, batch)`` giving per-example or per-token losses; ``None`` is next-token
            cross entropy; see :func:`rllc.estimate`.
        sampler: ``None`` is ``rllc.sgld(lr=1e-3, localization=200.0)``, the paper's.
        sampling: as for :func:`rllc.estimate`.
        compute: how it is run; ``None`` is ``rllc.Compute()``.
        observe: what else to measure along the chains, by name: ``{"distance": rllc.distance()}``.
            It changes no chain.
        resume: draws of the same call with fewer ``num_draws`` and
            ``compute=rllc.Compute(keep_states=True)``. Its chains go on where they were, and the
            result is that of one call, bit for bit where passes are of the same size. An
            observable that ``resume`` does not have is of the new draws only.

    Raises:
        InputError: before any chain runs, when an argument cannot work; so, when ``resume`` has no
            states, or is of other settings, data, weights or another model.
        ObservationError: an observable raised or gave what it must not. Before any chain runs where
            it does so at once; later, ``error.draws`` holds the draws so far.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    check_how(compute, observe=observe)
    compute = Compute() if compute is None else compute
    with undisturbed(model):
        question = _Question.of(
            model, data, weights, loss, sampler, sampling, compute, observe or {}
        )
        run = _Sample(question, resume)
    done = 0 if resume is None else replace(sampling, num_draws=resume.num_draws).num_steps
    bar = tqdm(
        total=sampling.num_steps,
        initial=done,
        desc=f"{sampler.name}: {len(question.refinements)} × {sampling.num_chains} chains",
        unit="step",
        disable=not compute.progress,
        leave=False,
    )
    num_runs = len(question.refinements) * sampling.num_chains
    with bar, chosen_for(question.model, num_runs):
        try:
            way = ""
            bar.set_postfix_str("preparing: checks, and how runs are evaluated")
            for step in run.steps():
                if run.way != way:  # shown at once: a short run may be over before a next refresh
                    way = run.way
                    bar.set_postfix_str(way)
                bar.update()
                run.keep(step)
        except ObservationError as error:
            if run.num_draws:
                error.draws = run.draws(keep_states=True)
            raise
    return run.draws(compute.keep_states)


@names_checked
def iterate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    observe: Mapping[str, Observable] | None = None,
) -> Iterator[Step]:
    """The generator under :func:`sample`: one :class:`Step` after another.

    >>> model, data = torch.nn.Linear(2, 1), torch.randn(8, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> steps = iterate(model, data, loss=square, sampling=Sampling(num_draws=2, batch_size=8))
    >>> [tuple(step.positions(0).shape) for step in steps]
    [(4, 3), (4, 3)]

    Takes what :func:`sample` takes. Stop early by leaving the loop. Values stay on the device.
    ``step.parameters(0)`` has the weights by name, such as ``weight [chain, 1, 2]`` here.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    check_how(compute, observe=observe)
    compute = Compute() if compute is None else compute
    if sampling.target_se is not None:
        raise InputError(
            "iterate: `target_se` stops rllc.sample and rllc.estimate; in a loop of your own, "
            "leave the loop when you like."
        )
    with undisturbed(model):
        question = _Question.of(
            model, data, weights, loss, sampler, sampling, compute, observe or {}
        )
    return _Sample(question, None).steps()


@dataclass(frozen=True, eq=False)
class _Question:
    """The arguments of :func:`sample`, as they are used."""

    model: nn.Module
    refinements: list[Refinement]
    loss: LossFunction | None
    sampler: Sampler
    sampling: Sampling
    compute: Compute
    built_in: Mapping[str, Observable]
    yours: Mapping[str, Observable]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: DataLike,
        weights: WeightsLike,
        loss: LossFunction | None,
        sampler: Sampler,
        sampling: Sampling,
        compute: Compute,
        observe: Mapping[str, Observable],
    ) -> _Question:
        model = unwrapped(model)
        refinements = refine.product(weights, data, model)
        model, loss, _ = on_device(model, loss, compute.device)
        by_data = _by_data(refinements, sampler, sampling)
        built_in = _built_in(sampler, sampling, by_data.values())
        check_names(observe, built_in)
        return cls(model, refinements, loss, sampler, sampling, compute, built_in, observe)

    @property
    def settings(self) -> dict[str, object]:
        return {
            **self.sampler.settings,
            **self.sampling.settings,
            "relaxation": relaxation_of_draws(self.sampler, self.sampling),
            "minibatches": self._minibatches,
            "fingerprints": refine.fingerprints(self.refinements),
        }

    @property
    def _minibatches(self) -> dict[str, dict[str, int | None]]:
        """The choices for each data set: rows of a minibatch, and whether with the control."""
        by_data = _by_data(self.refinements, self.sampler, self.sampling)
        chosen = {}
        for name, settings in by_data.items():
            chosen[name] = {
                "batch_size": settings.batch_size,
                "control_variate": settings.control_variate,
            }
        return chosen

    def identity(self) -> dict[str, object]:
        return of_call(self.model, self.loss, self.sampler, self.sampling.autocast)


class _Sample:
    """One sampling: its chains, and what is kept of them."""

    def __init__(self, question: _Question, resume: Draws | None) -> None:
        self.question, self.resume = question, resume
        self.stopped: dict[int, int] = {}
        """Refinements that need no more draws, with the number that they have."""
        sampling = question.sampling
        if resume is not None:
            check_resume(resume, question.refinements, question.settings)
            for row, length in enumerate(resume.lengths):
                if length < resume.num_draws:
                    self.stopped[row] = length
        self.watch = Watch(question.built_in, question.yours, sampling, resume)
        earlier_loss = None if resume is None else resume.loss
        earlier_baseline = None if resume is None else resume.baseline
        self.loss = Column(sampling.num_draws, earlier_loss)
        self.baseline = Column(sampling.num_draws, earlier_baseline)
        self.num_draws = 0 if resume is None else resume.num_draws
        self.chains: Chains | None = None
        self.parameters = dict(question.model.named_parameters())
        self.ambient: dict[str, object] = {}
        """The threads and determinism of torch, on which the last bits of chains may depend."""
        self.identity: dict[str, object] | None = None
        """Of model, loss and sampler, where states are kept or gone on from: it takes a hash of
        all weights."""
        if resume is not None or question.compute.keep_states:
            self.identity = question.identity()
        self._stop_the_precise()

    def steps(self) -> Iterator[Step]:
        """Advance all chains step by step. Refinements in ``stopped`` are not sampled further."""
        self.ambient = ambient()
        with undisturbed(self.question.model):
            chains = self.chains = self._chains()
        sampling = self.question.sampling
        running = len(self.question.refinements)
        # The first step leads from the start to step 1 and gives no loss worth having.
        first = 0
        if self.resume is not None:
            first = replace(sampling, num_draws=self.resume.num_draws).num_steps + 1
        for step in range(first, sampling.num_steps + 1):
            if len(self.question.refinements) - len(self.stopped) < running:
                chains.stop(self.stopped)
                running = len(self.question.refinements) - len(self.stopped)
            if not running:
                return
            draw = sampling.draw_at(step)
            page = Page(*chains.diverged.shape)
            with undisturbed(self.question.model):
                positions = self._advance(chains, step, draw, page)
            if step > 0:
                yield _step(step, draw, page, chains, positions, self.parameters)
            if self.watch.failure is not None:
                raise self.watch.failure

    def _advance(
        self, chains: Chains, step: int, draw: int | None, page: Page
    ) -> list[tuple[Pass, Tensor]]:
        """Advance all chains by one step, and write on a page what was measured before it.

        Returns:
            Each pass with its positions before the step.
        """
        positions: list[tuple[Pass, Tensor]] = []
        for data_set in chains.data_sets:
            scene = data_set.scene(step, chains.loss)
            check_scene(scene, data_set.name)
            baseline = scene.center.mean
            for p in data_set.passes:
                position = p.state.position
                runs = chains.advance(p, scene, each=draw is not None)
                loss = chains.judge(p, runs, step)
                page.put("loss", loss, p.refinement, p.chain)
                page.put("baseline", baseline.expand_as(loss), p.refinement, p.chain)
                positions.append((p, position))
                if draw is not None:
                    moment = self.watch.moment(chains, p, scene, runs, position, step, draw)
                    self.watch.look(moment, p, loss.isfinite(), page)
            if is_looked_at_again(step):
                check_again(scene, chains.loss, data_set.name)
        return positions

    def keep(self, step: Step) -> None:
        """Keep a draw, and stop the refinements whose error is small enough."""
        if step.draw is None:
            return
        self.loss.append(step.loss)
        self.baseline.append(step.baseline[:, None].expand_as(step.loss))
        self.watch.keep(step.observed)
        self.num_draws += 1
        self._stop_the_precise()

    @property
    def way(self) -> str:
        """How runs are evaluated: a layer at once, stacked, or run by run and why."""
        if self.chains is not None and self.chains.loss.ways:
            return "; ".join(self.chains.loss.ways)
        if self.resume is not None:
            # Where no chain goes on, none was evaluated in this call.
            return str(self.resume.settings.get("ambient", {}).get("evaluation", ""))
        return ""

    def draws(self, keep_states: bool) -> Draws:
        """All draws so far."""
        question = self.question
        loss, baseline = self.loss.array, self.baseline.array
        assert loss is not None
        assert baseline is not None
        refinements = range(len(question.refinements))
        diverged = self._diverged()
        present = self.ambient | {"evaluation": self.way}
        settings = question.settings | {"observed": self.watch.axes, "ambient": present}
        if keep_states:
            settings["identity"] = self.identity or question.identity()
        return Draws(
            loss=loss,
            baseline=baseline,
            diverged=diverged,
            names=Names.of(r.name for r in question.refinements),
            settings=settings,
            lengths=tuple(self.stopped.get(row, self.num_draws) for row in refinements),
            observed=self.watch.observed(),
            states=self.chains.states() if keep_states and self.chains is not None else {},
        )

    def _diverged(self) -> np.ndarray:
        if self.chains is not None:
            return self.chains.diverged.cpu().numpy()
        assert self.resume is not None
        return self.resume.diverged

    def _chains(self) -> Chains:
        question, resume = self.question, self.resume
        sampling, model = question.sampling, question.model
        masks = check(model, question.loss, question.refinements, question.sampler, sampling)
        autocast = None if sampling.autocast is None else getattr(torch, sampling.autocast)
        bind_loss = partial(bind, model, question.loss, train_mode=sampling.train_mode)
        loss = bind_loss(autocast=autocast, compile=question.compute.compile)
        chains = Chains(
            question.refinements,
            masks,
            dict(model.named_parameters()),
            loss,
            question.sampler,
            sampling,
            question.compute.runs_per_pass,
        )
        if resume is not None:
            self._put_back(chains, resume)
        else:
            # Earlier draws of the same call have been checked.
            check_origin(chains)
            if sampling.start == "gaussian":
                chains.start_at_gaussian()
        is_exact = autocast is None and not question.compute.compile
        self.watch.prepare(chains, loss if is_exact else bind_loss())
        return chains

    def _put_back(self, chains: Chains, resume: Draws) -> None:
        """Put chains to where earlier draws ended."""
        chains.diverged = torch.tensor(resume.diverged, device=chains.device)
        chains.stop(self.stopped)
        check_states(chains, resume.states)
        prepared = [n for n, o in self.watch.observables.items() if o.prepare is not None]
        chains.put_back(resume.states, prepared)
        last = replace(self.question.sampling, num_draws=resume.num_draws).num_steps
        for data_set in chains.data_sets:
            scene = data_set.scene(last, chains.loss)
            baseline = resume.baseline[int(data_set.refinements[0]), 0, -1]
            check_same_baseline(scene.center, baseline, data_set.name)
        assert self.identity is not None
        check_same_identity(resume, self.identity)

    def _stop_the_precise(self) -> None:
        """Note the refinements whose standard error is small enough."""
        target = self.question.sampling.target_se
        if target is None or self.num_draws < 40 or self.num_draws % 20:
            return
        loss, baseline = self.loss.array, self.baseline.array
        assert loss is not None
        assert baseline is not None
        paired = loss - baseline
        if "control" in self.watch.columns:
            paired = paired - self.watch.columns["control"].array
        relaxation = relaxation_of_draws(self.question.sampler, self.question.sampling)
        error = mean_of_draws(paired, relaxation).standard_error
        for row in np.flatnonzero(self.question.sampling.n_beta * error <= target).tolist():
            if row not in self.stopped:
                self.stopped[row] = self.num_draws


def _by_data(
    refinements: Iterable[Refinement], sampler: Sampler, sampling: Sampling
) -> dict[str, Sampling]:
    """The settings of each data set, with what its number of rows decides."""
    settings = {}
    for refinement in refinements:
        rows = len(refinement.data)
        settings[refinement.data_name] = sampling.of_rows(rows, full_batch=sampler.full_batch)
    return settings


def _built_in(
    sampler: Sampler, sampling: Sampling, by_data: Iterable[Sampling]
) -> dict[str, Observable]:
    """The observables that estimates need: the minibatch's noise, and those of the sampler's law.

    A data set's own settings decide whether the control variate is measured, or 0.
    """
    controlled = [settings.control_variate for settings in by_data]
    observables = {"minibatch_variance": minibatch_variance()}
    if any(controlled):
        observables["control"] = control_variate()
    if not sampling.num_probes:
        return observables
    observables["max_curvature"] = max_curvature(sampler.lr)
    if 0 < sampler.lr * sampler.localization < 4 and "half_width" not in sampler.options:
        observables["loss_under_prior"] = loss_under_prior(sampler.lr, sampler.localization)
    law = sampler.law
    if law is None:
        return observables
    if law.relaxation is not None and not all(controlled):
        observables["pairing"] = pairing(sampler)
    if law.largest_precision == law.largest_precision:  # it is known
        observables["stability"] = stability(sampler)
    if law.log_acceptance is not None:
        observables["acceptance"] = acceptance(law)
    if law.step_adds:
        observables["discretisation"] = discretisation()
    return observables


def _step(
    step: int,
    draw: int | None,
    page: Page,
    chains: Chains,
    positions: list[tuple[Pass, Tensor]],
    parameters: Mapping[str, Tensor],
) -> Step:
    """A step as callers of :func:`iterate` see it."""
    loss, baseline = page.values.pop("loss"), page.values.pop("baseline")
    find = partial(_positions, positions, chains.diverged.shape[1])
    by_name = partial(_parameters, positions, parameters)
    diverged = chains.diverged.clone()
    return Step(step, draw, loss, baseline[:, 0], diverged, page.values, find, by_name)


def _parameters(
    positions: list[tuple[Pass, Tensor]], parameters: Mapping[str, Tensor], refinement: int
) -> dict[str, Tensor]:
    """The parameters that one refinement's chains move, ``[chain, *shape]`` by name."""
    parts: dict[str, list[Tensor]] = {}
    chains = []
    for p, position in positions:
        runs = (p.refinement == refinement).nonzero()[:, 0]
        if not len(runs):
            continue
        chains.append(p.chain[runs])
        moved = unpack(p.group, position[runs], p.member[runs], parameters)
        for name, block in moved.items():
            parts.setdefault(name, []).append(stack(block, parameters[name]))
    order = torch.cat(chains).argsort()
    values = {}
    for name, parts_of_passes in parts.items():
        values[name] = torch.cat(parts_of_passes)[order].detach()
    return values


def _positions(positions: list[tuple[Pass, Tensor]], num_chains: int, refinement: int) -> Tensor:
    """The positions of one refinement's chains, ``[chain, dim]``, from the passes they are in."""
    parts, chains = [], []
    for p, position in positions:
        runs = (p.refinement == refinement).nonzero()[:, 0]
        if len(runs):
            parts.append(position[runs])
            chains.append(p.chain[runs])
    order = torch.cat(chains).argsort()
    assert len(order) == num_chains
    return torch.cat(parts)[order]


def relaxation_of_draws(sampler: Sampler, sampling: Sampling) -> float | None:
    """The correlation of successive draws in the slowest direction; ``None`` if not known."""
    if sampler.law is None or sampler.law.relaxation is None:
        return None
    return sampler.law.relaxation**sampling.num_steps_bw_draws
