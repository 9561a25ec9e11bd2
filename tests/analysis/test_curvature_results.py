"""What all measures of curvature share: rows, names, what they leave alone, tables, errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from dense import CLASSES, HEAD, TOKENS, cross_entropy, mlp
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.analysis.curvature import (
    Curvature,
    Eigenvalues,
    Probing,
    fisher_trace,
    hessian_rank,
    hessian_trace,
    plot_curvature,
    top_eigenvalues,
)
from rllc.errors import InputError
from rllc.testing import unchanged

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

FEW = Probing(num_probes=4)
OTHER_TOKENS = tiny_tokens(5, seed=1)

hessian_trace = partial(hessian_trace, progress=False)
fisher_trace = partial(fisher_trace, progress=False)
hessian_rank = partial(hessian_rank, progress=False)
top_eigenvalues = partial(top_eigenvalues, progress=False)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


MEASURES = {
    "hessian_trace": hessian_trace,
    "hutch++": partial(hessian_trace, method="hutch++"),
    "fisher_trace": fisher_trace,
    "hessian_rank": partial(hessian_rank, degree=20),
    "top_eigenvalues": partial(top_eigenvalues, count=2, tolerance=0.1),
}


def numbers(result: Curvature | Eigenvalues) -> np.ndarray:
    """``[refinement, number]``."""
    if isinstance(result, Curvature):
        return result.value[:, None]
    return np.concatenate([result.largest, result.smallest], 1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "hessian_rank" else name
        for name in MEASURES
    ],
)
def test_selections_and_data_give_one_row_each_and_the_same_alone(name: str) -> None:
    model = tiny_model()
    measure = MEASURES[name]
    data = {"a": TOKENS, "b": OTHER_TOKENS}
    together = measure(model, data, ["0:1", HEAD], probing=FEW)
    assert together.weights == ("0:1", "0:1", "1:2", "1:2")
    assert together.data == ("a", "b", "a", "b")
    assert len(together) == 4
    alone = measure(model, {"b": OTHER_TOKENS}, "1:2", probing=FEW)
    np.testing.assert_array_equal(numbers(alone)[0], numbers(together)[3])
    with pytest.raises(InputError, match=r"'1:2'\]: on which data\? It has \['a', 'b'\]"):
        together["1:2"]
    by_name = together["L1H2", "b"]
    value = by_name[0] if isinstance(together, Eigenvalues) else by_name.value
    assert value == numbers(together)[3, 0]


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "top_eigenvalues"])
def test_another_seed_draws_other_probes(name: str) -> None:
    model = tiny_model()
    one = MEASURES[name](model, TOKENS, "1:2", probing=Probing(num_probes=4))
    other = MEASURES[name](model, TOKENS, "1:2", probing=Probing(num_probes=4, seed=1))
    assert not np.array_equal(numbers(one), numbers(other))


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_and_the_kernels_are_left_as_they_were(name: str) -> None:
    def kernels() -> tuple[bool, bool]:
        cuda = torch.backends.cuda
        return cuda.math_sdp_enabled(), cuda.flash_sdp_enabled()

    model = tiny_model().train()
    model(TOKENS.rows.long(), labels=TOKENS.rows.long()).loss.backward()
    kernels_before = kernels()
    with unchanged(model), torch.no_grad():
        MEASURES[name](model, TOKENS, "0:0", probing=FEW)
        assert not torch.is_grad_enabled()
    assert kernels() == kernels_before


@pytest.mark.parametrize("name", ["hessian_trace", "hutch++", "hessian_rank", "top_eigenvalues"])
def test_derivatives_that_are_not_finite_are_said(name: str) -> None:
    model = nn.Linear(3, 1, bias=False)
    model.weight.data.zero_()
    result = MEASURES[name](
        model, (torch.ones(4, 3),), loss=lambda m, x: m(x)[:, 0].abs() ** 1.5, probing=FEW
    )
    assert np.isnan(numbers(result)).all()
    assert result.status == ("the derivatives of the loss are not finite",)


def test_tables_and_figures_of_traces() -> None:
    model = tiny_model()
    data = {"a": TOKENS, "b": OTHER_TOKENS}
    traces = hessian_trace(model, data, rllc.heads(model), probing=Probing(2))
    frame = traces.to_dataframe()
    columns = ["weights", "data", "value", "standard_error", "status", "quantity"]
    assert list(frame.columns)[:6] == columns
    assert frame["value"].tolist() == traces.value.tolist()
    assert (frame["num_weights"] == HEAD.count(model)).all()
    title, *rows = repr(traces).splitlines()
    assert title.startswith("Hessian trace of 12 refinements (method = hutchinson, num_probes = 2")
    assert len(rows) == 13
    _, ax = plt.subplots()
    assert plot_curvature(traces, ax) is ax
    assert ax.get_ylabel() == "Hessian trace (95 % interval)"
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert labels == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_tables_and_figures_of_eigenvalues() -> None:
    model = tiny_model()
    data = {"a": TOKENS, "b": OTHER_TOKENS}
    ends = top_eigenvalues(model, data, rllc.heads(model), count=2, tolerance=0.1)
    frame = ends.to_dataframe()
    assert len(frame) == 12 * 4
    of_head = frame[(frame["weights"] == "1:2") & (frame["data"] == "b")]
    smallest = of_head[of_head["end"] == "smallest"].iloc[0]
    assert smallest["eigenvalue"] == ends["1:2", "b"][-1]
    assert smallest["error"] == ends.smallest_error[11, 0]
    assert len(repr(ends).splitlines()) == 14
    first, second, *_ = plot_curvature(ends).lines
    drawn = np.concatenate([first.get_ydata(), second.get_ydata()])
    assert sorted(drawn) == pytest.approx(sorted(frame["eigenvalue"]))
    alone = top_eigenvalues(model, TOKENS, "0:0", count=1)
    assert len(plot_curvature(alone).lines) == 2


class Fused(nn.Module):
    """Calls a kernel by its own name, so that none can be put in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x)[:, None, None].expand(-1, 1, 2, 4)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(heads, heads, heads)[0].square().flatten(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probes": 1}, "`num_probes` must be an integer of at least 2, got 1"),
        ({"num_rows": 0}, "`num_rows` must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer of at least 1, got 2.0"),
        ({"seed": "a"}, "`seed` must be an integer, got 'a'"),
    ],
)
def test_a_probing_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Probing: {message}"):
        Probing(**settings)


