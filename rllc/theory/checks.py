"""Which numbers can be counts and ranks."""

from __future__ import annotations

import operator
from typing import Any

from rllc.errors import InputError


def count(name: str, value: Any, least: int = 1) -> int:
    """Return an argument as an integer.

    Raises:
        InputError: it is no integer, or below ``least``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"rllc.theory: {name} must be an integer ≥ {least}; got {value!r}.")
    return number


def check_rank(function: str, name: str, value: Any, least: int, most: int) -> None:
    """Raise InputError unless the argument of a function is a possible rank."""
    number = count(name, value, least=0)
    if not least <= number <= most:
        raise InputError(
            f"{function}: {name} must be a possible rank, {least} … {most} for these widths; "
            f"got {number}."
        )
