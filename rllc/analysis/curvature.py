"""How the loss curves in chosen weights: Hessian traces, ranks, eigenvalues; Fisher information.

The Hessian is that of the mean loss over stated rows, at the model's weights, in one selection of
weights (one head, say; the others held fixed). It is only ever multiplied: H u = ∇(∇ℓ · u), by
differentiating twice through each minibatch (Pearlmutter 1994, "Fast exact multiplication by the
Hessian"), in memory of the order of one minibatch and one vector. What is estimated is exact for
these rows, up to the noise of random probes, which every result states.

Fused attention kernels cannot be differentiated twice, so attention is done by PyTorch's MATH
kernel meanwhile. A loss of yours must have second derivatives in PyTorch's sense. Beware of custom
autograd functions that do not, such as fused cross entropies, which compute their gradient in the
forward pass, or ``once_differentiable`` ones: PyTorch takes their gradient for a constant and says
nothing. ReLU networks have the curvature between their kinks, not that of the kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from rllc.analysis.curvature_results import Curvature, Eigenvalues, plot_curvature
from rllc.analysis.spectrum import (
    NOT_FINITE,
    Reading,
    filtered_rank,
    hutchinson,
    hutchpp,
    lanczos,
)
from rllc.analysis.surface import Labels, Probing, Surface, surfaces
from rllc.errors import InputError
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.contract import LossFunction
from rllc.sampling.settings import check_counts
from rllc.weights.names import Names
from rllc.weights.refinement import DataLike, WeightsLike

__all__ = [
    "Curvature",
    "Eigenvalues",
    "Probing",
    "fisher_trace",
    "hessian_rank",
    "hessian_trace",
    "plot_curvature",
    "top_eigenvalues",
]

_TRACE_ESTIMATORS = {"hutchinson": hutchinson, "hutch++": hutchpp}


def hessian_trace(
    model: torch.nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    probing: Probing | None = None,
    progress: bool = True,
) -> Curvature:
    """Estimate tr H in each choice of weights: the sum of all curvatures.

    Where every curvature is weak, nβh ≪ γ, λ̂ ≈ ½ nβ tr H / γ; elsewhere λ̂ counts large curvatures
    less. Both methods are unbiased; see :func:`rllc.analysis.spectrum.hutchinson` and ``hutchpp``
    there for formulas and proofs.

    >>> model, data = torch.nn.Linear(4, 1, bias=False), (torch.eye(4),)
    >>> trace = hessian_trace(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)
    >>> round(trace["everything"].value, 4)
    2.0

    Args:
        model: any module. Its weights are where the Hessian is taken; nothing of it is changed. It
            is in eval mode meanwhile.
        data: as in :func:`rllc.estimate`.
        weights: as in :func:`rllc.estimate`; several give one row each.
        loss: as in :func:`rllc.estimate`.
        method: ``"hutchinson"``: all probes alike. ``"hutch++"``: a third of the products finds
            where the large eigenvalues are, a third sums them exactly, and the rest estimates the
            remainder: the better, the faster eigenvalues fall.
        probing: ``None`` is ``Probing()``: 16 probes, each one product with the Hessian, on all
            rows.
        progress: show a bar.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.

    Reference: arXiv 2410.02984, appendix (Hessian baselines); Hutchinson 1990; Meyer et al. 2021
    (arXiv 2010.09649).
    """
    probing = _probing(probing, "hessian_trace")
    if method not in _TRACE_ESTIMATORS:
        raise InputError(
            f"hessian_trace: `method` must be 'hutchinson' or 'hutch++', got {method!r}."
        )
    if method == "hutch++" and probing.num_probes < 4:
        raise InputError(
            f"hessian_trace: method 'hutch++' needs at least 4 products with the Hessian, "
            f"got {probing.num_probes}; pass Probing(num_probes=12)."
        )
    estimate = _TRACE_ESTIMATORS[method]

    def read(surface: Surface) -> tuple[Reading, dict[str, float]]:
        stream = surface.stream("trace")
        return estimate(surface.product, surface.dim, probing.num_probes, stream), {}

    return _measured(
        quantity="Hessian trace",
        surfaces=surfaces(model, data, weights, loss, probing, "hessian_trace"),
        read=read,
        settings={"method": method, **asdict(probing)},
        progress=progress,
    )


def fisher_trace(
    model: torch.nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    labels: Labels = "model",
    probing: Probing | None = None,
    progress: bool = True,
) -> Curvature:
    """Estimate the trace of the Fisher information per token.

    tr F = mean over tokens i of E_y ‖∇ log p(y | contextᵢ)‖². With labels y drawn from the model's
    own prediction, F is also the Gauss-Newton part of the Hessian of the mean loss, so the trace
    compares with :func:`hessian_trace`. With ``labels="data"`` it is the *empirical* Fisher
    information, made from the labels that came: another matrix, near F only where the model
    predicts well (Kunstner et al. 2019).

    One backward pass gives a whole minibatch: with independent random signs sᵢ = ±1,
    E ‖Σᵢ sᵢ ∇ℓᵢ‖² = Σᵢⱼ E[sᵢsⱼ] ∇ℓᵢ·∇ℓⱼ = Σᵢ ‖∇ℓᵢ‖², because E[sᵢsⱼ] is 1 for i = j and otherwise
    0. So for each minibatch B of N tokens in all, and each drawing of labels and signs,
    ‖Σ_{i∈B} sᵢ∇ℓᵢ‖²/N is an unbiased estimate of B's part of the trace. The standard error is from
    the spread over drawings, minibatch by minibatch. Smaller batches cost more backward passes and
    make it smaller.

    >>> trace = fisher_trace(model, tokens, rllc.heads(model))

    Args:
        model: any module; see :func:`hessian_trace`.
        data: as in :func:`rllc.estimate`.
        weights: as in :func:`rllc.estimate`; several give one row each.
        loss: as in :func:`rllc.estimate`; ℓᵢ is one of the losses it gives, of a token or an
            example.
        labels: ``"model"``, for next-token losses; ``"data"``; or, for losses of yours,
            ``f(module, batch, generator)`` that gives the batch with labels drawn from what
            ``module`` predicts, random numbers being ``generator``'s.
        probing: see :func:`hessian_trace`; ``num_probes`` is the number of drawings.
        progress: show a bar.

    Raises:
        InputError: an argument cannot work.

    Reference: arXiv 2410.02984, appendix; Kunstner, Balles & Hennig 2019 (arXiv 1905.12558).
    """
    probing = _probing(probing, "fisher_trace")
    if labels not in ("model", "data") and not callable(labels):
        raise InputError(
            f"fisher_trace: `labels` must be 'model', 'data' or a function "
            f"f(module, batch, generator), got {labels!r}."
        )
    if labels == "model" and not _predicts_tokens(loss):
        raise InputError(
            "fisher_trace: labels='model' draws tokens from next-token predictions, but what your "
            "loss's model predicts is not known; pass labels=f, with f(module, batch, generator) "
            "giving the batch with labels drawn from the model, or labels='data' for the empirical "
            "Fisher information."
        )

    def read(surface: Surface) -> tuple[Reading, dict[str, float]]:
        squares = surface.squared_slopes(labels, probing.num_probes)
        error = (squares.var(0).sum() / probing.num_probes).sqrt()
        return Reading(float(squares.sum(1).mean()), float(error)), {}

    name_of_labels = labels if isinstance(labels, str) else "given"
    return _measured(
        quantity="empirical Fisher trace" if labels == "data" else "Fisher trace",
        surfaces=surfaces(model, data, weights, loss, probing, "fisher_trace"),
        read=read,
        settings={"labels": name_of_labels, **asdict(probing)},
        progress=progress,
    )


def _predicts_tokens(loss: LossFunction | None) -> bool:
    return loss is None or loss is next_token or isinstance(loss, Distillation)


def hessian_rank(
    model: torch.nn.Module,
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
    """Count the eigenvalues of the Hessian beyond a threshold, |λ| > τ, without finding them.

    The count is the trace of a filter p(H), p a polynomial near 1 beyond τ and near 0 below; see
    :func:`rllc.analysis.spectrum.filtered_rank`.

    >>> model = torch.nn.Linear(4, 1, bias=False)
    >>> data = (torch.eye(4)[:2],)                                    # 2 of 4 directions matter
    >>> rank = hessian_rank(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, progress=False)
    >>> abs(rank["everything"].value - 2) < 0.05
    True

    Args:
        model: any module; see :func:`hessian_trace`.
        data: as in :func:`rllc.estimate`.
        weights: as in :func:`rllc.estimate`; several give one row each.
        loss: as in :func:`rllc.estimate`.
        threshold: τ.
        relative: whether τ is in units of the largest |λ|, or (``False``) of the Hessian.
        degree: of the polynomial; costs degree/2 products with the Hessian for each probe.
            ``None``: the smallest at which eigenvalues of 0, were they all 0, would together count
            less than 0.05; at most 1000.
        probing: see :func:`hessian_trace`.
        progress: show a bar.

    Returns:
        :class:`Curvature`. Its diagnostics: ``"threshold"``, τ in the Hessian's unit;
        ``"resolution"``: eigenvalues within so much of ±τ are counted in part; ``"degree"``;
        ``"largest"`` and ``"smallest"`` eigenvalue.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.

    Reference: Ubaru & Saad 2016, "Fast methods for estimating the numerical rank of large matrices"
    (ICML).
    """
    probing = _probing(probing, "hessian_rank")
    _check_threshold(threshold, relative)
    if degree is not None:
        check_counts("hessian_rank", degree=(degree, 2))

    def read(surface: Surface) -> tuple[Reading, dict[str, float]]:
        ends = lanczos(surface.product, surface.dim, 1, 1e-3, 100, surface.stream("interval"))
        smallest = float(ends.smallest[0])
        largest = float(ends.largest[0])
        if math.isnan(largest):
            return Reading(math.nan, math.nan, ends.status), {}
        size = max(abs(smallest), abs(largest))
        # The interval must hold all eigenvalues.
        errors = float(ends.smallest_error[0] + ends.largest_error[0])
        margin = 0.01 * (largest - smallest) + 1e-4 * size + errors
        count, diagnostics = filtered_rank(
            surface.product,
            surface.dim,
            threshold * size if relative else float(threshold),
            (smallest - margin, largest + margin),
            degree,
            probing.num_probes,
            surface.stream("rank"),
        )
        return count, {**diagnostics, "largest": largest, "smallest": smallest}

    return _measured(
        quantity="Hessian rank",
        surfaces=surfaces(model, data, weights, loss, probing, "hessian_rank"),
        read=read,
        settings={"threshold": threshold, "relative": relative, **asdict(probing)},
        progress=progress,
    )


def _check_threshold(threshold: float, relative: bool) -> None:
    expected = "a positive number"
    highest = math.inf
    if relative:
        expected = "a number between 0 and 1, in units of the largest |λ|"
        highest = 1.0
    if not (isinstance(threshold, int | float) and 0 < threshold < highest):
        raise InputError(f"hessian_rank: `threshold` must be {expected}, got {threshold!r}.")


def top_eigenvalues(
    model: torch.nn.Module,
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
    """Find the largest and the smallest eigenvalues of the Hessian, by Lanczos' method.

    See :func:`rllc.analysis.spectrum.lanczos`.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = (torch.diag(torch.tensor([1.0, 3.0])),)
    >>> ends = top_eigenvalues(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, count=1,
    ...                        progress=False)
    >>> ends["everything"].round(4)
    array([9., 1.])

    Args:
        model: any module; see :func:`hessian_trace`.
        data: as in :func:`rllc.estimate`.
        weights: as in :func:`rllc.estimate`; several give one row each.
        loss: as in :func:`rllc.estimate`.
        count: how many at each end.
        tolerance: largest error, in units of the largest |λ|. float32 models cannot do better than
            about 1e-6.
        max_products: products with the Hessian at most; each keeps one vector (8 bytes a weight).
        probing: see :func:`hessian_trace`; ``num_probes`` is not used.
        progress: show a bar.

    Raises:
        InputError: an argument cannot work, or the loss cannot be differentiated twice.
    """
    doing = "top_eigenvalues"
    probing = _probing(probing, doing)
    check_counts(doing, count=(count, 1))
    check_counts(f"{doing} of {count} eigenvalues", max_products=(max_products, 2 * count))
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise InputError(
            f"{doing}: `tolerance` must be between 0 and 1, got {tolerance!r}; 1e-4 is usual."
        )
    all_surfaces = surfaces(model, data, weights, loss, probing, doing)
    for surface in all_surfaces:
        if surface.dim < count:
            raise InputError(
                f"{doing}: the weights {surface.weights!r} are {surface.dim}, so there are no "
                f"{count} eigenvalues; pass count={surface.dim} or fewer."
            )
    ends = []
    for surface in _bar(all_surfaces, "eigenvalues", progress):
        stream = surface.stream("eigenvalues")
        ends.append(lanczos(surface.product, surface.dim, count, tolerance, max_products, stream))
    settings = {"count": count, "tolerance": tolerance, "max_products": max_products}
    settings |= asdict(probing)
    del settings["num_probes"]
    return Eigenvalues(
        largest=np.stack([e.largest.numpy() for e in ends]),
        smallest=np.stack([e.smallest.numpy() for e in ends]),
        largest_error=np.stack([e.largest_error.numpy() for e in ends]),
        smallest_error=np.stack([e.smallest_error.numpy() for e in ends]),
        status=tuple(e.status for e in ends),
        names=_names(all_surfaces),
        diagnostics={
            "num_weights": np.array([surface.dim for surface in all_surfaces]),
            "num_products": np.array([e.num_products for e in ends]),
        },
        settings=settings,
    )


def _measured(
    quantity: str,
    surfaces: Sequence[Surface],
    read: Callable[[Surface], tuple[Reading, dict[str, float]]],
    settings: Mapping[str, Any],
    progress: bool,
) -> Curvature:
    """Read every surface; what is not finite says so."""
    readings = []
    diagnostics = []
    for surface in _bar(surfaces, quantity, progress):
        reading, more = read(surface)
        if not math.isfinite(reading.value) and reading.status == "ok":
            reading = Reading(math.nan, math.nan, NOT_FINITE)
        readings.append(reading)
        diagnostics.append({"num_weights": surface.dim, **more})
    # A reading that failed has fewer diagnostics than the others.
    names = dict.fromkeys(name for diagnostic in diagnostics for name in diagnostic)
    columns = {}
    for name in names:
        columns[name] = np.array([diagnostic.get(name, math.nan) for diagnostic in diagnostics])
    return Curvature(
        quantity=quantity,
        value=np.array([reading.value for reading in readings]),
        standard_error=np.array([reading.standard_error for reading in readings]),
        status=tuple(reading.status for reading in readings),
        names=_names(surfaces),
        diagnostics=columns,
        settings=settings,
    )


def _bar(surfaces: Sequence[Surface], title: str, progress: bool) -> tqdm[Surface]:
    return tqdm(surfaces, desc=title, unit="refinement", disable=not progress, leave=False)


def _names(surfaces: Sequence[Surface]) -> Names:
    return Names.of((surface.weights, surface.data) for surface in surfaces)


def _probing(probing: Probing | None, doing: str) -> Probing:
    if probing is None:
        return Probing()
    if not isinstance(probing, Probing):
        raise InputError(
            f"{doing}: `probing` must be curvature.Probing(num_probes=16), "
            f"got {type(probing).__name__}."
        )
    return probing
