"""rllc: refined local learning coefficients of attention heads, over training, with honest error bars."""

from __future__ import annotations

from rllc import data, diagnostics, models, theory
from rllc.data.tokens import Tokens
from rllc.draws import Draws
from rllc.errors import FileError, InputError, RllcError
from rllc.estimate import LLC, Estimate, estimate
from rllc.loss import distillation, next_token
from rllc.refinement import Refinement
from rllc.sample import Sampling, Step, iterate, sample
from rllc.samplers import Sampler, sgld
from rllc.weights import Weights, everything, head, heads, layer, masks, parameters

__version__ = "0.1.0"
