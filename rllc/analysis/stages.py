"""Stages of training: where a smoothed curve over log step turns, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError, nearest
from rllc.plots.figures import COLORS, COVERS_95, log_steps, new_axes
from rllc.seeds import stable_hash
from rllc.tables import table
from rllc.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_GRID = 250
"""Points, evenly spaced in log step, at which the smoothed curve and its slope are looked at."""
_PROCESSES = 40
"""Gaussian processes (amplitude, length scale, noise) that are averaged, each with its share of the samples."""
_STEPS_BETWEEN = 25


@dataclass(frozen=True)
class Turn:
    """Where the smoothed curve has a maximum or minimum.

    Args:
        step: where the slope of the smoothed (posterior mean) curve is zero.
        low: 2.5 % quantile of where the posterior's curves have this turn.
        high: 97.5 % quantile.
        kind: ``"maximum"`` or ``"minimum"``.
        probability: share of the posterior's curves that turn so between the two neighbouring turns' midpoints.
    """

    step: float
    low: float
    high: float
    kind: str
    probability: float


@dataclass(frozen=True, eq=False)
class Stages:
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
        length_scale: of the Gaussian process, in natural logarithms of the step: wiggles much shorter are noise. Posterior
            median; so are the next two.
        amplitude: its standard deviation, in units of the values.
        noise: standard deviation of the noise that is not in ``standard_error``, in units of the values.
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
        return (float(self.steps[0]), *(turn.step for turn in self.turns), float(self.steps[-1]))

    def at(self, step: float) -> float:
        """The smoothed curve at a step, by linear interpolation in log step."""
        return float(np.interp(np.log(step), np.log(self.grid), self.mean))

    def to_dataframe(self) -> pd.DataFrame:
        """One row a stage: ``stage, start, end, end_low, end_high, end_probability, start_value, end_value, direction``.

        The last stage ends with the data, so how sure its end is is NaN.
        """
        import pandas as pd

        rows = []
        for k, (start, end) in enumerate(pairwise(self.boundaries)):
            first, last = self.at(start), self.at(end)
            turn = self.turns[k] if k < len(self.turns) else None
            sure = (np.nan,) * 3 if turn is None else (turn.low, turn.high, turn.probability)
            rows.append(
                (k + 1, start, end, *sure, first, last, "rises" if last > first else "falls")
            )
        columns = [
            "stage",
            "start",
            "end",
            "end_low",
            "end_high",
            "end_probability",
            "start_value",
            "end_value",
        ]
        return pd.DataFrame(rows, columns=[*columns, "direction"])

    def __repr__(self) -> str:
        rows = [("stage", "from", "to", "95 % interval", "probability", "value", "")]
        for k, (start, end) in enumerate(pairwise(self.boundaries)):
            first, last = self.at(start), self.at(end)
            turn = self.turns[k] if k < len(self.turns) else None
            sure = (
                ("", "")
                if turn is None
                else (f"{turn.low:.4g} … {turn.high:.4g}", f"{turn.probability:.2f}")
            )
            rising = "rises" if last > first else "falls"
            rows.append(
                (
                    str(k + 1),
                    f"{start:.4g}",
                    f"{end:.4g}",
                    *sure,
                    f"{first:.4g} → {last:.4g}",
                    rising,
                )
            )
        more = f", {len(self.doubtful)} more turns in doubt" if self.doubtful else ""
        return table(f"{len(self)} stages of {self.name}{more}", rows, left=(0, 6))


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
    """Smooth a curve over log step and part training where it turns.

    The curve is modelled as a Gaussian process in x = log step, with kernel a² exp(−(x − x′)²/2l²), around its own mean, seen
    with independent noise of variance standard_error² + s². The derivative of a Gaussian process is one too; the turns
    are the zeros of its mean, and their uncertainty comes from joint samples of it. a, l and s are not fixed at a best
    fit, which on noisy curves takes noise for turns, but drawn from their posterior (flat in their logarithms), so that
    what is not known of them is in the uncertainty of the turns.

    >>> step = np.unique(np.geomspace(10, 10_000, 60).round())
    >>> [round(turn.step) for turn in stages(np.cos(2 * np.log(step / 10)), step).turns]
    [48, 231, 1113, 5355]

    Args:
        curve: a :class:`rllc.Trajectory`, or values at ``steps``.
        steps: rising; with values only. Step 0 has no logarithm and is left out.
        standard_error: of each value; with values only. A trajectory brings its own.
        weights: of which weights the curve is, in a trajectory.
        data: on which data, when the trajectory has several.
        probability: how sure a turn must be to part two stages; the others are in ``doubtful``.
        num_samples: curves drawn from the posterior.
        seed: of them.

    Raises:
        InputError: fewer than 5 checkpoints above step 0, values that are not finite, or an argument that cannot be used.

    Reference: Rasmussen and Williams 2006, "Gaussian processes for machine learning", sections 2.2, 5.4 and 9.4; the stages
    of arXiv 2410.02984 are zeros of dλ̂/d log t of the full model's LLC.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"stages: `probability` must be from 0 to 1, got {probability!r}.")
    if num_samples < 1:
        raise InputError(f"stages: `num_samples` must be at least 1, got {num_samples!r}.")
    name, times, values, errors = _curve(curve, steps, standard_error, weights, data)
    above = times > 0
    times, values, errors = times[above], values[above], errors[above]
    if len(times) < 5:
        raise InputError(
            f"stages: at least 5 checkpoints above step 0 are needed, got {len(times)}."
        )
    center, scale = values.mean(), values.std() or 1.0
    x, y, known = np.log(times), (values - center) / scale, errors / scale
    grid = np.linspace(x[0], x[-1], _GRID)
    stream = np.random.default_rng(stable_hash("stages", seed))
    processes = _processes(x, y, known, stream)
    mean, variance, slope, slope_variance, samples = _averaged(
        x, y, known, processes, grid, num_samples, stream
    )
    found = _turns(grid, slope, samples)
    amplitude, length, noise = np.median(processes, axis=0)
    return Stages(
        turns=tuple(turn for turn in found if turn.probability >= probability),
        doubtful=tuple(turn for turn in found if turn.probability < probability),
        grid=np.exp(grid),
        mean=center + scale * mean,
        sd=scale * np.sqrt(variance),
        slope=scale * slope,
        slope_sd=scale * np.sqrt(slope_variance),
        steps=times,
        values=values,
        standard_error=errors,
        length_scale=float(length),
        amplitude=float(scale * amplitude),
        noise=float(scale * noise),
        name=name,
    )


