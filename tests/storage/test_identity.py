"""Never the wrong old number: two calls that differ in what can change a number share none, and two
that differ in nothing compute nothing twice."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import quickly
from tiny import QUIET, tiny_model, tiny_tokens

import rllc
import rllc.storage.identity
from rllc.samplers.sgld import SGLDState
from rllc.sweep.planning import make_plan
from rllc.sweep.request import Request

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SETTINGS = hypothesis.settings(
    deadline=None,
    max_examples=2,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=(hypothesis.Phase.generate,),  # a pair that fails is small already
)


def scaled(module, rows, factor: float = 1.0):
    return factor * rllc.next_token(module, rows)


def in_a_closure(factor: float):
    return lambda module, rows: factor * rllc.next_token(module, rows)


def start(position: torch.Tensor) -> SGLDState:
    return SGLDState(position.clone(), position)


@dataclass(frozen=True)
class Step:
    """Half a step of sgld, say."""

    share: float

    def __call__(self, state, energy, random):
        _, gradient = energy(state.position)
        moved = state.position - self.share * 1e-3 * gradient + 1e-3 * random.normal()
        return state._replace(position=moved)


LOSSES = {
    "next token": lambda _: None,
    "closure": in_a_closure,
    "partial": lambda factor: functools.partial(scaled, factor=factor),
    "distillation": lambda seed: rllc.losses.distillation(tiny_model(int(seed))),
    "named": lambda factor: rllc.losses.named(in_a_closure(factor), f"times {factor}"),
}
SAMPLERS = {
    "sgld": lambda lr: rllc.sgld(lr=lr, localization=200.0),
    # One of the user's own that calls itself sgld, with sgld's settings.
    "own": lambda share: rllc.samplers.Sampler("sgld", 1e-3, 200.0, start, Step(share)),
}
CHOICES: dict[str, list[Any]] = {
    "model": [0, 1],
    "eps": [1e-5, 1e-3],
    "positions": ["standard", "shortformer"],
    "loss": [
        ("next token", 0.0),
        *[(kind, number) for kind in list(LOSSES)[1:] for number in (1.0, 2.0)],
    ],
    "sampler": [("sgld", 1e-3), ("sgld", 2e-3), ("own", 0.5), ("own", 0.25)],
    "data": [0, 1],
    "head": [0, 1],
    "n_beta": [10.0, 30.0],
    "seed": [0, 1],
    "batch_size": [2, 4],
    "num_burnin_steps": [0, 1],
    "num_steps_bw_draws": [1, 2],
    "start": ["center", None],
    "control_variate": [False, True],
    "train_mode": [False, True],
    "numerics": [rllc.storage.identity.NUMERICS, rllc.storage.identity.NUMERICS + 1],
}
OF_SAMPLING = list(CHOICES)[7:-1]


@dataclass(frozen=True)
class Call:
    """What a measurement depends on; each part of a call is made anew from it."""

    model: int
    eps: float
    positions: str
    loss: tuple[str, float]
    sampler: tuple[str, float]
    data: int
    head: int
    n_beta: float
    seed: int
    batch_size: int
    num_burnin_steps: int
    num_steps_bw_draws: int
    start: str | None
    control_variate: bool
    train_mode: bool
    numerics: int

    def make_model(self) -> torch.nn.Module:
        sizes = {"n_layers": 1, "n_heads": 2}
        return tiny_model(self.model, **sizes, layer_norm_eps=self.eps, positions=self.positions)

    def arguments(self, num_draws: int = 2) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in OF_SAMPLING}
        sampling = rllc.Sampling(num_chains=2, num_draws=num_draws, num_probes=0, **settings)
        kind, number = self.loss
        return {
            "data": {"rows": tiny_tokens(seed=self.data)},
            "weights": {"part": rllc.head(0, self.head)},
            "loss": LOSSES[kind](number),
            "sampler": SAMPLERS[self.sampler[0]](self.sampler[1]),
            "sampling": sampling,
        }


@st.composite
def calls(draw) -> Call:
    return Call(**{name: draw(st.sampled_from(values)) for name, values in CHOICES.items()})


@st.composite
def pairs(draw, name: str) -> tuple[Call, Call]:
    """Two calls that differ in one thing; losses and samplers in what their names do not say."""
    one = draw(calls())
    present = getattr(one, name)
    others = [value for value in CHOICES[name] if value != present]
    if name in ("loss", "sampler"):
        hypothesis.assume(present[0] != "next token")
        others = [value for value in others if value[0] == present[0]]
    # A sampler without a law starts at the centre in any case.
    hypothesis.assume(not (name == "start" and one.sampler[0] == "own"))
    return one, replace(one, **{name: draw(st.sampled_from(others))})


EACH = pytest.mark.parametrize("name", list(CHOICES))
FEW = pytest.mark.parametrize("name", quickly(("model", "loss", "sampler", "data"), CHOICES))


class With:
    """The library at a version of its numbers, with few minibatches that tell the slope at w*."""

    def __init__(self, call: Call) -> None:
        self.patch = pytest.MonkeyPatch()
        self.numerics = call.numerics

    def __enter__(self) -> None:
        self.patch.setattr("rllc.storage.identity.NUMERICS", self.numerics)
        self.patch.setattr("rllc.engine.scene._LOOKS_FOR_SLOPE", 4)
        self.patch.setattr("rllc.engine.scene._LOOKS_FOR_WIDTH", 4)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


# A sweep: the names of its cells, which are those of its files.


def cells_of(call: Call, folder: Path) -> set[str]:
    run = folder / "run" / "step0000010"
    call.make_model().save_pretrained(run)
    checkpoints = rllc.checkpoints(folder / "run")
    store = rllc.sweep.Store(folder / "s")
    request = Request.of(checkpoints, **call.arguments(), store=store, compute=QUIET)
    request = request.identified()
    with With(call):
        request = replace(request, identity={**request.identity, "numerics": call.numerics})
        return {cell.name for cell in make_plan(request).plan.cells}


@EACH
@SETTINGS
@hypothesis.given(data=st.data())
def test_sweeps_that_differ_share_no_cell(name: str, data) -> None:
    pair = data.draw(pairs(name))
    cells = []
    for call in (pair[0], pair[0], pair[1]):
        with tempfile.TemporaryDirectory() as folder:
            cells.append(cells_of(call, Path(folder)))
    assert cells[0] == cells[1]
    assert not cells[0] & cells[2]


# Chains that go on.


def draw_with(call: Call, num_draws: int, resume: rllc.Draws | None = None) -> rllc.Draws:
    compute = rllc.Compute(keep_states=True, progress=False)
    with With(call):
        return rllc.sample(
            call.make_model(), **call.arguments(num_draws), compute=compute, resume=resume
        )


@FEW
@SETTINGS
@hypothesis.given(data=st.data())
def test_draws_are_not_gone_on_from_by_a_call_that_differs(name: str, data) -> None:
    pair = data.draw(pairs(name))
    one, other = pair
    short = draw_with(one, 2)
    more = draw_with(one, 3, short)
    np.testing.assert_array_equal(more.loss[:, :, :2], short.loss)
    with pytest.raises(rllc.InputError, match="`resume`"):
        draw_with(other, 3, short)


# Estimates in a training loop.


def track_with(call: Call, path: Path) -> rllc.Estimate:
    with With(call):
        tracker = rllc.Tracker(**call.arguments(4), path=path)
        estimate = tracker(10, call.make_model())
    assert estimate is not None
    return estimate


@FEW
@SETTINGS
@hypothesis.given(data=st.data())
def test_a_tracker_gives_no_estimate_of_a_call_that_differs(name: str, data) -> None:
    pair = data.draw(pairs(name))
    one, other = pair
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "t.npz"
        before = track_with(one, path)
        patch.setattr("rllc.sweep.tracker.estimate", lambda *a, **k: pytest.fail("estimated again"))
        assert track_with(one, path).value == before.value
        with pytest.raises(rllc.InputError, match="Tracker: "):
            track_with(other, path)


# What a file says of itself.


def test_a_cell_under_the_name_of_another_is_computed_again(tmp_path) -> None:
    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    for step in (0, 10):
        replace(call, model=step).make_model().save_pretrained(tmp_path / f"run/step{step:07d}")
    arguments = {**call.arguments(), "store": tmp_path / "s", "compute": QUIET}
    first = rllc.track(tmp_path / "run", **arguments)
    one, other = sorted((tmp_path / "s" / "cells").iterdir())
    other.write_bytes(one.read_bytes())
    seen = rllc.Sweep.open(tmp_path / "s").trajectory()
    assert [fault.kind for row in seen.faults for fault in row[0]].count("damaged") == 1
    with pytest.warns(UserWarning, match="1 cell files in .* were damaged"):
        again = rllc.track(tmp_path / "run", **arguments)
    np.testing.assert_array_equal(again.value, first.value)


def test_a_changed_configuration_beside_the_same_weights_is_another_checkpoint(tmp_path) -> None:
    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    folder = tmp_path / "run" / "step0000010"
    call.make_model().save_pretrained(folder)
    arguments = {**call.arguments(), "store": tmp_path / "s", "compute": QUIET}
    rllc.track(tmp_path / "run", **arguments)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    rllc.track(tmp_path / "run", **arguments)
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    with pytest.raises(rllc.InputError, match="checkpoint of step 10, SHA-256"):
        rllc.track(tmp_path / "run", **arguments)


def test_a_loss_that_cannot_be_known_needs_a_name_where_results_are_kept(tmp_path) -> None:
    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    call.make_model().save_pretrained(tmp_path / "run/step0000010")
    stream = torch.Generator()

    def noisy(module, rows):
        return rllc.next_token(module, rows) + 0 * torch.rand(1, generator=stream)

    arguments = {**call.arguments(), "loss": noisy, "compute": QUIET}
    stored = {**arguments, "store": tmp_path / "s"}
    with pytest.raises(
        rllc.InputError, match=r"loss, 'stream' in its closure: .*rllc\.losses\.named"
    ):
        rllc.track(tmp_path / "run", **stored)
    assert not (tmp_path / "s").exists()
    rllc.track(tmp_path / "run", **arguments)
    rllc.track(tmp_path / "run", **stored | {"loss": rllc.losses.named(noisy, "noisy, version 1")})
    with pytest.raises(rllc.InputError, match="loss: 'named noisy, version 1' there, 'named"):
        rllc.track(
            tmp_path / "run", **stored | {"loss": rllc.losses.named(noisy, "noisy, version 2")}
        )
    with pytest.raises(rllc.InputError, match="cannot be looked into"):
        rllc.Tracker(call.arguments()["data"], loss=noisy, path=tmp_path / "t.npz")


def test_another_observable_of_the_same_name_is_observed(tmp_path) -> None:
    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    call.make_model().save_pretrained(tmp_path / "run/step0000010")

    def track(power: float) -> np.ndarray:
        def measure(moment):
            return (moment.position - moment.origin).norm(dim=1) ** power

        observable = rllc.Observable(measure)
        store = rllc.sweep.Store(tmp_path / "s", observe={"distance": observable})
        rllc.track(tmp_path / "run", **call.arguments(), store=store, compute=QUIET)
        return rllc.Sweep.open(tmp_path / "s").draws(10, "part").observed["distance"]

    once = track(1.0)
    (file,) = (tmp_path / "s" / "observed" / "distance").iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(track(1.0), once)
    assert file.stat().st_mtime_ns == written
    np.testing.assert_allclose(track(2.0), once**2, rtol=1e-5)


def test_a_damaged_or_foreign_generating_model_is_set_aside_and_written_again(tmp_path) -> None:
    from rllc.sweep.travel import portable_loss

    store = rllc.sweep.Store(tmp_path)
    folders = []
    for seed in (1, 2):
        loss = rllc.losses.distillation(tiny_model(seed))
        name = rllc.storage.identity.of_loss(loss)
        folders.append(Path(portable_loss(store, loss, name).folder))
    weights = folders[1] / "model.safetensors"
    whole = weights.read_bytes()
    generator = portable_loss(store, loss, name)
    for place in (200, len(whole) // 2, len(whole) - 1):
        flipped = bytes([whole[place] ^ 1])
        weights.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with pytest.raises(rllc.FileError, match=r"reading the generating model .* is damaged"):
            generator.load()
        portable_loss(store, loss, name)
        assert weights.read_bytes() == whole
    for file in folders[0].iterdir():
        (folders[1] / file.name).write_bytes(file.read_bytes())
    with pytest.raises(rllc.FileError, match="it is another model"):
        generator.load()
    portable_loss(store, loss, name)
    assert weights.read_bytes() == whole


def test_a_branch_of_the_hub_that_moved_is_noticed(tmp_path, monkeypatch) -> None:
    import types

    import huggingface_hub

    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    commits = {"step0": "a" * 40, "step10": "b" * 40}
    for seed, commit in enumerate(("a", "b", "c")):
        replace(call, model=seed).make_model().save_pretrained(tmp_path / "hub" / (commit * 40))
    fetched: list[str] = []

    def refs(repository: str):
        branches = []
        for name, commit in commits.items():
            branches.append(types.SimpleNamespace(name=name, target_commit=commit))
        return types.SimpleNamespace(branches=branches, tags=[])

    def download(repository: str, *, revision: str, allow_patterns: list[str], **_: Any) -> str:
        fetched.append(revision)
        return str(tmp_path / "hub" / commits.get(revision, revision))

    monkeypatch.setattr(huggingface_hub, "list_repo_refs", refs)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    arguments = {**call.arguments(), "store": tmp_path / "s", "compute": QUIET}
    rllc.track("org/name", **arguments)
    assert set(fetched) == {"a" * 40, "b" * 40}
    commits["step10"] = "c" * 40
    with pytest.raises(rllc.InputError, match="checkpoint of step 10, commit: "):
        rllc.track("org/name", **arguments)
    commits["step10"] = "b" * 40
    rllc.track("org/name", **arguments)


def test_a_checkpoint_that_appears_or_is_replaced_later_is_noticed_by_its_contents(
    tmp_path,
) -> None:
    call = Call(**{name: values[0] for name, values in CHOICES.items()})
    for step in (0, 10):
        replace(call, model=step).make_model().save_pretrained(tmp_path / f"run/step{step:07d}")
    weights = tmp_path / "run/step0000010/model.safetensors"
    checkpoints = rllc.checkpoints(tmp_path / "run")
    arguments = {**call.arguments(), "store": tmp_path / "s", "compute": QUIET}
    whole, date = weights.read_bytes(), weights.stat()
    weights.unlink()
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        rllc.track(checkpoints, **arguments)
    weights.write_bytes(whole)
    rllc.track(checkpoints, **arguments)
    other = (tmp_path / "run/step0000000/model.safetensors").read_bytes()
    assert len(other) == len(whole)
    weights.write_bytes(other)
    os.utime(weights, ns=(date.st_atime_ns, date.st_mtime_ns))
    with pytest.raises(rllc.InputError, match="checkpoint of step 10, SHA-256"):
        rllc.track(checkpoints, **arguments)
