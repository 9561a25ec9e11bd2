"""Path patching: against a slow forward pass, whole heads, and paths with known effect."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import bracket_model, bracket_rows, induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from rllc.analysis.interventions import from_rows, replace
from rllc.analysis.patching import patch_paths, plot_paths
from rllc.analysis.paths import Path, all_paths, check_paths
from rllc.errors import InputError
from rllc.models import AttentionOnly
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")
CLEAN, CORRUPTED = (tiny_tokens(4, seed=seed).rows.long() for seed in (0, 1))


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def slow(
    model: AttentionOnly,
    rows: Tensor,
    paths: list[Path],
    other: dict[tuple[int, int], Tensor],
) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """Logits and every head's output z, head by head; the paths carry the outputs ``other``."""
    config = model.config
    positions = model.pos_embed.W_pos[: rows.shape[1]]
    z: dict[tuple[int, int], Tensor] = {}
    x = model.embed.W_E[rows]
    if config.positions == "standard":
        x, positions = x + positions, 0.0

    def change(chosen: list[Path]) -> Tensor:
        total = torch.zeros(())
        for path in chosen:
            layer, head = path.sender
            W_O = model.blocks[layer].attn.W_O[head]
            total = total + (other[path.sender] - z[path.sender]) @ W_O
        return total

    def project(layer: int, head: int, letter: str) -> Tensor:
        block = model.blocks[layer]
        incoming = [p for p in paths if (p.receiver, p.input) == ((layer, head), letter)]
        stream = x + change(incoming)
        u = F.layer_norm(stream, (config.d_model,), block.ln1.w, block.ln1.b, config.layer_norm_eps)
        if letter != "V":
            u = u + positions
        weight, bias = getattr(block.attn, f"W_{letter}"), getattr(block.attn, f"b_{letter}")
        return u @ weight[head] + bias[head]

    for layer, block in enumerate(model.blocks):
        written = block.attn.b_O
        for head in range(config.n_heads):
            q, k, v = (project(layer, head, letter) for letter in "QKV")
            logits = q @ k.mT / config.d_head**0.5
            future = torch.ones_like(logits, dtype=torch.bool).triu(1)
            z[layer, head] = logits.masked_fill(future, -1e30).softmax(-1) @ v
            if Path((layer, head)) in paths:
                z[layer, head] = other[layer, head]
            written = written + z[layer, head] @ block.attn.W_O[head]
        x = x + written
    x = x + change([path for path in paths if path.input == "logits"])
    final = model.ln_final
    x = F.layer_norm(x, (config.d_model,), final.w, final.b, config.layer_norm_eps)
    return x @ model.unembed.W_U + model.unembed.b_U, z


def readings(model: AttentionOnly, paths: list[Path]) -> dict[str, np.ndarray]:
    """What :func:`replace` reads, from the slow forward pass."""
    with torch.no_grad():
        clean, _ = slow(model, CLEAN, [], {})
        _, other = slow(model, CORRUPTED, [], {})
        changed, _ = slow(model, CLEAN, paths, other)
        log_p = clean[:, :-1].log_softmax(-1)
        log_q = changed[:, :-1].log_softmax(-1)
    return {
        "loss": F.nll_loss(log_q.mT, CLEAN[:, 1:], reduction="none").numpy(),
        "correct": (log_q.argmax(-1) == CLEAN[:, 1:]).numpy(),
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).numpy(),
    }


