"""The files of a training run, whole and with foreign contents: an error of ours, or a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import rllc
from rllc.data import Tokens
from rllc.models import AttentionOnlyConfig
from rllc.training import Training, train
from rllc.training.reproducible import digest

CONFIG = AttentionOnlyConfig(n_layers=1, d_model=4, n_heads=1, d_head=2, n_ctx=6, d_vocab=5)
TOKENS = Tokens(torch.randint(0, 5, (8, 5), generator=torch.Generator().manual_seed(0)), "toy")
WRONG = [None, -1, 10**400, float("nan"), "x", [], {}, [None], {"x": None}]


def run(folder: Path, num_steps: int = 3) -> Any:
    training = Training(num_steps=num_steps, batch_size=4, checkpoints=(0, num_steps))
    return train(CONFIG, TOKENS, folder, training=training, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The run as it was."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All fields, and of each list the first."""
    if path:
        yield path
    inside = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        inside = [(0, value[0])]
    for key, part in inside:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    other = deepcopy(value)
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    return other


def test_a_wrong_field_of_a_description_is_an_error_of_ours(folder: Path) -> None:
    path = folder / "training.json"
    whole = json.loads(path.read_text())
    messages = []
    fields = list(places(whole))
    assert ("sessions", 0, "environment") in fields
    for number, field in enumerate(fields):
        other = changed(whole, field, WRONG[number % len(WRONG)])
        path.write_text(json.dumps(other))
        try:
            run(folder)
        except (rllc.FileError, rllc.InputError) as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{field}: {error!r}") from error
    assert len(messages) > 5
    assert all(str(folder) in message for message in messages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "rllc.sweep"}, "it is of another kind"),
        ({"settings": []}, "'settings' is list, expected a object"),
        ({"sessions": {}}, "'sessions' is dict, expected a list"),
        ({"sessions": []}, "it has no session"),
        ({"sessions": [3]}, "it is a int, expected an object"),
        ({"sessions": [{"environment": None}]}, "'environment' is NoneType, expected a object"),
    ],
)
def test_the_field_of_a_description_is_named(folder: Path, change: Any, message: str) -> None:
    path = folder / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(rllc.FileError, match=message) as caught:
        run(folder)
    assert str(path) in str(caught.value)


def resumed_with(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Go on from a state with other contents, and the checksum of these."""
    path = folder / "resume.pt"
    state = torch.load(path, weights_only=True)
    del state["sha256"]
    change(state)
    torch.save(state | {"sha256": digest(state)}, path)
    run(folder, num_steps=3)


def first_weight(state: dict[str, Any]) -> str:
    return next(iter(state["model"]))


STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no step": (lambda state: state.pop("step"), "KeyError: 'step'"),
    "a step below 0": (lambda state: state.update(step=-1), "'step' is -1, expected a count"),
    "a step of text": (lambda state: state.update(step="x"), "'step' is str, expected a count"),
    "too few losses": (
        lambda state: state.update(losses=state["losses"][:1]),
        r"'losses' is \[1\], expected one number for each of 3 steps",
    ),
    "no losses": (lambda state: state.update(losses=None), "'losses' is NoneType"),
    "losses of text": (lambda state: state.update(losses=["x"] * 3), "'losses' is list"),
    "another run": (lambda state: state.update(of_run="x"), "it is of another run"),
    "no model": (lambda state: state.update(model=[]), "'model' is list, expected a object"),
    "half a model": (
        lambda state: state["model"].pop(first_weight(state)),
        "of another model or optimizer .*Missing key.*embed.W_E",
    ),
    "a weight of text": (
        lambda state: state["model"].update({first_weight(state): "x"}),
        "is of another model or optimizer",
    ),
    "a weight that is no number": (
        lambda state: state["model"][first_weight(state)].fill_(float("nan")),
        "is not finite",
    ),
    "no optimizers": (lambda state: state.update(optimizers={}), "expected a list"),
    "other optimizers": (
        lambda state: state.update(optimizers=[None]),
        "is of another model or optimizer",
    ),
    "too few optimizers": (
        lambda state: state.update(optimizers=[]),
        "is of another model or optimizer",
    ),
    "an empty optimizer": (
        lambda state: state.update(optimizers=[{}]),
        "is of another model or optimizer",
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_of_foreign_contents_is_refused(folder: Path, case: str) -> None:
    change, message = STATES[case]
    with pytest.raises(rllc.FileError, match=message) as caught:
        resumed_with(folder, change)
    assert str(folder / "resume.pt") in str(caught.value)


def test_a_state_as_it_was_is_taken(folder: Path, trained: Path) -> None:
    resumed_with(folder, lambda state: None)
    for name in ("losses.npz", "step0000003/model.safetensors"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()
