"""Heads and paths ablated together: what it costs the prediction of chosen tokens.

The cost is compared with that of random sets of the same size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from rllc.analysis import patching
from rllc.analysis.ablation import Method, replacement
from rllc.analysis.patching import Path, all_paths, check_paths
from rllc.analysis.rows import check_mask, check_model, check_rows, mean_over_tokens
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import COLORS, COVERS_95, new_axes
from rllc.seeds import generator
from rllc.tables import AsTable, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly

Kind = tuple[object, ...]
"""The kind of a path: the layers that it leads between, and the input that it leads into."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitCost(AsTable):
    """The cost of ablating a circuit, on each choice of tokens.

    ``set`` 0 is the circuit, the others are random sets.

    Args:
        loss: ``[set, mask]``, nats per token: change of the mean loss on the tokens of a mask.
        loss_error: ``[set, mask]``: its standard error over rows.
        accuracy: ``[set, mask]``: change of the share of tokens that are predicted right.
        accuracy_error: ``[set, mask]``.
        baseline_loss: ``[mask]``: of the model as it is.
        baseline_accuracy: ``[mask]``.
        counts: ``[mask]``: how many tokens it selects.
        masks: their names.
        sets: the paths of each set, by name.
        method: what took the place of the heads' outputs.
        data: name of the rows.
    """

    loss: np.ndarray
    loss_error: np.ndarray
    accuracy: np.ndarray
    accuracy_error: np.ndarray
    baseline_loss: np.ndarray
    baseline_accuracy: np.ndarray
    counts: np.ndarray
    masks: tuple[str, ...]
    sets: tuple[tuple[str, ...], ...]
    method: str
    data: str

    def p_value(self, mask: str, less: str | None = None) -> float:
        """Return the share of sets that cost at least as much loss as the circuit.

        The circuit is among them: (1 + #)/(1 + random sets).

        Args:
            mask: on which tokens.
            less: another mask's name, to compare the cost on ``mask`` less the cost on that one: is
                the circuit needed for these tokens more than for those?

        Raises:
            InputError: no such mask.
        """
        cost = self.loss[:, self._index(mask)]
        if less is not None:
            cost = cost - self.loss[:, self._index(less)]
        return float((cost >= cost[0]).mean())

    def _index(self, mask: str) -> int:
        if mask not in self.masks:
            raise InputError(f"circuit: no mask {mask!r}; {nearest(mask, self.masks)}")
        return self.masks.index(mask)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a set and mask.

        Columns: ``set, paths, mask, tokens, loss, loss_error, accuracy, accuracy_error``.
        """
        import pandas as pd

        set_of_row, mask_of_row = (index.ravel() for index in np.indices(self.loss.shape))
        return pd.DataFrame(
            {
                "set": ["circuit" if i == 0 else f"random {i}" for i in set_of_row],
                "paths": [", ".join(self.sets[i]) for i in set_of_row],
                "mask": [self.masks[i] for i in mask_of_row],
                "tokens": self.counts[mask_of_row],
                "loss": self.loss.ravel(),
                "loss_error": self.loss_error.ravel(),
                "accuracy": self.accuracy.ravel(),
                "accuracy_error": self.accuracy_error.ravel(),
            }
        )

    @property
    def _table(self) -> Table:
        header = (
            "tokens",
            "count",
            "loss",
            "Δloss",
            "± se",
            "random",
            "p",
            "accuracy",
            "Δaccuracy",
            "random",
        )
        rows: list[tuple[str, ...]] = [header]
        for i, name in enumerate(self.masks):
            numbers = (
                self.baseline_loss[i],
                self.loss[0, i],
                self.loss_error[0, i],
                _mean(self.loss[1:, i]),
                self.p_value(name),
                self.baseline_accuracy[i],
                self.accuracy[0, i],
                _mean(self.accuracy[1:, i]),
            )
            written = [f"{number:.3f}" for number in numbers]
            rows.append((name, str(self.counts[i]), *written))
        circuit = ", ".join(self.sets[0])
        num_random = len(self.sets) - 1
        title = f"Circuit {circuit} on {self.data} ({self.method}, {num_random} random sets)"
        return Table(title, rows)


@torch.no_grad()
def ablate_circuit(
    model: nn.Module,
    tokens: Tokens | Tensor,
    circuit: Iterable[str | Path],
    masks: Mapping[str, np.ndarray | Tensor],
    *,
    method: Method = "mean",
    reference: Tokens | Tensor | None = None,
    num_random: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
) -> CircuitCost:
    """Ablate heads and paths together, and as many random ones, and see what it costs.

    A random set has the circuit's number of heads in each layer, and its number of paths between
    each pair of layers into each kind of input. The sets are drawn from all such sets but the
    circuit, none twice, and are all of them where these are fewer. So ``p_value(mask)`` is a
    permutation test of "these heads matter more for these tokens than others like them".

    >>> masks = {"simple": bigrams, "complex": others}
    >>> cost = ablate_circuit(model, tokens, ["0:6", "0:2->1:3.K", "1:3"], masks)

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows.
        circuit: heads (``"0:6"``: all that it writes) and direct paths (``"0:2->1:3.K"``,
            ``"1:3->logits"``).
        masks: boolean ``[row, pos]`` by name: the tokens whose prediction counts, such as the last
            tokens of simple and of complex multigrams.
        method: as in :func:`rllc.analysis.ablation.ablate`: ``"zero"``, ``"mean"``,
            ``"position_mean"``, ``"resample"``.
        reference: rows for the mean and for resampling; ``None``: ``tokens``.
        num_random: random sets, at most; 20 let the p value reach 1/21.
        seed: of the random sets and of resampling.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. Results do not depend on it.

    Raises:
        InputError: the model, a path, the rows or a mask are not what they must be, or there is no
            other set of this size.
    """
    doing = "ablate_circuit"
    model = check_model(model, doing)
    rows, name_of_rows = check_rows(model, tokens, doing)
    paths = check_paths(model, circuit, doing)
    if not masks:
        raise InputError(
            f"{doing}: no masks; pass a dict such as {{'simple': mask}} of boolean masks "
            f"[row, pos]."
        )
    checked_masks = {}
    for name, mask in masks.items():
        checked_masks[str(name)] = check_mask(mask, rows, str(name), doing)
    sets = [paths, *random_sets(model, paths, num_random, seed)]
    values = replacement(model, rows, method, reference, seed, doing)
    outcome = patching.replace(model, rows, sets, values, correct=True, batch_size=batch_size)
    assert outcome.correct is not None
    correct = outcome.correct.astype(np.float32)
    loss, loss_error = _changes(outcome.loss, checked_masks)
    accuracy, accuracy_error = _changes(correct, checked_masks)
    return CircuitCost(
        loss=loss,
        loss_error=loss_error,
        accuracy=accuracy,
        accuracy_error=accuracy_error,
        baseline_loss=np.array([outcome.loss[0][mask].mean() for mask in checked_masks.values()]),
        baseline_accuracy=np.array([correct[0][mask].mean() for mask in checked_masks.values()]),
        counts=np.array([int(mask.sum()) for mask in checked_masks.values()]),
        masks=tuple(checked_masks),
        sets=tuple(tuple(str(path) for path in paths_of_set) for paths_of_set in sets),
        method=method,
        data=name_of_rows,
    )


def _changes(values: np.ndarray, masks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean changes from the first of ``values [1 + set, row, pos]``, and their errors.

    Both are ``[set, mask]``.
    """
    changes = values[1:] - values[:1]
    means, errors = [], []
    for mask in masks.values():
        mean, error = mean_over_tokens(changes, mask)
        means.append(mean)
        errors.append(error)
    return np.stack(means, 1), np.stack(errors, 1)


