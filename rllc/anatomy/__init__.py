"""Where models keep their attention heads: rows of data, and the check that holds them to models.

Rows are in :mod:`rllc.anatomy.rows`; they become slices in :mod:`rllc.anatomy.reading`; slices are
verified in :mod:`rllc.anatomy.verify`. For other types :mod:`rllc.anatomy.guess` tries likely ones.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence

from torch import nn

from rllc.anatomy import inputs
from rllc.anatomy.attention import Anatomy, Attention, Map
from rllc.anatomy.reading import bridge_rows, is_bridge, multihead_rows, read
from rllc.anatomy.rows import MULTIHEAD, ROWS, TRANSFORMER_LENS, AttentionRow, Rows
from rllc.anatomy.unknown import no_row
from rllc.anatomy.verify import verify
from rllc.errors import InputError, kind_of
from rllc.wrappers import unwrapped

__all__ = ["Anatomy", "Attention", "AttentionRow", "Map", "anatomy"]

RowLike = AttentionRow | Sequence[AttentionRow] | None
"""Rows as users give them: one, several, or none for the rows that are known."""

_QUERIES = re.compile(r"(?:.*\.)?blocks\.\d+\.attn\.W_Q")

_VERIFIED: weakref.WeakKeyDictionary[nn.Module, dict[object, Anatomy]] = weakref.WeakKeyDictionary()
"""The verified anatomies of a model, by rows and by the shapes of its parameters."""


def anatomy(model: nn.Module, row: RowLike = None, *, example: object = None) -> Anatomy:
    """Where a model keeps its attention heads, verified by running it.

    >>> anatomy(nn.MultiheadAttention(8, 2)).heads
    ('0:0', '0:1')

    The first call with a model holds the rows for its ``config.model_type`` against the model (see
    :mod:`rllc.anatomy.verify`); later calls are free. Models with TransformerLens's names of
    parameters, TransformerLens 4's bridges and models with ``nn.MultiheadAttention`` have rows too.

    Args:
        model: any transformer. Nothing of it changes: no weight, gradient, mode or random state.
        row: for models of other types, or of another layout: an :class:`rllc.AttentionRow`, or
            several (self and cross attention, towers).
        example: a small batch, as the model is called with (a tensor, a tuple of arguments or a
            dict of them), where none can be made up: verification runs the model once.

    Returns:
        :class:`Anatomy`; its ``heads`` are the names that :func:`rllc.head` takes.

    Raises:
        InputError: the type is not known (the message shows the attention modules, and a row that
            was guessed and verified, or is to be filled in), a row is wrong for this model, or the
            model cannot be run.
    """
    model = unwrapped(model)
    own_rows = as_rows(row)
    call = None if example is None else inputs.given(example)
    verified = _VERIFIED.setdefault(model, {})
    shapes = tuple((name, tuple(value.shape)) for name, value in model.named_parameters())
    key = (own_rows, shapes)
    if key not in verified:
        if own_rows:
            kind, rows = _kind(model), own_rows
        else:
            kind, rows = rows_of(model)
        described = read(model, rows, kind) if rows else None
        if described is None:
            raise no_row(model, kind, own_rows, call)
        verify(model, described, call)
        verified[key] = described
    return verified[key]


def as_rows(row: RowLike) -> Rows:
    """Rows as a tuple.

    Raises:
        InputError: they are something else.
    """
    if row is None:
        return ()
    if isinstance(row, AttentionRow):
        return (row,)
    rows = tuple(row) if isinstance(row, list | tuple) else (row,)
    for each in rows or (row,):
        if not isinstance(each, AttentionRow):
            raise InputError(
                f"anatomy: expected an rllc.AttentionRow or a list of them, got {kind_of(each)}; "
                f"write one as in rllc.AttentionRow('layers.*.attn', q='q_proj', k='k_proj', "
                f"v='v_proj', o='o_proj', heads=8)."
            )
    return rows


def rows_of(model: nn.Module) -> tuple[str, Rows]:
    """The type that a model is recognised as, and its rows; none where the type is not known."""
    kind = _kind(model)
    if any(is_bridge(module) for module in model.modules()):
        mixed = ROWS[kind][0].mixed if kind in ROWS else ()
        return f"TransformerBridge of {kind}", bridge_rows(model, mixed)
    if kind in ROWS:
        return kind, ROWS[kind]
    if any(_QUERIES.fullmatch(name) for name, _ in model.named_parameters()):
        return "TransformerLens", TRANSFORMER_LENS
    if not hasattr(getattr(model, "config", None), "model_type"):
        return kind, multihead_rows(model, MULTIHEAD)
    return kind, ()


def _kind(model: nn.Module) -> str:
    """A model's type, or its class."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
