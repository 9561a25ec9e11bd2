"""How λ̂ would change with nβ and γ, from one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.arguments import names_checked
from rllc.covariances.observed import axes_of, faults_of_chains, fixed_rows, stacked_means
from rllc.errors import InputError
from rllc.estimates.faults import Fault, status_of
from rllc.sampling.draws import Draws
from rllc.statistics.covariance import deviations_product
from rllc.statistics.uncertainty import Mean
from rllc.tables import AsTable, Table, label, not_ok
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Elasticities(OfRefinements, AsTable):
    """How λ̂ of each refinement changes with the settings; :func:`elasticities` makes it.

    Args:
        llc: λ̂ on the observed rows, ``[refinement]``.
        n_beta: dλ̂/d log nβ.
        localization: dλ̂/d log γ.
        faults: ``[refinement]``: what is wrong with its chains.
        names: the (weights, data) of each refinement.
        settings: of sampler and sampling, ``n_beta`` and ``localization`` among them.
    """

    llc: Mean
    n_beta: Mean
    localization: Mean
    faults: tuple[tuple[Fault, ...], ...]
    names: Names
    settings: Mapping[str, Any]

    @property
    def status(self) -> tuple[str, ...]:
        """``[refinement]``: ``"ok"``, or what is wrong with its chains."""
        return tuple(status_of(wrong) for wrong in self.faults)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a refinement: ``weights, data, llc, by_n_beta, by_localization``.

        Each has its error, ``llc_se`` and so on; ``status`` comes last.
        """
        import pandas as pd

        columns: dict[str, Any] = {"weights": self.weights, "data": self.data}
        arrays = {
            "llc": self.llc,
            "by_n_beta": self.n_beta,
            "by_localization": self.localization,
        }
        for name, mean in arrays.items():
            columns[name] = mean.value
            columns[f"{name}_se"] = mean.standard_error
        columns["status"] = self.status
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        rows = [("weights", "llc", "doubling nβ", "doubling γ", "status")]
        for i in range(len(self.names)):
            llc = f"{self.llc.value[i]:.3g} ± {self.llc.standard_error[i]:.1g}"
            by_n_beta = _doubled(self.n_beta, i)
            by_gamma = _doubled(self.localization, i)
            rows.append((label(self.names, i), llc, by_n_beta, by_gamma, self.status[i]))
        at = f"nβ = {self.settings['n_beta']:g}, γ = {self.settings['localization']:g}"
        title = f"λ̂ at {at}, and by how much the doubling of a setting would change it"
        return Table(title, rows, left=(0, 4), wrong=not_ok(self.status, column=4))


def _doubled(mean: Mean, i: int) -> str:
    """The effect of doubling a setting, to first order."""
    change = np.log(2) * mean.value[i]
    error = np.log(2) * mean.standard_error[i]
    return f"{change:+.2g} ± {error:.1g}"


@names_checked
def elasticities(draws: Draws, rows: str = "rows", distance: str = "distance") -> Elasticities:
    """Derivatives of λ̂ by log nβ and log γ, from draws that observed losses and distances.

    >>> import rllc, torch
    >>> model, x = torch.nn.Linear(2, 1), torch.randn(8, 2)
    >>> observe = {"rows": rllc.losses_on(x), "distance": rllc.distance()}
    >>> square, full = lambda module, x: module(x)[:, 0] ** 2, rllc.Sampling(batch_size=8)
    >>> draws = rllc.sample(model, x, loss=square, sampling=full, observe=observe)
    >>> elasticities(draws).names.weights
    ('everything',)

    dλ̂/d log nβ = λ̂ − (nβ)² Var(L) and dλ̂/d log γ = −(γ nβ/2) Cov(L, ‖v − v*‖²), for L the mean
    loss on ``rows``. A λ̂ that the prior alone gives is proportional to nβ: its first derivative is
    λ̂ itself. One that has reached a plateau has 0. The formulas are those of the exact local
    posterior, ε → 0, sampled on the rows on which L is measured: observe all rows of the data, or
    enough of them to stand for it.

    Args:
        draws: with ``observe={"rows": rllc.losses_on(rows), "distance": rllc.distance()}``.
        rows: name of the losses.
        distance: name of the distances.

    Raises:
        InputError: the draws did not observe these, or have no prior of precision γ.
    """
    asked_by = "elasticities"
    if axes_of(draws, distance, asked_by=asked_by):
        raise InputError(
            f"{asked_by}: the observable {distance!r} must be one number a draw; "
            f"observe rllc.distance()."
        )
    n_beta = draws.settings["n_beta"]
    gamma = draws.settings.get("localization")
    if not gamma:
        raise InputError(
            f"{asked_by}: the sampler has no localization, so λ̂ has no derivative by it; "
            f"use rllc.sgld(localization=200.0)."
        )
    llc = []
    by_n_beta = []
    by_gamma = []
    for i, observed in enumerate(fixed_rows(draws, rows, asked_by=asked_by)):
        made = slice(draws.lengths[i])
        squared_distance = draws.observed[distance][i, :, made].astype(np.float64)
        loss = observed.mean
        rise = n_beta * loss
        n = observed.independent_draws(loss)
        variance = deviations_product(loss, loss, n)
        covariance = deviations_product(loss, squared_distance, n)
        llc.append(observed.mean_of_draws(rise))
        by_n_beta.append(observed.mean_of_draws(rise - n_beta**2 * variance))
        by_gamma.append(observed.mean_of_draws(-gamma * n_beta / 2 * covariance))
    return Elasticities(
        llc=stacked_means(llc),
        n_beta=stacked_means(by_n_beta),
        localization=stacked_means(by_gamma),
        faults=faults_of_chains(draws),
        names=draws.names,
        settings=draws.settings,
    )
