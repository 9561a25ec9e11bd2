"""The checks for people who extend rllc: they pass what is right and see what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny import square, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.samplers import Energy, Random, Sampler
from rllc.testing import check_loss, check_sampler, check_weights, unchanged

SGLD = rllc.sgld(lr=1e-3, localization=200.0)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def sgld_variance(a: np.ndarray) -> np.ndarray:
    return 1 / (a * (1 - SGLD.lr * a / 4))


class Lying(rllc.Weights):
    """A selection whose masks or count are not what they should be."""

    wrong: str = ""

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        right = super().masks(model)
        if self.wrong == "dtype":
            return {name: mask.float() for name, mask in right.items()}
        if self.wrong == "shape":
            return {name: mask[:1] for name, mask in right.items()}
        if self.wrong == "name":
            return {f"x{name}": mask for name, mask in right.items()}
        return (
            right | {"bias": torch.zeros(2, dtype=torch.bool)} if self.wrong == "empty" else right
        )

    def count(self, model: nn.Module) -> int:
        return super().count(model) + (self.wrong == "count")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("dtype", "boolean"),
        ("shape", "must be"),
        ("name", "no parameter 'xweight'"),
        ("empty", "nothing"),
        ("count", "count"),
    ],
)
def test_check_weights_sees(wrong: str, message: str) -> None:
    weights = Lying("lying", rllc.parameters("weight").rule)
    object.__setattr__(weights, "wrong", wrong)
    with pytest.raises(AssertionError, match=message):
        check_weights(weights, nn.Linear(3, 2))


def test_check_loss_passes_token_losses_and_any_module() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    for weights in (None, rllc.head("0:1"), rllc.parameters("unembed.*")):
        check_loss(model, None, tokens, weights)
    check_loss(model, rllc.losses.distillation(tiny_model(1, n_layers=1)), tokens)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    check_loss(network, square, torch.randn(6, 3))


def test_check_loss_sees_a_wrong_gradient() -> None:
    def half_detached(module: nn.Module, x: Tensor) -> Tensor:
        y = module(x)[:, 0]
        return y * y.detach()

    with pytest.raises(AssertionError, match="central differences"):
        check_loss(nn.Linear(3, 1), half_detached, torch.randn(6, 3))


def test_check_loss_sees_side_effects_and_infinities() -> None:
    def forgetful(module: nn.Module, x: Tensor) -> Tensor:
        random.random()
        return square(module, x)

    with pytest.raises(AssertionError, match="Python's random state"):
        check_loss(nn.Linear(3, 1), forgetful, torch.randn(6, 3))
    with pytest.raises(AssertionError, match="finite"):
        check_loss(nn.Linear(3, 1), lambda m, x: square(m, x) / 0, torch.randn(6, 3))


def test_check_loss_sees_a_wrong_shape() -> None:
    with pytest.raises(rllc.InputError, match="reduction='none'"):
        check_loss(nn.Linear(3, 1), lambda m, x: square(m, x).mean(), torch.randn(6, 3))


def test_check_sampler_passes_sgld_at_its_own_law_and_not_at_another() -> None:
    check_sampler(SGLD, sgld_variance)
    # SGLD has no accept/reject, so at this step size it is not at the target's law.
    with pytest.raises(AssertionError, match="mean square"):
        check_sampler(SGLD)


def altered(step: object = None, init: object = None) -> Sampler:
    return Sampler(
        "altered",
        SGLD.lr,
        SGLD.localization,
        init or SGLD.init,
        step or SGLD.step,
    )  # type: ignore[arg-type]


class Impure(NamedTuple):
    position: Tensor
    center: Tensor


def step_in_place(state: Impure, energy: Energy, noise: Random) -> Impure:
    new = SGLD.step(state, energy, noise)
    state.position.copy_(new.position)
    return new


def step_after_looking_elsewhere(state: Impure, energy: Energy, noise: Random) -> Impure:
    energy(state.position + 1)
    return SGLD.step(state, energy, noise)


def step_with_global_noise(state: Impure, energy: Energy, noise: Random) -> Impure:
    new = SGLD.step(state, energy, noise)
    return new._replace(position=new.position + 1e-3 * torch.randn_like(new.position))


def step_towards_others(state: Impure, energy: Energy, noise: Random) -> Impure:
    new = SGLD.step(state, energy, noise)
    return new._replace(position=new.position + 0.1 * new.position.mean(0))


def step_in_double(state: Impure, energy: Energy, noise: Random) -> Impure:
    new = SGLD.step(state, energy, noise)
    return new._replace(position=new.position.double())


def step_without_run_axis(state: Impure, energy: Energy, noise: Random) -> Impure:
    return SGLD.step(state, energy, noise)._replace(center=torch.zeros(()))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (step_in_place, "wrote into the"),
        (step_after_looking_elsewhere, "first energy"),
        (step_with_global_noise, "torch's random state"),
        (step_towards_others, "alone differs"),
        (step_in_double, "stay torch.float32"),
        (step_without_run_axis, "leading run axis"),
    ],
)
def test_check_sampler_sees_impure_steps(step: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_sampler(altered(step))


def test_check_sampler_sees_a_wrong_start() -> None:
    with pytest.raises(AssertionError, match="start at the position"):
        check_sampler(altered(init=lambda position: SGLD.init(position + 1)))


def test_check_sampler_sees_a_biased_mean() -> None:
    def drifting(state: Impure, energy: Energy, noise: Random) -> Impure:
        new = SGLD.step(state, energy, noise)
        return new._replace(position=new.position + 0.002)

    with pytest.raises(AssertionError, match="mean − centre"):
        check_sampler(altered(drifting), sgld_variance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.weight.data.add_(1), "weight"),
        (lambda m: setattr(m.weight, "grad", torch.ones(1, 2)), "weight.grad"),
        (lambda m: m.weight.requires_grad_(False), "weight.requires_grad"),
        (lambda m: m.eval(), "mode of the model"),
        (lambda m: torch.rand(1), "torch's random state"),
        (lambda m: np.random.rand(), "NumPy's random state"),  # noqa: NPY002
        (lambda m: random.random(), "Python's random state"),
    ],
)
def test_unchanged_sees(change: object, message: str) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(AssertionError, match=message), unchanged(model):
        change(model)  # type: ignore[operator]
