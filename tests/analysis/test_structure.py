"""Components of token × head matrices that were made with known ones."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from parabolas import made_up

import rllc
from rllc.analysis.structure import plot_components, plot_matrix, structure
from rllc.covariances.influence import LossKernel
from rllc.errors import InputError
from rllc.plots.kernels import plot_rows

HEADS, CHAINS, DRAWS, TOKENS = 6, 5, 4000, 40
SPECIAL = ["0:0", "0:1"]


def draws_of(num_chains: int = CHAINS, num_draws: int = DRAWS) -> tuple[rllc.Draws, np.ndarray]:
    """Heads that all answer to the same tokens, and two of them to others besides.

    ℓ_z = a_z·x_t + noise, so that Cov(L, ℓ_z) = ā·a_z·Var(x): χ is linear in the patterns.
    """
    stream = np.random.default_rng(0)
    common, special = stream.standard_normal((2, TOKENS)) * [[1.0], [0.7]]
    common, special = common - common.mean(), special - special.mean()
    patterns = np.stack([common + special * (head < 2) for head in range(HEADS)])
    x = stream.standard_normal((HEADS, num_chains, num_draws))
    losses = x[..., None] * (1 + patterns[:, None, None])
    losses = losses + 0.05 * stream.standard_normal(losses.shape)
    return made_up(HEADS, probes=losses.reshape(*losses.shape[:3], 4, TOKENS // 4)), patterns


def truth(patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scored = -(patterns - patterns.mean(1, keepdims=True)) / patterns.std(1, keepdims=True)
    _, lengths, loading = np.linalg.svd(scored.T, full_matrices=False)
    return lengths**2 / np.square(lengths).sum(), loading


def test_components_are_those_of_the_patterns() -> None:
    draws, patterns = draws_of()
    result = structure(draws)
    share, loading = truth(patterns)
    assert np.abs(result.share.value[:2] - share[:2]).max() < 0.01
    for component in range(2):
        likeness = abs(result.loading.value[component] @ loading[component])
        assert likeness == pytest.approx(1, abs=0.01)
    assert result.score.shape == (TOKENS, 3)
    assert result.place[11].tolist() == [1, 1]
    # Only noise is left for the third.
    assert result.share.value[2] < 0.01
    assert 0 < result.noise < 0.02
    apart = result.separation(1, SPECIAL)
    assert apart.order == 1
    assert apart.gap > 5 * apart.standard_error
    assert result.separation(0, ["0:2", "0:5"]).order < 1
    # Some of the heads alone.
    few = structure(draws, weights=["0:1", "0:2", "0:3"], num_components=2)
    assert few.names.weights == ("0:1", "0:2", "0:3")
    np.testing.assert_array_equal(few.matrix, result.matrix[:, 1:4])
    # What all heads do alike can be taken off; what two of them do is then first.
    centred = structure(draws, centre_tokens=True)
    assert centred.separation(0, SPECIAL).order == 1
    assert centred.matrix.mean(axis=1) == pytest.approx(0, abs=1e-12)


def test_the_matrix_is_that_of_susceptibilities() -> None:
    draws, _ = draws_of(num_draws=200)
    value = rllc.covariances.Susceptibilities.of(draws).value.reshape(HEADS, -1).T
    scored = (value - value.mean(axis=0)) / value.std(axis=0)
    np.testing.assert_allclose(structure(draws).matrix, scored, atol=1e-9)


def test_errors_are_the_spread_over_repetitions() -> None:
    """The error of a loading, by leaving chains out, against other chains."""
    draws, _ = draws_of(num_chains=120, num_draws=30)
    shares, errors = [], []
    for first in range(0, 120, 6):
        chosen = slice(first, first + 6)
        few = rllc.Draws(
            loss=draws.loss[:, chosen],
            baseline=draws.baseline[:, chosen],
            diverged=draws.diverged[:, chosen],
            names=draws.names,
            settings=draws.settings,
            observed={"probes": draws.observed["probes"][:, chosen]},
        )
        result = structure(few)
        shares.append(result.share.value[1])
        errors.append(result.share.standard_error[1])
    # The spread of 20 values is known to 16 %, at 4.5 standard errors.
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) / np.std(shares, ddof=1) < 2


def test_clusters_and_figures() -> None:
    draws, _ = draws_of(num_draws=300)
    result = structure(draws)
    assert result.clusters_of_heads(2).tolist() == [0, 0, 1, 1, 1, 1]
    tokens = result.clusters_of_tokens(3)
    assert sorted(set(tokens.tolist())) == [0, 1, 2]
    ax = plot_components(result, dict.fromkeys(SPECIAL, "induction"))
    heights = [bar.get_height() for bar in ax.patches[: 3 * HEADS]]
    np.testing.assert_allclose(heights, result.loading.value.ravel())
    assert len(plot_matrix(result).get_xticks()) == HEADS
    assert "Components of 40 tokens × 6" in repr(result)
    assert len(result.to_dataframe()) == 3 * HEADS


def test_rows_as_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(0)
    common = stream.standard_normal((1, 2, 200, 2))
    values = np.repeat(common, 5, axis=-1) + 0.3 * stream.standard_normal((1, 2, 200, 10))
    kernel = LossKernel.of(made_up(1, rows=values[..., None]))
    monkeypatch.setitem(sys.modules, "umap", None)
    groups = ["a"] * 5 + ["b"] * 5
    ax = plot_rows(kernel, "0:0", groups)
    assert ax.get_xlabel() == "principal component 1"
    first, second = (dots.get_offsets()[:, 0] for dots in ax.collections)
    assert max(first.min(), second.min()) > min(first.max(), second.max())

    class Fake:
        def __init__(self, **options: object) -> None:
            assert options == {"metric": "precomputed", "random_state": 0}

        def fit_transform(self, distances: np.ndarray) -> np.ndarray:
            assert np.diagonal(distances) == pytest.approx(0)
            return distances[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Fake))
    assert plot_rows(kernel, "0:0").get_xlabel() == "UMAP 1"
    with pytest.raises(InputError, match="expected 10 `groups`, got 1"):
        plot_rows(kernel, "0:0", ["a"])
    with pytest.raises(InputError, match="the same rows on both axes"):
        plot_rows(kernel.part(slice(0, 3), slice(None)), "0:0")


def test_what_cannot_be_decomposed_is_refused() -> None:
    draws, _ = draws_of(num_draws=20)
    with pytest.raises(InputError, match="`num_components` must be an integer from 1 to 6"):
        structure(draws, num_components=7)
    result = structure(draws)
    with pytest.raises(InputError, match="`component` must be a number from 0 to 2"):
        result.separation(3, SPECIAL)
    with pytest.raises(InputError, match="some of the 6 heads, and not all"):
        result.separation(0, [])
    with pytest.raises(InputError, match="`num_clusters` must be an integer from 1 to 6"):
        result.clusters_of_heads(9)
    one = made_up(1, probes=draws.observed["probes"][:1])
    with pytest.raises(InputError, match="two refinements or more, got one"):
        structure(one)
    draws.diverged[2, 1] = 5
    with pytest.raises(InputError, match=r"chains of \['0:2'\] diverged"):
        structure(draws)
