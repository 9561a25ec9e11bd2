"""A sweep as it stands: which estimates there are, which are missing, and which failed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllc.errors import FileError, InputError, nearest
from rllc.estimates.estimate import ARRAYS, Estimate
from rllc.estimates.faults import Fault
from rllc.limits import Limits
from rllc.sampling.draws import Draws
from rllc.storage.files import reading
from rllc.sweep import parts
from rllc.sweep.plan import Cell, Plan, covering
from rllc.sweep.store import Store
from rllc.sweep.trajectory import Trajectory
from rllc.tables import Table
from rllc.weights.names import Names, head_name

_DRAWS_AT_ONCE = 2**14
"""So many draws are summed up at once: 128 kB an array. Of a single small cell, hundreds of short
steps over arrays cost a hundred times what the arithmetic does."""

Key = tuple[int, str, str]
"""A checkpoint's step, weights and data: what one estimate is about."""

Cells = tuple[Cell, ...]
Faults = tuple[Fault, ...]


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a store holds of what was asked for. :meth:`open` makes it.

    It lists names only; numbers are read by :meth:`trajectory` and :meth:`draws`. What comes into
    the folder later is not seen: open it again.

    >>> sweep = rllc.Sweep.open("sweep")                                           # doctest: +SKIP
    >>> sweep.missing[:1], len(sweep.failed)                                       # doctest: +SKIP
    (((50000, '1:7', 'prose'),), 0)

    Args:
        store: the folder.
        steps: training step of each checkpoint, rising.
        names: the refinements, weights varying slowest.
        settings: of sampler and sampling, the same in every cell.
        finished: by (step, weights, data), the cells that together hold all chains.
        missing: the (step, weights, data) that have not been computed yet.
        failed: by (step, weights, data), the reason; the next call of :func:`rllc.track` tries
            them again.
    """

    store: Store
    steps: tuple[int, ...]
    names: Names
    settings: Mapping[str, Any]
    finished: Mapping[Key, Cells]
    missing: tuple[Key, ...]
    failed: Mapping[Key, str]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Sweep:
        """Look into a store: while :func:`rllc.track` runs, after it was killed, or years later.

        Args:
            folder: the ``store`` of :func:`rllc.track`.

        Raises:
            FileError: the folder is not a store, or a plan in it is damaged.
        """
        store = Store(folder)
        plans = store.plans()
        if not plans:
            raise FileError(
                f"Sweep.open({os.fspath(folder)!r}): there is no sweep in it; expected a folder "
                f"that rllc.track(…, store=folder) wrote. A single file is read by "
                f"rllc.Trajectory.load."
            )
        return cls.of(store, plans, plans)

    @classmethod
    def of(cls, store: Store, plans: Sequence[Plan], asked: Sequence[Plan]) -> Sweep:
        """Look up what there is of what some plans ask for.

        Settings, chains and draws are those of the last plan. One result never holds two kinds of
        settings, whatever two processes may have announced at once.

        Args:
            plans: all whose cells may be used.
            asked: those whose estimates are listed.
        """
        last = asked[-1]
        plans = [plan for plan in plans if plan.mixes_with(last)]
        asked = [plan for plan in asked if plan.mixes_with(last)]
        done = store.finished()
        failures = store.failures()
        ready: dict[Key, list[Cell]] = {}
        reasons: dict[Key, str] = {}
        planned: dict[Cell, None] = {}
        for plan in plans:
            planned |= dict.fromkeys(plan.cells)
        for cell in planned:
            for name in cell.weights:
                key = cell.step, name, cell.data
                if cell.name in done:
                    ready.setdefault(key, []).append(cell)
                elif cell.name in failures:
                    reasons[key] = failures[cell.name]
        finished: dict[Key, Cells] = {}
        failed: dict[Key, str] = {}
        missing: list[Key] = []
        for key in dict.fromkeys(_keys(asked)):
            cells = covering(ready.get(key, ()), last.num_chains)
            if cells is not None:
                finished[key] = cells
            elif key in reasons:
                failed[key] = reasons[key]
            else:
                missing.append(key)
        steps: dict[int, Any] = {}
        weights: dict[str, str] = {}
        data: dict[str, str] = {}
        for plan in asked:
            steps |= plan.checkpoints
            weights |= plan.weights
            data |= plan.data
        return cls(
            store=store,
            steps=tuple(sorted(steps)),
            names=Names.of(itertools.product(weights, data)),
            settings={**last.draws_settings, "fingerprints": data},
            finished=finished,
            missing=tuple(missing),
            failed=failed,
        )

    def trajectory(self, limits: Limits | None = None) -> Trajectory:
        """Read the finished cells; NaN with a fault where there is no estimate.

        Args:
            limits: from where on something is a fault; ``None`` is ``Limits()``.

        Raises:
            FileError: none of the finished cells is there any more.
        """
        self._check_presence()
        rows = {step: row for row, step in enumerate(self.steps)}
        columns = {pair: column for column, pair in enumerate(self.names)}
        shape = len(rows), len(columns)
        num_chains = self.settings["num_chains"]
        arrays = {name: np.full(shape, np.nan) for name in ARRAYS}
        arrays["per_chain"] = np.full((*shape, num_chains), np.nan)
        diagnostics: dict[str, np.ndarray] = {}
        faults: dict[Key, Faults] = {}
        for key in self.missing:
            faults[key] = (Fault("missing"),)
        for key, reason in self.failed.items():
            faults[key] = (Fault("failed", {}, reason),)
        for keys, estimate in self._estimates(limits, faults):
            rows_of_keys = [rows[step] for step, _, _ in keys]
            columns_of_keys = [columns[weights, data] for _, weights, data in keys]
            at = (rows_of_keys, columns_of_keys)
            for name in ARRAYS:
                arrays[name][at] = getattr(estimate, name)
            for name, values in estimate.diagnostics.items():
                if name not in diagnostics:
                    diagnostics[name] = np.full(shape, np.nan)
                diagnostics[name][at] = values
            faults |= zip(keys, estimate.faults, strict=True)
        return Trajectory(
            steps=self.steps,
            **arrays,
            faults=self._in_order(faults),
            names=self.names,
            settings=self.settings,
            diagnostics=diagnostics,
        )

    def _estimates(
        self, limits: Limits | None, faults: dict[Key, Faults]
    ) -> Iterator[tuple[list[Key], Estimate]]:
        """Read the finished cells and sum up many of them at once.

        Args:
            limits: as for :meth:`trajectory`.
            faults: gets the damaged cells.

        Yields:
            What each row of an estimate is about, and the estimate.
        """
        waiting: dict[str | None, list[tuple[list[Key], Draws]]] = {}
        sizes: dict[str | None, int] = {}
        for (step, data, cells), weights in self._by_cells():
            keys = [(step, name, data) for name in weights]
            try:
                draws = self.read(cells, weights)
            except FileError as error:
                faults |= dict.fromkeys(keys, _damaged(error))
                continue
            kind = parts.likeness(draws)
            of_kind = waiting.setdefault(kind, [])
            of_kind.append((keys, draws))
            sizes[kind] = sizes.get(kind, 0) + draws.loss.size
            if kind is None or sizes[kind] >= _DRAWS_AT_ONCE:
                sizes[kind] = 0
                yield from self._summed_up(waiting.pop(kind), limits, faults)
        for read in waiting.values():
            yield from self._summed_up(read, limits, faults)

    def _summed_up(
        self,
        read: Sequence[tuple[list[Key], Draws]],
        limits: Limits | None,
        faults: dict[Key, Faults],
    ) -> Iterator[tuple[list[Key], Estimate]]:
        """Sum up draws of several cells; those that hold what no cell does are damaged."""
        keys: list[Key] = []
        for keys_of_cell, _ in read:
            keys += keys_of_cell
        first_cell = self.finished[keys[0]][0]
        try:
            with reading(self.store.path_text(first_cell.name)):
                draws = parts.stacked([draws for _, draws in read])
                estimate = Estimate.of(draws, limits)
        except FileError as error:
            if len(read) == 1:
                faults |= dict.fromkeys(keys, _damaged(error))
                return
            for alone in read:
                yield from self._summed_up([alone], limits, faults)
            return
        yield keys, estimate

    def _check_presence(self) -> None:
        """Refuse a store that has vanished, of which a trajectory would be NaN and no more."""
        finished: set[Cell] = set()
        for cells in self.finished.values():
            finished.update(cells)
        if finished and not any(self.store.path(cell.name).exists() for cell in finished):
            raise FileError(
                f"reading the sweep in {self.store.folder}: none of its {len(finished)} finished "
                f"cells is there any more; the folder was moved or removed. Open it where it is "
                f"now, or call rllc.track again."
            )

    def _in_order(self, faults: Mapping[Key, Faults]) -> tuple[tuple[Faults, ...], ...]:
        """Return faults as a trajectory has them, ``[checkpoint][refinement]``."""
        otherwise = (Fault("not_asked_for"),)
        table = []
        for step in self.steps:
            row = []
            for weights, data in self.names:
                key = (step, weights, data)
                row.append(faults.get(key, otherwise))
            table.append(tuple(row))
        return tuple(table)

    def draws(self, step: int, weights: str, data: str | None = None) -> Draws:
        """Read the draws behind one estimate, all chains together.

        >>> draws = sweep.draws(8500, "1:6", "code")                               # doctest: +SKIP
        >>> draws.observed["losses"].shape                                         # doctest: +SKIP
        (1, 4, 200, 32, 1023)

        What was observed is what ``rllc.sweep.Store(..., observe={"losses": ...})`` asked for.

        Args:
            step: of the checkpoint.
            weights: their name; a head in any spelling.
            data: ``None`` where there is one data set.

        Raises:
            InputError: there is no such estimate, or it is missing or failed.
            FileError: a file in the store is damaged.
        """
        doing = f"sweep.draws({step}, {weights!r}, {data!r})"
        if weights not in self.names.weights:
            weights = head_name(weights) or weights
        if data is None:
            data_sets = list(self.names.data_sets)
            if len(data_sets) > 1:
                raise InputError(
                    f"{doing}: on which data? It has {data_sets}; "
                    f"type sweep.draws({step}, {weights!r}, {data_sets[0]!r})."
                )
            data = data_sets[0]
        key = step, weights, data
        if key not in self.finished:
            raise InputError(f"{doing}: {self._why_not(key)}.")
        cells = self.finished[key]
        draws = [self.store.read_observed(cell.name) for cell in cells]
        return self._joined(draws, cells, [weights])

    def at(self, step: int, limits: Limits | None = None) -> Estimate:
        """Return the finished estimates of one checkpoint with their draws.

        >>> estimate = sweep.at(8500)                                              # doctest: +SKIP
        >>> estimate.difference(("1:6", "code"), ("1:6", "prose"))                 # doctest: +SKIP

        An estimate of a trajectory has no draws. These have, so that refinements can be compared
        draw by draw.

        Args:
            step: of the checkpoint.
            limits: as for :meth:`trajectory`.

        Raises:
            InputError: nothing is finished at this step, or its cells cannot be one estimate.
            FileError: a file in the store is damaged.
        """
        read = []
        for (of_step, _, cells), weights in self._by_cells():
            if of_step == step:
                read.append(self.read(cells, weights))
        if not read:
            steps = sorted({key[0] for key in self.finished})
            raise InputError(f"sweep.at({step}): {nearest(step, steps)}.")
        try:
            draws = parts.of_one_checkpoint(read)
        except ValueError as error:
            raise InputError(
                f"sweep.at({step}): its cells cannot be one estimate: {error}; take them one by "
                f"one: rllc.Estimate.of(sweep.draws({step}, weights, data))."
            ) from error
        return Estimate.of(draws, limits)

    def read(self, cells: Sequence[Cell], weights: Sequence[str]) -> Draws:
        """Read some weights of cells, their chains together, without what was observed.

        Raises:
            FileError: a cell's file is missing or damaged.
        """
        draws = [self.store.read(cell.name) for cell in cells]
        return self._joined(draws, cells, weights)

    def _joined(
        self, draws: Sequence[Draws], cells: Sequence[Cell], weights: Sequence[str]
    ) -> Draws:
        """Put the chains of several cells together.

        Raises:
            FileError: they are not what the plan says that they are.
        """
        with reading(self.store.path_text(cells[0].name)):
            chains_of_cells = [cell.chains for cell in cells]
            joined = parts.joined(draws, chains_of_cells, weights)
            expected = self.settings["num_chains"]
            num_chains = joined.loss.shape[1]
            if num_chains != expected:
                raise ValueError(f"it has {num_chains} chains, expected {expected}")
        return joined

    def _why_not(self, key: Key) -> str:
        if key in self.failed:
            return f"it failed: {self.failed[key]}"
        if key in self.missing:
            return "it is missing; call rllc.track again"
        pairs_at: dict[int, list[tuple[str, str]]] = {}
        for step, weights, data in self.finished:
            pairs = pairs_at.setdefault(step, [])
            pairs.append((weights, data))
        step, *pair = key
        if step not in pairs_at:
            return nearest(step, pairs_at)
        return nearest(tuple(pair), pairs_at[step])

    def _by_cells(self) -> Iterable[tuple[tuple[int, str, Cells], list[str]]]:
        """Return the weights whose chains are in the same cells, so that each is read once."""
        together: dict[tuple[int, str, Cells], list[str]] = {}
        for (step, weights, data), cells in self.finished.items():
            of_cells = together.setdefault((step, data, cells), [])
            of_cells.append(weights)
        return together.items()

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} checkpoints, steps {self.steps[0]}…{self.steps[-1]}"
        num_weights = len(self.names.selections)
        num_data = len(self.names.data_sets)
        counts = (
            f"{len(self.finished)} finished, {len(self.missing)} missing, {len(self.failed)} failed"
        )
        return f"Sweep({steps}, {num_weights} weights × {num_data} data: {counts})"

    def _repr_html_(self) -> str:
        """A row a data set, which is enough to see what is left to do."""
        rows: list[tuple[str, ...]] = [("data", "finished", "missing", "failed")]
        wrong = []
        for i, data in enumerate(self.names.data_sets):
            counts = []
            for keys in (self.finished, self.missing, self.failed):
                counts.append(sum(key[2] == data for key in keys))
            wrong += [(i, column) for column in (2, 3) if counts[column - 1]]
            rows.append((data, *map(str, counts)))
        reasons = list(dict.fromkeys(self.failed.values()))
        notes = [f"failed: {reason}" for reason in reasons[:5]]
        table = Table(repr(self), rows, wrong=wrong, notes=notes)
        return table.html()


def _damaged(error: FileError) -> Faults:
    advice = f"{error} rllc.track, called again, computes it anew"
    return (Fault("damaged", {}, advice),)


def _keys(plans: Iterable[Plan]) -> Iterator[Key]:
    for plan in plans:
        yield from itertools.product(plan.checkpoints, plan.weights, plan.data)
