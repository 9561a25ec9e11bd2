"""Which settings to sample with: a search over (lr, n_beta, localization) with a stated criterion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from rllc.checks import arguments
from rllc.errors import InputError, RllcError, nearest
from rllc.estimate import Estimate, estimate
from rllc.loss import LossFunction
from rllc.refinement import DataLike, WeightsLike
from rllc.sampling import Sampling
from rllc.samplers import Sampler, sgld
from rllc.tables import table

if TYPE_CHECKING:
    import pandas as pd

START = {"lr": 1e-3, "n_beta": 30.0, "localization": 200.0}
"""Where the search starts: the paper's settings."""

_CLEARLY = 0.9
"""A move is made only for an error, or an excess, below this share of the last one: less is noise."""

_SIZES = (2, 1, 4, 8)
"""Moves in half decades, one size after the other; the long ones only while nothing is good, from where no short one helps."""

_STEP = 0.5
"""ε(nβh + γ) in the sharpest direction, where it can be chosen: stability 8, and that direction counts 1/(1 − ⅛) times."""


_HELP = {
    "step": "a smaller lr",
    "slow": "more draws, a larger lr, or a larger localization",
    "noise": "more draws or chains, larger batches, or a smaller n_beta; below 0, a w* that is a minimum for this data",
    "prior": "a smaller localization or a larger n_beta, each with lr * (n_beta * curvature + localization) held",
}
"""What to change, by the kind of the gravest fault."""

_FIRST = {
    "step": (("lr", -1), ("scale", -1)),
    "slow": (("lr", 1), ("localization", 1), ("n_beta", -1)),
    "noise": (("lr", 1), ("scale", -1)),
    "prior": (("localization", -1), ("n_beta", 1)),
    "start": (("lr", 1), ("localization", 1)),
}
"""Which moves are tried first, by what is wrong or makes most of the error."""

_AXES = ("lr", "n_beta", "localization")

_MOVED = {name: (name,) for name in _AXES} | {"scale": ("n_beta", "localization")}
"""What moves in each direction. With nβ, γ and 1/lr in proportion all stays as it is on a quadratic, but for minibatch noise."""


class Fault(NamedTuple):
    """One thing that is wrong with one refinement at one setting."""

    kind: str
    """``"step"``: steps too large; ``"slow"``: too few draws for steps so small; ``"noise"``; ``"prior"``: too narrow."""
    words: str
    excess: float
    """¼ + the logarithm of how many times its limit it is; more when chains diverged."""


