"""Errors and diagnostics of chains, as functions of arrays ``[..., chain, draw]``."""
