"""The only contract with a model: one loss per run, its gradient, and the loss at w* on the same minibatch.

:func:`bind` chooses how. For :class:`rllc.models.AttentionOnly` with a token loss, all runs of a group go through one
forward pass that shares what they share, and the unembedding, the softmax, the loss and its gradient are done in one
sweep over chunks of rows that stay in cache. For any other module and any loss of yours, runs are evaluated with
``torch.func.functional_call``, without copying the model.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rllc.engine.layout import Group, Moved, stack, unpack
from rllc.errors import InputError

if TYPE_CHECKING:
    from rllc.models.attention_only import Activations, AttentionOnly

Batch = Tensor | tuple[Tensor, ...]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Yours: ``loss(module, batch)``, giving per-example ``[batch]`` or per-token ``[batch, pos]`` losses."""


_STACKED_FLOPS = 2e7
"""Forward FLOPs below which runs of any module are stacked; see :class:`ModuleLoss`."""


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
    """``[run, dim]``: of each run's mean loss with respect to its own position; ``None`` when not asked for."""
    each: Tensor | None
    """``[run, batch]`` or ``[run, batch, pos]``, when asked for."""


class Loss(Protocol):
    """A loss bound to a model; what :func:`rllc.iterate` evaluates."""

    def center(self, batch: Batch, seed: int) -> Center:
        """Evaluate the model as it is; ``seed`` is for losses that draw random numbers of their own (dropout, say)."""
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
        """Evaluate runs at ``position [run, dim]``, run i being a chain of the group's member ``member[i]``."""
        ...

    def gradient(
        self, names: Collection[str], center: Center, batch: Batch, seed: int
    ) -> dict[str, Tensor]:
        """The gradient of the mean loss at w* with respect to whole parameters, in one backward pass."""
        ...

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:
        """Bytes that each further run of a pass takes while it is evaluated."""
        ...


@dataclass(frozen=True, eq=False)
class Distillation:
    """Cross entropy, in nats per token, against the next-token distribution of ``generator``; see :func:`distillation`."""

    generator: nn.Module

    def __call__(self, module: nn.Module, batch: Tensor) -> Tensor:
        """Per-token losses ``[batch, pos - 1]`` of any module that gives logits."""
        with torch.no_grad(), _mode(self.generator, False):
            target = _logits(self.generator, batch)[:, :-1].softmax(-1)
        logits = _logits(module, batch)[:, :-1]
        _check_vocabularies(target.shape[-1], logits.shape[-1])
        return -(target * logits.log_softmax(-1)).sum(-1)


def distillation(generator: nn.Module) -> Distillation:
    """A loss against what a model predicts, not against the tokens that came: data refined to a model's distribution.

    ℓ(w) = mean over positions of −Σ_v p_gen(v | context) log p_w(v | context). It differs from the KL divergence by a
    constant, which cancels in λ̂. With the one-layer model trained on the same data as ``generator`` it is the
    "ℓ = L1" of arXiv 2410.02984. Contexts are the rows of the data.

    Args:
        generator: gives logits ``[batch, pos, vocab]``, or an output with ``.logits``, on token rows; its vocabulary must
            be the model's. It is only evaluated, in eval mode.

    Raises:
        InputError: ``generator`` is not a torch module.
    """
    if not isinstance(generator, nn.Module):
        raise InputError(
            f"distillation: expected a model (a torch.nn.Module), got {type(generator).__name__}."
        )
    return Distillation(generator)


def next_token(module: nn.Module, batch: Tensor) -> Tensor:
    """Cross entropy of each next token, in nats: ``[batch, pos - 1]`` for token rows ``[batch, pos]``; the default loss.

    For any module that maps token ids to logits ``[batch, pos, vocab]`` or to an output with ``.logits``.
    """
    logits = _logits(module, batch)[:, :-1]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none"
    ).view(batch.shape[0], -1)


def bind(
    model: nn.Module,
    loss: LossFunction | None,
    *,
    autocast: torch.dtype | None = None,
    train_mode: bool = False,
    compile: bool = False,
) -> Loss:
    """The fastest exact evaluation there is for this model and loss.

    Args:
        loss: yours, a :func:`distillation`, or ``None`` for :func:`next_token`.
        autocast: precision of matrix products, such as ``torch.bfloat16``; ``None`` is the model's own.
        train_mode: evaluate the module in training mode (dropout and all) instead of eval mode.
        compile: pass the forward through ``torch.compile``.
    """
    if is_attention_only(model):
        if loss is None or loss is next_token:
            return TokenLoss(model, None, autocast, compile)  # type: ignore[arg-type]
        if isinstance(loss, Distillation) and is_attention_only(loss.generator):
            return TokenLoss(model, loss.generator, autocast, compile)  # type: ignore[arg-type]
    return ModuleLoss(model, next_token if loss is None else loss, autocast, train_mode, compile)


