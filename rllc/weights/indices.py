"""Indices as values that can be hashed: slices cannot before Python 3.12, lists never can."""

from __future__ import annotations

from typing import Any

from rllc.errors import InputError

IndexPart = int | slice | list[int]

Index = IndexPart | tuple[IndexPart, ...]
"""Part of a tensor, as in ``tensor[index]``."""

FrozenIndex = tuple[Any, ...]
"""An index as plain values: integers, ``("slice", start, stop, step)``, ``("list", 0, 3, 5)``."""


def frozen(index: Index) -> FrozenIndex:
    """Make an index a value.

    >>> frozen((3, slice(2, 5)))
    (3, ('slice', 2, 5, None))

    Raises:
        InputError: it is of something else than integers, slices and one list of integers.
    """
    parts: list[Any] = []
    for part in _as_tuple(index):
        if isinstance(part, list) and all(type(number) is int for number in part):
            parts.append(("list", *part))
        elif isinstance(part, slice):
            parts.append(("slice", part.start, part.stop, part.step))
        elif isinstance(part, int) and not isinstance(part, bool):
            parts.append(part)
        else:
            raise InputError(
                f"parameters(index={index!r}): expected integers, slices and a list of integers; "
                f"for a boolean mask use rllc.masks."
            )
    num_lists = sum(isinstance(part, list) for part in _as_tuple(index))
    if num_lists > 1 or ("list",) in parts:
        raise InputError(
            f"parameters(index={index!r}): one list of integers at most, and not an empty one; "
            f"join selections with parameters(…) | parameters(…)."
        )
    return tuple(parts)


def thawed(index: FrozenIndex) -> Index:
    """Make the index again of which :func:`frozen` made a value.

    >>> thawed((3, ("slice", 2, 5, None)))
    (3, slice(2, 5, None))
    """
    return tuple(_thawed_part(part) for part in index)


def written(index: Index) -> str:
    """Write the index as behind a tensor.

    >>> written((3, slice(2, 5)))
    '[3, 2:5]'
    """
    parts = [_written_part(part) for part in _as_tuple(index)]
    return f"[{', '.join(parts)}]"


def _as_tuple(index: Index) -> tuple[IndexPart, ...]:
    return index if isinstance(index, tuple) else (index,)


def _thawed_part(part: Any) -> IndexPart:
    if not isinstance(part, tuple):
        return part
    kind, *numbers = part
    return slice(*numbers) if kind == "slice" else numbers


def _written_part(part: IndexPart) -> str:
    if not isinstance(part, slice):
        return str(part)
    start = "" if part.start is None else part.start
    stop = "" if part.stop is None else part.stop
    step = "" if part.step is None else f":{part.step}"
    return f"{start}:{stop}{step}"
