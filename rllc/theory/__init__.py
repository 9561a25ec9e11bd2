"""Exact learning coefficients, and the exact law of SGLD on quadratics.

They are the truths that estimates are held against. Learning coefficients are asymptotic: the
volume {w : ℓ(w) − ℓ(w*) < t} scales as t^λ (−log t)^(m−1) for t → 0, with learning coefficient λ
and multiplicity m. They do not depend on the scale of the loss. :class:`SGLDLaw` is not
asymptotic: it is what the estimator returns at a given step size, localization and nβ,
discretisation and prior included.

References:
    Aoyagi and Watanabe (2005), Stochastic complexities of reduced rank regression in Bayesian
    estimation.
    Watanabe (2009), Algebraic geometry and statistical learning theory.
    Aoyagi (2024), Consideration on the learning efficiency of multiple-layered neural networks
    with linear units.
"""

from rllc.theory.coefficients import (
    LearningCoefficient,
    deep_linear,
    normal_crossing,
    one_head_attention,
    reduced_rank_regression,
    reduced_rank_regression_at,
    regular,
)
from rllc.theory.langevin import SGLDLaw
from rllc.theory.layers import deep_linear_curvatures, deep_linear_layer

__all__ = [
    "LearningCoefficient",
    "SGLDLaw",
    "deep_linear",
    "deep_linear_curvatures",
    "deep_linear_layer",
    "normal_crossing",
    "one_head_attention",
    "reduced_rank_regression",
    "reduced_rank_regression_at",
    "regular",
]
