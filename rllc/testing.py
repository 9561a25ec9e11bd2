"""Checks for people who extend rllc: their own selections of weights, losses and samplers.

Call them in your tests. Each raises an ``AssertionError`` that says what does not hold, and returns nothing otherwise.
Statistical checks compare with an exact law by z-scores; the level is |z| < 5, a false alarm in about a million.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc import refinement as refine
from rllc.engine.bind import bind
from rllc.engine.layout import center, groups, stack, to, unpack
from rllc.loss import Batch, Center, LossFunction
from rllc.refinement import DataLike
from rllc.samplers import Energy, Random, Sampler
from rllc.seeds import generator
from rllc.weights import Weights, everything

_Z = 5.0
"""A standard normal number is beyond this once in 1.7 million."""


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that what happens inside leaves the model and all global random states as they were, also when it raises.

    >>> with unchanged(nn.Linear(2, 1)):
    ...     pass

    Compared, bit for bit: parameters, their ``.grad`` and ``requires_grad``, buffers, the mode of every submodule, and the
    states of torch's, NumPy's and Python's global generators.

    Raises:
        AssertionError: one of these changed.
    """
    before = _snapshot(model)
    try:
        yield
    finally:
        after = _snapshot(model)
        changed = sorted(
            what
            for what in before.keys() | after.keys()
            if not _same(before.get(what), after.get(what))
        )
        _require(not changed, f"these were changed, but must not be: {', '.join(changed)}")


def check_weights(weights: Weights, model: nn.Module) -> None:
    """Check that a selection can be used on ``model``: it resolves, and putting its weights back gives the model.

    >>> check_weights(everything(), nn.Linear(3, 2))

    Checked: every mask is boolean, of the shape of a parameter of the model, and selects something; ``count`` is the
    number of selected weights; values packed into a chain's position and unpacked again are the model's, bit for bit;
    a moved position changes the selected weights and no other; the selection survives being sent to another process.

    Args:
        weights: what :func:`rllc.head`, :func:`rllc.masks`, an expression of these, or your own function gives.
        model: any module.

    Raises:
        AssertionError: one of these does not hold.
        InputError: the selection does not resolve in this model.
    """
    parameters = {name: p.detach().cpu() for name, p in model.named_parameters()}
    selected = weights.masks(model)
    for name, mask in selected.items():
        _require(name in parameters, f"{weights.name}: the model has no parameter {name!r}")
        shape = tuple(parameters[name].shape)
        _require(
            mask.dtype == torch.bool,
            f"{weights.name}: the mask of {name!r} must be boolean, is {mask.dtype}",
        )
        _require(
            tuple(mask.shape) == shape,
            f"{weights.name}: the mask of {name!r} must be {shape}, is {tuple(mask.shape)}",
        )
        _require(bool(mask.any()), f"{weights.name}: the mask of {name!r} selects nothing")
    count = sum(int(mask.sum()) for mask in selected.values())
    _require(
        weights.count(model) == count,
        f"{weights.name}: count says {weights.count(model)}, its masks {count}",
    )
    _require(
        pickle.loads(pickle.dumps(weights)) == weights,
        f"{weights.name}: differs after a round trip by pickle",
    )

    (group,) = groups([selected])
    _require(
        group.dim == count,
        f"{weights.name}: positions have {group.dim} numbers for {count} weights",
    )
    member, origin = torch.tensor([0]), center(group, parameters)
    for name, moved in unpack(group, origin, member, parameters).items():
        put_back = stack(moved, parameters[name])[0]
        _require(
            torch.equal(put_back, parameters[name].to(put_back.dtype)),
            f"{weights.name}: {name!r} came back changed",
        )
    for name, moved in unpack(group, 1 + origin + origin.abs(), member, parameters).items():
        shifted = stack(moved, parameters[name])[0] != parameters[name]
        _require(
            torch.equal(shifted, selected[name]),
            f"{weights.name}: other weights of {name!r} moved than selected",
        )


