"""How right the estimates are; ``python -m examples.benchmarks.accuracy``."""
