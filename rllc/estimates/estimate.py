"""From draws to numbers: λ̂ with its standard error, R-hat, effective sample size and faults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rllc.arguments import names_checked
from rllc.errors import InputError, must_be, nearest
from rllc.estimates.diagnose import DIAGNOSTICS, numbers_of, parts_of_error
from rllc.estimates.faults import (
    FINAL,
    Fault,
    divergence,
    faults_from_json,
    faults_of,
    faults_to_json,
    status_of,
)
from rllc.estimates.table import table_of
from rllc.limits import Limits
from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler
from rllc.sampling.checks import check_how
from rllc.sampling.draws import Draws, check_settings
from rllc.sampling.sample import sample
from rllc.sampling.settings import Compute, Sampling
from rllc.statistics.uncertainty import Mean, contrast
from rllc.storage.files import check_shapes, load_arrays, reading, save_arrays
from rllc.storage.same import same
from rllc.tables import with_error
from rllc.weights.names import Names, OfRefinements, is_pattern
from rllc.weights.refinement import DataLike, WeightsLike

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

ARRAYS = ("value", "standard_error", "dof", "rhat", "ess", "per_chain")
"""The arrays of an :class:`Estimate`, each with ``refinement`` as its first axis."""


Key = str | tuple[str, str]
"""The name of a refinement: its weights, or (weights, data) where there are several data sets."""


@dataclass(frozen=True)
class LLC:
    """One refined local learning coefficient, and how far to trust it.

    >>> LLC("1:6", "code", 4.2, 0.1, 1.01, 300.0, (4.1, 4.3))
    LLC(1:6 on code: 4.20 ± 0.10)
    """

    weights: str
    data: str
    value: float
    standard_error: float
    rhat: float
    ess: float
    per_chain: tuple[float, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def status(self) -> str:
        """``"ok"``, or what is wrong and what to change."""
        return status_of(self.faults)

    def __repr__(self) -> str:
        note = f", {self.status}" if self.faults else ""
        number = with_error(self.value, self.standard_error)
        return f"LLC({self.weights} on {self.data}: {number}{note})"


@dataclass(frozen=True, eq=False)
class Estimate(OfRefinements):
    """λ̂ of each refinement.

    ``estimate["1:6", "code"]`` is an :class:`LLC`, and so is ``estimate["1:6"]`` where there is one
    data set. Where there are several, it is an Estimate of all of them, as are
    ``estimate["1:*"]``, :meth:`select` and :meth:`sort`. Iterating gives an LLC for each row.

    Args:
        value: ``[refinement]``: λ̂ = nβ · mean(loss − baseline), no unit. NaN when a chain
            diverged. Negative ones are kept.
        standard_error: ``[refinement]``: of the mean over chains and draws, from what chains share
            through their minibatches and from their autocorrelation
            (:func:`rllc.statistics.uncertainty.mean_of_draws`). It knows of noise, not of bias.
        dof: ``[refinement]``: degrees of freedom of that error; :meth:`interval` uses them.
        rhat: ``[refinement]``: rank-normalised split R-hat; near 1 when the chains, and their
            halves, agree.
        ess: ``[refinement]``: how many independent draws the mean would be worth if the chains were
            independent; ``standard_error`` also counts what they share.
        per_chain: ``[refinement, chain]``: each chain's own λ̂.
        faults: ``[refinement]``: what is wrong with each, the severest first.
        names: the (weights, data) of each refinement.
        settings: of sampler and sampling.
        diagnostics: what the faults are judged from, by name, each ``[refinement]``, NaN where not
            known; see :data:`rllc.estimates.diagnose.DIAGNOSTICS`.
        llc: ``[refinement, chain, draw]``: each draw's contribution, for :meth:`difference` and
            :meth:`contrast`; ``None`` where draws were not kept.
    """

    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    per_chain: np.ndarray
    faults: tuple[tuple[Fault, ...], ...]
    names: Names
    settings: Mapping[str, Any]
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict)
    llc: np.ndarray | None = None

    @classmethod
    def of(cls, draws: Draws, limits: Limits | None = None) -> Estimate:
        """Sum up draws.

        A refinement with a diverged chain is NaN, with a fault that names the chain and the step.

        Args:
            draws: what :func:`rllc.sample` gave.
            limits: from where on something is a fault; ``None`` is ``Limits()``.
        """
        must_be("Estimate.of", "draws", draws, isinstance(draws, Draws), "what rllc.sample gave")
        first_chain = draws.settings.get("first_chain", 0)
        estimate = cls(
            **numbers_of(draws),
            faults=tuple(divergence(steps, first_chain) for steps in draws.diverged),
            names=Names(draws.weights, draws.data),
            settings=_of_all_steps(draws.settings),
        )
        return estimate.judge(limits)

    @property
    def status(self) -> tuple[str, ...]:
        """``[refinement]``: ``"ok"``, or what is wrong and what to change; the faults as text."""
        return tuple(status_of(wrong) for wrong in self.faults)

    @cached_property
    def error_parts(self) -> dict[str, np.ndarray]:
        """Known parts of λ̂'s relative error: :func:`rllc.estimates.diagnose.parts_of_error`."""
        return parts_of_error(self.value, self.standard_error, self._diagnostics, self.settings)

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom, ``[refinement]``."""
        return Mean(self.value, self.standard_error, self.dof)

    @property
    def corrected(self) -> Mean:
        """λ̂ minus what the step size and the minibatches' heat add, ``[refinement]``.

        NaN where the sampler's law does not tell, or nothing was probed. Its degrees of freedom are
        taken to be those of λ̂, which has by far the larger error.
        """
        numbers = self._diagnostics
        return Mean(numbers["corrected"], numbers["corrected_se"], self.dof)

    @property
    def elasticity(self) -> Mean:
        """dλ̂/d log nβ ``[refinement]``: λ̂ minus the variance of its draws, without minibatches'.

        Doubling nβ changes λ̂ by log 2 times that, to first order. It is λ̂ itself where the prior
        alone gives λ̂, and 0 where λ̂ has reached a plateau. Exact as ε → 0. NaN where the variance
        that minibatches add is not known. The errors of both parts are added as if they were
        independent. They rise together, so the error is rather too large.
        """
        numbers = self._diagnostics
        error = np.hypot(self.standard_error, numbers["from_variance_se"])
        return Mean(self.value - numbers["from_variance"], error, self.dof)

    def interval(self, level: float = 0.95, simultaneous: bool = False) -> np.ndarray:
        """Return confidence intervals of λ̂ by Student's distribution, ``[refinement, 2]``.

        Args:
            level: of confidence.
            simultaneous: whether all of them shall hold together with that confidence, as for a
                figure of many heads.
        """
        return self.mean.interval(level, simultaneous)

    def difference(self, of: Key, minus: Key) -> Mean:
        """Return the difference of two refinements, paired draw by draw.

        What both share, minibatches and noise, cancels and is not counted as error. Two quoted
        errors added in squares are 1.6 to 2 times too large.

        >>> import rllc, torch
        >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
        >>> weights = [rllc.parameters("weight"), rllc.parameters("bias")]
        >>> est = estimate(model, {"x": data}, weights, loss=lambda m, x: m(x)[:, 0] ** 2)
        >>> bool(est.difference("weight", "bias").standard_error > 0)
        True

        Args:
            of: as in ``estimate[of]``: a name, or (weights, data).
            minus: alike.

        Raises:
            InputError: there is no such refinement, or draws were not kept.
        """
        return self.contrast({of: 1.0, minus: -1.0})

    def contrast(self, weights: Mapping[Key, float]) -> Mean:
        """Return a weighted sum of refinements, paired draw by draw.

        ``estimate.contrast({("1:6", "code"): 1, ("1:6", "prose"): -1})`` is code minus prose.

        Args:
            weights: by the key of a refinement.

        Raises:
            InputError: there is no such refinement, or draws were not kept.
        """
        if self.llc is None:
            raise InputError(
                "estimate.contrast: this estimate has no draws, as one of a trajectory has not; "
                "use rllc.Sweep.open(store).at(step) or rllc.estimate(...)."
            )
        factors = np.zeros(len(self))
        for key, weight in weights.items():
            factors[self._index(key)] += weight
        chosen = np.flatnonzero(factors)
        # Refinements that stopped early have NaN behind their draws.
        is_drawn = np.isfinite(self.llc[chosen]).all(axis=(0, 1))
        num_draws = max(int(is_drawn.sum()), 1)
        drawn = self.llc[chosen, :, :num_draws]
        return contrast(drawn, factors[chosen], self.settings.get("relaxation"))

    def judge(self, limits: Limits | None = None) -> Estimate:
        """Return this estimate with the faults that these limits give.

        Chains that diverged stay a fault, whatever the limits are.

        Args:
            limits: from where on something is a fault; ``None`` is ``Limits()``.
        """
        check_how(None, limits)
        limits = limits or Limits()
        judged = []
        for i, wrong in enumerate(self.faults):
            undecidable = any(fault.kind in FINAL for fault in wrong)
            judged.append(wrong if undecidable else self._judge(i, limits))
        return replace(self, faults=tuple(judged))

    def _judge(self, i: int, limits: Limits) -> tuple[Fault, ...]:
        arrays = {name: getattr(self, name) for name in ARRAYS if name != "per_chain"}
        arrays |= self._diagnostics
        arrays["imprecision"] = self._imprecision
        for name, part in self.error_parts.items():
            arrays[f"{name}_part"] = part
        row = {name: float(array[i]) for name, array in arrays.items()}
        return faults_of(row, self.settings, limits)

    @cached_property
    def _imprecision(self) -> np.ndarray:
        return self.mean.imprecision()

    @cached_property
    def _diagnostics(self) -> dict[str, np.ndarray]:
        """All diagnostics, NaN where one is missing."""
        unknown = np.full(len(self), np.nan)
        return dict.fromkeys(DIAGNOSTICS, unknown) | dict(self.diagnostics)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[LLC]:
        return (self._llc(i) for i in range(len(self)))

    def __getitem__(self, key: Key) -> Any:
        """Return the :class:`LLC` that a key names, or an Estimate where it names several.

        Whether it is one or several is told by the key and the names alone: a pattern with ``*``
        or ``?`` always gives an Estimate.
        """
        if isinstance(key, tuple) and len(key) == 2:
            weights, data = key
        else:
            weights, data = key, None
        texts = isinstance(weights, str) and isinstance(data, str | None)
        if texts and (is_pattern(weights) or is_pattern(data or "")):
            return self.select(weights, data)
        if texts and data is None and len(self.names.select(weights)) > 1:
            return self.select(weights)
        return self._llc(self._index(key))

    def select(
        self,
        weights: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        *,
        layer: int | None = None,
        ok: bool | None = None,
    ) -> Estimate:
        """Return the rows that fit all that is asked for, in their order.

        ``estimate.select(layer=1, data="code", ok=True)`` are the heads of layer 1 on code that
        nothing is wrong with.

        Args:
            weights: a name, a pattern such as ``"1:*"``, or a list of these; ``None`` is any.
            data: alike.
            layer: heads of this layer only.
            ok: ``True``: only what has no fault; ``False``: only what has one.

        Raises:
            InputError: there are no such weights, data or layer. An estimate without rows is given
                only where ``ok`` leaves none.
        """
        rows = self.names.matching(weights, data, layer)
        if ok is not None:
            must_be("estimate.select", "ok", ok, isinstance(ok, bool), "True, False or left out")
            rows = [row for row in rows if (not self.faults[row]) == ok]
        return self.take(rows)

    def sort(self, by: str = "llc", *, descending: bool = False) -> Estimate:
        """Return the rows in the order of one of their numbers; what is not known comes last.

        Args:
            by: a column of ``to_dataframe(diagnostics=True)``: ``"llc"``, ``"standard_error"``,
                ``"rhat"``, ``"ess"``, ``"weights"``, ``"data"``, ``"status"``, or a diagnostic.
            descending: whether the largest comes first.

        Raises:
            InputError: there is no such column.
        """
        columns = self._columns(diagnostics=True)
        if by not in columns:
            raise InputError(f"estimate.sort({by!r}): no such column; {nearest(by, columns)}")
        values = columns[by]
        rows = range(len(self))
        # NaN is no equal of itself.
        sortable = [i for i in rows if values[i] == values[i]]
        unknown = [i for i in rows if values[i] != values[i]]
        sortable.sort(key=lambda i: values[i], reverse=descending)
        return self.take([*sortable, *unknown])

    def take(self, rows: Iterable[int]) -> Estimate:
        """Return some rows, by their number, in the order given."""
        chosen = list(rows)
        index = np.array(chosen, dtype=int)
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in ARRAYS},
            faults=tuple(self.faults[row] for row in chosen),
            names=self.names.take(chosen),
            diagnostics={name: array[index] for name, array in self.diagnostics.items()},
            llc=None if self.llc is None else self.llc[index],
        )

    def _index(self, key: Key) -> int:
        if isinstance(key, str):
            return self.names.index(key)
        if isinstance(key, tuple) and len(key) == 2:
            return self.names.index(*key)
        raise InputError(
            f"estimate[{key!r}]: expected a name, or (weights, data), "
            f"such as estimate['1:6', 'code']; rows by number are estimate.take([0, 1])."
        )

    def _llc(self, i: int) -> LLC:
        return LLC(
            self.weights[i],
            self.data[i],
            float(self.value[i]),
            float(self.standard_error[i]),
            float(self.rhat[i]),
            float(self.ess[i]),
            tuple(float(value) for value in self.per_chain[i]),
            self.faults[i],
        )

    def _columns(self, *, diagnostics: bool) -> dict[str, Any]:
        """The columns of a table, by name."""
        columns = {
            "weights": self.weights,
            "data": self.data,
            "llc": self.value,
            "standard_error": self.standard_error,
            "rhat": self.rhat,
            "ess": self.ess,
            "status": self.status,
        }
        return columns | dict(self.diagnostics) if diagnostics else columns

    def to_dataframe(self, *, diagnostics: bool = False) -> pd.DataFrame:
        """Return a table with one row a refinement.

        Its columns are ``weights, data, llc, standard_error, rhat, ess, status``.

        Args:
            diagnostics: whether all diagnostics come, too; see
                :data:`rllc.estimates.diagnose.DIAGNOSTICS`.
        """
        import pandas as pd

        return pd.DataFrame(self._columns(diagnostics=diagnostics))

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Return numbers by flat names, as loggers take them.

        ``{"1:6/code/llc": 4.23, "1:6/code/se": 0.12, "1:6/code/rhat": …, "1:6/code/ess": …,
        "1:6/code/ok": 1.0}``, and so on for each refinement; ``ok`` is 1 where nothing is wrong.

        Args:
            prefix: comes before each name, such as ``"rllc/"``.
        """
        numbers: dict[str, float] = {}
        for llc in self:
            name = f"{prefix}{llc.weights}/{llc.data}"
            numbers[f"{name}/llc"] = llc.value
            numbers[f"{name}/se"] = llc.standard_error
            numbers[f"{name}/rhat"] = llc.rhat
            numbers[f"{name}/ess"] = llc.ess
            numbers[f"{name}/ok"] = float(not llc.faults)
        return numbers

    def to_xarray(self) -> xr.Dataset:
        """Everything with named axes ``refinement, chain, draw``. Needs ``xarray``.

        Names are coordinates. To make an axis of each, type
        ``.set_index(refinement=["weights", "data"]).unstack("refinement")``.

        Raises:
            InputError: xarray is not installed.
        """
        xr = import_xarray("estimate.to_xarray()")
        axis = "refinement"
        arrays: dict[str, Any] = {"llc": (axis, self.value)}
        for name in ("standard_error", "dof", "rhat", "ess"):
            arrays[name] = (axis, getattr(self, name))
        for name, array in self.diagnostics.items():
            arrays[name] = (axis, array)
        arrays["per_chain"] = ((axis, "chain"), self.per_chain)
        arrays["status"] = (axis, np.array(self.status, dtype=object))
        if self.llc is not None:
            arrays["draws"] = ((axis, "chain", "draw"), self.llc)
        coordinates = {"weights": (axis, list(self.weights)), "data": (axis, list(self.data))}
        settings = json.dumps(dict(self.settings))
        return xr.Dataset(arrays, coordinates, {"settings": settings})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Estimate) and same(self, other)

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return str(table_of(self))

    def _repr_html_(self) -> str:
        return table_of(self).html()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays, header = self.pack()
        return save_arrays(path, arrays, {"kind": "rllc.Estimate", **header})

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return its arrays, and the rest as JSON can hold it."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"diagnostics.{name}": array for name, array in self.diagnostics.items()}
        if self.llc is not None:
            arrays["llc"] = self.llc
        header = {
            "weights": self.weights,
            "data": self.data,
            "faults": [faults_to_json(wrong) for wrong in self.faults],
            "settings": dict(self.settings),
        }
        return arrays, header

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Estimate:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: there is no such file, it is damaged, or it holds something else.
        """
        arrays, header = load_arrays(path, kind="rllc.Estimate")
        with reading(path):
            return cls.unpack(arrays, header)

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Estimate:
        """Return the estimate that :meth:`pack` took apart."""
        diagnosed = {
            name.removeprefix("diagnostics."): array
            for name, array in arrays.items()
            if name.startswith("diagnostics.")
        }
        names = Names(tuple(header["weights"]), tuple(header["data"]))
        axes = {name: 2 if name == "per_chain" else 1 for name in ARRAYS}
        check_shapes(arrays, axes, len(names))
        check_shapes(diagnosed, dict.fromkeys(diagnosed, 1), len(names))
        if "llc" in arrays:
            check_shapes(arrays, {"llc": 3}, len(names))
        check_settings(header["settings"])
        faults = tuple(faults_from_json(wrong) for wrong in header["faults"])
        if len(faults) != len(names):
            raise ValueError(f"faults are of {len(faults)} refinements, expected {len(names)}")
        return cls(
            **{name: arrays[name] for name in ARRAYS},
            faults=faults,
            names=names,
            settings=dict(header["settings"]),
            diagnostics=diagnosed,
            llc=arrays.get("llc"),
        )


def import_xarray(doing: str) -> Any:
    """Return the module xarray.

    Raises:
        InputError: it is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise InputError(
            f"{doing}: xarray is not installed; type pip install 'rllc[xarray]'."
        ) from error
    return xarray


