"""Losses by name: each a function of a module and a minibatch, per example or per position.

What is ignored (padding, labels of −100, targets that are NaN) takes no part in any mean: losses of
data that can have such positions come as ``(losses, mask)``. Any function of yours with the same
arguments will do as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllc.engine.modes import in_mode
from rllc.errors import InputError
from rllc.losses.documents import IGNORED, Batch, Documents, documents_of, shown

__all__ = [
    "Distillation",
    "classification",
    "distillation",
    "masked_lm",
    "model_loss",
    "next_token",
    "regression",
]

Losses = Tensor | tuple[Tensor, Tensor]
"""Losses ``[batch]`` or ``[batch, pos]``, or these and a mask of what counts."""


# Language models.


def next_token(module: nn.Module, batch: Batch) -> Losses:
    """Cross entropy of each next token, in nats; the default loss.

    >>> import rllc
    >>> rllc.losses.next_token(lambda ids: torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]))
    tensor([[0.6931, 0.6931]])

    A token counts if it is not padding, its label is not −100, and a token of the same document
    comes before it. Padded rows give what they give unpadded; see
    :func:`rllc.losses.documents.documents_of`.

    Args:
        module: maps token ids to logits ``[batch, pos, vocab]`` or to an output with ``.logits``.
        batch: token rows ``[batch, pos]``, or a dict with ``input_ids`` and perhaps
            ``attention_mask`` and ``labels``, as tokenizers and collators of transformers give it.

    Returns:
        ``[batch, pos - 1]``, in column t that of token t + 1; for a dict with a mask of what
        counts.

    Raises:
        InputError: the module gives something else, or the batch is not of tokens.
    """
    documents = documents_of(batch)
    logits = logits_of(module, batch, documents)[:, :-1]
    targets = _targets(documents)[:, 1:]
    losses = _cross_entropy(logits, targets)
    if isinstance(batch, Tensor):
        return losses
    return predictions_at_home(documents, losses), next_tokens_counted(documents)


def masked_lm(module: nn.Module, batch: Batch) -> Losses:
    """Cross entropy of the masked tokens, in nats: for BERT and its kin.

    Args:
        module: maps token ids to logits ``[batch, pos, vocab]`` or to an output with ``.logits``.
        batch: a dict with ``input_ids``, in which tokens are masked, and ``labels``, which are −100
            at all others. Which tokens are masked is part of the data: it must stay the same, so
            make it once, not in a collator.

    Returns:
        ``([batch, pos], mask)``: in column t the loss of token t.

    Raises:
        InputError: there are no labels, or the module gives something else.
    """
    documents = documents_of(batch)
    if documents.labels is None:
        raise InputError(
            f"masked_lm: the data needs `labels` [row, pos], −100 where a token is not masked, "
            f"beside `input_ids`; got {shown(batch)}."
        )
    logits = logits_of(module, batch, documents)
    targets = _targets(documents)
    losses = _cross_entropy(logits, targets)
    losses = documents.at_home(losses, 0.0)
    counted = documents.at_home(documents.wanted(), False)
    return losses, counted


@dataclass(frozen=True, eq=False)
class Distillation:
    """Cross entropy against the predictions of ``generator``; see :func:`distillation`."""

    generator: nn.Module

    def __call__(self, module: nn.Module, batch: Batch) -> Losses:
        """Per-token losses ``[batch, pos - 1]``, in nats, of any module that gives logits."""
        documents = documents_of(batch)
        with torch.no_grad(), in_mode(self.generator, training=False):
            target = logits_of(self.generator, batch, documents)[:, :-1]
            target = target.softmax(-1)
        logits = logits_of(module, batch, documents)[:, :-1]
        check_vocabularies(target.shape[-1], logits.shape[-1])
        losses = -(target * logits.log_softmax(-1)).sum(-1)
        if isinstance(batch, Tensor):
            return losses
        return predictions_at_home(documents, losses), next_tokens_counted(documents)


def distillation(generator: nn.Module) -> Distillation:
    """Make a loss against what a model predicts, not against the tokens that came.

    ℓ(w) = mean over positions of −Σ_v p_gen(v | context) log p_w(v | context), in nats. It differs
    from the KL divergence by a constant, which cancels in λ̂. It refines the data to a model's
    distribution: with the one-layer model trained on the same data as ``generator`` it is the
    "ℓ = L1" of arXiv 2410.02984. Contexts are the rows of the data.

    Args:
        generator: gives logits ``[batch, pos, vocab]``, or an output with ``.logits``, on token
            rows. Its vocabulary must be the model's. It is only evaluated, in eval mode.

    Raises:
        InputError: ``generator`` is not a torch module.
    """
    if not isinstance(generator, nn.Module):
        raise InputError(
            f"distillation: expected a model (a torch.nn.Module), got {type(generator).__name__}."
        )
    return Distillation(generator)


def next_tokens_counted(documents: Documents) -> Tensor:
    """Which next tokens count, ``[row, pos - 1]``: in column t token t + 1."""
    wanted = documents.wanted()[:, 1:]
    return predictions_at_home(documents, wanted, False)


def predictions_at_home(documents: Documents, values: Tensor, blank: bool | float = 0.0) -> Tensor:
    """Put ``[document, pos - 1]`` of predictions back to the rows, ``[row, pos - 1]``."""
    if documents.home is None:
        return values
    # The first token of a document is not predicted.
    of_first = torch.full_like(values[:, :1], blank)
    by_token = torch.cat([of_first, values], 1)
    returned = documents.at_home(by_token, blank)
    return returned[:, 1:]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss at each position, in the shape of the targets ``[document, pos]``."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def _targets(documents: Documents) -> Tensor:
    """The ids to predict, in int64 for cross entropy; any id where none is to be predicted."""
    labels = documents.labels
    if labels is None:
        labels = documents.tokens
    targets = torch.where(labels == IGNORED, 0, labels)
    return targets.long()


def logits_of(module: nn.Module, batch: Batch, documents: Documents | None = None) -> Tensor:
    """Return a language model's logits on token rows, ``[batch, pos, vocab]``.

    Args:
        module: the model.
        batch: token rows, or a dict with ``input_ids``.
        documents: of the batch, if they are known; rows of the result are documents.

    Raises:
        InputError: the module gives something else.
    """
    documents = documents_of(batch) if documents is None else documents
    output = run_model(module, documents)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise InputError(
            f"the default loss needs a module that maps token ids [batch, pos] to logits "
            f"[batch, pos, vocab], or to an output with .logits; {type(module).__name__} gave "
            f"{type(output).__name__}. Pass loss=f with f(module, batch) giving per-example losses."
        )
    return logits


def run_model(module: nn.Module, documents: Documents) -> Any:
    """Call a model of tokens with the inputs that its forward names."""
    inputs = _accepted(module, documents.extras)
    if documents.real is not None and _accepts(module, "attention_mask"):
        inputs["attention_mask"] = documents.real.long()
    return module(documents.tokens, **inputs)


def check_vocabularies(generator: int, model: int) -> None:
    """Refuse a generating model with another number of token ids."""
    if generator != model:
        raise InputError(
            f"distillation: the generating model has {generator} token ids, the sampled model "
            f"{model}; both must have one vocabulary, so take a generating model trained with the "
            f"same tokenizer."
        )


# Everything else.


def classification(module: nn.Module, batch: Batch) -> Losses:
    """Cross entropy of the right class, in nats: of examples, tokens or pixels.

    >>> import rllc
    >>> data = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> rllc.losses.classification(nn.Linear(3, 2), data)[0].shape
    torch.Size([8])

    Args:
        module: gives scores ``[batch, class]``, or an output with ``.logits``. For pixels
            ``[batch, class, …]`` as in PyTorch; for tokens ``[batch, pos, class]`` as in
            transformers.
        batch: ``(inputs, labels)``, or a dict with ``labels`` (or ``label``) and the model's
            inputs. Labels are class numbers ``[batch]`` or one for each pixel or token; −100 does
            not count.

    Returns:
        ``([batch], mask)``, or ``([batch, pos], mask)``.

    Raises:
        InputError: scores and labels do not fit.
    """
    output, labels, documents = _predictions("classification", module, batch)
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"classification: labels must be class numbers (integers), got {shown(labels)}; for "
            f"numbers use rllc.losses.regression, for probabilities a loss of your own."
        )
    labels = labels.long()
    by_token = documents is not None and labels.dim() == 2
    is_column = labels.dim() == 2 and labels.shape[1] == 1
    if is_column and output.dim() == 2:
        labels = labels[:, 0]
    scores = output
    if by_token and output.dim() == 3:
        scores = output.movedim(-1, 1)
    has_class_axis = scores.dim() == labels.dim() + 1
    if not has_class_axis or scores.shape[2:] != labels.shape[1:]:
        raise InputError(
            f"classification: scores must be [batch, class] with labels [batch], or [batch, class, "
            f"…] with labels [batch, …]; got {shown(output)} with {shown(labels)}."
        )
    counted = labels != IGNORED
    _check_classes(labels, counted, scores.shape[1])
    losses = F.cross_entropy(scores.float(), labels.clamp(min=0), reduction="none")
    if by_token and documents is not None:
        losses = documents.at_home(losses, 0.0)
        counted = documents.at_home(counted, False)
        return losses, counted
    if losses.dim() > 1:
        return losses.flatten(1), counted.flatten(1)
    return losses, counted


def _check_classes(labels: Tensor, counted: Tensor, num_classes: int) -> None:
    is_class = (labels >= 0) & (labels < num_classes)
    wrong = counted & ~is_class
    if bool(wrong.any()):
        wrong_labels = labels[wrong].flatten()
        example = int(wrong_labels[0])
        raise InputError(
            f"classification: the model has {num_classes} classes (0 to {num_classes - 1}), but a "
            f"label is {example}; labels that are not to count must be −100."
        )


def regression(module: nn.Module, batch: Batch) -> Losses:
    """Squared error (f(x) − y)² of each output, as ``nn.MSELoss`` averages it.

    It is the log loss of Gaussian noise of variance ½; multiply nβ by 1/(2σ²) for another.

    Args:
        module: gives ``[batch, …]``, or an output with ``.logits``.
        batch: ``(inputs, targets)``, or a dict with ``labels`` and the model's inputs. Targets that
            are NaN do not count.

    Returns:
        ``([batch], mask)``, or ``([batch, output], mask)`` where there are several.

    Raises:
        InputError: outputs and targets have different shapes.
    """
    output, targets, _ = _predictions("regression", module, batch)
    # [batch] beside [batch, 1] would be broadcast to [batch, batch].
    one_each = output.numel() == len(output) and targets.numel() == len(targets)
    if one_each and len(output) == len(targets):
        output = output.reshape(-1)
        targets = targets.reshape(-1)
    if output.shape != targets.shape:
        raise InputError(
            f"regression: outputs and targets must have one shape, got {shown(output)} and "
            f"{shown(targets)}."
        )
    counted = ~targets.isnan()
    difference = output.float() - targets.nan_to_num().to(output).float()
    losses = difference.square()
    if losses.dim() > 2:
        return losses.flatten(1), counted.flatten(1)
    return losses, counted


def model_loss(module: nn.Module, batch: Batch) -> Losses:
    """The model's own ``outputs.loss``, row by row: for models of transformers that compute one.

    The model is asked for one row at a time, without its padding, so it is slow: about as many
    forward passes as a batch has rows. Where another loss here fits, take that.

    Args:
        module: gives an output with ``.loss`` when it gets ``labels``.
        batch: a dict of the model's inputs, ``labels`` among them.

    Returns:
        ``[batch]``.

    Raises:
        InputError: the model gives no loss.
    """
    if not isinstance(batch, Mapping):
        raise InputError(
            f"model_loss: the data must be a dict of the model's inputs, such as "
            f"{{'input_ids': …, 'labels': …}}, got {shown(batch)}."
        )
    first_field = next(iter(batch.values()))
    losses = []
    for row in range(len(first_field)):
        one_row = slice(row, row + 1)
        losses.append(_loss_of_rows(module, batch, one_row))
    return torch.stack(losses)


def check_model_loss(module: nn.Module, batch: dict[str, Tensor]) -> None:
    """Refuse a model whose loss of several rows is not the mean of theirs.

    Raises:
        InputError: gives both.
    """
    together = float(_loss_of_rows(module, batch, slice(None)))
    rows = [float(loss) for loss in model_loss(module, batch)]
    mean = sum(rows) / len(rows)
    largest = max(map(abs, rows))
    rounding = 1e-3 * (abs(mean) + largest)
    if not abs(together - mean) <= rounding:
        raise InputError(
            f"model_loss: the loss of {type(module).__name__} is no mean over rows: {together:.6g} "
            f"for {len(rows)} rows together, {mean:.6g} on average one by one. Rows with different "
            f"numbers of labels weigh differently in it: use rllc.losses.next_token, "
            f"rllc.losses.masked_lm or rllc.losses.classification."
        )


def _loss_of_rows(module: nn.Module, batch: Mapping[str, Tensor], rows: slice) -> Tensor:
    chosen = {name: field[rows] for name, field in batch.items()}
    if "input_ids" in chosen:
        documents = documents_of(chosen, own_padding=True)
        extras = dict(documents.extras)
        if "labels" in chosen:
            extras["labels"] = chosen["labels"]
        if documents.labels is not None:
            extras["labels"] = documents.labels
        output = run_model(module, documents._replace(extras=extras))
    else:
        output = module(**_accepted(module, chosen))
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        names = ", ".join(batch)
        raise InputError(
            f"model_loss: {type(module).__name__} gave no `loss` for the inputs {names}; give "
            f"`labels`, or pass another loss of rllc.losses."
        )
    return loss.reshape(())


def _predictions(
    task: str, module: nn.Module, batch: Batch
) -> tuple[Tensor, Tensor, Documents | None]:
    """The outputs of a model, its targets, and its documents if it has tokens."""
    documents = None
    if isinstance(batch, Mapping):
        name = "labels" if "labels" in batch else "label"
        if name not in batch or len(batch) < 2:
            raise InputError(
                f"{task}: the data needs `labels` beside the model's inputs, got {shown(batch)}."
            )
        fields = dict(batch)
        targets = fields.pop(name)
        if "input_ids" in batch:
            documents = documents_of(fields | {"labels": targets}, own_padding=True)
            if documents.labels is not None:
                targets = documents.labels
            one_a_row = len(documents.tokens) == documents.num_rows
            if not one_a_row and targets.dim() == 1:
                raise InputError(f"{task}: rows hold several documents, but have one label.")
            output = run_model(module, documents)
        elif len(fields) == 1 and not _accepts(module, *fields):
            output = module(*fields.values())
        else:
            output = module(**_accepted(module, fields))
    elif isinstance(batch, tuple) and len(batch) > 1:
        *inputs, targets = batch
        output = module(*inputs)
    else:
        raise InputError(
            f"{task}: the data must be (inputs, labels) or a dict with `labels`, got "
            f"{shown(batch)}; pass data=(inputs, labels)."
        )
    scores = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(scores, Tensor):
        raise InputError(
            f"{task}: {type(module).__name__} must give a tensor or an output with .logits, gave "
            f"{type(output).__name__}; write a loss of your own, f(module, batch)."
        )
    return scores, targets, documents


def _accepted(module: nn.Module, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields that a module's forward names."""
    names = _parameters(module)
    return {name: field for name, field in fields.items() if name in names}


def _accepts(module: nn.Module, *names: str) -> bool:
    """Whether a module can be called with these arguments."""
    parameters = _parameters(module)
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    return takes_any or all(name in parameters for name in names)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    forward = module.forward if isinstance(module, nn.Module) else module
    return inspect.signature(forward).parameters
