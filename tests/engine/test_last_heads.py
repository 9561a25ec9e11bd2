"""Losses of runs that moved heads of the last block, against the whole hidden state's way.

And against that way in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from marks import quickly
from tiny import QUIET, tiny_model, tiny_tokens
from torch import Tensor

import rllc
from rllc.engine import attention_only
from rllc.engine.attention_only import TokenLoss
from rllc.engine.last_heads import Unembedding, Writes, mean_and_each_of_heads
from rllc.engine.unembedding import Target

WIDE = {"d_model": 16, "n_heads": 4, "d_head": 4, "d_vocab": 50}
CHOICES: dict[str, Any] = {
    "heads": ["1:1", "1:3", "1:0"],
    "two heads": [rllc.head("1:0") | rllc.head("1:2")],
    "values alone": [rllc.parameters("blocks.1.attn.W_V", index=slice(1, 2)).named("v")],
    "a part of a head": [rllc.parameters("blocks.1.attn.W_O", index=(2, slice(0, 2))).named("o")],
}
RAGGED = {"input_ids": [list(range(length)) for length in (8, 5, 8, 3, 8, 6, 7, 8)]}
DATA = {"all count": tiny_tokens(8, pos=8), "padded": rllc.data.as_data(RAGGED)}


def sampled(choice: str, data: str) -> rllc.Draws:
    sampling = rllc.Sampling(
        num_chains=2, num_draws=4, batch_size=8, start="center", num_probes=2, n_beta=300
    )
    observe = {"rows": rllc.losses_on(DATA[data], keep="all"), "far": rllc.distance()}
    return rllc.sample(
        tiny_model(**WIDE),
        DATA[data],
        CHOICES[choice],
        sampling=sampling,
        compute=QUIET,
        observe=observe,
    )


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("choice", quickly(("heads", "two heads"), CHOICES))
def test_losses_and_gradients_are_those_of_the_whole_way(
    choice: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    way = attention_only.mean_and_each_of_heads

    def counted(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        taken.append(1)
        return way(*arguments)

    monkeypatch.setattr(attention_only, "mean_and_each_of_heads", counted)
    near = sampled(choice, data)
    assert taken
    monkeypatch.setattr(TokenLoss, "_is_narrow", lambda *_: False)
    taken.clear()
    far = sampled(choice, data)
    assert not taken
    # Four steps of a chain at nβ = 300 follow its gradients.
    for name in ("rows", "far", "discretisation"):
        one, other = (torch.tensor(draws.observed[name]) for draws in (near, far))
        torch.testing.assert_close(one, other, rtol=5e-5, atol=2e-5, equal_nan=True)
    one, other = torch.tensor(near.loss), torch.tensor(far.loss)
    torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("weights", ["0:1", rllc.layer(1), rllc.everything()])
def test_other_weights_go_the_whole_way(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_only, "mean_and_each_of_heads", lambda *_: pytest.fail("taken"))
    sampling = rllc.Sampling(
        1, 1, batch_size=4, num_probes=0, start="center", control_variate=False
    )
    rows = DATA["all count"]
    rllc.sample(tiny_model(**WIDE), rows, weights, sampling=sampling, compute=QUIET)


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
    writes = Writes(z, W_O, old_z, old_W_O, PLACES, residual)
    return writes, unembedding, Target((1, POSITIONS), ids, None)


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


@pytest.mark.parametrize(("cancels", "tolerance"), [(False, 1e-5), (True, 5e-3)])
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
