"""Listing and loading: every kind of source, and every way in which a checkpoint can be bad."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from rllc.errors import FileError, InputError
from rllc.files import sha256
from rllc.models.attention_only import AttentionOnly, AttentionOnlyConfig
from rllc.models.checkpoints import Checkpoint, Hub, checkpoints, load

FIXTURE = Path(__file__).parents[1] / "fixtures" / "transformer_lens.safetensors"
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


def model(seed: int = 0, **changes) -> AttentionOnly:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = AttentionOnly(AttentionOnlyConfig(**SIZES | changes))
        for parameter in new.parameters():
            parameter.data = torch.randn(parameter.shape)
    return new


def gpt2(seed: int = 0, **changes) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**GPT2 | changes))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def with_masks(one: AttentionOnly) -> dict[str, torch.Tensor]:
    """The state dict as TransformerLens saves it, with the buffers of its attention."""
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    for layer in range(one.config.n_layers):
        state[f"blocks.{layer}.attn.mask"] = (
            torch.ones(one.config.n_ctx, one.config.n_ctx).tril().bool()
        )
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


def trained(folder: Path, steps: tuple[int, ...] = (0, 100, 2000)) -> Path:
    """A folder as training writes it."""
    for step in steps:
        at = folder / f"step{step:07d}"
        model(step).save_pretrained(at)
        sums = {name: sha256(at / name) for name in ("config.json", "model.safetensors")}
        (at / "sha256.json").write_text(json.dumps(sums))
    (folder / "training.json").write_text("{}")
    (folder / ".step0003000.tmp").mkdir()
    (folder / ".step0003000.tmp" / "config.json").write_text("{}")
    return folder


def state_dicts(folder: Path, steps: tuple[int, ...] = (0, 100, 2000), within: str = "") -> Path:
    """A folder as the paper's repository has it."""
    (folder / within).mkdir(parents=True, exist_ok=True)
    for step in steps:
        torch.save(with_masks(model(step)), folder / within / f"checkpoint_{step:07d}.pth")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub is a local folder, ``repository/revision/files``; what is fetched is copied out, matching files only."""
    root = tmp_path / "hub"
    fetched: list[str] = []

    class LocalHub:
        def __init__(self, repository: str) -> None:
            self.at = root / repository
            if not self.at.is_dir():
                raise FileError(f"no repository {repository}")

        def revisions(self) -> list[str]:
            return [folder.name for folder in self.at.iterdir()]

        def files(self) -> list[str]:
            main = self.at / "main"
            return [file.relative_to(main).as_posix() for file in main.rglob("*") if file.is_file()]

        def fetch(self, revision: str | None, patterns: list[str]) -> Path:
            revision = revision or "main"
            cache = tmp_path / "cache" / self.at.name / revision
            for file in (self.at / revision).rglob("*"):
                name = file.relative_to(self.at / revision).as_posix()
                if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    (cache / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, cache / name)
                    fetched.append(name)
            return cache

    # Not by its dotted name: as an attribute, `rllc.models.checkpoints` is the function.
    monkeypatch.setattr(sys.modules[load.__module__], "Hub", LocalHub)
    return root, fetched


# Sources.


def test_training_folder(tmp_path):
    folder = trained(tmp_path / "run")
    found = checkpoints(folder)
    assert [c.step for c in found] == [0, 100, 2000]
    assert found[1] == Checkpoint(100, str(folder), file="step0000100")
    assert same(load(folder, 100), model(100))
    assert same(load(folder), model(2000))
    assert same(load(found[0]), model(0))
    assert same(load(folder / "step0000100"), model(100))
    assert checkpoints(folder / "step0000100")[0].step == 100
    assert found[1].sha256() == sha256(folder / "step0000100" / "model.safetensors")


@pytest.mark.parametrize("within", ["", "checkpoints"])
def test_folder_of_state_dicts(tmp_path, within):
    folder = state_dicts(tmp_path / "og", within=within)
    assert [c.step for c in checkpoints(folder)] == [0, 100, 2000]
    for checkpoint in checkpoints(str(folder)):
        assert same(load(checkpoint), model(checkpoint.step))
    file = next(folder.rglob("checkpoint_0000100.pth"))
    assert checkpoints(folder)[1].sha256() == sha256(file)
    assert [c.step for c in checkpoints(file)] == [100]


def test_steps_are_sorted_as_numbers(tmp_path):
    for name in (
        "checkpoint_10.pth",
        "checkpoint_9.pth",
        "checkpoint_100.safetensors",
        "step_8",
        "notes.pth",
    ):
        (tmp_path / name).mkdir() if name == "step_8" else (tmp_path / name).touch()
    (tmp_path / "step_8" / "config.json").touch()
    assert [c.step for c in checkpoints(tmp_path)] == [8, 9, 10, 100]


def test_hub_with_state_dicts(hub):
    root, fetched = hub
    state_dicts(root / "org" / "og" / "main", within="checkpoints")
    found = checkpoints("org/og")
    assert found[1] == Checkpoint(100, "org/og", file="checkpoints/checkpoint_0000100.pth")
    assert same(load("org/og", 100), model(100))
    assert fetched == ["checkpoints/checkpoint_0000100.pth"], (
        "one step must not download the others"
    )
    assert str(found[1]) == "org/og/checkpoints/checkpoint_0000100.pth"


def test_hub_with_one_revision_a_step(hub):
    root, fetched = hub
    for step in (1, 1000, 64):
        gpt2(step).save_pretrained(root / "org" / "pythia" / f"step{step}")
        (root / "org" / "pythia" / f"step{step}" / "pytorch_model.bin").write_bytes(
            b"the same weights again"
        )
    gpt2(7).save_pretrained(root / "org" / "pythia" / "main")
    found = checkpoints("org/pythia")
    assert [(c.step, c.revision, c.file) for c in found] == [
        (1, "step1", None),
        (64, "step64", None),
        (1000, "step1000", None),
    ]
    loaded = load("org/pythia", 64)
    assert same(loaded, gpt2(64))
    assert not loaded.training
    assert sorted(fetched) == ["config.json", "generation_config.json", "model.safetensors"]
    assert str(found[0]) == "org/pythia@step1"


def test_hub_with_pickled_weights_only(hub):
    root, _ = hub
    at = root / "org" / "old" / "step5"
    gpt2(5).config.save_pretrained(at)
    torch.save(gpt2(5).state_dict(), at / "pytorch_model.bin")
    assert same(load("org/old"), gpt2(5))


def test_hub_with_one_folder_a_step(hub):
    root, fetched = hub
    trained(root / "org" / "ours" / "main")
    assert [c.file for c in checkpoints("org/ours")] == [
        "step0000000",
        "step0000100",
        "step0002000",
    ]
    assert same(load("org/ours", 2000), model(2000))
    assert all(name.startswith("step0002000/") for name in fetched)


def test_hub_with_one_model(hub):
    root, _ = hub
    gpt2(3).save_pretrained(root / "gpt" / "main")
    assert checkpoints("gpt") == [Checkpoint(0, "gpt")]
    assert same(load("gpt"), gpt2(3))
    with pytest.raises(
        InputError, match=r"holds one model and does not say of which step; drop `step=0`"
    ):
        load("gpt", 0)


def test_hub_client_is_asked_as_it_expects(monkeypatch, tmp_path):
    """The real `Hub` against huggingface_hub's own signatures, without a network."""
    import huggingface_hub

    calls = []

    def refs(repo_id: str):
        names = [type("Ref", (), {"name": n})() for n in ("main", "step1")]
        return type("Refs", (), {"branches": names, "tags": names[1:]})()

    def snapshot(*args, **kwargs):
        calls.append((args, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo_id: ["config.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    place = Hub("org/name")
    assert place.revisions() == ["main", "step1"]
    assert place.files() == ["config.json"]
    assert place.fetch("step1", ["config.json"]) == tmp_path
    assert calls == [(("org/name",), {"revision": "step1", "allow_patterns": ["config.json"]})]


def cached_by_the_client(cache: Path, revision: str, commit: str, files: dict[str, bytes]) -> Path:
    """Files as the hub's client caches them: contents by hash, and a snapshot of links to them."""
    at = cache / "models--org--name"
    for name, contents in files.items():
        blob = at / "blobs" / hashlib.sha256(contents).hexdigest()
        link = at / "snapshots" / commit / name
        (
            blob.parent.mkdir(parents=True, exist_ok=True),
            link.parent.mkdir(parents=True, exist_ok=True),
        )
        blob.write_bytes(contents)
        link.unlink(missing_ok=True), link.symlink_to(os.path.relpath(blob, link.parent))
    (at / "refs").mkdir(exist_ok=True)
    (at / "refs" / revision).write_text(commit)
    return at / "snapshots" / commit


def test_of_the_cache_only_a_checkpoints_own_weights_go(tmp_path, monkeypatch):
    """Against the whole tree before and after, for each form; a file that two snapshots share stays for the other."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, inner=huggingface_hub.snapshot_download, **k: (
        inner(*a, **k, cache_dir=tmp_path)))  # fmt: skip
    pth = {f"checkpoints/checkpoint_{s:07d}.pth": b"%d" % s for s in (0, 100)}
    folders = {
        "step0000000/model.safetensors": b"weights",
        "step0000000/config.json": b"{}",
        "training.json": b"1",
    }
    main = cached_by_the_client(tmp_path, "main", "a" * 40, pth | folders)
    other = cached_by_the_client(
        tmp_path, "step5", "b" * 40, {"model.safetensors": b"weights", "config.json": b"{}"}
    )

    def tree() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if not path.is_dir()}

    for checkpoint, expected, blobs in [
        (Checkpoint(0, "org/name", file="checkpoints/checkpoint_0000000.pth"), main / "checkpoints/checkpoint_0000000.pth", 1),
        (Checkpoint(0, "org/name", file="step0000000"), main / "step0000000/model.safetensors", 0),  # step5 has it, too
        (Checkpoint(5, "org/name", revision="step5"), other / "model.safetensors", 1),
    ]:  # fmt: skip
        assert checkpoint.cached() == {expected}
        before = tree()
        checkpoint.delete_cached(but=[expected])
        assert tree() == before
        checkpoint.delete_cached(but=[])
        gone = before - tree()
        assert expected in gone
        assert len([path for path in gone if path.parent.name == "blobs"]) == blobs
        assert len(gone) == 1 + blobs
        assert checkpoint.cached() == frozenset()
    assert Checkpoint(100, "org/name", file="checkpoints/checkpoint_0000100.pth").cached()
    assert Checkpoint(1, "org/elsewhere", revision="step1").cached() == frozenset()


def test_nothing_of_a_local_folder_counts_as_cached(tmp_path):
    for source in (trained(tmp_path / "run"), state_dicts(tmp_path / "og")):
        before = sorted(source.rglob("*"))
        for checkpoint in checkpoints(source):
            assert checkpoint.cached() == frozenset()
            checkpoint.delete_cached(but=[])
        assert sorted(source.rglob("*")) == before


def test_hub_that_does_not_answer(monkeypatch):
    import huggingface_hub

    def refs(repo_id: str):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    with pytest.raises(
        FileError, match=r"hub for 'no/such': ConnectionError: no route.*no local file or folder"
    ):
        checkpoints("no/such")


def test_other_transformers_models(tmp_path):
    gpt2(1).save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(load(tmp_path), gpt2(1))
    assert len(Checkpoint(0, str(tmp_path)).sha256()) == 64
    gpt2(1).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.float32


# TransformerLens state dicts.


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_transformer_lens_file(tmp_path, positions, suffix):
    whole = load_file(FIXTURE)
    start = f"{positions}/weights/"
    state = {
        name.removeprefix(start): tensor for name, tensor in whole.items() if name.startswith(start)
    }
    path = tmp_path / f"anything{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load(path, positions=positions)
    assert loaded.config.positions == positions
    state_of_loaded = loaded.state_dict()
    assert all(torch.equal(state_of_loaded[name], tensor) for name, tensor in state.items())
    with torch.no_grad():
        logits = loaded(whole[f"{positions}/tokens"].long()).logits
    torch.testing.assert_close(logits, whole[f"{positions}/logits"], atol=1e-5, rtol=0)


def test_configuration_is_inferred_from_shapes(tmp_path):
    torch.save(with_masks(model()), tmp_path / "a.pth")
    config = load(tmp_path / "a.pth").config
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert config.positions == "shortformer"
    assert config.layer_norm_eps == 1e-5
    assert checkpoints(tmp_path / "a.pth") == [Checkpoint(0, str(tmp_path / "a.pth"))]


def test_configuration_beside_a_file_is_used(tmp_path):
    model(positions="standard").save_pretrained(tmp_path)
    assert load(tmp_path / "model.safetensors").config.positions == "standard"
    with pytest.raises(
        InputError, match=r"`positions` is 'shortformer', but the config.json in .* says 'standard'"
    ):
        load(tmp_path, positions="shortformer")
    assert same(load(tmp_path, positions="standard"), model(positions="standard"))


def test_positions_are_checked(tmp_path):
    torch.save(with_masks(model()), tmp_path / "a.pth")
    with pytest.raises(
        InputError, match=r"`positions` must be 'shortformer' or 'standard', got 'rotary'"
    ):
        load(tmp_path / "a.pth", positions="rotary")
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"`positions` is for attention-only models"):
        load(tmp_path / "gpt2", positions="shortformer")


# What a load leaves behind.


def sources(folder: Path) -> list[Path]:
    torch.save(with_masks(model()), folder / "a.pth")
    gpt2().save_pretrained(folder / "gpt2")
    return [folder / "a.pth", folder / "gpt2", trained(folder / "run", (5,))]


def test_loads_are_float32_in_eval_mode_and_leave_random_states(tmp_path):
    for source in sources(tmp_path):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        loaded = load(source, device="cpu")
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
        assert not any(module.training for module in loaded.modules())
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        assert all(p.requires_grad for p in loaded.parameters())


def test_random_state_is_left_by_a_load_that_raises(tmp_path):
    state = with_masks(model())
    del state["ln_final.w"]
    torch.save(state, tmp_path / "a.pth")
    before = torch.get_rng_state()
    with pytest.raises(FileError):
        load(tmp_path / "a.pth")
    assert torch.equal(torch.get_rng_state(), before)


def test_double_and_half_precision_become_float32(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        torch.save(
            {name: tensor.to(dtype) for name, tensor in model().state_dict().items()},
            tmp_path / "a.pth",
        )
        loaded = load(tmp_path / "a.pth")
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded.embed.W_E, model().embed.W_E.to(dtype).float())


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_is_quiet_and_then_as_before(tmp_path, capsys, bars):
    gpt2().save_pretrained(tmp_path)
    capsys.readouterr()
    was = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_info()
        (
            transformers_logging.enable_progress_bar
            if bars
            else transformers_logging.disable_progress_bar
        )()
        load(tmp_path)
        assert capsys.readouterr() == ("", "")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(was[0])
        (
            transformers_logging.enable_progress_bar
            if was[1]
            else transformers_logging.disable_progress_bar
        )()


def test_listing_needs_no_transformers(tmp_path):
    trained(tmp_path / "run", (0,))
    code = (
        "import sys; from rllc.models.checkpoints import checkpoints; "
        f"assert len(checkpoints({str(tmp_path / 'run')!r})) == 1; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_into_fills_the_same_memory(tmp_path):
    run = trained(tmp_path / "run")
    for source, step in [(run, 100), (state_dicts(tmp_path / "og"), 2000)]:
        into = model(1).train()
        at = {name: p.data_ptr() for name, p in into.named_parameters()}
        loaded = load(source, step, into=into)
        assert loaded is into
        assert same(loaded, model(step))
        assert not loaded.training
        assert {name: p.data_ptr() for name, p in loaded.named_parameters()} == at


def test_into_for_other_models(tmp_path):
    gpt2(1).save_pretrained(tmp_path)
    into = gpt2(2)
    assert load(tmp_path, into=into) is into
    assert same(into, gpt2(1))
    with pytest.raises(
        InputError,
        match=r"another configuration than the checkpoint: n_head is 4, the checkpoint's 2",
    ):
        load(tmp_path, into=gpt2(n_head=4))
    with pytest.raises(
        InputError, match=r"`into` must be a GPT2LMHeadModel like the checkpoint, got AttentionOnly"
    ):
        load(tmp_path, into=model())


def test_into_must_fit(tmp_path):
    run = trained(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"`into` must be a AttentionOnly like the checkpoint, got GPT2LMHeadModel"
    ):
        load(run, into=gpt2())
    with pytest.raises(
        InputError, match=r"positions is 'standard', the checkpoint's 'shortformer'"
    ):
        load(run, into=model(positions="standard"))
    with pytest.raises(
        InputError, match=r"`into` must be float32, but its 'embed.W_E' is torch.float64"
    ):
        load(run, into=model().double())


def test_into_is_untouched_by_a_bad_checkpoint(tmp_path):
    state = with_masks(model(1))
    state["unembed.b_U"][3] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    into = model(2)
    with pytest.raises(FileError, match=r"'unembed.b_U' has 1 of 11 values that are not finite"):
        load(tmp_path / "a.pth", into=into)
    assert same(into, model(2))


# Bad sources.


def test_missing_step_names_the_nearest(tmp_path):
    run = trained(tmp_path / "run", (0, 100, 200, 300, 5000))
    with pytest.raises(
        InputError,
        match=r"no step 210; the nearest are 100, 200, 300 \(5 checkpoints, steps 0 to 5000\)",
    ):
        load(run, 210)
    with pytest.raises(InputError, match=r"`step` must be a whole number, got '100'"):
        load(run, "100")
    with pytest.raises(
        InputError, match=r"`step` is 5, but the checkpoint given is of step 0; drop `step`"
    ):
        load(checkpoints(run)[0], 5)
    with pytest.raises(
        InputError, match=r"`source` must be a path, a hub id or a Checkpoint, got int"
    ):
        load(100)


def test_missing_source(tmp_path):
    (tmp_path / "checkpoint_0000100.pth").touch()
    with pytest.raises(
        FileError, match=r"no such file or folder\. In .*did you mean 'checkpoint_0000100.pth'"
    ):
        load(tmp_path / "checkpoint_000010.pth")
    with pytest.raises(FileError, match=r"loading missing.pth: there is no such file or folder"):
        checkpoints("missing.pth")
    with pytest.raises(FileError, match=r"no such file or folder\.$"):
        checkpoints(tmp_path / "no" / "such")


def test_source_without_checkpoints(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        FileError,
        match=r"no folders step0000100/, no revisions step100, no files checkpoint_0000100.pth",
    ):
        checkpoints(tmp_path)


def test_two_checkpoints_of_one_step(tmp_path):
    for name in ("checkpoint_7.pth", "checkpoint_0000007.pth"):
        (tmp_path / name).touch()
    with pytest.raises(
        FileError, match=r"checkpoint_0*7.pth and .*checkpoint_0*7.pth are both step 7"
    ):
        checkpoints(tmp_path)


def test_checkpoint_that_went_away(tmp_path):
    run = trained(tmp_path / "run")
    gone = checkpoints(run)[1]
    shutil.rmtree(run / "step0000100")
    with pytest.raises(FileError, match=r"step0000100 is not there; see checkpoints\("):
        load(gone)


def test_incomplete_folder(tmp_path):
    run = trained(tmp_path / "run", (0, 1))
    (run / "step0000000" / "config.json").unlink()
    with pytest.raises(
        FileError, match=r"no config.json; expected a folder that save_pretrained wrote"
    ):
        load(run, 0)
    (run / "step0000001" / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"no weights; expected model.safetensors"):
        load(run, 1)


# Bad files.


def test_truncated_files(tmp_path):
    torch.save(with_masks(model()), tmp_path / "a.pth")
    save_file(model().state_dict(), tmp_path / "b.safetensors")
    run = trained(tmp_path / "run", (0,))
    (run / "step0000000" / "sha256.json").unlink()
    gpt2().save_pretrained(tmp_path / "gpt2")
    files = [tmp_path / "a.pth", tmp_path / "b.safetensors", run / "step0000000/model.safetensors"]
    for file in files:
        whole = file.read_bytes()
        for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(
                FileError, match=r"truncated, damaged or not a state dict|it is damaged"
            ):
                load(file)
    file = tmp_path / "gpt2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(FileError, match=r"gpt2 through transformers: SafetensorError"):
        load(tmp_path / "gpt2")


def test_random_bytes(tmp_path):
    for seed in range(20):
        for name in ("a.pth", "a.safetensors"):
            (tmp_path / name).write_bytes(np.random.default_rng(seed).bytes(300))
            with pytest.raises(FileError, match=r"damaged"):
                load(tmp_path / name)


@pytest.mark.parametrize("text", ["", '{"model_type": "rllc_att', "[1]"])
def test_damaged_config(tmp_path, text):
    run = trained(tmp_path / "run", (0,))
    (run / "step0000000" / "config.json").write_text(text)
    with pytest.raises(
        FileError,
        match=r"config.json: the file is truncated or damaged|expected a JSON object, got list",
    ):
        load(run)


def test_impossible_config(tmp_path):
    model().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"n_heads": -1}))
    with pytest.raises(
        FileError, match=r"config.json is not a configuration of AttentionOnly: .*`n_heads`"
    ):
        load(tmp_path)


def test_flipped_byte_is_found_by_the_recorded_sum(tmp_path):
    run = trained(tmp_path / "run", (0,))
    at = run / "step0000000"
    whole = bytearray((at / "model.safetensors").read_bytes())
    whole[-3] ^= 1
    (at / "model.safetensors").write_bytes(whole)
    with pytest.raises(
        FileError,
        match=r"model.safetensors: it was damaged or changed since it was written: its SHA-256",
    ):
        load(run)
    (at / "sha256.json").unlink()
    assert not same(load(run), model(0)), "without a recorded sum nobody can know"


def test_recorded_sums_must_cover_the_files(tmp_path):
    run = trained(tmp_path / "run", (0,))
    sums = json.loads((run / "step0000000" / "sha256.json").read_text())
    (run / "step0000000" / "sha256.json").write_text(
        json.dumps({"config.json": sums["config.json"]})
    )
    with pytest.raises(FileError, match=r"sha256.json has no sum for model.safetensors"):
        load(run)
    (run / "step0000000" / "sha256.json").write_text(json.dumps(sums | {"extra.bin": "0"}))
    with pytest.raises(FileError, match=r"sha256.json lists extra.bin, but it is not there"):
        load(run)


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("legacy", "why"),
    [
        (None, r" it would call (posix|nt)\.system\."),
        (2, r" it would call (posix|nt)\.system\."),
        (4, r" it is damaged, or"),
    ],
)
def test_malicious_pickle_is_refused_and_not_run(tmp_path, legacy, why):
    mark = tmp_path / "it-ran"
    path = tmp_path / "checkpoint_0000001.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"embed.W_E": Bomb(mark)}, protocol=legacy))
    else:
        torch.save({"embed.W_E": Bomb(mark)}, path)
    with pytest.raises(
        FileError,
        match=r"refused, nothing of it was run\. A checkpoint is a pickle of tensors alone, and"
        + why,
    ):
        load(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if legacy else torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb works, so its not going off above means something"


def test_malicious_pickle_in_a_transformers_folder(tmp_path):
    mark = tmp_path / "it-ran"
    gpt2().config.save_pretrained(tmp_path / "gpt2")
    torch.save({"transformer.wte.weight": Bomb(mark)}, tmp_path / "gpt2" / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"refused, nothing of it was run"):
        load(tmp_path / "gpt2")
    assert not mark.exists()


def test_remote_code_is_not_run(tmp_path):
    mark = tmp_path / "it-ran"
    config = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match=r"through transformers: ValueError"):
        load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected a state dict \(names to tensors\), got list"),
        (
            {"model": {"embed.W_E": torch.ones(2, 2)}},
            r"'model' is dict; save the model's state_dict\(\) alone",
        ),
        ({3: torch.ones(1)}, r"but 3 is Tensor"),
    ],
)
def test_not_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "a.pth")


# Bad tensors: the same errors for a state dict, for our folders and for other transformers models.


def spoilt(folder: Path, kind: str, change) -> Path:
    state = model().state_dict()
    change(state)
    if kind == "file":
        torch.save(state, folder / "a.pth")
        return folder / "a.pth"
    model().save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rename(state):
    state["blocks.1.attn.W_Qs"] = state.pop("blocks.1.attn.W_Q")


BAD = {
    "missing": (lambda s: s.pop("ln_final.w"), r"'ln_final.w' is missing"),
    "unexpected": (
        lambda s: s.update({"blocks.0.mlp.W_in": torch.ones(2)}),
        r"'blocks.0.mlp.W_in' is unexpected; did",
    ),
    "renamed": (rename, r"'blocks.1.attn.W_Q' is missing; did you mean 'blocks.1.attn.W_Qs'\?"),
    "misshaped": (
        lambda s: s.update({"blocks.1.attn.b_K": torch.ones(3, 1)}),
        r"'blocks.1.attn.b_K' has shape \(3, 1\), expected \(3, 4\)",
    ),
    "nan": (
        lambda s: s["blocks.1.attn.W_O"][2, 1].fill_(torch.nan),
        r"'blocks.1.attn.W_O' has 8 of 96 values that are not",
    ),
    "infinite": (
        lambda s: s["ln_final.b"][:1].fill_(torch.inf),
        r"'ln_final.b' has 1 of 8 values that are not finite",
    ),
    "overflow": (
        lambda s: s.update({"ln_final.b": torch.full((8,), 1e300, dtype=torch.float64)}),
        r"'ln_final.b' has 8 of 8",
    ),
    "integers": (
        lambda s: s.update({"ln_final.b": torch.ones(8).int()}),
        r"'ln_final.b' is torch.int32",
    ),
    "a folded norm": (
        lambda s: [s.pop(f"blocks.0.ln1.{k}") for k in "wb"],
        r"'blocks.0.ln1.b' is missing",
    ),
    "a missing layer": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.0.") and "W_Q" not in n],
        r"'blocks.0.attn.W_K' is missing(.|\n)*… and 1 more",
    ),
}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("case", BAD)
def test_bad_tensors(tmp_path, kind, case):
    change, message = BAD[case]
    with pytest.raises(FileError, match=message):
        load(spoilt(tmp_path, kind, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.clear(),
            r"has a tensor 'embed.W_E' \[d_vocab, d_model\], this has none; it is empty",
        ),
        (
            lambda s: s.update({"embed.W_e": s.pop("embed.W_E")}),
            r"this has none; did you mean 'embed.W_e'",
        ),
        (
            lambda s: s.update({"embed.W_E": torch.ones(3)}),
            r"'embed.W_E' has shape \(3,\), expected \[d_vocab, d_model\]",
        ),
        (
            lambda s: s.update({"pos_embed.W_pos": torch.ones(0, 8)}),
            r"'pos_embed.W_pos' has shape \(0, 8\), expected",
        ),
    ],
)
def test_configuration_that_cannot_be_inferred(tmp_path, change, message):
    with pytest.raises(FileError, match=message):
        load(spoilt(tmp_path, "file", change))


def test_sparse_tensor(tmp_path):
    torch.save(model().state_dict() | {"ln_final.b": torch.ones(8).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(
        FileError, match=r"'ln_final.b' is torch.float32, torch.sparse_coo; expected dense"
    ):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("transformer.h.0.ln_1.weight"),
            r"'transformer.h.0.ln_1.weight' is missing",
        ),
        (lambda s: s.update({"extra": torch.ones(1)}), r"'extra' is unexpected"),
        (
            lambda s: s.update({"transformer.wpe.weight": torch.ones(5, 8)}),
            r"'transformer.wpe.weight' has shape \(5, 8\), expected \(6, 8\)",
        ),
        (
            lambda s: s["transformer.ln_f.bias"].fill_(torch.nan),
            r"'transformer.ln_f.bias' has 8 of 8 values",
        ),
    ],
)
def test_bad_tensors_of_other_models(tmp_path, change, message):
    gpt2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = torch.get_rng_state()
    with pytest.raises(FileError, match=message):
        load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
