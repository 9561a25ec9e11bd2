"""Losses by name: means over what they are asked, as PyTorch has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_documents import documents, gpt2, huggingface, padded
from tiny import QUIET, tiny_model
from torch import Tensor, nn

import rllc
from rllc.errors import InputError
from rllc.losses import by_name as losses
from rllc.testing import check_loss

ONE = rllc.Sampling(
    num_chains=2, num_draws=2, batch_size=4, num_probes=0, start="center", control_variate=False
)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def counted_mean(result: Any) -> float:
    each, mask = result
    return float(each[mask].mean().detach())


def test_classification_of_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5))
    images, labels = torch.randn(8, 1, 4, 4), torch.randint(5, (8,))
    expected = F.cross_entropy(model(images), labels).detach()
    for data in ((images, labels), (images, labels[:, None]), {"image": images, "label": labels}):
        each, mask = losses.classification(model, data)  # type: ignore[arg-type]
        assert each.shape == mask.shape == (8,)
        assert counted_mean((each, mask)) == pytest.approx(float(expected), rel=1e-6)
    check_loss(model, losses.classification, (images, labels))
    labels[2] = -100
    expected = F.cross_entropy(model(images), labels).detach()
    result = losses.classification(model, (images, labels))
    assert counted_mean(result) == pytest.approx(float(expected), rel=1e-6)


def test_classification_of_pixels_and_of_tokens() -> None:
    model, images = nn.Conv2d(2, 3, 1), torch.randn(4, 2, 3, 3)
    labels = torch.randint(3, (4, 3, 3))
    labels[0, 0] = -100
    each, mask = losses.classification(model, (images, labels))
    assert each.shape == (4, 9)
    expected = F.cross_entropy(model(images), labels).detach()
    assert counted_mean((each, mask)) == pytest.approx(float(expected), rel=1e-6)
    tagger = huggingface(
        "BertForTokenClassification",
        "BertConfig",
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    rows = documents((7, 3, 5))
    batch = padded(rows, "left")
    tags = (batch["input_ids"] % 2).masked_fill(batch["attention_mask"] == 0, -100)
    each, mask = losses.classification(tagger, batch | {"labels": tags})
    assert mask.equal(tags != -100)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            alone = F.cross_entropy(tagger(ids[None]).logits[0], ids % 2, reduction="none")
        assert torch.allclose(each[row][mask[row]], alone, atol=2e-5)


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_classification_of_padded_texts(kind: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "Bert":
        sizes["intermediate_size"] = 24
    else:
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    model = huggingface(f"{kind}ForSequenceClassification", f"{kind}Config", **sizes)
    rows, labels = documents((7, 3, 5, 4)), torch.tensor([0, 1, 1, 0])
    for side in ("left", "right"):
        batch = padded(rows, side) | {"labels": labels}
        each, _ = losses.classification(model, batch)
        for row, ids in enumerate(rows):
            with torch.no_grad():
                alone = F.cross_entropy(model(ids[None]).logits, labels[row : row + 1])
            assert float(each[row]) == pytest.approx(float(alone), abs=2e-5)
        weights = rllc.parameters("*score*" if kind == "GPT2" else "*classifier*").named("out")
        options = {"loss": losses.classification, "sampling": ONE, "compute": QUIET}
        assert np.isfinite(rllc.estimate(model, batch, weights, **options).value).all()  # type: ignore[arg-type]


def test_losses_of_tokens_take_integers_of_any_size() -> None:
    """The rows of Tokens are int32."""
    model = nn.Embedding(5, 5)
    rows = torch.randint(5, (3, 4), dtype=torch.int32)
    assert losses.next_token(model, rows).equal(losses.next_token(model, rows.long()))
    batch = {"input_ids": rows, "labels": rows.masked_fill(rows == 2, -100)}
    whole = {name: value.long() for name, value in batch.items()}
    for loss in (losses.next_token, losses.masked_lm):
        for part, expected in zip(loss(model, batch), loss(model, whole), strict=True):
            assert part.equal(expected)


def test_regression_is_the_mean_squared_error() -> None:
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    for y in (torch.randn(8), torch.randn(8, 1)):
        expected = F.mse_loss(model(x)[:, 0], y.flatten())
        assert counted_mean(losses.regression(model, (x, y))) == pytest.approx(float(expected))
        check_loss(model, losses.regression, (x, y))
    several, y = nn.Linear(3, 4), torch.randn(8, 4)
    assert counted_mean(losses.regression(several, (x, y))) == pytest.approx(
        float(F.mse_loss(several(x), y))
    )
    y[0, 1] = torch.nan
    kept = ~y.isnan()
    expected = (several(x) - y).square()[kept].mean()
    assert counted_mean(losses.regression(several, (x, y))) == pytest.approx(float(expected))
    check_loss(several, losses.regression, (x, y))


def test_a_models_own_loss() -> None:
    model, rows = gpt2(), torch.stack(documents((6, 6, 6, 6)))
    batch = {"input_ids": rows, "labels": rows}
    each = losses.model_loss(model, batch)
    assert isinstance(each, Tensor)
    with torch.no_grad():
        assert float(each.mean()) == pytest.approx(float(model(**batch).loss), abs=1e-5)
        assert torch.allclose(each, losses.next_token(model, rows).mean(1), atol=1e-5)  # type: ignore[union-attr]
    weights = rllc.parameters("*c_attn.bias").named("b")
    options = {"sampling": ONE, "compute": QUIET}
    data = {**batch, "attention_mask": torch.ones_like(rows)}
    own = rllc.estimate(model, data, weights, loss=losses.model_loss, **options)  # type: ignore[arg-type]
    named = rllc.estimate(model, data, weights, loss=losses.next_token, **options)  # type: ignore[arg-type]
    assert own.value == pytest.approx(named.value, abs=1e-3)


def test_a_models_own_loss_that_is_no_mean_over_rows_is_refused() -> None:
    batch = padded(documents((7, 3, 5, 4)), "right")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(InputError, match="is no mean over rows") as caught:
        rllc.estimate(gpt2(), batch, loss=losses.model_loss, sampling=ONE, compute=QUIET)
    assert "rllc.losses.next_token" in str(caught.value)
    with pytest.raises(InputError, match="gave no `loss`"):
        rllc.estimate(
            gpt2(),
            {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
            loss=losses.model_loss,
            sampling=ONE,
            compute=QUIET,
        )
    with pytest.raises(InputError, match="must be a dict of the model's inputs"):
        rllc.estimate(
            gpt2(), batch["input_ids"], loss=losses.model_loss, sampling=ONE, compute=QUIET
        )


@pytest.mark.parametrize(
    ("loss", "lines", "instead"),
    [
        (
            nn.CrossEntropyLoss(),
            'F.cross_entropy(module(inputs), targets, reduction="none")',
            "classification",
        ),
        (
            F.cross_entropy,
            'F.cross_entropy(module(inputs), targets, reduction="none")',
            "classification",
        ),
        (nn.MSELoss(), "F.mse_loss(module(inputs), targets", "regression"),
        (nn.L1Loss, "loss_of(module(inputs), targets)", "classification"),
    ],
)
def test_losses_of_pytorch_get_the_lines_to_write(loss: Any, lines: str, instead: str) -> None:
    with pytest.raises(InputError) as caught:
        rllc.estimate(nn.Linear(2, 2), (torch.randn(8, 2), torch.zeros(8).long()), loss=loss)
    message = str(caught.value)
    assert "def loss(module, batch):\n        inputs, targets = batch\n" in message
    assert lines in message
    assert f"{instead}" in message
    assert "rllc.losses.next_token" in message


def test_a_name_is_no_loss_but_is_told_which() -> None:
    with pytest.raises(InputError, match=r"rllc\.losses\.next_token") as caught:
        rllc.estimate(nn.Linear(2, 2), torch.randn(4, 2), loss="mse")  # type: ignore[arg-type]
    assert "got 'mse'" in str(caught.value) or "got str" in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        (losses.classification, (torch.randn(8, 2), torch.randn(8)), "must be class numbers"),
        (
            losses.classification,
            (torch.randn(8, 2), torch.full((8,), 7)),
            r"0 to 2\), but a label is 7",
        ),
        (losses.classification, (torch.randn(8, 2), torch.zeros(8, 5).long()), "scores must be"),
        (losses.classification, torch.randn(8, 2), r"must be \(inputs, labels\)"),
        (losses.regression, (torch.randn(8, 2), torch.randn(8, 2)), "must have one shape"),
        (losses.regression, {"input_ids": torch.ones(8, 2).long()}, "needs `labels`|must be"),
        (losses.masked_lm, (torch.randn(8, 2), torch.randn(8)), "a dict with `input_ids`"),
        (
            losses.masked_lm,
            {"input_ids": torch.ones(8, 2).long(), "token_type_ids": torch.ones(8, 2).long()},
            "needs `labels`",
        ),
        (losses.next_token, (torch.randn(8, 2), torch.randn(8)), "a dict with `input_ids`"),
    ],
)
def test_data_that_do_not_fit_a_loss_are_refused(loss: Any, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rllc.estimate(nn.Linear(2, 3), data, loss=loss, sampling=ONE, compute=QUIET)


def test_an_image_classifier_with_a_loader_in_one_call() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    loader = DataLoader(
        TensorDataset(torch.randn(16, 1, 2, 2), torch.randint(3, (16,))), batch_size=8
    )
    est = rllc.estimate(model, loader, loss=losses.classification, sampling=ONE, compute=QUIET)
    assert np.isfinite(est.value).all()


def test_distillation_leaves_padding_out() -> None:
    model, generator = tiny_model(), tiny_model(5)
    rows = documents((7, 3, 5))
    each, mask = rllc.losses.distillation(generator)(model, padded(rows, "left"))
    from rllc.engine.bind import bind

    native = bind(model, rllc.losses.distillation(generator)).center(padded(rows, "left"), seed=0)
    for row, ids in enumerate(rows):
        alone = rllc.losses.distillation(generator)(model, ids[None])
        assert torch.allclose(each[row][mask[row]], alone[0], atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(native.losses[row][mask[row]], alone[0], atol=1e-5)  # type: ignore[arg-type]
