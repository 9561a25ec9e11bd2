"""Runs folded into the batch of one forward pass: row r·B + i is row i of the minibatch in run r.

A moved map adds to what the frozen one gives what each run's weights add
(:mod:`rllc.engine.linear_maps`). What no moved weight reaches is computed once a minibatch
(:mod:`rllc.engine.unmoved`). Losses of tokens are computed with their gradient in one sweep over
the vocabulary (:mod:`rllc.engine.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.engine.fused import fused_forwards
from rllc.engine.linear_maps import Change, LinearMap, Maps
from rllc.engine.modes import in_mode, one_arithmetic
from rllc.engine.module import Call, ModuleLoss, rows_of
from rllc.engine.unembedding import at_home
from rllc.engine.unmoved import Forward, Keeper, Kept, Unmoved, Watch, first_tensor, replaced
from rllc.engine.vocabulary import Head, VocabularyLoss
from rllc.losses.by_name import next_token, predictions_at_home, run_model
from rllc.losses.contract import Batch, Center, mean_of
from rllc.losses.documents import Documents, documents_of


class DoesNotFold(Exception):
    """A forward pass in which rows of runs do not stay side by side."""


class Shared(NamedTuple):
    """The values that runs on one minibatch share."""

    seed: int
    kept: list[list[Kept]]
    """By number of the module: what its calls gave on the minibatch alone."""


@dataclass(frozen=True)
class Plan:
    """How the runs of a group are evaluated together."""

    maps: Maps
    unmoved: Unmoved
    head: Head | None
    """``None``: the model's own logits, and any loss."""
    bytes_per_row: float = 0.0
    """Kept for the backward pass, for each row of the minibatch in each run."""


class Positions(NamedTuple):
    """Where runs are."""

    member: Tensor
    """``[run]``: which member of the group each is a chain of."""
    position: Tensor
    """``[run, dim]``."""


class Evaluated(NamedTuple):
    """Some runs, folded into one pass."""

    losses: Tensor
    """``[run]``, float64."""
    each: Tensor
    """``[run, batch]`` or ``[run, batch, pos]``."""
    gradient: Tensor | None
    """``[run, dim]``."""


