"""Which settings to sample with: a search over (lr, n_beta, localization) by stated limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from rllc import search
from rllc.checks import arguments, check_how
from rllc.errors import InputError, RllcError, must_be
from rllc.estimate import Estimate, estimate
from rllc.faults import Fault
from rllc.keywords import say_what_to_type
from rllc.limits import Limits
from rllc.loss import LossFunction
from rllc.refinement import DataLike, WeightsLike
from rllc.samplers import Sampler, sgld
from rllc.sampling import Compute, Sampling
from rllc.tables import label, table

if TYPE_CHECKING:
    import pandas as pd


class Recommended(TypedDict):
    """What :func:`rllc.estimate`, :func:`rllc.track` and the like take.

    ``rllc.estimate(model, data, **calibration.recommended)``.
    """

    sampler: Sampler
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Calibration:
    """Settings that were tried, what each gave, and which is best.

    :func:`calibrate` makes it, and printing it shows a table.

    Args:
        lr: ``[setting]``, in the order in which they were tried.
        n_beta: ``[setting]``: nβ of each.
        localization: ``[setting]``: γ of each.
        estimates: ``[setting]``: what :func:`rllc.estimate` gives there.
        limits: when a setting is good.
        make: the function (lr, localization) -> Sampler.
        sampling: how much was sampled; its ``n_beta`` is each setting's.
    """

    lr: np.ndarray
    n_beta: np.ndarray
    localization: np.ndarray
    estimates: tuple[Estimate, ...]
    limits: Limits
    make: Callable[[float, float], Sampler]
    sampling: Sampling

    def __len__(self) -> int:
        return len(self.estimates)

    @cached_property
    def _judged(self) -> tuple[Estimate, ...]:
        """The estimates with the faults that ``limits`` give."""
        return tuple(result.judge(self.limits) for result in self.estimates)

    @property
    def faults(self) -> tuple[tuple[tuple[Fault, ...], ...], ...]:
        """``[setting][refinement]``: what is wrong there by ``limits``."""
        return tuple(result.faults for result in self._judged)

    @cached_property
    def errors(self) -> np.ndarray:
        """``[setting, refinement]``: relative error as a logarithm.

        It is √(sum of squares) of ``Estimate.error_parts``: 0.1 is 10 %, 2.3 a factor of ten. NaN
        where chains diverged or the value is not positive.
        """
        return np.array([search.relative_error(result) for result in self.estimates])

    @property
    def error(self) -> np.ndarray:
        """``[setting]``: that of the worst refinement."""
        return self.errors.max(1)

    @property
    def good(self) -> np.ndarray:
        """``[setting]``: whether every refinement keeps every limit."""
        return np.array([not any(faults) for faults in self.faults])

    @property
    def verdicts(self) -> tuple[str, ...]:
        """``[setting]``: ``"good"`` and what limits it, or what is wrong with the worst one."""
        return tuple(self._verdict(i) for i in range(len(self)))

    @cached_property
    def best(self) -> int:
        """Which setting is recommended; where none is good, the closest to it."""
        return min(range(len(self)), key=lambda i: search.rank(self._judged[i]))

    @property
    def recommended(self) -> Recommended:
        """Sampler and sampling of the good setting with the least :attr:`error`.

        Raises:
            RllcError: no setting is good; says which came closest and what is wrong with it.
        """
        if not self.good.any():
            raise RllcError(f"Calibration.recommended: {self._summary()}")
        lr, n_beta, localization = self._setting(self.best)
        return {
            "sampler": self.make(lr, localization),
            "sampling": replace(self.sampling, n_beta=n_beta),
        }

    def sampler_at(self, n_beta: float) -> Sampler:
        """Return the recommended sampler for another nβ, for ``resolution(sampler=…)``.

        The localization is held, and lr·(nβh + γ), h being the largest curvature of all
        refinements. Where h is not known, lr is held.

        Raises:
            RllcError: no setting is good.
        """
        recommended = self.recommended["sampler"]
        best = self._setting(self.best)
        sharpest = search.sharpest_curvature(self.estimates)
        if not sharpest:
            return recommended
        step = best.lr * (best.n_beta * sharpest + best.localization)
        return self.make(step / (n_beta * sharpest + best.localization), best.localization)

    def _setting(self, i: int) -> search.Setting:
        arrays = (self.lr, self.n_beta, self.localization)
        return search.Setting(*(float(array[i]) for array in arrays))

    def _verdict(self, i: int) -> str:
        result = self._judged[i]
        if self.good[i]:
            worst = int(self.errors[i].argmax())
            part = search.largest_part(result, worst)
            return f"good; most of the error: {part}, {label(result.names, worst)}"
        worst = search.worst(result)
        problems = ", ".join(fault.problem for fault in result.faults[worst])
        others = sum(map(bool, result.faults)) - 1
        note = f"; and {others} more" if others else ""
        return f"{label(result.names, worst)}: {problems}{note}"

    def _summary(self) -> str:
        i = self.best
        lr, n_beta, localization = self._setting(i)
        setting = f"lr = {lr:.3g}, n_beta = {n_beta:.3g}, localization = {localization:.3g}"
        result = self._judged[i]
        if not self.good[i]:
            return (
                f"none of the {len(self)} settings is good. Closest: {setting}: "
                f"{self._verdict(i)}. What helps: {search.HELP[search.gravest(result)]}."
            )
        worst = int(self.errors[i].argmax())
        parts = [f"{name} {part[worst]:.2f}" for name, part in result.error_parts.items()]
        where = f"{label(result.names, worst)}: {', '.join(parts)}"
        return f"recommended: {setting}: error {self.error[i]:.2f} ({where})"

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table with one row a setting and refinement.

        Its columns are ``lr, n_beta, localization, good, error, faults`` and an estimate's.
        """
        import pandas as pd

        frames = []
        for i, result in enumerate(self._judged):
            problems = [[fault.problem for fault in faults] for faults in result.faults]
            columns = {
                "lr": self.lr[i],
                "n_beta": self.n_beta[i],
                "localization": self.localization[i],
                "good": self.good[i],
                "error": self.errors[i],
                "faults": ["; ".join(of_refinement) for of_refinement in problems],
            }
            frame = self.estimates[i].to_dataframe().assign(**columns)
            frames.append(frame[[*columns, *frame.columns.drop(list(columns))]])
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("", *search.Setting._fields, "error", "verdict")]
        for i, verdict in enumerate(self.verdicts):
            numbers = [f"{number:.3g}" for number in self._setting(i)]
            mark = "→" if i == self.best and self.good[i] else ""
            rows.append((mark, *numbers, f"{self.error[i]:.2f}", verdict))
        count = len(self.estimates[0])
        title = (
            f"Calibration: {len(self)} settings on {count} refinement{'s' * (count > 1)}, "
            f"{self.sampling.num_chains} chains × {self.sampling.num_draws} draws, "
            f"{int(self.good.sum())} good"
        )
        return f"{table(title, rows, left=(5,))}\n{self._summary()}"


