"""Checks for people who extend rllc: of their own selections of weights, losses and samplers.

Call them in your tests. Each returns nothing, or raises an ``AssertionError`` that says what does
not hold. Statistical checks compare with an exact law by z-scores; they fail at |z| ≥ 5, which is
a false alarm in about a million.
"""

from __future__ import annotations

from rllc.testing.loss import check_loss
from rllc.testing.sampler import check_sampler
from rllc.testing.unchanged import unchanged
from rllc.testing.weights import check_weights

__all__ = ["check_loss", "check_sampler", "check_weights", "unchanged"]
