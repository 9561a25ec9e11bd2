"""State dicts put into modules of one's own: which names and contents are the module's."""

from __future__ import annotations

import pytest
import torch
from sources import are_equal, small_gpt2
from test_steps import net
from torch import nn

from rllc.errors import FileError, InputError
from rllc.models import checkpoints, load


def saved(path, contents):
    torch.save(contents, path)
    return path


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_prefixes_are_removed_and_said(tmp_path, prefix) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in net(1).state_dict().items()}
    path = saved(tmp_path / "ckpt_1.pt", state)
    with pytest.warns(UserWarning, match=r"load: removed '.*\.' from the names of tensors"):
        assert are_equal(load(path, into=net(0)), net(1))


def test_a_part_that_was_compiled(tmp_path) -> None:
    state = {name.replace("0.", "0._orig_mod."): t for name, t in net(1).state_dict().items()}
    path = saved(tmp_path / "ckpt_1.pt", state)
    with pytest.warns(UserWarning, match="removed '_orig_mod.'"):
        assert are_equal(load(path, into=net(0)), net(1))


class Outer(nn.Module):
    """A module whose own names begin with a prefix."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = net(seed)


def test_a_prefix_that_is_the_modules_own_stays(tmp_path, recwarn) -> None:
    path = saved(tmp_path / "ckpt_1.pt", Outer(1).state_dict())
    assert are_equal(load(path, into=Outer(0)), Outer(1))
    assert not [w for w in recwarn if "removed" in str(w.message)]


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "module", "net", "weights"]
)
def test_a_state_dict_among_other_things(tmp_path, key) -> None:
    contents = {
        key: net(1).state_dict(),
        "optimizer": torch.optim.Adam(net(1).parameters()).state_dict(),
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
    }
    path = saved(tmp_path / "a.ckpt", contents)
    assert are_equal(load(path, into=net(0)), net(1))


def test_several_state_dicts_in_one_file(tmp_path) -> None:
    state = net(1).state_dict()
    path = saved(tmp_path / "a.pt", {"model": state, "state_dict": state})
    with pytest.raises(FileError, match="holds several state dicts, 'state_dict', 'model'"):
        load(path, into=net(0))
    path = saved(tmp_path / "b.pt", {"generator": state, "discriminator": state, "step": 1})
    with pytest.raises(FileError, match=r"under names that say not which .* 'generator', 'discr"):
        load(path, into=net(0))


def test_a_module_is_filled_in_its_own_memory(tmp_path) -> None:
    path = saved(tmp_path / "a.pt", net(1).state_dict())
    into = net(0).train()
    pointer = into[0].weight.data_ptr()
    assert load(path, into=into) is into
    assert into[0].weight.data_ptr() == pointer
    assert not into.training


def test_a_checkpoint_leaves_the_users_module_alone(tmp_path) -> None:
    path = saved(tmp_path / "ckpt_1.pt", net(1).state_dict())
    into = net(0)
    (checkpoint,) = checkpoints([path], into=into)
    assert are_equal(load(checkpoint), net(1))
    assert are_equal(into, net(0))


def test_frozen_weights_stay_frozen(tmp_path) -> None:
    path = saved(tmp_path / "ckpt_1.pt", net(1).state_dict())

    def make():
        module = net(0)
        module[0].requires_grad_(False)
        return module

    loaded = load(path, into=make)
    assert [p.requires_grad for p in loaded.parameters()] == [False, False, True, True]


def test_precision_and_buffers_are_the_modules(tmp_path) -> None:
    source = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    source(torch.randn(8, 2))
    path = saved(tmp_path / "a.pt", source.state_dict())
    into = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    load(path, into=into)
    assert into[1].num_batches_tracked == 1
    assert torch.equal(into[1].running_mean, source[1].running_mean.double())


class Tied(nn.Module):
    """Two names of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights(tmp_path) -> None:
    matrix = torch.randn(5, 3)
    for names in (["embed.weight"], ["head.weight"], ["embed.weight", "head.weight"]):
        path = saved(tmp_path / "a.pt", dict.fromkeys(names, matrix))
        assert torch.equal(load(path, into=Tied()).embed.weight, matrix)
    different = {"embed.weight": matrix, "head.weight": matrix + 1}
    path = saved(tmp_path / "a.pt", different)
    with pytest.raises(FileError, match=r"'embed.weight' and 'head.weight' are one tensor"):
        load(path, into=Tied())


def test_a_language_model_of_transformers(tmp_path) -> None:
    path = saved(tmp_path / "ckpt_1.pt", {"model": small_gpt2(1).state_dict(), "step": 1})
    assert are_equal(load(path, into=small_gpt2(0)), small_gpt2(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"'0.bias' is missing"),
        (lambda s: s.update(extra=torch.ones(1)), r"'extra' is unexpected"),
        (lambda s: s.update({"0.bias": torch.ones(5)}), r"'0.bias' has shape \(5,\), expected \(4"),
        (lambda s: s["0.bias"].fill_(torch.nan), r"'0.bias' has 4 of 4 values that are not finite"),
        (lambda s: s.update({"0.bias": torch.ones(4).int()}), r"'0.bias' is torch.int32"),
        (lambda s: s.update({"0.bias": torch.ones(4).to_sparse()}), r"'0.bias' is .*sparse_coo"),
        (lambda s: s.update(_flat_param=torch.ones(1)), "is a piece of a model under FSDP"),
    ],
)
def test_a_bad_state_dict_leaves_the_module_as_it_was(tmp_path, change, message) -> None:
    state = net(1).state_dict()
    change(state)
    path = saved(tmp_path / "a.pt", state)
    into = net(0)
    with pytest.raises(FileError, match=message):
        load(path, into=into)
    assert are_equal(into, net(0))


@pytest.mark.parametrize(
    ("into", "message"),
    [
        (3, r"`into` must be a torch.nn.Module, or a function .* got int"),
        (lambda: 3, "`into` made a int, expected a torch.nn.Module"),
        (lambda width: net(0), "a function without arguments .* calling it raised"),
    ],
)
def test_what_cannot_be_filled(tmp_path, into, message) -> None:
    path = saved(tmp_path / "a.pt", net(1).state_dict())
    with pytest.raises(InputError, match=message):
        load(path, into=into)


def test_a_state_dict_of_an_unknown_model(tmp_path) -> None:
    path = saved(tmp_path / "a.pt", net(1).state_dict())
    with pytest.raises(FileError, match=r"names 0.weight, 0.bias, .* type into=model"):
        load(path)


def test_other_forms_are_refused_by_name(tmp_path) -> None:
    adapter = tmp_path / "checkpoint-1"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(FileError, match=r"does not say which model the adapter"):
        load(tmp_path, into=net(0))
    sharded = tmp_path / "run" / "step_1"
    sharded.mkdir(parents=True)
    (sharded / "__0_0.distcp").write_bytes(b"0")
    with pytest.raises(FileError, match=r"a distributed checkpoint \(.distcp\).*dcp_to_torch"):
        load(tmp_path / "run", into=net(0))
