"""Predictions when heads pass on other values: many interventions in one forward pass.

An intervention is a set of paths that carry other values than the model's own. Interventions lie
side by side on the run axis, so what they share is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllc.analysis.paths import INPUTS, Path

if TYPE_CHECKING:
    from rllc.models import AttentionOnly
    from rllc.models.attention_only import Activations

_POSITIONS = 4096
"""Tokens of a pass, unless asked otherwise: enough for fast matrix products."""
_ACTIVATIONS = 2**26
"""Activations of all runs of a pass: 256 MB."""
_LOGITS = {"cpu": 640_000, "cuda": 256_000_000}
"""Logits that are held at once: those that fit into a CPU's cache; 1 GB on a GPU."""

Values = Callable[[Tensor, "Activations"], Sequence[Tensor]]
"""The values that heads pass on instead of their own output.

``values(index, activations)`` is for the rows ``index``, on which the model's own activations are
given. It returns one tensor ``[batch or 1, head, pos or 1, d_head]`` a layer.
"""


PathsOfRuns = dict[int, list[Path]]
"""Run to those of its paths that matter somewhere."""


class Readings(NamedTuple):
    """Predictions of the unchanged model (``set`` 0) and under each set of replaced paths."""

    loss: np.ndarray
    """``[set, row, pos − 1]``, nats: of predicting each token but the first."""
    correct: np.ndarray | None
    """``[set, row, pos − 1]``, boolean: whether the most probable token is the one that came.

    Of equally probable ones the first counts."""
    kl: np.ndarray | None
    """``[set, row, pos − 1]``, nats: KL(unchanged ‖ changed) of the two predictions."""


