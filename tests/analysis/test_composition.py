"""Composition scores: against dense float64 matrices, of hand-built heads, and of random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import bracket_model, induction_model
from tiny import tiny_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rllc.analysis.composition import Composition, compose, composition, plot_composition
from rllc.errors import InputError
from rllc.models import AttentionOnly
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

TENSORS = ("W_Q", "W_K", "W_V", "W_O")
Head = tuple[int, int]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def matrices_of(model: AttentionOnly, head: Head, fold: bool) -> dict[str, Tensor]:
    """The head's weights in float64, with LayerNorm as one more matrix before them."""
    layer, number = head
    block = model.blocks[layer]
    W = {name: getattr(block.attn, name)[number].detach().double() for name in TENSORS}
    if fold:
        d_model = model.config.d_model
        center = torch.eye(d_model).double() - 1 / d_model
        norm = center @ torch.diag(block.ln1.w.detach().double())
        for name in ("W_Q", "W_K", "W_V"):
            W[name] = norm @ W[name]
    return W


def score_of(L: Tensor, R: Tensor) -> Tensor:
    """‖L R‖/(‖L‖ ‖R‖) of stacks of matrices."""
    norms = L.norm(dim=(-2, -1)) * R.norm(dim=(-2, -1))
    return (L @ R).norm(dim=(-2, -1)) / norms


def dense(model: AttentionOnly, sender: Head, receiver: Head, input: str, fold: bool) -> float:
    """The formula, with d_model × d_model matrices."""
    of_sender = matrices_of(model, sender, fold)
    of_receiver = matrices_of(model, receiver, fold)
    L = of_sender["W_V"] @ of_sender["W_O"]
    right = {
        "Q": of_receiver["W_Q"] @ of_receiver["W_K"].T,
        "K": of_receiver["W_K"] @ of_receiver["W_Q"].T,
        "V": of_receiver["W_V"] @ of_receiver["W_O"],
    }
    return float(score_of(L, right[input]))


def stacks(model: AttentionOnly) -> list[Tensor]:
    stacked = []
    for name in TENSORS:
        stacked.append(torch.stack([getattr(b.attn, name).detach() for b in model.blocks]))
    return stacked


def random_weights(*shape: int, seed: int = 0) -> list[Tensor]:
    """W_Q, W_K, W_V and W_O of shape ``[layer, head, d_model, d_head]``; W_O transposed."""
    stream = torch.Generator().manual_seed(seed)
    W_Q, W_K, W_V, W_O = torch.randn(4, *shape, generator=stream)
    return [W_Q, W_K, W_V, W_O.mT.contiguous()]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("d_head", [4, 15])
def test_every_pair_equals_dense_matrices(fold: bool, d_head: int) -> None:
    """Heads wider than the model have singular Gram matrices."""
    model = tiny_model(n_layers=3, d_head=d_head)
    result = compose(model, fold=fold)
    assert result.value.shape == (3, 3, 3, 3, 3)
    for index in np.ndindex(result.value.shape):
        number, sender_layer, sender, receiver_layer, receiver = index
        value = result.value[index]
        if sender_layer >= receiver_layer:
            assert np.isnan(value)
            continue
        input = "QKV"[number]
        expected = dense(model, (sender_layer, sender), (receiver_layer, receiver), input, fold)
        assert value == pytest.approx(expected, rel=1e-4)
        path = (f"{sender_layer}:{sender}", f"{receiver_layer}:{receiver}", input)
        assert result[path] == value


def test_a_previous_token_head_composes_with_the_keys_of_an_induction_head() -> None:
    """L copies 12 tokens, R compares 12: 12 equal singular values, so 1/√12; all else is 0."""
    result = compose(induction_model())
    assert result["0:0", "1:1", "K"] == pytest.approx(12**-0.5, rel=1e-5)
    assert result["0:0", "1:1", "Q"] == 0
    assert result["0:0", "1:1", "V"] == 0
    best = result.to_dataframe().sort_values("composition").iloc[-1]
    assert (best["sender"], best["receiver"], best["input"]) == ("0:0", "1:1", "K")


def test_an_idle_head_reads_nothing() -> None:
    assert np.isnan(compose(induction_model())["0:0", "1:0", "K"])


def test_composition_in_a_bracket_model() -> None:
    """Depth goes into the queries of layer 1; whether it is reached, into those of 2:0."""
    result = compose(bracket_model())
    for i in range(3):
        assert result["0:0", f"1:{i}", "Q"] == pytest.approx(1, rel=1e-5)
        assert result["0:0", f"1:{i}", "V"] == 0
        assert result[f"1:{i}", "2:0", "Q"] > 0.1
        assert result[f"1:{i}", "2:0", "V"] == 0


def test_scales_of_layer_norms_do_not_matter() -> None:
    model = tiny_model()
    expected = compose(model).value
    for block in model.blocks:
        normal = torch.randn(12, generator=torch.Generator().manual_seed(1))
        scale = torch.exp(normal)
        block.ln1.w.data *= scale
        for name in ("W_Q", "W_K", "W_V"):
            getattr(block.attn, name).data /= scale[:, None]
    assert np.allclose(compose(model).value, expected, rtol=1e-4, equal_nan=True)
    unfolded = compose(model, fold=False).value
    assert not np.allclose(unfolded, expected, rtol=1e-2, equal_nan=True)