def _of_all_steps(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings without what is of one call alone, and may differ from one checkpoint to another."""
    of_one_call = ("identity", "ambient")
    return {name: value for name, value in settings.items() if name not in of_one_call}


@names_checked
def estimate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    compute: Compute | None = None,
) -> Estimate:
    """The refined local learning coefficient of chosen weights on chosen data, with its error.

    λ̂(w*; V, q′) = nβ · mean over chains and draws t of [ ℓ_{B_t}(u*, v_t) − ℓ_{B_t}(w*) ],

    V being the chosen weights v (the others stay at u*), B_t minibatches of the data q′, and v_t
    the draws of a sampler of p(v) ∝ exp(−nβ ℓ(u*, v) − (γ/2)‖v − v*‖²). Everything on the training
    data is the LLC; one head, the wrLLC; everything on a subset, the drLLC. λ̂ is complexity at the
    resolution of its settings: compare values made with the same settings.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> est = estimate(model, {"x": data}, loss=lambda m, x: m(x)[:, 0] ** 2)
    >>> bool(est["everything"].standard_error > 0)
    True

    Args:
        model: any module. Its weights are the w* that is looked at; nothing of it is changed.
        data: what :func:`rllc.data.as_data` takes: :class:`rllc.Tokens`, token ids ``[row, pos]``,
            a tokenizer's output, (inputs, labels), a DataLoader, a data set, …; or a dict of these
            by name.
        weights: :class:`rllc.Weights` (``rllc.head("1:6")``, ``rllc.heads(model)``, …): one, a
            list or a dict. ``None`` is everything; where some weights are frozen
            (``requires_grad=False``) and some are not, the others, ``rllc.trainable()``.
        loss: ``loss(module, batch)`` that gives per-example or per-token losses, NaN where nothing
            is to be predicted, or ``(losses, mask)``. ``None`` is next-token cross entropy; others
            are in :mod:`rllc.losses.by_name`, such as ``rllc.losses.classification``, and
            ``rllc.losses.distillation(generating_model)``, the loss against a model's predictions.
        sampler: ``None`` is ``rllc.sgld(lr=1e-3, localization=200.0)``, the paper's.
        sampling: ``None`` is 16 chains × 50 draws at nβ = 30, in batches of 32 or of all rows where
            these are few. A sampler that does not forget its start in a quarter of 50 steps gets
            ``rllc.Sampling()``, the paper's 4 × 200.
        limits: from where on something is a fault; ``None`` is ``Limits()``. They change no number.
        compute: how it is run; ``None`` is ``rllc.Compute()``.

    Returns:
        :class:`Estimate`, over weights × data.

    Raises:
        InputError: before any chain runs, when an argument cannot work.

    Reference: arXiv 2410.02984; Lau et al. 2023 (arXiv 2308.12108) for the estimator.
    """
    check_how(compute, limits)
    draws = sample(
        model, data, weights, loss=loss, sampler=sampler, sampling=sampling, compute=compute
    )
    return Estimate.of(draws, limits)