def check_loss(
    model: nn.Module,
    loss: LossFunction | None,
    data: DataLike,
    weights: Weights | None = None,
    *,
    batch_size: int = 4,
    num_coordinates: int = 24,
    seed: int = 0,
) -> None:
    """Check that a loss can be sampled on this model and data: shapes, per-run gradients, and no side effects.

    >>> check_loss(nn.Linear(3, 1), lambda module, x: module(x)[:, 0] ** 2, torch.randn(8, 3))

    Checked, at w* and at three positions near it: losses are finite, ``[batch]`` or ``[batch, pos]``; a run that has not
    moved has the loss at w*; per-example losses have the mean as their mean; a run gives the same alone and in company;
    gradients agree with central differences (f(v + δ) − f(v − δ))/2δ, δ = 0.01, in randomly chosen coordinates, within 2 %
    of the largest component plus the rounding error of the loss; the model and the random states are left as they were.

    Args:
        model: any module.
        loss: ``loss(module, batch)``, or ``None`` for next-token cross entropy.
        data: what you would pass to :func:`rllc.estimate`, one data set.
        weights: which weights move; ``None`` is everything.
        batch_size: rows of the minibatch.
        num_coordinates: how many components of each gradient are compared.
        seed: of positions and coordinates.

    Raises:
        AssertionError: one of these does not hold.
        InputError: the loss does not give one number per example or token.
    """
    weights = everything() if weights is None else weights
    (refinement,) = refine.product(weights, data)
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    group = to(groups([weights.masks(model)])[0], device)
    batch = refine.take(
        refinement.data, torch.arange(min(batch_size, refine.num_rows(refinement.data))), device
    )
    bound, origin = bind(model, loss), center(group, parameters)
    noise = 0.02 * torch.randn(3, group.dim, generator=generator("check_loss", seed)).to(device)
    position = torch.cat([origin, origin + noise])

    def evaluate(position: Tensor, gradient: bool = True) -> Any:
        member = torch.zeros(len(position), dtype=torch.long, device=device)
        return bound.runs(group, member, position, at, batch, gradient=gradient, each=gradient)

    with unchanged(model):
        at = bound.center(batch, seed=seed)
        together = evaluate(position)
        alone = evaluate(position[2:3])
    _check_values(together, at, batch, group.dim)
    for what, one, many in (
        ("loss", alone.losses, together.losses),
        ("gradient", alone.gradient, together.gradient),
    ):
        size = float(many.abs().max())
        _require(
            _close(one[0], many[2], 1e-4 * size + 1e-7),
            f"a run's {what} alone differs from that in company",
        )

    step = 1e-2
    chosen = torch.randperm(group.dim, generator=generator("coordinates", seed))[
        :num_coordinates
    ].to(device)
    for run in range(len(position)):
        up, down = position[run].repeat(len(chosen), 1), position[run].repeat(len(chosen), 1)
        index = chosen[:, None]
        up.scatter_add_(1, index, torch.full_like(index, step, dtype=up.dtype))
        down.scatter_add_(1, index, torch.full_like(index, -step, dtype=down.dtype))
        slope = (evaluate(up, False).losses - evaluate(down, False).losses) / (2 * step)
        gradient = together.gradient[run][chosen].double()
        rounding = 4e-7 * float(together.losses[run].abs()) / step
        allowed = 0.02 * float(together.gradient[run].abs().max()) + rounding
        worst = float((slope - gradient).abs().max())
        _require(
            worst <= allowed,
            f"gradient of run {run} is {worst:.3g} (> {allowed:.3g}) off central differences",
        )


