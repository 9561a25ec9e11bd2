"""How calls that sample take their settings: the keyword arguments that they share."""

from __future__ import annotations

from typing import TypedDict

from rllc.losses.contract import LossFunction
from rllc.samplers import Sampler
from rllc.sampling.settings import Compute, Sampling


class How(TypedDict, total=False):
    """What :func:`rllc.sample` takes by keyword, for calls that hand it on.

    >>> how: How = {"sampling": Sampling(num_draws=10)}

    A function with ``**how: Unpack[How]`` under :func:`rllc.arguments.names_checked` shows these
    names in its signature.
    """

    loss: LossFunction | None
    sampler: Sampler | None
    sampling: Sampling | None
    compute: Compute | None
