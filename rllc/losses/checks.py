"""Whether a loss, a model and data fit together: what would otherwise give a wrong number."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rllc.data.data import Data, Tensors
from rllc.engine.bind import bind, is_attention_only
from rllc.engine.chains import Chains
from rllc.engine.modes import in_mode, one_arithmetic, seeded
from rllc.engine.private import private_copy
from rllc.engine.scene import Scene
from rllc.errors import InputError, first_line
from rllc.losses.again import check_again
from rllc.losses.by_name import (
    Distillation,
    check_model_loss,
    classification,
    logits_of,
    masked_lm,
    model_loss,
    next_token,
    next_tokens_counted,
)
from rllc.losses.contract import Center, LossFunction, listed_rows
from rllc.losses.documents import Batch, Documents, documents_of
from rllc.sampling.model_checks import refusing_reentrant

SHIPPED = (
    "rllc.losses.next_token (the default), masked_lm, classification, regression, model_loss, and "
    "rllc.losses.distillation(model)"
)
"""The losses that can be had by name, for error messages."""

_ROUNDING = 1e-4
"""The share of a mean loss by which two ways through float32 kernels may differ."""

_ROUNDING_OF_HALF = 3e-2
"""That share for products of 8 or 11 bits."""

_PADDING = 100.0
"""Single tokens differ by more than means, and kernels with a mask are others than those without:
a model that sees its padding differs by far more."""

_SMALLEST = 1e-6
"""Differences below this are rounding, however small the loss is."""

_ROWS = 1024
"""Rows whose masks are looked at together."""

_FEW_ROWS = 64
"""Rows among which a short and a long one are looked for."""


# The loss alone.


def check_kind(loss: object) -> None:
    """Refuse PyTorch's own losses, which compare two tensors and run no model.

    Raises:
        InputError: prints the lines to write, and names the losses that are shipped.
    """
    _check_signature(loss)
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    module = str(getattr(named, "__module__", ""))
    if not module.startswith("torch.nn"):
        return
    name = getattr(named, "__qualname__", type(loss).__name__)
    call, instead = "loss_of(module(inputs), targets)", ""
    if name in ("CrossEntropyLoss", "NLLLoss", "cross_entropy", "nll_loss"):
        call = 'F.cross_entropy(module(inputs), targets, reduction="none")'
        instead = " Or pass loss=rllc.losses.classification."
    elif name in ("MSELoss", "mse_loss"):
        call = 'F.mse_loss(module(inputs), targets, reduction="none").flatten(1).mean(1)'
        instead = " Or pass loss=rllc.losses.regression."
    raise InputError(
        f"`loss`: {name} compares predictions with targets; here a loss runs the model itself, and "
        f"gives one number an example. Write\n"
        f"    def loss(module, batch):\n"
        f"        inputs, targets = batch\n"
        f"        return {call}\n"
        f"and pass loss=loss.{instead} Losses by name: {SHIPPED}."
    )


def _check_signature(loss: Any) -> None:
    """Refuse a function that cannot be called with a module and a batch.

    Raises:
        InputError: says what it takes.
    """
    is_torchs = str(getattr(loss, "__module__", "")).startswith("torch")
    if loss is None or not callable(loss) or isinstance(loss, type | nn.Module) or is_torchs:
        return
    try:
        signature = inspect.signature(loss)
    except (ValueError, TypeError):  # code in C does not say it
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise InputError(
            f"`loss` is called as loss(module, batch), but takes {signature} ({first_line(error)});"
            f" write def loss(module, batch): …, and bind further arguments with "
            f"functools.partial."
        ) from error


# The loss and the data.


def check_rows(loss: LossFunction | None, data: Data, name: str) -> None:
    """Refuse rows in which there is nothing to predict, where this can be known without a model.

    Raises:
        InputError: names the rows.
    """
    if not isinstance(data, Tensors) or not data.fields:
        return
    empty: list[int] = []
    for start in range(0, len(data), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(data)))
        counted = _counted(loss, data.take(rows, torch.device("cpu")))
        if counted is not None:
            is_empty = ~counted.reshape(len(counted), -1).any(1)
            empty += rows[is_empty].tolist()
    if empty:
        raise InputError(
            f"sampling on data {name!r}: {len(empty)} of its {len(data)} rows have nothing to "
            f"predict (rows {listed_rows(empty, 6)}): all is padding, or has the label −100, or is "
            f"the first token of a document; leave these rows out."
        )


def _counted(loss: LossFunction | None, batch: Batch) -> Tensor | None:
    """The losses that count in a minibatch, ``[row, …]``; ``None`` where only the loss knows."""
    if not isinstance(batch, dict):
        return None
    if _predicts_next_tokens(loss):
        return next_tokens_counted(documents_of(batch))
    if loss is masked_lm:
        documents = documents_of(batch)
        if documents.labels is None:
            return None  # the loss says so
        return documents.at_home(documents.wanted(), False)
    if loss is classification:
        labels = batch.get("labels", batch.get("label"))
        return None if labels is None else labels != -100
    return None


def _predicts_next_tokens(loss: LossFunction | None) -> bool:
    return loss is None or loss is next_token or isinstance(loss, Distillation)


# The loss, the data and the model.


def check_model(model: nn.Module, loss: LossFunction | None, data: Data, name: str) -> None:
    """Hold a model against what its loss takes for granted, on one or two rows.

    - Padding and company change no loss.
    - A model of next tokens does not see the token that it predicts; a warning.
    - A model's own loss is a mean over rows.

    Raises:
        InputError: says by how much, and what to change.
    """
    device = next(model.parameters()).device
    batch = data.take(torch.tensor([0]), device)
    if isinstance(batch, dict):
        _check_documents_are_told(model, batch, name)
        batch = data.take(torch.arange(min(_FEW_ROWS, len(data))), device)
    is_tokens = isinstance(batch, Tensor) or "input_ids" in batch
    may_look_ahead = is_tokens and _predicts_next_tokens(loss) and not is_attention_only(model)
    is_own_loss = loss is model_loss and isinstance(batch, dict)
    if may_look_ahead or is_own_loss:
        copied = private_copy(model)
        with one_arithmetic(), torch.no_grad(), in_mode(copied, False), seeded(0, device):
            if loss is model_loss and isinstance(batch, dict):
                check_model_loss(copied, {field: values[:4] for field, values in batch.items()})
            if may_look_ahead:
                _warn_if_it_looks_ahead(copied, batch)
    if isinstance(batch, dict) and "input_ids" in batch:
        _check_padding(model, loss, batch, name)


def _check_documents_are_told(model: nn.Module, batch: dict[str, Tensor], name: str) -> None:
    """Refuse numbers of documents that would be left out, since the model does not take them.

    Raises:
        InputError: says how they are given.
    """
    taken = inspect.signature(model.forward).parameters
    for field in _OF_DOCUMENTS:
        if field in batch and field not in taken and "input_ids" in batch:
            raise InputError(
                f"sampling on data {name!r}: {type(model).__name__} does not take {field!r}, so "
                f"tokens would see the documents before their own; number the documents of a row "
                f"1, 2, … in `attention_mask` (0 for padding), or leave {field!r} out."
            )


_OF_DOCUMENTS = ("document_ids", "document_id", "doc_ids", "seq_idx", "segment_ids", "sequence_id")
"""Usual names of the numbers of documents that share a row."""


def _warn_if_it_looks_ahead(model: nn.Module, batch: Batch) -> None:
    documents = documents_of(batch)
    tokens = documents.tokens[:1]
    if documents.real is not None:
        tokens = tokens[:, : int(documents.real[0].sum())]
    others = documents.tokens[documents.tokens != tokens[0, -1]]
    if tokens.shape[1] < 2 or not len(others):
        return
    changed = tokens.clone()
    changed[0, -1] = others.flatten()[0]
    logits = []
    for rows in (tokens, changed):
        # A model that draws random numbers must draw the same for both.
        with seeded(0, rows.device):
            logits.append(logits_of(model, rows)[:, :-1].float())
    before, after = logits
    difference = float((before - after).abs().max())
    if difference > 1e-3 * (1 + float(before.abs().max())):
        warnings.warn(
            f"{type(model).__name__} is bidirectional: it sees the tokens that it is asked to "
            f"predict (changing the last one changes earlier predictions by {difference:.2g}), so "
            f"the next-token loss says little. For BERT and its kin mask tokens and pass "
            f"loss=rllc.losses.masked_lm.",
            stacklevel=2,
        )


def _check_padding(
    model: nn.Module, loss: LossFunction | None, batch: dict[str, Tensor], name: str
) -> None:
    """Compare a short row beside a long one with the same row alone, which is not padded."""
    if _predicts_next_tokens(loss) or loss is masked_lm:
        pair = _pair_of_documents(documents_of(batch))
    elif loss is classification and "attention_mask" in batch:
        pair = _pair_of_rows(batch)
    else:
        return
    if pair is None:
        return
    bound = bind(model, loss)
    with_padding, without_padding = (_first_row(bound.center(rows, seed=0)) for rows in pair)
    difference = float((with_padding - without_padding).abs().max())
    size = float(without_padding.abs().mean())
    tolerance = min(0.3, _PADDING * _tolerance(model))
    if not difference <= tolerance * size + 1e-3:
        raise InputError(
            f"sampling on data {name!r}: {type(model).__name__} gives a row another loss when it "
            f"is padded behind (by {difference:.3g} of {size:.3g}), so it does not leave out what "
            f"`attention_mask` hides; give it rows of one length, or use a model whose forward "
            f"takes `attention_mask`."
        )


def _first_row(center: Center) -> Tensor:
    losses = center.losses[0].double()
    return losses if center.counted is None else losses[center.counted[0]]


def _pair_of_documents(
    documents: Documents,
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    if documents.real is None:
        return None
    lengths = documents.real.sum(1)
    # A document of one token predicts nothing.
    useful = documents.wanted()[:, 1:].any(1)
    if not bool(useful.any()):
        return None
    short = int(torch.where(useful, lengths, lengths.max() + 1).argmin())
    long = int(lengths.argmax())
    width = int(lengths[short])
    if width == int(lengths[long]):
        return None
    chosen = torch.tensor([short, long], device=lengths.device)
    padded = {"input_ids": documents.tokens[chosen]}
    padded["attention_mask"] = documents.real[chosen].long()
    if documents.labels is not None:
        padded["labels"] = documents.labels[chosen]
    for field, values in documents.extras.items():
        if len(values) == len(documents.tokens):
            padded[field] = values[chosen]
    return padded, _first_without_padding(padded, width)


def _pair_of_rows(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """A short row beside a long one, and the short one alone, which the loss cuts to its length."""
    lengths = (batch["attention_mask"] > 0).flatten(1).sum(1)
    short, long = int(lengths.argmin()), int(lengths.argmax())
    if int(lengths[short]) == int(lengths[long]):
        return None
    chosen = torch.tensor([short, long], device=lengths.device)
    padded = {field: values[chosen] for field, values in batch.items()}
    return padded, {field: values[:1] for field, values in padded.items()}


def _first_without_padding(padded: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The first row, whose fields by token are cut to its own length."""
    shape_of_ids = padded["input_ids"].shape
    fields = {}
    for field, values in padded.items():
        first_row = values[:1]
        if values.shape == shape_of_ids:
            first_row = first_row[:, :width]
        fields[field] = first_row
    return fields


