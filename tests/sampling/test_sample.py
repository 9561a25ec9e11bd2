"""The engine: against a loop over one model at a time, its exact laws, what it must not depend on
and must not touch."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import quickly
from tiny import QUIET, SHORT, Quadratic, loss_of_quadratic, square, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.data.minibatches import Minibatches
from rllc.engine.layout import digest
from rllc.errors import InputError
from rllc.estimates.estimate import LLC
from rllc.samplers import SGLDState
from rllc.seeds import generator
from rllc.testing import unchanged
from rllc.theory import SGLDLaw
from rllc.weights import refinement as refine

pytestmark = pytest.mark.usefixtures("few_looks")
MODEL, TOKENS = tiny_model(), tiny_tokens()
SGLD = rllc.sgld()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pure_noise() -> rllc.samplers.Sampler:
    """Positions are w* plus this step's standard normal numbers: what it shows are the random
    numbers, bit for bit."""

    def step(state: SGLDState, energy: Callable, random: object) -> SGLDState:
        energy(state.position)
        return state._replace(position=state.center + 1e-3 * random.normal())

    return rllc.samplers.Sampler("noise", 1.0, 0.0, SGLD.init, step)


def half() -> rllc.Weights:
    stream = torch.Generator().manual_seed(0)
    names = ("embed.W_E", "blocks.0.attn.W_V", "blocks.1.ln1.b", "unembed.b_U")
    shapes = {name: MODEL.get_parameter(name).shape for name in names}
    return rllc.masks(
        {name: torch.rand(shape, generator=stream) < 0.5 for name, shape in shapes.items()}, "half"
    )


CHOSEN = [
    *rllc.heads(MODEL),
    rllc.everything(),
    (rllc.head("0:0") | rllc.head("0:2")).named("two heads"),
    (rllc.head("0:1") | rllc.head("1:1")).named("across layers"),
    rllc.layer(1),
    half(),
]


# Against a loop


def naive_chain(
    model: nn.Module,
    weights: rllc.Weights,
    data: rllc.Tokens,
    loss: Callable,
    sampling: rllc.Sampling,
    chain: int,
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """One chain on one copy of the model, differentiated by plain autograd: losses and baselines
    [draw], last position."""
    lr, localization, n_beta = 1e-3, 200.0, sampling.n_beta
    moved, masks = copy.deepcopy(model), weights.masks(model)
    names = sorted(masks)
    stream = generator("noise", sampling.seed, digest(masks), data.fingerprint, chain)
    batches = Minibatches(len(data), sampling.batch_size, seed=sampling.seed)
    center = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, baselines = [], []
    for t in range(sampling.num_steps + 1):
        batch = data.rows[batches[t]].long()
        moved.zero_grad()
        value = loss(moved, batch)
        after = t - sampling.num_burnin_steps
        if after > 0 and after % sampling.num_steps_bw_draws == 0:
            losses.append(value.item())
            baselines.append(loss(model, batch).item())
        if t == sampling.num_steps:
            break
        value.backward()
        noise = torch.randn(weights.count(model), generator=stream)
        with torch.no_grad():
            for name in names:
                p, mask = moved.get_parameter(name), masks[name]
                drift = n_beta * p.grad[mask] + localization * (p[mask] - center[name][mask])
                mine, noise = noise[: int(mask.sum())], noise[int(mask.sum()) :]
                p[mask] += -lr / 2 * drift + lr**0.5 * mine
    position = torch.cat([moved.get_parameter(name).detach()[masks[name]] for name in names])
    return np.array(losses), np.array(baselines), position


def token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


GENERATOR = tiny_model(9, n_layers=1)


def soft_loss(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        target = GENERATOR(batch).logits[:, :-1].softmax(-1)
    return -(target * model(batch).logits[:, :-1].log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(replace(SHORT, num_draws=3), marks=pytest.mark.slow),
        replace(SHORT, num_burnin_steps=3, num_steps_bw_draws=2, num_draws=2, seed=7),
    ],
)
@pytest.mark.parametrize("case", ["shortformer", "standard", "distillation", "any module"])
def test_every_draw_equals_a_loop_over_one_model_at_a_time(
    case: str, sampling: rllc.Sampling
) -> None:
    model = tiny_model(positions="standard" if case == "standard" else "shortformer")
    ours: object = {
        "distillation": rllc.losses.distillation(GENERATOR),
        "any module": lambda m, b: rllc.next_token(m, b),
    }.get(case)
    slow = soft_loss if case == "distillation" else token_loss
    # Two heads show what all would; how weights are put together does not depend on the loss.
    chosen = CHOSEN if case == "shortformer" else [CHOSEN[1], rllc.everything(), half()]
    steps = list(rllc.iterate(model, TOKENS, chosen, loss=ours, sampling=sampling))
    seen = [step for step in steps if step.draw is not None]
    found = np.stack([step.loss for step in seen], -1)
    baseline = np.stack([step.baseline for step in seen], -1)
    for r, weights in enumerate(chosen):
        if weights.name in ("0:0", "0:2", "1:0", "1:1"):
            continue
        for chain in range(sampling.num_chains):
            losses, baselines, position = naive_chain(model, weights, TOKENS, slow, sampling, chain)
            assert abs(found[r, chain] - losses).max() < 2e-5
            assert abs(baseline[r] - baselines).max() < 2e-6
            assert float((steps[-1].positions(r)[chain] - position).abs().max()) < 2e-5


# What a draw is


def test_draws_are_counted_after_burn_in_and_between_steps() -> None:
    sampling = rllc.Sampling(
        num_chains=1,
        num_draws=3,
        num_burnin_steps=4,
        num_steps_bw_draws=2,
        batch_size=4,
        control_variate=False,
    )
    steps = list(rllc.iterate(MODEL, TOKENS, "0:1", sampling=sampling))
    assert [s.step for s in steps] == list(range(1, 11))
    assert [s.draw for s in steps] == [None] * 5 + [0, None, 1, None, 2]
    draws = rllc.sample(MODEL, TOKENS, "0:1", sampling=sampling, compute=QUIET)
    assert draws.loss[0, 0].tolist() == [float(s.loss[0, 0]) for s in steps if s.draw is not None]
    assert draws.baseline[0, 0].tolist() == [
        float(s.baseline[0]) for s in steps if s.draw is not None
    ]


def test_the_center_is_never_a_draw_and_burn_in_never_in_the_mean() -> None:
    """On a chain that only counts its steps, draw j sits at step burn-in + (j + 1) · between, from
    1 on."""

    def count(state: SGLDState, energy: Callable, random: object) -> SGLDState:
        energy(state.position)
        return state._replace(position=state.position + 1)

    counter = rllc.samplers.Sampler("count", 1.0, 0.0, SGLD.init, count)
    model, x = Quadratic(torch.ones(3)), torch.zeros(8, 3)
    for burnin, between in ((0, 1), (5, 1), (2, 3)):
        sampling = rllc.Sampling(
            num_draws=4,
            num_burnin_steps=burnin,
            num_steps_bw_draws=between,
            batch_size=8,
            control_variate=False,
        )
        draws = rllc.sample(
            model, x, loss=loss_of_quadratic, sampler=counter, sampling=sampling, compute=QUIET
        )
        at = burnin + between * np.arange(1, 5)
        assert np.allclose(draws.loss, 1.5 * at**2)
        assert np.allclose(draws.baseline, 0)
        assert np.allclose(rllc.Estimate.of(draws).value, 30 * np.mean(1.5 * at**2))


def test_a_loss_is_measured_on_the_next_minibatch_which_also_gives_the_next_gradient() -> None:
    """The gradient at step t is on the batch on which the draw after step t was measured."""
    seen: list[Tensor] = []

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        seen.append(x.clone())
        return square(module, x)

    x = torch.randn(12, 3)
    sampling = rllc.Sampling(num_chains=1, num_draws=4, batch_size=4, control_variate=False)
    observe = {"rows": rllc.observables.minibatch_rows()}
    linear = nn.Linear(3, 1)
    steps = list(rllc.iterate(linear, x, loss=loss, sampling=sampling, observe=observe))
    batches = Minibatches(12, 4, seed=0)
    for t, step in enumerate(steps, start=1):
        # Step t used batch t − 1; its loss is on batch t.
        assert torch.equal(step.observed["rows"][0, 0], batches[t])
    model = nn.Linear(3, 1)
    for step in rllc.iterate(model, x, loss=square, sampling=sampling, observe=observe):
        moved = copy.deepcopy(model)
        rows = step.observed["rows"][0, 0]
        bias, weight = step.positions(0)[0][:1], step.positions(0)[0][1:]  # alphabetical
        moved.load_state_dict({"weight": weight[None], "bias": bias})
        assert abs(float(step.loss[0, 0]) - square(moved, x[rows]).mean().item()) < 1e-5
        assert abs(float(step.baseline[0]) - square(model, x[rows]).mean().item()) < 1e-5


def test_losses_per_token_have_the_loss_as_their_mean() -> None:
    data = {"a": tiny_tokens(seed=1), "b": tiny_tokens(num_rows=9, pos=5, seed=2)}
    observe = {
        "tokens": rllc.observables.minibatch_losses(keep="all"),
        "rise": rllc.observables.minibatch_losses(),
        "rows": rllc.observables.minibatch_rows(),
    }
    weights = ["0:1", "1:0", rllc.layer(0)]
    draws = rllc.sample(MODEL, data, weights, sampling=SHORT, observe=observe, compute=QUIET)
    plain = rllc.sample(MODEL, data, weights, sampling=SHORT, compute=QUIET)
    assert (draws.loss == plain.loss).all()
    assert not set(observe) & set(plain.observed)
    tokens, rise = draws.observed["tokens"], draws.observed["rise"]
    assert tokens.shape == (6, 2, 5, 4, 6)
    for row, (_, name) in enumerate(draws.names):
        pos = data[name].num_positions - 1
        # Rows of the data set with the shorter ones end in NaN.
        assert np.isnan(tokens[row, ..., pos:]).all()
        values = tokens[row, ..., :pos].astype(float)
        assert np.allclose(values.mean((2, 3)), draws.loss[row], atol=1e-6)
        # A loss belongs to the row that it says, and is kept as its difference to w*.
        rows = torch.from_numpy(draws.observed["rows"][row, 1, 2])
        batch = data[name].rows[rows].long()
        baseline = rllc.next_token(MODEL, batch).detach().numpy()
        differences = values[1, 2] - baseline
        assert np.allclose(rise[row, 1, 2, :, :pos], differences, atol=1e-5, rtol=1e-3)


def test_positions_are_the_selected_weights_of_each_chain() -> None:
    weights = ["0:1", "1:2", rllc.layer(0)]
    for passes in (None, 1, 2):
        compute = rllc.Compute(runs_per_pass=passes)
        sampling = replace(SHORT, num_draws=1)
        *_, step = rllc.iterate(MODEL, TOKENS, weights, sampling=sampling, compute=compute)
        for r, w in enumerate(("0:1", "1:2", rllc.layer(0))):
            (alone,) = list(rllc.iterate(MODEL, TOKENS, w, sampling=sampling))[-1:]
            count = (rllc.head(w) if isinstance(w, str) else w).count(MODEL)
            assert step.positions(r).shape == (2, count)
            assert torch.allclose(step.positions(r), alone.positions(0), atol=1e-6)


def test_positions_stay_what_they_were_when_the_chain_goes_on() -> None:
    steps = list(rllc.iterate(MODEL, TOKENS, "0:1", sampling=SHORT))
    late = [step.positions(0) for step in steps]
    early = [step.positions(0) for step in rllc.iterate(MODEL, TOKENS, "0:1", sampling=SHORT)]
    assert all(torch.equal(a, b) for a, b in zip(late, early, strict=True))


# Exact laws


def z_of_estimate(law: SGLDLaw, estimate: LLC, sampling: rllc.Sampling) -> float:
    """(estimate − exact mean) / exact standard deviation, both at finite ε, γ, nβ, length and
    burn-in."""
    spacing = {
        "num_burnin_steps": sampling.num_burnin_steps,
        "num_steps_bw_draws": sampling.num_steps_bw_draws,
    }
    truth = law.expected(sampling.num_draws, **spacing)
    return (estimate.value - truth) / law.standard_error(
        sampling.num_draws, sampling.num_chains, **spacing
    )


CURVATURES = torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0]).repeat(40)


@pytest.mark.parametrize(
    ("lr", "localization", "sampling"),
    [
        (
            1e-3,
            200.0,
            rllc.Sampling(num_chains=4, num_draws=100, batch_size=8, control_variate=False),
        ),  # the paper's, transient and all
        (
            2e-2,
            20.0,
            rllc.Sampling(
                num_chains=2,
                num_draws=100,
                num_burnin_steps=30,
                batch_size=8,
                control_variate=False,
                n_beta=10.0,
            ),
        ),
        (
            5e-3,
            1.0,
            rllc.Sampling(
                num_chains=2,
                num_draws=60,
                num_steps_bw_draws=3,
                batch_size=8,
                control_variate=False,
                n_beta=50.0,
            ),
        ),
        (
            5e-3,
            100.0,
            rllc.Sampling(
                num_chains=2, num_draws=100, batch_size=8, control_variate=False, n_beta=60.0
            ),
        ),  # εa = 3.5 at most
    ],
)
def test_quadratic_has_its_exact_law(
    lr: float, localization: float, sampling: rllc.Sampling
) -> None:
    sampling = replace(sampling, start="center")
    law = SGLDLaw(CURVATURES.numpy(), lr=lr, localization=localization, n_beta=sampling.n_beta)
    est = rllc.estimate(
        Quadratic(CURVATURES),
        torch.zeros(8, len(CURVATURES)),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(lr, localization),
        sampling=sampling,
        compute=QUIET,
    )
    z = z_of_estimate(law, est["everything"], sampling)
    assert abs(z) < 5
    assert (
        est["everything"].standard_error < 0.2 * law.value
    )  # a z-score with a large error would show nothing


def test_minibatch_noise_widens_the_law_by_its_exact_factor() -> None:
    """Each example adds a linear term x·v; a batch's mean gradient has variance Var(x)/batch · (1 −
    batch/rows)."""
    rows, batch, n_beta, lr = 20_000, 8, 30.0, 1e-2
    curvatures = torch.tensor([0.3, 1.0, 3.0]).repeat(50)
    x = torch.randn(rows, len(curvatures), generator=generator("noise of rows"))
    x = (x - x.mean(0)) * torch.tensor([0.5, 1.0, 3.0, 4.0, 2.0]).repeat(30)
    noise = x.var(0).numpy() / batch * (1 - batch / rows)
    law = SGLDLaw(
        curvatures.numpy(), lr=lr, localization=50.0, n_beta=n_beta, gradient_variance=noise
    )
    quiet = SGLDLaw(curvatures.numpy(), lr=lr, localization=50.0, n_beta=n_beta)
    sampling = rllc.Sampling(
        num_chains=4, num_draws=200, num_burnin_steps=20, batch_size=batch, n_beta=n_beta
    )
    est = rllc.estimate(
        Quadratic(curvatures),
        x,
        loss=loss_of_quadratic,
        sampler=rllc.sgld(lr, 50.0),
        sampling=sampling,
        compute=QUIET,
    )
    assert abs(z_of_estimate(law, est["everything"], sampling)) < 5
    assert z_of_estimate(quiet, est["everything"], sampling) > 20  # the correction is not small


def test_the_baseline_on_the_same_minibatch_takes_the_datas_noise_out() -> None:
    """A term that depends on the example alone would be most of the loss; here it cancels."""

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return 100 * x[:, 0] + 0 * module.v.sum() + 0.5 * ((module.v - module.start) ** 2).sum()

    x = torch.randn(400, 1, generator=generator("difficulty"))
    sampling = rllc.Sampling(num_chains=2, num_draws=50, batch_size=8, control_variate=False)
    draws = rllc.sample(Quadratic(torch.ones(20)), x, loss=loss, sampling=sampling, compute=QUIET)
    assert draws.loss.std() > 10
    assert draws.llc.std() < 1


# What a draw must not depend on


def noise_of(
    weights: object, data: object = TOKENS, **changes: object
) -> dict[tuple[str, str], Tensor]:
    """The random numbers that each refinement's chains get at their last step, bit for bit."""
    refinements = refine.product(weights, data)  # type: ignore[arg-type]
    passes = rllc.Compute(runs_per_pass=changes.pop("runs_per_pass", None))
    sampling = replace(SHORT, **{"num_draws": 1} | changes)
    *_, step = rllc.iterate(
        MODEL, data, weights, sampler=pure_noise(), sampling=sampling, compute=passes
    )
    return {r.name: step.positions(i) for i, r in enumerate(refinements)}


