"""Losses row by row and token by token: on fixed rows, and on each draw's own minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rllc.data.data import Data
from rllc.errors import InputError, one_of
from rllc.sampling.observe import Moment, Observable
from rllc.weights.refinement import DataLike, product


def losses_on(
    rows: DataLike,
    keep: Literal["all", "difference", "moments"] = "difference",
    by: Literal["token", "row"] = "token",
) -> Observable:
    """Losses on fixed rows at every draw.

    >>> import torch, rllc
    >>> rllc.losses_on(torch.zeros(4, 8, dtype=torch.long)).axes
    ('row', 'pos')

    Covariances of these losses over the draws are susceptibilities and influence functions. The
    rows are evaluated without gradients; runs of one layer share the part before it.

    Args:
        rows: one data set, as for :func:`rllc.estimate`.
        keep: ``"difference"``: ℓ(v) − ℓ(w*), as float16: 2 bytes for each refinement, chain, draw,
            row and position. ``"all"``: ℓ(v), as float32. ``"moments"``: mean and covariance of
            ℓ(v) over the draws of each chain.
        by: ``"row"`` keeps each row's mean loss only, as many times fewer numbers as a row has
            positions. It is enough for influence of rows on rows and loss kernels.

    Returns:
        An observable with axes ``row, pos``; one position where the loss gives one number a row.
        NaN where nothing is predicted, as at padding. With ``by="row"`` the axis is ``row``.

    Raises:
        InputError: ``rows`` is not one data set, or ``by`` is something else.
    """
    if not one_of(by, ("row", "token")):
        raise InputError(f"losses_on: `by` must be 'token' or 'row', got {by!r}.")
    data_sets = product(None, rows)
    if len(data_sets) != 1:
        raise InputError(
            f"losses_on: expected one data set, got {[r.data_name for r in data_sets]}; "
            f"make an observable for each."
        )
    on = LossesOn(data_sets[0].data, by)
    axes = ("row", "pos") if by == "token" else ("row",)
    return Observable(on, axes, keep=keep, origin=on.at_origin)


@dataclass(frozen=True, eq=False)
class LossesOn:
    """``measure`` of :func:`losses_on`; a value that can be pickled."""

    rows: Data
    by: Literal["token", "row"] = "token"

    def __call__(self, moment: Moment) -> Tensor:
        """``[run, row, pos]``, or ``[run, row]``."""
        losses = _with_positions(moment.evaluate(self.rows), 3)
        return losses if self.by == "token" else losses.nanmean(2)

    def at_origin(self, moment: Moment) -> Tensor:
        """``[row, pos]``, or ``[row]``."""
        losses = _with_positions(moment.evaluate_origin(self.rows), 2)
        return losses if self.by == "token" else losses.nanmean(1)


def minibatch_losses(keep: Literal["all", "difference"] = "difference") -> Observable:
    """Losses on each draw's own minibatch, example by example; :func:`minibatch_rows` says which.

    >>> minibatch_losses().axes
    ('batch', 'pos')

    Costs nothing to compute, but memory: 2 bytes (4 with ``keep="all"``) for each refinement,
    chain, draw, row of a minibatch and position.

    Args:
        keep: ``"difference"``: ℓ(v) − ℓ(w*), as float16; ``"all"``: ℓ(v), as float32.
    """
    return Observable(_by_row, ("batch", "pos"), keep=keep, origin=_baseline_by_row)


def minibatch_rows() -> Observable:
    """Which rows of its data each draw's minibatch held.

    >>> minibatch_rows().axes
    ('batch',)
    """
    return Observable(_rows, ("batch",))


def _by_row(moment: Moment) -> Tensor:
    return _with_positions(moment.losses_by_row, 3)


def _baseline_by_row(moment: Moment) -> Tensor:
    return _with_positions(moment.baseline_by_row, 2)


def _with_positions(losses: Tensor, dim: int) -> Tensor:
    """Losses with an axis of positions, of length 1 where there was one number a row."""
    return losses if losses.dim() == dim else losses[..., None]


def _rows(moment: Moment) -> Tensor:
    return moment.rows.to(moment.position.device).expand(len(moment.position), -1)