# The chains before their first step.


def check_origin(chains: Chains) -> None:
    """Refuse a run at w* whose loss is not the loss at w*: λ̂ would be nβ times that difference.

    Raises:
        InputError: gives both losses, and what the difference may come from; or the loss at w* is
            another one when it is evaluated again.
    """
    with refusing_reentrant(getattr(chains.loss, "model", None)):
        _check_origin(chains)


def _check_origin(chains: Chains) -> None:
    for data_set in chains.data_sets:
        scene = data_set.scene(0, chains.loss)
        check_scene(scene, data_set.name)
        check_again(scene, chains.loss, data_set.name)
        groups: list[Any] = []
        for p in data_set.passes:
            if any(p.group is group for group in groups):
                continue
            groups.append(p.group)
            runs = chains.loss.runs(
                p.group,
                p.member[:1],
                p.origin[:1],
                scene.center,
                scene.batch,
                gradient=True,
                each=False,
            )
            _compare(chains, data_set.name, float(scene.center.mean), float(runs.losses[0]))


def _compare(chains: Chains, name: str, baseline: float, loss: float) -> None:
    model: Any = getattr(chains.loss, "model", None)
    half = chains.sampling.autocast is not None
    rounding = _ROUNDING_OF_HALF if half or model is None else _tolerance(model)
    if abs(loss - baseline) <= rounding * abs(baseline) + _SMALLEST:
        return
    offset = chains.sampling.n_beta * (loss - baseline)
    raise InputError(
        f"sampling on data {name!r}: at w* a run has the loss {loss:.6g}, but the loss at w* on "
        f"the same minibatch is {baseline:.6g}; before any step λ̂ would be off by {offset:.3g}. "
        f"{_likely_cause(model, chains.sampling.train_mode)}"
    )


