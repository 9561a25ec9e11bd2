"""The work of observing rows, counted in floating-point operations."""

from __future__ import annotations

import pytest
from tiny import tiny_model

from examples.benchmarks import covariances
from rllc.models import AttentionOnlyConfig

SIZE = covariances.Size(
    AttentionOnlyConfig(n_layers=2, d_model=32, n_heads=2, d_head=8, n_ctx=16, d_vocab=400),
    num_rows=2,
    num_probes=64,
    num_draws=1,
    num_chains=2,
)
SHAPE = {"d_model": 32, "n_heads": 2, "d_head": 8, "n_ctx": 16, "d_vocab": 400}


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_observing_64_rows_costs_the_forward_passes_that_it_needs(layer: int) -> None:
    share = covariances.observing(tiny_model(**SHAPE), SIZE, layer)
    assert 0.1 < share < 1.15


@pytest.mark.oracle
def test_a_matrix_takes_less_than_devinterps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("devinterp")
    # Ever rarer along the chains, but at each of the first steps.
    monkeypatch.setattr("rllc.sampling.sample.is_looked_at_again", lambda step: False)
    # A sixteenth of the paper's model, or less, in each size; half as many heads.
    shape = {"d_model": 16, "n_heads": 4, "d_head": 2, "n_ctx": 32, "d_vocab": 313}
    config = AttentionOnlyConfig(n_layers=2, **shape)
    size = covariances.Size(config, num_rows=2, num_probes=4, num_draws=1)
    model = tiny_model(**shape)
    own = covariances.per_draw(covariances.ours, model, size)
    other = covariances.per_draw(covariances.theirs, model, size) * size.num_chains
    assert other > 3 * own
