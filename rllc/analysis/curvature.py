"""How the loss curves in chosen weights: traces of Hessian and Fisher information, Hessian rank, extreme eigenvalues.

The Hessian is that of the mean loss over stated rows, at the model's weights, in one selection of weights (one head, say;
the others held fixed), and is only ever multiplied: H u = ∇(∇ℓ · u), by differentiating twice through each minibatch
(Pearlmutter 1994, "Fast exact multiplication by the Hessian"), in memory of the order of one minibatch and one vector. What is
estimated is exact for these rows, up to the noise of random probes, which every result states.

Fused attention kernels cannot be differentiated twice, so attention is done by PyTorch's MATH kernel meanwhile. A loss of
yours must have second derivatives in PyTorch's sense. Beware of custom autograd functions that do not, such as fused cross
entropies, which compute their gradient in the forward pass, or ``once_differentiable`` ones: PyTorch takes their gradient for
a constant and says nothing. ReLU networks have the curvature between their kinks, not that of the kinks.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from rllc import refinement as refine
from rllc.analysis.spectrum import Ends, Reading, filtered_rank, hutchinson, hutchpp, lanczos
from rllc.checks import arguments, check, check_baseline
from rllc.engine.layout import Group, center, digest, groups, stack, to, unpack
from rllc.engine.modes import in_mode as _mode
from rllc.engine.module import ModuleLoss
from rllc.errors import InputError, first_line, nearest
from rllc.loss import Batch, Distillation, LossFunction, next_token
from rllc.loss import logits_of as _logits
from rllc.plots import plot_heads
from rllc.plots.figures import COLORS, new_axes
from rllc.refinement import DataLike, Refinement, WeightsLike
from rllc.samplers import sgld
from rllc.sampling import Sampling
from rllc.seeds import generator, stable_hash
from rllc.tables import table
from rllc.weights import head_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Labels = Literal["model", "data"] | Callable[[nn.Module, Any, Generator], Any]


@dataclass(frozen=True)
class Probing:
    """On how much data, and with how many random probes.

    >>> Probing(num_probes=64).num_rows is None
    True

    Args:
        num_probes: random vectors, or drawings of labels, for each refinement. The standard error falls as 1/√num_probes; 16
            also let it be known to 18 %.
        num_rows: how many rows of each data set, chosen at random; ``None`` is all. Results are exact for these rows: their
            errors do not cover the choice.
        batch_size: rows that go through the model together. Takes memory; Hessians depend on it only by rounding.
        seed: of probes and of the choice of rows.

    Raises:
        InputError: a number is out of its range.
    """

    num_probes: int = 16
    num_rows: int | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_probes": 2, "batch_size": 1} | (
            {} if self.num_rows is None else {"num_rows": 1}
        )
        for name, lowest in least.items():
            _check_integer(f"Probing: `{name}`", getattr(self, name), lowest)
        if not isinstance(self.seed, int):
            raise InputError(f"Probing: `seed` must be an integer, got {self.seed!r}.")


@dataclass(frozen=True, eq=False)
class Curvature:
    """A trace or a rank for each refinement. ``result["1:6"]``, or ``result["1:6", "code"]``, is a :class:`Reading`.

    Args:
        quantity: what it is, such as ``"Hessian trace"``.
        value: ``[refinement]``; traces in nats per token (or the loss's unit), per unit of weight squared. NaN when
            the loss's derivatives are not finite.
        standard_error: ``[refinement]``: of the probes. The rows are taken as given.
        status: ``"ok"``, or what is wrong and what to change.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        diagnostics: more about each, ``[refinement]``: ``"num_weights"``; for ranks see :func:`hessian_rank`.
        settings: how it was found.
    """

    quantity: str
    value: np.ndarray
    standard_error: np.ndarray
    status: tuple[str, ...]
    weights: tuple[str, ...]
    data: tuple[str, ...]
    diagnostics: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: str | tuple[str, str]) -> Reading:
        """The reading of some weights, on one of several data sets.

        Raises:
            InputError: no such weights or data, or several data sets and none named.
        """
        i = _find(self.weights, self.data, key)
        return Reading(float(self.value[i]), float(self.standard_error[i]), self.status[i])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a refinement: ``weights, data, value, standard_error, status, quantity``, and the diagnostics."""
        import pandas as pd

        columns = {"weights": self.weights, "data": self.data, "value": self.value}
        columns |= {
            "standard_error": self.standard_error,
            "status": self.status,
            "quantity": self.quantity,
        }
        return pd.DataFrame(columns | dict(self.diagnostics))

    def __repr__(self) -> str:
        rows = [("weights", "data", self.quantity, "± se", "status")]
        for i, status in enumerate(self.status):
            numbers = f"{self.value[i]:.4g}", f"{self.standard_error[i]:.2g}"
            rows.append((self.weights[i], self.data[i], *numbers, status))
        return table(
            f"{self.quantity} of {len(self)} refinements ({_shown(self.settings)})",
            rows,
            left=(0, 1, 4),
        )


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The Hessian's eigenvalues at both ends of its spectrum. ``result["1:6"]`` gives them all, largest first.

    Args:
        largest: ``[refinement, eigenvalue]``, falling; NaN when the loss's derivatives are not finite.
        smallest: ``[refinement, eigenvalue]``, rising: the most negative first.
        largest_error: as ``largest``: within so much of each there is an eigenvalue. No chance is involved.
        smallest_error: the same for ``smallest``.
        status: ``"ok"``, or what is wrong and what to change.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        diagnostics: ``"num_weights"`` and ``"num_products"``, with the Hessian, ``[refinement]``.
        settings: how they were found.
    """

    largest: np.ndarray
    smallest: np.ndarray
    largest_error: np.ndarray
    smallest_error: np.ndarray
    status: tuple[str, ...]
    weights: tuple[str, ...]
    data: tuple[str, ...]
    diagnostics: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.largest)

    def __getitem__(self, key: str | tuple[str, str]) -> np.ndarray:
        """``[2 · count]``: the largest, then the smallest eigenvalues, falling.

        Raises:
            InputError: no such weights or data, or several data sets and none named.
        """
        i = _find(self.weights, self.data, key)
        return np.concatenate([self.largest[i], self.smallest[i, ::-1]])

    def to_dataframe(self) -> pd.DataFrame:
        """One row an eigenvalue: ``weights, data, end, number, eigenvalue, error``; ``end`` is largest or smallest."""
        import pandas as pd

        frames = []
        for end in ("largest", "smallest"):
            values = getattr(self, end)
            i, k = (index.ravel() for index in np.indices(values.shape))
            columns = {
                "weights": np.array(self.weights)[i],
                "data": np.array(self.data)[i],
                "end": end,
                "number": k,
            }
            found = {"eigenvalue": values.ravel(), "error": getattr(self, f"{end}_error").ravel()}
            frames.append(pd.DataFrame(columns | found))
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        rows = [("weights", "data", "largest", "smallest", "status")]
        for i, status in enumerate(self.status):
            ends = (
                " ".join(f"{v:.4g}" for v in values[i]) for values in (self.largest, self.smallest)
            )
            rows.append((self.weights[i], self.data[i], *ends, status))
        return table(
            f"Hessian eigenvalues of {len(self)} refinements ({_shown(self.settings)})",
            rows,
            left=(0, 1, 4),
        )


def hessian_trace(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    probing: Probing | None = None,
    progress: bool = True,
) -> Curvature:
    """tr H in each choice of weights: the sum of all curvatures.

    Where every curvature is weak, nβh ≪ γ, λ̂ ≈ ½ nβ tr H / γ; elsewhere λ̂ counts large curvatures less. Both methods are
    unbiased; see :func:`hutchinson` and :func:`hutchpp` for formulas and proofs.

    >>> model, data = nn.Linear(4, 1, bias=False), (torch.eye(4),)
    >>> round(hessian_trace(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)["everything"].value, 4)
    2.0

    Args:
        model: any module. Its weights are where the Hessian is taken; nothing of it is changed. It is in eval mode meanwhile.
        data: as in :func:`rllc.estimate`; so for ``weights`` (several give one row each) and ``loss``.
        method: ``"hutchinson"``: all probes alike. ``"hutch++"``: a third of the products finds where the large eigenvalues
            are, a third sums them exactly, and the rest estimates the remainder: the better, the faster eigenvalues fall.
        probing: ``None`` is ``Probing()``: 16 probes, each one product with the Hessian, on all rows.
        progress: show a bar.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.

    Source: arXiv 2410.02984, appendix (Hessian baselines); Hutchinson 1990; Meyer et al. 2021 (arXiv 2010.09649).
    """
    probing = _probing(probing, "hessian_trace")
    if method not in ("hutchinson", "hutch++"):
        raise InputError(
            f"hessian_trace: `method` must be 'hutchinson' or 'hutch++', got {method!r}."
        )
    if method == "hutch++" and probing.num_probes < 4:
        raise InputError(
            f"hessian_trace: method 'hutch++' needs at least 4 products with the Hessian, got {probing.num_probes}; pass "
            f"Probing(num_probes=12)."
        )
    estimator = hutchinson if method == "hutchinson" else hutchpp

    def read(surface: _Surface) -> tuple[Reading, dict[str, float]]:
        return estimator(
            surface.product, surface.dim, probing.num_probes, surface.stream("trace")
        ), {}

    settings = {"method": method} | asdict(probing)
    return _curvature(
        "Hessian trace",
        _surfaces(model, data, weights, loss, probing, "hessian_trace"),
        read,
        settings,
        progress,
    )


def fisher_trace(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    labels: Labels = "model",
    probing: Probing | None = None,
    progress: bool = True,
) -> Curvature:
    """The trace of the Fisher information per token, tr F = mean over tokens i of E_y ‖∇ log p(y | contextᵢ)‖².

    With labels y drawn from the model's own prediction, F is also the Gauss-Newton part of the Hessian of the mean loss, so
    the trace compares with :func:`hessian_trace`. With ``labels="data"`` it is the *empirical* Fisher information, made from
    the labels that came: another matrix, near F only where the model predicts well (Kunstner et al. 2019).

    One backward pass gives a whole minibatch: with independent random signs sᵢ = ±1,
    E ‖Σᵢ sᵢ ∇ℓᵢ‖² = Σᵢⱼ E[sᵢsⱼ] ∇ℓᵢ·∇ℓⱼ = Σᵢ ‖∇ℓᵢ‖², because E[sᵢsⱼ] is 1 for i = j and otherwise 0. So for each minibatch B
    of N tokens in all, and each drawing of labels and signs, ‖Σ_{i∈B} sᵢ∇ℓᵢ‖²/N is an unbiased estimate of B's part of the
    trace. The standard error is from the spread over drawings, minibatch by minibatch. Smaller batches cost more
    backward passes and make it smaller.

    >>> trace = fisher_trace(model, tokens, rllc.heads(model))                     # doctest: +SKIP

    Args:
        model: any module; see :func:`hessian_trace`. So for ``data``, ``weights`` and ``probing``, of which
            ``num_probes`` is the number of drawings.
        loss: as in :func:`rllc.estimate`; ℓᵢ is one of the losses it gives, of a token or an example.
        labels: ``"model"``, for next-token losses; ``"data"``; or, for losses of yours, ``f(module, batch, generator)`` that
            gives the batch with labels drawn from what ``module`` predicts, random numbers being ``generator``'s.
        progress: show a bar.

    Raises:
        InputError: an argument cannot work.

    Source: arXiv 2410.02984, appendix; Kunstner, Balles & Hennig 2019 (arXiv 1905.12558).
    """
    probing = _probing(probing, "fisher_trace")
    if labels not in ("model", "data") and not callable(labels):
        raise InputError(
            f"fisher_trace: `labels` must be 'model', 'data' or a function f(module, batch, generator), got {labels!r}."
        )
    if labels == "model" and not (
        loss is None or loss is next_token or isinstance(loss, Distillation)
    ):
        raise InputError(
            "fisher_trace: labels='model' draws tokens from next-token predictions, but what your loss's model predicts is not "
            "known; pass labels=f, with f(module, batch, generator) giving the batch with labels drawn from the model, "
            "or labels='data' for the empirical Fisher information."
        )

    def read(surface: _Surface) -> tuple[Reading, dict[str, float]]:
        squares = surface.squares(labels, probing.num_probes)
        error = (squares.var(0).sum() / probing.num_probes).sqrt()
        return Reading(float(squares.sum(1).mean()), float(error)), {}

    quantity = "empirical Fisher trace" if labels == "data" else "Fisher trace"
    settings = {"labels": labels if isinstance(labels, str) else "given"} | asdict(probing)
    return _curvature(
        quantity,
        _surfaces(model, data, weights, loss, probing, "fisher_trace"),
        read,
        settings,
        progress,
    )


def hessian_rank(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    threshold: float = 0.01,
    relative: bool = True,
    degree: int | None = None,
    probing: Probing | None = None,
    progress: bool = True,
) -> Curvature:
    """How many eigenvalues of the Hessian are beyond a threshold, |λ| > τ, counted without finding them.

    The count is the trace of a filter p(H), p a polynomial near 1 beyond τ and near 0 below; see :func:`filtered_rank`.

    >>> model, data = nn.Linear(4, 1, bias=False), (torch.eye(4)[:2],)             # two of four directions matter
    >>> found = hessian_rank(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)
    >>> abs(found["everything"].value - 2) < 0.05
    True

    Args:
        model: any module; see :func:`hessian_trace`. So for ``data``, ``weights``, ``loss`` and ``probing``.
        threshold: τ.
        relative: whether τ is in units of the largest |λ|, or (``False``) of the Hessian.
        degree: of the polynomial; costs degree/2 products with the Hessian for each probe. ``None``: the smallest at which
            eigenvalues of 0, were they all 0, would together count less than 0.05; at most 1000.
        progress: show a bar.

    Returns:
        :class:`Curvature`. Its diagnostics: ``"threshold"``, τ in the Hessian's unit; ``"resolution"``: eigenvalues within so
        much of ±τ are counted in part; ``"degree"``; ``"largest"`` and ``"smallest"`` eigenvalue.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.

    Source: Ubaru & Saad 2016, "Fast methods for estimating the numerical rank of large matrices" (ICML).
    """
    probing = _probing(probing, "hessian_rank")
    if not (isinstance(threshold, int | float) and 0 < threshold < (1 if relative else math.inf)):
        wanted = (
            "a number between 0 and 1, in units of the largest |λ|"
            if relative
            else "a positive number"
        )
        raise InputError(f"hessian_rank: `threshold` must be {wanted}, got {threshold!r}.")
    if degree is not None:
        _check_integer("hessian_rank: `degree`", degree, 2)

    def read(surface: _Surface) -> tuple[Reading, dict[str, float]]:
        ends = lanczos(surface.product, surface.dim, 1, 1e-3, 100, surface.stream("interval"))
        low, high = float(ends.smallest[0]), float(ends.largest[0])
        if math.isnan(high):
            return Reading(math.nan, math.nan, ends.status), {}
        size = max(abs(low), abs(high))
        tau = threshold * size if relative else float(threshold)
        margin = (
            0.01 * (high - low)
            + 1e-4 * size
            + float(ends.smallest_error[0] + ends.largest_error[0])
        )
        interval, stream = (low - margin, high + margin), surface.stream("rank")
        reading, told = filtered_rank(
            surface.product, surface.dim, tau, interval, degree, probing.num_probes, stream
        )
        return reading, told | {"largest": high, "smallest": low}

    settings = {"threshold": threshold, "relative": relative} | asdict(probing)
    return _curvature(
        "Hessian rank",
        _surfaces(model, data, weights, loss, probing, "hessian_rank"),
        read,
        settings,
        progress,
    )


def top_eigenvalues(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    count: int = 5,
    tolerance: float = 1e-4,
    max_products: int = 100,
    probing: Probing | None = None,
    progress: bool = True,
) -> Eigenvalues:
    """The largest and the smallest eigenvalues of the Hessian, by :func:`lanczos`.

    >>> found = top_eigenvalues(nn.Linear(2, 1, bias=False), (torch.tensor([[1.0, 0.0], [0.0, 3.0]]),), count=1,
    ...                         loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)
    >>> found["everything"].round(4)
    array([9., 1.])

    Args:
        model: any module; see :func:`hessian_trace`. So for ``data``, ``weights``, ``loss`` and ``probing``, of whose
            ``num_probes`` there is one here.
        count: how many at each end.
        tolerance: largest error, in units of the largest |λ|. float32 models cannot do better than about 1e-6.
        max_products: products with the Hessian at most; each keeps one vector (8 bytes a weight).
        progress: show a bar.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.
    """
    probing = _probing(probing, "top_eigenvalues")
    _check_integer("top_eigenvalues: `count`", count, 1)
    _check_integer(f"top_eigenvalues: `max_products` (for count={count})", max_products, 2 * count)
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise InputError(
            f"top_eigenvalues: `tolerance` must be between 0 and 1, got {tolerance!r}; 1e-4 is usual."
        )
    surfaces = _surfaces(model, data, weights, loss, probing, "top_eigenvalues")
    for s in surfaces:
        if s.dim < count:
            raise InputError(
                f"top_eigenvalues: the weights {s.weights!r} are {s.dim}, so there are no {count} eigenvalues; pass "
                f"count={s.dim} or fewer."
            )
    found = [
        lanczos(s.product, s.dim, count, tolerance, max_products, s.stream("eigenvalues"))
        for s in tqdm(
            surfaces, desc="eigenvalues", unit="refinement", disable=not progress, leave=False
        )
    ]
    settings = {"count": count, "tolerance": tolerance, "max_products": max_products} | asdict(
        probing
    )
    del settings["num_probes"]
    return Eigenvalues(
        **{
            name: np.stack([getattr(f, name).cpu().numpy() for f in found])
            for name in Ends._fields[:4]
        },
        status=tuple(f.status for f in found),
        weights=tuple(s.weights for s in surfaces),
        data=tuple(s.data for s in surfaces),
        diagnostics={
            "num_weights": np.array([s.dim for s in surfaces]),
            "num_products": np.array([f.num_products for f in found]),
        },
        settings=settings,
    )


def plot_curvature(result: Curvature | Eigenvalues, ax: Axes | None = None) -> Axes:
    """A trace or rank as a dot with its 95 % interval for each choice of weights, one colour a data set; or eigenvalues.

    >>> ax = plot_curvature(hessian_trace(model, tokens, rllc.heads(model)))       # doctest: +SKIP

    Args:
        result: what a function of this module gave. Of :class:`Eigenvalues`, a dash each.
        ax: where to draw; ``None`` makes a figure.
    """
    if isinstance(result, Curvature):
        ax = plot_heads(result, ax)  # type: ignore[arg-type]  # it reads names, values and errors
        ax.set_ylabel(f"{result.quantity} (95 % interval)")
        return ax
    names = list(dict.fromkeys(result.weights))
    ax = new_axes(ax, width=max(4.0, 1.5 + 0.45 * len(names)))
    for d, name in enumerate(dict.fromkeys(result.data)):
        mine = [i for i in range(len(result)) if result.data[i] == name]
        x = np.array([names.index(result.weights[i]) for i in mine]) + 0.2 * (
            d - (len(set(result.data)) - 1) / 2
        )
        y = np.concatenate([result.largest[mine], result.smallest[mine]], 1)
        ax.plot(
            np.repeat(x, y.shape[1]),
            y.ravel(),
            "_",
            ms=9,
            mew=1.4,
            color=COLORS[d % len(COLORS)],
            label=name,
        )
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) <= 4 else 60)
    ax.set_xlabel("weights")
    ax.set_ylabel(f"{result.settings['count']} largest and smallest\neigenvalues of the Hessian")
    if len(set(result.data)) > 1:
        ax.legend(title="data", frameon=False)
    return ax


# The loss as a function of the chosen weights.


@dataclass(eq=False)
class _Surface:
    """The mean loss of some rows as a function of one choice of weights, near where they are."""

    weights: str
    data: str
    bound: ModuleLoss
    group: Group
    origin: Tensor
    """``[1, dim]``."""
    rows: refine.Rows
    batches: tuple[Tensor, ...]
    """Which rows each minibatch holds."""
    seed: int
    key: str
    """Of the selected weights; probes are a function of it and the seed."""
    together: bool
    """Whether several vectors go through one backward pass."""

    @property
    def dim(self) -> int:
        return self.origin.shape[1]

    def stream(self, purpose: str) -> Generator:
        return generator(purpose, self.seed, self.key)

    def product(self, vectors: Tensor) -> Tensor:
        """Hessian times each of ``vectors [probe, dim]``; the forward and first backward pass serve all of them."""
        total, count = torch.zeros_like(vectors), 0
        for number in range(len(self.batches)):
            with self._minibatch(number) as (position, batch):
                entries = self._entries(self.bound, position, batch)
                (slope,) = torch.autograd.grad(entries.double().sum(), position, create_graph=True)
                total += self._second(slope, position, vectors.to(slope)).to(total)
                count += entries.numel()
        return total / count

    def squares(self, labels: Labels, num_draws: int) -> Tensor:
        """‖Σ sᵢ∇ℓᵢ‖²/N ``[draw, minibatch]``, see :func:`fisher_trace`."""
        stream, columns, count = self.stream("labels"), [], 0
        for number in range(len(self.batches)):
            with self._minibatch(number) as (position, batch):
                draw, column = self._drawer(labels, position, batch, stream), []
                for _ in range(num_draws):
                    entries = draw()
                    signs = 2 * torch.randint(2, entries.shape, generator=stream) - 1
                    (slope,) = torch.autograd.grad(
                        entries, position, signs.to(entries), retain_graph=True
                    )
                    column.append(slope.double().square().sum())
                columns.append(torch.stack(column))
                count += entries.numel()
        return torch.stack(columns, 1).cpu() / count

    @contextmanager
    def _minibatch(self, number: int) -> Iterator[tuple[Tensor, Batch]]:
        """Where the weights are, ready to be differentiated, and a minibatch; inside, all kernels have second derivatives.

        The model is in eval mode, and losses that draw random numbers draw the same each time.
        """
        batch = refine.take(self.rows, self.batches[number], self.origin.device)
        seeded = self.bound._seeded(stable_hash("loss", self.seed, number))
        try:
            with (
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),
                seeded,
                _mode(self.bound.model, False),
            ):
                yield self.origin.clone().requires_grad_(), batch
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise InputError(
                f"curvature in the weights {self.weights!r}: the loss cannot be differentiated twice ({first_line(error)}); "
                f'load transformers with attn_implementation="eager", and use plain PyTorch functions in the loss.'
            ) from error

    def _second(self, slope: Tensor, position: Tensor, vectors: Tensor) -> Tensor:
        """∂(slope·u)/∂position ``[probe, dim]`` for each of ``vectors [probe, dim]``."""
        if not slope.requires_grad:  # the loss is linear
            return torch.zeros_like(vectors)

        def along(u: Tensor, together: bool) -> Tensor:
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            return torch.autograd.grad(slope, position, u, is_grads_batched=together, **options)[
                0
            ].detach()

        if self.together:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return along(vectors[:, None], together=True)[:, 0]
            except RuntimeError:  # an operation that cannot be batched
                self.together = False
        return torch.cat([along(u[None], together=False) for u in vectors])

    def _drawer(
        self, labels: Labels, position: Tensor, batch: Batch, stream: Generator
    ) -> Callable[[], Tensor]:
        """A function that draws labels and gives their losses, differentiable in ``position``."""
        if callable(labels):
            return lambda: self._entries(
                self.bound, position, labels(self.bound.model, batch, stream)
            )
        if labels == "data":
            entries = self._entries(self.bound, position, batch)
            return lambda: entries
        logs = self._entries(ModuleLoss(self.bound.model, _log_probabilities), position, batch)
        rising = logs.detach().exp().cumsum(-1)

        def draw() -> Tensor:
            u = torch.rand((*rising.shape[:-1], 1), generator=stream).to(rising) * rising[..., -1:]
            tokens = torch.searchsorted(rising, u).clamp(max=rising.shape[-1] - 1)
            return -logs.gather(-1, tokens)[..., 0]

        return draw

    def _entries(self, bound: ModuleLoss, position: Tensor, batch: Batch) -> Tensor:
        member = torch.zeros(1, dtype=torch.long, device=position.device)
        moved = unpack(self.group, position, member, bound.parameters)
        changed = {
            name: stack(m, bound.parameters[name])[0].to(bound.parameters[name].dtype)
            for name, m in moved.items()
        }
        entries = bound._call(changed, batch)
        if not entries.requires_grad:
            raise InputError(
                f"curvature in the weights {self.weights!r}: the loss does not depend on them; choose weights that the model "
                f"uses, and take torch.no_grad() and .detach() out of the loss."
            )
        return entries


def _log_probabilities(module: nn.Module, batch: Tensor) -> Tensor:
    """Of every next token ``[batch, pos - 1, vocab]``."""
    return _logits(module, batch)[:, :-1].float().log_softmax(-1)


def _surfaces(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike,
    loss: LossFunction | None,
    probing: Probing,
    doing: str,
) -> list[_Surface]:
    """One for each choice of weights on each data set, after everything that can be known to be wrong was looked at."""
    with _named(doing):
        arguments(model, loss, None, None)
        refinements = refine.product(weights, data)
        masks = check(model, loss, refinements, sgld(), Sampling(batch_size=1))
        bound = ModuleLoss(model, next_token if loss is None else loss)
        batches = {}
        for r in {r.data_name: r for r in refinements}.values():
            batches[r.data_name] = _choose(r, probing, doing)
            first = refine.take(r.data, batches[r.data_name][0], bound.device)
            check_baseline(bound.center(first, stable_hash("loss", probing.seed, 0)), r.data_name)
    surfaces = []
    for r, mask in zip(refinements, masks, strict=True):
        group = to(groups([mask])[0], bound.device)
        dtypes = {bound.parameters[name].dtype for name in mask}
        origin = center(group, bound.parameters).to(
            torch.float64 if torch.float64 in dtypes else torch.float32
        )
        surfaces.append(
            _Surface(
                *r.name,
                bound,
                group,
                origin,
                r.data,
                batches[r.data_name],
                probing.seed,
                digest(mask),
                bool(bound.stacked),
            )
        )
    return surfaces


def _choose(refinement: Refinement, probing: Probing, doing: str) -> tuple[Tensor, ...]:
    """Which rows of a data set each minibatch holds."""
    known, wanted = refine.num_rows(refinement.data), probing.num_rows
    if wanted is None:
        return torch.arange(known).split(probing.batch_size)
    if wanted > known:
        raise InputError(
            f"{doing}: the data {refinement.data_name!r} has {known} rows, but num_rows={wanted}; pass "
            f"Probing(num_rows=None) for all of them."
        )
    chosen = torch.randperm(known, generator=generator("rows", probing.seed))[:wanted]
    return chosen.sort().values.split(probing.batch_size)


def _curvature(
    quantity: str,
    surfaces: Sequence[_Surface],
    read: Callable[[_Surface], tuple[Reading, dict[str, float]]],
    settings: Mapping[str, Any],
    progress: bool,
) -> Curvature:
    """Read every surface; what is not finite says so."""
    readings, told = [], []
    for surface in tqdm(
        surfaces, desc=quantity, unit="refinement", disable=not progress, leave=False
    ):
        reading, more = read(surface)
        if not math.isfinite(reading.value) and reading.status == "ok":
            reading = Reading(math.nan, math.nan, "the derivatives of the loss are not finite")
        readings.append(reading)
        told.append({"num_weights": surface.dim} | more)
    names = dict.fromkeys(name for one in told for name in one)
    return Curvature(
        quantity=quantity,
        value=np.array([r.value for r in readings]),
        standard_error=np.array([r.standard_error for r in readings]),
        status=tuple(r.status for r in readings),
        weights=tuple(s.weights for s in surfaces),
        data=tuple(s.data for s in surfaces),
        diagnostics={name: np.array([one.get(name, math.nan) for one in told]) for name in names},
        settings=settings,
    )


def _find(weights: Sequence[str], data: Sequence[str], key: str | tuple[str, str]) -> int:
    """Which refinement ``result[weights]`` or ``result[weights, data]`` means."""
    if not isinstance(key, str) and not (isinstance(key, tuple) and len(key) == 2):
        raise InputError(
            f"curvature[{key!r}]: expected a name, or (weights, data), such as curvature['1:6', 'code']."
        )
    name, chosen = (key, None) if isinstance(key, str) else key
    matching = [i for i, known in enumerate(weights) if known in (name, head_name(name))]
    if not matching:
        raise InputError(
            f"curvature[{name!r}]: no such weights; {nearest(name, dict.fromkeys(weights))}"
        )
    known = [data[i] for i in matching]
    if chosen is None and len(matching) > 1:
        raise InputError(
            f"curvature[{name!r}]: on which data? It has {known}; type curvature[{name!r}, {known[0]!r}]."
        )
    if chosen is not None and chosen not in known:
        raise InputError(f"curvature[{name!r}, {chosen!r}]: no such data; {nearest(chosen, known)}")
    return matching[0 if chosen is None else known.index(chosen)]


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items() if value is not None)


def _probing(probing: Probing | None, doing: str) -> Probing:
    if probing is not None and not isinstance(probing, Probing):
        raise InputError(
            f"{doing}: `probing` must be curvature.Probing(num_probes=16), got {type(probing).__name__}."
        )
    return Probing() if probing is None else probing


def _check_integer(what: str, value: object, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise InputError(f"{what} must be an integer of at least {lowest}, got {value!r}.")


@contextmanager
def _named(doing: str) -> Iterator[None]:
    """Let errors of checks that sampling makes too say what is being done here."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"^sampling\b", doing, str(error))) from error
