"""Susceptibilities: how the loss of some weights answers when a token is weighed more or less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
    independent_draws,
    stacked,
    within_chains,
)
from rllc.statistics.uncertainty import Mean, mean_of_draws
from rllc.weights.refinement import DataLike, WeightsLike, product

_PROBES = "probes"

Phi = str | Callable[[Draws], np.ndarray] | None
"""What answers; see :meth:`Susceptibilities.of`."""


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
        loss: ``None`` is next-token cross entropy.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: ``None`` is ``rllc.Sampling()``.
        compute: how it is run.

    Raises:
        InputError: ``data`` or ``probes`` is missing; and as :func:`rllc.sample`.

    Reference: Baker, Wang, Hoogland, Murfet (2025), Structural inference: interpreting small
    language models with susceptibilities, arXiv 2504.18274.
    """
    if isinstance(model, Draws):
        raise InputError(
            "susceptibilities: got draws in place of a model; of draws that observed the probes, "
            "type rllc.Susceptibilities.of(draws, 'probes')."
        )
    if data is None or probes is None:
        raise InputError(
            "susceptibilities: expected the data to sample on and the rows to probe; type "
            "rllc.susceptibilities(model, data, probes, rllc.heads(model))."
        )
    data_sets = {probe.data_name: probe.data for probe in product(None, probes)}
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe={f"probes {name}": losses_on(rows) for name, rows in data_sets.items()},
    )
    names = {f"probes {name}": name for name in data_sets}
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
        far = None
        if reference is not None:
            ((rows, answer),) = _series(reference, list(names), phi)
            far = _Reference(rows, answer)
        answers = [_Answer(*both, far) for both in _series(draws, list(names), phi)]
        tokens = stacked([answer.of_tokens() for answer in answers])
        return cls(
            **tokens._asdict(),
            faults=faults_of_chains(draws),
            names=draws.names,
            settings=draws.settings,
            kind="susceptibility",
            axes=("row", "pos"),
            by_row=stacked([answer.of_rows() for answer in answers]),
            by_data=stacked([answer.of_data() for answer in answers]),
            on_all=stacked([answer.of_all() for answer in answers]),
            probes=tuple(names.values()),
            probe_of_row=tuple(answers[0].rows.data_set.tolist()),
        )

    def standardised(self) -> np.ndarray:
        """Token × refinement, for a decomposition: ``[token, refinement]``.

        Each refinement is z-scored over tokens, then each token centred over refinements. Tokens
        at which nothing is predicted are left out.
        """
        flat = self.value.reshape(len(self.value), -1).T
        flat = flat[np.isfinite(flat).all(axis=1)]
        scored = (flat - flat.mean(axis=0)) / flat.std(axis=0)
        return scored - scored.mean(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class _Probes:
    """The losses of all probes of one refinement."""

    losses: np.ndarray
    """``[row, pos, chain, draw]``; data sets of shorter rows have NaN behind them."""
    data_set: np.ndarray
    """``[row]``: the number of its data set."""
    relaxation: float | None
    shared: bool

    @classmethod
    def of(cls, data_sets: Sequence[FixedRows]) -> _Probes:
        longest = max(rows.losses.shape[1] for rows in data_sets)
        padded, numbers = [], []
        for number, rows in enumerate(data_sets):
            shape = rows.losses.shape
            blank = np.full((shape[0], longest - shape[1], *shape[2:]), np.nan)
            padded.append(np.concatenate([rows.losses, blank], axis=1))
            numbers.append(np.full(len(rows.losses), number))
        first = data_sets[0]
        losses = np.concatenate(padded)
        return cls(losses, np.concatenate(numbers), first.relaxation, first.shared)

    @property
    def mean(self) -> np.ndarray:
        """``[chain, draw]``."""
        return mean_of_finite(self.losses, axis=(0, 1))

    @property
    def of_rows(self) -> np.ndarray:
        """``[row, chain, draw]``."""
        return mean_of_finite(self.losses, axis=1)

    @property
    def of_data(self) -> np.ndarray:
        """``[data set, chain, draw]``."""
        means = []
        for number in range(self.data_set.max() + 1):
            chosen = self.losses[self.data_set == number]
            means.append(mean_of_finite(chosen, axis=(0, 1)))
        return np.stack(means)


@dataclass(frozen=True, eq=False)
class _Other:
    """What answers, and what tokens are compared with, ``[chain, draw]``."""

    phi: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False)
