"""Estimates: exact truths for value, error and effective sample size; names, tables and files; what is said of trouble."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHORT, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.diagnostics import standard_error
from rllc.errors import FileError, InputError
from rllc.seeds import generator
from rllc.theory import SGLDLaw, deep_linear_curvatures, deep_linear_layer

MODEL = tiny_model()
DATA = {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}


# Exact truths


@pytest.fixture(scope="module")
def many() -> tuple[rllc.Estimate, SGLDLaw, rllc.Sampling]:
    """Forty copies of one quadratic, each sampled on its own: forty independent estimates of one truth."""
    curvatures = torch.tensor([0.5, 2.0, 8.0]).repeat(8)
    model = Quadratic(curvatures.repeat(40))
    parts = [rllc.parameters("v", index=slice(24 * i, 24 * (i + 1))) for i in range(40)]
    sampling = rllc.Sampling(
        num_chains=2, num_draws=300, num_burnin_steps=50, batch_size=1, n_beta=30.0
    )
    est = rllc.estimate(model, torch.zeros(1, len(model.v)), parts, loss=loss_of_quadratic,
                        sampler=rllc.sgld(4e-3, 50.0), sampling=sampling, compute=rllc.Compute(progress=False))  # fmt: skip
    return est, SGLDLaw(curvatures.numpy(), lr=4e-3, localization=50.0, n_beta=30.0), sampling


def test_values_scatter_around_the_truth_by_the_exact_standard_error(many: tuple) -> None:
    est, law, sampling = many
    truth = law.expected(sampling.num_draws, num_burnin_steps=sampling.num_burnin_steps)
    exact = law.standard_error(
        sampling.num_draws, sampling.num_chains, num_burnin_steps=sampling.num_burnin_steps
    )
    z = (est.value - truth) / exact
    assert abs(z.mean()) * 40**0.5 < 5
    assert abs((z**2).sum() - 40) / 80**0.5 < 5


def test_standard_errors_are_the_exact_one(many: tuple) -> None:
    """Their mean, within five of its own errors and the 10 % that the library's formula may claim too much."""
    est, law, sampling = many
    exact = law.standard_error(
        sampling.num_draws, sampling.num_chains, num_burnin_steps=sampling.num_burnin_steps
    )
    ratio = est.standard_error / exact
    noise = 5 * ratio.std() / 40**0.5
    assert 1 - noise < ratio.mean() < 1.1 + noise
    assert noise < 0.25


def test_many_short_chains_on_full_batches_have_the_exact_error() -> None:
    """64 chains of 60 draws that have no minibatch in common; the error that allows for one is larger."""
    h = torch.tensor([1.0, 3.0, 10.0])
    sampling = rllc.Sampling(num_chains=64, num_draws=60, num_burnin_steps=60, batch_size=1)
    draws = rllc.sample(Quadratic(h), torch.zeros(1, 3), loss=loss_of_quadratic, sampler=rllc.sgld(2e-3, 50.0),
                        sampling=sampling, compute=rllc.Compute(progress=False))  # fmt: skip
    law = SGLDLaw(h.numpy(), lr=2e-3, localization=50.0, n_beta=30.0)
    exact = law.standard_error(60, 64, num_burnin_steps=60)
    est = rllc.Estimate.of(draws)
    assert 0.8 < est.standard_error[0] / exact < 1.3
    assert abs(est.value[0] - law.expected(60, num_burnin_steps=60)) < 5 * exact
    assert standard_error(draws.llc)[0] > est.standard_error[0]


def test_intervals_cover_the_truth(many: tuple) -> None:
    est, law, sampling = many
    truth = law.expected(sampling.num_draws, num_burnin_steps=sampling.num_burnin_steps)
    covered = (abs(est.value - truth) < 1.96 * est.standard_error).sum()
    assert covered > 40 * 0.95 - 5 * (40 * 0.95 * 0.05) ** 0.5


def test_effective_sample_sizes_are_the_exact_one(many: tuple) -> None:
    est, law, sampling = many
    exact = sampling.num_chains * sampling.num_draws / law.autocorrelation_time()
    assert exact < 0.6 * sampling.num_chains * sampling.num_draws  # draws are correlated
    noise = 5 * est.ess.std() / 40**0.5
    assert abs(est.ess.mean() - exact) < noise + 0.05 * exact
    assert noise < 0.2 * exact


def test_chains_that_agree_have_rhat_near_one(many: tuple) -> None:
    assert (many[0].rhat < 1.05).all()
    assert all(
        re.fullmatch(r"the step size adds \d+%: lower lr", status) for status in many[0].status
    )  # 21 %, see below


