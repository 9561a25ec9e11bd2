"""Roles: what each head is for, from its attention, its ablation and its tokens in context."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from rllc.analysis import attention
from rllc.analysis.attention import Scores
from rllc.analysis.contexts import TokensInContext
from rllc.analysis.heads import index_of, label_heads, layer_starts
from rllc.analysis.rows import check_model, check_rows, common_start
from rllc.analysis.tokens_in_context import tokens_in_context
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import new_axes
from rllc.tables import table

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
"""Three mean attentions, three shares of tokens in context, Δloss and its error, and two counts."""

_COLORS = {
    "previous token": "#0072B2",
    "current token": "#56B4E9",
    "induction": "#009E73",
    "bracket": "#CC79A7",
    "multigram": "#D55E00",
    "other": "0.6",
}
_LABELS = {
    "previous_token": "previous token",
    "current_token": "current token",
    "prefix_matching": "prefix matching",
    "induction": "induction",
    "dyck": "Dyck",
    "multigram": "multigram",
    "delta_loss": "Δloss",
    "memorised": "memorised",
}
"""The evidence that the figure shows, with its labels."""


@dataclass(frozen=True)
class RoleThresholds:
    """From where on evidence counts. The paper gives no thresholds; these are ours.

    Args:
        previous_token: mean attention to the previous token that makes a previous-token head.
        current_token: the same for the current token.
        prefix_matching: mean attention to what followed an earlier copy of the token. It is lower,
            as the random rows are unlike all that the model was trained on.
        share: share of a head's tokens in context that must be of one kind.

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
        parts = [f"{name.replace('_', ' ')} {value:g}" for name, value in vars(self).items()]
        return ", ".join(parts)


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
        return self.roles[index_of(head, self.heads, "roles")]

    def having(self, role: str) -> tuple[str, ...]:
        """The heads that have a role.

        Raises:
            InputError: no such role.
        """
        if role not in ROLES:
            raise InputError(f"roles.having({role!r}): no such role; {nearest(role, ROLES)}")
        pairs = zip(self.heads, self.roles, strict=True)
        return tuple(head for head, own in pairs if own == role)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: ``head, role``, and the evidence."""
        import pandas as pd

        return pd.DataFrame({"head": self.heads, "role": self.roles} | dict(self.evidence))

    def __repr__(self) -> str:
        shown = [name for name in EVIDENCE if name != "delta_loss_se"]
        lines = [("head", "role", *shown)]
        for i, head in enumerate(self.heads):
            numbers = [_as_text(self.evidence[name][i]) for name in shown]
            lines.append((head, self.roles[i], *numbers))
        title = f"Roles on {self.data} (thresholds: {self.thresholds})"
        return table(title, lines, left=(0, 1))


def _as_text(value: np.generic) -> str:
    return str(value) if isinstance(value, np.integer) else f"{value:.3f}"


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
    - induction, bracket, multigram: of these kinds the one that most of the head's tokens in
      context have, if its share is at least ``thresholds.share``;
    - other: also every head that matters nowhere.

    >>> classify(model, tokens, brackets=brackets(tokenizer))["1:6"]               # doctest: +SKIP
    'induction'

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows on which heads are ablated.
        brackets: id of an opening bracket to the ids that close it; ``None``: no head is a bracket
            head.
        scores: attention scores. ``None`` measures them on random repeated rows that begin as
            ``tokens`` do. If a model repeats only after a mark of its language, measure them on
            rows of its language: ``scores(model, rows)``.
        contexts: tokens in context of all heads, to be used again, with their ablation; then
            ``brackets`` is not used.
        thresholds: see :class:`RoleThresholds`.
        seed: of the random rows.

    Returns:
        :class:`Roles`, with one role a head.

    Raises:
        InputError: the model or rows cannot be used, or scores and contexts are of other heads.

    Reference: arXiv 2410.02984, appendix (classification of heads); the thresholds are ours.
    """
    model = check_model(model, "classify")
    rows, _ = check_rows(model, tokens, "classify")
    if thresholds is None:
        thresholds = RoleThresholds()
    if contexts is None:
        contexts = tokens_in_context(model, tokens, brackets=brackets)
    if scores is None:
        scores = attention.scores(model, bos=common_start(rows), seed=seed)
    evidence = _evidence(scores, contexts)
    roles = []
    for i in range(len(contexts.heads)):
        of_head = {name: float(values[i]) for name, values in evidence.items()}
        roles.append(_role(of_head, thresholds))
    return Roles(
        heads=contexts.heads,
        roles=tuple(roles),
        evidence=evidence,
        contexts=contexts,
        thresholds=thresholds,
        data=contexts.data,
    )


