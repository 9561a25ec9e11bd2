"""A search over (lr, n_beta, localization): from one setting to a better one.

:func:`rllc.calibrate` says what the search does. Here are its axes, its moves, and the order of
settings by which a move is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from rllc.arguments import advice
from rllc.errors import InputError
from rllc.estimates.diagnose import PARTS
from rllc.estimates.estimate import Estimate
from rllc.estimates.faults import Fault, Kind
from rllc.limits import Limits


class Setting(NamedTuple):
    """The three numbers that the search chooses."""

    lr: float
    n_beta: float
    localization: float


START = Setting(lr=1e-3, n_beta=30.0, localization=200.0)
"""Where the search starts: the paper's settings."""

Trouble = Literal["step", "slow", "noise", "prior", "start"]
"""Groups of faults that the same move mends; the parts of the error have these names, too."""

TROUBLES: Mapping[Kind, Trouble] = {
    "diverged": "step",
    "spikes": "step",
    "unstable": "step",
    "hardly_stable": "step",
    "rarely_accepted": "step",
    "step_bias": "step",
    "step_and_noise_bias": "step",
    "few_relaxations": "slow",
    "too_short": "slow",
    "does_not_move": "step",
    "weights_ignored": "noise",
    "rounding": "step",
    "heavy_tails": "noise",
    "pairing": "noise",
    "rising": "slow",
    "falling": "slow",
    "disagree": "slow",
    "too_few_draws": "noise",
    "negative": "noise",
    "noise_above_signal": "noise",
    "imprecise": "noise",
    "above_target": "noise",
    "prior_dominated": "prior",
}
"""The trouble that each kind of fault is a sign of."""

HELP: Mapping[Trouble, str] = {
    "step": "a smaller lr",
    "slow": "more draws, a larger lr, or a larger localization",
    "noise": (
        "more draws or chains, larger batches, or a smaller n_beta; "
        "below 0, a w* that is a minimum for this data"
    ),
    "prior": (
        "a smaller localization or a larger n_beta, "
        "each with lr * (n_beta * curvature + localization) held"
    ),
}
"""Advice where no setting is good."""

_KEYWORDS = (*Setting._fields, "weights", "loss", "sampler", "sampling", "limits", "compute")
"""The keyword arguments of :func:`rllc.calibrate`."""

_CLEARLY = 0.9
"""A move is kept only if its cost is below this share of the last one's. Less is noise."""

_SIZES = (2, 1, 4, 8)
"""Sizes of moves in half decades, one after the other.

The long ones are for where no short one helps, and only while nothing is good.
"""

_STEP = 0.5
"""ε(nβh + γ) in the sharpest direction, where it can be chosen.

That is a stability of 8, and the direction then counts 1/(1 − ⅛) times.
"""

_MOVES = {
    "lr": ("lr",),
    "n_beta": ("n_beta",),
    "localization": ("localization",),
    # With nβ, γ and 1/lr in proportion all stays as it is on a quadratic, but for minibatch noise.
    "scale": ("n_beta", "localization"),
}
"""The settings that each move changes. ``lr`` follows nβ and γ in all of them."""

_FIRST: Mapping[Trouble, tuple[tuple[str, int], ...]] = {
    "step": (("lr", -1), ("scale", -1)),
    "slow": (("lr", 1), ("localization", 1), ("n_beta", -1)),
    "noise": (("lr", 1), ("scale", -1)),
    # Flat directions wander off where γ falls, so nβ rises first.
    "prior": (("n_beta", 1), ("localization", -1)),
    "start": (("lr", 1), ("localization", 1)),
}
"""Which moves are tried first, by what is wrong or makes most of the error."""

_ALONE: Mapping[Kind, float] = {
    "too_few_draws": 10.0,
    "does_not_move": 10.0,
    "weights_ignored": 10.0,
    "rounding": 10.0,
    "negative": 5.0,
}
"""Faults beside which no other counts, and how far from good they are."""

_MOST_TIMES = 1e3
"""The most times its limit that counts for a fault."""