def random_sets(
    model: AttentionOnly, circuit: Iterable[Path], count: int, seed: int = 0
) -> list[tuple[Path, ...]]:
    """Draw different sets with as many heads in each layer and paths of each kind as a circuit.

    The circuit itself is never one of them; there are fewer than ``count`` where no more exist.

    Args:
        model: whose heads and paths.
        circuit: the heads and paths to resemble.
        count: how many sets.
        seed: of the draws.

    Raises:
        InputError: there is no other such set.
    """
    circuit = tuple(circuit)
    num_of_kind = Counter(_kind(path) for path in circuit)
    pools = _pools(model)
    choices = [comb(len(pools[kind]), number) for kind, number in num_of_kind.items()]
    num_others = prod(choices) - 1
    if count and not num_others:
        paths = ", ".join(str(path) for path in circuit)
        raise InputError(
            f"ablate_circuit: the circuit has all heads or paths of its kind ({paths}), so there "
            f"is no other set to compare with; pass num_random=0 or a smaller circuit."
        )
    stream = generator("random_sets", seed)
    drawn = {frozenset(circuit)}
    sets: list[tuple[Path, ...]] = []
    while len(sets) < min(count, num_others):
        paths_of_set: list[Path] = []
        for kind, number in num_of_kind.items():
            paths_of_set += _choose(pools[kind], number, stream)
        if frozenset(paths_of_set) not in drawn:
            drawn.add(frozenset(paths_of_set))
            sets.append(tuple(paths_of_set))
    return sets


