"""rllc: refined local learning coefficients of attention heads, with honest error bars."""

from __future__ import annotations

from rllc import (
    data,
    losses,
    models,
    observables,
    plots,
    samplers,
    testing,
    theory,
    training,
)
from rllc.statistics import diagnostics

# which weights, which data
from rllc.data.given import as_data
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
from rllc.anatomy import Anatomy, AttentionRow, anatomy

# how to sample, and the loss
from rllc.losses.by_name import distillation, next_token
from rllc.losses.contract import named
from rllc.observables import distance, losses_on
from rllc.sampling.observe import Moment, Observable
from rllc.sampling.sample import iterate, sample
from rllc.sampling.settings import Compute, Sampling
from rllc.samplers import Sampler, box, gaussian, rmsprop_sgld, sgld

# results: one estimate, and estimates over training
from rllc.sampling.draws import Draws
from rllc.estimates.estimate import Estimate, estimate
from rllc.estimates.control import control
from rllc.sweep.track import track
from rllc.sweep.cost import cost, sweep_cost
from rllc.sweep.store import Store
from rllc.sweep.sweep import Sweep
from rllc.estimates.faults import Fault
from rllc.limits import Limits
from rllc.calibration.calibrate import Calibration, calibrate
from rllc.calibration.resolution import Resolution, resolution
from rllc.sweep.trajectory import Trajectory
from rllc.sweep.tracker import Tracker

# covariances of losses on fixed rows
from rllc.covariances.results import each_checkpoint
from rllc.covariances.elasticities import Elasticities, elasticities
from rllc.covariances.fluctuation import singular_fluctuation, waic
from rllc.covariances.influence import LossKernel, influence, loss_kernel
from rllc.covariances.susceptibilities import Susceptibilities, susceptibilities
from rllc.covariances.token_llc import token_llc

# models, checkpoints, training
from rllc.models.checkpoints import Checkpoint, checkpoints
from rllc.models.loading import load
from rllc.training import Training, train

# figures, and all of a sweep on one page
from rllc.plots import plot_heads, plot_resolution, plot_traces, plot_trajectory
from rllc.sweep.report import report

# errors
from rllc.errors import FileError, InputError, ObservationError, RllcError

__version__ = "0.1.0"

__all__ = [
    "Anatomy",
    "AttentionRow",
    "Calibration",
    "Checkpoint",
    "Compute",
    "Draws",
    "Elasticities",
    "Estimate",
    "Fault",
    "FileError",
    "InputError",
    "Limits",
    "LossKernel",
    "Moment",
    "Observable",
    "ObservationError",
    "Refinement",
    "Resolution",
    "RllcError",
    "Sampler",
    "Sampling",
    "Store",
    "Susceptibilities",
    "Sweep",
    "Tokens",
    "Tracker",
    "Training",
    "Trajectory",
    "Weights",
    "anatomy",
    "as_data",
    "box",
    "calibrate",
    "checkpoints",
    "control",
    "cost",
    "data",
    "diagnostics",
    "distance",
    "distillation",
    "each_checkpoint",
    "elasticities",
    "estimate",
    "everything",
    "gaussian",
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
    "named",
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
    "rmsprop_sgld",
    "sample",
    "samplers",
    "sgld",
    "singular_fluctuation",
    "subspace",
    "susceptibilities",
    "sweep_cost",
    "testing",
    "theory",
    "token_llc",
    "track",
    "train",
    "trainable",
    "training",
    "waic",
]
