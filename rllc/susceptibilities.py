"""Susceptibilities: how the loss of some weights answers when a token is weighed more or less."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from rllc.observed import FixedRows, axes_of, faults_of_chains, fixed_rows
from rllc.refinement import DataLike, WeightsLike
from rllc.sample import sample
from rllc.samplers import Sampler
from rllc.sampling import Compute, Sampling
from rllc.tables import Table, label, not_ok
from rllc.uncertainty import Mean, mean_of_draws

if TYPE_CHECKING:
    import pandas as pd

_PROBES = "probes"


@names_checked
def susceptibilities(
    model: nn.Module,
    data: DataLike,
    probes: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> Susceptibilities:
    """Sample each refinement once, and give the susceptibility of its weights to each probe token.

    >>> import rllc, torch
    >>> model, rows = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> square = lambda module, x: module(x)[:, 0] ** 2
    >>> susceptibilities(model, rows, rows, loss=square).value.shape
    (1, 40, 1)

    χ_z = −Cov(L, ℓ_z − L) over draws v of the refined weights, ℓ_z being the loss of token z and L
    the mean of all probe tokens' losses. A positive one: where these weights do worse on the whole,
    they do so less on z. The original paper has nβ·χ. For another φ than L, for L on rows of its
    own, or for the form with a reference chain, sample yourself and see
    :meth:`Susceptibilities.of`.

    Args:
        model: see :func:`rllc.sample`; so for all arguments but ``probes``.
        data: what the chains are sampled on.
        probes: one data set of fixed rows, whose losses are taken at every draw without gradients.
        weights: which weights move, such as ``rllc.heads(model)``.
        loss: ``None`` is next-token cross entropy.
        sampler: ``None`` is ``rllc.sgld()``.
        sampling: ``None`` is ``rllc.Sampling()``.
        compute: how it is run.

    Raises:
        InputError: as :func:`rllc.sample`; ``probes`` is not one data set.

    Reference: Baker, Wang, Hoogland, Murfet (2025), Structural inference: interpreting small
    language models with susceptibilities, arXiv 2504.18274.
    """
    draws = sample(
        model,
        data,
        weights,
        loss=loss,
        sampler=sampler,
        sampling=sampling,
        compute=compute,
        observe={_PROBES: losses_on(probes)},
    )
    return Susceptibilities.of(draws)


@dataclass(frozen=True, eq=False)
class Susceptibilities:
    """How each refinement answers to each probe token; :func:`susceptibilities` makes it.

    Args:
        value: ``[refinement, row, pos]``: χ_z, in squared nats; NaN where nothing is predicted. One
            position where the loss gives one number a row.
        standard_error: same shape.
        dof: same shape: degrees of freedom of the error.
        on_all: ``[refinement]``: the mean of χ over all probe tokens, with its own error. It is 0
            where φ is the probes' own mean loss.
        faults: ``[refinement]``: what is wrong with its chains.
        names: the (weights, data) of each refinement.
        settings: of sampler and sampling.
    """

    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray
    on_all: Mean
    faults: tuple[tuple[Fault, ...], ...]
    names: Names
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        draws: Draws,
        probes: str = _PROBES,
        *,
        phi: str | None = None,
        reference: Draws | None = None,
    ) -> Susceptibilities:
        """Make them of draws that observed the probes.

        Draws with ``observe={"code": rllc.losses_on(code), "pile": rllc.losses_on(pile)}`` give
        ``Susceptibilities.of(draws, "code", phi="pile")``: L is then the mean loss on "pile".

        With a reference chain over all weights it is χ_z − E[φ](E[ℓ_z − L] − E_full[ℓ_z − L]), φ
        being measured from its value at w*: keep losses as differences, as ``losses_on`` does.

        Args:
            draws: with an observable ``rllc.losses_on(rows)``.
            probes: its name.
            phi: name of the observable that answers: losses on other rows, whose mean then is φ
                and L, or one number a draw, such as ``rllc.distance()`` (then L is the probes'
                mean loss). ``None``: the probes' mean loss.
            reference: draws of all weights that observed the same.

        Raises:
            InputError: the draws did not observe these, or ``reference`` is not of one refinement.
        """
        if reference is not None and len(reference.names) != 1:
            raise InputError(
                f"Susceptibilities.of: expected draws of one refinement as `reference`, all "
                f"weights; got {len(reference.names)}: sample(model, data, rllc.everything(), …)."
            )
        far = None if reference is None else _Reference.of(reference, probes, phi)
        tokens: list[Mean] = []
        means: list[Mean] = []
        for rows, other in _series(draws, probes, phi):
            answer = _Answer(rows, other, far)
            tokens.append(answer.of_tokens())
            means.append(answer.of_mean())
        return cls(
            value=np.stack([mean.value for mean in tokens]),
            standard_error=np.stack([mean.standard_error for mean in tokens]),
            dof=np.stack([mean.dof for mean in tokens]),
            on_all=Mean(*(np.array(numbers) for numbers in zip(*means, strict=True))),
            faults=faults_of_chains(draws),
            names=draws.names,
            settings=draws.settings,
        )

    @property
    def status(self) -> tuple[str, ...]:
        """``[refinement]``: ``"ok"``, or what is wrong with its chains."""
        return tuple(status_of(wrong) for wrong in self.faults)

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom of every token."""
        return Mean(self.value, self.standard_error, self.dof)

    def __getitem__(self, weights: str | tuple[str, str]) -> Mean:
        """χ of one refinement's tokens, ``[row, pos]``.

        Raises:
            InputError: there is no such refinement.
        """
        key = (weights,) if isinstance(weights, str) else weights
        i = self.names.index(*key, of="susceptibilities")
        return Mean(self.value[i], self.standard_error[i], self.dof[i])

    def standardised(self) -> np.ndarray:
        """Token × refinement, for a decomposition: ``[token, refinement]``.

        Each refinement is z-scored over tokens, then each token centred over refinements. Tokens
        at which nothing is predicted are left out.
        """
        flat = self.value.reshape(len(self.value), -1).T
        flat = flat[np.isfinite(flat).all(axis=1)]
        scored = (flat - flat.mean(axis=0)) / flat.std(axis=0)
        return scored - scored.mean(axis=1, keepdims=True)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token: ``weights, data, row, pos, susceptibility, standard_error, dof``."""
        import pandas as pd

        numbers = np.indices(self.value.shape).reshape(3, -1)
        columns: dict[str, Any] = {
            "weights": np.array(self.names.weights, dtype=object)[numbers[0]],
            "data": np.array(self.names.data, dtype=object)[numbers[0]],
        }
        columns |= {"row": numbers[1], "pos": numbers[2]}
        columns["susceptibility"] = self.value.ravel()
        columns["standard_error"] = self.standard_error.ravel()
        columns["dof"] = self.dof.ravel()
        return pd.DataFrame(columns)

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with dimensions ``refinement, row, pos``.

        Raises:
            InputError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise InputError(
                "Susceptibilities.to_xarray needs xarray; type: pip install xarray"
            ) from error
        axes = ("refinement", "row", "pos")
        labels = [label(self.names, i) for i in range(len(self.names))]
        arrays = {"susceptibility": self.value, "standard_error": self.standard_error}
        return xarray.Dataset(
            {name: (axes, array) for name, array in arrays.items()},
            coords={"refinement": labels},
        )

    def __repr__(self) -> str:
        return str(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()

    @property
    def _table(self) -> Table:
        rows = [("weights", "lowest χ", "highest χ", "median ± se", "status")]
        for i, values in enumerate(self.value):
            numbers = (
                f"{np.nanmin(values):.3g}",
                f"{np.nanmax(values):.3g}",
                f"{np.nanmedian(self.standard_error[i]):.2g}",
            )
            rows.append((label(self.names, i), *numbers, self.status[i]))
        of = " × ".join(map(str, self.value.shape[1:]))
        title = f"Susceptibilities of {len(self.names)} refinements to {of} tokens"
        return Table(title, rows, left=(0, 4), wrong=not_ok(self.status, column=4))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {"value": self.value, "standard_error": self.standard_error, "dof": self.dof}
        arrays |= {f"on_all.{name}": x for name, x in self.on_all._asdict().items()}
        header = {
            "kind": "rllc.Susceptibilities",
            "weights": self.names.weights,
            "data": self.names.data,
            "faults": [faults_to_json(wrong) for wrong in self.faults],
            "settings": dict(self.settings),
        }
        return save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Susceptibilities:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: there is no such file, it is damaged, or it holds something else.
        """
        arrays, header = load_arrays(path, kind="rllc.Susceptibilities")
        with reading(path):
            return cls(
                value=arrays["value"],
                standard_error=arrays["standard_error"],
                dof=arrays["dof"],
                on_all=Mean(*(arrays[f"on_all.{name}"] for name in Mean._fields)),
                faults=tuple(faults_from_json(wrong) for wrong in header["faults"]),
                names=Names(tuple(header["weights"]), tuple(header["data"])),
                settings=header["settings"],
            )