def plot_stages(stages: Stages, ax: Axes | None = None) -> Axes:
    """The values, the smoothed curve with its 95 % band, and the turns: dashed lines with their 95 % intervals.

    >>> ax = plot_stages(result)                                                   # doctest: +SKIP

    Args:
        stages: what :func:`stages` gave.
        ax: where to draw; ``None`` makes a figure.
    """
    ax = new_axes(ax, width=6.0)
    given = COVERS_95 * stages.standard_error if stages.standard_error.any() else None
    ax.errorbar(
        stages.steps, stages.values, yerr=given, fmt="o", ms=3, lw=0.8, color="0.45", label="values"
    )
    ax.plot(stages.grid, stages.mean, lw=1.6, color=COLORS[0], label="smoothed")
    band = COVERS_95 * stages.sd
    ax.fill_between(
        stages.grid, stages.mean - band, stages.mean + band, alpha=0.2, lw=0, color=COLORS[0]
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


# What is smoothed.


def _curve(
    curve: Any,
    steps: Sequence[int] | None,
    error: Sequence[float] | None,
    weights: str,
    data: str | None,
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """``name, steps, values, standard errors``, the last three ``[checkpoint]``."""
    if isinstance(curve, Trajectory):
        if steps is not None or error is not None:
            raise InputError(
                "stages: a Trajectory brings its own `steps` and `standard_error`; leave them out."
            )
        i = _which(curve, weights, data)
        on = f" on {curve.data[i]}" if len(set(curve.data)) > 1 else ""
        name = f"LLC of {curve.weights[i]}{on}"
        times, values, errors = curve.steps, curve.value[:, i], curve.standard_error[:, i]
    else:
        if steps is None:
            raise InputError("stages: values need the `steps` that they belong to.")
        name, times, values = "curve", steps, curve
        errors = np.zeros(len(steps)) if error is None else error
    times, values, errors = (np.asarray(v, dtype=np.float64) for v in (times, values, errors))
    if not (times.ndim == 1 and times.shape == values.shape == errors.shape):
        raise InputError(
            f"stages: steps, values and standard errors must be as many, got shapes {times.shape}, {values.shape} and "
            f"{errors.shape}."
        )
    if (np.diff(times) <= 0).any() or (len(times) and times[0] < 0):
        raise InputError("stages: `steps` must rise, from 0 on.")
    broken = times[~(np.isfinite(values) & np.isfinite(errors) & (errors >= 0))]
    if len(broken):
        raise InputError(
            f"stages: the value or standard error at step {broken[0]:g} is not finite, or negative "
            f"({len(broken)} such steps). Leave these checkpoints out."
        )
    return name, times, values, errors


def _which(trajectory: Trajectory, weights: str, data: str | None) -> int:
    known = list(zip(trajectory.weights, trajectory.data, strict=True))
    matching = [i for i, (w, d) in enumerate(known) if w == weights and data in (None, d)]
    if len(matching) != 1:
        problem = (
            f"matches {len(matching)} refinements; name the `data`"
            if matching
            else "matches nothing"
        )
        which = f"weights={weights!r}" + ("" if data is None else f", data={data!r}")
        written = [f"{w}, {d}" for w, d in known]
        raise InputError(f"stages of {which}: {problem}; {nearest(f'{weights}, {data}', written)}")
    return matching[0]


# The Gaussian process, on values of mean 0 and variance 1.


def _kernel(x: np.ndarray, z: np.ndarray, amplitude: float, length: float) -> np.ndarray:
    return amplitude**2 * np.exp(-((x[:, None] - z[None]) ** 2) / (2 * length**2))


def _processes(
    x: np.ndarray, y: np.ndarray, known: np.ndarray, stream: np.random.Generator
) -> np.ndarray:
    """Amplitudes, length scales and noises ``[process, 3]`` from their posterior, by Metropolis steps in their logarithms."""
    span = x[-1] - x[0]
    shortest = min(
        2 * float(np.median(np.diff(x))), span / 4
    )  # two checkpoints cannot tell more from noise
    bounds = np.log(
        [(0.05, 20.0), (shortest, 3 * span), (1e-3, 3.0)]
    )  # of values whose variance is 1

    def log_likelihood(logs: np.ndarray) -> float:
        amplitude, length, noise = np.exp(logs)
        if (logs < bounds[:, 0]).any() or (logs > bounds[:, 1]).any():
            return -np.inf
        try:
            root = np.linalg.cholesky(
                _kernel(x, x, amplitude, length) + np.diag(known**2 + noise**2)
            )
        except np.linalg.LinAlgError:  # too smooth for its noise, to rounding
            return -np.inf
        white = np.linalg.solve(root, y)
        return float(-0.5 * white @ white - np.log(np.diag(root)).sum())

    starts = [
        np.log([a, span / parts, s])
        for a in (1, 3)
        for parts in (1, 2, 4, 8, 16, 32)
        for s in (0.01, 0.1, 0.5, 1)
    ]
    at = max((start.clip(*bounds.T) for start in starts), key=log_likelihood)
    height, kept = log_likelihood(at), []
    for step in range(_STEPS_BETWEEN * (_PROCESSES + 10)):
        to = at + stream.standard_normal(3) * (0.4, 0.2, 0.2)
        new = log_likelihood(to)
        if np.log(stream.random()) < new - height:
            at, height = to, new
        if step >= 10 * _STEPS_BETWEEN and step % _STEPS_BETWEEN == 0:
            kept.append(at)
    return np.exp(kept)


def _averaged(
    x: np.ndarray,
    y: np.ndarray,
    known: np.ndarray,
    processes: np.ndarray,
    grid: np.ndarray,
    num_samples: int,
    stream: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of the curve and of its slope ``[point]`` over all processes, and slopes ``[sample, point]``."""
    means, variances, slopes, slope_variances, samples = [], [], [], [], []
    shares = np.diff(np.linspace(0, num_samples, len(processes) + 1).round().astype(int))
    for (amplitude, length, noise), share in zip(processes, shares, strict=True):
        mean, cov, slope, slope_cov = _posterior(x, y, known**2 + noise**2, amplitude, length, grid)
        means.append(mean)
        variances.append(np.diag(cov).clip(0))
        slopes.append(slope)
        slope_variances.append(np.diag(slope_cov).clip(0))
        samples.append(_sampled(slope, slope_cov, share, stream))
    return (
        np.mean(means, 0),
        np.mean(variances, 0) + np.var(means, 0),
        np.mean(slopes, 0),
        np.mean(slope_variances, 0) + np.var(slopes, 0),
        np.concatenate(samples),
    )


def _posterior(
    x: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    amplitude: float,
    length: float,
    grid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of the curve and of its slope on the grid, given ``y`` at ``x`` with this noise variance.

    cov(f′(z), f(x)) = −(z − x)/l² k and cov(f′(z), f′(z′)) = (1/l² − (z − z′)²/l⁴) k.
    """
    root = np.linalg.cholesky(_kernel(x, x, amplitude, length) + np.diag(noise))
    white = np.linalg.solve(root, y)
    across = _kernel(grid, x, amplitude, length)
    slopes = -(grid[:, None] - x[None]) / length**2 * across
    prior = _kernel(grid, grid, amplitude, length)
    apart = grid[:, None] - grid[None]
    slope_prior = (1 / length**2 - apart**2 / length**4) * prior
    slope_prior += (
        1e-8 * slope_prior[0, 0] * np.eye(len(grid))
    )  # smooth covariances are singular to rounding
    seen, slopes_seen = np.linalg.solve(root, across.T), np.linalg.solve(root, slopes.T)
    return (
        seen.T @ white,
        prior - seen.T @ seen,
        slopes_seen.T @ white,
        slope_prior - slopes_seen.T @ slopes_seen,
    )


def _sampled(
    mean: np.ndarray, covariance: np.ndarray, count: int, stream: np.random.Generator
) -> np.ndarray:
    """``[sample, point]``."""
    return mean + stream.standard_normal((count, len(mean))) @ np.linalg.cholesky(covariance).T


# The zeros of the slope.


def _turns(grid: np.ndarray, slope: np.ndarray, samples: np.ndarray) -> list[Turn]:
    zeros = _zeros(grid, slope)
    edges = [-np.inf, *((a + b) / 2 for (a, _), (b, _) in pairwise(zeros)), np.inf]
    found = []
    of_samples = [_zeros(grid, sample) for sample in samples]
    for k, (at, sign) in enumerate(zeros):
        places = []
        for crossings in of_samples:
            alike = [z for z, s in crossings if s == sign and edges[k] < z < edges[k + 1]]
            if alike:
                places.append(min(alike, key=lambda z: abs(z - at)))
        low, high = np.quantile(places, [0.025, 0.975]) if places else (np.nan, np.nan)
        kind = "maximum" if sign < 0 else "minimum"
        probability = len(places) / len(samples)
        found.append(
            Turn(float(np.exp(at)), float(np.exp(low)), float(np.exp(high)), kind, probability)
        )
    return found


def _zeros(grid: np.ndarray, slope: np.ndarray) -> list[tuple[float, int]]:
    """Where the slope changes sign, by linear interpolation, and to which sign."""
    (at,) = np.nonzero((slope[:-1] < 0) != (slope[1:] < 0))
    share = slope[at] / (slope[at] - slope[at + 1])
    places = grid[at] + share * (grid[at + 1] - grid[at])
    return [
        (float(z), -1 if after else 1) for z, after in zip(places, slope[at + 1] < 0, strict=True)
    ]
