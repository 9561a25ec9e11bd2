"""Tables of parameters of which the quick suite takes a few, and the slow suite the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quickly(few: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """All values, those marked as slow that are not among the few."""
    marked = []
    for value in values:
        marked.append(value if value in few else pytest.param(value, marks=pytest.mark.slow))
    return marked
