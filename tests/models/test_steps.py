"""What step a name says, against a table; and sources of checkpoints under every such name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sources import are_equal, small_gpt2
from test_checkpoints import FakeHub, fake_hub  # noqa: F401 (a fixture)
from torch import nn

import rllc
from rllc.errors import FileError, InputError
from rllc.models import Checkpoint, checkpoints, load
from rllc.models.steps import read_name

NAMES = {
    "step1000": (1000, "steps", ""),
    "step_1000": (1000, "steps", ""),
    "step-1000.pt": (1000, "steps", ""),
    "global_step500": (500, "steps", ""),
    "checkpoint-500": (500, "steps", ""),
    "checkpoint_0008500.pth": (8500, "steps", ""),
    "ckpt_100.pt": (100, "steps", ""),
    "ckpt100.pth.tar": (100, "steps", ""),
    "model_00100.pth": (100, "steps", ""),
    "100.pt": (100, "steps", ""),
    "iter_5000.pt": (5000, "steps", ""),
    "step10k": (10_000, "steps", ""),
    "epoch-3": (3, "epochs", ""),
    "epoch=03-val_loss=0.25.ckpt": (3, "epochs", ""),
    "epoch=3-step=1000.ckpt": (1000, "steps", ""),
    "epoch=3-val_loss=0.25-step=1000.ckpt": (1000, "steps", ""),
    "tokens_1e9.pth": (10**9, "tokens", ""),
    "tokens-4B": (4 * 10**9, "tokens", ""),
    "step1000-tokens4B": (1000, "steps", ""),
    "stage1-step140000-tokens294B": (140_000, "steps", "stage1"),
    "stage2-ingredient1-step1000-tokens3B": (1000, "steps", "stage2-ingredient1"),
    "run3_step7.safetensors": (7, "steps", "run3"),
}
NO_STEP = (
    *("main", "best.pt", "last.ckpt", "gpt2_100.pt", "seed0.pt", "layer_3.pt", "100", "v1.0"),
    *("pytorch_model.bin", "model-00001-of-00002.safetensors", "step1.5", "step_1-step_2"),
    *("EleutherAI/pythia-70m", "step-1e40", "substep5", "step5x"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_say_a_step(name) -> None:
    assert tuple(read_name(name)) == NAMES[name]
    assert tuple(read_name(f"some/run/{name}")) == NAMES[name]


@pytest.mark.parametrize("name", NO_STEP)
def test_names_that_say_none(name) -> None:
    assert read_name(name) is None


# Sources.


def net(seed: int) -> nn.Module:
    """A small module of one's own, of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net(seed).state_dict(), path)
    return path


def steps_of(source: object, **options: str) -> list[int | None]:
    return [checkpoint.step for checkpoint in checkpoints(source, **options)]


@pytest.mark.parametrize(
    "pattern",
    [
        "ckpt_{}.pt",
        "step-{}/model.pt",
        "global_step{}/mp_rank_00_model_states.pt",
        "weights/model_000{}.pth",
        "epoch=1-step={}.ckpt",
        "run7/step_{}/weights.ckpt",
        "tokens_{}.bin",
    ],
)
def test_a_folder_of_own_state_dicts(tmp_path, pattern) -> None:
    for step in (100, 20, 3):
        path = save(tmp_path / pattern.format(step), step)
        torch.save({"state": {}, "param_groups": []}, path.with_name(f"optimizer_{step}.pt"))
    assert steps_of(tmp_path) == [3, 20, 100]
    for checkpoint in checkpoints(tmp_path, into=lambda: net(0)):
        assert are_equal(load(checkpoint), net(checkpoint.step))
    assert are_equal(load(tmp_path, 20, into=net(0)), net(20))


def test_the_folder_of_a_trainer(tmp_path) -> None:
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        small_gpt2(step).save_pretrained(folder)
        for name in (
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "training_args.bin",
            "resume.pt",
        ):
            (folder / name).write_bytes(b"not weights")
    small_gpt2(7).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="left out, .* no step: model.safetensors"):
        assert steps_of(tmp_path) == [500, 1000]
    with pytest.warns(UserWarning, match="left out"):
        assert are_equal(load(tmp_path, 500), small_gpt2(500))


