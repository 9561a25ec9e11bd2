"""Stages of training: where a smoothed curve over log step turns, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rllc.analysis.gaussian_process import Values, sample_processes, smooth
from rllc.errors import InputError, nearest
from rllc.plots.figures import COLORS, COVERS_95, log_steps, new_axes, rise_from_0
from rllc.seeds import stable_hash
from rllc.sweep.trajectory import Trajectory
from rllc.tables import AsTable, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_GRID = 250
"""Points, evenly spaced in log step, at which the smoothed curve and its slope are looked at."""

_FEWEST_CHECKPOINTS = 5

_COLUMNS = (
    "stage",
    "start",
    "end",
    "end_low",
    "end_high",
    "end_probability",
    "start_value",
    "end_value",
    "direction",
)


@dataclass(frozen=True)
class Turn:
    """Where the smoothed curve has a maximum or minimum.

    Args:
        step: where the slope of the smoothed (posterior mean) curve is zero.
        low: 2.5 % quantile of where the posterior's curves have this turn.
        high: 97.5 % quantile.
        kind: ``"maximum"`` or ``"minimum"``.
        probability: share of the posterior's curves that turn so between the midpoints to the two
            neighbouring turns.
    """

    step: float
    low: float
    high: float
    kind: str
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class Stages(AsTable):
    """A smoothed curve, its turns, and the stages between them; :func:`stages` makes it.

    Args:
        turns: in order of step: those whose probability is at least the one asked for.
        doubtful: the other turns of the smoothed curve.
        grid: ``[point]``: steps, evenly spaced in log step.
        mean: ``[point]``: the smoothed curve.
        sd: ``[point]``: its standard deviation.
        slope: ``[point]``: its derivative by the natural logarithm of the step.
        slope_sd: ``[point]``: the derivative's standard deviation.
        steps: ``[checkpoint]``: those above 0.
        values: ``[checkpoint]``: what was smoothed.
        standard_error: ``[checkpoint]``: as given, or zeros.
        length_scale: of the Gaussian process, in natural logarithms of the step: wiggles much
            shorter are noise. Posterior median; so are the next two.
        amplitude: its standard deviation, in units of the values.
        noise: standard deviation of the noise that is not in ``standard_error``, in units of the
            values.
        name: what the curve is of.
    """

    turns: tuple[Turn, ...]
    doubtful: tuple[Turn, ...]
    grid: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    slope: np.ndarray
    slope_sd: np.ndarray
    steps: np.ndarray
    values: np.ndarray
    standard_error: np.ndarray
    length_scale: float
    amplitude: float
    noise: float
    name: str

    def __len__(self) -> int:
        return len(self.turns) + 1

    @property
    def boundaries(self) -> tuple[float, ...]:
        """First step, turns, last step: stage k goes from boundary k to boundary k + 1."""
        turns = [turn.step for turn in self.turns]
        return (float(self.steps[0]), *turns, float(self.steps[-1]))

    def at(self, step: float) -> float:
        """Return the smoothed curve at a step, by linear interpolation in log step."""
        return float(np.interp(np.log(step), np.log(self.grid), self.mean))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a stage.

        Columns: ``stage, start, end, end_low, end_high, end_probability, start_value, end_value,
        direction``. The last stage ends with the data, so how sure its end is is NaN.
        """
        import pandas as pd

        rows = []
        for stage in self._stages():
            turn = stage.end_turn or _NO_TURN
            row = (
                stage.number,
                stage.start,
                stage.end,
                turn.low,
                turn.high,
                turn.probability,
                stage.start_value,
                stage.end_value,
                stage.direction,
            )
            rows.append(row)
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    @property
    def _table(self) -> Table:
        rows = [("stage", "from", "to", "95 % interval", "probability", "value", "")]
        for stage in self._stages():
            turn = stage.end_turn
            row = (
                str(stage.number),
                f"{stage.start:.4g}",
                f"{stage.end:.4g}",
                f"{turn.low:.4g} … {turn.high:.4g}" if turn else "",
                f"{turn.probability:.2f}" if turn else "",
                f"{stage.start_value:.4g} → {stage.end_value:.4g}",
                stage.direction,
            )
            rows.append(row)
        title = f"{len(self)} stages of {self.name}"
        if self.doubtful:
            title += f", {len(self.doubtful)} more turns in doubt"
        return Table(title, rows, left=(0, 6))

    def _stages(self) -> Iterator[_Stage]:
        end_turns = (*self.turns, None)
        for k, (start, end) in enumerate(pairwise(self.boundaries)):
            yield _Stage(k + 1, start, end, self.at(start), self.at(end), end_turns[k])


