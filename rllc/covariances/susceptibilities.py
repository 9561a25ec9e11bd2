"""Susceptibilities: how the loss of some weights answers when a token is weighed more or less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.covariances.observed import (
    FixedRows,
    axes_of,
    faults_of_chains,
    fixed_rows,
    mean_of_finite,
)
from rllc.covariances.results import Covariances
from rllc.errors import InputError
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
from rllc.statistics.uncertainty import Mean
from rllc.weights.refinement import DataLike, WeightsLike, product

_PROBES = "probes"

Phi = str | Callable[[Draws], np.ndarray] | None
"""The quantity φ that answers; see :meth:`Susceptibilities.of`."""


@names_checked
def susceptibilities(
    model: nn.Module,
    data: DataLike | None = None,
    probes: DataLike | None = None,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> Susceptibilities:
    """Sample each refinement once, and give the susceptibility of its weights to each probe token.

    >>> import torch
    >>> model, rows = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> probes = {"a": rows[:5], "b": rows[5:8]}
    >>> susceptibilities(model, rows, probes, loss=square).by_data.value.shape
    (1, 2)

    χ_z = −Cov(L, ℓ_z − L) over draws v of the refined weights, ℓ_z being the loss of token z and L
    the mean of all probe tokens' losses. A positive one: where these weights do worse on the whole,
    they do so less on z. The original paper has nβ·χ. ``by_row`` and ``by_data`` are means over the
    tokens of a row and of a data set, with errors of their own. For another φ than L, for L on rows
    of its own, or for the form with a reference chain, sample yourself and see
    :meth:`Susceptibilities.of`.

    Args:
        model: see :func:`rllc.sample`; so for all arguments but ``probes``.
        data: what the chains are sampled on.
        probes: fixed rows, whose losses are taken at every draw without gradients; one data set, or
            several by name.
        weights: which weights move, such as ``rllc.heads(model)``.
        loss: as for :func:`rllc.estimate`; so for the three that follow.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: how much is sampled.
        compute: how it is run.

    Raises:
        InputError: ``data`` or ``probes`` is missing; and as :func:`rllc.sample`.

    Reference: Baker, Wang, Hoogland, Murfet (2025), Structural inference: interpreting small
    language models with susceptibilities, arXiv 2504.18274.
    """
    if isinstance(model, Draws):
        raise InputError(
            "susceptibilities: got draws in place of a model; of draws that observed the probes, "
            "type rllc.covariances.Susceptibilities.of(draws, 'probes')."
        )
    if data is None or probes is None:
        raise InputError(
            "susceptibilities: expected the data to sample on and the rows to probe; type "
            "rllc.susceptibilities(model, data, probes, rllc.heads(model))."
        )
    names = {}
    observe = {}
    for probe in product(None, probes):
        observable = f"probes {probe.data_name}"
        names[observable] = probe.data_name
        observe[observable] = losses_on(probe.data)
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
    return Susceptibilities.of(draws, names)


@dataclass(frozen=True, eq=False, repr=False)
class Susceptibilities(Covariances):
    """How each refinement answers to each probe token; :func:`susceptibilities` makes it.

    ``value`` and its error are ``[refinement, row, pos]``: χ_z, NaN where nothing is predicted. One
    position where the loss gives one number a row, or each row's mean was observed. See
    :class:`rllc.covariances.results.Covariances` for what is not listed.

    Args:
        by_row: ``[refinement, row]``: the mean of χ over each row's tokens, with its own error.
        by_data: ``[refinement, data set]``: the mean of χ over the tokens of each data set: of
            tokens of two data sets together it is the mean of both, weighed by their numbers.
        on_all: ``[refinement]``: the mean of χ over all probe tokens. It is 0 where φ is the
            probes' own mean loss.
        probes: ``[data set]``: names.
        probe_of_row: ``[row]``: which of them a row is of.
    """

    by_row: Covariance
    by_data: Covariance
    on_all: Covariance
    probes: tuple[str, ...]
    probe_of_row: tuple[int, ...]

    @classmethod
    def of(
        cls,
        draws: Draws,
        probes: str | Sequence[str] | dict[str, str] = _PROBES,
        *,
        phi: Phi = None,
        reference: Draws | None = None,
    ) -> Susceptibilities:
        """Make them of draws that observed the probes.

        Draws with ``observe={"code": rllc.losses_on(code), "pile": rllc.losses_on(pile)}`` give
        ``Susceptibilities.of(draws, "code", phi="pile")``: L is then the mean loss on "pile". With
        ``phi="llc"`` λ̂ answers: nβ·χ is its derivative by h where the chains' loss becomes
        L + h(ℓ_z − L).

        With a reference chain over all weights it is χ_z − E[φ](E[ℓ_z − L] − E_full[ℓ_z − L]), φ
        being measured from its value at w*: keep losses as differences, as ``losses_on`` does.

        Args:
            draws: with observables ``rllc.losses_on(rows)``.
            probes: the name of one, or the names of several; a dict gives names of their data sets.
            phi: what answers. ``None``: L, the probes' mean loss. ``"llc"``: λ̂. The name of an
                observable: losses on other rows, whose mean then is φ and L, or one number a draw,
                such as ``rllc.distance()``. A function: ``phi(draws)`` gives
                ``[refinement, chain, draw]``. Where φ is no losses, L is the probes' mean loss.
            reference: draws of all weights that observed the same.

        Raises:
            InputError: the draws did not observe these, ``phi`` gives another shape, or
                ``reference`` is not of one refinement.
        """
        if reference is not None and len(reference.names) != 1:
            raise InputError(
                f"Susceptibilities.of: expected draws of one refinement as `reference`, all "
                f"weights; got {len(reference.names)}: sample(model, data, rllc.everything(), …)."
            )
        if isinstance(probes, str):
            probes = [probes]
        names = probes if isinstance(probes, dict) else {name: name for name in probes}
        observables = list(names)
        responses = list(_responses(draws, observables, phi))
        if reference is not None:
            (of_reference,) = _responses(reference, observables, phi)
            responses = [replace(response, reference=of_reference) for response in responses]
        tokens = stacked([response.to_tokens() for response in responses])
        by_row = [response.to_means(lambda probes: probes.by_row) for response in responses]
        by_data = [response.to_means(lambda probes: probes.by_data) for response in responses]
        on_all = [response.to_means(lambda probes: probes.mean) for response in responses]
        return cls(
            **tokens._asdict(),
            faults=faults_of_chains(draws),
            names=draws.names,
            settings=draws.settings,
            kind="susceptibility",
            axes=("row", "pos"),
            by_row=stacked(by_row),
            by_data=stacked(by_data),
            on_all=stacked(on_all),
            probes=tuple(names.values()),
            probe_of_row=tuple(responses[0].probes.data_set.tolist()),
        )

    def standardised(self) -> np.ndarray:
        """Token × refinement, for a decomposition: ``[token, refinement]``.

        Each refinement is z-scored over tokens, then each token centred over refinements. Tokens
        at which nothing is predicted are left out.
        """
        by_token = self.value.reshape(len(self.value), -1).T
        predicted = np.isfinite(by_token).all(axis=1)
        values = by_token[predicted]
        scored = (values - values.mean(axis=0)) / values.std(axis=0)
        return scored - scored.mean(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class _Probes(FixedRows):
    """The losses of all probes of one refinement; data sets of shorter rows have NaN behind them.

    Args:
        data_set: ``[row]``: the number of its data set.
    """

    data_set: np.ndarray

    @classmethod
    def of(cls, data_sets: Sequence[FixedRows]) -> _Probes:
        longest = max(rows.losses.shape[1] for rows in data_sets)
        padded = []
        numbers = []
        for number, rows in enumerate(data_sets):
            num_rows, num_positions, *chains_and_draws = rows.losses.shape
            num_missing = longest - num_positions
            padding = np.full((num_rows, num_missing, *chains_and_draws), np.nan)
            padded.append(np.concatenate([rows.losses, padding], axis=1))
            numbers.append(np.full(num_rows, number))
        return cls(
            losses=np.concatenate(padded),
            relaxation=data_sets[0].relaxation,
            shared=data_sets[0].shared,
            data_set=np.concatenate(numbers),
        )

    @property
    def by_data(self) -> np.ndarray:
        """``[data set, chain, draw]``: each data set's mean loss."""
        means = []
        for number in range(self.data_set.max() + 1):
            losses = self.losses[self.data_set == number]
            means.append(mean_of_finite(losses, axis=(0, 1)))
        return np.stack(means)


