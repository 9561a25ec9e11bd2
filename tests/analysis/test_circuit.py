"""Circuits: what the ablation of known ones costs known tokens, and random sets of their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log

import matplotlib as mpl
import numpy as np
import pytest
import torch
from handmade import BOS, LOGIT, induction_model
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from rllc.analysis.ablation import ablate
from rllc.analysis.circuit import CircuitCost, ablate_circuit, plot_circuit, random_sets
from rllc.analysis.patching import Path
from rllc.errors import InputError
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

SURE = log(1 + 11 * np.exp(-LOGIT))
"""Loss of a token that is predicted."""
LOST = log(12) - SURE
"""What it costs not to predict a token of 12."""


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def simple_and_complex() -> tuple[Tensor, dict[str, Tensor]]:
    """Rows where 1 is followed by 2 and 3 by 4 ("simple"), and others are repeats ("complex")."""
    stream = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(10):
        words = (5 + torch.randperm(7, generator=stream)[:6]).tolist()
        rows.append([BOS, *words, 1, 2, *words, 3, 4])
    simple = [0] * 7 + [0, 1] + [0] * 6 + [0, 1]
    complex_ = [0] * 9 + [0] + [1] * 5 + [0, 0]
    masks = {
        "simple": torch.tensor([simple] * 10).bool(),
        "complex": torch.tensor([complex_] * 10).bool(),
    }
    return torch.tensor(rows), masks


ROWS, MASKS = simple_and_complex()


def cost(circuit: list[str], **options: object) -> CircuitCost:
    model = induction_model(bigrams={1: 2, 3: 4})
    return ablate_circuit(model, ROWS, circuit, MASKS, method="zero", **options)


@pytest.mark.parametrize(
    "circuit",
    [["0:0", "1:1"], ["0:0->1:1.K"], ["1:1->logits"], ["0:0->1:1.K", "1:1->logits"]],
)
def test_the_induction_circuit_costs_complex_tokens_only(circuit: list[str]) -> None:
    result = cost(circuit)
    assert result.baseline_accuracy == pytest.approx([1, 1])
    assert result.baseline_loss == pytest.approx([SURE, SURE], abs=1e-4)
    assert result.loss[0] == pytest.approx([0, LOST], abs=1e-3)
    assert result.accuracy[0] == pytest.approx([0, -1])
    assert tuple(result.counts) == (20, 50)


@pytest.mark.parametrize("circuit", [["0:1"], ["0:1->logits"]])
def test_the_bigram_head_costs_simple_tokens_only(circuit: list[str]) -> None:
    result = cost(circuit)
    assert result.loss[0] == pytest.approx([LOST, 0], abs=1e-3)
    assert result.accuracy[0] == pytest.approx([-1, 0])


def test_random_sets_are_the_null() -> None:
    """There are 8 other sets of two heads; half of an induction circuit is none."""
    result = cost(["0:0", "1:1"], num_random=40)
    assert len(result.sets) == 9
    is_broken = np.array(["0:0" in heads or "1:1" in heads for heads in result.sets])
    assert is_broken.sum() == 5
    assert result.loss[:, 1] == pytest.approx(np.where(is_broken, LOST, 0), abs=1e-3)
    assert 1 / 9 <= result.p_value("complex") <= 5 / 9
    contrast = result.loss[:, 1] - result.loss[:, 0]
    share = (contrast >= contrast[0]).mean()
    assert result.p_value("complex", less="simple") == share


def test_a_head_that_alone_matters_has_the_smallest_p_value() -> None:
    assert cost(["0:1"], num_random=9).p_value("simple") == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["zero", "mean", "position_mean", "resample"])
def test_one_head_is_an_ablation(method: str) -> None:
    model, rows = tiny_model(n_layers=3), tiny_tokens(6)
    all_tokens = {"all": np.ones((6, 7), dtype=bool)}
    result = ablate_circuit(model, rows, ["1:2"], all_tokens, method=method, num_random=2, seed=3)
    alone = ablate(model, rows, ["1:2"], method=method, seed=3)
    assert result.loss[0] == pytest.approx(alone.delta, abs=1e-6)
    assert result.loss_error[0] == pytest.approx(alone.standard_error, abs=1e-6)


def kind_of(path: Path) -> tuple[object, ...]:
    return path.sender[0], path.receiver and path.receiver[0], path.input


def test_random_sets_have_the_circuits_shape() -> None:
    model = tiny_model(n_layers=3)
    names = ("0:0", "0:2", "2:1", "0:1->2:1.K", "1:0->logits")
    circuit = [Path.parse(name) for name in names]
    sets = random_sets(model, circuit, 30)
    for paths in sets:
        assert Counter(kind_of(path) for path in paths) == {
            (0, None, "everything"): 2,
            (2, None, "everything"): 1,
            (0, 2, "K"): 1,
            (1, None, "logits"): 1,
        }
        assert len(set(paths)) == 5
        assert set(paths) != set(circuit)
    assert sets == random_sets(model, circuit, 30)
    assert sets != random_sets(model, circuit, 30, seed=1)


TWO_AND_ONE = [Path((0, 0)), Path((0, 1)), Path((1, 2))]
"""Two heads of layer 0 and one of layer 1: there are 8 other such sets."""


def test_random_sets_are_drawn_evenly() -> None:
    """χ² with 7 degrees of freedom, level 1e-6."""
    model = tiny_model()
    counts: Counter[frozenset[Path]] = Counter()
    for seed in range(800):
        (paths,) = random_sets(model, TWO_AND_ONE, 1, seed)
        counts[frozenset(paths)] += 1
    assert len(counts) == 8
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 41.0


@pytest.mark.parametrize(("asked", "got"), [(5, 5), (8, 8), (800, 8)])
def test_random_sets_are_all_different_and_all_of_them_where_they_are_few(
    asked: int, got: int
) -> None:
    sets = random_sets(tiny_model(), TWO_AND_ONE, asked)
    assert len(sets) == got
    distinct = {frozenset(paths) for paths in sets}
    assert len(distinct) == got
    assert frozenset(TWO_AND_ONE) not in distinct


def test_results_as_tables() -> None:
    result = cost(["0:0", "1:1"], num_random=5)
    frame = result.to_dataframe()
    assert len(frame) == 12
    row = frame[(frame["set"] == "circuit") & (frame["mask"] == "complex")].iloc[0]
    assert row["loss"] == result.loss[0, 1]
    assert row["paths"] == "0:0, 1:1"
    title, *rows = repr(result).splitlines()
    assert title == "Circuit 0:0, 1:1 on tokens (zero, 5 random sets)"
    assert rows[2].split()[:4] == ["complex", "50", "0.000", f"{result.loss[0, 1]:.3f}"]


def test_figures_show_the_circuit_and_the_random_sets() -> None:
    result = cost(["0:0", "1:1"], num_random=5)
    _, ax = plt.subplots()
    assert plot_circuit(result, ax=ax) is ax
    assert np.array_equal(ax.containers[0].lines[0].get_ydata(), result.loss[0])
    assert np.array_equal(ax.lines[1].get_ydata(), result.loss[1:, 1])
    of_accuracy = plot_circuit(result, "accuracy").containers[0]
    assert np.array_equal(of_accuracy.lines[0].get_ydata(), result.accuracy[0])


def test_without_random_sets() -> None:
    result = cost(["0:0", "0:1", "0:2"], num_random=0)
    assert result.loss.shape == (1, 2)
    assert "nan" in repr(result)
    assert plot_circuit(result).get_ylabel() == "change of loss (nats per token)"


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    all_tokens = {"all": torch.ones(6, 7, dtype=torch.bool)}
    with unchanged(model):
        ablate_circuit(model, tiny_tokens(6), ["0:1"], all_tokens, num_random=2)
    assert model.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ablate_circuit(nn.Linear(2, 2), ROWS, ["0:0"], MASKS),
            "ablate_circuit: expected an rllc.models.Atten",
        ),
        (
            lambda: ablate_circuit(induction_model(), ROWS, ["0:0"], {}),
            r"no masks; pass a dict such as \{'simple': mask\}",
        ),
        (
            lambda: ablate_circuit(induction_model(), ROWS, ["0:0"], {"a": ROWS}),
            "mask 'a' must be boolean .* got int64",
        ),
        (lambda: cost(["0:7"]), "the model has no head '0:7'"),
        (
            lambda: cost(["0:0", "0:1", "0:2"]),
            r"all heads or paths of its kind \(0:0, 0:1, 0:2\).*num_random=0",
        ),
        (
            lambda: cost(["0:0"], num_random=1).p_value("easy"),
            "no mask 'easy'; known: 'simple', 'complex'",
        ),
        (
            lambda: plot_circuit(cost(["0:0"], num_random=1), "kl"),
            "`quantity` must be 'loss' or 'accuracy', got 'kl'",
        ),
    ],
)
def test_errors_say_what_to_type(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
