"""What does not count takes no part in losses, gradients, λ̂ and their errors."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_documents import documents, gpt2, huggingface, padded
from tiny import QUIET, square, tiny_model
from torch import Tensor, nn

import rllc
from rllc.data import Tensors
from rllc.engine.bind import bind
from rllc.errors import InputError
from rllc.testing import check_loss

LENGTHS = (7, 3, 5, 4, 6, 3)
ROWS = documents(LENGTHS)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@dataclasses.dataclass(frozen=True)
class Unpadded:
    """The same rows, each without its padding; one a minibatch."""

    fingerprint: str
    name: str = "data"
    shape: tuple[int, ...] = (7,)

    def __len__(self) -> int:
        return len(ROWS)

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        (row,) = rows.tolist()
        return ROWS[row][None].to(device)


def sampling(**changes: Any) -> rllc.Sampling:
    settings = {"num_chains": 2, "num_draws": 4, "batch_size": 1, "num_probes": 0}
    settings["control_variate"] = False
    return rllc.Sampling(**settings | {"start": "center"} | changes)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "two layers"])
def test_padded_rows_give_the_llc_of_the_rows_themselves(kind: str, side: str) -> None:
    model = gpt2() if kind == "gpt2" else tiny_model()
    name = "*.h.0.attn.c_attn.weight" if kind == "gpt2" else "blocks.0.attn.W_Q"
    weights = rllc.parameters(name).named("q")
    data = rllc.data.as_data(padded(ROWS, side))
    options = {"sampling": sampling(), "compute": QUIET}
    with_padding = rllc.sample(model, data, weights, **options)
    alone = rllc.sample(model, Unpadded(data.fingerprint), weights, **options)
    assert np.abs(alone.loss - with_padding.loss).max() < 1e-5
    assert np.abs(alone.baseline - with_padding.baseline).max() < 1e-5
    one, other = (rllc.Estimate.of(draws) for draws in (with_padding, alone))
    assert one.value == pytest.approx(other.value, abs=1e-3)
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-2)


def unpadded_loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss of one's own: each row alone, NaN where nothing is predicted."""
    losses = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        row = ids[mask > 0]
        logs = module(row[None]).logits[0, :-1].float()
        each = F.cross_entropy(logs, row[1:], reduction="none")
        losses.append(F.pad(each, (0, len(ids) - 1 - len(each)), value=torch.nan))
    return torch.stack(losses)


def test_minibatches_of_several_rows_weigh_rows_by_their_tokens() -> None:
    model, weights = tiny_model(), rllc.parameters("blocks.0.attn.W_Q")
    data = padded(ROWS, "left")
    options = {"sampling": sampling(batch_size=3), "compute": QUIET}
    fast = rllc.sample(model, data, weights, **options)
    own = rllc.sample(model, data, weights, loss=unpadded_loss, **options)
    assert np.abs(fast.loss - own.loss).max() < 1e-5
    noise = "minibatch_variance"
    assert fast.observed[noise] == pytest.approx(own.observed[noise], rel=1e-2)
    means = [float(rllc.next_token(model, row[None]).detach().double().mean()) for row in ROWS]  # type: ignore[union-attr]
    counts = np.array(LENGTHS) - 1
    full = rllc.sample(
        model, data, weights, sampling=sampling(batch_size=len(ROWS), num_draws=1), compute=QUIET
    )
    assert full.baseline[0, 0, 0] == pytest.approx(np.average(means, weights=counts), abs=1e-5)


@pytest.mark.slow
def test_the_noise_of_minibatches_is_that_of_a_ratio() -> None:
    """Against the spread of the rise over many choices of rows, of which each counts otherwise."""
    from rllc.observables.minibatch_noise import _shares

    stream = np.random.default_rng(0)
    counts = stream.integers(1, 9, 400)
    counted = torch.arange(9) < torch.tensor(counts)[:, None]
    # Rows with few tokens scatter most, but weigh least.
    level = stream.normal(size=(400, 1)) * np.where(counts < 4, 3.0, 0.3)[:, None]
    rise = torch.tensor(1 + level + stream.normal(size=(400, 9)))
    batch = 40
    means, variances = [], []
    for _ in range(4000):
        rows = torch.tensor(stream.choice(400, batch, replace=False))
        means.append(float(rise[rows][counted[rows]].mean()))
        shares = _shares(rise[rows][None], counted[rows])
        variances.append(float(shares.var()) / batch * (1 - batch / 400))
    # 4000 choices know a variance to 2.2 %; the ratio's first order is off by about 1/40.
    assert np.mean(variances) == pytest.approx(np.var(means), rel=5 * 0.022 + 0.025)