def is_attention_only(model: nn.Module) -> bool:
    """Whether a model has this forward pass, in float32, without hooks.

    Nobody has one before its module, which is slow to import, is there.
    """
    module = sys.modules.get("rllc.models.attention_only")
    return (
        module is not None
        and isinstance(model, module.AttentionOnly)
        and type(model).forward is module.AttentionOnly.forward
        and all(p.dtype == torch.float32 for p in model.parameters())
        and not any(
            m._forward_hooks or m._forward_pre_hooks for m in model.modules()
        )  # which it would not run
    )


class TokenLoss:
    """Next-token or distillation loss of an :class:`rllc.models.AttentionOnly`, all runs at once."""

    def __init__(
        self,
        model: AttentionOnly,
        generator: AttentionOnly | None = None,
        autocast: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        if generator is not None:
            _check_vocabularies(generator.config.d_vocab, model.config.d_vocab)
        self.model, self.generator, self.autocast = model, generator, autocast
        self.parameters = dict(model.named_parameters())
        self.to_hidden = _ToHidden(model)
        self.hidden = torch.compile(model.hidden, dynamic=False) if compile else model.hidden

    @torch.no_grad()
    def center(self, batch: Tensor, seed: int) -> Center:  # noqa: D102 (see Loss)
        with _precision(batch.device, self.autocast):
            at = self.model.activations(
                batch[:, :-1]
            )  # the last token is predicted, but predicts nothing
            target = self._target(batch)
            hidden = self.model.normalise("ln_final", at.residual[-1], {})
        unembed = [self.parameters[name].detach()[None] for name in ("unembed.W_U", "unembed.b_U")]
        _, each = UnembedLoss.apply(hidden, *unembed, target, self.autocast)
        return Center(each[0], (at, target))

    def runs(  # noqa: D102 (see Loss)
        self,
        group: Group,
        member: Tensor,
        position: Tensor,
        center: Center,
        batch: Tensor,
        *,
        gradient: bool,
        each: bool,
    ) -> Runs:
        at, target = center.shared
        with torch.set_grad_enabled(gradient):
            position = position.detach().requires_grad_(gradient)
            moved = unpack(group, position, member, self.parameters)
            losses, tokens = self._losses(moved, at, target)
            grad = torch.autograd.grad(losses.sum(), position)[0] if gradient else None
        losses = losses.detach().expand(len(position))
        return Runs(losses, grad, tokens.expand(len(position), -1, -1) if each else None)

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center, batch: Tensor, seed: int
    ) -> dict[str, Tensor]:
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad(), _precision(batch.device, self.autocast):
            changed = {f"model.{name}": leaf for name, leaf in leaves.items()}
            hidden = torch.func.functional_call(self.to_hidden, changed, (batch[:, :-1],))
            W_U, b_U = (
                leaves.get(n, self.parameters[n].detach())[None]
                for n in ("unembed.W_U", "unembed.b_U")
            )
            mean, _ = UnembedLoss.apply(hidden, W_U, b_U, center.shared[1], self.autocast)
            gradients = torch.autograd.grad(
                mean.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(leaves, gradients, strict=True))

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        c = self.model.config
        positions, width = batch_shape[0] * batch_shape[1], max(c.d_model, c.n_heads * c.d_head)
        blocks = c.n_layers - max(self.model.first_block([slot.name for slot in group.slots]), 0)
        # Kept for the backward pass: about 16 activations as wide as the model a block, the hidden state and its gradient.
        # Chain state, noise, gradient and a second look: about 12 numbers a weight, the gradients of a moved unembedding one.
        return 4 * (positions * width * (16 * blocks + 4) + 12 * group.dim)

    def _losses(
        self, moved: dict[str, Moved], at: Activations, target: Target
    ) -> tuple[Tensor, Tensor]:
        with _precision(at.tokens.device, self.autocast):
            hidden = self.hidden(moved, at)
        W_U, b_U = (self.model.weight(name, moved) for name in ("unembed.W_U", "unembed.b_U"))
        return UnembedLoss.apply(hidden, W_U, b_U, target, self.autocast)

    def _target(self, batch: Tensor) -> Target:
        shape = batch.shape[0], batch.shape[1] - 1
        if self.generator is None:
            return Target(shape, batch[:, 1:].flatten(), None)
        g = self.generator
        hidden = g.normalise("ln_final", g.activations(batch[:, :-1]).residual[-1], {})[0].flatten(
            0, 1
        )
        return Target(shape, None, (hidden.float(), g.unembed.W_U.detach(), g.unembed.b_U.detach()))


