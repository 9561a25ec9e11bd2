"""What a second look at the loss tells of a step: would it be accepted, what the step size adds; and how sharp the loss is.

Nothing here changes a chain. Cost: one evaluation of each run at each probed draw, and :data:`_LANCZOS_STEPS` + 1 of each
refinement before the first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rllc.engine.layout import Group
from rllc.loss import Batch, Center, Loss, Runs
from rllc.samplers import Sampler
from rllc.seeds import generator

_LANCZOS_STEPS = 12
"""Products with the Hessian. The largest curvature of a head stands out from the others, and is found to some percent."""


_ROUNDING = 0.02
"""What is left of a product, relative to the largest, that may be an error of the difference of gradients."""


def probed(num_probes: int, num_draws: int, target_se: float | None) -> list[int]:
    """The draws whose step is looked at twice: of the n-th draws, those with the n that 2 divides most often, later ones first.

    >>> probed(5, 100, None), probed(5, 200, None)
    ([31, 47, 63, 79, 95], [63, 95, 127, 159, 191])

    They are spread over all but the beginning. The order in which draws are preferred does not depend on ``num_draws``, so
    what a longer run looks at among its first draws, a shorter one has looked at, too, and chains can be continued.

    With ``target_se`` a refinement may end at any twentieth draw, so these are taken, and a refinement's own are those before
    its end.
    """
    few = min(num_probes, num_draws)
    if target_se is not None and num_draws >= 20:
        return [d for d in range(19, 20 * few, 20) if d < num_draws]
    preferred: list[int] = []
    power = 1 << num_draws.bit_length() >> 1
    while (
        power and len(preferred) < few
    ):  # odd multiples of each power of 2, the largest first; draws may be millions
        most = num_draws // power
        odd = range(most - (most % 2 == 0), 0, -2)
        preferred += [k * power for k in odd[: few - len(preferred)]]
        power //= 2
    return sorted(n - 1 for n in preferred)


def can_be_judged(sampler: Sampler) -> bool:
    """Whether a step is a Langevin proposal, with or without a preconditioner, and no wall."""
    return sampler.name in ("sgld", "rmsprop_sgld") and "half_width" not in sampler.options


def second_look(
    before: Tensor,
    after: Tensor,
    at_before: Runs,
    at_after: Runs,
    origin: Tensor,
    sampler: Sampler,
    n_beta: float,
) -> dict[str, Tensor]:
    """Acceptance probability of a step and what its size adds to λ̂, from the losses at both ends on its own minibatch.

    With H = nβ ℓ_B + (γ/2)‖v − v*‖², G = ∇H, δ = v′ − v, and q the density of sgld's proposal:

    - acceptance: min(1, p(v′) q(v | v′) / (p(v) q(v′ | v))), that of :func:`rllc.mala`. The prior's part cancels:
      log of the ratio = nβ [ℓ_B(v) − ℓ_B(v′) + ½ δ·(∇ℓ_B(v) + ∇ℓ_B(v′))] + (ε/8)(‖G(v)‖² − ‖G(v′)‖²).
    - discretisation: ⅛ nβ δ·(∇ℓ_B(v′) − ∇ℓ_B(v)). On a quadratic its mean is Σ ½ nβhᵢ(1/(aᵢ(1 − εaᵢ/4)) − 1/aᵢ), what a
      finite ε adds to λ̂ (exactly, without gradient noise), also with a preconditioner εGᵢ that is held fixed; the
      minibatch's noise is the same at both ends and drops out.

    Acceptance is that of a chain in sgld's own law, and on a quadratic stays near ½ however large the step: losses that bend
    more than a quadratic make it small. What tells of large steps on quadratics is the discretisation.

    Args:
        before: positions ``[run, dim]``, and so ``after`` and ``origin``, the w* of each run.
        at_before: the runs there, with gradients; so ``at_after``, on the same minibatch.

    Returns:
        ``"acceptance"`` (of :func:`rllc.sgld` only, else NaN) and ``"discretisation"``, ``[run]`` in float64.
    """
    moved, g, g_after = after - before, at_before.gradient, at_after.gradient
    assert g is not None
    assert g_after is not None
    added = n_beta / 8 * _dot(moved, g_after - g)
    if sampler.name != "sgld":
        return {"acceptance": torch.full_like(added, math.nan), "discretisation": added}
    ratio = n_beta * (at_before.losses - at_after.losses + _dot(moved, g + g_after) / 2)
    difference = n_beta * (g - g_after) - sampler.localization * moved
    total = n_beta * (g + g_after) + sampler.localization * ((before - origin) + (after - origin))
    ratio += sampler.lr / 8 * _dot(difference, total)
    return {"acceptance": ratio.clamp(max=0.0).exp(), "discretisation": added}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, dtype=torch.float64)


def largest_curvature(
    bound: Loss, group: Group, member: int, origin: Tensor, center: Center, batch: Batch, lr: float
) -> Tensor:
    """The largest eigenvalue of the loss's Hessian in the weights of one member, on one minibatch: a scalar, in float64.

    Lanczos' method by its recurrence of three terms: the power iteration, of whose vectors it makes more, so that it needs
    fewer products. What it loses of their orthogonality makes it find an eigenvalue twice, which is no harm. A product with
    the Hessian is a difference of gradients, (∇ℓ(w* + ηu) − ∇ℓ(w*))/η, over a quarter of the length √ε that a step's noise
    moves each weight (or a hundredth of the weights' root mean square, where that is more: rounding), so that no kernel needs a
    second derivative; ``bound`` must evaluate in float32. What is found is at most the largest; one minibatch's is on
    average at least that of the whole loss, because the largest eigenvalue is convex.

    Args:
        member: which member of the group.
        origin: its w*, ``[dim]``.
        lr: ε.
    """
    eta = max(math.sqrt(lr) / 4, 0.01 * float(origin.square().mean().sqrt()))
    which = torch.tensor([member], device=origin.device)

    def gradient(position: Tensor) -> Tensor:
        found = bound.runs(
            group, which, position[None], center, batch, gradient=True, each=False
        ).gradient
        assert found is not None
        return found[0].double()

    start = torch.randn(group.dim, generator=generator("curvature", group.dim), dtype=torch.float64)
    here, now = gradient(origin), (start / start.norm()).to(origin.device)
    before, length = (
        torch.zeros_like(now),
        torch.zeros((), dtype=torch.float64, device=origin.device),
    )
    diagonal, beside = [], []
    for _ in range(min(_LANCZOS_STEPS, group.dim)):
        product = (gradient(origin + (eta * now).to(origin.dtype)) - here) / eta - length * before
        diagonal.append(product @ now)
        product -= diagonal[-1] * now
        length = product.norm()
        noise = (
            length < _ROUNDING * torch.stack(diagonal).abs().max()
        )  # there is no further direction
        length = torch.where(noise, 0.0, length)
        before, now = now, torch.where(noise, 0.0, product / length)
        beside.append(length)
    T = torch.diag(torch.stack(diagonal))
    if len(diagonal) > 1:
        T = T + torch.diag(torch.stack(beside[:-1]), 1) + torch.diag(torch.stack(beside[:-1]), -1)
    finite = T.isfinite().all()
    return torch.where(finite, torch.linalg.eigvalsh(torch.where(finite, T, 0.0))[-1], math.nan)