class _Reference:
    """Draws of all weights: of what they give the means of ℓ_z − L."""

    rows: _Probes
    other: _Other

    def lag(self, losses: np.ndarray) -> Mean:
        """The mean of some losses less L."""
        rise = losses - self.other.loss
        return mean_of_draws(rise, self.rows.relaxation, shared=self.rows.shared)


@dataclass(frozen=True, eq=False)
class _Answer:
    """One refinement: its losses, what answers, and the reference."""

    rows: _Probes
    other: _Other
    reference: _Reference | None

    def of_tokens(self) -> Covariance:
        """χ of every token, a row at a time: products of all tokens need not fit into memory."""
        far = self._far(lambda rows: rows.losses)
        each = []
        for number, losses in enumerate(self.rows.losses):
            of_row = None if far is None else Mean(*(numbers[number] for numbers in far))
            each.append(self._of(losses, of_row))
        return stacked(each)

    def of_rows(self) -> Covariance:
        """χ of each row's mean."""
        return self._of(self.rows.of_rows, self._far(lambda rows: rows.of_rows))

    def of_data(self) -> Covariance:
        """χ of each data set's mean."""
        return self._of(self.rows.of_data, self._far(lambda rows: rows.of_data))

    def of_all(self) -> Covariance:
        """χ of the mean of all tokens."""
        return self._of(self.rows.mean, self._far(lambda rows: rows.mean))

    def _far(self, losses: Callable[[_Probes], np.ndarray]) -> Mean | None:
        if self.reference is None:
            return None
        return self.reference.lag(losses(self.reference.rows))

    def _of(self, losses: np.ndarray, far: Mean | None) -> Covariance:
        relaxation, shared = self.rows.relaxation, self.rows.shared
        phi = self.other.phi
        rise = losses - self.other.loss
        n = independent_draws(phi, relaxation, shared=shared)
        terms = -deviations_product(phi, rise, n)
        within = -within_chains(phi, rise, relaxation)
        apart = agreement(phi, rise, relaxation)
        if far is None:
            return Covariance(*mean_of_draws(terms, relaxation, shared=shared), within, apart)
        # The product of two means is followed to first order in the deviation of each.
        lag = rise.mean(axis=(-2, -1)) - far.value
        terms = terms - phi * lag[..., None, None]
        moved = phi.mean() * (rise - rise.mean(axis=(-2, -1), keepdims=True))
        own = mean_of_draws(terms - moved, relaxation, shared=shared)
        of_reference = phi.mean() * far.standard_error
        error = np.hypot(own.standard_error, of_reference)
        return Covariance(own.value, error, own.dof, within - phi.mean() * lag, apart)


def _series(draws: Draws, probes: Sequence[str], phi: Phi) -> Iterator[tuple[_Probes, _Other]]:
    """Yield the losses of the probes and what they are held against, of each refinement."""
    asked_by = "Susceptibilities.of"
    if not probes:
        raise InputError(f"{asked_by}: expected the name of an observable, got none.")
    data_sets = [fixed_rows(draws, name, asked_by=asked_by) for name in probes]
    losses = None
    answers = None
    if isinstance(phi, str) and phi != "llc" and axes_of(draws, phi, asked_by=asked_by):
        losses = fixed_rows(draws, phi, asked_by=asked_by)
    elif phi is not None:
        answers = _answers(draws, phi)
    for i, rows in enumerate(zip(*data_sets, strict=True)):
        together = _Probes.of(rows)
        if losses is not None:
            mean = next(losses).mean
            yield together, _Other(mean, mean)
        elif answers is not None:
            values = answers[i, :, : draws.lengths[i]]
            yield together, _Other(values, together.mean)
        else:
            yield together, _Other(together.mean, together.mean)


def _answers(draws: Draws, phi: str | Callable[[Draws], np.ndarray]) -> np.ndarray:
    """φ at every draw, ``[refinement, chain, draw]``."""
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