def check_sampler(
    sampler: Sampler,
    variance: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    curvatures: Sequence[float] | None = None,
    num_chains: int = 256,
    num_steps: int = 300,
    num_burnin_steps: int = 100,
    seed: int = 0,
) -> None:
    """Check a sampler on a quadratic, whose law is known, and that its functions are pure.

    >>> from rllc import sgld
    >>> sampler = sgld(lr=1e-3, localization=200.0)
    >>> check_sampler(sampler, lambda a: 1 / (a * (1 - sampler.lr * a / 4)), num_chains=32)

    The energy is U(v) = ½ Σ kᵢ vᵢ², counted from a centre that is not 0, so that the target is a Gaussian of variance 1/aᵢ,
    aᵢ = kᵢ + localization. After the burn-in, z-scores of the mean and the mean square of each coordinate, from the spread
    over independent chains, must be below 5.

    Purity: ``init`` and ``step`` leave their arguments and the global random states alone; the same arguments give the
    same state; the first energy asked for is at ``state.position``; a chain gives the same alone as in company.

    Args:
        sampler: what your function of settings returned.
        variance: the stationary variances ``[dim]`` for precisions ``a [dim]``; ``None`` is 1/a, the target's own, which
            samplers with accept/reject have. Without accept/reject give the law at finite step size, as above.
        curvatures: k, of the energy; ``None`` spreads εa over 0.25, 0.5 and 1 above εγ, where SGLD is stable and mixes
            within a few steps.
        num_chains: independent chains; more see smaller errors.
        num_steps: steps in all.
        num_burnin_steps: steps left out, long enough for chains that start at the centre to forget it.
        seed: of the noise.

    Raises:
        AssertionError: one of these does not hold.
    """
    k = torch.tensor(
        [part / sampler.lr for part in (0.25, 0.5, 1.0)] if curvatures is None else list(curvatures)
    )
    origin = torch.linspace(-1.0, 1.0, len(k)).repeat(num_chains, 1)

    def energy(position: Tensor) -> tuple[Tensor, Tensor]:
        away = position - origin[0]
        return 0.5 * (k * away.square()).sum(1), k * away

    energy = Energy(energy)
    _check_purity(sampler, energy, origin[:4], seed)
    state, noise = sampler.init(origin), _noise(range(num_chains), len(k), seed)
    first, second = (torch.zeros(num_chains, len(k), dtype=torch.float64) for _ in range(2))
    for t in range(num_steps):
        state = sampler.step(state, energy, noise)
        if t >= num_burnin_steps:
            away = (state.position - origin).double()
            first += away / (num_steps - num_burnin_steps)
            second += away.square() / (num_steps - num_burnin_steps)
    a = k.double().numpy() + sampler.localization
    expected = 1 / a if variance is None else np.asarray(variance(a))
    for what, found, truth in (
        ("mean − centre", first, np.zeros(len(k))),
        ("mean square", second, expected),
    ):
        error = found.std(0).numpy() / num_chains**0.5
        z = (found.mean(0).numpy() - truth) / error
        _require(
            bool((np.abs(z) < _Z).all()),
            f"{sampler!r}: the {what} of a quadratic with precisions {a} is {found.mean(0).numpy()} ± {error}, expected "
            f"{truth}: z = {z}",
        )


