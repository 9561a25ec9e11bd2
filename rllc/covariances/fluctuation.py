"""How much the losses of single observations vary along the chains, and WAIC, made of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from rllc.arguments import names_checked
from rllc.covariances.observed import FixedRows, fixed_rows, stacked_means
from rllc.errors import InputError, one_of
from rllc.sampling.draws import Draws
from rllc.statistics.covariance import deviations_product
from rllc.statistics.uncertainty import Mean


@names_checked
def singular_fluctuation(
    draws: Draws, rows: str = "rows", *, by: Literal["row", "token"] = "row"
) -> Mean:
    """ν̂ of each refinement on fixed rows, ``[refinement]``.

    >>> import rllc, torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> draws = rllc.sample(model, x, loss=square, observe={"rows": rllc.losses_on(x)})
    >>> bool(singular_fluctuation(draws).value[0] > 0)
    True

    ν̂ = (nβ/2) · Σ_i w_i P_i Var(ℓ_i), for observations i whose mean loss is ℓ_i, of P_i tokens,
    and w_i their share of all tokens: half the functional variance times β, in the chains' own
    units, where each token's loss is its −log p. Rows are independent of each other, tokens of one
    row are not; ``by="token"`` takes them as if they were, with P_i = 1. As λ̂ does, ν̂ tends to
    d/2 for a regular model that is true, at γ → 0. Sampled at an nβ that is the number of all
    tokens, WAIC's penalty is 2ν̂ nats for all observations together.

    Args:
        draws: with ``observe={"rows": rllc.losses_on(rows)}``, on rows that stand for the data.
        rows: name of the observable.
        by: what an observation is.

    Returns:
        Value, standard error and degrees of freedom, ``[refinement]``.

    Raises:
        InputError: the draws did not observe these rows, or only each row's mean where the number
            of tokens is needed, or ``by`` is something else.

    Reference: Watanabe (2010), Asymptotic equivalence of Bayes cross validation and widely
    applicable information criterion in singular learning theory, JMLR 11.
    """
    means = []
    for observed, tokens in _checked(draws, rows, by, asked_by="singular_fluctuation"):
        n = observed.independent_draws(observed.mean)
        variance = np.zeros(observed.losses.shape[-2:])
        for surprise in _observations(observed, by):
            squares = deviations_product(surprise, surprise, n)
            variance += squares.sum(axis=0)
        n_beta = draws.settings["n_beta"]
        terms = n_beta / 2 * variance / tokens
        means.append(observed.mean_of_draws(terms))
    return stacked_means(means)


@names_checked
def waic(draws: Draws, rows: str = "rows", *, by: Literal["row", "token"] = "row") -> Mean:
    """WAIC of each refinement on the rows sampled on, in nats per token, ``[refinement]``.

    >>> import rllc, torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square, full = lambda module, x: module(x)[:, 0] ** 2 / 2, rllc.Sampling(batch_size=40)
    >>> observe = {"rows": rllc.losses_on(x, keep="all")}
    >>> draws = rllc.sample(model, x, loss=square, sampling=full, observe=observe)
    >>> bool(waic(draws).value[0] > 0)
    True

    W = (1/N) Σ_i [−log E exp(−s_i)] + (nβ/N²) Σ_i Var(s_i), for observations i whose −log p is s_i,
    the sum of their tokens' losses, and N tokens in all. It is of the local posterior
    p(v) ∝ exp(−nβ ℓ(v) − (γ/2)‖v − v*‖²), whose inverse temperature is nβ/N. W estimates the loss
    of the mixture E p(· | v) over its draws on new rows of the same law, to o(1/N), in singular
    models too. The first term is that mixture's loss on these rows. The second, 2ν̂/N with the ν̂
    of :func:`singular_fluctuation`, is what it gains by having seen them.

    It is exact where losses are −log p, where ``rows`` are all rows that were sampled on, and in
    full batches of small steps. With rows kept as differences from w*, the default of
    :func:`rllc.losses_on`, W is counted from the loss at w*.

    Args:
        draws: with ``observe={"rows": rllc.losses_on(rows, keep="all")}``.
        rows: name of the observable.
        by: what an observation is: rows are independent of each other, tokens of a row are not.

    Returns:
        Value, standard error and degrees of freedom, ``[refinement]``.

    Raises:
        InputError: as :func:`singular_fluctuation`.

    Reference: Watanabe (2010), as there.
    """
    means = []
    for observed, tokens in _checked(draws, rows, by, asked_by="waic"):
        n = observed.independent_draws(observed.mean)
        inverse_temperature = draws.settings["n_beta"] / tokens
        total = np.zeros(observed.losses.shape[-2:])
        for surprise in _observations(observed, by):
            least = surprise.min(axis=(-2, -1), keepdims=True)
            likelihood = np.exp(least - surprise)
            mean = likelihood.mean(axis=(-2, -1), keepdims=True)
            # To first order in how each draw differs, so that the error is that of a mean.
            relative = likelihood / mean
            loss = least - np.log(mean) + 1 - relative
            squares = deviations_product(surprise, surprise, n)
            of_observation = loss + inverse_temperature * squares
            total += of_observation.sum(axis=0)
        means.append(observed.mean_of_draws(total / tokens))
    return stacked_means(means)


def _checked(draws: Draws, rows: str, by: str, *, asked_by: str) -> Iterator[tuple[FixedRows, int]]:
    """The observed losses of each refinement, and of how many tokens they are.

    Raises:
        InputError: as :func:`singular_fluctuation`.
    """
    if not one_of(by, ("row", "token")):
        raise InputError(f"{asked_by}: `by` must be 'row' or 'token', got {by!r}.")
    for observed in fixed_rows(draws, rows, asked_by=asked_by):
        if draws.settings["observed"][rows] == ["row"]:
            raise InputError(
                f"{asked_by}: of {rows!r} only each row's mean was kept, and how many "
                f"tokens a row has is not known; observe rllc.losses_on(rows, by='token')."
            )
        num_tokens = int(_counted(observed).sum())
        yield observed, num_tokens


def _counted(observed: FixedRows) -> np.ndarray:
    """Where something is predicted, ``[row, pos]``."""
    return np.isfinite(observed.losses).any(axis=(-2, -1))


def _observations(observed: FixedRows, by: str) -> Iterator[np.ndarray]:
    """The −log p of the observations of each row, ``[observation, chain, draw]``."""
    counted = _counted(observed)
    by_row = observed.by_row
    for row, losses in enumerate(observed.losses):
        counted_in_row = counted[row]
        tokens = int(counted_in_row.sum())
        if by == "token":
            yield losses[counted_in_row]
        elif tokens:
            mean_of_row = by_row[row : row + 1]
            yield tokens * mean_of_row