class _Stage(NamedTuple):
    """One stage as tables show it; ``end_turn`` is ``None`` where it ends with the data."""

    number: int
    start: float
    end: float
    start_value: float
    end_value: float
    end_turn: Turn | None

    @property
    def direction(self) -> str:
        return "rises" if self.end_value > self.start_value else "falls"


_NO_TURN = Turn(np.nan, np.nan, np.nan, "", np.nan)


def stages(
    curve: Trajectory | Sequence[float] | np.ndarray,
    steps: Sequence[int] | None = None,
    standard_error: Sequence[float] | None = None,
    *,
    weights: str = "everything",
    data: str | None = None,
    probability: float = 0.9,
    num_samples: int = 2000,
    seed: int = 0,
) -> Stages:
    """Smooth a curve over log step and divide training where it turns.

    The curve is modelled as a Gaussian process in x = log step, with kernel a² exp(−(x − x′)²/2l²),
    around its own mean, seen with independent noise of variance standard_error² + s². The
    derivative of a Gaussian process is one too: the turns are the zeros of its mean, and their
    uncertainty comes from joint samples of it. a, l and s are not fixed at a best fit, which on
    noisy curves takes noise for turns, but drawn from their posterior (flat in their logarithms),
    so that what is not known of them is in the uncertainty of the turns.

    >>> step = np.unique(np.geomspace(10, 10_000, 60).round())
    >>> [round(turn.step) for turn in stages(np.cos(2 * np.log(step / 10)), step).turns]
    [48, 231, 1113, 5355]

    Args:
        curve: a :class:`rllc.Trajectory`, or values at ``steps``.
        steps: rising; with values only. Step 0 has no logarithm and is left out.
        standard_error: of each value; with values only. A trajectory brings its own.
        weights: which weights of a trajectory the curve is of.
        data: on which data, when the trajectory has several.
        probability: how sure a turn must be to divide two stages; the others are in ``doubtful``.
        num_samples: curves drawn from the posterior.
        seed: of them.

    Raises:
        InputError: fewer than 5 checkpoints above step 0, values that are not finite, or an
            argument that cannot be used.

    Reference: Rasmussen and Williams 2006, "Gaussian processes for machine learning", sections 2.2,
    5.4 and 9.4; the stages of arXiv 2410.02984 are zeros of dλ̂/d log t of the full model's LLC.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"stages: `probability` must be from 0 to 1, got {probability!r}.")
    if num_samples < 1:
        raise InputError(f"stages: `num_samples` must be at least 1, got {num_samples!r}.")
    if isinstance(curve, Trajectory):
        if steps is not None or standard_error is not None:
            raise InputError(
                "stages: a Trajectory brings its own `steps` and `standard_error`; leave them out."
            )
        given = _curve_of_trajectory(curve, weights, data)
    else:
        given = _curve_of_values(curve, steps, standard_error)
    _check(given)
    given = _above_0(given)
    center = given.values.mean()
    scale = given.values.std() or 1.0
    logs = np.log(given.steps)
    grid = np.linspace(logs[0], logs[-1], _GRID)
    scaled = Values(logs, (given.values - center) / scale, given.errors / scale)
    stream = np.random.default_rng(stable_hash("stages", seed))
    processes = sample_processes(scaled, stream)
    smoothed = smooth(scaled, processes, grid, num_samples, stream)
    turns = _turns(grid, smoothed.slope, smoothed.slope_samples)
    amplitude, length, noise = np.median(processes, axis=0)
    return Stages(
        turns=tuple(turn for turn in turns if turn.probability >= probability),
        doubtful=tuple(turn for turn in turns if turn.probability < probability),
        grid=np.exp(grid),
        mean=center + scale * smoothed.mean,
        sd=scale * np.sqrt(smoothed.variance),
        slope=scale * smoothed.slope,
        slope_sd=scale * np.sqrt(smoothed.slope_variance),
        steps=given.steps,
        values=given.values,
        standard_error=given.errors,
        length_scale=float(length),
        amplitude=float(scale * amplitude),
        noise=float(scale * noise),
        name=given.name,
    )


def plot_stages(stages: Stages, ax: Axes | None = None) -> Axes:
    """Draw the values, the smoothed curve with its 95 % band, and the turns with their intervals.

    >>> ax = plot_stages(result)

    Args:
        stages: what :func:`stages` gave.
        ax: where to draw; ``None`` makes a figure.
    """
    ax = new_axes(ax, width=6.0)
    error_bars = COVERS_95 * stages.standard_error if stages.standard_error.any() else None
    ax.errorbar(
        stages.steps,
        stages.values,
        yerr=error_bars,
        fmt="o",
        ms=3,
        lw=0.8,
        color="0.45",
        label="values",
    )
    ax.plot(stages.grid, stages.mean, lw=1.6, color=COLORS[0], label="smoothed")
    half_width = COVERS_95 * stages.sd
    ax.fill_between(
        stages.grid,
        stages.mean - half_width,
        stages.mean + half_width,
        alpha=0.2,
        lw=0,
        color=COLORS[0],
    )
    for turn in stages.turns:
        ax.axvline(turn.step, color=COLORS[1], lw=1, ls="--")
        ax.axvspan(turn.low, turn.high, color=COLORS[1], alpha=0.12, lw=0)
    log_steps(ax, stages.steps.tolist())
    for k, (start, end) in enumerate(pairwise(stages.boundaries)):
        ax.annotate(
            str(k + 1),
            (np.sqrt(start * end), 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            color=COLORS[1],
        )
    ax.set_xlabel("training step")
    ax.set_ylabel(stages.name)
    ax.legend(frameon=False, fontsize="small")
    return ax


class _Curve(NamedTuple):
    """A curve to smooth; the arrays are ``[checkpoint]``."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    errors: np.ndarray