@dataclass(frozen=True)
class Axis:
    """The values of one setting, by a whole number.

    They are 1, 3, 10, 30, … times the start, or those of a list.

    >>> axis = Axis(1e-3, None)
    >>> axis[-1], axis[0], axis[1], axis[2]
    (0.0003, 0.001, 0.003, 0.01)
    """

    start: float
    values: tuple[float, ...] | None

    def __getitem__(self, i: int) -> float | None:
        """Return the i-th value; ``None`` beyond the ends of a list."""
        if self.values is None:
            decade, half = divmod(i, 2)
            factor = 3 if half else 1
            # Nine digits, so that 0.3 is not 0.30000000000000004.
            return float(f"{self.start * factor * 10.0**decade:.9g}")
        return self.values[i] if 0 <= i < len(self.values) else None

    def nearest(self, value: float) -> int:
        """Return the number of the value closest to this one, as a ratio."""
        if self.values is None:
            middle = round(2 * math.log10(value / self.start))
            candidates = range(middle - 1, middle + 2)
        else:
            candidates = range(len(self.values))

        def distance(i: int) -> float:
            positive = max(self[i] or 0.0, 1e-30)
            return _distance(positive / value)

        return min(candidates, key=distance)


def axes_of(grid: Mapping[str, float | Sequence[float]]) -> tuple[Axis, ...]:
    """Return the axes of lr, n_beta and localization.

    Args:
        grid: for each a number, where to start, or a list, what to try. What is left out starts at
            :data:`START`.

    Raises:
        InputError: a name is none of the three, or a value is not a positive number.
    """
    for name in grid:
        if name not in Setting._fields:
            raise InputError(
                f"calibrate: unexpected keyword argument {name!r}; {advice(name, _KEYWORDS)}"
            )
    listed = {}
    for name in Setting._fields:
        values_of_name = grid.get(name)
        is_list = isinstance(values_of_name, Sequence | np.ndarray)
        listed[name] = is_list and not isinstance(values_of_name, bytes)
    axes = []
    for name in Setting._fields:
        start = getattr(START, name)
        values = _numbers(name, grid.get(name, start), listed[name])
        if not listed[name]:
            axes.append(Axis(values[0], None))
        elif all(listed.values()):
            axes.append(Axis(start, values))
        else:
            # A search goes up and down along a list.
            axes.append(Axis(start, tuple(sorted(set(values)))))
    return tuple(axes)


def _numbers(name: str, given: float | Sequence[float], listed: bool) -> tuple[float, ...]:
    values = tuple(given) if listed else (given,)  # type: ignore[arg-type]
    zero = listed and name == "localization"
    if not values or not all(is_number(value, zero=zero) for value in values):
        least = "from 0 on" if zero else "above 0"
        raise InputError(
            f"calibrate: `{name}` must be a number above 0, where to start, "
            f"or a list of numbers {least}, those to try; got {given!r}."
        )
    return tuple(float(value) for value in values)  # type: ignore[arg-type]


