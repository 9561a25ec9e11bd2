"""What is wrapped around a model changes no number and no name, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from marks import quickly
from tiny import QUIET, SHORT, tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.wrappers import unwrapped

ROWS = tiny_tokens()


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of one process."""
    file = Path(tmp_path_factory.mktemp("group")) / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind == "DataParallel":
        return nn.DataParallel(model)
    if kind == "DistributedDataParallel":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "compile":
        return torch.compile(model)
    return torch.compile(nn.parallel.DistributedDataParallel(nn.DataParallel(model)))


KINDS = ["DataParallel", "DistributedDataParallel", "compile", "all three"]


@pytest.mark.parametrize("kind", quickly(("DataParallel", "all three"), KINDS))
def test_a_wrapped_model_is_the_model(group, kind) -> None:
    model = tiny_model()
    outside = wrapped(kind, model)
    assert unwrapped(outside) is model
    options = {"sampling": SHORT, "compute": QUIET}
    est = rllc.estimate(outside, ROWS, rllc.heads(outside), **options)
    expected = rllc.estimate(model, ROWS, rllc.heads(model), **options)
    assert est.weights == expected.weights
    assert np.array_equal(est.value, expected.value)
    assert rllc.everything().describe(outside) == rllc.everything().describe(model)
    tracker = rllc.Tracker(ROWS, rllc.heads, **options)
    assert np.array_equal(tracker(1, outside).value, expected.value)
    assert np.array_equal(rllc.track({1: outside}, ROWS, rllc.heads, **options).value[0], est.value)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_stay_on(group, kind) -> None:
    outside = wrapped(kind, tiny_model().train())
    wrong = rllc.Tokens(torch.full((8, 4), 77))
    with pytest.raises(rllc.InputError, match="token id 77, but the model's vocabulary has 11"):
        rllc.estimate(outside, wrong, "0:0", sampling=SHORT, compute=QUIET)
    rllc.estimate(outside, ROWS, "0:0", sampling=SHORT, compute=QUIET)
    assert all(module.training for module in outside.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_into_a_wrapped_module(group, kind, tmp_path) -> None:
    path = tmp_path / "ckpt_1.pt"
    torch.save(tiny_model(1).state_dict(), path)
    into = wrapped(kind, tiny_model(0))
    assert rllc.load(path, into=into) is into
    for name, tensor in tiny_model(1).state_dict().items():
        assert torch.equal(unwrapped(into).state_dict()[name], tensor)


def test_pieces_of_a_model_are_refused_by_name(group) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    one = FullyShardedDataParallel(nn.Linear(3, 1), device_id=torch.device("cpu"))
    other = nn.Sequential(nn.Linear(3, 1))
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(other[0], mesh=mesh)
    x = torch.randn(8, 3)
    for model, name in ((one, "FullyShardedDataParallel"), (other, "FSDPModule")):
        with pytest.raises(rllc.InputError, match=f"is under {name}, .*full_state_dict=True"):
            rllc.estimate(model, x, loss=lambda m, x: m(x)[:, 0] ** 2, sampling=SHORT)


def test_a_compiled_part_is_refused_by_name() -> None:
    inside = nn.Sequential(torch.compile(nn.Linear(3, 1)))
    in_place = nn.Linear(3, 1)
    in_place.compile()
    for model, where in ((inside, "Sequential, at '0'"), (in_place, "Linear")):
        with pytest.raises(rllc.InputError, match=f"a part of {where} is compiled, .*before torch"):
            unwrapped(model)