def _check_purity(sampler: Sampler, energy: Energy, origin: Tensor, seed: int) -> None:
    runs, dim = origin.shape
    given = origin.clone()
    asked: list[Tensor] = []

    def recorded(position: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(position.clone())
        return energy(position)

    with unchanged(nn.Module()):
        start = sampler.init(given)
        started = _copies(start)
        state = sampler.step(start, energy, _noise(range(runs), dim, seed))  # away from the centre
        _require(
            state.position.dtype == origin.dtype, f"{sampler!r}: positions must stay {origin.dtype}"
        )
        kept = _copies(state)
        after = sampler.step(state, Energy(recorded), _noise(range(runs), dim, seed))
        again = sampler.step(state, energy, _noise(range(runs), dim, seed))
    _require(
        torch.equal(given, origin),
        f"{sampler!r}: init or step wrote into the position it was given",
    )
    _require(
        start[0] is start.position, f"{sampler!r}: the first field of a state must be `position`"
    )
    _require(
        torch.equal(started[0], origin), f"{sampler!r}: init must start at the position it is given"
    )
    unwritten = _same(_copies(start), started) and _same(_copies(state), kept)
    _require(unwritten, f"{sampler!r}: step wrote into the state it was given")
    _require(
        bool(asked) and torch.equal(asked[0], state.position),
        f"{sampler!r}: the first energy must be at state.position",
    )
    _require(
        _same(_copies(after), _copies(again)),
        f"{sampler!r}: the same arguments gave two different states",
    )
    for part in after:
        if isinstance(part, Tensor):
            _require(
                part.shape[:1] == (runs,),
                f"{sampler!r}: a state's tensors need a leading run axis, one has {tuple(part.shape)}",
            )

    alone = sampler.init(origin[2:3])
    for _ in range(2):
        alone = sampler.step(alone, energy, _noise([2], dim, seed))
    together = sampler.init(origin)
    for _ in range(2):
        together = sampler.step(together, energy, _noise(range(runs), dim, seed))
    difference = float((alone.position[0] - together.position[2]).abs().max())
    _require(
        difference < 1e-6,
        f"{sampler!r}: a chain alone differs from the same chain in company by {difference:.3g}",
    )


def _noise(chains: Sequence[int], dim: int, seed: int) -> Random:
    return Random([generator("check_sampler", seed, c) for c in chains], dim, torch.device("cpu"))


def _check_values(runs: Any, at: Center, batch: Batch, dim: int) -> None:
    rows = len(batch[0] if isinstance(batch, tuple) else batch)
    shape, num = tuple(at.losses.shape), len(runs.losses)
    _require(
        len(shape) in (1, 2) and shape[0] == rows,
        f"losses must be [{rows}] or [{rows}, pos], are {shape}",
    )
    _require(
        tuple(runs.losses.shape) == (num,),
        f"expected one loss a run, got {tuple(runs.losses.shape)}",
    )
    _require(
        tuple(runs.gradient.shape) == (num, dim),
        f"gradients must be {(num, dim)}, are {tuple(runs.gradient.shape)}",
    )
    _require(
        tuple(runs.each.shape) == (num, *shape),
        f"per-example losses must be {(num, *shape)}, are {tuple(runs.each.shape)}",
    )
    finite = (
        runs.losses.isfinite().all()
        and runs.gradient.isfinite().all()
        and at.losses.isfinite().all()
    )
    _require(bool(finite), "losses and gradients near w* must be finite")
    size = float(at.losses.abs().max())
    _require(
        _close(runs.losses[0], at.losses.double().mean(), 1e-5 * size),
        "an unmoved run must have the loss at w*",
    )
    _require(
        _close(runs.each.double().flatten(1).mean(1), runs.losses, 1e-5 * size),
        "per-example losses must average to the loss",
    )


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    return float((a.double() - b.double()).abs().max()) <= allowed


def _snapshot(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {"torch's random state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["CUDA's random states"] = torch.cuda.get_rng_state_all()
    state["NumPy's random state"] = np.random.get_state()[1:3]  # noqa: NPY002 (the global one is what is looked at)
    state["Python's random state"] = random.getstate()
    for name, p in model.named_parameters():
        state[name] = p.detach().clone()
        state[f"{name}.grad"] = None if p.grad is None else p.grad.detach().clone()
        state[f"{name}.requires_grad"] = p.requires_grad
    state |= {f"buffer {name}": b.detach().clone() for name, b in model.named_buffers()}
    return state | {
        f"mode of {name or 'the model'}": module.training for name, module in model.named_modules()
    }


def _copies(state: Sequence[Any]) -> list[Any]:
    return [part.clone() if isinstance(part, Tensor) else part for part in state]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(
            ((a == b) | (a.isnan() & b.isnan() if a.is_floating_point() else a == b)).all()
        )
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _require(holds: bool, otherwise: str) -> None:
    """An assertion that also holds under ``python -O``."""
    if not holds:
        raise AssertionError(otherwise)