DATA = {"a": tiny_tokens(seed=1), "b": tiny_tokens(seed=2)}


@functools.cache
def noise_of_all() -> dict[tuple[str, str], Tensor]:
    return noise_of(CHOSEN, DATA)


@functools.cache
def draws_of_all() -> rllc.Draws:
    return rllc.sample(MODEL, DATA, CHOSEN, sampling=SHORT, compute=QUIET)


@pytest.mark.parametrize("runs_per_pass", quickly((None, 3), [None, 1, 3]))
def test_noise_is_the_same_alone_in_company_in_any_order_and_in_passes_of_any_size(
    runs_per_pass: int | None,
) -> None:
    together = noise_of_all()
    for weights, data in (
        (CHOSEN[::-1], {"b": DATA["b"], "a": DATA["a"]}),
        ([CHOSEN[4], CHOSEN[0], CHOSEN[-1]], {"b": DATA["b"]}),
        ([CHOSEN[6]], {"a": DATA["a"]}),
    ):
        for name, noise in noise_of(weights, data, runs_per_pass=runs_per_pass).items():
            assert torch.equal(noise, together[name])


def test_chains_are_the_same_whatever_their_number() -> None:
    few, many = noise_of("0:1", num_chains=2), noise_of("0:1", num_chains=5)
    assert torch.equal(few["0:1", "tokens"], many["0:1", "tokens"][:2])


