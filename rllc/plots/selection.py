"""Choose what a figure shows: the rows of one data set, groups by name, an Axes for each panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rllc.errors import InputError, nearest
from rllc.estimates.faults import Fault
from rllc.plots.figures import grid_of_axes
from rllc.weights.names import head_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rllc.estimates.estimate import Estimate

Named = TypeVar("Named")


def rows_of_data(data_of_rows: Sequence[str], data: str | None, doing: str) -> list[int]:
    """Return the rows of a result that are of one data set.

    Args:
        data_of_rows: the data of each row.
        data: which; ``None`` where there is one.
        doing: what the error says is being done.

    Raises:
        InputError: no such data, or several and none chosen.
    """
    data_sets = list(dict.fromkeys(data_of_rows))
    if data is None and len(data_sets) > 1:
        raise InputError(f"{doing}: on which data? It has {data_sets}; pass data={data_sets[0]!r}.")
    if data is not None and data not in data_sets:
        raise InputError(f"{doing}: no data {data!r}; {nearest(data, data_sets)}")
    return [row for row, name in enumerate(data_of_rows) if data in (None, name)]


def faults_of_rows(estimate: Estimate, rows: Sequence[int]) -> list[Sequence[Fault]]:
    """Return the faults of some rows; other results than estimates have none."""
    faults = getattr(estimate, "faults", None)
    if faults is None:
        return [() for _ in rows]
    return [faults[row] for row in rows]


def by_head_name(named: Mapping[str, Named]) -> dict[str, Named]:
    """Return the same by the names that results use: ``"L1H6"`` becomes ``"1:6"``."""
    return {head_name(name) or name: value for name, value in named.items()}


def groups_by_name(
    doing: str, names: Sequence[str], groups: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Return groups by the names that results use.

    Raises:
        InputError: none of the groups' names is drawn.
    """
    if groups is None:
        return None
    group_of_name = {name: str(group) for name, group in by_head_name(groups).items()}
    if group_of_name.keys().isdisjoint(names):
        first_name = next(iter(group_of_name), "")
        advice = nearest(first_name, names)
        raise InputError(
            f"{doing}: `groups` are of {list(groups)[:4]}, but none of these is drawn; {advice}"
        )
    return group_of_name


def panels_for(
    ax: Axes | Sequence[Axes] | None,
    parts: Sequence[object],
    width: float,
    doing: str,
    what: str,
    height: float = 3.2,
) -> list[Axes]:
    """Return one Axes for each part of a figure: those given, or those of a new figure.

    Args:
        ax: those given, or ``None``.
        parts: of the figure.
        width: of a new panel, in inches.
        doing: what the error says is being done.
        what: the parts are.
        height: of a new panel, in inches.

    Raises:
        InputError: another number of Axes was given.
    """
    if ax is None:
        return grid_of_axes(len(parts), width=width, height=height)
    panels = list(np.atleast_1d(np.array(ax, dtype=object)))
    if len(panels) != len(parts):
        raise InputError(
            f"{doing}: expected one Axes for each of {len(parts)} {what}, got {len(panels)}."
        )
    return panels


def one_or_all(panels: Sequence[Axes]) -> Axes | np.ndarray:
    """Return the Axes of a figure with one panel, else an array of them."""
    return panels[0] if len(panels) == 1 else np.array(panels)
