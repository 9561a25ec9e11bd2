"""Until all modules import it from there."""

from rllc.tables import table  # noqa: F401
