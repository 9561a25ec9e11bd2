"""The loss of runs in which only heads of the last block moved, without their whole unembedding.

Between such heads and the logits there is a LayerNorm and the unembedding. A LayerNorm takes off
the mean and divides by the deviation, so what the heads write reaches the logits as a product of
few columns, d_head for each head, while all else that is unembedded is the same for all runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.engine.unembedding import Target, at_home, chunks


class Writes(NamedTuple):
    """What moved heads of the last block write, and what all runs share."""

    z: Tensor
    """``[run, position, column]``: outputs of the moved heads, d_head columns a head."""
    W_O: Tensor
    """``[run, column, d_model]``."""
    old_z: Tensor
    """``[place, position, column]``: before they moved; runs that move the same heads share it."""
    old_W_O: Tensor
    """``[place, column, d_model]``."""
    place: list[int]
    """``[run]``: which of these is a run's."""
    residual: Tensor
    """``[position, d_model]``: the residual stream after the block, unmoved."""


class Unembedding(NamedTuple):
    """The frozen LayerNorm and unembedding."""

    w: Tensor
    b: Tensor
    eps: float
    W_U: Tensor
    b_U: Tensor


def mean_and_each_of_heads(
    writes: Writes, unembedding: Unembedding, target: Target
) -> tuple[Tensor, Tensor]:
    """Return the mean loss ``[run]`` over what counts, and each loss ``[run, row, pos − 1]``.

    The same as :func:`rllc.engine.unembedding.mean_and_each` of the whole hidden state, with
    d_head/d_model of its products for each moved head.

    Args:
        writes: of the moved heads.
        unembedding: what follows them.
        target: token ids; positions that it leaves out are not computed.
    """
    z = writes.z
    residual = writes.residual
    old_z = writes.old_z
    if target.kept is not None:
        z = z[:, target.kept]
        residual = residual[target.kept]
        old_z = old_z[:, target.kept]
    without_heads = residual - torch.matmul(old_z, writes.old_W_O)
    # Centring is linear: it is done once, to the unembedding.
    weighted = unembedding.w[:, None] * unembedding.W_U
    centred = weighted - weighted.mean(0)
    bias = unembedding.b @ unembedding.W_U + unembedding.b_U
    columns = writes.W_O @ centred
    old_columns = writes.old_W_O @ centred
    shared = _Shared(
        residual=residual,
        rest=without_heads - without_heads.mean(2, keepdim=True),
        old_z=old_z,
        old_columns=old_columns,
        place=writes.place,
        W=centred,
        bias=bias,
        eps=unembedding.eps,
    )
    mean, each = _HeadsLoss.apply(z, writes.W_O, columns, shared, target)
    if target.home is None:
        return mean, each.unflatten(1, target.shape)
    return mean, at_home(each, target.home)


class _Shared(NamedTuple):
    residual: Tensor
    rest: Tensor
    """``[place, position, d_model]``: the residual stream without the heads, less its mean."""
    old_z: Tensor
    old_columns: Tensor
    place: list[int]
    W: Tensor
    bias: Tensor
    eps: float


