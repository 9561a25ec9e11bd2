"""Files that are truncated, damaged, changed or malicious are refused, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sources import are_equal, small_gpt2, small_model, training_folder, with_masks

from rllc.errors import FileError
from rllc.models import load
from rllc.models.reading import check_tensors


def truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


# Damage.


def make_pth(folder: Path) -> Path:
    torch.save(with_masks(small_model()), folder / "a.pth")
    return folder / "a.pth"


def make_safetensors(folder: Path) -> Path:
    save_file(small_model().state_dict(), folder / "b.safetensors")
    return folder / "b.safetensors"


def make_weights_without_sums(folder: Path) -> Path:
    step = training_folder(folder, (0,)) / "step0000000"
    (step / "sha256.json").unlink()
    return step / "model.safetensors"


@pytest.mark.parametrize("make", [make_pth, make_safetensors, make_weights_without_sums])
def test_truncated_files(tmp_path, make):
    file = make(tmp_path)
    size = file.stat().st_size
    for length in (size - 1, size // 2, 100, 8, 1, 0):
        truncate(file, length)
        message = r"truncated, damaged or not a state dict|it is damaged"
        with pytest.raises(FileError, match=message):
            load(file)


def test_truncated_file_of_another_model(tmp_path):
    small_gpt2().save_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    truncate(file, file.stat().st_size - 5)
    with pytest.raises(FileError, match=r"gpt2 through transformers: SafetensorError"):
        load(tmp_path / "gpt2")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_random_bytes(tmp_path, name):
    for seed in range(20):
        (tmp_path / name).write_bytes(np.random.default_rng(seed).bytes(300))
        with pytest.raises(FileError, match=r"damaged"):
            load(tmp_path / name)


# Recorded sums.


def test_flipped_byte_is_found_by_the_recorded_sum(tmp_path):
    run = training_folder(tmp_path / "run", (0,))
    weights = run / "step0000000" / "model.safetensors"
    contents = bytearray(weights.read_bytes())
    contents[-3] ^= 1
    weights.write_bytes(contents)
    message = r"model.safetensors: it was damaged or changed since it was written: its SHA-256"
    with pytest.raises(FileError, match=message):
        load(run)
    (run / "step0000000" / "sha256.json").unlink()
    assert not are_equal(load(run), small_model(0)), "without a recorded sum nobody can know"


def test_recorded_sums_must_cover_the_files(tmp_path):
    run = training_folder(tmp_path / "run", (0,))
    path = run / "step0000000" / "sha256.json"
    sums = json.loads(path.read_text())
    path.write_text(json.dumps({"config.json": sums["config.json"]}))
    with pytest.raises(FileError, match=r"sha256.json has no sum for model.safetensors"):
        load(run)
    path.write_text(json.dumps(sums | {"extra.bin": "0"}))
    with pytest.raises(FileError, match=r"sha256.json lists extra.bin, but it is not there"):
        load(run)


# Malice.


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def write_bomb(path: Path, target: Path, protocol: int | None) -> None:
    """A pickle of the given protocol, or a file of ``torch.save``."""
    contents = {"embed.W_E": Bomb(target)}
    if protocol is None:
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=protocol))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        (None, r"it would call (posix|nt)\.system\."),
        (2, r"it would call (posix|nt)\.system\."),
        (4, r"it is damaged, or"),
    ],
)
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, reason):
    target = tmp_path / "it-ran"
    path = tmp_path / "checkpoint_0000001.pth"
    write_bomb(path, target, protocol)
    message = r"refused, nothing of it was run\. A checkpoint is a pickle of tensors alone, and "
    with pytest.raises(FileError, match=message + reason):
        load(path)
    assert not target.exists()
    # The bomb works, so its not going off above means something.
    if protocol is None:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert target.exists()


def test_malicious_pickle_in_a_transformers_folder(tmp_path):
    target = tmp_path / "it-ran"
    folder = tmp_path / "gpt2"
    small_gpt2().config.save_pretrained(folder)
    torch.save({"transformer.wte.weight": Bomb(target)}, folder / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"refused, nothing of it was run"):
        load(folder)
    assert not target.exists()


def test_remote_code_is_not_run(tmp_path):
    target = tmp_path / "it-ran"
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config = {"model_type": "own", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(target)!r}, 'w')")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match=r"through transformers: ValueError"):
        load(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], r"expected a state dict \(names to tensors\), got list"),
        (
            {"model": {"embed.W_E": 3}},
            r"'model' is dict; save the model's state_dict\(\) alone",
        ),
        ({3: torch.ones(1)}, r"but 3 is Tensor"),
    ],
)
def test_not_a_state_dict(tmp_path, contents, message):
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth")


# Sizes, before there are bytes of them.


def test_numbers_that_are_repeated_by_a_stride_of_zero_are_refused(tmp_path, monkeypatch):
    """8 GB in a file of a kilobyte, which loading would make real."""
    state = with_masks(small_model())
    state["embed.W_E"] = torch.zeros(1).expand(2_000_000, 1000)
    torch.save(state, tmp_path / "a.pth")
    message = (
        r"reading .*a\.pth: its [\d,]+ bytes unpack to 8,000,\d+,\d+, .*RLLC_MAX_UNPACKED=8000"
    )
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth", positions="standard")


def test_a_checkpoint_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rllc.storage.npz._UNPACKED", 1_000_000)
    torch.save({"x": torch.zeros(600_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(FileError, match=r"a\.pth: its [\d,]+ bytes unpack to 2,40"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("make", "field", "value", "message"),
    [
        (small_model, "n_layers", 10**9, r"n_layers = 1,000,000,000, but it has \d+ tensors"),
        (small_model, "d_vocab", 10**15, "'embed.W_E' has shape"),
        (small_model, "n_ctx", 10**15, r"'pos_embed.W_pos' has shape"),
        (small_model, "d_head", 2**62, "no model has the sizes of its configuration"),
        (small_gpt2, "n_layer", 10**9, r"n_layer = 1,000,000,000, but the weights are \d"),
        (small_gpt2, "vocab_size", 10**15, r"vocab_size = 1,000,000,000,000,000 and n_embd = "),
    ],
)
def test_a_configuration_of_a_giant_is_refused_before_it_is_made(
    tmp_path, make, field, value, message
):
    make().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    with pytest.raises(FileError, match=message):
        load(tmp_path)


def test_names_that_are_all_wrong_are_compared_only_as_far_as_they_are_shown(tmp_path, monkeypatch):
    compared = []

    def nearest(name, known):
        compared.append(name)
        return "?"

    monkeypatch.setattr("rllc.models.reading.nearest", nearest)
    expected = {f"layer.{i}.weight": (1,) for i in range(1000)}
    found = [f"block.{i}.weight" for i in range(1000)]
    with pytest.raises(FileError, match="… and 1992 more"):
        check_tensors(tmp_path, expected, expected, found, {})
    assert len(compared) == 16
