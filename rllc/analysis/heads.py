"""Names of attention heads: ``"1:6"`` is head 6 of layer 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rllc.errors import InputError, nearest
from rllc.plots.figures import starts
from rllc.weights.names import head_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS_ON_ONE_LINE = 16
"""With more heads than these, the labels of an axis are turned so that they do not overlap."""


def name_of(head: tuple[int, int]) -> str:
    """The name of a head.

    >>> name_of((1, 6))
    '1:6'
    """
    layer, number = head
    return f"{layer}:{number}"


def numbers_of(name: str) -> tuple[int, int]:
    """Layer and head of a name.

    >>> numbers_of("1:6")
    (1, 6)

    Raises:
        InputError: it is a head of one of several kinds of attention (``"decoder.cross.1:6"``).
    """
    layer, _, number = name.partition(":")
    if not layer.isdigit():
        raise InputError(
            f"head {name!r}: expected a head such as '1:6', of a model with one kind of attention."
        )
    return int(layer), int(number)


def names_of_all(n_layers: int, n_heads: int) -> tuple[str, ...]:
    """The names of all heads, layer by layer.

    >>> names_of_all(2, 2)
    ('0:0', '0:1', '1:0', '1:1')
    """
    return tuple(name_of(head) for head in np.ndindex(n_layers, n_heads))


def index_of(
    head: str,
    heads: Sequence[str],
    result: str,
) -> int:
    """The index of a head in a list of names.

    >>> index_of("L1H6", ["0:0", "1:6"], "scores")
    1

    Args:
        head: written in any accepted way.
        heads: the names to look in.
        result: what errors call the thing that was indexed.

    Raises:
        InputError: no such head.
    """
    name = head_name(head)
    if name is None or name not in heads:
        raise InputError(f"{result}[{head!r}]: no such head; {nearest(head, heads)}")
    return list(heads).index(name)


def layer_starts(heads: Sequence[str]) -> list[int]:
    """The indices at which a list of heads, or of other weights, goes on to another layer.

    >>> layer_starts(["0:0", "0:1", "1:0", "cross.1:0"])
    [2, 3]
    """
    names = [head_name(written) for written in heads]
    layers = [name.partition(":")[0] if name else None for name in names]
    return starts(layers)


def label_heads(ax: Axes, heads: Sequence[str]) -> None:
    """Write the names of heads under the x axis, one a unit."""
    rotation = 0 if len(heads) <= _LABELS_ON_ONE_LINE else 90
    ax.set_xticks(range(len(heads)), heads, rotation=rotation)
