"""Frozen weights, adapters, parametrised and tied weights: each once, named, and moved rightly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import QUIET, square
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import GPT2Config, GPT2LMHeadModel

import rllc

SAMPLING = rllc.Sampling(
    num_chains=2, num_draws=4, batch_size=8, start="center", control_variate=False, num_probes=0
)
X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class LowRank(nn.Module):
    """A linear map with an adapter: W + B A, W frozen, as LoRA has it."""

    def __init__(self, frozen: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = frozen.requires_grad_(False)
        self.lora_A = nn.Linear(frozen.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def adapted() -> nn.Module:
    """Two layers, of which the first has an adapter and the second is frozen."""
    return nn.Sequential(LowRank(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 1).requires_grad_(False))


def estimate(model, weights=None, **options) -> rllc.Estimate:
    return rllc.estimate(
        model, X, weights, loss=square, sampling=SAMPLING, compute=QUIET, **options
    )


def test_the_default_is_what_trains() -> None:
    model = adapted()
    est = estimate(model)
    assert est.weights == ("trainable",)
    adapter = estimate(model, rllc.parameters("*lora_*"))
    assert np.array_equal(est.value, adapter.value)
    assert rllc.trainable().count(model) == 2 * 3 + 5 * 2
    everything = estimate(model, rllc.everything())
    assert everything.weights == ("everything",)
    assert everything.value != est.value


def test_the_default_of_a_model_that_is_frozen_or_is_not() -> None:
    for flag in (True, False):
        model = nn.Linear(3, 1).requires_grad_(flag)
        assert estimate(model).weights == ("everything",)
    message = r"trainable\(\): all parameters of Linear are frozen \(requires_grad=False\)"
    with pytest.raises(rllc.InputError, match=message):
        rllc.trainable().masks(model)


def test_the_default_of_a_sweep_and_of_a_tracker() -> None:
    options = {"loss": square, "sampling": SAMPLING, "compute": QUIET}
    model = adapted()
    assert rllc.track({1: model}, X, **options).weights == ("trainable",)
    tracker = rllc.Tracker(X, **options)
    assert tracker(1, model).weights == ("trainable",)
    assert tracker(2, model).weights == ("trainable",)


def test_describe_counts_what_is_frozen() -> None:
    told = rllc.everything().describe(adapted())
    title, *lines = told.splitlines()
    frozen = (3 * 5 + 5) + (5 + 1)
    assert title == (
        f"everything: {frozen + 16} of {frozen + 16} weights, {frozen} of them frozen "
        f"(requires_grad=False)"
    )
    assert [line.endswith(", frozen") for line in lines] == [True, True, False, False, True, True]
    assert "frozen" not in rllc.trainable().describe(adapted())


# Parametrised weights.


def positions(model, weights, loss=square, data=X):
    """The step of a run, and what the loss is there."""
    steps = rllc.iterate(model, data, weights, loss=loss, sampling=SAMPLING, compute=QUIET)
    return list(steps)[-1]


def test_a_weight_that_is_computed_from_others_moves_through_them() -> None:
    """W = g v / |v|, row by row: the loss at a position, from the formula."""
    model = parametrizations.weight_norm(nn.Linear(3, 1))
    weights = rllc.parameters("weight")
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    assert tuple(weights.masks(model)) == names
    assert weights.count(model) == 1 + 3
    assert ", also weight" in weights.describe(model)
    sampling = rllc.Sampling(num_chains=2, num_draws=4, batch_size=16, start="center")
    steps = rllc.iterate(model, X, weights, loss=square, sampling=sampling, compute=QUIET)
    step = list(steps)[-1]
    for position, loss in zip(step.positions(0), step.loss[0], strict=True):
        g, v = position[:1], position[1:]
        W = g * v / v.norm()
        outputs = X @ W + model.bias.detach()
        assert (outputs**2).mean().item() == pytest.approx(loss.item(), rel=1e-5)
    with pytest.raises(
        rllc.InputError, match=r"'weight' is computed from .*original0, .*original1"
    ):
        rllc.parameters("weight", index=0).masks(model)


def test_everything_of_a_parametrised_model_is_what_it_is_computed_from() -> None:
    model = parametrizations.orthogonal(nn.Linear(3, 3))
    assert set(rllc.everything().masks(model)) == {"bias", "parametrizations.weight.original"}
    picked = rllc.parameters("weight", index=0).masks(model)
    assert int(picked["parametrizations.weight.original"].sum()) == 3


# Tied weights.


def tied_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        n_layer=1, n_embd=4, n_head=1, vocab_size=6, n_positions=8, tie_word_embeddings=True
    )
    return GPT2LMHeadModel(config).eval()


def test_tied_weights_are_there_once_under_each_name() -> None:
    model = tied_gpt2()
    first, other = "transformer.wte.weight", "lm_head.weight"
    for name in (first, other):
        masks = rllc.parameters(name).masks(model)
        assert list(masks) == [first]
    assert rllc.everything().count(model) == sum(p.numel() for p in model.parameters())
    assert (rllc.parameters(first) | rllc.parameters(other)).count(model) == 24
    assert (~rllc.parameters(other)).count(model) == rllc.everything().count(model) - 24
    assert ", also lm_head.weight" in rllc.parameters(other).describe(model)
    part = rllc.masks({other: torch.ones(6, 4, dtype=torch.bool)})
    assert list(part.masks(model)) == [first]


def test_tied_weights_move_together() -> None:
    """The loss at a position, with the matrix put into both places by hand."""
    model = tied_gpt2()
    rows = torch.randint(6, (8, 5))
    weights = rllc.parameters("lm_head.weight")
    step = positions(model, weights, loss=None, data=rows)
    other = tied_gpt2()
    other.load_state_dict(model.state_dict())
    for position, loss in zip(step.positions(0), step.loss[0], strict=True):
        with torch.no_grad():
            other.transformer.wte.weight.copy_(position.view(6, 4))
            expected = other(rows, labels=rows).loss.item()
        assert other.lm_head.weight is other.transformer.wte.weight
        assert expected == pytest.approx(loss.item(), rel=1e-5)


# Weights that cannot move.


class Phases(nn.Module):
    """A module with a complex parameter, and one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.ones(3))
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale * self.phase.real).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (rllc.everything(), r"'phase' \(torch.complex64\), 'codes' \(torch.int8\)"),
        (rllc.trainable(), r"'phase' \(torch.complex64\)"),
        (None, r"'phase' \(torch.complex64\)"),
        (~rllc.parameters("phase"), r"'codes' \(torch.int8\)"),
        (rllc.parameters("codes", index=0), r"'codes' \(torch.int8\)"),
    ],
)
def test_weights_that_cannot_move_are_an_error_that_names_them(weights, named) -> None:
    message = rf"take {named} of Phases, but only real .* & ~rllc.parameters\('"
    with pytest.raises(rllc.InputError, match=message):
        estimate(Phases(), weights)


