"""Deleting from the hub's cache what a sweep fetched, and nothing that was there before it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path

from rllc.models.checkpoints import Checkpoint
from rllc.storage.files import reading
from rllc.storage.identity import short_hash
from rllc.sweep.store import Store, write_text


def note_download(
    store: Store, checkpoint: Checkpoint, cached: Iterable[Path] | None = None
) -> None:
    """Before a checkpoint is fetched: write down, once, what this machine has of it.

    Args:
        cached: the files; ``None``: those that are in the cache now.
    """
    path = _path(store, checkpoint)
    if path.exists() or Path(checkpoint.source).exists():
        return
    files = checkpoint.cached() if cached is None else cached
    with store.writing(f"what is cached of {checkpoint}"):
        write_text(path, json.dumps({"there": sorted(map(str, files))}))


def delete_download(store: Store, checkpoint: Checkpoint) -> None:
    """Delete what this machine has fetched of a checkpoint since :func:`note_download`."""
    path = _path(store, checkpoint)
    if path.exists():
        with reading(path):
            kept = json.loads(path.read_text(encoding="utf-8"))["there"]
            files = [Path(file) for file in kept]
        checkpoint.delete_cached(files)
        path.unlink(missing_ok=True)


def _path(store: Store, checkpoint: Checkpoint) -> Path:
    place = [platform.node(), checkpoint.source, checkpoint.revision, checkpoint.file]
    return store.root / "downloads" / f"{short_hash(json.dumps(place))}.json"
