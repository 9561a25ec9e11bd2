"""Taking heads out: what the loss, token by token, rises by when a head's output is replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis import patching
from rllc.analysis.patching import Path, Values, check_paths, from_rows
from rllc.analysis.rows import check_mask, check_model, check_rows, mean_over_tokens, other_rows
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import COVERS_95, new_axes
from rllc.refinement import WeightsLike, product
from rllc.seeds import generator
from rllc.tables import table
from rllc.weights import Weights, head_name, heads

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

Method = Literal["zero", "mean", "position_mean", "resample"]
METHODS = ("zero", "mean", "position_mean", "resample")


class Effect(NamedTuple):
    """A change of loss, nats per token, and its standard error over rows."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class Ablation:
    """What each ablation costs. ``ablation["1:6"]`` is an :class:`Effect`.

    Args:
        delta: ``[ablation]``, nats per token: mean loss with the heads ablated, less the mean loss of the model.
        standard_error: ``[ablation]``: over rows; NaN with one row.
        tokens: ``[ablation, row, pos − 1]``: the same for each token; entry k is about token k + 1.
        loss: ``[row, pos − 1]``: of the model itself.
        names: of the ablations.
        method: what took the heads' outputs' place.
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
        for i, known in enumerate(self.names):
            if known in (name, head_name(name)):
                return Effect(float(self.delta[i]), float(self.standard_error[i]))
        raise InputError(f"ablation[{name!r}]: no such ablation; {nearest(name, self.names)}")

    def where(self, mask: np.ndarray | Tensor, data: str = "some tokens") -> Ablation:
        """The same ablations, the means being over the tokens that a boolean mask ``[row, pos]`` selects.

        Args:
            mask: of the shape of the rows; a token counts by how it is predicted, so the first of a row never does.
            data: what to call these tokens.

        Raises:
            InputError: the mask is not boolean, has another shape, or selects nothing.
        """
        rows = torch.empty(self.loss.shape[0], self.loss.shape[1] + 1, device="meta")
        delta, error = mean_over_tokens(self.tokens, check_mask(mask, rows, data, "ablation.where"))
        return replace(self, delta=delta, standard_error=error, data=data)

    def to_dataframe(self) -> pd.DataFrame:
        """One row an ablation: ``heads, delta_loss, standard_error, method, data``."""
        import pandas as pd

        columns = {
            "heads": self.names,
            "delta_loss": self.delta,
            "standard_error": self.standard_error,
        }
        return pd.DataFrame(columns | {"method": self.method, "data": self.data})

    def __repr__(self) -> str:
        rows = [
            (n, f"{d:.4f}", f"{e:.4f}")
            for n, d, e in zip(self.names, self.delta, self.standard_error, strict=True)
        ]
        title = f"Ablation ({self.method}) on {self.data}: loss {self.loss.mean():.4f}, change in nats per token"
        return table(title, [("heads", "Δloss", "± se"), *rows])


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
    """The change of loss, per head and per token, when the output z of heads (what W_O reads) is replaced.

    All ablations are runs of one forward pass that shares what comes before the first replaced head, so a head of the
    last layer costs little more than the unembedding.

    >>> ablate(model, tokens)["1:6"]                                               # doctest: +SKIP

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows that are to be predicted.
        weights: ``None``: every head alone. Else one or several sets of heads, each replaced together: ``"1:6"``,
            ``rllc.head("0:4") | rllc.head("1:6")``, a list or a dict of these.
        method: ``"zero"``: 0; ``"mean"``: the mean of z over ``reference``, one vector a head (the default: it takes
            away what depends on the context and keeps the head's constant part, which zero also removes);
            ``"position_mean"``: the mean at each position; ``"resample"``: z of another row at the same position, all
            heads of a set from the same row.
        reference: rows for the mean and for resampling; ``None``: ``tokens`` (resampling then takes for every row
            another one, in a random cycle).
        seed: of resampling.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. Results do not depend on it.

    Raises:
        InputError: the model, the heads, the rows or the method are not what they must be.

    Source: arXiv 2410.02984, appendix (ablation scores); Chan et al. 2022 for resampling.
    """
    model = check_model(model, "ablate")
    rows, name = check_rows(model, tokens, "ablate")
    chosen = [r.weights for r in product(heads(model) if weights is None else weights, rows)]
    sets = [check_paths(model, _heads_of(w), "ablate") for w in chosen]
    values = replacement(model, rows, method, reference, seed, "ablate")
    loss = patching.replace(model, rows, sets, values, batch_size=batch_size).loss
    each = loss[1:] - loss[:1]
    delta, error = mean_over_tokens(each)
    return Ablation(delta, error, each, loss[0], tuple(w.name for w in chosen), method, name)


def replacement(
    model: AttentionOnly,
    rows: Tensor,
    method: Method,
    reference: Tokens | Tensor | None,
    seed: int,
    doing: str,
) -> Values:
    """What the outputs of ablated heads are replaced by on ``rows [row, pos]``; see :func:`ablate`.

    Raises:
        InputError: no such method, or reference rows that are too short or too few for it.
    """
    if method not in METHODS:
        raise InputError(
            f"{doing}: `method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}."
        )
    c = model.config
    if method == "zero":
        return lambda index, at: [at.z[0].new_zeros(1, c.n_heads, 1, c.d_head)] * c.n_layers
    source = rows if reference is None else check_rows(model, reference, doing)[0]
    if method != "mean" and source.shape[1] < rows.shape[1]:
        raise InputError(
            f"{doing}: method {method!r} takes activations position by position, but the rows of the reference have "
            f"{source.shape[1]} positions, those of the tokens {rows.shape[1]}; pass longer reference rows."
        )
    if method == "resample":
        if reference is None:
            return from_rows(model, rows[other_rows(len(rows), seed, doing)])
        drawn = torch.randint(len(source), (len(rows),), generator=generator("resample", seed))
        return from_rows(model, source[drawn.to(source.device)])
    means = mean_outputs(model, source, per_position=method == "position_mean")
    return lambda index, at: [m[:, :, : at.tokens.shape[1]] for m in means]


@torch.no_grad()
def mean_outputs(model: AttentionOnly, rows: Tensor, *, per_position: bool = False) -> list[Tensor]:
    """Mean output of the heads of each layer before W_O, ``[1, head, 1 or pos − 1, d_head]``.

    Args:
        rows: ``[row, pos]``; the last token of a row, which predicts nothing, is left out.
        per_position: a mean at each position, over rows, instead of one over rows and positions.
    """
    c, pos = model.config, rows.shape[1] - 1
    sums = torch.zeros(
        c.n_layers, c.n_heads, pos, c.d_head, dtype=torch.float64, device=rows.device
    )
    for some in rows[:, :-1].split(max(1, 4096 // pos)):
        for layer, z in enumerate(model.activations(some).z):
            sums[layer] += z[0].sum(0, dtype=torch.float64)
    means = sums / len(rows) if per_position else sums.mean(2, keepdim=True) / len(rows)
    return list(means.to(model.embed.W_E.dtype)[:, None])


def plot_ablation(result: Ablation, ax: Axes | None = None) -> Axes:
    """Δloss of each ablation as a dot with its 95 % interval, lines between layers.

    >>> ax = plot_ablation(ablate(model, tokens))                                  # doctest: +SKIP
    """
    ax = new_axes(ax, width=max(4.0, 1.5 + 0.4 * len(result)))
    x = np.arange(len(result))
    ax.errorbar(
        x, result.delta, yerr=COVERS_95 * result.standard_error, fmt="o", ms=5, capsize=2, lw=1.2
    )
    layers = [name.split(":")[0] if head_name(name) else "" for name in result.names]
    for edge in x[1:][[before != after for before, after in pairwise(layers)]]:
        ax.axvline(edge - 0.5, color="0.85", lw=0.8, zorder=0)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xticks(x, result.names, rotation=0 if max(map(len, result.names)) <= 4 else 60)
    ax.set_xlabel(f"ablated heads ({result.method.replace('_', ' ')})")
    ax.set_ylabel(f"change of loss on {result.data}\n(nats per token, 95 % interval)")
    return ax


def _heads_of(weights: Weights) -> list[Path]:
    """The heads that a selection is made of.

    Raises:
        InputError: it is not heads, joined by ``|``.
    """

    def walk(rule: tuple[Any, ...]) -> list[Path]:
        if rule[0] == "or":
            return walk(rule[1]) + walk(rule[2])
        if rule[0] != "head":
            raise InputError(
                f"ablate: the weights {weights.name!r} are not heads; whole heads are ablated, such as rllc.head('1:6') or "
                f"rllc.head('0:4') | rllc.head('1:6')."
            )
        return [Path((rule[1], rule[2]))]

    return walk(weights.rule)
