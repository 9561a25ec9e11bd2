"""Refinements: a pair of which weights and which data; and the product of several of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rllc.data.data import Data
from rllc.data.given import as_data, is_batch
from rllc.errors import InputError
from rllc.weights.names import check_name, head_name
from rllc.weights.selection import Weights, default_weights, everything, head

WeightsLike = Weights | str | Iterable[Weights | str] | Mapping[str, Weights | str] | None
"""Weights as users give them; see :func:`product`."""

_SHOWN = 60
"""Characters of a mistyped name that a message shows."""

DataLike = Any
"""Data as users give them: what :func:`rllc.data.as_data` takes, or a dict of it by name."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """Which weights and which data an LLC is about.

    (everything, training data) is the LLC, (head, training data) a weight-refined LLC, (everything,
    code) a data-refined one, (head, code) both.
    """

    weights: Weights
    data: Data
    data_name: str

    @property
    def name(self) -> tuple[str, str]:
        """``(weights, data)``, as tables and ``estimate[…]`` use it."""
        return self.weights.name, self.data_name


def product(
    weights: WeightsLike, data: DataLike, model: nn.Module | None = None
) -> list[Refinement]:
    """Every choice of weights with every data set, weights varying slowest.

    >>> rows = as_data([[0, 1, 2]] * 4)
    >>> [r.name for r in product(["0:1", "1:6"], {"code": rows, "prose": rows})][:2]
    [('0:1', 'code'), ('0:1', 'prose')]

    Args:
        weights: one :class:`Weights`, a list of them, or a dict that also names them; a string is a
            head. ``None`` is :func:`rllc.everything`, or :func:`rllc.trainable` if some weights of
            ``model`` are frozen and some are not.
        data: what :func:`rllc.data.as_data` takes: rows, a tokenizer's output, (inputs, labels),
            a DataLoader, …; or a dict of these that names them.
        model: decides what ``None`` is.

    Raises:
        InputError: nothing is selected, two have one name, or the data is not of one of these
            forms.
    """
    data_sets = named_data(data)
    if weights is None and model is not None:
        weights = default_weights(model)
    refinements = []
    for selection in _list_weights(weights):
        for name, data_set in data_sets.items():
            refinements.append(Refinement(selection, data_set, name))
    return refinements


def fingerprints(refinements: Iterable[Refinement]) -> dict[str, str]:
    """The fingerprint of each data set, by name."""
    data = {refinement.data_name: refinement.data for refinement in refinements}
    return {name: data_set.fingerprint for name, data_set in data.items()}


def _list_weights(weights: WeightsLike) -> list[Weights]:
    if weights is None:
        return [everything()]
    if isinstance(weights, Weights | str):
        return [_selection(weights)]
    if not isinstance(weights, Iterable):
        raise InputError(
            f"`weights` must be rllc.Weights, a list or a dict of them, got "
            f"{type(weights).__name__}; {_advice(weights)}."
        )
    if isinstance(weights, Mapping):
        selections = [_selection(choice).named(str(name)) for name, choice in weights.items()]
    else:
        selections = [_selection(choice) for choice in weights]
    _check_names([selection.name for selection in selections])
    return selections


def _advice(weights: object) -> str:
    if callable(weights):
        return "rllc.heads is a function of the model: write rllc.heads(model)"
    return "see rllc.Weights"


def _selection(weights: Weights | str) -> Weights:
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, str):
        if head_name(weights) is None and weights.strip():
            raise InputError(
                f"`weights`: {_short(weights)} is no head; expected a head such as '1:6' or "
                f"'L1H6'. For parameters by name, patterns too, type "
                f"rllc.parameters({_short(weights)})."
            )
        return head(weights)
    raise InputError(
        f"`weights` must be rllc.Weights, such as rllc.head('1:6') or rllc.parameters('*.W_Q'), "
        f"got {type(weights).__name__}; for boolean masks use rllc.masks({{parameter: mask}})."
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")


def _check_names(names: list[str]) -> None:
    for name in names:
        check_name(name, "`weights`")
    # A head may be written in several ways, of which each finds it.
    written = Counter(head_name(name) or name for name in names)
    repeated = sorted(name for name, count in written.items() if count > 1)
    if names and not repeated:
        return
    problem = f"{repeated} each name more than one selection" if repeated else "the list is empty"
    raise InputError(
        f"`weights`: {problem}; pass a dict {{name: weights}} with one name a selection."
    )


def named_data(data: DataLike) -> dict[str, Data]:
    """Make data sets of what was given, by name.

    What it gives can be given again, and is not read a second time.

    Raises:
        InputError: the data is empty, of an unknown form, or two have one name.
    """
    if not isinstance(data, Mapping) or is_batch(data):
        data_set = as_data(data)
        check_name(data_set.name, "`data`")
        return {data_set.name: data_set}
    if not data:
        raise InputError("`data`: the dict is empty; pass at least one named data set.")
    named = {}
    for key, data_set_of_name in data.items():
        name = str(key)
        named[name] = _of_one_name(name, data_set_of_name)
    for name in named:
        check_name(name, "`data`")
    if len(named) < len(data):
        raise InputError(
            f"`data`: of the names {list(data)}, written out, two are the same; rename one."
        )
    return named


def _of_one_name(name: str, data: Any) -> Data:
    # A data set keeps its own name; the dict's is the refinement's.
    return data if isinstance(data, Data) else as_data(data, name)
