"""Refinements: which weights, which data, and the names of the pairs."""
