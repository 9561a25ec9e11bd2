"""The mean loss of stated rows as a function of chosen weights, to be differentiated twice."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rllc.data.data import Data
from rllc.engine.layout import Group, center, digest, groups, stack, to, unpack
from rllc.engine.modes import in_mode, one_arithmetic, seeded, undisturbed
from rllc.engine.module import ModuleLoss, what_counts
from rllc.errors import InputError, first_line
from rllc.losses.by_name import logits_of, next_token
from rllc.losses.checks import check_baseline
from rllc.losses.contract import Batch, LossFunction
from rllc.losses.documents import documents_of
from rllc.samplers import sgld
from rllc.sampling.checks import arguments, check
from rllc.sampling.settings import Sampling, check_counts
from rllc.seeds import generator, stable_hash
from rllc.weights import refinement
from rllc.weights.refinement import DataLike, WeightsLike
from rllc.wrappers import unwrapped

Labels = Literal["model", "data"] | Callable[[nn.Module, Any, Generator], Any]
"""Where labels come from; see :func:`rllc.analysis.curvature.fisher_trace`."""


@dataclass(frozen=True)
class Probing:
    """On how much data, and with how many random probes.

    >>> Probing(num_probes=64).num_rows is None
    True

    Args:
        num_probes: random vectors, or drawings of labels, for each refinement. The standard error
            falls as 1/√num_probes; 16 also let it be known to 18 %.
        num_rows: how many rows of each data set, chosen at random; ``None`` is all. Results are
            exact for these rows: their errors do not cover the choice.
        batch_size: rows that go through the model together. Takes memory; Hessians depend on it
            only by rounding.
        seed: of probes and of the choice of rows.

    Raises:
        InputError: a number is out of its range.
    """

    num_probes: int = 16
    num_rows: int | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts("Probing", num_probes=(self.num_probes, 2), batch_size=(self.batch_size, 1))
        if self.num_rows is not None:
            check_counts("Probing", num_rows=(self.num_rows, 1))
        if not isinstance(self.seed, int):
            raise InputError(f"Probing: `seed` must be an integer, got {self.seed!r}.")


@dataclass(eq=False)
class Surface:
    """The mean loss of some rows as a function of one choice of weights, near where they are."""

    weights: str
    data: str
    bound: ModuleLoss
    group: Group
    origin: Tensor
    """``[1, dim]``: where the weights are."""
    rows: Data
    batches: tuple[Tensor, ...]
    """Which rows each minibatch holds."""
    seed: int
    key: str
    """The hash of the selected weights; it and the seed decide the probes."""
    is_batched: bool
    """Whether several vectors go through one backward pass."""

    @property
    def dim(self) -> int:
        """Number of weights."""
        return self.origin.shape[1]

    def stream(self, purpose: str) -> Generator:
        """Return the random numbers of a purpose."""
        return generator(purpose, self.seed, self.key)

    def product(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian with each of ``vectors [probe, dim]``.

        The forward and the first backward pass serve all of them.
        """
        total = torch.zeros_like(vectors)
        num_losses = 0
        for number in range(len(self.batches)):
            with self._minibatch(number) as (position, batch):
                losses = self._losses(self.bound, position, batch)
                summed = losses.double().sum()
                (slope,) = torch.autograd.grad(summed, position, create_graph=True)
                products = self._derivatives(slope, position, vectors.to(slope))
                total += products.to(total)
                num_losses += losses.numel()
        return total / num_losses

    def squared_slopes(self, labels: Labels, num_drawings: int) -> Tensor:
        """Return ‖Σ sᵢ∇ℓᵢ‖²/N ``[drawing, minibatch]`` for random labels and signs sᵢ.

        See :func:`rllc.analysis.curvature.fisher_trace`.
        """
        stream = self.stream("labels")
        columns = []
        num_losses = 0
        for number in range(len(self.batches)):
            with self._minibatch(number) as (position, batch):
                draw_losses = self._drawer(labels, position, batch, stream)
                column = []
                for _ in range(num_drawings):
                    losses = draw_losses()
                    signs = 2 * torch.randint(2, losses.shape, generator=stream) - 1
                    (slope,) = torch.autograd.grad(
                        losses, position, signs.to(losses), retain_graph=True
                    )
                    column.append(slope.double().square().sum())
                columns.append(torch.stack(column))
                num_losses += losses.numel()
        return torch.stack(columns, 1).cpu() / num_losses

    @contextmanager
    def _minibatch(self, number: int) -> Iterator[tuple[Tensor, Batch]]:
        """Give the weights, ready to be differentiated, and a minibatch.

        Inside, all kernels have second derivatives, the model is in eval mode, and losses that draw
        random numbers draw the same each time.
        """
        device = self.origin.device
        batch = self.rows.take(self.batches[number], device)
        seed = stable_hash("loss", self.seed, number)
        try:
            with (
                one_arithmetic(),
                undisturbed(self.bound.model),
                sdpa_kernel(SDPBackend.MATH),
                seeded(seed, device),
                in_mode(self.bound.model, training=False),
            ):
                yield self.origin.clone().requires_grad_(), batch
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise InputError(
                f"curvature in the weights {self.weights!r}: the loss cannot be differentiated "
                f"twice ({first_line(error)}); load transformers with "
                f'attn_implementation="eager", and use plain PyTorch functions in the loss.'
            ) from error

    def _derivatives(self, slope: Tensor, position: Tensor, vectors: Tensor) -> Tensor:
        """Return ∂(slope·u)/∂position ``[probe, dim]`` for each of ``vectors [probe, dim]``."""
        if not slope.requires_grad:
            # The loss is linear.
            return torch.zeros_like(vectors)
        if self.is_batched:
            try:
                return _derivative(slope, position, vectors[:, None], is_batched=True)[:, 0]
            except RuntimeError:
                # An operation that cannot be batched.
                self.is_batched = False
        rows = [_derivative(slope, position, u[None], is_batched=False) for u in vectors]
        return torch.cat(rows)

    def _drawer(
        self, labels: Labels, position: Tensor, batch: Batch, stream: Generator
    ) -> Callable[[], Tensor]:
        """Return a function that draws labels and gives their losses."""
        if callable(labels):
            return lambda: self._losses(
                self.bound, position, labels(self.bound.model, batch, stream)
            )
        if labels == "data":
            losses = self._losses(self.bound, position, batch)
            return lambda: losses
        logs = self._losses(ModuleLoss(self.bound.model, _log_probabilities), position, batch)
        cumulative = logs.detach().exp().cumsum(-1)
        largest_id = cumulative.shape[-1] - 1

        def draw() -> Tensor:
            uniform = torch.rand((*cumulative.shape[:-1], 1), generator=stream)
            heights = uniform.to(cumulative) * cumulative[..., -1:]
            tokens = torch.searchsorted(cumulative, heights).clamp(max=largest_id)
            return -logs.gather(-1, tokens)[..., 0]

        return draw

    def _losses(self, bound: ModuleLoss, position: Tensor, batch: Batch) -> Tensor:
        """Evaluate a loss at ``position [1, dim]``, differentiable in it; only what counts."""
        member = torch.zeros(1, dtype=torch.long, device=position.device)
        changed = {}
        for name, moved in unpack(self.group, position, member, bound.parameters).items():
            parameter = bound.parameters[name]
            changed[name] = stack(moved, parameter)[0].to(parameter.dtype)
        losses, mask = bound.losses(changed, batch)
        counted = what_counts(losses.detach(), mask, batch, bound.is_own)
        if counted is not None:
            losses = losses[counted]
        if not losses.requires_grad:
            raise InputError(
                f"curvature in the weights {self.weights!r}: the loss does not depend on them; "
                f"choose weights that the model uses, and take torch.no_grad() and .detach() "
                f"out of the loss."
            )
        return losses


