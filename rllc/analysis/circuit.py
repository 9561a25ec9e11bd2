"""Heads and paths ablated together: what it costs the prediction of chosen tokens, against random sets of the same size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rllc.analysis import patching
from rllc.analysis.ablation import Method, replacement
from rllc.analysis.patching import Path, all_paths, check_paths
from rllc.analysis.rows import check_mask, check_model, check_rows, mean_over_tokens
from rllc.data.tokens import Tokens
from rllc.errors import InputError, nearest
from rllc.plots.figures import COVERS_95, new_axes
from rllc.seeds import generator
from rllc.tables import table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rllc.models import AttentionOnly


@dataclass(frozen=True, eq=False)
class CircuitCost:
    """What ablating a circuit costs on each choice of tokens; ``set`` 0 is the circuit, the others random sets.

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
        """Share of sets, this one among them, that cost at least as much loss as the circuit: (1 + #)/(1 + random sets).

        Args:
            mask: on which tokens.
            less: with another mask's name, compare the cost on ``mask`` less the cost on it: is the circuit needed for
                these tokens more than for those?

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
        """One row a set and mask: ``set, paths, mask, tokens, loss, loss_error, accuracy, accuracy_error``."""
        import pandas as pd

        which, mask = (i.ravel() for i in np.indices(self.loss.shape))
        return pd.DataFrame(
            {
                "set": ["circuit" if i == 0 else f"random {i}" for i in which],
                "paths": [", ".join(self.sets[i]) for i in which],
                "mask": [self.masks[i] for i in mask],
                "tokens": self.counts[mask],
                "loss": self.loss.ravel(),
                "loss_error": self.loss_error.ravel(),
                "accuracy": self.accuracy.ravel(),
                "accuracy_error": self.accuracy_error.ravel(),
            }
        )

    def __repr__(self) -> str:
        rows = [
            (
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
        ]
        for i, name in enumerate(self.masks):
            loss = (
                f"{self.baseline_loss[i]:.3f}",
                f"{self.loss[0, i]:.3f}",
                f"{self.loss_error[0, i]:.3f}",
            )
            beside = f"{_mean(self.loss[1:, i]):.3f}", f"{self.p_value(name):.3f}"
            right = self.baseline_accuracy[i], self.accuracy[0, i], _mean(self.accuracy[1:, i])
            rows.append((name, str(self.counts[i]), *loss, *beside, *(f"{a:.3f}" for a in right)))
        title = f"Circuit {', '.join(self.sets[0])} on {self.data} ({self.method}, {len(self.sets) - 1} random sets)"
        return table(title, rows)


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
    """Ablate heads and paths together, and as many random ones, and see what it costs the prediction of chosen tokens.

    A random set has the circuit's number of heads in each layer, and its number of paths between each pair of layers into
    each kind of input; they are drawn from all such sets but the circuit, none twice, and are all of them where these are
    fewer. So
    ``p_value(mask)`` is a permutation test of "these heads matter more for these tokens than others like them".

    >>> masks = {"simple": bigrams, "complex": others}                             # doctest: +SKIP
    >>> ablate_circuit(model, tokens, ["0:6", "0:2->1:3.K", "1:3"], masks)         # doctest: +SKIP

    Args:
        model: an :class:`rllc.models.AttentionOnly`.
        tokens: the rows.
        circuit: heads (``"0:6"``: all that it writes) and direct paths (``"0:2->1:3.K"``, ``"1:3->logits"``).
        masks: boolean ``[row, pos]`` by name: the tokens whose prediction counts, such as the last tokens of simple and of
            complex multigrams.
        method: as in :func:`rllc.analysis.ablation.ablate`: ``"zero"``, ``"mean"``, ``"position_mean"``, ``"resample"``.
        reference: rows for the mean and for resampling; ``None``: ``tokens``.
        num_random: random sets, at most; 20 let the p value reach 1/21.
        seed: of the random sets and of resampling.
        batch_size: rows of a pass; ``None`` is about 4096 tokens. Results do not depend on it.

    Raises:
        InputError: the model, a path, the rows or a mask are not what they must be, or there is no other set of this size.
    """
    doing = "ablate_circuit"
    model = check_model(model, doing)
    rows, name = check_rows(model, tokens, doing)
    paths = check_paths(model, circuit, doing)
    if not masks:
        raise InputError(
            f"{doing}: no masks; pass a dict such as {{'simple': mask}} of boolean masks [row, pos]."
        )
    chosen = {str(key): check_mask(mask, rows, str(key), doing) for key, mask in masks.items()}
    sets = [paths, *random_sets(model, paths, num_random, seed)]
    values = replacement(model, rows, method, reference, seed, doing)
    found = patching.replace(model, rows, sets, values, correct=True, batch_size=batch_size)
    right = found.correct.astype(np.float32)  # type: ignore[union-attr]
    changes = (found.loss[1:] - found.loss[:1], right[1:] - right[:1])
    loss, accuracy = (
        [mean_over_tokens(each, mask) for mask in chosen.values()] for each in changes
    )
    return CircuitCost(
        loss=np.stack([mean for mean, _ in loss], 1),
        loss_error=np.stack([error for _, error in loss], 1),
        accuracy=np.stack([mean for mean, _ in accuracy], 1),
        accuracy_error=np.stack([error for _, error in accuracy], 1),
        baseline_loss=np.array([found.loss[0][mask].mean() for mask in chosen.values()]),
        baseline_accuracy=np.array([right[0][mask].mean() for mask in chosen.values()]),
        counts=np.array([int(mask.sum()) for mask in chosen.values()]),
        masks=tuple(chosen),
        sets=tuple(tuple(str(p) for p in one) for one in sets),
        method=method,
        data=name,
    )


def random_sets(
    model: AttentionOnly, circuit: Iterable[Path], count: int, seed: int = 0
) -> list[tuple[Path, ...]]:
    """Different sets with as many heads in each layer, and as many paths of each kind, as a circuit has; never itself.

    Fewer than ``count`` where there are no more.

    Raises:
        InputError: there is no other such set.
    """
    c = model.config
    wanted = Counter(_kind(p) for p in circuit)
    heads = (Path((layer, head)) for layer in range(c.n_layers) for head in range(c.n_heads))
    pools: dict[tuple[object, ...], list[Path]] = {}
    for path in (*heads, *all_paths(model)):
        pools.setdefault(_kind(path), []).append(path)
    others = prod(comb(len(pools[kind]), k) for kind, k in wanted.items()) - 1
    if count and not others:
        raise InputError(
            f"ablate_circuit: the circuit has all heads or paths of its kind ({', '.join(str(p) for p in circuit)}), so "
            f"there is no other set to compare with; pass num_random=0 or a smaller circuit."
        )
    stream, seen, found = generator("random_sets", seed), {frozenset(circuit)}, []
    while len(found) < min(count, others):
        drawn = tuple(
            pools[kind][i]
            for kind, k in wanted.items()
            for i in torch.randperm(len(pools[kind]), generator=stream)[:k].tolist()
        )
        if frozenset(drawn) not in seen:
            seen.add(frozenset(drawn))
            found.append(drawn)
    return found


def plot_circuit(
    result: CircuitCost, quantity: Literal["loss", "accuracy"] = "loss", ax: Axes | None = None
) -> Axes:
    """What the circuit's ablation costs on each mask, with its 95 % interval, beside random sets (grey).

    >>> ax = plot_circuit(ablate_circuit(model, tokens, circuit, masks))           # doctest: +SKIP

    Raises:
        InputError: ``quantity`` is not ``"loss"`` or ``"accuracy"``.
    """
    if quantity not in ("loss", "accuracy"):
        raise InputError(
            f"plot_circuit: `quantity` must be 'loss' or 'accuracy', got {quantity!r}."
        )
    cost, error = getattr(result, quantity), getattr(result, f"{quantity}_error")
    ax = new_axes(ax, width=max(3.2, 1.6 + 0.9 * len(result.masks)))
    x = np.arange(len(result.masks))
    spread = np.linspace(-0.12, 0.12, max(2, len(cost) - 1))[
        : len(cost) - 1
    ]  # so that equal values can be told apart
    for i, others in enumerate(cost[1:].T):
        label = "random sets of its size" if i == 0 else None
        ax.plot(x[i] + 0.12 + spread, others, "o", ms=4, alpha=0.5, mew=0, color="0.5", label=label)
    ax.errorbar(
        x - 0.15,
        cost[0],
        yerr=COVERS_95 * error[0],
        fmt="o",
        ms=6,
        capsize=2,
        color="#D55E00",
        label="circuit",
    )
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xticks(
        x,
        [
            f"{name}\n({count} tokens)"
            for name, count in zip(result.masks, result.counts, strict=True)
        ],
    )
    ax.set_xlim(-0.5, len(x) - 0.5)
    ax.set_ylabel(f"change of {quantity}" + (" (nats per token)" if quantity == "loss" else ""))
    ax.legend(frameon=False, fontsize="small")
    return ax


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _kind(path: Path) -> tuple[object, ...]:
    return path.sender[0], path.receiver[0] if path.receiver else None, path.input
