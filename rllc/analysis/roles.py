"""What each head is for: attention scores, ablations and tokens in context put together into one table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from rllc.analysis import attention
from rllc.analysis.attention import Scores
from rllc.analysis.rows import check_model, check_rows
from rllc.analysis.tokens_in_context import TokensInContext, common_start, tokens_in_context
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ROLES = ("previous token", "current token", "induction", "bracket", "multigram", "other")
EVIDENCE = (
    "previous_token",
    "current_token",
    "prefix_matching",
    "induction",
    "dyck",
    "multigram",
    "delta_loss",
    "delta_loss_se",
    "tokens",
    "memorised",
)
"""Three mean attentions, three shares of a head's tokens in context, Δloss and its error, and two counts."""

_COLORS = {
    "previous token": "#0072B2",
    "current token": "#56B4E9",
    "induction": "#009E73",
    "bracket": "#CC79A7",
    "multigram": "#D55E00",
    "other": "0.6",
}


@dataclass(frozen=True)
class RoleThresholds:
    """From where on evidence counts; ours, as the paper gives none.

    Args:
        previous_token: mean attention to the previous token that makes a head a previous-token head.
        current_token: the same for the current token.
        prefix_matching: mean attention to what followed an earlier copy of the token; lower, as it is on rows that the
            model never saw the like of.
        share: of a head's tokens in context that must be of one kind.

    Raises:
        InputError: a number is not in 0 … 1.
    """

    previous_token: float = 0.5
    current_token: float = 0.5
    prefix_matching: float = 0.3
    share: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"RoleThresholds: `{name}` must be from 0 to 1, got {value!r}.")

    def __str__(self) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {value:g}" for name, value in vars(self).items()
        )


