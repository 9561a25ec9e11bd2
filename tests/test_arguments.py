"""Misspelt and misplaced arguments: the error says which was meant, or where it belongs."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from test_documents import gpt2
from tiny import SHORT, square, tiny_model, tiny_tokens
from torch import nn

import rllc
from rllc.arguments import HOMES
from rllc.errors import InputError

MODEL, DATA = nn.Linear(2, 1), torch.randn(8, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rllc.Sampling(draws=10), r"Sampling: .* 'draws'; did you mean 'num_draws'\?"),
        (lambda: rllc.Sampling(num_drws=10), "did you mean 'num_draws'"),
        (lambda: rllc.Sampling(gamma=1.0), r"belongs to rllc\.sgld\(localization=…\)"),
        (lambda: rllc.Sampling(device="cuda"), r"belongs to rllc\.Compute\(device=…\)"),
        (lambda: rllc.Compute(seed=1), r"belongs to rllc\.Sampling\(seed=…\)"),
        (lambda: rllc.estimate(MODEL, DATA, lr=1e-3), r"pass sampler=rllc\.sgld\(lr=…\)"),
        (
            lambda: rllc.estimate(MODEL, DATA, num_draws=3),
            r"sampling=rllc\.Sampling\(num_draws=…\)",
        ),
        (lambda: rllc.estimate(MODEL, DATA, device="cpu"), r"compute=rllc\.Compute\(device=…\)"),
        (lambda: rllc.estimate(MODEL, dataloader=DATA), "did you mean 'data'"),
        (lambda: rllc.sample(MODEL, DATA, criterion=square), "did you mean 'loss'"),
        (lambda: rllc.iterate(MODEL, DATA, weight=None), "did you mean 'weights'"),
        (lambda: rllc.calibrate(MODEL, DATA, chains=4), r"rllc\.Sampling\(num_chains=…\)"),
        (lambda: rllc.resolution(MODEL, DATA, n_beta=[1.0]), "n_beta"),
        (lambda: rllc.control(MODEL, DATA, epsilon=1.0), r"rllc\.sgld\(lr=…\)"),
        (lambda: rllc.track("folder", DATA, sampeling=None), "did you mean 'sampling'"),
        (lambda: rllc.Tracker(DATA, at_step=[1]), "did you mean 'at_steps'"),
        (lambda: rllc.Sampling(burnin=10), "'burnin'; did you mean 'num_burnin_steps'"),
        (
            lambda: rllc.track("run", DATA, num_chains=2),
            r"track: .* pass sampling=rllc\.Sampling\(num_chains=…\)",
        ),
        (lambda: rllc.track("run", DATA, model=MODEL), "'model'; did you mean 'into'"),
        (lambda: rllc.calibrate(MODEL, DATA, losss=None), "'losss'; did you mean 'loss'"),
        (lambda: rllc.resolution(MODEL, DATA, smapler=None), "'smapler'; did you mean 'sampler'"),
        (
            lambda: rllc.sweep.sweep_cost("run", DATA, n_jobs=3),
            r"pass compute=rllc\.Compute\(executor=",
        ),
        (lambda: rllc.Compute(gpu=True), "Compute: .* 'gpu'; known: 'device'"),
        (lambda: rllc.Limits(max_rhatt=1), "Limits: .* 'max_rhatt'; did you"),
        (lambda: rllc.loss_kernel(MODEL, DATA, DATA, smapler=None), "did you mean 'sampler'"),
        (lambda: rllc.influence(MODEL, DATA, DATA, DATA, lr=1), r"pass sampler=rllc\.sgld\(lr=…\)"),
        (lambda: rllc.parameters("*", idx=3), "parameters: .*did you mean 'index'"),
    ],
)
def test_unknown_arguments_are_told_where_to_go(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_checked_calls_are_otherwise_as_they_were() -> None:
    shared = ["loss", "sampler", "sampling", "compute"]
    assert list(inspect.signature(rllc.influence).parameters)[-4:] == shared
    assert "num_draws" in inspect.signature(rllc.Sampling).parameters
    assert list(inspect.signature(rllc.estimate).parameters)[:3] == ["model", "data", "weights"]
    settings = rllc.Sampling(num_draws=7)
    assert pickle.loads(pickle.dumps(settings)) == settings == replace(settings, num_draws=7)
    assert rllc.estimates.estimate.__doc__
    with pytest.raises(TypeError):
        rllc.estimate()  # type: ignore[call-arg]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    for device in ("cuda", "cuda:3"):
        with pytest.raises(InputError, match="torch sees 0 CUDA GPUs"):
            rllc.sample(MODEL, DATA, loss=square, compute=rllc.Compute(device=device))
    with pytest.raises(InputError, match="such as 'cpu' or 'cuda'"):
        rllc.sample(MODEL, DATA, loss=square, compute=rllc.Compute(device="gpu"))


def test_a_list_selects_several_slices() -> None:
    model = tiny_model()
    chosen = rllc.parameters("blocks.0.attn.W_Q", index=[0, 2])
    assert chosen.name == "blocks.0.attn.W_Q[[0, 2]]"
    (mask,) = chosen.masks(model).values()
    assert mask[[0, 2]].all()
    assert not mask[1].any()
    inner = rllc.parameters("blocks.0.attn.W_Q", index=(1, [0, 3, 5]))
    (mask,) = inner.masks(model).values()
    assert mask.nonzero()[:, 1].unique().tolist() == [0, 3, 5]
    assert int(mask.sum()) == 3 * mask.shape[2]
    assert hash(chosen) == hash(rllc.parameters("blocks.0.attn.W_Q", index=[0, 2]))
    assert pickle.loads(pickle.dumps(chosen)) == chosen


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (([0], [1]), "one list of integers at most"),
        ([], "not an empty one"),
        ([0.5], "expected integers, slices and a list"),
        ([True, False], "for a boolean mask use"),
        (True, "for a boolean mask use"),
    ],
)
def test_other_indices_are_refused(index: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rllc.parameters("blocks.0.attn.W_Q", index=index)


def test_a_step_hands_out_parameters_by_name() -> None:
    """The loss at the weights that a step hands out is the loss that it says it has."""
    for model, chosen in (
        (tiny_model(), [rllc.head("0:1"), rllc.parameters("*.attn.b_?") | rllc.head("1:0")]),
        (gpt2(), [rllc.parameters("*c_attn*", index=[1, 3]), rllc.parameters("*ln_f*")]),
    ):
        tokens = tiny_tokens(4)
        compute = rllc.Compute(progress=False, runs_per_pass=3)
        sampling = replace(SHORT, num_draws=2, num_probes=0)
        options = {"sampling": sampling, "compute": compute}
        chosen = [weights.named(str(number)) for number, weights in enumerate(chosen)]
        for step in rllc.iterate(model, tokens, chosen, **options):  # type: ignore[arg-type]
            for row, weights in enumerate(chosen):
                named = step.parameters(row)
                masks = weights.masks(model)
                assert named.keys() == masks.keys()
                for chain in range(2):
                    moved = {name: values[chain] for name, values in named.items()}
                    logits = torch.func.functional_call(model, moved, (tokens.rows.long(),)).logits
                    loss = nn.functional.cross_entropy(
                        logits[:, :-1].flatten(0, 1), tokens.rows[:, 1:].long().flatten()
                    )
                    assert float(loss.detach()) == pytest.approx(
                        float(step.loss[row, chain]), abs=1e-5
                    )
                    vector = torch.cat([moved[name][masks[name]] for name in sorted(moved)])
                    assert vector.equal(step.positions(row)[chain])
                    for name, mask in masks.items():
                        kept = model.get_parameter(name)[~mask]
                        assert moved[name][~mask].equal(kept)


def test_the_homes_of_settings_are_those_of_their_classes() -> None:
    for argument, kind in (("sampling", rllc.Sampling), ("compute", rllc.Compute)):
        _, names = HOMES[argument]
        assert set(names) == {field.name for field in fields(kind)}


def test_settings_can_still_be_replaced() -> None:
    assert replace(rllc.Sampling(), num_draws=7) == rllc.Sampling(num_draws=7)
    assert rllc.Sampling.__name__ == "Sampling"


def without_law() -> rllc.samplers.Sampler:
    known = rllc.sgld()
    return rllc.samplers.Sampler("own", known.lr, known.localization, known.init, known.step)


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(
    ("sampler", "chains_and_draws"),
    [
        (None, (16, 50)),
        (rllc.sgld(lr=4e-4, localization=200.0), (16, 50)),
        (rllc.sgld(lr=1e-4, localization=200.0), (4, 200)),
        (rllc.sgld(lr=1e-3, prior=rllc.samplers.box(1.0)), (4, 200)),
        (without_law(), (4, 200)),
    ],
    ids=["default", "fast enough", "slow", "in a box", "unknown"],
)
def test_many_short_chains_where_they_forget_their_start(
    sampler: rllc.samplers.Sampler | None, chains_and_draws: tuple[int, int]
) -> None:
    model, rows = nn.Linear(2, 1), torch.randn(40, 2)
    draws = rllc.sample(model, rows, loss=square, sampler=sampler)
    assert draws.loss.shape[1:] == chains_and_draws
    tracker = rllc.Tracker(rows, loss=square, sampler=sampler)
    assert (tracker.sampling.num_chains, tracker.sampling.num_draws) == chains_and_draws


def test_what_looks_for_settings_keeps_the_paper_s_chains() -> None:
    model, rows = nn.Linear(2, 1), torch.randn(40, 2)
    grid = {"lr": [1e-3], "n_beta": [30.0], "localization": [200.0]}
    assert rllc.calibrate(model, rows, loss=square, **grid).sampling == rllc.Sampling(
        start="gaussian"
    )
