"""Structure in susceptibilities: components of a token × head matrix, with errors, and clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rllc.analysis.cluster_methods import METHODS, in_order
from rllc.covariances.observed import fixed_rows
from rllc.errors import InputError, must_be
from rllc.plots.figures import color_of, new_axes
from rllc.sampling.draws import Draws
from rllc.statistics.uncertainty import Mean
from rllc.tables import AsTable, Table, label
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Structure(OfRefinements, AsTable):
    """Principal components of how heads answer to tokens; :func:`structure` makes it.

    Args:
        matrix: ``[token, refinement]``: susceptibilities, each refinement z-scored over tokens.
        share: ``[component]``: of the variance, with its error over chains.
        loading: ``[component, refinement]``: each of length 1; its sum is positive.
        score: ``[token, component]``.
        place: ``[token, 2]``: row and position of each token.
        noise: the share of the variance that errors of the susceptibilities are expected to make.
            Components below it mean nothing.
        names: of the refinements.
    """

    matrix: np.ndarray
    share: Mean
    loading: Mean
    score: np.ndarray
    place: np.ndarray
    noise: float
    names: Names

    @property
    def labels(self) -> list[str]:
        """The name of each refinement."""
        return [label(self.names, i) for i in range(len(self.names))]

    def clusters_of_heads(self, num_clusters: int) -> np.ndarray:
        """Return a number for each refinement, ``[refinement]``: those that answer alike.

        By Ward's method on the columns of the matrix. Needs the extra ``analysis``.

        Raises:
            InputError: there are not as many refinements.
        """
        _check_count("clusters_of_heads", num_clusters, len(self.names))
        labels = METHODS["hierarchical"].labels(self.matrix.T, num_clusters, 0)
        assert labels is not None
        return in_order(labels)

    def clusters_of_tokens(self, num_clusters: int, seed: int = 0) -> np.ndarray:
        """Return a number for each token, ``[token]``: those to which heads answer alike.

        By k-means on the scores of the components. Needs the extra ``analysis``.

        Raises:
            InputError: there are not as many tokens.
        """
        _check_count("clusters_of_tokens", num_clusters, len(self.matrix))
        labels = METHODS["k_means"].labels(self.score, num_clusters, seed)
        assert labels is not None
        return in_order(labels)

    def separation(self, component: int, heads: Sequence[str]) -> Separation:
        """Return how well one component sets some heads apart from the others.

        Args:
            component: from 0 on.
            heads: such as those of the induction circuit.

        Raises:
            InputError: there is no such component or head, or ``heads`` are none or all.
        """
        num_components = len(self.share.value)
        right = type(component) is int and 0 <= component < num_components
        expected = f"a number from 0 to {num_components - 1}"
        must_be("separation", "component", component, right, expected)
        is_chosen = np.zeros(len(self.names), dtype=bool)
        for head in heads:
            refinement = self.names.index(head, of="structure")
            is_chosen[refinement] = True
        if is_chosen.all() or not is_chosen.any():
            raise InputError(
                f"separation: `heads` must be some of the {len(is_chosen)} heads, and not all; "
                f"got {list(heads)}."
            )
        loading = self.loading.value[component]
        chosen_loadings = loading[is_chosen]
        other_loadings = loading[~is_chosen]
        differences = chosen_loadings[:, None] - other_loadings[None]  # [chosen, other]
        share_above = np.mean(differences > 0)
        share_equal = np.mean(differences == 0)
        probability = float(share_above + share_equal / 2)
        gap = float(chosen_loadings.mean() - other_loadings.mean())
        variance = np.square(self.loading.standard_error[component])
        variance_of_chosen = _variance_of_mean(variance[is_chosen])
        variance_of_others = _variance_of_mean(variance[~is_chosen])
        return Separation(
            order=max(probability, 1 - probability),
            gap=abs(gap),
            standard_error=float(np.sqrt(variance_of_chosen + variance_of_others)),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a component and refinement: its loading, error, and share."""
        import pandas as pd

        indices = np.indices(self.loading.value.shape)
        component, refinement = indices.reshape(2, -1)
        columns = {
            **self.names.columns(refinement),
            "component": component + 1,
            "loading": self.loading.value.ravel(),
            "standard_error": self.loading.standard_error.ravel(),
            "share": self.share.value[component],
        }
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        header = ["weights"]
        percent = 100 * self.share.value
        error_of_percent = 100 * self.share.standard_error
        for share, error in zip(percent, error_of_percent, strict=True):
            header.append(f"{share:.1f} ± {error:.1f} %")
        rows = [header]
        for i, name in enumerate(self.labels):
            values = self.loading.value[:, i]
            errors = self.loading.standard_error[:, i]
            row = [name]
            for value, error in zip(values, errors, strict=True):
                row.append(f"{value:+.2f} ± {error:.2f}")
            rows.append(row)
        size = f"{len(self.matrix)} tokens × {len(self.names)}"
        noise = f"noise {100 * self.noise:.1f} %"
        return Table(f"Components of {size}; {noise}", rows)


