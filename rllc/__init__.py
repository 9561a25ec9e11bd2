"""rllc: refined local learning coefficients of attention heads, over training, with honest error bars."""

from __future__ import annotations

from rllc import data, diagnostics, models, theory

# which weights, which data
from rllc.data.tokens import Tokens

# figures
from rllc.plots import plot_heads, plot_traces, plot_trajectory

# results
from rllc.draws import Draws
from rllc.errors import FileError, InputError, RllcError
from rllc.estimate import LLC, Estimate, estimate
from rllc.loss import distillation, next_token

# models and training
from rllc.models.checkpoints import Checkpoint, checkpoints, load

from rllc.refinement import Refinement

# sampling
from rllc.sample import Sampling, Step, iterate, sample
from rllc.samplers import Sampler, sgld
from rllc.track import track
from rllc.trajectory import Tracker, Trajectory
from rllc.weights import Weights, everything, head, heads, layer, masks, parameters

__version__ = "0.1.0"