def test_noise_depends_on_what_it_is_for_and_not_on_names() -> None:
    base = noise_of("0:1")["0:1", "tokens"]
    other_name = noise_of({"previous token": rllc.head("0:1")}, rllc.Tokens(TOKENS.rows, name="x"))
    assert torch.equal(other_name["previous token", "x"], base)
    assert not torch.equal(base[0], base[1])  # chains
    moves = [noise_of("0:1", seed=1), noise_of("0:2"), noise_of("0:1", DATA["a"])]
    start = torch.cat(
        [
            MODEL.get_parameter(n).detach()[m]
            for n, m in sorted(rllc.head("0:1").masks(MODEL).items())
        ]
    )
    for other in moves:
        ((name, noise),) = other.items()
        w = rllc.head(name[0])
        center = torch.cat(
            [MODEL.get_parameter(n).detach()[m] for n, m in sorted(w.masks(MODEL).items())]
        )
        assert not torch.allclose(noise - center, base - start)


@pytest.mark.parametrize("runs_per_pass", quickly((None, 3), [None, 1, 3]))
def test_losses_are_the_same_alone_in_company_and_in_passes_of_any_size(
    runs_per_pass: int | None,
) -> None:
    together = draws_of_all()
    compute = rllc.Compute(runs_per_pass=runs_per_pass, progress=False)
    for weights in (CHOSEN[::-1], [CHOSEN[4]], [CHOSEN[6]]):
        part = rllc.sample(MODEL, {"b": DATA["b"]}, weights, sampling=SHORT, compute=compute)
        for i, name in enumerate(zip(part.weights, part.data, strict=True)):
            r = list(zip(together.weights, together.data, strict=True)).index(name)
            assert abs(part.loss[i] - together.loss[r]).max() < 5e-6
            assert abs(part.baseline[i] - together.baseline[r]).max() < 5e-6


