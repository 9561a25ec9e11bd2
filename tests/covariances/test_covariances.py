"""Covariances of losses on fixed rows: exact laws of quadratics, slow loops, and other runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parabolas import DIM, FAR, GAMMA, LR, MODEL, N_BETA, ROWS, Law, X, losses, made_up
from tiny import QUIET, SHORT, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.covariances.elasticities import elasticities
from rllc.covariances.influence import LossKernel
from rllc.covariances.susceptibilities import Susceptibilities
from rllc.covariances.token_llc import token_llc
from rllc.errors import FileError, InputError
from rllc.plots.kernels import plot_kernel
from rllc.statistics.covariance import covariance, independent_draws

WEIGHTS = {
    "all": (rllc.everything(), slice(0, DIM)),
    "half": (rllc.parameters("v", index=slice(0, 2)).named("half"), slice(0, 2)),
}


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def sampled(
    num_chains: int = 128,
    num_draws: int = 200,
    names: Sequence[str] = tuple(WEIGHTS),
    **changes: object,
) -> rllc.Draws:
    settings = {"n_beta": N_BETA, "num_burnin_steps": 60, "num_steps_bw_draws": 2} | changes
    sampling = rllc.Sampling(num_chains, num_draws, batch_size=ROWS, num_probes=0, **settings)
    return rllc.sample(
        MODEL,
        X,
        [WEIGHTS[name][0] for name in names],
        loss=loss,
        sampler=rllc.sgld(LR, GAMMA),
        sampling=sampling,
        compute=QUIET,
        observe={"rows": rllc.losses_on(X), "distance": rllc.distance()},
    )


@pytest.fixture(scope="module")
def draws() -> rllc.Draws:
    return sampled()


def check(mean: object, truth: np.ndarray, largest_error: float) -> None:
    z = (mean.value - truth) / mean.standard_error
    assert np.abs(z).max() < FAR
    assert np.median(mean.standard_error) < largest_error * np.abs(truth).max()


# Against the exact law.


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_kernel_is_that_of_the_law(draws: rllc.Draws, name: str) -> None:
    law = Law(WEIGHTS[name][1])
    kernel = LossKernel.of(draws)
    check(kernel[draws.weights[list(WEIGHTS).index(name)]], law.kernel(), 0.03)
    correlation = LossKernel.of(draws, correlation=True)
    spread = np.sqrt(np.diag(law.kernel()))
    i = list(WEIGHTS).index(name)
    off = ~np.eye(ROWS, dtype=bool)
    z = (correlation.value[i] - law.kernel() / np.outer(spread, spread))[off]
    assert np.abs(z / correlation.standard_error[i][off]).max() < FAR
    assert np.diag(correlation.value[i]) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_susceptibilities_are_those_of_the_law(draws: rllc.Draws, name: str) -> None:
    i = list(WEIGHTS).index(name)
    result = Susceptibilities.of(draws, "rows")
    truth = Law(WEIGHTS[name][1]).susceptibilities()[:, None]
    check(result[draws.weights[i]], truth, 0.3)
    # The mean loss answers to itself as much as to all tokens together.
    assert result.on_all.value[i] == pytest.approx(0, abs=1e-12)
    assert result.value[i].mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_llc_of_rows_is_that_of_the_law(draws: rllc.Draws, name: str) -> None:
    i = list(WEIGHTS).index(name)
    mean = token_llc(draws)
    truth = N_BETA * Law(WEIGHTS[name][1]).rise()[:, None]
    z = (mean.value[i] - truth) / mean.standard_error[i]
    assert np.abs(z).max() < FAR
    # Full batches: λ̂ of the draws is the mean over the rows, to the rounding of float16.
    assert mean.value[i].mean() == pytest.approx(draws.llc[i].mean(), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_elasticities_are_those_of_the_law(draws: rllc.Draws, name: str) -> None:
    i = list(WEIGHTS).index(name)
    law = Law(WEIGHTS[name][1])
    HS = law.H @ law.S
    by_n_beta = N_BETA * np.trace(HS) / 2 - N_BETA**2 * np.trace(HS @ HS) / 2
    by_gamma = -GAMMA * N_BETA / 2 * np.trace(HS @ law.S)
    result = elasticities(draws)
    for mean, truth in ((result.n_beta, by_n_beta), (result.localization, by_gamma)):
        assert abs(mean.value[i] - truth) < FAR * mean.standard_error[i]
        assert mean.standard_error[i] < 0.15 * abs(truth)


def test_elasticities_are_printed_beside_the_llc_and_drawn() -> None:
    draws = sampled(4, 40, num_burnin_steps=10)
    result = elasticities(draws)
    first, header, *lines = repr(result).splitlines()
    assert first.startswith("λ̂ at nβ = 6, γ = 4")
    assert header.split() == ["weights", "llc", "doubling", "nβ", "doubling", "γ", "status"]
    doubled = np.log(2) * result.n_beta.value[0]
    assert f"{result.llc.value[0]:.3g} ± " in lines[0]
    assert f"{doubled:+.2g} ± " in lines[0]
    assert list(result.to_dataframe()["status"]) == list(result.status)
    n_beta = np.array([3.0, 6.0, 12.0])
    curve = rllc.calibration.Resolution(n_beta, (rllc.Estimate.of(draws),) * 3)
    ax = rllc.plot_resolution(curve, slopes=[result])
    slope = ax.lines[-1]
    x, y = slope.get_xdata(), slope.get_ydata()
    assert (y[1] - y[0]) / np.log(x[1] / x[0]) == pytest.approx(result.n_beta.value[1])
    assert np.sqrt(x[0] * x[1]) == pytest.approx(N_BETA)
    with pytest.raises(InputError, match="`slopes` must be a list of what"):
        rllc.plot_resolution(curve, slopes=result)


@pytest.mark.slow
def test_an_elasticity_is_the_difference_of_two_runs(draws: rllc.Draws) -> None:
    up, down = (rllc.Estimate.of(sampled(n_beta=N_BETA * f)) for f in (1.1, 0.9))
    slope = (up.value - down.value) / np.log(1.1 / 0.9)
    error = np.hypot(up.standard_error, down.standard_error) / np.log(1.1 / 0.9)
    result = elasticities(draws)
    z = (result.n_beta.value - slope) / np.hypot(error, result.n_beta.standard_error)
    assert np.abs(z).max() < FAR


@pytest.mark.slow
def test_weighing_a_row_more_moves_the_others_as_influence_says() -> None:
    """Finite differences, with the same noise: row 2 is weighed a tenth more, and less."""
    sampling = rllc.Sampling(64, 200, num_burnin_steps=200, batch_size=ROWS, num_probes=0)
    sampling = replace(sampling, num_steps_bw_draws=5, n_beta=N_BETA)

    def sampled_with(weight: float) -> rllc.Draws:
        factors = torch.ones(ROWS)
        factors[2] = weight

        def weighed(module: nn.Module, x: Tensor) -> Tensor:
            return module(x) * factors[x[:, 0].long()]

        observe = {"rows": rllc.losses_on(X)}
        sampler = rllc.sgld(0.005, GAMMA)
        arguments = {"sampler": sampler, "sampling": sampling, "compute": QUIET}
        return rllc.sample(MODEL, X, loss=weighed, observe=observe, **arguments)

    def mean_losses(weight: float) -> np.ndarray:
        """[chain, row], of the other rows."""
        losses = sampled_with(weight).observed["rows"][0, ..., 0].astype(np.float64)
        return np.delete(losses.mean(axis=1), 2, axis=1)

    response = (mean_losses(1.1) - mean_losses(0.9)) / 0.2
    influence = LossKernel.of(sampled_with(1.0)).influence()
    predicted = np.delete(influence.value[0, 2], 2) * N_BETA / ROWS
    error = np.delete(influence.standard_error[0, 2], 2) * N_BETA / ROWS
    error_of_response = response.std(axis=0, ddof=1) / len(response) ** 0.5
    z = (response.mean(axis=0) - predicted) / np.hypot(error, error_of_response)
    assert np.abs(z).max() < FAR
    # The change is many times its error, so the comparison means something.
    assert np.abs(predicted / error).max() > 8


@pytest.mark.slow
def test_the_llc_of_a_head_answers_to_weighing_a_subset_more() -> None:
    """Finite differences, with the same noise: the loss becomes L + h(ℓ_S − L), h = ±0.2."""
    model, rows = tiny_model(), tiny_tokens(8)
    chosen = torch.zeros(8)
    chosen[:3] = 1
    first = rows.rows[:, :3].long()
    sampling = rllc.Sampling(32, 150, num_burnin_steps=100, batch_size=8, num_probes=0, n_beta=60)

    def sampled_with(h: float) -> rllc.Draws:
        def weighed(module: nn.Module, x: Tensor) -> Tensor:
            row = (x[:, None, :3] == first).all(-1).int().argmax(1)
            factor = 1 - h + h * chosen[row] * 8 / 3
            return rllc.next_token(module, x) * factor[:, None]

        subset = {"subset": rllc.losses_on(rows[:3]), "rows": rllc.losses_on(rows)}
        sampler = rllc.sgld(1e-3, 60.0)
        arguments = {"sampler": sampler, "sampling": sampling, "compute": QUIET}
        return rllc.sample(model, rows, "1:1", loss=weighed, observe=subset, **arguments)

    def llc(h: float) -> np.ndarray:
        """[chain], on the rows as they are; what is observed is weighed, too."""
        rise = sampled_with(h).observed["rows"][0].astype(np.float64)
        factor = 1 - h + h * chosen.numpy() * 8 / 3
        return 60 * (rise / factor[:, None]).mean(axis=(1, 2, 3))

    response = (llc(0.2) - llc(-0.2)) / 0.4
    draws = sampled_with(0.0)
    result = Susceptibilities.of(draws, "subset", phi="rows")
    predicted = 60**2 * float(result.on_all.value[0])
    error = 60**2 * float(result.on_all.standard_error[0])
    z = (response.mean() - predicted) / np.hypot(error, response.std(ddof=1) / len(response) ** 0.5)
    assert abs(z) < FAR
    assert abs(predicted) > 5 * error


@pytest.mark.slow
def test_intervals_cover() -> None:
    """Of 200 repetitions of 4 chains of 100 draws, each chain used once."""
    draws = sampled(num_chains=800, num_draws=100, names=["all"], num_steps_bw_draws=4)
    law = Law(slice(0, DIM))
    truth = {"kernel": law.kernel(), "chi": law.susceptibilities()[:, None]}
    covered: dict[str, list[np.ndarray]] = {"kernel": [], "chi": []}
    for first in range(0, 800, 4):
        few = _some_chains(draws, first)
        means = {"kernel": LossKernel.of(few)["everything"]}
        means["chi"] = Susceptibilities.of(few, "rows")["everything"]
        for name, mean in means.items():
            low, high = np.moveaxis(mean.interval(), -1, 0)
            covered[name].append((low < truth[name]) & (truth[name] < high))
    for inside in covered.values():
        assert 0.9 < np.mean(inside) < 0.99


def _some_chains(draws: rllc.Draws, first: int) -> rllc.Draws:
    chosen = slice(first, first + 4)
    return replace(
        draws,
        loss=draws.loss[:, chosen],
        baseline=draws.baseline[:, chosen],
        diverged=draws.diverged[:, chosen],
        observed={"rows": draws.observed["rows"][:, chosen]},
    )


# Against other code.


def test_a_slow_loop() -> None:
    draws = made_up(rows=losses(2, 3, 20, 2, 3))
    result = Susceptibilities.of(draws, "rows")
    for refinement in range(2):
        series = draws.observed["rows"][refinement].reshape(60, 2, 3)
        mean = series.mean((1, 2))
        x = mean.reshape(3, 20)
        n = independent_draws(x, 0.3)
        for row in range(2):
            for pos in range(3):
                covariance = np.mean((mean - mean.mean()) * (series[:, row, pos] - mean))
                truth = -covariance * (1 + 1 / n)
                assert result.value[refinement, row, pos] == pytest.approx(truth, rel=1e-9)


def test_the_mean_of_a_covariance_is_unbiased() -> None:
    """Short chains, whose own means take much of the variance with them."""
    stream = np.random.default_rng(0)
    x = np.zeros((5_000, 2, 30))
    x[..., 0] = stream.standard_normal(x.shape[:-1])
    for t in range(1, 30):
        noise = stream.standard_normal(x.shape[:-1])
        x[..., t] = 0.8 * x[..., t - 1] + 0.6 * noise
    mean = covariance(x, x, relaxation=0.8)
    plain = ((x - x.mean(axis=(1, 2), keepdims=True)) ** 2).mean(axis=(1, 2))
    assert plain.mean() < 0.9
    assert mean.value.mean() == pytest.approx(1, abs=0.07)


def test_tokens_without_a_loss_are_left_out() -> None:
    array = losses(1, 3, 20, 2, 3)
    array[:, :, :, 0, 1] = np.nan
    draws = made_up(1, rows=array)
    result = Susceptibilities.of(draws, "rows")
    assert np.isnan(result.value[0, 0, 1])
    assert np.isfinite(result.value).sum() == 5
    assert result.standardised().shape == (5, 1)
    counted = array.reshape(1, 3, 20, 6)[..., [0, 2, 3, 4, 5]][..., None]
    alone = Susceptibilities.of(made_up(1, rows=counted), "rows")
    rest = result.value[0].ravel()[[0, 2, 3, 4, 5]]
    np.testing.assert_allclose(rest, alone.value[0, :, 0], rtol=1e-9)


def of_a_language_model() -> tuple[np.ndarray, np.ndarray]:
    """Losses of two sets of rows along chains of a head, and of all weights."""
    observe = {"task": rllc.losses_on(tiny_tokens(5), keep="all")}
    observe["probe"] = rllc.losses_on(tiny_tokens(6, seed=1), keep="all")
    weights = [rllc.head("0:1"), rllc.everything()]
    sampling = replace(SHORT, num_chains=4, num_draws=50)
    draws = rllc.sample(
        tiny_model(), tiny_tokens(), weights, sampling=sampling, compute=QUIET, observe=observe
    )
    return draws.observed["task"].astype(np.float64), draws.observed["probe"].astype(np.float64)


def made_up_losses() -> tuple[np.ndarray, np.ndarray]:
    return losses(2, 4, 50, 5, 3), losses(2, 4, 50, 6, 3, seed=1)


@pytest.mark.oracle
@pytest.mark.parametrize("observed", [of_a_language_model, made_up_losses])
def test_devinterp_has_the_same_covariances(observed: Callable) -> None:
    """Its susceptibilities, with a reference chain, and its correlations, of the same draws.

    devinterp divides by the number of draws; here what the means take is given back.
    """
    pytest.importorskip("devinterp")
    import xarray as xr
    from devinterp.slt.bif import compute_bif
    from devinterp.slt.susceptibilities import compute_susceptibilities

    task, probe = observed()

    def tree(refinement: int) -> xr.DataTree:
        arrays = {"task": task[refinement], "probe": probe[refinement]}
        variables = {"init_loss": ((), 0.0)}
        for name, array in arrays.items():
            axes = ("chain", "draw", f"batch_{name}", "token_pos")
            variables[f"loss_{name}"] = (axes, array)
            ids = np.zeros((array.shape[2], 4), dtype=int)
            variables[f"input_ids_{name}"] = ((f"batch_{name}", "token"), ids)
        return xr.DataTree(xr.Dataset(variables))

    theirs = compute_susceptibilities({"full": tree(1), "0:0": tree(0)}, "task")
    theirs = theirs["/susceptibilities"]["sus"].values.reshape(probe.shape[-2:])
    draws = made_up(1, task=task[:1], probe=probe[:1])
    full = made_up(1, task=task[1:], probe=probe[1:])
    ours = Susceptibilities.of(draws, "probe", phi="task", reference=full).value[0]
    mean = task[0].mean((2, 3))
    n = independent_draws(mean, 0.3)
    plain = Susceptibilities.of(draws, "probe", phi="task").value[0]
    np.testing.assert_allclose(ours - plain / (n + 1), theirs, atol=1e-8)

    bif = compute_bif(tree(0), correlation_method="sequence", loss_keys=["probe"], device="cpu")
    kernel = LossKernel.of(draws, "probe", correlation=True)
    np.testing.assert_allclose(kernel.value[0], bif["influences"].values, atol=1e-6)


# Results.


def test_of_a_language_model(tmp_path: Path) -> None:
    model, rows, probes = tiny_model(), tiny_tokens(), tiny_tokens(3, seed=1, name="probes")
    heads = rllc.heads(model)
    options = {"sampling": SHORT, "compute": QUIET}
    result = rllc.susceptibilities(model, rows, probes, heads, **options)
    assert result.value.shape == (6, 3, 6)
    assert len(result.to_dataframe()) == 6 * 3 * 6
    assert dict(result.to_xarray().sizes) == {"refinement": 6, "row": 3, "pos": 6}
    assert "Susceptibilities: susceptibility, 3 × 6 (row × pos)" in repr(result)
    assert "0:1" in repr(result)
    # The same, alone and from draws.
    draws = rllc.sample(model, rows, "0:1", observe={"p": rllc.losses_on(probes)}, **options)
    again = Susceptibilities.of(draws, "p")
    np.testing.assert_allclose(again.value[0], result["0:1"].value, rtol=1e-2, atol=1e-6)
    assert Susceptibilities.load(result.save(tmp_path / "chi.npz")) == result
    with pytest.raises(FileError, match=r"as covariances\.Susceptibilities: it holds rllc\.Draws"):
        Susceptibilities.load(draws.save(tmp_path / "draws.npz"))

    kernel = rllc.loss_kernel(model, rows, probes, heads, **options)
    np.testing.assert_allclose(kernel.value, kernel.value.swapaxes(1, 2), rtol=1e-6)
    tokens = LossKernel.of(draws, "p", by="token")
    assert tokens.value.shape == (1, 18, 18)
    influence = rllc.influence(model, rows, rows[:2], probes, "0:1", sampling=SHORT)
    assert influence.value.shape == (1, 2, 3)
    assert influence.kind == "influence"
    table = influence.to_dataframe()
    assert table.query("row == 1 and query == 2")["influence"].item() == influence.value[0, 1, 2]
    assert LossKernel.load(influence.save(tmp_path / "influence.npz")) == influence
    assert "LossKernel: influence, 2 × 3 (row × query)" in repr(influence)
    # The mean of a row, kept alone, is the mean of its tokens.
    np.testing.assert_allclose(
        kernel["0:1"].value, LossKernel.of(draws, "p").value[0], rtol=5e-3, atol=1e-6
    )
    assert plot_kernel(kernel, "0:1").get_xlabel() == "query"


def test_moments_of_rows_are_kept_along_the_chains() -> None:
    rows, probes = tiny_tokens(), tiny_tokens(5, seed=1)
    observe = {"all": rllc.losses_on(probes, keep="all", by="row")}
    observe["few"] = rllc.losses_on(probes, keep="moments", by="row")
    draws = rllc.sample(
        tiny_model(), rows, ["0:1", "1:2"], sampling=SHORT, compute=QUIET, observe=observe
    )
    assert draws.observed["few.covariance"].shape == (2, 2, 5, 5)
    few = LossKernel.of(draws, "few", correlation=True)
    every = LossKernel.of(draws, "all", correlation=True)
    np.testing.assert_allclose(few.value, every.value, atol=1e-6)


def test_over_training_and_again(tmp_path: Path) -> None:
    """A sweep keeps what was observed; another call goes on, and nothing is lost in between."""
    rows, probes = tiny_tokens(), tiny_tokens(3, seed=1, name="probes")
    models = {0: tiny_model(), 10: tiny_model(1)}
    heads = ["0:1", "1:2"]
    store = rllc.sweep.Store(tmp_path / "sweep", observe={"probes": rllc.losses_on(probes)})
    options = {"sampling": SHORT, "compute": QUIET}
    rllc.track([(0, models[0])], rows, heads, store=store, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.npz")}
    rllc.track(list(models.items()), rows, heads, store=store, **options)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}.items()
    over = rllc.covariances.each_checkpoint(
        rllc.Sweep.open(tmp_path / "sweep"), Susceptibilities.of
    )
    assert list(over) == [0, 10]
    for step, model in models.items():
        observe = {"probes": rllc.losses_on(probes)}
        draws = rllc.sample(model, rows, heads, observe=observe, **options)
        direct = Susceptibilities.of(draws)
        assert over[step].names == direct.names
        np.testing.assert_allclose(over[step].value, direct.value, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(over[step].by_row.value, direct.by_row.value, rtol=1e-5)
    # A cell that is not there is NaN, and says so.
    for path in before:
        path.unlink()
    partly = rllc.covariances.each_checkpoint(
        rllc.Sweep.open(tmp_path / "sweep"), Susceptibilities.of
    )
    assert np.isnan(partly[0].value).all()
    assert partly[0].status == ("missing", "missing")
    assert set(partly[0].marks().ravel()) == {"no chains"}
    assert partly[10] == over[10]
    for path in tmp_path.rglob("cells/*.npz"):
        path.unlink()
    with pytest.raises(InputError, match="no cell of this sweep is finished"):
        rllc.covariances.each_checkpoint(rllc.Sweep.open(tmp_path / "sweep"), Susceptibilities.of)


def test_what_cannot_be_told_is_refused() -> None:
    draws = made_up(2, rows=losses(2, 2, 8, 2, 3))
    with pytest.raises(InputError, match="did not observe 'row'; did you mean 'rows'"):
        Susceptibilities.of(draws, "row")
    with pytest.raises(InputError, match="of one refinement as `reference`"):
        Susceptibilities.of(draws, "rows", reference=draws)
    with pytest.raises(InputError, match="`by` must be 'row' or 'token', got 'head'"):
        LossKernel.of(draws, by="head")
    with pytest.raises(InputError, match="must be one number a draw"):
        elasticities(draws, distance="rows")
    far = made_up(2, distance=np.ones((2, 2, 8)))
    with pytest.raises(InputError, match=r"has axes \[\], not losses on fixed rows"):
        token_llc(far, "distance")
    with pytest.raises(InputError, match="the same chains and draws"):
        covariance(np.zeros((2, 8)), np.zeros((2, 9)), None)
    moments = {"rows": np.ones((2, 2, 3)), "rows.covariance": np.ones((2, 2, 3, 3))}
    kept = replace(draws, observed=moments | {"p": np.ones((2, 2, 8, 3))})
    kept.settings["observed"]["p"] = ["row"]
    with pytest.raises(InputError, match="only moments were kept"):
        token_llc(kept)
    with pytest.raises(InputError, match="its covariance with other rows is not known"):
        LossKernel.of(kept, queries="p")
    with pytest.raises(InputError, match="`by` must be 'token' or 'row'"):
        rllc.losses_on(X, by="head")
    with pytest.raises(InputError, match=r"`phi` must give one number a draw.*got \[3\]"):
        Susceptibilities.of(draws, "rows", phi=lambda draws: np.ones(3))
    with pytest.raises(InputError, match="`sweep` must be what"):
        rllc.covariances.each_checkpoint(draws, Susceptibilities.of)
    with pytest.raises(InputError, match="expected the name of an observable, got none"):
        Susceptibilities.of(draws, [])
    flat = replace(far, settings=dict(far.settings) | {"localization": 0.0})
    with pytest.raises(InputError, match="has no localization"):
        elasticities(flat)


def test_susceptibilities_of_draws_are_made_elsewhere() -> None:
    draws = made_up(rows=losses(1, 2, 8, 3, 1))
    with pytest.raises(InputError, match=r"Susceptibilities\.of\(draws, 'probes'\)"):
        rllc.susceptibilities(draws)
    with pytest.raises(InputError, match="expected the data to sample on and the rows to probe"):
        rllc.susceptibilities(torch.nn.Linear(1, 1), torch.zeros(4, 1))


def test_what_is_wrong_with_the_chains_is_said() -> None:
    array = losses(2, 3, 30, 2, 3)
    draws = made_up(2, rows=array)
    broken = replace(draws, diverged=np.array([[-1, 4, -1], [-1, -1, -1]]))
    broken.loss[0, 1, 4:] = np.nan
    array[0, 1, 4:] = np.nan
    result = Susceptibilities.of(broken, "rows")
    assert "diverged: chain 1 at step 4" in result.status[0]
    assert np.isnan(result.value[0]).all()
    assert np.isfinite(result.value[1]).all()