@dataclass(frozen=True, eq=False)
class _Response:
    """One refinement: its probes' losses, and what answers when they are weighed more.

    Args:
        probes: the losses ℓ_z.
        phi: ``[chain, draw]``: what answers.
        loss: ``[chain, draw]``: L, what tokens are compared with.
        reference: the same of draws of all weights.
    """

    probes: _Probes
    phi: np.ndarray
    loss: np.ndarray
    reference: _Response | None = None

    def to_tokens(self) -> Covariance:
        """χ of every token, row by row because products of all tokens may not fit in memory."""
        mean_in_reference = self._mean_in_reference(lambda probes: probes.losses)
        of_rows = []
        for row, losses in enumerate(self.probes.losses):
            mean_of_row = None
            if mean_in_reference is not None:
                mean_of_row = Mean(*(numbers[row] for numbers in mean_in_reference))
            of_rows.append(self._covariance(losses, mean_of_row))
        return stacked(of_rows)

    def to_means(self, mean: Callable[[_Probes], np.ndarray]) -> Covariance:
        """χ of means over several tokens; ``mean`` gives them ``[..., chain, draw]``."""
        return self._covariance(mean(self.probes), self._mean_in_reference(mean))

    def _mean_in_reference(self, losses: Callable[[_Probes], np.ndarray]) -> Mean | None:
        """E_full[ℓ_z − L]; ``None`` without a reference."""
        if self.reference is None:
            return None
        rise = losses(self.reference.probes) - self.reference.loss
        return self.reference.probes.mean_of_draws(rise)

    def _covariance(self, losses: np.ndarray, mean_in_reference: Mean | None) -> Covariance:
        relaxation = self.probes.relaxation
        phi = self.phi
        rise = losses - self.loss
        n = self.probes.independent_draws(phi)
        terms = -deviations_product(phi, rise, n)
        within = -within_chains(phi, rise, relaxation)
        p_value = agreement(phi, rise, relaxation)
        if mean_in_reference is None:
            return Covariance(*self.probes.mean_of_draws(terms), within, p_value)
        # χ − E[φ]·lag, where lag = E[ℓ_z − L] − E_full[ℓ_z − L].
        lag = rise.mean(axis=(-2, -1)) - mean_in_reference.value
        terms = terms - phi * lag[..., None, None]
        # The error of the product of two means is that of the sum of its first-order deviations.
        deviation = rise - rise.mean(axis=(-2, -1), keepdims=True)
        mean = self.probes.mean_of_draws(terms - phi.mean() * deviation)
        error_of_reference = phi.mean() * mean_in_reference.standard_error
        error = np.hypot(mean.standard_error, error_of_reference)
        return Covariance(mean.value, error, mean.dof, within - phi.mean() * lag, p_value)


