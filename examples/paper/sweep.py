"""The sweeps over training: which weights, data and loss, at which checkpoints and resolution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

import rllc

from .averaged import averaged_checkpoints
from .data import Data
from .settings import Settings

T = TypeVar("T")

LIMITS = rllc.Limits(max_imprecision=0.4)
"""For curves over training ± 40 % at 95 % will do: values grow fivefold."""


PAPER_N_BETA = 30.0
PAPER_LR = 1e-3
RESOLUTIONS = (
    (300.0, 200.0, 1e-3),
    (1000.0, 200.0, 5e-4),
    (4000.0, 2000.0, 3e-4),
    (4000.0, 20.0, 3e-4),
)
"""nβ, γ and lr at which the last checkpoint is measured as well: does the order of heads turn?"""
LAST_ONLY = 1_000_000


class Plan(NamedTuple):
    """One sweep."""

    name: str
    data: Mapping[str, rllc.Tokens]
    every: int
    """Every so many checkpoints, the last among them."""
    whole: bool = False
    """All weights together, instead of each head."""
    distilled: bool = False
    """ℓ = L1: against what the one-layer model predicts."""
    n_beta: float | None = None
    lr: float | None = None
    localization: float = 200.0
    """γ; the paper's."""


def plans(settings: Settings, data: Data) -> list[Plan]:
    """All sweeps, those first that most claims need."""
    rows = data.measured(settings.positions)
    base = {data.base.name: rows[data.base.name]}
    others = {name: rows[name] for name in rows if name not in base}
    code_and_prose = {name: rows[name] for name in (*base, *data.subsets)}
    # The weights are no minimum of ℓ = L1, and what its slope takes off grows as the square of nβ.
    # At nβ = 4000 that is more than all the rest, so it gets the small nβ of all weights as well.
    gentle: dict[str, Any] = {"n_beta": settings.whole_n_beta, "lr": settings.whole_lr}
    sweeps = [
        Plan("heads", base, 1),
        Plan("subsets", others, settings.subset_every),
        Plan("whole", base, 1, whole=True, **gentle),
        Plan("distilled", base, 2, distilled=True, **gentle),
    ]
    if settings.n_beta == PAPER_N_BETA:
        return sweeps
    few = LAST_ONLY if settings.size == "tiny" else settings.checkpoints // 3
    sweeps.append(Plan("paper", code_and_prose, few, n_beta=PAPER_N_BETA, lr=PAPER_LR))
    if settings.size == "tiny":
        return sweeps
    for n_beta, localization, lr in RESOLUTIONS:
        name = resolution_name(n_beta, localization)
        sweeps.append(Plan(name, base, LAST_ONLY, False, False, n_beta, lr, localization))
    return sweeps


def resolution_name(n_beta: float, localization: float) -> str:
    return f"resolution-{n_beta:g}-{localization:g}"


def track(settings: Settings, seed: int, plan: Plan) -> rllc.Trajectory:
    """One sweep; what is in its store already is not computed again."""
    if not settings.quiet:
        print(f"seed {seed}: sweep of {plan.name}", flush=True)
    folder = settings.folder(settings.one_layer_seed(seed)) / "one_layer"
    one_layer = rllc.load(folder, device=settings.device) if plan.distilled else None
    observed = rllc.sweep.Store(store_of(settings, seed, plan.name), observe={"slope": slope()})
    return rllc.track(
        every(averaged_checkpoints(settings, seed), plan.every),
        plan.data,
        store=observed,
        limits=LIMITS,
        **arguments(settings, seed, plan, one_layer),
    )


def arguments(settings: Settings, seed: int, plan: Plan, one_layer: Any) -> dict[str, Any]:
    """What a sweep and the estimate of its cost have in common."""
    weights: Callable[..., Any] | None = None if plan.whole else rllc.heads
    return {
        "weights": weights,
        "loss": rllc.losses.distillation(one_layer) if plan.distilled else None,
        "sampler": rllc.sgld(lr=plan.lr or settings.lr, localization=plan.localization),
        "sampling": sampling_of(settings, seed, plan),
        "compute": rllc.Compute(
            device=settings.device,
            executor=settings.processes or None,
            progress=not settings.quiet,
        ),
    }


def sampling_of(settings: Settings, seed: int, plan: Plan) -> rllc.Sampling:
    """The settings of a sweep. No step is looked at twice: the sampler's law is known."""
    return rllc.Sampling(
        num_chains=settings.chains,
        num_draws=settings.draws,
        num_burnin_steps=settings.burnin,
        num_steps_bw_draws=settings.between,
        batch_size=settings.llc_batch,
        n_beta=plan.n_beta or settings.n_beta,
        seed=seed,
        num_probes=0,
        start="gaussian",
        control_variate=True,
    )


def store_of(settings: Settings, seed: int, name: str) -> str:
    return str(settings.folder(seed) / f"sweep-{name}")


def every(checkpoints: Sequence[T], stride: int) -> list[T]:
    """Every so many checkpoints, or steps, counted from the last."""
    return list(checkpoints[::-1][::stride][::-1])


def slope() -> rllc.Observable:
    """nβ ĝ·(v − v*): the part of λ̂ that comes from the data's own gradient at w*.

    w* is near a minimum on the data that the model was trained on, not on a part of them. There
    the loss has a slope, along which chains run downhill: the mean of this is negative. ĝ is the
    mean gradient over 128 minibatches of their own.
    """
    return rllc.Observable(_slope, prepare=_mean_gradient)


def _mean_gradient(moment: Any) -> Tensor:
    gradient: Tensor = moment.mean_origin_gradient()
    return gradient


def _slope(moment: Any) -> Tensor:
    along = moment.prepared * (moment.position - moment.origin)
    total: Tensor = moment.n_beta * along.sum(1)
    return total


def mean_slopes(settings: Settings, seed: int, name: str) -> np.ndarray:
    """Mean of the slope's part over all draws, ``[checkpoint, refinement]``; NaN where missing."""
    stored = rllc.Sweep.open(store_of(settings, seed, name))
    means = np.full((len(stored.steps), len(stored.names)), np.nan)
    for i, step in enumerate(stored.steps):
        for j, (weights, data) in enumerate(stored.names):
            if (step, weights, data) in stored.finished:
                observed = stored.draws(step, weights, data).observed["slope"]
                means[i, j] = observed.mean()
    return means