def test_losses_of_any_module_are_the_same_in_passes_of_any_size() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(12, 3)
    found = [
        rllc.sample(
            model,
            x,
            [rllc.parameters("0.*"), rllc.parameters("2.*")],
            loss=square,
            sampling=SHORT,
            compute=rllc.Compute(runs_per_pass=passes, progress=False),
        )
        for passes in (None, 1, 3)
    ]
    for other in found[1:]:
        assert abs(other.loss - found[0].loss).max() < 1e-6


def test_minibatches_are_the_same_for_all_refinements_and_in_company() -> None:
    options = {
        "sampling": SHORT,
        "observe": {"rows": rllc.observables.minibatch_rows()},
        "compute": QUIET,
    }
    together = rllc.sample(MODEL, DATA, [CHOSEN[1], CHOSEN[4], rllc.everything()], **options)
    alone = rllc.sample(MODEL, {"b": DATA["b"]}, "0:1", **options)
    for row in together.names.select(data="b"):
        assert (together.observed["rows"][row] == alone.observed["rows"][0, :1]).all()


def test_the_same_call_gives_the_same_bits() -> None:
    first = draws_of_all()
    second = rllc.sample(MODEL, DATA, CHOSEN, sampling=SHORT, compute=QUIET)
    assert (first.loss == second.loss).all()
    assert (first.baseline == second.baseline).all()


