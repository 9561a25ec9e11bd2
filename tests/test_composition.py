"""Composition scores: against dense float64 matrices, of hand-built heads, and of random ones."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import bracket_model, induction_model
from tiny import tiny_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rllc.analysis.composition import compose, composition, plot_composition
from rllc.errors import InputError
from rllc.models import AttentionOnly
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def dense(
    model: AttentionOnly,
    sender: tuple[int, int],
    receiver: tuple[int, int],
    letter: str,
    fold: bool,
) -> float:
    """The formula, with d_model × d_model matrices and LayerNorm as one of them."""
    d = model.config.d_model

    def matrices(head: tuple[int, int]) -> dict[str, Tensor]:
        block = model.blocks[head[0]]
        W = {
            name: getattr(block.attn, name)[head[1]].detach().double()
            for name in ("W_Q", "W_K", "W_V", "W_O")
        }
        if fold:
            norm = (torch.eye(d).double() - 1 / d) @ torch.diag(block.ln1.w.detach().double())
            W |= {name: norm @ W[name] for name in ("W_Q", "W_K", "W_V")}
        return W

    s, r = matrices(sender), matrices(receiver)
    L = s["W_V"] @ s["W_O"]
    R = {"Q": r["W_Q"] @ r["W_K"].T, "K": r["W_K"] @ r["W_Q"].T, "V": r["W_V"] @ r["W_O"]}[letter]
    return float((L @ R).norm() / (L.norm() * R.norm()))


def stacks(model: AttentionOnly) -> list[Tensor]:
    return [
        torch.stack([getattr(b.attn, n).detach() for b in model.blocks])
        for n in ("W_Q", "W_K", "W_V", "W_O")
    ]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("d_head", [4, 15])
def test_every_pair_equals_dense_matrices(fold: bool, d_head: int) -> None:
    model = tiny_model(
        n_layers=3, d_head=d_head
    )  # heads wider than the model have singular Gram matrices
    result = compose(model, fold=fold)
    assert result.value.shape == (3, 3, 3, 3, 3)
    for i, ls, hs, lr, hr in np.ndindex(result.value.shape):
        value, name = result.value[i, ls, hs, lr, hr], (f"{ls}:{hs}", f"{lr}:{hr}", "QKV"[i])
        if ls >= lr:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(
                dense(model, (ls, hs), (lr, hr), "QKV"[i], fold), rel=1e-4
            )
            assert result[name] == value


def test_a_previous_token_head_composes_with_the_keys_of_an_induction_head() -> None:
    """L copies 12 tokens, R compares 12: all 12 singular values alike, so 1/√12; nothing else reads anything."""
    result = compose(induction_model())
    assert result["0:0", "1:1", "K"] == pytest.approx(12**-0.5, rel=1e-5)
    assert result["0:0", "1:1", "Q"] == result["0:0", "1:1", "V"] == 0
    assert np.isnan(result["0:0", "1:0", "K"])  # an idle head reads nothing
    best = result.to_dataframe().sort_values("composition").iloc[-1]
    assert (best["sender"], best["receiver"], best["input"]) == ("0:0", "1:1", "K")


def test_composition_in_a_bracket_model() -> None:
    """Depth goes into the queries of layer 1, whether it is reached into queries and keys of the bracket head."""
    result = compose(bracket_model())
    for i in range(3):
        assert result["0:0", f"1:{i}", "Q"] == pytest.approx(1, rel=1e-5)
        assert result["0:0", f"1:{i}", "V"] == 0
        assert result[f"1:{i}", "2:0", "Q"] > 0.1
        assert result[f"1:{i}", "2:0", "V"] == 0


def test_scales_of_layer_norms_do_not_matter() -> None:
    model = tiny_model()
    before = compose(model)
    for block in model.blocks:
        scale = torch.exp(torch.randn(12, generator=torch.Generator().manual_seed(1)))
        block.ln1.w.data *= scale
        for name in ("W_Q", "W_K", "W_V"):
            getattr(block.attn, name).data /= scale[:, None]
    assert np.allclose(compose(model).value, before.value, rtol=1e-4, equal_nan=True)
    assert not np.allclose(
        compose(model, fold=False).value, before.value, rtol=1e-2, equal_nan=True
    )


def test_the_random_baseline() -> None:
    """E score² = 1/d_model; 64² pairs of 64 + 64 heads, so the error is about sd/√64."""
    W = [torch.randn(2, 2, 40, 5) for _ in range(3)] + [torch.randn(2, 2, 5, 40)]
    result = composition(*W, num_random=64)
    square = result.baseline**2 + result.baseline_sd**2
    assert square == pytest.approx(1 / 40, abs=5 * 2 * result.baseline * result.baseline_sd / 8)
    again, other = composition(*W, num_random=64), composition(*W, num_random=64, seed=1)
    assert (again.baseline, again.baseline_sd) == (result.baseline, result.baseline_sd)
    assert other.baseline != result.baseline
    fresh = composition(
        *(
            torch.randn(2, 40, *w.shape[2:], generator=torch.Generator().manual_seed(i))
            for i, w in enumerate(W)
        )
    )
    scores = fresh.matrix("K")[:40, 40:]  # random heads score like the baseline
    assert scores.mean() == pytest.approx(result.baseline, abs=6 * result.baseline_sd / np.sqrt(40))
    assert scores.std() == pytest.approx(result.baseline_sd, rel=0.3)


def test_pairs_cost_a_fifth_of_their_low_rank_products() -> None:
    """Those take 2·d_head²·d_model operations a pair and input; all is counted here, also what is done once a head."""
    layers, heads, d, k = 12, 12, 128, 32
    W = [torch.randn(layers, heads, d, k) for _ in range(3)] + [torch.randn(layers, heads, k, d)]
    with FlopCounterMode(display=False) as counter:
        composition(*W, num_random=2)
    pairs = layers * (layers - 1) // 2 * heads**2
    assert counter.get_total_flops() < 0.2 * 3 * pairs * 2 * k * k * d


@pytest.mark.parametrize("leak", [0.0, 1e-3, 1e-2, 1.0])
def test_small_scores_are_not_lost_in_rounding(leak: float) -> None:
    """What is written in some directions and read in others, but for a leak; of float32 weights, in float64."""
    d, k = 40, 6
    stream = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=stream))[0]
    W_Q, W_K, W_V = (
        rotation[:, 20:] @ torch.randn(2, 3, 20, k, generator=stream) for _ in range(3)
    )
    W_O = torch.randn(2, 3, k, 20, generator=stream) @ rotation[:, :20].T
    W_O = W_O + leak * torch.randn(2, 3, k, 20, generator=stream) @ rotation[:, 20:].T
    value = composition(W_Q, W_K, W_V, W_O, num_random=2).value
    L = W_V[0].double() @ W_O[0].double()
    right = {0: (W_Q, W_K.mT), 1: (W_K, W_Q.mT), 2: (W_V, W_O)}
    for i, (C, D) in right.items():
        R = C[1].double() @ D[1].double()
        expected = (
            (L[:, None] @ R).norm(dim=(2, 3)) / L.norm(dim=(1, 2))[:, None] / R.norm(dim=(1, 2))
        )
        assert value[i, 0, :, 1] == pytest.approx(expected.numpy(), rel=5e-6, abs=3e-7)


def test_tables_and_figures() -> None:
    result = compose(tiny_model(n_layers=3))
    frame = result.to_dataframe()
    assert len(frame) == 3 * 27
    row = frame.iloc[0]
    assert row["composition"] == result[row["sender"], row["receiver"], row["input"]]
    assert row["z"] == pytest.approx((row["composition"] - result.baseline) / result.baseline_sd)
    assert len(repr(result).splitlines()) == 12
    top = frame.sort_values("composition").iloc[-1]
    assert (
        repr(result)
        .splitlines()[2]
        .startswith(f"{top['sender']}->{top['receiver']}.{top['input']}")
    )
    _, given = plt.subplots()
    assert plot_composition(result, "V", ax=given) is given
    assert given.images[0].get_array()[0, 0] == pytest.approx(
        result["0:0", "1:0", "V"] - result.baseline
    )
    assert [t.get_text() for t in given.get_yticklabels()] == [
        "0:0",
        "0:1",
        "0:2",
        "1:0",
        "1:1",
        "1:2",
    ]
    assert len(repr(compose(tiny_model(n_layers=1))).splitlines()) == 2


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        compose(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: compose(nn.Linear(2, 2)),
            r"compose\(Linear\): expected parameters named like 'blocks\.0\.attn\.W_Q'",
        ),
        (
            lambda m: composition(*stacks(m)[:3], stacks(m)[0]),
            r"and W_O as \[layer, head, d_head, d_model\], got \(\(2, 3",
        ),
        (
            lambda m: composition(*(W[0] for W in stacks(m))),
            r"expected W_Q, W_K and W_V as \[layer, head, d_model, d_head\]",
        ),
        (lambda m: compose(m, num_random=1), "`num_random` must be at least 2, got 1"),
        (lambda m: compose(m)["0:0", "1:0", "O"], "`input` must be 'Q', 'K' or 'V', got 'O'"),
        (lambda m: compose(m)["0:0", "5:0", "Q"], "composition.'5:0'.: no such head; did you mean"),
        (
            lambda m: compose(m)["0:0"],
            r"expected two heads and an input: composition\['0:4', '1:6', 'K'\]",
        ),
        (lambda m: plot_composition(compose(tiny_model(n_layers=1))), "the model has one layer"),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