def _evidence(scores: Scores, contexts: TokensInContext) -> dict[str, np.ndarray]:
    """Each kind of evidence as ``[head]``, for the heads of the tokens in context."""
    for head in contexts.heads:
        if head not in scores.heads:
            raise InputError(f"classify: the scores have no head {head!r}; make both of one model.")
    evidence = {}
    for score in attention.SCORES:
        evidence[score] = np.array([scores[head][score] for head in contexts.heads])
    count = contexts.count()
    evidence["induction"] = _share("induction", contexts)
    evidence["dyck"] = _share("dyck", contexts)
    evidence["multigram"] = _share("n-gram", contexts) + _share("skip n-gram", contexts)
    effects = [contexts.ablation[head] for head in contexts.heads]
    evidence["delta_loss"] = np.array([effect.value for effect in effects])
    evidence["delta_loss_se"] = np.array([effect.standard_error for effect in effects])
    evidence["tokens"] = count
    evidence["memorised"] = contexts.memorised
    return evidence


def _share(kind: str, contexts: TokensInContext) -> np.ndarray:
    """The share of each head's tokens in context that are of a kind; 0 if it has none."""
    return contexts.count(kind) / np.maximum(contexts.count(), 1)


def _role(evidence: Mapping[str, float], thresholds: RoleThresholds) -> str:
    """The role of one head. A score that was not measured is NaN and never counts."""
    role_of_score = {
        "previous_token": "previous token",
        "current_token": "current token",
        "prefix_matching": "induction",
    }
    for score, role in role_of_score.items():
        if evidence[score] >= getattr(thresholds, score):
            return role
    shares = {
        "induction": evidence["induction"],
        "bracket": evidence["dyck"],
        "multigram": evidence["multigram"],
    }
    role = max(shares, key=shares.__getitem__)
    if evidence["tokens"] and shares[role] >= thresholds.share:
        return role
    return "other"


def plot_roles(result: Roles, ax: Axes | None = None) -> Axes:
    """Heads against evidence as a heat map, with each head's role in its colour above.

    The three attentions and three shares are on one scale, 0 … 1. Δloss and the number of
    memorised multigrams are shaded relative to the largest, and written as numbers.

    >>> ax = plot_roles(classify(model, tokens))                                   # doctest: +SKIP
    """
    ax = new_axes(ax, width=max(5.0, 2.4 + 0.5 * len(result.heads)))
    shades = np.stack([_shade(name, result.evidence[name]) for name in _LABELS])
    ax.imshow(shades, vmin=0, vmax=1, cmap="Greys", aspect="auto")
    for y, name in enumerate(_LABELS):
        for x, value in enumerate(result.evidence[name]):
            text = str(value) if name == "memorised" else f"{value:.2f}"
            color = "white" if shades[y, x] > 0.6 else "0.2"
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    ax.axhline(2.5, color="0.5", lw=1)
    ax.axhline(5.5, color="0.5", lw=1)
    ax.set_yticks(range(len(_LABELS)), _LABELS.values())
    label_heads(ax, result.heads)
    _write_roles(ax, result.roles)
    for start in layer_starts(result.heads):
        ax.axvline(start - 0.5, color="0.3", lw=1)
    ax.set_xlabel("head")
    return ax


def _shade(name: str, values: np.ndarray) -> np.ndarray:
    """Values as darkness, 0 … 1: attention and shares as they are, others over the largest."""
    if name not in ("delta_loss", "memorised"):
        return values
    largest = max(float(np.nanmax(values)), 1e-12)
    return np.clip(values / largest, 0, 1)


def _write_roles(ax: Axes, roles: Collection[str]) -> None:
    """Write each head's role above it, and colour its label."""
    for label, role in zip(ax.get_xticklabels(), roles, strict=True):
        label.set_color(_COLORS[role])
        label.set_fontweight("bold")
    for x, role in enumerate(roles):
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
