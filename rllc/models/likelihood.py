"""Whether a model that was loaded predicts anything: its loss against the unigram entropy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllc.errors import InputError, must_be

_ROWS = 16
"""Rows that are evaluated at once."""


def check_loss(model: nn.Module, tokens: Any, allow: bool) -> float:
    """Print the loss on some rows, and refuse one no better than their unigram entropy.

    The unigram entropy H = −Σ_v p_v log p_v, with p_v the frequency of token v among the predicted
    ones, is the loss of the best guess that does not look at the context. A trained model is below
    it; one that was loaded wrongly (positions, scale, eps, another tokenizer) seldom is.

    Args:
        model: gives logits ``[batch, pos, vocab]``, or an output with ``.logits``.
        tokens: ``[row, pos]``, or something with such ``rows``.
        allow: print only.

    Returns:
        The mean loss, in nats.

    Raises:
        InputError: the loss is too high, or the rows are not token ids of the model.
    """
    rows = _rows(model, tokens)
    losses = []
    with torch.no_grad():
        for batch in rows.split(_ROWS):
            losses.append(_losses(model, batch))
    loss = float(torch.cat(losses).mean())
    entropy = unigram_entropy(rows[:, 1:])
    both_losses = (
        f"load: the loss is {loss:.4g} nats a token on {len(rows)} rows, whose unigram entropy is "
        f"{entropy:.4g}"
    )
    if loss < entropy or allow:
        print(f"{both_losses}.")
        return loss
    raise InputError(
        f"{both_losses}: the model predicts no better than a guess that does not look at the "
        f"context. It was loaded wrongly (positions=, another configuration), the rows are of "
        f"another tokenizer, or it is not trained; for that, type allow=True."
    )


def unigram_entropy(tokens: Tensor) -> float:
    """−Σ_v p_v log p_v of the frequencies p_v of tokens, in nats.

    >>> round(unigram_entropy(torch.tensor([0, 0, 1, 1])), 4)
    0.6931
    """
    counts = torch.bincount(tokens.flatten())
    frequencies = counts[counts > 0].double() / tokens.numel()
    return float(-(frequencies * frequencies.log()).sum())


def _rows(model: nn.Module, tokens: Any) -> Tensor:
    rows = getattr(tokens, "rows", tokens)
    if not isinstance(rows, Tensor):
        try:
            rows = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError):
            rows = torch.empty(0)
    is_integer = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    fits = is_integer and rows.dim() == 2 and rows.shape[1] > 1 and len(rows) > 0
    fits = fits and int(rows.min()) >= 0
    must_be("load", "tokens", tokens, fits, "rows of token ids [row, pos]")
    device = next(model.parameters()).device
    return rows.long().to(device)


def _losses(model: nn.Module, batch: Tensor) -> Tensor:
    try:
        output = model(batch)
    except IndexError as error:  # an embedding has no such row
        raise InputError(
            f"load: the model cannot take `tokens` with ids up to {int(batch.max())} and "
            f"{batch.shape[1]} positions ({error}); tokenize with the model's own tokenizer."
        ) from error
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != batch.shape:
        raise InputError(
            f"load: `tokens` is for language models; {type(model).__name__} gives no logits "
            f"[batch, pos, vocab]."
        )
    scores = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(scores, batch[:, 1:].flatten(), reduction="none").double()