def _variance_of_mean(variances: np.ndarray) -> float:
    """The variance of a mean of independent numbers."""
    count = len(variances)
    return float(variances.sum() / count**2)


@dataclass(frozen=True)
class Separation:
    """How well a component sets heads apart; :meth:`Structure.separation` makes it.

    Args:
        order: the probability that the loading of one of the heads is beyond that of another head,
            whichever way the component points: 1 sets them apart, ½ is chance.
        gap: the difference of mean loadings.
        standard_error: of the gap, over chains.
    """

    order: float
    gap: float
    standard_error: float


def structure(
    draws: Draws,
    probes: str = "probes",
    *,
    weights: Sequence[str] | None = None,
    num_components: int = 3,
    centre_tokens: bool = False,
) -> Structure:
    """Find the principal components of how refinements answer to tokens.

    >>> observe = {"probes": rllc.losses_on(probes)}
    >>> draws = rllc.sample(model, data, rllc.heads(model), observe=observe)       # doctest: +SKIP
    >>> share = structure(draws).share.value

    The matrix has the susceptibilities of each refinement (:func:`rllc.susceptibilities`), z-scored
    over tokens, because heads differ in size. Errors are those of leaving each chain out in turn
    (the jackknife), with components matched to those of all chains. They know of noise in
    the draws, not of which tokens were probed.

    Args:
        draws: that observed the probes, of two refinements or more.
        probes: name of the observable.
        weights: names of the refinements to take, such as the heads of one layer; ``None``: all.
        num_components: how many, at most as many as refinements.
        centre_tokens: also take off each token's mean over refinements: what all heads do alike,
            which is the first component otherwise, is then gone.

    Raises:
        InputError: there is one refinement, the draws did not observe the probes, chains diverged,
            or ``num_components`` does not fit.

    Reference: Baker et al. (2025), arXiv 2504.18274.
    """
    asked_by = "structure"
    rows = list(range(len(draws.names)))
    if weights is not None:
        chosen = {draws.names.index(name, of="structure") for name in weights}
        rows = sorted(chosen)
    parts = []
    for i, observed in enumerate(fixed_rows(draws, probes, asked_by=asked_by)):
        if i in rows:
            means = _chain_means(observed.flat, observed.mean)
            parts.append(means)
    _check_refinements(draws, rows)
    right = type(num_components) is int and 1 <= num_components <= len(parts)
    expected = f"an integer from 1 to {len(parts)}, the number of refinements"
    must_be(asked_by, "num_components", num_components, right, expected)
    chains = np.arange(draws.loss.shape[1])
    value = _susceptibilities(parts, chains)
    is_predicted = np.isfinite(value).all(axis=1)
    matrix = _standardised(value[is_predicted], centre_tokens)
    share, loading = _components(matrix, num_components)
    matrices = []
    shares = []
    loadings = []
    # The jackknife: everything again without each chain.
    for left_out in chains if len(chains) > 1 else ():
        value = _susceptibilities(parts, chains[chains != left_out])
        matrix_without = _standardised(value[is_predicted], centre_tokens)
        components_without = _components(matrix_without, len(parts))
        share_without, loading_without = _matched(components_without, loading)
        matrices.append(matrix_without)
        shares.append(share_without)
        loadings.append(loading_without)
    error = _jackknife(matrix, matrices).standard_error
    sum_of_squared_errors = np.square(error).sum()
    sum_of_squares = np.square(matrix).sum()
    row_length = 1
    if draws.settings["observed"][probes] != ["row"]:
        row_length = draws.observed[probes].shape[-1]
    tokens = np.flatnonzero(is_predicted)
    row_of_token = tokens // row_length
    position = tokens % row_length
    return Structure(
        matrix=matrix,
        share=_jackknife(share, shares),
        loading=_jackknife(loading, loadings),
        score=matrix @ loading.T,
        place=np.stack([row_of_token, position], axis=1),
        noise=float(sum_of_squared_errors / sum_of_squares),
        names=draws.names.take(rows),
    )


def _check_refinements(draws: Draws, rows: Sequence[int]) -> None:
    """Refuse a single refinement, and chains that diverged."""
    if len(rows) < 2:
        raise InputError("structure: expected draws of two refinements or more, got one.")
    diverged = []
    for i in rows:
        if np.any(draws.diverged[i] >= 0):
            diverged.append(draws.weights[i])
    if diverged:
        raise InputError(
            f"structure: chains of {diverged} diverged; lower lr, or sample the others alone."
        )


