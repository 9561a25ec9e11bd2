"""Observables, which are watched along chains: each is a function of one :class:`Moment`.

An observable never changes a chain: it reads positions and losses, and evaluates the model beside
the chains, with random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rllc.data.data import Data
from rllc.engine.layout import Group
from rllc.engine.scene import Scene
from rllc.errors import InputError, must_be, one_of
from rllc.losses.contract import Batch, Center, Loss, Runs
from rllc.samplers import Jump
from rllc.sampling.settings import Sampling
from rllc.seeds import stable_hash
from rllc.weights.names import check_name

_KEPT_CENTERS = 256 * 2**20
"""Bytes of activations at w* that are kept from draw to draw for rows that are observed."""


@dataclass(frozen=True, eq=False)
class Observable:
    """Something measured along the chains.

    >>> distance = Observable(lambda moment: (moment.position - moment.origin).square().sum(1))
    >>> distance.at
    'draw'

    Args:
        measure: ``measure(moment) -> [run, *axes]``: one value for each run of the moment.
        axes: names of the further axes, such as ``("row", "pos")``.
        at: when it is measured. ``"draw"``: at each draw, after the step that begins there.
            ``"probe"``: at the few draws whose step is looked at twice
            (``Sampling(num_probes=…)``). ``"start"``: once for each refinement, at w*, before the
            first step, in float32.
        keep: what is kept of the values. ``"all"``: each. ``"difference"``: each value's difference
            to ``origin``, as float16, which has 11 bits and is enough for losses near w*.
            ``"moments"``: mean and covariance over the draws of each chain, for values whose
            draws would not fit into memory; the covariance has the name ``"<name>.covariance"``.
        origin: ``origin(moment)``: the same quantity at w*, ``[*axes]`` or ``[run, *axes]``; for
            ``keep="difference"``.
        prepare: ``prepare(moment) -> [run, …]``: computed once for each refinement before the first
            step; ``moment.prepared`` in ``measure``. Chains that are continued keep it.

    Raises:
        InputError: an argument is not one of these.
    """

    measure: Callable[[Moment], Tensor]
    axes: tuple[str, ...] = ()
    at: Literal["start", "draw", "probe"] = "draw"
    keep: Literal["all", "difference", "moments"] = "all"
    origin: Callable[[Moment], Tensor] | None = None
    prepare: Callable[[Moment], Tensor] | None = None

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise InputError(
                f"Observable: `measure` must be a function of a moment that gives [run, *axes], "
                f"got {type(self.measure).__name__}."
            )
        for name in ("origin", "prepare"):
            value = getattr(self, name)
            right = value is None or callable(value)
            must_be("Observable", name, value, right, "a function of a moment, or left out")
        are_axes = isinstance(self.axes, tuple | list)
        are_axes = are_axes and all(isinstance(axis, str) for axis in self.axes)
        must_be("Observable", "axes", self.axes, are_axes, "a tuple of names, such as ('pos',)")
        if not one_of(self.at, ("start", "draw", "probe")):
            raise InputError(
                f"Observable: `at` must be 'start', 'draw' or 'probe', got {self.at!r}."
            )
        if not one_of(self.keep, ("all", "difference", "moments")):
            raise InputError(
                f"Observable: `keep` must be 'all', 'difference' or 'moments', got {self.keep!r}."
            )
        if self.keep == "difference" and self.origin is None:
            raise InputError(
                "Observable: keep='difference' needs `origin`, a function of a moment that gives "
                "the same quantity at w*."
            )
        if self.keep == "moments" and self.at != "draw":
            raise InputError("Observable: keep='moments' is for at='draw', where there are many.")


@dataclass(frozen=True, eq=False)
class Moment:
    """The runs of one pass at one step.

    Everything about runs has a leading run axis; a run is one chain of one refinement.
    """

    step: int
    """From 1 on; 0 at the start."""
    draw: int | None
    """Which draw this is, from 0 on; ``None`` at the start."""
    refinements: tuple[tuple[str, str], ...]
    """The (weights, data) names of each run's refinement."""
    chain: Tensor
    """``[run]``: the number of each run's chain."""
    position: Tensor
    """``[run, dim]``: the weights that move, parameters in alphabetical order."""
    after: Tensor
    """``[run, dim]``: where the step that begins here leads."""
    origin: Tensor
    """``[run, dim]``: w*."""
    n_beta: float
    prepared: Tensor | None = None
    """``[run, …]``: what the observable's ``prepare`` gave."""
    _stage: Stage = field(repr=False, default=None)  # type: ignore[assignment]
    _runs: Runs | None = field(repr=False, default=None)
    _memo: dict[Any, Any] = field(repr=False, default_factory=dict)

    @property
    def losses(self) -> Tensor:
        """``[run]``, float64: mean loss on the step's minibatch."""
        return self._measured.losses

    @property
    def losses_by_row(self) -> Tensor:
        """``[run, batch]`` or ``[run, batch, pos]``: the losses on the step's minibatch.

        NaN at positions that do not count.
        """
        each = self._measured.each
        assert each is not None
        return each

    @property
    def baseline_by_row(self) -> Tensor:
        """``[batch]`` or ``[batch, pos]``: the losses at w* on the same minibatch."""
        return self._stage.scene.center.losses

    @property
    def counted(self) -> Tensor | None:
        """Which of these losses count, ``[batch]`` or ``[batch, pos]``; ``None``: all."""
        return self._stage.scene.center.counted

    @property
    def rows(self) -> Tensor:
        """``[batch]``: which rows of its data the minibatch holds."""
        return self._stage.scene.rows

    @property
    def num_rows(self) -> int:
        """How many rows the data has."""
        return len(self._stage.surroundings.data)

    @property
    def sampling(self) -> Sampling:
        """The settings, with what the number of rows decides."""
        return self._stage.surroundings.sampling

    def gradient(self, position: Tensor | None = None) -> Tensor:
        """Return the gradient of each run's mean loss on the step's minibatch, ``[run, dim]``.

        Args:
            position: ``[run, dim]``; ``None`` is :attr:`position`.
        """
        runs = self._measured if position is None else self.run(position)
        assert runs.gradient is not None
        return runs.gradient

    def evaluate(self, rows: Data) -> Tensor:
        """Return the losses of these runs on other rows, ``[run, row]`` or ``[run, row, pos]``."""
        batches = self._stage.batches(rows)
        return torch.cat([self._stage.losses(self.position, batch) for batch in batches], dim=1)

    def evaluate_origin(self, rows: Data) -> Tensor:
        """Return the losses at w* on other rows, ``[row]`` or ``[row, pos]``."""
        losses = [self._stage.center(batch).losses for batch in self._stage.batches(rows)]
        return torch.cat(losses)

    def run(self, position: Tensor, member: int | None = None) -> Runs:
        """Evaluate the step's minibatch, with gradients, at other positions ``[run, dim]``.

        Args:
            position: where.
            member: ``position`` is of this run alone, ``[1, dim]``.
        """
        return self._stage.run(position, member)

    def rise_at(self, position: Tensor, minibatch: int) -> Tensor:
        """Return ℓ(v) − ℓ(w*) of each run, ``[run]``, on a minibatch of another stream.

        Args:
            position: v, ``[run, dim]``.
            minibatch: its number, from 0 on.
        """
        number, beside = self._memo.get("beside", (None, None))
        if number != minibatch:
            # Only the last is kept: a centre holds all activations of its minibatch.
            beside = self._stage.surroundings.beside(minibatch)
            self._memo["beside"] = minibatch, beside
        return self._stage.rise(position, *beside)

    def origin_gradient(self) -> Tensor:
        """Return the gradient at w* on the step's minibatch, ``[run, dim]``."""
        return self._stage.scene.gradient(self._stage.group)[self._stage.member]

    def mean_origin_gradient(self) -> Tensor:
        """Return the mean gradient at w* over 128 minibatches of their own, ``[run, dim]``."""
        return self._stage.surroundings.mean(self._stage.group)[self._stage.member]

    def gradient_variance(self) -> Tensor:
        """Return the variance of a minibatch's gradient at w* in each weight, ``[run, dim]``."""
        return self._stage.surroundings.variance(self._stage.group)[self._stage.member]

    def jump(self) -> Jump:
        """Return the step that begins here, with losses and gradients at both ends.

        This evaluates the runs once more, where the step has led, on the same minibatch.
        """
        return self.remember("jump", self._jump)

    def remember(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Compute something once for all observables of this moment."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def with_prepared(self, prepared: Tensor | None) -> Moment:
        """Return the moment for an observable with a ``prepare`` of its own."""
        return replace(self, prepared=prepared)

    @property
    def _measured(self) -> Runs:
        if self._runs is not None:
            return self._runs
        return self.remember("runs", lambda: self.run(self.position))

    def _jump(self) -> Jump:
        measured, again = self._measured, self.run(self.after)
        assert measured.gradient is not None
        assert again.gradient is not None
        return Jump(
            before=self.position,
            after=self.after,
            origin=self.origin,
            loss_before=measured.losses,
            loss_after=again.losses,
            gradient_before=measured.gradient,
            gradient_after=again.gradient,
            n_beta=self.n_beta,
        )


@dataclass(frozen=True, eq=False)
class Stage:
    """How a moment evaluates the model: its loss, its group, its minibatch."""

    loss: Loss
    group: Group
    member: Tensor
    """``[run]``: which member of the group."""
    scene: Scene
    centers: dict[Any, Center]
    """Centres of rows that are observed, by row set and place; kept from draw to draw."""

    @property
    def surroundings(self) -> Any:
        """The surroundings of the data set."""
        return self.scene.surroundings

    def run(self, position: Tensor, member: int | None) -> Runs:
        """Evaluate the step's minibatch at other positions."""
        members = self.member if member is None else self.member[[member]]
        center, batch = self.scene.center, self.scene.batch
        return self.loss.runs(
            self.group, members, position, center, batch, gradient=True, each=member is None
        )

    def rise(self, position: Tensor, batch: Batch, center: Center) -> Tensor:
        """Losses minus those at w* on a minibatch, ``[run]``."""
        # The loss that the centre is of; products may be of lower precision than this stage's.
        runs = self.surroundings.loss.runs(
            self.group, self.member, position, center, batch, gradient=False, each=False
        )
        return runs.losses - center.mean

    def batches(self, rows: Data) -> Iterator[tuple[Any, Any]]:
        """Rows in batches of the sampling's size, each with a key to find its centre by."""
        size = self.surroundings.batch_size
        for start in range(0, len(rows), size):
            chosen = torch.arange(start, min(start + size, len(rows)))
            yield (id(rows), start), rows.take(chosen, self.surroundings.device)

    def center(self, keyed_batch: tuple[Any, Any]) -> Center:
        """The unmoved model on a batch of :meth:`batches`."""
        key, batch = keyed_batch
        if key in self.centers:
            return self.centers[key]
        seed = stable_hash("observed rows", self.surroundings.sampling.seed)
        center = self.loss.center(batch, seed)
        kept = sum(_bytes(value) for value in self.centers.values())
        if kept + _bytes(center) <= _KEPT_CENTERS:
            self.centers[key] = center
        return center

    def losses(self, position: Tensor, keyed_batch: tuple[Any, Any]) -> Tensor:
        """The losses of runs on a batch of :meth:`batches`, ``[run, row, …]``; no gradient."""
        _, batch = keyed_batch
        center = self.center(keyed_batch)
        runs = self.loss.runs(
            self.group, self.member, position, center, batch, gradient=False, each=True
        )
        assert runs.each is not None
        return runs.each


def check_names(observe: Mapping[str, Observable], reserved: Mapping[str, Observable]) -> None:
    """Refuse what is not a dict of observables under names of their own.

    Raises:
        InputError: says which name or value is wrong.
    """
    if not isinstance(observe, Mapping):
        raise InputError(
            f"sample: `observe` must be a dict of observables, such as "
            f"{{'distance': rllc.distance()}}, got {type(observe).__name__}."
        )
    for name, observable in observe.items():
        if not isinstance(observable, Observable):
            raise InputError(
                f"sample: `observe[{name!r}]` must be an rllc.Observable, such as rllc.distance() "
                f"or rllc.losses_on(rows), got {type(observable).__name__}."
            )
        check_name(name, "`observe`")
        if name in reserved or not isinstance(name, str) or "." in name:
            raise InputError(
                f"sample: `observe` has the name {name!r}; names must be strings without a dot, "
                f"other than {sorted(reserved)}, which rllc measures itself."
            )


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dataclass-like values."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(_bytes(part) for part in value)
    return 0