def _responses(draws: Draws, probes: Sequence[str], phi: Phi) -> Iterator[_Response]:
    """Yield φ and the probes' losses of each refinement."""
    asked_by = "Susceptibilities.of"
    if not probes:
        raise InputError(f"{asked_by}: expected the name of an observable, got none.")
    data_sets = [fixed_rows(draws, name, asked_by=asked_by) for name in probes]
    other_losses = None
    numbers = None
    if isinstance(phi, str) and phi != "llc" and axes_of(draws, phi, asked_by=asked_by):
        other_losses = fixed_rows(draws, phi, asked_by=asked_by)
    elif phi is not None:
        numbers = _one_number_a_draw(draws, phi)
    for i, rows in enumerate(zip(*data_sets, strict=True)):
        all_probes = _Probes.of(rows)
        if other_losses is not None:
            loss = next(other_losses).mean
        else:
            loss = all_probes.mean
        values_of_phi = loss
        if numbers is not None:
            values_of_phi = numbers[i, :, : draws.lengths[i]]
        yield _Response(all_probes, values_of_phi, loss)


def _one_number_a_draw(draws: Draws, phi: str | Callable[[Draws], np.ndarray]) -> np.ndarray:
    """φ ``[refinement, chain, draw]``."""
    if phi == "llc":
        values = draws.llc
    elif isinstance(phi, str):
        values = draws.observed[phi]
    else:
        values = np.asarray(phi(draws))
    if values.shape != draws.loss.shape:
        raise InputError(
            f"Susceptibilities.of: `phi` must give one number a draw, "
            f"[refinement, chain, draw] = {list(draws.loss.shape)}; got {list(values.shape)}."
        )
    return values.astype(np.float64)
