"""Names of heads, and of the (weights, data) pairs along a result's refinement axis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from rllc.errors import InputError, nearest

_HEAD = re.compile(r"(?:[lL]?(\d+)\s*[:.]\s*(\d+)|[lL](\d+)[hH](\d+))$")
_HEAD_OF_TOWER = re.compile(
    r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.(?:[lL]?(\d+)\s*:\s*(\d+)|[lL](\d+)[hH](\d+))$"
)
_PATTERN_OF_HEADS = re.compile(r"[lL]([\d*?]+)[hH]([\d*?]+)$")

LONGEST_NAME = 500
"""Characters. A circuit of sixty heads has such a name; files, tables and pages can show it."""


def check_name(name: object, what: str) -> None:
    """Refuse a name that files, tables or terminals cannot hold: the one rule for all names.

    >>> check_name("induction circuit", "weights")

    Args:
        name: of weights, data or an observable.
        what: what it names, for the error.

    Raises:
        InputError: it is not a text of 1 to 500 printable characters, begins or ends with a space,
            or ends in ``.npy``, which NumPy adds to names in its files.
    """
    shown = type(name).__name__
    if isinstance(name, str):
        has_length = 0 < len(name) <= LONGEST_NAME
        is_plain = name.isprintable() and name == name.strip()
        if has_length and is_plain and not name.endswith(".npy"):
            return
        shown = ascii(name)
    if len(shown) > 60:
        shown = f"{shown[:60]}… ({len(shown)} characters)"
    raise InputError(
        f"{what}: a name must be a text of 1 to {LONGEST_NAME} printable characters without spaces "
        f"around it, and not end in '.npy'; got {shown}. Rename it."
    )


def head_name(written: str) -> str | None:
    """The name ``"1:6"`` of a head written in any accepted way; ``None`` for what is not a head.

    >>> head_name("L1H6"), head_name("decoder.L1H6"), head_name("embed.W_E")
    ('1:6', 'decoder.1:6', None)
    """
    written = written.strip()
    match = _HEAD.match(written)
    if match is not None:
        layer, head = _numbers(match.groups())
        return written_head("", layer, head)
    match = _HEAD_OF_TOWER.match(written)
    if match is None:
        return None
    tower, *digits = match.groups()
    layer, head = _numbers(digits)
    return written_head(tower, layer, head)


def _numbers(groups: Iterable[str | None]) -> list[int]:
    """The numbers among the groups of a match, of which some have matched nothing."""
    return [int(digits) for digits in groups if digits is not None]


def written_head(tower: str, layer: int, head: int | str) -> str:
    """The name of a head, or of a group of heads.

    >>> written_head("", 1, 6), written_head("decoder", 1, "kv0")
    ('1:6', 'decoder.1:kv0')
    """
    name = f"{layer}:{head}"
    return f"{tower}.{name}" if tower else name


def parts_of_head(name: str) -> tuple[str, int, int]:
    """Tower, layer and head of a name.

    >>> parts_of_head("decoder.1:6")
    ('decoder', 1, 6)
    """
    tower_and_layer, _, head = name.partition(":")
    tower, _, layer = tower_and_layer.rpartition(".")
    return tower, int(layer), int(head)


@dataclass(frozen=True)
class Names:
    """The names of a result's refinements, in the order of its refinement axis.

    >>> names = Names(("0:1", "1:6"), ("code", "code"))
    >>> names.index("1:6", "code")
    1
    >>> list(names)
    [('0:1', 'code'), ('1:6', 'code')]

    Args:
        weights: ``[refinement]``: the name of each refinement's weights.
        data: ``[refinement]``: the name of each refinement's data.
    """

    weights: tuple[str, ...]
    data: tuple[str, ...]

    def __post_init__(self) -> None:
        names = (*self.weights, *self.data)
        are_texts = all(isinstance(name, str) for name in names)
        if not are_texts or len(self.weights) != len(self.data):
            raise InputError(
                f"Names: expected as many texts in `weights` as in `data`, got "
                f"{len(self.weights)} and {len(self.data)}."
            )

    @classmethod
    def of(cls, pairs: Iterable[Sequence[str]]) -> Names:
        """Make names of (weights, data) pairs."""
        weights = []
        data = []
        for pair in pairs:
            weights.append(pair[0])
            data.append(pair[1])
        return cls(tuple(weights), tuple(data))

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self.weights, self.data, strict=True))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data sets, each once, in order."""
        return tuple(dict.fromkeys(self.data))

    @property
    def selections(self) -> tuple[str, ...]:
        """The choices of weights, each once, in order."""
        return tuple(dict.fromkeys(self.weights))

    def index(self, weights: str, data: str | None = None, *, of: str = "estimate") -> int:
        """Return the row of a refinement.

        Args:
            weights: a name; a head in any spelling (``"1:6"``, ``"L1H6"``).
            data: a name; ``None`` where these weights have one data set only.
            of: what the error message calls the result.

        Raises:
            InputError: there is no such refinement, or ``data`` is needed to tell which.
        """
        rows = self._rows_of(weights)
        if not rows:
            raise InputError(
                f"{of}[{weights!r}]: no such weights; {nearest(weights, self.selections)}"
            )
        data_sets = [self.data[row] for row in rows]
        if data is None and len(rows) > 1:
            raise InputError(
                f"{of}[{weights!r}]: on which data? It has {data_sets}; "
                f"type {of}[{weights!r}, {data_sets[0]!r}]."
            )
        if data is None:
            return rows[0]
        if data not in data_sets:
            raise InputError(
                f"{of}[{weights!r}, {data!r}]: no such data; {nearest(data, data_sets)}"
            )
        return rows[data_sets.index(data)]

    def select(self, weights: str | None = None, data: str | None = None) -> np.ndarray:
        """Return the rows with these weights and this data; ``None`` is any."""
        rows = list(range(len(self)))
        if weights is not None:
            rows = self._rows_of(weights)
        if data is not None:
            rows = [row for row in rows if self.data[row] == data]
        return np.array(rows, dtype=int)

    def matching(
        self,
        weights: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        layer: int | None = None,
    ) -> list[int]:
        """Return the rows whose names fit.

        Args:
            weights: a name, a pattern such as ``"1:*"`` or ``"L1H*"``, or a list of these;
                ``None`` is any.
            data: alike.
            layer: heads of this layer only; of each tower where a model has several.

        Raises:
            InputError: nothing has such a name, or no head is of this layer.
        """
        fitting_weights = self.selections
        if weights is not None:
            listed = [weights] if isinstance(weights, str) else list(weights)
            spelt = [_spelt(name) for name in listed]
            fitting_weights = _fitting("weights", spelt, self.selections)
        fitting_data = self.data_sets
        if data is not None:
            listed = [data] if isinstance(data, str) else list(data)
            fitting_data = _fitting("data", listed, self.data_sets)
        if layer is not None:
            layer_of = {}
            for name in self.selections:
                if head_name(name):
                    _, layer_of[name], _ = parts_of_head(name)
            layers = sorted(set(layer_of.values()))
            if layer not in layers:
                raise InputError(f"select(layer={layer!r}): heads are of the layers {layers}.")
            fitting_weights = tuple(name for name in fitting_weights if layer_of.get(name) == layer)
        rows = []
        for row, (weights_of_row, data_of_row) in enumerate(self):
            if weights_of_row in fitting_weights and data_of_row in fitting_data:
                rows.append(row)
        return rows

    def take(self, rows: Iterable[int]) -> Names:
        """Return the names of some rows."""
        pairs = list(self)
        return Names.of(pairs[row] for row in rows)

    def columns(self, refinements: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns ``weights`` and ``data`` of a table whose rows are of refinements.

        >>> Names(("0:1", "1:6"), ("code", "code")).columns(np.array([1, 1]))["weights"]
        array(['1:6', '1:6'], dtype=object)
        """
        weights = np.array(self.weights, dtype=object)
        data = np.array(self.data, dtype=object)
        return {"weights": weights[refinements], "data": data[refinements]}

    def _rows_of(self, weights: str) -> list[int]:
        spellings = (weights, head_name(weights))
        return [row for row, name in enumerate(self.weights) if name in spellings]


class OfRefinements:
    """A result with a row a refinement: what the weights and the data of each are called."""

    names: Names

    @property
    def weights(self) -> tuple[str, ...]:
        """``[refinement]``: the name of each refinement's weights."""
        return self.names.weights

    @property
    def data(self) -> tuple[str, ...]:
        """``[refinement]``: the name of each refinement's data."""
        return self.names.data


def is_pattern(name: str) -> bool:
    """Whether a name stands for several.

    >>> is_pattern("1:*"), is_pattern("1:6")
    (True, False)
    """
    return "*" in name or "?" in name


def _spelt(name: str) -> str:
    """A name or a pattern as results spell it: ``"L1H*"`` is ``"1:*"``."""
    head = head_name(name)
    if head is not None:
        return head
    heads = _PATTERN_OF_HEADS.match(name)
    if heads is None:
        return name
    return f"{heads[1]}:{heads[2]}"


def _fitting(what: str, wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that are wanted, or fit a wanted pattern, in their own order."""
    fitting: set[str] = set()
    for one in wanted:
        # A name that holds an asterisk itself is meant as it stands.
        is_exact = one in names or not is_pattern(one)
        if is_exact:
            matching = [name for name in names if name == one]
        else:
            matching = [name for name in names if fnmatchcase(name, one)]
        if not matching:
            suggestion = nearest(one, names)
            raise InputError(f"select({one!r}): no such {what}; {suggestion}")
        fitting.update(matching)
    return tuple(name for name in names if name in fitting)
