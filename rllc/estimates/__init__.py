"""From draws to numbers: λ̂, its error, and what is wrong with it."""

from __future__ import annotations

from rllc.estimates.estimate import LLC, Estimate
from rllc.estimates.faults import Fault

__all__ = ["LLC", "Estimate", "Fault"]
