"""What examples in docstrings take for granted: a small model, rows of tokens, results.

Each is made when an example names it. Examples run in a folder of their own.
"""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rllc
from rllc.analysis import clustering, stages
from rllc.analysis.brackets import brackets
from rllc.analysis.curvature import hessian_trace
from rllc.analysis.tokens_in_context import tokens_in_context

_SIZES: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 8,
    "d_head": 4,
    "n_ctx": 64,
    "d_vocab": 300,
}
_QUIET = rllc.Compute(progress=False)
_SHORT = rllc.Sampling(num_chains=2, num_draws=8, batch_size=4, num_probes=0, control_variate=False)
_LINES = ["def f(x):\n    return [x, (x + 1)]\n", "the cat in the house sees the cat\n"] * 20


@pytest.fixture(autouse=True)
def _names_of_examples(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[None]:
    doctest = getattr(request.node, "dtest", None)
    doctest_namespace.clear()
    if doctest is None:
        yield
        return
    monkeypatch.chdir(tmp_path)
    source = "\n".join(example.source for example in doctest.examples)
    if "python_corpus" in source:
        # A part of the standard library, for reading all of it takes seconds.
        real = sysconfig.get_paths
        part = {"stdlib": str(Path(real()["stdlib"]) / "email")}
        monkeypatch.setattr(sysconfig, "get_paths", lambda *args: real(*args) | part)
    for name, make in _MAKERS.items():
        if re.search(rf"\b{name}\b", source) and name not in doctest.globs:
            doctest_namespace[name] = make()
    doctest_namespace |= {"np": np, "rllc": rllc}
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _model() -> Any:
    torch.manual_seed(0)
    model = rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig(**_SIZES))
    return model.eval()


def _rows_of(seed: int, name: str) -> rllc.Tokens:
    stream = torch.Generator().manual_seed(seed)
    # Few ids, so that tokens recur.
    return rllc.Tokens(torch.randint(20, (24, 16), generator=stream), name)


def _tokens() -> rllc.Tokens:
    return _rows_of(0, "code")


@functools.cache
def _draws() -> rllc.Draws:
    observe = {name: rllc.losses_on(_tokens()) for name in ("rows", "probes")}
    observe["distance"] = rllc.distance()
    model = _model()
    return rllc.sample(
        model, _tokens(), rllc.heads(model), sampling=_SHORT, observe=observe, compute=_QUIET
    )


@functools.cache
def _estimate() -> rllc.Estimate:
    model = _model()
    data = {name: _rows_of(seed, name) for seed, name in enumerate(("pile", "code"))}
    return rllc.estimate(model, data, rllc.heads(model), sampling=_SHORT, compute=_QUIET)


@functools.cache
def _trajectory() -> rllc.Trajectory:
    return rllc.Trajectory.of({0: _estimate(), 100: _estimate(), 1000: _estimate()})


@functools.cache
def _curve() -> rllc.calibration.Resolution:
    model = _model()
    return rllc.resolution(
        model,
        _tokens(),
        ["0:6", "1:3", "1:6"],
        n_betas=[10.0, 100.0],
        sampling=_SHORT,
        compute=_QUIET,
    )


@functools.cache
def _calibration() -> rllc.Calibration:
    return rllc.calibrate(
        _model(),
        _tokens(),
        "1:6",
        sampling=_SHORT,
        compute=_QUIET,
        lr=[1e-4, 1e-3],
        n_beta=[30.0],
        localization=[200.0],
    )


@functools.cache
def _kernel() -> rllc.covariances.LossKernel:
    return rllc.loss_kernel(_model(), _tokens(), _tokens(), sampling=_SHORT, compute=_QUIET)


def _clusters() -> clustering.Clusters:
    time = np.linspace(0, 1, 20)
    curves = {f"1:{head}": list(np.cos(3 * time + head % 2)) for head in range(8)}
    return clustering.cluster(curves, method="k_means", num_clusters=2)


def _stages() -> stages.Stages:
    steps = range(1, 12)
    return stages.stages(np.minimum(steps, 6.0), steps=steps, standard_error=[0.1] * 11)


def _mask() -> torch.Tensor:
    mask = torch.zeros(24, 16, dtype=torch.bool)
    mask[:, 8:] = True
    return mask


_MAKERS: dict[str, Callable[[], Any]] = {
    "model": _model,
    "tokens": _tokens,
    "data": _tokens,
    "rows": _tokens,
    "probes": _tokens,
    "tokenizer": functools.cache(lambda: rllc.data.train_tokenizer(_LINES, vocab_size=280)),
    "draws": _draws,
    "estimate": _estimate,
    "trajectory": _trajectory,
    "curve": _curve,
    "calibration": _calibration,
    "kernel": _kernel,
    "clusters": _clusters,
    "result": _stages,
    "brackets": lambda: brackets,
    "tokens_in_context": lambda: tokens_in_context,
    "hessian_trace": lambda: hessian_trace,
    "bigrams": lambda: ~_mask(),
    "others": _mask,
    "masks": lambda: {"simple": ~_mask(), "complex": _mask()},
    "circuit": lambda: ["0:6", "0:2->1:3.K", "1:3"],
}