def test_diagnostics_are_the_exact_ones(many: tuple) -> None:
    """Within five standard errors over the forty: what the step size adds, the reading from the variance, the curvature."""
    est, law, _ = many
    told, a = est.diagnostics, law.n_beta * law.curvatures + law.localization
    shares = law.n_beta * law.curvatures / a
    added = shares.sum() / 2 / law.value
    for name, truth in {
        "discretisation": 1 - added,
        "from_variance": law.draw_variance,
        "relaxation": law.autocorrelation_time(),
    }.items():
        error = told[name].std() / 40**0.5
        assert abs(told[name].mean() - truth) < 5 * error + 0.05 * truth, name
        assert error < 0.1 * truth, name
    np.testing.assert_allclose(told["max_curvature"], 8.0, rtol=0.01)
    np.testing.assert_allclose(told["stability"], 4 / law.lr / (30 * 8 + 50), rtol=0.01)
    scatter = told["from_variance"].std()
    assert scatter / 1.5 < told["from_variance_se"].mean() < 1.5 * scatter
    np.testing.assert_allclose(
        told["prior_shrinkage"], 1 - told["from_variance"] / est.value, atol=0.05
    )


class DeepLinear(nn.Module):
    """y = W_3 W_2 W_1 x, each layer a partial isometry, W_2 of rank 2: its exact minimum is itself."""

    def __init__(self, widths: tuple[int, ...], ranks: tuple[int, ...]) -> None:
        super().__init__()
        stream = generator("deep linear", widths)
        self.weights = nn.ParameterList()
        for (i, o), rank in zip(pairwise(widths), ranks, strict=True):
            left, right = (torch.linalg.qr(torch.randn(n, n, generator=stream))[0] for n in (o, i))
            self.weights.append(left[:, :rank] @ right[:rank])

    def forward(self, x: Tensor) -> Tensor:
        for W in self.weights:
            x = x @ W.T
        return x


def half_squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (module(batch[0]) - batch[1]).square().sum(1)


DEEP = DeepLinear((5, 4, 6, 3), ranks=(4, 2, 3))
MATRICES = [W.detach().double().numpy() for W in DEEP.weights]


def inputs(rank: int) -> Tensor:
    """Twenty inputs whose second moments are exactly the projection on the first ``rank`` coordinates."""
    basis = (
        torch.linalg.qr(torch.randn(20, 5, generator=generator("inputs")).double())[0][:, :rank]
        * 20**0.5
    )
    return torch.cat([basis, torch.zeros(20, 5 - rank)], 1).float()


@pytest.mark.parametrize(
    ("n_beta", "lr", "localization"),
    [(30.0, 1e-2, 20.0), (1000.0, 2e-4, 1.0)],
    ids=["far from asymptotic", "near"],
)
def test_each_layer_of_a_deep_linear_network_on_full_and_deficient_inputs(
    n_beta: float, lr: float, localization: float
) -> None:
    """wrLLC and drLLC at once: rank(A) · rank(BΣ^½) / 2 as nβ grows, and the exact finite law at any nβ."""
    with torch.no_grad():
        data = {name: (x, DEEP(x)) for name, x in (("full", inputs(5)), ("deficient", inputs(2)))}
    weights = {f"layer {k}": rllc.parameters(f"weights.{k}") for k in range(3)}
    sampling = rllc.Sampling(
        num_chains=4, num_draws=150, num_burnin_steps=50, batch_size=20, n_beta=n_beta
    )
    est = rllc.estimate(DEEP, data, weights, loss=half_squared_error, sampler=rllc.sgld(lr, localization), sampling=sampling,
                        compute=rllc.Compute(progress=False))  # fmt: skip
    seen = set()
    for k in range(3):
        for name, (x, _) in data.items():
            covariance = (x.T.double() @ x.double() / len(x)).numpy()
            covariance[abs(covariance) < 1e-6] = 0
            curvatures = deep_linear_curvatures(MATRICES, k, covariance)
            law = SGLDLaw(
                np.where(curvatures < 1e-6, 0, curvatures),
                lr=lr,
                localization=localization,
                n_beta=n_beta,
            )
            truth = law.expected(150, num_burnin_steps=50)
            z = (est[f"layer {k}", name].value - truth) / law.standard_error(
                150, 4, num_burnin_steps=50
            )
            assert abs(z) < 5, (k, name)
            asymptotic = deep_linear_layer(
                [W.astype(np.float32) for W in MATRICES], k, covariance.round(6)
            ).value
            seen.add(asymptotic)
            if n_beta == 1000.0:
                assert law.value == pytest.approx(asymptotic, rel=0.06)
    assert len(seen) >= 4  # the truths differ between layers and data


# Names


@pytest.fixture(scope="module")
def est() -> rllc.Estimate:
    return rllc.estimate(
        MODEL, DATA, ["0:1", "1:2"], sampling=SHORT, compute=rllc.Compute(progress=False)
    )


