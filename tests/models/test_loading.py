"""Loading: what a load gives and leaves behind, and every way in which a checkpoint can be bad."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sources import (
    SIZES,
    are_equal,
    small_gpt2,
    small_model,
    state_dict_folder,
    training_folder,
    with_masks,
)
from transformers.utils import logging as transformers_logging

from rllc.errors import FileError, InputError
from rllc.models import Checkpoint, checkpoints, load

FIXTURE = Path(__file__).parents[1] / "fixtures" / "transformer_lens.safetensors"

# Forms of a model.


def test_other_transformers_models(tmp_path):
    small_gpt2(1).save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert are_equal(load(tmp_path), small_gpt2(1))


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_transformer_lens_file(tmp_path, positions, suffix):
    stored = load_file(FIXTURE)
    prefix = f"{positions}/weights/"
    names = [name for name in stored if name.startswith(prefix)]
    state = {name.removeprefix(prefix): stored[name] for name in names}
    path = tmp_path / f"anything{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    model = load(path, positions=positions)
    assert model.config.positions == positions
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor)
    with torch.no_grad():
        logits = model(stored[f"{positions}/tokens"].long()).logits
    torch.testing.assert_close(logits, stored[f"{positions}/logits"], atol=1e-5, rtol=0)


def test_configuration_is_inferred_from_shapes(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(with_masks(small_model()), path)
    config = load(path, positions="shortformer").config
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert config.positions == "shortformer"
    assert config.layer_norm_eps == 1e-5
    assert checkpoints(path) == [Checkpoint(None, str(path))]


def test_configuration_beside_a_file_is_used(tmp_path):
    model = small_model(positions="standard")
    model.save_pretrained(tmp_path)
    assert load(tmp_path / "model.safetensors").config.positions == "standard"
    assert are_equal(load(tmp_path, positions="standard"), model)
    message = r"`positions` is 'shortformer', but the config.json in .* says 'standard'"
    with pytest.raises(InputError, match=message):
        load(tmp_path, positions="shortformer")


def test_positions_are_checked(tmp_path):
    torch.save(with_masks(small_model()), tmp_path / "a.pth")
    message = r"`positions` must be 'shortformer' or 'standard'; got 'rotary'"
    with pytest.raises(InputError, match=message):
        load(tmp_path / "a.pth", positions="rotary")
    small_gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"`positions` is for attention-only models"):
        load(tmp_path / "gpt2", positions="shortformer")


# What a load leaves behind.


def make_state_dict(folder: Path) -> Path:
    torch.save(with_masks(small_model()), folder / "a.pth")
    return folder / "a.pth"


def make_training_folder(folder: Path) -> Path:
    return training_folder(folder, (5,))


def make_gpt2_folder(folder: Path) -> Path:
    small_gpt2().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [make_state_dict, make_training_folder, make_gpt2_folder])
def test_loads_are_float32_in_eval_mode_and_leave_random_states(tmp_path, make):
    source = make(tmp_path)
    of_torch = torch.get_rng_state()
    of_python = random.getstate()
    of_numpy = np.random.get_state()[1].copy()  # noqa: NPY002
    positions = "shortformer" if source.suffix == ".pth" else None
    model = load(source, device="cpu", positions=positions)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert random.getstate() == of_python
    assert (np.random.get_state()[1] == of_numpy).all()  # noqa: NPY002
    assert not any(module.training for module in model.modules())
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad


def test_random_state_is_left_by_a_load_that_raises(tmp_path):
    state = with_masks(small_model())
    del state["ln_final.w"]
    torch.save(state, tmp_path / "a.pth")
    random_state = torch.get_rng_state()
    with pytest.raises(FileError):
        load(tmp_path / "a.pth", positions="standard")
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_double_and_half_precision_become_float32(tmp_path, dtype):
    torch.save(small_model().to(dtype).state_dict(), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", positions="standard")
    assert model.dtype == torch.float32
    assert torch.equal(model.embed.W_E, small_model().embed.W_E.to(dtype).float())
    small_gpt2(1).to(dtype).save_pretrained(tmp_path / "gpt2")
    assert load(tmp_path / "gpt2").dtype == torch.float32


def set_progress_bar(is_on: bool) -> None:
    if is_on:
        transformers_logging.enable_progress_bar()
    else:
        transformers_logging.disable_progress_bar()


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_is_quiet_and_then_as_it_was(tmp_path, capsys, bars):
    small_gpt2().save_pretrained(tmp_path)
    capsys.readouterr()
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_info()
        set_progress_bar(bars)
        load(tmp_path)
        assert capsys.readouterr() == ("", "")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(verbosity)
        set_progress_bar(had_bars)


# Into a model.


@pytest.mark.parametrize("make", [training_folder, state_dict_folder])
def test_into_fills_the_same_memory(tmp_path, make):
    source = make(tmp_path / "source")
    into = small_model(1).train()
    pointers = [parameter.data_ptr() for parameter in into.parameters()]
    assert load(source, 2000, into=into) is into
    assert are_equal(into, small_model(2000))
    assert not into.training
    assert [parameter.data_ptr() for parameter in into.parameters()] == pointers


def test_into_for_other_models(tmp_path):
    small_gpt2(1).save_pretrained(tmp_path)
    into = small_gpt2(2)
    assert load(tmp_path, into=into) is into
    assert are_equal(into, small_gpt2(1))
    message = r"another configuration than the checkpoint: n_head is 4, the checkpoint's 2"
    with pytest.raises(InputError, match=message):
        load(tmp_path, into=small_gpt2(n_head=4))
    message = r"`into` must be a GPT2LMHeadModel like the checkpoint, got AttentionOnly"
    with pytest.raises(InputError, match=message):
        load(tmp_path, into=small_model())


def test_into_must_fit(tmp_path):
    run = training_folder(tmp_path / "run")
    message = r"`into` must be a AttentionOnly like the checkpoint, got GPT2LMHeadModel"
    with pytest.raises(InputError, match=message):
        load(run, into=small_gpt2())
    message = r"positions is 'standard', the checkpoint's 'shortformer'"
    with pytest.raises(InputError, match=message):
        load(run, into=small_model(positions="standard"))
    message = r"`into` must be float32, but its 'embed.W_E' is torch.float64"
    with pytest.raises(InputError, match=message):
        load(run, into=small_model().double())


def test_into_may_have_started_otherwise(tmp_path):
    run = training_folder(tmp_path / "run")
    into = small_model(init_scale=0.1, init_positions="sinusoidal", init_late_qk=0.5)
    assert are_equal(load(run, 100, into=into), small_model(100))


def test_into_is_untouched_by_a_bad_checkpoint(tmp_path):
    state = with_masks(small_model(1))
    state["unembed.b_U"][3] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    into = small_model(2)
    with pytest.raises(FileError, match=r"'unembed.b_U' has 1 of 11 values that are not finite"):
        load(tmp_path / "a.pth", into=into)
    assert are_equal(into, small_model(2))


# Steps and sources that cannot be loaded.


def test_missing_step_names_the_nearest(tmp_path):
    run = training_folder(tmp_path / "run", (0, 100, 200, 300, 5000))
    message = r"no step 210; the nearest are 100, 200, 300 \(5 checkpoints, steps 0 to 5000\)"
    with pytest.raises(InputError, match=message):
        load(run, 210)


def test_steps_and_sources_of_the_wrong_kind(tmp_path):
    run = training_folder(tmp_path / "run", (0,))
    with pytest.raises(InputError, match=r"`step` must be a whole number, got '100'"):
        load(run, "100")
    message = r"`step` is 5, but the checkpoint given is of step 0; drop `step`"
    with pytest.raises(InputError, match=message):
        load(checkpoints(run)[0], 5)
    message = r"`source` must be a path, a hub id or a Checkpoint, got int"
    with pytest.raises(InputError, match=message):
        load(100)


def test_checkpoint_that_went_away(tmp_path):
    run = training_folder(tmp_path / "run")
    checkpoint = checkpoints(run)[1]
    shutil.rmtree(run / "step0000100")
    with pytest.raises(FileError, match=r"step0000100 is not there; see checkpoints\("):
        load(checkpoint)


def test_incomplete_folder(tmp_path):
    run = training_folder(tmp_path / "run", (0, 1))
    (run / "step0000000" / "config.json").unlink()
    with pytest.raises(FileError, match=r"lists config.json, but it is not there"):
        load(run, 0)
    (run / "step0000001" / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"no weights; expected model.safetensors"):
        load(run, 1)


@pytest.mark.parametrize("text", ["", '{"model_type": "rllc_att', "[1]"])
def test_damaged_config(tmp_path, text):
    run = training_folder(tmp_path / "run", (0,))
    (run / "step0000000" / "config.json").write_text(text)
    message = r"config.json: the file is truncated or damaged|expected a JSON object, got list"
    with pytest.raises(FileError, match=message):
        load(run)


def test_impossible_config(tmp_path):
    small_model().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"n_heads": -1}))
    message = r"config.json is not a configuration of AttentionOnly: .*`n_heads`"
    with pytest.raises(FileError, match=message):
        load(tmp_path)


# Bad tensors: the same errors for a state dict, for our folders and for other transformers models.


def remove(*names):
    def change(state):
        for name in names:
            del state[name]

    return change


def put(name, tensor):
    def change(state):
        state[name] = tensor

    return change


def rename(old, new):
    def change(state):
        state[new] = state.pop(old)

    return change


def fill(name, index, value):
    def change(state):
        state[name][index] = value

    return change


def remove_first_layer(state):
    """All of it but W_Q, whose shape tells the sizes."""
    for name in list(state):
        if name.startswith("blocks.0.") and "W_Q" not in name:
            del state[name]


BAD_TENSORS = {
    "missing": (remove("ln_final.w"), r"'ln_final.w' is missing"),
    "unexpected": (
        put("blocks.0.mlp.W_in", torch.ones(2)),
        r"'blocks.0.mlp.W_in' is unexpected; did",
    ),
    "renamed": (
        rename("blocks.1.attn.W_Q", "blocks.1.attn.W_Qs"),
        r"'blocks.1.attn.W_Q' is missing; did you mean 'blocks.1.attn.W_Qs'\?",
    ),
    "misshaped": (
        put("blocks.1.attn.b_K", torch.ones(3, 1)),
        r"'blocks.1.attn.b_K' has shape \(3, 1\), expected \(3, 4\)",
    ),
    "nan": (
        fill("blocks.1.attn.W_O", (2, 1), torch.nan),
        r"'blocks.1.attn.W_O' has 8 of 96 values that are not",
    ),
    "infinite": (
        fill("ln_final.b", 0, torch.inf),
        r"'ln_final.b' has 1 of 8 values that are not finite",
    ),
    "overflow": (
        put("ln_final.b", torch.full((8,), 1e300, dtype=torch.float64)),
        r"'ln_final.b' has 8 of 8",
    ),
    "integers": (put("ln_final.b", torch.ones(8).int()), r"'ln_final.b' is torch.int32"),
    "a folded norm": (
        remove("blocks.0.ln1.w", "blocks.0.ln1.b"),
        r"'blocks.0.ln1.b' is missing",
    ),
    "a missing layer": (
        remove_first_layer,
        r"'blocks.0.attn.W_K' is missing(.|\n)*… and 1 more",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_in_a_state_dict(tmp_path, case):
    change, message = BAD_TENSORS[case]
    state = small_model().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth", positions="standard")


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_in_a_folder(tmp_path, case):
    change, message = BAD_TENSORS[case]
    model = small_model()
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("transformer.h.0.ln_1.weight"),
            r"'transformer.h.0.ln_1.weight' is missing",
        ),
        (put("extra", torch.ones(1)), r"'extra' is unexpected"),
        (
            put("transformer.wpe.weight", torch.ones(5, 8)),
            r"'transformer.wpe.weight' has shape \(5, 8\), expected \(6, 8\)",
        ),
        (
            fill("transformer.ln_f.bias", slice(None), torch.nan),
            r"'transformer.ln_f.bias' has 8 of 8 values",
        ),
    ],
)
def test_bad_tensors_of_other_models(tmp_path, change, message):
    small_gpt2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    random_state = torch.get_rng_state()
    with pytest.raises(FileError, match=message):
        load(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_sparse_tensor(tmp_path):
    state = small_model().state_dict()
    state["ln_final.b"] = torch.ones(8).to_sparse()
    torch.save(state, tmp_path / "a.pth")
    message = r"'ln_final.b' is torch.float32, torch.sparse_coo; expected dense"
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth", positions="standard")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.clear(),
            r"has a tensor 'embed.W_E' \[d_vocab, d_model\], this has none; it is empty",
        ),
        (rename("embed.W_E", "embed.W_e"), r"this has none; did you mean 'embed.W_e'"),
        (
            put("embed.W_E", torch.ones(3)),
            r"'embed.W_E' has shape \(3,\), expected \[d_vocab, d_model\]",
        ),
        (
            put("pos_embed.W_pos", torch.ones(0, 8)),
            r"'pos_embed.W_pos' has shape \(0, 8\), expected",
        ),
    ],
)
def test_configuration_that_cannot_be_inferred(tmp_path, change, message):
    state = small_model().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth", positions="standard")