def test_the_state_of_the_world_does_not_matter() -> None:
    first = rllc.sample(MODEL, TOKENS, "0:1", sampling=SHORT, compute=QUIET)
    model = copy.deepcopy(MODEL).train().requires_grad_(False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1234)
        second = rllc.sample(model, TOKENS, "0:1", sampling=SHORT, compute=QUIET)
    assert (first.loss == second.loss).all()


def test_a_diverging_refinement_leaves_its_neighbours_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calm, self.wild = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return ((self.calm - 1) ** 2).sum() + 1e5 * ((self.wild - 1) ** 2).sum() + 0 * x[:, 0]

    model, x, two = Two(), torch.zeros(8, 1), [rllc.parameters("wild"), rllc.parameters("calm")]
    for loss in (
        lambda m, x: m(x),
        lambda m, x: m(x) + 0 * float(m(x).detach().sum()),
    ):  # together, one by one
        sampling = rllc.Sampling(2, 20, batch_size=8, control_variate=False, start="center")
        est = rllc.estimate(model, x, two, loss=loss, sampling=sampling, compute=QUIET)
        alone = rllc.estimate(model, x, two[1], loss=loss, sampling=sampling, compute=QUIET)
        assert np.isnan(est["wild"].value)
        assert "diverged" not in est["calm"].status
        assert est["calm"].value == pytest.approx(alone["calm"].value, rel=1e-5)