@dataclass(frozen=True)
class Criterion:
    """When a setting is good: the limits that *every* refinement has to keep, and when to give up looking for one.

    >>> Criterion(max_rhat=1.05).max_rhat
    1.05

    A diagnostic that is not known (NaN; the step's share for samplers without one) is not judged. Chains that diverge and
    values that are not positive are never good.

    Args:
        min_stability: least 4/(ε(nβh + γ)) for the largest curvature h. Below 1 chains blow up; at 2 one step forgets the
            sharpest direction, and beyond they overshoot: that is the margin, since h is larger elsewhere.
        max_spikes: most draws far outside the distribution of the others; one is a chain that was thrown out.
        min_relaxations: fewest autocorrelation times in a chain's draws. Chains that start at w* lack about half the
            inverse: 5 %.
        max_drift: largest size of z in Geweke's test after the first fifth of the draws, as in the status.
        max_rhat: largest R-hat, again as in the status.
        min_acceptance: least MALA acceptance of sgld's steps. At rest on a quadratic of precision a and any dimension d at
            least half is accepted, ½ + exp(s²/2)Φ(−s) with s = (εa)^{3/2}√d/4; near 0, chains are not at rest.
        max_step: largest share of λ̂ that the step size adds, minibatch noise included.
        max_noise: largest standard error as a share of λ̂. At 0.2 a factor of 1.5 between two refinements can be seen.
        max_shrinkage: largest share by which the prior makes λ̂ smaller. Beyond 0.9 the prior is what is measured, not the
            loss; at the paper's settings a quadratic of unit curvature has 0.87.
        max_settings: how many settings a search tries at most. Each costs one :func:`rllc.estimate`.
    """

    min_stability: float = 2.0
    max_spikes: float = 0.0
    min_relaxations: float = 10.0
    max_drift: float = 4.0
    max_rhat: float = 1.1
    min_acceptance: float = 0.1
    max_step: float = 0.1
    max_noise: float = 0.2
    max_shrinkage: float = 0.9
    max_settings: int = 40

    def faults(self, estimate: Estimate) -> tuple[tuple[Fault, ...], ...]:
        """``[refinement]``: what is wrong with each, the graver first; empty when it is good."""
        parts = parts_of_error(estimate)
        return tuple(self._faults(estimate, parts, k) for k in range(len(estimate)))

    def _faults(
        self, estimate: Estimate, parts: Mapping[str, np.ndarray], k: int
    ) -> tuple[Fault, ...]:
        value, error, rhat = (
            float(a[k]) for a in (estimate.value, estimate.standard_error, estimate.rhat)
        )
        if not np.isfinite(value):
            nearer = (
                30 * estimate.settings["lr"] ** 0.1
            )  # less for a smaller lr, so that a search goes there
            return (Fault("step", estimate.status[k].partition(";")[0], nearer),)
        if np.isnan(error):
            return (Fault("noise", "too few draws for a standard error", 10.0),)
        if value <= 0:
            return (Fault("noise", f"not positive ({value:.2g} ± {error:.2g})", 5.0),)
        seen = {name: float(array[k]) for name, array in estimate.diagnostics.items()}
        added, hidden = (1 - math.exp(-parts[name][k]) for name in ("step", "prior"))
        noise, relaxations = error / value, estimate.settings["num_draws"] / seen["relaxation"]
        judged = (
            (
                "step",
                self.min_stability / seen["stability"],
                f"unstable (stability {seen['stability']:.2g})",
            ),
            (
                "step",
                (1 + seen["spikes"]) / (1 + self.max_spikes),
                f"spikes in {seen['spikes']:.0f} draws",
            ),
            (
                "step",
                self.min_acceptance / max(seen["acceptance"], 1e-6),
                f"acceptance {seen['acceptance']:.2g}",
            ),
            ("step", added / self.max_step, f"the step size adds {added:.0%}"),
            (
                "slow",
                self.min_relaxations / relaxations,
                f"slow ({relaxations:.1f} relaxation times)",
            ),
            ("slow", abs(seen["drift"]) / self.max_drift, f"drifting (z = {seen['drift']:.1f})"),
            ("slow", (rhat - 1) / (self.max_rhat - 1), f"chains disagree (R-hat {rhat:.2f})"),
            ("noise", noise / self.max_noise, f"noise ({noise:.0%} of the value)"),
            (
                "prior",
                parts["prior"][k] / -math.log1p(-self.max_shrinkage),
                f"the prior hides {hidden:.0%}",
            ),
        )
        return tuple(
            Fault(kind, words, 0.25 + math.log(ratio)) for kind, ratio, words in judged if ratio > 1
        )


