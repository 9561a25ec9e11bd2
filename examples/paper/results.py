"""What was measured on one seed's model, as the claims and figures ask for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

import rllc
from rllc.analysis.circuit import CircuitCost
from rllc.analysis.clustering import Clusters
from rllc.analysis.patching import Patching
from rllc.analysis.stages import Stages

FORMED = 0.3
"""Attention score from which on a head is said to look one back, or to match prefixes."""


@dataclass(frozen=True)
class Run:
    """What was measured on one seed's model. Only heads whose every λ̂ is finite have a role."""

    seed: int
    heads: rllc.Trajectory
    """wrLLC of each head, on the data trained on and on the others."""
    distilled: rllc.Trajectory
    """wrLLC of each head with ℓ = L1: against the one-layer model."""
    roles: Mapping[str, str]
    memorised: Mapping[str, int]
    """Different multigrams that each head remembers."""
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """Name of the score -> head -> value at each step of ``heads``."""
    clusters: Clusters | None
    """Of the heads' curves on the data trained on, each layer apart; ``None`` if too few."""
    paths: Patching
    """From the heads of layer 0 into the keys of the head that matches prefixes best."""
    circuit: CircuitCost | None
    """All multigram heads ablated together, on rows on which no role was found; or ``None``."""
    stages: Stages | None
    """Of the LLC of all weights; ``None`` where fewer than 5 checkpoints have one."""
    base: str
    """Name of the data trained on."""
    code: str
    """Name of the data that induction heads are for: code, or repeats of the language."""

    @property
    def layers(self) -> dict[int, list[str]]:
        """The heads of each layer."""
        heads_of: dict[int, list[str]] = {}
        for head in sorted(self.roles, key=layer_of):
            heads_of.setdefault(layer_of(head), []).append(head)
        return heads_of

    def having(self, role: str, layer: int | None = None) -> list[str]:
        """Heads with this role, of one layer or all."""
        heads = list(self.roles)
        if layer is not None:
            heads = [head for head in heads if layer_of(head) == layer]
        return [head for head in heads if self.roles[head] == role]

    def curve(
        self, head: str, data: str, trajectory: rllc.Trajectory | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """λ̂ of ``heads``, or of another trajectory, and its standard error at each step."""
        trajectory = self.heads if trajectory is None else trajectory
        column = trajectory.names.index(head, data)
        return trajectory.value[:, column], trajectory.standard_error[:, column]

    def last(self, head: str, data: str) -> tuple[float, float]:
        """λ̂ and its standard error at the last step."""
        value, error = self.curve(head, data)
        return float(value[-1]), float(error[-1])

    def scores_of_layer(self, score: str, layer: int) -> dict[str, Sequence[float]]:
        """Head -> score at each step."""
        curves = self.scores[score]
        return {head: curve for head, curve in curves.items() if layer_of(head) == layer}

    def final_scores(self, score: str, layer: int) -> dict[str, float]:
        """Head -> score at the last step."""
        curves = self.scores_of_layer(score, layer)
        return {head: curve[-1] for head, curve in curves.items()}

    def best_score(self, score: str, layer: int) -> np.ndarray:
        """The largest score of a layer at each step."""
        curves = self.scores_of_layer(score, layer)
        return np.array(list(curves.values())).max(axis=0)

    def forming(self) -> tuple[int, int] | None:
        """Checkpoints between which the induction circuit forms; ``None`` where none does.

        From the last at which the best previous-token score of layer 0 has not yet come a quarter
        of its way, to the first at which the best prefix-matching score of layer 1 has come three
        quarters of its own.
        """
        previous = self.best_score("previous_token", 0)
        matching = self.best_score("prefix_matching", 1)
        if matching[-1] < FORMED:
            return None
        if matching[-1] <= matching[0] or previous[-1] <= previous[0]:
            return None
        begin = first_beyond(previous, 0.25)
        end = first_beyond(matching, 0.75)
        return min(begin, end) - 1, end


def first_beyond(curve: np.ndarray, share: float) -> int:
    """The first place at which a curve has come this share of its way."""
    way = curve[-1] - curve[0]
    beyond = curve >= curve[0] + share * way
    return int(np.argmax(beyond))


def layer_of(head: str) -> int:
    """The layer in ``"1:6"``."""
    return int(head.split(":")[0])


def curves(table: pd.DataFrame, column: str, by: str = "head") -> dict[str, list[float]]:
    """Head -> values over training."""
    table = table.sort_values("step", kind="stable")
    values = {}
    for head, rows in table.groupby(by, sort=False):
        values[str(head)] = rows[column].tolist()
    return values
