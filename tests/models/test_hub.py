"""The hub's client is asked as it expects, and only a checkpoint's own files leave its cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from sources import state_dict_folder, training_folder

from rllc.errors import FileError
from rllc.models import Checkpoint, checkpoints
from rllc.models.hub import Hub


def test_hub_client_is_asked_as_it_expects(monkeypatch, tmp_path):
    """Against huggingface_hub's own signatures, without a network."""
    calls = []

    def refs(repo_id: str):
        names = [SimpleNamespace(name="main"), SimpleNamespace(name="step1")]
        return SimpleNamespace(branches=names, tags=names[1:])

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


def test_hub_that_does_not_answer(monkeypatch, tmp_path):
    def refs(repo_id: str):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    there = r"^'no/such': there is no such file or folder here \(there is no folder 'no' in .*\)"
    message = (
        there + r", and the Hugging Face hub did not give it either \(ConnectionError: no route"
    )
    with pytest.raises(FileError, match=message):
        checkpoints("no/such")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"^'run': .* here \(in .*; did you mean 'runs'\?\)"):
        checkpoints("run")


# The cache.


def write_snapshot(cache: Path, revision: str, commit: str, files: dict[str, bytes]) -> Path:
    """Files as the hub's client caches them: contents by hash, and a snapshot of links to them."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / commit
    for name, contents in files.items():
        blob = repository / "blobs" / hashlib.sha256(contents).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(contents)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's cache, empty."""
    download = huggingface_hub.snapshot_download

    def download_here(*args, **kwargs):
        return download(*args, **kwargs, cache_dir=tmp_path)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_here)
    return tmp_path


def test_of_the_cache_only_a_checkpoints_own_weights_go(cache):
    """Against the tree of the cache, for each form of a checkpoint.

    The weights of ``step0000000`` and of revision ``step5`` are one blob: it stays for the other.
    """
    main = write_snapshot(
        cache,
        "main",
        "a" * 40,
        {
            "checkpoints/checkpoint_0000000.pth": b"0",
            "checkpoints/checkpoint_0000100.pth": b"100",
            "step0000000/model.safetensors": b"weights",
            "step0000000/config.json": b"{}",
            "training.json": b"1",
        },
    )
    files = {"model.safetensors": b"weights", "config.json": b"{}"}
    step5 = write_snapshot(cache, "step5", "b" * 40, files)

    def tree() -> set[Path]:
        return {path for path in cache.rglob("*") if not path.is_dir()}

    file = "checkpoints/checkpoint_0000000.pth"
    for checkpoint, weights, num_blobs in [
        (Checkpoint(0, "org/name", file=file), main / file, 1),
        (Checkpoint(0, "org/name", file="step0000000"), main / "step0000000/model.safetensors", 0),
        (Checkpoint(5, "org/name", revision="step5"), step5 / "model.safetensors", 1),
    ]:
        assert checkpoint.cached() == {weights}
        paths = tree()
        checkpoint.delete_cached(but=[weights])
        assert tree() == paths
        checkpoint.delete_cached(but=[])
        deleted = paths - tree()
        assert weights in deleted
        assert len([path for path in deleted if path.parent.name == "blobs"]) == num_blobs
        assert len(deleted) == 1 + num_blobs
        assert checkpoint.cached() == frozenset()
    assert Checkpoint(100, "org/name", file="checkpoints/checkpoint_0000100.pth").cached()


def test_what_was_never_downloaded_is_not_cached(cache):
    assert Checkpoint(1, "org/elsewhere", revision="step1").cached() == frozenset()


def test_nothing_of_a_local_folder_counts_as_cached(tmp_path):
    for source in (training_folder(tmp_path / "run"), state_dict_folder(tmp_path / "og")):
        paths = sorted(source.rglob("*"))
        for checkpoint in checkpoints(source):
            assert checkpoint.cached() == frozenset()
            checkpoint.delete_cached(but=[])
        assert sorted(source.rglob("*")) == paths
