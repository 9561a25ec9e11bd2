"""rllc: refined local learning coefficients of attention heads, with honest error bars.

Here are the names that one types every day. The others are behind the doors of their rooms:
``rllc.samplers``, ``rllc.losses``, ``rllc.observables``, ``rllc.data``, ``rllc.models``,
``rllc.covariances``, ``rllc.analysis``, ``rllc.plots``, ``rllc.errors`` and so on.
"""

from __future__ import annotations

from rllc import (
    analysis,
    calibration,
    covariances,
    data,
    errors,
    estimates,
    losses,
    models,
    observables,
    plots,
    samplers,
    statistics,
    sweep,
    testing,
    theory,
    training,
    weights,
)

# which weights, which data
from rllc.data.tokens import Tokens
from rllc.weights.refinement import Refinement
from rllc.weights.subspace import subspace
from rllc.weights.selection import (
    Weights,
    everything,
    head,
    heads,
    layer,
    masks,
    parameters,
    trainable,
)
from rllc.anatomy import AttentionRow, anatomy

# how to sample, and the loss
from rllc.losses.by_name import next_token
from rllc.observables import distance, losses_on
from rllc.sampling.observe import Moment, Observable
from rllc.sampling.sample import iterate, sample
from rllc.sampling.settings import Compute, Sampling
from rllc.samplers import sgld

# results: one estimate, and estimates over training
from rllc.sampling.draws import Draws
from rllc.estimates.estimate import Estimate, estimate
from rllc.estimates.control import control
from rllc.sweep.cost import cost
from rllc.sweep.track import track
from rllc.sweep.store import Store
from rllc.sweep.sweep import Sweep
from rllc.estimates.faults import Fault
from rllc.limits import Limits
from rllc.calibration.calibrate import Calibration, calibrate
from rllc.calibration.resolution import resolution
from rllc.sweep.trajectory import Trajectory
from rllc.sweep.tracker import Tracker

# covariances of losses on fixed rows
from rllc.covariances.influence import influence, loss_kernel
from rllc.covariances.susceptibilities import susceptibilities

# models, checkpoints, training
from rllc.models.checkpoints import checkpoints
from rllc.models.loading import load
from rllc.training import Training, train

# figures, and all of a sweep on one page
from rllc.plots import plot_heads, plot_resolution, plot_traces, plot_trajectory
from rllc.sweep.report import report

from rllc.errors import FileError, InputError, RllcError

__version__ = "0.1.0"

__all__ = [
    "AttentionRow",
    "Calibration",
    "Compute",
    "Draws",
    "Estimate",
    "Fault",
    "FileError",
    "InputError",
    "Limits",
    "Moment",
    "Observable",
    "Refinement",
    "RllcError",
    "Sampling",
    "Store",
    "Sweep",
    "Tokens",
    "Tracker",
    "Training",
    "Trajectory",
    "Weights",
    "analysis",
    "anatomy",
    "calibrate",
    "calibration",
    "checkpoints",
    "control",
    "cost",
    "covariances",
    "data",
    "distance",
    "errors",
    "estimate",
    "estimates",
    "everything",
    "head",
    "heads",
    "influence",
    "iterate",
    "layer",
    "load",
    "loss_kernel",
    "losses",
    "losses_on",
    "masks",
    "models",
    "next_token",
    "observables",
    "parameters",
    "plot_heads",
    "plot_resolution",
    "plot_traces",
    "plot_trajectory",
    "plots",
    "report",
    "resolution",
    "sample",
    "samplers",
    "sgld",
    "statistics",
    "subspace",
    "susceptibilities",
    "sweep",
    "testing",
    "theory",
    "track",
    "train",
    "trainable",
    "training",
    "weights",
]
