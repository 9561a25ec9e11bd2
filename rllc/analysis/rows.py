"""Token rows that a model can read, and means over tokens with their standard error over rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.hooked import hooked, sizes
from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.seeds import generator

if TYPE_CHECKING:
    from rllc.models import AttentionOnly


def is_own(model: object) -> bool:
    """Whether a model is an AttentionOnly, or nothing that other code could do better with."""
    from rllc.models import AttentionOnly

    return isinstance(model, AttentionOnly) or not isinstance(model, nn.Module)


def check_model(model: nn.Module, caller: str) -> AttentionOnly:
    """The model, if its forward pass can be changed head by head.

    Args:
        model: any module.
        caller: the function that error messages name.

    Raises:
        InputError: the model is not an :class:`rllc.models.AttentionOnly`.
    """
    from rllc.models import AttentionOnly

    if isinstance(model, AttentionOnly):
        return model
    raise InputError(
        f"{caller}: expected an rllc.models.AttentionOnly, whose forward pass can be replaced head "
        f"by head, got {type(model).__name__}; other transformers are not supported here. "
        f"rllc.load(folder) gives an AttentionOnly."
    )


def check_language_model(model: nn.Module, caller: str) -> nn.Module:
    """An AttentionOnly, or another causal language model whose heads can be read and replaced.

    Args:
        model: any module.
        caller: the function that error messages name.

    Raises:
        InputError: the model is of another kind.
    """
    return check_model(model, caller) if is_own(model) else hooked(model, caller).model


def check_rows(
    model: nn.Module,
    tokens: Tokens | Tensor,
    caller: str,
) -> tuple[Tensor, str]:
    """The rows ``[row, pos]`` as int64 on the model's device, and the name of the tokens.

    Args:
        model: a language model.
        tokens: the rows.
        caller: the function that error messages name.

    Raises:
        InputError: the tokens are not rows of ids, or the model lacks their ids or positions.
    """
    if isinstance(tokens, Tensor):
        tokens = Tokens(tokens)
    if not isinstance(tokens, Tokens):
        raise InputError(
            f"{caller}: expected rllc.Tokens or a tensor [row, pos] of token ids, got "
            f"{type(tokens).__name__}."
        )
    d_vocab, n_ctx = sizes(model, caller)
    if tokens.largest_id >= d_vocab:
        raise InputError(
            f"{caller}: the tokens {tokens.name!r} have id {tokens.largest_id}, but the model "
            f"knows ids below {d_vocab}; use the tokenizer that the model was trained with."
        )
    if tokens.num_positions > n_ctx:
        raise InputError(
            f"{caller}: the rows of {tokens.name!r} have {tokens.num_positions} positions, but the "
            f"model's context is {n_ctx}; take rllc.Tokens(tokens.rows[:, :{n_ctx}])."
        )
    return tokens.rows.long().to(next(model.parameters()).device), tokens.name


def check_mask(
    mask: np.ndarray | Tensor,
    rows: Tensor,
    name: str,
    caller: str,
) -> np.ndarray:
    """A mask of tokens ``[row, pos]`` as a mask of predictions ``[row, pos − 1]``.

    The first token of a row is never predicted, so its column goes.

    Raises:
        InputError: the mask is not boolean, differs from the rows in shape, or selects no
            predicted token.
    """
    values = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    shape = tuple(rows.shape)
    if values.dtype != bool or values.shape != shape:
        raise InputError(
            f"{caller}: the mask {name!r} must be boolean with one entry a token, shape {shape}, "
            f"got {values.dtype} {values.shape}."
        )
    predicted = values[:, 1:]
    if not predicted.any():
        raise InputError(
            f"{caller}: the mask {name!r} selects no token that is predicted (the first of a row "
            f"is not); leave it out."
        )
    return predicted


def common_start(rows: Tensor) -> int | None:
    """The id, such as BOS, that all of several rows begin with; ``None`` if there is none.

    >>> common_start(torch.tensor([[7, 1], [7, 2]]))
    7
    """
    first = rows[:, 0]
    if len(rows) > 1 and bool((first == first[0]).all()):
        return int(first[0])
    return None


def other_rows(
    count: int,
    seed: int,
    caller: str,
) -> Tensor:
    """Another row for each row ``[row]``: one random cycle through all rows.

    Raises:
        InputError: there is only one row.
    """
    if count < 2:
        raise InputError(
            f"{caller}: another row's activations are needed, but there is one row; pass at least "
            f"2."
        )
    order = torch.randperm(count, generator=generator("other_rows", seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def ratio(
    sums: np.ndarray,
    counts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over tokens and its standard error, for independent rows.

    With s_r the sum over the tokens of row r and n_r their number, of R rows that have any:
    mean = Σ_r s_r / Σ_r n_r and se² = R/(R−1) · Σ_r (s_r − mean · n_r)² / (Σ_r n_r)². This is the
    linearised variance of a ratio; for equal counts, the usual standard error of a mean.

    Args:
        sums: ``[..., row]``: s_r.
        counts: ``[row]``: n_r.

    Returns:
        mean ``[...]`` and standard error ``[...]``. Both are NaN without tokens, and the error
        also with one row.

    Reference: Cochran 1977, "Sampling Techniques", section 6.4.
    """
    total = counts.sum()
    num_rows = int((counts > 0).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(-1) / total
        residual = sums - mean[..., None] * counts
        correction = np.divide(num_rows, num_rows - 1)
        error = np.sqrt(np.square(residual).sum(-1) * correction) / total
    return mean, np.where(num_rows > 1, error, np.nan)


def mean_over_tokens(
    values: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ``values [..., row, pos]`` over the tokens of a mask, and its error over rows.

    Args:
        values: a number for each token.
        mask: ``[row, pos]``, boolean; ``None`` takes all tokens.
    """
    if mask is None:
        mask = np.ones(values.shape[-2:], dtype=bool)
    sums = np.where(mask, values, 0.0).sum(-1, dtype=np.float64)
    return ratio(sums, mask.sum(-1))
