"""Rows with padding, or with several documents, as documents that all begin at position 0.

A padded row must give what it gives unpadded. Then neither the side of the padding nor a model's
way with masks may matter, so the padding goes behind each document before a model sees it, where a
causal model needs no mask at all. Documents that share a row go into rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError

IGNORED = -100
"""The label of a position that is not to be predicted, as in PyTorch and transformers."""

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Documents(NamedTuple):
    """The documents of a minibatch, one a row, padding behind them."""

    tokens: Tensor
    """``[document, pos]``, int64."""
    real: Tensor | None
    """``[document, pos]``: what is no padding; ``None``: everything."""
    labels: Tensor | None
    """``[document, pos]``: what is to be predicted *at* each position, −100 for nothing; ``None``:
    the tokens themselves."""
    extras: dict[str, Tensor]
    """Further inputs of the model, by name."""
    home: Tensor | None
    """``[row, pos]``: where in ``[document · pos]`` a position of the minibatch is; −1 for padding.
    ``None``: where it was."""

    @property
    def padded(self) -> bool:
        """Whether there is padding."""
        return self.real is not None

    @property
    def num_rows(self) -> int:
        """Rows of the minibatch."""
        return len(self.tokens) if self.home is None else len(self.home)

    def wanted(self) -> Tensor:
        """Positions that are to be predicted, ``[document, pos]``."""
        wanted = torch.ones_like(self.tokens, dtype=torch.bool)
        if self.real is not None:
            wanted = wanted & self.real
        if self.labels is not None:
            wanted = wanted & (self.labels != IGNORED)
        return wanted

    def at_home(self, values: Tensor, blank: bool | float) -> Tensor:
        """Put ``values [document, pos]`` back to ``[row, pos]``; padding gets ``blank``."""
        if self.home is None:
            return values
        if not values.numel():
            return torch.full(self.home.shape, blank, dtype=values.dtype, device=values.device)
        returned = values.flatten()[self.home.clamp(min=0)]
        return torch.where(self.home >= 0, returned, blank)


def documents_of(batch: Batch, own_padding: bool = False) -> Documents:
    """Take a minibatch of token rows apart.

    >>> ids, mask = torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]])
    >>> documents_of({"input_ids": ids, "attention_mask": mask}).tokens
    tensor([[5, 6]])

    Args:
        batch: token ids ``[row, pos]``, or a dict with ``input_ids`` and perhaps

            - ``attention_mask [row, pos]``: 0 for padding, 1 for tokens; or 1, 2, … for the first,
              second … document of a row; or ``[row, pos, pos]``: who attends to whom;
            - ``labels [row, pos]``: as in transformers, −100 for what is not to be predicted;
            - ``position_ids [row, pos]``: where they fall back to 0, a new document begins;
            - ``token_type_ids`` and other inputs of the model.
        own_padding: padding keeps its token ids, as models need that look for its id; else it is 0,
            which every vocabulary has.

    Raises:
        InputError: tokens are hidden in the midst of a document, or fields do not fit.
    """
    if isinstance(batch, Tensor):
        return Documents(batch, None, None, {}, None)
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise InputError(
            f"a loss of tokens needs token ids [row, pos] or a dict with `input_ids`, got "
            f"{shown(batch)}; for other data pass a loss such as rllc.losses.classification."
        )
    tokens = batch["input_ids"].long()
    _check_fields(batch)
    numbers = _numbers_of_documents(batch)
    labels = batch.get("labels")
    by_position = {"tokens": tokens}
    extras = {}
    for name, field in batch.items():
        if name in ("input_ids", "attention_mask", "position_ids"):
            continue
        if field.shape == tokens.shape:
            by_position[name] = field
        elif name != "labels":
            extras[name] = field
    if labels is not None and "labels" not in by_position:
        # Labels of whole rows are not the tokens'.
        labels = None
    if numbers is None:
        _check_positions(batch, torch.arange(tokens.shape[1], device=tokens.device))
        del by_position["tokens"]
        by_position.pop("labels", None)
        return Documents(tokens, None, _long(labels), extras | by_position, None)
    places = _Places.of(numbers)
    _check_positions(batch, places.home % max(places.source.shape[1], 1), numbers > 0)
    if extras and len(places.starts) != len(tokens):
        raise InputError(
            f"rows with several documents: {', '.join(map(repr, extras))} is of whole rows; leave "
            f"it out, or give one document a row."
        )
    moved = {name: places.move(field) for name, field in by_position.items()}
    tokens = moved.pop("tokens")
    labels = moved.pop("labels", None)
    real = places.real
    if not own_padding or len(places.starts) != len(numbers):
        tokens = tokens.masked_fill(~real, 0)
    if labels is not None:
        labels = labels.long().masked_fill(~real, IGNORED)
    return Documents(
        tokens, None if bool(real.all()) else real, labels, extras | moved, places.home
    )


class _Places(NamedTuple):
    """Where the documents of ``[row, pos]`` are."""

    starts: Tensor
    """``[document]``: first position, counted through all rows."""
    source: Tensor
    """``[document, pos]``: which position of ``[row · pos]`` goes where."""
    real: Tensor
    home: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> _Places:
        """Find the documents.

        Args:
            numbers: ``[row, pos]``: 0 for padding; another number for each document of a row.
        """
        num_rows, length = numbers.shape
        real = numbers > 0
        before = torch.nn.functional.pad(numbers, (1, 0))[:, :-1]
        begins = real & (numbers != before)
        starts = begins.flatten().nonzero()[:, 0]
        document = begins.flatten().cumsum(0) - 1
        lengths = torch.bincount(document[real.flatten()], minlength=len(starts))
        width = int(lengths.max()) if len(lengths) else 0
        offset = torch.arange(width, device=numbers.device)
        in_document = offset < lengths[:, None]
        # Behind a document comes the rest of its row, round the corner: its padding, if it has any.
        first = starts // length * length
        source = first[:, None] + (starts[:, None] - first[:, None] + offset) % length
        position = torch.arange(num_rows * length, device=numbers.device)
        home = document * width + position - starts[document.clamp(min=0)] if width else document
        home = torch.where(real.flatten(), home, -1).view(num_rows, length)
        return cls(starts, source, in_document, home)

    def move(self, field: Tensor) -> Tensor:
        """Put a field ``[row, pos]`` into documents ``[document, pos]``."""
        return field.flatten()[self.source]


def _numbers_of_documents(batch: Mapping[str, Tensor]) -> Tensor | None:
    """``[row, pos]``: 0 for padding, else the number of the document; ``None``: one whole a row."""
    tokens, mask = batch["input_ids"], batch.get("attention_mask")
    restarts = None
    if "position_ids" in batch:
        restarts = _restarts(batch["position_ids"].long().expand(tokens.shape))
    if mask is None:
        if restarts is None or not bool(restarts[:, 1:].any()):
            return None
        return restarts.long().cumsum(1)
    if mask.dim() > 2:
        return _numbers_of_square_mask(mask, tokens)
    if bool((mask < 0).any()):
        raise InputError(
            f"`attention_mask` [row, pos] must be 1 at tokens and 0 at padding, or number the "
            f"documents of a row 1, 2, …; got {float(mask.min()):g}. Of a mask that is added to "
            f"attention scores, 0 and −∞, give mask == 0."
        )
    numbers = mask.long()
    if bool((numbers == 1).all()) and restarts is None:
        return None
    real = numbers > 0
    shifted = torch.nn.functional.pad(numbers, (1, 0))[:, :-1]
    begins = real & (numbers != shifted)
    if restarts is not None:
        begins = begins | (real & restarts)
    else:
        _check_no_holes(numbers, begins)
    return begins.long().cumsum(1) * real


def _restarts(positions: Tensor) -> Tensor:
    """Where positions begin again at 0, ``[row, pos]``."""
    return positions == 0


def _check_no_holes(numbers: Tensor, begins: Tensor) -> None:
    """Refuse tokens that are hidden between others of one document."""
    for number in numbers.unique().tolist():
        pieces = (begins & (numbers == number)).sum(1)
        if number and int(pieces.max()) > 1:
            row = int(pieces.argmax())
            raise InputError(
                f"`attention_mask`: row {row} of a minibatch has zeros between tokens. If these "
                f"are documents, number them 1, 2, … in `attention_mask`; if tokens are only not "
                f"to be predicted, leave the mask at 1 and give them the label −100."
            )


def _numbers_of_square_mask(mask: Tensor, tokens: Tensor) -> Tensor:
    """Documents from who attends to whom, ``[row, pos, pos]`` or ``[row, 1, pos, pos]``."""
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    length = tokens.shape[1]
    if mask.shape != (len(tokens), length, length):
        raise InputError(
            f"`attention_mask` must be [row, pos] or [row, pos, pos] = "
            f"{[len(tokens), length, length]}, got {list(mask.shape)}."
        )
    # Additive masks are 0 where attention is allowed.
    allowed = mask == 0 if mask.is_floating_point() and bool((mask < 0).any()) else mask > 0
    real = allowed.diagonal(dim1=1, dim2=2)
    sees_previous = torch.nn.functional.pad(allowed.diagonal(-1, dim1=1, dim2=2), (1, 0))
    begins = real & ~sees_previous
    numbers = begins.long().cumsum(1) * real
    same = (numbers[:, :, None] == numbers[:, None, :]) & real[:, None, :] & real[:, :, None]
    if not torch.equal(same.tril(), (allowed & real[:, :, None]).tril()):
        raise InputError(
            "`attention_mask` [row, pos, pos] must let each token see all of its own document "
            "before it and nothing else; other masks are not supported. Write a loss of your own, "
            "f(module, batch) giving (losses, mask)."
        )
    return numbers


def _check_fields(batch: Mapping[str, Tensor]) -> None:
    tokens = batch["input_ids"]
    labels = batch.get("labels")
    if tokens.dim() != 2:
        raise InputError(f"`input_ids` must be [row, pos], got shape {list(tokens.shape)}.")
    for name in ("attention_mask", "position_ids", "labels"):
        field = batch.get(name)
        if field is None:
            continue
        fits = field.shape[:2] == tokens.shape or (name == "attention_mask" and field.dim() == 4)
        if not fits and not (name == "labels" and labels is not None and labels.dim() == 1):
            raise InputError(
                f"`{name}` must be [row, pos] = {list(tokens.shape)} as `input_ids`, got "
                f"{list(field.shape)}."
            )


def _check_positions(
    batch: Mapping[str, Tensor], expected: Tensor, real: Tensor | None = None
) -> None:
    """Refuse positions that do not count from 0 in each document."""
    if "position_ids" not in batch:
        return
    differ = batch["position_ids"].long() != expected
    if bool((differ if real is None else differ & real).any()):
        raise InputError(
            "`position_ids` must count 0, 1, 2, … in each document; leave them out, and they do."
        )


def _long(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels.long()


def shown(batch: object) -> str:
    """A minibatch in an error message: types and shapes."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        return ", ".join(f"{name}: {shown(field)}" for name, field in batch.items())
    if isinstance(batch, tuple):
        return ", ".join(map(shown, batch))
    return type(batch).__name__