@dataclass(frozen=True, eq=False)
class _Other:
    """What answers, and what tokens are compared with, ``[chain, draw]``."""

    phi: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False)
class _Reference:
    """Means of ℓ_z − L over draws of all weights, and the variance of each mean."""

    of_tokens: Mean
    of_mean: Mean

    @classmethod
    def of(cls, draws: Draws, probes: str, phi: str | None) -> _Reference:
        (series,) = _series(draws, probes, phi)
        rows, other = series
        rise = rows.losses - other.loss
        mean_rise = rows.mean - other.loss
        of_tokens = mean_of_draws(rise, rows.relaxation, shared=rows.shared)
        of_mean = mean_of_draws(mean_rise, rows.relaxation, shared=rows.shared)
        return cls(of_tokens, of_mean)


@dataclass(frozen=True, eq=False)
class _Answer:
    """One refinement: its losses, what answers, and the reference."""

    rows: FixedRows
    other: _Other
    reference: _Reference | None

    def of_tokens(self) -> Mean:
        """χ of every token, a row at a time: products of all tokens need not fit into memory."""
        each = []
        for number, losses in enumerate(self.rows.losses):
            far = None if self.reference is None else _take(self.reference.of_tokens, number)
            each.append(self._of(losses, far))
        return Mean(*(np.stack(numbers) for numbers in zip(*each, strict=True)))

    def of_mean(self) -> Mean:
        """χ of the mean of all tokens."""
        far = None if self.reference is None else self.reference.of_mean
        return self._of(self.rows.mean, far)

    def _of(self, losses: np.ndarray, far: Mean | None) -> Mean:
        relaxation, shared = self.rows.relaxation, self.rows.shared
        phi = self.other.phi
        rise = losses - self.other.loss
        n = independent_draws(phi, relaxation, shared=shared)
        terms = -deviations_product(phi, rise, n)
        if far is None:
            return mean_of_draws(terms, relaxation, shared=shared)
        # The product of two means is followed to first order in the deviation of each.
        lag = rise.mean(axis=(-2, -1)) - far.value
        terms = terms - phi * lag[..., None, None]
        moved = phi.mean() * (rise - rise.mean(axis=(-2, -1), keepdims=True))
        own = mean_of_draws(terms - moved, relaxation, shared=shared)
        of_reference = phi.mean() * far.standard_error
        error = np.hypot(own.standard_error, of_reference)
        return Mean(own.value, error, own.dof)


def _take(mean: Mean, index: int) -> Mean:
    return Mean(*(numbers[index] for numbers in mean))


def _series(draws: Draws, probes: str, phi: str | None) -> Iterator[tuple[FixedRows, _Other]]:
    """Yield the losses of the probes and what they are held against, of each refinement."""
    asked_by = "Susceptibilities.of"
    of_probes = fixed_rows(draws, probes, asked_by=asked_by)
    if phi is None:
        for rows in of_probes:
            yield rows, _Other(rows.mean, rows.mean)
    elif axes_of(draws, phi, asked_by=asked_by):
        of_phi = fixed_rows(draws, phi, asked_by=asked_by)
        for rows, others in zip(of_probes, of_phi, strict=True):
            yield rows, _Other(others.mean, others.mean)
    else:
        for i, rows in enumerate(of_probes):
            values = draws.observed[phi][i, :, : draws.lengths[i]].astype(np.float64)
            yield rows, _Other(values, rows.mean)
