"""State dicts of TransformerLens with and without their settings: right, or refused by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sources import SIZES, are_equal, small_gpt2, small_model, with_masks

from rllc.errors import FileError, InputError
from rllc.models import load
from rllc.models.likelihood import unigram_entropy

FIXTURE = Path(__file__).parents[1] / "fixtures" / "transformer_lens.safetensors"
CFG = {
    **SIZES,
    "positional_embedding_type": "standard",
    "attn_only": True,
    "normalization_type": "LN",
    "eps": 1e-5,
    "act_fn": "gelu",
    "attention_dir": "causal",
    "use_attn_scale": True,
    "attn_scale": 2.0,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "use_local_attn": False,
    "d_vocab_out": 11,
    "seed": 3,
}
"""What TransformerLens says of the small model."""


def stored(positions: str) -> dict[str, torch.Tensor]:
    """The weights, tokens and logits of a model as TransformerLens computed them."""
    prefix = f"{positions}/"
    contents = load_file(FIXTURE)
    return {name.removeprefix(prefix): contents[name] for name in contents if prefix in name}


def weights_of(contents: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "weights/"
    names = [name for name in contents if name.startswith(prefix)]
    return {name.removeprefix(prefix): contents[name] for name in names}


def sizes_of(state: dict[str, torch.Tensor]) -> dict[str, int]:
    heads, d_model, d_head = state["blocks.0.attn.W_Q"].shape
    d_vocab, n_ctx = len(state["embed.W_E"]), len(state["pos_embed.W_pos"])
    return {"d_model": d_model, "n_ctx": n_ctx, "n_heads": heads, "d_head": d_head} | {
        "d_vocab": d_vocab
    }


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
@pytest.mark.parametrize("where", ["in the file", "beside it", "above it"])
def test_its_own_configuration_gives_its_own_logits(tmp_path, positions, where) -> None:
    """Against logits that TransformerLens computed."""
    contents = stored(positions)
    state = weights_of(contents)
    settings = CFG | sizes_of(state) | {"positional_embedding_type": positions}
    settings["n_layers"] = sum(name.endswith("W_Q") for name in state)
    settings["d_vocab_out"] = settings["d_vocab"]
    settings["attn_scale"] = math.sqrt(settings["d_head"])
    path = tmp_path / "checkpoints" / "checkpoint_5.pth"
    path.parent.mkdir()
    if where == "in the file":
        torch.save({"cfg": settings, "state_dict": state}, path)
    else:
        torch.save(state, path)
        folder = path.parent if where == "beside it" else tmp_path
        (folder / "config.json").write_text(json.dumps(settings))
    model = load(tmp_path, 5)
    with torch.no_grad():
        logits = model(contents["tokens"].long()).logits
    torch.testing.assert_close(logits, contents["logits"], atol=1e-5, rtol=0)
    other = "standard" if positions == "shortformer" else "shortformer"
    with pytest.raises(InputError, match=f"the configuration of .* says '{positions}'; drop"):
        load(tmp_path, 5, positions=other)


def test_a_bare_state_dict_must_be_told_its_positions(tmp_path) -> None:
    path = tmp_path / "a.pth"
    torch.save(with_masks(small_model()), path)
    with pytest.raises(InputError, match=r"type positions='standard' .* or positions='shortformer"):
        load(path)
    assert load(path, positions="standard").config.positions == "standard"
    into = small_model(5, layer_norm_eps=0.1)
    load(path, into=into)
    assert are_equal(into, small_model())


def test_eps_is_taken_over(tmp_path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"cfg": CFG | {"eps": 0.25}, "model": small_model().state_dict()}, path)
    model = load(path)
    assert model.config.layer_norm_eps == 0.25
    tokens = torch.tensor([[1, 2, 3]])
    expected = small_model(positions="standard", layer_norm_eps=0.25)
    assert torch.equal(model(tokens).logits, expected(tokens).logits)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_attn_scale", False),
        ("attn_scale", 1.0),
        ("use_local_attn", True),
        ("attn_types", ["global", "local"]),
        ("attn_scores_soft_cap", 30.0),
        ("output_logits_soft_cap", 30.0),
        ("positional_embedding_type", "rotary"),
        ("normalization_type", "LNPre"),
        ("normalization_type", None),
        ("attention_dir", "bidirectional"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("attn_only", False),
        ("n_key_value_heads", 1),
        ("d_vocab_out", 5),
        ("use_qk_norm", True),
        ("n_layers", 4),
        ("n_ctx", 12),
    ],
)
def test_what_the_class_cannot_do_is_refused_by_name(tmp_path, setting, value) -> None:
    path = tmp_path / "a.pth"
    torch.save({"cfg": CFG | {setting: value}, "model": small_model().state_dict()}, path)
    message = rf"{setting} is {value!r}, ".replace("[", r"\[")
    with pytest.raises(FileError, match=message):
        load(path)


def test_the_configuration_is_held_against_into(tmp_path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"cfg": CFG, "model": small_model().state_dict()}, path)
    with pytest.raises(InputError, match="positions is 'shortformer', the checkpoint's 'standard'"):
        load(path, into=small_model())


# The loss on some rows.


def bigrams(num_rows: int = 40) -> torch.Tensor:
    """Rows in which each token is followed by the next."""
    starts = torch.arange(num_rows) % 11
    return (starts[:, None] + torch.arange(6)) % 11


def test_the_loss_is_reported_and_a_useless_one_refused(tmp_path, capsys) -> None:
    rows = bigrams()
    # Random and sure of itself: worse than chance. In training, dropout would move the loss.
    gpt2 = small_gpt2(1, initializer_range=0.5).eval()
    gpt2.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = gpt2(rows, labels=rows).loss.item()
    entropy = unigram_entropy(rows[:, 1:])
    assert entropy == pytest.approx(math.log(11), rel=1e-2)
    capsys.readouterr()
    near = f"{expected:.2f}"
    message = rf"the loss is {near}\d* nats .* unigram entropy is {entropy:.4g}: .*allow=True"
    with pytest.raises(InputError, match=message):
        load(tmp_path, tokens=rows)
    load(tmp_path, tokens=rows, allow=True)
    told = capsys.readouterr().out
    assert re.search(rf"the loss is {near}\d* nats a token on 40 rows", told)


def test_a_trained_model_passes_and_one_loaded_wrongly_does_not(tmp_path, capsys) -> None:
    """A model of positions: the next token is the position, and a model that adds positions to the
    inputs of Q and K alone cannot know."""
    model = small_model(positions="standard")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.ln_final.w.fill_(1.0)
        model.pos_embed.W_pos.copy_(9 * torch.eye(6, 8))
        model.unembed.W_U[:6, :6] = 9 * torch.eye(6)
    rows = torch.tensor([[9, 0, 1, 2, 3, 4]])
    path = tmp_path / "a.pth"
    torch.save(model.state_dict(), path)
    load(path, positions="standard", tokens=rows)
    assert "the loss is" in capsys.readouterr().out
    with pytest.raises(InputError, match="no better than a guess"):
        load(path, positions="shortformer", tokens=rows)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            torch.ones(3, 4),
            r"rows of token ids \[row, pos\]; got Tensor of shape \(3, 4\) and dtype torch.float32",
        ),
        (torch.ones(3).long(), r"got Tensor of shape \(3,\) and dtype torch.int64"),
        (torch.full((2, 3), 50), "cannot take `tokens` with ids up to 50 and 3 positions"),
    ],
)
def test_rows_that_are_no_rows(tmp_path, tokens, message) -> None:
    small_gpt2(1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path, tokens=tokens)