SETS = {
    "one": ["0:1->1:2.K"],
    "a query and a value": ["0:0->1:1.Q", "0:0->2:1.V"],
    "two senders into one input": ["0:0->2:1.Q", "1:2->2:1.Q"],
    "to the logits": ["0:1->logits", "2:0->logits"],
    "a head": ["1:1"],
    "a head and paths": ["0:2", "0:1->1:0.V", "1:0->2:2.K", "1:2", "0:0->logits"],
    "a path from a replaced head": ["0:1", "0:1->2:1.K", "0:1->logits"],
    "a path into a replaced head": ["0:1->1:1.V", "1:1"],
    "many": [
        "0:0->1:0.Q",
        "0:0->1:0.K",
        "0:0->1:0.V",
        "0:1->1:0.Q",
        "1:0->2:0.V",
        "2:0->logits",
        "2:1",
    ],
}


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
def test_sets_of_paths_equal_a_slow_forward(positions: str) -> None:
    """All sets in one call, float64."""
    model = tiny_model(n_layers=3, positions=positions).double()
    sets = [[Path.parse(path) for path in paths] for paths in SETS.values()]
    values = from_rows(model, CORRUPTED)
    result = replace(model, CLEAN, sets, values, correct=True, kl=True)
    for i, paths in enumerate([[], *sets]):
        expected = readings(model, paths)
        assert np.allclose(result.loss[i], expected["loss"], atol=1e-6)
        assert np.allclose(result.kl[i], expected["kl"], atol=1e-7)
        assert np.array_equal(result.correct[i], expected["correct"])
    assert result.kl[1:].max() > 0.05


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_every_path_alone(score: str) -> None:
    model = tiny_model(n_layers=3)
    result = patch_paths(model, CLEAN, corrupted=CORRUPTED, score=score)
    # pairs of layers × pairs of heads × inputs, and the logits
    assert len(result) == 3 * 9 * 3 + 9
    unchanged_losses = readings(model, [])["loss"]
    for path in all_paths(model)[::5]:
        changed = readings(model, [path])
        expected = changed["kl"] if score == "kl" else changed["loss"] - unchanged_losses
        assert result[str(path)] == pytest.approx(float(expected.mean()), abs=2e-6)


def test_all_paths_from_a_head_are_the_head() -> None:
    model = tiny_model(n_layers=3)
    for sender in [(0, 1), (1, 2), (2, 0)]:
        paths = [path for path in all_paths(model) if path.sender == sender]
        result = replace(model, CLEAN, [[Path(sender)], paths], from_rows(model, CORRUPTED))
        unchanged_loss, whole_head, all_its_paths = result.loss
        assert np.allclose(whole_head, all_its_paths, atol=1e-5)
        assert not np.allclose(unchanged_loss, whole_head, atol=1e-2)


def test_what_carries_induction() -> None:
    """Only keys of the induction head read the previous-token head; only the logits read it."""
    rows = repeats(8)
    loss = patch_paths(induction_model(), rows)
    kl = patch_paths(induction_model(), rows, score="kl")
    for name in loss.paths:
        if name in ("0:0->1:1.K", "1:1->logits"):
            assert loss[name] > 3
            assert kl[name] > 3
        else:
            assert loss[name] == pytest.approx(0, abs=1e-4)
            assert kl[name] == pytest.approx(0, abs=1e-4)


def test_what_carries_the_depth_of_brackets() -> None:
    """The depth goes to queries of layer 1, and the comparisons to queries and keys of layer 2.

    Not "depth at least 1" to keys: depth and position have one parity, so no row has depth 0 where
    another opens a bracket to 1.
    """
    result = patch_paths(bracket_model(), bracket_rows(20), score="kl")
    large = {name for name in result.paths if result[name] > 0.01}
    assert large == {
        "0:0->1:0.Q",
        "0:0->1:1.Q",
        "0:0->1:2.Q",
        "1:0->2:0.Q",
        "1:1->2:0.Q",
        "1:2->2:0.Q",
        "1:1->2:0.K",
        "1:2->2:0.K",
        "2:0->logits",
    }


def test_equal_inputs_carry_nothing() -> None:
    result = patch_paths(tiny_model(), CLEAN, corrupted=CLEAN)
    assert np.abs(result.effect).max() < 1e-6


def test_only_counted_tokens_count() -> None:
    mask = torch.zeros(CLEAN.shape, dtype=torch.bool)
    mask[:, 3:5] = True
    mask[1, 6] = True
    model = tiny_model()
    on_all = patch_paths(model, CLEAN, corrupted=CORRUPTED).effect
    on_mask = patch_paths(model, CLEAN, corrupted=CORRUPTED, where=mask).effect
    on_others = patch_paths(model, CLEAN, corrupted=CORRUPTED, where=~mask).effect
    assert np.allclose(24 * on_all, 9 * on_mask + 15 * on_others, atol=1e-5)
    assert not np.allclose(on_mask, on_others, atol=1e-3)


