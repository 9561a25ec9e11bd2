"""Ablation: by how much the loss rises, token by token, when the output of heads is replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis import interventions
from rllc.analysis.heads import layer_starts
from rllc.analysis.hooked import Hooked, hooked, losses, outputs, replaced
from rllc.analysis.interventions import Values, from_rows
from rllc.analysis.paths import Path, check_paths
from rllc.analysis.rows import (
    check_mask,
    check_model,
    check_rows,
    is_own,
    mean_over_tokens,
    other_rows,
)
from rllc.anatomy import Anatomy
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest, one_of
from rllc.plots.figures import new_axes
from rllc.seeds import generator
from rllc.statistics.quantiles import student_quantile
from rllc.tables import AsTable, Table, rounded
from rllc.weights.names import head_name
from rllc.weights.refinement import WeightsLike, product
from rllc.weights.selection import Weights, heads

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly
    from rllc.models.attention_only import Activations

Method = Literal["zero", "mean", "position_mean", "resample"]
METHODS = ("zero", "mean", "position_mean", "resample")

_TOKENS = 4096
"""Tokens of a pass that averages outputs."""


class Effect(NamedTuple):
    """A change of the loss, nats per token, and its standard error over rows."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(AsTable):
    """The cost of each ablation. ``ablation["1:6"]`` is an :class:`Effect`.

    Args:
        delta: ``[ablation]``, nats per token: mean loss with the heads ablated less that of the
            model.
        standard_error: ``[ablation]``: over rows; NaN with one row.
        tokens: ``[ablation, row, pos − 1]``: the same for each token; entry k is for token k + 1.
        loss: ``[row, pos − 1]``: of the model itself.
        names: of the ablations.
        method: what took the place of the heads' outputs.
        data: name of the rows.
    """

    delta: np.ndarray
    standard_error: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    names: tuple[str, ...]
    method: str
    data: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Effect:
        """The effect of one ablation.

        Raises:
            InputError: no such ablation.
        """
        spellings = (name, head_name(name))
        for i, own in enumerate(self.names):
            if own in spellings:
                return Effect(float(self.delta[i]), float(self.standard_error[i]))
        raise InputError(f"ablation[{name!r}]: no such ablation; {nearest(name, self.names)}")

    def where(
        self,
        mask: np.ndarray | Tensor,
        data: str = "some tokens",
    ) -> Ablation:
        """The same ablations, averaged over the tokens that a mask selects.

        Args:
            mask: boolean ``[row, pos]``. The first token of a row is not predicted and never
                counts.
            data: what to call these tokens.

        Raises:
            InputError: the mask is not boolean, has another shape, or selects nothing.
        """
        num_rows, num_predicted = self.loss.shape
        rows = torch.empty(num_rows, num_predicted + 1, device="meta")
        predicted = check_mask(mask, rows, data, "ablation.where")
        delta, error = mean_over_tokens(self.tokens, predicted)
        return dataclasses.replace(
            self,
            delta=delta,
            standard_error=error,
            data=data,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row an ablation: ``heads, delta_loss, standard_error, method, data``."""
        import pandas as pd

        columns = {
            "heads": self.names,
            "delta_loss": self.delta,
            "standard_error": self.standard_error,
            "method": self.method,
            "data": self.data,
        }
        return pd.DataFrame(columns)

    @property
    def _table(self) -> Table:
        lines = [("heads", "Δloss", "± se")]
        for name, delta, error in zip(self.names, self.delta, self.standard_error, strict=True):
            lines.append((name, *rounded(delta, error)))
        title = (
            f"Ablation ({self.method}) on {self.data}: loss {self.loss.mean():.4f}, "
            f"change in nats per token"
        )
        return Table(title, lines)


@torch.no_grad()
def ablate(
    model: nn.Module,
    tokens: Tokens | Tensor,
    weights: WeightsLike = None,
    *,
    method: Method = "mean",
    reference: Tokens | Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Ablation:
    """The change of the loss, by head and token, when the output z of heads is replaced.

    z is what W_O reads. All ablations share one forward pass up to the first replaced head, so a
    head of the last layer costs little more than the unembedding.

    >>> effect = ablate(model, tokens)["1:6"]

    Args:
        model: an :class:`rllc.models.AttentionOnly`; or any causal language model whose anatomy is
            known, of which each set of heads takes a forward pass of its own.
        tokens: the rows that are to be predicted.
        weights: ``None``: every head alone. Else one or several sets of heads, each replaced
            together: ``"1:6"``, ``rllc.head("0:4") | rllc.head("1:6")``, a list or a dict of these.
        method: ``"zero"``: 0. ``"mean"``: the mean of z over ``reference``, one vector a head. It
            is the default, as it keeps the head's constant part and removes what depends on the
            context. ``"position_mean"``: the mean at each position. ``"resample"``: z of another
            row at the same position, for all heads of a set from the same row.
        reference: rows for the mean and for resampling; ``None``: ``tokens``. Resampling then
            takes another row for each, in a random cycle.
        seed: of resampling.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. It does not change results.

    Returns:
        :class:`Ablation`, with one entry a head or set.

    Raises:
        InputError: the model, the heads, the rows or the method cannot be used.

    Reference: arXiv 2410.02984, appendix (ablation scores); Chan et al. 2022 for resampling.
    """
    caller = "ablate"
    if not is_own(model):
        size = batch_size
        return _ablate_any(model, tokens, weights, method, reference, seed, size)
    model = check_model(model, caller)
    rows, name = check_rows(model, tokens, caller)
    refinements = product(heads(model) if weights is None else weights, rows)
    chosen = [refinement.weights for refinement in refinements]
    sets = [check_paths(model, _heads_of(selection), caller) for selection in chosen]
    values = replacement(model, rows, method, reference, seed, caller)
    loss = interventions.replace(
        model,
        rows,
        sets,
        values,
        batch_size=batch_size,
    ).loss
    return _effects(loss, chosen, method, name)


def _effects(loss: np.ndarray, chosen: Sequence[Weights], method: Method, data: str) -> Ablation:
    """The cost of each ablation, from the losses ``[1 + ablation, row, pos − 1]``, intact first."""
    effects = loss[1:] - loss[:1]
    delta, error = mean_over_tokens(effects)
    return Ablation(
        delta=delta,
        standard_error=error,
        tokens=effects,
        loss=loss[0],
        names=tuple(selection.name for selection in chosen),
        method=method,
        data=data,
    )


def _heads_of(weights: Weights) -> list[Path]:
    """The heads that a selection is made of, of a model with one kind of attention."""
    return [Path((layer, head)) for _, layer, head in _numbers_of_heads(weights, towers=False)]


def _numbers_of_heads(weights: Weights, *, towers: bool = True) -> list[tuple[str, int, int]]:
    """Tower, layer and head of each head that a selection is made of.

    Raises:
        InputError: it is something else than heads, joined by ``|``.
    """

    def collect(rule: tuple[Any, ...]) -> list[tuple[str, int, int]]:
        kind, *rest = rule
        if kind == "or":
            left, right = rest
            return collect(left) + collect(right)
        if kind == "head":
            layer, head, tower, *_ = rest
            if towers or not tower:
                return [(tower, layer, head)]
        raise InputError(
            f"ablate: the weights {weights.name!r} are not heads; whole heads are ablated, such as "
            f"rllc.head('1:6') or rllc.head('0:4') | rllc.head('1:6')."
        )

    return collect(weights.rule)


# Any causal language model, through its anatomy.


def _ablate_any(
    model: nn.Module,
    tokens: Tokens | Tensor,
    weights: WeightsLike,
    method: Method,
    reference: Tokens | Tensor | None,
    seed: int,
    batch_size: int | None,
) -> Ablation:
    caller = "ablate"
    _check_method(method, caller)
    subject = hooked(model, caller)
    rows, name = check_rows(subject.model, tokens, caller)
    refinements = product(heads(model) if weights is None else weights, rows)
    chosen = [refinement.weights for refinement in refinements]
    sets = [_places_of_heads(selection, subject.anatomy) for selection in chosen]
    source, order = _source(subject, rows, method, reference, seed, caller)
    means = _means(subject, source, method)
    num_rows, num_positions = rows.shape
    loss = np.empty((1 + len(sets), num_rows, num_positions - 1), np.float32)
    size = batch_size or max(1, _TOKENS // num_positions)
    for index in torch.arange(num_rows).split(size):
        batch = rows[index]
        values = means
        if method == "resample":
            other = source[order[index].to(source.device), : num_positions - 1]
            values = outputs(subject, other)
        values = [value[:, : num_positions - 1] for value in values]
        loss[0, index.numpy()] = losses(subject, batch).cpu().numpy()
        for i, places in enumerate(sets):
            with replaced(subject, places, values):
                loss[1 + i, index.numpy()] = losses(subject, batch).cpu().numpy()
    return _effects(loss, chosen, method, name)


def _places_of_heads(weights: Weights, anatomy: Anatomy) -> dict[int, list[int]]:
    """The heads that a selection is made of, by the number of their attention."""
    towers = [(attention.tower, attention.layer) for attention in anatomy.attentions]
    places: dict[int, list[int]] = {}
    for tower, layer, head in _numbers_of_heads(weights):
        is_layer = (tower, layer) in towers
        number = towers.index((tower, layer)) if is_layer else -1
        if not is_layer or head >= anatomy.attentions[number].num_heads:
            raise InputError(
                f"ablate: the model has no head of {weights.name!r}; "
                f"{nearest(weights.name, anatomy.heads)}"
            )
        places.setdefault(number, []).append(head)
    return places


def _source(
    subject: Hooked,
    rows: Tensor,
    method: Method,
    reference: Tokens | Tensor | None,
    seed: int,
    caller: str,
) -> tuple[Tensor, Tensor]:
    """Rows whose values are taken, and for resampling the one for each row."""
    source = rows if reference is None else check_rows(subject.model, reference, caller)[0]
    if method in ("position_mean", "resample"):
        _check_length(source, rows, method, caller)
    if method != "resample":
        return source, torch.arange(len(rows))
    if reference is None:
        return source, other_rows(len(rows), seed, caller)
    stream = generator("resample", seed)
    return source, torch.randint(len(source), (len(rows),), generator=stream)


def _means(subject: Hooked, source: Tensor, method: Method) -> list[Tensor]:
    """The values that replace z, for each attention: ``[1, 1 or pos, head, d_head]``."""
    device = source.device
    if method in ("zero", "resample"):
        zeros = []
        for attention in subject.anatomy.attentions:
            shape = (1, 1, attention.num_heads, attention.d_head)
            zeros.append(torch.zeros(shape, device=device))
        return zeros
    sums: list[Tensor] = []
    rows_at_once = max(1, _TOKENS // source.shape[1])
    for batch in source[:, :-1].split(rows_at_once):
        sums_of_batch = [z.double().sum(0, keepdim=True) for z in outputs(subject, batch)]
        if not sums:
            sums = sums_of_batch
            continue
        sums = [total + added for total, added in zip(sums, sums_of_batch, strict=True)]
    means = [total / len(source) for total in sums]
    if method == "position_mean":
        return means
    return [mean.mean(1, keepdim=True) for mean in means]


# AttentionOnly, all interventions in one pass.


def replacement(
    model: AttentionOnly,
    rows: Tensor,
    method: Method,
    reference: Tokens | Tensor | None,
    seed: int,
    caller: str,
) -> Values:
    """The values that replace the outputs of ablated heads on ``rows [row, pos]``.

    The arguments are those of :func:`ablate`.

    Raises:
        InputError: no such method, or too few or too short reference rows for it.
    """
    _check_method(method, caller)
    if method == "zero":
        return _zeros(model)
    source = rows if reference is None else check_rows(model, reference, caller)[0]
    if method == "mean":
        return _constants(mean_outputs(model, source))
    _check_length(source, rows, method, caller)
    if method == "position_mean":
        return _constants(mean_outputs(model, source, per_position=True))
    if reference is None:
        return from_rows(model, rows[other_rows(len(rows), seed, caller)])
    stream = generator("resample", seed)
    drawn = torch.randint(len(source), (len(rows),), generator=stream)
    return from_rows(model, source[drawn.to(source.device)])


def _check_method(method: object, caller: str) -> None:
    if not one_of(method, METHODS):
        names = ", ".join(map(repr, METHODS))
        raise InputError(f"{caller}: `method` must be one of {names}, got {method!r}.")


def _check_length(source: Tensor, rows: Tensor, method: Method, caller: str) -> None:
    if source.shape[1] < rows.shape[1]:
        raise InputError(
            f"{caller}: method {method!r} takes activations position by position, but the rows of "
            f"the reference have {source.shape[1]} positions, those of the tokens {rows.shape[1]}; "
            f"pass longer reference rows."
        )


def _zeros(model: AttentionOnly) -> Values:
    config = model.config

    def values(index: Tensor, activations: Activations) -> list[Tensor]:
        zero = activations.z[0].new_zeros(
            1,
            config.n_heads,
            1,
            config.d_head,
        )
        return [zero] * config.n_layers

    return values


def _constants(means: list[Tensor]) -> Values:
    """The same values for all rows: ``[1, head, 1 or pos, d_head]`` a layer."""

    def values(index: Tensor, activations: Activations) -> list[Tensor]:
        num_positions = activations.tokens.shape[1]
        return [mean[:, :, :num_positions] for mean in means]

    return values


@torch.no_grad()
def mean_outputs(
    model: AttentionOnly,
    rows: Tensor,
    *,
    per_position: bool = False,
) -> list[Tensor]:
    """The mean output of heads before W_O: for each layer ``[1, head, 1 or pos − 1, d_head]``.

    Args:
        model: the model.
        rows: ``[row, pos]``. The last token of a row predicts nothing and is left out.
        per_position: average over rows only, for each position; else over positions too.
    """
    config = model.config
    num_positions = rows.shape[1] - 1
    sums = torch.zeros(
        (config.n_layers, config.n_heads, num_positions, config.d_head),
        dtype=torch.float64,
        device=rows.device,
    )
    rows_at_once = max(1, _TOKENS // num_positions)
    for batch in rows[:, :-1].split(rows_at_once):
        for layer, z in enumerate(model.activations(batch).z):
            sums[layer] += z[0].sum(0, dtype=torch.float64)
    if not per_position:
        sums = sums.mean(2, keepdim=True)
    means = (sums / len(rows)).to(model.embed.W_E.dtype)
    return [mean[None] for mean in means]


def plot_ablation(result: Ablation, ax: Axes | None = None) -> Axes:
    """The change of the loss by each ablation, with its 95 % interval.

    >>> ax = plot_ablation(ablate(model, tokens))
    """
    ax = new_axes(ax, width=max(4.0, 1.5 + 0.4 * len(result)))
    x = np.arange(len(result))
    dof = max(len(result.loss) - 1, 1)
    half_width = student_quantile(0.95, dof) * result.standard_error
    ax.errorbar(
        x,
        result.delta,
        yerr=half_width,
        fmt="o",
        ms=5,
        capsize=2,
        lw=1.2,
    )
    for start in layer_starts(result.names):
        ax.axvline(
            start - 0.5,
            color="0.85",
            lw=0.8,
            zorder=0,
        )
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    longest = max(map(len, result.names))
    ax.set_xticks(x, result.names, rotation=0 if longest <= 4 else 60)
    ax.set_xlabel(f"ablated heads ({result.method.replace('_', ' ')})")
    ax.set_ylabel(f"change of loss on {result.data}\n(nats per token, 95 % interval)")
    return ax
