"""From draws to numbers: λ̂ with its standard error, R-hat, effective sample size and a status in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc import diagnostics
from rllc.checks import arguments
from rllc.draws import Draws
from rllc.errors import FileError, InputError, nearest
from rllc.faults import DIAGNOSTICS, diagnose, verdict
from rllc.files import load_arrays, save_arrays
from rllc.loss import LossFunction
from rllc.refinement import DataLike, WeightsLike
from rllc.sample import RISE, sample
from rllc.samplers import Energy, Random, Sampler
from rllc.sampling import Compute, Sampling
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LLC:
    """One refined local learning coefficient, and how far to trust it."""

    weights: str
    data: str
    value: float
    standard_error: float
    rhat: float
    ess: float
    per_chain: tuple[float, ...]
    status: str

    def __repr__(self) -> str:
        note = "" if self.status == "ok" else f", {self.status}"
        return f"LLC({self.weights} on {self.data}: {self.value:.4g} ± {self.standard_error:.2g}{note})"


@dataclass(frozen=True, eq=False)
class Estimate:
    """λ̂ of each refinement. ``estimate["1:6"]``, or ``estimate["1:6", "code"]`` with several data sets, is an :class:`LLC`.

    Args:
        value: ``[refinement]``: λ̂ = nβ · mean(loss − baseline), no unit; NaN when a chain diverged. Negative ones are kept.
        standard_error: ``[refinement]``: of the mean over chains and draws, from the chains' autocorrelation and from what
            chains share (:func:`rllc.diagnostics.standard_error`), as the last four fifths of the draws
            show it. It knows of noise, not of bias.
        rhat: ``[refinement]``: rank-normalised split R-hat; near 1 when the chains, and their halves, agree.
        ess: ``[refinement]``: how many independent draws the mean would be worth if the chains were independent;
            ``standard_error`` also counts what they share.
        per_chain: ``[refinement, chain]``: each chain's own λ̂.
        status: ``"ok"``, or what is wrong and what to change.
        diagnostics: what the status is made from, by name, each ``[refinement]``, NaN where not known; see
            :data:`rllc.faults.DIAGNOSTICS`.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        settings: of sampler and sampling.
    """

    value: np.ndarray
    standard_error: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    per_chain: np.ndarray
    status: tuple[str, ...]
    weights: tuple[str, ...]
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, draws: Draws) -> Estimate:
        """Sum up draws; a refinement with a diverged chain is NaN with a status that names chain and step."""
        whole = draws.llc
        value, error, rhat, ess = (np.full(len(whole), np.nan) for _ in range(4))
        told = {name: np.full(len(whole), np.nan) for name in DIAGNOSTICS}
        per_chain = np.full(whole.shape[:2], np.nan)
        for length in set(draws.lengths):
            mine = [i for i, n in enumerate(draws.lengths) if n == length]
            llc = whole[mine, :, :length]
            value[mine], per_chain[mine] = llc.mean((-2, -1)), llc.mean(-1)
            minibatches = "minibatch_variance" not in draws.observed or bool(
                draws.observed["minibatch_variance"][mine, :, :length].any()
            )  # else chains share nothing
            error[mine] = diagnostics.standard_error(llc, discard=RISE, shared=minibatches)
            rhat[mine] = diagnostics.rhat(llc)
            rise = int(RISE * length)
            ess[mine] = diagnostics.ess(llc[..., rise:], method="mean") * length / (length - rise)
            for name, found in diagnose(draws, mine, slice(rise, length), ess[mine]).items():
                told[name][mine] = found
        return cls(
            value=value,
            standard_error=error,
            rhat=rhat,
            ess=ess,
            per_chain=per_chain,
            status=tuple(
                verdict(
                    draws.diverged[i],
                    {"value": value[i], "error": error[i], "rhat": rhat[i]}
                    | {k: a[i] for k, a in told.items()},
                    draws.settings,
                )
                for i in range(len(whole))
            ),
            diagnostics=told,
            weights=draws.weights,
            data=draws.data,
            settings=draws.settings,
        )

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: str | tuple[str, str]) -> LLC:
        if not isinstance(key, str) and not (isinstance(key, tuple) and len(key) == 2):
            raise InputError(
                f"estimate[{key!r}]: expected a name, or (weights, data), such as estimate['1:6', 'code']."
            )
        i = self._find(*((key, None) if isinstance(key, str) else key))
        return LLC(
            self.weights[i],
            self.data[i],
            float(self.value[i]),
            float(self.standard_error[i]),
            float(self.rhat[i]),
            float(self.ess[i]),
            tuple(float(v) for v in self.per_chain[i]),
            self.status[i],
        )

    def _find(self, weights: str, data: str | None) -> int:
        matching = [
            i for i, name in enumerate(self.weights) if name in (weights, head_name(weights))
        ]
        if not matching:
            raise InputError(
                f"estimate[{weights!r}]: no such weights; {nearest(weights, dict.fromkeys(self.weights))}"
            )
        if data is None and len(matching) > 1:
            known = [self.data[i] for i in matching]
            raise InputError(
                f"estimate[{weights!r}]: on which data? It has {known}; type estimate[{weights!r}, {known[0]!r}]."
            )
        for i in matching:
            if data is None or self.data[i] == data:
                return i
        raise InputError(
            f"estimate[{weights!r}, {data!r}]: no such data; {nearest(data, [self.data[i] for i in matching])}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a refinement: ``weights, data, llc, standard_error, rhat, ess, status``, and the diagnostics."""
        import pandas as pd

        return pd.DataFrame(
            {
                "weights": self.weights,
                "data": self.data,
                "llc": self.value,
                "standard_error": self.standard_error,
                "rhat": self.rhat,
                "ess": self.ess,
                "status": self.status,
                **self.diagnostics,
            }
        )

    def __repr__(self) -> str:
        rows = [("weights", "data", "llc", "± se", "R-hat", "ess", "status")]
        for i, status in enumerate(self.status):
            numbers = (
                f"{self.value[i]:.3f}",
                f"{self.standard_error[i]:.3f}",
                f"{self.rhat[i]:.3f}",
                f"{self.ess[i]:.0f}",
            )
            rows.append((self.weights[i], self.data[i], *numbers, status))
        s = self.settings
        title = f"Estimate of {len(self)} LLCs (nβ = {s['n_beta']:g}, γ = {s['localization']:g}, ε = {s['lr']:g}, "
        title += f"{s['num_chains']} chains × {'up to ' if s.get('target_se') else ''}{s['num_draws']} draws)"
        return table(title, rows, left=(0, 1, 6))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"diagnostics.{name}": a for name, a in self.diagnostics.items()}
        names = {
            "weights": self.weights,
            "data": self.data,
            "status": self.status,
            "settings": dict(self.settings),
        }
        return save_arrays(path, arrays, {"kind": "rllc.Estimate"} | names)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Estimate:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, a damaged one, or one that holds something else.
        """
        arrays, header = load_arrays(path)
        if header.get("kind") != "rllc.Estimate":
            raise FileError(
                f"reading {path} as Estimate: it holds {header.get('kind', 'something else')}."
            )
        names = {key: tuple(header[key]) for key in ("weights", "data", "status")}
        told = {
            k.removeprefix("diagnostics."): a
            for k, a in arrays.items()
            if k.startswith("diagnostics.")
        }
        main = {name: arrays[name] for name in ARRAYS}
        return cls(**main, **names, settings=header["settings"], diagnostics=told)


ARRAYS = ("value", "standard_error", "rhat", "ess", "per_chain")
"""The arrays of an :class:`Estimate`, each with ``refinement`` as its first axis."""


def estimate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> Estimate:
    """The refined local learning coefficient of each choice of weights on each data set, with its error.

    λ̂(w*; V, q′) = nβ · mean over chains and draws t of [ ℓ_{B_t}(u*, v_t) − ℓ_{B_t}(w*) ],

    V being the chosen weights v (the others stay at u*), B_t minibatches of the data q′, and v_t the draws of a sampler of
    p(v) ∝ exp(−nβ ℓ(u*, v) − (γ/2)‖v − v*‖²). Everything on the training data is the LLC; one head, the wrLLC; everything on
    a subset, the drLLC. At these settings λ̂ is complexity at a resolution: compare values made with the same settings.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> est = estimate(model, {"x": data}, loss=lambda m, x: m(x)[:, 0] ** 2)
    >>> bool(est["everything"].standard_error > 0)
    True

    Args:
        model: any module. Its weights are the w* that is looked at; nothing of it is changed.
        data: :class:`rllc.Tokens`, a tensor ``[row, pos]`` of token ids, a tuple of tensors with one leading dimension, or
            a dict of named data.
        weights: :class:`rllc.Weights` (``rllc.head("1:6")``, ``rllc.heads(model)``, …), one, a list or a dict; ``None`` is
            everything.
        loss: ``loss(module, batch)`` giving per-example or per-token losses; ``None`` is next-token cross entropy;
            ``rllc.distillation(generating_model)`` is the loss against a model's predictions.
        sampler: ``None`` is ``rllc.sgld(lr=1e-3, localization=200.0)``, the paper's.
        sampling: ``None`` is ``rllc.Sampling()``: the paper's 4 chains × 200 draws, batches of 32, nβ = 30, seed 0.
        compute: how it is run; ``None`` is ``rllc.Compute()``.

    Returns:
        :class:`Estimate`, over weights × data.

    Raises:
        InputError: before any chain runs, when an argument cannot work.

    Source: arXiv 2410.02984; Lau et al. 2023 (arXiv 2308.12108) for the estimator.
    """
    return Estimate.of(
        sample(
            model,
            data,
            weights,
            loss=loss,
            sampler=sampler,
            sampling=sampling,
            compute=compute,
        )
    )


def control(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> Estimate:
    """The control at nβ = 0: chains that do not see the loss, only the prior and their noise, read as λ̂ is read.

    Its value is nβ·E[ℓ(v) − ℓ(w*)] under the prior alone, ½nβ Σhᵢ/γ on a quadratic. An estimate that is not clearly below its
    control says nothing of the shape of the loss: there the prior is all that holds the chains, λ̂ ≈ ½nβ tr(h)/γ, and a
    larger nβ or a smaller localization is needed.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> at_zero = control(model, data, loss=lambda m, x: m(x)[:, 0] ** 2)
    >>> at_zero.settings["sampler"]
    'sgld without loss'

    Arguments, result and errors are those of :func:`estimate`; chains start at w*.

    Source: the negative control of devinterp's sampling guide.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    sampling = replace(sampling, start="center")

    def step(state: Any, energy: Energy, random: Random) -> Any:
        def flat(position: Tensor) -> tuple[Tensor, Tensor]:
            height, slope = energy(position)
            return torch.zeros_like(height), torch.zeros_like(slope)

        return sampler.step(state, Energy(flat), random)

    blind = replace(sampler, name=f"{sampler.name} without loss", step=step, law=None)
    return estimate(
        model, data, weights, loss=loss, sampler=blind, sampling=sampling, compute=compute
    )
