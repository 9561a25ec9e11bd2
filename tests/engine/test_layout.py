"""Where weights sit in position vectors: against boolean indexing, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

import rllc
from rllc.engine.layout import center, groups, stack, to, unpack
from rllc.weights.selection import Weights

MODEL = tiny_model()
PARAMETERS = dict(MODEL.named_parameters())


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random_masks(seed: int, like: Weights | None = None) -> Weights:
    """Half of the weights of some tensors, at random."""
    stream = torch.Generator().manual_seed(seed)
    names = ["blocks.0.attn.W_V", "ln_final.b", "unembed.W_U"]
    return rllc.masks({n: torch.rand(PARAMETERS[n].shape, generator=stream) < 0.5 for n in names})


SELECTIONS = {
    "heads of one layer": [rllc.head(0, h) for h in range(3)],
    "heads of both layers": rllc.heads(MODEL),
    "two heads of a layer": [
        rllc.head("0:0") | rllc.head("0:2"),
        rllc.head("0:1") | rllc.head("0:2"),
    ],
    "heads across layers": [rllc.head("0:0") | rllc.head("1:2")],
    "everything": [rllc.everything()],
    "a layer": [rllc.layer(0), rllc.layer(1)],
    "all but a head": [~rllc.head("0:1")],
    "random masks": [random_masks(0)],
    "parts of heads": [
        rllc.parameters("blocks.1.attn.W_Q", index=(h, slice(None, None, 2))) for h in range(3)
    ],
    "columns": [rllc.parameters("blocks.1.attn.W_O", index=(slice(None), 1))],
    "some biases": [rllc.parameters("ln_final.b", index=slice(i, i + 3)) for i in (0, 4)],
}


def selected(weights: Weights, values: dict[str, Tensor]) -> Tensor:
    """The selected weights by boolean indexing, parameters in alphabetical order."""
    return torch.cat([values[name][mask] for name, mask in sorted(weights.masks(MODEL).items())])


@pytest.mark.parametrize("case", SELECTIONS)
def test_positions_are_the_selected_weights_and_come_back(case: str) -> None:
    chosen = SELECTIONS[case]
    seen = []
    for group in groups([w.masks(MODEL) for w in chosen]):
        seen += group.members
        origin = center(group, PARAMETERS)
        for m, i in enumerate(group.members):
            assert torch.equal(origin[m], selected(chosen[i], PARAMETERS))
        member = torch.tensor([m for m in range(len(group.members)) for _ in range(2)][::-1])
        position = torch.randn(len(member), group.dim)
        moved = unpack(group, position, member, PARAMETERS)
        for run, m in enumerate(member.tolist()):
            weights = chosen[group.members[m]]
            whole = {name: stack(moved[name], PARAMETERS[name])[run] for name in moved}
            assert torch.equal(selected(weights, whole), position[run])
            for name, mask in weights.masks(MODEL).items():
                assert torch.equal(whole[name][~mask], PARAMETERS[name][~mask])
    assert sorted(seen) == list(range(len(chosen)))


@pytest.mark.parametrize("case", SELECTIONS)
def test_gradients_reach_each_number_once(case: str) -> None:
    for group in groups([w.masks(MODEL) for w in SELECTIONS[case]]):
        member = torch.arange(len(group.members))
        position = center(group, PARAMETERS).requires_grad_()
        moved = unpack(group, position, member, PARAMETERS)
        factors = {name: torch.randn(len(member), *PARAMETERS[name].shape) for name in moved}
        total = sum((stack(moved[name], PARAMETERS[name]) * factors[name]).sum() for name in moved)
        (gradient,) = torch.autograd.grad(total, position)
        for m, i in enumerate(group.members):
            expected = selected(SELECTIONS[case][i], {name: f[m] for name, f in factors.items()})
            assert torch.equal(gradient[m], expected)


def test_heads_of_a_layer_share_a_group_and_its_index_tensor() -> None:
    found = groups([w.masks(MODEL) for w in rllc.heads(MODEL)])
    assert [g.members for g in found] == [(0, 1, 2), (3, 4, 5)]
    for group in found:
        assert all(slot.rows is group.slots[0].rows for slot in group.slots)
        assert all(slot.within is None for slot in group.slots)
        moved = unpack(group, torch.zeros(3, group.dim), torch.arange(3), PARAMETERS)
        assert len({id(m.rows) for m in moved.values()}) == 1  # the forward looks at identity


def test_whole_tensors_need_no_indices() -> None:
    (group,) = groups([rllc.everything().masks(MODEL)])
    assert all(slot.rows is None and slot.within is None for slot in group.slots)


def test_selections_of_other_patterns_are_other_groups() -> None:
    chosen = [
        rllc.head("0:0"),
        rllc.head("0:0") | rllc.head("0:1"),
        rllc.head("0:1"),
        rllc.layer(0),
    ]
    assert [g.members for g in groups([w.masks(MODEL) for w in chosen])] == [(0, 2), (1,), (3,)]


def test_moving_a_group_keeps_shared_indices_shared() -> None:
    (group,) = groups([rllc.head("0:1").masks(MODEL)])
    there = to(group, torch.device("meta"))
    assert {slot.rows.device.type for slot in there.slots if slot.rows is not None} == {"meta"}
    assert len({id(slot.rows) for slot in there.slots}) == 1
    assert (there.members, there.dim) == (group.members, group.dim)


def test_half_precision_models_have_float32_positions() -> None:
    model = nn.Linear(3, 2).bfloat16()
    parameters = dict(model.named_parameters())
    mask = torch.tensor([[True, False, True], [False, False, True]])
    (group,) = groups([rllc.masks({"weight": mask}).masks(model)])
    origin = center(group, parameters)
    assert origin.dtype == torch.float32
    moved = unpack(
        group, origin + 1e-4, torch.tensor([0]), parameters
    )  # too small a move for bfloat16
    assert torch.equal(stack(moved["weight"], parameters["weight"])[0][mask], (origin + 1e-4)[0])