def is_number(value: object, zero: bool) -> bool:
    """Whether it is a finite number above 0, or 0 where that will do."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return bool(0 < value < math.inf or (zero and value == 0))


Point = tuple[int, ...]
"""A setting by its numbers on the axes."""


@dataclass
class Search:
    """The settings that were tried, and where to go from them.

    Args:
        axes: of lr, n_beta and localization.
        measure: (lr, n_beta, localization) to an estimate.
        limits: when a setting is good, and how many are tried at most.
        tried: the estimates, judged by ``limits``.
    """

    axes: Sequence[Axis]
    measure: Callable[[float, float, float], Estimate]
    limits: Limits
    tried: dict[Point, Estimate] = field(default_factory=dict)

    def run(self) -> None:
        """Go from the start to better and better settings, by decades and then half decades."""
        best: Point = tuple(axis.nearest(axis.start) for axis in self.axes)
        self._try(best)
        sizes = list(_SIZES)
        while sizes and not self._is_full:
            good = not any(self.tried[best].faults)
            if good and sizes[0] > 2:
                return
            better = self._better(best, sizes[0])
            if better is None:
                sizes.pop(0)
                continue
            best = better
            if sizes[0] > 2:
                sizes = list(_SIZES)

    @property
    def _is_full(self) -> bool:
        return len(self.tried) >= self.limits.max_settings

    def _try(self, point: Point) -> Estimate:
        if point not in self.tried:
            setting = self._setting(point)
            assert setting is not None
            self.tried[point] = self.measure(*setting).judge(self.limits)
        return self.tried[point]

    def _setting(self, point: Sequence[int]) -> Setting | None:
        """Return the setting at a point; ``None`` beyond the ends of a list."""
        values = [axis[i] for axis, i in zip(self.axes, point, strict=True)]
        if any(value is None for value in values):
            return None
        return Setting(*values)  # type: ignore[arg-type]

    def _better(self, best: Point, size: int) -> Point | None:
        """Return the first point, so many half decades away, that is clearly better."""
        for point in self._points(best, size):
            if point not in self.tried and self._is_full:
                return None
            if _is_better(rank(self._try(point)), rank(self.tried[best])):
                return point
        return None

    def _points(self, best: Point, size: int) -> Iterator[Point]:
        """Where to go from ``best``, the most promising first."""
        estimate = self.tried[best]
        old = self._setting(best)
        assert old is not None
        sharpest = sharpest_curvature(self.tried.values())
        if sharpest and any(estimate.faults):
            lr = self.axes[0].nearest(_STEP / _curvature(old, sharpest))
            if abs(lr - best[0]) > 1:
                yield (lr, *best[1:])
        for move, sign in self._moves(best):
            point = [
                i + sign * size * (name in _MOVES[move])
                for name, i in zip(Setting._fields, best, strict=True)
            ]
            new = self._setting(point)
            if new is None:
                continue
            lrs = [new.lr] if move == "lr" else _lrs_that_follow(old, new, sharpest)
            for lr in dict.fromkeys(self.axes[0].nearest(value) for value in lrs):
                yield from self._with_second_try((lr, *point[1:]), best, sharpest)

    def _moves(self, best: Point) -> list[tuple[str, int]]:
        """Return all moves, first those that mend what is wrong or makes most of the error."""
        trouble = _trouble(self.tried[best])
        first = list(_FIRST[trouble])
        if trouble == "prior":
            # In turn, so that neither the neighbourhood of w* grows more than it must, nor the
            # minibatches heat more than they must.
            moved = {
                name: i - axis.nearest(axis.start)
                for name, axis, i in zip(Setting._fields, self.axes, best, strict=True)
            }
            first.sort(key=lambda move: move[1] * moved[move[0]])
        every = [(name, sign) for name in _MOVES for sign in (1, -1)]
        return list(dict.fromkeys([*first, *every]))

    def _with_second_try(self, point: Point, best: Point, sharpest: float) -> Iterator[Point]:
        """Give the point, unless it is unstable; where only its lr is wrong, also the next lr."""
        if not self._is_stable(point, sharpest):
            return
        yield point
        estimate = self.tried[point]
        if not any(estimate.faults):
            return
        turn = {"slow": 1, "step": -1}.get(_trouble(estimate), 0)
        again = (point[0] + turn, *point[1:])
        if turn and again[0] != best[0] and self._is_stable(again, sharpest):
            yield again

    def _is_stable(self, point: Point, sharpest: float) -> bool:
        """Whether the sharpest curvature, where it is known, allows the step."""
        setting = self._setting(point)
        if setting is None:
            return False
        step = setting.lr * _curvature(setting, sharpest)
        return not sharpest or step * self.limits.min_stability <= 4


def rank(estimate: Estimate) -> tuple[bool, float]:
    """Return what settings are ordered by, the best being least.

    The good are ordered by their error, the others also by how far they are from good.

    Args:
        estimate: judged by the limits of the search.
    """
    error = float(np.nan_to_num(relative_error(estimate)).max())
    lr = estimate.settings["lr"]
    farthest = max(excess(faults, lr) for faults in estimate.faults)
    return any(estimate.faults), error + farthest


def relative_error(estimate: Estimate) -> np.ndarray:
    """Return √(sum of squares) of the parts of the error, as a logarithm: ``[refinement]``."""
    parts = estimate.error_parts.values()
    return np.sqrt(sum(part**2 for part in parts))


def excess(faults: Sequence[Fault], lr: float) -> float:
    """Return how far one refinement is from good; 0 if it is."""
    return sum(_excesses(faults, lr).values())


def worst(estimate: Estimate) -> int:
    """Return the refinement that is farthest from good."""
    lr = estimate.settings["lr"]
    return max(range(len(estimate)), key=lambda i: excess(estimate.faults[i], lr))


def gravest(estimate: Estimate) -> Trouble:
    """Return the trouble of the gravest fault of the worst refinement."""
    excesses = _excesses(estimate.faults[worst(estimate)], estimate.settings["lr"])
    return TROUBLES[max(excesses, key=lambda kind: excesses[kind])]


def sharpest_curvature(estimates: Iterable[Estimate]) -> float:
    """Return the largest curvature that says which steps are stable; 0 where none is known."""
    largest = []
    for estimate in estimates:
        decides = np.isfinite(estimate.diagnostics["stability"])
        curvatures = estimate.diagnostics["max_curvature"][decides]
        if curvatures.size:
            largest.append(float(curvatures.max()))
    return max(largest, default=0.0)


def _excesses(faults: Sequence[Fault], lr: float) -> dict[Kind, float]:
    """¼ + the logarithm of how many times its limit each number is that is beyond one."""
    for fault in faults:
        if fault.kind == "diverged":
            # Less for a smaller lr, so that a search goes there.
            return {fault.kind: 30 * lr**0.1}
        if fault.kind in _ALONE:
            return {fault.kind: _ALONE[fault.kind]}
    excesses = {}
    for fault in faults:
        # A p-value of 1e-12 is no worse than one of 1e-6: neither says by how much.
        times = min(fault.numbers.get("times", 1.0), _MOST_TIMES)
        excesses[fault.kind] = 0.25 + math.log(times)
    return excesses


def _trouble(estimate: Estimate) -> Trouble:
    """The main trouble: a fault, or the largest part of the largest error of a refinement."""
    if any(estimate.faults):
        trouble = gravest(estimate)
        # Noise is large against a λ̂ that the prior makes small.
        if trouble == "noise" and largest_part(estimate, worst(estimate)) == "prior":
            return "prior"
        return trouble
    return largest_part(estimate, int(relative_error(estimate).argmax()))


def largest_part(estimate: Estimate, i: int) -> Trouble:
    """Return which part makes most of the error of a refinement."""
    parts = estimate.error_parts
    return max(PARTS, key=lambda name: parts[name][i])


def _is_better(new: tuple[bool, float], old: tuple[bool, float]) -> bool:
    (new_is_bad, new_cost), (old_is_bad, old_cost) = new, old
    if new_is_bad != old_is_bad:
        return old_is_bad
    return new_cost < _CLEARLY * old_cost


def _curvature(setting: Setting, h: float) -> float:
    """The energy's curvature nβh + γ where the loss has the curvature h."""
    return setting.n_beta * h + setting.localization


def _lrs_that_follow(old: Setting, new: Setting, sharpest: float) -> list[float]:
    """Return which lr may go with another nβ and γ."""
    if sharpest:
        return [old.lr * _curvature(old, sharpest) / _curvature(new, sharpest)]
    ratios = (old.n_beta / new.n_beta, old.localization / max(new.localization, 1e-30))
    return [old.lr, old.lr * max(ratios, key=_distance)]


def _distance(ratio: float) -> float:
    """How far a ratio is from 1."""
    return abs(math.log(max(ratio, 1e-30)))
