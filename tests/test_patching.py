"""Path patching: against a slow forward pass, against whole heads, and on paths with known effect."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import bracket_model, bracket_rows, induction_model, repeats
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from rllc.analysis.patching import (
    Path,
    all_paths,
    check_paths,
    from_rows,
    patch_paths,
    plot_paths,
    replace,
)
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
    model: AttentionOnly, rows: Tensor, paths: list[Path], other: dict[tuple[int, int], Tensor]
) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """Logits and every head's output z, head by head; the paths carry the outputs ``other``."""
    c, P = model.config, model.pos_embed.W_pos[: rows.shape[1]]
    z: dict[tuple[int, int], Tensor] = {}
    x = model.embed.W_E[rows]
    if c.positions == "standard":
        x, P = x + P, 0.0

    def change(path: Path) -> Tensor:
        layer, head = path.sender
        return (other[path.sender] - z[path.sender]) @ model.blocks[layer].attn.W_O[head]

    for layer, block in enumerate(model.blocks):
        a, written = block.attn, a_bias(block)
        for head in range(c.n_heads):
            made = {}
            for letter in "QKV":
                here = [p for p in paths if (p.receiver, p.input) == ((layer, head), letter)]
                seen = x + sum((change(p) for p in here), torch.zeros(()))
                u = F.layer_norm(seen, (c.d_model,), block.ln1.w, block.ln1.b, c.layer_norm_eps)
                u = u if letter == "V" else u + P
                made[letter] = u @ getattr(a, f"W_{letter}")[head] + getattr(a, f"b_{letter}")[head]
            scores = made["Q"] @ made["K"].mT / c.d_head**0.5
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            z[layer, head] = scores.masked_fill(future, -1e30).softmax(-1) @ made["V"]
            whole = Path((layer, head)) in paths
            written = written + (other[layer, head] if whole else z[layer, head]) @ a.W_O[head]
            if whole:
                z[layer, head] = other[layer, head]
        x = x + written
    x = x + sum((change(p) for p in paths if p.input == "logits"), torch.zeros(()))
    x = F.layer_norm(x, (c.d_model,), model.ln_final.w, model.ln_final.b, c.layer_norm_eps)
    return x @ model.unembed.W_U + model.unembed.b_U, z


def a_bias(block: nn.ModuleDict) -> Tensor:
    return block.attn.b_O


