"""Which settings to sample with: searches over (lr, n_beta, localization), and λ̂ over n_beta."""
