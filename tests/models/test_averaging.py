"""The mean of several models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rllc.errors import InputError
from rllc.models import average


def models(count: int) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    return made


def test_each_parameter_is_the_mean_and_the_rest_is_the_last_models() -> None:
    members = models(3)
    members[-1][0].weight.requires_grad_(False)
    members[-1][1].running_mean.fill_(7.0)
    members[-1].eval()
    before = [copy.deepcopy(member.state_dict()) for member in members]
    mean = average(member for member in members)
    for name, parameter in mean.named_parameters():
        expected = sum(state[name].double() for state in before) / 3
        assert torch.equal(parameter, expected.float()), name
    assert not mean[0].weight.requires_grad
    assert mean[2].weight.requires_grad
    assert bool((mean[1].running_mean == 7.0).all())
    assert not mean.training
    for member, state in zip(members, before, strict=True):
        for name, value in member.state_dict().items():
            assert torch.equal(value, state[name])


def test_the_mean_of_one_is_itself_in_a_copy() -> None:
    (model,) = models(1)
    mean = average([model])
    assert mean is not model
    for name, value in mean.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_small_differences_survive_in_bfloat16() -> None:
    """Sums in bfloat16 would lose the smaller of two parameters."""
    members = []
    for value in (256.0, 1.0, 1.0):
        member = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        nn.init.constant_(member.weight, value)
        members.append(member)
    assert float(average(members).weight.detach()) == 86.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "average: expected at least one model, got none"),
        (3, "average: `models` must be several modules"),
        ([{"weight": torch.ones(1)}], r"average: `models\[0\]` must be a torch.nn.Module"),
        (
            [nn.Linear(2, 1), nn.Linear(3, 1)],
            r"'weight' is \(1, 2\) in the first and \(1, 3\) in models\[1\]",
        ),
        (
            [nn.Linear(2, 1, bias=False), nn.Linear(2, 1)],
            r"'bias' is not there in the first and \(1,\) in models\[1\]",
        ),
    ],
)
def test_what_has_no_mean_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        average(given)  # type: ignore[arg-type]
