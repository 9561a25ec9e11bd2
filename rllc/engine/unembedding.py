"""Unembedding, softmax, cross entropy and their gradient in one sweep over the vocabulary.

The unembedding costs more than the rest of a small model. Logits of all runs at all positions would
not fit into memory, so positions are taken in chunks whose logits stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CPU_LOGITS = 1_280_000
"""Logits of a chunk on a CPU: 5 MB, which fit into a last-level cache (fastest of those tried)."""

_GPU_LOGITS = 256_000_000
"""Logits of a chunk on a GPU: 1 GB."""


class Goal(NamedTuple):
    """The target distribution q of a chunk of positions."""

    ids: Tensor | None
    """``[position]``: token ids, where q is one-hot."""
    q: Tensor | None
    """``[position, vocab]``: probabilities, where it is not."""

    def pull(self, W_T: Tensor) -> Tensor:
        """Return qWᵀ ``[position, d_model]``."""
        return W_T[self.ids] if self.q is None else self.q @ W_T

    def lift(self, b: Tensor) -> Tensor:
        """Return q·b ``[position]``."""
        return b[self.ids] if self.q is None else self.q @ b

    def subtract_from(self, p: Tensor) -> Tensor:
        """Return p − q, in the memory of p."""
        if self.q is not None:
            return p.sub_(self.q)
        assert self.ids is not None
        column = self.ids[:, None]
        minus_one = p.new_full((len(p), 1), -1.0)
        return p.scatter_add_(1, column, minus_one)


class Target(NamedTuple):
    """The tokens or distributions to predict at each of ``position = batch × (pos − 1)``."""

    shape: tuple[int, int]
    """``(batch, pos − 1)``."""
    ids: Tensor | None
    """``[position]``: the next tokens, if these are the target."""
    generator: tuple[Tensor, Tensor, Tensor] | None
    """If a softmax is: the hidden state ``[position, d_model]``, W_U and b_U of its model."""
    kept: Tensor | None = None
    """Which positions of the hidden state these are, ``[position]``; ``None``: all."""
    home: Tensor | None = None
    """``[row, pos − 1]``: which of these positions is the prediction of each token of the
    minibatch; −1 where nothing is predicted. ``None``: they are in order."""
    normaliser_at_center: Tensor | None = None
    """``[position]``: log Σ exp of the logits at w*, for products in low precision; see
    :class:`_LowLogits`."""

    @classmethod
    def next_tokens(cls, batch: Tensor) -> Target:
        """Make the target of token rows ``[batch, pos]``."""
        num_rows, num_tokens = batch.shape
        next_ids = batch[:, 1:].flatten()
        return cls((num_rows, num_tokens - 1), next_ids, None)

    def of_kept(self, kept: Tensor, home: Tensor) -> Target:
        """Return the target of some positions only."""
        ids = None if self.ids is None else self.ids[kept]
        generator = None
        if self.generator is not None:
            hidden, W_U, b_U = self.generator
            generator = (hidden[kept], W_U, b_U)
        return Target((1, len(kept)), ids, generator, kept, home)

    def at(self, rows: slice) -> Goal:
        """Return the target of some positions; a softmax is made here and never kept."""
        if self.generator is None:
            assert self.ids is not None
            return Goal(self.ids[rows], None)
        hidden, W_U, b_U = self.generator
        logits = torch.addmm(b_U, hidden[rows], W_U)
        return Goal(None, logits.softmax(-1))


def mean_and_each(
    hidden: Tensor, W: Tensor, b: Tensor, target: Target, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return the mean loss ``[run]`` over what counts, and each loss ``[run, row, pos − 1]``.

    Args:
        hidden: ``[run, document, pos − 1, d_model]``.
        W: ``[run, d_model, vocab]``.
        b: ``[run, vocab]``.
        target: what is to be predicted. Positions that it leaves out are not computed.
        autocast: precision of products.
    """
    mean, each, _ = UnembedLoss.apply(_kept(hidden, target), W, b, target, autocast)
    if target.home is None:
        return mean, each
    return mean, at_home(each[:, 0], target.home)


@torch.no_grad()
def near_center(
    hidden: Tensor, W: Tensor, b: Tensor, target: Target, autocast: torch.dtype | None
) -> Target:
    """Return the target of runs near the unmoved model, and of that model itself.

    In low precision all of them are then rounded alike.

    Args:
        hidden: of the unmoved model, ``[1, document, pos − 1, d_model]``; the others as in
            :func:`mean_and_each`.
        W: its unembedding.
        b: the bias of that.
        target: what is to be predicted.
        autocast: precision of products.
    """
    if autocast is None:
        return target
    _, _, log_normaliser = UnembedLoss.apply(_kept(hidden, target), W, b, target, autocast)
    return target._replace(normaliser_at_center=log_normaliser[0])


