"""Which settings to sample with: a search over (lr, n_beta, localization) by stated limits."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from rllc.calibration import answer, search
from rllc.errors import InputError, RllcError
from rllc.estimates.estimate import Estimate, estimate
from rllc.estimates.faults import Fault
from rllc.limits import Limits
from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler, from_settings, sgld
from rllc.sampling.checks import arguments, check_how
from rllc.sampling.settings import Compute, Sampling
from rllc.storage.files import (
    check_fields,
    check_shapes,
    load_arrays,
    reading,
    save_arrays,
)
from rllc.tables import AsTable, Table, duration, label, with_columns_first
from rllc.weights.refinement import DataLike, WeightsLike, named_data

if TYPE_CHECKING:
    import pandas as pd


class Recommended(TypedDict):
    """The recommended arguments of :func:`rllc.estimate`, :func:`rllc.track` and the like.

    ``rllc.estimate(model, data, **calibration.recommended)``.
    """

    sampler: Sampler
    sampling: Sampling


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(AsTable):
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
    def answer(self) -> str:
        """Whether the best setting is usable and what is wrong with it, in one sentence."""
        i = self.best
        if not self.good[i]:
            return answer.not_usable(self._judged[i], len(self))
        return answer.usable(self._judged[i], int(self.errors[i].argmax()))

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
        listed = ", ".join(parts)
        largest = f"{label(result.names, worst)}: {listed}"
        return f"recommended: {setting}: error {self.error[i]:.2f} ({largest})"

    def to_dataframe(self, *, diagnostics: bool = False) -> pd.DataFrame:
        """Return a table with one row a setting and refinement.

        Its columns are ``lr, n_beta, localization, good, error, faults`` and an estimate's.

        Args:
            diagnostics: whether an estimate's diagnostics come, too.
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
            frame = self.estimates[i].to_dataframe(diagnostics=diagnostics)
            frames.append(with_columns_first(frame, columns))
        return pd.concat(frames, ignore_index=True)

    @property
    def _table(self) -> Table:
        """A row a setting, in the order in which they were tried."""
        rows: list[tuple[str, ...]] = [("", *search.Setting._fields, "error", "verdict")]
        for i, verdict in enumerate(self.verdicts):
            numbers = [f"{number:.3g}" for number in self._setting(i)]
            mark = "→" if i == self.best and self.good[i] else ""
            rows.append((mark, *numbers, f"{self.error[i]:.2f}", verdict))
        count = len(self.estimates[0])
        noun = "refinements" if count > 1 else "refinement"
        title = (
            f"Calibration: {len(self)} settings on {count} {noun}, "
            f"{self.sampling.num_chains} chains × {self.sampling.num_draws} draws, "
            f"{int(self.good.sum())} good"
        )
        bad = np.flatnonzero(~self.good).tolist()
        return Table(
            title=f"{self.answer}\n{title}",
            rows=rows,
            left=(5,),
            wrong=[(i, 5) for i in bad],
            notes=[self._summary()],
            see_all="print(calibration.to_dataframe().to_string())",
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {name: getattr(self, name) for name in search.Setting._fields}
        headers = []
        for i, result in enumerate(self.estimates):
            its_arrays, its_header = result.pack()
            headers.append(its_header)
            arrays |= {f"{i}.{name}": array for name, array in its_arrays.items()}
        header = {
            "kind": "rllc.Calibration",
            "estimates": headers,
            "limits": asdict(self.limits),
            "sampling": asdict(self.sampling),
            "sampler": self.make(*self._lr_and_localization(0)).settings,
        }
        return save_arrays(path, arrays, header)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        sampler: Callable[[float, float], Sampler] | None = None,
    ) -> Calibration:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            sampler: the function (lr, localization) -> Sampler that :func:`calibrate` was given.
                Samplers of rllc are made again from their settings and do not need it.

        Raises:
            FileError: there is no such file, it is damaged, or it holds something else.
            InputError: its sampler is not one of rllc's, and ``sampler`` is missing.
        """
        arrays, header = load_arrays(path, kind="rllc.Calibration")
        with reading(path):
            kinds = {"estimates": "list", "limits": "object", "sampling": "object"}
            check_fields(header, kinds | {"sampler": "object"})
            check_fields(header["sampler"], {"sampler": "text"})
            count = len(header["estimates"])
            if not count:
                raise ValueError("it has no estimates")
            check_shapes(arrays, dict.fromkeys(search.Setting._fields, 1), count)
            estimates = []
            for i, its_header in enumerate(header["estimates"]):
                prefix = f"{i}."
                names = [name for name in arrays if name.startswith(prefix)]
                its_arrays = {name.removeprefix(prefix): arrays[name] for name in names}
                estimates.append(Estimate.unpack(its_arrays, its_header))
            loaded = cls(
                **{name: arrays[name] for name in search.Setting._fields},
                estimates=tuple(estimates),
                limits=Limits(**header["limits"]),
                make=sampler or _Remade(header["sampler"]),
                sampling=Sampling(**header["sampling"]),
            )
        try:
            loaded.make(*loaded._lr_and_localization(0))
        except InputError as error:
            raise InputError(
                f"reading {path} as Calibration: its sampler cannot be made again from its "
                f"settings ({error}) Pass sampler=f, the function (lr, localization) -> Sampler "
                f"that rllc.calibrate was given."
            ) from error
        return loaded

    def _lr_and_localization(self, i: int) -> tuple[float, float]:
        setting = self._setting(i)
        return setting.lr, setting.localization


@dataclass(frozen=True)
class _Remade:
    """(lr, localization) -> one of rllc's samplers, with the other settings as they were."""

    settings: Mapping[str, object]

    def __call__(self, lr: float, localization: float) -> Sampler:
        return from_settings({**self.settings, "lr": lr, "localization": localization})