def _likely_cause(model: Any, train_mode: bool) -> str:
    modules = [] if model is None else list(model.modules())
    causes = []
    if train_mode and any(isinstance(m, nn.modules.dropout._DropoutNd) for m in modules):
        causes.append("dropout in training mode")
    if train_mode and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
        causes.append("BatchNorm in training mode")
    if any(isinstance(m, nn.TransformerEncoder | nn.MultiheadAttention) for m in modules):
        causes.append("a fast path that is taken only without gradients")
    causes.append("random numbers that torch.manual_seed does not govern (NumPy's, say)")
    causes.append("code that asks whether gradients are wanted (requires_grad, is_grad_enabled)")
    causes.append("state that a forward pass changes")
    return f"It may come from {'; '.join(causes)}. Make model and loss give the same each time."


def check_scene(scene: Scene, name: str) -> None:
    """Refuse a loss that is not a number at w* on a minibatch: no chain is to blame for that.

    Raises:
        InputError: names the rows.
    """
    if not bool(scene.center.mean.isfinite()):
        check_baseline(scene.center, name, scene)


def check_baseline(at: Center, name: str, scene: Scene | None = None) -> None:
    """Refuse a loss that is not a number at w* on the first minibatch.

    Args:
        at: the losses.
        name: of the data.
        scene: which minibatch it is, if that is known.

    Raises:
        InputError: counts the losses that are not finite.
    """
    finite = at.losses.isfinite()
    if at.counted is not None:
        finite = finite | ~at.counted
    if bool(finite.all()):
        return
    where = "at w*, before any step,"
    minibatch = "the first minibatch"
    rows = ""
    if scene is not None:
        is_broken = ~finite.reshape(len(finite), -1).all(1)
        rows = _rows(scene.rows[is_broken.cpu()].tolist())
        if scene.step > 0:
            where = "at w*"
            minibatch = f"minibatch {scene.step}"
    num_broken = int((~finite).sum())
    raise InputError(
        f"sampling on data {name!r}: {where} {num_broken} of the {at.losses.numel()} losses of "
        f"{minibatch} are not finite{rows}; expected a loss that is finite at the weights it is "
        f"asked about. Look at what the loss does there; a smaller lr does not help."
    )


