"""One family of errors.

Every message says what was being done, what was expected, what was got and what to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_MOST_LISTED = 8
"""How many names a message lists when none is close to the mistyped one."""

_MOST_SUGGESTIONS = 3

# Finding similar names takes time in proportion to their number and length, and nobody should wait
# for an error.
_MOST_COMPARED = 2000
_MOST_CHARACTERS = 200


class RllcError(Exception):
    """Every error that rllc raises on purpose."""


class InputError(RllcError, ValueError):
    """An argument cannot be used; raised before any chain runs. Also a ``ValueError``."""


class ObservationError(RllcError, RuntimeError):
    """An observable raised, or gave what it must not. Also a ``RuntimeError``.

    ``error.name`` is the observable's name. ``error.draws`` are the draws so far, with the states
    of their chains and without that observable: ``rllc.sample(..., resume=error.draws)`` goes on.
    It is ``None`` when no draw was made yet.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.draws: Any = None


class FileError(RllcError, RuntimeError):
    """A file or hub repository is missing, damaged, unsafe or not what it should be.

    Also a ``RuntimeError``.
    """


def nearest(name: object, known: Iterable[object]) -> str:
    """The known names closest to a mistyped one, for error messages.

    >>> nearest("blocks.0.atn.W_Q", ["blocks.0.attn.W_Q", "embed.W_E"])
    "did you mean 'blocks.0.attn.W_Q'?"
    """
    names = [str(known_name)[:_MOST_CHARACTERS] for known_name in known]
    mistyped = str(name)[:_MOST_CHARACTERS].casefold()
    # A wrong case is the likeliest mistake, so names are compared without it.
    by_folded = {known_name.casefold(): known_name for known_name in names}
    candidates = list(by_folded)[:_MOST_COMPARED]
    similar = difflib.get_close_matches(mistyped, candidates, n=_MOST_SUGGESTIONS, cutoff=0.5)
    if similar:
        suggestions = " or ".join(repr(by_folded[folded]) for folded in similar)
        return f"did you mean {suggestions}?"
    return f"known: {shortened([repr(known_name) for known_name in names], _MOST_LISTED)}"


def shortened(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list, and how many there are.

    >>> shortened(["a", "b", "c"], most=2)
    'a, b, … (3 in all)'
    """
    listed = ", ".join(names[:most])
    if len(names) <= most:
        return listed
    return f"{listed}, … ({len(names)} in all)"


def must_be(doing: str, argument: str, value: object, right: bool, expected: str) -> None:
    """Raise ``InputError`` unless an argument is right.

    >>> must_be("head", "layer", "x", False, "a whole number")
    Traceback (most recent call last):
    rllc.errors.InputError: head: `layer` must be a whole number; got 'x'.

    Args:
        doing: what was being done, such as a function's name.
        argument: the argument's name.
        value: its value.
        right: whether the value can be used.
        expected: in words, which values can be used.
    """
    if right:
        return
    raise InputError(f"{doing}: `{argument}` must be {expected}; got {kind_of(value)}.")


def is_real(value: object) -> bool:
    """Whether a value is a plain number, and neither a boolean nor NaN.

    >>> is_real(0.5), is_real(True), is_real("1")
    (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value


def one_of(value: object, choices: Iterable[object]) -> bool:
    """Whether a value is one of the choices, which are texts or ``None``. Arrays never are.

    >>> one_of("adamw", ["adamw", "muon"]), one_of(3, ["adamw", "muon"])
    (True, False)
    """
    return (value is None or isinstance(value, str)) and value in choices


def kind_of(value: object) -> str:
    """A value in few words, for messages: a short value itself, else its kind.

    >>> kind_of(3), kind_of({}), kind_of(int)
    ('3', 'dict', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    is_plain = value is None or isinstance(value, int | float | str | bytes)
    if is_plain and len(repr(value)) < 60:
        return repr(value)
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{kind} of shape {tuple(shape)} and dtype {value.dtype}"
    return kind


def first_line(error: BaseException) -> str:
    """The first line of another library's error, some of which append pages.

    >>> first_line(ValueError("no such file\\nhint: …"))
    'no such file'
    """
    message = str(error).strip()
    return message.partition("\n")[0] or type(error).__name__
