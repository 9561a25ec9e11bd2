"""Influence of rows on rows, and the loss kernel: covariances of the losses of fixed rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.covariance import deviations_product, independent_draws
from rllc.draws import Draws
from rllc.errors import InputError
from rllc.faults import Fault, faults_from_json, faults_to_json, status_of
from rllc.files import load_arrays, reading, save_arrays
from rllc.loss import LossFunction
from rllc.names import Names
from rllc.observables import losses_on
from rllc.observed import FixedRows, faults_of_chains, fixed_rows
from rllc.refinement import DataLike, WeightsLike
from rllc.sample import sample
from rllc.samplers import Sampler
from rllc.sampling import Compute, Sampling
from rllc.tables import Table, label, not_ok
from rllc.uncertainty import Mean, mean_of_draws

if TYPE_CHECKING:
    import pandas as pd

_ROWS = "rows"
_QUERIES = "queries"


@names_checked
def loss_kernel(
    model: nn.Module,
    data: DataLike,
    rows: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> LossKernel:
    """Sample, and give the covariance of the losses of each two rows: Cov(ℓ_i, ℓ_j).

    >>> import torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> loss_kernel(model, x, x[:3], loss=square).value.shape
    (1, 3, 3)

    Rows on which the model does well and badly together are near each other. Its negative is the
    Bayesian influence function (``kernel.influence()``): how much the loss of one row falls when
    another is weighed more.

    Args:
        model: see :func:`rllc.sample`; so for all arguments but ``rows``.
        data: what the chains are sampled on.
        rows: one data set of fixed rows, whose losses are taken at every draw without gradients.
        weights: which weights move.
        loss: ``None`` is next-token cross entropy.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: ``None`` is ``rllc.Sampling()``.
        compute: how it is run.

    Raises:
        InputError: as :func:`rllc.sample`; ``rows`` is not one data set.

    Reference: Adam et al. (2025), The loss kernel: a geometric probe for deep learning
    interpretability, arXiv 2509.26537.
    """
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe={_ROWS: losses_on(rows)},
    )
    return LossKernel.of(draws)


@names_checked
def influence(
    model: nn.Module,
    data: DataLike,
    rows: DataLike,
    queries: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> LossKernel:
    """Sample, and give the Bayesian influence of rows on queries: −Cov(ℓ_row, ℓ_query).

    >>> import torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> influence(model, x, x[:3], x[:2], loss=square).value.shape
    (1, 3, 2)

    To first order the mean loss of the query changes by nβ/n times that, when one of n rows of
    ``data`` is weighed twice. devinterp's ``bif`` is the correlation, with the other sign.

    Args:
        model: see :func:`rllc.sample`; so for the others but ``rows`` and ``queries``.
        data: what the chains are sampled on.
        rows: one data set of fixed rows, as many of ``data`` as shall be judged.
        queries: one data set of fixed rows whose losses answer.
        weights: which weights move.
        loss: ``None`` is next-token cross entropy.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: ``None`` is ``rllc.Sampling()``.
        compute: how it is run.

    Raises:
        InputError: as :func:`rllc.sample`; rows or queries are not one data set.

    Reference: Kreer et al. (2025), Bayesian influence functions for scalable data attribution,
    arXiv 2509.26544.
    """
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe={_ROWS: losses_on(rows), _QUERIES: losses_on(queries)},
    )
    return LossKernel.of(draws, queries=_QUERIES).influence()


@dataclass(frozen=True, eq=False)
class LossKernel:
    """Covariances of the losses of fixed rows; :func:`loss_kernel` and :func:`influence` make it.

    Args:
        value: ``[refinement, row, query]``: Cov(ℓ_row, ℓ_query), or its negative, or correlations.
        standard_error: same shape.
        dof: same shape: degrees of freedom of the error.
        faults: ``[refinement]``: what is wrong with its chains.
        names: the (weights, data) of each refinement.
        settings: of sampler and sampling.
        kind: what the values are.
    """

    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray
    faults: tuple[tuple[Fault, ...], ...]
    names: Names
    settings: Mapping[str, Any]
    kind: Literal["covariance", "correlation", "influence"] = "covariance"

    @classmethod
    def of(
        cls,
        draws: Draws,
        rows: str = _ROWS,
        *,
        queries: str | None = None,
        by: Literal["row", "token"] = "row",
        correlation: bool = False,
    ) -> LossKernel:
        """Make it of draws that observed the rows.

        Args:
            draws: with ``observe={"rows": rllc.losses_on(rows)}``.
            rows: name of the observable.
            queries: name of the observable of the second axis; ``None``: the same rows.
            by: ``"row"``: each row's mean loss. ``"token"``: each token, rows one after another.
            correlation: Pearson's correlation instead of the covariance.

        Raises:
            InputError: the draws did not observe these, or ``by`` is something else.
        """
        if by not in ("row", "token"):
            raise InputError(f"LossKernel.of: `by` must be 'row' or 'token', got {by!r}.")
        of_rows = fixed_rows(draws, rows, asked_by="LossKernel.of")
        of_queries = fixed_rows(draws, queries or rows, asked_by="LossKernel.of")
        kernels = []
        for first, second in zip(of_rows, of_queries, strict=True):
            kernels.append(_kernel(first, second, by, correlation))
        return cls(
            value=np.stack([kernel.value for kernel in kernels]),
            standard_error=np.stack([kernel.standard_error for kernel in kernels]),
            dof=np.stack([kernel.dof for kernel in kernels]),
            faults=faults_of_chains(draws),
            names=draws.names,
            settings=draws.settings,
            kind="correlation" if correlation else "covariance",
        )

    @property
    def status(self) -> tuple[str, ...]:
        """``[refinement]``: ``"ok"``, or what is wrong with its chains."""
        return tuple(status_of(wrong) for wrong in self.faults)

    def influence(self) -> LossKernel:
        """Return the negative: the Bayesian influence function."""
        return LossKernel(
            -self.value,
            self.standard_error,
            self.dof,
            self.faults,
            self.names,
            self.settings,
            "influence",
        )

    def __getitem__(self, weights: str | tuple[str, str]) -> Mean:
        """One refinement's kernel, ``[row, query]``.

        Raises:
            InputError: there is no such refinement.
        """
        key = (weights,) if isinstance(weights, str) else weights
        i = self.names.index(*key, of="kernel")
        return Mean(self.value[i], self.standard_error[i], self.dof[i])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair: ``weights, data, row, query``, the value by its kind, and its error."""
        import pandas as pd

        numbers = np.indices(self.value.shape).reshape(3, -1)
        columns: dict[str, Any] = {
            "weights": np.array(self.names.weights, dtype=object)[numbers[0]],
            "data": np.array(self.names.data, dtype=object)[numbers[0]],
            "row": numbers[1],
            "query": numbers[2],
            self.kind: self.value.ravel(),
            "standard_error": self.standard_error.ravel(),
            "dof": self.dof.ravel(),
        }
        return pd.DataFrame(columns)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {"value": self.value, "standard_error": self.standard_error, "dof": self.dof}
        header = {
            "kind": "rllc.LossKernel",
            "of": self.kind,
            "weights": self.names.weights,
            "data": self.names.data,
            "faults": [faults_to_json(wrong) for wrong in self.faults],
            "settings": dict(self.settings),
        }
        return save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LossKernel:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: there is no such file, it is damaged, or it holds something else.
        """
        arrays, header = load_arrays(path, kind="rllc.LossKernel")
        with reading(path):
            return cls(
                value=arrays["value"],
                standard_error=arrays["standard_error"],
                dof=arrays["dof"],
                faults=tuple(faults_from_json(wrong) for wrong in header["faults"]),
                names=Names(tuple(header["weights"]), tuple(header["data"])),
                settings=header["settings"],
                kind=header["of"],
            )

    def __repr__(self) -> str:
        return str(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()

    @property
    def _table(self) -> Table:
        rows = [("weights", "lowest", "highest", "median se", "status")]
        for i, values in enumerate(self.value):
            numbers = (
                f"{np.nanmin(values):.3g}",
                f"{np.nanmax(values):.3g}",
                f"{np.nanmedian(self.standard_error[i]):.2g}",
            )
            rows.append((label(self.names, i), *numbers, self.status[i]))
        of = " × ".join(map(str, self.value.shape[1:]))
        title = f"{self.kind} of the losses of {of} rows"
        return Table(title, rows, left=(0, 4), wrong=not_ok(self.status, column=4))


def _kernel(first: FixedRows, second: FixedRows, by: str, correlation: bool) -> Mean:
    """Covariances ``[row, query]`` of one refinement, a row at a time."""
    relaxation, shared = first.relaxation, first.shared
    rows = first.by_row if by == "row" else first.flat
    queries = second.by_row if by == "row" else second.flat
    if correlation:
        rows, queries = _scaled(rows), _scaled(queries)
    n = independent_draws(first.mean, relaxation, shared=shared)
    each = []
    for series in rows:
        terms = deviations_product(series, queries, n)
        if correlation:
            terms = _of_correlation(terms, series, queries)
        each.append(mean_of_draws(terms, relaxation, shared=shared))
    return Mean(*(np.stack(numbers) for numbers in zip(*each, strict=True)))


def _scaled(losses: np.ndarray) -> np.ndarray:
    """Losses ``[row, chain, draw]`` of standard deviation 1 and mean 0."""
    centred = losses - losses.mean(axis=(-2, -1), keepdims=True)
    return centred / losses.std(axis=(-2, -1), keepdims=True)


def _of_correlation(terms: np.ndarray, series: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The products of scaled losses, less what both standard deviations did.

    r = c/(s_x s_y) moves with c, and by −r/2 with each variance. The mean stays that of the
    products without the factor 1 + 1/n, which numerator and denominator share.
    """
    products = series * queries
    r = products.mean(axis=(-2, -1), keepdims=True)
    variances = (series**2 - 1) + (queries**2 - 1)
    return products - r / 2 * variances
