"""Path patching: what a single path from head to head carries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from rllc.analysis.heads import name_of
from rllc.analysis.hooked import hooked
from rllc.analysis.hooked_paths import changes_of
from rllc.analysis.interventions import from_rows, replace
from rllc.analysis.paths import Path, all_paths, check_paths
from rllc.analysis.rows import (
    check_language_model,
    check_mask,
    check_model,
    check_rows,
    is_own,
    mean_over_tokens,
    other_rows,
)
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import AsTable, Table, rounded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

_PRINTED = 20
"""Paths that the printed table shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Patching(AsTable):
    """The change of the prediction when one path alone carries what another input gives it.

    ``patching["0:4->1:6.K"]`` is the effect of one path.

    Args:
        effect: ``[path]``, nats per token: change of the loss, or KL divergence.
        standard_error: ``[path]``: over rows.
        paths: names of the paths, such as ``"0:4->1:6.K"``.
        score: ``"loss"`` or ``"kl"``.
        data: name of the rows.
    """

    effect: np.ndarray
    standard_error: np.ndarray
    paths: tuple[str, ...]
    score: str
    data: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, path: str) -> float:
        """The effect of one path.

        Raises:
            InputError: it was not patched.
        """
        name = str(Path.parse(path))
        if name not in self.paths:
            raise InputError(
                f"patching[{path!r}]: this path was not patched; {nearest(name, self.paths)}"
            )
        return float(self.effect[self.paths.index(name)])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a path: ``sender, receiver, input, effect, standard_error``."""
        import pandas as pd

        paths = [Path.parse(name) for name in self.paths]
        columns = {
            "sender": [name_of(path.sender) for path in paths],
            "receiver": [_receiver_name(path) for path in paths],
            "input": [path.input for path in paths],
            "effect": self.effect,
            "standard_error": self.standard_error,
        }
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        largest = np.argsort(-np.abs(self.effect), kind="stable")[:_PRINTED]
        lines = [("path", "effect", "± se")]
        for i in largest:
            effect, error = rounded(self.effect[i], self.standard_error[i])
            lines.append((self.paths[i], effect, error))
        selection = ""
        if len(largest) < len(self):
            selection = f", the {len(largest)} largest of {len(self)}"
        title = f"Path patching on {self.data} ({self.score}, nats per token{selection})"
        return Table(title, lines)


def _receiver_name(path: Path) -> str:
    if path.receiver is None:
        return path.input
    return name_of(path.receiver)


def patch_paths(
    model: nn.Module,
    tokens: Tokens | Tensor,
    paths: Iterable[str | Path] | None = None,
    *,
    corrupted: Tokens | Tensor | None = None,
    score: Literal["loss", "kl"] = "loss",
    where: np.ndarray | Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Patching:
    """How the prediction changes when one path carries what a corrupted input gives it.

    There are three runs: one on the clean input, one on the corrupted input, and one on the clean
    input in which one receiver reads the sender's term of the residual stream, z W_O, from the
    corrupted run. The receiver is a head's Q, K or V input (before its LayerNorm) or the logits
    (before the last LayerNorm). What it then writes reaches all later heads. Paths are direct:
    what goes from sender to receiver through a third head is not counted.

    >>> patched = patch_paths(model, tokens, ["0:4->1:6.K"])

    Args:
        model: an :class:`rllc.models.AttentionOnly`; or any causal language model with a known
            anatomy, where each path is a forward pass of the whole model.
        tokens: the clean rows, whose tokens are to be predicted.
        paths: such as ``"0:4->1:6.K"`` and ``"0:4->logits"``; ``None`` takes every direct path.
        corrupted: rows of the same shape, row by row the corrupted input; ``None`` takes another
            row of ``tokens`` for each, in a random cycle.
        score: ``"loss"``: loss of the patched run less that of the clean run; ``"kl"``:
            KL(clean ‖ patched).
        where: boolean ``[row, pos]``: the tokens whose prediction counts; ``None``: all.
        seed: of the cycle.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. It does not change results.

    Returns:
        :class:`Patching`: one effect a path, in nats per counted token.

    Raises:
        InputError: the model, a path, the rows or the mask cannot be used.

    Reference: Wang et al. 2022 (arXiv 2211.00593), section 3.1; Goldowsky-Dill et al. 2023 (arXiv
    2304.05969).
    """
    caller = "patch_paths"
    subject = None if is_own(model) else hooked(model, caller)
    model = check_language_model(model, caller)
    rows, name = check_rows(model, tokens, caller)
    chosen = all_paths(model) if paths is None else check_paths(model, paths, caller)
    if score not in ("loss", "kl"):
        raise InputError(f"{caller}: `score` must be 'loss' or 'kl', got {score!r}.")
    mask = None if where is None else check_mask(where, rows, "where", caller)
    if corrupted is None:
        corrupted_rows = rows[other_rows(len(rows), seed, caller)]
    else:
        corrupted_rows = _check_corrupted(model, corrupted, rows, caller)
    how: dict[str, Any] = {"kl": score == "kl", "batch_size": batch_size}
    if subject is None:
        own = check_model(model, caller)
        changes = _changes(own, rows, corrupted_rows, chosen, **how)
    else:
        changes = changes_of(subject, rows, corrupted_rows, chosen, **how)
    effect, error = mean_over_tokens(changes, mask)
    return Patching(
        effect,
        error,
        tuple(str(path) for path in chosen),
        score,
        name,
    )


def _changes(
    model: AttentionOnly,
    rows: Tensor,
    corrupted: Tensor,
    paths: tuple[Path, ...],
    *,
    kl: bool,
    batch_size: int | None,
) -> np.ndarray:
    """The effect of each path alone, ``[path, row, pos − 1]``, many in a pass."""
    readings = replace(
        model,
        rows,
        [[path] for path in paths],
        from_rows(model, corrupted),
        kl=kl,
        batch_size=batch_size,
    )
    if kl:
        assert readings.kl is not None
        return readings.kl[1:]
    return readings.loss[1:] - readings.loss[:1]


def _check_corrupted(
    model: nn.Module,
    corrupted: Tokens | Tensor,
    rows: Tensor,
    caller: str,
) -> Tensor:
    """The corrupted rows.

    Raises:
        InputError: the model cannot read them, or they have another shape than the clean rows.
    """
    corrupted_rows, _ = check_rows(model, corrupted, caller)
    if corrupted_rows.shape != rows.shape:
        raise InputError(
            f"{caller}: `corrupted` must have a row for each row of the tokens, shape "
            f"{tuple(rows.shape)}, got {tuple(corrupted_rows.shape)}."
        )
    return corrupted_rows


def plot_paths(
    result: Patching,
    input: str = "K",
    ax: Axes | None = None,
) -> Axes:
    """The effects of paths into one kind of input: a heat map, senders down, receivers across.

    >>> ax = plot_paths(patch_paths(model, tokens), "K")

    Args:
        result: from :func:`patch_paths`. Paths that were not patched are grey.
        input: ``"Q"``, ``"K"``, ``"V"`` or ``"logits"``.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: no such path was patched.
    """
    senders, receivers, values = _matrix(result, input)
    largest = np.nanmax(np.abs(values)) or 1.0
    if ax is None:
        ax = new_axes(None, width=2.4 + 0.4 * len(receivers))
        figure: Any = ax.figure
        figure.set_figheight(min(8.0, 1.4 + 0.3 * len(senders)))
    ax.set_facecolor("0.9")
    image = ax.imshow(
        values,
        vmin=-largest,
        vmax=largest,
        cmap="RdBu_r",
        aspect="auto",
    )
    ax.set_xticks(range(len(receivers)), receivers, rotation=60)
    ax.set_yticks(range(len(senders)), senders)
    ax.set_xlabel("receiver" if input == "logits" else f"receiver's {input}")
    ax.set_ylabel("sender")
    quantity = "KL divergence" if result.score == "kl" else "change of loss"
    ax.figure.colorbar(
        image,
        ax=ax,
        label=f"{quantity} (nats per token)",
    )
    return ax


def _matrix(
    result: Patching,
    input: str,
) -> tuple[list[str], list[str], np.ndarray]:
    """Names of senders and receivers, and effects ``[sender, receiver]``, NaN where unpatched."""
    paths = [Path.parse(name) for name in result.paths]
    effects = {}
    for path, effect in zip(paths, result.effect, strict=True):
        if path.input == input:
            effects[path.sender, path.receiver] = effect
    if not effects:
        inputs = dict.fromkeys(path.input for path in paths)
        raise InputError(
            f"plot_paths(input={input!r}): no such paths were patched; {nearest(input, inputs)}"
        )
    senders = sorted({sender for sender, _ in effects})
    receivers = sorted({receiver for _, receiver in effects}, key=_before_all_heads)
    values = np.full((len(senders), len(receivers)), np.nan)
    for (sender, receiver), effect in effects.items():
        values[senders.index(sender), receivers.index(receiver)] = effect
    receiver_names = ["logits" if head is None else name_of(head) for head in receivers]
    return [name_of(head) for head in senders], receiver_names, values


def _before_all_heads(receiver: tuple[int, int] | None) -> tuple[int, int]:
    return (-1, -1) if receiver is None else receiver
