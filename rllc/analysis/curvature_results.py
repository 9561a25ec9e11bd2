"""Results of curvature: a number or eigenvalues for each refinement, and their figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.analysis.spectrum import Reading
from rllc.errors import InputError
from rllc.plots import plot_heads
from rllc.plots.estimates import label_weights
from rllc.plots.figures import COLORS, new_axes
from rllc.plots.selection import rows_of_data
from rllc.statistics.uncertainty import Mean
from rllc.tables import AsTable, Table, not_ok, rounded
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Curvature(OfRefinements, AsTable):
    """A trace or a rank for each refinement.

    ``result["1:6"]``, or ``result["1:6", "code"]``, is a :class:`rllc.analysis.spectrum.Reading`.

    Args:
        quantity: what it is, such as ``"Hessian trace"``.
        value: ``[refinement]``; traces in nats per token (or the loss's unit), per unit of weight
            squared. NaN when the loss's derivatives are not finite.
        standard_error: ``[refinement]``: of the probes. The rows are taken as given.
        status: ``"ok"``, or what is wrong and what to change.
        names: the weights and the data of each refinement.
        diagnostics: more about each, ``[refinement]``: ``"num_weights"``; for ranks see
            :func:`rllc.analysis.curvature.hessian_rank`.
        settings: how it was measured.
    """

    quantity: str
    value: np.ndarray
    standard_error: np.ndarray
    status: tuple[str, ...]
    names: Names
    diagnostics: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom (probes less one), ``[refinement]``."""
        dof = max(self.settings.get("num_probes", 2) - 1, 1)
        return Mean(self.value, self.standard_error, np.full(len(self), float(dof)))

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: str | tuple[str, str]) -> Reading:
        """Return the reading of some weights, on one of several data sets.

        Raises:
            InputError: no such weights or data, or several data sets and none named.
        """
        row = _row_of(self.names, key)
        return Reading(
            value=float(self.value[row]),
            standard_error=float(self.standard_error[row]),
            status=self.status[row],
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a refinement.

        Columns: ``weights, data, value, standard_error, status, quantity``, and the diagnostics.
        """
        import pandas as pd

        columns = {
            "weights": self.weights,
            "data": self.data,
            "value": self.value,
            "standard_error": self.standard_error,
            "status": self.status,
            "quantity": self.quantity,
            **self.diagnostics,
        }
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        rows = [("weights", "data", self.quantity, "± se", "status")]
        for i, (weights, data) in enumerate(self.names):
            numbers = rounded(self.value[i], self.standard_error[i])
            rows.append((weights, data, *numbers, self.status[i]))
        settings = _shown(self.settings)
        title = f"{self.quantity} of {len(self)} refinements ({settings})"
        return Table(title, rows, left=(0, 1, 4), wrong=not_ok(self.status, column=4))


@dataclass(frozen=True, eq=False, repr=False)
class Eigenvalues(OfRefinements, AsTable):
    """The Hessian's eigenvalues at both ends of its spectrum.

    ``result["1:6"]`` gives them all, largest first.

    Args:
        largest: ``[refinement, eigenvalue]``, falling; NaN when the loss's derivatives are not
            finite.
        smallest: ``[refinement, eigenvalue]``, rising: the most negative first.
        largest_error: as ``largest``: within so much of each there is an eigenvalue. No chance is
            involved.
        smallest_error: the same for ``smallest``.
        status: ``"ok"``, or what is wrong and what to change.
        names: the weights and the data of each refinement.
        diagnostics: ``"num_weights"`` and ``"num_products"``, with the Hessian, ``[refinement]``.
        settings: how they were computed.
    """

    largest: np.ndarray
    smallest: np.ndarray
    largest_error: np.ndarray
    smallest_error: np.ndarray
    status: tuple[str, ...]
    names: Names
    diagnostics: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.largest)

    def __getitem__(self, key: str | tuple[str, str]) -> np.ndarray:
        """Return ``[2 · count]``: the largest, then the smallest eigenvalues, falling.

        Raises:
            InputError: no such weights or data, or several data sets and none named.
        """
        row = _row_of(self.names, key)
        return np.concatenate([self.largest[row], self.smallest[row, ::-1]])

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row an eigenvalue.

        Columns: ``weights, data, end, number, eigenvalue, error``; ``end`` is largest or smallest.
        """
        import pandas as pd

        frames = []
        for end in ("largest", "smallest"):
            values = getattr(self, end)
            refinement, number = (index.ravel() for index in np.indices(values.shape))
            columns = {
                **self.names.columns(refinement),
                "end": end,
                "number": number,
                "eigenvalue": values.ravel(),
                "error": getattr(self, f"{end}_error").ravel(),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    @property
    def _table(self) -> Table:
        rows = [("weights", "data", "largest", "smallest", "status")]
        for i, (weights, data) in enumerate(self.names):
            largest = " ".join(f"{value:.4g}" for value in self.largest[i])
            smallest = " ".join(f"{value:.4g}" for value in self.smallest[i])
            rows.append((weights, data, largest, smallest, self.status[i]))
        settings = _shown(self.settings)
        title = f"Hessian eigenvalues of {len(self)} refinements ({settings})"
        return Table(title, rows, left=(0, 1, 4), wrong=not_ok(self.status, column=4))


def plot_curvature(result: Curvature | Eigenvalues, ax: Axes | None = None) -> Axes | np.ndarray:
    """Draw a trace or rank as a dot with its 95 % interval, or eigenvalues as a dash each.

    One place for each choice of weights, one colour a data set.

    >>> ax = plot_curvature(hessian_trace(model, tokens, rllc.heads(model)))

    Args:
        result: what a function of :mod:`rllc.analysis.curvature` gave.
        ax: where to draw; ``None`` makes a figure.
    """
    if isinstance(result, Eigenvalues):
        return _plot_eigenvalues(result, ax)
    axes = plot_heads(result, ax)  # type: ignore[arg-type]  # it reads names and means
    for panel in np.ravel(np.array(axes, dtype=object)):
        panel.set_ylabel(f"{result.quantity} (95 % interval)")
    return axes


def _plot_eigenvalues(result: Eigenvalues, ax: Axes | None) -> Axes:
    weights = result.names.selections
    data = result.names.data_sets
    ax = new_axes(ax, width=max(4.0, 1.5 + 0.45 * len(weights)))
    for number, name in enumerate(data):
        rows = rows_of_data(result.data, name, "plot_curvature")
        columns = np.array([weights.index(result.weights[row]) for row in rows])
        # Data sets stand side by side.
        x = columns + 0.2 * (number - (len(data) - 1) / 2)
        y = np.concatenate([result.largest[rows], result.smallest[rows]], 1)
        ax.plot(
            np.repeat(x, y.shape[1]),
            y.ravel(),
            "_",
            ms=9,
            mew=1.4,
            color=COLORS[number % len(COLORS)],
            label=name,
        )
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    label_weights(ax, weights)
    count = result.settings["count"]
    ax.set_ylabel(f"{count} largest and smallest\neigenvalues of the Hessian")
    if len(data) > 1:
        ax.legend(title="data", frameon=False)
    return ax


def _row_of(names: Names, key: object) -> int:
    """Return the row that ``result[weights]`` or ``result[weights, data]`` means."""
    if isinstance(key, str):
        return names.index(key, of="curvature")
    if isinstance(key, tuple) and len(key) == 2:
        return names.index(*key, of="curvature")
    raise InputError(
        f"curvature[{key!r}]: expected a name, or (weights, data), such as "
        f"curvature['1:6', 'code']."
    )


def _shown(settings: Mapping[str, Any]) -> str:
    given = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(f"{name} = {value}" for name, value in given.items())