def parts_of_error(estimate: Estimate) -> dict[str, np.ndarray]:
    """What is known of the relative error of λ̂, part by part, as logarithms: ``[refinement]`` each, NaN where λ̂ is.

    - ``"step"``: what a finite step size adds, −log(1 − s) + log(1 + s·N/2λ̂) with s the diagnostic ``discretisation``. The
      second term is the minibatch noise that heats the chain by (ε/4)(nβ)²C: where its covariance C is the Hessian by
      the minibatch size, as for a log loss near its minimum, C = h·N/(2nβλ̂), N being the variance of
      nβ(ℓ_B − ℓ*_B) that comes from the choice of the minibatch B.
    - ``"prior"``: −log of the average share nβh/(nβh + γ) by which directions count, weighted by it: variance/λ̂ of the
      draws, without what the step size has widened; no smaller share is believed than its standard error.
    - ``"noise"``: standard error/λ̂.
    - ``"start"``: what chains that start at w* lack on average, (τ − 1)/2N of N draws of autocorrelation time τ, times
      ((τ − 1)/(τ + 1))^B after a burn-in of B draws (exact for a single curvature).

    What is not known counts as 0. Small parts are relative errors; 2.3 is a factor of ten.
    """
    told, s, value = estimate.diagnostics, estimate.settings, estimate.value
    with np.errstate(divide="ignore", invalid="ignore"):
        added = np.clip(np.nan_to_num(told["discretisation"]), 0, 0.99)
        heat = np.nan_to_num(told["minibatch_variance"] / (2 * value)).clip(min=0)
        step = np.log1p(added * heat) - np.log1p(-added)
        counted = (
            np.maximum(told["from_variance"], told["from_variance_se"]) / value * np.exp(-step)
        )
        counted = np.clip(np.nan_to_num(counted, nan=1.0), 1e-4, 1)
        kept = (told["relaxation"].clip(min=1) - 1) / (told["relaxation"].clip(min=1) + 1)
        lacking = (
            kept
            / (1 - kept)
            / s["num_draws"]
            * kept ** (s["num_burnin_steps"] / s["num_steps_bw_draws"])
        )
        missing = np.isfinite(value) * lacking.clip(0, 0.99) * (s["start"] == "center")
        known = np.where(value > 0, 0.0, np.nan)
        return {
            "step": known + step,
            "prior": known - np.log(counted),
            "noise": known + estimate.standard_error / value,
            "start": known - np.log1p(-missing),
        }