def calibrate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Callable[[float, float], Sampler] = sgld,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    compute: Compute | None = None,
    **grid: float | Sequence[float],
) -> Calibration:
    """Find an lr, n_beta and localization with which *all* these refinements can be compared.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> square, lr = lambda m, x: m(x)[:, 0] ** 2, [1e-3, 3e-3]
    >>> len(calibrate(model, data, loss=square, lr=lr, n_beta=[100.0], localization=[10.0]))
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
    ``calibrate(…, n_beta=[30.0], localization=[200.0])``.

    Where no list is given the search is open. It goes by decades and then half decades, one setting
    at a time, in the direction that mends what is wrong. Where steps are too large that is a lower
    lr; where chains are slow, a larger lr, then γ; where the prior hides most, a smaller γ and a
    larger nβ in turn; where there is noise, a smaller nβ and γ together, which holds the
    resolution. When nβ or γ moves and the largest curvature h is known, lr·(nβh + γ) is held, and
    settings that this h shows to be unstable are not tried. A move is kept when it makes the
    setting good, or when the error, plus the logarithms of how far it is beyond its limits, falls
    by a tenth. The search ends when no move of half a decade helps, or after
    ``limits.max_settings``.

    Each setting costs one :func:`rllc.estimate`. Before it begins it says how many there may be,
    and after the first how long they take.

    Args:
        model: as for :func:`rllc.estimate`; so are ``data``, ``weights``, ``loss`` and
            ``compute``.
        sampler: a function (lr, localization) -> Sampler: ``rllc.sgld``,
            ``rllc.samplers.rmsprop_sgld``, or one of your own.
        sampling: chains, draws, batches and seed, those to be used later; ``None`` is the paper's.
            Its ``n_beta`` is replaced.
        limits: when a setting is good; ``None`` is ``Limits.for_calibration()``.
        grid: ``lr=…, n_beta=…, localization=…``. A number is where the search starts; a list holds
            the values to try and no others. Lists for all three: their product, as it stands. What
            is left out starts at the paper's 1e-3, 30 and 200.

    Returns:
        :class:`Calibration`; ``rllc.estimate(model, data, weights, **calibration.recommended)``.
        Printed, it leads with its answer in one sentence. :meth:`Calibration.save` keeps it.

    Raises:
        InputError: there are other keywords, or values that are not positive numbers (localization
            may be 0 in a list); ``sampler`` is not a function; and as :func:`rllc.estimate`.

    Reference: the criteria are those of the Timaeus sampling guide (2026), with limits.
    """
    axes = search.axes_of(grid)
    if isinstance(sampler, Sampler | nn.Module | type) or not callable(sampler):
        raise InputError(
            f"calibrate: `sampler` must be a function (lr, localization) -> Sampler, "
            f"such as rllc.sgld without a call; got {sampler!r}."
        )
    check_how(compute, limits)
    limits = limits or Limits.for_calibration()
    sampling = Sampling() if sampling is None else sampling
    sampling = arguments(model, loss, None, sampling)[1]
    data = named_data(data)
    lists = [axis.values for axis in axes if axis.values is not None]
    is_product = len(lists) == len(axes)
    total = math.prod(map(len, lists)) if is_product else limits.max_settings
    tried: dict[tuple[float, ...], Estimate] = {}
    compute = Compute() if compute is None else compute
    bar = tqdm(
        total=total, desc="calibrate", unit="setting", disable=not compute.progress, leave=False
    )

    def say(words: str) -> None:
        if compute.progress:
            bar.write(f"calibrate: {words}", file=sys.stderr)

    def measure(lr: float, n_beta: float, localization: float) -> Estimate:
        began = time.perf_counter()
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
        if not tried:
            seconds = time.perf_counter() - began
            together = f"{_at_most(total, is_product)} take {duration(seconds * total)}"
            say(f"the first took {duration(seconds)}; {together}")
        return tried.setdefault((lr, n_beta, localization), result)

    with bar:
        say(
            f"{_at_most(total, is_product)} settings × {sampling.num_steps} steps of each chain; "
            f"the time is known after the first"
        )
        if is_product:
            for setting in itertools.product(*lists):
                measure(*setting)
        else:
            search.Search(axes, measure, limits).run()
    lr, n_beta, localization = np.array(list(tried)).T
    return Calibration(lr, n_beta, localization, tuple(tried.values()), limits, sampler, sampling)


def _at_most(count: int, exactly: bool) -> str:
    return f"all {count}" if exactly else f"at most {count}"
