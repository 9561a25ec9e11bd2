"""Two readings of a step's size, from a second evaluation: its acceptance, and its bias.

Cost: one evaluation of each run at each probed draw.
"""

from __future__ import annotations

from torch import Tensor

from rllc.samplers import Law
from rllc.samplers.sgld import dot
from rllc.sampling.observe import Moment, Observable


def acceptance(law: Law) -> Observable:
    """Probability with which MALA would accept the step, min(1, p(v′)q(v | v′) / (p(v)q(v′ | v))).

    It is that of a chain in the sampler's own law, and on a quadratic stays near ½ however large
    the step is: losses that bend more than a quadratic make it small.

    Args:
        law: one with ``log_acceptance``.
    """
    log_ratio = law.log_acceptance
    assert log_ratio is not None
    return Observable(lambda moment: log_ratio(moment.jump()).clamp(max=0.0).exp(), at="probe")


def discretisation() -> Observable:
    """The bias of λ̂ by the step's size: ⅛ nβ δ·(∇ℓ_B(v′) − ∇ℓ_B(v)), with δ = v′ − v.

    On a quadratic its mean is Σ ½ nβhᵢ(1/(aᵢ(1 − εaᵢ/4)) − 1/aᵢ), what a finite ε adds to λ̂
    (exactly, without gradient noise), also with a preconditioner εGᵢ that is held fixed. The
    minibatch's noise is the same at both ends and drops out.

    >>> discretisation().at
    'probe'
    """
    return Observable(_discretisation, at="probe")


def _discretisation(moment: Moment) -> Tensor:
    jump = moment.jump()
    step = jump.after - jump.before
    return jump.n_beta / 8 * dot(step, jump.gradient_after - jump.gradient_before)