class Folded:
    """Evaluates runs that are folded into the batch.

    Args:
        exact: evaluates the same model and loss one run after the other.
    """

    def __init__(self, exact: ModuleLoss) -> None:
        self.exact = exact
        self.model = exact.model
        self.kept_names: list[str] = []
        """Modules whose calls are kept at each centre; it only grows."""
        self.logits = Call(self.model, run_model)
        self.fused = fused_forwards(self.model)

    def center(self, batch: Batch, seed: int) -> Center:
        """The unmoved model, with what runs share."""
        keeper = Keeper(self.model, self.kept_names)
        with replaced(self.model, keeper.forwards()):
            at = self.exact.center(batch, seed)
        return at._replace(shared=Shared(at.shared, keeper.kept))

    def kept_calls(self, unmoved: Unmoved, shared: Shared, batch: Batch) -> dict[str, list[Kept]]:
        """The calls that a centre has kept, by module; calls of new modules are made now."""
        self.kept_names += [name for name in unmoved.names if name not in self.kept_names]
        new_names = self.kept_names[len(shared.kept) :]
        if new_names:
            keeper = Keeper(self.model, new_names)
            with self.evaluating(keeper.forwards()):
                self.exact.losses({}, batch)
            shared.kept.extend(keeper.kept)
        return dict(zip(self.kept_names, shared.kept, strict=True))

    @contextmanager
    def evaluating(self, forwards: dict[str, Forward]) -> Iterator[None]:
        """Evaluate with other forwards of some modules."""
        mode = in_mode(self.model, self.exact.train_mode)
        with one_arithmetic(), mode, replaced(self.model, forwards):
            yield

    def evaluate(
        self,
        plan: Plan,
        runs: Positions,
        center: Center,
        batch: Batch,
        kept: Mapping[str, list[Kept]],
        gradient: bool,
    ) -> Evaluated:
        """Evaluate runs in one pass.

        Args:
            plan: what is done together.
            runs: where they are.
            center: of the minibatch.
            batch: the minibatch.
            kept: what modules gave on the minibatch alone, for those of the plan.
            gradient: whether it is wanted.

        Raises:
            DoesNotFold: rows of runs do not stay side by side.
        """
        position = runs.position.detach().requires_grad_(gradient)
        changes = plan.maps.changes(position, runs.member)
        forwards = self._forwards(plan, changes, kept, len(position), batch)
        if plan.head is None:
            with self.evaluating(forwards):
                each = self._own_losses(batch, len(position))
            losses = mean_of(each, center.counted)
        else:
            losses, each = self._swept(plan.head, forwards, batch, len(position))
        if not gradient:
            return Evaluated(losses.detach(), each.detach(), None)
        if not losses.requires_grad:
            raise DoesNotFold("the loss does not depend on the weights that move")
        # Runs do not touch one another, so the gradient of their sum holds that of each run.
        (gradients,) = torch.autograd.grad(losses.sum(), position, allow_unused=True)
        if gradients is None:
            raise DoesNotFold("the loss does not depend on the weights that move")
        return Evaluated(losses.detach(), each.detach(), gradients)

    def watched(self, plan: Plan, runs: Positions, batch: Batch, watch: Watch) -> None:
        """Let a pass of several runs be watched, up to the losses."""
        position = runs.position.detach().requires_grad_()
        changes = plan.maps.changes(position, runs.member)
        forwards = self._forwards(plan, changes, {}, len(position), batch)
        with self.evaluating(watch.forwards(forwards)):
            self._own_losses(batch, len(position))

    def _forwards(
        self,
        plan: Plan,
        changes: dict[str, Change],
        kept: Mapping[str, list[Kept]],
        runs: int,
        batch: Batch,
    ) -> dict[str, Forward]:
        """The forwards that replace those of modules in a pass of several runs."""
        leading = {runs * rows_of(batch)}
        forwards: dict[str, Forward] = {"": _noting(self.model.forward, leading)}
        forwards |= self.fused
        forwards |= plan.maps.attentions
        for name, has_rows in plan.unmoved.modules.items():
            forwards[name] = _replayed(name, kept[name], has_rows, runs)
        for name, change in changes.items():
            linear_map = plan.maps.maps[name]
            shared = None
            if name in plan.unmoved.maps:
                shared = kept[name][0]
            forwards[name] = _moved(name, linear_map, change, runs, shared, leading)
        return forwards

    def _own_losses(self, batch: Batch, runs: int) -> Tensor:
        """The loss's own values, ``[run, batch, …]``."""
        losses, _ = self.exact.losses({}, repeated(batch, runs))
        if len(losses) != runs * rows_of(batch):
            raise DoesNotFold("the loss gives another number of values")
        return losses.unflatten(0, (runs, -1))

    def _swept(
        self, head: Head, forwards: dict[str, Forward], batch: Batch, runs: int
    ) -> tuple[Tensor, Tensor]:
        """Mean losses and losses of tokens; logits are made in chunks and not kept."""
        documents = documents_of(batch)
        hidden: list[Tensor] = []

        def instead_of_logits(x: Tensor) -> Tensor:
            hidden.append(x)
            return x[..., :1]

        with self.evaluating({**forwards, head.name: instead_of_logits}):
            self.exact.run(self.logits, {}, _repeated_documents(documents, runs))
        num_documents = runs * len(documents.tokens)
        if len(hidden) != 1 or len(hidden[0]) != num_documents:
            raise DoesNotFold("the head is not called once, with all documents")
        predicted = Predicted.of(documents, next_tokens=self.exact.loss is next_token)
        states = hidden[0].unflatten(0, (runs, -1))
        if predicted.next_tokens:
            states = states[:, :, :-1]
        states = states.flatten(1, 2)
        if predicted.positions is not None:
            states = states[:, predicted.positions]
        module: Any = self.model.get_submodule(head.name)
        W = module.weight.detach()
        if type(module).__name__ == "Conv1D":
            W = W.T
        b = None
        if module.bias is not None:
            b = module.bias.detach()
        losses, each = VocabularyLoss.apply(states, W, b, predicted.ids, head, self.exact.autocast)
        return losses, at_home(each, predicted.home)