def _curve_of_trajectory(trajectory: Trajectory, weights: str, data: str | None) -> _Curve:
    row = _row_of(trajectory, weights, data)
    name = f"LLC of {trajectory.weights[row]}"
    if len(set(trajectory.data)) > 1:
        name += f" on {trajectory.data[row]}"
    return _Curve(
        name=name,
        steps=np.asarray(trajectory.steps, dtype=np.float64),
        values=np.asarray(trajectory.value[:, row], dtype=np.float64),
        errors=np.asarray(trajectory.standard_error[:, row], dtype=np.float64),
    )


def _row_of(trajectory: Trajectory, weights: str, data: str | None) -> int:
    pairs = list(zip(trajectory.weights, trajectory.data, strict=True))
    rows = []
    for row, (its_weights, its_data) in enumerate(pairs):
        if its_weights == weights and data in (None, its_data):
            rows.append(row)
    if len(rows) == 1:
        return rows[0]
    asked = f"weights={weights!r}"
    if data is not None:
        asked += f", data={data!r}"
    problem = "matches nothing"
    if rows:
        problem = f"matches {len(rows)} refinements; name the `data`"
    written = [", ".join(pair) for pair in pairs]
    advice = nearest(f"{weights}, {data}", written)
    raise InputError(f"stages of {asked}: {problem}; {advice}")


