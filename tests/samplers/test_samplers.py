"""Samplers: the update written out, the exact law on quadratics, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import QUIET, tiny_model, tiny_tokens

import rllc
from rllc.errors import InputError
from rllc.samplers import Random
from rllc.seeds import generator
from rllc.testing import check_sampler
from rllc.theory import SGLDLaw

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def streams(count: int, *key: object) -> list[torch.Generator]:
    return [generator(*key, c) for c in range(count)]


def test_a_step_of_sgld_is_the_formula() -> None:
    lr, localization = 0.02, 7.0
    sampler = rllc.sgld(lr=lr, localization=localization)
    origin, gradient = torch.randn(3, 5), torch.randn(3, 5)
    state = sampler.init(origin)._replace(position=origin + torch.randn(3, 5))
    after = sampler.step(state, lambda v: (v.sum(1), gradient), Random(streams(3), 5, CPU))
    noise = torch.stack([torch.randn(5, generator=stream) for stream in streams(3)])
    drift = -(lr / 2) * (gradient + localization * (state.position - origin))
    assert torch.allclose(after.position, state.position + drift + lr**0.5 * noise, atol=1e-6)
    assert torch.equal(after.center, origin)


@pytest.mark.parametrize(
    ("lr", "localization"), [(1e-3, 200.0), (1e-3, 2000.0), (0.1, 0.0), (1e-5, 1000.0)]
)
def test_sgld_has_its_exact_law_at_finite_step_size(lr: float, localization: float) -> None:
    def variance(a: object) -> object:
        return SGLDLaw(
            (a - localization) / 3.0, lr=lr, localization=localization, n_beta=3.0
        ).variance  # type: ignore[operator]

    check_sampler(rllc.sgld(lr=lr, localization=localization), variance)


def test_sgld_far_from_the_small_step_limit() -> None:
    """At εa = 3.6 the variance is ten times the target's; the sign alternates at every step."""
    sampler = rllc.sgld(lr=1e-2, localization=10.0)
    curvatures = [50.0, 350.0]
    law = SGLDLaw(curvatures, lr=1e-2, localization=10.0, n_beta=1.0)
    assert law.variance[1] * 360 > 9
    check_sampler(sampler, lambda a: law.variance, curvatures=curvatures)


def test_a_runs_noise_is_its_own() -> None:
    together = Random(streams(3, "noise"), 40, CPU)
    first, second = together.normal(), together.normal()
    for c in range(3):
        alone = Random([streams(3, "noise")[c]], 40, CPU)
        assert torch.equal(alone.normal()[0], first[c])
        assert torch.equal(alone.normal()[0], second[c])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_uniform_numbers_are_in_their_range_and_a_runs_own() -> None:
    together = Random(streams(500, "uniform"), 1, CPU).uniform()
    assert together.shape == (500,)
    assert 0 <= float(together.min()) < 0.05
    assert 0.95 < float(together.max()) < 1
    assert torch.equal(Random([streams(500, "uniform")[7]], 1, CPU).uniform(), together[7:8])


def test_normal_numbers_are_standard_normal() -> None:
    noise = Random(streams(50, "normal"), 2000, CPU).normal().double()
    assert abs(float(noise.mean())) * noise.numel() ** 0.5 < 5
    assert abs(float(noise.var() - 1)) * (noise.numel() / 2) ** 0.5 < 5


def test_settings_and_repr_say_what_was_run() -> None:
    sampler = rllc.sgld(lr=3e-4, localization=100.0)
    assert sampler.settings == {"sampler": "sgld", "lr": 3e-4, "localization": 100.0}
    assert repr(sampler) == "sgld(lr=0.0003, localization=100)"


def test_a_sampler_of_your_own_runs_in_the_engine() -> None:
    """One that asks for the energy twice a step, and one that never moves."""
    base = rllc.sgld()

    def halfway(state: object, energy: object, random: Random) -> object:
        _, gradient = energy(state.position)  # type: ignore[attr-defined, operator]
        energy(state.position + 1e-3 * gradient)  # type: ignore[attr-defined, operator]
        return base.step(state, lambda v: (v.sum(1), gradient), random)

    model, tokens = tiny_model(), tiny_tokens()
    sampling = rllc.Sampling(num_draws=3, batch_size=4, control_variate=False, start="center")
    found = [
        rllc.sample(model, tokens, "0:1", sampler=sampler, sampling=sampling, compute=QUIET)
        for sampler in (
            base,
            rllc.samplers.Sampler("halfway", base.lr, base.localization, base.init, halfway),
        )
    ]
    assert (found[0].loss == found[1].loss).all()  # only the first evaluation is measured
    still = rllc.samplers.Sampler(
        "still", 1e-3, 0.0, base.init, lambda state, energy, _: (energy(state.position), state)[1]
    )
    draws = rllc.sample(model, tokens, "0:1", sampler=still, sampling=sampling, compute=QUIET)
    assert abs(draws.llc).max() < 1e-4


@pytest.mark.parametrize("lr", [0, -1e-3, float("inf"), float("nan"), True])
def test_a_learning_rate_must_be_positive(lr: float) -> None:
    with pytest.raises(InputError, match=r"sgld: `lr` must be a positive number, got .*lr=1e-3"):
        rllc.sgld(lr=lr)


@pytest.mark.parametrize("localization", [-1, float("inf"), float("nan"), True])
def test_a_localization_must_not_be_negative(localization: float) -> None:
    with pytest.raises(
        InputError, match=r"`localization` must be a number from 0 on, got .*uses 200"
    ):
        rllc.sgld(localization=localization)
