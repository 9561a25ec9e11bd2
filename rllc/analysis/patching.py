"""Replacing what heads pass on: whole outputs or single paths, many replacements in one forward pass; path patching."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis.rows import check_mask, check_model, check_rows, mean_over_tokens, other_rows
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly
    from rllc.models.attention_only import Activations

INPUTS = ("Q", "K", "V")
"""What a head reads the residual stream for: queries, keys, values."""

_POSITIONS = 4096
"""Tokens of a pass, unless asked otherwise: large enough for fast matrix products."""
_ACTIVATIONS = 2**26
"""Activations of all runs of a pass: 256 MB."""
_LOGITS = {"cpu": 640_000, "cuda": 256_000_000}
"""Logits that are held at once: those that stay in a CPU's cache; 1 GB on a GPU."""


class Path(NamedTuple):
    """Part of what a head passes on: to one input of a later head, to the logits, or everything.

    >>> str(Path.parse("L0H4 -> 1:6.K")), Path.parse("0:4->logits").receiver
    ('0:4->1:6.K', None)
    """

    sender: tuple[int, int]
    """Layer and head."""
    receiver: tuple[int, int] | None = None
    """Layer and head; ``None`` for the logits and for everything."""
    input: str = "everything"
    """``"Q"``, ``"K"``, ``"V"``, ``"logits"`` or ``"everything"``."""

    @classmethod
    def parse(cls, written: str) -> Path:
        """``"0:4"`` is all that head 0:4 writes, ``"0:4->1:6.K"`` and ``"0:4->logits"`` are single paths.

        A path is direct: the sender's term of the residual stream, as the receiver reads it.

        Raises:
            InputError: not written like that, or the receiver is not in a later layer.
        """
        before, arrow, after = (part.strip() for part in str(written).partition("->"))
        sender = head_name(before)
        into = re.fullmatch(r"(.+)\.([QKVqkv])", after)
        receiver = head_name(into[1]) if into else None
        if sender is None or (arrow and receiver is None and after != "logits"):
            raise InputError(
                f"path {written!r}: expected a head such as '0:4', or a path such as '0:4->1:6.K' (Q, K or V) or "
                f"'0:4->logits'."
            )
        if not arrow:
            return cls(_numbers(sender))
        if receiver is None:
            return cls(_numbers(sender), None, "logits")
        found = cls(_numbers(sender), _numbers(receiver), into[2].upper())
        if found.receiver[0] <= found.sender[0]:
            raise InputError(
                f"path {written!r}: the receiver must be in a later layer than the sender; heads of one layer do not "
                f"read each other."
            )
        return found

    @property
    def start(self) -> int | None:
        """The first layer that computes something else when the path is replaced; ``None``: only the end does."""
        return (
            None
            if self.input == "logits"
            else self.sender[0]
            if self.receiver is None
            else self.receiver[0]
        )

    def __str__(self) -> str:
        sender = "{}:{}".format(*self.sender)
        if self.input == "everything":
            return sender
        return (
            f"{sender}->logits"
            if self.receiver is None
            else "{}->{}:{}.{}".format(sender, *self.receiver, self.input)
        )


class Readings(NamedTuple):
    """What the model predicts, once unchanged and once for each set of replaced paths; ``set`` 0 is unchanged."""

    loss: np.ndarray
    """``[set, row, pos − 1]``, nats: of predicting each token but the first."""
    correct: np.ndarray | None
    """Same shape, boolean: whether the most probable token came; the first of equally probable ones counts."""
    kl: np.ndarray | None
    """Same shape: KL divergence of the changed prediction from the unchanged one, KL(unchanged ‖ changed), nats."""


Values = Callable[[Tensor, "Activations"], Sequence[Tensor]]
"""``values(index, at)``: what is passed on instead, by every head of each layer, for the rows ``index`` whose own
activations are ``at``: a tensor ``[batch or 1, head, pos or 1, d_head]`` a layer."""