class Recommended(TypedDict):
    """What :func:`rllc.estimate`, :func:`rllc.track` and the like take: ``rllc.estimate(model, data, **recommended)``."""

    sampler: Sampler
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Calibration:
    """Settings that were tried, what each gave, and which is best; :func:`calibrate` makes it, and printing it shows a table.

    Args:
        lr: ``[setting]``, and so ``n_beta`` and ``localization``, in the order in which they were tried.
        n_beta: nβ of each.
        localization: γ of each.
        estimates: ``[setting]``: what :func:`rllc.estimate` gives there.
        criterion: when a setting is good.
        make: the function (lr, localization) -> Sampler.
        sampling: how much was sampled; its ``n_beta`` is each setting's.
    """

    lr: np.ndarray
    n_beta: np.ndarray
    localization: np.ndarray
    estimates: tuple[Estimate, ...]
    criterion: Criterion
    make: Callable[[float, float], Sampler]
    sampling: Sampling

    def __len__(self) -> int:
        return len(self.estimates)

    @cached_property
    def faults(self) -> tuple[tuple[tuple[Fault, ...], ...], ...]:
        """``[setting][refinement]``: what is wrong there."""
        return tuple(self.criterion.faults(e) for e in self.estimates)

    @cached_property
    def errors(self) -> np.ndarray:
        """``[setting, refinement]``: relative error as a logarithm, √(sum of squares) of :func:`parts_of_error`.

        0.1 is 10 %, 2.3 a factor of ten. NaN where chains diverged or the value is not positive.
        """
        return np.array([_total(e) for e in self.estimates])

    @property
    def error(self) -> np.ndarray:
        """``[setting]``: that of the worst refinement."""
        return self.errors.max(1)

    @property
    def good(self) -> np.ndarray:
        """``[setting]``: whether every refinement keeps every limit."""
        return np.array([not any(found) for found in self.faults])

    @property
    def verdicts(self) -> tuple[str, ...]:
        """``[setting]``: ``"good"`` and what limits it most, or what is wrong with the worst refinement."""
        return tuple(self._verdict(i) for i in range(len(self)))

    @property
    def recommended(self) -> Recommended:
        """Sampler and sampling of the good setting with the least :attr:`error`, ready to be passed on with ``**``.

        Raises:
            RllcError: no setting is good; says which came closest and what is wrong with it.
        """
        if not self.good.any():
            raise RllcError(f"Calibration.recommended: {self._summary()}")
        i = self.best
        return {
            "sampler": self.make(float(self.lr[i]), float(self.localization[i])),
            "sampling": replace(self.sampling, n_beta=float(self.n_beta[i])),
        }

    def sampler_at(self, n_beta: float) -> Sampler:
        """The recommended sampler for another nβ: ``resolution(model, data, sampler=calibration.sampler_at)``.

        The localization is held, and lr·(nβh + γ), h being the largest curvature of all refinements; where h is not
        known, lr.

        Raises:
            RllcError: no setting is good.
        """
        sampler, sampling = self.recommended["sampler"], self.recommended["sampling"]
        lr, gamma, h = (
            float(self.lr[self.best]),
            float(self.localization[self.best]),
            _sharpest(self.estimates),
        )
        return (
            self.make(lr * (sampling.n_beta * h + gamma) / (n_beta * h + gamma), gamma)
            if h
            else sampler
        )

    @cached_property
    def best(self) -> int:
        """Which setting is recommended; where none is good, the closest to it."""
        return min(range(len(self)), key=lambda i: _rank(self.estimates[i], self.faults[i]))

    def _verdict(self, i: int) -> str:
        e = self.estimates[i]
        if self.good[i]:
            k = int(self.errors[i].argmax())
            parts = parts_of_error(e)
            return f"good; most of the error: {max(parts, key=lambda name: parts[name][k])}, {where(e, k)}"
        worst = max(range(len(e)), key=lambda k: _excess(self.faults[i][k]))
        others = sum(map(bool, self.faults[i])) - 1
        words = ", ".join(f.words for f in self.faults[i][worst])
        return f"{where(e, worst)}: {words}" + (f"; and {others} more" if others else "")

    def _named(self, i: int) -> str:
        return f"lr = {self.lr[i]:.3g}, n_beta = {self.n_beta[i]:.3g}, localization = {self.localization[i]:.3g}"

    def _summary(self) -> str:
        i = self.best
        if self.good[i]:
            k = int(self.errors[i].argmax())
            parts = (
                f"{name} {array[k]:.2f}"
                for name, array in parts_of_error(self.estimates[i]).items()
            )
            on = where(self.estimates[i], k)
            return f"recommended: {self._named(i)}: error {self.error[i]:.2f} ({on}: {', '.join(parts)})"
        return (
            f"none of the {len(self)} settings is good. Closest: {self._named(i)}: {self._verdict(i)}. "
            f"What helps: {_HELP[_gravest(self.faults[i]).kind]}."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a setting and refinement: ``lr, n_beta, localization, good, error, faults`` and an estimate's columns."""
        import pandas as pd

        rows = []
        for i, e in enumerate(self.estimates):
            faults = ["; ".join(f.words for f in found) for found in self.faults[i]]
            told = {
                "lr": self.lr[i],
                "n_beta": self.n_beta[i],
                "localization": self.localization[i],
            }
            rows.append(
                e.to_dataframe().assign(
                    **told, good=self.good[i], error=self.errors[i], faults=faults
                )
            )
        frame = pd.concat(rows, ignore_index=True)
        first = ["lr", "n_beta", "localization", "good", "error", "faults"]
        return frame[first + [name for name in frame.columns if name not in first]]

    def __repr__(self) -> str:
        rows = [("", "lr", "n_beta", "localization", "error", "verdict")]
        for i, verdict in enumerate(self.verdicts):
            numbers = (f"{x[i]:.3g}" for x in (self.lr, self.n_beta, self.localization))
            mark = "→" if i == self.best and self.good[i] else ""
            rows.append((mark, *numbers, f"{self.error[i]:.2f}", verdict))
        s, count = self.sampling, len(self.estimates[0])
        title = f"Calibration: {len(self)} settings on {count} refinement{'s' * (count > 1)}, {s.num_chains} chains × "
        title += f"{s.num_draws} draws, {int(self.good.sum())} good"
        return f"{table(title, rows, left=(5,))}\n{self._summary()}"


def calibrate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Callable[[float, float], Sampler] = sgld,
    sampling: Sampling | None = None,
    grid: Mapping[str, float | Sequence[float]] | None = None,
    criterion: Criterion | None = None,
    progress: bool = True,
) -> Calibration:
    """Find an lr, n_beta and localization with which *all* these refinements can be sampled and compared.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> grid = {"lr": [1e-3, 3e-3], "n_beta": [100.0], "localization": [10.0]}
    >>> len(calibrate(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, grid=grid, progress=False))
    2

    A setting is **good** when every refinement keeps every limit of the :class:`Criterion`: no chain diverged, steps stable
    with a margin and without spikes, the step size adding little, the draws many relaxation times long and without drift,
    chains that agree, an error small against the value, a positive value, and not almost all of it hidden by the prior.

    **Recommended** is the good setting whose worst refinement has the least :func:`error <parts_of_error>` against λ without
    prior: the finest resolution that these draws can sample. nβ and γ are no nuisances: a direction of curvature h
    counts nβh/(nβh + γ), so λ̂ is complexity at the resolution γ/nβ, and chains stay within about 1/√γ. On an exact
    quadratic only lr·nβ and lr·γ matter; with minibatches a large nβ heats the chains, and where the loss is not quadratic a
    small nβ and γ let them leave the neighbourhood of w*, which no diagnostic can see. Where values are to be compared
    with others', hold the resolution and let lr follow: ``grid={"n_beta": [30.0], "localization": [200.0]}``.

    Where ``grid`` has a number the search is open: from there, by decades and then half decades, one setting at a time, in
    the direction that what is wrong asks for (steps too large: lower lr; too slow: larger lr, then γ; the prior hides
    most: smaller γ and larger nβ in turn; noise: smaller nβ and γ together, which holds the resolution), with lr·(nβh + γ)
    held when nβ or γ moves and the largest curvature h is known; settings that this h shows to be unstable are not tried.
    A move is kept when it makes the setting good, or when the error,
    plus the logarithms of how far it is beyond its limits, falls by a tenth. It ends when no move of half a decade helps,
    or after ``criterion.max_settings``.

    Args:
        model: as for :func:`rllc.estimate`; so are ``data``, ``weights``, ``loss`` and ``progress``.
        sampler: a function (lr, localization) -> Sampler: ``rllc.sgld``, ``rllc.rmsprop_sgld``, or one of your own.
        sampling: chains, draws, batches and seed, those to be used later; ``None`` is the paper's. Its ``n_beta`` is replaced.
        grid: ``{"lr": …, "n_beta": …, "localization": …}``. A number is where the search starts; a list holds the values to try
            and no others. Lists for all three: their product, as it stands. What is left out starts at the paper's 1e-3, 30
            and 200.
        criterion: ``None`` is ``Criterion()``.

    Returns:
        :class:`Calibration`; ``rllc.estimate(model, data, weights, **calibration.recommended)``.

    Raises:
        InputError: ``grid`` has other names, or values that are not positive numbers (localization may be 0 in a list);
            ``sampler`` is not a function; and as :func:`rllc.estimate`.

    Source: the criteria are those of the Timaeus sampling guide (2026), with limits.
    """
    if isinstance(sampler, Sampler) or not callable(sampler):
        raise InputError(
            f"calibrate: `sampler` must be a function (lr, localization) -> Sampler, such as rllc.sgld without a call; "
            f"got {sampler!r}."
        )
    criterion, sampling, axes = (
        criterion or Criterion(),
        arguments(model, loss, None, sampling)[1],
        _axes(grid or {}),
    )
    tried: dict[tuple[float, ...], Estimate] = {}
    plain = all(axis.values is not None for axis in axes)
    total = math.prod(len(axis.values or ()) for axis in axes) if plain else criterion.max_settings
    with tqdm(
        total=total, desc="calibrate", unit="setting", disable=not progress, leave=False
    ) as bar:

        def measure(*setting: float) -> Estimate:
            lr, n_beta, localization = setting
            bar.set_postfix_str(f"lr={lr:.3g} n_beta={n_beta:.3g} localization={localization:.3g}")
            here = {
                "sampler": sampler(lr, localization),
                "sampling": replace(sampling, n_beta=n_beta, target_se=None),
            }
            found = estimate(model, data, weights, loss=loss, progress=False, **here)
            bar.update()
            return tried.setdefault(setting, found)

        if plain:
            for setting in itertools.product(*(axis.values or () for axis in axes)):
                measure(*setting)
        else:
            _search(axes, measure, criterion)
    return Calibration(
        *np.array(list(tried)).T, tuple(tried.values()), criterion, sampler, sampling
    )