def masked(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    inputs, labels = batch
    scores = module(inputs)
    losses = F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none", ignore_index=-100)
    return losses, labels != -100


def with_nan(module: nn.Module, batch: Any) -> Tensor:
    losses, mask = masked(module, batch)
    return torch.where(mask, losses, torch.nan)


def with_zeros(module: nn.Module, batch: Any) -> Tensor:
    return masked(module, batch)[0]


def tagging(ignored: float = 0.4) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    inputs = torch.randn(16, 5, 3)
    labels = torch.randint(4, (16, 5))
    labels[torch.rand(16, 5) < ignored] = -100
    labels[:, 0] = 1
    return nn.Linear(3, 4), (inputs, labels)


@pytest.mark.parametrize("loss", [masked, with_nan])
def test_a_loss_of_yours_may_say_what_counts(loss: Any) -> None:
    model, data = tagging()
    bound = bind(model, loss)
    at = bound.center(data, seed=0)
    truth = F.cross_entropy(model(data[0]).flatten(0, 1), data[1].flatten(), ignore_index=-100)
    assert float(at.mean) == pytest.approx(float(truth.detach()), rel=1e-6)
    check_loss(model, loss, data, batch_size=16)
    estimate = rllc.estimate(model, data, loss=loss, sampling=sampling(batch_size=8), compute=QUIET)
    assert np.isfinite(estimate.value).all()


def test_both_ways_to_say_it_are_one() -> None:
    model, data = tagging()
    first, second = (
        rllc.sample(model, data, loss=loss, sampling=sampling(batch_size=8), compute=QUIET)
        for loss in (masked, with_nan)
    )
    assert np.array_equal(first.loss, second.loss)


def test_zeros_at_ignored_positions_are_refused() -> None:
    model, data = tagging()
    for one_batch in (data, {"x": data[0], "labels": data[1]}):
        loss = (
            with_zeros
            if isinstance(one_batch, tuple)
            else lambda m, b: with_zeros(m, (b["x"], b["labels"]))
        )
        with pytest.raises(
            InputError, match=r"gives 0 at .* just those that are ignored"
        ) as caught:
            rllc.estimate(model, one_batch, loss=loss, sampling=sampling(), compute=QUIET)
        assert "Return (loss, mask)" in str(caught.value)

    def shifted(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = module(batch["input_ids"]).logits[:, :-1]
        losses = F.cross_entropy(logits.movedim(-1, 1), batch["input_ids"][:, 1:], reduction="none")
        return losses * batch["attention_mask"][:, 1:]

    with pytest.raises(InputError, match="ignored by 'attention_mask'"):
        rllc.estimate(
            tiny_model(), padded(ROWS, "right"), loss=shifted, compute=QUIET, sampling=sampling()
        )


def test_losses_that_are_rightly_zero_are_not_refused() -> None:
    model, (inputs, labels) = tagging(ignored=0.0)

    def hinge(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return module(batch[0]).relu().sum((1, 2)) * (batch[1][:, 1] > 1)

    rllc.sample(
        model, (inputs, labels), loss=hinge, sampling=sampling(batch_size=16), compute=QUIET
    )


def test_two_classes_called_1_and_minus_1_are_not_ignored() -> None:
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    y = torch.where(model(x)[:, 0] > 0.2, 1, -1).detach()

    def hinge(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        # Zero for all examples of the second class, as it happens.
        margin = module(batch[0])[:, 0].detach() * 0 + (batch[1] < 0) * 2.0
        return (1 - margin).relu() + 0 * module(batch[0])[:, 0]

    rllc.sample(model, (x, y), loss=hinge, sampling=sampling(batch_size=16), compute=QUIET)


@pytest.mark.parametrize("loss", [masked, with_nan, rllc.losses.classification])
def test_a_row_with_nothing_to_predict_is_refused(loss: Any) -> None:
    model, (inputs, labels) = tagging()
    labels[3] = -100
    data: Any = (inputs, labels)
    if loss is rllc.losses.classification:
        loss, data = (
            rllc.losses.classification,
            {"x": inputs[:, 0], "labels": labels[:, 1] * 0 - 100},
        )
        data["labels"][:3] = 1
    with pytest.raises(InputError, match="nothing to predict"):
        rllc.sample(model, data, loss=loss, sampling=sampling(batch_size=16), compute=QUIET)


def test_rows_of_tokens_with_nothing_to_predict_are_named_before_anything_runs() -> None:
    batch = padded(documents((5, 1, 4, 1)), "right")
    for model in (tiny_model(), gpt2()):
        with pytest.raises(
            InputError, match=r"2 of its 4 rows have nothing to predict \(rows 1, 3"
        ):
            rllc.estimate(model, batch, sampling=sampling(), compute=QUIET)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0] = -100
    with pytest.raises(InputError, match=r"3 of its 4 rows have nothing to predict \(rows 0, 1, 3"):
        rllc.estimate(model, batch | {"labels": labels}, sampling=sampling(), compute=QUIET)


@pytest.mark.usefixtures("few_looks")
def test_token_results_have_nan_at_what_does_not_count() -> None:
    for model in (tiny_model(), gpt2()):
        batch = padded(ROWS, "left")
        weights = rllc.parameters("*.0.*attn*").named("attn")
        observe = {
            "fixed": rllc.losses_on(batch),
            "all": rllc.losses_on(batch, keep="all"),
            "moments": rllc.losses_on(batch, keep="moments"),
            "own": rllc.observables.minibatch_losses(),
        }
        draws = rllc.sample(
            model, batch, weights, sampling=sampling(batch_size=3), observe=observe, compute=QUIET
        )
        counted = batch["attention_mask"][:, :-1].numpy() == 1
        assert (np.isnan(draws.observed["fixed"]) == ~counted).all()
        assert (np.isnan(draws.observed["all"]) == ~counted).all()
        assert (np.isnan(draws.observed["moments"]) == ~counted).all()
        assert np.isnan(draws.observed["own"]).any()
        assert draws.observed["all"].shape[3:] == (len(ROWS), 7)


def test_a_mask_must_be_of_zeros_and_ones() -> None:
    model, data = tagging()
    for mask in (torch.full((16, 5), 0.5), torch.ones(16), None):

        def loss(module: nn.Module, batch: Any, mask: Any = mask) -> Any:
            return masked(module, batch)[0], mask

        with pytest.raises(InputError, match="the mask must be of the losses' shape"):
            rllc.sample(model, data, loss=loss, sampling=sampling(), compute=QUIET)


def test_nan_of_a_broken_model_is_not_taken_for_padding() -> None:
    model = gpt2()
    embedding = model.get_parameter("transformer.wte.weight")
    # Too large for float32 further on, but finite itself.
    embedding.data[7] = 1e38
    rows = torch.stack(documents((6, 6, 6, 6)))
    rows[0, 2] = 7
    with pytest.raises(InputError, match="not finite"):
        rllc.sample(model, rows, sampling=sampling(batch_size=4), compute=QUIET)


def test_curvature_is_that_of_what_counts() -> None:
    from rllc.analysis.curvature import Probing, fisher_trace, hessian_trace

    model, data = nn.Linear(3, 1, bias=False), (torch.randn(8, 4, 3), torch.rand(8, 4) < 0.5)
    data[1][:, 0] = True

    def square_of_some(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return module(batch[0])[..., 0] ** 2, batch[1]

    exact = 2 * float(data[0][data[1]].square().sum(-1).mean())
    options = {
        "loss": square_of_some,
        "progress": False,
        "probing": Probing(num_probes=200, seed=1),
    }
    trace = hessian_trace(model, data, **options)["everything"]
    assert abs(trace.value - exact) < 6 * trace.standard_error
    x, kept = data[0][data[1]], model.weight.detach()[0]
    fisher = float(((2 * (x @ kept))[:, None] * x).square().sum(1).mean())
    found = fisher_trace(model, data, labels="data", **options)["everything"]
    assert abs(found.value - fisher) < 6 * found.standard_error
    tokens = padded(ROWS, "left")
    two_layers = tiny_model()
    weights = rllc.parameters("blocks.0.attn.W_Q")
    probing = Probing(num_probes=4)
    by_model = fisher_trace(two_layers, tokens, weights, probing=probing, progress=False)
    assert np.isfinite(by_model.value).all()


class Encoder(nn.Module):
    """PyTorch's own encoder with a padding mask; without gradients it has a fast path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.out(self.encoder(x, src_key_padding_mask=padding))[..., 0]


def mean_of_row(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Padding has a part in it, which is bad style, but the same for draws and baseline."""
    return module(*batch).square().mean(1)


def encoder_data() -> tuple[Tensor, Tensor]:
    lengths = torch.randint(2, 7, (16,))
    return torch.randn(16, 6, 8), torch.arange(6) >= lengths[:, None]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_baseline_and_draws_are_of_one_arithmetic() -> None:
    model, data = Encoder().eval(), encoder_data()
    # The truth: as in training.
    truth = float(mean_of_row(model, data).mean())
    with torch.no_grad():
        assert abs(float(mean_of_row(model, data).mean()) - truth) > 1e-3  # the fast path
    # The outer weights only: the encoder itself needs no gradient.
    for weights in (None, rllc.parameters("out.*")):
        draws = rllc.sample(
            model,
            data,
            weights,
            loss=mean_of_row,
            compute=QUIET,
            sampling=sampling(batch_size=16, num_draws=1),
            sampler=rllc.sgld(lr=1e-12),
        )
        assert draws.baseline[0, 0, 0] == pytest.approx(truth, abs=1e-6)
        assert draws.loss[0] == pytest.approx(draws.baseline[0], abs=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_run_at_the_center_must_have_the_loss_at_the_center(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x)[:, 0] + self.calls

    class Random(Counts):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)[:, 0] + float(np.random.default_rng().normal())

    def square_of(module: nn.Module, x: Tensor) -> Tensor:
        return module(x) ** 2

    def asks(module: nn.Module, x: Tensor) -> Tensor:
        losses = module(x)[:, 0] ** 2
        return losses + 1 if losses.requires_grad else losses

    for model in (Counts(), Random()):
        again = "the loss at w\\* is not the same when it is evaluated again"
        with pytest.raises(InputError, match=again):
            rllc.sample(
                model, torch.randn(8, 3), loss=square_of, sampling=sampling(), compute=QUIET
            )
    monkeypatch.setattr("rllc.engine.module._STACKED_FLOPS", 0.0)
    linear = nn.Linear(3, 1)
    with pytest.raises(InputError, match="at w\\* a run has the loss") as caught:
        rllc.sample(linear, torch.randn(8, 3), loss=asks, sampling=sampling(), compute=QUIET)
    assert "before any step λ̂ would be off by" in str(caught.value)
    assert "NumPy" in str(caught.value)


def test_dropout_and_batchnorm_in_training_mode_are_the_same_for_both() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    train = sampling(batch_size=8, train_mode=True, num_draws=2)
    draws = rllc.sample(
        model,
        torch.randn(16, 3),
        loss=square,
        sampling=train,
        compute=QUIET,
        sampler=rllc.sgld(lr=1e-12),
    )
    assert draws.loss == pytest.approx(draws.baseline, abs=1e-4)


def test_masked_lm_is_the_same_padded_or_not() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    for name in ("Bert", "Roberta"):
        model = huggingface(f"{name}ForMaskedLM", f"{name}Config", **sizes)
        rows = documents(LENGTHS, lowest=2)
        batch = padded(rows, "left")
        labels = torch.full_like(batch["input_ids"], -100)
        for row in range(len(rows)):
            at = int(batch["attention_mask"][row].nonzero()[1])
            labels[row, at] = batch["input_ids"][row, at]
            batch["input_ids"][row, at] = 1
        losses, counted = rllc.losses.masked_lm(model, batch | {"labels": labels})
        assert counted.equal(labels != -100)
        for row in range(len(rows)):
            ids = batch["input_ids"][row][batch["attention_mask"][row] > 0]
            target = labels[row][labels[row] != -100]
            with torch.no_grad():
                logits = model(ids[None]).logits[0, 1]
            expected = F.cross_entropy(logits[None], target)
            assert float(losses[row][counted[row]]) == pytest.approx(float(expected), abs=2e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            estimate = rllc.estimate(
                model,
                batch | {"labels": labels},
                rllc.parameters("*layer.0.*key.weight").named("k"),
                loss=rllc.losses.masked_lm,
                sampling=sampling(batch_size=3),
                compute=QUIET,
            )
        assert np.isfinite(estimate.value).all()


def test_a_model_that_does_not_hide_padding_is_refused() -> None:
    class Bag(nn.Module):
        """Looks at all tokens, and takes no mask."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 4), nn.Linear(4, 11)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            return self.out(x + x.mean(1, keepdim=True))

    batch = padded(ROWS, "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(InputError, match="another loss when it is padded behind"):
        rllc.sample(
            Bag(),
            batch | {"labels": labels},
            loss=rllc.losses.masked_lm,
            sampling=sampling(),
            compute=QUIET,
        )


def test_bert_under_the_next_token_loss_is_warned_of() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    model = huggingface("BertForMaskedLM", "BertConfig", **sizes)
    weights = rllc.parameters("*key.weight").named("k")
    for data in (torch.stack(documents((6, 6, 6))), padded(ROWS, "right")):
        with pytest.warns(UserWarning, match="BertForMaskedLM is bidirectional"):
            rllc.sample(model, data, weights, sampling=sampling(num_draws=1), compute=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rllc.sample(
            gpt2(),
            data,
            rllc.parameters("*c_attn.weight").named("k"),
            sampling=sampling(num_draws=1),
            compute=QUIET,
        )


def test_a_model_that_draws_random_numbers_is_not_called_bidirectional() -> None:
    model = gpt2()
    norm = model.get_submodule("transformer.ln_f")
    norm.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    weights = rllc.parameters("*c_attn.weight").named("k")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = torch.stack(documents((6, 6, 6)))
        rllc.sample(model, data, weights, sampling=sampling(num_draws=1), compute=QUIET)


def test_fields_are_part_of_what_is_refined() -> None:
    ids, ones = torch.ones(4, 3, dtype=torch.long), torch.ones(4, 3, dtype=torch.long)
    first = Tensors((ids, ones), fields=("input_ids", "attention_mask"))
    second = Tensors((ids, ones), fields=("input_ids", "labels"))
    assert first.fingerprint != second.fingerprint
    with pytest.raises(InputError, match="expected one name for each of 2 parts"):
        Tensors((ids, ones), fields=("input_ids",))


# Masks and fields of other kinds.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_mask": torch.tensor([[0.0, 0.0, 0.0, -torch.inf]] * 8)},
            r"must be 1 at tokens and 0 at padding, .* got -inf. Of a mask that is added",
        ),
        (
            {"attention_mask": torch.tensor([[1.0, 1.0, 0.0, -1e9]] * 8)},
            r"got -1e\+09. Of a mask that is added to attention scores, .* give mask == 0",
        ),
        ({"attention_mask": torch.zeros(8, 4)}, "8 of its 8 rows have nothing to predict"),
        (
            {"document_ids": torch.tensor([[0, 0, 1, 1]] * 8)},
            r"does not take 'document_ids', .* number the documents of a row 1, 2, … in `atten",
        ),
    ],
)
def test_masks_of_other_kinds_are_refused_with_what_to_give(changes, message) -> None:
    ids = torch.randint(1, 11, (8, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=message):
        rllc.sample(tiny_model(), {"input_ids": ids} | changes, sampling=sampling(), compute=QUIET)
