"""The sweep over the vocabulary, against cross entropy of all logits in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllc.engine import unembedding
from rllc.engine.unembedding import Target, mean_and_each, near_center

RUNS, POSITIONS, WIDTH, VOCAB = 3, 40, 16, 50


def problem(scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states ``[run, 1, position, d_model]``, W, b, and the tokens to predict."""
    torch.manual_seed(seed)
    center = torch.randn(1, 1, POSITIONS, WIDTH)
    hidden = scale * (center + 0.05 * torch.randn(RUNS, 1, POSITIONS, WIDTH))
    W = torch.randn(1, WIDTH, VOCAB)
    b = torch.randn(1, VOCAB)
    return hidden, W, b, torch.randint(VOCAB, (POSITIONS,))


def slow(hidden: Tensor, W: Tensor, b: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Losses ``[run, position]`` and the gradients of the sum of their means."""
    inputs = [values.detach().double().requires_grad_() for values in (hidden, W, b)]
    x, W, b = inputs
    logits = x[:, 0] @ W + b[:, None]
    each = F.cross_entropy(logits.mT, ids.expand(RUNS, -1), reduction="none")
    return each.detach(), *torch.autograd.grad(each.mean(1).sum(), inputs)


@pytest.mark.parametrize("of_each_run", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_losses_and_slopes(low: bool, of_each_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three chunks of positions, of which the last is shorter.
    monkeypatch.setattr(unembedding, "_CPU_LOGITS", 16 * VOCAB)
    hidden, W, b, ids = problem()
    if of_each_run:
        W = W + 0.1 * torch.randn(RUNS, WIDTH, VOCAB)
        b = b + 0.1 * torch.randn(RUNS, VOCAB)
    right = slow(hidden, W, b, ids)
    target = Target((1, POSITIONS), ids, None)
    if low:
        at_center = (hidden[0, 0] @ W[0] + b[0]).logsumexp(-1)
        target = target._replace(normaliser_at_center=at_center)
    inputs = [values.requires_grad_() for values in (hidden, W, b)]
    mean, each = mean_and_each(*inputs, target, torch.bfloat16 if low else None)
    slopes = torch.autograd.grad(mean.sum(), inputs)
    if not of_each_run:
        # Of a matrix that runs share no gradient is asked for.
        right, slopes = right[:2], slopes[:1]
    for got, wanted in zip([each[:, 0], *slopes], right, strict=True):
        assert (got.detach() - wanted).norm() < (0.02 if low else 1e-6) * wanted.norm()


def test_low_precision_is_more_exact_less_what_the_center_has() -> None:
    """Logits are rounded to 8 bits, and those of likely tokens are then near 0."""
    errors = torch.zeros(2, 2)
    for seed in range(10):
        hidden, W, b, ids = problem(3.0, seed)
        right = slow(hidden, W, b, ids)
        as_they_are = Target((1, POSITIONS), ids, None)
        at_center = (hidden[:1, 0] @ W + b).logsumexp(-1)[0]
        near = as_they_are._replace(normaliser_at_center=at_center)
        for i, target in enumerate((near, as_they_are)):
            x = hidden.detach().requires_grad_()
            mean, each = mean_and_each(x, W, b, target, torch.bfloat16)
            (slope,) = torch.autograd.grad(mean.sum(), x)
            errors[i, 0] += (each[:, 0] - right[0]).square().sum()
            errors[i, 1] += (slope - right[1]).square().sum()
    of_losses, of_slopes = (errors[0] / errors[1]).sqrt().tolist()
    assert of_losses < 0.8
    assert of_slopes < 0.8


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_runs_that_stay_at_the_center_have_its_losses(autocast: torch.dtype | None) -> None:
    """So that differences between them are no rounding, however low the precision."""
    hidden, W, b, ids = problem()
    center = hidden[:1]
    target = near_center(center, W, b, Target((1, POSITIONS), ids, None), autocast)
    _, each = mean_and_each(center, W, b, target, autocast)
    _, of_runs = mean_and_each(hidden[:1].expand(2, -1, -1, -1), W, b, target, autocast)
    assert of_runs.equal(each.expand(2, -1, -1))
    error = (each[:, 0] - slow(hidden, W, b, ids)[0][:1]).abs().mean()
    assert error < (0.02 if autocast else 1e-5)
