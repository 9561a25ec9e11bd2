"""Many cells on many machines: a training run measured checkpoint by checkpoint, in a folder that survives anything."""