def test_rows_by_name(est: rllc.Estimate) -> None:
    one = est["1:2", "prose"]
    assert (one.weights, one.data) == ("1:2", "prose")
    assert one.value == est.value[3]
    assert one.standard_error == est.standard_error[3]
    assert one.per_chain == tuple(est.per_chain[3])
    assert np.mean(one.per_chain) == pytest.approx(one.value)
    assert len(est) == 4
    single = rllc.estimate(
        MODEL, DATA["code"], "1:2", sampling=SHORT, compute=rllc.Compute(progress=False)
    )
    assert single["1:2"].value == pytest.approx(est["1:2", "code"].value, abs=1e-4)
    assert single["1:2"] == single["1:2", "tokens"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("1:3", r"estimate\['1:3'\]: no such weights; did you mean '1:2'"),
        ("1:2", r"on which data\? It has \['code', 'prose'\]; type estimate\['1:2', 'code'\]"),
        (
            ("1:2", "poems"),
            r"no such data; did you mean 'prose'|no such data; known: 'code', 'prose'",
        ),
    ],
)
def test_rows_that_are_not_there(est: rllc.Estimate, key: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        est[key]  # type: ignore[index]


def test_estimate_is_the_summary_of_sample(est: rllc.Estimate) -> None:
    draws = rllc.sample(
        MODEL, DATA, ["0:1", "1:2"], sampling=SHORT, compute=rllc.Compute(progress=False)
    )
    again = rllc.Estimate.of(draws)
    assert np.array_equal(again.value, est.value)
    assert np.allclose(est.value, 30 * (draws.loss - draws.baseline).mean((1, 2)))
    assert np.allclose(est.per_chain, 30 * (draws.loss - draws.baseline).mean(2))


def test_the_table(est: rllc.Estimate) -> None:
    lines = repr(est).splitlines()
    assert lines[0] == "Estimate of 4 LLCs (nβ = 30, γ = 200, ε = 0.001, 2 chains × 5 draws)"
    assert lines[1].split() == ["weights", "data", "llc", "±", "se", "R-hat", "ess", "status"]
    assert lines[2].split()[:3] == ["0:1", "code", f"{est.value[0]:.3f}"]
    assert len(lines) == 6
    assert repr(est["0:1", "code"]).startswith(f"LLC(0:1 on code: {est.value[0]:.4g} ± ")


def test_the_dataframe(est: rllc.Estimate) -> None:
    pytest.importorskip("pandas")
    frame = est.to_dataframe()
    first = ["weights", "data", "llc", "standard_error", "rhat", "ess", "status"]
    assert list(frame.columns) == [*first, *est.diagnostics]
    assert frame.llc.tolist() == est.value.tolist()
    assert frame.status.tolist() == list(est.status)


def test_a_file_holds_everything(est: rllc.Estimate, tmp_path: Path) -> None:
    again = rllc.Estimate.load(est.save(tmp_path / "estimate.npz"))
    for name in ("value", "standard_error", "rhat", "ess", "per_chain"):
        assert np.array_equal(getattr(again, name), getattr(est, name), equal_nan=True)
    assert (again.weights, again.data, again.status) == (est.weights, est.data, est.status)
    assert dict(again.settings) == dict(est.settings)
    assert repr(again) == repr(est)


def test_damaged_files_are_refused(est: rllc.Estimate, tmp_path: Path) -> None:
    path = est.save(tmp_path / "estimate.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="truncated"):
        rllc.Estimate.load(path)


# Trouble


def made_of(llc: np.ndarray, diverged: object = -1) -> rllc.LLC:
    """The summary of draws whose contributions are ``llc [chain, draw]``."""
    loss = np.asarray(llc, dtype=float)[None]
    settings = rllc.sgld().settings | rllc.Sampling(n_beta=1.0).settings
    broken = np.broadcast_to(np.asarray(diverged), loss.shape[:2])
    return rllc.Estimate.of(
        rllc.Draws(loss, np.zeros_like(loss), broken, ("w",), ("d",), settings)
    )["w"]


RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((4, 200))


def test_status_of_chains_that_diverged() -> None:
    llc = 5 + NOISE
    llc[2, 50:] = np.nan
    broken = made_of(llc, [-1, -1, 51, -1])
    assert np.isnan([broken.value, broken.standard_error, broken.rhat, broken.ess]).all()
    assert broken.status == "diverged: chain 2 at step 51; lower lr"
    assert np.isnan(broken.per_chain[2])
    assert np.isfinite(broken.per_chain[0])
    llc[0, 100:] = np.nan
    assert (
        made_of(llc, [101, -1, 51, -1]).status
        == "diverged: chain 0 at step 101 (and 1 more); lower lr"
    )


@pytest.mark.parametrize(
    ("llc", "status"),
    [
        (5 + NOISE, "ok"),
        (NOISE * 1e-9 + np.zeros((4, 200)) + 1e-3, "ok"),
        (5 + NOISE + np.arange(4)[:, None], "chains disagree (R-hat): more draws or burn-in"),
        (-5 + NOISE, "negative: w* is not a minimum for this data, or noise exceeds signal"),
        (NOISE - NOISE.mean() + 1e-3, "noise exceeds signal: more draws"),
        (5 + NOISE[:, :3], "too few draws for a standard error: at least 4"),
        (np.zeros((4, 200)), "ok"),
    ],
)
def test_status_of_chains_that_did_not(llc: np.ndarray, status: str) -> None:
    assert made_of(llc).status == status


def test_negative_values_are_kept() -> None:
    assert made_of(-5 + NOISE).value == pytest.approx(-5, abs=0.2)
