"""Estimates: exact truths for their numbers; names, tables, files and faults."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.errors import FileError, InputError
from rllc.estimates.estimate import LLC
from rllc.estimates.faults import Fault
from rllc.limits import Limits
from rllc.seeds import generator
from rllc.tables import rounded
from rllc.theory import SGLDLaw, deep_linear_curvatures, deep_linear_layer
from rllc.weights.names import Names

MODEL = tiny_model()
DATA = {"code": tiny_tokens(seed=1), "prose": tiny_tokens(seed=2)}
COPIES = 40
"""Of one quadratic: as many independent estimates of one truth."""


# Exact truths.

SAMPLING = rllc.Sampling(num_chains=2, num_draws=300, num_burnin_steps=50, batch_size=1)
CURVATURES = torch.tensor([0.5, 2.0, 8.0]).repeat(8)
LAW = SGLDLaw(CURVATURES.numpy(), lr=4e-3, localization=50.0, n_beta=30.0)
TRUTH = LAW.expected(300, num_burnin_steps=50)
EXACT_ERROR = LAW.standard_error(300, 2, num_burnin_steps=50)


@pytest.fixture(scope="module")
def many() -> rllc.Estimate:
    """The copies, each sampled on its own."""
    size = len(CURVATURES)
    model = Quadratic(CURVATURES.repeat(COPIES))
    parts = [rllc.parameters("v", index=slice(size * i, size * (i + 1))) for i in range(COPIES)]
    return rllc.estimate(
        model,
        torch.zeros(1, size * COPIES),
        parts,
        loss=loss_of_quadratic,
        sampler=rllc.sgld(4e-3, 50.0),
        sampling=SAMPLING,
        compute=QUIET,
    )


def test_values_scatter_around_the_truth_by_the_exact_standard_error(many: rllc.Estimate) -> None:
    z = (many.value - TRUTH) / EXACT_ERROR
    assert abs(z.mean()) * COPIES**0.5 < 5
    assert abs((z**2).sum() - COPIES) / (2 * COPIES) ** 0.5 < 5


def test_standard_errors_are_the_exact_one(many: rllc.Estimate) -> None:
    """Their mean is, within five of its errors and the 10 % that the formula may claim too much."""
    ratio = many.standard_error / EXACT_ERROR
    noise = 5 * ratio.std() / COPIES**0.5
    assert 1 - noise < ratio.mean() < 1.1 + noise
    assert noise < 0.25


def test_many_short_chains_on_full_batches_have_the_exact_error() -> None:
    """64 chains of 60 draws have no minibatch in common."""
    h = torch.tensor([1.0, 3.0, 10.0])
    sampling = rllc.Sampling(num_chains=64, num_draws=60, num_burnin_steps=60, batch_size=1)
    draws = rllc.sample(
        Quadratic(h),
        torch.zeros(1, 3),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(2e-3, 50.0),
        sampling=sampling,
        compute=QUIET,
    )
    law = SGLDLaw(h.numpy(), lr=2e-3, localization=50.0, n_beta=30.0)
    exact = law.standard_error(60, 64, num_burnin_steps=60)
    estimate = rllc.Estimate.of(draws)
    assert 0.8 < estimate.standard_error[0] / exact < 1.3
    assert abs(estimate.value[0] - law.expected(60, num_burnin_steps=60)) < 5 * exact


def test_intervals_cover_the_truth(many: rllc.Estimate) -> None:
    low, high = many.interval().T
    covered = ((low < TRUTH) & (high > TRUTH)).sum()
    assert covered > COPIES * 0.95 - 5 * (COPIES * 0.95 * 0.05) ** 0.5


def test_effective_sample_sizes_are_the_exact_one(many: rllc.Estimate) -> None:
    num_all = SAMPLING.num_chains * SAMPLING.num_draws
    exact = num_all / LAW.autocorrelation_time()
    assert exact < 0.6 * num_all  # draws are correlated
    noise = 5 * many.ess.std() / COPIES**0.5
    assert abs(many.ess.mean() - exact) < noise + 0.05 * exact
    assert noise < 0.2 * exact


def test_chains_that_agree_have_rhat_near_one(many: rllc.Estimate) -> None:
    assert (many.rhat < 1.05).all()


def test_the_step_size_adds_a_fifth_and_nothing_else_is_wrong(many: rllc.Estimate) -> None:
    for llc in many:
        (fault,) = llc.faults
        assert fault.kind == "step_bias"
        assert re.fullmatch(r"the step size adds \d+%: lower lr", llc.status)


def test_diagnostics_are_the_exact_ones(many: rllc.Estimate) -> None:
    """Within five standard errors over the copies, and 5 %."""
    diagnostics = many.diagnostics
    precision = LAW.n_beta * LAW.curvatures + LAW.localization
    without_step = (LAW.n_beta * LAW.curvatures / precision).sum() / 2
    truths = {
        "discretisation": 1 - without_step / LAW.value,
        "from_variance": LAW.draw_variance,
        "relaxation": LAW.autocorrelation_time(),
    }
    for name, truth in truths.items():
        error = diagnostics[name].std() / COPIES**0.5
        assert abs(diagnostics[name].mean() - truth) < 5 * error + 0.05 * truth, name
        assert error < 0.1 * truth, name
    np.testing.assert_allclose(diagnostics["max_curvature"], 8.0, rtol=0.01)
    np.testing.assert_allclose(diagnostics["stability"], 4 / LAW.lr / (30 * 8 + 50), rtol=0.01)
    scatter = diagnostics["from_variance"].std()
    assert scatter / 1.5 < diagnostics["from_variance_se"].mean() < 1.5 * scatter
    shrinkage = 1 - diagnostics["from_variance"] / many.value
    np.testing.assert_allclose(diagnostics["prior_shrinkage"], shrinkage, atol=0.05)


class DeepLinear(nn.Module):
    """y = W_3 W_2 W_1 x, each layer a partial isometry, W_2 of rank 2; at its exact minimum."""

    def __init__(self, widths: tuple[int, ...], ranks: tuple[int, ...]) -> None:
        super().__init__()
        stream = generator("deep linear", widths)
        self.weights = nn.ParameterList()
        for (inputs, outputs), rank in zip(pairwise(widths), ranks, strict=True):
            left = torch.linalg.qr(torch.randn(outputs, outputs, generator=stream))[0]
            right = torch.linalg.qr(torch.randn(inputs, inputs, generator=stream))[0]
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
    """Twenty inputs whose second moments project on the first ``rank`` coordinates, exactly."""
    random = torch.randn(20, 5, generator=generator("inputs")).double()
    basis = torch.linalg.qr(random)[0][:, :rank] * 20**0.5
    return torch.cat([basis, torch.zeros(20, 5 - rank)], 1).float()


@pytest.mark.parametrize(
    ("n_beta", "lr", "localization"),
    [
        pytest.param(30.0, 1e-2, 20.0, id="far from asymptotic", marks=pytest.mark.slow),
        pytest.param(1000.0, 2e-4, 1.0, id="near"),
    ],
)
def test_each_layer_of_a_deep_linear_network_on_full_and_deficient_inputs(
    n_beta: float, lr: float, localization: float
) -> None:
    """wrLLC and drLLC at once.

    They are rank(A) · rank(BΣ^½) / 2 as nβ grows, and have the exact finite law at any nβ.
    """
    with torch.no_grad():
        data = {name: (x, DEEP(x)) for name, x in (("full", inputs(5)), ("deficient", inputs(2)))}
    weights = {f"layer {k}": rllc.parameters(f"weights.{k}") for k in range(3)}
    sampling = rllc.Sampling(
        4, 150, num_burnin_steps=50, batch_size=20, n_beta=n_beta, num_probes=0
    )
    est = rllc.estimate(
        DEEP,
        data,
        weights,
        loss=half_squared_error,
        sampler=rllc.sgld(lr, localization),
        sampling=sampling,
        compute=QUIET,
    )
    asymptotic_values = set()
    for k in range(3):
        for name, (x, _) in data.items():
            covariance = (x.T.double() @ x.double() / len(x)).numpy()
            covariance[abs(covariance) < 1e-6] = 0
            curvatures = deep_linear_curvatures(MATRICES, k, covariance)
            curvatures[curvatures < 1e-6] = 0
            law = SGLDLaw(curvatures, lr, localization, n_beta)
            truth = law.expected(150, num_burnin_steps=50)
            error = law.standard_error(150, 4, num_burnin_steps=50)
            assert abs(est[f"layer {k}", name].value - truth) < 5 * error, (k, name)
            matrices = [W.astype(np.float32) for W in MATRICES]
            asymptotic = deep_linear_layer(matrices, k, covariance.round(6)).value
            asymptotic_values.add(asymptotic)
            if n_beta == 1000.0:
                assert law.value == pytest.approx(asymptotic, rel=0.06)
    assert len(asymptotic_values) >= 4  # the truths differ between layers and data


# Names, tables and files.


@pytest.fixture(scope="module")
def est() -> rllc.Estimate:
    return rllc.estimate(MODEL, DATA, ["0:1", "1:2"], sampling=SHORT, compute=QUIET)


def test_rows_by_name(est: rllc.Estimate) -> None:
    llc = est["1:2", "prose"]
    assert (llc.weights, llc.data) == ("1:2", "prose")
    assert llc.value == est.value[3]
    assert llc.standard_error == est.standard_error[3]
    assert llc.per_chain == tuple(est.per_chain[3])
    assert np.mean(llc.per_chain) == pytest.approx(llc.value)
    assert llc.faults == est.faults[3]
    assert est["L1H2", "prose"] == llc


def test_iterating_gives_each_row(est: rllc.Estimate) -> None:
    assert len(est) == 4
    assert [llc.value for llc in est] == est.value.tolist()
    assert [(llc.weights, llc.data) for llc in est] == list(est.names)


def test_one_data_set_need_not_be_named(est: rllc.Estimate) -> None:
    single = rllc.estimate(MODEL, DATA["code"], "1:2", sampling=SHORT, compute=QUIET)
    assert single["1:2"].value == pytest.approx(est["1:2", "code"].value, abs=1e-4)
    assert single["1:2"] == single["1:2", "tokens"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("1:3", r"estimate\['1:3'\]: no such weights; did you mean '1:2'"),
        (("1:2", "poems"), r"no such data; (did you mean 'prose'|known: 'code', 'prose')"),
        (3, r"estimate\[3\]: expected a name, or \(weights, data\), such as estimate\['1:6', "),
        (0, r"rows by number are estimate\.take\(\[0, 1\]\)"),
    ],
)
def test_rows_that_are_not_there(est: rllc.Estimate, key: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        est[key]  # type: ignore[index]


def test_estimate_is_the_summary_of_sample(est: rllc.Estimate) -> None:
    draws = rllc.sample(MODEL, DATA, ["0:1", "1:2"], sampling=SHORT, compute=QUIET)
    assert np.array_equal(rllc.Estimate.of(draws).value, est.value)
    rise = 30 * (draws.loss - draws.baseline)
    assert np.allclose(est.value, rise.mean((1, 2)))
    assert np.allclose(est.per_chain, rise.mean(2))


def test_the_table(est: rllc.Estimate) -> None:
    lines = repr(est).splitlines()
    assert (
        lines[0]
        == "Estimate of 4 LLCs (nβ = 30, γ = 200, ε = 0.001, 2 chains × 5 draws, batches of 4)"
    )
    assert lines[1].split() == ["weights", "data", "llc", "±", "se", "R-hat", "ess", "status"]
    value, error = rounded(est.value[0], est.standard_error[0])
    assert lines[2].split()[:4] == ["0:1", "code", value, error]
    # The points of a column stand below each other.
    assert len({line.index(".", 14) for line in lines[2:6]}) == 1
    counts = Counter(fault.kind for faults in est.faults for fault in faults)
    kind, count = counts.most_common()[0]
    assert lines[6].startswith("4 of 4 are not ok: ")
    assert f"{kind.replace('_', ' ')} ({count})" in lines[6]
    assert len(lines) == 7
    assert repr(est["0:1", "code"]).startswith(f"LLC(0:1 on code: {value} ± {error}")


def test_the_dataframe(est: rllc.Estimate) -> None:
    pytest.importorskip("pandas")
    frame = est.to_dataframe()
    first = ["weights", "data", "llc", "standard_error", "rhat", "ess", "status"]
    assert list(frame.columns) == first
    assert list(est.to_dataframe(diagnostics=True).columns) == [*first, *est.diagnostics]
    assert frame.llc.tolist() == est.value.tolist()
    assert frame.status.tolist() == list(est.status)


def test_flat_numbers_for_loggers(est: rllc.Estimate) -> None:
    numbers = est.to_dict("rllc/")
    assert len(numbers) == 5 * len(est)
    assert all(type(number) is float for number in numbers.values())
    llc = est["1:2", "code"]
    assert numbers["rllc/1:2/code/llc"] == llc.value
    assert numbers["rllc/1:2/code/se"] == llc.standard_error
    assert numbers["rllc/1:2/code/ok"] == float(llc.status == "ok")
    assert "1:2/code/rhat" in est.to_dict()


def test_named_axes(est: rllc.Estimate) -> None:
    pytest.importorskip("xarray")
    table = est.to_xarray()
    assert dict(table.sizes) == {"refinement": 4, "chain": 2, "draw": 5}
    by_name = table.set_index(refinement=["weights", "data"]).unstack("refinement")
    assert by_name["llc"].sel(weights="1:2", data="prose") == est["1:2", "prose"].value
    assert np.allclose(table["draws"].mean(("chain", "draw")), est.value)


# Selections.


def names_of(estimate: rllc.Estimate) -> list[tuple[str, str]]:
    return [(llc.weights, llc.data) for llc in estimate]


def test_a_key_that_names_several_gives_an_estimate(est: rllc.Estimate) -> None:
    assert names_of(est["1:2"]) == [("1:2", "code"), ("1:2", "prose")]
    assert names_of(est["L1H2"]) == names_of(est["1:2"])
    assert names_of(est["*"]) == list(est.names)
    assert names_of(est["1:*", "code"]) == [("1:2", "code")]
    for pattern in ("L1H*", "l1h?", "L*H2"):
        assert names_of(est[pattern, "code"]) == [("1:2", "code")]
    assert est["1:*"]["1:2", "prose"] == est["1:2", "prose"]
    assert np.array_equal(est["1:*"].llc, est.llc[2:])


def test_selections_fit_all_that_is_asked_for(est: rllc.Estimate) -> None:
    first, *others = est.faults
    mixed = replace(est, faults=((), first, (), others[0]))
    assert names_of(mixed.select(layer=1)) == [("1:2", "code"), ("1:2", "prose")]
    assert names_of(mixed.select(layer=1, data="code", ok=True)) == [("1:2", "code")]
    assert names_of(mixed.select(data="prose", ok=False)) == [("0:1", "prose"), ("1:2", "prose")]
    assert names_of(mixed.select(["L1H2", "0:?"], ["code"])) == [("0:1", "code"), ("1:2", "code")]
    nothing = mixed.select(layer=1, data="prose", ok=True)
    assert len(nothing) == 0
    assert repr(nothing).startswith("Estimate of 0 LLCs (")


def test_rows_in_the_order_of_a_number(est: rllc.Estimate) -> None:
    assert est.sort("llc").value.tolist() == sorted(est.value)
    by_error = est.sort("standard_error", descending=True)
    assert by_error.standard_error.tolist() == sorted(est.standard_error, reverse=True)
    for llc in by_error:
        assert llc == est[llc.weights, llc.data]
    ratio = est.sort("minibatch_variance").diagnostics["minibatch_variance"]
    assert (np.diff(ratio) >= 0).all()
    value = est.value.copy()
    value[0] = np.nan
    for descending in (False, True):
        last = replace(est, value=value).sort(descending=descending)
        assert names_of(last)[-1] == ("0:1", "code")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda est: est["7:*"], r"select\('7:\*'\): no such weights; "),
        (lambda est: est["1:*", "poems"], r"select\('poems'\): no such data; "),
        (lambda est: est.select(layer=7), r"select\(layer=7\): heads are of the layers \[0, 1\]"),
        (lambda est: est.select(ok="no"), "`ok` must be True, False or left out; got"),
        (
            lambda est: est.sort("lcl"),
            r"estimate.sort\('lcl'\): no such column; did you mean 'llc'",
        ),
    ],
)
def test_selections_that_cannot_be(
    est: rllc.Estimate, call: Callable[[rllc.Estimate], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(est)


def test_a_file_holds_everything(est: rllc.Estimate, tmp_path: Path) -> None:
    strict = est.judge(Limits(max_noise=1e-6))
    assert all(strict.faults)
    again = rllc.Estimate.load(strict.save(tmp_path / "estimate.npz"))
    for name in ("value", "standard_error", "dof", "rhat", "ess", "per_chain", "llc"):
        assert np.array_equal(getattr(again, name), getattr(est, name), equal_nan=True)
    assert again.diagnostics.keys() == est.diagnostics.keys()
    assert again.names == est.names
    assert again.faults == strict.faults
    assert dict(again.settings) == dict(est.settings)
    assert repr(again) == repr(strict)


def test_damaged_files_are_refused(est: rllc.Estimate, tmp_path: Path) -> None:
    path = est.save(tmp_path / "estimate.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="truncated"):
        rllc.Estimate.load(path)


# Trouble, in draws made by hand.


def estimate_of(llc: np.ndarray, diverged: object = -1) -> LLC:
    """The summary of draws whose contributions are ``llc [chain, draw]``."""
    loss = np.asarray(llc, dtype=float)[None]
    draws = rllc.Draws(
        loss,
        np.zeros_like(loss),
        np.broadcast_to(np.asarray(diverged), loss.shape[:2]),
        Names(("w",), ("d",)),
        rllc.sgld().settings | rllc.Sampling(n_beta=1.0).settings,
    )
    return rllc.Estimate.of(draws)["w"]


NOISE = np.random.default_rng(0).standard_normal((4, 200))


def test_chains_that_diverged() -> None:
    llc = 5 + NOISE
    llc[2, 50:] = np.nan
    broken = estimate_of(llc, [-1, -1, 51, -1])
    assert np.isnan([broken.value, broken.standard_error, broken.rhat, broken.ess]).all()
    numbers = {"chain": 2, "step": 51, "others": 0}
    assert broken.faults == (Fault("diverged", numbers, "lower lr"),)
    assert broken.status == "diverged: chain 2 at step 51; lower lr"
    assert np.isnan(broken.per_chain[2])
    assert np.isfinite(broken.per_chain[0])


def test_several_chains_that_diverged() -> None:
    llc = 5 + NOISE
    llc[2, 50:] = llc[0, 100:] = np.nan
    broken = estimate_of(llc, [101, -1, 51, -1])
    assert broken.status == "diverged: chain 0 at step 101 (and 1 more); lower lr"


@pytest.mark.parametrize(
    ("llc", "status"),
    [
        (5 + NOISE, "ok"),
        (NOISE * 1e-9 + np.zeros((4, 200)) + 1e-3, "ok"),
        (
            5 + NOISE + np.arange(4)[:, None],
            "chains disagree (they differ by …%): more draws or burn-in; "
            "imprecise (± …%): more draws, or larger batches",
        ),
        (-5 + NOISE, "negative: w* is not a minimum for this data, or noise exceeds signal"),
        (NOISE - NOISE.mean() + 1e-3, "noise exceeds signal: more draws"),
        (5 + NOISE[:, :3], "too few draws for a standard error: at least 4"),
        (np.zeros((4, 200)), "chains do not move: lower lr, or start='gaussian'"),
    ],
)
def test_status_of_chains_that_did_not(llc: np.ndarray, status: str) -> None:
    without_numbers = re.sub(r"\d+%", "…%", estimate_of(llc).status)
    assert without_numbers == status


def test_chains_that_all_rise_are_not_said_to_disagree() -> None:
    """The halves of each chain differ, so R-hat is high; that all rise together says why."""
    rising = estimate_of(5 + NOISE + np.linspace(0, 3, 200))
    assert rising.rhat > 1.1
    (fault,) = rising.faults
    assert fault.kind == "rising"
    assert fault.numbers["p"] < 1e-3


def test_negative_values_are_kept() -> None:
    assert estimate_of(-5 + NOISE).value == pytest.approx(-5, abs=0.2)


def test_judging_again_changes_faults_and_no_number() -> None:
    loss = (5 + NOISE)[None]
    settings = rllc.sgld().settings | rllc.Sampling(n_beta=1.0).settings
    names = Names(("w",), ("d",))
    draws = rllc.Draws(loss, np.zeros_like(loss), np.full((1, 4), -1), names, settings)
    usual = rllc.Estimate.of(draws)
    strict = usual.judge(Limits(max_noise=1e-3))
    assert usual.status == ("ok",)
    (fault,) = strict.faults[0]
    assert fault.kind == "imprecise"
    assert fault.numbers["share"] == usual.mean.imprecision()[0]
    share = usual.standard_error[0] / usual.value[0]
    assert math.isclose(fault.numbers["times"], share / 1e-3)
    assert np.array_equal(usual.value, strict.value)
    assert rllc.Estimate.of(draws, Limits(max_noise=1e-3)).faults == strict.faults


@pytest.mark.parametrize(("by_prior", "said"), [(2, True), (1, False)])
def test_a_line_above_the_table_where_the_prior_dominates_most(by_prior: int, said: bool) -> None:
    prior = (rllc.estimates.Fault("prior_dominated", {"share": 0.97}, "larger n_beta"),)
    numbers = np.ones(3)
    faults = (prior,) * by_prior + ((),) * (3 - by_prior)
    heads = Names(("0:0", "0:1", "0:2"), ("prose",) * 3)
    settings = rllc.sgld().settings | rllc.Sampling().settings
    estimate = rllc.Estimate(
        *[numbers] * 5, per_chain=np.ones((3, 4)), faults=faults, names=heads, settings=settings
    )
    line = f"{by_prior} of 3: the prior alone gives this λ̂; it shows the trace of the Hessian"
    assert repr(estimate).splitlines()[1].startswith(line) == said


def of_independent_draws(h: np.ndarray, n_beta: float) -> rllc.Estimate:
    """On ½ Σ h v², from independent draws of its posterior with γ = 200."""
    stream = np.random.default_rng(0)
    v = stream.standard_normal((1, 8, 2000, len(h))) / np.sqrt(n_beta * h + 200)
    loss = np.square(v) @ h / 2
    settings = rllc.sgld().settings | rllc.Sampling(n_beta=n_beta).settings
    draws = rllc.Draws(
        loss,
        np.zeros_like(loss),
        np.full((1, 8), -1),
        Names(("w",), ("d",)),
        settings | {"relaxation": 0.0},
        observed={"minibatch_variance": np.zeros_like(loss)},
    )
    return rllc.Estimate.of(draws)


@pytest.mark.parametrize("n_beta", [10.0, 1000.0])
def test_the_elasticity_is_the_difference_of_two_laws(n_beta: float) -> None:
    """λ = ½ Σ nβh/(nβh + γ) at nβ·e^{±0.1}."""
    h = np.array([0.1, 0.3, 1.0, 3.0] * 20)
    at = n_beta * np.exp([[0.1], [-0.1]])
    more, less = (at * h / (at * h + 200) / 2).sum(1)
    elasticity = of_independent_draws(h, n_beta).elasticity
    assert abs(elasticity.value[0] - (more - less) / 0.2) < 5 * elasticity.standard_error[0]
    assert elasticity.standard_error[0] < 0.05 * elasticity.value[0]


@pytest.mark.parametrize(
    ("variances", "line"),
    [
        ([3.0], "doubling nβ would change λ̂ by +0.69 ± 0.1"),
        (
            [3.6, 1.0, 2.0],
            "doubling nβ would change λ̂ by +7% (0:0) to +52% (0:1), ± 3%; see estimate.elasticity",
        ),
        ([np.nan, np.nan], None),
    ],
)
def test_what_doubling_n_beta_does_stands_below(variances: list[float], line: str | None) -> None:
    ones = np.ones(len(variances))
    numbers = [4 * ones, 0.1 * ones, 50 * ones, ones, 400 * ones]
    known = {"from_variance": np.array(variances), "from_variance_se": 0.15 * ones}
    heads = Names(tuple(f"0:{i}" for i in range(len(ones))), ("prose",) * len(ones))
    estimate = rllc.Estimate(
        *numbers,
        per_chain=ones[:, None],
        faults=((),) * len(ones),
        names=heads,
        settings=rllc.sgld().settings | rllc.Sampling().settings,
        diagnostics=known | {"control": 10 * ones},
    )
    lines = repr(estimate).splitlines()[2 + len(ones) :]
    assert lines == ([] if line is None else [line])
    # A control's chains did not see the loss.
    assert "doubling" not in repr(replace(estimate, diagnostics=known))
