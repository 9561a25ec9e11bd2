"""Directions as weights: a quadratic restricted to a subspace is a smaller quadratic."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, square, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.engine.bind import bind
from rllc.engine.layout import center, digest, groups, stack, to, unpack
from rllc.errors import InputError
from rllc.testing import check_loss
from rllc.theory import SGLDLaw
from rllc.weights.selection import Weights

DIM, DIRECTIONS = 24, 5
CURVATURES = torch.linspace(0.2, 12.0, DIM)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random_basis(seed: int = 0) -> Tensor:
    return torch.randn(DIM, DIRECTIONS, generator=torch.Generator().manual_seed(seed))


def restricted(basis: Tensor) -> np.ndarray:
    """Curvatures of the quadratic along the span of a basis."""
    q, _ = np.linalg.qr(basis.double().numpy())
    return np.linalg.eigvalsh(q.T @ np.diag(CURVATURES.double().numpy()) @ q)


def basis_in(model: nn.Module, weights: Weights) -> Tensor:
    """All directions beneath one another, parameters in order."""
    masks = weights.masks(model)
    return torch.cat([masks.basis[name] for name in sorted(masks)])


# Exact truths.


@pytest.mark.slow
def test_the_llc_is_that_of_the_restricted_quadratic() -> None:
    basis = random_basis()
    law = SGLDLaw(restricted(basis), lr=4e-3, localization=50.0, n_beta=30.0)
    sampling = rllc.Sampling(num_chains=8, num_draws=300, num_burnin_steps=100, batch_size=1)
    estimate = rllc.estimate(
        Quadratic(CURVATURES),
        torch.zeros(1, DIM),
        # The same subspace, in other coordinates.
        [
            rllc.subspace({"v": basis}, "one"),
            rllc.subspace({"v": basis @ torch.randn(DIRECTIONS, DIRECTIONS)}, "another"),
        ],
        loss=loss_of_quadratic,
        sampler=rllc.sgld(4e-3, 50.0),
        sampling=sampling,
        compute=QUIET,
    )
    truth = law.expected(300, num_burnin_steps=100)
    error = law.standard_error(300, 8, num_burnin_steps=100)
    assert error < 0.05 * truth
    assert (abs(estimate.value - truth) < 5 * error).all()


def test_losses_and_gradients_are_those_of_the_coordinates() -> None:
    """½(z − z*)ᵀBᵀHB(z − z*), run by run and stacked."""
    model, weights = Quadratic(CURVATURES), rllc.subspace({"v": random_basis()})
    B = basis_in(model, weights)
    H = B.T @ torch.diag(CURVATURES) @ B
    (group,) = groups([weights.masks(model)])
    origin = center(group, dict(model.named_parameters()))
    assert torch.allclose(origin[0], B.T @ model.v.detach(), atol=1e-6)
    position = origin + torch.randn(3, DIRECTIONS)
    bound = bind(model, loss_of_quadratic)
    x = torch.zeros(2, DIM)
    member = torch.zeros(3, dtype=torch.long)
    at = bound.center(x, 0)
    runs = bound.runs(group, member, position, at, x, gradient=True, each=False)
    away = position - origin
    assert torch.allclose(runs.losses.float(), 0.5 * (away @ H * away).sum(1), rtol=1e-4)
    assert torch.allclose(runs.gradient, away @ H, rtol=1e-4, atol=1e-4)


def test_all_directions_are_all_weights() -> None:
    """The law of the chains does not depend on the basis, and a full one spans everything."""
    h = torch.tensor([0.5, 2.0, 8.0])
    whole = rllc.subspace({"v": torch.randn(3, 3)})
    law = SGLDLaw(h.numpy(), lr=4e-3, localization=50.0, n_beta=30.0)
    draws = rllc.sample(
        Quadratic(h),
        torch.zeros(1, 3),
        whole,
        loss=loss_of_quadratic,
        sampler=rllc.sgld(4e-3, 50.0),
        sampling=rllc.Sampling(num_chains=16, num_draws=200, num_burnin_steps=100, batch_size=1),
        compute=QUIET,
    )
    error = law.standard_error(200, 16, num_burnin_steps=100)
    assert abs(draws.llc.mean() - law.expected(200, num_burnin_steps=100)) < 5 * error


def test_a_head_along_its_axes_is_part_of_the_head() -> None:
    """Losses and gradients of the two-layer model, whose forward pass is its own."""
    model, batch = tiny_model(), tiny_tokens().rows[:3].long()
    name = "blocks.0.attn.W_O"
    axes = torch.eye(model.get_parameter(name).numel())
    chosen = [2, 5, 7]
    directions = axes[:, chosen].reshape(*model.get_parameter(name).shape, 3)
    mask = axes[:, chosen].sum(1).bool().reshape(model.get_parameter(name).shape)
    bound = bind(model, None)
    at = bound.center(batch, 0)
    found = []
    for weights in (rllc.subspace({name: directions}), rllc.masks({name: mask})):
        (group,) = groups([weights.masks(model)])
        position = center(group, dict(model.named_parameters())) + torch.tensor([[0.3, -0.2, 0.5]])
        member = torch.tensor([0])
        found.append(bound.runs(group, member, position, at, batch, gradient=True, each=False))
    assert torch.allclose(found[0].losses, found[1].losses, rtol=1e-6)
    assert torch.allclose(found[0].gradient, found[1].gradient, atol=1e-6)


# One direction moves several parameters, and several subspaces run together.


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def joint(seed: int) -> rllc.subspace:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (4, 3, 2), "2.bias": (1, 2)}
    basis = {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    return rllc.subspace(basis, f"joint {seed}")


def test_subspaces_of_the_same_parameters_run_together() -> None:
    model = Net()
    both = [joint(seed) for seed in (0, 1)]
    (group,) = groups([weights.masks(model) for weights in both])
    assert (group.members, group.dim, group.num_weights) == ((0, 1), 2, 13)
    parameters = dict(model.named_parameters())
    z = torch.randn(2, 2)
    member = torch.tensor([1, 0])
    moved = unpack(
        to(group, torch.device("cpu")),
        center(group, parameters)[member] + z,
        member,
        parameters,
    )
    for run, weights in enumerate(both[::-1]):
        basis = weights.masks(model).basis
        for name, parameter in parameters.items():
            if name not in basis:
                assert name not in moved
                continue
            step = (basis[name] @ z[run]).view(parameter.shape)
            found = stack(moved[name], parameter)[run]
            assert torch.allclose(found, parameter.detach() + step, atol=1e-6)
    check_loss(model, square, torch.randn(8, 3), both[0])


def test_a_step_is_as_long_in_weights_as_in_coordinates() -> None:
    basis = basis_in(Net(), joint(0))
    assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-6)
    right = torch.linalg.qr(torch.randn(3, 2)).Q
    kept = rllc.subspace({"v": right}).masks(Quadratic(torch.ones(3))).basis["v"]
    assert torch.allclose(kept, right, atol=1e-6)  # what is orthonormal stays as it is


def test_other_directions_are_another_selection() -> None:
    model = Net()
    one, same, other = joint(0), joint(0), joint(1)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert digest(one.masks(model)) == digest(same.masks(model))
    whole = rllc.parameters("0.weight") | rllc.parameters("2.bias")
    digests = {digest(weights.masks(model)) for weights in (one, other, whole)}
    assert len(digests) == 3
    restored = pickle.loads(pickle.dumps((one, one.masks(model))))
    assert restored[0] == one
    assert digest(restored[1]) == digest(one.masks(model))


def test_chains_along_directions_can_go_on_and_give_whole_parameters() -> None:
    model, x = Net(), torch.randn(8, 3)

    def sample(num_draws: int, resume: rllc.Draws | None = None) -> rllc.Draws:
        sampling = rllc.Sampling(**vars(SHORT) | {"num_draws": num_draws})
        compute = rllc.Compute(progress=False, keep_states=True)
        asked = {"sampling": sampling, "compute": compute, "resume": resume}
        return rllc.sample(model, x, joint(0), loss=square, **asked)

    assert (sample(6, sample(3)).loss == sample(6).loss).all()
    steps = rllc.iterate(model, x, joint(0), loss=square, sampling=SHORT, compute=QUIET)
    step = list(steps)[-1]
    (basis,) = (joint(0).masks(model).basis[name] for name in ("0.weight",))
    away = (step.parameters(0)["0.weight"] - model[0].weight.detach()).flatten(1)
    inside = away @ basis @ torch.linalg.pinv(basis)
    assert away.norm() > 0.01
    assert torch.allclose(away, inside, atol=1e-5)
    assert step.positions(0).shape == (2, 2)


def test_a_subspace_says_what_it_is() -> None:
    model = Net()
    assert joint(0).count(model) == 2
    assert joint(0).named("mine").describe(model).splitlines() == [
        "mine: 2 directions in 13 weights",
        "  0.weight                     (4, 3)                       12",
        "  2.bias                       (1,)                          1",
    ]


# What cannot be.


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ({}, "a dict of parameter names and tensors"),
        ({"v": [1.0]}, "must be a tensor of real numbers"),
        ({"v": torch.ones(3, 1, dtype=torch.long)}, "must be a tensor of real numbers"),
        ({"v": torch.ones(3, 0)}, "with one direction at least"),
        ({"v": torch.full((3, 1), torch.nan)}, "are not all finite"),
        ({"v": torch.ones(3, 2)}, "direction 1 is 0, or a combination of those before it"),
        ({"v": torch.zeros(3, 1)}, "direction 0 is 0"),
        ({"v": torch.randn(2, 3)}, "3 directions in 2 weights depend on one another"),
        ({"v": torch.ones(3, 1), "w": torch.ones(3, 2)}, "all need equally many"),
    ],
)
def test_bases_that_are_none_are_refused(basis: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rllc.subspace(basis)


def test_names_and_shapes_of_another_model_are_refused() -> None:
    model = Quadratic(torch.ones(3))
    with pytest.raises(InputError, match="has no parameter 'w'"):
        rllc.subspace({"w": torch.ones(3, 1)}).masks(model)
    with pytest.raises(InputError, match=r"must have the parameter's shape \(3,\)"):
        rllc.subspace({"v": torch.ones(4, 1)}).masks(model)
    tied = nn.Module()
    tied.a = tied.b = nn.Parameter(torch.ones(3))
    with pytest.raises(InputError, match="give its directions once"):
        rllc.subspace({"a": torch.ones(3, 1), "b": torch.ones(3, 1)}).masks(tied)


def test_a_subspace_is_no_set_of_weights() -> None:
    along, everything = rllc.subspace({"v": torch.ones(3, 1)}), rllc.everything()
    combinations = [
        lambda: along | everything,
        lambda: everything | along,
        lambda: along & everything,
        lambda: everything & along,
        lambda: ~along,
    ]
    for combine in combinations:
        with pytest.raises(InputError, match=r"Give rllc\.subspace all directions at once"):
            combine()
