"""Bad calls of every public function: only RllcErrors come out, before any chain runs.

A table says how each function is called rightly, and which values fit each argument besides. Every
other value is put into its place, one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pytest
import torch
from tiny import QUIET, SHORT, tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.engine.chains import Chains

mpl.use("Agg")

MODEL = tiny_model()
ROWS = tiny_tokens()
DRAWS = rllc.sample(MODEL, ROWS, "0:0", sampling=SHORT, compute=QUIET)
ESTIMATE = rllc.Estimate.of(DRAWS)
OBSERVED = rllc.sample(
    MODEL,
    ROWS,
    "0:0",
    sampling=SHORT,
    compute=QUIET,
    observe={"rows": rllc.losses_on(ROWS), "distance": rllc.distance()},
)
TRAJECTORY = rllc.Trajectory.of({1: ESTIMATE})

FEW: dict[str, Any] = {
    "3": 3,
    "-1": -1,
    "nan": float("nan"),
    "text": "no such thing",
    "True": True,
    "list": [],
    "dict": {},
    "object": object(),
    "function": lambda *args, **options: 3,
    "class": int,
    "float tensor": torch.randn(12, 3),
    "empty tensor": torch.zeros(0, 3).long(),
    "negative ids": torch.full((12, 3), -1),
    "objects": np.array([object()] * 12),
    "module": nn.Linear(3, 1),
    "empty module": nn.Module(),
    "draws": DRAWS,
    "NUL": "/no/such/\0folder",
}
"""Values of as many kinds as there are ways to be wrong."""

MORE: dict[str, Any] = {
    "0": 0,
    "1.5": 1.5,
    "inf": float("inf"),
    "empty text": "",
    "None": None,
    "ints": [1, 2],
    "dict of ints": {"a": 1},
    "nan tensor": torch.full((12, 3), float("nan")),
    "one dimension": torch.arange(5),
    "three dimensions": torch.zeros(12, 2, 2).long(),
    "booleans": torch.ones(12, 3).bool(),
    "complex": torch.zeros(12, 3, dtype=torch.complex64),
    "large ids": torch.full((12, 3), 10**6),
    "on meta": nn.Linear(3, 1, device="meta"),
    "estimate": ESTIMATE,
    "tokens": ROWS,
    "weights": rllc.everything(),
    "sampler": rllc.sgld(),
    "sampling": rllc.Sampling(),
    "bytes": b"a",
    "tuple": (),
    "set": {1, 2},
    "generator": (number for number in ()),
    "exception": ValueError("x"),
}
ALL = FEW | MORE


class Call(NamedTuple):
    """A function, its arguments, and which other values fit them."""

    function: Callable[..., Any]
    good: dict[str, Any]
    fits: dict[str, str] = {}  # noqa: RUF012 (never changed)


ANY_MODULE = "module, empty module, on meta"
FOR_SAMPLING = {
    "model": MODEL,
    "data": ROWS,
    "weights": "0:0",
    "loss": None,
    "sampler": rllc.sgld(),
    "sampling": SHORT,
    "compute": QUIET,
}
FITS_SAMPLING = {
    "data": "tokens, float tensor, one dimension, three dimensions",
    "weights": "None, weights, function",
    "loss": "None, function",
    "sampler": "None, sampler",
    "sampling": "None, sampling",
    "compute": "None",
    "limits": "None",
    "observe": "None, dict",
    "resume": "None",
    "store": "None, text",
    "into": f"None, function, class, {ANY_MODULE}",
    "checkpoints": "",
    "probes": "tokens, float tensor, one dimension, three dimensions",
    "rows": "tokens, float tensor, one dimension, three dimensions",
    "queries": "tokens, float tensor, one dimension, three dimensions",
    "path": "None, text",
}
"""Rows that are no token ids fit data, but not this model's loss; the error then says so."""


def for_sampling(function: Callable[..., Any], *without: str, **further: Any) -> Call:
    good = {name: value for name, value in FOR_SAMPLING.items() if name not in without}
    return Call(function, good | further, FITS_SAMPLING)


def one_step(**arguments: Any) -> Any:
    return next(rllc.iterate(**arguments))


def tracked(**arguments: Any) -> Any:
    return rllc.Tracker(**arguments)(1, MODEL)


