"""MALA and HMC: full-batch samplers without any error of the step size, as references."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rllc.errors import InputError, must_be
from rllc.samplers.law import Law
from rllc.samplers.prior import Prior, chosen
from rllc.samplers.sampler import Energy, Random, Sampler


class HMCState(NamedTuple):
    """Where the chains are and where they started, ``[run, dim]``; momenta are drawn every step."""

    position: Tensor
    center: Tensor
    log_factor: Tensor
    """``[run]``: log of what tuning has multiplied ε with."""
    num_steps: Tensor
    """``[run]``: how many steps tuning has seen."""


def mala(
    lr: float = 1e-3,
    localization: float | None = None,
    *,
    num_tuning_steps: int = 0,
    prior: Prior | None = None,
) -> Sampler:
    """The Metropolis-adjusted Langevin algorithm: sgld's step as a proposal. Full batch only.

    >>> mala(lr=1e-3, localization=200.0)
    mala(lr=0.001, localization=200)

    Update: v′ = v − (ε/2) [∇U(v) + γ (v − v*)] + √ε N(0, I). It is accepted with probability
    min(1, p(v′) q(v | v′) / (p(v) q(v′ | v))), q being the density of the proposal; otherwise the
    chain stays.

    Law: the target itself, at any ε: 1/aᵢ on a quadratic of precisions aᵢ. A large ε is not wrong,
    only slow. Half of the proposals or more should be accepted (0.57 is best in many dimensions,
    where ε ∝ dim^(−1/3)): ``num_tuning_steps`` finds the ε at which they are.

    Each step takes two evaluations of all rows, which are its minibatch by default. On
    minibatches the ratio is that of a different energy at every step, and the law is wrong.

    Args:
        lr: ε, as in :func:`rllc.sgld`.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        num_tuning_steps: for so many steps each chain's ε moves to where 0.574 of its proposals are
            accepted; then it stays. While it moves the law does not hold, so all of them must be
            burn-in (``Sampling(num_burnin_steps=...)``). 150 find an ε a hundred times smaller or
            larger.
        prior: :func:`rllc.samplers.gaussian` or :func:`rllc.samplers.box`, in place of
            ``localization``. Proposals are mirrored at the walls of a box, not refused.

    Raises:
        InputError: a number is out of its range, or both ``localization`` and ``prior`` are given.

    Reference: Roberts & Tweedie 1996; Roberts & Rosenthal 1998 for 0.574. It is HMC with one
    leapfrog step of √ε, and computed so.
    """
    prior = chosen("mala", localization, prior)
    tuning = _Tuning.of("mala", num_tuning_steps, 0.574)
    options = {**tuning.options, **prior.options}
    step = _Step(lr, 1, 0.0, prior, tuning)
    return Sampler("mala", lr, prior.localization, _init, step, options, True, _law(prior))


def hmc(
    lr: float = 1e-3,
    localization: float | None = None,
    num_leapfrog_steps: int = 10,
    jitter: float = 0.2,
    *,
    num_tuning_steps: int = 0,
    prior: Prior | None = None,
) -> Sampler:
    """Hamiltonian Monte Carlo: proposals that follow the energy for a while. Full batch only.

    >>> hmc(lr=1e-3, localization=200.0)
    hmc(lr=0.001, localization=200, num_leapfrog_steps=10, jitter=0.2)

    Update: p ~ N(0, I), η = √ε (1 ± jitter, uniform, one number a run); then
    ``num_leapfrog_steps`` times p ← p − (η/2) ∇H(v), v ← v + η p, p ← p − (η/2) ∇H(v) with
    H = U + (γ/2)‖v − v*‖². The end (v′, p′) is accepted with probability
    min(1, exp(H(v) + ½‖p‖² − H(v′) − ½‖p′‖²)); otherwise the chain stays.

    Law: the target itself, at any ε: 1/aᵢ on a quadratic of precisions aᵢ. Most proposals are
    accepted as long as εaᵢ < 4 for all i; 0.65 to 0.9 is a good rate.

    Each step takes one evaluation of all rows, its minibatch by default, more than it has leapfrog
    steps. NUTS, which finds the length itself, is
    in pyro and blackjax.

    Args:
        lr: ε; a leapfrog step goes √ε far in time, so that one step of it is :func:`mala`'s.
        localization: γ of a Gaussian prior; ``None`` is the paper's 200 unless ``prior`` is given.
        num_leapfrog_steps: how long a proposal is; about π/(2√(εa)) for the smallest precision a
            that matters.
        jitter: relative spread of η, so that no direction comes back to where it began at every
            step; 0 is none.
        num_tuning_steps: as for :func:`mala`, to where 0.8 are accepted.
        prior: :func:`rllc.samplers.gaussian` or :func:`rllc.samplers.box`, in place of
            ``localization``. Trajectories bounce off the walls of a box.

    Raises:
        InputError: a number is out of its range, or both ``localization`` and ``prior`` are given.

    Reference: Duane et al. 1987; Neal 2011, arXiv 1206.1901, sections 3.2 (jitter) and 5.1 (walls).
    """
    prior = chosen("hmc", localization, prior)
    if (
        not isinstance(num_leapfrog_steps, int)
        or isinstance(num_leapfrog_steps, bool)
        or num_leapfrog_steps < 1
    ):
        raise InputError(
            f"hmc: `num_leapfrog_steps` must be an integer of at least 1, "
            f"got {num_leapfrog_steps!r}."
        )
    if not 0 <= jitter < 1:
        raise InputError(
            f"hmc: `jitter` must be from 0 on and below 1, got {jitter!r}; try jitter=0.2."
        )
    tuning = _Tuning.of("hmc", num_tuning_steps, 0.8)
    options = {
        "num_leapfrog_steps": num_leapfrog_steps,
        "jitter": jitter,
        **tuning.options,
        **prior.options,
    }
    step = _Step(lr, num_leapfrog_steps, jitter, prior, tuning)
    return Sampler("hmc", lr, prior.localization, _init, step, options, True, _law(prior))


def _init(position: Tensor) -> HMCState:
    zeros = torch.zeros(len(position), device=position.device)
    return HMCState(position.clone(), position, zeros, zeros.clone())


def _law(prior: Prior) -> Law:
    # 1/√a, the target's own. From w* in thousands of dimensions no proposal would be accepted.
    return Law(deviation=None if prior.has_walls else torch.rsqrt)


@dataclass(frozen=True)
class _Tuning:
    """How ε comes to where a share of the proposals is accepted (Robbins & Monro 1951)."""

    num_steps: int
    share: float

    @classmethod
    def of(cls, sampler: str, num_steps: int, share: float) -> "_Tuning":
        right = isinstance(num_steps, int) and not isinstance(num_steps, bool) and num_steps >= 0
        must_be(sampler, "num_tuning_steps", num_steps, right, "a whole number from 0 on")
        return cls(num_steps, share)

    @property
    def options(self) -> dict[str, int]:
        return {"num_tuning_steps": self.num_steps} if self.num_steps else {}

    def after(self, state: HMCState, log_acceptance: Tensor) -> HMCState:
        """The state with the ε of the next step."""
        if not self.num_steps:
            return state
        # What is not a number was refused.
        accepted = log_acceptance.clamp(max=0).exp().nan_to_num(0.0).to(state.log_factor.dtype)
        # The gain falls slowly enough to come from afar, and fast enough to settle.
        gain = 2 * (state.num_steps + 1) ** -0.6
        moved = state.log_factor + gain * (accepted - self.share)
        is_tuning = state.num_steps < self.num_steps
        factor = torch.where(is_tuning, moved, state.log_factor)
        return state._replace(log_factor=factor, num_steps=state.num_steps + 1)


@dataclass(frozen=True)
class _Step:
    lr: float
    num_leapfrog_steps: int
    jitter: float
    prior: Prior
    tuning: _Tuning

    def __call__(self, state: HMCState, energy: Energy, random: Random) -> HMCState:
        start, center = state.position, state.center
        loss, gradient = energy(start)
        momentum = random.normal()
        eta: float | Tensor = math.sqrt(self.lr)
        if self.tuning.num_steps:
            eta = eta * (state.log_factor / 2).exp()[:, None]
        if self.jitter:
            from_minus_1_to_1 = 2 * random.uniform()[:, None] - 1
            eta = eta * (1 + self.jitter * from_minus_1_to_1)
        before = loss + self.prior.energy(start, center) + _kinetic(momentum)
        position = start
        force = gradient + self.prior.gradient(start, center)
        for _ in range(self.num_leapfrog_steps):
            momentum = momentum - eta / 2 * force
            position, sign = self.prior.reflect(position + eta * momentum, center)
            loss, gradient = energy(position)
            force = gradient + self.prior.gradient(position, center)
            momentum = momentum * sign - eta / 2 * force
        after = loss + self.prior.energy(position, center) + _kinetic(momentum)
        # A proposal whose energy is not a number compares as false, and is refused.
        log_acceptance = before - after
        accept = random.uniform().log() < log_acceptance
        moved = state._replace(position=torch.where(accept[:, None], position, start))
        return self.tuning.after(moved, log_acceptance)


def _kinetic(momentum: Tensor) -> Tensor:
    return momentum.square().sum(1, dtype=torch.float64) / 2
