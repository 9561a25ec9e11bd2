"""Samplers: pure functions ``init`` and ``step`` over many independent chains at once.

Each algorithm has a file of its own, always in the same order: state, constructor, step, law.

Convention (devinterp's): the target is p(v) ∝ exp(−nβ ℓ(v)) times the prior, which is by default
exp(−(γ/2)‖v − v*‖²). A sampler is handed the *energy* U(v) = nβ ℓ(v) and its gradient; the prior is
its own. In the words of other libraries:

================  ================  ================  ==================================
symbol            rllc              devinterp         blackjax (sgld)
================  ================  ================  ==================================
ε                 ``lr``            ``lr``            ``step_size`` = ε/2
γ                 ``localization``  ``localization``  a term of your ``logdensity_fn``
nβ                ``n_beta``        ``n_beta``        a factor in your ``logdensity_fn``
noise per step    N(0, ε)           N(0, ε)           N(0, 2 · ``step_size``)
================  ================  ================  ==================================

What each leaves of its target on a quadratic of precision a = nβh + γ with exact gradients:

====================  =====================  ========  ==========================================
sampler               stationary variance    stable    for
====================  =====================  ========  ==========================================
:func:`sgld`          1/(a(1 − εa/4))        εa < 4    the paper's settings, and comparisons
:func:`rmsprop_sgld`  1/(a(1 − εGa/4))       εGa < 4   curvatures of very different size
:func:`sghmc`         1/a                    εa < 4    faster mixing, no error of the step size
:func:`mala`          1/a (on every energy)  every ε   a reference for small problems, full batch
:func:`hmc`           1/a (on every energy)  every ε   the same, for correlated or long targets
====================  =====================  ========  ==========================================

All take the same priors (:func:`gaussian`, :func:`box`).
"""

from __future__ import annotations

from rllc.samplers.hmc import HMCState, hmc, mala
from rllc.samplers.law import Jump, Law
from rllc.samplers.prior import Prior, box, gaussian
from rllc.samplers.prior_alone import prior_alone
from rllc.samplers.rmsprop_sgld import RMSPropSGLDState, rmsprop_sgld
from rllc.samplers.sampler import Energy, Random, Sampler
from rllc.samplers.sghmc import SGHMCState, sghmc
from rllc.samplers.sgld import SGLDState, sgld
from rllc.samplers.stored import from_settings

__all__ = [
    "Energy",
    "HMCState",
    "Jump",
    "Law",
    "Prior",
    "RMSPropSGLDState",
    "Random",
    "SGHMCState",
    "SGLDState",
    "Sampler",
    "box",
    "from_settings",
    "gaussian",
    "hmc",
    "mala",
    "prior_alone",
    "rmsprop_sgld",
    "sghmc",
    "sgld",
]
