"""What a second look at the loss tells of a step: would it be accepted, what the step size adds; and how sharp the loss is.

Nothing here changes a chain. Cost: one evaluation of each run at each probed draw, and :data:`_LANCZOS_STEPS` + 1 of each
refinement before the first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rllc.layout import Group
from rllc.loss import Batch, Center, Loss, Runs
from rllc.samplers import Sampler
from rllc.sampling import Sampling
from rllc.seeds import generator

_LANCZOS_STEPS = 12
"""Products with the Hessian. The largest curvature of a head stands out from the others, and is found to some percent."""


def probed(sampling: Sampling) -> frozenset[int]:
    """The draws whose step is looked at twice: evenly spaced, the last draw one of them."""
    few = min(sampling.num_probes, sampling.num_draws)
    if sampling.target_se is not None:  # it may end at any twentieth draw
        return frozenset(d for d in range(19, 20 * few, 20) if d < sampling.num_draws)
    return frozenset((k + 1) * sampling.num_draws // few - 1 for k in range(few))


def second_look(
    before: Tensor, after: Tensor, at_before: Runs, at_after: Runs, origin: Tensor, sampler: Sampler, n_beta: float
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
        ``"acceptance"`` and ``"discretisation"``, ``[run]`` in float64; NaN where the sampler's proposals are others.
    """
    unknown = torch.full((len(before),), math.nan, dtype=torch.float64, device=before.device)
    found = {"acceptance": unknown, "discretisation": unknown}
    if sampler.name not in ("sgld", "rmsprop_sgld") or "half_width" in sampler.options:
        return found
    assert at_before.gradient is not None
    assert at_after.gradient is not None
    moved = (after - before).double()
    g, g_after = at_before.gradient.double(), at_after.gradient.double()
    found["discretisation"] = n_beta / 8 * (moved * (g_after - g)).sum(1)
    if sampler.name == "sgld":
        total = n_beta * g + sampler.localization * (before - origin)
        total_after = n_beta * g_after + sampler.localization * (after - origin)
        ratio = n_beta * (at_before.losses - at_after.losses + (moved * (g + g_after)).sum(1) / 2)
        ratio += sampler.lr / 8 * ((total - total_after) * (total + total_after)).sum(1)
        found["acceptance"] = ratio.clamp(max=0.0).exp()
    return found


def largest_curvature(
    bound: Loss, group: Group, member: Tensor, origin: Tensor, center: Center, batch: Batch, lr: float
) -> Tensor:
    """The largest eigenvalue of the loss's Hessian in the weights of each member, on one minibatch: ``[member]``.

    Lanczos' method: it is the power iteration that keeps all its vectors, and needs fewer products. A product with the
    Hessian is a difference of gradients, (∇ℓ(w* + ηu) − ∇ℓ(w*))/η, over a quarter of the length √ε that a step's noise moves
    each weight, so that no kernel needs a second derivative. What is found is at most the largest; one minibatch's is on average
    at least that of the whole loss, because the largest eigenvalue is convex.

    Args:
        member: which members of the group.
        origin: their w*, ``[member, dim]``.
        lr: ε.
    """
    eta = math.sqrt(lr) / 4

    def gradient(position: Tensor) -> Tensor:
        found = bound.runs(group, member, position, center, batch, gradient=True, each=False).gradient
        assert found is not None
        return found.double()

    start = torch.randn(group.dim, generator=generator("curvature", group.dim), dtype=torch.float64)
    here, vector = gradient(origin), (start / start.norm()).to(origin.device).expand(len(origin), -1)
    basis = [vector]
    diagonal, beside = [], []
    for _ in range(min(_LANCZOS_STEPS, group.dim)):
        product = (gradient(origin + (eta * basis[-1]).to(origin.dtype)) - here) / eta
        diagonal.append((product * basis[-1]).sum(1))
        for _ in range(2):  # twice is enough to stay orthogonal
            for earlier in basis:
                product = product - (product * earlier).sum(1, keepdim=True) * earlier
        length = product.norm(dim=1)
        beside.append(length)
        basis.append(product / length.clamp(min=1e-30)[:, None])
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if len(diagonal) > 1:
        T = T + torch.diag_embed(torch.stack(beside[:-1], 1), 1) + torch.diag_embed(torch.stack(beside[:-1], 1), -1)
    finite = T.isfinite().all(-1).all(-1)
    top = torch.linalg.eigvalsh(torch.where(finite[:, None, None], T, 0.0))[:, -1]
    return torch.where(finite, top, math.nan)
