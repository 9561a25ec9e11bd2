"""The only contract with a model: one loss per run, its gradient, and the loss at w* beside it.

A loss is a function of a module and a batch. :func:`rllc.engine.bind.bind` makes it a
:class:`Loss`, which evaluates many runs of one model on one minibatch in the fastest exact way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from rllc.engine.layout import Group
from rllc.errors import InputError

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

LossFunction = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]
"""Yours: ``loss(module, batch)``, giving losses ``[batch]``, or ``[batch, pos]`` per token.

Positions that do not count, such as padding, are NaN; or give ``(losses, mask)``, with a mask of
the same shape that is true (or 1) where a loss counts. Never give 0 for them: it would be taken for
a perfect prediction."""


class Center(NamedTuple):
    """The unmoved model on one minibatch."""

    losses: Tensor
    """``[batch]`` or ``[batch, pos]``: the baseline, example by example; NaN at what does not
    count."""
    shared: Any
    """Values that runs reuse; only the loss looks into them."""
    counted: Tensor | None = None
    """Which losses count in a mean, in the shape of ``losses``; ``None``: all."""

    @property
    def mean(self) -> Tensor:
        """The mean loss over all that counts, float64."""
        return mean_of(self.losses[None], self.counted)[0]

    @property
    def num_counted(self) -> int:
        """How many losses the mean is of."""
        return num_counted(self.losses, self.counted)


class Runs(NamedTuple):
    """Some runs on one minibatch."""

    losses: Tensor
    """``[run]``, float64: the mean loss of each over what counts: Σℓ/n over the n tokens (or
    examples) of the minibatch that count, so that rows with more of them weigh more. What counts is
    the centre's choice, and one for all runs."""
    gradient: Tensor | None
    """``[run, dim]``: of each run's mean loss by its own position; ``None`` when not asked for."""
    each: Tensor | None
    """``[run, batch]`` or ``[run, batch, pos]``, when asked for; NaN at what does not count."""


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
        self, names: Collection[str], center: Center | None, batch: Batch, seed: int
    ) -> tuple[dict[str, Tensor], int]:
        """Return the gradient of the mean loss at w* by whole parameters.

        And how many losses that is the mean of.

        Args:
            names: of the parameters.
            center: the unmoved model on the minibatch; ``None`` where it was not evaluated.
            batch: the minibatch.
            seed: with which the unmoved model is evaluated.
        """
        ...

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:
        """Return the bytes that each further run of a pass takes while it is evaluated."""
        ...

    @property
    def ways(self) -> list[str]:
        """How runs were evaluated so far, in words; each way once."""
        ...


def num_counted(losses: Tensor, counted: Tensor | None) -> int:
    """How many losses count; ``None`` for what counts: all."""
    return losses.numel() if counted is None else int(counted.sum())


def mean_of(losses: Tensor, counted: Tensor | None) -> Tensor:
    """Average the losses of each run over what counts.

    Args:
        losses: ``[run, batch]`` or ``[run, batch, pos]``.
        counted: ``[batch]`` or ``[batch, pos]``; ``None``: everything.

    Returns:
        ``[run]``, float64.
    """
    flat = losses.double().flatten(1)
    if counted is not None:
        # What does not count is taken out, not multiplied by 0: it may be NaN.
        flat = flat[:, counted.flatten()]
    return flat.mean(1)


def listed_rows(rows: Sequence[int], most: int) -> str:
    """Return the first row numbers of a list, as a text for messages.

    >>> listed_rows([3, 5, 8], most=2)
    '3, 5, …'
    """
    listed = ", ".join(str(row) for row in rows[:most])
    return f"{listed}, …" if len(rows) > most else listed


def check_rows_counted(counted: Tensor) -> None:
    """Refuse rows of a minibatch in which nothing counts.

    Raises:
        InputError: says how many and which.
    """
    empty = ~counted.reshape(len(counted), -1).any(1)
    if not bool(empty.any()):
        return
    rows = empty.nonzero()[:, 0].tolist()
    raise InputError(
        f"the loss has nothing to predict in {len(rows)} of the {len(counted)} rows of a minibatch "
        f"(its rows {listed_rows(rows, 4)}), or is NaN there; leave such rows out of the data."
    )


@dataclass(frozen=True, eq=False)
class NamedLoss:
    """A loss that is recognised by a name; see :func:`named`."""

    loss: LossFunction
    name: str

    def __call__(self, module: nn.Module, batch: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Return the losses of a batch."""
        return self.loss(module, batch)


def named(loss: LossFunction, name: str) -> NamedLoss:
    """Let a loss be recognised by a name, and not by its code and what it holds.

    >>> named(lambda module, batch: module(batch)[:, 0], "the output, version 2").name
    'the output, version 2'

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
