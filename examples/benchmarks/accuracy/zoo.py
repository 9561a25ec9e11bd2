"""The problems, and the settings that each is sampled with."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

import rllc
from rllc import theory
from rllc.seeds import generator

from .estimates import (
    Counts,
    Problem,
    Settings,
    counts,
    ladder,
    law_row,
    ours,
    remembering,
    their_rows,
)
from .laws import crossing_law, quadratic_target, reduced_rank_law, rmsprop_sgld_law, sgld_law
from .modules import (
    LinearNetwork,
    NormalCrossing,
    OneHead,
    Quadratic,
    ReducedRank,
    aligned,
    placed,
    random_layers,
    whitened,
)
from .rows import Row

ONE_ROW = torch.ones(1, 1)


def target_law(h: np.ndarray, localization: float) -> Callable[[float, float], float]:
    """λ̂ of settled chains on ½ Σ h v², as a function of nβ and lr."""
    return lambda n_beta, lr: quadratic_target(h, n_beta, localization, lr)


# Quadratics.


def quadratics(settings: Settings) -> Iterator[Row]:
    """ℓ = ½ Σ h v², h from 0.3 to 10."""
    yield from quadratic(
        settings,
        dim=10,
        sgld_counts=counts(64, 300, 300, 8),
        rmsprop_counts=counts(64, 300, 500, 8),
        others={
            rllc.samplers.sghmc(1e-3, 1.0): counts(64, 300, 100, 4),
            rllc.samplers.mala(1e-3, 1.0): counts(64, 300, 300, 4),
            rllc.samplers.hmc(5e-4, 1.0, 15): counts(64, 250, 50),
        },
        their_draws=1000,
    )
    # Acceptance falls with the number of weights: smaller steps.
    yield from quadratic(
        settings,
        dim=1000,
        sgld_counts=counts(8, 300, 300, 8),
        rmsprop_counts=counts(8, 300, 500, 8),
        others={
            rllc.samplers.sghmc(1e-3, 1.0): counts(8, 300, 100, 4),
            rllc.samplers.mala(3e-4, 1.0): counts(8, 300, 300, 4),
            rllc.samplers.hmc(1e-4, 1.0, 20): counts(8, 150, 50),
        },
        their_draws=500,
    )


def quadratic(
    settings: Settings,
    dim: int,
    sgld_counts: Counts,
    rmsprop_counts: Counts,
    others: Mapping[rllc.samplers.Sampler, Counts],
    their_draws: int,
) -> Iterator[Row]:
    n_beta = 100.0
    localization = 1.0
    h = np.geomspace(0.3, 10, dim)
    problem = Problem(
        f"quadratic, {dim} weights",
        Quadratic(h),
        ONE_ROW,
        rllc.samplers.gaussian(localization),
        law=target_law(h, localization),
    )
    sgld = rllc.sgld(5e-4, localization)
    truth = sgld_law(h, sgld, n_beta, settings.scaled(sgld_counts))
    yield law_row(settings, problem, n_beta, sgld, sgld_counts, truth)

    rmsprop, last_state = remembering(rllc.samplers.rmsprop_sgld(1e-4, localization))
    yield law_row(
        settings,
        problem,
        n_beta,
        rmsprop,
        rmsprop_counts,
        truth=lambda: rmsprop_sgld_law(h, rmsprop, n_beta, last_state[0]),
    )
    for sampler, its_counts in others.items():
        yield law_row(settings, problem, n_beta, sampler, its_counts)
    yield from their_rows(settings, problem, "law", n_beta, (5e-4, 1e-4), their_draws)


# Singular problems whose law is known.


def crossings(settings: Settings) -> Iterator[Row]:
    """Three normal crossings, uniform in a box."""
    copies = 128
    prior = rllc.samplers.box(1.0)
    samplers = {
        rllc.sgld(1e-3, prior=prior): counts(192, 600, 800),
        rllc.samplers.rmsprop_sgld(1e-4, prior=prior): counts(192, 600, 800),
        rllc.samplers.sghmc(5e-3, prior=prior): counts(64, 300, 200),
        rllc.samplers.mala(3e-3, prior=prior): counts(128, 400, 400),
    }

    def reference(n_beta: float) -> rllc.samplers.Sampler:
        return rllc.samplers.hmc(min(0.01, 0.2 / n_beta), prior=prior, num_leapfrog_steps=20)

    for k in [(1, 1), (1, 2), (2, 1, 1)]:
        powers = " ".join(f"{w}^{2 * i}" for w, i in zip("xyz", k, strict=False))
        problem = Problem(
            f"normal crossing {powers}, {copies} copies",
            NormalCrossing(k, copies),
            ONE_ROW,
            prior,
            theory.normal_crossing(k),
            law=without_lr(partial(crossing_law, k)),
            copies=copies,
        )
        rungs = (1e1, 1e2, 1e3, 1e4)
        yield from against_law(settings, problem, 10.0, samplers)
        yield from ladder(settings, problem, rungs, reference, counts(64, 100, 60))
        yield from their_rows(settings, problem, "λ", 100.0, (1e-3, 1e-4))


def without_lr(law: Callable[[float], float]) -> Callable[[float, float], float]:
    """A law that does not know what the step size adds."""
    return lambda n_beta, lr: law(n_beta)


def reduced_rank(settings: Settings) -> Iterator[Row]:
    """Reduced-rank regression, all four cases, at the zero product, where the law is known too."""
    copies = 16
    samplers = {
        rllc.sgld(2e-3, 1.0): counts(64, 1300, 1500),
        rllc.samplers.sghmc(1e-2, 1.0): counts(64, 300, 200),
        rllc.samplers.mala(1e-2, 1.0): counts(64, 400, 400),
    }
    for case, (M, N, H) in enumerate([(5, 5, 3), (2, 6, 3), (6, 2, 3), (2, 2, 5)], 1):
        problem = Problem(
            f"reduced rank, case {case}: M={M} N={N} H={H}, at 0, {copies} copies",
            ReducedRank(*placed(M, N, H, 0, 0, 0), copies),
            whitened(M),
            rllc.samplers.gaussian(1.0),
            theory.reduced_rank_regression_at(M, N, H, 0, 0, 0),
            law=without_lr(partial(reduced_rank_law, M, N, H, localization=1.0)),
            copies=copies,
        )
        rungs = (1e1, 1e2, 1e3)
        yield from against_law(settings, problem, 1.0, samplers)
        yield from ladder(settings, problem, rungs, slow_valleys, counts(64, 200, 1000, 4))
        yield from their_rows(settings, problem, "λ", 100.0, (1e-3, 1e-4))


def against_law(
    settings: Settings,
    problem: Problem,
    n_beta: float,
    samplers: Mapping[rllc.samplers.Sampler, Counts],
) -> Iterator[Row]:
    """Each sampler, and devinterp's at the first one's lr, against the law at nβ."""
    for sampler, its_counts in samplers.items():
        yield law_row(settings, problem, n_beta, sampler, its_counts)
    lr = next(iter(samplers)).lr
    yield from their_rows(settings, problem, "law", n_beta, (lr, lr / 10))


def slow_valleys(n_beta: float) -> rllc.samplers.Sampler:
    """For γ = 1: stable at the steepest walls, with momentum for the flat valleys between them."""
    return rllc.samplers.sghmc(min(3e-3, 0.05 / n_beta), 1.0, momentum=0.97)


def places(settings: Settings) -> Iterator[Row]:
    """Two points of one fibre of reduced-rank regression, the deepest and one of a larger λ."""
    deepest = reduced_rank_at((1, 1, 1), localization=1.0)
    rungs = (1e1, 1e2, 1e3)
    yield from ladder(settings, deepest, rungs, slow_valleys, counts(64, 200, 1000, 4))
    yield from their_rows(settings, deepest, "λ", 1e2, (5e-4, 5e-5))

    # A regular minimum up to its symmetries: one nβ is enough.
    n_beta = 1e5
    other = reduced_rank_at((3, 1, 1), localization=100.0)

    def sghmc(n_beta: float) -> rllc.samplers.Sampler:
        return rllc.samplers.sghmc(0.2 / n_beta, 100.0)

    yield from ladder(settings, other, (n_beta,), sghmc, counts(64, 200, 1000, 4))
    yield from their_rows(settings, other, "λ", n_beta, (0.05 / n_beta, 0.005 / n_beta))


def reduced_rank_at(ranks: tuple[int, int, int], localization: float) -> Problem:
    """At matrices of two ranks, whose product has the third."""
    M, N, H = 5, 5, 3
    copies = 16
    return Problem(
        f"reduced rank, M={M} N={N} H={H}, rank 1, at a point of ranks {ranks[0]} and {ranks[1]}, "
        f"{copies} copies",
        ReducedRank(*placed(M, N, H, *ranks), copies),
        whitened(M),
        rllc.samplers.gaussian(localization),
        theory.reduced_rank_regression_at(M, N, H, *ranks),
        copies=copies,
    )


# Linear networks.


def layers(settings: Settings) -> Iterator[Row]:
    """wrLLC of each layer of a linear network, and its drLLC on inputs of 3 of 8 dimensions.

    All in one run of each sampler.
    """
    widths = (8, 6, 7, 5)
    n_beta = 1e4
    localization = 1.0
    # No curvature is below 0.2, so that all directions settle.
    weights = random_layers(widths, ranks=(5, 4, 5), seed=7)
    model = LinearNetwork(weights)
    data = {"wrLLC": whitened(8), "drLLC": inputs_of_a_subspace()}
    curvatures = {}
    problems = {}
    for layer, kind in itertools.product(range(3), data):
        h = layer_curvatures(weights, layer, data[kind])
        curvatures[layer, kind] = h
        problems[layer, kind] = Problem(
            f"linear network {widths}, {kind} of layer {layer}",
            model,
            data[kind],
            rllc.samplers.gaussian(localization),
            law=target_law(h, localization),
            moving=f"W.{layer}",
        )
    moving = {f"W.{layer}": rllc.parameters(f"W.{layer}") for layer in range(3)}

    def rows(
        sampler: rllc.samplers.Sampler, counts: Counts, truth: Callable[[np.ndarray], float]
    ) -> Iterator[Row]:
        values, errors, seconds = ours(settings, model, data, sampler, n_beta, counts, moving)
        for k, (key, problem) in enumerate(problems.items()):
            yield Row(
                problem.name,
                sampler.name,
                "rllc",
                problem.settings(f"{n_beta:g}", sampler.lr),
                "law",
                truth(curvatures[key]),
                float(values[k]),
                float(errors[k]),
                seconds / len(problems),
            )

    sgld = rllc.sgld(2e-5, localization)
    sgld_counts = counts(32, 250, 300, 8)
    scaled = settings.scaled(sgld_counts)
    yield from rows(sgld, sgld_counts, lambda h: sgld_law(h, sgld, n_beta, scaled))
    sghmc = rllc.samplers.sghmc(2e-5, localization)
    sghmc_counts = counts(32, 250, 100, 4)
    yield from rows(sghmc, sghmc_counts, lambda h: quadratic_target(h, n_beta, localization))
    for problem in problems.values():
        yield from their_rows(settings, problem, "law", n_beta, (2e-5, 2e-6), 300)


def inputs_of_a_subspace() -> Tensor:
    """Inputs whose mean of x xᵀ is a projector to 3 of 8 dimensions."""
    stream = generator("subspace")
    left, _ = torch.linalg.qr(torch.randn(8, 3, generator=stream))
    right, _ = torch.linalg.qr(torch.randn(8, 3, generator=stream))
    return math.sqrt(8) * left @ right.T


def layer_curvatures(weights: Sequence[Tensor], layer: int, rows: Tensor) -> np.ndarray:
    covariance = (rows.double().T @ rows.double() / len(rows)).float()
    # What rounding leaves of zero would count as a direction.
    covariance = torch.where(covariance.abs() < 1e-6, 0.0, covariance)
    return theory.deep_linear_curvatures(weights, layer, covariance)


def networks(settings: Settings) -> Iterator[Row]:
    """Whole linear networks of 2,800 and 1,033,000 weights, and one layer of 10⁶ weights."""
    rungs = (1e4, 1e5, 1e6)
    small = counts(4, 200, 1000, 4)
    yield from network(settings, (50, 20, 30, 40), 120.0, rungs, small, their_draws=500)
    rungs = (1e5, 3e5, 1e6)
    large = counts(1, 80, 260)
    yield from network(settings, (100, 30, 1000, 1000), 4000.0, rungs, large, their_draws=50)
    yield from large_layer(settings)


def network(
    settings: Settings,
    widths: tuple[int, ...],
    localization: float,
    rungs: tuple[float, ...],
    counts: Counts,
    their_draws: int,
) -> Iterator[Row]:
    """λ of a whole linear network of rank 5."""
    weights = aligned(widths, rank=5)
    num_weights = sum(W.numel() for W in weights)
    problem = Problem(
        f"linear network {widths}, rank 5: {num_weights:,} weights",
        LinearNetwork(weights),
        whitened(widths[0]),
        rllc.samplers.gaussian(localization),
        theory.deep_linear(widths, 5),
    )

    def sghmc(n_beta: float) -> rllc.samplers.Sampler:
        return rllc.samplers.sghmc(0.3 / n_beta, localization)

    yield from ladder(settings, problem, rungs, sghmc, counts)
    lr = 0.1 / rungs[0]
    yield from their_rows(settings, problem, "λ", rungs[0], (lr, lr / 10), their_draws)


def large_layer(settings: Settings) -> Iterator[Row]:
    """wrLLC of a layer of 10⁶ weights."""
    widths = (100, 1000, 1000, 10)
    n_beta = 1e4
    localization = 10.0
    weights = random_layers(widths, ranks=(100, 300, 10))
    h = theory.deep_linear_curvatures(weights, 1)
    problem = Problem(
        f"linear network {widths}, wrLLC of the layer of 1,000,000 weights",
        LinearNetwork(weights),
        whitened(widths[0]),
        rllc.samplers.gaussian(localization),
        law=target_law(h[h > 0], localization),
        moving="W.1",
    )
    sampler = rllc.sgld(3e-5, localization)
    its_counts = counts(1, 100, 100)
    truth = sgld_law(h, sampler, n_beta, settings.scaled(its_counts))
    yield law_row(settings, problem, n_beta, sampler, its_counts, truth)
    yield from their_rows(settings, problem, "law", n_beta, (3e-5, 3e-6), 50)


def attention(settings: Settings) -> Iterator[Row]:
    """One head, W_Q, W_K, W_V and W_O all free; every context of two tokens."""
    v, d_head = 4, 3
    contexts = list(itertools.product(range(v), repeat=2))
    problem = Problem(
        f"one head, uniform target: {v} tokens, d_head={d_head}",
        OneHead(v, d_head),
        torch.tensor(contexts),
        rllc.samplers.gaussian(1.0),
        theory.one_head_attention(v, d_head),
    )

    def hmc(n_beta: float) -> rllc.samplers.Sampler:
        return rllc.samplers.hmc(2.0 / n_beta, 1.0, 20)

    rungs = (1e2, 1e3, 1e4, 1e5)
    yield from ladder(settings, problem, rungs, hmc, counts(64, 80, 60))
    yield from their_rows(settings, problem, "λ", 1e3, (2e-4, 2e-5), 1000)


PARTS: Mapping[str, Callable[[Settings], Iterator[Row]]] = {
    "q": quadratics,
    "c": crossings,
    "r": reduced_rank,
    "p": places,
    "l": layers,
    "n": networks,
    "a": attention,
}
