"""All runs of the two-layer attention-only transformer at once, sharing what they share."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rllc.engine.last_heads import Unembedding, Writes, mean_and_each_of_heads
from rllc.engine.layout import Group, Moved, unpack
from rllc.engine.modes import in_precision
from rllc.engine.private import private_copy
from rllc.engine.unembedding import Target, mean_and_each, near_center
from rllc.losses.by_name import check_vocabularies, predictions_at_home
from rllc.losses.contract import Batch, Center, Runs, check_rows_counted, num_counted
from rllc.losses.documents import Documents, documents_of

if TYPE_CHECKING:
    from rllc.models.attention_only import Activations, AttentionOnly


class TokenLoss:
    """Next-token or distillation loss of an :class:`rllc.models.AttentionOnly`.

    All runs of a group go through one forward pass, which starts at the first block that moves.
    """

    def __init__(
        self,
        model: AttentionOnly,
        generator: AttentionOnly | None = None,
        autocast: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        if generator is not None:
            check_vocabularies(generator.config.d_vocab, model.config.d_vocab)
        model = private_copy(model)
        self.model = model
        self.generator = generator
        self.autocast = autocast
        self.parameters = dict(model.named_parameters())
        self.to_hidden = _ToHidden(model)
        self.hidden = model.hidden
        if compile:
            self.hidden = torch.compile(model.hidden, dynamic=False)

    @torch.no_grad()
    def center(self, batch: Batch, seed: int) -> Center:  # noqa: D102 (see Loss)
        documents = documents_of(batch)
        tokens = documents.tokens
        with in_precision(tokens.device, self.autocast):
            # The last token is predicted, but predicts nothing.
            at = self.model.activations(tokens[:, :-1])
            target = self._target(documents)
            hidden = self.model.normalise("ln_final", at.residual[-1], {})
        W_U = self.frozen("unembed.W_U")
        b_U = self.frozen("unembed.b_U")
        target = near_center(hidden, W_U, b_U, target, self.autocast)
        _, each = mean_and_each(hidden, W_U, b_U, target, self.autocast)
        counted = None
        if target.home is not None:
            counted = target.home >= 0
        return Center(each[0], (at, target), counted)

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
        at, target = center.shared
        with torch.set_grad_enabled(gradient):
            position = position.detach().requires_grad_(gradient)
            moved = unpack(group, position, member, self.parameters)
            losses, tokens = self._losses(moved, at, target)
            slope = None
            if gradient:
                # Runs do not touch one another, so the gradient of their sum holds each run's own.
                (slope,) = torch.autograd.grad(losses.sum(), position)
        num_runs = len(position)
        losses = losses.detach().expand(num_runs)
        losses_of_tokens = None
        if each:
            losses_of_tokens = tokens.expand(num_runs, -1, -1)
        return Runs(losses, slope, losses_of_tokens)

    def gradient(  # noqa: D102 (see Loss)
        self, names: Collection[str], center: Center | None, batch: Batch, seed: int
    ) -> tuple[dict[str, Tensor], int]:
        documents = documents_of(batch)
        leaves = {}
        for name in names:
            leaves[name] = self.parameters[name].detach().requires_grad_()
        changed = {f"model.{name}": leaf for name, leaf in leaves.items()}
        W_U = self.frozen("unembed.W_U")
        b_U = self.frozen("unembed.b_U")
        tokens = documents.tokens[:, :-1]
        with torch.no_grad(), in_precision(tokens.device, self.autocast):
            target = self._target(documents) if center is None else center.shared[1]
        with torch.enable_grad():
            with in_precision(tokens.device, self.autocast):
                hidden = torch.func.functional_call(self.to_hidden, changed, (tokens,))
            if center is None:
                target = near_center(hidden.detach(), W_U, b_U, target, self.autocast)
            if "unembed.W_U" in leaves:
                W_U = leaves["unembed.W_U"][None]
            if "unembed.b_U" in leaves:
                b_U = leaves["unembed.b_U"][None]
            mean, each = mean_and_each(hidden, W_U, b_U, target, self.autocast)
            gradients = torch.autograd.grad(
                mean.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        counted = None if target.home is None else target.home >= 0
        return dict(zip(leaves, gradients, strict=True)), num_counted(each[0], counted)

    def memory(self, group: Group, batch_shape: tuple[int, ...]) -> int:  # noqa: D102 (see Loss)
        config = self.model.config
        positions = batch_shape[0] * batch_shape[1]
        width = max(config.d_model, config.n_heads * config.d_head)
        names = [slot.name for slot in group.slots]
        first = max(self.model.first_block(names), 0)
        blocks = config.n_layers - first
        # Kept for the backward pass: about 16 activations as wide as the model a block, and the
        # hidden state with its gradient. Chain state, noise, gradient and a second look: about 12
        # numbers a weight, the gradients of a moved unembedding one of them.
        of_activations = positions * width * (16 * blocks + 4)
        of_weights = 12 * group.num_weights
        of_columns = 0
        rows = {slot.name: slot.rows for slot in group.slots}
        columns = self.model.num_last_heads(rows) * config.d_head
        if columns:
            # What the heads write as logits, and its gradient.
            of_columns = 3 * columns * config.d_vocab
        if self._is_narrow(columns, positions):
            # Activations are as wide as the heads, for the hidden state is there for few positions
            # at a time. Measured for a head of the paper's model: 4 MB a run of 2 × 1024 tokens,
            # of which this makes 7.
            of_activations = positions * 12 * columns
        return 4 * (of_activations + of_weights + of_columns)

    @property
    def ways(self) -> list[str]:  # noqa: D102 (see Loss)
        return ["layer at once"]

    def frozen(self, name: str) -> Tensor:
        """Return a parameter as it is in the model, with a run axis of length 1."""
        return self.parameters[name].detach()[None]

    def _losses(
        self, moved: dict[str, Moved], at: Activations, target: Target
    ) -> tuple[Tensor, Tensor]:
        heads = self.model.only_last_heads(moved)
        if heads is not None and target.ids is not None:
            num_columns = heads.shape[1] * self.model.config.d_head
            if self._is_narrow(num_columns, at.tokens.numel()):
                return self._losses_of_last_heads(heads, moved, at, target)
        with in_precision(at.tokens.device, self.autocast):
            hidden = self.hidden(moved, at)
        W_U = self.model.weight("unembed.W_U", moved)
        b_U = self.model.weight("unembed.b_U", moved)
        return mean_and_each(hidden, W_U, b_U, target, self.autocast)

    def _is_narrow(self, num_columns: int, positions: int) -> bool:
        """Whether what last heads write is narrow enough to be worth a way of its own.

        On a GPU products are cheap beside the passes over the logits, of which it takes more.
        """
        config = self.model.config
        if not 0 < 2 * num_columns <= config.d_model or positions < config.d_model:
            return False
        is_compiled = self.hidden != self.model.hidden
        on_cpu = self.model.unembed.W_U.device.type == "cpu"
        return on_cpu and self.autocast is None and not is_compiled

    def _losses_of_last_heads(
        self, heads: Tensor, moved: dict[str, Moved], at: Activations, target: Target
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        last = model.config.n_layers - 1
        heads_of_run = [tuple(row) for row in heads.tolist()]
        different = list(dict.fromkeys(heads_of_run))
        first_runs = [heads_of_run.index(place) for place in different]
        old_z, old_W_O = model.unmoved_heads(last, heads[first_runs], at)
        z, W_O = model.moved_heads(last, heads, moved, at)
        writes = Writes(
            z=_by_position(z),
            W_O=W_O.flatten(1, 2),
            old_z=_by_position(old_z),
            old_W_O=old_W_O.flatten(1, 2),
            place=[different.index(place) for place in heads_of_run],
            residual=at.residual[last + 1][0].flatten(0, 1),
        )
        unembedding = Unembedding(
            w=self.frozen("ln_final.w")[0],
            b=self.frozen("ln_final.b")[0],
            eps=model.config.layer_norm_eps,
            W_U=self.frozen("unembed.W_U")[0],
            b_U=self.frozen("unembed.b_U")[0],
        )
        return mean_and_each_of_heads(writes, unembedding, target)

    def _target(self, documents: Documents) -> Target:
        labels = documents.labels
        if labels is None:
            labels = documents.tokens
        target = self._target_of_all(documents.tokens, labels)
        wanted = documents.wanted()[:, 1:]
        if documents.home is None and bool(wanted.all()):
            return target
        kept = wanted.flatten().nonzero()[:, 0]
        number = torch.full((wanted.numel(),), -1, device=kept.device)
        number[kept] = torch.arange(len(kept), device=kept.device)
        number = number.view(wanted.shape)
        home = predictions_at_home(documents, number, -1)
        check_rows_counted(home >= 0)
        return target.of_kept(kept, home)

    def _target_of_all(self, tokens: Tensor, labels: Tensor) -> Target:
        if self.generator is None:
            return Target.next_tokens(labels)
        generator = self.generator
        residual = generator.activations(tokens[:, :-1]).residual[-1]
        hidden = generator.normalise("ln_final", residual, {})[0]
        hidden = hidden.flatten(0, 1).float()
        W_U = generator.unembed.W_U.detach()
        b_U = generator.unembed.b_U.detach()
        num_rows, num_tokens = tokens.shape
        return Target((num_rows, num_tokens - 1), None, (hidden, W_U, b_U))


def _by_position(z: Tensor) -> Tensor:
    """Outputs of heads, ``[run, batch, head, pos, d_head]``, as ``[run, batch · pos, column]``."""
    by_position = z.transpose(2, 3)  # [run, batch, pos, head, d_head]
    return by_position.flatten(3, 4).flatten(1, 2)


class _ToHidden(nn.Module):
    """The model up to its unembedding, as a module that functional_call can put weights into."""

    def __init__(self, model: AttentionOnly) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.model.activations(tokens).residual[-1]
        return self.model.normalise("ln_final", residual, {})
