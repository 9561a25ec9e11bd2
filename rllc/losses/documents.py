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
        if self.home is None:
            return len(self.tokens)
        return len(self.home)

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
        is_token = self.home >= 0
        place = self.home.clamp(min=0)
        returned = values.flatten()[place]
        return torch.where(is_token, returned, blank)


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
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        _check_positions(batch, positions)
        del by_position["tokens"]
        by_position.pop("labels", None)
        return Documents(tokens, None, _long(labels), extras | by_position, None)
    places = _Places.of(numbers)
    width = max(places.source.shape[1], 1)
    _check_positions(batch, places.home % width, numbers > 0)
    one_a_row = len(places.starts) == len(numbers)
    if extras and not one_a_row:
        names = ", ".join(map(repr, extras))
        raise InputError(
            f"rows with several documents: {names} is of whole rows; leave it out, or give one "
            f"document a row."
        )
    moved = {name: places.move(field) for name, field in by_position.items()}
    tokens = moved.pop("tokens")
    labels = moved.pop("labels", None)
    is_padding = ~places.real
    if not own_padding or not one_a_row:
        tokens = tokens.masked_fill(is_padding, 0)
    if labels is not None:
        labels = labels.long().masked_fill(is_padding, IGNORED)
    real = None
    if bool(is_padding.any()):
        real = places.real
    return Documents(tokens, real, labels, extras | moved, places.home)


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
        real = (numbers > 0).flatten()
        begins = real & (numbers != _before(numbers)).flatten()
        starts = begins.nonzero()[:, 0]
        document = begins.cumsum(0) - 1
        lengths = torch.bincount(document[real], minlength=len(starts))
        width = int(lengths.max()) if len(lengths) else 0
        offset = torch.arange(width, device=numbers.device)
        in_document = offset < lengths[:, None]
        start_of_row = starts // length * length
        start_in_row = starts - start_of_row
        # Behind a document comes the rest of its row, round the corner: its padding, if it has any.
        place_in_row = (start_in_row[:, None] + offset) % length
        source = start_of_row[:, None] + place_in_row
        home = document
        if width:
            position = torch.arange(num_rows * length, device=numbers.device)
            start = starts[document.clamp(min=0)]
            home = document * width + position - start
        home = torch.where(real, home, -1)
        return cls(starts, source, in_document, home.view(num_rows, length))

    def move(self, field: Tensor) -> Tensor:
        """Put a field ``[row, pos]`` into documents ``[document, pos]``."""
        return field.flatten()[self.source]


def _before(numbers: Tensor) -> Tensor:
    """The number at the position before each one of ``[row, pos]``; 0 before the first."""
    return torch.nn.functional.pad(numbers, (1, 0))[:, :-1]


def _numbers_of_documents(batch: Mapping[str, Tensor]) -> Tensor | None:
    """``[row, pos]``: 0 for padding, else the number of the document; ``None``: one whole a row."""
    tokens = batch["input_ids"]
    mask = batch.get("attention_mask")
    restarts = None
    if "position_ids" in batch:
        positions = batch["position_ids"].long()
        restarts = _restarts(positions.expand(tokens.shape))
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
    is_one_document = bool((numbers == 1).all())
    if is_one_document and restarts is None:
        return None
    real = numbers > 0
    begins = real & (numbers != _before(numbers))
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
        begins_here = begins & (numbers == number)
        pieces = begins_here.sum(1)
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
    is_additive = mask.is_floating_point() and bool((mask < 0).any())
    # Additive masks are 0 where attention is allowed.
    allowed = mask == 0 if is_additive else mask > 0
    real = allowed.diagonal(dim1=1, dim2=2)
    of_previous = allowed.diagonal(-1, dim1=1, dim2=2)
    sees_previous = torch.nn.functional.pad(of_previous, (1, 0))
    begins = real & ~sees_previous
    numbers = begins.long().cumsum(1) * real
    both_real = real[:, None, :] & real[:, :, None]
    same_document = numbers[:, :, None] == numbers[:, None, :]
    expected = same_document & both_real
    allowed_of_real = allowed & real[:, :, None]
    if not torch.equal(expected.tril(), allowed_of_real.tril()):
        raise InputError(
            "`attention_mask` [row, pos, pos] must let each token see all of its own document "
            "before it and nothing else; other masks are not supported. Write a loss of your own, "
            "f(module, batch) giving (losses, mask)."
        )
    return numbers


def _check_fields(batch: Mapping[str, Tensor]) -> None:
    tokens = batch["input_ids"]
    if tokens.dim() != 2:
        raise InputError(f"`input_ids` must be [row, pos], got shape {list(tokens.shape)}.")
    for name in ("attention_mask", "position_ids", "labels"):
        field = batch.get(name)
        if field is None:
            continue
        by_position = field.shape[:2] == tokens.shape
        is_square_mask = name == "attention_mask" and field.dim() == 4
        is_label_of_row = name == "labels" and field.dim() == 1
        if not (by_position or is_square_mask or is_label_of_row):
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
    if real is not None:
        differ = differ & real
    if bool(differ.any()):
        raise InputError(
            "`position_ids` must count 0, 1, 2, … in each document; leave them out, and they do."
        )


def _long(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels.long()


def shown(batch: object) -> str:
    """A minibatch in an error message: types and shapes."""
    if isinstance(batch, Tensor):
        dtype = str(batch.dtype).removeprefix("torch.")
        return f"{dtype} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        fields = [f"{name}: {shown(field)}" for name, field in batch.items()]
        return ", ".join(fields)
    if isinstance(batch, tuple):
        return ", ".join(map(shown, batch))
    return type(batch).__name__
