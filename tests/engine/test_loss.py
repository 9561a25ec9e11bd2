"""Losses and gradients of many runs at once: against one model at a time, differentiated by plain
autograd."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tiny import QUIET, square, tiny_model, tiny_tokens
from torch import Tensor, nn

import rllc
from rllc.engine.attention_only import TokenLoss
from rllc.engine.bind import bind
from rllc.engine.layout import center, groups
from rllc.engine.linear_deltas import LinearDeltas
from rllc.errors import InputError
from rllc.losses.contract import Runs
from rllc.models import AttentionOnly, AttentionOnlyConfig
from rllc.testing import check_loss, unchanged
from rllc.weights import refinement as refine

TOKENS = tiny_tokens()
BATCH = TOKENS.rows[:4].long()
CHOSEN = {
    "a head of each layer": lambda m: [rllc.head("0:1"), rllc.head("1:2")],
    "all heads": rllc.heads,
    "everything": lambda m: [rllc.everything()],
    "two heads": lambda m: [
        rllc.head("0:0") | rllc.head("0:2"),
        rllc.head("0:1") | rllc.head("1:1"),
    ],
    "layers": lambda m: [rllc.layer(0), rllc.layer(1)],
    "half of some tensors": lambda m: [half(m, 0), half(m, 1)],
    "columns of a head": lambda m: [
        rllc.parameters("blocks.0.attn.W_Q", index=(1, slice(None), 2))
    ],
    "keys of one head and a bias": lambda m: [
        rllc.parameters("blocks.1.attn.W_K", index=0) | rllc.parameters("blocks.1.attn.b_O")
    ],
    "ends": lambda m: [
        rllc.parameters("*embed.W_?"),
        rllc.parameters("ln_final.*"),
        rllc.parameters("unembed.*"),
    ],
    "positions": lambda m: [rllc.parameters("pos_embed.W_pos", index=slice(0, 3))],
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def half(model: nn.Module, seed: int) -> rllc.Weights:
    stream = torch.Generator().manual_seed(seed)
    names = ("embed.W_E", "blocks.0.ln1.w", "blocks.1.attn.W_V", "blocks.1.attn.b_K", "unembed.W_U")
    shapes = {name: model.get_parameter(name).shape for name in names}
    return rllc.masks(
        {name: torch.rand(shape, generator=stream) < 0.5 for name, shape in shapes.items()},
        f"half {seed}",
    )


@functools.cache
def model_of(positions: str) -> AttentionOnly:
    return tiny_model(positions=positions)


def token_loss(model: AttentionOnly) -> Tensor:
    logits = model(BATCH).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), BATCH[:, 1:].flatten(), reduction="none").view(
        len(BATCH), -1
    )


def soft_loss(model: AttentionOnly, generator: AttentionOnly) -> Tensor:
    with torch.no_grad():
        target = generator(BATCH).logits[:, :-1].softmax(-1)
    return -(target * model(BATCH).logits[:, :-1].log_softmax(-1)).sum(-1)


def naive(
    model: nn.Module, weights: rllc.Weights, position: Tensor, loss: object
) -> tuple[Tensor, Tensor]:
    """Losses ``[batch, pos]`` and gradient ``[dim]`` of one run, on a copy of the model."""
    moved = copy.deepcopy(model).double()
    masks, start = weights.masks(model), 0
    for name in sorted(masks):
        count = int(masks[name].sum())
        moved.get_parameter(name).data[masks[name]] = position[start : start + count].double()
        start += count
    each = loss(moved)  # type: ignore[operator]
    each.mean().backward()
    return each.detach(), torch.cat(
        [moved.get_parameter(name).grad[masks[name]] for name in sorted(masks)]
    )


def assert_equals_naive(
    model: nn.Module, bound: object, chosen: list[rllc.Weights], loss: object, batch: object
) -> None:
    at = bound.center(batch, seed=0)  # type: ignore[attr-defined]
    assert torch.allclose(
        at.losses.double(), loss(copy.deepcopy(model).double()).detach(), atol=2e-6
    )  # type: ignore[operator]
    for group in groups([w.masks(model) for w in chosen]):
        member = torch.tensor([m for m in range(len(group.members)) for _ in range(2)])
        position = center(group, dict(model.named_parameters()))[member]
        position += 0.2 * torch.randn(position.shape, generator=torch.Generator().manual_seed(1))
        runs = bound.runs(group, member, position, at, batch, gradient=True, each=True)
        plain = bound.runs(group, member, position, at, batch, gradient=False, each=False)
        assert plain.gradient is None
        assert plain.each is None
        assert torch.allclose(plain.losses, runs.losses, rtol=1e-6)
        for run, m in enumerate(member.tolist()):
            each, gradient = naive(model, chosen[group.members[m]], position[run], loss)
            assert torch.allclose(runs.each[run].double(), each, atol=2e-5)
            assert abs(float(runs.losses[run] - each.mean())) < 1e-6
            assert float((runs.gradient[run].double() - gradient).abs().max()) < 2e-6 * max(
                1, float(gradient.abs().max())
            )


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
@pytest.mark.parametrize("case", CHOSEN)
def test_token_losses_of_all_runs_equal_one_model_at_a_time(case: str, positions: str) -> None:
    model = model_of(positions)
    bound = bind(model, None)
    assert isinstance(bound, TokenLoss)
    assert_equals_naive(model, bound, CHOSEN[case](model), token_loss, BATCH)


@pytest.mark.parametrize(
    "case", ["a head of each layer", "everything", "half of some tensors", "ends"]
)
def test_distillation_of_all_runs_equals_one_model_at_a_time(case: str) -> None:
    model, generator = (
        model_of("shortformer"),
        tiny_model(5, n_layers=1, d_model=8, positions="standard"),
    )
    bound = bind(model, rllc.losses.distillation(generator))
    assert isinstance(bound, TokenLoss)
    assert_equals_naive(
        model,
        bound,
        CHOSEN[case](model),
        lambda m: soft_loss(m, copy.deepcopy(generator).double()),
        BATCH,
    )


@pytest.mark.parametrize("case", ["a head of each layer", "everything", "half of some tensors"])
def test_any_module_equals_one_model_at_a_time(case: str) -> None:
    model = model_of("shortformer")
    bound = bind(model, lambda module, batch: rllc.next_token(module, batch))
    assert isinstance(bound, LinearDeltas)
    assert_equals_naive(model, bound, CHOSEN[case](model), token_loss, BATCH)


def test_soft_targets_that_are_one_hot_are_tokens() -> None:
    class Certain(nn.Module):
        """Gives probability 1 to the token that comes."""

        def forward(self, batch: Tensor) -> Tensor:
            return 1e4 * F.one_hot(batch.roll(-1, 1), 11).float()

    model = model_of("shortformer")
    soft = rllc.sample(
        model,
        TOKENS,
        "1:0",
        loss=rllc.losses.distillation(Certain()),
        sampling=SHORT,
        compute=QUIET,
    )
    hard = rllc.sample(model, TOKENS, "1:0", sampling=SHORT, compute=QUIET)
    assert abs(soft.loss - hard.loss).max() < 1e-5
    assert abs(soft.baseline - hard.baseline).max() < 1e-5


def test_distillation_is_the_kl_divergence_plus_the_generators_entropy() -> None:
    model, generator = model_of("shortformer"), tiny_model(5)
    p, q = (m(BATCH).logits[:, :-1].double() for m in (generator, model))
    entropy = -(p.softmax(-1) * p.log_softmax(-1)).sum(-1)
    kl = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    expected = kl + entropy
    assert torch.allclose(
        bind(model, rllc.losses.distillation(generator)).center(BATCH, 0).losses.double(),
        expected,
        atol=1e-5,
    )
    assert torch.allclose(
        rllc.losses.distillation(generator)(model, BATCH).double(), expected, atol=1e-5
    )


def test_a_model_is_its_own_best_student() -> None:
    model = model_of("shortformer")
    bound = bind(model, rllc.losses.distillation(model))
    (group,) = groups([rllc.everything().masks(model)])
    origin = center(group, dict(model.named_parameters()))
    runs = bound.runs(
        group, torch.tensor([0]), origin, bound.center(BATCH, 0), BATCH, gradient=True, each=False
    )
    assert float(runs.gradient.abs().max()) < 1e-6


def test_chunks_of_positions_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("shortformer")
    bound = bind(model, None)
    (group,) = groups([rllc.everything().masks(model)])
    origin = center(group, dict(model.named_parameters()))

    def evaluate() -> Runs:
        return bound.runs(
            group,
            torch.tensor([0]),
            origin,
            bound.center(BATCH, 0),
            BATCH,
            gradient=True,
            each=True,
        )

    whole = evaluate()
    monkeypatch.setattr(
        "rllc.engine.unembedding.chunks",
        lambda count, *_: [slice(i, min(i + 5, count)) for i in range(0, count, 5)],
    )
    parts = evaluate()
    assert torch.allclose(whole.each, parts.each, atol=1e-6)
    assert torch.allclose(whole.gradient, parts.gradient, atol=1e-6)


def test_losses_pass_the_check_for_people_who_extend_rllc() -> None:
    for weights in (None, rllc.head("0:1"), rllc.layer(1)):
        check_loss(model_of("standard"), None, TOKENS, weights)
    regression = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    data = torch.randn(8, 3), torch.randn(8, 2)
    check_loss(regression, lambda m, b: (m(b[0]) - b[1]) ** 2, data)
    check_loss(regression, lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="none").sum(1), data)


def test_tied_weights_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model, x = Tied(), torch.randn(6, 3)
    assert_equals_naive(
        model,
        bind(model, square),
        [rllc.everything()],
        lambda m: square(m, x.to(next(m.parameters()).dtype)),
        x,
    )


def test_large_work_runs_one_after_the_other_and_small_work_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(6, 3)
    found = []
    for limit in (0, 10**12):
        monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", limit)
        found.append(rllc.sample(model, x, loss=square, sampling=SHORT, compute=QUIET))
    assert abs(found[0].loss - found[1].loss).max() < 1e-6


def test_a_loss_that_looks_at_values_is_run_one_by_one() -> None:
    def branching(module: nn.Module, x: Tensor) -> Tensor:
        y = module(x)[:, 0]
        return y**2 if float(y.detach().sum()) < 1e9 else y

    check_loss(nn.Linear(3, 1), branching, torch.randn(6, 3))


def test_buffers_are_left_alone_in_train_mode() -> None:
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval(),
        torch.randn(8, 3),
    )
    with unchanged(model):
        rllc.sample(
            model, x, loss=square, sampling=rllc.Sampling(**FEW, train_mode=True), compute=QUIET
        )


def test_train_mode_and_eval_mode_reach_the_module() -> None:
    model, seen = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)), set()

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        seen.add((module.training, module[1].training))
        return square(module, x)

    for train_mode in (False, True):
        seen.clear()
        rllc.sample(
            model,
            torch.randn(8, 3),
            loss=loss,
            sampling=rllc.Sampling(**FEW, train_mode=train_mode),
            compute=QUIET,
        )
        assert seen == {(train_mode, train_mode)}


def test_dropout_in_train_mode_is_the_same_for_runs_and_baseline() -> None:
    """With no step worth the name the chains stay at w*, where only the dropout mask could
    differ."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    x = torch.randn(16, 3)
    still, sampling = (
        rllc.sgld(lr=1e-16),
        rllc.Sampling(num_draws=6, batch_size=4, control_variate=False, train_mode=True),
    )
    with unchanged(model):
        draws = rllc.sample(model, x, loss=square, sampler=still, sampling=sampling, compute=QUIET)
        again = rllc.sample(model, x, loss=square, sampler=still, sampling=sampling, compute=QUIET)
    assert abs(draws.loss - draws.baseline).max() < 1e-6
    assert (draws.loss == again.loss).all()
    plain = rllc.sample(
        model,
        x,
        loss=square,
        sampler=still,
        sampling=rllc.Sampling(num_draws=6, batch_size=4, control_variate=False),
    )
    assert abs(draws.baseline - plain.baseline).max() > 1e-3  # dropout was on