def tracker_called(step: Any, model: Any) -> Any:
    return rllc.Tracker(ROWS, "0:0", sampling=SHORT, compute=QUIET)(step, model)


def loaded(**arguments: Any) -> Any:
    return rllc.load(rllc.models.Checkpoint(**arguments))


def settings_of(kind: type, **fits: str) -> Call:
    return Call(kind, {field.name: field.default for field in fields(kind)}, fits)


COUNT = "3"
POSITIVE = "3, 1.5"
FROM_ZERO = "0, 3, 1.5"
CALLS: dict[str, Call] = {
    "estimate": for_sampling(rllc.estimate, limits=None),
    "sample": for_sampling(rllc.sample, observe=None, resume=None),
    "iterate": for_sampling(one_step, observe=None),
    "control": for_sampling(rllc.control, limits=None),
    "susceptibilities": for_sampling(rllc.susceptibilities, probes=ROWS),
    "loss_kernel": for_sampling(rllc.loss_kernel, rows=ROWS),
    "influence": for_sampling(rllc.influence, "compute", rows=ROWS, queries=ROWS),
    "elasticities": Call(
        rllc.covariances.elasticities, {"draws": OBSERVED, "rows": "rows", "distance": "distance"}
    ),
    "token_llc": Call(rllc.covariances.token_llc, {"draws": OBSERVED, "rows": "rows"}),
    "singular_fluctuation": Call(
        rllc.covariances.singular_fluctuation, {"draws": OBSERVED, "rows": "rows", "by": "row"}
    ),
    "waic": Call(rllc.covariances.waic, {"draws": OBSERVED, "rows": "rows", "by": "row"}),
    "named": Call(
        rllc.losses.named,
        {"loss": rllc.next_token, "name": "mine"},
        {"loss": "function, class, module, empty module, on meta", "name": "text, NUL"},
    ),
    "calibrate": Call(
        rllc.calibrate,
        FOR_SAMPLING | {"sampler": rllc.sgld, "lr": [1e-3], "limits": None},
        FITS_SAMPLING | {"sampler": "function", "lr": "3, 1.5, ints"},
    ),
    "resolution": Call(
        rllc.resolution,
        FOR_SAMPLING | {"n_betas": [1.0]},
        FITS_SAMPLING | {"sampler": "None, sampler, function", "n_betas": "ints"},
    ),
    "track": for_sampling(
        rllc.track, "model", checkpoints={1: MODEL}, store=None, limits=None, into=None
    ),
    "cost": for_sampling(rllc.cost),
    "sweep_cost": for_sampling(
        rllc.sweep.sweep_cost, "model", checkpoints={1: MODEL}, store=None, into=None
    ),
    "Tracker": Call(
        tracked,
        {name: value for name, value in FOR_SAMPLING.items() if name != "model"}
        | {"at_steps": None, "path": None},
        FITS_SAMPLING
        | {
            "at_steps": "None, list, ints, dict, empty tensor, tuple, set, bytes, empty text",
        },
    ),
    "Tracker called": Call(tracker_called, {"step": 1, "model": MODEL}, {"step": "3, -1, 0"}),
    "load": Call(
        rllc.load,
        {"source": {1: MODEL}, "step": 1, "positions": None, "into": None, "device": None}
        | {"tokens": None, "allow": False},
        dict.fromkeys(("step", "positions", "into", "device", "tokens"), "None")
        | {"allow": "True"},
    ),
    "checkpoints": Call(
        rllc.checkpoints,
        {"source": {1: MODEL}, "into": None, "positions": None},
        {
            "source": "list, dict, tuple, generator",
            "into": f"None, function, class, {ANY_MODULE}",
            "positions": "None",
        },
    ),
    "Checkpoint": Call(loaded, {"step": 1, "source": "/no/such", "revision": None, "file": None}),
    "distillation": Call(rllc.losses.distillation, {"generator": MODEL}, {"generator": ANY_MODULE}),
    "losses_on": Call(
        rllc.losses_on,
        {"rows": ROWS, "keep": "all"},
        {
            "rows": "tokens, float tensor, nan tensor, one dimension, three dimensions, large ids, "
            "complex, booleans",
        },
    ),
    "Observable": Call(
        rllc.Observable,
        {"measure": len, "axes": (), "at": "draw", "keep": "all", "origin": None}
        | {"prepare": None},
        {
            "measure": f"function, class, {ANY_MODULE}",
            "axes": "list, tuple",
            "origin": f"None, function, class, {ANY_MODULE}",
            "prepare": f"None, function, class, {ANY_MODULE}",
        },
    ),
    "head": Call(
        rllc.head,
        {"layer": 0, "head": 0, "kv": "shared", "anatomy": None},
        {"layer": "0, 3", "head": "0, 3", "anatomy": "None"},
    ),
    "heads": Call(
        rllc.heads,
        {"model": MODEL, "kv": "shared", "by": "head", "anatomy": None},
        {"anatomy": "None"},
    ),
    "anatomy": Call(
        rllc.anatomy,
        {"model": MODEL, "row": None, "example": None},
        {
            "row": "None",
            "example": "None, dict, dict of ints, tuple, float tensor, empty tensor, negative ids, "
            "nan tensor, one dimension, three dimensions, booleans, complex, large ids",
        },
    ),
    "AttentionRow": Call(
        rllc.AttentionRow,
        {"at": "a.*", "q": "q", "k": "k", "v": "v", "o": "o", "fused": "", "heads": 2}
        | {"kv_heads": 1, "tower": "", "config": "", "mixed": (), "note": "", "when": ()}
        | {"norm": "", "unembedding": ""},
        dict.fromkeys(("at", "q", "k", "v", "o"), "text, NUL")
        | dict.fromkeys(("heads", "kv_heads"), "3, text, NUL, empty text")
        | dict.fromkeys(("tower", "config", "note", "norm"), "text, NUL, empty text")
        | {"unembedding": "text, NUL, empty text", "mixed": "tuple", "when": "tuple"}
        | {"fused": "empty text"},
    ),
    "layer": Call(lambda number: rllc.layer(number).masks(MODEL), {"number": 0}, {"number": "0"}),
    "parameters": Call(
        lambda **options: rllc.parameters(**options).masks(MODEL),
        {"pattern": "*.W_Q", "index": None},
        {"index": "-1, 0, None, ints, tuple"},
    ),
    "masks": Call(
        lambda **options: rllc.masks(**options).masks(MODEL),
        {"selected": {"ln_final.b": torch.ones(12).bool()}, "name": "x"},
        {"name": "text, NUL"},
    ),
    "subspace": Call(
        lambda **options: rllc.subspace(**options).masks(MODEL),
        {"basis": {"ln_final.b": torch.ones(12, 1)}, "name": "x"},
        {"name": "text, NUL"},
    ),
    "everything": Call(rllc.everything().masks, {"model": MODEL}, {"model": "module, on meta"}),
    "trainable": Call(rllc.trainable().describe, {"model": MODEL}, {"model": "module, on meta"}),
    "sgld": Call(
        rllc.sgld,
        {"lr": 1e-3, "localization": 1.0},
        {"lr": f"{POSITIVE}, True", "localization": f"{FROM_ZERO}, None, True"},
    ),
    "sgld on a prior": Call(rllc.sgld, {"prior": None}, {"prior": "None"}),
    "rmsprop_sgld": Call(
        rllc.samplers.rmsprop_sgld,
        {"lr": 1e-3, "alpha": 0.9, "eps": 0.1, "num_adaptation_steps": 3},
        {"lr": f"{POSITIVE}, True", "eps": POSITIVE, "num_adaptation_steps": "None, 3"},
    ),
    "gaussian": Call(
        rllc.samplers.gaussian, {"localization": 1.0}, {"localization": f"{FROM_ZERO}, True"}
    ),
    "box": Call(
        rllc.samplers.box,
        {"half_width": 1.0, "localization": 0.0},
        {"half_width": f"{POSITIVE}, inf", "localization": f"{FROM_ZERO}, True"},
    ),
    "Sampling": settings_of(
        rllc.Sampling,
        num_chains=COUNT,
        num_draws=COUNT,
        num_burnin_steps="0, 3",
        num_steps_bw_draws=COUNT,
        batch_size=f"{COUNT}, None",
        n_beta=POSITIVE,
        seed="0, 3, -1",
        first_chain="0, 3",
        num_probes="0, 3",
        start="None",
        control_variate="True, None",
        common_noise="True",
        target_se=f"{POSITIVE}, inf, None",
        autocast="None",
        train_mode="True",
    ),
    "Compute": Call(
        rllc.Compute,
        {"device": None, "runs_per_pass": None, "compile": False, "keep_states": False}
        | {"progress": False},
        {
            "device": "None, text, empty text, NUL",
            "runs_per_pass": "None, 3",
            "compile": "True",
            "keep_states": "True",
            "progress": "True",
        },
    ),
    "Limits": Call(rllc.Limits, {"max_spikes": 1.0}, {"max_spikes": "0, 3, -1, 1.5, inf, True"}),
    "Store": Call(
        rllc.sweep.Store,
        {"folder": "store", "keep_states": True, "observe": {}, "delete_downloads": False},
        {
            "folder": "text",
            "keep_states": "True",
            "observe": "dict, dict of ints",
            "delete_downloads": "True",
        },
    ),
    "Sweep": Call(rllc.Sweep.open, {"folder": "sweep"}),
    "report": Call(rllc.report, {"folder": "sweep", "path": None, "limits": None, "num_traces": 3}),
    "Estimate": Call(
        rllc.Estimate.of, {"draws": DRAWS, "limits": None}, {"draws": "draws", "limits": "None"}
    ),
    "Estimate.load": Call(rllc.Estimate.load, {"path": "x"}),
    "Draws": Call(rllc.Draws.load, {"path": "x"}),
    "Trajectory": Call(rllc.Trajectory.of, {"estimates": {1: ESTIMATE}}),
    "Trajectory.load": Call(rllc.Trajectory.load, {"path": "x"}),
    "Trajectory.at": Call(TRAJECTORY.at, {"step": 1}, {"step": "True"}),
    "plot_heads": Call(rllc.plot_heads, {"estimate": ESTIMATE}, {"estimate": "estimate"}),
    "plot_traces": Call(
        rllc.plot_traces,
        {"draws": DRAWS, "weights": "0:0", "data": None},
        {"draws": "draws, estimate", "weights": "None", "data": "None"},
    ),
    "plot_trajectory": Call(
        rllc.plot_trajectory, {"trajectory": TRAJECTORY, "data": None}, {"data": "None"}
    ),
    "plot_resolution": Call(rllc.plot_resolution, {"resolution": None}),
    "train": Call(
        rllc.train,
        {"config": MODEL.config, "tokens": ROWS, "out": None, "seed": 0, "resume": True}
        | {"training": rllc.Training(num_steps=1, batch_size=2), "device": None}
        | {"progress": False},
        {
            "tokens": "tokens",
            "out": "None, text",
            "seed": "0, 3, -1",
            "resume": "True",
            "training": "None",
            "device": "None",
            "progress": "True",
        },
    ),
    "Training": Call(
        rllc.Training,
        {"num_steps": 10, "batch_size": 2, "optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99)}
        | {"weight_decay": 0.0, "gradient_clip": 1.0, "warmup_steps": 0, "decay": "constant"}
        | {"decay_steps": None, "dtype": "float32", "autocast": None, "checkpoints": "paper"}
        | {"resume_every": None},
        {
            "num_steps": "3, True",
            "batch_size": "3, True",
            "lr": POSITIVE,
            "weight_decay": FROM_ZERO,
            "gradient_clip": f"{POSITIVE}, inf",
            "warmup_steps": "0, 3, None, True",
            "decay_steps": "None",
            "autocast": "None",
            "checkpoints": "list, ints, dict, empty tensor, tuple, set, generator, bytes, "
            "empty text",
            "resume_every": "None, 3, True",
        },
    ),
}
MADE_BY_RLLC = {
    "Anatomy",
    "Calibration",
    "Elasticities",
    "Fault",
    "LossKernel",
    "Moment",
    "Refinement",
    "Resolution",
    "Sampler",
    "Susceptibilities",
    "Weights",
}
"""Values that a user is given, or makes of what other calls have checked."""

ELSEWHERE = {"each_checkpoint", "Tokens", "as_data", "next_token", "distance"}
"""Tested with data and losses; ``distance`` has no argument."""


class ChainRan(BaseException):
    """A chain took a step."""


@pytest.fixture
def no_chain(monkeypatch, tmp_path):
    """No chain may run, and what is written goes nowhere."""

    def advance(*args: Any, **options: Any) -> None:
        raise ChainRan

    monkeypatch.setattr(Chains, "advance", advance)
    monkeypatch.chdir(tmp_path)
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def wrong_values(call: Call, argument: str, values: dict[str, Any]) -> list[str]:
    fitting = call.fits.get(argument, "").split(", ")
    return [name for name in values if name not in fitting]


def outcome(call: Call, argument: str, value: Any) -> str:
    """What came of a call: the error's text, or what should not have been."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**{**call.good, argument: value})
    except rllc.RllcError as error:
        return f"refused: {error}"
    except ChainRan:
        return "a chain ran"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return "accepted"


def bad_outcomes(call: Call, values: dict[str, Any]) -> list[str]:
    found = []
    for argument in call.good:
        for name in wrong_values(call, argument, values):
            what = outcome(call, argument, values[name])
            if not what.startswith("refused"):
                found.append(f"{argument}={name}: {what}")
    return found


@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused(no_chain, name) -> None:
    assert bad_outcomes(CALLS[name], FEW) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_more_wrong_values_are_refused(no_chain, name) -> None:
    assert bad_outcomes(CALLS[name], MORE) == []


def test_the_table_would_see_a_raw_error(no_chain) -> None:
    call = Call(lambda x: x.no_such_attribute, {"x": 1})
    assert bad_outcomes(call, {"3": 3})[0].startswith("x=3: raw AttributeError")
    assert bad_outcomes(Call(lambda x: x, {"x": 1}), {"3": 3}) == ["x=3: accepted"]
    only = Call(lambda seed: rllc.estimate(MODEL, ROWS, "0:0", sampling=SHORT), {"seed": 0})
    assert bad_outcomes(only, {"3": 3}) == ["seed=3: a chain ran"]


BEHIND_DOORS = {
    *("Anatomy", "Checkpoint", "Elasticities", "Fault", "LossKernel", "Refinement", "Resolution"),
    *("Sampler", "Store", "Susceptibilities", "as_data", "box", "distillation", "each_checkpoint"),
    *("elasticities", "gaussian", "named", "rmsprop_sgld", "singular_fluctuation", "sweep_cost"),
    *("token_llc", "waic"),
}
"""Names of rooms that are public, too."""


def test_every_public_name_is_in_the_table() -> None:
    errors = {"RllcError", "InputError", "FileError"}
    modules = {name for name in rllc.__all__ if isinstance(getattr(rllc, name), type(rllc))}
    covered = {name.split(".")[0].split(" ")[0] for name in CALLS}
    public = set(rllc.__all__) | BEHIND_DOORS
    assert public - errors - modules - MADE_BY_RLLC - ELSEWHERE == covered


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rllc.estimate(ROWS, MODEL), r"`model` must be a torch.nn.Module.*got Tokens"),
        (lambda: rllc.estimate(MODEL, "0:0", ROWS), r"`data` 'data' must be rllc.Tokens"),
        (lambda: rllc.plot_heads(DRAWS), r"must be what rllc.estimate gave; got Draws"),
        (lambda: rllc.plot_trajectory(ESTIMATE), r"must be what rllc.track gave; got Estimate"),
        (lambda: rllc.Trajectory.of([ESTIMATE]), r"a dict \{step: estimate\}; got list"),
        (
            lambda: rllc.estimate(MODEL, ROWS, loss=nn.CrossEntropyLoss()),
            r"(?s)CrossEntropyLoss compares.*def loss\(module, batch\):.*reduction=\"none\"",
        ),
        (
            lambda: rllc.estimate(MODEL, ROWS, compute=rllc.Compute(device="cuda:7")),
            r"there is no device 'cuda:7' here",
        ),
        (lambda: rllc.head("6"), r"expected a head such as '1:6'"),
        (lambda: rllc.layer("0"), r"layer: `number` must be a block's number.*got '0'"),
        (lambda: rllc.Tracker(ROWS)(MODEL, 3), r"`step` must be a training step, the first arg"),
        (lambda: rllc.load({1: MODEL}, device=3), r"`device` must be such as 'cpu'.*got 3"),
        (lambda: rllc.Estimate.load(Path("no.npz")), r"reading no.npz: there is no such file"),
    ],
)
def test_messages_name_the_argument_and_what_came(no_chain, call, message) -> None:
    with pytest.raises(rllc.RllcError, match=message):
        call()