def readings(model: AttentionOnly, paths: list[Path]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        clean = slow(model, CLEAN, [], {})[0][:, :-1].log_softmax(-1)
        changed = slow(model, CLEAN, paths, slow(model, CORRUPTED, [], {})[1])[0][
            :, :-1
        ].log_softmax(-1)
    return {
        "loss": F.nll_loss(changed.mT, CLEAN[:, 1:], reduction="none").numpy(),
        "correct": (changed.argmax(-1) == CLEAN[:, 1:]).numpy(),
        "kl": (clean.exp() * (clean - changed)).sum(-1).numpy(),
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
    sets = [[Path.parse(p) for p in paths] for paths in SETS.values()]
    found = replace(model, CLEAN, sets, from_rows(model, CORRUPTED), correct=True, kl=True)
    for i, paths in enumerate([[], *sets]):
        expected = readings(model, paths)
        assert np.allclose(found.loss[i], expected["loss"], atol=1e-6)
        assert np.allclose(found.kl[i], expected["kl"], atol=1e-7)
        assert np.array_equal(found.correct[i], expected["correct"])
    assert found.kl[1:].max() > 0.05


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_every_path_alone(score: str) -> None:
    model = tiny_model(n_layers=3)
    result = patch_paths(model, CLEAN, corrupted=CORRUPTED, score=score)
    assert len(result) == 3 * 9 * 3 + 9  # pairs of layers × pairs of heads × inputs, and the logits
    with torch.no_grad():
        clean, other = (slow(model, rows, [], {}) for rows in (CLEAN, CORRUPTED))
        for path in all_paths(model)[::5]:
            changed = slow(model, CLEAN, [path], other[1])[0]
            p, q = (logits[:, :-1].log_softmax(-1) for logits in (clean[0], changed))
            kl = (p.exp() * (p - q)).sum(-1)
            loss = (p - q).gather(-1, CLEAN[:, 1:, None])[..., 0]
            assert result[str(path)] == pytest.approx(
                float((loss if score == "loss" else kl).mean()), abs=2e-6
            )


def test_all_paths_from_a_head_are_the_head() -> None:
    model = tiny_model(n_layers=3)
    for sender in [(0, 1), (1, 2), (2, 0)]:
        each = [p for p in all_paths(model) if p.sender == sender]
        found = replace(model, CLEAN, [[Path(sender)], each], from_rows(model, CORRUPTED))
        assert np.allclose(found.loss[1], found.loss[2], atol=1e-5)
        assert not np.allclose(found.loss[0], found.loss[1], atol=1e-2)


def test_what_carries_induction() -> None:
    """Only keys of the induction head read the previous-token head, and only the logits read the induction head."""
    rows = repeats(8)
    result = patch_paths(induction_model(), rows)
    kl = patch_paths(induction_model(), rows, score="kl")
    for name in result.paths:
        if name in ("0:0->1:1.K", "1:1->logits"):
            assert result[name] > 3
            assert kl[name] > 3
        else:
            assert result[name] == pytest.approx(0, abs=1e-4)
            assert kl[name] == pytest.approx(0, abs=1e-4)


def test_what_carries_the_depth_of_brackets() -> None:
    """Not "depth at least 1" to keys: depth and position have one parity, so no row has 0 where another opens to 1."""
    model, rows = bracket_model(), bracket_rows(20)
    result = patch_paths(model, rows, score="kl")
    large = {name for name in result.paths if result[name] > 0.01}
    assert large == {
        *(f"0:0->1:{i}.Q" for i in range(3)),
        *(f"1:{i}->2:0.Q" for i in range(3)),
        *(f"1:{i}->2:0.K" for i in (1, 2)),
        "2:0->logits",
    }


def test_equal_inputs_carry_nothing() -> None:
    result = patch_paths(tiny_model(), CLEAN, corrupted=CLEAN)
    assert np.abs(result.effect).max() < 1e-6


def test_only_counted_tokens_count() -> None:
    mask = torch.zeros(CLEAN.shape, dtype=torch.bool)
    mask[:, 3:5], mask[1, 6] = True, True
    whole, some, others = (
        patch_paths(tiny_model(), CLEAN, corrupted=CORRUPTED, where=where).effect
        for where in (None, mask, ~mask)
    )
    assert np.allclose(24 * whole, 9 * some + 15 * others, atol=1e-5)
    assert not np.allclose(some, others, atol=1e-3)


def test_passes_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_layers=3)
    whole = patch_paths(model, CLEAN, corrupted=CORRUPTED)
    monkeypatch.setattr("rllc.analysis.interventions._ACTIVATIONS", 8 * 2 * 7 * 12 * 4)
    parts = patch_paths(model, CLEAN, corrupted=CORRUPTED, batch_size=3)
    assert np.allclose(whole.effect, parts.effect, atol=1e-6)
    assert np.allclose(whole.standard_error, parts.standard_error, atol=1e-6)


def test_paths_as_text() -> None:
    assert Path.parse("L0H4") == Path((0, 4))
    assert Path.parse("0:4 -> l1h6.k") == Path((0, 4), (1, 6), "K")
    assert Path.parse("0:4->logits") == Path((0, 4), None, "logits")
    for path in all_paths(tiny_model(n_layers=3)):
        assert Path.parse(str(path)) == path
    model = tiny_model()
    assert check_paths(model, "0:1", "") == check_paths(model, Path((0, 1)), "") == (Path((0, 1)),)
    assert check_paths(model, ["0:1", "L0H1", "0:2"], "") == (Path((0, 1)), Path((0, 2)))


def test_results_as_tables() -> None:
    result = patch_paths(
        tiny_model(), tiny_tokens(name="prose"), ["0:1->1:2.K", "1:0->logits"], score="kl"
    )
    frame = result.to_dataframe()
    assert list(frame["receiver"]) == ["1:2", "logits"]
    assert list(frame["input"]) == ["K", "logits"]
    assert np.array_equal(frame["effect"], result.effect)
    assert repr(result).splitlines()[0] == "Path patching on prose (kl, nats per token)"
    assert "20 largest of 33" in repr(patch_paths(tiny_model(), CLEAN))


def test_figures_show_the_numbers() -> None:
    result = patch_paths(tiny_model(), CLEAN)
    _, given = plt.subplots()
    assert plot_paths(result, "Q", ax=given) is given
    image = given.images[0].get_array()
    for s, r in np.ndindex(3, 3):
        assert image[s, r] == result[f"0:{s}->1:{r}.Q"]
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
            "patch_paths: expected an rllc.models.AttentionOnly",
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