@dataclass(frozen=True)
class _Axis:
    """The values of one setting, by a whole number: 1, 3, 10, 30, … times the start, or a list."""

    start: float
    values: tuple[float, ...] | None

    def __getitem__(self, i: int) -> float | None:
        """The i-th value; ``None`` beyond the ends of a list."""
        if self.values is not None:
            return self.values[i] if 0 <= i < len(self.values) else None
        return float(f"{self.start * (1, 3)[i % 2] * 10.0 ** (i // 2):.9g}")

    def nearest(self, value: float) -> int:
        """The number of the value closest to this one, as a ratio."""
        about = round(2 * math.log10(value / self.start))
        known = range(about - 1, about + 2) if self.values is None else range(len(self.values))
        return min(known, key=lambda i: abs(math.log(max(self[i] or 0.0, 1e-30) / value)))


_Point = tuple[int, ...]


def _axes(grid: Mapping[str, float | Sequence[float]]) -> list[_Axis]:
    for name in grid:
        if name not in _AXES:
            raise InputError(f"calibrate: `grid` has {name!r}; {nearest(name, _AXES)}")
    axes = []
    for name in _AXES:
        given = grid.get(name, START[name])
        listed = isinstance(given, Sequence | np.ndarray)
        values = tuple(given) if listed else (given,)
        least = "from 0 on" if listed and name == "localization" else "above 0"
        if not values or not all(is_number(v, zero=least == "from 0 on") for v in values):
            raise InputError(
                f"calibrate: `grid[{name!r}]` must be a number above 0, where to start, or a list of numbers {least}, those "
                f"to try; got {given!r}."
            )
        numbers = tuple(float(v) for v in values)
        if not all(
            isinstance(grid.get(other), Sequence | np.ndarray) for other in _AXES
        ):  # a search goes up and down
            numbers = tuple(sorted(set(numbers)))
        axes.append(_Axis(START[name] if listed else numbers[0], numbers if listed else None))
    return axes