def test_shards_of_a_step(tmp_path) -> None:
    small_gpt2(5).save_pretrained(tmp_path / "step_5", max_shard_size="1KB")
    assert steps_of(tmp_path) == [5]
    assert are_equal(load(tmp_path), small_gpt2(5))
    (tmp_path / "step_5" / "config.json").unlink()
    assert are_equal(load(tmp_path, into=small_gpt2(0)), small_gpt2(5))


def test_state_dicts_beside_the_configuration_of_their_model(tmp_path) -> None:
    small_gpt2(0).config.save_pretrained(tmp_path)
    for step in (1, 2):
        torch.save(small_gpt2(step).state_dict(), tmp_path / f"ckpt_{step}.pt")
    assert are_equal(load(tmp_path, 2), small_gpt2(2))


def test_names_that_are_not_understood_are_listed(tmp_path) -> None:
    for name in ("gpt2_100.pt", "gpt2_200.pt", "notes.txt"):
        (tmp_path / name).touch()
    message = r"Found, but not understood: gpt2_100.pt, gpt2_200.pt\. .*\{100: 'path'\}"
    with pytest.raises(FileError, match=message):
        checkpoints(tmp_path)
    (tmp_path / "ckpt_5.pt").touch()
    with pytest.warns(UserWarning, match=r"left out, .*: gpt2_100.pt, gpt2_200.pt\."):
        assert steps_of(tmp_path) == [5]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("epoch-3.pt", "step-100.pt"), r"count epochs and steps: epoch-3.pt; step-100.pt\. Type"),
        (("a_step1.pt", "b_step2.pt"), r"several runs or stages: a_step1.pt; b_step2.pt\. Choose"),
        (("a/step1.pt", "b/step2.pt"), r"folders a, b each hold some.*subfolder='a'"),
        (("step1.pt", "step_01.pt"), r"step1.pt and .*step_01.pt are both step 1; type \{step:"),
    ],
)
def test_steps_that_are_no_one_sequence(tmp_path, names, message) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileError, match=message):
        checkpoints(tmp_path)


def test_a_subfolder(tmp_path) -> None:
    for run in ("a", "b"):
        save(tmp_path / run / "ckpt_1.pt", 1)
    assert steps_of(tmp_path, subfolder="b") == [1]
    assert are_equal(load(tmp_path, into=net(0), subfolder="b"), net(1))


# Lists and dicts.


def test_lists_and_dicts_of_paths(tmp_path) -> None:
    one = save(tmp_path / "ckpt_100.pt", 100)
    other = save(tmp_path / "final.pt", 200)
    assert steps_of([one, str(save(tmp_path / "ckpt_20.pt", 20))]) == [20, 100]
    for source in ([(200, other), (100, str(one))], {200: other, 100: str(one)}):
        listed = checkpoints(source, into=net(0))
        assert [checkpoint.step for checkpoint in listed] == [100, 200]
        assert are_equal(load(listed[1]), net(200))
    message = (
        r"final.pt do not say their step \(understood: .*ckpt_100.pt is step 100\); type "
        r"\{100: '.*final.pt', …\}"
    )
    with pytest.raises(InputError, match=message):
        checkpoints([one, other])


def test_models_and_state_dicts_in_memory() -> None:
    module = net(1)
    listed = checkpoints([(1, module), (2, net(2).state_dict())], into=net(0))
    assert str(listed[0]) == "<Sequential in memory>"
    loaded = load(listed[0])
    assert are_equal(loaded, module)
    assert loaded[0].weight.data_ptr() != module[0].weight.data_ptr()
    assert are_equal(load(listed[1]), net(2))
    assert listed[0].sha256() != listed[1].sha256()
    assert listed[0].sha256() == checkpoints({5: net(1)})[0].sha256()


