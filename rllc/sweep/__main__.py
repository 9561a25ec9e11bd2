"""``python -m rllc.sweep spec.json``: see :func:`rllc.sweep.track.main`."""

from __future__ import annotations

import sys

from rllc.sweep.track import main

if __name__ == "__main__":
    sys.exit(main())
