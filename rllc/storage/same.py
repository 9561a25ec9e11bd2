"""Whether two results are the same, after a file or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def same(first: Any, second: Any) -> bool:
    """Whether two values hold the same numbers and names.

    A list equals a tuple, because a file gives back lists. NaN equals NaN, because it stands for
    what is not known.

    >>> same({"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.nan])})
    True
    >>> same(((1, 2), "x"), [[1, 3], "x"])
    False
    """
    if _both_are(np.ndarray, first, second):
        have_nan = first.dtype.kind in "fc" and second.dtype.kind in "fc"
        return np.array_equal(first, second, equal_nan=have_nan)
    if _both_are(Mapping, first, second):
        if first.keys() != second.keys():
            return False
        return all(same(first[key], second[key]) for key in first)
    if _both_are((list, tuple), first, second):
        return len(first) == len(second) and all(map(same, first, second))
    if is_dataclass(first) and type(first) is type(second):
        names = [field.name for field in fields(first) if field.compare]
        return all(same(getattr(first, name), getattr(second, name)) for name in names)
    if _both_are(float, first, second) and math.isnan(first):
        return math.isnan(second)
    return bool(first == second)


def _both_are(kind: type | tuple[type, ...], first: Any, second: Any) -> bool:
    return isinstance(first, kind) and isinstance(second, kind)
