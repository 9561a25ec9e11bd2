"""Losses on fixed rows as arrays, from draws that observed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rllc.errors import InputError, must_be, nearest
from rllc.estimates.diagnose import share_minibatches
from rllc.estimates.estimate import Estimate
from rllc.estimates.faults import ABOUT_LLC, Fault
from rllc.sampling.draws import Draws
from rllc.statistics.covariance import independent_draws
from rllc.statistics.uncertainty import Mean, mean_of_draws


@dataclass(frozen=True, eq=False)
class FixedRows:
    """The losses of fixed rows at every draw of one refinement.

    Args:
        losses: ``[row, pos, chain, draw]``: ℓ(v) − ℓ(w*) or ℓ(v); NaN where nothing is predicted;
            one position where each row's mean was observed.
        relaxation: correlation of successive draws in the slowest direction.
        shared: whether chains share minibatches.
    """

    losses: np.ndarray
    relaxation: float | None
    shared: bool

    @property
    def mean(self) -> np.ndarray:
        """``[chain, draw]``: mean loss of all that counts; NaN where a chain has diverged."""
        return mean_of_finite(self.losses, axis=(0, 1))

    @property
    def by_row(self) -> np.ndarray:
        """``[row, chain, draw]``: each row's mean loss."""
        return mean_of_finite(self.losses, axis=1)

    @property
    def flat(self) -> np.ndarray:
        """``[row · pos, chain, draw]``."""
        return self.losses.reshape(-1, *self.losses.shape[-2:])

    def mean_of_draws(self, values: np.ndarray) -> Mean:
        """The mean ``[...]`` of values ``[..., chain, draw]`` of these chains, with its error."""
        return mean_of_draws(values, self.relaxation, shared=self.shared)

    def independent_draws(self, values: np.ndarray) -> np.ndarray:
        """The number of independent draws that values ``[..., chain, draw]`` are worth, ``[...]``.

        See :func:`rllc.statistics.covariance.independent_draws`.
        """
        return independent_draws(values, self.relaxation, shared=self.shared)


def fixed_rows(draws: Draws, name: str, *, asked_by: str) -> Iterator[FixedRows]:
    """Yield the observed losses of each refinement, in double precision.

    Args:
        draws: with an observable ``rllc.losses_on(rows)`` of this name.
        name: of the observable.
        asked_by: what the error message begins with.

    Raises:
        InputError: there is no such observable, or it is not of rows.
    """
    axes = axes_of(draws, name, asked_by=asked_by)
    if axes not in (["row", "pos"], ["row"]):
        raise InputError(
            f"{asked_by}: the observable {name!r} has axes {axes}, not losses on fixed rows; "
            f"observe rllc.losses_on(rows) with keep='difference' or keep='all'."
        )
    for i, length in enumerate(draws.lengths):
        values = draws.observed[name][i, :, :length].astype(np.float64)
        if axes == ["row"]:
            values = values[..., None]
        losses = np.moveaxis(values, (0, 1), (-2, -1))
        shared = share_minibatches(draws, np.array([i]), length)
        yield FixedRows(losses, draws.settings.get("relaxation"), shared)


def axes_of(draws: Draws, name: str, *, asked_by: str) -> list[str]:
    """Return the further axes of an observable of draws.

    Raises:
        InputError: the draws have no such observable, or only its moments.
    """
    must_be(asked_by, "draws", draws, isinstance(draws, Draws), "what rllc.sample gave")
    axes = dict(draws.settings.get("observed", {}))
    if not isinstance(name, str) or name not in draws.observed or name not in axes:
        raise InputError(
            f"{asked_by}: these draws did not observe {name!r}; {nearest(name, list(axes))}"
        )
    if moments_only(draws, name):
        raise InputError(
            f"{asked_by}: of {name!r} only moments were kept; "
            f"observe rllc.losses_on(rows, keep='difference')."
        )
    return list(axes[name])


def moments_only(draws: Draws, name: str) -> bool:
    """Whether draws have only the mean and covariance of an observable, not each value."""
    return f"{name}.covariance" in draws.observed


def faults_of_chains(draws: Draws) -> tuple[tuple[Fault, ...], ...]:
    """The faults of each refinement's chains, ``[refinement]``, without those of λ̂ alone."""
    faults_of_chains = []
    for faults in Estimate.of(draws).faults:
        about_chains = [fault for fault in faults if fault.kind not in ABOUT_LLC]
        faults_of_chains.append(tuple(about_chains))
    return tuple(faults_of_chains)


def stacked_means(means: Iterable[Mean]) -> Mean:
    """Means along a new first axis."""
    value, standard_error, dof = zip(*means, strict=True)
    return Mean(np.stack(value), np.stack(standard_error), np.stack(dof))


def mean_of_finite(losses: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean of the finite losses, without a warning; NaN where none is finite."""
    is_finite = np.isfinite(losses)
    total = np.where(is_finite, losses, 0.0).sum(axis=axis)
    count = is_finite.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