# What a call must leave alone


class Interrupted(Exception):
    pass


def public_calls() -> dict[str, Callable[[nn.Module, Tensor], object]]:
    calls = 0

    def failing(module: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise Interrupted
        return (
            square(module, x) + float(square(module, x).detach().mean()) * 0
        )  # looks at values: run by run

    def abandoned(model: nn.Module, x: Tensor) -> None:
        for step in rllc.iterate(model, x, loss=square, sampling=replace(SHORT, train_mode=True)):
            if step.step == 2:
                break

    def held(model: nn.Module, x: Tensor) -> object:
        steps = rllc.iterate(model, x, loss=square, sampling=replace(SHORT, train_mode=True))
        next(steps)
        return steps  # suspended in the middle

    return {
        "sample": lambda m, x: rllc.sample(m, x, loss=square, sampling=SHORT, compute=QUIET),
        "estimate": lambda m, x: rllc.estimate(m, x, loss=square, sampling=SHORT, compute=QUIET),
        "train mode": lambda m, x: rllc.sample(
            m, x, loss=square, sampling=replace(SHORT, train_mode=True), compute=QUIET
        ),
        "abandoned": abandoned,
        "held": held,
        "failing": lambda m, x: rllc.sample(m, x, loss=failing, sampling=SHORT, compute=QUIET),
        "refused": lambda m, x: rllc.sample(
            m, x, loss=square, sampling=replace(SHORT, batch_size=99), compute=QUIET
        ),
        "diverging": lambda m, x: rllc.sample(
            m, x, loss=square, sampler=rllc.sgld(10.0), sampling=SHORT, compute=QUIET
        ),
    }


@pytest.mark.parametrize("call", public_calls())
def test_model_and_random_states_are_left_as_they_were(call: str) -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    model, x = nn.Sequential(inner, nn.Linear(4, 1).eval()), torch.randn(12, 3)
    model[1].weight.requires_grad_(False)
    model[1].bias.grad = torch.ones(1)
    inner[0].eval()  # modes differ between submodules
    with unchanged(model):
        try:
            public_calls()[call](model, x)
        except (Interrupted, InputError):
            assert call in ("failing", "refused")
        else:
            assert call not in ("failing", "refused")


@pytest.mark.parametrize("loss", [None, rllc.losses.distillation(GENERATOR)])
def test_an_attention_only_and_its_generator_are_left_as_they_were(loss: object) -> None:
    model = tiny_model().train()
    model.embed.W_E.grad = torch.ones_like(model.embed.W_E)
    with unchanged(model), unchanged(GENERATOR):
        rllc.sample(model, TOKENS, CHOSEN, loss=loss, sampling=SHORT, compute=QUIET)
        next(rllc.iterate(model, TOKENS, CHOSEN, loss=loss, sampling=SHORT))


def test_a_model_and_its_data_are_not_kept_alive_by_results() -> None:
    observe = {
        "tokens": rllc.observables.minibatch_losses(),
        "rows": rllc.observables.minibatch_rows(),
    }
    draws = rllc.sample(MODEL, TOKENS, "0:1", sampling=SHORT, observe=observe, compute=QUIET)
    assert all(
        isinstance(a, np.ndarray) for a in (draws.loss, draws.baseline, *draws.observed.values())
    )


# Chains that diverge


@pytest.mark.parametrize("num_draws", [1, 2, 8])
@pytest.mark.parametrize("loss", [None, lambda m, b: rllc.next_token(m, b)])
def test_a_diverging_chain_is_never_a_finite_number(num_draws: int, loss: object) -> None:
    sampling = rllc.Sampling(num_draws=num_draws, batch_size=4, control_variate=False)
    est = rllc.estimate(
        MODEL,
        TOKENS,
        ["0:1", "1:2", rllc.everything()],
        loss=loss,
        sampler=rllc.sgld(lr=1e-3 * 1e4),
        sampling=sampling,
        compute=QUIET,
    )  # type: ignore[arg-type]
    assert np.isnan(est.value).all()
    assert np.isnan(est.standard_error).all()
    for status in est.status:
        assert re.fullmatch(r"diverged: chain 0 at step \d+ \(and 3 more\); lower lr", status)


def test_one_draw_is_enough_to_see_that_the_prior_alone_diverges() -> None:
    """At lr = 10 one step from w* is a free walk like any other; on a flat loss only the pull of γ
    tells, a step later."""
    est = rllc.estimate(
        Quadratic(torch.full((50,), 1e-4)),
        torch.zeros(4, 50),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(lr=10.0),
        sampling=rllc.Sampling(num_draws=1, batch_size=4, control_variate=False),
        compute=QUIET,
    )
    assert np.isnan(est["everything"].value)
    assert est["everything"].status == "diverged: chain 0 at step 1 (and 3 more); lower lr"


def test_a_chain_that_slowly_diverges_is_seen_before_it_overflows() -> None:
    law = SGLDLaw([6000.0], lr=1e-3, localization=1.0, n_beta=1.0)
    assert law.decay[0] == pytest.approx(-2, rel=1e-2)  # doubles at each step
    sampling = rllc.Sampling(
        num_draws=30, batch_size=8, control_variate=False, n_beta=1.0, num_chains=3
    )
    draws = rllc.sample(
        Quadratic(torch.tensor([6000.0])),
        torch.zeros(8, 1),
        loss=loss_of_quadratic,
        sampler=rllc.sgld(1e-3, 1.0),
        sampling=sampling,
        compute=QUIET,
    )
    for chain, step in enumerate(draws.diverged[0]):
        assert 3 < step < 20
        assert np.isfinite(draws.loss[0, chain, : step - 1]).all()
        assert np.isnan(draws.loss[0, chain, step - 1 :]).all()


def test_a_chain_that_meets_a_non_finite_loss_stays_broken() -> None:
    def fragile(module: nn.Module, x: Tensor) -> Tensor:
        return torch.where(module.v.abs().sum() > 0.2, torch.nan, (module.v**2).sum()) + 0 * x[:, 0]

    model = Quadratic(torch.ones(3))
    model.v.data.zero_()
    sampling = rllc.Sampling(num_draws=50, batch_size=8, control_variate=False, start="center")
    draws = rllc.sample(model, torch.zeros(8, 1), loss=fragile, sampling=sampling, compute=QUIET)
    assert (draws.diverged > 0).all()
    for chain, step in enumerate(draws.diverged[0]):
        assert np.isnan(draws.loss[0, chain, step - 1 :]).all()
        assert np.isfinite(draws.loss[0, chain, : step - 1]).all()
    assert np.isnan(rllc.Estimate.of(draws).value).all()


@pytest.mark.parametrize(("lr", "localization"), [(1e-3, 200.0), (1e-7, 200.0), (1e-6, 1.0)])
def test_a_chain_that_starts_away_from_the_center_is_not_taken_for_diverged(
    lr: float, localization: float
) -> None:
    sampling = rllc.Sampling(num_draws=20, batch_size=4, control_variate=False, start="gaussian")
    weights, sampler = ["0:1", rllc.everything()], rllc.sgld(lr, localization)
    est = rllc.estimate(MODEL, TOKENS, weights, sampler=sampler, sampling=sampling, compute=QUIET)
    assert np.isfinite(est.value).all()


def test_a_chain_far_from_a_minimum_is_not_taken_for_diverged() -> None:
    """A steep slope at w* moves a chain fast and gives a large negative value, which is kept."""
    model = nn.Linear(3, 1)
    model.weight.data.fill_(3.0)
    est = rllc.estimate(
        model, torch.randn(64, 3), loss=square, sampling=rllc.Sampling(num_draws=50), compute=QUIET
    )
    assert est["everything"].value < -5
    assert est["everything"].status.endswith(
        "negative: w* is not a minimum for this data, or noise exceeds signal"
    )


# Bad input

GOOD = {"num_chains": 2, "num_draws": 2, "batch_size": 4, "control_variate": False}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (rllc.Sampling, "num_chains"),
        (rllc.Sampling, "num_draws"),
        (rllc.Sampling, "num_steps_bw_draws"),
        (rllc.Sampling, "batch_size"),
        (rllc.Compute, "runs_per_pass"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True])