def _rows(rows: list[int]) -> str:
    if not rows:
        return ""
    noun = "rows" if len(rows) > 1 else "row"
    return f", those of {noun} {listed_rows(rows, 6)}"


def check_rows_of_no_numbers(
    model: nn.Module, loss: LossFunction | None, data: Data, name: str
) -> None:
    """Refuse rows with numbers that are not finite, where the loss of them is not finite either.

    An additive mask may hold −∞, and a loss may leave out NaN; so the loss decides.

    Raises:
        InputError: names the rows.
    """
    if not isinstance(data, Tensors):
        return
    finite = torch.ones(len(data), dtype=torch.bool)
    for part in data.parts:
        if part.is_floating_point() or part.is_complex():
            finite &= part.isfinite().reshape(len(part), -1).all(1).cpu()
    rows = (~finite).nonzero()[:_FEW_ROWS, 0]
    if not len(rows):
        return
    device = next(model.parameters()).device
    try:
        center = bind(model, loss).center(data.take(rows, device), seed=0)
        if bool(center.mean.isfinite()):
            return
    except InputError:  # NaN means that there is nothing to predict
        pass
    num_broken = int((~finite).sum())
    raise InputError(
        f"sampling on data {name!r}: {num_broken} of its {len(data)} rows hold numbers "
        f"that are not finite{_rows(rows.tolist())}, and the loss of them at w* is not finite; "
        f"leave them out, or put numbers in place of these."
    )


def _tolerance(model: nn.Module) -> float:
    parameters = list(model.parameters())
    if {parameter.dtype for parameter in parameters} & {torch.bfloat16, torch.float16}:
        return _ROUNDING_OF_HALF
    # Convolutions on GPUs round their inputs to 10 bits.
    return 10 * _ROUNDING if parameters[0].is_cuda else _ROUNDING
