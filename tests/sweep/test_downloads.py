"""Checkpoints that came from the hub are deleted when they are done, and nothing else is."""

from __future__ import annotations

import fnmatch
import shutil
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from faulty import interrupted
from small_sweeps import DATA, QUICK, rows_with_seven

import rllc
import rllc.sweep.workers


@pytest.fixture
def repository(run, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A hub with one revision a step: its client's cache, and what is downloaded from it."""
    fetched: list[str] = []
    cache = tmp_path / "cache"
    client = huggingface_hub.snapshot_download

    def refs(name: str):
        branches = [types.SimpleNamespace(name=f"step{step}") for step in (0, 10)]
        return types.SimpleNamespace(branches=branches, tags=[])

    def download(
        name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        if local_files_only:
            return client(
                name,
                revision=revision,
                cache_dir=cache,
                allow_patterns=allow_patterns,
                local_files_only=True,
            )
        repository = cache / "models--org--name"
        commit = revision.removeprefix("step").zfill(40)
        snapshot = repository / "snapshots" / commit
        for folder in (repository / "blobs", repository / "refs", snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        for file in (run / f"step{int(commit):07d}").iterdir():
            wanted = any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns)
            if wanted and not (snapshot / file.name).exists():
                blob = repository / "blobs" / f"{commit}{file.name}"
                shutil.copy(file, blob)
                (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
                fetched.append(f"{revision}/{file.name}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return cache, fetched


def weights_in(cache: Path) -> list[str]:
    """Steps whose weights are in the cache: blobs, and links even where their blob is gone."""
    steps = set()
    for path in cache.rglob("*model.safetensors"):
        commit = path.name if path.parent.name == "blobs" else path.parent.name
        steps.add(str(int(commit[:40])))
    return sorted(steps)


def deleting(folder: Path) -> rllc.sweep.Store:
    return rllc.sweep.Store(folder, delete_downloads=True)


def test_downloads_are_deleted_when_all_cells_of_a_checkpoint_are_done(
    run, repository, tmp_path, monkeypatch
) -> None:
    cache, fetched = repository
    cached_during_cells: list[list[str]] = []

    def looking(*args, **options):
        cached_during_cells.append(weights_in(cache))
        return rllc.sample(*args, **options)

    monkeypatch.setattr(rllc.sweep.workers, "sample", looking)
    store = tmp_path / "store"
    trajectory = rllc.track("org/name", DATA, "0:1", store=deleting(store), **QUICK)
    assert cached_during_cells == [["0"], ["0"], ["10"], ["10"]]  # one at a time
    assert weights_in(cache) == []
    assert list((store / "downloads").iterdir()) == []
    weights = [name for name in fetched if "safetensors" in name]
    assert weights == ["step0/model.safetensors", "step10/model.safetensors"]
    assert np.array_equal(trajectory.value, rllc.track(run, DATA, "0:1", **QUICK).value)
    # Another call looks at a model for its heads, and is not asked to delete it.
    rllc.track("org/name", DATA, "0:1", store=store, **QUICK)
    assert weights_in(cache) == ["0"]


def test_what_was_in_the_cache_before_stays_there(repository, tmp_path) -> None:
    cache, _ = repository
    rllc.checkpoints("org/name")[1].path()
    assert weights_in(cache) == ["10"]
    rllc.track("org/name", DATA["a"], "0:1", store=deleting(tmp_path / "store"), **QUICK)
    assert weights_in(cache) == ["10"]


def test_downloads_of_unfinished_cells_stay_for_the_next_call_which_knows_that_they_are_its_own(
    repository, tmp_path
) -> None:
    cache, fetched = repository
    data, store = rows_with_seven(), deleting(tmp_path / "store")
    call = {"loss": interrupted, "store": store} | QUICK
    with pytest.raises(KeyboardInterrupt):
        rllc.track("org/name", data, "0:1", **call)
    assert weights_in(cache) == ["0"]
    rllc.track("org/name", {"a": data["a"]}, "0:1", **call)
    assert weights_in(cache) == []
    assert fetched.count("step0/model.safetensors") == 1


def test_a_download_that_cannot_be_deleted_is_no_reason_to_stop(
    repository, tmp_path, monkeypatch
) -> None:
    def refused(self, but) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(rllc.models.Checkpoint, "delete_cached", refused)
    message = r"track: org/name@step0 stays in the hub's cache \(not yours\)"
    with pytest.warns(UserWarning, match=message):
        trajectory = rllc.track(
            "org/name", DATA["a"], "0:1", store=deleting(tmp_path / "s"), **QUICK
        )
    assert np.isfinite(trajectory.value).all()
