"""Influence of rows on rows, and the loss kernel: covariances of the losses of fixed rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.covariances.observed import FixedRows, faults_of_chains, fixed_rows, moments_only
from rllc.covariances.results import Covariances
from rllc.errors import InputError, one_of
from rllc.losses.contract import LossFunction
from rllc.observables import losses_on
from rllc.samplers import Sampler
from rllc.sampling.draws import Draws
from rllc.sampling.sample import sample
from rllc.sampling.settings import Compute, Sampling
from rllc.statistics.covariance import (
    Covariance,
    agreement,
    deviations_product,
    stacked,
    within_chains,
)
from rllc.weights.refinement import DataLike, WeightsLike

_ROWS = "rows"
_QUERIES = "queries"

By = Literal["row", "token"]


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
    another is weighed more. Of each row the mean loss is kept at every draw. For tokens, or for
    chains so long that their draws do not fit, sample yourself and see :meth:`LossKernel.of`.

    Args:
        model: see :func:`rllc.sample`; so for all arguments but ``rows``.
        data: what the chains are sampled on.
        rows: one data set of fixed rows, whose losses are taken at every draw without gradients.
        weights: which weights move.
        loss: as for :func:`rllc.estimate`; so for the three that follow.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: how much is sampled.
        compute: how it is run.

    Raises:
        InputError: as :func:`rllc.sample`; ``rows`` is not one data set.

    Reference: Adam et al. (2025), The loss kernel: a geometric probe for deep learning
    interpretability, arXiv 2509.26537.
    """
    observe = {_ROWS: losses_on(rows, by="row")}
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe=observe,
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
        model: see :func:`rllc.sample`; so for all arguments but these two.
        data: what the chains are sampled on.
        rows: one data set, such as training rows.
        queries: one data set, such as test rows.
        weights: which weights move.
        loss: as for :func:`rllc.estimate`; so for the three that follow.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: how much is sampled.
        compute: how it is run.

    Raises:
        InputError: as :func:`rllc.loss_kernel`.

    Reference: Kreer et al. (2025), Bayesian influence functions for Hessian-free data
    attribution, arXiv 2509.26544.
    """
    observe = {_ROWS: losses_on(rows, by="row"), _QUERIES: losses_on(queries, by="row")}
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe=observe,
    )
    return LossKernel.of(draws, queries=_QUERIES).influence()


@dataclass(frozen=True, eq=False, repr=False)
class LossKernel(Covariances):
    """Covariances of the losses of fixed rows; :func:`loss_kernel` and :func:`influence` make it.

    ``value`` and its error are ``[refinement, row, query]``: in squared nats, or correlations.
    ``kind`` says which: ``"covariance"``, ``"correlation"``, ``"influence"`` or ``"correlation
    influence"``. See :class:`rllc.covariances.results.Covariances` for the rest.
    """

    @classmethod
    def of(
        cls,
        draws: Draws,
        rows: str = _ROWS,
        *,
        queries: str | None = None,
        by: By = "row",
        correlation: bool = False,
    ) -> LossKernel:
        """Make it of draws that observed the rows.

        Of draws with ``rllc.losses_on(rows, keep="moments")`` the error is that of the mean over
        chains, from how chains differ: with few chains it is known badly, as its ``dof`` say, and
        whether chains agree is not known.

        Args:
            draws: with ``observe={"rows": rllc.losses_on(rows)}``.
            rows: name of the observable.
            queries: name of the observable of the second axis; ``None``: the same rows.
            by: ``"row"``: each row's mean loss. ``"token"``: each token, rows one after another.
            correlation: Pearson's correlation instead of the covariance.

        Raises:
            InputError: the draws did not observe these, ``by`` is something else, or only moments
                of two observables were kept, which have no covariance with each other.
        """
        if not one_of(by, ("row", "token")):
            raise InputError(f"LossKernel.of: `by` must be 'row' or 'token', got {by!r}.")
        if queries is None:
            queries = rows
        kept_moments = [name for name in (rows, queries) if moments_only(draws, name)]
        if kept_moments and rows != queries:
            raise InputError(
                f"LossKernel.of: of {kept_moments[0]!r} only moments were kept, so its covariance "
                f"with other rows is not known; observe both as one data set with "
                f"rllc.losses_on(rows, keep='moments'), and take LossKernel.of(draws).part(…)."
            )
        if kept_moments:
            kernels = _of_moments(draws, rows, by, correlation)
        else:
            kernels = _of_draws(draws, (rows, queries), by, correlation)
        return cls(
            **stacked(list(kernels))._asdict(),
            faults=faults_of_chains(draws),
            names=draws.names,
            settings=draws.settings,
            kind="correlation" if correlation else "covariance",
            axes=("row", "query"),
        )

    def influence(self) -> LossKernel:
        """Return the negative: the Bayesian influence function."""
        kind = "correlation influence" if self.kind == "correlation" else "influence"
        return replace(self, value=-self.value, within=-self.within, kind=kind)

    def part(self, rows: slice, queries: slice) -> LossKernel:
        """Return some rows by some queries: of a kernel of train and test rows, train × test.

        >>> kernel.part(slice(0, 18), slice(18, None)).value.shape
        (1, 18, 6)
        """
        parts = {}
        for name in Covariance._fields:
            parts[name] = getattr(self, name)[:, rows, queries]
        return replace(self, **parts)


def _of_draws(
    draws: Draws, names: tuple[str, str], by: By, correlation: bool
) -> Iterator[Covariance]:
    """Yield the kernel of each refinement."""
    asked_by = "LossKernel.of"
    first = fixed_rows(draws, names[0], asked_by=asked_by)
    second = fixed_rows(draws, names[1], asked_by=asked_by)
    for rows, queries in zip(first, second, strict=True):
        yield _kernel(rows, queries, by, correlation)


def _kernel(first: FixedRows, second: FixedRows, by: By, correlation: bool) -> Covariance:
    """Covariances ``[row, query]`` of one refinement, a row at a time."""
    rows = first.by_row if by == "row" else first.flat
    queries = second.by_row if by == "row" else second.flat
    if correlation:
        rows = _scaled(rows)
        queries = _scaled(queries)
    n = first.independent_draws(first.mean)
    of_rows = []
    for row in rows:
        terms = deviations_product(row, queries, n)
        if correlation:
            terms = _of_correlation(terms, row, queries)
        mean = first.mean_of_draws(terms)
        within = within_chains(row, queries, first.relaxation)
        p_value = agreement(row, queries, first.relaxation)
        of_rows.append(Covariance(*mean, within, p_value))
    return stacked(of_rows)


def _scaled(losses: np.ndarray) -> np.ndarray:
    """Losses ``[row, chain, draw]`` of standard deviation 1 and mean 0."""
    centred = losses - losses.mean(axis=(-2, -1), keepdims=True)
    return centred / losses.std(axis=(-2, -1), keepdims=True)


def _of_correlation(terms: np.ndarray, row: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The products of scaled losses, less what both standard deviations did.

    r = c/(s_x s_y) moves with c, and by −r/2 with each variance. The mean stays that of the
    products without the factor 1 + 1/n, which numerator and denominator share.
    """
    products = row * queries
    r = products.mean(axis=(-2, -1), keepdims=True)
    variances = (row**2 - 1) + (queries**2 - 1)
    return products - r / 2 * variances