def _curve_of_values(
    values: Sequence[float] | np.ndarray,
    steps: Sequence[int] | None,
    errors: Sequence[float] | None,
) -> _Curve:
    if steps is None:
        raise InputError("stages: values need the `steps` that they belong to.")
    if errors is None:
        errors = [0.0] * len(steps)
    return _Curve(
        name="curve",
        steps=np.asarray(steps, dtype=np.float64),
        values=np.asarray(values, dtype=np.float64),
        errors=np.asarray(errors, dtype=np.float64),
    )


def _check(curve: _Curve) -> None:
    _, steps, values, errors = curve
    if not (steps.ndim == 1 and steps.shape == values.shape == errors.shape):
        raise InputError(
            f"stages: steps, values and standard errors must be as many, got shapes "
            f"{steps.shape}, {values.shape} and {errors.shape}."
        )
    if not rise_from_0(steps):
        raise InputError("stages: `steps` must rise, from 0 on.")
    usable = np.isfinite(values) & np.isfinite(errors) & (errors >= 0)
    broken = steps[~usable]
    if len(broken):
        raise InputError(
            f"stages: the value or standard error at step {broken[0]:g} is not finite, or negative "
            f"({len(broken)} such steps). Leave these checkpoints out."
        )


def _above_0(curve: _Curve) -> _Curve:
    name, steps, values, errors = curve
    above = steps > 0
    if above.sum() < _FEWEST_CHECKPOINTS:
        raise InputError(
            f"stages: at least {_FEWEST_CHECKPOINTS} checkpoints above step 0 are needed, "
            f"got {above.sum()}."
        )
    return _Curve(name, steps[above], values[above], errors[above])


class _Zero(NamedTuple):
    """Where a slope changes its sign, and the sign it has from there on."""

    x: float
    sign: int


def _turns(grid: np.ndarray, slope: np.ndarray, slope_samples: np.ndarray) -> list[Turn]:
    """Return the zeros of the mean slope, and where the sampled slopes have them."""
    zeros = _zeros(grid, slope)
    midpoints = [(first.x + second.x) / 2 for first, second in pairwise(zeros)]
    edges = [-np.inf, *midpoints, np.inf]
    zeros_of_samples = [_zeros(grid, sample) for sample in slope_samples]
    turns = []
    for k, zero in enumerate(zeros):
        left, right = edges[k], edges[k + 1]
        places = []
        for zeros_of_sample in zeros_of_samples:
            candidates = []
            for other_zero in zeros_of_sample:
                if other_zero.sign == zero.sign and left < other_zero.x < right:
                    candidates.append(other_zero.x)
            if candidates:
                places.append(_closest(candidates, zero.x))
        low = high = np.nan
        if places:
            low, high = np.quantile(places, [0.025, 0.975])
        turn = Turn(
            step=float(np.exp(zero.x)),
            low=float(np.exp(low)),
            high=float(np.exp(high)),
            kind="maximum" if zero.sign < 0 else "minimum",
            probability=len(places) / len(slope_samples),
        )
        turns.append(turn)
    return turns


def _closest(places: Sequence[float], target: float) -> float:
    return min(places, key=lambda place: abs(place - target))


def _zeros(grid: np.ndarray, slope: np.ndarray) -> list[_Zero]:
    """Return where the slope changes sign, by linear interpolation."""
    falls = slope < 0
    (last,) = np.nonzero(falls[:-1] != falls[1:])  # the last point before each change
    share = slope[last] / (slope[last] - slope[last + 1])
    places = grid[last] + share * (grid[last + 1] - grid[last])
    signs = np.where(falls[last + 1], -1, 1)
    return [_Zero(float(x), int(sign)) for x, sign in zip(places, signs, strict=True)]
