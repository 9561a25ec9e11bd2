"""Public checkpoints, by small fakes of exactly their files: Pythia, OLMo, stanford-crfm's GPT-2s
and TransformerLens's toy models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sources import are_equal, small_gpt2, small_model, with_masks
from test_checkpoints import FakeHub, fake_hub  # noqa: F401 (a fixture)
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

import rllc
from rllc.errors import FileError, InputError
from rllc.models import checkpoints, load

# Pythia: a branch a step, in half precision, with the masks and frequencies of old releases.

PYTHIA = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 13,
}


def pythia(seed: int) -> GPTNeoXForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(GPTNeoXConfig(**PYTHIA)).half().eval()


def pythia_step(folder: Path, seed: int, form: str) -> None:
    """The files of one branch."""
    folder.mkdir(parents=True)
    settings = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        **PYTHIA,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    state: dict[str, Tensor] = {}
    for name, tensor in pythia(seed).state_dict().items():
        state[name.replace("lm_head", "embed_out")] = tensor.contiguous()
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        state[f"{attention}.bias"] = torch.ones(1, 1, 32, 32).tril().bool()
        state[f"{attention}.masked_bias"] = torch.tensor(-1e4).half()
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1).half()
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("form", ["safetensors", "pickled"])
def test_pythia(fake_hub: FakeHub, form: str) -> None:  # noqa: F811
    repository = fake_hub.root / "EleutherAI" / "pythia-14m"
    for step in (0, 1, 512, 143000):
        pythia_step(repository / f"step{step}", step, form)
    pythia_step(repository / "main", 143000, form)
    listed = checkpoints("EleutherAI/pythia-14m")
    assert [checkpoint.step for checkpoint in listed] == [0, 1, 512, 143000]
    model = load("EleutherAI/pythia-14m", 512)
    assert are_equal(model, pythia(512).float())
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.25
    assert [head.name for head in rllc.heads(model)] == ["0:0", "0:1", "1:0", "1:1"]


# OLMo: a branch a step, OLMo 2 in stages.


@pytest.mark.parametrize("version", [1, 2])
def test_olmo(fake_hub: FakeHub, version: int) -> None:  # noqa: F811
    settings: Any = {
        "vocab_size": 13,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "pad_token_id": 1,
        "eos_token_id": 0,
    }
    config = OlmoConfig(**settings) if version == 1 else Olmo2Config(**settings)
    kind = OlmoForCausalLM if version == 1 else Olmo2ForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = kind(config)
    branches = ["step1000-tokens4B", "step20000-tokens84B", "main"]
    if version == 2:
        branches = ["stage1-step0-tokens0B", "stage1-step1000-tokens3B", "main"]
        branches += [f"stage2-ingredient{n}-step1000-tokens3B" for n in (1, 2)]
    for branch in branches:
        # The larger ones are in several files.
        model.save_pretrained(fake_hub.root / "allenai" / "OLMo" / branch, max_shard_size="4KB")
    if version == 1:
        listed = checkpoints("allenai/OLMo")
        assert [checkpoint.step for checkpoint in listed] == [1000, 20000]
        loaded = load("allenai/OLMo", 1000)
    else:
        with pytest.raises(FileError, match=r"several runs or stages.*revision='stage1-\*'"):
            checkpoints("allenai/OLMo")
        listed = checkpoints("allenai/OLMo", revision="stage1-*")
        assert [checkpoint.step for checkpoint in listed] == [0, 1000]
        loaded = load(listed[1])
    assert are_equal(loaded, model)
    assert len(rllc.heads(loaded)) == 4


# stanford-crfm: GPT-2 without its prefix, and with the masks of old releases.


def test_stanford_crfm(fake_hub: FakeHub) -> None:  # noqa: F811
    model = small_gpt2(4)
    state = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 6, 6).tril()
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    for step in (100, 400000):
        folder = fake_hub.root / "stanford-crfm" / "alias-gpt2-small-x21" / f"checkpoint-{step}"
        model.config.save_pretrained(folder)
        torch.save(state, folder / "pytorch_model.bin")
    listed = checkpoints("stanford-crfm/alias-gpt2-small-x21")
    assert [checkpoint.step for checkpoint in listed] == [100, 400000]
    assert are_equal(load(listed[0]), model)


def test_other_tensors_than_old_masks_are_still_refused(fake_hub: FakeHub) -> None:  # noqa: F811
    folder = fake_hub.root / "org" / "odd" / "checkpoint-5"
    model = small_gpt2(4)
    model.config.save_pretrained(folder)
    state = model.transformer.state_dict() | {"h.0.attn.mask_bias": torch.zeros(1)}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"'h.0.attn.mask_bias' is unexpected"):
        load("org/odd")


# The paper's: one state dict a step, with masks and without settings.


def test_the_papers_models(fake_hub: FakeHub) -> None:  # noqa: F811
    folder = fake_hub.root / "timaeus" / "tetrahedron-3m-og" / "main"
    folder.mkdir(parents=True)
    for step in (0, 8500, 50000):
        state = with_masks(small_model(step, positions="shortformer"))
        torch.save(state, folder / f"checkpoint_{step:07d}.pth")
    listed = checkpoints("timaeus/tetrahedron-3m-og")
    assert [checkpoint.step for checkpoint in listed] == [0, 8500, 50000]
    with pytest.raises(InputError, match=r"positions='shortformer' \(the paper's models\)"):
        load("timaeus/tetrahedron-3m-og", 8500)
    model = load("timaeus/tetrahedron-3m-og", 8500, positions="shortformer")
    assert are_equal(model, small_model(8500, positions="shortformer"))
    assert fake_hub.fetched == ["checkpoint_0008500.pth"] * len(fake_hub.fetched)
    assert len(rllc.heads(model)) == 6


# The table of the package's documentation.


def test_the_table_of_public_checkpoints_names_what_is_tested() -> None:
    table = str(rllc.models.__doc__)
    tests = Path(__file__).read_text(encoding="utf-8")
    for name in re.findall(r"^``([\w-]+)/", table, re.MULTILINE):
        assert f'"{name}' in tests, name


# TransformerLens's toy models: settings under older names, and one file.

TOY = {
    "n_layers": 2,
    "d_model": 8,
    "d_mlp": 32,
    "d_head": 4,
    "n_heads": 3,
    "n_ctx": 6,
    "d_vocab": 11,
    "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits",
    "act_fn": "gelu",
    "attn_only": True,
    "normalization": "LN",
    "dataset_name": "c4_code",
    "lr": 1e-3,
    "seed": 5,
}


def toy(folder: Path, positions: str, **changes: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**TOY, **changes}))
    torch.save(with_masks(small_model(9, positions=positions)), folder / "model_final.pth")


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, "standard"),
        ({"shortformer_pos": False}, "standard"),
        ({"shortformer_pos": True}, "shortformer"),
    ],
)
def test_a_toy_model(fake_hub: FakeHub, changes: dict[str, Any], positions: str) -> None:  # noqa: F811
    name = "NeelNanda/Attn_Only_2L512W_C4_Code"
    toy(fake_hub.root / name / "main", positions, **changes)
    model = load(name)
    assert model.config.positions == positions
    assert are_equal(model, small_model(9, positions=positions))
    assert sorted(fake_hub.fetched) == ["config.json", "model_final.pth"]


def test_a_toy_model_over_training(fake_hub: FakeHub) -> None:  # noqa: F811
    name = "NeelNanda/Attn_Only_2L512W_C4_Code"
    folder = fake_hub.root / name / "main"
    toy(folder, "shortformer", shortformer_pos=True)
    (folder / "checkpoints").mkdir()
    for tokens in (524288, 22000000000):
        state = with_masks(small_model(tokens % 1000, positions="shortformer"))
        torch.save(state, folder / "checkpoints" / f"tokens_{tokens:012d}.pth")
    with pytest.warns(UserWarning, match=r"say no step: model_final.pth"):
        listed = checkpoints(name)
    assert [checkpoint.step for checkpoint in listed] == [524288, 22000000000]
    assert are_equal(load(listed[0]), small_model(288, positions="shortformer"))
    assert load(listed[0]).config.positions == "shortformer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "RMS"}, r"normalization_type is 'RMS', expected 'LN'"),
        ({"attn_only": False}, r"attn_only is False, expected True"),
        ({"architecture": "neel-solu-old"}, r"architecture is 'neel-solu-old', expected one"),
        ({"n_layers": 3}, r"n_layers is 3, but the tensors show 2"),
    ],
)
def test_toy_models_of_another_kind(
    fake_hub: FakeHub,  # noqa: F811
    changes: dict[str, Any],
    message: str,
) -> None:
    toy(fake_hub.root / "NeelNanda" / "other" / "main", "standard", **changes)
    with pytest.raises(FileError, match=message):
        load("NeelNanda/other")


def test_a_toy_models_settings_are_not_overruled(fake_hub: FakeHub) -> None:  # noqa: F811
    toy(fake_hub.root / "NeelNanda" / "toy" / "main", "shortformer", shortformer_pos=True)
    with pytest.raises(InputError, match=r"says 'shortformer'; drop `positions`"):
        load("NeelNanda/toy", positions="standard")
