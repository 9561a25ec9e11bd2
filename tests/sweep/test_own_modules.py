"""Sweeps over checkpoints of one's own modules: the numbers of estimates, one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from own_modules import make, square
from small_sweeps import quick

import rllc

STEPS = (3, 20, 100)
DATA = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
OPTIONS = quick() | {"loss": square}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of state dicts, with the prefix of DistributedDataParallel."""
    folder = tmp_path_factory.mktemp("run")
    for step in STEPS:
        state = {f"module.{name}": tensor for name, tensor in make(step).state_dict().items()}
        torch.save({"model": state, "iter_num": step}, folder / f"ckpt_{step}.pt")
    return folder


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """λ̂ of each step, estimated without a sweep."""
    values = [rllc.estimate(make(step), DATA, **OPTIONS).value for step in STEPS]
    return np.array(values)


@pytest.mark.filterwarnings("ignore:load. removed 'module.'")
@pytest.mark.parametrize("form", ["folder", "paths", "pairs", "dict"])
@pytest.mark.parametrize("into", ["module", "function"])
def test_a_folder_of_state_dicts(folder, expected, form, into) -> None:
    paths = {step: folder / f"ckpt_{step}.pt" for step in STEPS}
    source = {
        "folder": folder,
        "paths": list(paths.values()),
        "pairs": list(paths.items()),
        "dict": paths,
    }[form]
    module = make(7)
    before = [parameter.clone() for parameter in module.parameters()]
    given = module if into == "module" else make
    trajectory = rllc.track(source, DATA, into=given, **OPTIONS)
    assert trajectory.steps == STEPS
    assert np.array_equal(trajectory.value, expected)
    assert all(map(torch.equal, before, module.parameters()))


def test_models_in_memory(expected, tmp_path) -> None:
    models = {step: make(step) for step in STEPS}
    for source in (models, list(models.items())):
        trajectory = rllc.track(source, DATA, store=tmp_path, **OPTIONS)
        assert np.array_equal(trajectory.value, expected)
    assert len(list((tmp_path / "cells").glob("*.npz"))) == len(STEPS)
    with torch.no_grad():
        models[20][0].weight += 1
    with pytest.raises(rllc.InputError, match="checkpoint of step 20, SHA-256: "):
        rllc.track(models, DATA, store=tmp_path, **OPTIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:load. removed 'module.'")
def test_in_another_process(folder, expected) -> None:
    options = quick(executor=1) | {"loss": square}
    for source, into in ((folder, make), ({step: make(step) for step in STEPS}, None)):
        trajectory = rllc.track(source, DATA, into=into, **options)
        assert trajectory.value == pytest.approx(expected, rel=1e-4)


def test_what_cannot_go_to_another_process(folder) -> None:
    options = quick(executor=1) | {"loss": square}
    message = r"`into` is sent to other processes, .* A lambda, .*def make\(\): return Model"
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(folder, DATA, into=lambda: make(), **options)


def test_a_model_without_its_step(folder, tmp_path) -> None:
    torch.save(make(1).state_dict(), tmp_path / "final.pt")
    message = r"final.pt does not say its step; type \{100: '.*final.pt'\}"
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(tmp_path / "final.pt", DATA, into=make, **OPTIONS)
    with pytest.raises(rllc.InputError, match=r"track: `into` must be a torch.nn.Module"):
        rllc.track(folder, DATA, into=3, **OPTIONS)


@pytest.mark.filterwarnings("ignore:load. removed 'module.'")
def test_another_module_to_load_into_is_called_that(folder, tmp_path) -> None:
    class Doubled(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    path = {3: folder / "ckpt_3.pt"}
    rllc.track(path, DATA, into=make(), store=tmp_path, **OPTIONS)
    other = Doubled(*make())
    message = r"checkpoint of step 3, SHA-256: .* \(changed: `into`, the module that the weights"
    with pytest.raises(rllc.InputError, match=message):
        rllc.track(path, DATA, into=other, store=tmp_path, **OPTIONS)
    with pytest.raises(rllc.InputError, match=r"\(changed: the weights\)"):
        rllc.track({3: folder / "ckpt_20.pt"}, DATA, into=make(), store=tmp_path, **OPTIONS)


def test_arguments_that_belong_elsewhere_are_told_where(folder) -> None:
    with pytest.raises(rllc.InputError, match=r"rllc.checkpoints\(source, positions=…\)"):
        rllc.track(folder, DATA, positions="standard", **OPTIONS)
