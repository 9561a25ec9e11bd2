"""A trial of whether runs may be folded into the batch.

A few rows are evaluated at random positions near w*, one run after the other and all together. If
the numbers differ by more than rounding, shortcuts are left out: first the sweep over the
vocabulary, then what is kept of a minibatch. If they still differ, runs are evaluated in turn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.engine.company import OF_LAST_BITS
from rllc.engine.folded import Evaluated, Folded, Plan, Positions, first_rows
from rllc.engine.layout import Group
from rllc.engine.linear_maps import Maps, is_linear, maps_of
from rllc.engine.modes import seeded
from rllc.engine.module import ModuleLoss, rows_of
from rllc.engine.unmoved import Keeper, Seen, Unmoved, Watch, candidates, replaced, unmoved
from rllc.engine.vocabulary import Head, heads_of_config
from rllc.errors import first_line
from rllc.losses.by_name import masked_lm, next_token
from rllc.losses.contract import Batch, Center, Runs
from rllc.seeds import generator

RANDOM = "the loss draws random numbers, which each run draws anew"

_ROWS = 2
"""Rows of a trial."""

_RUNS = 3
"""Runs of a trial: two with other weights show whether runs touch one another, and a third, far
away, whether they do so past a threshold."""

_NEAR = 2
"""How many runs are near w*; they come first."""

_FAR = 10.0
"""The other runs are so many times as far from w*."""

_SHARE, _LEAST = 0.3, 0.03
"""A weight moves at random by this share of the root mean square of its tensor, plus the least."""

_LOSS_ROUNDING = 2e-5
"""The most that a loss may differ, as a share of the largest loss."""

_GRADIENT_ROUNDING = 2e-4
"""The most that a gradient may differ, as a share of its largest component."""

_NOTHING = Unmoved({}, frozenset())


def plan_of(folded: Folded, group: Group, batch: Batch, seed: int) -> Plan | str:
    """Find out how a group's runs can be evaluated together, or why they cannot.

    Args:
        folded: of the model and its loss.
        group: whose weights move.
        batch: a minibatch; its first rows are tried.
        seed: of the loss's own random numbers.
    """
    parameters = folded.exact.parameters.values()
    dtypes = {parameter.dtype for parameter in parameters}
    if not dtypes <= {torch.float32, torch.float64}:
        listed = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f"weights are of {listed}"
    maps = maps_of(group, folded.model)
    if isinstance(maps, str):
        return maps
    trial = _Trial(folded, maps, group, first_rows(batch, _ROWS))
    try:
        # The first pass may draw random numbers before it is known that the loss does.
        with in_float32(folded.exact), seeded(seed, folded.exact.device):
            plan = trial.plan(seed)
    except Exception as error:  # see _Trial
        return first_line(error)
    return RANDOM if folded.exact.random else plan


@contextmanager
def in_float32(exact: ModuleLoss) -> Iterator[None]:
    """Without autocast, whose rounding would hide what is wrong."""
    autocast = exact.autocast
    exact.autocast = None
    try:
        yield
    finally:
        exact.autocast = autocast


class _Trial:
    """One trial, of a few rows.

    Whatever a model or a loss raises here speaks against a plan. If it is wrong with them, it is
    raised again when runs are evaluated in turn.
    """

    def __init__(self, folded: Folded, maps: Maps, group: Group, batch: Batch) -> None:
        self.folded = folded
        self.exact = folded.exact
        self.maps = maps
        self.group = group
        self.batch = batch
        last_member = len(maps.origin) - 1
        member = torch.tensor([0, last_member, 0], device=maps.origin.device)
        position = maps.origin[member] + self._displacement()
        self.runs = Positions(member, position)

    def plan(self, seed: int) -> Plan:
        """The first plan that gives what runs give in turn.

        Raises:
            Refusal: there is none.
        """
        calls = self._watched()
        moved = list(self.maps.maps)
        same, maps = candidates(calls, moved)
        last = self._last_map(calls)
        keeper = Keeper(self.folded.model, [*same, *maps, *last])
        with replaced(self.folded.model, keeper.forwards()):
            center = self.exact.center(self.batch, seed)
        if self.exact.random:
            raise Refusal(RANDOM)
        head = self._head(last, keeper)
        same_for_all_runs = unmoved(calls, moved, keeper, _RUNS)
        return self._first_right(same_for_all_runs, head, keeper, center)

    def _displacement(self) -> Tensor:
        """How far each run is from w*, ``[run, dim]``."""
        stream = generator("trial", self.group.dim)
        noise = torch.randn(_RUNS, self.group.dim, generator=stream)
        displacement = noise.to(self.maps.origin.device)
        for slot in self.group.slots:
            weights = self.exact.parameters[slot.name].float()
            root_mean_square = float(weights.square().mean().sqrt())
            displacement[:, slot.start : slot.stop] *= _SHARE * root_mean_square + _LEAST
        displacement[_NEAR:] *= _FAR
        return displacement

    def _watched(self) -> list[Seen]:
        """All calls of modules in a pass of several runs."""
        watch = Watch(self.folded.model)
        plan = Plan(self.maps, _NOTHING, None)
        self.folded.watched(plan, self.runs, self.batch, watch)
        names = {call.name for call in watch.calls}
        for name in self.maps.maps:
            if name not in names:
                raise Refusal(f"{name!r} is not called, though its weights may be used")
        return watch.calls

    def _last_map(self, calls: list[Seen]) -> list[str]:
        """The whole model and its last linear map, where logits of tokens come from that."""
        if self.exact.loss not in (next_token, masked_lm):
            return []
        num_calls = Counter(call.name for call in calls)
        called_once = [name for name, number in num_calls.items() if number == 1]
        linear = [name for name in called_once if is_linear(self.folded.model.get_submodule(name))]
        if not linear or linear[-1] in self.maps.maps or "" not in called_once:
            return []
        return ["", linear[-1]]

    def _head(self, last: list[str], keeper: Keeper) -> Head | None:
        """How the model makes logits of the last map's output; ``None`` if no known way fits.

        Args:
            last: of :meth:`_last_map`.
            keeper: has kept what the model and the map give.
        """
        if not last:
            return None
        model_name, map_name = last
        kept_calls = dict(zip(keeper.names, keeper.kept, strict=True))
        call_of_model = kept_calls[model_name][0]
        z = kept_calls[map_name][0].values[0]
        for head in heads_of_config(self.folded.model):
            logits = head.logits(z)
            for output in call_of_model.tensors:
                # Equal outputs do not prove that the loss uses them so; the trial shows that later.
                if output.shape == z.shape and torch.allclose(logits, output, atol=1e-4):
                    return head._replace(name=map_name)
        return None

    def _first_right(
        self, same_for_all_runs: Unmoved, head: Head | None, keeper: Keeper, center: Center
    ) -> Plan:
        """The first plan, from most to fewest shortcuts, that gives what runs give in turn."""
        expected = self._in_turn(self.runs.position, center)
        plans = [
            Plan(self.maps, same_for_all_runs, head),
            Plan(self.maps, same_for_all_runs, None),
            Plan(self.maps, _NOTHING, None),
        ]
        reason = ""
        for plan in plans:
            try:
                return self._compared(plan, keeper, center, expected)
            except Exception as error:  # models fail in ways of their own with what is left out
                reason = first_line(error)
        raise Refusal(reason)

    def _compared(self, plan: Plan, keeper: Keeper, center: Center, expected: Runs) -> Plan:
        """The plan, with the bytes that it keeps for each row and run.

        Raises:
            Refusal: it gives other losses or gradients than runs give in turn.
        """
        all_kept_calls = dict(zip(keeper.names, keeper.kept, strict=True))
        kept_calls = {name: all_kept_calls[name] for name in plan.unmoved.names}
        shared = [*self.exact.parameters.values()]
        for calls in kept_calls.values():
            for call in calls:
                shared += call.tensors
        with _counting_saved(shared) as saved:
            together = self.folded.evaluate(plan, self.runs, center, self.batch, kept_calls, True)
        self._compare(together, center, expected)
        num_rows = _RUNS * rows_of(self.batch)
        return replace(plan, bytes_per_row=sum(saved.values()) / num_rows)

    def _compare(self, together: Evaluated, center: Center, expected: Runs) -> None:
        """Hold runs in one pass against runs in turn.

        Raises:
            Refusal: losses or gradients differ by more than rounding.
        """
        assert together.gradient is not None
        difference = _Difference.of(together.each, together.gradient, expected, center)
        if difference.fits(_Difference(0.0, 0.0, 0.0)):
            return
        eps = torch.finfo(torch.float32).eps
        # The same in turn, with weights that differ in their last bits.
        rounded = self._in_turn(self.runs.position * (1 + eps), center)
        assert rounded.gradient is not None
        assert rounded.each is not None
        of_last_bits = _Difference.of(rounded.each, rounded.gradient, expected, center)
        if not difference.fits(of_last_bits):
            losses = max(difference.losses, difference.far_losses)
            raise Refusal(
                f"together runs give other numbers than in turn (losses by {losses:.2g} of the "
                f"largest, gradients by {difference.gradients:.2g})"
            )

    def _in_turn(self, position: Tensor, center: Center) -> Runs:
        return self.exact.runs(
            self.group, self.runs.member, position, center, self.batch, gradient=True, each=True
        )


class Refusal(Exception):
    """The reason why a plan cannot be used."""


class _Difference(NamedTuple):
    """The largest differences of what counts, as shares of the largest value."""

    losses: float
    gradients: float
    far_losses: float
    """That of the runs far away, whose gradients may be rough."""

    @classmethod
    def of(cls, each: Tensor, gradient: Tensor, expected: Runs, center: Center) -> _Difference:
        """Compare losses and gradients with those expected."""
        assert expected.each is not None
        assert expected.gradient is not None
        expected_losses = expected.each
        if center.counted is not None:
            each = each[:, center.counted]
            expected_losses = expected_losses[:, center.counted]
        far_losses = 0.0
        if bool(expected_losses[_NEAR:].isfinite().all()):
            far_losses = _difference(each[_NEAR:], expected_losses[_NEAR:])
        losses = _difference(each[:_NEAR], expected_losses[:_NEAR])
        gradients = _difference(gradient[:_NEAR], expected.gradient[:_NEAR])
        return cls(losses, gradients, far_losses)

    def fits(self, of_last_bits: _Difference) -> bool:
        """Whether it is rounding.

        Args:
            of_last_bits: what comes of weights that differ in their last bits.
        """
        limits = (_LOSS_ROUNDING, _GRADIENT_ROUNDING, _LOSS_ROUNDING)
        for value, limit, rounding in zip(self, limits, of_last_bits, strict=True):
            if not value <= max(OF_LAST_BITS * rounding, limit):
                return False
        return True


def _difference(values: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest value; infinite where it is not defined."""
    if values.shape != expected.shape:
        return math.inf
    size = float(expected.abs().max()) + 1e-30
    difference = float((values.double() - expected.double()).abs().max())
    if math.isnan(difference):
        return math.inf
    return difference / size


@contextmanager
def _counting_saved(shared: list[Tensor]) -> Iterator[dict[int, int]]:
    """Count the bytes that autograd keeps for the backward pass, by their address.

    Args:
        shared: tensors that all runs share, which do not count.
    """
    saved: dict[int, int] = {}
    shared_addresses = {tensor.untyped_storage().data_ptr() for tensor in shared}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in shared_addresses:
            saved[address] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
