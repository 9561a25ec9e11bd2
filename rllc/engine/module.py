"""Any module and any loss, through ``torch.func.functional_call`` on modules of our own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from rllc.engine.layout import Group, stack, unpack
from rllc.engine.modes import Count, GlobalNumbers, in_mode, in_precision, seeded
from rllc.engine.private import private_copy
from rllc.errors import InputError
from rllc.loss import Batch, Center, Distillation, LossFunction, Runs

T = TypeVar("T")

_WARNINGS = threading.RLock()
"""Held while warnings are filtered, which is for all threads at once."""

_STACKED_FLOPS = 2e7
"""Forward FLOPs below which runs are stacked; see :class:`ModuleLoss`."""


class ModuleLoss:
    """A loss of yours, of any module.

    Small work is done for all runs at once under ``torch.func.vmap``, large work one run after the
    other, because batched kernels are slower than single ones once these fill the cores. Measured
    on two cores, stacking is 12 times faster at 2e4 FLOPs of a forward pass, even at about 2e7, and
    2.6 times slower at 1e9. The FLOPs are counted once, on the first minibatch, so that the choice,
    and with it every bit of the result, does not depend on a stopwatch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        autocast: torch.dtype | None = None,
        train_mode: bool = False,
        compile: bool = False,
    ) -> None:
        model = private_copy(model)
        if isinstance(loss, Distillation):
            # Its mode is changed for each batch, and it may be the model that is sampled.
            loss = Distillation(private_copy(loss.generator))
        self.model, self.loss, self.autocast = model, loss, autocast
        self.train_mode, self.compile = train_mode, compile
        self.wrapper = _Call(model, loss)
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.device = next(iter(self.parameters.values())).device
        self.stacked: bool | None = None
        self.random = False
        """Whether the loss draws global random numbers: each run must then draw the same."""
        self.unwatched = {"center", "runs"}
        """Kinds of evaluation that have not been watched yet for NumPy's and Python's numbers."""
        self.call = torch.func.functional_call

    def center(self, batch: Batch, seed: int) -> Center:  # noqa: D102 (see Loss)
        evaluate = self._first if self.stacked is None else self._call
        with torch.no_grad(), in_mode(self.model, self.train_mode):
            losses = self._seeded("center", seed, batch, lambda: evaluate({}, batch))
        return Center(losses.detach(), seed)

    def runs(  # noqa: D102 (see Loss)
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
        def evaluate(runs: slice) -> tuple[Tensor, Tensor | None]:
            with torch.set_grad_enabled(gradient):
                return self._evaluate(group, member[runs], position[runs], batch, gradient)

        def one(run: int) -> tuple[Tensor, Tensor | None]:
            runs = slice(run, run + 1)
            return self._seeded("runs", center.shared, batch, lambda: evaluate(runs))

        parts: list[tuple[Tensor, Tensor | None]] = []
        with in_mode(self.model, self.train_mode):
            if self.stacked:
                try:
                    parts = [evaluate(slice(None))]
                except RuntimeError:  # an operation that cannot be batched, or that looks at values
                    self.stacked = False
            if not parts:
                parts = [one(run) for run in range(len(position))]
        examples = torch.cat([losses for losses, _ in parts])
        gradients = [slope for _, slope in parts if slope is not None]
        return Runs(
            examples.double().flatten(1).mean(1),
            torch.cat(gradients) if gradient else None,
            examples.float() if each else None,
        )

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center, batch: Batch, seed: int
    ) -> dict[str, Tensor]:
        leaves = {name: self.parameters[name].clone().requires_grad_() for name in names}
        mode = in_mode(self.model, self.train_mode)
        with torch.enable_grad(), mode:
            losses = self._seeded("runs", seed, batch, lambda: self._call(leaves, batch))
            mean = losses.double().mean()
            if not mean.requires_grad:
                raise _no_gradient(list(leaves))
            gradients = torch.autograd.grad(
                mean, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(leaves, gradients, strict=True))

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        # State, noise and gradient. Activations are small, or of one run at a time.
        return 4 * 12 * group.dim

    def _evaluate(
        self, group: Group, member: Tensor, position: Tensor, batch: Batch, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Each example's loss ``[run, …]`` and, if asked for, the gradient ``[run, dim]``."""
        position = position.detach().requires_grad_(gradient)
        changed = {}
        for name, moved in unpack(group, position, member, self.parameters).items():
            parameter = self.parameters[name]
            changed[name] = stack(moved, parameter).to(parameter.dtype)
        if self.stacked:
            with _WARNINGS, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                examples = torch.func.vmap(lambda weights: self._call(weights, batch))(changed)
        else:
            first = {name: values[0] for name, values in changed.items()}
            examples = self._call(first, batch)[None]
        if not gradient:
            return examples.detach(), None
        means = examples.double().flatten(1).mean(1)
        if not means.requires_grad:
            raise _no_gradient([slot.name for slot in group.slots])
        return examples.detach(), torch.autograd.grad(means.sum(), position)[0]

    def _seeded(
        self, kind: Literal["center", "runs"], seed: int, batch: Batch, evaluate: Callable[[], T]
    ) -> T:
        """Evaluate, from a seed where the loss draws global random numbers.

        Where it does not, the global generators are left alone, because other threads may draw from
        them. Whether it does is looked at each time: it may draw only now and then, or only where
        gradients are wanted.
        """
        if not self.random:
            everything = kind in self.unwatched
            self.unwatched.discard(kind)
            before = GlobalNumbers.now(self.device, everything)
            result = evaluate()
            after = GlobalNumbers.now(self.device, everything)
            in_torch = after.differ_of_torch(before) and self._draws(batch)
            if not in_torch and not after.differ_elsewhere(before):
                return result
            before.put_back()
            self.random, self.stacked = True, False
        with seeded(seed, self.device):
            return evaluate()

    def _draws(self, batch: Batch) -> bool:
        """Whether the loss draws torch's random numbers, and not another thread."""
        leaves = {name: p.clone().requires_grad_() for name, p in self.parameters.items()}
        with Count() as count, seeded(0, self.device):
            with torch.enable_grad():
                self._call(leaves, batch)
            with torch.no_grad():
                self._call({}, batch)
        return count.draws

    def _first(self, changed: dict[str, Tensor], batch: Batch) -> Tensor:
        """Evaluate for the first time, count the FLOPs, and check what the loss gives."""
        with Count() as count:
            losses = self._call(changed, batch)
        _check_losses(losses, batch)
        self.stacked = count.flops < _STACKED_FLOPS and not self.random
        if self.compile and self.call is torch.func.functional_call:
            self.stacked, self.call = False, torch.compile(self.call, dynamic=False)
        return losses

    def _call(self, changed: dict[str, Tensor], batch: Batch) -> Tensor:
        # A forward pass may update buffers, so it gets copies.
        buffers = {f"module.{name}": b.clone() for name, b in self.model.named_buffers()}
        weights = {f"module.{name}": changed.get(name, p) for name, p in self.parameters.items()}
        with in_precision(self.device, self.autocast):
            return self.call(self.wrapper, weights | buffers, (batch,))


class _Call(nn.Module):
    """``loss(module, batch)`` as a module that functional_call can put weights into."""

    loss: LossFunction

    def __init__(self, module: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.module = module
        # Past nn.Module, which would take a loss that is a module, and may hold the model that was
        # given, for a part into which weights are put, too.
        object.__setattr__(self, "loss", loss)

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.module, batch)


def _no_gradient(parameters: Sequence[str]) -> InputError:
    names = ", ".join(parameters[:4])
    more = ", …" if len(parameters) > 4 else ""
    return InputError(
        f"the loss does not depend on the weights that move ({names}{more}): the model does not "
        f"use them, or the loss detaches them; choose other weights, and take torch.no_grad() and "
        f".detach() out of the loss."
    )


def _check_losses(losses: object, batch: Batch) -> None:
    rows = len(batch[0] if isinstance(batch, tuple) else batch)
    if isinstance(losses, Tensor) and losses.dim() in (1, 2) and len(losses) == rows:
        return
    shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    raise InputError(
        f"`loss(module, batch)` must give per-example [batch] or per-token [batch, pos] losses; "
        f"expected batch = {rows}, got {shape}; with a torch loss, pass reduction='none'."
    )
