"""Listing checkpoints: every kind of source, and sources that are none."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from sources import are_equal, small_gpt2, small_model, state_dict_folder, training_folder

from rllc.errors import FileError, InputError
from rllc.models import Checkpoint, checkpoints, load
from rllc.storage.files import sha256_of_file


def steps_of(source: object) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints(source)]  # type: ignore[arg-type]


# Sources on this machine.


def test_training_folder(tmp_path):
    folder = training_folder(tmp_path / "run")
    listed = checkpoints(folder)
    assert [checkpoint.step for checkpoint in listed] == [0, 100, 2000]
    assert listed[1] == Checkpoint(100, str(folder), file="step0000100")
    assert are_equal(load(folder, 100), small_model(100))
    assert are_equal(load(folder), small_model(2000))
    assert are_equal(load(listed[0]), small_model(0))


def test_folder_of_one_step(tmp_path):
    folder = training_folder(tmp_path / "run") / "step0000100"
    assert steps_of(folder) == [100]
    assert are_equal(load(folder), small_model(100))


@pytest.mark.parametrize("within", ["", "checkpoints"])
def test_folder_of_state_dicts(tmp_path, within):
    folder = state_dict_folder(tmp_path / "og", within=within)
    assert steps_of(folder) == [0, 100, 2000]
    for checkpoint in checkpoints(str(folder), positions="shortformer"):
        assert are_equal(load(checkpoint), small_model(checkpoint.step))
    assert steps_of(folder / within / "checkpoint_0000100.pth") == [100]


def test_steps_are_sorted_as_numbers(tmp_path):
    for name in ("checkpoint_10.pth", "checkpoint_9.pth", "checkpoint_100.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "notes.pth").touch()
    (tmp_path / "step_8").mkdir()
    (tmp_path / "step_8" / "config.json").touch()
    with pytest.warns(UserWarning, match=r"left out, because their names say no step: notes.pth"):
        assert steps_of(tmp_path) == [8, 9, 10, 100]


def test_sums_are_those_of_the_weights(tmp_path):
    run = training_folder(tmp_path / "run", (0, 100))
    weights = run / "step0000100" / "model.safetensors"
    assert checkpoints(run)[1].sha256() == sha256_of_file(weights)
    state_dicts = state_dict_folder(tmp_path / "og", (0, 100))
    file = state_dicts / "checkpoint_0000100.pth"
    assert checkpoints(state_dicts)[1].sha256() == sha256_of_file(file)
    small_gpt2(1).save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert len(Checkpoint(0, str(tmp_path / "shards")).sha256()) == 64


# Sources on the hub.


class FakeHub(NamedTuple):
    root: Path
    """Holds ``repository/revision/files``."""
    fetched: list[str]
    """Names of the files that were downloaded."""


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """In place of the hub: what is fetched is copied to a cache, matching files only."""
    root = tmp_path / "hub"
    fetched: list[str] = []

    class LocalHub:
        def __init__(self, repository: str, cache_dir=None, token=None) -> None:
            self.folder = root / repository
            if not self.folder.is_dir():
                raise FileError(f"no repository {repository}")

        def revisions(self) -> list[str]:
            return [folder.name for folder in self.folder.iterdir()]

        def files(self, revision: str | None = None) -> list[str]:
            return self._files(revision or "main")

        def fetch(self, revision: str | None, patterns: list[str]) -> Path:
            revision = revision or "main"
            cache = tmp_path / "cache" / self.folder.name / revision
            for name in self._files(revision):
                if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    (cache / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.folder / revision / name, cache / name)
                    fetched.append(name)
            return cache

        def _files(self, revision: str) -> list[str]:
            folder = self.folder / revision
            files = [path for path in folder.rglob("*") if path.is_file()]
            return [path.relative_to(folder).as_posix() for path in files]

    monkeypatch.setattr("rllc.models.hub.Hub", LocalHub)
    return FakeHub(root, fetched)


def test_hub_with_state_dicts(fake_hub):
    state_dict_folder(fake_hub.root / "org" / "og" / "main", within="checkpoints")
    second = checkpoints("org/og")[1]
    assert second == Checkpoint(100, "org/og", file="checkpoints/checkpoint_0000100.pth")
    assert str(second) == "org/og/checkpoints/checkpoint_0000100.pth"
    assert are_equal(load("org/og", 100, positions="shortformer"), small_model(100))
    # One step must not download the others.
    assert fake_hub.fetched == ["checkpoints/checkpoint_0000100.pth"]


def test_hub_with_one_revision_a_step(fake_hub):
    repository = fake_hub.root / "org" / "pythia"
    for step in (1, 1000, 64):
        small_gpt2(step).save_pretrained(repository / f"step{step}")
        (repository / f"step{step}" / "pytorch_model.bin").write_bytes(b"the same weights again")
    small_gpt2(7).save_pretrained(repository / "main")
    listed = checkpoints("org/pythia")
    assert [checkpoint.step for checkpoint in listed] == [1, 64, 1000]
    assert [checkpoint.revision for checkpoint in listed] == ["step1", "step64", "step1000"]
    assert [checkpoint.file for checkpoint in listed] == [None, None, None]
    assert str(listed[0]) == "org/pythia@step1"
    loaded = load("org/pythia", 64)
    assert are_equal(loaded, small_gpt2(64))
    assert not loaded.training
    expected = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(fake_hub.fetched) == expected


def test_hub_with_pickled_weights_only(fake_hub):
    folder = fake_hub.root / "org" / "old" / "step5"
    model = small_gpt2(5)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert are_equal(load("org/old"), model)


def test_hub_with_one_folder_a_step(fake_hub):
    training_folder(fake_hub.root / "org" / "ours" / "main")
    files = [checkpoint.file for checkpoint in checkpoints("org/ours")]
    assert files == ["step0000000", "step0000100", "step0002000"]
    assert are_equal(load("org/ours", 2000), small_model(2000))
    assert all(name.startswith("step0002000/") for name in fake_hub.fetched)


def test_hub_with_one_model(fake_hub):
    small_gpt2(3).save_pretrained(fake_hub.root / "gpt" / "main")
    assert checkpoints("gpt") == [Checkpoint(None, "gpt")]
    assert are_equal(load("gpt"), small_gpt2(3))
    message = r"holds one model and does not say of which step; drop `step=0`"
    with pytest.raises(InputError, match=message):
        load("gpt", 0)


# Bad sources.


def test_missing_source(tmp_path):
    (tmp_path / "checkpoint_0000100.pth").touch()
    message = r"no such file or folder\. In .*did you mean 'checkpoint_0000100.pth'"
    with pytest.raises(FileError, match=message):
        load(tmp_path / "checkpoint_000010.pth")
    with pytest.raises(FileError, match=r"loading missing.pth: there is no such file or folder"):
        checkpoints("missing.pth")
    with pytest.raises(FileError, match=r"no such file or folder\.$"):
        checkpoints(tmp_path / "no" / "such")


def test_source_without_checkpoints(tmp_path):
    (tmp_path / "notes.txt").touch()
    message = r"no folders step0000100/ .*, no revisions step100, no files checkpoint_0000100.pth"
    with pytest.raises(FileError, match=message):
        checkpoints(tmp_path)


def test_two_checkpoints_of_one_step(tmp_path):
    for name in ("checkpoint_7.pth", "checkpoint_0000007.pth"):
        (tmp_path / name).touch()
    message = r"checkpoint_0*7.pth and .*checkpoint_0*7.pth are both step 7"
    with pytest.raises(FileError, match=message):
        checkpoints(tmp_path)
