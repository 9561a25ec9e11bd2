"""λ̂ of every token and row of fixed rows."""

from __future__ import annotations

from rllc.arguments import names_checked
from rllc.covariances.observed import fixed_rows, stacked_means
from rllc.sampling.draws import Draws
from rllc.statistics.uncertainty import Mean


@names_checked
def token_llc(draws: Draws, rows: str = "rows") -> Mean:
    """λ̂ of each token of fixed rows: nβ(E[ℓ_z] − ℓ_z(w*)), ``[refinement, row, pos]``.

    >>> import rllc, torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> draws = rllc.sample(model, x, loss=square, observe={"rows": rllc.losses_on(x)})
    >>> token_llc(draws).value.shape
    (1, 40, 1)

    The mean over all tokens is λ̂ on these rows, exactly.

    Args:
        draws: with ``observe={"rows": rllc.losses_on(rows)}``, which keeps differences to w*.
        rows: name of the observable.

    Returns:
        Value, standard error and degrees of freedom, ``[refinement, row, pos]``.

    Raises:
        InputError: the draws did not observe these rows.
    """
    of_refinements = []
    for observed in fixed_rows(draws, rows, asked_by="token_llc"):
        n_beta = draws.settings["n_beta"]
        of_rows = [observed.mean_of_draws(n_beta * losses) for losses in observed.losses]
        of_refinements.append(stacked_means(of_rows))
    return stacked_means(of_refinements)
