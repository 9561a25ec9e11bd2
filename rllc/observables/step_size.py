"""What a second look at the loss tells of a step: would it be accepted, and what does it add?

Cost: one evaluation of each run at each probed draw.
"""

from __future__ import annotations

from torch import Tensor

from rllc.observe import Moment, Observable
from rllc.samplers import Law
from rllc.samplers.sgld import dot


def probed(num_probes: int, num_draws: int, target_se: float | None) -> list[int]:
    """Choose the draws whose step is looked at twice.

    Of the n-th draws, those with the n that 2 divides most often, later ones first:

    >>> probed(5, 100, None), probed(5, 200, None)
    ([31, 47, 63, 79, 95], [63, 95, 127, 159, 191])

    They are spread over all but the beginning. The order in which draws are preferred does not
    depend on ``num_draws``, so whatever a longer run looks at among its first draws, a shorter one
    has looked at, too, and chains can be continued.

    With ``target_se`` a refinement may end at any twentieth draw, so these are taken, and a
    refinement's own are those before its end.
    """
    wanted = min(num_probes, num_draws)
    if target_se is not None and num_draws >= 20:
        return [draw for draw in range(19, 20 * wanted, 20) if draw < num_draws]
    preferred: list[int] = []
    power = 1 << num_draws.bit_length() >> 1
    # Odd multiples of each power of 2, the largest power first: draws may be millions.
    while power and len(preferred) < wanted:
        most = num_draws // power
        odd_multiples = range(most - (most % 2 == 0), 0, -2)
        for multiple in odd_multiples[: wanted - len(preferred)]:
            preferred.append(multiple * power)
        power //= 2
    return sorted(number - 1 for number in preferred)


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
    """What the step's size adds to λ̂: ⅛ nβ δ·(∇ℓ_B(v′) − ∇ℓ_B(v)), with δ = v′ − v.

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
