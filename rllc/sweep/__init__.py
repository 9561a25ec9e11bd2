"""A training run measured checkpoint by checkpoint, in a folder that survives what goes wrong.

What you type::

    data = {"code": code, "prose": prose}
    compute = rllc.Compute(executor=2)
    trajectory = rllc.track("runs/seed0", data, rllc.heads, store="sweep", compute=compute)
    # Killed, out of power, or more heads, chains, checkpoints wanted? The same line computes
    # what is missing.
    sweep = rllc.Sweep.open("sweep")  # now, years later, or from another window while it runs
    sweep.missing, sweep.failed
    rllc.plot_trajectory(sweep.trajectory(), "code")

A *cell* is one checkpoint, one data set, the weights that the engine runs together, and some
chains. Each call writes a *plan*, the list of its cells, before the first chain runs; each
finished cell is one file. The folder is described in :mod:`rllc.sweep.store`.

In order of their use: ``request`` checks what a call asks for, ``planning`` turns it into cells,
``track`` has them computed by ``workers`` in ``pools``, and ``sweep`` reads what there is.
"""

from __future__ import annotations

from rllc.sweep.cost import sweep_cost
from rllc.sweep.store import Store
from rllc.sweep.sweep import Sweep

__all__ = ["Store", "Sweep", "sweep_cost"]
