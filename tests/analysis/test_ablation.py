"""Ablations: against models whose weights were changed by hand, and of heads with known effect."""

from __future__ import annotations

import copy
from math import log

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import BOS, LOGIT, bracket_model, bracket_rows, induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rllc
from rllc.analysis.ablation import ablate, mean_outputs, plot_ablation
from rllc.analysis.rows import other_rows
from rllc.errors import InputError
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.tables import rounded
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
ROWS = tiny_tokens(6).rows.long()
HEADS = [(layer, head) for layer in range(3) for head in range(3)]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def token_losses(model: AttentionOnly, rows: Tensor) -> np.ndarray:
    """``[row, pos − 1]``."""
    with torch.no_grad():
        logits = model(rows).logits[:, :-1]
    return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").numpy()


def outputs(
    model: AttentionOnly,
    rows: Tensor,
    layer: int,
    head: int,
) -> Tensor:
    """z of a head ``[row, pos, d_head]``, from the model's own patterns and hidden states."""
    config, block = model.config, model.blocks[layer]
    with torch.no_grad():
        out = model(rows, output_attentions=True, output_hidden_states=True)
        x = out.hidden_states[layer]
        u = F.layer_norm(x, (config.d_model,), block.ln1.w, block.ln1.b, config.layer_norm_eps)
        values = u @ block.attn.W_V[head] + block.attn.b_V[head]
        return out.attentions[layer][:, head] @ values


def change_without(
    model: AttentionOnly,
    heads: list[tuple[int, int]],
    constant: dict | None = None,
) -> np.ndarray:
    """The change of the losses when heads write nothing, or a constant.

    It is measured on a copy of the model, with W_O = 0 and the constant in b_O.
    """
    changed = copy.deepcopy(model)
    for layer, head in heads:
        attn = changed.blocks[layer].attn
        if constant is not None:
            attn.b_O.data += constant[layer, head] @ attn.W_O.data[head]
        attn.W_O.data[head] = 0
    return token_losses(changed, ROWS) - token_losses(model, ROWS)


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
def test_zero_is_an_output_matrix_of_zeros(positions: str) -> None:
    model = tiny_model(n_layers=3, positions=positions)
    result = ablate(model, ROWS, method="zero")
    assert np.allclose(result.loss, token_losses(model, ROWS), atol=1e-5)
    assert result.names == tuple(f"{layer}:{head}" for layer, head in HEADS)
    for i, head in enumerate(HEADS):
        expected = change_without(model, [head])
        assert np.allclose(result.tokens[i], expected, atol=2e-5)


def test_mean_is_a_constant_in_the_bias() -> None:
    model, reference = tiny_model(n_layers=3), tiny_tokens(9, seed=5)
    means = {}
    for head in HEADS:
        z = outputs(model, reference.rows.long(), *head)
        means[head] = z[:, :-1].mean((0, 1))
    result = ablate(model, ROWS, method="mean", reference=reference)
    for i, head in enumerate(HEADS):
        expected = change_without(model, [head], means)
        assert np.allclose(result.tokens[i], expected, atol=2e-5)
    own = ablate(model, ROWS)
    assert np.allclose(own.delta, ablate(model, ROWS, reference=ROWS).delta)
    assert not np.allclose(own.delta, result.delta)


@pytest.mark.parametrize("chosen", [[(0, 1), (0, 2)], [(0, 1), (2, 2)], [(1, 0), (1, 1), (2, 0)]])
def test_a_set_is_replaced_together(chosen: list[tuple[int, int]]) -> None:
    model = tiny_model(n_layers=3)
    weights = rllc.head(*chosen[0])
    for head in chosen[1:]:
        weights = weights | rllc.head(*head)
    result = ablate(model, ROWS, {"set": weights, "one": "1:2"}, method="zero")
    assert result.names == ("set", "one")
    assert np.allclose(result.tokens[0], change_without(model, chosen), atol=2e-5)
    assert np.allclose(result.tokens[1], change_without(model, [(1, 2)]), atol=2e-5)


def test_means_by_position_and_over_all() -> None:
    model = tiny_model(n_layers=3)
    over_all = mean_outputs(model, ROWS)
    by_position = mean_outputs(model, ROWS, per_position=True)
    for layer, head in HEADS:
        z = outputs(model, ROWS, layer, head)[:, :-1]
        assert torch.allclose(over_all[layer][0, head, 0], z.mean((0, 1)), atol=1e-6)
        assert torch.allclose(by_position[layer][0, head], z.mean(0), atol=1e-6)


