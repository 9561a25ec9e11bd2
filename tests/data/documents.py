"""A few documents, as texts and as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import zstandard

DOCUMENTS = [
    {"text": "the cat\u2028sees\nthe dog", "meta": {"pile_set_name": "Github"}},
    {"text": "another line 🙂", "meta": {"pile_set_name": "Wikipedia (en)"}},
    {"text": "def f(x):\n    return x\n", "meta": {"pile_set_name": "Github"}},
]
TEXTS = [document["text"] for document in DOCUMENTS]
LINES = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in DOCUMENTS).encode()


def write(path: Path, data: bytes = LINES) -> Path:
    """Write a file, compressed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(data) if path.name.endswith(".zst") else data)
    return path


def compress(data: bytes, frames: int = 1) -> bytes:
    """zstd frames that, like the Pile's, do not state the size of their contents."""
    size = -(-len(data) // frames)
    compressor = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    compressed = b""
    for start in range(0, len(data), size):
        frame = compressor.compressobj()
        compressed += frame.compress(data[start : start + size]) + frame.flush()
    return compressed