class _ToHidden(nn.Module):
    """The model up to its unembedding, as a module, which is what functional_call can put weights into."""

    def __init__(self, model: AttentionOnly) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.normalise("ln_final", self.model.activations(tokens).residual[-1], {})


class Target(NamedTuple):
    """What is to be predicted at each of ``position = batch × (pos − 1)``: q, one-hot for tokens, or a model's softmax."""

    shape: tuple[int, int]
    """``(batch, pos − 1)``."""
    ids: Tensor | None
    """``[position]``, for tokens."""
    generator: tuple[Tensor, Tensor, Tensor] | None
    """The generating model's hidden state ``[position, d_model]``, W_U and b_U."""

    def at(self, rows: slice) -> Goal:
        """The target of some positions; a softmax is made when it is needed and never kept."""
        if self.generator is None:
            return Goal(self.ids[rows], None)  # type: ignore[index]
        hidden, W_U, b_U = self.generator
        return Goal(None, torch.addmm(b_U, hidden[rows], W_U).softmax(-1))


class Goal(NamedTuple):
    """The target q of a chunk of positions: token ids, or probabilities ``[position, vocab]``."""

    ids: Tensor | None
    q: Tensor | None

    def pull(self, W_T: Tensor) -> Tensor:
        """qWᵀ ``[position, d_model]``."""
        return W_T[self.ids] if self.q is None else self.q @ W_T

    def lift(self, b: Tensor) -> Tensor:
        """q·b ``[position]``."""
        return b[self.ids] if self.q is None else self.q @ b

    def subtract_from(self, p: Tensor) -> Tensor:
        """p − q, in the memory of p."""
        if self.q is not None:
            return p.sub_(self.q)
        assert self.ids is not None
        return p.scatter_add_(1, self.ids[:, None], p.new_full((len(p), 1), -1.0))


