"""Modules and data of unusual kinds: right, or refused by name before a chain runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rllc

ROWS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
SHORT = {
    "sampling": rllc.Sampling(
        num_draws=4, num_chains=2, batch_size=4, num_probes=0, control_variate=False
    ),
    "compute": rllc.Compute(progress=False),
}


def square(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[:, 0] ** 2


class Weight(nn.Module):
    """A linear map with a weight of any kind."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.T


class Checkpointed(nn.Module):
    """Two maps, the first of them computed again for its gradient, or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(4, 4)
            self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.last(self.first(x))
        hidden = checkpoint(self.first, x, use_reentrant=self.reentrant)
        return self.last(hidden)


def embedding(**options: object) -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4, **options), nn.Flatten())


IDS = torch.randint(0, 5, (16, 3), generator=torch.Generator().manual_seed(0))
MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "meta": (
        lambda: nn.Linear(4, 1, device="meta"),
        ROWS,
        "'weight' is on the device 'meta' and has no numbers; load weights first",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(1)),
        ROWS,
        "'0.weight' is lazy and has no shape yet; call the model once",
    ),
    "sparse": (
        lambda: Weight(torch.eye(4).to_sparse()),
        ROWS,
        "'w' is sparse (sparse_coo); make it dense",
    ),
    "nested": (
        lambda: Weight(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        ROWS,
        "'w' is a nested tensor; give each of its parts",
    ),
    "max_norm": (
        lambda: embedding(max_norm=0.5),
        IDS,
        "'0' is an embedding with max_norm=0.5, which rescales its own weights",
    ),
    "sparse gradients": (
        lambda: embedding(sparse=True),
        IDS,
        "'0' is an embedding with sparse gradients; set 0.sparse = False",
    ),
    "reentrant": (
        lambda: Checkpointed(True),
        ROWS,
        "Checkpointed: it uses reentrant checkpoints, which give no gradient",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_cannot_be_sampled_are_refused_by_name(name: str) -> None:
    make, rows, message = MODULES[name]
    model = make()
    with pytest.raises(rllc.InputError, match=re.escape(message)):
        rllc.estimate(model, rows, loss=square, **SHORT)


def test_an_embedding_with_max_norm_is_left_as_it_was() -> None:
    model = embedding(max_norm=0.5)
    before = model[0].weight.clone()
    with pytest.raises(rllc.InputError):
        rllc.estimate(model, IDS, loss=square, **SHORT)
    assert torch.equal(model[0].weight, before)


def test_checkpoints_that_are_not_reentrant_change_no_number() -> None:
    plain = rllc.estimate(Checkpointed(None), ROWS, loss=square, **SHORT)
    again = rllc.estimate(Checkpointed(False), ROWS, loss=square, **SHORT)
    assert again.value[0] == pytest.approx(plain.value[0], rel=1e-5)
    # torch itself is as it was, after the refusal, too.
    with pytest.raises(rllc.InputError):
        rllc.estimate(Checkpointed(True), ROWS, loss=square, **SHORT)
    x = ROWS.clone().requires_grad_()
    Checkpointed(True)(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("n_beta", [1e300, 1e31, 1e-300, 0.0, math.inf, math.nan])
def test_an_n_beta_that_float32_cannot_hold_is_refused(n_beta: float) -> None:
    with pytest.raises(rllc.InputError, match=r"`n_beta` must be a positive number, got .* 1e-30"):
        rllc.Sampling(n_beta=n_beta)


def test_complex_data_of_a_real_model_is_refused() -> None:
    rows = torch.randn(16, 4, dtype=torch.complex64)
    message = r"it is complex \(complex64 \[1, 4\]\), and Linear has no complex weights"
    with pytest.raises(rllc.InputError, match=message):
        rllc.estimate(nn.Linear(4, 1), rows, loss=square, **SHORT)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_none_is_found_in_a_late_row_before_any_chain(number: float) -> None:
    rows = ROWS.repeat(20, 1)
    rows[291, 2] = number
    message = "1 of its 320 rows hold numbers that are not finite, those of row 291, and"
    with pytest.raises(rllc.InputError, match=message):
        rllc.estimate(nn.Linear(4, 1), rows, loss=square, **SHORT)


def test_a_number_that_the_loss_leaves_out_is_none_of_our_business() -> None:
    def without_gaps(module: nn.Module, x: Tensor) -> Tensor:
        return module(x.nan_to_num(0.0, 0.0, 0.0))[:, 0] ** 2

    rows = ROWS.clone()
    rows[9, 2] = math.inf
    estimate = rllc.estimate(nn.Linear(4, 1), rows, loss=without_gaps, **SHORT)
    assert math.isfinite(estimate.value[0])


def test_a_loss_that_is_infinite_on_one_row_names_it_and_not_lr() -> None:
    def one_over(module: nn.Module, x: Tensor) -> Tensor:
        return module(x)[:, 0] ** 2 + 1 / x[:, 0].abs()

    rows = ROWS.clone()
    rows[11, 0] = 0.0
    message = r"1 of the 4 losses of .*minibatch.* are not finite, those of row 11; .*lr does not"
    with pytest.raises(rllc.InputError, match=message):
        rllc.estimate(nn.Linear(4, 1), rows, loss=one_over, **SHORT)


def test_whole_numbers_that_are_no_token_ids_say_how_to_be_features() -> None:
    rows = torch.randint(-5, 5, (16, 4), generator=torch.Generator().manual_seed(0))
    message = r"token ids must be in 0 … \d+, got -5. If these are numbers .* give them as floats"
    with pytest.raises(rllc.InputError, match=message):
        rllc.estimate(nn.Linear(4, 1), rows, loss=square, **SHORT)
    estimate = rllc.estimate(nn.Linear(4, 1), rows.float(), loss=square, **SHORT)
    assert math.isfinite(estimate.value[0])


# Losses of unusual kinds.


OTHER = nn.Linear(4, 1)
LOSSES: dict[str, tuple[Callable[..., object], str]] = {
    "of another module": (
        lambda module, x: square(OTHER, x),
        r"or it runs another module than the one that it is given; .* call `module`",
    ),
    "complex": (lambda module, x: square(module, x) + 0j, "gave complex losses; return real ones"),
    "of one argument": (
        lambda module: module,
        r"`loss` is called as loss\(module, batch\), but takes \(module\)",
    ),
    "of three arguments": (
        lambda module, x, y: module(x),
        r"takes \(module, x, y\) \(missing a required argument: 'y'\); .* functools.partial",
    ),
}


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("weights", [None, "0.weight"])
def test_losses_that_cannot_work_are_refused_by_what_they_do(
    case: str, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 0.0)
    loss, message = LOSSES[case]
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    chosen = None if weights is None else rllc.parameters(weights)
    with pytest.raises(rllc.InputError, match=message):
        rllc.sample(model, ROWS, chosen, loss=loss, **SHORT)


# What a model cannot take.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ROWS.double(),
            r"evaluating the loss of Linear on the first minibatch \(float64 \[4, 4\]\) failed: "
            r"RuntimeError: .* the weights are torch.float32: .* data.to\(torch.float32\)",
        ),
        (ROWS.half(), r"\(float16 \[4, 4\]\) failed: .* data.to\(torch.float32\)"),
        (ROWS[:, :3], r"failed: RuntimeError: .* called as loss\(module, batch\)"),
        ((ROWS, ROWS), r"\(float32 \[4, 4\], float32 \[4, 4\]\) failed: TypeError"),
        (ROWS.to_sparse(), "a tensor of layout torch.sparse_coo, .* give part.to_dense"),
    ],
)
def test_data_that_a_model_cannot_take_are_an_error_of_ours(data, message: str) -> None:
    with pytest.raises(rllc.InputError, match=message):
        rllc.sample(nn.Linear(4, 1), data, loss=square, **SHORT)
