"""Whether runs may be folded into the batch, found out by doing it.

A few rows are evaluated at random positions near w*, one run after the other and all together. What
makes a difference beyond rounding is left out: first the sweep over the vocabulary, then what is
kept of a minibatch, then the whole way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

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
"""The first of them, near w*."""

_FAR = 10.0
"""So many times as far the others are."""

_SHARE, _LEAST = 0.3, 0.03
"""A weight is moved by so much of the root mean square of its tensor's, and this, at random."""

_LOSS_ROUNDING = 2e-5
"""By how much of the largest a loss may differ."""

_GRADIENT_ROUNDING = 2e-4
"""By how much of its largest component a gradient may differ."""

_OF_LAST_BITS = 30.0
"""Where weights that differ in their last bits give larger differences, so many times these."""

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
        shown = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f"weights are of {shown}"
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
    before = exact.autocast
    exact.autocast = None
    try:
        yield
    finally:
        exact.autocast = before


class _Trial:
    """One trial, of a few rows.

    Whatever a model or a loss raises here speaks against a plan. If it is wrong with them, it is
    raised again when runs are evaluated in turn.
    """

    def __init__(self, folded: Folded, maps: Maps, group: Group, batch: Batch) -> None:
        self.folded, self.exact = folded, folded.exact
        self.maps, self.group, self.batch = maps, group, batch
        members = len(maps.origin)
        member = torch.tensor([0, members - 1, 0], device=maps.origin.device)
        self.runs = Positions(member, maps.origin[member] + self._displacement())

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
        kept = unmoved(calls, moved, keeper, _RUNS)
        return self._first_right(kept, head, keeper, center)

    def _displacement(self) -> Tensor:
        """``[run, dim]``."""
        stream = generator("trial", self.group.dim)
        noise = torch.randn(_RUNS, self.group.dim, generator=stream).to(self.maps.origin.device)
        for slot in self.group.slots:
            weights = self.exact.parameters[slot.name].float()
            size = float(weights.square().mean().sqrt())
            noise[:, slot.start : slot.stop] *= _SHARE * size + _LEAST
        noise[_NEAR:] *= _FAR
        return noise

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
        called = [call.name for call in calls]
        once = [name for name in called if called.count(name) == 1]
        linear = [name for name in once if is_linear(self.folded.model.get_submodule(name))]
        if not linear or linear[-1] in self.maps.maps or "" not in once:
            return []
        return ["", linear[-1]]

    def _head(self, last: list[str], keeper: Keeper) -> Head | None:
        """How logits are made of what the last map gives, if in a way that is known."""
        if not last:
            return None
        kept = dict(zip(keeper.names, keeper.kept, strict=True))
        whole, linear = (kept[name][0] for name in last)
        z = linear.values[0]
        for head in heads_of_config(self.folded.model):
            logits = head.logits(z)
            for output in whole.tensors:
                # Whether the loss is right then, is tried as well.
                if output.shape == z.shape and torch.allclose(logits, output, atol=1e-4):
                    return head._replace(name=last[1])
        return None

    def _first_right(
        self, kept: Unmoved, head: Head | None, keeper: Keeper, center: Center
    ) -> Plan:
        expected = self._in_turn(self.runs.position, center)
        attempts = [(kept, head), (kept, None), (_NOTHING, None)]
        reason = ""
        for chosen, chosen_head in attempts:
            plan = Plan(self.maps, chosen, chosen_head)
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
        by_name = dict(zip(keeper.names, keeper.kept, strict=True))
        kept = {name: by_name[name] for name in plan.unmoved.names}
        shared = [*self.exact.parameters.values()]
        for calls in kept.values():
            for call in calls:
                shared += call.tensors
        with _counting_saved(shared) as saved:
            together = self.folded.evaluate(plan, self.runs, center, self.batch, kept, True)
        self._compare(together, center, expected)
        return replace(plan, bytes_per_row=sum(saved.values()) / (_RUNS * rows_of(self.batch)))

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
        beside = self._in_turn(self.runs.position * (1 + eps), center)
        assert beside.gradient is not None
        assert beside.each is not None
        of_last_bits = _Difference.of(beside.each, beside.gradient, expected, center)
        if not difference.fits(of_last_bits):
            raise Refusal(
                f"together runs give other numbers than in turn (losses by "
                f"{max(difference.losses, difference.far_losses):.2g} of the largest, gradients by "
                f"{difference.gradients:.2g})"
            )

    def _in_turn(self, position: Tensor, center: Center) -> Runs:
        where = self.group, self.runs.member, position, center, self.batch
        return self.exact.runs(*where, gradient=True, each=True)


class Refusal(Exception):
    """What speaks against a plan."""


class _Difference(NamedTuple):
    """The largest differences of what counts, as shares of the largest value."""

    losses: float
    gradients: float
    far_losses: float
    """Of the runs that are far away, whose gradients may be rough."""

    @classmethod
    def of(cls, each: Tensor, gradient: Tensor, expected: Runs, center: Center) -> _Difference:
        """Compare with what is expected."""
        assert expected.each is not None
        assert expected.gradient is not None
        others = expected.each
        if center.counted is not None:
            each, others = each[:, center.counted], others[:, center.counted]
        far = 0.0
        if bool(others[_NEAR:].isfinite().all()):
            far = _difference(each[_NEAR:], others[_NEAR:])
        return cls(
            _difference(each[:_NEAR], others[:_NEAR]),
            _difference(gradient[:_NEAR], expected.gradient[:_NEAR]),
            far,
        )

    def fits(self, of_last_bits: _Difference) -> bool:
        """Whether it is rounding.

        Args:
            of_last_bits: what comes of weights that differ in their last bits.
        """
        limits = (_LOSS_ROUNDING, _GRADIENT_ROUNDING, _LOSS_ROUNDING)
        for value, limit, rounding in zip(self, limits, of_last_bits, strict=True):
            if not value <= max(_OF_LAST_BITS * rounding, limit):
                return False
        return True


def _difference(values: Tensor, expected: Tensor) -> float:
    if values.shape != expected.shape:
        return float("inf")
    size = float(expected.abs().max()) + 1e-30
    difference = float((values.double() - expected.double()).abs().max())
    return difference / size if difference == difference else float("inf")


@contextmanager
def _counting_saved(shared: list[Tensor]) -> Iterator[dict[int, int]]:
    """The bytes of what autograd keeps for the backward pass, by where they are.

    Args:
        shared: what all runs share, and does not count.
    """
    saved: dict[int, int] = {}
    elsewhere = {tensor.untyped_storage().data_ptr() for tensor in shared}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in elsewhere:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
