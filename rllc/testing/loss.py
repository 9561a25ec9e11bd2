"""The check of a loss function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rllc.engine.bind import bind
from rllc.engine.layout import center, groups, to
from rllc.engine.modes import in_mode
from rllc.engine.module import rows_of
from rllc.engine.private import private_copy
from rllc.losses.by_name import next_token
from rllc.losses.contract import Batch, Center, LossFunction, Runs, mean_of
from rllc.seeds import generator
from rllc.testing.unchanged import require, unchanged
from rllc.weights.refinement import DataLike, product
from rllc.weights.selection import Weights, everything

_DISTANCE = 0.02
"""Standard deviation of each weight at the positions near w*."""
_STEP = 1e-2
"""δ of the central differences: large enough for float32, small enough for smooth losses."""
_COORDINATES = 24
"""Components of each gradient that are compared."""
_ROUNDING = 4e-7
"""Relative rounding error of a difference of two float32 losses."""


def check_loss(
    model: nn.Module,
    loss: LossFunction | None,
    data: DataLike,
    weights: Weights | None = None,
    *,
    batch_size: int = 4,
    seed: int = 0,
) -> None:
    """Check that a loss can be sampled: shapes, gradients of single runs, and no side effects.

    >>> check_loss(nn.Linear(3, 1), lambda module, x: module(x)[:, 0] ** 2, torch.randn(8, 3))

    It is checked at w* and at three positions near it that

    - losses that count are finite, and ``[batch]`` or ``[batch, pos]``; the others are NaN;
    - a run that has not moved has the loss at w*, and per-example losses average to the loss;
    - a run gives the same alone and in company;
    - gradients agree with central differences (f(v + δ) − f(v − δ))/2δ, δ = 0.01, in random
      coordinates, within 2 % of the largest component plus the rounding error of the loss;
    - the model and the random states are left as they were.

    Args:
        model: any module.
        loss: ``loss(module, batch)``, or ``None`` for next-token cross entropy.
        data: what you would pass to :func:`rllc.estimate`, one data set.
        weights: which weights move; ``None`` is everything.
        batch_size: rows of the minibatch.
        seed: of positions and coordinates.

    Raises:
        AssertionError: one of these does not hold.
        InputError: the loss does not give one number an example or token.
    """
    (refinement,) = product(everything() if weights is None else weights, data)
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    group = to(groups([refinement.weights.masks(model)])[0], device)
    rows = torch.arange(min(batch_size, len(refinement.data)))
    batch = refinement.data.take(rows, device)
    bound = bind(model, loss)
    origin = center(group, parameters)
    noise = torch.randn(3, group.dim, generator=generator("check_loss", seed)).to(device)
    position = torch.cat([origin, origin + _DISTANCE * noise])

    def evaluate(position: Tensor, gradient: bool = True) -> Runs:
        member = torch.zeros(
            len(position),
            dtype=torch.long,
            device=device,
        )
        options = {"gradient": gradient, "each": gradient}
        return bound.runs(group, member, position, at_center, batch, **options)

    copied = private_copy(model)
    with unchanged(model), torch.random.fork_rng(), torch.no_grad(), in_mode(copied, False):
        # As anybody would call it, who does not seed NumPy's and Python's generators for it.
        (loss or next_token)(copied, batch)
    with unchanged(model):
        at_center = bound.center(batch, seed=seed)
        together = evaluate(position)
        alone = evaluate(position[2:3])
    _check_values(together, at_center, batch, group.dim)
    assert alone.gradient is not None
    assert together.gradient is not None
    _check_same(alone.losses[0], together.losses, 2, "loss")
    _check_same(
        alone.gradient[0],
        together.gradient,
        2,
        "gradient",
    )

    order = torch.randperm(group.dim, generator=generator("coordinates", seed))
    coordinates = order[:_COORDINATES].to(device)
    for run in range(len(position)):
        up, down = _neighbours(position[run], coordinates)
        losses_up = evaluate(up, gradient=False).losses
        losses_down = evaluate(down, gradient=False).losses
        slopes = (losses_up - losses_down) / (2 * _STEP)
        _check_gradient(run, together, coordinates, slopes)


def _neighbours(
    position: Tensor,
    coordinates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Positions a step up and a step down each coordinate, ``[coordinate, dim]``."""
    index = coordinates[:, None]
    step = torch.full_like(index, _STEP, dtype=position.dtype)
    same = position.repeat(len(coordinates), 1)
    return same.scatter_add(1, index, step), same.scatter_add(1, index, -step)


def _check_gradient(
    run: int,
    runs: Runs,
    coordinates: Tensor,
    slopes: Tensor,
) -> None:
    """Check a gradient against central differences ``slopes [coordinate]``."""
    assert runs.gradient is not None
    gradient = runs.gradient[run]
    rounding = _ROUNDING * float(runs.losses[run].abs()) / _STEP
    allowed = 0.02 * float(gradient.abs().max()) + rounding
    worst = float((slopes - gradient[coordinates].double()).abs().max())
    require(
        worst <= allowed,
        f"gradient of run {run} is {worst:.3g} (> {allowed:.3g}) off central differences",
    )


def _check_same(
    alone: Tensor,
    together: Tensor,
    run: int,
    what: str,
) -> None:
    """Check that a run gives the same alone as among all runs."""
    allowed = 1e-4 * float(together.abs().max()) + 1e-7
    equal = _close(alone, together[run], allowed)
    require(
        equal,
        f"a run's {what} alone differs from that in company",
    )


def _check_values(
    runs: Runs,
    at_center: Center,
    batch: Batch,
    dim: int,
) -> None:
    """Check shapes and values of runs, of which the first has not moved."""
    num_rows = rows_of(batch)
    num_runs = len(runs.losses)
    shape = tuple(at_center.losses.shape)
    per_example = len(shape) in (1, 2) and shape[0] == num_rows
    require(
        per_example,
        f"losses must be [{num_rows}] or [{num_rows}, pos], are {shape}",
    )
    _check_shape("losses of runs", runs.losses, (num_runs,))
    _check_shape("gradients", runs.gradient, (num_runs, dim))
    _check_shape("per-example losses", runs.each, (num_runs, *shape))
    assert runs.gradient is not None
    assert runs.each is not None
    counted = at_center.counted
    if counted is None:
        counted = torch.ones_like(at_center.losses, dtype=torch.bool)
    losses = at_center.losses[counted]
    finite = [bool(x.isfinite().all()) for x in (runs.losses, runs.gradient, losses)]
    require(
        all(finite),
        "losses and gradients near w* must be finite",
    )
    hidden = [at_center.losses[~counted], runs.each[:, ~counted]]
    require(
        all(bool(x.isnan().all()) for x in hidden),
        "losses that do not count must be NaN example by example",
    )
    allowed = 1e-5 * float(losses.abs().max())
    mean = at_center.mean
    require(
        _close(runs.losses[0], mean, allowed),
        "an unmoved run must have the loss at w*",
    )
    means = mean_of(runs.each, at_center.counted)
    require(
        _close(means, runs.losses, allowed),
        "per-example losses must average to the loss",
    )


def _check_shape(
    what: str,
    values: Any,
    expected: tuple[int, ...],
) -> None:
    shape = tuple(values.shape)
    require(
        shape == expected,
        f"{what} must be {expected}, are {shape}",
    )


def _close(
    a: Tensor,
    b: Tensor,
    allowed: float,
) -> bool:
    return float((a.double() - b.double()).abs().max()) <= allowed