@torch.no_grad()
def replace(
    model: AttentionOnly,
    rows: Tensor,
    sets: Sequence[Sequence[Path]],
    values: Values,
    *,
    correct: bool = False,
    kl: bool = False,
    batch_size: int | None = None,
) -> Readings:
    """Predictions when the paths of each set carry other values.

    Sets that start in the same layer share a pass, and all layers before it.

    Args:
        model: the model to intervene on.
        rows: ``[row, pos]``, int64.
        sets: the paths of each intervention.
        values: what they carry.
        correct: also read which predictions are right.
        kl: also read the KL divergence from the unchanged prediction.
        batch_size: rows of a pass; ``None`` is about 4096 tokens.
    """
    num_rows, num_positions = rows.shape
    shape = (1 + len(sets), num_rows, num_positions - 1)
    readings = Readings(
        loss=np.empty(shape, np.float32),
        correct=np.empty(shape, bool) if correct else None,
        kl=np.empty(shape, np.float32) if kl else None,
    )
    sets_by_start = _sets_by_start(sets, model.config.n_layers)
    size = batch_size or max(1, _POSITIONS // num_positions)
    for index in torch.arange(num_rows).split(size):
        batch = rows[index]
        # The last token of a row is predicted, but predicts nothing.
        activations = model.activations(batch[:, :-1])
        replacements = values(index, activations)
        unchanged = model.normalise("ln_final", activations.residual[-1], {})
        options: dict[str, Any] = {"correct": correct, "unchanged": unchanged if kl else None}
        part = read(model, unchanged, batch[:, 1:], **options)
        _store(readings, [0], index, part)
        for start, members in sets_by_start.items():
            for chunk in _chunks(members, _runs_at_once(model, batch)):
                shared = _Pass(model, [sets[i] for i in chunk], replacements)
                hidden = shared.run(activations, start)
                part = read(model, hidden, batch[:, 1:], **options)
                _store(readings, [1 + i for i in chunk], index, part)
    return readings


def read(
    model: AttentionOnly,
    hidden: Tensor,
    ids: Tensor,
    *,
    correct: bool = False,
    unchanged: Tensor | None = None,
) -> Readings:
    """Loss, and on request correctness and KL, from hidden states before the unembedding.

    Args:
        model: its unembedding is used.
        hidden: ``[run, batch, pos, d_model]``.
        ids: ``[batch, pos]``: the tokens that came.
        correct: also read which predictions are right.
        unchanged: ``[1, batch, pos, d_model]``: also read the KL divergence from its prediction.

    Returns:
        :class:`Readings` with the axes ``[run, batch, pos]``.
    """
    shape = hidden.shape[:3]
    hidden = hidden.flatten(1, 2)
    ids = ids.flatten()
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.empty(
        hidden.shape[:2],
        dtype=dtype,
        device=hidden.device,
    )
    is_correct = torch.empty_like(loss, dtype=torch.bool) if correct else None
    kl = None if unchanged is None else torch.empty_like(loss)
    # In chunks of positions and run by run, so that few logits are held at once.
    for chunk in _chunks_of_positions(model, len(ids), hidden.device.type):
        targets = ids[chunk]
        places = torch.arange(len(targets), device=hidden.device)
        if unchanged is not None:
            reference = unchanged.flatten(0, 2)[chunk]
            log_p = _logits(model, reference, dtype).log_softmax(-1)
            p = log_p.exp()
        for run in range(len(hidden)):
            logits = _logits(model, hidden[run, chunk], dtype)
            if is_correct is not None:
                is_correct[run, chunk] = logits.argmax(-1) == targets
            if kl is not None:
                kl[run, chunk] = (p * (log_p - logits)).sum(-1)
            target_logits = logits[places, targets]
            log_sum = _log_sum_exp_(logits)
            loss[run, chunk] = log_sum - target_logits
            if kl is not None:
                kl[run, chunk] += log_sum
    return Readings(
        loss=loss.view(shape).cpu().numpy(),
        correct=_to_numpy(is_correct, shape),
        kl=_to_numpy(kl, shape),
    )


def from_rows(model: AttentionOnly, other: Tensor) -> Values:
    """The values that heads have on other rows.

    Args:
        model: the model that reads them.
        other: ``[row, pos]``: the other row for each row, at least as long.
    """

    def values(index: Tensor, activations: Activations) -> list[Tensor]:
        batch = other[index, : activations.tokens.shape[1]]
        return [z[0] for z in model.activations(batch).z]

    return values


@dataclass
class _Pass:
    """One forward pass of several interventions on one batch, from the layer where they start.

    Args:
        model: the model.
        sets: ``[run]``: the paths of each intervention.
        replacements: ``[layer]``: what every head passes on instead; see :data:`Values`.
        z: ``[layer]``: outputs of the heads, ``[1 or run, batch, head, pos, d_head]``, so far.
    """

    model: AttentionOnly
    sets: Sequence[Sequence[Path]]
    replacements: Sequence[Tensor]
    z: list[Tensor] = field(default_factory=list)

    def run(self, activations: Activations, start: int) -> Tensor:
        """The hidden states before the unembedding, ``[run, batch, pos, d_model]``."""
        x = activations.residual[start]
        self.z = list(activations.z[:start])
        for layer in range(start, self.model.config.n_layers):
            incoming = self._select_into(layer)
            if layer == start and not incoming:
                outputs = activations.z[layer]  # the layer reads what it always reads
            else:
                outputs = self._attend(layer, x, incoming)
            outputs = self._replace_whole_heads(layer, outputs)
            self.z.append(outputs)
            x = x + self.model.write(layer, outputs, {})
        to_logits = self._select(lambda path: path.input == "logits")
        if to_logits:
            x = self._one_for_each_run(x)
        for run, paths in to_logits.items():
            x[run] += self._change(paths, run)
        return self.model.normalise("ln_final", x, {})

    def _select(self, condition: Callable[[Path], bool]) -> PathsOfRuns:
        """The paths of each run that meet a condition; runs without such paths are left out."""
        selected = {}
        for run, paths in enumerate(self.sets):
            chosen = [path for path in paths if condition(path)]
            if chosen:
                selected[run] = chosen
        return selected

    def _select_into(self, layer: int) -> PathsOfRuns:
        return self._select(lambda path: path.receiver is not None and path.receiver[0] == layer)

    def _select_whole_heads(self, layer: int) -> PathsOfRuns:
        return self._select(lambda path: path.input == "everything" and path.sender[0] == layer)

    def _attend(
        self,
        layer: int,
        x: Tensor,
        incoming: PathsOfRuns,
    ) -> Tensor:
        """Outputs of a layer's heads, some of whose inputs read a changed residual stream.

        The other inputs are computed once for all runs.
        """
        projected = {}
        for letter in INPUTS:
            projected[letter] = self.model.project(layer, letter, x)
        for (letter, head), paths_of_runs in _by_input(incoming).items():
            runs = list(paths_of_runs)
            streams = []
            for run in runs:
                change = self._change(paths_of_runs[run], run)
                streams.append(_of_run(x, run) + change)
            only_head = slice(head, head + 1)
            projected_by_head = self.model.project(
                layer,
                letter,
                torch.stack(streams),
                only_head,
            )
            projected[letter] = self._one_for_each_run(projected[letter])
            projected[letter][runs, :, head] = projected_by_head[:, :, 0]
        return self.model.attend(projected["Q"], projected["K"], projected["V"])

    def _replace_whole_heads(self, layer: int, outputs: Tensor) -> Tensor:
        """The outputs of a layer, with the replacements of heads that are replaced altogether."""
        paths_of_run = self._select_whole_heads(layer)
        if not paths_of_run:
            return outputs
        outputs = self._one_for_each_run(outputs)
        for run, paths in paths_of_run.items():
            for path in paths:
                _, head = path.sender
                outputs[run, :, head] = self.replacements[layer][:, head]
        return outputs

    def _change(self, paths: Sequence[Path], run: int) -> Tensor:
        """The change of the residual stream that paths carry, ``[batch, pos, d_model]``.

        It is Σ (replacement − own output) W_O over the senders.
        """
        first, *later = [self._change_of_sender(*path.sender, run) for path in paths]
        return sum(later, start=first)

    def _change_of_sender(
        self,
        layer: int,
        head: int,
        run: int,
    ) -> Tensor:
        output = _of_run(self.z[layer], run)[:, head]
        change_of_output = self.replacements[layer][:, head] - output
        block: Any = self.model.blocks[layer]
        return change_of_output @ block.attn.W_O[head]

    def _one_for_each_run(self, x: Tensor) -> Tensor:
        """A tensor with the run axis written out, so that one run can be changed alone."""
        num_runs = len(self.sets)
        if len(x) == num_runs > 1:
            return x
        return x.expand(num_runs, *x.shape[1:]).clone()


def _by_input(incoming: PathsOfRuns) -> dict[tuple[str, int], PathsOfRuns]:
    """The paths into each input (letter, head) of a layer."""
    by_input: dict[tuple[str, int], PathsOfRuns] = {}
    for run, paths in incoming.items():
        for path in paths:
            assert path.receiver is not None
            _, head = path.receiver
            paths_of_runs = by_input.setdefault((path.input, head), {})
            paths_of_runs.setdefault(run, []).append(path)
    return dict(sorted(by_input.items()))


def _of_run(x: Tensor, run: int) -> Tensor:
    """The part of one run; while all runs are the same, ``x`` has only one."""
    return x[run if len(x) > 1 else 0]


def _sets_by_start(
    sets: Sequence[Sequence[Path]],
    n_layers: int,
) -> dict[int, list[int]]:
    """The indices of the sets that start in each layer, from the first layer on."""
    by_start: dict[int, list[int]] = {}
    for i, paths in enumerate(sets):
        start = min(path.first_changed_layer(n_layers) for path in paths)
        by_start.setdefault(start, []).append(i)
    return dict(sorted(by_start.items()))


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _runs_at_once(model: AttentionOnly, batch: Tensor) -> int:
    config = model.config
    width = max(config.d_model, config.n_heads * config.d_head)
    return max(1, _ACTIVATIONS // (8 * batch.numel() * width))


def _chunks_of_positions(
    model: AttentionOnly,
    count: int,
    device: str,
) -> Iterator[slice]:
    limit = _LOGITS.get(device, _LOGITS["cpu"])
    size = max(16, limit // model.config.d_vocab)
    for start in range(0, count, size):
        yield slice(start, start + size)


def _logits(
    model: AttentionOnly,
    hidden: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    return torch.addmm(model.unembed.b_U, hidden, model.unembed.W_U).to(dtype)


def _log_sum_exp_(logits: Tensor) -> Tensor:
    """The log of the sum of exponentials over the vocabulary. Overwrites the logits."""
    largest = logits.amax(-1)
    logits.sub_(largest[:, None]).exp_()
    return logits.sum(-1).log_().add_(largest)


def _to_numpy(
    values: Tensor | None,
    shape: Sequence[int],
) -> np.ndarray | None:
    if values is None:
        return None
    return values.view(shape).cpu().numpy()


def _store(
    readings: Readings,
    sets: list[int],
    index: Tensor,
    part: Readings,
) -> None:
    """Write the readings of some sets on some rows into those of all."""
    for everything, new in zip(readings, part, strict=True):
        if everything is not None:
            everything[np.ix_(np.array(sets), index.numpy())] = new
