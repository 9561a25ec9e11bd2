"""Small models, and sources of checkpoints made of them in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.storage.files import sha256_of_file

SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 3, "d_head": 4, "n_ctx": 6, "d_vocab": 11}
GPT2 = {
    "n_layer": 1,
    "n_embd": 8,
    "n_head": 2,
    "vocab_size": 11,
    "n_positions": 6,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def small_model(seed: int = 0, **changes: Any) -> AttentionOnly:
    """An attention-only model, every number random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttentionOnly(AttentionOnlyConfig(**SIZES | changes))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape)
    return model


def small_gpt2(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**GPT2 | changes))


def are_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters, bit for bit."""
    state = one.state_dict()
    others = other.state_dict()
    if state.keys() != others.keys():
        return False
    return all(torch.equal(tensor, others[name]) for name, tensor in state.items())


def with_masks(model: AttentionOnly) -> dict[str, Tensor]:
    """The state dict as TransformerLens saves it, with the buffers of its attention."""
    n_ctx = model.config.n_ctx
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in range(model.config.n_layers):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(n_ctx, n_ctx).tril().bool()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


def training_folder(folder: Path, steps: tuple[int, ...] = (0, 100, 2000)) -> Path:
    """A folder as training writes it. The model of a step has the step as its seed."""
    for step in steps:
        step_folder = folder / f"step{step:07d}"
        small_model(step).save_pretrained(step_folder)
        names = ("config.json", "model.safetensors")
        sums = {name: sha256_of_file(step_folder / name) for name in names}
        (step_folder / "sha256.json").write_text(json.dumps(sums))
    (folder / "training.json").write_text("{}")
    unfinished = folder / ".step0003000.tmp"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    return folder


def state_dict_folder(
    folder: Path, steps: tuple[int, ...] = (0, 100, 2000), within: str = ""
) -> Path:
    """A folder as the paper's repository has it."""
    (folder / within).mkdir(parents=True, exist_ok=True)
    for step in steps:
        path = folder / within / f"checkpoint_{step:07d}.pth"
        torch.save(with_masks(small_model(step)), path)
    return folder