FEW = {"num_chains": 2, "num_draws": 3, "batch_size": 4, "control_variate": False}
SHORT = rllc.Sampling(**FEW)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda m, x: square(m, x).mean(), r"shape \(\)"),
        (lambda m, x: square(m, x)[:2], r"batch = 4, got shape \(2,\)"),
        (lambda m, x: square(m, x)[:, None, None], r"shape \(4, 1, 1\)"),
        (lambda m, x: 0.5, "got float"),
        (lambda m, x: None, "got NoneType"),
    ],
)
def test_losses_of_the_wrong_shape_are_refused(loss: object, got: str) -> None:
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    with (
        unchanged(model),
        pytest.raises(
            InputError, match=rf"per-example \[batch\] or per-token.*{got}.*reduction='none'"
        ),
    ):
        rllc.sample(model, x, loss=loss, sampling=SHORT, compute=QUIET)  # type: ignore[arg-type]


def test_losses_that_cannot_be_differentiated_are_refused() -> None:
    def detached(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return square(module, x)

    two = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    with pytest.raises(InputError, match=r"does not depend on the weights that move.*no_grad"):
        rllc.sample(
            nn.Linear(3, 1), torch.randn(8, 3), loss=detached, sampling=SHORT, compute=QUIET
        )
    with pytest.raises(InputError, match="does not depend on the weights that move"):
        rllc.sample(
            two,
            torch.randn(8, 3),
            rllc.parameters("unused.*"),
            loss=lambda m, x: square(m["used"], x),
            sampling=SHORT,
        )


def test_the_default_loss_needs_logits() -> None:
    with pytest.raises(
        InputError,
        match=r"maps token ids \[batch, pos\] to logits.*Sequential gave Tensor.*Pass loss=f",
    ):
        rllc.sample(
            nn.Sequential(nn.Embedding(11, 3), nn.Flatten()), TOKENS, sampling=SHORT, compute=QUIET
        )

    class Wordless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    with pytest.raises(InputError, match="Wordless gave dict"):
        rllc.sample(Wordless(), TOKENS, sampling=SHORT, compute=QUIET)


def test_a_generating_model_of_another_vocabulary_is_refused() -> None:
    other = tiny_model(d_vocab=13)
    for model in (model_of("shortformer"), Logits(model_of("shortformer"))):
        with pytest.raises(InputError, match=r"distillation.*13.*11"):
            rllc.sample(
                model,
                TOKENS,
                "0:0" if model is model_of("shortformer") else None,
                loss=rllc.losses.distillation(other),
                sampling=SHORT,
                compute=QUIET,
            )


class Logits(nn.Module):
    """A model that is not an AttentionOnly, with logits as its output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Tensor) -> Tensor:
        return self.inner(batch).logits


def test_any_module_with_logits_has_the_default_loss() -> None:
    model = model_of("shortformer")
    wrapped = rllc.sample(
        Logits(model), TOKENS, rllc.parameters("*W_U"), sampling=SHORT, compute=QUIET
    )
    assert isinstance(bind(Logits(model), None), LinearDeltas)
    direct = rllc.sample(model, TOKENS, rllc.parameters("*W_U"), sampling=SHORT, compute=QUIET)
    assert abs(wrapped.baseline - direct.baseline).max() < 1e-6


def test_a_module_that_only_looks_like_an_attention_only_is_a_module() -> None:
    class Lookalike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.activations = nn.Linear(3, 4), nn.Tanh()

        def forward(self, batch: Tensor) -> Tensor:
            return self.activations(self.hidden(F.one_hot(batch, 3).float()))

    rows = torch.randint(3, (8, 5))
    draws = rllc.sample(Lookalike(), rows, sampling=SHORT, compute=QUIET)
    assert abs(draws.loss).max() < 10


def test_an_attention_only_with_a_forward_of_its_own_is_evaluated_by_it() -> None:
    class Colder(AttentionOnly):
        def forward(self, input_ids: Tensor, **kwargs: object) -> Tensor:  # type: ignore[override]
            return 0.5 * super().forward(input_ids, **kwargs).logits

    model = Colder(model_of("shortformer").config)
    model.load_state_dict(model_of("shortformer").state_dict())
    observe = {
        "losses": rllc.Observable(
            lambda moment: moment.baseline_by_row.expand(2, -1, -1), ("batch", "pos")
        ),
        "rows": rllc.observables.minibatch_rows(),
    }
    draws = rllc.sample(model, TOKENS, "0:1", sampling=SHORT, observe=observe, compute=QUIET)
    rows = TOKENS.rows[torch.from_numpy(draws.observed["rows"][0, 0, 0])].long()
    expected = F.cross_entropy(
        0.5 * model_of("shortformer")(rows).logits[:, :-1].mT, rows[:, 1:], reduction="none"
    )
    assert torch.allclose(torch.from_numpy(draws.observed["losses"][0, 0, 0]), expected, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.bfloat16]
)
def test_models_of_other_precision_are_sampled_with_float32_chains(dtype: torch.dtype) -> None:
    model = model_of("shortformer")
    other = copy.deepcopy(model).to(dtype)
    found = [
        rllc.sample(m, TOKENS, ["0:1", "1:1"], sampling=SHORT, compute=QUIET)
        for m in (model, other)
    ]
    assert abs(found[0].loss - found[1].loss).max() < (0.1 if dtype == torch.bfloat16 else 1e-5)


def test_losses_know_how_much_memory_a_run_takes() -> None:
    model = model_of("shortformer")
    head, everything = (groups([w.masks(model)])[0] for w in (rllc.head("1:0"), rllc.everything()))
    for bound in (bind(model, None), bind(model, lambda m, b: rllc.next_token(m, b))):
        assert 0 < bound.memory(head, (4, 7)) < bound.memory(everything, (4, 7))


def test_heads_of_the_last_block_take_less_memory() -> None:
    """What they write is as wide as they are, and so is nearly all that is kept of them."""
    config = AttentionOnlyConfig(n_layers=2, d_model=64, n_heads=8, d_head=8, n_ctx=32, d_vocab=20)
    model = AttentionOnly(config)
    one, embedding = rllc.head("1:0"), rllc.parameters("embed.W_E")
    selections = [one, one | rllc.head("1:3"), rllc.head("0:0"), one | embedding]
    moved = [groups([weights.masks(model)])[0] for weights in selections]
    num_heads = []
    for group in moved:
        rows = {slot.name: slot.rows for slot in group.slots}
        num_heads.append(model.num_last_heads(rows))
    assert num_heads == [1, 2, 0, 0]
    last, two, first, _ = (bind(model, None).memory(group, (8, 32)) for group in moved)
    assert last < two < first / 3


def test_a_tuple_of_inputs_reaches_the_loss_as_it_is() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
    data = {"pairs": (x, y)}
    draws = rllc.sample(
        model,
        data,
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
        sampling=rllc.Sampling(num_draws=2, batch_size=8, control_variate=False),
        compute=QUIET,
    )
    expected = F.cross_entropy(model(x), y).item()  # the batch is all rows, in another order
    assert abs(draws.baseline - expected).max() < 1e-6
    assert len(refine.product(None, data)[0].data) == 8
