"""Probes: acceptance and curvature against slow and dense computations, shares against laws."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor

import rllc
from rllc.data.minibatches import Minibatches
from rllc.samplers import Jump
from rllc.sampling.settings import probed
from rllc.seeds import generator


def test_probed_draws_are_the_preferred_ones_of_those_there_are() -> None:
    assert probed(4, 100, None) == [31, 63, 79, 95]  # draws 64, 96, 32 and 80
    assert probed(5, 3, None) == [0, 1, 2]
    assert probed(3, 200, 0.1) == [19, 39, 59]
    assert probed(5, 10, 0.1) == [1, 3, 5, 7, 9]


def test_what_a_long_run_probes_early_a_short_one_has_probed() -> None:
    """For all lengths, by brute force; and as many as asked for, spread over all but the
    beginning."""
    for few in (1, 2, 5, 9):
        sets = [set(probed(few, n, None)) for n in range(1, 130)]
        for n, short in enumerate(sets, 1):
            assert len(short) == min(few, n)
            assert max(short) < n
            for longer in sets[n:]:
                assert {d for d in longer if d < n} <= short
    for n in (40, 100, 200, 1000):
        gaps = np.diff([0, *probed(5, n, None), n])
        assert gaps.max() <= n / 2
        assert gaps[1:].max() <= n / 3


def test_acceptance_is_the_ratio_written_out() -> None:
    """p(v′) q(v | v′) / (p(v) q(v′ | v)) with every term, on an energy that is no quadratic."""
    stream = generator("acceptance")
    before, origin = torch.randn(50, 3, generator=stream), torch.randn(50, 3, generator=stream)
    n_beta, lr, gamma = 3.0, 0.3, 2.0

    def loss(v: Tensor) -> tuple[Tensor, Tensor]:
        return (v**4 / 4 + v.cos()).sum(1).double(), v**3 - v.sin()

    def total(v: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = loss(v)
        return n_beta * value + gamma / 2 * (v - origin).square().sum(1), n_beta * slope + gamma * (
            v - origin
        )

    after = (
        before - lr / 2 * total(before)[1] + math.sqrt(lr) * torch.randn(50, 3, generator=stream)
    )
    to = -(after - before + lr / 2 * total(before)[1]).square().sum(1) / (2 * lr)
    back = -(before - after + lr / 2 * total(after)[1]).square().sum(1) / (2 * lr)
    ratio = total(before)[0] - total(after)[0] + back - to
    (loss_before, gradient_before), (loss_after, gradient_after) = loss(before), loss(after)
    jump = Jump(
        before, after, origin, loss_before, loss_after, gradient_before, gradient_after, n_beta
    )
    law = rllc.sgld(lr, gamma).law
    found = law.log_acceptance(jump).clamp(max=0).exp()
    torch.testing.assert_close(found, ratio.clamp(max=0).exp().double(), atol=1e-5, rtol=1e-4)
    assert 0.1 < float(found.mean()) < 0.9


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(
    "sampler",
    [
        rllc.samplers.sghmc(),
        rllc.sgld(prior=rllc.samplers.box(0.1)),
        rllc.samplers.sghmc(prior=rllc.samplers.box(0.1)),
    ],
)
def test_other_proposals_are_not_judged(sampler: rllc.samplers.Sampler) -> None:
    probing = replace(SHORT, num_probes=2)
    draws = rllc.sample(
        tiny_model(), tiny_tokens(), "0:1", sampler=sampler, sampling=probing, compute=QUIET
    )
    known = {"minibatch_variance", "max_curvature", "stability", "loss_under_prior"}
    assert not {"acceptance", "discretisation"} & set(draws.observed)
    assert set(draws.observed) <= known
    assert np.isnan(rllc.Estimate.of(draws).diagnostics["acceptance"]).all()


def test_refinements_that_stop_early_keep_their_own_probes() -> None:
    """Of two, one stops at draw 40 and one goes on: each is told what it is told alone."""
    x, model = (
        torch.zeros(1, 8),
        Quadratic(torch.tensor([1.0, 1.0, 1.0, 1.0, 60.0, 60.0, 60.0, 60.0])),
    )
    weights = [rllc.parameters("v", index=slice(4 * i, 4 * i + 4)) for i in range(2)]
    sampling = rllc.Sampling(num_draws=100, batch_size=1, target_se=0.12)

    def of(some: list[rllc.Weights]) -> rllc.Draws:
        return rllc.sample(model, x, some, loss=loss_of_quadratic, sampling=sampling, compute=QUIET)

    both = of(weights)
    assert both.lengths[0] < both.lengths[1]
    together = rllc.Estimate.of(both).diagnostics
    for i, one in enumerate(weights):
        alone = rllc.Estimate.of(of([one])).diagnostics
        for name in ("acceptance", "discretisation"):
            assert together[name][i] == pytest.approx(alone[name][0], rel=1e-6), name


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("lr", [1e-3, 1e-9])
def test_the_curvature_depends_on_neither_step_size_nor_precision(
    lr: float, autocast: str | None
) -> None:
    x = torch.randn(64, 5, generator=generator("x"))
    model = torch.nn.Linear(5, 1, bias=False)
    sampling = rllc.Sampling(1, 1, batch_size=64, autocast=autocast)
    draws = rllc.sample(
        model,
        x,
        loss=lambda m, x: m(x)[:, 0] ** 2,
        sampler=rllc.sgld(lr),
        sampling=sampling,
        compute=QUIET,
    )
    exact = float(torch.linalg.eigvalsh(2 * x.T @ x / 64)[-1])
    assert draws.observed["max_curvature"][0] == pytest.approx(exact, rel=0.01)


def test_the_largest_curvature_is_that_of_the_dense_hessian() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    weights = [rllc.head(name) for name in ("0:1", "1:0")]
    probing = replace(SHORT, num_probes=1)
    # The smaller the step, the shorter the way over which slopes are compared: here it is a
    # hundredth of the typical weight.
    sampler = rllc.sgld(lr=1e-6)
    draws = rllc.sample(model, tokens, weights, sampler=sampler, sampling=probing, compute=QUIET)
    found = draws.observed["max_curvature"]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    batch = tokens.rows[Minibatches(len(tokens), SHORT.batch_size, seed=SHORT.seed)[0]].long()
    for selected, mine in zip(weights, found, strict=True):
        mask = selected.masks(model)

        def loss(v: Tensor, mask: dict[str, Tensor] = mask) -> Tensor:
            moved, at = {}, 0
            for name in sorted(mask):
                count = int(mask[name].sum())
                moved[name] = parameters[name].masked_scatter(mask[name], v[at : at + count])
                at += count
            logits = torch.func.functional_call(model, moved, (batch,)).logits[:, :-1]
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

        here = torch.cat([parameters[name][mask[name]] for name in sorted(mask)])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            hessian = torch.autograd.functional.hessian(loss, here)
        values, vectors = torch.linalg.eigh(hessian)
        largest, sharpest = float(values[-1]), vectors[:, -1]
        # That is exact; and this is how much it changes over the way, in either direction.
        way = 0.01 * float(here.square().mean().sqrt())
        slopes = [torch.func.grad(loss)(here + shift * sharpest) for shift in (-way, 0, way)]
        before, after = ((b - a) @ sharpest / way for a, b in pairwise(slopes))
        change = abs(float(after - before)) / 2
        assert mine == pytest.approx(largest, rel=0.03, abs=1.2 * change)


def test_the_largest_curvature_of_few_directions_is_exact() -> None:
    """Fewer weights than products with the Hessian, and equal curvatures, at which Lanczos' method
    ends early."""
    for curvatures in ([7.0], [3.0, 3.0, 3.0], [-2.0, -5.0]):
        model = Quadratic(torch.tensor(curvatures))
        sampling = rllc.Sampling(1, 1, batch_size=4, control_variate=False)
        x = torch.zeros(4, len(curvatures))
        draws = rllc.sample(model, x, loss=loss_of_quadratic, sampling=sampling, compute=QUIET)
        found = draws.observed["max_curvature"][0]
        assert found == pytest.approx(max(curvatures), rel=0.01)


def test_probes_change_no_draw_and_can_be_left_out() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    draws = [
        rllc.sample(
            model,
            tokens,
            ["0:1", "1:0"],
            sampling=rllc.Sampling(2, 4, batch_size=4, control_variate=False, num_probes=n),
            compute=QUIET,
        )
        for n in (0, 3)
    ]
    np.testing.assert_array_equal(draws[0].loss, draws[1].loss)
    assert set(draws[0].observed) == {"minibatch_variance"}
    assert {name: array.shape for name, array in draws[1].observed.items()} == {
        "minibatch_variance": (2, 2, 4),
        "max_curvature": (2,),
        "loss_under_prior": (2, 4, 8),
        "pairing": (2,),
        "stability": (2,),
        "acceptance": (2, 2, 3),
        "discretisation": (2, 2, 3),
    }
    assert all(np.isfinite(array).all() for array in draws[1].observed.values())


@pytest.mark.slow
def test_the_noise_of_a_minibatch_is_that_over_all_minibatches() -> None:
    """At a fixed position the estimate is unbiased: its mean over draws is the variance of loss −
    baseline over minibatches."""
    rows, batch = 12, 4
    x = torch.randn(rows, 6, generator=generator("x"))
    model = Quadratic(torch.zeros(6))

    def measured(state: Stay, energy: object, random: object) -> Stay:
        energy(state.position)
        return state

    sampler = rllc.samplers.Sampler(
        "stay", 1.0, 0.0, lambda position: Stay(position + 0.5), measured
    )
    draws = rllc.sample(
        model,
        (x,),
        loss=loss_of_quadratic,
        sampler=sampler,
        sampling=rllc.Sampling(
            1, 600, batch_size=batch, n_beta=1.0, control_variate=False, num_probes=0
        ),
        compute=QUIET,
    )
    each = (x * 0.5).sum(1)
    exact = float(each.var(correction=1)) / batch * (1 - batch / rows)
    assert draws.observed["minibatch_variance"].shape == draws.loss.shape
    error = draws.observed["minibatch_variance"].std() / 600**0.5
    assert abs(draws.observed["minibatch_variance"].mean() - exact) < 5 * error
    assert error < 0.1 * exact
    assert abs((draws.loss - draws.baseline).var() / exact - 1) < 5 * (2 / 600) ** 0.5


class Stay(NamedTuple):
    """A state of a chain that does not move."""

    position: Tensor


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(("batch", "noise"), [(12, 0.0), (1, np.nan)])
def test_noise_of_full_batches_and_of_single_rows(batch: int, noise: float) -> None:
    draws = rllc.sample(
        tiny_model(),
        tiny_tokens(),
        "0:0",
        sampling=rllc.Sampling(1, 2, batch_size=batch),
        compute=QUIET,
    )
    np.testing.assert_array_equal(draws.observed["minibatch_variance"], np.full((1, 1, 2), noise))


@pytest.mark.usefixtures("few_looks")
def test_further_chains_are_those_of_a_larger_call() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    settings = {
        "num_draws": 3,
        "batch_size": 4,
        "num_probes": 2,
        "control_variate": True,
        "start": "gaussian",
    }

    def some(num_chains: int, first: int) -> rllc.Draws:
        sampling = rllc.Sampling(num_chains, first_chain=first, **settings)
        passes = rllc.Compute(runs_per_pass=2, progress=False)
        return rllc.sample(model, tokens, ["0:1", "1:0"], sampling=sampling, compute=passes)

    whole, first, more = some(4, 0), some(2, 0), some(2, 2)
    np.testing.assert_array_equal(whole.loss, np.concatenate([first.loss, more.loss], 1))
    np.testing.assert_array_equal(whole.llc, np.concatenate([first.llc, more.llc], 1))
    for name in ("minibatch_variance", "acceptance", "discretisation"):
        parts = [draws.observed[name] for draws in (first, more)]
        np.testing.assert_array_equal(whole.observed[name], np.concatenate(parts, 1))


def test_probed_draws_are_those_of_a_slow_sort_and_do_not_take_as_long_as_there_are_draws() -> None:
    for num_draws in (*range(1, 130), 1000, 1024):
        preferred = sorted(range(1, num_draws + 1), key=lambda n: (n & -n, n), reverse=True)
        for few in (0, 1, 5, 13):
            assert probed(few, num_draws, None) == sorted(n - 1 for n in preferred[:few])
    assert len(probed(5, 10**12, None)) == 5  # "as many as I take" is a number of draws, too
