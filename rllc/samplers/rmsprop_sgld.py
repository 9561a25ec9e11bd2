"""SGLD with RMSProp's preconditioner, held still after an adaptation so that the law is right."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError, is_real
from rllc.samplers.law import Law
from rllc.samplers.prior import Prior, chosen
from rllc.samplers.sampler import Energy, Random, Sampler


class RMSPropSGLDState(NamedTuple):
    """``[run, dim]`` each: position, centre, and the running mean s of squared loss gradients."""

    position: Tensor
    center: Tensor
    square: Tensor
    fed: Tensor
    """``[run]``: how many gradients ``square`` holds."""


def rmsprop_sgld(
    lr: float = 1e-4,
    localization: float | None = None,
    alpha: float = 0.99,
    eps: float = 0.1,
    num_adaptation_steps: int | None = 100,
    *,
    prior: Prior | None = None,
) -> Sampler:
    """SGLD whose step size in each weight goes by that weight's gradients, learnt first, then held.

    >>> rmsprop_sgld(lr=1e-4, localization=200.0)
    rmsprop_sgld(lr=0.0001, localization=200, alpha=0.99, eps=0.1, num_adaptation_steps=100)

    Update, with g = ∇ℓ on the minibatch (the loss alone: neither nβ nor the prior is in it):

    - s ← α s + (1 − α) g², v̂ = s/(1 − α^t), while t ≤ ``num_adaptation_steps``; held afterwards;
    - G = 1/(√v̂ + e), v ← v − (ε/2) G [∇U(v) + γ (v − v*)] + √(εG) N(0, I).

    Law: once G is held it is a constant positive diagonal, and the law is sgld's with εGᵢ for ε:
    stationary variance 1/(aᵢ(1 − εGᵢaᵢ/4)) for aᵢ = nβ hᵢ + γ, stable iff εGᵢaᵢ < 4. It is exact
    from the first step after the adaptation on, once the chain has forgotten where it was: let
    ``Sampling(num_burnin_steps=...)`` cover the adaptation.

    A preconditioner that never stops adapting depends on where the chain is. The drift then lacks
    (ε/2) Γ with Γᵢ = ∂Gᵢ/∂vᵢ, which nobody computes (devinterp refuses ``add_grad_correction``).
    Without it chains linger where gradients are large: for ε → 0 the law tends to p(v)/G(v), and λ̂
    is too large, the more so the *smaller* the step. For a regular model of 2000 weights
    (ℓ = ½‖v‖², nβ = 100, γ = 0, full batch), where λ = 1000 (and p/G gives 1,444), measured ± 3:

    =====================================================  ========  ========
    λ̂                                                     ε = 1e-4  ε = 2e-5
    =====================================================  ========  ========
    devinterp 2.0.1                                        1,096     1,224
    adapting for ever (``num_adaptation_steps=None``)      1,093     1,223
    with (1 − α) Γ, the direct part, that of Li et al.     1,083     1,214
    with the whole of Γ, as if G had no memory             639       728
    held after 100 steps, the default                      1,013     1,003
    =====================================================  ========  ========

    Neither Γ is right, because G follows the chain with a lag of 1/(1 − α) steps. What the last row
    has above 1,000 is the step size, Σ ½/(1 − εGᵢaᵢ/4), which is known and shrinks with ε.

    Args:
        lr: ε, before preconditioning. As G ≤ 1/e = 10, 1e-4 never takes a larger step than sgld at
            1e-3.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        alpha: α, the memory of the statistics, 1/(1 − α) = 100 steps.
        eps: e, in units of ∇ℓ: smaller gradients do not enlarge the step any more. 0.1 is the
            literature's.
        num_adaptation_steps: steps that feed the statistics; the default is their memory. ``None``
            adapts for ever, as the literature does, with the error above.
        prior: :func:`rllc.samplers.gaussian` or :func:`rllc.samplers.box`, in place of
            ``localization``.

    Raises:
        InputError: a number is out of its range, or both ``localization`` and ``prior`` are given.

    Reference: Hitchcock & Hoogland 2025, arXiv 2507.21449 (algorithm); Li et al. 2016, arXiv
    1512.07666 (Γ).
    """
    prior = chosen("rmsprop_sgld", localization, prior)
    _check(alpha, eps, num_adaptation_steps)
    most = math.inf if num_adaptation_steps is None else num_adaptation_steps
    options = {"alpha": alpha, "eps": eps, "num_adaptation_steps": num_adaptation_steps}
    options |= prior.options
    step = _Step(lr, alpha, eps, most, prior)
    # Held still, the preconditioner only stretches the step. Its acceptance is not worked out.
    law = Law(step_adds=not prior.has_walls)
    return Sampler("rmsprop_sgld", lr, prior.localization, _init, step, options, law=law)


def _init(position: Tensor) -> RMSPropSGLDState:
    no_gradients = position.new_zeros(len(position))
    return RMSPropSGLDState(position.clone(), position, torch.zeros_like(position), no_gradients)


@dataclass(frozen=True)
class _Step:
    lr: float
    alpha: float
    eps: float
    num_adaptation_steps: float
    prior: Prior

    def __call__(self, state: RMSPropSGLDState, energy: Energy, random: Random) -> RMSPropSGLDState:
        _, gradient = energy(state.position)
        # At nβ = 0, a control, the gradient of U is 0 and says nothing of ℓ.
        loss_gradient = gradient / (energy.n_beta or 1.0)
        learning = (state.fed < self.num_adaptation_steps).to(gradient.dtype)
        weight = (1 - self.alpha) * learning[:, None]
        square = torch.lerp(state.square, loss_gradient.square_(), weight)
        fed = state.fed + learning
        total_weight = -torch.expm1(fed * math.log(self.alpha))  # 1 − α^t
        corrected = square / total_weight[:, None]  # v̂
        scale = corrected.sqrt_().add_(self.eps).reciprocal_()  # G
        drift = self.prior.gradient(state.position, state.center).add_(gradient).mul_(scale)
        moved = torch.add(state.position, drift, alpha=-self.lr / 2)
        moved.addcmul_(scale.sqrt_(), random.normal(), value=self.lr**0.5)
        position, _ = self.prior.reflect(moved, state.center)
        return RMSPropSGLDState(position, state.center, square, fed)


def _check(alpha: float, eps: float, num_adaptation_steps: int | None) -> None:
    if not is_real(alpha) or not 0 < alpha < 1:
        raise InputError(
            f"rmsprop_sgld: `alpha` must be between 0 and 1, got {alpha!r}; "
            f"the literature uses 0.99."
        )
    if not is_real(eps) or not 0 < eps < float("inf"):
        raise InputError(
            f"rmsprop_sgld: `eps` must be a positive number, got {eps!r}; the literature uses 0.1."
        )
    steps = num_adaptation_steps
    is_integer = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and (not is_integer or steps < 1):
        raise InputError(
            f"rmsprop_sgld: `num_adaptation_steps` must be an integer of at least 1, or None to "
            f"adapt for ever; got {steps!r}."
        )
