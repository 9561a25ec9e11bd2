"""The embedded default data: the sources of Python's standard library, as code and as prose. Needs no network."""

from __future__ import annotations

import ast
import inspect
import os
import random
import sysconfig
import tokenize as python_tokens
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rllc.errors import FileError, InputError

_LONG = 200
"""Characters from which a docstring is prose worth a place of its own, and a document worth keeping."""

_NOT_CODE = frozenset({
    "__pycache__", "dist-packages", "encodings", "idle_test", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests",
})  # fmt: skip
"""Folders that are left out: tests, other people's packages, and tables of data (encodings, help topics)."""


def python_corpus(*, max_bytes: int | None = None, seed: int = 0) -> dict[str, list[str]]:
    """Two kinds of text that every Python installation has: ``{"code": documents, "prose": documents}``.

    ``code`` is the modules of the standard library, one document each, without tests, tables of data and installed
    packages. ``prose`` is English: the topics of the language reference that ``help()`` shows, and long docstrings,
    both without interactive examples, one document for the docstrings of each module. A docstring that is prose is cut to its
    first line in the code, and of equal long paragraphs of prose only one is kept, so the subsets share no passage and
    prose does not repeat itself. Sources are parsed, never imported.

    CPython 3.11, 3.12 and 3.13 have 7.1 to 7.7 MB of code in 400 to 450 documents and 1.4 MB of prose in 350 to 390.
    Texts differ between versions of Python; ``Tokens.fingerprint`` tells whether two machines use the same.

    >>> corpus = python_corpus(max_bytes=10_000)
    >>> {name: sum(len(text.encode()) for text in texts) for name, texts in corpus.items()}
    {'code': 10000, 'prose': 10000}

    Args:
        max_bytes: at most so many bytes (UTF-8) of each subset; the last document is cut to fit. ``None`` gives all.
        seed: of the order of the documents (sorted by name, then shuffled).

    Raises:
        FileError: this Python comes without the sources of its library (some embedded and zipped builds).
        InputError: ``max_bytes`` is below 1.
    """
    if max_bytes is not None and max_bytes < 1:
        raise InputError(
            f"reading the Python corpus: `max_bytes` must be at least 1, or None, got {max_bytes}."
        )
    library = Path(sysconfig.get_paths()["stdlib"])
    corpus = {}
    for name, all_documents in zip(("code", "prose"), _read(library), strict=True):
        documents = [document for document in all_documents if len(document) >= _LONG]
        if not documents:
            raise FileError(
                f"reading the Python corpus: no {name} found in {library}; this Python comes without the sources of "
                "its library. Use a full CPython, or give your own texts."
            )
        random.Random(seed).shuffle(documents)
        corpus[name] = documents if max_bytes is None else list(_first_bytes(documents, max_bytes))
    return corpus


@cache
def _read(library: Path) -> tuple[list[str], list[str]]:
    """All code and all prose, in the order of the modules' names."""
    code: list[str] = []
    docstrings: list[str] = []
    for path in _modules(library):
        source, prose = _separate(path)
        code.append(source)
        docstrings.append("\n\n".join(prose))
    return code, _once(_topics(library / "pydoc_data" / "topics.py") + docstrings)


def _modules(library: Path) -> list[Path]:
    """The modules, sorted by name. `_sysconfigdata…` and `config-…` describe one machine, so they are left out."""
    found = []
    for folder, folders, names in os.walk(library):
        # Assigned in place: the walk then does not enter the others, of which site-packages can be large.
        folders[:] = [
            name for name in folders if name not in _NOT_CODE and not name.startswith("config-")
        ]
        python = (
            name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")
        )
        found += [Path(folder, name) for name in python]
    return sorted(found, key=lambda path: path.relative_to(library).as_posix())


def _separate(path: Path) -> tuple[str, list[str]]:
    """A module's code, in which long docstrings are cut to their first line, and the prose of those docstrings."""
    try:
        with python_tokens.open(path) as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return "", []  # a few files of some distributions are templates or bad on purpose
    whole = source.encode()
    starts = [0]  # columns of the syntax tree count bytes
    for line in whole.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    pieces: list[bytes] = []
    prose: list[str] = []
    done = 0
    for node in _docstrings(tree):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        text = _without_examples(inspect.cleandoc(node.value))
        summary = _summary(whole[begin:end].decode())
        if len(text) >= _LONG and summary:
            pieces += [whole[done:begin], summary.encode()]
            prose.append(text)
            done = end
    return b"".join([*pieces, whole[done:]]).decode(), prose


def _docstrings(tree: ast.Module) -> list[ast.Constant]:
    """The docstrings of a module, its classes and its functions, in the order in which they stand."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    found = [
        node.body[0].value for node in nodes if ast.get_docstring(node, clean=False) is not None
    ]
    return sorted(found, key=lambda constant: (constant.lineno, constant.col_offset))


def _summary(literal: str) -> str | None:
    """The literal of a docstring up to its first line of text; None if it is not one triple-quoted string."""
    quote = literal[-3:]
    if quote not in ('"""', "'''"):
        return None
    kept = ""
    for line in literal[:-3].splitlines():
        kept += line
        if line.strip(" rRuU\"'\\"):
            break
        kept += "\n"
    short = kept + (" " if kept.endswith(quote[0]) else "") + quote
    try:
        return short if isinstance(ast.literal_eval(short), str) else None
    except SyntaxError:
        return None


def _without_examples(text: str) -> str:
    """A text without its interactive examples, which are code."""
    return "\n\n".join(part for part in text.split("\n\n") if ">>> " not in part).strip()


def _topics(path: Path) -> list[str]:
    """The topics of the language reference, the longest first: it contains others, which then give way to it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        topics = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        texts = ast.literal_eval(topics).values()
    except (OSError, SyntaxError, ValueError, StopIteration, AttributeError):
        return []  # some distributions leave the topics out; the docstrings remain
    return sorted((_without_examples(text) for text in texts), key=lambda text: (-len(text), text))


def _once(documents: list[str]) -> list[str]:
    """The documents without paragraphs that an earlier one has; short ones ("For example:") may come again."""
    seen: set[str] = set()
    result = []
    for document in documents:
        kept = []
        for paragraph in document.split("\n\n"):
            key = " ".join(paragraph.split())
            if key not in seen:
                kept.append(paragraph)
            if len(key) >= 60:
                seen.add(key)
        result.append("\n\n".join(kept))
    return result


def _first_bytes(documents: list[str], max_bytes: int) -> Iterator[str]:
    for document in documents:
        data = document.encode()[:max_bytes]
        yield data.decode(errors="ignore")  # a character that the cut goes through is left out
        max_bytes -= len(data)
        if max_bytes == 0:
            return
