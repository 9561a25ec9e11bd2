"""Any module and any loss, through ``torch.func.functional_call`` on modules of our own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from rllc.engine.layout import Group, stack, unpack
from rllc.engine.modes import (
    Count,
    GlobalNumbers,
    in_mode,
    in_precision,
    leaving_no_batches,
    one_arithmetic,
    seeded,
)
from rllc.engine.private import private_copy
from rllc.errors import InputError, RllcError, first_line
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.contract import (
    Batch,
    Center,
    LossFunction,
    Runs,
    check_rows_counted,
    mean_of,
    num_counted,
)
from rllc.losses.documents import shown

T = TypeVar("T")

_WARNINGS = threading.RLock()
"""Held while warnings are filtered, which is for all threads at once."""

_STACKED_FLOPS = 2e7
"""Forward FLOPs below which runs are stacked; see :class:`ModuleLoss`."""


_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""Errors that PyTorch and Python raise where model, loss and data do not fit together."""


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
        self.is_own = loss is not next_token and not isinstance(loss, Distillation)
        self.wrapper = Call(model, loss)
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.device = next(iter(self.parameters.values())).device
        self.stacked: bool | None = None
        self.random = False
        """Whether the loss draws global random numbers: each run must then draw the same."""
        self.unwatched = {"center", "runs"}
        """Kinds of evaluation that have not been watched yet for NumPy's and Python's numbers."""
        self.call = torch.func.functional_call

    def center(self, batch: Batch, seed: int) -> Center:  # noqa: D102 (see Loss)
        evaluate = self._first if self.stacked is None else self.losses
        with one_arithmetic(), in_mode(self.model, self.train_mode):
            losses, mask = self.seeded("center", seed, batch, lambda: evaluate({}, batch))
        losses = losses.detach()
        counted = what_counts(losses, mask, batch, self.is_own)
        if counted is not None:
            losses = losses.masked_fill(~counted, torch.nan)
        return Center(losses, seed, counted)

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
        counted = center.counted

        def evaluate(runs: slice) -> tuple[Tensor, Tensor | None]:
            moved = position[runs]
            return self._evaluate(group, member[runs], moved, batch, counted, gradient)

        def one(run: int) -> tuple[Tensor, Tensor | None]:
            runs = slice(run, run + 1)
            return self.seeded("runs", center.shared, batch, lambda: evaluate(runs))

        parts: list[tuple[Tensor, Tensor | None]] = []
        with one_arithmetic(), in_mode(self.model, self.train_mode):
            if self.stacked:
                try:
                    parts = [evaluate(slice(None))]
                except RuntimeError:  # an operation that cannot be batched, or that looks at values
                    self.stacked = False
            if not parts:
                parts = [one(run) for run in range(len(position))]
        examples = torch.cat([losses for losses, _ in parts])
        gradients = [slope for _, slope in parts if slope is not None]
        if each and counted is not None:
            examples = examples.masked_fill(~counted, torch.nan)
        return Runs(
            mean_of(examples, counted),
            torch.cat(gradients) if gradient else None,
            examples.float() if each else None,
        )

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center | None, batch: Batch, seed: int
    ) -> tuple[dict[str, Tensor], int]:
        if center is None and self.stacked is None:
            center = self.center(batch, seed)
        leaves = {name: self.parameters[name].clone().requires_grad_() for name in names}
        mode = in_mode(self.model, self.train_mode)
        with one_arithmetic(), mode:
            losses, mask = self.seeded("runs", seed, batch, lambda: self.losses(leaves, batch))
            if center is None:
                counted = what_counts(losses.detach(), mask, batch, self.is_own)
            else:
                counted = center.counted
            mean = mean_of(losses[None], counted)[0]
            if not mean.requires_grad:
                raise _no_gradient(list(leaves))
            gradients = torch.autograd.grad(
                mean, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(leaves, gradients, strict=True)), num_counted(losses, counted)

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        # State, noise and gradient. Activations are small, or of one run at a time.
        return 4 * 12 * group.num_weights

    @property
    def ways(self) -> list[str]:  # noqa: D102 (see Loss)
        return ["stacked" if self.stacked else "run by run"]

    def _evaluate(
        self,
        group: Group,
        member: Tensor,
        position: Tensor,
        batch: Batch,
        counted: Tensor | None,
        gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Each example's loss ``[run, …]`` and, if asked for, the gradient ``[run, dim]``."""
        position = position.detach().requires_grad_(gradient)
        changed = {}
        for name, moved in unpack(group, position, member, self.parameters).items():
            parameter = self.parameters[name]
            changed[name] = stack(moved, parameter).to(parameter.dtype)
        if self.stacked:
            no_batches = leaving_no_batches(self.model)
            with _WARNINGS, warnings.catch_warnings(), no_batches:
                warnings.filterwarnings("ignore", message="There is a performance drop")
                examples = torch.func.vmap(lambda weights: self.losses(weights, batch)[0])(changed)
        else:
            first = {name: values[0] for name, values in changed.items()}
            examples = self.losses(first, batch)[0][None]
        if not gradient:
            return examples.detach(), None
        means = mean_of(examples, counted)
        if not means.requires_grad:
            raise _no_gradient([slot.name for slot in group.slots])
        (slope,) = torch.autograd.grad(means.sum(), position, allow_unused=True)
        if slope is None:
            raise _no_gradient([slot.name for slot in group.slots])
        return examples.detach(), slope

    def seeded(
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

    def _first(self, changed: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Evaluate for the first time, count the FLOPs, and check what the loss gives."""
        try:
            with Count() as count:
                result = self._call(changed, batch)
        except (RllcError, torch.OutOfMemoryError):
            raise
        except _MISFITS as error:
            raise self._fails(error, batch) from error
        _check_losses(result, batch)
        self.stacked = count.flops < _STACKED_FLOPS and not self.random
        if self.compile and self.call is torch.func.functional_call:
            self.stacked, self.call = False, torch.compile(self.call, dynamic=False)
        return _split(result)

    def _fails(self, error: Exception, batch: Batch) -> InputError:
        """Return an error with advice, where model and loss cannot be evaluated at all."""
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        parts = [parts] if isinstance(parts, Tensor) else list(parts)
        of_data = {part.dtype for part in parts if part.is_floating_point()}
        of_model = {p.dtype for p in self.parameters.values() if p.is_floating_point()}
        advice = "see the error above"
        if of_data and len(of_model) == 1 and not of_data <= of_model:
            (dtype,) = of_model
            advice = f"the weights are {dtype}: give data of the same kind, data.to({dtype})"
        return InputError(
            f"evaluating the loss of {type(self.model).__name__} on the first minibatch "
            f"({shown(batch)}) failed: {type(error).__name__}: {first_line(error)} The loss is "
            f"called as loss(module, batch) with this minibatch; {advice}."
        )

    def losses(self, changed: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Evaluate the loss with other weights: losses, and its mask if it gives one."""
        return _split(self._call(changed, batch))

    def _call(self, changed: dict[str, Tensor], batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        return self.run(self.wrapper, changed, batch)

    def run(self, wrapper: nn.Module, changed: dict[str, Tensor], batch: Any) -> Any:
        """Run the model, with other weights, as a wrapper around it does.

        Args:
            wrapper: has the model as ``module``.
            changed: weights by name.
            batch: what the wrapper takes.
        """
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"module.{name}"] = changed.get(name, parameter)
        # A forward pass may update buffers, so it gets copies.
        for name, buffer in self.model.named_buffers():
            tensors[f"module.{name}"] = buffer.clone()
        with in_precision(self.device, self.autocast):
            return self.call(wrapper, tensors, (batch,))


class Call(nn.Module):
    """``loss(module, batch)`` as a module that functional_call can put weights into."""

    loss: Callable[[nn.Module, Any], Any]

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        # Past nn.Module, which would take a loss that is a module, and may hold the model that was
        # given, for a part into which weights are put, too.
        object.__setattr__(self, "loss", loss)

    def forward(self, batch: Any) -> Any:
        """Return what the loss gives."""
        return self.loss(self.module, batch)


def _no_gradient(parameters: Sequence[str]) -> InputError:
    names = ", ".join(parameters[:4])
    more = ", …" if len(parameters) > 4 else ""
    return InputError(
        f"the loss does not depend on the weights that move ({names}{more}): the model does not "
        f"use them, the loss detaches them, or it runs another module than the one that it is "
        f"given; choose other weights, take torch.no_grad() and .detach() out of the loss, and in "
        f"f(module, batch) call `module`."
    )


def _split(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Losses, and the mask of what counts if there is one."""
    if isinstance(result, tuple):
        losses, mask = result
        return losses, mask
    return result, None


def what_counts(losses: Tensor, mask: Tensor | None, batch: Batch, is_own: bool) -> Tensor | None:
    """Which losses at w* count, ``[batch]`` or ``[batch, pos]``; ``None``: all.

    Args:
        losses: at w*.
        mask: that came with them.
        batch: the minibatch.
        is_own: whether the loss is the caller's own, so that NaN may mark what does not count.

    Raises:
        InputError: a row has nothing that counts, or ignored positions were counted as 0.
    """
    if mask is not None:
        counted = mask.bool()
    elif not is_own:
        return None
    else:
        counted = ~losses.isnan()
        if not bool(counted.any()):
            # A model that is broken, not one with nothing to predict.
            return None
        _check_zeros(losses, batch)
    if bool(counted.all()):
        return None
    check_rows_counted(counted)
    return counted


def _check_zeros(losses: Tensor, batch: Batch) -> None:
    """Refuse a loss that is 0 exactly where the batch says that nothing is to be predicted."""
    zero = losses.detach() == 0
    if not bool(zero.any()):
        return
    for name, ignored in _ignored_by_batch(batch, losses.shape):
        are_ignored_zero = bool((zero | ~ignored).all())
        has_other_losses = bool((~zero & ~ignored).any())
        if are_ignored_zero and bool(ignored.any()) and has_other_losses:
            raise InputError(
                f"the loss gives 0 at {int(ignored.sum())} of {losses.numel()} positions, just "
                f"those that are ignored by {name}; they would be counted as perfect predictions. "
                f"Return (loss, mask) with a mask that is true where a loss counts, such as "
                f"labels != -100, or NaN where it does not."
            )


def _ignored_by_batch(batch: Batch, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
    """Yield parts of a batch that may say which losses do not count."""
    if isinstance(batch, Tensor):
        return
    named = batch.items() if isinstance(batch, dict) else enumerate(batch)
    for name, part in named:
        is_mask = part.dtype == torch.bool or "mask" in str(name)
        if is_mask:
            ignored = part == 0
        elif part.is_floating_point() or not part.numel() or int(part.max()) <= 1:
            # Numbers, or the labels 1 and -1 of two classes.
            continue
        else:
            ignored = part < 0
        where = f"{name!r}" if isinstance(name, str) else f"part {name} of the batch"
        if ignored.shape == shape:
            yield where, ignored
        if ignored.dim() == 2 and ignored[:, 1:].shape == shape:
            yield where, ignored[:, 1:]


def rows_of(batch: Batch) -> int:
    """How many rows a minibatch has."""
    if isinstance(batch, dict):
        return len(next(iter(batch.values())))
    return len(batch[0] if isinstance(batch, tuple) else batch)


def _check_losses(result: object, batch: Batch) -> None:
    rows = rows_of(batch)
    losses: Any = result
    mask: Any = None
    has_mask = False
    if isinstance(result, tuple) and len(result) == 2:
        losses, mask = result
        has_mask = True
    fits = isinstance(losses, Tensor) and losses.dim() in (1, 2) and len(losses) == rows
    if fits and losses.is_complex():
        raise InputError(
            "`loss(module, batch)` gave complex losses; return real ones, such as losses.real or "
            "losses.abs()."
        )
    if fits and (not has_mask or _is_mask(mask, losses.shape)):
        return
    if fits:
        raise InputError(
            f"`loss(module, batch)` gave (losses, mask), where the mask must be of the losses' "
            f"shape {tuple(losses.shape)} and true or 1 where a loss counts, else false or 0; got "
            f"{_shape_or_type(mask)}. To give losses other weights, multiply them."
        )
    raise InputError(
        f"`loss(module, batch)` must give per-example [batch] or per-token [batch, pos] losses; "
        f"expected batch = {rows}, got {_shape_or_type(losses)}; with a torch loss, pass "
        f"reduction='none'."
    )


def _shape_or_type(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    return type(value).__name__


def _is_mask(mask: object, shape: torch.Size) -> bool:
    if not isinstance(mask, Tensor) or mask.shape != shape:
        return False
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())