@say_what_to_type
def calibrate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Callable[[float, float], Sampler] = sgld,
    sampling: Sampling | None = None,
    grid: Mapping[str, float | Sequence[float]] | None = None,
    limits: Limits | None = None,
    compute: Compute | None = None,
) -> Calibration:
    """Find an lr, n_beta and localization with which *all* these refinements can be compared.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> grid = {"lr": [1e-3, 3e-3], "n_beta": [100.0], "localization": [10.0]}
    >>> len(calibrate(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, grid=grid))
    2

    A setting is **good** when no refinement has a fault by ``limits``: no chain diverged, steps
    are stable with a margin and without spikes, the step size adds little, the draws are many
    relaxation times long and without drift, chains agree, the error is small against the value,
    the value is positive, and not almost all of it is hidden by the prior.

    **Recommended** is the good setting whose worst refinement has the least error
    (``Estimate.error_parts``) against λ without prior: the finest resolution that these draws can
    sample. nβ and γ are no nuisances: a direction of curvature h counts nβh/(nβh + γ), so λ̂ is
    complexity at the resolution γ/nβ, and chains stay within about 1/√γ. On an exact quadratic
    only lr·nβ and lr·γ matter. With minibatches a large nβ heats the chains, and where the loss is
    not quadratic a small nβ and γ let them leave the neighbourhood of w*, which no diagnostic can
    see. Where values are to be compared with others', hold the resolution and let lr follow:
    ``grid={"n_beta": [30.0], "localization": [200.0]}``.

    Where ``grid`` has a number the search is open: from there, by decades and then half decades,
    one setting at a time, in the direction that mends what is wrong. Where steps are too large
    that is a lower lr; where chains are slow, a larger lr, then γ; where the prior hides most, a
    smaller γ and a larger nβ in turn; where there is noise, a smaller nβ and γ together, which
    holds the resolution. When nβ or γ moves and the largest curvature h is known, lr·(nβh + γ) is
    held, and settings that this h shows to be unstable are not tried. A move is kept when it makes
    the setting good, or when the error, plus the logarithms of how far it is beyond its limits,
    falls by a tenth. The search ends when no move of half a decade helps, or after
    ``limits.max_settings``.

    Args:
        model: as for :func:`rllc.estimate`; so are ``data``, ``weights``, ``loss`` and
            ``compute``.
        sampler: a function (lr, localization) -> Sampler: ``rllc.sgld``, ``rllc.rmsprop_sgld``, or
            one of your own.
        sampling: chains, draws, batches and seed, those to be used later; ``None`` is the paper's.
            Its ``n_beta`` is replaced.
        grid: ``{"lr": …, "n_beta": …, "localization": …}``. A number is where the search starts; a
            list holds the values to try and no others. Lists for all three: their product, as it
            stands. What is left out starts at the paper's 1e-3, 30 and 200.
        limits: when a setting is good; ``None`` is ``Limits.for_calibration()``.

    Returns:
        :class:`Calibration`; ``rllc.estimate(model, data, weights, **calibration.recommended)``.

    Raises:
        InputError: ``grid`` has other names, or values that are not positive numbers (localization
            may be 0 in a list); ``sampler`` is not a function; and as :func:`rllc.estimate`.

    Reference: the criteria are those of the Timaeus sampling guide (2026), with limits.
    """
    if isinstance(sampler, Sampler | nn.Module | type) or not callable(sampler):
        raise InputError(
            f"calibrate: `sampler` must be a function (lr, localization) -> Sampler, "
            f"such as rllc.sgld without a call; got {sampler!r}."
        )
    check_how(compute, limits)
    right = grid is None or isinstance(grid, Mapping)
    must_be("calibrate", "grid", grid, right, "a dict such as {'lr': [1e-4, 1e-3]}")
    axes = search.axes_of(grid or {})
    limits = limits or Limits.for_calibration()
    sampling = arguments(model, loss, None, sampling)[1]
    lists = [axis.values for axis in axes if axis.values is not None]
    is_product = len(lists) == len(axes)
    total = math.prod(map(len, lists)) if is_product else limits.max_settings
    tried: dict[tuple[float, ...], Estimate] = {}
    compute = Compute() if compute is None else compute
    bar = tqdm(
        total=total, desc="calibrate", unit="setting", disable=not compute.progress, leave=False
    )

    def measure(lr: float, n_beta: float, localization: float) -> Estimate:
        bar.set_postfix_str(f"lr={lr:.3g} n_beta={n_beta:.3g} localization={localization:.3g}")
        result = estimate(
            model,
            data,
            weights,
            loss=loss,
            sampler=sampler(lr, localization),
            # Stopping at an error is for later: settings are compared by the same draws.
            sampling=replace(sampling, n_beta=n_beta, target_se=None),
            compute=replace(compute, progress=False),
        )
        bar.update()
        return tried.setdefault((lr, n_beta, localization), result)

    with bar:
        if is_product:
            for setting in itertools.product(*lists):
                measure(*setting)
        else:
            search.Search(axes, measure, limits).run()
    lr, n_beta, localization = np.array(list(tried)).T
    return Calibration(lr, n_beta, localization, tuple(tried.values()), limits, sampler, sampling)
