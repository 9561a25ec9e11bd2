"""From a model and its refinements to draws: settings, checks, the loop over steps, observables."""
