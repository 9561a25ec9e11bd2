"""Losses of heads of the last block, against the whole unembedding in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllc.engine.last_heads import Unembedding, Writes, mean_and_each_of_heads
from rllc.engine.unembedding import Target

POSITIONS, COLUMNS, WIDTH, VOCAB = 64, 8, 32, 50
PLACES = [0, 1, 1]  # of each run: the second and the third move the same heads


def problem(cancels: bool) -> tuple[Writes, Unembedding, Target]:
    torch.manual_seed(0)
    z = torch.randn(len(PLACES), POSITIONS, COLUMNS)
    W_O = torch.randn(len(PLACES), COLUMNS, WIDTH)
    old_z = torch.randn(2, POSITIONS, COLUMNS)
    old_W_O = torch.randn(2, COLUMNS, WIDTH)
    residual = torch.randn(POSITIONS, WIDTH)
    if cancels:
        # What the first run's head writes takes off all but a thousandth of the rest.
        residual = old_z[0] @ old_W_O[0] - z[0] @ W_O[0] + 0.001 * residual
    unembedding = Unembedding(
        w=torch.rand(WIDTH) + 0.5,
        b=torch.randn(WIDTH),
        eps=1e-5,
        W_U=torch.randn(WIDTH, VOCAB),
        b_U=torch.randn(VOCAB),
    )
    ids = torch.randint(VOCAB, (POSITIONS,))
    return Writes(z, W_O, old_z, old_W_O, PLACES, residual), unembedding, Target((1, 64), ids, None)


def slow(writes: Writes, unembedding: Unembedding, ids: Tensor) -> tuple[Tensor, ...]:
    """Losses ``[run, position]`` and the gradients of the sum of their means."""
    z, W_O, old_z, old_W_O, places, residual = writes
    z, W_O = z.double().requires_grad_(), W_O.double().requires_grad_()
    old_written = (old_z.double() @ old_W_O.double())[places]
    hidden = residual.double() - old_written + z @ W_O
    w, b, eps, W_U, b_U = unembedding
    normalised = F.layer_norm(hidden, (WIDTH,), w.double(), b.double(), eps)
    logits = normalised @ W_U.double() + b_U.double()
    each = F.cross_entropy(logits.mT, ids.expand(len(places), -1), reduction="none")
    return each.detach(), *torch.autograd.grad(each.mean(1).sum(), [z, W_O])


@pytest.mark.parametrize(("cancels", "tolerance"), [(False, 1e-5), (True, 1e-3)])
def test_losses_and_slopes_are_those_of_the_whole_hidden_state(
    cancels: bool, tolerance: float
) -> None:
    writes, unembedding, target = problem(cancels)
    assert target.ids is not None
    expected = slow(writes, unembedding, target.ids)
    leaves = [writes.z.requires_grad_(), writes.W_O.requires_grad_()]
    mean, each = mean_and_each_of_heads(writes, unembedding, target)
    slopes = torch.autograd.grad(mean.sum(), leaves)
    for got, right in zip([each[:, 0], *slopes], expected, strict=True):
        assert (got.detach() - right).norm() < tolerance * right.norm()
