"""The observables of a sampling: tried before it, measured along it, kept for the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllc.engine.chains import Chains, DataSet, Pass
from rllc.engine.scene import Scene
from rllc.errors import InputError, ObservationError, first_line
from rllc.losses.contract import Center, Loss, Runs
from rllc.sampling.draws import Draws
from rllc.sampling.observe import Moment, Observable, Stage
from rllc.sampling.recording import Column, Page, RunningMoments
from rllc.sampling.settings import Sampling, probed

_COVARIANCE_BYTES = 4 * 2**30
"""The most that running covariances may take."""


class Watch:
    """All observables of one sampling.

    Args:
        built_in: what rllc measures itself.
        yours: what the caller asked for. These are tried on the first minibatch, before any chain
            moves, and their values are checked.
        sampling: says which draws are probed.
        resume: earlier draws, whose values come first.
    """

    def __init__(
        self,
        built_in: Mapping[str, Observable],
        yours: Mapping[str, Observable],
        sampling: Sampling,
        resume: Draws | None = None,
    ) -> None:
        self.observables = {**built_in, **yours}
        self.yours = set(yours)
        self.sampling, self.resume = sampling, resume
        self.failure: ObservationError | None = None
        self.probed = frozenset(probed(sampling.num_probes, sampling.num_draws, sampling.target_se))
        self.at_start: dict[str, np.ndarray] = {}
        self.columns: dict[str, Column] = {}
        self.moments: dict[str, RunningMoments] = {}
        self.centers: dict[Any, Center] = {}
        for name, observable in self.observables.items():
            if observable.keep == "moments":
                self.moments[name] = self._earlier_moments(name)
            elif observable.at != "start":
                self.columns[name] = self._column(name, observable)

    # Before the first step.

    def prepare(self, chains: Chains, exact: Loss) -> None:
        """Measure what is measured at w*, and try the observables of the caller.

        Args:
            chains: before their first step.
            exact: the loss in float32, which differences of gradients need.
        """
        shape = chains.diverged.shape
        page = Page(shape[0], 1)
        for data_set in chains.data_sets:
            if any(True for _ in self._due("start")):
                self._look_at_start(chains, data_set, exact, page)
            if self.yours or self._unprepared(data_set):
                scene = data_set.scene(0, chains.loss)
                for p in data_set.passes:
                    self._prepare(chains, p, scene)
                self._try(chains, data_set.passes[0], scene)
        for name, values in page.values.items():
            self.at_start[name] = values[:, 0].cpu().numpy()

    def _look_at_start(self, chains: Chains, data_set: DataSet, exact: Loss, page: Page) -> None:
        """Measure each refinement once, with the run of its first chain."""
        scene = data_set.scene(0, exact)
        for p in data_set.passes:
            runs = (p.chain == 0).nonzero()[:, 0]
            if not len(runs):
                continue
            moment = self._at_origin(chains, p, scene, exact, runs)
            every_run = torch.ones_like(runs, dtype=torch.bool)
            for name, observable in self._due("start"):
                values = self._measure(name, observable, moment, every_run)
                page.put(name, values, p.refinement[runs], torch.zeros_like(runs))

    def _unprepared(self, data_set: DataSet) -> bool:
        """Whether an observable still has something to prepare; chains that go on have it."""
        names = [name for name, o in self.observables.items() if o.prepare is not None]
        return any(name not in p.prepared for p in data_set.passes for name in names)

    def _prepare(self, chains: Chains, p: Pass, scene: Scene) -> None:
        for name, observable in self.observables.items():
            if observable.prepare is not None and name not in p.prepared:
                every_run = torch.arange(len(p.chain), device=p.chain.device)
                moment = self._at_origin(chains, p, scene, chains.loss, every_run)
                p.prepared[name] = observable.prepare(moment)

    def _try(self, chains: Chains, p: Pass, scene: Scene) -> None:
        """Measure what the caller asked for at the beginning of the chains, and forget it."""
        first = self.moment(chains, p, scene, None, p.state.position, 0, 0)
        every_run = torch.ones_like(p.chain, dtype=torch.bool)
        for name in sorted(self.yours):
            observable = self.observables[name]
            if observable.at != "start":
                moment = first.with_prepared(p.prepared.get(name))
                values = self._measure(name, observable, moment, every_run)
                if observable.keep == "moments":
                    self._check_covariance(name, values, chains)

    def _check_covariance(self, name: str, values: Tensor, chains: Chains) -> None:
        numbers = values[0].numel() ** 2 * chains.diverged.numel()
        if 8 * numbers > _COVARIANCE_BYTES:
            raise InputError(
                f"sample: the covariance of the observable {name!r} would take "
                f"{8 * numbers / 2**30:.0f} GiB; observe fewer values, or pass keep='difference'."
            )

    # At each step.

    def look(self, moment: Moment, p: Pass, alive: Tensor, page: Page) -> None:
        """Measure what is due at a moment.

        Args:
            moment: the runs of a pass, with the step that begins there.
            p: the pass.
            alive: ``[run]``: which runs have not diverged.
            page: where the values go.
        """
        for name, observable in self._due("draw"):
            self._look(name, observable, moment, p, alive, page)
        if moment.draw in self.probed:
            for name, observable in self._due("probe"):
                self._look(name, observable, moment, p, alive, page)

    def _look(
        self,
        name: str,
        observable: Observable,
        moment: Moment,
        p: Pass,
        alive: Tensor,
        page: Page,
    ) -> None:
        try:
            prepared = moment.with_prepared(p.prepared.get(name))
            values = self._measure(name, observable, prepared, alive)
        except ObservationError as error:
            # The other chains first finish their step, so that all of them can go on from here.
            self.failure = error
            return
        if name in self.yours and values.is_floating_point():
            # A chain that diverged has no number.
            other_axes = [1] * (values.dim() - 1)
            has_diverged = ~alive.reshape(-1, *other_axes)
            values = values.masked_fill(has_diverged, torch.nan)
        page.put(name, values, p.refinement, p.chain)

    def keep(self, observed: Mapping[str, Tensor]) -> None:
        """Keep the values of a draw."""
        for name, values in observed.items():
            if name in self.columns:
                self.columns[name].append(values)
            elif name in self.moments:
                self.moments[name].append(values)

    def moment(
        self,
        chains: Chains,
        p: Pass,
        scene: Scene,
        runs: Runs | None,
        position: Tensor,
        step: int,
        draw: int | None,
    ) -> Moment:
        """The runs of a pass at ``position``, from which their step has led to ``p.state``."""
        names = [chains.refinements[row].name for row in p.refinement.tolist()]
        return Moment(
            step=step,
            draw=draw,
            refinements=tuple(names),
            chain=p.chain,
            position=position,
            after=p.state.position,
            origin=p.origin,
            n_beta=self.sampling.n_beta,
            _stage=Stage(chains.loss, p.group, p.member, scene, self.centers),
            _runs=runs,
        )

    # Afterwards.

    def observed(self) -> dict[str, np.ndarray]:
        """All values, by name."""
        arrays = dict(self._earlier_at_start())
        arrays |= self.at_start
        for name, column in self.columns.items():
            values = column.array
            if values is not None:
                arrays[name] = values
        for name, moments in self.moments.items():
            if moments.count is not None:
                arrays[name], arrays[f"{name}.covariance"] = moments.arrays()
        if self.failure is not None:
            arrays.pop(self.failure.name, None)
        return arrays

    @property
    def axes(self) -> dict[str, list[str]]:
        """The further axes of what the caller observed."""
        return {name: list(self.observables[name].axes) for name in sorted(self.yours)}

    def _due(self, at: str) -> Iterator[tuple[str, Observable]]:
        for name, observable in self.observables.items():
            failed = self.failure is not None and self.failure.name == name
            done = at == "start" and self.resume is not None and name in self.resume.observed
            if observable.at == at and not failed and not done:
                yield name, observable

    def _measure(self, name: str, observable: Observable, moment: Moment, alive: Tensor) -> Tensor:
        """One observable's values ``[run, *axes]``, checked where they are the caller's.

        Raises:
            ObservationError: names the observable.
        """
        if name not in self.yours:
            return observable.measure(moment)
        try:
            with torch.no_grad():
                values = observable.measure(moment)
            _check_shape(name, values, len(moment.position), observable.axes)
            _check_finite(name, values, alive)
            if observable.keep == "difference":
                assert observable.origin is not None
                values = (values - observable.origin(moment)).to(torch.float16)
        except ObservationError:
            raise
        except Exception as error:
            raise ObservationError(
                name,
                f"sample: the observable {name!r} failed at step {moment.step} "
                f"({type(error).__name__}: {first_line(error)}). It must be a function of one "
                f"rllc.Moment that gives {_expected(observable.axes)}.",
            ) from error
        return values

    def _at_origin(self, chains: Chains, p: Pass, scene: Scene, loss: Loss, runs: Tensor) -> Moment:
        """Some runs of a pass at w*."""
        moment = self.moment(chains, p, scene, None, p.origin, 0, None)
        names = [moment.refinements[run] for run in runs.tolist()]
        origin = p.origin[runs]
        stage = Stage(loss, p.group, p.member[runs], scene, {})
        return replace(
            moment,
            refinements=tuple(names),
            chain=p.chain[runs],
            position=origin,
            after=origin,
            origin=origin,
            _stage=stage,
            _memo={},
        )

    def _column(self, name: str, observable: Observable) -> Column:
        earlier = None if self.resume is None else self.resume.observed.get(name)
        if observable.at == "draw":
            return Column(self.sampling.num_draws, earlier)
        if earlier is not None:
            earlier = earlier[:, :, self._still_probed(earlier.shape[2])]
        return Column(len(self.probed), earlier)

    def _still_probed(self, count: int) -> list[int]:
        """Which of the earlier probes are among those of this sampling."""
        assert self.resume is not None
        num_draws = self.resume.settings["num_draws"]
        earlier = probed(self.sampling.num_probes, num_draws, self.sampling.target_se)
        still = [probe for probe, draw in enumerate(earlier) if draw in self.probed]
        return [probe for probe in still if probe < count]

    def _earlier_at_start(self) -> Iterable[tuple[str, np.ndarray]]:
        if self.resume is None:
            return
        for name, observable in self.observables.items():
            if observable.at == "start" and name in self.resume.observed:
                yield name, self.resume.observed[name]

    def _earlier_moments(self, name: str) -> RunningMoments:
        if self.resume is None or name not in self.resume.observed:
            return RunningMoments()
        lengths = np.array(self.resume.lengths, dtype=float)[:, None]
        count = np.broadcast_to(lengths, self.resume.loss.shape[:2]).copy()
        covariance = self.resume.observed[f"{name}.covariance"]
        return RunningMoments(self.resume.observed[name], covariance, count)


def _check_shape(name: str, values: object, runs: int, axes: tuple[str, ...]) -> None:
    if not isinstance(values, Tensor):
        shape = type(values).__name__
    elif values.dim() == 1 + len(axes) and len(values) == runs:
        return
    else:
        shape = f"a tensor of shape {list(values.shape)}"
    raise ObservationError(
        name,
        f"sample: the observable {name!r} gave {shape}; expected {_expected(axes)}, "
        f"with {runs} runs in this pass.",
    )


def _check_finite(name: str, values: Tensor, alive: Tensor) -> None:
    """Refuse NaN for all values of a run; for single values it marks that they do not exist."""
    if not values.is_floating_point():
        return
    has_value = values.isfinite().reshape(len(values), -1).any(1)
    is_empty = ~has_value & alive
    if bool(is_empty.any()):
        raise ObservationError(
            name,
            f"sample: the observable {name!r} gave no finite number for {int(is_empty.sum())} of "
            f"{len(values)} runs whose chains have not diverged. Mark single values that do not "
            f"exist with NaN, but give at least one a run.",
        )


def _expected(axes: tuple[str, ...]) -> str:
    return f"a tensor [{', '.join(('run', *axes))}]"