class UnembedLoss(torch.autograd.Function):
    """Unembedding, softmax, cross entropy and their gradient in one sweep over chunks of positions.

    Per position with hidden state x, logits z = xW + b, target distribution q (one-hot for tokens) and p = softmax(z):
    loss = logsumexp(z) − q·z, ∂/∂x = (p − q)Wᵀ, ∂/∂W = xᵀ(p − q), ∂/∂b = p − q. The target's part, q·z = x·(qWᵀ) + q·b,
    needs no vocabulary-sized work beyond qWᵀ, which runs share. exp(z) is left unnormalised and the division by its sum
    is done on the d_model-sized result. The logits of a chunk are overwritten in place and never leave the cache.

    Returns:
        ``(mean loss [run] in float64, each loss [run, batch, pos − 1] without gradient)``; run is 1 if nothing moved.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, hidden: Tensor, W: Tensor, b: Tensor, target: Target, autocast: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        want_x, want_W, want_b = ctx.needs_input_grad[:3]
        runs, (batch, pos) = max(len(hidden), len(W), len(b)), target.shape
        x = hidden.reshape(len(hidden), batch * pos, -1)
        each = x.new_empty(runs, batch * pos)
        d_x = torch.empty_like(x) if want_x else None
        d_W = torch.zeros(runs, *W.shape[1:], device=W.device) if want_W else None
        d_b = torch.zeros(runs, *b.shape[1:], device=b.device) if want_b else None
        low_W, low_b = (w if autocast is None else w.to(autocast) for w in (W, b))
        W_T, low_W_T = (
            W.mT.contiguous(),
            low_W.mT.contiguous(),
        )  # products and look-ups are faster along rows
        chunks = list(_chunks(batch * pos, W.shape[-1], x.device))
        room = x.new_empty(
            chunks[0].stop, W.shape[-1], dtype=low_W.dtype
        )  # one chunk's logits, used again and again
        for rows in chunks:
            goal = target.at(rows)
            pull = goal.pull(W_T[0]) if len(W) == 1 else None
            for r in range(runs):
                x_r, W_r, b_r, W_back, W_pull, b_pull = (
                    part[r if len(part) > 1 else 0] for part in (x, low_W, low_b, low_W_T, W_T, b)
                )
                x_r = x_r[rows]
                pull_r = goal.pull(W_pull) if pull is None else pull
                z = torch.addmm(b_r, x_r.to(W_r.dtype), W_r, out=room[: len(x_r)]).float()
                top = z.amax(1, keepdim=True)
                total = z.sub_(top).exp_().sum(1, keepdim=True)
                each[r, rows] = (
                    (top + total.log())[:, 0] - (x_r * pull_r).sum(1) - goal.lift(b_pull)
                )
                if d_x is not None:
                    torch.sub(
                        (z.to(W_back.dtype) @ W_back).float().div_(total), pull_r, out=d_x[r, rows]
                    )
                if d_W is not None or d_b is not None:
                    p_minus_q = goal.subtract_from(z.div_(total))
                    if d_W is not None:
                        d_W[r].addmm_(x_r.T, p_minus_q)
                    if d_b is not None:
                        d_b[r].add_(p_minus_q.sum(0))
        ctx.gradients = None if d_x is None else d_x.view(hidden.shape), d_W, d_b
        ctx.count = batch * pos
        losses, each = each.double().mean(1), each.view(runs, batch, pos)
        ctx.mark_non_differentiable(each)
        return losses, each

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        weight = d_losses.float() / ctx.count
        scaled = (
            None if d is None else d * weight.view(-1, *(1,) * (d.dim() - 1)) for d in ctx.gradients
        )
        return *scaled, None, None


class ModuleLoss:
    """Any module, any loss, through ``torch.func.functional_call``; the model is never copied.

    Small work is done for all runs at once under ``torch.func.vmap``, large work one run after the other, because
    batched kernels are slower than single ones once these fill the cores: measured on two cores, stacking is 12 times
    faster at 2e4 FLOPs of a forward pass, even at about 2e7, and 2.6 times slower at 1e9. The FLOPs are counted once,
    on the first minibatch, so that the choice, and with it every bit of the result, does not depend on a stopwatch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        autocast: torch.dtype | None = None,
        train_mode: bool = False,
        compile: bool = False,
    ) -> None:
        self.model, self.loss, self.autocast, self.train_mode = model, loss, autocast, train_mode
        self.wrapper = _Call(model, loss)
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.device = next(iter(self.parameters.values())).device
        self.stacked: bool | None = None
        self.compile, self.call = compile, torch.func.functional_call

    def center(self, batch: Batch, seed: int) -> Center:  # noqa: D102 (see Loss)
        with torch.no_grad(), self._seeded(seed), _mode(self.model, self.train_mode):
            before = self._random_state()
            losses = self._count({}, batch) if self.stacked is None else self._call({}, batch)
            random = not torch.equal(before, self._random_state())
        if random:
            self.stacked = False  # each run must draw the same numbers
        return Center(losses.detach(), seed if random else None)

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
        def evaluate(some: slice) -> tuple[Tensor, Tensor | None]:
            with torch.set_grad_enabled(gradient):
                mine = position[some].detach().requires_grad_(gradient)
                moved = unpack(group, mine, member[some], self.parameters)
                changed = {
                    n: stack(m, self.parameters[n]).to(self.parameters[n].dtype)
                    for n, m in moved.items()
                }
                if self.stacked:
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", message="There is a performance drop")
                        examples = torch.func.vmap(lambda one: self._call(one, batch))(changed)
                else:
                    examples = self._call({n: values[0] for n, values in changed.items()}, batch)[
                        None
                    ]
                means = examples.double().flatten(1).mean(1)
                if gradient and not means.requires_grad:
                    raise InputError(
                        f"the loss does not depend on the weights that move ({', '.join(s.name for s in group.slots[:4])}"
                        f"{', …' if len(group.slots) > 4 else ''}): the model does not use them, or the loss detaches them; "
                        f"choose other weights, and take torch.no_grad() and .detach() out of the loss."
                    )
                return examples.detach(), torch.autograd.grad(means.sum(), mine)[
                    0
                ] if gradient else None

        with _mode(self.model, self.train_mode):
            if self.stacked:
                try:
                    parts = [evaluate(slice(None))]
                except RuntimeError:  # an operation that cannot be batched, or that looks at values
                    self.stacked = False
            if not self.stacked:
                parts = []
                for r in range(len(position)):
                    with self._seeded(center.shared):
                        parts.append(evaluate(slice(r, r + 1)))
        examples = torch.cat([losses for losses, _ in parts])
        gradients = torch.cat([g for _, g in parts if g is not None]) if gradient else None
        return Runs(
            examples.double().flatten(1).mean(1), gradients, examples.float() if each else None
        )

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center, batch: Batch, seed: int
    ) -> dict[str, Tensor]:
        leaves = {name: self.parameters[name].clone().requires_grad_() for name in names}
        with torch.enable_grad(), self._seeded(seed), _mode(self.model, self.train_mode):
            mean = self._call(leaves, batch).double().mean()
            gradients = torch.autograd.grad(
                mean, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(leaves, gradients, strict=True))

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        return (
            4 * 12 * group.dim
        )  # state, noise and gradient; activations are small or of one run at a time

    def _random_state(self) -> Tensor:
        return (
            torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else torch.get_rng_state()
        )

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        """Global random numbers from ``seed``, put back afterwards; nothing for ``None``.

        A loss that draws (dropout) so draws the same for every run of a step and for the baseline, whatever the company.
        """
        if seed is None:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _count(self, changed: dict[str, Tensor], batch: Batch) -> Tensor:
        """The first evaluation, which also counts its FLOPs and checks the shape of what the loss gives."""
        with FlopCounterMode(display=False) as counter:
            losses = self._call(changed, batch)
        rows = len(batch[0] if isinstance(batch, tuple) else batch)
        if not isinstance(losses, Tensor) or losses.dim() not in (1, 2) or len(losses) != rows:
            got = (
                f"shape {tuple(losses.shape)}"
                if isinstance(losses, Tensor)
                else type(losses).__name__
            )
            raise InputError(
                f"`loss(module, batch)` must give per-example [batch] or per-token [batch, pos] losses, here with "
                f"batch = {rows}, got {got}; with a torch loss, pass reduction='none'."
            )
        self.stacked = counter.get_total_flops() < _STACKED_FLOPS
        if self.compile:
            self.stacked, self.call = False, torch.compile(self.call, dynamic=False)
        return losses

    def _call(self, changed: dict[str, Tensor], batch: Batch) -> Tensor:
        buffers = {
            f"module.{name}": b.clone() for name, b in self.model.named_buffers()
        }  # a forward may update them
        weights = {f"module.{name}": changed.get(name, p) for name, p in self.parameters.items()}
        with _precision(self.device, self.autocast):
            return self.call(self.wrapper, weights | buffers, (batch,))


