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
    unmoved = residual - torch.matmul(old_z, writes.old_W_O)
    # Centring is linear: it is done once, to the unembedding.
    weighted = unembedding.w[:, None] * unembedding.W_U
    centred = weighted - weighted.mean(0)
    bias = unembedding.b @ unembedding.W_U + unembedding.b_U
    columns = writes.W_O @ centred
    old_columns = writes.old_W_O @ centred
    shared = _Shared(
        residual, unmoved, old_z, old_columns, writes.place, centred, bias, unembedding.eps
    )
    mean, each = _HeadsLoss.apply(z, writes.W_O, columns, shared, target)
    if target.home is None:
        return mean, each.unflatten(1, target.shape)
    return mean, at_home(each, target.home)


class _Shared(NamedTuple):
    residual: Tensor
    unmoved: Tensor
    old_z: Tensor
    old_columns: Tensor
    place: list[int]
    W: Tensor
    bias: Tensor
    eps: float


class _HeadsLoss(torch.autograd.Function):
    """The mean loss of each run and its gradient.

    Per position with outputs u of the heads and C = W_O·W: raw logits y = xW − u°C° + uC, logits
    s·y + b, e = softmax − target. Then ∂/∂u = s·eCᵀ, ∂/∂C = (s·u)ᵀe and ∂/∂s = e·y.

    The scale is s = (Var h + eps)^−½ of the hidden state h = x − u°W_O° + uW_O, of d numbers. So
    g = ∂/∂h = −s³/d · ∂/∂s · (h − mean h), which adds gW_Oᵀ to ∂/∂u and is ∂/∂W_O = uᵀg. The
    hidden state of a chunk of positions is forgotten with its logits: that of all would be most
    of a run's memory.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, W_O: Tensor, columns: Tensor, shared: _Shared, target: Target
    ) -> tuple[Tensor, Tensor]:
        runs, count, _ = z.shape
        width = W_O.shape[2]
        vocab = shared.W.shape[1]
        assert target.ids is not None
        each = z.new_empty(runs, count)
        wanted = any(ctx.needs_input_grad[:3])
        d_z = torch.empty_like(z)
        d_W_O = None
        d_columns = None
        if ctx.needs_input_grad[1]:
            d_W_O = torch.zeros_like(W_O)
            d_columns = torch.zeros_like(columns)
        pieces = list(chunks(count, vocab, z.device))
        rooms = z.new_empty(4, pieces[0].stop, vocab)
        for rows in pieces:
            ids = target.ids[rows]
            id_column = ids[:, None]
            of_all, of_place, raw_room, room = rooms[:, : len(ids)]
            torch.matmul(shared.residual[rows], shared.W, out=of_all)
            for place, old_z in enumerate(shared.old_z):
                old = shared.old_columns[place]
                torch.addmm(of_all, old_z[rows], old, alpha=-1, out=of_place)
                for run in _runs_at(place, shared.place):
                    C = columns[run]
                    u = z[run, rows]
                    hidden = torch.addmm(shared.unmoved[place, rows], u, W_O[run])
                    variance, mean = torch.var_mean(hidden, 1, correction=0, keepdim=True)
                    centred = hidden - mean
                    s = (variance + shared.eps).rsqrt()
                    raw = torch.addmm(of_place, u, C, out=raw_room)
                    logits = torch.addcmul(shared.bias, raw, s, out=room)
                    at_target = logits.gather(1, id_column)
                    top = logits.amax(1, keepdim=True)
                    total = logits.sub_(top).exp_().sum(1, keepdim=True)
                    log_normaliser = top + total.log()
                    each[run, rows] = (log_normaliser - at_target)[:, 0]
                    if not wanted:
                        continue
                    expected = torch.linalg.vecdot(logits, raw)[:, None] / total
                    d_s = expected - raw.gather(1, id_column)
                    d_hidden = centred * (-d_s * s**3 / width)
                    back = (logits @ C.T).div_(total)
                    d_u = s * (back - C.T[ids])
                    d_z[run, rows] = torch.addmm(d_u, d_hidden, W_O[run].T)
                    if d_W_O is not None and d_columns is not None:
                        d_W_O[run].addmm_(u.T, d_hidden)
                        scaled = u * s
                        d_columns[run].addmm_((scaled / total).T, logits)
                        d_columns[run].index_add_(1, ids, -scaled.T)
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
