"""The same on a GPU: devices, precision, passes by free memory, executors, compile.

``pytest -m gpu`` runs them where there is CUDA. ``RLLC_TEST_DEVICE=cpu pytest -m gpu`` runs the
same lines on a CPU, to see that they are right before a GPU is at hand.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHORT, tiny_model, tiny_tokens

import rllc
from rllc.analysis import ablation, attention, curvature
from rllc.engine.devices import runs_that_fit
from rllc.testing import unchanged

DEVICE = os.environ.get("RLLC_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
TOKENS = tiny_tokens(32)
HERE = rllc.Compute(device=DEVICE, progress=False)
ON_CPU = rllc.Compute(device="cpu", progress=False)
# Losses of about 3 in float32, by other kernels.
ROUNDING = 1e-4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no CUDA here"),
]


def heads_on(device: str) -> rllc.Draws:
    model = tiny_model()
    return rllc.sample(
        model,
        TOKENS,
        rllc.heads(model),
        sampling=SHORT,
        compute=rllc.Compute(device=device, progress=False),
    )


def test_draws_are_those_of_the_cpu() -> None:
    """Noise and minibatches come from generators that no device changes."""
    here, on_cpu = heads_on(DEVICE), heads_on("cpu")
    np.testing.assert_allclose(here.loss, on_cpu.loss, atol=ROUNDING)
    np.testing.assert_allclose(here.baseline, on_cpu.baseline, atol=ROUNDING)


def test_a_run_is_the_same_twice() -> None:
    assert np.array_equal(heads_on(DEVICE).loss, heads_on(DEVICE).loss)


def test_a_head_alone_is_the_head_in_company() -> None:
    model = tiny_model()
    alone = rllc.sample(model, TOKENS, rllc.head("1:1"), sampling=SHORT, compute=HERE)
    together = heads_on(DEVICE)
    row = together.names.index("1:1")
    np.testing.assert_allclose(alone.loss[0], together.loss[row], atol=ROUNDING)


def test_the_model_stays_where_it_is() -> None:
    model = tiny_model()
    with unchanged(model):
        rllc.estimate(model, TOKENS, rllc.heads(model), sampling=SHORT, compute=HERE)
    assert next(model.parameters()).device.type == "cpu"


def test_a_model_that_is_there_needs_no_device() -> None:
    model = tiny_model().to(DEVICE)
    compute = rllc.Compute(progress=False)
    with unchanged(model):
        here = rllc.sample(model, TOKENS, rllc.heads(model), sampling=SHORT, compute=compute)
    np.testing.assert_allclose(here.loss, heads_on("cpu").loss, atol=ROUNDING)


@pytest.mark.parametrize("runs_per_pass", [1, 3, 100])
def test_passes_of_any_size_agree(runs_per_pass: int) -> None:
    model = tiny_model()
    compute = replace(HERE, runs_per_pass=runs_per_pass)
    draws = rllc.sample(model, TOKENS, rllc.heads(model), sampling=SHORT, compute=compute)
    np.testing.assert_allclose(draws.loss, heads_on("cpu").loss, atol=ROUNDING)


def test_passes_fit_into_the_free_memory() -> None:
    device = torch.device(DEVICE)
    mebibyte = 2**20
    runs = runs_that_fit(mebibyte, device)
    assert runs >= 1
    if not ON_GPU:
        return
    free = torch.cuda.mem_get_info(device)[0] / mebibyte
    assert free / 8 <= runs <= free / 4
    held = torch.empty(
        torch.cuda.mem_get_info(device)[0] * 3 // 4, dtype=torch.uint8, device=device
    )
    assert runs_that_fit(mebibyte, device) < runs
    del held
    torch.cuda.empty_cache()


def test_bfloat16_products_move_an_estimate_by_little() -> None:
    model = tiny_model()
    sampling = replace(SHORT, num_chains=4, num_draws=60, batch_size=32)
    plain = rllc.estimate(model, TOKENS, rllc.heads(model), sampling=sampling, compute=HERE)
    half = rllc.estimate(
        model,
        TOKENS,
        rllc.heads(model),
        sampling=replace(sampling, autocast="bfloat16"),
        compute=HERE,
    )
    error = np.hypot(plain.standard_error, half.standard_error)
    assert (abs(plain.value - half.value) < 5 * error + 0.02 * abs(plain.value)).all()


def test_tf32_outside_does_not_enter() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with_flag = heads_on(DEVICE)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert np.array_equal(with_flag.loss, heads_on(DEVICE).loss)


def test_a_compiled_forward_gives_the_same() -> None:
    if not ON_GPU:
        pytest.skip("compiling on a CPU needs a C++ compiler and a minute")
    model = tiny_model()
    compute = replace(HERE, compile=True)
    draws = rllc.sample(model, TOKENS, rllc.heads(model), sampling=SHORT, compute=compute)
    np.testing.assert_allclose(draws.loss, heads_on("cpu").loss, atol=ROUNDING)


def test_any_module_and_a_generating_model_come_along() -> None:
    model, generator = tiny_model(0), tiny_model(1)
    loss = rllc.losses.distillation(generator)
    here, on_cpu = (
        rllc.sample(model, TOKENS, rllc.head("0:0"), loss=loss, sampling=SHORT, compute=compute)
        for compute in (HERE, ON_CPU)
    )
    np.testing.assert_allclose(here.loss, on_cpu.loss, atol=ROUNDING)


def test_chains_go_on_where_they_stopped() -> None:
    model = tiny_model()
    compute = replace(HERE, keep_states=True)
    weights = rllc.heads(model)
    first = rllc.sample(model, TOKENS, weights, sampling=SHORT, compute=compute)
    longer = replace(SHORT, num_draws=9)
    whole = rllc.sample(model, TOKENS, weights, sampling=longer, compute=HERE)
    resumed = rllc.sample(model, TOKENS, weights, sampling=longer, resume=first, compute=HERE)
    assert np.array_equal(whole.loss, resumed.loss)


def test_a_sweep_on_devices_is_the_sweep_here(tmp_path: Path) -> None:
    checkpoints = [(step, tiny_model(step)) for step in (0, 10)]
    model = checkpoints[0][1]
    serial = rllc.track(checkpoints, TOKENS, rllc.heads(model), sampling=SHORT, compute=HERE)
    executor = [DEVICE] * 2 if ON_GPU else 2
    spread = rllc.track(
        checkpoints,
        TOKENS,
        rllc.heads(model),
        sampling=SHORT,
        store=tmp_path / "sweep",
        compute=rllc.Compute(executor=executor, progress=False),
    )
    np.testing.assert_allclose(spread.value, serial.value, atol=30 * ROUNDING)


def test_training_is_the_same_twice(tmp_path: Path) -> None:
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=12, n_heads=3, d_head=4, n_ctx=8, d_vocab=11
    )
    training = rllc.Training(num_steps=6, batch_size=4)
    for name in ("one", "two"):
        rllc.train(
            config, TOKENS, tmp_path / name, training=training, device=DEVICE, progress=False
        )
    one, two = (rllc.load(rllc.checkpoints(tmp_path / name)[-1]) for name in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_analyses_give_what_they_give_on_a_cpu() -> None:
    on_cpu, here = tiny_model(), tiny_model().to(DEVICE)
    np.testing.assert_allclose(
        attention.scores(here, TOKENS).previous_token,
        attention.scores(on_cpu, TOKENS).previous_token,
        atol=ROUNDING,
    )
    np.testing.assert_allclose(
        ablation.ablate(here, TOKENS).delta, ablation.ablate(on_cpu, TOKENS).delta, atol=ROUNDING
    )
    traces = [curvature.hessian_trace(m, TOKENS, rllc.head("0:0")).value for m in (here, on_cpu)]
    np.testing.assert_allclose(traces[0], traces[1], rtol=0.01)


def test_a_device_that_is_not_there_is_refused() -> None:
    compute = rllc.Compute(device="cuda:63", progress=False)
    with pytest.raises(rllc.InputError, match="cuda:63"):
        rllc.estimate(tiny_model(), TOKENS, sampling=SHORT, compute=compute)