def test_passes_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_layers=3)
    in_one_pass = patch_paths(model, CLEAN, corrupted=CORRUPTED)
    four_runs = 8 * 2 * 7 * 12 * 4
    monkeypatch.setattr("rllc.analysis.interventions._ACTIVATIONS", four_runs)
    in_parts = patch_paths(model, CLEAN, corrupted=CORRUPTED, batch_size=3)
    assert np.allclose(in_one_pass.effect, in_parts.effect, atol=1e-6)
    assert np.allclose(in_one_pass.standard_error, in_parts.standard_error, atol=1e-6)


def test_paths_as_text() -> None:
    assert Path.parse("L0H4") == Path((0, 4))
    assert Path.parse("0:4 -> l1h6.k") == Path((0, 4), (1, 6), "K")
    assert Path.parse("0:4->logits") == Path((0, 4), None, "logits")
    for path in all_paths(tiny_model(n_layers=3)):
        assert Path.parse(str(path)) == path


def test_paths_are_checked_and_taken_once() -> None:
    model = tiny_model()
    only = (Path((0, 1)),)
    assert check_paths(model, "0:1", "") == check_paths(model, Path((0, 1)), "") == only
    assert check_paths(model, ["0:1", "L0H1", "0:2"], "") == (*only, Path((0, 2)))


def test_results_as_tables() -> None:
    paths = ["0:1->1:2.K", "1:0->logits"]
    result = patch_paths(tiny_model(), tiny_tokens(name="prose"), paths, score="kl")
    frame = result.to_dataframe()
    assert list(frame["receiver"]) == ["1:2", "logits"]
    assert list(frame["input"]) == ["K", "logits"]
    assert np.array_equal(frame["effect"], result.effect)
    assert repr(result).splitlines()[0] == "Path patching on prose (kl, nats per token)"
    assert "20 largest of 33" in repr(patch_paths(tiny_model(), CLEAN))


def test_figures_show_the_numbers() -> None:
    result = patch_paths(tiny_model(), CLEAN)
    _, ax = plt.subplots()
    assert plot_paths(result, "Q", ax=ax) is ax
    image = ax.images[0].get_array()
    for sender, receiver in np.ndindex(3, 3):
        assert image[sender, receiver] == result[f"0:{sender}->1:{receiver}.Q"]
    assert plot_paths(result, "logits").images[0].get_array().shape == (6, 1)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    with unchanged(model):
        patch_paths(model, CLEAN)
    assert model.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: patch_paths(nn.Linear(2, 2), CLEAN),
            r"heads\(Linear\): expected attention",
        ),
        (
            lambda m: patch_paths(m, CLEAN, ["0:1->1:2"]),
            r"path '0:1->1:2': expected a head .* '0:4->1:6\.K' \(Q, K or V\)",
        ),
        (lambda m: patch_paths(m, CLEAN, ["embed"]), "path 'embed': expected a head"),
        (
            lambda m: patch_paths(m, CLEAN, ["1:1->1:2.K"]),
            "the receiver must be in a later layer than the sender",
        ),
        (
            lambda m: patch_paths(m, CLEAN, ["0:1->1:5.K"]),
            "path '0:1->1:5.K': the model has no head '1:5'; did you mean",
        ),
        (lambda m: patch_paths(m, CLEAN, []), "no heads or paths; name at least one"),
        (
            lambda m: patch_paths(m, CLEAN, score="accuracy"),
            "`score` must be 'loss' or 'kl', got 'accuracy'",
        ),
        (lambda m: patch_paths(m, CLEAN, corrupted=CORRUPTED[:2]), r"shape \(4, 7\), got \(2, 7\)"),
        (lambda m: patch_paths(m, CLEAN[:1]), "another row's activations are needed"),
        (
            lambda m: patch_paths(m, CLEAN, where=CLEAN > 99),
            "mask 'where' selects no token that is predicted",
        ),
        (
            lambda m: patch_paths(m, CLEAN, ["0:1->1:2.K"])["0:1->1:2.V"],
            "this path was not patched; did you mean",
        ),
        (
            lambda m: plot_paths(patch_paths(m, CLEAN, ["0:1->1:2.K"]), "Q"),
            r"input='Q'\): no such paths were patched; known: 'K'",
        ),
    ],
)
def test_errors_say_what_to_type(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_model())