ROWS = (torch.ones(3, 2),)


def trace(model: Any = None, data: Any = TOKENS, **options: Any) -> Curvature:
    return hessian_trace(tiny_model() if model is None else model, data, **options)


def trace_of_linear(loss: Any) -> Curvature:
    return trace(nn.Linear(2, 1), ROWS, loss=loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: trace(probing=16),
            r"hessian_trace: `probing` must be curvature.Probing\(num_probes=16\), got int",
        ),
        (
            lambda: trace(method="xtrace"),
            r"`method` must be 'hutchinson' or 'hutch\+\+', got 'xtrace'",
        ),
        (
            lambda: trace(method="hutch++", probing=Probing(3)),
            "needs at least 4 products with the Hessian, got 3",
        ),
        (
            lambda: trace(probing=Probing(num_rows=7)),
            "the data 'tokens' has 6 rows, but num_rows=7",
        ),
        (lambda: trace("model"), "hessian_trace: `model` must be a torch.nn.Module"),
        (lambda: trace(loss="nll"), "hessian_trace: `loss` must be None"),
        (
            lambda: trace(data=rllc.Tokens(torch.full((2, 4), 11))),
            "hessian_trace on data 'tokens': it has token id 11",
        ),
        (lambda: trace(mlp(), CLASSES), "hessian_trace on data 'data': the loss of tokens needs"),
        (lambda: trace(weights="5:0"), "has no such head"),
        (
            lambda: trace(mlp(), CLASSES, loss=lambda m, b: m(b[0]).mean()),
            r"must give per-example \[batch\]",
        ),
        (
            lambda: trace_of_linear(lambda m, x: m(x)[:, 0].detach()),
            "curvature in the weights 'everything': the loss does not depend on them",
        ),
        (
            lambda: trace_of_linear(lambda m, x: m(x)[:, 0].log() - math.inf),
            "hessian_trace on data 'data': at w",
        ),
        (
            lambda: trace(Fused(), (torch.randn(3, 4),), loss=lambda m, x: m(x)),
            r"cannot be differentiated twice \(derivative for "
            r"aten::_scaled_dot_product_flash.*attn_implementation=\"eager\"",
        ),
    ],
)
def test_traces_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def ends_of_mlp(**options: Any) -> Eigenvalues:
    return top_eigenvalues(mlp(), CLASSES, loss=cross_entropy, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fisher_trace(tiny_model(), TOKENS, labels="sampled"),
            "`labels` must be 'model', 'data' or a function",
        ),
        (
            lambda: fisher_trace(mlp(), CLASSES, loss=cross_entropy),
            "what your loss's model predicts is not known; pass labels=f",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, threshold=1.0),
            "between 0 and 1, in units of the largest",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, threshold=0.0, relative=False),
            "`threshold` must be a positive number, got 0.0",
        ),
        (
            lambda: hessian_rank(tiny_model(), TOKENS, degree=1),
            "`degree` must be an integer of at least 2, got 1",
        ),
        (lambda: ends_of_mlp(count=0), "`count` must be an integer of at least 1, got 0"),
        (
            lambda: ends_of_mlp(count=5, max_products=9),
            "of 5 eigenvalues: `max_products` must be an integer of at least 10, got 9",
        ),
        (lambda: ends_of_mlp(tolerance=0), "`tolerance` must be between 0 and 1, got 0"),
        (
            lambda: ends_of_mlp(weights={"b": rllc.parameters("2.bias")}, count=4),
            "the weights 'b' are 3, so there are no 4 eigenvalues; pass count=3",
        ),
    ],
)
def test_other_measures_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("0:2", r"curvature\['0:2'\]: no such weights; did you mean '0:1'"),
        (("0:1", "cod"), "no such data; known: 'tokens'"),
        (3, r"curvature\[3\]: expected a name, or \(weights, data\)"),
    ],
)
def test_what_a_result_does_not_hold(key: Any, message: str) -> None:
    result = trace(weights="0:1", probing=FEW)
    with pytest.raises(InputError, match=message):
        result[key]