class _Scale(NamedTuple):
    """What the LayerNorm divides by.

    With r the rest of the residual stream and M = W_O, both less their means over d_model, the
    hidden state less its mean is h = r + uM. It is made for one run at a time and not kept: those
    of all runs would be most of their memory.
    """

    s: Tensor
    """``[run, position, 1]``: (|h|²/d_model + eps)^−½."""
    M: Tensor
    """``[run, column, d_model]``: W_O less its mean."""
    hM: Tensor
    """``[run, position, column]``: hMᵀ, half the derivative of |h|² by u."""

    @classmethod
    def of(cls, z: Tensor, W_O: Tensor, shared: _Shared) -> _Scale:
        M = W_O - W_O.mean(2, keepdim=True)
        s = z.new_empty(*z.shape[:2], 1)
        hM = torch.empty_like(z)
        for run, place in enumerate(shared.place):
            h = torch.addmm(shared.rest[place], z[run], M[run])
            torch.matmul(h, M[run].T, out=hM[run])
            variance = h.square_().mean(1, keepdim=True)
            s[run] = (variance + shared.eps).rsqrt()
        return cls(s, M, hM)

    def gradients(self, z: Tensor, d_s: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
        """What a gradient d_s ``[run, position, 1]`` adds to those of z and of W_O.

        ∂s/∂u = −s³/d_model · hMᵀ and ∂s/∂W_O = −s³/d_model · uᵀh.
        """
        width = self.M.shape[2]
        d_half_square = d_s * (-(self.s**3) / width)
        d_W_O = torch.empty_like(self.M)
        for run, place in enumerate(shared.place):
            h = torch.addmm(shared.rest[place], z[run], self.M[run])
            weighted = d_half_square[run] * z[run]
            torch.matmul(weighted.T, h, out=d_W_O[run])
        return d_half_square * self.hM, d_W_O


class _HeadsLoss(torch.autograd.Function):
    """The mean loss of each run and its gradient.

    Per position with outputs u of the heads and C = W_O·W: raw logits y = xW − u°C° + uC, logits
    s·y + b, e = softmax − target. Then ∂/∂u = s·eCᵀ, ∂/∂C = (s·u)ᵀe and ∂/∂s = e·y, which
    :class:`_Scale` takes on to u and W_O.

    The time goes into passes over the logits of a chunk of positions, so there are few: the scale
    is in u before the product, and exp(z) is left unnormalised, and its sum divides the results.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, W_O: Tensor, columns: Tensor, shared: _Shared, target: Target
    ) -> tuple[Tensor, Tensor]:
        runs, count, _ = z.shape
        vocab = shared.W.shape[1]
        assert target.ids is not None
        scale = _Scale.of(z, W_O, shared)
        scaled = scale.s * z
        each = z.new_empty(runs, count)
        wanted = any(ctx.needs_input_grad[:3])
        # ∂/∂(s·u), ∂/∂s and, if W_O moved, ∂/∂C.
        d_scaled = torch.empty_like(z)
        d_s = torch.empty_like(scale.s)
        d_columns = None
        if ctx.needs_input_grad[2]:
            d_columns = torch.zeros_like(columns)
        pieces = list(chunks(count, vocab, z.device))
        rooms = z.new_empty(3, pieces[0].stop, vocab)
        for rows in pieces:
            ids = target.ids[rows]
            id_column = ids[:, None]
            of_all, of_place, room = rooms[:, : len(ids)]
            torch.matmul(shared.residual[rows], shared.W, out=of_all)
            for place, old_z in enumerate(shared.old_z):
                old = shared.old_columns[place]
                torch.addmm(of_all, old_z[rows], old, alpha=-1, out=of_place)
                for run in _runs_at(place, shared.place):
                    C = columns[run]
                    logits = torch.addcmul(shared.bias, of_place, scale.s[run, rows], out=room)
                    logits.addmm_(scaled[run, rows], C)
                    at_target = logits.gather(1, id_column)
                    top = logits.amax(1, keepdim=True)
                    exp_z = logits.sub_(top).exp_()
                    total = exp_z.sum(1, keepdim=True)
                    log_normaliser = top + total.log()
                    each[run, rows] = (log_normaliser - at_target)[:, 0]
                    if not wanted:
                        continue
                    error = exp_z.scatter_add_(1, id_column, -total)
                    back = error @ C.T
                    torch.div(back, total, out=d_scaled[run, rows])
                    if d_columns is not None:
                        d_columns[run].addmm_((scaled[run, rows] / total).T, error)
                    of_own = (back * z[run, rows]).sum(1, keepdim=True)
                    of_others = error.mul_(of_place).sum(1, keepdim=True)
                    torch.div(of_own + of_others, total, out=d_s[run, rows])
        if wanted:
            through_scale, d_W_O = scale.gradients(z, d_s, shared)
            d_z = d_scaled.mul_(scale.s).add_(through_scale)
            ctx.gradients = (d_z, d_W_O, d_columns)
        ctx.count = count
        ctx.mark_non_differentiable(each)
        return each.double().mean(1), each

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weight = (d_losses.float() / ctx.count)[:, None, None]
        of_inputs = []
        for gradient in ctx.gradients:
            of_inputs.append(None if gradient is None else gradient * weight)
        return *of_inputs, None, None


def _runs_at(place: int, places: list[int]) -> list[int]:
    return [run for run, other in enumerate(places) if other == place]