def is_number(value: object, zero: bool) -> bool:
    """Whether it is a positive number, or 0 where that will do."""
    return (
        isinstance(value, int | float | np.number)
        and (value > 0 or (zero and value == 0))
        and value < math.inf
    )


def _search(axes: Sequence[_Axis], measure: Callable[..., Estimate], criterion: Criterion) -> None:
    """From the start to better and better settings, by decades and then by half decades."""
    tried: dict[_Point, Estimate] = {}

    def rank(point: _Point) -> tuple[bool, float]:
        if point not in tried:
            tried[point] = measure(*(axis[i] for axis, i in zip(axes, point, strict=True)))
        return _rank(tried[point], criterion.faults(tried[point]))

    best: _Point = tuple(axis.nearest(axis.start) for axis in axes)
    now, sizes = rank(best), list(_SIZES)
    while sizes and (sizes[0] <= 2 or now[0]):
        for point in _moves(axes, best, sizes[0], tried, criterion):
            if point not in tried and len(tried) >= criterion.max_settings:
                return
            there = rank(point)
            if there[0] < now[0] or (there[0] == now[0] and there[1] < _CLEARLY * now[1]):
                best, now = point, there
                sizes = sizes if sizes[0] <= 2 else list(_SIZES)
                break
        else:
            sizes.pop(0)


