"""The singular fluctuation: how much the losses of single observations vary along the chains."""

from __future__ import annotations

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
    row are not; ``by="token"`` takes them as if they were, with P_i = 1. As λ̂ does, ν̂ tends to d/2
    for a regular model that is true, at γ → 0. Sampled at an nβ that is the number of all tokens,
    WAIC's penalty is 2ν̂ nats for all observations together.

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
    if not one_of(by, ("row", "token")):
        raise InputError(f"singular_fluctuation: `by` must be 'row' or 'token', got {by!r}.")
    means = []
    for observed in fixed_rows(draws, rows, asked_by="singular_fluctuation"):
        if draws.settings["observed"][rows] == ["row"]:
            raise InputError(
                f"singular_fluctuation: of {rows!r} only each row's mean was kept, and how many "
                f"tokens a row has is not known; observe rllc.losses_on(rows, by='token')."
            )
        variance = _weighed_variance(observed, by)
        terms = draws.settings["n_beta"] / 2 * variance
        means.append(observed.mean_of_draws(terms))
    return stacked_means(means)


def _weighed_variance(observed: FixedRows, by: str) -> np.ndarray:
    """Terms of Σ_i w_i P_i Var(ℓ_i), ``[chain, draw]``."""
    counted = np.isfinite(observed.losses).any(axis=(-2, -1))
    tokens = counted.sum(axis=1)
    n = observed.independent_draws(observed.mean)
    total = np.zeros(observed.losses.shape[-2:])
    means_of_rows = observed.by_row
    for row, losses in enumerate(observed.losses):
        if by == "token":
            losses_of_tokens = losses[counted[row]]
            squares = deviations_product(losses_of_tokens, losses_of_tokens, n)
            total += squares.sum(axis=0)
        elif tokens[row]:
            mean = means_of_rows[row]
            total += tokens[row] ** 2 * deviations_product(mean, mean, n)
    return total / tokens.sum()
