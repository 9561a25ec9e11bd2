"""``python -m rllc.sweep spec.json``: see :mod:`rllc.sweep.command`."""

from __future__ import annotations

import sys

from rllc.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
