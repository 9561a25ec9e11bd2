"""λ̂ as a curve over nβ: how complexity appears as one looks closer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from rllc.calibrate import START, is_number, where
from rllc.checks import arguments
from rllc.errors import InputError
from rllc.estimate import Estimate, estimate
from rllc.loss import LossFunction
from rllc.refinement import DataLike, WeightsLike
from rllc.sampling import Sampling
from rllc.samplers import Sampler, sgld
from rllc.tables import table

if TYPE_CHECKING:
    import pandas as pd

N_BETAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Half decades over the range of the literature and one decade more."""


@dataclass(frozen=True, eq=False)
class Resolution:
    """λ̂ as a curve over nβ; :func:`resolution` makes it.

    Args:
        n_beta: ``[n_beta]``, rising.
        estimates: ``[n_beta]``: what :func:`rllc.estimate` gives at each; all of the same refinements.
    """

    n_beta: np.ndarray
    estimates: tuple[Estimate, ...]

    @property
    def value(self) -> np.ndarray:
        """λ̂ ``[n_beta, refinement]``; NaN where a chain diverged."""
        return np.stack([e.value for e in self.estimates])

    @property
    def standard_error(self) -> np.ndarray:
        """``[n_beta, refinement]``."""
        return np.stack([e.standard_error for e in self.estimates])

    @property
    def status(self) -> tuple[tuple[str, ...], ...]:
        """``[n_beta][refinement]``: ``"ok"``, or what is wrong there."""
        return tuple(e.status for e in self.estimates)

    @property
    def weights(self) -> tuple[str, ...]:
        """Name of each refinement's weights."""
        return self.estimates[0].weights

    @property
    def data(self) -> tuple[str, ...]:
        """Name of each refinement's data."""
        return self.estimates[0].data

    def __len__(self) -> int:
        return len(self.estimates)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a point: ``n_beta, lr, localization`` and an estimate's columns."""
        import pandas as pd

        rows = []
        for n_beta, e in zip(self.n_beta, self.estimates, strict=True):
            told = {
                "n_beta": n_beta,
                "lr": e.settings["lr"],
                "localization": e.settings["localization"],
            }
            rows.append(e.to_dataframe().assign(**told))
        frame = pd.concat(rows, ignore_index=True)
        first = ["n_beta", "lr", "localization"]
        return frame[first + [name for name in frame.columns if name not in first]]

    def __repr__(self) -> str:
        rows = [("", *(f"n_beta = {n:.4g} " for n in self.n_beta))]
        for k in range(len(self.weights)):
            points = zip(self.value[:, k], self.standard_error[:, k], self.status, strict=True)
            cells = (
                f"{v:.3f} ± {error:.3f}{' ' if status[k] == 'ok' else '!'}"
                for v, error, status in points
            )
            rows.append((where(self.estimates[0], k), *cells))
        wrong = [
            f"! n_beta = {n:.4g}, {where(e, k)}: {status}"
            for n, e in zip(self.n_beta, self.estimates, strict=True)
            for k, status in enumerate(e.status)
            if status != "ok"
        ]
        count = len(self.weights)
        title = f"Resolution: {len(self)} values of n_beta, {count} refinement{'s' * (count > 1)}"
        return "\n".join([table(title, rows), *wrong])


def resolution(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    n_betas: Sequence[float] = N_BETAS,
    loss: LossFunction | None = None,
    sampler: Sampler | Callable[[float], Sampler] | None = None,
    sampling: Sampling | None = None,
    progress: bool = True,
) -> Resolution:
    """λ̂ as a curve over nβ: how complexity appears as one looks closer.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> curve = resolution(model, data, n_betas=[10.0, 100.0], loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)
    >>> curve.value.shape
    (2, 1)

    **Held fixed: the prior**, that is γ. Then all points belong to one model, λ̂(nβ) = nβ E[ℓ − ℓ*] is the slope ∂F/∂ log nβ of
    its free energy F, the area under the curve on a log axis is a difference of free energies, and a direction of
    curvature h appears where nβ passes γ/h: ½ nβh/(nβh + γ).

    **Not held: lr.** It is no part of that curve, only a means. With one lr the step in the sharpest direction,
    lr·(nβh + γ), grows with nβ, adds more and more to λ̂ and is unstable from 4 on, while at the other end chains hardly move
    in the draws they have. If ``sampler`` is left out lr = 1/(nβh + 4γ), with h the largest curvature of all refinements,
    which a short first run measures: at small nβ, where γ alone sets the pace, lr·γ = ¼ adds 6 %; at large nβ the sharpest
    direction has lr·nβh → 1, the others less. Directions at the resolution then have autocorrelation times of about
    nβh/γ + 4 draws: ``status`` says where draws are too few.

    Args:
        model: as for :func:`rllc.estimate`; so are ``data``, ``weights``, ``loss`` and ``progress``.
        n_betas: where to look; half decades from 1 to 1000, the range of the literature and one decade more.
        sampler: a function n_beta -> Sampler, such as :meth:`Calibration.sampler_at`. ``None`` is sgld with γ = 200 and lr as
            above. A :class:`rllc.Sampler` is taken as it is at every nβ, lr included.
        sampling: ``None`` is the paper's. Its ``n_beta`` is replaced.

    Returns:
        :class:`Resolution`, over nβ × refinements.

    Raises:
        InputError: ``n_betas`` is empty or not of positive numbers, ``sampler`` is neither; and as :func:`rllc.estimate`.
    """
    points = sorted({float(n) for n in n_betas if is_number(n, zero=False)})
    if not points or len(points) < len(n_betas):
        raise InputError(
            f"resolution: `n_betas` must be different positive numbers, such as [10.0, 30.0, 100.0]; got {n_betas!r}."
        )
    _, sampling = arguments(model, loss, None, sampling)
    common = {"loss": loss, "progress": False}
    if sampler is None:
        sampler = _steady(model, data, weights, sampling, common)
    if not callable(sampler) and not isinstance(sampler, Sampler):
        raise InputError(
            f"resolution: `sampler` must be a function n_beta -> Sampler, a Sampler such as rllc.sgld(lr=1e-4), or None; "
            f"got {sampler!r}."
        )
    estimates = []
    for n_beta in tqdm(points, desc="resolution", unit="n_beta", disable=not progress, leave=False):
        here = sampler if isinstance(sampler, Sampler) else sampler(n_beta)
        estimates.append(
            estimate(
                model,
                data,
                weights,
                sampler=here,
                sampling=replace(sampling, n_beta=n_beta),
                **common,
            )
        )
    return Resolution(np.array(points), tuple(estimates))


def _steady(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike,
    sampling: Sampling,
    common: Mapping[str, Any],
) -> Callable[[float], Sampler]:
    """nβ -> sgld with the lr that :func:`resolution` states."""
    gamma = START["localization"]
    brief = replace(
        sampling,
        num_chains=1,
        num_draws=1,
        num_burnin_steps=0,
        num_probes=1,
        target_se=None,
        start="center",
    )
    curvature = estimate(
        model, data, weights, sampler=sgld(START["lr"], gamma), sampling=brief, **common
    ).diagnostics
    h = max(float(np.nan_to_num(curvature["max_curvature"]).max()), 0.0)
    return lambda n_beta: sgld(1 / (n_beta * h + 4 * gamma), gamma)
