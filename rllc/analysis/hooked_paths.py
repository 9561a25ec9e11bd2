"""Path patching of language models of other types: each path is a forward pass of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.hooked import Hooked, logits, outputs, replaced
from rllc.analysis.paths import Path
from rllc.analysis.stream import Place, places, reading
from rllc.engine.modes import in_mode, one_arithmetic
from rllc.errors import InputError

_POSITIONS = 4096
"""Positions of a pass."""


@torch.no_grad()
def changes_of(
    subject: Hooked,
    rows: Tensor,
    corrupted: Tensor,
    paths: Sequence[Path],
    *,
    kl: bool,
    batch_size: int | None,
) -> np.ndarray:
    """The effect of each path alone, ``[path, row, pos − 1]``, on the loss or the prediction (KL).

    A path carries the sender's term of the residual stream as it is on the corrupted row. A head
    that shares its key with others reads the changed key alone; the others read the clean one.

    Args:
        subject: the model.
        rows: clean, ``[row, pos]``.
        corrupted: the same shape.
        paths: direct paths, or whole heads.
        kl: KL(clean ‖ patched) in the place of the change of the loss.
        batch_size: rows of a pass; ``None``: about 4096 positions.

    Raises:
        InputError: the stream of the model is no sum of what its heads write.
    """
    attentions = places(subject.model, "patch_paths")
    for place in attentions:
        _refuse_branch_norms(subject, place)
    final_norm = _final_norm(subject, paths)
    num_rows, num_positions = rows.shape
    changes = np.empty((len(paths), num_rows, num_positions - 1), np.float32)
    size = batch_size or max(1, _POSITIONS // num_positions)
    for index in torch.arange(num_rows).split(size):
        # The last token of a row is predicted, but predicts nothing.
        inputs = rows[index, :-1]
        targets = rows[index, 1:]
        run = _Run(subject, attentions, final_norm, inputs, corrupted[index, :-1])
        for number, path in enumerate(paths):
            changes[number, index] = run.change(path, targets, kl).cpu().numpy()
    return changes


def _refuse_branch_norms(subject: Hooked, place: Place) -> None:
    if place.branch_norm is not None:
        raise InputError(
            f"patch_paths: {place.attention.module!r} of {type(subject.model).__name__} normalises "
            f"what its heads write together, so no term of the residual stream is one head's; "
            f"expected a model that adds it as it is. rllc.analysis.ablate works."
        )


def _final_norm(subject: Hooked, paths: Sequence[Path]) -> nn.Module | None:
    """The norm that reads the stream for the logits; ``None`` where no path needs it."""
    norms = subject.anatomy.norms
    if norms:
        return subject.model.get_submodule(norms[-1])
    if any(path.input == "logits" for path in paths):
        raise InputError(
            f"patch_paths: {type(subject.model).__name__} has no norm after its last block that is "
            f"known, so paths to the logits cannot be patched; leave them out, or name `norm` in a "
            f"row of its anatomy."
        )
    return None


class _Run:
    """Rows and their corrupted ones, with the outputs of heads on both and the inputs of maps."""

    def __init__(
        self,
        subject: Hooked,
        attentions: Sequence[Place],
        final_norm: nn.Module | None,
        rows: Tensor,
        corrupted: Tensor,
    ) -> None:
        self.subject = subject
        self.attentions = attentions
        self.final_norm = final_norm
        self.rows = rows
        self.other = outputs(subject, corrupted)
        self.read: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for number, place in enumerate(attentions):
                reader = place.queries if place.norm is None else place.norm
                stack.callback(reader.register_forward_pre_hook(self._note(number)).remove)
            self.clean = outputs(subject, rows)
        self.log_p = logits(subject, rows).float().log_softmax(-1)

    def _note(self, number: int) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.read[number] = args[0].detach().clone()

        return note

    def change(self, path: Path, targets: Tensor, kl: bool) -> Tensor:
        """The change of the loss, or KL, when a path is patched: ``[batch, pos]``."""
        with self._patched(path):
            log_q = logits(self.subject, self.rows).float().log_softmax(-1)
        if kl:
            log_ratio = self.log_p - log_q
            return (self.log_p.exp() * log_ratio).sum(-1)
        target = targets[..., None]
        change = self.log_p.gather(-1, target) - log_q.gather(-1, target)
        return change[..., 0]

    def _patched(self, path: Path) -> AbstractContextManager[None]:
        layer, head = path.sender
        if path.input == "everything":
            return replaced(self.subject, {layer: [head]}, self.other)
        term = self._term(layer, head)
        if path.receiver is None:
            assert self.final_norm is not None
            return _added(self.final_norm, term)
        receiver_layer, receiver = path.receiver
        place = self.attentions[receiver_layer]
        output = self._output(place, path.input, self.read[receiver_layer], term)
        return reading(place, path.input, receiver, output, self.clean[receiver_layer])

    def _term(self, layer: int, head: int) -> Tensor:
        """The sender's term of the stream on the corrupted rows, minus that on the clean ones."""
        place = self.attentions[layer]
        clean = self.clean[layer]
        changed = clean.clone()
        changed[..., head, :] = self.other[layer][..., head, :]
        with in_mode(place.writes, False), one_arithmetic():
            written = place.writes(changed.flatten(-2))
            written_when_clean = place.writes(clean.flatten(-2))
        return (written - written_when_clean) * place.scale

    def _output(self, place: Place, letter: str, read: Tensor, term: Tensor) -> Tensor:
        """The output of a map when the stream has one more term."""
        stream = read + term.reshape(read.shape)
        with in_mode(self.subject.model, False), one_arithmetic():
            if place.norm is not None:
                stream = place.norm(stream)
            output: Tensor = place.reader(letter)(stream)
        return output


@contextmanager
def _added(module: nn.Module, term: Tensor) -> Iterator[None]:
    """Let a module read the sum of its input and a term."""

    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + term.reshape(args[0].shape), *args[1:])

    hook = module.register_forward_pre_hook(add)
    try:
        yield
    finally:
        hook.remove()
