"""Covariances of losses along the same draws: susceptibilities, influence, λ̂ of tokens."""
