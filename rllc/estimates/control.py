"""The negative control: what λ̂ would be if the prior alone held the chains."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from rllc.arguments import names_checked
from rllc.estimates.estimate import Estimate, estimate
from rllc.limits import Limits
from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler, prior_alone
from rllc.sampling.checks import arguments
from rllc.sampling.settings import Compute, Sampling
from rllc.weights.refinement import DataLike, WeightsLike


@names_checked
def control(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    compute: Compute | None = None,
) -> Estimate:
    """The control at nβ = 0: what λ̂ would be if the prior alone held the chains.

    Its value is nβ·E[ℓ(v) − ℓ(w*)] over independent draws v of N(w*, 1/(γ(1 − εγ/4))), the exact
    law
    of chains that do not see the loss; ½nβ Σhᵢ/γ on a quadratic. Where λ̂ is not clearly below its
    control it is the Hessian's trace under another name: a larger nβ is needed.
    ``estimate.diagnostics["control_ratio"]`` has the ratio of every estimate; this measures the
    control itself with more draws.

    >>> import torch
    >>> model, data = torch.nn.Linear(4, 1), torch.eye(4).repeat(16, 1)
    >>> control(model, data, loss=lambda m, x: m(x)[:, 0] ** 2).settings["sampler"]
    'prior_alone'

    Arguments, result and errors are those of :func:`estimate`; of the sampler only ε and γ matter.

    Reference: the negative control of devinterp's sampling guide.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    return estimate(
        model,
        data,
        weights,
        loss=loss,
        sampler=prior_alone(sampler.lr, sampler.localization),
        sampling=replace(sampling, start="center", num_probes=0),
        limits=limits,
        compute=compute,
    )
