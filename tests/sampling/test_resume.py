"""Chains that go on where they were: bit-equal to those that never stopped, and refused where they
would not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from marks import quickly
from tiny import QUIET, Quadratic, loss_of_quadratic, tiny_model, tiny_tokens

import rllc

MODEL, DATA = tiny_model(), {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}
KEEP = rllc.Compute(keep_states=True, progress=False)
TOKENS = {"tokens": rllc.observables.minibatch_losses(), "rows": rllc.observables.minibatch_rows()}
WEIGHTS = ["0:1", "1:2", rllc.parameters("unembed.*").named("unembedding")]
pytestmark = pytest.mark.usefixtures("few_looks")
SAMPLING = rllc.Sampling(
    num_chains=3, num_draws=13, batch_size=4, control_variate=False, num_probes=0, start="center"
)


def draw(num_draws: int, sampling: rllc.Sampling = SAMPLING, **options) -> rllc.Draws:
    arguments = {
        "model": MODEL,
        "data": DATA,
        "weights": WEIGHTS,
        "compute": KEEP,
    } | options
    return rllc.sample(sampling=replace(sampling, num_draws=num_draws), **arguments)


def assert_same(one: rllc.Draws, other: rllc.Draws) -> None:
    """Every bit of everything, states and the order of names included: they become bytes of
    files."""
    for name in ("loss", "baseline", "diverged"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert list(one.observed) == list(other.observed)
    for name, array in one.observed.items():
        np.testing.assert_array_equal(array, other.observed[name], err_msg=name)
    assert list(one.states) == list(other.states)
    for key, state in one.states.items():
        assert list(state) == list(other.states[key])
        for name, array in state.items():
            np.testing.assert_array_equal(array, other.states[key][name], err_msg=f"{key} {name}")
    for name in ("names", "settings", "lengths"):
        assert getattr(one, name) == getattr(other, name), name


SAMPLERS = {
    "sgld": rllc.sgld(),
    "rmsprop_sgld": rllc.samplers.rmsprop_sgld(num_adaptation_steps=3),
    "sghmc": rllc.samplers.sghmc(lr=1e-4),
}
SWITCHES = [
    {"num_probes": 3},
    {"control_variate": True, "num_burnin_steps": 3, "num_steps_bw_draws": 2},
    {"start": "gaussian", "control_variate": True, "num_burnin_steps": 2},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("name", quickly(("sgld",), SAMPLERS))
def test_chains_that_go_on_are_those_that_never_stopped(
    name: str, switches: dict[str, object]
) -> None:
    """Twice: 2 draws, then 3, then 5; what is gone on from is left as it is."""
    if switches.get("start") == "gaussian" and name != "sgld":
        pytest.skip("start='gaussian' is for sgld")
    sampling, sampler = replace(SAMPLING, **switches), SAMPLERS[name]
    data = DATA if "num_probes" in switches else DATA["a"]
    whole, went_on = (draw(n, sampling, sampler=sampler, data=data) for n in (5, 2))
    for more in (3, 5):
        before = went_on.loss.copy(), went_on.diverged.copy()
        longer = draw(more, sampling, sampler=sampler, data=data, resume=went_on)
        np.testing.assert_array_equal(went_on.loss, before[0])
        np.testing.assert_array_equal(went_on.diverged, before[1])
        went_on = longer
    assert_same(went_on, whole)
    assert np.isfinite(whole.loss).all()


def test_only_the_new_draws_are_computed() -> None:
    evaluated = []

    def counting(module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(rows))
        return rllc.next_token(module, rows)

    def cost(num_draws: int, **options) -> int:
        evaluated.clear()
        sampling = replace(SAMPLING, control_variate=True)
        costs.append(draw(num_draws, sampling, weights="0:1", loss=counting, **options))
        return len(evaluated)

    costs: list[rllc.Draws] = []
    short, more = cost(5), cost(9, resume=costs[0])
    assert cost(9) - short == more - len(
        DATA
    )  # w* is looked at once more, on the last minibatch of each data set
    assert more < short  # nor are the gradients around w*


@pytest.mark.slow
def test_losses_per_token_go_on_too_or_are_those_of_the_new_draws() -> None:
    whole, short = draw(6, observe=TOKENS), draw(3, observe=TOKENS)
    assert_same(draw(6, observe=TOKENS, resume=short), whole)
    new = draw(6, observe=TOKENS, resume=draw(3))
    for name in TOKENS:
        np.testing.assert_array_equal(new.observed[name], whole.observed[name][:, :, 3:])
    assert not set(TOKENS) & set(draw(6, resume=short).observed)


def test_a_diverged_chain_stays_diverged_and_its_neighbours_go_on() -> None:
    """Curvature 5000 blows up at lr 1e-3, curvature 1 does not."""
    model, x = Quadratic(torch.tensor([1.0, 1.0, 5000.0, 5000.0])), torch.zeros(8, 4)
    weights = {
        "flat": rllc.parameters("v", index=slice(0, 2)),
        "sharp": rllc.parameters("v", index=slice(2, 4)),
    }
    options = {"model": model, "data": x, "weights": weights, "loss": loss_of_quadratic}
    sampling = rllc.Sampling(
        2, batch_size=8, control_variate=False, num_burnin_steps=1, start="center"
    )
    whole, short = draw(30, sampling, **options), draw(12, sampling, **options)
    assert (short.diverged[1] >= 0).all()
    found = draw(30, sampling, **options, resume=short)
    assert_same(found, whole)
    assert np.isnan(found.loss[1, :, -18:]).all()
    assert np.isfinite(found.loss[0]).all()
    assert (
        rllc.Estimate.of(found)
        .status[1]
        .startswith(f"diverged: chain 0 at step {short.diverged[1, 0]}")
    )


@pytest.mark.slow
def test_what_target_se_has_stopped_stays_stopped_and_the_rest_goes_on() -> None:
    def some(num_draws: int, target_se: float | None, **options) -> rllc.Draws:
        sampling = replace(SAMPLING, num_chains=2, target_se=target_se)
        arguments = {"weights": ["0:1", "0:2", "1:2"], "data": DATA["a"], "observe": TOKENS}
        return draw(num_draws, sampling, **arguments | options)

    def cut(draws: rllc.Draws, num_draws: int) -> float:
        """The middle of the heads' standard errors after so many draws."""
        few = replace(draws, loss=draws.loss[..., :num_draws])
        few = replace(few, baseline=draws.baseline[..., :num_draws], observed={})
        return float(np.median(rllc.Estimate.of(few).standard_error))

    error = cut(some(60, None), 60)
    whole, short = some(80, error), some(60, error)
    assert len({*short.lengths, *whole.lengths}) > 2
    assert_same(some(80, error, resume=short), whole)
    # All had stopped: nothing is computed.
    stopped = some(40, 1e9, weights="0:1")
    assert_same(some(80, 1e9, weights="0:1", resume=stopped), some(80, 1e9, weights="0:1"))


