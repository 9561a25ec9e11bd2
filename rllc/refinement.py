"""What is refined: a pair of which weights and which data; and the product of several of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.weights import Weights, everything, head

Rows = Tokens | tuple[Tensor, ...]
"""Data in one of two forms: token rows, or tensors with one leading dimension (inputs and targets, say)."""

WeightsLike = Weights | str | Iterable["Weights | str"] | Mapping[str, "Weights | str"] | None
DataLike = (
    Tokens | Tensor | tuple[Tensor, ...] | Mapping[str, "Tokens | Tensor | tuple[Tensor, ...]"]
)


@dataclass(frozen=True, eq=False)
class Refinement:
    """Which weights and which data an LLC is about.

    (everything, training data) is the LLC, (head, training data) a weight-refined LLC, (everything, code) a data-refined
    one, (head, code) both.
    """

    weights: Weights
    data: Rows
    data_name: str

    @property
    def name(self) -> tuple[str, str]:
        """``(weights, data)``, as tables and ``estimate[…]`` use it."""
        return self.weights.name, self.data_name


def product(weights: WeightsLike, data: DataLike) -> list[Refinement]:
    """Every choice of weights with every data set, weights varying slowest.

    >>> rows = torch.zeros(4, 3, dtype=torch.long)
    >>> [r.name for r in product(["0:1", "1:6"], {"code": rows, "prose": rows})][:2]
    [('0:1', 'code'), ('0:1', 'prose')]

    Args:
        weights: one :class:`Weights`, a list of them, or a dict that also names them; a string is a head. ``None`` is
            :func:`rllc.everything`.
        data: :class:`rllc.Tokens`, a tensor of token rows ``[row, pos]``, a tuple of tensors with one leading dimension,
            or a dict of these that names them.

    Raises:
        InputError: nothing is selected, two have one name, or the data is not of one of these forms.
    """
    named_data = dict(_named_data(data))
    return [
        Refinement(w, rows, name)
        for w in _list_weights(weights)
        for name, rows in named_data.items()
    ]


def take(data: Rows, rows: Tensor, device: torch.device) -> Tensor | tuple[Tensor, ...]:
    """The minibatch of the given rows: ``[batch, pos]`` token ids (int64), or a tuple of ``[batch, …]`` tensors.

    A tuple of one tensor gives that tensor, so that a loss for one input reads naturally.
    """
    if isinstance(data, Tokens):
        return _to(data.rows[rows].long(), device)
    batch = tuple(_to(part[rows.to(part.device)], device) for part in data)
    return batch[0] if len(batch) == 1 else batch


def _to(batch: Tensor, device: torch.device) -> Tensor:
    if (
        device.type == "cuda" and batch.device.type == "cpu"
    ):  # from other memory the copy would wait for earlier steps
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def num_rows(data: Rows) -> int:
    """How many examples there are."""
    return len(data) if isinstance(data, Tokens) else len(data[0])


def fingerprint(data: Rows) -> str:
    """SHA-256 of the contents, whatever their name."""
    if isinstance(data, Tokens):
        return data.fingerprint
    digest = hashlib.sha256()
    for part in data:
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprints(refinements: Iterable[Refinement]) -> dict[str, str]:
    """The fingerprint of each data set, by name."""
    return {
        r.data_name: fingerprint(r.data) for r in {r.data_name: r for r in refinements}.values()
    }


def _list_weights(weights: WeightsLike) -> list[Weights]:
    if weights is None:
        return [everything()]
    if isinstance(weights, Weights | str):
        weights = [weights]
    if not isinstance(weights, Iterable):
        told = (
            "rllc.heads is a function of the model: write rllc.heads(model)"
            if callable(weights)
            else "see rllc.Weights"
        )
        raise InputError(
            f"`weights` must be rllc.Weights, a list or a dict of them, got {type(weights).__name__}; {told}."
        )
    if isinstance(weights, Mapping):
        listed = [_one(w).named(str(name)) for name, w in weights.items()]
    else:
        listed = [_one(w) for w in weights]
    names = [w.name for w in listed]
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        problem = f"{twice} each name more than one selection" if twice else "the list is empty"
        raise InputError(
            f"`weights`: {problem}; pass a dict {{name: weights}} with one name a selection."
        )
    return listed


def _one(weights: Weights | str) -> Weights:
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, str):
        return head(weights)
    raise InputError(
        f"`weights` must be rllc.Weights, such as rllc.head('1:6') or rllc.parameters('*.W_Q'), got "
        f"{type(weights).__name__}; for boolean masks use rllc.masks({{parameter: mask}})."
    )


def _named_data(data: DataLike) -> Iterable[tuple[str, Rows]]:
    if isinstance(data, Mapping):
        if not data:
            raise InputError("`data`: the dict is empty; pass at least one named data set.")
        if len({str(name) for name in data}) < len(data):
            raise InputError(
                f"`data`: of the names {list(data)}, written out, two are the same; rename one."
            )
        return [(str(name), _rows(one, str(name))) for name, one in data.items()]
    return [(data.name if isinstance(data, Tokens) else "data", _rows(data, "data"))]


def _rows(data: object, name: str) -> Rows:
    if isinstance(data, Tokens):
        return data
    if isinstance(data, Tensor) and data.dim() == 2 and not data.is_floating_point():
        return Tokens(data, name=name)
    parts = (data,) if isinstance(data, Tensor) else data
    if (
        not isinstance(parts, tuple)
        or not parts
        or not all(isinstance(p, Tensor) and p.dim() > 0 for p in parts)
    ):
        raise InputError(
            f"`data` {name!r} must be rllc.Tokens, a tensor [row, pos] of token ids, a tuple of tensors with one leading "
            f"dimension, or a dict of these; got {type(data).__name__}."
        )
    lengths = [len(p) for p in parts]
    if min(lengths) == 0 or len(set(lengths)) > 1:
        raise InputError(
            f"`data` {name!r}: expected tensors with one leading dimension of at least 1, got {lengths}."
        )
    return parts
