"""The embedded default data: Python's standard library, as code and as prose. Needs no network."""

from __future__ import annotations

import ast
import inspect
import os
import random
import sysconfig
import tokenize as python_tokens
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rllc.errors import FileError, InputError

_LONG = 200
"""Characters from which a docstring counts as prose, and a document is kept."""

_LONG_PARAGRAPH = 60
"""Characters from which a paragraph of prose is kept once only; "For example:" may come again."""

_NOT_CODE = frozenset({
    "__pycache__", "dist-packages", "encodings", "idle_test", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests",
})  # fmt: skip
"""Folders left out: tests, other people's packages, and tables of data (encodings, help topics)."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""Kinds of nodes that can have a docstring."""


def python_corpus(*, max_bytes: int | None = None, seed: int = 0) -> dict[str, list[str]]:
    """Two kinds of text that every Python installation has: ``{"code": texts, "prose": texts}``.

    ``code`` is the modules of the standard library, one document each, without tests, tables of
    data and installed packages. ``prose`` is English: the topics of the language reference that
    ``help()`` shows, and long docstrings, both without interactive examples, one document for the
    docstrings of each module. A docstring that is prose is cut to its first line in the code, and
    of equal long paragraphs of prose only one is kept, so the subsets share no passage and prose
    does not repeat itself. Sources are parsed, never imported.

    CPython 3.11, 3.12 and 3.13 have 7.1 to 7.7 MB of code in 400 to 450 documents and 1.4 MB of
    prose in 350 to 390. Texts differ between versions of Python; ``Tokens.fingerprint`` tells
    whether two machines use the same.

    >>> corpus = python_corpus(max_bytes=10_000)
    >>> {name: sum(len(text.encode()) for text in texts) for name, texts in corpus.items()}
    {'code': 10000, 'prose': 10000}

    Args:
        max_bytes: at most so many bytes (UTF-8) of each subset; the last document is cut to fit.
            ``None`` gives all.
        seed: of the order of the documents (sorted by name, then shuffled).

    Raises:
        FileError: this Python comes without the sources of its library (some embedded and zipped
            builds).
        InputError: ``max_bytes`` is below 1.
    """
    if max_bytes is not None and max_bytes < 1:
        raise InputError(
            f"reading the Python corpus: `max_bytes` must be at least 1, or None, got {max_bytes}."
        )
    library = Path(sysconfig.get_paths()["stdlib"])
    code, prose = _read(library)
    corpus = {}
    for name, texts in {"code": code, "prose": prose}.items():
        documents = [text for text in texts if len(text) >= _LONG]
        if not documents:
            raise FileError(
                f"reading the Python corpus: no {name} found in {library}; this Python comes "
                f"without the sources of its library. Use a full CPython, or give your own texts."
            )
        random.Random(seed).shuffle(documents)
        if max_bytes is not None:
            documents = list(_first_bytes(documents, max_bytes))
        corpus[name] = documents
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
    topics = _topics(library / "pydoc_data" / "topics.py")
    return code, _once(topics + docstrings)


def _first_bytes(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    remaining = max_bytes
    for document in documents:
        data = document.encode()[:remaining]
        # A character that the cut goes through is left out.
        yield data.decode(errors="ignore")
        remaining -= len(data)
        if remaining == 0:
            return


# Modules.


def _modules(library: Path) -> list[Path]:
    """The modules, sorted by name."""
    modules = []
    for folder, folders, names in os.walk(library):
        # Assigned in place, so that the walk does not enter the others. site-packages can be large.
        folders[:] = filter(_is_wanted_folder, folders)
        modules += [Path(folder, name) for name in names if _is_wanted_file(name)]
    return sorted(modules, key=lambda path: path.relative_to(library).as_posix())


def _is_wanted_folder(name: str) -> bool:
    # `config-…`, and `_sysconfigdata…` below, describe one machine.
    return name not in _NOT_CODE and not name.startswith("config-")


def _is_wanted_file(name: str) -> bool:
    return name.endswith(".py") and not name.startswith("_sysconfigdata")


def _separate(path: Path) -> tuple[str, list[str]]:
    """A module's code, with long docstrings cut to their first line, and their prose."""
    try:
        with python_tokens.open(path) as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        # A few files of some distributions are templates, or bad on purpose.
        return "", []
    # Columns of the syntax tree count bytes, so the source is cut as bytes.
    source_bytes = source.encode()
    line_starts = _line_starts(source_bytes)
    pieces: list[bytes] = []
    prose: list[str] = []
    position = 0
    for node in _docstrings(tree):
        begin = line_starts[node.lineno - 1] + node.col_offset
        end = line_starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        text = _without_examples(inspect.cleandoc(str(node.value)))
        summary = _summary(source_bytes[begin:end].decode())
        if len(text) >= _LONG and summary:
            pieces += [source_bytes[position:begin], summary.encode()]
            prose.append(text)
            position = end
    pieces.append(source_bytes[position:])
    return b"".join(pieces).decode(), prose


def _line_starts(source: bytes) -> list[int]:
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _docstrings(tree: ast.Module) -> list[ast.Constant]:
    """The docstrings of a module, its classes and its functions, in the order of their lines."""
    constants = []
    for node in _statements(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            assert isinstance(first.value, ast.Constant)
            constants.append(first.value)
    return sorted(constants, key=lambda constant: (constant.lineno, constant.col_offset))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """A module and all statements in it; expressions, which are most nodes, hold no docstrings."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for part in ("body", "handlers", "cases", "orelse", "finalbody"):
            waiting += getattr(node, part, ())


def _summary(literal: str) -> str | None:
    """A docstring's literal up to its first line of text.

    ``None`` if it is not one triple-quoted string.
    """
    quotes = literal[-3:]
    if quotes not in ('"""', "'''"):
        return None
    beginning = ""
    for line in literal[:-3].splitlines():
        beginning += line
        has_text = bool(line.strip(" rRuU\"'\\"))
        if has_text:
            break
        beginning += "\n"
    # A quote mark at the end must not run into the closing ones.
    space = " " if beginning.endswith(quotes[0]) else ""
    summary = beginning + space + quotes
    try:
        value = ast.literal_eval(summary)
    except SyntaxError:
        return None
    return summary if isinstance(value, str) else None


# Prose.


def _topics(path: Path) -> list[str]:
    """The topics of the language reference.

    The longest comes first, because it contains shorter ones, whose paragraphs are then left out.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        topics = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        texts = ast.literal_eval(topics).values()
    except (OSError, SyntaxError, ValueError, StopIteration, AttributeError):
        # Some distributions leave the topics out; the docstrings remain.
        return []
    prose = [_without_examples(text) for text in texts]
    return sorted(prose, key=lambda text: (-len(text), text))


def _without_examples(text: str) -> str:
    """A text without its interactive examples, which are code."""
    paragraphs = text.split("\n\n")
    without_examples = [paragraph for paragraph in paragraphs if ">>> " not in paragraph]
    return "\n\n".join(without_examples).strip()


def _once(documents: Iterable[str]) -> list[str]:
    """The documents without long paragraphs that occurred earlier."""
    long_paragraphs: set[str] = set()
    shortened = []
    for document in documents:
        new_paragraphs = []
        for paragraph in document.split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in long_paragraphs:
                new_paragraphs.append(paragraph)
            if len(words) >= _LONG_PARAGRAPH:
                long_paragraphs.add(words)
        shortened.append("\n\n".join(new_paragraphs))
    return shortened