@dataclass(frozen=True, eq=False)
class Roles:
    """A role for each head, with the evidence. ``roles["1:6"]`` is the role of one head.

    Args:
        heads: names of the heads.
        roles: ``[head]``: one of :data:`ROLES`.
        evidence: by name (:data:`EVIDENCE`), ``[head]``.
        contexts: the tokens in context that the shares and counts are of.
        thresholds: what the roles were decided with.
        data: name of the rows.
    """

    heads: tuple[str, ...]
    roles: tuple[str, ...]
    evidence: Mapping[str, np.ndarray]
    contexts: TokensInContext
    thresholds: RoleThresholds
    data: str

    def __getitem__(self, head: str) -> str:
        """The role of one head.

        Raises:
            InputError: no such head.
        """
        name = head_name(head)
        if name not in self.heads:
            raise InputError(f"roles[{head!r}]: no such head; {nearest(head, self.heads)}")
        return self.roles[self.heads.index(name)]

    def having(self, role: str) -> tuple[str, ...]:
        """The heads that have a role.

        Raises:
            InputError: no such role.
        """
        if role not in ROLES:
            raise InputError(f"roles.having({role!r}): no such role; {nearest(role, ROLES)}")
        return tuple(head for head, own in zip(self.heads, self.roles, strict=True) if own == role)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: ``head, role``, and the evidence."""
        import pandas as pd

        return pd.DataFrame({"head": self.heads, "role": self.roles} | dict(self.evidence))

    def __repr__(self) -> str:
        shown = [name for name in EVIDENCE if name != "delta_loss_se"]
        lines = [("head", "role", *shown)]
        for i, head in enumerate(self.heads):
            values = (self.evidence[name][i] for name in shown)
            numbers = (str(v) if isinstance(v, np.integer) else f"{v:.3f}" for v in values)
            lines.append((head, self.roles[i], *numbers))
        return table(f"Roles on {self.data} (thresholds: {self.thresholds})", lines, left=(0, 1))


def classify(
    model: nn.Module,
    tokens: Tokens | Tensor,
    *,
    brackets: Mapping[int, int | Collection[int]] | None = None,
    scores: Scores | None = None,
    contexts: TokensInContext | None = None,
    thresholds: RoleThresholds | None = None,
    seed: int = 0,
) -> Roles:
    """What each head is for, from where it looks and from the tokens that it matters for.

    The role is the first of these that holds:

    - previous token, current token, induction: the mean attention is at least its threshold;
    - induction, bracket, multigram: the kind (of these) that most of the head's tokens in context have, if it is at least
      the share ``thresholds.share`` of them: see :func:`rllc.analysis.tokens_in_context.tokens_in_context`;
    - other: also every head that neither looks nor matters anywhere.

    >>> classify(model, tokens, brackets=brackets(tokenizer))["1:6"]               # doctest: +SKIP
    'induction'

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows on which heads are ablated.
        brackets: id of an opening bracket to the ids that close it; ``None``: no head is a bracket head.
        scores: attention scores; ``None`` measures them on random repeated rows, which begin as ``tokens`` do. A model
            that only repeats after a mark of its language shows that on rows of its language: pass ``scores(model, rows)``.
        contexts: tokens in context of all heads, when there are some already; their ablation is used too, and
            ``brackets`` is not.
        thresholds: see :class:`RoleThresholds`.
        seed: of the random rows.

    Raises:
        InputError: the model or rows are not what they must be, or scores and contexts are of other heads.

    Source: arXiv 2410.02984, appendix (classification of heads); the thresholds are ours.
    """
    model, thresholds = check_model(model, "classify"), thresholds or RoleThresholds()
    rows, _ = check_rows(model, tokens, "classify")
    if contexts is None:
        contexts = tokens_in_context(model, tokens, brackets=brackets)
    if scores is None:
        scores = attention.scores(model, bos=common_start(rows), seed=seed)
    evidence = _evidence(scores, contexts)
    heads = contexts.heads
    roles = tuple(
        _role({name: float(v[i]) for name, v in evidence.items()}, thresholds)
        for i in range(len(heads))
    )
    return Roles(heads, roles, evidence, contexts, thresholds, contexts.data)


def plot_roles(result: Roles, ax: Axes | None = None) -> Axes:
    """Heads against evidence as a heat map; each head's name has the colour of its role, which stands above it.

    The three attentions and three shares are on one scale, 0 … 1; Δloss and the number of memorised multigrams, relative to
    the largest, are written as numbers.

    >>> ax = plot_roles(classify(model, tokens))                                   # doctest: +SKIP
    """
    shown = (*EVIDENCE[:6], "delta_loss", "memorised")
    values = np.stack([_relative(name, result.evidence[name]) for name in shown])
    ax = new_axes(ax, width=max(5.0, 2.4 + 0.5 * len(result.heads)))
    ax.imshow(values, vmin=0, vmax=1, cmap="Greys", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        number = result.evidence[shown[y]][x]
        text = str(number) if shown[y] == "memorised" else f"{number:.2f}"
        ax.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > 0.6 else "0.2",
        )
    ax.axhline(2.5, color="0.5", lw=1)
    ax.axhline(5.5, color="0.5", lw=1)
    labels = (
        "previous token",
        "current token",
        "prefix matching",
        "induction",
        "Dyck",
        "multigram",
        "Δloss",
        "memorised",
    )
    ax.set_yticks(range(len(shown)), labels)
    ax.set_xticks(
        range(len(result.heads)), result.heads, rotation=0 if len(result.heads) <= 16 else 90
    )
    for label, role in zip(ax.get_xticklabels(), result.roles, strict=True):
        label.set_color(_COLORS[role])
        label.set_fontweight("bold")
    for x, role in enumerate(result.roles):
        ax.annotate(
            role,
            (x, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=45,
            fontsize="small",
            color=_COLORS[role],
        )
    layers = [head.split(":")[0] for head in result.heads]
    for x in range(1, len(layers)):
        if layers[x] != layers[x - 1]:
            ax.axvline(x - 0.5, color="0.3", lw=1)
    ax.set_xlabel("head")
    return ax


def _evidence(scores: Scores, contexts: TokensInContext) -> dict[str, np.ndarray]:
    """Each kind of evidence as ``[head]``, the heads being those of the tokens in context."""
    missing = [head for head in contexts.heads if head not in scores.heads]
    if missing:
        raise InputError(
            f"classify: the scores have no head {missing[0]!r}; make both of one model."
        )
    ablation, count = contexts.ablation, contexts.count()
    share = {
        kind: contexts.count(kind) / np.maximum(count, 1)
        for kind in ("induction", "dyck", "n-gram", "skip n-gram")
    }
    return {
        **{
            name: np.array([scores[head][name] for head in contexts.heads])
            for name in attention.SCORES
        },
        "induction": share["induction"],
        "dyck": share["dyck"],
        "multigram": share["n-gram"] + share["skip n-gram"],
        "delta_loss": np.array([ablation[head].value for head in contexts.heads]),
        "delta_loss_se": np.array([ablation[head].standard_error for head in contexts.heads]),
        "tokens": count,
        "memorised": contexts.memorised,
    }


def _role(evidence: Mapping[str, float], thresholds: RoleThresholds) -> str:
    """The role of one head; NaN, such as a score that was not measured, is no evidence."""
    for name, role in zip(attention.SCORES, ROLES, strict=False):
        if evidence[name] >= getattr(thresholds, name):
            return role
    shares = {
        "induction": evidence["induction"],
        "bracket": evidence["dyck"],
        "multigram": evidence["multigram"],
    }
    most = max(shares, key=lambda role: shares[role])
    return most if evidence["tokens"] and shares[most] >= thresholds.share else "other"


def _relative(name: str, values: np.ndarray) -> np.ndarray:
    """Values as darkness, 0 … 1: attention and shares as they are, the others relative to the largest."""
    if name not in ("delta_loss", "memorised"):
        return values
    return np.clip(values / max(float(np.nanmax(values)), 1e-12), 0, 1)