@pytest.mark.parametrize("method", ["position_mean", "resample"])
def test_activations_by_position_in_the_last_layer(method: str) -> None:
    """There the losses follow from the last hidden state by hand."""
    model = tiny_model()
    result = ablate(model, ROWS, "1:2", method=method, seed=4)
    z = outputs(model, ROWS, 1, 2)
    if method == "position_mean":
        replacement = z.mean(0, keepdim=True)
    else:
        replacement = z[other_rows(6, 4, "")]
    with torch.no_grad():
        x = model(ROWS, output_hidden_states=True).hidden_states[-1]
        x = x + (replacement - z) @ model.blocks[1].attn.W_O[2]
        hidden = model.normalise("ln_final", x[None], {})[0]
        logits = hidden @ model.unembed.W_U + model.unembed.b_U
    losses = F.cross_entropy(logits[:, :-1].mT, ROWS[:, 1:], reduction="none").numpy()
    assert np.allclose(result.tokens[0], losses - token_losses(model, ROWS), atol=1e-5)


def test_resampling_takes_every_row_once_and_none_its_own() -> None:
    for count in (2, 3, 10):
        other = other_rows(count, 0, "")
        assert sorted(other.tolist()) == list(range(count))
        assert not (other == torch.arange(count)).any()


def test_resampling_from_equal_rows_changes_nothing() -> None:
    equal_rows = ROWS[:1].expand(6, -1)
    assert np.allclose(ablate(tiny_model(), equal_rows, method="resample").tokens, 0, atol=1e-6)


def test_resampling_from_a_reference_depends_on_the_seed() -> None:
    model, reference = tiny_model(), tiny_tokens(20, seed=3)
    deltas = []
    for seed in (0, 0, 1):
        result = ablate(model, ROWS, method="resample", reference=reference, seed=seed)
        deltas.append(result.delta)
    assert np.array_equal(deltas[0], deltas[1])
    assert not np.allclose(deltas[0], deltas[2])
    longer = rllc.Tokens(tiny_tokens(6, pos=8).rows)
    result = ablate(model, ROWS, method="resample", reference=longer)
    assert np.isfinite(result.delta).all()


def test_what_hand_built_heads_are_for() -> None:
    n, rows = 9, repeats(segment=9)
    guess = log(12)
    certain = log(1 + 11 * np.exp(-LOGIT))
    result = ablate(induction_model(), rows, method="zero")
    expected_loss = np.full(2 * n, guess)
    expected_loss[n + 1 :] = certain  # from the second token of the copy on
    assert np.allclose(result.loss, expected_loss, atol=2e-4)
    cost = (n - 1) / (2 * n) * (guess - certain)
    for head in ("0:0", "1:1"):
        assert result[head].value == pytest.approx(cost, abs=1e-4)
    for head in ("0:1", "0:2", "1:0", "1:2"):
        assert result[head].value == pytest.approx(0, abs=1e-4)
    copied = torch.zeros(rows.shape, dtype=torch.bool)
    copied[:, n + 2 :] = True
    on_copies = result.where(copied, "copies")
    assert on_copies["1:1"].value == pytest.approx(guess - certain, abs=1e-4)
    assert on_copies.data == "copies"
    assert result.where(~copied)["1:1"].value == pytest.approx(0, abs=1e-4)


def test_a_current_token_head_knows_its_bigrams() -> None:
    rows = torch.tensor([[BOS, 1, 2, 5, 1, 2], [BOS, 3, 4, 6, 7, 3]])
    result = ablate(
        induction_model(bigrams={1: 2, 3: 4}),
        rows,
        "0:1",
        method="zero",
    )
    expected = np.zeros((2, 5))
    expected[[0, 0, 1], [1, 4, 1]] = log(12) - log(1 + 11 * np.exp(-LOGIT))
    expected[0, 4] = result.tokens[0, 0, 4]  # the induction head knows it too
    assert np.allclose(result.tokens[0], expected, atol=2e-4)
    assert abs(result.tokens[0, 0, 4]) < 1e-3