def test_the_random_baseline() -> None:
    """E score² = 1/d_model; 64² pairs of 64 + 64 heads, so the error is about sd/√64."""
    W = random_weights(2, 2, 40, 5)
    result = composition(*W, num_random=64)
    square = result.baseline**2 + result.baseline_sd**2
    error = 2 * result.baseline * result.baseline_sd / 8
    assert square == pytest.approx(1 / 40, abs=5 * error)
    again = composition(*W, num_random=64)
    assert (again.baseline, again.baseline_sd) == (result.baseline, result.baseline_sd)
    assert composition(*W, num_random=64, seed=1).baseline != result.baseline


def test_random_heads_score_like_the_baseline() -> None:
    result = composition(*random_weights(2, 40, 40, 5), num_random=64)
    scores = result.matrix("K")[:40, 40:]
    error = result.baseline_sd / np.sqrt(40)
    assert scores.mean() == pytest.approx(result.baseline, abs=6 * error)
    assert scores.std() == pytest.approx(result.baseline_sd, rel=0.3)


def test_pairs_cost_a_fifth_of_their_low_rank_products() -> None:
    """Those take 2·d_head²·d_model operations a pair and input.

    All is counted here, also what is done once a head.
    """
    layers, heads, d_model, d_head = 12, 12, 128, 32
    W = random_weights(layers, heads, d_model, d_head)
    with FlopCounterMode(display=False) as counter:
        composition(*W, num_random=2)
    num_pairs = layers * (layers - 1) // 2 * heads**2
    low_rank = 3 * num_pairs * 2 * d_head**2 * d_model
    assert counter.get_total_flops() < 0.2 * low_rank


@pytest.mark.parametrize("leak", [0.0, 1e-3, 1e-2, 1.0])
def test_small_scores_are_not_lost_in_rounding(leak: float) -> None:
    """What is written in some directions and read in others, but for a leak.

    Of float32 weights, in float64.
    """
    d_model, d_head = 40, 6
    stream = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(d_model, d_model, generator=stream)).Q
    written, read = rotation[:, :20], rotation[:, 20:]
    W_Q, W_K, W_V = (read @ torch.randn(2, 3, 20, d_head, generator=stream) for _ in range(3))
    W_O = torch.randn(2, 3, d_head, 20, generator=stream) @ written.T
    W_O = W_O + leak * torch.randn(2, 3, d_head, 20, generator=stream) @ read.T
    value = composition(W_Q, W_K, W_V, W_O, num_random=2).value
    W_Q, W_K, W_V, W_O = W_Q.double(), W_K.double(), W_V.double(), W_O.double()
    L = (W_V[0] @ W_O[0])[:, None]
    for number, R in enumerate((W_Q @ W_K.mT, W_K @ W_Q.mT, W_V @ W_O)):
        expected = score_of(L, R[1])
        assert value[number, 0, :, 1] == pytest.approx(expected.numpy(), rel=5e-6, abs=3e-7)


def test_tables() -> None:
    result = compose(tiny_model(n_layers=3))
    frame = result.to_dataframe()
    assert len(frame) == 3 * 27
    row = frame.iloc[0]
    assert row["composition"] == result[row["sender"], row["receiver"], row["input"]]
    z = (row["composition"] - result.baseline) / result.baseline_sd
    assert row["z"] == pytest.approx(z)
    best = frame.sort_values("composition").iloc[-1]
    _, _, first, *others = repr(result).splitlines()
    assert first.startswith(f"{best['sender']}->{best['receiver']}.{best['input']}")
    assert len(others) == 9
    assert len(repr(compose(tiny_model(n_layers=1))).splitlines()) == 2


def test_figure() -> None:
    result = compose(tiny_model(n_layers=3))
    _, ax = plt.subplots()
    assert plot_composition(result, "V", ax=ax) is ax
    excess = result["0:0", "1:0", "V"] - result.baseline
    assert ax.images[0].get_array()[0, 0] == pytest.approx(excess)
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        compose(model)


def composed(**options: Any) -> Composition:
    return compose(tiny_model(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compose(nn.Linear(2, 2)),
            r"heads\(Linear\): expected attention",
        ),
        (
            lambda: composition(*stacks(tiny_model())[:3], stacks(tiny_model())[0]),
            r"and W_O as \[layer, head, d_head, d_model\], got \(\(2, 3",
        ),
        (
            lambda: composition(*(W[0] for W in stacks(tiny_model()))),
            r"expected W_Q, W_K and W_V as \[layer, head, d_model, d_head\]",
        ),
        (lambda: composed(num_random=1), "`num_random` must be at least 2, got 1"),
        (lambda: composed()["0:0", "1:0", "O"], "`input` must be 'Q', 'K' or 'V', got 'O'"),
        (lambda: composed()["0:0", "5:0", "Q"], "composition.'5:0'.: no such head; did you mean"),
        (
            lambda: composed()["0:0"],
            r"expected two heads and an input: composition\['0:4', '1:6', 'K'\]",
        ),
        (lambda: plot_composition(compose(tiny_model(n_layers=1))), "the model has one layer"),
    ],
)
def test_errors_say_what_to_type(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
