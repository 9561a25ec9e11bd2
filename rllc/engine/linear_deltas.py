"""All runs of a group at once, for any module of which slices of linear maps move.

Runs are folded into the batch (:mod:`rllc.engine.folded`), where that is right. This is not taken
on trust: :mod:`rllc.engine.trial` evaluates a few rows in this way and one run after the other,
before the first step of a group, and :mod:`rllc.engine.company` holds a run against itself alone
now and then.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from rllc.engine.company import Company
from rllc.engine.devices import runs_that_fit
from rllc.engine.folded import DoesNotFold, Evaluated, Folded, Plan, Positions
from rllc.engine.layout import Group
from rllc.engine.module import ModuleLoss, rows_of
from rllc.engine.trial import RANDOM, in_float32, plan_of
from rllc.engine.vocabulary import CPU_POSITIONS
from rllc.losses.contract import Batch, Center, Runs
from rllc.losses.documents import documents_of


class LinearDeltas:
    """A loss of any module: all runs of a group in one pass where that is right, else in turn.

    Args:
        exact: evaluates them in turn.
    """

    def __init__(self, exact: ModuleLoss) -> None:
        self.exact, self.model = exact, exact.model
        self.folded = Folded(exact)
        self.plans: dict[int, tuple[Group, Plan | str]] = {}
        """By id of the group: how its runs are evaluated together, or why they are not."""
        self.companies: dict[int, Company] = {}
        """By id of the group."""

    def center(self, batch: Batch, seed: int) -> Center:  # noqa: D102 (see Loss)
        return self.folded.center(batch, seed)

    def runs(  # noqa: D102 (see Loss)
        self,
        group: Group,
        member: Tensor,
        position: Tensor,
        center: Center,
        batch: Batch,
        *,
        gradient: bool,
        each: bool,
    ) -> Runs:
        plan = self._plan(group, center, batch)
        if isinstance(plan, Plan):
            try:
                together = self._together(plan, member, position, center, batch, gradient)
            except DoesNotFold as error:
                self._give_up(group, str(error))
            else:
                if not self.exact.random:
                    runs = _as_runs(together, center, each)
                    positions = Positions(member, position)
                    self._compare_with_one_alone(group, plan, runs.losses, positions, center, batch)
                    return runs
                self._give_up(group, RANDOM)
        center_of_exact = center._replace(shared=center.shared.seed)
        return self.exact.runs(
            group, member, position, center_of_exact, batch, gradient=gradient, each=each
        )

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center | None, batch: Batch, seed: int
    ) -> tuple[dict[str, Tensor], int]:
        center_of_exact = None if center is None else center._replace(shared=center.shared.seed)
        return self.exact.gradient(names, center_of_exact, batch, seed)

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        # Activations of as many runs as fit: a pass is evaluated in parts.
        return self.exact.memory(group, batch_shape)

    @property
    def ways(self) -> list[str]:  # noqa: D102 (see Loss)
        ways = [self.way(group) for group, _ in self.plans.values()]
        return list(dict.fromkeys(ways))

    def way(self, group: Group) -> str:
        """How runs of a group are evaluated, once some were."""
        _, plan = self.plans[id(group)]
        if isinstance(plan, Plan):
            return "layer at once"
        return "stacked" if self.exact.stacked else f"run by run: because {plan}"

    def _plan(self, group: Group, center: Center, batch: Batch) -> Plan | str:
        if id(group) not in self.plans:
            self.plans[id(group)] = group, self._chosen(group, center, batch)
        return self.plans[id(group)][1]

    def _chosen(self, group: Group, center: Center, batch: Batch) -> Plan | str:
        if self.exact.random:
            return RANDOM
        if self.exact.stacked:
            return "the model is so small that torch.vmap is as fast"
        return plan_of(self.folded, group, batch, center.shared.seed)

    def _give_up(self, group: Group, reason: str) -> None:
        self.plans[id(group)] = group, reason

    def _compare_with_one_alone(
        self,
        group: Group,
        plan: Plan,
        losses: Tensor,
        positions: Positions,
        center: Center,
        batch: Batch,
    ) -> None:
        """Compare one run with the same run alone, at calls at which this is due.

        Raises:
            InputError: it has another loss in company.
        """
        company = self.companies.setdefault(id(group), Company())
        runs = len(losses)
        if not company.is_due(runs):
            return
        chosen = company.chosen(losses)
        member = positions.member[chosen : chosen + 1]
        in_precision = self.exact.autocast is None
        with in_float32(self.exact):
            if not in_precision:
                center = self.center(batch, center.shared.seed)
                together = self._together(plan, *positions, center, batch, False)
                losses = _as_runs(together, center, each=False).losses
            center_of_exact = center._replace(shared=center.shared.seed)
            options = {"gradient": False, "each": False}

            def loss_alone(position: Tensor) -> float:
                run = self.exact.runs(group, member, position, center_of_exact, batch, **options)
                return float(run.losses[0])

            position = positions.position[chosen : chosen + 1]
            company.compare(float(losses[chosen]), position, loss_alone, runs)

    def _together(
        self,
        plan: Plan,
        member: Tensor,
        position: Tensor,
        center: Center,
        batch: Batch,
        gradient: bool,
    ) -> list[Evaluated]:
        """Runs in passes of as many as fit."""
        kept_calls = self.folded.kept_calls(plan.unmoved, center.shared, batch)
        bytes_per_run = int(plan.bytes_per_row * rows_of(batch))
        worthwhile = 1
        if plan.head is not None:
            worthwhile = math.ceil(CPU_POSITIONS / documents_of(batch).tokens.numel())
        size = runs_that_fit(bytes_per_run, position.device, worthwhile)
        parts = []
        for start in range(0, len(position), size):
            chosen = slice(start, start + size)

            def evaluate(chosen: slice = chosen) -> Evaluated:
                runs = Positions(member[chosen], position[chosen])
                return self.folded.evaluate(plan, runs, center, batch, kept_calls, gradient)

            parts.append(self.exact.seeded("runs", center.shared.seed, batch, evaluate))
        return parts


def _as_runs(parts: list[Evaluated], center: Center, each: bool) -> Runs:
    gradients = [part.gradient for part in parts if part.gradient is not None]
    examples = None
    if each:
        examples = torch.cat([part.each for part in parts]).float()
        if center.counted is not None:
            examples = examples.masked_fill(~center.counted, torch.nan)
    losses = torch.cat([part.losses for part in parts])
    return Runs(losses, torch.cat(gradients) if gradients else None, examples)
