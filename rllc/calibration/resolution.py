"""λ̂ as a curve over nβ: how complexity appears as one looks closer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from rllc.arguments import names_checked
from rllc.calibration.calibrate import Calibration
from rllc.calibration.search import START, is_number
from rllc.errors import InputError, must_be
from rllc.estimates.estimate import Estimate, estimate
from rllc.estimates.faults import Fault, status_of
from rllc.limits import Limits
from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler, sgld
from rllc.sampling.checks import arguments, check_how
from rllc.sampling.settings import Compute, Sampling
from rllc.statistics.uncertainty import Mean
from rllc.tables import AsTable, Table, label, with_columns_first, with_error
from rllc.weights.names import Names
from rllc.weights.refinement import DataLike, WeightsLike, named_data

if TYPE_CHECKING:
    import pandas as pd

N_BETAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Half decades over the range of the literature and one decade more."""


@dataclass(frozen=True, eq=False, repr=False)
class Resolution(AsTable):
    """λ̂ as a curve over nβ; :func:`resolution` makes it.

    Args:
        n_beta: ``[n_beta]``, rising.
        estimates: ``[n_beta]``: what :func:`rllc.estimate` gives at each, of the same refinements.
    """

    n_beta: np.ndarray
    estimates: tuple[Estimate, ...]

    @property
    def value(self) -> np.ndarray:
        """λ̂ ``[n_beta, refinement]``; NaN where a chain diverged."""
        return np.stack([result.value for result in self.estimates])

    @property
    def standard_error(self) -> np.ndarray:
        """``[n_beta, refinement]``."""
        return np.stack([result.standard_error for result in self.estimates])

    @property
    def mean(self) -> Mean:
        """Value, standard error and degrees of freedom, ``[n_beta, refinement]``."""
        dof = np.stack([result.dof for result in self.estimates])
        return Mean(self.value, self.standard_error, dof)

    @property
    def faults(self) -> tuple[tuple[tuple[Fault, ...], ...], ...]:
        """``[n_beta][refinement]``: what is wrong there."""
        return tuple(result.faults for result in self.estimates)

    @property
    def by_prior(self) -> np.ndarray:
        """``[n_beta, refinement]``: where the prior alone gives λ̂, by the limits of its status."""
        table = []
        for faults in self.faults:
            table.append([_has_prior(of_refinement) for of_refinement in faults])
        return np.array(table)

    @property
    def status(self) -> tuple[tuple[str, ...], ...]:
        """``[n_beta][refinement]``: ``"ok"``, or what is wrong there, in words."""
        return tuple(result.status for result in self.estimates)

    def judge(self, limits: Limits | None = None) -> Resolution:
        """Return this curve with the faults that these limits give, as an estimate's.

        Args:
            limits: from where on something is a fault; ``None`` is ``Limits()``.
        """
        judged = [result.judge(limits) for result in self.estimates]
        return replace(self, estimates=tuple(judged))

    @property
    def names(self) -> Names:
        """The (weights, data) of each refinement."""
        return self.estimates[0].names

    @property
    def weights(self) -> tuple[str, ...]:
        """``[refinement]``: the name of each refinement's weights."""
        return self.names.weights

    @property
    def data(self) -> tuple[str, ...]:
        """``[refinement]``: the name of each refinement's data."""
        return self.names.data

    def __len__(self) -> int:
        return len(self.estimates)

    def to_dataframe(self, *, diagnostics: bool = False) -> pd.DataFrame:
        """Return one row a point: ``n_beta, lr, localization`` and an estimate's columns.

        Args:
            diagnostics: whether an estimate's diagnostics come, too.
        """
        import pandas as pd

        frames = []
        for n_beta, result in zip(self.n_beta, self.estimates, strict=True):
            columns = {
                "n_beta": n_beta,
                "lr": result.settings["lr"],
                "localization": result.settings["localization"],
            }
            frame = result.to_dataframe(diagnostics=diagnostics)
            frames.append(with_columns_first(frame, columns))
        return pd.concat(frames, ignore_index=True)

    @property
    def _table(self) -> Table:
        """A row a refinement and a column an nβ; what the marks mean stands below."""
        count = len(self.names)
        noun = "refinements" if count > 1 else "refinement"
        title = f"Resolution: {len(self)} values of n_beta, {count} {noun}"
        header = [f"n_beta = {n_beta:.4g}  " for n_beta in self.n_beta]
        rows = [("", *header)]
        wrong = []
        for k in range(count):
            cells = [_cell(result, k) for result in self.estimates]
            rows.append((label(self.names, k), *cells))
            for column, faults in enumerate(self.faults, start=1):
                if faults[k]:
                    wrong.append((k, column))
        notes = []
        if self.by_prior.any():
            notes.append(
                "~ the prior alone gives this λ̂: it shows the Hessian's trace, not what the loss "
                "does; look at larger n_beta"
            )
        for n_beta, faults in zip(self.n_beta, self.faults, strict=True):
            for k in range(count):
                marked = [fault for fault in faults[k] if fault.kind != "prior_dominated"]
                if marked:
                    cell = f"n_beta = {n_beta:.4g}, {label(self.names, k)}"
                    notes.append(f"! {cell}: {status_of(marked)}")
        see_all = "print(resolution.to_dataframe().to_string())"
        return Table(title, rows, wrong=wrong, notes=notes, see_all=see_all)


def _has_prior(faults: Sequence[Fault]) -> bool:
    return any(fault.kind == "prior_dominated" for fault in faults)


