"""How fast the sampling engine is; ``python -m examples.benchmarks.engine``."""