def test_counts_must_be_positive_integers(kind: type, name: str, value: object) -> None:
    message = f"{kind.__name__}: `{name}` must be an integer of at least 1, got {value!r}"
    with pytest.raises(InputError, match=message):
        kind(**{name: value})


def test_burn_in_must_not_be_negative() -> None:
    with pytest.raises(
        InputError, match="`num_burnin_steps` must be an integer of at least 0, got -1"
    ):
        rllc.Sampling(num_burnin_steps=-1)


@pytest.mark.parametrize("n_beta", [0, -1.0, float("nan"), float("inf"), "30"])
def test_n_beta_must_be_positive(n_beta: object) -> None:
    with pytest.raises(
        InputError, match=r"`n_beta` must be a positive number, got .*the paper uses 30"
    ):
        rllc.Sampling(n_beta=n_beta)  # type: ignore[arg-type]


def test_autocast_is_bfloat16_or_none() -> None:
    with pytest.raises(InputError, match="`autocast` must be None or 'bfloat16', got 'float16'"):
        rllc.Sampling(autocast="float16")


def test_settings_say_what_was_sampled_and_not_where() -> None:
    settings = rllc.Sampling(num_draws=7).settings
    assert settings["num_draws"] == 7
    assert "n_beta" in settings
    assert not {"runs_per_pass", "device"} & set(settings)


