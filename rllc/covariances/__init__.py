"""Covariances of losses along the same draws: susceptibilities, influence, λ̂ of tokens."""

from __future__ import annotations

from rllc.covariances.elasticities import Elasticities, elasticities
from rllc.covariances.fluctuation import singular_fluctuation, waic
from rllc.covariances.influence import LossKernel, influence, loss_kernel
from rllc.covariances.results import each_checkpoint
from rllc.covariances.susceptibilities import Susceptibilities, susceptibilities
from rllc.covariances.token_llc import token_llc

__all__ = [
    "Elasticities",
    "LossKernel",
    "Susceptibilities",
    "each_checkpoint",
    "elasticities",
    "influence",
    "loss_kernel",
    "singular_fluctuation",
    "susceptibilities",
    "token_llc",
    "waic",
]