def test_they_can_be_left_out_by_name() -> None:
    model = Phases()
    weights = rllc.everything() & ~rllc.parameters("phase") & ~rllc.parameters("codes")
    assert list(weights.masks(model)) == ["scale"]
    assert np.isfinite(estimate(model, weights).value).all()


# Layers and indices.


def test_layers_of_recurrent_networks() -> None:
    lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    names = set(rllc.layer(0).masks(lstm))
    kinds = [f"{kind}_{side}_l0" for kind in ("weight", "bias") for side in ("ih", "hh")]
    assert names == {*kinds, *(f"{kind}_reverse" for kind in kinds)}
    total = rllc.layer(0).count(lstm) + rllc.layer(1).count(lstm)
    assert total == rllc.everything().count(lstm)
    inside = nn.ModuleDict({"rnn": nn.GRU(2, 3), "out": nn.Linear(3, 1)})
    assert all(name.startswith("rnn.") for name in rllc.layer(0).masks(inside))
    with pytest.raises(rllc.InputError, match=r"layer\(2\): LSTM has layers \[0, 1\]"):
        rllc.layer(2).masks(lstm)


def test_a_list_of_indices() -> None:
    model = nn.Linear(4, 6)
    weights = rllc.parameters("weight", index=[0, 3, 5])
    assert weights.name == "weight[[0, 3, 5]]"
    assert hash(weights) == hash(rllc.parameters("weight", index=[0, 3, 5]))
    rows = weights.masks(model)["weight"].all(1)
    assert rows.tolist() == [True, False, False, True, False, True]
    columns = rllc.parameters("weight", index=(slice(None), [1])).masks(model)["weight"]
    assert columns.sum() == 6
    for wrong in ([True, False], [], "a", 1.5):
        with pytest.raises(rllc.InputError, match=r"integers, slices and|one list of integers"):
            rllc.parameters("weight", index=wrong)
