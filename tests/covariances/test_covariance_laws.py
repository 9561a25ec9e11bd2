"""Covariances against the exact laws of quadratics and linear regression.

Chains are simulated in float64 by their own update rule, so that many of them cost little.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from parabolas import DIM, FAR, GAMMA, LR, MODEL, N_BETA, ROWS, Law, drawn, made_up, positions

import rllc
from rllc.covariances.influence import LossKernel
from rllc.covariances.susceptibilities import Susceptibilities
from rllc.statistics.covariance import covariance as covariance_of

STEPS = 40
ALL = slice(0, DIM)


def losses_at(v: np.ndarray) -> np.ndarray:
    """ℓ_i(v) − ℓ_i(0) of each row of the parabolas, ``[chain, draw, row]``."""
    slopes, curved = MODEL.g.double().numpy(), MODEL.A.double().numpy()
    return v @ slopes.T + np.einsum("nij,cti,ctj->ctn", curved, v, v, optimize=True) / 2


def relaxation_of(M: np.ndarray, lr: float, steps: int = STEPS) -> float:
    """Correlation of successive draws in the flattest direction."""
    return float((1 - lr / 2 * np.linalg.eigvalsh(M).min()) ** steps)


def drawn_from(
    law: Law, num_chains: int = 400, num_draws: int = 100, moving: slice = ALL, steps: int = STEPS
) -> rllc.Draws:
    of_moving = positions(law.M, law.lr, num_chains, num_draws, steps)
    v = np.zeros((num_chains, num_draws, DIM))
    v[..., moving] = of_moving
    relaxation = relaxation_of(law.M, law.lr, steps)
    return drawn(losses_at(v), v, relaxation=relaxation, n_beta=law.n_beta)


def observing(draws: rllc.Draws, **rows: np.ndarray) -> rllc.Draws:
    """The same draws with losses of other names."""
    axes = {name: ["row", "pos"] for name in rows}
    noise = {"minibatch_variance": draws.observed["minibatch_variance"]}
    settings = {**draws.settings, "observed": axes}
    return replace(draws, observed=rows | noise, settings=settings)


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    return drawn_from(Law(ALL))


def check(mean: object, truth: np.ndarray, largest_error: float = 0.16) -> None:
    z = (mean.value - truth) / mean.standard_error
    assert np.abs(z).max() < FAR
    assert np.max(mean.standard_error) < largest_error * np.abs(truth).max()


def test_kernel_susceptibilities_and_llc(draws: rllc.Draws) -> None:
    law = Law(ALL)
    check(LossKernel.of(draws)["0:0"], law.kernel())
    chi = Susceptibilities.of(draws, "rows")
    check(chi["0:0"], law.susceptibilities()[:, None])
    assert (chi.marks() == "ok").mean() > 0.8
    llc = rllc.covariances.token_llc(draws)
    of_refinement = llc._replace(value=llc.value[0], standard_error=llc.standard_error[0])
    check(of_refinement, N_BETA * law.rise()[:, None])


@pytest.mark.slow
def test_at_errors_of_two_per_cent() -> None:
    law = Law(ALL)
    many = drawn_from(law, num_chains=6000)
    check(LossKernel.of(many)["0:0"], law.kernel(), 0.02)
    check(Susceptibilities.of(many, "rows")["0:0"], law.susceptibilities()[:, None], 0.02)
    HS = law.H @ law.S
    by_n_beta = N_BETA * np.trace(HS) / 2 - N_BETA**2 * np.trace(HS @ HS) / 2
    check(rllc.covariances.elasticities(many).n_beta, np.array([by_n_beta]), 0.02)


def test_cross_covariances(draws: rllc.Draws) -> None:
    """Rows by other rows: the first two by the others."""
    rows = draws.observed["rows"]
    split = observing(draws, rows=rows[..., :2, :], queries=rows[..., 2:, :])
    kernel = LossKernel.of(split, queries="queries")
    check(kernel["0:0"], Law(ALL).kernel()[:2, 2:])
    whole = LossKernel.of(draws).part(slice(0, 2), slice(2, None))
    assert whole.value == pytest.approx(kernel.value, rel=1e-3)


def test_a_data_set_answers_as_the_mean_of_its_rows(draws: rllc.Draws) -> None:
    rows = draws.observed["rows"]
    split = observing(draws, a=rows[..., :4, :], b=rows[..., 4:, :])
    result = Susceptibilities.of(split, ["a", "b"])
    truth = Law(ALL).susceptibilities()
    of_sets = np.array([truth[:4].mean(), truth[4:].mean()])
    z = (result.by_data.value[0] - of_sets) / result.by_data.standard_error[0]
    assert np.abs(z).max() < FAR
    assert result.by_data.standard_error.max() < 0.08 * np.abs(truth).max()
    # The same numbers as in one data set: L is the mean of all.
    together = Susceptibilities.of(draws, "rows")
    assert result.value == pytest.approx(together.value, rel=1e-9)


def test_any_observable_answers(draws: rllc.Draws) -> None:
    """λ̂ and ‖v‖²: −Cov(‖v‖², ℓ_z − L) = −tr(S (A_z − H) S)."""
    law = Law(ALL)
    truth = -np.einsum("ij,njk,ki->n", law.S, law.A - law.H, law.S)[:, None]
    check(Susceptibilities.of(draws, "rows", phi="distance")["0:0"], truth)

    def distance(draws: rllc.Draws) -> np.ndarray:
        return draws.observed["distance"]

    mine = Susceptibilities.of(draws, "rows", phi=distance)
    assert mine.value == pytest.approx(
        Susceptibilities.of(draws, "rows", phi="distance").value, rel=1e-12
    )
    llc = replace(
        draws,
        loss=draws.observed["rows"].mean(axis=(-2, -1)),
        baseline=np.zeros(draws.loss.shape),
    )
    of_llc = Susceptibilities.of(llc, "rows", phi="llc")
    assert of_llc.value == pytest.approx(
        N_BETA * Susceptibilities.of(draws, "rows").value, rel=1e-9
    )


def test_with_a_reference_over_all_weights(draws: rllc.Draws) -> None:
    half = slice(0, 2)
    law, full = Law(half), Law(ALL)
    few = drawn_from(law, moving=half)
    lag = (law.rise() - law.rise().mean()) - (full.rise() - full.rise().mean())
    truth = law.susceptibilities() - law.rise().mean() * lag
    result = Susceptibilities.of(few, "rows", reference=draws)
    check(result["0:0"], truth[:, None])


def test_elasticities_and_fluctuation(draws: rllc.Draws) -> None:
    law = Law(ALL)
    HS = law.H @ law.S
    result = rllc.covariances.elasticities(draws)
    by_n_beta = N_BETA * np.trace(HS) / 2 - N_BETA**2 * np.trace(HS @ HS) / 2
    by_gamma = -GAMMA * N_BETA / 2 * np.trace(HS @ law.S)
    for mean, truth in ((result.n_beta, by_n_beta), (result.localization, by_gamma)):
        check(mean, np.array([truth]))
    fluctuation = rllc.covariances.singular_fluctuation(draws)
    check(fluctuation, np.array([N_BETA / 2 * np.diag(law.kernel()).mean()]))


def of_a_normal_mean(x: np.ndarray, gamma: float, keep: str = "all") -> rllc.Draws:
    """Independent draws of the posterior of a normal mean, at temperature 1: nβ is the rows."""
    n = len(x)
    stream = np.random.default_rng(0)
    shift = (n + gamma) ** -0.5 * stream.standard_normal((40, 500))
    losses = np.square(x - x.mean() - shift[..., None]) / 2 + np.log(2 * np.pi) / 2
    if keep == "difference":
        losses = losses - np.square(x - x.mean()) / 2 - np.log(2 * np.pi) / 2
    return drawn(losses, shift[..., None], relaxation=0.0, n_beta=n)


@pytest.mark.parametrize("gamma", [0.0, 15.0])
def test_waic_of_a_normal_mean(gamma: float) -> None:
    """The training loss of N(x̄, 1 + σ²), and Var(½(x − μ)²) = σ⁴/2 + (x − x̄)²σ², σ² = 1/(n + γ)."""
    x = np.random.default_rng(1).standard_normal(30)
    variance = 1 / (30 + gamma)
    away = np.square(x - x.mean())
    loss = np.log(2 * np.pi * (1 + variance)) / 2 + away / (2 * (1 + variance))
    truth = loss.mean() + (variance**2 / 2 + away * variance).mean()
    draws = of_a_normal_mean(x, gamma)
    waic = rllc.covariances.waic(draws)
    check(waic, np.array([truth]), 1e-3)
    # One number a row: a row is a token.
    assert rllc.covariances.waic(draws, by="token").value == pytest.approx(waic.value)
    rise = rllc.covariances.waic(of_a_normal_mean(x, gamma, "difference"))
    at_the_mean = np.log(2 * np.pi) / 2 + away.mean() / 2
    assert rise.value == pytest.approx(waic.value - at_the_mean)


def test_waic_is_leave_one_out() -> None:
    """To O(1/n²), of the exact posterior of a normal mean without each row."""
    x = np.random.default_rng(2).standard_normal(60)
    without = (x.sum() - x) / 59
    variance = 1 + 1 / 59
    left_out = np.log(2 * np.pi * variance) / 2 + np.square(x - without) / (2 * variance)
    assert rllc.covariances.waic(of_a_normal_mean(x, 0.0)).value[0] == pytest.approx(
        left_out.mean(), abs=2e-3
    )


@pytest.mark.slow
def test_the_limits_are_gradient_similarity_and_the_damped_influence_function() -> None:
    g = MODEL.g.double().numpy()
    prior = Law(ALL, n_beta=1e-9)
    kernel = LossKernel.of(drawn_from(prior))["0:0"]
    check(kernel, prior.kernel())
    similarity = g @ g.T / (GAMMA * (1 - LR * GAMMA / 4))
    # At γ = 4 a third of it is of second order in the curvatures; the rest is the gradients'.
    curved = np.einsum("nij,mji->nm", prior.A, prior.A) * (prior.S[0, 0] ** 2) / 2
    check(kernel._replace(value=kernel.value - curved), similarity)

    near = Law(ALL, n_beta=4000.0, lr=3e-6)
    check(LossKernel.of(drawn_from(near))["0:0"], near.kernel())
    damped = g @ np.linalg.inv(near.M) @ g.T
    assert near.kernel() == pytest.approx(damped, abs=0.03 * np.abs(damped).max())


# Linear regression.


def test_linear_regression() -> None:
    """Cov = r_i r_j G_ij + ½ G_ij² with residuals r and G = X S Xᵀ, train by test rows, too."""
    stream = np.random.default_rng(0)
    x = stream.standard_normal((12, 3))
    residuals = stream.standard_normal(12)
    train = slice(0, 8)
    # Residuals of the fit are orthogonal to the inputs.
    solution = np.linalg.lstsq(x[train], residuals[train], rcond=None)[0]
    residuals -= x @ solution
    M = N_BETA * x[train].T @ x[train] / 8 + GAMMA * np.eye(3)
    v = positions(M, LR, 400, 100, STEPS)
    moved = residuals - v @ x.T
    rise = (moved**2 - residuals**2) / 2
    draws = drawn(rise, v, relaxation=relaxation_of(M, LR))
    G = x @ np.linalg.inv(M - LR / 4 * M @ M) @ x.T
    truth = np.outer(residuals, residuals) * G + G**2 / 2
    kernel = LossKernel.of(draws)
    check(kernel["0:0"], truth)
    assert kernel.part(train, slice(8, None)).value.shape == (1, 8, 4)


# Whether chains agree.


def test_offsets_of_chains_are_no_signal() -> None:
    """A chain that sits apart in both quantities is marked, whatever the sign."""
    stream = np.random.default_rng(0)
    x, y = stream.standard_normal((2, 300, 4, 100))
    x[:, 0] += 1.0
    for sign in (1, -1):
        apart = sign * y
        apart[:, 0] += sign * 1.0
        covariance = covariance_of(x, apart, relaxation=0.0)
        assert covariance.value.mean() == pytest.approx(sign * 3 / 16, abs=0.02)
        assert covariance.within.mean() == pytest.approx(0, abs=0.02)
        assert covariance.disagrees(1e-3).mean() > 0.95
    # Apart in one of them only, nothing enters.
    alone = covariance_of(x, stream.standard_normal(x.shape), relaxation=0.0)
    assert alone.disagrees(1e-3).mean() < 0.6
    assert alone.value.mean() == pytest.approx(0, abs=0.02)


def test_chains_that_agree_are_rarely_marked() -> None:
    law = Law(ALL)
    draws = drawn_from(law, num_chains=1600, num_draws=100, steps=5)
    rows = draws.observed["rows"][0, ..., 0].reshape(400, 4, 100, ROWS)
    rows = np.moveaxis(rows, -1, 1)
    relaxation = draws.settings["relaxation"]
    covariance = covariance_of(rows[:, :1], rows, relaxation)
    assert covariance.disagrees(1e-3).mean() < 0.01
    assert covariance.within.mean(axis=0) == pytest.approx(law.kernel()[0], abs=0.05)


# Moments.


def with_moments(draws: rllc.Draws, name: str = "rows") -> rllc.Draws:
    """The same with means and covariances of each chain in place of its draws."""
    values = draws.observed[name]
    flat = values.reshape(*values.shape[:3], -1)
    covariances = []
    for refinement in flat:
        covariances.append(np.stack([np.cov(chain.T) for chain in refinement]))
    kept = {name: values.mean(axis=2), f"{name}.covariance": np.stack(covariances)}
    kept["minibatch_variance"] = np.zeros(draws.loss.shape)
    return replace(draws, observed=kept)


def test_moments_give_the_kernel_that_draws_give(draws: rllc.Draws) -> None:
    from_moments = LossKernel.of(with_moments(draws))
    check(from_moments["0:0"], Law(ALL).kernel())
    from_draws = LossKernel.of(draws)
    assert from_moments.value == pytest.approx(from_draws.value, rel=2e-3, abs=1e-4)
    assert from_moments.within == pytest.approx(from_draws.within, rel=2e-2, abs=1e-2)
    ratio = from_moments.standard_error / from_draws.standard_error
    assert 0.8 < np.median(ratio) < 1.2
    correlation = LossKernel.of(with_moments(draws), correlation=True)
    truth = LossKernel.of(draws, correlation=True)
    assert correlation.value == pytest.approx(truth.value, abs=1e-6)
    off = ~np.eye(ROWS, dtype=bool)
    ratio = correlation.standard_error[0][off] / truth.standard_error[0][off]
    assert 0.8 < np.median(ratio) < 1.2
    assert np.isnan(from_moments.agreement).all()


def test_moments_by_row_and_of_a_broken_chain() -> None:
    stream = np.random.default_rng(0)
    values = stream.standard_normal((1, 4, 50, 3, 2)) + stream.standard_normal((1, 4, 50, 1, 1))
    values[:, :, :, 1, 1] = np.nan
    made = made_up(1, rows=values)
    by_row = LossKernel.of(with_moments(made))
    means = np.nanmean(values[0], axis=-1)
    whole = np.cov(means.reshape(200, 3).T, ddof=0)
    n = 50 * (1 - 0.3) / (1 + 0.3)
    assert by_row.value[0] == pytest.approx(whole * (1 + 1 / (4 * n)))
    assert LossKernel.of(with_moments(made), by="token").value.shape == (1, 6, 6)
    broken = with_moments(made)
    broken = replace(broken, diverged=np.array([[-1, 7, -1, -1]]))
    result = LossKernel.of(broken)
    assert np.isnan(result.value).all()
    assert set(result.marks().ravel()) == {"no chains"}


@pytest.mark.slow
def test_intervals_of_data_sets_cover() -> None:
    """Of 200 repetitions of 4 chains of 100 draws."""
    law = Law(ALL)
    draws = drawn_from(law, num_chains=800, num_draws=100, steps=5)
    covered = []
    truth = law.susceptibilities()[:3].mean()
    for first in range(0, 800, 4):
        chosen = slice(first, first + 4)
        observed = {name: array[:, chosen] for name, array in draws.observed.items()}
        few = replace(
            draws,
            loss=draws.loss[:, chosen],
            baseline=draws.baseline[:, chosen],
            diverged=draws.diverged[:, chosen],
            observed=observed,
        )
        rows = observed["rows"]
        split = observing(few, a=rows[..., :3, :], b=rows[..., 3:, :])
        low, high = Susceptibilities.of(split, ["a", "b"]).by_data.interval()[0, 0]
        covered.append(low < truth < high)
    assert 0.9 < np.mean(covered) < 0.99