def _kept(hidden: Tensor, target: Target) -> Tensor:
    """The hidden states of the positions that a target keeps: all, or some in one row."""
    if target.kept is None:
        return hidden
    return hidden.flatten(1, 2)[:, None, target.kept]


def at_home(each: Tensor, home: Tensor) -> Tensor:
    """Put losses ``[run, position]`` where their tokens are, ``[run, row, pos]``; NaN elsewhere.

    Args:
        each: the losses of the tokens that are predicted.
        home: ``[row, pos]``: for each token of the minibatch, its number among these; −1 for none.
    """
    place = home.clamp(min=0)
    return torch.where(home >= 0, each[:, place], torch.nan)


class UnembedLoss(torch.autograd.Function):
    """The mean loss of each run and its gradient.

    Per position with hidden state x, logits z = xW + b, target distribution q and p = softmax(z):
    loss = logsumexp(z) − q·z, ∂/∂x = (p − q)Wᵀ, ∂/∂W = xᵀ(p − q), ∂/∂b = p − q. The target's part,
    q·z = x·(qWᵀ) + q·b, needs no work of the vocabulary's size beyond qWᵀ, which runs share. exp(z)
    is left unnormalised, and its sum divides the result of size d_model. The logits of a chunk are
    overwritten in place.

    Returns:
        ``(mean loss [run] in float64, each loss [run, batch, pos − 1], logsumexp(z)
        [run, position])``, the last two without gradient; the run axis has length 1 if nothing
        moved.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden: Tensor,
        W: Tensor,
        b: Tensor,
        target: Target,
        autocast: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
        runs = max(len(hidden), len(W), len(b))
        batch, pos = target.shape
        count = batch * pos
        x = hidden.reshape(len(hidden), count, -1)
        each = x.new_empty(runs, count)
        log_normaliser = torch.empty(runs, count, dtype=torch.float32, device=x.device)
        d_x = d_W = d_b = None
        if needs_x:
            d_x = torch.empty_like(x)
        if needs_W:
            d_W = W.new_zeros(runs, *W.shape[1:], dtype=torch.float32)
        if needs_b:
            d_b = b.new_zeros(runs, *b.shape[1:], dtype=torch.float32)
        # Products and look-ups are faster along rows.
        W_T = W.mT.contiguous()
        low_W_T = W_T if autocast is None else W_T.to(autocast)
        position_chunks = list(chunks(count, W.shape[-1], x.device))
        logits = _Logits.of(W, b, target, position_chunks[0].stop, autocast)
        for rows in position_chunks:
            goal = target.at(rows)
            shared_pull = None
            if len(W) == 1:
                shared_pull = goal.pull(W_T[0])
            for run in range(runs):
                x_run = _of_run(x, run)[rows]
                pull = shared_pull
                if pull is None:
                    pull = goal.pull(_of_run(W_T, run))
                exp_z, total, log_normaliser[run, rows] = logits.exponentials(run, x_run, rows)
                # q·z, the target's part of the loss, is the sum of these two.
                pull_of_x = (x_run * pull).sum(1)
                lift = goal.lift(_of_run(b, run))
                each[run, rows] = log_normaliser[run, rows] - pull_of_x - lift
                if d_x is not None:
                    p_W_T = exp_z.to(low_W_T.dtype) @ _of_run(low_W_T, run)
                    p_W_T = p_W_T.float().div_(total)
                    torch.sub(p_W_T, pull, out=d_x[run, rows])
                if d_W is not None or d_b is not None:
                    p_minus_q = goal.subtract_from(exp_z.div_(total))
                    if d_W is not None:
                        d_W[run].addmm_(x_run.T, p_minus_q)
                    if d_b is not None:
                        d_b[run].add_(p_minus_q.sum(0))
        if d_x is not None:
            d_x = d_x.view(hidden.shape)
        ctx.gradients = (d_x, d_W, d_b)
        ctx.count = count
        each = each.view(runs, batch, pos)
        ctx.mark_non_differentiable(each, log_normaliser)
        mean = each.double().flatten(1).mean(1)
        return mean, each, log_normaliser

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        weight = d_losses.float() / ctx.count

        def scaled(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            other_axes = (1,) * (gradient.dim() - 1)
            return gradient * weight.view(-1, *other_axes)

        d_x, d_W, d_b = ctx.gradients
        return scaled(d_x), scaled(d_W), scaled(d_b), None, None


class _Logits(NamedTuple):
    """Makes logits of a chunk of positions, in memory that all chunks write them to."""

    W: Tensor
    """``[run, d_model, vocab]``, in the precision of products."""
    b: Tensor
    """``[run, vocab]``, too."""
    room: Tensor
    """``[position, vocab]``, too."""
    at_center: Tensor | None
    """log Σ exp of the logits at w* ``[position]``, for low precision."""
    low: _LowLogits | None
    """Where that is known."""

    @classmethod
    def of(
        cls, W: Tensor, b: Tensor, target: Target, size: int, autocast: torch.dtype | None
    ) -> _Logits:
        dtype = W.dtype if autocast is None else autocast
        room = W.new_empty(size, W.shape[-1], dtype=dtype)
        at_center = target.normaliser_at_center
        low = None if at_center is None else _LowLogits.of(W, b, room)
        return cls(W.to(dtype), b.to(dtype), room, at_center, low)

    def exponentials(self, run: int, x: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """exp(z − m) of logits z of a run, its sum and log Σ exp z, for each position.

        Args:
            run: which.
            x: its hidden states ``[position, d_model]``.
            rows: which positions these are.
        """
        logits = self.room[: len(x)]
        if self.low is None or self.at_center is None:
            W = _of_run(self.W, run)
            torch.addmm(_of_run(self.b, run), x.to(W.dtype), W, out=logits)
            return _exponentials(logits)
        at_center = self.at_center[rows]
        self.low.write(run, x, at_center, logits)
        exp_z, total, above_center = _exponentials(logits)
        return exp_z, total, at_center + above_center


class _LowLogits(NamedTuple):
    """Logits from products in low precision, less their log Σ exp at w*.

    Logits are rounded to some parts in a thousand of themselves. Less log Σ exp, those of likely
    tokens are near 0, so that little of them is lost. The product takes it off, for after it they
    would be rounded already: below W there are rows of the bias and of ones, and beside x columns
    of ones and of what is taken off. The bias, and what is taken off, are two numbers each, a
    rounded one and its rest. Four rows of 0 fill them up to eight, for GPUs multiply fast what
    begins at multiples of 16 bytes.
    """

    W: Tensor
    """``[run, d_model + 8, vocab]``: with the rows below it, those of ones the last two."""
    x: Tensor
    """``[position, d_model + 8]``: room for hidden states, and the columns beside them."""

    @classmethod
    def of(cls, W: Tensor, b: Tensor, logits: Tensor) -> _LowLogits:
        low = logits.dtype
        runs = max(len(W), len(b))
        biases = torch.stack(_rounded_and_rest(b, low), dim=1)
        ones = torch.ones_like(biases)
        zeros = torch.zeros_like(torch.cat([biases, biases], dim=1))
        parts = (W.to(low), zeros, biases, ones)
        with_rows = torch.cat([part.expand(runs, -1, -1) for part in parts], dim=1)
        return cls(with_rows, logits.new_ones(len(logits), with_rows.shape[1]))

    def write(self, run: int, x: Tensor, at_center: Tensor, out: Tensor) -> None:
        """Write logits of a run less ``at_center [position]`` into ``out``.

        Args:
            run: which.
            x: its hidden states ``[position, d_model]``.
            at_center: what is taken off.
            out: ``[position, vocab]``.
        """
        with_columns = self.x[: len(x)]
        with_columns[:, :-8] = x
        with_columns[:, -2:] = torch.stack(_rounded_and_rest(-at_center, self.x.dtype), dim=1)
        torch.mm(with_columns, _of_run(self.W, run), out=out)


def _rounded_and_rest(values: Tensor, low: torch.dtype) -> tuple[Tensor, Tensor]:
    rounded = values.to(low)
    return rounded, (values - rounded).to(low)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z − max z) of logits z, its sum and log Σ exp z, for each position.

    Logits in float32 are overwritten.
    """
    z = logits.float()
    largest = z.amax(1, keepdim=True)
    exp_z = z.sub_(largest).exp_()
    total = exp_z.sum(1, keepdim=True)
    log_normaliser = (largest + total.log())[:, 0]
    return exp_z, total, log_normaliser


def _of_run(values: Tensor, run: int) -> Tensor:
    """One run's values; those that all runs share have a run axis of length 1."""
    if len(values) == 1:
        return values[0]
    return values[run]


def chunks(count: int, vocab: int, device: torch.device) -> Iterator[slice]:
    """Slices of positions whose logits are computed at once."""
    num_logits = _CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS
    size = max(16, min(count, num_logits // vocab))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