ChainMeans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Means over each chain's draws: of φ ``[chain]``, of ℓ_z − L and of their product, ``[token,
chain]``."""


def _chain_means(losses: np.ndarray, mean: np.ndarray) -> ChainMeans:
    phi = mean  # [chain, draw]
    rise = losses - mean  # [token, chain, draw]
    product = rise * phi
    return phi.mean(axis=-1), rise.mean(axis=-1), product.mean(axis=-1)


def _susceptibilities(parts: Sequence[ChainMeans], chains: np.ndarray) -> np.ndarray:
    """χ of some chains about their common means, ``[token, refinement]``."""
    columns = []
    for phi_of_chains, rise_of_chains, product_of_chains in parts:
        phi = phi_of_chains[chains].mean()
        rise = rise_of_chains[:, chains].mean(axis=1)
        product = product_of_chains[:, chains].mean(axis=1)
        columns.append(rise * phi - product)
    return np.stack(columns, axis=1)


def _standardised(value: np.ndarray, centre_tokens: bool) -> np.ndarray:
    """Each refinement z-scored over tokens; each token centred over refinements on request."""
    deviation = value.std(axis=0)
    divisor = np.where(deviation == 0, 1.0, deviation)
    scored = (value - value.mean(axis=0)) / divisor
    if centre_tokens:
        scored = scored - scored.mean(axis=1, keepdims=True)
    return scored


def _components(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares ``[component]`` and loadings ``[component, refinement]``."""
    _, lengths, loading = np.linalg.svd(matrix, full_matrices=False)
    variance = lengths**2
    share = variance / variance.sum()
    sum_of_loadings = loading.sum(axis=1)
    sign = np.where(sum_of_loadings < 0, -1.0, 1.0)
    loading = loading * sign[:, None]
    return share[:count], loading[:count]


def _matched(
    components: tuple[np.ndarray, np.ndarray], reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Components in the order, and with the signs, of the loadings that they are most like."""
    share, loading = components
    products = loading @ reference.T
    order: list[int] = []
    signs = []
    for component in range(len(reference)):
        likeness = np.abs(products[:, component])
        likeness[order] = -1
        nearest = int(likeness.argmax())
        sign = np.sign(products[nearest, component])
        order.append(nearest)
        signs.append(sign)
    sign_of_component = np.array(signs)[:, None]
    return share[order], loading[order] * sign_of_component


def _jackknife(value: np.ndarray, without: Sequence[np.ndarray]) -> Mean:
    """A value with the error that leaving out each chain shows."""
    count = len(without)
    if count < 2:
        unknown = np.full(value.shape, np.nan)
        return Mean(value, unknown, unknown)
    variance = (count - 1) * np.stack(without).var(axis=0)
    dof = np.full(value.shape, count - 1.0)
    return Mean(value, np.sqrt(variance), dof)


def _check_count(doing: str, num_clusters: int, most: int) -> None:
    right = type(num_clusters) is int and 1 <= num_clusters <= most
    expected = f"an integer from 1 to {most}"
    must_be(doing, "num_clusters", num_clusters, right, expected)


def plot_matrix(structure: Structure, ax: Axes | None = None) -> Axes:
    """Draw the token × refinement matrix, tokens in the order of their first score.

    >>> ax = plot_matrix(structure(draws))
    """
    ax = new_axes(ax, width=4.5, height=4.0)
    first_score = structure.score[:, 0]
    matrix = structure.matrix[np.argsort(first_score)]
    limit = float(np.percentile(np.abs(matrix), 98)) or 1.0
    image = ax.imshow(
        matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    ax.figure.colorbar(image, ax=ax, label="susceptibility, z-score of each head")
    labels = structure.labels
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize="small")
    ax.set_ylabel("token, by its first score")
    return ax


def plot_components(
    structure: Structure, roles: Mapping[str, str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw each component's loadings by head, coloured by the heads' roles, with their errors.

    >>> ax = plot_components(structure(draws), {"1:6": "induction"})

    Args:
        structure: of :func:`structure`.
        roles: a role by head; others are grey.
        ax: where to draw; ``None``: a new figure.
    """
    roles = roles or {}
    num_components, count = structure.loading.value.shape
    num_bars = count * num_components
    ax = new_axes(ax, width=1.5 + 0.25 * num_bars)
    color_of_role: dict[str, str] = {}
    for role in roles.values():
        if role not in color_of_role:
            color_of_role[role] = color_of(len(color_of_role))
    colors = []
    for weights in structure.weights:
        if weights in roles:
            colors.append(color_of_role[roles[weights]])
        else:
            colors.append("0.6")
    ticks: list[float] = []
    words = []
    for component, share in enumerate(structure.share.value):
        # Two places are empty between the bars of components.
        x = np.arange(count) + component * (count + 2)
        ticks.append(float(x.mean()))
        words.append(f"component {component + 1}\n{100 * share:.1f} %")
        values = structure.loading.value[component]
        errors = np.nan_to_num(structure.loading.standard_error[component])
        ax.bar(x, values, yerr=errors, color=colors, width=0.8)
    for role, color in color_of_role.items():
        ax.bar([0], [0], color=color, label=role)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set_xticks(ticks, words)
    ax.set_ylabel("loading (± se over chains)")
    if color_of_role:
        ax.legend(frameon=False, fontsize="small")
    return ax