def surfaces(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike,
    loss: LossFunction | None,
    probing: Probing,
    doing: str,
) -> list[Surface]:
    """Make a surface for each choice of weights on each data set.

    Args:
        model: any module.
        data: as in :func:`rllc.estimate`, and so ``weights`` and ``loss``.
        weights: see data.
        loss: see data.
        probing: which rows, and the seed.
        doing: what errors say is being done.

    Raises:
        InputError: what can be known to be wrong before anything is computed.
    """
    with _errors_say(doing):
        arguments(model, loss, None, None)
        model = unwrapped(model)
        refinements = refinement.product(weights, data, model)
        masks = check(model, loss, refinements, sgld(), Sampling(batch_size=1))
        bound = ModuleLoss(model, next_token if loss is None else loss)
        batches = {}
        data_sets = {r.data_name: r.data for r in refinements}
        for name, rows in data_sets.items():
            batches[name] = _choose_rows(rows, name, probing, doing)
            batch = rows.take(batches[name][0], bound.device)
            at_origin = bound.center(batch, stable_hash("loss", probing.seed, 0))
            check_baseline(at_origin, name)
    made = []
    for r, mask in zip(refinements, masks, strict=True):
        group = to(groups([mask])[0], bound.device)
        surface = Surface(
            weights=r.weights.name,
            data=r.data_name,
            bound=bound,
            group=group,
            origin=_origin(bound, group),
            rows=r.data,
            batches=batches[r.data_name],
            seed=probing.seed,
            key=digest(mask),
            is_batched=bool(bound.stacked),
        )
        made.append(surface)
    return made


def _origin(bound: ModuleLoss, group: Group) -> Tensor:
    """Return the selected weights ``[1, dim]``: in float64 where some are, else in float32."""
    dtypes = {bound.parameters[slot.name].dtype for slot in group.slots}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return center(group, bound.parameters).to(dtype)


def _choose_rows(data: Data, name: str, probing: Probing, doing: str) -> tuple[Tensor, ...]:
    """Return which rows of a data set each minibatch holds."""
    if probing.num_rows is None:
        return torch.arange(len(data)).split(probing.batch_size)
    if probing.num_rows > len(data):
        raise InputError(
            f"{doing}: the data {name!r} has {len(data)} rows, but num_rows={probing.num_rows}; "
            f"pass Probing(num_rows=None) for all of them."
        )
    order = torch.randperm(len(data), generator=generator("rows", probing.seed))
    chosen = order[: probing.num_rows].sort().values
    return chosen.split(probing.batch_size)


def _derivative(slope: Tensor, position: Tensor, u: Tensor, is_batched: bool) -> Tensor:
    """Return ∂(slope·u)/∂position; batched, for each of ``u [probe, 1, dim]``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        (derivative,) = torch.autograd.grad(
            slope,
            position,
            u,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=is_batched,
        )
    return derivative.detach()


def _log_probabilities(module: nn.Module, batch: Batch) -> Tensor:
    """Return log p of every possible token at each next position that counts, ``[token, vocab]``.

    Rows with padding, or with several documents, are taken apart.
    """
    documents = documents_of(batch)
    logits = logits_of(module, batch, documents)[:, :-1]
    logs = logits.float().log_softmax(-1)
    if isinstance(batch, Tensor):
        return logs
    return logs[documents.wanted()[:, 1:]]


@contextmanager
def _errors_say(doing: str) -> Iterator[None]:
    """Let errors of checks that sampling makes, too, say what is being done here."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"^sampling\b", doing, str(error))) from error