def test_states_go_to_a_file_and_back(tmp_path) -> None:
    short = draw(5, sampler=rllc.samplers.rmsprop_sgld())
    again = rllc.Draws.load(short.save(tmp_path / "draws.npz"))
    assert_same(again, replace(short, settings=dict(again.settings)))
    assert_same(
        draw(9, sampler=rllc.samplers.rmsprop_sgld(), resume=again),
        draw(9, sampler=rllc.samplers.rmsprop_sgld()),
    )


def test_states_hold_what_is_needed_and_nothing_else() -> None:
    def names(**options) -> set[str]:
        (state,) = draw(3, weights="0:1", data=DATA["a"], **options).states.values()
        return set(state)

    least = {"weights", "random", "sampler.position"}
    assert names() == least
    assert names(sampler=rllc.samplers.sghmc()) == least | {"sampler.momentum"}
    assert names(sampler=rllc.samplers.rmsprop_sgld()) == least | {"sampler.square", "sampler.fed"}
    assert names(sampling=replace(SAMPLING, control_variate=True, start="gaussian")) == least | {
        "prepared.control",
        "spread",
    }
    assert draw(3, compute=QUIET).states == {}


def test_what_cannot_go_on_is_refused() -> None:
    short = draw(5)
    other = tiny_model(1)
    for options, words in [
        (
            {"sampler": rllc.sgld(lr=2e-3)},
            "`resume` was made otherwise: lr: 0.001 there, 0.002 now",
        ),
        ({"data": {"a": DATA["b"], "b": DATA["a"]}}, "`resume` was made otherwise: fingerprints: "),
        ({"weights": WEIGHTS[:2]}, r"`resume` was made otherwise: \(weights, data\): "),
        (
            {"weights": [*WEIGHTS[:2], rllc.parameters("embed.*").named("unembedding")]},
            "'unembedding' are other weights",
        ),
        (
            {"model": other},
            "`resume` is of another model or loss: on the minibatch of its last draw from 'a'",
        ),
        ({"loss": rllc.losses.distillation(other)}, "`resume` is of another model or loss"),
        (
            {"resume": draw(5, compute=QUIET)},
            r"has no states of the chains of \('0:1', 'a'\); expected draws of",
        ),
        ({"resume": draw(10)}, r"num_draws: 10 there, 9 now \(it can only grow\)"),
        ({"resume": "draws.npz"}, "`resume` must be the rllc.Draws of .* got str"),
    ]:
        with pytest.raises(rllc.InputError, match=words):
            draw(9, **{"resume": short} | options)
    random = {k: s | {"random": s["random"][:, :16]} for k, s in short.states.items()}
    with pytest.raises(rllc.InputError, match="drawn on another kind of device"):
        draw(9, resume=replace(short, states=random))
