"""LoRA adapters beside their base: merged as the formula says, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sources import small_gpt2
from torch import Tensor

import rllc

MODULE = "transformer.h.0.attn.c_proj"
SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "../base",
    "r": 2,
    "lora_alpha": 6,
    "fan_in_fan_out": True,
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
}


def matrices() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        f"base_model.model.{MODULE}.lora_A.weight": torch.randn(2, 8, generator=random),
        f"base_model.model.{MODULE}.lora_B.weight": torch.randn(8, 2, generator=random),
    }


def write(
    folder: Path, tensors: Mapping[str, Tensor] | None = None, **changes: Any
) -> tuple[Path, Any]:
    """A base, an adapter of one of its maps, and the base as it was."""
    base = small_gpt2()
    base.save_pretrained(folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file(dict(tensors or matrices()), adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(SETTINGS | changes))
    return adapter, base


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"c_proj": 10}}, 10 / 2),
        ({"alpha_pattern": {"c_fc": 10}}, 6 / 2),
    ],
)
def test_an_adapter_is_added_to_its_base(tmp_path, changes, scale: float) -> None:
    """Against the adapter's own path, x A^T B^T beside the map of the base."""
    adapter, base = write(tmp_path, **changes)
    merged = rllc.load(adapter)
    a, b = matrices().values()
    x = torch.randn(5, 8)
    expected = base.get_submodule(MODULE)(x) + scale * (x @ a.T) @ b.T
    torch.testing.assert_close(merged.get_submodule(MODULE)(x), expected)
    for name, parameter in base.named_parameters():
        if name != f"{MODULE}.weight":
            assert torch.equal(merged.get_parameter(name), parameter)


@pytest.mark.slow
def test_a_run_of_adapters_is_tracked_as_the_merged_models_are(tmp_path) -> None:
    """As transformers' Trainer leaves them: a folder a checkpoint, each with the adapter alone."""
    adapter, base = write(tmp_path, base_model_name_or_path=str(tmp_path / "base"))
    run = tmp_path / "run"
    for step, factor in ((10, 1.0), (20, 3.0)):
        folder = run / f"checkpoint-{step}"
        shutil.copytree(adapter, folder)
        tensors = {name: factor * tensor for name, tensor in matrices().items()}
        save_file(tensors, folder / "adapter_model.safetensors")
    rows = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(0))
    options = {
        "sampler": rllc.sgld(lr=1e-5),
        "sampling": rllc.Sampling(num_chains=2, num_draws=4, batch_size=3, num_probes=0),
        "compute": rllc.Compute(progress=False),
    }
    trajectory = rllc.track(run, rows, store=tmp_path / "store", **options)
    assert trajectory.steps == (10, 20)
    assert trajectory.value[0] != trajectory.value[1]
    for row, step in enumerate((10, 20)):
        model = rllc.load(run / f"checkpoint-{step}")
        alone = rllc.estimate(model, rows, **options)
        assert trajectory.value[row] == pytest.approx(alone.value, rel=1e-4)
    # The base is part of what was measured.
    with torch.no_grad():
        base.get_parameter("transformer.h.0.mlp.c_fc.weight").add_(0.1)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(rllc.InputError, match=r"\(changed: base of the adapter\)"):
        rllc.track(run, rows, store=tmp_path / "store", **options)


def test_a_model_that_is_filled_twice_has_the_adapter_once(tmp_path) -> None:
    adapter, _ = write(tmp_path)
    once = rllc.load(adapter)
    before = once.get_parameter(f"{MODULE}.weight").detach().clone()
    again = rllc.load(adapter, into=once)
    assert torch.equal(again.get_parameter(f"{MODULE}.weight"), before)


REFUSED = [
    ({"peft_type": "IA3"}, "an adapter of kind 'IA3', not LoRA; merge it with peft"),
    ({"use_dora": True}, "use_dora = True, which is more than plain LoRA"),
    ({"bias": "all"}, "bias = 'all', which is more"),
    ({"lora_alpha": "x"}, "lora_alpha = 'x', expected a number"),
    ({"base_model_name_or_path": None}, "does not say which model the adapter was trained on"),
    ({"base_model_name_or_path": "./nowhere"}, "its base './nowhere' cannot be loaded"),
    ({"fan_in_fan_out": False, "_wide": True}, r"is \[24, 8\], but the base's weight is \[8, 24\]"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_plain_lora_is_refused(tmp_path, changes, message: str) -> None:
    tensors = matrices()
    if changes.pop("_wide", False):
        wide = MODULE.replace("c_proj", "c_attn")
        tensors = {
            f"{wide}.lora_A.weight": torch.ones(2, 8),
            f"{wide}.lora_B.weight": torch.ones(24, 2),
        }
    adapter, _ = write(tmp_path, tensors, **changes)
    with pytest.raises(rllc.FileError, match=message):
        rllc.load(adapter)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.lora_A.weight": torch.ones(2, 8)}, "A and B of 'x' do not fit together"),
        ({"x.lora_embedding_A": torch.ones(2, 8)}, "is none of the matrices of plain LoRA"),
        (
            {"x.lora_A.weight": torch.ones(2, 8), "x.lora_B.weight": torch.ones(8, 2)},
            "changes 'x', which GPT2LMHeadModel has not",
        ),
        ({"x.lora_A.weight": torch.full((2, 8), torch.nan)}, "16 of 16 values that are not finite"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(tmp_path, tensors, message: str) -> None:
    adapter, _ = write(tmp_path, tensors)
    with pytest.raises(rllc.FileError, match=message):
        rllc.load(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2ForSequenceClassification"]},
            "is a GPT2ForSequenceClassification",
        ),
        ({"architectures": ["ViTForImageClassification"]}, "no language model. Load it with"),
        ({"quantization_config": {"load_in_4bit": True}}, "its weights are quantised"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, changes, message: str) -> None:
    small_gpt2().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(rllc.FileError, match=message):
        rllc.load(tmp_path)