def check_paths(model: AttentionOnly, paths: Iterable[str | Path], doing: str) -> tuple[Path, ...]:
    """Paths of a model, parsed, each once.

    Raises:
        InputError: none, not written as paths are, or with a head that the model has not.
    """
    if isinstance(paths, str | Path):  # a Path is a tuple too
        paths = [paths]
    found = tuple(dict.fromkeys(p if isinstance(p, Path) else Path.parse(p) for p in paths))
    c = model.config
    known = [f"{layer}:{head}" for layer in range(c.n_layers) for head in range(c.n_heads)]
    for path in found:
        for head in filter(None, (path.sender, path.receiver)):
            name = "{}:{}".format(*head)
            if name not in known:
                raise InputError(
                    f"{doing}: path '{path}': the model has no head {name!r}; {nearest(name, known)}"
                )
    if not found:
        raise InputError(
            f"{doing}: no heads or paths; name at least one, such as '0:4' or '0:4->1:6.K'."
        )
    return found


def all_paths(model: AttentionOnly) -> tuple[Path, ...]:
    """Every path from a head to an input of a head in a later layer, and from every head to the logits."""
    c = check_model(model, "all_paths").config
    heads = [(layer, head) for layer in range(c.n_layers) for head in range(c.n_heads)]
    between = (Path(s, r, i) for s in heads for r in heads if s[0] < r[0] for i in INPUTS)
    return (*between, *(Path(s, None, "logits") for s in heads))


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
    """Predictions when the paths of each set carry other values, all sets together on one run axis.

    What comes before a set's first replaced path is computed once for all of them: sets are put into passes by the
    layer in which they start.

    Args:
        rows: ``[row, pos]``, int64.
        sets: paths of each run.
        values: what is carried instead.
        correct: also read which predictions are right.
        kl: also read the KL divergence from the unchanged prediction.
        batch_size: rows of a pass; ``None`` is about 4096 tokens.
    """
    shape = (1 + len(sets), len(rows), rows.shape[1] - 1)
    found = Readings(
        np.empty(shape, np.float32),
        np.empty(shape, bool) if correct else None,
        np.empty(shape, np.float32) if kl else None,
    )
    last = model.config.n_layers
    starts = [min(last if p.start is None else p.start for p in paths) for paths in sets]
    for index in torch.arange(len(rows)).split(batch_size or max(1, _POSITIONS // rows.shape[1])):
        some = rows[index]
        at = model.activations(some[:, :-1])  # the last token is predicted, but predicts nothing
        instead = values(index, at)
        clean = model.normalise("ln_final", at.residual[-1], {})
        _store(
            found,
            [0],
            index,
            read(model, clean, some[:, 1:], correct=correct, unchanged=clean if kl else None),
        )
        for start in sorted(set(starts)):
            mine = [i for i, s in enumerate(starts) if s == start]
            for chunk in _chunks(mine, _runs_at_once(model, some)):
                hidden = _hidden(model, at, [sets[i] for i in chunk], instead)
                read_here = read(
                    model, hidden, some[:, 1:], correct=correct, unchanged=clean if kl else None
                )
                _store(found, [1 + i for i in chunk], index, read_here)
    return found


def read(
    model: AttentionOnly,
    hidden: Tensor,
    ids: Tensor,
    *,
    correct: bool = False,
    unchanged: Tensor | None = None,
) -> Readings:
    """Loss, and what else is asked for, of hidden states before the unembedding, over chunks of positions.

    Args:
        hidden: ``[run, batch, pos, d_model]``.
        ids: ``[batch, pos]``: the tokens that came.
        unchanged: ``[1, batch, pos, d_model]``: with it, the KL divergence of each run from its prediction.

    Returns:
        :class:`Readings` with the axes ``[run, batch, pos]``.
    """
    W, b = model.unembed.W_U, model.unembed.b_U
    x, ids, shape = hidden.flatten(1, 2), ids.flatten(), hidden.shape[:3]
    precise = torch.promote_types(x.dtype, torch.float32)
    loss = torch.empty(x.shape[:2], dtype=precise, device=x.device)
    right = torch.empty(x.shape[:2], dtype=torch.bool, device=x.device) if correct else None
    kl = torch.empty_like(loss) if unchanged is not None else None
    size = max(16, _LOGITS.get(x.device.type, _LOGITS["cpu"]) // W.shape[1])
    for start in range(0, len(ids), size):
        chunk = slice(start, start + size)
        at = torch.arange(len(ids[chunk]), device=x.device), ids[chunk]
        before = (
            None
            if unchanged is None
            else torch.addmm(b, unchanged.flatten(0, 2)[chunk], W).to(precise).log_softmax(-1)
        )
        p = None if before is None else before.exp()
        for run in range(len(x)):
            z = torch.addmm(b, x[run, chunk], W).to(precise)
            own = z[at]
            if right is not None:
                right[run, chunk] = z.argmax(-1) == ids[chunk]
            if kl is not None:
                kl[run, chunk] = (p * (before - z)).sum(-1)
            top = z.amax(-1)
            total = z.sub_(top[:, None]).exp_().sum(-1).log_().add_(top)
            loss[run, chunk] = total - own
            if kl is not None:
                kl[run, chunk] += total
    each = (None if part is None else part.view(shape).cpu().numpy() for part in (loss, right, kl))
    return Readings(*each)


@dataclass(frozen=True, eq=False)
class Patching:
    """What each path carries: the change of the prediction when it alone carries what another input gave.

    Args:
        effect: ``[path]``, nats a token: change of loss, or KL divergence.
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

        parsed = [Path.parse(name) for name in self.paths]
        return pd.DataFrame(
            {
                "sender": ["{}:{}".format(*p.sender) for p in parsed],
                "receiver": [
                    "{}:{}".format(*p.receiver) if p.receiver else p.input for p in parsed
                ],
                "input": [p.input for p in parsed],
                "effect": self.effect,
                "standard_error": self.standard_error,
            }
        )

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self.effect), kind="stable")[:20]
        rows = [
            (self.paths[i], f"{self.effect[i]:.4f}", f"{self.standard_error[i]:.4f}") for i in order
        ]
        more = f", the {len(order)} largest of {len(self)}" if len(order) < len(self) else ""
        return table(
            f"Path patching on {self.data} ({self.score}, nats per token{more})",
            [("path", "effect", "± se"), *rows],
        )


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
    """Path patching: how the prediction changes when one path from a head carries what a corrupted input gives it.

    Three runs: a clean one, a corrupted one, and a third on the clean input in which the sender's term of the residual
    stream, z W_O, is the corrupted run's, as one receiver reads it (its Q, K or V input, before the LayerNorm; or the
    logits, before the last LayerNorm) and nowhere else. What the receiver then writes reaches everything after it.
    Paths are direct: what goes from sender to receiver through a third head is not counted.

    >>> patch_paths(model, tokens, ["0:4->1:6.K"])                                 # doctest: +SKIP

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the clean rows, and what is to be predicted.
        paths: ``"0:4->1:6.K"`` and ``"0:4->logits"``; ``None`` is every direct path there is.
        corrupted: rows of the same shape, row by row the corrupted input; ``None`` takes another row of ``tokens`` for
            each, in a random cycle.
        score: ``"loss"``: loss of the patched less of the clean run; ``"kl"``: KL(clean ‖ patched).
        where: boolean ``[row, pos]``: the tokens whose prediction counts; ``None``: all.
        seed: of the cycle.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. Results do not depend on it.

    Returns:
        :class:`Patching`: one effect a path, in nats per counted token.

    Raises:
        InputError: a path, a head, the rows or the mask are not what they must be.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3.1; Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
    """
    doing = "patch_paths"
    model = check_model(model, doing)
    rows, name = check_rows(model, tokens, doing)
    chosen = all_paths(model) if paths is None else check_paths(model, paths, doing)
    if score not in ("loss", "kl"):
        raise InputError(f"{doing}: `score` must be 'loss' or 'kl', got {score!r}.")
    mask = None if where is None else check_mask(where, rows, "where", doing)
    if corrupted is None:
        instead = rows[other_rows(len(rows), seed, doing)]
    else:
        instead, _ = check_rows(model, corrupted, doing)
        if instead.shape != rows.shape:
            raise InputError(
                f"{doing}: `corrupted` must have a row for each row of the tokens, shape {tuple(rows.shape)}, got "
                f"{tuple(instead.shape)}."
            )
    found = replace(
        model,
        rows,
        [[p] for p in chosen],
        from_rows(model, instead),
        kl=score == "kl",
        batch_size=batch_size,
    )
    each = found.loss[1:] - found.loss[:1] if found.kl is None else found.kl[1:]
    effect, error = mean_over_tokens(each, mask)
    return Patching(effect, error, tuple(str(p) for p in chosen), score, name)


def from_rows(model: AttentionOnly, instead: Tensor) -> Values:
    """Values that the heads have on other rows, ``instead [row, pos]``, one for each row."""
    return lambda index, at: [
        z[0] for z in model.activations(instead[index, : at.tokens.shape[1]]).z
    ]


def plot_paths(result: Patching, input: str = "K", ax: Axes | None = None) -> Axes:
    """Effects of the paths into one kind of input as a heat map, senders downwards, receivers to the right.

    >>> ax = plot_paths(patch_paths(model, tokens), "K")                           # doctest: +SKIP

    Args:
        result: what :func:`patch_paths` gave. Paths that were not patched are grey.
        input: ``"Q"``, ``"K"``, ``"V"`` or ``"logits"``.

    Raises:
        InputError: no such path was patched.
    """
    parsed = [
        (Path.parse(name), effect) for name, effect in zip(result.paths, result.effect, strict=True)
    ]
    mine = {(p.sender, p.receiver): effect for p, effect in parsed if p.input == input}
    if not mine:
        known = dict.fromkeys(p.input for p, _ in parsed)
        raise InputError(
            f"plot_paths(input={input!r}): no such paths were patched; {nearest(input, known)}"
        )
    senders = sorted({s for s, _ in mine})
    receivers = sorted({r for _, r in mine}, key=lambda r: r or (-1, -1))
    values = np.array([[mine.get((s, r), np.nan) for r in receivers] for s in senders])
    most = np.nanmax(np.abs(values)) or 1.0
    given = ax is not None
    ax = new_axes(ax, width=2.4 + 0.4 * len(receivers))
    if not given:
        ax.figure.set_figheight(min(8.0, 1.4 + 0.3 * len(senders)))
    ax.set_facecolor("0.9")
    image = ax.imshow(values, vmin=-most, vmax=most, cmap="RdBu_r", aspect="auto")
    ax.set_xticks(
        range(len(receivers)),
        ["{}:{}".format(*r) if r else "logits" for r in receivers],
        rotation=60,
    )
    ax.set_yticks(range(len(senders)), ["{}:{}".format(*s) for s in senders])
    ax.set_xlabel("receiver" if input == "logits" else f"receiver's {input}")
    ax.set_ylabel("sender")
    label = "KL divergence" if result.score == "kl" else "change of loss"
    ax.figure.colorbar(image, ax=ax, label=f"{label} (nats per token)")
    return ax


def _hidden(
    model: AttentionOnly, at: Activations, sets: Sequence[Sequence[Path]], values: Sequence[Tensor]
) -> Tensor:
    """Hidden state before the unembedding, ``[run, batch, pos, d_model]``, each run with its own paths replaced."""
    last = model.config.n_layers
    start = min(last if p.start is None else p.start for paths in sets for p in paths)
    x, z = at.residual[start], list(at.z[:start])
    for layer in range(start, last):
        into = _by_place(
            sets, lambda p, layer=layer: p.receiver is not None and p.receiver[0] == layer
        )
        whole = _by_place(
            sets, lambda p, layer=layer: p.input == "everything" and p.sender[0] == layer
        )
        if layer == start and not into:
            own = at.z[layer]  # nothing before has changed
        else:
            own = _attend(
                model,
                layer,
                x,
                into,
                len(sets),
                lambda p, run: _change(model, p.sender, values, z, run),
            )
        if whole:
            own = own.expand(len(sets), *own.shape[1:]).clone()
        for run, paths in whole.items():
            heads = [p.sender[1] for p in paths]
            own[run][:, heads] = values[layer][:, heads].expand_as(own[run][:, heads])
        z.append(own)
        x = x + model.write(layer, own, {})
    ends = _by_place(sets, lambda p: p.input == "logits")
    if ends:
        x = x.expand(len(sets), *x.shape[1:]).clone()
    for run, paths in ends.items():
        x[run] += sum(_change(model, p.sender, values, z, run) for p in paths)
    return model.normalise("ln_final", x, {})


def _attend(
    model: AttentionOnly,
    layer: int,
    x: Tensor,
    into: dict[int, list[Path]],
    runs: int,
    change: Callable[[Path, int], Tensor],
) -> Tensor:
    """Outputs of a layer's heads when some read another residual stream than the one there is."""
    projected = {letter: model.project(layer, letter, x) for letter in INPUTS}
    for letter, head in sorted(
        {(p.input, p.receiver[1]) for paths in into.values() for p in paths}
    ):  # type: ignore[index]
        mine = {
            r: [p for p in paths if (p.input, p.receiver[1]) == (letter, head)]
            for r, paths in into.items()
        }  # type: ignore[index]
        mine = {r: paths for r, paths in mine.items() if paths}
        read = torch.stack(
            [
                x[r if len(x) > 1 else 0] + sum(change(p, r) for p in paths)
                for r, paths in mine.items()
            ]
        )
        if len(projected[letter]) < runs:
            projected[letter] = projected[letter].expand(runs, *projected[letter].shape[1:]).clone()
        projected[letter][list(mine), :, head] = model.project(
            layer, letter, read, slice(head, head + 1)
        )[:, :, 0]
    return model.attend(*(projected[letter] for letter in INPUTS))


def _change(
    model: AttentionOnly,
    sender: tuple[int, int],
    values: Sequence[Tensor],
    z: Sequence[Tensor],
    run: int,
) -> Tensor:
    """What a sender's term of the residual stream changes by: (other value − own value) W_O, ``[batch, pos, d_model]``."""
    layer, head = sender
    own = z[layer][run if len(z[layer]) > 1 else 0, :, head]
    return (values[layer][:, head] - own) @ model.blocks[layer].attn.W_O[head]


def _by_place(
    sets: Sequence[Sequence[Path]], here: Callable[[Path], bool]
) -> dict[int, list[Path]]:
    """The paths of each run that are here; runs without one are left out."""
    found = {run: [p for p in paths if here(p)] for run, paths in enumerate(sets)}
    return {run: paths for run, paths in found.items() if paths}


def _runs_at_once(model: AttentionOnly, batch: Tensor) -> int:
    c = model.config
    return max(1, _ACTIVATIONS // (8 * batch.numel() * max(c.d_model, c.n_heads * c.d_head)))


def _chunks(items: list[int], size: int) -> Iterable[list[int]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _store(found: Readings, sets: list[int], index: Tensor, part: Readings) -> None:
    for whole, some in zip(found, part, strict=True):
        if whole is not None:
            whole[np.ix_(sets, index.numpy())] = some


def _numbers(name: str) -> tuple[int, int]:
    layer, head = name.split(":")
    return int(layer), int(head)