class _Call(nn.Module):
    """``loss(module, batch)`` as a module, which is what functional_call can put weights into."""

    def __init__(self, module: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.module, batch)


def _precision(device: torch.device, autocast: torch.dtype | None) -> Any:
    return nullcontext() if autocast is None else torch.autocast(device.type, autocast)


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Every submodule in one mode, and back to its own."""
    other = [module for module in model.modules() if module.training != training]
    for module in other:
        module.training = training
    try:
        yield
    finally:
        for module in other:
            module.training = not training


def _logits(module: nn.Module, batch: Tensor) -> Tensor:
    output = module(batch)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise InputError(
            f"the default loss needs a module that maps token ids [batch, pos] to logits [batch, pos, vocab], or to an "
            f"output with .logits; {type(module).__name__} gave {type(output).__name__}. Pass loss=f with "
            f"f(module, batch) giving per-example losses."
        )
    return logits


def _check_vocabularies(generator: int, model: int) -> None:
    if generator != model:
        raise InputError(
            f"distillation: the generating model has {generator} token ids, the sampled model {model}; both must have one "
            f"vocabulary, so take a generating model trained with the same tokenizer."
        )


def _chunks(count: int, vocab: int, device: torch.device) -> Iterator[slice]:
    """Chunks of positions whose logits fill about 2.5 MB on a CPU (measured best: they stay in cache), 1 GB on a GPU."""
    numbers = 640_000 if device.type == "cpu" else 256_000_000
    size = max(16, min(count, numbers // vocab))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
