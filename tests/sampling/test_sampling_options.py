"""Options of Sampling that save time: where chains start, when they stop, in which precision
products are done."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, square, tiny_model, tiny_tokens

import rllc
from rllc.data import Minibatches
from rllc.engine import scene
from rllc.seeds import generator
from rllc.theory import SGLDLaw

FALSE_ALARM = 5.0  # standard errors; a false alarm in 2 million


def _first_draws(
    start: str, rows: torch.Tensor, curvatures: torch.Tensor, num_seeds: int = 1
) -> tuple[float, float]:
    """Mean λ̂ of the first draw of 64 chains, and its standard error.

    The chains of a seed share their minibatch.
    """
    num_chains = 64 // num_seeds
    first = []
    for seed in range(num_seeds):
        draws = rllc.sample(
            Quadratic(curvatures),
            rows,
            loss=loss_of_quadratic,
            sampler=rllc.sgld(lr=1e-3, localization=200.0),
            sampling=rllc.Sampling(
                num_chains, 1, batch_size=16, start=start, seed=seed, num_probes=0
            ),
            compute=QUIET,
        )
        first.append(draws.llc[0, :, 0])
    return np.mean(first), np.std(first) / 8


def test_where_the_curvature_is_not_seen_chains_start_from_the_prior() -> None:
    curvatures, rows = (
        torch.full((400,), 1.5),
        torch.zeros(16, 400),
    )  # exact gradients: no variance, so h counts as 0
    mean, error = _first_draws("gaussian", rows, curvatures)
    law = SGLDLaw(curvatures.numpy(), lr=1e-3, localization=200.0, n_beta=30.0)
    prior = 1 / (200 * (1 - 1e-3 * 200 / 4))
    after = (
        law.variance + (prior - law.variance) * law.decay**2
    )  # one step of an AR(1) process from variance 1/γ′
    assert abs(mean - (0.5 * 30 * 1.5 * after).sum()) < FALSE_ALARM * error


def test_where_it_is_seen_the_first_draw_is_near_the_stationary_value() -> None:
    stream = torch.Generator().manual_seed(0)
    curvatures = torch.cat([torch.full((300,), 0.5), torch.full((100,), 20.0)])
    rows = (
        torch.randn(4096, 400, generator=stream) * curvatures.sqrt()
    )  # gradient variance = Hessian, as for a log loss
    law = SGLDLaw(
        curvatures.numpy(),
        lr=1e-3,
        localization=200.0,
        n_beta=30.0,
        gradient_variance=curvatures.numpy() / 16,
    )
    spread, _ = _first_draws("gaussian", rows, curvatures, num_seeds=8)
    center, _ = _first_draws("center", rows, curvatures, num_seeds=8)
    # 128 gradients tell each variance to an eighth, and a minibatch its value to 9 %.
    assert abs(spread - law.value) < 0.2 * law.value
    assert center < 0.75 * law.value


@pytest.mark.usefixtures("few_looks")
def test_chains_start_from_the_gaussian_where_a_law_gives_its_width() -> None:
    options = {"sampling": replace(SHORT, num_draws=1, start=None), "compute": QUIET}
    starts = []
    lawless = replace(rllc.sgld(), law=None)
    for sampler in (
        rllc.sgld(),
        rllc.samplers.sghmc(),
        rllc.samplers.rmsprop_sgld(),
        lawless,
        rllc.sgld(1e-3, 0.0),
    ):
        draws = rllc.sample(tiny_model(), tiny_tokens(), "0:1", sampler=sampler, **options)
        starts.append(draws.settings["start"])
    assert starts == ["gaussian", "gaussian", "center", "center", "center"]
    slow = rllc.sgld(lr=1e-6)
    draws = rllc.sample(tiny_model(), tiny_tokens(), "0:1", sampler=slow, **options)
    assert draws.settings["start"] == "center"


def test_other_starts_are_refused() -> None:
    with pytest.raises(
        rllc.InputError, match="`start` must be 'center', 'gaussian' or None, got 'prior'"
    ):
        rllc.Sampling(start="prior")
    with pytest.raises(rllc.InputError, match="start='gaussian' needs a localization above 0"):
        rllc.sample(
            tiny_model(),
            tiny_tokens(),
            sampler=rllc.sgld(localization=0.0),
            sampling=rllc.Sampling(
                num_draws=2, batch_size=4, control_variate=False, start="gaussian"
            ),
            compute=QUIET,
        )


def test_a_refinement_stops_when_its_error_is_small_and_others_go_on() -> None:
    model, data = tiny_model(), tiny_tokens()
    settings = {
        "num_chains": 2,
        "num_draws": 60,
        "batch_size": 4,
        "control_variate": False,
        "num_probes": 0,
    }
    heads = ["0:0", "0:1", "1:0", "1:1"]
    whole = rllc.sample(model, data, heads, sampling=rllc.Sampling(**settings), compute=QUIET)
    errors = rllc.Estimate.of(whole).standard_error
    target = float(np.median(errors) * 1.05)
    stopped = rllc.sample(
        model,
        data,
        heads,
        sampling=rllc.Sampling(**settings, target_se=target),
        compute=QUIET,
    )
    assert len(set(stopped.lengths)) > 1
    estimate = rllc.Estimate.of(stopped)
    for i, length in enumerate(stopped.lengths):
        assert length % 20 == 0
        assert np.allclose(stopped.loss[i, :, :length], whole.loss[i, :, :length], atol=1e-5)
        assert np.isnan(stopped.loss[i, :, length:]).all()
        assert estimate.value[i] == pytest.approx(whole.llc[i, :, :length].mean(), abs=1e-3)
        assert length == 60 or estimate.standard_error[i] <= target
        assert not estimate.status[i].startswith("diverged")


@pytest.mark.slow
def test_stopping_early_biases_little_and_says_so_when_the_target_is_missed() -> None:
    """200 repetitions on a quadratic: the mean is on the law, and intervals cover it, with a little
    lost to stopping."""
    law = SGLDLaw([4.0, 40.0], lr=1e-3, localization=200.0, n_beta=30.0)
    copies = {str(i): rllc.parameters("v", index=slice(2 * i, 2 * i + 2)) for i in range(200)}
    estimate = rllc.estimate(
        Quadratic(torch.tensor([4.0, 40.0] * 200)),
        torch.zeros(8, 400),
        copies,
        loss=loss_of_quadratic,
        sampling=rllc.Sampling(
            num_draws=400, num_burnin_steps=50, batch_size=8, control_variate=False, target_se=0.033
        ),
        compute=QUIET,
    )
    reached = estimate.standard_error <= 0.033
    assert 0.3 < reached.mean() < 1
    assert abs(estimate.value.mean() / law.value - 1) < 0.03
    assert 0.88 < (abs(estimate.value - law.value) < 1.96 * estimate.standard_error).mean() < 0.995
    assert [("above target_se" in status) for status in estimate.status] == list(~reached)


@pytest.mark.slow
@pytest.mark.usefixtures("few_looks")
def test_losses_per_token_of_a_data_set_that_stopped_are_those_it_has() -> None:
    data = {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}
    settings = {
        "num_chains": 2,
        "num_draws": 60,
        "batch_size": 4,
        "control_variate": False,
        "num_probes": 0,
    }
    few = rllc.Sampling(**settings | {"num_draws": 40})
    errors = rllc.estimate(tiny_model(), data, "0:0", sampling=few, compute=QUIET)
    target = float(errors.standard_error.mean())
    draws = rllc.sample(
        tiny_model(),
        data,
        "0:0",
        sampling=rllc.Sampling(**settings, target_se=target),
        observe={
            "tokens": rllc.observables.minibatch_losses(),
            "rows": rllc.observables.minibatch_rows(),
        },
        compute=QUIET,
    )
    assert draws.lengths[0] != draws.lengths[1]
    for row, length in enumerate(draws.lengths):
        assert np.isfinite(draws.observed["tokens"][row, :, :length]).all()
        assert np.isnan(draws.observed["tokens"][row, :, length:]).all()
        assert (draws.observed["rows"][row, :, :length] >= 0).all()
        assert (draws.observed["rows"][row, :, length:] == -1).all()


@pytest.mark.usefixtures("few_looks")
def test_draws_of_several_lengths_go_to_a_file_and_back(tmp_path) -> None:
    sampling = rllc.Sampling(
        num_chains=2,
        num_draws=50,
        batch_size=4,
        control_variate=False,
        num_probes=0,
        target_se=1e9,
    )
    draws = rllc.sample(
        tiny_model(), tiny_tokens(), ["0:0", "1:1"], sampling=sampling, compute=QUIET
    )
    assert draws.lengths == (40, 40)
    assert rllc.Draws.load(draws.save(tmp_path / "d.npz")).lengths == (40, 40)


def test_target_se_is_for_sample_not_for_iterate_and_must_be_positive() -> None:
    with pytest.raises(rllc.InputError, match="`target_se` stops"):
        rllc.iterate(tiny_model(), tiny_tokens(), sampling=rllc.Sampling(target_se=0.1))
    with pytest.raises(rllc.InputError, match="`target_se` must be a positive number"):
        rllc.Sampling(target_se=0.0)


@pytest.mark.parametrize("loss", [None, rllc.losses.distillation(tiny_model(1))])
def test_bfloat16_products_change_draws_by_rounding_only(loss) -> None:
    model, data = tiny_model(), tiny_tokens()
    exact = rllc.sample(model, data, rllc.heads(model), loss=loss, sampling=SHORT, compute=QUIET)
    low = replace(SHORT, autocast="bfloat16")
    rounded = rllc.sample(model, data, rllc.heads(model), loss=loss, sampling=low, compute=QUIET)
    assert not np.array_equal(exact.loss, rounded.loss)
    assert np.abs(exact.loss - rounded.loss).max() < 0.02  # bfloat16 has 8 bits
    steps = rllc.iterate(model, data, "0:0", loss=loss, sampling=low)
    assert next(steps).positions(0).dtype == torch.float32


def test_bfloat16_products_in_any_module() -> None:
    model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    low = replace(SHORT, autocast="bfloat16")
    exact = rllc.sample(model, x, loss=square, sampling=SHORT, compute=QUIET)
    rounded = rllc.sample(model, x, loss=square, sampling=low, compute=QUIET)
    difference = np.abs(exact.loss - rounded.loss).max()
    assert 0 < difference < 0.1


def test_the_control_variate_leaves_only_what_minibatches_do_not_explain() -> None:
    """The loss is ½ Σ h δ² + x·δ: with the control variate each draw is the quadratic plus one
    slope for all."""
    stream = torch.Generator().manual_seed(0)
    curvatures = torch.tensor([1.0, 5.0, 30.0])
    rows, model = torch.randn(64, 3, generator=stream), Quadratic(curvatures)
    sampling = rllc.Sampling(
        num_chains=3, num_draws=12, num_steps_bw_draws=2, batch_size=8, control_variate=True
    )
    steps = rllc.iterate(model, rows, loss=loss_of_quadratic, sampling=sampling)
    seen = []
    for step in steps:
        if step.draw is not None:
            paired = step.loss - step.baseline[:, None] - step.observed["control"]
            seen.append((step.positions(0) - model.start, paired))
    others = Minibatches(64, 8, seed=("look around", 0))
    slope = torch.stack([rows[others[t]].mean(0) for t in range(128)]).mean(0)
    for away, controlled in seen:
        assert torch.allclose(
            controlled[0].float(), 0.5 * away.square() @ curvatures + away @ slope, atol=1e-5
        )
    draws = rllc.sample(model, rows, loss=loss_of_quadratic, sampling=sampling, compute=QUIET)
    assert np.allclose(draws.llc[0].T, [30.0 * controlled[0].numpy() for _, controlled in seen])


@pytest.mark.slow
def test_the_control_variate_changes_no_expectation_and_shrinks_the_error() -> None:
    stream = torch.Generator().manual_seed(1)
    curvatures = torch.full((50,), 4.0)
    rows = 20 * torch.randn(50_000, 50, generator=stream)
    settings = {
        "num_chains": 4,
        "num_draws": 400,
        "num_burnin_steps": 40,
        "batch_size": 8,
        "n_beta": 2.0,
    }
    on, off = (
        rllc.estimate(
            Quadratic(curvatures),
            rows,
            loss=loss_of_quadratic,
            sampling=rllc.Sampling(**settings, control_variate=control),
            compute=QUIET,
        )["everything"]
        for control in (True, False)
    )
    law = SGLDLaw(
        curvatures.numpy(), lr=1e-3, localization=200.0, n_beta=2.0, gradient_variance=400 / 8
    )
    assert abs(on.value - law.value) < FALSE_ALARM * on.standard_error
    assert on.standard_error < 0.6 * off.standard_error


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(
    "loss",
    [
        None,
        rllc.losses.distillation(tiny_model(1)),
        rllc.next_token,
        lambda m, x: rllc.next_token(m, x),
    ],
)
def test_the_control_variate_takes_the_slope_of_the_loss_itself(loss) -> None:
    """Against plain autograd on the model, for heads, layers and the unembedding, native and
    any-module evaluation."""
    model, data = tiny_model(), tiny_tokens()
    weights = {
        "head": rllc.head("0:1"),
        "rest": ~rllc.head("0:1"),
        "unembedding": rllc.parameters("unembed.*"),
    }
    sampling = rllc.Sampling(2, 3, batch_size=4, control_variate=True, num_probes=0)
    plain = rllc.next_token if loss is None else loss

    def slope(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        plain(model, data.rows[rows].long()).mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    others = Minibatches(len(data), 4, seed=("look around", 0))
    around = [slope(others[t]) for t in range(scene._LOOKS_FOR_SLOPE)]
    slopes, aways, controls = [], [], []
    observe = {"rows": rllc.observables.minibatch_rows()}
    for step in rllc.iterate(model, data, weights, loss=loss, sampling=sampling, observe=observe):
        slopes.append(slope(step.observed["rows"][0, 0]))
        aways.append([step.positions(i) for i in range(3)])
        controls.append(step.observed["control"])
    for i, w in enumerate(weights.values()):
        masks = w.masks(model)
        flat = [torch.cat([g[n][masks[n]] for n in sorted(masks)]) for g in slopes]
        center = torch.cat(
            [p.detach()[masks[n]] for n, p in sorted(model.named_parameters()) if n in masks]
        )
        mean = torch.stack(
            [torch.cat([g[n][masks[n]] for n in sorted(masks)]) for g in around]
        ).mean(0)
        for g, away, control in zip(flat, aways, controls, strict=True):
            assert torch.allclose(control[i].float(), (away[i] - center) @ (g - mean), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("native", [True, False])
def test_compiled_losses_are_the_same_to_rounding(native: bool) -> None:
    model, data, loss = (
        (tiny_model(n_layers=1), tiny_tokens(), None)
        if native
        else (torch.nn.Linear(3, 1), torch.ones(8, 3), square)
    )
    plain, compiled = (
        rllc.sample(
            model,
            data,
            loss=loss,
            sampling=rllc.Sampling(2, 4, batch_size=4, control_variate=False),
            compute=rllc.Compute(compile=c, progress=False),
        )
        for c in (False, True)
    )
    np.testing.assert_allclose(compiled.loss, plain.loss, atol=2e-6)
    # How runs were evaluated is all that differs.
    settings = [dict(draws.settings, ambient=None) for draws in (compiled, plain)]
    assert settings[0] == settings[1]


SWITCHES = [
    {"start": "gaussian"},
    {"control_variate": True},
    {"num_burnin_steps": 1},
    {"num_probes": 3},
    {
        "start": "gaussian",
        "control_variate": True,
        "num_burnin_steps": 2,
        "num_steps_bw_draws": 2,
    },
]


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize("switches", SWITCHES)
def test_with_every_switch_the_engine_is_the_plain_loop(switches: dict[str, object]) -> None:
    """The same call with the loss as a function of any module is evaluated run by run, without
    anything shared."""
    model, tokens = tiny_model(), tiny_tokens()

    def plain(module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return rllc.next_token(module, rows)

    sampling = rllc.Sampling(
        2, 3, batch_size=4, **{"control_variate": False, "num_probes": 0} | switches
    )
    weights = ["0:1", "1:2", rllc.everything()]
    fast, slow = (
        rllc.sample(model, tokens, weights, loss=f, sampling=sampling, compute=QUIET)
        for f in (None, plain)
    )
    np.testing.assert_allclose(fast.llc, slow.llc, atol=2e-4 * sampling.n_beta, rtol=0)
    np.testing.assert_allclose(
        fast.observed["minibatch_variance"],
        slow.observed["minibatch_variance"],
        rtol=1e-2,
        atol=1e-9,
    )
    for name in ("max_curvature", "stability", "acceptance", "discretisation"):
        if name in fast.observed:
            np.testing.assert_allclose(
                fast.observed[name], slow.observed[name], rtol=0.02, atol=1e-3
            )


@pytest.mark.usefixtures("few_looks")
def test_bfloat16_products_change_losses_by_their_rounding() -> None:
    """Eight bits of mantissa: a logit of size z is off by about z/256, the paired difference by
    less."""
    model, tokens = tiny_model(), tiny_tokens()
    low, full = (
        rllc.sample(
            model,
            tokens,
            rllc.heads(model),
            compute=QUIET,
            sampling=replace(SHORT, num_draws=10, start="gaussian", autocast=a),
        )
        for a in ("bfloat16", None)
    )
    assert 0 < abs(low.loss - full.loss).max() < 0.02
    assert abs(low.llc.mean((1, 2)) - full.llc.mean((1, 2))).max() < 30 * 5e-3


def on_two_data_sets(common_noise: bool, seed: int = 0) -> rllc.Estimate:
    """The same curvatures on both, and a small slope of each row."""
    data = {name: 0.01 * torch.randn(16, 6, generator=generator(name)) for name in ("a", "b")}
    return rllc.estimate(
        Quadratic(torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0, 30.0])),
        data,
        loss=loss_of_quadratic,
        sampling=rllc.Sampling(num_draws=40, seed=seed, num_probes=0, common_noise=common_noise),
        compute=QUIET,
    )


def test_common_noise_cancels_in_the_difference_of_data_sets() -> None:
    """The slopes are all that differs."""
    common, own = on_two_data_sets(True), on_two_data_sets(False)
    of, minus = ("everything", "a"), ("everything", "b")
    assert common.difference(of, minus).standard_error < 0.3 * own.difference(of, minus)[1]
    apart = np.hypot(*common.standard_error)
    assert own.difference(of, minus).standard_error == pytest.approx(apart, rel=0.5)
    assert common.settings["common_noise"]


def test_common_noise_depends_on_seed_and_chain() -> None:
    first, other = on_two_data_sets(True), on_two_data_sets(True, seed=1)
    assert not np.isclose(first.per_chain, other.per_chain).any()
    assert not np.isclose(first.per_chain[0, 0], first.per_chain[0, 1:]).any()
