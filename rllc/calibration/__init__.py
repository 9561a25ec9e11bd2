"""Which settings to sample with: searches over (lr, n_beta, localization), and λ̂ over n_beta."""

from __future__ import annotations

from rllc.calibration.calibrate import Calibration
from rllc.calibration.resolution import Resolution

__all__ = ["Calibration", "Resolution"]
