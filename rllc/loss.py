"""The only contract with a model: one loss per run, its gradient, and the loss at w* beside it.

A loss is a function of a module and a batch. :func:`rllc.engine.bind.bind` makes it a
:class:`Loss`, which evaluates many runs of one model on one minibatch in the fastest exact way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllc.engine.layout import Group
from rllc.engine.modes import in_mode
from rllc.errors import InputError

Batch = Tensor | tuple[Tensor, ...]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Yours: ``loss(module, batch)``, giving losses ``[batch]``, or ``[batch, pos]`` per token."""


class Center(NamedTuple):
    """The unmoved model on one minibatch."""

    losses: Tensor
    """``[batch]`` or ``[batch, pos]``: the baseline, example by example."""
    shared: Any
    """What runs reuse; the loss's own business."""


class Runs(NamedTuple):
    """Some runs on one minibatch."""

    losses: Tensor
    """``[run]``, float64: the mean loss of each."""
    gradient: Tensor | None
    """``[run, dim]``: of each run's mean loss by its own position; ``None`` when not asked for."""
    each: Tensor | None
    """``[run, batch]`` or ``[run, batch, pos]``, when asked for."""


class Loss(Protocol):
    """A loss bound to a model; what :func:`rllc.iterate` evaluates."""

    def center(self, batch: Batch, seed: int) -> Center:
        """Evaluate the model as it is.

        Args:
            batch: a minibatch.
            seed: for losses that draw random numbers of their own, such as dropout.
        """
        ...

    def runs(
        self,
        group: Group,
        member: Tensor,
        position: Tensor,
        center: Center,
        batch: Batch,
        *,
        gradient: bool,
        each: bool,
    ) -> Runs:
        """Evaluate runs at ``position [run, dim]``; run i is a chain of member ``member[i]``."""
        ...

    def gradient(
        self, names: Collection[str], center: Center, batch: Batch, seed: int
    ) -> dict[str, Tensor]:
        """Return the gradient of the mean loss at w* by whole parameters, in one backward pass."""
        ...

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:
        """Return the bytes that each further run of a pass takes while it is evaluated."""
        ...


@dataclass(frozen=True, eq=False)
class Distillation:
    """Cross entropy against the predictions of ``generator``; see :func:`distillation`."""

    generator: nn.Module

    def __call__(self, module: nn.Module, batch: Tensor) -> Tensor:
        """Per-token losses ``[batch, pos - 1]``, in nats, of any module that gives logits."""
        with torch.no_grad(), in_mode(self.generator, training=False):
            target = logits_of(self.generator, batch)[:, :-1].softmax(-1)
        logits = logits_of(module, batch)[:, :-1]
        check_vocabularies(target.shape[-1], logits.shape[-1])
        return -(target * logits.log_softmax(-1)).sum(-1)


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


def next_token(module: nn.Module, batch: Tensor) -> Tensor:
    """Cross entropy of each next token, in nats; the default loss.

    Args:
        module: maps token ids to logits ``[batch, pos, vocab]`` or to an output with ``.logits``.
        batch: token rows ``[batch, pos]``.

    Returns:
        ``[batch, pos - 1]``.
    """
    logits = logits_of(module, batch)[:, :-1].flatten(0, 1).float()
    losses = F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="none")
    return losses.view(batch.shape[0], -1)


def logits_of(module: nn.Module, batch: Tensor) -> Tensor:
    """Return a language model's logits ``[batch, pos, vocab]`` on token rows.

    Raises:
        InputError: the module gives something else.
    """
    output = module(batch)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise InputError(
            f"the default loss needs a module that maps token ids [batch, pos] to logits "
            f"[batch, pos, vocab], or to an output with .logits; {type(module).__name__} gave "
            f"{type(output).__name__}. Pass loss=f with f(module, batch) giving per-example losses."
        )
    return logits


def check_vocabularies(generator: int, model: int) -> None:
    """Refuse a generating model with another number of token ids."""
    if generator != model:
        raise InputError(
            f"distillation: the generating model has {generator} token ids, the sampled model "
            f"{model}; both must have one vocabulary, so take a generating model trained with the "
            f"same tokenizer."
        )


@dataclass(frozen=True, eq=False)
class NamedLoss:
    """A loss that is recognised by a name; see :func:`named`."""

    loss: LossFunction
    name: str

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """What the loss gives."""
        return self.loss(module, batch)


def named(loss: LossFunction, name: str) -> NamedLoss:
    """Let a loss be recognised by a name, and not by its code and what it holds.

    >>> named(next_token, "next token, version 2").name
    'next token, version 2'

    A store, a :class:`rllc.Tracker` with a path and ``resume`` give back earlier results only for
    the same loss. They know one of yours by its code, its arguments and the values that it uses.
    Where these cannot be looked into, or change from call to call, you say what it is: give another
    name whenever it is another loss.

    Args:
        loss: ``loss(module, batch)``.
        name: what it is, version included.

    Raises:
        InputError: ``loss`` cannot be called, or ``name`` is not a text.
    """
    if not callable(loss):
        raise InputError(f"named: expected a loss to call, got {type(loss).__name__}.")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"named: `name` must say what the loss is, in words, got {name!r}.")
    return NamedLoss(loss, name)
