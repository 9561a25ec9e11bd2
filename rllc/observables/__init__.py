"""Observables to watch along chains; each file has one kind of :class:`rllc.Observable`."""

from __future__ import annotations

from rllc.observables.control_variate import control_variate
from rllc.observables.curvature import max_curvature, stability
from rllc.observables.distance import distance
from rllc.observables.losses import losses_on, minibatch_losses, minibatch_rows
from rllc.observables.minibatch_noise import minibatch_variance, pairing
from rllc.observables.prior import loss_under_prior
from rllc.observables.step_size import acceptance, discretisation

__all__ = [
    "acceptance",
    "control_variate",
    "discretisation",
    "distance",
    "loss_under_prior",
    "losses_on",
    "max_curvature",
    "minibatch_losses",
    "minibatch_rows",
    "minibatch_variance",
    "pairing",
    "stability",
]