def test_a_bracket_head_closes_brackets() -> None:
    model, rows = bracket_model(), bracket_rows(20)
    closing = rows > 2
    result = ablate(model, rows, method="zero").where(closing, "closing brackets")
    gain = log(5) - log(1 + 4 * np.exp(-LOGIT))
    assert result["2:0"].value == pytest.approx(gain, abs=1e-3)
    assert result["0:0"].value == pytest.approx(gain, abs=1e-3)
    assert abs(result["0:1"].value) < 1e-3


def test_passes_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_layers=3)
    in_one_pass = ablate(model, ROWS, method="resample")
    four_runs = 8 * 2 * 7 * 12 * 4
    monkeypatch.setattr("rllc.analysis.interventions._ACTIVATIONS", four_runs)
    monkeypatch.setattr("rllc.analysis.interventions._LOGITS", {"cpu": 1})
    in_parts = ablate(model, ROWS, method="resample", batch_size=2)
    assert np.allclose(in_one_pass.tokens, in_parts.tokens, atol=1e-5)


def test_all_heads_cost_what_they_need() -> None:
    """At the paper's size: one forward pass, and each head's later layers and unembedding."""
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(AttentionOnlyConfig())
    rows = torch.randint(5000, (1, 65), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        ablate(model, rows, method="zero")
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.activations(rows[:, :-1])
    layers = forward.get_total_flops()
    unembedding = 2 * 64 * 256 * 5000
    needed = layers + 8 * layers / 2 + 17 * unembedding
    assert counter.get_total_flops() < 1.1 * needed


def test_errors_are_over_rows() -> None:
    result = ablate(tiny_model(), ROWS, "0:1")
    of_rows = result.tokens[0].mean(1)
    expected = of_rows.std(ddof=1) / np.sqrt(6)
    assert result["0:1"].standard_error == pytest.approx(expected, rel=1e-4)
    assert np.isnan(ablate(tiny_model(), ROWS[:1], "0:1").standard_error).all()


def test_results_as_tables() -> None:
    result = ablate(tiny_model(), tiny_tokens(name="prose"))
    frame = result.to_dataframe().set_index("heads")
    assert frame.loc["1:2", "delta_loss"] == result["L1H2"].value
    lines = repr(result).splitlines()
    assert lines[0].startswith("Ablation (mean) on prose: loss ")
    numbers = rounded(result.delta[0], result.standard_error[0])
    assert lines[2].split() == ["0:0", *numbers]
    assert len(result) == 6


def test_figure_shows_the_numbers() -> None:
    result = ablate(tiny_model(), tiny_tokens())
    _, ax = plt.subplots()
    assert plot_ablation(result, ax=ax) is ax
    assert np.array_equal(ax.containers[0].lines[0].get_ydata(), result.delta)
    labels = [text.get_text() for text in plot_ablation(result).get_xticklabels()]
    assert labels == list(result.names)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        for method in ("zero", "mean", "position_mean", "resample"):
            ablate(model, ROWS, method=method)
    assert model.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: ablate(nn.Linear(2, 2), ROWS),
            r"heads\(Linear\): expected attention, but no module of it looks like one",
        ),
        (
            lambda m: ablate(m, ROWS, method="none"),
            "`method` must be one of 'zero', 'mean', 'position_mean', 'resample'",
        ),
        (lambda m: ablate(m, ROWS, "3:0"), "path '3:0': the model has no head '3:0'; did you mean"),
        (
            lambda m: ablate(m, ROWS, rllc.layer(0)),
            r"weights 'layer 0' are not heads; .* rllc\.head\('1:6'\)",
        ),
        (
            lambda m: ablate(m, ROWS[:1], method="resample"),
            "another row's activations are needed, but there is one row",
        ),
        (
            lambda m: ablate(
                m,
                ROWS,
                method="resample",
                reference=ROWS[:, :4],
            ),
            "reference have 4 positions, those of the tokens 7; pass longer reference rows",
        ),
        (
            lambda m: ablate(m, ROWS)["4:4"],
            "no such ablation; did you mean|no such ablation; known",
        ),
        (
            lambda m: ablate(m, ROWS).where(np.ones((6, 6), bool), "x"),
            r"mask 'x' must be boolean .* shape \(6, 7\), got",
        ),
        (lambda m: ablate(m, ROWS).where(np.ones((6, 7))), "must be boolean .*, got float64"),
        (
            lambda m: ablate(m, ROWS).where(np.arange(7) < np.ones((6, 1)), "x"),
            "selects no token that is predicted",
        ),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