def _pools(model: AttentionOnly) -> dict[Kind, list[Path]]:
    """Return all heads and paths of a model by kind."""
    config = model.config
    heads = [Path(index) for index in np.ndindex(config.n_layers, config.n_heads)]
    pools: dict[Kind, list[Path]] = {}
    for path in (*heads, *all_paths(model)):
        pools.setdefault(_kind(path), []).append(path)
    return pools


def _kind(path: Path) -> Kind:
    receiving_layer = path.receiver[0] if path.receiver else None
    return path.sender[0], receiving_layer, path.input


def _choose(pool: list[Path], number: int, stream: Generator) -> list[Path]:
    order = torch.randperm(len(pool), generator=stream)
    return [pool[i] for i in order[:number].tolist()]


def plot_circuit(
    result: CircuitCost, quantity: Literal["loss", "accuracy"] = "loss", ax: Axes | None = None
) -> Axes:
    """Draw the cost of a circuit's ablation on each mask, with its 95 % interval.

    Random sets are grey dots beside it.

    >>> ax = plot_circuit(ablate_circuit(model, tokens, circuit, masks))

    Args:
        result: what :func:`ablate_circuit` gave.
        quantity: ``"loss"`` or ``"accuracy"``.
        ax: where to draw; ``None`` makes a figure.

    Raises:
        InputError: ``quantity`` is not ``"loss"`` or ``"accuracy"``.
    """
    if quantity not in ("loss", "accuracy"):
        raise InputError(
            f"plot_circuit: `quantity` must be 'loss' or 'accuracy', got {quantity!r}."
        )
    cost = getattr(result, quantity)
    error = getattr(result, f"{quantity}_error")
    ax = new_axes(ax, width=max(3.2, 1.6 + 0.9 * len(result.masks)))
    x = np.arange(len(result.masks))
    num_random = len(cost) - 1
    # Side by side, so that equal values can be told apart.
    spread = np.linspace(-0.12, 0.12, max(2, num_random))[:num_random]
    for i, costs_of_random in enumerate(cost[1:].T):
        ax.plot(
            x[i] + 0.12 + spread,
            costs_of_random,
            "o",
            ms=4,
            alpha=0.5,
            mew=0,
            color="0.5",
            label="random sets of its size" if i == 0 else None,
        )
    ax.errorbar(
        x - 0.15,
        cost[0],
        yerr=COVERS_95 * error[0],
        fmt="o",
        ms=6,
        capsize=2,
        color=COLORS[1],
        label="circuit",
    )
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    words = []
    for name, count in zip(result.masks, result.counts, strict=True):
        words.append(f"{name}\n({count} tokens)")
    ax.set_xticks(x, words)
    ax.set_xlim(-0.5, len(x) - 0.5)
    unit = " (nats per token)" if quantity == "loss" else ""
    ax.set_ylabel(f"change of {quantity}{unit}")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
