"""The check of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.samplers import Energy, Random, Sampler
from rllc.seeds import generator
from rllc.testing.unchanged import copies, require, same, unchanged

_Z = 5.0
"""A standard normal number is beyond this once in 1.7 million."""
_SPREAD = (0.25, 0.5, 1.0)
"""Products εk of the default curvatures: SGLD is stable there and mixes within a few steps."""


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

    The energy is U(v) = ½ Σ kᵢ vᵢ² around a centre that is not 0, so the target is a Gaussian of
    variance 1/aᵢ, aᵢ = kᵢ + localization. After the burn-in, the mean and the mean square of each
    coordinate must be within 5 standard errors, which come from the spread over chains.

    Pure means: ``init`` and ``step`` leave their arguments and the global random states alone; the
    same arguments give the same state; the first energy is taken at ``state.position``; a chain
    gives the same alone and in company.

    Args:
        sampler: what your function of settings returned.
        variance: the stationary variances ``[dim]`` for precisions ``a [dim]``. ``None`` is 1/a,
            the target's own, which samplers with accept/reject have; for others give the law at
            finite step size, as above.
        curvatures: k; ``None`` makes εk 0.25, 0.5 and 1, where SGLD is stable and mixes within a
            few steps.
        num_chains: independent chains; more see smaller errors.
        num_steps: steps in all.
        num_burnin_steps: steps left out: enough for chains to forget that they start at the centre.
        seed: of the noise.

    Raises:
        AssertionError: one of these does not hold.
    """
    if curvatures is None:
        curvatures = [product / sampler.lr for product in _SPREAD]
    k = torch.tensor(curvatures)
    dim = len(k)
    origin = torch.linspace(-1.0, 1.0, dim).repeat(num_chains, 1)

    def quadratic(position: Tensor) -> tuple[Tensor, Tensor]:
        distance = position - origin[0]
        return 0.5 * (k * distance.square()).sum(1), k * distance

    energy = Energy(quadratic)
    _check_purity(sampler, energy, origin[:4], seed)
    _check_company(sampler, energy, origin[:4], seed)
    state = sampler.init(origin)
    noise = _noise(range(num_chains), dim, seed)
    mean = torch.zeros(num_chains, dim, dtype=torch.float64)
    mean_square = torch.zeros_like(mean)
    num_kept = num_steps - num_burnin_steps
    for step in range(num_steps):
        state = sampler.step(state, energy, noise)
        if step >= num_burnin_steps:
            distance = (state.position - origin).double()
            mean += distance / num_kept
            mean_square += distance.square() / num_kept
    precision = k.double().numpy() + sampler.localization
    expected = 1 / precision if variance is None else np.asarray(variance(precision))
    quadratics = f"of a quadratic with precisions {precision}"
    _check_law(f"{sampler!r}: the mean − centre {quadratics}", mean, np.zeros(dim))
    _check_law(f"{sampler!r}: the mean square {quadratics}", mean_square, expected)


def _check_law(
    what: str,
    of_chains: Tensor,
    expected: np.ndarray,
) -> None:
    """Check the mean over independent chains of ``of_chains [chain, dim]``."""
    mean = of_chains.mean(0).numpy()
    error = of_chains.std(0).numpy() / len(of_chains) ** 0.5
    z = (mean - expected) / error
    within = bool((np.abs(z) < _Z).all())
    require(
        within,
        f"{what} is {mean} ± {error}, expected {expected}: z = {z}",
    )


def _check_purity(
    sampler: Sampler,
    energy: Energy,
    origin: Tensor,
    seed: int,
) -> None:
    """Check that ``init`` and ``step`` have no side effects and depend on nothing else."""
    num_chains, dim = origin.shape
    position = origin.clone()
    asked: list[Tensor] = []

    def recorded(position: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(position.clone())
        return energy.loss(position)

    def noise() -> Random:
        return _noise(range(num_chains), dim, seed)

    with unchanged(nn.Module()):
        start = sampler.init(position)
        start_copy = copies(start)
        state = sampler.step(start, energy, noise())  # away from the centre
        stays = state.position.dtype == origin.dtype
        require(
            stays,
            f"{sampler!r}: positions must stay {origin.dtype}",
        )
        state_copy = copies(state)
        next_state = sampler.step(state, Energy(recorded), noise())
        again = sampler.step(state, energy, noise())
    rules = {
        "init or step wrote into the position it was given": torch.equal(position, origin),
        "the first field of a state must be `position`": start[0] is start.position,
        "init must start at the position it is given": torch.equal(start_copy[0], origin),
        "step wrote into the state it was given": same(copies(start), start_copy)
        and same(copies(state), state_copy),
        "the first energy must be at state.position": len(asked) > 0
        and torch.equal(asked[0], state.position),
        "the same arguments gave two different states": same(copies(next_state), copies(again)),
    }
    for otherwise, holds in rules.items():
        require(holds, f"{sampler!r}: {otherwise}")
    _check_run_axis(sampler, next_state, num_chains)


def _check_run_axis(
    sampler: Sampler,
    state: Sequence[Any],
    num_chains: int,
) -> None:
    for part in state:
        if isinstance(part, Tensor):
            shape = tuple(part.shape)
            require(
                shape[:1] == (num_chains,),
                f"{sampler!r}: a state's tensors need a leading run axis, one has {shape}",
            )


def _check_company(
    sampler: Sampler,
    energy: Energy,
    origin: Tensor,
    seed: int,
) -> None:
    """Check that the third chain gives the same alone as among all."""
    together = _two_steps(
        sampler,
        energy,
        origin,
        range(len(origin)),
        seed,
    )
    alone = _two_steps(sampler, energy, origin[2:3], [2], seed)
    difference = float((alone[0] - together[2]).abs().max())
    require(
        difference < 1e-6,
        f"{sampler!r}: a chain alone differs from the same chain in company by {difference:.3g}",
    )


def _two_steps(
    sampler: Sampler,
    energy: Energy,
    origin: Tensor,
    chains: Sequence[int],
    seed: int,
) -> Tensor:
    state = sampler.init(origin)
    for _ in range(2):
        state = sampler.step(state, energy, _noise(chains, origin.shape[1], seed))
    return state.position


def _noise(
    chains: Sequence[int],
    dim: int,
    seed: int,
) -> Random:
    streams = [generator("check_sampler", seed, chain) for chain in chains]
    return Random(streams, dim, torch.device("cpu"))