SAME = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([("a.pt", 100)], r"whole number as step, got \('a.pt', 100\)"),
        ([(True, "a.pt")], "a step must be a whole number, got True"),
        ([(-1, "a.pt")], "a step must not be negative, got -1"),
        ({"100": "a.pt"}, r"whole number as step, got \('100', 'a.pt'\)"),
        ({100: 3}, "of step 100, expected a path, a module or a state dict, got int"),
        ([3], r"a list may hold paths, Checkpoints, \(step, path\) or \(step, model\), got int"),
        ([(1, SAME), (2, SAME)], "steps 1 and 2 are one object in memory"),
        ([(1, "a"), (1, "b")], "a and b are both step 1"),
        (3, r"expected a folder, a file, a hub id, a list of these, .* got int"),
        (SAME, r"got Linear; for one model type \{100: model\}"),
    ],
)
def test_lists_of_something_else(source, message) -> None:
    with pytest.raises(InputError, match=message):
        checkpoints(source)


# The hub.


def test_revisions_of_stages(fake_hub) -> None:  # noqa: F811
    repository = fake_hub.root / "org" / "olmo"
    for revision in ("main", "stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-step10"):
        small_gpt2(1).save_pretrained(repository / revision)
    message = r"several runs or stages: stage.*revision='stage1-\*'"
    with pytest.raises(FileError, match=message):
        checkpoints("org/olmo")
    assert steps_of("org/olmo", revision="stage1-*") == [10, 20]
    assert are_equal(load("org/olmo", 10, revision="stage1-*"), small_gpt2(1))
    single = checkpoints("org/olmo", revision="stage2-step10")
    assert single == [Checkpoint(10, "org/olmo", revision="stage2-step10")]
    with pytest.raises(InputError, match="no revision of org/olmo is like 'stage9-"):
        checkpoints("org/olmo", revision="stage9-*")


def test_options_reach_the_client(monkeypatch, tmp_path) -> None:
    calls = {}
    small_gpt2(3).save_pretrained(tmp_path / "snapshot" / "sub")

    def client(name):
        def call(repository, **options):
            calls[name] = options
            if name == "list_repo_files":
                return ["sub/config.json", "sub/model.safetensors"]
            return str(tmp_path / "snapshot")

        return call

    import huggingface_hub

    class NoRefs:
        branches, tags = (), ()

    monkeypatch.setattr(huggingface_hub, "list_repo_files", client("list_repo_files"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", client("snapshot_download"))
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", lambda *a, **k: NoRefs)
    options = {"revision": "v1", "subfolder": "sub", "cache_dir": "/there", "token": "secret"}
    model = load("org/name", **options)
    assert are_equal(model, small_gpt2(3))
    assert calls["list_repo_files"] == {"revision": "v1", "token": "secret"}
    passed = calls["snapshot_download"]
    assert passed["cache_dir"] == "/there"
    assert passed["token"] == "secret"
    assert passed["revision"] == "v1"
    (checkpoint,) = checkpoints("org/name", **options)
    assert "secret" not in repr(checkpoint)


def test_misspelt_options() -> None:
    with pytest.raises(InputError, match="no argument `revison`; did you mean 'revision'"):
        checkpoints("org/name", revison="v1")
    with pytest.raises(InputError, match="no argument `cachedir`; did you mean 'cache_dir'"):
        load("org/name", cachedir="v1")
    with pytest.raises(InputError, match=r"`revision` is passed on .* must be a text, got int"):
        load("org/name", revision=3)


def test_a_folder_has_no_revisions(tmp_path) -> None:
    save(tmp_path / "ckpt_1.pt", 1)
    with pytest.raises(InputError, match="a folder on this machine, which has no revisions"):
        checkpoints(tmp_path, revision="v1")


def test_a_result_is_no_model(tmp_path) -> None:
    module = nn.Linear(2, 1)
    data = torch.randn(8, 2)
    sampling = rllc.Sampling(num_draws=4, batch_size=8)
    compute = rllc.Compute(progress=False)
    est = rllc.estimate(
        module, data, loss=lambda m, x: m(x)[:, 0] ** 2, sampling=sampling, compute=compute
    )
    path = est.save(tmp_path / "est.npz")
    message = r"it holds rllc.Estimate; type rllc.Estimate.load\('.*est.npz'\)"
    with pytest.raises(FileError, match=message):
        load(path)
