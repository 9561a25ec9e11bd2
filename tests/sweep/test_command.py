"""``python -m rllc.sweep``: shares of a sweep that a file describes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sweeps import DATA, same

import rllc
from rllc.sweep.command import main
from rllc.sweep.store import Store


def spec(folder: Path, run: Path, **changes: object) -> str:
    """Write the description of the sweep that ``unbroken`` is; ``None`` leaves a field out."""
    for name, tokens in DATA.items():
        tokens.save(folder / f"{name}.npz")
    fields = {
        "checkpoints": str(run),
        "data": {"a": "a.npz", "b": "b.npz"},
        "store": "sweep",
        "weights": "heads",
        "sampling": {
            "num_chains": 2,
            "num_draws": 5,
            "batch_size": 4,
            "control_variate": False,
            "num_probes": 0,
            "start": "center",
        },
        "sampler": {"sampler": "sgld", "lr": 1e-3, "localization": 200.0},
    }
    given = {name: value for name, value in (fields | changes).items() if value is not None}
    path = folder / "spec.json"
    path.write_text(json.dumps(given))
    return str(path)


def test_shards_together_are_the_sweep(run, unbroken, tmp_path, computed, capsys) -> None:
    path = spec(tmp_path, run)
    for k, shares_done in ((1, {0}), (3, {0, 2}), (2, {0, 1, 2})):
        assert main([path, "--shard", f"{k}/3", "--quiet"]) == 0
        finished = Store(tmp_path / "sweep").finished()
        # A share may be empty: names are hashes.
        assert {int(name, 16) % 3 for name in finished} <= shares_done
    assert len(computed) == 8
    assert {cell[0] for cell in computed} == {"a", "b"}
    assert "Sweep(2 checkpoints" in capsys.readouterr().out
    assert same(rllc.Sweep.open(tmp_path / "sweep").trajectory(), unbroken)
    assert main([path, "--dry-run"]) == 0
    assert "8 finished, 0 to compute" in capsys.readouterr().out
    assert len(computed) == 8


@pytest.mark.slow
def test_state_dicts_are_told_their_model_or_their_positions(
    run, unbroken, tmp_path, capsys
) -> None:
    folder = tmp_path / "state-dicts"
    folder.mkdir()
    for step in (0, 10):
        torch.save(rllc.load(run, step).state_dict(), folder / f"ckpt_{step}.pt")
    path = spec(tmp_path, folder)
    assert main([path, "--dry-run"]) == 2
    assert "type positions='standard'" in capsys.readouterr().err
    for number, told in enumerate(
        ({"positions": "shortformer"}, {"into": "own_modules:small_model"})
    ):
        path = spec(tmp_path, folder, store=f"sweep{number}", **told)
        assert main([path, "--quiet"]) == 0
        trajectory = rllc.Sweep.open(tmp_path / f"sweep{number}").trajectory()
        assert np.array_equal(trajectory.value, unbroken.value)


@pytest.mark.slow
def test_a_share_is_counted_alone_and_does_not_answer_for_others(
    run, tmp_path, computed, capsys
) -> None:
    path = spec(tmp_path, run)
    for k in (1, 2):
        assert main([path, "--dry-run", "--shard", f"{k}/2"]) == 0
    counts = re.findall(r"in share \d of 2: (\d+) cells, 0 finished", capsys.readouterr().out)
    assert sum(map(int, counts)) == 8
    assert computed == []
    assert main([path, "--shard", "1/2", "--quiet"]) == 0
    store = Store(tmp_path / "sweep")
    for cell in store.plans()[0].cells:
        if cell.name not in store.finished():
            store.fail(cell.name, "of another share, long ago")
    assert main([path, "--shard", "1/2", "--quiet"]) == 0
    assert rllc.Sweep.open(store.folder).failed


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--shard", "0/3"], "--shard must be K/N with K from 1 to N, such as 3/16; got '0/3'"),
        ({"wieghts": 1}, [], "it has 'wieghts', which means nothing; did you mean 'weights'"),
        ({"store": None}, [], "it has no 'store'"),
        ({"weights": "head"}, [], "'weights' must be 'heads', 'everything' or a list of heads"),
        ({"steps": [0, 11]}, [], "has no checkpoints of the steps [11]"),
        ({"loss": "faulty:nothing"}, [], "`loss` 'faulty:nothing' must be module:function"),
        (
            {"sampling": {"chains": 3}},
            [],
            "unexpected keyword argument 'chains'; did you mean 'num_chains'",
        ),
        ({"sampler": {"sampler": "nuts"}}, [], "sampler or sampling: from_settings: 'sampler'"),
        ({"sampler": {"sampler": "sgld", "lr": -1}}, [], "sgld: `lr` must be a positive number"),
        ({"keep_states": 1}, [], "`keep_states` must be true or false, got 1"),
    ],
)
def test_errors_of_the_command_line(run, tmp_path, capsys, changes, arguments, message) -> None:
    assert main([spec(tmp_path, run, **changes), "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_spec_that_is_none(tmp_path, capsys) -> None:
    (tmp_path / "s.json").write_text("[]")
    assert main([str(tmp_path / "s.json")]) == 2
    assert "expected an object, got list" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.json")]) == 2


# Samplers from settings.


@pytest.mark.parametrize("name", ["sgld", "rmsprop_sgld", "sghmc", "mala", "hmc"])
@pytest.mark.parametrize(
    "prior", [None, rllc.samplers.box(0.1, localization=3.0)], ids=["gaussian", "box"]
)
def test_every_sampler_is_made_again_from_its_settings(name: str, prior) -> None:
    sampler = getattr(rllc.samplers, name)(lr=2e-3, prior=prior)
    again = rllc.samplers.from_settings(json.loads(json.dumps(sampler.settings)))
    assert (again.settings, again.full_batch) == (sampler.settings, sampler.full_batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "sgdl"}, "'sampler' must name one of rllc's, got 'sgdl'; did you mean 'sgld'"),
        ({"lr": 1e-3}, "'sampler' must name one of rllc's, got None"),
        (
            {"sampler": "sghmc", "momentun": 0.5},
            "sghmc has no setting 'momentun'; did you mean 'momentum'",
        ),
    ],
)
def test_settings_that_make_no_sampler_are_named(settings, message) -> None:
    with pytest.raises(rllc.InputError, match=message):
        rllc.samplers.from_settings(settings)