class Predicted(NamedTuple):
    """The tokens of a minibatch that are predicted."""

    next_tokens: bool
    """Whether the state at a position predicts the next token, and not its own."""
    ids: Tensor
    """``[position]``."""
    positions: Tensor | None
    """``[position]``: their places in ``[document · pos]``; ``None``: all places, in order."""
    home: Tensor
    """``[row, pos]``: for each token of the minibatch, its number among these; −1 for none."""

    @classmethod
    def of(cls, documents: Documents, next_tokens: bool) -> Predicted:
        """Take the tokens that :func:`rllc.next_token` or :func:`rllc.losses.masked_lm` predicts.

        Args:
            documents: of the minibatch.
            next_tokens: whether it is the former.
        """
        labels = documents.labels
        if labels is None:
            labels = documents.tokens
        is_predicted = documents.wanted()
        if next_tokens:
            labels = labels[:, 1:]
            is_predicted = is_predicted[:, 1:]
        positions = is_predicted.flatten().nonzero()[:, 0]
        number = torch.full((is_predicted.numel(),), -1, device=positions.device)
        number[positions] = torch.arange(len(positions), device=positions.device)
        number = number.view(is_predicted.shape)
        if next_tokens:
            home = predictions_at_home(documents, number, -1)
        else:
            home = documents.at_home(number, -1)
        ids = labels.flatten()[positions]
        if bool(is_predicted.all()):
            return cls(next_tokens, ids, None, home)
        return cls(next_tokens, ids, positions, home)


def repeated(batch: Batch, runs: int) -> Any:
    """A minibatch several times, one after the other."""
    if isinstance(batch, dict):
        return {name: repeated(field, runs) for name, field in batch.items()}
    if isinstance(batch, tuple):
        return tuple(repeated(part, runs) for part in batch)
    other_axes = [1] * (batch.dim() - 1)
    return batch.repeat(runs, *other_axes)


def first_rows(batch: Batch, number: int) -> Any:
    """The first rows of a minibatch."""
    if isinstance(batch, dict):
        return {name: field[:number] for name, field in batch.items()}
    if isinstance(batch, tuple):
        return tuple(part[:number] for part in batch)
    return batch[:number]


def _repeated_documents(documents: Documents, runs: int) -> Documents:
    real = documents.real
    if real is not None:
        real = repeated(real, runs)
    return documents._replace(
        tokens=repeated(documents.tokens, runs),
        real=real,
        extras=repeated(documents.extras, runs),
    )


def _noting(forward: Forward, leading: set[int]) -> Forward:
    """The whole model, which notes how many rows, and positions, it is called with."""

    @wraps(forward, assigned=(), updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        first = first_tensor(args, kwargs)
        if first is not None and first.dim():
            leading.add(len(first))
            leading.add(first.shape[:2].numel())
        return forward(*args, **kwargs)

    return call


def _replayed(name: str, kept: list[Kept], has_rows: list[list[bool]], runs: int) -> Forward:
    """A module that gives in each call what it gave on the minibatch alone, for each run."""
    if len(kept) != len(has_rows):
        raise DoesNotFold(f"{name!r} is not called equally often each time")
    left = iter(zip(kept, has_rows, strict=True))

    def call(*args: Any, **kwargs: Any) -> Any:
        following = next(left, None)
        if following is None:
            raise DoesNotFold(f"{name!r} is not called equally often each time")
        alone, flags = following
        return alone.repeated(runs, flags)

    return call


def _moved(
    name: str,
    map: LinearMap,
    change: Change,
    runs: int,
    shared: Kept | None,
    leading: Collection[int],
) -> Forward:
    """A moved map, of which each run has its own."""
    unmoved: Callable[[Tensor], Tensor] = map.module.forward

    def call(x: Tensor) -> Tensor:
        if shared is not None:
            alone = shared.first_input
            (frozen,) = shared.values
            assert alone is not None
            if x.shape[-1] != alone.shape[-1] or x.numel() != runs * alone.numel():
                # Such as an expert, which gets another share in each run.
                raise DoesNotFold(f"{name!r} is called with {list(x.shape)}, not row by row")
            inputs = alone.reshape(1, -1, alone.shape[-1])
            frozen = frozen.reshape(1, -1, frozen.shape[-1])
        else:
            if len(x) not in leading or len(x) % runs or x.dim() < 2:
                # Such as an expert's share of the tokens.
                raise DoesNotFold(f"{name!r} is called with {list(x.shape)}, not row by row")
            inputs = x.reshape(runs, -1, x.shape[-1])
            frozen = None
            if not change.is_whole:
                frozen = unmoved(x)
                frozen = frozen.reshape(runs, -1, frozen.shape[-1])
        y = map.output(change, inputs, frozen)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    return call