def _moves(
    axes: Sequence[_Axis],
    best: _Point,
    size: int,
    tried: Mapping[_Point, Estimate],
    criterion: Criterion,
) -> Iterator[_Point]:
    """Where to go from ``best``, the most promising first."""
    h, faults = _sharpest(tried.values()), criterion.faults(tried[best])
    lr, n_beta, localization = _values(axes, best)
    if h and any(faults):
        to = axes[0].nearest(_STEP / (n_beta * h + localization))
        if abs(to - best[0]) > 1:
            yield (to, *best[1:])
    for name, sign in _directions(axes, best, tried[best], faults):
        point = [
            i + sign * size * (axis in _MOVED[name]) for axis, i in zip(_AXES, best, strict=True)
        ]
        if None in (there := _values(axes, point)):
            continue
        steps = (
            [there[0]]
            if name == "lr"
            else [lr, lr * max(n_beta / there[1], localization / max(there[2], 1e-30), key=_far)]
        )
        if h and name != "lr":
            steps = [lr * (n_beta * h + localization) / (there[1] * h + there[2])]
        for i in dict.fromkeys(axes[0].nearest(step) for step in steps):
            yield from _with_second_try(axes, (i, *point[1:]), best[0], h, tried, criterion)


def _with_second_try(
    axes: Sequence[_Axis],
    point: _Point,
    now: int,
    h: float,
    tried: Mapping[_Point, Estimate],
    criterion: Criterion,
) -> Iterator[_Point]:
    """The point if it is not known to be unstable; and if its lr is all that is wrong there, the next lr."""

    def stable(there: _Point) -> bool:
        lr, n_beta, localization = _values(axes, there)
        return lr is not None and (
            not h or lr * (n_beta * h + localization) * criterion.min_stability <= 4
        )

    if not stable(point):
        return
    yield point
    faults = criterion.faults(tried[point])
    turn = {"slow": 1, "step": -1}.get(_gravest(faults).kind, 0) if any(faults) else 0
    again = (point[0] + turn, *point[1:])
    if turn and again[0] != now and stable(again):
        yield again


def _directions(
    axes: Sequence[_Axis], best: _Point, estimate: Estimate, faults: Sequence[Sequence[Fault]]
) -> list[tuple[str, int]]:
    """All directions, first those that mend what is wrong or makes most of the error."""
    if any(faults):
        kind = _gravest(faults).kind
    else:
        k, parts = int(_total(estimate).argmax()), parts_of_error(estimate)
        kind = max(parts, key=lambda name: parts[name][k])
    first = list(_FIRST[kind])
    if (
        kind == "prior"
    ):  # in turn, so that neither the neighbourhood grows nor minibatches heat more than they must
        moved = [i - axis.nearest(axis.start) for axis, i in zip(axes, best, strict=True)]
        first.sort(key=lambda d: d[1] * moved[_AXES.index(d[0])])
    return list(dict.fromkeys([*first, *((name, sign) for name in _MOVED for sign in (1, -1))]))


def _far(ratio: float) -> float:
    """How far a ratio is from 1."""
    return abs(math.log(ratio))


def _values(axes: Sequence[_Axis], point: Sequence[int]) -> list[float | None]:
    return [axis[i] for axis, i in zip(axes, point, strict=True)]


def _rank(estimate: Estimate, faults: Sequence[Sequence[Fault]]) -> tuple[bool, float]:
    """Settings in order, the best first: the good by their error, the others also by how far they are from good."""
    error = float(np.nan_to_num(_total(estimate)).max())
    return any(faults), error + max(map(_excess, faults))


def _excess(faults: Sequence[Fault]) -> float:
    return sum(f.excess for f in faults)


def _gravest(faults: Sequence[Sequence[Fault]]) -> Fault:
    return max(max(faults, key=_excess), key=lambda f: f.excess)


def _total(estimate: Estimate) -> np.ndarray:
    return np.sqrt(sum(part**2 for part in parts_of_error(estimate).values()))


def _sharpest(estimates: Iterable[Estimate]) -> float:
    """The largest curvature of all refinements where it says which steps are stable; else 0."""
    told = (
        e.diagnostics["max_curvature"][np.isfinite(e.diagnostics["stability"])] for e in estimates
    )
    return float(max((found.max() for found in told if found.size), default=0.0))


def where(estimate: Estimate, k: int) -> str:
    """The name of a refinement: its weights, and its data where there are several."""
    several = len(set(estimate.data)) > 1
    return estimate.weights[k] + (f" on {estimate.data[k]}" if several else "")
