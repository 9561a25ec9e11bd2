"""Losses of runs that moved heads of the last block, against the whole hidden state's way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from marks import quickly
from tiny import QUIET, tiny_model, tiny_tokens

import rllc
from rllc.engine import attention_only
from rllc.engine.attention_only import TokenLoss

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