def broken(change: Callable[[nn.Module], object]) -> nn.Module:
    model = tiny_model()
    change(model)
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"data": TOKENS[:3]},
            r"data 'tokens': it has 3 rows, fewer than a batch of 4; pass Sampling\(batch_size=3\)",
        ),
        (
            {"data": torch.full((8, 5), 11)},
            r"token id 11, but the model's vocabulary has 11 \(ids 0 to 10\).*own tokenizer",
        ),
        (
            {"data": tiny_tokens(pos=9)},
            r"rows have 9 positions, but the model's context is 8; .*context_length=8",
        ),
        ({"data": torch.randn(8, 5)}, r"loss of tokens needs.*torch.float32 \[8, 5\].*pass loss=f"),
        ({"data": (TOKENS.rows,)}, r"loss of tokens needs.*torch.int32 \[12, 7\]"),
        (
            {"data": (TOKENS.rows,), "loss": rllc.losses.distillation(GENERATOR)},
            "loss of tokens needs",
        ),
        ({"data": {}}, "the dict is empty"),
        ({"data": {"code": TOKENS, "prose": TOKENS[:2]}}, "data 'prose': it has 2 rows"),
        ({"weights": "1:7"}, "no such head; did you mean '1:"),
        ({"weights": rllc.parameters("blocks.0.attn.W_q")}, "did you mean 'blocks.0.attn.W_Q'"),
        ({"weights": []}, "the list is empty"),
        ({"weights": ["0:1", "0:1"]}, "each name more than one"),
        ({"weights": rllc.head("0:0") & rllc.head("0:1")}, "select nothing"),
        (
            {"weights": rllc.masks({"ln_final.w": torch.ones(1, dtype=torch.bool)})},
            r"must have the parameter's shape \(12,\)",
        ),
        (
            {"model": broken(lambda m: m.embed.W_E.data[0, :2].fill_(torch.nan))},
            "parameter 'embed.W_E' has 2 non-finite",
        ),
        (
            {"model": broken(lambda m: m.unembed.b_U.data[0].fill_(torch.inf))},
            "parameter 'unembed.b_U' has 1 non-finite",
        ),
        ({"model": nn.ReLU()}, "ReLU: it has no parameters"),
        ({"model": "runs/model"}, r"`model` must be a torch.nn.Module; rllc.load.*got 'runs"),
        ({"loss": "cross entropy"}, r"`loss` must be None, rllc.losses.distillation.*got 'cross"),
        ({"sampler": "sgld"}, r"`sampler` must be a sampler such as rllc.sgld.*got 'sgld'"),
        ({"sampler": rllc.sgld}, r"`sampler` must be a sampler such as rllc.sgld.*got function"),
        ({"sampling": {"num_draws": 3}}, r"`sampling` must be rllc.Sampling.*got dict"),
        (
            {"loss": lambda m, b: rllc.next_token(m, b) * torch.nan},
            r"at w\*, before any step, 24 of the 24 losses.*not finite",
        ),
    ],
)
@pytest.mark.parametrize(
    "call", [rllc.sample, rllc.estimate, lambda *a, **k: next(rllc.iterate(*a, **k))]
)
def test_what_cannot_work_is_refused_before_any_chain_runs(
    call: Callable, arguments: dict[str, object], message: str
) -> None:
    never = rllc.samplers.Sampler(
        "never", 1e-3, 0.0, SGLD.init, lambda *_: pytest.fail("a chain ran")
    )
    good = {
        "model": MODEL,
        "data": TOKENS,
        "weights": "0:1",
        "sampler": never,
        "sampling": rllc.Sampling(**GOOD),
    }
    given = good | arguments
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        call(given.pop("model"), given.pop("data"), given.pop("weights"), **given)
