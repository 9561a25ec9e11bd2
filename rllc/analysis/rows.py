"""Token rows that a model can read, and means over tokens with their standard error over rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.seeds import generator

if TYPE_CHECKING:
    from rllc.models import AttentionOnly


def check_model(model: nn.Module, doing: str) -> AttentionOnly:
    """The model, if its heads can be looked into.

    Raises:
        InputError: it is not an :class:`rllc.models.AttentionOnly`.
    """
    from rllc.models import AttentionOnly

    if not isinstance(model, AttentionOnly):
        raise InputError(
            f"{doing}: expected an rllc.models.AttentionOnly, whose forward pass can be replaced head by head, got "
            f"{type(model).__name__}; other transformers are not supported here. rllc.load(folder) gives an AttentionOnly."
        )
    return model


def check_rows(model: AttentionOnly, tokens: Tokens | Tensor, doing: str) -> tuple[Tensor, str]:
    """The rows ``[row, pos]`` (int64, on the model's device) of tokens that the model can read, and their name.

    Raises:
        InputError: the tokens are not rows of ids, or have ids or positions that the model has not.
    """
    if not isinstance(tokens, Tokens):
        if not isinstance(tokens, Tensor):
            raise InputError(
                f"{doing}: expected rllc.Tokens or a tensor [row, pos] of token ids, got {type(tokens).__name__}."
            )
        tokens = Tokens(tokens)
    c = model.config
    if tokens.largest_id >= c.d_vocab:
        raise InputError(
            f"{doing}: the tokens {tokens.name!r} have id {tokens.largest_id}, but the model knows ids below {c.d_vocab}; "
            f"use the tokenizer that the model was trained with."
        )
    if tokens.num_positions > c.n_ctx:
        raise InputError(
            f"{doing}: the rows of {tokens.name!r} have {tokens.num_positions} positions, but the model's context is "
            f"{c.n_ctx}; take rllc.Tokens(tokens.rows[:, :{c.n_ctx}])."
        )
    return tokens.rows.long().to(model.embed.W_E.device), tokens.name


def other_rows(count: int, seed: int, doing: str) -> Tensor:
    """For each row another one, every row once: one random cycle through all rows ``[row]``.

    Raises:
        InputError: there is one row only.
    """
    if count < 2:
        raise InputError(
            f"{doing}: another row's activations are needed, but there is one row; pass at least 2."
        )
    order = torch.randperm(count, generator=generator("other_rows", seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over tokens and its standard error, rows being independent.

    mean = Σ_r s_r / Σ_r n_r; se² = R/(R−1) · Σ_r (s_r − mean · n_r)² / (Σ_r n_r)², the linearised variance of a ratio
    (Cochran 1977, "Sampling Techniques", section 6.4). With equal counts it is the usual standard error of a mean.

    Args:
        sums: ``[..., row]``: sum of the quantity over a row's tokens.
        counts: ``[row]``: how many tokens of each row count; R is the number of rows that have any.

    Returns:
        ``(mean [...], standard error [...])``; NaN without tokens, and the error also with one row.
    """
    total, rows = counts.sum(), int((counts > 0).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(-1) / total
        away = sums - mean[..., None] * counts
        error = np.sqrt(np.square(away).sum(-1) * np.divide(rows, rows - 1)) / total
    return mean, np.where(rows > 1, error, np.nan)


def mean_over_tokens(
    each: np.ndarray, where: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ``each [..., row, pos]`` over the tokens that ``where [row, pos]`` selects, with its error over rows."""
    if where is None:
        where = np.ones(each.shape[-2:], dtype=bool)
    return ratio(np.where(where, each, 0.0).sum(-1, dtype=np.float64), where.sum(-1))


def check_mask(mask: np.ndarray | Tensor, rows: Tensor, name: str, doing: str) -> np.ndarray:
    """A mask of tokens ``[row, pos]`` as a mask of predictions ``[row, pos − 1]``: the first token is never predicted.

    Raises:
        InputError: not boolean, another shape than the rows', or no predicted token selected.
    """
    given = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if given.dtype != bool or given.shape != tuple(rows.shape):
        raise InputError(
            f"{doing}: the mask {name!r} must be boolean with one entry a token, shape {tuple(rows.shape)}, got "
            f"{given.dtype} {given.shape}."
        )
    if not given[:, 1:].any():
        raise InputError(
            f"{doing}: the mask {name!r} selects no token that is predicted (the first of a row is not); leave it out."
        )
    return given[:, 1:]