def _of_moments(draws: Draws, name: str, by: By, correlation: bool) -> Iterator[Covariance]:
    """Yield the kernel of each refinement, from means and covariances of each chain."""
    axes = list(draws.settings["observed"][name])
    if axes not in (["row", "pos"], ["row"]):
        raise InputError(
            f"LossKernel.of: the observable {name!r} has axes {axes}, not losses on fixed rows; "
            f"observe rllc.losses_on(rows, keep='moments')."
        )
    for i, length in enumerate(draws.lengths):
        mean = draws.observed[name][i].astype(np.float64)
        # Observed covariances are sums over one less than the number of draws; here over all.
        covariance = draws.observed[f"{name}.covariance"][i] * (length - 1) / length
        diverged = draws.diverged[i] >= 0
        mean[diverged] = np.nan
        flat = mean.reshape(len(mean), -1)
        if by == "row" and axes == ["row", "pos"]:
            shares = _shares_of_rows(mean[0])
            covariance = shares @ np.nan_to_num(covariance) @ shares.T
            flat = np.nan_to_num(flat) @ shares.T
            flat[diverged] = np.nan
        yield _pooled(flat, covariance, _independent(draws, length), correlation)


def _shares_of_rows(losses: np.ndarray) -> np.ndarray:
    """The weight of each token in each row's mean, ``[row, row · pos]``."""
    is_counted = np.isfinite(losses)
    num_rows, num_positions = losses.shape
    shares = np.zeros((num_rows, num_rows, num_positions))
    for row in range(num_rows):
        num_counted = max(is_counted[row].sum(), 1)
        shares[row, row] = is_counted[row] / num_counted
    return shares.reshape(num_rows, -1)


def _independent(draws: Draws, length: int) -> float:
    """The number of independent draws that one chain is worth."""
    relaxation = draws.settings.get("relaxation") or 0.0
    return max(length * (1 - relaxation) / (1 + relaxation), 1.0)


def _pooled(mean: np.ndarray, covariance: np.ndarray, n: float, correlation: bool) -> Covariance:
    """The covariance about common means, from the moments of chains.

    Args:
        mean: ``[chain, value]``.
        covariance: ``[chain, value, value]``: mean products of deviations from a chain's own means.
        n: independent draws of a chain.
        correlation: give Pearson's correlation.
    """
    num_chains = len(mean)
    offset = mean - mean.mean(axis=0)
    products = covariance + offset[:, :, None] * offset[:, None, :]
    # What no chain has seen is NaN in the products, and so it shall be here.
    within = covariance.mean(axis=0) * (1 + 1 / n) + 0 * products.mean(axis=0)
    if correlation:
        deviation = np.sqrt(np.diagonal(products.mean(axis=0)))
        scale = np.outer(deviation, deviation)
        products = products / scale
        within = within / scale
        r = products.mean(axis=0)
        variances = np.diagonal(products, axis1=1, axis2=2) - 1
        sums = variances[:, :, None] + variances[:, None, :]
        products = products - r / 2 * sums
    else:
        products = products * (1 + 1 / (num_chains * n))
    value = products.mean(axis=0)
    unknown = np.full(value.shape, np.nan)
    if num_chains == 1:
        return Covariance(value, unknown, unknown, within, unknown)
    error = products.std(axis=0, ddof=1) / np.sqrt(num_chains)
    dof = np.full(value.shape, num_chains - 1.0)
    return Covariance(value, error, dof, within, unknown)
