"""Paths through a model: from a head to an input of a later head, to the logits, or everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from rllc.analysis.heads import name_of, names_of_all, numbers_of
from rllc.analysis.rows import check_model, is_own
from rllc.anatomy import anatomy
from rllc.errors import InputError, nearest
from rllc.weights.names import head_name

INPUTS = ("Q", "K", "V")
"""The inputs of a head: its queries, keys and values read the residual stream."""

_RECEIVER = re.compile(r"(.+)\.([QKVqkv])")


class Path(NamedTuple):
    """A path from a head: to one input of a later head, to the logits, or to everything.

    >>> str(Path.parse("L0H4 -> 1:6.K")), Path.parse("0:4->logits").receiver
    ('0:4->1:6.K', None)
    """

    sender: tuple[int, int]
    """Layer and head."""
    receiver: tuple[int, int] | None = None
    """Layer and head; ``None`` for the logits and for everything."""
    input: str = "everything"
    """``"Q"``, ``"K"``, ``"V"``, ``"logits"`` or ``"everything"``."""

    @classmethod
    def parse(cls, written: str) -> Path:
        """Read ``"0:4"`` (all that head 0:4 writes), ``"0:4->1:6.K"`` or ``"0:4->logits"``.

        A path is direct: the sender's term of the residual stream, as the receiver reads it.

        Raises:
            InputError: it is not written like that, or the receiver is not in a later layer.
        """
        start, arrow, end = (part.strip() for part in str(written).partition("->"))
        sender = head_name(start)
        match = _RECEIVER.fullmatch(end)
        receiver = head_name(match[1]) if match else None
        has_end = receiver is not None or end == "logits"
        if sender is None or (arrow and not has_end):
            raise InputError(
                f"path {written!r}: expected a head such as '0:4', or a path such as '0:4->1:6.K' "
                f"(Q, K or V) or '0:4->logits'."
            )
        if not arrow:
            return cls(numbers_of(sender))
        if receiver is None:
            return cls(numbers_of(sender), None, "logits")
        assert match is not None
        path = cls(numbers_of(sender), numbers_of(receiver), match[2].upper())
        assert path.receiver is not None
        if path.receiver[0] <= path.sender[0]:
            raise InputError(
                f"path {written!r}: the receiver must be in a later layer than the sender; heads "
                f"of one layer do not read each other."
            )
        return path

    def first_changed_layer(self, n_layers: int) -> int:
        """The first layer that computes something else when the path carries another value.

        It is ``n_layers`` for a path to the logits, which changes no layer.
        """
        if self.input == "logits":
            return n_layers
        if self.receiver is None:
            return self.sender[0]
        return self.receiver[0]

    def __str__(self) -> str:
        sender = name_of(self.sender)
        if self.input == "everything":
            return sender
        if self.receiver is None:
            return f"{sender}->logits"
        return f"{sender}->{name_of(self.receiver)}.{self.input}"


def check_paths(
    model: nn.Module,
    paths: Iterable[str | Path],
    caller: str,
) -> tuple[Path, ...]:
    """Paths of a model, parsed, without duplicates.

    Args:
        model: its heads are those that paths may name.
        paths: one or several, as text or parsed.
        caller: the function that error messages name.

    Raises:
        InputError: there is none, one cannot be parsed, or the model lacks a head.
    """
    if isinstance(paths, str | Path):  # a Path is a tuple too
        paths = [paths]
    parsed = [path if isinstance(path, Path) else Path.parse(path) for path in paths]
    if not parsed:
        raise InputError(
            f"{caller}: no heads or paths; name at least one, such as '0:4' or '0:4->1:6.K'."
        )
    heads = _heads_of(model)
    for path in parsed:
        _check_heads(path, heads, caller)
    return tuple(dict.fromkeys(parsed))


def _check_heads(
    path: Path,
    heads: tuple[str, ...],
    caller: str,
) -> None:
    for head in (path.sender, path.receiver):
        if head is not None and name_of(head) not in heads:
            raise InputError(
                f"{caller}: path '{path}': the model has no head {name_of(head)!r}; "
                f"{nearest(name_of(head), heads)}"
            )


def _heads_of(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's heads."""
    if is_own(model):
        config = check_model(model, "paths").config
        return names_of_all(config.n_layers, config.n_heads)
    return anatomy(model).heads


def all_paths(model: nn.Module) -> tuple[Path, ...]:
    """All direct paths: from each head to each input of each later head, and to the logits."""
    heads = [numbers_of(name) for name in _heads_of(model)]
    paths = []
    for sender in heads:
        for receiver in heads:
            if sender[0] < receiver[0]:
                paths += [Path(sender, receiver, letter) for letter in INPUTS]
    return (*paths, *(Path(head, None, "logits") for head in heads))