def _cell(estimate: Estimate, k: int) -> str:
    """A value with its mark: ``~`` where the prior alone gives it, ``!`` for other faults."""
    faults = estimate.faults[k]
    by_prior = _has_prior(faults)
    mark_of_prior = "~" if by_prior else ""
    has_other_faults = len(faults) > by_prior
    marks = mark_of_prior + ("!" if has_other_faults else "")
    value = with_error(estimate.value[k], estimate.standard_error[k])
    return f"{value}{marks:2}"


@names_checked
def resolution(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    n_betas: Sequence[float] = N_BETAS,
    loss: LossFunction | None = None,
    sampler: Sampler | Callable[[float], Sampler] | Calibration | None = None,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
) -> Resolution:
    """λ̂ as a curve over nβ: how complexity appears as one looks closer.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> square = lambda model, x: model(x)[:, 0] ** 2
    >>> resolution(model, data, n_betas=[10.0, 100.0], loss=square).value.shape
    (2, 1)

    **Held fixed: the prior**, that is γ. Then all points belong to one model,
    λ̂(nβ) = nβ E[ℓ − ℓ*] is the slope ∂F/∂ log nβ of its free energy F, the area under the curve
    on a log axis is a difference of free energies, and a direction of curvature h appears where nβ
    passes γ/h: ½ nβh/(nβh + γ).

    **Not held: lr.** It is no part of that curve, only a means. With one lr the step in the
    sharpest direction, lr·(nβh + γ), grows with nβ, adds more and more to λ̂ and is unstable from 4
    on, while at the other end chains hardly move in the draws they have. If ``sampler`` is left
    out lr = 1/(nβh + 4γ), with h the largest curvature of all refinements, which a short first run
    measures. At small nβ, where γ alone sets the pace, lr·γ = ¼ adds 6 %. At large nβ the sharpest
    direction has lr·nβh → 1, the others less. Directions at the resolution then have
    autocorrelation times of about nβh/γ + 4 draws: ``status`` says where draws are too few.

    Args:
        model: as for :func:`rllc.estimate`; so are ``data``, ``weights``, ``loss`` and
            ``compute``.
        n_betas: where to look; half decades from 1 to 1000, the range of the literature and one
            decade more.
        sampler: a :class:`rllc.Calibration`, whose γ is held and whose step in the sharpest
            direction is kept (:meth:`rllc.Calibration.sampler_at`); or a function n_beta ->
            Sampler. ``None`` is sgld with γ = 200 and lr as above. A
            :class:`rllc.samplers.Sampler` is taken as it is at every nβ, lr included.
        sampling: ``None`` is the calibration's, without one the paper's. Its ``n_beta`` is
            replaced.

    Returns:
        :class:`Resolution`, over nβ × refinements. Its table and figure mark where the prior alone
        gives λ̂, so that there is nothing to be seen of the loss; :meth:`Resolution.judge` judges
        it by other limits.

    Raises:
        InputError: ``n_betas`` is empty or not of positive numbers, ``sampler`` is none of these;
            and as :func:`rllc.estimate`.
        RllcError: the calibration has no good setting.
    """
    check_how(compute, None)
    right = isinstance(n_betas, Sequence) and not isinstance(n_betas, str | bytes)
    must_be("resolution", "n_betas", n_betas, right, "a list of positive numbers")
    positive = [float(n_beta) for n_beta in n_betas if is_number(n_beta, zero=False)]
    points = sorted(set(positive))
    if not points or len(points) < len(n_betas):
        raise InputError(
            f"resolution: `n_betas` must be different positive numbers, "
            f"such as [10.0, 30.0, 100.0]; got {n_betas!r}."
        )
    if isinstance(sampler, Calibration):
        if sampling is None:
            sampling = sampler.sampling
        sampler = sampler.sampler_at
        sampler(points[0])
    is_function = callable(sampler) and not isinstance(sampler, nn.Module | type)
    if not (sampler is None or is_function or isinstance(sampler, Sampler)):
        raise InputError(
            f"resolution: `sampler` must be a function n_beta -> Sampler, a Calibration, "
            f"a Sampler such as rllc.sgld(lr=1e-4), or None; got {sampler!r}."
        )
    sampling = Sampling() if sampling is None else sampling
    sampling = arguments(model, loss, None, sampling)[1]
    data = named_data(data)

    compute = Compute() if compute is None else compute

    def at(sampler: Sampler, sampling: Sampling) -> Estimate:
        return estimate(
            model,
            data,
            weights,
            loss=loss,
            sampler=sampler,
            sampling=sampling,
            compute=replace(compute, progress=False),
        )

    if sampler is None:
        sampler = _SteadyStep(_sharpest_curvature(at, sampling))
    estimates = []
    for n_beta in tqdm(
        points, desc="resolution", unit="n_beta", disable=not compute.progress, leave=False
    ):
        sampler_here = sampler if isinstance(sampler, Sampler) else sampler(n_beta)
        estimates.append(at(sampler_here, replace(sampling, n_beta=n_beta)))
    return Resolution(np.array(points), tuple(estimates))


@dataclass(frozen=True)
class _SteadyStep:
    """nβ -> sgld with the lr that :func:`resolution` states."""

    sharpest: float

    def __call__(self, n_beta: float) -> Sampler:
        gamma = START.localization
        return sgld(1 / (n_beta * self.sharpest + 4 * gamma), gamma)


def _sharpest_curvature(at: Callable[[Sampler, Sampling], Estimate], sampling: Sampling) -> float:
    """Return the largest curvature of all refinements, by a run of one step."""
    brief = replace(
        sampling,
        num_chains=1,
        num_draws=1,
        num_burnin_steps=0,
        num_probes=1,
        target_se=None,
        start="center",
    )
    curvatures = at(sgld(START.lr, START.localization), brief).diagnostics["max_curvature"]
    return max(float(np.nan_to_num(curvatures).max()), 0.0)
